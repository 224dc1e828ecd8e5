"""Three agents that exchange metadata by NIXL's metadata listener.

The known peers match the commands sent (send, fetch, invalidate), and
transfers work between all agents that know each other.
"""

import itertools

import pytest
from support.deadline import until
from support.endpoint import Endpoint
from support.memory import pattern

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import strategies as st  # noqa: E402

pytestmark = pytest.mark.beyond_stock

HERE = "127.0.0.1"
SIZE = 4096
NAMES = ("first", "second", "third")
one = st.integers(0, 2)
ACTS = st.tuples(
    st.sampled_from(["send", "fetch", "invalidate", "restart"]), one, one
)


class Ring:
    """The agents, and the peers that each is expected to know."""

    def __init__(self):
        self.serial = itertools.count()
        self.agents = [None] * 3
        self.blocks = [None] * 3
        self.knows = set()
        for at in range(3):
            self.start(at)

    def start(self, at):
        self.agents[at] = Endpoint(
            "vllm_nixl",
            f"three-{NAMES[at]}-{next(self.serial)}",
            {
                "enable_listen_thread": True,
                "listen_port": 0,
                "listen_host": HERE,
            },
        )
        self.blocks[at] = self.agents[at].alloc(SIZE, seed=at)

    def close(self):
        for agent in self.agents:
            agent.close()

    def port(self, at):
        return self.agents[at].agent.listen_port

    def await_knowledge(self, who, whom, wanted):
        agent, name = self.agents[who].agent, self.agents[whom].name
        until(
            lambda: agent.check_remote_metadata(name) == wanted,
            f"{NAMES[who]} knows {NAMES[whom]}: {wanted}",
        )

    def loads(self, at):
        return self.agents[at].agent.stats()["listener_loaded"]

    def await_load(self, who, whom, loads):
        """Wait for the load even if `whom` was known before: a later load
        would undo an invalidation."""
        until(
            lambda: self.loads(who) > loads,
            f"{NAMES[who]} loads the metadata of {NAMES[whom]}",
        )
        self.await_knowledge(who, whom, True)

    def act(self, what, who, whom):
        agent = self.agents[who].agent
        if what == "restart":
            self.restart(who)
        elif who == whom:
            return
        elif what == "send":
            loads = self.loads(whom)
            agent.send_local_metadata(HERE, self.port(whom))
            self.knows.add((whom, who))
            self.await_load(whom, who, loads)
        elif what == "fetch":
            loads = self.loads(who)
            name = self.agents[whom].name
            agent.fetch_remote_metadata(name, HERE, self.port(whom))
            self.knows.add((who, whom))
            self.await_load(who, whom, loads)
        elif (whom, who) in self.knows:
            # If `whom` does not know the agent, nothing shows when it has
            # handled the command, which may undo a later load.
            agent.invalidate_local_metadata(HERE, self.port(whom))
            self.knows.discard((whom, who))
            self.await_knowledge(whom, who, False)

    def restart(self, who):
        """Replace the agent by another one with another name."""
        self.agents[who].close()
        self.knows = {pair for pair in self.knows if who not in pair}
        self.start(who)

    def check(self):
        for who, whom in itertools.permutations(range(3), 2):
            agent, name = self.agents[who].agent, self.agents[whom].name
            wanted = (who, whom) in self.knows
            assert agent.check_remote_metadata(name) == wanted

    def read_all(self):
        """Each agent reads the bytes of every peer it knows."""
        for who, whom in self.knows:
            here, there = self.agents[who], self.agents[whom]
            room = here.alloc(SIZE)
            here.move(
                "READ",
                [(room.addr, SIZE, 0)],
                [(self.blocks[whom].addr, SIZE, 0)],
                there.name,
            )
            assert here.read(room.key) == pattern(whom, SIZE)


@hypothesis.given(acts=st.lists(ACTS, max_size=12))
@hypothesis.settings(max_examples=8, deadline=None, database=None)
def test_known_peers_match_the_commands_sent(module, acts):
    ring = Ring()
    try:
        for act in acts:
            ring.act(*act)
            ring.check()
        ring.read_all()
    finally:
        ring.close()


@pytest.fixture
def ring(module):
    made = Ring()
    yield made
    made.close()


def test_metadata_exchange_lets_all_agents_read_each_other(ring):
    for who in range(3):
        ring.act("send", who, (who + 1) % 3)
        ring.act("fetch", who, (who + 1) % 3)
    assert len(ring.knows) == 6
    ring.check()
    ring.read_all()


def test_invalidating_at_one_agent_does_not_affect_others(ring):
    ring.act("send", 0, 1)
    ring.act("send", 0, 2)
    ring.act("invalidate", 0, 1)
    ring.check()
    assert ring.knows == {(2, 0)}
    ring.read_all()


def test_lost_agent_does_not_disturb_other_exchanges(ring):
    ring.act("send", 0, 1)
    gone = ring.port(2)
    ring.agents[2].close()
    ring.agents[0].agent.send_local_metadata(HERE, gone)
    ring.act("send", 1, 0)
    until(
        lambda: ring.agents[0].agent.stats()["listener_send_failures"] == 1,
        "the failure",
    )
    ring.read_all()
    ring.start(2)
    ring.act("send", 2, 0)
    ring.check()


def test_notifications_pass_between_known_agents(ring):
    for who, whom in itertools.permutations(range(3), 2):
        ring.act("fetch", who, whom)
    for who, whom in itertools.permutations(range(3), 2):
        text = f"{who} to {whom}".encode()
        ring.agents[who].send_notif(ring.agents[whom].name, text)
    for whom in range(3):
        got = dict(ring.agents[whom].gather_notifs(2))
        assert got == {
            ring.agents[who].name: f"{who} to {whom}".encode()
            for who in range(3)
            if who != whom
        }


def test_new_memory_is_known_after_sending_again(ring):
    ring.act("send", 0, 1)
    later = ring.agents[0].alloc(SIZE, seed=9)
    agent = ring.agents[1].agent
    rows = agent.get_xfer_descs([(later.addr, SIZE, 0)], "DRAM")
    name = ring.agents[0].name
    assert not agent.check_remote_metadata(name, rows)
    ring.agents[0].agent.send_local_metadata(HERE, ring.port(1))
    until(lambda: agent.check_remote_metadata(name, rows), "the new memory")
    assert ring.agents[1].knows(name, ring.blocks[0])
