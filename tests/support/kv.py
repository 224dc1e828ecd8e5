"""A small KV cache of several layers, with the forms in which clients name
blocks."""

from support import blocks, deadline
from support.memory import Memory

LAYERS, BLOCKS, BLOCK = 4, 32, 2048
LAYER = BLOCKS * BLOCK
CACHE = LAYERS * LAYER


def rows(base, count=LAYERS * BLOCKS):
    """(address, length, device) of each block of each layer."""
    return [(base + i * BLOCK, BLOCK, 0) for i in range(count)]


def table(base, dtype="uint64"):
    """The same as an Nx3 array."""
    return blocks.as_numpy(rows(base), dtype)


def strided(base):
    """The same as an Nx5 array: one row per layer, with stride and count."""
    layers = [
        (base + i * LAYER, BLOCK, 0, BLOCK, BLOCKS) for i in range(LAYERS)
    ]
    return blocks.as_numpy(layers)


def desc_ids(block_ids):
    """The rows of some blocks in every layer, as int64 like in vLLM."""
    import numpy as np

    layers = np.arange(LAYERS)[:, None] * BLOCKS
    return (layers + np.asarray(block_ids)[None, :]).flatten()


def copied(target, source, to, start):
    """`target` after the rows `start` of `source` are copied to the rows
    `to`."""
    result = bytearray(target)
    for i, j in zip(to, start, strict=True):
        piece = source[j * BLOCK : (j + 1) * BLOCK]
        result[i * BLOCK : (i + 1) * BLOCK] = piece
    return bytes(result)


def poll(agent, handle):
    """Check once per step, as clients do."""
    deadline.until(
        lambda: agent.check_xfer_state(handle) == "DONE", "the transfer"
    )


class Local:
    """Memory in this process, for a client's own agent."""

    def __init__(self, size=CACHE, seed=None):
        self.memory = Memory(size)
        if seed is not None:
            self.memory.fill(seed)
        self.addr, self.size = self.memory.addr, size

    def read(self):
        return bytes(self.memory.view)

    def close(self):
        self.memory.unmap()


class Remote:
    """The same behind an endpoint, which may be in another process."""

    def __init__(self, node, size=CACHE, seed=None, register=True):
        self.node, self.name = node, node.name
        self.block = node.alloc(size, seed=seed, register=register)
        self.addr, self.size = self.block.addr, size

    def read(self):
        return self.node.read(self.block.key)

    def metadata(self):
        return self.node.metadata()
