"""`vllm-nixl bench --stock`: ours and stock NIXL, measured in turns."""

import os

import pytest
from support import bench
from support.bench import SMALL

pytestmark = pytest.mark.slow

SIDES = {"ours", "stock", "bare"}


@pytest.mark.parametrize(
    "mode", [["--batch", "1,8"], ["--latency"], ["--workload", "burst"]]
)
def test_stock_is_measured_beside_ours(mode):
    """Its bytes are compared, too."""
    found = bench.measure(*SMALL, *mode, "--block-sizes", "4k", "--stock")
    assert set(found["versions"]) == {"ours", "stock"}
    for point in found["points"]:
        assert set(point["sides"]) == SIDES
        assert point["times_better_than_stock"] > 0


def test_stock_is_not_replaced_by_ours():
    """Our alias of its name, in this environment, is not for its process."""
    found = bench.measure(
        *SMALL,
        "--notifications",
        "--stock",
        env={"VLLM_NIXL_AS_NIXL": "1"},
    )
    polled, slept = found["points"]
    assert set(polled["sides"]) == {"ours", "stock"}
    assert set(slept["sides"]) == {"ours"}
    assert found["versions"]["stock"] != found["versions"]["ours"]


def test_absent_stock_python_is_an_error():
    missing = os.path.join(os.sep, "nowhere", "python")
    done = bench.run("--stock", "--stock-python", missing, status=3)
    assert missing in done.stderr
