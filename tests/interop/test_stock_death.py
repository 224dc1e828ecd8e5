"""Stock agents are killed while we talk to them by UCX, and come back."""

import pytest
from support import mourning, ucx
from support.peer import PeerProcess

pytestmark = pytest.mark.slow

ROUNDS = mourning.ROUNDS or 2


@pytest.fixture(params=ucx.TRANSPORTS)
def survivor(request, names, opened, stock):
    path = ucx.any_library()
    if ucx.why_not(path) is not None:
        pytest.skip(ucx.why_not(path))
    env = ucx.environment(path, request.param)
    opened.append(PeerProcess("vllm_nixl", names(), {}, env))
    transport = ucx.TRANSPORTS[request.param]
    return mourning.Survivor(opened[-1], lambda: stock("victim", transport))


@pytest.mark.parametrize("operation", ["READ", "WRITE", "idle"])
def test_a_killed_stock_peer_is_an_error_and_may_come_back(
    survivor, operation
):
    survivor.mourn(operation, ROUNDS)


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
@pytest.mark.parametrize("survivor", ["tcp"], indirect=True)
def test_a_stock_peer_that_we_serve_is_killed(survivor, operation):
    """Over TCP, since elsewhere a stock agent does not return from posting
    that much."""
    survivor.outlive(operation, mourning.ROUNDS or 1)
    survivor.exchange(survivor.meet())


def test_a_stock_peer_that_leaves_is_an_error(survivor):
    """It ends properly, while we read from it."""
    victim = survivor.meet()
    handle = survivor.here.start_endless(
        "READ", victim.name, survivor.room.key, victim.block.addr
    )
    victim.close()
    error = survivor.here.error_within(handle, mourning.NOTICED)
    assert error == mourning.GONE
    survivor.exchange(survivor.meet())
