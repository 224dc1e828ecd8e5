"""Our libnixl_capi.so and every other agent, each in its own process: NIXL's
library by the same C interface, NIXL's Python, and our Python.

The file of NIXL's library is in VLLM_NIXL_LIBRARY, that of a Python with the
`nixl` wheel in VLLM_NIXL_STOCK_PYTHON.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import vllm_nixl
from support import blob, ucx
from support.memory import pattern
from support.peer import PeerError

OURS = f"capi:{Path(vllm_nixl.__file__).with_name('libnixl_capi.so')}"
STOCK = f"capi:{os.environ.get('VLLM_NIXL_LIBRARY', '')}"
STOCK_PYTHON = os.environ.get("VLLM_NIXL_STOCK_PYTHON", "")
SLOT, COUNT, ROUNDS, STAMP = 4096, 256, 512, 1 << 40

# Module and Python of each partner of our library.
PARTNERS = {
    "ours by C": (OURS, None),
    "stock by C": (STOCK, None),
    "ours by Python": ("vllm_nixl", None),
    "stock by Python": ("nixl", STOCK_PYTHON),
}
MESSAGES = [b"a\0b", b"", b"\0", bytes(range(256)), b"x" * 300_000]


@pytest.fixture
def start(names, opened, pool):
    """start(kind): an agent of that kind in its own process."""

    def made(kind):
        module, python = PARTNERS[kind]
        if kind == "stock by Python":
            env = {}
        else:
            path = ucx.any_library()
            if ucx.why_not(path) is not None:
                pytest.skip(ucx.why_not(path))
            env = {"VLLM_NIXL_ENGINE": "native", "VLLM_NIXL_UCX_LIBRARY": path}
        peer, lease = pool.take(module, names(), {}, env, python)
        opened.append(lease)
        peer.block = peer.alloc(SLOT * COUNT)
        return peer

    return made


@pytest.fixture(params=PARTNERS)
def partner(request):
    return request.param


@pytest.fixture(params=["initiator", "target"])
def pair(request, partner, start, meet):
    """(initiator, target): our library is the one that the parameter names."""
    sides = start("ours by C"), start(partner)
    here, there = sides if request.param == "initiator" else sides[::-1]
    meet(here, there)
    return here, there


def test_reads_return_every_byte(pair):
    here, there = pair
    there.stamp_slots(there.block.key, SLOT, STAMP)
    arguments = (here.block.key, SLOT, there.name, there.block.addr)
    assert here.read_slots(*arguments, ROUNDS, STAMP) == []
    assert here.read_slots_at_once(*arguments, STAMP) == 0


def test_written_data_precedes_its_notification(pair):
    here, there = pair
    here.stamp_slots(here.block.key, SLOT)
    there.send("check_slots_as_told", there.block.key, SLOT, COUNT)
    here.write_slots(here.block.key, SLOT, there.name, there.block.addr, COUNT)
    wrong, seen = there.answer()
    assert (wrong, seen) == ([], list(range(COUNT)))
    assert there.checksum(there.block.key) == here.checksum(here.block.key)


@pytest.mark.parametrize("operation", ["READ", "WRITE"])
def test_transfers_without_prepared_lists_move_every_byte(pair, operation):
    here, there = pair
    here.fill(here.block.key, 1)
    there.fill(there.block.key, 2)
    rows = [(i * 3 * SLOT + 13, SLOT + i) for i in range(40)]
    left = [(here.block.addr + at, size, 0) for at, size in rows]
    right = [(there.block.addr + at + 4, size, 0) for at, size in rows]
    assert here.move(operation, left, right, there.name, b"moved\0") == "DONE"
    ours = bytearray(pattern(1, SLOT * COUNT))
    theirs = bytearray(pattern(2, SLOT * COUNT))
    for at, size in rows:
        if operation == "READ":
            ours[at : at + size] = theirs[at + 4 : at + 4 + size]
        else:
            theirs[at + 4 : at + 4 + size] = ours[at : at + size]
    assert here.read(here.block.key) == ours
    assert there.read(there.block.key) == theirs
    assert there.gather_notifs(1) == [(here.name, b"moved\0")]


def test_notifications_of_any_bytes_arrive_in_order(pair):
    here, there = pair
    for one, other in ((here, there), (there, here)):
        for message in MESSAGES:
            one.send_notif(other.name, message)
        got = other.gather_notifs(len(MESSAGES))
        assert got == [(one.name, message) for message in MESSAGES]


def test_empty_notification_of_a_transfer_arrives(partner, start, meet):
    """Which NIXL's Python cannot send."""
    here, there = start("ours by C"), start(partner)
    meet(here, there)
    rows = [(0, SLOT)]
    local = here.prepare("", [(here.block.addr + a, n, 0) for a, n in rows])
    remote = here.prepare(
        there.name, [(there.block.addr + a, n, 0) for a, n in rows]
    )
    handle = here.make("WRITE", local, remote)
    here.post_with_empty_notif(handle)
    here.finish(handle)
    assert there.gather_notifs(1) == [(here.name, b"")]


def test_forgotten_peer_is_unknown(pair):
    here, there = pair
    block = there.block
    assert here.knows(there.name, block)
    here.remove(there.name)
    assert not here.knows(there.name)
    rows = [(here.block.addr, SLOT, 0)], [(block.addr, SLOT, 0)]
    with pytest.raises(PeerError):
        here.move("READ", *rows, there.name)
    here.add(there.metadata())
    assert here.move("READ", *rows, there.name) == "DONE"


def test_library_finds_the_ucx_of_its_site_packages(names, opened, pool):
    """In a process in which our Python is not loaded."""
    packages = Path(vllm_nixl.__file__).parents[1]
    if not (packages / "libucx").exists():
        pytest.skip(f"{packages} has no libucx")
    env = {"VLLM_NIXL_ENGINE": "native", "VLLM_NIXL_UCX_LIBRARY": None}
    peer, lease = pool.take(OURS, names(), {}, env)
    opened.append(lease)
    assert b"UCX" in blob.parse(peer.metadata()).connections


def test_library_in_a_process_with_our_python_shares_everything():
    """Two agents of one process, one by C and one by Python, reach each other
    within the process, and the library is there once."""
    program = f"""
import ctypes
from support import capi
from support.api import Api
from support.endpoint import Endpoint
import vllm_nixl

here, there = Endpoint("vllm_nixl", "by Python"), Endpoint({OURS!r}, "by C")
block, room = there.alloc(4096, seed=1), here.alloc(4096)
here.add(there.metadata())
there.add(here.metadata())
assert here.agent.describe("by C")["path"] == "process"
rows = [(room.addr, 4096, 0)], [(block.addr, 4096, 0)]
assert here.move("READ", *rows, "by C", b"read") == "DONE"
assert there.gather_notifs(1) == [("by Python", b"read")]
assert here.checksum(room.key) == there.checksum(block.key)
maps = open("/proc/self/maps").read().split()
libraries = {{path for path in maps if "libvllm_nixl" in path}}
assert len(libraries) == 1, libraries
there.close()
here.close()
"""
    env = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
    }
    subprocess.run([sys.executable, "-c", program], env=env, check=True)
