"""NIXL's raw agent compared with NixlAgent.

The same calls, in any order, have the same results and errors and leave the
same bytes.  Hypothesis draws the calls; each is made on both agents, which
have the same memory layout and one peer.  Addresses are not compared.
"""

import contextlib
import re

import pytest
from support import deadline
from support.endpoint import Endpoint
from support.memory import Memory, pattern

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import stateful  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.beyond_stock]

PIECES, PIECE = 6, 4096
ROOM = PIECES * PIECE
ADDRESS = re.compile(r"0x[0-9a-f]+")
# Raw calls have other names, and the sides of this test have two names each.
NAMES = re.compile(r"raw-model-[\w-]+")

piece = st.integers(0, PIECES - 1)
pick = st.integers(0, 7)
# One past the end: in no list.
indices = st.lists(st.integers(0, PIECES), min_size=0, max_size=4)
operation = st.sampled_from(["READ", "WRITE"])
message = st.sampled_from([b"", b"x", b"\x00\xff", b"m" * 300])


class Plain:
    """NixlAgent, by the calls that both agents have."""

    def __init__(self, name, package):
        self.name, self.package = name, package
        config = package.nixl_agent_config(backends=["UCX"])
        self.agent = package.NixlAgent(name, config)

    def rows(self, rows):
        return self.agent.get_reg_descs(rows, "DRAM")

    def register(self, rows):
        self.agent.register_memory(self.rows(rows))

    def deregister(self, rows):
        self.agent.deregister_memory(self.rows(rows))

    def load(self, blob):
        return self.agent.add_remote_agent(blob)

    def forget(self, peer):
        known = self.agent.check_remote_metadata(peer)
        self.agent.remove_remote_agent(peer)
        return known

    def knows(self, peer, rows):
        descs = self.agent.get_xfer_descs(rows, "DRAM")
        return self.agent.check_remote_metadata(peer, descs)

    def prepare(self, peer, rows):
        descs = self.agent.get_xfer_descs(rows, "DRAM")
        return self.agent.prep_xfer_dlist(peer, descs)

    def make(self, operation, left, right, ours, theirs, notif):
        return self.agent.make_prepped_xfer(
            operation, left, ours, right, theirs, notif
        )

    def create(self, operation, ours, theirs, peer, notif):
        both = [
            self.agent.get_xfer_descs(rows, "DRAM") for rows in (ours, theirs)
        ]
        return self.agent.initialize_xfer(operation, *both, peer, notif)

    def run(self, handle):
        return deadline.run(self.agent, handle)

    def backend(self, handle):
        name = self.agent.query_xfer_backend(handle)
        # Routes have no numbers of their own: UCX stands for each of them.
        return name if name in self.agent.backends else "UCX"

    def telemetry(self, handle):
        found = self.agent.get_xfer_telemetry(handle)
        return found.totalBytes, found.descCount

    def release(self, handle):
        handle.release()

    def notify(self, peer, text):
        self.agent.send_notif(peer, text)

    def close(self):
        self.agent.close()


class Raw(Plain):
    """nixlAgent of `_bindings`: numbers and statuses."""

    def __init__(self, name, package):
        from vllm_nixl import _bindings as raw

        self.name, self.raw = name, raw
        self.agent = raw.nixlAgent(name, raw.nixlAgentConfig())
        self.ucx = self.agent.createBackend("UCX", {})
        self.by_name = {"READ": raw.NIXL_READ, "WRITE": raw.NIXL_WRITE}

    def succeed(self, status):
        assert status == self.raw.NIXL_SUCCESS

    def rows(self, rows):
        return self.raw.nixlRegDList(self.raw.DRAM_SEG, rows)

    def descs(self, rows):
        return self.raw.nixlXferDList(self.raw.DRAM_SEG, rows)

    def register(self, rows):
        self.succeed(self.agent.registerMem(self.rows(rows)))

    def deregister(self, rows):
        self.succeed(self.agent.deregisterMem(self.rows(rows), [self.ucx]))

    def load(self, blob):
        return self.agent.loadRemoteMD(blob)

    def forget(self, peer):
        return self.agent.invalidateRemoteMD(peer) == self.raw.NIXL_SUCCESS

    def knows(self, peer, rows):
        status = self.agent.checkRemoteMD(peer, self.descs(rows))
        return status == self.raw.NIXL_SUCCESS

    def prepare(self, peer, rows):
        if peer:
            return self.agent.prepXferDlist(peer, self.descs(rows))
        return self.agent.prepXferDlist(self.descs(rows))

    def make(self, operation, left, right, ours, theirs, notif):
        return self.agent.makeXferReq(
            self.by_name[operation], left, ours, right, theirs, notif
        )

    def create(self, operation, ours, theirs, peer, notif):
        return self.agent.createXferReq(
            self.by_name[operation],
            self.descs(ours),
            self.descs(theirs),
            peer,
            notif,
        )

    def run(self, handle):
        status = self.agent.postXferReq(handle)
        deadline.until(
            lambda: self.agent.getXferStatus(handle) != self.raw.NIXL_IN_PROG,
            "the end of a transfer",
        )
        assert status in (self.raw.NIXL_SUCCESS, self.raw.NIXL_IN_PROG)
        self.succeed(self.agent.getXferStatus(handle))
        return "DONE"

    def backend(self, handle):
        assert self.agent.queryXferBackend(handle) == self.ucx
        return "UCX"

    def telemetry(self, handle):
        found = self.agent.getXferTelemetry(handle)
        return found.totalBytes, found.descCount

    def release(self, handle):
        # Both lists and transfers are numbers.
        for call in (self.agent.releaseXferReq, self.agent.releasedDlistH):
            with contextlib.suppress(self.raw.nixlInvalidParamError):
                return self.succeed(call(handle))
        raise AssertionError(f"{handle} is neither")

    def notify(self, peer, text):
        self.succeed(self.agent.genNotif(peer, text))

    def close(self):
        self.agent._agent.close()


class Side:
    """One of the two agents, its memory and its handles."""

    def __init__(self, kind, name):
        import vllm_nixl

        self.calls = kind(f"raw-model-{name}", vllm_nixl)
        self.memory = Memory(ROOM).fill(1)
        self.registered = set()
        self.lists, self.xfers = [], []
        # Each has its own peer, because both write into it.
        self.peer = Endpoint("vllm_nixl", f"raw-model-peer-{name}")
        self.room = self.peer.alloc(ROOM, seed=2)

    def row(self, number):
        return (self.memory.addr + number * PIECE, PIECE, 0)

    def theirs(self, number):
        return (self.room.addr + number * PIECE, PIECE, 0)

    def close(self):
        self.calls.close()
        self.peer.close()
        self.memory.unmap()


class Twins(stateful.RuleBasedStateMachine):
    """Every rule does the same to both agents and compares the results."""

    @stateful.initialize()
    def start(self):
        self.sides = [Side(Plain, "plain"), Side(Raw, "raw")]
        self.both(lambda s: s.calls.load(s.peer.metadata()))
        for number in range(PIECES):
            self.both(lambda s, n=number: s.calls.register([(*s.row(n), "")]))
        self.keep("lists", self.list_of(False))
        self.keep("lists", self.list_of(True))

    def teardown(self):
        for side in getattr(self, "sides", []):
            side.close()

    def both(self, call):
        """Call it for each side; check for the same result or error."""
        results = []
        for side in self.sides:
            try:
                results.append(("result", call(side)))
            except Exception as error:
                text = NAMES.sub("NAME", ADDRESS.sub("ADDRESS", str(error)))
                row = getattr(error, "index", None)
                results.append((type(error), text, row))
        handles = [result[-1] for result in results]
        kinds = [result[0] for result in results]
        assert kinds[0] == kinds[1], results
        if kinds[0] != "result":
            assert results[0] == results[1]
            return None
        return handles

    def same(self, call):
        """Check that both results are equal, and return them."""
        handles = self.both(call)
        if handles is not None:
            first, second = (
                NAMES.sub("NAME", str(handle)) for handle in handles
            )
            assert first == second
        return handles

    def keep(self, where, handles):
        if handles is not None:
            for side, handle in zip(self.sides, handles, strict=True):
                getattr(side, where).append(handle)

    def list_of(self, remote):
        return self.both(
            lambda s: s.calls.prepare(
                s.peer.name if remote else "",
                [(s.theirs if remote else s.row)(n) for n in range(PIECES)],
            )
        )

    def some(self, where, number):
        """The index of a handle that both have, or None."""
        count = len(getattr(self.sides[0], where))
        return number % count if count else None

    # -- rules ---------------------------------------------------------------

    @stateful.rule(number=piece, count=st.integers(1, 2))
    def register(self, number, count):
        self.same(lambda s: s.calls.register([(*s.row(number), "")] * count))

    @stateful.rule(number=piece)
    def deregister(self, number):
        self.same(lambda s: s.calls.deregister([(*s.row(number), "")]))

    @stateful.rule()
    def load(self):
        self.same(lambda s: s.calls.load(s.peer.metadata()))

    @stateful.rule()
    def forget(self):
        self.same(lambda s: s.calls.forget(s.peer.name))

    @stateful.rule(number=piece, past=st.booleans())
    def ask(self, number, past):
        self.same(
            lambda s: s.calls.knows(
                s.peer.name, [s.theirs(number + PIECES * past)]
            )
        )

    @stateful.rule(remote=st.booleans())
    def prepare(self, remote):
        self.keep("lists", self.list_of(remote))

    @stateful.rule(
        kind=operation, left=pick, right=pick, ours=indices, notif=message
    )
    def make(self, kind, left, right, ours, notif):
        left, right = self.some("lists", left), self.some("lists", right)
        if left is None:
            return
        made = self.both(
            lambda s: s.calls.make(
                kind, s.lists[left], s.lists[right], ours, ours[::-1], notif
            )
        )
        self.keep("xfers", made)

    @stateful.rule(kind=operation, ours=piece, theirs=piece, notif=message)
    def create(self, kind, ours, theirs, notif):
        made = self.both(
            lambda s: s.calls.create(
                kind, [s.row(ours)], [s.theirs(theirs)], s.peer.name, notif
            )
        )
        self.keep("xfers", made)

    @stateful.rule(kind=operation, ours=piece, theirs=piece, notif=message)
    def move(self, kind, ours, theirs, notif):
        """Make, run and release a transfer: most of an agent's work."""
        before = len(self.sides[0].xfers)
        self.create(kind, ours, theirs, notif)
        if len(self.sides[0].xfers) > before:
            self.run(before)
            self.release(before, "xfers")

    @stateful.rule(
        kind=operation,
        ours=st.lists(piece, min_size=1, max_size=4, unique=True),
        notif=message,
    )
    def move_prepared(self, kind, ours, notif):
        """The same with the first prepared lists, if they still exist."""
        before = len(self.sides[0].xfers)
        if len(self.sides[0].lists) < 2:
            return
        made = self.both(
            lambda s: s.calls.make(
                kind, s.lists[0], s.lists[1], ours, ours[::-1], notif
            )
        )
        self.keep("xfers", made)
        if made is not None:
            self.run(before)
            self.release(before, "xfers")

    @stateful.rule(number=pick)
    def run(self, number):
        at = self.some("xfers", number)
        if at is not None:
            self.same(lambda s: s.calls.run(s.xfers[at]))
            self.same(lambda s: s.calls.telemetry(s.xfers[at]))

    @stateful.rule(number=pick)
    def look(self, number):
        at = self.some("xfers", number)
        if at is not None:
            self.same(lambda s: s.calls.backend(s.xfers[at]))

    @stateful.rule(number=pick, where=st.sampled_from(["lists", "xfers"]))
    def release(self, number, where):
        at = self.some(where, number)
        if at is not None:
            self.same(lambda s: s.calls.release(getattr(s, where).pop(at)))

    @stateful.rule(text=message)
    def notify(self, text):
        self.same(lambda s: s.calls.notify(s.peer.name, text))

    @stateful.rule(number=piece, seed=st.integers(0, 9))
    def change(self, number, seed):
        at = number * PIECE
        for side in self.sides:
            side.memory.view[at : at + PIECE] = pattern(seed, PIECE)

    # -- invariants after each rule ------------------------------------------

    @stateful.invariant()
    def bytes_are_the_same(self):
        plain, raw = self.sides
        assert bytes(plain.memory.view) == bytes(raw.memory.view)
        assert plain.peer.read(plain.room.key) == raw.peer.read(raw.room.key)

    @stateful.invariant()
    def as_many_notifications_were_sent(self):
        plain, raw = self.sides
        sent = plain.calls.agent.stats()["notifs_sent"]
        assert sent == raw.calls.agent._agent.stats()["notifs_sent"]


@pytest.mark.parametrize("seed", [1, 2])
def test_raw_agent_behaves_like_nixl_agent(module, monkeypatch, seed):
    monkeypatch.setenv("VLLM_NIXL_ENGINE", "native")
    machine = hypothesis.seed(seed)(Twins)
    stateful.run_state_machine_as_test(
        machine,
        settings=hypothesis.settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            database=None,
            phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
            suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )
