"""Prometheus: our collector, NIXL's variables and names, the dashboard."""

import collections
import errno
import gc
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path

import pytest
from support.deadline import PATIENCE, or_kill, until
from support.disk import fill, small_disk
from support.peer import child_environment
from support.ports import reserve_port
from support.telemetry import (
    SCENE,
    run_scene,
    samples,
    start_scene,
    types,
)

pytestmark = pytest.mark.beyond_stock

prometheus_client = pytest.importorskip(
    "prometheus_client", reason="prometheus-client is not installed"
)

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
DEMO = ROOT / "examples" / "kv_demo"
BOUNDS = [
    *("10", "25", "50", "100", "250", "500", "1000", "2500", "5000"),
    *("10000", "25000", "50000", "100000", "250000", "500000", "1000000"),
    *("5000000", "10000000", "+Inf"),
]
STATUSES = [
    *("not_posted", "invalid_param", "backend", "not_found", "mismatch"),
    *("not_allowed", "repost_active", "unknown", "not_supported"),
    *("remote_disconnect", "canceled", "no_telemetry"),
]


def exporting(exporter, **more):
    """The variables for an exporter of the engine native, on a free port."""
    return {
        "VLLM_NIXL_ENGINE": "native",
        "VLLM_NIXL_UCX_LIBRARY": "/nonexistent",
        "NIXL_TELEMETRY_ENABLE": "y",
        "NIXL_TELEMETRY_EXPORTER": exporter,
        "NIXL_TELEMETRY_PROMETHEUS_PORT": str(reserve_port()),
        "NIXL_TELEMETRY_PROMETHEUS_LOCAL": "y",
        **more,
    }


def warnings(log):
    """What our logger wrote about telemetry."""
    return re.findall(r"telemetry is not exported.*|NIXL_TELEMETRY.*", log)


def by_agent(found, name, **labels):
    """The values of a metric that is not 0, by agent."""
    values = {}
    for (key, pairs), value in found.items():
        have = dict(pairs)
        agent = have.pop("agent_name")
        have.pop("hostname")
        if key == name and have == labels and value:
            values[agent] = value
    return values


# -- NIXL's names -------------------------------------------------------------


def test_the_endpoint_has_nixls_names_labels_and_values():
    out, log = run_scene(
        "kept = play()\nprint(scrape())", exporting("prometheus")
    )
    found = samples(out)
    assert warnings(log) == []
    for name, values in {
        "agent_tx_bytes_total": {"alpha": 65536},
        "agent_rx_bytes_total": {"alpha": 4096 * 2 + 3000 + 150000},
        "agent_tx_requests_num_total": {"alpha": 1},
        "agent_rx_requests_num_total": {"alpha": 4},
        "agent_memory_registered_total": {"alpha": 1 << 20, "beta": 1 << 19},
        "agent_memory_deregistered_total": {"beta": 1 << 19},
        "agent_telemetry_events_dropped_total": {},
        "agent_tx_last_bytes": {"alpha": 65536},
        "agent_rx_last_bytes": {"alpha": 4096},
        "agent_memory_registered_last_bytes": {
            "alpha": 1 << 20,
            "beta": 1 << 19,
        },
        "agent_memory_deregistered_last_bytes": {"beta": 1 << 19},
        "agent_xfer_time_us_count": {"alpha": 5},
        "agent_xfer_post_time_us_count": {"alpha": 5},
    }.items():
        assert by_agent(found, name) == values, name
    for status in STATUSES:
        expected = {"alpha": 5} if status == "not_found" else {}
        name = "agent_errors_total"
        assert by_agent(found, name, status=status) == expected, status
    for timer in ("agent_xfer_time", "agent_xfer_post_time"):
        total = by_agent(found, f"{timer}_total")
        assert by_agent(found, f"{timer}_us_sum") == total
        # The last transfer may have taken less than a microsecond.
        last = by_agent(found, timer).get("alpha", 0)
        assert last <= total["alpha"]
        assert [
            dict(labels)["le"]
            for (name, labels) in found
            if name == f"{timer}_us_bucket"
            and ("agent_name", "beta") in labels
        ] == BOUNDS
        counts = [
            by_agent(found, f"{timer}_us_bucket", le=bound).get("alpha", 0)
            for bound in BOUNDS
        ]
        assert counts == sorted(counts)
        assert counts[-1] == 5


def test_the_endpoint_answers_in_the_text_format_only():
    """In OpenMetrics, agent_xfer_time would be a counter and a gauge."""
    out, _ = run_scene(
        "kept = make('a')\nprint(scrape('application/openmetrics-text'))",
        exporting("prometheus"),
    )
    assert "# EOF" not in out
    assert ("agent_xfer_time", "gauge") in types(out)
    assert ("agent_xfer_time_total", "counter") in types(out)


def test_the_endpoint_has_our_metrics_too():
    out, _ = run_scene(
        "kept = play()\nprint(scrape())", exporting("prometheus")
    )
    found = samples(out, "vllm_nixl_")
    labels = (("agent", "alpha"), ("direction", "read"), ("peer", "beta"))
    assert found["vllm_nixl_peer_transfers_done_total", labels] == 4


def test_agents_of_one_name_are_told_apart_and_closed_ones_disappear():
    out, _ = run_scene(
        """
        first = make("a")
        second = make("a")
        print(scrape())
        print("====")
        second.close()
        del first
        gc.collect()
        print(scrape())
        """,
        exporting("prometheus"),
    )
    both, none = out.split("====")
    name = "agent_memory_registered_total"
    size = 1 << 20
    assert by_agent(samples(both), name) == {"a": size, "a#2": size}
    assert samples(none) == {}


def test_only_the_enabled_metrics_have_values():
    out, log = run_scene(
        "kept = play()\nprint(scrape())",
        exporting(
            "prometheus",
            NIXL_TELEMETRY_ENABLED_METRICS="agent_tx_*, agent_err_*,bogus",
        ),
    )
    found = samples(out)
    assert {name for (name, _), value in found.items() if value} == {
        "agent_tx_bytes_total",
        "agent_tx_last_bytes",
        "agent_tx_requests_num_total",
        "agent_errors_total",
    }
    assert by_agent(found, "agent_rx_bytes_total") == {}
    assert samples(out, "vllm_nixl_") == {}
    assert len(re.findall("no metric matches 'bogus'", log)) == 1


# -- When nothing is exported -------------------------------------------------

QUIET = """
import threading
kept = [make("a", capture_telemetry=CAPTURE), make("b")]
assert threading.active_count() == 1, threading.enumerate()
try:
    scrape()
except OSError:
    pass
else:
    raise AssertionError("somebody serves")
assert ("vllm_nixl._telemetry" in sys.modules) == IMPORTED
print("prometheus_client" in sys.modules)
"""


@pytest.mark.parametrize(
    ("change", "capture", "imported"),
    [
        # capture_telemetry alone chooses no exporter, and n vetoes it.
        ({"NIXL_TELEMETRY_EXPORTER": None}, True, False),
        ({"NIXL_TELEMETRY_ENABLE": None}, False, True),
        ({"NIXL_TELEMETRY_ENABLE": "Off"}, True, True),
        ({"NIXL_TELEMETRY_ENABLE": ""}, True, True),
        ({"NIXL_TELEMETRY_EXPORTER": "NOP"}, True, True),
        ({"NIXL_TELEMETRY_EXPORTER": ""}, True, True),
    ],
)
def test_nothing_starts_that_was_not_asked_for(change, capture, imported):
    source = QUIET.replace("CAPTURE", str(capture))
    out, log = run_scene(
        source.replace("IMPORTED", str(imported)),
        {**exporting("prometheus"), **change},
    )
    assert out.split() == ["False"]
    assert warnings(log) == []


@pytest.mark.parametrize("value", ["1", "TRUE", "Enable", None])
def test_an_exporter_is_enabled_by_the_variable_or_the_agent(value):
    env = exporting("prometheus")
    env["NIXL_TELEMETRY_ENABLE"] = value
    out, _ = run_scene(
        "kept = make('a', capture_telemetry=True)\nprint(scrape())", env
    )
    assert ("agent_tx_bytes_total", "counter") in types(out)


WRONG = {
    "NIXL_TELEMETRY_ENABLE must be y or n, not 'maybe'": {
        "NIXL_TELEMETRY_ENABLE": "maybe"
    },
    "the exporters of the engine native are": {
        "NIXL_TELEMETRY_EXPORTER": "doca"
    },
    "NIXL_TELEMETRY_PROMETHEUS_PORT must be a number up to 65535": {
        "NIXL_TELEMETRY_PROMETHEUS_PORT": "0x10000"
    },
    "NIXL_TELEMETRY_PROMETHEUS_LOCAL must be y or n": {
        "NIXL_TELEMETRY_PROMETHEUS_LOCAL": "localhost"
    },
    "NIXL_TELEMETRY_MULTIPROC_DIR is not set": {
        "NIXL_TELEMETRY_EXPORTER": "prometheus_mp"
    },
    "cannot create /proc/none": {
        "NIXL_TELEMETRY_EXPORTER": "prometheus_mp",
        "NIXL_TELEMETRY_MULTIPROC_DIR": "/proc/none",
    },
    "NIXL_TELEMETRY_BUFFER_SIZE must be a power of 2, not 100": {
        "NIXL_TELEMETRY_EXPORTER": None,
        "NIXL_TELEMETRY_DIR": "/tmp",
        "NIXL_TELEMETRY_BUFFER_SIZE": "100",
    },
    "NIXL_TELEMETRY_DIR: cannot write in /proc/none": {
        "NIXL_TELEMETRY_EXPORTER": "BUFFER",
        "NIXL_TELEMETRY_DIR": "/proc/none",
    },
}


@pytest.mark.parametrize("said", WRONG)
def test_a_wrong_variable_costs_one_warning_and_not_the_agent(said):
    out, log = run_scene(
        """
        kept = [make("a"), make("b")]
        kept[0].add_remote_agent(kept[1].get_agent_metadata())
        transfer(*kept, "READ", [10])
        print("moved")
        """,
        {**exporting("prometheus"), **WRONG[said]},
    )
    assert out.split() == ["moved"]
    (warning,) = warnings(log)
    assert said in warning


def test_a_taken_port_costs_one_warning():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        _, log = run_scene(
            "kept = [make('a'), make('b')]",
            exporting("prometheus", NIXL_TELEMETRY_PROMETHEUS_PORT=str(port)),
        )
    (warning,) = warnings(log)
    assert f"cannot listen on 127.0.0.1:{port}" in warning
    assert "Address already in use" in warning


def test_a_missing_prometheus_client_costs_one_warning():
    _, log = run_scene(
        """
        sys.modules["prometheus_client"] = None
        kept = [make('a'), make('b')]
        try:
            import vllm_nixl.metrics
        except ImportError as error:
            assert "pip install 'vllm_nixl[metrics]'" in str(error), error
        else:
            raise AssertionError("imported")
        """,
        exporting("prometheus"),
    )
    (warning,) = warnings(log)
    assert "pip install 'vllm_nixl[metrics]'" in warning


def test_bounds_that_cannot_be_chosen_are_said_once():
    out, log = run_scene(
        "kept = [make('a'), make('b')]\nprint(scrape())",
        exporting("prometheus", NIXL_TELEMETRY_HISTOGRAM_BUCKETS_US="1,2"),
    )
    assert f'le="{BOUNDS[-2]}"' in out
    (warning,) = warnings(log)
    assert "NIXL_TELEMETRY_HISTOGRAM_BUCKETS_US is ignored" in warning


@pytest.mark.parametrize("exporter", ["prometheus", "prometheus_mp"])
def test_a_forked_child_holds_neither_the_port_nor_the_files(
    exporter, tmp_path
):
    """Here the parent ends, while its child lives."""
    out, _ = run_scene(
        """
        import fcntl, glob, socket
        done, end = os.pipe()
        ready, started = os.pipe()
        if os.fork() == 0:
            kept = make("a")
            if os.fork() == 0:
                os.close(end)
                os.write(started, b"x")
                os.read(done, 1)
                kept.close()
                own = make("own")  # on the port that is free again
                print(scrape())
                sys.stdout.flush()
            else:
                os.read(ready, 1)
            os._exit(0)
        os.wait()
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            port = int(os.environ["NIXL_TELEMETRY_PROMETHEUS_PORT"])
            probe.bind(("127.0.0.1", port))
        folder = os.environ["NIXL_TELEMETRY_MULTIPROC_DIR"]
        files = glob.glob(folder + "/*")
        for path in files:
            with open(path, "rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        print("files", len(files))
        sys.stdout.flush()
        os.close(end)
        """,
        exporting(exporter, NIXL_TELEMETRY_MULTIPROC_DIR=str(tmp_path)),
    )
    assert f"files {2 if exporter == 'prometheus_mp' else 0}" in out
    assert 'agent_name="own"' in out


# -- prometheus_mp ------------------------------------------------------------

RANK = """
agent = make(f"rank{os.environ['LOCAL_RANK']}")
print(os.getpid(), flush=True)
for line in sys.stdin:
    print(repr(scrape()), flush=True)
"""


class Ranks:
    """Processes that share a folder and a port."""

    def __init__(self, folder, **more):
        self.env = exporting(
            "prometheus_mp",
            NIXL_TELEMETRY_MULTIPROC_DIR=str(folder),
            NIXL_TELEMETRY_RUN_INTERVAL="20",
            **more,
        )
        self.all = []
        self.pids = []

    def start(self):
        rank = str(len(self.all))
        process = start_scene(RANK, {**self.env, "LOCAL_RANK": rank})
        self.all.append(process)
        self.pids.append(int(self.line(process)))

    def line(self, process):
        """The next line that it prints."""
        with or_kill(process):
            line = process.stdout.readline()
        if not line:
            raise AssertionError(process.stderr.read())
        return line

    def seen(self):
        """The names, pids and instances of the exported agents, if their
        other values are right; the last process asks."""
        process = self.all[-1]
        process.stdin.write("\n")
        process.stdin.flush()
        line = self.line(process)
        return {
            (have["agent_name"], int(have["pid"]), have["agent_instance"])
            for (name, labels), value in samples(eval(line)).items()
            if name == "agent_memory_registered_total"
            for have in [dict(labels)]
            if have["local_rank"] == have["agent_name"].removeprefix("rank")
            and value == 1 << 20
        }

    def is_served(self):
        port = int(self.env["NIXL_TELEMETRY_PROMETHEUS_PORT"])
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def kill(self, index):
        os.kill(self.pids[index], signal.SIGKILL)
        self.all[index].wait()

    def end(self):
        for process in self.all:
            process.kill()
            process.communicate()


@pytest.fixture
def ranks(tmp_path):
    made = []

    def make(**more):
        made.append(Ranks(tmp_path / f"shared{len(made)}", **more))
        return made[-1]

    yield make
    for each in made:
        each.end()


def test_one_process_serves_the_agents_of_all(ranks, tmp_path):
    family = ranks()
    for _ in range(3):
        family.start()
    everybody = {(f"rank{i}", pid, "0") for i, pid in enumerate(family.pids)}
    until(lambda: family.seen() == everybody, "all are exported")
    folder = tmp_path / "shared0"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_size for path in folder.glob("*.mmap")} == {6800}


def test_the_agents_of_a_dead_process_stay_until_they_are_stale(ranks):
    for ttl, left in (("1000000", 3), ("0", 2)):
        family = ranks(NIXL_TELEMETRY_MP_STALE_TTL=ttl)
        for _ in range(3):
            family.start()
        family.kill(1)
        until(
            lambda family=family, left=left: len(family.seen()) == left,
            f"{left} agents are exported",
        )


def test_another_process_serves_when_the_first_one_has_ended(ranks):
    family = ranks()
    family.start()
    family.start()
    until(lambda: len(family.seen()) == 2, "both are exported")
    family.kill(0)
    until(family.is_served, "the other process serves")
    assert {name for name, _, _ in family.seen()} == {"rank0", "rank1"}


def test_the_last_values_of_a_closed_agent_are_written(tmp_path):
    out, _ = run_scene(
        """
        alpha, beta = play()
        alpha.close()
        print(scrape())
        """,
        exporting(
            "prometheus_mp",
            NIXL_TELEMETRY_MULTIPROC_DIR=str(tmp_path),
            NIXL_TELEMETRY_RUN_INTERVAL="1000000",
        ),
    )
    total = collections.Counter()
    for (name, labels), value in samples(out).items():
        total[name, dict(labels)["agent_name"]] += value
    assert total["agent_rx_requests_num_total", "alpha"] == 4
    assert total["agent_xfer_time_us_count", "alpha"] == 5


def test_the_demo_can_be_scraped(ranks):
    """Prefill and decode, on the port of a process that is there before and
    after: their last values do not come before they end."""
    family = ranks()
    family.start()
    demo = subprocess.run(
        [sys.executable, DEMO, "--layers", "4", "--blocks", "32"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=child_environment(family.env),
        timeout=4 * PATIENCE,
    )
    assert demo.returncode == 0, demo.stdout
    port = family.env["NIXL_TELEMETRY_PROMETHEUS_PORT"]
    with urllib.request.urlopen(
        f"http://127.0.0.1:{port}/", timeout=PATIENCE
    ) as answer:
        seen = samples(answer.read().decode())
    read = {
        dict(labels)["agent_name"]: value
        for (name, labels), value in seen.items()
        if name == "agent_rx_bytes_total"
    }
    assert read.keys() == {"prefill", "decode", "rank0"}
    assert read["decode"] > 0
    assert read["prefill"] == 0


# -- BUFFER -------------------------------------------------------------------


def read_ring(path):
    """The events in a ring, by number."""
    data = path.read_bytes()
    write, read, version, again, capacity, mask = struct.unpack_from(
        "=QQIIQQ", data
    )
    assert (version, again, mask) == (4, 4, capacity - 1)
    assert len(data) == 40 + 16 * capacity
    events = collections.Counter()
    while read != write:
        number, value = struct.unpack_from("=B7xQ", data, 40 + 16 * read)
        events[number] += value
        read = (read + 1) % capacity
    return events


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_a_child_of_multiprocessing_writes_its_last_values(start, tmp_path):
    """It ends without a close, and before the next write."""
    script = tmp_path / "script.py"
    script.write_text(
        SCENE.replace("MODULE", '"vllm_nixl"')
        + """
import multiprocessing

def work():
    global kept
    kept = play()

if __name__ == "__main__":
    multiprocessing.set_start_method(START)
    child = multiprocessing.Process(target=work)
    child.start()
    child.join()
    assert child.exitcode == 0
""".replace("START", repr(start))
    )
    folder = tmp_path / "rings"
    folder.mkdir()
    env = exporting(
        "BUFFER",
        NIXL_TELEMETRY_DIR=str(folder),
        NIXL_TELEMETRY_RUN_INTERVAL="1000000",
    )
    subprocess.run(
        [sys.executable, script], env=child_environment(env), check=True
    )
    assert read_ring(folder / "alpha")[3] == 4


def test_a_ring_has_the_growth_of_the_counters(tmp_path):
    run_scene(
        "kept = play()\ntime.sleep(0.1)",  # several writes
        exporting(
            None,
            NIXL_TELEMETRY_DIR=str(tmp_path),
            NIXL_TELEMETRY_RUN_INTERVAL="10",
        ),
    )
    events = read_ring(tmp_path / "alpha")
    assert {n: v for n, v in events.items() if n not in (6, 7)} == {
        0: 65536,
        1: 161192,
        2: 1,
        3: 4,
        4: 1 << 20,
        11: 5,
    }
    # In microseconds.  A transfer may end before its post returns.
    assert events[6] > 0
    assert events[7] > 0
    assert read_ring(tmp_path / "beta") == {4: 1 << 19, 5: 1 << 19}


def test_growth_waits_while_a_ring_is_full(tmp_path):
    """Nobody reads, and the ring holds one event."""
    out, _ = run_scene(
        """
        import struct
        from vllm_nixl._telemetry import values
        alpha, beta = play()
        path = os.path.join(os.environ["NIXL_TELEMETRY_DIR"], "alpha")
        taken = {}
        end = time.monotonic() + 120
        while 11 not in taken and time.monotonic() < end:
            with open(path, "r+b") as file:
                write, read = struct.unpack("=QQ", file.read(16))
                if write == read:
                    time.sleep(0.001)
                    continue
                file.seek(40 + 16 * read)
                number, value = struct.unpack("=B7xQ", file.read(16))
                taken[number] = taken.get(number, 0) + value
                file.seek(8)
                file.write(struct.pack("=Q", (read + 1) % 2))
        print(taken)
        """,
        exporting(
            "BUFFER",
            NIXL_TELEMETRY_DIR=str(tmp_path),
            NIXL_TELEMETRY_RUN_INTERVAL="5",
            NIXL_TELEMETRY_BUFFER_SIZE="2",
        ),
    )
    taken = eval(out)
    assert {n: taken[n] for n in (0, 1, 2, 3, 4, 11)} == {
        0: 65536,
        1: 161192,
        2: 1,
        3: 4,
        4: 1 << 20,
        11: 5,
    }


def test_an_agent_whose_name_is_a_path_gets_no_ring(tmp_path):
    _, log = run_scene(
        "kept = [make('../a'), make('n\\0l'), make('b'), make('b')]",
        exporting("BUFFER", NIXL_TELEMETRY_DIR=str(tmp_path / "")),
    )
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert not (tmp_path.parent / "a").exists()
    path, null, twice = warnings(log)
    assert "the agent's name '../a' cannot be a file name" in path
    assert r"the agent's name 'n\x00l' cannot be a file name" in null
    assert "two agents have the name 'b'" in twice


def test_a_ring_that_cannot_be_written_stops_no_other(tmp_path):
    """Another program has written nonsense into it."""
    out, log = run_scene(
        """
        import struct
        from vllm_nixl import _telemetry
        folder = os.environ["NIXL_TELEMETRY_DIR"]
        bad, good = make("bad"), make("good")
        with _telemetry._lock:  # not between reading and writing of the thread
            with open(os.path.join(folder, "bad"), "r+b") as file:
                file.write(struct.pack("=Q", 1 << 62))
        transfer(bad, bad, "READ", [10])
        end = time.monotonic() + 60

        def events():
            with open(os.path.join(folder, "good"), "rb") as file:
                return struct.unpack("=Q", file.read(8))[0]

        for _ in range(3):
            before = events()
            transfer(good, good, "READ", [10])
            while events() == before:
                assert time.monotonic() < end, "the thread has ended"
                time.sleep(0.001)
        bad.close()
        print("closed")
        """,
        exporting(
            "BUFFER",
            NIXL_TELEMETRY_DIR=str(tmp_path),
            NIXL_TELEMETRY_RUN_INTERVAL="1",
        ),
    )
    assert out.split() == ["closed"]
    assert "telemetry of 'bad' was not written" in log


# -- What the machine lacks ---------------------------------------------------


FILES = {
    "BUFFER": "NIXL_TELEMETRY_DIR",
    "prometheus_mp": "NIXL_TELEMETRY_MULTIPROC_DIR",
}
FULL = """
kept = [make("a"), make("b")]
kept[0].add_remote_agent(kept[1].get_agent_metadata())
transfer(*kept, "READ", [10])
time.sleep(0.1)  # several writes
print("moved")
"""


@pytest.mark.parametrize("exporter", FILES)
def test_a_full_disk_costs_the_export_and_not_the_process(exporter, tmp_path):
    with small_disk(tmp_path / "disk", "64k") as disk:
        fill(disk / "other")
        env = {FILES[exporter]: str(disk), "NIXL_TELEMETRY_RUN_INTERVAL": "10"}
        out, log = run_scene(FULL, exporting(exporter, **env))
    assert out.split() == ["moved"]
    for warning in warnings(log):
        assert "No space left on device" in warning
        assert str(disk) in warning
    assert warnings(log)


@pytest.mark.parametrize("exporter", FILES)
def test_the_files_have_their_disk_space_from_the_start(exporter, tmp_path):
    """If there is none, they are not mapped."""
    out, log = run_scene(
        """
        import errno
        def full(fd, offset, size):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.posix_fallocate = full
        """
        + textwrap.indent(FULL, " " * 8),
        exporting(exporter, **{FILES[exporter]: str(tmp_path)}),
    )
    assert out.split() == ["moved"]
    assert warnings(log)
    for warning in warnings(log):
        assert "No space left on device" in warning
    assert not list(tmp_path.glob("nixl.*"))
    assert [path.stat().st_size for path in tmp_path.glob("[ab]")] == (
        [0, 0] if exporter == "BUFFER" else []
    )


def test_a_file_gets_its_space_on_every_file_system(tmp_path, monkeypatch):
    """Not all of them can allocate it, nor all C libraries emulate it."""
    from vllm_nixl._telemetry import files

    def refuse(fd, offset, size):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    size = 300_001
    with (tmp_path / "file").open("w+b", 0) as file:
        with files.map_file(file.fileno(), size) as mapped:
            assert len(mapped) == size
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == size
    assert (tmp_path / "file").read_bytes() == bytes(size)


@pytest.fixture
def store(tmp_path):
    """store(): the file of an agent, in tmp_path."""
    from vllm_nixl import NixlAgent
    from vllm_nixl._telemetry import stores, values

    labels = {"agent_name": "a", "hostname": "h"}
    with NixlAgent("a") as agent:
        snapshot = values.read(agent, labels, frozenset())
    return lambda: stores.Store(str(tmp_path), 0, labels, snapshot)


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_store_that_cannot_be_created_closes_its_file_once(
    store, tmp_path, monkeypatch, is_gone
):
    def fail(old, new):
        if is_gone:
            Path(old).unlink()
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="full") as caught:
        store()
    other = os.open(os.devnull, os.O_RDONLY)  # gets the number of its file
    del caught
    gc.collect()
    os.close(other)
    assert not list(tmp_path.iterdir())


def test_a_store_from_before_a_reboot_is_stale(store, tmp_path):
    """The clock of the machine began again."""
    from vllm_nixl._telemetry import stores

    left = store()
    future = time.monotonic_ns() + 10**18
    struct.pack_into("=Q", left._map, stores._UPDATED_AT, future)
    assert len(list(stores.read_all(str(tmp_path), 10**9))) == 1
    left.forget()
    assert list(stores.read_all(str(tmp_path), 10**9)) == []
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("exporter", ["prometheus", *FILES])
def test_an_agent_is_exported_when_threads_start_again(exporter, tmp_path):
    """The first agent is not, because no thread starts."""
    out, log = run_scene(
        """
        import threading
        start = threading.Thread.start
        def fail(thread):
            raise RuntimeError("can't start new thread")
        threading.Thread.start = fail
        first = make("a")
        threading.Thread.start = start
        second = make("b")
        if os.environ["NIXL_TELEMETRY_EXPORTER"] == "BUFFER":
            print(*os.listdir(os.environ["NIXL_TELEMETRY_DIR"]))
        else:
            text = scrape()
            print(*(name for name in "ab" if f'agent_name="{name}"' in text))
        """,
        exporting(
            exporter,
            NIXL_TELEMETRY_DIR=str(tmp_path),
            NIXL_TELEMETRY_MULTIPROC_DIR=str(tmp_path),
        ),
    )
    (warning,) = warnings(log)
    assert "can't start new thread" in warning
    assert out.split() == ["b"]


# -- Clients of the endpoint --------------------------------------------------


def test_an_idle_client_is_closed():
    _, log = run_scene(
        """
        import socket
        from vllm_nixl._telemetry.server import _Handler
        assert 0 < _Handler.timeout <= 60
        _Handler.timeout = 0.05
        kept = make("a")
        port = int(os.environ["NIXL_TELEMETRY_PROMETHEUS_PORT"])
        client = socket.create_connection(("127.0.0.1", port), 60)
        assert client.recv(1) == b""
        _Handler.timeout = 60
        assert "agent_tx_bytes_total" in scrape()
        """,
        exporting("prometheus"),
    )
    assert "Traceback" not in log


def test_clients_above_the_limit_are_closed():
    run_scene(
        """
        import socket, threading
        from vllm_nixl._telemetry import server
        server._Handler.timeout = 3600
        kept = make("a")
        port = int(os.environ["NIXL_TELEMETRY_PROMETHEUS_PORT"])

        def connect():
            return socket.create_connection(("127.0.0.1", port), 60)

        clients = []
        threads = threading.active_count()
        for _ in range(server.MAX_CLIENTS):
            clients.append(connect())
            # One after another, because the queue is short.
            while threading.active_count() != threads + len(clients):
                time.sleep(0.001)
        try:
            assert connect().recv(1) == b""
        except ConnectionError:
            pass
        clients.pop().close()
        end = time.monotonic() + 60
        while True:
            try:
                assert "agent_tx_bytes_total" in scrape()
                break
            except OSError:
                assert time.monotonic() < end
                time.sleep(0.01)
        """,
        exporting("prometheus"),
    )


# -- Our collector ------------------------------------------------------------


@pytest.fixture
def scraped():
    """scraped(...): the samples of a collector with these arguments."""
    from vllm_nixl import metrics

    def make(*args, **kwargs):
        registry = prometheus_client.CollectorRegistry()
        registry.register(metrics.Collector(*args, **kwargs))
        text = prometheus_client.generate_latest(registry).decode()
        return samples(text, "vllm_nixl_")

    return make


def test_the_collector_shows_agents_and_peers(scraped):
    import numpy as np
    from vllm_nixl import NixlAgent, nixlNotFoundError

    data = np.zeros(1 << 16, np.uint8)
    address = data.ctypes.data
    with NixlAgent("collected") as a, NixlAgent("target") as b:
        for agent in (a, b):
            agent.register_memory([(address, data.nbytes, 0, "")], "DRAM")
        a.add_remote_agent(b.get_agent_metadata())
        rows = a.get_xfer_descs(
            [(address + 100 * i, 100, 0) for i in range(4)], "DRAM"
        )
        for operation in ("READ", "WRITE", "WRITE"):
            handle = a.initialize_xfer(operation, rows, rows, "target", b"n")
            a.transfer(handle)
            a.wait([handle], timeout=60)
        with pytest.raises(nixlNotFoundError):
            a.prep_xfer_dlist("nobody", rows)
        until(lambda: b.stats()["notifs_pending"] == 3, "notifications")
        b.get_new_notifs()
        port = a.start_side_channel_listener(0, b"metadata", "127.0.0.1")
        assert b.request_remote_metadata("127.0.0.1", port) == b"metadata"
        # The listener counts a reply after the client may have read it.
        served = (
            "vllm_nixl_side_channel_served_total",
            (("agent", "collected"),),
        )
        until(lambda: scraped([a])[served] == 1, "the count of replies")
        found = scraped([a, b])
        alone = scraped([a], peers=False)
    assert scraped([a, b]) == {}, "closed agents are left out"

    def value(name, **labels):
        labels.setdefault("agent", "collected")
        key = (f"vllm_nixl_{name}", tuple(sorted(labels.items())))
        return found[key]

    assert value("transfers_posted_total") == 3
    assert value("transfers_done_total", direction="write") == 2
    assert value("transfer_bytes_total", direction="read") == 400
    assert value("transfers_failed_total", status="remote_disconnect") == 0
    assert value("calls_refused_total", status="not_found") == 1
    assert value("descriptors_total") == 12
    assert value("pieces_total") == 3
    assert value("transfer_seconds_count") == 3
    assert value("transfer_seconds_bucket", le="+Inf") == 3
    assert value("post_seconds_count") == 3
    assert value("post_seconds_sum") > 0
    assert value("transfer_seconds_sum") > 0
    assert value("notifications_sent_total") == 3
    assert value("notifications_received_total", agent="target") == 3
    assert value("notifications_pending", agent="target") == 0
    assert value("notification_wait_seconds_count", agent="target") == 3
    assert value("regions") == 1
    assert value("region_bytes") == 1 << 16
    assert value("registered_bytes_total") == 1 << 16
    assert value("peers", state="connected") == 1
    assert value("peers", state="lost") == 0
    assert value("peers", state="connected", agent="target") == 0
    assert value("side_channel_served_total") == 1
    assert value("side_channel_refused_total", reason="malformed") == 0
    assert value("listener_open") == 0
    peer = {"peer": "target"}
    assert value("peer_info", **peer, state="connected", path="process") == 1
    assert value("peer_transfers_done_total", **peer, direction="read") == 1
    assert value("peer_transfer_bytes_total", **peer, direction="write") == 800
    assert value("peer_descriptors_total", **peer) == 12
    assert value("peer_pieces_total", **peer) == 3
    assert value("peer_transfers_in_flight", **peer) == 0
    assert value("peer_transfer_seconds_count", **peer) == 3
    assert value("peer_notifications_sent_total", **peer) == 3
    assert not any("peer_" in name for name, _ in alone)
    assert any("transfers_posted" in name for name, _ in alone)


def test_the_collector_shows_lost_peers():
    out, _ = run_scene(
        """
        import prometheus_client, signal
        import vllm_nixl.metrics
        read, write = os.pipe()
        alive, end = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(end)
            other = make("other")
            os.write(write, other.get_agent_metadata())
            os.read(alive, 1)  # until the parent ends
            os._exit(0)
        agent = make("agent")
        agent.add_remote_agent(os.read(read, 1 << 16))
        agent.make_connection("other")
        os.kill(child, signal.SIGKILL)
        os.wait()
        while agent.peers()["other"]["state"] != "lost":
            time.sleep(0.001)
        registry = prometheus_client.CollectorRegistry()
        registry.register(vllm_nixl.metrics.Collector())
        print(prometheus_client.generate_latest(registry).decode())
        """,
        {"VLLM_NIXL_ENGINE": "native", "VLLM_NIXL_UCX_LIBRARY": "/none"},
    )
    found = samples(out, "vllm_nixl_")
    agent = ("agent", "agent")
    assert found["vllm_nixl_peers_lost_total", (agent,)] == 1
    assert found["vllm_nixl_peers", (agent, ("state", "lost"))] == 1


def test_the_collector_needs_no_thread_and_finds_new_agents():
    out, _ = run_scene(
        """
        import threading, prometheus_client
        import vllm_nixl.metrics
        registry = prometheus_client.CollectorRegistry()
        registry.register(vllm_nixl.metrics.Collector())
        kept = [make("a"), make("a"), make("b")]
        text = prometheus_client.generate_latest(registry).decode()
        assert threading.active_count() == 1
        kept.pop(0).close()
        kept.append(make("a"))
        print(text, "====",
              prometheus_client.generate_latest(registry).decode())
        """,
        {"VLLM_NIXL_ENGINE": "native", "VLLM_NIXL_UCX_LIBRARY": "/none"},
    )
    for text in out.split("===="):
        found = samples(text.strip() + "\n", "vllm_nixl_")
        assert {
            dict(labels)["agent"]
            for name, labels in found
            if name == "vllm_nixl_regions"
        } == {"a", "a#2", "b"}


def test_names_that_are_not_utf8_can_be_exported(scraped):
    from vllm_nixl import NixlAgent

    with NixlAgent(b"caf\xe9") as agent:
        agents = {dict(labels)["agent"] for _, labels in scraped([agent])}
    assert agents == {"caf\\udce9"}


# -- Documentation and dashboard ----------------------------------------------


def page():
    return (DOCS / "metrics.md").read_text()


def table(heading):
    """The rows of the table below a heading: the first cell to the others."""
    section = page().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    return {
        row[0].strip("` "): [c.strip("| ") for c in row[1:]] for row in rows
    }


def exposed(name, kind):
    return f"{name}_total" if kind == "counter" else name


def test_the_page_lists_our_metrics():
    from vllm_nixl import metrics

    documented = table("Metrics of vllm_nixl")
    assert set(documented) == {
        exposed(family.name, family.type) for family in metrics.FAMILIES
    }
    for family in metrics.FAMILIES:
        kind, labels = documented[exposed(family.name, family.type)][:2]
        assert kind == family.type, family.name
        assert labels == ", ".join(f"`{n}`" for n in family.labels)


def nixl_names():
    from vllm_nixl._telemetry import values

    zeros = [0] * values.EVENT_COUNT
    buckets = dict.fromkeys((6, 7), [0] * (len(values.BOUNDS) + 1))
    empty = values.Snapshot(
        {}, zeros, zeros, values.BOUNDS, buckets, {6: 0, 7: 0}
    )
    return {
        exposed(family.name, family.type): family.type
        for family in values.families([empty])
    }


def test_the_page_lists_nixls_metrics():
    documented = table("Metrics of NIXL")
    assert {name: row[0] for name, row in documented.items()} == nixl_names()


def series():
    """Every name that can occur in a scrape."""
    from vllm_nixl import metrics

    kinds = {exposed(f.name, f.type): f.type for f in metrics.FAMILIES}
    kinds.update(nixl_names())
    for name, kind in kinds.items():
        if kind == "histogram":
            yield from (
                f"{name}_{part}" for part in ("bucket", "sum", "count")
            )
        else:
            yield name


def test_the_dashboard_refers_to_names_that_exist():
    dashboard = json.loads((DOCS / "grafana.json").read_text())
    expressions = []

    def collect(value):
        if isinstance(value, dict):
            expressions.extend(
                text
                for key, text in value.items()
                if key in ("expr", "query", "definition")
                and isinstance(text, str)
            )
            for each in value.values():
                collect(each)
        elif isinstance(value, list):
            for each in value:
                collect(each)

    collect(dashboard)
    names = set()
    for expression in expressions:
        bare = re.sub(r'"[^"]*"', "", expression)
        names |= set(re.findall(r"\b(?:vllm_nixl|agent)_\w+", bare))
    names -= {"agent_name"}
    assert len(names) > 15
    assert names <= set(series())


def test_the_dashboard_uses_labels_that_exist():
    from vllm_nixl import metrics

    labels = {exposed(f.name, f.type): set(f.labels) for f in metrics.FAMILIES}
    text = (DOCS / "grafana.json").read_text()
    found = 0
    for expression in re.findall(r'"expr": "((?:[^"\\]|\\.)*)"', text):
        bare = expression.replace('\\"', '"')
        for name, selector in re.findall(r"(vllm_nixl_\w+)\{([^}]*)\}", bare):
            base = re.sub(r"_(bucket|sum|count)$", "", name)
            for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector):
                assert label in labels[base] | {"job", "instance"}, bare
                found += 1
    assert found > 10
