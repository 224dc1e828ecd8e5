"""Peers reached by UCX are killed and stopped."""

import signal

import pytest
from support import deadline, mourning, ucx
from support.peer import PeerError, PeerProcess

pytestmark = [pytest.mark.slow, pytest.mark.beyond_stock]

ROUNDS = mourning.ROUNDS or 8
LIMIT = "3"  # seconds without progress


@pytest.fixture(params=ucx.TRANSPORTS)
def transport(request):
    return request.param


@pytest.fixture
def start(names, opened, transport):
    """start(name=None, env=None): an agent that uses only UCX."""
    path = ucx.any_library()
    if ucx.why_not(path) is not None:
        pytest.skip(ucx.why_not(path))

    def made(name=None, env=None):
        env = {**ucx.environment(path, transport), **(env or {})}
        opened.append(PeerProcess("vllm_nixl", name or names(), {}, env))
        return opened[-1]

    return made


@pytest.mark.parametrize("operation", ["READ", "WRITE", "idle"])
def test_killed_peer_is_an_error_and_can_restart(start, operation):
    here = start()
    survivor = mourning.Survivor(here, lambda: start("victim"))
    bystander = start()
    bystander.block = bystander.alloc(mourning.SIZE)
    bystander.stamp_slots(bystander.block.key, 4096, 1 << 30)
    here.add(bystander.metadata())
    bystander.add(here.metadata())
    survivor.mourn(operation, ROUNDS)
    survivor.exchange(bystander)


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
def test_killed_peer_that_we_serve_does_no_harm(start, operation):
    """Over TCP we send the replies, and find that the peer is gone."""
    survivor = mourning.Survivor(start(), start)
    survivor.outlive(operation, mourning.ROUNDS or 2)
    survivor.exchange(survivor.meet())


def test_many_peers_die_at_once(start):
    here = start()
    survivor = mourning.Survivor(here, None)
    victims, handles = [], []
    for _ in range(4):
        victims.append(start())
        survivor.start_victim = lambda: victims[-1]
        survivor.meet()
    for victim in victims:
        handles.append(
            here.start_endless(
                "READ", victim.name, survivor.room.key, victim.block.addr
            )
        )
    for victim in victims:
        victim.process.kill()
    for handle in handles:
        error = here.error_within(handle, mourning.NOTICED + 4)
        assert error == mourning.GONE
    for victim in victims:
        victim.kill()
    survivor.start_victim = start
    survivor.exchange(survivor.meet())


def test_loading_a_dead_peer_repeatedly_uses_bounded_resources(start):
    """An agent that waits for the peer's return may retry at no cost."""
    here, victim = start(), start("victim")
    metadata = victim.metadata()
    victim.kill()
    first = None
    for _ in range(20):
        here.add(metadata)
        refusal = here.refusal_within("victim", mourning.NOTICED)
        assert refusal == mourning.GONE
        here.remove("victim")
        first = first or here.holds()
    left = mourning.Level(here, first)
    deadline.until(left.is_level, left)
    survivor = mourning.Survivor(here, lambda: start("victim"))
    survivor.exchange(survivor.meet())


def test_departed_peer_is_an_error(start):
    """It closes its agent and exits in an orderly way during a transfer."""
    here = start()
    survivor = mourning.Survivor(here, start)
    victim = survivor.meet()
    handle = here.start_endless(
        "READ", victim.name, survivor.room.key, victim.block.addr
    )
    victim.close()
    assert here.error_within(handle, mourning.NOTICED) == mourning.GONE
    survivor.exchange(survivor.meet())


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
def test_stopped_peer_does_not_block_others(start, transport, operation):
    """SIGSTOP: TCP needs the peer to run, so the deadline ends the transfer.
    The agent continues, and reaches the peer again once it runs."""
    if transport != "tcp":
        pytest.skip("the kernel copies from a stopped process")
    here = start(env={"VLLM_NIXL_UCX_TIMEOUT": LIMIT})
    survivor = mourning.Survivor(here, start)
    victim, other = survivor.meet(), survivor.meet()
    survivor.exchange(victim)
    target = victim.alloc(mourning.SIZE)
    here.add(victim.metadata())
    buffer = survivor.room if operation == "READ" else survivor.block
    victim.process.send_signal(signal.SIGSTOP)
    try:
        handle = here.start_endless(
            operation, victim.name, buffer.key, target.addr
        )
        survivor.exchange(other)
        error = here.error_within(handle, deadline.PATIENCE)
        assert error == "nixlTimeoutError"
        survivor.exchange(other)
        here.release(handle)
    finally:
        victim.process.send_signal(signal.SIGCONT)
    here.add(victim.metadata())
    survivor.read_from(victim)
    survivor.exchange(other)


def test_stopped_peer_does_not_block_cancel(start):
    here = start()
    survivor = mourning.Survivor(here, start)
    victim, other = survivor.meet(), survivor.meet()
    survivor.exchange(victim)
    handle = here.start_endless(
        "READ", victim.name, survivor.room.key, victim.block.addr
    )
    victim.process.send_signal(signal.SIGSTOP)
    try:
        assert here.cancel(handle)
        with pytest.raises(PeerError) as caught:
            here.state(handle)
        assert caught.value.kind == "nixlCancelledError"
        here.release(handle)
        survivor.exchange(other)
    finally:
        victim.process.send_signal(signal.SIGCONT)
    here.add(victim.metadata())
    survivor.read_from(victim)
