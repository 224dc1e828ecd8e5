"""Many regions, peers and transfers are created and removed; nothing grows."""

import pytest
from support.memory import pattern
from support.program import run_program

pytestmark = [pytest.mark.slow, pytest.mark.beyond_stock]


def test_ten_thousand_regions_are_registered_and_removed(
    endpoint, other, meet
):
    """One by one; the peer sometimes loads the new metadata."""
    here, there = endpoint(), other()
    count, size = 10_000, 64
    block = there.alloc(count * size, seed=1, register=False)
    local = here.alloc(size)
    for number in range(count):
        row = [(block.addr + number * size, size, 0, "")]
        there.call("register_memory", row, "DRAM")
    here.add(there.metadata())
    last = block.addr + (count - 1) * size
    here.move("READ", [(local.addr, size, 0)], [(last, size, 0)], there.name)
    assert here.read(local.key) == pattern(1, count * size)[-size:]
    assert there.call("stats")["regions"] == count
    there.deregister_rows(block.key, size, count)
    assert there.call("stats")["regions"] == 0
    here.add(there.metadata())
    rows = here.agent.get_xfer_descs([(last, size, 0)], "DRAM")
    assert not here.agent.check_remote_metadata(there.name, rows)


def test_repeated_registration_uses_bounded_memory():
    """10 000 loops over 1 000 regions: the process does not grow."""
    run_program(
        """
        from support import usage
        from support.endpoint import Endpoint
        here = Endpoint(MODULE, "here")
        a = here.alloc(1 << 20, register=False)
        rows = [(a.addr + i * 1024, 1024, 0, "") for i in range(1000)]
        def loop(times):
            for _ in range(times):
                made = here.agent.register_memory(rows, "DRAM")
                here.agent.deregister_memory(made)
            return usage.resident()
        loop(20)
        first = loop(100)
        last = loop(300)
        assert last - first < 4 << 20, (first, last)
        """
    )


def test_thousand_peers_are_loaded_and_removed():
    """A thousand peers, each used once."""
    run_program(
        """
        import gc
        from support import usage
        from support.deadline import until
        from support.endpoint import Endpoint
        here = Endpoint(MODULE, "here")
        local = here.alloc(4096)
        def life(number):
            peer = Endpoint(MODULE, f"peer-{number}")
            remote = peer.alloc(4096, seed=number)
            here.add(peer.metadata())
            peer.add(here.metadata())
            here.move("READ", [(local.addr, 4096, 0)],
                      [(remote.addr, 4096, 0)], peer.name, b"read")
            assert here.read(local.key) == peer.read(remote.key)
            assert peer.gather_notifs(1) == [("here", b"read")]
            here.remove(peer.name)
            peer.close()
        for number in range(100):
            life(number)
        gc.collect()
        first = usage.fds(), usage.threads(), usage.resident()
        for number in range(100, 1000):
            life(number)
        gc.collect()
        last = usage.fds(), usage.threads(), usage.resident()
        # What threads still had to close is closed in a moment.
        until(
            lambda: usage.fds() <= first[0] and usage.threads() <= first[1],
            f"{first}, now {last}",
        )
        assert last[2] - first[2] < 4 << 20, (first, last)
        assert here.agent.stats()["peers"] == 0
        """
    )


def test_two_hundred_peers_work_concurrently(endpoint, api):
    """Two hundred agents, all loaded before the first is used."""
    here = endpoint()
    local = here.alloc(4096)
    peers = [endpoint() for _ in range(200)]
    blocks = [peer.alloc(4096, seed=i) for i, peer in enumerate(peers)]
    for peer in peers:
        here.add(peer.metadata())
    assert here.agent.stats()["peers"] == 200
    for peer, block in zip(peers, blocks, strict=True):
        here.move(
            "READ",
            [(local.addr, 4096, 0)],
            [(block.addr, 4096, 0)],
            peer.name,
        )
        assert here.read(local.key) == peer.read(block.key)


def test_hundred_thousand_transfers_use_bounded_memory():
    run_program(
        """
        from support import usage
        from support.endpoint import Endpoint
        here, there = Endpoint(MODULE, "here"), Endpoint(MODULE, "there")
        a, b = here.alloc(65536), there.alloc(65536)
        here.add(there.metadata())
        agent = here.agent
        left = agent.prep_xfer_dlist(
            "", [(a.addr + i * 64, 64, 0) for i in range(1024)], "DRAM")
        right = agent.prep_xfer_dlist(
            "there", [(b.addr + i * 64, 64, 0) for i in range(1024)], "DRAM")
        def loop(times):
            for number in range(times):
                at = [number % 1024, (number * 7) % 1024]
                h = agent.make_prepped_xfer(
                    "READ", left, at, right, at, b"x")
                if agent.transfer(h) != "DONE":
                    agent.wait([h], timeout=30)
                assert agent.check_xfer_state(h) == "DONE"
                h.release()
                there.agent.get_new_notifs()
            return usage.resident()
        loop(10_000)
        first = loop(10_000)
        last = loop(80_000)
        assert last - first < 2 << 20, (first, last)
        """
    )
