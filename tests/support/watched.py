"""Processes with agents that `vllm-nixl top` can watch."""

import contextlib
import os
import subprocess
import sys

from support.deadline import or_kill
from support.peer import child_environment

PROGRAM = """
import os, sys
from vllm_nixl import NixlAgent, nixl_agent_config

def agent_of(name, **config):
    return NixlAgent(name, nixl_agent_config(**config))

def wait():
    print("ready", flush=True)
    sys.stdin.readline()
"""


class Watched:
    """A process that runs `source`, which calls wait().  Its sockets are in
    `folder`; `user`: a user id that it switches to."""

    def __init__(self, folder, source, user=None, env=None):
        # Python's modules may be in a place that the user cannot read.
        switch = f"""
import vllm_nixl._monitor_socket, vllm_nixl._log, vllm_nixl._serialize
os.setuid({user})
"""
        if user is None:
            switch = ""
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM + switch + source],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=child_environment(
                {
                    "VLLM_NIXL_MONITOR": str(folder),
                    "VLLM_NIXL_LOG_LEVEL": None,
                    "NIXL_LOG_LEVEL": None,
                    **(env or {}),
                }
            ),
        )
        self.pid = self.process.pid
        self.socket = os.path.join(folder, f"{self.pid}.sock")
        self.ready()

    def ready(self):
        with or_kill(self.process):
            line = self.process.stdout.readline()
        assert line == "ready\n", line + self.process.stderr.read()

    def go_on(self):
        """Let wait() return."""
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self):
        """Let it end; returns what it wrote to stderr."""
        _, errors = self.process.communicate("\n", timeout=60)
        assert self.process.returncode == 0, errors
        return errors

    def kill(self):
        """Without waiting for a child of it, which has its streams too."""
        self.process.kill()
        self.process.wait()
        for stream in (
            self.process.stdin,
            self.process.stdout,
            self.process.stderr,
        ):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
