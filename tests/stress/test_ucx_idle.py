"""An idle agent with ten UCX peers uses no CPU."""

import pytest
from support import deadline, ucx
from support.peer import PeerProcess

pytestmark = [pytest.mark.slow, pytest.mark.beyond_stock]

PEERS = 10
SECONDS = 3.0
CORE = 0.005  # of a core, what idle agents may use
SLOT = 4096


@pytest.fixture
def start(names, opened):
    path = ucx.any_library()
    if ucx.why_not(path) is not None:
        pytest.skip(ucx.why_not(path))

    def made():
        env = ucx.environment(path)
        opened.append(PeerProcess("vllm_nixl", names(), {}, env))
        return opened[-1]

    return made


def test_idle_agent_with_ten_peers_sleeps(start):
    """Connected both ways, after a transfer over each connection."""
    here = start()
    room = here.alloc(SLOT)
    for seed in range(PEERS):
        there = start()
        block = there.alloc(SLOT, seed=seed)
        here.add(there.metadata())
        there.add(here.metadata())
        here.move(
            "READ",
            [(room.addr, SLOT, 0)],
            [(block.addr, SLOT, 0)],
            there.name,
        )
        there.send_notif(here.name, b"hello")
    here.gather_notifs(PEERS)
    # Connecting ends in the background, at some time.
    deadline.until(
        lambda: here.idle_cpu(SECONDS) / SECONDS < CORE,
        f"{SECONDS} s with less than {CORE} of a core",
    )
