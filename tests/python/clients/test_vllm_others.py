"""vLLM's other users of NIXL: expert load balancing, the P2P tier, the encoder
cache, storage tiers."""

import os
import threading

import pytest
from support import kv
from support.memory import pattern

np = pytest.importorskip("numpy")


def make_agent(name, **config):
    from nixl._api import nixl_agent, nixl_agent_config

    return nixl_agent(name, nixl_agent_config(**config))


class Client:
    """An agent with a cache."""

    def __init__(self, name, cache, **config):
        self.agent = make_agent(name, **config)
        self.cache = cache

    def close(self):
        self.agent = None


# -- EPLB --------------------------------------------------------------------


def receive_expert(agent, peer, local, remote):
    """Create new lists of a few tensors each time."""
    sides = [
        agent.prep_xfer_dlist(
            name,
            agent.get_xfer_descs([(base, kv.BLOCK, 0)], "DRAM"),
        )
        for name, base in (("NIXL_INIT_AGENT", local), (peer, remote))
    ]
    handle = agent.make_prepped_xfer(
        "READ", sides[0], list(range(1)), sides[1], list(range(1))
    )
    agent.transfer(handle)
    return handle, sides


def test_eplb_polls_handles_and_releases_them(local, remote, closing, names):
    """Handles are kept in a set, polled until done, and released per layer."""
    there = remote(seed=3)
    client = Client(names(), local(kv.CACHE), capture_telemetry=False)
    agent, base = closing(client).agent, client.cache.addr
    descs = agent.get_reg_descs([(base, kv.CACHE, 0, "")], "DRAM")
    agent.register_memory(descs)
    peer = agent.add_remote_agent(there.metadata())
    for layer in range(kv.LAYERS):
        pending, keep = set(), []
        for expert in range(8):
            offset = layer * kv.LAYER + expert * kv.BLOCK
            handle, sides = receive_expert(
                agent, peer, base + offset, there.addr + offset
            )
            pending.add(handle)
            keep.extend(sides)
        assert len(pending) == 8
        while pending:
            for handle in list(pending):
                if agent.check_xfer_state(handle) == "DONE":
                    agent.release_xfer_handle(handle)
                    pending.remove(handle)
        for side in keep:
            agent.release_dlist_handle(side)
    got, source = client.cache.read(), pattern(3, kv.CACHE)
    for layer in range(kv.LAYERS):
        part = slice(layer * kv.LAYER, layer * kv.LAYER + 8 * kv.BLOCK)
        assert got[part] == source[part]
    agent.deregister_memory(descs)


# -- P2P tier ----------------------------------------------------------------


def test_p2p_tier_writes_blocks(local, remote, closing, names):
    """An agent without backends, then UCX with options; tuples, int32 arrays,
    no notifications."""
    there = remote(seed=4)
    client = closing(Client(names(), local(kv.CACHE, seed=5), backends=[]))
    agent = client.agent
    assert "UCX" in agent.get_plugin_list()
    options = {"engine_config": "TLS=^rc_gda", "num_threads": "4"}
    agent.create_backend("UCX", options)
    registered = agent.register_memory(
        [(client.cache.addr, kv.CACHE, 0, "")], mem_type="DRAM"
    )
    name = agent.add_remote_agent(there.metadata())
    left = agent.prep_xfer_dlist(
        "NIXL_INIT_AGENT",
        agent.get_xfer_descs(kv.rows(client.cache.addr), "DRAM"),
    )
    right = agent.prep_xfer_dlist(
        name, agent.get_xfer_descs(kv.rows(there.addr), "DRAM")
    )
    flying = []
    want = pattern(4, kv.CACHE)
    for first in range(0, 32, 8):
        ours = np.arange(first, first + 8, dtype=np.int32)
        theirs = ours[::-1].copy() + np.int32(40)
        handle = agent.make_prepped_xfer("WRITE", left, ours, right, theirs)
        assert agent.transfer(handle) in ("DONE", "PROC")
        flying.append(handle)
        want = kv.copied(want, pattern(5, kv.CACHE), theirs, ours)
    for handle in flying:
        kv.poll(agent, handle)
        agent.release_xfer_handle(handle)
    assert there.read() == want
    agent.release_dlist_handle(left)
    agent.release_dlist_handle(right)
    agent.remove_remote_agent(name)
    agent.deregister_memory(registered)


# -- Encoder cache -----------------------------------------------------------


def test_encoder_cache_reads_under_a_lock(local, remote, closing, names):
    """READ with a notification, lists of int, several readers."""
    there = remote(seed=6)
    client = closing(Client(names(), local(kv.CACHE)))
    agent, lock, errors = client.agent, threading.Lock(), []
    reg = agent.get_reg_descs([(client.cache.addr, kv.CACHE, 0, "")], "DRAM")
    agent.register_memory(reg, backends=["UCX"])
    name = agent.add_remote_agent(there.metadata())
    left = agent.prep_xfer_dlist(
        "NIXL_INIT_AGENT", kv.rows(client.cache.addr), "DRAM"
    )
    right = agent.prep_xfer_dlist(name, kv.rows(there.addr), "DRAM")

    def read(first):
        try:
            ids = list(range(first, first + 8))
            with lock:
                handle = agent.make_prepped_xfer(
                    "READ", left, ids, right, ids, notif_msg=b"mm-%d" % first
                )
                agent.transfer(handle)
            state = "PROC"
            while state == "PROC":
                with lock:
                    state = agent.check_xfer_state(handle)
            with lock:
                agent.release_xfer_handle(handle)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=read, args=[first])
        for first in range(0, 64, 8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    got = there.node.gather_notifs(8)
    assert {m for _, m in got} == {b"mm-%d" % i for i in range(0, 64, 8)}
    size = 64 * kv.BLOCK
    assert client.cache.read()[:size] == pattern(6, size)
    for side in (left, right):
        agent.release_dlist_handle(side)


# -- Storage -----------------------------------------------------------------


def test_blocks_are_stored_in_files(
    inproc, local, closing, names, plugin, tmp_path
):
    """The object and file tiers: open files by descriptor, the agent as its
    own peer."""
    from nixl._bindings import nixlBackendError

    client = closing(Client(names(), local(kv.LAYER, seed=7), backends=[]))
    agent, cache = client.agent, client.cache
    plugin(agent, "POSIX")
    assert "FILE_SEG" in agent.get_plugin_mem_types("POSIX")
    try:
        agent.create_backend("POSIX", agent.get_plugin_params("POSIX"))
    except nixlBackendError as error:
        raise AssertionError("the backend is listed and not there") from error
    memory = agent.register_memory([(cache.addr, kv.LAYER, 0, "")], "DRAM")
    path = tmp_path / "blocks"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        files = agent.register_memory([(0, kv.LAYER, fd, "")], "FILE")
        ours = agent.get_xfer_descs(
            [(cache.addr, kv.LAYER // 2, 0)], mem_type="DRAM"
        )
        stored = pattern(7, kv.LAYER)
        for operation in ("WRITE", "READ"):
            handle = agent.initialize_xfer(
                operation,
                ours,
                agent.get_xfer_descs([(0, kv.LAYER // 2, fd)], "FILE"),
                agent.name,
            )
            agent.transfer(handle)
            kv.poll(agent, handle)
            agent.release_xfer_handle(handle)
            if operation == "WRITE":
                assert path.read_bytes() == stored[: kv.LAYER // 2]
                cache.memory.view[:] = bytes(kv.LAYER)
        got = cache.read()
        assert got[: kv.LAYER // 2] == stored[: kv.LAYER // 2]
        assert got[kv.LAYER // 2 :] == bytes(kv.LAYER // 2)
        agent.deregister_memory(files)
        agent.deregister_memory(memory)
    finally:
        os.close(fd)
