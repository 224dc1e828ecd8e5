"""Transfers move every byte to the right place and change nothing else."""

import pytest
from support import blocks, deadline
from support.memory import KINDS, MEM, pattern

MIB = 1 << 20
SIZES = [1, 7, 64, 100, 512, 4096, 4099, 65536]


def move_scattered(pair, operation, kinds=("private", "private"), seed=1):
    """Move scattered blocks of mixed sizes; return (actual, expected) bytes of
    the side that is written."""
    here, there = pair
    room = 4 * MIB
    left, right = blocks.scatter_pairs(seed, 150, SIZES, room)
    local = here.alloc(room, kinds[0], seed=seed + 100)
    remote = there.alloc(room, kinds[1], seed=seed + 200)
    here.add(there.metadata())
    state = here.move(
        operation,
        blocks.rows(local.addr, left),
        blocks.rows(remote.addr, right),
        there.name,
    )
    assert state == "DONE"
    ours, theirs = pattern(seed + 100, room), pattern(seed + 200, room)
    if operation == "READ":
        assert there.read(remote.key) == theirs
        want = blocks.expected(ours, theirs, left, right)
        return here.read(local.key), want
    assert here.read(local.key) == ours
    want = blocks.expected(theirs, ours, right, left)
    return there.read(remote.key), want


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
@pytest.mark.parametrize("seed", range(3))
def test_scattered_blocks_arrive_byte_for_byte(pair, operation, seed):
    got, want = move_scattered(pair, operation, seed=seed)
    assert got == want


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_memory_can_be_the_remote_side(pair, operation, kind):
    got, want = move_scattered(pair, operation, ("private", kind))
    assert got == want


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_every_kind_of_memory_can_be_the_local_side(pair, kind):
    got, want = move_scattered(pair, "READ", (kind, "memfd"))
    assert got == want


@pytest.mark.beyond_stock
@pytest.mark.parametrize("operation", ["READ", "WRITE"])
@pytest.mark.parametrize("local", ["private", "shared-buffer"])
def test_shared_buffers_are_ordinary_memory(pair, operation, local):
    got, want = move_scattered(pair, operation, (local, "shared-buffer"))
    assert got == want


def test_numpy_arrays_can_be_both_sides(pair):
    pytest.importorskip("numpy")
    got, want = move_scattered(pair, "READ", ("numpy", "numpy"))
    assert got == want


def test_read_sees_private_changes_of_a_mapped_file(pair):
    """Writes to a private mapping do not reach the file behind it."""
    here, there = pair
    remote = there.alloc(MIB, "memfd-private", seed=3)
    local = here.alloc(MIB)
    here.add(there.metadata())
    here.move(
        "READ",
        [(local.addr, MIB, 0)],
        [(remote.addr, MIB, 0)],
        there.name,
    )
    assert here.read(local.key) == pattern(3, MIB)


def test_part_of_a_larger_mapping_is_transferred(pair):
    """The region starts and ends inside a mapping."""
    here, there = pair
    remote = there.alloc(MIB, "memfd", seed=4, register=False)
    start, size = remote.addr + 8192 + 24, 65536 + 40
    there.call("register_memory", [(start, size, 0, "")], MEM)
    local = here.alloc(MIB)
    here.add(there.metadata())
    here.move("READ", [(local.addr, size, 0)], [(start, size, 0)], there.name)
    want = pattern(4, MIB)[8192 + 24 :][:size]
    assert here.read(local.key, 0, size) == want
    assert here.read(local.key, size) == bytes(MIB - size)


def test_regions_may_span_several_neighbouring_mappings(pair):
    """Two adjacent registered regions, moved by separate rows."""
    here, there = pair
    remote = there.alloc(2 * MIB, "dev-shm", seed=5, register=False)
    halves = [(remote.addr + i * MIB, MIB, 0, "") for i in range(2)]
    there.call("register_memory", halves, MEM)
    local = here.alloc(2 * MIB)
    here.add(there.metadata())
    here.move(
        "READ",
        [(local.addr + i * MIB, MIB, 0) for i in range(2)],
        [(remote.addr + i * MIB, MIB, 0) for i in range(2)],
        there.name,
    )
    assert here.read(local.key) == pattern(5, 2 * MIB)


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
def test_one_large_block_is_transferred(pair, operation):
    here, there = pair
    size = 96 * MIB + 5
    source, target = (there, here) if operation == "READ" else (here, there)
    full = source.alloc(size, seed=6)
    empty = target.alloc(size)
    here.add(there.metadata())
    local, remote = (empty, full) if operation == "READ" else (full, empty)
    state = here.move(
        operation,
        [(local.addr, size, 0)],
        [(remote.addr, size, 0)],
        there.name,
    )
    assert state == "DONE"
    assert target.checksum(empty.key) == source.checksum(full.key)


def test_concurrent_transfers_do_not_mix(pair):
    here, there = pair
    count, size = 64, 48 * 1024
    remote = there.alloc(count * size, seed=7)
    local = here.alloc(count * size)
    here.add(there.metadata())
    agent = here.agent
    handles = [
        agent.initialize_xfer(
            "READ",
            agent.get_xfer_descs([(local.addr + i * size, size, 0)], MEM),
            agent.get_xfer_descs(
                [(remote.addr + (count - 1 - i) * size, size, 0)], MEM
            ),
            there.name,
        )
        for i in range(count)
    ]
    for handle in handles:
        agent.transfer(handle)
    for handle in handles:
        assert deadline.finish(agent, handle) == "DONE"
        agent.release_xfer_handle(handle)
    source = pattern(7, count * size)
    pieces = [source[i * size :][:size] for i in reversed(range(count))]
    assert here.read(local.key) == b"".join(pieces)


def test_agent_can_read_from_itself(endpoint):
    """Loopback: the remote side is the agent's own name."""
    here = endpoint()
    source = here.alloc(MIB, seed=8)
    target = here.alloc(MIB)
    state = here.move(
        "READ",
        [(target.addr, MIB, 0)],
        [(source.addr, MIB, 0)],
        here.name,
    )
    assert state == "DONE"
    assert here.read(target.key) == pattern(8, MIB)


def test_prepared_loopback_with_a_notification(endpoint):
    here = endpoint()
    source = here.alloc(4096, seed=9)
    target = here.alloc(4096)
    left = here.prepare("NIXL_INIT_AGENT", [(source.addr, 4096, 0)])
    right = here.prepare(here.name, [(target.addr, 4096, 0)])
    key = here.make("WRITE", left, right, b"to myself")
    here.post(key)
    assert here.finish(key) == "DONE"
    assert here.read(target.key) == pattern(9, 4096)
    assert here.gather_notifs(1) == [(here.name, b"to myself")]


@pytest.mark.beyond_stock
def test_row_of_zero_length_is_refused(api, pair):
    """Stock accepts it; here it is an error in the caller's list."""
    here = pair[0]
    local = here.alloc(4096)
    for table in ([(local.addr, 0, 0)], [(local.addr, 8, 0)]):
        left = [*table, (local.addr + 64, 0, 0)]
        with pytest.raises(api.nixlInvalidParamError) as caught:
            here.prepare("", left)
        assert "length" in str(caught.value)
        assert caught.value.index == (0 if table[0][1] == 0 else 1)


def test_both_sides_transfer_concurrently(pair, engine):
    """Reads in both directions, posted before either is waited for."""
    here, there = pair
    size = 8 * MIB
    ours, theirs = here.alloc(size, seed=12), there.alloc(size, seed=13)
    here_in, there_in = here.alloc(size), there.alloc(size)
    here.add(there.metadata())
    there.add(here.metadata())
    forth = here.initialize(
        "READ",
        [(here_in.addr, size, 0)],
        [(theirs.addr, size, 0)],
        there.name,
    )
    back = there.initialize(
        "READ",
        [(there_in.addr, size, 0)],
        [(ours.addr, size, 0)],
        here.name,
    )
    here.post(forth)
    there.post(back)
    assert here.finish(forth) == "DONE"
    assert there.finish(back) == "DONE"
    assert here.read(here_in.key) == pattern(13, size)
    assert there.read(there_in.key) == pattern(12, size)


def test_transfer_reads_the_memory_at_each_post(pair):
    """A handle is created once and posted repeatedly."""
    here, there = pair
    remote, local = there.alloc(65536), here.alloc(65536)
    here.add(there.metadata())
    key = here.initialize(
        "READ",
        [(local.addr, 65536, 0)],
        [(remote.addr, 65536, 0)],
        there.name,
    )
    for seed in range(20):
        there.fill(remote.key, seed)
        here.post(key)
        assert here.finish(key) == "DONE"
        assert here.read(local.key) == pattern(seed, 65536)


def test_several_agents_share_one_process(endpoint, other):
    """Names separate the peers of each agent."""
    readers = [endpoint() for _ in range(3)]
    there = other()
    remote = there.alloc(65536, seed=14)
    for reader in readers:
        local = reader.alloc(65536)
        reader.add(there.metadata())
        reader.move(
            "READ",
            [(local.addr, 65536, 0)],
            [(remote.addr, 65536, 0)],
            there.name,
            b"done",
        )
        assert reader.read(local.key) == pattern(14, 65536)
    told = there.gather_notifs(3)
    assert sorted(told) == sorted((r.name, b"done") for r in readers)
