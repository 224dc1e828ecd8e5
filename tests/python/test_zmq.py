"""ZmqSideChannel with stock vLLM's handshake at the other end, in both roles.

The other end is pyzmq and msgpack, used as vLLM's connector uses them.
Behaviour that all side channels share is tested in test_transports.py.
"""

import contextlib
import math
import os
import socket
import time

import pytest
from support import zmtp
from support.deadline import until
from support.program import run_program

with contextlib.suppress(ModuleNotFoundError):  # `module` fails for it
    import vllm_nixl

msgpack = pytest.importorskip("msgpack", reason="msgpack is not installed")
zmq = pytest.importorskip("zmq", reason="pyzmq is not installed")

from support.vllm_listener import (  # noqa: E402
    GET_META_MSG,
    HOST,
    stock_listener,
)

pytestmark = [pytest.mark.beyond_stock, pytest.mark.usefixtures("module")]


def make(**options):
    try:
        return vllm_nixl.ZmqSideChannel(**options)
    except vllm_nixl.nixlNotSupportedError as error:
        pytest.skip(str(error))


@pytest.fixture
def channel():
    with make() as made:
        yield made


@pytest.fixture
def context():
    made = zmq.Context()
    yield made
    made.destroy(linger=0)


# -- Stock vLLM -------------------------------------------------------------


def payload_of(rank):
    """A NixlHandshakePayload of connector version 15, encoded as by vLLM's
    worker."""
    metadata = {
        "engine_id": f"engine-{rank}",
        "agent_metadata": os.urandom(300),
        "kv_caches_base_addr": [1 << 46, 2 << 46],
        "device_id": rank,
        "num_blocks": 1000,
        "block_lens": [65536] * 2,
        "block_strides": [65536] * 2,
        "kv_cache_layout": "HND",
        "block_size": 16,
        "ssm_sizes": (0, 0),
        "attn_backend_name": "CPU_ATTN",
        "physical_blocks_per_logical_kv_block": 1,
        "region_num_blocks": None,
        "region_group_ids": None,
        "region_names": None,
        "region_mem_types": None,
        "dcp_size": 1,
        "pcp_size": 1,
        "ple_block_len": None,
        "region_members": [["layers.0"], ["layers.1"]],
        "packed_member_layouts": {"layers.0": (0, 4096)},
    }
    return msgpack.packb(
        {
            "compatibility_hash": "0" * 64,
            "agent_metadata_bytes": msgpack.packb(metadata),
        }
    )


class StockError(RuntimeError):
    """The error that vLLM raises for a payload it cannot decode."""


def decode_payload(data):
    """As vLLM: a map that lacks a field is not a NixlHandshakePayload."""
    try:
        payload = msgpack.unpackb(data)
        return payload["compatibility_hash"], payload["agent_metadata_bytes"]
    except (ValueError, KeyError, TypeError) as error:
        raise StockError("Failed to decode NixlHandshakePayload") from error


def stock_ask(context, port, *ranks, host=HOST):
    """vLLM's client; ranks are (pp_rank, tp_rank) in connector versions 5 to
    15, and (tp_rank,) in older ones."""
    with context.socket(zmq.REQ) as sock:
        sock.setsockopt(zmq.IPV6, ":" in host)
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.RCVTIMEO, 60_000)
        where = f"[{host}]" if ":" in host else host
        sock.connect(f"tcp://{where}:{port}")
        sock.send(msgpack.packb((GET_META_MSG, *ranks)))
        return sock.recv_multipart()


# -- Our listener, stock's client -------------------------------------------


def test_stock_client_gets_every_rank(channel, context):
    blobs = {(pp, tp): payload_of(tp) for pp in range(2) for tp in range(4)}
    port = channel.start_listener(0, blobs)
    for ranks, blob in blobs.items():
        got, clock = stock_ask(context, port, *ranks)
        assert got == blob
        assert decode_payload(got)[0] == "0" * 64
        assert abs(msgpack.unpackb(clock) - time.perf_counter()) < 60
    until(lambda: channel.stats()["served"] == len(blobs), "the count")


def test_older_stock_client_gets_one_frame(channel, context):
    port = channel.start_listener(0, {(0, 0): b"a", (0, 1): b"b", (2,): b"c"})
    assert stock_ask(context, port, 0) == [b"a"]
    assert stock_ask(context, port, 1) == [b"b"]
    assert stock_ask(context, port, 2) == [b"c"]


@pytest.mark.parametrize("count", [3, 4, 5, 20])
def test_stock_client_may_name_a_rank_by_more_integers(
    channel, context, count
):
    """Later connectors add ranks, of context parallelism for example."""
    blobs = {
        tuple((i + n) % 300 for n in range(count)): payload_of(i)
        for i in range(4)
    }
    port = channel.start_listener(0, blobs)
    for ranks, blob in blobs.items():
        got, clock = stock_ask(context, port, *ranks)
        assert got == blob
        assert abs(msgpack.unpackb(clock) - time.perf_counter()) < 60
    assert decode_is_refused(stock_ask(context, port, *range(1, 3)))
    assert decode_is_refused(stock_ask(context, port, *range(7, 7 + count)))


def test_each_number_of_integers_has_its_own_keys(channel, context):
    """What a third integer means is not known, so no rank is guessed."""
    port = channel.start_listener(0, {(0, 1): b"two", (0, 1, 0): b"three"})
    assert stock_ask(context, port, 0, 1)[0] == b"two"
    assert stock_ask(context, port, 0, 1, 0)[0] == b"three"
    for ranks in ((0, 0, 1), (1, 0), (0, 1, 0, 0)):
        assert decode_is_refused(stock_ask(context, port, *ranks))


def test_single_blob_is_served_as_rank_0(channel, context):
    port = channel.start_listener(0, b"the only one")
    assert stock_ask(context, port, 0, 0)[0] == b"the only one"
    assert stock_ask(context, port, 0) == [b"the only one"]
    assert stock_ask(context, port, 0, 0, 0)[0] == b"the only one"
    assert decode_is_refused(stock_ask(context, port, 0, 1))
    assert decode_is_refused(stock_ask(context, port, 0, 1, 0))
    assert decode_is_refused(stock_ask(context, port, 1))


def decode_is_refused(reply):
    with pytest.raises(StockError):
        decode_payload(reply[0])
    text = msgpack.unpackb(reply[0])["error"]
    return text == "nothing is served under that key"


def test_an_unknown_rank_is_an_error_at_once(channel, context):
    port = channel.start_listener(0, {(0, 0): payload_of(0)})
    for ranks in ((0, 1), (1, 0), (9,), (-1, 0), (1 << 62, 1 << 62)):
        reply = stock_ask(context, port, *ranks)
        assert decode_is_refused(reply)
        # The reply has a float in place of the clock; it is not a number.
        assert math.isnan(msgpack.unpackb(reply[1]))
    assert channel.stats()["refusals"]["unknown_key"] == 5
    assert stock_ask(context, port, 0, 0)[0]


def test_socket_can_send_many_requests(channel, context):
    port = channel.start_listener(0, {(0, 0): b"old"})
    with context.socket(zmq.REQ) as sock:
        sock.setsockopt(zmq.RCVTIMEO, 20_000)
        sock.setsockopt(zmq.LINGER, 0)
        sock.connect(f"tcp://{HOST}:{port}")
        for i in range(50):
            channel.set_metadata(str(i).encode(), key=(0, 0))
            sock.send(msgpack.packb((GET_META_MSG, 0, 0)))
            assert sock.recv_multipart()[0] == str(i).encode()
    assert channel.stats()["accepted"] == 1


def test_heartbeats_are_answered(channel, context):
    port = channel.start_listener(0, {(0, 0): b"x"})
    with context.socket(zmq.REQ) as sock:
        sock.setsockopt(zmq.RCVTIMEO, 20_000)
        sock.setsockopt(zmq.LINGER, 0)
        sock.setsockopt(zmq.HEARTBEAT_IVL, 20)
        sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, 20_000)
        sock.connect(f"tcp://{HOST}:{port}")
        sock.send(msgpack.packb((GET_META_MSG, 0, 0)))
        assert sock.recv_multipart()[0] == b"x"
        sent = channel.stats()["bytes_sent"]
        until(lambda: channel.stats()["bytes_sent"] > sent + 50, "PONGs")
        sock.send(msgpack.packb((GET_META_MSG, 0, 0)))
        assert sock.recv_multipart()[0] == b"x"
    assert channel.stats()["accepted"] == 1


def test_dealer_may_send_requests_ahead(channel, context):
    port = channel.start_listener(0, {(0, i): bytes([i]) for i in range(50)})
    with context.socket(zmq.DEALER) as sock:
        sock.setsockopt(zmq.RCVTIMEO, 20_000)
        sock.setsockopt(zmq.LINGER, 0)
        sock.connect(f"tcp://{HOST}:{port}")
        for i in range(50):
            ask = msgpack.packb((GET_META_MSG, 0, i))
            sock.send_multipart([b"", ask])
        for i in range(50):
            assert sock.recv_multipart()[:2] == [b"", bytes([i])]


def test_stock_client_receives_64_mib(context):
    data = os.urandom(1 << 20) * 64
    # On a busy machine this may take longer than the default timeout.
    with make(client_timeout_ms=60_000) as channel:
        port = channel.start_listener(0, {(0, 0): data})
        assert stock_ask(context, port, 0, 0)[0] == data


def test_stock_client_connects_by_ipv6(channel, context):
    try:
        port = channel.start_listener(0, b"six", "::1")
    except vllm_nixl.NixlError as error:
        pytest.skip(f"this machine has no IPv6: {error}")
    assert stock_ask(context, port, 0, host="::1") == [b"six"]
    assert channel.request_metadata("::1", port) == b"six"


def test_stock_client_reconnects_to_a_restarted_listener(channel, context):
    port = channel.start_listener(0, b"first")
    with context.socket(zmq.REQ) as sock:
        sock.setsockopt(zmq.RCVTIMEO, 20_000)
        sock.setsockopt(zmq.LINGER, 0)
        sock.connect(f"tcp://{HOST}:{port}")
        sock.send(msgpack.packb((GET_META_MSG, 0)))
        assert sock.recv_multipart() == [b"first"]
        channel.shutdown()
        channel.start_listener(port, b"second")
        # Messages that libzmq sends before it notices the disconnect are lost.
        until(lambda: channel.stats()["open"] == 1, "another connection")
        sock.send(msgpack.packb((GET_META_MSG, 0)))
        assert sock.recv_multipart() == [b"second"]


# -- Messages that kill stock's listener ------------------------------------

NO_REQUESTS = {
    "nothing": [b"", b""],
    "no msgpack": [b"", b"\xc1"],
    "cut": [b"", b"\x93\xc4\x0cget_meta"],
    "one": [b"", msgpack.packb((GET_META_MSG,))],
    "too many": [b"", msgpack.packb((GET_META_MSG, *[0] * 200))],
    "a list": [b"", msgpack.packb((GET_META_MSG, 0, [0]))],
    "another name": [b"", msgpack.packb((b"get_meta_msG", 0, 0))],
    "ranks of text": [b"", msgpack.packb((GET_META_MSG, "0", "0"))],
    "a rank too large": [b"", msgpack.packb((GET_META_MSG, 0, (1 << 64) - 1))],
    "deep": [b"", b"\x91" * 1000],
    "extra frame": [b"", msgpack.packb((GET_META_MSG, 0, 0)), b"x"],
    "two delimiters": [b"", b"", msgpack.packb((GET_META_MSG, 0, 0))],
    "many frames": [b"", *[b"x"] * 50],
}
NOT_ANSWERED = {
    "no delimiter": [msgpack.packb((GET_META_MSG, 0, 0))],
    "a delimiter alone": [b""],
    "a full delimiter": [b"x", msgpack.packb((GET_META_MSG, 0, 0))],
}
CLOSED = {
    "long": [b"", b"\x93" * 2000],
    "a thousand frames": [b"", *[b"x"] * 1000],
}


def send_and_ask(context, port, parts, answers):
    """Send it, then a request on the same socket; return the reply."""
    with context.socket(zmq.DEALER) as sock:
        sock.setsockopt(zmq.RCVTIMEO, 20_000)
        sock.setsockopt(zmq.LINGER, 0)
        sock.connect(f"tcp://{HOST}:{port}")
        sock.send_multipart(parts)
        sock.send_multipart([b"", msgpack.packb((GET_META_MSG, 0, 0))])
        return [sock.recv_multipart() for _ in range(answers)]


@pytest.mark.parametrize("name", NO_REQUESTS)
def test_invalid_request_gets_an_error_reply(channel, context, name):
    port = channel.start_listener(0, {(0, 0): b"blob"})
    answers = send_and_ask(context, port, NO_REQUESTS[name], 2)
    text = msgpack.unpackb(answers[0][1])["error"]
    assert text == "not a request for metadata"
    assert answers[1][1] == b"blob"
    assert channel.stats()["refusals"]["malformed"] == 1


@pytest.mark.parametrize("name", NOT_ANSWERED)
def test_unanswerable_message_is_dropped(channel, context, name):
    port = channel.start_listener(0, {(0, 0): b"blob"})
    answers = send_and_ask(context, port, NOT_ANSWERED[name], 1)
    assert answers[0][1] == b"blob"
    assert channel.stats()["refusals"]["malformed"] == 1


@pytest.mark.parametrize("name", CLOSED)
def test_oversized_message_closes_the_connection(channel, context, name):
    port = channel.start_listener(0, {(0, 0): b"blob"})
    with context.socket(zmq.DEALER) as sock:
        sock.setsockopt(zmq.LINGER, 0)
        sock.connect(f"tcp://{HOST}:{port}")
        sock.send_multipart(CLOSED[name])
        until(lambda: channel.stats()["refusals"]["too_long"], "the refusal")
    assert stock_ask(context, port, 0, 0)[0] == b"blob"


@pytest.mark.parametrize("kind", ["SUB", "XSUB", "PUSH", "PAIR", "REP", "PUB"])
def test_sockets_of_other_types_are_refused(channel, context, kind):
    port = channel.start_listener(0, {(0, 0): b"blob"})
    with context.socket(getattr(zmq, kind)) as sock:
        sock.setsockopt(zmq.LINGER, 0)
        sock.connect(f"tcp://{HOST}:{port}")
        until(lambda: channel.stats()["refused"], "the refusal")
    assert stock_ask(context, port, 0, 0)[0] == b"blob"


def test_identities_are_not_exclusive(channel, context):
    port = channel.start_listener(0, {(0, 0): b"blob"})
    socks = []
    for _ in range(4):
        sock = context.socket(zmq.REQ)
        sock.setsockopt(zmq.IDENTITY, b"the same")
        sock.setsockopt(zmq.RCVTIMEO, 20_000)
        sock.setsockopt(zmq.LINGER, 0)
        sock.connect(f"tcp://{HOST}:{port}")
        sock.send(msgpack.packb((GET_META_MSG, 0, 0)))
        socks.append(sock)
    for sock in socks:
        assert sock.recv_multipart()[0] == b"blob"
        sock.close()


# -- Stock's listener, our client -------------------------------------------


def test_client_gets_every_rank_from_stock(channel, context):
    blobs = {(pp, tp): payload_of(tp) for pp in range(2) for tp in range(3)}
    with stock_listener(context, blobs) as stock:
        for ranks, blob in blobs.items():
            got = channel.request_metadata(HOST, stock.port, key=ranks)
            assert got == blob
        # Stock has no default; the default is its first rank.
        assert channel.request_metadata(HOST, stock.port) == blobs[0, 0]
        peers = [(HOST, stock.port, ranks) for ranks in blobs] * 10
        assert channel.request_many(peers) == list(blobs.values()) * 10


def test_client_gets_ranks_from_older_stock(channel, context):
    blobs = {(0,): b"zero", (200,): b"many"}
    with stock_listener(context, blobs) as stock:
        for ranks, blob in blobs.items():
            got = channel.request_metadata(HOST, stock.port, key=ranks)
            assert got == blob


def test_client_names_a_rank_by_more_integers(channel, context):
    blobs = {(0, 1, rank): payload_of(rank) for rank in (0, 1, 70_000)}
    with stock_listener(context, blobs) as stock:
        for ranks, blob in blobs.items():
            got = channel.request_metadata(HOST, stock.port, key=ranks)
            assert got == blob
        text = channel.request_metadata(HOST, stock.port, key="0,1,70000")
        assert text == blobs[0, 1, 70_000]


def test_client_receives_64_mib_from_stock(channel, context):
    data = os.urandom(1 << 20) * 64
    with stock_listener(context, {(0, 0): data}) as stock:
        got = channel.request_metadata(HOST, stock.port, 60_000, key=(0, 0))
        assert got == data


def test_key_name_does_not_kill_stocks_listener(channel, context):
    with stock_listener(context, {(0, 0): b"x"}) as stock:
        with pytest.raises(vllm_nixl.nixlNotFoundError, match="ranks"):
            channel.request_metadata(HOST, stock.port, key="prefill")
        got = channel.request_metadata(HOST, stock.port, key=(0, 0))
        assert got == b"x"
        assert stock.failure is None


def test_rank_that_kills_stocks_listener_times_out(channel, context):
    with stock_listener(context, {(0, 0): b"x"}) as stock:
        with pytest.raises((TimeoutError, vllm_nixl.nixlBackendError)):
            channel.request_metadata(
                HOST, stock.port, timeout_ms=3000, key=(5, 5)
            )
        stock.thread.join(30)
        assert isinstance(stock.failure, KeyError)


def test_a_blob_above_max_frame_is_refused(context):
    with (
        make(max_frame=1000) as small,
        stock_listener(context, {(0, 0): b"x" * 1001}) as stock,
        pytest.raises(vllm_nixl.nixlMismatchError, match="max_frame"),
    ):
        small.request_metadata(HOST, stock.port, key=(0, 0))


@pytest.mark.parametrize("kind", ["DEALER", "REP", "PUB", "PULL"])
def test_other_socket_types_are_refused_as_listeners(channel, context, kind):
    with context.socket(getattr(zmq, kind)) as sock:
        port = sock.bind_to_random_port(f"tcp://{HOST}")
        with pytest.raises(vllm_nixl.NixlError):
            channel.request_metadata(HOST, port, timeout_ms=300)


def test_a_curve_server_is_an_error_at_once(channel, context):
    if not zmq.has("curve"):
        pytest.skip("pyzmq has no CURVE")
    with context.socket(zmq.ROUTER) as sock:
        sock.curve_server = True
        sock.curve_publickey, sock.curve_secretkey = zmq.curve_keypair()
        port = sock.bind_to_random_port(f"tcp://{HOST}")
        with pytest.raises(vllm_nixl.NixlError, match="shaking hands") as info:
            channel.request_metadata(HOST, port, timeout_ms=60_000)
        assert not isinstance(info.value, TimeoutError)


# -- The process ------------------------------------------------------------


def test_zmq_loads_no_library_and_leaves_no_thread():
    done = run_program(
        """
        import os, vllm_nixl
        threads = len(os.listdir("/proc/self/task"))
        with vllm_nixl.ZmqSideChannel() as made:
            port = made.start_listener(0, b"x")
            assert made.request_metadata("127.0.0.1", port) == b"x"
            assert len(os.listdir("/proc/self/task")) == threads + 1
        assert "libzmq" not in open("/proc/self/maps").read()
        left = vllm_nixl.ZmqSideChannel()
        left.start_listener(0, b"running at the end of the program")
        print("done")
        """
    )
    assert done.stdout.strip() == "done"


def test_forked_child_can_fetch_from_its_parent(channel):
    port = channel.start_listener(0, b"parent")
    # Let the thread sleep: ASan cannot fork beside a starting thread.
    assert channel.request_metadata(HOST, port) == b"parent"
    until(lambda: channel.stats()["open"] == 0, "the end of the request")
    pid = os.fork()
    if pid == 0:
        ok = (
            not channel.is_running()
            and channel.request_metadata(HOST, port) == b"parent"
        )
        os._exit(0 if ok else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert channel.request_metadata(HOST, port) == b"parent"


# -- Secrets and TLS --------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{"secret": "hunter2 hunter2"}, {"tls": True}]
)
def test_secrets_and_tls_are_refused(options):
    with make(**options) as made:
        with pytest.raises(vllm_nixl.nixlNotSupportedError) as info:
            made.request_metadata(HOST, 9)
        assert "hunter2" not in str(info.value)
        assert "TCP" in str(info.value)
        if "secret" in options:
            with pytest.raises(vllm_nixl.nixlNotSupportedError):
                made.start_listener(0, b"x")


# -- Counting ---------------------------------------------------------------


def test_listener_counts_requests_and_replies(channel):
    port = channel.start_listener(0, {(0, 0): b"x" * 1000})
    ask = zmtp.message(b"", msgpack.packb((GET_META_MSG, 0, 0)))
    with zmtp.shaken(port) as sock:
        sock.sendall(ask)
        size = 2 + 9 + 1000 + 2 + 9
        assert len(zmtp.read(sock, size)) == size
        until(lambda: channel.stats()["served"] == 1, "the count")
        stats = channel.stats()
        assert stats["open"] == 1
        assert stats["bytes_received"] == 64 + len(zmtp.ready()) + len(ask)
        assert stats["bytes_sent"] == zmtp.LISTENER_BYTES + size
        assert sum(stats["latency"]) == 1
    until(lambda: channel.stats()["open"] == 0, "the end")


def test_a_rate_above_the_limit_is_refused():
    with make(max_rate=5) as made, contextlib.ExitStack() as stack:
        port = made.start_listener(0, b"x")
        for _ in range(50):
            stack.enter_context(socket.create_connection((HOST, port)))
        until(lambda: made.stats()["refusals"]["rate"] > 0, "a refusal")


# -- Memory -----------------------------------------------------------------


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_endless_messages_use_bounded_memory(channel):
    port = channel.start_listener(0, b"blob")
    data = b"\x01\x00" * (1 << 19)
    before = resident()
    for _ in range(20):
        with zmtp.shaken(port) as sock, contextlib.suppress(OSError):
            sock.sendall(data)
    until(lambda: channel.stats()["refusals"]["too_long"] == 20, "the count")
    assert resident() - before < 32 << 20
    assert channel.request_metadata(HOST, port) == b"blob"


def test_clients_that_never_read_use_bounded_memory(context):
    blob = os.urandom(4 << 20)
    ask = zmtp.message(b"", zmtp.GET_META_MSG + b"\0\0")
    with make(client_timeout_ms=4000) as made, contextlib.ExitStack() as stack:
        port = made.start_listener(0, blob)
        socks = [stack.enter_context(zmtp.shaken(port)) for _ in range(30)]
        before = resident()
        for sock in socks:
            sock.settimeout(0.01)
            with contextlib.suppress(OSError):
                sock.sendall(ask * 1000)
        assert stock_ask(context, port, 0, 0)[0] == blob
        assert resident() - before < 64 << 20
        until(lambda: made.stats()["timed_out"] == 30, "the end of them")
        assert stock_ask(context, port, 0, 0)[0] == blob


def test_many_clients_with_a_handshake_are_served(channel):
    port = channel.start_listener(0, b"blob")
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(zmtp.shaken(port))
        for _ in range(20):
            assert channel.request_metadata(HOST, port) == b"blob"
        assert channel.stats()["open"] >= 300
