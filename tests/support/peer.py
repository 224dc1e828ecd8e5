"""A peer in another process: an `Endpoint` behind a pipe.

    with PeerProcess("vllm_nixl", "prefill") as peer:
        buffer = peer.alloc(4096, seed=1)
        agent.add_remote_agent(peer.metadata())

Every method of `Endpoint` is a method of the peer, with a deadline.  An
exception in the peer is raised here as `PeerError`, with its class name.
"""

import collections
import ctypes
import gc
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from support.api import Api
from support.deadline import PATIENCE, DeadlineError
from support.endpoint import Endpoint

TESTS = Path(__file__).resolve().parent.parent
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4


class PeerError(Exception):
    """An exception in the peer: `kind` is its class's name."""

    def __init__(self, kind, text, trace):
        super().__init__(f"{kind}: {text}\n{trace}")
        self.kind, self.text = kind, text


class PeerGoneError(Exception):
    """The peer's process ended during a call."""


class PeerProcess:
    """`python`: another interpreter; `user`: a user id to switch to before the
    agent is created; `wrap`: a command that runs the process."""

    PROGRAM = "support.peer"

    def __init__(
        self,
        module,
        name,
        config=None,
        env=None,
        python=None,
        user=None,
        wrap=(),
    ):
        ours, theirs = socket.socketpair()
        self.name = name
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [
                *wrap,
                python or sys.executable,
                "-m",
                self.PROGRAM,
                str(theirs.fileno()),
                module,
                *([] if user is None else [str(user)]),
            ],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stderr=self.errors,
            env=child_environment(env, python),
        )
        theirs.close()
        self.pipe = Connection(ours.detach())
        self.open(name, config)

    def open(self, name, config=None):
        """Create its agent; the previous one must have been left."""
        self.name = name
        self.ask("open", name, config)

    def ask(self, method, *args, timeout=PATIENCE, **keywords):
        """Call a method of the peer's endpoint."""
        self.send(method, *args, **keywords)
        return self.answer(timeout)

    def send(self, method, *args, **keywords):
        """Call without waiting; `answer()` returns the result."""
        try:
            self.pipe.send((method, args, keywords))
        except OSError:
            raise PeerGoneError(self.last_words()) from None

    def answer(self, timeout=PATIENCE):
        try:
            if not self.pipe.poll(timeout + 5):
                raise DeadlineError(f"no answer of {self.name}")
            fine, value = self.pipe.recv()
        except (EOFError, OSError):
            raise PeerGoneError(self.last_words()) from None
        if not fine:
            raise PeerError(*value)
        return value

    def __getattr__(self, method):
        if method.startswith("_"):
            raise AttributeError(method)
        return lambda *args, **keywords: self.ask(method, *args, **keywords)

    def last_words(self):
        """How the process ended and what it wrote to stderr."""
        try:
            code = self.process.wait(5)
        except subprocess.TimeoutExpired:
            code = "none yet"
        self.errors.seek(0)
        text = self.errors.read()[-4000:].decode(errors="replace")
        return f"peer {self.name}, exit status {code}\n{text}"

    def kill(self):
        """Send SIGKILL; return when the process is gone."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(PATIENCE)
        self._drop()

    def close(self):
        """Let it close its agent and exit; its exit status must be 0."""
        if self.process.returncode is not None:
            self._drop()
            return
        try:
            self.send("exit")
            code = self.process.wait(PATIENCE)
            if code != 0:
                raise PeerGoneError(self.last_words())
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()
            self._drop()

    def leave(self):
        """Let it close its agent; the process stays for another agent."""
        self.ask("leave")

    def _drop(self):
        self.pipe.close()
        self.errors.close()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.close()


class PeerPool:
    """Peer processes without agents, kept because starting a process takes
    longer than most tests."""

    def __init__(self):
        self.idle = collections.defaultdict(list)

    def take(self, module, name, config=None, env=None, python=None):
        """A peer with that environment; a `Lease` returns it."""
        found = child_environment(env, python)
        found.pop("PYTEST_CURRENT_TEST", None)
        idle = self.idle[module, python, frozenset(found.items())]
        if idle:
            peer = idle.pop()
            peer.open(name, config)
        else:
            peer = PeerProcess(module, name, config, env, python)
        return peer, Lease(peer, idle)

    def close(self):
        for idle in self.idle.values():
            while idle:
                idle.pop().close()


class Lease:
    def __init__(self, peer, idle):
        self.peer, self.idle = peer, idle

    def close(self):
        """Return it to the pool unless the process has ended."""
        if self.peer.process.returncode is not None:
            self.peer.close()
            return
        try:
            self.peer.leave()
        except BaseException:
            self.peer.close()
            raise
        self.idle.append(self.peer)


def child_environment(extra=None, python=None):
    """Our environment with the test helpers importable, plus `extra`.

    Another Python does not see our packages.
    """
    env = dict(os.environ)
    paths = [str(TESTS)]
    if python is None and env.get("PYTHONPATH"):
        paths.append(env["PYTHONPATH"])
    env["PYTHONPATH"] = os.pathsep.join(paths)
    for key, value in (extra or {}).items():
        if value is None:
            env.pop(key, None)
        else:
            env[key] = value
    return env


def serve(pipe, module):
    """The peer's side: commands in, answers out, until "exit"."""
    endpoint = None
    while True:
        try:
            method, args, keywords = pipe.recv()
        except EOFError:
            return
        if method == "exit":
            break
        try:
            value = None
            if method == "open":
                endpoint = Endpoint(module, *args)
            elif method == "leave":
                endpoint.close()
                endpoint = None
                gc.collect()
            else:
                value = getattr(endpoint, method)(*args, **keywords)
            pipe.send((True, value))
        except Exception as error:
            what = (type(error).__name__, str(error), traceback.format_exc())
            pipe.send((False, what))
    if endpoint is not None:
        endpoint.close()


def become(user):
    """Switch to another user, after importing all modules that it may be
    unable to read."""
    Api(sys.argv[2])
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    # The kernel makes a process that changed its user undumpable.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1)


def main():
    if len(sys.argv) > 3:
        become(int(sys.argv[3]))
    # No orphans: a peer ends with the test process, however that ends.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    serve(Connection(int(sys.argv[1])), sys.argv[2])


if __name__ == "__main__":
    main()
