"""Thousands of connections and thousands of peers.

--crowd sets the number (1000 by default; 10000 is a good value).
"""

import contextlib
import time

import pytest
from support import zmtp
from support.crowd import crowd, room_for
from support.deadline import until
from support.transports import TRANSPORTS
from support.usage import fds, resident

pytestmark = [pytest.mark.slow, pytest.mark.beyond_stock]

HOST = "127.0.0.1"
BLOB = bytes(range(256)) * 4
MEMORY_MOST = 100 << 20
MEMORY_EACH = 10_000

#: The bytes that connections send, in rotation, before they fall silent.
OPENINGS = {
    "tcp": [b"", b"\0", b"\0\0\0\x0cGET_METADAT"],
    "zmq": [b"", zmtp.GREETING, zmtp.HANDS],
    "http": [b"", b"G", b"GET /metadata HTTP/1.1\r\nHost: x\r\n"],
}


@pytest.fixture(params=TRANSPORTS, ids=lambda row: row.name)
def transport(request):
    return request.param


@pytest.fixture
def count(request):
    wanted = request.config.getoption("--crowd")
    if not room_for(wanted):
        pytest.skip(f"needs {wanted} file descriptors")
    return wanted


def ask_often(client, port):
    """The duration of many requests in ms, sorted."""
    times = []
    for _ in range(200):
        start = time.monotonic()
        assert client.request_metadata(HOST, port) == BLOB
        times.append((time.monotonic() - start) * 1e3)
    return sorted(times)


def show(what, count, times, memory):
    """Print the figures (visible with pytest -s)."""
    p50, p99 = (times[len(times) * part // 100] for part in (50, 99))
    print(
        f"{what} {count}: {memory / (1 << 20):.1f} MiB, "
        f"p50 {p50:.2f} ms, p99 {p99:.2f} ms"
    )


def test_crowd_below_the_limit_is_held(transport, count):
    with (
        transport.make(
            max_connections=count + 50, client_timeout_ms=120_000
        ) as server,
        transport.make() as client,
    ):
        port = server.start_listener(0, BLOB)
        ask_often(client, port)
        before = resident()
        with crowd(port, count, OPENINGS[transport.name]):
            until(lambda: server.stats()["open"] >= count, "the crowd")
            times = ask_often(client, port)
            memory = resident() - before
            assert server.stats()["evicted"] == 0
        show("held", count, times, memory)
    assert memory < min(MEMORY_MOST, count * MEMORY_EACH + (4 << 20))


def test_crowd_beyond_the_limit_is_refused(transport, count):
    most = count // 4
    with (
        transport.make(max_connections=most) as server,
        transport.make() as client,
    ):
        port = server.start_listener(0, BLOB)
        ask_often(client, port)
        before = resident()
        with crowd(port, count, OPENINGS[transport.name]):
            times = ask_often(client, port)
            memory = resident() - before
            until(
                lambda: server.stats()["evicted"] >= count - most,
                "the refusals",
            )
            assert server.stats()["open"] <= most
        show("refused", count, times, memory)
    assert memory < min(MEMORY_MOST, count * MEMORY_EACH + (4 << 20))


def test_crowd_of_peers_is_fetched_concurrently(transport, count):
    peers = min(count, 1000)
    if not room_for(10 * peers):
        pytest.skip(f"needs {10 * peers} file descriptors")
    before = fds()
    with contextlib.ExitStack() as stack, transport.make() as client:
        ports = {}
        for number in range(peers):
            server = stack.enter_context(transport.make())
            blob = b"peer %d" % number
            ports[server.start_listener(0, blob, host=HOST)] = blob
        start = time.monotonic()
        answers = client.request_many(
            [(HOST, port) for port in ports], timeout_ms=60_000
        )
        took = time.monotonic() - start
        assert answers == list(ports.values())
        print(f"{peers} peers: {took:.3f} s")
    until(lambda: fds() <= before, "the end of the descriptors")
