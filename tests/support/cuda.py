"""The fake libcuda of the C tests, as a client of CUDA sees it.

A program that wants GPU memory calls `start()` before it creates agents.
"""

import ctypes
import functools
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILDS = ("gcc", "clang")


@functools.cache
def library():
    """The path of the fake libcuda, or None if it was not built."""
    paths = (
        ROOT / "build-tests" / build / "tests/c/libfake_cuda.so"
        for build in BUILDS
    )
    return next((str(path) for path in paths if path.exists()), None)


def why_not():
    """Why no program can have GPU memory, or None."""
    if library() is None:
        return "the fake libcuda is not built: scripts/check.sh c gcc"
    return None


class Gpu:
    """The driver with the primary context of GPU 0."""

    def __init__(self):
        os.environ["VLLM_NIXL_CUDA_LIBRARY"] = library()
        self.cuda = ctypes.CDLL(library())
        assert self.cuda.cuInit(0) == 0
        self.context = ctypes.c_void_p()
        self.retain(ctypes.byref(self.context), 0)

    def retain(self, *args):
        assert self.cuda.cuDevicePrimaryCtxRetain(*args) == 0

    def call(self, name, *args):
        """Any thread: the context is current during the call only."""
        self.cuda.cuCtxPushCurrent_v2(self.context)
        result = getattr(self.cuda, name)(*args)
        self.cuda.cuCtxPopCurrent_v2(None)
        if result != 0:
            raise OSError(f"{name}: {result}")

    def alloc(self, size):
        """VLLM_NIXL_TEST_GPU=managed: memory that has no handles."""
        address = ctypes.c_uint64()
        place, size = ctypes.byref(address), ctypes.c_size_t(size)
        if os.environ.get("VLLM_NIXL_TEST_GPU") == "managed":
            self.call("cuMemAllocManaged", place, size, ctypes.c_uint(1))
        else:
            self.call("cuMemAlloc_v2", place, size)
        return address.value

    def free(self, address):
        self.call("cuMemFree_v2", ctypes.c_uint64(address))

    def write(self, address, data):
        self.call(
            "cuMemcpyHtoD_v2",
            ctypes.c_uint64(address),
            bytes(data),
            ctypes.c_size_t(len(data)),
        )

    def read(self, address, size):
        data = ctypes.create_string_buffer(size)
        self.call(
            "cuMemcpyDtoH_v2",
            data,
            ctypes.c_uint64(address),
            ctypes.c_size_t(size),
        )
        return data.raw


@functools.cache
def start():
    return Gpu()
