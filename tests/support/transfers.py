"""Transfers of a chosen duration."""

LONG_BLOCK = 8 << 20
LONG_TIMES = 64000  # half a terabyte: no test waits until it ends


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
        self.left = agent.prep_xfer_dlist("", left, "DRAM")
        self.right = agent.prep_xfer_dlist(there.name, right, "DRAM")
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
