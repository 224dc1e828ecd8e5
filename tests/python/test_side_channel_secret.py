"""The secret and TLS of the TCP side channel, from the bytes.

Over TCP a secret is the key of TLS 1.3.  The other end is OpenSSL's own
program or a socket, and between two of our own stand proxies that record and
change what is sent; docs/wire.md has the bytes.
"""

import contextlib
import hashlib
import hmac
import itertools
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import threading

import pytest
from support.certificates import make_certificates
from support.deadline import or_kill, until
from support.program import run_program

with contextlib.suppress(ModuleNotFoundError):  # `module` fails for it
    import vllm_nixl
    from vllm_nixl import TcpSideChannel

pytestmark = [pytest.mark.beyond_stock, pytest.mark.usefixtures("module")]

HOST = "127.0.0.1"
SECRET = "correct horse battery staple"
BLOB = b"\xa5\x5a the metadata \x5a\xa5"
KEY = b"0,1"
ENCRYPTED = 0x17  # the type of an encrypted record (RFC 8446, 5.2)
NAME = "the name of a key"

GET = b"VNX1\x01"
SEED = b"\x00\x00\x00\x0cGET_METADATA"
UNKNOWN_KEY = b"\x10nothing is served under that key"
ALERT = bytes.fromhex("15030300020273")


def framed(*parts):
    payload = b"".join(parts)
    return struct.pack(">I", len(payload)) + payload


def derive(secret):
    """HKDF-SHA256 (RFC 5869) of the secret; in hexadecimal."""
    salt, info = b"vllm_nixl side channel", b"tls13 psk"
    extracted = hmac.digest(salt, secret.encode(), hashlib.sha256)
    return hmac.new(extracted, info + b"\x01", hashlib.sha256).hexdigest()


def openssl(port, said, *options, secret=SECRET, identity="vnx1"):
    """What OpenSSL's client has to show for what it said, and its errors."""
    command = ["openssl", "s_client", "-connect", f"{HOST}:{port}"]
    command += ["-psk", derive(secret), "-psk_identity", identity]
    options = options or ("-tls1_3", "-quiet")
    done = subprocess.run(
        [*command, *options],
        input=said,
        capture_output=True,
        check=False,
        timeout=60,
    )
    return done.stdout, done.stderr


@contextlib.contextmanager
def connected(port):
    with socket.create_connection((HOST, port), timeout=30) as sock:
        yield sock


def read_all(sock):
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := sock.recv(1 << 16):
            data += piece
    return data


@contextlib.contextmanager
def raw_server(serve):
    """One client is handed to `serve(sock)`; yields the port."""
    failures = []

    def run():
        try:
            sock, _ = listener.accept()
            with sock, contextlib.suppress(ConnectionError):
                sock.settimeout(30)
                serve(sock)
        except BaseException as error:
            failures.append(error)

    with socket.create_server((HOST, 0)) as listener:
        listener.settimeout(30)
        thread = threading.Thread(target=run)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(30)
    assert failures == []


class Proxy:
    """Between a client and the listener at `port`: it takes records of TLS,
    notes them, and sends what `change(side, number, record)` makes of them.
    Sides are 0, the client's, and 1; None instead of a record cuts the
    connection there.
    """

    def __init__(self, port, change=lambda side, number, record: record):
        self.target = port
        self.change = change
        #: Pairs of side and record, in the order that they came.
        self.heard = []
        self.listener = socket.create_server((HOST, 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self.run)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *exc):
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join(30)
        assert not self.thread.is_alive()

    def run(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.create_connection((HOST, self.target), timeout=30)
            near.settimeout(30)
            pumps = [
                threading.Thread(target=self.pump, args=args)
                for args in ((0, near, far), (1, far, near))
            ]
            for pump in pumps:
                pump.start()
            for pump in pumps:
                pump.join(60)
            near.close()
            far.close()

    def pump(self, side, source, sink):
        with contextlib.suppress(OSError):
            for number in itertools.count():
                record = self.record(source)
                self.heard.append((side, record))
                changed = self.change(side, number, record)
                if changed is None:
                    break
                sink.sendall(changed)
                if not record:
                    sink.shutdown(socket.SHUT_WR)
                    return
        for sock in (source, sink):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def record(source):
        """The next record; b"" at the end."""
        header = source.recv(5, socket.MSG_WAITALL)
        if len(header) < 5:
            return header
        size = int.from_bytes(header[3:], "big")
        return header + source.recv(size, socket.MSG_WAITALL)

    def of(self, side):
        return [record for one, record in self.heard if one == side and record]


@pytest.fixture
def server():
    with TcpSideChannel(secret=SECRET, client_timeout_ms=30_000) as made:
        made.start_listener(0, {None: b"base", KEY: BLOB})
        yield made


@pytest.fixture
def client():
    with TcpSideChannel(secret=SECRET) as made:
        yield made


# -- OpenSSL's client -------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (framed(GET, KEY), framed(b"\x00", BLOB)),
        (framed(GET), framed(b"\x00", b"base")),
        (framed(GET, b"9,9"), framed(UNKNOWN_KEY)),
        (SEED, framed(b"base")),
    ],
)
def test_openssl_with_the_secrets_key_is_served(server, said, answer):
    assert openssl(server.port, said)[0] == answer


def test_the_handshake_is_ephemeral_and_leaves_no_ticket(server):
    shown, _ = openssl(server.port, framed(GET), "-tls1_3", "-ign_eof")
    assert b"Server Temp Key: X25519" in shown
    assert b"Reused, TLSv1.3, Cipher is TLS_AES_128_GCM_SHA256" in shown
    assert b"no peer certificate available" in shown
    assert b"New Session Ticket" not in shown
    # Without an ephemeral key it is refused, whatever the client allows.
    only_psk = ("-tls1_3", "-ign_eof", "-allow_no_dhe_kex")
    shown, _ = openssl(server.port, framed(GET), *only_psk)
    assert b"Server Temp Key: X25519" in shown


@pytest.mark.parametrize(
    ("options", "changes", "reason"),
    [
        ((), {"secret": SECRET + " "}, "wrong_proof"),
        ((), {"secret": SECRET[:-1]}, "wrong_proof"),
        ((), {"secret": "x" * 28}, "wrong_proof"),
        ((), {"identity": "vnx2"}, "no_proof"),
        ((), {"identity": "vnx1" + "x" * 99}, "no_proof"),
        (("-tls1_2", "-quiet"), {}, "tls"),
    ],
)
def test_openssl_with_another_key_is_refused(server, options, changes, reason):
    heard, _ = openssl(server.port, framed(GET, KEY), *options, **changes)
    assert heard == b""
    until(lambda: server.stats()["refusals"][reason] == 1, "the count")
    assert server.stats()["served"] == 0


@pytest.mark.parametrize(
    "said", [SEED, framed(GET), framed(GET, KEY), b"GET / HTTP/1.1\r\n\r\n"]
)
def test_nothing_is_said_without_tls_but_that_it_is_wanted(server, said):
    with connected(server.port) as sock:
        sock.sendall(said)
        assert read_all(sock) == ALERT
    until(lambda: server.stats()["refusals"]["no_proof"] == 1, "the count")
    assert server.stats()["served"] == 0


def test_a_plain_listener_tells_a_client_that_speaks_tls(client):
    with TcpSideChannel() as plain:
        port = plain.start_listener(0, BLOB)
        for _ in range(3):
            with pytest.raises(
                vllm_nixl.nixlNotAllowedError, match="has no shared secret"
            ) as info:
                client.request_metadata(HOST, port, retries=5)
            assert f"{HOST}:{port}" in str(info.value)
        assert plain.stats()["refusals"]["tls"] == 3
        assert plain.stats()["served"] == 0


# -- OpenSSL's server -------------------------------------------------------


@contextlib.contextmanager
def openssl_server(reply, secret=SECRET):
    """OpenSSL's server for one client, to whom it says `reply`."""
    command = ["openssl", "s_server", "-accept", f"{HOST}:0", "-nocert"]
    command += ["-psk", derive(secret), "-psk_identity", "vnx1"]
    command += ["-tls1_3", "-num_tickets", "0", "-naccept", "1"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            line = b""
            with or_kill(process):
                while not line.startswith(b"ACCEPT"):
                    line = process.stdout.readline()
                    assert line, "openssl s_server ended"
            process.stdin.write(reply)
            process.stdin.flush()
            yield int(line.rsplit(b":", 1)[1])
        finally:
            process.kill()


@pytest.mark.parametrize("data", [b"", b"x", BLOB * 300])
def test_openssls_server_with_the_secrets_key_is_believed(client, data):
    with openssl_server(framed(b"\x00", data)) as port:
        assert client.request_metadata(HOST, port, key=KEY) == data
    with openssl_server(framed(b"\x00", data)) as port:
        assert client.request_metadata(HOST, port) == data


def test_openssls_server_with_another_key_is_not_believed(client):
    with (
        openssl_server(framed(b"\x00", BLOB), SECRET + "r") as port,
        pytest.raises(vllm_nixl.nixlNotAllowedError, match="secrets differ"),
    ):
        client.request_metadata(HOST, port)


# -- False servers ----------------------------------------------------------


def test_a_server_with_a_certificate_gets_neither_the_key_nor_belief(
    client, folder
):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem", folder / "server.key")
    heard = []

    def serve(sock):
        with (
            contextlib.suppress(ssl.SSLError),
            context.wrap_socket(sock, server_side=True) as shaken,
        ):
            shaken.sendall(framed(b"\x00", BLOB))
            heard.append(shaken.recv(1 << 16))

    with (
        raw_server(serve) as port,
        pytest.raises(vllm_nixl.nixlNotAllowedError, match="no shared secret"),
    ):
        client.request_metadata(HOST, port, key=NAME)
    assert not any(heard)


@pytest.mark.parametrize(
    "reply",
    [BLOB, framed(BLOB), framed(b"\x00", BLOB), b"HTTP/1.1 200 OK\r\n"],
)
def test_a_server_without_tls_gets_neither_the_key_nor_belief(client, reply):
    heard = []

    def serve(sock):
        heard.append(sock.recv(1 << 16))
        sock.sendall(reply)
        heard.append(read_all(sock))

    with (
        raw_server(serve) as port,
        pytest.raises(vllm_nixl.nixlMismatchError, match="speaks no TLS"),
    ):
        client.request_metadata(HOST, port, key=NAME)
    assert NAME.encode() not in b"".join(heard)


def test_a_server_that_hangs_up_is_perhaps_one_without_a_secret(client):
    with (
        raw_server(lambda sock: sock.recv(1 << 16)) as port,
        pytest.raises(
            vllm_nixl.nixlBackendError, match="perhaps by a listener"
        ),
    ):
        client.request_metadata(HOST, port)


def test_what_the_client_says_played_back_to_it_proves_nothing(client):
    def serve(sock):
        sock.sendall(sock.recv(1 << 16))
        read_all(sock)

    with raw_server(serve) as port, pytest.raises(vllm_nixl.NixlError):
        client.request_metadata(HOST, port)


# -- Between the two --------------------------------------------------------


def test_who_listens_reads_neither_metadata_nor_key_nor_secret(client):
    blob = os.urandom(100_000)
    with TcpSideChannel(secret=SECRET) as server:
        port = server.start_listener(0, {NAME: blob})
        with Proxy(port) as proxy:
            got = client.request_metadata(HOST, proxy.port, key=NAME)
        assert got == blob
    heard = b"".join(record for _, record in proxy.heard)
    assert len(heard) > len(blob)
    for at in range(0, len(blob) - 16, 16):
        assert blob[at : at + 16] not in heard
    assert NAME.encode() not in heard
    assert SECRET.encode() not in heard
    assert bytes.fromhex(derive(SECRET)) not in heard


def test_what_was_heard_is_worth_nothing_on_another_connection(server, client):
    with Proxy(server.port) as proxy:
        assert client.request_metadata(HOST, proxy.port, key=KEY) == BLOB
    until(lambda: server.stats()["served"] == 1, "the reply")
    said = b"".join(proxy.of(0))
    answered = b"".join(proxy.of(1))
    with connected(server.port) as sock:
        sock.sendall(said)
        with contextlib.suppress(OSError):  # the listener may have reset it
            sock.shutdown(socket.SHUT_WR)
        assert len(read_all(sock)) < len(answered)
    assert server.stats()["served"] == 1

    def serve(sock):
        sock.sendall(answered)
        read_all(sock)

    with raw_server(serve) as port, pytest.raises(vllm_nixl.NixlError):
        client.request_metadata(HOST, port, key=KEY)


def exchange_through(server, change):
    """The metadata; None: the request failed with an error that says where."""
    with (
        Proxy(server.port, change) as proxy,
        TcpSideChannel(secret=SECRET) as client,
    ):
        peer = (HOST, proxy.port, KEY)
        (answer,) = client.request_many([peer], timeout_ms=400)
        if isinstance(answer, bytes):
            return answer
        assert isinstance(answer, vllm_nixl.NixlError)
        assert f"{HOST}:{proxy.port}" in str(answer)
        return None


def flipped(place, at):
    """Change one bit of the record at `place`, a pair of side and number."""

    def change(side, number, record):
        if (side, number) != place or at >= len(record):
            return record
        return record[:at] + bytes([record[at] ^ 1]) + record[at + 1 :]

    return change


def cut(record):
    """The record without its end.  The next record begins with the byte that
    says that it is encrypted, which must not stand in for the missing one."""
    return record[: -2 if record[-1] == ENCRYPTED else -1]


def tricked(place, trick):
    """Do that to the record at `place`."""
    held = []

    def change(side, number, record):
        if (side, number) == place:
            if trick == "swapped":
                held.append(record)
            return {
                "lost": b"",
                "cut": cut(record),
                "ended": None,
                "doubled": record * 2,
                "swapped": b"",
            }[trick]
        if held and side == place[0]:
            return record + held.pop()
        return record

    return change


@pytest.fixture
def impatient():
    """What is changed may leave both ends waiting for more."""
    with TcpSideChannel(secret=SECRET, client_timeout_ms=400) as made:
        made.start_listener(0, {KEY: BLOB})
        yield made


@pytest.fixture
def records(server, client):
    """Of one exchange: the records of the client and of the server."""
    with Proxy(server.port) as proxy:
        assert client.request_metadata(HOST, proxy.port, key=KEY) == BLOB
    sides = proxy.of(0), proxy.of(1)
    # Hello, Finished, request, close_notify; hello, extensions and Finished,
    # reply, close_notify.  The last of each no longer matters to the client.
    assert len(sides[0]) >= 3
    assert len(sides[1]) >= 3
    return sides


def places(records):
    """Of all records but the last of each side, which comes too late."""
    for side in (0, 1):
        for number, record in enumerate(records[side][:-1]):
            yield (side, number), record


@pytest.mark.slow
def test_a_bit_that_is_changed_anywhere_ends_the_exchange(impatient, records):
    wrong = []
    for place, record in places(records):
        for at in range(len(record)):
            got = exchange_through(impatient, flipped(place, at))
            # The version in the header of an unencrypted record means nothing
            # (RFC 8446, 5.1): all of the exchange is as it was.
            meaningless = place[1] == 0 and at in (1, 2)
            if got is not None and not (meaningless and got == BLOB):
                wrong.append((place, at, got))
    assert wrong == []


TRICKS = ["lost", "cut", "ended", "doubled", "swapped"]


@pytest.mark.parametrize("trick", TRICKS)
def test_records_that_are_tampered_with_bring_nothing_wrong(
    impatient, records, trick
):
    for place, _ in places(records):
        got = exchange_through(impatient, tricked(place, trick))
        if trick == "doubled" and place[1] == len(records[place[0]]) - 2:
            assert got in (None, BLOB)  # all had been said before
        else:
            assert got is None, place


# -- Two processes ----------------------------------------------------------

LISTENER = """
import sys, vllm_nixl
with vllm_nixl.TcpSideChannel(secret=sys.argv[1] or None) as channel:
    print(channel.start_listener(0, b"of another process"), flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def listener_process(secret):
    with subprocess.Popen(
        [sys.executable, "-c", LISTENER, secret or ""],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        with or_kill(process):
            port = int(process.stdout.readline())
        yield port
        process.stdin.close()
        assert process.wait(60) == 0


def test_two_processes_and_every_way_to_differ(client):
    with (
        listener_process(SECRET) as port,
        TcpSideChannel(secret=SECRET + "r") as other,
        TcpSideChannel() as stranger,
    ):
        where = f"{HOST}:{port}"
        assert client.request_metadata(HOST, port) == b"of another process"
        for one, key, text in (
            (other, None, "the shared secrets differ"),
            (other, KEY, "the shared secrets differ"),
            (stranger, None, "it has a shared secret"),
            (stranger, KEY, "it has a shared secret"),
        ):
            with pytest.raises(
                vllm_nixl.nixlNotAllowedError, match=text
            ) as info:
                one.request_metadata(HOST, port, key=key, retries=3)
            assert where in str(info.value)
    with (
        listener_process(None) as port,
        pytest.raises(vllm_nixl.nixlNotAllowedError, match="no shared secret"),
    ):
        client.request_metadata(HOST, port)


def test_a_secret_and_certificates_exclude_each_other(monkeypatch):
    options = {"tls_ca": "ca.pem"}
    with pytest.raises(ValueError, match="secret and the tls options exclude"):
        TcpSideChannel(secret=SECRET, **options)
    monkeypatch.setenv("VLLM_NIXL_SIDE_CHANNEL_SECRET", SECRET)
    with pytest.raises(ValueError, match="_SECRET and the tls options"):
        TcpSideChannel(**options)


def test_the_secret_is_nowhere_to_be_seen(client, server, capfd):
    shown = [repr(client), str(server.stats()), repr(client.__dict__)]
    with (
        TcpSideChannel(secret="another secret") as other,
        pytest.raises(vllm_nixl.NixlError) as info,
    ):
        other.request_metadata(HOST, server.port)
    shown.append(repr(info.value.__dict__))
    with pytest.raises(vllm_nixl.NixlError) as info:
        client.request_metadata(HOST, 1)
    shown.append(repr(info.value.__dict__))
    shown += capfd.readouterr()
    assert not any(SECRET in text for text in shown)
    assert not any("another secret" in text for text in shown)


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

    def serve(raw):
        with context.wrap_socket(raw, server_side=True) as sock:
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


def test_other_threads_run_while_authorities_are_read(tmp_path):
    """Reading them waits, because they are a pipe to which nobody writes."""
    pipe = tmp_path / "ca.pem"
    os.mkfifo(pipe)
    run_program(
        f"""
        import asyncio, socket, threading
        from support.pipes import open_while
        from vllm_nixl import TcpSideChannel

        async def call():
            begins.set()
            # So many that not all of them begin before the first continues.
            await channel.request_many_async(100 * [("127.0.0.1", port)])

        channel = TcpSideChannel(tls_ca={str(pipe)!r})
        begins = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(call()))
        with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
            port = server.getsockname()[1]
            thread.start()
            begins.wait()
            open_while({str(pipe)!r}, thread.is_alive)
        """,
        timeout=30,
    )


def test_the_system_does_not_trust_our_authority(tls_server):
    with (
        TcpSideChannel(tls=True) as client,
        pytest.raises(vllm_nixl.nixlNotAllowedError, match="not trusted"),
    ):
        client.request_metadata(HOST, tls_server.port)


# Run a command with $2 as the authorities, stored as Fedora and RHEL do.
ON_FEDORA = """\
mount -t tmpfs none "$1" && mkdir "$1/upper" "$1/work" &&
mount -t overlay none \
    -o "lowerdir=/etc,upperdir=$1/upper,workdir=$1/work" /etc || exit 77
rm -rf /etc/ssl /etc/pki/tls && mkdir -p /etc/ssl /etc/pki/tls/certs
cp "$2" /etc/pki/tls/certs/ca-bundle.crt
ln -s certs/ca-bundle.crt /etc/pki/tls/cert.pem
ln -s /etc/pki/tls/certs /etc/ssl/certs
unset SSL_CERT_FILE SSL_CERT_DIR
shift 2
exec "$@"
"""

REQUEST = """
import sys
from vllm_nixl import TcpSideChannel
with TcpSideChannel(tls=True) as client:
    print(client.request_metadata("localhost", int(sys.argv[1])))
"""


@pytest.mark.skipif(
    shutil.which("unshare") is None, reason="the command unshare is missing"
)
def test_the_authorities_of_fedora_are_trusted(folder, tls_server, tmp_path):
    done = subprocess.run(
        [
            *("unshare", "--mount", "sh", "-c", ON_FEDORA, "sh"),
            *(tmp_path, folder / "ca.pem"),
            *(sys.executable, "-c", REQUEST, str(tls_server.port)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode == 77 or "unshare:" in done.stderr:
        pytest.skip("another /etc cannot be mounted here")
    assert done.stdout == f"{BLOB}\n", done.stderr


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
