"""Stock agents of several versions and ours on one host, by UCX.

Each version has its own Python; VLLM_NIXL_STOCK_PYTHONS names them, separated
by colons (default: that of the other tests).  The network is the host's, or a
namespace with the loopback device and one interface.
"""

import functools
import os
import re
import subprocess
from pathlib import Path

import pytest
from support import hosts, ucx
from support.memory import pattern
from support.peer import PeerProcess, child_environment
from support.transfers import check_moves

PAGE = Path(__file__).parents[2] / "docs" / "integration.md"
PYTHONS = os.environ.get("VLLM_NIXL_STOCK_PYTHONS", "").split(":")
if PYTHONS == [""]:
    PYTHONS = [os.environ.get("VLLM_NIXL_STOCK_PYTHON", "")]
# Two kinds of interface: veth reports a speed, ifb does not.
NETWORKS = ["host", "veth", "ifb"]


@functools.cache
def version_of(python):
    probe = (
        "from importlib.metadata import version; print(version('nixl-cu12'))"
    )
    done = subprocess.run(
        [python or "false", "-c", probe],
        capture_output=True,
        text=True,
        check=False,
        env=child_environment(None, python),
    )
    return done.stdout.strip() or "none"


def pytest_generate_tests(metafunc):
    if "python" in metafunc.fixturenames:
        metafunc.parametrize(
            "python", PYTHONS, ids=map(version_of, PYTHONS), scope="module"
        )


@pytest.fixture(scope="module", params=NETWORKS)
def inside(request):
    """A command that runs another command in that network."""
    if request.param == "host":
        yield []
        return
    if hosts.why_none() is not None:
        pytest.skip(hosts.why_none())
    try:
        made = hosts.one_host(request.param)
    except OSError as error:
        pytest.skip(f"no network namespace with that interface: {error}")
    yield made.inside(0)
    made.remove()


@pytest.fixture(scope="module", params=ucx.TRANSPORTS)
def pair(request, python, inside):
    """(ours, stock)"""
    path = ucx.any_library()
    if ucx.why_not(path) is not None:
        pytest.skip(ucx.why_not(path))
    env = ucx.environment(path, request.param)
    ours = PeerProcess("vllm_nixl", "ours", {}, env, wrap=inside)
    try:
        stock = PeerProcess(
            "nixl",
            "stock",
            {},
            ucx.TRANSPORTS[request.param],
            python,
            wrap=inside,
        )
    except BaseException:
        ours.close()
        raise
    yield ours, stock
    ours.close()
    # NIXL up to 1.3 crashes at its exit if it has loaded the machine's
    # libibverbs with another copy of libnl-route than its own.
    stock.kill()


def documented():
    """Version of NIXL -> version of its UCX, from docs/integration.md."""
    text = PAGE.read_text().split("## Stock NIXL at the other end")[1]
    rows = re.findall(r"^\| ([\d., ]+) \| ([\d.]+) \| yes \|", text, re.M)
    return {
        version: ucx for names, ucx in rows for version in names.split(", ")
    }


UCX_VERSION = """
import ctypes, os
from support.api import Api

agent = Api("nixl").nixl_agent("probe")
with open("/proc/self/maps") as maps:
    path = next(line.split()[-1] for line in maps if "/libucp" in line)
numbers = [ctypes.c_uint() for _ in range(3)]
ctypes.CDLL(path).ucp_get_version(*map(ctypes.byref, numbers))
print(f"{numbers[0].value}.{numbers[1].value}", flush=True)
os._exit(0)
"""


def test_version_is_documented(python):
    done = subprocess.run(
        [python, "-c", UCX_VERSION],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=child_environment(None, python),
    )
    assert documented()[version_of(python)] == done.stdout.strip()


@pytest.mark.parametrize("initiator", ["ours", "stock"])
def test_versions_exchange_every_byte(pair, initiator):
    """READ, WRITE, their notifications, and notifications of any size."""
    here, there = pair if initiator == "ours" else pair[::-1]
    check_moves(here, there)
    for size in (0, 1, 300_000):
        here.send_notif(there.name, pattern(size, size))
        assert there.gather_notifs(1) == [(here.name, pattern(size, size))]
