"""Threads that use and change the same Python objects at once.

Any possible result is accepted; these tests look for crashes and hangs.
"""

import sys
import threading
import time

import pytest
from support import deadline

pytestmark = [pytest.mark.beyond_stock, pytest.mark.slow]

ROWS = 20_000
TIMES = 30


def together(*functions):
    """Run each function TIMES in its own thread; return the exceptions
    raised."""
    raised = []
    start = threading.Barrier(len(functions))

    def loop(function):
        start.wait()
        for _ in range(TIMES):
            try:
                function()
            except Exception as error:
                raised.append(error)

    threads = [
        threading.Thread(target=loop, args=(function,))
        for function in functions
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


@pytest.fixture
def here(endpoint):
    return endpoint()


@pytest.fixture
def block(here):
    return here.alloc(ROWS * 8)


def rows_of(block, extra=()):
    return [(block.addr + i * 8, 8, 0, *extra) for i in range(ROWS)]


def test_a_list_shrinks_and_grows_while_it_is_prepared(here, block):
    rows = rows_of(block)
    spare = list(rows)

    def change():
        del rows[100:]
        rows.extend(spare[100:])

    def prepare():
        here.agent.prep_xfer_dlist("", rows, "DRAM").release()

    assert together(change, prepare, prepare) == []


def test_a_descriptor_list_in_use_refuses_to_change(here, block):
    lists = here.agent.get_xfer_descs(rows_of(block), "DRAM")

    def change():
        lists.remDesc(0)
        lists.append((block.addr, 8, 0))

    def prepare():
        here.agent.prep_xfer_dlist("", lists).release()

    raised = together(change, change, prepare, prepare)
    assert all(isinstance(error, BufferError) for error in raised)
    lists.clear()


def test_registration_lists_are_held_while_they_are_registered(here, block):
    lists = here.agent.get_reg_descs(
        [(block.addr, 64, 0, b"meta %d" % i) for i in range(100)], "DRAM"
    )

    def change():
        lists[5] = (block.addr, 64, 0, b"other")
        lists.append((block.addr, 64, 0, b"new"))
        lists.remDesc(lists.descCount() - 1)

    def register():
        here.agent.get_partial_agent_metadata(lists, True)

    raised = together(change, register)
    assert all(
        isinstance(error, (BufferError, here.api.NixlError))
        for error in raised
    )


def test_an_array_changes_while_it_is_prepared(here, block):
    """Another thread writes garbage into it: the array is refused or used as
    it was."""
    numpy = pytest.importorskip("numpy")
    good = numpy.array(rows_of(block), numpy.uint64)
    for dtype in (numpy.uint64, numpy.int64):
        rows = good.astype(dtype)
        whole = rows.copy()

        def change(rows=rows, whole=whole):
            rows[:, 0] = 3
            rows[:, 1] = -1 if rows.dtype == "int64" else 2**64 - 1
            rows[:] = whole

        def prepare(rows=rows):
            here.agent.prep_xfer_dlist("", rows, "DRAM").release()

        raised = together(change, prepare, prepare)
        assert all(isinstance(error, here.api.NixlError) for error in raised)


def test_indices_change_while_a_transfer_is_made(here, block):
    numpy = pytest.importorskip("numpy")
    agent = here.agent
    left = agent.prep_xfer_dlist("", rows_of(block), "DRAM")
    right = agent.prep_xfer_dlist(here.name, rows_of(block), "DRAM")
    indices = numpy.arange(ROWS)
    others = list(range(ROWS))

    def change():
        indices[:] = 2**62
        indices[:] = -1
        indices[:] = numpy.arange(ROWS)

    def shrink():
        del others[10:]
        others.extend(range(10, ROWS))

    def make():
        with agent.make_prepped_xfer("READ", left, indices, right, indices):
            pass

    def make_of_lists():
        with agent.make_prepped_xfer("READ", left, others, right, others):
            pass

    raised = together(change, make, make, shrink, make_of_lists)
    assert all(isinstance(error, here.api.NixlError) for error in raised)


def test_lists_are_released_while_they_are_used(here, block):
    agent = here.agent
    rows = rows_of(block)
    indices = list(range(ROWS))
    current = {}

    def prepare():
        current["left"] = agent.prep_xfer_dlist("", rows, "DRAM")
        current["right"] = agent.prep_xfer_dlist(here.name, rows, "DRAM")

    def release():
        for handle in list(current.values()):
            handle.release()

    def make():
        agent.make_prepped_xfer(
            "READ", current["left"], indices, current["right"], indices
        ).release()

    prepare()
    raised = together(prepare, release, make, make)
    assert all(isinstance(error, here.api.NixlError) for error in raised)


def test_transfers_are_released_while_they_are_used(here, block):
    agent = here.agent
    left = agent.prep_xfer_dlist("", rows_of(block), "DRAM")
    right = agent.prep_xfer_dlist(here.name, rows_of(block), "DRAM")
    current = []

    def make():
        current.append(agent.make_prepped_xfer("READ", left, [0], right, [1]))
        agent.transfer(current[-1])

    def use():
        if current:
            handle = current[-1]
            agent.check_xfer_states([handle])
            agent.wait([handle], timeout=30)
            agent.get_xfer_telemetry(handle)
            agent.cancel(handle)

    def release():
        if current:
            agent.release_xfer_handle(current.pop())

    raised = together(make, use, use, release)
    assert all(
        isinstance(error, (here.api.NixlError, IndexError)) for error in raised
    )
    for handle in current:
        handle.release()
    assert agent.stats()["live_xfers"] == 0


def test_concurrent_readers_get_each_notification_once(here):
    agent = here.agent
    taken = []
    numbers = iter(range(10**9))

    def send():
        agent.send_notif(here.name, b"%d" % next(numbers))

    def take():
        for messages in agent.get_new_notifs().values():
            taken.extend(messages)

    def take_one():
        pair = agent._next_notif()
        if pair is not None:
            taken.append(pair[1])

    assert together(send, take, take_one, take_one, take) == []
    taken.extend(here.take_notifs().get(here.name, []))
    assert sorted(int(message) for message in taken) == list(range(TIMES))


def test_strides_change_while_they_are_prepared(here, block):
    """Another thread turns rows of few blocks into rows of many."""
    numpy = pytest.importorskip("numpy")
    strided = numpy.array([(block.addr, 8, 0, 8, 64)] * 4096, numpy.uint64)
    ended = False

    def change():
        while not ended:
            strided[:, 4] = ROWS
            strided[:, 4] = 64

    changing = threading.Thread(target=change)
    changing.start()
    try:
        for _ in range(2 * TIMES):
            here.agent.prep_xfer_dlist("", strided, "DRAM").release()
    finally:
        ended = True
        changing.join()


def unpickle(api, array, state):
    lists = api.nixlXferDList("DRAM")
    lists.__setstate__(state)
    return lists


FILLS = {
    "zeros": lambda api, array, state: api.nixlXferDList("DRAM", len(array)),
    "zeros to register": lambda api, array, state: api.nixlRegDList(
        "DRAM", len(array)
    ),
    "an array": lambda api, array, state: api.nixlXferDList("DRAM", array),
    "an array to register": lambda api, array, state: api.nixlRegDList(
        "DRAM", array
    ),
    "tuples": lambda api, array, state: api.nixlXferDList(
        "DRAM", [(1, 2, 3)] * len(array)
    ),
    "tuples to register": lambda api, array, state: api.nixlRegDList(
        "DRAM", [(1, 2, 3, b"")] * len(array)
    ),
    "what was pickled": unpickle,
}


@pytest.fixture
def patient():
    """Stop threads from forcing each other to release the GIL."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("patient")
def test_an_iterator_of_several_threads_has_the_only_reference(api):
    """Its first row unrolls the list, which another thread ends meanwhile."""
    numpy = pytest.importorskip("numpy")
    rows = numpy.zeros((2 * ROWS, 3), numpy.uint64)
    rows[:, 0] = numpy.arange(2 * ROWS) * 64 + 4096
    rows[:, 1] = 64
    for _ in range(TIMES):
        iterator = iter(api.nixlXferDList("DRAM", rows))
        start = threading.Barrier(2)
        wrong = []

        def run(iterator=iterator, start=start, wrong=wrong):
            start.wait()
            wrong.extend(row for row in iterator if row[1:] != (64, 0))

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("fill", FILLS)
def test_other_threads_run_while_a_list_is_filled(api, fill):
    numpy = pytest.importorskip("numpy")
    rows = numpy.random.default_rng(1).integers(1, 1000, (200_000, 3))
    array = rows.astype(numpy.uint64)
    state = api.nixlXferDList("DRAM", array).__getstate__()
    turns, ended = 0, False

    def run():
        nonlocal turns
        while not ended:
            turns += 1
            time.sleep(0)

    def lets_others_run():
        before = turns
        filled = FILLS[fill](api, array, state)
        during = turns - before  # freeing the list also lets them run
        return filled.descCount() > 0 and during > 0

    other = threading.Thread(target=run)
    other.start()
    try:
        deadline.until(lets_others_run, "a turn of another thread")
    finally:
        ended = True
        other.join()
