"""agent.peers(): the state and the counters of each peer, and that the
agent's totals in stats() are sums over all peers that there ever were.
"""

import json
import threading

import pytest
from support.deadline import until

pytestmark = pytest.mark.beyond_stock

SIZE = 4096
TIMES = 32

SHAPE = {
    "generation": int,
    "state": str,
    "path": str,
    "pid": int,
    "transfers": int,
    "reads_done": int,
    "writes_done": int,
    "bytes_read": int,
    "bytes_written": int,
    "rows": int,
    "pieces": int,
    "in_flight": int,
    "failures": dict,
    "xfer_us_sum": int,
    "xfer_us_log2": list,
    "notifs_sent": int,
    "notifs_received": int,
}


def move(here, there, operation="READ", count=1, notif=b""):
    """Transfer `count` rows between new buffers of two endpoints."""
    local, remote = here.alloc(2 * count * SIZE), there.alloc(2 * count * SIZE)
    here.add(there.metadata())

    def rows(block):  # none of them is contiguous with the next
        return [(block.addr + 2 * i * SIZE, SIZE, 0) for i in range(count)]

    here.move(operation, rows(local), rows(remote), there.name, notif)


# -- Keys --------------------------------------------------------------------


def test_peers_of_an_agent_that_knows_none(endpoint, inproc):
    assert endpoint().agent.peers() == {}


def test_peers_of_an_agent_without_a_backend(api, names):
    config = api.nixl_agent_config(backends=[])
    with api.nixl_agent(names(), config) as agent:
        assert agent.peers() == {}


def test_each_peer_has_every_key(engine, pair):
    here, there = pair
    peers = here.agent.peers()
    assert list(peers) == [there.name]
    told = peers[there.name]
    assert {key: type(value) for key, value in told.items()} == SHAPE
    assert told["failures"] == {}
    assert told["xfer_us_log2"] == [0] * TIMES
    if engine.name.startswith("nixl"):
        assert told["pid"] == 0
    else:
        assert told["pid"] == there.pid()
    assert json.loads(json.dumps(peers)) == peers


def test_a_peer_is_described_alike(pair):
    here, there = pair
    move(here, there)
    told = here.agent.peers()[there.name]
    described = here.agent.describe(there.name)
    assert told.items() <= described.items()
    assert described["bytes"] == told["bytes_read"] == SIZE


def test_result_belongs_to_the_caller(pair):
    here, there = pair
    here.agent.peers()[there.name]["failures"]["spoilt"] = 1
    here.agent.peers().clear()
    assert here.agent.peers()[there.name]["failures"] == {}


def test_names_are_those_of_other_calls(api, endpoint, inproc):
    here = endpoint()
    names = ["plain", 'quo"te\\', "ünï", "☃😀", "\udcff\udcc3x"]
    if inproc.name.startswith("native"):
        names.append("zero\0")  # NIXL refuses this one
    for name in names:
        with api.nixl_agent(name) as agent:
            here.add(agent.get_agent_metadata())
    assert sorted(here.agent.peers()) == sorted(names)
    assert all(here.agent.describe(name) for name in here.agent.peers())


def test_closed_agent_refuses(api, endpoint, inproc):
    here = endpoint()
    here.agent.close()
    with pytest.raises(api.nixlClosedError, match="peers"):
        here.agent.peers()


# -- Counters ----------------------------------------------------------------


def test_counters_of_each_peer(endpoint, other):
    here, left, right = endpoint(), other(), other()
    move(here, left)
    move(here, left, "READ", 3)
    move(here, right, "WRITE", 2, b"done")
    here.send_notif(right.name, b"more")
    right.add(here.metadata())
    right.send_notif(here.name, b"thanks")
    until(
        lambda: here.agent.peers()[right.name]["notifs_received"] == 1,
        "the notification",
    )
    peers = here.agent.peers()
    told = peers[left.name]
    assert (told["transfers"], told["reads_done"]) == (2, 2)
    assert (told["rows"], told["pieces"]) == (4, 4)
    assert told["bytes_read"] == 4 * SIZE
    assert told["writes_done"] == told["bytes_written"] == 0
    assert told["notifs_sent"] == told["notifs_received"] == 0
    told = peers[right.name]
    assert (told["transfers"], told["writes_done"]) == (1, 1)
    assert (told["rows"], told["bytes_written"]) == (2, 2 * SIZE)
    assert told["reads_done"] == told["bytes_read"] == 0
    assert told["notifs_sent"] == 2
    for told in peers.values():
        assert told["in_flight"] == 0
        assert sum(told["xfer_us_log2"]) == told["transfers"]
    stats = here.agent.stats()
    assert stats["xfers_posted"] == stats["xfers_done"] == 3
    for key in "reads_done", "writes_done", "rows", "pieces", "notifs_sent":
        assert stats[key] == sum(told[key] for told in peers.values())
    assert stats["notifs_received"] == 1
    assert stats["last_bytes_read"] == 3 * SIZE
    assert stats["last_bytes_written"] == 2 * SIZE


def test_merged_rows_are_fewer_pieces(pair):
    here, there = pair
    local, remote = here.alloc(8 * SIZE), there.alloc(8 * SIZE)
    here.add(there.metadata())

    def rows(block):
        return [(block.addr + i * SIZE, SIZE, 0) for i in range(8)]

    here.move("READ", rows(local), rows(remote), there.name)
    told = here.agent.peers()[there.name]
    assert (told["rows"], told["pieces"]) == (8, 1)


def test_transfer_in_flight(busy, pair):
    here, there = pair
    assert here.agent.peers()[there.name]["in_flight"] == 1
    here.agent.cancel(busy[1])
    told = here.agent.peers()[there.name]
    assert told["in_flight"] == told["transfers"] == 0
    assert told["failures"] == {}
    assert here.agent.stats()["xfers_cancelled"] == 1


def test_failures_are_counted_by_status(api, pair):
    here, there = pair
    local, remote = here.alloc(SIZE), there.alloc(SIZE)
    here.add(there.metadata())
    handle = here.initialize(
        "READ",
        [(local.addr, SIZE, 0)],
        [(remote.addr, SIZE, 0)],
        there.name,
    )
    here.deregister(local.key)
    for count in 1, 2:
        with pytest.raises(api.nixlNotFoundError):
            here.post(handle)
        told = here.agent.peers()[there.name]
        assert told["failures"] == {"NIXL_ERR_NOT_FOUND": count}
        assert told["in_flight"] == told["transfers"] == 0
    here.remove(there.name)
    with pytest.raises(api.nixlRemoteDisconnectError):
        here.post(handle)
    stats = here.agent.stats()
    assert stats["xfers_failed"] == 3
    assert stats["failures"] == {
        "NIXL_ERR_NOT_FOUND": 2,
        "NIXL_ERR_REMOTE_DISCONNECT": 1,
    }


@pytest.mark.nixl_differs("it notices the end of a peer when it uses it")
def test_lost_peer_has_a_cause(pair):
    here, there = pair
    move(here, there)
    there.close()
    until(
        lambda: here.agent.peers()[there.name]["state"] == "lost",
        "the news that the peer is gone",
    )
    told = here.agent.peers()[there.name]
    assert told["cause"]
    assert told["transfers"] == 1
    assert here.agent.stats()["peers_lost"] == 1


def test_totals_keep_what_removed_peers_have_counted(endpoint, other):
    here, there = endpoint(), other()
    move(here, there)
    before = here.agent.stats()
    here.remove(there.name)
    assert here.agent.peers() == {}
    after = here.agent.stats()
    assert after["peers"] == 0
    for key in "xfers_done", "reads_done", "bytes_read", "xfer_us_log2":
        assert after[key] == before[key]


def test_counters_begin_again_with_another_instance(endpoint, other, names):
    here, name = endpoint(), names()
    generations = []
    for count in 1, 2:
        there = other(name)
        move(here, there, "READ", count)
        told = here.agent.peers()[name]
        assert (told["transfers"], told["rows"]) == (1, count)
        assert here.agent.stats()["xfers_done"] == count
        generations.append(told["generation"])
        there.close()
    assert generations[1] > generations[0]


def test_loading_metadata_again_keeps_the_counters(pair):
    here, there = pair
    move(here, there)
    here.add(there.metadata())
    assert here.agent.peers()[there.name]["transfers"] == 1


def test_transfer_within_the_agent(endpoint, inproc):
    """It counts in the totals, but the agent is none of its own peers."""
    here = endpoint()
    block = here.alloc(4 * SIZE)
    left, right = [(block.addr, SIZE, 0)], [(block.addr + SIZE, SIZE, 0)]
    here.move("WRITE", left, right, here.name, b"to myself")
    here.gather_notifs(1)
    assert here.agent.peers() == {}
    stats = here.agent.stats()
    assert (stats["writes_done"], stats["bytes_written"]) == (1, SIZE)
    assert (stats["notifs_sent"], stats["notifs_received"]) == (1, 1)
    told = here.agent.describe(here.name)
    assert (told["writes_done"], told["bytes_written"]) == (1, SIZE)
    assert (told["notifs_sent"], told["notifs_received"]) == (1, 1)


# -- Side effects and threads ------------------------------------------------


def test_looking_at_a_peer_does_not_connect_it(endpoint, other, engine):
    here, there = endpoint(), other()
    here.add(there.metadata())
    first = here.agent.peers()[there.name]
    for _ in range(100):
        told = here.agent.peers()[there.name]
    assert told["path"] == first["path"]
    del told["state"], first["state"]  # it may connect by itself
    assert told == first


def test_threads_look_while_peers_come_and_go(endpoint, inproc):
    here, there = endpoint(), endpoint()
    local, remote = here.alloc(SIZE), there.alloc(SIZE)
    blob, name = there.metadata(), there.name
    failed, moved = [], 0
    over = threading.Event()

    def look():
        done = 0
        while not over.is_set():
            stats = here.agent.stats()
            if stats["xfers_done"] < done or stats["failures"]:
                failed.append(stats)
            done = stats["xfers_done"]
            for told in here.agent.peers().values():
                if sum(told["xfer_us_log2"]) > told["transfers"]:
                    failed.append(told)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            here.add(blob)
            for _ in range(4):
                here.move(
                    "READ",
                    [(local.addr, SIZE, 0)],
                    [(remote.addr, SIZE, 0)],
                    name,
                )
                moved += 1
            here.remove(name)
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert not failed
    assert here.agent.stats()["xfers_done"] == moved == 200
