#!/usr/bin/env bash
# All set-up, and every test.  One check alone: scripts/check.sh.
set -euo pipefail
cd "$(dirname "$0")"
. scripts/common.sh
. scripts/python_checks.sh
. scripts/runner.sh

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

section "C library"
check 900 "C tests, gcc" c gcc
start 1200 "C tests, clang, ASan and UBSan" c asan
start 1200 "C tests, gcc, TSan" c tsan
finish_checks
start 600 "fuzzing" fuzz
start 600 "library, installed" library
finish_checks

section "package"
check 600 "pip install" install

section "lint, and the stock wheel to test beside"
start 300 "clang-format" c_format
start 900 "clang-tidy" c_tidy
start 300 "ruff" python_lint
start 300 "mypy" python_types
start 300 "stubtest" python_stubs
start 600 "stock NIXL" stock
finish_checks

# Most of these wait for other processes, so they are run beside each other.
section "Python tests"
start 1200 "Python $("$VENV/bin/python" -c \
    'import sys; print("%d.%d" % sys.version_info[:2])')" pytest tests/python
start 1200 "stress" pytest tests/stress
start 600 "examples" pytest examples
finish_checks
start 900 "beside stock NIXL" interop
start 900 "agents by NIXL's library" pytest_nixl
start 900 "clients, on stock NIXL" clients_on_stock
start 900 "agents by UCX" pytest_ucx
finish_checks
while read -r version python; do
    start 900 "Python $version" other_python "$version" "$python"
done < <(find_other_pythons "$PYTHON")
finish_checks

section "demo and benchmark"
check 300 "demo" demo
check 300 "demo, shared memory" demo_shared
check 300 "demo, by NIXL's library" demo_nixl
check 600 "benchmark, quick" bench

finish
