"""The side channels, by transport: what the common tests go over.

A transport adds itself to TRANSPORTS, and every test in test_transports.py
runs for it.  One that was left out of the build is skipped.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import vllm_nixl


@dataclass(frozen=True)
class Transport:
    """A class of vllm_nixl, and in what it differs from the others."""

    name: str
    class_name: str
    #: What a request ends with whose connection the other side closes.
    closed: tuple[str, ...] = ("nixlBackendError",)
    #: What a request to a port ends with on which nobody listens.
    dead: tuple[str, ...] = ("nixlBackendError",)
    #: Options that every channel of the tests is made with.
    options: dict[str, object] = field(default_factory=dict)
    has_secret: bool = True
    has_tls: bool = True
    #: Does a key that is no text and no rank go through?
    any_key: bool = True

    def make(self, **options):
        """A side channel; the test is skipped where there is none."""
        try:
            cls = getattr(vllm_nixl, self.class_name)
            return cls(**{**self.options, **options})
        except vllm_nixl.nixlNotSupportedError as error:
            pytest.skip(str(error))

    def errors(self, names):
        return tuple(getattr(vllm_nixl, name) for name in names)


TRANSPORTS = [
    Transport("tcp", "TcpSideChannel"),
    Transport("zmq", "ZmqSideChannel", has_secret=False, has_tls=False),
    Transport("http", "HttpSideChannel"),
]
