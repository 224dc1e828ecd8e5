"""Peers on this host that cannot be reached are refused, with the reason.

The reasons: another user, another pid namespace, a process that forbids
access, a switch.  Tests that this machine cannot set up are skipped.
"""

import os
import shutil
import subprocess
import sys

import pytest
from support import blob as grammar
from support.memory import pattern
from support.peer import PR_SET_DUMPABLE, PeerError, PeerProcess

pytestmark = [
    pytest.mark.beyond_stock,
    pytest.mark.nixl_differs("its backends choose how they reach a peer"),
]

SIZE = 64 * 1024
NOBODY = 65534


def works(here, there):
    """Read a block of the peer."""
    remote, local = there.alloc(SIZE, seed=1), here.alloc(SIZE)
    here.add(there.metadata())
    here.move(
        "READ", [(local.addr, SIZE, 0)], [(remote.addr, SIZE, 0)], there.name
    )
    assert here.read(local.key) == pattern(1, SIZE)


# -- another user ------------------------------------------------------------


@pytest.fixture
def other_user(names, module, opened):
    """An agent in a process of a user without rights over this process."""
    if os.geteuid() != 0:
        pytest.skip("only root can start a process of another user")
    opened.append(PeerProcess(module, names(), user=NOBODY))
    return opened[-1]


def test_agent_of_another_user_cannot_load_metadata(api, endpoint, other_user):
    """The kernel does not let it read our memory."""
    here = endpoint()
    here.alloc(SIZE)
    with pytest.raises(PeerError) as caught:
        other_user.add(here.metadata())
    assert caught.value.kind == "nixlNotAllowedError"
    text = caught.value.text
    assert "NIXL_ERR_NOT_ALLOWED" in text
    assert here.name in text
    assert "user" in text or "permi" in text or "memory" in text


def test_refused_user_can_still_use_other_peers(endpoint, other_user):
    here = endpoint()
    with pytest.raises(PeerError):
        other_user.add(here.metadata())
    block, room = other_user.alloc(SIZE, seed=2), other_user.alloc(SIZE)
    other_user.move(
        "READ",
        [(room.addr, SIZE, 0)],
        [(block.addr, SIZE, 0)],
        other_user.name,
    )
    assert other_user.read(room.key) == pattern(2, SIZE)


def test_requests_by_another_user_do_no_harm(endpoint, other_user, peer):
    """Repeated requests; permitted peers are served as before."""
    here, friend = endpoint(), peer()
    for _ in range(20):
        with pytest.raises(PeerError):
            other_user.add(here.metadata())
    works(friend, AsPeer(here))


class AsPeer:
    """An endpoint in this process with the interface of a peer."""

    def __init__(self, here):
        self.here, self.name = here, here.name

    def __getattr__(self, name):
        return getattr(self.here, name)


# -- a process that forbids it -----------------------------------------------


def test_process_that_forbids_access_is_refused(
    api, names, module, opened, endpoint
):
    """PR_SET_DUMPABLE 0, as in set-user-id programs and `prctl` users: its
    memory cannot be read without CAP_SYS_PTRACE."""
    if os.geteuid() != 0:
        pytest.skip("only root can start two processes of another user")
    pair = [PeerProcess(module, names(), user=NOBODY) for _ in range(2)]
    opened.extend(pair)
    reader, shy = pair
    works(reader, shy)
    reader.remove(shy.name)
    shy.prctl(PR_SET_DUMPABLE, 0)
    with pytest.raises(PeerError) as caught:
        reader.add(shy.metadata())
    assert caught.value.kind == "nixlNotAllowedError"
    assert shy.name in caught.value.text
    shy.prctl(PR_SET_DUMPABLE, 1)
    works(reader, shy)


# -- another pid namespace ---------------------------------------------------


NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


def can_unshare():
    if shutil.which("unshare") is None:
        return False
    probe = [*NAMESPACE, sys.executable, "-c", ""]
    done = subprocess.run(probe, capture_output=True, check=False)
    return done.returncode == 0


@pytest.mark.skipif(
    not can_unshare(), reason="a pid namespace cannot be made here"
)
def test_another_pid_namespace_is_refused_by_name(
    api, endpoint, names, module, opened
):
    """Two containers on one host: process ids have another meaning there."""
    here = endpoint()
    here.alloc(SIZE)
    opened.append(PeerProcess(module, names(), wrap=NAMESPACE))
    there = opened[-1]
    there.alloc(SIZE)
    with pytest.raises(api.nixlBackendError, match="namespace") as caught:
        here.add(there.metadata())
    assert caught.value.peer == there.name
    with pytest.raises(PeerError, match="namespace"):
        there.add(here.metadata())


# -- another host ------------------------------------------------------------


def elsewhere(data):
    """The metadata as if it came from a host with another boot id."""
    return false_field(data, b"SHM", 8, b"another boot id!")


def test_a_peer_of_another_host_is_refused_with_the_cause(api, pair):
    here, there = pair
    here.remove(there.name)
    with pytest.raises(api.nixlBackendError, match="host") as caught:
        here.add(elsewhere(there.metadata()))
    assert caught.value.peer == there.name
    works(here, there)


def test_same_host_paths_can_be_switched_off(api, endpoint, peer, monkeypatch):
    """VLLM_NIXL_SAME_HOST=0; transfers within the process still work."""
    monkeypatch.setenv("VLLM_NIXL_SAME_HOST", "0")
    here, there, beside = endpoint(), peer(), endpoint()
    with pytest.raises(
        api.nixlBackendError, match="VLLM_NIXL_SAME_HOST"
    ) as caught:
        here.add(there.metadata())
    assert caught.value.peer == there.name
    works(here, beside)


# -- metadata is not trusted --------------------------------------------------


def false_field(data, entry, offset, value):
    """Change a value in the connection data and correct the checksum."""
    found = grammar.parse(data)
    info = bytearray(found.connections[entry])
    info[offset : offset + len(value)] = value
    hash_value = 0xCBF29CE484222325
    for byte in info[:-8]:
        hash_value = (hash_value ^ byte) * 0x100000001B3 % 2**64
    info[-8:] = hash_value.to_bytes(8, "little")
    return grammar.write(
        found._replace(connections={**found.connections, entry: bytes(info)})
    )


LIES = {
    "pid of init": (b"SHM", 4, (1).to_bytes(4, "little")),
    "instance of nobody": (b"VNX", 12, b"\x5a" * 16),
    "start of another process": (b"SHM", 32, (12345).to_bytes(8, "little")),
    "nonce elsewhere": (b"SHM", 40, (0x1000).to_bytes(8, "little")),
    "nonce in the kernel": (b"SHM", 40, (2**64 - 4096).to_bytes(8, "little")),
    "socket of nobody": (b"SHM", 54, b"nowhere"),
}


@pytest.mark.parametrize("lie", LIES)
def test_false_connection_data_is_detected(api, endpoint, peer, lie):
    here, there = endpoint(), peer()
    there.alloc(SIZE)
    with pytest.raises(api.NixlError, match="NIXL_ERR_"):
        here.add(false_field(there.metadata(), *LIES[lie]))
    assert not here.agent.check_remote_metadata(there.name)
    works(here, there)


def test_a_connection_without_an_identity_is_refused(api, endpoint, peer):
    here, there = endpoint(), peer()
    found = grammar.parse(there.metadata())
    alone = {b"SHM": found.connections[b"SHM"]}
    with pytest.raises(api.nixlMismatchError, match="VNX") as caught:
        here.add(grammar.write(found._replace(connections=alone)))
    assert caught.value.peer == there.name
    works(here, there)


def test_false_metadata_does_not_replace_a_peer(api, endpoint, peer):
    """The metadata loaded before stays valid."""
    here, there = endpoint(), peer()
    works(here, there)
    lie = LIES["instance of nobody"]
    with pytest.raises(api.NixlError):
        here.add(false_field(there.metadata(), *lie))
    assert here.agent.describe(there.name)["generation"] == 1
    works(here, there)
