"""Many transfers between two endpoints, with every byte checked.

A buffer is an array of slots.  A stamped slot repeats the 8 bytes of a number.
`Endpoint` calls these functions on both sides of a pipe.
"""

from support import deadline, memory

SPREAD = 7  # reversed, so that no slot is right by accident


def stamp(number, slot):
    return number.to_bytes(8, "little") * (slot // 8)


def stamp_all(view, slot, first):
    """Slot i gets the stamp first + i."""
    for number in range(len(view) // slot):
        view[number * slot :][:slot] = stamp(first + number, slot)


def lists(agent, peer, local, remote, slot, count):
    """Prepared lists of both sides' slots."""
    rows = [
        [(base + i * slot, slot, 0) for i in range(count)]
        for base in (local, remote)
    ]
    left = agent.prep_xfer_dlist("", rows[0], memory.MEM)
    return left, agent.prep_xfer_dlist(peer, rows[1], memory.MEM)


def read(agent, sides, view, slot, rounds, first):
    """Read slot by slot from a peer that stamped them; return the rounds in
    which a byte was wrong."""
    count = len(view) // slot
    wrong = []
    for number in range(rounds):
        there, here = number % count, (number * SPREAD + 3) % count
        room = view[here * slot :][:slot]
        room[:] = b"\xee" * slot
        handle = agent.make_prepped_xfer(
            "READ", sides[0], [here], sides[1], [there]
        )
        deadline.run(agent, handle)
        handle.release()
        if room != stamp(first + there, slot):
            wrong.append(number)
    return wrong


def write(agent, sides, rounds):
    """Write slot by slot to a peer, and notify it of each number."""
    for number in range(rounds):
        handle = agent.make_prepped_xfer(
            "WRITE",
            sides[0],
            [number],
            sides[1],
            [number],
            number.to_bytes(8, "little"),
        )
        deadline.run(agent, handle)
        handle.release()


def scattered(agent, sides, view, slot, first):
    """READ all slots at once in another order; return the number of wrong
    ones."""
    count = len(view) // slot
    view[:] = b"\xee" * len(view)
    there = [(i * SPREAD + 5) % count for i in range(count)]
    handle = agent.make_prepped_xfer(
        "READ", sides[0], list(range(count)), sides[1], there
    )
    deadline.run(agent, handle)
    handle.release()
    return sum(
        view[i * slot :][:slot] != stamp(first + number, slot)
        for i, number in enumerate(there)
    )
