#!/usr/bin/env bash
# Build the Python base image from Debian's packages, for places where no image registry is in reach.
#
#   infra/docker/build-base.sh [--force] [TAG]        (TAG: wherry/python-base)
#
# Needs root, debootstrap and a Docker engine. The image holds python3 and python, venv, the libraries that mongod
# loads, and this machine's certificate bundle, so that build steps trust the package mirrors that this machine trusts.
# It is the base of wherry's own images there, and does as the image of users' jobs.
set -euo pipefail

force=
if [ "${1:-}" = --force ]; then force=1; shift; fi
tag=${1:-wherry/python-base}
suite=bookworm

if [ -z "$force" ] && docker image inspect "$tag" >/dev/null 2>&1; then
    echo "$tag is there"
    exit 0
fi

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"

# The mirror that this machine's apt uses; debootstrap knows a default of its own.
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' "Codename: $suite" 2>/dev/null | head -n 1 || true)
packages=python3,python3-venv,ca-certificates,libcurl4,libssl3
echo "building $tag from Debian $suite"
debootstrap --variant=minbase --include="$packages" "$suite" "$root" ${mirror:+"$mirror"} >"$root.log" 2>&1 || {
    tail -n 40 "$root.log" >&2
    rm -f "$root.log"
    exit 1
}
rm -f "$root.log"

cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
ln -sf python3 "$root/usr/bin/python"
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/var/log/* "$root"/debootstrap \
    "$root"/usr/share/{doc,man,info,locale,doc-base,lintian} "$root"/tmp/* "$root"/dev/*

tar -C "$root" --numeric-owner -c . | docker import \
    --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    --change 'ENV LANG=C.UTF-8' \
    --change 'CMD ["python3"]' \
    - "$tag"
