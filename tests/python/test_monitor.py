"""The socket that shows the agents of a process."""

import contextlib
import gc
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
from support.deadline import PATIENCE, stop, until
from support.peer import child_environment
from support.program import run_program
from support.watched import Watched

pytestmark = pytest.mark.beyond_stock

NOBODY = 65534
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root, to become another user"
)


@pytest.fixture
def monitor():
    """The module; imported here, because stock NIXL has no such module."""
    from vllm_nixl import _monitor_socket

    return _monitor_socket


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "sockets"


@pytest.fixture
def watched(folder):
    """watched(source): a process that is watched."""
    with contextlib.ExitStack() as stack:

        def start(source="kept = agent_of('one')\nwait()", **options):
            process = Watched(
                options.pop("folder", folder),
                textwrap.dedent(source),
                **options,
            )
            stack.callback(process.kill)
            return process

        yield start


def connect(process):
    client = socket.socket(socket.AF_UNIX)
    client.connect(process.socket)  # waits while the backlog is full
    client.settimeout(PATIENCE)
    return client


# -- Live agents -------------------------------------------------------------


def test_live_agents_exist_and_are_not_closed():
    from vllm_nixl import NixlAgent, _monitor

    def names():
        gc.collect()
        return [
            agent.name
            for agent in _monitor.live_agents()
            if agent.name.startswith("live-")
        ]

    first, second, third = (NixlAgent(f"live-{i}") for i in (3, 1, 2))
    assert names() == ["live-1", "live-2", "live-3"]
    first.close()
    assert names() == ["live-1", "live-2"]
    del second
    assert names() == ["live-2"]
    assert third in _monitor.live_agents()


def test_forked_child_has_no_live_agents():
    run_program(
        """
        import os
        from vllm_nixl import NixlAgent, _monitor
        agent = NixlAgent("parent")
        pid = os.fork()
        if pid == 0:
            assert _monitor.live_agents() == []
            child = NixlAgent("child")
            assert _monitor.live_agents() == [child]
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        assert _monitor.live_agents() == [agent]
        """
    )


@pytest.mark.parametrize("value", [None, "", "0"])
def test_nothing_is_started_unless_asked_for(value, tmp_path):
    run_program(
        """
        import os, sys
        from vllm_nixl import NixlAgent
        agent = NixlAgent("quiet")
        assert "vllm_nixl._monitor_socket" not in sys.modules
        assert "threading" not in sys.modules
        assert os.listdir(os.environ["XDG_RUNTIME_DIR"]) == []
        """,
        env={"VLLM_NIXL_MONITOR": value, "XDG_RUNTIME_DIR": str(tmp_path)},
    )


# -- What it shows -----------------------------------------------------------


def test_state_of_a_process(watched, monitor):
    process = watched(
        """
        one, two = agent_of("one"), agent_of("two")
        one.add_remote_agent(two.get_agent_metadata())
        one.send_notif("two", b"message")
        wait()
        """
    )
    state = monitor.ask(process.socket)
    assert state["pid"] == process.pid
    assert state["command"].startswith(sys.executable)
    assert state["cpu_s"] > 0
    assert state["threads"]["vnx-hub"]["count"] == 2
    one, two = state["agents"]
    assert (one["name"], two["name"]) == ("one", "two")
    assert one["describe"]["engine"] == "native"
    assert one["stats"]["notifs_sent"] == 1
    assert one["peers"]["two"]["state"] == "connected"
    assert one["peers"]["two"]["notifs_sent"] == 1
    assert two["peers"] == {}


def test_cpu_seconds_of_threads_grow(watched, monitor):
    process = watched(
        """
        wait_ = wait
        from vllm_nixl import shared_buffer
        one, two = agent_of("one", num_threads=2), agent_of("two")
        here, there = shared_buffer(1 << 26), shared_buffer(1 << 26)
        one.register_memory([(here.address, 1 << 26, 0, "")], "DRAM")
        two.register_memory([(there.address, 1 << 26, 0, "")], "DRAM")
        one.add_remote_agent(two.get_agent_metadata())
        rows = [(at.address, 1 << 26, 0) for at in (here, there)]
        left = one.prep_xfer_dlist("", rows[:1], "DRAM")
        right = one.prep_xfer_dlist("two", rows[1:], "DRAM")
        wait()
        for _ in range(20):
            handle = one.make_prepped_xfer("READ", left, [0], right, [0])
            one.transfer(handle)
            one.wait(handle, timeout=60)
        wait()
        """
    )
    before = monitor.ask(process.socket)
    process.go_on()
    process.ready()
    after = monitor.ask(process.socket)
    used = (
        after["threads"]["vnx-copy"]["cpu_s"]
        - before["threads"].get("vnx-copy", {"cpu_s": 0})["cpu_s"]
    )
    assert 0 < used <= after["cpu_s"] - before["cpu_s"] + 0.05
    assert after["agents"][0]["stats"]["bytes_read"] == 20 << 26


def test_large_answer_arrives_whole(watched, monitor):
    """It is larger than the socket's buffer."""
    process = watched(
        """
        kept = [agent_of(f"agent-{i:04}", backends=[]) for i in range(500)]
        wait()
        """
    )
    agents = monitor.ask(process.socket)["agents"]
    assert [agent["name"] for agent in agents] == [
        f"agent-{i:04}" for i in range(500)
    ]


def test_agents_that_come_and_go_meanwhile(watched, monitor):
    process = watched(
        """
        import threading

        def work():
            while True:
                with agent_of("short"):
                    pass

        kept = agent_of("long")
        for _ in range(2):
            threading.Thread(target=work, daemon=True).start()
        wait()
        """
    )
    for _ in range(50):
        agents = monitor.ask(process.socket)["agents"]
        assert "long" in [agent["name"] for agent in agents]


def test_both_of_two_processes(watched, monitor, folder):
    processes = [watched(), watched()]
    found = monitor.sockets(folder)
    assert found == {
        process.pid: process.socket
        for process in sorted(processes, key=lambda process: process.pid)
    }
    for process in processes:
        assert monitor.ask(process.socket)["pid"] == process.pid


# -- Where -------------------------------------------------------------------


def test_folder_and_socket_are_the_users_alone(watched, folder):
    process = watched()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(os.stat(process.socket).st_mode) == 0o600


def test_default_folder(watched, tmp_path):
    process = watched(
        folder=str(tmp_path / "vllm_nixl"),
        env={"VLLM_NIXL_MONITOR": "1", "XDG_RUNTIME_DIR": str(tmp_path)},
    )
    assert os.path.exists(process.socket)


def test_default_folder_without_a_runtime_folder(monitor, monkeypatch):
    monkeypatch.setenv("VLLM_NIXL_MONITOR", "1")
    for value in ("", "/does/not/exist", "relative"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", value)
        expected = f"/tmp/vllm_nixl-{os.geteuid()}"
        assert monitor.wanted_folder() == expected
        assert expected in monitor.folders()


def refused(watched, why, **options):
    """The agent works, and a warning says why there is no socket."""
    errors = watched(**options).end()
    assert errors.count("\n") == 1, errors
    assert "WARNING" in errors
    assert "VLLM_NIXL_MONITOR: no socket: " in errors
    assert why in errors


def test_folder_that_others_can_change_is_refused(watched, folder):
    folder.mkdir()
    folder.chmod(0o777)
    refused(watched, f"{folder} must have the mode 0700")


def test_something_else_than_a_folder_is_refused(watched, folder, tmp_path):
    (tmp_path / "real").mkdir(0o700)
    folder.symlink_to(tmp_path / "real")
    refused(watched, f"{folder} is not a folder")


@needs_root
def test_folder_of_another_user_is_refused(watched, folder):
    folder.mkdir(0o700)
    os.chown(folder, NOBODY, NOBODY)
    refused(watched, f"{folder} belongs to user {NOBODY}")


def test_wrong_value_is_reported(watched):
    refused(watched, "not 'yes'", env={"VLLM_NIXL_MONITOR": "yes"})


def test_path_that_is_too_long_is_reported(watched, tmp_path):
    refused(watched, "too long", folder=str(tmp_path / ("x" * 120)))


# -- Who ---------------------------------------------------------------------

ASK = """
import os, socket, sys
os.setuid(int(sys.argv[2]))
client = socket.socket(socket.AF_UNIX)
client.settimeout(60)
client.connect(sys.argv[1])
try:
    client.sendall(b"agents\\n")
    print(len(client.recv(1 << 16)))
except OSError:
    print(0)  # closed before the request was sent
"""


@pytest.fixture
def open_folder():
    """Of sockets, where other users can reach it.  Not in tmp_path: pytest
    closes the folders of all its runs to others whenever it starts."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o711)
        yield Path(name, "sockets")


@needs_root
def test_another_user_gets_no_answer(watched, open_folder, monitor):
    """Even if the modes of the files allow the connection."""
    folder = open_folder
    process = watched(folder=folder)
    folder.chmod(0o755)
    os.chmod(process.socket, 0o666)
    done = subprocess.run(
        [sys.executable, "-c", ASK, process.socket, str(NOBODY)],
        capture_output=True,
        text=True,
        env=child_environment(),
        check=False,
        timeout=PATIENCE,
    )
    assert done.stdout == "0\n", done.stderr
    assert monitor.ask(process.socket)["pid"] == process.pid


@needs_root
def test_root_gets_an_answer(watched, open_folder, monitor):
    open_folder.mkdir(0o700)
    os.chown(open_folder, NOBODY, NOBODY)
    process = watched(folder=open_folder, user=NOBODY)
    assert os.stat(process.socket).st_uid == NOBODY
    assert monitor.ask(process.socket)["pid"] == process.pid


# -- Clients that misbehave --------------------------------------------------


def all_of(client):
    with contextlib.suppress(ConnectionResetError):
        return client.recv(1 << 16)
    return b""


@pytest.mark.parametrize(
    "request_",
    [b"GET / HTTP/1.0\r\n", bytes(100_000), b"agents\nagents\n", b"agentX"],
    ids=["http", "zeros", "two", "letter"],
)
def test_garbage_closes_the_connection(watched, monitor, request_):
    process = watched()
    for _ in range(5):
        with connect(process) as client:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                client.sendall(request_)
            assert all_of(client) == b""
    assert monitor.ask(process.socket)["pid"] == process.pid


def test_request_in_pieces(watched):
    process = watched()

    def answer():
        """b"" if this process was too late, which has a second."""
        with connect(process) as client:
            with contextlib.suppress(BrokenPipeError):
                for letter in b"agents\n":
                    client.send(bytes([letter]))
            return all_of(client)

    assert until(answer, "an answer").startswith(b'{"pid"')


def test_request_that_had_to_wait_is_answered(watched):
    """The client's time is over when the server first looks at it."""
    process = watched(
        """
        from vllm_nixl import _monitor_socket

        _monitor_socket.REQUEST_SECONDS = 0.0
        kept = agent_of("one")
        wait()
        """
    )
    stop(process.process)
    try:
        with connect(process) as client:
            client.send(b"agents\n")
            os.kill(process.pid, signal.SIGCONT)
            assert all_of(client).startswith(b'{"pid"')
    finally:
        os.kill(process.pid, signal.SIGCONT)


def test_silent_client_is_dropped(watched):
    process = watched()
    with connect(process) as client:
        assert client.recv(1) == b""


def test_client_that_leaves_at_once(watched, monitor):
    process = watched()
    for _ in range(100):
        with connect(process) as client:
            client.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )
            client.send(b"agents\n")
    assert monitor.ask(process.socket)["pid"] == process.pid


def test_many_clients(watched):
    """All are answered, while others say nothing."""
    process = watched()
    with contextlib.ExitStack() as stack:
        clients = []
        for i in range(60):
            client = stack.enter_context(connect(process))
            if i % 3:
                client.send(b"agents\n")
                clients.append(client)
        for client in clients:
            assert all_of(client).startswith(b'{"pid"')


# -- Ends --------------------------------------------------------------------


def test_exit_removes_the_socket(watched, folder):
    process = watched()
    assert os.listdir(folder) == [f"{process.pid}.sock"]
    assert process.end() == ""
    assert os.listdir(folder) == []


def test_killed_process_is_removed_by_a_look(watched, monitor, folder):
    process, other = watched(), watched()
    process.kill()
    assert os.path.exists(process.socket)
    assert list(monitor.sockets(folder)) == [other.pid]
    assert not os.path.exists(process.socket)


def test_killed_process_is_removed_by_the_next_one(watched, folder):
    watched().kill()
    process = watched()
    assert os.listdir(folder) == [f"{process.pid}.sock"]


def test_other_files_of_the_folder_stay(monitor, folder):
    folder.mkdir(0o700)
    for name in ("12.sock", "notes", "x.sock"):
        (folder / name).touch()
    assert monitor.sockets(folder) == {}
    assert {"notes", "x.sock"} <= set(os.listdir(folder))


def test_forked_child_has_a_socket_of_its_own(watched, monitor, folder):
    process = watched(
        """
        alive, end = os.pipe()
        kept = agent_of("parent")
        pid = os.fork()
        if pid == 0:
            os.close(end)
            kept = agent_of("child")
            print("ready", flush=True)
            os.read(alive, 1)  # until the parent ends
            os._exit(0)
        wait()
        os.waitpid(pid, 0)
        wait()
        """
    )
    process.ready()
    [child] = monitor.sockets(folder).keys() - {process.pid}
    names = {
        pid: [agent["name"] for agent in monitor.ask(file)["agents"]]
        for pid, file in monitor.sockets(folder).items()
    }
    assert names == {process.pid: ["parent"], child: ["child"]}
    os.kill(child, signal.SIGKILL)
    process.go_on()
    process.ready()
    assert list(monitor.sockets(folder)) == [process.pid]


def test_forked_child_without_agents_leaves_the_parents_socket(
    watched, monitor, folder
):
    process = watched(
        """
        kept = agent_of("parent")
        pid = os.fork()
        if pid == 0:
            sys.exit()
        os.waitpid(pid, 0)
        wait()
        """
    )
    assert list(monitor.sockets(folder)) == [process.pid]
    assert monitor.ask(process.socket)["agents"][0]["name"] == "parent"


def test_process_ends_while_clients_ask(watched, monitor):
    process = watched()
    clients = [connect(process) for _ in range(10)]
    for client in clients:
        with contextlib.suppress(BrokenPipeError):  # dropped after a second
            client.send(b"agents\n")
    process.end()
    for client in clients:
        all_of(client)
        client.close()
    until(lambda: not os.path.exists(process.socket), "its removal")
    with pytest.raises(OSError, match="No such file"):
        monitor.ask(process.socket)
