"""A transfer copies row by row, whatever the shape of the lists.

Lists are stored compactly and neighbours are merged; neither is visible.  The
model is a loop over rows in Python.
"""

import pytest
from support import deadline
from support.memory import pattern

hypothesis = pytest.importorskip("hypothesis")
strategies = hypothesis.strategies

pytestmark = pytest.mark.beyond_stock

SIZE = 1 << 16

# A run: start, length of a row, distance between rows, number of rows.
runs = strategies.tuples(
    strategies.integers(0, SIZE // 2),
    strategies.sampled_from([1, 3, 8, 64, 100]),
    strategies.sampled_from([1, 3, 8, 64, 65, 100, 128, 200]),
    strategies.integers(1, 40),
)


def unroll(shape):
    """The rows (offset, length) of the runs, all within SIZE."""
    rows = []
    for start, length, stride, count in shape:
        for i in range(count):
            offset = start + i * stride
            if offset + length <= SIZE:
                rows.append((offset, length))
    return rows


def pairs_of_one_length(draw, left, right):
    """Indices into both lists, paired by equal row length."""
    by_length = {}
    for index, (_, length) in enumerate(right):
        by_length.setdefault(length, []).append(index)
    usable = [i for i, (_, n) in enumerate(left) if n in by_length]
    hypothesis.assume(usable)
    at = draw(strategies.integers(0, len(usable) - 1))
    size = draw(strategies.integers(1, 60))
    step = draw(strategies.sampled_from([1, 1, 1, 2, -1]))
    shift = draw(strategies.integers(0, 5))
    to, start = [], []
    for i in range(size):
        index = usable[(at + i * step) % len(usable)]
        choices = by_length[left[index][1]]
        to.append(index)
        start.append(choices[(index + shift) % len(choices)])
    return to, start


@pytest.fixture(scope="module")
def scene(module):
    """Two agents in this process and their memory."""
    from support.endpoint import Endpoint

    here = Endpoint(module, "property-here")
    there = Endpoint(module, "property-there")
    local, remote = here.alloc(SIZE), there.alloc(SIZE, seed=2)
    here.add(there.metadata())
    yield here, there, local, remote
    here.close()
    there.close()


@hypothesis.settings(
    max_examples=300,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(
    shapes=strategies.tuples(
        strategies.lists(runs, min_size=1, max_size=6),
        strategies.lists(runs, min_size=1, max_size=6),
    ),
    skip=strategies.booleans(),
    data=strategies.data(),
)
def test_read_equals_a_row_by_row_copy(scene, shapes, skip, data):
    here, there, local, remote = scene
    left, right = unroll(shapes[0]), unroll(shapes[1])
    hypothesis.assume(left and right)
    to, start = pairs_of_one_length(data.draw, left, right)
    hypothesis.assume(disjoint([left[i] for i in to]))
    here.poison(local.key, 0x55)

    prep = here.agent.prep_xfer_dlist
    rows = [(local.addr + at, size, 0) for at, size in left]
    ours = prep("", rows, "DRAM")
    rows = [(remote.addr + at, size, 0) for at, size in right]
    theirs = prep(there.name, rows, "DRAM")
    with here.agent.make_prepped_xfer(
        "READ", ours, to, theirs, start, skip_desc_merge=skip
    ) as handle:
        assert deadline.run(here.agent, handle) == "DONE"
        told = here.agent.get_xfer_telemetry(handle)
        assert told.descCount == len(to)
        assert told.totalBytes == sum(left[i][1] for i in to)

    want, source = bytearray(b"\x55" * SIZE), pattern(2, SIZE)
    for i, j in zip(to, start, strict=True):
        at, size = left[i]
        want[at : at + size] = source[right[j][0] :][:size]
    assert here.read(local.key) == bytes(want)


def disjoint(rows):
    """No two rows overlap; overlapping rows may be written in any order."""
    end = 0
    for at, size in sorted(rows):
        if at < end:
            return False
        end = at + size
    return True
