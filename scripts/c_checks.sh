# Checks of the C library.  Sourced by check.sh.

TOOLS="$ROOT/.venv" # meson, ninja, clang-format

meson() {
    PATH="$TOOLS/bin:$PATH" "$TOOLS/bin/meson" "$@"
}

# c_setup FLAVOUR OPTIONS...: configure build-tests/FLAVOUR with warnings as
# errors.  Reconfigure it only when the options have changed.
c_setup() {
    local dir="$WORK/$1"
    shift
    set -- -Dwerror=true "$@"
    if [ "$(cat "$dir/options" 2>/dev/null)" != "$CC $*" ]; then
        rm -rf "$dir"
        meson setup "$dir" "$ROOT" "$@"
        echo "$CC $*" >"$dir/options"
    fi
}

# c_setup_python FLAVOUR RUNTIME OPTIONS...: the same with the extension, which
# c_build installs into a separate environment, build-tests/venv-FLAVOUR.
c_setup_python() {
    local flavour=$1 runtime=$2 venv="$WORK/venv-$1" site
    shift 2
    [ -f "$venv/ready" ] || make_flavour_venv "$venv" "$runtime"
    site=$(echo "$venv"/lib/python3.*/site-packages)
    c_setup "$flavour" -Dpython=enabled \
        --prefix="$WORK/prefix-$flavour" \
        "-Dpython.platlibdir=$site" "-Dpython.purelibdir=$site" "$@"
}

# make_flavour_venv DIRECTORY RUNTIME: create an environment that shares the
# packages of .venv.
#
# Its Python preloads RUNTIME (a sanitizer's; "": nothing; "coverage": it
# measures the coverage of Python code).  The programs that tests start do
# not, because they are not under test, and because one of them cannot run with
# it: `curl` loads libp11-kit, whose constructor makes the first allocation of
# the process in newlocale().  ASan's first malloc() calls dlerror(), which
# translates its message and so takes and releases the lock that newlocale()
# holds.  The next setlocale() then waits for ever.
make_flavour_venv() {
    local venv=$1 runtime=$2 site base
    rm -rf "$venv"
    "$TOOLS/bin/python" -m venv --without-pip "$venv"
    site=$(echo "$venv"/lib/python3.*/site-packages)
    echo "$TOOLS"/lib/python3.*/site-packages >"$site/shared.pth"
    if [ "$runtime" = coverage ]; then
        echo 'import coverage; coverage.process_startup()' \
            >>"$site/shared.pth"
    elif [ -n "$runtime" ]; then
        echo 'import os; os.environ.pop("LD_PRELOAD", None)' \
            >>"$site/shared.pth"
        base=$(readlink -f "$venv/bin/python")
        rm "$venv/bin/python"
        printf '#!/bin/bash\nLD_PRELOAD=%q exec -a "$0" %q "$@"\n' \
            "$runtime" "$base" >"$venv/bin/python"
        chmod +x "$venv/bin/python"
    fi
    touch "$venv/ready"
}

c_build() {
    local flavour=$1 runtime
    case "$flavour" in
    gcc) CC=gcc c_setup gcc -Dpython=disabled ;;
    clang) CC=clang c_setup clang -Dpython=enabled ;; # clang-tidy uses it, too
    smallest) # without any optional part
        CC=clang c_setup smallest --buildtype=debug \
            -Dpython=disabled -Dside_channel_tls=disabled \
            -Dside_channel_http=disabled -Dside_channel_zmq=disabled
        ;;
    no_tls) # HTTP without TLS, and what else works without OpenSSL
        CC=clang c_setup no_tls --buildtype=debug -Dpython=disabled \
            -Dside_channel_tls=disabled
        ;;
    asan) # not optimised: this halves the build time
        runtime=$(clang -print-file-name="libclang_rt.asan-$(uname -m).so")
        CC=clang c_setup_python asan "$runtime" --buildtype=debug \
            -Db_sanitize=address,undefined -Db_lundef=false \
            "-Dc_link_args=['-shared-libasan','-Wl,-rpath,${runtime%/*}']"
        ;;
    tsan) # -Dwerror=false: without optimisation gcc gives false warnings
        CC=gcc c_setup_python tsan "$(gcc -print-file-name=libtsan.so)" \
            --buildtype=debug -Dwerror=false \
            -Db_sanitize=thread -Db_lundef=false
        ;;
    ranks) # the order of locks, also with UCX, which sanitizers leave out
        CC=gcc c_setup_python ranks "" --buildtype=debug -Dwerror=false \
            -Dtests=false -Dexamples=false
        ;;
    coverage)
        CC=gcc c_setup_python coverage coverage --buildtype=debug \
            -Dwerror=false -Db_coverage=true -Dc_args=-fprofile-update=atomic
        ;;
    fuzz)
        CC=clang c_setup fuzz -Dpython=disabled -Db_sanitize=address,undefined \
            -Db_lundef=false -Dfuzz=true -Dtests=false -Dexamples=false
        ;;
    *) die "unknown flavour: $flavour" ;;
    esac
    case "$flavour" in
    smallest | no_tls) meson compile -C "$WORK/$flavour" -j "$(nproc)" vnx ;;
    *) meson compile -C "$WORK/$flavour" -j "$(nproc)" ;;
    esac
    if [ -d "$WORK/venv-$flavour" ]; then
        meson install -C "$WORK/$flavour" --no-rebuild --quiet \
            --tags runtime,python-runtime
    fi
}

sanitizer_options() {
    export ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1
    export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
    # gcc 12's TSan sometimes reports a joined thread as leaked.
    export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
    TSAN_OPTIONS="$TSAN_OPTIONS:report_thread_leaks=0"
    # A path may have a space or a colon, which ends a value without quotes.
    TSAN_OPTIONS="$TSAN_OPTIONS:suppressions='$ROOT/tests/support/tsan.supp'"
    # TSan does not see UCX's own accesses or the locks between them.  ASan's
    # leak checker sometimes crashes in a process with UCX.
    export VLLM_NIXL_UCX_LIBRARY=none
}

# Run a command with address randomisation off, which TSan's shadow memory
# needs on some kernels.
fixed_layout() {
    if setarch "$(uname -m)" -R true 2>/dev/null; then
        setarch "$(uname -m)" -R "$@"
    else
        "$@"
    fi
}

# The libucp for C tests in builds without a sanitizer: the wheel's in .venv.
find_libucp() {
    local found
    found=$(find "$TOOLS"/lib -path '*/libucx/lib/libucp.so.0' | head -n 1)
    say "${found:-none}"
}

# check_c FLAVOURS...: build each flavour and run its C tests.
check_c() {
    local flavour
    for flavour in "$@"; do
        (run_c_tests "$flavour")
    done
}

run_c_tests() {
    local flavour=$1 run="" multiplier=1 tests=(--no-rebuild)
    c_build "$flavour"
    case "$flavour" in
    smallest | no_tls) # the parts that use what these builds lack
        tests=(--suite base --suite net --suite side_channel --suite listener
            --suite publish --suite openssl)
        ;;
    asan) multiplier=3 && sanitizer_options ;;
    tsan) multiplier=5 run=fixed_layout && sanitizer_options ;;
    *)
        VLLM_NIXL_UCX_LIBRARY=$(find_libucp)
        export VLLM_NIXL_UCX_LIBRARY
        if stock_ready; then # nixl_contract_test compares our fake with it
            VLLM_NIXL_STOCK_LIBRARY=$(stock_library)
            export VLLM_NIXL_STOCK_LIBRARY
        fi
        ;;
    esac
    PATH="$TOOLS/bin:$PATH" $run "$TOOLS/bin/meson" test -C "$WORK/$flavour" \
        "${tests[@]}" --print-errorlogs --timeout-multiplier $multiplier
}

# check_fuzz: run every stored input, then a limited number of new ones.
check_fuzz() {
    local target name corpus count=0
    c_build fuzz
    sanitizer_options
    for target in "$WORK"/fuzz/tests/fuzz/*_fuzz; do
        [ -x "$target" ] || continue
        name=$(basename "$target" _fuzz)
        corpus="$ROOT/tests/fuzz/corpus/$name"
        [ -d "$corpus" ] || die "no corpus for $name: $corpus"
        echo "-- $name: $(find "$corpus" -type f | wc -l) stored inputs"
        "$target" -runs=0 "$corpus"
        mkdir -p "$WORK/fuzz-found/$name"
        "$target" -runs=200000 -max_total_time=3 -max_len=8192 -seed=1 \
            -print_final_stats=1 \
            -artifact_prefix="$WORK/fuzz-found/" \
            "$WORK/fuzz-found/$name" "$corpus"
        count=$((count + 1))
    done
    [ $count -gt 0 ] || die "the build contains no fuzz target"
}

# check_library: follow docs/c.md in a copy of the sources: install the C library,
# and build programs with pkg-config, CMake and Meson.  Then look at what was
# installed, in another place.
check_library() {
    local folder="$WORK" copy home port stage
    # The page does not quote paths, and neither does pkg-config.
    case "$WORK" in
    *[[:space:]]*)
        folder=$(mktemp -d)
        # shellcheck disable=SC2064
        trap "rm -rf '$folder'" EXIT
        ;;
    esac
    copy="$folder/library" home="$folder/library-home"
    rm -rf "$copy" "$home"
    copy_sources "$copy"
    port=$(free_port)
    sed -i "s/18000/$port/" "$copy"/examples/quickstart/*.c
    cd "$copy"
    "$TOOLS/bin/python" "$ROOT/scripts/readme.py" --script docs/c.md |
        without_cmake >page.sh
    CFLAGS=-Werror HOME="$home" PATH="$TOOLS/bin:$PATH" bash page.sh
    [ ! -e "$home/vnx" ] || die "uninstall left files"

    # What was installed with DESTDIR, in a folder that is not its prefix.
    stage="$copy/package$home/vnx"
    sed -i "s#^prefix=.*#prefix=$stage#" "$stage"/lib/pkgconfig/*.pc
    export PKG_CONFIG_PATH="$stage/lib/pkgconfig"
    diff <(ls "$ROOT/include/vnx") <(ls "$stage/include/vnx")
    only_our_names "$stage/lib/libvnx.so" 'vnx_|VNX_'
    only_our_names "$stage/lib/libnixl_capi.so" nixl_capi_
    needs_no_libcurl "$stage"
    versions_agree "$stage"
    manual "$stage"
    demos_with_pkg_config "$stage"
    as_a_subproject
    if have_cmake; then
        demos_with_cmake "$stage"
        cmake_versions "$stage"
    else
        say "SKIP: find_package(vnx): cmake is not installed"
    fi
}

have_cmake() {
    cmake --version >/dev/null 2>&1
}

# Remove the commands of CMake from a script if there is none.
without_cmake() {
    if have_cmake; then
        cat
    else
        grep -v -E "^(echo '[$] )?cmake "
    fi
}

free_port() {
    PYTHONPATH="$ROOT/tests" "$TOOLS/bin/python" -c '
from support.ports import reserve_port
print(reserve_port())'
}

# Programs that link libvnx.so need neither the packages of libvnx.a nor libcurl,
# which is loaded at run time.
needs_no_libcurl() {
    ! readelf -d "$1/lib/libvnx.so" | grep -i libcurl ||
        die "libvnx.so is linked with libcurl"
    ! pkg-config --static --libs vnx | grep -i curl ||
        die "vnx.pc requires libcurl"
    case "$(pkg-config --libs vnx)" in
    *event* | *ssl*) die "vnx.pc requires packages for libvnx.so" ;;
    esac
}

# The version of the headers, of the library, of vnx.pc and in the soname, as a
# C++ program and the tools see them.
versions_agree() {
    local stage=$1 soname
    cat >version.cc <<'END'
#include <cstdio>
#include <vnx/publish.h>
static_assert(VNX_VERSION == VNX_VERSION_MAJOR * 1000000
    + VNX_VERSION_MINOR * 1000 + VNX_VERSION_PATCH, "a number");
int main()
{
    std::printf("%d.%d.%d %s %s\n", VNX_VERSION_MAJOR, VNX_VERSION_MINOR,
        VNX_VERSION_PATCH, VNX_VERSION_STRING, vnx_version());
}
END
    # shellcheck disable=SC2046
    c++ -std=c++17 -Wall -Wextra -Wpedantic -Werror version.cc -o version \
        $(pkg-config --cflags --libs vnx)
    LD_LIBRARY_PATH="$stage/lib" ./version | {
        read -r macros text library
        [ "$macros $text $library" = "$library $library $library" ]
        [ "$library" = "$(pkg-config --modversion vnx)" ]
        soname=$(readelf -d "$stage/lib/libvnx.so" |
            sed -n 's/.*SONAME.*\[\(.*\)\]/\1/p')
        case "$library" in
        0.*) [ "$soname" = "libvnx.so.${library%.*}" ] ;;
        *) [ "$soname" = "libvnx.so.${library%%.*}" ] ;;
        esac
        say "version $library, soname $soname"
    }
}

# There is a man page for each function.
manual() {
    local stage=$1 function
    [ -d "$stage/share/man/man3" ] || {
        say "SKIP: man pages: $TOOLS has no libclang"
        return
    }
    for function in $(nm -D --defined-only "$stage"/lib/lib{vnx,nixl_capi}.so |
        sed -n 's/.* T \([a-z0-9_]*\).*/\1/p'); do
        [ -s "$stage/share/man/man3/$function.3" ] ||
            die "no man page: $function"
    done
    say "man pages: $(find "$stage/share/man/man3" -type f | wc -l)"
}

needs_no_libvnx() {
    ! readelf -d "$1" | grep libvnx || die "$1 is linked with libvnx.so"
}

run_demos() {
    "$1/agent_demo" >/dev/null
    "$1/side_channel_demo" --prefill-port=0 --decode-port=0 >/dev/null
}

demos_with_pkg_config() {
    local stage=$1 name
    mkdir -p demos demos-static
    # shellcheck disable=SC2046
    for name in agent_demo side_channel_demo; do
        cc -Wall -Wextra -Werror "examples/$name.c" -pthread \
            -o "demos/$name" $(pkg-config --cflags --libs vnx)
        cc "examples/$name.c" -o "demos-static/$name" \
            $(pkg-config --static --cflags --libs vnx |
                sed s/-lvnx/-l:libvnx.a/)
        needs_no_libvnx "demos-static/$name"
    done
    # shellcheck disable=SC2046
    cc -Wall -Wextra -Werror examples/nixl_capi.c -o demos/nixl_capi \
        $(pkg-config --cflags --libs nixl_capi)
    LD_LIBRARY_PATH="$stage/lib" demos/nixl_capi >/dev/null
    LD_LIBRARY_PATH="$stage/lib" run_demos demos
    run_demos demos-static
    say "pkg-config: the demos run, with libvnx.so and with libvnx.a"
}

demos_with_cmake() {
    local stage=$1
    mkdir -p demos-cmake
    cp examples/*.c demos-cmake
    sed -e 's/prefill decode/agent_demo side_channel_demo/' \
        -e 's/vnx::vnx)/vnx::vnx_static)/' \
        examples/quickstart/CMakeLists.txt >demos-cmake/CMakeLists.txt
    cmake -S demos-cmake -B demos-cmake/build -DCMAKE_PREFIX_PATH="$stage" \
        >/dev/null
    cmake --build demos-cmake/build >/dev/null
    needs_no_libvnx demos-cmake/build/agent_demo
    run_demos demos-cmake/build
    say "CMake: the demos run with vnx::vnx_static"
}

# The versions that find_package(vnx VERSION) accepts and refuses.
cmake_versions() {
    cat >versions.cmake <<'END'
file(GLOB file "${STAGE}/lib/cmake/vnx/vnxConfigVersion.cmake")
include("${file}")
set(v "${PACKAGE_VERSION}")
string(REGEX MATCH "^[0-9]+[.][0-9]+" minor "${v}")
function(expect expected)
  include("${file}")
  if(NOT PACKAGE_VERSION_COMPATIBLE STREQUAL expected)
    message(FATAL_ERROR "version ${PACKAGE_FIND_VERSION}: not ${expected}")
  endif()
endfunction()
foreach(PACKAGE_FIND_VERSION "${v}" "${minor}")
  expect(TRUE)
endforeach()
foreach(PACKAGE_FIND_VERSION "${v}.1" "${minor}.99" 0.0.1 99.0)
  expect(FALSE)
endforeach()
set(PACKAGE_FIND_VERSION_RANGE "a range")
set(PACKAGE_FIND_VERSION_MIN 0.0.1)
set(PACKAGE_FIND_VERSION_MAX "${v}")
set(PACKAGE_FIND_VERSION_RANGE_MAX INCLUDE)
expect(TRUE)
set(PACKAGE_FIND_VERSION_RANGE_MAX EXCLUDE)
expect(FALSE)
END
    cmake -DSTAGE="$1" -P versions.cmake
}

# The quick start with the sources as its subproject: Meson builds the library
# alone.  Only configured, because all of it has been compiled already.
as_a_subproject() {
    mkdir -p subproject/subprojects
    cp examples/quickstart/*.c examples/quickstart/meson.build subproject
    ln -sfn "$ROOT" subproject/subprojects/vnx
    meson setup subproject/build subproject --force-fallback-for=vnx \
        -Dwerror=true >subproject/log
    meson introspect --targets subproject/build | "$TOOLS/bin/python" -c '
import json, sys
names = sorted(target["name"] for target in json.load(sys.stdin))
assert names == ["decode", "prefill", "vnx", "vnx_objects"], names
print("as a subproject:", *names)'
}

# Check that the library exports only names that begin with vnx_.
# only_our_names LIBRARY PREFIXES: it exports no other names.
only_our_names() {
    local names foreign
    names=$(nm -D --defined-only "$1" | awk '$2 ~ /[A-Z]/ { print $3 }')
    foreign=$(grep -v -E "^($2)" <<<"$names" || true)
    [ -z "$foreign" ] || die "$1 exports: $foreign"
    say "${1##*/} exports $(wc -l <<<"$names") names"
}

# check_yama [SCOPE]: test the same-host transport on a kernel with Yama.
check_yama() {
    "$ROOT/scripts/yama_test.sh" "$@"
}

c_files() {
    git -C "$ROOT" ls-files --cached --others --exclude-standard -- "$@"
}

check_c_format() {
    cd "$ROOT"
    "$TOOLS/bin/clang-format" --version
    c_files '*.c' '*.h' | xargs "$TOOLS/bin/clang-format" --dry-run -Werror
}

# check_c_tidy [deep]: run clang-tidy on the files that the clang build compiles.
# deep: with clang's static analyzer following calls between functions, which
# takes five times as long.
check_c_tidy() {
    local option options=()
    if [ "${1:-}" != deep ]; then
        for option in -Xclang -analyzer-config -Xclang mode=shallow; do
            options+=("--extra-arg=$option")
        done
    fi
    CC=clang c_setup clang -Dpython=enabled
    cd "$ROOT"
    c_files 'src/*.c' 'examples/*.c' 'bench/*.c' |
        xargs -P "$(nproc)" -n 4 clang-tidy --quiet -p "$WORK/clang" \
            ${options[@]+"${options[@]}"}
}
