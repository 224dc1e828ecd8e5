"""Side channels: those of the extension, with asyncio versions of requests.

Design note.  The event loop sees one descriptor for any number of requests in
progress; no thread waits for them.  The descriptor is readable when there is a
step to do, which includes deadlines and further attempts.  What attach() has
fetched is loaded by a thread of the loop's executor.  A task that is cancelled
then leaves that thread to finish: the peer is loaded, as it would be if the
task had been cancelled a moment later.
"""

from __future__ import annotations

from . import _core

TYPE_CHECKING = False  # importing typing would take as long as all the rest
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeVar

    from ._agent import NixlAgent
    from ._core import SideChannelRequests, _Attached, _Key, _Peer

    _T = TypeVar("_T")


async def _run(requests: SideChannelRequests[_T]) -> None:
    """Return when all answers are there."""
    import asyncio

    if requests.step() > 0:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()

        def step() -> None:
            if requests.step() == 0 and not done.done():
                done.set_result(None)

        loop.add_reader(requests.fileno(), step)
        try:
            await done
        finally:
            if not loop.is_closed():
                loop.remove_reader(requests.fileno())


async def _finish(requests: SideChannelRequests[_T]) -> list[_T | Exception]:
    await _run(requests)
    return requests.take()


def _only(answers: list[_T | Exception]) -> _T:
    (answer,) = answers
    if isinstance(answer, Exception):
        raise answer
    return answer


class _Async(_core.SideChannel):
    """The asyncio methods of all transports."""

    async def request_metadata_async(
        self,
        host: str,
        port: int,
        timeout_ms: int = 5000,
        *,
        key: _Key = None,
        retries: int | None = 0,
    ) -> bytes:
        """request_metadata() for asyncio; other tasks run meanwhile."""
        peers = [(host, port, key)]
        requests = self._begin(peers, timeout_ms, retries=retries)
        return _only(await _finish(requests))

    async def request_many_async(
        self,
        peers: Iterable[_Peer],
        timeout_ms: int = 5000,
        *,
        retries: int | None = 0,
    ) -> list[bytes | Exception]:
        """request_many() for asyncio; other tasks run meanwhile."""
        requests = self._begin(peers, timeout_ms, retries=retries)
        return await _finish(requests)

    async def _attach_async(
        self,
        agent: NixlAgent,
        host: str,
        port: int,
        timeout_ms: int,
        retries: int | None,
    ) -> _Attached:
        import asyncio

        requests = self._begin_attach(agent, host, port, timeout_ms, retries)
        await _run(requests)
        # Loading may wait for the peer, or for another call that loads it.
        loop = asyncio.get_running_loop()
        return _only(await loop.run_in_executor(None, requests.take))


class TcpSideChannel(_core.TcpSideChannel, _Async):
    __doc__ = _core.TcpSideChannel.__doc__


class ZmqSideChannel(_core.ZmqSideChannel, _Async):
    __doc__ = _core.ZmqSideChannel.__doc__


class HttpSideChannel(_core.HttpSideChannel, _Async):
    __doc__ = _core.HttpSideChannel.__doc__
