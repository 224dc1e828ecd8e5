"""The other process of a two-process row.

    peer.py owner ours|stock SIZE private|shared

The owner of vllm_nixl._bench, with the orders that only the rows need.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from vllm_nixl._bench import peer
from vllm_nixl._bench.child import claim_stdout
from vllm_nixl._bench.owner import Owner
from vllm_nixl._bench.worker import own

LISTENERS: list[Any] = []  # kept until the process ends


class Peer(peer.Peer):
    """The process, from the side of the reader."""

    def __init__(self, impl: str, size: int) -> None:
        super().__init__(impl, size, program=__file__)


class RowsOwner(Owner):
    def do_tell_time(self, after: float) -> None:
        """Send the time after a pause, when the other side sleeps."""
        time.sleep(after)
        self.agent.send_notif(self.known, b"%d" % time.monotonic_ns())

    def do_listen(
        self, bytes: int, kind: str = "TcpSideChannel", count: int = 1
    ) -> dict[str, Any]:
        ports = [self._listen(kind, bytes) for _ in range(count)]
        return {"port": ports[0], "ports": ports}

    def _listen(self, kind: str, size: int) -> int:
        """Serve `size` bytes over a side channel, or as vLLM does (pyzmq)."""
        if kind == "pyzmq":
            import stock_handshake

            return stock_handshake.listen(bytes(size))
        channel = getattr(self.impl.module, kind)()
        port = channel.start_listener(0, bytes(size))
        LISTENERS.append(channel)
        return int(port)


if __name__ == "__main__":
    own(RowsOwner, claim_stdout(), sys.argv[2:])
