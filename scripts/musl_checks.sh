# The check with musl, the C library of Alpine.  Sourced by check.sh.
#
# Debian's musl-gcc compiles for it, and the programs run here.  The libraries
# that they need are built from Debian's source packages.

MUSL="$WORK/musl-libraries"

musl_libevent() {
    local source="$ARCHIVES/source/libevent/tree"
    mkdir -p "$MUSL/libevent"
    without_autotools "$source"
    (cd "$MUSL/libevent" && quietly env CC="$MUSL/cc" \
        "$source/configure" --prefix="$MUSL" --disable-static \
        --disable-openssl --disable-samples --disable-libevent-regress \
        --disable-debug-mode && quietly make -j "$(nproc)" install)
}

# cmocka is one source file.  Its config.h has what CMake would find on Linux.
musl_cmocka() {
    local source="$ARCHIVES/source/cmocka/tree"
    mkdir -p "$MUSL/cmocka"
    sed -n 's/^#cmakedefine \([^ ]*\).*/#define \1 1/p' \
        "$source/config.h.cmake" | grep -v -e IO_H -e MSVC -e DECLSPEC \
        >"$MUSL/cmocka/config.h"
    quietly "$MUSL/cc" -shared -fPIC -O2 -DHAVE_CONFIG_H \
        -I"$MUSL/cmocka" -I"$source/include" "$source/src/cmocka.c" \
        -Wl,-soname,libcmocka.so.0 -o "$MUSL/lib/libcmocka.so.0"
    ln -s libcmocka.so.0 "$MUSL/lib/libcmocka.so"
    cp "$source"/include/*.h "$MUSL/include"
    printf '%s\n' "Name: cmocka" "Description: of the check with musl" \
        "Version: 1.1" "Cflags: -I$MUSL/include" "Libs: -L$MUSL/lib -lcmocka" \
        >"$MUSL/lib/pkgconfig/cmocka.pc"
}

# The compiler and its libraries.  The kernel's headers are among those of glibc.
musl_tools() {
    [ ! -f "$MUSL/ready" ] || return 0
    rm -rf "$MUSL"
    mkdir -p "$MUSL"
    printf '#!/bin/sh\nexec %s "$@"\n' "musl-gcc -idirafter /usr/include \
-idirafter /usr/include/$(gcc -print-multiarch)" >"$MUSL/cc"
    chmod +x "$MUSL/cc"
    cat >"$MUSL/native.ini" <<END
[binaries]
c = '$MUSL/cc'
pkg-config = 'pkg-config'
[properties]
pkg_config_libdir = '$MUSL/lib/pkgconfig'
END
    musl_libevent
    musl_cmocka
    touch "$MUSL/ready"
}

# check_musl: build with musl, without OpenSSL and libcurl, and run the C tests.
# Left out are those of GPU memory, as no driver is made for musl, and the
# example in Rust, whose library is made for glibc.
check_musl() {
    local tests
    ARCHIVES="$WORK/archives"
    command -v musl-gcc >/dev/null ||
        skip "musl-gcc is missing: apt-get install musl-tools"
    mkdir -p "$ARCHIVES"
    apt_setup
    fetch_source libevent 2.1
    fetch_source cmocka 1.1
    musl_tools
    CC="$MUSL/cc" c_setup musl --native-file "$MUSL/native.ini" \
        -Dpython=disabled -Dman=disabled \
        -Dside_channel_http=disabled -Dside_channel_tls=disabled
    meson compile -C "$WORK/musl" -j "$(nproc)"
    tests=$(meson test -C "$WORK/musl" --list 2>/dev/null | sed 's/.* //' |
        grep -v -e cuda -e window_hostile -e ucx_vram -e nixl_capi_rs)
    # shellcheck disable=SC2086
    LD_LIBRARY_PATH="$MUSL/lib" meson test -C "$WORK/musl" --no-rebuild \
        --print-errorlogs $tests
}
