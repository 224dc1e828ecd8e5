"""Processes that exit with open UCX agents: their exit status, and the
messages
that their peers receive.
"""

import pytest
from support import mourning, ucx
from support.peer import PeerProcess
from support.program import run_program

pytestmark = [pytest.mark.slow, pytest.mark.beyond_stock]

ROUNDS = mourning.ROUNDS or 1


@pytest.fixture(params=ucx.TRANSPORTS)
def transport(request):
    return request.param


@pytest.fixture(params=["libucx", "nixl"])
def env(request, transport):
    path = ucx.library(request.param)
    if ucx.why_not(path) is not None:
        pytest.skip(f"{request.param}: {ucx.why_not(path)}")
    return ucx.environment(path, transport)


AGENTS = """
import builtins, mmap, ctypes, sys, vllm_nixl
SIZE = 32 << 20

def memory():
    owner = mmap.mmap(-1, SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pin = ctypes.c_char.from_buffer(owner)
    return owner, ctypes.addressof(pin)

here, there = vllm_nixl.NixlAgent("here"), vllm_nixl.NixlAgent("there")
mine, mine_at = memory()
theirs, theirs_at = memory()
registered = here.register_memory([(mine_at, SIZE, 0, "")], "DRAM")
there.register_memory([(theirs_at, SIZE, 0, "")], "DRAM")
here.add_remote_agent(there.get_agent_metadata())
left = here.prep_xfer_dlist("", [(mine_at, SIZE, 0)], "DRAM")
right = here.prep_xfer_dlist("there", [(theirs_at, SIZE, 0)], "DRAM")
long = here.make_prepped_xfer(OPERATION, left, [0] * 5000, right, [0] * 5000)
short = here.make_prepped_xfer(OPERATION, left, [0], right, [0])
here.transfer(short)
here.wait([short], timeout=60)
assert here.transfer(long) == "PROC"
"""
ENDS = {
    "falls off the end": "",
    # A list frees its last item first: the memory goes before the agents.
    "memory goes first": (
        "builtins.kept = [here, there, left, right, long, mine, theirs]\n"
        "del here, there, left, right, long, short, mine, theirs\n"
    ),
    "sys.exit": "sys.exit(0)\n",
    "exit of C": "ctypes.CDLL(None).exit(0)\n",
}


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
@pytest.mark.parametrize("end", ENDS)
def test_process_exits_cleanly_with_a_transfer_in_flight(env, end, operation):
    source = f"OPERATION = {operation!r}\n{AGENTS}{ENDS[end]}"
    for _ in range(ROUNDS):
        run_program(source, env=env, timeout=60)


LATE = (
    """
import atexit

def late():
    error = None
    try:
        here.transfer(short)
    except vllm_nixl.nixlRemoteDisconnectError:
        error = True
    here.release_xfer_handle(long)
    here.deregister_memory(registered)
    here.remove_remote_agent("there")
    here.close()
    print("refused" if error else "done")

atexit.register(late)  # before the module's own, so called after it
"""
    + AGENTS
)


def test_calls_in_a_late_exit_handler_do_not_hang(env):
    source = f"OPERATION = 'READ'\n{LATE}"
    assert run_program(source, env=env, timeout=60).stdout == "refused\n"


LAST_WORDS = """
import vllm_nixl
agent = vllm_nixl.NixlAgent("leaving")
name = agent.add_remote_agent(bytes.fromhex({blob!r}))
for number in range({count}):
    agent.send_notif(name, number.to_bytes(8, "little"))
"""


def test_notifications_sent_before_exit_arrive(env, names, opened):
    there = PeerProcess("vllm_nixl", names(), {}, env)
    opened.append(there)
    count = 100
    source = LAST_WORDS.format(blob=there.metadata().hex(), count=count)
    for _ in range(ROUNDS):
        run_program(source, env=env, timeout=60)
        assert there.gather_numbers(count) == list(range(count))
