"""Checks of installed packages: wheels that clash, or are broken."""

from __future__ import annotations

import importlib.metadata
import os
import re

from ... import features
from .. import child, libraries
from .findings import Finding, Machine, bad, ok, warning

_BUILD_OPTIONS = {
    "http": "side_channel_http",
    "shared_secret": "side_channel_tls",
    "signed_metadata": "side_channel_tls",
    "tls": "side_channel_tls",
    "zmq": "side_channel_zmq",
}
_NIXL_WHEELS = ("nixl-cu12", "nixl-cu13", "nixl-rocm")
_SECONDS = 60


def installed(machine: Machine) -> dict[str, str]:
    """The distributions that Python finds: name to version."""
    found: dict[str, str] = {}
    for part in importlib.metadata.distributions(path=machine.path):
        name = part.metadata["Name"]
        if name:
            name = re.sub(r"[-_.]+", "-", name).lower()
            found.setdefault(name, part.version)
    return found


def check_features(machine: Machine) -> list[Finding]:
    """Parts that were left out of this build."""
    missing = [name for name, there in features.items() if not there]
    found = [
        warning(
            f"feature {name}",
            "this build lacks it",
            "it was built with "
            f"-D{_BUILD_OPTIONS.get(name, name)}=disabled (or =auto, without "
            "the library)",
            "install a wheel, or build again: pip install . "
            "--config-settings=setup-args="
            f"-D{_BUILD_OPTIONS.get(name, name)}=enabled",
        )
        for name in missing
    ]
    return found or [ok("features", ", ".join(features))]


def check_curl(machine: Machine) -> list[Finding]:
    """libcurl, which requests over HTTP load."""
    if not features["http"]:
        return []
    arguments = {"files": ["libcurl.so.4"], "version": "curl_version"}
    try:
        result, _ = child.run("open_library", arguments, _SECONDS)
    except child.ChildError as error:
        return [
            warning(
                "libcurl",
                str(error),
                "the HTTP side channel cannot request metadata without it",
                "apt-get install libcurl4 (Fedora: libcurl)",
            )
        ]
    return [ok("libcurl", result["version"].partition(" ")[0])]


def check_cuda_variants(machine: Machine) -> list[Finding]:
    """Wheels for two CUDA versions side by side."""
    have = installed(machine)
    cuda = libraries.torch_cuda(machine.path)
    found = []
    for base in ("nixl", "libucx"):
        names = [n for n in (f"{base}-cu12", f"{base}-cu13") if n in have]
        if len(names) == 2:
            found.append(_mixed(base, names, cuda))
        elif names and cuda and base == "nixl" and names[0][-2:] != str(cuda):
            found.append(
                warning(
                    "CUDA variants",
                    f"{names[0]}, but torch was built for CUDA {cuda}",
                    "NIXL's plugins for GPU memory load another CUDA runtime",
                    f"pip uninstall -y {names[0]}; pip install nixl-cu{cuda}",
                )
            )
    return found


def _mixed(base: str, names: list[str], cuda: int) -> Finding:
    keep = f"{base}-cu{cuda or 12}"
    drop = next(name for name in names if name != keep)
    if base == "libucx":
        return bad(
            "CUDA variants",
            f"{names[0]} and {names[1]} are both installed",
            "both own the folder libucx: its files are those of the one "
            "that was installed last",
            f"pip uninstall -y {names[0]} {names[1]}; pip install {keep}",
        )
    return warning(
        "CUDA variants",
        f"{names[0]} and {names[1]} are both installed",
        "which one is used depends on torch and on the order of sys.path; "
        "before 1.3 they overwrote each other's files",
        f"pip uninstall -y {drop}; pip install --force-reinstall {keep}",
    )


def check_nixl_wheel(machine: Machine) -> list[Finding]:
    """Whether an installed NIXL wheel is complete and can be imported."""
    have = installed(machine)
    wheels = [name for name in _NIXL_WHEELS if name in have]
    if "nixl" in have and not wheels:
        return [
            bad(
                "NIXL wheel",
                f"nixl {have['nixl']} without nixl-cu12 or nixl-cu13",
                "nixl has only Python code; the library is in the others",
                "pip install nixl-cu12 (or nixl-cu13)",
            )
        ]
    found = []
    for name in wheels:
        pattern = f".{name.replace('-', '_')}.mesonpy.libs/libnixl_capi.so"
        if libraries.in_path(pattern, machine.path) is None:
            found.append(_broken(name, have[name], "it lacks libnixl_capi.so"))
    if wheels and not found:
        found = _import_nixl(machine, wheels[0], have)
    return found


def _import_nixl(
    machine: Machine, name: str, have: dict[str, str]
) -> list[Finding]:
    module = "nixl._api" if "nixl" in have else name.replace("-", "_")
    try:
        child.run(
            "import",
            {"module": module},
            _SECONDS,
            {"VLLM_NIXL_AS_NIXL": None},
            machine.path,
        )
    except child.ChildError as error:
        return [_broken(name, have[name], f"import {module}: {error}")]
    return [ok("NIXL wheel", f"{name} {have[name]} can be imported")]


def _broken(name: str, version: str, why: str) -> Finding:
    cause = "its files are incomplete, or a library that it needs is missing"
    if "libcuda" in why:
        cause = "it needs the CUDA driver's library, which is not installed"
    return bad(
        "NIXL wheel",
        f"{name} {version}: {why}",
        cause,
        f"pip install --force-reinstall {name}=={version}, or pip uninstall "
        f"-y {name}: the engine native does not need it",
    )


def check_named_libraries(machine: Machine) -> list[Finding]:
    """NIXL_PLUGIN_DIR, where stock NIXL looks for plugins."""
    folder = machine.environ.get("NIXL_PLUGIN_DIR", "")
    if not folder or os.path.isdir(folder):
        return []
    return [
        bad(
            "NIXL_PLUGIN_DIR",
            f"{folder} is not a folder",
            "the engine nixl finds no backends",
            "unset NIXL_PLUGIN_DIR",
        )
    ]


CHECKS = (
    check_features,
    check_curl,
    check_cuda_variants,
    check_nixl_wheel,
    check_named_libraries,
)
