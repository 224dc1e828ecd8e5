"""NIXL's `_api` by name, for clients that import from there."""

from . import _bindings as nixlBind  # noqa: N812 - NIXL's name
from ._agent import nixl_agent
from ._config import DEFAULT_COMM_PORT, nixl_agent_config, nixl_thread_sync_t
from ._core import nixl_prepped_dlist_handle, nixl_xfer_handle

nixl_backend_handle = int

__all__ = [
    "DEFAULT_COMM_PORT",
    "nixlBind",
    "nixl_agent",
    "nixl_agent_config",
    "nixl_backend_handle",
    "nixl_prepped_dlist_handle",
    "nixl_thread_sync_t",
    "nixl_xfer_handle",
]
