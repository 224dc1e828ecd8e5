"""Metadata: how an agent describes itself, and how a peer loads it."""

import pytest
from support import blob as grammar
from support import deadline
from support.memory import pattern

SIZE = 64 * 1024


def read_works(here, there, local, remote, size=SIZE):
    """Read the peer's `remote` into `local` and check the bytes."""
    state = here.move(
        "READ",
        [(local.addr, size, 0)],
        [(remote.addr, size, 0)],
        there.name,
    )
    assert state == "DONE"
    assert here.read(local.key) == there.read(remote.key)


# -- the bytes ---------------------------------------------------------------


def test_metadata_follows_nixls_grammar(endpoint):
    here = endpoint()
    first, second = here.alloc(SIZE), here.alloc(4096)
    found = grammar.parse(here.metadata())
    assert found.name == here.name.encode()
    assert found.connections
    assert {part.mem_type for part in found.sections} == {0}
    for part in found.sections:
        rows = {region[:3] for region in part.regions}
        assert rows == {(first.addr, SIZE, 0), (second.addr, 4096, 0)}


def test_metadata_is_the_same_until_something_changes(endpoint):
    here = endpoint()
    here.alloc(SIZE)
    before = here.metadata()
    assert isinstance(before, bytes)
    assert here.metadata() == before
    extra = here.alloc(SIZE)
    assert here.metadata() != before
    here.deregister(extra.key)
    after = grammar.parse(here.metadata())
    assert after.sections == grammar.parse(before).sections


def test_an_agent_without_regions_has_metadata(endpoint, other):
    """Such metadata serves for notifications."""
    here, there = endpoint(), other()
    assert here.add(there.metadata()) == there.name.encode()
    here.send_notif(there.name, b"hello")
    assert there.gather_notifs(1) == [(here.name, b"hello")]


def test_names_of_any_bytes_survive(api, endpoint, other):
    name = "préfill/0|Agent:8\u2192 " + "x" * 500
    here, there = endpoint(), other(name)
    remote, local = there.alloc(SIZE, seed=1), here.alloc(SIZE)
    assert here.add(there.metadata()) == name.encode()
    read_works(here, there, local, remote)
    there.add(here.metadata())
    there.send_notif(here.name, b"hello")
    assert here.gather_notifs(1) == [(name, b"hello")]


# -- loading -----------------------------------------------------------------


def test_loading_again_changes_nothing(pair):
    here, there = pair
    remote, local = there.alloc(SIZE, seed=2), here.alloc(SIZE)
    for _ in range(5):
        assert here.add(there.metadata()) == there.name.encode()
        read_works(here, there, local, remote)


def test_check_remote_metadata_reports_loaded_regions(pair):
    here, there = pair
    agent = here.agent
    remote = there.alloc(SIZE)

    def covers(addr, size=64):
        rows = agent.get_xfer_descs([(addr, size, 0)], "DRAM")
        return agent.check_remote_metadata(there.name, rows)

    assert agent.check_remote_metadata(there.name)
    assert not agent.check_remote_metadata("nobody")
    assert not covers(remote.addr)
    here.add(there.metadata())
    assert covers(remote.addr)
    assert covers(remote.addr, SIZE)
    assert covers(remote.addr + SIZE - 64)
    assert not covers(remote.addr + SIZE - 64, 65)
    assert not covers(64)


def test_new_regions_are_loaded_with_the_next_metadata(api, pair):
    here, there = pair
    local, first = here.alloc(SIZE), there.alloc(SIZE, seed=3)
    here.add(there.metadata())
    row = [(first.addr, SIZE, 0)]
    kept = here.agent.prep_xfer_dlist(there.name, row, "DRAM")
    second = there.alloc(SIZE, seed=4)
    with pytest.raises(api.nixlNotFoundError, match="NIXL_ERR_NOT_FOUND"):
        here.prepare(there.name, [(second.addr, SIZE, 0)])
    here.add(there.metadata())
    read_works(here, there, local, second)
    read_works(here, there, local, first)
    left = here.agent.prep_xfer_dlist("", [(local.addr, SIZE, 0)], "DRAM")
    handle = here.agent.make_prepped_xfer("READ", left, [0], kept, [0])
    assert deadline.run(here.agent, handle) == "DONE"
    assert here.read(local.key) == pattern(3, SIZE)


@pytest.mark.beyond_stock
@pytest.mark.parametrize("order", ["aa", "aba", "baab"])
def test_lists_survive_metadata_that_lists_memory_twice(
    endpoint, other, order
):
    """Stock agents list memory twice that was registered twice, and layers
    may share their memory."""
    here, there = endpoint(), other("twice")
    local, remote = here.alloc(SIZE), there.alloc(SIZE, seed=8)
    keys = {"a": remote.key, "b": there.alloc(SIZE).key}
    blob = there.partial_metadata([keys[one] for one in order], True)
    here.add(blob)
    row = [(remote.addr, SIZE, 0)]
    far = here.agent.prep_xfer_dlist(there.name, row, "DRAM")
    here.add(blob)
    near = here.agent.prep_xfer_dlist("", [(local.addr, SIZE, 0)], "DRAM")
    handle = here.agent.make_prepped_xfer("READ", near, [0], far, [0])
    assert deadline.run(here.agent, handle) == "DONE"
    assert here.read(local.key) == pattern(8, SIZE)


@pytest.mark.beyond_stock
@pytest.mark.nixl_differs("peers are not told of deregistered memory")
def test_memory_listed_twice_is_gone_after_its_deregistration(
    engine, api, endpoint, other
):
    if "ucx" in engine.name:
        pytest.skip("peers are not told over UCX, as in stock NIXL")
    here, there = endpoint(), other("twice")
    local, a, b = here.alloc(SIZE), there.alloc(SIZE), there.alloc(SIZE)
    here.add(there.partial_metadata([a.key, b.key, a.key], True))
    row = [(a.addr, SIZE, 0)]
    far = here.agent.prep_xfer_dlist(there.name, row, "DRAM")
    near = here.agent.prep_xfer_dlist("", [(local.addr, SIZE, 0)], "DRAM")
    handle = here.agent.make_prepped_xfer("READ", near, [0], far, [0])
    assert deadline.run(here.agent, handle) == "DONE"
    there.deregister(a.key)
    with pytest.raises(api.nixlNotFoundError):
        deadline.run(here.agent, handle)


@pytest.mark.beyond_stock
@pytest.mark.nixl_differs("loading metadata again only adds")
def test_removed_regions_are_dropped_with_the_next_metadata(api, pair):
    """Stock refuses to load such metadata."""
    here, there = pair
    agent = here.agent
    local = here.alloc(SIZE)
    stays, goes = there.alloc(SIZE, seed=5), there.alloc(SIZE, seed=6)
    here.add(there.metadata())
    row = [(goes.addr, SIZE, 0)]
    prepared = agent.prep_xfer_dlist(there.name, row, "DRAM")
    left = agent.prep_xfer_dlist("", [(local.addr, SIZE, 0)], "DRAM")
    handle = agent.make_prepped_xfer("READ", left, [0], prepared, [0])
    there.deregister(goes.key)
    here.add(there.metadata())
    assert not agent.check_remote_metadata(
        there.name, agent.get_xfer_descs(row, "DRAM")
    )
    with pytest.raises(api.nixlNotFoundError, match="NIXL_ERR_NOT_FOUND"):
        here.prepare(there.name, row)
    with pytest.raises(api.NixlError, match="NIXL_ERR_"):
        agent.transfer(handle)
    assert here.read(local.key) == bytes(SIZE)
    read_works(here, there, local, stays)


@pytest.mark.beyond_stock
@pytest.mark.parametrize("kind", ["private", "memfd", "shared-buffer"])
def test_memory_is_registered_again_after_sleep(pair, kind):
    """vLLM's sleep mode: the same list is deregistered and registered again,
    and the metadata is loaded again under the same name."""
    here, there = pair
    local, remote = here.alloc(SIZE), there.alloc(SIZE, kind, seed=7)
    for seed in range(5):
        here.add(there.metadata())
        there.fill(remote.key, seed)
        read_works(here, there, local, remote)
        there.deregister(remote.key)
        there.register(remote.key)


def test_a_peer_is_removed_and_added_again(api, pair):
    here, there = pair
    local, remote = here.alloc(SIZE), there.alloc(SIZE, seed=8)
    for name in (there.name, there.name.encode()):
        here.add(there.metadata())
        read_works(here, there, local, remote)
        here.remove(name)
        assert not here.agent.check_remote_metadata(there.name)
        with pytest.raises(api.nixlNotFoundError):
            here.prepare(there.name, [(remote.addr, SIZE, 0)])


def test_removing_an_unknown_peer_is_accepted(endpoint):
    here = endpoint()
    here.remove("nobody")
    here.remove(b"nobody")


@pytest.mark.beyond_stock
def test_removing_a_peer_ends_its_transfers(api, long_transfer):
    here, there = long_transfer.here, long_transfer.there
    handle = long_transfer.handle
    here.agent.transfer(handle)
    here.remove(there.name)
    with pytest.raises(api.nixlRemoteDisconnectError):
        here.agent.wait([handle], timeout=30)
    with pytest.raises(api.nixlRemoteDisconnectError):
        here.agent.check_xfer_state(handle)


@pytest.mark.beyond_stock
def test_memory_may_be_remapped_between_two_loads(pair):
    """A read of another mapping at the same address returns its contents."""
    here, there = pair
    local = here.alloc(SIZE)
    first = there.alloc(SIZE, "memfd", seed=9)
    here.add(there.metadata())
    read_works(here, there, local, first)
    there.deregister(first.key)
    there.remap(first.key, "memfd", seed=10)
    there.register(first.key)
    here.add(there.metadata())
    read_works(here, there, local, first)
    assert here.read(local.key) == pattern(10, SIZE)


# -- partial metadata --------------------------------------------------------


def test_partial_metadata_describes_only_some_regions(api, endpoint, other):
    here, there = endpoint(), other()
    local = here.alloc(SIZE)
    told, hidden = there.alloc(SIZE, seed=11), there.alloc(SIZE, seed=12)
    blob = there.partial_metadata([told.key], True)
    assert here.add(blob) == there.name.encode()
    read_works(here, there, local, told)
    with pytest.raises(api.nixlNotFoundError):
        here.prepare(there.name, [(hidden.addr, SIZE, 0)])


def test_partial_metadata_adds_to_known_regions(endpoint, other):
    """Without connection data, after a load with it, as Ray does."""
    here, there = endpoint(), other()
    local = here.alloc(SIZE)
    first, second = there.alloc(SIZE, seed=13), there.alloc(SIZE, seed=14)
    here.add(there.partial_metadata([first.key], True))
    here.add(there.partial_metadata([second.key], False))
    read_works(here, there, local, first)
    read_works(here, there, local, second)


def test_partial_metadata_with_connection_adds_too(endpoint, other):
    here, there = endpoint(), other()
    local = here.alloc(SIZE)
    first, second = there.alloc(SIZE, seed=15), there.alloc(SIZE, seed=16)
    here.add(there.partial_metadata([first.key], True))
    here.add(there.partial_metadata([second.key], True))
    read_works(here, there, local, first)
    read_works(here, there, local, second)


def test_connection_data_alone_is_enough_for_notifications(endpoint, other):
    here, there = endpoint(), other()
    there.alloc(SIZE)
    blob = there.partial_metadata([], False)
    assert grammar.parse(blob).connections
    assert grammar.parse(blob).sections == []
    here.add(blob)
    here.send_notif(there.name, b"hello")
    assert there.gather_notifs(1) == [(here.name, b"hello")]


@pytest.mark.beyond_stock
def test_partial_metadata_of_a_stranger_is_refused(api, endpoint, other):
    """It has no connection data, and none was loaded before."""
    here, there = endpoint(), other()
    region = there.alloc(SIZE)
    with pytest.raises(api.NixlError, match="NIXL_ERR_"):
        here.add(there.partial_metadata([region.key], False))
    assert not here.agent.check_remote_metadata(there.name)
    here.add(there.metadata())


def test_partial_metadata_of_unregistered_memory_is_refused(api, endpoint):
    here = endpoint()
    region = here.alloc(SIZE)
    rows = here.agent.get_reg_descs([(region.addr, 64, 0, "")], "DRAM")
    with pytest.raises(api.nixlNotFoundError, match="NIXL_ERR_NOT_FOUND"):
        here.agent.get_partial_agent_metadata(rows, True)


# -- invalid metadata ---------------------------------------------------------

GARBAGE = {
    "empty": b"",
    "text": b"hello",
    "prefix": grammar.PREFIX,
    "zeros": bytes(1000),
    "ones": b"\xff" * 1000,
    "huge name": grammar.PREFIX + b"Agent" + b"\xff" * 8 + b"x|",
    "no name": grammar.PREFIX + grammar.put(b"Agent", b""),
    "a pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00}\x94.",
}


@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_is_refused(api, pair, what):
    here, there = pair
    with pytest.raises(api.nixlMismatchError, match="NIXL_ERR_MISMATCH"):
        here.add(GARBAGE[what])
    here.send_notif(there.name, b"still here")
    assert there.gather_notifs(1) == [(here.name, b"still here")]


def test_our_own_metadata_is_refused(api, endpoint):
    here = endpoint()
    with pytest.raises(api.nixlInvalidParamError, match="INVALID_PARAM"):
        here.add(here.metadata())


def test_metadata_of_an_agent_of_our_own_name_is_refused(api, endpoint, peer):
    here = endpoint("twin")
    there = peer("twin")
    with pytest.raises(api.nixlInvalidParamError, match="INVALID_PARAM"):
        here.add(there.metadata())


@pytest.mark.beyond_stock
def test_metadata_with_trailing_bytes_is_refused(api, pair):
    here, there = pair
    with pytest.raises(api.nixlMismatchError):
        here.add(there.metadata() + b"|")


def changed(data, **fields):
    return grammar.write(grammar.parse(data)._replace(**fields))


@pytest.mark.beyond_stock
def test_a_region_that_wraps_around_is_refused(api, endpoint, other):
    here, there = endpoint(), other()
    there.alloc(SIZE)
    found = grammar.parse(there.metadata())
    bad = [
        part._replace(
            regions=[r._replace(size=2**64 - 1) for r in part.regions]
        )
        for part in found.sections
    ]
    with pytest.raises(api.NixlError, match="NIXL_ERR_"):
        here.add(changed(there.metadata(), sections=bad))
    assert not here.agent.check_remote_metadata(there.name)


@pytest.mark.beyond_stock
def test_a_peer_that_cannot_be_reached_is_refused_with_the_reasons(
    api, endpoint, other
):
    """A peer on another host: the error names each route and why it fails."""
    here, there = endpoint(), other()
    strange = changed(there.metadata(), connections={b"STRANGE": b"x"})
    with pytest.raises(api.nixlBackendError, match="NIXL_ERR_BACKEND") as e:
        here.add(strange)
    assert there.name in str(e.value)
    assert e.value.peer == there.name
    assert not here.agent.check_remote_metadata(there.name)


@pytest.mark.beyond_stock
def test_peer_whose_process_ended_is_refused(api, endpoint, peer):
    here, there = endpoint(), peer()
    there.alloc(SIZE)
    blob = there.metadata()
    there.kill()
    with pytest.raises(api.NixlError, match="NIXL_ERR_") as caught:
        here.add(blob)
    assert there.name in str(caught.value)


@pytest.mark.slow
@pytest.mark.beyond_stock
def test_metadata_cut_at_any_byte_is_refused(api, pair):
    """The data already known about the peer does not change."""
    here, there = pair
    local, remote = here.alloc(SIZE), there.alloc(SIZE, seed=17)
    blob = there.metadata()
    here.add(blob)
    for end in range(len(blob)):
        with pytest.raises(api.nixlMismatchError):
            here.add(blob[:end])
    read_works(here, there, local, remote)


# -- describe ----------------------------------------------------------------


@pytest.mark.beyond_stock
def test_describe_reports_the_agent(endpoint):
    told = endpoint().agent.describe()
    assert told["engine"] in ("native", "nixl")
    assert told["peers"] == 0
    assert "UCX" in str(told["backends"])


@pytest.mark.beyond_stock
def test_describe_reports_a_peer(engine, pair):
    here, there = pair
    told = here.agent.describe(there.name)
    assert told["generation"] == 1
    assert told["state"]
    assert told["path"]
    if engine.name == "native-shm":
        assert "SHM" in told["path"]
    here.remove(there.name)
    here.add(there.metadata())
    assert here.agent.describe(there.name)["generation"] == 2


@pytest.mark.beyond_stock
@pytest.mark.nixl_differs("what it maps is not told")
def test_describe_reports_mapped_regions(engine, pair):
    """Memory that cannot shrink is mapped by the reader."""
    if not engine.two_processes:
        pytest.skip("within a process everything is at hand")
    here, there = pair
    for kind in ("shared-buffer", "memfd", "memfd-private", "private"):
        there.alloc(SIZE, kind)
    here.add(there.metadata())
    told = here.agent.describe(there.name)
    assert told["regions"] == 4
    assert told["regions_direct"] == 2


@pytest.mark.beyond_stock
@pytest.mark.nixl_differs("a peer's end is noticed when it is used")
def test_describe_does_not_alter_names(endpoint, other):
    here, there = endpoint(), other("préfill \u2192 0")
    here.add(there.metadata())
    there.close()
    told = deadline.until(
        lambda: (
            (t := here.agent.describe(there.name))["state"] != "connected"
            and t
        ),
        "the news that it left",
    )
    assert "Ã" not in str(told)


@pytest.mark.beyond_stock
def test_describe_refuses_an_unknown_peer(api, endpoint):
    with pytest.raises(api.nixlNotFoundError, match="nobody"):
        endpoint().agent.describe("nobody")


def test_make_connection_may_precede_the_first_transfer(api, pair):
    here, there = pair
    here.agent.make_connection(there.name)
    here.agent.make_connection(there.name, ["UCX"])
    with pytest.raises(api.nixlNotFoundError):
        here.agent.make_connection("nobody")
