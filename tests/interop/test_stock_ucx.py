"""Our agent and stock by UCX: bytes and notifications in both directions."""

import pytest
from support.memory import pattern

SIZE, COUNT = 6000, 50

pytestmark = pytest.mark.usefixtures("need_ucx")

TRANSPORTS = {"default": {}, "tcp": {"UCX_TLS": "tcp"}}


@pytest.fixture(params=TRANSPORTS)
def transports(request):
    return TRANSPORTS[request.param]


@pytest.fixture
def pair(stock, peer, transports):
    """(ours, stock); stock has a thread that never sleeps, as its Python
    default."""
    ours = peer(env={"VLLM_NIXL_ENGINE": "native", **transports})
    theirs = stock(env={"STOCK_PROGRESS_DELAY": "0", **transports})
    return ours, theirs


def rows(block, order=1):
    whole = [(block.addr + i * SIZE, SIZE, 0) for i in range(COUNT)]
    return whole[::order]


def turned(data):
    return b"".join(
        data[i * SIZE : (i + 1) * SIZE] for i in reversed(range(COUNT))
    )


def check_moves(here, there):
    """`here` reads from, writes to and notifies `there`."""
    mine = here.alloc(SIZE * COUNT, seed=1)
    theirs = there.alloc(SIZE * COUNT, seed=2)
    here.add(there.metadata())
    here.move("READ", rows(mine), rows(theirs, -1), there.name, b"read")
    assert here.read(mine.key) == turned(pattern(2, SIZE * COUNT))
    here.fill(mine.key, 3)
    here.move("WRITE", rows(mine), rows(theirs, -1), there.name, b"written")
    assert there.gather_notifs(2) == [
        (here.name, b"read"),
        (here.name, b"written"),
    ]
    assert there.read(theirs.key) == turned(pattern(3, SIZE * COUNT))


def test_our_agent_transfers_and_notifies(pair):
    ours, theirs = pair
    check_moves(ours, theirs)
    assert ours.call("describe", theirs.name)["path"] == "UCX"


def test_stock_agent_transfers_and_notifies(pair):
    ours, theirs = pair
    check_moves(theirs, ours)


@pytest.mark.parametrize("size", [0, 1, 300_000])
def test_notifications_of_any_size_both_ways(pair, size):
    ours, theirs = pair
    ours.add(theirs.metadata())
    theirs.add(ours.metadata())
    message = pattern(4, size) if size else b""
    ours.send_notif(theirs.name, message)
    theirs.send_notif(ours.name, message)
    assert theirs.gather_notifs(1) == [(ours.name, message)]
    assert ours.gather_notifs(1) == [(theirs.name, message)]


def test_both_sides_load_later_regions(pair):
    ours, theirs = pair
    check_moves(ours, theirs)
    check_moves(theirs, ours)
    check_moves(ours, theirs)
    check_moves(theirs, ours)
