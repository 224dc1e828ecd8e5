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
    """The base class of the errors of agents and side channels.

    status: number of the status, as in NIXL
    peer: name of the peer concerned, or None
    index: the offending row, from 0, or None
    operation: the call that failed, or None
    handles: if a wait raised it, the transfers as lists: 'ended' (without
        error), 'failed' (or cancelled) and 'pending'; otherwise None. A copy
        of the error, such as a process pool passes on, has None
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

    pending: the same list as handles['pending'] (of a wait only, and not in a
        copy)
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

    Always true, also when empty. It exports its rows as a read-only Nx3 buffer
    of uint64.
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

    The arguments are those of nixlXferDList, with 4-tuples. Meta info is a
    path or a key for storage backends: bytes (or str, kept as bytes), empty
    for rows of arrays and for tensors.
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
    """A list of descriptors of peers: (address, length, device id, name of the
    agent).

    The arguments are those of nixlXferDList, with 4-tuples and without arrays,
    which raise TypeError.
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

        A transfer in progress is stopped first, as by cancel(): no byte moves
        afterwards. If it cannot be stopped, an exception is raised and the
        handle stays valid.
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
        """Free the list; calling it again does nothing. Transfers created from
        it continue."""

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
        metadata: bytes (copied), or a mapping from key to bytes. A key is a
            str, bytes, or a tuple of ints such as (pp_rank, tp_rank): (0, 1)
            is the same as '0,1'. '' or None is the default key, for requests
            that name none
        host: an address, a name, an interface ('eth0'), or several, in a list
            or with commas; None or '' is VLLM_NIXL_SIDE_CHANNEL_HOST, or every
            address of the machine, IPv6 and IPv4

        nixlNotAllowedError, which is also a RuntimeError here, if it is
        running; nixlBackendError if the address is in use.
        """

    def set_metadata(self, metadata: _Metadata, key: _Key = None) -> None:
        """Replace the served metadata while the listener runs.

        metadata: bytes for `key`, or a mapping from key to bytes; other keys
            stay
        key: as for start_listener()

        nixlNotAllowedError if it is not running.
        """

    def remove_metadata(self, key: _Key = None) -> None:
        """Stop serving metadata under the key.

        nixlNotFoundError if nothing is served there, nixlNotAllowedError if
        the listener is not running.
        """

    def advertised_address(self, peer: str | None = None) -> tuple[str, int]:
        """The host and port of the running listener, for peers.

        peer: the host that will connect; a warning is logged if it is another
            host and the address is a loopback address

        The host is `advertise`, VLLM_NIXL_SIDE_CHANNEL_HOST, the one that was
        bound, or the machine's first address that is not loopback.
        """

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

        timeout_ms: limit for the whole exchange: name look-up, connecting to
            each address, TLS, sending, receiving, further attempts
        key: a str, bytes, or a tuple of ints; None: the default key
        retries: further attempts while nobody listens, or if the connection
            breaks; None: until the timeout

        Other threads run meanwhile; Ctrl-C ends the wait. nixlTimeoutError
        after the timeout, nixlNotFoundError for an unknown name or key,
        nixlNotAllowedError if the secrets differ or a certificate is not
        trusted, nixlMismatchError for a reply above max_frame,
        nixlBackendError for everything else that fails.
        """

    def request_many(
        self,
        peers: Iterable[_Peer],
        timeout_ms: int = 5000,
        *,
        retries: int | None = 0,
    ) -> list[bytes | Exception]:
        """Request metadata from many peers at once, on the calling thread.

        peers: an iterable of (host, port) or (host, port, key)
        timeout_ms, retries: of each request, as for request_metadata()

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
        """Stop serving and free the port, without waiting for clients. Does
        nothing if the listener is not running."""

    def is_running(self) -> bool:
        """Return whether the listener is running."""

    def stats(self) -> dict[str, Any]:
        """Counters of the listener since its creation:

        - accepted: connections that were accepted
        - served: replies that were sent completely
        - refused: clients that were refused for what they sent; refusals: the
          same by reason (a dict)
        - timed_out: clients that did not end within client_timeout_ms, or were
          idle for too long
        - evicted: connections that were closed to make room for a new one
        - open: connections now
        - bytes_received, bytes_sent
        - latency: replies by the time that they took (a list): [0] below 1 us,
          [i] from `2**(i-1)` to `2**i` us
        """

    @property
    def port(self) -> int:
        """The port of the listener; 0 when not running."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *args: object) -> None: ...

class TcpSideChannel(SideChannel):
    """A side channel over TCP.

    The listener has one thread for all clients; one that is slow, silent or
    misbehaves costs only its own connection. Every method may be called from
    any thread.

    Options:

    - max_frame: most bytes of a blob that is accepted or served; None: 256 MiB
    - max_connections: at once; a new one replaces the one that has been idle
      longest; None: 4096, or what the process may open
    - client_timeout_ms: limit for a client's whole exchange, at the listener;
      None: 5000
    - idle_timeout_ms: limit for a client that neither sends nor receives; at
      most, and None: client_timeout_ms
    - max_rate: new connections per second from one address; None: no limit
    - tls: use TLS; each of the next four, if given, implies it
    - tls_certificate, tls_key: PEM files, for listening
    - tls_ca: a PEM file with the authorities that requests trust; None: the
      system's
    - tls_name: the name that requests expect in the certificate; None: the
      host
    - secret: shared by all that may exchange metadata, the key of TLS instead
      of the tls options; None: VLLM_NIXL_SIDE_CHANNEL_SECRET
    - advertise: the host that advertised_address() returns
    """

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
    """A side channel over ZeroMQ, compatible with vLLM.

    The options are those of TcpSideChannel. But vLLM's protocol has neither
    TLS nor secrets: with one of them, listening and requests raise
    nixlNotSupportedError; so does the constructor if this build lacks ZeroMQ.
    """

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
    """A side channel over HTTP.

    The options are those of TcpSideChannel. But the secret is a bearer token,
    which is sent only over TLS or on loopback. nixlNotSupportedError if this
    build lacks HTTP.
    """

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

    The base of NixlAgent. Every method may be called from any thread at any
    time.

    agent_name: str or bytes, not empty
    engine: 'auto' (None), 'native' or 'nixl'
    num_threads: copy threads per transfer, and UCX workers; 0: one per core,
        at most 4; more than 16 count as 16
    notif_bytes_max: most bytes of pending notifications; above it the oldest
        is dropped; 0: 256 MiB
    backends: backends that will be created, so that 'auto' chooses an engine
        that has all of them
    metadata_secret: str or bytes; signs our metadata, and only metadata signed
        with it is loaded; None: VLLM_NIXL_METADATA_SECRET

    nixlInvalidParamError for a number out of range, RuntimeError if __init__()
    was called before.
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
        peers see the agent leave, its threads end; later calls raise
        nixlClosedError. Calling it again only waits for a thread that is
        closing the agent.

        It takes milliseconds, unless peers do not answer: it waits up to 2 s
        for peers that are copying memory of the agent, up to 2 s for queued
        notifications to be sent, up to 2 s for peers to unmap GPU memory, up
        to 1 s for commands of the metadata listener, and for transfers in
        flight as cancel() does. The engine nixl waits up to 5 s for transfers
        in flight. Other threads run meanwhile.
        """

    def __enter__(self) -> Self: ...
    def __exit__(self, *args: object) -> None: ...

    # Backends

    def create_backend(
        self, backend: str, initParams: dict[str, str] = {}
    ) -> None:
        """Create a backend; the first one chooses the engine.

        backend: a name of get_plugin_list()
        initParams: its parameters

        nixlNotFoundError for an unknown name, or if the engine cannot change
        any more; nixlNotAllowedError if it exists.
        """

    def get_plugin_list(self) -> list[str]:
        """Names of the backends that can be created."""

    def get_plugin_mem_types(self, backend: str) -> list[str]:
        """Names of the memory types of a plugin, such as 'DRAM_SEG';
        nixlNotFoundError for an unknown plugin."""

    def get_plugin_params(self, backend: str) -> dict[str, str]:
        """Parameters of a plugin with their defaults; nixlNotFoundError for an
        unknown plugin."""

    def get_backend_mem_types(self, backend: str) -> list[str]:
        """Names of the memory types of a created backend; nixlNotFoundError
        for one that was not created."""

    def get_backend_params(self, backend: str) -> dict[str, str]:
        """Parameters of a created backend; nixlNotFoundError for one that was
        not created."""

    # Memory

    def get_reg_descs(
        self,
        descs: nixlRegDList | Sequence[_RegRow] | Buffer | _Tensors,
        mem_type: _MemType | None = None,
    ) -> nixlRegDList:
        """A nixlRegDList from one of these:

        - a list of tuples (address, length, device id, meta info), the last
          one a str or bytes
        - a C-contiguous Nx3 array of uint64 or int64 (address, length, device
          id): anything with the buffer protocol
        - a contiguous tensor, or a list of tensors of one device
        - a nixlRegDList, which is returned as it is

        descs: one of these; lengths in bytes
        mem_type: 'DRAM', 'VRAM', 'BLK', 'OBJ', 'FILE', 'cpu', 'cuda' or a
            member of nixl_mem_t; needed for tuples and arrays

        TypeError, ValueError (naming the row) or KeyError (memory type).
        """

    def get_xfer_descs(
        self,
        descs: nixlXferDList | Sequence[_Row] | Buffer | _Tensors,
        mem_type: _MemType | None = None,
    ) -> nixlXferDList:
        """A nixlXferDList from one of these:

        - a list of tuples (address, length, device id)
        - a C-contiguous Nx3 array of uint64 or int64, as for get_reg_descs()
        - a contiguous tensor, or a list of tensors of one device
        - a nixlXferDList, which is returned as it is

        descs: one of these; lengths in bytes
        mem_type: as for get_reg_descs()

        TypeError, ValueError (naming the row) or KeyError (memory type).
        """

    def get_remote_descs(
        self,
        descs: nixlRemoteDList | Sequence[_RegRow],
        mem_type: _MemType | None = None,
    ) -> nixlRemoteDList:
        """A nixlRemoteDList from a list of tuples (address, length, device id,
        name of the agent), or from a nixlRemoteDList, which is returned as it
        is.

        mem_type: as for get_reg_descs()

        TypeError, ValueError (naming the row) or KeyError (memory type).
        """

    def register_memory(
        self,
        reg_list: nixlRegDList | Sequence[_RegRow] | Buffer | _Tensors,
        mem_type: _MemType | None = None,
        backends: Sequence[str] = [],
    ) -> nixlRegDList:
        """Register memory; all of it or none. Returns the nixlRegDList.

        reg_list, mem_type: as for get_reg_descs()
        backends: names of backends; empty: all

        The memory is borrowed: keep it until it is deregistered. Memory
        registered twice must be deregistered twice. nixlInvalidParamError
        (naming the row) for DRAM whose first or last page is not mapped; a
        range that is only reserved (PROT_NONE) counts as mapped.
        """

    def deregister_memory(
        self, dereg_list: nixlRegDList, backends: Sequence[str] = []
    ) -> None:
        """Deregister a list returned by register_memory(); all of it or none.

        dereg_list: a nixlRegDList with the same ranges
        backends: names of backends; empty: all

        Transfers in flight on the memory are stopped, as by cancel(), and
        fail; so do those that are posted later. It waits up to 2 s for peers
        of this host that are copying the memory, and up to 2 s for peers that
        have mapped GPU memory; the engine nixl, which cannot stop transfers,
        waits up to 5 s for them. Then nothing on this host touches the memory
        any more; if something may, a warning is logged. Other threads run
        meanwhile.

        nixlNotFoundError (naming the row) for memory that is not registered.
        """

    def query_memory(
        self,
        reg_list: nixlRegDList | Sequence[tuple[int, int, int, str | bytes]],
        backend: str,
        mem_type: _MemType | None = None,
    ) -> list[dict[str, str] | None]:
        """Ask a storage backend about files or objects.

        reg_list: as for register_memory(); the fourth value of each row is the
            path or key to look up
        backend: its name
        mem_type: 'FILE', 'OBJ', ... unless it is in reg_list

        Returns a list with a dict for each row that exists ('size', 'mtime',
        ...; str to str), and None for one that does not. nixlNotSupportedError
        if the backend has no storage.
        """

    # Metadata and peers

    def get_agent_metadata(self) -> bytes:
        """The agent's current metadata: everything that a peer needs to reach
        its registered memory."""

    def get_partial_agent_metadata(
        self,
        descs: nixlRegDList,
        inc_conn_info: bool = False,
        backends: Sequence[str] = [],
    ) -> bytes:
        """Metadata of the given regions only.

        descs: a nixlRegDList of registered regions; empty: connection data
            only
        inc_conn_info: include connection data
        backends: names of backends; empty: all
        """

    def add_remote_agent(self, metadata: Buffer) -> bytes:
        """Load a peer's metadata. Returns its name.

        metadata: bytes, or anything bytes-like

        Loading it again updates the peer's regions. A peer that has restarted
        under the same name replaces the old one at once; transfers to the old
        one raise nixlRemoteDisconnectError.

        It may wait up to 10 s for a process of this host that is stopped;
        other threads run meanwhile. nixlMismatchError if the bytes are not
        valid metadata, nixlInvalidParamError for the agent's own,
        nixlBackendError if the peer cannot be reached, nixlNotAllowedError if
        the kernel forbids it or the signature is missing or wrong,
        nixlNotFoundError if this agent has no backend.
        """

    def remove_remote_agent(self, agent: _Name) -> None:
        """Forget a peer; an unknown peer is not an error.

        Transfers in flight to it fail. It waits up to 2 s for notifications to
        be sent that are queued for a process of this host, and up to 2 s until
        GPU memory of the peer is unmapped; on the engine nixl up to 2 s for
        transfers in flight.
        """

    def check_remote_metadata(
        self, agent: _Name, descs: nixlXferDList | None = None
    ) -> bool:
        """Return whether the peer is known and has all these descriptors.

        agent: str or bytes
        descs: a nixlXferDList; None: whether the peer is known
        """

    def make_connection(
        self, remote_agent: _Name, backends: Sequence[str] = []
    ) -> None:
        """Connect to a peer now instead of at the first transfer.

        nixlNotFoundError for an unknown peer, nixlRemoteDisconnectError if it
        is gone.
        """

    # Metadata listener

    def _listen(self, host: str, port: int, max_frame: int) -> None: ...
    def send_local_metadata(self, ip_addr: str = "", port: int = 8888) -> None:
        """Send the agent's current metadata to a peer's listener, which loads
        it.

        ip_addr: an address or a name; '' means a central metadata server,
            which is not supported
        port: the port of the listener

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
        """send_local_metadata() of the given regions only.

        descs, inc_conn_info, backends: as for get_partial_agent_metadata()
        ip_addr, port: as for send_local_metadata()
        label: for central metadata servers; ignored
        """

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
        ip_addr, port: as for send_local_metadata()
        label: for central metadata servers; ignored

        Returns at once; check_remote_metadata() shows when it is loaded.
        """

    def invalidate_local_metadata(
        self, ip_addr: str = "", port: int = 8888
    ) -> None:
        """Make a peer's listener forget this agent.

        ip_addr, port: as for send_local_metadata()

        Returns at once.
        """

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
            uint64 or int64: address, length, device id, stride, count. Such a
            row stands for `count` blocks of `length` bytes, `stride` bytes
            apart; indices count the blocks
        mem_type: as for get_reg_descs()
        backends: names of backends; empty: all

        Other threads run meanwhile; do not change the array. nixlNotFoundError
        and nixlInvalidParamError name the first row that is not in a
        registered region.
        """

    def release_dlist_handle(self, handle: nixl_prepped_dlist_handle) -> None:
        """Free a prepared list; calling it again does nothing. Transfers
        created from it continue."""

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

        operation: 'READ' (remote to local) or 'WRITE'; another word raises
            KeyError
        local_xfer_side, remote_xfer_side: handles of prep_xfer_dlist()
        local_indices, remote_indices: lists of int or 1-D arrays of any
            integer type, of equal length; the two rows of a pair must have the
            same length
        notif_msg: sent to the peer when the data has arrived; empty: none
        backends: names of backends; empty: all
        skip_desc_merge: do not merge neighbours that are contiguous on both
            sides

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
        """Create a transfer from descriptors, row by row, without prepared
        lists.

        operation: 'READ' (remote to local) or 'WRITE'; another word raises
            KeyError
        local_descs, remote_descs: nixlXferDLists of equal length
        remote_agent: the peer, or the agent's own name
        notif_msg, backends: as for make_prepped_xfer()
        """

    def transfer(
        self,
        handle: nixl_xfer_handle,
        notif_msg: _Message = b"",
        *,
        timeout: float | None = None,
    ) -> str:
        """Start a transfer, or start it again. Returns 'DONE' or 'PROC'.

        handle: a nixl_xfer_handle of this agent
        notif_msg: replaces the transfer's notification, unless empty
        timeout: in seconds; a transfer that has not ended by then is stopped
            and fails with nixlTimeoutError, if the backend can stop it; None:
            no limit

        'DONE' means that it was small and has ended. The call takes about
        50 us at most. nixlRepostActiveError while the transfer is in progress,
        nixlRemoteDisconnectError if the peer is gone.
        """

    def check_xfer_state(self, handle: nixl_xfer_handle) -> str:
        """'DONE' or 'PROC'; a failed transfer raises its error, a cancelled
        one nixlCancelledError, one that was never posted
        nixlNotPostedError."""

    def cancel(self, handle: nixl_xfer_handle) -> bool:
        """Stop a transfer; False: it had ended. No byte moves afterwards.

        After True, check_xfer_state() raises nixlCancelledError. The call
        waits until the transfer has stopped: less than a millisecond for CPU
        memory of this host, about 1 s by UCX if the peer does not answer, up
        to 5 s for GPU memory of another process. Other threads run meanwhile.

        nixlNotSupportedError if the backend cannot stop it, nixlTimeoutError
        if it has not stopped within 10 s; then the transfer continues.
        """

    def release_xfer_handle(self, handle: nixl_xfer_handle) -> None:
        """Free a transfer; calling it again does nothing. One in progress is
        stopped first, as by cancel(). If that fails, its error is raised and
        the handle stays valid."""

    def get_xfer_telemetry(
        self, handle: nixl_xfer_handle
    ) -> nixlXferTelemetry:
        """Telemetry of a transfer; nixlNotPostedError if it was never
        posted."""

    def query_xfer_backend(self, handle: nixl_xfer_handle) -> str:
        """Name of the backend that the transfer uses."""

    def estimate_xfer_cost(
        self, req_handle: nixl_xfer_handle
    ) -> tuple[int, int, str]:
        """Estimate a transfer: duration and error margin in microseconds, and
        the method."""

    # Waiting

    def check_xfer_states(
        self, handles: nixl_xfer_handle | Iterable[nixl_xfer_handle]
    ) -> list[str]:
        """'DONE', 'PROC' or 'ERR' for each.

        handles: a nixl_xfer_handle, or an iterable of them

        'ERR' stands for failed, cancelled and never posted; check_xfer_state()
        raises which.
        """

    def wait(
        self,
        handles: nixl_xfer_handle | Iterable[nixl_xfer_handle],
        timeout: float | None = None,
        any_of: bool = False,
        check: bool = True,
    ) -> list[nixl_xfer_handle]:
        """Sleep until all (or any) have ended; return those that have.

        handles: a nixl_xfer_handle, or an iterable of them
        timeout: in seconds; None: no limit
        any_of: return as soon as one has ended
        check: raise the error of a failed or cancelled transfer at once (of
            the first one in the given order), while the others continue;
            False: such a transfer counts as ended

        Other threads run meanwhile; Ctrl-C ends the wait. Raises the error of
        a transfer, nixlTimeoutError after the timeout, nixlNotPostedError for
        a transfer that was never posted (also with check=False: it would never
        end), and nixlClosedError.

        These errors have .handles (see NixlError); .index is the place of the
        transfer in handles. nixlTimeoutError also has .pending.
        """

    def fileno(self) -> int:
        """An eventfd, readable if a transfer ended or a notification arrived
        since the last get_new_notifs(), check_xfer_states(), wait() or
        result(). The agent owns it: do not close it."""

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
        begins with the tag (or contains it). True if there was one.

        remote_agent_name: str or bytes
        lookup_tag: bytes or str
        tag_is_prefix: False: look for the tag anywhere in the message
        """

    def send_notif(
        self,
        remote_agent_name: _Name,
        notif_msg: _Message,
        backend: str | None = None,
    ) -> None:
        """Send a notification without a transfer.

        remote_agent_name: str or bytes
        notif_msg: bytes or str; may be empty
        backend: a backend of the agent, or None

        It is delivered once, in the order sent, unless the connection to the
        peer breaks, or the peer drops it because more than its notif_bytes_max
        (256 MiB) wait there to be taken. The call does not wait for the peer.
        nixlNotFoundError if the peer is not loaded, nixlRemoteDisconnectError
        if it is gone, nixlBackendError if it does not read and 256 MiB are
        queued for it.
        """

    def _next_notif(self) -> tuple[str, bytes] | None: ...

    # Inspection

    def describe(self, peer: _Name | None = None) -> dict[str, Any]:
        """Describe the agent or a peer. docs/telemetry.md lists the keys.

        peer: str or bytes; None: the agent

        The agent has engine, backends and the reasons for them; a peer has
        path, state, generation, why no faster path is used, and counters.
        nixlNotFoundError for an unknown peer.
        """

    def stats(self) -> dict[str, Any]:
        """Counters of the agent. docs/telemetry.md lists the keys.

        'failures' and 'refusals' are dicts from the name of a status to a
        number. Values whose key ends with '_log2' or '_nixl' are histograms:
        lists of counts. All others are ints.
        """

    def peers(self) -> dict[str, dict[str, Any]]:
        """State and counters of each loaded peer, also of lost ones, by
        name."""
