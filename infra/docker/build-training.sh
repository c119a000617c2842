#!/usr/bin/env bash
# Build the image that trainings run in: build-training.sh [--force] [TAG]. build-image.sh says what can be set.
exec "$(dirname "$0")/build-image.sh" training "$@"
