"""Metadata that lies: regions that the peer does not have.

Nothing that a peer says of its memory may make us touch more of ours than a
transfer names, and what is not in its metadata is never asked for.
"""

import random

import pytest
from support import blob as grammar
from support import ucx
from support.memory import pattern
from support.peer import PeerError, PeerProcess

pytestmark = [pytest.mark.slow, pytest.mark.beyond_stock]

SIZE = 64 * 1024
GUARD = 4096
ERRORS = {
    "nixlBackendError",
    "nixlInvalidParamError",
    "nixlMismatchError",
    "nixlNotFoundError",
    "nixlRemoteDisconnectError",
}


@pytest.fixture(scope="module")
def couple():
    """(one that is lied to, the one of whom lies are told)"""
    path = ucx.any_library()
    if ucx.why_not(path) is not None:
        pytest.skip(ucx.why_not(path))
    env = ucx.environment(path)
    with (
        PeerProcess("vllm_nixl", "here", {}, env) as here,
        PeerProcess("vllm_nixl", "there", {}, env) as there,
    ):
        there.block = there.alloc(SIZE, seed=1)
        here.guarded = here.alloc(SIZE + 2 * GUARD, seed=2)
        yield here, there


@pytest.fixture
def pair(couple):
    here, there = couple
    here.fill(here.guarded.key, 2)
    here.remove(there.name)
    return couple


def with_regions(data, change):
    """What the metadata says of UCX alone, as a stock agent's does, with each
    region's (address, length, device, key) made into others."""
    found = grammar.parse(data)
    sections = [
        section._replace(
            regions=[grammar.Region(*change(*row)) for row in section.regions]
        )
        for section in found.sections
        if section.backend == b"UCX"
    ]
    connections = {b"UCX": found.connections[b"UCX"]}
    return grammar.write(
        found._replace(sections=sections, connections=connections)
    )


def refused(here, data):
    """Is the metadata refused, with a typed error?"""
    try:
        here.add(data)
    except PeerError as error:
        if error.kind not in ERRORS:
            raise
        return True
    return False


def attempt(here, there, remote, size):
    """READ into the middle of the guarded buffer; the error's class."""
    try:
        here.move(
            "READ",
            [(here.guarded.addr + GUARD, size, 0)],
            [(remote, size, 0)],
            there.name,
        )
    except PeerError as error:
        return error.kind
    return None


def assert_guards(here):
    """What surrounds the buffer is as it was."""
    want = pattern(2, SIZE + 2 * GUARD)
    got = here.read(here.guarded.key)
    assert got[:GUARD] == want[:GUARD]
    assert got[GUARD + SIZE :] == want[GUARD + SIZE :]


def works(here, there):
    """With the truth loaded, all is well."""
    here.remove(there.name)
    here.add(there.metadata())
    assert attempt(here, there, there.block.addr, SIZE) is None
    got = here.read(here.guarded.key, GUARD, SIZE)
    assert got == pattern(1, SIZE)
    assert_guards(here)


LIES = {
    "longer": lambda a, n, d, key: (a, n + (1 << 40), d, key),
    "elsewhere": lambda a, n, d, key: (0x1000, n, d, key),
    "all of memory": lambda a, n, d, key: (0x1000, (1 << 47) - 0x2000, d, key),
    "key of nothing": lambda a, n, d, key: (a, n, d, b"\0" * len(key)),
    "key of ones": lambda a, n, d, key: (a, n, d, b"\xff" * len(key)),
    "short key": lambda a, n, d, key: (a, n, d, key[:3]),
    "no key": lambda a, n, d, key: (a, n, d, b""),
}


@pytest.mark.parametrize("lie", LIES)
def test_false_regions(pair, lie):
    """It is refused, or the transfer fails by a typed error; we live."""
    here, there = pair
    data = with_regions(there.metadata(), LIES[lie])
    assert refused(here, data) or attempt(here, there, 0x1000, SIZE) in ERRORS
    assert_guards(here)
    works(here, there)


def test_nothing_beyond_the_metadata_is_asked_for(pair):
    """A part of the region is advertised: the rest is out of reach."""
    here, there = pair
    half = SIZE // 2
    here.add(
        with_regions(there.metadata(), lambda a, n, d, key: (a, half, d, key))
    )
    base = there.block.addr
    for remote, size in [
        (base + half, 1),
        (base + half - 1, 2),
        (base - 1, 2),
        (base, SIZE),
    ]:
        assert attempt(here, there, remote, size) == "nixlNotFoundError"
    assert attempt(here, there, base, half) is None
    works(here, there)


def test_spoiled_metadata(pair):
    """Bytes turned at random, in what only UCX reads too."""
    here, there = pair
    dice = random.Random(5)
    data = there.metadata()
    for _ in range(60):
        bad = bytearray(data)
        for _ in range(dice.choice([1, 2, 8])):
            bad[dice.randrange(len(bad))] ^= 1 << dice.randrange(8)
        if not refused(here, bytes(bad)):
            here.remove(there.name)
    works(here, there)
