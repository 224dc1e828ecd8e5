"""Check this machine, or what answers at HOST:PORT.

Without an address, looks for everything that keeps agents from working, or
from working as fast as they could: engines, UCX, the ptrace scope,
namespaces, limits, environment variables, packages, ports.  Each finding says
what was seen, the cause, and what changes it.

With an address, asks the side channel there, inspects the metadata that it
gets, and reads some bytes if it can.  VLLM_NIXL_SIDE_CHANNEL_SECRET and
VLLM_NIXL_METADATA_SECRET are used if they are set.

The exit status is 0 if nothing is bad.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import environment, packages, ports, remote, routes, system
from .findings import Finding, Machine

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from ..output import Output

GROUPS = (
    ("environment variables", environment.CHECKS),
    ("kernel and limits", system.CHECKS),
    ("packages", packages.CHECKS),
    ("ports", ports.CHECKS),
    # They take longest, and refer to those above.
    ("engines and routes", routes.CHECKS),
)
_STYLES = {"ok": "good", "warning": "warning", "bad": "bad"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    remote.add_arguments(parser)


def run(options: argparse.Namespace, out: Output) -> int:
    if options.address is None:
        return _local(out)
    return remote.run(options, out, show)


def _local(out: Output) -> int:
    machine = Machine()
    found: list[Finding] = []
    for title, checks in GROUPS:
        out.heading(title)
        for check in checks:
            findings = check(machine)
            found += findings
            show(findings, out)
    counts = count(found)
    out.line()
    plural = "" if counts["warning"] == 1 else "s"
    out.line(
        f"{counts['ok']} ok, {counts['warning']} warning{plural}, "
        f"{counts['bad']} bad"
    )
    out.result({**counts, "findings": as_json(found)})
    return status(found)


def count(found: Iterable[Finding]) -> dict[str, int]:
    levels = [finding.level for finding in found]
    return {level: levels.count(level) for level in _STYLES}


def status(found: Iterable[Finding]) -> int:
    """The exit status: 1 if something is bad."""
    return int(any(finding.level == "bad" for finding in found))


def as_json(found: Iterable[Finding]) -> list[dict[str, Any]]:
    return [finding._asdict() for finding in found]


def show(found: Iterable[Finding], out: Output) -> None:
    """Write findings; cause and change below those that are not ok."""
    for finding in found:
        out.fields(
            [(f"{finding.level:8}{finding.check:18}", finding.seen)],
            indent=2,
            style=_STYLES[finding.level],
        )
        if finding.level != "ok":
            out.fields(
                [("cause", finding.cause), ("change", finding.change)],
                indent=10,
            )
