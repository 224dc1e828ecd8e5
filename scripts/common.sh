# Functions that the scripts share: messages, finding a Python, virtual
# environments, installing packages.  Sourced by bash with `set -euo pipefail`.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
WORK="$ROOT/build-tests" # the checks build here; git ignores it

# pip compiles no modules, because the tests import few of those that it
# installs.  Modules that are imported are compiled once: the tests start
# hundreds of processes.  (pip's variable is the opposite of its option.)
export PYTHONDONTWRITEBYTECODE= PIP_NO_COMPILE=0
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_ROOT_USER_ACTION=ignore

say() {
    printf '%s\n' "$*"
}

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# quietly COMMAND...: run it; print the end of its output if it fails.
quietly() {
    local log
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1 </dev/null; then
        tail -n 60 "$log" | without_urls >&2
        rm -f "$log"
        die "failed: $*"
    fi
    rm -f "$log"
}

# Remove host names from the output of package clients.
without_urls() {
    sed -E -e 's#(https?|ftp)://[^[:space:]"'\'',;)]+#<url>#g' \
        -e "s#host='[^']*'#host=<host>#g"
}

# -- Python -------------------------------------------------------------------

# Print "3.11 /real/path/of/python" for a Python of 3.10 to 3.14, else fail.
python_probe() {
    "$1" -c '
import sys
if not (3, 10) <= sys.version_info[:2] <= (3, 14):
    sys.exit(1)
print("%d.%d" % sys.version_info[:2], sys.executable)' 2>/dev/null
}

# Print the Python to use: $PYTHON if set, else the first suitable one.
find_python() {
    local candidate probe
    if [ -n "${PYTHON:-}" ]; then
        probe=$(python_probe "$PYTHON") ||
            die "PYTHON=$PYTHON is not a Python of version 3.10 to 3.14"
        say "${probe#* }"
        return
    fi
    for candidate in python3.11 python3 python3.12 python3.13 python3.14 python3.10; do
        if probe=$(python_probe "$candidate"); then
            say "${probe#* }"
            return
        fi
    done
    return 1
}

# Print one Python for each other version from 3.10 to 3.14: "3.12 /path".
find_other_pythons() {
    local main=$1 seen candidate probe version
    seen=" $(python_probe "$main" | cut -d' ' -f1) "
    for version in 3.10 3.11 3.12 3.13 3.14; do
        for candidate in "python$version" \
            "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python; do
            probe=$(python_probe "$candidate") || continue
            case "$seen" in *" ${probe%% *} "*) continue ;; esac
            seen="$seen${probe%% *} "
            say "$probe"
        done
    done
}

python_has_headers() {
    "$1" -c '
import os, sys, sysconfig
header = os.path.join(sysconfig.get_path("include"), "Python.h")
sys.exit(not os.path.exists(header))'
}

python_has_venv() {
    "$1" -c 'import ensurepip, venv' 2>/dev/null
}

# make_venv DIRECTORY PYTHON: create a virtual environment.  Keep an existing one
# that works and has the same Python version.
make_venv() {
    local dir=$1 python=$2 want have
    want=$(python_probe "$python")
    have=$(python_probe "$dir/bin/python" || true)
    if [ "${want%% *}" = "${have%% *}" ] &&
        "$dir/bin/python" -m pip --version >/dev/null 2>&1; then
        return
    fi
    python_has_venv "$python" ||
        die "$python cannot create virtual environments: ensurepip is missing." \
            "On Debian install python3-venv, or set PYTHON to another Python."
    rm -rf "$dir"
    "$python" -m venv "$dir"
}

# pip_install VENV ARGUMENTS...: run pip; print its output only if it fails.
pip_install() {
    local venv=$1 log
    shift
    log=$(mktemp)
    if ! "$venv/bin/python" -m pip install -q "$@" >"$log" 2>&1; then
        without_urls <"$log" >&2
        rm -f "$log"
        return 1
    fi
    rm -f "$log"
}

# copy_sources FOLDER: copy what git tracks, and what it does not ignore.
copy_sources() {
    mkdir -p "$1"
    (cd "$ROOT" && git ls-files --cached --others --exclude-standard -z |
        xargs -0 cp --parents -t "$1")
}

# Print one hash of all the source that the package is built from.
source_hash() {
    (cd "$ROOT" && find meson.build meson.options pyproject.toml include src \
        python bench/bare -type f -not -name '*.pyc' -print0 2>/dev/null |
        LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -d' ' -f1)
}

# install_package VENV PIP-OPTIONS...: install the checkout, unless the same
# source is installed already.
install_package() {
    local venv=$1 hash stamp
    shift
    hash=$(source_hash)
    stamp="$venv/.vllm_nixl-source"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$hash" ] &&
        (cd / && "$venv/bin/python" -c 'import vllm_nixl' 2>/dev/null); then
        return
    fi
    rm -f "$stamp"
    pip_install "$venv" --force-reinstall --no-deps "$@" "$ROOT" || return
    say "$hash" >"$stamp"
}
