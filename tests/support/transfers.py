"""Transfers of a chosen duration, and transfers that check every byte."""

from support.memory import MEM, pattern

LONG_BLOCK = 8 << 20
LONG_TIMES = 64000  # half a terabyte: no test waits until it ends
SIZE, COUNT = 6000, 50  # of the blocks of check_moves()


class Long:
    """A transfer that runs until it is stopped.

    It copies one block repeatedly: `here` reads it from (or writes it to)
    `there`.  The target always receives the source's pattern.
    """

    def __init__(
        self, here, there, operation="READ", kind="private", size=LONG_BLOCK
    ):
        self.here, self.there = here, there
        self.local = here.alloc(size, kind, seed=1)
        self.remote = there.alloc(size, kind, seed=2)
        here.add(there.metadata())
        agent = here.agent
        left = [(self.local.addr, size, 0)]
        right = [(self.remote.addr, size, 0)]
        self.left = agent.prep_xfer_dlist("", left, MEM)
        self.right = agent.prep_xfer_dlist(there.name, right, MEM)
        self.handle = self.make(operation)

    def make(self, operation="READ", notif=b"", times=LONG_TIMES):
        return self.here.agent.make_prepped_xfer(
            operation,
            self.left,
            [0] * times,
            self.right,
            [0] * times,
            notif,
        )

    def short(self, operation="READ"):
        """Transfer the same block once and wait for the end."""
        handle = self.make(operation, times=1)
        agent = self.here.agent
        agent.transfer(handle)
        agent.wait([handle], timeout=30)
        assert agent.check_xfer_state(handle) == "DONE"
        handle.release()


def rows(block, order=1):
    whole = [(block.addr + i * SIZE, SIZE, 0) for i in range(COUNT)]
    return whole[::order]


def turned(data):
    return b"".join(
        data[i * SIZE : (i + 1) * SIZE] for i in reversed(range(COUNT))
    )


def check_moves(here, there):
    """`here` reads from, writes to and notifies `there`."""
    mine = here.alloc(SIZE * COUNT, seed=1)
    theirs = there.alloc(SIZE * COUNT, seed=2)
    here.add(there.metadata())
    here.move("READ", rows(mine), rows(theirs, -1), there.name, b"read")
    assert here.read(mine.key) == turned(pattern(2, SIZE * COUNT))
    here.fill(mine.key, 3)
    here.move("WRITE", rows(mine), rows(theirs, -1), there.name, b"written")
    assert there.gather_notifs(2) == [
        (here.name, b"read"),
        (here.name, b"written"),
    ]
    assert there.read(theirs.key) == turned(pattern(3, SIZE * COUNT))
