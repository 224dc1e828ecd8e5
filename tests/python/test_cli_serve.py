"""`vllm-nixl serve` and `fetch` on every transport, and doctor HOST:PORT."""

import contextlib
import re
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest
import vllm_nixl
from support import cli, hosts, ucx
from support.certificates import make_certificates
from support.ports import reserve_port
from support.transports import TRANSPORTS
from vllm_nixl._cli import channel

pytestmark = pytest.mark.beyond_stock

DOCS = Path(__file__).resolve().parents[2] / "docs"
NO_UCX = {"VLLM_NIXL_UCX_LIBRARY": "none"}
SECRET = {channel.SECRET: "correct horse battery staple"}
LOCAL = ("--host", "127.0.0.1", "--port", "0")


@pytest.fixture(params=TRANSPORTS, ids=lambda transport: transport.name)
def transport(request):
    with request.param.make():
        return request.param


def place(served):
    return f"{served['host']}:{served['port']}"


@pytest.fixture
def file(tmp_path):
    made = tmp_path / "blob"
    made.write_bytes(bytes(range(256)) * 50)
    return made


# -- serve and fetch ---------------------------------------------------------


def test_a_file(transport, file, tmp_path):
    options = ("--transport", transport.name)
    with cli.serving(file, *options, *LOCAL) as served:
        done = cli.run("fetch", *options, place(served), input=b"")
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == file.read_bytes()
        out = tmp_path / "out"
        found = cli.run_json("fetch", *options, place(served), "-o", out)
        assert found["bytes"] == 12800
        assert out.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("key", ["0,1", "name"])
def test_a_key(transport, file, key):
    options = ("--transport", transport.name, "--key", key)
    with cli.serving(file, *options, *LOCAL) as served:
        done = cli.run("fetch", *options, place(served), input=b"")
        assert done.stdout == file.read_bytes()
        done = cli.run("fetch", *options[:3], "7,7", place(served))
        assert done.returncode == 3
        assert "NIXL_ERR_NOT_FOUND" in done.stderr


def test_a_secret(transport, file):
    if not transport.has_secret:
        pytest.skip(f"{transport.name} has no secrets")
    options = ("--transport", transport.name)
    with cli.serving(file, *options, *LOCAL, env=SECRET) as served:
        done = cli.run("fetch", *options, place(served), env=SECRET, input=b"")
        assert done.stdout == file.read_bytes()
        done = cli.run("fetch", *options, place(served))
        assert done.returncode == 3
        assert "NIXL_ERR_NOT_ALLOWED" in done.stderr


def test_certificates(transport, file, tmp_path):
    if not transport.has_tls or not vllm_nixl.features["tls"]:
        pytest.skip(f"{transport.name} has no TLS here")
    made = make_certificates(tmp_path)
    options = ("--transport", transport.name)
    certificate = ("--tls-certificate", made / "server.pem")
    key = ("--tls-key", made / "server.key")
    with cli.serving(file, *options, *LOCAL, *certificate, *key) as served:
        asked = (*options, place(served))
        done = cli.run("fetch", *asked, "--tls-ca", made / "ca.pem", input=b"")
        assert done.stdout == file.read_bytes()
        done = cli.run("fetch", *asked, "--tls")
        assert done.returncode == 3
        assert "certificate" in done.stderr


def test_an_agent_with_test_rows(transport):
    options = ("--transport", transport.name)
    rows = ("--rows", "5", "--name", "tester")
    with cli.serving(*options, *LOCAL, *rows, env=NO_UCX) as served:
        asked = (*options, place(served))
        blob = cli.run("fetch", *asked, input=b"").stdout
        found = cli.run_json("inspect", blob.hex())
        assert (found["kind"], found["agent"]) == ("metadata", "tester")
        blob = cli.run("fetch", "--publication", *asked, input=b"").stdout
        (part,) = cli.run_json("inspect", blob.hex())["lists"]
        assert (part["rows"], part["bytes"]) == (5, 5 * 4096)
        assert part["name"] == served["list"]


def test_an_end_after_seconds(file):
    done = cli.run("serve", file, *LOCAL, "--seconds", "0.2")
    assert done.returncode == 0
    assert "12,800 bytes by tcp" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("served 0, refused 0")


def test_retries_until_somebody_listens(file):
    port = reserve_port()
    options = ("--timeout", "30", "--retries", "1000")
    with subprocess.Popen(
        [*cli.COMMAND, "fetch", f"127.0.0.1:{port}", *options],
        stdout=subprocess.PIPE,
        env=cli.environment(),
    ) as fetching:
        time.sleep(0.3)
        address = ("--host", "127.0.0.1", "--port", port)
        with cli.serving(file, *address):
            assert fetching.communicate(timeout=60)[0] == file.read_bytes()
    assert fetching.returncode == 0


def test_a_timeout():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        done = cli.run("fetch", f"127.0.0.1:{port}", "--timeout", "0.2")
    assert done.returncode == 3
    assert "NIXL_ERR_TIMEOUT" in done.stderr


def test_binary_is_not_written_to_a_terminal(file):
    with cli.serving(file, *LOCAL) as served:
        status, output = cli.run_on_terminal("fetch", place(served))
    assert status == 3
    assert "-o FILE" in output


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--rows", "0"], "--rows must be"),
        (["--rows", "257"], "--rows must be"),
        (["--key", "x"], "--key needs FILE"),
        (["/missing"], "No such file"),
    ],
)
def test_what_serve_refuses(arguments, text):
    done = cli.run("serve", *arguments)
    assert done.returncode == 3
    assert text in done.stderr


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("host:1", ("host", 1)),
        ("host", ("host", 5600)),
        ("[::1]:65535", ("::1", 65535)),
        ("[::1]", ("::1", 5600)),
        ("::1", ("::1", 5600)),
    ],
)
def test_addresses(text, found):
    assert channel.address(text) == found


@pytest.mark.parametrize("text", ["", ":1", "h:", "h:0", "h:65536", "h:x"])
def test_addresses_that_are_refused(text):
    done = cli.run("fetch", text)
    assert done.returncode == 2
    assert "argument HOST:PORT" in done.stderr


# -- doctor HOST:PORT --------------------------------------------------------


def by_check(report):
    found = {f["check"]: f for f in report["findings"]}
    assert len(found) == len(report["findings"])
    return found


def test_doctor_verifies_test_rows(transport):
    options = ("--transport", transport.name)
    with cli.serving(*options, *LOCAL, env=NO_UCX) as served:
        report = cli.run_json("doctor", place(served), env=NO_UCX)
    found = by_check(report)
    assert f"{transport.name} answers" in found["side channel"]["seen"]
    assert "agent 'serve'" in found["metadata"]["seen"]
    assert found["transfer"]["seen"] == (
        "test-rows: read 64 of 64 rows, 262,144 bytes, verified"
    )
    assert found["route"]["seen"].startswith("SHM")
    assert report["answer"]["agent"] == "serve"


def test_doctor_with_a_secret(transport):
    if not transport.has_secret:
        pytest.skip(f"{transport.name} has no secrets")
    options = ("--transport", transport.name)
    env = {**NO_UCX, **SECRET}
    with cli.serving(*options, *LOCAL, env=env) as served:
        report = cli.run_json("doctor", *options, place(served), env=env)
        assert "verified" in by_check(report)["transfer"]["seen"]
        report = cli.run_json(
            "doctor", *options, place(served), env=NO_UCX, status=1
        )
        refused = by_check(report)["side channel"]
        assert refused["level"] == "bad"
        assert channel.SECRET in refused["change"]


def test_doctor_says_why_shm_is_not_used():
    if ucx.any_library() is None:
        pytest.skip("no wheel with UCX is installed")
    with cli.serving(*LOCAL) as served:
        env = {"VLLM_NIXL_SAME_HOST": "0"}
        report = cli.run_json("doctor", place(served), env=env)
    found = by_check(report)
    assert found["transfer"]["seen"].endswith("verified")
    assert found["route"]["level"] == "warning"
    assert "UCX (" in found["route"]["seen"]
    assert "VLLM_NIXL_SAME_HOST=0 disables SHM" in found["route"]["cause"]


def test_doctor_over_a_network():
    """Two network namespaces: as two containers of one host."""
    if ucx.any_library() is None:
        pytest.skip("no wheel with UCX is installed")
    if why := hosts.why_none():
        pytest.skip(why)
    try:
        made = hosts.two_hosts()
    except OSError as error:
        pytest.skip(str(error))
    try:
        with cli.serving("--port", "0", wrap=made.inside(0)) as served:
            assert served["host"] == made.addresses[0]
            report = cli.run_json("doctor", place(served), wrap=made.inside(1))
    finally:
        made.remove()
    found = by_check(report)
    assert found["transfer"]["seen"].endswith("verified")
    text = (DOCS / "command_line.md").read_text()
    route = found["route"]
    for key, name in (
        ("seen", "warning route"),
        ("cause", "cause"),
        ("change", "change"),
    ):
        (page,) = re.findall(
            rf"^ +{name}  +((?:.*tcp/|.*SHM is not|if both).*)$", text, re.M
        )
        device = r"tcp/\w+"
        assert re.sub(device, "", route[key]) == re.sub(device, "", page)


def test_doctor_reads_from_metadata_alone(tmp_path):
    """No publication: the beginning of the first region is read."""
    with vllm_nixl.NixlAgent("plain") as agent:
        memory = vllm_nixl.shared_buffer(65536)
        rows = [(memory.address, memory.nbytes, 0, "")]
        registered = agent.register_memory(rows, "DRAM")
        port = agent.start_side_channel_listener(
            0, agent.get_agent_metadata(), "127.0.0.1"
        )
        report = cli.run_json("doctor", f"127.0.0.1:{port}", env=NO_UCX)
        agent.deregister_memory(registered)
    found = by_check(report)
    assert found["transfer"]["seen"] == (
        "first: read 1 of 1 rows, 4,096 bytes, not verified"
    )


def test_doctor_asks_a_running_vllm():
    zmq = pytest.importorskip("zmq", reason="pyzmq is missing")
    msgpack = pytest.importorskip("msgpack", reason="msgpack is missing")
    from support.vllm_listener import stock_listener

    with vllm_nixl.NixlAgent("vllm-worker") as agent:
        memory = vllm_nixl.shared_buffer(65536)
        rows = [(memory.address, memory.nbytes, 0, "")]
        agent.register_memory(rows, "DRAM")
        inner = {
            "engine_id": "e1",
            "agent_metadata": agent.get_agent_metadata(),
            "num_blocks": 7,
        }
        handshake = {
            "compatibility_hash": "0" * 64,
            "agent_metadata_bytes": msgpack.packb(inner),
        }
        with (
            zmq.Context() as context,
            stock_listener(
                context, {(0, 0): msgpack.packb(handshake)}
            ) as router,
        ):
            report = cli.run_json(
                "doctor", f"127.0.0.1:{router.port}", env=NO_UCX
            )
        agent.close()
    found = by_check(report)
    assert "vLLM handshake: agent 'vllm-worker'" in found["metadata"]["seen"]
    assert found["transfer"]["seen"].endswith("4,096 bytes, not verified")
    assert report["answer"]["vllm"]["num_blocks"] == 7
    # Only requests of vLLM's own form reached it.
    assert router.failure is None
    assert router.requests == [(0, 0)]


def test_doctor_asks_a_metadata_listener():
    config = vllm_nixl.nixl_agent_config(
        enable_listen_thread=True, listen_port=0, listen_host="127.0.0.1"
    )
    with vllm_nixl.NixlAgent("listening", config) as agent:
        memory = vllm_nixl.shared_buffer(65536)
        rows = [(memory.address, memory.nbytes, 0, "")]
        registered = agent.register_memory(rows, "DRAM")
        address = f"127.0.0.1:{agent.listen_port}"
        report = cli.run_json("doctor", address, env=NO_UCX)
        agent.deregister_memory(registered)
    found = by_check(report)
    assert "metadata listener answers" in found["side channel"]["seen"]
    assert "agent 'listening'" in found["metadata"]["seen"]
    assert found["transfer"]["seen"].endswith("4,096 bytes, not verified")


def test_doctor_and_a_port_without_a_listener():
    port = reserve_port()
    report = cli.run_json("doctor", f"127.0.0.1:{port}", status=1)
    found = by_check(report)["connection"]
    assert "refused" in found["seen"]
    assert "ss -ltn" in found["change"]


def test_doctor_and_an_unknown_name():
    report = cli.run_json("doctor", "no-such-host.invalid", status=1)
    assert "name" in by_check(report)["connection"]["cause"]


def test_doctor_and_a_host_that_drops_packets():
    if why := hosts.why_none():
        pytest.skip(why)
    try:
        made = hosts.one_host("veth")
    except OSError as error:
        pytest.skip(str(error))
    try:
        options = ("10.213.7.99:5600", "--timeout", "0.3")
        report = cli.run_json(
            "doctor", *options, wrap=made.inside(0), status=1
        )
    finally:
        made.remove()
    assert "no answer within 0.3 s" in by_check(report)["connection"]["seen"]


def test_doctor_and_another_program():
    """A server that speaks first and closes, as SMTP or SSH do."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def serve():
            while True:
                try:
                    made, _ = server.accept()
                except OSError:
                    return
                with made, contextlib.suppress(ConnectionError):
                    made.sendall(b"220 hello\r\n")

        threading.Thread(target=serve, daemon=True).start()
        report = cli.run_json("doctor", f"127.0.0.1:{port}", status=1)
        server.shutdown(socket.SHUT_RDWR)
    found = by_check(report)["side channel"]
    assert "none of zmq, tcp, http" in found["seen"]
    for name in ("zmq: ", "tcp: ", "http: ", "metadata listener: "):
        assert name in found["cause"]


def test_doctor_and_bytes_that_are_no_metadata(file):
    with cli.serving(file, *LOCAL) as served:
        report = cli.run_json("doctor", place(served), status=1)
    assert by_check(report)["metadata"]["level"] == "bad"


def test_doctor_and_a_key_that_is_not_served(file):
    with cli.serving(file, *LOCAL, "--key", "other") as served:
        report = cli.run_json("doctor", place(served), status=1)
        assert (
            "nothing under a default key"
            in (by_check(report)["side channel"]["seen"])
        )


def test_doctor_and_an_agent_that_has_ended(tmp_path):
    with vllm_nixl.NixlAgent("gone") as agent:
        memory = vllm_nixl.shared_buffer(4096)
        rows = [(memory.address, memory.nbytes, 0, "")]
        agent.register_memory(rows, "DRAM")
        blob = tmp_path / "blob"
        blob.write_bytes(agent.get_agent_metadata())
    with cli.serving(blob, *LOCAL) as served:
        report = cli.run_json("doctor", place(served), env=NO_UCX, status=1)
    found = by_check(report)
    assert found["metadata"]["level"] == "ok"
    assert found["transfer"]["level"] == "bad"
    assert found["transfer"]["cause"].startswith("NIXL_ERR_")
