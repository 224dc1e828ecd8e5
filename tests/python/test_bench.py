"""`vllm-nixl bench`: what it measures is complete and consistent, and every
end of a side ends or spares the other."""

import importlib.util
import json
import os
import signal

import pytest
from support import bench
from support.bench import SMALL
from support.ports import reserve_port

pytestmark = [pytest.mark.slow, pytest.mark.beyond_stock]

if importlib.util.find_spec("numpy") is None:
    pytest.skip("numpy is not installed", allow_module_level=True)

PARTS = ("Prep", "Post", "Tx")
NIXLBENCH = [
    "Block Size",
    "Batch Size",
    "B/W (GB/s)",
    "Avg Lat. (us)",
    *(f"{kind} {part} (us)" for part in PARTS for kind in ("Avg", "P99")),
]


@pytest.fixture
def serve(opened):
    """serve(*arguments): a running `bench --serve`, and its port."""

    def start(*arguments):
        server = bench.Running("--serve", "--port", "0", *arguments)
        opened.append(server)
        return server, server.port()

    return start


@pytest.fixture
def client(opened):
    """client(port, *arguments): a running `bench HOST:PORT`."""

    def start(port, *arguments):
        started = bench.Running(f"127.0.0.1:{port}", *arguments)
        opened.append(started)
        return started

    return start


def check_transfers(sample, size, descs):
    """The figures of a sample agree with each other."""
    count = sample["iterations"]
    assert count >= 1
    assert sample["bytes"] == count * size
    parts = [sample[f"{part}_us"] for part in ("prep", "post", "tx")]
    total = sum(part["avg"] for part in parts) * count / 1e6
    assert sample["seconds"] == pytest.approx(total)
    rate = sample["bytes"] / sample["seconds"] / 1e9
    assert sample["gbs"] == pytest.approx(rate)
    each = sample["seconds"] / count / descs * 1e6
    assert sample["latency_us"] == pytest.approx(each)
    assert sample["cpu_s_per_gib"] > 0
    for part in parts:
        assert 0 <= part["p50"] <= part["p99"] <= part["longest"]


# -- One host ----------------------------------------------------------------


def test_table_has_every_point_and_side():
    found = bench.measure(
        *SMALL, "--block-sizes", "4k,64k", "--batch", "1,16", "--repeat", "2"
    )
    wanted = {
        (op, block, batch)
        for op in ("READ", "WRITE")
        for block in (4096, 65536)
        for batch in (1, 16)
    }
    points = found["points"]
    assert len(points) == len(wanted)
    assert {(p["op"], p["block"], p["batch"]) for p in points} == wanted
    for point in points:
        assert set(point["sides"]) == {"ours", "bare"}
        for side in point["sides"].values():
            assert len(side["samples"]) == 2
            assert side["best"] in side["samples"]
            best = max(sample["gbs"] for sample in side["samples"])
            assert side["best"]["gbs"] == best
            for sample in side["samples"]:
                size = point["block"] * point["batch"]
                check_transfers(sample, size, point["batch"])
        ours, bare = (
            point["sides"][name]["best"]["gbs"] for name in ("ours", "bare")
        )
        assert point["of_bare"] == pytest.approx(ours / bare)
    assert found["route"]["path"] == "SHM"
    assert found["machine"]["cores"] == os.cpu_count()
    assert found["versions"]["ours"]


def test_batches_are_cut_to_the_memory():
    found = bench.measure(
        *SMALL, "--block-sizes", "1m", "--batch", "1,64,1024", "--op", "read"
    )
    assert [point["batch"] for point in found["points"]] == [1, 8]
    assert "a batch of 8 is the largest" in found["notes"][0]


def test_latency():
    found = bench.measure(*SMALL, "--latency", "--block-sizes", "4k")
    assert [point["op"] for point in found["points"]] == ["READ", "WRITE"]
    for point in found["points"]:
        times = point["sides"]["ours"]["best"]["us"]
        assert 0 < times["p50"] <= times["p99"] <= times["p99.9"]
        assert point["of_bare"] > 0


def test_notifications():
    found = bench.measure(*SMALL, "--notifications")
    assert [point["sleep"] for point in found["points"]] == [False, True]
    for point in found["points"]:
        assert point["sides"]["ours"]["best"]["iterations"] >= 1
        assert set(point["sides"]) == {"ours"}


def test_burst_is_compared_with_one_descriptor():
    found = bench.measure(*SMALL, "--workload", "burst")
    points = [(p["op"], p["requests"]) for p in found["points"]]
    assert points == [(o, n) for o in ("READ", "WRITE") for n in (1, 8)]
    for point in found["points"]:
        best = point["sides"]["ours"]["best"]
        descs = point["requests"] * point["layers"] * point["blocks"]
        check_transfers(best, descs * point["block"], descs)
        check_transfers(best["ceiling"], descs * point["block"], 1)
        ratio = best["gbs"] / best["ceiling"]["gbs"]
        assert best["of_ceiling"] == pytest.approx(ratio)


def test_shared_buffers():
    found = bench.measure(
        *SMALL, "--shared", "--block-sizes", "16k", "--batch", "8"
    )
    assert found["options"]["shared"]
    assert len(found["points"]) == 2


def test_output_is_nixlbenchs_table_and_a_file(tmp_path):
    file = tmp_path / "bench.json"
    small = [*SMALL, "--block-sizes", "4k", "--batch", "4", "--op", "read"]
    said = bench.run(*small, "--json", str(file)).stdout.splitlines()
    heading = said.index("READ") + 1
    columns = [c.strip() for c in said[heading].split("  ") if c.strip()]
    assert columns == [*NIXLBENCH, "CPU s/GiB", "bare (GB/s)", "of bare"]
    cells = said[heading + 1].split()
    assert cells[:2] == ["4k", "4"]
    assert len(cells) == len(columns)
    assert len(json.loads(file.read_text())["points"]) == 1


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--block-sizes", "100"], 2, "multiple of 128"),
        (["--batch", "0"], 2, "above 0"),
        (["--size", "1000"], 2, "whole pages"),
        (["--seconds", "0"], 2, "above 0"),
        (["--plot", "x.pdf"], 2, ".svg or .png"),
        (["--latency", "--notifications"], 2, "not allowed with"),
        (["--size", "64k", "--block-sizes", "1m"], 3, "--size"),
        (
            ["--workload", "burst", "--block-sizes", "1m", "--size", "8m"],
            3,
            "no burst of 1 requests or more, which needs --size 256m",
        ),
        (["--stock", "--shared"], 3, "no shared buffers"),
        (["--stock", "somewhere"], 3, "of this host"),
        (["--notifications", "--plot", "x.svg"], 3, "has no plot"),
    ],
)
def test_what_cannot_be_measured_is_said(arguments, status, text):
    assert text in bench.run(*arguments, status=status).stderr


@pytest.mark.skipif(
    importlib.util.find_spec("nixl") is not None,
    reason="stock NIXL is in this Python",
)
def test_absent_stock_is_said():
    done = bench.run("--stock", env={"VLLM_NIXL_STOCK_PYTHON": None}, status=3)
    assert "pip install nixl" in done.stderr


# -- Verification ------------------------------------------------------------


@pytest.mark.parametrize("op", ["READ", "WRITE"])
def test_transfer_without_bytes_is_noticed(op):
    import numpy as np
    from vllm_nixl._bench.impl import Impl
    from vllm_nixl._bench.reader import Reader

    places = np.array([3, 1, 2]), np.array([0, 5, 7])
    with Reader(Impl("ours"), 1 << 20) as reader:
        reader.verify(op, 4096, *places)
        move = reader.run
        reader.run = lambda handle: 0.0
        with pytest.raises(RuntimeError, match="bytes are wrong"):
            reader.verify(op, 4096, *places)
        reader.run = move
        reader.verify("READ", 4096, *places)


def test_wrong_plan_of_a_bare_loop_is_refused():
    from vllm_nixl._bench.child import BenchError
    from vllm_nixl._bench.turns import Side

    order = {"mine": [0, 1], "theirs": [1, 0], "batch": 1, "passes": 5}
    with Side("bare", {"size": 1 << 20}) as side:
        side.start()
        taken = side.ask("copy", block=4096, **order)["seconds"]
        assert len(taken) == 5
        assert min(taken) > 0
        for wrong in ({"block": 100}, {"block": 1 << 20}):
            with pytest.raises(BenchError, match="Invalid argument"):
                side.ask("copy", **wrong, **order)


# -- Plots -------------------------------------------------------------------


@pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None,
    reason="matplotlib is not installed",
)
@pytest.mark.parametrize("mode", [[], ["--latency"], ["--workload", "burst"]])
def test_plots(mode, tmp_path):
    svg = tmp_path / "plot.svg"
    bench.run(*SMALL, *mode, "--block-sizes", "4k", "--plot", str(svg))
    text = svg.read_text()
    assert "<svg" in text
    # Letters are drawn, but matplotlib keeps each text as a comment.
    unit = "latency (µs)" if "--latency" in mode else "bandwidth (GB/s)"
    for label in (unit, "vllm_nixl", "bare loop", "READ"):
        assert label in text


@pytest.mark.skipif(
    importlib.util.find_spec("matplotlib") is None,
    reason="matplotlib is not installed",
)
def test_plot_as_png(tmp_path):
    png = tmp_path / "plot.png"
    small = [*SMALL, "--block-sizes", "4k,8k", "--batch", "1"]
    bench.run(*small, "--plot", str(png), env={"DISPLAY": None})
    assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert png.stat().st_size > 10_000


# -- Two hosts ---------------------------------------------------------------

POINT = [*SMALL, "--block-sizes", "4k", "--batch", "4"]
LONG = ["--seconds", "30", "--repeat", "1", "--no-verify"]


@pytest.mark.parametrize(
    "mode", [[], ["--latency"], ["--notifications"], ["--workload", "burst"]]
)
def test_client_measures_with_a_server(serve, mode):
    server, port = serve("--size", "4m")
    small = [*SMALL, "--block-sizes", "4k"]
    found = bench.measure(f"127.0.0.1:{port}", *small, *mode)
    assert found["options"]["size"] == 4 << 20
    assert found["peer_machine"]["cores"] == os.cpu_count()
    for point in found["points"]:
        assert set(point["sides"]) == {"ours"}
    server.line("measures")
    server.line("has ended")


def test_server_with_too_little_memory_is_said(serve):
    _, port = serve("--size", "64k")
    place = f"127.0.0.1:{port}"
    done = bench.run(place, "--block-sizes", "1m", status=3)
    assert "larger than the memory of 64k" in done.stderr


def test_server_takes_one_client_after_the_other(serve):
    server, port = serve("--size", "4m")
    for _ in range(2):
        bench.measure(f"127.0.0.1:{port}", *POINT)
        server.line("measures")
        server.line("has ended")
    server.process.send_signal(signal.SIGINT)
    server.end(130)


def test_server_goes_on_when_a_client_dies(serve, client):
    server, port = serve("--size", "4m")
    first = client(port, *POINT, *LONG)
    server.line("measures")
    busy = bench.run(f"127.0.0.1:{port}", *POINT, status=3)
    assert "it serves bench-" in busy.stderr
    first.kill()
    server.line("is lost")
    bench.measure(f"127.0.0.1:{port}", *POINT)


def test_client_ends_when_the_server_dies(serve, client):
    server, port = serve("--size", "4m")
    running = client(port, *POINT, *LONG)
    server.line("measures")
    server.process.kill()
    assert "vllm-nixl: ours:" in running.end(3)


def test_nobody_serves():
    place = f"127.0.0.1:{reserve_port()}"
    done = bench.run(place, *POINT, status=3)
    assert "vllm-nixl: ours:" in done.stderr
