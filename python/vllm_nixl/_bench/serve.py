"""`vllm-nixl bench --serve`: an owner for readers on other hosts."""

from __future__ import annotations

import base64
import json
import os
import secrets
import select
import socket
import time
from typing import TYPE_CHECKING, Any

from .impl import Impl, Memory
from .owner import Owner
from .turns import machine

if TYPE_CHECKING:
    from collections.abc import Callable

# A client that has sent no order for so long may be replaced by another one.
# It is longer than any measurement, and lets a client that is beyond a broken
# network be forgotten.
LEASE_S = 120.0
LOOK_S = 1.0  # how often a lost client is looked for


class Server(Owner):
    """Obeys the orders of one client at a time, which come as notifications.

    Args:
        size: Of the memory, in bytes.
        shared: Whether clients on this host can map it.
        say: Called with a line of text for each event.
    """

    def __init__(
        self, size: int, shared: bool, say: Callable[[str], None]
    ) -> None:
        name = f"bench-server-{socket.gethostname()}-{os.getpid()}"
        name += "-" + secrets.token_hex(4)
        impl = Impl("ours")
        super().__init__(impl, name, Memory(size, impl if shared else None))
        self.say = say
        self.refused: set[str] = set()  # clients that came meanwhile
        self.heard = 0.0  # when the client was last heard of
        self.looked = 0.0

    def listen(self, host: str, port: int) -> int:
        return int(self.agent.publish({}, port=port, host=host))

    def run(self) -> None:
        """Serve until an exception, such as KeyboardInterrupt."""
        wake = select.poll()
        wake.register(self.agent.fileno(), select.POLLIN)
        while True:
            wake.poll(LOOK_S * 1000)
            pending = self.arrived()
            while pending:
                self._take(*pending.popleft())
            if time.monotonic() - self.looked > LOOK_S:
                self._look()

    def _take(self, sender: str, message: bytes) -> None:
        """Obey an order.  What is not one, such as the echo's end, is left
        alone; an order that fails is answered."""
        try:
            order = json.loads(message)
            number, do = order.pop("number"), order.pop("do")
        except (ValueError, TypeError, KeyError, AttributeError):
            return
        answer: dict[str, Any] | None
        try:
            answer = self._obey(sender, str(do), order)
        except Exception as error:
            answer = {"error": f"{do}: {error}"}
        if answer is not None:
            self._answer(sender, {"number": number, **answer})
        if do == "leave" and sender == self.known:
            self._forget("has ended")

    def _answer(self, sender: str, answer: dict[str, Any]) -> None:
        try:
            self.agent.send_notif(sender, json.dumps(answer).encode())
        except self.impl.module.NixlError as error:
            self.say(f"{sender}: no answer could be sent: {error}")

    def _obey(
        self, sender: str, do: str, order: dict[str, Any]
    ) -> dict[str, Any] | None:
        now = time.monotonic()
        if sender != self.known:
            self._look()
            if do != "load":
                raise RuntimeError("it must be introduced first")
            if self.known and now - self.heard < LEASE_S:
                # It cannot be told without its metadata.
                blob = base64.b64decode(order["metadata"])
                self.agent.add_remote_agent(blob)
                self.refused.add(sender)
                raise RuntimeError(f"it serves {self.known} at present")
        self.heard = now
        return self.do(do, **order)

    def other(self, sender: str, message: bytes) -> None:
        self._take(sender, message)

    def do_load(self, metadata: str) -> dict[str, Any]:
        super().do_load(metadata)
        self.say(f"{self.known}: measures")
        return {
            "address": self.memory.address,
            "size": self.memory.size,
            "machine": machine(),
        }

    def do_leave(self) -> dict[str, Any]:
        """The client ends; the peer is forgotten after the answer."""
        return {}

    def _look(self) -> None:
        """Forget clients that are lost."""
        self.looked = time.monotonic()
        for name in [*self.refused, *([self.known] if self.known else [])]:
            state = self.agent.describe(name)
            if state["state"] != "lost":
                continue
            if name == self.known:
                self._forget(f"is lost: {state.get('cause')}")
            else:
                self.refused.remove(name)
                self.agent.remove_remote_agent(name)

    def _forget(self, why: str) -> None:
        self.say(f"{self.known}: {why}")
        self.agent.remove_remote_agent(self.known)
        self.known = ""
