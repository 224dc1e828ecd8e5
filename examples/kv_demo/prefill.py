"""The prefill instance: fills a KV cache, serves it, frees it."""

from __future__ import annotations

import base64
import dataclasses
import json
import select
import time
from typing import Any

import numpy as np
from cache import EMPTY, Cache, Shape, content
from report import Reporter
from vllm_nixl import NixlAgent, nixl_agent_config


def plan_requests(blocks: int, requests: int, seed: int) -> dict[str, Any]:
    """Scattered blocks for each request; no block is used twice."""
    order = np.random.default_rng(seed).permutation(blocks)
    return {
        f"request-{number}": part.tolist()
        for number, part in enumerate(np.array_split(order, requests))
    }


def fill(cache: Cache, seed: int, report: Reporter) -> None:
    every = list(range(cache.shape.blocks))
    for number, layer in enumerate(cache.layers):
        layer[:] = content(number, every, layer.shape[1], seed)
        report("progress", phase="fill", done=number + 1, of=len(cache.layers))


def handshake_payload(
    agent: NixlAgent, cache: Cache, requests: Any, seed: int
) -> bytes:
    """Data for decode: the agent's metadata, the cache and what is in it."""
    return json.dumps(
        {
            "shape": dataclasses.asdict(cache.shape),
            "seed": seed,
            "agent": base64.b64encode(agent.get_agent_metadata()).decode(),
            "addresses": cache.addresses(),
            "requests": requests,
        }
    ).encode()


def free(cache: Cache, blocks: list[int]) -> None:
    """Overwrite the blocks, so that a read that is too late is detected."""
    for layer in cache.layers:
        layer.view(np.uint8).reshape(cache.shape.blocks, -1)[blocks] = EMPTY


def serve(
    agent: NixlAgent,
    cache: Cache,
    requests: dict[str, Any],
    timeout: int,
    report: Reporter,
) -> None:
    """Sleep until notifications arrive; free the blocks that they name."""
    waiting = dict(requests)
    events = select.poll()
    events.register(agent.fileno(), select.POLLIN)
    wall = cpu = 0.0
    deadline = time.monotonic() + timeout
    while waiting:
        wall -= time.monotonic()
        cpu -= time.process_time()
        if not events.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise TimeoutError(
                f"{len(waiting)} requests were not read within {timeout} s"
            )
        wall += time.monotonic()
        cpu += time.process_time()
        for sender, messages in agent.get_new_notifs().items():
            for message in messages:
                name = message.decode()
                free(cache, waiting.pop(name))
                report("freed", request=name, by=sender, left=len(waiting))
    report("served", seconds=wall, cpu_seconds=cpu)


def run(options: Any, report: Reporter) -> None:
    shape = Shape(options.layers, options.blocks, options.block_kib * 1024)
    cache = Cache(shape, options.shared)
    fill(cache, options.seed, report)
    requests = plan_requests(shape.blocks, options.requests, options.seed)
    with NixlAgent("prefill", nixl_agent_config()) as agent:
        registered = agent.register_memory(cache.regions(), "DRAM")
        port = agent.start_side_channel_listener(
            options.port,
            handshake_payload(agent, cache, requests, options.seed),
            options.host or "",
        )
        report("ready", port=port)
        serve(agent, cache, requests, options.timeout, report)
        agent.stop_side_channel_listener()
        agent.deregister_memory(registered)
