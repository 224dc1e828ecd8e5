"""Our agent on the engine nixl, with stock Python agents in other
processes."""

import pytest
from support import blob as grammar
from support import deadline, mourning, ucx
from support.memory import pattern
from support.nixl import why_no_library
from support.peer import PeerProcess

SIZE = 1 << 16

pytestmark = pytest.mark.skipif(
    why_no_library() is not None, reason=str(why_no_library())
)


@pytest.fixture
def ours(endpoint):
    return endpoint(engine="nixl")


@pytest.fixture
def pair(ours, stock, meet):
    there = stock()
    ours.block = ours.alloc(SIZE, seed=1)
    there.block = there.alloc(SIZE, seed=2)
    meet(ours, there)
    return ours, there


def whole(block):
    return [(block.addr, SIZE, 0)]


# -- metadata ----------------------------------------------------------------


def test_both_agents_know_each_other(pair):
    ours, there = pair
    assert ours.agent.check_remote_metadata(there.name)
    assert there.call("check_remote_metadata", ours.name)
    assert ours.agent.describe(there.name)["path"] == "UCX"


def test_our_metadata_equals_stocks(ours):
    block = ours.alloc(SIZE)
    data = ours.metadata()
    found = grammar.parse(data)
    assert list(found.connections) == [b"UCX"]
    assert found.sections[0].regions[0][:3] == (block.addr, SIZE, 0)
    assert grammar.write(found) == data


def test_region_registered_later_is_loaded_with_new_metadata(pair, meet):
    ours, there = pair
    more = ours.alloc(SIZE, seed=3)
    meet(ours, there)
    room = there.alloc(SIZE)
    there.move("READ", whole(room), whole(more), ours.name)
    assert there.read(room.key) == pattern(3, SIZE)


@pytest.mark.parametrize("connection", [True, False])
def test_stock_loads_our_partial_metadata(ours, stock, connection):
    """Also with connection data beside regions, which NIXL's C library cannot
    write."""
    there = stock()
    first, second = ours.alloc(SIZE, seed=4), ours.alloc(SIZE)
    if not connection:
        there.add(ours.partial_metadata([], True))
    there.add(ours.partial_metadata([first.key], connection))
    room = there.alloc(SIZE)
    there.move("READ", whole(room), whole(first), ours.name)
    assert there.read(room.key) == pattern(4, SIZE)
    found = grammar.parse(ours.partial_metadata([first.key], connection))
    assert [row[0] for row in found.sections[0].regions] == [first.addr]
    assert bool(found.connections) == connection
    assert second.addr not in [row[0] for row in found.sections[0].regions]


@pytest.mark.parametrize("connection", [True, False])
def test_our_agent_loads_stocks_partial_metadata(api, ours, stock, connection):
    there = stock()
    first, second = there.alloc(SIZE, seed=5), there.alloc(SIZE)
    if not connection:
        ours.add(there.partial_metadata([], True))
    assert ours.add(there.partial_metadata([first.key], connection)) == (
        there.name.encode()
    )
    room = ours.alloc(SIZE)
    ours.move("READ", whole(room), whole(first), there.name)
    assert ours.read(room.key) == pattern(5, SIZE)
    with pytest.raises(api.nixlNotFoundError, match="row 0"):
        ours.prepare(there.name, whole(second))


def test_partial_metadata_of_a_stranger_is_refused(api, ours, stock):
    there = stock()
    block = there.alloc(SIZE)
    with pytest.raises(api.nixlNotFoundError, match="not known"):
        ours.add(there.partial_metadata([block.key], False))


def test_restarted_stock_agent_replaces_the_old_one(api, pair, stock):
    ours, there = pair
    room = ours.alloc(SIZE)
    left = ours.prepare("", whole(room))
    right = ours.prepare(there.name, whole(there.block))
    there.close()
    again = stock(name=there.name)
    block = again.alloc(SIZE, seed=6)
    ours.add(again.metadata())
    with pytest.raises(api.nixlRemoteDisconnectError, match="another"):
        ours.make("READ", left, right)
    ours.move("READ", whole(room), whole(block), again.name)
    assert ours.read(room.key) == pattern(6, SIZE)


def test_region_registered_again_is_a_new_generation(api, pair, meet):
    """Stock refuses metadata with another key for known memory."""
    ours, there = pair
    before = ours.agent.describe(there.name)["generation"]
    there.deregister(there.block.key)
    there.register(there.block.key)
    ours.add(there.metadata())
    generation = ours.agent.describe(there.name)["generation"]
    assert generation >= before
    room = ours.alloc(SIZE)
    ours.move("READ", whole(room), whole(there.block), there.name)
    assert ours.read(room.key) == pattern(2, SIZE)


# -- transfers ---------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 512, SIZE, 8 << 20])
@pytest.mark.parametrize("operation", ["READ", "WRITE"])
def test_our_agent_reads_from_and_writes_to_stock(
    ours, stock, operation, size
):
    there = stock()
    local, remote = ours.alloc(size, seed=7), there.alloc(size, seed=8)
    ours.add(there.metadata())
    there.add(ours.metadata())
    ours.move(
        operation,
        [(local.addr, size, 0)],
        [(remote.addr, size, 0)],
        there.name,
        b"moved",
    )
    assert there.gather_notifs(1) == [(ours.name, b"moved")]
    seed = 8 if operation == "READ" else 7
    assert ours.read(local.key) == pattern(seed, size)
    assert there.read(remote.key) == pattern(seed, size)


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
def test_stock_reads_from_and_writes_to_our_agent(pair, operation):
    ours, there = pair
    there.move(
        operation, whole(there.block), whole(ours.block), ours.name, b"moved"
    )
    assert ours.gather_notifs(1) == [(there.name, b"moved")]
    seed = 1 if operation == "READ" else 2
    assert ours.read(ours.block.key) == pattern(seed, SIZE)
    assert there.read(there.block.key) == pattern(seed, SIZE)


def test_scattered_blocks_are_transferred_by_index(pair):
    ours, there = pair
    count, block = 64, SIZE // 64
    rows = [
        [(where.addr + i * block, block, 0) for i in range(count)]
        for where in (ours.block, there.block)
    ]
    left, right = ours.prepare("", rows[0]), ours.prepare(there.name, rows[1])
    mine = [i * 5 % count for i in range(count)]
    theirs = [i * 11 % count for i in range(count)]
    key = ours.make("READ", left, right, b"", (mine, theirs))
    deadline.run(ours.agent, ours.handles[key])
    source = pattern(2, SIZE)
    for i, j in zip(mine, theirs, strict=True):
        assert (
            ours.read(ours.block.key, i * block, block)
            == source[j * block : (j + 1) * block]
        )


def test_post_without_a_notification_repeats_the_last_one(pair):
    ours, there = pair
    key = ours.initialize(
        "READ", whole(ours.block), whole(there.block), there.name, b"first"
    )
    handle = ours.handles[key]
    deadline.run(ours.agent, handle)
    deadline.run(ours.agent, handle)
    deadline.run(ours.agent, handle, b"second")
    deadline.run(ours.agent, handle)
    got = [message for _, message in there.gather_notifs(4)]
    assert got == [b"first", b"first", b"second", b"second"]


def test_waiting_needs_no_polling(pair):
    ours, there = pair
    size = 32 << 20
    local, remote = ours.alloc(size), there.alloc(size, seed=9)
    ours.add(there.metadata())
    key = ours.initialize(
        "READ", [(local.addr, size, 0)], [(remote.addr, size, 0)], there.name
    )
    handle = ours.handles[key]
    ours.agent.transfer(handle)
    assert ours.agent.wait([handle], deadline.PATIENCE) == [handle]
    assert ours.agent.check_xfer_state(handle) == "DONE"
    assert ours.checksum(local.key) == there.checksum(remote.key)


# -- notifications -----------------------------------------------------------


def test_notifications_go_both_ways_in_order(pair):
    ours, there = pair
    messages = [b"%d" % i for i in range(200)] + [b"\0binary\xff", b"x" * 9999]
    for message in messages:
        ours.send_notif(there.name, message)
        there.send_notif(ours.name, message)
    for who, other in ((ours, there), (there, ours)):
        got = who.gather_notifs(len(messages))
        assert got == [(other.name, message) for message in messages]


def test_dead_stock_peer_is_an_ordinary_error(api, pair, stock, meet):
    ours, there = pair
    there.kill()
    key = ours.initialize(
        "READ", whole(ours.block), whole(there.block), there.name
    )
    with pytest.raises(api.nixlRemoteDisconnectError) as caught:
        deadline.run(ours.agent, ours.handles[key])
    assert caught.value.peer == there.name
    other = stock()
    other.block = other.alloc(SIZE, seed=10)
    meet(ours, other)
    ours.move("READ", whole(ours.block), whole(other.block), other.name)
    assert ours.read(ours.block.key) == pattern(10, SIZE)


# -- death of a peer ----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("operation", ["READ", "WRITE"])
def test_killed_peer_served_over_tcp_does_no_harm(names, opened, operation):
    """Unguarded, UCX would abort our process when the peer dies."""
    path = ucx.library("nixl")
    native = ucx.environment(path, "tcp")

    def start(name=None, env=native):
        opened.append(PeerProcess("vllm_nixl", name or names(), {}, env))
        return opened[-1]

    here = start(env={"VLLM_NIXL_ENGINE": "nixl", **ucx.TRANSPORTS["tcp"]})
    survivor = mourning.Survivor(here, start)
    survivor.outlive(operation, mourning.ROUNDS or 6)
    survivor.read_from(survivor.meet())
