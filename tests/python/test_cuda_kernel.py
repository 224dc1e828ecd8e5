"""The copy kernel's text: executed by an interpreter, and assembled by
NVIDIA's assembler."""

import ast
import random
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from support import ptx

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src/engine/native/cuda"
TABLE, DATA = 0x7F00_0000_0000, 0x7F80_0000_0000
GAP = 32  # between rows, and at both ends

# Where the kernel's loops begin another round, give or take.
LONG = sorted(
    {
        edge + more
        for edge in (112, 128, 256, 384, 512, 1024, 1536, 2048, 4096)
        for more in (-17, -16, -15, -1, 0, 1, 15, 16, 17)
    }
)


def kernel_text():
    text = (SOURCE / "kernel.c").read_text()
    name = re.search(
        r'KERNEL_NAME ("\w+")', (SOURCE / "kernel.h").read_text()
    )[1]
    text = text[text.index("vnxi_cuda_kernel_text[] =") :]
    text = text.replace("VNXI_CUDA_KERNEL_NAME", name)
    literals = re.findall(r'"(?:[^"\\]|\\.)*"', re.sub(r"/\*.*?\*/", "", text))
    return "".join(map(ast.literal_eval, literals))


@pytest.fixture(scope="module")
def kernel():
    return ptx.parse(kernel_text())


def make_table(memory, rows, start=TABLE):
    table = np.zeros((len(rows), 4), np.uint64)
    table[:, :3] = np.array(rows, np.uint64).reshape(-1, 3)
    table[:, 3] = 0xBAD  # not read
    region = memory.add(start, table.view(np.uint8).ravel(), readable=True)
    region.readable.reshape(-1, 32)[:, 24:] = False
    return region


class Scene:
    """Rows {source modulo 16, destination modulo 16, length} in memory, of
    which the kernel may read the sources and write the destinations."""

    def __init__(self, shapes, seed=0):
        self.memory = ptx.Memory()
        self.rows = []
        end = DATA
        for src_mod, dst_mod, size in shapes:
            src = (end + GAP + 15) // 16 * 16 + src_mod
            dst = (src + size + GAP + 15) // 16 * 16 + dst_mod
            end = dst + size
            self.rows.append((src, dst, size))
        random_bytes = np.random.default_rng(seed).integers
        self.data = self.memory.add(
            DATA, random_bytes(0, 256, end + GAP - DATA, np.uint8)
        )
        for src, dst, size in self.rows:
            self.data.readable[src - DATA : src - DATA + size] = True
            self.data.writable[dst - DATA : dst - DATA + size] = True
        make_table(self.memory, self.rows)

    def run(self, kernel, grid, block, count=None):
        count = len(self.rows) if count is None else count
        expected = self.data.data.copy()
        for src, dst, size in self.rows[:count]:
            expected[dst - DATA : dst - DATA + size] = expected[
                src - DATA : src - DATA + size
            ]
        ptx.launch(kernel, self.memory, grid, block, (TABLE, count))
        assert np.array_equal(self.data.data, expected)


@pytest.mark.parametrize("src_mod", range(16))
def test_kernel_copies_every_alignment_and_short_length(kernel, src_mod):
    shapes = [
        (src_mod, dst_mod, size)
        for dst_mod in range(16)
        for size in range(101)
    ]
    Scene(shapes).run(kernel, len(shapes), 32)


@pytest.mark.parametrize("difference", range(16))
def test_kernel_copies_long_rows_of_every_alignment(kernel, difference):
    shapes = [
        (src_mod, (src_mod + difference) % 16, size)
        for src_mod in (0, 1, 4, 15)
        for size in LONG
    ]
    Scene(shapes).run(kernel, len(shapes), 32)


def random_shapes(count, seed):
    rng = random.Random(seed)
    return [
        (rng.randrange(16), rng.randrange(16), rng.choice((0, 1, 40, 600)))
        for _ in range(count)
    ]


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 100])
@pytest.mark.parametrize(
    ("grid", "block"), [(1, 32), (1, 1024), (3, 96), (16, 64), (200, 32)]
)
def test_kernel_copies_each_row_on_any_grid(kernel, grid, block, count):
    """The table has a row more than the kernel is told of."""
    Scene(random_shapes(count + 1, count)).run(kernel, grid, block, count)


@pytest.mark.parametrize(
    ("difference", "width"), [(0, 16), (4, 4), (8, 4), (2, 1), (15, 1)]
)
def test_kernel_uses_the_widest_access(kernel, difference, width):
    scene = Scene([(0, difference, 4096)])
    scene.run(kernel, 1, 32)
    assert scene.memory.stored == {width}


def test_kernel_rows_may_share_a_source(kernel):
    scene = Scene([(3, 3, 500), (5, 1, 500), (0, 2, 500)])
    first = scene.rows[0][0]
    scene.rows = [(first, dst, size) for _, dst, size in scene.rows]
    scene.memory.regions.pop()
    make_table(scene.memory, scene.rows)
    scene.run(kernel, 1, 64)


@pytest.mark.parametrize("difference", [0, 4, 1])
@pytest.mark.parametrize("size", [2**32, 2**36, 2**40 + 16, 2**45 + 5])
def test_kernel_counts_beyond_32_bits(kernel, size, difference):
    """A row of which only the ends exist: the kernel begins with both, and
    goes on until the memory of the first one ends."""
    memory = ptx.Memory()
    src, dst = DATA, DATA + 2**46 + difference
    make_table(memory, [(src, dst, size)])
    begin = np.arange(5000) % 251
    for at in (0, size - 16):
        memory.add(src + at, begin[: 5000 if at == 0 else 16], readable=True)
        memory.add(dst + at, [0] * (5000 if at == 0 else 16), writable=True)
    with pytest.raises(ptx.BadAccessError, match="load") as caught:
        ptx.launch(kernel, memory, 1, 32, (TABLE, 1))
    assert src + 4000 < caught.value.address < src + 6100
    assert np.array_equal(memory.regions[2].data[:2000], begin[:2000])


def test_kernel_numbers_rows_beyond_32_bits_of_address(kernel):
    """Of a table with 2**32 - 1 rows only those of one block exist."""
    grid, block, number = 2**24, 1024, 2**23 + 1
    first = number * block // 32
    assert first > 2**27
    memory = ptx.Memory()
    data = memory.add(DATA, np.arange(64 * 32) % 256, readable=True)
    copy = memory.add(2 * DATA, np.zeros(64 * 32), writable=True)
    make_table(
        memory,
        [(DATA + 64 * i, 2 * DATA + 64 * i, 64) for i in range(32)],
        TABLE + 32 * first,
    )
    ptx.launch(kernel, memory, grid, block, (TABLE, 2**29), [number])
    assert np.array_equal(data.data, copy.data)


# -- The interpreter finds mistakes ------------------------------------------


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        # a store outside the row
        (
            "setp.lt.u64 tail_on, lane, tail;",
            "setp.le.u64 tail_on, lane, tail;",
        ),
        # a misaligned access
        ("and.b64 d, s, 3;", "and.b64 d, s, 1;"),
        # bytes that are not copied
        ("setp.gt.s64 on3, left, 384;", "setp.gt.s64 on3, left, 388;"),
        # the first row only
        ("add.u64 row, row, s;", "add.u64 row, row, 0;"),
    ],
)
def test_a_wrong_kernel_is_noticed(right, wrong):
    text = kernel_text()
    assert text.count(right) == 1
    kernel = ptx.parse(text.replace(right, wrong))
    shapes = [(0, mod, size) for mod in range(16) for size in (9, 388, 600)]
    with pytest.raises((ptx.BadAccessError, AssertionError)):
        Scene(shapes).run(kernel, 2, 64)


# -- The assembler -----------------------------------------------------------


def gpu_check_text():
    """The kernel of scripts/gpu_check, which a GPU runs unseen."""
    path = ROOT / "scripts/gpu_check/driver.py"
    return re.search(r'KERNEL = b"""\n(.*?)"""', path.read_text(), re.S)[1]


@pytest.mark.parametrize("kernel", [kernel_text, gpu_check_text])
@pytest.mark.parametrize("target", [75, 80, 90, 100, 120])
def test_kernel_is_assembled_for_every_gpu(tmp_path, target, kernel):
    assembler = shutil.which("ptxas")
    if assembler is None:
        pytest.skip(
            "ptxas, NVIDIA's assembler, is not in PATH (in the wheel"
            " nvidia-cuda-nvcc-cu12: nvidia/cuda_nvcc/bin)"
        )
    text = tmp_path / "kernel.ptx"
    text.write_text(kernel())
    done = subprocess.run(
        [
            assembler,
            "--warning-as-error",
            f"--gpu-name=sm_{target}",
            "--output-file",
            tmp_path / "kernel.cubin",
            text,
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
