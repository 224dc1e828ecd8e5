"""Metadata and publications from their bytes (docs/wire.md).

Written apart from the C library, which the tests check with it.  Input is
hostile: WireError for anything that is not valid, never another exception,
and nothing is allocated for a length that the bytes do not have.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

PREFIX = b"nixlSerDes|"
PUBLICATION = b"VNXPUBL:"
SIGNATURE = b"VNXSIGN"
MEM_TYPES = ("DRAM", "VRAM", "BLK", "OBJ", "FILE")
CONNECTIONS_MAX = 256
LISTS_MAX = 4096
ROWS_MAX = 1 << 26
WHOLE = 2**64 - 1  # the length of a whole object of storage

_SHM = struct.Struct("<BBHI16sQQQIH")
_VNX = struct.Struct("<BBHQ16s")
_HEAD = struct.Struct("<BBHIQ")
_LIST = struct.Struct("<BBQ")


class WireError(ValueError):
    """The bytes are not what they should be; the text says where."""


class Region(NamedTuple):
    addr: int
    size: int
    device: int
    public: bytes


class Section(NamedTuple):
    backend: bytes
    mem_type: int
    regions: list[Region]


class Blob(NamedTuple):
    """Metadata of an agent."""

    name: bytes
    connections: dict[bytes, bytes]
    sections: list[Section]


class Shm(NamedTuple):
    """Connection data of SHM: where the agent is on its host."""

    pid: int
    boot_id: str
    pid_namespace: int
    start_time: int
    nonce_address: int
    uid: int
    socket: str


class Identity(NamedTuple):
    """The connection VNX: which agent, and which state of it."""

    partial: bool
    epoch: int
    instance: str


class NamedRows(NamedTuple):
    """A list of a publication; strided items stand for `count` rows each."""

    name: str
    mem_type: int
    strided: bool
    items: int
    rows: int
    bytes: int


class Publication(NamedTuple):
    signed: bool
    metadata: bytes
    lists: list[NamedRows]


class Reader:
    """Takes bytes from the front; WireError if there are too few."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self.data) - self.at:
            raise WireError(
                f"byte {self.at}: {size} bytes expected, but the data ends "
                f"at {len(self.data)}"
            )
        piece = self.data[self.at : self.at + size]
        self.at += size
        return piece

    def unpack(self, form: struct.Struct) -> tuple[int, ...]:
        return form.unpack(self.take(form.size))

    def literal(self, wanted: bytes) -> None:
        at = self.at
        found = self.take(len(wanted))
        if found != wanted:
            raise WireError(f"byte {at}: {wanted!r} expected, not {found!r}")

    def field(self, tag: bytes) -> bytes:
        self.literal(tag)
        (size,) = struct.unpack("=Q", self.take(8))
        value = self.take(size)
        self.literal(b"|")
        return value

    def text(self, tag: bytes) -> bytes:
        """A field that must not be empty."""
        at = self.at
        value = self.field(tag)
        if not value:
            raise WireError(f"byte {at}: an empty value")
        return value

    def number(self, tag: bytes, form: str = "=Q") -> int:
        at = self.at
        (value,) = unpack(form, self.field(tag), at)
        return value


def unpack(form: str, value: bytes, at: int = 0) -> tuple[int, ...]:
    if len(value) != struct.calcsize(form):
        raise WireError(
            f"byte {at}: a value of {len(value)} bytes, not of "
            f"{struct.calcsize(form)}"
        )
    return struct.unpack(form, value)


def fnv1a(data: bytes) -> int:
    """The checksum of our own structures."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


# -- Metadata ----------------------------------------------------------------


def parse(data: bytes) -> Blob:
    """Parse metadata; all of it is checked, nothing may follow."""
    reader = Reader(data)
    if data[: len(PREFIX)] != PREFIX:
        raise WireError("these bytes are not metadata: they begin otherwise")
    reader.literal(PREFIX)
    name = reader.text(b"Agent")
    count = reader.number(b"Conns")
    if count > CONNECTIONS_MAX:
        raise WireError(f"{count} connections, more than {CONNECTIONS_MAX}")
    connections: dict[bytes, bytes] = {}
    for _ in range(count):
        backend = reader.text(b"t")
        if backend in connections:
            raise WireError(f"byte {reader.at}: a second {backend!r}")
        connections[backend] = reader.text(b"c")
    at = reader.at
    if reader.field(b"") != b"MemSection":
        raise WireError(f"byte {at}: 'MemSection' expected")
    sections = [_section(reader) for _ in range(_count(reader))]
    if reader.at != len(data):
        raise WireError(f"byte {reader.at}: {len(data) - reader.at} more")
    return Blob(name, connections, sections)


def _count(reader: Reader) -> int:
    """The number of sections; each takes more bytes than one."""
    count = reader.number(b"nixlSecElms")
    if count > len(reader.data) - reader.at:
        raise WireError(f"byte {reader.at}: {count} sections do not fit")
    return count


def _section(reader: Reader) -> Section:
    backend = reader.text(b"bknd")
    at = reader.at
    if reader.field(b"nixlDList") != b"nixlSDList":
        raise WireError(f"byte {at}: a section that is not a list")
    mem_type = reader.number(b"t", "=i")
    if not 0 <= mem_type < len(MEM_TYPES):
        raise WireError(f"byte {at}: memory type {mem_type} does not exist")
    count = reader.number(b"n")
    if not 1 <= count <= len(reader.data) - reader.at:
        raise WireError(f"byte {at}: a section of {count} regions")
    return Section(
        backend, mem_type, [_region(reader, mem_type) for _ in range(count)]
    )


def _region(reader: Reader, mem_type: int) -> Region:
    at = reader.at
    row = reader.field(b"")
    if len(row) < 24:
        raise WireError(f"byte {at}: a region of {len(row)} bytes")
    addr, size, device = struct.unpack("=QQQ", row[:24])
    storage = mem_type >= MEM_TYPES.index("BLK")
    if addr + size >= 2**64 and not (storage and size == WHOLE):
        raise WireError(f"byte {at}: address and length exceed 64 bits")
    return Region(addr, size, device, row[24:])


def is_signature(section: Section) -> bool:
    return section.backend == SIGNATURE


# -- Our own connection data --------------------------------------------------


def _checked(data: bytes, what: str) -> Reader:
    """Check the checksum at the end, and the major version."""
    body = data[:-8]
    if len(data) < 9 or fnv1a(body) != int.from_bytes(data[-8:], "little"):
        raise WireError(f"{what}: the checksum is wrong")
    if body[0] != 1:
        raise WireError(
            f"{what}: major version {body[0]}; this program knows 1"
        )
    return Reader(body)


def shm(data: bytes) -> Shm:
    """Parse the connection data of SHM."""
    reader = _checked(data, "connection data of SHM")
    fields = _SHM.unpack(reader.take(_SHM.size))
    pid, boot, namespace, start, nonce, uid, length = fields[3:]
    socket = reader.take(length).decode("utf-8", "backslashreplace")
    text = boot.hex()
    parts = (text[:8], text[8:12], text[12:16], text[16:20], text[20:])
    return Shm(pid, "-".join(parts), namespace, start, nonce, uid, socket)


def identity(data: bytes) -> Identity:
    """Parse the connection VNX."""
    reader = _checked(data, "connection VNX")
    _, _, flags, epoch, instance = _VNX.unpack(reader.take(_VNX.size))
    return Identity(bool(flags & 1), epoch, instance.hex())


# -- Publications -------------------------------------------------------------


def is_publication(data: bytes) -> bool:
    return data[: len(PUBLICATION)] == PUBLICATION


def publication(data: bytes) -> Publication:
    """Parse a publication; its metadata is left to parse()."""
    reader = Reader(data[:-8])
    reader.literal(PUBLICATION)
    major, _, flags, count, length = reader.unpack(_HEAD)
    if major != 1:
        raise WireError(f"publication version {major}; this program knows 1")
    if fnv1a(data[:-8]) != int.from_bytes(data[-8:], "little"):
        raise WireError("the checksum of the publication is wrong")
    if count > LISTS_MAX:
        raise WireError(f"{count} lists, more than {LISTS_MAX}")
    metadata = reader.take(length)
    lists = [_named_rows(reader) for _ in range(count)]
    names = [part.name for part in lists]
    if len(set(names)) != len(names):
        raise WireError("two lists have the same name")
    if sum(part.rows for part in lists) > ROWS_MAX:
        raise WireError(f"the lists have more than {ROWS_MAX} rows")
    return Publication(bool(flags & 1), metadata, lists)


def _named_rows(reader: Reader) -> NamedRows:
    at = reader.at
    (length,) = struct.unpack("<H", reader.take(2))
    name = reader.take(length)
    mem_type, form, items = reader.unpack(_LIST)
    if not 1 <= length <= 255 or 0 in name:
        raise WireError(f"byte {at}: a name that is not allowed")
    if mem_type >= len(MEM_TYPES) or form > 1 or items < 1:
        raise WireError(f"byte {at}: memory type, form or number is wrong")
    size = 40 if form else 24
    body = reader.take(items * size)
    rows, total = items, 0
    if form:
        counts = [item[4] for item in struct.iter_unpack("<5Q", body)]
        sizes = [item[1] for item in struct.iter_unpack("<5Q", body)]
        rows = sum(counts)
        total = sum(a * b for a, b in zip(counts, sizes, strict=True))
    else:
        total = sum(item[1] for item in struct.iter_unpack("<3Q", body))
    text = name.decode("utf-8", "backslashreplace")
    return NamedRows(text, mem_type, bool(form), items, rows, total)
