"""Proofs and TLS of the TCP side channel, from the bytes.

The other end is written here with sockets, hmac and ssl; docs/wire.md has the
bytes.
"""

import contextlib
import hashlib
import hmac
import os
import socket
import ssl
import struct
import threading

import pytest
from support.certificates import make_certificates
from support.deadline import until

with contextlib.suppress(ModuleNotFoundError):  # `module` fails for it
    import vllm_nixl
    from vllm_nixl import TcpSideChannel

pytestmark = [pytest.mark.beyond_stock, pytest.mark.usefixtures("module")]

HOST = "127.0.0.1"
SECRET = "correct horse battery staple"
BLOB = b"\xa5\x5a the metadata \x5a\xa5"
KEY = b"0,1"

GET, HELLO, PROVE, SEALED = (b"VNX1" + bytes([kind]) for kind in (1, 2, 3, 4))
BLOB_FOLLOWS, CHALLENGE, PROVED = b"\x00", b"\x01", b"\x02"
UNKNOWN_KEY, NO_PROOF, WRONG_PROOF, NO_SECRET, MALFORMED = range(16, 21)


def mac(key, *parts):
    return hmac.new(key, b"".join(parts), hashlib.sha256).digest()


class Proof:
    """Both nonces, and what each side makes of them."""

    def __init__(self, client, server, secret=SECRET):
        self.secret = secret.encode()
        self.nonces = client + server
        self.session = self.of(b"vnx1 session")

    def of(self, label):
        return mac(self.secret, label, self.nonces)

    def request(self, key):
        return mac(self.session, b"vnx1 request", key)

    def reply(self, key, status, data):
        digest = hashlib.sha256(data).digest()
        return mac(
            self.session,
            b"vnx1 reply",
            bytes([len(key)]),
            key,
            status,
            digest,
        )


class Talk:
    """Frames over a socket."""

    def __init__(self, sock):
        self.sock = sock

    def send(self, *parts):
        payload = b"".join(parts)
        self.sock.sendall(struct.pack(">I", len(payload)) + payload)

    def receive(self):
        """The next frame; b'' at the end."""
        header = self.sock.recv(4, socket.MSG_WAITALL)
        if len(header) < 4:
            return b""
        (size,) = struct.unpack(">I", header)
        return self.sock.recv(size, socket.MSG_WAITALL)

    def ended(self):
        with contextlib.suppress(ConnectionResetError):
            return self.sock.recv(1) == b""
        return True


@contextlib.contextmanager
def connected(port):
    with socket.create_connection((HOST, port), timeout=30) as sock:
        yield Talk(sock)


@contextlib.contextmanager
def raw_server(serve):
    """One client is handed to `serve(talk)`; yields the port."""
    failures = []

    def run():
        try:
            sock, _ = listener.accept()
            with sock, contextlib.suppress(ConnectionError):
                sock.settimeout(30)
                serve(Talk(sock))
        except BaseException as error:
            failures.append(error)

    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(30)
        thread = threading.Thread(target=run)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(30)
    assert failures == []


@pytest.fixture
def server():
    with TcpSideChannel(secret=SECRET) as made:
        made.start_listener(0, {None: b"base", KEY: BLOB})
        yield made


@pytest.fixture
def client():
    with TcpSideChannel(secret=SECRET) as made:
        yield made


def hello(talk, nonce, secret=SECRET):
    talk.send(HELLO, nonce)
    reply = talk.receive()
    assert reply[:1] == CHALLENGE
    assert len(reply) == 33
    return Proof(nonce, reply[1:], secret)


def prove(talk, nonce):
    proof = hello(talk, nonce)
    talk.send(PROVE, proof.of(b"vnx1 client"))
    assert talk.receive() == PROVED + proof.of(b"vnx1 server")
    return proof


# -- A raw client -----------------------------------------------------------


def test_a_raw_client_that_knows_the_secret_is_served(server):
    with connected(server.port) as talk:
        proof = prove(talk, os.urandom(32))
        talk.send(SEALED, proof.request(KEY), KEY)
        expected = proof.reply(KEY, BLOB_FOLLOWS, BLOB)
        assert talk.receive() == BLOB_FOLLOWS + expected + BLOB
        assert talk.ended()


def test_an_unknown_key_is_told_under_seal(server):
    with connected(server.port) as talk:
        proof = prove(talk, os.urandom(32))
        talk.send(SEALED, proof.request(b"9,9"), b"9,9")
        reply = talk.receive()
        assert reply[0] == UNKNOWN_KEY
        assert reply[1:33] == proof.reply(b"9,9", reply[:1], reply[33:])
        assert KEY not in reply[33:]


@pytest.mark.parametrize(
    ("frame", "status"),
    [
        (GET, NO_PROOF),
        (GET + KEY, NO_PROOF),
        (PROVE + bytes(32), MALFORMED),
        (SEALED + bytes(32) + KEY, MALFORMED),
    ],
)
def test_nothing_is_said_without_a_proof(server, frame, status):
    with connected(server.port) as talk:
        talk.send(frame)
        assert talk.receive()[0] == status
        assert talk.ended()
    assert server.stats()["served"] == 0


def test_the_first_protocol_is_refused_where_a_secret_is_set(server):
    with connected(server.port) as talk:
        talk.send(b"GET_METADATA")
        assert talk.ended()
    assert server.stats()["refusals"]["no_proof"] == 1


@pytest.mark.parametrize("secret", [SECRET + " ", SECRET[:-1], "x" * 28])
def test_a_wrong_secret_is_refused(server, secret):
    with connected(server.port) as talk:
        proof = hello(talk, os.urandom(32), secret)
        talk.send(PROVE, proof.of(b"vnx1 client"))
        assert talk.receive()[0] == WRONG_PROOF
        assert talk.ended()
    assert server.stats()["refusals"]["wrong_proof"] == 1


def test_no_other_part_of_the_proof_serves_for_it(server):
    for label in (b"vnx1 server", b"vnx1 session", b"vnx1 request", b""):
        with connected(server.port) as talk:
            proof = hello(talk, os.urandom(32))
            talk.send(PROVE, proof.of(label))
            assert talk.receive()[0] == WRONG_PROOF


def test_a_proof_is_worth_nothing_on_another_connection(server):
    nonce = os.urandom(32)
    with connected(server.port) as talk:
        heard = prove(talk, nonce)
    with connected(server.port) as talk:
        hello(talk, nonce)
        talk.send(PROVE, heard.of(b"vnx1 client"))
        assert talk.receive()[0] == WRONG_PROOF
    with connected(server.port) as talk:
        prove(talk, nonce)
        talk.send(SEALED, heard.request(KEY), KEY)
        assert talk.receive()[0] == WRONG_PROOF
    assert server.stats()["served"] == 0


def test_a_whole_exchange_that_was_heard_is_no_use(server):
    nonce = os.urandom(32)
    with connected(server.port) as talk:
        proof = prove(talk, nonce)
    with connected(server.port) as talk:
        talk.send(HELLO, nonce)
        talk.send(PROVE, proof.of(b"vnx1 client"))
        talk.send(SEALED, proof.request(KEY), KEY)
        assert talk.receive()[:1] == CHALLENGE
        assert talk.receive()[0] == WRONG_PROOF
        assert talk.ended()


def test_the_seal_is_for_the_key_that_is_asked(server):
    with connected(server.port) as talk:
        proof = prove(talk, os.urandom(32))
        talk.send(SEALED, proof.request(b""), KEY)
        assert talk.receive()[0] == WRONG_PROOF


# -- A raw server -----------------------------------------------------------


def honest(data, change=lambda reply: reply, key=KEY):
    """Serve `data` by the protocol, the last reply as `change` makes it."""

    def serve(talk):
        nonce = os.urandom(32)
        request = talk.receive()
        assert request[:5] == HELLO
        assert len(request) == 37
        talk.send(CHALLENGE, nonce)
        proof = Proof(request[5:], nonce)
        assert talk.receive() == PROVE + proof.of(b"vnx1 client")
        talk.send(PROVED, proof.of(b"vnx1 server"))
        assert talk.receive() == SEALED + proof.request(key) + key
        seal = proof.reply(key, BLOB_FOLLOWS, data)
        talk.send(change(BLOB_FOLLOWS + seal + data))

    return serve


@pytest.mark.parametrize("data", [b"", b"x", BLOB * 10_000])
def test_a_raw_server_that_knows_the_secret_is_believed(client, data):
    with raw_server(honest(data)) as port:
        assert client.request_metadata(HOST, port, key=KEY) == data
    with raw_server(honest(data, key=b"")) as port:
        assert client.request_metadata(HOST, port) == data


@pytest.mark.parametrize(
    "change",
    [
        lambda reply: reply[:-1] + b"!",
        lambda reply: reply[:-1],
        lambda reply: reply + b"!",
        lambda reply: reply[:1] + bytes(32) + reply[33:],
        lambda reply: bytes([UNKNOWN_KEY]) + reply[1:],
        lambda reply: b"\x00",
        lambda reply: b"",
    ],
)
def test_a_reply_that_was_changed_is_not_believed(client, change):
    with (
        raw_server(honest(BLOB, change)) as port,
        pytest.raises(vllm_nixl.nixlNotAllowedError, match="seal"),
    ):
        client.request_metadata(HOST, port, key=KEY)


def test_a_false_server_gets_neither_the_key_nor_belief(client):
    heard = []

    def serve(talk):
        heard.append(talk.receive())
        talk.send(CHALLENGE, bytes(32))
        heard.append(talk.receive())
        talk.send(PROVED, bytes(32))
        heard.append(talk.receive())

    with (
        raw_server(serve) as port,
        pytest.raises(vllm_nixl.nixlNotAllowedError, match="does not know"),
    ):
        client.request_metadata(HOST, port, key="the name of a key")
    assert heard[2] == b""
    assert not any(b"the name" in frame for frame in heard)


def test_a_server_that_plays_the_clients_proof_back_is_not_believed(client):
    def serve(talk):
        nonce = talk.receive()[5:]
        talk.send(CHALLENGE, nonce)  # the client's own
        talk.send(PROVED, talk.receive()[5:])

    with (
        raw_server(serve) as port,
        pytest.raises(vllm_nixl.nixlNotAllowedError, match="does not know"),
    ):
        client.request_metadata(HOST, port)


@pytest.mark.parametrize(
    "reply",
    [
        b"",
        b"\x00" + BLOB,
        CHALLENGE,
        CHALLENGE + bytes(31),
        CHALLENGE + bytes(33),
        PROVED + bytes(32),
        b"\xff" + bytes(32),
    ],
)
def test_a_reply_out_of_turn_is_none_of_the_protocol(client, reply):
    def serve(talk):
        talk.receive()
        talk.send(reply)

    with (
        raw_server(serve) as port,
        pytest.raises(vllm_nixl.nixlMismatchError),
    ):
        client.request_metadata(HOST, port)


def test_the_metadata_of_a_server_without_a_secret_is_not_taken(client):
    def serve(talk):
        talk.receive()
        talk.send(BLOB)  # as the first protocol has it

    with (
        raw_server(serve) as port,
        pytest.raises(vllm_nixl.nixlMismatchError),
    ):
        client.request_metadata(HOST, port)


def test_the_secret_is_nowhere_to_be_seen(client, server, capfd):
    shown = [repr(client), str(server.stats()), repr(client.__dict__)]
    with connected(server.port) as talk:
        proof = hello(talk, os.urandom(32), "another secret")
        talk.send(PROVE, proof.of(b"vnx1 client"))
        shown.append(str(talk.receive()))
    with pytest.raises(vllm_nixl.NixlError) as info:
        client.request_metadata(HOST, 1)
    shown.append(repr(info.value.__dict__))
    shown += capfd.readouterr()
    assert not any(SECRET in text for text in shown)


# -- TLS --------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def tls_server(folder):
    with TcpSideChannel(
        tls_certificate=folder / "server.pem", tls_key=folder / "server.key"
    ) as made:
        made.start_listener(0, {None: BLOB, (0, 1): b"rank"})
        yield made


def test_tls_by_address_and_by_name(folder, tls_server):
    with TcpSideChannel(tls_ca=folder / "ca.pem") as client:
        assert client.request_metadata(HOST, tls_server.port) == BLOB
        assert client.request_metadata("localhost", tls_server.port) == BLOB
        got = client.request_metadata(HOST, tls_server.port, key=(0, 1))
        assert got == b"rank"
        many = client.request_many([(HOST, tls_server.port)] * 20)
        assert many == [BLOB] * 20


def test_a_tls_client_of_pythons_is_served(folder, tls_server):
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    with (
        socket.create_connection((HOST, tls_server.port), timeout=30) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as sock,
    ):
        assert sock.version() in ("TLSv1.2", "TLSv1.3")
        sock.sendall(b"\x00\x00\x00\x0cGET_METADATA")
        data = b""
        while piece := sock.recv(1 << 16):
            data += piece
        assert data == struct.pack(">I", len(BLOB)) + BLOB


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_an_old_tls_is_refused(folder, tls_server):
    context = ssl.create_default_context(cafile=folder / "ca.pem")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with (
        socket.create_connection((HOST, tls_server.port), timeout=30) as raw,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(raw, server_hostname="localhost")
    until(lambda: tls_server.stats()["refusals"]["tls"] == 1, "the count")


def test_a_tls_server_of_pythons_is_understood(folder):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")

    def serve(talk):
        with context.wrap_socket(talk.sock, server_side=True) as sock:
            assert sock.recv(16) == b"\x00\x00\x00\x0cGET_METADATA"
            sock.sendall(b"\x00\x00\x00\x04blob")

    with (
        TcpSideChannel(tls_ca=folder / "ca.pem") as client,
        raw_server(serve) as port,
    ):
        assert client.request_metadata(HOST, port) == b"blob"


@pytest.mark.parametrize(
    ("certificate", "ca", "text"),
    [
        ("expired.pem", "ca.pem", "certificate has expired"),
        ("other.pem", "ca.pem", "mismatch"),
        ("stranger.pem", "ca.pem", "issuer"),
    ],
)
def test_each_way_not_to_be_trusted_is_told(folder, certificate, ca, text):
    with (
        TcpSideChannel(
            tls_certificate=folder / certificate, tls_key=folder / "server.key"
        ) as server,
        TcpSideChannel(tls_ca=folder / ca) as client,
    ):
        port = server.start_listener(0, BLOB)
        with pytest.raises(vllm_nixl.nixlNotAllowedError, match=text) as info:
            client.request_metadata(HOST, port)
        assert "not trusted" in str(info.value)
        assert server.stats()["served"] == 0


def test_the_system_does_not_trust_our_authority(tls_server):
    with (
        TcpSideChannel(tls=True) as client,
        pytest.raises(vllm_nixl.nixlNotAllowedError, match="not trusted"),
    ):
        client.request_metadata(HOST, tls_server.port)


def test_a_renewed_certificate_is_taken_up_by_a_restart(folder, tmp_path):
    certificate, key = tmp_path / "now.pem", folder / "server.key"
    certificate.write_bytes((folder / "expired.pem").read_bytes())
    with (
        TcpSideChannel(tls_certificate=certificate, tls_key=key) as server,
        TcpSideChannel(tls_ca=folder / "ca.pem") as client,
    ):
        port = server.start_listener(0, BLOB)
        with pytest.raises(vllm_nixl.nixlNotAllowedError):
            client.request_metadata(HOST, port)
        certificate.write_bytes((folder / "server.pem").read_bytes())
        server.shutdown()
        server.start_listener(port, BLOB)
        assert client.request_metadata(HOST, port) == BLOB


def test_files_that_are_missing_are_named(folder):
    with (
        TcpSideChannel(
            tls_certificate=folder / "none.pem", tls_key=folder / "server.key"
        ) as server,
        pytest.raises(ValueError, match=r"none\.pem.*No such file"),
    ):
        server.start_listener(0, BLOB)
    with pytest.raises(ValueError, match="go together"):
        TcpSideChannel(tls_key=folder / "server.key")
