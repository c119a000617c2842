#!/usr/bin/env bash
# Build the image that filters pictures, out of images/filters.
#
#   infra/docker/build-filters.sh [--force] [TAG]        (TAG: wherry/filters)
#
# BASE: an image with Python (wherry/python-base, built where it is missing). An image that was built from the same files
# is left as it is.
set -euo pipefail
cd "$(dirname "$0")/../.."

force=
if [ "${1:-}" = --force ]; then force=1; shift; fi
tag=${1:-wherry/filters}

files() { find images/filters -type f ! -name '*.pyc'; echo requirements/dev.lock; echo infra/docker/build-filters.sh; }
made_of=$(files | sort | xargs sha256sum | sha256sum | cut -c1-64)
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
build() {
    docker build --quiet --file images/filters/Dockerfile --build-arg "BASE=${BASE:-wherry/python-base}" \
        "${arguments[@]}" "$@" .
}

# The filters themselves say what parameters they have; the second build only writes that on the image.
schema=$(docker run --rm --network none "$(build)" --schema)
build --tag "$tag" --label "io.wherry.made-of=$made_of" --label "io.wherry.model.params=$schema"
