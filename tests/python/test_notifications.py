"""Notifications: exactly once, in order, never before their data."""

import concurrent.futures

import pytest
from support import deadline
from support.memory import MEM, pattern
from support.program import run_program

SIZE = 4096


@pytest.fixture
def ready(pair):
    """(here, there, prepared WRITE of SIZE bytes with a notification)."""
    here, there = pair
    local, remote = here.alloc(SIZE, seed=1), there.alloc(SIZE)
    here.add(there.metadata())

    def make(notif, operation="WRITE"):
        return here.initialize(
            operation,
            [(local.addr, SIZE, 0)],
            [(remote.addr, SIZE, 0)],
            there.name,
            notif,
        )

    return here, there, make


MESSAGES = {
    "text": b"request-1:2",
    "binary": bytes(range(256)) * 2,
    "zeros": b"\0" * 64,
    "one zero": b"\0",
    "bars": b"nixlSerDes|name|msg|NIXLCOMM:",
    "300 kB": pattern(3, 300_000),
    "8 MiB": pattern(4, 8 << 20),
}


@pytest.mark.parametrize("what", MESSAGES)
def test_a_message_arrives_with_a_transfer(ready, what):
    here, there, make = ready
    key = make(MESSAGES[what])
    here.post(key)
    assert here.finish(key) == "DONE"
    assert there.gather_notifs(1) == [(here.name, MESSAGES[what])]


@pytest.mark.parametrize("what", MESSAGES)
def test_a_message_arrives_on_its_own(pair, what):
    here, there = pair
    here.send_notif(there.name, MESSAGES[what])
    assert there.gather_notifs(1) == [(here.name, MESSAGES[what])]


def test_an_empty_message_arrives(pair):
    here, there = pair
    here.send_notif(there.name, b"")
    here.send_notif(there.name, b"then")
    assert there.gather_notifs(2) == [(here.name, b""), (here.name, b"then")]


def test_a_str_arrives_as_bytes(ready):
    """TRT-LLM passes str."""
    here, there, make = ready
    here.send_notif(there.name, "größer")
    key = make("mit")
    here.post(key)
    here.finish(key)
    got = [message for _, message in there.gather_notifs(2)]
    assert got == ["größer".encode(), b"mit"]


def test_a_transfer_without_a_message_sends_none(ready):
    here, there, make = ready
    key = make(b"")
    here.post(key)
    here.finish(key)
    here.send_notif(there.name, b"after")
    assert there.gather_notifs(1) == [(here.name, b"after")]


def test_a_read_notifies_the_side_that_was_read(ready):
    here, there, make = ready
    key = make(b"you may free it", "READ")
    here.post(key)
    here.finish(key)
    assert there.gather_notifs(1) == [(here.name, b"you may free it")]
    assert here.take_notifs() == {}


def test_message_may_be_given_at_post(ready):
    """It is kept: stock sends the last message again on the next post."""
    here, there, make = ready
    key = make(b"first")
    for notif in (b"", b"second", b"", b"third"):
        here.post(key, notif)
        here.finish(key)
    got = [message for _, message in there.gather_notifs(4)]
    assert got == [b"first", b"second", b"second", b"third"]


def test_messages_keep_their_order(pair):
    here, there = pair
    sent = [str(number).encode() for number in range(2000)]
    for message in sent:
        here.send_notif(there.name, message)
    got = there.gather_notifs(len(sent))
    assert got == [(here.name, message) for message in sent]


def test_messages_of_all_sizes_keep_their_order(pair):
    """A small message does not overtake a large one."""
    here, there = pair
    sizes = [10, 300_000, 0, 70_000, 5, 4 << 20, 1, 65536, 65535]
    sent = [pattern(i, size) for i, size in enumerate(sizes * 3)]
    for message in sent:
        here.send_notif(there.name, message)
    got = [message for _, message in there.gather_notifs(len(sent))]
    assert got == sent


@pytest.mark.nixl_differs("closing the library's agent may lose messages")
@pytest.mark.beyond_stock
@pytest.mark.parametrize("end", ["close", "remove_remote_agent"])
def test_messages_sent_just_before_the_end_arrive(engine, pair, end):
    """More than a socket takes at a time.  UCX has two seconds for it, and a
    busy machine is slow to connect: over UCX there is a connection, and there
    are fewer messages."""
    here, there = pair
    count = 4000
    if engine.name.startswith("native-ucx"):
        here.send_notif(there.name, b"connected")
        assert there.gather_notifs(1) == [(here.name, b"connected")]
        count = 400
    messages = [number.to_bytes(4, "little") * 256 for number in range(count)]
    for message in messages:
        here.send_notif(there.name, message)
    if end == "close":
        here.agent.close()
    else:
        here.agent.remove_remote_agent(there.name)
    got = there.gather_notifs(len(messages))
    assert [message for _, message in got] == messages


def test_notifications_are_delivered_once(pair):
    here, there = pair
    here.send_notif(there.name, b"once")
    assert there.gather_notifs(1)
    assert there.take_notifs() == {}


def test_notifications_are_grouped_by_sender(endpoint, other, meet):
    there, senders = other(), [endpoint() for _ in range(3)]
    for sender in senders:
        meet(sender, there)
        for word in (b"a", b"b"):
            sender.send_notif(there.name, word)
    got = there.gather_notifs(6)
    for sender in senders:
        own = [message for name, message in got if name == sender.name]
        assert own == [b"a", b"b"]


def test_sender_need_not_be_loaded(endpoint, other):
    """Decode knows prefill, but prefill never loaded decode's metadata."""
    here, there = endpoint(), other()
    here.add(there.metadata())
    here.send_notif(there.name, b"who am I")
    assert there.gather_notifs(1) == [(here.name, b"who am I")]


@pytest.mark.parametrize("as_bytes", [False, True])
def test_the_receiver_is_named_by_str_or_by_bytes(pair, as_bytes):
    here, there = pair
    name = there.name.encode() if as_bytes else there.name
    here.agent.send_notif(remote_agent_name=name, notif_msg=b"hi")
    assert there.gather_notifs(1) == [(here.name, b"hi")]


def test_agent_can_notify_itself(endpoint):
    here = endpoint()
    here.alloc(SIZE)
    block = here.alloc(SIZE)
    row = [(block.addr, 64, 0)]
    key = here.initialize("READ", row, row, here.name, b"me")
    here.post(key)
    here.finish(key)
    assert here.gather_notifs(1) == [(here.name, b"me")]


@pytest.mark.beyond_stock
def test_notification_arrives_without_polling_by_the_initiator(pair):
    """Stock sends it only from check_xfer_state."""
    here, there = pair
    size = 32 << 20
    local, remote = here.alloc(size, seed=6), there.alloc(size)
    here.add(there.metadata())
    key = here.initialize(
        "WRITE",
        [(local.addr, size, 0)],
        [(remote.addr, size, 0)],
        there.name,
        b"landed",
    )
    here.post(key)
    assert there.gather_notifs(1) == [(here.name, b"landed")]
    assert there.checksum(remote.key) == here.checksum(local.key)


# -- never before the data ---------------------------------------------------

SLOTS, SLOT = 2500, 4096


def stamped(number):
    return number.to_bytes(8, "little")


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 50])
def test_written_data_precedes_its_notification(pair, batch):
    """The receiver checks the data as soon as it is notified.  Half of the 10
    000 transfers run alone, half with others in flight."""
    here, there = pair
    local = here.alloc(SLOTS * SLOT)
    remote = there.alloc(SLOTS * SLOT)
    here.add(there.metadata())
    for number in range(SLOTS):
        data = stamped(number) * (SLOT // 8)
        here.write(local.key, number * SLOT, data)
    left, right = slots(here, there, local, remote)
    checking = begin(there, "check_slots_as_told", remote.key)
    move_slots(here.agent, "WRITE", left, right, batch)
    wrong, seen = checking()
    assert wrong == []
    assert sorted(seen) == list(range(SLOTS))
    if batch == 1:
        assert seen == sorted(seen)
    assert there.take_notifs() == {}


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 50])
def test_read_completes_before_its_notification(pair, batch):
    """The owner overwrites the block as soon as it is notified."""
    here, there = pair
    local = here.alloc(SLOTS * SLOT)
    remote = there.alloc(SLOTS * SLOT, seed=7)
    here.add(there.metadata())
    left, right = slots(here, there, local, remote)
    spoiling = begin(there, "overwrite_slots_as_told", remote.key)
    move_slots(here.agent, "READ", left, right, batch)
    assert spoiling() == SLOTS
    assert here.read(local.key) == pattern(7, SLOTS * SLOT)
    assert there.read(remote.key) == b"\xee" * (SLOTS * SLOT)


def slots(here, there, local, remote):
    """Both sides as lists of SLOTS rows."""
    prep = here.agent.prep_xfer_dlist
    rows = [
        [(block.addr + i * SLOT, SLOT, 0) for i in range(SLOTS)]
        for block in (local, remote)
    ]
    left = prep("NIXL_INIT_AGENT", rows[0], MEM)
    return left, prep(there.name, rows[1], MEM)


def move_slots(agent, operation, left, right, batch):
    """Transfer each slot separately, `batch` of them at once."""
    for start in range(0, SLOTS, batch):
        handles = [
            agent.make_prepped_xfer(
                operation, left, [i], right, [i], stamped(i)
            )
            for i in range(start, start + batch)
        ]
        for handle in handles:
            agent.transfer(handle)
        for handle in handles:
            deadline.finish(agent, handle)
            handle.release()


def begin(there, method, key):
    """Run a method of the endpoint in the background; returns its result."""
    if hasattr(there, "ask"):
        there.send(method, key, SLOT, SLOTS)
        return lambda: there.answer(deadline.PATIENCE)
    pool = concurrent.futures.ThreadPoolExecutor(1)
    future = pool.submit(getattr(there, method), key, SLOT, SLOTS)
    pool.shutdown(wait=False)
    return lambda: future.result(deadline.PATIENCE)


# -- failed transfers --------------------------------------------------------


@pytest.mark.nixl_differs("UCX gives the peer up after a failed transfer")
@pytest.mark.beyond_stock
def test_a_transfer_that_fails_sends_no_notification(api, endpoint, peer):
    """The peer's memory is gone; the agent and the peer still work."""
    here, there = endpoint(), peer()
    remote = there.alloc(1 << 20)
    local = here.alloc(1 << 20)
    here.add(there.metadata())
    there.unmap(remote.key)
    key = here.initialize(
        "WRITE",
        [(local.addr, 1 << 20, 0)],
        [(remote.addr, 1 << 20, 0)],
        there.name,
        b"must not come",
    )
    handle = here.handles[key]
    with pytest.raises(api.nixlBackendError, match="NIXL_ERR_BACKEND"):
        deadline.run(here.agent, handle)
    here.send_notif(there.name, b"after")
    assert there.gather_notifs(1) == [(here.name, b"after")]


# -- the accumulating calls --------------------------------------------------


def test_update_notifs_keeps_unhandled_messages(pair):
    here, there = pair
    there.send_notif(here.name, b"one")
    agent = here.agent
    deadline.until(lambda: agent.update_notifs(), "the first")
    there.send_notif(here.name, b"two")
    name = there.name
    deadline.until(
        lambda: agent.update_notifs() == {name: [b"one", b"two"]}, "both"
    )
    assert agent.get_new_notifs() == {}
    assert agent.notifs == {name: [b"one", b"two"]}


def test_check_remote_xfer_done_removes_only_the_match(pair):
    here, there = pair
    agent, name = here.agent, there.name
    for message in (b"req1:a", b"req2:b", b"req1:c"):
        there.send_notif(here.name, message)
    deadline.until(
        lambda: len(agent.update_notifs().get(name, [])) == 3, "all three"
    )
    assert agent.check_remote_xfer_done(name, b"req1")
    assert agent.notifs[name] == [b"req2:b", b"req1:c"]
    assert agent.check_remote_xfer_done(name, b"req1:c")
    assert not agent.check_remote_xfer_done(name, b"req1")
    assert not agent.check_remote_xfer_done(name, b":b")
    assert agent.check_remote_xfer_done(name, b":b", tag_is_prefix=False)
    assert agent.notifs[name] == []
    assert not agent.check_remote_xfer_done("nobody", b"req1")


# -- pending notifications are bounded ---------------------------------------

BOUNDED = 256 << 20


@pytest.mark.slow
@pytest.mark.beyond_stock
def test_pending_notifications_are_bounded(pair):
    """The oldest are dropped and counted."""
    here, there = pair
    size = 8 << 20
    count = BOUNDED // size + 12
    for number in range(count):
        # The sender's own queue is bounded, too.
        deadline.until(
            lambda least=number - 16: arrived(there) > least, "the first ones"
        )
        head = number.to_bytes(4, "big")
        here.send_notif(there.name, head + bytes(size - 4))
    here.send_notif(there.name, b"last")

    deadline.until(lambda: arrived(there) == count + 1, "all of them")
    stats = there.call("stats")
    assert stats["notif_bytes_pending"] <= BOUNDED
    assert 12 <= stats["notifs_dropped"] <= 14
    kept = count + 1 - stats["notifs_dropped"]
    assert stats["notifs_pending"] == kept
    got = there.heads(4)
    assert got[-1] == b"last"
    numbers = [int.from_bytes(head, "big") for head in got[:-1]]
    assert numbers == list(range(count - kept + 1, count))


def arrived(there):
    return there.call("stats")["notifs_received"]


@pytest.mark.beyond_stock
@pytest.mark.parametrize("call", ["get_new_notifs", "update_notifs"])
def test_nothing_is_lost_when_memory_runs_out(module, call):
    """At each allocation in turn."""
    pytest.importorskip("_testcapi", reason="no _testcapi in this Python")
    run_program(
        f"""
        import _testcapi, gc
        from vllm_nixl import NixlAgent

        with NixlAgent("a") as agent:
            gc.disable()
            failures = 0
            for allocation in range(100):
                agent.notifs.clear()
                sent = [b"message %d" % i for i in range(20)]
                for message in sent:
                    agent.send_notif("a", message)
                try:
                    _testcapi.set_nomemory(allocation, allocation + 1)
                    got = agent.{call}()
                except MemoryError:
                    got = None
                finally:
                    _testcapi.remove_mem_hooks()
                if got is None:
                    failures += 1
                    got = agent.{call}()
                assert got == {{"a": sent}}, (allocation, got)
            assert 20 < failures < 100, failures
        """,
        env={"VLLM_NIXL_ENGINE": "native", "VLLM_NIXL_UCX_LIBRARY": "none"},
    )
