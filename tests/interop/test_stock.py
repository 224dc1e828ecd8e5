"""Our bytes read by stock NIXL, and stock's bytes read by us.

The stock agents run in a Python that has the `nixl` wheel; its path is in
VLLM_NIXL_STOCK_PYTHON.
"""

import pytest
from support import blob as grammar
from support.memory import pattern
from support.peer import PeerError

SIZE = 4096


@pytest.fixture
def ours(endpoint):
    return endpoint()


def works(ours):
    """Check that our agent still works."""
    source, target = ours.alloc(SIZE, seed=1), ours.alloc(SIZE)
    ours.move(
        "READ",
        [(target.addr, SIZE, 0)],
        [(source.addr, SIZE, 0)],
        ours.name,
    )
    assert ours.read(target.key) == pattern(1, SIZE)


# -- metadata ----------------------------------------------------------------


def test_stock_metadata_parses_with_the_tests_grammar(stock):
    there = stock()
    block = there.alloc(SIZE)
    data = there.metadata()
    found = grammar.parse(data)
    assert found.name == there.name.encode()
    assert list(found.connections) == [b"UCX"]
    assert found.sections[0].regions[0][:3] == (block.addr, SIZE, 0)
    assert grammar.write(found) == data


@pytest.fixture
def without_ucx(peer):
    """One of our agents, in a separate process, without a libucp."""
    return peer(env={"VLLM_NIXL_UCX_LIBRARY": "none"})


def test_stock_peer_without_a_common_backend_is_refused(stock, without_ucx):
    """Its metadata is read, but no transport reaches it."""
    there = stock()
    there.alloc(SIZE)
    with pytest.raises(PeerError, match="NIXL_ERR_BACKEND") as e:
        without_ucx.add(there.metadata())
    assert e.value.kind == "nixlBackendError"
    assert there.name in str(e.value)
    assert "UCX" in str(e.value)
    assert not without_ucx.call("check_remote_metadata", there.name)
    works(without_ucx)


def test_truncated_stock_metadata_is_refused(api, stock, ours):
    there = stock()
    there.alloc(SIZE)
    data = there.metadata()
    for end in range(0, len(data), 7):
        with pytest.raises(api.nixlMismatchError):
            ours.add(data[:end])
    works(ours)


def test_stock_refuses_our_metadata_and_survives(stock, without_ucx):
    """Stock knows only UCX among our backends, and reports it."""
    there, ours = stock(), without_ucx
    block = there.alloc(SIZE, seed=2)
    room = there.alloc(SIZE)
    ours.alloc(SIZE)
    with pytest.raises(PeerError) as caught:
        there.add(ours.metadata())
    assert caught.value.kind == "nixlBackendError"
    there.move(
        "READ", [(room.addr, SIZE, 0)], [(block.addr, SIZE, 0)], there.name
    )
    assert there.read(room.key) == pattern(2, SIZE)


def test_stock_skips_our_metadata_extensions(stock, ours):
    """Our connections and sections accompany stock's: a stock agent reads such
    metadata and reaches the peer by UCX."""
    here, there = stock(), stock()
    block = there.alloc(SIZE, seed=3)
    room = here.alloc(SIZE)
    ours.alloc(SIZE, "memfd")
    mine = grammar.parse(ours.metadata())
    found = grammar.parse(there.metadata())
    both = found._replace(
        connections={
            b"SHM": mine.connections[b"SHM"],
            b"VNX": mine.connections[b"VNX"],
            **found.connections,
        },
        sections=[s for s in mine.sections if s.backend == b"SHM"]
        + found.sections,
    )
    assert here.add(grammar.write(both)) == there.name.encode()
    here.move(
        "READ", [(room.addr, SIZE, 0)], [(block.addr, SIZE, 0)], there.name
    )
    assert here.read(room.key) == pattern(3, SIZE)


# -- descriptor lists --------------------------------------------------------

LISTS = {
    "xfer": ("xfer", [(0x1000, 64, 0), (0x2000, 128, 3)], "DRAM"),
    "xfer of VRAM": ("xfer", [(2**63, 2**40, 7)], "VRAM"),
    "reg": ("reg", [(0x1000, 64, 0, "")], "DRAM"),
    "reg with paths": ("reg", [(0, 64, 5, "/a/b"), (64, 1, 6, "")], "FILE"),
}


@pytest.mark.parametrize("what", LISTS)
def test_pickled_lists_have_the_same_bytes(stock, ours, what):
    kind, rows, mem_type = LISTS[what]
    there = stock()
    theirs, _ = there.list_state(kind, rows, mem_type)
    mine, _ = ours.list_state(kind, rows, mem_type)
    assert mine == theirs
    assert there.rows_of_state(kind, mine) == ours.rows_of_state(kind, theirs)


@pytest.mark.parametrize("what", LISTS)
def test_stock_list_pickle_is_read(stock, ours, what):
    kind, rows, mem_type = LISTS[what]
    state, pickled = stock().list_state(kind, rows, mem_type)
    made = ours.agent.deserialize_descs(pickled)
    assert made.__getstate__() == state
    assert made.descCount() == len(rows)


@pytest.mark.parametrize("what", LISTS)
def test_stock_reads_our_serialized_lists(stock, ours, what):
    kind, rows, mem_type = LISTS[what]
    _, pickled = ours.list_state(kind, rows, mem_type)
    there = stock()
    assert there.rows_of_serialized(pickled) == ours.rows_of_serialized(
        pickled
    )
