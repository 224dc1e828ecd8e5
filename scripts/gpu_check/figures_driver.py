"""What the driver's own calls cost, which the engine is made of.  Each figure
has the time that ctypes takes, which the first row shows."""

from __future__ import annotations

import ctypes
import mmap
import time
from typing import TYPE_CHECKING

from .driver import DriverError, Gpu
from .memory import MIB, Pinned
from .report import Figures, Options, Row

if TYPE_CHECKING:
    from collections.abc import Iterator

SIZE = 4096
DISABLE_TIMING = 2  # CU_EVENT_DISABLE_TIMING
clock = time.perf_counter


def rows(options: Options) -> list[Row]:
    texts = {
        "empty": "cuDriverGetVersion()",
        "copy": "cuMemcpyDtoDAsync() of 4 KiB",
        "batch": "cuMemcpyBatchAsync(), a row of 4 KiB",
        "event": "cuEventRecord() until cuEventQuery()",
        "value": "cuStreamWriteValue32() until the CPU sees it",
        "function": "cuLaunchHostFunc() until a thread is woken",
    }
    found = [
        Row(name, text, "us", False, side="floor")
        for name, text in texts.items()
    ]
    pin = "cuMemHostRegister(), a GiB"
    return [*found, Row("pin", pin, "ms", False, side="floor")]


class Copies:
    """4 KiB blocks to copy, and a stream."""

    def __init__(self, count: int) -> None:
        self.gpu, self.count = Gpu(), count
        self.to = self.gpu.alloc(count * SIZE)
        self.source = self.gpu.alloc(count * SIZE)

    def empty(self) -> float:
        started = clock()
        for _ in range(self.count):
            self.gpu.number("cuDriverGetVersion")
        return (clock() - started) / self.count

    def copy(self) -> float:
        started = clock()
        for i in range(self.count):
            offset = i * SIZE
            self.gpu.copy(self.to + offset, self.source + offset, SIZE)
        spent = clock() - started
        self.gpu.wait_for_stream()
        return spent / self.count

    def batch(self) -> float:
        array = ctypes.c_uint64 * self.count
        offsets = range(0, self.count * SIZE, SIZE)
        # CUmemcpyAttributes: in the order of the stream, the rest is 0.
        attributes = (ctypes.c_int * 6)(1)
        first, failed = ctypes.c_size_t(0), ctypes.c_size_t()
        arguments = (
            array(*(self.to + offset for offset in offsets)),
            array(*(self.source + offset for offset in offsets)),
            array(*([SIZE] * self.count)),
            self.count,
            attributes,
            ctypes.byref(first),
            1,
            ctypes.byref(failed),
            self.gpu.stream,
        )
        started = clock()
        self.gpu.call("cuMemcpyBatchAsync", *arguments)
        spent = clock() - started
        self.gpu.wait_for_stream()
        return spent / self.count

    def event(self) -> float:
        event = ctypes.c_void_p()
        self.gpu.call("cuEventCreate", ctypes.byref(event), DISABLE_TIMING)
        started = clock()
        self.gpu.call("cuEventRecord", event, self.gpu.stream)
        while not self._has_fired(event):
            pass
        spent = clock() - started
        self.gpu.call("cuEventDestroy_v2", event)
        return spent

    def _has_fired(self, event: ctypes.c_void_p) -> bool:
        try:
            self.gpu.call("cuEventQuery", event)
        except DriverError as error:
            if error.code != 600:  # CUDA_ERROR_NOT_READY
                raise
            return False
        return True

    def value(self) -> float:
        memory = Pinned(self.gpu, SIZE)
        place = ctypes.c_uint32.from_address(memory.address)
        address = self.gpu.number(
            "cuMemHostGetDevicePointer_v2", memory.address, 0
        )
        place.value = 0
        started = clock()
        self.gpu.call(
            "cuStreamWriteValue32_v2", self.gpu.stream, address, 1, 0
        )
        while place.value != 1:
            pass
        spent = clock() - started
        memory.free()
        return spent

    def function(self) -> float:
        """The function is sem_post(): it must not be one of Python."""
        libc = ctypes.CDLL(None)
        semaphore = ctypes.create_string_buffer(64)
        libc.sem_init(semaphore, 0, 0)
        started = clock()
        self.gpu.call(
            "cuLaunchHostFunc", self.gpu.stream, libc.sem_post, semaphore
        )
        libc.sem_wait(semaphore)
        return clock() - started

    def pin(self, size: int) -> float:
        pages = mmap.mmap(
            -1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        )
        for offset in range(0, size, mmap.PAGESIZE):
            pages[offset] = 1
        view = (ctypes.c_char * size).from_buffer(pages)
        address = ctypes.addressof(view)
        started = clock()
        self.gpu.call("cuMemHostRegister_v2", address, size, 3)
        spent = clock() - started
        self.gpu.call("cuMemHostUnregister", address)
        del view
        pages.close()
        return spent * (1 << 30) / size


def measure(options: Options) -> Iterator[tuple[str, Figures, str]]:
    copies = Copies(options.pick(1000, 50))
    for name, times in (
        ("empty", 5),
        ("copy", 5),
        ("batch", 5),
        ("event", options.pick(200, 5)),
        ("value", options.pick(200, 5)),
        ("function", options.pick(200, 5)),
    ):
        function = getattr(copies, name)
        best = min(function() for _ in range(times))
        yield name, {"floor": best * 1e6}, ""
    size = options.pick(1024, 8) * MIB
    yield "pin", {"floor": copies.pin(size) * 1e3}, ""
