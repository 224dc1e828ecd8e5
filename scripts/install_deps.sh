#!/usr/bin/env bash
# Install the Debian packages that the build needs: compilers, headers,
# libraries.
#
#   scripts/install_deps.sh [demo|tests] [--dry-run] [--yes]
#
# `demo` installs the packages for building and using vllm_nixl; `tests` (the
# default) adds those for run_tests.sh.  The script installs only what is
# missing, with apt-get, as root.  On a terminal it asks first, unless --yes is
# given.  For other users, and without apt-get, it prints the package names and
# fails.
set -euo pipefail
. "$(dirname "$0")/common.sh"

PURPOSE=tests
DRY_RUN=0
YES=0
for argument in "$@"; do
    case "$argument" in
    demo | tests) PURPOSE=$argument ;;
    --dry-run) DRY_RUN=1 ;;
    --yes) YES=1 ;;
    *) die "usage: install_deps.sh [demo|tests] [--dry-run] [--yes]" ;;
    esac
done

have_command() { command -v "$1" >/dev/null 2>&1; }
have_library() { pkg-config --exists "$1" 2>/dev/null; }

# Test for the tool or the library, not for the package: a compiler or a Python
# from another source will do.
have_compiler() { have_command cc && have_command make; }
have_fuzzer() {
    local out status=0
    have_command clang || return 1
    out=$(mktemp)
    printf '%s\n' '#include <stddef.h>' \
        'int LLVMFuzzerTestOneInput(const void *p, size_t n);' \
        'int LLVMFuzzerTestOneInput(const void *p, size_t n)' \
        '{ return p == 0 && n == 1; }' |
        clang -fsanitize=fuzzer,address -x c - -o "$out" 2>/dev/null ||
        status=1
    rm -f "$out"
    return $status
}

clang_major() {
    clang -dumpversion | cut -d. -f1
}

MISSING=()
need() {
    local package=$1
    shift
    "$@" || MISSING+=("$package")
}

find_missing_python() {
    local python
    if python=$(find_python); then
        need python3-dev python_has_headers "$python"
        need python3-venv python_has_venv "$python"
    elif [ -n "${PYTHON:-}" ]; then
        exit 1 # find_python has printed the reason
    else
        MISSING+=(python3 python3-dev python3-venv)
    fi
}

find_missing() {
    MISSING=()
    need build-essential have_compiler
    need pkg-config have_command pkg-config
    find_missing_python
    need libevent-dev have_library libevent_openssl
    need libssl-dev have_library openssl
    need libcurl4-openssl-dev have_library libcurl
    [ "$PURPOSE" = tests ] || return 0
    need libcmocka-dev have_library cmocka
    need iproute2 have_command ip
    need cmake have_command cmake
    need clang have_command clang
    need clang-tidy have_command clang-tidy
    # Its name has the version of clang, which the first installation brings.
    if have_command clang; then
        need "libclang-rt-$(clang_major)-dev" have_fuzzer
    fi
}

apt_install() {
    local log
    log=$(mktemp)
    if ! {
        apt-get -qq update &&
            DEBIAN_FRONTEND=noninteractive apt-get -qq -y \
                --no-install-recommends install "$@"
    } >"$log" 2>&1 </dev/null; then
        without_urls <"$log" >&2
        rm -f "$log"
        die "apt-get could not install: $*"
    fi
    rm -f "$log"
}

# On a terminal, ask before anything is installed.
confirm() {
    local answer
    if [ $YES = 1 ] || [ ! -t 0 ] || [ ! -t 1 ]; then
        return
    fi
    read -r -p "Install them with apt-get? [Y/n] " answer || answer=n
    case "$answer" in
    "" | [yY] | [yY][eE][sS]) ;;
    *) die "missing: ${MISSING[*]}" ;;
    esac
}

find_missing
if [ ${#MISSING[@]} -eq 0 ]; then
    exit 0
fi
if [ $DRY_RUN = 1 ]; then
    die "missing: ${MISSING[*]}"
fi
if ! have_command apt-get; then
    die "missing: ${MISSING[*]} (Debian package names; apt-get was not found)"
fi
if [ "$(id -u)" != 0 ]; then
    die "missing: ${MISSING[*]}. As root: apt-get install ${MISSING[*]}"
fi
say "missing Debian packages: ${MISSING[*]}"
confirm
say "installing them with apt-get"
apt_install "${MISSING[@]}"
find_missing
if [ ${#MISSING[@]} -ne 0 ]; then
    apt_install "${MISSING[@]}"
    find_missing
fi
if [ ${#MISSING[@]} -ne 0 ]; then
    die "still missing after the installation: ${MISSING[*]}" \
        "${PYTHON:+(with PYTHON=$PYTHON)}"
fi
