"""Eight threads make all calls concurrently on one agent."""

import contextlib
import random
import threading
import time

import pytest
from support import deadline
from support.memory import pattern

pytestmark = [pytest.mark.slow, pytest.mark.beyond_stock]

SECONDS = 10
PIECE = 4096
PIECES = 64
SIZE = PIECE * PIECES
WIDE = 16  # times SIZE: enough to be cancelled in flight


class Crowd:
    """One agent, one peer, and the operations of the threads."""

    def __init__(self, here, there):
        self.here, self.there = here, there
        self.agent, self.peer = here.agent, there.name
        self.remote = there.alloc(SIZE, seed=1)
        self.free = there.alloc(SIZE * 8)
        self.local = [here.alloc(SIZE) for _ in range(8)]
        # Rows for cancelled transfers; no two of them overlap.
        self.wide = [here.alloc(SIZE * WIDE) for _ in range(8)]
        here.add(there.metadata())
        there.add(here.metadata())
        self.source = pattern(1, SIZE)
        self.rows = [
            (self.remote.addr + i * PIECE, PIECE, 0) for i in range(PIECES)
        ]
        self.right = self.agent.prep_xfer_dlist(self.peer, self.rows, "DRAM")
        self.stop = threading.Event()
        self.errors = []
        self.sent = self.got = 0
        self.lock = threading.Lock()

    def left_rows(self, number):
        base = self.local[number].addr
        return [(base + i * PIECE, PIECE, 0) for i in range(PIECES)]

    def wide_rows(self, number):
        base = self.wide[number].addr
        return [(base + i * PIECE, PIECE, 0) for i in range(PIECES * WIDE)]

    def read(self, number, dice):
        """READ scattered pieces by index and check each byte."""
        left = self.agent.prep_xfer_dlist("", self.left_rows(number), "DRAM")
        to = dice.sample(range(PIECES), dice.randint(1, 20))
        start = [dice.randrange(PIECES) for _ in to]
        handle = self.agent.make_prepped_xfer(
            "READ", left, to, self.right, start
        )
        left.release()
        deadline.run(self.agent, handle)
        view = self.here.buffers[self.local[number].key].view
        for target, origin in zip(to, start, strict=True):
            want = self.source[origin * PIECE :][:PIECE]
            got = view[target * PIECE :][:PIECE]
            assert got == want, "a piece is wrong"
        handle.release()

    def write(self, number, dice):
        """WRITE by descriptor lists with a notification; wait by event."""
        size = dice.choice([1, 100, PIECE, SIZE])
        local, remote = self.local[number], self.free.addr + number * SIZE
        agent = self.agent
        handle = agent.initialize_xfer(
            "WRITE",
            agent.get_xfer_descs([(local.addr, size, 0)], "DRAM"),
            agent.get_xfer_descs([(remote, size, 0)], "DRAM"),
            self.peer,
            b"written",
        )
        with self.lock:
            self.sent += 1
        agent.transfer(handle)
        assert agent.wait([handle], timeout=30) == [handle]
        assert agent.check_xfer_states([handle]) == ["DONE"]
        assert agent.get_xfer_telemetry(handle).totalBytes == size

    def cancel(self, number, dice):
        handle = self.agent.make_prepped_xfer(
            "READ",
            self.agent.prep_xfer_dlist("", self.wide_rows(number), "DRAM"),
            list(range(PIECES * WIDE)),
            self.right,
            list(range(PIECES)) * WIDE,
        )
        self.agent.transfer(handle)
        if dice.random() < 0.5:
            self.agent.cancel(handle)
        handle.release()

    def register(self, number, dice):
        base, size = self.local[number].addr, dice.randint(1, SIZE)
        rows = self.agent.register_memory([(base, size, 0, "")], "DRAM")
        self.agent.get_agent_metadata()
        self.agent.get_partial_agent_metadata(rows, True)
        self.agent.deregister_memory(rows)

    def reload(self, number, dice):
        self.agent.add_remote_agent(self.blob)
        assert self.agent.check_remote_metadata(self.peer)
        self.agent.make_connection(self.peer)

    def look(self, number, dice):
        assert self.agent.stats()["xfers_failed"] == 0
        assert self.agent.describe(self.peer)["generation"] == 1
        self.agent.describe()
        self.agent.get_plugin_list()
        self.agent.fileno()

    def notify(self, number, dice):
        self.agent.send_notif(self.peer, bytes(dice.randint(0, 5000)))
        with self.lock:
            self.sent += 1

    def take(self, number, dice):
        self.agent.send_notif(self.here.name, b"to myself")
        for messages in self.agent.get_new_notifs().values():
            with self.lock:
                self.got += len(messages)

    def fail(self, number, dice):
        """Errors on one thread do not affect another."""
        with pytest.raises(Exception, match="NIXL_ERR_NOT_FOUND"):
            self.agent.prep_xfer_dlist("", [(1, 1, 0)], "DRAM")

    def work(self, number):
        dice = random.Random(number)
        deeds = [
            self.read,
            self.read,
            self.write,
            self.cancel,
            self.register,
            self.reload,
            self.look,
            self.notify,
            self.take,
            self.fail,
        ]
        done = 0
        try:
            while not self.stop.is_set():
                dice.choice(deeds)(number, dice)
                done += 1
        except BaseException as error:
            self.errors.append(error)
            self.stop.set()
        with self.lock:
            self.done = getattr(self, "done", 0) + done


def test_eight_threads_run_all_calls_concurrently(pair):
    crowd = Crowd(*pair)
    crowd.blob = crowd.there.metadata()
    threads = [threading.Thread(target=crowd.work, args=[i]) for i in range(8)]
    for thread in threads:
        thread.start()
    end = time.monotonic() + SECONDS
    received = 0
    while time.monotonic() < end and not crowd.stop.is_set():
        received += len(crowd.there.heads(0))
        time.sleep(0.05)
    crowd.stop.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert crowd.errors == []
    assert crowd.done > 100

    def all_came():
        nonlocal received
        received += len(crowd.there.heads(0))
        return received >= crowd.sent

    deadline.until(all_came, "the last notifications")
    assert received == crowd.sent
    assert crowd.there.heads(0) == []
    stats = crowd.agent.stats()
    assert stats["xfers_failed"] == 0
    ended = stats["xfers_done"] + stats["xfers_cancelled"]
    assert stats["xfers_posted"] == ended
    assert crowd.there.checksum(crowd.remote.key) == memory_sum(crowd)


def memory_sum(crowd):
    import zlib

    return zlib.crc32(crowd.source)


def test_threads_may_load_and_remove_the_same_peer(api, pair):
    """Two threads that added a peer again used to crash routers."""
    here, there = pair
    remote = there.alloc(SIZE, seed=2)
    ours = here.alloc(SIZE), here.alloc(SIZE)
    blob = there.metadata()
    stop = threading.Event()
    errors = []

    def guard(deed):
        def loop():
            try:
                while not stop.is_set():
                    deed()
            except BaseException as error:
                errors.append(error)

        return threading.Thread(target=loop)

    def move(local):
        gone = (api.nixlNotFoundError, api.nixlRemoteDisconnectError)
        with contextlib.suppress(gone):
            here.move(
                "READ",
                [(local.addr, SIZE, 0)],
                [(remote.addr, SIZE, 0)],
                there.name,
            )

    threads = [
        guard(lambda: here.add(blob)),
        guard(lambda: here.add(blob)),
        guard(lambda: here.remove(there.name)),
        guard(lambda: move(ours[0])),
        guard(lambda: move(ours[1])),
    ]
    for thread in threads:
        thread.start()
    time.sleep(3)
    stop.set()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert errors == []
    here.add(blob)
    move(ours[0])
    assert here.read(ours[0].key) == pattern(2, SIZE)


def test_agent_may_be_closed_under_load(api, endpoint):
    """Calls in progress return an error; none crashes or hangs."""
    for _ in range(20):
        errors = close_in_the_middle(endpoint(), endpoint())
        for error in errors:
            assert isinstance(error, (api.NixlError, AssertionError)), error


def close_in_the_middle(here, there):
    crowd = Crowd(here, there)
    crowd.blob = there.metadata()
    threads = [threading.Thread(target=crowd.work, args=[i]) for i in range(4)]
    for thread in threads:
        thread.start()
    deadline.until(lambda: here.agent.stats()["xfers_done"] > 3, "some work")
    here.agent.close()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return crowd.errors
