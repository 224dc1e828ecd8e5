#!/usr/bin/env bash
# All set-up, and every test; --quick: those that find most, in four minutes.
# One check alone: scripts/check.sh.
set -euo pipefail
cd "$(dirname "$0")"
. scripts/common.sh
. scripts/python_checks.sh
. scripts/runner.sh

case "$*" in
"" | --quick) ;;
*) die "usage: run_tests.sh [--quick]" ;;
esac

section "set-up"
scripts/install_deps.sh tests
PYTHON=$(find_python) || die "no Python of version 3.10 to 3.13 found"
export PYTHON
rm -rf "$LOGS"
mkdir -p "$LOGS"
make_venv "$VENV" "$PYTHON"
pip_install "$VENV" "${TEST_NEEDS[@]}" "${TOOL_NEEDS[@]}"
say "  $("$VENV/bin/python" --version) in .venv," \
    "$(gcc --version | head -n 1), $(clang --version | head -n 1)"

if [ "$*" = --quick ]; then
    section "quick: C, the extension under ASan, Python, lint"
    start 600 "C tests, gcc" c gcc
    start 600 "pip install" install
    finish_checks
    start 600 "Python, what is not slow" pytest -m "not slow" tests/python
    start 600 "extension, ASan and UBSan" python_asan "${ASAN_QUICK[@]}"
    start 300 "stubtest" python_stubs
    start 300 "mypy" python_types
    start 300 "clang-format" c_format
    start 300 "ruff" python_lint
    start 300 "demo" demo
    finish_checks
    print_notes "left out: ./run_tests.sh runs these too" \
        "C tests under TSan, ASan and UBSan; fuzzing; clang-tidy" \
        "the slow tests; the rest of the Python tests under ASan; TSan" \
        "stress, and random calls" \
        "UCX; stock NIXL, as a peer and as an engine; other Pythons" \
        "the installed C library; the examples; the benchmark"
    finish
    exit
fi

# Whatever does not need what another check makes runs beside it.
section "C library, package"
start 900 "C tests, gcc" c gcc
start 600 "pip install" install
start 600 "stock NIXL" stock
finish_checks

# c asan and c tsan build the extension, too.
section "C library once more, lint"
AT_ONCE=3 # each of the first three takes two cores for itself
start 1200 "C tests, gcc, TSan" c tsan
start 1200 "C tests, clang, ASan and UBSan" c asan
start 600 "fuzzing" fuzz
start 300 "stubtest" python_stubs
start 300 "mypy" python_types
start 600 "library, installed" library
start 300 "clang-format" c_format
start 300 "ruff" python_lint
finish_checks

# Most of these wait for other processes; clang-tidy takes what they leave.
# The longest come first.
section "Python tests, demo, benchmark"
AT_ONCE=5
start 1200 "clang-tidy" c_tidy
start 1200 "stress" stress
start 1200 "Python $("$VENV/bin/python" -c \
    'import sys; print("%d.%d" % sys.version_info[:2])')" pytest tests/python
start 1200 "extension, ASan and UBSan" python_asan
start 900 "agents by NIXL's library" pytest_nixl
start 900 "beside stock NIXL" interop
start 900 "extension, TSan" python_tsan
start 600 "beside stock NIXL, earlier versions" interop_versions
start 900 "agents by UCX" pytest_ucx
while read -r version python; do
    start 900 "Python $version" other_python "$version" "$python"
done < <(find_other_pythons "$PYTHON")
start 600 "benchmark, quick" bench
start 900 "clients, on stock NIXL" clients_on_stock
start 600 "examples" examples
start 300 "demo" demo
start 300 "demo, shared memory" demo_shared
start 300 "demo, by NIXL's library" demo_nixl
finish_checks

finish
