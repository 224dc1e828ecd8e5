"""A reader of msgpack, for the handshake of vLLM's connector.

The package has no dependencies, and needs this for one message alone.
"""

from __future__ import annotations

import struct
from typing import Any

from .wire import Reader, WireError

_DEPTH = 16
# First byte to (struct of the length, or of the number).
_BYTES = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I"}
_TEXTS = {0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
_ARRAYS = {0xDC: ">H", 0xDD: ">I"}
_MAPS = {0xDE: ">H", 0xDF: ">I"}
_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_WORDS = {0xC0: None, 0xC2: False, 0xC3: True}


def loads(data: bytes) -> Any:
    """The value in these bytes; WireError if there is anything else."""
    reader = Reader(data)
    value = _value(reader, 0)
    if reader.at != len(data):
        raise WireError(f"byte {reader.at}: more after the value")
    return value


def _number(reader: Reader, form: str) -> Any:
    (value,) = reader.unpack(struct.Struct(form))
    return value


def _value(reader: Reader, depth: int) -> Any:
    if depth > _DEPTH:
        raise WireError(f"byte {reader.at}: nested too deeply")
    (first,) = reader.take(1)
    if first < 0x80:
        return first
    if first >= 0xE0:
        return first - 256
    if first in _WORDS:
        return _WORDS[first]
    if first in _NUMBERS:
        return _number(reader, _NUMBERS[first])
    if first in _BYTES:
        return reader.take(_number(reader, _BYTES[first]))
    if first & 0xE0 == 0xA0 or first in _TEXTS:
        size = _size(reader, first, 0x1F, _TEXTS)
        return reader.take(size).decode("utf-8", "backslashreplace")
    if first & 0xF0 == 0x90 or first in _ARRAYS:
        size = _size(reader, first, 0x0F, _ARRAYS)
        return [_value(reader, depth + 1) for _ in range(size)]
    if first & 0xF0 == 0x80 or first in _MAPS:
        size = _size(reader, first, 0x0F, _MAPS)
        return _map(reader, size, depth)
    raise WireError(f"byte {reader.at - 1}: no value begins with {first:#x}")


def _size(reader: Reader, first: int, mask: int, forms: dict[int, str]) -> int:
    size: int = _number(reader, forms[first]) if first in forms else 0
    if first not in forms:
        size = first & mask
    if size > len(reader.data) - reader.at:
        raise WireError(f"byte {reader.at}: {size} elements do not fit")
    return size


def _map(reader: Reader, size: int, depth: int) -> dict[Any, Any]:
    found = {}
    for _ in range(size):
        key = _value(reader, depth + 1)
        if not isinstance(key, (str, int)):
            raise WireError(f"byte {reader.at}: a key that is not a text")
        found[key] = _value(reader, depth + 1)
    return found
