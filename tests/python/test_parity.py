"""Every engine refuses wrong input with the same exception class, message and
row.

The table is that of test_wrong_input; each engine runs it in a separate
process (support.parity), because a process loads at most one libucp.
"""

import functools
import json

import pytest
from support.nixl import why_no_library
from support.program import run_program

pytestmark = pytest.mark.beyond_stock

PROGRAM = "import json; from support import parity; print(json.dumps({}))"
OUTCOMES = PROGRAM.format("parity.outcomes()")
WHY_NO_UCX = """
import vllm_nixl
with vllm_nixl.NixlAgent("probe") as agent:
    print(agent.describe().get("ucx", "no libucp was found"))
"""
NATIVE = {"VLLM_NIXL_ENGINE": "native", "VLLM_NIXL_UCX_LIBRARY": "none"}
UCX = {
    "VLLM_NIXL_ENGINE": "native",
    "VLLM_NIXL_UCX_LIBRARY": None,
    "VLLM_NIXL_SAME_HOST": "0",
}
NIXL = {"VLLM_NIXL_ENGINE": "nixl", "NIXL_LOG_LEVEL": "FATAL"}


@functools.cache
def run_on(engine):
    """The results of the program on that engine."""
    env = {"native": NATIVE, "ucx": UCX, "nixl": NIXL}[engine]
    return json.loads(run_program(OUTCOMES, env=env).stdout.splitlines()[-1])


def need(engine):
    if engine == "ucx":
        said = run_program(WHY_NO_UCX, env=UCX).stdout.strip()
        if not said.startswith("UCX"):
            pytest.skip(said)
    elif why_no_library():
        pytest.skip(why_no_library())


@pytest.fixture(scope="module", params=["ucx", "nixl"])
def other(request, module):
    need(request.param)
    return run_on(request.param)


def test_requested_engines_are_used(module, other):
    assert run_on("native")["path"] == "process"
    assert (other["engine"], other["path"]) in (
        ("native", "UCX"),
        ("nixl", "UCX"),
    )


def test_engines_refuse_wrong_input_identically(other):
    mine, theirs = run_on("native")["cases"], other["cases"]
    assert len(mine) > 100
    differing = {
        name: (mine[name], theirs.get(name))
        for name in mine
        if mine[name] != theirs.get(name)
    }
    assert differing == {}
    assert set(theirs) == set(mine)


def test_every_case_of_the_table_is_refused(module):
    for name, (kind, _, _) in run_on("native")["cases"].items():
        assert kind != "nothing was raised", name


def test_nixl_errors_name_call_and_status(module):
    for name, (kind, text, _) in run_on("native")["cases"].items():
        if kind.startswith("nixl"):
            status, operation, cause = text.split(": ", 2)
            assert status.startswith("NIXL_ERR_"), name
            assert operation.isidentifier(), name
            assert cause.strip(), name
            assert not cause.endswith("."), name
