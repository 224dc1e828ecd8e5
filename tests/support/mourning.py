"""A peer dies and comes back, again and again, and its survivors mind.

What the tests of killed UCX peers share: the survivor is an agent of ours in
a process of its own, the victim one of ours or of stock.
"""

import os

from support import deadline

# 100 is what the engine is meant to stand; a whole run takes minutes.
ROUNDS = int(os.environ.get("VLLM_NIXL_ROUNDS", "0"))
NOTICED = 1.0  # seconds in which a death must be an error
SIZE = 4 << 20
GONE = "nixlRemoteDisconnectError"
FEW = 3  # descriptors: UCX has its first sockets of a kind rather late
SLACK = 96 << 20  # resident bytes that UCX and malloc keep for later


class Survivor:
    """One that lives on, and what it does with its victims."""

    def __init__(self, here, start_victim):
        self.here, self.start_victim = here, start_victim
        self.block = here.alloc(SIZE)
        self.room = here.alloc(SIZE)
        here.stamp_slots(self.block.key, 4096, 1 << 20)

    def meet(self):
        """A new victim, known without any removal here."""
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
        """Everything works between the two."""
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
        """It dies during a transfer, or when nothing goes on."""
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
        """They die while they read from us, or write to us."""
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
        """Round after round; then nothing may be left of the dead."""
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
    """What a process holds is not more than before."""

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
