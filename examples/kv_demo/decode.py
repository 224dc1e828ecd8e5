"""The decode instance: fetches the metadata, reads the blocks, checks them."""

from __future__ import annotations

import base64
import json
import statistics
import time
from typing import Any

import numpy as np
from cache import EMPTY, Cache, Shape, content, descriptors, rows_of
from report import Reporter
from vllm_nixl import NixlAgent, nixl_agent_config

SPARE = 8  # local blocks that no request uses; they must not change
PAGE = 4096


class WrongBytesError(ValueError):
    """A byte has a wrong value."""


class Decode:
    def __init__(self, options: Any, report: Reporter, agent: Any) -> None:
        self.options, self.report, self.agent = options, report, agent

    def shake_hands(self) -> None:
        """Fetch the metadata in one round trip, then prepare both sides."""
        agent = self.agent
        started = time.perf_counter()
        payload = agent.request_remote_metadata(
            self.options.host or "127.0.0.1",
            self.options.port,
            self.options.timeout * 1000,
            retries=None,
        )
        fetched = time.perf_counter()
        self.peer = json.loads(payload)
        self._make_cache()
        made = time.perf_counter()
        name = agent.add_remote_agent(base64.b64decode(self.peer["agent"]))
        loaded = time.perf_counter()
        self.local = self._prepare(
            "NIXL_INIT_AGENT",
            descriptors(self.cache.addresses(), self.ours),
        )
        self.remote = self._prepare(
            name, descriptors(self.peer["addresses"], self.theirs)
        )
        prepared = time.perf_counter()
        self.name = name
        self.report(
            "handshake",
            bytes=len(payload),
            fetch_ms=(fetched - started) * 1e3,
            load_ms=(loaded - made) * 1e3,
            prepare_ms=(prepared - loaded) * 1e3,
            rows=self.theirs.layers * (self.theirs.blocks + self.ours.blocks),
        )

    def _make_cache(self) -> None:
        """A cache of the shape of prefill's, with some blocks more."""
        self.theirs = Shape(**self.peer["shape"])
        self.seed: int = self.peer["seed"]
        self.ours = Shape(
            self.theirs.layers,
            self.theirs.blocks + SPARE,
            self.theirs.block_bytes,
        )
        self.cache = Cache(self.ours, False)
        self.agent.register_memory(self.cache.regions(), "DRAM")

    def _prepare(self, name: str | bytes, table: np.ndarray) -> Any:
        agent = self.agent
        return agent.prep_xfer_dlist(name, agent.get_xfer_descs(table, "DRAM"))

    def read_page(self) -> None:
        """Repeat a read of 4 KiB into a spare block."""
        agent, spare = self.agent, self.theirs.blocks
        local = self._prepare(
            "NIXL_INIT_AGENT",
            np.array([[self.cache.layers[0][spare].ctypes.data, PAGE, 0]]),
        )
        remote = self._prepare(
            self.name, np.array([[self.peer["addresses"][0], PAGE, 0]])
        )
        handle = agent.make_prepped_xfer("READ", local, [0], remote, [0])
        seconds = []
        for _ in range(2000):
            started = time.perf_counter()
            if agent.transfer(handle) != "DONE":
                agent.wait([handle], self.options.timeout)
            seconds.append(time.perf_counter() - started)
        agent.release_xfer_handle(handle)
        words = self.cache.layers[0][spare][: PAGE // 8]
        if not np.array_equal(words, content(0, [0], PAGE // 8, self.seed)[0]):
            raise WrongBytesError("the read of 4 KiB returned wrong bytes")
        words.view(np.uint8)[:] = EMPTY
        self.report("page", p50_us=statistics.median(seconds) * 1e6)

    def pull(self) -> None:
        """Read all requests at once; each completes by an event."""
        agent, shape = self.agent, self.theirs
        self.placed = self._place()
        handles = {}
        for name, blocks in self.peer["requests"].items():
            handle = agent.make_prepped_xfer(
                "READ",
                self.local,
                rows_of(self.placed[name], self.ours),
                self.remote,
                rows_of(blocks, shape),
                name.encode(),
            )
            handles[handle] = name
        wall, cpu = time.perf_counter(), time.thread_time()
        for handle in handles:
            agent.transfer(handle)
        posted, posted_cpu = time.perf_counter(), time.thread_time()
        self._wait(handles)
        ended, ended_cpu = time.perf_counter(), time.thread_time()
        self.report(
            "pulled",
            requests=len(self.placed),
            pieces=shape.layers * shape.blocks,
            bytes=shape.total_bytes,
            seconds=ended - wall,
            post_ms=(posted - wall) * 1e3,
            wait_seconds=ended - posted,
            wait_cpu_seconds=ended_cpu - posted_cpu,
            post_cpu_ms=(posted_cpu - cpu) * 1e3,
        )

    def _place(self) -> dict[str, list[int]]:
        """Choose free local blocks for each request, in random order."""
        order = np.random.default_rng(self.seed + 1).permutation(
            self.theirs.blocks
        )
        free = iter(order.tolist())
        return {
            name: [next(free) for _ in blocks]
            for name, blocks in self.peer["requests"].items()
        }

    def _wait(self, handles: dict[Any, str]) -> None:
        agent, total = self.agent, len(handles)
        open_handles = dict(handles)
        while open_handles:
            ended = agent.wait(
                list(open_handles), self.options.timeout, any_of=True
            )
            for handle in ended:
                agent.release_xfer_handle(handle)
                del open_handles[handle]
            self.report(
                "progress",
                phase="pull",
                done=total - len(open_handles),
                of=total,
            )

    def check(self) -> None:
        """Check every byte of every block, and that no other changed."""
        seed, checked = self.seed, 0
        for number, layer in enumerate(self.cache.layers):
            for name, theirs in self.peer["requests"].items():
                found = layer[self.placed[name]]
                wanted = content(number, theirs, layer.shape[1], seed)
                if not np.array_equal(found, wanted):
                    raise self._mismatch(number, name, found, wanted)
                checked += found.nbytes
            spare = layer[self.theirs.blocks :].view(np.uint8)
            if not (spare == EMPTY).all():
                raise WrongBytesError(f"layer {number}: a spare block changed")
            self.report(
                "progress", phase="check", done=number + 1, of=self.ours.layers
            )
        self.report("checked", bytes=checked)

    def _mismatch(
        self, layer: int, name: str, found: np.ndarray, wanted: np.ndarray
    ) -> WrongBytesError:
        row = int(np.argwhere((found != wanted).any(axis=1))[0][0])
        block = self.peer["requests"][name][row]
        words = int((found[row] != wanted[row]).sum())
        return WrongBytesError(
            f"layer {layer}, block {block} of {name}: {words} words differ"
        )


def run(options: Any, report: Reporter) -> None:
    with NixlAgent("decode", nixl_agent_config()) as agent:
        decode = Decode(options, report, agent)
        decode.shake_hands()
        decode.read_page()
        decode.pull()
        decode.check()
