"""A reimplementation of NIXL's agent: moves KV cache between processes and
hosts.

    from vllm_nixl import NixlAgent, nixl_agent_config

NixlAgent has the whole API of NIXL's nixl_agent (both names exist), and in
addition publish(), attach(), wait(), wait_async(), check_xfer_states(),
cancel(), notifications(), describe() and the side channel.  install() replaces
`nixl` by this package for programs that import `nixl`.

Importing this starts no thread, opens no library, and imports neither numpy
nor torch nor asyncio.
"""

from ._agent import NixlAgent, nixl_agent
from ._aliases import install, uninstall
from ._config import (
    DEFAULT_COMM_PORT,
    nixl_agent_config,
    nixl_thread_sync_t,
    set_log_level,
)
from ._core import (
    NixlError,
    __version__,
    features,
    nixl_mem_t,
    nixl_prepped_dlist_handle,
    nixl_xfer_handle,
    nixlBackendError,
    nixlCancelledError,
    nixlClosedError,
    nixlInvalidParamError,
    nixlMismatchError,
    nixlNotAllowedError,
    nixlNoTelemetryError,
    nixlNotFoundError,
    nixlNotPostedError,
    nixlNotSupportedError,
    nixlOutOfMemoryError,
    nixlRegDList,
    nixlRemoteDisconnectError,
    nixlRemoteDList,
    nixlRepostActiveError,
    nixlTimeoutError,
    nixlUnknownError,
    nixlXferDList,
    nixlXferTelemetry,
    shared_buffer,
)
from ._publish import Peer
from ._side_channel import HttpSideChannel, TcpSideChannel, ZmqSideChannel

__all__ = [
    "DEFAULT_COMM_PORT",
    "HttpSideChannel",
    "NixlAgent",
    "NixlError",
    "Peer",
    "TcpSideChannel",
    "ZmqSideChannel",
    "__version__",
    "features",
    "install",
    "nixlBackendError",
    "nixlCancelledError",
    "nixlClosedError",
    "nixlInvalidParamError",
    "nixlMismatchError",
    "nixlNoTelemetryError",
    "nixlNotAllowedError",
    "nixlNotFoundError",
    "nixlNotPostedError",
    "nixlNotSupportedError",
    "nixlOutOfMemoryError",
    "nixlRegDList",
    "nixlRemoteDList",
    "nixlRemoteDisconnectError",
    "nixlRepostActiveError",
    "nixlTimeoutError",
    "nixlUnknownError",
    "nixlXferDList",
    "nixlXferTelemetry",
    "nixl_agent",
    "nixl_agent_config",
    "nixl_mem_t",
    "nixl_prepped_dlist_handle",
    "nixl_thread_sync_t",
    "nixl_xfer_handle",
    "set_log_level",
    "shared_buffer",
    "uninstall",
]
