"""Two processes, prefill and decode, exchange metadata and move a KV cache.

    python examples/kv_demo [--layers N] [--blocks N] [--block-kib N] ...

or, with one process on each of two hosts,

    python examples/kv_demo --role prefill
    python examples/kv_demo --role decode --host HOST_OF_PREFILL

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

from options import add_arguments, check
from report import TELLERS, Bar, Narrator, line, tell, tell_served
from vllm_nixl import NixlError


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kv_demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.add_argument(
        "--json", action="store_true", help="write one JSON object"
    )
    options = parser.parse_args(arguments)
    check(parser, options)
    return options


class Instance:
    """A child process whose events arrive in a queue."""

    def __init__(self, role: str, extra: list[str], events: Any) -> None:
        self.role = role
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        command = [sys.executable, sys.argv[0], *sys.argv[1:]]
        command += ["--events", "--role", role, *extra]
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
        self.facts: dict[str, Any] = {}
        self.bar = Bar(not options.json)

    def run(self) -> str:
        """Return why the demo failed; "" if it succeeded."""
        try:
            self._start("prefill", ["--host", "127.0.0.1", "--port", "0"])
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
            place = ["--host", "127.0.0.1", "--port", str(event["port"])]
            self._start("decode", place)
        elif kind == "freed":
            self.freed.append(event["request"])
        elif kind == "served":
            self.served = event
        elif kind in TELLERS:
            self.facts[kind] = event
            if not self.options.json:
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
        self.facts["served"] = {"freed": len(self.freed), **self.served}
        if not self.options.json:
            tell_served(len(self.freed), self.served)
        return ""


def run_instance(options: argparse.Namespace) -> int:
    if options.role == "prefill":
        from prefill import run
    else:
        from decode import run
    if options.events:
        run(options, tell)
        return 0
    narrator = Narrator(options.json)
    try:
        run(options, narrator)
    except (NixlError, OSError, ValueError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    finally:
        narrator.finish()
    return 0


def main() -> int:
    options = parse()
    if options.role:
        return run_instance(options)
    size = options.layers * options.blocks * options.block_kib / 1024
    memory = "shared buffers" if options.shared else "plain memory"
    if not options.json:
        line(
            "KV cache",
            f"{options.layers} layers x {options.blocks} blocks x "
            f"{options.block_kib} KiB = {size:,.0f} MiB in {memory}",
        )
    demo = Demo(options)
    reason = demo.run()
    if reason:
        print(f"FAILED: {reason}", file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(demo.facts, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
