"""ZMTP 3.1 from its bytes: a REQ of libzmq, sent over raw sockets."""

import contextlib
import socket
import struct

HOST = "127.0.0.1"
GREETING = (
    b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\x01" + b"NULL".ljust(20, b"\0")
).ljust(64, b"\0")
#: The bytes that our listener sends before the first reply.
LISTENER_BYTES = 64 + 54
#: The start of vLLM's request, connector versions 5 to 15; two ranks follow.
GET_META_MSG = b"\x93\xc4\x0cget_meta_msg"


def ready(socket_type=b"REQ", identity=b"", **properties):
    named = {name.encode(): value for name, value in properties.items()}
    body = b"\x05READY"
    for name, value in {
        b"Socket-Type": socket_type,
        b"Identity": identity,
        **named,
    }.items():
        body += bytes([len(name)]) + name + struct.pack(">I", len(value))
        body += value
    return b"\x04" + bytes([len(body)]) + body


#: The handshake of a client, from its side.
HANDS = GREETING + ready()


def frame(data, more=False):
    if len(data) > 255:
        return bytes([2 | more]) + struct.pack(">Q", len(data)) + data
    return bytes([more, len(data)]) + data


def message(*parts):
    last = len(parts) - 1
    return b"".join(frame(part, i < last) for i, part in enumerate(parts))


def read(sock, count):
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            break
        data += piece
    return data


def read_to_end(sock):
    data = b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        while piece := sock.recv(1 << 16):
            data += piece
    return data


def shaken(port, socket_type=b"REQ", **properties):
    """A connected socket after the handshake with our listener."""
    sock = socket.create_connection((HOST, port), timeout=30)
    sock.sendall(GREETING)
    read(sock, 64)
    sock.sendall(ready(socket_type, **properties))
    read(sock, LISTENER_BYTES - 64)
    return sock
