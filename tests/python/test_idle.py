"""The cost of an idle package."""

import pytest
from support.program import run_program

pytestmark = pytest.mark.beyond_stock


def test_importing_starts_no_thread_and_loads_no_library():
    run_program(
        """
        import sys
        from pathlib import Path
        from support import usage
        import vllm_nixl
        assert usage.threads() == 1, usage.threads()
        for heavy in ("numpy", "torch", "asyncio", "multiprocessing"):
            assert heavy not in sys.modules, heavy
        maps = Path("/proc/self/maps").read_text()
        for library in ("libucp", "libnixl", "libcuda"):
            assert library not in maps, library
        """
    )


def test_an_agent_without_backend_has_no_thread():
    run_program(
        """
        from support import usage
        import vllm_nixl
        config = vllm_nixl.nixl_agent_config(backends=[])
        agent = vllm_nixl.nixl_agent("A", config)
        assert usage.threads() == 1
        """
    )


def test_threads_do_not_grow_with_peers():
    run_program(
        """
        from support import usage
        from support.endpoint import Endpoint
        here = Endpoint(MODULE, "here")
        others = [Endpoint(MODULE, f"other-{i}") for i in range(3)]
        for other in others:
            here.add(other.metadata())
        few = usage.threads()
        per_agent = few / 4
        more = [Endpoint(MODULE, f"more-{i}") for i in range(12)]
        for other in more:
            here.add(other.metadata())
        assert usage.threads() <= few + 12 * per_agent + 1
        """
    )


@pytest.mark.nixl_differs("its poller looks for notifications")
def test_an_idle_agent_sleeps():
    """With a peer and a listener, no thread wakes up repeatedly."""
    run_program(
        """
        from support import usage
        from support.deadline import until
        from support.endpoint import Endpoint
        from support.peer import PeerProcess
        here, there = Endpoint(MODULE, "here"), Endpoint(MODULE, "there")
        away = PeerProcess(MODULE, "away")
        for one in (there, away):
            here.add(one.metadata())
            one.add(here.metadata())
        a, b = here.alloc(4096), there.alloc(4096)
        here.add(there.metadata())
        here.move("READ", [(a.addr, 64, 0)], [(b.addr, 64, 0)], "there")
        here.agent.start_side_channel_listener(0, here.metadata())
        away.send_notif("here", b"x")
        here.gather_notifs(1)
        # Connecting ends in the background, at some time.
        until(lambda: usage.most_switches(2) < 40, "two quiet seconds")
        here.agent.stop_side_channel_listener()
        away.close()
        """
    )
