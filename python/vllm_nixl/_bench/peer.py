"""The owner (owner.py), as the side sees it that makes transfers."""

from __future__ import annotations

import base64
import json
import select
import time
from typing import TYPE_CHECKING, Any

from .child import LIMIT_S, WORKER, BenchError, Child, command

if TYPE_CHECKING:
    from pathlib import Path

NAME = "peer"


def encoded(agent: Any) -> str:
    return base64.b64encode(agent.get_agent_metadata()).decode()


class Peer(Child):
    """An owner in another process of this host.

    Args:
        impl: "ours" or "stock".
        size: Of its memory, in bytes.
        memory: What its program makes: "private" or "shared", which peers
            can map.
        python: The Python of that process; None: this one.
        program: What it runs.
    """

    def __init__(
        self,
        impl: str,
        size: int,
        memory: str = "private",
        python: str | None = None,
        program: str | Path = WORKER,
    ) -> None:
        super().__init__(
            command(impl, program, "owner", impl, size, memory, python=python),
            "the peer process",
        )
        self.agent_name = NAME
        hello = self.answer()
        self.address: int = hello["address"]
        self.size: int = hello["size"]
        self.kind: str = hello["kind"]
        self.metadata = base64.b64decode(hello["metadata"])

    def introduce(self, agent: Any) -> None:
        """Load each agent's metadata into the other."""
        agent.add_remote_agent(self.metadata)
        self.ask("load", metadata=encoded(agent))


class RemotePeer:
    """An owner that `vllm-nixl bench --serve` runs, perhaps on another host.

    Args:
        agent: The agent of this side.
        host: Where its side channel listens.
        port: And on which port.

    Orders and answers are notifications.  An answer has the number of its
    order.
    """

    kind = "DRAM"

    def __init__(self, agent: Any, host: str, port: int) -> None:
        self.agent = agent
        self.agent_name = agent.attach(host, port, retries=0)
        self.place = f"{host}:{port}"
        self.number = 0
        hello = self.ask("load", metadata=encoded(agent))
        self.address: int = hello["address"]
        self.size: int = hello["size"]
        self.machine: dict[str, Any] = hello["machine"]

    def order(self, do: str, **arguments: Any) -> None:
        self.number += 1
        order = {"number": self.number, "do": do, **arguments}
        self.agent.send_notif(self.agent_name, json.dumps(order).encode())

    def answer(self) -> Any:
        wake = select.poll()
        wake.register(self.agent.fileno(), select.POLLIN)
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            wake.poll(200)
            for message in self.agent.get_new_notifs().get(
                self.agent_name, []
            ):
                found = json.loads(message)
                if found.get("number") != self.number:
                    continue
                if "error" in found:
                    raise BenchError(f"{self.place}: {found['error']}")
                return found
            self.look()
        raise BenchError(f"{self.place}: no answer after {LIMIT_S:g} s")

    def look(self) -> None:
        """Raise an error if the peer is lost."""
        state = self.agent.describe(self.agent_name)
        if state["state"] == "lost":
            raise BenchError(f"{self.place} is lost: {state.get('cause')}")

    def ask(self, do: str, **arguments: Any) -> Any:
        self.order(do, **arguments)
        return self.answer()

    def introduce(self, agent: Any) -> None:
        """attach() and the order "load" have done so."""

    def close(self) -> None:
        """Leave; a peer that is lost need not be told."""
        try:
            self.ask("leave")
        except BenchError:
            pass
        except Exception as error:
            if not hasattr(error, "status"):
                raise  # not an agent's error
