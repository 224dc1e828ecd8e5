"""UCX between a stock agent and ours, each in its own process.

Tests run with the transports that UCX chooses and with TCP alone; our agent
uses the UCX of the libucx wheel or that of the NIXL wheel.
"""

import itertools
import os

import pytest
from support import ucx
from support.deadline import until
from support.memory import pattern
from support.peer import PeerError

STOCK = os.environ.get("VLLM_NIXL_STOCK_PYTHON", "")
ROUNDS = 1000
SLOT = 4096
COUNT = 1000  # slots
STAMP = 1 << 40

CASES = list(itertools.product(ucx.TRANSPORTS, ["libucx", "nixl"]))
# Each transport once, and each library.
SOME = [("default", "libucx"), ("tcp", "nixl")]
IN_EVERY_CASE = {
    "test_reads_return_every_byte",
    "test_written_data_precedes_its_notification",
    "test_notifications_arrive_once_and_in_order",
}


def pytest_generate_tests(metafunc):
    if "case" in metafunc.fixturenames:
        every = metafunc.function.__name__ in IN_EVERY_CASE
        metafunc.parametrize(
            "case",
            CASES if every else SOME,
            ids="-".join,
            indirect=True,
            scope="module",
        )


@pytest.fixture(scope="module")
def case(request):
    """(transport, UCX library of our agent)"""
    transport, source = request.param
    path = ucx.library(source)
    if ucx.why_not(path) is not None:
        pytest.skip(f"{source}: {ucx.why_not(path)}")
    return transport, path


def start(pool, case, kind, name, config=None):
    """Start an agent of "ours" or "stock"; return it and its process's
    lease."""
    transport, path = case
    if kind == "stock":
        env = ucx.TRANSPORTS[transport]
        return pool.take("nixl", name, config, env, STOCK)
    env = ucx.environment(path, transport)
    return pool.take("vllm_nixl", name, config, env)


@pytest.fixture
def make(case, names, opened, pool):
    """make("ours") and make("stock"): an agent in a process."""

    def made(kind, name=None, **config):
        peer, lease = start(pool, case, kind, name or names(), config)
        opened.append(lease)
        return peer

    return made


@pytest.fixture(scope="module")
def couple(case, pool):
    """One of our agents and a stock agent, shared by tests that leave them
    intact."""
    pairs = [start(pool, case, kind, kind) for kind in ("ours", "stock")]
    for one, _ in pairs:
        one.block = one.alloc(SLOT * COUNT)
    yield tuple(one for one, _ in pairs)
    for _, lease in pairs:
        lease.close()


@pytest.fixture(params=["ours", "stock"])
def pair(request, couple, meet):
    """(initiator, target): one is ours; each has the other's metadata."""
    here, there = couple if request.param == "ours" else couple[::-1]
    meet(here, there)
    yield here, there
    assert here.take_notifs() == there.take_notifs() == {}
    here.forget_all_but(here.block.key)
    there.forget_all_but(there.block.key)
    here.remove(there.name)
    there.remove(here.name)


def alloc_known(here, there, *args, **keywords):
    """A new buffer of `there` that `here` knows."""
    block = there.alloc(*args, **keywords)
    here.add(there.metadata())
    return block


def read(here, there, key, addr, size):
    """Read these bytes of `there` into a new buffer of `here`."""
    room = here.alloc(size)
    here.move("READ", [(room.addr, size, 0)], [(addr, size, 0)], there.name)
    got = here.read(room.key)
    assert len(got) == size
    return got


# -- Every byte --------------------------------------------------------------


def test_reads_return_every_byte(pair):
    here, there = pair
    there.stamp_slots(there.block.key, SLOT, STAMP)
    wrong = here.ask(
        "read_slots",
        here.block.key,
        SLOT,
        there.name,
        there.block.addr,
        ROUNDS,
        STAMP,
        timeout=120,
    )
    assert wrong == []
    assert (
        here.read_slots_at_once(
            here.block.key, SLOT, there.name, there.block.addr, STAMP
        )
        == 0
    )


def test_written_data_precedes_its_notification(pair):
    here, there = pair
    here.stamp_slots(here.block.key, SLOT)
    there.send("check_slots_as_told", there.block.key, SLOT, COUNT)
    here.ask(
        "write_slots",
        here.block.key,
        SLOT,
        there.name,
        there.block.addr,
        COUNT,
        timeout=120,
    )
    wrong, seen = there.answer(120)
    assert wrong == []
    assert seen == list(range(COUNT))
    assert there.checksum(there.block.key) == here.checksum(here.block.key)


def test_notifications_arrive_once_and_in_order(pair):
    here, there = pair
    here.send("send_numbers", there.name, ROUNDS)
    there.send("send_numbers", here.name, ROUNDS)
    here.answer()
    there.answer()
    assert there.gather_numbers(ROUNDS) == list(range(ROUNDS))
    assert here.gather_numbers(ROUNDS) == list(range(ROUNDS))


@pytest.mark.parametrize("size", [0, 1, 7, 4096, 300_000, 2_000_000])
def test_notifications_of_any_size_arrive(pair, size):
    here, there = pair
    here.send_notif(there.name, pattern(size, size))
    assert there.gather_notifs(1) == [(here.name, pattern(size, size))]


@pytest.mark.parametrize("size", [1, 7, 4095, 65537, 3_000_001])
def test_transfers_of_any_size_arrive(pair, size):
    """Unaligned, in both directions; surrounding bytes do not change."""
    here, there = pair
    source = alloc_known(here, there, size + 64, seed=1)
    room = here.alloc(size + 64, seed=2)
    state = here.move(
        "READ",
        [(room.addr + 13, size, 0)],
        [(source.addr + 17, size, 0)],
        there.name,
    )
    assert state == "DONE"
    expected = bytearray(pattern(2, size + 64))
    expected[13 : 13 + size] = pattern(1, size + 64)[17 : 17 + size]
    assert here.read(room.key) == expected

    here.move(
        "WRITE",
        [(room.addr + 13, size, 0)],
        [(source.addr + 29, size, 0)],
        there.name,
        b"written",
    )
    assert there.gather_notifs(1) == [(here.name, b"written")]
    written = bytearray(pattern(1, size + 64))
    written[29 : 29 + size] = expected[13 : 13 + size]
    assert there.read(source.key) == written


def test_read_notifies_its_target(pair):
    here, there = pair
    source, room = alloc_known(here, there, SLOT, seed=4), here.alloc(SLOT)
    fetch(here, room, there, source, 4, b"you may free it")


# -- Metadata ----------------------------------------------------------------


def test_serialized_descriptor_lists_are_usable(pair):
    """The target describes its slots, the initiator uses the list."""
    here, there = pair
    there.stamp_slots(there.block.key, SLOT, STAMP)
    rows = [(there.block.addr + i * SLOT, SLOT, 0) for i in (3, 1, 4, 15, 9)]
    _, serialized = there.list_state("xfer", rows)
    assert [tuple(row) for row in here.rows_of_serialized(serialized)] == rows
    room = here.alloc(SLOT * len(rows))
    assert here.move_to_serialized("READ", room.key, serialized, there.name)
    for i, number in enumerate((3, 1, 4, 15, 9)):
        got = here.read(room.key, i * SLOT, SLOT)
        assert got == (STAMP + number).to_bytes(8, "little") * (SLOT // 8)


def test_regions_registered_later_are_loaded_again(pair):
    here, there = pair
    for seed in range(1, 6):
        more = alloc_known(here, there, SLOT * seed, seed=seed)
        got = read(here, there, more.key, more.addr, more.size)
        assert got == pattern(seed, more.size)


def test_deregistered_region_is_refused(pair):
    """It works again after it is registered again."""
    here, there = pair
    block = alloc_known(here, there, SLOT, seed=8)
    assert read(here, there, block.key, block.addr, SLOT) == pattern(8, SLOT)
    there.deregister(block.key)
    here.remove(there.name)
    here.add(there.metadata())
    with pytest.raises(PeerError, match=r"NIXL_ERR_NOT_FOUND|InvalidParam"):
        read(here, there, block.key, block.addr, SLOT)
    there.register(block.key)
    here.remove(there.name)
    here.add(there.metadata())
    assert read(here, there, block.key, block.addr, SLOT) == pattern(8, SLOT)


def test_partial_metadata_is_loaded_by_both(pair):
    here, there = pair
    blocks = [there.alloc(SLOT, seed=seed) for seed in (1, 2, 3)]
    here.remove(there.name)
    here.add(there.partial_metadata([blocks[0].key], True))
    for seed, block in enumerate(blocks, 1):
        if seed > 1:
            assert not here.knows(there.name, block)
            here.add(there.partial_metadata([block.key], False))
        assert here.knows(there.name, block)
        got = read(here, there, block.key, block.addr, SLOT)
        assert got == pattern(seed, SLOT)


def test_reloading_metadata_changes_nothing(pair):
    here, there = pair
    blob = there.metadata()
    assert all(there.metadata() == blob for _ in range(3))
    there.stamp_slots(there.block.key, SLOT, STAMP)
    for _ in range(20):
        assert here.add(blob) == there.name.encode()
    wrong = here.read_slots(
        here.block.key, SLOT, there.name, there.block.addr, 50, STAMP
    )
    assert wrong == []


# -- Restarts -----------------------------------------------------------------


def fetch(reader, room, owner, block, seed, told=b"read"):
    """READ one block with that pattern and notify its owner."""
    reader.move(
        "READ",
        [(room.addr, SLOT, 0)],
        [(block.addr, SLOT, 0)],
        owner.name,
        told,
    )
    assert reader.read(room.key) == pattern(seed, SLOT)
    assert owner.gather_notifs(1) == [(reader.name, told)]


def test_restarted_target_is_loaded_again(make, meet):
    """It comes back under the same name after an orderly exit."""
    here = make("ours")
    room = here.alloc(SLOT)
    for seed in range(1, 4):
        there = make("stock", "phoenix")
        block = there.alloc(SLOT, seed=seed)
        meet(here, there)
        fetch(here, room, there, block, seed)
        there.close()


def test_restarted_initiator_is_loaded_again_by_stock(make, meet):
    """Stock requires removal of the old agent first."""
    there = make("stock")
    room = there.alloc(SLOT)
    for seed in range(1, 4):
        here = make("ours", "phoenix")
        block = here.alloc(SLOT, seed=seed)
        meet(here, there)
        fetch(there, room, here, block, seed)
        here.close()
        there.remove("phoenix")


def test_many_stock_agents_transfer_concurrently(make, meet):
    """One of our agents and several stock agents, all transferring."""
    here = make("ours")
    others = [make("stock") for _ in range(3)]
    room = here.alloc(SLOT)
    for seed, there in enumerate(others):
        there.block = there.alloc(SLOT, seed=seed)
        meet(here, there)
    for _ in range(10):
        for seed, there in enumerate(others):
            here.move(
                "READ",
                [(room.addr, SLOT, 0)],
                [(there.block.addr, SLOT, 0)],
                there.name,
            )
            assert here.read(room.key) == pattern(seed, SLOT)
            there.send_notif(here.name, there.name.encode())
    got = here.gather_notifs(30)
    for there in others:
        assert got.count((there.name, there.name.encode())) == 10


def test_describe_reports_how_stock_is_reached(make, meet):
    here, there = make("ours"), make("stock")
    there.alloc(SLOT)
    meet(here, there)
    found = here.call("describe", there.name)
    assert found["path"] == "UCX"
    until(
        lambda: here.call("check_remote_metadata", there.name), "its metadata"
    )
