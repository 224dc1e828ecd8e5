"""Our declarations of libcuda's binary interface, compared with NVIDIA's
headers."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "src/engine/native/cuda/cuda_abi.h"
TABLES = ("START", "WORK", "OPTIONAL")

STRUCTS = {
    "uuid": "CUuuid",
    "ipc_handle": "CUipcMemHandle",
    "fabric_handle": "CUmemFabricHandle",
    "pool_ptr": "CUmemPoolPtrExportData",
    "location": "CUmemLocation",
    "access": "CUmemAccessDesc",
    "alloc_prop": "CUmemAllocationProp",
    "copy_attr": "CUmemcpyAttributes",
}
# C leaves the type of an enumeration to the compiler.
ENUMERATIONS = (
    "CUresult",
    "CUdevice_attribute",
    "CUpointer_attribute",
    "CUmemAllocationHandleType",
    "CUmemAllocationGranularity_flags",
    "CUmemAccess_flags",
    "CUmemLocationType",
    "CUmemAllocationType",
    "CUmemcpySrcAccessOrder",
    "CUstreamCaptureMode",
    "CUjit_option",
)


@pytest.fixture(scope="module")
def include():
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec is not None else []
    for folder in folders:
        path = Path(folder) / "cuda_runtime" / "include"
        if (path / "cuda.h").is_file():
            break
    else:
        pytest.skip(
            "the wheel nvidia-cuda-runtime-cu12, which has CUDA's headers, is"
            " missing"
        )
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    return path


def compile_unit(tmp_path, include, lines):
    """Compile lines after both headers.  With the macro, cuda.h declares every
    version of a function under the name of its symbol."""
    unit = tmp_path / "unit.c"
    unit.write_text(
        "#define __CUDA_API_VERSION_INTERNAL\n"
        "#include <cuda.h>\n#include <cudaTypedefs.h>\n"
        '#include "engine/native/cuda/cuda_abi.h"\n' + "\n".join(lines)
    )
    subprocess.run(
        [
            "cc",
            "-std=gnu11",
            "-fsyntax-only",
            "-Wall",
            "-Wextra",
            "-Werror",
            f"-isystem{include}",
            f"-I{ROOT / 'src'}",
            unit,
        ],
        check=True,
    )


def equal(ours, theirs):
    return f'_Static_assert({ours} == (long){theirs}, "{ours} is {theirs}");'


def members(struct):
    """The names of a structure's members, and of those within them."""
    text = HEADER.read_text()
    body = re.search(
        rf"typedef struct vnxi_cu_{struct} {{(.*?)\n}} ", text, re.DOTALL
    ).group(1)
    names = []
    for inner, outer in re.findall(
        r"struct {(.*?)} (\w+);", body, flags=re.DOTALL
    ):
        names += [f"{outer}.{name}" for name in declared(inner)]
    body = re.sub(r"struct {.*?}", "int", body, flags=re.DOTALL)
    return names + declared(body)


def declared(text):
    return re.findall(r"(\w+)(?:\[\w+\])?;", text)


def test_structures_match_cuda_headers(tmp_path, include):
    lines = []
    for ours, theirs in STRUCTS.items():
        ours_t = f"vnxi_cu_{ours}_t"
        lines.append(equal(f"sizeof({ours_t})", f"sizeof({theirs})"))
        names = members(ours)
        assert names
        for name in names:
            for question in ("offsetof({}, {})", "sizeof((({} *)0)->{})"):
                lines.append(
                    equal(
                        question.format(ours_t, name),
                        question.format(theirs, name),
                    )
                )
    compile_unit(tmp_path, include, lines)


def test_every_structure_is_compared():
    names = re.findall(r"typedef struct vnxi_cu_(\w+) {", HEADER.read_text())
    assert set(names) - {"functions"} == set(STRUCTS)


def test_constants_match_cuda_headers(tmp_path, include):
    names = re.findall(r"VNXI_(CU(?:DA)?_\w+) =", HEADER.read_text())
    assert names
    compile_unit(
        tmp_path, include, [equal(f"VNXI_{name}", name) for name in names]
    )


def test_prototypes_match_cuda_headers(tmp_path, include):
    """Structures are compared above; here each stands for NVIDIA's."""
    lines = [f"#define vnxi_cu_{a}_t {b}" for a, b in STRUCTS.items()]
    lines += [
        "#define CHECK(result, name, parameters) _Static_assert("
        "__builtin_types_compatible_p("
        "__typeof__(&name), result(*) parameters), #name);",
        *(f"VNXI_CU_{table}_FUNCTIONS(CHECK)" for table in TABLES),
    ]
    compile_unit(tmp_path, include, lines)


def test_other_types_match_cuda_headers(tmp_path, include):
    """Some of them are members of structures, of which the sizes were
    compared, and a pool's is the result of a query."""
    same = dict.fromkeys(ENUMERATIONS, "vnxi_cu_enum_t")
    same |= {"CUhostFn": "vnxi_cu_host_fn_t", "CUmemoryPool": "vnxi_cu_pool_t"}
    compile_unit(
        tmp_path,
        include,
        [
            "_Static_assert(__builtin_types_compatible_p("
            f'{theirs}, {ours}), "{theirs}");'
            for theirs, ours in same.items()
        ],
    )


def functions(table):
    text = HEADER.read_text()
    body = re.search(
        rf"#define VNXI_CU_{table}_FUNCTIONS\(X\)(.*?[^\\])\n",
        text,
        re.DOTALL,
    ).group(1)
    return re.findall(r"X\(vnxi_cu_result_t, (\w+),", body)


@pytest.fixture(scope="module")
def versions(include):
    """{function: the CUDA versions, as 11040, that a version of it came
    with}."""
    found = {}
    text = (include / "cudaTypedefs.h").read_text()
    for name, number in re.findall(r"\*PFN_(\w+?)_v(\d{4,})\)", text):
        found.setdefault(name, set()).add(int(number))
    return found


@pytest.mark.parametrize("table", TABLES)
def test_functions_exist_since_the_version_of_the_comment(versions, table):
    """A symbol with a suffix is the last version of its function."""
    newest = {"START": 11040, "WORK": 11040, "OPTIONAL": 12080}[table]
    names = functions(table)
    assert names
    for symbol in names:
        name, count = re.subn(r"_v\d$", "", symbol)
        came = (max if count else min)(versions[name])
        assert came <= newest, symbol
