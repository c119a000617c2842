# What a worker of a map job runs: sh worker.sh warm|each COMMAND…
#
# The agent says on the standard input "give SLOT", "forget SLOT" or "close", a line each; one may come twice. A slot is
# one try of one item: its file and all else that it is given with are in .items/in/SLOT, what it leaves goes to
# .items/out/SLOT. A warm COMMAND runs once and gets items as lines of JSON; else it runs once for each item.
mode=$1
shift
items=$WHERRY_WORKSPACE/.items
export WHERRY_WORKER="$mode"

# Whether the item is here and was not begun yet; it is from now on.
begin() {
    [ -d "$items/in/$1" ] && mkdir "$items/in/$1/begun" 2>/dev/null
}

run_warm() {
    cat "$items/in/$1/line.json"
}

run_each() {
    WHERRY_ITEM=${1%-*} WHERRY_ITEM_PARAMS=$items/in/$1/params.json
    IFS= read -r WHERRY_IN <"$items/in/$1/in.path"
    IFS= read -r WHERRY_OUT <"$items/in/$1/out.path"
    export WHERRY_ITEM WHERRY_ITEM_PARAMS WHERRY_IN WHERRY_OUT
    shift
    if [ -n "$WHERRY_IN" ] && [ ! -e "$WHERRY_IN" ]; then
        answer "failed there is no file ${WHERRY_IN#"$WHERRY_INPUTS"/}"
        return
    fi
    # What follows on the standard error is of this item: the agent does not read the two outputs in step.
    printf '\036\n::item %s begins\n' "$WHERRY_ITEM" >&2
    "$@" </dev/null &
    child=$!
    trap 'kill "$child"; wait "$child"; exit 143' TERM
    wait "$child"
    code=$?
    trap - TERM
    if [ "$code" = 0 ]; then answer ok; else answer "failed exit code $code"; fi
}

# The mark ends a line that the command may have left open; the agent takes it out.
answer() {
    printf '\036\n::item %s %s\n' "$WHERRY_ITEM" "$1"
}

listen() {
    while IFS=' ' read -r word slot; do
        case $word in
            give) if begin "$slot"; then "run_$mode" "$slot" "$@"; fi ;;
            forget) rm -rf "$items/in/$slot" "$items/out/$slot" ;;
            close) return ;;
        esac
    done
}

if [ "$mode" = each ]; then
    listen "$@"
    exit 0
fi
mkfifo "$items/feed"
exec 3<&0
listen <&3 >"$items/feed" &
exec 3<&-
exec "$@" <"$items/feed"
