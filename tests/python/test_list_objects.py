"""Descriptor lists as Python objects: buffers, copies, use by other
libraries."""

import array
import copy
import ctypes
import gc

import pytest

pytestmark = pytest.mark.beyond_stock

ROWS = [(0x1000, 64, 0), (0x2000, 128, 1)]
TOP = 2**64 - 1


def rows_of(lists):
    return [lists[i] for i in range(lists.descCount())]


def matrix(values, code, columns):
    """An array of rows without numpy."""
    flat = array.array(code, [cell for row in values for cell in row])
    return memoryview(flat).cast("B").cast(code, (len(values), columns))


# -- The buffer protocol -----------------------------------------------------


def test_a_list_is_a_read_only_matrix(api):
    made = api.nixlXferDList("DRAM", ROWS)
    view = memoryview(made)
    assert (view.shape, view.format, view.readonly) == ((2, 3), "Q", True)
    assert [tuple(row) for row in view.tolist()] == ROWS
    assert memoryview(api.nixlXferDList("DRAM")).shape == (0, 3)


def test_numpy_can_read_a_list(api):
    numpy = pytest.importorskip("numpy")
    made = api.nixlXferDList("DRAM", ROWS)
    seen = numpy.asarray(made)
    assert seen.dtype == numpy.uint64
    assert seen.tolist() == [list(row) for row in ROWS]
    assert rows_of(api.nixlXferDList("DRAM", seen)) == ROWS


def test_an_exported_list_does_not_move(api):
    made = api.nixlXferDList("DRAM", ROWS)
    view = memoryview(made)
    for change in (
        lambda: made.append((1, 2, 3)),
        made.clear,
        lambda: made.remDesc(0),
        lambda: made.__setitem__(0, (1, 2, 3)),
        lambda: made.__setstate__(made.__getstate__()),
    ):
        with pytest.raises(BufferError):
            change()
    assert rows_of(made) == ROWS
    view.release()
    made.append((1, 2, 3))
    assert made.descCount() == 3


@pytest.mark.parametrize("code", ["Q", "q", "L", "l"])
def test_rows_come_from_any_buffer(api, code):
    assert rows_of(api.nixlXferDList("DRAM", matrix(ROWS, code, 3))) == ROWS
    registered = api.nixlRegDList("DRAM", matrix(ROWS, code, 3))
    assert rows_of(registered) == [(*row, b"") for row in ROWS]


def test_ctypes_arrays_are_buffers_too(api):
    rows = (ctypes.c_uint64 * 3 * 2)(*ROWS)
    assert rows_of(api.nixlXferDList("DRAM", rows)) == ROWS


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (matrix([(1, 2, 3, 4)], "Q", 4), TypeError, "columns"),
        (matrix([(1, 2, 3, 4, 5)], "Q", 5), TypeError, "Nx3"),
        (matrix([(1, 2, 3)], "d", 3), ValueError, "uint64"),
        (matrix([(1, 2, 3)], "i", 3), ValueError, "uint64"),
        (array.array("Q", [1, 2, 3]), TypeError, "dimensions"),
        (b"abc", TypeError, "dimensions"),
    ],
)
def test_other_buffers_are_refused(api, source, error, words):
    with pytest.raises(error, match=words):
        api.nixlXferDList("DRAM", source)


def test_views_that_are_not_contiguous_are_refused(api):
    numpy = pytest.importorskip("numpy")
    for view in (
        numpy.zeros((4, 3), numpy.uint64)[::2],
        numpy.zeros((3, 4), numpy.uint64).T,
        numpy.zeros((2, 3), ">u8"),
    ):
        with pytest.raises(ValueError, match="nixlXferDList"):
            api.nixlXferDList("DRAM", view)


def test_negative_numbers_of_arrays_are_refused(api):
    rows = matrix([(1, 2, 3), (4, 5, 6), (7, -8, 9)], "q", 3)
    with pytest.raises(api.nixlInvalidParamError, match="negative") as caught:
        api.nixlXferDList("DRAM", rows)
    assert caught.value.index == 2


# -- Rows with side effects ---------------------------------------------------


class Shrinks:
    """An integer whose conversion empties the list that contains it."""

    def __init__(self, rows):
        self.rows = rows

    def __index__(self):
        self.rows.clear()
        gc.collect()
        return 7


def test_row_conversion_may_empty_its_own_list(api):
    rows = []
    rows.extend((Shrinks(rows), 2, 3) for _ in range(5))
    assert rows_of(api.nixlXferDList("DRAM", rows)) == [(7, 2, 3)]
    rows = []
    rows.extend((Shrinks(rows), 2, 3, "m") for _ in range(5))
    assert rows_of(api.nixlRegDList("DRAM", rows)) == [(7, 2, 3, b"m")]


def test_row_conversion_may_change_its_target_list(api):
    made = api.nixlXferDList("DRAM", ROWS)

    class Clears:
        def __index__(self):
            made.clear()
            return 7

    with pytest.raises(IndexError):
        made[0] = (Clears(), 2, 3)
    assert made.isEmpty()


class Raises:
    def __index__(self):
        raise LookupError("not today")


def test_exception_raised_by_a_row_propagates(api):
    with pytest.raises(LookupError, match="not today"):
        api.nixlXferDList("DRAM", [(1, Raises(), 3)])


@pytest.mark.parametrize(
    ("row", "error", "words"),
    [
        ((1, 2), TypeError, "row 1: 3 items"),
        ((1, 2, 3, 4), TypeError, "row 1: 3 items"),
        ((1, -2, 3), ValueError, "row 1: the length -2 is negative"),
        ((TOP + 1, 2, 3), ValueError, "row 1: the address"),
        ((1, 2, -1), ValueError, "row 1: the device id"),
        ((1, 2.0, 3), TypeError, "row 1: the length must be an int"),
        (("1", 2, 3), TypeError, "row 1: the address must be an int"),
        ((True, 2, 3), TypeError, "row 1: the address must be an int"),
        ((None, 2, 3), TypeError, "row 1"),
        (None, TypeError, "row 1 must be a tuple"),
        ("abc", TypeError, "row 1 must be a tuple"),
        ({1, 2, 3}, TypeError, "row 1 must be a tuple"),
    ],
)
def test_a_bad_row_is_named(api, row, error, words):
    with pytest.raises(error, match=words):
        api.nixlXferDList("DRAM", [(1, 2, 3), row])


@pytest.mark.parametrize("extra", [None, 3, ["a"], b"a".hex])
def test_meta_info_is_text_or_bytes(api, extra):
    for kind in (api.nixlRegDList, api.nixlRemoteDList):
        with pytest.raises(TypeError, match="row 0"):
            kind("DRAM", [(1, 2, 3, extra)])


def test_largest_numbers_are_preserved(api):
    made = api.nixlXferDList("DRAM", [(TOP, TOP, TOP)])
    assert made[0] == (TOP, TOP, TOP)
    assert made.__getstate__().count(b"\xff" * 24) == 1


# -- Lists as values ---------------------------------------------------------


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy])
def test_a_copy_is_a_list_of_its_own(api, how):
    for made in (
        api.nixlXferDList("VRAM", ROWS),
        api.nixlRegDList("FILE", [(1, 2, 3, b"m")]),
        api.nixlRemoteDList("DRAM", [(1, 2, 3, "peer")]),
    ):
        other = how(made)
        assert other == made
        assert other.getType() == made.getType()
        other.remDesc(0)
        assert other != made


def test_lists_compare_by_every_field(api):
    kind = api.nixlRegDList
    assert kind("DRAM", [(1, 2, 3, "a")]) == kind("DRAM", [(1, 2, 3, b"a")])
    assert kind("DRAM", [(1, 2, 3, "a")]) != kind("DRAM", [(1, 2, 3, "b")])
    assert kind("DRAM", [(1, 2, 3, "a")]) != kind("VRAM", [(1, 2, 3, "a")])
    assert kind("DRAM") != api.nixlXferDList("DRAM")
    assert kind("DRAM") != 3
    with pytest.raises(TypeError):
        hash(kind("DRAM"))


def test_list_created_from_a_number_has_zero_rows(api):
    assert rows_of(api.nixlXferDList("DRAM", 2)) == [(0, 0, 0)] * 2
    assert rows_of(api.nixlRegDList("DRAM", init_size=1)) == [(0, 0, 0, b"")]
    for size in (-1, 2**70):
        with pytest.raises((OverflowError, ValueError)):
            api.nixlXferDList("DRAM", size)
    with pytest.raises(MemoryError):
        api.nixlXferDList("DRAM", 2**60)


def test_lists_leak_no_references(api):
    """References to rows and extras are released on every path."""
    extra = bytes(bytearray(b"unique to this test"))
    row = (1, 2, 3, extra)
    made = api.nixlRegDList("DRAM", [row] * 10)
    copies = [copy.copy(made) for _ in range(10)]
    for other in copies:
        other.remDesc(3)
        other[0] = (1, 2, 3, b"other")
        other.trim()
        with pytest.raises(TypeError):
            other.append((1, None, 3, extra))
    import sys

    used = sys.getrefcount(extra)
    assert used >= 1 + 10 + 10 * 8
    del made, copies, other
    assert sys.getrefcount(extra) == used - 10 - 10 * 8


# -- Tensors, by their methods -----------------------------------------------


class Device:
    def __init__(self, kind="cpu", index=None):
        self.type, self.index = kind, index


class Tensor:
    def __init__(self, addr=0x1000, count=16, size=4, device=None, good=True):
        self.addr, self.count, self.size = addr, count, size
        self.device = device or Device()
        self.good = good

    def data_ptr(self):
        return self.addr

    def numel(self):
        return self.count

    def element_size(self):
        return self.size

    def is_contiguous(self):
        return self.good


def test_a_tensor_is_one_row(api, endpoint):
    agent = endpoint().agent
    made = agent.get_xfer_descs(Tensor())
    assert (rows_of(made), made.getType()) == ([(0x1000, 64, 0)], 0)
    made = agent.get_reg_descs(Tensor(device=Device("cuda", 3)))
    assert (rows_of(made), made.getType()) == ([(0x1000, 64, 3, b"")], 1)
    made = agent.get_xfer_descs([Tensor(1), Tensor(2)])
    assert rows_of(made) == [(1, 64, 0), (2, 64, 0)]


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (Tensor(good=False), "contiguous"),
        ([Tensor(), Tensor(good=False)], "row 1: the tensor is not"),
        ([Tensor(), Tensor(device=Device("cuda", 0))], "row 1: .*one device"),
        (
            [
                Tensor(device=Device("cuda", 0)),
                Tensor(device=Device("cuda", 1)),
            ],
            "row 1: .*one device",
        ),
        (Tensor(count=2**40, size=2**40), "too large"),
        (Tensor(addr=-1), "data_ptr"),
    ],
)
def test_unusable_tensors_are_refused(api, endpoint, source, words):
    agent = endpoint().agent
    with pytest.raises(ValueError, match=words):
        agent.get_xfer_descs(source)


def test_a_tensor_list_holds_tensors_only(endpoint):
    with pytest.raises(AttributeError):
        endpoint().agent.get_xfer_descs([Tensor(), 3])
