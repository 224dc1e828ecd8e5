"""Messages of errors that a first-time user meets: each says what was wrong
and what to do instead.

A case is a mistake, the class of its exception, and what the message must
contain.  The exact sentences are free.
"""

import contextlib
import errno
import itertools
import os
import socket
import threading

import pytest
from support.deadline import PATIENCE
from support.mute import mute_listener
from support.ports import reserve_port

pytestmark = pytest.mark.beyond_stock

SIZE = 64 * 1024
ROWS = 16
BLOCK = SIZE // ROWS


def numpy():
    return pytest.importorskip("numpy")


def message(kind, call):
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def rows_of(buffer):
    return [(buffer.addr + i * BLOCK, BLOCK, 0) for i in range(ROWS)]


@pytest.fixture
def two(inproc, endpoint, meet):
    """Two agents of this process; each has a buffer and knows the other."""
    left, right = endpoint(), endpoint()
    left.mine, right.mine = left.alloc(SIZE), right.alloc(SIZE)
    meet(left, right)
    return left, right


@pytest.fixture
def lists(two):
    """(agent, peer, local list, remote list) of ROWS rows each."""
    left, right = two
    prep = left.agent.prep_xfer_dlist
    local = prep("", rows_of(left.mine), "DRAM")
    remote = prep(right.name, rows_of(right.mine), "DRAM")
    return left.agent, right.name, local, remote


# -- memory instead of descriptors -------------------------------------------

MEMORY = {
    "one dimension": lambda np: np.zeros(4096, np.uint8),
    "two dimensions": lambda np: np.zeros((16, 4096), np.uint8),
    "three columns of bytes": lambda np: np.zeros((16, 3), np.uint8),
    "three columns of floats": lambda np: np.zeros((16, 3), np.float32),
    "five columns of doubles": lambda np: np.zeros((16, 5)),
    "half precision": lambda np: np.zeros((4, 8, 16), np.float16),
    "one dimension of 64-bit integers": lambda np: np.zeros(64, np.int64),
    "no number format": lambda np: np.zeros(64, "datetime64[s]"),
}


@pytest.mark.parametrize("kind", MEMORY)
def test_registering_an_array_shows_the_call_for_its_memory(endpoint, kind):
    agent = endpoint().agent
    array = MEMORY[kind](numpy())
    row = f'({array.ctypes.data:#x}, {array.nbytes}, 0, "")'
    for mem_type in "DRAM", None:
        text = message(
            (ValueError, TypeError),
            lambda m=mem_type: agent.register_memory(array, m),
        )
        if mem_type is not None:
            assert f'register_memory([{row}], "DRAM")' in text
            assert "tensor" in text
    # The call that the message shows works.
    agent.register_memory([eval(row)], "DRAM")


def test_registering_bytes_shows_the_call_for_its_memory(api, endpoint):
    agent = endpoint().agent
    shared = api.shared_buffer(SIZE)
    text = message(TypeError, lambda: agent.register_memory(shared, "DRAM"))
    assert f'register_memory([({shared.address:#x}, {SIZE}, 0, "")]' in text
    text = message(
        TypeError, lambda: agent.register_memory(bytearray(77), "DRAM")
    )
    assert ', 77, 0, "")' in text


def test_preparing_an_array_shows_rows_of_three(endpoint):
    agent = endpoint().agent
    array = numpy().zeros((16, 4096), "uint8")
    for call, name in (
        (lambda: agent.prep_xfer_dlist("", array, "DRAM"), "prep_xfer_dlist"),
        (lambda: agent.get_xfer_descs(array, "DRAM"), "get_xfer_descs"),
    ):
        text = message(TypeError, call)
        assert name in text
        assert f"[({array.ctypes.data:#x}, {array.nbytes}, 0)]" in text
        assert '""' not in text


def test_a_memory_view_with_gaps_has_no_row(endpoint):
    """A row cannot describe it."""
    agent = endpoint().agent
    array = numpy().zeros((16, 4096), "uint8")[:, ::2]
    text = message(TypeError, lambda: agent.register_memory(array, "DRAM"))
    assert "contiguous" in text
    assert f"{array.ctypes.data:#x}" not in text


def test_a_list_of_arrays_shows_the_row_of_the_first(endpoint):
    agent = endpoint().agent
    array = numpy().zeros((16, 4096), "uint8")
    text = message(
        TypeError, lambda: agent.register_memory([array, array], "DRAM")
    )
    assert "row 0" in text
    assert "ndarray" in text
    assert f'({array.ctypes.data:#x}, {array.nbytes}, 0, "")' in text


def test_one_row_without_a_list_says_so(endpoint):
    agent = endpoint().agent
    text = message(
        TypeError, lambda: agent.register_memory((4096, 64, 0, ""), "DRAM")
    )
    assert "list of tuples" in text
    assert "int" in text


def test_a_short_row_names_what_is_missing(endpoint):
    agent = endpoint().agent
    text = message(
        TypeError, lambda: agent.register_memory([(4096, 64, 0)], "DRAM")
    )
    assert '(address, length, device id, meta info such as "")' in text
    text = message(
        TypeError, lambda: agent.get_remote_descs([(4096, 64, 0)], "DRAM")
    )
    assert "name of the agent" in text


WRONG_TABLES = {
    "four columns": (TypeError, lambda np: np.zeros((16, 4), np.uint64)),
    "of int32": (ValueError, lambda np: np.zeros((16, 3), np.int32)),
}


@pytest.mark.parametrize("kind", WRONG_TABLES)
def test_a_table_of_rows_that_is_nearly_right_says_what_is_wrong(
    endpoint, kind
):
    agent = endpoint().agent
    error, make = WRONG_TABLES[kind]
    table = make(numpy())
    text = message(error, lambda: agent.get_xfer_descs(table, "DRAM"))
    assert "3 columns" in text
    assert "uint64 or int64" in text


def test_tables_of_rows_are_still_descriptors(endpoint):
    here = endpoint()
    mine = here.alloc(SIZE)
    for kind in "uint64", "int64":
        table = numpy().array(rows_of(mine), kind)
        assert here.agent.get_reg_descs(table, "DRAM").descCount() == ROWS
        here.agent.prep_xfer_dlist("", table, "DRAM").release()


# -- names -------------------------------------------------------------------

MEMS = ("DRAM", "VRAM", "BLK", "OBJ", "FILE", "cpu", "cuda")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("dram", "DRAM"),
        ("Dram", "DRAM"),
        ("DRAMM", "DRAM"),
        ("VARM", "VRAM"),
        ("CUDA", "cuda"),
        ("fil", "FILE"),
        ("HBM", None),
        ("gpu", None),
        ("NIXL_INIT_AGENT", None),
        ("", None),
        ("DRAM" * 500, None),
    ],
)
def test_an_unknown_memory_type(endpoint, api, given, meant):
    agent = endpoint().agent
    for call in (
        lambda: agent.register_memory([(1, 1, 0, "")], given),
        lambda: agent.prep_xfer_dlist("", [(1, 1, 0)], given),
        lambda: api.nixlXferDList(given),
    ):
        text = message(KeyError, call)
        for name in MEMS:
            assert name in text.partition("choices")[2]
        check_meant(text, meant)


def check_meant(text, meant):
    if meant is None:
        assert "did you mean" not in text
    else:
        assert f"did you mean '{meant}'?" in text


@pytest.mark.parametrize(
    ("given", "meant"),
    [("read", "READ"), ("WRTE", "WRITE"), ("Write", "WRITE"), ("COPY", None)],
)
def test_an_unknown_operation(lists, given, meant):
    agent, _, local, remote = lists
    text = message(
        KeyError,
        lambda: agent.make_prepped_xfer(given, local, [0], remote, [0]),
    )
    assert "READ, WRITE" in text
    check_meant(text, meant)


@pytest.mark.parametrize(
    ("given", "meant", "engine_name"),
    [
        ("ucx", "UCX", "auto"),
        ("UXC", "UCX", "auto"),
        ("shm", "SHM", "native"),
        ("ucx", "UCX", "native"),
        ("GDS_MT", None, "native"),  # the engine nixl may have it
    ],
)
def test_an_unknown_backend_of_an_agent(api, given, meant, engine_name):
    config = api.nixl_agent_config(backends=[given], engine=engine_name)
    text = message(api.nixlNotFoundError, lambda: api.nixl_agent("A", config))
    assert f"'{given}'" in text
    assert "UCX, SHM" in text
    check_meant(text, meant)


def test_an_unknown_backend_of_a_call(endpoint, api):
    agent = endpoint().agent
    known = sorted(agent.backends)
    for kind, call in (
        (KeyError, lambda: agent.register_memory([], "DRAM", ["ucx"])),
        (KeyError, lambda: agent.get_new_notifs(["ucx"])),
        (ValueError, lambda: agent.query_memory([], "ucx", "DRAM")),
        (api.nixlNotFoundError, lambda: agent.get_backend_params("ucx")),
        (api.nixlNotFoundError, lambda: agent.get_backend_mem_types("ucx")),
        (api.nixlNotFoundError, lambda: agent.get_plugin_params("ucx")),
        (api.nixlNotFoundError, lambda: agent.get_plugin_mem_types("ucx")),
    ):
        text = message(kind, call)
        assert "'ucx'" in text
        assert all(name in text for name in known)
        check_meant(text, "UCX")


def test_a_backend_that_is_not_created_yet_says_how(endpoint, inproc):
    agent = endpoint().agent
    other = next(n for n in agent.get_plugin_list() if n not in agent.backends)
    text = message(
        KeyError, lambda: agent.register_memory([], "DRAM", [other])
    )
    assert f"'{other}'" in text
    assert "create_backend()" in text


@pytest.mark.parametrize(
    ("given", "meant"),
    [("natve", "native"), ("Native", "native"), ("nxil", "nixl"), ("x", None)],
)
def test_an_unknown_engine(api, monkeypatch, given, meant):
    def from_environment():
        monkeypatch.setenv("VLLM_NIXL_ENGINE", given)
        api.nixl_agent_config()

    base = api.nixl_agent.__base__
    for kind, call, source in (
        (ValueError, lambda: api.nixl_agent_config(engine=given), "engine"),
        (ValueError, from_environment, "VLLM_NIXL_ENGINE"),
        (
            api.nixlNotSupportedError,
            lambda: base("A", engine=given),
            "engine",
        ),
    ):
        text = message(kind, call)
        assert source in text
        assert f"'{given}'" in text
        assert "auto, native, nixl" in text
        check_meant(text, meant)


@pytest.mark.parametrize("given", ["nixl_init_agent", "NIXL_INIT_AGNT"])
def test_the_local_side_misspelled(lists, api, given):
    agent = lists[0]
    text = message(
        api.nixlNotFoundError,
        lambda: agent.prep_xfer_dlist(given, [(1, 1, 0)], "DRAM"),
    )
    check_meant(text, "NIXL_INIT_AGENT")


def test_the_name_of_the_local_side_where_a_peer_is_needed(lists, api, two):
    agent = lists[0]
    descs = agent.get_xfer_descs(rows_of(two[0].mine), "DRAM")
    for call in (
        lambda: agent.initialize_xfer("READ", descs, descs, "NIXL_INIT_AGENT"),
        lambda: agent.send_notif("NIXL_INIT_AGENT", b"x"),
    ):
        text = message(api.nixlNotFoundError, call)
        assert "prep_xfer_dlist" in text
        assert f"'{agent.name}'" in text


def test_an_unknown_peer_lists_those_that_are_loaded(lists, api, endpoint):
    agent, peer, _, _ = lists
    text = message(
        api.nixlNotFoundError, lambda: agent.send_notif("nobody", b"x")
    )
    assert "add_remote_agent" in text
    assert f"'{peer}'" in text
    text = message(
        api.nixlNotFoundError,
        lambda: endpoint().agent.send_notif("nobody", b"x"),
    )
    assert "no peer is loaded" in text


# -- nobody listens ----------------------------------------------------------

REFUSED = os.strerror(errno.ECONNREFUSED)
CHANNELS = ["TcpSideChannel", "ZmqSideChannel", "HttpSideChannel"]


@pytest.fixture(params=CHANNELS)
def channel(api, request):
    return getattr(api, request.param)()


def test_nobody_listens_at_any_address(channel, api):
    port = reserve_port()
    text = message(
        api.nixlBackendError,
        lambda: channel.request_metadata("localhost", port),
    )
    assert f"localhost:{port}" in text
    assert REFUSED in text
    assert "127.0.0.1" in text
    assert "::1" in text
    assert "retries" in text
    assert "timeout" in text


def test_nobody_listens_at_one_address(channel, api):
    port = reserve_port()
    text = message(
        api.nixlBackendError,
        lambda: channel.request_metadata("127.0.0.1", port),
    )
    assert text.count("127.0.0.1") == 2  # the peer, and whom it connects to
    assert REFUSED in text
    assert "retries" in text


@pytest.mark.parametrize(
    ("retries", "timeout_ms"), [(1, 30_000), (None, 1000)]
)
def test_who_retries_needs_no_advice_to(channel, api, retries, timeout_ms):
    port = reserve_port()
    for _ in range(20):
        text = message(
            (api.nixlBackendError, api.nixlTimeoutError),
            lambda: channel.request_metadata(
                "127.0.0.1", port, timeout_ms, retries=retries
            ),
        )
        # On a busy machine the last try may run into the deadline.
        if "timed out" not in text:
            break
    assert REFUSED in text
    assert "retries" not in text


def test_an_agent_gives_the_same_advice(endpoint, api):
    agent = endpoint().agent
    port = reserve_port()
    text = message(
        api.nixlBackendError,
        lambda: agent.request_remote_metadata("localhost", port),
    )
    assert "127.0.0.1" in text
    assert "retries" in text


def test_a_listener_that_does_not_accept_is_named(channel, api):
    with mute_listener() as address:
        text = message(
            api.nixlTimeoutError,
            lambda: channel.request_metadata(*address, timeout_ms=200),
        )
    assert "connecting to 127.0.0.1" in text


@pytest.mark.parametrize("host", ["localhost:5600", "http://localhost"])
def test_a_host_with_more_than_a_name(channel, api, host):
    text = message(
        api.nixlNotFoundError,
        lambda: channel.request_metadata(host, 5600),
    )
    assert "without" in text
    assert "port" in text


def answered(answer, call):
    """Run call(port) with a server that answers one connection: it sends the
    bytes, ends its side, and reads until the client leaves."""

    def serve():
        connection, _ = server.accept()
        with connection:
            connection.sendall(answer)
            with contextlib.suppress(OSError):  # the client may be gone
                connection.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while connection.recv(4096):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE)
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            return call(server.getsockname()[1])
        finally:
            thread.join()


def test_the_listener_is_of_another_kind(channel, api):
    """It does not understand the request, and closes the connection."""
    text = answered(
        b"",
        lambda port: message(
            api.nixlBackendError,
            lambda: channel.request_metadata("127.0.0.1", port),
        ),
    )
    assert "a listener of another kind" in text


def test_a_tcp_request_answered_with_text(api):
    """A web server answers bytes that it does not understand like this."""
    channel = api.TcpSideChannel()
    text = answered(
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        lambda port: message(
            api.nixlMismatchError,
            lambda: channel.request_metadata("127.0.0.1", port),
        ),
    )
    assert "max_frame" in text
    assert "'HTTP'" in text
    assert "a listener of another kind" in text


def test_the_raw_agent_names_its_operations(endpoint):
    raw = endpoint().agent.agent
    for call in (
        lambda: raw.makeXferReq(7, 1, [0], 1, [0]),
        lambda: raw.createXferReq(7, None, None, "peer"),
    ):
        text = message(KeyError, call)
        assert "7" in text
        assert "0 is READ, 1 is WRITE" in text


# -- indices -----------------------------------------------------------------


INTEGERS = {
    "int64": [-1, ROWS, 2**31, 2**32 - 1, -(2**63)],
    "int32": [-1, ROWS, -(2**31)],
    "int8": [-1, ROWS],
    "uint64": [ROWS, 2**63, 2**64 - 1],
    "uint32": [ROWS, 2**32 - 1],
}
BAD_INDICES = {
    **INTEGERS,
    list: INTEGERS["int64"],
    tuple: INTEGERS["int64"],
}


@pytest.mark.parametrize("kind", [list, tuple, *INTEGERS])
def test_an_index_out_of_the_list(lists, api, kind):
    agent, _, local, remote = lists
    cases = itertools.product(BAD_INDICES[kind], (0, 2), ("local", "remote"))
    for bad, place, side in cases:
        good = list(range(place + 1))
        wrong = [*good[:place], bad]
        wrong = numpy().array(wrong, kind) if kind in INTEGERS else kind(wrong)
        pair = {"local": (wrong, good), "remote": (good, wrong)}[side]
        with pytest.raises(api.nixlInvalidParamError) as caught:
            agent.make_prepped_xfer("READ", local, pair[0], remote, pair[1])
        text = str(caught.value)
        assert caught.value.index == place
        assert f"{side} index {bad} " in text
        assert f"row {place}" in text
        assert f"{ROWS} rows" in text
        assert f"0 to {ROWS - 1}" in text


@pytest.mark.parametrize("bad", [2**63, 2**64, -(2**63) - 1, -(10**30)])
def test_an_index_that_is_no_64_bit_number(lists, api, bad):
    agent, _, local, remote = lists
    with pytest.raises(api.nixlInvalidParamError) as caught:
        agent.make_prepped_xfer("READ", local, [0, bad], remote, [0, 1])
    assert caught.value.index == 1
    assert str(bad) in str(caught.value)
    assert "local_indices" in str(caught.value)


def test_numbers_out_of_range_are_shown(endpoint, api):
    agent = endpoint().agent
    for bad in -5, 2**64:
        text = message(
            ValueError,
            lambda b=bad: agent.get_xfer_descs([(4096, b, 0)], "DRAM"),
        )
        assert "row 0" in text
        assert "length" in text
        assert str(bad) in text
    # No text for this one: its conversion is limited.
    text = message(
        ValueError,
        lambda: agent.get_xfer_descs([(10**5000, 1, 0)], "DRAM"),
    )
    assert "address" in text
    assert "row 0" in text
    text = message(ValueError, lambda: agent.request_remote_metadata("x", -1))
    assert "-1" in text
    assert "port" in text


def test_a_number_of_another_type_says_how_to_convert(endpoint):
    agent = endpoint().agent
    text = message(
        TypeError,
        lambda: agent.register_memory([(4096.0, 64, 0, "")], "DRAM"),
    )
    assert "address" in text
    assert "int" in text
    assert "float" in text


# -- memory that was not registered ------------------------------------------


def test_a_peer_that_has_published_nothing(inproc, endpoint, meet, api):
    left, right = endpoint(), endpoint()
    mine, theirs = left.alloc(SIZE), right.alloc(SIZE, register=False)
    meet(left, right)
    agent = left.agent
    for call in (
        lambda: agent.prep_xfer_dlist(right.name, rows_of(theirs), "DRAM"),
        lambda: agent.initialize_xfer(
            "READ",
            agent.get_xfer_descs(rows_of(mine), "DRAM"),
            agent.get_xfer_descs(rows_of(theirs), "DRAM"),
            right.name,
        ),
    ):
        with pytest.raises(api.nixlNotFoundError) as caught:
            call()
        text = str(caught.value)
        assert caught.value.peer == right.name
        assert caught.value.index == 0
        assert "no registered memory" in text
        assert "register_memory" in text
        assert "get_agent_metadata" in text
        assert "again" in text
    # What the message asks for helps.
    right.register(theirs.key)
    left.add(right.metadata())
    agent.prep_xfer_dlist(right.name, rows_of(theirs), "DRAM")


def test_an_agent_that_has_registered_nothing(inproc, endpoint, api):
    here = endpoint()
    mine = here.alloc(SIZE, register=False)
    for name in "", here.name:
        text = message(
            api.nixlNotFoundError,
            lambda n=name: here.agent.prep_xfer_dlist(
                n, rows_of(mine), "DRAM"
            ),
        )
        assert "this agent has no registered memory" in text
        assert "register_memory" in text


def test_memory_of_another_type_only(lists, api, two):
    agent, peer, _, _ = lists
    left, right = two
    text = message(
        api.nixlNotFoundError,
        lambda: agent.prep_xfer_dlist(peer, rows_of(right.mine), "VRAM"),
    )
    assert "VRAM" in text
    assert "only DRAM" in text
    assert f"'{peer}'" in text
    text = message(
        api.nixlNotFoundError,
        lambda: agent.prep_xfer_dlist("", rows_of(left.mine), "VRAM"),
    )
    assert "VRAM" in text
    assert "only DRAM" in text


def test_rows_of_the_wrong_side(lists, api, two):
    agent, peer, _, _ = lists
    left, right = two
    text = message(
        api.nixlNotFoundError,
        lambda: agent.prep_xfer_dlist(peer, rows_of(left.mine), "DRAM"),
    )
    assert "this agent" in text
    assert "row 0" in text
    text = message(
        api.nixlNotFoundError,
        lambda: agent.prep_xfer_dlist("", rows_of(right.mine), "DRAM"),
    )
    assert f"'{peer}'" in text
    assert "row 0" in text


# -- other mistakes ----------------------------------------------------------


def test_sides_of_a_transfer_exchanged(lists, api):
    agent, peer, local, remote = lists
    invalid = api.nixlInvalidParamError
    make = agent.make_prepped_xfer
    text = message(invalid, lambda: make("READ", remote, [0], local, [0]))
    assert "exchanged" in text
    assert "local_xfer_side" in text
    text = message(invalid, lambda: make("READ", remote, [0], remote, [0]))
    assert "local" in text
    assert f"'{peer}'" in text
    assert "NIXL_INIT_AGENT" in text
    text = message(invalid, lambda: make("READ", local, [0], local, [0]))
    assert "remote" in text
    assert "peer's name" in text


def test_lists_of_indices_of_different_lengths(lists, api):
    agent, _, local, remote = lists
    text = message(
        api.nixlInvalidParamError,
        lambda: agent.make_prepped_xfer("READ", local, [0, 1], remote, [0]),
    )
    assert "2 local" in text
    assert "1 remote" in text
    assert "pair" in text


GARBAGE = {
    "empty": (b"", "empty"),
    "text": (b"garbage", "get_agent_metadata"),
    "reply of a web server": (b"HTTP/1.1 404 Not Found\r\n\r\n", "HTTP"),
}


@pytest.mark.parametrize("kind", GARBAGE)
def test_bytes_that_are_not_metadata(inproc, endpoint, api, kind):
    agent = endpoint().agent
    data, word = GARBAGE[kind]
    text = message(api.nixlMismatchError, lambda: agent.add_remote_agent(data))
    assert word in text
    assert f"{len(data)} bytes" in text


def test_metadata_that_was_cut_off(two, api):
    left, right = two
    data = right.agent.get_agent_metadata()
    text = message(
        api.nixlMismatchError, lambda: left.agent.add_remote_agent(data[:-5])
    )
    assert "cut off" in text or "incomplete" in text


def test_metadata_as_text(endpoint):
    agent = endpoint().agent
    text = message(TypeError, lambda: agent.add_remote_agent("text"))
    assert "bytes" in text
    assert "str" in text


def test_a_transfer_that_was_not_posted(lists, api):
    agent, _, local, remote = lists
    handle = agent.make_prepped_xfer("READ", local, [0], remote, [0])
    for call in (
        lambda: agent.check_xfer_state(handle),
        lambda: agent.wait([handle]),
        lambda: agent.get_xfer_telemetry(handle),
    ):
        text = message(api.nixlNotPostedError, call)
        assert "transfer()" in text


def test_a_transfer_in_progress_is_not_posted_again(busy, api):
    here, handle = busy
    text = message(
        api.nixlRepostActiveError, lambda: here.agent.transfer(handle)
    )
    assert "wait" in text


def test_a_closed_agent_is_named(endpoint, api):
    agent = endpoint().agent
    agent.close()
    text = message(api.nixlClosedError, agent.get_agent_metadata)
    assert "closed" in text
    assert "create a new agent" in text


def test_a_tensor_with_gaps(endpoint):
    class Tensor:
        def data_ptr(self):
            return 4096

        def is_contiguous(self):
            return False

    agent = endpoint().agent
    for tensors in Tensor(), [Tensor()]:
        text = message(ValueError, lambda t=tensors: agent.register_memory(t))
        assert "not contiguous" in text
        assert "view" in text


def test_rows_where_a_descriptor_list_is_needed(lists, two):
    agent, peer, _, _ = lists
    mine = rows_of(two[0].mine)
    text = message(
        TypeError, lambda: agent.initialize_xfer("READ", mine, mine, peer)
    )
    assert "get_xfer_descs" in text
    text = message(TypeError, lambda: agent.deregister_memory(mine))
    assert "register_memory" in text


def test_a_notification_of_another_type(lists):
    agent, peer, local, remote = lists
    for call in (
        lambda: agent.send_notif(peer, 3),
        lambda: agent.make_prepped_xfer(
            "READ", local, [0], remote, [0], notif_msg=3
        ),
    ):
        text = message(TypeError, call)
        assert "notif_msg" in text
        assert "bytes or str" in text
        assert "int" in text


# -- code of the caller that runs while a message is written ------------------


class Fickle:
    """An index that is out of range, and then an error."""

    def __init__(self):
        self.calls = 0

    def __index__(self):
        self.calls += 1
        if self.calls > 1:
            raise RuntimeError("not again")
        return 2**70


def test_a_number_that_cannot_be_shown(lists, api):
    agent, _, local, remote = lists
    text = message(
        api.nixlInvalidParamError,
        lambda: agent.get_xfer_descs([(Fickle(), 1, 0)], "DRAM"),
    )
    assert "address" in text
    with pytest.raises((api.nixlInvalidParamError, RuntimeError)):
        agent.make_prepped_xfer("READ", local, [Fickle()], remote, [0])


def test_names_that_are_not_text(endpoint, api):
    agent = endpoint().agent
    for name in "\udcff", "DRAM\0", "\n" * 1000:
        text = message(KeyError, lambda n=name: api.nixlXferDList(n))
        assert "choices" in text
        text = message(
            (KeyError, UnicodeEncodeError),
            lambda n=name: agent.register_memory([], "DRAM", [n]),
        )
        text = message(
            ValueError, lambda n=name: api.nixl_agent_config(engine=n)
        )
        assert "choices" in text
