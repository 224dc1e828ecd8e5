#!/usr/bin/env bash
# Run one check of run_tests.sh: scripts/check.sh c gcc
set -euo pipefail
. "$(dirname "$0")/common.sh"
. "$(dirname "$0")/c_checks.sh"
. "$(dirname "$0")/python_checks.sh"
. "$(dirname "$0")/aarch64_checks.sh"
. "$(dirname "$0")/debian_checks.sh"
. "$(dirname "$0")/archives.sh"
. "$(dirname "$0")/musl_checks.sh"

# skip REASON: end the check as skipped.
skip() {
    say "$*"
    exit 77
}

# It ends with this script, even if that is killed.
busy_loop() {
    local i
    while kill -0 $$ 2>/dev/null; do
        for ((i = 0; i < 100000; i++)); do :; done # few looks, much work
    done
}

# check_repeat N: run the whole suite N times beside two busy loops, which play
# the other users of a shared machine.  The logs of runs that fail stay in
# build-tests/repeat.
check_repeat() {
    local kept="$WORK/repeat" loops=() run failures=0 begin status
    rm -rf "$kept"
    mkdir -p "$kept"
    for run in 1 2; do
        busy_loop &
        loops+=($!)
    done
    # shellcheck disable=SC2064
    trap "kill ${loops[*]} 2>/dev/null" EXIT
    trap 'exit 1' INT TERM HUP
    for run in $(seq "${1:-5}"); do
        begin=$SECONDS status=passed
        # In the background, so that a signal ends the waiting for it.
        "$ROOT/run_tests.sh" >"$kept/$run.log" 2>&1 &
        # shellcheck disable=SC2064
        trap "kill $! ${loops[*]} 2>/dev/null || true; wait" EXIT
        if ! wait $!; then
            status=FAILED failures=$((failures + 1))
            cp -r "$WORK/logs" "$kept/$run"
        fi
        say "run $run: $status in $((SECONDS - begin)) s:" \
            "$(tail -n 1 "$kept/$run.log")"
    done
    [ $failures = 0 ]
}

if [ $# = 0 ] || ! declare -F "check_$1" >/dev/null; then
    echo "usage: check.sh NAME [ARGUMENTS], where NAME is one of:" \
        "$(declare -F | sed -n 's/^declare -f check_/ /p' | tr -d '\n')" >&2
    exit 2
fi
name=$1
shift
"check_$name" "$@"
