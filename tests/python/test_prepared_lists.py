"""Prepared lists: all forms of rows and indices give the same transfer."""

import array
import random

import pytest
from support import blocks, deadline
from support.memory import MEM, pattern

BLOCK = 1024
COUNT = 256
SIZE = BLOCK * COUNT

FORMS = {
    "tuples": lambda rows: rows,
    "uint64 array": blocks.as_numpy,
    "int64 array": lambda rows: blocks.as_numpy(rows, "int64"),
    "uint64 buffer": blocks.as_buffer,
    "int64 buffer": lambda rows: blocks.as_buffer(rows, "q"),
}
NUMPY_FORMS = ["uint64 array", "int64 array"]
BEYOND = ["uint64 buffer", "int64 buffer"]


def form_params(names):
    marks = dict.fromkeys(BEYOND, pytest.mark.beyond_stock)
    return [
        pytest.param(name, marks=marks[name]) if name in marks else name
        for name in names
    ]


def dense(buffer):
    return [(buffer.addr + i * BLOCK, BLOCK, 0) for i in range(COUNT)]


def in_form(form, rows):
    if form in NUMPY_FORMS:
        pytest.importorskip("numpy")
    return FORMS[form](rows)


@pytest.fixture
def sides(pair):
    """(here, there, local buffer, filled remote buffer)."""
    here, there = pair
    remote = there.alloc(SIZE, seed=21)
    local = here.alloc(SIZE, seed=22)
    here.add(there.metadata())
    return here, there, local, remote


@pytest.fixture
def prepared(sides):
    """The same with dense lists of both sides."""
    here, there, local, remote = sides
    left = here.agent.prep_xfer_dlist("NIXL_INIT_AGENT", dense(local), MEM)
    right = here.agent.prep_xfer_dlist(there.name, dense(remote), MEM)
    return here, left, right, local


def shuffled(seed, count=COUNT):
    order = list(range(COUNT))
    random.Random(seed).shuffle(order)
    return order[:count]


def picked(left, right):
    """The local buffer after a READ of rows `right` into rows `left`."""
    result = bytearray(pattern(22, SIZE))
    source = pattern(21, SIZE)
    for to, start in zip(left, right, strict=True):
        piece = source[start * BLOCK :][:BLOCK]
        result[to * BLOCK : (to + 1) * BLOCK] = piece
    return bytes(result)


def read(prepared, left_indices, right_indices, **keywords):
    here, left, right, local = prepared
    handle = here.agent.make_prepped_xfer(
        "READ", left, left_indices, right, right_indices, **keywords
    )
    assert deadline.run(here.agent, handle) == "DONE"
    handle.release()
    return here.read(local.key)


@pytest.mark.parametrize("form", form_params(FORMS))
def test_rows_may_have_any_form(sides, form):
    here, there, local, remote = sides
    prep = here.agent.prep_xfer_dlist
    left = prep("NIXL_INIT_AGENT", in_form(form, dense(local)), MEM)
    right = prep(there.name, in_form(form, dense(remote)), mem_type=MEM)
    order = shuffled(1)
    got = read((here, left, right, local), order, order[::-1])
    assert got == picked(order, order[::-1])


@pytest.mark.parametrize("form", form_params(FORMS))
def test_descriptor_lists_accept_any_form(sides, form):
    here, there, local, remote = sides
    agent = here.agent
    left = agent.get_xfer_descs(in_form(form, dense(local)), MEM)
    right = agent.get_xfer_descs(in_form(form, dense(remote)), MEM)
    handle = agent.initialize_xfer("READ", left, right, there.name)
    assert deadline.run(agent, handle) == "DONE"
    assert here.read(local.key) == pattern(21, SIZE)


def test_rows_of_numpy_scalars_are_accepted(sides):
    """vLLM builds lists of tuples whose cells are numpy.uint64."""
    numpy = pytest.importorskip("numpy")
    here, there, local, remote = sides
    prep = here.agent.prep_xfer_dlist
    table = [tuple(map(numpy.uint64, row)) for row in dense(local)]
    left = prep("", table, MEM)
    right = prep(there.name, dense(remote), MEM)
    got = read((here, left, right, local), [3, 1], [7, 5])
    assert got == picked([3, 1], [7, 5])


@pytest.mark.parametrize("empty", ["NIXL_INIT_AGENT", ""])
def test_local_side_has_two_names(sides, empty):
    here, there, local, remote = sides
    left = here.agent.prep_xfer_dlist(empty, dense(local), MEM)
    right = here.agent.prep_xfer_dlist(there.name, dense(remote), MEM)
    assert read((here, left, right, local), [0], [1]) == picked([0], [1])


def test_the_peer_is_named_by_str_or_by_bytes(sides):
    """`add_remote_agent` returns bytes, which clients pass back."""
    here, there, local, remote = sides
    left = here.agent.prep_xfer_dlist("", dense(local), MEM)
    name = there.name.encode()
    right = here.agent.prep_xfer_dlist(name, dense(remote), MEM)
    assert read((here, left, right, local), [4], [2]) == picked([4], [2])


@pytest.mark.parametrize("mem_type", ["DRAM", "cpu"])
def test_memory_type_has_a_legacy_name(sides, mem_type):
    here, there, local, remote = sides
    left = here.agent.prep_xfer_dlist("", dense(local), mem_type)
    right = here.agent.prep_xfer_dlist(there.name, dense(remote), mem_type)
    assert read((here, left, right, local), [9], [8]) == picked([9], [8])


# -- indices -----------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype",
    ["int64", "int32", "int16", "uint64", "uint32", "uint16", "uint8"],
)
def test_indices_may_be_arrays_of_any_integer_type(prepared, dtype):
    numpy = pytest.importorskip("numpy")
    order = shuffled(2)
    left = numpy.array(order, dtype)
    right = numpy.array(order[::-1], dtype)
    assert read(prepared, left, right) == picked(order, order[::-1])


def test_int8_indices_reach_row_127(prepared):
    numpy = pytest.importorskip("numpy")
    order = [index for index in shuffled(3) if index < 128]
    indices = numpy.array(order, numpy.int8)
    assert read(prepared, indices, indices) == picked(order, order)


@pytest.mark.beyond_stock
@pytest.mark.parametrize("typecode", "hHiIlLqQ")
def test_indices_need_no_numpy(prepared, typecode):
    order = shuffled(4)
    indices = array.array(typecode, order)
    got = read(prepared, indices, memoryview(indices)[::1])
    assert got == picked(order, order)


def test_indices_may_mix_lists_and_arrays(prepared):
    numpy = pytest.importorskip("numpy")
    order = shuffled(5, 40)
    got = read(prepared, order, numpy.array(order[::-1], numpy.int32))
    assert got == picked(order, order[::-1])


def test_slices_of_arrays_are_indices(prepared):
    """Every other index, backwards: not contiguous in memory."""
    numpy = pytest.importorskip("numpy")
    order = numpy.arange(COUNT, dtype=numpy.int64)
    left, right = order[::2], order[::-2]
    got = read(prepared, left, right)
    assert got == picked(left.tolist(), right.tolist())


def test_row_may_be_used_repeatedly(prepared):
    """One remote block to many local ones."""
    left = list(range(10, 20))
    assert read(prepared, left, [5] * 10) == picked(left, [5] * 10)


def test_the_caller_may_change_its_indices_after_the_call(prepared):
    numpy = pytest.importorskip("numpy")
    here, left, right, local = prepared
    order = numpy.array(shuffled(6, 30), numpy.int64)
    want = picked(order.tolist(), order.tolist())
    handle = here.agent.make_prepped_xfer("READ", left, order, right, order)
    order[:] = 0
    assert deadline.run(here.agent, handle) == "DONE"
    assert here.read(local.key) == want


def test_the_caller_may_change_its_rows_after_the_call(sides):
    numpy = pytest.importorskip("numpy")
    here, there, local, remote = sides
    rows = numpy.array(dense(remote), numpy.uint64)
    left = here.agent.prep_xfer_dlist("", dense(local), MEM)
    right = here.agent.prep_xfer_dlist(there.name, rows, MEM)
    rows[:] = 1
    assert read((here, left, right, local), [3], [3]) == picked([3], [3])


# -- merging -----------------------------------------------------------------

INDEX_SHAPES = {
    "runs": [10, 11, 12, 40, 41, 42, 43, 7, 8, 200],
    "backwards": list(range(60, 20, -1)),
    "stride": list(range(0, COUNT, 3)),
    "all": list(range(COUNT)),
    "one": [17],
}


@pytest.mark.parametrize("skip", [False, True])
@pytest.mark.parametrize("left", INDEX_SHAPES)
@pytest.mark.parametrize("shift", [0, 5])
def test_merging_neighbours_does_not_change_the_result(
    prepared, left, skip, shift
):
    """Contiguous on both sides, on one side, on neither."""
    to = INDEX_SHAPES[left]
    start = [(index * 7 + shift) % COUNT if shift else index for index in to]
    got = read(prepared, to, start, skip_desc_merge=skip)
    assert got == picked(to, start)


# -- strides -----------------------------------------------------------------


def strided(buffer, rows):
    return [
        (buffer.addr + start, length, 0, stride, count)
        for start, length, stride, count in rows
    ]


STRIDED = [
    (0, BLOCK, BLOCK, 64),  # dense
    (64 * BLOCK, 512, 2 * BLOCK, 64),  # with gaps
    (200 * BLOCK, BLOCK, BLOCK, 1),  # one
    (201 * BLOCK, 100, 128, 30),
]


def unrolled(buffer):
    return [
        (buffer.addr + start + i * stride, length, 0)
        for start, length, stride, count in STRIDED
        for i in range(count)
    ]


@pytest.mark.parametrize("form", form_params(["uint64 array", *BEYOND]))
def test_strided_rows_equal_unrolled_blocks(sides, form):
    """vLLM's Nx5: address, length, device, stride, count."""
    here, there, local, remote = sides
    prep = here.agent.prep_xfer_dlist
    flat = unrolled(local)
    left = prep("", in_form(form, strided(local, STRIDED)), MEM)
    right = prep(there.name, in_form(form, strided(remote, STRIDED)), MEM)
    order = list(range(len(flat)))
    random.Random(9).shuffle(order)
    got = read((here, left, right, local), order, order)
    pieces = [(row[0] - local.addr, row[1]) for row in flat]
    want = blocks.expected(
        pattern(22, SIZE), pattern(21, SIZE), pieces, pieces
    )
    assert got == want


def test_strided_rows_may_be_on_one_side_only(sides):
    here, there, local, remote = sides
    prep = here.agent.prep_xfer_dlist
    table = in_form("uint64 array", strided(remote, STRIDED))
    right = prep(there.name, table, MEM)
    left = prep("", unrolled(local), MEM)
    order = [0, 3, 70, 100, 128, 140, 5]
    got = read((here, left, right, local), order, order)
    pieces = [unrolled(local)[index] for index in order]
    pieces = [(addr - local.addr, length) for addr, length, _ in pieces]
    assert got == blocks.expected(
        pattern(22, SIZE), pattern(21, SIZE), pieces, pieces
    )


def test_a_list_serves_many_transfers(prepared):
    """As in vLLM: prepared once, used by index for each request."""
    want = bytearray(pattern(22, SIZE))
    source = pattern(21, SIZE)
    for seed in range(30):
        left, right = shuffled(seed, 8), shuffled(seed + 100, 8)
        got = read(prepared, left, right)
        for to, start in zip(left, right, strict=True):
            piece = source[start * BLOCK :][:BLOCK]
            want[to * BLOCK : (to + 1) * BLOCK] = piece
        assert got == bytes(want)


def test_a_million_rows_are_prepared_and_used(sides):
    """Large lists are checked and used up to their last row."""
    here, there, local, remote = sides
    numpy = pytest.importorskip("numpy")
    count = 1 << 20
    table = numpy.zeros((count, 3), numpy.uint64)
    order = numpy.random.default_rng(5).integers(0, SIZE, count)
    table[:, 0] = order + remote.addr
    table[:, 1] = 1
    right = here.agent.prep_xfer_dlist(there.name, table, MEM)
    table[:, 0] = numpy.arange(count) % SIZE + local.addr
    left = here.agent.prep_xfer_dlist("", table, MEM)
    tail = numpy.arange(count - SIZE, count)
    got = read((here, left, right, local), tail, tail)
    source = pattern(21, SIZE)
    assert got == bytes(source[i] for i in order[tail])
