#!/usr/bin/env bash
# Test the same-host transport on a kernel with Yama, under each ptrace scope.
#
#   scripts/yama_test.sh [SCOPE]
#
# With SCOPE, 0 to 3, only that one.
#
# The script boots Debian's kernel in a virtual machine, whose file system has
# nothing but tests/c/yama and its libraries.  That program prints a table with
# a row for each combination of ptrace scope, users, capabilities and settings,
# and checks each row.  Exit status: 0 if all are as expected, 77 if something
# is missing that the test needs; the last line says what.
#
# The processor is emulated, because /dev/kvm exists on some virtual machines
# but does not work there.  YAMA_ACCEL=kvm uses it.
#
# YAMA_KERNEL is the kernel to boot (default: that of Debian's package
# linux-image-cloud-amd64, downloaded and unpacked, not installed).
set -euo pipefail
. "$(dirname "$0")/common.sh"
. "$(dirname "$0")/c_checks.sh"

YAMA="$WORK/yama"
IMAGE=linux-image-cloud-amd64
SCOPE=${1:-}
TIME_LIMIT=3600 # seconds; an idle machine needs a few minutes

skip() {
    say "$*"
    exit 77
}

need_command() {
    command -v "$1" >/dev/null ||
        skip "$1 is missing: install the Debian package $2"
}

# Print the path of the kernel.
find_kernel() {
    local found
    if [ -n "${YAMA_KERNEL:-}" ]; then
        say "$YAMA_KERNEL"
        return
    fi
    found=("$YAMA"/kernel/boot/vmlinuz-*)
    [ -f "${found[0]}" ] || return 1
    say "${found[0]}"
}

# Download the package that IMAGE depends on, and unpack it.
fetch_kernel() {
    local package
    command -v apt-get >/dev/null || return 1
    package=$(apt-cache depends "$IMAGE" 2>/dev/null |
        awk '/Depends: linux-image-/ { print $2; exit }')
    [ -n "$package" ] || return 1
    rm -rf "$YAMA/download" "$YAMA/kernel"
    mkdir -p "$YAMA/download" "$YAMA/kernel"
    (cd "$YAMA/download" && apt-get -qq download "$package" 2>&1 |
        without_urls >&2)
    dpkg-deb -x "$YAMA/download/$package"_*.deb "$YAMA/kernel"
    rm -rf "$YAMA/download"
}

# copy_libraries PROGRAM: copy what it loads to the same paths below root.
copy_libraries() {
    local path
    ldd "$1" | grep -o '/[^ ]*' | while read -r path; do
        mkdir -p "$YAMA/root${path%/*}"
        cp -Lu "$path" "$YAMA/root$path"
    done
}

# make_root GUEST UCX: make the file system.  UCX is the folder of libucp.
make_root() {
    local guest=$1 ucx=$2 library
    rm -rf "$YAMA/root"
    mkdir -p "$YAMA/root"/{dev,ucx/ucx}
    cp "$guest" "$YAMA/root/init"
    copy_libraries "$guest"
    for library in ucp uct ucs ucm; do
        cp -L "$ucx/lib$library.so.0" "$YAMA/root/ucx"
    done
    cp -L "$ucx/ucx/libuct_cma.so.0" "$YAMA/root/ucx/ucx"
    for library in "$YAMA/root"/ucx/{,ucx/}*.so.0; do
        LD_LIBRARY_PATH="$ucx" copy_libraries "$library"
    done
    rm -rf "${YAMA:?}/root$ucx" # they lie in /ucx
    find "$YAMA/root" -type f -exec strip --strip-unneeded {} +
    (cd "$YAMA/root" && find . | cpio --quiet -o -H newc) >"$YAMA/root.cpio"
}

run_machine() {
    timeout --kill-after=10 $TIME_LIMIT qemu-system-x86_64 \
        -nodefaults -no-user-config -no-reboot -display none -serial stdio \
        -machine q35 -accel "${YAMA_ACCEL:-tcg}" -cpu max -smp 2 -m 1024 \
        -kernel "$1" -initrd "$YAMA/root.cpio" \
        -append "console=ttyS0 quiet panic=-1 rdinit=/init${SCOPE:+ -- $SCOPE}" \
        </dev/null |
        sed -u 's/\r$//' | tee "$YAMA/log"
}

[[ "$SCOPE" =~ ^[0-3]?$ ]] || die "usage: yama_test.sh [0|1|2|3]"
[ "$(uname -m)" = x86_64 ] || skip "this test is for x86-64"
need_command qemu-system-x86_64 qemu-system-x86
need_command cpio cpio
UCX=$(find_libucp)
[ "$UCX" != none ] || skip "libucp is missing: run scripts/install_deps.sh" \
    "and run_tests.sh, which installs the libucx wheel"
mkdir -p "$YAMA"
KERNEL=$(find_kernel) || { fetch_kernel && KERNEL=$(find_kernel); } ||
    skip "there is no kernel: set YAMA_KERNEL, or make apt-get download" \
        "$IMAGE"
c_build gcc >"$YAMA/build.log" || die "the build failed: $YAMA/build.log"
make_root "$WORK/gcc/tests/c/yama_guest" "$(dirname "$UCX")"
say "kernel: $(basename "$KERNEL")"
run_machine "$KERNEL" || die "the virtual machine failed or took too long"
grep -q -E '^yama test: [0-9]+ rows, 0 failed$' "$YAMA/log"
