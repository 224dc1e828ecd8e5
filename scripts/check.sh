#!/usr/bin/env bash
# One check of run_tests.sh, by its name: scripts/check.sh c gcc
set -euo pipefail
. "$(dirname "$0")/common.sh"
. "$(dirname "$0")/c_checks.sh"
. "$(dirname "$0")/python_checks.sh"

# skip REASON: end the check as skipped.
skip() {
    say "$*"
    exit 77
}

if [ $# = 0 ] || ! declare -F "check_$1" >/dev/null; then
    echo "usage: check.sh NAME [ARGUMENTS], NAME one of:" \
        "$(declare -F | sed -n 's/^declare -f check_/ /p' | tr -d '\n')" >&2
    exit 2
fi
name=$1
shift
"check_$name" "$@"
