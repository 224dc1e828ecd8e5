"""Stock agents are killed while they communicate by UCX, and restart."""

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
def test_killed_stock_peer_is_an_error_and_can_restart(survivor, operation):
    survivor.mourn(operation, ROUNDS)


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
@pytest.mark.parametrize("survivor", ["tcp"], indirect=True)
def test_killed_stock_peer_that_we_serve_does_no_harm(survivor, operation):
    """Over TCP, because on other transports a stock agent does not return from
    posting that much."""
    survivor.outlive(operation, mourning.ROUNDS or 1)
    survivor.exchange(survivor.meet())


def test_departed_stock_peer_is_an_error(survivor):
    """It exits in an orderly way while we read from it."""
    victim = survivor.meet()
    handle = survivor.here.start_endless(
        "READ", victim.name, survivor.room.key, victim.block.addr
    )
    victim.close()
    error = survivor.here.error_within(handle, mourning.NOTICED)
    assert error == mourning.GONE
    survivor.exchange(survivor.meet())
