"""The states of a transfer as its owner sees them."""

import pytest
from support import deadline
from support.memory import MEM, pattern

SIZE = 64 * 1024


@pytest.fixture
def transfer(pair):
    """(here, there, handle, local, remote): a READ that is not posted."""
    here, there = pair
    remote = there.alloc(SIZE, seed=31)
    local = here.alloc(SIZE)
    here.add(there.metadata())
    agent = here.agent
    handle = agent.initialize_xfer(
        "READ",
        agent.get_xfer_descs([(local.addr, SIZE, 0)], MEM),
        agent.get_xfer_descs([(remote.addr, SIZE, 0)], MEM),
        there.name,
        b"read",
    )
    return here, there, handle, local, remote


def test_unposted_transfer_has_no_state(api, transfer):
    here, _, handle, *_ = transfer
    with pytest.raises(api.nixlNotPostedError, match="NIXL_ERR_NOT_POSTED"):
        here.agent.check_xfer_state(handle)


def test_the_state_stays_done(transfer):
    here, _, handle, *_ = transfer
    assert deadline.run(here.agent, handle) == "DONE"
    for _ in range(3):
        assert here.agent.check_xfer_state(handle) == "DONE"


def test_transfer_returns_proc_or_done(transfer):
    here, _, handle, *_ = transfer
    assert here.agent.transfer(handle) in ("PROC", "DONE")
    assert deadline.finish(here.agent, handle) == "DONE"


def test_a_finished_transfer_is_posted_again(transfer):
    here, there, handle, local, remote = transfer
    for seed in (41, 42, 43):
        there.fill(remote.key, seed)
        assert deadline.run(here.agent, handle) == "DONE"
        assert here.read(local.key) == pattern(seed, SIZE)
    assert there.gather_notifs(3) == [(here.name, b"read")] * 3


@pytest.mark.beyond_stock
def test_an_active_transfer_is_not_posted_again(api, busy):
    here, handle = busy
    with pytest.raises(
        api.nixlRepostActiveError, match="NIXL_ERR_REPOST_ACTIVE"
    ):
        here.agent.transfer(handle)
    assert here.agent.check_xfer_state(handle) == "PROC"


@pytest.mark.beyond_stock
def test_check_xfer_states_returns_many_states(api, transfer, busy):
    here, _, done, *_ = transfer
    deadline.run(here.agent, done)
    busy_here, active = busy
    assert here.agent.check_xfer_states([done, done]) == ["DONE", "DONE"]
    assert busy_here.agent.check_xfer_states([active]) == ["PROC"]
    assert here.agent.check_xfer_states([]) == []
    assert here.agent.check_xfer_states((done,)) == ["DONE"]


@pytest.mark.beyond_stock
def test_a_failed_transfer_among_many_states_is_err(api, pair):
    """check_xfer_state raises its cause, as always."""
    here, there = pair
    remote, local = there.alloc(SIZE), here.alloc(SIZE)
    here.add(there.metadata())
    good = make(here, local, remote, there.name)
    bad = make(here, local, remote, there.name)
    deadline.run(here.agent, good)
    here.agent.transfer(bad)
    deadline.until(
        lambda: here.agent.check_xfer_states([bad]) != ["PROC"], "an end"
    )
    here.agent.deregister_memory(here.registered.pop(local.key))
    with pytest.raises(api.NixlError):
        here.agent.transfer(bad)
    assert here.agent.check_xfer_states([good, bad]) == ["DONE", "ERR"]
    with pytest.raises(api.NixlError):
        here.agent.check_xfer_state(bad)


def make(here, local, remote, peer):
    agent = here.agent
    return agent.initialize_xfer(
        "READ",
        agent.get_xfer_descs([(local.addr, SIZE, 0)], MEM),
        agent.get_xfer_descs([(remote.addr, SIZE, 0)], MEM),
        peer,
    )


def test_the_backend_of_a_transfer_has_a_name(transfer):
    here, _, handle, *_ = transfer
    name = here.agent.query_xfer_backend(handle)
    assert name in ("UCX", "SHM")
    assert name in here.agent.get_plugin_list()


def test_backends_keyword_selects_the_backend(transfer):
    here, there, _, local, remote = transfer
    agent = here.agent
    lists = [
        agent.prep_xfer_dlist("", [(local.addr, 64, 0)], MEM, ["UCX"]),
        agent.prep_xfer_dlist(
            there.name, [(remote.addr, 64, 0)], MEM, backends=["UCX"]
        ),
    ]
    handle = agent.make_prepped_xfer(
        "READ", lists[0], [0], lists[1], [0], b"", backends=["UCX"]
    )
    assert deadline.run(agent, handle) == "DONE"
    assert here.read(local.key, 0, 64) == pattern(31, SIZE)[:64]


def test_a_backend_that_was_not_created_is_refused(transfer):
    here, _, _, local, _ = transfer
    agent = here.agent
    row = [(local.addr, 64, 0)]
    with pytest.raises(KeyError):
        agent.prep_xfer_dlist("", row, MEM, backends=["NOPE"])
    with pytest.raises(KeyError):
        agent.register_memory([(local.addr, 64, 0, "")], MEM, ["NOPE"])
    with pytest.raises(KeyError):
        agent.get_new_notifs(backends=["NOPE"])
    assert agent.prep_xfer_dlist("", row, MEM, backends=["UCX"])


def test_estimated_cost_is_two_numbers_and_a_method(transfer):
    here, _, handle, *_ = transfer
    duration, margin, method = here.agent.estimate_xfer_cost(handle)
    assert isinstance(duration, int)
    assert isinstance(margin, int)
    assert method in ("ANALYTICAL_BACKEND", "UNKNOWN")


# -- telemetry ---------------------------------------------------------------


@pytest.mark.beyond_stock
def test_telemetry_is_always_on(transfer):
    here, _, handle, *_ = transfer
    deadline.run(here.agent, handle)
    told = here.agent.get_xfer_telemetry(handle)
    assert told.totalBytes == SIZE
    assert told.descCount == 1
    assert told.xferDuration >= told.postDuration >= 0
    assert told.startTime > 0


@pytest.mark.beyond_stock
@pytest.mark.parametrize("switch", ["yes", "no", None])
def test_environment_cannot_disable_telemetry(
    transfer, endpoint, monkeypatch, switch
):
    """NIXL_TELEMETRY_ENABLE=no made whole fleets fail."""
    if switch is None:
        monkeypatch.delenv("NIXL_TELEMETRY_ENABLE", raising=False)
    else:
        monkeypatch.setenv("NIXL_TELEMETRY_ENABLE", switch)
    here = endpoint(capture_telemetry=True)
    block = here.alloc(4096)
    key = here.initialize(
        "READ", [(block.addr, 64, 0)], [(block.addr + 64, 64, 0)], here.name
    )
    here.post(key)
    here.finish(key)
    assert here.agent.get_xfer_telemetry(here.handles[key]).totalBytes == 64


@pytest.mark.beyond_stock
def test_telemetry_of_an_unposted_transfer_is_refused(api, transfer):
    here, _, handle, *_ = transfer
    with pytest.raises(api.NixlError) as caught:
        here.agent.get_xfer_telemetry(handle)
    assert isinstance(
        caught.value, (api.nixlNotPostedError, api.nixlNoTelemetryError)
    )


@pytest.mark.beyond_stock
def test_telemetry_times_are_per_post(transfer):
    here, _, handle, *_ = transfer
    starts = []
    for _ in range(3):
        deadline.run(here.agent, handle)
        starts.append(here.agent.get_xfer_telemetry(handle).startTime)
    assert starts == sorted(starts)


@pytest.mark.beyond_stock
def test_telemetry_counts_rows_as_requested(pair):
    here, there = pair
    remote, local = there.alloc(SIZE), here.alloc(SIZE)
    here.add(there.metadata())
    count = SIZE // 256
    left, right = (
        [(block.addr + i * 256, 256, 0) for i in range(count)]
        for block in (local, remote)
    )
    agent = here.agent
    handle = agent.make_prepped_xfer(
        "WRITE",
        agent.prep_xfer_dlist("", left, MEM),
        list(range(count)),
        agent.prep_xfer_dlist(there.name, right, MEM),
        list(range(count)),
    )
    deadline.run(agent, handle)
    told = agent.get_xfer_telemetry(handle)
    assert (told.descCount, told.totalBytes) == (count, SIZE)


@pytest.mark.beyond_stock
def test_stats_count_finished_transfers(transfer):
    here, _, handle, *_ = transfer
    before = here.agent.stats()
    for _ in range(5):
        deadline.run(here.agent, handle)
    after = here.agent.stats()
    assert after["xfers_posted"] - before["xfers_posted"] == 5
    assert after["xfers_done"] - before["xfers_done"] == 5
    assert after["bytes_read"] - before["bytes_read"] == 5 * SIZE
    assert after["live_xfers"] == 1
    handle.release()
    assert here.agent.stats()["live_xfers"] == 0
