"""What the machine is."""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import resource
from typing import Any

from vllm_nixl._bench import turns

from .driver import Gpu, is_fake

# Of cuda.h.
MULTIPROCESSORS, COPY_ENGINES, MAJOR, MINOR = 16, 40, 75, 76
POSIX_FD, FABRIC = 103, 128  # can memory be exported like this?
NVLINKS_MAX = 18


def facts() -> dict[str, Any]:
    gpu = Gpu()
    count = gpu.device_count()
    about = turns.machine()
    del about["bare_threads"]
    return {
        **about,
        "cores_usable": len(os.sched_getaffinity(0)),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "fake": is_fake(gpu.library),
        "cuda": gpu.number("cuDriverGetVersion"),
        "driver": driver_version(),
        "free_bytes": gpu.memory_info()[0],
        "gpus": [one_gpu(gpu, device) for device in range(count)],
        "peers": [
            [one, other]
            for one in range(count)
            for other in range(count)
            if one != other and can_access(gpu, one, other)
        ],
        "versions": versions(),
    }


def one_gpu(gpu: Gpu, device: int) -> dict[str, Any]:
    major, minor = (gpu.attribute(n, device) for n in (MAJOR, MINOR))
    return {
        "name": gpu.name(device),
        "bytes": gpu.number("cuDeviceTotalMem_v2", device),
        "capability": f"{major}.{minor}",
        "multiprocessors": gpu.attribute(MULTIPROCESSORS, device),
        "copy_engines": gpu.attribute(COPY_ENGINES, device),
        "exports_fds": bool(gpu.attribute(POSIX_FD, device)),
        "exports_fabric": bool(gpu.attribute(FABRIC, device)),
        **({} if is_fake(gpu.library) else links(device)),
    }


def can_access(gpu: Gpu, one: int, other: int) -> bool:
    return bool(gpu.number("cuDeviceCanAccessPeer", one, other))


def versions() -> dict[str, str]:
    found = {}
    for name in ("vllm_nixl", "nixl-cu12", "numpy"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


# -- What only NVML tells ----------------------------------------------------


def driver_version() -> str:
    try:
        with open("/proc/driver/nvidia/version") as info:
            return " ".join(info.readline().split())
    except OSError:
        return ""


def links(device: int) -> dict[str, Any]:
    """NVLinks that are up, and the PCIe link.  NVML counts devices as the
    driver does unless CUDA_VISIBLE_DEVICES is set."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return {}
    handle = ctypes.c_void_p()
    if nvml.nvmlInit_v2() != 0 or nvml.nvmlDeviceGetHandleByIndex_v2(
        device, ctypes.byref(handle)
    ):
        return {}

    def ask(function: str, *arguments: Any) -> int | None:
        value = ctypes.c_uint()
        failed = getattr(nvml, function)(
            handle, *arguments, ctypes.byref(value)
        )
        return None if failed else value.value

    return {
        "nvlinks": sum(
            ask("nvmlDeviceGetNvLinkState", ctypes.c_uint(i)) == 1
            for i in range(NVLINKS_MAX)
        ),
        "pcie_generation": ask("nvmlDeviceGetMaxPcieLinkGeneration"),
        "pcie_width": ask("nvmlDeviceGetMaxPcieLinkWidth"),
    }
