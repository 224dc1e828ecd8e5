"""Two hosts: network namespaces that a veth pair joins.

Each has an address of its own and no way to the other but TCP.
"""

import json
import sys
from pathlib import Path

import pytest
from support import hosts, ucx
from support.peer import child_environment

pytestmark = [pytest.mark.slow, pytest.mark.beyond_stock]

DEMO = Path(__file__).resolve().parents[2] / "examples" / "kv_demo"
SIZE = ["--layers", "4", "--blocks", "64", "--requests", "4"]
PATIENCE = 90


@pytest.fixture
def two():
    if hosts.why_none() is not None:
        pytest.skip(hosts.why_none())
    try:
        made = hosts.two_hosts()
    except OSError as error:
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


def test_the_demo_runs_between_two_hosts(two, env):
    """The handshake by the side channel, the blocks by UCX; decode checks
    every byte, prefill frees what was fetched."""
    demo = [sys.executable, str(DEMO), *SIZE, "--timeout", str(PATIENCE)]
    prefill = two.start(0, [*demo, "--role", "prefill"], env)
    decode = None
    try:
        said = events(prefill)
        ready = next(event for event in said if event["event"] == "ready")
        address = ["--host", two.addresses[0], "--port", str(ready["port"])]
        decode = two.start(1, [*demo, "--role", "decode", *address], env)
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


def test_hosts_do_not_take_each_other_for_one(two, env):
    """Both run on one machine and may even share its pids: what tells them
    apart is that no socket of the one is reached by the other."""
    env = {key: env[key] for key in env if key != "VLLM_NIXL_SAME_HOST"}
    demo = [sys.executable, str(DEMO), *SIZE, "--timeout", str(PATIENCE)]
    prefill = two.start(0, [*demo, "--role", "prefill"], env)
    try:
        said = events(prefill)
        ready = next(event for event in said if event["event"] == "ready")
        address = ["--host", two.addresses[0], "--port", str(ready["port"])]
        decode = two.start(1, [*demo, "--role", "decode", *address], env)
        list(events(decode))
        finish(decode)
        list(said)
        finish(prefill)
    finally:
        if prefill.poll() is None:
            prefill.kill()
            prefill.wait()
