"""A scripted owner for SHM: a process with memory and a socket.

It answers only on command:

    with FakeOwner("liar", size=4096) as owner:
        agent.add_remote_agent(owner.metadata())
        token, rows = owner.question()
        owner.confirm(token, epoch=1)

It sends frames of links (docs/wire.md), true or false ones.
"""

import os
import select
import socket
import struct
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from support import blob as grammar
from support import forge, memory
from support.deadline import PATIENCE, DeadlineError
from support.peer import PeerProcess

HELLO, NOTIF, REVOKE, BYE, CONFIRM, CONFIRMED, REFUSE = range(1, 8)
ROW = struct.Struct("<IQQQIQQQ")


def boot_id():
    text = Path("/proc/sys/kernel/random/boot_id").read_text()
    return bytes.fromhex(text.strip().replace("-", ""))


def start_time():
    text = Path("/proc/self/stat").read_text()
    return int(text.rpartition(")")[2].split()[19])


class Owner:
    """The part that runs in the process; its methods are the commands."""

    def __init__(self, name, size):
        self.name, self.link, self.pending = name.encode(), None, b""
        self.block = memory.Memory(size).fill(1)
        self.nonce = memory.Memory(memory.PAGE)
        self.nonce.view[:16] = os.urandom(16)
        self.listener = socket.socket(socket.AF_UNIX)
        self.path = f"vllm_nixl-test-{os.getpid()}".encode()
        self.listener.bind(b"\0" + self.path)
        self.listener.listen(16)

    def info(self):
        return forge.Info(
            major=1,
            minor=0,
            flags=0,
            pid=os.getpid(),
            epoch=1,
            instance=bytes(self.nonce.view[:16]),
            boot=boot_id(),
            pid_namespace=os.stat("/proc/self/ns/pid").st_ino,
            start_time=start_time(),
            nonce_addr=self.nonce.addr,
            uid=os.geteuid(),
            socket=self.path,
        )

    def place(self):
        return self.block.addr, self.block.size

    def read(self):
        return bytes(self.block.view)

    def frame(self):
        """The next frame of the link: (type, body); None if the link has
        ended."""
        if self.link is None:
            self.listener.settimeout(PATIENCE)
            self.link, _ = self.listener.accept()
            self.link.settimeout(PATIENCE)
        while True:
            if len(self.pending) >= 4:
                (size,) = struct.unpack_from("<I", self.pending)
                if len(self.pending) >= 4 + size:
                    body = self.pending[5 : 4 + size]
                    kind = self.pending[4]
                    self.pending = self.pending[4 + size :]
                    return kind, body
            try:
                more = self.link.recv(1 << 16)
            except ConnectionResetError:
                more = b""
            if not more:
                return None
            self.pending += more

    def is_quiet(self, seconds):
        """Does no frame arrive for that long?"""
        if self.pending:
            return False
        return not select.select([self.link], [], [], seconds)[0]

    def send(self, kind, body):
        data = struct.pack("<IB", 1 + len(body), kind) + body
        self.link.sendall(data)

    def drop(self):
        """End the link."""
        self.link.close()
        self.link, self.pending = None, b""


class FakeOwner(PeerProcess):
    PROGRAM = "support.owner"

    def __init__(self, name, size=4096):
        self.size, self.hello = size, None
        super().__init__("", name)

    def open(self, name, config=None):
        self.ask("open", name, self.size)
        self.fields = self.ask("info")
        self.addr, _ = self.ask("place")

    def regions(self, count=1):
        """That many pieces of its memory, as described in metadata."""
        size = self.size // count
        return [
            grammar.Region(self.addr + i * size, size, 0, b"\1\0\0\0")
            for i in range(count)
        ]

    def metadata(self, regions=None, epoch=1, partial=False):
        info = self.fields._replace(epoch=epoch, flags=int(partial))
        regions = self.regions() if regions is None else regions
        return grammar.write(
            grammar.Blob(
                self.name.encode(),
                forge.write_info(info),
                [grammar.Section(b"SHM", 0, regions)] if regions else [],
            )
        )

    def loose(self, regions):
        """Partial metadata without connection data."""
        section = grammar.Section(b"SHM", 0, regions)
        return grammar.write(grammar.Blob(self.name.encode(), {}, [section]))

    def expect(self, kind):
        """The body of the next frame, which must be of that type."""
        found = self.ask("frame")
        if found is None:
            raise DeadlineError("the link has ended")
        if found[0] != kind:
            raise AssertionError(f"a frame of type {found[0]}, not {kind}")
        return found[1]

    def question(self):
        """(token, rows) of the next CONFIRM; HELLO comes before the first."""
        if self.hello is None:
            self.hello = self.expect(HELLO)
        body = self.expect(CONFIRM)
        token, count = struct.unpack_from("<QI", body)
        rows = [ROW.unpack_from(body, 12 + i * ROW.size) for i in range(count)]
        return token, rows

    def confirm(self, token, epoch, refused=()):
        body = struct.pack("<QQI", token, epoch, len(refused))
        body += struct.pack(f"<{len(refused)}I", *refused)
        self.ask("send", CONFIRMED, body)

    def revoke(self, epoch, *regions):
        body = struct.pack("<QI", epoch, len(regions))
        for region in regions:
            body += struct.pack(
                "<IQQQ", 0, region.addr, region.size, region.device
            )
        self.ask("send", REVOKE, body)

    def refuse(self, name):
        body = b"x" * 16 + struct.pack("<I", len(name)) + name
        self.ask("send", REFUSE, body)

    def ended(self):
        """Has the other side ended the link?  Frames before that are
        skipped."""
        while self.ask("frame") is not None:
            pass
        return True


def serve(pipe):
    owner = None
    while True:
        try:
            method, args, keywords = pipe.recv()
        except EOFError:
            return
        if method == "exit":
            return
        try:
            value = None
            if method == "open":
                owner = Owner(*args)
            else:
                value = getattr(owner, method)(*args, **keywords)
            pipe.send((True, value))
        except Exception as error:
            pipe.send((False, (type(error).__name__, str(error), "")))


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
