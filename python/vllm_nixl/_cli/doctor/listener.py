"""Asks NIXL's metadata listener, ours or stock's (docs/wire.md)."""

from __future__ import annotations

import socket
import struct
import time

_MARK = b"NIXLCOMM:"
_SEND = _MARK + b"SEND"
_LOAD = _MARK + b"LOAD"
_FRAME_MAX = 256 << 20


class ListenerError(Exception):
    """The server is not a metadata listener, or it does not answer."""


def fetch(host: str, port: int, timeout: float) -> bytes:
    """The metadata of the agent that listens there; ListenerError."""
    end = time.monotonic() + timeout
    try:
        with socket.create_connection((host, port), timeout) as made:
            made.sendall(struct.pack("<Q", len(_SEND)) + _SEND)
            (size,) = struct.unpack("<Q", _receive(made, 8, end))
            if not len(_LOAD) <= size <= _FRAME_MAX:
                raise ListenerError("the answer has no frame of NIXL's")
            frame = _receive(made, size, end)
    except OSError as error:
        raise ListenerError(error.strerror or str(error)) from error
    if not frame.startswith(_LOAD):
        raise ListenerError("the answer has no metadata")
    return frame[len(_LOAD) :]


def _receive(made: socket.socket, size: int, end: float) -> bytes:
    """Exactly so many bytes, before that time."""
    data = bytearray()
    while len(data) < size:
        made.settimeout(max(0.001, end - time.monotonic()))
        piece = made.recv(min(size - len(data), 1 << 20))
        if not piece:
            raise ListenerError("the connection was closed")
        data += piece
    return bytes(data)
