#!/bin/sh
# Finds a Python and trains. All it asks of the image is sh and Python 3.9 or newer; numpy is used if it is there.
set -eu
cd "$(dirname "$0")"
for python in python3 python; do
    if command -v "$python" >/dev/null 2>&1; then
        exec "$python" -u -B app.py "$@"
    fi
done
echo "run.sh: this image has neither python3 nor python" >&2
exit 127
