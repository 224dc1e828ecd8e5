"""The driver's functions, by ctypes: libcuda.so.1, or what
VLLM_NIXL_CUDA_LIBRARY names.

Everything is on GPU 0, in its primary context, as in programs that use the
runtime.  The thread that creates a Gpu has the context; other threads have it
inside `with gpu.current()`.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of cuda.h.
NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
CAPTURE_GLOBAL = 0  # CU_STREAM_CAPTURE_MODE_GLOBAL
BUFFER_ID = 7  # CU_POINTER_ATTRIBUTE_BUFFER_ID
PINNED, DEVICE, READ_WRITE = 1, 1, 3  # of CUmemAllocationProp, CUmemAccessDesc
POSIX_FD = 1  # CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
RDMA = 110  # ..._ATTRIBUTE_GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED

# Copies one row of {source, destination, bytes}, eight bytes at a time.  The
# fake libcuda runs kernels of this name.
KERNEL = b"""
.version 7.0
.target sm_70
.address_size 64
.visible .entry copy_rows(.param .u64 table, .param .u32 count)
{
  .reg .pred end;
  .reg .b32 a, b, c;
  .reg .b64 row, src, dst, len, at, step, from, to, word;
  ld.param.u64 row, [table];
  ld.global.u64 src, [row];
  ld.global.u64 dst, [row+8];
  ld.global.u64 len, [row+16];
  mov.u32 a, %ctaid.x;
  mov.u32 b, %ntid.x;
  mov.u32 c, %tid.x;
  mad.lo.u32 c, a, b, c;
  mul.wide.u32 at, c, 8;
  mov.u32 a, %nctaid.x;
  mul.lo.u32 a, a, b;
  mul.wide.u32 step, a, 8;
NEXT:
  setp.ge.u64 end, at, len;
  @end bra DONE;
  add.u64 from, src, at;
  add.u64 to, dst, at;
  ld.global.u64 word, [from];
  st.global.u64 [to], word;
  add.u64 at, at, step;
  bra NEXT;
DONE:
  ret;
}
"""


class DriverError(Exception):
    """A function of the driver has failed."""

    def __init__(self, function: str, code: int, name: str) -> None:
        super().__init__(f"{function}: {name} ({code})")
        self.code = code


class Location(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("id", ctypes.c_int))


class AllocationFlags(ctypes.Structure):
    _fields_ = (
        ("compression", ctypes.c_ubyte),
        ("gpu_direct_rdma_capable", ctypes.c_ubyte),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 4),
    )


class AllocationProp(ctypes.Structure):
    """CUmemAllocationProp."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", Location),
        ("win32", ctypes.c_void_p),
        ("flags", AllocationFlags),
    )


class AccessDesc(ctypes.Structure):
    """CUmemAccessDesc."""

    _fields_ = (("location", Location), ("flags", ctypes.c_int))


class PoolProps(ctypes.Structure):
    """CUmemPoolProps."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("handle_types", ctypes.c_int),
        ("location", Location),
        ("win32", ctypes.c_void_p),
        ("max_size", ctypes.c_size_t),
        ("usage", ctypes.c_ushort),
        ("reserved", ctypes.c_ubyte * 54),
    )


class IpcHandle(ctypes.Structure):
    """CUipcMemHandle, which functions take by value."""

    _fields_ = (("bytes", ctypes.c_ubyte * 64),)


def load() -> ctypes.CDLL:
    name = os.environ.get("VLLM_NIXL_CUDA_LIBRARY") or "libcuda.so.1"
    return ctypes.CDLL(name)


def is_fake(library: ctypes.CDLL) -> bool:
    """Whether it is that of the tests."""
    return hasattr(library, "fake_cuda")


def _argument(value: Any) -> Any:
    """Integers are 64 bits wide: the callee takes the bits that it needs."""
    return ctypes.c_uint64(value) if isinstance(value, int) else value


class Gpu:
    """GPU 0.  ctypes releases the GIL during every call."""

    def __init__(self) -> None:
        self.library = load()
        self.call("cuInit", 0)
        self.context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(self.context), 0)
        self.call("cuCtxSetCurrent", self.context)

    def call(self, function: str, *arguments: Any) -> None:
        code = getattr(self.library, function)(*map(_argument, arguments))
        if code != 0:
            raise DriverError(function, code, self._error_name(code))

    def _error_name(self, code: int) -> str:
        name = ctypes.c_char_p()
        self.library.cuGetErrorName(code, ctypes.byref(name))
        return name.value.decode() if name.value else "unknown error"

    def number(self, function: str, *arguments: Any) -> int:
        """Call a function whose first parameter is a number that it writes."""
        value = ctypes.c_uint64()
        self.call(function, ctypes.byref(value), *arguments)
        return value.value

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """The context, on any thread."""
        self.call("cuCtxPushCurrent_v2", self.context)
        try:
            yield
        finally:
            self.call("cuCtxPopCurrent_v2", None)

    # -- Facts ----------------------------------------------------------------

    def device_count(self) -> int:
        return self.number("cuDeviceGetCount")

    def name(self, device: int = 0) -> str:
        text = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", text, len(text), device)
        return text.value.decode()

    def attribute(self, attribute: int, device: int = 0) -> int:
        return self.number("cuDeviceGetAttribute", attribute, device)

    def memory_info(self) -> tuple[int, int]:
        """Free and total bytes."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self.call("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def buffer_id(self, address: int) -> int:
        attribute = ctypes.c_int(BUFFER_ID)
        value = ctypes.c_uint64()
        place = ctypes.c_void_p(ctypes.addressof(value))
        self.call(
            "cuPointerGetAttributes",
            1,
            ctypes.byref(attribute),
            ctypes.byref(place),
            address,
        )
        return value.value

    # -- Memory ---------------------------------------------------------------

    def alloc(self, size: int) -> int:
        return self.number("cuMemAlloc_v2", size)

    def free(self, address: int) -> None:
        self.call("cuMemFree_v2", address)

    def write(self, address: int, data: bytes) -> None:
        self.call("cuMemcpyHtoD_v2", address, data, len(data))

    def read(self, address: int, size: int) -> bytes:
        data = ctypes.create_string_buffer(size)
        self.call("cuMemcpyDtoH_v2", data, address, size)
        return data.raw

    def paint(self, address: int, value: int, size: int) -> None:
        """Set every byte, and wait for that."""
        self.call("cuMemsetD8Async", address, value, size, None)
        self.synchronize()

    def synchronize(self) -> None:
        self.call("cuCtxSynchronize")

    # -- Work -----------------------------------------------------------------

    @functools.cached_property
    def stream(self) -> ctypes.c_void_p:
        """One that waits for no other."""
        stream = ctypes.c_void_p()
        self.call(
            "cuStreamCreateWithPriority",
            ctypes.byref(stream),
            NON_BLOCKING,
            0,
        )
        return stream

    def wait_for_stream(self) -> None:
        self.call("cuStreamSynchronize", self.stream)

    def copy(self, to: int, source: int, size: int) -> None:
        """Between places of the GPU, by a copy engine."""
        self.call("cuMemcpyDtoDAsync_v2", to, source, size, self.stream)

    @functools.cached_property
    def kernel(self) -> ctypes.c_void_p:
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.call(
            "cuModuleLoadDataEx", ctypes.byref(module), KERNEL, 0, None, None
        )
        self.call(
            "cuModuleGetFunction", ctypes.byref(function), module, b"copy_rows"
        )
        return function

    def launch(self, table: int) -> None:
        """Copy the row that is at this address."""
        parameters = (ctypes.c_void_p * 2)()
        row, count = ctypes.c_uint64(table), ctypes.c_uint32(1)
        parameters[0] = ctypes.addressof(row)
        parameters[1] = ctypes.addressof(count)
        shape = (32, 1, 1, 256, 1, 1)
        self.call(
            "cuLaunchKernel",
            self.kernel,
            *shape,
            0,
            self.stream,
            parameters,
            None,
        )
