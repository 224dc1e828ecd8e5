"""NIXL's telemetry: our agents beside stock ones in the same scene."""

import collections
import importlib.util
import os
import re
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from support.deadline import or_kill, until
from support.peer import child_environment
from support.ports import reserve_port
from support.telemetry import (
    end_scene,
    run_scene,
    samples,
    start_scene,
    types,
)

pytest.importorskip(
    "prometheus_client", reason="prometheus-client is not installed"
)

STOCK = os.environ.get("VLLM_NIXL_STOCK_PYTHON", "")
SIDES = {"ours": (None, "vllm_nixl"), "stock": (STOCK, "nixl")}
TIMES = ("agent_xfer_time", "agent_xfer_post_time")


def variables(exporter, **more):
    return {
        "VLLM_NIXL_ENGINE": "native",
        "NIXL_TELEMETRY_ENABLE": "y",
        "NIXL_TELEMETRY_EXPORTER": exporter,
        "NIXL_TELEMETRY_PROMETHEUS_PORT": str(reserve_port()),
        "NIXL_TELEMETRY_PROMETHEUS_LOCAL": "y",
        **more,
    }


def without_process(found):
    """The samples without the label `pid`."""
    return {
        (name, tuple(pair for pair in labels if pair[0] != "pid")): value
        for (name, labels), value in found.items()
    }


def exact(found):
    """The samples that do not depend on how long something took."""
    return {
        (name, labels): value
        for (name, labels), value in found.items()
        if not name.startswith(TIMES) or name.endswith("_count")
    }


@pytest.mark.parametrize("exporter", ["prometheus", "prometheus_mp"])
def test_both_export_the_same_metrics(exporter, tmp_path):
    scrapes = {}
    for side, (python, module) in SIDES.items():
        scrapes[side], _ = run_scene(
            "kept = play()\nprint(settled())\nsys.stdout.flush()\nos._exit(0)",
            variables(
                exporter,
                NIXL_TELEMETRY_MULTIPROC_DIR=str(tmp_path / side),
                LOCAL_RANK="3",
            ),
            python,
            module,
        )
    ours, stock = (
        without_process(samples(scrapes[side])) for side in ("ours", "stock")
    )
    assert types(scrapes["ours"]) == types(scrapes["stock"])
    assert ours.keys() == stock.keys()
    assert exact(ours) == exact(stock)
    assert any(value == 161192 for value in exact(ours).values())
    for found in (ours, stock):
        for name in TIMES:
            for agent in ("alpha", "beta"):
                of = {
                    key: value
                    for key, value in found.items()
                    if ("agent_name", agent) in key[1]
                    and key[0].startswith(name)
                }
                (count,) = (v for (n, _), v in of.items() if "_count" in n)
                (most,) = (
                    v for (n, la), v in of.items() if ("le", "+Inf") in la
                )
                assert count == most == (5 if agent == "alpha" else 0)


# Registers memory.  For each line that arrives, scrapes the server.
RANK = """
agent = make(NAME)
print("ready", os.getpid(), flush=True)
for line in sys.stdin:
    print(repr(scrape()), flush=True)
os._exit(0)
"""


def next_line(process):
    with or_kill(process):
        line = process.stdout.readline()
    assert line, process.stderr.read()
    return line


def alike(started):
    """What both sides scrape, if it is the same and has both agents."""
    found = {}
    for side, process in started.items():
        process.stdin.write("\n")
        process.stdin.flush()
        found[side] = samples(eval(next_line(process)))
    registered = {
        (dict(labels)["agent_name"], value)
        for (name, labels), value in found["ours"].items()
        if name == "agent_memory_registered_total"
    }
    both = {("ours", 1 << 20), ("stock", 1 << 20)}
    return registered == both and found["ours"] == found["stock"] and found


@pytest.mark.parametrize("first", ["ours", "stock"])
def test_processes_of_both_share_a_folder_and_a_port(first, tmp_path):
    """The first process serves the values of both."""
    env = variables(
        "prometheus_mp", NIXL_TELEMETRY_MULTIPROC_DIR=str(tmp_path)
    )
    started = {}
    try:
        for side in (first, "stock" if first == "ours" else "ours"):
            python, module = SIDES[side]
            source = RANK.replace("NAME", repr(side))
            started[side] = start_scene(source, env, python, module)
            line = ""
            while not line.startswith("ready"):  # stock writes more lines
                line = next_line(started[side])
        found = until(lambda: alike(started), "the values of both from both")
        assert {dict(labels)["pid"] for _, labels in found["ours"]} == {
            str(process.pid) for process in started.values()
        }
    finally:
        for process in started.values():
            process.send_signal(signal.SIGKILL)
            process.communicate()


def test_stocks_reader_reads_our_ring(tmp_path):
    run_scene(
        "kept = play()",
        {
            **variables(None, NIXL_TELEMETRY_DIR=str(tmp_path)),
            "NIXL_TELEMETRY_RUN_INTERVAL": "20",
        },
    )
    where = (
        "import importlib.metadata as m; "
        "print(next(f.locate() for d in ('nixl-cu12', 'nixl-cu13') "
        "for f in (m.files(d) if d in {x.name for x in m.distributions()} "
        "else []) if f.name == 'telemetry_reader' and '.scripts' in str(f)))"
    )
    found = subprocess.run(
        [STOCK, "-c", where],
        capture_output=True,
        text=True,
        env=child_environment(python=STOCK),
        check=False,
    )
    if found.returncode:
        pytest.skip("this stock NIXL has no telemetry_reader")
    program = Path(found.stdout.strip())
    packages = program.parent.parent
    libraries = [
        str(path)
        for path in (
            *packages.glob(".nixl_cu*.mesonpy.libs"),
            *packages.glob("nixl_cu*.libs"),
        )
    ]
    copy = tmp_path / "telemetry_reader"  # wheels lack the x bit
    copy.write_bytes(program.read_bytes())
    copy.chmod(0o755)
    ring = tmp_path / "alpha"
    reader = subprocess.Popen(
        [copy, ring],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "LD_LIBRARY_PATH": ":".join(libraries)},
    )

    def is_empty():
        assert reader.poll() is None, reader.communicate()
        write, read = struct.unpack("=QQ", ring.read_bytes()[:16])
        return read == write > 0

    try:
        until(is_empty, "the reader takes all events", pause=0.01)
    finally:
        reader.send_signal(signal.SIGINT)  # its output is buffered
        with or_kill(reader):
            text, _ = reader.communicate()
    events = collections.Counter()
    for name, value in re.findall(r"Event name: (\w+)\s+Value: (\d+)", text):
        events[name] += int(value)
    times = {name: events.pop(name) for name in TIMES}
    assert times["agent_xfer_time"] > 0
    assert times["agent_xfer_post_time"] > 0
    assert events == {
        "agent_tx_bytes": 65536,
        "agent_rx_bytes": 161192,
        "agent_tx_requests_num": 1,
        "agent_rx_requests_num": 4,
        "agent_memory_registered": 1 << 20,
        "agent_err_not_found": 5,
    }


def test_on_the_engine_nixl_stock_exports():
    """One server, and our agent starts none."""
    probe = subprocess.run(
        [
            STOCK,
            "-c",
            "import nixl, os; print(os.path.dirname(nixl.__file__))",
        ],
        capture_output=True,
        text=True,
        env=child_environment(python=STOCK),
        check=True,
    )
    packages = str(Path(probe.stdout.strip()).parent)
    out, log = run_scene(
        f"""
        sys.path.append({packages!r})
        kept = play()
        assert kept[0].engine == "nixl"
        assert "vllm_nixl._telemetry" not in sys.modules
        print(settled())
        sys.stdout.flush()
        os._exit(0)
        """,
        variables("prometheus", VLLM_NIXL_ENGINE="nixl"),
    )
    found = exact(samples(out))
    alpha = (("agent_name", "alpha"), ("hostname", os.uname().nodename))
    assert "exposer_scrapes_total" in out
    assert found["agent_rx_bytes_total", alpha] == 161192
    assert "telemetry is not exported" not in log


def test_dynamos_ranks_get_their_ports():
    """Dynamo chooses the port of each rank; our agents serve there."""
    dynamo = pytest.importorskip(
        "dynamo.common.utils.nixl_telemetry",
        reason="ai-dynamo is not installed",
    )
    base = reserve_port()
    env = variables("prometheus", NIXL_TELEMETRY_PROMETHEUS_PORT=str(base))
    started = []
    try:
        for rank in range(2):
            port = dynamo.derive_nixl_prometheus_port(
                dynamo.nixl_prometheus_base_port(env), rank, env=env
            )
            env["NIXL_TELEMETRY_PROMETHEUS_PORT"] = str(port)
            source = RANK.replace("NAME", f"'rank{rank}'")
            started.append(start_scene(source, env))
            env["NIXL_TELEMETRY_PROMETHEUS_PORT"] = str(base)
        for rank, process in enumerate(started):
            assert next_line(process).startswith("ready")
            out, _ = end_scene(process, "\n")
            assert {
                dict(labels)["agent_name"] for _, labels in samples(eval(out))
            } == {f"rank{rank}"}
    finally:
        for process in started:
            process.kill()
            process.communicate()


def test_dynamos_telemetry_tests_pass():
    """They are in its wheel; with our package in front of NIXL's."""
    dynamo = pytest.importorskip(
        "dynamo.common.utils.nixl_telemetry",
        reason="ai-dynamo is not installed",
    )
    root = Path(dynamo.__file__).parents[2]
    tests = [
        path
        for path in (
            root / "common/utils/tests/test_nixl_telemetry.py",
            root / "vllm/tests/test_nixl_telemetry_plugin.py",
            root / "vllm/tests/test_vllm_nixl_telemetry.py",
        )
        if path.exists()
    ]
    if importlib.util.find_spec("sglang"):
        name = "sglang/tests/test_sglang_nixl_telemetry_ports.py"
        tests.append(root / name)
    assert tests
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--noconftest",
            "-o",
            "addopts=",
            *map(str, tests),
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "VLLM_NIXL_AS_NIXL": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
