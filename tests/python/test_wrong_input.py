"""Wrong input of every kind: the right exception class, a helpful message, and
an agent that still works.

Each case is a complaint that a user has made or would make.  `index` is the
row that the error names, `words` are the words that its message must contain.
"""

import builtins
import os

import pytest
from support import blocks, deadline
from support.endpoint import Endpoint
from support.memory import pattern
from support.peer import PeerProcess

pytestmark = pytest.mark.beyond_stock

SIZE = 64 * 1024
ROWS = 16
BLOCK = SIZE // ROWS
TOP = 2**64 - 1


class Scene:
    """An agent, a peer, registered memory, lists of both sides."""

    def __init__(self, api, here, there, third):
        self.api, self.here, self.there = api, here, there
        self.agent = here.agent
        self.peer = there.name
        self.remote = there.alloc(SIZE, seed=1)
        self.local = here.alloc(SIZE)
        self.r, self.l = self.remote.addr, self.local.addr
        here.add(there.metadata())
        prep = self.agent.prep_xfer_dlist
        self.left = prep("", self.rows(self.l), "DRAM")
        self.right = prep(self.peer, self.rows(self.r), "DRAM")
        self.handle = self.make([0], [0])
        self.foreign = self.foreign_handles(third)
        self.released = self.make([0], [0])
        self.released.release()
        self.stale = prep("", self.rows(self.l), "DRAM")
        self.stale.release()

    def rows(self, base):
        return [(base + i * BLOCK, BLOCK, 0) for i in range(ROWS)]

    def make(self, left, right, operation="READ", **keywords):
        return self.agent.make_prepped_xfer(
            operation, self.left, left, self.right, right, **keywords
        )

    def foreign_handles(self, third):
        """A list and a transfer of another agent in this process."""
        block = third.alloc(SIZE)
        row = [(block.addr, 64, 0)]
        left = third.agent.prep_xfer_dlist("", row, "DRAM")
        right = third.agent.prep_xfer_dlist(third.name, row, "DRAM")
        handle = third.agent.make_prepped_xfer("READ", left, [0], right, [0])
        return left, handle

    def one_bad(self, base, bad, at=3):
        """Good rows with one bad row among them."""
        rows = self.rows(base)
        rows[at] = bad
        return rows

    def xfer_descs(self, rows):
        return self.agent.get_xfer_descs(rows, "DRAM")

    def init(self, left, right, operation="READ", peer=None, **keywords):
        return self.agent.initialize_xfer(
            operation,
            self.xfer_descs(left),
            self.xfer_descs(right),
            peer or self.peer,
            **keywords,
        )

    def prep(self, rows, peer="", mem_type="DRAM"):
        return self.agent.prep_xfer_dlist(peer, rows, mem_type)

    def check_works(self):
        """Check that everything that worked before still works."""
        everything = list(range(ROWS))
        handle = self.make(everything, everything)
        assert deadline.run(self.agent, handle) == "DONE"
        assert self.here.read(self.local.key) == pattern(1, SIZE)
        handle.release()
        self.here.send_notif(self.peer, b"still here")
        assert self.there.gather_notifs(1) == [(self.here.name, b"still here")]


@pytest.fixture(scope="module")
def scenes(api, module):
    """One scene for each engine, used by all cases."""
    made, things = {}, []

    def build(engine):
        here = Endpoint(module, "wrong-here", {})
        third = Endpoint(module, "wrong-third", {})
        place = PeerProcess if engine.two_processes else Endpoint
        there = place(module, "wrong-there", {})
        things.extend([here, third, there])
        there.add(here.metadata())
        return Scene(api, here, there, third)

    def get(engine):
        if engine.name not in made:
            made[engine.name] = build(engine)
        return made[engine.name]

    yield get
    for thing in things:
        thing.close()


@pytest.fixture
def scene(scenes, engine):
    return scenes(engine)


def numpy():
    return pytest.importorskip("numpy")


NOT_FOUND, INVALID = "nixlNotFoundError", "nixlInvalidParamError"
TYPE, VALUE, KEY = "TypeError", "ValueError", "KeyError"
INDEX = "IndexError"


def case(name, call, kinds, *words, index=None):
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    return pytest.param(call, kinds, words, index, id=name)


REGISTER = [
    case("none", lambda s: s.agent.register_memory(None, "DRAM"), TYPE),
    case("int", lambda s: s.agent.register_memory(7, "DRAM"), TYPE),
    case(
        "three cells",
        lambda s: s.agent.register_memory([(s.l, 64, 0)], "DRAM"),
        (VALUE, TYPE),
    ),
    case(
        "no memory type",
        lambda s: s.agent.register_memory([(s.l, 64, 0, "")]),
        (VALUE, TYPE),
    ),
    case(
        "unknown memory type",
        lambda s: s.agent.register_memory([(s.l, 64, 0, "")], "RAM"),
        KEY,
        "RAM",
    ),
    case(
        "sum overflows",
        lambda s: s.agent.register_memory(
            [(s.l, 64, 0, ""), (TOP, 64, 0, "")], "DRAM"
        ),
        INVALID,
        "register_memory",
        "row 1",
        index=1,
    ),
    case(
        "not mapped",
        lambda s: s.agent.register_memory(
            [(s.l, 64, 0, ""), (4096, 64, 0, "")], "DRAM"
        ),
        INVALID,
        "register_memory",
        "row 1 (address 0x1000, length 64",
        "no memory is mapped at its address",
        index=1,
    ),
    case(
        "the whole address space",
        lambda s: s.agent.register_memory([(0, TOP, 0, "")], "DRAM"),
        INVALID,
        "register_memory",
        "no memory is mapped at its address",
        index=0,
    ),
    case(
        "negative address",
        lambda s: s.agent.register_memory([(-1, 64, 0, "")], "DRAM"),
        VALUE,
        "row 0",
    ),
    case(
        "address above 64 bits",
        lambda s: s.agent.register_memory([(2**64, 64, 0, "")], "DRAM"),
        VALUE,
        "row 0",
    ),
    case(
        "address is a str",
        lambda s: s.agent.register_memory([("here", 64, 0, "")], "DRAM"),
        TYPE,
    ),
    case(
        "length is a float",
        lambda s: s.agent.register_memory([(s.l, 64.0, 0, "")], "DRAM"),
        TYPE,
    ),
    case(
        "transfer list",
        lambda s: s.agent.register_memory(s.xfer_descs([(s.l, 64, 0)])),
        (TYPE, VALUE),
    ),
    case(
        "backend that is not there",
        lambda s: s.agent.register_memory(
            [(s.l, 64, 0, "")], "DRAM", backends=["NOPE"]
        ),
        KEY,
        "NOPE",
    ),
    case(
        "float array",
        lambda s: s.agent.register_memory(numpy().zeros((2, 3)), "DRAM"),
        (VALUE, TYPE),
    ),
    case(
        "deregister what is not registered",
        lambda s: s.agent.deregister_memory(
            s.agent.get_reg_descs([(s.l, 64, 0, "")], "DRAM")
        ),
        NOT_FOUND,
        "deregister_memory",
        "row 0",
        index=0,
    ),
    case(
        "deregister one good and one bad",
        lambda s: s.agent.deregister_memory(
            s.agent.get_reg_descs(
                [(s.l, SIZE, 0, ""), (s.l + 1, 64, 0, "")], "DRAM"
            )
        ),
        NOT_FOUND,
        "row 1",
        index=1,
    ),
    case("deregister none", lambda s: s.agent.deregister_memory(None), TYPE),
]


def twice(scene):
    """Register once, deregister twice."""
    key = scene.here.alloc(SIZE).key
    rows = scene.here.registered.pop(key)
    scene.agent.deregister_memory(rows)
    scene.agent.deregister_memory(rows)


REGISTER.append(case("deregister twice", twice, NOT_FOUND))

ROWS_OF_LISTS = [
    case("none", lambda s: s.prep(None), TYPE),
    case("int", lambda s: s.prep(3), TYPE),
    case("str", lambda s: s.prep("rows"), (TYPE, VALUE)),
    case("empty list", lambda s: s.prep([]), (VALUE, INDEX, NOT_FOUND)),
    case(
        "empty array",
        lambda s: s.prep(numpy().zeros((0, 3), "uint64")),
        (VALUE, INDEX),
    ),
    case("two cells", lambda s: s.prep([(s.l, 64)]), (VALUE, TYPE)),
    case("four cells", lambda s: s.prep([(s.l, 64, 0, "")]), (VALUE, TYPE)),
    case(
        "one short row among many",
        lambda s: s.prep(s.one_bad(s.l, (s.l, 64))),
        (VALUE, TYPE),
        "row 3",
    ),
    case(
        "none among the rows",
        lambda s: s.prep(s.one_bad(s.l, None)),
        TYPE,
        "row 3",
    ),
    case(
        "float cell",
        lambda s: s.prep(s.one_bad(s.l, (s.l, 1.5, 0))),
        TYPE,
        "row 3",
    ),
    case(
        "negative cell",
        lambda s: s.prep(s.one_bad(s.l, (s.l, -64, 0))),
        VALUE,
        "row 3",
    ),
    case(
        "cell above 64 bits",
        lambda s: s.prep(s.one_bad(s.l, (2**64, 64, 0))),
        VALUE,
        "row 3",
    ),
    case(
        "no memory type",
        lambda s: s.agent.prep_xfer_dlist("", [(s.l, 64, 0)]),
        (VALUE, TYPE),
    ),
    case(
        "unknown memory type",
        lambda s: s.prep([(s.l, 64, 0)], mem_type="HBM"),
        KEY,
        "HBM",
    ),
    case(
        "memory type that is not registered",
        lambda s: s.prep([(s.l, 64, 0)], mem_type="VRAM"),
        (NOT_FOUND, "nixlNotSupportedError"),
        "prep_xfer_dlist",
    ),
    case(
        "four columns",
        lambda s: s.prep(numpy().zeros((2, 4), "uint64")),
        TYPE,
    ),
    case("one axis", lambda s: s.prep(numpy().zeros(6, "uint64")), TYPE),
    case(
        "three axes",
        lambda s: s.prep(numpy().zeros((2, 3, 3), "uint64")),
        TYPE,
    ),
    case("float array", lambda s: s.prep(numpy().zeros((2, 3))), VALUE),
    case(
        "object array",
        lambda s: s.prep(numpy().zeros((2, 3), object)),
        (VALUE, TYPE),
    ),
    case("bytes", lambda s: s.prep(b"x" * 24), (VALUE, TYPE)),
    case(
        "registration list",
        lambda s: s.prep(s.agent.get_reg_descs([(s.l, 64, 0, "")], "DRAM")),
        (TYPE, VALUE),
    ),
    case(
        "strides without memory type",
        lambda s: s.agent.prep_xfer_dlist(
            "", blocks.as_buffer([(s.l, 64, 0, 64, 2)])
        ),
        (VALUE, TYPE),
    ),
    case(
        "negative in an int64 buffer",
        lambda s: s.prep(blocks.as_buffer([(s.l, -64, 0)], "q")),
        VALUE,
        "row 0",
    ),
]

UNREGISTERED = [
    case(
        "address that is not registered",
        lambda s: s.prep(s.one_bad(s.l, (0x10, 64, 0))),
        NOT_FOUND,
        "prep_xfer_dlist",
        "row 3",
        "0x10",
        "64",
        index=3,
    ),
    case(
        "one byte past the end",
        lambda s: s.prep(s.one_bad(s.l, (s.l + SIZE - 63, 64, 0), 15)),
        NOT_FOUND,
        "row 15",
        index=15,
    ),
    case(
        "one byte before the start",
        lambda s: s.prep([(s.l - 1, 64, 0)]),
        NOT_FOUND,
        "row 0",
        index=0,
    ),
    case(
        "another device",
        lambda s: s.prep([(s.l, 64, 1)]),
        NOT_FOUND,
        "device 1",
        index=0,
    ),
    case(
        "sum overflows",
        lambda s: s.prep(s.one_bad(s.l, (s.l, TOP, 0))),
        (INVALID, NOT_FOUND),
        "row 3",
        index=3,
    ),
    case(
        "remote, not registered",
        lambda s: s.prep(s.one_bad(s.r, (0x10, 64, 0)), s.peer),
        NOT_FOUND,
        "row 3",
        "0x10",
        "{peer}",
        index=3,
    ),
    case(
        "remote, past the end",
        lambda s: s.prep([(s.r + SIZE - 63, 64, 0)], s.peer),
        NOT_FOUND,
        "{peer}",
        index=0,
    ),
    case(
        "unknown peer",
        lambda s: s.prep([(s.r, 64, 0)], "stranger"),
        NOT_FOUND,
        "prep_xfer_dlist",
        "stranger",
    ),
    case(
        "peer is none",
        lambda s: s.prep([(s.r, 64, 0)], None),
        TYPE,
    ),
    case(
        "strided row past the end",
        lambda s: s.prep(
            blocks.as_buffer([(s.l, 64, 0, 64, 2), (s.l, 64, 0, SIZE // 2, 4)])
        ),
        NOT_FOUND,
        "row 1",
    ),
    case(
        "strided row whose sum overflows",
        lambda s: s.prep(blocks.as_buffer([(s.l, 64, 0, 2**60, 2**32)])),
        (INVALID, NOT_FOUND),
        "row 0",
    ),
    case(
        "strided row that wraps to its start",
        lambda s: s.prep(blocks.as_buffer([(s.l, 64, 0, 2**63, 3)])),
        (INVALID, NOT_FOUND),
        "row 0",
    ),
    case(
        "more strided blocks than memory could hold",
        lambda s: s.prep(blocks.as_buffer([(s.l, 0, 0, 0, TOP)])),
        (INVALID, NOT_FOUND, "nixlOutOfMemoryError"),
    ),
    case(
        "initialize, local",
        lambda s: s.init([(0x10, 64, 0)], [(s.r, 64, 0)]),
        NOT_FOUND,
        "initialize_xfer",
        "row 0",
        index=0,
    ),
    case(
        "initialize, remote",
        lambda s: s.init([(s.l, 64, 0)], [(0x10, 64, 0)]),
        NOT_FOUND,
        "initialize_xfer",
        "{peer}",
        index=0,
    ),
    case(
        "initialize, unknown peer",
        lambda s: s.init([(s.l, 64, 0)], [(s.r, 64, 0)], peer="stranger"),
        NOT_FOUND,
        "stranger",
    ),
]

INDICES = [
    case(
        "too large",
        lambda s: s.make([0, 1, ROWS], [0, 1, 2]),
        (INVALID, INDEX),
        "make_prepped_xfer",
        "2",
        str(ROWS),
        index=2,
    ),
    case(
        "too large, remote",
        lambda s: s.make([0, 1], [0, ROWS]),
        (INVALID, INDEX),
        "1",
        index=1,
    ),
    case("negative", lambda s: s.make([0, -1], [0, 1]), (INVALID, INDEX)),
    case(
        "beyond 32 bits, which must not be cut to 0",
        lambda s: s.make([2**32], [0]),
        (INVALID, INDEX),
    ),
    case(
        "beyond 32 bits in an int64 array",
        lambda s: s.make(numpy().array([2**32]), numpy().array([0])),
        (INVALID, INDEX),
        index=0,
    ),
    case(
        "beyond 64 bits",
        lambda s: s.make([2**64], [0]),
        (INVALID, INDEX, VALUE, "OverflowError"),
    ),
    case(
        "negative in an int32 array",
        lambda s: s.make(numpy().array([0, -1], "int32"), [0, 1]),
        (INVALID, INDEX),
        index=1,
    ),
    case(
        "negative int8, which must not be 255",
        lambda s: s.make(numpy().array([-1], "int8"), [0]),
        (INVALID, INDEX),
        index=0,
    ),
    case("none of them", lambda s: s.make([], []), (INVALID, VALUE)),
    case(
        "empty arrays",
        lambda s: s.make(numpy().zeros(0, int), numpy().zeros(0, int)),
        (INVALID, VALUE),
    ),
    case(
        "not as many on both sides",
        lambda s: s.make([0, 1], [0]),
        (INVALID, VALUE),
        "2",
        "1",
    ),
    case("none", lambda s: s.make(None, [0]), TYPE),
    case("int", lambda s: s.make(0, [0]), TYPE),
    case("str among them", lambda s: s.make([0, "1"], [0, 1]), TYPE),
    case("float among them", lambda s: s.make([0, 1.0], [0, 1]), TYPE),
    case(
        "float array",
        lambda s: s.make(numpy().array([0.5]), [0]),
        (TYPE, VALUE),
    ),
    case(
        "bool array",
        lambda s: s.make(numpy().array([True]), [0]),
        (TYPE, VALUE),
    ),
    case(
        "two axes",
        lambda s: s.make(numpy().zeros((1, 1), int), [0]),
        (TYPE, VALUE),
    ),
    case("bytes that are not a list", lambda s: s.make({0: 0}, [0]), TYPE),
]

TRANSFERS = [
    case(
        "unknown operation",
        lambda s: s.make([0], [0], "COPY"),
        KEY,
        "COPY",
    ),
    case("operation is none", lambda s: s.make([0], [0], None), (TYPE, KEY)),
    case(
        "unknown operation, initialize",
        lambda s: s.init([(s.l, 64, 0)], [(s.r, 64, 0)], "read"),
        KEY,
        "read",
    ),
    case(
        "lengths differ",
        lambda s: s.init(
            [(s.l, 64, 0), (s.l, 64, 0)], [(s.r, 64, 0), (s.r, 65, 0)]
        ),
        INVALID,
        "initialize_xfer",
        "row 1",
        "64",
        "65",
        index=1,
    ),
    case(
        "not as many rows on both sides",
        lambda s: s.init([(s.l, 64, 0)], [(s.r, 64, 0), (s.r, 64, 0)]),
        INVALID,
    ),
    case(
        "local list as remote side",
        lambda s: s.agent.make_prepped_xfer("READ", s.left, [0], s.left, [0]),
        INVALID,
        "make_prepped_xfer",
    ),
    case(
        "sides exchanged",
        lambda s: s.agent.make_prepped_xfer("READ", s.right, [0], s.left, [0]),
        INVALID,
    ),
    case(
        "list of another agent",
        lambda s: s.agent.make_prepped_xfer(
            "READ", s.foreign[0], [0], s.right, [0]
        ),
        INVALID,
        "agent",
    ),
    case(
        "list is none",
        lambda s: s.agent.make_prepped_xfer("READ", None, [0], s.right, [0]),
        TYPE,
    ),
    case(
        "list is a transfer",
        lambda s: s.agent.make_prepped_xfer(
            "READ", s.handle, [0], s.right, [0]
        ),
        TYPE,
    ),
    case(
        "released list",
        lambda s: s.agent.make_prepped_xfer(
            "READ", s.stale, [0], s.right, [0]
        ),
        (INVALID, "nixlClosedError", NOT_FOUND),
        "released",
    ),
    case(
        "notification is an int",
        lambda s: s.make([0], [0], notif_msg=3),
        TYPE,
    ),
    case(
        "unknown backend",
        lambda s: s.make([0], [0], backends=["NOPE"]),
        KEY,
        "NOPE",
    ),
    case(
        "lists are tuples",
        lambda s: s.agent.initialize_xfer(
            "READ", [(1, 2, 3)], [(1, 2, 3)], None
        ),
        TYPE,
    ),
]

HANDLES = []
for method in (
    "transfer",
    "check_xfer_state",
    "get_xfer_telemetry",
    "query_xfer_backend",
    "estimate_xfer_cost",
    "cancel",
):
    HANDLES += [
        case(
            f"{method} none",
            lambda s, m=method: getattr(s.agent, m)(None),
            TYPE,
        ),
        case(
            f"{method} of a list",
            lambda s, m=method: getattr(s.agent, m)(s.left),
            TYPE,
        ),
        case(
            f"{method} released",
            lambda s, m=method: getattr(s.agent, m)(s.released),
            (INVALID, "nixlClosedError", NOT_FOUND),
            "released",
        ),
    ]
HANDLES += [
    case(
        "wait for a released one",
        lambda s: s.agent.wait([s.released], timeout=5),
        (INVALID, "nixlClosedError", NOT_FOUND),
        "released",
    ),
    case("wait for none", lambda s: s.agent.wait(None), TYPE),
    case("wait for a list", lambda s: s.agent.wait([s.left]), TYPE),
    case(
        "states of none",
        lambda s: s.agent.check_xfer_states([None]),
        TYPE,
    ),
    case(
        "release none",
        lambda s: s.agent.release_xfer_handle(None),
        (TYPE, "AttributeError"),
    ),
    case(
        "transfer with an int as notification",
        lambda s: s.agent.transfer(s.handle, 5),
        TYPE,
    ),
]

PEERS = [
    case("metadata none", lambda s: s.agent.add_remote_agent(None), TYPE),
    case("metadata int", lambda s: s.agent.add_remote_agent(5), TYPE),
    case(
        "metadata empty",
        lambda s: s.agent.add_remote_agent(b""),
        "nixlMismatchError",
        "add_remote_agent",
    ),
    case(
        "metadata our own",
        lambda s: s.agent.add_remote_agent(s.agent.get_agent_metadata()),
        INVALID,
        "add_remote_agent",
    ),
    case(
        "notification to a stranger",
        lambda s: s.agent.send_notif("stranger", b"x"),
        NOT_FOUND,
        "send_notif",
        "stranger",
    ),
    case(
        "notification int",
        lambda s: s.agent.send_notif(s.peer, 3),
        TYPE,
    ),
    case(
        "notification none", lambda s: s.agent.send_notif(s.peer, None), TYPE
    ),
    case(
        "notification to nobody",
        lambda s: s.agent.send_notif("", b"x"),
        (NOT_FOUND, INVALID, VALUE),
    ),
    case(
        "connection to a stranger",
        lambda s: s.agent.make_connection("stranger"),
        NOT_FOUND,
        "make_connection",
        "stranger",
    ),
    case(
        "remove none",
        lambda s: s.agent.remove_remote_agent(None),
        TYPE,
    ),
    case(
        "describe a stranger",
        lambda s: s.agent.describe("stranger"),
        NOT_FOUND,
        "stranger",
    ),
    case(
        "backend that does not exist",
        lambda s: s.agent.create_backend("NOPE", {}),
        NOT_FOUND,
        "create_backend",
        "NOPE",
    ),
    case(
        "memory query of an unknown backend",
        lambda s: s.agent.query_memory([(s.l, 64, 0, "")], "NOPE", "DRAM"),
        VALUE,
        "NOPE",
    ),
    case(
        "deserialize garbage",
        lambda s: s.agent.deserialize_descs(b"garbage"),
        (VALUE, "nixlMismatchError"),
    ),
]

MATRIX = {
    "register": REGISTER,
    "rows": ROWS_OF_LISTS,
    "unregistered": UNREGISTERED,
    "indices": INDICES,
    "transfers": TRANSFERS,
    "handles": HANDLES,
    "peers": PEERS,
}


@pytest.mark.parametrize(
    ("call", "kinds", "words", "index"),
    [
        pytest.param(*entry.values, id=f"{group}: {entry.id}")
        for group, entries in MATRIX.items()
        for entry in entries
    ],
)
def test_wrong_input_is_refused(scene, call, kinds, words, index):
    classes = {**vars(builtins), **scene.api.error_classes()}
    with pytest.raises(tuple(classes[kind] for kind in kinds)) as caught:
        call(scene)
    error = caught.value
    text = str(error)
    for word in words:
        assert word.format(peer=scene.peer) in text
    if isinstance(error, scene.api.NixlError):
        assert text.startswith("NIXL_ERR_")
        if index is not None:
            assert error.index == index
        if "{peer}" in words:
            assert error.peer == scene.peer
    scene.check_works()


# -- agents ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", b""])
def test_an_agent_needs_a_name(api, name):
    with pytest.raises(ValueError, match="name"):
        api.nixl_agent(name, api.nixl_agent_config())


@pytest.mark.parametrize("name", [None, 5, ["a"]])
def test_agent_name_must_be_text(api, name):
    with pytest.raises(TypeError):
        api.nixl_agent(name, api.nixl_agent_config())


def test_sync_mode_must_be_an_enumeration_member(api):
    with pytest.raises(TypeError):
        api.nixl_agent_config(sync_mode="strict")
    mode = api.nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
    assert api.nixl_agent_config(sync_mode=mode).sync_mode is mode


def test_an_engine_that_does_not_exist_is_refused(api, monkeypatch):
    monkeypatch.setenv("VLLM_NIXL_ENGINE", "steam")
    with pytest.raises((ValueError, api.NixlError), match="steam"):
        api.nixl_agent("A", api.nixl_agent_config())


def test_a_backend_is_created_once(api, endpoint):
    here = endpoint()
    with pytest.raises(api.NixlError, match="UCX"):
        here.agent.create_backend("UCX", {})
    assert here.alloc(4096)


def test_an_agent_without_backends_says_what_is_missing(api, endpoint):
    here = endpoint(backends=[])
    with pytest.raises(api.NixlError, match="backend"):
        here.alloc(4096)
    here.agent.create_backend("UCX", {"num_threads": "2"})
    assert here.alloc(4096)


def test_unknown_keywords_are_refused(api, endpoint):
    agent = endpoint().agent
    with pytest.raises(TypeError):
        agent.get_new_notifs(backend=["UCX"])
    with pytest.raises(TypeError):
        agent.send_notif("x", message=b"")
    with pytest.raises(TypeError):
        api.nixl_agent_config(threads=3)


# -- numbers out of range ----------------------------------------------------

OUT_OF_RANGE = pytest.mark.parametrize(
    "number", [-1, 2**64, 10**400], ids=["-1", "2**64", "10**400"]
)


@OUT_OF_RANGE
def test_memory_type_out_of_range_is_refused(api, scene, number):
    for make in api.nixlXferDList, api.nixlRegDList, api.nixlRemoteDList:
        with pytest.raises(KeyError, match="memory type"):
            make(number)
    with pytest.raises(KeyError, match="memory type"):
        scene.prep([(scene.l, 64, 0)], mem_type=number)


@OUT_OF_RANGE
def test_a_number_of_rows_out_of_range_is_refused(api, number):
    for make in api.nixlXferDList, api.nixlRegDList, api.nixlRemoteDList:
        with pytest.raises(api.nixlInvalidParamError, match="rows"):
            make("DRAM", number)
        with pytest.raises(api.nixlInvalidParamError, match="rows"):
            make("DRAM", init_size=number)


@pytest.mark.parametrize(
    "number", [-1, 10**400, -(10**400)], ids=["-1", "10**400", "-10**400"]
)
def test_a_timeout_out_of_range_is_refused(api, scene, number):
    with pytest.raises(api.nixlInvalidParamError, match="timeout"):
        scene.agent.transfer(scene.handle, timeout=number)
    with pytest.raises(api.nixlInvalidParamError, match="timeout"):
        scene.agent.wait([], timeout=number)


@OUT_OF_RANGE
@pytest.mark.parametrize("option", ["num_threads", "notif_bytes_max"])
def test_an_option_out_of_range_is_refused(api, option, number):
    agent_class = api.nixl_agent.__base__
    with pytest.raises(api.nixlInvalidParamError, match=option):
        agent_class("A", **{option: number})


def test_backend_name_with_a_null_character_is_refused(api, endpoint):
    agent = endpoint(backends=[]).agent
    for name, parameters in (
        ("UCX\0", {}),
        ("UCX", {"num_threads\0": "1"}),
        ("UCX", {"num_threads": "1\0"}),
    ):
        with pytest.raises(api.nixlInvalidParamError, match="null character"):
            agent.create_backend(name, parameters)
    assert agent.backends == {}


def test_unsubscribe_closes_only_subscriptions(endpoint):
    """Only the agent's own subscriptions are accepted."""
    agent = endpoint().agent
    ours, theirs = agent._subscribe(), endpoint().agent._subscribe()
    reader, writer = os.pipe()
    for number in (reader, writer, theirs, agent.fileno()):
        agent._unsubscribe(number)
    for open_still in (ours, theirs, reader, writer, agent.fileno()):
        os.fstat(open_still)
    os.close(reader)
    os.close(writer)


# -- methods that return None in stock ----------------------------------------

RESULTS = {
    "get_reg_descs": lambda s: s.agent.get_reg_descs(None, "DRAM"),
    "get_xfer_descs": lambda s: s.agent.get_xfer_descs(None, "DRAM"),
    "get_remote_descs": lambda s: s.agent.get_remote_descs(None, "DRAM"),
    "lists without a type": lambda s: s.agent.get_xfer_descs([(1, 2, 3)]),
    "list of the wrong kind": lambda s: s.agent.get_xfer_descs(
        s.agent.get_reg_descs([(1, 2, 3, "")], "DRAM")
    ),
    "other list of the wrong kind": lambda s: s.agent.get_reg_descs(
        s.agent.get_xfer_descs([(1, 2, 3)], "DRAM")
    ),
    "remote rows without a name": lambda s: s.agent.get_remote_descs(
        [(1, 2, 3)], "DRAM"
    ),
}


@pytest.mark.parametrize("what", RESULTS)
def test_calls_that_return_none_in_stock_raise(scene, what):
    with pytest.raises((TypeError, ValueError)):
        RESULTS[what](scene)
