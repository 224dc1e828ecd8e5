"""Random nixl_agent_config objects: attributes, repr and agents match the
arguments, and configurations share no state.
"""

import pytest

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import strategies as st  # noqa: E402

pytestmark = pytest.mark.beyond_stock

SETTINGS = hypothesis.settings(max_examples=60, deadline=None, database=None)
PLACES = [
    "enable_prog_thread",
    "enable_listen_thread",
    "listen_port",
    "capture_telemetry",
    "num_threads",
    "backends",
]
# Some attributes have other names than the arguments, as in NIXL.
ATTRIBUTES = {
    "enable_prog_thread": "enable_pthread",
    "enable_listen_thread": "enable_listen",
    "listen_port": "port",
}
VALUES = {
    "enable_prog_thread": st.booleans(),
    "enable_listen_thread": st.booleans(),
    "listen_port": st.integers(0, 65535),
    "capture_telemetry": st.booleans(),
    "num_threads": st.integers(0, 1024),
    "backends": st.lists(st.text(max_size=5), max_size=3),
    "engine": st.sampled_from(["auto", "native", "nixl"]),
    "listen_host": st.text(max_size=20),
    "listen_max_frame": st.integers(0, 1 << 30),
}
GIVEN = st.fixed_dictionaries({}, optional=VALUES)
OUTSIDE = {
    "listen_port": st.integers().filter(lambda n: not 0 <= n <= 65535),
    "num_threads": st.integers().filter(lambda n: not 0 <= n <= 1024),
    "listen_max_frame": st.integers().filter(lambda n: not 0 <= n <= 1 << 30),
    "engine": st.text().filter(lambda s: s not in ("auto", "native", "nixl")),
}


@pytest.fixture(scope="module")
def config(module):
    import vllm_nixl

    patch = pytest.MonkeyPatch()
    patch.delenv("VLLM_NIXL_ENGINE", raising=False)
    patch.delenv("VLLM_NIXL_METADATA_SECRET", raising=False)
    yield vllm_nixl.nixl_agent_config
    patch.undo()


def kept(made, key):
    return getattr(made, ATTRIBUTES.get(key, key))


@SETTINGS
@hypothesis.given(given=GIVEN)
def test_config_attributes_equal_the_arguments(config, given):
    made, default = config(**given), config()
    for key in VALUES:
        wanted = given.get(key, kept(default, key))
        assert kept(made, key) == wanted


@SETTINGS
@hypothesis.given(given=GIVEN)
def test_config_repr_can_be_evaluated(config, given):
    """repr() has every value, under its attribute name."""
    made = config(**given)
    shown = eval(repr(made), {"nixl_agent_config": dict})
    assert shown == vars(made)
    again = config(
        **{
            key: shown[ATTRIBUTES.get(key, key)]
            for key in VALUES
            if ATTRIBUTES.get(key, key) in shown
        }
    )
    assert vars(again) == vars(made)


@SETTINGS
@hypothesis.given(values=st.tuples(*(VALUES[key] for key in PLACES)))
def test_config_positional_arguments_match_nixl(config, values):
    by_place = config(*values)
    by_name = config(**dict(zip(PLACES, values, strict=True)))
    assert vars(by_place) == vars(by_name)


@SETTINGS
@hypothesis.given(data=st.data(), key=st.sampled_from(sorted(OUTSIDE)))
def test_config_names_the_value_out_of_range(config, data, key):
    value = data.draw(OUTSIDE[key])
    with pytest.raises(ValueError, match=f"^{key} must be") as caught:
        config(**{key: value})
    assert repr(value) in str(caught.value)


SECRETS = st.none() | st.binary(min_size=8) | st.text(min_size=8)


@SETTINGS
@hypothesis.given(given=GIVEN, secret=SECRETS)
def test_config_repr_hides_the_secret_only(config, given, secret):
    made = config(metadata_secret=secret, **given)
    assert made.metadata_secret == secret
    shown = repr(config(metadata_secret=None, **given))
    hidden = "None" if secret is None else "<hidden>"
    assert repr(made) == shown.replace(
        "metadata_secret=None", f"metadata_secret={hidden}"
    )


def test_config_defaults_cannot_be_modified(config):
    first = config()
    first.backends.append("SHM")
    assert config().backends == ["UCX"]


def test_one_config_creates_many_agents(api, names):
    config = api.nixl_agent_config(backends=["SHM"], num_threads=3)
    agents = [api.NixlAgent(names(), config) for _ in range(3)]
    try:
        for agent in agents:
            assert agent.describe()["num_threads"] == 3
            assert list(agent.backends) == ["SHM"]
        assert config.backends == ["SHM"]
    finally:
        for agent in agents:
            agent.close()


def test_raw_config_has_the_same_values(api, names, monkeypatch):
    monkeypatch.setenv("VLLM_NIXL_ENGINE", "native")
    raw = api.nixlAgentConfig(
        useProgThread=True, useListenThread=True, listenPort=0
    )
    agent = api.nixlAgent(names(), raw)
    try:
        assert agent._agent.listen_port > 0
        # A raw agent has no backends until its caller creates them.
        assert agent._agent.backends == {}
        agent.createBackend("UCX", {})
        assert agent._agent.describe()["engine"] == "native"
    finally:
        agent._agent.close()
