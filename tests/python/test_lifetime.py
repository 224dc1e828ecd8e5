"""Handles and agents are released in every order, at every time."""

import gc
import itertools
import random
import threading

import pytest
from support import deadline
from support.memory import pattern
from support.program import run_program

SIZE = 64 * 1024


class Chain:
    """Two lists and a transfer that uses them."""

    def __init__(self, here, there, seed=1):
        self.here, self.there = here, there
        remote, local = there.alloc(SIZE, seed=seed), here.alloc(SIZE)
        here.add(there.metadata())
        agent = here.agent
        self.local = local
        self.left = agent.prep_xfer_dlist("", [(local.addr, SIZE, 0)], "DRAM")
        self.right = agent.prep_xfer_dlist(
            there.name, [(remote.addr, SIZE, 0)], "DRAM"
        )
        self.xfer = agent.make_prepped_xfer(
            "READ", self.left, [0], self.right, [0]
        )


# -- order -------------------------------------------------------------------


@pytest.mark.parametrize(
    "order", [*itertools.permutations(["left", "right", "xfer"])]
)
def test_handles_are_released_in_any_order(pair, order):
    chain = Chain(*pair)
    assert deadline.run(chain.here.agent, chain.xfer) == "DONE"
    for name in order:
        getattr(chain, name).release()
    assert chain.here.read(chain.local.key) == pattern(1, SIZE)


@pytest.mark.beyond_stock
def test_transfer_keeps_its_lists_alive(pair):
    """The lists are released before the post; stock would use freed memory."""
    chain = Chain(*pair)
    chain.left.release()
    chain.right.release()
    assert deadline.run(chain.here.agent, chain.xfer) == "DONE"
    assert chain.here.read(chain.local.key) == pattern(1, SIZE)


@pytest.mark.parametrize("method", ["release", "agent"])
def test_releasing_twice_is_harmless(pair, method):
    chain = Chain(*pair)
    agent = chain.here.agent
    for _ in range(2):
        if method == "release":
            chain.xfer.release()
            chain.left.release()
        else:
            agent.release_xfer_handle(chain.xfer)
            agent.release_dlist_handle(handle=chain.left)


def test_unreleased_handles_are_freed(pair):
    """SGLang and LMCache never release handles; deallocation does."""
    chain = Chain(*pair)
    deadline.run(chain.here.agent, chain.xfer)
    del chain.xfer, chain.left, chain.right
    gc.collect()
    again = Chain(*pair, seed=2)
    assert deadline.run(again.here.agent, again.xfer) == "DONE"


@pytest.mark.beyond_stock
def test_live_handles_are_counted(pair):
    here = pair[0]
    before = here.agent.stats()
    chain = Chain(*pair)
    during = here.agent.stats()
    assert during["live_dlists"] == before["live_dlists"] + 2
    assert during["live_xfers"] == before["live_xfers"] + 1
    del chain
    gc.collect()
    assert here.agent.stats()["live_dlists"] == before["live_dlists"]
    assert here.agent.stats()["live_xfers"] == before["live_xfers"]


@pytest.mark.beyond_stock
def test_handles_are_context_managers(pair):
    chain = Chain(*pair)
    agent = chain.here.agent
    with chain.xfer as handle, chain.left, chain.right:
        assert handle is chain.xfer
        assert deadline.run(agent, handle) == "DONE"
    assert agent.stats()["live_xfers"] == 0
    assert agent.stats()["live_dlists"] == 0


def test_handles_are_hashable_and_true(pair):
    """vLLM keeps them in sets, LightLLM by id."""
    chain = Chain(*pair)
    assert chain.xfer
    assert chain.left
    assert len({chain.xfer, chain.left, chain.right, chain.xfer}) == 3
    assert chain.left != chain.right
    assert "nixl_xfer_handle" in repr(chain.xfer)
    assert "nixl_prepped_dlist_handle" in repr(chain.left)


# -- other threads -----------------------------------------------------------


def test_handles_are_released_from_another_thread(pair):
    chain = Chain(*pair)
    deadline.run(chain.here.agent, chain.xfer)
    things = [chain.left, chain.xfer, chain.right]
    thread = threading.Thread(target=lambda: [t.release() for t in things])
    thread.start()
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.beyond_stock
def test_many_threads_release_the_same_handles(pair):
    here, there = pair
    chains = [Chain(here, there, seed) for seed in range(20)]
    things = [t for c in chains for t in (c.left, c.right, c.xfer)]
    start = threading.Barrier(4)

    def release(seed):
        mine = things[:]
        random.Random(seed).shuffle(mine)
        start.wait()
        for thing in mine:
            thing.release()

    threads = [threading.Thread(target=release, args=[i]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert here.agent.stats()["live_xfers"] == 0
    assert here.agent.stats()["live_dlists"] == 0


@pytest.mark.beyond_stock
def test_a_list_released_in_flight_lets_the_transfer_end(long_transfer):
    agent = long_transfer.here.agent
    handle = long_transfer.make(times=50)
    agent.transfer(handle)
    long_transfer.left.release()
    long_transfer.right.release()
    assert agent.wait([handle], timeout=60) == [handle]
    assert agent.check_xfer_state(handle) == "DONE"


# -- after the agent ---------------------------------------------------------


@pytest.mark.beyond_stock
@pytest.mark.parametrize("in_flight", [False, True])
def test_handles_outlive_a_closed_agent(api, long_transfer, in_flight):
    here, handle = long_transfer.here, long_transfer.handle
    if in_flight:
        here.agent.transfer(handle)
    here.agent.close()
    with pytest.raises(api.NixlError):
        here.agent.transfer(handle)
    handle.release()
    long_transfer.left.release()
    long_transfer.right.release()


@pytest.mark.beyond_stock
def test_closing_the_target_ends_transfers_in_flight(api, long_transfer):
    """The initiator gets an error and survives."""
    here, there = long_transfer.here, long_transfer.there
    handle = long_transfer.handle
    here.agent.transfer(handle)
    there.call("close")
    with pytest.raises(api.nixlRemoteDisconnectError):
        here.agent.wait([handle], timeout=30)
    with pytest.raises(api.nixlRemoteDisconnectError):
        here.agent.check_xfer_state(handle)


@pytest.mark.beyond_stock
def test_closed_agent_raises_a_clear_error(api, endpoint):
    here = endpoint()
    block = here.alloc(4096)
    here.agent.close()
    here.agent.close()
    calls = [
        lambda: here.agent.get_agent_metadata(),
        lambda: here.agent.send_notif("x", b""),
        lambda: here.agent.prep_xfer_dlist("", [(block.addr, 1, 0)], "DRAM"),
        lambda: here.agent.register_memory([(block.addr, 1, 0, "")], "DRAM"),
    ]
    for call in calls:
        with pytest.raises(api.nixlClosedError, match="NIXL_ERR_CLOSED"):
            call()


@pytest.mark.beyond_stock
def test_an_agent_is_a_context_manager(api):
    with api.nixl_agent("short-lived", api.nixl_agent_config()) as agent:
        assert agent.get_agent_metadata()
    with pytest.raises(api.nixlClosedError):
        agent.get_agent_metadata()


def test_unclosed_agent_is_freed(api, names):
    for _ in range(3):
        agent = api.nixl_agent(names(), api.nixl_agent_config())
        agent.get_agent_metadata()
        del agent
        gc.collect()


@pytest.mark.beyond_stock
def test_name_may_be_reused_after_close(api, endpoint):
    here = endpoint()
    for _ in range(5):
        agent = api.nixl_agent("again", api.nixl_agent_config())
        here.add(agent.get_agent_metadata())
        here.send_notif("again", b"x")
        deadline.gather_notifs(agent, 1)
        agent.close()


# -- interpreter exit ---------------------------------------------------------

SETTING = """
from support.endpoint import Endpoint
from support.transfers import Long
here, there = Endpoint(MODULE, "here"), Endpoint(MODULE, "there")
long = Long(here, there)
agent, handle = here.agent, long.handle
"""

STOPS = pytest.mark.nixl_differs("a transfer in flight cannot be stopped")

ENDINGS = {
    "idle": "",
    "in flight": "agent.transfer(handle)",
    "handles only": "agent.transfer(handle); del agent, here, there",
    "globals in a cycle": "agent.transfer(handle); x = [agent]; x.append(x)",
    "thread that waits": """
import threading
agent.transfer(handle)
def wait():
    try:
        agent.wait([handle])
    except BaseException:
        pass
threading.Thread(target=wait, daemon=True).start()
""",
    "thread that polls": """
import threading
def poll():
    while True:
        agent.get_new_notifs()
threading.Thread(target=poll, daemon=True).start()
""",
    "atexit": """
import atexit
agent.transfer(handle)
atexit.register(lambda: agent.release_xfer_handle(handle))
atexit.register(agent.close)
""",
    "sys.exit in a with": """
import sys
with agent:
    agent.transfer(handle)
    sys.exit(0)
""",
    "asyncio left hanging": """
import asyncio
async def main():
    agent.transfer(handle)
    asyncio.ensure_future(agent.wait_async(handle))
    await asyncio.sleep(0)
asyncio.run(main())
""",
}


@pytest.mark.beyond_stock
@pytest.mark.parametrize("flags", [(), ("-X", "dev")], ids=["plain", "dev"])
@pytest.mark.parametrize(
    "ending",
    [
        pytest.param(ending, marks=STOPS if "transfer" in source else ())
        for ending, source in ENDINGS.items()
    ],
)
def test_interpreter_exits_cleanly(module, ending, flags):
    """Exit status 0, nothing on stderr, no hang."""
    done = run_program(
        SETTING + ENDINGS[ending], *flags, module=module, timeout=60
    )
    for word in ("Traceback", "Fatal", "Segmentation"):
        assert word not in done.stderr


@pytest.mark.beyond_stock
def test_interpreter_exits_cleanly_after_import_alone(module):
    run_program("import importlib; importlib.import_module(MODULE)", "-Xdev")


# -- forks -------------------------------------------------------------------

FORK = """
import os, sys
def in_child(action):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
"""

CHILDREN = {
    "calls are refused": """
def action():
    for call in (agent.get_agent_metadata,
                 lambda: agent.transfer(handle),
                 lambda: agent.send_notif("there", b"x")):
        try:
            call()
        except Exception as error:
            assert "NIXL_ERR_NOT_ALLOWED" in str(error), error
        else:
            raise AssertionError(call)
""",
    "waiting ends": """
def action():
    try:
        assert agent.wait([handle], timeout=5) == [handle]
    except Exception as error:
        assert "NIXL_ERR_NOT_ALLOWED" in str(error), error
""",
    "releases do nothing": """
def action():
    handle.release()
    long.left.release()
    agent.close()
""",
    "a new agent works": """
def action():
    mine = Endpoint(MODULE, "mine")
    block = mine.alloc(4096, seed=1)
    row = [(block.addr, 64, 0)]
    mine.move("READ", row, [(block.addr + 64, 64, 0)], "mine")
    mine.close()
""",
    "the child reaches its parent": """
import os
blob = there.metadata()
def action():
    mine = Endpoint(MODULE, "child")
    mine.alloc(4096)
    mine.add(blob)
    mine.send_notif("there", b"from the child")
    mine.close()
""",
    "polling is refused": """
def action():
    for call in (agent.get_new_notifs, lambda: agent.check_xfer_state(handle)):
        try:
            call()
        except Exception as error:
            assert "NIXL_ERR" in str(error), error
""",
}


NEEDS_A_TRANSPORT = ("a new agent works", "the child reaches its parent")


@pytest.mark.nixl_differs("UCX does not work in a forked child")
@pytest.mark.beyond_stock
@pytest.mark.parametrize("in_flight", [False, True])
@pytest.mark.parametrize("child", CHILDREN)
def test_a_forked_child_does_no_harm(engine, module, child, in_flight):
    """Calls in the child raise errors; the parent continues."""
    if "ucx" in engine.name and child in NEEDS_A_TRANSPORT:
        pytest.skip("UCX does not work in a child of a process that uses it")
    post = "agent.transfer(handle)\n" if in_flight else ""
    after = f"""
in_child(action)
if {in_flight}:
    assert agent.check_xfer_state(handle) == "PROC"
    assert agent.cancel(handle)
long.short()
"""
    if child == "the child reaches its parent":
        after += """
assert there.gather_notifs(1) == [("child", b"from the child")]
"""
    run_program(SETTING + post + FORK + CHILDREN[child] + after, module=module)


@pytest.mark.nixl_differs("UCX does not work in a forked child")
@pytest.mark.beyond_stock
def test_forked_child_says_that_ucx_does_not_work_there(engine, module):
    """Its peers would wait for it for ever."""
    if "ucx" not in engine.name:
        pytest.skip("not over UCX")
    run_program(
        SETTING
        + FORK
        + """
blob = there.metadata()
def action():
    mine = Endpoint(MODULE, "child")
    try:
        mine.add(blob)
    except Exception as error:
        assert "UCX was used before this process was forked" in str(error)
    else:
        raise AssertionError("the peer was loaded")
in_child(action)
""",
        module=module,
    )


@pytest.mark.nixl_differs("transfers in flight cannot be stopped")
@pytest.mark.beyond_stock
def test_forked_child_may_exit_at_once(module):
    """multiprocessing's fork method, with the agent as a global."""
    run_program(
        SETTING
        + """
import multiprocessing
agent.transfer(handle)
context = multiprocessing.get_context("fork")
with context.Pool(2) as pool:
    assert pool.map(abs, range(-100, 0)) == list(range(100, 0, -1))
agent.cancel(handle)
long.short()
""",
        module=module,
    )


# -- leaks -------------------------------------------------------------------

LEAKS = {
    "transfers made and released": """
def once():
    with long.make(times=1) as handle:
        pass
""",
    "transfers posted": """
def once():
    small.move("READ", [(a.addr, 64, 0)], [(a.addr + 64, 64, 0)], "here")
""",
    "lists prepared": """
rows = [(a.addr + 8 * i, 4, 0) for i in range(100)]
def once():
    agent.prep_xfer_dlist("", rows, "DRAM").release()
""",
    "lists dropped": """
rows = [(a.addr + 8 * i, 4, 0) for i in range(100)]
def once():
    agent.prep_xfer_dlist("", rows, "DRAM")
""",
    "errors raised": """
def once():
    try:
        agent.prep_xfer_dlist("", [(a.addr, 4, 0), (1, 4, 0)], "DRAM")
    except here.api.NixlError:
        pass
    try:
        agent.make_prepped_xfer("READ", long.left, [5], long.right, [0])
    except here.api.NixlError:
        pass
""",
    "registrations": """
def once():
    rows = agent.register_memory([(a.addr + 64, 128, 0, "")], "DRAM")
    agent.get_agent_metadata()
    agent.deregister_memory(rows)
""",
    "metadata loaded": """
def once():
    agent.add_remote_agent(there.metadata())
""",
    "peers removed and added": """
TIMES = 300
def once():
    agent.remove_remote_agent("there")
    agent.add_remote_agent(there.metadata())
""",
    "notifications": """
def once():
    there.send_notif("here", b"x" * 1000)
    here.gather_notifs(1)
""",
    "descriptor lists": """
def once():
    d = agent.get_xfer_descs([(1, 2, 3)] * 50, "DRAM")
    agent.deserialize_descs(agent.get_serialized_descs(d))
    d.trim() if hasattr(d, "trim") else d.clear()
""",
    "waits": """
h = long.make(times=1)
def once():
    agent.transfer(h)
    agent.wait([h], timeout=30)
    agent.check_xfer_states([h])
    agent.stats(); agent.describe(); agent.describe("there")
TIMES = 40
""",
    "agents": """
TIMES = 60
def once():
    other = Endpoint(MODULE, "other")
    block = other.alloc(65536)
    other.add(there.metadata())
    other.move("READ", [(block.addr, 64, 0)], [(long.remote.addr, 64, 0)],
               "there")
    other.close()
""",
    "shared buffers": """
TIMES = 300
def once():
    key = here.alloc(1 << 20, "shared-buffer").key
    there.add(here.metadata())
    here.deregister(key)
    here.unmap(key)
""",
}

MEASURE = """
import gc
from support import usage
from support.deadline import until
TIMES = 3000
{source}
small = here
def at_rest():
    # Threads have accepted and closed what is under way: 50 looks alike.
    looks = [0]
    def look():
        looks.append(usage.fds())
        return len(looks) > 50 and len(set(looks[-50:])) == 1
    until(look, "descriptors at rest", pause=0.002)
def rounds(times):
    for _ in range(times):
        once()
    gc.collect()
    at_rest()
    return usage.fds(), usage.threads(), usage.mappings(), usage.resident()
rounds(max(20, TIMES // 5))
first = rounds(TIMES)
second = rounds(TIMES)
third = rounds(TIMES)
# What threads still had to close is closed in a moment.
until(lambda: usage.fds() <= first[0], ("descriptors", first, third))
until(lambda: usage.threads() <= first[1], ("threads", first, third))
assert third[2] <= first[2] + 8, ("mappings", first, third)
grown = third[3] - first[3]
assert grown < 1 << 20 or grown < 40 * TIMES, ("memory", first, second, third)
"""


KEEPS = pytest.mark.nixl_differs("NIXL's UCX keeps sockets of removed peers")


@pytest.mark.slow
@pytest.mark.beyond_stock
@pytest.mark.parametrize(
    "what",
    [
        pytest.param(what, marks=KEEPS if "removed" in what else ())
        for what in LEAKS
    ],
)
def test_nothing_leaks(module, what):
    """Descriptors, threads, mappings and memory do not grow over loops."""
    start = SETTING.replace("long = ", "here.add(there.metadata())\nlong = ")
    start += "there.add(here.metadata())\na = here.alloc(65536)\n"
    run_program(start + MEASURE.format(source=LEAKS[what]), module=module)
