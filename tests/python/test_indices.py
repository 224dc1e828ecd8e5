"""Indices into prepared lists, as make_prepped_xfer() accepts them."""

import array
import ctypes

import pytest
from support import deadline
from support.memory import MEM

pytestmark = pytest.mark.beyond_stock

ROWS = 100
BLOCK = 8


class Lists:
    """Rows of numbers, copied by index within one agent."""

    def __init__(self, endpoint):
        self.agent = endpoint.agent
        self.name = endpoint.name
        self.source = endpoint.alloc(ROWS * BLOCK)
        self.target = endpoint.alloc(ROWS * BLOCK)
        self.endpoint = endpoint
        for i in range(ROWS):
            endpoint.write(
                self.source.key, i * BLOCK, i.to_bytes(BLOCK, "little")
            )
        self.left = self.prep("", self.target)
        self.right = self.prep(self.name, self.source)

    def prep(self, name, block):
        rows = [(block.addr + i * BLOCK, BLOCK, 0) for i in range(ROWS)]
        return self.agent.prep_xfer_dlist(name, rows, MEM)

    def make(self, left, right):
        return self.agent.make_prepped_xfer(
            "READ", self.left, left, self.right, right
        )

    def copied(self, right):
        """The rows selected by the indices, after the transfer."""
        count = len(right)
        self.endpoint.poison(self.target.key, 0xEE)
        with self.make(list(range(count)), right) as handle:
            assert deadline.run(self.agent, handle) == "DONE"
        data = self.endpoint.read(self.target.key, 0, count * BLOCK)
        return [
            int.from_bytes(data[i : i + BLOCK], "little")
            for i in range(0, len(data), BLOCK)
        ]


@pytest.fixture
def lists(endpoint):
    return Lists(endpoint())


WANTED = [5, 99, 0, 5, 17]


@pytest.mark.parametrize("code", "bBhHiIlLqQ")
def test_every_integer_type_of_array(lists, code):
    assert lists.copied(array.array(code, WANTED)) == WANTED


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        lambda values: memoryview(array.array("i", values)),
        lambda values: (ctypes.c_int16 * len(values))(*values),
        lambda values: (ctypes.c_size_t * len(values))(*values),
    ],
    ids=["list", "tuple", "memoryview", "int16 of C", "size_t of C"],
)
def test_indices_may_have_any_form(lists, make):
    assert lists.copied(make(WANTED)) == WANTED


def test_range_is_accepted_as_indices(lists):
    assert lists.copied(range(10, 40, 3)) == list(range(10, 40, 3))


@pytest.mark.parametrize("count", [0, 1, 32, 33, 100])
def test_indices_may_have_any_length(lists, count):
    wanted = [(i * 7) % ROWS for i in range(count)]
    if count == 0:
        with pytest.raises(ValueError, match="make_prepped_xfer"):
            lists.make([], [])
        return
    assert lists.copied(wanted) == wanted
    assert lists.copied(array.array("q", wanted)) == wanted


def test_strided_views_are_read_in_order(lists):
    plain = array.array("i", range(60))
    assert lists.copied(memoryview(plain)[::3]) == list(range(0, 60, 3))
    assert lists.copied(memoryview(plain)[::-1]) == list(range(59, -1, -1))


def test_unaligned_views_are_copied(lists):
    raw = bytearray(1 + 4 * len(WANTED))
    raw[1:] = array.array("i", WANTED).tobytes()
    assert lists.copied(memoryview(raw)[1:].cast("i")) == WANTED


def test_numpy_arrays_are_accepted_as_indices(lists):
    numpy = pytest.importorskip("numpy")
    for dtype in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"):
        assert lists.copied(numpy.array(WANTED, dtype)) == WANTED
    grid = numpy.arange(100).reshape(10, 10)
    assert lists.copied(grid[:, 3]) == list(range(3, 100, 10))
    frozen = numpy.array(WANTED)
    frozen.flags.writeable = False
    assert lists.copied(frozen) == WANTED
    assert lists.copied([numpy.int32(4), numpy.uint64(9)]) == [4, 9]


BAD = {
    "float": ([1.0], TypeError, "local_indices"),
    "text in a list": (["1"], TypeError, "row 0"),
    "none in a list": ([1, None], TypeError, "row 1"),
    "bool in a list": ([0, True], TypeError, "row 1"),
    "negative": ([0, 1, -1], ValueError, "row 2"),
    "negative in an array": (array.array("i", [0, -1]), ValueError, "row 1"),
    "too large": ([ROWS], ValueError, "row 0"),
    "too large in an array": (array.array("H", [3, ROWS]), ValueError, "row"),
    "above 63 bits": ([2**63], ValueError, "row 0"),
    "above 64 bits": ([1, 2**64], ValueError, "row 1"),
    "above 63 bits in an array": (
        array.array("Q", [2**63 + 1]),
        ValueError,
        "row 0",
    ),
    "array of float": (array.array("d", [1]), TypeError, "local_indices"),
    "bytes": (b"\x01\x02", TypeError, "local_indices"),
    "text": ("12", TypeError, "local_indices"),
    "none": (None, TypeError, "local_indices"),
    "a number": (3, TypeError, "local_indices"),
    "a set": ({1, 2}, TypeError, "local_indices"),
    "two dimensions": (
        memoryview(array.array("i", [1] * 4)).cast("B").cast("i", (2, 2)),
        ValueError,
        "one dimension",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_indices_are_refused(lists, name):
    indices, error, words = BAD[name]
    count = len(indices) if hasattr(indices, "__len__") else 1
    with pytest.raises(error, match=words) as caught:
        lists.make(indices, [0] * count)
    assert "make_prepped_xfer" in str(caught.value)
    assert lists.copied(WANTED) == WANTED


@pytest.mark.parametrize("dtype", ["?", "f4", "f8", "c8", ">i4", "M8[s]"])
def test_other_types_of_numpy_are_refused(lists, dtype):
    numpy = pytest.importorskip("numpy")
    indices = numpy.array([1, 0]).astype(dtype)
    with pytest.raises((TypeError, ValueError)):
        lists.make(indices, [0, 1])


class Shrinks:
    def __init__(self, values):
        self.values = values

    def __index__(self):
        del self.values[1:]
        return 1


def test_index_list_may_shrink_while_it_is_read(lists):
    values = [2, 3]
    values.insert(0, Shrinks(values))
    with pytest.raises(ValueError, match="shrank"):
        lists.make(values, [0, 1, 2])


def test_large_index_lists_are_copied(lists):
    """More than are converted while the GIL is held."""
    many = [i % ROWS for i in range(100_000)]
    handle = lists.make(many, array.array("i", many))
    assert deadline.run(lists.agent, handle) == "DONE"
    telemetry = lists.agent.get_xfer_telemetry(handle)
    assert telemetry.descCount == 100_000
    assert telemetry.totalBytes == 100_000 * BLOCK
    handle.release()
