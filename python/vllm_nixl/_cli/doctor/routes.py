"""Checks by trial: agents in child processes that move bytes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from .. import child, variables
from .findings import Finding, Machine, bad, ok, warning

if TYPE_CHECKING:
    from collections.abc import Mapping

_SECONDS = 60
_NO_UCX = {"VLLM_NIXL_UCX_LIBRARY": "none"}
_ENGINE = "VLLM_NIXL_ENGINE"
# UCX's own report, which the library logs at the level INFO.
_UNUSED = re.compile(r"unused environment variables?: (.*?)(?:\(set |\n|\Z)")
_NAME = re.compile(r"(UCX_\w+)(?:\s*\(maybe: (UCX_\w+)\?\))?")
_HOSTS = "other hosts, stock NIXL agents, and GPU memory"


def check_engines(machine: Machine) -> list[Finding]:
    """The engines that can be used, and their backends."""
    wanted = machine.environ.get(_ENGINE) or "auto"
    found = []
    for engine in ("native", "nixl"):
        try:
            facts, _ = _agent(engine)
        except child.ChildError as error:
            found += _no_engine(engine, wanted, str(error))
        else:
            found.append(
                ok(
                    f"engine {engine}",
                    f"backends {', '.join(sorted(facts['plugins']))}"
                    + _library(facts["description"]),
                )
            )
    return found


def _library(description: Mapping[str, Any]) -> str:
    path = description.get("library")
    return f" ({path})" if path else ""


def _agent(engine: str) -> tuple[dict[str, Any], str]:
    # UCX is another check's; NIXL brings its own.
    environ = _NO_UCX if engine == "native" else {}
    return child.run("agent", {"engine": engine}, _SECONDS, environ)


def _no_engine(engine: str, wanted: str, error: str) -> list[Finding]:
    if engine == "nixl" and wanted != "nixl":
        if "is not installed" in error:
            return [ok("engine nixl", "not installed; native is used")]
        return [
            warning(
                "engine nixl",
                error,
                "the stock library cannot be used: no GDS, POSIX, OBJ",
                "nothing, unless you need these backends",
            )
        ]
    change = "install the package again, as README.md says"
    if engine == "nixl":
        change = f"pip install nixl, or unset {_ENGINE}"
    return [bad(f"engine {engine}", error, "no agent can be created", change)]


# -- Two processes ------------------------------------------------------------


def _trial(backend: str, environ: Mapping[str, str | None]) -> dict[str, Any]:
    """Read between two children by this backend; the initiator's report."""
    with child.Child("target", {"backend": backend}, environ) as target:
        made = target.result(_SECONDS)
        report, said = child.run(
            "initiator", {"backend": backend, **made}, _SECONDS, environ
        )
    return {**report, "said": said + "\n"}


def check_same_host(machine: Machine) -> list[Finding]:
    """Whether SHM moves bytes between two processes of this user."""
    check = "SHM"
    environ = {**_NO_UCX, "VLLM_NIXL_SAME_HOST": "1"}
    try:
        report = _trial("SHM", environ)
    except child.ChildError as error:
        return [
            bad(
                check,
                "two processes cannot exchange data by SHM",
                str(error),
                "see the cause, and the checks of ptrace scope and seccomp",
            )
        ]
    if report["verdict"] != "verified":
        return [_wrong(check)]
    if machine.environ.get("VLLM_NIXL_SAME_HOST") == "0":
        return [
            warning(
                check,
                "works, but is switched off",
                "VLLM_NIXL_SAME_HOST is 0: agents of this host use UCX",
                "unset VLLM_NIXL_SAME_HOST",
            )
        ]
    return [ok(check, "two processes exchanged data, verified")]


def _wrong(check: str) -> Finding:
    return bad(
        check,
        "the bytes that arrived are wrong",
        "a fault of the library, the kernel or the memory",
        "report it, with the output of `vllm-nixl info --json`",
    )


def check_ucx(machine: Machine) -> list[Finding]:
    """Which UCX is loaded, what it says, and what it really uses."""
    check = "UCX"
    if machine.environ.get("VLLM_NIXL_UCX_LIBRARY") == "none":
        return [
            warning(
                check,
                "switched off by VLLM_NIXL_UCX_LIBRARY=none",
                f"it reaches {_HOSTS}",
                "unset VLLM_NIXL_UCX_LIBRARY",
            )
        ]
    environ = {"VLLM_NIXL_LOG_LEVEL": "INFO", "UCX_LOG_LEVEL": "warn"}
    try:
        facts, said = child.run(
            "agent", {"engine": "native"}, _SECONDS, environ
        )
    except child.ChildError as error:
        return [_failed(check, error)]
    description = facts["description"]
    if "ucx" not in description:
        return [_no_ucx(check, description["reach"])]
    return [
        ok(check, description["ucx"]),
        *_unused(said),
        *_ucx_trial(),
    ]


def _no_ucx(check: str, reach: str) -> Finding:
    """Without a libucp an agent still works, within this host."""
    return warning(
        check,
        "no libucp can be loaded",
        f"{reach}. UCX reaches {_HOSTS}",
        "pip install libucx-cu12, or set VLLM_NIXL_UCX_LIBRARY to a libucp "
        "of 1.19 or later",
    )


def _failed(check: str, error: Exception) -> Finding:
    return bad(
        check,
        "UCX does not work",
        str(error),
        "check the UCX_ variables above; `ucx_info -d` lists the devices",
    )


def _unused(said: str) -> list[Finding]:
    """Names of variables that UCX does not know; it says so itself."""
    found = []
    for text in _UNUSED.findall(said):
        for name, near in _NAME.findall(text):
            change = f"unset {name}"
            if near and variables.nearest(name, [near]):
                change = f"rename it to {near}, or {change}"
            found.append(
                warning(name, "unknown name", "UCX does not read it", change)
            )
    return found


def _ucx_trial() -> list[Finding]:
    check = "UCX transports"
    try:
        report = _trial("UCX", {"VLLM_NIXL_SAME_HOST": "0"})
    except child.ChildError as error:
        return [_failed(check, error)]
    if report["verdict"] != "verified":
        return [_wrong(check)]
    used = report["peer"].get("transports") or "unknown"
    return [ok(check, f"two processes exchanged data by {used}, verified")]


CHECKS = (check_engines, check_same_host, check_ucx)
