"""Stopping a transfer: nothing is written to memory afterwards."""

import threading

import pytest
from support import deadline
from support.program import run_program
from support.transfers import LONG_BLOCK, Long

pytestmark = [
    pytest.mark.beyond_stock,
    pytest.mark.nixl_differs("a transfer in flight cannot be stopped"),
]


def nothing_lands(transfer):
    """Poison both sides, let other threads run, and check the poison."""
    here, there = transfer.here, transfer.there
    here.poison(transfer.local.key, 0xAA)
    there.poison(transfer.remote.key, 0xBB)
    spare = here.alloc(4 << 20, seed=5)
    away = there.alloc(4 << 20)
    here.add(there.metadata())
    for _ in range(5):
        here.move(
            "WRITE",
            [(spare.addr, 4 << 20, 0)],
            [(away.addr, 4 << 20, 0)],
            there.name,
        )
    assert here.read(transfer.local.key) == b"\xaa" * LONG_BLOCK
    assert there.read(transfer.remote.key) == b"\xbb" * LONG_BLOCK


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
@pytest.mark.parametrize("kind", ["private", "shared-buffer"])
def test_no_byte_is_written_after_cancel_returns(api, pair, operation, kind):
    transfer = Long(*pair, operation, kind)
    agent = pair[0].agent
    agent.transfer(transfer.handle)
    assert agent.cancel(transfer.handle) is True
    nothing_lands(transfer)
    with pytest.raises(api.nixlCancelledError, match="NIXL_ERR_CANCEL"):
        agent.check_xfer_state(transfer.handle)


def test_releasing_a_transfer_in_flight_stops_it(long_transfer):
    agent = long_transfer.here.agent
    agent.transfer(long_transfer.handle)
    agent.release_xfer_handle(long_transfer.handle)
    nothing_lands(long_transfer)


def test_dropping_the_last_reference_in_flight_stops_it(pair):
    transfer = Long(*pair)
    agent = transfer.here.agent
    handle = transfer.make()
    agent.transfer(handle)
    del handle
    deadline.until(
        lambda: agent.stats()["live_xfers"] == 1, "the end of the transfer"
    )
    nothing_lands(transfer)


def test_a_cancelled_transfer_is_one_of_the_states(api, busy):
    here, handle = busy
    here.agent.cancel(handle)
    assert here.agent.check_xfer_states([handle]) == ["ERR"]
    assert here.agent.wait([handle], timeout=0, check=False) == [handle]
    with pytest.raises(api.nixlCancelledError):
        here.agent.wait([handle], timeout=0)


def test_a_cancelled_transfer_may_be_posted_again(long_transfer):
    here = long_transfer.here
    short = long_transfer.make(times=3)
    here.agent.transfer(long_transfer.handle)
    here.agent.cancel(long_transfer.handle)
    assert here.agent.transfer(long_transfer.handle) == "PROC"
    assert here.agent.cancel(long_transfer.handle)
    assert deadline.run(here.agent, short) == "DONE"


def test_cancelling_an_ended_transfer_reports_its_state(long_transfer):
    agent = long_transfer.here.agent
    handle = long_transfer.make(times=1)
    assert deadline.run(agent, handle) == "DONE"
    assert agent.cancel(handle) is False
    assert agent.check_xfer_state(handle) == "DONE"


def test_cancelling_twice_is_harmless(api, busy):
    here, handle = busy
    assert here.agent.cancel(handle) is True
    assert here.agent.cancel(handle) is False
    with pytest.raises(api.nixlCancelledError):
        here.agent.check_xfer_state(handle)


def test_a_cancelled_transfer_sends_no_notification(long_transfer):
    here, there = long_transfer.here, long_transfer.there
    handle = long_transfer.make(notif=b"must not come")
    here.agent.transfer(handle)
    here.agent.cancel(handle)
    here.send_notif(there.name, b"after")
    assert there.gather_notifs(1) == [(here.name, b"after")]


def test_cancelling_one_transfer_does_not_affect_others(long_transfer):
    agent = long_transfer.here.agent
    others = [long_transfer.make(times=20) for _ in range(3)]
    agent.transfer(long_transfer.handle)
    for handle in others:
        agent.transfer(handle)
    assert agent.cancel(long_transfer.handle)
    assert agent.wait(others, timeout=30) == others
    assert agent.check_xfer_states(others) == ["DONE"] * 3


def test_memory_may_be_unmapped_after_cancel(pair):
    """The local memory is unmapped; a late write would crash."""
    here, there = pair
    for _ in range(5):
        transfer = Long(here, there)
        here.agent.transfer(transfer.handle)
        assert here.agent.cancel(transfer.handle)
        transfer.handle.release()
        here.deregister(transfer.local.key)
        here.unmap(transfer.local.key)
        there.deregister(transfer.remote.key)
        there.unmap(transfer.remote.key)


# -- timeouts -----------------------------------------------------------------


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
def test_transfer_is_stopped_at_its_timeout(api, pair, operation):
    transfer = Long(*pair, operation)
    agent = pair[0].agent
    assert agent.transfer(transfer.handle, timeout=0.05) == "PROC"
    with pytest.raises(api.nixlTimeoutError, match=r"ended 0\.05 s after"):
        agent.wait([transfer.handle])
    nothing_lands(transfer)
    with pytest.raises(api.nixlTimeoutError, match=r"ended 0\.05 s after"):
        agent.check_xfer_state(transfer.handle)
    assert agent.check_xfer_states([transfer.handle]) == ["ERR"]
    assert agent.cancel(transfer.handle) is False


def test_timed_out_transfer_may_be_posted_again(api, long_transfer):
    agent = long_transfer.here.agent
    handle = long_transfer.make(times=3, notif=b"done")
    for timeout in (0, None, 60, 0):
        agent.transfer(long_transfer.handle, timeout=0)
        agent.transfer(handle, timeout=timeout)
        agent.wait([handle, long_transfer.handle], timeout=30, check=False)
        with pytest.raises(api.nixlTimeoutError):
            agent.check_xfer_state(long_transfer.handle)
        [state] = agent.check_xfer_states([handle])
        assert state == "DONE" or timeout == 0  # it may have ended already
        if state == "DONE":
            assert long_transfer.there.gather_notifs(1) == [
                (long_transfer.here.name, b"done")
            ]


def test_transfer_with_a_timeout_can_be_cancelled(api, long_transfer):
    agent, handle = long_transfer.here.agent, long_transfer.handle
    agent.transfer(handle, timeout=60)
    assert agent.cancel(handle) is True
    with pytest.raises(api.nixlCancelledError):
        agent.check_xfer_state(handle)


def test_invalid_transfer_timeout_is_refused(api, long_transfer):
    agent, handle = long_transfer.here.agent, long_transfer.handle
    for wrong in (-1, float("nan")):
        with pytest.raises(api.nixlInvalidParamError, match="timeout"):
            agent.transfer(handle, timeout=wrong)
    with pytest.raises(TypeError):
        agent.transfer(handle, timeout="1")
    with pytest.raises(TypeError, match="2 positional"):
        agent.transfer(handle, b"", 1)
    with pytest.raises(api.nixlNotPostedError):
        agent.check_xfer_state(handle)


# -- memory removed during a transfer -----------------------------------------

WITHDRAWN = """
import faulthandler
faulthandler.enable()
from support.endpoint import Endpoint
from support.peer import PeerProcess
from support.transfers import Long
here, there = Endpoint(MODULE, "here"), {place}(MODULE, "there")
for _ in range({rounds}):
    long = Long(here, there, {operation!r}, {kind!r})
    here.agent.transfer(long.handle)
    owner, key = {side}
    owner.deregister(key)
    owner.unmap(key)
    try:
        here.agent.wait([long.handle], timeout=30)
    except here.api.NixlError as error:
        assert type(error).__name__ in (
            "nixlNotFoundError", "nixlBackendError"), error
    else:
        raise AssertionError("it ended well")
    again = Long(here, there)
    again.short()
    again.handle.release()
there.close()
here.close()
"""
SIDES = {
    "local": "here, long.local.key",
    "remote": "there, long.remote.key",
}


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
@pytest.mark.parametrize("kind", ["private", "shared-buffer"])
@pytest.mark.parametrize("side", SIDES)
def test_deregistered_memory_is_not_touched(
    engine, module, side, kind, operation
):
    """It may be unmapped at once, even if a transfer was using it.  This runs
    in a
    separate process, because a late access would crash it.
    """
    if side == "remote" and "ucx" in engine.name:
        pytest.skip("peers are not told over UCX, as in stock NIXL")
    source = WITHDRAWN.format(
        place="PeerProcess" if engine.two_processes else "Endpoint",
        operation=operation,
        kind=kind,
        side=SIDES[side],
        rounds=5,
    )
    run_program(source, module=module)


@pytest.mark.parametrize("kind", ["private", "shared-buffer"])
def test_nothing_is_written_after_deregister_memory_returns(
    engine, pair, kind, api
):
    if "ucx" in engine.name:
        pytest.skip("peers are not told over UCX, as in stock NIXL")
    here, there = pair
    for _ in range(10):
        long = Long(here, there, "WRITE", kind)
        here.agent.transfer(long.handle)
        assert there.withdraw(long.remote.key)
        with pytest.raises(api.nixlNotFoundError):
            here.agent.wait([long.handle], timeout=30)
        long.handle.release()
        here.deregister(long.local.key)


def test_nothing_is_written_after_the_owner_has_closed(
    engine, endpoint, other, api
):
    if "ucx" in engine.name:
        pytest.skip("peers are not told over UCX, as in stock NIXL")
    here = endpoint()
    for _ in range(10):
        there = other()
        long = Long(here, there, "WRITE")
        here.agent.transfer(long.handle)
        assert there.close_agent(long.remote.key)
        with pytest.raises(api.nixlRemoteDisconnectError):
            here.agent.wait([long.handle], timeout=30)
        long.handle.release()
        here.deregister(long.local.key)
        there.close()


LEAVE = {
    "remove": lambda here, there: here.agent.remove_remote_agent(there.name),
    "close": lambda here, there: here.close(),
}


@pytest.mark.parametrize("how", LEAVE)
def test_nothing_is_written_after_deregistering_while_a_writer_leaves(
    engine, endpoint, other, how
):
    """A writer that goes away ends its copies first."""
    if "ucx" in engine.name:
        pytest.skip("peers are not told over UCX, as in stock NIXL")
    there = other()
    for _ in range(10):
        here = endpoint()
        long = Long(here, there, "WRITE")
        here.agent.transfer(long.handle)
        leaving = threading.Thread(target=LEAVE[how], args=(here, there))
        leaving.start()
        is_untouched = there.withdraw(long.remote.key)
        leaving.join(30)
        assert is_untouched
        assert not leaving.is_alive()
        long.handle.release()
        here.close()


CLOSED = """
import faulthandler
faulthandler.enable()
from support.endpoint import Endpoint
from support.transfers import Long
here = Endpoint(MODULE, "here")
for _ in range(10):
    there = Endpoint(MODULE, "there")
    long = Long(here, there)
    here.agent.transfer(long.handle)
    there.close()  # and its memory is unmapped
    try:
        here.agent.wait([long.handle], timeout=30)
    except here.api.nixlRemoteDisconnectError:
        pass
    else:
        raise AssertionError("it ended well")
    long.handle.release()
    here.deregister(long.local.key)
    here.unmap(long.local.key)
"""


def test_memory_of_a_closed_agent_is_not_touched(module):
    run_program(CLOSED, module=module)


def test_stats_count_cancelled_transfers(busy):
    here, handle = busy
    before = here.agent.stats()["xfers_cancelled"]
    here.agent.cancel(handle)
    assert here.agent.stats()["xfers_cancelled"] == before + 1
