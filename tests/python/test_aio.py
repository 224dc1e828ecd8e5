"""asyncio: many waiters, many loops, cancellation, no polling."""

import asyncio
import gc
import os
import threading

import pytest
from support import deadline
from support.mute import mute_listener
from vllm_nixl import nixlClosedError

pytestmark = pytest.mark.beyond_stock

PATIENCE = 30


def run(coroutine):
    async def limited():
        return await asyncio.wait_for(coroutine, PATIENCE)

    return asyncio.run(limited())


@pytest.fixture
def here(endpoint):
    return endpoint()


def open_files():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def lingering(busy):
    """(agent, handle) of a transfer in flight; close() of the agent takes a
    second before it ends transfers, because of a command for a host that does
    not accept."""
    here, handle = busy
    with mute_listener() as address:
        here.agent.fetch_remote_metadata("nobody", *address)
        yield here.agent, handle


# -- wait_async --------------------------------------------------------------


def test_several_tasks_of_one_loop_wait_for_one_transfer(busy):
    here, handle = busy

    async def main():
        tasks = [
            asyncio.create_task(here.agent.wait_async(handle, check=False))
            for _ in range(20)
        ]
        await asyncio.sleep(0)
        assert here.agent.cancel(handle)
        return await asyncio.gather(*tasks)

    assert run(main()) == [[handle]] * 20


@pytest.mark.nixl_differs("it cannot stop the transfer")
def test_waiting_while_the_agent_closes_ends_as_closed(lingering):
    agent, handle = lingering
    closing = threading.Thread(target=agent.close)
    closing.start()
    deadline.until(lambda: agent.closed, "the beginning of close()")
    with pytest.raises(nixlClosedError):
        run(agent.wait_async(handle))
    closing.join()


def test_several_loops_wait_for_one_transfer(busy):
    here, handle = busy
    results = []
    ready = threading.Barrier(5)

    async def main():
        task = asyncio.create_task(here.agent.wait_async(handle, check=False))
        await asyncio.sleep(0)
        await asyncio.to_thread(ready.wait)
        return await task

    threads = [
        threading.Thread(target=lambda: results.append(run(main())))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    ready.wait(PATIENCE)
    here.agent.cancel(handle)
    for thread in threads:
        thread.join(PATIENCE)
    assert results == [[handle]] * 4


def test_polling_in_another_thread_loses_no_wakeup(busy):
    """Another thread polls constantly, which clears the agent's events."""
    here, handle = busy
    stop = threading.Event()

    def poll():
        while not stop.is_set():
            here.agent.check_xfer_states([handle])
            here.agent.get_new_notifs()

    thread = threading.Thread(target=poll)
    thread.start()

    async def main():
        task = asyncio.create_task(
            here.agent.wait_async([handle], check=False)
        )
        await asyncio.sleep(0.05)
        here.agent.cancel(handle)
        return await task

    try:
        assert run(main()) == [handle]
    finally:
        stop.set()
        thread.join()


def test_cancellation_is_not_lost_if_an_event_comes_with_it(busy):
    here, handle = busy

    async def main():
        loop = asyncio.get_running_loop()
        waiter = loop.create_task(
            here.agent.wait_async(handle, timeout=PATIENCE)
        )
        mine = here.agent._subscribe()
        # Every subscriber is written, so in one turn of the loop the waiter
        # wakes up and is cancelled.
        loop.add_reader(mine, lambda: (os.read(mine, 8), waiter.cancel()))
        await asyncio.sleep(0)  # the waiter has subscribed
        here.send_notif(here.name, b"an event")
        try:
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(waiter, PATIENCE / 3)
        finally:
            loop.remove_reader(mine)
            here.agent._unsubscribe(mine)

    run(main())
    assert here.agent.check_xfer_state(handle) == "PROC"


def test_wait_async_returns_when_any_transfer_ends(long_transfer):
    here = long_transfer.here
    slow = [long_transfer.make() for _ in range(2)]
    for handle in slow:
        here.agent.transfer(handle)

    async def main():
        task = asyncio.create_task(
            here.agent.wait_async(slow, any_of=True, check=False)
        )
        await asyncio.sleep(0.01)
        here.agent.cancel(slow[1])
        return await task

    assert run(main()) == [slow[1]]
    for handle in slow:
        handle.release()


def test_wait_async_timeout_lists_unfinished_transfers(api, busy):
    here, handle = busy

    async def main():
        await here.agent.wait_async([handle], timeout=0.01)

    with pytest.raises(api.nixlTimeoutError) as caught:
        run(main())
    assert caught.value.pending == [handle]
    assert caught.value.index == 0
    assert isinstance(caught.value, TimeoutError)


@pytest.mark.parametrize("timeout", [-1, float("nan")])
def test_wait_async_timeout_must_be_a_duration(busy, timeout):
    here, handle = busy
    with pytest.raises(ValueError, match="timeout"):
        run(here.agent.wait_async(handle, timeout))


def test_wait_async_raises_the_first_failure(api, long_transfer):
    """Others continue meanwhile; with check=False nothing is raised."""
    here = long_transfer.here
    slow = [long_transfer.make() for _ in range(3)]
    for handle in slow:
        here.agent.transfer(handle)

    async def main(**options):
        task = asyncio.create_task(here.agent.wait_async(slow, **options))
        await asyncio.sleep(0.01)
        here.agent.cancel(slow[1])
        return await task

    for any_of in (False, True):
        with pytest.raises(api.nixlCancelledError) as caught:
            run(main(any_of=any_of))
        assert caught.value.index == 1
        assert caught.value.handles == {
            "ended": [],
            "failed": [slow[1]],
            "pending": [slow[0], slow[2]],
        }
    assert run(main(any_of=True, check=False)) == [slow[1]]
    for handle in slow:
        handle.release()


def test_a_transfer_that_was_never_posted_is_refused(api, long_transfer):
    here, agent = long_transfer.here, long_transfer.here.agent
    handles = [long_transfer.handle, long_transfer.make()]
    agent.transfer(handles[0])
    for check in (True, False):
        with pytest.raises(api.nixlNotPostedError) as caught:
            run(agent.wait_async(handles, check=check))
        assert caught.value.index == 1
    assert here.agent.cancel(handles[0])


def test_a_released_handle_ends_the_wait(busy):
    here, handle = busy

    async def main():
        task = asyncio.create_task(here.agent.wait_async(handle))
        await asyncio.sleep(0)
        here.agent.release_xfer_handle(handle)
        return await task

    with pytest.raises(ValueError, match="released"):
        run(main())


def test_closing_the_agent_ends_the_wait(api, busy):
    here, handle = busy

    async def main():
        task = asyncio.create_task(here.agent.wait_async(handle))
        await asyncio.sleep(0)
        here.agent.close()
        return await task

    with pytest.raises(api.nixlClosedError):
        run(main())


def test_no_descriptor_or_thread_is_left_open(busy):
    here, handle = busy

    async def main():
        before = open_files()
        tasks = [
            asyncio.create_task(here.agent.wait_async(handle))
            for _ in range(10)
        ]
        await asyncio.sleep(0)
        assert open_files() > before
        for task in tasks[:5]:
            task.cancel()
        await asyncio.gather(*tasks[:5], return_exceptions=True)
        here.agent.cancel(handle)
        await asyncio.gather(*tasks[5:], return_exceptions=True)
        deadline.until(
            lambda: open_files() <= before, "the end of what waiting opened"
        )

    run(main())


def test_waiting_does_not_poll(api, busy):
    here, handle = busy

    async def main():
        task = asyncio.create_task(here.agent.wait_async(handle))
        await asyncio.sleep(0)
        wakes = []
        loop = asyncio.get_running_loop()
        original = loop._run_once
        loop._run_once = lambda: (wakes.append(1), original())[1]
        await asyncio.sleep(0.2)
        here.agent.cancel(handle)
        with pytest.raises(api.nixlCancelledError):
            await task
        return len(wakes)

    assert run(main()) < 20


# -- notifications -----------------------------------------------------------


async def take(agent, count):
    got = []
    async for sender, message in agent.notifications():
        got.append((sender, message))
        if len(got) == count:
            return got
    return got


def test_notifications_come_in_order(pair):
    here, there = pair
    messages = [str(i).encode() for i in range(100)]

    async def main():
        task = asyncio.create_task(take(here.agent, 100))
        await asyncio.sleep(0)
        for message in messages:
            there.send_notif(here.name, message)
        return await task

    assert run(main()) == [(there.name, message) for message in messages]


def test_notifications_left_by_an_iterator_are_kept_for_others(here):
    for message in (b"1", b"2", b"3"):
        here.agent.send_notif(here.name, message)

    async def main():
        iterator = here.agent.notifications()
        first = await anext_of(iterator)
        await iterator.aclose()
        return first

    assert run(main()) == (here.name, b"1")
    assert here.gather_notifs(2) == [(here.name, b"2"), (here.name, b"3")]


async def anext_of(iterator):
    return await iterator.__anext__()


def test_iterators_share_notifications(here):
    async def main():
        tasks = [asyncio.create_task(take(here.agent, 5)) for _ in range(4)]
        await asyncio.sleep(0)
        for i in range(20):
            here.agent.send_notif(here.name, str(i).encode())
            if i % 3 == 0:
                await asyncio.sleep(0)
        return await asyncio.gather(*tasks)

    taken = [int(message) for some in run(main()) for _, message in some]
    assert sorted(taken) == list(range(20))


def test_stopped_iterator_wakes_the_next_one(here):
    """It took three and used one; the others must not get lost."""

    async def main():
        first = here.agent.notifications()
        task = asyncio.create_task(anext_of(first))
        await asyncio.sleep(0)
        second = asyncio.create_task(take(here.agent, 2))
        await asyncio.sleep(0)
        for message in (b"1", b"2", b"3"):
            here.agent.send_notif(here.name, message)
        taken = [await task]
        await first.aclose()
        return taken + await second

    taken = sorted(message for _, message in run(main()))
    assert taken == [b"1", b"2", b"3"]


def test_cancelled_iterator_loses_no_notification(here):
    async def main():
        task = asyncio.create_task(take(here.agent, 2))
        await asyncio.sleep(0)
        here.agent.send_notif(here.name, b"kept?")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    run(main())
    assert here.gather_notifs(1) == [(here.name, b"kept?")]


def test_iterators_end_when_the_agent_closes(here):
    async def main():
        task = asyncio.create_task(take(here.agent, 1))
        await asyncio.sleep(0)
        here.agent.close()
        return await task

    assert run(main()) == []


def test_event_loops_leave_no_descriptors_behind(here):
    before = open_files()
    for i in range(20):
        here.agent.send_notif(here.name, str(i).encode())
        assert run(take(here.agent, 1)) == [(here.name, str(i).encode())]
    # If each loop leaked a descriptor, 20 would be left.  NIXL's UCX accepts
    # its
    # connection to itself at some later time, and keeps it.
    assert open_files() < before + 20


def test_dropped_event_loop_does_no_harm(here):
    loop = asyncio.new_event_loop()
    task = loop.create_task(take(here.agent, 1))
    loop.run_until_complete(asyncio.sleep(0))
    task.cancel()
    loop.run_until_complete(asyncio.gather(task, return_exceptions=True))
    loop.close()
    here.agent.send_notif(here.name, b"later")
    deadline.until(here.agent.get_new_notifs, "a notification")
