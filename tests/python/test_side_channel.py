"""The TCP side channel: exchange, misuse, misbehaving peers, processes.

The other end is our own, or is written here from the bytes of the protocol.
"""

import array
import collections
import contextlib
import inspect
import os
import pickle
import resource
import socket
import struct
import threading
import time

import pytest
from support.deadline import until
from support.ports import reserve_port
from support.program import run_program

with contextlib.suppress(ModuleNotFoundError):  # `module` fails for it
    import vllm_nixl
    from vllm_nixl import TcpSideChannel

pytestmark = [pytest.mark.beyond_stock, pytest.mark.usefixtures("module")]

HOST = "127.0.0.1"
REQUEST = b"\x00\x00\x00\x0cGET_METADATA"
BLOB = bytes(range(256)) * 4


@pytest.fixture
def channel():
    with TcpSideChannel() as made:
        yield made


@pytest.fixture
def other():
    with TcpSideChannel() as made:
        yield made


# -- The other end, from the bytes ------------------------------------------


def connect(port):
    return socket.create_connection((HOST, port), timeout=30)


def read_to_end(sock):
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(1 << 16):
            data += piece
    return data


@contextlib.contextmanager
def raw_server(serve):
    """Pass every client to `serve(sock)` in a thread; yields the port."""
    listener = socket.create_server((HOST, 0))
    listener.settimeout(30)
    threads = []

    def run():
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                thread = threading.Thread(target=handle, args=(client,))
                threads.append(thread)
                thread.start()

    def handle(client):
        with client, contextlib.suppress(OSError):
            client.settimeout(30)
            serve(client)

    acceptor = threading.Thread(target=run)
    acceptor.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        for thread in [acceptor, *threads]:
            thread.join(30)
            assert not thread.is_alive()


def answering(reply):
    def serve(client):
        assert client.recv(16, socket.MSG_WAITALL) == REQUEST
        client.sendall(reply)

    return serve


def silent(client):
    client.recv(16, socket.MSG_WAITALL)
    client.recv(1)  # until the other side closes


def dripping(client):
    client.sendall(struct.pack(">I", 1000))
    while True:
        client.sendall(b"x")
        time.sleep(0.02)


# -- Exchange ---------------------------------------------------------------


def test_exchange_both_ways(channel, other):
    here = channel.start_listener(0, b"prefill")
    there = other.start_listener(0, b"decode\x00\xff")
    assert other.request_metadata(HOST, here) == b"prefill"
    assert channel.request_metadata(HOST, there) == b"decode\x00\xff"
    assert channel.request_metadata("localhost", here) == b"prefill"


@pytest.mark.parametrize("size", [0, 1, 40_000, 10 << 20, 64 << 20])
def test_metadata_of_every_size_arrives_intact(other, size):
    data = os.urandom(min(size, 1 << 16)) * (size // (1 << 16) + 1)
    data = data[:size]
    # On a busy machine 64 MiB may take longer than the default timeout.
    with TcpSideChannel(client_timeout_ms=60_000) as channel:
        port = channel.start_listener(0, data)
        assert other.request_metadata(HOST, port, timeout_ms=60_000) == data


@pytest.mark.parametrize("make", [bytearray, memoryview, bytes])
def test_metadata_may_be_any_buffer_and_is_copied(channel, make):
    data = bytearray(b"before")
    port = channel.start_listener(0, make(data))
    data[:] = b"after!"
    assert channel.request_metadata(HOST, port) == b"before"


def test_metadata_may_be_a_mapping_written_in_python(channel):
    blobs = collections.UserDict({"a": b"blob of a", (0, 1): b"blob of 0, 1"})
    port = channel.start_listener(0, blobs)
    for key, blob in blobs.items():
        assert channel.request_metadata(HOST, port, key=key) == blob


def test_metadata_may_be_an_array(channel):
    numbers = array.array("Q", [1, 2, 3])
    port = channel.start_listener(metadata=numbers, port=0)
    assert channel.request_metadata(HOST, port) == numbers.tobytes()


def test_ipv6_addresses_work(channel):
    try:
        port = channel.start_listener(0, BLOB, host="::1")
    except vllm_nixl.nixlBackendError:
        pytest.skip("this machine has no IPv6")
    assert channel.request_metadata("::1", port) == BLOB
    assert channel.request_metadata(host="localhost", port=port) == BLOB


def test_wildcard_address_listens_on_all_interfaces(channel):
    port = channel.start_listener(0, BLOB)
    assert channel.request_metadata(HOST, port) == BLOB
    with (
        contextlib.suppress(OSError),
        socket.create_server(("::1", 0), family=socket.AF_INET6),
    ):
        assert channel.request_metadata("::1", port) == BLOB


def test_many_threads_fetch_concurrently(channel):
    port = channel.start_listener(0, BLOB * 40)
    failures = []

    def ask():
        try:
            for _ in range(50):
                assert channel.request_metadata(HOST, port) == BLOB * 40
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    until(lambda: channel.stats()["served"] == 400, "400 replies")


# -- From the bytes ---------------------------------------------------------


def test_raw_client_receives_the_bytes_and_the_end_of_stream(channel):
    port = channel.start_listener(0, BLOB)
    with connect(port) as sock:
        sock.sendall(REQUEST)
        assert read_to_end(sock) == struct.pack(">I", len(BLOB)) + BLOB


def test_a_raw_client_may_send_byte_by_byte(channel):
    port = channel.start_listener(0, b"")
    with connect(port) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for i in range(len(REQUEST)):
            sock.sendall(REQUEST[i : i + 1])
        assert read_to_end(sock) == b"\x00\x00\x00\x00"


@pytest.mark.parametrize("body", [b"", b"x", BLOB * 100])
def test_raw_server_is_accepted(channel, body):
    with raw_server(answering(struct.pack(">I", len(body)) + body)) as port:
        assert channel.request_metadata(HOST, port) == body


@pytest.mark.parametrize(
    ("reply", "error", "text"),
    [
        (b"", "nixlBackendError", "closed without a reply"),
        (b"\x00\x00", "nixlBackendError", "in the reply's length"),
        (b"\x00\x00\x00\x08half", "nixlBackendError", "after 4 of 8 bytes"),
        (b"\xff\xff\xff\xff", "nixlMismatchError", "above max_frame"),
        (b"HTTP/1.1 400 \r\n\r\n", "nixlMismatchError", "above max_frame"),
    ],
)
def test_broken_reply_raises_a_clear_error(channel, reply, error, text):
    with (
        raw_server(answering(reply)) as port,
        pytest.raises(getattr(vllm_nixl, error), match=text) as info,
    ):
        channel.request_metadata(HOST, port)
    assert info.value.peer == f"{HOST}:{port}"
    assert info.value.operation == "request_metadata"


# -- Lifetime ---------------------------------------------------------------


def test_is_running_port_and_repr_report_the_state(channel):
    assert not channel.is_running()
    assert channel.port == 0
    assert "not running" in repr(channel)
    port = channel.start_listener(0, BLOB)
    assert channel.is_running()
    assert channel.port == port > 0
    assert str(port) in repr(channel)
    channel.shutdown()
    assert not channel.is_running()
    assert channel.port == 0


def test_a_second_start_is_refused_and_the_first_goes_on(channel):
    port = channel.start_listener(0, b"first")
    with pytest.raises(RuntimeError, match="already running") as info:
        channel.start_listener(0, b"second")
    assert isinstance(info.value, vllm_nixl.nixlNotAllowedError)
    assert info.value.operation == "start_listener"
    assert info.value.status == -6
    copy = pickle.loads(pickle.dumps(info.value))
    assert type(copy) is type(info.value)
    assert channel.request_metadata(HOST, port) == b"first"


def test_restart_on_the_same_port_serves_new_metadata(channel, other):
    port = channel.start_listener(reserve_port(), b"0")
    for i in range(1, 20):
        channel.shutdown()
        channel.shutdown()
        assert channel.start_listener(port, str(i).encode()) == port
        assert other.request_metadata(HOST, port) == str(i).encode()


def test_context_manager_stops_the_listener(channel):
    with TcpSideChannel() as inner:
        port = inner.start_listener(reserve_port(), BLOB)
        assert channel.request_metadata(HOST, port) == BLOB
    assert not inner.is_running()
    with pytest.raises(vllm_nixl.nixlBackendError, match="refused"):
        channel.request_metadata(HOST, port)
    assert inner.start_listener(port, BLOB) == port  # usable again
    inner.shutdown()


def test_a_dropped_listener_frees_its_port(channel):
    dropped = TcpSideChannel()
    port = dropped.start_listener(reserve_port(), BLOB)
    del dropped
    assert channel.start_listener(port, BLOB) == port


def test_shutdown_does_not_wait_for_clients(channel):
    port = channel.start_listener(0, BLOB)
    with connect(port) as idle:
        until(lambda: channel.stats()["open"] == 1, "the client's arrival")
        channel.shutdown()
        assert read_to_end(idle) == b""
    assert channel.stats()["open"] == 0


def test_no_descriptor_or_thread_is_left_open():
    def cycle():
        with TcpSideChannel() as made:
            port = made.start_listener(0, BLOB)
            with connect(port):
                made.request_metadata(HOST, port)
            with pytest.raises(vllm_nixl.nixlBackendError):
                made.request_metadata(HOST, 1)

    cycle()
    fds = len(os.listdir("/proc/self/fd"))
    threads = len(os.listdir("/proc/self/task"))
    for _ in range(20):
        cycle()
    assert len(os.listdir("/proc/self/fd")) == fds
    # A joined thread stays visible in /proc for a moment.
    until(
        lambda: len(os.listdir("/proc/self/task")) <= threads,
        "the end of the listeners' threads",
    )


def test_interpreter_exit_with_a_listener_and_a_client():
    run_program(
        """
        import socket, vllm_nixl
        kept = vllm_nixl.TcpSideChannel()
        port = kept.start_listener(0, b"x")
        idle = socket.create_connection(("127.0.0.1", port))
        """
    )


def test_forked_child_does_not_stop_the_listener():
    run_program(
        """
        import os, vllm_nixl
        channel = vllm_nixl.TcpSideChannel()
        port = channel.start_listener(0, b"x")
        # Let the thread sleep: ASan cannot fork beside a starting thread.
        assert channel.request_metadata("127.0.0.1", port) == b"x"
        while channel.stats()["open"]:
            pass
        child = os.fork()
        if child == 0:
            assert not channel.is_running()
            channel.shutdown()
            try:
                channel.start_listener(0, b"y")
            except RuntimeError:
                pass
            else:
                os._exit(1)
            assert channel.request_metadata("127.0.0.1", port) == b"x"
            del channel
            own = vllm_nixl.TcpSideChannel()
            own_port = own.start_listener(0, b"own")
            assert own.request_metadata("127.0.0.1", own_port) == b"own"
            raise SystemExit
        assert os.waitpid(child, 0)[1] == 0
        assert channel.request_metadata("127.0.0.1", port) == b"x"
        """
    )


def test_ctrl_c_interrupts_a_request():
    run_program(
        """
        import os, signal, socket, threading, vllm_nixl
        # A shell starts what runs in the background with SIGINT ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        server = socket.create_server(("127.0.0.1", 0))
        channel = vllm_nixl.TcpSideChannel()

        held = []

        def interrupt():
            held.append(server.accept()[0])
            held[0].recv(16, socket.MSG_WAITALL)
            os.kill(os.getpid(), signal.SIGINT)

        threading.Thread(target=interrupt, daemon=True).start()
        try:
            channel.request_metadata(*server.getsockname(), timeout_ms=60_000)
        except KeyboardInterrupt:
            pass
        else:
            raise SystemExit("not interrupted")
        """,
        timeout=30,
    )


# -- Deadlines and the GIL --------------------------------------------------


@pytest.mark.parametrize("serve", [silent, dripping])
def test_slow_server_cannot_exceed_the_deadline(channel, serve):
    with raw_server(serve) as port:
        start = time.monotonic()
        with pytest.raises(TimeoutError, match="receiving from") as info:
            channel.request_metadata(HOST, port, timeout_ms=300)
        took = time.monotonic() - start
    assert isinstance(info.value, vllm_nixl.nixlTimeoutError)
    assert took >= 0.3  # neither server ends the connection by itself


def test_other_threads_run_while_a_request_waits(channel):
    """The server is a Python thread: it needs the GIL to answer."""
    ran = threading.Event()

    def serve(client):
        client.recv(16, socket.MSG_WAITALL)
        ran.set()
        assert not channel.is_running()  # does not wait for the request
        client.sendall(b"\x00\x00\x00\x01x")

    with raw_server(serve) as port:
        assert channel.request_metadata(HOST, port) == b"x"
    assert ran.is_set()


def test_unreachable_port_is_named(channel):
    port = channel.start_listener(reserve_port(), BLOB)
    channel.shutdown()
    with pytest.raises(vllm_nixl.nixlBackendError) as info:
        channel.request_metadata(HOST, port)
    assert info.value.peer == f"{HOST}:{port}"
    assert "NIXL_ERR_BACKEND" in str(info.value)
    assert "Connection refused" in str(info.value)


def test_an_address_in_use_is_named(channel, other):
    port = channel.start_listener(0, BLOB)
    with pytest.raises(
        vllm_nixl.nixlBackendError, match="Address already in use"
    ) as info:
        other.start_listener(port, BLOB)
    assert str(port) in info.value.peer


# -- Crowds and misbehaving clients -----------------------------------------


def room_for(count):
    """Let this process open `count` more files, or skip the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = count + len(os.listdir("/proc/self/fd")) + 100
    if soft < need:
        if hard != resource.RLIM_INFINITY and hard < need:
            pytest.skip(f"needs {need} file descriptors, may have {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))


@pytest.mark.parametrize(
    "said", [b"", b"\x00", REQUEST[:-1]], ids=["nothing", "a byte", "half"]
)
def test_2000_hanging_clients_do_not_stop_service(said):
    room_for(4200)
    with (
        TcpSideChannel(max_connections=3000) as server,
        contextlib.ExitStack() as crowd,
    ):
        port = server.start_listener(0, BLOB)
        for _ in range(2000):
            crowd.enter_context(connect(port)).sendall(said)
        for _ in range(100):
            assert server.request_metadata(HOST, port) == BLOB
        assert server.stats()["evicted"] == 0


def test_connections_beyond_the_limit_are_closed():
    room_for(1000)
    with (
        TcpSideChannel(max_connections=16) as server,
        contextlib.ExitStack() as crowd,
    ):
        port = server.start_listener(0, BLOB)
        for _ in range(200):
            crowd.enter_context(connect(port))
        for _ in range(20):
            assert server.request_metadata(HOST, port) == BLOB
        stats = server.stats()
        assert stats["evicted"] >= 200 - 16
        assert stats["open"] <= 16


@pytest.mark.parametrize(
    ("garbage", "answer"),
    [
        (b"\xff\xff\xff\xff", b""),
        (b"\x00\x00\x04\x0d", b""),
        (b"\x00\x00\x00\x00", b""),
        (b"\x00\x00\x00\x0cget_metadata", b""),
        (b"GET /metadata HTTP/1.1\r\n\r\n", b""),
        # TLS has a word for it.
        (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"\x15\x03\x03\x00\x02\x02\x73",
        ),
    ],
)
def test_garbage_closes_only_its_own_connection(channel, garbage, answer):
    port = channel.start_listener(0, BLOB)
    with connect(port) as waiting:
        with connect(port) as sock:
            sock.sendall(garbage)
            assert read_to_end(sock) == answer
        waiting.sendall(REQUEST)
        assert read_to_end(waiting).endswith(BLOB)
    assert channel.stats()["refused"] == 1


def test_resets_within_a_frame_do_no_harm(channel):
    port = channel.start_listener(0, BLOB)
    at_once = struct.pack("ii", 1, 0)
    for cut in range(len(REQUEST)):
        sock = connect(port)
        sock.sendall(REQUEST[:cut])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        sock.close()
        assert channel.request_metadata(HOST, port) == BLOB
    until(lambda: channel.stats()["open"] == 0, "the end of all connections")


def test_listener_closes_a_client_at_its_deadline():
    with TcpSideChannel(client_timeout_ms=100) as server:
        port = server.start_listener(0, BLOB)
        with connect(port) as idle:
            assert read_to_end(idle) == b""
        assert server.stats()["timed_out"] == 1


# -- Misuse -----------------------------------------------------------------


@pytest.mark.parametrize("port", [-1, 65536, 1 << 80])
def test_a_port_out_of_range_is_a_value_error(channel, port):
    with pytest.raises(ValueError, match="start_listener: port"):
        channel.start_listener(port, BLOB)
    with pytest.raises(ValueError, match="request_metadata: port"):
        channel.request_metadata(HOST, port)
    assert not channel.is_running()


def test_fetching_from_port_0_is_refused(channel):
    with pytest.raises(vllm_nixl.nixlInvalidParamError):
        channel.request_metadata(HOST, 0)


@pytest.mark.parametrize("timeout_ms", [0, -1, 1 << 40])
def test_a_timeout_out_of_range_is_a_value_error(channel, timeout_ms):
    with pytest.raises(ValueError, match="timeout_ms"):
        channel.request_metadata(HOST, 1, timeout_ms=timeout_ms)


@pytest.mark.parametrize("host", ["", "a\x00b"])
def test_invalid_host_raises_value_error(channel, host):
    with pytest.raises(ValueError, match="host"):
        channel.request_metadata(host, 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda c: c.start_listener("1", BLOB),
        lambda c: c.start_listener(1.0, BLOB),
        lambda c: c.start_listener(0, 5),
        lambda c: c.start_listener(0, None),
        lambda c: c.start_listener(0, BLOB, host=5),
        lambda c: c.start_listener(0),
        lambda c: c.request_metadata(b"127.0.0.1", 1),
        lambda c: c.request_metadata(HOST, "1"),
        lambda c: c.request_metadata(HOST, 1, timeout_ms=1.5),
        lambda c: c.request_metadata(HOST),
        lambda c: TcpSideChannel(5),
        lambda c: TcpSideChannel(max_frame="1"),
        lambda c: TcpSideChannel(other=1),
    ],
)
def test_wrong_types_are_type_errors(channel, call):
    with pytest.raises(TypeError):
        call(channel)
    assert not channel.is_running()


def test_metadata_above_max_frame_is_refused():
    with TcpSideChannel(max_frame=4) as small, TcpSideChannel() as large:
        with pytest.raises(ValueError, match="max_frame"):
            small.start_listener(0, b"12345")
        port = large.start_listener(0, b"12345")
        with pytest.raises(vllm_nixl.nixlMismatchError, match="max_frame"):
            small.request_metadata(HOST, port)


def test_side_channel_methods_have_signatures():
    expected = {
        "start_listener": "(self, /, port, metadata, host=None)",
        "request_metadata": (
            "(self, /, host, port, timeout_ms=5000, *, key=None, retries=0)"
        ),
        "request_many": "(self, /, peers, timeout_ms=5000, *, retries=0)",
        "set_metadata": "(self, /, metadata, key=None)",
        "remove_metadata": "(self, /, key=None)",
        "advertised_address": "(self, /, peer=None)",
        "shutdown": "(self, /)",
        "is_running": "(self, /)",
        "stats": "(self, /)",
    }
    for name, text in expected.items():
        method = getattr(TcpSideChannel, name)
        assert str(inspect.signature(method)) == text
        assert method.__doc__


# -- On the agent -----------------------------------------------------------


def test_agent_has_side_channel_methods():
    config = vllm_nixl.nixl_agent_config(backends=[])
    with (
        vllm_nixl.nixl_agent("prefill", config) as prefill,
        vllm_nixl.nixl_agent("decode", config) as decode,
    ):
        assert not prefill.is_side_channel_running()
        port = reserve_port()
        assert prefill.start_side_channel_listener(port, BLOB) == port
        assert prefill.is_side_channel_running()
        assert decode.request_remote_metadata(HOST, port) == BLOB
        with pytest.raises(RuntimeError):
            prefill.start_side_channel_listener(0, BLOB)
        prefill.stop_side_channel_listener()
        prefill.stop_side_channel_listener()
        assert not prefill.is_side_channel_running()
        with pytest.raises(vllm_nixl.nixlBackendError):
            decode.request_remote_metadata(HOST, port, timeout_ms=1000)
        both = {None: b"new", (0, 1): b"one"}
        assert prefill.start_side_channel_listener(port, both) == port
        assert decode.request_remote_metadata(HOST, port) == b"new"
        got = decode.request_remote_metadata(HOST, port, key=(0, 1), retries=9)
        assert got == b"one"
    assert not prefill.is_side_channel_running()
