"""Signed metadata and stock: a stock agent skips the signature and adds
none."""

import pytest
from support import blob as grammar
from support.deadline import until
from support.memory import pattern
from support.nixl import why_no_library
from support.peer import PeerError

HERE = "127.0.0.1"
SIZE = 1 << 16
SECRET = "correct horse battery staple"
ENGINES = ["native", "nixl"]

pytestmark = pytest.mark.usefixtures("need_ucx")


@pytest.fixture(params=ENGINES)
def make(request, peer):
    """make(secret): one of our agents in a separate process."""
    if request.param == "nixl" and why_no_library() is not None:
        pytest.skip(why_no_library())
    env = {"VLLM_NIXL_ENGINE": request.param}
    return lambda secret=None, **config: peer(
        env=env, metadata_secret=secret, **config
    )


def whole(block):
    return [(block.addr, SIZE, 0)]


def is_signed(data):
    return grammar.parse(data).sections[-1].backend == b"VNXSIGN"


def check_moves(here, there, theirs):
    """`here` reads from, writes to and notifies `there`."""
    mine = here.alloc(SIZE)
    here.move("READ", whole(mine), whole(theirs), there.name, b"read")
    assert here.read(mine.key) == pattern(1, SIZE)
    here.fill(mine.key, 2)
    here.move("WRITE", whole(mine), whole(theirs), there.name, b"written")
    assert there.gather_notifs(2) == [
        (here.name, b"read"),
        (here.name, b"written"),
    ]
    assert there.read(theirs.key) == pattern(2, SIZE)


def test_stock_loads_our_signed_metadata(make, stock):
    ours, there = make(SECRET), stock()
    block = ours.alloc(SIZE, seed=1)
    data = ours.metadata()
    assert is_signed(data)
    assert there.add(data) == ours.name.encode()
    check_moves(there, ours, block)


def test_stock_reloads_our_signed_metadata(make, stock):
    """With more regions than before, then the same again."""
    ours, there = make(SECRET), stock()
    ours.alloc(SIZE)
    there.add(ours.metadata())
    block = ours.alloc(SIZE, seed=1)
    for _ in range(2):
        there.add(ours.metadata())
    check_moves(there, ours, block)


@pytest.mark.parametrize("connection", [True, False])
def test_stock_loads_our_signed_partial_metadata(make, stock, connection):
    ours, there = make(SECRET), stock()
    block = ours.alloc(SIZE, seed=1)
    first = ours.partial_metadata([], True)
    part = ours.partial_metadata([block.key], connection)
    assert is_signed(first)
    assert is_signed(part)
    assert bool(grammar.parse(part).connections) == connection
    there.add(first)
    assert there.add(part) == ours.name.encode()
    check_moves(there, ours, block)


def test_our_agents_without_a_secret_load_signed_metadata(make):
    ours, there = make(SECRET), make()
    block = ours.alloc(SIZE, seed=1)
    there.add(ours.metadata())
    check_moves(there, ours, block)


def test_our_agents_with_a_shared_secret_transfer(make):
    ours, there = make(SECRET), make(SECRET)
    block = ours.alloc(SIZE, seed=1)
    there.add(ours.metadata())
    check_moves(there, ours, block)


def test_unsigned_metadata_of_stock_is_refused(make, stock):
    ours, there = make(SECRET), stock()
    block = there.alloc(SIZE)
    for data in (
        there.metadata(),
        there.partial_metadata([], True),
        there.partial_metadata([block.key], False),
    ):
        with pytest.raises(PeerError, match="NIXL_ERR_NOT_ALLOWED") as caught:
            ours.add(data)
        assert caught.value.kind == "nixlNotAllowedError"
        assert f"peer '{there.name}'" in caught.value.text
        assert "the metadata is not signed" in caught.value.text
    assert not ours.call("check_remote_metadata", there.name)


def test_metadata_listeners_check_signatures(make, stock):
    """Stock loads our metadata; our agent refuses stock's."""
    ours = make(SECRET, enable_listen_thread=True, listen_port=0)
    there = stock(enable_listen_thread=True, listen_port=0)
    port = ours.call("describe")["metadata_listener"]["port"]
    block = ours.alloc(SIZE, seed=1)
    there.call("fetch_remote_metadata", ours.name, HERE, port)
    until(lambda: there.knows(ours.name), "our metadata, fetched")
    check_moves(there, ours, block)
    there.call("send_local_metadata", HERE, port)
    until(
        lambda: ours.call("stats")["listener_load_failures"] == 1, "a refusal"
    )
    listener = ours.call("describe")["metadata_listener"]
    assert "the metadata is not signed" in listener["last_failure"]
    assert not ours.call("check_remote_metadata", there.name)
