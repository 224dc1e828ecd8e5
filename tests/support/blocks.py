"""Scattered blocks, as a KV cache has them."""

import array
import random


def scatter(seed, count, sizes, room):
    """`count` blocks of sizes from `sizes` at distinct random places.

    Returns [(offset, size), ...] that do not overlap, in random order, in
    `room` bytes.
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
    """What `target` is once the blocks of `source` are copied into it."""
    result = bytearray(target)
    for (to, length), (start, _) in zip(
        target_blocks, source_blocks, strict=True
    ):
        result[to : to + length] = source[start : start + length]
    return bytes(result)


def as_buffer(table, typecode="Q"):
    """Rows as an N x width buffer of the standard library alone."""
    width = len(table[0])
    flat = array.array(typecode, [cell for row in table for cell in row])
    return memoryview(flat).cast("B").cast(typecode, [len(table), width])


def as_numpy(table, dtype="uint64"):
    import numpy

    return numpy.array(table, dtype)
