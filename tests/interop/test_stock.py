"""Beside stock NIXL: what the two understand of each other's bytes.

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
    """Our agent still does its work."""
    source, target = ours.alloc(SIZE, seed=1), ours.alloc(SIZE)
    ours.move(
        "READ",
        [(target.addr, SIZE, 0)],
        [(source.addr, SIZE, 0)],
        ours.name,
    )
    assert ours.read(target.key) == pattern(1, SIZE)


# -- metadata ----------------------------------------------------------------


def test_stock_metadata_is_the_grammar_that_we_test_with(stock):
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
    """An agent of ours that finds no libucp, in a process of its own."""
    return peer(env={"VLLM_NIXL_UCX_LIBRARY": "none"})


def test_a_stock_peer_is_refused_with_the_cause(stock, without_ucx):
    """Its metadata is read; what is missing is a way to reach it."""
    there = stock()
    there.alloc(SIZE)
    with pytest.raises(PeerError, match="NIXL_ERR_BACKEND") as e:
        without_ucx.add(there.metadata())
    assert e.value.kind == "nixlBackendError"
    assert there.name in str(e.value)
    assert "UCX" in str(e.value)
    assert not without_ucx.call("check_remote_metadata", there.name)
    works(without_ucx)


def test_cut_stock_metadata_is_no_metadata(api, stock, ours):
    there = stock()
    there.alloc(SIZE)
    data = there.metadata()
    for end in range(0, len(data), 7):
        with pytest.raises(api.nixlMismatchError):
            ours.add(data[:end])
    works(ours)


def test_stock_refuses_our_metadata_and_lives(stock, without_ucx):
    """It knows no backend of ours but UCX, and says so."""
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


def test_stock_skips_what_we_add_to_metadata(stock, ours):
    """Connections and sections of ours beside stock's own: a stock agent
    reads such metadata and reaches the peer by UCX."""
    here, there = stock(), stock()
    block = there.alloc(SIZE, seed=3)
    room = here.alloc(SIZE)
    ours.alloc(SIZE, "memfd")
    mine = grammar.parse(ours.metadata())
    found = grammar.parse(there.metadata())
    both = found._replace(
        connections={
            b"SHM": mine.connections[b"SHM"],
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
def test_lists_have_the_same_bytes(stock, ours, what):
    kind, rows, mem_type = LISTS[what]
    there = stock()
    theirs, _ = there.list_state(kind, rows, mem_type)
    mine, _ = ours.list_state(kind, rows, mem_type)
    assert mine == theirs
    assert there.rows_of_state(kind, mine) == ours.rows_of_state(kind, theirs)


@pytest.mark.parametrize("what", LISTS)
def test_we_read_the_pickle_of_a_stock_list(stock, ours, what):
    kind, rows, mem_type = LISTS[what]
    state, pickled = stock().list_state(kind, rows, mem_type)
    made = ours.agent.deserialize_descs(pickled)
    assert made.__getstate__() == state
    assert made.descCount() == len(rows)


@pytest.mark.parametrize("what", LISTS)
def test_stock_reads_what_we_serialize(stock, ours, what):
    kind, rows, mem_type = LISTS[what]
    _, pickled = ours.list_state(kind, rows, mem_type)
    there = stock()
    assert there.rows_of_serialized(pickled) == ours.rows_of_serialized(
        pickled
    )
