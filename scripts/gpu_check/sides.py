"""Measuring ours, stock NIXL and the driver's own copy in turns."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vllm_nixl._bench.child import BenchError
from vllm_nixl._bench.turns import Side, in_turns

from .memory import KIB, MIB

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from .report import Figures, Options

# From this size on, blocks must be copied about as fast as one large piece.
LARGE = 64 * KIB
WORKER = Path(__file__).with_name("worker.py")
# Stock NIXL with UCX's READ between two processes of a GPU, which is off if
# the GPUs have no NVLink, and without it.
STOCK = {"stock": {"UCX_CUDA_IPC_ENABLE_GET_ZCOPY": "on"}, "stock_default": {}}
SIDE_S = 25.0  # for one sample, or a start


class GpuSide(Side):
    def answer(self, limit: float = SIDE_S) -> Any:
        return super().answer(limit)


class Sides:
    """The sides that work, each in its own processes.

    Args:
        options: Of the run.
        worker: For worker.py: size, memory, peer_memory.
        stock: Whether stock NIXL takes part, if it is installed.
        env: More variables for ours.
        floor: What differs in the driver's own copy from `worker`.
    """

    def __init__(
        self,
        options: Options,
        worker: dict[str, Any],
        stock: bool = True,
        env: dict[str, str] | None = None,
        floor: dict[str, Any] | None = None,
    ) -> None:
        self.options = options
        self.size = int(worker["size"])
        self.lost: dict[str, str] = {}  # why a side does not take part
        self.sides: dict[str, GpuSide] = {}
        self._start("ours", "ours", worker, env or {})
        self._start("floor", "bare", {**worker, **(floor or {})}, {})
        if stock and options.stock is not None:
            for name, more in STOCK.items():
                self._start(name, "stock", worker, more, options.stock)

    def _start(
        self,
        name: str,
        kind: str,
        worker: dict[str, Any],
        env: dict[str, str],
        python: str | None = None,
    ) -> None:
        side = GpuSide(
            kind,
            worker,
            python or sys.executable,
            {**os.environ, **env},
            program=WORKER,
        )
        try:
            side.start()
        except BenchError as error:
            self._lose(name, side, error)
        else:
            self.sides[name] = side

    def _lose(self, name: str, side: GpuSide, error: Exception) -> None:
        self.lost[name] = f"{name}: {error}"
        self.sides.pop(name, None)
        side.kill()

    def close(self) -> None:
        for side in self.sides.values():
            side.kill()

    def sample(self, **order: Any) -> dict[str, list[dict[str, Any]]]:
        """Samples of each side, taken in turns.  A side that fails takes no
        part any more."""

        def take(name: str) -> dict[str, Any] | None:
            if name not in self.sides:
                return None
            side = self.sides[name]
            try:
                return side.sample("transfers", order)
            except BenchError as error:
                self._lose(name, side, error)
                return None

        taken = in_turns(
            {name: functools.partial(take, name) for name in self.sides},
            self.options.pick(2, 1),
        )
        return {
            name: found
            for name, samples in taken.items()
            if (found := [sample for sample in samples if sample is not None])
        }

    def measure_blocks(
        self,
        blocks: list[int],
        operations: Iterable[str],
        seconds: float,
        prefix: str = "",
    ) -> Iterator[tuple[str, Figures, str]]:
        """Move a quarter of the memory in blocks of each size.  The rows are
        PREFIX OPERATION_BLOCK."""
        for block in blocks:
            for operation in operations:
                samples = self.sample(
                    op=operation,
                    block=block,
                    batch=self.size // 4 // block,
                    seconds=0.02 if self.options.quick else seconds,
                    verify=block >= LARGE,  # smaller ones: right_rows
                )
                yield (
                    f"{prefix}{operation}_{block}",
                    best(samples),
                    self.note(),
                )

    def note(self) -> str:
        return "; ".join(self.lost.values())


def best(samples: dict[str, list[dict[str, Any]]]) -> dict[str, float]:
    """The best bandwidth of each side."""
    return {
        name: max(float(sample["gbs"]) for sample in found)
        for name, found in samples.items()
    }


def host_blocks(options: Options) -> list[int]:
    """The sizes where memory of the CPU takes part."""
    few = [64 * KIB]
    return few if options.quick else [16 * KIB, *few, MIB]


def size_text(size: int) -> str:
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"
