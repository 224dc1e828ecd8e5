"""How calls take their arguments: keywords, names, words, handles."""

import threading

import pytest
from support import deadline

pytestmark = pytest.mark.beyond_stock


@pytest.fixture
def here(endpoint):
    return endpoint()


@pytest.fixture
def agent(here):
    return here.agent


@pytest.fixture
def handle(here):
    block = here.alloc(4096, seed=1)
    rows = [(block.addr, 64, 0)]
    left = here.agent.prep_xfer_dlist("", rows, "DRAM")
    right = here.agent.prep_xfer_dlist(here.name, rows, "DRAM")
    return here.agent.make_prepped_xfer("READ", left, [0], right, [0])


# -- Keywords ----------------------------------------------------------------


def test_every_argument_may_be_a_keyword(here):
    agent = here.agent
    block = here.alloc(4096, register=False)
    registered = agent.register_memory(
        backends=["UCX"],
        mem_type="DRAM",
        reg_list=[(block.addr, 4096, 0, "")],
    )
    rows = [(block.addr, 64, 0)]
    left = agent.prep_xfer_dlist(
        agent_name="", xfer_list=rows, mem_type="DRAM", backends=["UCX"]
    )
    right = agent.prep_xfer_dlist(
        mem_type="DRAM", xfer_list=rows, agent_name=here.name
    )
    handle = agent.make_prepped_xfer(
        operation="READ",
        local_xfer_side=left,
        local_indices=[0],
        remote_xfer_side=right,
        remote_indices=[0],
        notif_msg=b"",
        backends=[],
        skip_desc_merge=False,
    )
    assert deadline.run(agent, handle) == "DONE"
    assert agent.check_xfer_state(handle=handle) == "DONE"
    agent.release_xfer_handle(handle=handle)
    agent.release_dlist_handle(handle=left)
    agent.deregister_memory(dereg_list=registered)


def test_keywords_built_at_run_time_are_recognised(agent, handle):
    name = "".join(["han", "dle"])
    with pytest.raises(Exception, match="NIXL_ERR_NOT_POSTED"):
        agent.check_xfer_state(**{name: handle})


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda a: a.transfer(), "missing required argument: 'handle'"),
        (lambda a: a.transfer(1, 2, 3), r"at most 2 (positional )?arguments"),
        (lambda a: a.transfer(1, handle=1), "multiple values.*'handle'"),
        (lambda a: a.transfer(hande=1), "unexpected keyword.*'hande'"),
        (lambda a: a.stats(1), "at most 0 arguments"),
        (lambda a: a.send_notif(notif_msg=b""), "'remote_agent_name'"),
    ],
)
def test_wrong_arguments_are_named(agent, call, words):
    with pytest.raises(TypeError, match=words):
        call(agent)


def test_uninitialised_agent_refuses_calls(api):
    agent = api.nixl_agent.__new__(api.nixl_agent)
    for call in (agent.get_new_notifs, agent.peers, agent.fileno):
        with pytest.raises(RuntimeError, match="__init__"):
            call()


def test_agent_is_initialised_once(agent):
    with pytest.raises(RuntimeError, match="already"):
        agent.__init__("again")


# -- Names and messages -------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "mit Umlaut ü",
        "\N{SNOWMAN}",
        pytest.param(
            "a\0b",
            marks=pytest.mark.nixl_differs("C strings cannot hold the name"),
        ),
        "x" * 300,
    ],
)
def test_agent_names_may_be_any_text(endpoint, name):
    left, right = endpoint(), endpoint(name)
    blob = right.metadata()
    assert left.add(blob) == name.encode()
    assert left.agent.check_remote_metadata(name)
    assert left.agent.check_remote_metadata(name.encode())
    right.add(left.metadata())
    right.agent.send_notif(left.name, b"hello")
    assert left.gather_notifs(1) == [(name, b"hello")]


def test_names_need_not_be_utf8(api, endpoint):
    left = endpoint()
    with api.nixl_agent(b"\xff\xfe") as agent:
        assert agent.name == "\udcff\udcfe"
        assert left.add(agent.get_agent_metadata()) == b"\xff\xfe"
        agent.add_remote_agent(left.metadata())
        agent.send_notif(left.name, b"x")
        ((sender, message),) = left.gather_notifs(1)
        assert (sender, message) == ("\udcff\udcfe", b"x")
        left.agent.send_notif(sender, b"y")
        assert deadline.gather_notifs(agent, 1) == [(left.name, b"y")]


@pytest.mark.parametrize(
    ("message", "bytes_"),
    [
        (b"", b""),
        (b"a\0b", b"a\0b"),
        ("text \N{SNOWMAN}", "text \N{SNOWMAN}".encode()),
        (bytearray(b"array"), b"array"),
        (memoryview(b"view"), b"view"),
    ],
)
def test_messages_are_bytes_or_text(here, agent, message, bytes_):
    agent.send_notif(here.name, message)
    assert here.gather_notifs(1) == [(here.name, bytes_)]


@pytest.mark.parametrize("message", [None, 3, ["a"]])
def test_other_messages_are_refused(here, agent, message):
    with pytest.raises(TypeError, match="send_notif: notif_msg"):
        agent.send_notif(here.name, message)


@pytest.mark.parametrize("name", [None, 3, ["a"], bytearray(b"a")])
def test_other_names_are_refused(agent, name):
    for call in (
        lambda: agent.send_notif(name, b""),
        lambda: agent.remove_remote_agent(name),
        lambda: agent.make_connection(name),
        lambda: agent.prep_xfer_dlist(name, [(1, 2, 3)], "DRAM"),
        lambda: agent.check_remote_metadata(name),
        lambda: agent.check_remote_xfer_done(name, b""),
    ):
        with pytest.raises(TypeError, match="name of an agent"):
            call()


@pytest.mark.parametrize("backends", ["UCX", 3, [3], [None]])
def test_backends_are_a_list_of_names(agent, backends):
    with pytest.raises(TypeError):
        agent.get_new_notifs(backends)


def test_backends_that_were_not_created_are_refused(agent, handle):
    for call in (
        lambda: agent.get_new_notifs(["NO"]),
        lambda: agent.update_notifs(backends=["UCX", "NO"]),
        lambda: agent.send_notif("p", b"", "NO"),
        lambda: agent.make_connection("p", ["NO"]),
    ):
        with pytest.raises(KeyError, match="NO"):
            call()


# -- Collected notifications -------------------------------------------------


def test_collected_notifications_accumulate(here, agent):
    agent.send_notif(here.name, b"one")
    deadline.until(agent.update_notifs, "a notification")
    agent.send_notif(here.name, b"two")
    deadline.until(
        lambda: len(agent.update_notifs()[here.name]) == 2, "another"
    )
    assert agent.notifs == {here.name: [b"one", b"two"]}
    assert agent.get_new_notifs() == {}


def test_tag_matches_the_first_message_that_has_it(here, agent):
    for message in (b"a-1", b"b-1", b"a-2"):
        agent.send_notif(here.name, message)

    def done(*args, **keywords):
        return agent.check_remote_xfer_done(here.name, *args, **keywords)

    deadline.until(lambda: done(b"a-"), "the first a")
    deadline.until(lambda: done("a-2"), "the second a")
    assert not done(b"a-")
    assert not done(b"-1")
    assert done(b"-1", tag_is_prefix=False)
    assert agent.notifs == {here.name: []}
    assert not agent.check_remote_xfer_done("nobody", b"")


def test_update_notifs_fills_the_callers_dict(here, agent):
    agent.notifs = {here.name: [b"old"]}
    agent.send_notif(here.name, b"new")
    deadline.until(
        lambda: agent.check_remote_xfer_done(here.name, b"new"), "new"
    )
    assert agent.notifs == {here.name: [b"old"]}
    agent.notifs = 3
    with pytest.raises(TypeError, match="notifs"):
        agent.update_notifs()


# -- Handles -----------------------------------------------------------------


def test_handles_compare_by_identity(here, handle):
    assert handle
    assert handle != 3
    assert len({handle, handle}) == 1
    assert "ready" in repr(handle)
    handle.release()
    assert "released" in repr(handle)


def test_a_handle_keeps_its_agent_alive(api, names):
    buffer = api.shared_buffer(4096)
    name = names()
    agent = api.nixl_agent(name)
    agent.register_memory([(buffer.address, 4096, 0, "")], "DRAM")
    rows = [(buffer.address, 64, 0)]
    left = agent.prep_xfer_dlist("", rows, "DRAM")
    del agent
    with left as same:
        assert same is left
        assert "1 descriptors" in repr(left)
    assert "released" in repr(left)


def test_reference_cycles_of_agents_and_handles_are_collected(api, names):
    import gc
    import weakref

    buffer = api.shared_buffer(4096)
    agent = api.nixl_agent(names())
    agent.register_memory([(buffer.address, 4096, 0, "")], "DRAM")
    agent.mine = agent.prep_xfer_dlist("", [(buffer.address, 64, 0)], "DRAM")
    gone = weakref.ref(agent)
    del agent
    gc.collect()
    assert gone() is None


def test_concurrent_releases_do_not_fail(here, agent, handle):
    """One of them releases the handle, and none fails."""
    failed = []
    start = threading.Barrier(8)

    def release():
        start.wait()
        try:
            agent.release_xfer_handle(handle)
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=release) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    with pytest.raises(ValueError, match="released"):
        agent.transfer(handle)


def test_a_transfer_is_released_while_another_thread_waits(api, busy):
    here, handle = busy
    result = []

    def wait():
        try:
            here.agent.wait([handle], timeout=30)
        except (api.nixlCancelledError, ValueError) as error:
            result.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    here.agent.release_xfer_handle(handle)
    thread.join(30)
    assert len(result) == 1
    with pytest.raises(ValueError, match="released"):
        here.agent.check_xfer_state(handle)


# -- Shared buffers ----------------------------------------------------------


def test_a_shared_buffer_is_writable_memory(api):
    buffer = api.shared_buffer(10_000)
    assert len(buffer) == buffer.nbytes == 10_000
    view = memoryview(buffer)
    assert (view.nbytes, view.readonly, view.format) == (10_000, False, "B")
    assert not any(view)
    view[9_999] = 7
    del buffer
    assert view[9_999] == 7


@pytest.mark.parametrize("size", [0, -1, 2**63, 2**64])
def test_shared_buffer_needs_a_positive_size(api, size):
    with pytest.raises(ValueError, match="shared_buffer"):
        api.shared_buffer(size)


@pytest.mark.parametrize("size", [None, "1", 1.5, True])
def test_shared_buffer_size_must_be_a_number(api, size):
    with pytest.raises(TypeError):
        api.shared_buffer(size)


def test_shared_buffer_larger_than_memory_is_refused(api):
    with pytest.raises((api.NixlError, MemoryError)):
        api.shared_buffer(2**60)
