"""Two hosts: network namespaces joined by a veth pair.

Each has its own address and reaches the other only by TCP.
"""

import json
import sys
from pathlib import Path

import pytest
from support import bench, hosts, ucx
from support.peer import child_environment

pytestmark = [pytest.mark.slow, pytest.mark.beyond_stock]

DEMO = Path(__file__).resolve().parents[2] / "examples" / "kv_demo"
SIZE = ["--layers", "4", "--blocks", "64", "--requests", "4"]
ANY = ["--events", "--port", "0"]
PATIENCE = 90


@pytest.fixture
def two():
    if hosts.why_none() is not None:
        pytest.skip(hosts.why_none())
    try:
        made = hosts.two_hosts()
    except OSError as error:
        pytest.skip(f"network namespaces are not available: {error}")
    yield made
    made.remove()


@pytest.fixture(params=["libucx", "nixl"])
def env(request):
    path = ucx.library(request.param)
    if ucx.why_not(path) is not None:
        pytest.skip(f"{request.param}: {ucx.why_not(path)}")
    return child_environment(ucx.environment(path, "tcp"))


def events(process):
    """The output lines of an instance of the demo."""
    for text in process.stdout:
        if text.startswith("{"):
            yield json.loads(text)


def finish(process):
    status = process.wait(PATIENCE)
    process.errors.seek(0)
    assert status == 0, process.errors.read()
    process.errors.close()


def end(*processes):
    """Kill those that were started and have not ended."""
    for process in processes:
        if process is not None and process.poll() is None:
            process.kill()
            process.wait()


def test_demo_runs_between_two_hosts(two, env):
    """The side channel carries the handshake and UCX the blocks; decode checks
    every byte, prefill frees the fetched blocks."""
    demo = [sys.executable, str(DEMO), *SIZE, *ANY]
    demo += ["--timeout", str(PATIENCE)]
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
        end(prefill, decode)
    assert "handshake" in told
    assert len(set(freed)) == 4


def test_two_hosts_are_told_apart(two, env):
    """Both run on one machine and may even share its pids; they are told apart
    because neither can reach the other's sockets."""
    env = {key: env[key] for key in env if key != "VLLM_NIXL_SAME_HOST"}
    demo = [sys.executable, str(DEMO), *SIZE, *ANY]
    demo += ["--timeout", str(PATIENCE)]
    prefill = two.start(0, [*demo, "--role", "prefill"], env)
    decode = None
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
        end(prefill, decode)


def test_bench_measures_between_two_hosts(two, env, opened):
    """By UCX; the server goes on when a client on the other host dies."""
    small = [*bench.SMALL, "--block-sizes", "64k", "--batch", "8"]
    serve = ["--serve", "--port", "0", "--size", "8m"]
    server = bench.Running(*serve, env=env, prefix=two.inside(0))
    opened.append(server)
    place = f"{two.addresses[0]}:{server.port()}"
    far = {"env": env, "prefix": two.inside(1)}
    dying = bench.Running(place, *small, "--seconds", "30", **far)
    opened.append(dying)
    server.line("measures")
    dying.kill()
    server.line("is lost")
    client = bench.Running(place, *small, "--json", **far)
    opened.append(client)
    text = client.end(0)
    found = json.loads(text[text.index("{") :])
    assert found["route"]["path"] == "UCX"
    assert "tcp" in found["route"]["transports"]
    assert len(found["points"]) == 2
    server.line("measures")
    server.line("has ended")
