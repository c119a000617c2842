#!/usr/bin/env bash
# Build the image that trainings run in, out of images/training.
#
#   infra/docker/build-training.sh [--force] [TAG]        (TAG: wherry/training)
#
# BASE: an image with Python (wherry/python-base, built where it is missing). EXTRA: packages beside NumPy.
set -euo pipefail
cd "$(dirname "$0")/../.."

force=
if [ "${1:-}" = --force ]; then force=1; shift; fi
tag=${1:-wherry/training}

if [ -z "$force" ] && docker image inspect "$tag" >/dev/null 2>&1; then
    echo "$tag is there"
    exit 0
fi

[ -n "${BASE:-}" ] || infra/docker/build-base.sh wherry/python-base

# How the build steps reach the package index that this machine uses.
arguments=()
for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST EXTRA; do
    [ -z "${!name:-}" ] || arguments+=(--build-arg "$name=${!name}")
done
docker buildx version >/dev/null 2>&1 && export DOCKER_BUILDKIT=1 || export DOCKER_BUILDKIT=0
docker build --tag "$tag" --file images/training/Dockerfile --build-arg "BASE=${BASE:-wherry/python-base}" "${arguments[@]}" .
