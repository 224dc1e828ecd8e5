# Checks of the Python side.  Sourced by check.sh.

VENV="$ROOT/.venv"
STOCK_VENV="$WORK/venv-stock"

# Packages for the demo and the benchmark, and for the tests.
DEMO_NEEDS=(numpy)
TEST_NEEDS=(numpy pytest hypothesis libucx-cu12 nvidia-cuda-runtime-cu12 pyzmq
    msgpack prometheus-client matplotlib rich pyyaml)
# Tests for each further Python version: the API, conversions, protocols, and one
# transfer within the process.  Transports do not depend on the Python version.
SMOKE_TESTS=(surface import subinterpreters calls descs indices list_objects
    wrong_input caller_code transfer aio bindings_raw)
SMOKE_NEEDS=(numpy pytest hypothesis)
# Tests for the engine nixl.  Creating an agent takes 0.2 s there, and a process
# with agents more than 1 s, so only NIXL_TESTS_APART use several processes.
NIXL_TESTS_APART=(transfer notifications restart)
NIXL_TESTS=(parity agent_object aio bindings_raw calls cancel describe errors
    idle indices lifetime listener_three messages metadata metadata_listener
    model prepared_lists publish same_host signed_metadata surface
    threads_on_objects waiting wrong_input xfer_states)
# Tests of the extension itself for --quick: arguments, results, lifetimes.
ASAN_QUICK=($(printf 'tests/python/test_%s.py ' wrong_input calls descs \
    caller_code list_objects indices agent_object runs prepared_lists describe))
# Other versions of the last three find fault with the same code, or format it
# otherwise.
TOOL_NEEDS=(meson meson-python ninja libclang
    clang-format==14.0.6 mypy==2.4.1 ruff==0.17.6)

# Run pytest against the installed package.
run_pytest() {
    local python=$1
    shift
    cd "$ROOT"
    "$python" -m pytest -ra -q -p no:cacheprovider "$@"
}

check_install() {
    install_package "$VENV" --config-settings=setup-args=-Dwerror=true
    cd /
    "$VENV/bin/python" -c '
import vllm_nixl
print("vllm_nixl", vllm_nixl.__version__, "from", vllm_nixl.__file__)'
}

# Build the source distribution, which holds what git has and nothing else, and
# install it where git and the checkout are not.
check_sdist() {
    local dir="$WORK/sdist" venv="$WORK/venv-sdist" archive
    rm -rf "$dir"
    mkdir -p "$dir"
    cd "$ROOT"
    PATH="$VENV/bin:$PATH" "$VENV/bin/python" -c "
import mesonpy
mesonpy.build_sdist('$dir')"
    archive=$(echo "$dir"/*.tar.gz)
    diff <(git ls-files | LC_ALL=C sort) \
        <(tar -tzf "$archive" | sed -n -e 's#^[^/]*/##' -e '/^PKG-INFO$/d' \
            -e '/[^/]$/p' | LC_ALL=C sort)
    rm -rf "$venv"
    make_venv "$venv" "$VENV/bin/python"
    cd "$dir"
    PATH=$(path_without_git) pip_install "$venv" "$archive"
    "$venv/bin/python" -c '
import vllm_nixl
print("vllm_nixl", vllm_nixl.__version__, dict(vllm_nixl.features))
assert all(vllm_nixl.features.values())'
}

# Print a PATH whose `git` fails.
path_without_git() {
    mkdir -p "$WORK/no-git"
    printf '#!/bin/sh\nexit 127\n' >"$WORK/no-git/git"
    chmod +x "$WORK/no-git/git"
    say "$WORK/no-git:$PATH"
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

# Compare the stubs with the module: names, signatures, defaults.
# libnixl_capi.so looks like a module, but is none.
check_python_stubs() {
    cd /
    "$VENV/bin/python" -m mypy.stubtest vllm_nixl \
        --allowlist <(echo vllm_nixl.libnixl_capi) \
        --mypy-config-file "$ROOT/pyproject.toml"
}

# check_pytest PATHS...: run tests on the main Python.
check_pytest() {
    run_pytest "$VENV/bin/python" "$@"
}

# Tests that load a libucp also load the NIXL wheel's, if it is installed.
check_stress() {
    if stock_ready; then
        export VLLM_NIXL_STOCK_PYTHON="$STOCK_VENV/bin/python"
    fi
    run_pytest "$VENV/bin/python" "${@:-tests/stress}"
}

# The examples do not use tests/conftest.py, which sets a timeout; set one here.
check_examples() {
    run_pytest "$VENV/bin/python" -o faulthandler_timeout=300 examples
}

# check_readme [installation]: check the code, commands and figures of README.md,
# and run its quick start.  With `installation`, run its commands from the first
# one on, in one shell, on a copy of the sources: this needs root (else the
# packages of apt-get must be there) and a package index.
check_readme() {
    cd "$ROOT"
    if [ "${1:-}" != installation ]; then
        "$VENV/bin/python" scripts/readme.py
        run_pytest "$VENV/bin/python" tests/python/test_readme.py
        return
    fi
    local copy="$WORK/readme" command
    rm -rf "$copy"
    copy_sources "$copy"
    # apt-get answers its question itself, and upgrades nothing.
    printf 'APT::Get::%s;\n' 'Assume-Yes "true"' 'Upgrade "false"' \
        >"$copy/apt.conf"
    export APT_CONFIG="$copy/apt.conf"
    cd "$copy"
    while IFS= read -r command; do
        if [[ "$command" == apt-get* && "$(id -u)" != 0 ]]; then
            printf 'echo %q\n' "not run, needs root: $command"
            continue
        fi
        printf 'echo %q\n%s\n' "\$ $command" "$command"
    done < <("$(find_python)" scripts/readme.py --installation) >commands.sh
    echo "python scripts/readme.py --run" >>commands.sh
    bash -e commands.sh </dev/null
}

# check_docs [FOLDER]: build the documentation site, in which every warning is an
# error, and look at what was built.  It is left in FOLDER.
check_docs() {
    local venv="$WORK/venv-docs" site="${1:-$WORK/site}"
    make_venv "$venv" "$VENV/bin/python"
    pip_install "$venv" -r "$ROOT/docs/requirements.txt" pytest ||
        skip "pip cannot install mkdocs-material here"
    cd "$ROOT"
    # mkdocs-material's notice about its successor.
    export NO_MKDOCS_2_WARNING=1
    "$venv/bin/python" -m mkdocs build --strict -d "$site"
    VLLM_NIXL_SITE="$site" "$venv/bin/python" -m pytest -ra -q \
        -p no:cacheprovider --noconftest tests/docs
}

# check_gpu_pack: make the folder for a machine with a GPU (scripts/gpu_pack.sh)
# for this Python, and look whether it is small, complete, and works.
check_gpu_pack() {
    local pack="$WORK/gpu_pack/checked" version
    version=$(python_probe "$VENV/bin/python" | cut -d' ' -f1)
    "$ROOT/scripts/gpu_pack.sh" "$version" "$pack"
    cd "$ROOT"
    VLLM_NIXL_GPU_PACK="$pack" "$VENV/bin/python" -m pytest -ra -q \
        -p no:cacheprovider --noconftest tests/gpu_pack
}

# check_vllm_pd ARGUMENTS...: vLLM itself, as examples/vllm_pd/README.md says.
check_vllm_pd() {
    local venv="$WORK/venv-vllm"
    "$venv/bin/python" -c '
from importlib.util import find_spec
exit(not find_spec("vllm"))' 2>/dev/null ||
        skip "vLLM is not installed in $venv (examples/vllm_pd/README.md)"
    install_package "$venv"
    cd "$ROOT"
    "$venv/bin/python" examples/vllm_pd/run.py "$@"
}

# Agents that use UCX alone: transfers, notifications, the end of a peer and of
# a process.  On a build that checks the order of locks, unless coverage is
# measured.
check_pytest_ucx() {
    local python="$VENV/bin/python"
    "$python" -c 'import libucx' 2>/dev/null ||
        skip "the libucx wheel is not installed"
    if [ "$VENV" = "$ROOT/.venv" ]; then
        c_build ranks
        python="$WORK/venv-ranks/bin/python"
    fi
    run_pytest "$python" --engine ucx \
        -k "ucx and not inproc or closed_descriptors" \
        tests/python/test_transfer.py tests/python/test_notifications.py \
        tests/python/test_restart.py tests/python/test_cancel.py \
        tests/python/test_closed_descriptors.py \
        tests/python/test_living_child.py tests/stress/test_ucx_exit.py
}

# Agents with memory of a GPU, which the fake libcuda plays, in one process: what
# does not need memory of another kind or of another process.
check_pytest_gpu() {
    [ -e "$WORK/gcc/tests/c/libfake_cuda.so" ] ||
        skip "the fake libcuda is not built: scripts/check.sh c gcc"
    export VLLM_NIXL_TEST_MEMORY=gpu
    run_pytest "$VENV/bin/python" --engine gpu -k "not every_kind_of_memory \
        and not shared and not numpy and not mapped_file \
        and not mapping and not legacy_name and not of_a_failed_transfer \
        and not that_fails_sends and not in_flight_to_the_previous \
        and not of_the_same_name and not escaped_in_logs" \
        tests/python/test_transfer.py tests/python/test_waiting.py \
        tests/python/test_xfer_states.py tests/python/test_cancel.py \
        tests/python/test_prepared_lists.py tests/python/test_indices.py \
        tests/python/test_notifications.py tests/python/test_restart.py
}

# The list of what CPython itself leaves behind (tests/support/lsan.supp) has names
# of functions that a report has only if the interpreter has debug information.
python_is_debuggable() {
    local exe file
    exe=$(readlink -f "$1")
    for file in "$exe" $(ldd "$exe" | awk '/libpython/ { print $3 }'); do
        ! readelf -S "$file" | grep -q ' \.debug_info ' || return 0
    done
    return 1
}

# run_sanitized FLAVOUR PYTEST-ARGUMENTS...: run tests on the extension of the
# asan or tsan build.  Sanitizers write reports to files, because nothing reads
# the output of many of the processes.  A single report fails the check.
run_sanitized() {
    local flavour=$1 reports="$WORK/reports-$1" status=0 run="" log found
    shift
    c_build "$flavour"
    rm -rf "$reports"
    mkdir -p "$reports"
    sanitizer_options
    # Tests pass absurd sizes and expect MemoryError.  PyMalloc would hide
    # errors inside its arenas from ASan.
    export PYTHONMALLOC=malloc
    export ASAN_OPTIONS="$ASAN_OPTIONS:allocator_may_return_null=1"
    log="log_path='$reports/report'" # quoted, as in sanitizer_options
    ASAN_OPTIONS="$ASAN_OPTIONS:quarantine_size_mb=16:$log"
    UBSAN_OPTIONS="$UBSAN_OPTIONS:$log"
    export LSAN_OPTIONS="suppressions='$ROOT/tests/support/lsan.supp'"
    LSAN_OPTIONS="$LSAN_OPTIONS:print_suppressions=0"
    TSAN_OPTIONS="second_deadlock_stack=1:die_after_fork=0"
    TSAN_OPTIONS="$TSAN_OPTIONS:suppressions='$ROOT/tests/support/tsan.supp'"
    TSAN_OPTIONS="$TSAN_OPTIONS:$log"
    [ "$flavour" != tsan ] || run=fixed_layout
    if [ "$flavour" = asan ] && ! python_is_debuggable "$TOOLS/bin/python"; then
        say "SKIP: leaks in processes with Python: this interpreter has no" \
            "debug information, so its own leaks cannot be told from ours"
        ASAN_OPTIONS="$ASAN_OPTIONS:detect_leaks=0"
    fi
    cd "$ROOT"
    $run "$WORK/venv-$flavour/bin/python" -m pytest -ra -q \
        -p no:cacheprovider "$@" || status=$?
    mapfile -t found < <(grep -rl '^SUMMARY: ' "$reports")
    if [ ${#found[@]} -gt 0 ]; then
        head -n 60 "${found[@]}"
        say "sanitizer reports:" "${found[@]}"
        return 1
    fi
    return $status
}

# check_python_asan PATHS...: run tests of the extension under ASan (with its leak
# checker) and UBSan.  Leaves out tests that watch the size of the process,
# because ASan keeps freed memory, and tests that need UCX (sanitizer_options).
# Leaves out those of programs in Python (the command line, servers for metrics,
# the documentation's code) and of threads that log while the interpreter ends:
# the daemon threads that it stops leave objects behind.
check_python_asan() {
    local program ignored=()
    for program in bench cli_\* docs environment metrics monitor troubleshooting; do
        ignored+=("--ignore-glob=*/test_$program.py")
    done
    run_sanitized asan -m "not slow" "${ignored[@]}" \
        -k "not nothing_leaks and not ucx and not while_the_interpreter_ends" \
        "${@:-tests/python}"
}

# check_python_tsan PATHS...: run tests with threads under TSan.  CPython is not
# instrumented, but TSan sees its locks, including the GIL.  Tests that need a
# long transfer are left out: they copy to the same rows repeatedly, which is a
# data race.
check_python_tsan() {
    if [ $# = 0 ]; then
        set -- tests/python/test_threads_on_objects.py \
            tests/python/test_transports.py tests/stress/test_threads.py
    fi
    run_sanitized tsan "$@"
}

# check_random_calls SECONDS [SEED]: make random calls with wrong arguments, under
# ASan.  Without SEED each run uses new seeds.
check_random_calls() {
    run_sanitized asan -s tests/stress/test_any_call.py \
        --call-seconds "${1:-30}" ${2:+--call-seed "$2"}
}

# check_coverage: measure which lines of the C library, the extension and the
# Python code the C tests, the Python tests on each engine and the stress tests
# run.  Two tests that check which modules an import loads fail here, because
# each interpreter loads the package `coverage`.
check_coverage() {
    local dir="$WORK/coverage" failed="" part status
    pip_install "$VENV" gcovr coverage
    c_build coverage
    find "$dir" -name '*.gcda' -delete
    rm -rf "$WORK/coverage-python"
    mkdir -p "$WORK/coverage-python"
    printf '[run]\nsource_pkgs = vllm_nixl\nparallel = true\ndata_file = %s\n' \
        "$WORK/coverage-python/data" >"$WORK/coverage-python/rc"
    # Every Python process of the tests is measured (shared.pth).
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

# check_other_python VERSION PYTHON: build, install and test the package there.
check_other_python() {
    local version=$1 python=$2 venv="$WORK/venv-$1"
    python_has_venv "$python" || skip "$python lacks ensurepip"
    python_has_headers "$python" || skip "$python lacks Python.h"
    make_venv "$venv" "$python"
    pip_install "$venv" "${SMOKE_NEEDS[@]}"
    # Without optimisation the build takes a third of the time.
    install_package "$venv" --config-settings=setup-args=-Doptimization=0
    run_pytest "$venv/bin/python" -m "not slow" -k "not shm" \
        $(printf "tests/python/test_%s.py " "${SMOKE_TESTS[@]}")
}

# The stock wheel lives in a separate environment.
stock_ready() {
    "$STOCK_VENV/bin/python" -c 'import nixl._api, pytest' 2>/dev/null
}

# Print the library that the engine nixl loads.
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
    install_stock || skip "pip cannot install the stock nixl wheel here"
}

need_stock() {
    stock_ready || skip "the stock nixl wheel is not installed"
    export VLLM_NIXL_STOCK_PYTHON="$STOCK_VENV/bin/python"
    VLLM_NIXL_LIBRARY=$(stock_library)
    export VLLM_NIXL_LIBRARY
}

# Our agents and stock NIXL's, in separate processes.
check_interop() {
    need_stock
    export NIXL_LOG_LEVEL=FATAL
    run_pytest "$VENV/bin/python" "${@:-tests/interop}"
}

# Earlier versions of stock NIXL, with UCX 1.20, 1.21 and 1.22.
OLD_STOCK=(1.0.0 1.3.1 1.4.1)

# check_interop_versions [VERSIONS]: our agents with agents of those versions.
check_interop_versions() {
    need_stock
    local version venv pythons=()
    [ $# -gt 0 ] || set -- "${OLD_STOCK[@]}"
    for version in "$@"; do
        venv="$STOCK_VENV-$version"
        make_venv "$venv" "$VENV/bin/python"
        [ "$("$venv/bin/python" -c "
from importlib.metadata import version
import numpy
print(version('nixl'), version('nixl-cu12'))" 2>/dev/null)" = \
            "$version $version" ] ||
            { pip_install "$venv" numpy && install_nixl "$venv" "$version"; } ||
            skip "pip cannot install stock nixl $version here"
        pythons+=("$venv/bin/python")
    done
    VLLM_NIXL_STOCK_PYTHONS=$(IFS=: && printf '%s' "${pythons[*]}")
    export VLLM_NIXL_STOCK_PYTHONS NIXL_LOG_LEVEL=FATAL
    run_pytest "$VENV/bin/python" tests/interop/test_stock_versions.py
}

# Python tests on the engine nixl.
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

# The demo on the engine nixl.
check_demo_nixl() {
    need_stock
    cd "$ROOT"
    NIXL_LOG_LEVEL=FATAL VLLM_NIXL_ENGINE=nixl \
        "$VENV/bin/python" examples/kv_demo --layers 8 --blocks 64
}

# Run the client tests on stock NIXL: it must behave as they ask.
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

# check_bench_hosts ARGUMENTS: `vllm-nixl bench` between two network namespaces
# by UCX over TCP, beside iperf3 (tests/interop/bench_hosts.py).
check_bench_hosts() {
    cd "$ROOT"
    PYTHONPATH=tests "$VENV/bin/python" tests/interop/bench_hosts.py "$@"
}

# Run every row of the benchmark once.  The times are not checked.
check_bench() {
    cd "$ROOT"
    if stock_ready; then
        export VLLM_NIXL_STOCK_PYTHON="$STOCK_VENV/bin/python"
    fi
    "$VENV/bin/python" bench/compare.py --quick
}
