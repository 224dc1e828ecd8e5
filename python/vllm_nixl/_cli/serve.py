"""Hand metadata over: a file, or an agent's with test rows.

With FILE, serves its bytes.  Without, creates an agent whose memory has known
bytes, and publishes it: `vllm-nixl doctor HOST:PORT` attaches, reads the rows
and verifies them.

Writes the address that peers can use, and serves until Ctrl-C.
VLLM_NIXL_SIDE_CHANNEL_SECRET, _HOST and _PORT are used if they are set.
"""

from __future__ import annotations

import signal
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import NixlAgent
from . import channel, rows
from .main import CommandError

if TYPE_CHECKING:
    import argparse

    from .._side_channel import _Async
    from .output import Output

_ROW_BYTES = 4096
_ROWS_MAX = rows.BYTES_MAX // _ROW_BYTES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", nargs="?", metavar="FILE", help="the bytes to serve"
    )
    channel.add_transport(parser, "tcp")
    parser.add_argument(
        "--host", help="an address or interface to listen on (default: all)"
    )
    parser.add_argument(
        "--port",
        type=channel.count,
        help=f"the port to listen on; 0: any free one ({channel.PORT})",
    )
    parser.add_argument("--key", help="serve FILE under this key")
    parser.add_argument(
        "--rows",
        type=channel.count,
        default=64,
        metavar="N",
        help=f"test rows of {_ROW_BYTES} bytes, 1 to {_ROWS_MAX} (64)",
    )
    parser.add_argument("--name", default="serve", help="the agent's name")
    parser.add_argument(
        "--seconds",
        type=channel.positive,
        metavar="S",
        help="end after so many seconds (default: never)",
    )
    parser.add_argument(
        "--tls-certificate", metavar="FILE", help="speak TLS: the chain"
    )
    parser.add_argument("--tls-key", metavar="FILE", help="and its key")


def run(options: argparse.Namespace, out: Output) -> int:
    if not 1 <= options.rows <= _ROWS_MAX:
        raise CommandError(f"--rows must be from 1 to {_ROWS_MAX}")
    if options.key is not None and options.file is None:
        raise CommandError("--key needs FILE")
    server = channel.make(options.transport, _server_options(options))
    with ExitStack() as stack:
        stack.enter_context(server)
        if options.file is not None:
            facts = _serve_file(server, options)
        else:
            agent = stack.enter_context(NixlAgent(options.name))
            known = rows.KnownRows(agent, options.rows, _ROW_BYTES)
            facts = _serve_agent(server, agent, known, options)
        host, port = server.advertised_address()
        out.line(f"serving {facts['what']} by {options.transport}")
        out.line(f"address  {host}:{port}")
        out.result({"host": host, "port": port, **facts})
        _sleep(options.seconds)
        stats = server.stats()
    out.line(
        f"served {stats['served']}, refused {stats['refused']}, timed out "
        f"{stats['timed_out']}"
    )
    return 0


def _server_options(options: argparse.Namespace) -> dict[str, Any]:
    given = {
        "tls_certificate": options.tls_certificate,
        "tls_key": options.tls_key,
    }
    return {name: value for name, value in given.items() if value is not None}


def _serve_file(server: _Async, options: argparse.Namespace) -> dict[str, Any]:
    data = Path(options.file).read_bytes()
    server.start_listener(options.port, {options.key: data}, options.host)
    return {"what": f"{options.file}, {len(data):,} bytes"}


def _serve_agent(
    server: _Async,
    agent: NixlAgent,
    known: rows.KnownRows,
    options: argparse.Namespace,
) -> dict[str, Any]:
    server._publish(
        agent, {known.name: known.rows}, options.port, options.host, "DRAM"
    )
    return {
        "what": f"agent {options.name!r} with {options.rows} test rows",
        "agent": options.name,
        "list": known.name,
        "rows": options.rows,
        "row_bytes": _ROW_BYTES,
    }


def _sleep(seconds: float | None) -> None:
    """Until the time is over, Ctrl-C or SIGTERM."""
    over = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: over.set())
    try:
        over.wait(seconds)
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
