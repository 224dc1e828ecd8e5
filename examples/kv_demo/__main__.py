"""Two processes, prefill and decode, exchange metadata and move a KV cache.

    python examples/kv_demo [--layers N] [--blocks N] [--block-kib N] ...

Prefill fills a KV cache with the shape of vLLM's, registers it and serves its
metadata over the side channel.  Decode fetches the metadata, reads the
scattered blocks of several requests, sleeps until they have arrived, and
checks every byte.  Each transfer notifies prefill, which then frees the blocks
of that request.  The exit status is 0 only if every byte was correct.
"""

from __future__ import annotations

import argparse
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from report import TELLERS, Bar, line, tell, tell_served


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kv_demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    positive = _positive
    parser.add_argument("--layers", type=positive, default=32)
    parser.add_argument("--blocks", type=positive, default=128)
    parser.add_argument(
        "--block-kib",
        type=positive,
        default=64,
        help="KiB of one block in one layer, a multiple of 4 (64)",
    )
    parser.add_argument("--requests", type=positive, default=8)
    parser.add_argument("--seed", type=positive, default=7)
    parser.add_argument(
        "--shared",
        action="store_true",
        help="put prefill's cache into shared buffers, which decode maps",
    )
    parser.add_argument(
        "--timeout",
        type=positive,
        default=120,
        help="seconds after which the demo fails (120)",
    )
    parser.add_argument("--role", choices=("prefill", "decode"), help=_HIDE)
    parser.add_argument("--host", default="127.0.0.1", help=_HIDE)
    parser.add_argument("--port", type=int, default=0, help=_HIDE)
    options = parser.parse_args(arguments)
    if options.block_kib % 4:
        parser.error("--block-kib must be a multiple of 4")
    if options.requests > options.blocks:
        parser.error("--requests must not exceed --blocks")
    return options


_HIDE = argparse.SUPPRESS


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value


class Instance:
    """A child process whose events arrive in a queue."""

    def __init__(self, role: str, extra: list[str], events: Any) -> None:
        self.role = role
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        command = [sys.executable, sys.argv[0], *sys.argv[1:]]
        command += ["--role", role, *extra]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )
        self.reader = threading.Thread(
            target=self._read, args=(events,), daemon=True
        )
        self.reader.start()

    def _read(self, events: Any) -> None:
        for text in self.process.stdout or []:
            try:
                events.put((self, json.loads(text)))
            except ValueError:  # a library wrote to standard output
                print(text, end="", file=sys.stderr)
        self.process.wait()
        events.put((self, {"event": "ended"}))

    def complaint(self) -> str:
        self.errors.seek(0)
        said = self.errors.read().strip()
        status = self.process.returncode
        return f"{self.role} exited with status {status}:\n{said}"

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.reader.join(5)
        self.errors.close()


class Demo:
    """Starts both instances, receives their events and checks them."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.deadline = time.monotonic() + options.timeout
        self.events: queue.Queue[tuple[Instance, Any]] = queue.Queue()
        self.instances: list[Instance] = []
        self.freed: list[str] = []
        self.seen: set[str] = set()
        self.served: dict[str, Any] = {}
        self.bar = Bar()

    def run(self) -> str:
        """Return why the demo failed; "" if it succeeded."""
        try:
            self._start("prefill", [])
            ended = 0
            while ended < 2:
                instance, event = self.events.get(
                    timeout=max(0.0, self.deadline - time.monotonic())
                )
                if event["event"] == "ended":
                    if instance.process.returncode != 0:
                        return instance.complaint()
                    ended += 1
                self._take(event)
                if ended == len(self.instances) == 1:
                    return "prefill exited before it was ready"
            return self._judge()
        except queue.Empty:
            last = ", ".join(sorted(self.seen)) or "nothing"
            return (
                f"not finished after {self.options.timeout} s; events: {last}"
            )
        finally:
            self.bar.clear()
            for instance in self.instances:
                instance.stop()

    def _start(self, role: str, extra: list[str]) -> None:
        self.instances.append(Instance(role, extra, self.events))

    def _take(self, event: dict[str, Any]) -> None:
        kind = event.pop("event")
        self.seen.add(kind)
        if kind == "progress":
            self.bar.update(event["phase"], event["done"], event["of"])
        elif kind == "ready":
            self._start("decode", ["--port", str(event["port"])])
        elif kind == "freed":
            self.freed.append(event["request"])
        elif kind == "served":
            self.served = event
        elif kind in TELLERS:
            self.bar.clear()
            TELLERS[kind](event)

    def _judge(self) -> str:
        missing = {*TELLERS, "served"} - self.seen
        if missing:
            return f"missing events: {', '.join(sorted(missing))}"
        if len(set(self.freed)) != self.options.requests:
            return (
                f"freed {len(self.freed)} of {self.options.requests} requests"
            )
        tell_served(len(self.freed), self.served)
        return ""


def run_instance(options: argparse.Namespace) -> int:
    from cache import Shape

    options.shape = Shape(
        options.layers, options.blocks, options.block_kib * 1024
    )
    if options.role == "prefill":
        from prefill import run
    else:
        from decode import run
    run(options, tell)
    return 0


def main() -> int:
    options = parse()
    if options.role:
        return run_instance(options)
    size = options.layers * options.blocks * options.block_kib / 1024
    memory = "shared buffers" if options.shared else "plain memory"
    line(
        "KV cache",
        f"{options.layers} layers x {options.blocks} blocks x "
        f"{options.block_kib} KiB = {size:,.0f} MiB in {memory}",
    )
    reason = Demo(options).run()
    if reason:
        print(f"FAILED: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
