"""Two hosts: network namespaces that a veth pair joins.

Each has an address of its own and no way to the other but TCP.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support import ucx
from support.peer import child_environment

pytestmark = [pytest.mark.slow, pytest.mark.beyond_stock]

DEMO = Path(__file__).resolve().parents[2] / "examples" / "kv_demo"
SIZE = ["--layers", "4", "--blocks", "64", "--requests", "4"]
PATIENCE = 90


class Hosts:
    """Two namespaces, made and joined."""

    def __init__(self):
        self.names = [f"vnx-{os.getpid()}-{side}" for side in "ab"]
        self.links = [f"vnx{os.getpid() % 100000}{side}" for side in "ab"]
        self.addresses = ["10.213.7.1", "10.213.7.2"]

    def ip(self, *arguments):
        done = subprocess.run(
            ["ip", *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")

    def make(self):
        for name in self.names:
            self.ip("netns", "add", name)
        self.ip(
            "link", "add", self.links[0], "type", "veth", "peer", self.links[1]
        )
        for name, link, address in zip(
            self.names, self.links, self.addresses, strict=True
        ):
            self.ip("link", "set", link, "netns", name)
            inside = ["-n", name]
            self.ip(*inside, "addr", "add", f"{address}/24", "dev", link)
            self.ip(*inside, "link", "set", link, "up")
            self.ip(*inside, "link", "set", "lo", "up")

    def remove(self):
        for name in self.names:
            subprocess.run(
                ["ip", "netns", "del", name], capture_output=True, check=False
            )
        subprocess.run(
            ["ip", "link", "del", self.links[0]],
            capture_output=True,
            check=False,
        )

    def start(self, number, command, env):
        """A program on one of the hosts."""
        errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.names[number], *command],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=env,
        )
        process.errors = errors
        return process


@pytest.fixture
def hosts():
    if shutil.which("ip") is None:
        pytest.skip("there is no ip(8), of iproute2")
    made = Hosts()
    try:
        made.make()
    except OSError as error:
        made.remove()
        pytest.skip(f"network namespaces are not to be had: {error}")
    yield made
    made.remove()


@pytest.fixture(params=["libucx", "nixl"])
def env(request):
    path = ucx.library(request.param)
    if ucx.why_not(path) is not None:
        pytest.skip(f"{request.param}: {ucx.why_not(path)}")
    return child_environment(ucx.environment(path, "tcp"))


def events(process):
    """What an instance of the demo says, line by line."""
    for text in process.stdout:
        if text.startswith("{"):
            yield json.loads(text)


def finish(process):
    status = process.wait(PATIENCE)
    process.errors.seek(0)
    assert status == 0, process.errors.read()
    process.errors.close()


def test_the_demo_runs_between_two_hosts(hosts, env):
    """The handshake by the side channel, the blocks by UCX; decode checks
    every byte, prefill frees what was fetched."""
    demo = [sys.executable, str(DEMO), *SIZE, "--timeout", str(PATIENCE)]
    prefill = hosts.start(0, [*demo, "--role", "prefill"], env)
    decode = None
    try:
        said = events(prefill)
        ready = next(event for event in said if event["event"] == "ready")
        address = ["--host", hosts.addresses[0], "--port", str(ready["port"])]
        decode = hosts.start(1, [*demo, "--role", "decode", *address], env)
        told = {event["event"] for event in events(decode)}
        finish(decode)
        freed = [event["request"] for event in said if "request" in event]
        finish(prefill)
    finally:
        for process in (prefill, decode):
            if process is not None and process.poll() is None:
                process.kill()
                process.wait()
    assert "handshake" in told
    assert len(set(freed)) == 4


def test_hosts_do_not_take_each_other_for_one(hosts, env):
    """Both run on one machine and may even share its pids: what tells them
    apart is that no socket of the one is reached by the other."""
    env = {key: env[key] for key in env if key != "VLLM_NIXL_SAME_HOST"}
    demo = [sys.executable, str(DEMO), *SIZE, "--timeout", str(PATIENCE)]
    prefill = hosts.start(0, [*demo, "--role", "prefill"], env)
    try:
        said = events(prefill)
        ready = next(event for event in said if event["event"] == "ready")
        address = ["--host", hosts.addresses[0], "--port", str(ready["port"])]
        decode = hosts.start(1, [*demo, "--role", "decode", *address], env)
        list(events(decode))
        finish(decode)
        list(said)
        finish(prefill)
    finally:
        if prefill.poll() is None:
            prefill.kill()
            prefill.wait()
