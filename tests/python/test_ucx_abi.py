"""Our declarations of libucp's binary interface, compared with UCX's
headers."""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEADER = ROOT / "src/engine/native/ucx/ucp_abi.h"

STRUCTS = {
    "params": "ucp_params_t",
    "worker_params": "ucp_worker_params_t",
    "ep_params": "ucp_ep_params_t",
    "mem_map_params": "ucp_mem_map_params_t",
    "mem_attr": "ucp_mem_attr_t",
    "request_param": "ucp_request_param_t",
    "am_recv_param": "ucp_am_recv_param_t",
    "am_handler_param": "ucp_am_handler_param_t",
    # These two have room beyond the members that UCX writes today.
    "context_attr": "ucp_context_attr_t",
    "worker_attr": "ucp_worker_attr_t",
    "ep_attr": "ucp_ep_attr_t",
}
NUMBERS = {
    "UCP_FEATURE_RMA": "UCP_FEATURE_RMA",
    "UCP_FEATURE_AMO32": "UCP_FEATURE_AMO32",
    "UCP_FEATURE_AMO64": "UCP_FEATURE_AMO64",
    "UCP_FEATURE_WAKEUP": "UCP_FEATURE_WAKEUP",
    "UCP_FEATURE_AM": "UCP_FEATURE_AM",
    "UCP_PARAM_FEATURES": "UCP_PARAM_FIELD_FEATURES",
    "UCP_PARAM_MT_WORKERS_SHARED": "UCP_PARAM_FIELD_MT_WORKERS_SHARED",
    "UCP_PARAM_NAME": "UCP_PARAM_FIELD_NAME",
    "UCP_ATTR_MEMORY_TYPES": "UCP_ATTR_FIELD_MEMORY_TYPES",
    "UCP_WORKER_PARAM_THREAD_MODE": "UCP_WORKER_PARAM_FIELD_THREAD_MODE",
    "UCP_WORKER_ATTR_ADDRESS": "UCP_WORKER_ATTR_FIELD_ADDRESS",
    "UCP_THREAD_MODE_SERIALIZED": "UCS_THREAD_MODE_SERIALIZED",
    "UCP_EP_PARAM_REMOTE_ADDRESS": "UCP_EP_PARAM_FIELD_REMOTE_ADDRESS",
    "UCP_EP_PARAM_ERR_MODE": "UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE",
    "UCP_EP_PARAM_ERR_HANDLER": "UCP_EP_PARAM_FIELD_ERR_HANDLER",
    "UCP_ERR_MODE_PEER": "UCP_ERR_HANDLING_MODE_PEER",
    "UCP_EP_CLOSE_FORCE": "UCP_EP_CLOSE_FLAG_FORCE",
    "UCP_EP_ATTR_TRANSPORTS": "UCP_EP_ATTR_FIELD_TRANSPORTS",
    "UCP_MEM_MAP_ADDRESS": "UCP_MEM_MAP_PARAM_FIELD_ADDRESS",
    "UCP_MEM_MAP_LENGTH": "UCP_MEM_MAP_PARAM_FIELD_LENGTH",
    "UCP_MEM_MAP_MEMORY_TYPE": "UCP_MEM_MAP_PARAM_FIELD_MEMORY_TYPE",
    "UCP_MEM_ATTR_MEM_TYPE": "UCP_MEM_ATTR_FIELD_MEM_TYPE",
    "UCS_MEMORY_HOST": "UCS_MEMORY_TYPE_HOST",
    "UCS_MEMORY_CUDA": "UCS_MEMORY_TYPE_CUDA",
    "UCS_MEMORY_CUDA_MANAGED": "UCS_MEMORY_TYPE_CUDA_MANAGED",
    "UCS_MEMORY_ZE_MANAGED": "UCS_MEMORY_TYPE_ZE_MANAGED",
    "UCP_OP_CALLBACK": "UCP_OP_ATTR_FIELD_CALLBACK",
    "UCP_OP_USER_DATA": "UCP_OP_ATTR_FIELD_USER_DATA",
    "UCP_OP_FLAGS": "UCP_OP_ATTR_FIELD_FLAGS",
    "UCP_OP_MEMORY_TYPE": "UCP_OP_ATTR_FIELD_MEMORY_TYPE",
    "UCP_OP_MEMH": "UCP_OP_ATTR_FIELD_MEMH",
    "UCP_OP_MULTI_SEND": "UCP_OP_ATTR_FLAG_MULTI_SEND",
    "UCP_AM_SEND_EAGER": "UCP_AM_SEND_FLAG_EAGER",
    "UCP_AM_RECV_RNDV": "UCP_AM_RECV_ATTR_FLAG_RNDV",
    "UCP_AM_PARAM_ID": "UCP_AM_HANDLER_PARAM_FIELD_ID",
    "UCP_AM_PARAM_CB": "UCP_AM_HANDLER_PARAM_FIELD_CB",
    "UCP_AM_PARAM_ARG": "UCP_AM_HANDLER_PARAM_FIELD_ARG",
    "UCS_LOG_ERROR": "UCS_LOG_LEVEL_ERROR",
    "UCS_LOG_WARN": "UCS_LOG_LEVEL_WARN",
    "UCS_LOG_DIAG": "UCS_LOG_LEVEL_DIAG",
    "UCS_LOG_INFO": "UCS_LOG_LEVEL_INFO",
    "UCS_LOG_STOP": "UCS_LOG_FUNC_RC_STOP",
}


@pytest.fixture(scope="module")
def include():
    spec = importlib.util.find_spec("libucx")
    if spec is None:
        pytest.skip("the libucx wheel, which has UCX's headers, is missing")
    path = Path(next(iter(spec.submodule_search_locations))) / "include"
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    return path


def compile_unit(tmp_path, include, lines):
    unit = tmp_path / "unit.c"
    unit.write_text(
        "#include <ucp/api/ucp.h>\n#include <ucs/debug/log_def.h>\n"
        '#include "engine/native/ucx/ucp_abi.h"\n' + "\n".join(lines)
    )
    subprocess.run(
        [
            "cc",
            "-std=gnu11",
            "-fsyntax-only",
            f"-I{include}",
            f"-I{ROOT / 'src'}",
            unit,
        ],
        check=True,
    )


def members(struct):
    """The names of a structure's members, except unions."""
    text = HEADER.read_text()
    body = re.search(
        rf"typedef struct vnxi_ucp_{struct} {{(.*?)\n}} ", text, re.DOTALL
    ).group(1)
    body = re.sub(r"/\*.*?\*/", "", body, flags=re.DOTALL)
    body = re.sub(r"(union|struct) {.*?}", "int", body, flags=re.DOTALL)
    found = re.findall(r"(\w+)(?:\[\d+\])?;|\(\*(\w+)\)", body)
    names = [name or pointer for name, pointer in found]
    return [name for name in names if name != "room"]


@pytest.mark.parametrize("ours", STRUCTS)
def test_structures_match_ucx_headers(tmp_path, include, ours):
    theirs = STRUCTS[ours]
    names = members(ours)
    assert names
    lines = [
        f"_Static_assert(offsetof(vnxi_ucp_{ours}_t, {name}) =="
        f' offsetof({theirs}, {name}), "{name}");'
        for name in names
    ]
    lines.append(
        f"_Static_assert(sizeof(vnxi_ucp_{ours}_t) >= sizeof({theirs}),"
        ' "size");'
    )
    compile_unit(tmp_path, include, lines)


def test_constants_match_ucx_headers(tmp_path, include):
    text = HEADER.read_text()
    lines = [
        f'_Static_assert(VNXI_{ours} == (long){theirs}, "{ours}");'
        for ours, theirs in NUMBERS.items()
    ]
    for name in re.findall(r"VNXI_(UCS_(?:OK|INPROGRESS|ERR_\w+)) =", text):
        lines.append(f'_Static_assert(VNXI_{name} == {name}, "{name}");')
    compile_unit(tmp_path, include, lines)


def test_every_constant_is_compared():
    text = HEADER.read_text()
    names = set(re.findall(r"VNXI_(UC[PS]_[A-Z0-9_]+) =", text))
    status = {n for n in names if re.match("UCS_(OK|INPROGRESS|ERR_)", n)}
    assert names - status == set(NUMBERS)


def test_a_status_takes_one_byte(tmp_path, include):
    compile_unit(
        tmp_path,
        include,
        [
            "_Static_assert(sizeof(ucs_status_t) =="
            ' sizeof(vnxi_ucs_status_t), "size");'
        ],
    )
