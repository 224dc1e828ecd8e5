"""SGLang: the connection between prefill and decode, and HiCache on files."""

import os
import uuid

import pytest
from support import kv
from support.memory import pattern

np = pytest.importorskip("numpy")


class Manager:
    """NixlKVManager: the part that both sides share."""

    def __init__(self, cache):
        from nixl._api import (
            nixl_agent,
            nixl_agent_config,
            nixl_thread_sync_t,
        )

        config = nixl_agent_config(
            backends=[],
            num_threads=2,
            sync_mode=nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT,
        )
        self.agent = nixl_agent(str(uuid.uuid4()), config)
        plugins = self.agent.get_plugin_list()
        if "UCX" not in plugins:
            raise ValueError(f"UCX is not one of {plugins}")
        self.agent.create_backend("UCX", {"num_threads": "2"})
        self.cache = cache
        self.descs = self.agent.register_memory(
            [(cache.addr, cache.size, 0, "")], "DRAM"
        )
        if not self.descs:
            raise RuntimeError("a registration that is false")

    def send_pages(self, peer, remote, ours, theirs, room):
        """Prepared lists from arrays, int32 indices, the message by position.
        The handles are never released."""
        if not hasattr(self, "sides"):
            self.sides = [
                self.agent.prep_xfer_dlist(
                    name, kv.table(base), mem_type="DRAM"
                )
                for name, base in (("", self.cache.addr), (peer, remote))
            ]
        left, right = self.sides
        handle = self.agent.make_prepped_xfer(
            "WRITE", left, ours, right, theirs, room.encode()
        )
        if not handle:
            raise RuntimeError("KVSender failed to create the transfer")
        if self.agent.transfer(handle) == "ERR":
            raise RuntimeError("KVSender failed to post the transfer")
        return handle

    def send_rows(self, peer, ours, theirs, room):
        """State, staging and auxiliary buffers: arrays of int64."""
        handle = self.agent.initialize_xfer(
            "WRITE",
            self.agent.get_xfer_descs(np.array(ours, np.int64), "DRAM"),
            self.agent.get_xfer_descs(np.array(theirs, np.int64), "DRAM"),
            peer,
            room.encode(),
        )
        if self.agent.transfer(handle) == "ERR":
            raise RuntimeError("KVSender failed to post the transfer")
        return handle

    def close(self):
        self.agent.deregister_memory(self.descs)
        self.agent = None


def test_pages_and_state_are_sent(local, remote, closing):
    decode = remote(seed=2)
    prefill = closing(Manager(local(kv.CACHE, seed=1)))
    agent = prefill.agent
    name = agent.add_remote_agent(decode.metadata()).decode()
    ours = np.array([0, 2, 4, 7], np.int32)
    theirs = ours[::-1].copy()
    pages = prefill.send_pages(name, decode.addr, ours, theirs, "12_kv_0_1")
    end = kv.CACHE - kv.BLOCK
    state = prefill.send_rows(
        name,
        [[prefill.cache.addr, kv.BLOCK, 0]],
        [[decode.addr + end, kv.BLOCK, 0]],
        "12_aux",
    )
    kv.poll(agent, pages)
    kv.poll(agent, state)
    got = decode.node.gather_notifs(2)
    assert sorted(m.decode().split("_")[1] for _, m in got) == ["aux", "kv"]
    source = pattern(1, kv.CACHE)
    want = kv.copied(pattern(2, kv.CACHE), source, theirs, ours)
    assert decode.read() == want[:end] + source[: kv.BLOCK]


def test_exceptions_are_told_apart_by_class():
    """A broken connection is handled separately from other errors."""
    from nixl._bindings import (
        nixlBackendError,
        nixlCancelledError,
        nixlRemoteDisconnectError,
    )

    kinds = {nixlBackendError, nixlCancelledError, nixlRemoteDisconnectError}
    assert len(kinds) == 3
    for kind in kinds:
        assert issubclass(kind, Exception)
        assert not issubclass(kind, RuntimeError)


# -- Call shapes -------------------------------------------------------------

# SGLang tries a call in the form of the newest NIXL, and uses an older form if
# that raises TypeError.  Any other class ends the transfer.


def array(shape, dtype="uint64"):
    return np.zeros(shape, dtype)


UNSUPPORTED = {
    "an array of two columns": lambda a: a.prep_xfer_dlist(
        "", array((2, 2)), "DRAM"
    ),
    "an array of four columns": lambda a: a.prep_xfer_dlist(
        "", array((2, 4)), "DRAM"
    ),
    "an array of seven columns": lambda a: a.prep_xfer_dlist(
        "", array((2, 7)), "DRAM"
    ),
    "an array of one axis": lambda a: a.prep_xfer_dlist("", array(6), "DRAM"),
    "an array of three axes": lambda a: a.prep_xfer_dlist(
        "", array((2, 3, 3)), "DRAM"
    ),
    "tuples of two": lambda a: a.prep_xfer_dlist("", [(0, 64)], "DRAM"),
    "tuples of five": lambda a: a.prep_xfer_dlist(
        "", [(0, 64, 0, 64, 2)], "DRAM"
    ),
    "no list": lambda a: a.prep_xfer_dlist("", None, "DRAM"),
    "rows without a memory type": lambda a: a.prep_xfer_dlist(
        "", [(0, 64, 0)]
    ),
    "another keyword of prep_xfer_dlist": lambda a: a.prep_xfer_dlist(
        "", array((1, 3)), "DRAM", stride=64
    ),
    "strides to register": lambda a: a.register_memory(array((1, 5)), "DRAM"),
    "four columns to register": lambda a: a.register_memory(
        array((1, 4)), "DRAM"
    ),
    "tuples of three to register": lambda a: a.register_memory(
        [(0, 64, 0)], "DRAM"
    ),
    "tuples of five to register": lambda a: a.register_memory(
        [(0, 64, 0, "", 1)], "DRAM"
    ),
    "memory of no type to register": lambda a: a.register_memory(
        [(0, 64, 0, "")]
    ),
    "another keyword of register_memory": lambda a: a.register_memory(
        [(0, 64, 0, "")], "DRAM", tag=1
    ),
    "a keyword of get_xfer_descs": lambda a: a.get_xfer_descs(
        array((1, 3)), "DRAM", stride=64
    ),
    "arrays to initialize_xfer": lambda a: a.initialize_xfer(
        "WRITE", array((1, 3)), array((1, 3)), a.name, b""
    ),
    "tuples to initialize_xfer": lambda a: a.initialize_xfer(
        "WRITE", [(0, 64, 0)], [(0, 64, 0)], a.name, b""
    ),
    "four arguments to transfer": lambda a: a.transfer(None, b"", 1, 2),
    "two handles to check_xfer_state": lambda a: a.check_xfer_state(
        None, None
    ),
    "descriptors as tuples to check_remote_metadata": lambda a: (
        a.check_remote_metadata(a.name, [(0, 64, 0)])
    ),
    "an option of add_remote_agent": lambda a: a.add_remote_agent(b"", True),
    "no name of an agent": lambda a: a.remove_remote_agent(None),
    "a number as a notification": lambda a: a.send_notif(a.name, 7),
    "an option of get_new_notifs": lambda a: a.get_new_notifs(timeout=1),
    "a list of parameters": lambda a: a.create_backend("UCX", ["a"]),
}
# Stock logs these and returns None, which its next call refuses in this way.
UNSUPPORTED_IN_LISTS = {
    "strides": lambda a: a.get_xfer_descs(array((1, 5)), "DRAM"),
    "four columns": lambda a: a.get_xfer_descs(array((1, 4)), "DRAM"),
    "one axis": lambda a: a.get_xfer_descs(array(3), "DRAM"),
    "tuples of four": lambda a: a.get_xfer_descs([(0, 64, 0, "")], "DRAM"),
    "no memory type": lambda a: a.get_xfer_descs([(0, 64, 0)]),
    "strides to register": lambda a: a.get_reg_descs(array((1, 5)), "DRAM"),
    "tuples of three to register": lambda a: a.get_reg_descs(
        [(0, 64, 0)], "DRAM"
    ),
}


@pytest.mark.parametrize("shape", UNSUPPORTED)
def test_unsupported_call_raises_type_error(inproc, endpoint, shape):
    agent = endpoint().agent
    with pytest.raises(TypeError):
        UNSUPPORTED[shape](agent)


@pytest.mark.beyond_stock
@pytest.mark.parametrize("shape", UNSUPPORTED_IN_LISTS)
def test_unsupported_list_raises_type_error(inproc, endpoint, shape):
    agent = endpoint().agent
    with pytest.raises(TypeError):
        UNSUPPORTED_IN_LISTS[shape](agent)


@pytest.mark.parametrize("name", ["get_plugin_list", "get_agent_metadata"])
def test_calls_without_arguments_refuse_one(inproc, endpoint, name):
    with pytest.raises(TypeError):
        getattr(endpoint().agent, name)(1)


@pytest.mark.parametrize("name", ["nixl_agent", "nixl_agent_config"])
def test_unknown_options_raise_type_error(name):
    import nixl._api

    arguments = ["agent"] if name == "nixl_agent" else []
    with pytest.raises(TypeError):
        getattr(nixl._api, name)(*arguments, of_a_later_version=1)


# -- HiCache -----------------------------------------------------------------


class HiCache:
    """HiCacheNixl: a raw agent with its own thread mode inside the usual
    agent; host memory is registered once, files for each transfer."""

    def __init__(self, host, folder):
        from nixl._api import nixl_agent, nixl_agent_config, nixlBind

        config = nixl_agent_config(backends=[])
        self.name = f"hicache_nixl_{uuid.uuid4()}"
        self.agent = nixl_agent(self.name, config)
        raw = nixlBind.nixlAgentConfig()
        raw.useProgThread = config.enable_pthread
        raw.useListenThread = config.enable_listen
        raw.listenPort = config.port
        raw.syncMode = getattr(
            nixlBind, "NIXL_THREAD_SYNC_RW", nixlBind.NIXL_THREAD_SYNC_STRICT
        )
        raw.pthrDelay = 0
        raw.lthrDelay = 100000
        raw.captureTelemetry = config.capture_telemetry
        self.agent.agent = nixlBind.nixlAgent(self.name, raw)
        self.agent.plugin_list = self.agent.agent.getAvailPlugins()
        self.host, self.folder = host, folder

    def start(self, backends=("POSIX",)):
        for name in backends:
            self.agent.create_backend(name, {})
        rows = [(self.host.addr, self.host.size, 0, "")]
        self.registered = self.agent.register_memory(
            self.agent.get_reg_descs(rows, "DRAM")
        )

    def path(self, key):
        return str(self.folder / key)

    def by_path(self, keys, sizes, direction):
        parts = "rw,create" if direction == "WRITE" else "ro"
        rows = [
            (0, size, number, f"{parts}:{self.path(key)}")
            for number, (key, size) in enumerate(
                zip(keys, sizes, strict=True), 1
            )
        ]
        reg = self.agent.register_memory(
            self.agent.get_reg_descs(rows, "FILE")
        )
        return reg, reg.trim(), []

    def by_descriptor(self, keys, sizes, direction):
        flags = os.O_RDWR | (os.O_CREAT if direction == "WRITE" else 0)
        fds = [os.open(self.path(key), flags, 0o600) for key in keys]
        rows = [
            (0, size, fd, self.path(key))
            for key, size, fd in zip(keys, sizes, fds, strict=True)
        ]
        reg = self.agent.register_memory(rows, "FILE")
        descs = self.agent.get_xfer_descs([row[:3] for row in rows], "FILE")
        return reg, descs, fds

    def move(self, direction, pages, keys, register):
        host = self.agent.get_xfer_descs(
            [(addr, size, 0) for addr, size in pages], "DRAM"
        )
        sizes = [size for _, size in pages]
        reg, storage, fds = register(keys, sizes, direction)
        handle = self.agent.initialize_xfer(
            direction, host, storage, self.name
        )
        state = self.agent.transfer(handle)
        if state != "DONE":
            kv.poll(self.agent, handle)
        self.agent.release_xfer_handle(handle)
        self.agent.deregister_memory(reg)
        for fd in fds:
            os.close(fd)

    def exists(self, keys):
        rows = [(0, 0, 0, self.path(key)) for key in keys]
        answers = self.agent.query_memory(rows, "POSIX", mem_type="FILE")
        return [answer is not None for answer in answers]

    def close(self):
        self.agent = None


def test_hicache_selects_a_plugin(inproc, local, closing, tmp_path):
    """The queries made before a backend is created."""
    cache = closing(HiCache(local(kv.LAYER), tmp_path))
    plugins = cache.agent.get_plugin_list()
    assert plugins == cache.agent.plugin_list
    assert "UCX" in plugins
    config = cache.agent.get_plugin_params(plugins[0])
    assert isinstance(config, dict)


@pytest.mark.parametrize("how", ["path", "descriptor"])
def test_hicache_keeps_pages_in_files(
    inproc, local, closing, plugin, tmp_path, how
):
    cache = closing(HiCache(local(kv.LAYER, seed=3), tmp_path))
    plugin(cache.agent, "POSIX")
    cache.start()
    register = cache.by_path if how == "path" else cache.by_descriptor
    pages = [(cache.host.addr + i * 8192, 8192) for i in range(4)]
    keys = [f"page-{i}.bin" for i in range(4)]
    assert cache.exists(keys) == [False] * 4
    cache.move("WRITE", pages, keys, register)
    assert cache.exists([*keys, "other"]) == [True] * 4 + [False]
    stored = pattern(3, kv.LAYER)
    for number, key in enumerate(keys):
        piece = stored[number * 8192 : (number + 1) * 8192]
        assert (tmp_path / key).read_bytes() == piece
    cache.host.memory.view[:] = bytes(kv.LAYER)
    cache.move("READ", pages, keys, register)
    assert cache.host.read()[: 4 * 8192] == stored[: 4 * 8192]


@pytest.mark.parametrize("order", ["POSIX", "POSIX UCX", "UCX POSIX"])
def test_hicache_stores_whichever_backend_is_first(
    inproc, auto, local, closing, tmp_path, order
):
    cache = closing(HiCache(local(kv.LAYER, seed=3), tmp_path))
    assert "POSIX" in cache.agent.plugin_list
    cache.start(order.split())
    pages = [(cache.host.addr, 8192)]
    cache.move("WRITE", pages, ["page"], cache.by_descriptor)
    cache.host.memory.view[:] = bytes(kv.LAYER)
    cache.move("READ", pages, ["page"], cache.by_path)
    assert cache.exists(["page", "other"]) == [True, False]
    assert cache.host.read()[:8192] == pattern(3, kv.LAYER)[:8192]


def test_storage_may_follow_a_default_agent(inproc, auto, names, plugin):
    """UCX comes with the default configuration."""
    import nixl._api

    agent = nixl._api.nixl_agent(names())
    assert "POSIX" in agent.get_plugin_list()
    agent.create_backend("POSIX")
    assert list(agent.backends) == ["UCX", "POSIX"]
    assert sorted(agent.get_backend_mem_types("POSIX")) == [
        "DRAM_SEG",
        "FILE_SEG",
    ]


def test_hicache_probes_registration_by_path(
    inproc, local, closing, plugin, tmp_path
):
    """A missing path is an error if the backend understands paths."""
    cache = closing(HiCache(local(kv.LAYER), tmp_path))
    plugin(cache.agent, "POSIX")
    cache.start()
    rows = [(0, 4096, 1, f"rw:{tmp_path}/nothing/nothing")]
    descs = cache.agent.get_reg_descs(rows, "FILE")
    with pytest.raises(Exception, match="NIXL_ERR_"):
        cache.agent.register_memory(descs)
