#!/usr/bin/env bash
# Build the image that serves models, out of images/serving.
#
#   infra/docker/build-serving.sh [--force] [TAG]        (TAG: wherry/serving)
#
# BASE: an image with Python (wherry/python-base, built where it is missing). An image that was built from the same files
# is left as it is.
set -euo pipefail
cd "$(dirname "$0")/../.."

force=
if [ "${1:-}" = --force ]; then force=1; shift; fi
tag=${1:-wherry/serving}

files() { find images/serving -type f ! -name '*.pyc'; echo requirements/scheduler.lock; echo infra/docker/build-serving.sh; }
packages() { sh infra/docker/one-package.sh pillow requirements/dev.lock; }
made_of=$({ files | sort | xargs sha256sum; packages; printf '%s\n' "${BASE:-}"; } | sha256sum | cut -c1-64)
if [ -z "$force" ] && [ "$(docker image inspect --format '{{index .Config.Labels "io.wherry.made-of"}}' "$tag" 2>/dev/null)" = "$made_of" ]; then
    echo "$tag is there"
    exit 0
fi

[ -n "${BASE:-}" ] || infra/docker/build-base.sh wherry/python-base

# How the build steps reach the package index that this machine uses.
arguments=()
for name in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST; do
    [ -z "${!name:-}" ] || arguments+=(--build-arg "$name=${!name}")
done
docker buildx version >/dev/null 2>&1 && export DOCKER_BUILDKIT=1 || export DOCKER_BUILDKIT=0
docker build --quiet --tag "$tag" --file images/serving/Dockerfile --build-arg "BASE=${BASE:-wherry/python-base}" \
    --label "io.wherry.made-of=$made_of" "${arguments[@]}" .
