"""LightLLM: pages written from prefill to decode, tasks in notifications."""

import pickle

import pytest
from support import deadline, kv
from support.memory import pattern

PAGE = 8192
PAGES = kv.CACHE // PAGE


class Transporter:
    """NixlKVTransporter, with or without the default configuration."""

    def __init__(self, name, buffer, telemetry=False):
        from nixl._api import (
            nixl_agent,
            nixl_agent_config,
            nixl_thread_sync_t,
        )

        config = None
        if telemetry:
            config = nixl_agent_config(
                sync_mode=nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
            )
            config.capture_telemetry = True
        self.agent = nixl_agent(name, config)
        self.name, self.buffer = name, buffer
        self.reg = self.agent.register_memory(
            [(buffer.addr, buffer.size, 0, "")], "DRAM"
        )
        self.pages = self.page_handles(self.reg)
        self.remotes, self.active = {}, {}

    def page_handles(self, reg, name=""):
        """The first row of a registration has the address of the pages."""
        base, _, device, _ = reg[0]
        rows = [(base + i * PAGE, PAGE, device) for i in range(PAGES)]
        descs = self.agent.get_xfer_descs(rows, "DRAM")
        return self.agent.prep_xfer_dlist(name, descs, "DRAM")

    def card(self):
        """The data that the other side needs about this one."""
        return (
            self.name,
            self.agent.get_agent_metadata(),
            self.agent.get_serialized_descs(self.reg),
        )

    def connect(self, card):
        name, metadata, serialized = card
        found = self.agent.add_remote_agent(metadata)
        if isinstance(found, bytes):
            found = found.decode()
        assert found == name
        reg = self.agent.deserialize_descs(serialized)
        self.remotes[name] = self.page_handles(reg, name)

    def write(self, name, ours, theirs):
        handle = self.agent.make_prepped_xfer(
            "WRITE", self.pages, [ours], self.remotes[name], [theirs], b""
        )
        if not handle:
            raise RuntimeError("make_prepped_xfer failed")
        self.active[id(handle)] = handle
        self.agent.transfer(handle)
        return handle

    def tell(self, name, task):
        self.agent.send_notif(
            remote_agent_name=name, notif_msg=pickle.dumps(task)
        )

    def told(self, count):
        return [
            (sender, pickle.loads(message))
            for sender, message in deadline.gather_notifs(self.agent, count)
        ]

    def forget(self, name):
        """Remove the agent first, then release its prepared list."""
        self.agent.remove_remote_agent(name)
        self.agent.release_dlist_handle(self.remotes.pop(name))

    def close(self):
        for name in list(self.remotes):
            self.forget(name)
        self.agent.release_dlist_handle(self.pages)
        self.agent.deregister_memory(self.reg)
        self.agent = None


@pytest.fixture
def sides(inproc, local, closing, names):
    made = []
    for seed in (1, 2):
        buffer = local(kv.CACHE, seed=seed)
        made.append(closing(Transporter(names(), buffer, seed == 1)))
    return made


def test_page_is_requested_written_and_notified(sides):
    prefill, decode = sides
    decode.connect(prefill.card())
    prefill.connect(decode.card())
    want = pattern(2, kv.CACHE)
    for ours, theirs in ((0, 3), (7, 1)):
        prefill.tell(decode.name, ("request", ours))
        assert decode.told(1) == [(prefill.name, ("request", ours))]
        decode.tell(prefill.name, ("ready", theirs))
        assert prefill.told(1) == [(decode.name, ("ready", theirs))]
        handle = prefill.write(decode.name, ours, theirs)
        kv.poll(prefill.agent, handle)
        assert isinstance(prefill.agent.query_xfer_backend(handle), str)
        del prefill.active[id(handle)]
        prefill.agent.release_xfer_handle(handle=handle)
        prefill.tell(decode.name, ("done", theirs))
        assert decode.told(1) == [(prefill.name, ("done", theirs))]
        piece = pattern(1, kv.CACHE)[ours * PAGE : (ours + 1) * PAGE]
        want = want[: theirs * PAGE] + piece + want[(theirs + 1) * PAGE :]
        assert decode.buffer.read() == want


def test_peer_is_removed_and_added_again(sides):
    prefill, decode = sides
    for page in range(3):
        prefill.connect(decode.card())
        handle = prefill.write(decode.name, page, page)
        kv.poll(prefill.agent, handle)
        prefill.agent.release_xfer_handle(handle)
        prefill.forget(decode.name)
    assert decode.buffer.read()[: 3 * PAGE] == pattern(1, 3 * PAGE)


def test_registration_result_has_rows(sides):
    prefill, _ = sides
    row = prefill.reg[0]
    assert row == (prefill.buffer.addr, kv.CACHE, 0, b"")
    assert prefill.reg.trim()[0] == row[:3]
    assert prefill.reg.descCount() == 1
