"""NIXL's `_bindings` by name: the raw agent, lists, enumerations, errors.

For clients that import from it.  The classes are vllm_nixl's; the raw agent is
a thin layer over NixlAgent.
"""

from __future__ import annotations

from enum import Enum, IntEnum

from ._config import DEFAULT_COMM_PORT as DEFAULT_COMM_PORT
from ._config import nixl_thread_sync_t
from ._config import nixlAgentConfig as nixlAgentConfig
from ._core import *  # noqa: F403 - all errors, lists and memory types
from ._core import nixl_status_t
from ._raw import nixlAgent as nixlAgent


class nixl_xfer_op_t(IntEnum):
    """Operations of a transfer."""

    NIXL_READ = 0
    NIXL_WRITE = 1

    __str__ = Enum.__str__


class nixl_cost_t(IntEnum):
    """The method of a cost estimate."""

    NIXL_COST_ANALYTICAL_BACKEND = 0

    __str__ = Enum.__str__


NIXL_READ = nixl_xfer_op_t.NIXL_READ
NIXL_WRITE = nixl_xfer_op_t.NIXL_WRITE

NIXL_IN_PROG = nixl_status_t.NIXL_IN_PROG
NIXL_SUCCESS = nixl_status_t.NIXL_SUCCESS
NIXL_ERR_NOT_POSTED = nixl_status_t.NIXL_ERR_NOT_POSTED
NIXL_ERR_INVALID_PARAM = nixl_status_t.NIXL_ERR_INVALID_PARAM
NIXL_ERR_BACKEND = nixl_status_t.NIXL_ERR_BACKEND
NIXL_ERR_NOT_FOUND = nixl_status_t.NIXL_ERR_NOT_FOUND
NIXL_ERR_MISMATCH = nixl_status_t.NIXL_ERR_MISMATCH
NIXL_ERR_NOT_ALLOWED = nixl_status_t.NIXL_ERR_NOT_ALLOWED
NIXL_ERR_REPOST_ACTIVE = nixl_status_t.NIXL_ERR_REPOST_ACTIVE
NIXL_ERR_UNKNOWN = nixl_status_t.NIXL_ERR_UNKNOWN
NIXL_ERR_NOT_SUPPORTED = nixl_status_t.NIXL_ERR_NOT_SUPPORTED
NIXL_ERR_REMOTE_DISCONNECT = nixl_status_t.NIXL_ERR_REMOTE_DISCONNECT
NIXL_ERR_CANCELED = nixl_status_t.NIXL_ERR_CANCELED
NIXL_ERR_NO_TELEMETRY = nixl_status_t.NIXL_ERR_NO_TELEMETRY

NIXL_THREAD_SYNC_NONE = nixl_thread_sync_t.NIXL_THREAD_SYNC_NONE
NIXL_THREAD_SYNC_STRICT = nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
NIXL_THREAD_SYNC_RW = nixl_thread_sync_t.NIXL_THREAD_SYNC_RW
NIXL_THREAD_SYNC_DEFAULT = nixl_thread_sync_t.NIXL_THREAD_SYNC_DEFAULT

NIXL_COST_ANALYTICAL_BACKEND = nixl_cost_t.NIXL_COST_ANALYTICAL_BACKEND
NIXL_INIT_AGENT = ""
HAVE_UCX_GPU_DEVICE_API = False
