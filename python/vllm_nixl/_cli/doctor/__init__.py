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

from typing import TYPE_CHECKING

from . import environment, packages, ports, remote, routes, system
from .findings import LEVELS, Finding, Machine, as_json, show, status

if TYPE_CHECKING:
    import argparse

    from ..output import Output

GROUPS = (
    ("environment variables", environment.CHECKS),
    ("kernel and limits", system.CHECKS),
    ("packages", packages.CHECKS),
    ("ports", ports.CHECKS),
    # They take longest, and refer to those above.
    ("engines and routes", routes.CHECKS),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    remote.add_arguments(parser)


def run(options: argparse.Namespace, out: Output) -> int:
    if options.address is None:
        return _local(out)
    return remote.run(options, out)


def _local(out: Output) -> int:
    machine = Machine()
    found: list[Finding] = []
    for title, checks in GROUPS:
        out.heading(title)
        for check in checks:
            findings = check(machine)
            found += findings
            show(findings, out)
    levels = [finding.level for finding in found]
    counts = {level: levels.count(level) for level in LEVELS}
    out.line()
    plural = "" if counts["warning"] == 1 else "s"
    out.line(
        f"{counts['ok']} ok, {counts['warning']} warning{plural}, "
        f"{counts['bad']} bad"
    )
    out.result({**counts, "findings": as_json(found)})
    return status(found)
