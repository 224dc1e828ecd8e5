"""A peer restarts under its old name: the new instance works, the old one
fails.

Killing under load is in tests/stress.  Here the old instance leaves, or keeps
running, which is a mistake and is reported.
"""

import gc
import os

import pytest
from support import deadline
from support.memory import MEM
from support.transfers import Long

pytestmark = pytest.mark.beyond_stock

SIZE = 64 * 1024


class Generation:
    """One incarnation of the peer, and the survivor's handles for it."""

    def __init__(self, here, there, seed):
        self.here, self.there, self.seed = here, there, seed
        self.remote = there.alloc(SIZE, seed=seed)
        self.local = here.alloc(SIZE)
        here.add(there.metadata())
        agent = here.agent
        self.left = agent.prep_xfer_dlist(
            "", [(self.local.addr, SIZE, 0)], MEM
        )
        self.right = agent.prep_xfer_dlist(
            there.name, [(self.remote.addr, SIZE, 0)], MEM
        )
        self.handle = self.make()

    def make(self):
        return self.here.agent.make_prepped_xfer(
            "READ", self.left, [0], self.right, [0]
        )

    def check(self):
        agent = self.here.agent
        assert deadline.run(agent, self.make()) == "DONE"
        assert self.here.checksum(self.local.key) == self.there.checksum(
            self.remote.key
        )


@pytest.fixture
def two_lives(endpoint, other):
    """(first, second): the same name, the second loaded after the first."""
    here = endpoint()
    first = Generation(here, other("phoenix"), 1)
    first.check()
    first.there.close()
    return first, Generation(here, other("phoenix"), 2)


def test_restarted_peer_works_without_removal(two_lives):
    two_lives[1].check()


def test_transfer_to_the_previous_instance_is_refused(api, two_lives):
    old, new = two_lives
    with pytest.raises(
        api.nixlRemoteDisconnectError, match="NIXL_ERR_REMOTE_DISCONNECT"
    ) as caught:
        old.here.agent.transfer(old.handle)
    assert caught.value.peer == "phoenix"
    new.check()


def test_list_of_the_previous_instance_is_refused(api, two_lives):
    old, new = two_lives
    with pytest.raises(api.nixlRemoteDisconnectError, match="phoenix"):
        old.make()
    new.check()


def test_lists_of_both_instances_do_not_mix(api, two_lives):
    """Local lists stay valid when the peer restarts."""
    old, new = two_lives
    handle = new.here.agent.make_prepped_xfer(
        "READ", old.left, [0], new.right, [0]
    )
    assert deadline.run(new.here.agent, handle) == "DONE"
    assert new.here.checksum(old.local.key) == new.there.checksum(
        new.remote.key
    )


def test_handles_of_the_previous_instance_can_be_released(two_lives):
    old, new = two_lives
    old.handle.release()
    old.right.release()
    new.check()
    assert new.here.agent.stats()["live_xfers"] <= 1


def test_generation_increases_with_each_restart(two_lives):
    told = two_lives[1].here.agent.describe("phoenix")
    assert told["generation"] == 2


def test_notifications_go_to_the_new_instance(two_lives):
    new = two_lives[1]
    new.here.send_notif("phoenix", b"hello")
    assert new.there.gather_notifs(1) == [(new.here.name, b"hello")]


@pytest.mark.nixl_differs("a transfer in flight cannot be stopped")
def test_transfers_in_flight_to_the_previous_instance_fail(
    api, endpoint, peer
):
    """The old process still runs, as in a rolling update."""
    here, old = endpoint(), peer("phoenix")
    transfer = Long(here, old)
    here.agent.transfer(transfer.handle)
    new = Generation(here, peer("phoenix"), 3)
    handle = transfer.handle
    with pytest.raises(api.nixlRemoteDisconnectError, match="phoenix"):
        here.agent.wait([handle], timeout=30)
    with pytest.raises(api.nixlRemoteDisconnectError, match="phoenix"):
        here.agent.check_xfer_state(handle)
    new.check()
    handle.release()


def test_restart_does_not_affect_other_peers(endpoint, other, two_lives):
    new = two_lives[1]
    third = Generation(new.here, other("bystander"), 4)
    fourth = Generation(new.here, other("phoenix"), 5)
    third.check()
    fourth.check()
    assert third.here.agent.describe("bystander")["generation"] == 3


def test_departed_peer_is_an_error_until_it_returns(api, two_lives):
    new = two_lives[1]
    here = new.here
    new.there.close()

    def gone():
        try:
            here.send_notif("phoenix", b"anybody?")
        except api.nixlRemoteDisconnectError:
            return True
        return False

    deadline.until(gone, "the news that the peer left")
    with pytest.raises(api.nixlRemoteDisconnectError):
        here.agent.transfer(new.handle)
    with pytest.raises(api.nixlRemoteDisconnectError):
        new.make()


def test_peer_restarts_ten_times(endpoint, other):
    here = endpoint()
    for seed in range(10):
        life = Generation(here, other("phoenix"), seed)
        life.check()
        life.there.close()
    assert here.agent.stats()["peers"] == 1


# -- two live agents with one name --------------------------------------------

NAMELESS = "NIXL's metadata names no process"


@pytest.fixture
def told(caplog):
    """told(name): the warnings about that agent logged since the last call."""
    from vllm_nixl import _core

    def lines(name):
        _core._log_flush()
        found = [
            record.getMessage()
            for record in caplog.records
            if record.levelname == "WARNING"
        ]
        caplog.clear()
        return [line for line in found if f"'{name}" in line]

    return lines


@pytest.mark.nixl_differs(NAMELESS)
def test_second_live_agent_of_the_same_name_is_reported(endpoint, other, told):
    """Once per pair, naming both processes; it still replaces the first
    one."""
    here = endpoint()
    first, second = other("twin"), other("twin")
    here.add(first.metadata())
    assert told("twin") == []
    Generation(here, second, 7).check()
    [line] = told("twin")
    assert f"process {first.pid()}" in line
    assert f"process {second.pid()}" in line
    for one in (first, second, first):
        Generation(here, one, 8).check()
    assert told("twin") == []


@pytest.mark.nixl_differs(NAMELESS)
def test_third_agent_of_the_same_name_is_reported_too(endpoint, peer, told):
    here = endpoint()
    agents = [peer("triplet") for _ in range(3)]
    for agent in agents:
        here.add(agent.metadata())
    lines = told("triplet")
    assert len(lines) == 2
    for line, pair in zip(lines, [agents[:2], agents[1:]], strict=True):
        assert all(f"process {agent.pid()}" in line for agent in pair)


@pytest.mark.nixl_differs(NAMELESS)
def test_name_from_the_network_is_escaped_in_logs(endpoint, other, told):
    here, name = endpoint(), "twin\nvllm_nixl WARNING: all is well"
    for _ in range(2):
        here.add(other(name).metadata())
    [line] = told("twin")
    assert "twin?vllm_nixl WARNING: all is well" in line


def test_loading_the_same_agent_again_is_not_reported(endpoint, other, told):
    here, there = endpoint(), other("phoenix")
    for seed in range(3):
        Generation(here, there, seed).check()
    assert told("phoenix") == []


@pytest.mark.parametrize("how", ["closed", "killed", "removed"])
def test_a_restart_is_not_reported(endpoint, peer, told, how):
    """Even if the end of the old one is noticed after the new one is
    loaded."""
    here = endpoint()
    for _ in range(3):
        old, new = peer("phoenix"), peer("phoenix")
        blob = new.metadata()
        here.add(old.metadata())
        if how == "closed":
            old.call("close")
        elif how == "killed":
            old.kill()
        else:
            here.remove("phoenix")
        here.add(blob)
        new.call("close")
    assert told("phoenix") == []


def test_a_restart_in_this_process_is_not_reported(endpoint, told):
    here = endpoint()
    for seed in range(3):
        life = endpoint("phoenix")
        Generation(here, life, seed).check()
        life.close()
        gc.collect()
    assert os.getpid() == here.pid()
    assert told("phoenix") == []
