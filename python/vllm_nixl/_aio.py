"""Waiting and notifications for asyncio.

Design note.  Every waiter has its own eventfd (Agent._subscribe), which the
library writes at each event.  So waiters in one loop, in several loops, and
threads that poll never take each other's wake-ups.  A waiter first subscribes
and then checks, so that the eventfd holds events that occur in between.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from ._core import nixl_xfer_handle, nixlInvalidParamError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from ._agent import NixlAgent


class _Events:
    """The events of an agent, in the running loop: `with _Events(agent):`."""

    def __init__(self, agent: NixlAgent) -> None:
        self._agent = agent
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Future[None] | None = None

    def __enter__(self) -> _Events:
        self._fd = self._agent._subscribe()
        try:
            self._loop.add_reader(self._fd, self._wake)
        except BaseException:
            self._agent._unsubscribe(self._fd)
            raise
        self._is_set = False
        return self

    def __exit__(self, *args: object) -> None:
        # If the loop was closed meanwhile, it has already removed the reader.
        if not self._loop.is_closed():
            self._loop.remove_reader(self._fd)
        self._agent._unsubscribe(self._fd)

    def _wake(self) -> None:
        os.read(self._fd, 8)
        self._set()

    def _set(self) -> None:
        self._is_set = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def poke(self) -> None:
        """Wake the waiter, from any thread."""
        with suppress(RuntimeError):  # the loop was closed
            self._loop.call_soon_threadsafe(self._set)

    async def next(self, timeout: float | None) -> bool:
        """Wait for an event since the last call; False: timed out."""
        if not self._is_set:
            self._waiting = self._loop.create_future()
            try:
                # Before Python 3.12, asyncio.wait_for() would lose a
                # cancellation that comes together with an event.
                await asyncio.wait([self._waiting], timeout=timeout)
            finally:
                self._waiting = None
        is_set, self._is_set = self._is_set, False
        return is_set


async def wait_async(
    agent: NixlAgent,
    handle: nixl_xfer_handle | Iterable[nixl_xfer_handle],
    timeout: float | None,
    any_of: bool,
    check: bool,
) -> list[nixl_xfer_handle]:
    if timeout is not None and not timeout >= 0:
        raise nixlInvalidParamError(
            "NIXL_ERR_INVALID_PARAM: wait_async: the timeout must be None or "
            "at least 0 seconds"
        )
    handles = (
        [handle] if isinstance(handle, nixl_xfer_handle) else list(handle)
    )
    if agent._is_over(handles, any_of, check):
        return agent.wait(handles, 0, any_of, check)
    loop = asyncio.get_running_loop()
    deadline = None if timeout is None else loop.time() + timeout
    with _Events(agent) as events:
        # close() ends all transfers, but may take a second before it does.
        while not agent._is_over(handles, any_of, check):
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                break
            await events.next(left)
    # Returns the ended transfers or raises the error, without waiting.
    return agent.wait(handles, 0, any_of, check)


async def notifications(
    agent: NixlAgent,
) -> AsyncIterator[tuple[str, bytes]]:
    with _Events(agent) as events:
        agent._iterators.add(events)
        try:
            while not agent.closed:
                # Taken one by one, so that an iterator that ends loses none.
                while (pair := agent._next_notif()) is not None:
                    yield pair
                await events.next(None)
        finally:
            agent._iterators.discard(events)
            # The other iterators take the remaining notifications.
            for other in list(agent._iterators):
                other.poke()
