"""The log: the C library's lines in Python's logging, and on stderr."""

import contextlib
import logging
import os
import re
import socket
import struct
import sys
import threading
import time

import pytest
from support.deadline import PATIENCE, until
from support.program import run_program

pytestmark = pytest.mark.beyond_stock

LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} "
    r"(?P<level>[A-Z]+) vllm_nixl\[(?P<pid>\d+)\](?: (?P<agent>[^:]+))?: "
    r"(?P<text>.+)"
)

# warn(agent) makes the agent log a WARNING in the calling thread; disturb(
# agent) makes its listener's thread log one.
PROGRAM = """
import itertools, os, socket, struct, sys
from vllm_nixl import NixlAgent, nixl_agent_config

numbers = itertools.count()

def agent_of(name, **config):
    return NixlAgent(name, nixl_agent_config(**config))

def warn(agent):
    # Two agents with one name are alive.
    name = f"twin-{next(numbers)}"
    twins = [NixlAgent(name), NixlAgent(name)]
    for twin in twins:
        agent.add_remote_agent(twin.get_agent_metadata())
    agent.remove_remote_agent(name)
    return twins

def disturb(agent):
    text = b"NIXLCOMM:LOAD" + b"no metadata"
    with socket.create_connection(("127.0.0.1", agent.listen_port)) as link:
        link.sendall(struct.pack("<Q", len(text)) + text)
        link.shutdown(socket.SHUT_WR)
        assert link.recv(1) == b""

LISTENS = {"enable_listen_thread": True, "listen_port": 0}
"""

NO_LEVELS = {"VLLM_NIXL_LOG_LEVEL": None, "NIXL_LOG_LEVEL": None}


def run(source, **env):
    return run_program(
        f"exec({PROGRAM!r})\n" + source, env={**NO_LEVELS, **env}
    )


def lines_of(text):
    """The lines in the log's own format."""
    matches = map(LINE.fullmatch, text.splitlines())
    return [match for match in matches if match is not None]


# -- In this process ---------------------------------------------------------


@pytest.fixture
def kit(monkeypatch):
    for name in NO_LEVELS:
        monkeypatch.delenv(name, raising=False)
    kit = {}
    exec(PROGRAM, kit)
    return kit


@pytest.fixture
def lines(caplog):
    """lines(): the records of the logger `vllm_nixl` since the last call."""
    from vllm_nixl import _core

    def take():
        _core._log_flush()
        found = [
            record for record in caplog.records if record.name == "vllm_nixl"
        ]
        caplog.clear()
        return found

    return take


@pytest.fixture
def level(caplog):
    """level(name): set the level until the end of the test."""
    import vllm_nixl

    logger = logging.getLogger("vllm_nixl")
    before = logger.level
    yield vllm_nixl.set_log_level
    vllm_nixl.set_log_level(before)


def test_warning_has_level_agent_process_and_thread(kit, lines):
    agent = kit["agent_of"]("log-agent-é")
    kept = kit["warn"](agent)
    [record] = [line for line in lines() if "two live" in line.getMessage()]
    assert record.levelname == "WARNING"
    assert record.agent == "log-agent-é"
    assert record.process == os.getpid()
    assert record.thread == threading.get_native_id()
    assert kept[0].name in record.getMessage()


def test_record_has_the_time_of_the_event(kit, lines, monkeypatch):
    """Not the time at which the line was passed on."""
    agent = kit["agent_of"]("log-time")
    before = time.time()
    kept = kit["warn"](agent)
    after = time.time()
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 1.0)
        [record] = lines()
    assert before <= record.created <= after
    assert record.msecs == int(record.created * 1000) % 1000
    assert kept


def test_line_from_a_thread_of_the_library(kit, lines):
    agent = kit["agent_of"]("log-listener", **kit["LISTENS"])
    kit["disturb"](agent)
    found = []
    until(lambda: found.extend(lines()) or found, "the warning")
    [record] = found
    assert record.agent == "log-listener"
    assert record.threadName == "vnx-listener"
    assert record.thread != threading.get_native_id()
    assert "metadata listener" in record.getMessage()


def test_library_does_not_wait_for_the_gil(kit, lines):
    """Its thread logs while this one keeps the GIL."""
    agent = kit["agent_of"]("log-gil", **kit["LISTENS"])
    text = b"NIXLCOMM:LOADno metadata"
    link = socket.create_connection(("127.0.0.1", agent.listen_port))
    before = agent.describe()["metadata_listener"]["load_failures"]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        link.setblocking(False)
        link.send(struct.pack("<Q", len(text)) + text)
        limit = time.monotonic() + PATIENCE
        now = before
        while now == before and time.monotonic() < limit:
            now = agent.describe()["metadata_listener"]["load_failures"]
    finally:
        sys.setswitchinterval(interval)
        link.close()
    assert now == before + 1
    until(lines, "the warning")


def test_levels_of_lines(kit, lines, level):
    level("DEBUG")
    agent = kit["agent_of"]("log-debug")
    other = kit["agent_of"]("log-other")
    agent.add_remote_agent(other.get_agent_metadata())
    agent.remove_remote_agent("log-other")
    texts = [line.getMessage() for line in lines() if line.agent == agent.name]
    for part in (
        "created backend UCX of engine native",
        "peer 'log-other' is reached by",
        "loaded metadata of peer 'log-other'",
        "removed peer 'log-other'",
    ):
        assert any(part in text for text in texts), texts
    level("WARNING")
    agent.add_remote_agent(other.get_agent_metadata())
    assert lines() == []


def test_no_line_for_a_transfer_or_a_notification(
    kit, lines, level, endpoint, peer
):
    level("DEBUG")
    here, there = endpoint(), peer()
    here.add(there.metadata())
    block, room = there.alloc(4096, seed=1), here.alloc(4096)
    rows = [(room.addr, 4096, 0)], [(block.addr, 4096, 0)]
    here.add(there.metadata())
    here.move("READ", *rows, there.name)
    lines()
    for _ in range(20):
        here.move("READ", *rows, there.name)
        here.agent.send_notif(there.name, b"message")
    assert [line.getMessage() for line in lines()] == []


def test_level_of_the_logger_counts_for_the_next_agent(kit, lines, level):
    logging.getLogger("vllm_nixl").setLevel(logging.DEBUG)
    agent = kit["agent_of"]("log-next")
    assert any(line.agent == agent.name for line in lines())
    logging.getLogger("vllm_nixl").setLevel(logging.ERROR)
    kept = kit["warn"](agent)  # filtered at once
    assert lines() == []
    assert kept


def test_set_log_level_refuses_unknown_levels(level):
    with pytest.raises(ValueError, match="LOUD"):
        level("LOUD")
    with pytest.raises(TypeError):
        level(None)


def test_thousand_lines_are_limited(kit, lines):
    """Ten lines of a place in ten seconds; the last says so."""
    done = run(
        """
agent = agent_of("noisy", **LISTENS)
for i in range(1000):
    disturb(agent)
"""
    )
    found = [
        line["text"]
        for line in lines_of(done.stderr)
        if "metadata listener" in line["text"]
    ]
    # Unless the loop took longer than ten seconds, one window.
    assert 10 <= len(found) < 100
    assert "more lines like this one are suppressed" in found[9]


# -- On stderr ---------------------------------------------------------------


def test_line_without_a_handler_is_on_stderr():
    done = run("agent = agent_of('plain')\nkept = warn(agent)")
    [line] = lines_of(done.stderr)
    assert line["level"] == "WARNING"
    assert line["agent"] == "plain"
    assert "two live agents have the name 'twin-0'" in line["text"]
    assert done.stderr.count("\n") == 1


def test_line_after_the_end_of_logging_is_on_stderr():
    """C writes it itself, in the format of the line that Python writes."""
    done = run_program(
        f"""
import atexit
atexit.register(lambda: kept.append(warn(agent)))  # called last
exec({PROGRAM!r})
import logging
agent = agent_of("late")
kept = [warn(agent)]
""",
        env=NO_LEVELS,
    )
    python, c = lines_of(done.stderr)
    assert python.groups()[:3] == c.groups()[:3]
    assert "'twin-0'" in python["text"]
    assert "'twin-1'" in c["text"]


def test_handlers_of_the_program_get_the_lines():
    done = run(
        """
import logging
logging.basicConfig(format="<%(levelname)s %(name)s %(message).8s>")
agent = agent_of("configured")
kept = warn(agent)
"""
    )
    assert done.stderr == "<WARNING vllm_nixl two live>\n"


def test_handler_that_is_added_after_the_first_line():
    done = run(
        """
import logging
from vllm_nixl import _core
agent = agent_of("late")
kept = [warn(agent)]
_core._log_flush()
logging.basicConfig(format="<%(message).8s>")
kept.append(warn(agent))
"""
    )
    first, second = done.stderr.splitlines()
    assert LINE.fullmatch(first)
    assert second == "<two live>"


def test_basic_config_at_debug_shows_the_librarys_lines():
    done = run(
        """
import logging
logging.basicConfig(level=logging.DEBUG, format="<%(agent)s: %(message)s>")
agent_of("verbose")
"""
    )
    assert "<verbose: created backend UCX of engine" in done.stderr


def test_handler_that_raises_does_not_stop_the_lines():
    done = run(
        """
import logging

class Broken(logging.Handler):
    def emit(self, record):
        raise RuntimeError("broken")

logging.getLogger("vllm_nixl").addHandler(Broken())
agent = agent_of("raising")
kept = [warn(agent), warn(agent)]
"""
    )
    assert done.stderr.count("RuntimeError: broken") == 2
    assert len(lines_of(done.stderr)) == 2


# -- Levels of the environment -----------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("VLLM_NIXL_LOG_LEVEL", "debug"),
        ("NIXL_LOG_LEVEL", "TRACE"),
    ],
)
@pytest.mark.parametrize("before", ["", "import logging"])
def test_level_of_the_environment(variable, value, before):
    done = run(f"{before}\nagent_of('loud')", **{variable: value})
    levels = {line["level"] for line in lines_of(done.stderr)}
    assert "DEBUG" in levels


def test_own_variable_wins_over_nixls():
    done = run(
        "kept = warn(agent_of('quiet'))",
        VLLM_NIXL_LOG_LEVEL="ERROR",
        NIXL_LOG_LEVEL="DEBUG",
    )
    assert done.stderr == ""


@pytest.mark.parametrize("variable", list(NO_LEVELS))
def test_unknown_level_is_reported_once(variable):
    done = run(
        "agents = [agent_of(f'agent-{i}') for i in range(3)]",
        **{variable: "DEBG"},
    )
    [line] = lines_of(done.stderr)
    assert line["level"] == "WARNING"
    assert f"{variable} has no level 'DEBG'" in line["text"]
    assert "did you mean 'DEBUG'?" in line["text"]


# -- Costs and quiet ---------------------------------------------------------


def test_first_run_prints_nothing():
    """On a machine without UCX and NIXL: no warning, no thread of the log,
    and logging is not imported."""
    done = run(
        """
left, right = agent_of("left"), agent_of("right")
left.add_remote_agent(right.get_agent_metadata())
left.send_notif("right", b"message")
assert right.get_new_notifs()
threads = [
    open(f"/proc/self/task/{thread}/comm").read().strip()
    for thread in os.listdir("/proc/self/task")
]
assert "vnx-log" not in threads, threads
assert "logging" not in sys.modules
""",
        VLLM_NIXL_UCX_LIBRARY="none",
        VLLM_NIXL_LIBRARY="none",
    )
    assert done.stdout + done.stderr == ""


# -- Exit, forks, interpreters -----------------------------------------------


@pytest.mark.parametrize("first", ["logging", "vllm_nixl", "the line"])
def test_last_lines_are_not_lost_at_exit(first, tmp_path):
    """Whichever is imported first: handlers are closed at exit, too."""
    path = tmp_path / "log"
    importing = {
        "logging": "import logging, vllm_nixl",
        "vllm_nixl": "import vllm_nixl, logging",
        "the line": "import vllm_nixl",
    }[first]
    handler = (
        ""
        if first == "the line"
        else f"""
from logging.handlers import MemoryHandler
target = logging.FileHandler({str(path)!r})
logging.getLogger().addHandler(MemoryHandler(100, 50, target))
"""
    )
    done = run_program(
        f"{importing}\nexec({PROGRAM!r})\n{handler}\n"
        "agent = agent_of('last')\n"
        "for _ in range(5):\n"
        "    kept = warn(agent)\n",
        env=NO_LEVELS,
    )
    text = done.stderr if first == "the line" else path.read_text()
    assert text.count("two live agents") == 5


def test_lines_of_agents_that_the_exit_closes():
    """Closing removes the peers."""
    done = run(
        """
agents = [agent_of("open"), agent_of("other")]
agents[0].add_remote_agent(agents[1].get_agent_metadata())
""",
        VLLM_NIXL_LOG_LEVEL="DEBUG",
    )
    assert any(
        line["agent"] == "open" and "the agent was closed" in line["text"]
        for line in lines_of(done.stderr)
    )


@pytest.mark.parametrize("how", ["fork", "multiprocessing"])
def test_forked_child_logs(how):
    """Also if the parent has logged before, so that its thread exists."""
    start = {
        "fork": """
pid = os.fork()
if pid == 0:
    child()
    sys.exit(0)
os.waitpid(pid, 0)
""",
        "multiprocessing": """
import multiprocessing
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join()
assert process.exitcode == 0
""",
    }[how]
    done = run(
        f"""
from vllm_nixl import _core
agent = agent_of("parent")
kept = [warn(agent)]
_core._log_flush()
def child():
    agent = agent_of("child")
    kept.append(warn(agent))
{start}
kept.append(warn(agent))
"""
    )
    found = [(line["agent"], line["pid"]) for line in lines_of(done.stderr)]
    assert [agent for agent, _ in found] == ["parent", "child", "parent"]
    assert found[0][1] == found[2][1] != found[1][1]


def test_subinterpreters_lines_go_to_the_main_one():
    done = run(
        f"""
from support.interpreters import Interpreter
import logging
logging.basicConfig(format="<%(agent)s %(message).8s>")
import vllm_nixl
with Interpreter() as sub:
    sub.run({PROGRAM!r} + "kept = warn(agent_of('sub'))")
kept = warn(agent_of("main"))
"""
    )
    assert done.stderr == "<sub two live>\n<main two live>\n"


def test_only_a_subinterpreter_imports_the_package():
    """The main one does not know when to end the log: lines go to stderr."""
    done = run_program(
        f"""
from support.interpreters import Interpreter
with Interpreter() as sub:
    sub.run({PROGRAM!r} + "kept = warn(agent_of('sub'))")
""",
        env=NO_LEVELS,
    )
    [line] = lines_of(done.stderr)
    assert line["agent"] == "sub"


def test_threads_log_while_the_interpreter_ends():
    """Threads of Python that still run then neither crash nor hang."""
    done = run(
        """
import threading, time

def work():
    agent = agent_of("busy")
    while True:
        warn(agent)

threading.Thread(target=work, daemon=True).start()
while next(numbers) < 20:
    time.sleep(0.001)
"""
    )
    with contextlib.suppress(IndexError):
        assert lines_of(done.stderr)[0]["agent"] == "busy"
