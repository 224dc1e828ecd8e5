#!/usr/bin/env bash
# Check and measure GPU memory on a machine with an NVIDIA GPU, in nine minutes.
#
#   gpu_check.sh [OPTIONS]      --help lists them
#
# In a checkout it takes the Python of .venv, or $PYTHON, in which vllm_nixl is
# installed.  In a folder that gpu_pack.sh has made it needs nothing but that
# Python version and the driver; nothing is built, and no network is used.
# docs/gpu.md describes it.
set -euo pipefail
HERE=$(cd "$(dirname "$0")" && pwd)

die() {
    printf 'gpu_check.sh: %s\n' "$*" >&2
    exit 2
}

# find_python VERSION: print a Python of that version: $PYTHON, or one of PATH.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 "python$1"; do
        if [ "$("$candidate" -c 'import sys
print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$1" ]; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

OPTIONS=()
if [ -f "$HERE/site.tar.gz" ]; then
    VERSION=$(cat "$HERE/python")
    BASE=$(find_python "$VERSION") || die "Python $VERSION is not in PATH"
    VENV=$(mktemp -d)
    trap 'rm -rf "$VENV"' EXIT
    # Apart from the packages of the machine, among which may be another NIXL.
    "$BASE" -m venv --without-pip "$VENV"
    tar -xzf "$HERE/site.tar.gz" -C "$VENV/lib/python$VERSION/site-packages"
    PYTHON="$VENV/bin/python"
    OPTIONS=(--stock-python "$PYTHON" --torch-python "$BASE")
else
    PYTHON=${PYTHON:-$HERE/../.venv/bin/python}
    [ -x "$PYTHON" ] || command -v "$PYTHON" >/dev/null ||
        die "no Python: scripts/check.sh install, or set PYTHON"
fi
export PYTHONPATH="$HERE" PYTHONDONTWRITEBYTECODE=1
"$PYTHON" -m gpu_check ${OPTIONS[@]+"${OPTIONS[@]}"} "$@"
