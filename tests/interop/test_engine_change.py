"""With the engine "auto", a storage backend after the first backend."""

import asyncio
import os
import select
import threading

import pytest
from support import deadline
from support.memory import pattern
from support.nixl import why_no_library

SIZE = 1 << 16

pytestmark = pytest.mark.skipif(
    why_no_library() is not None, reason=str(why_no_library())
)


@pytest.fixture
def here(endpoint):
    made = endpoint(engine="auto")
    assert made.agent.engine == "native"
    return made


def change(agent):
    agent.create_backend("POSIX", {})
    assert agent.engine == "nixl"
    assert sorted(agent.backends) == ["POSIX", "UCX"]


def stored(made, folder):
    """What a block of memory becomes in a file and back."""
    agent = made.agent
    source, target = made.alloc(SIZE, seed=1), made.alloc(SIZE)
    fd = os.open(folder / "file", os.O_RDWR | os.O_CREAT)
    agent.register_memory([(0, SIZE, fd, "")], "FILE")
    for operation, block in (("WRITE", source), ("READ", target)):
        handle = agent.initialize_xfer(
            operation,
            agent.get_xfer_descs([(block.addr, SIZE, 0)], "DRAM"),
            agent.get_xfer_descs([(0, SIZE, fd)], "FILE"),
            agent.name,
        )
        assert deadline.run(agent, handle) == "DONE"
        handle.release()
    os.close(fd)
    return made.read(target.key)


def test_blocks_are_stored_after_the_change(here, tmp_path):
    assert {"UCX", "POSIX"} <= set(here.agent.get_plugin_list())
    assert "FILE_SEG" in here.agent.get_plugin_mem_types("POSIX")
    change(here.agent)
    why = here.agent.describe()["engine_why"]
    assert why.startswith("auto: the engine native does not have")
    assert stored(here, tmp_path) == pattern(1, SIZE)


def test_memory_of_peers_is_read_after_the_change(here, stock, meet):
    change(here.agent)
    there = stock()
    theirs = there.alloc(SIZE, seed=2)
    ours = here.alloc(SIZE)
    meet(here, there)
    here.move(
        "READ",
        [(ours.addr, SIZE, 0)],
        [(theirs.addr, SIZE, 0)],
        there.name,
    )
    assert here.read(ours.key) == pattern(2, SIZE)


def test_descriptor_and_notifications_outlive_the_change(here, stock, meet):
    agent, got = here.agent, []
    fd = agent.fileno()

    async def listen():
        async for sender, message in agent.notifications():
            got.append((sender, message))
            return

    listener = threading.Thread(target=lambda: asyncio.run(listen()))
    listener.start()
    change(agent)
    assert agent.fileno() == fd
    there = stock()
    there.alloc(SIZE)
    here.alloc(SIZE)
    meet(here, there)
    there.call("send_notif", agent.name, b"hello")
    listener.join(deadline.PATIENCE)
    assert got == [(there.name, b"hello")]
    agent.get_new_notifs()
    there.call("send_notif", agent.name, b"again")
    assert select.select([fd], [], [], deadline.PATIENCE)[0] == [fd]


def test_listeners_outlive_the_change(endpoint):
    left = endpoint(engine="auto", enable_listen_thread=True, listen_port=0)
    agent = left.agent
    port, listens_at = (
        agent.start_side_channel_listener(0, b"before"),
        agent.listen_port,
    )
    change(agent)
    assert agent.listen_port == listens_at
    assert agent.request_remote_metadata("127.0.0.1", port) == b"before"
    left.alloc(SIZE)
    right = endpoint(engine="nixl").agent
    right.fetch_remote_metadata(agent.name, "127.0.0.1", listens_at)
    deadline.until(
        lambda: right.check_remote_metadata(agent.name), "the metadata"
    )


def test_nixls_library_exports_after_the_change(
    api, endpoint, tmp_path, monkeypatch
):
    """Both write a ring of the agent's name."""
    rings = tmp_path / "rings"
    rings.mkdir()
    monkeypatch.setenv("NIXL_TELEMETRY_ENABLE", "y")
    monkeypatch.setenv("NIXL_TELEMETRY_DIR", str(rings))
    made = endpoint(engine="auto")
    ring = rings / made.name
    with pytest.raises(api.nixlNotFoundError):
        made.agent.create_backend("GDS_XYZ")
    assert ring.exists()
    change(made.agent)
    before = ring.read_bytes()
    assert stored(made, tmp_path) == pattern(1, SIZE)
    deadline.until(lambda: ring.read_bytes() != before, "events in the ring")
    assert os.listdir(rings) == [made.name]


def test_calls_that_have_failed_do_not_keep_the_engine(api, here, tmp_path):
    """What a program tries before it creates the backend."""
    agent = here.agent
    with pytest.raises(api.NixlError):
        agent.register_memory([(0, SIZE, 3, "")], "FILE")
    with pytest.raises(api.NixlError):
        agent.query_memory([(0, 0, 0, "path")], "UCX", "FILE")
    assert not agent.check_remote_metadata("nobody")
    with pytest.raises(api.NixlError):
        agent.add_remote_agent(b"garbage")
    with pytest.raises(api.nixlNotFoundError):
        agent.create_backend("GDS_XYZ")
    change(agent)
    assert stored(here, tmp_path) == pattern(1, SIZE)


@pytest.mark.parametrize("how", ["registered", "metadata", "peer"])
def test_an_agent_in_use_says_what_to_write(
    api, here, endpoint, how, tmp_path
):
    agent = here.agent
    if how == "registered":
        here.alloc(SIZE)
    elif how == "metadata":
        agent.get_agent_metadata()
    else:
        agent.add_remote_agent(endpoint(engine="native").metadata())
    with pytest.raises(api.nixlNotFoundError) as caught:
        agent.create_backend("POSIX")
    assert 'nixl_agent_config(backends=["UCX", "POSIX"])' in str(caught.value)
    assert agent.engine == "native"
    assert list(agent.backends) == ["UCX"]
    as_told = endpoint(engine="auto", backends=["UCX", "POSIX"])
    assert stored(as_told, tmp_path) == pattern(1, SIZE)


def test_threads_that_use_the_agent_see_one_engine(here, tmp_path):
    """One polls and describes it, as vLLM's do, while another changes it."""
    agent, errors, done = here.agent, [], threading.Event()

    def look():
        try:
            while not done.is_set():
                agent.get_new_notifs()
                described = agent.describe()
                assert described["engine"] in ("native", "nixl")
                assert "UCX" in agent.get_plugin_list()
                agent.stats()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=look) for _ in range(2)]
    for thread in threads:
        thread.start()
    change(agent)
    data = stored(here, tmp_path)
    done.set()
    for thread in threads:
        thread.join(deadline.PATIENCE)
    assert errors == []
    assert data == pattern(1, SIZE)


def test_all_backends_are_those_of_the_first_ones_engine(
    api, names, opened, monkeypatch
):
    monkeypatch.delenv("VLLM_NIXL_ENGINE", raising=False)
    agent = api.NixlAgent(names(), None, True)
    opened.append(agent)
    assert agent.engine == "native"
    assert sorted(agent.backends) == ["SHM", "UCX"]
