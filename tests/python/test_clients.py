"""The ways in which real clients use an agent, call by call.

Each test is one client's order of calls, forms of arguments and uses of
results, cut down to one small cache.  They hold for stock NIXL as well.
"""

import enum
import pickle
import threading
import uuid

import pytest
from support import blocks, deadline
from support.memory import pattern

LAYERS, BLOCKS, BLOCK = 4, 32, 2048
LAYER = BLOCKS * BLOCK
CACHE = LAYERS * LAYER


def numpy():
    return pytest.importorskip("numpy")


def block_rows(base):
    """(address, length, device) of each block of each layer, as uint64."""
    return blocks.as_numpy(
        [(base + i * BLOCK, BLOCK, 0) for i in range(LAYERS * BLOCKS)]
    )


def desc_ids(block_ids):
    """The rows of some blocks in every layer."""
    np = numpy()
    layers = np.arange(LAYERS)[:, None] * BLOCKS
    return (layers + np.asarray(block_ids)[None, :]).flatten()


def cache_after(target, source, to, start):
    """The target's bytes once blocks `start` came to blocks `to`."""
    result = bytearray(target)
    for i, j in zip(desc_ids(to), desc_ids(start), strict=True):
        piece = source[j * BLOCK : (j + 1) * BLOCK]
        result[i * BLOCK : (i + 1) * BLOCK] = piece
    return bytes(result)


def poll(agent, handle):
    """vLLM's look once in a step."""
    deadline.until(
        lambda: agent.check_xfer_state(handle) == "DONE", "the transfer"
    )


class Instance:
    """One serving instance as vLLM's worker sets it up."""

    def __init__(self, make, seed, **config):
        self.node = make(str(uuid.uuid4()), **config)
        self.name = self.node.name
        self.cache = self.node.alloc(CACHE, seed=seed, register=False)
        self.node.register_descs(self.cache.key, ["UCX"])


@pytest.fixture
def instances(endpoint, other):
    """(decode here, prefill there) with vLLM's configuration."""
    config = {"num_threads": 4, "capture_telemetry": True}
    return Instance(endpoint, 1, **config), Instance(other, 2, **config)


# -- vLLM --------------------------------------------------------------------


@pytest.mark.parametrize("form", ["Nx3", "Nx5"])
def test_vllm_pulls_blocks(instances, form):
    """NixlConnector: 0.32 passes Nx3 lists, 0.33 rows with strides."""
    np = numpy()
    decode, prefill = instances
    agent = decode.node.agent

    def prep(name, base):
        if form == "Nx3":
            descs = agent.get_xfer_descs(block_rows(base), "DRAM")
            return agent.prep_xfer_dlist(name, descs)
        strides = [
            (base + layer * LAYER, BLOCK, 0, BLOCK, BLOCKS)
            for layer in range(LAYERS)
        ]
        table = np.array(strides, np.uint64)
        return agent.prep_xfer_dlist(name, table, mem_type="DRAM")

    local = prep("NIXL_INIT_AGENT", decode.cache.addr)
    name = agent.add_remote_agent(prefill.node.metadata())
    remote = prep(name, prefill.cache.addr)

    want, source = pattern(1, CACHE), pattern(2, CACHE)
    for number, (to, start) in enumerate(
        [([0, 1, 2], [5, 6, 7]), ([9, 3], [1, 30]), ([31], [0])]
    ):
        request = f"cmpl-{number}-{uuid.uuid4()}"
        handle = agent.make_prepped_xfer(
            "READ",
            local,
            desc_ids(to),
            remote,
            desc_ids(start),
            notif_msg=f"{request}:2".encode(),
        )
        agent.transfer(handle)
        poll(agent, handle)
        agent.release_xfer_handle(handle)
        want = cache_after(want, source, to, start)
        assert decode.node.read(decode.cache.key) == want
        ((sender, message),) = prefill.node.gather_notifs(1)
        assert sender == decode.name
        assert message.decode().rsplit(":", 1) == [request, "2"]

    agent.release_dlist_handle(local)
    agent.release_dlist_handle(remote)
    agent.remove_remote_agent(name)
    decode.node.deregister(decode.cache.key)


@pytest.mark.beyond_stock
def test_vllm_reads_telemetry_of_what_is_done(instances):
    """An exception here made a finished request a failed one."""
    decode, prefill = instances
    agent = decode.node.agent
    local = agent.prep_xfer_dlist("", block_rows(decode.cache.addr), "DRAM")
    name = agent.add_remote_agent(prefill.node.metadata())
    remote = agent.prep_xfer_dlist(
        name, block_rows(prefill.cache.addr), "DRAM"
    )
    ids = desc_ids([1, 2, 3])
    handle = agent.make_prepped_xfer("READ", local, ids, remote, ids)
    agent.transfer(handle)
    poll(agent, handle)
    told = agent.get_xfer_telemetry(handle)
    assert told.totalBytes == len(ids) * BLOCK
    assert told.descCount == len(ids)
    assert told.xferDuration >= 0
    assert told.postDuration >= 0


def test_vllm_renews_leases_with_notifications(instances):
    """A full hit of the prefix cache moves nothing, and says so."""
    decode, prefill = instances
    agent = decode.node.agent
    name = agent.add_remote_agent(prefill.node.metadata())
    waiting = [f"cmpl-{i}" for i in range(40)]
    agent.send_notif(name, notif_msg=b"HB:" + ",".join(waiting).encode())
    agent.send_notif(name, notif_msg=b"cmpl-7:1")
    got = [message for _, message in prefill.node.gather_notifs(2)]
    assert got[0].decode().removeprefix("HB:").split(",") == waiting
    assert got[1] == b"cmpl-7:1"


def test_vllm_pushes_from_its_writer_thread(instances):
    """NixlPushConnector: decode says where, prefill writes; the handshake,
    the writer and the main thread use one agent."""
    decode, prefill = instances
    # Here the writer is the endpoint of this process.
    writer, target = decode, prefill
    agent = writer.node.agent
    requests = [(f"req-{i}", [i, i + 8], [i + 1, i + 9]) for i in range(8)]
    target.node.add(writer.node.metadata())
    for request, start, to in requests:
        told = pickle.dumps((request, start, to))
        target.node.send_notif(writer.name, b"PUSH_REG:" + told)

    names = []
    handshake = threading.Thread(
        target=lambda: names.append(
            agent.add_remote_agent(target.node.metadata())
        )
    )
    handshake.start()
    handshake.join(30)
    local = agent.prep_xfer_dlist("", block_rows(writer.cache.addr), "DRAM")
    remote = agent.prep_xfer_dlist(
        names[0], block_rows(target.cache.addr), "DRAM"
    )
    errors = []

    def write():
        try:
            for _, message in deadline.gather_notifs(agent, len(requests)):
                request, start, to = pickle.loads(
                    message.removeprefix(b"PUSH_REG:")
                )
                handle = agent.make_prepped_xfer(
                    "WRITE",
                    local,
                    desc_ids(start),
                    remote,
                    desc_ids(to),
                    notif_msg=request.encode(),
                )
                agent.transfer(handle)
                poll(agent, handle)
                agent.release_xfer_handle(handle)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    got = target.node.gather_notifs(len(requests))
    thread.join(30)
    assert errors == []
    assert got == [(writer.name, name.encode()) for name, _, _ in requests]
    want, source = pattern(2, CACHE), pattern(1, CACHE)
    for _, start, to in requests:
        want = cache_after(want, source, to, start)
    assert target.node.read(target.cache.key) == want


@pytest.mark.beyond_stock
def test_vllm_sleeps_and_wakes(instances):
    """The same registration list goes and comes; the peer removes and adds
    the agent of the same name."""
    decode, prefill = instances
    agent = decode.node.agent
    for seed in range(3):
        prefill.node.fill(prefill.cache.key, seed)
        name = agent.add_remote_agent(prefill.node.metadata())
        local = agent.prep_xfer_dlist(
            "", block_rows(decode.cache.addr), "DRAM"
        )
        remote = agent.prep_xfer_dlist(
            name, block_rows(prefill.cache.addr), "DRAM"
        )
        every = list(range(LAYERS * BLOCKS))
        handle = agent.make_prepped_xfer("READ", local, every, remote, every)
        agent.transfer(handle)
        poll(agent, handle)
        assert decode.node.read(decode.cache.key) == pattern(seed, CACHE)
        handle.release()
        local.release()
        remote.release()
        prefill.node.deregister(prefill.cache.key)
        prefill.node.register(prefill.cache.key)
        agent.remove_remote_agent(name)


def test_vllm_balances_experts(pair):
    """EPLB: for each layer new lists of a few tensors, handles in a set,
    polled until the set is empty; everything released each time."""
    here, there = pair
    remote, local = there.alloc(CACHE, seed=3), here.alloc(CACHE)
    here.add(there.metadata())
    agent = here.agent
    for layer in range(LAYERS):
        pending, keep = set(), []
        for expert in range(8):
            offset = layer * LAYER + expert * BLOCK
            sides = [
                agent.prep_xfer_dlist(
                    peer,
                    agent.get_xfer_descs([(base + offset, BLOCK, 0)], "DRAM"),
                )
                for peer, base in (
                    ("NIXL_INIT_AGENT", local.addr),
                    (there.name, remote.addr),
                )
            ]
            handle = agent.make_prepped_xfer(
                "READ", sides[0], list(range(1)), sides[1], list(range(1))
            )
            agent.transfer(handle)
            pending.add(handle)
            keep.extend(sides)
        while pending:
            for handle in list(pending):
                if agent.check_xfer_state(handle) == "DONE":
                    agent.release_xfer_handle(handle)
                    pending.remove(handle)
        for side in keep:
            agent.release_dlist_handle(side)
    got, source = here.read(local.key), pattern(3, CACHE)
    for layer in range(LAYERS):
        part = slice(layer * LAYER, layer * LAYER + 8 * BLOCK)
        assert got[part] == source[part]


def test_vllm_creates_its_backend_itself(endpoint, other):
    """The p2p tier of 0.33: no backend at first, then UCX with options."""
    here, there = endpoint(backends=[]), other()
    options = {"engine_config": "TLS=^rc_gda", "num_threads": "4"}
    here.agent.create_backend("UCX", options)
    remote, local = there.alloc(BLOCK, seed=4), here.alloc(BLOCK)
    here.add(there.metadata())
    here.move(
        "READ", [(local.addr, BLOCK, 0)], [(remote.addr, BLOCK, 0)], there.name
    )
    assert here.read(local.key) == pattern(4, BLOCK)
    assert "UCX" in here.agent.get_plugin_list()


# -- SGLang ------------------------------------------------------------------


def test_sglang_sends_pages_and_state(pair):
    """Lists of 4-tuples, int64 arrays of addresses, int32 indices, the
    notification by place, handles that nobody releases."""
    np = numpy()
    here, there = pair
    agent = here.agent
    source, target = here.alloc(CACHE, seed=5), there.alloc(CACHE)
    state = here.alloc(BLOCK, seed=6, register=False)
    descs = agent.register_memory([(state.addr, BLOCK, 0, "")], "DRAM")
    if not descs:
        raise AssertionError("a registration that is false")
    here.add(there.metadata())

    local = agent.prep_xfer_dlist("", block_rows(source.addr), "DRAM")
    remote = agent.prep_xfer_dlist(there.name, block_rows(target.addr), "DRAM")
    pages = np.array([0, 2, 4, 7], np.int32)
    room = "12_kv_0_1_0"
    handle = agent.make_prepped_xfer(
        "WRITE", local, pages, remote, pages[::-1], room.encode()
    )
    if agent.transfer(handle) == "ERR":
        raise AssertionError("an error that was not raised")

    table = np.array([[state.addr, BLOCK, 0]], np.int64)
    place = np.array([[target.addr + CACHE - BLOCK, BLOCK, 0]], np.int64)
    last = agent.initialize_xfer(
        "WRITE",
        agent.get_xfer_descs(table, "DRAM"),
        agent.get_xfer_descs(place, "DRAM"),
        there.name,
        b"12_aux",
    )
    agent.transfer(last)
    poll(agent, handle)
    poll(agent, last)
    assert sorted(m for _, m in there.gather_notifs(2)) == [
        b"12_aux",
        room.encode(),
    ]
    got, ours = there.read(target.key), pattern(5, CACHE)
    for i, j in zip(pages, pages[::-1], strict=True):
        assert got[j * BLOCK :][:BLOCK] == ours[i * BLOCK :][:BLOCK]
    assert got[-BLOCK:] == pattern(6, BLOCK)
    agent.deregister_memory(descs)


# -- LMCache -----------------------------------------------------------------


def test_lmcache_exchanges_serialized_lists(endpoint, meet):
    """mem_type "cpu", "" for the local side, lists pickled and sent."""
    here, there = endpoint(), endpoint()
    remote, local = there.alloc(CACHE, seed=7), here.alloc(CACHE)
    meet(here, there)
    rows = [(remote.addr + i * BLOCK, BLOCK, 0) for i in range(16)]
    sent = there.agent.get_serialized_descs(
        there.agent.get_xfer_descs(rows, mem_type="cpu")
    )
    agent = here.agent
    theirs = agent.deserialize_descs(sent)
    ours = agent.get_xfer_descs(
        [(local.addr + i * BLOCK, BLOCK, 0) for i in range(16)], "cpu"
    )
    left = agent.prep_xfer_dlist("", ours, "cpu")
    right = agent.prep_xfer_dlist(there.name, theirs, "cpu")
    handle = agent.make_prepped_xfer("READ", left, [0, 5, 9], right, [1, 5, 2])
    agent.transfer(handle)
    poll(agent, handle)
    got, source = here.read(local.key), pattern(7, CACHE)
    for to, start in ((0, 1), (5, 5), (9, 2)):
        assert got[to * BLOCK :][:BLOCK] == source[start * BLOCK :][:BLOCK]


# -- Dynamo ------------------------------------------------------------------


def test_dynamo_names_every_argument(endpoint, other):
    here, there = endpoint(), other()
    remote, local = there.alloc(BLOCK, seed=8), here.alloc(BLOCK)
    agent = here.agent
    name = agent.add_remote_agent(metadata=there.metadata())
    name = name.decode() if isinstance(name, bytes) else name
    handle = agent.initialize_xfer(
        operation="READ",
        local_descs=agent.get_xfer_descs(
            descs=[(local.addr, BLOCK, 0)], mem_type="DRAM"
        ),
        remote_descs=agent.get_xfer_descs(
            descs=[(remote.addr, BLOCK, 0)], mem_type="DRAM"
        ),
        remote_agent=name,
        notif_msg=b"op-1",
    )
    agent.transfer(handle, b"op-1-again")
    poll(agent, handle)
    assert here.read(local.key) == pattern(8, BLOCK)
    assert there.gather_notifs(1) == [(here.name, b"op-1-again")]
    agent.release_xfer_handle(handle=handle)


def test_dynamo_waits_for_a_tag(pair):
    """The passive side looks for a message by its beginning."""
    here, there = pair
    agent = here.agent
    there.send_notif(here.name, b"other:1")
    there.send_notif(here.name, b"embedding:77:done")
    deadline.until(
        lambda: agent.check_remote_xfer_done(there.name, b"embedding:77"),
        "the message",
    )
    assert not agent.check_remote_xfer_done(there.name, b"embedding:77")
    assert agent.check_remote_xfer_done(there.name, b"other:1")


# -- TensorRT-LLM ------------------------------------------------------------


class TransferState(enum.Enum):
    """What its wrapper makes of the word; "ERR" is none of them."""

    PENDING = "PENDING"
    PROCESSING = "PROC"
    DONE = "DONE"
    ERROR = "ERROR"


def test_tensorrt_llm_passes_text(pair):
    here, there = pair
    remote, local = there.alloc(BLOCK, seed=9), here.alloc(BLOCK)
    here.add(there.metadata())
    agent = here.agent
    handle = agent.initialize_xfer(
        "READ",
        agent.get_xfer_descs([(local.addr, BLOCK, 0)], "DRAM"),
        agent.get_xfer_descs([(remote.addr, BLOCK, 0)], "DRAM"),
        there.name,
        "",
    )
    state = TransferState(agent.transfer(handle))
    while state is not TransferState.DONE:
        state = TransferState(agent.check_xfer_state(handle))
    assert here.read(local.key) == pattern(9, BLOCK)
    there.send_notif(here.name, b"end")
    assert here.gather_notifs(1) == [(there.name, b"end")]


# -- LightLLM, verl, prime-rl, Ray -------------------------------------------


def test_lightllm_changes_its_configuration(api, names, endpoint):
    config = api.nixl_agent_config()
    config.capture_telemetry = True
    agent = api.nixl_agent(names(), config)
    room = endpoint().alloc(BLOCK, register=False)
    descs = agent.register_memory([(room.addr, BLOCK, 0, "")], "DRAM")
    assert descs[0][:3] == (room.addr, BLOCK, 0)
    rows = [(room.addr, 64, 0)]
    left = agent.prep_xfer_dlist("", rows, "DRAM")
    right = agent.prep_xfer_dlist(agent.name, rows, "DRAM")
    by_id = {}
    handle = agent.make_prepped_xfer("READ", left, [0], right, [0])
    by_id[id(handle)] = handle
    agent.transfer(handle)
    poll(agent, by_id[id(handle)])
    assert agent.query_xfer_backend(handle) in agent.get_plugin_list()
    agent.release_xfer_handle(handle=handle)
    agent.deregister_memory(descs)


def test_verl_tells_by_sixteen_bytes(pair):
    """The name is decoded whatever comes; the message is a raw uuid."""
    here, there = pair
    remote, local = there.alloc(BLOCK, seed=10), here.alloc(BLOCK)
    agent = here.agent
    name = agent.add_remote_agent(there.metadata()).decode("utf-8")
    descs = pickle.loads(
        pickle.dumps(agent.get_xfer_descs([(remote.addr, BLOCK, 0)], "DRAM"))
    )
    tag = uuid.uuid4().bytes
    handle = agent.initialize_xfer(
        "READ",
        agent.get_xfer_descs([(local.addr, BLOCK, 0)], "DRAM"),
        descs,
        name,
        tag,
    )
    if agent.transfer(handle) == "ERR":
        raise AssertionError("an error that was not raised")
    poll(agent, handle)
    assert there.gather_notifs(1) == [(here.name, tag)]
    assert here.read(local.key) == pattern(10, BLOCK)
    agent.remove_remote_agent(name)


def test_prime_rl_prepares_once_and_posts_again(endpoint, other):
    """Weights: everything by keyword, handles made before the first step and
    posted at every step."""
    here, there = endpoint(), other()
    source, target = here.alloc(CACHE), there.alloc(CACHE)
    agent = here.agent
    name = agent.add_remote_agent(there.metadata())
    agent.make_connection(name)
    halves = [
        (
            agent.prep_xfer_dlist(
                agent_name="",
                xfer_list=[(source.addr + at, CACHE // 2, 0)],
                mem_type="DRAM",
                backends=["UCX"],
            ),
            agent.prep_xfer_dlist(
                agent_name=name,
                xfer_list=[(target.addr + at, CACHE // 2, 0)],
                mem_type="DRAM",
                backends=["UCX"],
            ),
        )
        for at in (0, CACHE // 2)
    ]
    handles = [
        agent.make_prepped_xfer(
            operation="WRITE",
            local_xfer_side=left,
            local_indices=[0],
            remote_xfer_side=right,
            remote_indices=[0],
            backends=["UCX"],
        )
        for left, right in halves
    ]
    for step in range(5):
        here.fill(source.key, step)
        for handle in handles:
            agent.transfer(handle)
        for handle in handles:
            poll(agent, handle)
        agent.send_notif(name, notif_msg=b"step %d" % step)
        assert there.gather_notifs(1) == [(here.name, b"step %d" % step)]
        assert there.read(target.key) == pattern(step, CACHE)


def test_ray_adds_a_known_agent_with_more_memory(endpoint, other):
    """Objects come one by one; each brings the metadata anew."""
    here, there = endpoint(), other()
    for number in range(10):
        remote, local = there.alloc(BLOCK, seed=number), here.alloc(BLOCK)
        assert here.add(there.metadata()) == there.name.encode()
        here.move(
            "READ",
            [(local.addr, BLOCK, 0)],
            [(remote.addr, BLOCK, 0)],
            there.name,
        )
        assert here.read(local.key) == pattern(number, BLOCK)
