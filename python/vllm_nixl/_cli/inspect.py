"""Say in words what metadata contains.

BLOB is an agent's metadata, a publication, or the handshake of vLLM's
connector: raw bytes in a file or on stdin ("-"), or hex or base64, also as
the argument itself.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from . import payload
from .main import CommandError
from .wire import WireError

if TYPE_CHECKING:
    import argparse

    from .output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "blob", metavar="BLOB|FILE|-", help="what to inspect; -: stdin"
    )


def run(options: argparse.Namespace, out: Output) -> int:
    try:
        data = payload.read_argument(options.blob, sys.stdin.buffer)
        facts = payload.facts(data)
    except WireError as error:
        raise CommandError(str(error)) from error
    show(facts, out)
    out.result(facts)
    return 0


def show(facts: dict[str, Any], out: Output) -> None:
    """Write the facts about a blob."""
    signed = "signed" if facts["signed"] else "not signed"
    out.heading(f"{facts['kind']}, {facts['bytes']:,} bytes")
    out.fields(
        [
            ("agent", facts["agent"]),
            ("metadata", f"{facts['metadata_bytes']:,} bytes, {signed}"),
            *facts.get("vllm", {}).items(),
        ],
        indent=2,
    )
    out.heading("connections")
    rows = [(c["backend"], _connection(c)) for c in facts["connections"]]
    out.fields(rows or [("none", "")], indent=2)
    _show_regions(facts["sections"], out)
    if "lists" in facts:
        _show_lists(facts, out)


def _connection(facts: dict[str, Any]) -> str:
    size = f"{facts['bytes']} bytes"
    if "error" in facts:
        return f"{size}; {facts['error']}"
    if facts["backend"] == "SHM" and "pid" in facts:
        where = "this host" if facts["this_host"] else "another host"
        return (
            f"{where} (boot id {facts['boot_id']}), process {facts['pid']} "
            f"of user {facts['uid']}, pid namespace "
            f"{facts['pid_namespace']}, socket {facts['socket']}"
        )
    if facts["backend"] == "VNX" and "instance" in facts:
        part = "some of its regions" if facts["partial"] else "all regions"
        return f"instance {facts['instance']}, {part}, epoch {facts['epoch']}"
    if facts["backend"] == "UCX":
        return f"address of a UCX worker, {size}"
    return size


def _show_regions(sections: list[dict[str, Any]], out: Output) -> None:
    out.heading("regions")
    if not sections:
        out.line("  none")
        return
    out.table(
        ["backend", "memory", "regions", "bytes", "size", "key bytes"],
        [
            (
                part["backend"],
                part["mem_type"],
                part["regions"],
                part["bytes"],
                payload.size(part["bytes"]),
                part["public_bytes"],
            )
            for part in sections
        ],
    )
    part = sections[0]
    for region in part["first"]:
        out.line(
            f"  {region['address']:#x}, {region['bytes']:,} bytes, device "
            f"{region['device']}"
        )
    more = part["regions"] - len(part["first"])
    if more > 0:
        out.line(f"  and {more:,} more")


def _show_lists(facts: dict[str, Any], out: Output) -> None:
    signed = "signed" if facts["publication_signed"] else "not signed"
    out.heading(f"lists ({signed})")
    out.table(
        ["name", "memory", "rows", "bytes", "form"],
        [
            (
                part["name"],
                part["mem_type"],
                part["rows"],
                part["bytes"],
                f"{part['items']} strides" if part["strided"] else "rows",
            )
            for part in facts["lists"]
        ],
    )
