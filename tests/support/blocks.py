"""Scattered blocks, as in a KV cache."""

import array
import random


def scatter(seed, count, sizes, room):
    """Place `count` blocks of sizes from `sizes` at random.

    Returns [(offset, size), ...] within `room` bytes, in random order and
    without overlaps.
    """
    dice = random.Random(seed)
    lengths = [dice.choice(sizes) for _ in range(count)]
    slack = room - sum(lengths)
    if slack < 0:
        raise ValueError("the blocks do not fit")
    gaps = sorted(dice.randint(0, slack) for _ in range(count))
    blocks, used = [], 0
    for gap, length in zip(gaps, lengths, strict=True):
        blocks.append((gap + used, length))
        used += length
    dice.shuffle(blocks)
    return blocks


def scatter_pairs(seed, count, sizes, room):
    """Two scatterings of the same lengths, one for each side."""
    left = scatter(seed, count, sizes, room)
    lengths = [length for _, length in left]
    slack = room - sum(lengths)
    dice = random.Random(seed + 1)
    gaps = sorted(dice.randint(0, slack) for _ in lengths)
    right, used = [], 0
    for gap, length in zip(gaps, lengths, strict=True):
        right.append((gap + used, length))
        used += length
    return left, right


def rows(base, blocks):
    """Descriptors of blocks in a buffer."""
    return [(base + offset, length, 0) for offset, length in blocks]


def expected(target, source, target_blocks, source_blocks):
    """The bytes of `target` after the blocks of `source` are copied into
    it."""
    result = bytearray(target)
    for (to, length), (start, _) in zip(
        target_blocks, source_blocks, strict=True
    ):
        result[to : to + length] = source[start : start + length]
    return bytes(result)


def as_buffer(table, typecode="Q"):
    """Rows as an N x width buffer, made with the standard library only."""
    width = len(table[0])
    flat = array.array(typecode, [cell for row in table for cell in row])
    return memoryview(flat).cast("B").cast(typecode, [len(table), width])


def as_numpy(table, dtype="uint64"):
    import numpy

    return numpy.array(table, dtype)
