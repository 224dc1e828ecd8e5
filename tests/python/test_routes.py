"""A peer on this host that is reached by SHM and by UCX at the same time.

GPU memory is played by CPU memory that only UCX knows: its rows are taken out
of the section of SHM.
"""

import threading

import pytest
from support import blob as grammar
from support import ucx
from support.deadline import until
from support.memory import pattern
from support.peer import PeerError, PeerProcess
from support.program import run_program

pytestmark = pytest.mark.beyond_stock

SIZE, ROWS = 64 << 10, 64


@pytest.fixture
def start(names, opened):
    """start(): an agent in a process of its own that has SHM and UCX."""
    path = ucx.any_library()
    if ucx.why_not(path) is not None:
        pytest.skip(ucx.why_not(path))
    env = {"VLLM_NIXL_ENGINE": "native", "VLLM_NIXL_UCX_LIBRARY": path}

    def made():
        opened.append(PeerProcess("vllm_nixl", names(), {}, env))
        return opened[-1]

    return made


def hidden_from_shm(data, addresses):
    """The blob without these regions in its sections of SHM."""
    found = grammar.parse(data)
    sections = [
        part
        if part.backend != b"SHM"
        else part._replace(
            regions=[r for r in part.regions if r.addr not in addresses]
        )
        for part in found.sections
    ]
    kept = [part for part in sections if part.regions]
    return grammar.write(found._replace(sections=kept))


def mixed(here, there):
    """(local rows, remote rows, block there by SHM, block there by UCX):
    every other row is reached by the other transport."""
    room = here.alloc(SIZE * ROWS)
    by_shm = there.alloc(SIZE * ROWS, seed=1)
    by_ucx = there.alloc(SIZE * ROWS, seed=2)
    here.add(hidden_from_shm(there.metadata(), {by_ucx.addr}))
    local = [(room.addr + i * SIZE, SIZE, 0) for i in range(ROWS)]
    remote = [
        ((by_ucx if i % 2 else by_shm).addr + i * SIZE, SIZE, 0)
        for i in range(ROWS)
    ]
    return room, local, remote


def expected(seeds):
    whole = [pattern(seed, SIZE * ROWS) for seed in seeds]
    return b"".join(
        whole[i % 2][i * SIZE : (i + 1) * SIZE] for i in range(ROWS)
    )


def test_one_transfer_by_shm_and_ucx_moves_every_byte(start):
    here, there = start(), start()
    room, local, remote = mixed(here, there)
    for number in range(5):
        told = number.to_bytes(8, "little")
        assert here.move("READ", local, remote, there.name, told) == "DONE"
        assert here.read(room.key) == expected((1, 2))
    assert there.gather_numbers(5) == list(range(5))
    assert here.move("WRITE", local, remote, there.name) == "DONE"
    assert here.move("READ", local, remote, there.name) == "DONE"
    assert here.read(room.key) == expected((1, 2))
    told = here.call("describe", there.name)
    assert told["path"] == "SHM"
    assert told["transports"]  # UCX has connected
    assert told["transfers"] == 7


def is_lost(here, name):
    return here.call("describe", name)["state"] == "lost"


def move_until_it_fails(here, local, remote, name):
    while True:
        here.move("READ", local, remote, name)


def test_a_peer_killed_while_both_are_used_is_one_error(start):
    """Whichever transport notices first; the agent then works with others."""
    here = start()
    for number in range(4):
        there = start()
        _, local, remote = mixed(here, there)
        assert here.move("READ", local, remote, there.name) == "DONE"
        killer = threading.Timer(0.01 * number, there.process.kill)
        killer.start()
        with pytest.raises(PeerError, match="nixlRemoteDisconnectError"):
            move_until_it_fails(here, local, remote, there.name)
        killer.join()
        there.kill()
        until(lambda name=there.name: is_lost(here, name), "the loss")
    there = start()
    room, local, remote = mixed(here, there)
    assert here.move("READ", local, remote, there.name) == "DONE"
    assert here.read(room.key) == expected((1, 2))


def test_a_backend_created_during_registrations_gets_all_regions():
    """In a process of its own, because a process opens libucp once."""
    path = ucx.any_library()
    if ucx.why_not(path) is not None:
        pytest.skip(ucx.why_not(path))
    run_program(
        """
        import threading
        import numpy as np
        from support import blob as grammar
        from vllm_nixl import NixlAgent, nixl_agent_config

        batch = 20_000
        memory = np.zeros(batch << 12, np.uint8)
        rows = np.full((batch, 3), [0, 64, 0], np.uint64)
        offsets = np.arange(batch, dtype=np.uint64) << np.uint64(12)

        def register(agent, done):
            base = memory.ctypes.data
            for first in range(base, base + 4096, 64):
                rows[:, 0] = first + offsets
                agent.register_memory(rows, "DRAM")
                if done.is_set():
                    break

        for _ in range(8):
            config = nixl_agent_config(backends=["SHM"], engine="native")
            with NixlAgent("here", config) as agent:
                done = threading.Event()
                thread = threading.Thread(
                    target=register, args=(agent, done)
                )
                thread.start()
                agent.create_backend("UCX")
                done.set()
                thread.join()
                found = grammar.parse(agent.get_agent_metadata())
            known = {p.backend: len(p.regions) for p in found.sections}
            assert known[b"UCX"] == known[b"SHM"] > 0, known
        """,
        env={"VLLM_NIXL_UCX_LIBRARY": path},
    )
