"""The process reaches its descriptor limit.

Errors name the limit, live peers are not taken for dead, and everything works
again once descriptors are free.
"""

import pytest
from support.program import run_program

pytestmark = [pytest.mark.beyond_stock, pytest.mark.slow]

COMMON = """
import os, resource, subprocess, sys, time
import vllm_nixl

def limit(count):
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(count, hard), hard))

def check_named(error):
    text = str(error)
    assert "(RLIMIT_NOFILE); raise it with ulimit -n" in text, text

def notifs(agent, patience=30):
    end = time.monotonic() + patience
    found = {}
    while not found and time.monotonic() < end:
        found = agent.get_new_notifs()
        time.sleep(0.01)
    return found
"""


def test_agents_beyond_the_descriptor_limit_fail_with_a_cause(inproc):
    run_program(
        COMMON
        + """
limit(256)
agents = []
try:
    for number in range(300):
        agents.append(vllm_nixl.NixlAgent(f"agent-{number}"))
        if number > 0:
            agents[0].add_remote_agent(agents[-1].get_agent_metadata())
except vllm_nixl.nixlBackendError as error:
    check_named(error)
else:
    raise AssertionError("300 agents at a limit of 256 descriptors")
for agent in agents[len(agents) // 2 :]:
    agent.close()
again = vllm_nixl.NixlAgent("again")
agents[0].add_remote_agent(again.get_agent_metadata())
agents[0].send_notif("again", b"x")
assert notifs(again) == {"agent-0": [b"x"]}
""",
        env=inproc.env,
    )


def test_agent_creation_fails_cleanly_at_every_low_limit(inproc):
    run_program(
        COMMON
        + """
refused = 0
for count in range(4, 40):
    limit(count)
    try:
        vllm_nixl.NixlAgent(f"agent-{count}").close()
    except vllm_nixl.nixlBackendError as error:
        refused += 1
        check_named(error)
assert refused > 0
limit(1024)
vllm_nixl.NixlAgent("last").close()
""",
        env=inproc.env,
    )


# Agents in another process, which has no such limit.  It prints lines of
# metadata; then, for each number it reads, the notifications of that agent.
MANY = (
    COMMON
    + """
limit(1 << 20)
agents = [vllm_nixl.NixlAgent(f"peer-{i}") for i in range(int(sys.argv[1]))]
for agent in agents:
    print(agent.get_agent_metadata().hex(), flush=True)
for line in sys.stdin:
    print(notifs(agents[int(line)]), flush=True)
"""
)

LOADER = """
child = subprocess.Popen(
    [sys.executable, "-c", MANY, str(COUNT)],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
)
blobs = [bytes.fromhex(child.stdout.readline()) for _ in range(COUNT)]
here = vllm_nixl.NixlAgent("here")
limit(LIMIT)

def open_descriptors():
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return LIMIT

def reach(number):
    name = f"peer-{number}"
    here.add_remote_agent(blobs[number])
    end = time.monotonic() + 30
    here.send_notif(name, b"x")
    while here.describe(name)["state"] != "connected":
        assert time.monotonic() < end, here.describe(name)
        time.sleep(0.01)
        here.check_remote_metadata(name)
        if here.describe(name)["state"] not in ("connecting", "connected"):
            here.send_notif(name, b"y")  # raises, with the cause
    child.stdin.write(f"{number}\\n")
    child.stdin.flush()
    assert child.stdout.readline() == "{'here': [b'x']}\\n", number

reached = 0
try:
    while reached < COUNT:
        reach(reached)
        reached += 1
except (
    vllm_nixl.nixlBackendError, vllm_nixl.nixlRemoteDisconnectError
) as error:
    check_named(error)
else:
    raise AssertionError("the limit was not reached")
assert reached > 10
for number in range(reached):
    here.send_notif(f"peer-{number}", b"alive")  # raises for a dead one
    here.remove_remote_agent(f"peer-{number}")
if IS_UCX:  # which keeps sockets of live peers until the agent is closed
    here.close()
    here = vllm_nixl.NixlAgent("here")
end = time.monotonic() + 30
while open_descriptors() > LIMIT - 15:
    assert time.monotonic() < end
    time.sleep(0.01)
reach(COUNT - 1)
child.kill()
"""


@pytest.fixture
def tcp(inproc):
    """With UCX over TCP each connection has a socket."""
    return {**inproc.env, "UCX_TLS": "tcp"}


def test_peers_beyond_the_descriptor_limit_fail_with_a_cause(inproc, tcp):
    is_ucx = "ucx" in inproc.name
    count, limit = (60, 80) if is_ucx else (150, 256)
    source = (
        f"{COMMON}MANY = {MANY!r}\n"
        f"COUNT, LIMIT, IS_UCX = {count}, {limit}, {is_ucx}\n"
    )
    run_program(source + LOADER, env=tcp)


# An agent whose process has no free descriptor until it is told to free some.
FULL = (
    COMMON
    + """
limit(100)
agent = vllm_nixl.NixlAgent("full", vllm_nixl.nixl_agent_config(
    enable_listen_thread=True, listen_port=0))
port = agent.start_side_channel_listener(0, agent.get_agent_metadata())
taken = []
print(agent.get_agent_metadata().hex(), port, agent.listen_port, flush=True)
for line in sys.stdin:
    if line == "fill\\n":
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            print("full", flush=True)
    elif line == "one\\n":
        os.close(taken.pop())
        print("one", flush=True)
    elif line == "cpu\\n":
        before = time.process_time()
        time.sleep(1)
        print(time.process_time() - before, flush=True)
    elif line == "free\\n":
        while taken:
            os.close(taken.pop())
        print("free", flush=True)
    else:
        print(notifs(agent), flush=True)
"""
)

TARGET = """
child = subprocess.Popen(
    [sys.executable, "-c", FULL],
    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
)

def ask(order):
    child.stdin.write(order + "\\n")
    child.stdin.flush()
    return child.stdout.readline().strip()

blob, port, meta_port = child.stdout.readline().split()
blob = bytes.fromhex(blob)
here = vllm_nixl.NixlAgent("here")
known = vllm_nixl.NixlAgent("known")
known.add_remote_agent(blob)
known.send_notif("full", b"before")
assert ask("notifs") == "{'known': [b'before']}"
assert ask("fill") == "full"
if MAY_WAIT:
    # It gets the last descriptor, and none is left to watch its process by.
    assert ask("one") == "one"
    last = vllm_nixl.NixlAgent("last")
    last.add_remote_agent(blob)
    last.send_notif("full", b"last")
    assert ask("notifs") == "{'last': [b'last']}"
    last.send_notif("full", b"more")
    assert ask("notifs") == "{'last': [b'more']}"
here.add_remote_agent(blob)
try:
    here.request_remote_metadata("127.0.0.1", int(port), timeout_ms=500)
except vllm_nixl.NixlError:
    pass
here.send_local_metadata("127.0.0.1", int(meta_port))
known.send_notif("full", b"meanwhile")
assert ask("notifs") == "{'known': [b'meanwhile']}"
assert float(ask("cpu")) < 0.5  # nothing spins
if MAY_WAIT:
    here.send_notif("full", b"waiting")
    assert here.describe("full")["state"] == "connected"
assert ask("free") == "free"
if MAY_WAIT:
    assert ask("notifs") == "{'here': [b'waiting']}"
else:
    here.remove_remote_agent("full")
    here.add_remote_agent(blob)
    here.send_notif("full", b"again")
    assert ask("notifs") == "{'here': [b'again']}"
assert here.request_remote_metadata("127.0.0.1", int(port)) != b""
here.fetch_remote_metadata("full", "127.0.0.1", int(meta_port))
end = time.monotonic() + 30
known.send_notif("full", b"after")
assert ask("notifs") == "{'known': [b'after']}"
child.kill()
"""


def test_peer_without_descriptors_recovers(inproc, tcp):
    may_wait = "ucx" not in inproc.name  # UCX has to refuse it
    source = f"{COMMON}FULL = {FULL!r}\nMAY_WAIT = {may_wait}\n"
    run_program(source + TARGET, env=tcp)
