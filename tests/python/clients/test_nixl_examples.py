"""NIXL's own examples."""

import importlib

import pytest
from support import deadline
from support.ports import reserve_port

SIZE = 256


@pytest.fixture
def api(nixl):
    return importlib.import_module("nixl._api")


@pytest.fixture
def utils(nixl):
    return importlib.import_module("nixl._utils")


@pytest.fixture
def malloc(utils, opened):
    """malloc(size): memory allocated as in the examples."""

    class Piece:
        def __init__(self, size):
            self.addr = utils.malloc_passthru(size)

        def close(self):
            utils.free_passthru(self.addr)

    def make(size):
        opened.append(Piece(size))
        return opened[-1].addr

    return make


def finish(initiator, handle, target, tag):
    """One side polls for completion, the other for the message."""
    state, told = initiator.transfer(handle), False

    def both():
        nonlocal state, told
        assert state != "ERR"
        if state != "DONE":
            state = initiator.check_xfer_state(handle)
        told = told or target.check_remote_xfer_done(initiator.name, tag)
        return state == "DONE" and told

    deadline.until(both, f"the end of {tag}")


def test_two_agents_in_one_process(inproc, api, utils, malloc, names):
    """nixl_api_example: combined and prepared transfers."""
    target = api.nixl_agent(names(), api.nixl_agent_config(backends=[]))
    assert "UCX" in target.get_plugin_list()
    assert "DRAM_SEG" in target.get_plugin_mem_types("UCX")
    assert isinstance(target.get_plugin_params("UCX"), dict)
    target.create_backend("UCX")
    assert "DRAM_SEG" in target.get_backend_mem_types("UCX")
    assert isinstance(target.get_backend_params("UCX"), dict)
    initiator = api.nixl_agent(names(), None)

    there, here = malloc(SIZE * 2), malloc(SIZE * 2)
    rows = [(there, SIZE, 0), (there + SIZE, SIZE, 0)]
    target_reg = target.get_reg_descs([(*row, "b") for row in rows], "DRAM")
    target_xfer = target.get_xfer_descs(rows, "DRAM")
    assert target.register_memory(target_reg) is not None
    rows = [(here, SIZE, 0), (here + SIZE, SIZE, 0)]
    own_reg = initiator.get_reg_descs([(*row, "a") for row in rows], "DRAM")
    own_xfer = initiator.get_xfer_descs(rows, "DRAM")
    assert initiator.register_memory(own_reg) is not None
    utils.ba_buf(there, SIZE * 2)

    name = initiator.add_remote_agent(target.get_agent_metadata())
    assert name.decode() == target.name
    first = initiator.initialize_xfer(
        "READ", own_xfer, target_xfer, name, b"UUID1"
    )
    finish(initiator, first, target, b"UUID1")
    utils.verify_transfer(here, there, SIZE * 2)

    utils.ba_buf(here, SIZE)
    local = initiator.prep_xfer_dlist("NIXL_INIT_AGENT", rows, "DRAM")
    remote = initiator.prep_xfer_dlist(name, target_xfer)
    second = initiator.make_prepped_xfer(
        "WRITE", local, [0, 1], remote, [1, 0], b"UUID2"
    )
    finish(initiator, second, target, b"UUID2")
    utils.verify_transfer(here, there + SIZE, SIZE)
    utils.verify_transfer(here + SIZE, there, SIZE)

    initiator.release_xfer_handle(first)
    initiator.release_xfer_handle(second)
    initiator.release_dlist_handle(local)
    initiator.release_dlist_handle(remote)
    initiator.remove_remote_agent(target.name)
    initiator.deregister_memory(own_reg)
    target.deregister_memory(target_reg)


def listening(api, name, *config):
    kind = importlib.import_module("nixl._bindings").nixlNotSupportedError
    try:
        return api.nixl_agent(name, api.nixl_agent_config(*config))
    except kind as error:
        pytest.skip(str(error))


def test_two_peers_exchange_metadata_by_listener(
    inproc, api, utils, malloc, names
):
    """basic_two_peers: a configuration given by position, metadata by the
    listener, the target's list in a notification."""
    port = reserve_port()
    target = listening(api, names(), True, True, port)
    initiator = listening(api, names(), True, True, 0)
    there, here = malloc(SIZE), malloc(SIZE)
    utils.ba_buf(there, SIZE)
    target_reg = target.register_memory([(there, SIZE, 0, "")], "DRAM")
    if not target_reg:
        raise AssertionError("a registration that is false")
    own_reg = initiator.register_memory([(here, SIZE, 0, "")], "DRAM")
    utils.verify_transfer(there, there, SIZE)

    initiator.fetch_remote_metadata(target.name, "127.0.0.1", port)
    initiator.send_local_metadata("127.0.0.1", port)
    deadline.until(
        lambda: target.check_remote_metadata(initiator.name),
        "the initiator's metadata",
    )
    sent = target.get_serialized_descs(target_reg.trim())
    target.send_notif(initiator.name, sent)
    ((sender, message),) = deadline.gather_notifs(initiator, 1)
    assert sender == target.name
    descs = initiator.deserialize_descs(message)
    deadline.until(
        lambda: initiator.check_remote_metadata(target.name),
        "the target's metadata",
    )
    handle = initiator.initialize_xfer(
        "READ", own_reg.trim(), descs, target.name, b"Done_reading"
    )
    finish(initiator, handle, target, b"Done_reading")
    utils.verify_transfer(here, there, SIZE)
    initiator.remove_remote_agent(target.name)
    initiator.release_xfer_handle(handle)
    initiator.invalidate_local_metadata("127.0.0.1", port)
    initiator.deregister_memory(own_reg)
    target.deregister_memory(target_reg)


def test_partial_metadata_is_loaded_step_by_step(inproc, api, malloc, names):
    """partial_md_example: connection data, then a part of the regions."""
    target = api.nixl_agent(names())
    initiator = api.nixl_agent(names())
    pieces = [malloc(SIZE) for _ in range(4)]
    rows = [(addr, SIZE, 0, "") for addr in pieces]
    first = target.register_memory(rows[:2], "DRAM")
    second = target.register_memory(rows[2:], "DRAM")
    metadata = target.get_partial_agent_metadata(
        first, inc_conn_info=True, backends=["UCX"]
    )
    name = initiator.add_remote_agent(metadata)
    assert initiator.check_remote_metadata(name, first.trim())
    assert not initiator.check_remote_metadata(name, second.trim())
    name = initiator.add_remote_agent(
        target.get_partial_agent_metadata(second)
    )
    assert initiator.check_remote_metadata(name, second.trim())
    assert initiator.check_remote_metadata(name, first.trim())
    initiator.remove_remote_agent(name)
    target.deregister_memory(first)
    target.deregister_memory(second)


def test_query_memory_reports_existing_files(
    inproc, api, names, plugin, tmp_path
):
    """query_mem_example: by path; None stands for a missing file."""
    agent = api.nixl_agent(
        names(), api.nixl_agent_config(False, False, 0, backends=[])
    )
    plugin(agent, "POSIX")
    agent.create_backend("POSIX", agent.get_plugin_params("POSIX"))
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    rows = [(0, 0, 0, str(path)), (0, 0, 0, str(tmp_path / "none"))]
    found, missing = agent.query_memory(rows, "POSIX", mem_type="FILE")
    assert found["size"] == "100"
    assert "mode" in found
    assert missing is None
    with pytest.raises(ValueError, match="UCX"):
        agent.query_memory(rows, "UCX", mem_type="FILE")
