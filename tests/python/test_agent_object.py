"""The agent as a Python object: attributes, subclasses, lifetime."""

import gc
import weakref

import pytest
from support import deadline

pytestmark = pytest.mark.beyond_stock


@pytest.fixture
def agent(endpoint):
    return endpoint().agent


# -- Attributes --------------------------------------------------------------


def test_agent_attributes_have_their_values(endpoint):
    here = endpoint()
    agent = here.agent
    assert agent.name == here.name
    assert agent.backends == {"UCX": 1}
    assert agent.plugin_list == agent.get_plugin_list()
    assert "UCX" in agent.plugin_list
    assert agent.notifs == {}
    assert not agent.closed
    assert repr(here.name) in repr(agent)


def test_agent_accepts_new_attributes(agent):
    agent.owner = "somebody"
    assert agent.owner == "somebody"
    assert agent.__dict__["owner"] == "somebody"
    with pytest.raises(AttributeError):
        agent.backends = {}
    with pytest.raises(AttributeError):
        agent.closed = True


def test_plugin_lists_are_copies(agent):
    agent.get_plugin_list().clear()
    assert "UCX" in agent.get_plugin_list()


# -- Backends ----------------------------------------------------------------


def test_backends_are_numbered_in_creation_order(api, names):
    config = api.nixl_agent_config(backends=[])
    with api.nixl_agent(names(), config) as agent:
        assert agent.backends == {}
        (other,) = {"SHM", "POSIX"} & set(agent.plugin_list)
        assert agent.create_backend(other, {}) is None
        agent.create_backend(backend="UCX", initParams={"num_threads": "2"})
        assert agent.backends == {other: 1, "UCX": 2}


def test_backend_parameters_may_be_numbers(api, names):
    config = api.nixl_agent_config(backends=[])
    with api.nixl_agent(names(), config) as agent:
        agent.create_backend("UCX", {"num_threads": 2})
        assert agent.get_backend_params("UCX")["num_threads"] == "2"


def test_backend_parameters_are_reported(agent):
    for plugin in {"UCX", "SHM", "POSIX"} & set(agent.get_plugin_list()):
        assert "DRAM_SEG" in agent.get_plugin_mem_types(plugin)
        params = agent.get_plugin_params(plugin)
        assert all(isinstance(value, str) for value in params.values())
    assert "DRAM_SEG" in agent.get_backend_mem_types("UCX")
    assert isinstance(agent.get_backend_params("UCX"), dict)


@pytest.mark.parametrize(
    "ask", ["get_plugin_mem_types", "get_plugin_params", "create_backend"]
)
def test_unknown_plugins_are_refused(api, agent, ask):
    with pytest.raises(api.nixlNotFoundError, match=f"{ask}.*NOWHERE"):
        getattr(agent, ask)("NOWHERE")
    with pytest.raises(TypeError, match="backend"):
        getattr(agent, ask)(3)


@pytest.mark.parametrize(
    "ask", ["get_backend_mem_types", "get_backend_params"]
)
def test_backends_that_were_not_created_are_refused(api, agent, ask):
    with pytest.raises(api.nixlNotFoundError, match=f"{ask}.*SHM"):
        getattr(agent, ask)("SHM")


@pytest.mark.parametrize("params", [3, "a=b", [("a", "b")]])
def test_backend_parameters_must_be_a_dict(api, names, params):
    config = api.nixl_agent_config(backends=[])
    with (
        api.nixl_agent(names(), config) as agent,
        pytest.raises(TypeError, match="initParams"),
    ):
        agent.create_backend("UCX", params)


class Unprintable:
    def __str__(self):
        raise LookupError("no text")


def test_exception_raised_by_a_parameter_propagates(api, names):
    config = api.nixl_agent_config(backends=[])
    with api.nixl_agent(names(), config) as agent:
        with pytest.raises(LookupError, match="no text"):
            agent.create_backend("UCX", {"a": Unprintable()})
        assert agent.backends == {}


@pytest.mark.nixl_differs("some of its plugins lack a library here")
def test_all_backends_may_be_created_at_once(api, names):
    with api.nixl_agent(names(), None, True) as agent:
        assert sorted(agent.backends) == sorted(agent.plugin_list)


def test_configuration_overrides_the_backends_argument(api, names):
    config = api.nixl_agent_config(backends=["UCX"])
    with api.nixl_agent(names(), config, instantiate_all=True) as agent:
        assert list(agent.backends) == ["UCX"]


# -- Subclasses --------------------------------------------------------------


def test_agents_may_be_subclassed(api, names):
    class Mine(api.nixl_agent):
        def __init__(self, name):
            super().__init__(name, api.nixl_agent_config())
            self.sent = 0

        def send_notif(self, *args, **keywords):
            self.sent += 1
            return super().send_notif(*args, **keywords)

    with Mine(names()) as agent:
        agent.send_notif(agent.name, b"hello")
        assert agent.sent == 1
        got = deadline.gather_notifs(agent, 1)
        assert got == [(agent.name, b"hello")]


def test_subclass_without_base_init_is_refused(api, names):
    class Empty(api.nixl_agent):
        def __init__(self):
            pass

    with pytest.raises(RuntimeError, match="__init__"):
        Empty().get_agent_metadata()


def test_subclass_may_have_slots(api, names):
    class Slots(api.nixl_agent):
        __slots__ = ("mine",)

    agent = Slots(names())
    agent.mine = agent
    gone = weakref.ref(agent)
    del agent
    gc.collect()
    assert gone() is None


def test_base_class_checks_names_and_limits(names):
    core = pytest.importorskip("vllm_nixl._core")
    agent = core.Agent(names(), engine="native", notif_bytes_max=1000)
    agent.create_backend("UCX")
    for _ in range(100):
        agent.send_notif(agent.name, b"x" * 100)
    stats = agent.stats()
    assert stats["notifs_dropped"] > 0
    assert stats["notif_bytes_pending"] <= 1000
    with pytest.raises((TypeError, OverflowError)):
        core.Agent(names(), num_threads="4")
    with pytest.raises(TypeError):
        core.Agent(names(), "native")


# -- Lifetime ----------------------------------------------------------------


def test_closed_agent_stays_closed(api, endpoint):
    here = endpoint()
    agent = here.agent
    agent.close()
    agent.close()
    assert agent.closed
    assert "closed" in repr(agent)
    for call in (
        agent.get_agent_metadata,
        agent.fileno,
        lambda: agent.send_notif(here.name, b""),
        lambda: agent.create_backend("SHM"),
        lambda: agent.prep_xfer_dlist("", [(1, 2, 3)], "DRAM"),
        lambda: agent.register_memory([(1, 2, 3, "")], "DRAM"),
    ):
        with pytest.raises(api.nixlClosedError, match="closed"):
            call()
    assert agent.get_new_notifs() == {}


def test_with_statement_closes_the_agent(api, names):
    with api.nixl_agent(names()) as agent:
        same = agent
    assert same.closed


def test_with_statement_does_not_hide_errors(api, names):
    with pytest.raises(LookupError), api.nixl_agent(names()):
        raise LookupError


def test_dropped_agent_is_freed_at_once(api, names):
    agent = api.nixl_agent(names())
    gone = weakref.ref(agent)
    del agent
    assert gone() is None


def test_two_agents_may_have_the_same_name(api, names):
    name = names()
    with api.nixl_agent(name) as one, api.nixl_agent(name) as two:
        assert one.name == two.name
        with pytest.raises(api.nixlInvalidParamError):
            one.add_remote_agent(two.get_agent_metadata())
