"""Our agent and stock by UCX: bytes and notifications in both directions."""

import pytest
from support.memory import pattern
from support.transfers import check_moves

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
