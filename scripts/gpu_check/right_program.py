"""What the program around the agents does: graphs, threads, fork, its end."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from vllm_nixl import NixlAgent, nixlNotSupportedError

from .driver import CAPTURE_GLOBAL
from .memory import MIB, OPERATIONS
from .pair import Pair, two_processes
from .report import Checks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .driver import Gpu

scene = two_processes
checks = Checks()
SIZE = 4 * MIB


def elsewhere(work: Callable[[], Any]) -> Any:
    """Do it on another thread."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


# -- Graphs ------------------------------------------------------------------


@contextlib.contextmanager
def capture(gpu: Gpu) -> Iterator[None]:
    """Another thread captures a graph, in the mode that forbids every thread
    what could disturb it.  It must succeed."""
    place = gpu.alloc(SIZE)
    graph = ctypes.c_void_p()
    begun, end = threading.Event(), threading.Event()
    stream = gpu.stream

    def work() -> int:
        nodes = 0
        with gpu.current():
            gpu.call("cuStreamBeginCapture_v2", stream, CAPTURE_GLOBAL)
            begun.set()
            while nodes == 0 or not end.wait(0.0005):
                gpu.call("cuMemsetD8Async", place, 1, SIZE, stream)
                nodes += 1
            gpu.call("cuStreamEndCapture", stream, ctypes.byref(graph))
        return nodes

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        captured = pool.submit(work)
        try:
            if not begun.wait(10):
                captured.result(0)
            yield
        finally:
            end.set()
        nodes = captured.result()
    count = ctypes.c_size_t()
    gpu.call("cuGraphGetNodes", graph, None, ctypes.byref(count))
    gpu.call("cuGraphDestroy", graph)
    gpu.free(place)
    if count.value != nodes:
        raise RuntimeError(f"{count.value} of {nodes} nodes were captured")


@checks.add("transfers while another thread captures a graph")
def transfers_in_capture(pair: Pair) -> None:
    memory = pair.make("cudaMalloc", "cudaMalloc", SIZE)
    handles = [
        pair.here.handle(operation, memory, [(0, 0, SIZE)])
        for operation in OPERATIONS
    ]
    with capture(pair.here.gpu):
        for _ in range(pair.options.pick(200, 10)):
            for handle in handles:
                pair.here.run(handle)
    for handle in handles:
        handle.release()
    pair.move_both_ways(memory)
    pair.end()


@checks.add("registering and mapping while another thread captures a graph")
def registering_in_capture(pair: Pair) -> None:
    for kind in ("cudaMalloc", "expandable, 2 MiB"):
        memory = pair.make("cudaMalloc", kind, SIZE)
        here = pair.here
        here.ask("deregister")
        with capture(here.gpu):
            here.ask("register")
            pair.load()
            here.ask("run", operation="READ", theirs=memory)
            here.ask("deregister")
            here.ask("register")
            here.ask("run", operation="READ", theirs=memory)
        pair.move_both_ways(memory)
        pair.end()


# -- Threads and processes ---------------------------------------------------


@checks.add("everything on a thread without a context")
def thread_without_context(pair: Pair) -> None:
    memory = pair.make("cudaMalloc", "cudaMalloc", SIZE)
    here = pair.here
    here.ask("fill", seed=1)
    pair.other.ask("fill", seed=2)
    here.ask("deregister")

    def work() -> None:
        here.ask("register")
        pair.load()
        here.ask("run", operation="READ", theirs=memory)
        here.ask("deregister")
        here.ask("register")

    elsewhere(work)
    if here.ask("digest") != pair.other.ask("digest"):
        raise RuntimeError("wrong bytes")
    pair.end()


@checks.add("fork: the child is told, the parent goes on")
def fork(pair: Pair) -> None:
    memory = pair.make("cudaMalloc", "cudaMalloc", SIZE)
    pair.move_both_ways(memory)
    address = pair.here.memories["memory"].address
    child = os.fork()
    if child == 0:
        status = 1
        try:
            agent = NixlAgent("forked")
            agent.register_memory([(address, SIZE, 0, "")], "VRAM")
        except nixlNotSupportedError:
            status = 0
        finally:
            os._exit(status)
    status = wait_for(child)
    if status != 0:
        raise RuntimeError(f"the child ended with wait status {status}")
    pair.move_both_ways(memory)
    pair.end()


def wait_for(child: int) -> int:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found != 0:
            return status
        time.sleep(0.01)
    os.kill(child, 9)
    return os.waitpid(child, 0)[1]


def leave(pair: Pair, close: bool) -> None:
    """Let the peer's process end as a program does, and have a new one."""
    pair.other.order("leave", close=close)
    status = pair.other.process.wait(20)
    if status != 0:
        raise RuntimeError(f"the process ended with status {status}")
    pair.new_other()
    pair.here.ask("end")


@checks.add("a process ends with memory that its peer has mapped")
def owner_leaves(pair: Pair) -> None:
    for close in (False, True):
        pair.move("READ", pair.make("cudaMalloc", "cudaMalloc", SIZE))
        leave(pair, close)


@checks.add("a process ends with memory of its peer mapped")
def reader_leaves(pair: Pair) -> None:
    for close in (False, True):
        pair.make("cudaMalloc", "cumem", SIZE)
        pair.meet()
        memory = pair.here.memories["memory"]
        mine = {"address": memory.address, "type": memory.type}
        pair.other.ask("run", operation="READ", theirs=mine)
        leave(pair, close)


@checks.add("a process ends amid transfers")
def leaves_in_flight(pair: Pair) -> None:
    pair.make("cudaMalloc", "cudaMalloc", SIZE)
    pair.meet()
    memory = pair.here.memories["memory"]
    mine = {"address": memory.address, "type": memory.type}
    pair.other.ask("run_on", operation="READ", theirs=mine)
    leave(pair, False)
