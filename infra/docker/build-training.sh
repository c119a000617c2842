#!/usr/bin/env bash
# Build the image that trainings run in, out of images/training.
#
#   infra/docker/build-training.sh [--force] [TAG]        (TAG: wherry/training)
#
# BASE: an image with Python (wherry/python-base, built where it is missing). EXTRA: packages beside NumPy. An image that
# was built from the same files, BASE and EXTRA is left as it is.
set -euo pipefail
cd "$(dirname "$0")/../.."

force=
if [ "${1:-}" = --force ]; then force=1; shift; fi
tag=${1:-wherry/training}

files() { find images/training -type f ! -name '*.pyc'; echo requirements/scheduler.lock; echo infra/docker/build-training.sh; }
made_of=$({ files | sort | xargs sha256sum; printf '%s\n' "${BASE:-}" "${EXTRA:-}"; } | sha256sum | cut -c1-64)
if [ -z "$force" ] && [ "$(docker image inspect --format '{{index .Config.Labels "io.wherry.made-of"}}' "$tag" 2>/dev/null)" = "$made_of" ]; then
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
docker build --tag "$tag" --file images/training/Dockerfile --build-arg "BASE=${BASE:-wherry/python-base}" \
    --label "io.wherry.made-of=$made_of" "${arguments[@]}" .
