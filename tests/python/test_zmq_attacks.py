"""The ZMQ side channel under attack: each costs its own connections.

An attack runs for VNX_TEST_ATTACK_S seconds while a well-behaved client asks
all the time; none stops service, leaks a descriptor, or gets a byte of
metadata that it did not ask for.
"""

import contextlib
import os
import random
import socket
import struct
import threading
import time

import pytest
from support import zmtp
from support.deadline import until

with contextlib.suppress(ModuleNotFoundError):  # `module` fails for it
    import vllm_nixl

pytestmark = [pytest.mark.beyond_stock, pytest.mark.usefixtures("module")]

HOST = zmtp.HOST
SECONDS = float(os.environ.get("VNX_TEST_ATTACK_S", "0.3"))
BLOB = b"metadata that was not asked for " * 64
ASK = zmtp.message(b"", b"\x93\xc4\x0cget_meta_msg\0\0")
UNKNOWN = zmtp.message(b"", b"\x93\xc4\x0cget_meta_msg\x07\x07")
TLS_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32)


def connect(port):
    return socket.create_connection((HOST, port), timeout=30)


def held(opening, hands=True):
    """Connect, say `opening`, and hold on; then look at what came."""

    def attack(port, stop):
        socks = []
        while not stop.is_set() and len(socks) < 300:
            sock = zmtp.shaken(port) if hands else connect(port)
            socks.append(sock)
            with contextlib.suppress(OSError):
                sock.sendall(opening)
        stop.wait()
        return drained(socks)

    return attack


def drained(socks):
    data = b""
    for sock in socks:
        with sock:
            sock.settimeout(0.001)
            data += zmtp.read_to_end(sock)
    return data


def repeated(say):
    """Connect and say something, again and again."""

    def attack(port, stop):
        data = b""
        while not stop.is_set():
            with contextlib.suppress(OSError), connect(port) as sock:
                data += say(sock) or b""
        return data

    return attack


def drip(port, stop):
    data = zmtp.GREETING + zmtp.ready() + UNKNOWN
    with connect(port) as sock:
        for byte in data:
            if stop.wait(SECONDS / len(data)):
                break
            sock.sendall(bytes([byte]))
        stop.wait()
        return drained([sock.dup()])


def never_reads(port, stop):
    """It asks, and asks, and takes nothing; what it asked for is its own."""
    socks = [zmtp.shaken(port) for _ in range(20)]
    while not stop.wait(0.01):
        for sock in socks:
            sock.settimeout(0.001)
            with contextlib.suppress(OSError):
                sock.sendall(ASK * 50)
    for sock in socks:
        sock.close()
    return b""


def reset_in_mid_frame(sock):
    sock.sendall(zmtp.GREETING + zmtp.ready()[:10])
    sock.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
    )


def random_bytes(sock):
    sock.sendall(random.randbytes(random.randrange(1, 2000)))
    sock.settimeout(0.05)
    return zmtp.read_to_end(sock)


def random_messages(sock):
    sock.sendall(zmtp.GREETING)
    zmtp.read(sock, 64)
    sock.sendall(zmtp.ready())
    for _ in range(20):
        parts = [random.randbytes(random.randrange(40)) for _ in range(3)]
        sock.sendall(zmtp.message(b"", *parts[: random.randrange(4)]))
    sock.settimeout(0.05)
    return zmtp.read_to_end(sock)


ATTACKS = {
    "silent": held(b"", hands=False),
    "shaken and silent": held(b""),
    "one byte": held(b"\xff", hands=False),
    "drip": drip,
    "half a greeting": held(zmtp.GREETING[:40], hands=False),
    "half a frame": held(ASK[:10]),
    "a long frame": held(b"\x02" + struct.pack(">Q", 1 << 30)),
    "0xffffffff": held(b"\x02\0\0\0\0\xff\xff\xff\xff"),
    "the longest length": held(b"\x03" + b"\xff" * 8),
    "a message without end": held(b"\x01\x00" * 5000),
    "TLS": held(TLS_HELLO, hands=False),
    "HTTP": held(b"GET /metadata HTTP/1.1\r\n\r\n", hands=False),
    "the TCP side channel": held(b"\0\0\0\x0cGET_METADATA", hands=False),
    "pings": held(b"\x04\x07\x04PING\0\x0a" * 2000),
    "undecodable": held(zmtp.message(b"", b"\xc1") * 20),
    "wrong rank": held(UNKNOWN * 20),
    "extra frames": held(zmtp.message(b"", b"x", b"y") * 20),
    "missing frames": held(zmtp.message(b"") * 20),
    "missing delimiter": held(zmtp.message(b"x") * 20),
    "never reads": never_reads,
    "reset in mid-frame": repeated(reset_in_mid_frame),
    "connect and close": repeated(lambda sock: None),
    "random bytes": repeated(random_bytes),
    "random messages": repeated(random_messages),
}


@pytest.fixture
def listener():
    try:
        made = vllm_nixl.ZmqSideChannel(client_timeout_ms=2000)
    except vllm_nixl.nixlNotSupportedError as error:
        pytest.skip(str(error))
    with made:
        yield made


def descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_costs_its_own_connections(listener, name):
    port = listener.start_listener(0, {(0, 0): BLOB})
    with vllm_nixl.ZmqSideChannel() as client:
        client.request_metadata(HOST, port, key=(0, 0))
        fds = descriptors()
        stop, got, failures = threading.Event(), [], []

        def run():
            try:
                got.append(ATTACKS[name](port, stop))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        served, end = 0, time.monotonic() + SECONDS
        try:
            while time.monotonic() < end or served == 0:
                blob = client.request_metadata(HOST, port, key=(0, 0))
                assert blob == BLOB
                served += 1
        finally:
            stop.set()
            for thread in threads:
                thread.join(60)
        assert failures == []
        assert BLOB[:32] not in b"".join(got)
        assert client.request_metadata(HOST, port, key=(0, 0)) == BLOB
        until(lambda: descriptors() <= fds + 1, "the end of descriptors")
    assert listener.is_running()


def test_endless_messages_hold_no_memory(listener):
    port = listener.start_listener(0, {(0, 0): BLOB})

    def resident():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before = resident()
    data = b"\x01\x00" * (1 << 19)
    for _ in range(20):
        with zmtp.shaken(port) as sock, contextlib.suppress(OSError):
            sock.sendall(data)
    assert resident() - before < 32 << 20
    until(lambda: listener.stats()["refusals"]["too_long"] == 20, "the count")


def test_a_crowd_that_shook_hands_is_held(listener):
    port = listener.start_listener(0, {(0, 0): BLOB})
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(zmtp.shaken(port))
        for _ in range(20):
            got = listener.request_metadata(HOST, port, key=(0, 0))
            assert got == BLOB
        assert listener.stats()["open"] >= 300
