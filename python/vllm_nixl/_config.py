"""The configuration of an agent."""

from __future__ import annotations

import os
from enum import Enum, IntEnum

from ._core import _choices

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from ._agent import NixlAgent
    from ._core import _Engine

DEFAULT_COMM_PORT = 8888

_ENGINES: tuple[_Engine, ...] = ("auto", "native", "nixl")


def set_log_level(level: int | str) -> None:
    """Set the level of the logger `vllm_nixl` and of the C library's log.

    Args:
        level: As for logging's setLevel(): "DEBUG", logging.DEBUG.

    It takes effect at once, in all threads and agents of the process.
    """
    from ._log import set_level

    set_level(level)


class nixl_thread_sync_t(IntEnum):
    """Accepted and ignored: every call is thread-safe, always."""

    NIXL_THREAD_SYNC_NONE = 0
    NIXL_THREAD_SYNC_STRICT = 1
    NIXL_THREAD_SYNC_RW = 2
    NIXL_THREAD_SYNC_DEFAULT = 0

    __str__ = Enum.__str__

    def __bool__(self) -> bool:
        """All modes are true, as in NIXL."""
        return True


def _check_int(name: str, value: object, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be from {low} to {high}, not {value}")
    return value


def _check_engine(engine: str | None) -> _Engine:
    source = "engine"
    if engine is None:
        source = "VLLM_NIXL_ENGINE"
        engine = os.environ.get(source) or "auto"
    if not isinstance(engine, str):
        raise TypeError(f"engine must be a str, not {type(engine).__name__}")
    for known in _ENGINES:
        if engine == known:
            return known
    raise ValueError(
        f"{source} must be an engine, not {engine!r}: "
        + _choices(engine, _ENGINES)
    )


def _check_secret(secret: str | bytes | None) -> str | bytes | None:
    """Errors never contain the secret."""
    if secret is None:
        return None
    if not isinstance(secret, (str, bytes)):
        raise TypeError(
            "metadata_secret must be a str or bytes, "
            f"not {type(secret).__name__}"
        )
    size = len(secret)
    if isinstance(secret, str):
        size = len(secret.encode("utf-8", "replace"))
    if not 8 <= size <= 65535:
        raise ValueError(
            f"metadata_secret must have 8 to 65535 bytes, not {size}"
        )
    return secret


def _check_backends(backends: object) -> list[str]:
    if isinstance(backends, str) or not isinstance(backends, (list, tuple)):
        raise TypeError(
            f"backends must be a list of names, not {type(backends).__name__}"
        )
    for name in backends:
        if not isinstance(name, str):
            raise TypeError(
                "the name of a backend must be a str, "
                f"not {type(name).__name__}"
            )
    return list(backends)


class nixl_agent_config:
    """The configuration of an agent.

    Args:
        enable_prog_thread: Accepted and ignored: transfers always complete
            without being polled.
        enable_listen_thread: Start NIXL's metadata listener with the agent,
            for peers that send their metadata, fetch this agent's, or
            withdraw theirs. Anyone who can connect to the port may do that;
            metadata_secret keeps out foreign metadata.
        listen_port: Its port, 0 to 65535; 0 binds a free one, which
            NixlAgent.listen_port returns.
        capture_telemetry: Whether metrics are exported, if the environment
            names an exporter and does not set NIXL_TELEMETRY_ENABLE
            (docs/metrics.md). Telemetry is always collected.
        num_threads: Copy threads per transfer, and UCX workers; 0: one per
            core, at most 4. More than 16 count as 16.
        backends: Backends to create with the agent. "UCX" stands for the
            best path to each peer.
        sync_mode: Accepted and ignored: every call is thread-safe.
        engine: "auto", "native" or "nixl"; None: the environment variable
            VLLM_NIXL_ENGINE, and "auto" without it.
        listen_host: Where the metadata listener listens: an address or a
            name; "": every address of the machine, IPv6 and IPv4.
        listen_max_frame: Most bytes of metadata that it accepts or sends at
            once, from 4096 to 1 GiB; 0: 256 MiB.
        metadata_secret: A secret that agents share, str or bytes, of at least
            8 bytes (better 16 random ones). The agent signs the metadata that
            it publishes and refuses metadata that is not signed with the same
            secret. None: the environment variable VLLM_NIXL_METADATA_SECRET;
            if that is not set, the agent neither signs nor checks.

    Every argument is an attribute and may be changed until the agent is
    created (under NIXL's names: enable_pthread, enable_listen, port).
    """

    def __init__(
        self,
        enable_prog_thread: bool = True,
        enable_listen_thread: bool = False,
        listen_port: int = DEFAULT_COMM_PORT,
        capture_telemetry: bool = False,
        num_threads: int = 0,
        backends: list[str] = ["UCX"],  # noqa: B006 - copied, NIXL's default
        sync_mode: nixl_thread_sync_t | None = None,
        *,
        engine: _Engine | None = None,
        listen_host: str = "",
        listen_max_frame: int = 0,
        metadata_secret: str | bytes | None = None,
    ) -> None:
        if sync_mode is not None and not isinstance(
            sync_mode, nixl_thread_sync_t
        ):
            raise TypeError(
                "sync_mode must be a nixl_thread_sync_t, "
                f"not {type(sync_mode).__name__}"
            )
        self.enable_pthread = enable_prog_thread
        self.enable_listen = enable_listen_thread
        self.port = _check_int("listen_port", listen_port, 0, 65535)
        self.capture_telemetry = capture_telemetry
        self.num_threads = _check_int("num_threads", num_threads, 0, 1024)
        self.backends = _check_backends(backends)
        self.sync_mode = sync_mode
        self.engine = _check_engine(engine)
        if not isinstance(listen_host, str):
            raise TypeError(
                f"listen_host must be a str, not {type(listen_host).__name__}"
            )
        self.listen_host = listen_host
        self.listen_max_frame = _check_int(
            "listen_max_frame", listen_max_frame, 0, 1 << 30
        )
        self.metadata_secret = _check_secret(metadata_secret)

    def __repr__(self) -> str:
        shown = {key: repr(value) for key, value in vars(self).items()}
        if self.metadata_secret is not None:
            shown["metadata_secret"] = "<hidden>"
        values = ", ".join(f"{key}={text}" for key, text in shown.items())
        return f"nixl_agent_config({values})"


class nixlAgentConfig:
    """The configuration of a raw agent: NIXL's arguments, by position or name.

    useProgThread, syncMode, pthrDelay, lthrDelay and etcdWatchTimeout are
    accepted and ignored; NIXL itself ignores numWorkers. The others are
    enable_listen_thread, listen_port and capture_telemetry of
    nixl_agent_config.
    """

    def __init__(
        self,
        useProgThread: bool = False,
        useListenThread: bool = False,
        listenPort: int = DEFAULT_COMM_PORT,
        syncMode: nixl_thread_sync_t = (
            nixl_thread_sync_t.NIXL_THREAD_SYNC_DEFAULT
        ),
        numWorkers: int = 1,
        pthrDelay: int = 0,
        lthrDelay: int = 100000,
        captureTelemetry: bool = False,
    ) -> None:
        self.useProgThread = useProgThread
        self.useListenThread = useListenThread
        self.listenPort = listenPort
        self.syncMode = syncMode
        self.pthrDelay = pthrDelay
        self.lthrDelay = lthrDelay
        self.captureTelemetry = captureTelemetry
        self._etcd_watch_timeout: timedelta | None = None
        # How to create the agent below the raw one; None: NixlAgent().
        self._make_agent: (
            Callable[[str, nixl_agent_config], NixlAgent] | None
        ) = None

    @property
    def etcdWatchTimeout(self) -> timedelta:
        """5 seconds unless set."""
        if self._etcd_watch_timeout is None:
            from datetime import timedelta

            self._etcd_watch_timeout = timedelta(seconds=5)
        return self._etcd_watch_timeout

    @etcdWatchTimeout.setter
    def etcdWatchTimeout(self, value: timedelta) -> None:
        self._etcd_watch_timeout = value

    def _for_agent(self) -> nixl_agent_config:
        return nixl_agent_config(
            self.useProgThread,
            self.useListenThread,
            self.listenPort,
            self.captureTelemetry,
            backends=[],
            sync_mode=self.syncMode,
        )
