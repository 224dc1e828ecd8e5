"""NIXL's `_api` by name, for clients that import from there."""

from __future__ import annotations

from . import _bindings as nixlBind  # noqa: N812 - NIXL's name
from ._compat import nixl_agent
from ._config import DEFAULT_COMM_PORT, nixl_agent_config, nixl_thread_sync_t
from ._core import nixl_prepped_dlist_handle, nixl_xfer_handle
from .logging import get_logger

nixl_backend_handle = int

__all__ = [
    "DEFAULT_COMM_PORT",
    "get_logger",
    "nixlBind",
    "nixl_agent",
    "nixl_agent_config",
    "nixl_backend_handle",
    "nixl_prepped_dlist_handle",
    "nixl_thread_sync_t",
    "nixl_xfer_handle",
]


def __getattr__(name: str) -> object:
    """Import NIXL's `logger` and `np` only when used: most programs do not."""
    if name == "logger":
        return get_logger("api")
    if name == "np":
        import numpy

        return numpy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
