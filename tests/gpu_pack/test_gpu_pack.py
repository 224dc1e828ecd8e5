"""The folder of scripts/gpu_pack.sh, VLLM_NIXL_GPU_PACK, which was made for
this Python: it is small, complete, and works without the checkout.

Run by `scripts/check.sh gpu_pack`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAKE = ROOT / "build-tests/gcc/tests/c/libfake_cuda.so"
PACK = Path(os.environ["VLLM_NIXL_GPU_PACK"])
SIZE_MAX = 60 << 20
# What the machine has: the C library, the compiler's, OpenSSL, the driver's.
SYSTEM = re.compile(
    r"(lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|z|ssl|crypto|cuda|nvidia-ml)"
    r"|ld-linux-x86-64)\.so\.\d+"
)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    with tarfile.open(PACK / "site.tar.gz") as archive:
        archive.extractall(folder)
    return folder


def run(command, **env):
    """In an empty environment, and, as root, without a network."""
    alone = []
    if os.geteuid() == 0:
        alone = ["unshare", "--net", "sh", "-c"]
        alone += ['ip link set lo up && exec "$@"', "sh"]
    done = subprocess.run(
        [*alone, *command],
        env={"PATH": os.environ["PATH"], **env},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_folder_is_small_and_has_only_what_runs():
    files = [path for path in PACK.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= SIZE_MAX
    names = {path.relative_to(PACK).as_posix() for path in files}
    scripts = {
        f"gpu_check/{path.name}"
        for path in (ROOT / "scripts/gpu_check").glob("*.py")
    }
    assert names == {"gpu_check.sh", "python", "site.tar.gz"} | scripts


def test_site_has_what_is_needed_and_nothing_large_besides(site):
    for pattern in (
        "vllm_nixl/_core.*.so",
        "vllm_nixl/_bench/bench.bare.so",
        "vllm_nixl-*.dist-info/METADATA",
        "nixl_cu12/_bindings.*.so",
        "nixl_cu12.libs/nixl/libplugin_UCX.so",
        "nixl_cu12.libs/ucx/libuct_cuda.so.0.0.0",
        "nixl_cu12.libs/libcudart.so.12",
        "nixl_cu12-1.5.1.dist-info/METADATA",
        "numpy/_core/_multiarray_umath.*.so",
    ):
        assert list(site.glob(pattern)), pattern
    plugins = {path.name for path in site.rglob("libplugin_*")}
    assert plugins == {"libplugin_UCX.so"}
    for pattern in ("nixl_ep*", "*.data", "numpy/**/tests", "nvidia"):
        assert not list(site.glob(pattern)), pattern


def test_libraries_need_only_each_other_and_the_system(site):
    libraries = [
        path
        for path in site.rglob("*")
        if re.search(r"\.so(\.|$)", path.name) and path.is_file()
    ]
    names = {path.name for path in libraries}
    assert len(libraries) > 50
    for path in libraries:
        shown = subprocess.run(
            ["readelf", "-d", path], capture_output=True, text=True, check=True
        )
        for name in re.findall(r"\(NEEDED\).*\[(.*)\]", shown.stdout):
            assert name in names or SYSTEM.fullmatch(name), (path, name)


def test_stock_and_ours_work_from_there(site):
    """By UCX, between two processes, without a GPU."""
    output = run(
        [
            *(sys.executable, "-S", "-m", "vllm_nixl", "bench", "--json"),
            *("--stock", "--block-sizes", "64k", "--batch", "8"),
            *("--repeat", "1", "--seconds", "0.05", "--op", "read"),
        ],
        PYTHONPATH=str(site),
        VLLM_NIXL_SAME_HOST="0",
    )
    found = json.loads(output)
    assert found["route"]["path"] == "UCX"
    assert set(found["points"][0]["sides"]) == {"ours", "stock", "bare"}


@pytest.mark.skipif(not FAKE.exists(), reason="scripts/check.sh c gcc")
def test_folder_works_elsewhere(tmp_path):
    """On the fake driver, copied away from the checkout."""
    folder = tmp_path / "folder"
    shutil.copytree(PACK, folder)
    path = tmp_path / "result.json"
    run(
        [folder / "gpu_check.sh", "--fake", FAKE, "--json", path],
        PYTHON=sys.executable,
    )
    found = json.loads(path.read_text())
    assert found["machine"]["versions"]["nixl-cu12"] == "1.5.1"
    states = {check["state"] for check in found["checks"]}
    assert states <= {"passed", "skipped"}
