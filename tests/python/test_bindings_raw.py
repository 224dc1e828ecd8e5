"""The raw agent of NIXL's `_bindings`: takes numbers, returns statuses."""

import datetime
import gc
import importlib
import weakref

import pytest
from support import deadline
from support.memory import Memory, pattern

pytestmark = pytest.mark.usefixtures("inproc")

SIZE, BLOCK = 1 << 14, 512
COUNT = SIZE // BLOCK
STOCK_STATUSES = {
    "NIXL_IN_PROG": 1,
    "NIXL_SUCCESS": 0,
    "NIXL_ERR_NOT_POSTED": -1,
    "NIXL_ERR_INVALID_PARAM": -2,
    "NIXL_ERR_BACKEND": -3,
    "NIXL_ERR_NOT_FOUND": -4,
    "NIXL_ERR_MISMATCH": -5,
    "NIXL_ERR_NOT_ALLOWED": -6,
    "NIXL_ERR_REPOST_ACTIVE": -7,
    "NIXL_ERR_UNKNOWN": -8,
    "NIXL_ERR_NOT_SUPPORTED": -9,
}


@pytest.fixture
def raw(module):
    """The module `_bindings`."""
    return importlib.import_module(f"{module}._bindings")


class Side:
    """A raw agent with registered memory."""

    def __init__(self, raw, name, seed):
        self.raw, self.name = raw, name
        self.agent = raw.nixlAgent(name, raw.nixlAgentConfig(True))
        self.ucx = self.agent.createBackend("UCX", {})
        self.memory = Memory(SIZE).fill(seed)
        self.reg = raw.nixlRegDList(
            raw.DRAM_SEG, [(self.memory.addr, SIZE, 0, "")]
        )
        assert self.agent.registerMem(self.reg) == raw.NIXL_SUCCESS

    def descs(self, first=0, count=COUNT):
        base = self.memory.addr
        return self.raw.nixlXferDList(
            self.raw.DRAM_SEG,
            [
                (base + i * BLOCK, BLOCK, 0)
                for i in range(first, first + count)
            ],
        )

    def finish(self, number, status):
        deadline.until(
            lambda: (
                status == self.raw.NIXL_SUCCESS
                or self.agent.getXferStatus(number) == self.raw.NIXL_SUCCESS
            ),
            "a raw transfer",
        )

    def run(self, number, *notif):
        self.finish(number, self.agent.postXferReq(number, *notif))

    def notifs(self, sender, wanted):
        def gathered():
            nonlocal found
            found = self.agent.getNotifs(found)
            return sender in found and found[sender] == wanted

        found = {}
        deadline.until(gathered, f"{wanted} of {sender}")

    def close(self):
        self.agent = self.reg = None
        gc.collect()
        self.memory.unmap()


@pytest.fixture
def sides(raw, names, opened):
    """Two sides that know each other."""
    opened.extend(Side(raw, names(), seed) for seed in (1, 2))
    left, right = opened
    left.agent.loadRemoteMD(right.agent.getLocalMD())
    right.agent.loadRemoteMD(left.agent.getLocalMD())
    return left, right


# -- Names and numbers -------------------------------------------------------


def test_enumerations_have_nixls_numbers(raw):
    for name, number in STOCK_STATUSES.items():
        member = getattr(raw, name)
        assert isinstance(member, raw.nixl_status_t)
        assert (int(member), member.name) == (number, name)
        assert member == number
        assert str(member) == f"nixl_status_t.{name}"
        assert raw.nixl_status_t(number) == member
    mems = ["DRAM_SEG", "VRAM_SEG", "BLK_SEG", "OBJ_SEG", "FILE_SEG"]
    for number, name in enumerate(mems):
        member = getattr(raw, name)
        assert (int(member), member.name) == (number, name)
        assert str(member) == f"nixl_mem_t.{name}"
        assert repr(member) == f"<nixl_mem_t.{name}: {number}>"
    assert (int(raw.NIXL_READ), int(raw.NIXL_WRITE)) == (0, 1)
    assert str(raw.NIXL_WRITE) == "nixl_xfer_op_t.NIXL_WRITE"
    assert int(raw.NIXL_COST_ANALYTICAL_BACKEND) == 0
    assert raw.NIXL_THREAD_SYNC_DEFAULT == raw.NIXL_THREAD_SYNC_NONE
    assert raw.DEFAULT_COMM_PORT == 8888
    assert raw.NIXL_INIT_AGENT == ""


@pytest.mark.beyond_stock
def test_every_error_maps_to_its_status(raw, api):
    for kind in api.error_classes().values():
        assert raw.nixl_status_t(kind.status).name.startswith("NIXL_ERR_")
    gone = raw.nixl_status_t(raw.nixlRemoteDisconnectError.status)
    assert gone.name == "NIXL_ERR_REMOTE_DISCONNECT"
    assert raw.NIXL_ERR_CANCELED == -11
    assert raw.NIXL_ERR_NO_TELEMETRY == -12


def test_a_configuration_has_nixls_attributes(raw):
    config = raw.nixlAgentConfig()
    assert not config.useProgThread
    assert not config.useListenThread
    assert config.listenPort == 8888
    assert config.syncMode == raw.NIXL_THREAD_SYNC_DEFAULT
    assert (config.pthrDelay, config.lthrDelay) == (0, 100000)
    assert not config.captureTelemetry
    assert config.etcdWatchTimeout == datetime.timedelta(seconds=5)
    config.useProgThread = config.captureTelemetry = True
    config.syncMode = raw.NIXL_THREAD_SYNC_RW
    config.pthrDelay = 7
    config.etcdWatchTimeout = datetime.timedelta(seconds=1)
    assert config.etcdWatchTimeout == datetime.timedelta(seconds=1)
    mode = raw.NIXL_THREAD_SYNC_STRICT
    config = raw.nixlAgentConfig(True, False, 5, mode, 1, 2, 3, True)
    assert (config.listenPort, config.syncMode) == (5, mode)
    assert (config.pthrDelay, config.lthrDelay) == (2, 3)
    assert config.captureTelemetry


# -- Backends ----------------------------------------------------------------


def test_raw_backends_are_numbers(raw, names):
    agent = raw.nixlAgent(names(), raw.nixlAgentConfig())
    assert "UCX" in agent.getAvailPlugins()
    params, mems = agent.getPluginParams("UCX")
    assert isinstance(params, dict)
    assert "DRAM_SEG" in mems
    number = agent.createBackend("UCX", {})
    assert isinstance(number, int)
    assert number != 0
    params, mems = agent.getBackendParams(number)
    assert isinstance(params, dict)
    assert "DRAM_SEG" in mems
    with pytest.raises(raw.nixlNotFoundError):
        agent.createBackend("NOTHING", {})


def test_an_agent_needs_a_name(raw):
    with pytest.raises(ValueError, match="name"):
        raw.nixlAgent("", raw.nixlAgentConfig())
    with pytest.raises(TypeError):
        raw.nixlAgent("name", None)


# -- Transfers ---------------------------------------------------------------


def test_raw_transfer_of_descriptors(sides, raw):
    left, right = sides
    agent = left.agent
    number = agent.createXferReq(
        raw.NIXL_WRITE, left.descs(3, 2), right.descs(7, 2), right.name, "n\0o"
    )
    assert number != 0
    left.run(number)
    right.notifs(left.name, [b"n\0o"])
    view, want = right.memory.view, pattern(1, SIZE)
    assert bytes(view[7 * BLOCK : 9 * BLOCK]) == want[3 * BLOCK : 5 * BLOCK]
    assert agent.queryXferBackend(number) == left.ucx
    assert len(agent.estimateXferCost(number)) == 3
    assert agent.releaseXferReq(number) == raw.NIXL_SUCCESS


def test_raw_transfer_of_prepared_rows(sides, raw):
    numpy = pytest.importorskip("numpy")
    left, right = sides
    agent = left.agent
    local = agent.prepXferDlist("", left.descs())
    remote = agent.prepXferDlist(
        agent_name=right.name, descs=right.descs(), backend=[left.ucx]
    )
    rows = numpy.array([5, 0, 9], numpy.int32)
    number = agent.makeXferReq(
        raw.NIXL_READ, local, [1, 2, 30], remote, rows, b"first", [left.ucx]
    )
    left.run(number, b"second")
    right.notifs(left.name, [b"second"])
    got, source = left.memory.view, pattern(2, SIZE)
    for to, start in ((1, 5), (2, 0), (30, 9)):
        piece = bytes(got[to * BLOCK : (to + 1) * BLOCK])
        assert piece == source[start * BLOCK : (start + 1) * BLOCK]
    assert agent.releaseXferReq(number) == raw.NIXL_SUCCESS
    assert agent.releasedDlistH(local) == raw.NIXL_SUCCESS
    assert agent.releasedDlistH(remote) == raw.NIXL_SUCCESS


def test_raw_lists_may_have_strides(sides, raw):
    numpy = pytest.importorskip("numpy")
    left, right = sides
    agent = left.agent

    def strided(side):
        row = [side.memory.addr, BLOCK, 0, 2 * BLOCK, COUNT // 2]
        return numpy.array([row], numpy.uint64)

    local = agent.prepXferDlist("", raw.DRAM_SEG, strided(left))
    remote = agent.prepXferDlist(
        right.name, raw.DRAM_SEG, strided(right), [left.ucx]
    )
    number = agent.makeXferReq(raw.NIXL_READ, local, [1], remote, [2])
    left.run(number)
    got, source = left.memory.view, pattern(2, SIZE)
    assert bytes(got[2 * BLOCK :][:BLOCK]) == source[4 * BLOCK :][:BLOCK]


def test_raw_local_side_needs_no_agent_name(sides, raw):
    left, right = sides
    agent = left.agent
    local = agent.prepXferDlist(left.descs())
    remote = agent.prepXferDlist(right.name, right.descs())
    number = agent.makeXferReq(raw.NIXL_READ, local, [0], remote, [0])
    left.run(number)
    assert bytes(left.memory.view[:BLOCK]) == pattern(2, BLOCK)


# -- Peers and notifications -------------------------------------------------


def test_raw_peers_are_loaded_and_removed(sides, raw):
    left, right = sides
    agent = left.agent
    data = right.agent.getLocalMD()
    assert agent.loadRemoteMD(data) == right.name.encode()
    assert agent.checkRemoteMD(right.name, right.descs()) == raw.NIXL_SUCCESS
    unknown = raw.nixlXferDList(raw.DRAM_SEG, [(64, 64, 0)])
    assert agent.checkRemoteMD(right.name, unknown) == raw.NIXL_ERR_NOT_FOUND
    agent.makeConnection(right.name, [left.ucx])
    assert agent.invalidateRemoteMD(right.name) == raw.NIXL_SUCCESS
    assert agent.invalidateRemoteMD(right.name) == raw.NIXL_ERR_NOT_FOUND
    empty = raw.nixlXferDList(raw.DRAM_SEG)
    assert agent.checkRemoteMD(right.name, empty) == raw.NIXL_ERR_NOT_FOUND


def test_raw_partial_metadata_is_loaded(sides, raw):
    left, right = sides
    data = right.agent.getLocalPartialMD(right.reg, True, [right.ucx])
    left.agent.invalidateRemoteMD(right.name)
    assert left.agent.loadRemoteMD(data) == right.name.encode()
    known = left.agent.checkRemoteMD(right.name, right.descs())
    assert known == raw.NIXL_SUCCESS


def test_raw_notifications_are_merged_into_a_copy(sides, raw):
    left, right = sides
    assert left.agent.genNotif(right.name, b"\0\xff") == raw.NIXL_SUCCESS
    given = {left.name: [b"before"], "other": [b"x"]}
    found = given

    def arrived():
        nonlocal found
        found = right.agent.getNotifs(found, [right.ucx])
        return len(found[left.name]) == 2

    deadline.until(arrived, "a notification")
    assert found == {left.name: [b"before", b"\0\xff"], "other": [b"x"]}
    assert given == {left.name: [b"before"], "other": [b"x"]}
    left.agent.genNotif(right.name, "text")
    right.notifs(left.name, [b"text"])


def test_raw_memory_is_deregistered(sides, raw):
    left, _ = sides
    reg = left.reg
    assert left.agent.deregisterMem(reg, [left.ucx]) == raw.NIXL_SUCCESS
    with pytest.raises(raw.nixlNotFoundError):
        left.agent.prepXferDlist("", left.descs())
    assert left.agent.registerMem(reg, [left.ucx]) == raw.NIXL_SUCCESS


# -- Calls that crash stock ---------------------------------------------------


@pytest.mark.beyond_stock
def test_wrong_numbers_are_refused(sides, raw):
    left, right = sides
    agent = left.agent
    local = agent.prepXferDlist("", left.descs())
    xfer = agent.createXferReq(
        raw.NIXL_READ, left.descs(), right.descs(), right.name
    )
    theirs = right.agent.prepXferDlist("", right.descs())
    calls = [
        lambda: agent.getXferStatus(12345),
        lambda: agent.postXferReq(local),
        lambda: agent.releasedDlistH(xfer),
        lambda: agent.releasedDlistH(theirs),
        lambda: agent.makeXferReq(raw.NIXL_READ, local, [0], theirs, [0]),
        lambda: agent.getBackendParams(77),
        lambda: agent.registerMem(left.reg, [77]),
        lambda: agent.queryMem(left.reg, 77),
    ]
    for call in calls:
        with pytest.raises(raw.nixlInvalidParamError) as caught:
            call()
        assert str(caught.value).startswith("NIXL_ERR_INVALID_PARAM: ")
        assert caught.value.operation
    agent.releasedDlistH(local)
    with pytest.raises(raw.nixlInvalidParamError):
        agent.releasedDlistH(local)
    assert agent.prepXferDlist("", left.descs()) != local
    with pytest.raises(KeyError):
        agent.createXferReq(2, left.descs(), right.descs(), right.name)


@pytest.mark.beyond_stock
def test_telemetry_of_a_raw_transfer(sides, raw):
    left, right = sides
    number = left.agent.createXferReq(
        raw.NIXL_READ, left.descs(), right.descs(), right.name
    )
    left.run(number)
    assert left.agent.getXferTelemetry(number).totalBytes == SIZE


@pytest.mark.beyond_stock
def test_dropped_raw_agent_is_freed_at_once(sides, raw):
    left, _ = sides
    left.agent.prepXferDlist("", left.descs())
    gone = weakref.ref(left.agent._agent)
    left.agent = None
    gc.collect()
    assert gone() is None


@pytest.mark.beyond_stock
def test_agent_names_the_unsupported_feature(sides, raw):
    left, _ = sides
    agent = left.agent
    calls = [
        lambda: agent.prepMemView(left.descs()),
        lambda: agent.prepMemView(left.descs(), [left.ucx]),
        lambda: agent.releaseMemView(3),
    ]
    for call in calls:
        with pytest.raises(raw.nixlNotSupportedError):
            call()


# -- The raw agent of a NixlAgent ---------------------------------------------


def test_agent_exposes_its_raw_agent(endpoint, raw):
    here = endpoint()
    under = here.agent.agent
    assert isinstance(under, raw.nixlAgent)
    assert here.agent.agent is under
    assert under.getAvailPlugins() == here.agent.get_plugin_list()
    assert under.getLocalMD() == here.agent.get_agent_metadata()
    number = here.agent.backends["UCX"]
    assert under.getBackendParams(number) == (
        here.agent.get_backend_params("UCX"),
        here.agent.get_backend_mem_types("UCX"),
    )


def test_raw_agent_may_be_replaced(api, raw, names):
    """SGLang's HiCache does this to choose the thread mode."""
    name = names()
    agent = api.nixl_agent(name, api.nixl_agent_config(backends=[]))
    config = raw.nixlAgentConfig()
    config.syncMode = raw.NIXL_THREAD_SYNC_RW
    under = raw.nixlAgent(name, config)
    agent.agent = under
    agent.plugin_list = agent.agent.getAvailPlugins()
    agent.create_backend("UCX", {})
    assert agent.agent is under
    assert under.getLocalMD() == agent.get_agent_metadata()
    memory = Memory(SIZE)
    descs = agent.register_memory([(memory.addr, SIZE, 0, "")], "DRAM")
    assert under.deregisterMem(descs) == raw.NIXL_SUCCESS
    del under, agent
    gc.collect()
    memory.unmap()


@pytest.mark.beyond_stock
def test_raw_agent_of_the_wrong_type_is_refused(api, raw, names):
    name = names()
    agent = api.nixl_agent(name, api.nixl_agent_config(backends=[]))
    with pytest.raises(TypeError, match="nixlAgent"):
        agent.agent = agent
    with pytest.raises(raw.nixlInvalidParamError, match="same name"):
        agent.agent = raw.nixlAgent(names(), raw.nixlAgentConfig())
    agent.create_backend("UCX")
    with pytest.raises(raw.nixlInvalidParamError, match="backend"):
        agent.agent = raw.nixlAgent(name, raw.nixlAgentConfig())
    agent.agent = agent.agent
