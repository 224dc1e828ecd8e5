"""NIXL's metadata grammar, parsed independently of our library and of NIXL.

The parser is that of `vllm-nixl inspect`, which uses neither.
"""

import struct

from vllm_nixl._cli.wire import (  # noqa: F401
    PREFIX,
    Blob,
    Region,
    Section,
    WireError,
    parse,
)


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
