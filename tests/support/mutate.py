"""Metadata damaged in many ways, random and malicious."""

import random
import struct

from support import blob as grammar

EXTREMES = [0, 1, 7, 2**31, 2**32 - 1, 2**32, 2**62, 2**63, 2**64 - 1]


def flip(dice, data, _):
    at = dice.randrange(len(data))
    data[at] ^= 1 << dice.randrange(8)


def put(dice, data, _):
    data[dice.randrange(len(data))] = dice.choice([0, 1, 0x7C, 0x7F, 0xFF])


def extreme(dice, data, _):
    at = dice.randrange(max(1, len(data) - 8))
    data[at : at + 8] = struct.pack("=Q", dice.choice(EXTREMES))


def cut(dice, data, _):
    at = dice.randrange(len(data))
    del data[at : at + dice.randint(1, 40)]


def tail(dice, data, _):
    del data[dice.randrange(len(data)) :]


def insert(dice, data, _):
    at = dice.randrange(len(data))
    data[at:at] = dice.randbytes(dice.randint(1, 20))


def repeat(dice, data, _):
    at = dice.randrange(len(data))
    piece = data[at : at + dice.randint(1, 80)]
    data[at:at] = piece * dice.randint(1, 3)


def splice(dice, data, others):
    other = dice.choice(others)
    at = dice.randrange(len(data))
    start = dice.randrange(len(other))
    data[at:] = other[start:]


def field(dice, data, _):
    """The grammar stays valid, but a field's value is wrong."""
    try:
        found = grammar.parse(bytes(data))
    except ValueError:
        return flip(dice, data, _)
    connections = dict(found.connections)
    for backend, info in list(connections.items()):
        info = bytearray(info)
        for _ in range(dice.randint(0, 3)):
            dice.choice([flip, put, extreme, cut, insert])(dice, info, None)
            info = info or bytearray(b"x")
        connections[backend] = bytes(info)
    sections = [
        part._replace(regions=[damaged(dice, r) for r in part.regions])
        for part in found.sections
    ]
    made = found._replace(connections=connections, sections=sections)
    data[:] = grammar.write(made)
    return None


def damaged(dice, region):
    cells = [
        dice.choice(EXTREMES) if dice.random() < 0.2 else cell
        for cell in region[:3]
    ]
    public = bytearray(region.public)
    if public and dice.random() < 0.3:
        dice.choice([flip, extreme, cut])(dice, public, None)
    return grammar.Region(*cells, bytes(public))


WAYS = [flip, put, extreme, cut, tail, insert, repeat, splice, field, field]


def mutations(seed, blobs, count):
    """`count` damaged variants of the blobs, each with 1 to 4 damages."""
    dice = random.Random(seed)
    for _ in range(count):
        data = bytearray(dice.choice(blobs))
        for _ in range(dice.randint(1, 4)):
            if not data:
                break
            dice.choice(WAYS)(dice, data, blobs)
        yield bytes(data)
