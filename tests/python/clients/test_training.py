"""Weights and tensors: prime-rl, verl, ModelExpress, TensorRT-LLM."""

import enum
import importlib
import pickle
import uuid

from support import kv
from support.memory import pattern


def make_agent(api, **config):
    return api.nixl_agent(str(uuid.uuid4()), api.nixl_agent_config(**config))


class Trainer:
    """prime-rl's weight sender: prepared once, posted at every step."""

    def __init__(self, weights):
        try:
            api = importlib.import_module("nixl_cu13._api")
        except ImportError:
            api = importlib.import_module("nixl._api")
        self.agent = make_agent(api, backends=["UCX"])
        self.weights = weights
        self.reg = self.agent.register_memory(
            [(weights.addr, weights.size, 0, "")],
            mem_type="DRAM",
            backends=["UCX"],
        )
        self.handles = []

    def prepare(self, metadata, remote):
        agent = self.agent
        name = agent.add_remote_agent(metadata)
        agent.make_connection(name)
        half = self.weights.size // 2
        for at in (0, half):
            left, right = (
                agent.prep_xfer_dlist(
                    agent_name=peer,
                    xfer_list=[(base + at, half, 0)],
                    mem_type="DRAM",
                    backends=["UCX"],
                )
                for peer, base in (("", self.weights.addr), (name, remote))
            )
            self.handles.append(
                agent.make_prepped_xfer(
                    operation="WRITE",
                    local_xfer_side=left,
                    local_indices=[0],
                    remote_xfer_side=right,
                    remote_indices=[0],
                    backends=["UCX"],
                )
            )
        return name

    def step(self, name, number):
        for handle in self.handles:
            self.agent.transfer(handle)
        for handle in self.handles:
            kv.poll(self.agent, handle)
        self.agent.send_notif(name, notif_msg=b"step %d" % number)

    def close(self):
        for handle in self.handles:
            self.agent.release_xfer_handle(handle)
        self.agent = None


def test_prime_rl_prepares_once_and_posts_repeatedly(local, remote, closing):
    there = remote()
    trainer = closing(Trainer(local(kv.CACHE)))
    name = trainer.prepare(there.metadata(), there.addr)
    for number in range(5):
        trainer.weights.memory.fill(number)
        trainer.step(name, number)
        want = [(trainer.agent.name, b"step %d" % number)]
        assert there.node.gather_notifs(1) == want
        assert there.read() == pattern(number, kv.CACHE)


def test_verl_pickles_lists_and_sends_raw_messages(
    inproc, local, opened, nixl
):
    """Lists are pickled with Python's pickle; the notification is a UUID."""
    source, target = local(kv.LAYER, seed=1), local(kv.LAYER)
    sender, receiver = (make_agent(nixl) for _ in range(2))
    reg = sender.register_memory([(source.addr, kv.LAYER, 0, "")], "DRAM")
    own = receiver.register_memory([(target.addr, kv.LAYER, 0, "")], "DRAM")
    sent = pickle.dumps(
        {
            "metadata": sender.get_agent_metadata(),
            "descs": sender.get_xfer_descs(
                [(source.addr, kv.LAYER, 0)], "DRAM"
            ),
            "key": uuid.uuid4().bytes,
        }
    )
    told = pickle.loads(sent)
    name = receiver.add_remote_agent(told["metadata"]).decode("utf-8")
    assert name == sender.name
    handle = receiver.initialize_xfer(
        "READ", own.trim(), told["descs"], name, told["key"]
    )
    assert receiver.transfer(handle) in ("DONE", "PROC")
    kv.poll(receiver, handle)
    receiver.release_xfer_handle(handle)
    found = {}
    while receiver.name not in found:
        found = sender.get_new_notifs()
    assert found[receiver.name] == [told["key"]]
    assert target.read() == pattern(1, kv.LAYER)
    receiver.remove_remote_agent(name)
    receiver.deregister_memory(own)
    sender.deregister_memory(reg)


def test_modelexpress_registers_many_tensors(
    inproc, local, opened, closing, nixl
):
    """The source starts first, then the targets; raw rows on both sides."""
    source = local(kv.CACHE, seed=1)
    agent = make_agent(nixl, backends=["UCX"])
    rows = [(*row, "") for row in kv.rows(source.addr)]
    agent.register_memory(rows, mem_type="DRAM", backends=["UCX"])
    metadata = agent.get_agent_metadata()
    for _ in range(2):
        target = local(kv.CACHE)
        reader = make_agent(nixl, backends=["UCX"])
        reader.register_memory(
            [(*row, "") for row in kv.rows(target.addr)], mem_type="DRAM"
        )
        name = reader.add_remote_agent(metadata)
        left, right = (
            reader.prep_xfer_dlist(
                agent_name=peer, xfer_list=kv.rows(base), mem_type="DRAM"
            )
            for peer, base in (("", target.addr), (name, source.addr))
        )
        every = list(range(kv.LAYERS * kv.BLOCKS))
        handle = reader.make_prepped_xfer("READ", left, every, right, every)
        reader.transfer(handle)
        kv.poll(reader, handle)
        reader.release_xfer_handle(handle)
        assert target.read() == pattern(1, kv.CACHE)
        reader.remove_remote_agent(name)
        assert reader.check_remote_metadata(agent.name) is False


class TransferState(str, enum.Enum):
    """TensorRT-LLM's mapping of states; other texts are errors there."""

    PENDING = "PENDING"
    PROC = "PROC"
    DONE = "DONE"
    ERROR = "ERROR"


def test_tensorrt_llm_maps_states(inproc, local, opened):
    """Attributes of the first installed package; an empty str as the
    notification."""
    for name in ("nixl_cu13", "nixl_cu12", "nixl"):
        try:
            package = importlib.import_module(name)
            break
        except ImportError:
            continue
    source, target = local(kv.LAYER, seed=1), local(kv.LAYER)
    owner, reader = (
        make_agent(
            package, enable_prog_thread=True, backends=["UCX"], num_threads=1
        )
        for _ in range(2)
    )
    assert package.nixl_xfer_handle.__name__ == "nixl_xfer_handle"
    reg = owner.register_memory(
        owner.get_reg_descs([(source.addr, kv.LAYER, 0, "")], "DRAM")
    )
    own = reader.register_memory(
        reader.get_reg_descs([(target.addr, kv.LAYER, 0, "")], "DRAM")
    )
    name = reader.add_remote_agent(owner.get_agent_metadata())
    handle = reader.initialize_xfer(
        "READ",
        reader.get_xfer_descs([(target.addr, kv.LAYER, 0)], "DRAM"),
        reader.get_xfer_descs([(source.addr, kv.LAYER, 0)], "DRAM"),
        name,
        "",
    )
    assert isinstance(handle, package.nixl_xfer_handle)
    state = TransferState(reader.transfer(handle))
    while state != TransferState.DONE:
        state = TransferState(reader.check_xfer_state(handle))
    assert target.read() == pattern(1, kv.LAYER)
    handle.release()
    reader.deregister_memory(own)
    owner.deregister_memory(reg)
