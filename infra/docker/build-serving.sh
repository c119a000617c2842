#!/usr/bin/env bash
# Build the image that serves models: build-serving.sh [--force] [TAG]. build-image.sh says what can be set.
exec "$(dirname "$0")/build-image.sh" serving "$@"
