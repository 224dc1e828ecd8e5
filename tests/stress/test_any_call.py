"""Every method with arguments that make no sense, in every combination.

Whatever comes is an exception or an answer; the process lives, the agent
works, and nothing is left behind.  In a process of its own, so that a crash is
a failure and not the end of the tests.
"""

import pytest
from support.program import run_program

pytestmark = [pytest.mark.slow, pytest.mark.beyond_stock]

PROGRAM = """
import array, faulthandler, gc, inspect, random, signal
from support import usage
from support.endpoint import Endpoint

faulthandler.enable()
faulthandler.dump_traceback_later(100, exit=True)
api_name = MODULE
dice = random.Random({seed})
here, there = Endpoint(MODULE, "here"), Endpoint(MODULE, "there")
local, remote = here.alloc(65536, seed=1), there.alloc(65536, seed=2)
here.add(there.metadata())
agent, api = here.agent, here.api

class Odd:
    # Its conversions do harm, or fail.
    def __index__(self):
        raise RuntimeError("no number")
    def __len__(self):
        return 5
    def __getitem__(self, i):
        return self
    def __iter__(self):
        return iter([self])
    def __bool__(self):
        raise RuntimeError("neither")

class Grows(list):
    def __iter__(self):
        self.append(self)
        return list.__iter__(self)

row = (local.addr, 64, 0)
left = agent.prep_xfer_dlist("", [row] * 4, "DRAM")
right = agent.prep_xfer_dlist("there", [(remote.addr, 64, 0)] * 4, "DRAM")
xfer = agent.make_prepped_xfer("READ", left, [0], right, [0])
gone = agent.make_prepped_xfer("READ", left, [0], right, [0])
gone.release()
descs = agent.get_xfer_descs([row], "DRAM")
reg = agent.get_reg_descs([(*row, "")], "DRAM")
nested = []
nested.append(nested)

def values():
    return dice.choice([
        None, True, 0, 1, -1, 2**31, 2**63, 2**64, 2**200, 0.5,
        float("nan"), "", "here", "there", "nobody", "DRAM", "VRAM", "READ",
        "WRITE", "UCX", "SHM", "x" * 70000, "\\udcff", "\\0", b"", b"\\0",
        b"there", b"UCX", b"x" * 1000, bytearray(b"y" * 24), [], (), dict(),
        set(), [0], [1, 2], [-1], [2**64], [None], ["UCX"], [row],
        [row] * 3, [(1, 2)], [(1, 2, 3, 4, 5)], [(-1, 0, 0)], [[row]],
        [(*row, "")], [(*row, b"m")], (row, row), array.array("q", [0, 1]),
        array.array("d", [0.5]), array.array("Q", [2**64 - 1]),
        memoryview(bytes(24)), memoryview(array.array("Q", [1] * 15)).cast(
            "B").cast("Q", [5, 3]),
        range(3), iter([1]), (x for x in [0]), object(), type, len, Odd(),
        Grows(), nested, left, right, xfer, gone, descs, reg, agent,
        api.DRAM_SEG, api.NixlError("x"), lambda: 0, ..., 1j,
    ])

# close() is the one call after which nothing else is to work; the waits get
# a timeout of their own below; the rest is called as it comes.
skipped = ("close", "wait_async", "notifications")
methods = [
    name for name in dir(agent)
    if callable(getattr(agent, name)) and not name.startswith("__")
    and name not in skipped
]
assert len(methods) > 40, methods
targets = [(agent, name) for name in methods]
for thing in (left, xfer, descs, reg):
    targets += [
        (thing, name) for name in dir(thing)
        if callable(getattr(thing, name)) and name in (
            "addDesc", "append", "index", "remDesc", "__getitem__",
            "__setitem__", "__setstate__", "__eq__", "descCount", "trim",
            "getType", "isEmpty", "__exit__")
    ]

def call():
    owner, name = dice.choice(targets)
    count = dice.randint(0, 6)
    args = [values() for _ in range(count)]
    keywords = dict()
    if dice.random() < 0.3:
        names = ["handle", "timeout", "notif_msg", "backends", "mem_type",
                 "descs", "operation", "nonsense", "metadata"]
        keywords[dice.choice(names)] = values()
    if name == "wait":
        args, keywords = args[:1], dict(timeout=0)
    if name == "request_remote_metadata":
        keywords = dict(timeout_ms=1)
    try:
        getattr(owner, name)(*args, **keywords)
    except (MemoryError, SystemError) as error:
        raise AssertionError((name, args, keywords)) from error
    except Exception:
        return False
    return True

def still_works():
    here.add(there.metadata())
    here.fill(local.key, 3)
    here.move("READ", [(local.addr, 64, 0)], [(remote.addr, 64, 0)], "there")
    assert here.read(local.key, 0, 64) == there.read(remote.key, 0, 64)
    agent.stop_side_channel_listener()
    agent.get_new_notifs()

answers = 0
for number in range({count}):
    answers += call()
    if number % 2000 == 0:
        agent.notifs = dict()
        still_works()
still_works()
assert answers > {count} // 200, answers
"""


@pytest.mark.parametrize("seed", range(3))
def test_calls_without_sense_do_no_harm(seed):
    run_program(PROGRAM.format(seed=seed, count=20000), timeout=150)
