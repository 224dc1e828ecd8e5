# Checks of the Python side.  Sourced by check.sh.

VENV="$ROOT/.venv"
STOCK_VENV="$WORK/venv-stock"

# What the tests use beside the package; the demo and the bench need numpy.
DEMO_NEEDS=(numpy)
TEST_NEEDS=(numpy pytest hypothesis libucx-cu12 pyzmq msgpack)
# What is most likely to differ between versions of Python: the surface, the
# conversions, the protocols, and that bytes arrive (within the process: how
# they travel does not depend on Python).
SMOKE_TESTS=(surface import calls descs indices list_objects wrong_input
    caller_code transfer aio bindings_raw)
SMOKE_NEEDS=(numpy pytest hypothesis)
# On the engine nixl, whose agents take a fifth of a second to make, and a
# process of them more than one: what crosses processes, and all the rest that
# asks anything of an engine, within one.
NIXL_TESTS_APART=(transfer notifications restart)
NIXL_TESTS=(parity agent_object aio bindings_raw calls cancel describe errors
    idle indices lifetime listener_three metadata metadata_listener model
    prepared_lists same_host signed_metadata surface threads_on_objects waiting
    wrong_input xfer_states)
# What the extension is made of: arguments in, objects out, and their lives.
ASAN_QUICK=($(printf 'tests/python/test_%s.py ' wrong_input calls descs \
    caller_code list_objects indices agent_object runs prepared_lists describe))
TOOL_NEEDS=(meson meson-python ninja mypy ruff)

# Tests run against the installed package, from a folder without its source.
run_pytest() {
    local python=$1
    shift
    cd "$ROOT"
    "$python" -m pytest -ra -q -p no:cacheprovider "$@"
}

check_install() {
    install_package "$VENV"
    cd /
    "$VENV/bin/python" -c '
import vllm_nixl
print("vllm_nixl", vllm_nixl.__version__, "from", vllm_nixl.__file__)'
}

check_python_lint() {
    cd "$ROOT"
    "$VENV/bin/ruff" check .
    "$VENV/bin/ruff" format --check .
}

check_python_types() {
    cd "$ROOT"
    "$VENV/bin/mypy"
}

# The stubs say what the module is: names, signatures, defaults.
check_python_stubs() {
    cd /
    "$VENV/bin/python" -m mypy.stubtest vllm_nixl \
        --mypy-config-file "$ROOT/pyproject.toml"
}

# check_pytest PATHS...: on the main Python.
check_pytest() {
    run_pytest "$VENV/bin/python" "$@"
}

# What takes a libucp is run with the NIXL wheel's too, where that is there.
check_stress() {
    if stock_ready; then
        export VLLM_NIXL_STOCK_PYTHON="$STOCK_VENV/bin/python"
    fi
    run_pytest "$VENV/bin/python" "${@:-tests/stress}"
}

# The examples' tests know nothing of tests/conftest.py, which ends a hang.
check_examples() {
    run_pytest "$VENV/bin/python" -o faulthandler_timeout=300 examples
}

# The agent by UCX alone: that bytes, notifications and ends arrive.
check_pytest_ucx() {
    "$VENV/bin/python" -c 'import libucx' 2>/dev/null ||
        skip "there is no libucx wheel"
    run_pytest "$VENV/bin/python" --engine ucx -k "ucx and not inproc" \
        tests/python/test_transfer.py tests/python/test_notifications.py \
        tests/python/test_restart.py tests/python/test_cancel.py
}

# run_sanitized FLAVOUR PYTEST-ARGUMENTS...: tests on the extension of the build
# asan or tsan.  Reports go to files, for many come from processes whose output
# nobody reads; one report fails the check.
run_sanitized() {
    local flavour=$1 reports="$WORK/reports-$1" status=0 run="" found
    shift
    c_build "$flavour"
    rm -rf "$reports"
    mkdir -p "$reports"
    sanitizer_options
    # A number that is no size must get MemoryError, and PyMalloc would hide
    # from ASan what happens inside its arenas.
    export PYTHONMALLOC=malloc
    export ASAN_OPTIONS="$ASAN_OPTIONS:allocator_may_return_null=1"
    ASAN_OPTIONS="$ASAN_OPTIONS:quarantine_size_mb=16:log_path=$reports/report"
    UBSAN_OPTIONS="$UBSAN_OPTIONS:log_path=$reports/report"
    export LSAN_OPTIONS="suppressions=$ROOT/tests/support/lsan.supp"
    LSAN_OPTIONS="$LSAN_OPTIONS:print_suppressions=0"
    TSAN_OPTIONS="second_deadlock_stack=1:die_after_fork=0"
    TSAN_OPTIONS="$TSAN_OPTIONS:suppressions=$ROOT/tests/support/tsan.supp"
    TSAN_OPTIONS="$TSAN_OPTIONS:log_path=$reports/report"
    [ "$flavour" != tsan ] || run=fixed_layout
    cd "$ROOT"
    $run "$WORK/venv-$flavour/bin/python" -m pytest -ra -q \
        -p no:cacheprovider "$@" || status=$?
    found=$(grep -rl '^SUMMARY: ' "$reports" || true)
    if [ -n "$found" ]; then
        # shellcheck disable=SC2086
        head -n 60 $found
        say "reports of the sanitizer: $found"
        return 1
    fi
    return $status
}

# check_python_asan PATHS...: the extension under ASan (with its leak checker)
# and UBSan.  Not what watches the size of the process, for ASan keeps what is
# freed, and not what needs UCX (sanitizer_options).
check_python_asan() {
    run_sanitized asan -m "not slow" -k "not nothing_leaks and not ucx" \
        "${@:-tests/python}"
}

# check_python_tsan PATHS...: tests with threads on the extension under TSan.
# CPython is not instrumented, but TSan sees its locks, the GIL's too.  Tests that
# need a long transfer copy to the same rows again and again, which is a race.
check_python_tsan() {
    if [ $# = 0 ]; then
        set -- tests/python/test_threads_on_objects.py \
            tests/python/test_transports.py tests/stress/test_threads.py
    fi
    run_sanitized tsan "$@"
}

# check_random_calls SECONDS: random calls with lying arguments, under ASan;
# without a seed after that, seeds that no run before had.
check_random_calls() {
    run_sanitized asan -s tests/stress/test_any_call.py \
        --call-seconds "${1:-30}" ${2:+--call-seed "$2"}
}

# check_coverage: which lines of C, extension and Python the C tests, the Python
# tests on each engine and the stress tests run.  Two tests of what an import
# loads must fail here, where each interpreter loads the package `coverage`.
check_coverage() {
    local dir="$WORK/coverage" failed="" part status
    pip_install "$VENV" gcovr coverage
    c_build coverage
    find "$dir" -name '*.gcda' -delete
    rm -rf "$WORK/coverage-python"
    mkdir -p "$WORK/coverage-python"
    printf '[run]\nsource_pkgs = vllm_nixl\nparallel = true\ndata_file = %s\n' \
        "$WORK/coverage-python/data" >"$WORK/coverage-python/rc"
    # Each process of the tests counts, whichever starts it (shared.pth).
    export COVERAGE_PROCESS_START="$WORK/coverage-python/rc"

    VENV="$WORK/venv-coverage"
    for part in "c coverage" "pytest tests/python" pytest_ucx interop \
        pytest_nixl "stress tests/stress --call-seconds 10 --crowd 200"; do
        status=0
        # shellcheck disable=SC2086
        (check_$part) || status=$?
        [ $status = 0 ] || [ $status = 77 ] || failed+=" ${part%% *}"
    done
    unset COVERAGE_PROCESS_START
    cd "$ROOT"
    "$TOOLS/bin/gcovr" -r . --object-directory "$dir" "$dir" \
        --filter src/ --gcov-ignore-errors all --merge-mode-functions separate \
        --json "$WORK/coverage-python/c.json"
    "$TOOLS/bin/coverage" combine -q --rcfile "$WORK/coverage-python/rc"
    "$TOOLS/bin/coverage" json -q --rcfile "$WORK/coverage-python/rc" \
        -o "$WORK/coverage-python/python.json"
    [ -z "$failed" ] || say "checks with failures:$failed"
    "$TOOLS/bin/python" scripts/coverage_table.py \
        "$WORK/coverage-python/c.json" "$WORK/coverage-python/python.json" \
        "$WORK/coverage-uncalled.txt"
}

# check_other_python VERSION PYTHON: build, install and use the package there.
check_other_python() {
    local version=$1 python=$2 venv="$WORK/venv-$1"
    python_has_venv "$python" || skip "$python has no ensurepip"
    python_has_headers "$python" || skip "$python has no Python.h"
    make_venv "$venv" "$python"
    pip_install "$venv" "${SMOKE_NEEDS[@]}"
    # What differs between Pythons does not differ by optimisation, and this
    # is built in a third of the time.
    install_package "$venv" --config-settings=setup-args=-Doptimization=0 \
        --config-settings=setup-args=-Dwerror=false
    run_pytest "$venv/bin/python" -m "not slow" -k "not shm" \
        $(printf "tests/python/test_%s.py " "${SMOKE_TESTS[@]}")
}

# The stock wheel in an environment of its own: its name is not ours to take.
stock_ready() {
    "$STOCK_VENV/bin/python" -c 'import nixl._api, pytest' 2>/dev/null
}

# The library that the engine nixl loads.
stock_library() {
    local found=("$STOCK_VENV"/lib/python*/site-packages/.nixl_cu12.*/)
    say "${found[0]}libnixl_capi.so"
}

# install_nixl VENV VERSION: both packages of that version, since the newest of
# one may have no counterpart in the other.
install_nixl() {
    pip_install "$1" --no-deps "nixl==$2" "nixl-cu12==$2"
}

install_stock() {
    make_venv "$STOCK_VENV" "$VENV/bin/python"
    stock_ready && return
    pip_install "$STOCK_VENV" numpy pytest &&
        install_nixl "$STOCK_VENV" 1.5.1 && stock_ready
}

check_stock() {
    install_stock || skip "the stock nixl wheel cannot be installed here"
}

need_stock() {
    stock_ready || skip "the stock nixl wheel is not there"
    export VLLM_NIXL_STOCK_PYTHON="$STOCK_VENV/bin/python"
    VLLM_NIXL_LIBRARY=$(stock_library)
    export VLLM_NIXL_LIBRARY
}

# Ours and stock's agents, in processes of their own.
check_interop() {
    need_stock
    export NIXL_LOG_LEVEL=FATAL
    run_pytest "$VENV/bin/python" "${@:-tests/interop}"
}

# Earlier stock versions, whose UCX is another: 1.21 and 1.22.
OLD_STOCK=(1.3.1 1.4.1)

check_interop_versions() {
    need_stock
    local version venv pythons=()
    for version in "${OLD_STOCK[@]}"; do
        venv="$STOCK_VENV-$version"
        make_venv "$venv" "$VENV/bin/python"
        [ "$("$venv/bin/python" -c "
from importlib.metadata import version
import numpy
print(version('nixl'), version('nixl-cu12'))" 2>/dev/null)" = \
            "$version $version" ] ||
            { pip_install "$venv" numpy && install_nixl "$venv" "$version"; } ||
            skip "stock nixl $version cannot be installed here"
        pythons+=("$venv/bin/python")
    done
    VLLM_NIXL_STOCK_PYTHONS=$(IFS=: && printf '%s' "${pythons[*]}")
    export VLLM_NIXL_STOCK_PYTHONS NIXL_LOG_LEVEL=FATAL
    run_pytest "$VENV/bin/python" tests/interop/test_stock_versions.py
}

# The agent on the engine nixl.
check_pytest_nixl() {
    need_stock
    export NIXL_LOG_LEVEL=FATAL VLLM_NIXL_ENGINE=nixl
    run_pytest "$VENV/bin/python" --engine nixl -k "not inproc" \
        $(printf "tests/python/test_%s.py " "${NIXL_TESTS_APART[@]}")
    run_pytest "$VENV/bin/python" --engine nixl \
        -m "not slow" -k "not two-processes" \
        $(printf "tests/python/test_%s.py " "${NIXL_TESTS[@]}") \
        tests/python/clients
}

# The demo by NIXL's library, its peers in processes of their own.
check_demo_nixl() {
    need_stock
    cd "$ROOT"
    NIXL_LOG_LEVEL=FATAL VLLM_NIXL_ENGINE=nixl \
        "$VENV/bin/python" examples/kv_demo --layers 8 --blocks 64
}

# What tests clients' ways asks of ours is what stock does.
check_clients_on_stock() {
    need_stock
    export NIXL_LOG_LEVEL=ERROR
    run_pytest "$STOCK_VENV/bin/python" --module nixl \
        tests/python/clients tests/python/test_bindings_raw.py
}

check_demo() {
    cd "$ROOT"
    "$VENV/bin/python" examples/kv_demo
}

check_demo_shared() {
    cd "$ROOT"
    "$VENV/bin/python" examples/kv_demo --shared --layers 8 --blocks 64
}

# Every row of the benchmark runs; nothing is asked of the times.
check_bench() {
    cd "$ROOT"
    if stock_ready; then
        export VLLM_NIXL_STOCK_PYTHON="$STOCK_VENV/bin/python"
    fi
    "$VENV/bin/python" bench/compare.py --quick
}
