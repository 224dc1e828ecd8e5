"""Whether the UCX copy that an engine loads is guarded, and why."""

import glob
import os

import pytest
from support import nixl, ucx
from support.program import run_program

ASK = """
import ctypes, os
before = os.environ.get("BEFORE")
if before:
    ctypes.CDLL(before)
import vllm_nixl
for engine in os.environ["ENGINES"].split():
    config = vllm_nixl.nixl_agent_config(engine=engine)
    with vllm_nixl.NixlAgent(engine, config) as agent:
        print(agent.describe()["ucx_guard"])
"""
BEFORE = "off: another part of this process had loaded this copy of UCX before"


@pytest.fixture(params=["native", "nixl"])
def bringer(request):
    """(engine name, the libucp that it uses)"""
    path = ucx.library("nixl")
    if ucx.why_not(path) is not None:
        pytest.skip(ucx.why_not(path))
    if request.param == "nixl" and nixl.why_no_library() is not None:
        pytest.skip(nixl.why_no_library())
    return request.param, path


def ask(engines, path, before="", guard=""):
    env = {
        "ENGINES": engines,
        "BEFORE": before,
        "VLLM_NIXL_LOG_LEVEL": "WARNING",
        "VLLM_NIXL_UCX_GUARD": guard,
        "VLLM_NIXL_UCX_LIBRARY": path,
    }
    return run_program(ASK, env=env)


def libucs_beside(path):
    (found,) = glob.glob(f"{os.path.dirname(path)}/libucs-*.so*")
    return found


def test_private_ucx_copy_is_guarded(bringer):
    name, path = bringer
    assert ask(name, path).stdout.startswith("on: UCX 1.")


def test_preloaded_ucx_copy_is_not_guarded(bringer):
    name, path = bringer
    done = ask(name, path, before=libucs_beside(path))
    assert done.stdout.startswith(BEFORE)


def test_setting_overrides_the_guard_choice(bringer):
    name, path = bringer
    done = ask(name, path, before=libucs_beside(path), guard="1")
    assert done.stdout == "on: VLLM_NIXL_UCX_GUARD=1\n"
    done = ask(name, path, guard="0")
    assert done.stdout == "off: VLLM_NIXL_UCX_GUARD=0\n"


def test_invalid_guard_setting_is_reported(bringer):
    name, path = bringer
    done = ask(name, path, guard="yes")
    assert done.stdout.startswith("on: UCX 1.")
    assert "VLLM_NIXL_UCX_GUARD=yes is ignored" in done.stdout
    assert "VLLM_NIXL_UCX_GUARD=yes is ignored" in done.stderr


def test_engines_sharing_a_copy_report_the_same(bringer):
    """A copy loaded by one engine is not guarded again by another."""
    name, path = bringer
    other = "nixl" if name == "native" else "native"
    if nixl.why_no_library() is not None:
        pytest.skip(nixl.why_no_library())
    first, second = ask(f"{name} {other}", path).stdout.splitlines()
    assert first == second
    assert first.startswith("on: UCX 1.")
