"""The kinds of memory that clients of NIXL register."""

from __future__ import annotations

import ctypes
import mmap
import random
from typing import TYPE_CHECKING, Literal

from . import driver

if TYPE_CHECKING:
    from .driver import Gpu

KIB, MIB = 1 << 10, 1 << 20
OPERATIONS = ("READ", "WRITE")


class Memory:
    """Memory of a GPU: `size` bytes at `address`."""

    type: Literal["VRAM", "DRAM"] = "VRAM"
    address: int

    def __init__(self, gpu: Gpu, size: int) -> None:
        self.gpu, self.size = gpu, size
        self.allocate()

    def allocate(self) -> None:
        raise NotImplementedError

    def free(self) -> None:
        raise NotImplementedError

    def write(self, data: bytes) -> None:
        self.gpu.write(self.address, data)

    def read(self) -> bytes:
        return self.gpu.read(self.address, self.size)


class Malloc(Memory):
    """cudaMalloc(), and so PyTorch's allocator by default."""

    def allocate(self) -> None:
        self.address = self.gpu.alloc(self.size)

    def free(self) -> None:
        self.gpu.free(self.address)


class Mapped(Memory):
    """cuMemCreate(), mapped at addresses that stay the same while the memory
    comes and goes."""

    chunk = 2 * MIB
    handle_types = driver.POSIX_FD

    def allocate(self) -> None:
        self.chunk = min(self.chunk, self.size)
        self.address = self.gpu.number(
            "cuMemAddressReserve", self.size, 0, 0, 0
        )
        self.wake()

    def properties(self) -> driver.AllocationProp:
        found = driver.AllocationProp(
            type=driver.PINNED, handle_types=self.handle_types
        )
        found.location.type = driver.DEVICE
        # As PyTorch and vLLM do.
        found.flags.gpu_direct_rdma_capable = self.gpu.attribute(driver.RDMA)
        return found

    def map_handle(self, address: int, handle: int) -> None:
        """The handle itself is not needed any more."""
        self.gpu.call("cuMemMap", address, self.chunk, 0, handle, 0)
        self.gpu.call("cuMemRelease", handle)

    def allow_access(self, address: int) -> None:
        access = driver.AccessDesc(flags=driver.READ_WRITE)
        access.location.type = driver.DEVICE
        self.gpu.call(
            "cuMemSetAccess", address, self.size, ctypes.byref(access), 1
        )

    def wake(self) -> None:
        properties = self.properties()
        for offset in range(0, self.size, self.chunk):
            handle = self.gpu.number(
                "cuMemCreate", self.chunk, ctypes.byref(properties), 0
            )
            self.map_handle(self.address + offset, handle)
        self.allow_access(self.address)

    def sleep(self) -> None:
        self.gpu.synchronize()
        self.gpu.call("cuMemUnmap", self.address, self.size)

    def free(self) -> None:
        self.sleep()
        self.gpu.call("cuMemAddressFree", self.address, self.size)


class Expandable(Mapped):
    """PyTorch's expandable_segments."""

    chunk = 20 * MIB


class Cumem(Mapped):
    """vLLM's sleep mode: one cuMemCreate() for each segment."""

    chunk = 1 << 62


class Unshared(Cumem):
    """As SGLang's memory saver: without a handle for others."""

    handle_types = 0


class DefaultPool(Memory):
    """cudaMallocAsync()."""

    def allocate(self) -> None:
        self.address = self.gpu.number(
            "cuMemAllocAsync", self.size, self.gpu.stream
        )
        self.gpu.wait_for_stream()

    def free(self) -> None:
        self.gpu.call("cuMemFreeAsync", self.address, self.gpu.stream)
        self.gpu.wait_for_stream()


class Pool(DefaultPool):
    """A pool whose memory can be exported."""

    def allocate(self) -> None:
        properties = driver.PoolProps(
            type=driver.PINNED, handle_types=driver.POSIX_FD
        )
        properties.location.type = driver.DEVICE
        self.pool = ctypes.c_void_p()
        self.gpu.call(
            "cuMemPoolCreate",
            ctypes.byref(self.pool),
            ctypes.byref(properties),
        )
        self.address = self.gpu.number(
            "cuMemAllocFromPoolAsync", self.size, self.pool, self.gpu.stream
        )
        self.gpu.wait_for_stream()

    def free(self) -> None:
        super().free()
        self.gpu.call("cuMemPoolDestroy", self.pool)


class Managed(Memory):
    """cudaMallocManaged()."""

    def allocate(self) -> None:
        attach_global = 1
        self.address = self.gpu.number(
            "cuMemAllocManaged", self.size, attach_global
        )

    def free(self) -> None:
        self.gpu.free(self.address)


class Pageable(Memory):
    """Ordinary memory of the CPU."""

    type = "DRAM"

    def allocate(self) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self.pages = mmap.mmap(-1, self.size, flags=flags)
        # Without a view of it, which would keep it from being closed.
        array = (ctypes.c_char * self.size).from_buffer(self.pages)
        self.address = ctypes.addressof(array)

    def free(self) -> None:
        self.pages.close()

    def write(self, data: bytes) -> None:
        self.pages[: len(data)] = data

    def read(self) -> bytes:
        return self.pages[:]


class Pinned(Pageable):
    """Memory of the CPU that the GPU reaches (cudaHostRegister())."""

    def allocate(self) -> None:
        super().allocate()
        self.gpu.call("cuMemHostRegister_v2", self.address, self.size, 3)

    def free(self) -> None:
        self.gpu.call("cuMemHostUnregister", self.address)
        super().free()


class Tensor(Memory):
    """Of PyTorch, with a neighbour on each side."""

    def allocate(self) -> None:
        import torch

        self.tensors = [
            torch.empty(self.size, dtype=torch.uint8, device="cuda:0")
            for _ in range(3)
        ]
        self.address = self.tensors[1].data_ptr()

    def free(self) -> None:
        import torch

        self.tensors.clear()
        torch.cuda.empty_cache()


KINDS: dict[str, type[Memory]] = {
    "cudaMalloc": Malloc,
    "expandable, 20 MiB": Expandable,
    "expandable, 2 MiB": Mapped,
    "cumem": Cumem,
    "cumem without handles": Unshared,
    "cudaMallocAsync": DefaultPool,
    "pool": Pool,
    "managed": Managed,
    "pinned": Pinned,
    "pageable": Pageable,
}
# The size of chunks matters to those only that map them.
OWN = [kind for kind in KINDS if kind != "expandable, 20 MiB"]
TORCH = {"torch": Tensor}  # where that is installed
# Which no other process can map: its owner copies it.
UNSHARED = ("cumem without handles", "cudaMallocAsync", "pool", "managed")
CPU_KINDS = ("pinned", "pageable")


def pattern(seed: int, size: int) -> bytes:
    """Bytes that differ from those of any other seed.  They repeat at a prime
    distance, so what is at a wrong place differs."""
    block = random.Random(seed).randbytes(min(size, 1_000_003))
    return (block * (size // len(block) + 1))[:size]
