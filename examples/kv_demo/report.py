"""Events from the two instances to the demo, and the demo's output."""

from __future__ import annotations

import json
import sys
from typing import Any, Protocol


class Reporter(Protocol):
    def __call__(self, event: str, **facts: Any) -> None: ...


def tell(event: str, **facts: Any) -> None:
    """Send an event from an instance to the demo: one line of JSON."""
    print(json.dumps({"event": event, **facts}), flush=True)


class Bar:
    """A progress bar, shown on a terminal only."""

    WIDTH = 40

    def __init__(self, wanted: bool = True) -> None:
        self.shown = wanted and sys.stdout.isatty()

    def update(self, phase: str, done: int, of: int) -> None:
        if self.shown:
            filled = self.WIDTH * done // of
            bar = "#" * filled + "." * (self.WIDTH - filled)
            print(f"\r{phase:12} [{bar}] {done}/{of}", end="", flush=True)

    def clear(self) -> None:
        if self.shown:
            print("\r\033[K", end="", flush=True)


def line(name: str, text: str) -> None:
    print(f"{name:12} {text}", flush=True)


def tell_handshake(facts: dict[str, Any]) -> None:
    whole = facts["fetch_ms"] + facts["load_ms"] + facts["prepare_ms"]
    line(
        "handshake",
        f"{whole:.2f} ms: {facts['bytes']:,} bytes of metadata fetched in "
        f"{facts['fetch_ms']:.2f} ms, peer loaded in {facts['load_ms']:.2f} "
        f"ms, {facts['rows']:,} rows prepared in {facts['prepare_ms']:.2f} ms",
    )


def tell_page(facts: dict[str, Any]) -> None:
    line("4 KiB read", f"p50 {facts['p50_us']:.1f} us")


def tell_pulled(facts: dict[str, Any]) -> None:
    rate = facts["bytes"] / facts["seconds"] / 1e9
    line(
        "pull",
        f"{facts['requests']} requests, {facts['pieces']:,} blocks, "
        f"{facts['bytes'] / 1e6:.0f} MB in {facts['seconds'] * 1e3:.1f} ms: "
        f"{rate:.2f} GB/s",
    )
    line(
        "waiting",
        f"decode's thread used {facts['wait_cpu_seconds'] * 1e3:.2f} ms of "
        f"CPU in {facts['wait_seconds'] * 1e3:.1f} ms",
    )


def tell_checked(facts: dict[str, Any]) -> None:
    line("check", f"{facts['bytes']:,} bytes equal, spare blocks unchanged")


def tell_served(freed: int, facts: dict[str, Any]) -> None:
    share = facts["cpu_seconds"] / facts["seconds"] * 100
    line(
        "notified",
        f"prefill freed all {freed} requests and used {share:.2f} % of a "
        f"core in the {facts['seconds']:.2f} s of waiting",
    )


TELLERS = {
    "handshake": tell_handshake,
    "page": tell_page,
    "pulled": tell_pulled,
    "checked": tell_checked,
}


class Narrator:
    """The reporter of an instance that runs alone on its host: for people, or
    with --json one object at the end."""

    def __init__(self, as_json: bool) -> None:
        self.as_json = as_json
        self.bar = Bar(not as_json)
        self.facts: dict[str, Any] = {}
        self.freed = 0

    def __call__(self, event: str, **facts: Any) -> None:
        if event == "progress":
            self.bar.update(facts["phase"], facts["done"], facts["of"])
            return
        self.bar.clear()
        if event == "freed":
            self.freed += 1
        elif event == "ready":
            # On stderr, so that --json writes one object only.
            print(
                f"prefill      listens on port {facts['port']}; start decode "
                "with --host and --port",
                file=sys.stderr,
                flush=True,
            )
        elif event == "served":
            self.facts[event] = {"freed": self.freed, **facts}
            if not self.as_json:
                tell_served(self.freed, facts)
        elif event in TELLERS:
            self.facts[event] = facts
            if not self.as_json:
                TELLERS[event](facts)

    def finish(self) -> None:
        self.bar.clear()
        if self.as_json and self.facts:
            print(json.dumps(self.facts, indent=2))
