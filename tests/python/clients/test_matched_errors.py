"""The names and texts by which clients distinguish errors.

A client catches a class, compares a class's name, or searches the text for
the name of a status.  None of these may change.
"""

import importlib

import pytest
from support import deadline, kv

# Where each client looks, and what for.
CLASSES = {
    "vLLM, P2P tier": (
        None,  # only the names
        ["nixlRemoteDisconnectError", "nixlNotFoundError"],
    ),
    "vLLM, object tier": ("nixl._bindings", ["nixlBackendError"]),
    "SGLang": (
        "nixl._bindings",
        [
            "nixlBackendError",
            "nixlCancelledError",
            "nixlRemoteDisconnectError",
        ],
    ),
    "LMCache": ("nixl._api.nixlBind", ["nixlBackendError"]),
    "NIXL's examples": (
        "nixl._bindings",
        ["nixlNotFoundError", "nixlNotSupportedError"],
    ),
}


def class_at(place, name):
    """The class that `from place import name` finds."""
    if place == "nixl._api.nixlBind":
        return getattr(importlib.import_module("nixl._api").nixlBind, name)
    return getattr(importlib.import_module(place or "nixl._bindings"), name)


@pytest.mark.parametrize("client", CLASSES)
def test_classes_have_the_names_that_the_client_knows(client):
    place, names = CLASSES[client]
    found = [class_at(place, name) for name in names]
    assert [kind.__name__ for kind in found] == names
    for kind in found:
        # It is caught by none of the clauses that clients have for others.
        for other in (RuntimeError, OSError, ValueError, TypeError):
            assert not issubclass(kind, other)
        assert issubclass(kind, Exception)


def test_no_matched_class_catches_another():
    names = {name for _, names in CLASSES.values() for name in names}
    kinds = [class_at(None, name) for name in sorted(names)]
    for kind in kinds:
        assert [one for one in kinds if issubclass(one, kind)] == [kind]


def rows(here):
    return [(here.block.addr, 64, 0)]


def descs(here):
    return here.agent.get_xfer_descs(rows(here), "DRAM")


def deregister_twice(here):
    reg = here.agent.register_memory([(*rows(here)[0], "")], "DRAM")
    here.agent.deregister_memory(reg)
    here.agent.deregister_memory(reg)


def make(here, count):
    left, right = (
        here.agent.prep_xfer_dlist(name, rows(here), "DRAM")
        for name in ("", here.name)
    )
    return here.agent.make_prepped_xfer("READ", left, [0] * count, right, [0])


# What clients do wrong, and the class of its error.
RAISES = {
    "nixlNotFoundError: rows of an unknown agent": lambda here: (
        here.agent.prep_xfer_dlist("nobody", rows(here), "DRAM")
    ),
    "nixlNotFoundError: rows that are not registered": lambda here: (
        here.agent.prep_xfer_dlist("", [(4096, 64, 0)], "DRAM")
    ),
    "nixlNotFoundError: a transfer with an unknown agent": lambda here: (
        here.agent.initialize_xfer(
            "READ", descs(here), descs(here), "nobody", b""
        )
    ),
    "nixlNotFoundError: a notification to an unknown agent": lambda here: (
        here.agent.send_notif("nobody", b"x")
    ),
    "nixlNotFoundError: a connection to an unknown agent": lambda here: (
        here.agent.make_connection("nobody")
    ),
    "nixlNotFoundError: an unknown backend": lambda here: (
        here.agent.create_backend("NONE", {})
    ),
    "nixlNotFoundError: deregistering twice": deregister_twice,
    "nixlMismatchError: no metadata": lambda here: here.agent.add_remote_agent(
        b"x" * 100
    ),
    "nixlInvalidParamError: an agent as its own peer": lambda here: (
        here.agent.add_remote_agent(here.agent.get_agent_metadata())
    ),
    "nixlInvalidParamError: index lists of two lengths": lambda here: make(
        here, 2
    ),
    "nixlNotPostedError: the state of an idle transfer": lambda here: (
        here.agent.check_xfer_state(make(here, 1))
    ),
}
STATUSES = {
    "nixlNotFoundError": "NIXL_ERR_NOT_FOUND",
    "nixlMismatchError": "NIXL_ERR_MISMATCH",
    "nixlInvalidParamError": "NIXL_ERR_INVALID_PARAM",
    "nixlNotPostedError": "NIXL_ERR_NOT_POSTED",
    "nixlRemoteDisconnectError": "NIXL_ERR_REMOTE_DISCONNECT",
}


def check_text(error):
    """The text has the name of its own status, and of no other: vLLM's P2P
    tier and ModelExpress search for it."""
    status = STATUSES[type(error).__name__]
    assert str(error).startswith(status)
    assert str(error).count("NIXL_ERR_") == 1


@pytest.mark.parametrize("what", RAISES)
def test_error_has_its_name_and_its_status(inproc, endpoint, what):
    here = endpoint()
    here.block = here.alloc(4096)
    with pytest.raises(Exception) as caught:  # noqa: PT011
        RAISES[what](here)
    assert type(caught.value).__name__ == what.split(":")[0]
    check_text(caught.value)


@pytest.mark.beyond_stock
def test_disconnected_peer_has_its_name_and_its_status(inproc, endpoint, peer):
    """With stock, a peer on this host may be missed for seconds."""
    here, there = endpoint(), peer()
    mine, theirs = here.alloc(4096), there.alloc(4096)
    here.add(there.metadata())
    left, right = (
        here.agent.prep_xfer_dlist(name, [(block.addr, 64, 0)], "DRAM")
        for name, block in (("", mine), (there.name, theirs))
    )
    there.kill()

    def fails():
        try:
            handle = here.agent.make_prepped_xfer(
                "READ", left, [0], right, [0]
            )
            here.agent.transfer(handle)
            here.agent.check_xfer_state(handle)
        except Exception as error:
            return error
        return None

    error = deadline.until(fails, "an error", pause=0.01)
    assert type(error).__name__ == "nixlRemoteDisconnectError"
    check_text(error)


def test_states_have_the_names_that_clients_compare(inproc, endpoint):
    """Dynamo, Ray, LMCache and SGLang compare with "DONE", "PROC", "ERR"."""
    here = endpoint()
    here.block = here.alloc(4096)
    handle = make(here, 1)
    assert here.agent.transfer(handle) in ("DONE", "PROC")
    kv.poll(here.agent, handle)
    assert here.agent.check_xfer_state(handle) == "DONE"
