#!/bin/sh
# Resolve pyproject.toml into requirements/*.lock: names, versions and hashes, and no registry's host.
set -eu
cd "$(dirname "$0")/.."

compile() { # NAME ARGUMENT…
    out=requirements/$1.lock
    shift
    .venv/bin/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
        --python-version 3.11 --custom-compile-command "make lock" --output-file "$out" "$@" pyproject.toml
    echo "$out"
}

upgrade=${UPGRADE:+--upgrade} # UPGRADE=1 make lock takes newer versions; otherwise what is locked stays
compile dev $upgrade --extra dev
# All others take dev's versions: what is tested is what runs.
compile client --constraint requirements/dev.lock
for extra in stack gateway scheduler node-agent storage notifier; do
    compile "$extra" --constraint requirements/dev.lock --extra "$extra"
done
