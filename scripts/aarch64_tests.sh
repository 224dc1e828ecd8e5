#!/bin/bash
# Run inside the emulated machine by aarch64_checks.sh:
#   aarch64_tests.sh SITE-PACKAGES PYTHON-TESTS...
status=0
uname -srm
VLLM_NIXL_UCX_LIBRARY="$1/libucx/lib/libucp.so.0" PYTHONPATH=/opt \
    python3 -m mesonbuild.mesonmain test -C build-tests/aarch64 --no-rebuild \
    --print-errorlogs --timeout-multiplier "$VLLM_NIXL_TEST_SLOWDOWN" ||
    status=1
shift
python3 -m pytest -ra -q -p no:cacheprovider -m "not slow" "$@" || status=1
exit $status
