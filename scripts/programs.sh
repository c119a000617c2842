#!/bin/sh
# Put the commands of this working tree into an environment: programs.sh .venv
# They work from any folder, and so does `from client.wherry import Client` with that environment's Python.
set -eu
root=$(CDPATH='' cd -- "$(dirname "$0")/.." && pwd)
venv=$1

site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "$root" >"$site/wherry.pth"

program() { # NAME MODULE
    # -P: nothing in the folder where a user happens to be is taken for a module of ours.
    cat >"$venv/bin/$1.new" <<SCRIPT
#!/bin/sh
exec "\$(dirname "\$(readlink -f "\$0")")/python" -P -m $2 "\$@"
SCRIPT
    chmod 755 "$venv/bin/$1.new"
    mv "$venv/bin/$1.new" "$venv/bin/$1"
}
program wherry client.wherry
program wherry-agent services.node_agent
