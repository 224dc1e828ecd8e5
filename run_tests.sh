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

# Whatever does not need what another check makes runs beside it.
section "C library, package"
start 900 "C tests, gcc" c gcc
start 600 "pip install" install
start 600 "stock NIXL" stock
finish_checks

section "C library once more, lint"
AT_ONCE=3 # each of the first three takes two cores for itself
start 1200 "C tests, gcc, TSan" c tsan
start 1200 "C tests, clang, ASan and UBSan" c asan
start 600 "fuzzing" fuzz
start 900 "clang-tidy" c_tidy
start 300 "stubtest" python_stubs
start 300 "mypy" python_types
start 600 "library, installed" library
start 300 "clang-format" c_format
start 300 "ruff" python_lint
finish_checks

# Most of these wait for other processes.  The longest come first.
section "Python tests, demo, benchmark"
AT_ONCE=4
start 1200 "Python $("$VENV/bin/python" -c \
    'import sys; print("%d.%d" % sys.version_info[:2])')" pytest tests/python
start 1200 "stress" stress
start 900 "agents by NIXL's library" pytest_nixl
start 900 "beside stock NIXL" interop
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
