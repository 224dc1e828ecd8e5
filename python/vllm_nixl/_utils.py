"""NIXL's `_utils` by name: plain memory, for tests and examples."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_FILL = 0xBA


def _libc() -> Any:
    import ctypes

    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    return libc


def _check_size(size: int) -> None:
    if size < 0:
        raise ValueError(f"the size must be at least 0, not {size}")


def malloc_passthru(size: int) -> int:
    """Allocate `size` bytes and return their address."""
    _check_size(size)
    address: int | None = _libc().malloc(size)
    if address is None:
        raise MemoryError(f"malloc of {size} bytes")
    return address


def free_passthru(address: int) -> None:
    """Free memory returned by malloc_passthru()."""
    _libc().free(address)


def ba_buf(address: int, size: int) -> None:
    """Fill memory with 0xBA."""
    import ctypes

    _check_size(size)
    ctypes.memset(address, _FILL, size)


def verify_transfer(left: int, right: int, size: int) -> None:
    """Raise AssertionError unless two memory ranges have equal contents."""
    import ctypes

    _check_size(size)
    ours, theirs = (ctypes.string_at(at, size) for at in (left, right))
    if ours == theirs:
        return
    index = next(i for i in range(size) if ours[i] != theirs[i])
    raise AssertionError(
        f"byte {index} of {size} differs: "
        f"{ours[index]:#04x} and {theirs[index]:#04x}"
    )
