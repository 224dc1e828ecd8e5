"""The C part of vllm_nixl: agents, handles, descriptor lists, exceptions.

Import these names from vllm_nixl. Every call is thread-safe. Sizes are in
bytes unless stated otherwise.
"""

import enum
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import (
    Any,
    ClassVar,
    Generic,
    Literal,
    Protocol,
    TypeAlias,
    TypeVar,
    final,
    type_check_only,
)

from typing_extensions import Buffer, Self, disjoint_base

__version__: str

features: Mapping[str, bool]
"""What this build of the library contains: http, shared_secret,
signed_metadata, tls, zmq.

Without one of them, the calls that need it raise nixlNotSupportedError. HTTP
requests also need libcurl at run time, which the first one loads.
"""

def _set_search_path(paths: list[str], /) -> None:
    """Set where to search for libraries of Python packages."""

def _load_library(path: str, /) -> None:
    """Load a shared library for good."""

def _choices(given: str, words: tuple[str, ...], /) -> str:
    """Help for a message about an unknown word."""

def _log_flush() -> None:
    """Wait until the log's lines have been passed on."""

def _log_level() -> int | None:
    """The log's level, if the environment has set it, else None."""

def _log_set_level(level: int, /) -> None:
    """Log lines of this level of Python's logging and above."""

class nixl_mem_t(enum.IntEnum):
    """Memory types, by NIXL's numbers."""

    DRAM_SEG = 0
    VRAM_SEG = 1
    BLK_SEG = 2
    OBJ_SEG = 3
    FILE_SEG = 4

class nixl_status_t(enum.IntEnum):
    """The status of a call, by NIXL's numbers; ours begin at -100."""

    NIXL_IN_PROG = 1
    NIXL_SUCCESS = 0
    NIXL_ERR_NOT_POSTED = -1
    NIXL_ERR_INVALID_PARAM = -2
    NIXL_ERR_BACKEND = -3
    NIXL_ERR_NOT_FOUND = -4
    NIXL_ERR_MISMATCH = -5
    NIXL_ERR_NOT_ALLOWED = -6
    NIXL_ERR_REPOST_ACTIVE = -7
    NIXL_ERR_UNKNOWN = -8
    NIXL_ERR_NOT_SUPPORTED = -9
    NIXL_ERR_REMOTE_DISCONNECT = -10
    NIXL_ERR_CANCELED = -11
    NIXL_ERR_NO_TELEMETRY = -12
    NIXL_ERR_TIMEOUT = -100
    NIXL_ERR_NO_MEMORY = -101
    NIXL_ERR_CLOSED = -102

DRAM_SEG: nixl_mem_t
VRAM_SEG: nixl_mem_t
BLK_SEG: nixl_mem_t
OBJ_SEG: nixl_mem_t
FILE_SEG: nixl_mem_t

# -- Exceptions --------------------------------------------------------------

class NixlError(Exception):
    """The base class of all errors of this package.

    status: number of the status, as in NIXL
    peer: name of the peer concerned, or None
    index: the offending row, from 0, or None
    operation: the call that failed, or None
    handles: if a wait raised it, the transfers as lists: 'ended' (without
        error), 'failed' (or cancelled) and 'pending'; else None
    """

    status: int
    peer: str | None
    index: int | None
    operation: str | None
    handles: dict[str, list[nixl_xfer_handle]] | None

class nixlNotPostedError(NixlError):
    """the transfer was not posted"""

class nixlInvalidParamError(NixlError, ValueError):
    """invalid parameter"""

class nixlBackendError(NixlError):
    """the backend failed"""

class nixlNotFoundError(NixlError):
    """not found"""

class nixlMismatchError(NixlError):
    """mismatch"""

class nixlNotAllowedError(NixlError):
    """not allowed"""

class nixlRepostActiveError(NixlError):
    """the transfer is still active"""

class nixlUnknownError(NixlError):
    """unknown error"""

class nixlNotSupportedError(NixlError):
    """not supported"""

class nixlRemoteDisconnectError(NixlError):
    """the peer is gone"""

class nixlCancelledError(NixlError):
    """the transfer was cancelled"""

class nixlNoTelemetryError(NixlError):
    """no telemetry"""

class nixlTimeoutError(NixlError, TimeoutError):
    """timed out

    pending: the same list as handles['pending'] (of a wait only)
    """

    pending: list[nixl_xfer_handle]

class nixlOutOfMemoryError(NixlError):
    """out of memory"""

class nixlClosedError(NixlError):
    """the agent is closed"""

@type_check_only
class _Exports:
    """The buffer protocol, which has these methods from Python 3.12 on."""

    def __buffer__(self, flags: int, /) -> memoryview: ...
    def __release_buffer__(self, buffer: memoryview, /) -> None: ...

# -- Descriptor lists --------------------------------------------------------

class _Device(Protocol):
    @property
    def type(self) -> str: ...
    @property
    def index(self) -> int | None: ...

class _Tensor(Protocol):
    """The members used of a torch tensor."""

    def data_ptr(self) -> int: ...
    def numel(self) -> int: ...
    def element_size(self) -> int: ...
    def is_contiguous(self) -> bool: ...
    @property
    def device(self) -> Any: ...

_MemName: TypeAlias = Literal[
    "DRAM", "VRAM", "BLK", "BLOCK", "OBJ", "FILE", "cpu", "cuda"
]
_MemType: TypeAlias = _MemName | nixl_mem_t | int
_Row: TypeAlias = tuple[int, int, int]
_RegRow: TypeAlias = tuple[int, int, int, str | bytes]
_Tensors: TypeAlias = _Tensor | Sequence[_Tensor]

@final
class nixlXferDList(_Exports):
    """A list of descriptors of one memory type: (address, length, device id).

    type: a memory type, as nixl_mem_t or by name
    descs: rows as tuples, an Nx3 array of uint64 or int64, or tensors; a
        number creates that many rows of zeros, as init_size does;
        nixlInvalidParamError if it is negative or too large

    Always true, also when empty. It exports its rows as a read-only Nx3
    buffer of uint64.
    """

    def __init__(
        self,
        type: _MemType,
        descs: Sequence[_Row] | Buffer | _Tensors | int | None = None,
        init_size: int | None = 0,
    ) -> None: ...
    def append(self, desc: _Row, /) -> None:
        """Add a descriptor at the end."""

    def addDesc(self, desc: _Row, /) -> None:
        """Add a descriptor at the end."""

    def clear(self) -> None:
        """Remove all descriptors."""

    def descCount(self) -> int:
        """The number of descriptors."""

    def isEmpty(self) -> bool:
        """Return whether the list is empty."""

    def getType(self) -> nixl_mem_t:
        """The memory type."""

    def index(self, desc: _Row, /) -> int:
        """The index of the first equal descriptor; nixlNotFoundError."""

    def remDesc(self, index: int, /) -> None:
        """Remove a descriptor; IndexError if the index is out of range."""

    def print(self) -> None:
        """Print the list on stdout."""

    def __getitem__(self, index: int, /) -> _Row: ...
    def __setitem__(self, index: int, desc: _Row, /) -> None: ...
    def __delitem__(self, index: int, /) -> None: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __lt__(self, other: object, /) -> bool: ...
    def __le__(self, other: object, /) -> bool: ...
    def __gt__(self, other: object, /) -> bool: ...
    def __ge__(self, other: object, /) -> bool: ...
    __hash__: ClassVar[None]  # type: ignore[assignment]
    def __copy__(self) -> nixlXferDList: ...
    def __deepcopy__(self, memo: object, /) -> nixlXferDList: ...
    def __getstate__(self) -> bytes:
        """The list in NIXL's serialised form."""

    def __setstate__(self, state: bytes, /) -> None:
        """Restore the state from __getstate__(); nixlMismatchError."""

@final
class nixlRegDList(_Exports):
    """A list of descriptors to register: (address, length, device id, meta
    info).

    The arguments are those of nixlXferDList; meta info is bytes (or str, kept
    as bytes), empty for rows of arrays and for tensors.
    """

    def __init__(
        self,
        type: _MemType,
        descs: Sequence[_RegRow] | Buffer | _Tensors | int | None = None,
        init_size: int | None = 0,
    ) -> None: ...
    def append(self, desc: _RegRow, /) -> None:
        """Add a descriptor at the end."""

    def addDesc(self, desc: _RegRow, /) -> None:
        """Add a descriptor at the end."""

    def clear(self) -> None:
        """Remove all descriptors."""

    def descCount(self) -> int:
        """The number of descriptors."""

    def isEmpty(self) -> bool:
        """Return whether the list is empty."""

    def getType(self) -> nixl_mem_t:
        """The memory type."""

    def index(self, desc: _RegRow, /) -> int:
        """The index of the first descriptor with this address, length and
        device id; nixlNotFoundError."""

    def remDesc(self, index: int, /) -> None:
        """Remove a descriptor; IndexError if the index is out of range."""

    def print(self) -> None:
        """Print the list on stdout."""

    def trim(self) -> nixlXferDList:
        """A copy without meta info."""

    def __getitem__(self, index: int, /) -> tuple[int, int, int, bytes]: ...
    def __setitem__(self, index: int, desc: _RegRow, /) -> None: ...
    def __delitem__(self, index: int, /) -> None: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __lt__(self, other: object, /) -> bool: ...
    def __le__(self, other: object, /) -> bool: ...
    def __gt__(self, other: object, /) -> bool: ...
    def __ge__(self, other: object, /) -> bool: ...
    __hash__: ClassVar[None]  # type: ignore[assignment]
    def __copy__(self) -> nixlRegDList: ...
    def __deepcopy__(self, memo: object, /) -> nixlRegDList: ...
    def __getstate__(self) -> bytes:
        """The list in NIXL's serialised form."""

    def __setstate__(self, state: bytes, /) -> None:
        """Restore the state from __getstate__(); nixlMismatchError."""

@final
class nixlRemoteDList(_Exports):
    """A list of descriptors of peers: (address, length, device id, name of
    the agent).

    The arguments are those of nixlXferDList, without arrays.
    """

    def __init__(
        self,
        type: _MemType,
        descs: Sequence[_RegRow] | int | None = None,
        init_size: int | None = 0,
    ) -> None: ...
    def append(self, desc: _RegRow, /) -> None:
        """Add a descriptor at the end."""

    def addDesc(self, desc: _RegRow, /) -> None:
        """Add a descriptor at the end."""

    def clear(self) -> None:
        """Remove all descriptors."""

    def descCount(self) -> int:
        """The number of descriptors."""

    def isEmpty(self) -> bool:
        """Return whether the list is empty."""

    def getType(self) -> nixl_mem_t:
        """The memory type."""

    def index(self, desc: _RegRow, /) -> int:
        """The index of the first descriptor with this address, length and
        device id; nixlNotFoundError."""

    def remDesc(self, index: int, /) -> None:
        """Remove a descriptor; IndexError if the index is out of range."""

    def print(self) -> None:
        """Print the list on stdout."""

    def __getitem__(self, index: int, /) -> tuple[int, int, int, str]: ...
    def __setitem__(self, index: int, desc: _RegRow, /) -> None: ...
    def __delitem__(self, index: int, /) -> None: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...
    def __lt__(self, other: object, /) -> bool: ...
    def __le__(self, other: object, /) -> bool: ...
    def __gt__(self, other: object, /) -> bool: ...
    def __ge__(self, other: object, /) -> bool: ...
    __hash__: ClassVar[None]  # type: ignore[assignment]
    def __copy__(self) -> nixlRemoteDList: ...
    def __deepcopy__(self, memo: object, /) -> nixlRemoteDList: ...

# -- Handles -----------------------------------------------------------------

@final
class nixl_xfer_handle:
    """A transfer, created by make_prepped_xfer() or initialize_xfer().

    It keeps its agent alive. It is freed when it is garbage collected, or at
    once by `with handle:` and release(). It compares by identity.
    """

    def release(self) -> None:
        """Free the transfer; calling it again does nothing.

        A transfer in progress is stopped first. If the backend cannot stop it
        now, an exception is raised and the handle stays valid.
        """

    def result(self, timeout: float | None = None) -> nixlXferTelemetry:
        """Wait until it has ended; return its telemetry or raise its error.

        timeout: in seconds; None: no limit

        Raises the errors of wait(). Other threads run meanwhile; Ctrl-C ends
        the wait.
        """

    def __enter__(self) -> Self: ...
    def __exit__(self, *args: object) -> None: ...

@final
class nixl_prepped_dlist_handle:
    """A prepared list, created by prep_xfer_dlist().

    It keeps its agent alive. It is freed when it is garbage collected, or at
    once by `with handle:` and release(). It compares by identity.
    """

    def release(self) -> None:
        """Free the list; calling it again does nothing. Transfers created
        from it continue."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *args: object) -> None: ...

@final
class nixlXferTelemetry:
    """Telemetry of one transfer, returned by get_xfer_telemetry()."""

    @property
    def startTime(self) -> int:
        """Time of the last post, in microseconds since the epoch."""

    @property
    def postDuration(self) -> int:
        """Time in transfer(), in microseconds."""

    @property
    def xferDuration(self) -> int:
        """From the post to the end, in microseconds; 0 while in progress."""

    @property
    def totalBytes(self) -> int:
        """Bytes of all descriptors."""

    @property
    def descCount(self) -> int:
        """Number of descriptors requested."""

    @property
    def mergedCount(self) -> int:
        """Number of pieces moved, after merging neighbours."""

# -- Memory ------------------------------------------------------------------

@final
class shared_buffer(_Exports):
    """Zeroed memory that peers on this host can map, so that the kernel need
    not copy it.

    A writable buffer of bytes. memoryview(), numpy.frombuffer() and
    torch.frombuffer() use it without a copy and keep it alive. Deregister it
    before it is garbage collected.

    nbytes: its size, above 0
    """

    def __new__(cls, nbytes: int) -> Self: ...
    @property
    def address(self) -> int:
        """Its address."""

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""

    def __len__(self) -> int: ...

# -- Side channel ------------------------------------------------------------

class nixlAlreadyRunningError(nixlNotAllowedError, RuntimeError):
    """the listener cannot be started: it is running already"""

_Key: TypeAlias = str | bytes | tuple[int, ...] | None
_Metadata: TypeAlias = Buffer | Mapping[_Key, Buffer]
_Peer: TypeAlias = tuple[str, int] | tuple[str, int, _Key]
_Rows: TypeAlias = nixlXferDList | Sequence[_Row] | Buffer | _Tensors
_Attached: TypeAlias = tuple[
    str, dict[str, tuple[nixl_prepped_dlist_handle, nixlXferDList]]
]
_T = TypeVar("_T")

@disjoint_base
class SideChannel:
    """A small server and client that exchange metadata.

    The common part of TcpSideChannel, ZmqSideChannel and HttpSideChannel.
    """

    def start_listener(
        self,
        port: int | None,
        metadata: _Metadata,
        host: str | Sequence[str] | None = None,
    ) -> int:
        """Serve metadata. Returns the port; 0 binds a free one.

        port: None is VLLM_NIXL_SIDE_CHANNEL_PORT, or 5600
        metadata: bytes, or a mapping from key to bytes; '' or None is the
            default key, (0, 1) the same as '0,1'
        host: an address, a name, an interface, or several; None or '' is
            VLLM_NIXL_SIDE_CHANNEL_HOST, or every address of the machine
        """

    def set_metadata(self, metadata: _Metadata, key: _Key = None) -> None:
        """Replace the served metadata while the listener runs."""

    def remove_metadata(self, key: _Key = None) -> None:
        """Stop serving metadata under the key."""

    def advertised_address(self, peer: str | None = None) -> tuple[str, int]:
        """The host and port of the running listener, for peers."""

    def request_metadata(
        self,
        host: str,
        port: int,
        timeout_ms: int = 5000,
        *,
        key: _Key = None,
        retries: int | None = 0,
    ) -> bytes:
        """Fetch the metadata served by the listener at host:port.

        timeout_ms limits the whole exchange. Other threads run meanwhile.
        retries: further attempts while the peer is not there; None: until the
            timeout
        """

    def request_many(
        self,
        peers: Iterable[_Peer],
        timeout_ms: int = 5000,
        *,
        retries: int | None = 0,
    ) -> list[bytes | Exception]:
        """Request metadata from many peers at once, on the calling thread.

        Returns, for each peer in the same order, the bytes or the exception
        that request_metadata() would have raised.
        """

    def _begin(
        self,
        peers: Iterable[_Peer],
        timeout_ms: int = 5000,
        *,
        retries: int | None = 0,
    ) -> SideChannelRequests[bytes]: ...
    def _attach(
        self,
        agent: Agent,
        host: str,
        port: int,
        timeout_ms: int,
        retries: int | None,
    ) -> _Attached: ...
    def _begin_attach(
        self,
        agent: Agent,
        host: str,
        port: int,
        timeout_ms: int,
        retries: int | None,
    ) -> SideChannelRequests[_Attached]: ...
    def _publish(
        self,
        agent: Agent,
        rows: Mapping[str, _Rows],
        port: int | None,
        host: str | Sequence[str] | None,
        mem_type: _MemType,
    ) -> int: ...
    def shutdown(self) -> None:
        """Stop serving and free the port, without waiting for clients."""

    def is_running(self) -> bool:
        """Return whether the listener is running."""

    def stats(self) -> dict[str, Any]:
        """Counters of the listener since its creation."""

    @property
    def port(self) -> int:
        """The port of the listener; 0 when not running."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *args: object) -> None: ...

class TcpSideChannel(SideChannel):
    """A side channel over TCP."""

    def __new__(
        cls,
        *,
        max_frame: int | None = None,
        max_connections: int | None = None,
        client_timeout_ms: int | None = None,
        idle_timeout_ms: int | None = None,
        max_rate: int | None = None,
        tls: bool = False,
        tls_certificate: str | PathLike[str] | None = None,
        tls_key: str | PathLike[str] | None = None,
        tls_ca: str | PathLike[str] | None = None,
        tls_name: str | None = None,
        secret: str | None = None,
        advertise: str | None = None,
    ) -> Self: ...

class ZmqSideChannel(SideChannel):
    """A side channel over ZeroMQ, compatible with vLLM."""

    def __new__(
        cls,
        *,
        max_frame: int | None = None,
        max_connections: int | None = None,
        client_timeout_ms: int | None = None,
        idle_timeout_ms: int | None = None,
        max_rate: int | None = None,
        tls: bool = False,
        tls_certificate: str | PathLike[str] | None = None,
        tls_key: str | PathLike[str] | None = None,
        tls_ca: str | PathLike[str] | None = None,
        tls_name: str | None = None,
        secret: str | None = None,
        advertise: str | None = None,
    ) -> Self: ...

class HttpSideChannel(SideChannel):
    """A side channel over HTTP."""

    def __new__(
        cls,
        *,
        max_frame: int | None = None,
        max_connections: int | None = None,
        client_timeout_ms: int | None = None,
        idle_timeout_ms: int | None = None,
        max_rate: int | None = None,
        tls: bool = False,
        tls_certificate: str | PathLike[str] | None = None,
        tls_key: str | PathLike[str] | None = None,
        tls_ca: str | PathLike[str] | None = None,
        tls_name: str | None = None,
        secret: str | None = None,
        advertise: str | None = None,
    ) -> Self: ...

@final
class SideChannelRequests(Generic[_T]):
    """Requests of a side channel in progress, for event loops."""

    def fileno(self) -> int:
        """A descriptor that is readable when step() has work."""

    def step(self) -> int:
        """Do the work that needs no waiting; return how many are open."""

    def take(self) -> list[_T | Exception]:
        """Return the results when none is open, as request_many()."""

# -- Agent -------------------------------------------------------------------

_Engine: TypeAlias = Literal["auto", "native", "nixl"]
_Operation: TypeAlias = Literal["READ", "WRITE"]
_Name: TypeAlias = str | bytes
_Message: TypeAlias = Buffer | str
_Indices: TypeAlias = Sequence[int] | Buffer

@disjoint_base
class Agent:
    """A named endpoint that owns regions, peers, transfers and notifications.

    The base of NixlAgent.

    agent_name: str or bytes, not empty
    engine: 'auto' (None), 'native' or 'nixl'
    num_threads: copy threads per transfer; 0: one per core, at most 4
    notif_bytes_max: most bytes of pending notifications; above it the oldest
        is dropped; 0: 256 MiB
    backends: backends that will be created, so that 'auto' chooses an engine
        that has all of them
    metadata_secret: str or bytes; signs our metadata, and only metadata
        signed with it is loaded; None: VLLM_NIXL_METADATA_SECRET

    nixlInvalidParamError for a number out of range, RuntimeError if
    __init__() was called before.
    """

    name: str
    """The name of the agent."""

    plugin_list: list[str]
    """The backends that can be created; before the first one, those of all
    engines that may be chosen."""

    notifs: dict[str, list[bytes]]
    """The notifications collected by update_notifs() and
    check_remote_xfer_done()."""

    @property
    def backends(self) -> dict[str, int]:
        """The created backends: name to number."""

    @property
    def engine(self) -> str | None:
        """'native' or 'nixl'; None before the first backend."""

    @property
    def listen_port(self) -> int:
        """The port of the metadata listener; 0 when it does not listen."""

    @property
    def closed(self) -> bool:
        """Whether close() was called."""

    def __init__(
        self,
        agent_name: _Name,
        *,
        engine: _Engine | None = None,
        num_threads: int = 0,
        notif_bytes_max: int = 0,
        backends: list[str] | None = None,
        metadata_secret: str | bytes | None = None,
    ) -> None: ...
    def close(self) -> None:
        """Stop the agent's work for good.

        Transfers in flight end as cancelled, waiters raise nixlClosedError,
        peers see the agent leave, its thread ends; later calls raise
        nixlClosedError. Calling it again does nothing.
        """

    def __enter__(self) -> Self: ...
    def __exit__(self, *args: object) -> None: ...

    # Backends

    def create_backend(
        self, backend: str, initParams: dict[str, str] = {}
    ) -> None:
        """Create a backend; the first one chooses the engine.

        nixlNotFoundError for an unknown name, nixlNotAllowedError if it
        exists.
        """

    def get_plugin_list(self) -> list[str]:
        """Names of the backends that can be created."""

    def get_plugin_mem_types(self, backend: str) -> list[str]:
        """Memory types of a plugin, as 'DRAM_SEG'; nixlNotFoundError."""

    def get_plugin_params(self, backend: str) -> dict[str, str]:
        """Parameters of a plugin with their defaults; nixlNotFoundError."""

    def get_backend_mem_types(self, backend: str) -> list[str]:
        """Memory types of a created backend; nixlNotFoundError."""

    def get_backend_params(self, backend: str) -> dict[str, str]:
        """Parameters of a created backend; nixlNotFoundError."""

    # Memory

    def get_reg_descs(
        self,
        descs: nixlRegDList | Sequence[_RegRow] | Buffer | _Tensors,
        mem_type: _MemType | None = None,
    ) -> nixlRegDList:
        """A nixlRegDList from 4-tuples, a C-contiguous Nx3 array of uint64 or
        int64, tensors, or such a list.

        mem_type: 'DRAM', 'VRAM', 'BLK', 'OBJ', 'FILE', 'cpu', 'cuda' or a
            member of nixl_mem_t; needed for tuples and arrays

        TypeError, ValueError (naming the row) or KeyError (memory type).
        """

    def get_xfer_descs(
        self,
        descs: nixlXferDList | Sequence[_Row] | Buffer | _Tensors,
        mem_type: _MemType | None = None,
    ) -> nixlXferDList:
        """A nixlXferDList from 3-tuples, a C-contiguous Nx3 array of uint64
        or int64, tensors, or such a list. As get_reg_descs()."""

    def get_remote_descs(
        self,
        descs: nixlRemoteDList | Sequence[_RegRow],
        mem_type: _MemType | None = None,
    ) -> nixlRemoteDList:
        """A nixlRemoteDList from tuples (address, length, device id, name of
        the agent). As get_reg_descs()."""

    def register_memory(
        self,
        reg_list: nixlRegDList | Sequence[_RegRow] | Buffer | _Tensors,
        mem_type: _MemType | None = None,
        backends: Sequence[str] = [],
    ) -> nixlRegDList:
        """Register memory; all of it or none.

        The memory is borrowed: keep it until it is deregistered. Memory
        registered twice must be deregistered twice. nixlInvalidParamError
        (naming the row) for DRAM whose first or last page is not mapped; a
        range that is only reserved (PROT_NONE) counts as mapped.
        """

    def deregister_memory(
        self, dereg_list: nixlRegDList, backends: Sequence[str] = []
    ) -> None:
        """Deregister a list returned by register_memory(); all of it or none.

        nixlNotFoundError (naming the row) for memory that is not registered.
        """

    def query_memory(
        self,
        reg_list: nixlRegDList | Sequence[tuple[int, int, int, str | bytes]],
        backend: str,
        mem_type: _MemType | None = None,
    ) -> list[dict[str, str] | None]:
        """Get a storage backend's information about files or objects.

        Args:
            reg_list: As for register_memory(); the fourth value of each row
                is the path or key to look up.
            backend: Its name.
            mem_type: "FILE", "OBJ", ... unless it is in reg_list.

        Returns a list with a dict for each row that exists ("size",
        "mtime", ...; str to str), and None for one that does not.
        nixlNotSupportedError if the backend has no storage.
        """

    # Metadata and peers

    def get_agent_metadata(self) -> bytes:
        """The agent's current metadata: everything that a peer needs."""

    def get_partial_agent_metadata(
        self,
        descs: nixlRegDList,
        inc_conn_info: bool = False,
        backends: Sequence[str] = [],
    ) -> bytes:
        """Metadata of the given regions only; if empty, connection data."""

    def add_remote_agent(self, metadata: Buffer) -> bytes:
        """Load a peer's metadata. Returns its name.

        Loading it again updates the peer's regions; a restarted peer replaces
        the old one. nixlMismatchError if the bytes are not valid metadata,
        nixlInvalidParamError for the agent's own, nixlBackendError if the
        peer cannot be reached.
        """

    def remove_remote_agent(self, agent: _Name) -> None:
        """Forget a peer; an unknown peer is not an error."""

    def check_remote_metadata(
        self, agent: _Name, descs: nixlXferDList | None = None
    ) -> bool:
        """Return whether the peer is known and has all these descriptors."""

    def make_connection(
        self, remote_agent: _Name, backends: Sequence[str] = []
    ) -> None:
        """Connect now instead of at the first transfer."""

    # Metadata listener

    def _listen(self, host: str, port: int, max_frame: int) -> None: ...
    def send_local_metadata(self, ip_addr: str = "", port: int = 8888) -> None:
        """Send the agent's current metadata to a peer's listener.

        ip_addr: an address or a name; '' means a central metadata server,
            which is not supported

        Returns at once. NIXL's protocol has no answers: later failures are
        logged, counted in stats() and shown by describe().
        """

    def send_partial_agent_metadata(
        self,
        descs: nixlRegDList,
        inc_conn_info: bool = False,
        backends: Sequence[str] = [],
        ip_addr: str = "",
        port: int = 8888,
        label: str = "",
    ) -> None:
        """send_local_metadata() of the given regions only."""

    def fetch_remote_metadata(
        self,
        remote_agent: _Name,
        ip_addr: str = "",
        port: int = 8888,
        label: str = "",
    ) -> None:
        """Request metadata from a peer's listener; load it when it arrives.

        remote_agent: the expected agent; another one is loaded too, with a
            warning

        Returns at once; check_remote_metadata() shows when it is loaded.
        """

    def invalidate_local_metadata(
        self, ip_addr: str = "", port: int = 8888
    ) -> None:
        """Make a peer's listener forget this agent."""

    # Prepared lists

    def prep_xfer_dlist(
        self,
        agent_name: _Name,
        xfer_list: nixlXferDList | Sequence[_Row] | Buffer | _Tensors,
        mem_type: _MemType | None = None,
        backends: Sequence[str] = [],
    ) -> nixl_prepped_dlist_handle:
        """Check descriptors once, for use by index.

        agent_name: '' or 'NIXL_INIT_AGENT' for the local side, otherwise the
            peer; with the agent's own name, the agent is its own remote side
        xfer_list: as for get_xfer_descs(), or a C-contiguous Nx5 array of
            uint64 or int64: address, length, device id, stride, count

        Other threads run meanwhile. nixlNotFoundError and
        nixlInvalidParamError name the first row that is not in a registered
        region.
        """

    def release_dlist_handle(self, handle: nixl_prepped_dlist_handle) -> None:
        """Free a prepared list; calling it again does nothing."""

    # Transfers

    def make_prepped_xfer(
        self,
        operation: _Operation,
        local_xfer_side: nixl_prepped_dlist_handle,
        local_indices: _Indices,
        remote_xfer_side: nixl_prepped_dlist_handle,
        remote_indices: _Indices,
        notif_msg: _Message = b"",
        backends: Sequence[str] = [],
        skip_desc_merge: bool = False,
    ) -> nixl_xfer_handle:
        """Create a transfer from rows of prepared lists.

        operation: 'READ' (remote to local) or 'WRITE'
        local_indices, remote_indices: lists of int or 1-D arrays of any
            integer type, of equal length
        notif_msg: sent to the peer when the data has arrived; empty: none

        nixlInvalidParamError names the offending row.
        """

    def initialize_xfer(
        self,
        operation: _Operation,
        local_descs: nixlXferDList,
        remote_descs: nixlXferDList,
        remote_agent: _Name,
        notif_msg: _Message = b"",
        backends: Sequence[str] = [],
    ) -> nixl_xfer_handle:
        """Create a transfer from descriptors, row by row."""

    def transfer(
        self,
        handle: nixl_xfer_handle,
        notif_msg: _Message = b"",
        *,
        timeout: float | None = None,
    ) -> str:
        """Start a transfer, or start it again: 'DONE' or 'PROC'.

        A transfer that has not ended after `timeout` seconds is stopped and
        fails with nixlTimeoutError, if the backend can stop it. The call
        takes about 50 us at most. nixlRepostActiveError while the transfer
        is in progress, nixlRemoteDisconnectError if the peer is gone.
        """

    def check_xfer_state(self, handle: nixl_xfer_handle) -> str:
        """'DONE' or 'PROC'; a failed transfer raises its error."""

    def cancel(self, handle: nixl_xfer_handle) -> bool:
        """Stop a transfer; False: it had ended. No byte moves afterwards."""

    def release_xfer_handle(self, handle: nixl_xfer_handle) -> None:
        """Free a transfer; one in progress is stopped first."""

    def get_xfer_telemetry(
        self, handle: nixl_xfer_handle
    ) -> nixlXferTelemetry:
        """Telemetry of a transfer; nixlNotPostedError if never posted."""

    def query_xfer_backend(self, handle: nixl_xfer_handle) -> str:
        """Name of the backend that the transfer uses."""

    def estimate_xfer_cost(
        self, req_handle: nixl_xfer_handle
    ) -> tuple[int, int, str]:
        """Duration and error margin in microseconds, and the method."""

    # Waiting

    def check_xfer_states(
        self, handles: nixl_xfer_handle | Iterable[nixl_xfer_handle]
    ) -> list[str]:
        """'DONE', 'PROC' or 'ERR' for each; 'ERR': see check_xfer_state()."""

    def wait(
        self,
        handles: nixl_xfer_handle | Iterable[nixl_xfer_handle],
        timeout: float | None = None,
        any_of: bool = False,
        check: bool = True,
    ) -> list[nixl_xfer_handle]:
        """Sleep until all (or any) have ended; return those that have.

        timeout: in seconds; None: no limit
        check: raise the error of a failed or cancelled transfer at once (of
            the first one in the given order); otherwise such a transfer
            counts as ended

        Other threads run meanwhile; Ctrl-C ends the wait. nixlTimeoutError;
        nixlNotPostedError, also with check=False; nixlClosedError. They have
        .handles (see NixlError).
        """

    def fileno(self) -> int:
        """An eventfd, readable if a transfer ended or a notification arrived
        since the last get_new_notifs(), check_xfer_states(), wait() or
        result()."""

    def _is_over(
        self,
        handles: nixl_xfer_handle | Iterable[nixl_xfer_handle],
        any_of: bool,
        check: bool,
    ) -> bool: ...
    def _subscribe(self) -> int: ...
    def _unsubscribe(self, fd: int) -> None: ...

    # Notifications

    def get_new_notifs(
        self, backends: Sequence[str] = []
    ) -> dict[str, list[bytes]]:
        """Take all received notifications, by sender."""

    def update_notifs(
        self, backends: Sequence[str] = []
    ) -> dict[str, list[bytes]]:
        """Add the received notifications to .notifs; return .notifs."""

    def check_remote_xfer_done(
        self,
        remote_agent_name: _Name,
        lookup_tag: _Message,
        backends: Sequence[str] = [],
        tag_is_prefix: bool = True,
    ) -> bool:
        """update_notifs(), then remove the first message of that peer that
        begins with the tag (or contains it). True if there was one."""

    def send_notif(
        self,
        remote_agent_name: _Name,
        notif_msg: _Message,
        backend: str | None = None,
    ) -> None:
        """Send a notification without a transfer."""

    def _next_notif(self) -> tuple[str, bytes] | None: ...

    # Inspection

    def describe(self, peer: _Name | None = None) -> dict[str, Any]:
        """Describe the agent or a peer. docs/telemetry.md lists the keys."""

    def stats(self) -> dict[str, Any]:
        """Counters of the agent. docs/telemetry.md lists the keys."""

    def peers(self) -> dict[str, dict[str, Any]]:
        """State and counters of each loaded peer, by name."""
