"""Test rows: memory with known bytes, published with their checksum.

`vllm-nixl serve` publishes them and `vllm-nixl doctor HOST:PORT` verifies
them.  The name of the list has the checksum, so that a client gets both in one
exchange: "test-rows sha256=..." over all rows in their order.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .. import NixlAgent

_PREFIX = "test-rows sha256="
BYTES_MAX = 1 << 20  # of all rows: as many as a client reads to verify


class KnownRows:
    """Rows of random bytes, registered with an agent and kept alive here."""

    def __init__(self, agent: NixlAgent, count: int, size: int) -> None:
        data = os.urandom(count * size)
        self.memory = bytearray(data)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        agent.register_memory([(start, len(data), 0, "")], "DRAM")
        self.rows = [(start + i * size, size, 0) for i in range(count)]
        self.name = _PREFIX + hashlib.sha256(data).hexdigest()


def is_test(name: str) -> bool:
    """Whether a list of that name has test rows."""
    return name.startswith(_PREFIX)


def is_right(name: str, data: bytes) -> bool:
    """Whether these are the bytes of the test rows of that name."""
    return name == _PREFIX + hashlib.sha256(data).hexdigest()
