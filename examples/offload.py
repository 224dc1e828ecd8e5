"""Offload KV blocks to a file and read them back.

    python examples/offload.py [--folder FOLDER] [--blocks N] [--block-kib N]

When a request pauses, its blocks move from memory to a file. When it
continues, they return to other places in memory. NIXL's backend POSIX moves
data to files; the engine "nixl" of vllm_nixl loads it with the stock library
(pip install nixl).
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import sys
import tempfile
import time
import zlib

from vllm_nixl import NixlAgent, NixlError, nixl_agent_config

Row = tuple[int, int, int]


class Cache:
    """`count` contiguous blocks of memory."""

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self.memory = mmap.mmap(-1, count * size)
        self.address = address_of(self.memory)

    def rows(self) -> list[Row]:
        return [
            (self.address + i * self.size, self.size, 0)
            for i in range(self.count)
        ]

    def block(self, i: int) -> bytes:
        return self.memory[i * self.size : (i + 1) * self.size]

    def fill(self, i: int, seed: int) -> None:
        data = random.Random(seed).randbytes(4096) * (self.size // 4096)
        self.memory[i * self.size : (i + 1) * self.size] = data


def address_of(memory: mmap.mmap) -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


class Offloader:
    """Moves blocks of a cache to slots of a file, and back."""

    def __init__(self, cache: Cache, path: str) -> None:
        self.agent = NixlAgent(
            "offload", nixl_agent_config(engine="nixl", backends=["POSIX"])
        )
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        size = cache.count * cache.size
        agent = self.agent
        agent.register_memory([(cache.address, size, 0, "")], "DRAM")
        agent.register_memory([(0, size, self.fd, path)], "FILE")
        slots = [
            (i * cache.size, cache.size, self.fd) for i in range(cache.count)
        ]
        self.blocks = agent.prep_xfer_dlist("", cache.rows(), "DRAM")
        self.slots = agent.prep_xfer_dlist(agent.name, slots, "FILE")

    def move(
        self, operation: str, blocks: list[int], slots: list[int]
    ) -> None:
        """WRITE blocks to slots of the file, or READ them from the slots."""
        with self.agent.make_prepped_xfer(
            operation, self.blocks, blocks, self.slots, slots
        ) as handle:
            self.agent.transfer(handle)
            self.agent.wait([handle], timeout=60)  # raises if it failed

    def close(self) -> None:
        self.agent.close()
        os.close(self.fd)


def speed(size: int, seconds: float) -> str:
    rate = size / seconds / 1e9
    return f"{size / 1e6:.0f} MB in {seconds * 1e3:.0f} ms, {rate:.2f} GB/s"


def run(folder: str, count: int, size: int) -> bool:
    cache = Cache(count, size)
    path = os.path.join(folder, "kv-blocks")
    offloader = Offloader(cache, path)
    for i in range(count):
        cache.fill(i, i)
    sums = [zlib.crc32(cache.block(i)) for i in range(count)]
    try:
        start = time.perf_counter()
        offloader.move("WRITE", list(range(count)), list(range(count)))
        print("offloaded:", speed(count * size, time.perf_counter() - start))

        # Meanwhile, other requests use the memory.
        cache.memory[:] = bytes(count * size)

        places = random.Random(7).sample(range(count), count)
        start = time.perf_counter()
        offloader.move("READ", places, list(range(count)))
        print("read back:", speed(count * size, time.perf_counter() - start))
        good = all(
            zlib.crc32(cache.block(place)) == sums[i]
            for i, place in enumerate(places)
        )
        print("every block is unchanged" if good else "BLOCKS DIFFER")
        return good
    finally:
        offloader.close()
        os.unlink(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="folder for the file")
    parser.add_argument("--blocks", type=int, default=64)
    parser.add_argument("--block-kib", type=int, default=1024)
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            return not run(folder, options.blocks, options.block_kib << 10)
    except NixlError as error:
        print(f"this example needs the stock NIXL library: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
