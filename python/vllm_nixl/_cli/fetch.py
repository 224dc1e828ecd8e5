"""Fetch metadata from the side channel at HOST:PORT.

Writes the bytes to stdout, unless that is a terminal, or to a file.
VLLM_NIXL_SIDE_CHANNEL_SECRET is used if it is set.
"""

from __future__ import annotations

import base64
import sys
import time
from typing import TYPE_CHECKING

from . import channel
from .main import CommandError

if TYPE_CHECKING:
    import argparse

    from .output import Output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "address",
        type=channel.address,
        metavar="HOST:PORT",
        help="where the listener is (port 5600 if it has none)",
    )
    channel.add_transport(parser, "tcp")
    channel.add_client_options(parser)
    parser.add_argument(
        "--publication",
        action="store_true",
        help=f"the same as --key {channel.PUBLICATION}",
    )
    parser.add_argument(
        "--retries",
        type=channel.count,
        default=0,
        metavar="N",
        help="further attempts while nobody listens (0)",
    )
    parser.add_argument(
        "-o", "--output", metavar="FILE", help="where to write the bytes"
    )


def run(options: argparse.Namespace, out: Output) -> int:
    to_terminal = sys.stdout.isatty() and not out.as_json
    if options.output is None and to_terminal:
        raise CommandError(
            "metadata is binary: name a file with -o FILE, or pipe it, for "
            "example into `vllm-nixl inspect -`"
        )
    host, port = options.address
    key = channel.PUBLICATION if options.publication else options.key
    client = channel.make(options.transport, channel.client_options(options))
    started = time.monotonic()
    data = client.request_metadata(
        host,
        port,
        int(options.timeout * 1000),
        key=key,
        retries=options.retries,
    )
    took = (time.monotonic() - started) * 1e3
    facts = {"bytes": len(data), "milliseconds": round(took, 3)}
    if options.output is not None:
        with open(options.output, "wb") as file:
            file.write(data)
        out.line(f"{len(data):,} bytes in {took:.1f} ms, to {options.output}")
        out.result({**facts, "file": options.output})
    elif out.as_json:
        out.result({**facts, "base64": base64.b64encode(data).decode()})
    else:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    return 0
