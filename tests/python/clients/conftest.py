"""Clients import `nixl`: either vllm_nixl under that name, or stock."""

import gc
import importlib

import pytest
from support.kv import Local, Remote
from support.nixl import why_no_library


@pytest.fixture(scope="module", autouse=True)
def nixl(module):
    """The package that clients import."""
    if module == "nixl":
        yield importlib.import_module("nixl")
        return
    package = importlib.import_module(module)
    package.install()
    yield importlib.import_module("nixl")
    package.uninstall()


@pytest.fixture(autouse=True)
def chosen(request):
    """Select the engine before any fixture creates an agent."""
    for name in ("engine", "inproc"):
        if name in request.fixturenames:
            request.getfixturevalue(name)


@pytest.fixture
def local(chosen, opened):
    """local(size, seed): local memory, unmapped after the client is closed."""

    def make(*args, **keywords):
        opened.append(Local(*args, **keywords))
        return opened[-1]

    return make


@pytest.fixture
def remote(other):
    """remote(size, seed): an agent's memory, in the process that the engine
    needs."""

    def make(*args, config=None, **keywords):
        return Remote(other(**(config or {})), *args, **keywords)

    return make


@pytest.fixture
def closing(opened):
    """closing(client): close it after the test, before its memory is
    unmapped."""

    def keep(client):
        opened.append(client)
        return client

    return keep


@pytest.fixture
def plugin():
    """plugin(agent, name): skip if the engine lacks that backend."""

    def need(agent, name):
        if name not in agent.get_plugin_list():
            pytest.skip(f"the engine has no backend {name}")

    return need


@pytest.fixture
def auto(module, monkeypatch):
    """The engine "auto", where stock's library has storage.  Without UCX on
    the native engine: a process should load only one libucp."""
    if module == "nixl":
        return
    if why_no_library():
        pytest.skip(why_no_library())
    monkeypatch.setenv("VLLM_NIXL_ENGINE", "auto")
    monkeypatch.setenv("VLLM_NIXL_UCX_LIBRARY", "none")


@pytest.fixture(autouse=True)
def collected():
    yield
    gc.collect()
