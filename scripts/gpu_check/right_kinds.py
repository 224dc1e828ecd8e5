"""Every kind of memory moves between two processes, byte for byte."""

from __future__ import annotations

import functools
import subprocess

from vllm_nixl import NixlError

from .memory import KINDS, MIB, OWN, UNSHARED
from .pair import Pair, two_processes
from .report import Checks, SkippedError

scene = two_processes
checks = Checks()


def move(pair: Pair, mine: str, theirs: str) -> None:
    memory = pair.make(mine, theirs)
    pair.move_both_ways(memory)
    pair.end()


def move_unless_refused(pair: Pair, mine: str, theirs: str) -> str:
    """It never moves wrongly."""
    note = "moved"
    try:
        pair.move_both_ways(pair.make(mine, theirs))
    except NixlError as error:
        note = type(error).__name__
    pair.end()
    return note


for kind in KINDS:
    way = " (copied by its owner)" if kind in UNSHARED else ""
    checks.add(f"memory of another process: {kind}{way}")(
        functools.partial(move, mine="cudaMalloc", theirs=kind)
    )
for kind in OWN:
    if kind != "cudaMalloc":
        text = f"this side's memory: {kind}"
        checks.add(text)(
            functools.partial(move, mine=kind, theirs="cudaMalloc")
        )


@checks.add("memory that sleeps is not copied")
def copy_asleep(pair: Pair) -> str:
    """Its owner would copy it, with a kernel that ends in an error 700."""
    size = 4 * MIB
    memory = pair.make("cudaMalloc", "cumem without handles", size)
    pair.move_both_ways(memory)
    handle = pair.here.handle("READ", memory, [(0, 0, size)])
    pair.other.ask("sleep")
    note = None
    try:
        pair.here.run(handle)
    except NixlError as error:
        note = type(error).__name__
    handle.release()
    if note is None:
        raise RuntimeError("the transfer was done")
    pair.other.ask("wake")
    pair.move_both_ways(memory)
    pair.end()
    return note


@checks.add("a peer in another pid namespace, as in another container")
def namespace(pair: Pair) -> str:
    """By what its memory moves is up to the driver."""
    prefix = ("unshare", "--pid", "--fork", "--kill-child")
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        raise SkippedError("unshare --pid is not permitted") from None
    pair.other.close()
    pair.new_other(prefix)
    notes = [
        f"{kind}: {move_unless_refused(pair, 'cudaMalloc', kind)}"
        for kind in ("cudaMalloc", "cumem")
    ]
    pair.other.close()
    pair.new_other()
    return ", ".join(notes)


@checks.add("small allocations that share a block")
def share(pair: Pair) -> None:
    pair.other.ask("make", kind="cudaMalloc", size=300_000, name="neighbour")
    pair.move_both_ways(pair.make("cudaMalloc", "cudaMalloc", 300_000))
    pair.end()
    pair.other.ask("end", name="neighbour")


@checks.add("GPU memory of another process goes by CUDA, not by UCX")
def route(pair: Pair) -> None:
    pair.make("cudaMalloc", "cudaMalloc")
    routes = pair.here.agent.describe(pair.here.peer)["routes"]
    pair.end()
    found = {(r["local"], r["remote"]): r["transport"] for r in routes}
    if found["VRAM", "VRAM"] != "CUDA":
        raise RuntimeError(f"the routes are {found}")
