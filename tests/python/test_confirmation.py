"""A region of a peer is used only after its owner has confirmed it.

The cases: forged metadata, owners that do not answer, late and false answers.
Random ones are in tests/stress/test_forged_metadata.py.
"""

import contextlib
import os
import signal
import threading
import time

import pytest
from support import blob as grammar
from support import deadline, forge, memory
from support.memory import PAGE, pattern
from support.owner import FakeOwner

pytestmark = [
    pytest.mark.beyond_stock,
    pytest.mark.nixl_differs("nothing can be asked of stock's agents"),
]

SIZE = 4096
BIG = 128 * 1024


@pytest.fixture
def here(endpoint, monkeypatch):
    monkeypatch.setenv("VLLM_NIXL_ENGINE", "native")
    return endpoint()


@pytest.fixture
def there(here, peer):
    """A peer in its own process, not loaded yet."""
    return peer()


@pytest.fixture
def owner(here, names, opened):
    opened.append(FakeOwner(names()))
    return opened[-1]


def start(here, name, addr, operation="READ", size=SIZE, notif=b""):
    """Post a transfer; return (handle key, local buffer, state)."""
    local = here.alloc(size, seed=9)
    key = here.initialize(
        operation, [(local.addr, size, 0)], [(addr, size, 0)], name, notif
    )
    return key, local, here.post(key)


def confirmed(here, name):
    return here.agent.describe(name)["regions_confirmed"]


def settle(here, name, count):
    """Wait until the owner has confirmed that many regions."""
    deadline.until(
        lambda: confirmed(here, name) == count, f"{count} regions of {name}"
    )


def stray(api, here, name, addr, size=SIZE):
    """Check that READ and WRITE on unregistered memory are refused."""
    for operation in ("READ", "WRITE"):
        local = here.alloc(size, seed=9)
        with pytest.raises(api.NixlError) as caught:
            here.move(
                operation, [(local.addr, size, 0)], [(addr, size, 0)], name
            )
        assert here.read(local.key) == pattern(9, size)
    return caught.value


# -- forged regions ----------------------------------------------------------


def test_a_region_of_another_address_is_refused(api, here, there):
    """The agent's own metadata with one field changed."""
    remote = there.alloc_guarded(SIZE)
    good = there.metadata()
    region = forge.regions_of(good)[0]
    for addr in (remote.addr - PAGE, remote.addr + SIZE):
        here.add(forge.with_regions(good, [region._replace(addr=addr)]))
        error = stray(api, here, there.name, addr)
        assert isinstance(error, api.nixlNotFoundError)
        assert error.peer == there.name
        assert "owner" in str(error)
        assert hex(addr) in str(error)
    assert there.touched() == []
    here.add(good)
    key, local, _ = start(here, there.name, remote.addr)
    assert here.finish(key) == "DONE"
    assert here.read(local.key) == bytes(SIZE)


FIELDS = {
    "longer": lambda r: r._replace(size=r.size + PAGE),
    "twice": lambda r: r._replace(size=2 * r.size),
    "earlier": lambda r: r._replace(addr=r.addr - PAGE),
    "another device": lambda r: r._replace(device=3),
}


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_of_a_region_is_confirmed(api, here, there, field):
    remote = there.alloc_guarded(SIZE)
    good = there.metadata()
    forged = FIELDS[field](forge.regions_of(good)[0])
    here.add(forge.with_regions(good, [forged]))
    local = here.alloc(SIZE, seed=9)
    rows = [(forged.addr + forged.size - SIZE, SIZE, forged.device)]
    for operation in ("READ", "WRITE"):
        with pytest.raises(api.nixlNotFoundError, match="owner"):
            here.move(operation, [(local.addr, SIZE, 0)], rows, there.name)
    assert here.read(local.key) == pattern(9, SIZE)
    assert there.read(remote.key, PAGE, SIZE) == bytes(SIZE)
    assert there.touched() == []


def test_false_name_is_refused_and_both_sides_report_it(
    api, here, there, names
):
    """The first forgery of the issue: another agent's name and address."""
    remote = there.alloc_guarded(SIZE)
    good, name = there.metadata(), names()
    addr = remote.addr + SIZE
    region = forge.regions_of(good)[0]._replace(addr=addr)
    forged = forge.with_name(forge.with_regions(good, [region]), name.encode())
    here.add(forged)
    error = stray(api, here, name, addr)
    assert there.touched() == []
    deadline.until(
        lambda: here.agent.describe(name)["state"] == "lost", "the refusal"
    )
    with pytest.raises(api.nixlRemoteDisconnectError) as caught:
        here.send_notif(name, b"?")
    assert there.name in str(caught.value)
    assert name in str(caught.value)
    assert error is not None
    assert there.take_notifs() == {}


def test_our_own_process_under_a_new_instance_is_refused(api, here, names):
    """The second forgery of the issue: V's own pid and socket."""
    block = here.alloc_guarded(SIZE)
    region = grammar.Region(block.addr - PAGE, PAGE, 0, b"\1\0\0\0")
    nonce = memory.Memory(PAGE)
    for _ in range(50):
        instance = os.urandom(16)
        nonce.view[:16] = instance
        forged = forge.with_info(
            forge.with_regions(here.metadata(), [region]),
            instance=instance,
            nonce_addr=nonce.addr,
        )
        name = names()
        with pytest.raises(api.NixlError, match="this process") as caught:
            here.add(forge.with_name(forged, name.encode()))
        assert caught.value.peer == name
        assert not here.knows(name)
    assert here.touched() == []
    nonce.unmap()


def test_an_agent_of_this_process_under_another_name_is_refused(
    api, here, endpoint, names
):
    beside, name = endpoint(), names()
    beside.alloc(SIZE)
    with pytest.raises(api.nixlMismatchError) as caught:
        here.add(forge.with_name(beside.metadata(), name.encode()))
    assert caught.value.peer == name
    assert beside.name in str(caught.value)


def test_shared_region_backed_by_another_file_is_refused(api, here, there):
    """The address is registered, but another memfd is behind it."""
    one = there.alloc_guarded(BIG, "memfd")
    two = there.alloc_guarded(BIG, "memfd")
    regions = {r.addr: r for r in forge.regions_of(there.metadata())}
    there.expose(two.key)
    good = there.metadata()
    share = forge.read_share(regions[two.addr].public)
    own = forge.read_share(regions[one.addr].public)
    assert share.st_ino != own.st_ino
    shares = [
        share,
        own._replace(offset=own.offset - PAGE),
        own._replace(offset=own.offset + PAGE),
        None,
    ]
    for lie in shares:
        region = regions[one.addr]._replace(public=forge.write_share(lie))
        here.add(forge.with_regions(good, [region]))
        error = stray(api, here, there.name, one.addr)
        assert isinstance(error, api.nixlNotFoundError)
        assert there.touched() == []
    here.add(good)
    settle(here, there.name, 1)
    assert here.agent.describe(there.name)["regions_direct"] == 1
    key, _, _ = start(here, there.name, one.addr, "WRITE")
    assert here.finish(key) == "DONE"
    assert there.read(one.key, PAGE, SIZE) == pattern(9, SIZE)


def test_false_epoch_does_not_outlive_a_deregistration(api, here, there):
    """Metadata that falsely claims to be the newest does not survive a
    deregistration and does not block true metadata."""
    kept, gone = there.alloc(SIZE, seed=1), there.alloc(SIZE, seed=2)
    good = there.metadata()
    here.add(forge.with_info(good, epoch=forge.MAX64))
    settle(here, there.name, 2)
    there.deregister(gone.key)
    deadline.until(
        lambda: confirmed(here, there.name) == 1, "the deregistration"
    )
    error = stray(api, here, there.name, gone.addr)
    assert isinstance(error, api.nixlNotFoundError)
    here.add(there.metadata())
    key, local, _ = start(here, there.name, kept.addr)
    assert here.finish(key) == "DONE"
    assert here.read(local.key) == pattern(1, SIZE)
    fresh = there.alloc(SIZE, seed=3)
    here.add(there.metadata())
    key, local, _ = start(here, there.name, fresh.addr)
    assert here.finish(key) == "DONE"


def test_empty_blob_with_a_false_epoch_does_no_harm(here, there):
    remote = there.alloc(SIZE, seed=1)
    good = there.metadata()
    here.add(good)
    settle(here, there.name, 1)
    here.add(forge.with_info(forge.with_regions(good, []), epoch=2**63))

    def works():
        here.add(good)
        return confirmed(here, there.name) == 1

    deadline.until(works, "the good metadata")
    key, local, _ = start(here, there.name, remote.addr)
    assert here.finish(key) == "DONE"
    assert here.read(local.key) == pattern(1, SIZE)


# -- true metadata: early, late, partial --------------------------------------


def test_metadata_of_deregistered_regions_is_refused(api, here, there):
    kept, gone = there.alloc(SIZE, seed=1), there.alloc(SIZE, seed=2)
    old = there.metadata()
    there.deregister(gone.key)
    here.add(old)
    with pytest.raises(api.nixlNotFoundError) as caught:
        here.move(
            "READ",
            [(here.alloc(SIZE).addr, SIZE, 0)],
            [(gone.addr, SIZE, 0)],
            there.name,
        )
    assert caught.value.peer == there.name
    key, local, _ = start(here, there.name, kept.addr)
    assert here.finish(key) == "DONE"
    assert here.read(local.key) == pattern(1, SIZE)


def test_partial_metadata_is_confirmed_too(api, here, there):
    first, second = there.alloc(SIZE, seed=1), there.alloc_guarded(SIZE)
    here.add(there.partial_metadata([first.key], True))
    settle(here, there.name, 1)
    assert not here.knows(there.name, second)
    loose = there.partial_metadata([first.key], False)
    region = forge.regions_of(loose)[0]
    addr = second.addr - PAGE
    here.add(
        forge.with_regions(loose, [region._replace(addr=addr, size=SIZE)])
    )
    stray(api, here, there.name, addr)
    assert there.touched() == []
    here.add(there.metadata())
    settle(here, there.name, 2)
    key, local, _ = start(here, there.name, first.addr)
    assert here.finish(key) == "DONE"
    assert here.read(local.key) == pattern(1, SIZE)


def test_region_registered_again_is_confirmed(here, there):
    """Even if the old registration was loaded and confirmed."""
    remote = there.alloc(SIZE, seed=1)
    for number in range(50):
        here.add(there.metadata())
        key, local, _ = start(here, there.name, remote.addr)
        assert here.finish(key) == "DONE", number
        assert here.read(local.key) == pattern(1, SIZE)
        there.deregister(remote.key)
        there.register(remote.key)


def test_all_of_5000_regions_are_confirmed(here, there):
    remote = there.alloc(5000 * 64, seed=1, register=False)
    there.register_rows(remote.key, 64, 5000)
    here.add(there.metadata())
    settle(here, there.name, 5000)
    local = here.alloc(5000 * 64)
    assert (
        here.move(
            "READ",
            [(local.addr + i * 64, 64, 0) for i in range(5000)],
            [(remote.addr + i * 64, 64, 0) for i in range(5000)],
            there.name,
        )
        == "DONE"
    )
    assert here.read(local.key) == pattern(1, 5000 * 64)


# -- owners that do not answer -----------------------------------------------


@pytest.fixture
def stopped(here, peer):
    """A peer whose process is stopped before its metadata is loaded."""
    there = peer()
    remote = there.alloc(SIZE, seed=1)
    blob = there.metadata()
    deadline.stop(there.process)
    here.add(blob)
    yield there, remote
    there.process.send_signal(signal.SIGCONT)


def test_a_transfer_waits_for_an_owner_that_is_stopped(here, stopped):
    there, remote = stopped
    key, local, state = start(here, there.name, remote.addr, notif=b"done")
    other, written, _ = start(here, there.name, remote.addr, "WRITE")
    assert state == "PROC"
    time.sleep(0.2)
    assert here.state(key) == here.state(other) == "PROC"
    assert here.read(local.key) == pattern(9, SIZE)
    there.process.send_signal(signal.SIGCONT)
    assert here.finish(key) == here.finish(other) == "DONE"
    assert there.gather_notifs(1) == [(here.name, b"done")]
    assert there.read(remote.key) == pattern(9, SIZE)
    assert here.post(key) in ("DONE", "PROC")
    assert here.finish(key) == "DONE"
    assert here.read(local.key) == here.read(written.key)


def test_waiting_transfer_fails_when_the_owner_dies(api, here, names):
    from support.peer import PeerProcess

    there = PeerProcess("vllm_nixl", names())
    remote = there.alloc(SIZE)
    blob = there.metadata()
    deadline.stop(there.process)
    here.add(blob)
    key, local, state = start(here, there.name, remote.addr)
    assert state == "PROC"
    there.kill()
    with pytest.raises(api.nixlRemoteDisconnectError) as caught:
        here.finish(key)
    assert caught.value.peer == there.name
    assert here.read(local.key) == pattern(9, SIZE)


def test_waiting_transfer_can_be_cancelled(api, here, stopped):
    there, remote = stopped
    key, local, _ = start(here, there.name, remote.addr)
    other, _, _ = start(here, there.name, remote.addr)
    assert here.cancel(key) is True
    with pytest.raises(api.nixlCancelledError):
        here.state(key)
    assert here.state(other) == "PROC"
    assert here.post(key) == "PROC"
    there.process.send_signal(signal.SIGCONT)
    assert here.finish(key) == here.finish(other) == "DONE"
    assert here.read(local.key) == pattern(1, SIZE)


def test_waiting_transfer_can_be_released(here, stopped):
    there, remote = stopped
    for _ in range(20):
        key, local, _ = start(here, there.name, remote.addr)
        here.release(key)
        assert here.read(local.key) == pattern(9, SIZE)
    deadline.until(lambda: here.agent.stats()["live_xfers"] == 0, "their end")


def test_waiting_transfer_obeys_its_timeout(api, here, stopped):
    there, remote = stopped
    key, _, _ = start(here, there.name, remote.addr)
    here.cancel(key)
    handle = here.handles[key]
    assert here.agent.transfer(handle, timeout=0.05) == "PROC"
    with pytest.raises(api.nixlTimeoutError, match=r"0\.05"):
        here.finish(key)


def test_peer_of_a_waiting_transfer_can_be_removed(api, here, stopped):
    there, remote = stopped
    key, _, _ = start(here, there.name, remote.addr)
    here.remove(there.name)
    with pytest.raises(api.nixlRemoteDisconnectError, match="removed"):
        here.finish(key)


def test_agent_can_be_closed_while_transfers_wait(api, here, stopped):
    there, remote = stopped
    keys = [start(here, there.name, remote.addr)[0] for _ in range(5)]
    handles = [here.handles.pop(key) for key in keys]
    here.agent.close()
    for handle in handles:
        with pytest.raises(api.NixlError):
            here.agent.check_xfer_state(handle)
        handle.release()


@pytest.mark.slow
def test_unresponsive_owner_times_out(api, here, stopped):
    """After ten seconds.  The transfer can be posted again, and succeeds once
    the owner continues."""
    there, remote = stopped
    key, local, _ = start(here, there.name, remote.addr)
    with pytest.raises(api.nixlTimeoutError, match="confirmed") as caught:
        here.finish(key)
    assert caught.value.peer == there.name
    assert here.post(key) == "PROC"
    there.process.send_signal(signal.SIGCONT)
    assert here.finish(key) == "DONE"
    assert here.read(local.key) == pattern(1, SIZE)


def test_two_agents_load_each_other_simultaneously(here, there):
    """From one thread and from two."""
    mine, theirs = here.alloc(SIZE, seed=1), there.alloc(SIZE, seed=2)
    blobs = here.metadata(), there.metadata()
    for _ in range(50):
        there.send("add", blobs[0])
        here.add(blobs[1])
        there.answer()
        key, local, _ = start(here, there.name, theirs.addr)
        assert here.finish(key) == "DONE"
        assert here.read(local.key) == pattern(2, SIZE)
        here.remove(there.name)
        there.remove(here.name)
    assert here.read(mine.key) == pattern(1, SIZE)


def test_two_agents_of_this_process_load_each_other(here, endpoint):
    beside = endpoint()
    mine, theirs = here.alloc(SIZE, seed=1), beside.alloc(SIZE, seed=2)
    for _ in range(50):
        threads = [
            threading.Thread(target=one.add, args=(other.metadata(),))
            for one, other in ((here, beside), (beside, here))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for one, other, addr, seed in (
            (here, beside, theirs.addr, 2),
            (beside, here, mine.addr, 1),
        ):
            key, local, state = start(one, other.name, addr)
            assert state == "DONE"
            assert one.read(local.key) == pattern(seed, SIZE)
            one.release(key)
        here.remove(beside.name)
        beside.remove(here.name)


# -- owners that lie ---------------------------------------------------------


def test_confirm_request_has_the_published_rows(here, owner):
    share = forge.Share(0, 4096, 5, 6)
    regions = [
        *owner.regions(2),
        grammar.Region(owner.addr, 70000, 0, forge.write_share(share)),
    ]
    here.add(owner.metadata(regions))
    token, rows = owner.question()
    name, length = owner.name.encode(), len(owner.name)
    assert owner.hello.endswith(
        owner.fields.instance + length.to_bytes(4, "little") + name
    )
    half = SIZE // 2
    assert rows == [
        (0, owner.addr, half, 0, 0, 0, 0, 0),
        (0, owner.addr, 70000, 0, 1, 4096, 5, 6),
        (0, owner.addr + half, half, 0, 0, 0, 0, 0),
    ]
    owner.confirm(token, 1, refused=[1])
    settle(here, owner.name, 2)
    assert owner.is_quiet(0.1)


def test_confirmed_regions_are_not_requested_again(here, owner):
    here.add(owner.metadata())
    owner.confirm(owner.question()[0], 1)
    settle(here, owner.name, 1)
    for _ in range(3):
        here.add(owner.metadata())
        here.add(owner.metadata(partial=True))
        here.add(owner.loose(owner.regions()))
    assert owner.is_quiet(0.2)
    # Only new regions are requested.
    here.add(owner.metadata(owner.regions() + owner.regions(2)))
    token, rows = owner.question()
    assert [row[2] for row in rows] == [SIZE // 2] * 2
    owner.confirm(token, 1)
    settle(here, owner.name, 3)


def test_confirm_requests_have_bounded_size(here, owner):
    regions = [
        grammar.Region(owner.addr + i, 1, 0, b"\1\0\0\0") for i in range(2500)
    ]
    here.add(owner.metadata(regions))
    sizes = []
    while sum(sizes) < 2500:
        token, rows = owner.question()
        assert [row[1] - owner.addr for row in rows] == list(
            range(sum(sizes), sum(sizes) + len(rows))
        )
        assert owner.is_quiet(0.01)  # one request at a time
        sizes.append(len(rows))
        owner.confirm(token, 1)
        settle(here, owner.name, sum(sizes))
    assert sizes == [1024, 1024, 452]


LIES = {
    "not asked": lambda o, t: o.confirm(t + 1, 1),
    "asked before": lambda o, t: o.confirm(t - 1, 1),
    "twice": lambda o, t: (o.confirm(t, 1), o.confirm(t, 1)),
    "no such row": lambda o, t: o.confirm(t, 1, refused=[1]),
    "rows twice": lambda o, t: o.confirm(t, 1, refused=[0, 0]),
    "an epoch of long ago": lambda o, t: (
        o.confirm(t, 1),
        o.revoke(7, *o.regions()),
        o.confirm(t + 1, 6),
    ),
    "cut off": lambda o, t: o.ask("send", 6, b"12345678"),
}


@pytest.mark.parametrize("lie", LIES)
def test_mismatched_answer_disconnects_the_peer(api, here, owner, lie):
    here.add(owner.metadata(epoch=99 if "epoch" in lie else 1))
    token, _ = owner.question()
    key, _, _ = start(here, owner.name, owner.addr)
    LIES[lie](owner, token)
    assert owner.ended()
    deadline.until(
        lambda: here.agent.describe(owner.name)["state"] == "lost",
        "the end of the peer",
    )
    errors = [api.nixlRemoteDisconnectError]
    if "epoch" in lie:
        errors.append(api.nixlNotFoundError)  # the REVOKE arrived while it ran
    with contextlib.suppress(*errors):  # or it was done before
        assert here.finish(key) == "DONE"
    with pytest.raises(api.nixlRemoteDisconnectError):
        start(here, owner.name, owner.addr)


def test_refused_name_error_names_the_real_owner(api, here, owner):
    here.add(owner.metadata())
    owner.question()
    key, _, _ = start(here, owner.name, owner.addr)
    owner.refuse(b"somebody\nelse")
    with pytest.raises(api.nixlRemoteDisconnectError) as caught:
        here.finish(key)
    assert "somebody?else" in str(caught.value)
    assert caught.value.peer == owner.name


def test_revocation_concurrent_with_the_answer_is_applied(api, here, owner):
    """The order of arrival does not matter: the answer was given before."""
    first, second = owner.regions(2)
    here.add(owner.metadata([first, second]))
    token, _ = owner.question()
    owner.revoke(2, first)
    owner.confirm(token, 1)
    settle(here, owner.name, 1)
    owner.revoke(3, second)
    deadline.until(lambda: confirmed(here, owner.name) == 0, "the revocation")
    for region in first, second:
        with pytest.raises(api.nixlNotFoundError, match="deregistered"):
            start(here, owner.name, region.addr, size=SIZE // 2)
    assert owner.is_quiet(0.1)


def test_revocation_of_an_earlier_registration_is_ignored(here, owner):
    region = owner.regions()[0]
    here.add(owner.metadata(epoch=1))
    token, _ = owner.question()
    owner.confirm(token, 5)
    settle(here, owner.name, 1)
    owner.revoke(5, region)
    owner.revoke(4, region)
    key, local, _ = start(here, owner.name, owner.addr)
    assert here.finish(key) == "DONE"
    assert here.read(local.key) == owner.read()
    assert owner.is_quiet(0.1)


@pytest.mark.parametrize("answer", ["confirmed", "refused"])
def test_metadata_newer_than_a_revocation_is_confirmed(
    api, here, owner, answer
):
    """It claims that the region was registered again, which may be false."""
    region = owner.regions()[0]
    here.add(owner.metadata(epoch=1))
    owner.confirm(owner.question()[0], 1)
    settle(here, owner.name, 1)
    here.add(owner.metadata(epoch=3))
    token, rows = owner.question()  # for the epoch
    assert rows == []
    owner.confirm(token, 3)
    owner.revoke(2, region)
    token, rows = owner.question()
    assert len(rows) == 1
    key, local, state = start(here, owner.name, owner.addr)
    assert state == "PROC"
    if answer == "confirmed":
        owner.confirm(token, 3)
        assert here.finish(key) == "DONE"
        assert here.read(local.key) == owner.read()
    else:
        owner.confirm(token, 3, refused=[0])
        with pytest.raises(api.nixlNotFoundError, match="owner"):
            here.finish(key)
        assert here.read(local.key) == pattern(9, SIZE)


def test_metadata_loaded_meanwhile_is_confirmed_again(here, owner):
    """The answer is older: a refused region may be registered by now."""
    here.add(owner.metadata(epoch=1))
    token, _ = owner.question()
    here.add(owner.metadata(epoch=3))
    owner.confirm(token, 2, refused=[0])
    token, rows = owner.question()
    assert len(rows) == 1
    owner.confirm(token, 3)
    key, local, _ = start(here, owner.name, owner.addr)
    assert here.finish(key) == "DONE"
    assert here.read(local.key) == owner.read()


def test_notifications_are_sent_while_a_request_is_open(here, owner):
    here.add(owner.metadata())
    token, _ = owner.question()
    here.send_notif(owner.name, b"hello")
    assert owner.expect(2) == b"hello"
    owner.confirm(token, 1)
    settle(here, owner.name, 1)


def test_owner_that_leaves_without_answering_is_a_disconnect(api, here, owner):
    here.add(owner.metadata())
    owner.question()
    key, _, _ = start(here, owner.name, owner.addr)
    owner.drop()
    with pytest.raises(api.nixlRemoteDisconnectError):
        here.finish(key)
