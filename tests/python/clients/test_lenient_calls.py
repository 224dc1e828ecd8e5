"""What NIXL's names accept and NixlAgent refuses.

Programs test for None, for an empty result, or for the class of an error, so
these are stock NIXL's.
"""

import importlib
import sys
import types
import weakref

import pytest
from support import deadline
from support.memory import Memory

np = pytest.importorskip("numpy")

pytestmark = pytest.mark.usefixtures("inproc")

SYNC = ["NIXL_THREAD_SYNC_" + name for name in ("NONE", "STRICT", "RW")]
OFF = ["n", "no", "off", "0", "false", "disable", "NO", "False"]


def api():
    return importlib.import_module("nixl._api")


def bindings():
    return importlib.import_module("nixl._bindings")


@pytest.fixture
def made(names):
    """made(**config): an agent under NIXL's name."""

    def make(**config):
        return api().nixl_agent(names(), api().nixl_agent_config(**config))

    return make


@pytest.fixture
def agent(made):
    return made(backends=[])


def rows(count, width):
    return [(4096 * i, 4096, 0, "")[:width] for i in range(1, count + 1)]


def array(*shape, dtype="uint64"):
    return np.ones(shape, dtype)


# -- Descriptors --------------------------------------------------------------

MALFORMED = {
    "tuples without a memory type": lambda w: (rows(2, w),),
    "an array without a memory type": lambda w: (array(2, 3),),
    "too many columns": lambda w: ([(4096, 64, 0, "", 1)], "DRAM"),
    "too few columns": lambda w: ([(4096, 64)], "DRAM"),
    "strides": lambda w: (array(2, 5), "DRAM"),
    "an array of two columns": lambda w: (array(2, 2), "DRAM"),
    "an array of one axis": lambda w: (array(3), "DRAM"),
    "numbers": lambda w: ([4096, 64], "DRAM"),
    "text": lambda w: ("abc", "DRAM"),
    "bytes": lambda w: (b"abc", "DRAM"),
}
RAISED = {
    "an unknown memory type": (KeyError, lambda w: (rows(1, w), "V-RAM")),
    "an array of floats": (
        ValueError,
        lambda w: (array(2, 3, dtype="float64"), "DRAM"),
    ),
    "an array of int32": (
        ValueError,
        lambda w: (array(2, 3, dtype="int32"), "DRAM"),
    ),
    "nothing": (TypeError, lambda w: (None, "DRAM")),
    "a number": (TypeError, lambda w: (5, "DRAM")),
    "an empty list": (IndexError, lambda w: ([], "DRAM")),
    "an empty list of no type": (IndexError, lambda w: ([],)),
    "an empty tuple": (IndexError, lambda w: ((), "DRAM")),
    "an empty array": (IndexError, lambda w: (array(0, 3), "DRAM")),
}
METHODS = {"get_xfer_descs": 3, "get_reg_descs": 4}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_descriptors_give_none(agent, method, case):
    arguments = MALFORMED[case](METHODS[method])
    assert getattr(agent, method)(*arguments) is None


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", RAISED)
def test_other_descriptors_raise(agent, method, case):
    kind, arguments = RAISED[case]
    with pytest.raises(kind):
        getattr(agent, method)(*arguments(METHODS[method]))


def test_a_list_of_the_other_class_gives_none(agent):
    one, other = bindings().nixlRegDList, bindings().nixlXferDList
    assert agent.get_xfer_descs(one(bindings().DRAM_SEG)) is None
    assert agent.get_reg_descs(other(bindings().DRAM_SEG)) is None


@pytest.mark.parametrize("method", METHODS)
def test_valid_descriptors_give_a_list(agent, method):
    get = getattr(agent, method)
    width = METHODS[method]
    for given in (rows(3, width), array(3, 3)):
        made = get(given, "DRAM")
        assert made.descCount() == 3
        assert get(made) is made
    assert get(rows(2, width), mem_type="cuda").getType() == (
        bindings().VRAM_SEG
    )


def test_remote_descriptors_are_lenient_too(agent):
    get = agent.get_remote_descs
    assert get([(4096, 64, 0, "peer")], "DRAM").descCount() == 1
    for arguments in (
        ([(4096, 64, 0, "peer")],),
        ([(4096, 64, 0)], "DRAM"),
        (array(2, 3), "DRAM"),
        ([5], "DRAM"),
    ):
        assert get(*arguments) is None
    with pytest.raises(IndexError):
        get([], "DRAM")


class Tensor:
    """The part of torch.Tensor that NIXL uses, in memory of the CPU."""

    def __init__(self, data, device="cpu"):
        self.data = data
        self.device = types.SimpleNamespace(type=device, index=None)

    def is_contiguous(self):
        return self.data.flags.c_contiguous

    def data_ptr(self):
        return self.data.ctypes.data

    def numel(self):
        return self.data.size

    def element_size(self):
        return self.data.itemsize

    def get_device(self):
        return -1

    def __getitem__(self, index):
        return Tensor(self.data[index], self.device.type)


@pytest.fixture
def tensor(monkeypatch):
    """Tensors of the installed torch, or of a stand-in for it."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return lambda data: torch.from_numpy(data)
    torch = types.ModuleType("torch")
    torch.Tensor = Tensor
    monkeypatch.setattr(Tensor, "__module__", "torch")
    monkeypatch.setitem(sys.modules, "torch", torch)
    return Tensor


@pytest.mark.parametrize("method", METHODS)
def test_tensors_that_are_not_contiguous_give_none(agent, tensor, method):
    get = getattr(agent, method)
    data = np.ones((4, 8))
    assert get(tensor(data)).descCount() == 1
    assert get([tensor(data), tensor(data)]).descCount() == 2
    assert get(tensor(data.T)) is None
    assert get([tensor(data), tensor(data.T)]) is None


def test_tensors_of_several_devices_give_none(agent, tensor):
    if tensor is not Tensor:
        pytest.skip("tensors of a second device need one")
    mixed = [Tensor(np.ones(8)), Tensor(np.ones(8), "meta")]
    assert agent.get_xfer_descs(mixed) is None
    assert agent.get_reg_descs(mixed) is None


def test_calls_that_take_rows_refuse_an_empty_list(made):
    agent = made()
    with pytest.raises(IndexError):
        agent.register_memory([], "DRAM")
    with pytest.raises(IndexError):
        agent.prep_xfer_dlist("", [], "DRAM")
    with pytest.raises(TypeError):
        agent.register_memory(rows(1, 4))
    with pytest.raises(TypeError):
        agent.prep_xfer_dlist("", rows(1, 3))


# -- Plugins and backends -----------------------------------------------------


def test_an_unknown_plugin_has_no_properties(made):
    agent = made()
    for name in ("UVX", "ucx", ""):
        assert agent.get_plugin_mem_types(name) == []
        assert agent.get_plugin_params(name) == {}
        assert agent.get_backend_mem_types(name) == []
        assert agent.get_backend_params(name) == {}
        with pytest.raises(bindings().nixlNotFoundError):
            agent.create_backend(name)


def test_ucx_has_the_properties_of_the_plugin(made):
    agent = made(backends=[])
    mems = ["DRAM_SEG", "VRAM_SEG"]
    assert sorted(agent.get_plugin_mem_types("UCX")) == mems
    params = agent.get_plugin_params("UCX")
    assert params == {
        "num_workers": "1",
        "ucx_devices": "",
        "ucx_error_handling_mode": "peer",
    }
    assert agent.get_backend_mem_types("UCX") == []
    agent.create_backend("UCX", {**params, "num_threads": "2"})
    assert sorted(agent.get_backend_mem_types("UCX")) == mems
    assert agent.get_backend_params("UCX") == {**params, "num_threads": "2"}


def test_properties_are_kept_in_attributes(made):
    agent = made(num_threads=3)
    assert list(agent.backends) == ["UCX"]
    assert agent.backend_options == {"UCX": {"num_threads": "3"}}
    assert list(agent.backend_mems) == ["UCX"]
    assert agent.plugin_list == agent.get_plugin_list()
    agent.get_plugin_params("UCX")
    assert "UCX" in agent.plugin_b_options
    assert "UCX" in agent.plugin_mem_types


def test_only_nixls_plugins_are_listed(agent):
    plugins = agent.get_plugin_list()
    assert "UCX" in plugins
    assert "SHM" not in plugins


def test_a_second_backend_of_the_same_name_is_an_invalid_parameter(made):
    agent = made()
    with pytest.raises(bindings().nixlInvalidParamError):
        agent.create_backend("UCX")
    assert list(agent.backends) == ["UCX"]


def test_a_plugin_that_cannot_be_loaded_is_not_found(made, plugin):
    """GDS needs CUDA's libraries."""
    agent = made(backends=[])
    plugin(agent, "GDS")
    if agent.get_plugin_mem_types("GDS"):
        pytest.skip("GDS can be loaded here")
    assert agent.get_plugin_params("GDS") == {}
    with pytest.raises(bindings().nixlNotFoundError):
        agent.create_backend("GDS")
    with pytest.raises(bindings().nixlNotFoundError):
        made(backends=["GDS"])


def test_a_plugin_that_nixl_lacks_is_left_out(made, plugin):
    plugin(made(backends=[]), "POSIX")
    assert list(made(backends=["UCX", "UVX"]).backends) == ["UCX"]


@pytest.mark.beyond_stock
def test_a_missing_library_is_not_a_missing_plugin(made, monkeypatch):
    """Storage that silently is not there would be found out too late."""
    monkeypatch.setenv("VLLM_NIXL_ENGINE", "native")
    with pytest.raises(bindings().nixlNotFoundError, match="POSIX"):
        made(backends=["UCX", "POSIX"])


# -- Telemetry ----------------------------------------------------------------


def transferred(agent):
    """A transfer of the agent within its own memory, which has ended."""
    memory = Memory(8192)
    agent.register_memory([(memory.addr, memory.size, 0, "")], "DRAM")
    handle = agent.initialize_xfer(
        "WRITE",
        agent.get_xfer_descs([(memory.addr, 64, 0)], "DRAM"),
        agent.get_xfer_descs([(memory.addr + 4096, 64, 0)], "DRAM"),
        agent.name,
    )
    assert deadline.run(agent, handle) == "DONE"
    return handle, memory


@pytest.mark.parametrize("value", OFF)
def test_the_environment_switches_telemetry_off(made, monkeypatch, value):
    monkeypatch.setenv("NIXL_TELEMETRY_ENABLE", value)
    agent = made(capture_telemetry=True)
    monkeypatch.delenv("NIXL_TELEMETRY_ENABLE")
    handle, memory = transferred(agent)
    with pytest.raises(bindings().nixlNoTelemetryError):
        agent.get_xfer_telemetry(handle)
    handle.release()
    del agent, handle
    memory.unmap()


@pytest.mark.parametrize("value", [None, "y"])
def test_telemetry_is_on_otherwise(made, monkeypatch, value):
    if value is None:
        monkeypatch.delenv("NIXL_TELEMETRY_ENABLE", raising=False)
    else:
        monkeypatch.setenv("NIXL_TELEMETRY_ENABLE", value)
    agent = made(capture_telemetry=True)
    handle, memory = transferred(agent)
    assert agent.get_xfer_telemetry(handle).totalBytes == 64
    handle.release()
    del agent, handle
    memory.unmap()


# -- Construction -------------------------------------------------------------


@pytest.fixture
def constructed(monkeypatch):
    """The arguments of every call of nixlAgent."""
    calls = []
    real = bindings().nixlAgent

    def spy(name, config):
        calls.append((name, config))
        return real(name, config)

    monkeypatch.setattr(bindings(), "nixlAgent", spy)
    return calls


@pytest.mark.parametrize("mode", [None, *SYNC])
@pytest.mark.parametrize("listens", [False, True])
def test_the_raw_agent_gets_the_sync_mode(made, constructed, mode, listens):
    modes = api().nixl_thread_sync_t
    agent = made(
        backends=[],
        enable_listen_thread=listens,
        listen_port=0,
        sync_mode=None if mode is None else modes[mode],
    )
    ((name, config),) = constructed
    default = SYNC[1] if listens else SYNC[0]
    assert name == agent.name
    assert config.syncMode == modes[mode or default].value
    assert config.syncMode == getattr(bindings(), mode or default)
    assert config.useListenThread == listens


def test_the_raw_agent_gets_every_setting(made, constructed):
    agent = made(
        enable_prog_thread=False, capture_telemetry=True, listen_port=4321
    )
    ((_, config),) = constructed
    assert not config.useProgThread
    assert config.captureTelemetry
    assert config.listenPort == 4321
    assert config.lthrDelay == 100000
    assert list(agent.backends) == ["UCX"]
    assert isinstance(agent.agent, type(api().nixl_agent("x").agent))


def test_a_substitute_may_change_the_settings(made, monkeypatch, names):
    real = bindings().nixlAgent
    name = names()
    monkeypatch.setattr(
        bindings(), "nixlAgent", lambda _, config: real(name, config)
    )
    assert made(backends=[]).get_plugin_list()


def test_the_configuration_of_the_raw_agent_may_be_replaced(made, monkeypatch):
    seen = []

    class Config(bindings().nixlAgentConfig):
        def __setattr__(self, name, value):
            seen.append(name)
            super().__setattr__(name, value)

    monkeypatch.setattr(bindings(), "nixlAgentConfig", Config)
    assert list(made().backends) == ["UCX"]
    assert {"syncMode", "useProgThread", "listenPort"} <= set(seen)


def test_an_error_of_the_raw_agent_is_passed_on(monkeypatch):
    def refuse(name, config):
        raise RuntimeError("not today")

    monkeypatch.setattr(bindings(), "nixlAgent", refuse)
    with pytest.raises(RuntimeError, match="not today"):
        api().nixl_agent("agent")


def test_an_empty_name_is_a_value_error():
    with pytest.raises(ValueError, match="name"):
        api().nixl_agent("")


def test_a_false_configuration_is_the_default(names):
    for nothing in (None, 0, False):
        agent = api().nixl_agent(names(), nothing)
        assert list(agent.backends) == ["UCX"]


def test_a_configuration_may_be_any_object(names):
    """Programs pass their own dataclass with the same attributes."""
    config = types.SimpleNamespace(
        enable_pthread=True,
        enable_listen=False,
        port=8888,
        capture_telemetry=False,
        num_threads=2,
        backends=["UCX"],
        sync_mode=None,
    )
    agent = api().nixl_agent(names(), config)
    assert list(agent.backends) == ["UCX"]


def test_an_agent_ends_with_its_last_reference(made):
    agent = made()
    gone = weakref.ref(agent)
    del agent
    assert gone() is None


def test_all_sync_modes_are_true(agent):
    for mode in api().nixl_thread_sync_t:
        assert mode


@pytest.mark.beyond_stock
def test_a_substitute_that_makes_no_agent_is_refused(monkeypatch):
    monkeypatch.setattr(bindings(), "nixlAgent", lambda *_: object())
    with pytest.raises(TypeError, match="nixlAgent"):
        api().nixl_agent("agent")


# -- NixlAgent itself ---------------------------------------------------------


@pytest.mark.beyond_stock
def test_own_settings_are_kept(module, names):
    package = importlib.import_module(module)
    config = package.nixl_agent_config(
        engine="native", backends=["SHM"], metadata_secret="12345678"
    )
    agent = api().nixl_agent(names(), config)
    assert isinstance(agent, package.NixlAgent)
    assert agent.engine == "native"
    assert list(agent.backends) == ["SHM"]
    assert agent.describe()["metadata_signed"]


@pytest.mark.beyond_stock
def test_the_packages_own_agent_stays_strict(module, names, monkeypatch):
    package = importlib.import_module(module)
    assert package.nixl_agent is package.NixlAgent
    monkeypatch.setenv("NIXL_TELEMETRY_ENABLE", "n")
    agent = package.NixlAgent(names())
    for call in (
        lambda: agent.get_xfer_descs([(1, 2, 3)]),
        lambda: agent.get_reg_descs([(1, 2, 3)], "DRAM"),
        lambda: agent.get_plugin_params("UVX"),
        lambda: agent.get_backend_mem_types("UVX"),
    ):
        with pytest.raises((TypeError, package.nixlNotFoundError)):
            call()
    assert agent.get_xfer_descs([], "DRAM").isEmpty()
    with pytest.raises(package.nixlNotAllowedError):
        agent.create_backend("UCX")
    handle, memory = transferred(agent)
    assert agent.get_xfer_telemetry(handle).totalBytes == 64
    agent.close()
    memory.unmap()
