"""The other process of a two-process row.

`Peer` starts the process and sends it commands as lines of JSON over standard
input and output.  Only the measured operations use the implementation.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, TextIO

HERE = Path(__file__).resolve().parent
NAME = "peer"
LISTENERS: list[Any] = []  # kept until the process ends


class Peer:
    """A process with one agent that owns `size` bytes of known content."""

    def __init__(
        self,
        impl: str,
        size: int,
        shared: bool = False,
        python: str | None = None,
    ) -> None:
        command = [python or sys.executable, str(HERE / "peer.py"), impl]
        command += [str(size), "shared" if shared else "private"]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        hello = self._answer()
        self.address: int = hello["address"]
        self.metadata = base64.b64decode(hello["metadata"])

    def _answer(self) -> Any:
        line = self.process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise RuntimeError("the peer process exited")
        return json.loads(line)

    def ask(self, command: str, **arguments: Any) -> Any:
        self.order(command, **arguments)
        return self._answer()

    def order(self, command: str, **arguments: Any) -> None:
        line = json.dumps({"do": command, **arguments})
        self.process.stdin.write(line + "\n")  # type: ignore[union-attr]
        self.process.stdin.flush()  # type: ignore[union-attr]

    def introduce(self, agent: Any) -> None:
        """Load each agent's metadata into the other."""
        agent.add_remote_agent(self.metadata)
        blob = base64.b64encode(agent.get_agent_metadata()).decode()
        self.ask("load", metadata=blob)

    def close(self) -> None:
        self.process.stdin.close()  # type: ignore[union-attr]
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def echo(agent: Any, back_to: str, count: int) -> None:
    """Return every notification at once, polling as clients do."""
    deadline = time.monotonic() + 60
    while count > 0 and time.monotonic() < deadline:
        for messages in agent.get_new_notifs().values():
            for message in messages:
                agent.send_notif(back_to, message)
                count -= 1


def tell_time(agent: Any, to: str, after: float) -> None:
    """Send the time after a pause, when the other side sleeps."""
    time.sleep(after)
    agent.send_notif(to, b"%d" % time.monotonic_ns())


def claim_stdout() -> TextIO:
    """Reserve standard output for answers.  Redirect the output of libraries
    to standard error."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return out


def serve(impl: Any, size: int, shared: bool) -> None:
    import numpy as np
    from impl import Memory

    out = claim_stdout()

    def say(**answer: Any) -> None:
        print(json.dumps(answer), file=out, flush=True)

    memory = Memory(size, impl if shared else None)
    memory.words()[:] = np.arange(size // 8, dtype=np.uint64)
    agent = impl.agent(NAME)
    agent.register_memory(memory.region(), "DRAM")
    blob = base64.b64encode(agent.get_agent_metadata()).decode()
    say(address=memory.address, metadata=blob)
    known = ""
    for line in sys.stdin:
        order = json.loads(line)
        if order["do"] == "load":
            known = agent.add_remote_agent(base64.b64decode(order["metadata"]))
            say()
        elif order["do"] == "echo":
            echo(agent, known, order["count"])
        elif order["do"] == "tell_time":
            tell_time(agent, known, order["after"])
        elif order["do"] == "listen":
            kind = order.get("kind", "TcpSideChannel")
            count = order.get("count", 1)
            ports = [listen(impl, kind, order["bytes"]) for _ in range(count)]
            say(port=ports[0], ports=ports)


def listen(impl: Any, kind: str, size: int) -> int:
    """Serve `size` bytes over a side channel, or as vLLM does (pyzmq)."""
    if kind == "pyzmq":
        import stock_handshake

        return stock_handshake.listen(bytes(size))
    channel = getattr(impl.module, kind)()
    port = channel.start_listener(0, bytes(size))
    LISTENERS.append(channel)
    return int(port)


if __name__ == "__main__":
    from impl import Impl

    serve(Impl(sys.argv[1]), int(sys.argv[2]), "shared" in sys.argv)
