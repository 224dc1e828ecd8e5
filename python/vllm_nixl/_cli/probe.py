"""What `vllm-nixl` does in child processes; see child.py.

Each task is a function whose arguments come as JSON.  It sends results, which
are dicts, and ends.  A task that raises sends {"error": text}.
"""

from __future__ import annotations

import base64
import ctypes
import importlib
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

from .. import NixlAgent, nixl_agent_config
from . import channel, rows, wire

if TYPE_CHECKING:
    from collections.abc import Sequence

_SECONDS = 10
_READ_MAX = 1 << 20  # bytes that a verification reads at most


class Send(Protocol):
    def __call__(self, **facts: Any) -> None: ...


def main(task: str, output: int, arguments: str) -> None:
    """Run one task; the results go to the descriptor `output`."""

    def send(**facts: Any) -> None:
        os.write(output, json.dumps(facts).encode() + b"\n")

    try:
        globals()[f"task_{task}"](send, **json.loads(arguments))
    except Exception as error:
        send(error=f"{error}" or type(error).__name__)


# -- Libraries ---------------------------------------------------------------


def task_open_library(
    send: Send, files: Sequence[str], version: str | None = None
) -> None:
    """Open the first file that can be opened; say where it is."""
    failures = []
    for file in files:
        try:
            library = ctypes.CDLL(file, ctypes.RTLD_LOCAL | os.RTLD_NOW)
        except OSError as error:
            failures.append(str(error))
            continue
        send(
            path=_mapped(file),
            version=_version(library, version),
            failures=failures,
        )
        return
    send(error="; ".join(failures) or "no file to open")


def _mapped(file: str) -> str:
    """The path of a library that was opened by this path or name."""
    if "/" in file:
        return file
    stem = file.partition(".so")[0] + ".so"
    with open("/proc/self/maps") as maps:
        for line in maps:
            path = line.rstrip("\n").rpartition(" ")[2]
            if os.path.basename(path).startswith(stem):
                return path
    return file


def _version(library: ctypes.CDLL, function: str | None) -> str | None:
    """What a `const char *function(void)` of the library returns."""
    found = getattr(library, function, None) if function else None
    if found is None:
        return None
    found.restype = ctypes.c_char_p
    text: bytes | None = found()
    return text.decode(errors="replace") if text else None


def task_import(send: Send, module: str) -> None:
    """Import a module: the error, if there is one, is its own."""
    found = importlib.import_module(module)
    send(file=getattr(found, "__file__", None))


# -- Agents ------------------------------------------------------------------


def _config(engine: str | None) -> nixl_agent_config:
    config = nixl_agent_config(backends=[], num_threads=1)
    if engine is not None:
        config.engine = engine  # type: ignore[assignment]
    return config


def task_agent(send: Send, engine: str | None = None) -> None:
    """Create an agent and describe it."""
    with NixlAgent("vllm-nixl-doctor", _config(engine)) as agent:
        plugins = agent.get_plugin_list()
        agent.create_backend("UCX")
        send(
            description=agent.describe(),
            plugins=plugins,
            metadata=base64.b64encode(agent.get_agent_metadata()).decode(),
        )


def task_target(send: Send, backend: str) -> None:
    """Own some rows for task_initiator(), until stdin ends."""
    with NixlAgent("vllm-nixl-target", _config("native")) as agent:
        agent.create_backend(backend)
        table = rows.KnownRows(agent, 4, 4096)
        send(
            metadata=base64.b64encode(agent.get_agent_metadata()).decode(),
            rows=table.rows,
            name=table.name,
        )
        sys.stdin.read()


def task_initiator(
    send: Send,
    backend: str,
    metadata: str,
    rows: Sequence[Sequence[int]],
    name: str,
) -> None:
    """Read the target's rows, verify them, describe the target."""
    with NixlAgent("vllm-nixl-initiator", _config("native")) as agent:
        agent.create_backend(backend)
        peer = agent.add_remote_agent(base64.b64decode(metadata)).decode()
        table = [(row[0], row[1], row[2]) for row in rows]
        remote = agent.prep_xfer_dlist(peer, table, "DRAM")
        data = _read(agent, remote, [row[1] for row in rows])
        send(verdict=_verdict(name, data), peer=_described(agent, peer))


def _described(agent: NixlAgent, peer: str) -> dict[str, Any]:
    """describe(), when the peer has answered, which UCX need not wait for."""
    end = time.monotonic() + _SECONDS
    facts = agent.describe(peer)
    while facts["state"] == "connecting" and time.monotonic() < end:
        time.sleep(0.01)
        facts = agent.describe(peer)
    return facts


def _read(agent: NixlAgent, remote: Any, sizes: Sequence[int]) -> bytes:
    """Read all rows of a prepared list of the peer."""
    memory = bytearray(sum(sizes))
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    registered = agent.register_memory([(start, len(memory), 0, "")], "DRAM")
    here, table = start, []
    for size in sizes:
        table.append((here, size, 0))
        here += size
    local = agent.prep_xfer_dlist("NIXL_INIT_AGENT", table, "DRAM")
    every = range(len(sizes))
    with agent.make_prepped_xfer("READ", local, every, remote, every) as xfer:
        agent.transfer(xfer)
        agent.wait([xfer], _SECONDS)
    local.release()
    agent.deregister_memory(registered)
    return bytes(memory)


def _verdict(name: str, data: bytes) -> str:
    return "verified" if rows.is_right(name, data) else "wrong bytes"


# -- A running server ---------------------------------------------------------


def task_attach(
    send: Send, transport: str, host: str, port: int, options: dict[str, Any]
) -> None:
    """Attach to a publication, read rows of its lists, describe the peer."""
    with NixlAgent("vllm-nixl-doctor", nixl_agent_config()) as agent:
        client = channel.make(transport, options)
        name, lists = client._attach(agent, host, port, _SECONDS * 1000, 0)
        facts = []
        for title, (_, descs) in lists.items():
            if descs.getType() == agent.nixl_mems["DRAM"]:
                facts.append(_read_some(agent, name, title, descs))
        send(lists=facts, peer=_described(agent, name))


def task_load(send: Send, metadata: str) -> None:
    """Load metadata and read the beginning of its first DRAM region."""
    data = base64.b64decode(metadata)
    regions = [
        region
        for section in wire.parse(data).sections
        if section.mem_type == 0 and not wire.is_signature(section)
        for region in section.regions
    ]
    with NixlAgent("vllm-nixl-doctor", nixl_agent_config()) as agent:
        name = agent.add_remote_agent(data).decode()
        agent.make_connection(name)
        facts = []
        if regions:
            first = regions[0]
            row = (first.addr, min(first.size, 4096), first.device)
            descs = agent.get_xfer_descs([row], "DRAM")
            facts.append(_read_some(agent, name, "first region", descs))
        send(lists=facts, peer=_described(agent, name))


def _read_some(
    agent: NixlAgent, peer: str, title: str, descs: Any
) -> dict[str, Any]:
    """Read as many rows as _READ_MAX allows, all of them if they are test
    rows, whose checksum is over all."""
    sizes: list[int] = []
    chosen: list[tuple[int, int, int]] = []
    for row in descs:
        if sum(sizes) + row[1] > _READ_MAX and sizes:
            break
        sizes.append(min(row[1], _READ_MAX))
        chosen.append((row[0], sizes[-1], row[2]))
    remote = agent.prep_xfer_dlist(peer, chosen, "DRAM")
    data = _read(agent, remote, sizes)
    whole = len(sizes) == descs.descCount()
    verdict = "not verified"
    if rows.is_test(title) and whole:
        verdict = _verdict(title, data)
    return {
        "list": title,
        "rows": len(sizes),
        "of": descs.descCount(),
        "bytes": len(data),
        "verdict": verdict,
    }
