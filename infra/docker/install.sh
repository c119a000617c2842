#!/bin/sh
# Have a Docker engine: install Debian's and start its daemon where none answers. Needs root.
# An engine that answers is left alone. The daemon's process id goes into $DOCKERD_PID_FILE, if that is set.
set -eu
PATH=$PATH:/usr/sbin

answers() { timeout 20 docker info >/dev/null 2>&1; }

if answers; then
    echo "an engine answers"
    exit 0
fi
if [ -n "${DOCKER_HOST:-}" ]; then
    echo "DOCKER_HOST=$DOCKER_HOST does not answer, and is not ours to start" >&2
    exit 1
fi
if ! command -v dockerd >/dev/null || ! command -v docker >/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    apt-get -qq install --yes --no-install-recommends docker.io iproute2
fi
log=$(mktemp)
nohup dockerd >"$log" 2>&1 </dev/null &
daemon=$!
[ -z "${DOCKERD_PID_FILE:-}" ] || echo "$daemon" >"$DOCKERD_PID_FILE"
tries=0
until answers; do
    tries=$((tries + 1))
    if [ "$tries" -gt 120 ] || ! kill -0 "$daemon" 2>/dev/null; then
        tail -n 30 "$log" >&2
        echo "dockerd did not start; its log is $log" >&2
        exit 1
    fi
    sleep 0.5
done
echo "dockerd started"
