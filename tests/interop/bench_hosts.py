"""Measure between two hosts, beside iperf3.

    scripts/check.sh bench_hosts [--turns N] [BENCH-ARGUMENTS]

The hosts are two network namespaces that a veth pair joins, so this needs
root (or CAP_SYS_ADMIN), ip(8) and iperf3.  `vllm-nixl bench --serve` and
iperf3's server run on one of them, and their clients take turns on the other.
The agents use UCX by TCP (UCX_TLS=tcp).  The best of all turns is printed.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from typing import Any

from support import hosts, ucx
from support.peer import child_environment

SKIPPED = 77
BENCH = [sys.executable, "-m", "vllm_nixl", "bench"]
DEFAULTS = ["--block-sizes", "16k,64k,1m", "--batch", "64", "--repeat", "1"]


def output(two: Any, number: int, command: list[str], env: Any = None) -> str:
    done = subprocess.run(
        [*two.inside(number), *command],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=env,
    )
    return done.stdout


def iperf(two: Any, reverse: bool) -> float:
    """GB/s of one TCP stream to the first host; `reverse`: from it."""
    command = ["iperf3", "-c", two.addresses[0], "-J", "-t", "2"]
    found = json.loads(output(two, 1, command + ["-R"] * reverse))
    return float(found["end"]["sum_received"]["bits_per_second"]) / 8e9


class Rates:
    """The best GB/s of each thing that was measured."""

    def __init__(self) -> None:
        self.best: dict[tuple[str, str], float] = {}

    def add(self, op: str, what: str, rate: float) -> None:
        key = (op, what)
        self.best[key] = max(rate, self.best.get(key, 0.0))

    def show(self) -> None:
        for (op, what), rate in self.best.items():
            ratio = rate / self.best[op, "iperf3"]
            print(f"{op:6} {what:24} {rate:8.2f} GB/s  {ratio:5.2f}")


def turn(two: Any, port: int, more: list[str], env: Any, rates: Rates) -> None:
    # A READ moves bytes from the first host to the second one.
    rates.add("READ", "iperf3", iperf(two, True))
    rates.add("WRITE", "iperf3", iperf(two, False))
    place = f"{two.addresses[0]}:{port}"
    command = [*BENCH, place, *DEFAULTS, *more, "--json"]
    found = json.loads(output(two, 1, command, env))
    for point in found["points"]:
        what = f"{point['block'] >> 10} KiB x {point['batch']}"
        rates.add(point["op"], what, point["sides"]["ours"]["best"]["gbs"])
    route = found["route"]
    if route["path"] != "UCX":
        raise RuntimeError(f"not by UCX: {route}")
    print(f"route: {route['path']}, {route.get('transports')}", flush=True)


def measure(two: Any, turns: int, more: list[str], env: Any) -> None:
    server = two.start(0, [*BENCH, "--serve", "--port", "0"], env)
    listening = two.start(0, ["iperf3", "-s"], env)
    try:
        port = re.search(r"on port (\d+)", server.stdout.readline())
        if port is None:
            raise RuntimeError("bench --serve did not start")
        rates = Rates()
        for _ in range(turns):
            turn(two, int(port[1]), more, env, rates)
        rates.show()
    finally:
        for process in (server, listening):
            process.kill()
            process.wait()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--turns", type=int, default=3, help="how often (3)")
    options, more = parser.parse_known_args()
    missing = hosts.why_none()
    if shutil.which("iperf3") is None:
        missing = "iperf3 is missing (apt-get install iperf3)"
    library = ucx.any_library()
    missing = missing or ucx.why_not(library)
    if missing:
        print(missing)
        return SKIPPED
    two = hosts.two_hosts()
    try:
        env = child_environment(ucx.environment(library, "tcp"))
        measure(two, options.turns, more, env)
    finally:
        two.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
