"""Processes are killed during transfers, repeatedly."""

import pytest
from support import deadline
from support.memory import pattern
from support.transfers import Long

pytestmark = [pytest.mark.slow, pytest.mark.beyond_stock]

ROUNDS = 100
# Seconds within which a death must become an error, see deadline.soon().
NOTICED = 1.0
SIZE = 256 * 1024
LONG_SIZE = 4 << 20
VICTIM = "victim"


@pytest.fixture
def here(endpoint):
    return endpoint("survivor")


@pytest.fixture
def bystander(peer, here, meet):
    """A peer that is never killed."""
    there = peer("bystander")
    there.block = there.alloc(SIZE, seed=50)
    here.block = here.alloc(SIZE, seed=51)
    here.room = here.alloc(SIZE)
    there.room = there.alloc(SIZE)
    meet(here, there)
    return there


def read(reader, room, owner, block):
    """Let `reader` read a block of `owner` and check the bytes."""
    state = reader.move(
        "READ", [(room.addr, SIZE, 0)], [(block.addr, SIZE, 0)], owner.name
    )
    assert state == "DONE"
    assert reader.checksum(room.key) == owner.checksum(block.key)
    reader.poison(room.key, 0)


def both_directions(here, there):
    read(here, here.room, there, there.block)
    read(there, there.room, here, here.block)


def start(peer, here, opened):
    """Start or restart a victim and load it without removing the old one."""
    victim = peer(VICTIM)
    victim.block = victim.alloc(SIZE, seed=52)
    victim.room = victim.alloc(SIZE)
    here.add(victim.metadata())
    victim.add(here.metadata())
    assert opened[-1].peer is victim
    return victim


def forget(opened):
    """Do not close the dead victim at the end of the test."""
    opened.pop().close()


def await_ends(here, handles, seconds):
    def look():
        return "PROC" not in here.agent.check_xfer_states(handles)

    deadline.soon(look, "the end of all transfers", seconds)


def refused(call, error):
    """A condition that holds once the call raises this error."""

    def look():
        try:
            call()
        except error:
            return True
        return False

    return look


@pytest.mark.parametrize("kind", ["private", "shared-buffer"])
def test_killed_prefill_process_is_an_error(
    api, here, bystander, peer, opened, kind
):
    """We are reading from it when it dies."""
    rounds = ROUNDS if kind == "private" else ROUNDS // 5
    victim = start(peer, here, opened)
    for _ in range(rounds):
        transfer = Long(here, victim, "READ", kind, LONG_SIZE)
        handle = transfer.handle
        assert here.agent.transfer(handle) == "PROC"
        victim.kill()
        await_ends(here, [handle], NOTICED)
        with pytest.raises(api.nixlRemoteDisconnectError):
            here.agent.wait([handle], timeout=0)
        with pytest.raises(
            api.nixlRemoteDisconnectError, match="NIXL_ERR_REMOTE_DISCONNECT"
        ):
            here.agent.check_xfer_state(handle)
        forget(opened)

        both_directions(here, bystander)
        victim = start(peer, here, opened)
        both_directions(here, victim)
        with pytest.raises(api.nixlRemoteDisconnectError):
            here.agent.transfer(handle)
        with pytest.raises(api.nixlRemoteDisconnectError):
            transfer.make()
        handle.release()
        here.deregister(transfer.local.key)
        here.unmap(transfer.local.key)
    assert here.agent.stats()["peers_lost"] >= rounds
    assert here.read(here.block.key) == pattern(51, SIZE)


def test_killed_decode_process_does_no_harm(
    api, here, bystander, peer, opened
):
    """It is reading from us when it dies."""
    block = here.alloc(LONG_SIZE, seed=53)
    victim = start(peer, here, opened)
    for _ in range(ROUNDS):
        victim.add(here.metadata())
        assert victim.start_long(here.name, block.addr, LONG_SIZE) == "PROC"
        victim.kill()
        deadline.soon(
            refused(
                lambda: here.send_notif(VICTIM, b"anybody?"),
                api.nixlRemoteDisconnectError,
            ),
            "the news of its death",
            NOTICED,
        )
        forget(opened)

        both_directions(here, bystander)
        victim = start(peer, here, opened)
        both_directions(here, victim)
        here.send_notif(VICTIM, b"welcome")
        assert victim.gather_notifs(1) == [(here.name, b"welcome")]
        victim.send_notif(here.name, b"thanks")
        assert here.gather_notifs(1) == [(VICTIM, b"thanks")]
    assert here.read(block.key) == pattern(53, LONG_SIZE)


def test_killed_process_leaks_no_resources(here, peer, opened, names):
    """Descriptors, threads and mappings of dead peers are released."""
    from support import usage

    def round_of_life():
        victim = start(peer, here, opened)
        transfer = Long(here, victim, "READ", "shared-buffer", LONG_SIZE)
        here.agent.transfer(transfer.handle)
        victim.kill()
        await_ends(here, [transfer.handle], NOTICED)
        forget(opened)
        transfer.handle.release()
        transfer.left.release()
        transfer.right.release()
        here.deregister(transfer.local.key)
        here.unmap(transfer.local.key)
        return usage.fds(), usage.threads(), usage.mappings()

    here.room = here.alloc(SIZE)
    here.block = here.alloc(SIZE, seed=54)
    for _ in range(5):
        first = round_of_life()
    for _ in range(10):
        round_of_life()

    def level():
        """Wait until the counts are level; background threads may still be
        closing."""
        fds, threads, mappings = first
        return (
            usage.fds() <= fds
            and usage.threads() <= threads
            and usage.mappings() <= mappings + 10
        )

    deadline.until(level, f"{first} again")


def test_many_peers_die_at_once(api, here, bystander, peer, opened):
    """Ten peers, each with a transfer in flight."""
    victims = [peer(f"{VICTIM}-{i}") for i in range(5)]
    transfers = [
        Long(here, victim, "READ", "private", LONG_SIZE) for victim in victims
    ]
    handles = [transfer.handle for transfer in transfers]
    for handle in handles:
        here.agent.transfer(handle)
    for victim in victims:
        victim.process.kill()
    await_ends(here, handles, NOTICED + 4)
    assert here.agent.check_xfer_states(handles) == ["ERR"] * len(handles)
    for _ in victims:
        opened.pop().peer.kill()
    both_directions(here, bystander)
    for handle in handles:
        with pytest.raises(api.nixlRemoteDisconnectError):
            here.agent.check_xfer_state(handle)


def test_stopped_process_does_not_block_others(here, bystander, peer):
    """SIGSTOP: its memory still exists, but its threads do not run."""
    import signal

    victim = peer(VICTIM)
    block = victim.alloc(SIZE, seed=55)
    room = here.alloc(SIZE)
    here.add(victim.metadata())
    victim.process.send_signal(signal.SIGSTOP)
    try:
        for _ in range(200):
            here.send_notif(VICTIM, b"x" * 10000)
        both_directions(here, bystander)
    finally:
        victim.process.send_signal(signal.SIGCONT)
    here.move("READ", [(room.addr, SIZE, 0)], [(block.addr, SIZE, 0)], VICTIM)
    assert here.checksum(room.key) == victim.checksum(block.key)
    assert len(victim.gather_notifs(200)) == 200
