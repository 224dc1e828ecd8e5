"""How an agent's engine is chosen: by argument, by the environment, by its
backends; and the error if no engine is suitable.
"""

import os

import pytest
from support.deadline import PATIENCE
from support.nixl import why_no_library
from support.program import run_program

pytestmark = pytest.mark.beyond_stock

NO_LIBRARY = {"VLLM_NIXL_LIBRARY": "/no/such/libnixl_capi.so"}


@pytest.fixture
def made(api, names, monkeypatch, opened):
    """made(**config): an agent, with no environment variable set."""
    monkeypatch.delenv("VLLM_NIXL_ENGINE", raising=False)

    def make(**config):
        agent = api.NixlAgent(names(), api.nixl_agent_config(**config))
        opened.append(agent)
        return agent

    return make


@pytest.fixture
def no_library(monkeypatch):
    for key, value in NO_LIBRARY.items():
        monkeypatch.setenv(key, value)


def chosen(agent):
    described = agent.describe()
    return described["engine"], described["engine_why"]


def test_argument_selects_the_engine(made):
    assert chosen(made(engine="native")) == ("native", "it was requested")


def test_environment_selects_the_engine(made, monkeypatch):
    monkeypatch.setenv("VLLM_NIXL_ENGINE", "native")
    assert chosen(made()) == ("native", "it was requested")


def test_argument_overrides_the_environment(made, monkeypatch):
    monkeypatch.setenv("VLLM_NIXL_ENGINE", "no such engine")
    assert chosen(made(engine="native"))[0] == "native"
    monkeypatch.setenv("VLLM_NIXL_ENGINE", "nixl")
    engine, why = chosen(made(engine="auto"))
    assert engine == "native"
    assert why.startswith("auto: ")


def test_environment_is_read_when_the_config_is_created(
    api, names, monkeypatch
):
    monkeypatch.setenv("VLLM_NIXL_ENGINE", "native")
    config = api.nixl_agent_config()
    monkeypatch.setenv("VLLM_NIXL_ENGINE", "nixl")
    with api.NixlAgent(names(), config) as agent:
        assert chosen(agent)[0] == "native"


@pytest.mark.parametrize("backends", [["UCX"], ["SHM"], ["UCX", "SHM"]])
def test_auto_prefers_native_if_it_has_every_backend(made, backends):
    agent = made(backends=backends)
    engine, why = chosen(agent)
    assert engine == "native"
    assert why == f"auto: it has every requested backend ({backends[0]})"
    assert sorted(agent.backends) == sorted(backends)


def test_auto_chooses_with_the_first_backend(made, api):
    agent = made(backends=[])
    agent.create_backend("SHM", {})
    assert chosen(agent)[0] == "native"
    with pytest.raises(api.nixlNotFoundError, match=r"'POSIX'.*native has"):
        agent.create_backend("POSIX", {})
    agent.create_backend("UCX", {})
    assert sorted(agent.backends) == ["SHM", "UCX"]


def test_agent_that_keeps_its_engine_says_why_no_other_has_a_backend(
    made, api, no_library
):
    """Metadata was read, so the engine would not change anyway."""
    agent = made()
    agent.get_agent_metadata()
    with pytest.raises(api.nixlNotFoundError) as caught:
        agent.create_backend("POSIX", {})
    assert "/no/such/libnixl_capi.so" in str(caught.value)
    assert chosen(agent)[0] == "native"


def test_auto_error_says_why_each_engine_was_rejected(made, api, no_library):
    with pytest.raises(api.nixlNotFoundError) as caught:
        made(backends=["UCX", "NOPE"])
    text = str(caught.value)
    assert "no engine has the backend" in text
    assert "native has UCX, SHM" in text
    assert "nixl does not work here" in text
    assert "/no/such/libnixl_capi.so" in text


def test_missing_nixl_library_is_named(made, api, no_library):
    with pytest.raises(api.NixlError, match=r"/no/such/libnixl_capi\.so"):
        made(engine="nixl")


def test_file_that_is_not_a_library_is_named(made, api, monkeypatch, tmp_path):
    wrong = tmp_path / "libnixl_capi.so"
    wrong.write_text("no library")
    monkeypatch.setenv("VLLM_NIXL_LIBRARY", str(wrong))
    with pytest.raises(api.NixlError) as caught:
        made(engine="nixl")
    assert str(wrong) in str(caught.value)


def test_explicitly_selected_engine_is_not_replaced(made, api, no_library):
    with pytest.raises(api.NixlError):
        made(engine="nixl", backends=["UCX"])
    with pytest.raises(api.nixlNotFoundError, match=r"choices are UCX, SHM"):
        made(engine="native", backends=["POSIX"])


def test_plugin_list_matches_the_engine(made, no_library):
    assert sorted(made(engine="native").get_plugin_list()) == ["SHM", "UCX"]
    assert {"SHM", "UCX"} <= set(made(engine="auto").get_plugin_list())


def test_agents_choose_their_engines_independently(made, api, no_library):
    with pytest.raises(api.NixlError):
        made(engine="nixl")
    first, second = made(backends=["SHM"]), made(backends=["UCX"])
    assert chosen(first)[0] == chosen(second)[0] == "native"
    assert list(first.backends) == ["SHM"]
    assert list(second.backends) == ["UCX"]


def test_auto_selects_nixl_for_backends_that_native_lacks(module):
    reason = why_no_library()
    if reason:
        pytest.skip(reason)
    done = run_program(
        """
        from vllm_nixl import NixlAgent, nixl_agent_config
        agent = NixlAgent("a", nixl_agent_config(backends=["POSIX", "UCX"]))
        print(agent.describe()["engine"], sorted(agent.backends))
        print(agent.describe()["engine_why"])
        """,
        env={"VLLM_NIXL_ENGINE": None, "NIXL_LOG_LEVEL": "FATAL"},
    )
    first, why = done.stdout.splitlines()[-2:]
    assert first == "nixl ['POSIX', 'UCX']"
    assert why.startswith(
        "auto: the engine native does not have every requested"
    )


def test_nixl_library_is_not_searched_until_needed(module):
    """By default no unneeded library is searched for."""
    run_program(
        """
        import sys
        from vllm_nixl import NixlAgent
        with NixlAgent("a") as agent:
            assert agent.describe()["engine"] == "native"
        with open("/proc/self/maps") as maps:
            assert "libnixl" not in maps.read()
        """,
        env={"VLLM_NIXL_ENGINE": None, "VLLM_NIXL_UCX_LIBRARY": "none"},
    )


@pytest.mark.parametrize(
    "call",
    [
        "get_plugin_list()",
        "get_plugin_mem_types('UNKNOWN')",
        "get_plugin_params('UNKNOWN')",
    ],
)
def test_other_threads_run_while_a_library_is_opened(module, tmp_path, call):
    """Opening it waits, because it is a pipe to which nobody writes."""
    pipe = tmp_path / "libnixl_capi.so"
    os.mkfifo(pipe)
    run_program(
        f"""
        import threading
        import vllm_nixl
        from support.pipes import open_while
        from vllm_nixl._core import Agent

        def call():
            begins.set()
            try:
                agent.{call}
            except vllm_nixl.nixlNotFoundError:
                pass

        agent = Agent("a", engine="auto")
        begins = threading.Event()
        thread = threading.Thread(target=call)
        thread.start()
        begins.wait()
        open_while({str(pipe)!r}, thread.is_alive)
        """,
        env={"VLLM_NIXL_LIBRARY": str(pipe)},
        timeout=30,
    )


@pytest.mark.parametrize(
    "call",
    [
        "prep_xfer_dlist('', [(1, 1, 0)], 'DRAM')",
        "check_remote_metadata('a')",
    ],
)
def test_other_threads_run_while_a_call_waits_for_a_backend(
    module, tmp_path, call
):
    """Another thread creates it, and waits for the library, a pipe.  Python
    itself does not take the GIL away from the call."""
    pipe = tmp_path / "libnixl_capi.so"
    os.mkfifo(pipe)
    run_program(
        f"""
        import sys
        import threading
        import vllm_nixl
        from support.pipes import open_while

        def refused(call, *args):
            try:
                call(*args)
            except vllm_nixl.nixlNotFoundError:
                pass

        agent = vllm_nixl.NixlAgent(
            "a", vllm_nixl.nixl_agent_config(engine="auto", backends=["SHM"])
        )
        may_begin, begins = threading.Event(), threading.Event()

        def call():
            may_begin.wait()
            begins.set()
            agent.{call}

        calling = threading.Thread(target=refused, args=(call,))
        calling.start()  # no thread starts while a library is opened
        creating = threading.Thread(
            target=refused, args=(agent.create_backend, "POSIX")
        )
        creating.start()
        library = open({str(pipe)!r}, "wb")  # when the thread opens it
        sys.setswitchinterval(1000)
        may_begin.set()
        begins.wait()
        library.close()
        open_while({str(pipe)!r}, creating.is_alive)
        calling.join()
        """,
        env={"VLLM_NIXL_LIBRARY": str(pipe)},
        timeout=4 * PATIENCE,
    )
