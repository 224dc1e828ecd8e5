"""Publications from the bytes (docs/wire.md), to be damaged and forged."""

import struct

KEY = "vnx.publication"


def checksum(data):
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return struct.pack("<Q", value)


def seal(data):
    """Add the checksum."""
    return data + checksum(data)


def publication(metadata, lists):
    """lists: {name: (memory type, rows)}; rows of 3 numbers, or of 5."""
    data = b"VNXPUBL:" + struct.pack("<BBHI", 1, 0, 0, len(lists))
    data += struct.pack("<Q", len(metadata)) + metadata
    for name, (mem, rows) in lists.items():
        name = name.encode()
        strided = bool(rows) and len(rows[0]) == 5
        data += struct.pack("<H", len(name)) + name
        data += struct.pack("<BBQ", mem, strided, len(rows))
        for row in rows:
            data += struct.pack(f"<{len(row)}Q", *row)
    return seal(data)
