"""Many transfers between two endpoints, every byte looked at.

A buffer is an array of slots.  A slot with a stamp holds the 8 bytes of a
number again and again.  These functions are what `Endpoint` does with them, on
both sides of a pipe.
"""

from support import deadline

SPREAD = 7  # of neighbours, so that nothing is where it was by accident


def stamp(number, slot):
    return number.to_bytes(8, "little") * (slot // 8)


def stamp_all(view, slot, first):
    """Slot i gets the stamp first + i."""
    for number in range(len(view) // slot):
        view[number * slot :][:slot] = stamp(first + number, slot)


def lists(agent, peer, local, remote, slot, count):
    """Both sides' slots, prepared."""
    rows = [
        [(base + i * slot, slot, 0) for i in range(count)]
        for base in (local, remote)
    ]
    left = agent.prep_xfer_dlist("", rows[0], "DRAM")
    return left, agent.prep_xfer_dlist(peer, rows[1], "DRAM")


def read(agent, sides, view, slot, rounds, first):
    """Slot by slot from a peer that stamped them; the numbers of rounds in
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
    """Slot by slot to a peer, which is told the number of each."""
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
    """All slots in one READ, in another order; how many came wrong."""
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
