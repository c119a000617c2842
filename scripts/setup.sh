#!/bin/sh
# Make .venv hold what a lock file names: setup.sh stack (to run wherry) | dev (to test it too).
# Done already, it returns at once: a stamp in .venv holds the lock's checksum.
set -eu
cd "$(dirname "$0")/.."
want=$1

stamp() { echo ".venv/wherry-$1-$(cksum <"requirements/$1.lock" | tr ' ' -)"; }

for have in "$want" dev; do # dev holds stack
    if [ -e "$(stamp "$have")" ]; then
        [ -e .venv/bin/wherry ] || sh scripts/programs.sh .venv
        exit 0
    fi
done

# The newest Python that will do: the one asked for, else python3, else one with its version in its name.
python=
for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "wherry needs Python 3.11 or newer: install it, or name it with PYTHON=/path/to/python3.11" >&2
    echo "  found: $(${PYTHON:-python3} --version 2>&1 || echo 'no python3')" >&2
    exit 1
fi

if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    if ! told=$("$python" -m venv --clear .venv 2>&1); then
        echo "$told" >&2
        echo "$python cannot make a virtual environment: install its venv module" >&2
        echo "  Debian, Ubuntu: apt-get install python3-venv    Fedora: dnf install python3-pip" >&2
        rm -rf .venv
        exit 1
    fi
fi

echo "installing requirements/$want.lock into .venv (once)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-input \
    --require-hashes --requirement "requirements/$want.lock"
sh scripts/programs.sh .venv
rm -f ".venv/wherry-$want-"*
touch "$(stamp "$want")"
