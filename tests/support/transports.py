"""The side channels by transport, as parameters of the common tests.

Every test in test_transports.py runs for each entry of TRANSPORTS.  Transports
that were left out of the build are skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import vllm_nixl

from support import attacks, zmtp

TCP_REQUEST = b"\x00\x00\x00\x0cGET_METADATA"
TCP_OTHER_KEY = b"\x00\x00\x00\x08VNX1\x010,2"
#: A request of a kind that there is not.
TCP_OTHER_KIND = b"\x00\x00\x00\x08VNX1\x020,2"

HTTP_REQUEST = b"GET /metadata HTTP/1.1\r\nHost: localhost\r\n\r\n"
#: vLLM's requests to a ROUTER for rank (0, 0) and for (7, 7).
ZMQ_REQUEST = zmtp.HANDS + zmtp.message(b"", zmtp.GET_META_MSG + b"\0\0")
ZMQ_OTHER_RANK = zmtp.HANDS + zmtp.message(b"", zmtp.GET_META_MSG + b"\7\7")
ZMQ_REQUEST_AND_MORE = [b"", zmtp.GET_META_MSG + b"\0\0", b"x"]
ZMQ_ATTACKS = {
    "wrong rank": attacks.saying(ZMQ_OTHER_RANK),
    "undecodable": attacks.saying(zmtp.HANDS + zmtp.message(b"", b"\xc1")),
    "extra frames": attacks.saying(
        zmtp.HANDS + zmtp.message(*ZMQ_REQUEST_AND_MORE)
    ),
    "missing frames": attacks.saying(zmtp.HANDS + zmtp.message(b"") * 50),
    "missing delimiter": attacks.saying(
        zmtp.HANDS + zmtp.message(*ZMQ_REQUEST_AND_MORE[1:]) * 50
    ),
    "long frame": attacks.saying(
        zmtp.HANDS + b"\x02" + (1 << 30).to_bytes(8, "big")
    ),
    "longest frame": attacks.saying(zmtp.HANDS + b"\x03" + b"\xff" * 8),
    "message without end": attacks.saying(zmtp.HANDS + b"\1\0" * 9999),
    "pings": attacks.saying(zmtp.HANDS + b"\x04\x07\x04PING\0\x0a" * 2000),
    "shaken and silent": attacks.holding(zmtp.HANDS),
    "half a request": attacks.holding(ZMQ_REQUEST[:-4]),
    "identity": attacks.holding(
        zmtp.GREETING + zmtp.ready(identity=b"\0\x6b\x8b\x45\x68")
    ),
}
HTTP_GUESS = HTTP_REQUEST[:-2] + b"Authorization: Bearer guess\r\n\r\n"
HTTP_ATTACKS = {
    "other key": attacks.saying(HTTP_REQUEST.replace(b" HTTP", b"/7,7 HTTP")),
    "token": attacks.saying(HTTP_GUESS),
    "long line": attacks.saying(b"GET /" + b"a" * 99_999),
    "header without end": attacks.saying(
        HTTP_REQUEST[:-2] + b"X: 0123456789\r\n" * 9999
    ),
    "long body": attacks.saying(
        b"POST /metadata HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n"
        + b"x" * 99_999
    ),
    "chunks without end": attacks.saying(
        b"POST /metadata HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"1\r\nx\r\n" * 9999
    ),
    "longest chunk": attacks.saying(
        b"GET /metadata/0,9 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"ffffffffffffffff\r\n"
    ),
    "many at once": attacks.saying(
        HTTP_REQUEST.replace(b" HTTP", b"/9 HTTP") * 500
    ),
    "kept": attacks.holding(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"),
}


@dataclass(frozen=True)
class Transport:
    """A class of vllm_nixl, and its differences from the others."""

    name: str
    class_name: str
    #: The error of a request whose connection the other side closes.
    closed: tuple[str, ...] = ("nixlBackendError",)
    #: The error of a request to a port without a listener.
    dead: tuple[str, ...] = ("nixlBackendError",)
    #: Options of every channel in the tests.
    options: dict[str, object] = field(default_factory=dict)
    has_secret: bool = True
    has_tls: bool = True
    #: Are keys allowed that are neither text nor ranks?
    any_key: bool = True
    #: A raw client's request for the default key.
    raw_request: bytes = b""
    #: Its own attacks, by name: see support.attacks.
    attacks: dict[str, Callable[..., None]] = field(default_factory=dict)
    #: The same, on a listener with a secret.
    secret_attacks: dict[str, Callable[..., None]] = field(
        default_factory=dict
    )

    def make(self, **options):
        """A side channel; skips the test if the build lacks it."""
        try:
            cls = getattr(vllm_nixl, self.class_name)
            return cls(**{**self.options, **options})
        except vllm_nixl.nixlNotSupportedError as error:
            pytest.skip(str(error))

    def errors(self, names):
        return tuple(getattr(vllm_nixl, name) for name in names)


TRANSPORTS = [
    Transport(
        "tcp",
        "TcpSideChannel",
        raw_request=TCP_REQUEST,
        attacks={
            "other keys": attacks.saying(TCP_OTHER_KEY),
            "other kinds": attacks.saying(TCP_OTHER_KIND),
        },
        secret_attacks={
            "replayed exchange": attacks.replayed,
            "half a handshake": attacks.holding(attacks.TLS_HELLO),
            "drip": attacks.drip,
        },
    ),
    Transport(
        "zmq",
        "ZmqSideChannel",
        has_secret=False,
        has_tls=False,
        raw_request=ZMQ_REQUEST,
        attacks=ZMQ_ATTACKS,
    ),
    Transport(
        "http",
        "HttpSideChannel",
        raw_request=HTTP_REQUEST,
        attacks=HTTP_ATTACKS,
        secret_attacks={"token": attacks.saying(HTTP_GUESS)},
    ),
]
