"""NIXL's telemetry: what its environment variables ask for, for our agents.

docs/metrics.md describes the variables and the metrics.  NixlAgent imports
this with its first backend, if a variable names an exporter and the engine is
native.  On the engine nixl, NIXL itself reads the variables.

Design note.  Everything is read from agent.stats(), so no transfer does more
because somebody watches.  `prometheus` reads it when it is scraped.  The other
exporters write files, which others read at any time: they have a thread that
writes at NIXL's interval.

Whatever is wrong here costs a warning and the export, never the agent.
"""

from __future__ import annotations

import atexit
import os
import re
import sys
import threading
import time
import weakref
from typing import TYPE_CHECKING, NamedTuple

from .._log import logger
from . import stores, values
from .ring import Ring
from .server import Endpoint

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    from prometheus_client.core import Metric
    from prometheus_client.registry import Collector

    from .._agent import NixlAgent

    class _File(Protocol):
        def write(self, snapshot: values.Snapshot) -> None: ...

        def forget(self) -> None: ...


_FLAGS = {
    **dict.fromkeys(("y", "yes", "on", "1", "true", "enable"), True),
    **dict.fromkeys(("n", "no", "off", "0", "false", "disable", ""), False),
}


class SettingError(Exception):
    """What is wrong with a variable, or what it needs."""


def _flag(name: str, default: bool) -> bool:
    text = os.environ.get(name)
    if text is None:
        return default
    flag = _FLAGS.get(text.lower())
    if flag is None:
        raise SettingError(f"{name} must be y or n, not {text!r}")
    return flag


def _number(name: str, default: int, high: int) -> int:
    text = os.environ.get(name, "")
    if text == "":
        return default
    if re.fullmatch(r"0[xX][0-9a-fA-F]+|[0-9]+", text):
        number = int(text, 16 if text[1:2] in ("x", "X") else 10)
        if number <= high:
            return number
    raise SettingError(f"{name} must be a number up to {high}, not {text!r}")


class _Settings(NamedTuple):
    """The variables that several exporters have."""

    host: str
    port: int
    interval: float
    enabled: frozenset[int]


def _settings() -> _Settings:
    chosen = values.Filter(
        os.environ.get("NIXL_TELEMETRY_ENABLED_METRICS", "")
    )
    for glob in chosen.unknown():
        _warn(
            f"NIXL_TELEMETRY_ENABLED_METRICS: no metric matches {glob!r}",
        )
    if os.environ.get("NIXL_TELEMETRY_HISTOGRAM_BUCKETS_US"):
        _warn(
            "NIXL_TELEMETRY_HISTOGRAM_BUCKETS_US is ignored: histograms have "
            "NIXL's default bounds"
        )
    is_local = _flag("NIXL_TELEMETRY_PROMETHEUS_LOCAL", False)
    return _Settings(
        "127.0.0.1" if is_local else "0.0.0.0",
        _number("NIXL_TELEMETRY_PROMETHEUS_PORT", 9090, 65535),
        max(_number("NIXL_TELEMETRY_RUN_INTERVAL", 100, 10**9), 1) / 1000,
        chosen.numbers(),
    )


class Exporter:
    """What a variable asks for; one for all agents of the process."""

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings
        self._endpoint: Endpoint | None = None

    def add(self, agent: NixlAgent) -> None:
        """Export the agent from now on, until it is closed."""
        raise NotImplementedError

    def remove(self, agent: NixlAgent) -> None:
        """The agent was closed."""
        raise NotImplementedError

    def flush(self) -> None:
        """Write what is kept back."""

    def forget(self) -> None:
        """Drop the parent's descriptors; in a forked child."""
        if self._endpoint is not None:
            self._endpoint.forget()

    def collectors(self) -> list[Collector]:
        """What the endpoint serves."""
        return [self]

    def _serve(self) -> None:
        settings = self._settings
        try:
            self._endpoint = Endpoint(
                settings.host, settings.port, self.collectors()
            )
        except ImportError:
            raise SettingError(
                "prometheus_client is missing: pip install "
                "'vllm_nixl[metrics]'"
            ) from None
        except OSError as error:
            raise SettingError(
                f"cannot listen on {settings.host}:{settings.port} "
                f"(NIXL_TELEMETRY_PROMETHEUS_PORT): {error.strerror}"
            ) from None
        except RuntimeError as error:
            raise SettingError(str(error)) from None

    def collect(self) -> Iterable[Metric]:
        """The metrics for a scrape."""
        raise NotImplementedError


class _Prometheus(Exporter):
    """An endpoint of this process."""

    def __init__(self, settings: _Settings) -> None:
        super().__init__(settings)
        self._names = values.Names()
        self._agents: weakref.WeakSet[NixlAgent] = weakref.WeakSet()
        self._serve()

    def add(self, agent: NixlAgent) -> None:
        self._agents.add(agent)

    def remove(self, agent: NixlAgent) -> None:
        self._agents.discard(agent)

    def collectors(self) -> list[Collector]:
        """Our own metrics, too, unless NIXL's were selected."""
        if os.environ.get("NIXL_TELEMETRY_ENABLED_METRICS"):
            return [self]
        from ..metrics import Collector

        return [self, Collector()]

    def collect(self) -> Iterable[Metric]:
        with _lock:
            # NIXL refuses a second agent of the same name.
            rows = [(a, self._names.of(a)) for a in list(self._agents)]
        host = values.hostname()
        return values.families(
            values.read(
                agent,
                {"hostname": host, "agent_name": name},
                self._settings.enabled,
            )
            for agent, name in rows
        )


class _Files(Exporter):
    """A file for each agent, and a thread that writes them."""

    def __init__(self, settings: _Settings) -> None:
        super().__init__(settings)
        self._files: weakref.WeakKeyDictionary[NixlAgent, _File]
        self._files = weakref.WeakKeyDictionary()
        self._thread: threading.Thread | None = None

    def open(self, agent: NixlAgent) -> _File:
        """Create the file of an agent."""
        raise NotImplementedError

    def add(self, agent: NixlAgent) -> None:
        # The thread first: without it, a file would never be written.
        if self._thread is None:
            thread = threading.Thread(
                target=self._run, name="vllm_nixl-telemetry", daemon=True
            )
            thread.start()
            self._thread = thread
        if agent not in self._files:
            self._files[agent] = self.open(agent)

    def remove(self, agent: NixlAgent) -> None:
        file = self._files.pop(agent, None)
        if file is not None:
            self._write(agent, file)
            file.forget()

    def flush(self) -> None:
        for agent, file in list(self._files.items()):
            self._write(agent, file)

    def _write(self, agent: NixlAgent, file: _File) -> None:
        """Write a file. A failure ends neither the thread nor a call."""
        try:
            file.write(self._read(agent))
        except Exception as error:
            _warn(f"telemetry of {agent.name!r} was not written: {error!r}")

    def forget(self) -> None:
        super().forget()
        for file in self._files.values():
            file.forget()
        self._files.clear()

    def _read(self, agent: NixlAgent) -> values.Snapshot:
        return values.read(agent, {}, self._settings.enabled)

    def _run(self) -> None:
        """Write until no agent is left."""
        while True:
            time.sleep(self._settings.interval)
            with _lock:
                if not self._files:
                    self._thread = None
                    return
                self.flush()
                self.tick()

    def tick(self) -> None:
        """Called with each write."""


class _Multiprocess(_Files):
    """prometheus_mp: one process serves the agents of several."""

    def __init__(self, settings: _Settings) -> None:
        super().__init__(settings)
        folder = os.environ.get("NIXL_TELEMETRY_MULTIPROC_DIR")
        if not folder:
            raise SettingError("NIXL_TELEMETRY_MULTIPROC_DIR is not set")
        self._folder = folder
        self._ttl = _number("NIXL_TELEMETRY_MP_STALE_TTL", 30, 10**9)
        self._rank = os.environ.get(
            os.environ.get("NIXL_TELEMETRY_RANK_ENV") or "LOCAL_RANK", ""
        )
        self._instances = 0
        self._next_try = 0.0
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
        except OSError as error:
            raise SettingError(
                f"cannot create {folder}: {error.strerror}"
            ) from None
        self._election = stores.Election(
            folder, f"{settings.host}:{settings.port}"
        )

    def open(self, agent: NixlAgent) -> _File:
        labels = {"hostname": values.hostname(), "agent_name": agent.name}
        if self._rank:
            labels["local_rank"] = self._rank
        try:
            store = stores.Store(
                self._folder, self._instances, labels, self._read(agent)
            )
        except OSError as error:
            raise SettingError(
                f"cannot write in {self._folder}: {error.strerror}"
            ) from None
        self._instances += 1
        self.tick()
        return store

    def tick(self) -> None:
        """Serve, if no other process does: the one that did may have ended.

        A process that cannot serve leaves it to the next one.
        """
        now = time.monotonic()
        if self._endpoint is not None or now < self._next_try:
            return
        self._next_try = now + 5
        try:
            if not self._election.won():
                return
            self._serve()
        except Exception as error:  # whatever it is, the thread goes on
            self._election.forget()
            _warn(f"prometheus_mp: this process cannot serve: {error}")

    def collect(self) -> Iterable[Metric]:
        with _lock:
            self.flush()
        return values.families(stores.read_all(self._folder, self._ttl))

    def forget(self) -> None:
        super().forget()
        self._election.forget()


class _Buffer(_Files):
    """BUFFER: rings that NIXL's telemetry_reader and PCP read."""

    def __init__(self, settings: _Settings) -> None:
        super().__init__(settings)
        self._folder = os.environ.get("NIXL_TELEMETRY_DIR") or "/tmp"
        if not os.access(self._folder, os.W_OK | os.X_OK):
            raise SettingError(
                f"NIXL_TELEMETRY_DIR: cannot write in {self._folder}"
            )
        self._capacity = _number("NIXL_TELEMETRY_BUFFER_SIZE", 4096, 1 << 24)
        if self._capacity < 2 or self._capacity & (self._capacity - 1):
            raise SettingError(
                "NIXL_TELEMETRY_BUFFER_SIZE must be a power of 2, not "
                f"{self._capacity}"
            )

    def open(self, agent: NixlAgent) -> _File:
        if set("/\0") & set(agent.name) or agent.name in (".", ".."):
            raise SettingError(
                f"the agent's name {agent.name!r} cannot be a file name"
            )
        if any(other.name == agent.name for other in list(self._files)):
            raise SettingError(f"two agents have the name {agent.name!r}")
        path = os.path.join(self._folder, agent.name)
        try:
            return Ring(path, self._capacity)
        except OSError as error:
            raise SettingError(
                f"cannot create {path}: {error.strerror}"
            ) from None


_EXPORTERS: dict[str, type[Exporter]] = {
    "prometheus": _Prometheus,
    "prometheus_mp": _Multiprocess,
    "BUFFER": _Buffer,
}

# Guards everything below and all exporters.  A thread that holds it calls
# agent.stats() at most.
_lock = threading.RLock()
_exporters: dict[str, Exporter] = {}
_warned: set[str] = set()


def _warn(text: str) -> None:
    """Each text once in a process."""
    if text not in _warned:
        _warned.add(text)
        logger.warning("%s", text, extra={"agent": None})


def _exporter(name: str) -> Exporter:
    exporter = _exporters.get(name)
    if exporter is None:
        kind = _EXPORTERS.get(name)
        if kind is None:
            raise SettingError(
                "the exporters of the engine native are "
                f"{', '.join(_EXPORTERS)} and NOP"
            )
        exporter = kind(_settings())
        if not _exporters:
            os.register_at_fork(after_in_child=_forget)
            atexit.register(_flush)
            # A child of multiprocessing does not call atexit's functions.
            if "multiprocessing.util" in sys.modules:
                sys.modules["multiprocessing.util"].Finalize(
                    None, _flush, exitpriority=0
                )
        _exporters[name] = exporter
    return exporter


def attach(agent: NixlAgent, is_captured: bool) -> Exporter | None:
    """Export the agent as the variables ask for it; return the exporter.

    NIXL_TELEMETRY_ENABLE decides.  Where it is not set, the agent's
    capture_telemetry does, as in NIXL.
    """
    name = os.environ.get("NIXL_TELEMETRY_EXPORTER") or (
        "BUFFER" if os.environ.get("NIXL_TELEMETRY_DIR") else "NOP"
    )
    try:
        is_wanted = _flag("NIXL_TELEMETRY_ENABLE", is_captured)
        if not is_wanted or name == "NOP":
            return None
        with _lock:
            exporter = _exporter(name)
            exporter.add(agent)
            return exporter
    except SettingError as error:
        reason = str(error)
    except Exception as error:
        reason = repr(error)
    _warn(f"telemetry is not exported (exporter {name}): {reason}")
    return None


def detach(agent: NixlAgent, exporter: Exporter) -> None:
    """End the export of an agent that was closed."""
    with _lock:
        exporter.remove(agent)


def _flush() -> None:
    """At the interpreter's exit, write what the threads have not yet."""
    with _lock:
        for exporter in _exporters.values():
            exporter.flush()


def _forget() -> None:
    """A forked child has neither the threads nor the parent's agents."""
    global _lock
    _lock = threading.RLock()
    for exporter in _exporters.values():
        exporter.forget()
    _exporters.clear()
