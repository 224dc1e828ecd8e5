"""Behaviour that all side channels share.

The parameters are the rows of support.transports.TRANSPORTS; features of a
single transport are tested in their own files.
"""

import asyncio
import contextlib
import os
import socket
import threading
import time

import pytest
from support.deadline import until
from support.ports import reserve_port
from support.transports import TRANSPORTS

with contextlib.suppress(ModuleNotFoundError):  # `module` fails for it
    import vllm_nixl

pytestmark = [pytest.mark.beyond_stock, pytest.mark.usefixtures("module")]

HOST = "127.0.0.1"
BLOB = bytes(range(256)) * 4


@pytest.fixture(params=TRANSPORTS, ids=lambda row: row.name)
def transport(request):
    return request.param


@pytest.fixture
def server(transport):
    with transport.make() as made:
        yield made


@pytest.fixture
def client(transport):
    with transport.make() as made:
        yield made


@contextlib.contextmanager
def raw_server(serve):
    """Pass every connection to `serve(sock)`; yields the port."""
    listener = socket.create_server((HOST, 0))
    held = []

    def run():
        with contextlib.suppress(OSError):
            while True:
                held.append(listener.accept()[0])
                serve(held[-1])

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(30)
        for sock in held:
            sock.close()


# -- Exchange ---------------------------------------------------------------


def test_exchange_both_ways(server, client):
    here = server.start_listener(0, b"prefill")
    there = client.start_listener(0, b"decode\x00\xff")
    assert client.request_metadata(HOST, here) == b"prefill"
    assert server.request_metadata(HOST, there) == b"decode\x00\xff"
    assert client.request_metadata("localhost", here) == b"prefill"


@pytest.mark.parametrize("size", [0, 1, 40_000, 64 << 20])
def test_metadata_of_every_size_arrives_intact(transport, client, size):
    data = os.urandom(min(size, 1 << 16)) * (size // (1 << 16) + 1)
    data = data[:size]
    # On a busy machine 64 MiB may take longer than the default timeout.
    with transport.make(client_timeout_ms=60_000) as server:
        port = server.start_listener(0, data)
        assert client.request_metadata(HOST, port, timeout_ms=60_000) == data


def test_1000_requests_from_64_clients(server, client):
    port = server.start_listener(0, BLOB)
    failures = []

    def ask(count):
        try:
            for _ in range(count):
                got = client.request_metadata(HOST, port, timeout_ms=30_000)
                assert got == BLOB
        except BaseException as error:
            failures.append(error)

    threads = [
        threading.Thread(target=ask, args=(16 if i < 40 else 15,))
        for i in range(64)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    until(lambda: server.stats()["served"] == 1000, "1000 replies")


# -- Keys -------------------------------------------------------------------


def test_each_key_has_its_own_metadata(server, client):
    port = server.start_listener(
        0, {None: b"default", (0, 0): b"first", (0, 1): b"second"}
    )
    assert client.request_metadata(HOST, port) == b"default"
    assert client.request_metadata(HOST, port, key=(0, 0)) == b"first"
    assert client.request_metadata(HOST, port, key="0,1") == b"second"


def test_names_and_bytes_are_keys(transport, server, client):
    if not transport.any_key:
        pytest.skip(f"{transport.name} has keys of ranks alone")
    keys = ["a", "prefill/0", "ü n", b"\xff\x00?", "k" * 255]
    blobs = {key: repr(key).encode() for key in keys}
    port = server.start_listener(0, blobs)
    for key, blob in blobs.items():
        assert client.request_metadata(HOST, port, key=key) == blob


def test_unknown_key_error_lists_no_other_keys(server, client):
    port = server.start_listener(0, {None: b"x", (3, 4): b"other"})
    with pytest.raises(vllm_nixl.nixlNotFoundError) as info:
        client.request_metadata(HOST, port, key=(7, 7))
    assert "7,7" in str(info.value)
    assert "3,4" not in str(info.value)
    assert info.value.peer == f"{HOST}:{port}"
    assert client.request_metadata(HOST, port, key=(3, 4)) == b"other"
    until(lambda: server.stats()["refusals"]["unknown_key"] == 1, "the count")


def test_metadata_is_replaced_and_removed_while_serving(server, client):
    port = server.start_listener(0, b"old")
    server.set_metadata(b"new")
    assert client.request_metadata(HOST, port) == b"new"
    server.set_metadata(b"rank", key=(1, 2))
    assert client.request_metadata(HOST, port, key=(1, 2)) == b"rank"
    server.set_metadata({None: b"newer", (5, 6): b"many"})
    assert client.request_metadata(HOST, port) == b"newer"
    assert client.request_metadata(HOST, port, key=(5, 6)) == b"many"
    server.remove_metadata((1, 2))
    with pytest.raises(vllm_nixl.nixlNotFoundError):
        client.request_metadata(HOST, port, key=(1, 2))
    with pytest.raises(vllm_nixl.nixlNotFoundError):
        server.remove_metadata((1, 2))
    server.shutdown()
    with pytest.raises(vllm_nixl.nixlNotAllowedError):
        server.set_metadata(b"late")


def test_replacing_under_load_never_mixes_blobs(server, client):
    blobs = [bytes([i]) * 50_000 for i in range(8)]
    port = server.start_listener(0, blobs[0])
    stop = threading.Event()

    def replace():
        i = 0
        while not stop.is_set():
            i = (i + 1) % len(blobs)
            server.set_metadata(blobs[i])

    thread = threading.Thread(target=replace)
    thread.start()
    try:
        for _ in range(100):
            assert client.request_metadata(HOST, port) in blobs
    finally:
        stop.set()
        thread.join()


# -- Lifetime ---------------------------------------------------------------


def test_restart_on_the_same_port_serves_new_metadata(server, client):
    port = reserve_port()
    server.start_listener(port, {None: b"0", (0, 0): b"gone"})
    for i in range(1, 10):
        server.shutdown()
        assert server.start_listener(port, str(i).encode()) == port
        assert client.request_metadata(HOST, port) == str(i).encode()


def test_state_is_reported(server):
    assert not server.is_running()
    assert server.port == 0
    assert "not running" in repr(server)
    port = server.start_listener(0, BLOB)
    assert server.is_running()
    assert server.port == port
    assert str(port) in repr(server)
    with pytest.raises(RuntimeError, match="already running"):
        server.start_listener(0, BLOB)
    server.shutdown()
    server.shutdown()
    assert not server.is_running()


def test_shutdown_does_not_wait_for_hanging_clients(transport):
    """Else it would wait for an hour."""
    with transport.make(client_timeout_ms=3_600_000) as server:
        port = server.start_listener(0, BLOB)
        with socket.create_connection((HOST, port)):
            server.shutdown()


def test_no_descriptor_or_thread_is_left_open(transport):
    def cycle():
        with transport.make() as made:
            port = made.start_listener(0, BLOB)
            with socket.create_connection((HOST, port)):
                made.request_metadata(HOST, port)

    cycle()
    fds = len(os.listdir("/proc/self/fd"))
    threads = len(os.listdir("/proc/self/task"))
    for _ in range(10):
        cycle()
    until(
        lambda: (
            len(os.listdir("/proc/self/fd")) <= fds
            and len(os.listdir("/proc/self/task")) <= threads
        ),
        "the end of descriptors and threads",
    )


# -- Failures ---------------------------------------------------------------


def test_unreachable_port_is_an_error(transport, server, client):
    port = server.start_listener(reserve_port(), BLOB)
    server.shutdown()
    with pytest.raises(transport.errors(transport.dead)) as info:
        client.request_metadata(HOST, port)
    assert info.value.peer == f"{HOST}:{port}"


def test_silent_server_cannot_exceed_the_deadline(client):
    with raw_server(lambda sock: None) as port:
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            client.request_metadata(HOST, port, timeout_ms=300)
        assert time.monotonic() - start >= 0.3


def test_a_server_that_closes_is_an_error(transport, client):
    with (
        raw_server(lambda sock: sock.close()) as port,
        pytest.raises(transport.errors(transport.closed)),
    ):
        client.request_metadata(HOST, port)


def test_retries_wait_for_a_server_that_starts_later(server, client):
    port = server.start_listener(reserve_port(), BLOB)
    server.shutdown()
    timer = threading.Timer(0.2, server.start_listener, (port, BLOB))
    timer.start()
    got = client.request_metadata(HOST, port, timeout_ms=20_000, retries=None)
    assert got == BLOB
    timer.join()


def test_unknown_key_is_not_retried(server, client):
    port = server.start_listener(0, BLOB)
    with pytest.raises(vllm_nixl.nixlNotFoundError):
        client.request_metadata(HOST, port, key=(7, 7), retries=None)
    answers = client.request_many([(HOST, port, (7, 7))] * 3, retries=9)
    assert {type(one) for one in answers} == {vllm_nixl.nixlNotFoundError}
    until(lambda: server.stats()["refusals"]["unknown_key"] == 4, "the counts")
    assert server.stats()["accepted"] == 4


# -- Many at once -----------------------------------------------------------


def test_many_peers_are_fetched_concurrently(server, client):
    port = server.start_listener(0, {None: BLOB, (0, 1): b"one"})
    peers = [(HOST, port), (HOST, port, (0, 1)), (HOST, port, (9, 9))]
    answers = client.request_many(peers * 20)
    assert len(answers) == 60
    for i in range(0, 60, 3):
        assert answers[i] == BLOB
        assert answers[i + 1] == b"one"
        assert isinstance(answers[i + 2], vllm_nixl.nixlNotFoundError)
    assert client.request_many([]) == []


def test_both_calls_have_asyncio_versions(server, client):
    port = server.start_listener(0, {None: BLOB, (0, 1): b"one"})

    async def main():
        both = await asyncio.gather(
            client.request_metadata_async(HOST, port),
            client.request_metadata_async(HOST, port, key=(0, 1)),
        )
        assert both == [BLOB, b"one"]
        with pytest.raises(vllm_nixl.nixlNotFoundError):
            await client.request_metadata_async(HOST, port, key=(9, 9))
        many = await client.request_many_async([(HOST, port)] * 30)
        assert many == [BLOB] * 30

    asyncio.run(main())


def test_waiting_coroutine_does_not_block_others(client):
    async def main(port):
        waiting = asyncio.ensure_future(
            client.request_metadata_async(HOST, port, timeout_ms=60_000)
        )
        for _ in range(10):
            await asyncio.sleep(0.01)
        assert not waiting.done()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(TimeoutError):
            await client.request_metadata_async(HOST, port, timeout_ms=300)

    with raw_server(lambda sock: None) as port:
        asyncio.run(main(port))


# -- A shared secret --------------------------------------------------------

SECRET = "correct horse battery staple"


def test_shared_secret_admits_only_clients_that_know_it(transport):
    if not transport.has_secret:
        pytest.skip(f"{transport.name} knows no shared secret")
    with (
        transport.make(secret=SECRET) as server,
        transport.make(secret=SECRET) as friend,
        transport.make(secret=SECRET + "r") as other,
        transport.make() as stranger,
    ):
        port = server.start_listener(0, {None: BLOB, (0, 1): b"one"})
        assert friend.request_metadata(HOST, port) == BLOB
        assert friend.request_metadata(HOST, port, key=(0, 1)) == b"one"
        with pytest.raises(vllm_nixl.nixlNotFoundError):
            friend.request_metadata(HOST, port, key=(7, 7))
        for one in (other, stranger):
            with pytest.raises(vllm_nixl.NixlError) as info:
                one.request_metadata(HOST, port, timeout_ms=1000)
            assert SECRET not in str(info.value)
            with pytest.raises(vllm_nixl.NixlError):
                one.request_metadata(HOST, port, timeout_ms=1000, key=(0, 1))
        assert server.stats()["served"] <= 2


def test_secret_in_the_environment_is_used(transport, monkeypatch):
    if not transport.has_secret:
        pytest.skip(f"{transport.name} knows no shared secret")
    with transport.make() as stranger:
        monkeypatch.setenv("VLLM_NIXL_SIDE_CHANNEL_SECRET", SECRET)
        with transport.make() as server, transport.make() as friend:
            port = server.start_listener(0, BLOB)
            assert friend.request_metadata(HOST, port) == BLOB
            with pytest.raises(vllm_nixl.NixlError):
                stranger.request_metadata(HOST, port, timeout_ms=1000)


def test_a_short_secret_is_refused_and_not_shown(transport):
    with pytest.raises(
        (vllm_nixl.nixlInvalidParamError, vllm_nixl.nixlNotSupportedError)
    ) as info:
        getattr(vllm_nixl, transport.class_name)(secret="hunter2")
    assert "hunter2" not in str(info.value)
