"""A well-behaved client is served during attacks.

Each row is one attack on one transport for --attack-seconds (0.3 by default; 5
is a good value): on a plain listener, on one with TLS, on one with a secret.
"""

import contextlib
import os
import socket
import threading
import time

import pytest
from support.attacks import ATTACKS, SECRET_ATTACKS, TLS_ATTACKS, Attacker
from support.certificates import make_certificates
from support.deadline import until
from support.transports import TRANSPORTS

pytestmark = [pytest.mark.slow, pytest.mark.beyond_stock]

HOST = "127.0.0.1"
BLOB = b"\xa5\x5a the metadata of the well-behaved \x5a\xa5"
LARGE = bytes(8 << 20)
SECRET = "correct horse battery staple"
KEY = (0, 1)
# For one exchange, also on a busy machine.
TIMEOUT_MS = 10_000


def rows(kind, attacks, transports):
    """The common attacks and its own ones, for each transport."""
    return [
        pytest.param(transport, attack, id=f"{transport.name}-{kind}{name}")
        for transport in transports
        for name, attack in attacks(transport).items()
    ]


PLAIN = rows("", lambda row: {**ATTACKS, **row.attacks}, TRANSPORTS)
TLS = rows(
    "tls-", lambda row: TLS_ATTACKS, [row for row in TRANSPORTS if row.has_tls]
)
PROVED = rows(
    "secret-",
    lambda row: {**SECRET_ATTACKS, **row.secret_attacks},
    [row for row in TRANSPORTS if row.has_secret],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def seconds(request):
    return request.config.getoption("--attack-seconds")


@pytest.mark.parametrize(("transport", "attack"), PLAIN)
def test_service_continues_under_attack(transport, attack, seconds):
    with transport.make(client_timeout_ms=TIMEOUT_MS) as server:
        serve_under(attack, transport, server, {}, seconds)


@pytest.mark.parametrize(("transport", "attack"), TLS)
def test_service_with_tls_continues_under_attack(
    transport, attack, seconds, folder
):
    with transport.make(
        client_timeout_ms=TIMEOUT_MS,
        tls_certificate=str(folder / "server.pem"),
        tls_key=str(folder / "server.key"),
    ) as server:
        trust = {"tls_ca": str(folder / "ca.pem")}
        heard = serve_under(attack, transport, server, trust, seconds)
        assert LARGE[:4096] not in heard


@pytest.mark.parametrize(("transport", "attack"), PROVED)
def test_service_with_a_secret_continues_under_attack(
    transport, attack, seconds
):
    with transport.make(client_timeout_ms=TIMEOUT_MS, secret=SECRET) as server:
        known = {"secret": SECRET}
        heard = serve_under(attack, transport, server, known, seconds)
        assert LARGE[:4096] not in heard


def serve_under(attack, transport, server, options, seconds):
    """Serve a client with these options meanwhile; return the bytes that the
    attacker received."""
    times = []
    port = server.start_listener(0, {None: LARGE, KEY: BLOB})
    attacker = Attacker(transport, port)
    with transport.make(**options) as client:
        ask(client, port, times)
        attacker.overheard = overhear(client, port)
    before = fds()
    thread = threading.Thread(target=attacker.run, args=(attack,))
    thread.start()
    try:
        with transport.make(**options) as client:
            end = time.monotonic() + seconds
            while time.monotonic() < end or len(times) < 20:
                ask(client, port, times)
    finally:
        attacker.stop()
        thread.join(60)
    assert not thread.is_alive()
    assert BLOB not in attacker.heard
    until(lambda: fds() <= before, "the end of the attack's descriptors")
    with transport.make(**options) as client:
        ask(client, port, times)
    show(times)
    return attacker.heard


def fds():
    return len(os.listdir("/proc/self/fd"))


def ask(client, port, times):
    """One request, which must be answered."""
    start = time.monotonic()
    got = client.request_metadata(HOST, port, key=KEY, timeout_ms=TIMEOUT_MS)
    times.append(time.monotonic() - start)
    assert got == BLOB


def overhear(client, port):
    """All bytes that the client sends in one exchange."""
    said = []

    def pump(source, target, note):
        with contextlib.suppress(OSError):
            while piece := source.recv(1 << 16):
                note(piece)
                target.sendall(piece)
            target.shutdown(socket.SHUT_WR)

    def relay():
        with listener.accept()[0] as near, connected() as far:
            back = threading.Thread(
                target=pump, args=(far, near, lambda piece: None)
            )
            back.start()
            pump(near, far, said.append)
            back.join()

    def connected():
        return socket.create_connection((HOST, port), timeout=30)

    with socket.create_server((HOST, 0)) as listener:
        thread = threading.Thread(target=relay)
        thread.start()
        ask(client, listener.getsockname()[1], [])
        thread.join(30)
    return b"".join(said)


def show(times):
    """Print the figures (visible with pytest -s)."""
    times.sort()
    p50, p99 = (times[len(times) * part // 100] * 1e3 for part in (50, 99))
    print(f"{len(times)} requests, p50 {p50:.2f} ms, p99 {p99:.2f} ms")
