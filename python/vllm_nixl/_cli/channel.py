"""Side channels of the commands: their options, and addresses."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .. import HttpSideChannel, TcpSideChannel, ZmqSideChannel

if TYPE_CHECKING:
    from .._side_channel import _Async

TRANSPORTS = {
    "tcp": TcpSideChannel,
    "zmq": ZmqSideChannel,
    "http": HttpSideChannel,
}
PORT = 5600
PUBLICATION = "vnx.publication"
SECRET = "VLLM_NIXL_SIDE_CHANNEL_SECRET"


def address(text: str) -> tuple[str, int]:
    """HOST:PORT, HOST, [IPV6]:PORT; the default port is 5600."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]") or (":" in host and host[:1] != "["):
        host, port = text, str(PORT)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isascii() or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    if not 0 < int(port) <= 65535:
        raise argparse.ArgumentTypeError(f"{port} is not a port")
    return host, int(port)


def positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 < number <= 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return number


def count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return int(text)


def add_transport(
    parser: argparse.ArgumentParser, default: str | None
) -> None:
    """--transport; the default None stands for all, one by one."""
    text = "tcp" if default else "all, one by one"
    parser.add_argument(
        "--transport",
        choices=tuple(TRANSPORTS),
        default=default,
        help=f"the protocol of the side channel (default: {text})",
    )


def add_client_options(parser: argparse.ArgumentParser) -> None:
    """Options of those who ask."""
    parser.add_argument(
        "--key",
        help="the key to ask for: a text, or ranks such as 0,1 "
        "(default: the default key)",
    )
    parser.add_argument(
        "--timeout",
        type=positive,
        default=5.0,
        metavar="S",
        help="seconds for the whole exchange (5)",
    )
    parser.add_argument(
        "--tls",
        action="store_true",
        help="the listener has a certificate of a known authority",
    )
    parser.add_argument(
        "--tls-ca",
        metavar="FILE",
        help="the listener has a certificate of this authority",
    )


def client_options(options: argparse.Namespace) -> dict[str, Any]:
    """What the constructors of side channels take."""
    found: dict[str, Any] = {}
    if options.tls:
        found["tls"] = True
    if options.tls_ca is not None:
        found["tls_ca"] = options.tls_ca
    return found


def make(transport: str, options: dict[str, Any]) -> _Async:
    channel: _Async = TRANSPORTS[transport](**options)
    return channel
