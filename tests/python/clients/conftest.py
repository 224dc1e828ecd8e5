"""Clients import `nixl`: ours is put in its place, or stock is there."""

import gc
import importlib

import pytest
from support.kv import Local, Remote


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
    """The engine comes before any agent, whichever fixture makes one."""
    for name in ("engine", "inproc"):
        if name in request.fixturenames:
            request.getfixturevalue(name)


@pytest.fixture
def local(chosen, opened):
    """local(size, seed): memory here, unmapped after the client is gone."""

    def make(*args, **keywords):
        opened.append(Local(*args, **keywords))
        return opened[-1]

    return make


@pytest.fixture
def remote(other):
    """remote(size, seed): memory of an agent where the engine wants it."""

    def make(*args, config=None, **keywords):
        return Remote(other(**(config or {})), *args, **keywords)

    return make


@pytest.fixture
def closing(opened):
    """closing(client): closed after the test, before its memory goes."""

    def keep(client):
        opened.append(client)
        return client

    return keep


@pytest.fixture
def plugin():
    """plugin(agent, name): skip where the engine has no such backend."""

    def need(agent, name):
        if name not in agent.get_plugin_list():
            pytest.skip(f"the engine has no backend {name}")

    return need


@pytest.fixture(autouse=True)
def collected():
    yield
    gc.collect()
