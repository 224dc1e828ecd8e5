"""Calls in any order, compared with a model of an agent's state.

Hypothesis draws the calls and shrinks failures.  The model has the regions
that each agent has registered, the metadata that the reader loaded last, and
the value of every byte.
"""

import pytest
from support.endpoint import Endpoint
from support.memory import pattern

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import stateful  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.beyond_stock,
    pytest.mark.nixl_differs("what a peer deregisters is noticed late"),
]

PIECES, PIECE = 8, 4096
ROOM = PIECES * PIECE
OWNERS = ("left", "right")

piece = st.integers(0, PIECES - 1)
owner = st.sampled_from(OWNERS)
operation = st.sampled_from(["READ", "WRITE"])


class Owner:
    """An agent with memory, and the model of both."""

    def __init__(self, name):
        self.node = Endpoint("vllm_nixl", name)
        self.memory = self.node.alloc(ROOM, register=False)
        self.bytes = bytearray(ROOM)
        self.registered = {}
        self.life = 0

    def row(self, number):
        return (self.memory.addr + number * PIECE, PIECE, 0)

    def close(self):
        self.node.close()


class Agents(stateful.RuleBasedStateMachine):
    """One reader and two owners, each with pieces that come and go."""

    @stateful.initialize()
    def start(self):
        self.reader = Endpoint("vllm_nixl", "model-reader")
        self.api = self.reader.api
        self.agent = self.reader.agent
        self.local = self.reader.alloc(ROOM)
        self.left = self.agent.prep_xfer_dlist(
            "",
            [(self.local.addr + i * PIECE, PIECE, 0) for i in range(PIECES)],
            "DRAM",
        )
        self.bytes = bytearray(ROOM)
        self.owners = {name: Owner(f"model-{name}") for name in OWNERS}
        self.loaded = {}  # name: (incarnation, pieces known)
        self.removals = dict.fromkeys(OWNERS, 0)
        self.lists = []  # (name, incarnation, piece, registration, handle)
        self.sent = {name: [] for name in OWNERS}
        for name in OWNERS:
            for number in range(0, PIECES, 2):
                self.enlist(name, number)

    def enlist(self, name, number):
        """The arguments of a transfer of a piece."""
        self.register_piece(name, number)
        self.load_owner(name)
        self.prepare_piece(name, number)

    def teardown(self):
        if hasattr(self, "reader"):
            for one in self.owners.values():
                one.close()
            self.reader.close()

    # -- events at the owners ------------------------------------------------

    @stateful.rule(name=owner, number=piece)
    def register(self, name, number):
        self.register_piece(name, number)

    def register_piece(self, name, number):
        one = self.owners[name]
        if number not in one.registered:
            one.registered[number] = one.node.agent.register_memory(
                [(*one.row(number), "")], "DRAM"
            )

    @stateful.rule(name=owner, number=piece)
    def deregister(self, name, number):
        one = self.owners[name]
        descs = one.registered.pop(number, None)
        if descs is not None:
            one.node.agent.deregister_memory(descs)

    @stateful.rule(name=owner, number=piece, seed=st.integers(0, 255))
    def change(self, name, number, seed):
        one, at = self.owners[name], number * PIECE
        one.bytes[at : at + PIECE] = pattern(seed, PIECE)
        one.node.write(one.memory.key, at, pattern(seed, PIECE))

    @stateful.rule(name=owner)
    def restart(self, name):
        old = self.owners[name]
        old.close()
        self.owners[name] = Owner(f"model-{name}")
        self.owners[name].life = old.life + 1
        self.sent[name] = []

    # -- peers loaded by the reader ------------------------------------------

    @stateful.rule(name=owner)
    def load(self, name):
        self.load_owner(name)

    def load_owner(self, name):
        one = self.owners[name]
        got = self.agent.add_remote_agent(one.node.metadata())
        assert got == one.node.name.encode()
        self.loaded[name] = (one.life, dict(one.registered))

    @stateful.rule(name=owner)
    def remove(self, name):
        self.agent.remove_remote_agent(f"model-{name}")
        if self.loaded.pop(name, None) is not None:
            self.removals[name] += 1

    def lives(self, name, life):
        """Has the reader loaded this incarnation of the owner?"""
        return (
            name in self.loaded
            and self.loaded[name][0] == life == self.owners[name].life
        )

    @stateful.rule(name=owner, number=piece)
    def prepare(self, name, number):
        self.prepare_piece(name, number)

    @stateful.rule(name=owner, number=piece)
    def get_ready(self, name, number):
        self.enlist(name, number)

    def prepare_piece(self, name, number):
        one = self.owners[name]
        life, known = self.loaded.get(name, (None, {}))
        fine = (
            self.lives(name, life)
            and number in known
            and number in one.registered
        )
        rows = [one.row(number)]
        if not fine:
            return
        try:
            handle = self.agent.prep_xfer_dlist(one.node.name, rows, "DRAM")
        except self.api.nixlNotFoundError:
            # Deregistered and registered again since; the next load will tell.
            assert one.registered[number] is not known[number]
            return
        registration = one.registered[number]
        age = (life, self.removals[name])
        self.lists.append((name, age, number, registration, handle))

    @stateful.rule(name=owner, number=piece)
    def prepare_what_is_not_known(self, name, number):
        one = self.owners[name]
        life, known = self.loaded.get(name, (None, {}))
        if name in self.loaded and (number in known or life != one.life):
            return
        with pytest.raises(self.api.NixlError, match="NIXL_ERR_"):
            self.agent.prep_xfer_dlist(
                one.node.name, [one.row(number)], "DRAM"
            )

    # -- transfers -----------------------------------------------------------

    @stateful.precondition(lambda self: self.lists)
    @stateful.rule(data=st.data(), to=piece, op=operation)
    def transfer(self, data, to, op):
        self.move(data, to, op)

    @stateful.precondition(lambda self: self.lists)
    @stateful.rule(data=st.data(), to=piece)
    def read(self, data, to):
        self.move(data, to, "READ")

    def move(self, data, to, op):
        at = data.draw(st.integers(0, len(self.lists) - 1))
        name, age, number, registration, remote = self.lists[at]
        one = self.owners[name]
        good = (
            self.lives(name, age[0])
            and age[1] == self.removals[name]
            and one.registered.get(number) is registration
        )
        message = b"%d" % len(self.sent[name])
        try:
            with self.agent.make_prepped_xfer(
                op, self.left, [to], remote, [0], message
            ) as handle:
                self.agent.transfer(handle)
                self.agent.wait([handle], timeout=30)
                assert self.agent.check_xfer_state(handle) == "DONE"
                went_well = True
        except self.api.NixlError:
            went_well = False
        assert went_well == good, (name, age, number)
        if not went_well:
            return
        self.sent[name].append(message)
        ours, theirs = to * PIECE, number * PIECE
        if op == "READ":
            self.bytes[ours : ours + PIECE] = one.bytes[theirs:][:PIECE]
        else:
            one.bytes[theirs : theirs + PIECE] = self.bytes[ours:][:PIECE]

    @stateful.precondition(lambda self: self.lists)
    @stateful.rule(data=st.data())
    def release(self, data):
        at = data.draw(st.integers(0, len(self.lists) - 1))
        self.lists.pop(at)[-1].release()

    # -- invariants ----------------------------------------------------------

    @stateful.rule()
    def bytes_are_as_the_model_has_them(self):
        assert self.reader.read(self.local.key) == bytes(self.bytes)
        for one in self.owners.values():
            assert one.node.read(one.memory.key) == bytes(one.bytes)

    @stateful.rule(name=owner)
    def notifications_are_as_sent(self, name):
        one = self.owners[name]
        got = [m for _, m in one.node.gather_notifs(len(self.sent[name]))]
        assert got == self.sent[name]
        self.sent[name] = []
        assert one.node.take_notifs() == {}

    @stateful.invariant()
    def counters_are_as_the_model_has_them(self):
        if not hasattr(self, "lists"):
            return
        stats = self.agent.stats()
        assert stats["live_dlists"] == len(self.lists) + 1
        assert stats["live_xfers"] == 0
        assert stats["peers"] == len(self.loaded)
        for one in self.owners.values():
            told = one.node.agent.stats()
            assert told["regions"] == len(one.registered)


Agents.TestCase.settings = hypothesis.settings(
    max_examples=120,
    stateful_step_count=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
TestAgents = Agents.TestCase
