"""An agent with memory of a GPU.

As a program it obeys the orders of its parent: do_NAME() obeys the order NAME.
The parent uses one by itself, too, by the same methods.

    python -m gpu_check.endpoint NAME
"""

from __future__ import annotations

import base64
import ctypes
import hashlib
import json
import os
import select
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from vllm_nixl import NixlAgent
from vllm_nixl._bench.child import claim_stdout, end_with_parent, obey

from .driver import Gpu, IpcHandle
from .memory import KINDS, TORCH, Mapped, Memory, pattern

if TYPE_CHECKING:
    from collections.abc import Callable

LIMIT_S = 20.0  # for a transfer or a notification

# Offset here, offset there, bytes.
Rows = list[tuple[int, int, int]]


class Endpoint:
    """An agent, its memory by name, and what it knows of a peer."""

    def __init__(self, name: str) -> None:
        self.gpu = Gpu()
        self.agent = NixlAgent(name)
        self.memories: dict[str, Memory] = {}
        self.regions: dict[str, Any] = {}
        self.peer = b""
        self.notifications: list[bytes] = []

    def ask(self, do: str, **arguments: Any) -> Any:
        return getattr(self, f"do_{do}")(**arguments)

    def close(self) -> None:
        self.agent.close()

    # -- Memory ---------------------------------------------------------------

    def do_make(
        self, kind: str, size: int, name: str = "memory"
    ) -> dict[str, Any]:
        """Allocate memory and register all of it."""
        memory = {**KINDS, **TORCH}[kind](self.gpu, size)
        self.memories[name] = memory
        self.do_register(name)
        return {
            "kind": kind,
            "address": memory.address,
            "size": size,
            "type": memory.type,
        }

    def do_register(
        self, name: str = "memory", offset: int = 0, size: int | None = None
    ) -> dict[str, Any]:
        """Register a part of the memory."""
        memory = self.memories[name]
        size = memory.size - offset if size is None else size
        region = [(memory.address + offset, size, 0, "")]
        self.regions[name] = self.agent.register_memory(region, memory.type)
        return {}

    def do_deregister(self, name: str = "memory") -> dict[str, Any]:
        """How long it takes is the answer."""
        started = time.monotonic()
        self.agent.deregister_memory(self.regions.pop(name))
        return {"seconds": time.monotonic() - started}

    def do_free(self, name: str = "memory") -> dict[str, Any]:
        self.memories.pop(name).free()
        return {}

    def do_end(self, name: str = "memory") -> dict[str, Any]:
        self.do_deregister(name)
        return self.do_free(name)

    def do_sleep(self, name: str = "memory") -> dict[str, Any]:
        memory = self.memories[name]
        assert isinstance(memory, Mapped)
        memory.sleep()
        return {}

    def do_wake(self, name: str = "memory") -> dict[str, Any]:
        memory = self.memories[name]
        assert isinstance(memory, Mapped)
        memory.wake()
        return {}

    def do_fill(self, seed: int, name: str = "memory") -> dict[str, Any]:
        memory = self.memories[name]
        memory.write(pattern(seed, memory.size))
        return {}

    def do_digest(self, name: str = "memory") -> dict[str, Any]:
        return {"digest": digest(self.memories[name].read())}

    def do_facts(self, name: str | None = None) -> dict[str, Any]:
        """Free memory of the GPU; open files; what identifies the memory."""
        found = {
            "free": self.gpu.memory_info()[0],
            "fds": len(os.listdir("/proc/self/fd")),
        }
        if name is not None:
            address = self.memories[name].address
            found["buffer_id"] = self.gpu.buffer_id(address)
        return found

    def do_export(self, name: str = "memory") -> dict[str, Any]:
        """A handle that cuIpcOpenMemHandle() takes."""
        handle = IpcHandle()
        address = self.memories[name].address
        self.gpu.call("cuIpcGetMemHandle", ctypes.byref(handle), address)
        return {"handle": base64.b64encode(bytes(handle)).decode()}

    # -- The peer -------------------------------------------------------------

    def do_metadata(self) -> dict[str, Any]:
        blob = self.agent.get_agent_metadata()
        return {"metadata": base64.b64encode(blob).decode()}

    def do_load(self, metadata: str) -> dict[str, Any]:
        self.peer = self.agent.add_remote_agent(base64.b64decode(metadata))
        return {}

    def do_forget(self) -> dict[str, Any]:
        self.agent.remove_remote_agent(self.peer)
        return {}

    def handle(
        self,
        operation: Any,  # "READ" or "WRITE"
        theirs: dict[str, Any],
        rows: Rows,
        name: str = "memory",
    ) -> Any:
        """A transfer of these rows with memory of the peer."""
        memory = self.memories[name]
        agent = self.agent
        mine = [(memory.address + row[0], row[2], 0) for row in rows]
        other = [(theirs["address"] + row[1], row[2], 0) for row in rows]
        return agent.initialize_xfer(
            operation,
            agent.get_xfer_descs(mine, memory.type),
            agent.get_xfer_descs(other, theirs["type"]),
            self.peer,
        )

    def run(self, handle: Any, message: bytes = b"") -> None:
        if self.agent.transfer(handle, message) != "DONE":
            self.agent.wait([handle], LIMIT_S)

    def do_run(
        self, operation: str, theirs: dict[str, Any], name: str = "memory"
    ) -> dict[str, Any]:
        """One transfer of all of the memory."""
        handle = self._whole(operation, theirs, name)
        self.run(handle)
        handle.release()
        return {}

    def do_run_on(
        self, operation: str, theirs: dict[str, Any], name: str = "memory"
    ) -> dict[str, Any]:
        """The same again and again, on another thread, until this process
        ends."""
        handle = self._whole(operation, theirs, name)
        self.run(handle)

        def run_on() -> None:
            while True:
                self.run(handle)

        threading.Thread(target=run_on, daemon=True).start()
        return {}

    def _whole(self, operation: str, theirs: dict[str, Any], name: str) -> Any:
        rows = [(0, 0, self.memories[name].size)]
        return self.handle(operation, theirs, rows, name)

    def do_notify(self, message: str) -> dict[str, Any]:
        self.agent.send_notif(self.peer, message.encode())
        return {}

    def expect(self, message: bytes) -> None:
        """Wait for this notification, which is the next one."""
        wake = select.poll()
        wake.register(self.agent.fileno(), select.POLLIN)
        deadline = time.monotonic() + LIMIT_S
        while not self.notifications:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no notification {message!r} came")
            for messages in self.agent.get_new_notifs().values():
                self.notifications += messages
            if not self.notifications:
                wake.poll(100)
        found = self.notifications.pop(0)
        if found != message:
            raise RuntimeError(f"{found!r} came instead of {message!r}")

    # -- What is read right after a notification ------------------------------

    def reader(
        self, method: str, size: int
    ) -> tuple[Callable[[], bytes], Callable[[], None]]:
        """Two functions: one reads the first bytes of the memory on the GPU by
        this method, and waits for nothing before; the other gives back what
        that needs."""
        memory = self.memories["memory"]
        to = self.gpu.alloc(size)
        table = self.gpu.alloc(32)
        row = (memory.address, to, size, 0)
        self.gpu.write(
            table, b"".join(word.to_bytes(8, "little") for word in row)
        )
        if method == "kernel":
            self.gpu.launch(table)  # compiles it
            self.gpu.wait_for_stream()

        def read() -> bytes:
            if method == "kernel":
                self.gpu.launch(table)
            else:
                self.gpu.copy(to, memory.address, size)
            self.gpu.wait_for_stream()
            return self.gpu.read(to, size)

        def close() -> None:
            self.gpu.free(to)
            self.gpu.free(table)

        return read, close

    def do_watch(self, rounds: int, size: int, method: str) -> dict[str, Any]:
        """After each notification, look whether its bytes are there."""
        read, close = self.reader(method, size)
        self.agent.send_notif(self.peer, b"ready")
        wrong = 0
        for number in range(rounds):
            self.expect(b"%d" % number)
            wrong += not is_painted(read(), number)
            self.agent.send_notif(self.peer, b"%d" % number)
        close()
        return {"wrong": wrong}

    def do_paint(self, rounds: int, size: int) -> dict[str, Any]:
        """Change the memory, tell the peer, and wait until it has read it."""
        memory = self.memories["memory"]
        for number in range(rounds):
            self.gpu.paint(memory.address, color(number), size)
            self.agent.send_notif(self.peer, b"%d" % number)
            self.expect(b"%d" % number)
        return {}

    # -- Start and end --------------------------------------------------------

    def do_ready(self) -> dict[str, Any]:
        """Seconds from the first registration until copies can begin."""
        memory = KINDS["cudaMalloc"](self.gpu, 1 << 20)
        self.memories["memory"] = memory
        started = time.monotonic()
        self.do_register()
        while "copies_by" not in self.agent.describe()["gpus"][0]:
            if time.monotonic() - started > LIMIT_S:
                raise TimeoutError("the GPU is not ready")
            time.sleep(0.0005)
        seconds = time.monotonic() - started
        return {"seconds": seconds, **self.agent.describe()["gpus"][0]}

    def do_leave(self, close: bool) -> None:
        """End the process as a program ends."""
        if close:
            self.close()
        raise SystemExit(0)


def color(number: int) -> int:
    return number % 251 + 1


def is_painted(data: bytes, number: int) -> bool:
    return data == bytes([color(number)]) * len(data)


def digest(data: bytes | bytearray) -> str:
    return hashlib.sha256(data).hexdigest()


def main() -> None:
    end_with_parent()
    out = claim_stdout()
    endpoint = Endpoint(sys.argv[1])
    print(json.dumps({}), file=out, flush=True)
    obey(sys.stdin, out, endpoint.ask)


if __name__ == "__main__":
    main()
