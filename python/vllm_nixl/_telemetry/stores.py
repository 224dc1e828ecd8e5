"""The exporter prometheus_mp: a file for each agent of each process.

One process of those that share the folder serves the values of all of them.
It may be a process with NIXL itself, and so may the others.

Format (NIXL 1.5, schema 1), in the machine's byte order: the header below,
32 bounds of histograms (double), then arrays of u64 indexed by the number of
the event: counters, gauges, for each event 33 counts of a histogram (not
cumulative), sums of histograms.  A file belongs to a living agent as long as
its process holds a lock (flock) on it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import struct
import time
from typing import TYPE_CHECKING

from .files import map_file
from .values import EVENT_COUNT, EVENTS, Snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAGIC = b"NIXLMPS1"
_SCHEMA = 1
# The schema, number of events, pid, time of the last update (ns of
# CLOCK_MONOTONIC), instance, number of bounds; agent, host, rank.
_HEADER = struct.Struct("=8sIIqQQQ256s128s64s")
_UPDATED_AT = 24
_MAX_BOUNDS = 32
_BOUNDS_AT = _HEADER.size
_COUNTERS_AT = _BOUNDS_AT + 8 * _MAX_BOUNDS
_GAUGES_AT = _COUNTERS_AT + 8 * EVENT_COUNT
_BUCKETS_AT = _GAUGES_AT + 8 * EVENT_COUNT
_SUMS_AT = _BUCKETS_AT + 8 * EVENT_COUNT * (_MAX_BOUNDS + 1)
SIZE = _SUMS_AT + 8 * EVENT_COUNT

_HISTOGRAMS = [event.number for event in EVENTS if event.histogram]
_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW
_RUN = time.time_ns()  # two processes with one pid differ in it


def _numbers(count: int) -> struct.Struct:
    return struct.Struct(f"={count}Q")


_EVENTS_ARRAY = _numbers(EVENT_COUNT)


def _text(text: str, size: int) -> bytes:
    """NIXL cuts off what is too long, and ends the text with a 0."""
    return text.encode("utf-8", "surrogateescape")[: size - 1]


def _lock(fd: int) -> bool:
    """Whether nobody else held the lock."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN):
            raise
        return False
    return True


class Store:
    """The file of one of our agents. Its lock ends with the object."""

    def __init__(
        self,
        folder: str,
        instance: int,
        labels: dict[str, str],
        snapshot: Snapshot,
    ) -> None:
        self.path = os.path.join(
            folder, f"nixl.{os.getpid()}.{_RUN}.{instance}.mmap"
        )
        staging = self.path + ".staging"
        self._fd = os.open(
            staging, os.O_CREAT | os.O_EXCL | os.O_RDWR | _OPEN, 0o600
        )
        try:
            _lock(self._fd)
            self._map = map_file(self._fd, SIZE)
            _HEADER.pack_into(
                self._map,
                0,
                _MAGIC,
                _SCHEMA,
                EVENT_COUNT,
                os.getpid(),
                time.monotonic_ns(),
                instance,
                len(snapshot.bounds),
                _text(labels["agent_name"], 256),
                _text(labels["hostname"], 128),
                _text(labels.get("local_rank", ""), 64),
            )
            struct.pack_into(
                f"={len(snapshot.bounds)}d",
                self._map,
                _BOUNDS_AT,
                *snapshot.bounds,
            )
            self.write(snapshot)
            # Under its name it is complete and locked.
            os.rename(staging, self.path)
        except BaseException:
            os.close(self._fd)
            self._fd = -1  # another file may get the number
            with contextlib.suppress(OSError):
                os.unlink(staging)
            raise

    def write(self, snapshot: Snapshot) -> None:
        """Set all values."""
        into = self._map
        _EVENTS_ARRAY.pack_into(into, _COUNTERS_AT, *snapshot.counters)
        _EVENTS_ARRAY.pack_into(into, _GAUGES_AT, *snapshot.gauges)
        for number in _HISTOGRAMS:
            counts = snapshot.buckets[number]
            at = _BUCKETS_AT + 8 * number * (_MAX_BOUNDS + 1)
            _numbers(len(counts)).pack_into(into, at, *counts)
            struct.pack_into(
                "=Q", into, _SUMS_AT + 8 * number, snapshot.sums[number]
            )
        struct.pack_into("=Q", into, _UPDATED_AT, time.monotonic_ns())

    def forget(self) -> None:
        """Drop this process's part of the lock, and the mapping."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._map.close()

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError):
            self.forget()


def _parse(data: bytes) -> tuple[Snapshot, int] | None:
    """The values in a file and when it was updated; None: another format."""
    if len(data) < SIZE:
        return None
    (
        magic,
        schema,
        event_count,
        pid,
        updated,
        instance,
        bound_count,
        agent,
        host,
        rank,
    ) = _HEADER.unpack_from(data)
    if (magic, schema, event_count) != (_MAGIC, _SCHEMA, EVENT_COUNT):
        return None
    if bound_count > _MAX_BOUNDS:
        return None

    def text(field: bytes) -> str:
        return field.partition(b"\0")[0].decode("utf-8", "replace")

    labels = {
        "hostname": text(host),
        "agent_name": text(agent),
        "pid": str(pid),
        "agent_instance": str(instance),
    }
    if text(rank):
        labels["local_rank"] = text(rank)
    sums = _EVENTS_ARRAY.unpack_from(data, _SUMS_AT)
    return (
        Snapshot(
            labels,
            _EVENTS_ARRAY.unpack_from(data, _COUNTERS_AT),
            _EVENTS_ARRAY.unpack_from(data, _GAUGES_AT),
            struct.unpack_from(f"={bound_count}d", data, _BOUNDS_AT),
            {
                number: _numbers(bound_count + 1).unpack_from(
                    data, _BUCKETS_AT + 8 * number * (_MAX_BOUNDS + 1)
                )
                for number in _HISTOGRAMS
            },
            {number: sums[number] for number in _HISTOGRAMS},
        ),
        updated,
    )


def _read(path: str, ttl: float) -> Snapshot | None:
    """Read a file; remove it if its agent is gone for more than `ttl`."""
    fd = os.open(path, os.O_RDONLY | _OPEN)
    try:
        info = os.fstat(fd)
        if info.st_uid != os.geteuid():
            return None  # another user may write anything
        parsed = _parse(os.pread(fd, SIZE, 0))
        # Holding the lock for a moment is what NIXL does to find out, too.
        is_left = _lock(fd)
        if parsed is None:
            age = time.time() - info.st_mtime
            snapshot = None
        else:
            snapshot, updated = parsed
            age = (time.monotonic_ns() - updated) / 1e9
            if age < 0:  # written before the machine started again
                age = math.inf
        if is_left and age > ttl:
            os.unlink(path)
            return None
        return snapshot
    finally:
        os.close(fd)


def read_all(folder: str, ttl: float) -> Iterator[Snapshot]:
    """The values of all agents whose files are in the folder."""
    for name in sorted(os.listdir(folder)):
        if name.startswith("nixl.") and name.endswith(".mmap"):
            # A file may vanish, or be one that this process may not read.
            with contextlib.suppress(OSError):
                snapshot = _read(os.path.join(folder, name), ttl)
                if snapshot is not None:
                    yield snapshot


class Election:
    """The right to serve the folder at an address: a lock on a file."""

    def __init__(self, folder: str, address: str) -> None:
        self._path = os.path.join(folder, f"nixl-owner.{address}.lock")
        self._fd = -1

    def won(self) -> bool:
        """Try to become the one that serves."""
        fd = os.open(self._path, os.O_CREAT | os.O_RDWR | _OPEN, 0o600)
        try:
            if _lock(fd):
                self._fd, fd = fd, -1
        finally:
            if fd >= 0:
                os.close(fd)
        return self._fd >= 0

    def forget(self) -> None:
        """Give the right back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
