"""Raw memory of every kind that a user may register.

With VLLM_NIXL_TEST_MEMORY=gpu, ordinary memory is that of a GPU, which the
fake libcuda plays.
"""

import ctypes
import functools
import mmap
import os
import random
import tempfile
import zlib

from support import cuda

IS_GPU = os.environ.get("VLLM_NIXL_TEST_MEMORY") == "gpu"
# The type of memory that allocate() makes if nothing else is asked for.
MEM = "VRAM" if IS_GPU else "DRAM"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]

READ_WRITE = mmap.PROT_READ | mmap.PROT_WRITE
MAP_FIXED = 0x10
PAGE = mmap.PAGESIZE
# The pattern around registered memory, where nothing may read or write.
CANARY = bytes.fromhex("c0ffee00dead10ccba5eba11facade99")

# How each kind is mapped: (backing store, shared or private).
KINDS = {
    "private": (None, mmap.MAP_PRIVATE),
    "shared-anonymous": (None, mmap.MAP_SHARED),
    "memfd": ("memfd", mmap.MAP_SHARED),
    "memfd-private": ("memfd", mmap.MAP_PRIVATE),
    "dev-shm": ("/dev/shm", mmap.MAP_SHARED),
    "file": ("/var/tmp", mmap.MAP_SHARED),
}


@functools.lru_cache(maxsize=2)  # the same patterns of both sides recur
def pattern(seed, size):
    """`size` bytes, determined by `seed`."""
    return random.Random(seed).randbytes(size)


def _open(place, size):
    if place == "memfd":
        flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
        fd = os.memfd_create("vllm-nixl-test", flags)
    else:
        fd, path = tempfile.mkstemp(dir=place, prefix="vllm-nixl-test-")
        os.unlink(path)
    os.ftruncate(fd, size)
    return fd


class Memory:
    """A mapping that the tests own: address, size, bytes by slices of
    `view`."""

    mem = "DRAM"

    def __init__(self, size, kind="private", offset=0, at=None):
        place, flags = KINDS[kind]
        self.kind, self.size = kind, size
        fd = -1
        if place is None:
            flags |= mmap.MAP_ANONYMOUS
        else:
            fd = _open(place, offset + size)
        if at is not None:
            flags |= MAP_FIXED
        self.addr = _libc.mmap(at, size, READ_WRITE, flags, fd, offset)
        # Peers map the file through an open descriptor.
        self.fd = fd if place == "memfd" else -1
        if fd >= 0 and self.fd < 0:
            os.close(fd)
        if self.addr in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), f"mmap {size} bytes, {kind}")
        self.view = view_of(self.addr, size)

    def fill(self, seed):
        self.view[:] = pattern(seed, self.size)
        return self

    def forget(self):
        """Do not unmap it: something else was mapped in its place."""
        self.view.release()
        self.addr = None
        self.unmap()

    def unmap(self):
        if self.addr is not None:
            self.view.release()
            _libc.munmap(self.addr, self.size)
            self.addr = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class GpuView:
    """GPU memory by slices, which the CPU cannot touch."""

    def __init__(self, addr, size):
        self.addr, self.size = addr, size

    def __len__(self):
        return self.size

    def __getitem__(self, part):
        start, stop, step = part.indices(self.size)
        assert step == 1
        return cuda.start().read(self.addr + start, max(0, stop - start))

    def __setitem__(self, part, data):
        start, stop, step = part.indices(self.size)
        assert (step, stop - start) == (1, len(data))
        cuda.start().write(self.addr + start, data)


class GpuMemory:
    """Memory of GPU 0."""

    kind, mem = "gpu", "VRAM"

    def __init__(self, size):
        self.size, self.addr = size, cuda.start().alloc(size)
        self.view = GpuView(self.addr, size)

    def fill(self, seed):
        self.view[:] = pattern(seed, self.size)
        return self

    def unmap(self):
        cuda.start().free(self.addr)


class Exported:
    """Memory exported by an object through the buffer protocol."""

    mem = "DRAM"

    def __init__(self, owner, kind):
        self.owner, self.kind = owner, kind
        self.view = memoryview(owner).cast("B")
        self.size = self.view.nbytes
        self.addr = address_of(self.view)

    fill = Memory.fill

    def unmap(self):
        self.view.release()
        self.owner = None


def view_of(addr, size):
    """The bytes at an address."""
    array = (ctypes.c_ubyte * size).from_address(addr)
    return memoryview(array).cast("B")


def address_of(view):
    """The address of a writable buffer's first byte."""
    return ctypes.addressof(ctypes.c_ubyte.from_buffer(view))


def checksum(view):
    return zlib.crc32(view[:])


def is_canary(view):
    return bytes(view) == CANARY * (len(view) // len(CANARY))


def allocate(size, kind="private", api=None):
    """Memory of a kind: one of KINDS, "shared-buffer" or "numpy"."""
    if kind == "shared-buffer":
        return Exported(api.shared_buffer(size), kind)
    if kind == "bytearray":
        return Exported(bytearray(size), kind)
    if kind == "numpy":
        import numpy

        return Exported(numpy.zeros(size, numpy.uint8), kind)
    if IS_GPU and kind == "private":
        return GpuMemory(size)
    return Memory(size, kind)
