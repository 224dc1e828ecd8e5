"""The addresses on which a side channel listens and that it advertises."""

import contextlib
import socket

import pytest
from support.ports import reserve_port

with contextlib.suppress(ModuleNotFoundError):  # `module` fails for it
    import vllm_nixl
    from vllm_nixl import TcpSideChannel

pytestmark = [pytest.mark.beyond_stock, pytest.mark.usefixtures("module")]

HOST = "VLLM_NIXL_SIDE_CHANNEL_HOST"
PORT = "VLLM_NIXL_SIDE_CHANNEL_PORT"


@pytest.fixture
def channel():
    with TcpSideChannel() as made:
        yield made


def answers(channel, host, port):
    try:
        return channel.request_metadata(host, port) == b"x"
    except vllm_nixl.nixlBackendError:
        return False


def own_address():
    """A non-loopback address of this machine; skips if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but loopback")
        return sock.getsockname()[0]


# -- Binding ----------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["127.0.0.2,127.0.0.3", " 127.0.0.2 , 127.0.0.3", None]
)
def test_several_addresses_share_one_port(channel, host):
    given = host if host is not None else ["127.0.0.2", "127.0.0.3"]
    for port in (0, reserve_port()):
        port = channel.start_listener(port, b"x", host=given)
        assert answers(channel, "127.0.0.2", port)
        assert answers(channel, "127.0.0.3", port)
        channel.shutdown()
    # Nobody else has the reserved port at another address.
    channel.start_listener(port, b"x", host=given)
    assert not answers(channel, "127.0.0.1", port)


def test_interface_name_binds_its_addresses(channel):
    port = channel.start_listener(0, b"x", host="lo")
    assert answers(channel, "127.0.0.1", port)
    with contextlib.suppress(OSError), socket.create_server(("127.0.0.9", 0)):
        assert not answers(channel, "127.0.0.9", port)


def test_duplicate_address_is_bound_once(channel):
    port = channel.start_listener(0, b"x", host="127.0.0.1,localhost,lo")
    assert answers(channel, "127.0.0.1", port)


@pytest.mark.parametrize("host", ["127.0.0.1,", ",", "127.0.0.1,,127.0.0.2"])
def test_an_empty_part_is_refused(channel, host):
    with pytest.raises(ValueError, match="empty part"):
        channel.start_listener(0, b"x", host=host)


def test_an_unknown_host_is_named(channel):
    with pytest.raises(vllm_nixl.NixlError, match=r"none\.invalid"):
        channel.start_listener(0, b"x", host="127.0.0.1,none.invalid")
    assert not channel.is_running()


def test_environment_sets_the_bind_address(channel, monkeypatch):
    free = reserve_port()
    monkeypatch.setenv(HOST, "127.0.0.4")
    monkeypatch.setenv(PORT, str(free))
    assert channel.start_listener(None, b"x") == free
    assert answers(channel, "127.0.0.4", free)
    assert not answers(channel, "127.0.0.1", free)
    assert channel.advertised_address() == ("127.0.0.4", free)
    channel.shutdown()
    # The caller's argument overrides it.
    port = channel.start_listener(0, b"x", host="127.0.0.5")
    assert answers(channel, "127.0.0.5", port)


@pytest.mark.parametrize("port", ["x", "-1", "65536", "1x"])
def test_invalid_port_in_the_environment_is_refused(
    channel, monkeypatch, port
):
    monkeypatch.setenv(PORT, port)
    with pytest.raises(ValueError, match=PORT):
        channel.start_listener(None, b"x")
    # With a port given, the variable is not read.
    assert channel.start_listener(0, b"x") > 0


# -- Advertising ------------------------------------------------------------


def test_bound_address_is_advertised(channel):
    port = channel.start_listener(0, b"x", host="127.0.0.3,127.0.0.2")
    assert channel.advertised_address() == ("127.0.0.3", port)
    channel.shutdown()
    with pytest.raises(vllm_nixl.nixlNotAllowedError):
        channel.advertised_address()


def test_an_interface_is_advertised_by_its_address(channel):
    port = channel.start_listener(0, b"x", host="lo")
    assert channel.advertised_address() == ("127.0.0.1", port)


@pytest.mark.parametrize("host", [None, "0.0.0.0"])
def test_wildcard_address_is_advertised_as_a_reachable_one(channel, host):
    expected = own_address()
    port = channel.start_listener(0, b"x", host=host)
    assert channel.advertised_address("192.0.2.7")[1] == port
    assert answers(channel, channel.advertised_address()[0], port)
    assert channel.advertised_address()[0] != "127.0.0.1"
    assert answers(channel, expected, port)


def test_advertise_overrides_everything(monkeypatch):
    monkeypatch.setenv(HOST, "127.0.0.4")
    with TcpSideChannel(advertise="node7.cluster") as channel:
        port = channel.start_listener(0, b"x")
        assert channel.advertised_address() == ("node7.cluster", port)


@pytest.mark.parametrize("peer", [None, "localhost", "::1", "192.0.2.7"])
def test_advertised_address_does_not_depend_on_the_client(channel, peer):
    port = channel.start_listener(0, b"x", host="127.0.0.1")
    assert channel.advertised_address(peer) == ("127.0.0.1", port)
