"""Stock agents in processes of their own, and ours beside them.

The stock agents run in a Python that has the `nixl` wheel; its path is in
VLLM_NIXL_STOCK_PYTHON.
"""

import functools
import os
import subprocess
import sys

import pytest

STOCK = os.environ.get("VLLM_NIXL_STOCK_PYTHON", "")

# UCX is what joins them, so it is not switched off here.
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
    """None where our agents find a libucp."""
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
    """stock(name=None, env=None, **config): a stock agent in a process of its
    own."""

    def make(name=None, env=None, **config):
        made, lease = pool.take("nixl", name or names(), config, env, STOCK)
        opened.append(lease)
        return made

    return make
