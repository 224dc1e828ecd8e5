#!/usr/bin/env bash
# Set up everything and run the demo: two processes exchange metadata and move
# a KV cache.
#
#   ./run_demo.sh [--yes] [ARGUMENTS OF THE DEMO]
#
# --yes installs missing Debian packages without a question; --help lists the
# arguments of the demo.
set -euo pipefail
cd "$(dirname "$0")"
. scripts/common.sh
. scripts/python_checks.sh

YES=()
if [ "${1:-}" = --yes ]; then
    YES=(--yes)
    shift
fi
scripts/install_deps.sh demo ${YES[@]+"${YES[@]}"}
PYTHON=$(find_python) || die "Python 3.10 to 3.14 was not found"
if [ ! -x "$VENV/bin/python" ]; then
    say "setting up .venv with $("$PYTHON" --version); this takes a minute"
fi
make_venv "$VENV" "$PYTHON"
pip_install "$VENV" "${DEMO_NEEDS[@]}"
install_package "$VENV"
exec "$VENV/bin/python" examples/kv_demo "$@"
