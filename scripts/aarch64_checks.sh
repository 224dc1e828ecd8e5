# The check on AArch64: compile for it, and run the tests in an emulated machine
# with Debian's kernel.  Sourced by check.sh.
#
# qemu emulates the whole machine.  Emulating only the programs, on the kernel
# of this machine, would be faster, but then process_vm_readv() and parts of
# /proc are missing, which agents of one host need.  The machine has no disk and
# no network: the kernel unpacks two archives into memory.  One has Debian's
# packages and Python's; the other has this checkout, at the same path as here,
# and what was built from it.

AARCH64_TOOLS=(mmdebstrap cpio aarch64-linux-gnu-gcc qemu-aarch64-static
    qemu-system-aarch64)
AARCH64_TOOL_PACKAGES="mmdebstrap cpio gcc-aarch64-linux-gnu qemu-user-static \
qemu-system-arm"
AARCH64_SUITE=bookworm
AARCH64_PYTHON=3.11 # of that suite
AARCH64_PACKAGES=(linux-image-cloud-arm64 libc6-dev libevent-dev libssl-dev
    libcurl4-openssl-dev libcmocka-dev "python$AARCH64_PYTHON-dev" python3
    bash dash coreutils diffutils findutils grep sed mount util-linux procps
    iproute2 netbase passwd openssl ca-certificates curl libstdc++6)
AARCH64_ROOT="$WORK/aarch64-root"
AARCH64_STAGE="$WORK/aarch64-stage"
AARCH64_SITE="/usr/local/lib/python$AARCH64_PYTHON/dist-packages"

# Those of one process and of one host, and the programs of the README.
AARCH64_TESTS=("${SMOKE_TESTS[@]}" readme same_host transports notifications
    restart cancel waiting xfer_states confirmation routes side_channel)

# aarch64_compile ROOT DIRECTORY: compile Python modules to files, which the
# emulated machine would do at every start of an interpreter.  The kernel does
# not set the times of the files that it unpacks.
aarch64_compile() {
    local python="$VENV/bin/python"
    [ "$(python_probe "$python" | cut -d' ' -f1)" = "$AARCH64_PYTHON" ] ||
        python="$WORK/aarch64-python"
    "$python" -m compileall -q -s "$1" --invalidation-mode unchecked-hash \
        "$1$2" >/dev/null
}

# Create the file system and its archive.  The packages are only unpacked: their
# scripts would have to run on AArch64.
aarch64_root() {
    local stamp="$AARCH64_ROOT.stamp" list
    list="$AARCH64_SUITE ${AARCH64_PACKAGES[*]} ${TEST_NEEDS[*]}"
    list="$list meson $(meson --version)"
    if [ "$(cat "$stamp" 2>/dev/null)" = "$list" ]; then
        return
    fi
    rm -rf "$AARCH64_ROOT" "$stamp"
    mkdir -p "$WORK"
    mmdebstrap --quiet --variant=extract --architectures=arm64 \
        --include="$(IFS=, && printf '%s' "${AARCH64_PACKAGES[*]}")" \
        "$AARCH64_SUITE" "$AARCH64_ROOT" 2>&1 | without_urls
    pip_install "$VENV" --target "$AARCH64_ROOT$AARCH64_SITE" \
        --platform manylinux_2_28_aarch64 --platform manylinux2014_aarch64 \
        --python-version "$AARCH64_PYTHON" --implementation cp \
        --only-binary=:all: "${TEST_NEEDS[@]}"
    mkdir -p "$AARCH64_ROOT/opt"
    cp -r "$TOOLS"/lib/python3*/site-packages/mesonbuild "$AARCH64_ROOT/opt"
    aarch64_programs
    aarch64_compile "$AARCH64_ROOT" "/usr/lib/python$AARCH64_PYTHON"
    aarch64_compile "$AARCH64_ROOT" "$AARCH64_SITE"
    aarch64_compile "$AARCH64_ROOT" /opt
    (cd "$AARCH64_ROOT" && find . \( -path ./usr/share/doc \
        -o -path ./usr/share/man -o -path ./usr/share/locale -o -name '*.a' \
        -o -path ./usr/include -o -path ./lib/modules -o -path ./boot \
        -o -path ./dev -o -path "*/usr/lib/*/perl*" \) -prune -o -print0 |
        cpio -0 -o -H newc --quiet) >"$AARCH64_ROOT.cpio"
    say "$list" >"$stamp"
}

# Write programs that start those of AArch64, here and there.
aarch64_programs() {
    local run="$WORK/aarch64-run" python="$WORK/aarch64-python"
    printf '#!/bin/sh\n[ "$(uname -m)" != aarch64 ] || exec "$@"\n%s\n' \
        "exec qemu-aarch64-static -L '$AARCH64_ROOT' \"\$@\"" >"$run"
    printf '#!/bin/sh\nexec %s %s/usr/bin/python%s "$@"\n' \
        "'$run'" "'$AARCH64_ROOT'" "$AARCH64_PYTHON" >"$python"
    chmod +x "$run" "$python"
}

# Write Meson's cross file.  Meson asks Python where modules are installed.  If
# the file changed, Meson would configure again.
aarch64_cross_file() {
    [ "$WORK/aarch64.ini" -ot "$AARCH64_ROOT.stamp" ] || return 0
    cat >"$WORK/aarch64.ini" <<END
[binaries]
c = ['aarch64-linux-gnu-gcc', '--sysroot=$AARCH64_ROOT']
ar = 'aarch64-linux-gnu-ar'
strip = 'aarch64-linux-gnu-strip'
pkg-config = 'pkg-config'
python = '$WORK/aarch64-python'
exe_wrapper = '$WORK/aarch64-run'
[properties]
sys_root = '$AARCH64_ROOT'
pkg_config_libdir = '$AARCH64_ROOT/usr/lib/aarch64-linux-gnu/pkgconfig'
[host_machine]
system = 'linux'
cpu_family = 'aarch64'
cpu = 'aarch64'
endian = 'little'
END
}

aarch64_build() {
    aarch64_cross_file
    CC=gcc c_setup aarch64 --cross-file "$WORK/aarch64.ini" \
        -Dpython=enabled -Ddebug=false -Dpython.bytecompile=-1 \
        "-Dpython.platlibdir=$AARCH64_SITE" "-Dpython.purelibdir=$AARCH64_SITE"
    meson compile -C "$WORK/aarch64" -j "$(nproc)"
}

# aarch64_image FILE COMMAND...: create the archives in FILE.  The machine runs
# the command.
aarch64_image() {
    local image=$1 stage="$AARCH64_STAGE"
    shift
    rm -rf "$stage"
    mkdir -p "$stage$ROOT"
    DESTDIR="$stage" meson install -C "$WORK/aarch64" --no-rebuild --quiet \
        --tags runtime,python-runtime
    aarch64_compile "$stage" "$AARCH64_SITE"
    cp "$ROOT/scripts/aarch64_init.sh" "$stage/init"
    printf '%q ' cd "$ROOT" >"$stage/command"
    printf '\n' >>"$stage/command"
    printf '%q ' "$@" >>"$stage/command"
    (cd "$ROOT" && {
        git ls-files -z --cached --others --exclude-standard
        find build-tests/aarch64 build-tests/aarch64-run \
            \( -name '*.a' -o -name '*.p' \) -prune -o -print0
    } | cpio -0 -p -d --quiet "$stage$ROOT")
    (cd "$stage" && find . -print0 | cpio -0 -o -H newc --quiet) |
        cat "$AARCH64_ROOT.cpio" - >"$image"
    rm -rf "$stage"
}

# aarch64_boot IMAGE: run the machine; returns the status of its command.
aarch64_boot() {
    local log="$WORK/aarch64.log" status
    qemu-system-aarch64 -M virt -cpu neoverse-n1 -smp 2 -m 4G \
        -kernel "$AARCH64_ROOT"/boot/vmlinuz-* -initrd "$1" \
        -append "console=ttyAMA0 quiet panic=-1" \
        -nographic -no-reboot -nic none </dev/null | sed -u 's/\r$//' | tee "$log"
    status=$(sed -n 's/^the command ended with status //p' "$log")
    return "${status:-1}"
}

# check_aarch64 [COMMAND...]: run the C tests and the most important Python tests
# on AArch64, or one command in the checkout there.
check_aarch64() {
    local tool
    for tool in "${AARCH64_TOOLS[@]}"; do
        command -v "$tool" >/dev/null ||
            skip "$tool is missing: apt-get install --no-install-recommends" \
                "$AARCH64_TOOL_PACKAGES"
    done
    [ $# -gt 0 ] || set -- bash scripts/aarch64_tests.sh "$AARCH64_SITE" \
        $(printf "tests/python/test_%s.py " "${AARCH64_TESTS[@]}")
    aarch64_root
    aarch64_build
    aarch64_image "$WORK/aarch64.cpio" "$@"
    aarch64_boot "$WORK/aarch64.cpio"
}
