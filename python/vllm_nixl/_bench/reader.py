"""The side that makes transfers: an agent, memory, and a peer."""

from __future__ import annotations

import os
import secrets
import socket
import time
from typing import Any

import numpy as np

from .impl import Memory, blocks, prepare, scatter
from .peer import Peer, RemotePeer

SEEDS = (11, 12)  # for the local and the remote order, also of the bare loops


def windows(
    size: int, block: int, batch: int
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The blocks of each transfer of `batch` blocks, here and there: random,
    and different ones in each until all of the memory was used."""
    count = size // block
    used = count // batch * batch
    mine, theirs = (
        list(scatter(count, seed)[:used].reshape(-1, batch)) for seed in SEEDS
    )
    return mine, theirs


class Reader:
    """The side that makes transfers.

    Args:
        impl: The implementation of this side.
        size: Of the memory, in bytes; with a peer on another host, at most
            that of the peer.
        memory: Of this side; None: private pages.
        peer_memory: See Peer.
        threads: Of this agent; None: its default.
        python: The Python of a stock peer; None: a peer like `impl`.
        peer: The host and port of a peer that runs; None: start one.
        program: What a peer that is started runs; None: worker.py.
    """

    def __init__(
        self,
        impl: Any,
        size: int,
        memory: Any = None,
        peer_memory: str = "private",
        threads: int | None = None,
        python: str | None = None,
        peer: tuple[str, int] | None = None,
        program: Any = None,
    ) -> None:
        self.impl = impl
        self.peer: Peer | RemotePeer
        if peer is None:
            more = {} if program is None else {"program": program}
            kind = "stock" if python else impl.name
            self.peer = Peer(kind, size, peer_memory, python, **more)
            name = "reader"
        else:
            # Names of agents are unique among all that meet.
            name = f"bench-{socket.gethostname()}-{os.getpid()}"
            name += "-" + secrets.token_hex(4)
        self.memory = Memory(size) if memory is None else memory
        self.post_seconds: list[float] = []
        self.agent = impl.agent(name, threads)
        self.agent.register_memory(self.memory.region(), self.memory.kind)
        if peer is not None:
            self.peer = RemotePeer(self.agent, *peer)
        self.peer.introduce(self.agent)
        self.size = min(size, self.peer.size)
        self._sides: dict[int, tuple[Any, Any]] = {}
        # Whether the peer's content may not be its first one any more: an
        # earlier client may have written, too.
        self._written = peer is not None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.peer.close()

    def sides(self, block: int) -> tuple[Any, Any]:
        """Prepared lists of all blocks of that size, here and there."""
        if block not in self._sides:
            mine = blocks(self.memory.address, self.size, block)
            theirs = blocks(self.peer.address, self.size, block)
            self._sides[block] = (
                prepare(self.agent, "NIXL_INIT_AGENT", mine, self.memory.kind),
                prepare(
                    self.agent, self.peer.agent_name, theirs, self.peer.kind
                ),
            )
        return self._sides[block]

    def handle(
        self, block: int, mine: Any, theirs: Any, operation: str = "READ"
    ) -> Any:
        local, remote = self.sides(block)
        return self.agent.make_prepped_xfer(
            operation, local, mine, remote, theirs
        )

    def run(self, handle: Any) -> float:
        started = time.perf_counter()
        state = self.agent.transfer(handle)
        self.post_seconds.append(time.perf_counter() - started)
        self.impl.finish(self.agent, handle, state)
        return time.perf_counter() - started

    # -- Content --------------------------------------------------------------

    def check(self, block: int, mine: Any, theirs: Any) -> None:
        """Check the data: each word of the peer's memory is its index."""
        words = block // 8
        wanted = theirs.astype(np.uint64)[:, None] * np.uint64(words)
        wanted = wanted + np.arange(words, dtype=np.uint64)
        if not np.array_equal(self.memory.take(block, mine), wanted):
            raise RuntimeError("the received bytes are wrong")

    def verify(
        self, operation: str, block: int, mine: Any, theirs: Any
    ) -> None:
        """Make a transfer of these blocks and compare all its bytes."""
        read = self.handle(block, mine, theirs)
        if operation == "READ":
            if self._written:
                self.peer.ask("fill")
                self._written = False
            self.memory.put(block, mine, 0)
            self.run(read)
            self.check(block, mine, theirs)
        else:
            self._verify_write(block, mine, theirs, read)
        self.agent.release_xfer_handle(read)

    def _verify_write(
        self, block: int, mine: Any, theirs: Any, read: Any
    ) -> None:
        """Write random bytes, which the peer cannot have, and read them
        back: a READ was or will be checked by itself."""
        self._written = True
        rng = np.random.default_rng()
        sent = rng.integers(
            0, 1 << 64, (len(mine), block // 8), np.uint64, endpoint=False
        )
        self.memory.put(block, mine, sent)
        write = self.handle(block, mine, theirs, "WRITE")
        self.run(write)
        self.agent.release_xfer_handle(write)
        self.memory.put(block, mine, 0)
        self.run(read)
        if not np.array_equal(self.memory.take(block, mine), sent):
            raise RuntimeError("the written bytes are wrong")

    def written(self, operation: str) -> None:
        """Remember that a transfer may have changed the peer's content."""
        self._written |= operation == "WRITE"
