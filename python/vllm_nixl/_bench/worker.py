"""The program of a measuring process.

    worker.py reader IMPL OPTIONS   makes transfers; OPTIONS is JSON
    worker.py owner IMPL SIZE private|shared
    worker.py bare OPTIONS          runs the bare loops

The orders of a reader and of the bare loops are the measurements of points.py
with their arguments; those of an owner are in owner.py.  Every side runs in
its own processes, so that none can affect another.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from collections.abc import Callable

    from vllm_nixl._bench.impl import Impl, Memory
    from vllm_nixl._bench.owner import Owner
    from vllm_nixl._bench.reader import Reader


def make_memory(impl: Impl, size: int, kind: str) -> Memory:
    from vllm_nixl._bench.impl import Memory

    return Memory(size, impl if kind == "shared" else None)


def own(
    owner: type[Owner],
    out: TextIO,
    arguments: list[str],
    make: Callable[[Impl, int, str], Any] = make_memory,
) -> None:
    """Obey orders on standard input until it ends."""
    from vllm_nixl._bench.child import obey
    from vllm_nixl._bench.impl import Impl
    from vllm_nixl._bench.peer import NAME

    name, size, kind = arguments
    impl = Impl(name)
    owned = owner(impl, NAME, make(impl, int(size), kind))
    print(json.dumps(owned.introduction()), file=out, flush=True)
    obey(sys.stdin, out, owned.do)


def open_reader(impl: Impl, options: dict[str, Any]) -> Reader:
    from vllm_nixl._bench.reader import Reader

    return Reader(
        impl,
        options["size"],
        peer_memory="shared" if options.get("shared") else "private",
        peer=options.get("peer"),
    )


def read(
    out: TextIO,
    arguments: list[str],
    make: Callable[[Impl, dict[str, Any]], Reader] = open_reader,
) -> None:
    """Take samples as ordered on standard input until it ends."""
    from vllm_nixl._bench import child, points
    from vllm_nixl._bench.impl import Impl

    def start() -> dict[str, Any]:
        """Open the reader; as an order, so that an error is an answer."""
        opened.append(make(impl, options))
        return {"version": impl.version, **_route(impl, opened[0])}

    def do(do: str, **order: Any) -> dict[str, Any]:
        if do == "start":
            return start()
        return points.MEASUREMENTS[do](opened[0], **order)

    impl = Impl(arguments[0])
    options = json.loads(arguments[1])
    opened: list[Reader] = []
    child.obey(sys.stdin, out, do)
    for reader in opened:
        reader.peer.close()


# Seconds in which UCX connects.  It knows its transports only then.
_CONNECTS = 10.0


def _described(reader: Any) -> dict[str, Any]:
    """The peer, when it is connected."""
    end = time.monotonic() + _CONNECTS
    while True:
        peer: dict[str, Any] = reader.agent.describe(reader.peer.agent_name)
        if peer["state"] != "connecting" or time.monotonic() > end:
            return peer
        time.sleep(0.01)


def _route(impl: Impl, reader: Any) -> dict[str, Any]:
    """How the agents reach each other, if they can tell."""
    found: dict[str, Any] = {"size": reader.size}
    if hasattr(reader.peer, "machine"):
        found["peer_machine"] = reader.peer.machine
    if impl.ours:
        peer = _described(reader)
        found["route"] = {
            key: peer[key]
            for key in ("path", "why", "not_shm_because", "transports")
            if key in peer
        }
    return found


def _run_bare(out: TextIO, arguments: list[str]) -> None:
    from vllm_nixl._bench import child
    from vllm_nixl._bench.bare import Bare

    def do(do: str, **order: Any) -> dict[str, Any]:
        if do == "start":
            opened.append(Bare(**json.loads(arguments[0])))
            return {}
        found = getattr(opened[0], do)(**order)
        return found if isinstance(found, dict) else {"seconds": found}

    opened: list[Bare] = []
    child.obey(sys.stdin, out, do)
    for bare in opened:
        bare.close()


def main() -> int:
    # The modules beside this file are those of a package.
    here = str(Path(__file__).resolve().parent)
    sys.path[:] = [place for place in sys.path if place != here]

    from vllm_nixl._bench import child
    from vllm_nixl._bench.owner import Owner

    role, *arguments = sys.argv[1:]
    child.end_with_parent()
    out = child.claim_stdout()
    if role == "owner":
        own(Owner, out, arguments)
    elif role == "reader":
        read(out, arguments)
    else:
        _run_bare(out, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
