"""Rows that measure the process: the import, and an idle agent."""

from __future__ import annotations

import sys
import time
from typing import Any

Samples = dict[str, list[float]]


def import_time(name: str, quick: bool) -> Samples:
    """The time of the import, and the memory of the process after it.

    It runs before any other import (worker.py).
    """
    started = time.perf_counter()
    if name == "ours":
        import vllm_nixl  # noqa: F401
    else:
        import nixl._api  # noqa: F401
    took = time.perf_counter() - started
    with open("/proc/self/statm") as statm:
        resident = int(statm.read().split()[1]) * 4096
    loaded = [name for name in ("numpy", "torch") if name in sys.modules]
    if name == "ours" and loaded:
        raise RuntimeError(f"importing vllm_nixl imports {loaded}")
    return {"ms": [took * 1e3], "mb": [resident / 1e6]}


def idle(impl: Any, quick: bool) -> Samples:
    """Cores used by an idle agent with the default configuration.

    Ours also has a peer in another process and a running listener; stock has
    neither.
    """
    from vllm_nixl._bench.peer import Peer

    agent = impl.agent("idle")
    peer = None
    if impl.ours:
        peer = Peer(impl.name, 1 << 20)
        peer.introduce(agent)
        agent.start_side_channel_listener(0, agent.get_agent_metadata())
    try:
        time.sleep(0.5)
        wall, cpu = time.monotonic(), time.process_time()
        time.sleep(2.0 if quick else 10.0)
        cpu = time.process_time() - cpu
        wall = time.monotonic() - wall
    finally:
        if peer is not None:
            peer.close()
    return {"cores": [cpu / wall]}
