"""The command line and stock agents: inspect their metadata, doctor them."""

import json

import pytest
import vllm_nixl
from support import cli
from support.nixl import why_no_library

SIZE = 1 << 16


def test_inspect_understands_stocks_metadata(stock):
    there = stock()
    block = there.alloc(SIZE, seed=1)
    found = cli.run_json("inspect", there.metadata().hex())
    assert found["agent"] == there.name
    assert [c["backend"] for c in found["connections"]] == ["UCX"]
    (section,) = found["sections"]
    assert section["mem_type"] == "DRAM"
    assert section["first"][0]["address"] == block.addr
    assert section["first"][0]["bytes"] == SIZE


@pytest.mark.usefixtures("need_ucx")
def test_doctor_reads_from_a_stock_agent(stock):
    there = stock()
    there.alloc(SIZE, seed=1)
    with vllm_nixl.TcpSideChannel() as channel:
        port = channel.start_listener(0, there.metadata(), "127.0.0.1")
        report = cli.run_json(
            "doctor",
            f"127.0.0.1:{port}",
            env={"VLLM_NIXL_UCX_LIBRARY": "", "VLLM_NIXL_ENGINE": "native"},
        )
    found = {f["check"]: f for f in report["findings"]}
    assert "4,096 bytes, not verified" in found["transfer"]["seen"]
    assert "UCX" in found["route"]["seen"]
    assert found["route"]["level"] == "ok"


def test_inspect_understands_metadata_of_the_engine_nixl(peer):
    if why_no_library() is not None:
        pytest.skip(why_no_library())
    ours = peer(env={"VLLM_NIXL_ENGINE": "nixl"})
    ours.alloc(SIZE, seed=1)
    found = cli.run_json("inspect", ours.metadata().hex())
    assert found["agent"] == ours.name
    assert "UCX" in json.dumps(found["connections"])
    assert found["sections"][0]["bytes"] == SIZE


def test_doctor_finds_the_stock_library():
    if why_no_library() is not None:
        pytest.skip(why_no_library())
    done = cli.run("doctor", "--json", env={"VLLM_NIXL_UCX_LIBRARY": "none"})
    found = {f["check"]: f for f in json.loads(done.stdout)["findings"]}
    assert found["engine nixl"]["level"] == "ok"
    assert "POSIX" in found["engine nixl"]["seen"]
    assert "libnixl_capi.so" in found["engine nixl"]["seen"]
