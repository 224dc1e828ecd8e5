# Checks of the C library.  Sourced by check.sh.

TOOLS="$ROOT/.venv" # meson and ninja

meson() {
    PATH="$TOOLS/bin:$PATH" "$TOOLS/bin/meson" "$@"
}

# c_setup FLAVOUR OPTIONS...: configure build-tests/FLAVOUR, again only when the
# options have changed.
c_setup() {
    local dir="$WORK/$1"
    shift
    if [ "$(cat "$dir/options" 2>/dev/null)" != "$CC $*" ]; then
        rm -rf "$dir"
        meson setup "$dir" "$ROOT" "$@"
        echo "$CC $*" >"$dir/options"
    fi
}

# c_setup_python FLAVOUR RUNTIME OPTIONS...: the same with the extension, which
# c_build installs into an environment of its own, build-tests/venv-FLAVOUR.
c_setup_python() {
    local flavour=$1 runtime=$2 venv="$WORK/venv-$1" site
    shift 2
    [ -f "$venv/ready" ] || make_flavour_venv "$venv" "$runtime"
    site=$(echo "$venv"/lib/python3.*/site-packages)
    c_setup "$flavour" -Dpython=enabled \
        --prefix="$WORK/prefix-$flavour" \
        "-Dpython.platlibdir=$site" "-Dpython.purelibdir=$site" "$@"
}

# make_flavour_venv DIRECTORY RUNTIME: it shares the packages of .venv.
#
# Its Python preloads RUNTIME (a sanitizer's), and no other program does: those
# that tests start are not ours.  One cannot even start with it: `curl` loads
# libp11-kit, whose constructor makes the first allocation of the process in
# newlocale().  ASan's first malloc() calls dlerror(), which translates its
# message and so takes and releases the lock that newlocale() holds; the next
# setlocale() waits for ever.
make_flavour_venv() {
    local venv=$1 runtime=$2 site base
    rm -rf "$venv"
    "$TOOLS/bin/python" -m venv --without-pip "$venv"
    site=$(echo "$venv"/lib/python3.*/site-packages)
    echo "$TOOLS"/lib/python3.*/site-packages >"$site/shared.pth"
    if [ -n "$runtime" ]; then
        echo 'import os; os.environ.pop("LD_PRELOAD", None)' \
            >>"$site/shared.pth"
        base=$(readlink -f "$venv/bin/python")
        rm "$venv/bin/python"
        printf '#!/bin/bash\nLD_PRELOAD=%s exec -a "$0" %s "$@"\n' \
            "$runtime" "$base" >"$venv/bin/python"
        chmod +x "$venv/bin/python"
    else
        echo 'import coverage; coverage.process_startup()' \
            >>"$site/shared.pth"
    fi
    touch "$venv/ready"
}

c_build() {
    local flavour=$1 runtime
    case "$flavour" in
    gcc) CC=gcc c_setup gcc -Dpython=disabled ;;
    clang) CC=clang c_setup clang -Dpython=enabled ;; # for clang-tidy, too
    asan) # not optimised: built in half the time, and nothing is left out
        runtime=$(clang -print-file-name="libclang_rt.asan-$(uname -m).so")
        CC=clang c_setup_python asan "$runtime" --buildtype=debug \
            -Db_sanitize=address,undefined -Db_lundef=false \
            "-Dc_link_args=['-shared-libasan','-Wl,-rpath,${runtime%/*}']"
        ;;
    tsan) # without its optimiser gcc warns of what cannot be
        CC=gcc c_setup_python tsan "$(gcc -print-file-name=libtsan.so)" \
            --buildtype=debug -Dwerror=false \
            -Db_sanitize=thread -Db_lundef=false
        ;;
    coverage)
        CC=gcc c_setup_python coverage "" --buildtype=debug \
            -Dwerror=false -Db_coverage=true -Dc_args=-fprofile-update=atomic
        ;;
    fuzz)
        CC=clang c_setup fuzz -Dpython=disabled -Db_sanitize=address,undefined \
            -Db_lundef=false -Dfuzz=true -Dtests=false -Dexamples=false
        ;;
    *) die "no such flavour: $flavour" ;;
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
    export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
    # TSan sees neither UCX's own accesses nor the locks between them; ASan's
    # leak checker at times crashes in a process with UCX.
    export VLLM_NIXL_UCX_LIBRARY=none
}

# TSan's shadow memory needs the layout without much randomisation.
fixed_layout() {
    if setarch "$(uname -m)" -R true 2>/dev/null; then
        setarch "$(uname -m)" -R "$@"
    else
        "$@"
    fi
}

# The libucp that C tests use without a sanitizer: that of the wheel in .venv.
find_libucp() {
    local found
    found=$(find "$TOOLS"/lib -path '*/libucx/lib/libucp.so.0' | head -n 1)
    say "${found:-none}"
}

# check_c FLAVOUR: build it with that compiler and run every C test.
check_c() {
    local flavour=$1 run="" multiplier=1
    c_build "$flavour"
    case "$flavour" in
    asan) multiplier=3 && sanitizer_options ;;
    tsan) multiplier=5 run=fixed_layout && sanitizer_options ;;
    *)
        VLLM_NIXL_UCX_LIBRARY=$(find_libucp)
        export VLLM_NIXL_UCX_LIBRARY
        ;;
    esac
    PATH="$TOOLS/bin:$PATH" $run "$TOOLS/bin/meson" test -C "$WORK/$flavour" \
        --no-rebuild --print-errorlogs --timeout-multiplier $multiplier
}

# check_fuzz: every stored input, and then a bounded number of new ones.
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
    [ $count -gt 0 ] || die "no fuzz target was built"
}

# check_library: the C library alone, installed, found by pkg-config, used by
# an example that was compiled against the installed headers.
check_library() {
    local prefix="$WORK/prefix" dir="$WORK/library" program="$WORK/agent_demo"
    rm -rf "$prefix" "$dir"
    meson setup "$dir" "$ROOT" -Dpython=disabled -Dtests=false \
        -Dexamples=false --buildtype=release --prefix="$prefix" \
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

# Each public header stands alone, in C11 and in C++.
each_header_alone() {
    local header
    for header in "$1"/vnx/*.h; do
        cc -std=c11 -Wall -Wextra -Wpedantic -Werror -fsyntax-only \
            -I "$1" -include "$header" -x c /dev/null
        c++ -std=c++17 -Wall -Wextra -Wpedantic -Werror -fsyntax-only \
            -I "$1" -include "$header" -x c++ /dev/null
    done
    echo "headers stand alone in C and C++"
}

# The library shows vnx_ names and no others.
only_our_names() {
    local strange
    strange=$(nm -D --defined-only "$1" | awk '$2 ~ /[A-Z]/ { print $3 }' |
        grep -v -E '^(vnx_|VNX_)' || true)
    [ -z "$strange" ] || die "exported, but not vnx_: $strange"
    echo "exports $(nm -D --defined-only "$1" | grep -c ' T vnx_') functions"
}

c_files() {
    git -C "$ROOT" ls-files --cached --others --exclude-standard -- "$@"
}

check_c_format() {
    cd "$ROOT"
    clang-format --version
    c_files '*.c' '*.h' | xargs clang-format --dry-run -Werror
}

# clang-tidy over what the clang build compiles.
check_c_tidy() {
    CC=clang c_setup clang -Dpython=enabled
    cd "$ROOT"
    c_files 'src/*.c' 'examples/*.c' 'bench/*.c' |
        xargs -P "$(nproc)" -n 4 clang-tidy --quiet -p "$WORK/clang"
}
