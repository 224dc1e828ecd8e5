# Run checks in parallel, count their tests and print a summary.  Sourced by
# run_tests.sh.
#
# A check is `scripts/check.sh NAME ARGUMENTS`.  Its exit status is 0 (passed), 77
# (skipped; its last line gives the reason) or another number (failed).

LOGS="$WORK/logs"
AT_ONCE=4 # checks at a time; with more, tests would miss their deadlines
CHECKS=()
REPORTED=()
PASSED=0
FAILED=0
SKIPPED=0
SKIP_NOTES=()
FAIL_NOTES=()
SUMMARY_LINES=()
STARTED=$SECONDS

section() {
    printf '\n== %s\n' "$*"
}

# start SECONDS LABEL NAME ARGUMENTS...: start a check in the background as soon
# as fewer than AT_ONCE are running.  finish_checks waits for it.
start() {
    local limit=$1 label=$2 id
    shift 2
    wait_for_less_than $AT_ONCE
    id="$LOGS/$(printf '%02d' ${#CHECKS[@]})-${label//[^a-zA-Z0-9.]/-}"
    CHECKS+=("$label|$id")
    (
        begin=$SECONDS
        status=0
        timeout --kill-after=10 "$limit" \
            bash "$ROOT/scripts/check.sh" "$@" >"$id.log" 2>&1 </dev/null &
        echo $! >"$id.pid" # also the number of its process group
        wait $! || status=$?
        if [ $status = 124 ] || [ $status = 137 ]; then
            echo "stopped: it took more than $limit s" >>"$id.log"
            end_group $!
        fi
        times >"$id.times"
        echo "$status $((SECONDS - begin)) $(cpu_seconds "$id.times")" \
            >"$id.ending"
        mv "$id.ending" "$id.end"
    ) &
}

# End the checks that are running: a signal from the terminal does not reach
# them.
stop_checks() {
    local entry id group groups=()
    trap - EXIT INT TERM HUP
    for entry in ${CHECKS[@]+"${CHECKS[@]}"}; do
        id=${entry#*|}
        if [ ! -f "$id.end" ] && group=$(group_of "$id"); then
            # A check that has just started does not have a group yet.
            kill -- "-$group" 2>/dev/null || kill "$group" 2>/dev/null || true
            groups+=("$group")
        fi
    done
    for group in ${groups[@]+"${groups[@]}"}; do
        end_group "$group"
    done
}

# Print the number of a check's process group, which the check writes soon after
# it was started.
group_of() {
    local tries
    for ((tries = 0; tries < 50; tries++)); do
        if [ -s "$1.pid" ]; then
            cat "$1.pid"
            return 0 # in a trap, `return` alone is not the status of cat
        fi
        sleep 0.1
    done
    return 1
}

# end_group NUMBER: the processes of a group got SIGTERM.  Wait until they have
# ended, because tests undo first what they have done, and kill those that take
# more than ten seconds.
end_group() {
    local tries
    for ((tries = 0; tries < 100; tries++)); do
        kill -s 0 -- "-$1" 2>/dev/null || return 0
        sleep 0.1
    done
    kill -s KILL -- "-$1" 2>/dev/null || true
}

# Print the CPU seconds of a shell's children from the output of `times`.
cpu_seconds() {
    awk -F '[ms ]+' 'NR == 2 { printf "%.0f", 60 * ($1 + $3) + $2 + $4 }' "$1"
}

# wait_for_less_than COUNT: wait until fewer than COUNT checks are running, and
# report those that end.
wait_for_less_than() {
    while [ "$(jobs -rp | wc -l)" -ge "$1" ]; do
        wait -n || true
        report_ended
    done
    report_ended
}

report_ended() {
    local number entry
    for number in "${!CHECKS[@]}"; do
        entry=${CHECKS[$number]}
        if [ -z "${REPORTED[$number]:-}" ] && [ -f "${entry#*|}.end" ]; then
            REPORTED[$number]=yes
            report_check "${entry%%|*}" "${entry#*|}"
        fi
    done
}

# finish_checks: wait for all checks.
finish_checks() {
    wait_for_less_than 1
}

report_check() {
    local label=$1 id=$2 status seconds cpu counts summary
    read -r status seconds cpu <"$id.end"
    if [ "$status" = 77 ]; then
        SKIPPED=$((SKIPPED + 1))
        SKIP_NOTES+=("$label: $(tail -n 1 "$id.log")")
        printf '  skip %-34s %s\n' "$label" "$(tail -n 1 "$id.log")"
        return
    fi
    counts=$(count_tests "$id.log")
    add_counts "$status" $counts
    note_skips "$label" "$id.log"
    summary=$(summary_line "$id.log")
    if [ "$status" = 0 ]; then
        printf '  ok   %-34s %4s s  (cpu %3s)  %s\n' "$label" "$seconds" \
            "$cpu" "$summary"
    else
        FAIL_NOTES+=("$label (log: ${id#"$ROOT"/}.log)"
            "$(telling_lines "$id.log" 20)")
        printf '  FAIL %-34s %4s s  status %s\n' "$label" "$seconds" "$status"
        telling_lines "$id.log" 200
    fi
    if [ -n "$summary" ]; then
        SUMMARY_LINES+=("$(printf '%-34s %s' "$label" "$summary")")
    fi
}

# telling_lines LOG N: print its last N lines, without build steps and tests that
# passed.
telling_lines() {
    grep -v -E '^\[[0-9]+/[0-9]+\] |^ *[0-9]+/[0-9]+ .* OK +[0-9.]+s' "$1" |
        tail -n "$2" | without_urls | sed 's/^/       | /'
}

# Print the summary of the test runner in a log: pytest's last line, or meson's
# counts.
summary_line() {
    awk '
        /^=* ?[0-9]+ (passed|failed|skipped|error).* in [0-9.]+/ {
            gsub(/^=+ | =+$/, ""); last = $0
        }
        /^(Ok|Fail|Skipped|Timeout): +[0-9]+/ {
            meson = meson (meson ? ", " : "") $1 " " $2
        }
        END { print last ? last : meson }' "$1"
}

# Print "PASSED FAILED SKIPPED", the sum of all counts in a log; "0 0 0" if it has
# none.
count_tests() {
    awk '
        /^=* ?[0-9]+ (passed|failed|skipped|error).* in [0-9.]+/ {
            for (i = 2; i <= NF; i++) {
                if ($i ~ /^passed/) passed += $(i - 1)
                if ($i ~ /^(failed|errors?)/) failed += $(i - 1)
                if ($i ~ /^(skipped|xfailed)/) skipped += $(i - 1)
            }
        }
        /^Ok: +[0-9]+/ { passed += $2 }
        /^(Fail|Timeout|Unexpected Pass): +[0-9]+/ { failed += $NF }
        /^Skipped: +[0-9]+/ { skipped += $2 }
        END { print passed + 0, failed + 0, skipped + 0 }' "$1"
}

# Add the counts of a check.  A check without counts is one test.  A check that
# fails has at least one failure.
add_counts() {
    local status=$1 passed=$2 failed=$3 skipped=$4
    if [ "$status" != 0 ] && [ "$failed" = 0 ]; then
        failed=1
    fi
    if [ $((passed + failed + skipped)) = 0 ]; then
        passed=1
    fi
    PASSED=$((PASSED + passed))
    FAILED=$((FAILED + failed))
    SKIPPED=$((SKIPPED + skipped))
}

# Collect pytest's "SKIPPED [2] tests/...: reason" lines and our own "SKIP:
# reason" lines.
note_skips() {
    local label=$1 line
    while IFS= read -r line; do
        SKIP_NOTES+=("$label: $line")
    done < <(sed -n -E -e 's/^SKIPPED (\[[0-9]+\]) /\1 /p' \
        -e 's/^SKIP: //p' "$2" | sort -u)
}

print_notes() {
    local title=$1 note
    shift
    if [ $# = 0 ]; then
        return
    fi
    section "$title"
    for note in "$@"; do
        printf '  %s\n' "$note"
    done
}

# Print the summary.  Returns 1 if a check failed or did not report its end.
finish() {
    local total=$((SECONDS - STARTED)) number
    for number in "${!CHECKS[@]}"; do
        if [ -z "${REPORTED[$number]:-}" ]; then
            FAILED=$((FAILED + 1))
            FAIL_NOTES+=("${CHECKS[$number]%%|*}: it ended without a status")
        fi
    done
    print_notes "skipped" ${SKIP_NOTES[@]+"${SKIP_NOTES[@]}"}
    print_notes "failed" ${FAIL_NOTES[@]+"${FAIL_NOTES[@]}"}
    section "total: $((total / 60)) min $((total % 60)) s"
    printf '  %s\n' ${SUMMARY_LINES[@]+"${SUMMARY_LINES[@]}"}
    printf '\n%d passed, %d failed, %d skipped\n' $PASSED $FAILED $SKIPPED
    [ $FAILED = 0 ]
}
