"""A well-behaved client is served, whatever others do.

Each row is one attack on one transport, for --attack-seconds (half a second
unless told otherwise; 5 is a good measure).
"""

import os
import threading
import time

import pytest
from support.attacks import ATTACKS, Attacker
from support.deadline import until
from support.transports import TRANSPORTS

pytestmark = [pytest.mark.slow, pytest.mark.beyond_stock]

HOST = "127.0.0.1"
BLOB = b"\xa5\x5a the metadata of the well-behaved \x5a\xa5"
LARGE = bytes(8 << 20)

ROWS = [
    pytest.param(transport, attack, id=f"{transport.name}-{name}")
    for transport in TRANSPORTS
    for name, attack in {**ATTACKS, **transport.attacks}.items()
]


def fds():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(("transport", "attack"), ROWS)
def test_service_goes_on(transport, attack, request):
    seconds = request.config.getoption("--attack-seconds")
    times = []
    with transport.make(client_timeout_ms=2000) as server:
        port = server.start_listener(0, {None: LARGE, (0, 1): BLOB})
        with transport.make() as client:
            ask(client, port, times)
        before = fds()
        attacker = Attacker(transport, port)
        thread = threading.Thread(target=attacker.run, args=(attack,))
        thread.start()
        try:
            with transport.make() as client:
                end = time.monotonic() + seconds
                while time.monotonic() < end or len(times) < 20:
                    ask(client, port, times)
        finally:
            attacker.stop()
            thread.join(60)
        assert not thread.is_alive()
        assert BLOB not in attacker.heard
        until(lambda: fds() <= before, "the end of the attack's descriptors")
        with transport.make() as client:
            ask(client, port, times)
    show(times)


def show(times):
    """For those who look (pytest -s)."""
    times.sort()
    p50, p99 = (times[len(times) * part // 100] * 1e3 for part in (50, 99))
    print(f"{len(times)} requests, p50 {p50:.2f} ms, p99 {p99:.2f} ms")


def ask(client, port, times):
    """One request, which must be answered."""
    start = time.monotonic()
    got = client.request_metadata(HOST, port, key=(0, 1), timeout_ms=10_000)
    times.append(time.monotonic() - start)
    assert got == BLOB


SECRET = "correct horse battery staple"


@pytest.mark.parametrize(
    "transport",
    [row for row in TRANSPORTS if row.has_secret],
    ids=lambda row: row.name,
)
def test_those_who_guess_the_secret_get_nothing(transport, request):
    seconds = request.config.getoption("--attack-seconds")
    stop = threading.Event()
    got = []

    def guess():
        number = 0
        while not stop.is_set():
            number += 1
            secrets = {"secret": f"a guess, number {number}"}
            with transport.make(**secrets) as other:
                answers = other.request_many([(HOST, port)] * 5, 2000)
                got.extend(a for a in answers if isinstance(a, bytes))

    with (
        transport.make(secret=SECRET) as server,
        transport.make(secret=SECRET) as client,
    ):
        port = server.start_listener(0, {(0, 1): BLOB, None: BLOB})
        thread = threading.Thread(target=guess)
        thread.start()
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                ask(client, port, [])
        finally:
            stop.set()
            thread.join(60)
        assert got == []
        until(
            lambda: server.stats()["refusals"]["wrong_proof"] > 0,
            "a refusal",
        )
