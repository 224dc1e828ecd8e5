"""describe() and stats() of agents and side channels: every key and its type,
and that values follow events.
"""

import json
import re
from pathlib import Path

import pytest
from support.deadline import error_of, until
from support.transports import TRANSPORTS

pytestmark = pytest.mark.beyond_stock

HERE = "127.0.0.1"
SIZE = 4096
DOCS = Path(__file__).resolve().parents[2] / "docs"

AGENT = {
    "engine": str,
    "engine_why": str,
    "metadata_signed": bool,
    "peers": int,
    "backends": list,
    "reach": str,
    "regions": int,
}
AGENT_OF = {
    "native": {"num_threads": int, "accepted_links": int},
    "nixl": {"library": str},
}
UCX = {"ucx": str, "ucx_guard": str, "ucx_workers": int}
PEER = {  # and those of peers(): test_peers.py
    "generation": int,
    "state": str,
    "path": str,
    "pid": int,
    "why": str,
    "regions": int,
    "transfers": int,
    "bytes": int,
    "notifs_sent": int,
}
PEER_OF = {
    "native": {
        "regions_direct": int,
        "regions_confirmed": int,
        "routes": list,
    },
    "nixl": {},
}
COUNTERS = [
    "xfers_posted",
    "xfers_done",
    "xfers_failed",
    "xfers_cancelled",
    "reads_done",
    "writes_done",
    "bytes_read",
    "bytes_written",
    "last_bytes_read",
    "last_bytes_written",
    "rows",
    "pieces",
    "notifs_sent",
    "notifs_received",
    "notifs_dropped",
    "notifs_pending",
    "notif_bytes_pending",
    "peers",
    "peers_lost",
    "regions",
    "bytes_registered",
    "bytes_registered_total",
    "bytes_deregistered_total",
    "last_bytes_registered",
    "last_bytes_deregistered",
    "live_dlists",
    "live_xfers",
    "xfer_us_sum",
    "post_us_sum",
    "last_xfer_us",
    "last_post_us",
    "notif_wait_us_sum",
    "listener_accepted",
    "listener_open",
    "listener_refused",
    "listener_timed_out",
    "listener_evicted",
    "listener_loaded",
    "listener_load_failures",
    "listener_served",
    "listener_invalidated",
    "listener_sent",
    "listener_send_failures",
    "listener_pending",
]
HISTOGRAMS = {
    "xfer_us_log2": 32,
    "post_us_log2": 32,
    "notif_wait_us_log2": 32,
    "xfer_us_nixl": 19,
    "post_us_nixl": 19,
}


def has_shape(value, shape):
    """Check that all keys of the shape are present, with their types."""
    wrong = {
        key: value.get(key)
        for key, kind in shape.items()
        if type(value.get(key)) is not kind
    }
    assert wrong == {}


def page_keys(heading):
    """The keys in the first column of a table in docs/telemetry.md."""
    if not DOCS.is_dir():
        pytest.skip("the documentation is not beside the tests")
    text = (DOCS / "telemetry.md").read_text()
    part = text.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    cells = [row.split("|")[1] for row in part.splitlines() if "| `" in row]
    return {key for cell in cells for key in re.findall(r"`(\w+)`", cell)}


# -- The agent ---------------------------------------------------------------


def test_describe_has_every_agent_key(endpoint, engine):
    here = endpoint()
    described = here.agent.describe()
    assert described["engine"] == engine.env["VLLM_NIXL_ENGINE"]
    has_shape(described, {**AGENT, **AGENT_OF[described["engine"]]})
    assert described["backends"] == ["UCX"]
    if described["engine"] == "nixl":
        assert Path(described["library"]).name == "libnixl_capi.so"
        assert described["ucx_guard"].startswith("on: ")
    elif "ucx" in described:
        has_shape(described, UCX)
        assert described["ucx_guard"].startswith("on: ")
        assert "of other hosts" in described["reach"]
    else:
        assert "other hosts cannot be reached" in described["reach"]
    assert json.loads(json.dumps(described)) == described
    assert set(described) <= page_keys("agent.describe()")


def test_describe_lists_backends_and_peers(endpoint):
    here, there = endpoint(), endpoint()
    before = here.agent.describe()
    assert (before["peers"], before["regions"]) == (0, 0)
    block = here.alloc(SIZE)
    here.alloc(SIZE)
    here.add(there.metadata())
    after = here.agent.describe()
    assert (after["peers"], after["regions"]) == (1, 2)
    here.deregister(block.key)
    here.remove(there.name)
    last = here.agent.describe()
    assert (last["peers"], last["regions"]) == (0, 1)


def test_describe_without_a_backend_has_no_engine(api, names, monkeypatch):
    monkeypatch.delenv("VLLM_NIXL_ENGINE", raising=False)
    config = api.nixl_agent_config(backends=[])
    with api.NixlAgent(names(), config) as agent:
        before = agent.describe()
        assert before["peers"] == 0
        assert not before.get("backends")
        agent.create_backend("SHM", {})
        after = agent.describe()
    assert after["engine"] == "native"
    assert after["backends"] == ["SHM"]
    assert "(SHM)" in after["engine_why"]


def test_description_belongs_to_the_caller(endpoint):
    here = endpoint()
    first = here.agent.describe()
    first["peers"] = "spoilt"
    first["backends"].append("spoilt")
    assert here.agent.describe()["peers"] == 0
    assert here.agent.describe()["backends"] == ["UCX"]


# -- A peer ------------------------------------------------------------------


def test_describe_has_every_peer_key(engine, pair):
    here, there = pair
    described = here.agent.describe(there.name)
    kind = engine.env["VLLM_NIXL_ENGINE"]
    has_shape(described, {**PEER, **PEER_OF[kind]})
    if kind == "native":
        assert described["pid"] == there.pid()
    assert described["generation"] >= 1
    assert json.loads(json.dumps(described)) == described
    assert set(described) <= page_keys("agent.describe(peer)") | page_keys(
        "agent.peers()"
    )


def test_page_has_every_key_of_peers(pair):
    here, there = pair
    told = here.agent.peers()[there.name]
    assert page_keys("agent.peers()") == {*told, "cause"}


def test_describe_reports_same_host_transport(engine, pair):
    here, there = pair
    path = here.agent.describe(there.name)["path"]
    if engine.name.startswith("nixl"):
        assert path == "UCX"
    elif not engine.two_processes:
        assert path == "process"
    else:
        assert path in ("SHM", "process_vm", "host"), path


def test_describe_explains_every_route(engine, pair):
    """The first route is that of CPU memory; each faster transport has a
    reason, each slower one has none."""
    if engine.name.startswith("nixl"):
        pytest.skip("NIXL's library chooses among its backends")
    here, there = pair
    told = here.agent.describe(there.name)
    for route in told["routes"]:
        has_shape(route, {"local": str, "remote": str, "not": dict})
        assert all(route["not"].values())
        assert route["transport"] not in route["not"]
    first = told["routes"][0]
    assert (first["local"], first["remote"]) == ("DRAM", "DRAM")
    assert first["transport"] == told["path"]
    faster = ["process", "SHM", "UCX"]
    assert list(first["not"]) == faster[: faster.index(told["path"])]


def test_peer_counters_follow_transfers(endpoint, other):
    here, there = endpoint(), other()
    local, remote = here.alloc(SIZE), there.alloc(SIZE, seed=2)
    here.add(there.metadata())
    for count in range(1, 4):
        here.move(
            "READ",
            [(local.addr, SIZE, 0)],
            [(remote.addr, SIZE, 0)],
            there.name,
        )
        here.send_notif(there.name, b"x")
        described = here.agent.describe(there.name)
        assert described["transfers"] == count
        assert described["bytes"] == count * SIZE
        assert described["notifs_sent"] == count
    assert described["regions"] == 1


def test_restarted_peer_has_a_later_generation(endpoint, names):
    here, name = endpoint(), names()
    seen = []
    for _ in range(3):
        there = endpoint(name)
        here.add(there.metadata())
        seen.append(here.agent.describe(name)["generation"])
        there.close()
    assert seen == sorted(set(seen))


# -- Counters ----------------------------------------------------------------


def test_counters_start_at_zero(endpoint):
    stats = endpoint().agent.stats()
    assert set(stats) == {*COUNTERS, *HISTOGRAMS, "failures", "refusals"}
    assert set(stats) == page_keys("agent.stats()")
    assert {key: stats[key] for key in COUNTERS if stats[key]} == {}
    assert all(type(stats[key]) is int for key in COUNTERS)
    assert stats["failures"] == stats["refusals"] == {}
    for key, size in HISTOGRAMS.items():
        assert stats[key] == [0] * size


def test_counters_follow_transfers(endpoint):
    here, there = endpoint(), endpoint()
    local, remote = here.alloc(SIZE), there.alloc(SIZE)
    here.add(there.metadata())
    left, right = [(local.addr, SIZE, 0)], [(remote.addr, SIZE, 0)]
    for _ in range(2):
        here.move("READ", left, right, there.name)
    here.move("WRITE", left, right, there.name, b"done")
    there.gather_notifs(1)
    stats = here.agent.stats()
    assert stats["xfers_posted"] == stats["xfers_done"] == 3
    assert stats["bytes_read"] == 2 * SIZE
    assert stats["bytes_written"] == SIZE
    assert stats["rows"] == stats["pieces"] == 3
    assert stats["notifs_sent"] == 1
    assert (stats["reads_done"], stats["writes_done"]) == (2, 1)
    assert stats["last_bytes_read"] == stats["last_bytes_written"] == SIZE
    assert sum(stats["xfer_us_log2"]) == sum(stats["post_us_log2"]) == 3
    assert sum(stats["xfer_us_nixl"]) == sum(stats["post_us_nixl"]) == 3
    assert stats["last_post_us"] <= stats["post_us_sum"]
    assert stats["last_xfer_us"] <= stats["xfer_us_sum"]
    assert stats["xfers_failed"] == stats["xfers_cancelled"] == 0
    stats = there.agent.stats()
    assert stats["notifs_received"] == 1
    assert sum(stats["notif_wait_us_log2"]) == 1


def test_refused_calls_are_counted_by_status(endpoint):
    here, there = endpoint(), endpoint()
    local, remote = here.alloc(SIZE), there.alloc(SIZE)
    here.add(there.metadata())
    agent = here.agent
    good = agent.get_xfer_descs([(local.addr, SIZE, 0)], "DRAM")
    far = agent.get_xfer_descs([(remote.addr, SIZE, 0)], "DRAM")
    bad = agent.get_xfer_descs([(64, SIZE, 0)], "DRAM")
    for call in (
        lambda: agent.prep_xfer_dlist("", bad),
        lambda: agent.prep_xfer_dlist(there.name, bad),
        lambda: agent.prep_xfer_dlist("nobody", far),
        lambda: agent.initialize_xfer("READ", bad, far, there.name),
        lambda: agent.initialize_xfer("READ", good, bad, there.name),
        lambda: agent.initialize_xfer("READ", good, far, "nobody"),
    ):
        assert error_of(call) == "nixlNotFoundError"
    assert agent.stats()["refusals"] == {"NIXL_ERR_NOT_FOUND": 6}
    assert agent.stats()["failures"] == {}


def test_counters_follow_registrations(endpoint):
    here = endpoint()
    first = here.alloc(SIZE)
    here.alloc(3 * SIZE)
    stats = here.agent.stats()
    assert (stats["regions"], stats["bytes_registered"]) == (2, 4 * SIZE)
    here.deregister(first.key)
    stats = here.agent.stats()
    assert (stats["regions"], stats["bytes_registered"]) == (1, 3 * SIZE)
    assert stats["bytes_registered_total"] == 4 * SIZE
    assert stats["last_bytes_registered"] == 3 * SIZE
    assert stats["last_bytes_deregistered"] == SIZE
    assert stats["bytes_deregistered_total"] == SIZE


def test_counters_of_live_objects_decrease(endpoint):
    here, there = endpoint(), endpoint()
    local, remote = here.alloc(SIZE), there.alloc(SIZE)
    here.add(there.metadata())
    left = here.prepare("", [(local.addr, SIZE, 0)])
    right = here.prepare(there.name, [(remote.addr, SIZE, 0)])
    handle = here.make("READ", left, right)
    stats = here.agent.stats()
    assert (stats["live_dlists"], stats["live_xfers"]) == (2, 1)
    for key in (handle, left, right):
        here.release(key)
    stats = here.agent.stats()
    assert (stats["live_dlists"], stats["live_xfers"]) == (0, 0)


def test_pending_notifications_are_counted(endpoint):
    here, there = endpoint(), endpoint()
    there.add(here.metadata())
    for size in (1, 10, 100):
        there.send_notif(here.name, bytes(size))
    until(lambda: here.agent.stats()["notifs_pending"] == 3, "3 notifications")
    assert here.agent.stats()["notif_bytes_pending"] >= 111
    here.take_notifs()
    stats = here.agent.stats()
    assert stats["notifs_pending"] == stats["notif_bytes_pending"] == 0
    assert stats["notifs_received"] == 3


# -- The metadata listener ---------------------------------------------------


def test_describe_has_every_listener_key(endpoint):
    here = endpoint(enable_listen_thread=True, listen_port=0, listen_host=HERE)
    told = here.agent.describe()["metadata_listener"]
    assert told["port"] == here.agent.listen_port
    assert "last_failure" not in told or not told["last_failure"]
    there = endpoint()
    there.agent.send_local_metadata(HERE, here.agent.listen_port)
    until(lambda: here.agent.stats()["listener_loaded"] == 1, "its metadata")
    there.agent.send_local_metadata(HERE, 1)  # no listener on that port
    until(
        lambda: there.agent.stats()["listener_send_failures"] == 1,
        "the failure",
    )
    failure = there.agent.describe()["metadata_listener"]["last_failure"]
    assert "127.0.0.1" in failure


# -- Side channels -----------------------------------------------------------


@pytest.fixture(params=TRANSPORTS, ids=lambda row: row.name)
def channel(request, module):
    with request.param.make() as made:
        yield made


def documented():
    """The documented counters and reasons for refusals."""
    text = (DOCS / "side_channel.md").read_text()
    part = text.split("### Counters", 1)[1].split("\n##", 1)[0]
    reasons = re.search(r"by reason \(([^)]*)\)", part).group(1)
    rest = part.replace(reasons, "").replace("`stats()`", "")
    return re.findall(r"`(\w+)`", rest), re.findall(r"`(\w+)`", reasons)


def test_side_channel_counters_match_the_documentation(channel):
    if not DOCS.is_dir():
        pytest.skip("the documentation is not beside the tests")
    counters, reasons = documented()
    stats = channel.stats()
    assert sorted(stats) == sorted(counters)
    assert sorted(stats["refusals"]) == sorted(reasons)
    assert len(stats["latency"]) == 32
    assert not any(stats["refusals"].values())


def test_side_channels_count_replies_and_unknown_keys(channel):
    port = channel.start_listener(0, {"a": b"first"}, host=HERE)
    for _ in range(3):
        assert channel.request_metadata(HERE, port, key="a") == b"first"
    with pytest.raises(Exception, match="'b'"):
        channel.request_metadata(HERE, port, key="b")
    until(lambda: sum(channel.stats()["latency"]) == 3, "three replies")
    stats = channel.stats()
    assert sum(stats["latency"]) == stats["served"]
    assert stats["refused"] == sum(stats["refusals"].values())
    assert stats["refusals"]["unknown_key"] == 1
    assert stats["bytes_sent"] >= 3 * len(b"first")
    channel.shutdown()
    assert channel.stats()["served"] == stats["served"]
