"""The environment variables that this package reads, in one table."""

from __future__ import annotations

import difflib
import math
import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

PREFIX = "VLLM_NIXL_"

# vLLM's own variables of that prefix; it reads the side channel's too.
OF_VLLM = ("VLLM_NIXL_ABORT_REQUEST_TIMEOUT", "VLLM_NIXL_EP_MAX_NUM_RANKS")


def _any(value: str) -> str:
    return ""


def _one_of(*words: str, fold: bool = False) -> Callable[[str], str]:
    def check(value: str) -> str:
        given = value.upper() if fold else value
        if given in words:
            return ""
        listed = " or ".join(words)
        if len(words) > 3:
            listed = "one of " + ", ".join(words)
        return f"must be {listed}"

    return check


def _number(least: int, most: int) -> Callable[[str], str]:
    def check(value: str) -> str:
        is_number = value.isascii() and value.isdigit()
        good = is_number and least <= int(value) <= most
        return "" if good else f"must be a number from {least} to {most}"

    return check


def _port(value: str) -> str:
    good = _number(0, 65535)(value) == ""
    return "" if good else "must be a port, 0 to 65535"


def _seconds(value: str) -> str:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    return "" if 0 <= number <= 1e9 else "must be a number of seconds"


def _secret(value: str) -> str:
    size = len(os.fsencode(value))
    good = 8 <= size <= 65535
    return "" if good else f"must have 8 to 65535 bytes, not {size}"


def _file(value: str) -> str:
    # A bare name is searched for, by the dynamic linker or in PATH.
    good = "/" not in value or os.path.isfile(value)
    return "" if good else "names no file"


def _folder(value: str) -> str:
    if value in ("0", "1") or value.startswith("/"):
        return ""
    return "must be 0, 1 or the absolute path of a folder"


class Variable(NamedTuple):
    """One variable.  check() returns why a value is not valid, or ""."""

    name: str
    meaning: str
    check: Callable[[str], str] = _any
    secret: bool = False
    # Whether an empty value is the same as none at all.
    may_be_empty: bool = True


_SWITCH = _one_of("0", "1")
_LEVELS = (
    "ERROR",
    "WARNING",
    "WARN",
    "INFO",
    "DEBUG",
    "TRACE",
    "FATAL",
    "CRITICAL",
)

TABLE = (
    Variable("VLLM_NIXL_ALLOW_PTRACE", "0: do not let peers trace", _SWITCH),
    Variable("VLLM_NIXL_AS_NIXL", "1: `import nixl` is vllm_nixl", _SWITCH),
    Variable(
        "VLLM_NIXL_CUDA_CTAS",
        "blocks of threads that copy at a time",
        _number(1, 4096),
    ),
    Variable(
        "VLLM_NIXL_CUDA_LAUNCH_BYTES",
        "the most bytes of a launch",
        _number(1 << 20, 1 << 40),
    ),
    Variable("VLLM_NIXL_CUDA_LIBRARY", "the file of libcuda, or none", _file),
    Variable(
        "VLLM_NIXL_ENGINE",
        "the engine of agents",
        _one_of("auto", "native", "nixl"),
    ),
    Variable("VLLM_NIXL_LIBRARY", "the file of libnixl_capi", _file),
    Variable(
        "VLLM_NIXL_LOG_LEVEL",
        "the level of the log",
        _one_of(*_LEVELS, fold=True),
    ),
    Variable(
        "VLLM_NIXL_METADATA_SECRET",
        "signs metadata",
        _secret,
        secret=True,
        may_be_empty=False,
    ),
    Variable("VLLM_NIXL_MONITOR", "1, or a folder: show agents", _folder),
    Variable("VLLM_NIXL_SAME_HOST", "0: no SHM", _SWITCH),
    Variable("VLLM_NIXL_SIDE_CHANNEL_HOST", "where listeners listen"),
    Variable("VLLM_NIXL_SIDE_CHANNEL_PORT", "their port", _port),
    Variable(
        "VLLM_NIXL_SIDE_CHANNEL_SECRET",
        "authenticates and encrypts the side channel",
        _secret,
        secret=True,
    ),
    Variable(
        "VLLM_NIXL_STOCK_PYTHON", "a Python with stock NIXL, for bench", _file
    ),
    Variable("VLLM_NIXL_UCX_GUARD", "0, 1: workarounds for UCX", _SWITCH),
    Variable("VLLM_NIXL_UCX_LIBRARY", "the file of libucp, or none", _file),
    Variable("VLLM_NIXL_UCX_TIMEOUT", "seconds without progress", _seconds),
)
NAMES = tuple(variable.name for variable in TABLE)

# Others that take effect here or in the stock library.
_OTHERS = ("NIXL_", "UCX_")


def in_force(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that are set and concern us; secrets are hidden."""
    secrets = {variable.name for variable in TABLE if variable.secret}
    return {
        name: "<hidden>" if name in secrets else value
        for name, value in sorted(environ.items())
        if name.startswith((PREFIX, *_OTHERS))
    }


def nearest(name: str, known: Iterable[str]) -> str:
    """The known name that is most like this one, or ""."""
    found = difflib.get_close_matches(name, list(known), 1, 0.75)
    return found[0] if found else ""
