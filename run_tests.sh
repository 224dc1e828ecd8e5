#!/usr/bin/env bash
# Set up everything and run every test.
#
#   ./run_tests.sh [--quick] [--yes]
#
# --quick runs the tests that find most, in four minutes.  --yes installs missing
# Debian packages without a question.  scripts/check.sh runs one check alone.
set -euo pipefail
cd "$(dirname "$0")"
. scripts/common.sh
. scripts/python_checks.sh
. scripts/runner.sh

QUICK=0
YES=()
for argument in "$@"; do
    case "$argument" in
    --quick) QUICK=1 ;;
    --yes) YES=(--yes) ;;
    *) die "usage: run_tests.sh [--quick] [--yes]" ;;
    esac
done

section "set-up"
scripts/install_deps.sh tests ${YES[@]+"${YES[@]}"}
PYTHON=$(find_python) || die "Python 3.10 to 3.14 was not found"
export PYTHON
rm -rf "$LOGS"
mkdir -p "$LOGS"
trap 'stop_checks; exit 130' INT TERM HUP
make_venv "$VENV" "$PYTHON"
pip_install "$VENV" "${TEST_NEEDS[@]}" "${TOOL_NEEDS[@]}"
say "  $("$VENV/bin/python" --version) in .venv," \
    "$(gcc --version | head -n 1), $(clang --version | head -n 1)"

# The limits are for checks that hang: beside other work, a check takes several
# times as long as alone.
if [ $QUICK = 1 ]; then
    section "quick: C, the extension under ASan, Python, lint"
    start 1200 "C tests, gcc" c gcc
    start 600 "pip install" install
    finish_checks
    start 1200 "Python, without slow tests" pytest -m "not slow" tests/python
    start 1200 "extension, ASan and UBSan" python_asan "${ASAN_QUICK[@]}"
    start 600 "stubtest" python_stubs
    start 600 "mypy" python_types
    start 600 "clang-format" c_format
    start 600 "ruff" python_lint
    start 600 "demo" demo
    finish_checks
    print_notes "left out; ./run_tests.sh runs these too" \
        "C tests under TSan, ASan and UBSan, and of the smallest builds" \
        "fuzzing; clang-tidy" \
        "slow Python tests; the other Python tests under ASan; TSan" \
        "stress tests, random calls among them" \
        "UCX; stock NIXL as a peer and as an engine; other Python versions" \
        "the installed C library; the examples; the benchmark" \
        "the documentation site"
    finish
    exit
fi

# A check runs beside others unless it needs their results.
section "C library, package"
start 600 "stock NIXL" stock
finish_checks
start 1200 "C tests, gcc" c gcc # one of them loads stock NIXL
start 600 "pip install" install
finish_checks

# c asan and c tsan also build the extension.
section "C library in other builds, lint"
AT_ONCE=3 # each of the first three keeps two cores busy
start 2400 "C tests, gcc, TSan" c tsan
start 2400 "C tests, clang, ASan and UBSan" c asan
start 1200 "fuzzing" fuzz
start 1800 "C tests, smallest builds" c smallest no_tls
start 600 "stubtest" python_stubs
start 600 "mypy" python_types
start 1200 "installed C library" library
start 1200 "source distribution" sdist
start 600 "clang-format" c_format
start 600 "ruff" python_lint
start 1200 "documentation" docs
finish_checks

# Most of these wait for other processes; clang-tidy uses the idle CPU time.
# The longest start first.
section "Python tests, demo, benchmark"
AT_ONCE=5
start 3600 "clang-tidy" c_tidy
start 3600 "stress" stress
start 3600 "Python $("$VENV/bin/python" -c \
    'import sys; print("%d.%d" % sys.version_info[:2])')" pytest tests/python
start 3600 "extension, ASan and UBSan" python_asan
start 1800 "agents on the engine nixl" pytest_nixl
start 1800 "interoperation, stock NIXL" interop
start 1800 "extension, TSan" python_tsan
start 1800 "interoperation, old stock NIXL" interop_versions
start 2400 "agents over UCX" pytest_ucx
start 2400 "agents with GPU memory" pytest_gpu
while read -r version python; do
    start 1800 "Python $version" other_python "$version" "$python"
done < <(find_other_pythons "$PYTHON")
start 600 "benchmark, quick" bench
start 1800 "client tests on stock NIXL" clients_on_stock
start 600 "examples" examples
start 600 "demo" demo
start 600 "demo, shared memory" demo_shared
start 600 "demo, engine nixl" demo_nixl
finish_checks

finish
