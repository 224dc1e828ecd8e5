"""Large arrays at regular strides: a list stores runs, invisibly to the
caller.

The model is the same list made from tuples, which is stored row by row.
"""

import copy
import gc
import pickle
import random
import subprocess
import sys
import threading

import pytest
from support import deadline
from support.memory import pattern

numpy = pytest.importorskip("numpy")

pytestmark = pytest.mark.beyond_stock

TOP = 2**64 - 1
KINDS = ["uint64", "int64"]


def regular(count=1000, start=0x10000, length=512, stride=1024, device=0):
    return [(start + i * stride, length, device) for i in range(count)]


def scatter(dice, count):
    return [
        (dice.randrange(1 << 40), dice.randrange(1, 4096), dice.randrange(3))
        for _ in range(count)
    ]


def mixture(seed):
    """Runs with positive, negative and zero steps, with irregular rows between
    them."""
    dice = random.Random(seed)
    rows = []
    for _ in range(dice.randint(1, 8)):
        stride = dice.choice([0, 1, 512, 1024, 4096, 12345, -512])
        count = dice.choice([1, 2, 3, 40, 257, 1000, 3000])
        start = dice.randrange(1 << 32, 1 << 40)
        device = dice.randrange(2)
        length = dice.choice([1, 64, 512])
        rows += regular(count, start, length, stride, device)
        rows += scatter(dice, dice.choice([0, 0, 1, 5, 60]))
    return rows


def in_array(rows, kind="uint64"):
    return numpy.array(rows, dtype=kind).reshape(len(rows), 3)


def rows_of(descs):
    return [descs[i] for i in range(descs.descCount())]


def outcome(call):
    """The result of a call: its value or its exception."""
    try:
        return call()
    except Exception as error:
        return type(error).__name__, str(error)


SHAPES = {
    "one run": regular(),
    "one run, as short as may be": regular(256),
    "too short": regular(255),
    "a row repeated": regular(1000, stride=0),
    "neighbours": regular(1000, stride=512),
    "downwards": regular(1000, start=1 << 30, stride=-1024),
    "up to the top": regular(300, start=TOP - 299 * 16, stride=16),
    "past the top": [
        ((TOP - 100 * 64 + i * 64) & TOP, 1, 0) for i in range(300)
    ],
    "a step that wraps": [(i * 2**63 & TOP, 1, 0) for i in range(400)],
    "another length in the middle": [
        *regular(500),
        (0x10000 + 500 * 1024, 511, 0),
        *regular(499, start=0x10000 + 501 * 1024),
    ],
    "another device in the middle": [
        *regular(501),
        *regular(499, start=0x10000 + 501 * 1024, device=1),
    ],
    "the last one elsewhere": [*regular(999), (1, 2, 3)],
    "the first one elsewhere": [(TOP, TOP, TOP), *regular(999)],
    "all numbers at the top": [(TOP, TOP, TOP)] * 300,
    "no order": scatter(random.Random(1), 2000),
    "no order, then a run": scatter(random.Random(2), 500)
    + regular(9000, start=1 << 41),
    "a run, then no order": regular(9000) + scatter(random.Random(3), 5000),
    "pairs": [row for i in range(500) for row in ((i, 8, 0), (9**9, 8, 1))],
}


@pytest.fixture(params=[*SHAPES, *range(12)], ids=str)
def rows(request):
    name = request.param
    return SHAPES[name] if name in SHAPES else mixture(name)


@pytest.fixture
def make(api, rows):
    """The list made from an array and the one made from tuples."""

    def both(of=None):
        values = rows if of is None else of
        return (
            api.nixlXferDList("DRAM", in_array(values)),
            api.nixlXferDList("DRAM", values),
        )

    return both


# -- Every method against the model ------------------------------------------


def test_runs_return_the_rows_given(make, rows):
    ours, plain = make()
    assert ours.descCount() == len(rows)
    assert rows_of(ours) == rows
    assert rows_of(plain) == rows


def test_runs_answer_length_and_type_without_rows(make, rows):
    ours, plain = make()
    for method in ("descCount", "isEmpty", "getType"):
        assert getattr(ours, method)() == getattr(plain, method)()
    assert repr(ours).split(" at ")[0] == repr(plain).split(" at ")[0]
    assert bool(ours)


def test_runs_compare_like_plain_lists(make, rows):
    ours, plain = make()
    twin = make()[0]
    assert ours == twin
    assert (ours != twin) is False
    assert ours == plain
    assert plain == twin
    for at in (0, len(rows) // 2, len(rows) - 1):
        address, length, device = rows[at]
        changed = list(rows)
        changed[at] = (address ^ 1, length, device)
        for different in make(changed):
            assert ours != different
            assert make()[0] != different
    assert make()[0] != make(rows[:-1])[0]


def test_runs_of_other_memory_types_differ(api, rows):
    array = in_array(rows)
    ours = api.nixlXferDList("DRAM", array)
    assert ours != api.nixlXferDList("VRAM", array)


def test_runs_pickle_like_plain_lists(make, rows):
    ours, plain = make()
    assert ours.__getstate__() == plain.__getstate__()
    assert pickle.dumps(make()[0]) == pickle.dumps(plain)
    assert rows_of(pickle.loads(pickle.dumps(make()[0]))) == rows


def test_runs_restore_a_pickled_state(make, rows):
    ours, _ = make()
    state = make([(1, 2, 3)])[1].__getstate__()
    ours.__setstate__(state)
    assert rows_of(ours) == [(1, 2, 3)]
    ours = make()[0]
    with pytest.raises(Exception, match="no serialised"):
        ours.__setstate__(state[:-1])
    assert rows_of(ours) == rows


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_copies_of_runs_are_independent(make, rows, copied):
    ours, plain = make()
    other = copied(ours)
    third = copied(other)
    ours[0] = (7, 8, 9)
    other.append((1, 2, 3))
    assert rows_of(ours) == [(7, 8, 9), *rows[1:]]
    assert rows_of(other) == [*rows, (1, 2, 3)]
    del ours, other
    assert third == plain
    assert rows_of(third) == rows


def test_runs_export_the_array_as_a_buffer(make, rows):
    ours, plain = make()
    view = memoryview(ours)
    assert (view.shape, view.format, view.readonly) == (
        (len(rows), 3),
        "Q",
        True,
    )
    assert view.tobytes() == memoryview(plain).tobytes()
    with pytest.raises(BufferError):
        ours.append((1, 2, 3))
    view.release()
    ours.append((1, 2, 3))
    assert rows_of(ours) == [*rows, (1, 2, 3)]


def test_runs_print_like_plain_lists(make, capfd):
    ours, plain = make()
    ours.print()
    sys.stdout.flush()
    printed = capfd.readouterr().out
    plain.print()
    sys.stdout.flush()
    assert printed == capfd.readouterr().out


def test_index_returns_the_first_match(make, rows):
    dice = random.Random(5)
    for wanted in [*dice.choices(rows, k=5), (5, 4, 3)]:
        ours, plain = make()
        found = outcome(lambda o=ours, w=wanted: o.index(w))
        assert found == outcome(lambda p=plain, w=wanted: p.index(w))
        assert found == rows.index(wanted) if wanted in rows else True


CHANGES = {
    "append": lambda descs, at: descs.append((at, 1, 2)),
    "addDesc": lambda descs, at: descs.addDesc((at, 2, 1)),
    "remDesc": lambda descs, at: descs.remDesc(at),
    "set": lambda descs, at: descs.__setitem__(at, (at, at, 0)),
    "get": lambda descs, at: descs[at],
    "clear": lambda descs, at: descs.clear(),
    "again": lambda descs, at: descs.__init__("DRAM", [(at, 5, 5)] * 3),
    "bad row": lambda descs, at: descs.append((at, "x", 0)),
    "bad set": lambda descs, at: descs.__setitem__(at, (1, 2)),
    "state": lambda descs, at: descs.__getstate__(),
    "copy": lambda descs, at: rows_of(copy.copy(descs)),
}


@pytest.mark.parametrize("first", CHANGES)
def test_runs_accept_any_sequence_of_changes(make, rows, first):
    ours, plain = make()
    dice = random.Random(first)
    for name in [first, *dice.choices(list(CHANGES), k=8)]:
        at = dice.choice([0, dice.randrange(len(rows)), len(rows), 10**9])
        expected = outcome(lambda n=name, a=at: CHANGES[n](plain, a))
        assert outcome(lambda n=name, a=at: CHANGES[n](ours, a)) == expected
        assert ours == plain
    assert rows_of(ours) == rows_of(plain)


# -- Creating lists -----------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ["one run", "no order", "downwards"])
def test_signed_and_unsigned_arrays_give_the_same_list(api, kind, shape):
    rows = SHAPES[shape]
    made = api.nixlXferDList("DRAM", in_array(rows, kind))
    assert made == api.nixlXferDList("DRAM", rows)


@pytest.mark.parametrize("column", range(3))
@pytest.mark.parametrize("at", [0, 1, 255, 700, 999])
def test_the_first_negative_number_is_named(api, at, column):
    array = in_array(regular(), "int64")
    array[at:, column] = -(numpy.arange(1000 - at) + 1)
    with pytest.raises(api.nixlInvalidParamError) as caught:
        api.nixlXferDList("DRAM", array)
    assert f"row {at}:" in str(caught.value)
    assert "negative" in str(caught.value)


def test_run_that_becomes_negative_is_refused(api):
    """Its step and its first numbers are valid."""
    start = 2**63 - 300 * 64
    array = in_array(regular(1000, start, 8, 64)).view("int64")
    with pytest.raises(api.nixlInvalidParamError, match="row 300:"):
        api.nixlXferDList("DRAM", array)


def test_runs_can_be_appended(api):
    made = api.nixlXferDList("DRAM", in_array(regular()), 2)
    assert rows_of(made) == [(0, 0, 0)] * 2 + regular()


def test_list_can_be_filled_again(api):
    made = api.nixlXferDList("DRAM", in_array(regular(500)))
    for values in (regular(300, stride=64), [(1, 2, 3)], regular(700)):
        made.__init__("VRAM", in_array(values))
        assert rows_of(made) == values
    made.clear()
    assert made.isEmpty()
    assert rows_of(made) == []


def test_changing_the_array_does_not_change_the_list(api):
    array = in_array(regular())
    made = api.nixlXferDList("DRAM", array)
    array[:] = 1
    assert rows_of(made) == regular()


def test_registration_lists_keep_rows(api):
    made = api.nixlRegDList("DRAM", in_array(regular()))
    assert rows_of(made) == [(*row, b"") for row in regular()]
    assert made.trim() == api.nixlXferDList("DRAM", in_array(regular()))


# -- Prepared lists ----------------------------------------------------------

BLOCK = 64
COUNT = 2048
SIZE = BLOCK * COUNT


def blocks_of(buffer, order):
    return [(buffer.addr + i * BLOCK, BLOCK, 0) for i in order]


ORDERS = {
    "regular": list(range(COUNT)),
    "every second": list(range(0, COUNT, 2)) + list(range(1, COUNT, 2)),
    "layers": [i * 8 + j for j in range(8) for i in range(COUNT // 8)],
    "shuffled": random.Random(4).sample(range(COUNT), COUNT),
    "half and half": [
        *range(COUNT // 2),
        *random.Random(6).sample(range(COUNT // 2, COUNT), COUNT // 2),
    ],
}


@pytest.fixture
def sides(pair):
    here, there = pair
    local, remote = here.alloc(SIZE, seed=31), there.alloc(SIZE, seed=32)
    here.add(there.metadata())
    return here, there, local, remote


def moved(left, right, to, source):
    """The contents of `to` after copying rows `right` of `source` to
    `left`."""
    result = bytearray(to)
    for i, j in zip(left, right, strict=True):
        piece = source[j * BLOCK :][:BLOCK]
        result[i * BLOCK : (i + 1) * BLOCK] = piece
    return bytes(result)


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
@pytest.mark.parametrize("left", ["regular", "every second", "shuffled"])
@pytest.mark.parametrize("right", ["layers", "half and half"])
def test_runs_transfer_every_byte(sides, operation, left, right):
    here, there, local, remote = sides
    agent, left, right = here.agent, ORDERS[left], ORDERS[right]
    ours = agent.get_xfer_descs(in_array(blocks_of(local, left)), "DRAM")
    theirs = agent.get_xfer_descs(in_array(blocks_of(remote, right)), "DRAM")
    picks = random.Random(8).sample(range(COUNT), COUNT // 2)
    handle = agent.make_prepped_xfer(
        operation,
        agent.prep_xfer_dlist("", ours),
        picks,
        agent.prep_xfer_dlist(there.name, theirs),
        picks[::-1],
    )
    assert deadline.run(agent, handle) == "DONE"
    left, right = [left[i] for i in picks], [right[i] for i in picks[::-1]]
    mine, other = pattern(31, SIZE), pattern(32, SIZE)
    if operation == "READ":
        mine = moved(left, right, mine, other)
    else:
        other = moved(right, left, other, mine)
    assert here.read(local.key) == mine
    assert there.read(remote.key) == other


def test_transfer_accepts_runs_directly(sides):
    here, there, local, remote = sides
    agent = here.agent
    ours = agent.get_xfer_descs(
        in_array(blocks_of(local, ORDERS["regular"])), "DRAM"
    )
    theirs = agent.get_xfer_descs(
        in_array(blocks_of(remote, ORDERS["layers"])), "DRAM"
    )
    assert agent.check_remote_metadata(there.name, theirs)
    assert not agent.check_remote_metadata("stranger", theirs)
    handle = agent.initialize_xfer("READ", ours, theirs, there.name)
    assert deadline.run(agent, handle) == "DONE"
    assert here.read(local.key) == moved(
        ORDERS["regular"],
        ORDERS["layers"],
        pattern(31, SIZE),
        pattern(32, SIZE),
    )


def test_list_is_usable_after_preparing(sides):
    here, _, local, _ = sides
    rows = blocks_of(local, ORDERS["layers"])
    made = here.agent.get_xfer_descs(in_array(rows), "DRAM")
    for _ in range(2):
        here.agent.prep_xfer_dlist("", made).release()
    assert rows_of(made) == rows
    here.agent.prep_xfer_dlist("", made).release()


def broken(buffer, at, row):
    rows = blocks_of(buffer, range(COUNT))
    rows[at:] = [
        (row[0] + i * BLOCK & TOP, *row[1:]) for i in range(COUNT - at)
    ]
    return rows


def wrong_rows(buffer):
    """Rows from which no list can be prepared, by the kind of error."""
    every = range(COUNT)
    yield "past the end", blocks_of(buffer, [*every, *range(COUNT, COUNT + 9)])
    yield "all elsewhere", regular(COUNT, 0x40, BLOCK, BLOCK)
    yield "past 2^64", regular(300, TOP - 299 * 16, 32, 16)
    yield "other device", [(a, n, 5) for a, n, _ in blocks_of(buffer, every)]
    yield "no length", [(a, 0, d) for a, _, d in blocks_of(buffer, every)]
    for at in (0, 1, 300, 511, 1024, COUNT - 1):
        yield f"elsewhere from {at}", broken(buffer, at, (0x40, BLOCK, 0))
        yield f"length 0 from {at}", broken(buffer, at, (buffer.addr, 0, 0))
        yield f"device 3 from {at}", broken(buffer, at, (buffer.addr, 1, 3))


@pytest.mark.parametrize("remote", [False, True])
def test_errors_name_rows_instead_of_runs(sides, remote):
    here, there, mine, theirs = sides
    name = there.name if remote else ""
    for what, rows in wrong_rows(theirs if remote else mine):
        told = []
        for source in (in_array(rows), rows):
            descs = here.agent.get_xfer_descs(source, "DRAM")
            with pytest.raises(Exception, match="prep_xfer_dlist") as caught:
                here.agent.prep_xfer_dlist(name, descs)
            error = caught.value
            told.append((type(error), str(error), error.index))
        assert told[0] == told[1], what
        assert f"row {told[0][2]}" in told[0][1], what


def test_unknown_peer_is_named(sides):
    here, _, local, _ = sides
    rows = blocks_of(local, ORDERS["regular"])
    descs = here.agent.get_xfer_descs(in_array(rows), "DRAM")
    with pytest.raises(Exception, match="stranger"):
        here.agent.prep_xfer_dlist("stranger", descs)


# -- Threads and memory ------------------------------------------------------


def test_threads_can_share_a_list(sides):
    """Some prepare it as it is while others unroll it."""
    here, _, local, _ = sides
    rows = blocks_of(local, ORDERS["layers"]) * 24
    array, failed = in_array(rows), []
    state = here.agent.get_xfer_descs(rows, "DRAM").__getstate__()

    def prepare(descs):
        here.agent.prep_xfer_dlist("", descs).release()

    def unroll(descs):
        at = random.randrange(len(rows))
        assert descs[at] == rows[at]
        assert descs.__getstate__() == state

    def run(work, descs, start):
        start.wait()
        try:
            work(descs)
        except BaseException as error:
            failed.append(error)

    for _ in range(10):
        descs = here.agent.get_xfer_descs(array, "DRAM")
        start = threading.Barrier(6)
        threads = [
            threading.Thread(target=run, args=(work, descs, start))
            for work in (prepare, unroll) * 3
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failed == []


MEASURE = """
import resource
import sys
import numpy
from vllm_nixl import nixl_agent, nixl_agent_config

count, form = 1_000_000, sys.argv[1]
space = numpy.ones(count * 16, dtype="uint8")
agent = nixl_agent("measured", nixl_agent_config(backends=["UCX"]))
agent.register_memory([(space.ctypes.data, space.size, 0, "")], "DRAM")

def table(rows):
    order = numpy.arange(rows)
    if form == "scatter":
        numpy.random.default_rng(1).shuffle(order)
    made = numpy.empty((rows, 3), dtype="uint64")
    made[:, 0] = space.ctypes.data + order * 16
    made[:, 1], made[:, 2] = 8, 0
    return made

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def prepare(rows):
    descs = agent.get_xfer_descs(rows, "DRAM")
    return descs, agent.prep_xfer_dlist("NIXL_INIT_AGENT", descs)

array = table(count)
few = prepare(table(1000))
before = resident()
kept = prepare(array)
print(resident() - before)
"""


def grown(form):
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, form],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return int(done.stdout)


def test_million_regular_rows_take_little_memory():
    assert grown("regular") < 4 << 20


def test_memory_measurement_detects_rows():
    """Irregular rows take 24 bytes each, and the test detects them."""
    assert grown("scatter") > 20 << 20


def test_lists_free_their_memory(api):
    """Lists and their copies come and go in every order."""
    array = in_array(regular(5000))
    for _ in range(200):
        first = api.nixlXferDList("DRAM", array)
        second = copy.copy(first)
        del first
        third = copy.copy(second)
        assert second[4999] == third[4999] == regular(5000)[-1]
        second.clear()
        assert third.descCount() == 5000
    gc.collect()
