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

install_stock() {
    make_venv "$STOCK_VENV" "$VENV/bin/python"
    stock_ready && return
    pip_install "$STOCK_VENV" numpy pytest &&
        pip_install "$STOCK_VENV" --no-deps 'nixl==1.5.1' 'nixl-cu12==1.5.1' &&
        stock_ready
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
