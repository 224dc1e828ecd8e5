"""NixlAgent: _core.Agent plus the methods that need not be fast."""

from __future__ import annotations

import os
import sys

from . import _monitor
from ._config import nixl_agent_config
from ._core import (
    Agent,
    _set_search_path,
    nixl_mem_t,
    nixl_status_t,
    nixl_xfer_handle,
    nixlNotSupportedError,
    nixlRegDList,
    nixlRemoteDList,
    nixlXferDList,
)
from ._publish import Peer
from ._serialize import deserialize, serialize
from ._side_channel import TcpSideChannel

TYPE_CHECKING = False  # importing typing would take as long as all the rest
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
    from typing import TypeVar

    from ._aio import _Events
    from ._core import NixlError, _Key, _MemType, _Metadata, _Rows
    from ._raw import nixlAgent
    from ._telemetry import Exporter

    _Error = TypeVar("_Error", bound=NixlError)

# All backends of the engine native.
NATIVE_BACKENDS = ("UCX", "SHM")


def make_error(kind: type[_Error], operation: str, cause: str) -> _Error:
    """Create an error like those of the C library."""
    status = nixl_status_t(kind.status).name
    error = kind(f"{status}: {operation}: {cause}")
    error.operation = operation
    return error


class NixlAgent(Agent):
    """A named endpoint that owns regions, peers, transfers, notifications.

    Args:
        agent_name: The name that peers use: str (or bytes), not empty.
        nixl_conf: A nixl_agent_config; None: the default one.
        instantiate_all: Without nixl_conf, create every available backend.

    Every method may be called from any thread at any time. `with agent:` and
    close() stop it for good; otherwise it stops when it is garbage collected.
    Handles that it returned keep it alive.
    """

    nixl_mems = {  # noqa: RUF012 - NIXL's attribute
        "DRAM": nixl_mem_t.DRAM_SEG,
        "VRAM": nixl_mem_t.VRAM_SEG,
        "FILE": nixl_mem_t.FILE_SEG,
        "BLOCK": nixl_mem_t.BLK_SEG,
        "BLK": nixl_mem_t.BLK_SEG,
        "OBJ": nixl_mem_t.OBJ_SEG,
        "cpu": nixl_mem_t.DRAM_SEG,
        "cuda": nixl_mem_t.VRAM_SEG,
    }
    nixl_ops = {"WRITE": 1, "READ": 0}  # noqa: RUF012 - NIXL's attribute

    # Created on first use by setdefault() on the agent's __dict__, so that
    # concurrent threads get the same object.
    _side_channel: TcpSideChannel | None = None
    _raw: nixlAgent | None = None
    _exporter: Exporter | None = None

    def __init__(
        self,
        agent_name: str,
        nixl_conf: nixl_agent_config | None = None,
        instantiate_all: bool = False,
    ) -> None:
        if nixl_conf is None:
            config = nixl_agent_config()
        elif isinstance(nixl_conf, nixl_agent_config):
            config = nixl_conf
        else:
            raise TypeError(
                "nixl_conf must be a nixl_agent_config, "
                f"not {type(nixl_conf).__name__}"
            )
        if "logging" in sys.modules:
            try:
                from . import _log

                _log.follow()
            except OSError:
                pass  # no descriptor is left, which the next call reports
        _set_search_path(sys.path)
        super().__init__(
            agent_name,
            engine=config.engine,
            num_threads=config.num_threads,
            backends=config.backends,
            metadata_secret=config.metadata_secret,
        )
        self._iterators: set[_Events] = set()
        self._captures = bool(config.capture_telemetry)
        _monitor.add(self)
        self._create_configured(config, instantiate_all and nixl_conf is None)
        if config.enable_listen:
            try:
                self._listen(
                    config.listen_host, config.port, config.listen_max_frame
                )
            except BaseException:
                self.close()
                raise

    def _create_configured(
        self, config: nixl_agent_config, every: bool
    ) -> None:
        """Create the backends that the constructor was asked for."""
        for name in config.backends:
            self.create_backend(name)
        if every:
            is_native = self.engine == "native"
            names = NATIVE_BACKENDS if is_native else self.get_plugin_list()
            for name in names:
                if name not in self.backends:
                    self.create_backend(name)

    def create_backend(
        self,
        backend: str,
        initParams: dict[str, str] = {},  # noqa: B006 - not changed
    ) -> None:
        """Create a backend; the first one chooses the engine.

        With the engine "auto", one that the engine lacks changes the engine,
        which takes over the others, until memory is registered, metadata read,
        a list prepared or a peer loaded.

        Args:
            backend: A name of get_plugin_list().
            initParams: Its parameters.

        nixlNotFoundError for an unknown name, or if the engine cannot change
        any more; nixlNotAllowedError if it exists.
        """
        if backend not in NATIVE_BACKENDS:
            self._stop_export()  # NIXL's library uses the same files
        try:
            super().create_backend(backend, initParams)
        finally:
            self._start_export()

    def _start_export(self) -> None:
        """Export metrics; on the engine nixl, NIXL's library does it."""
        if (
            "NIXL_TELEMETRY_EXPORTER" in os.environ
            or "NIXL_TELEMETRY_DIR" in os.environ
        ) and (self.engine == "native" and not self.closed):
            from ._telemetry import attach

            self._exporter = attach(self, self._captures)

    def _stop_export(self) -> None:
        if self._exporter is not None:
            from ._telemetry import detach

            detach(self, self._exporter)
            self._exporter = None

    @property
    def agent(self) -> nixlAgent:
        """This agent through NIXL's raw calls, for clients that use those.

        A raw agent of the same name may be assigned, as long as neither has a
        backend; afterwards it is a view of this agent.
        """
        if self._raw is not None:
            return self._raw
        from ._raw import nixlAgent

        raw: nixlAgent
        raw = self.__dict__.setdefault("_raw", nixlAgent._of(self))
        return raw

    @agent.setter
    def agent(self, raw: nixlAgent) -> None:
        from ._raw import nixlAgent

        if not isinstance(raw, nixlAgent):
            raise TypeError(
                f"agent must be a nixlAgent, not {type(raw).__name__}"
            )
        raw._move_to(self)
        self._raw = raw

    # -- Descriptors between processes --------------------------------------

    def get_serialized_descs(
        self, descs: nixlXferDList | nixlRegDList
    ) -> bytes:
        """Return a pickle (bytes) of a nixlXferDList or nixlRegDList.

        Stock NIXL can read it too.
        """
        return serialize(descs)

    def deserialize_descs(
        self, serialized_descs: bytes
    ) -> nixlXferDList | nixlRegDList:
        """Return the list written by get_serialized_descs(), here or in NIXL.

        The bytes are only parsed, never run as a pickle; nixlMismatchError
        for anything else.
        """
        return deserialize(serialized_descs)

    # -- Events -------------------------------------------------------------

    async def wait_async(
        self,
        handle: nixl_xfer_handle | Iterable[nixl_xfer_handle],
        timeout: float | None = None,
        any_of: bool = False,
        check: bool = True,
    ) -> list[nixl_xfer_handle]:
        """wait() for asyncio: the event loop keeps running.

        Args:
            handle: A nixl_xfer_handle or an iterable of them.
            timeout: In seconds; None: no limit.
            any_of: Return as soon as one has ended.
            check: Raise the error of a failed transfer, as wait() does;
                False: a failed transfer counts as ended.

        Returns the handles that have ended, in the order given. Raises what
        wait() raises, with .handles. Cancelling the task does not stop the
        transfers.
        """
        from ._aio import wait_async

        return await wait_async(self, handle, timeout, any_of, check)

    def notifications(self) -> AsyncIterator[tuple[str, bytes]]:
        """Notifications as they arrive: `async for sender, message in ...`.

        Each notification is delivered once: concurrent iterators and
        get_new_notifs() share them. The iterator ends when the agent is
        closed.
        """
        from ._aio import notifications

        return notifications(self)

    # -- Side channel -------------------------------------------------------

    def _channel(self) -> TcpSideChannel:
        if self._side_channel is not None:
            return self._side_channel
        channel: TcpSideChannel
        channel = self.__dict__.setdefault("_side_channel", TcpSideChannel())
        return channel

    def start_side_channel_listener(
        self,
        port: int | None,
        metadata: _Metadata,
        host: str | Sequence[str] = "",
    ) -> int:
        """Serve `metadata` over TCP. Returns the port.

        Args:
            port: 0 binds a free one; None: VLLM_NIXL_SIDE_CHANNEL_PORT, or
                5600.
            metadata: The bytes to serve (copied), usually
                get_agent_metadata(), or a mapping from key to bytes.
            host: Where to listen; "": VLLM_NIXL_SIDE_CHANNEL_HOST, or all of
                the machine's addresses.

        nixlNotAllowedError if it is already running.
        """
        return self._channel().start_listener(port, metadata, host=host)

    def request_remote_metadata(
        self,
        host: str,
        port: int,
        timeout_ms: int = 5000,
        *,
        key: _Key = None,
        retries: int | None = 0,
    ) -> bytes:
        """Fetch the metadata (bytes) served by the listener at host:port.

        Args:
            host: A name or an address.
            port: The port that it listens on.
            timeout_ms: Limit for the whole exchange; then nixlTimeoutError.
            key: The key of the metadata; None: the default.
            retries: Further attempts while nobody listens; None: until the
                timeout.

        nixlBackendError if nobody listens, nixlNotFoundError if nothing is
        served under the key. Other threads run meanwhile.
        """
        return self._channel().request_metadata(
            host, port, timeout_ms=timeout_ms, key=key, retries=retries
        )

    async def request_remote_metadata_async(
        self,
        host: str,
        port: int,
        timeout_ms: int = 5000,
        *,
        key: _Key = None,
        retries: int | None = 0,
    ) -> bytes:
        """request_remote_metadata() for asyncio; other tasks run meanwhile."""
        return await self._channel().request_metadata_async(
            host, port, timeout_ms=timeout_ms, key=key, retries=retries
        )

    def publish(
        self,
        rows: Mapping[str, _Rows],
        port: int | None = 0,
        host: str | Sequence[str] | None = None,
        *,
        mem_type: _MemType = "DRAM",
    ) -> int:
        """Publish this agent and named rows of it. Returns the port.

        Peers get everything that they need by attach(): the metadata of all
        memory that is registered now, and the rows.

            port = agent.publish({"kv": rows}, port=18000)

        Starts the side channel's listener if it is not running; on a running
        one, whose other keys stay, it replaces what was published. Call it
        again after registering more memory, or with other rows.

        Args:
            rows: A mapping from names (str, 1 to 255 bytes) to rows, in any
                form that prep_xfer_dlist() takes: an Nx3 array of (address,
                length in bytes, device id), an Nx5 array with strides, a list
                of tuples, a nixlXferDList, tensors. May be empty. Rows at
                regular strides take some 40 bytes in all, other rows 24 each.
            port: Where to listen; 0: any free port, or that of the running
                listener; None: VLLM_NIXL_SIDE_CHANNEL_PORT, or 5600.
            host: As for start_side_channel_listener(); None: that of the
                running listener, otherwise VLLM_NIXL_SIDE_CHANNEL_HOST, or
                all of the machine's addresses.
            mem_type: The memory type of arrays and tuples.

        nixlNotFoundError and nixlInvalidParamError name the list and the
        first row that is not in registered memory; nixlNotAllowedError if
        the listener is running on another port or host; nixlBackendError if
        the address is in use. After an error, what was published before is
        still served. Other threads run meanwhile; do not change arrays.

        VLLM_NIXL_SIDE_CHANNEL_SECRET, set at both ends, authenticates and
        encrypts; without it, everybody who reaches the port can attach.
        """
        return self._channel()._publish(self, rows, port, host, mem_type)

    def attach(
        self,
        host: str,
        port: int,
        timeout_ms: int = 5000,
        *,
        retries: int | None = 0,
    ) -> Peer:
        """Load what the agent at host:port has published, and prepare it.

            peer = agent.attach("prefill-host", 18000)
            remote = peer.rows("kv")  # for make_prepped_xfer()

        Args:
            host: A name or an address.
            port: The port that publish() returned there.
            timeout_ms: Limit for the whole exchange; then nixlTimeoutError.
            retries: Further attempts while nobody listens; None: until the
                timeout.

        Returns the Peer: its name, as a str, with the prepared lists. Attach
        again when the peer has restarted or has published again.

        After the exchange it loads the metadata, as add_remote_agent(): if the
        peer is on this host and its process is stopped, that may wait up to
        10 s more.

        nixlBackendError if nobody listens; nixlNotFoundError if the listener
        serves metadata alone (start_side_channel_listener()), or for a row
        that is not in the memory that the peer has registered;
        nixlMismatchError for anything but a publication; nixlNotAllowedError
        if the secrets differ; the errors of add_remote_agent(). Other threads
        run meanwhile; Ctrl-C ends the wait.
        """
        return Peer(
            self._channel()._attach(self, host, port, timeout_ms, retries)
        )

    async def attach_async(
        self,
        host: str,
        port: int,
        timeout_ms: int = 5000,
        *,
        retries: int | None = 0,
    ) -> Peer:
        """attach() for asyncio; other tasks run meanwhile.

        After the exchange, a thread of the loop's executor loads the metadata,
        and checks and prepares the lists: about 0.1 us for each row that is
        not at a regular stride, and up to 10 s if the peer is on this host and
        its process is stopped. Cancelling the task does not stop that.
        """
        return Peer(
            await self._channel()._attach_async(
                self, host, port, timeout_ms, retries
            )
        )

    def stop_side_channel_listener(self) -> None:
        """Stop serving and free the port, without waiting for clients."""
        if self._side_channel is not None:
            self._side_channel.shutdown()

    def is_side_channel_running(self) -> bool:
        """Return whether the listener is running."""
        return (
            self._side_channel is not None and self._side_channel.is_running()
        )

    def close(self) -> None:
        """Stop the listener and the agent's work for good.

        Transfers in flight end as cancelled, waiters raise nixlClosedError,
        peers see the agent leave; later calls raise nixlClosedError. Calling
        it again only waits for a thread that is closing the agent.

        It takes milliseconds, unless peers do not answer: it waits up to 2 s
        for peers that are copying memory of the agent, up to 2 s for queued
        notifications to be sent, up to 2 s for peers to unmap GPU memory, up
        to 1 s for commands of the metadata listener, and for transfers in
        flight as cancel() does. The engine nixl waits up to 5 s for transfers
        in flight. Other threads run meanwhile.
        """
        self.stop_side_channel_listener()
        super().close()
        self._stop_export()

    def __exit__(self, *args: object) -> None:
        """close() the agent."""
        self.close()

    # -- Not in this version -------------------------------------------------

    def prep_mem_view(
        self,
        dlist: nixlXferDList | nixlRemoteDList,
        *,
        backends: list[str] | None = None,
    ) -> int:
        """Not supported: memory views need a GPU and UCX's device API."""
        raise make_error(
            nixlNotSupportedError,
            "prep_mem_view",
            "no backend of this version has memory views",
        )

    def release_mem_view(self, mvh: int) -> None:
        """Not supported: memory views cannot be created."""
        raise make_error(
            nixlNotSupportedError,
            "release_mem_view",
            "no backend of this version has memory views",
        )


nixl_agent = NixlAgent
