"""The HTTP side channel with other programs at the other end.

curl and http.client send requests to it; it sends requests to http.server and
raw sockets.
"""

import contextlib
import http.client
import http.server
import shutil
import socket
import ssl
import subprocess
import threading

import pytest
from support.certificates import make_certificates

with contextlib.suppress(ModuleNotFoundError):  # `module` fails for it
    import vllm_nixl

pytestmark = [pytest.mark.beyond_stock, pytest.mark.usefixtures("module")]

HOST = "127.0.0.1"
SECRET = "correct horse battery staple"
BLOB = bytes(range(256)) * 4
BLOBS = {None: BLOB, (0, 1): b"rank", "prefill/ü": b"name", "empty": b""}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def make(**options):
    try:
        return vllm_nixl.HttpSideChannel(**options)
    except vllm_nixl.nixlNotSupportedError as error:
        pytest.skip(str(error))


@pytest.fixture
def server():
    with make() as made:
        made.start_listener(0, BLOBS)
        yield made


@pytest.fixture
def client():
    with make() as made:
        yield made


def get(port, path, headers=None):
    connection = http.client.HTTPConnection(HOST, port, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", path, headers=headers or {})
        reply = connection.getresponse()
        return reply.status, reply.read(), reply.headers


def curl(*arguments, check=True):
    if shutil.which("curl") is None:
        pytest.skip("the command curl is missing")
    return subprocess.run(
        ["curl", "--silent", "--show-error", "--max-time", "30", *arguments],
        check=check,
        capture_output=True,
    )


# -- Other clients ----------------------------------------------------------


def test_http_client_gets_each_key(server):
    assert get(server.port, "/metadata")[:2] == (200, BLOB)
    assert get(server.port, "/metadata/0,1")[:2] == (200, b"rank")
    assert get(server.port, "/metadata/0%2C1")[:2] == (200, b"rank")
    assert get(server.port, "/metadata/prefill/%c3%bc")[:2] == (200, b"name")
    assert get(server.port, "/metadata/empty")[:2] == (200, b"")
    assert get(server.port, "/health")[:2] == (200, b"ok\n")
    status, text, _ = get(server.port, "/metadata/9,9")
    assert status == 404
    assert b"prefill" not in text


def test_http_client_keeps_its_connection(server):
    connection = http.client.HTTPConnection(HOST, server.port, timeout=30)
    with contextlib.closing(connection):
        for _ in range(20):
            connection.request("GET", "/metadata")
            assert connection.getresponse().read() == BLOB
    assert server.stats()["accepted"] == 1


def test_matching_etag_omits_the_body(server):
    _, _, headers = get(server.port, "/metadata")
    etag = {"If-None-Match": headers["ETag"]}
    assert get(server.port, "/metadata", etag)[:2] == (304, b"")
    server.set_metadata(b"new")
    assert get(server.port, "/metadata", etag)[:2] == (200, b"new")


def test_curl_gets_each_key(server, tmp_path):
    url = f"http://{HOST}:{server.port}"
    assert curl(f"{url}/metadata").stdout == BLOB
    assert curl(f"{url}/metadata/0,1").stdout == b"rank"
    assert curl("--fail", f"{url}/health").stdout == b"ok\n"
    assert curl("--fail", f"{url}/metadata/9,9", check=False).returncode == 22
    head = curl("--head", f"{url}/metadata").stdout
    assert b"Content-Length: 1024\r\n" in head
    kept = tmp_path / "etag"
    options = ["--etag-save", str(kept), "--etag-compare", str(kept)]
    assert curl(*options, f"{url}/metadata").stdout == BLOB
    assert curl(*options, f"{url}/metadata").stdout == b""


def test_curl_proves_the_secret():
    with make(secret=SECRET) as server:
        url = f"http://{HOST}:{server.start_listener(0, BLOBS)}/metadata"
        assert (
            curl("-H", f"Authorization: Bearer {SECRET}", url).stdout == BLOB
        )
        for header in ("X: y", "Authorization: Bearer x"):
            reply = curl("-i", "-H", header, url).stdout
            assert reply.startswith(b"HTTP/1.1 401 ")
            assert SECRET.encode() not in reply
            assert BLOB not in reply


@pytest.fixture
def own_address():
    """An address of this machine that is not loopback."""
    with make() as any_channel:
        any_channel.start_listener(0, BLOB, "0.0.0.0")
        host, _ = any_channel.advertised_address()
    if host.startswith("127."):
        pytest.skip("this machine has no IPv4 address but loopback")
    return host


def test_a_token_is_taken_from_loopback_or_over_tls_only(
    own_address, tmp_path
):
    token = ("-H", f"Authorization: Bearer {SECRET}")
    with make(secret=SECRET) as server:
        port = server.start_listener(0, BLOB)
        assert curl(*token, f"http://{HOST}:{port}/metadata").stdout == BLOB
        url = f"http://{own_address}:{port}"
        for arguments in (token, ()):
            reply = curl("-i", *arguments, f"{url}/metadata").stdout
            assert reply.startswith(b"HTTP/1.1 403 ")
            assert b"only over TLS or from a loopback address" in reply
            assert BLOB not in reply
        assert curl("--fail", f"{url}/health").stdout == b"ok\n"
        assert server.stats()["refusals"]["no_proof"] == 2
    folder = make_certificates(tmp_path)
    with make(
        secret=SECRET,
        tls_certificate=str(folder / "server.pem"),
        tls_key=str(folder / "server.key"),
    ) as server:
        url = f"https://{own_address}:{server.start_listener(0, BLOB)}"
        got = curl("--insecure", *token, f"{url}/metadata")
        assert got.stdout == BLOB


@pytest.mark.parametrize("by_proxy", [False, True])
def test_a_token_is_sent_to_loopback_or_over_tls_only(
    own_address, monkeypatch, by_proxy
):
    with (
        make(secret=SECRET) as client,
        socket.create_server((own_address, 0)) as listener,
        socket.create_server((HOST, 0)) as proxy,
    ):
        port = listener.getsockname()[1]
        if by_proxy:
            where = f"http://{HOST}:{proxy.getsockname()[1]}"
            monkeypatch.setenv("http_proxy", where)
        with pytest.raises(
            vllm_nixl.nixlNotAllowedError, match="only over TLS"
        ) as info:
            client.request_metadata(own_address, port, retries=3)
        assert info.value.peer == f"{own_address}:{port}"
        for sock in (listener, proxy):  # nobody was even connected to
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.accept()


def test_curl_and_python_use_tls(tmp_path):
    folder = make_certificates(tmp_path)
    with make(
        tls_certificate=str(folder / "server.pem"),
        tls_key=str(folder / "server.key"),
    ) as server:
        port = server.start_listener(0, BLOBS)
        url = f"https://localhost:{port}/metadata/0,1"
        ca = str(folder / "ca.pem")
        assert curl("--cacert", ca, url).stdout == b"rank"
        wrong = curl("--cacert", str(folder / "nobody.pem"), url, check=False)
        assert wrong.returncode == 60
        connection = http.client.HTTPSConnection(
            "localhost", port, context=ssl.create_default_context(cafile=ca)
        )
        with contextlib.closing(connection):
            for _ in range(3):
                connection.request("GET", "/metadata")
                assert connection.getresponse().read() == BLOB
        with make(tls_ca=ca) as ours:
            assert ours.request_metadata("localhost", port) == BLOB


# -- Other servers ----------------------------------------------------------


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = {"/metadata": BLOB, "/metadata/0,1": b"rank"}.get(self.path)
        self.send_response(200 if body is not None else 404)
        self.send_header("Content-Length", str(len(body or b"")))
        self.end_headers()
        self.wfile.write(body or b"")

    def log_message(self, format, *arguments):
        pass


def test_metadata_is_fetched_from_http_server(client):
    with http.server.ThreadingHTTPServer((HOST, 0), Handler) as other:
        thread = threading.Thread(target=other.serve_forever)
        thread.start()
        try:
            port = other.server_address[1]
            assert client.request_metadata(HOST, port) == BLOB
            assert client.request_metadata(HOST, port, key=(0, 1)) == b"rank"
            with pytest.raises(vllm_nixl.nixlNotFoundError, match="'9,9'"):
                client.request_metadata(HOST, port, key=(9, 9))
        finally:
            other.shutdown()
            thread.join()


@contextlib.contextmanager
def raw_server(reply):
    """Send `reply` to one client, whatever it requests; yields the port."""
    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(30)

        def serve():
            with listener.accept()[0] as sock:
                sock.settimeout(30)
                data = b""
                while b"\r\n\r\n" not in data and (piece := sock.recv(4096)):
                    data += piece
                sock.sendall(reply)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("reply", "error", "text"),
    [
        (b"", "nixlBackendError", "without a reply"),
        (b"HTTP/1.1 200 OK\r\n\r\nx", "nixlMismatchError", "without a length"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf",
            "nixlBackendError",
            "4 of 9 bytes",
        ),
        (
            b"HTTP/1.1 301 M\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n",
            "nixlMismatchError",
            "redirects are not followed",
        ),
        (
            b"HTTP/1.1 500 E\r\nContent-Length: 0\r\n\r\n",
            "nixlBackendError",
            "status 500",
        ),
        (
            b"HTTP/1.1 401 E\r\nContent-Length: 0\r\n\r\n",
            "nixlNotAllowedError",
            "secret",
        ),
    ],
)
def test_invalid_http_reply_is_an_error(client, reply, error, text):
    with (
        raw_server(reply) as port,
        pytest.raises(getattr(vllm_nixl, error), match=text) as info,
    ):
        client.request_metadata(HOST, port)
    assert info.value.peer == f"{HOST}:{port}"


def test_chunked_reply_is_reassembled(client):
    reply = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n"
    )
    with raw_server(reply) as port:
        assert client.request_metadata(HOST, port) == b"abcdefg"
