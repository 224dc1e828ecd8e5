"""Dynamo: nixl_connect, and the transfer of embeddings."""

import uuid

import pytest
from support import deadline, kv
from support.memory import pattern


class Connector:
    """nixl_connect: all arguments by keyword, one agent for all operations."""

    def __init__(self, buffer):
        from nixl._api import nixl_agent

        self.agent = nixl_agent(str(uuid.uuid4()))
        self.buffer = buffer
        self.reg = self.agent.register_memory(
            [(buffer.addr, buffer.size, 0, "")], mem_type="DRAM"
        )

    def operation(self, kind, remote, peer, key):
        """An active operation; the passive side waits for its key."""
        agent = self.agent
        handle = agent.initialize_xfer(
            operation=kind,
            local_descs=agent.get_xfer_descs(
                descs=[(self.buffer.addr, kv.BLOCK, 0)], mem_type="DRAM"
            ),
            remote_descs=agent.get_xfer_descs(
                descs=[(remote, kv.BLOCK, 0)], mem_type="DRAM"
            ),
            remote_agent=peer,
            notif_msg=key,
        )
        agent.transfer(handle, key)
        return handle

    def passive_is_done(self, peer, key):
        """Read all notifications and look for this operation's."""
        found = self.agent.update_notifs()
        return key in found.get(peer, [])

    def close(self):
        self.agent.deregister_memory(self.reg)
        self.agent = None


@pytest.fixture
def connector(local, closing):
    return closing(Connector(local(kv.CACHE, seed=1)))


@pytest.mark.parametrize("kind", ["READ", "WRITE"])
def test_active_operation_completes(connector, remote, kind):
    there = remote(seed=2)
    agent = connector.agent
    name = agent.add_remote_agent(metadata=there.metadata())
    name = name.decode() if isinstance(name, bytes) else name
    key = uuid.uuid4().bytes
    handle = connector.operation(kind, there.addr, name, key)
    kv.poll(agent, handle)
    assert there.node.gather_notifs(1) == [(agent.name, key)]
    block = pattern(2 if kind == "READ" else 1, kv.CACHE)[: kv.BLOCK]
    assert connector.buffer.read()[: kv.BLOCK] == block
    assert there.read()[: kv.BLOCK] == block
    agent.release_xfer_handle(handle)
    agent.remove_remote_agent(agent=name)


def test_passive_operation_finds_its_notification(connector, remote):
    """Notifications accumulate; each operation looks for its own."""
    there = remote()
    there.node.add(connector.agent.get_agent_metadata())
    keys = [uuid.uuid4().bytes for _ in range(3)]
    for key in reversed(keys):
        there.node.send_notif(connector.agent.name, key)
    for key in keys:
        deadline.until(
            lambda key=key: connector.passive_is_done(there.name, key),
            "the notification",
        )
    found = connector.agent.notifs[there.name]
    assert sorted(found) == sorted(keys)


def test_check_remote_xfer_done_matches_by_tag(connector, remote):
    """A prefix of the message suffices, and removes only that message."""
    there = remote()
    agent = connector.agent
    there.node.add(agent.get_agent_metadata())
    there.node.send_notif(agent.name, b"other:1")
    there.node.send_notif(agent.name, b"embedding:77:done")
    deadline.until(
        lambda: agent.check_remote_xfer_done(there.name, b"embedding:77"),
        "the message",
    )
    assert not agent.check_remote_xfer_done(there.name, b"embedding:77")
    assert not agent.check_remote_xfer_done(there.name, b"1")
    assert agent.check_remote_xfer_done(there.name, b"1", tag_is_prefix=False)


def test_message_may_differ_on_each_post(connector, remote):
    there = remote(seed=2)
    agent = connector.agent
    name = agent.add_remote_agent(there.metadata())
    handle = connector.operation("READ", there.addr, name, b"first")
    kv.poll(agent, handle)
    agent.transfer(handle, b"second")
    kv.poll(agent, handle)
    got = [message for _, message in there.node.gather_notifs(2)]
    assert got == [b"first", b"second"]
