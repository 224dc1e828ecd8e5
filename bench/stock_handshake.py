"""Stock vLLM's handshake with pyzmq and msgpack, as in vLLM's connector.

Connector versions 5 to 15: the client creates a context and a socket for each
exchange; the listener has one ROUTER in a thread.
"""

from __future__ import annotations

import threading
import time

import msgpack
import zmq

GET_META_MSG = b"get_meta_msg"


def listen(blob: bytes) -> int:
    """Serve `blob` to every rank until the process ends."""
    context = zmq.Context()
    sock = context.socket(zmq.ROUTER)
    port = sock.bind_to_random_port("tcp://127.0.0.1")

    def serve() -> None:
        while True:
            identity, _, request = sock.recv_multipart()
            msgpack.unpackb(request)
            clock = msgpack.packb(time.perf_counter())
            sock.send_multipart((identity, b"", blob, clock))

    threading.Thread(target=serve, daemon=True).start()
    return int(port)


def ask(port: int) -> bytes:
    context = zmq.Context()
    try:
        with context.socket(zmq.REQ) as sock:
            sock.setsockopt(zmq.LINGER, 0)
            sock.setsockopt(zmq.RCVTIMEO, 5000)
            sock.connect(f"tcp://127.0.0.1:{port}")
            sock.send(msgpack.packb((GET_META_MSG, 0, 0)))
            blob, clock = sock.recv_multipart()
            msgpack.unpackb(clock)
            return bytes(blob)
    finally:
        context.term()
