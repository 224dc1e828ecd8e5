"""Importing is cheap and has no side effects."""

import json
import subprocess
import sys
from importlib import metadata

import pytest

pytestmark = pytest.mark.beyond_stock

PROGRAM = """
import json, os, sys, time
started = time.perf_counter()
import vllm_nixl
seconds = time.perf_counter() - started
print(json.dumps({
    "seconds": seconds,
    "modules": sorted(sys.modules),
    "threads": os.listdir("/proc/self/task"),
    "fds": os.listdir("/proc/self/fd"),
}))
"""


def run(program):
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )


@pytest.fixture(scope="module")
def facts():
    done = run(PROGRAM)
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_import_loads_no_heavy_module(facts):
    heavy = {"numpy", "torch", "asyncio", "ctypes", "logging", "pickle"}
    assert not heavy & set(facts["modules"])
    print(f"import vllm_nixl: {facts['seconds'] * 1000:.1f} ms")


def test_importing_starts_no_thread(facts):
    assert len(facts["threads"]) == 1


def test_importing_leaves_no_file_open(facts):
    before = json.loads(
        run(PROGRAM.replace("import vllm_nixl\n", "\n")).stdout
    )
    assert len(facts["fds"]) == len(before["fds"])


def test_the_core_can_be_imported_again():
    """A second module object has its own types and works."""
    run(
        "import sys, vllm_nixl._core as first\n"
        "del sys.modules['vllm_nixl._core']\n"
        "import vllm_nixl._core as second\n"
        "a = first.nixlXferDList('DRAM', [(1, 2, 3)])\n"
        "b = second.nixlXferDList('DRAM', [(1, 2, 3)])\n"
        "assert a[0] == b[0]\n"
        "del a, b, first\n"
        "import gc; gc.collect()\n"
        "second.nixlRegDList('DRAM', [(1, 2, 3, '')])\n"
    )


def test_agents_and_handles_may_live_until_exit():
    """Nothing is released explicitly; the interpreter exits cleanly."""
    run(
        "import vllm_nixl\n"
        "agent = vllm_nixl.NixlAgent('at-exit')\n"
        "buffer = vllm_nixl.shared_buffer(4096)\n"
        "rows = [(buffer.address, 4096, 0, '')]\n"
        "agent.register_memory(rows, 'DRAM')\n"
        "rows = [(buffer.address, 64, 0)]\n"
        "left = agent.prep_xfer_dlist('', rows, 'DRAM')\n"
        "right = agent.prep_xfer_dlist('at-exit', rows, 'DRAM')\n"
        "agent.handle = agent.make_prepped_xfer(\n"
        "    'READ', left, [0], right, [0])\n"
        "agent.transfer(agent.handle)\n"
    )


def test_installation_has_no_files_for_c_programs():
    """They are installed with libvnx, which no installation for Python has."""
    try:
        files = metadata.files("vllm_nixl")
    except metadata.PackageNotFoundError:
        pytest.skip("the package was installed by meson, which lists no files")
    assert any(file.name == "__init__.py" for file in files)
    for_c = {".h", ".pc", ".cmake", ".a", ".3"}
    assert [str(file) for file in files if file.suffix in for_c] == []
