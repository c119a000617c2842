#!/usr/bin/env bash
# Build an image that is part of what wherry offers, out of images/NAME.
#
#   infra/docker/build-image.sh NAME [--force] [TAG]        (TAG: wherry/NAME)
#
# BASE: an image with Python (wherry/python-base, built where it is missing). EXTRA: packages beside those that the image
# needs, where it takes them. An image that was built from the same files, base and packages is left as it is.
set -euo pipefail
cd "$(dirname "$0")/../.."

name=$1; shift
force=
if [ "${1:-}" = --force ]; then force=1; shift; fi
tag=${1:-wherry/$name}

[ -n "${BASE:-}" ] || infra/docker/build-base.sh wherry/python-base
base=${BASE:-wherry/python-base}

made_of=$({
    find "images/$name" -type f ! -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum infra/docker/build-image.sh
    for package in numpy pillow; do sh infra/docker/one-package.sh "$package" requirements/dev.lock; done
    docker image inspect --format '{{.Id}}' "$base" 2>/dev/null || echo "$base"
    echo "${EXTRA:-}"
} | sha256sum | cut -c1-64)
if [ -z "$force" ] && [ "$(docker image inspect --format '{{index .Config.Labels "io.wherry.made-of"}}' "$tag" 2>/dev/null)" = "$made_of" ]; then
    echo "$tag is there"
    exit 0
fi

# How the build steps reach the package index that this machine uses.
arguments=()
for variable in PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST EXTRA; do
    [ -z "${!variable:-}" ] || arguments+=(--build-arg "$variable=${!variable}")
done
docker buildx version >/dev/null 2>&1 && export DOCKER_BUILDKIT=1 || export DOCKER_BUILDKIT=0
build() { docker build --file "images/$name/Dockerfile" --build-arg "BASE=$base" "${arguments[@]}" "$@" .; }

labels=(--label "io.wherry.made-of=$made_of")
if [ "$name" = filters ]; then  # they say themselves what parameters they have; the second build only writes that on the image
    labels+=(--label "io.wherry.model.params=$(docker run --rm --network none "$(build --quiet)" --schema)")
fi
build --tag "$tag" "${labels[@]}"
