#!/bin/sh
# Build a 2 MB image from Debian's busybox-static, for places where no image registry is in reach.
#
#   infra/docker/build-busybox.sh [--force] [TAG]        (TAG: wherry/busybox)
set -eu

force=
if [ "${1:-}" = --force ]; then force=1; shift; fi
tag=${1:-wherry/busybox}

if [ -z "$force" ] && docker image inspect "$tag" >/dev/null 2>&1; then
    echo "$tag is there"
    exit 0
fi

busybox=$(command -v busybox) || { echo "there is no busybox: install busybox-static" >&2; exit 1; }
if ldd "$busybox" >/dev/null 2>&1; then
    echo "$busybox is not static: install busybox-static" >&2
    exit 1
fi

root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
chmod 755 "$root"
for folder in bin etc root var; do mkdir "$root/$folder"; done
mkdir -m 1777 "$root/tmp"
install -m 755 "$busybox" "$root/bin/busybox"
for applet in $("$busybox" --list); do
    [ "$applet" = busybox ] || ln -s busybox "$root/bin/$applet"
done
echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
echo 'root:x:0:' >"$root/etc/group"

tar -C "$root" --numeric-owner --owner=0 --group=0 -cf "$root.tar" .
trap 'rm -rf "$root" "$root.tar"' EXIT
docker import --change 'ENV PATH=/bin' --change 'CMD ["sh"]' "$root.tar" "$tag"
