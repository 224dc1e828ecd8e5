"""The measuring processes, with the roles of vllm_nixl/_bench/worker.py.

    worker.py reader ours|stock OPTIONS
    worker.py owner ours|stock SIZE gpu|unshared|pinned|pageable
    worker.py bare OPTIONS     copies as many bytes in one piece, by the driver

OPTIONS is JSON: the size, and the memory of both sides.  Stock NIXL is
measured by the same code, so nothing here imports more of vllm_nixl than
vllm_nixl._bench.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

HERE = str(Path(__file__).resolve().parent)
# The modules beside this file are those of a package.
sys.path[:] = [place for place in sys.path if place != HERE]

import numpy as np  # noqa: E402
from vllm_nixl._bench import child, points, worker  # noqa: E402
from vllm_nixl._bench.impl import MIB, Memory  # noqa: E402
from vllm_nixl._bench.owner import Owner  # noqa: E402
from vllm_nixl._bench.reader import Reader  # noqa: E402

from gpu_check.driver import Gpu  # noqa: E402
from gpu_check.memory import Malloc, Unshared  # noqa: E402

if TYPE_CHECKING:
    from vllm_nixl._bench.impl import Impl

FILL = 64 * MIB  # at a time
REGISTER_FLAGS = 3  # CU_MEMHOSTREGISTER_PORTABLE | _DEVICEMAP


class GpuMemory:
    """Memory of the GPU, as vllm_nixl._bench.impl.Memory."""

    kind = "VRAM"

    def __init__(self, gpu: Gpu, size: int, unshared: bool) -> None:
        self.gpu, self.size = gpu, size
        self.memory = (Unshared if unshared else Malloc)(gpu, size)
        self.address = self.memory.address

    def region(self) -> list[tuple[int, int, int, str]]:
        return [(self.address, self.size, 0, "")]

    def fill(self) -> None:
        words = np.arange(min(FILL, self.size) // 8, dtype=np.uint64)
        for start in range(0, self.size // 8 * 8, FILL):
            part = words[: (self.size - start) // 8] + np.uint64(start // 8)
            self.gpu.write(self.address + start, part.tobytes())

    def take(self, block: int, where: Any) -> np.ndarray:
        found = [
            self.gpu.read(self.address + int(i) * block, block) for i in where
        ]
        return np.frombuffer(b"".join(found), np.uint64).reshape(
            -1, block // 8
        )

    def put(self, block: int, where: Any, words: Any) -> None:
        rows = np.broadcast_to(
            np.asarray(words, np.uint64), (len(where), block // 8)
        )
        for i, row in zip(where, rows, strict=True):
            self.gpu.write(self.address + int(i) * block, row.tobytes())


def make_memory(gpu: Gpu, size: int, kind: str) -> Any:
    """`gpu`; `unshared`: memory of the GPU that no other process can map;
    `pinned`: CPU memory that the GPU reaches; `pageable`."""
    if kind in {"gpu", "unshared"}:
        return GpuMemory(gpu, size, kind == "unshared")
    memory = Memory(size)
    if kind == "pinned":
        gpu.call("cuMemHostRegister_v2", memory.address, size, REGISTER_FLAGS)
    return memory


class Floor:
    """One large copy by the driver, from and to the same kinds of memory."""

    def __init__(self, gpu: Gpu, options: dict[str, Any]) -> None:
        self.gpu = gpu
        size = options["size"]
        self.mine = make_memory(gpu, size, options["memory"])
        self.theirs = make_memory(gpu, size, options["peer_memory"])

    def transfers(
        self, op: str, block: int, batch: int, seconds: float, **_: Any
    ) -> points.Sample:
        size = block * batch
        target, source = self.mine, self.theirs
        if op == "WRITE":
            target, source = source, target
        function = {
            ("VRAM", "VRAM"): "cuMemcpyDtoDAsync_v2",
            ("VRAM", "DRAM"): "cuMemcpyHtoDAsync_v2",
            ("DRAM", "VRAM"): "cuMemcpyDtoHAsync_v2",
        }[target.kind, source.kind]
        taken: list[float] = []
        deadline = time.perf_counter() + seconds
        while len(taken) < 2 or time.perf_counter() < deadline:
            started = time.perf_counter()
            self.gpu.call(
                function,
                target.address,
                source.address,
                size,
                self.gpu.stream,
            )
            self.gpu.wait_for_stream()
            taken.append(time.perf_counter() - started)
        nothing = [0.0] * (len(taken) - 1)
        return points.moved(nothing, nothing, taken[1:], size, batch, 0.0)


def measure_floor(gpu: Gpu, out: TextIO, options: dict[str, Any]) -> None:
    opened: list[Floor] = []

    def do(do: str, **order: Any) -> dict[str, Any]:
        if do == "start":
            opened.append(Floor(gpu, options))
            return {}
        return opened[0].transfers(**order)

    child.obey(sys.stdin, out, do)


def main() -> None:
    child.end_with_parent()
    out = child.claim_stdout()
    role, *arguments = sys.argv[1:]
    gpu = Gpu()

    def make(impl: Impl, size: int, kind: str) -> Any:
        return make_memory(gpu, size, kind)

    def open_reader(impl: Impl, options: dict[str, Any]) -> Reader:
        size = options["size"]
        return Reader(
            impl,
            size,
            make_memory(gpu, size, options["memory"]),
            options["peer_memory"],
            program=__file__,
        )

    if role == "owner":
        worker.own(Owner, out, arguments, make)
    elif role == "reader":
        worker.read(out, arguments, open_reader)
    else:
        measure_floor(gpu, out, json.loads(arguments[0]))


if __name__ == "__main__":
    main()
