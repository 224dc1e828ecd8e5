"""The exception classes: one hierarchy, with the attributes that programs
need."""

import copy
import pickle

import pytest

pytestmark = pytest.mark.beyond_stock

# Names and numbers are NIXL's; clients search error messages for the names.
CLASSES = {
    "nixlNotPostedError": -1,
    "nixlInvalidParamError": -2,
    "nixlBackendError": -3,
    "nixlNotFoundError": -4,
    "nixlMismatchError": -5,
    "nixlNotAllowedError": -6,
    "nixlRepostActiveError": -7,
    "nixlUnknownError": -8,
    "nixlNotSupportedError": -9,
    "nixlRemoteDisconnectError": -10,
    "nixlCancelledError": -11,
    "nixlNoTelemetryError": -12,
    "nixlTimeoutError": -100,
    "nixlOutOfMemoryError": -101,
    "nixlClosedError": -102,
}


@pytest.mark.parametrize("name", CLASSES)
def test_every_error_derives_from_the_base_class(api, name):
    found = getattr(api, name)
    assert issubclass(found, api.NixlError)
    assert issubclass(found, Exception)
    assert not issubclass(found, RuntimeError)
    assert found.__name__ == name
    assert found.__doc__


def test_invalid_values_raise_value_errors(api):
    assert issubclass(api.nixlInvalidParamError, ValueError)


@pytest.mark.parametrize("name", CLASSES)
def test_bindings_export_every_error_class(name):
    """Clients import them from `_bindings`."""
    import vllm_nixl
    import vllm_nixl._bindings

    assert getattr(vllm_nixl._bindings, name) is getattr(vllm_nixl, name)


def raised(here):
    with pytest.raises(here.api.NixlError) as caught:
        here.agent.prep_xfer_dlist(
            "", [(here.good, 64, 0), (0x20, 48, 0)], "DRAM"
        )
    return caught.value


@pytest.fixture
def here(endpoint):
    made = endpoint()
    made.good = made.alloc(4096).addr
    return made


def test_error_has_status_row_and_cause(api, here):
    error = raised(here)
    assert type(error) is api.nixlNotFoundError
    assert int(error.status) == CLASSES["nixlNotFoundError"]
    assert error.index == 1
    assert error.peer is None
    for word in ("NIXL_ERR_NOT_FOUND", "prep_xfer_dlist", "0x20", "48"):
        assert word in str(error)


def test_error_has_the_peer_name(api, here):
    with pytest.raises(api.nixlNotFoundError) as caught:
        here.agent.send_notif("stranger", b"x")
    assert caught.value.peer == "stranger"
    assert caught.value.index is None


def test_errors_survive_pickling(here):
    """They pass through process pools and Ray."""
    error = raised(here)
    found = pickle.loads(pickle.dumps(error))
    assert type(found) is type(error)
    assert str(found) == str(error)


@pytest.mark.parametrize(
    "copied",
    [
        lambda error: pickle.loads(pickle.dumps(error)),
        copy.deepcopy,
        copy.copy,
    ],
)
def test_errors_of_waits_are_copied_without_their_transfers(api, busy, copied):
    here, handle = busy
    for wait, *args in [(here.agent.wait, [handle], 0), (handle.result, 0)]:
        with pytest.raises(api.nixlTimeoutError) as caught:
            wait(*args)
        error = caught.value
        error.note = ["of the program"]
        found = copied(error)
        assert type(found) is type(error)
        assert str(found) == str(error)
        for name in ("args", "status", "index", "peer", "operation", "note"):
            assert getattr(found, name) == getattr(error, name), name
        assert found.handles is None
        assert not hasattr(found, "pending")
        assert error.handles["pending"] == error.pending == [handle]
