#!/usr/bin/env bash
# Build the image that filters pictures: build-filters.sh [--force] [TAG]. build-image.sh says what can be set.
exec "$(dirname "$0")/build-image.sh" filters "$@"
