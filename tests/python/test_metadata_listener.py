"""NIXL's metadata listener: agents exchange their metadata."""

import contextlib
import socket
import struct
import threading

import pytest
from support import hosts
from support.deadline import until
from support.ports import reserve_port
from support.program import run_program

pytestmark = pytest.mark.beyond_stock

HERE = "127.0.0.1"


@pytest.fixture
def listening(endpoint):
    """listening(**config): an agent in this process with an open listener."""

    def make(**config):
        config = {"listen_port": 0, **config}
        return endpoint(enable_listen_thread=True, **config)

    return make


def knows(agent, name):
    return lambda: agent.check_remote_metadata(name)


def unknown(agent, name):
    return lambda: not agent.check_remote_metadata(name)


def listener(agent):
    return agent.describe()["metadata_listener"]


def frame(payload):
    return struct.pack("<Q", len(payload)) + payload


def receive(stream):
    (length,) = struct.unpack("<Q", stream.read(8))
    return stream.read(length)


# -- Between agents ----------------------------------------------------------


def test_metadata_is_fetched_sent_and_invalidated(listening, endpoint):
    left, right = listening(), endpoint()
    port = left.agent.listen_port
    assert right.agent.fetch_remote_metadata(left.name, HERE, port) is None
    until(knows(right.agent, left.name), "the answer")
    assert right.agent.send_local_metadata(HERE, port) is None
    until(knows(left.agent, right.name), "its metadata")
    assert right.agent.invalidate_local_metadata(HERE, port) is None
    until(unknown(left.agent, right.name), "its removal")


def test_listener_keywords_match_stock(listening, endpoint):
    left, right = listening(), endpoint()
    port = left.agent.listen_port
    right.agent.fetch_remote_metadata(
        remote_agent=left.name.encode(), ip_addr=HERE, port=port, label=""
    )
    until(knows(right.agent, left.name), "the answer")
    right.agent.send_partial_agent_metadata(
        descs=right.agent.get_reg_descs([], "DRAM"),
        inc_conn_info=True,
        backends=["UCX"],
        ip_addr="localhost",
        port=port,
        label="ignored",
    )
    until(knows(left.agent, right.name), "its metadata")


def test_fetched_metadata_serves_a_transfer(listening, peer):
    left, right = listening(), peer()
    block, room = left.alloc(65536, seed=3), right.alloc(65536)
    right.call(
        "fetch_remote_metadata", left.name, HERE, left.agent.listen_port
    )
    until(lambda: right.call("check_remote_metadata", left.name), "the answer")
    right.move(
        "READ",
        [(room.addr, room.size, 0)],
        [(block.addr, block.size, 0)],
        left.name,
    )
    assert right.checksum(room.key) == left.checksum(block.key)


def test_listener_sends_partial_metadata(listening, endpoint, api):
    left, right = listening(), endpoint()
    first, second = right.alloc(4096), right.alloc(4096)
    part = right.agent.get_reg_descs([(first.addr, 4096, 0, "")], "DRAM")
    right.agent.send_partial_agent_metadata(
        part, True, ip_addr=HERE, port=left.agent.listen_port
    )

    def has(block):
        descs = left.agent.get_xfer_descs([(block.addr, 64, 0)], "DRAM")
        return left.agent.check_remote_metadata(right.name, descs)

    until(lambda: has(first), "the part")
    assert not has(second)
    right.agent.send_local_metadata(HERE, left.agent.listen_port)
    until(lambda: has(second), "the whole")
    with pytest.raises(api.nixlNotFoundError):
        right.agent.send_partial_agent_metadata(
            right.agent.get_reg_descs([(1, 2, 0, "")], "DRAM"), ip_addr=HERE
        )
    with pytest.raises(TypeError, match="nixlRegDList"):
        right.agent.send_partial_agent_metadata([], ip_addr=HERE)


def test_restarted_agent_replaces_the_old_one(listening, endpoint, names):
    left, name = listening(), names()
    for _ in range(3):
        right = endpoint(name)
        right.agent.send_local_metadata(HERE, left.agent.listen_port)
        until(knows(left.agent, name), "its metadata")
        right.agent.invalidate_local_metadata(HERE, left.agent.listen_port)
        right.close()
        until(unknown(left.agent, name), "what was sent before the end")


# -- The port ----------------------------------------------------------------


def test_listener_reports_the_port_chosen(listening, endpoint):
    left, right = listening(), listening()
    assert 0 < left.agent.listen_port != right.agent.listen_port > 0
    assert listener(left.agent)["port"] == left.agent.listen_port
    none = endpoint()
    assert none.agent.listen_port == 0
    assert "metadata_listener" not in none.agent.describe()


def test_port_in_use_is_named(listening, api, names):
    port = listening().agent.listen_port
    config = api.nixl_agent_config(enable_listen_thread=True, listen_port=port)
    name = names()
    with pytest.raises(api.nixlBackendError, match=f":{port}'.*in use") as e:
        api.nixl_agent(name, config)
    assert e.value.operation == "nixl_agent"
    api.nixl_agent(name, api.nixl_agent_config()).close()


def test_the_port_is_free_after_close(listening):
    port = reserve_port()
    left = listening(listen_port=port)
    left.agent.close()
    assert left.agent.listen_port == 0
    assert listening(listen_port=port).agent.listen_port == port


def test_listener_binds_to_the_given_address(listening, endpoint):
    # Nobody else has the reserved port at another address.
    left = listening(listen_host="127.0.0.1", listen_port=reserve_port())
    right = endpoint()
    right.agent.fetch_remote_metadata(left.name, HERE, left.agent.listen_port)
    until(knows(right.agent, left.name), "the answer")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", left.agent.listen_port))


def test_unknown_name_to_listen_on_is_refused(listening, api):
    if why := hosts.why_names_are_unclear():
        pytest.skip(why)
    with pytest.raises(api.nixlInvalidParamError, match=r"no\.such\.host"):
        listening(listen_host="no.such.host.invalid")


def test_ipv6_addresses_work(listening, endpoint):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as error:
        pytest.skip(f"no IPv6 on this machine: {error}")
    left, right = listening(listen_host="::1"), endpoint()
    right.agent.fetch_remote_metadata(left.name, "::1", left.agent.listen_port)
    until(knows(right.agent, left.name), "the answer")


# -- The bytes ---------------------------------------------------------------


def test_listener_serves_a_raw_client(listening, endpoint):
    left, right = listening(), endpoint()
    address = (HERE, left.agent.listen_port)
    with socket.create_connection(address, 30) as raw:
        stream = raw.makefile("rb")
        raw.sendall(frame(b"NIXLCOMM:SEND"))
        assert receive(stream) == b"NIXLCOMM:LOAD" + left.metadata()
        raw.sendall(
            frame(b"NIXLCOMM:LOAD" + right.metadata() + b"NIXLCOMM:SEND")
        )
        assert receive(stream) == b"NIXLCOMM:LOAD" + left.metadata()
        until(
            lambda: left.agent.check_remote_metadata(right.name),
            "the metadata to be loaded",
        )
        raw.sendall(frame(b"NIXLCOMM:INVL" + right.name.encode()))
        until(unknown(left.agent, right.name), "its removal")


def test_client_talks_to_a_raw_server(endpoint):
    left, right = endpoint(), endpoint()
    right.alloc(4096)
    server = socket.create_server((HERE, 0))
    server.settimeout(30)
    port = server.getsockname()[1]
    left.agent.fetch_remote_metadata(right.name, HERE, port)
    raw, _ = server.accept()
    raw.settimeout(30)
    with server, raw:
        stream = raw.makefile("rb")
        assert receive(stream) == b"NIXLCOMM:SEND"
        raw.sendall(frame(b"NIXLCOMM:LOAD" + right.metadata()))
        until(knows(left.agent, right.name), "the answer")
        left.agent.send_local_metadata(HERE, port)
        assert receive(stream) == b"NIXLCOMM:LOAD" + left.metadata()
        left.agent.invalidate_local_metadata(HERE, port)
        assert receive(stream) == b"NIXLCOMM:INVL" + left.name.encode()


def test_garbage_closes_its_connection_only(listening, endpoint):
    left, right = listening(), endpoint()
    for data in [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 64, frame(b"x" * 20)]:
        with socket.create_connection(
            (HERE, left.agent.listen_port), 30
        ) as raw:
            raw.sendall(data)
            with contextlib.suppress(ConnectionResetError):
                assert raw.recv(1) == b""
    until(lambda: listener(left.agent)["refused"] == 3, "its count")
    right.agent.fetch_remote_metadata(right.name, HERE, left.agent.listen_port)
    until(knows(right.agent, left.name), "the answer")


def test_a_frame_above_the_limit_is_refused(listening, api):
    left = listening(listen_max_frame=4096)
    with socket.create_connection((HERE, left.agent.listen_port), 30) as raw:
        raw.sendall(struct.pack("<Q", 4097))
        assert raw.recv(1) == b""
    with pytest.raises(ValueError, match="listen_max_frame"):
        api.nixl_agent_config(listen_max_frame=(1 << 30) + 1)


# -- Failures ----------------------------------------------------------------


@pytest.fixture
def dead_port():
    return reserve_port()


def test_unreachable_port_is_counted_and_reported(endpoint, dead_port):
    agent = endpoint().agent
    agent.send_local_metadata(HERE, dead_port)
    agent.fetch_remote_metadata("nobody", HERE, dead_port)
    agent.invalidate_local_metadata(HERE, dead_port)
    until(lambda: agent.stats()["listener_send_failures"] == 3, "failures")
    assert agent.stats()["listener_sent"] == 0
    assert f"{HERE}:{dead_port}" in listener(agent)["last_failure"]
    assert "refused" in listener(agent)["last_failure"]


def test_hanging_peer_does_not_delay_others(listening, endpoint):
    """It accepts connections and sends nothing; others are served."""
    left, right = listening(), endpoint()
    with socket.create_server((HERE, 0)) as silent:
        for _ in range(20):
            right.agent.fetch_remote_metadata(
                "silent", HERE, silent.getsockname()[1]
            )
        right.agent.fetch_remote_metadata(
            left.name, HERE, left.agent.listen_port
        )
        until(knows(right.agent, left.name), "the answer")
        assert right.agent.stats()["listener_pending"] == 20
        right.close()


def test_bad_metadata_is_counted_and_reported(listening):
    left = listening()
    with socket.create_connection((HERE, left.agent.listen_port), 30) as raw:
        raw.sendall(frame(b"NIXLCOMM:LOADnothing of the kind"))
        raw.sendall(frame(b"NIXLCOMM:LOAD" + left.metadata()))
        until(
            lambda: left.agent.stats()["listener_load_failures"] == 2, "them"
        )
    assert "own" in listener(left.agent)["last_failure"]


CALLS = {
    "send_local_metadata": (),
    "fetch_remote_metadata": ("peer",),
    "invalidate_local_metadata": (),
}


@pytest.mark.parametrize("name", CALLS)
def test_listener_refuses_bad_arguments(api, endpoint, name):
    call = getattr(endpoint().agent, name)
    given = CALLS[name]
    for addresses in [(), ("",)]:
        with pytest.raises(api.nixlNotSupportedError, match="etcd") as caught:
            call(*given, *addresses)
        assert caught.value.operation == name
    with pytest.raises(TypeError, match="ip_addr must be a str"):
        call(*given, b"127.0.0.1")
    with pytest.raises(TypeError, match="port"):
        call(*given, HERE, "8888")
    for port in (-1, 0, 65536, 2**70):
        with pytest.raises(api.nixlInvalidParamError, match="port") as caught:
            call(*given, HERE, port)
        assert caught.value.operation == name
    with pytest.raises(ValueError, match="null"):
        call(*given, "127.0.0.1\0")


def test_label_without_address_is_not_supported(api, endpoint):
    agent = endpoint().agent
    with pytest.raises(api.nixlNotSupportedError, match="etcd"):
        agent.fetch_remote_metadata("peer", label="part")
    with pytest.raises(api.nixlNotSupportedError, match="etcd"):
        agent.send_partial_agent_metadata(
            agent.get_reg_descs([], "DRAM"), label="part"
        )


def test_closed_agent_refuses_listener_calls(
    api, listening, endpoint, dead_port
):
    for agent in (listening().agent, endpoint().agent):
        agent.close()
        with pytest.raises(api.nixlClosedError):
            agent.send_local_metadata(HERE, dead_port)
        with pytest.raises(api.nixlClosedError):
            agent.fetch_remote_metadata("peer", HERE, dead_port)
        with pytest.raises(api.nixlClosedError):
            agent.invalidate_local_metadata(HERE, dead_port)


# -- Lifetime ----------------------------------------------------------------


def test_an_agent_that_is_dropped_stops_listening(listening, opened, api):
    config = api.nixl_agent_config(enable_listen_thread=True, listen_port=0)
    agent = api.nixl_agent("dropped", config)
    address = (HERE, agent.listen_port)
    socket.create_connection(address).close()
    del agent
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)


def test_program_may_exit_with_an_open_listener():
    run_program(
        """
        import vllm_nixl
        config = vllm_nixl.nixl_agent_config(
            enable_listen_thread=True, listen_port=0
        )
        agent = vllm_nixl.nixl_agent("a", config)
        other = vllm_nixl.nixl_agent("b")
        other.fetch_remote_metadata("a", "127.0.0.1", agent.listen_port)
        """
    )


@pytest.mark.nixl_differs("UCX opens and starts things of its own later")
def test_no_thread_and_no_socket_before_the_first_use():
    run_program(
        """
        import vllm_nixl
        from support import usage
        agent = vllm_nixl.nixl_agent("a")
        before = usage.threads(), usage.fds()
        agent.stats(), agent.describe(), agent.listen_port
        assert (usage.threads(), usage.fds()) == before
        """
    )


@pytest.mark.nixl_differs("its poller looks for notifications")
def test_an_idle_listener_sleeps():
    run_program(
        """
        import vllm_nixl
        from support import usage
        from support.deadline import until
        config = vllm_nixl.nixl_agent_config(
            enable_listen_thread=True, listen_port=0
        )
        left = vllm_nixl.nixl_agent("left", config)
        right = vllm_nixl.nixl_agent("right", config)
        right.fetch_remote_metadata("left", "127.0.0.1", left.listen_port)
        until(lambda: right.check_remote_metadata("left"), "its metadata")
        until(lambda: usage.most_switches(1) < 20, "a quiet second")
        """
    )


def test_threads_share_an_agents_listener(listening, endpoint):
    left, right = listening(), endpoint()
    port = left.agent.listen_port

    def work():
        for _ in range(50):
            right.agent.send_local_metadata(HERE, port)
            right.agent.fetch_remote_metadata(left.name, HERE, port)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    until(lambda: right.agent.stats()["listener_sent"] == 400, "all of them")
    assert right.agent.stats()["listener_send_failures"] == 0
    assert right.agent.check_remote_metadata(left.name)
    assert left.agent.check_remote_metadata(right.name)
