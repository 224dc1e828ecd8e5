"""Completion by event: threads sleep until something happens, never longer."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import threading

import pytest
from support import cuda, deadline, usage
from support.memory import MEM, pattern
from support.peer import child_environment
from support.program import run_program
from support.transfers import Long

pytestmark = pytest.mark.beyond_stock

LONG = 100_000  # how often a transfer repeats its block until it is stopped


@pytest.fixture
def make(pair):
    """make(size): a READ from the peer, not posted."""
    here, there = pair
    remote, local = there.alloc(8 << 20, seed=1), here.alloc(8 << 20)
    here.add(there.metadata())
    agent = here.agent
    left = agent.prep_xfer_dlist("", [(local.addr, 8 << 20, 0)], MEM)
    right = [(remote.addr, 8 << 20, 0)]
    right = agent.prep_xfer_dlist(there.name, right, MEM)

    def one(times=1, notif=b""):
        indices = [0] * times
        return agent.make_prepped_xfer(
            "READ", left, indices, right, indices, notif
        )

    one.here, one.there, one.local = here, there, local
    return one


# -- wait --------------------------------------------------------------------


def test_wait_returns_when_all_have_ended(make):
    agent = make.here.agent
    handles = [make() for _ in range(5)]
    for handle in handles:
        agent.transfer(handle)
    assert agent.wait(handles, timeout=30) == handles
    assert agent.check_xfer_states(handles) == ["DONE"] * 5
    assert make.here.read(make.local.key) == pattern(1, 8 << 20)


@pytest.mark.nixl_differs("a transfer in flight cannot be stopped")
def test_wait_for_any_returns_those_that_have_ended(make):
    agent = make.here.agent
    endless, short = make(100000), make()
    agent.transfer(endless)
    agent.transfer(short)
    ended = agent.wait([endless, short], timeout=30, any_of=True)
    assert ended == [short]
    assert agent.check_xfer_states([endless, short]) == ["PROC", "DONE"]
    assert agent.cancel(endless)


def test_wait_returns_handles_in_the_order_given(make):
    agent = make.here.agent
    handles = [make() for _ in range(4)]
    for handle in handles[::-1]:
        agent.transfer(handle)
    order = [handles[2], handles[0], handles[3], handles[1]]
    assert agent.wait(order, 30) == order


def test_wait_without_handles_returns_at_once(make):
    assert make.here.agent.wait([], timeout=0) == []


def test_wait_timeout_covers_all_transfers(api, busy):
    here, handle = busy
    with pytest.raises(api.nixlTimeoutError, match="NIXL_ERR_TIMEOUT"):
        here.agent.wait([handle], timeout=0.05)
    with pytest.raises(api.nixlTimeoutError):
        here.agent.wait([handle], timeout=0)
    assert here.agent.check_xfer_state(handle) == "PROC"


@pytest.mark.nixl_differs("a transfer in flight cannot be stopped")
def test_timeout_error_names_unfinished_transfers(api, make):
    agent = make.here.agent
    done, endless = make(), make(100000)
    agent.transfer(done)
    agent.wait([done], timeout=30)
    agent.transfer(endless)
    with pytest.raises(api.nixlTimeoutError) as caught:
        agent.wait([done, endless], timeout=0.02)
    assert "wait" in str(caught.value)
    assert "1 of 2" in str(caught.value)
    assert caught.value.pending == [endless]
    assert caught.value.handles == {
        "ended": [done],
        "failed": [],
        "pending": [endless],
    }
    agent.cancel(endless)


@pytest.mark.parametrize("bad", [-1, float("nan"), "1"])
def test_invalid_timeout_is_refused(make, bad):
    agent = make.here.agent
    handle = make()
    agent.transfer(handle)
    with pytest.raises((ValueError, TypeError)):
        agent.wait([handle], timeout=bad)
    assert agent.wait([handle], timeout=30) == [handle]


def test_wait_raises_the_error_of_a_failed_transfer(api, endpoint, peer, meet):
    """wait() and check_xfer_state() both raise the transfer's error."""
    here, there = endpoint(), peer()
    meet(here, there)
    handle = Long(here, there).handle
    here.agent.transfer(handle)
    there.kill()
    with pytest.raises(api.nixlRemoteDisconnectError, match="peer") as caught:
        here.agent.wait([handle], timeout=30)
    assert caught.value.index == 0
    assert caught.value.handles == {
        "ended": [],
        "failed": [handle],
        "pending": [],
    }
    assert here.agent.wait([handle], timeout=0, check=False) == [handle]
    with pytest.raises(api.nixlRemoteDisconnectError):
        here.agent.check_xfer_state(handle)
    assert here.agent.check_xfer_states([handle]) == ["ERR"]


@pytest.mark.nixl_differs("a transfer in flight cannot be stopped")
@pytest.mark.parametrize("any_of", [False, True])
def test_the_first_failure_ends_the_wait(api, make, any_of):
    """At once, while others continue; otherwise wait(None) would never
    return."""
    agent = make.here.agent
    handles = [make(), make(LONG), make(LONG), make(LONG)]
    for handle in handles:
        agent.transfer(handle)
    agent.wait(handles[:1], timeout=30)
    agent.cancel(handles[3])
    agent.cancel(handles[2])
    with pytest.raises(api.nixlCancelledError, match="row 2") as caught:
        agent.wait(handles, any_of=any_of)
    error = caught.value
    assert (error.index, error.operation) == (2, "wait")
    assert error.handles == {
        "ended": handles[:1],
        "failed": handles[2:],
        "pending": handles[1:2],
    }
    assert agent.wait(handles, any_of=True, check=False) == [
        handles[0],
        *handles[2:],
    ]
    with pytest.raises(api.nixlTimeoutError) as caught:
        agent.wait(handles, timeout=0, check=False)
    assert caught.value.handles == error.handles
    assert caught.value.pending == handles[1:2]
    assert agent.cancel(handles[1])
    assert agent.wait(handles, check=False) == handles


@pytest.mark.nixl_differs("a transfer in flight cannot be stopped")
@pytest.mark.parametrize("any_of", [False, True])
def test_failure_wakes_waiting_threads(api, make, any_of):
    agent = make.here.agent
    handles = [make(LONG), make(LONG)]
    raised = []

    def wait():
        try:
            agent.wait(handles, any_of=any_of)
        except api.NixlError as error:
            raised.append(error)

    for handle in handles:
        agent.transfer(handle)
    thread = threading.Thread(target=wait)
    thread.start()
    agent.cancel(handles[1])
    thread.join(30)
    assert not thread.is_alive()
    [error] = raised
    assert type(error) is api.nixlCancelledError
    assert error.handles["failed"] == handles[1:]
    assert agent.cancel(handles[0])


def test_waiting_for_an_unposted_transfer_is_refused(api, make):
    agent = make.here.agent
    posted, ready = make(), make()
    agent.transfer(posted)
    for any_of in (False, True):
        for check in (True, False):
            with pytest.raises(api.nixlNotPostedError) as caught:
                agent.wait([posted, ready], None, any_of, check)
            assert caught.value.index == 1
    agent.transfer(ready)
    assert agent.wait([posted, ready], timeout=30) == [posted, ready]


def test_arguments_that_release_the_handle_while_they_are_read(api, make):
    """All arguments are read before the transfers are checked."""
    agent = make.here.agent

    class Releases:
        def __init__(self, value):
            self.handle, self.value = make(), value
            agent.transfer(self.handle)
            agent.wait([self.handle], timeout=30)  # some are not stopped

        def __float__(self):
            self.handle.release()
            return self.value

        def __bool__(self):
            self.handle.release()
            return self.value

        def __iter__(self):
            yield self.handle
            self.handle.release()

    for place in ("timeout", "any_of", "check"):
        releases = Releases(5.0 if place == "timeout" else True)
        with pytest.raises(ValueError, match="released"):
            agent.wait([releases.handle], **{place: releases})
    with pytest.raises(ValueError, match="released"):
        agent.wait(Releases(0))
    releases = Releases(5.0)
    with pytest.raises(ValueError, match="released"):
        releases.handle.result(releases)


@pytest.mark.parametrize("number", [-1, 2**32, 2**40 + 7, 2**100])
def test_unsubscribe_accepts_only_its_subscription(make, number):
    """A number is not truncated to another subscriber's descriptor."""
    agent = make.here.agent
    fd = agent._subscribe()
    with pytest.raises(ValueError, match="_subscribe"):
        agent._unsubscribe(number if number < 0 else number + fd)
    assert os.fstat(fd)
    agent._unsubscribe(fd)


# -- result ------------------------------------------------------------------


def test_the_result_of_a_transfer_is_its_telemetry(api, make):
    agent = make.here.agent
    handle = make()
    with pytest.raises(api.nixlNotPostedError):
        handle.result()
    agent.transfer(handle)
    result = handle.result(timeout=30)
    assert type(result) is api.nixlXferTelemetry
    assert repr(result) == repr(agent.get_xfer_telemetry(handle))
    assert result.totalBytes == 8 << 20
    assert repr(handle.result()) == repr(result)
    assert make.here.read(make.local.key) == pattern(1, 8 << 20)


def test_the_result_of_a_failed_transfer_is_its_error(
    api, endpoint, peer, meet
):
    here, there = endpoint(), peer()
    meet(here, there)
    transfer = Long(here, there)
    here.agent.transfer(transfer.handle)
    there.kill()
    with pytest.raises(api.nixlRemoteDisconnectError) as caught:
        transfer.handle.result()
    assert caught.value.handles["failed"] == [transfer.handle]


def test_result_obeys_its_timeout(api, busy):
    here, handle = busy
    for timeout in (0, 0.05):
        with pytest.raises(api.nixlTimeoutError, match="result") as caught:
            handle.result(timeout)
        assert caught.value.pending == [handle]
        assert isinstance(caught.value, TimeoutError)
    for bad in (-1, float("nan"), "1"):
        with pytest.raises((ValueError, TypeError)):
            handle.result(bad)
    assert here.agent.check_xfer_state(handle) == "PROC"
    handle.release()
    with pytest.raises(ValueError, match="released"):
        handle.result()


def test_waiting_for_a_result_lets_other_threads_run(api, busy):
    """The thread that ends the wait needs the GIL."""
    here, handle = busy
    thread = threading.Thread(target=here.agent.cancel, args=[handle])
    thread.start()
    with pytest.raises(api.nixlCancelledError):
        handle.result()
    thread.join(30)


def test_wait_lets_other_threads_run(busy, api):
    """The GIL is free while a call sleeps: the thread that ends the wait gets
    it from the call alone, because Python itself does not take it away."""
    here, handle = busy
    waits = threading.Lock()
    waits.acquire()

    def cancel():
        with waits:
            here.agent.cancel(handle)

    thread = threading.Thread(target=cancel)
    thread.start()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    try:
        waits.release()
        with pytest.raises(api.nixlCancelledError):
            here.agent.wait([handle], timeout=30)
    finally:
        sys.setswitchinterval(interval)
        thread.join(30)


def test_many_threads_may_wait_for_one_transfer(make):
    agent = make.here.agent
    handle = make(100)
    ended = []
    agent.transfer(handle)
    threads = [
        threading.Thread(target=lambda: ended.extend(agent.wait([handle], 30)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert ended == [handle] * 6


def test_closing_the_agent_wakes_waiting_threads(api, busy):
    here, handle = busy
    result = []

    def wait():
        try:
            result.append(here.agent.wait([handle], timeout=60))
        except api.NixlError as error:
            result.append(type(error))

    thread = threading.Thread(target=wait)
    thread.start()
    deadline.until(lambda: thread.is_alive(), "the thread")
    here.agent.close()
    thread.join(30)
    assert not thread.is_alive()
    assert result in ([api.nixlClosedError], [[handle]])


INTERRUPTED = """
import os, signal, sys, threading
from support.endpoint import Endpoint
from support.transfers import Long
# A shell starts what runs in the background with SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
here, there = Endpoint("vllm_nixl", "here"), Endpoint("vllm_nixl", "there")
long = Long(here, there)
here.agent.transfer(long.handle)
try:
    print("waiting", flush=True)
    {call}
except KeyboardInterrupt:
    print("interrupted", here.agent.check_xfer_state(long.handle), flush=True)
    assert here.agent.cancel(long.handle)
    long.short()
    print("works", flush=True)
"""


@pytest.mark.nixl_differs("a transfer in flight cannot be stopped")
@pytest.mark.parametrize(
    "call",
    [
        "here.agent.wait([long.handle])",
        "here.agent.wait([long.handle], timeout=1000)",
        "long.handle.result()",
        "import asyncio; asyncio.run(here.agent.wait_async(long.handle))",
    ],
    ids=["wait", "wait-timeout", "result", "wait_async"],
)
def test_ctrl_c_interrupts_wait(call):
    """As in a terminal; the agent works afterwards."""
    with (
        subprocess.Popen(
            [sys.executable, "-c", INTERRUPTED.format(call=call)],
            stdout=subprocess.PIPE,
            text=True,
            env=child_environment(),
        ) as child,
        deadline.or_kill(child),
    ):
        assert child.stdout.readline() == "waiting\n"
        deadline.until(lambda: usage.sleeps(child.pid), "sleep")
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate()
    assert out == "interrupted PROC\nworks\n"
    assert child.returncode == 0


# -- fileno ------------------------------------------------------------------


def readable(fd, seconds):
    return bool(select.select([fd], [], [], seconds)[0])


def test_file_descriptor_signals_the_end_of_a_transfer(make):
    agent = make.here.agent
    fd = agent.fileno()
    agent.get_new_notifs()
    assert not readable(fd, 0)
    handle = make()
    state = agent.transfer(handle)
    assert readable(fd, 30)
    assert state == "DONE" or agent.check_xfer_states([handle]) == ["DONE"]
    agent.get_new_notifs()
    assert not readable(fd, 0)


def test_file_descriptor_signals_a_notification(make):
    here, there = make.here, make.there
    agent = here.agent
    fd = agent.fileno()
    agent.get_new_notifs()
    there.send_notif(here.name, b"hello")
    assert readable(fd, 30)
    assert agent.get_new_notifs() == {there.name: [b"hello"]}
    assert not readable(fd, 0)


def test_the_file_descriptor_stays_readable_until_taken(make):
    here, there = make.here, make.there
    fd = here.agent.fileno()
    there.send_notif(here.name, b"hello")
    for _ in range(3):
        assert readable(fd, 30)
    here.agent.get_new_notifs()
    assert not readable(fd, 0)


@pytest.mark.parametrize("look", ["wait", "check_xfer_states"])
def test_checking_transfers_clears_the_file_descriptor(make, look):
    agent = make.here.agent
    fd = agent.fileno()
    handle = make()
    agent.transfer(handle)
    assert readable(fd, 30)

    def quiet():
        if look == "wait":
            ended = agent.wait([handle], timeout=30) == [handle]
        else:
            ended = agent.check_xfer_states([handle]) == ["DONE"]
        return ended and not readable(fd, 0)

    deadline.until(quiet, "silence")


def test_the_file_descriptor_works_with_epoll(make):
    here, there = make.here, make.there
    with select.epoll() as poll:
        poll.register(here.agent.fileno(), select.EPOLLIN)
        here.agent.get_new_notifs()
        for round_number in range(20):
            there.send_notif(here.name, str(round_number).encode())
            events = poll.poll(30)
            assert [fd for fd, _ in events] == [here.agent.fileno()]
            got = here.agent.get_new_notifs()
            assert got == {there.name: [str(round_number).encode()]}


def test_the_file_descriptor_is_the_same_each_time(make):
    agent = make.here.agent
    assert agent.fileno() == agent.fileno()
    assert not os.get_inheritable(agent.fileno())


# -- asyncio -----------------------------------------------------------------


def test_coroutine_can_await_a_transfer(make):
    agent = make.here.agent

    async def main():
        handle = make()
        agent.transfer(handle)
        await agent.wait_async(handle, timeout=30)
        return agent.check_xfer_state(handle)

    assert asyncio.run(main()) == "DONE"


def test_many_coroutines_await_at_once(make):
    agent = make.here.agent

    async def one():
        handle = make()
        agent.transfer(handle)
        await agent.wait_async(handle)
        return agent.check_xfer_state(handle)

    async def main():
        return await asyncio.gather(*(one() for _ in range(50)))

    assert asyncio.run(main()) == ["DONE"] * 50


def test_await_obeys_its_timeout(api, busy):
    here, handle = busy

    async def main():
        await here.agent.wait_async(handle, timeout=0.05)

    with pytest.raises(api.nixlTimeoutError):
        asyncio.run(main())
    assert here.agent.check_xfer_state(handle) == "PROC"


def test_the_event_loop_runs_while_a_coroutine_awaits(busy):
    here, handle = busy

    async def main():
        ticks = 0
        waiter = asyncio.ensure_future(here.agent.wait_async(handle))
        for _ in range(50):
            await asyncio.sleep(0.001)
            ticks += 1
        assert not waiter.done()
        here.agent.cancel(handle)
        await asyncio.wait([waiter], timeout=30)
        assert waiter.done()
        waiter.exception()
        return ticks

    assert asyncio.run(main()) == 50


def test_a_cancelled_task_leaves_the_transfer_alone(busy):
    here, handle = busy

    async def main():
        task = asyncio.ensure_future(here.agent.wait_async(handle))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert here.agent.check_xfer_state(handle) == "PROC"


def test_notifications_come_as_an_async_iterator(make):
    here, there = make.here, make.there

    async def main():
        got = []
        async for sender, message in here.agent.notifications():
            got.append((sender, message))
            if len(got) == 1:
                there.send_notif(here.name, b"two")
                there.send_notif(here.name, b"three")
            if len(got) == 3:
                break
        return got

    there.send_notif(here.name, b"one")
    got = asyncio.run(asyncio.wait_for(main(), 60))
    assert got == [(there.name, m) for m in (b"one", b"two", b"three")]


def test_an_agent_serves_one_event_loop_after_another(make):
    agent = make.here.agent

    async def main():
        handle = make()
        agent.transfer(handle)
        await agent.wait_async(handle, timeout=30)

    for _ in range(5):
        asyncio.run(main())


# -- NIXL's lock -------------------------------------------------------------

# Each call waits inside the library, until this thread lets it go.
WAITING_CALLS = """
import ctypes
import os
import sys
import threading

from vllm_nixl import NixlAgent, nixl_agent_config

fake = ctypes.CDLL(os.environ["VLLM_NIXL_LIBRARY"])
agent = NixlAgent("alone", nixl_agent_config(engine="nixl"))
memory = ctypes.create_string_buffer(4096)
near, far = ctypes.addressof(memory), ctypes.addressof(memory) + 2048
agent.register_memory([(near, 4096, 0, "")], "DRAM")
near = agent.prep_xfer_dlist("", [(near, 64, 0)], "DRAM")
far = agent.prep_xfer_dlist("alone", [(far, 64, 0)], "DRAM")


def make():
    return agent.make_prepped_xfer("READ", near, [0], far, [0])


handle, dropped = make(), [make()]
calls = {
    "make": make,
    "transfer": lambda: agent.transfer(handle),
    "estimate": lambda: agent.estimate_xfer_cost(handle),
    "release": lambda: agent.release_xfer_handle(handle),
    "drop": dropped.clear,
    "take": lambda: [agent.get_new_notifs() for _ in range(64)],
    "next": lambda: [agent._next_notif() for _ in range(64)],
}
sys.setswitchinterval(1000)
for name, call in calls.items():
    thread = threading.Thread(target=call)
    fake.fake_nixl_hold()
    thread.start()
    fake.fake_nixl_await_call()
    assert fake.fake_nixl_let_go() == 0, name
    thread.join()

# The wait drops the last reference to a transfer.
posted, released = make(), make()
agent.transfer(released)
agent.wait([released])
fake.fake_nixl_hang(1)
assert agent.transfer(posted) == "PROC"
waits = threading.Event()


def handles():
    yield posted
    yield released
    waits.set()


thread = threading.Thread(target=lambda: agent.wait(handles()))
thread.start()
waits.wait()
released.release()
fake.fake_nixl_hold()
fake.fake_nixl_hang(0)
fake.fake_nixl_await_call()
assert fake.fake_nixl_let_go() == 0, "wait"
thread.join()
"""


def test_calls_that_wait_for_nixl_let_other_threads_run():
    """NIXL has one lock per agent, which registering and loading hold for
    long."""
    builds = [cuda.ROOT / "build-tests" / build for build in cuda.BUILDS]
    fakes = [build / "tests/c/libfake_nixl.so" for build in builds]
    fake = next((fake for fake in fakes if fake.exists()), None)
    if fake is None:
        pytest.skip("the fake NIXL is not built: scripts/check.sh c gcc")
    run_program(WAITING_CALLS, env={"VLLM_NIXL_LIBRARY": str(fake)})
