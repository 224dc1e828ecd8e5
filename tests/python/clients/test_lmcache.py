"""LMCache: the channel between instances, and storage."""

import importlib
import os
import threading
import uuid

import pytest
from support import kv
from support.memory import pattern

PAGE = kv.BLOCK
PAGES = kv.CACHE // PAGE


def nixl_api():
    """The first installed package, in LMCache's order."""
    for name in ("nixl", "nixl_cu12", "nixl_cu13"):
        try:
            return importlib.import_module(f"{name}._api")
        except ImportError:
            continue
    raise RuntimeError("NIXL is not available")


class Channel:
    """One end of the channel: a buffer of pages, by index."""

    def __init__(self, buffer):
        api = nixl_api()
        self.bind = api.nixlBind
        config = api.nixl_agent_config(backends=["UCX"])
        self.agent = api.nixl_agent(str(uuid.uuid4()), config)
        self.buffer = buffer
        self.reg_descs = self.agent.register_memory(
            [(buffer.addr, buffer.size, 0, "")], mem_type="cpu"
        )
        rows = [(buffer.addr + i * PAGE, PAGE, 0) for i in range(PAGES)]
        self.xfer_descs = self.agent.get_xfer_descs(rows, mem_type="cpu")
        self.handle = self.agent.prep_xfer_dlist(
            "", self.xfer_descs, mem_type="cpu"
        )
        self.remotes = {}

    # The handshake: metadata first, lists afterwards.

    def metadata(self):
        return self.agent.get_agent_metadata()

    def lists(self):
        return self.agent.get_serialized_descs(self.xfer_descs)

    def connect(self, metadata, lists):
        name = self.agent.add_remote_agent(metadata)
        descs = self.agent.deserialize_descs(lists)
        assert isinstance(descs, self.bind.nixlXferDList)
        handle = self.agent.prep_xfer_dlist(name, descs, mem_type="cpu")
        self.remotes[name] = handle
        return name

    def move(self, operation, name, ours, theirs):
        handle = self.agent.make_prepped_xfer(
            operation, self.handle, ours, self.remotes[name], theirs
        )
        self.agent.transfer(handle)
        kv.poll(self.agent, handle)

    def close(self):
        self.agent.deregister_memory(self.reg_descs)
        self.agent.release_dlist_handle(self.handle)
        for name, handle in self.remotes.items():
            self.agent.release_dlist_handle(handle)
            self.agent.remove_remote_agent(name)
        self.agent = self.handle = None
        self.remotes = {}


@pytest.fixture
def channels(inproc, local, closing):
    made = []
    for seed in (1, 2):
        made.append(closing(Channel(local(kv.CACHE, seed=seed))))
    return made


def test_pages_are_transferred_in_both_directions(channels):
    left, right = channels
    names = [
        here.connect(there.metadata(), there.lists())
        for here, there in ((left, right), (right, left))
    ]
    left.move("WRITE", names[0], [0, 5, 9], [1, 5, 2])
    want = kv.copied(
        pattern(2, kv.CACHE), pattern(1, kv.CACHE), [1, 5, 2], [0, 5, 9]
    )
    assert right.buffer.read() == want
    right.move("READ", names[1], [100], [30])
    want = kv.copied(want, pattern(1, kv.CACHE), [100], [30])
    assert right.buffer.read() == want


def test_two_threads_share_one_channel(channels):
    """Each request is read by a separate thread."""
    left, right = channels
    name = left.connect(right.metadata(), right.lists())
    errors = []

    def read(first):
        try:
            for page in range(first, first + 16):
                left.move("READ", name, [page], [page])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=[n]) for n in (0, 16, 32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    size = 48 * PAGE
    assert left.buffer.read()[:size] == pattern(2, size)


class Storage:
    """NixlStorageAgent: pages of memory and slots of files, each prepared
    once; the agent is its own peer."""

    SLOTS = 8

    def __init__(self, buffer, folder):
        api = nixl_api()
        sync = api.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
        self.name = f"NixlAgent_{uuid.uuid4()}"
        config = api.nixl_agent_config(
            backends=[], enable_prog_thread=False, sync_mode=sync
        )
        self.agent = api.nixl_agent(self.name, config)
        self.buffer, self.folder = buffer, folder
        self.fds = []

    def start(self, backends=("POSIX",)):
        agent = self.agent
        for name in backends:
            agent.create_backend(name, {})
        self.mem_reg = agent.register_memory(
            [(self.buffer.addr, self.buffer.size, 0, "")], mem_type="DRAM"
        )
        pages = self.buffer.size // PAGE
        rows = [(self.buffer.addr + i * PAGE, PAGE, 0) for i in range(pages)]
        self.mem = agent.prep_xfer_dlist("", rows, mem_type="DRAM")
        for slot in range(self.SLOTS):
            path = self.folder / f"obj_{slot}.bin"
            flags = os.O_CREAT | os.O_RDWR
            self.fds.append(os.open(path, flags, 0o600))
        rows = [(0, PAGE, fd, "") for fd in self.fds]
        self.file_reg = agent.register_memory(rows, mem_type="FILE")
        rows = [(0, PAGE, fd) for fd in self.fds]
        self.files = agent.prep_xfer_dlist(self.name, rows, mem_type="FILE")

    def move(self, operation, pages, slots):
        handle = self.agent.make_prepped_xfer(
            operation, self.mem, pages, self.files, slots
        )
        self.agent.transfer(handle)
        kv.poll(self.agent, handle)
        self.agent.release_xfer_handle(handle)

    def close(self):
        for fd in self.fds:
            os.close(fd)
        self.agent = None


def test_pages_are_stored_in_slots(inproc, local, closing, plugin, tmp_path):
    storage = closing(Storage(local(16 * PAGE, seed=3), tmp_path))
    plugin(storage.agent, "POSIX")
    storage.start()
    agent = storage.agent
    storage.move("WRITE", [3, 1, 12], [0, 7, 4])
    source = pattern(3, 16 * PAGE)
    for page, slot in ((3, 0), (1, 7), (12, 4)):
        stored = (tmp_path / f"obj_{slot}.bin").read_bytes()
        assert stored == source[page * PAGE : (page + 1) * PAGE]
    storage.move("READ", [15, 14], [0, 7])
    want = kv.copied(source, source, [15, 14], [3, 1])
    assert storage.buffer.read() == want

    asked = [(0, 0, 0, str(tmp_path / name)) for name in ("obj_7.bin", "no")]
    there, missing = agent.query_memory(asked, "POSIX", mem_type="FILE")
    assert int(there["size"]) == PAGE
    assert missing is None

    agent.release_dlist_handle(storage.mem)
    agent.release_dlist_handle(storage.files)
    agent.deregister_memory(storage.file_reg)
    agent.deregister_memory(storage.mem_reg)


@pytest.mark.parametrize("order", ["POSIX", "POSIX UCX", "UCX POSIX"])
def test_pages_are_stored_whichever_backend_is_first(
    inproc, auto, local, closing, tmp_path, order
):
    storage = closing(Storage(local(16 * PAGE, seed=3), tmp_path))
    assert "POSIX" in storage.agent.get_plugin_list()
    storage.start(order.split())
    assert list(storage.agent.backends) == order.split()
    storage.move("WRITE", [3, 1], [0, 7])
    storage.move("READ", [15, 14], [7, 0])
    source = pattern(3, 16 * PAGE)
    assert storage.buffer.read() == kv.copied(source, source, [15, 14], [1, 3])
