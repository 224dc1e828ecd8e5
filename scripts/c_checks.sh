# Checks of the C library.  Sourced by check.sh.

TOOLS="$ROOT/.venv" # meson and ninja

meson() {
    PATH="$TOOLS/bin:$PATH" "$TOOLS/bin/meson" "$@"
}

# c_setup FLAVOUR OPTIONS...: configure build-tests/FLAVOUR once.
c_setup() {
    local dir="$WORK/$1"
    shift
    if [ ! -f "$dir/build.ninja" ]; then
        rm -rf "$dir"
        meson setup "$dir" "$ROOT" -Dpython=disabled "$@"
    fi
}

c_build() {
    local flavour=$1
    case "$flavour" in
    gcc) CC=gcc c_setup gcc ;;
    clang) CC=clang c_setup clang ;;
    asan) # not optimised: built in half the time, and nothing is left out
        CC=clang c_setup asan --buildtype=debug \
            -Db_sanitize=address,undefined -Db_lundef=false
        ;;
    tsan) # without its optimiser gcc warns of what cannot be
        CC=gcc c_setup tsan --buildtype=debug -Dwerror=false \
            -Db_sanitize=thread -Db_lundef=false
        ;;
    fuzz)
        CC=clang c_setup fuzz -Db_sanitize=address,undefined \
            -Db_lundef=false -Dfuzz=true -Dtests=false -Dexamples=false
        ;;
    *) die "no such flavour: $flavour" ;;
    esac
    meson compile -C "$WORK/$flavour" -j "$(nproc)"
}

sanitizer_options() {
    export ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1
    export UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1
    export TSAN_OPTIONS=halt_on_error=1:second_deadlock_stack=1
}

# TSan's shadow memory needs the layout without much randomisation.
fixed_layout() {
    if setarch "$(uname -m)" -R true 2>/dev/null; then
        setarch "$(uname -m)" -R "$@"
    else
        "$@"
    fi
}

# The libucp that C tests use: that of the wheel in .venv.  Not under TSan,
# which sees neither the library's own accesses nor the locks between them, and
# not under ASan, whose leak checker at times crashes in a process with UCX.
find_libucp() {
    case "$1" in
    gcc | clang)
        find "$ROOT"/.venv/lib -path '*/libucx/lib/libucp.so.0' | head -n 1
        ;;
    esac
}

# check_c FLAVOUR: build it with that compiler and run every C test.
check_c() {
    local flavour=$1 run="" multiplier=1
    c_build "$flavour"
    sanitizer_options
    VLLM_NIXL_UCX_LIBRARY=$(find_libucp "$flavour")
    export VLLM_NIXL_UCX_LIBRARY=${VLLM_NIXL_UCX_LIBRARY:-none}
    case "$flavour" in
    asan) multiplier=3 ;;
    tsan) multiplier=5 run=fixed_layout ;;
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
    CC=clang c_setup clang
    cd "$ROOT"
    c_files 'src/*.c' 'examples/*.c' 'bench/*.c' | grep -v '^src/python/' |
        xargs -P "$(nproc)" -n 4 clang-tidy --quiet -p "$WORK/clang"
}
