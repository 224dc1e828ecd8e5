"""The messages on the pages of docs/ are those that the library gives.

A comment `<!-- provoked: NAME -->` before a message names a function of this
file, which makes the mistake.  Numbers, addresses and hosts may differ.
"""

import contextlib
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import vllm_nixl
from support import blob, hosts
from support.deadline import PATIENCE, or_kill
from support.peer import child_environment
from vllm_nixl import NixlAgent, NixlError, nixl_agent_config

DOCS = Path(__file__).resolve().parents[2] / "docs"
SIZE = 8 << 20
LONG_TIMES = 64000  # half a terabyte: no test waits until it ends
SECRETS = ("0123456789abcdef", "fedcba9876543210")
PROVOKED = re.compile(r"<!-- provoked: (\w+) -->\n```text\n(.*?)\n```\n")


def message(call):
    """The text of the error that call() raises."""
    with pytest.raises(NixlError) as caught:
        call()
    return str(caught.value)


class Scene:
    """Two agents of this process, decode and prefill, each with memory that
    it has registered."""

    def __init__(self, stack):
        self.decode = stack.enter_context(NixlAgent("decode"))
        self.prefill = stack.enter_context(NixlAgent("prefill"))
        self.stack = stack
        self.mine = vllm_nixl.shared_buffer(SIZE)
        self.theirs = vllm_nixl.shared_buffer(SIZE)
        self.decode.register_memory([(self.mine.address, SIZE, 0, "")], "DRAM")

    def register(self):
        return self.prefill.register_memory(
            [(self.theirs.address, SIZE, 0, "")], "DRAM"
        )

    def load(self):
        self.decode.add_remote_agent(self.prefill.get_agent_metadata())

    def rows(self, *offsets):
        """Rows of prefill's memory."""
        return [(self.theirs.address + offset, 64, 0) for offset in offsets]

    def prepare(self, *offsets):
        return self.decode.prep_xfer_dlist(
            "prefill", self.rows(*offsets), "DRAM"
        )

    def transfer(self):
        """Memory of prefill that is loaded, and a transfer that reads it."""
        descs = self.register()
        self.load()
        local = self.decode.prep_xfer_dlist(
            "", [(self.mine.address, 64, 0)], "DRAM"
        )
        return descs, self.decode.make_prepped_xfer(
            "READ", local, [0], self.prepare(0), [0]
        )

    def listener(self, **options):
        """The port of a side channel that serves prefill's metadata."""
        channel = vllm_nixl.TcpSideChannel(**options)
        self.stack.enter_context(channel)
        metadata = self.prefill.get_agent_metadata()
        return channel.start_listener(0, metadata)


# -- Connecting --------------------------------------------------------------


def refused(scene):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # but nobody listens
        port = taken.getsockname()[1]
        return message(lambda: scene.decode.attach("localhost", port))


def silent(scene):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        return message(
            lambda: scene.decode.attach("127.0.0.1", port, timeout_ms=500)
        )


def unknown_host(scene):
    if why := hosts.why_names_are_unclear():
        pytest.skip(why)
    return message(lambda: scene.decode.attach("no-such-host.invalid", 18000))


def in_use(scene):
    port = scene.listener()
    return message(lambda: scene.prefill.publish({}, port))


def no_secret(scene):
    port = scene.listener(secret=SECRETS[0])
    return message(lambda: scene.decode.attach("localhost", port))


def ask(port, kind=vllm_nixl.TcpSideChannel):
    channel = kind(secret=SECRETS[1])
    return message(lambda: channel.request_metadata("localhost", port))


def other_secret(scene):
    return ask(scene.listener(secret=SECRETS[0]))


def listener_without_secret(scene):
    return ask(scene.listener())


def zmq_secret(scene):
    return ask(scene.listener(), vllm_nixl.ZmqSideChannel)


def unsigned(scene):
    config = nixl_agent_config(metadata_secret=SECRETS[0])
    with NixlAgent("signed", config) as agent:
        metadata = scene.prefill.get_agent_metadata()
        return message(lambda: agent.add_remote_agent(metadata))


def own_metadata(scene):
    metadata = scene.decode.get_agent_metadata()
    return message(lambda: scene.decode.add_remote_agent(metadata))


def garbage(scene):
    return message(lambda: scene.decode.add_remote_agent(b"hello"))


def metadata_only(scene):
    port = scene.listener()
    return message(lambda: scene.decode.attach("localhost", port))


def other_host(scene):
    """Metadata without the entry that peers of this host use."""
    parts = blob.parse(scene.prefill.get_agent_metadata())
    parts = parts._replace(connections={b"UCX": b"address"})
    metadata = blob.write(parts)
    return message(lambda: scene.decode.add_remote_agent(metadata))


# -- Rows and memory ---------------------------------------------------------


def outside(scene):
    scene.register()
    scene.load()
    return message(lambda: scene.prepare(0, SIZE - 6))


def empty_peer(scene):
    scene.load()
    return message(lambda: scene.prepare(0))


def unknown_peer(scene):
    return message(lambda: scene.prepare(0))


def index(scene):
    _, handle = scene.transfer()
    handle.release()
    local = scene.decode.prep_xfer_dlist(
        "", [(scene.mine.address, 64, 0)], "DRAM"
    )
    remote = scene.prepare(0)
    return message(
        lambda: scene.decode.make_prepped_xfer("READ", local, [0], remote, [5])
    )


def deregistered(scene):
    descs, handle = scene.transfer()
    scene.prefill.deregister_memory(descs)
    return message(lambda: scene.decode.transfer(handle))


def not_posted(scene):
    _, handle = scene.transfer()
    return message(lambda: scene.decode.wait([handle]))


# -- Peers -------------------------------------------------------------------

SERVER = """
import sys
import vllm_nixl

agent = vllm_nixl.NixlAgent("prefill")
memory = vllm_nixl.shared_buffer(SIZE)
agent.register_memory([(memory.address, SIZE, 0, "")], "DRAM")
print(agent.publish({"kv": [(memory.address, SIZE, 0)]}), flush=True)
sys.stdin.read()
""".replace("SIZE", str(SIZE))


@contextlib.contextmanager
def another_process():
    """A prefill process, and the port of its publication."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        env=child_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            with or_kill(process):
                port = int(process.stdout.readline())
            yield process, port
        finally:
            process.kill()


@contextlib.contextmanager
def long_transfer(scene):
    """(process, handle): a transfer from another process, in flight, which
    does not end by itself."""
    agent = scene.decode
    with another_process() as (process, port):
        remote = agent.attach("localhost", port).rows("kv")
        local = agent.prep_xfer_dlist(
            "", [(scene.mine.address, SIZE, 0)], "DRAM"
        )
        times = [0] * LONG_TIMES
        with agent.make_prepped_xfer(
            "READ", local, times, remote, times
        ) as handle:
            assert agent.transfer(handle) == "PROC"
            yield process, handle


def killed(scene):
    with long_transfer(scene) as (process, handle):
        process.kill()
        return message(lambda: scene.decode.wait([handle], PATIENCE))


def peer_closed(scene):
    _, handle = scene.transfer()
    scene.prefill.close()
    return message(lambda: scene.decode.transfer(handle))


def wait_timeout(scene):
    with long_transfer(scene) as (_, handle):
        return message(lambda: scene.decode.wait([handle], 0.05))


# -- Engines and backends ----------------------------------------------------


def no_ucx(scene):
    """The tests set VLLM_NIXL_UCX_LIBRARY=none (conftest.py)."""
    return scene.decode.describe()["reach"]


def without_stock(call):
    if "nixl does not work here" not in (found := message(call)):
        pytest.skip("stock NIXL is installed")
    return found


def no_engine(scene):
    config = nixl_agent_config(backends=["UCX", "POSIX"])
    return without_stock(lambda: NixlAgent("me", config))


def no_posix(scene):
    config = nixl_agent_config(backends=["POSIX"])
    return without_stock(lambda: NixlAgent("me", config))


def unknown_backend(scene):
    config = nixl_agent_config(engine="native", backends=["POSIX"])
    return message(lambda: NixlAgent("me", config))


def etcd(scene):
    return message(lambda: scene.decode.fetch_remote_metadata("prefill"))


# -- The pages ---------------------------------------------------------------


def shape(text):
    """A message without what differs between two runs."""
    text = re.sub(
        r"\b(localhost|prefill-host|(\d+\.){3}\d+|::1)(?=[\W])", "HOST", text
    )
    text = re.sub(r"0x[0-9a-f]+|\d+(\.\d+)?", "0", text)
    return re.sub(r"HOST(, HOST)+", "HOST", text)


CASES = [
    pytest.param(match[1], match[2], id=f"{path.stem}-{match[1]}")
    for path in sorted(DOCS.rglob("*.md"))
    for match in PROVOKED.finditer(path.read_text())
]


@pytest.mark.parametrize(("name", "text"), CASES)
def test_the_library_gives_the_message(name, text):
    with contextlib.ExitStack() as stack:
        found = globals()[name](Scene(stack))
    pattern = ".*".join(map(re.escape, shape(text).split("...")))
    assert re.fullmatch(pattern, shape(found)), found


def test_another_message_is_noticed():
    text = "NIXL_ERR_NOT_FOUND: call: row 1 (address 0x10), peer 'a': b"
    assert shape(text) == shape(text.replace("0x10", "0x7f"))
    assert shape(text) != shape(text.replace("row 1", "column 1"))


def test_every_comment_names_a_message():
    for path in DOCS.rglob("*.md"):
        text = path.read_text()
        assert len(PROVOKED.findall(text)) == text.count("provoked: "), path
