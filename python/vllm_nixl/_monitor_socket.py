"""The socket that shows the agents of a process: where it is, what it sends.

VLLM_NIXL_MONITOR=1 starts, with the first agent, a thread that answers
`vllm-nixl top` and other programs on a Unix socket: FOLDER/PID.sock, where
FOLDER is that of wanted_folder() below.  Only the same user and root get an
answer.

Protocol.  A client connects, sends the line "agents", and gets the state of
the process as one line of JSON; then the server closes the connection.
Anything else, or no line within a second, closes it without an answer.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import selectors
import socket
import stat
import struct
import time
from threading import Thread
from typing import TYPE_CHECKING, Any

from ._core import NixlError
from ._monitor import VARIABLE, live_agents

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._agent import NixlAgent

REQUEST = b"agents\n"
SUFFIX = ".sock"
CLIENTS_MAX = 32  # further ones wait in the backlog
REQUEST_SECONDS = 1.0
ANSWER_SECONDS = 5.0
ANSWER_MAX = 64 << 20
_THREADS = "vnx-"  # the library's threads

# -- The folder --------------------------------------------------------------


class MonitorError(Exception):
    """There can be no socket; the text tells why."""


def folders() -> list[str]:
    """Where processes of this user may have their sockets; for root, where
    those of any user may have them."""
    user = os.geteuid()
    found = [_default_folder(), f"/run/user/{user}/vllm_nixl"]
    found.append(f"/tmp/vllm_nixl-{user}")
    if os.path.isabs(os.environ.get(VARIABLE, "")):
        found.insert(0, os.environ[VARIABLE])
    if user == 0:
        found += glob.glob("/run/user/*/vllm_nixl")
        found += glob.glob("/tmp/vllm_nixl-*")
    return list(dict.fromkeys(found))


def _default_folder() -> str:
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and os.path.isdir(runtime):
        return os.path.join(runtime, "vllm_nixl")
    return f"/tmp/vllm_nixl-{os.geteuid()}"


def wanted_folder() -> str:
    """The folder that the environment asks for."""
    value = os.environ[VARIABLE]
    if value == "1":
        return _default_folder()
    if not os.path.isabs(value):
        raise MonitorError(
            f"it must be 0, 1 or the absolute path of a folder, not {value!r}"
        )
    return value


def _check_folder(path: str) -> None:
    """Make the folder; refuse one that others could have made or change."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o700)
    found = os.lstat(path)
    if not stat.S_ISDIR(found.st_mode):
        raise MonitorError(f"{path} is not a folder")
    if found.st_uid != os.geteuid():
        raise MonitorError(f"{path} belongs to user {found.st_uid}")
    if found.st_mode & 0o077:
        raise MonitorError(f"{path} must have the mode 0700")


def sockets(path: str) -> dict[int, str]:
    """The sockets in a folder by process id; removes those of processes that
    have ended."""
    try:
        names = os.listdir(path)
    except OSError:
        return {}
    found = {}
    for name in names:
        number = name.removesuffix(SUFFIX)
        if name.endswith(SUFFIX) and number.isdecimal():
            file = os.path.join(path, name)
            if _is_served(file):
                found[int(number)] = file
    return dict(sorted(found.items()))


def _is_served(file: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.setblocking(False)
        try:
            client.connect(file)
        except BlockingIOError:
            return True  # it has many clients
        except ConnectionRefusedError:
            _remove(file)
            return False
        except OSError:
            return False
    return True


def _remove(file: str) -> None:
    """Not in a folder of another user, who could put another file there."""
    with contextlib.suppress(OSError):
        if os.lstat(os.path.dirname(file)).st_uid == os.geteuid():
            os.unlink(file)


def ask(file: str) -> dict[str, Any]:
    """What the process with that socket shows: snapshot() there."""
    deadline = time.monotonic() + ANSWER_SECONDS
    answer = bytearray()
    # With these options connect() waits while many others do, too; after
    # settimeout() it would not.
    patience = struct.pack("ll", int(ANSWER_SECONDS), 0)
    with socket.socket(socket.AF_UNIX) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, patience)
        try:
            client.connect(file)
            client.sendall(REQUEST)
            while got := client.recv(1 << 16):
                answer += got
                if time.monotonic() > deadline or len(answer) > ANSWER_MAX:
                    raise MonitorError(f"{file}: the answer has no end")
        except BlockingIOError:
            raise MonitorError(f"{file}: no answer in time") from None
    if not answer.endswith(b"\n"):
        raise MonitorError(f"{file}: the process has not answered")
    try:
        state = json.loads(answer)
    except ValueError:
        state = None
    if not isinstance(state, dict) or "agents" not in state:
        raise MonitorError(f"{file}: not the socket of vllm_nixl")
    return state


# -- What is shown -----------------------------------------------------------


def snapshot() -> dict[str, Any]:
    """The state of the process and of its agents."""
    process, threads = cpu_seconds()
    return {
        "pid": os.getpid(),
        "command": _command(),
        "time": time.time(),
        "cpu_s": process,
        "threads": threads,
        "agents": [
            state for agent in live_agents() for state in _state(agent)
        ],
    }


def _state(agent: NixlAgent) -> Iterator[dict[str, Any]]:
    """Nothing if the agent is closed meanwhile."""
    with contextlib.suppress(NixlError):
        yield {
            "name": agent.name,
            "describe": agent.describe(),
            "stats": agent.stats(),
            "peers": agent.peers(),
        }


def _command() -> str:
    with open("/proc/self/cmdline", "rb") as file:
        words = file.read().rstrip(b"\0").split(b"\0")
    return b" ".join(words).decode(errors="replace")


def cpu_seconds() -> tuple[float, dict[str, dict[str, float]]]:
    """CPU seconds of the process, and of the library's threads by name:
    {"vnx-copy": {"count": 4, "cpu_s": 1.25}}."""
    threads: dict[str, dict[str, float]] = {}
    for number in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{number}/stat") as file:
                text = file.read()
        except OSError:
            continue  # it has ended
        name = text[text.index("(") + 1 : text.rindex(")")]
        if name.startswith(_THREADS):
            entry = threads.setdefault(name, {"count": 0, "cpu_s": 0.0})
            entry["count"] += 1
            entry["cpu_s"] += _ticks(text) / os.sysconf("SC_CLK_TCK")
    return time.process_time(), threads


def _ticks(text: str) -> int:
    """utime and stime of a stat file, proc(5)."""
    fields = text[text.rindex(")") + 2 :].split()
    return int(fields[11]) + int(fields[12])


# -- The server --------------------------------------------------------------


class _Client:
    def __init__(self, link: socket.socket) -> None:
        self.link = link
        self.deadline = time.monotonic() + REQUEST_SECONDS
        self.request = b""
        self.answer: memoryview | None = None

    def go_on(self) -> bool:
        """Receive or send what is possible; return whether to go on."""
        try:
            if self.answer is None:
                return self._receive()
            self.answer = self.answer[self.link.send(self.answer) :]
        except BlockingIOError:
            return True
        except OSError:
            return False
        return len(self.answer) > 0

    def _receive(self) -> bool:
        got = self.link.recv(len(REQUEST) + 1)
        self.request += got
        if not got or not REQUEST.startswith(self.request):
            return False
        if self.request == REQUEST:
            text = json.dumps(snapshot(), default=str) + "\n"
            self.answer = memoryview(text.encode())
            self.deadline = time.monotonic() + ANSWER_SECONDS
        return True


class Server:
    """Serves on one thread, until the process ends."""

    def __init__(self, path: str) -> None:
        _check_folder(path)
        known = sockets(path)  # removes those of ended processes
        self.pid = os.getpid()
        self.file = os.path.join(path, f"{self.pid}{SUFFIX}")
        if self.pid in known:
            raise MonitorError(f"{self.file} is in use")
        self.listener = socket.socket(socket.AF_UNIX)
        self.selector = selectors.DefaultSelector()
        self.clients: dict[socket.socket, _Client] = {}
        try:
            self._listen(path)
            self.listener.setblocking(False)
            Thread(target=self._serve, name="vnx-monitor", daemon=True).start()
        except BaseException:
            self.end()
            raise

    def _listen(self, path: str) -> None:
        """Nobody must see the socket, and take it for that of an ended
        process, before it listens."""
        new = os.path.join(path, f".{self.pid}")
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
        self.listener.bind(new)
        os.chmod(new, 0o600)
        self.listener.listen(CLIENTS_MAX)
        os.rename(new, self.file)

    def _serve(self) -> None:
        self.selector.register(self.listener, selectors.EVENT_READ)
        while True:
            for key, _ in self.selector.select(self._patience()):
                if key.data is None:
                    self._accept()
                else:
                    self._work(key.data)
            self._drop_late()

    def _patience(self) -> float | None:
        if not self.clients:
            return None
        first = min(client.deadline for client in self.clients.values())
        return max(0.0, first - time.monotonic())

    def _accept(self) -> None:
        try:
            link, _ = self.listener.accept()
        except OSError:
            time.sleep(0.1)  # out of descriptors: the client stays
            return
        if not _is_allowed(link):
            link.close()
            return
        link.setblocking(False)
        client = _Client(link)
        self.clients[link] = client
        self.selector.register(link, selectors.EVENT_READ, client)
        if len(self.clients) == CLIENTS_MAX:
            self.selector.unregister(self.listener)

    def _work(self, client: _Client) -> None:
        try:
            goes_on = client.go_on()
        except Exception:  # the thread must not end
            from ._log import logger

            logger.exception("%s: no answer", VARIABLE)
            goes_on = False
        if not goes_on:
            self._drop(client)
        elif client.answer is not None:
            self.selector.modify(client.link, selectors.EVENT_WRITE, client)

    def _drop(self, client: _Client) -> None:
        if len(self.clients) == CLIENTS_MAX:
            self.selector.register(self.listener, selectors.EVENT_READ)
        self.selector.unregister(client.link)
        del self.clients[client.link]
        client.link.close()

    def _drop_late(self) -> None:
        """A request may have come while the thread was busy or did not run:
        look once more."""
        now = time.monotonic()
        for client in list(self.clients.values()):
            if client.deadline <= now:
                self._work(client)
            if client.deadline <= now and client.link in self.clients:
                self._drop(client)

    def end(self) -> None:
        """Remove the socket; the thread ends with the process."""
        if self.pid == os.getpid():
            with contextlib.suppress(OSError):
                os.unlink(self.file)

    def forget(self) -> None:
        """In a forked child, which has no such thread."""
        self.selector.close()
        self.listener.close()
        for link in self.clients:
            link.close()


def _is_allowed(link: socket.socket) -> bool:
    size = struct.calcsize("3i")
    who = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    _, user, _ = struct.unpack("3i", who)
    return user in (os.geteuid(), 0)
