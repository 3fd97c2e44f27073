#!/usr/bin/env bash
# kills.sh CHECKPOINT RECIPE REFERENCE SECONDS [DIR [CONVERT'S ARGUMENTS...]]
#
# For each of FRACTIONS (default: 0.3 0.45 0.6) of SECONDS: converts CHECKPOINT with RECIPE, ends the process after that time
# with SIGKILL, converts again to the end, and compares the result byte for byte with REFERENCE, the bundle that a conversion
# without a break made with the same arguments. Prints a line per kill: units kept (as `convert` says), units in work at the kill
# (begun, and lost), units that the second run built, and its time. Works in DIR (default: a directory beside REFERENCE), which
# needs room for one bundle. GEMMA_COREML names the program.
#
# Fails if a result differs, if a unit that the journal has is built again, or if more than two units were lost.
set -euo pipefail

if [ $# -lt 4 ]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
checkpoint=$1 recipe=$2 reference=${3%/} seconds=$4
work=${5:-$(dirname "$reference")/kills.$$}
shift $(($# < 5 ? $# : 5))
run=${GEMMA_COREML:-$(dirname "$0")/../target/release/gemma-coreml}
lanes=2

fail() {
    echo "error: $*" >&2
    exit 1
}

out=$work/bundle partial=$work/.bundle.partial log=$work/log
[ ! -e "$out" ] && [ ! -e "$partial" ] || fail "$work holds a bundle or the beginning of one"
mkdir -p "$work"
pid=
# Nothing of this run stays behind.
trap '[ -z "$pid" ] || kill -9 "$pid" 2>/dev/null || true; rm -rf "$out" "$partial" "$log"; rmdir "$work" 2>/dev/null || true' EXIT

# Takes the place of the shell it is called in, so that its process can be killed.
convert() {
    exec "$run" convert "$checkpoint" -r "$recipe" -o "$out" -v "$@"
}

# Units that the journal has: its lines that are whole, but the first.
journaled() {
    local lines=0
    [ ! -f "$partial/journal" ] || lines=$(wc -l <"$partial/journal")
    echo $((lines > 0 ? lines - 1 : 0))
}

printf '%-12s %6s %8s %6s %14s %s\n' 'killed after' kept 'in work' built 'second run' result
for fraction in ${FRACTIONS:-0.3 0.45 0.6}; do
    rm -rf "$out" "$partial"
    after=$(awk -v f="$fraction" -v s="$seconds" 'BEGIN { printf "%.3f", f * s }')
    convert "$@" >"$log" 2>&1 &
    pid=$!
    sleep "$after"
    kill -9 "$pid" 2>/dev/null || true
    code=0
    wait "$pid" 2>/dev/null || code=$?
    pid=
    [ "$code" -eq 137 ] || fail "the conversion ended with code $code before $after s: $(tail -n 3 "$log")"
    [ ! -e "$out" ] || diff -rq "$reference" "$out" >&2 || fail "killed after $after s: an output that is not whole"

    finished=$(journaled)
    in_work=0
    for unit in "$partial"/unit*; do
        [ ! -d "$unit" ] || in_work=$((in_work + 1))
    done
    [ "$in_work" -le "$lanes" ] || fail "killed after $after s: $in_work units in work"
    if [ -e "$out" ]; then
        printf '%-12s %6s %8s %6s %14s %s\n' "$after s" - - - - 'the bundle was in place'
        continue
    fi

    begin=$(date +%s.%N)
    (convert "$@") >"$log" 2>&1 || fail "the run after the kill: $(tail -n 3 "$log")"
    time=$(awk -v a="$begin" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')
    kept=$(sed -n 's/^kept from an interrupted run: //p' "$log" | awk -F', ' '{ n = NF } END { print n + 0 }')
    built=$(grep -c ' to disk: [0-9.]* s$' "$log" || true)
    [ "$kept" -eq "$finished" ] || fail "killed after $after s: the journal has $finished units, $kept were kept"
    diff -rq "$reference" "$out" >&2 || fail "killed after $after s: another result than $reference"
    [ ! -e "$partial" ] || fail "killed after $after s: $partial is still there"
    printf '%-12s %6s %8s %6s %14s %s\n' "$after s" "$kept" "$in_work" "$built" "$time s" 'the same bytes'
done
