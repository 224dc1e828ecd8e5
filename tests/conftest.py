"""Fixtures of all Python tests.

`--module nixl` runs the tests that apply to stock NIXL against stock.  A test
that fails there is wrong, or is marked `@beyond_stock`.
"""

import faulthandler
import gc
import importlib.util
import itertools
import os
import signal
import time

import pytest
from support import memory
from support.api import Api
from support.deadline import SLOWDOWN
from support.endpoint import Endpoint
from support.peer import PeerPool
from support.transfers import Long

# Where the two sides of a transfer live, and which transport joins them:
# (environment of both, the target has its own process).  A process loads one
# libucp at most, and creating an agent takes longer with one, so those tests
# run
# separately with `--engine ucx`.
ENGINES = {
    "native-inproc": ({"VLLM_NIXL_ENGINE": "native"}, False),
    "native-shm": ({"VLLM_NIXL_ENGINE": "native"}, True),
}
UCX_ENGINES = {
    "native-ucx": (
        {"VLLM_NIXL_ENGINE": "native", "VLLM_NIXL_SAME_HOST": "0"},
        True,
    ),
    "native-ucx-inproc": (
        {"VLLM_NIXL_ENGINE": "native", "VLLM_NIXL_SAME_HOST": "0"},
        False,
    ),
}
# Memory of a GPU, which the fake libcuda plays.
GPU_ENGINES = {
    "native-gpu-inproc": ({"VLLM_NIXL_ENGINE": "native"}, False),
    "native-gpu": ({"VLLM_NIXL_ENGINE": "native"}, True),
    # No other process can map it: its owner moves the bytes.
    "native-gpu-moved": (
        {"VLLM_NIXL_ENGINE": "native", "VLLM_NIXL_TEST_GPU": "managed"},
        True,
    ),
}
# The stock library behind our agent: `--engine nixl`, if it is installed.
NIXL_ENGINES = {
    "nixl-inproc": ({"VLLM_NIXL_ENGINE": "nixl"}, False),
    "nixl-two-processes": ({"VLLM_NIXL_ENGINE": "nixl"}, True),
}
STOCK_ENGINES = {
    "stock-inproc": ({}, False),
    "stock-two-processes": ({}, True),
}
# Seconds after which a hanging test shows its stacks; options that prolong a
# test prolong the limit.
TEST_LIMIT = (
    240 + 6 * int(os.environ.get("VLLM_NIXL_ROUNDS", "0"))
) * SLOWDOWN
LEASE = 30  # seconds during which the limit is not renewed


# The log.  pytest redirects descriptor 2 while a test runs.
LOG = pytest.StashKey()


def pytest_addoption(parser):
    parser.addoption(
        "--attack-seconds",
        type=float,
        default=0.3,
        help="how long each attack on a side channel goes on",
    )
    parser.addoption(
        "--call-seconds",
        type=float,
        default=30,
        help="how long random calls go on",
    )
    parser.addoption(
        "--call-seed",
        type=int,
        help="the first seed of random calls; else one that is printed",
    )
    parser.addoption(
        "--crowd",
        type=int,
        default=1000,
        help="how many come to a side channel at once",
    )
    parser.addoption(
        "--module",
        default="vllm_nixl",
        help="the module under test: vllm_nixl, or nixl for the stock one",
    )
    parser.addoption(
        "--engine",
        default="native",
        choices=["native", "nixl", "ucx", "gpu"],
        help="the engine of the agents under test; ucx: native, by UCX only; "
        "gpu: native, with memory of a GPU",
    )


def pytest_configure(config):
    set_signals()
    config.stash[LOG] = os.fdopen(os.dup(2), "w")
    config.addinivalue_line("markers", "slow: takes seconds")
    config.addinivalue_line(
        "markers", "beyond_stock: stock NIXL does not do this"
    )
    config.addinivalue_line(
        "markers", "nixl_differs(how): the engine nixl does otherwise"
    )

    if config.getoption("--engine") in ("native", "gpu"):
        os.environ.setdefault("VLLM_NIXL_UCX_LIBRARY", "none")
    if (config.getoption("--engine") == "gpu") != memory.IS_GPU:
        raise pytest.UsageError(
            "--engine gpu and VLLM_NIXL_TEST_MEMORY=gpu belong together"
        )


def set_signals():
    """Let SIGTERM end the run as Ctrl-C does, so that fixtures undo what they
    have done.  A shell starts what runs in the background with SIGINT ignored,
    which the programs that a test interrupts would inherit."""

    pid = os.getpid()

    def interrupt(*_):
        if os.getpid() != pid:  # a forked child has nothing to undo
            os._exit(128 + signal.SIGTERM)
        # timeout(1) sends another one, which must not end the cleaning up.
        signal.signal(signal.SIGTERM, lambda *_: None)
        raise KeyboardInterrupt("SIGTERM")

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def engines(config):
    if config.getoption("--module") == "nixl":
        return STOCK_ENGINES
    tables = {
        "native": ENGINES,
        "nixl": NIXL_ENGINES,
        "ucx": UCX_ENGINES,
        "gpu": GPU_ENGINES,
    }
    return tables[config.getoption("--engine")]


def pytest_generate_tests(metafunc):
    table = engines(metafunc.config)
    if "engine" in metafunc.fixturenames:
        metafunc.parametrize("engine", table, indirect=True)
    if "inproc" in metafunc.fixturenames:
        names = [name for name, (_, apart) in table.items() if not apart]
        metafunc.parametrize("inproc", names, indirect=True)


def pytest_collection_modifyitems(config, items):
    stock = config.getoption("--module") == "nixl"
    nixl = config.getoption("--engine") == "nixl"
    for item in items:
        differs = item.get_closest_marker("nixl_differs")
        if stock and item.get_closest_marker("beyond_stock"):
            reason = "stock NIXL does not do this"
        elif nixl and differs:
            reason = f"engine nixl: {differs.args[0]}"
        elif nixl and "long_transfer" in item.fixturenames:
            reason = "engine nixl: a transfer in flight cannot be stopped"
        else:
            continue
        item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish():
    """Freeze the objects that exist before the first test, so that the
    collector, which many tests run at their end, skips them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def watchdog(request):
    """Set the time after which a hang ends the run and shows every thread's
    stack.  Renewed only every LEASE seconds, because it starts a thread."""
    set_at = -LEASE
    log = request.config.stash[LOG]

    def renew():
        nonlocal set_at
        if time.monotonic() - set_at >= LEASE:
            set_at = time.monotonic()
            faulthandler.dump_traceback_later(
                TEST_LIMIT + LEASE, exit=True, file=log
            )

    yield renew
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def limit(watchdog):
    watchdog()


@pytest.fixture(scope="session")
def module(request):
    """The name of the module under test."""
    name = request.config.getoption("--module")
    if importlib.util.find_spec(name) is None:
        pytest.fail(f"{name} is not installed: build it first")
    return name


@pytest.fixture(scope="session")
def api(module):
    return Api(module)


class Engine:
    def __init__(self, name, env, two_processes):
        self.name, self.env = name, env
        self.two_processes = two_processes


def choose_engine(request, monkeypatch):
    table = {
        **ENGINES,
        **UCX_ENGINES,
        **GPU_ENGINES,
        **NIXL_ENGINES,
        **STOCK_ENGINES,
    }
    env, two_processes = table[request.param]
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    return Engine(request.param, env, two_processes)


@pytest.fixture
def engine(request, monkeypatch):
    return choose_engine(request, monkeypatch)


@pytest.fixture
def inproc(request, monkeypatch):
    """The engines alone, for a test with all its agents in this process."""
    return choose_engine(request, monkeypatch)


@pytest.fixture
def names():
    """Agent names that no other test of this run uses."""
    counter = itertools.count()
    return lambda: f"agent-{os.getpid()}-{next(counter)}"


@pytest.fixture
def opened():
    """Objects to close after the test, newest first."""
    things = []
    yield things
    for thing in reversed(things):
        thing.close()
    gc.collect()


@pytest.fixture
def endpoint(module, names, opened):
    """endpoint(name=None, **config): an agent in this process."""

    def make(name=None, **config):
        opened.append(Endpoint(module, name or names(), config))
        return opened[-1]

    return make


@pytest.fixture(scope="session")
def pool():
    made = PeerPool()
    yield made
    made.close()


@pytest.fixture
def peer(module, names, opened, pool):
    """peer(name=None, env=None, **config): an agent in another process."""

    def make(name=None, env=None, **config):
        made, lease = pool.take(module, name or names(), config, env)
        opened.append(lease)
        return made

    return make


@pytest.fixture
def other(engine, endpoint, peer):
    """other(name=None): an agent in the process that the engine needs."""
    return peer if engine.two_processes else endpoint


@pytest.fixture
def pair(endpoint, other):
    """(initiator here, target), each with the other's metadata loaded."""
    here, there = endpoint(), other()
    introduce(here, there)
    return here, there


def introduce(left, right):
    left.add(right.metadata())
    right.add(left.metadata())


@pytest.fixture
def meet():
    """meet(left, right): load each other's metadata (again)."""
    return introduce


@pytest.fixture
def long_transfer(pair):
    """A transfer that does not end by itself, created but not posted."""
    transfer = Long(*pair)
    yield transfer
    transfer.handle.release()


@pytest.fixture
def busy(long_transfer):
    """(endpoint, handle): a transfer in flight."""
    here, handle = long_transfer.here, long_transfer.handle
    assert here.agent.transfer(handle) == "PROC"
    return here, handle
