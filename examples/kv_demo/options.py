"""The command line of the demo; `vllm-nixl demo` has the same options."""

from __future__ import annotations

import argparse

PORT = 18515


def positive(text: str) -> int:
    value = int(text) if text.isascii() and text.isdigit() else 0
    if value < 1:
        raise argparse.ArgumentTypeError("must be a number of at least 1")
    return value


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--layers", type=positive, default=32, help="layers of the cache (32)"
    )
    parser.add_argument(
        "--blocks", type=positive, default=128, help="blocks of a layer (128)"
    )
    parser.add_argument(
        "--block-kib",
        type=positive,
        default=64,
        help="KiB of one block in one layer, a multiple of 4 (64)",
    )
    parser.add_argument(
        "--requests",
        type=positive,
        default=8,
        help="requests that decode reads at once (8)",
    )
    parser.add_argument(
        "--seed", type=positive, default=7, help="of the contents (7)"
    )
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
    hosts = parser.add_argument_group(
        "two hosts",
        "Start one instance on each host, prefill first.  Decode takes the "
        "shape of the cache from prefill.",
    )
    hosts.add_argument(
        "--role",
        choices=("prefill", "decode"),
        help="run this instance only",
    )
    hosts.add_argument(
        "--host",
        help="prefill: an address or interface to listen on (default: all); "
        "decode: where prefill is (127.0.0.1)",
    )
    hosts.add_argument(
        "--port",
        type=int,
        default=PORT,
        help=f"prefill's port; 0: any free one ({PORT})",
    )
    # Between the demo and its two processes: events, one line of JSON each.
    parser.add_argument(
        "--events", action="store_true", help=argparse.SUPPRESS
    )


def check(
    parser: argparse.ArgumentParser, options: argparse.Namespace
) -> None:
    """End the program if options exclude each other."""
    if options.block_kib % 4:
        parser.error("--block-kib must be a multiple of 4")
    if options.requests > options.blocks:
        parser.error("--requests must not exceed --blocks")
    if not 0 <= options.port <= 65535:
        parser.error("--port must be from 0 to 65535")
    if options.host is not None and options.role is None:
        parser.error("--host needs --role")
