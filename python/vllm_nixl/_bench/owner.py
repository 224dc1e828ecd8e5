"""The side whose memory is read and written.

It obeys the other side's orders: by its standard input (worker.py), or by
notifications (serve.py).
"""

from __future__ import annotations

import base64
import select
import time
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .impl import Impl

ECHO_END = b"end"


class Owner:
    """An agent that owns memory of known content: do_NAME() obeys the order
    NAME, and returns the answer, or None if there is none."""

    def __init__(self, impl: Impl, name: str, memory: Any) -> None:
        self.impl = impl
        self.memory = memory
        self.agent = impl.agent(name)
        self.agent.register_memory(memory.region(), memory.kind)
        self.known = ""  # the other side
        self.pending: deque[tuple[str, bytes]] = deque()
        self.do_fill()

    def do(self, do: str, **arguments: Any) -> dict[str, Any] | None:
        obeyed: dict[str, Any] | None
        obeyed = getattr(self, f"do_{do}")(**arguments)
        return obeyed

    def introduction(self) -> dict[str, Any]:
        blob = self.agent.get_agent_metadata()
        return {
            "address": self.memory.address,
            "size": self.memory.size,
            "kind": self.memory.kind,
            "metadata": base64.b64encode(blob).decode(),
        }

    def arrived(self) -> deque[tuple[str, bytes]]:
        """The notifications that nobody has taken yet."""
        for sender, messages in self.agent.get_new_notifs().items():
            self.pending.extend((sender, message) for message in messages)
        return self.pending

    def do_load(self, metadata: str) -> dict[str, Any]:
        """Load the other side's metadata."""
        name = self.agent.add_remote_agent(base64.b64decode(metadata))
        self.known = name.decode() if isinstance(name, bytes) else name
        return {}

    def do_fill(self) -> dict[str, Any]:
        """Restore the content: each word is its index."""
        self.memory.fill()
        return {}

    def do_cpu(self) -> dict[str, Any]:
        """The CPU time of this process."""
        return {"seconds": time.process_time()}

    def do_echo(
        self, seconds: float, count: int | None = None, sleep: bool = False
    ) -> None:
        """Return every notification at once, until `count` of them have been
        returned, ECHO_END arrives, or the time is over.  `sleep`: wait for
        each instead of polling."""
        agent, known = self.agent, self.known
        deadline = time.monotonic() + seconds
        left = -1 if count is None else count
        wake = select.poll()
        if sleep:
            wake.register(agent.fileno(), select.POLLIN)
        while (
            left != 0 and self.known == known and time.monotonic() < deadline
        ):
            if sleep and not self.pending:
                wake.poll(100)
            pending = self.arrived()
            while pending:
                sender, message = pending.popleft()
                if sender != known:
                    self.other(sender, message)
                    continue
                if message == ECHO_END:
                    return
                agent.send_notif(known, message)
                left -= 1

    def other(self, sender: str, message: bytes) -> None:
        """A notification of somebody else, while another is served."""
