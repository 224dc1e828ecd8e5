"""nixl_agent_config: every value is checked when it is given."""

import pytest

pytestmark = pytest.mark.beyond_stock


@pytest.fixture
def config(api, monkeypatch):
    monkeypatch.delenv("VLLM_NIXL_ENGINE", raising=False)
    monkeypatch.delenv("VLLM_NIXL_METADATA_SECRET", raising=False)
    return api.nixl_agent_config


@pytest.mark.parametrize(
    ("keyword", "value", "error"),
    [
        ("listen_port", -1, ValueError),
        ("listen_port", 65536, ValueError),
        ("listen_port", "8888", TypeError),
        ("listen_port", None, TypeError),
        ("num_threads", -1, ValueError),
        ("num_threads", 10**6, ValueError),
        ("num_threads", 1.5, TypeError),
        ("num_threads", True, TypeError),
        ("backends", "UCX", TypeError),
        ("backends", None, TypeError),
        ("backends", ["UCX", 3], TypeError),
        ("backends", {"UCX"}, TypeError),
        ("sync_mode", 1, TypeError),
        ("sync_mode", "NIXL_THREAD_SYNC_RW", TypeError),
        ("engine", "ucx", ValueError),
        ("engine", "", ValueError),
        ("engine", 3, TypeError),
        ("metadata_secret", "", ValueError),
        ("metadata_secret", b"", ValueError),
        ("metadata_secret", "1234567", ValueError),
        ("metadata_secret", "é" * 32768, ValueError),
        ("metadata_secret", b"x" * 65536, ValueError),
        ("metadata_secret", 12345678, TypeError),
        ("metadata_secret", True, TypeError),
        ("metadata_secret", bytearray(8), TypeError),
        ("metadata_secret", memoryview(bytes(8)), TypeError),
    ],
)
def test_config_refuses_wrong_values(config, keyword, value, error):
    with pytest.raises(error, match=keyword.rstrip("s").replace("_", ".")):
        config(**{keyword: value})


@pytest.mark.parametrize(
    ("keyword", "value"),
    [
        ("listen_port", 0),
        ("listen_port", 65535),
        ("num_threads", 0),
        ("num_threads", 1024),
        ("backends", []),
        ("backends", ("UCX", "SHM")),
        ("engine", "auto"),
        ("engine", "nixl"),
        ("metadata_secret", None),
        ("metadata_secret", "12345678"),
        ("metadata_secret", "é" * 4),
        ("metadata_secret", b"\0" * 8),
        ("metadata_secret", b"x" * 65535),
        ("capture_telemetry", False),
        ("enable_prog_thread", False),
    ],
)
def test_config_accepts_valid_values(config, keyword, value):
    names = {"listen_port": "port", "enable_prog_thread": "enable_pthread"}
    made = config(**{keyword: value})
    kept = getattr(made, names.get(keyword, keyword))
    assert kept == (list(value) if keyword == "backends" else value)


def test_sync_modes_match_nixl(api, config):
    modes = api.nixl_thread_sync_t
    assert [mode.value for mode in modes] == [0, 1, 2]
    assert modes.NIXL_THREAD_SYNC_DEFAULT is modes.NIXL_THREAD_SYNC_NONE
    for mode in modes:
        assert config(sync_mode=mode).sync_mode is mode


def test_error_names_an_invalid_engine_in_the_environment(config, monkeypatch):
    monkeypatch.setenv("VLLM_NIXL_ENGINE", "fast")
    with pytest.raises(ValueError, match=r"VLLM_NIXL_ENGINE.*'fast'"):
        config()
    monkeypatch.setenv("VLLM_NIXL_ENGINE", "")
    assert config().engine == "auto"


def test_config_repr_shows_its_values(config):
    text = repr(config(num_threads=3))
    assert text.startswith("nixl_agent_config(")
    assert "num_threads=3" in text
    assert "backends=['UCX']" in text


def test_config_positional_order_matches_nixl(config):
    made = config(True, False, 1234, True, 2, ["SHM"], None)
    assert (made.port, made.num_threads) == (1234, 2)
    assert made.backends == ["SHM"]
    with pytest.raises(TypeError):
        config(True, False, 1234, True, 2, ["SHM"], None, "native")


def test_config_copies_the_callers_list(config):
    mine = ["UCX"]
    made = config(backends=mine)
    mine.append("SHM")
    assert made.backends == ["UCX"]


def test_later_changes_of_the_config_take_effect(api, config, names):
    made = config()
    made.backends = ["SHM"]
    made.capture_telemetry = True
    with api.nixl_agent(names(), made) as agent:
        assert list(agent.backends) == ["SHM"]


def test_agent_requires_a_config_object(api, names):
    for wrong in ({"backends": ["UCX"]}, ["UCX"], "UCX", 3):
        with pytest.raises(TypeError, match="nixl_agent_config"):
            api.nixl_agent(names(), wrong)
