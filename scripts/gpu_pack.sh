#!/usr/bin/env bash
# Make a folder for a machine that has an NVIDIA GPU and no network: its
# gpu_check.sh checks and measures GPU memory there (docs/gpu.md).
#
#   scripts/gpu_pack.sh [VERSION] [FOLDER]
#
# VERSION is that of the Python there, 3.10 to 3.14; without it, that of the
# Python here.  FOLDER is build-tests/gpu_check-VERSION otherwise.  It takes our wheel from
# dist/, or builds it if it is older than the sources (scripts/build_wheels.sh),
# and downloads stock NIXL and numpy with pip.  For x86-64.
set -euo pipefail
. "$(dirname "$0")/common.sh"

NIXL=1.5.1
SIZE_MAX=$((60 << 20))
CACHE="$WORK/gpu_pack"
PLATFORMS=(manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux2014_x86_64)

# our_wheel VERSION: print the path of our wheel, which is not older than the sources.
our_wheel() {
    local wheel newer
    wheel=$(find "$ROOT/dist" -name "vllm_nixl-*-cp${1/./}-*_x86_64.whl" \
        2>/dev/null | head -n 1)
    newer=$wheel
    if [ -n "$wheel" ]; then
        newer=$(cd "$ROOT" && find meson.build meson.options pyproject.toml \
            include src python bench/bare -newer "$wheel" -type f \
            -not -name '*.pyc' | head -n 1)
    fi
    if [ -z "$wheel" ] || [ -n "$newer" ]; then
        "$ROOT/scripts/build_wheels.sh" x86_64 "$1" >&2
        wheel=$(find "$ROOT/dist" -name "vllm_nixl-*-cp${1/./}-*_x86_64.whl")
    fi
    say "$wheel"
}

# download VERSION FOLDER: the wheels of others for that Python.
download() {
    local platforms=() platform
    for platform in "${PLATFORMS[@]}"; do
        platforms+=(--platform "$platform")
    done
    "$PYTHON" -m pip download -q --no-deps --only-binary=:all: \
        --python-version "$1" --implementation cp "${platforms[@]}" -d "$2" \
        "nixl==$NIXL" "nixl-cu12==$NIXL" numpy nvidia-cuda-runtime-cu12 \
        2>&1 | without_urls >&2
}

PYTHON=$(find_python) || die "no suitable Python was found"
VERSION=${1:-$(python_probe "$PYTHON" | cut -d' ' -f1)}
case "$VERSION" in
3.1[0-4]) ;;
*) die "usage: gpu_pack.sh [3.10 ... 3.14] [FOLDER]" ;;
esac
FOLDER=${2:-$WORK/gpu_check-$VERSION}
WHEELS="$CACHE/wheels-$VERSION" SITE="$CACHE/site-$VERSION"

wheel=$(our_wheel "$VERSION")
mkdir -p "$WHEELS"
download "$VERSION" "$WHEELS"
rm -rf "$SITE" "$FOLDER"
mkdir -p "$SITE" "$FOLDER"
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
