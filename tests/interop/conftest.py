"""Stock agents in separate processes, together with our agents.

The stock agents run in a Python that has the `nixl` wheel; its path is in
VLLM_NIXL_STOCK_PYTHON.
"""

import functools
import os
import subprocess
import sys

import pytest

STOCK = os.environ.get("VLLM_NIXL_STOCK_PYTHON", "")

# They communicate by UCX, so it is not switched off here.
os.environ.setdefault("VLLM_NIXL_UCX_LIBRARY", "")


@functools.cache
def why_no_stock():
    if not STOCK:
        return "VLLM_NIXL_STOCK_PYTHON names no Python with the nixl wheel"
    probe = [STOCK, "-c", "import nixl._api"]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        return f"{STOCK} cannot import nixl"
    return None


def pytest_collection_modifyitems(items):
    reason = why_no_stock()
    if reason is not None:
        for item in items:
            item.add_marker(pytest.mark.skip(reason=reason))


@functools.cache
def why_no_ucx():
    """The reason why our agents find no libucp, or None."""
    probe = (
        "import vllm_nixl, json; a = vllm_nixl.NixlAgent('probe');"
        "print(a.describe().get('ucx', '')); a.close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe],
        capture_output=True,
        check=True,
        text=True,
        env={**os.environ, "VLLM_NIXL_ENGINE": "native"},
    )
    return None if done.stdout.strip() else f"no libucp: {done.stderr}"


@pytest.fixture
def need_ucx():
    reason = why_no_ucx()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture
def stock(names, opened, pool):
    """stock(name=None, env=None, **config): a stock agent in a separate
    process."""

    def make(name=None, env=None, **config):
        made, lease = pool.take("nixl", name or names(), config, env, STOCK)
        opened.append(lease)
        return made

    return make
