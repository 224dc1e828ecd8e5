"""vLLM's NixlConnector: how a worker sets up, its hot path, its threads."""

import importlib
import importlib.util
import pickle
import sys
import threading
import uuid

import pytest
from support import deadline, kv
from support.memory import pattern

pytest.importorskip("numpy")


class Worker:
    """The worker of one instance, with its own cache."""

    def __init__(self, cache, config=None):
        # Names are looked up late and individually; a missing one is None.
        api = importlib.import_module("nixl._api")
        wrapper = getattr(api, "nixl_agent", None)
        make_config = getattr(api, "nixl_agent_config", None)
        if wrapper is None or make_config is None:
            raise RuntimeError("NIXL is not available")
        config = config or {"num_threads": 4, "capture_telemetry": True}
        self.wrapper = wrapper(str(uuid.uuid4()), make_config(**config))
        self.backends = ["UCX"]
        if "UCX" not in self.wrapper.backends:
            sleep_mode = "RCACHE_ENABLE=n,TLS=^cuda_ipc"
            self.wrapper.create_backend(
                "UCX", {"engine_config": sleep_mode, "num_threads": "4"}
            )
        self.cache = cache
        self.register_kv_caches()
        self.local = None
        self.remotes = {}
        self.receiving = {}

    @property
    def name(self):
        return self.wrapper.name

    def register_kv_caches(self):
        rows = [(self.cache.addr, self.cache.size, 0, "")]
        self.descs = self.wrapper.get_reg_descs(rows, "DRAM")
        self.wrapper.register_memory(self.descs, backends=self.backends)

    def prepare(self, name, base, form):
        if form == "Nx3":  # vLLM 0.32
            descs = self.wrapper.get_xfer_descs(kv.table(base), "DRAM")
            return self.wrapper.prep_xfer_dlist(name, descs)
        table = kv.strided(base)  # 0.33
        return self.wrapper.prep_xfer_dlist(name, table, mem_type="DRAM")

    def handshake(self, metadata, base, form="Nx3"):
        """Run in a separate thread; return the peer's name as NIXL gave it."""
        if self.local is None:
            self.local = self.prepare("NIXL_INIT_AGENT", self.cache.addr, form)
        name = self.wrapper.add_remote_agent(metadata)
        self.remotes[name] = self.prepare(name, base, form)
        return name

    def start_load(self, operation, name, request, ours, theirs, notif):
        handle = self.wrapper.make_prepped_xfer(
            operation,
            self.local,
            kv.desc_ids(ours),
            self.remotes[name],
            kv.desc_ids(theirs),
            notif_msg=notif,
        )
        self.wrapper.transfer(handle)
        self.receiving[request] = handle

    def pop_done(self):
        """One step: return the ended requests; release DONE, keep PROC."""
        done = {}
        for request, handle in list(self.receiving.items()):
            state = self.wrapper.check_xfer_state(handle)
            assert state in ("DONE", "PROC")
            if state == "DONE":
                done[request] = handle
                del self.receiving[request]
        for handle in done.values():
            self.wrapper.release_xfer_handle(handle)
        return set(done)

    def wait_for(self, requests):
        found = set()

        def step():
            found.update(self.pop_done())
            return found == set(requests)

        deadline.until(step, f"the requests {requests}")

    def close(self):
        """vLLM's order of shutting down."""
        for handle in self.receiving.values():
            self.wrapper.release_xfer_handle(handle)
        if self.local is not None:
            self.wrapper.release_dlist_handle(self.local)
        for name, handle in self.remotes.items():
            self.wrapper.release_dlist_handle(handle)
            self.wrapper.remove_remote_agent(name)
        self.remotes.clear()
        self.wrapper.deregister_memory(self.descs)
        self.wrapper = None


@pytest.fixture
def worker(local, closing):
    """worker(seed): an instance in this process."""

    def make(seed, config=None):
        return closing(Worker(local(kv.CACHE, seed=seed), config))

    return make


def rows_after(target, source, to, start):
    return kv.copied(target, source, kv.desc_ids(to), kv.desc_ids(start))


def test_vllm_finds_nixl_before_it_imports_it():
    assert "nixl" in sys.modules or importlib.util.find_spec("nixl")
    assert importlib.util.find_spec("nixl") is not None
    bindings = importlib.import_module("nixl._bindings")
    assert isinstance(bindings.nixlXferTelemetry, type)


@pytest.mark.parametrize("form", ["Nx3", "Nx5"])
def test_vllm_pulls_blocks(worker, remote, form):
    decode = worker(1)
    prefill = remote(seed=2)
    name = decode.handshake(prefill.metadata(), prefill.addr, form)
    assert isinstance(name, bytes)
    want, source = pattern(1, kv.CACHE), pattern(2, kv.CACHE)
    for number, (to, start) in enumerate(
        [([0, 1, 2], [5, 6, 7]), ([9, 3], [1, 30]), ([31], [0])]
    ):
        request = f"cmpl-{number}-{uuid.uuid4()}"
        notif = f"{request}:2".encode()
        decode.start_load("READ", name, request, to, start, notif)
        decode.wait_for([request])
        want = rows_after(want, source, to, start)
        assert decode.cache.read() == want
        ((sender, message),) = prefill.node.gather_notifs(1)
        assert sender == decode.name
        assert message.decode().rsplit(":", 1) == [request, "2"]


def test_vllm_polls_many_requests_in_one_step(worker, remote):
    decode, prefill = worker(1), remote(seed=2)
    name = decode.handshake(prefill.metadata(), prefill.addr)
    for block in range(kv.BLOCKS):
        decode.start_load(
            "READ", name, block, [block], [block], b"%d:1" % block
        )
    decode.wait_for(range(kv.BLOCKS))
    assert decode.cache.read() == pattern(2, kv.CACHE)
    got = prefill.node.gather_notifs(kv.BLOCKS)
    numbers = [int(message.split(b":")[0]) for _, message in got]
    assert sorted(numbers) == list(range(kv.BLOCKS))


def test_rows_may_hold_numpy_scalars(worker, remote):
    """Mixed memory types: tuples whose cells are numpy scalars."""
    decode, prefill = worker(1), remote(seed=2)
    agent = decode.wrapper
    name = agent.add_remote_agent(prefill.metadata())
    sides = [
        agent.prep_xfer_dlist(
            peer, agent.get_xfer_descs(list(map(tuple, table)), "DRAM")
        )
        for peer, table in (
            ("NIXL_INIT_AGENT", kv.table(decode.cache.addr)),
            (name, kv.table(prefill.addr)),
        )
    ]
    handle = agent.make_prepped_xfer(
        "READ", sides[0], kv.desc_ids([4]), sides[1], kv.desc_ids([8])
    )
    agent.transfer(handle)
    kv.poll(agent, handle)
    want = rows_after(pattern(1, kv.CACHE), pattern(2, kv.CACHE), [4], [8])
    assert decode.cache.read() == want
    agent.release_xfer_handle(handle)
    for side in sides:
        agent.release_dlist_handle(side)
    agent.remove_remote_agent(name)


@pytest.mark.beyond_stock
def test_telemetry_is_available_after_completion(worker, remote):
    """An exception here would turn a finished request into a failed one."""
    decode, prefill = worker(1), remote(seed=2)
    name = decode.handshake(prefill.metadata(), prefill.addr)
    decode.start_load("READ", name, "r", [1, 2], [3, 4], b"")
    handle = decode.receiving["r"]
    agent = decode.wrapper
    kv.poll(agent, handle)
    told = agent.get_xfer_telemetry(handle)
    assert told.totalBytes == 2 * kv.LAYERS * kv.BLOCK
    assert told.descCount == 2 * kv.LAYERS
    assert told.xferDuration >= 0
    assert told.postDuration >= 0


def test_notifications_renew_leases(worker, remote):
    """A full prefix cache hit transfers nothing and only notifies."""
    decode, prefill = worker(1), remote(seed=2)
    name = decode.wrapper.add_remote_agent(prefill.metadata())
    waiting = [f"cmpl-{i}" for i in range(40)]
    beat = b"HB:" + ",".join(waiting).encode()
    decode.wrapper.send_notif(name, notif_msg=beat)
    decode.wrapper.send_notif(name, notif_msg=b"cmpl-7:1")
    got = [message for _, message in prefill.node.gather_notifs(2)]
    assert got == [beat, b"cmpl-7:1"]


def test_vllm_pushes_from_a_writer_thread(worker, remote):
    """NixlPushConnector: the target names the blocks, the writer writes them;
    handshake, writer and main thread share one agent."""
    writer, target = worker(1), remote(seed=2)
    agent = writer.wrapper
    requests = [(f"req-{i}", [i, i + 8], [i + 1, i + 9]) for i in range(8)]
    target.node.add(agent.get_agent_metadata())
    for told in requests:
        message = b"PUSH_REG:" + pickle.dumps(told)
        target.node.send_notif(writer.name, message)

    names, errors, written = [], [], threading.Event()

    def guarded(work):
        def run():
            try:
                work()
            except BaseException as error:
                errors.append(error)

        return run

    def shake():
        names.append(writer.handshake(target.metadata(), target.addr))

    def write():
        for _, message in deadline.gather_notifs(agent, len(requests)):
            told = pickle.loads(message.removeprefix(b"PUSH_REG:"))
            request, start, to = told
            notif = request.encode()
            writer.start_load("WRITE", names[0], request, start, to, notif)
        writer.wait_for([request for request, _, _ in requests])
        written.set()

    handshake = threading.Thread(target=guarded(shake))
    handshake.start()
    handshake.join(30)
    thread = threading.Thread(target=guarded(write))
    thread.start()
    while not written.is_set() and not errors:
        # The main thread continues with its steps.
        assert agent.check_remote_metadata(target.name)
        written.wait(0.001)
    thread.join(30)
    assert errors == []
    got = target.node.gather_notifs(len(requests))
    assert sorted(got) == [(writer.name, r[0].encode()) for r in requests]
    want = pattern(2, kv.CACHE)
    for _, start, to in requests:
        want = rows_after(want, pattern(1, kv.CACHE), to, start)
    assert target.read() == want


@pytest.mark.beyond_stock
def test_memory_is_registered_again_after_sleep(worker, remote):
    """The same list is deregistered and registered again; the peer removes and
    adds the agent under the same name."""
    config = {"backends": [], "capture_telemetry": True}
    decode, prefill = worker(1, config), remote(seed=2)
    for seed in range(3):
        prefill.node.fill(prefill.block.key, seed)
        name = decode.handshake(prefill.metadata(), prefill.addr)
        every = range(kv.BLOCKS)
        decode.start_load("READ", name, seed, every, every, b"")
        decode.wait_for([seed])
        assert decode.cache.read() == pattern(seed, kv.CACHE)
        decode.wrapper.release_dlist_handle(decode.remotes.pop(name))
        decode.wrapper.release_dlist_handle(decode.local)
        decode.local = None
        decode.wrapper.remove_remote_agent(name)
        decode.wrapper.deregister_memory(decode.descs)
        decode.wrapper.register_memory(decode.descs, backends=["UCX"])
        prefill.node.deregister(prefill.block.key)
        prefill.node.register(prefill.block.key)


@pytest.mark.beyond_stock
def test_killed_peer_raises_an_error_of_a_known_class(worker, peer, inproc):
    """The client tells errors apart by their class names."""
    decode = worker(1)
    prefill = peer()
    block = prefill.alloc(kv.CACHE, seed=2)
    name = decode.handshake(prefill.metadata(), block.addr)
    prefill.kill()

    def fails():
        try:
            decode.start_load("READ", name, "r", [0], [0], b"")
            decode.wrapper.check_xfer_state(decode.receiving["r"])
        except Exception as error:
            return error
        return None

    error = deadline.until(fails, "an error", pause=0.01)
    assert type(error).__name__ == "nixlRemoteDisconnectError"
    assert "NIXL_ERR_" in str(error)
    assert not isinstance(error, RuntimeError)
