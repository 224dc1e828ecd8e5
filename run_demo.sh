#!/usr/bin/env bash
# All set-up, and the demo: two processes shake hands and move a KV cache.
# Arguments go to the demo: ./run_demo.sh --help
set -euo pipefail
cd "$(dirname "$0")"
. scripts/common.sh
. scripts/python_checks.sh

scripts/install_deps.sh demo
PYTHON=$(find_python) || die "no Python of version 3.10 to 3.13 found"
if [ ! -x "$VENV/bin/python" ]; then
    say "setting up .venv with $("$PYTHON" --version); this takes a minute"
fi
make_venv "$VENV" "$PYTHON"
pip_install "$VENV" "${DEMO_NEEDS[@]}"
install_package "$VENV"
exec "$VENV/bin/python" examples/kv_demo "$@"
