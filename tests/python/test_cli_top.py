"""`vllm-nixl top`."""

import contextlib
import copy
import importlib.util
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from support.deadline import PATIENCE, or_kill
from support.peer import child_environment
from support.watched import Watched
from vllm_nixl._cli.output import Output

pytestmark = pytest.mark.beyond_stock

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "sockets"


@pytest.fixture
def environment(folder, tmp_path):
    """Of `top`: it looks in this test's folder, and in no other that has
    sockets, unless other tests run at the same time."""
    return child_environment(
        {
            "VLLM_NIXL_MONITOR": str(folder),
            "XDG_RUNTIME_DIR": str(tmp_path),
            "TERM": "xterm-256color",
            "NO_COLOR": None,
            "COLUMNS": "200",
            "LINES": "50",
        }
    )


@pytest.fixture
def top(environment):
    """top(*arguments): the finished process."""

    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "vllm_nixl", "top", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=environment,
            timeout=PATIENCE + 30,
            check=False,
        )

    return run


@pytest.fixture
def viewer(environment):
    """viewer(*arguments): a running process."""
    with contextlib.ExitStack() as stack:

        def start(*arguments, **options):
            command = [sys.executable, "-m", "vllm_nixl", "top"]
            command += ["--interval", "0.1", *map(str, arguments)]
            running = subprocess.Popen(command, env=environment, **options)
            stack.callback(running.wait)
            stack.callback(running.kill)
            return running

        yield start


# Two agents of a process, of which one reads from the other.
PAIR = """
import threading
from vllm_nixl import shared_buffer

SIZE = 1 << 20
here, there = shared_buffer(SIZE), shared_buffer(SIZE)
reader, owner = agent_of("reader"), agent_of("owner")
reader.register_memory([(here.address, SIZE, 0, "")], "DRAM")
owner.register_memory([(there.address, SIZE, 0, "")], "DRAM")
reader.add_remote_agent(owner.get_agent_metadata())
left = reader.prep_xfer_dlist("", [(here.address, SIZE, 0)], "DRAM")
right = reader.prep_xfer_dlist("owner", [(there.address, SIZE, 0)], "DRAM")
ends = False

def move():
    handle = reader.make_prepped_xfer(
        "READ", left, [0], right, [0], b"done")
    reader.transfer(handle)
    reader.wait(handle, timeout=60)
    owner.get_new_notifs()

def work():
    while not ends:
        move()

"""
FIVE = (
    PAIR
    + """
wait()
for _ in range(5):
    move()
wait()
"""
)
# Until it is told to end.
BUSY = (
    PAIR
    + """
thread = threading.Thread(target=work)
thread.start()
wait()
ends = True
thread.join()
"""
)
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
IDLE = "kept = agent_of('idle')\nwait()\n"


@pytest.fixture
def watched(folder):
    with contextlib.ExitStack() as stack:

        def start(source, **options):
            process = Watched(folder, textwrap.dedent(source), **options)
            stack.callback(process.kill)
            return process

        yield start


# -- Rates -------------------------------------------------------------------

TIMES = [0] * 32


def peer_state(**changes):
    return {
        "state": "connected",
        "cause": None,
        "path": "SHM",
        "generation": 1,
        "bytes_read": 0,
        "bytes_written": 0,
        "reads_done": 0,
        "writes_done": 0,
        "notifs_sent": 0,
        "notifs_received": 0,
        "in_flight": 0,
        "xfer_us_log2": TIMES,
        "failures": {},
        **changes,
    }


def process_state(at, cpu, **changes):
    """A state as a process shows it, of one agent with one peer."""
    peer = peer_state(**changes)
    return {
        "pid": 12,
        "command": "python serve.py",
        "time": float(at),
        "cpu_s": cpu,
        "threads": {"vnx-copy": {"count": 2, "cpu_s": cpu / 2}},
        "agents": [
            {
                "name": "decode",
                "describe": {"engine": "native", "backends": ["UCX"]},
                "stats": {**peer, "peers_lost": 0},
                "peers": {"prefill": peer},
            }
        ],
    }


@pytest.fixture
def view():
    from vllm_nixl._cli.top import view

    return view


def times(**counts):
    """times(_3=5): five transfers of 8 to 16 us."""
    found = list(TIMES)
    for index, count in counts.items():
        found[int(index[1:])] = count
    return found


def test_rates_are_changes_per_second(view):
    before = process_state(
        100,
        10.0,
        bytes_read=1 << 30,
        reads_done=5,
        xfer_us_log2=times(_1=5),
        notifs_sent=100,
    )
    after = process_state(
        102,
        11.0,
        bytes_read=3 << 30,
        bytes_written=2_000_000_000,
        reads_done=15,
        writes_done=10,
        notifs_sent=104,
        in_flight=3,
        xfer_us_log2=times(_1=5, _3=10, _7=10),
    )
    found = view(before, after)
    [agent] = found["agents"]
    [peer] = agent["peers"]
    for flow in (agent, peer):
        assert flow["in_gb_s"] == pytest.approx((1 << 30) / 1e9)
        assert flow["out_gb_s"] == pytest.approx(1.0)
        assert flow["transfers_s"] == 10
        assert flow["notifs_s"] == 2
        assert flow["in_flight"] == 3
        assert flow["p50_us_below"] == 16
        assert flow["p99_us_below"] == 256
    moved = ((2 << 30) + 2_000_000_000) / (1 << 30)
    assert found["cpu_cores"] == pytest.approx(0.5)
    assert found["cpu_s_per_gib"] == pytest.approx(1 / moved)
    assert found["threads"] == {"vnx-copy": pytest.approx(0.25)}


def test_page_shows_what_top_shows(view):
    """Two seconds of two peers, as the picture in the documentation."""
    from vllm_nixl._cli.top import _show_process

    failures = {"NIXL_ERR_REMOTE_DISCONNECT": 2}
    states = []
    for at, count in ((100, 0), (102, 1886)):
        flow = {
            "bytes_read": count * 8_314_000,
            "reads_done": count,
            "notifs_received": count,
            "xfer_us_log2": times(_8=count, _10=count // 20),
        }
        state = process_state(at, 0.0 if at == 100 else 1.215)
        (agent,) = state["agents"]
        lost = "process 4650 ended"
        agent["name"] = "decode-0"
        agent["stats"].update(flow, failures=failures)
        agent["peers"] = {
            "prefill-0": peer_state(**flow, in_flight=4),
            "prefill-1": peer_state(
                state="lost", cause=lost, failures=failures
            ),
        }
        cpu = 0.0 if at == 100 else 2.0
        state["threads"] = {
            "vnx-copy": {"count": 2, "cpu_s": 0.48 * cpu},
            "vnx-hub": {"count": 1, "cpu_s": 0.01 * cpu},
        }
        states.append({**state, "pid": 4711})
    text = io.StringIO()
    _show_process(view(*states), Output(False, text))
    assert f"```\n{text.getvalue()}```\n" in (DOCS / "top.md").read_text()


def test_first_look_has_no_rates(view):
    found = view(None, process_state(100, 1.0, bytes_read=1 << 30))
    [agent] = found["agents"]
    assert agent["in_gb_s"] is None
    assert agent["p50_us_below"] is None
    assert found["cpu_cores"] is found["cpu_s_per_gib"] is None


def test_interval_without_transfers(view):
    state = process_state(100, 1.0, xfer_us_log2=times(_4=7))
    found = view(state, {**copy.deepcopy(state), "time": 101.0})
    [agent] = found["agents"]
    assert agent["in_gb_s"] == agent["transfers_s"] == 0
    assert agent["p99_us_below"] is None
    assert found["cpu_s_per_gib"] is None


def test_restarted_peer_counts_from_zero(view):
    before = process_state(100, 1.0, reads_done=50, bytes_read=10**10)
    after = process_state(
        101, 1.0, reads_done=2, bytes_read=4 * 10**9, generation=2
    )
    [agent] = view(before, after)["agents"]
    [peer] = agent["peers"]
    assert peer["transfers_s"] == 2
    assert peer["in_gb_s"] == pytest.approx(4.0)


def test_agent_that_is_new(view):
    before = process_state(100, 1.0)
    after = process_state(101, 1.0, reads_done=7)
    before["agents"] = []
    [agent] = view(before, after)["agents"]
    assert agent["transfers_s"] is None


def test_agents_of_one_name_are_kept_apart(view):
    before, after = process_state(100, 1.0), process_state(101, 1.0)
    for state, counts in ((before, (1, 10)), (after, (3, 15))):
        [agent] = state["agents"]
        state["agents"] = [copy.deepcopy(agent) for _ in counts]
        for one, count in zip(state["agents"], counts, strict=True):
            one["stats"]["reads_done"] = count
    rates = [agent["transfers_s"] for agent in view(before, after)["agents"]]
    assert rates == [2, 5]


def test_new_failures_are_told_apart(view):
    before = process_state(100, 1.0, failures={"NIXL_ERR_BACKEND": 2})
    after = process_state(101, 1.0, failures={"NIXL_ERR_BACKEND": 5})
    [agent] = view(before, after)["agents"]
    assert agent["failures"] == {"NIXL_ERR_BACKEND": 5}
    assert agent["new_failures"] == 3
    [agent] = view(after, after)["agents"]
    assert agent["new_failures"] == 0


@pytest.mark.parametrize(
    ("counts", "share", "bound"),
    [
        ({}, 0.5, None),
        ({"_0": 1}, 0.99, 2),
        ({"_0": 50, "_5": 50}, 0.5, 2),
        ({"_0": 49, "_5": 51}, 0.5, 64),
        ({"_0": 99, "_9": 1}, 0.99, 2),
        ({"_0": 98, "_9": 2}, 0.99, 1024),
        ({"_31": 1}, 0.5, 1 << 32),
    ],
)
def test_percentile_is_a_bound(counts, share, bound):
    from vllm_nixl._cli.top import percentile

    assert percentile(times(**counts), share) == bound


# -- Processes ---------------------------------------------------------------


def test_json_of_two_processes(watched, top):
    busy, idle = watched(BUSY), watched(IDLE)
    done = top("--json", "--interval", "0.5")
    assert done.returncode == 0, done.stderr
    found = {one["pid"]: one for one in json.loads(done.stdout)["processes"]}
    assert {busy.pid, idle.pid} <= set(found)
    owner, reader = found[busy.pid]["agents"]
    assert (owner["name"], reader["name"]) == ("owner", "reader")
    assert reader["in_gb_s"] > 0
    assert reader["out_gb_s"] == 0
    assert reader["transfers_s"] > 0
    assert reader["p50_us_below"] <= reader["p99_us_below"]
    [peer] = reader["peers"]
    assert peer["name"] == "owner"
    assert peer["path"] == "process"
    # Looked at after its agent, which goes on.
    assert peer["in_bytes"] > 0
    assert owner["notifs_s"] > 0
    assert owner["in_gb_s"] == 0
    assert found[busy.pid]["cpu_s_per_gib"] > 0
    [agent] = found[idle.pid]["agents"]
    assert agent["transfers_s"] == 0
    assert agent["peers"] == []


def test_table_of_one_process(watched, top):
    busy, _ = watched(BUSY), watched(IDLE)
    done = top("--once", "--interval", "0.5", busy.pid)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"process {busy.pid}: ")
    assert lines[1].startswith("CPU ")
    assert "s/GiB" in lines[1]
    assert lines[2].split()[:4] == ["agent", "/", "peer", "state"]
    assert [line.split()[0] for line in lines[3:]] == [
        "owner",
        "reader",
        "owner",
    ]
    assert lines[5].startswith("  owner ")
    assert "idle" not in done.stdout


def test_lost_peer_is_shown_with_the_cause(watched, top):
    process = watched(
        """
        one, two = agent_of("one"), agent_of("two")
        one.add_remote_agent(two.get_agent_metadata())
        two.close()
        wait()
        """
    )
    done = top("--once", "--interval", "0.1", process.pid)
    [agent] = [line for line in done.stdout.splitlines() if " lost " in line]
    assert agent.split()[:2] == ["two", "lost"]
    assert "one: two: " in done.stdout


def await_table(running, pid):
    """Read on until the next table of that process."""
    with or_kill(running):
        for line in running.stdout:
            if line.startswith(f"process {pid}: "):
                return
    raise AssertionError(f"no table: {running.stderr.read()}")


def test_tables_are_repeated_until_the_process_ends(watched, viewer, folder):
    """Then it says so; the socket of a killed process is removed."""
    process = watched(IDLE)
    running = viewer(process.pid, **PIPES)
    for _ in range(3):
        await_table(running, process.pid)
    process.kill()
    rest, errors = running.communicate(timeout=PATIENCE)
    assert rest.splitlines()[-1] == f"process {process.pid} has ended"
    assert errors == ""
    assert running.returncode == 0
    assert os.listdir(folder) == []


def test_counters_of_the_only_peer_are_those_of_the_agent(
    watched, folder, monkeypatch
):
    from vllm_nixl._cli.top import _Watch

    monkeypatch.setenv("VLLM_NIXL_MONITOR", str(folder))
    process = watched(
        PAIR + "wait()\nfor _ in range(5):\n    move()\nwait()\n"
    )
    watch = _Watch(process.pid)
    watch.look()
    process.go_on()
    process.ready()
    watch.look()
    [found] = watch.views()
    _, reader = found["agents"]
    [peer] = reader["peers"]
    assert peer["in_bytes"] == 5 << 20
    assert peer["transfers_s"] > 0
    same = peer.keys() & reader.keys() - {"name", "notifs_s"}
    assert {key: peer[key] for key in same} == {
        key: reader[key] for key in same
    }


def test_process_that_ends_between_two_looks(watched, folder, monkeypatch):
    from vllm_nixl._cli.top import _Watch

    monkeypatch.setenv("VLLM_NIXL_MONITOR", str(folder))
    one, two = watched(IDLE), watched(IDLE)
    watch = _Watch(None)
    watch.look()
    assert {one.pid, two.pid} <= set(watch.now)
    one.end()
    watch.look()
    assert one.pid in watch.ended
    assert two.pid in watch.now
    watch.look()
    assert one.pid not in watch.ended


def test_process_that_does_not_answer(watched, top):
    process = watched(IDLE)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        done = top("--once", process.pid)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert done.returncode == 3
    assert f"process {process.pid} does not answer" in done.stderr


def test_no_process_can_be_watched(top, folder):
    done = top("--once", "4194304")
    assert done.returncode == 3
    assert "there is no process 4194304" in done.stderr
    done = top("--once", os.getpid())
    assert done.returncode == 3
    assert f"process {os.getpid()} has no socket in {folder}" in done.stderr
    assert "VLLM_NIXL_MONITOR=1" in done.stderr
    done = top("--json", os.getpid())
    assert done.returncode == 3
    assert "VLLM_NIXL_MONITOR=1" in json.loads(done.stdout)["error"]


def test_wrong_arguments(top):
    for arguments in (["x"], ["--interval", "0"], ["--interval", "soon"]):
        done = top(*arguments)
        assert done.returncode == 2
        assert "usage: vllm-nixl top" in done.stderr


def test_names_cannot_reach_the_terminal_as_commands(watched, top):
    process = watched("kept = agent_of('red\\x1b[31m')\nwait()")
    done = top("--once", "--interval", "0.1", process.pid)
    assert "red?[31m" in done.stdout
    assert "\x1b" not in done.stdout


# -- Interactive -------------------------------------------------------------


def test_interrupt_ends_it_cleanly(watched, viewer):
    process = watched(IDLE)
    running = viewer(**PIPES)
    await_table(running, process.pid)
    running.send_signal(signal.SIGINT)
    _, errors = running.communicate(timeout=PATIENCE)
    assert running.returncode == 0
    assert errors == ""


@pytest.mark.skipif(
    importlib.util.find_spec("rich") is None, reason="rich is not installed"
)
def test_live_view_on_a_terminal(watched, viewer):
    """It is redrawn in place; Ctrl-C gives the cursor back."""
    process = watched(BUSY)
    ours, theirs = pty.openpty()
    ends = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    running = viewer(process.pid, start_new_session=True, **ends)
    os.close(theirs)
    shown = read_until(ours, lambda text: text.count("transfers/s") >= 3)
    assert "\x1b[?25l" in shown  # the cursor is hidden
    assert "\x1b[1A" in shown  # up, to draw it again
    assert "reader" in shown
    running.send_signal(signal.SIGINT)
    rest = read_until(ours, lambda _: False)
    os.close(ours)
    assert "\x1b[?25h" in rest
    assert "Traceback" not in rest
    assert running.wait() == 0


def read_until(terminal, is_enough):
    """Read until `is_enough`, or until the other end is closed."""
    text, limit = "", time.monotonic() + PATIENCE
    while not is_enough(text):
        left = limit - time.monotonic()
        assert left > 0, text
        ready, _, _ = select.select([terminal], [], [], left)
        try:
            got = os.read(terminal, 1 << 16) if ready else b""
        except OSError:  # EIO: nobody has the other end open
            return text
        text += got.decode(errors="replace")
    return text
