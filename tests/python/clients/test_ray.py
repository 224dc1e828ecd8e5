"""Ray: tensors of objects, passed from actor to actor."""

import pytest
from support import kv
from support.memory import pattern


class Transport:
    """NixlTensorTransport of the receiving actor."""

    def __init__(self, name):
        from nixl._api import nixl_agent, nixl_agent_config

        config = nixl_agent_config(backends=["UCX"])
        self.agent = nixl_agent(name, config)
        self.known = {}

    def register(self, buffer):
        """Keep the list; put its serialised form into the object."""
        reg = self.agent.register_memory(
            [(buffer.addr, buffer.size, 0, "")], mem_type="cpu"
        )
        return reg, self.agent.get_serialized_descs(reg.trim())

    def receive(self, buffer, metadata, serialized, version):
        """Load the metadata if its version has changed."""
        agent = self.agent
        remote_descs = agent.deserialize_descs(serialized)
        local = agent.register_memory(
            [(buffer.addr, buffer.size, 0, "")], mem_type="cpu"
        )
        name = agent.add_remote_agent(metadata)
        if self.known.get(name, version) != version:
            agent.remove_remote_agent(name)
            name = agent.add_remote_agent(metadata)
        self.known[name] = version
        handle = agent.initialize_xfer(
            "READ", local.trim(), remote_descs, name, b"UUID"
        )
        if agent.transfer(handle) == "ERR":
            raise RuntimeError("NIXL transfer failed")
        kv.poll(agent, handle)
        agent.release_xfer_handle(handle)
        agent.deregister_memory(local)
        return name

    def close(self):
        for name in self.known:
            self.agent.remove_remote_agent(name)
        self.agent = None


@pytest.fixture
def actors(inproc, closing, names):
    return [closing(Transport(names())) for _ in range(2)]


def test_objects_arrive_one_by_one(actors, local):
    """Each object brings new metadata with one more registration."""
    sender, receiver = actors
    kept = []
    for number in range(5):
        source, target = local(kv.LAYER, seed=number), local(kv.LAYER)
        reg, serialized = sender.register(source)
        kept.append(reg)
        metadata = sender.agent.get_agent_metadata()
        receiver.receive(target, metadata, serialized, version=0)
        assert target.read() == pattern(number, kv.LAYER)
    for reg in kept:
        sender.agent.deregister_memory(reg)


def test_objects_may_be_freed_between_transfers(actors, local):
    """A deregistration changes the version; the receiver starts over."""
    sender, receiver = actors
    for number in range(4):
        source, target = local(kv.LAYER, seed=number), local(kv.LAYER)
        reg, serialized = sender.register(source)
        metadata = sender.agent.get_agent_metadata()
        if number:
            receiver.agent.remove_remote_agent(sender.agent.name)
        receiver.receive(target, metadata, serialized, version=number)
        assert target.read() == pattern(number, kv.LAYER)
        sender.agent.deregister_memory(reg)


def test_tensors_are_registered_directly(actors, names):
    torch = pytest.importorskip("torch")
    sender, receiver = actors
    source = torch.arange(4096, dtype=torch.float32)
    target = torch.zeros_like(source)
    agent = receiver.agent
    reg = sender.agent.register_memory([source])
    own = agent.register_memory(target)
    name = agent.add_remote_agent(sender.agent.get_agent_metadata())
    handle = agent.initialize_xfer(
        "READ", own.trim(), agent.get_xfer_descs([source]), name
    )
    agent.transfer(handle)
    kv.poll(agent, handle)
    assert torch.equal(source, target)
    agent.deregister_memory(own)
    sender.agent.deregister_memory(reg)
