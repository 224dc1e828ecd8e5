"""A live peer reached by UCX is removed and loaded again."""

import pytest
from support import deadline, mourning, ucx
from support.memory import pattern
from support.peer import PeerProcess

pytestmark = [pytest.mark.slow, pytest.mark.beyond_stock]

ROUNDS = 10 * mourning.ROUNDS or 1000
SIZE = 4096


@pytest.fixture(params=ucx.TRANSPORTS)
def start(request, names, opened):
    """start(): an agent that uses only UCX."""
    path = ucx.any_library()
    if ucx.why_not(path) is not None:
        pytest.skip(ucx.why_not(path))

    def made():
        env = ucx.environment(path, request.param)
        opened.append(PeerProcess("vllm_nixl", names(), {}, env))
        return opened[-1]

    return made


def fetch(here, there, room, block, told):
    rows = [(room.addr, SIZE, 0)], [(block.addr, SIZE, 0)]
    assert here.move("READ", *rows, there.name, told) == "DONE"


def test_reloading_a_live_peer_leaks_nothing(start):
    """Neither side holds more descriptors after 1 000 rounds."""
    here, there = start(), start()
    room, block = here.alloc(SIZE), there.alloc(SIZE, seed=1)
    blob, first = there.metadata(), None
    for number in range(ROUNDS):
        here.add(blob)
        fetch(here, there, room, block, number.to_bytes(8, "little"))
        here.remove(there.name)
        if number == 10:
            first = here.holds(), there.holds()
    assert there.gather_numbers(ROUNDS) == list(range(ROUNDS))
    assert here.checksum(room.key) == there.checksum(block.key)
    for one, before in zip((here, there), first, strict=True):
        left = mourning.Level(one, before)
        deadline.until(left.is_level, left)


def test_removal_on_one_side_keeps_the_other_working(start):
    """Its connection stays open and is used afterwards."""
    here, there = start(), start()
    mine, its = here.alloc(SIZE, seed=1), there.alloc(SIZE, seed=2)
    blob, first = there.metadata(), None
    there.add(here.metadata())
    for number in range(50):
        here.add(blob)
        fetch(here, there, mine, its, b"here")
        here.remove(there.name)
        fetch(there, here, its, mine, b"there")
        if number == 10:
            first = here.holds(), there.holds()
    assert len(there.gather_notifs(50)) == len(here.gather_notifs(50)) == 50
    for one, before in zip((here, there), first, strict=True):
        left = mourning.Level(one, before)
        deadline.until(left.is_level, left)


@pytest.mark.parametrize("forgetful", ["here", "there", "both"])
def test_long_messages_arrive_after_many_reloads(start, forgetful):
    """UCX splits them, and drops them if it takes their endpoint for a closed
    one."""
    here, there = start(), start()
    here.add(there.metadata())
    there.add(here.metadata())
    for number in range(5):
        for one, other in ((here, there), (there, here)):
            one.send_notif(other.name, pattern(number, 300_000))
            assert other.gather_notifs(1) == [
                (one.name, pattern(number, 300_000))
            ]
        if forgetful != "there":
            here.remove(there.name)
        if forgetful != "here":
            there.remove(here.name)
        if forgetful != "there":
            here.add(there.metadata())
        if forgetful != "here":
            there.add(here.metadata())


def test_peer_may_die_after_its_removal(start):
    """The parts of its connection that were kept are freed with it."""
    here, first = start(), None
    room = here.alloc(SIZE)
    for number in range(6):
        there = start()
        block = there.alloc(SIZE, seed=number)
        here.add(there.metadata())
        fetch(here, there, room, block, b"")
        here.remove(there.name)
        there.kill()
        if number == 2:
            first = here.holds()
    left = mourning.Level(here, first)
    deadline.until(left.is_level, left)
