"""The package works in several interpreters of one process.

Each program runs in a process of its own, which must also exit cleanly.
"""

import sysconfig
import textwrap

import pytest
from support.program import run_program

pytestmark = pytest.mark.beyond_stock

# work(name) moves bytes between two agents of its interpreter.
WORK = """
from vllm_nixl import NixlAgent, nixlNotFoundError, shared_buffer

def work(name):
    rows = [(1 << 12) * i for i in range(8)]
    one, two = NixlAgent(name + "-1"), NixlAgent(name + "-2")
    here, there = shared_buffer(1 << 15), shared_buffer(1 << 15)
    expected = name.encode().ljust(1 << 12, b".") * 8
    memoryview(there)[:] = expected
    one.register_memory([(here.address, here.nbytes, 0, "")], "DRAM")
    two.register_memory([(there.address, there.nbytes, 0, "")], "DRAM")
    peer = one.add_remote_agent(two.get_agent_metadata())
    left = one.prep_xfer_dlist(
        "", [(here.address + row, 1 << 12, 0) for row in rows], "DRAM"
    )
    right = one.prep_xfer_dlist(
        peer, [(there.address + row, 1 << 12, 0) for row in rows], "DRAM"
    )
    with one.make_prepped_xfer(
        "READ", left, range(8), right, range(8), "read"
    ) as handle:
        one.transfer(handle)
        assert one.wait(handle, timeout=60) == [handle]
    assert bytes(here) == expected
    try:
        one.prep_xfer_dlist("nobody", [(here.address, 1, 0)], "DRAM")
    except nixlNotFoundError as error:
        assert error.peer == "nobody"
    else:
        raise AssertionError("a peer that was never loaded")
    return one, two, here, there, left, right
"""


def run(source):
    done = run_program(
        "from support.interpreters import Interpreter\n"
        f"WORK = {WORK!r}\n" + textwrap.dedent(source),
        env={"VLLM_NIXL_LOG_LEVEL": "ERROR"},
    )
    assert done.stderr == ""


def test_subinterpreters_in_a_row():
    """Each has its own module, whose end leaves the others as they were."""
    run(
        """
        exec(WORK)
        kept = work("main")
        for i in range(5):
            with Interpreter() as sub:
                sub.run(WORK + f"work('sub-{i}')")
            work(f"main-{i}")
        """
    )


def test_subinterpreter_that_ends_with_agents_in_use():
    """Its agents, buffers, prepared lists and listeners end with it."""
    run(
        """
        exec(WORK)
        for i in range(5):
            with Interpreter() as sub:
                sub.run(
                    WORK + f"kept = work('sub-{i}')\\n"
                    "kept[0].kept = kept\\n"
                    "kept[0].start_side_channel_listener(0, b'metadata')\\n"
                )
        work("main")
        """
    )


def test_subinterpreters_that_are_alive_at_exit():
    """From Python 3.14 on the interpreter warns of them."""
    run(
        """
        import warnings

        warnings.filterwarnings("ignore", "remaining subinterpreters")
        subs = [Interpreter() for i in range(3)]
        for sub in subs:
            sub.run(WORK + "kept = work('sub')")
        exec(WORK)
        kept = work("main")
        """
    )


def test_subinterpreters_in_threads():
    """They share the process's threads and caches, but no object."""
    run(
        """
        import threading

        def repeat(name):
            with Interpreter() as sub:
                for i in range(20):
                    sub.run(WORK + f"work('{name}-{i}')")
                ended.append(name)

        ended = []
        threads = [
            threading.Thread(target=repeat, args=(f"sub-{i}",))
            for i in range(4)
        ]
        for thread in threads:
            thread.start()
        exec(WORK)
        for i in range(20):
            work(f"main-{i}")
        for thread in threads:
            thread.join()
        assert len(ended) == 4, ended
        """
    )


def test_agents_of_two_interpreters():
    """One interpreter reads from the memory of another, until that ends."""
    run(
        """
        import os
        import vllm_nixl

        agent = vllm_nixl.NixlAgent("main")
        here = vllm_nixl.shared_buffer(4096)
        agent.register_memory([(here.address, 4096, 0, "")], "DRAM")
        left = agent.prep_xfer_dlist("", [(here.address, 4096, 0)], "DRAM")
        for i in range(3):
            reader, writer = os.pipe()
            with Interpreter() as sub:
                sub.run(
                    "import os, vllm_nixl\\n"
                    "agent = vllm_nixl.NixlAgent('sub')\\n"
                    "buffer = vllm_nixl.shared_buffer(4096)\\n"
                    f"memoryview(buffer)[:] = b'{i}' * 4096\\n"
                    "row = (buffer.address, 4096, 0, '')\\n"
                    "agent.register_memory([row], 'DRAM')\\n"
                    "blob = agent.get_agent_metadata()\\n"
                    f"os.write({writer}, b'%d ' % buffer.address + blob)"
                )
                address, _, blob = os.read(reader, 1 << 16).partition(b" ")
                peer = agent.add_remote_agent(blob)
                right = agent.prep_xfer_dlist(
                    peer, [(int(address), 4096, 0)], "DRAM"
                )
                handle = agent.make_prepped_xfer(
                    "READ", left, [0], right, [0]
                )
                agent.transfer(handle)
                agent.wait(handle, timeout=60)
                assert bytes(here) == b"%d" % i * 4096
                sub.run("os.close(%d)" % writer)
            os.close(reader)
            try:
                agent.transfer(handle)
                agent.wait(handle, timeout=60)
            except vllm_nixl.nixlRemoteDisconnectError as error:
                assert error.peer == "sub"
            else:
                raise AssertionError("read from an interpreter that ended")
        """
    )


@pytest.mark.skipif(
    not sysconfig.get_config_var("Py_GIL_DISABLED"),
    reason="needs a free-threaded build of Python",
)
def test_a_free_threaded_build_enables_the_gil():
    """Objects rely on it, and the module says so."""
    done = run_program(
        """
        import sys
        assert not sys._is_gil_enabled()
        import vllm_nixl
        assert sys._is_gil_enabled()
        """
    )
    assert "vllm_nixl._core" in done.stderr
