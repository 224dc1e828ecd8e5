"""NIXL's metadata grammar, parsed independently of our library and of NIXL."""

import collections
import struct

PREFIX = b"nixlSerDes|"

Blob = collections.namedtuple("Blob", "name connections sections")
Section = collections.namedtuple("Section", "backend mem_type regions")
Region = collections.namedtuple("Region", "addr size device public")


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, size):
        piece = self.data[self.at : self.at + size]
        if len(piece) != size:
            raise ValueError(f"the blob ends at {len(self.data)}")
        self.at += size
        return piece

    def literal(self, wanted):
        found = self.take(len(wanted))
        if found != wanted:
            raise ValueError(f"{found!r} where {wanted!r} was expected")

    def field(self, tag):
        self.literal(tag)
        (size,) = struct.unpack("=Q", self.take(8))
        value = self.take(size)
        self.literal(b"|")
        return value

    def number(self, tag, form="=Q"):
        return unpack(form, self.field(tag))[0]


def unpack(form, value):
    if len(value) != struct.calcsize(form):
        raise ValueError(f"{len(value)} bytes for {form!r}")
    return struct.unpack(form, value)


def parse(data):
    """Parse the whole blob; ValueError if it is invalid or has trailing
    bytes."""
    reader = Reader(data)
    reader.literal(PREFIX)
    name = reader.field(b"Agent")
    connections = {}
    for _ in range(reader.number(b"Conns")):
        backend = reader.field(b"t")
        connections[backend] = reader.field(b"c")
    reader.field(b"")
    sections = [section(reader) for _ in range(reader.number(b"nixlSecElms"))]
    if reader.at != len(data):
        raise ValueError("bytes are left over")
    return Blob(name, connections, sections)


def section(reader):
    backend = reader.field(b"bknd")
    if reader.field(b"nixlDList") != b"nixlSDList":
        raise ValueError("a section that is not a list")
    mem_type = reader.number(b"t", "=i")
    regions = []
    for _ in range(reader.number(b"n")):
        row = reader.field(b"")
        regions.append(Region(*unpack("=QQQ", row[:24]), row[24:]))
    return Section(backend, mem_type, regions)


def write(blob):
    """The bytes of a Blob: the inverse of parse()."""
    out = [PREFIX, put(b"Agent", blob.name)]
    out.append(put(b"Conns", struct.pack("=Q", len(blob.connections))))
    for backend, info in blob.connections.items():
        out += [put(b"t", backend), put(b"c", info)]
    out.append(put(b"", b"MemSection"))
    out.append(put(b"nixlSecElms", struct.pack("=Q", len(blob.sections))))
    for part in blob.sections:
        out.append(put(b"bknd", part.backend))
        out.append(put(b"nixlDList", b"nixlSDList"))
        out.append(put(b"t", struct.pack("=i", part.mem_type)))
        out.append(put(b"n", struct.pack("=Q", len(part.regions))))
        for region in part.regions:
            row = struct.pack("=QQQ", *region[:3]) + region.public
            out.append(put(b"", row))
    return b"".join(out)


def put(tag, value):
    return tag + struct.pack("=Q", len(value)) + value + b"|"
