"""The KV cache of the demo: shape, content, memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import vllm_nixl

EMPTY = 0xEE  # every byte of an unused block
STEP = np.uint64(0x9E3779B97F4A7C15)  # odd, so all words of a block differ


@dataclass(frozen=True)
class Shape:
    """Layers of blocks as in vLLM: one tensor for each layer."""

    layers: int
    blocks: int
    block_bytes: int

    @property
    def layer_bytes(self) -> int:
        return self.blocks * self.block_bytes

    @property
    def total_bytes(self) -> int:
        return self.layers * self.layer_bytes


class Cache:
    """The memory of every layer, as uint64 words [block, word]."""

    def __init__(self, shape: Shape, shared: bool) -> None:
        self.shape = shape
        self.layers = []
        for _ in range(shape.layers):
            memory: Any = (
                vllm_nixl.shared_buffer(shape.layer_bytes)
                if shared
                else bytearray(shape.layer_bytes)
            )
            words = np.frombuffer(memory, np.uint64)
            self.layers.append(words.reshape(shape.blocks, -1))
        for layer in self.layers:
            layer.view(np.uint8)[:] = EMPTY

    def addresses(self) -> list[int]:
        return [layer.ctypes.data for layer in self.layers]

    def regions(self) -> list[tuple[int, int, int, str]]:
        """Arguments of register_memory(): one region for each layer."""
        size = self.shape.layer_bytes
        return [(address, size, 0, "") for address in self.addresses()]


def descriptors(addresses: list[int], shape: Shape) -> np.ndarray:
    """Nx3 uint64 rows (address, length, device).  The row of a block in a
    layer is `layer * blocks + block`."""
    table = np.empty((shape.layers, shape.blocks, 3), np.uint64)
    offsets = np.arange(shape.blocks, dtype=np.uint64)
    table[:, :, 0] = np.array(addresses, np.uint64)[:, None]
    table[:, :, 0] += offsets * np.uint64(shape.block_bytes)
    table[:, :, 1] = shape.block_bytes
    table[:, :, 2] = 0
    return table.reshape(-1, 3)


def rows_of(blocks: list[int], shape: Shape) -> np.ndarray:
    """The rows of these blocks in every layer, int64 as in vLLM."""
    layers = np.arange(shape.layers, dtype=np.int64)[:, None]
    ids = np.array(blocks, np.int64)[None, :]
    return (layers * shape.blocks + ids).reshape(-1)


def content(
    layer: int, blocks: list[int], words: int, seed: int
) -> np.ndarray:
    """The words of these blocks of a layer.  Every word depends on layer,
    block and seed, and all words of a cache differ."""
    place = np.array(blocks, np.uint64) * np.uint64(words)
    place += np.uint64(layer << 40) + np.uint64(seed << 52)
    ramp = np.arange(words, dtype=np.uint64)
    words_of_blocks: np.ndarray = (place[:, None] + ramp[None, :]) * STEP
    return words_of_blocks
