"""A listener that lets nobody in."""

import contextlib
import socket
import struct

from support.deadline import until

# tcpi_unacked of a listening socket: the connections that it has not accepted.
UNACKED = struct.Struct("=24xI")


def _waiting(listener):
    info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
    return UNACKED.unpack(info)[0]


@contextlib.contextmanager
def mute_listener():
    """The address of a socket whose queue is full, so that connections to it
    get no answer."""
    with contextlib.ExitStack() as sockets:
        full = sockets.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            one = sockets.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(full.getsockname())
        until(lambda: _waiting(full) > 0, "a full queue")
        yield full.getsockname()
