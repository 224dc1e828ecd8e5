# Checks of the C library.  Sourced by check.sh.

TOOLS="$ROOT/.venv" # meson and ninja

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
        printf '#!/bin/bash\nLD_PRELOAD=%s exec -a "$0" %s "$@"\n' \
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
    meson compile -C "$WORK/$flavour" -j "$(nproc)"
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
    local flavour=$1 run="" multiplier=1
    c_build "$flavour"
    case "$flavour" in
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
        --no-rebuild --print-errorlogs --timeout-multiplier $multiplier
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

# check_library: install the C library alone, find it with pkg-config, and run
# an example that is compiled against the installed headers.
check_library() {
    local prefix="$WORK/prefix" dir="$WORK/library" program="$WORK/agent_demo"
    rm -rf "$prefix" "$dir"
    meson setup "$dir" "$ROOT" -Dpython=disabled -Dtests=false \
        -Dexamples=false -Dwerror=true --buildtype=release --prefix="$prefix" \
        --libdir=lib
    meson install -C "$dir" --quiet
    export PKG_CONFIG_PATH="$prefix/lib/pkgconfig"
    # shellcheck disable=SC2046
    cc -std=c11 -Wall -Wextra -Werror $(pkg-config --cflags vnx) \
        "$ROOT/examples/agent_demo.c" -o "$program" \
        $(pkg-config --libs vnx)
    LD_LIBRARY_PATH="$prefix/lib" "$program"
    each_header_alone "$prefix/include"
    only_our_names "$prefix/lib/libvnx.so"
}

# Compile each public header on its own, as C11 and as C++17.
each_header_alone() {
    local header
    for header in "$1"/vnx/*.h; do
        cc -std=c11 -Wall -Wextra -Wpedantic -Werror -fsyntax-only \
            -I "$1" -include "$header" -x c /dev/null
        c++ -std=c++17 -Wall -Wextra -Wpedantic -Werror -fsyntax-only \
            -I "$1" -include "$header" -x c++ /dev/null
    done
    echo "each public header compiles on its own, as C and as C++"
}

# Check that the library exports only names that begin with vnx_.
only_our_names() {
    local foreign
    foreign=$(nm -D --defined-only "$1" | awk '$2 ~ /[A-Z]/ { print $3 }' |
        grep -v -E '^(vnx_|VNX_)' || true)
    [ -z "$foreign" ] || die "exported names without vnx_: $foreign"
    echo "exports $(nm -D --defined-only "$1" | grep -c ' T vnx_') functions"
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
    clang-format --version
    c_files '*.c' '*.h' | xargs clang-format --dry-run -Werror
}

# Run clang-tidy on the files that the clang build compiles.
check_c_tidy() {
    CC=clang c_setup clang -Dpython=enabled
    cd "$ROOT"
    c_files 'src/*.c' 'examples/*.c' 'bench/*.c' |
        xargs -P "$(nproc)" -n 4 clang-tidy --quiet -p "$WORK/clang"
}
