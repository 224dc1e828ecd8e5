"""Rows that measure the side channel; stock NIXL has none.

If pyzmq and msgpack are installed, vLLM's handshake over ZeroMQ is measured
for comparison.
"""

from __future__ import annotations

import importlib.util
import resource
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

from peer import Peer

Samples = dict[str, list[float]]

HANGING = 2000
PEERS = 1000
# Nothing, one byte of a length, the start of a request, and garbage.  The
# listener refuses the garbage at once; the others keep their connections.
OPENINGS = (b"", b"\0", b"\0\0\0\x0cGET_", b"\xff garbage, not a request")


def _raise_file_limit(wanted: int) -> None:
    """Allow enough descriptors, also for the server process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _hang(port: int, count: int) -> list[socket.socket]:
    clients = []
    for number in range(count):
        client = socket.create_connection(("127.0.0.1", port), 5)
        client.sendall(OPENINGS[number % len(OPENINGS)])
        clients.append(client)
    return clients


def _requests(ask: Callable[[], bytes], count: int) -> Samples:
    seconds = []
    for _ in range(count):
        started = time.perf_counter()
        blob = ask()
        seconds.append(time.perf_counter() - started)
        if len(blob) != 1024:
            raise RuntimeError("the reply has the wrong size")
    cuts = statistics.quantiles(seconds[count // 10 :], n=100)
    return {"p50_us": [cuts[49] * 1e6], "p99_us": [cuts[98] * 1e6]}


def _measure(
    impl: Any, quick: bool, hanging: int, kind: str = "TcpSideChannel"
) -> Samples:
    _raise_file_limit(HANGING * 2 + 200)
    peer = Peer(impl.name, 1 << 20)
    clients: list[socket.socket] = []
    try:
        port = peer.ask("listen", kind=kind, bytes=1024)["port"]
        clients = _hang(port, hanging)
        channel = getattr(impl.module, kind)()
        return _requests(
            lambda: channel.request_metadata("127.0.0.1", port),
            300 if quick else 3000,
        )
    finally:
        for client in clients:
            client.close()
        peer.close()


def side_channel(impl: Any, quick: bool) -> Samples:
    """Requests for 1 KiB of metadata, one after the other."""
    return _measure(impl, quick, 0)


def side_channel_crowd(impl: Any, quick: bool) -> Samples:
    """The same while 2 000 other clients stay connected."""
    return _measure(impl, quick, HANGING)


def side_channel_http(impl: Any, quick: bool) -> Samples:
    """Requests for 1 KiB of metadata by HTTP, each on a new connection."""
    return _measure(impl, quick, 0, "HttpSideChannel")


def side_channel_many(impl: Any, quick: bool) -> Samples:
    """One thread requests the metadata of PEERS peers at once."""
    _raise_file_limit(10 * PEERS + 200)
    found: Samples = {}
    for name in ("Tcp", "Zmq", "Http"):
        kind = f"{name}SideChannel"
        channel = getattr(impl.module, kind)()
        peer = Peer(impl.name, 1 << 20)
        try:
            answer = peer.ask("listen", kind=kind, count=PEERS, bytes=1024)
            peers = [("127.0.0.1", port) for port in answer["ports"]]
            samples = found.setdefault(f"{name.lower()}_ms", [])
            for _ in range(1 if quick else 3):
                started = time.perf_counter()
                answers = channel.request_many(peers)
                samples.append((time.perf_counter() - started) * 1e3)
                if any(blob != bytes(1024) for blob in answers):
                    raise RuntimeError("a peer did not answer")
        finally:
            peer.close()
    return found


def side_channel_zmq(impl: Any, quick: bool) -> Samples:
    """vLLM's handshake: ours at both ends, and pyzmq at both ends, in turns.

    Both use a new connection for each exchange.
    """
    peer = Peer(impl.name, 1 << 20)
    count, rounds = (60, 1) if quick else (200, 5)
    channel = impl.module.ZmqSideChannel()

    def port_of(kind: str) -> int:
        return int(peer.ask("listen", kind=kind, bytes=1024)["port"])

    try:
        ours = port_of("ZmqSideChannel")
        asks = {"": lambda: channel.request_metadata("127.0.0.1", ours)}
        if all(map(importlib.util.find_spec, ("zmq", "msgpack"))):
            import stock_handshake

            theirs = port_of("pyzmq")
            asks["pyzmq_"] = lambda: stock_handshake.ask(theirs)
        found: Samples = {}
        for _ in range(rounds):
            for prefix, ask in asks.items():
                for key, values in _requests(ask, count).items():
                    found.setdefault(prefix + key, []).extend(values)
        return found
    finally:
        peer.close()
