"""The two programs in README.md, run exactly as printed there."""

import re
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from support.deadline import PATIENCE
from support.peer import child_environment
from support.ports import reserve_port

np = pytest.importorskip("numpy", reason="the programs in README use numpy")

README = Path(__file__).resolve().parents[2] / "README.md"
PORT = "18000"

# Kills prefill (its pid is an argument) after the fourth request was posted,
# and
# prints the states of the transfers for which wait() returned.
KILLER = """
import os, signal, sys
import vllm_nixl

class NixlAgent(vllm_nixl.NixlAgent):
    posted = 0

    def transfer(self, handle):
        state = super().transfer(handle)
        self.posted += 1
        if self.posted == 4:
            os.kill(int(sys.argv[1]), signal.SIGKILL)
        return state

    def wait(self, handles, *args, **keywords):
        super().wait(handles, *args, **keywords)
        for state in self.check_xfer_states(handles):
            print(state, flush=True)

vllm_nixl.NixlAgent = NixlAgent
"""
LOOKING = """
import zlib
print(zlib.crc32(cache))
"""


@pytest.fixture
def programs():
    """{"prefill": text, "decode": text}, using a free port."""
    text = README.read_text()
    found = re.findall(
        r"`(\w+)\.py`[^`]*?:\n\n```python\n(.*?)```", text, re.DOTALL
    )
    port = str(reserve_port())
    found = {name: code.replace(PORT, port) for name, code in found}
    assert found.keys() == {"prefill", "decode"}
    assert all(port in code for code in found.values())
    return found


def run(code, *args):
    return subprocess.Popen(
        [sys.executable, "-c", code, *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment(),
    )


@pytest.fixture
def prefill(programs):
    with run(programs["prefill"]) as process:
        try:
            assert process.stdout.readline() == "serving\n", (
                process.stderr.read()
            )
            yield process
        finally:
            process.kill()


def test_readme_programs_transfer_all_blocks(programs, prefill):
    with run(programs["decode"] + LOOKING) as decode:
        out, err = decode.communicate(timeout=PATIENCE)
    assert decode.returncode == 0, err
    cache = np.random.default_rng(0).integers(0, 256, (4096, 65536), np.uint8)
    assert out == f"all blocks are here\n{zlib.crc32(cache)}\n"
    for first in range(0, 4096, 512):
        assert prefill.stdout.readline() == f"decode: {first} done\n"


def test_readme_killed_peer_raises_an_error(programs, prefill):
    code = KILLER + programs["decode"]
    with run(code, str(prefill.pid)) as decode:
        out, err = decode.communicate(timeout=PATIENCE)
    assert prefill.wait(PATIENCE) == -signal.SIGKILL
    assert decode.returncode == 1
    last_line = err.splitlines()[-1]
    assert "nixlRemoteDisconnectError: " in last_line, err
    assert "'prefill'" in last_line
    assert set(out.splitlines()) == {"DONE"}
    assert 3 <= len(out.splitlines()) < 8
