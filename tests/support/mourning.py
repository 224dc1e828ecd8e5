"""A peer dies and restarts repeatedly, and its survivors must notice.

Shared by the tests of killed UCX peers.  The survivor is one of our agents in
a separate process; the victim is one of our agents or a stock agent.
"""

import os

from support import deadline

# The engine must withstand 100 rounds; a whole run takes minutes.
ROUNDS = int(os.environ.get("VLLM_NIXL_ROUNDS", "0"))
# Seconds within which a death must become an error, see deadline.soon().
NOTICED = 1.0
SIZE = 4 << 20
GONE = "nixlRemoteDisconnectError"
FEW = 3  # descriptors: UCX opens its first sockets of a kind late
SLACK = 96 << 20  # resident bytes that UCX and malloc keep for later


class Survivor:
    """A surviving agent, and its operations with victims."""

    def __init__(self, here, start_victim):
        self.here, self.start_victim = here, start_victim
        self.block = here.alloc(SIZE)
        self.room = here.alloc(SIZE)
        here.stamp_slots(self.block.key, 4096, 1 << 20)

    def meet(self):
        """Start a new victim and load it without removing the old one."""
        victim = self.start_victim()
        victim.block = victim.alloc(SIZE)
        victim.stamp_slots(victim.block.key, 4096, 1 << 30)
        self.here.add(victim.metadata())
        victim.add(self.here.metadata())
        return victim

    def read_from(self, victim):
        wrong = self.here.read_slots(
            self.room.key, 4096, victim.name, victim.block.addr, 20, 1 << 30
        )
        assert wrong == []

    def exchange(self, victim):
        """Check that everything works between the two."""
        here = self.here
        self.read_from(victim)
        room = victim.alloc(SIZE)
        victim.stamp_slots(room.key, 4096)
        wrong = victim.read_slots(
            room.key, 4096, here.name, self.block.addr, 20, 1 << 20
        )
        assert wrong == []
        here.send_notif(victim.name, b"welcome")
        assert victim.gather_notifs(1) == [(here.name, b"welcome")]
        victim.send_notif(here.name, b"thanks")
        assert here.gather_notifs(1) == [(victim.name, b"thanks")]

    def lose(self, victim, operation):
        """Kill the victim during a transfer, or while it is idle."""
        here = self.here
        if operation == "idle":
            victim.kill()
            assert here.refusal_within(victim.name, NOTICED) == GONE
            return
        buffer = self.room if operation == "READ" else self.block
        handle = here.start_endless(
            operation, victim.name, buffer.key, victim.block.addr
        )
        victim.kill()
        assert here.error_within(handle, NOTICED) == GONE
        here.release(handle)

    def outlive(self, operation, rounds):
        """Kill victims while they read from us or write to us."""
        served = self.block if operation == "READ" else self.room
        for _ in range(rounds):
            victim = self.meet()
            self.here.poison(self.room.key, 0)
            where = (victim, victim.block.key)
            if operation == "WRITE":
                where = (self.here, self.room.key)
            before = where[0].read(where[1], SIZE // 2, 8)
            victim.start_endless(
                operation, self.here.name, victim.block.key, served.addr
            )
            deadline.until(
                lambda where=where, before=before: (
                    where[0].read(where[1], SIZE // 2, 8) != before
                ),
                "the first bytes",
            )
            victim.kill()
            assert self.here.refusal_within(victim.name, NOTICED) == GONE

    def mourn(self, operation, rounds):
        """Repeat the rounds; afterwards no resources of dead peers may
        remain."""
        first = None
        for number in range(rounds):
            victim = self.meet()
            self.exchange(victim)
            self.lose(victim, operation)
            if number == min(2, rounds // 2):
                first = self.here.holds()
        left = Level(self.here, first)
        deadline.until(left.is_level, left)


class Level:
    """Checks that a process holds no more resources than before."""

    def __init__(self, here, first):
        self.here, self.first, self.now = here, first, None

    def is_level(self):
        self.now = self.here.holds()
        fds, threads, mappings, resident = self.first
        return (
            self.now[0] <= fds + FEW
            and self.now[1] <= threads
            and self.now[2] <= mappings + 16
            and self.now[3] <= resident + SLACK
        )

    def __str__(self):
        return f"holding {self.first} again, not {self.now}"
