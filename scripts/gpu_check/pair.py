"""Two agents with memory of a GPU: the step's own, and a peer's."""

from __future__ import annotations

import contextlib
import itertools
import random
import sys
from typing import TYPE_CHECKING, Any

from vllm_nixl._bench.child import Child

from .endpoint import Endpoint, Rows, digest
from .memory import CPU_KINDS, MIB, OPERATIONS, UNSHARED, pattern

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .report import Options

ANSWER_S = 40.0  # longer than any wait inside an order
SEEDS = itertools.count()
NUMBERS = itertools.count()


class Other(Child):
    """The peer in another process.

    Args:
        env: Its environment; None: this one's.
        prefix: A command that starts it.
    """

    def __init__(
        self, env: dict[str, str] | None = None, prefix: tuple[str, ...] = ()
    ) -> None:
        self.agent_name = f"other-{next(NUMBERS)}"
        program = [*prefix, sys.executable, "-m", "gpu_check.endpoint"]
        super().__init__([*program, self.agent_name], "the peer", env)
        self.answer()

    def answer(self, limit: float = ANSWER_S) -> Any:
        return super().answer(limit)


class Inner(Endpoint):
    """The peer in this process."""

    def __init__(self) -> None:
        super().__init__(f"other-{next(NUMBERS)}")

    def kill(self) -> None:
        self.close()


class Pair:
    """`here` makes the transfers, `other` is the peer.

    Args:
        options: Of the run.
        one_process: Whether the peer is in this process, too.
    """

    def __init__(self, options: Options, one_process: bool = False) -> None:
        self.options = options
        self.one_process = one_process
        self._open()

    def _open(self) -> None:
        self.here = Endpoint(f"here-{next(NUMBERS)}")
        self.other: Any = Inner() if self.one_process else Other()

    def renew(self) -> None:
        """New agents, after an error."""
        with contextlib.suppress(Exception):
            self.other.kill()
        with contextlib.suppress(Exception):
            self.here.close()
        self._open()

    def new_other(self, prefix: tuple[str, ...] = ()) -> None:
        """A new peer, after the end of the last one."""
        self.here.ask("forget")
        self.other = Other(prefix=prefix)

    def close(self) -> None:
        self.other.close()
        self.here.close()

    # -- Memory ---------------------------------------------------------------

    def make(
        self, mine: str, theirs: str, size: int | None = None
    ) -> dict[str, Any]:
        """Memory of these kinds on both sides, and the peer's, known here."""
        size = size or default_size(mine, theirs)
        self.here.ask("make", kind=mine, size=size)
        memory: dict[str, Any] = self.other.ask("make", kind=theirs, size=size)
        self.load()
        return memory

    def load(self) -> None:
        """Load the peer's metadata, as it is now."""
        self.here.ask("load", **self.other.ask("metadata"))

    def meet(self) -> None:
        """Load the metadata on both sides."""
        self.load()
        self.other.ask("load", **self.here.ask("metadata"))

    def end(self) -> None:
        """Give back the memory on both sides."""
        self.other.ask("end")
        self.here.ask("end")

    # -- Transfers ------------------------------------------------------------

    def move(
        self, operation: str, theirs: dict[str, Any], rows: Rows | None = None
    ) -> None:
        """Transfer these rows, by default all of the memory, and compare every
        byte of both sides with what it should be."""
        memory = self.here.memories["memory"]
        sizes = memory.size, theirs["size"]
        if rows is None:
            rows = [(0, 0, min(sizes))]
        seeds = next(SEEDS), next(SEEDS)
        self.here.ask("fill", seed=seeds[0])
        self.other.ask("fill", seed=seeds[1])
        handle = self.here.handle(operation, theirs, rows)
        self.here.run(handle)
        handle.release()
        mine, others = map(bytearray, map(pattern, seeds, sizes))
        for here, there, size in rows:
            if operation == "READ":
                mine[here : here + size] = others[there : there + size]
            else:
                others[there : there + size] = mine[here : here + size]
        if memory.read() != mine:
            raise RuntimeError(f"{operation}: wrong bytes on this side")
        if self.other.ask("digest")["digest"] != digest(others):
            raise RuntimeError(f"{operation}: wrong bytes on the peer's side")

    def move_both_ways(self, theirs: dict[str, Any]) -> None:
        for operation in OPERATIONS:
            self.move(operation, theirs)
        self.check_way(theirs["kind"])

    def check_way(self, kind: str) -> None:
        """Memory that can be mapped must not have gone another way."""
        found = self.here.agent.describe(self.here.peer)
        if found["path"] != "SHM" or kind in CPU_KINDS:
            return
        if kind in UNSHARED and "cuda_windows" not in found:
            raise RuntimeError(f"{kind} did not go by a window")
        if kind not in UNSHARED and "cuda_regions_mapped" not in found:
            why = found.get("cuda_windows_because", found["routes"])
            raise RuntimeError(f"{kind} was not mapped: {why}")


def default_size(*kinds: str) -> int:
    """Several chunks of each kind."""
    return (40 if "expandable, 20 MiB" in kinds else 4) * MIB


def scattered(operation: str, size: int, count: int, longest: int) -> Rows:
    """Rows of any length at any place, whose targets do not overlap."""
    draw = random.Random(size + count)
    rows = []
    at = draw.randrange(16)
    for _ in range(count):
        length = draw.randint(1, longest)
        if at + length > size:
            break
        source = draw.randrange(size - length)
        pair = (at, source) if operation == "READ" else (source, at)
        rows.append((*pair, length))
        at += length + draw.randrange(40)
    draw.shuffle(rows)
    return rows


@contextlib.contextmanager
def two_processes(options: Options) -> Iterator[Pair]:
    """The scene of most steps."""
    pair = Pair(options)
    yield pair
    pair.close()


@contextlib.contextmanager
def one_process(options: Options) -> Iterator[Pair]:
    pair = Pair(options, one_process=True)
    yield pair
    pair.close()
