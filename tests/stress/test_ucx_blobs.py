"""False metadata: regions that the peer does not have.

No claim of a peer about its memory may make us touch more of our memory than a
transfer names, and memory outside its metadata is never requested.
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
    """(agent that loads false metadata, agent that it describes)"""
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
    """The metadata reduced to UCX, like a stock agent's, with each region's
    (address, length, device, key) replaced."""
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
    """Check that the bytes around the buffer have not changed."""
    want = pattern(2, SIZE + 2 * GUARD)
    got = here.read(here.guarded.key)
    assert got[:GUARD] == want[:GUARD]
    assert got[GUARD + SIZE :] == want[GUARD + SIZE :]


def works(here, there):
    """Check that transfers work once the true metadata is loaded."""
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
def test_false_regions_cause_typed_errors_only(pair, lie):
    """It is refused, or the transfer fails with a typed error; our process
    survives."""
    here, there = pair
    data = with_regions(there.metadata(), LIES[lie])
    assert refused(here, data) or attempt(here, there, 0x1000, SIZE) in ERRORS
    assert_guards(here)
    works(here, there)


def test_unadvertised_memory_is_never_requested(pair):
    """Part of the region is advertised; the rest cannot be reached."""
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


def test_randomly_damaged_metadata_does_no_harm(pair):
    """Random bytes are changed, including those that only UCX reads."""
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
