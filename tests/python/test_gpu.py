"""GPU memory through the Python API, on the fake libcuda.

The driver is of a whole process, so each test runs in its own.
"""

import os
import subprocess
import sys

import pytest
from support import cuda
from support.program import run_program

pytestmark = [
    pytest.mark.beyond_stock,
    pytest.mark.skipif(cuda.why_not() is not None, reason=str(cuda.why_not())),
]

AGENTS = """
from support import cuda, memory
from support.endpoint import Endpoint

SIZE = 1 << 20
here, there = Endpoint(MODULE, "here"), Endpoint(MODULE, "there")

def region(endpoint, seed):
    address = gpu.alloc(SIZE)
    gpu.write(address, memory.pattern(seed, SIZE))
    endpoint.agent.register_memory([(address, SIZE, 0, "")], "VRAM")
    return address

def move(operation, local, local_mem, remote, remote_mem):
    agent = here.agent
    left = agent.get_xfer_descs([(local, SIZE, 0)], local_mem)
    right = agent.get_xfer_descs([(remote, SIZE, 0)], remote_mem)
    handle = agent.initialize_xfer(operation, left, right, there.name, b"hi")
    agent.transfer(handle)
    agent.wait([handle])
    assert there.gather_notifs(1) == [(here.name, b"hi")]
"""
GPU = "gpu = cuda.start()\n"


def run(*sources):
    run_program("\n".join(sources), env={"VLLM_NIXL_ENGINE": "native"})


def test_gpu_memory_moves_between_agents():
    run(
        AGENTS,
        GPU,
        """
ours, theirs = region(here, 1), region(there, 2)
here.add(there.metadata())
move("READ", ours, "VRAM", theirs, "VRAM")
assert gpu.read(ours, SIZE) == memory.pattern(2, SIZE)
gpu.write(ours, memory.pattern(3, SIZE))
move("WRITE", ours, "cuda", theirs, "cuda")
assert gpu.read(theirs, SIZE) == memory.pattern(3, SIZE)
""",
    )


def test_cpu_memory_from_before_the_first_gpu_memory_moves():
    """Metadata that was loaded before has to be loaded again."""
    run(
        AGENTS,
        """
block = there.alloc(SIZE, seed=7)
here.add(there.metadata())
""",
        GPU,
        """
ours, theirs = region(here, 1), region(there, 2)
here.add(there.metadata())
move("READ", ours, "VRAM", block.addr, "DRAM")
assert gpu.read(ours, SIZE) == memory.pattern(7, SIZE)
gpu.write(ours, memory.pattern(8, SIZE))
move("WRITE", ours, "VRAM", block.addr, "DRAM")
assert there.read(block.key) == memory.pattern(8, SIZE)
""",
    )


def test_cpu_memory_of_an_agent_without_gpu_memory_moves():
    """Its memory was registered before the program had a GPU."""
    run(
        AGENTS,
        "block = there.alloc(SIZE, seed=7)",
        GPU,
        """
ours = region(here, 1)
here.add(there.metadata())
move("READ", ours, "VRAM", block.addr, "DRAM")
assert gpu.read(ours, SIZE) == memory.pattern(7, SIZE)
""",
    )


def test_describe_says_how_gpu_memory_is_copied():
    run(
        AGENTS,
        """
assert "gpus" not in here.agent.describe()
""",
        GPU,
        """
from support import deadline
ours, theirs = region(here, 1), region(there, 2)
here.add(there.metadata())
deadline.until(
    lambda: "copies_by" in here.agent.describe()["gpus"][0], "the GPU"
)
described = here.agent.describe()
assert described["gpus"] == [{"gpu": 0, "copies_by": "kernel"}]
assert described["cuda_driver"] == 12080
assert described["cuda"] == cuda.library()
routes = here.agent.describe(there.name)["routes"]
served = {(r["local"], r["remote"]): r["transport"] for r in routes}
assert served == {
    ("DRAM", "DRAM"): "process",
    ("DRAM", "VRAM"): "CUDA",
    ("VRAM", "DRAM"): "CUDA",
    ("VRAM", "VRAM"): "CUDA",
}
""",
    )


def test_program_without_gpu_memory_does_not_load_libcuda():
    run(
        "import os, support.cuda",
        "os.environ['VLLM_NIXL_CUDA_LIBRARY'] = support.cuda.library()",
        AGENTS,
        """
from pathlib import Path
from vllm_nixl import nixlNotSupportedError
ours, theirs = here.alloc(SIZE), there.alloc(SIZE, seed=1)
here.add(there.metadata())
move("READ", ours.addr, "DRAM", theirs.addr, "DRAM")
here.agent.describe(there.name)
try:
    here.agent.register_memory([(ours.addr, SIZE, 0, "")], "VRAM")
    raise SystemExit("CPU memory was registered as VRAM")
except nixlNotSupportedError as error:
    assert "CUDA: the program does not use CUDA" in str(error), error
maps = Path("/proc/self/maps").read_text()
assert "libcuda" not in maps and cuda.library() not in maps
""",
    )


def test_forked_child_is_told_that_cuda_does_not_work_there():
    run(
        AGENTS,
        GPU,
        """
import os
from vllm_nixl import nixlNotSupportedError
ours = region(here, 1)
pid = os.fork()
if pid == 0:
    mine = Endpoint(MODULE, "mine")
    try:
        mine.agent.register_memory([(ours, SIZE, 0, "")], "VRAM")
    except nixlNotSupportedError as error:
        os._exit(0 if "forked" in str(error) else 2)
    os._exit(3)
assert os.waitpid(pid, 0)[1] == 0
""",
    )


def test_the_example_moves_every_byte():
    done = subprocess.run(
        [
            sys.executable,
            cuda.ROOT / "examples" / "gpu_demo.py",
            *("--blocks", "300", "--size", "5000", "--rounds", "2"),
        ],
        env={**os.environ, "VLLM_NIXL_CUDA_LIBRARY": cuda.library()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "300 blocks of 5000 bytes, copied by kernel" in done.stdout
    assert "every byte right" in done.stdout
