"""The exporter BUFFER: a file for each agent that telemetry_reader reads.

Format (NIXL 1.5, version 4), in the machine's byte order: a header of 40
bytes, then `capacity` events of 16 bytes, which are a byte with the number of
the event, 7 bytes of padding, and the value (u64).  The header is write_pos
and read_pos (u64), the version twice (u32), capacity and capacity - 1 (u64).
The writer adds events at write_pos, the one reader takes them at read_pos;
the ring is full when one more event would make the two equal.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from .files import map_file
from .values import EVENT_COUNT

if TYPE_CHECKING:
    from .values import Snapshot

VERSION = 4
_HEADER = struct.Struct("=QQIIQQ")
_EVENT = struct.Struct("=B7xQ")
_POSITIONS = struct.Struct("=QQ")
_WRITE_POS = struct.Struct("=Q")


class Ring:
    """Writes the growth of an agent's counters as events.

    NIXL writes events for each operation; these sum up all operations since
    the last write.  Where the reader is behind, the growth waits for room, so
    the sums that a reader makes are right whenever it comes.
    """

    def __init__(self, path: str, capacity: int) -> None:
        fd = os.open(
            path,
            os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW,
            0o644,
        )
        try:
            self._map = map_file(fd, _HEADER.size + _EVENT.size * capacity)
        finally:
            os.close(fd)
        self._capacity = capacity
        self._written = [0] * EVENT_COUNT
        _HEADER.pack_into(
            self._map, 0, 0, 0, VERSION, VERSION, capacity, capacity - 1
        )

    def write(self, snapshot: Snapshot) -> None:
        """Add an event for each counter that grew."""
        grown = [
            (number, value - self._written[number])
            for number, value in enumerate(snapshot.counters)
            if value != self._written[number]
        ]
        write, read = _POSITIONS.unpack_from(self._map, 0)
        room = (read - write - 1) % self._capacity
        for number, growth in grown[:room]:
            _EVENT.pack_into(
                self._map, _HEADER.size + _EVENT.size * write, number, growth
            )
            write = (write + 1) % self._capacity
            self._written[number] += growth
        _WRITE_POS.pack_into(self._map, 0, write)

    def forget(self) -> None:
        """Unmap the file."""
        self._map.close()
