#!/usr/bin/env bash
# Make a folder for a machine that has an NVIDIA GPU and no network: its
# gpu_check.sh checks and measures GPU memory there (docs/gpu.md).
#
#   scripts/gpu_pack.sh [VERSION] [FOLDER]
#
# VERSION is that of the Python there, by default that of the Python here; FOLDER
# is by default build-tests/gpu_check-VERSION.  Our wheel comes from dist/, where
# scripts/build_wheels.sh makes it if it is missing or older than the sources;
# pip downloads stock NIXL and numpy.  For x86-64.
set -euo pipefail
. "$(dirname "$0")/common.sh"

NIXL=1.5.1
SIZE_MAX=$((60 << 20))
CACHE="$WORK/gpu_pack"
PLATFORMS=(manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux2014_x86_64)

# find_wheel VERSION: print the path of our wheel, if there is one.
find_wheel() {
    find "$ROOT/dist" -name "vllm_nixl-*-cp${1/./}-*_x86_64.whl" 2>/dev/null ||
        true
}

# is_older WHEEL: is a source file newer?
is_older() {
    [ -n "$(cd "$ROOT" && find meson.build meson.options pyproject.toml \
        include src python bench/bare -newer "$1" -type f -print -quit)" ]
}

# download VERSION FOLDER: the wheels of others for that Python.
download() {
    local platforms=() platform log
    for platform in "${PLATFORMS[@]}"; do
        platforms+=(--platform "$platform")
    done
    log=$(mktemp)
    "$PYTHON" -m pip download -q --no-deps --only-binary=:all: \
        --python-version "$1" --implementation cp "${platforms[@]}" -d "$2" \
        "nixl==$NIXL" "nixl-cu12==$NIXL" numpy nvidia-cuda-runtime-cu12 \
        >"$log" 2>&1 || {
        without_urls <"$log" >&2
        die "pip cannot download what the folder needs"
    }
    rm -f "$log"
}

PYTHON=$(find_python) || die "no suitable Python was found"
VERSION=${1:-$(python_probe "$PYTHON" | cut -d' ' -f1)}
case "$VERSION" in
3.1[0-4]) ;;
*) die "usage: gpu_pack.sh [3.10 ... 3.14] [FOLDER]" ;;
esac
FOLDER=${2:-$WORK/gpu_check-$VERSION}
WHEELS="$CACHE/wheels-$VERSION" SITE="$CACHE/site-$VERSION"

[ ! -e "$FOLDER" ] || [ -f "$FOLDER/site.tar.gz" ] || die "$FOLDER exists"

wheel=$(find_wheel "$VERSION")
if [ -z "$wheel" ] || is_older "$wheel"; then
    "$ROOT/scripts/build_wheels.sh" x86_64 "$VERSION"
    wheel=$(find_wheel "$VERSION")
fi
rm -rf "$WHEELS" "$SITE" "$FOLDER"
mkdir -p "$WHEELS" "$SITE" "$FOLDER"
download "$VERSION" "$WHEELS"
for file in "$wheel" "$WHEELS"/*.whl; do
    "$PYTHON" -m zipfile -e "$file" "$SITE"
    say "  $(basename "$file")"
done
"$PYTHON" "$ROOT/scripts/gpu_strip.py" "$SITE"
tar -czf "$FOLDER/site.tar.gz" -C "$SITE" .
say "$VERSION" >"$FOLDER/python"
cp "$ROOT/scripts/gpu_check.sh" "$FOLDER"
mkdir "$FOLDER/gpu_check"
cp "$ROOT"/scripts/gpu_check/*.py "$FOLDER/gpu_check"

size=$(du -sb "$FOLDER" | cut -f1)
say "$FOLDER: $((size >> 20)) MiB"
[ "$size" -le $SIZE_MAX ] || die "the limit is $((SIZE_MAX >> 20)) MiB"
