"""nixl_agent under NIXL's names: NixlAgent, lenient where stock NIXL is.

Programs written for NIXL get this class from `nixl._api`.  It differs from
NixlAgent only where that raises and stock does not, or raises another class,
and in what stock reads from the environment or keeps in attributes.  NixlAgent
itself knows nothing of this.
"""

from __future__ import annotations

import os
import sys

from . import _bindings
from ._agent import NATIVE_BACKENDS, NixlAgent, make_error
from ._config import nixl_agent_config, nixl_thread_sync_t
from ._core import (
    nixlInvalidParamError,
    nixlNoTelemetryError,
    nixlNotFoundError,
    nixlRegDList,
    nixlRemoteDList,
    nixlXferDList,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn, TypeVar

    from ._core import _MemType, _Name, nixl_prepped_dlist_handle

    _List = TypeVar("_List", nixlRegDList, nixlRemoteDList, nixlXferDList)

# What stock's plugin UCX reports, for the engine that takes its place.
_UCX_MEMS = ["DRAM_SEG", "VRAM_SEG"]
_UCX_PARAMS = {
    "num_workers": "1",
    "ucx_devices": "",
    "ucx_error_handling_mode": "peer",
}
# The parameter that gets num_threads of the configuration.
_THREADS = {
    "UCX": "num_threads",
    "OBJ": "num_threads",
    "LIBFABRIC": "num_threads",
    "GDS_MT": "thread_count",
    "UCCL": "num_cpus",
}
_OFF = ("n", "no", "off", "0", "false", "disable")
# Settings of nixl_agent_config that a raw agent's configuration lacks.
_OWN_SETTINGS = (
    "backends",
    "engine",
    "listen_host",
    "listen_max_frame",
    "metadata_secret",
    "num_threads",
)


def _warn(text: str, *values: object) -> None:
    from .logging import get_logger

    get_logger("api").warning(text, *values)


def _refused(
    error: Exception, descs: Any, mem_type: object, kind: type
) -> None:
    """Log an error that stock NIXL logs and answers with None, and raise any
    other one.  Stock looks at the first row only."""
    if not isinstance(descs, (nixlRegDList, nixlRemoteDList, nixlXferDList)):
        first = descs[0]  # with stock's IndexError for an empty list
        numpy = sys.modules.get("numpy")
        if isinstance(first, tuple):
            has_shape = len(first) == (3 if kind is nixlXferDList else 4)
        elif numpy is not None and isinstance(descs, numpy.ndarray):
            has_shape = descs.ndim == 2 and descs.shape[1] == 3
            has_shape = has_shape and kind is not nixlRemoteDList
        else:
            has_shape = False
        if has_shape and mem_type is not None:
            raise error
    from .logging import get_logger

    get_logger("api").error("%s", error)


def _with_rows(found: _List, descs: Any) -> _List:
    """Return the list, or raise stock's IndexError for an empty input."""
    if found is not descs and found.isEmpty():
        _ = descs[0]
    return found


def _no_telemetry(handle: object) -> NoReturn:
    raise make_error(
        nixlNoTelemetryError,
        "get_xfer_telemetry",
        "NIXL_TELEMETRY_ENABLE switched telemetry off when the agent was "
        "created",
    )


class nixl_agent(NixlAgent):
    """NixlAgent for programs written for NIXL.

    Malformed descriptors are logged, and the result is None; an unknown
    plugin is logged, and the result is empty. NIXL_TELEMETRY_ENABLE=n
    switches get_xfer_telemetry() off. All else is NixlAgent's.
    """

    def __init__(
        self,
        agent_name: str,
        nixl_conf: nixl_agent_config | None = None,
        instantiate_all: bool = False,
    ) -> None:
        if nixl_conf and instantiate_all:
            _warn("instantiate_all is ignored if there is a configuration")
        given = nixl_conf or nixl_agent_config()
        self._instantiates_all = instantiate_all and not nixl_conf
        self.backend_mems: dict[str, list[str]] = {}
        self.backend_options: dict[str, dict[str, str]] = {}
        self.plugin_mem_types: dict[str, list[str]] = {}
        self.plugin_b_options: dict[str, dict[str, str]] = {}
        # The instance's own attribute, because the method is called often.
        if os.environ.get("NIXL_TELEMETRY_ENABLE", "").lower() in _OFF:
            self.get_xfer_telemetry = _no_telemetry  # type: ignore[method-assign]

        # Programs replace these two names to see what an agent is made of.
        config = _bindings.nixlAgentConfig()
        config.useProgThread = given.enable_pthread
        config.useListenThread = given.enable_listen
        config.listenPort = given.port
        config.syncMode = given.sync_mode or (
            nixl_thread_sync_t.NIXL_THREAD_SYNC_STRICT
            if given.enable_listen
            else nixl_thread_sync_t.NIXL_THREAD_SYNC_NONE
        )
        config.pthrDelay = 0
        config.lthrDelay = 100000
        config.captureTelemetry = given.capture_telemetry
        is_made = False

        def make(name: str, made: nixl_agent_config) -> NixlAgent:
            nonlocal is_made
            for setting in _OWN_SETTINGS:
                if hasattr(given, setting):
                    setattr(made, setting, getattr(given, setting))
            NixlAgent.__init__(self, name, made)
            is_made = True
            return self

        config._make_agent = make
        raw = _bindings.nixlAgent(agent_name, config)
        if not is_made:
            raise TypeError(
                f"nixlAgent of nixl._bindings returned a {type(raw).__name__} "
                "that was made without NIXL's nixlAgent, or with another "
                "configuration"
            )

    # -- Backends -----------------------------------------------------------

    def _create_configured(
        self, config: nixl_agent_config, every: bool
    ) -> None:
        names = self.plugin_list if self._instantiates_all else config.backends
        for name in names:
            params = {}
            if config.num_threads > 0 and name in _THREADS:
                params[_THREADS[name]] = str(config.num_threads)
            try:
                self.create_backend(name, params)
            except nixlNotFoundError as error:
                if not self._has_all_plugins_but(name):
                    raise
                _warn("Skipping backend %s, a missing plugin: %s", name, error)

    def _has_all_plugins_but(self, name: str) -> bool:
        """Return whether stock's library works here and lacks the plugin."""
        plugins = set(self.plugin_list)
        return name not in plugins and not plugins.issubset(NATIVE_BACKENDS)

    def create_backend(
        self,
        backend: str,
        initParams: dict[str, str] = {},  # noqa: B006 - not changed
    ) -> None:
        """NixlAgent.create_backend(); nixlInvalidParamError if it exists."""
        if backend in self.backends:
            raise make_error(
                nixlInvalidParamError,
                "create_backend",
                f"backend '{backend}' exists already",
            )
        super().create_backend(backend, initParams)
        self.backend_options[backend] = dict(initParams)
        self.backend_mems[backend] = (
            list(_UCX_MEMS)
            if backend == "UCX"
            else super().get_backend_mem_types(backend)
        )

    @property
    def plugin_list(self) -> list[str]:
        """The plugins, without those that only this package has."""
        names: list[str] = NixlAgent.plugin_list.__get__(self)  # type: ignore[attr-defined]
        return [name for name in names if name != "SHM"]

    @plugin_list.setter
    def plugin_list(self, names: list[str]) -> None:
        NixlAgent.plugin_list.__set__(self, names)  # type: ignore[attr-defined]

    def get_plugin_list(self) -> list[str]:
        """Names of the plugins."""
        return self.plugin_list

    def _load_plugin(self, plugin: str) -> bool:
        """Get the properties of a plugin once.  False: there is none."""
        if plugin in self.plugin_b_options:
            return True
        params, mems = _UCX_PARAMS, _UCX_MEMS
        if plugin != "UCX":
            try:
                params = super().get_plugin_params(plugin)
                mems = super().get_plugin_mem_types(plugin)
            except nixlNotFoundError as error:
                _warn("Plugin %s is not available: %s", plugin, error)
                return False
        self.plugin_mem_types[plugin] = list(mems)
        self.plugin_b_options[plugin] = dict(params)
        return True

    def get_plugin_mem_types(self, backend: str) -> list[str]:
        """Memory types of a plugin; unknown: a warning, and none."""
        if not self._load_plugin(backend):
            return []
        return self.plugin_mem_types[backend]

    def get_plugin_params(self, backend: str) -> dict[str, str]:
        """Parameters of a plugin with their defaults; unknown: a warning, and
        none."""
        if not self._load_plugin(backend):
            return {}
        return self.plugin_b_options[backend]

    def get_backend_mem_types(self, backend: str) -> list[str]:
        """Memory types of a created backend; unknown: a warning, and none."""
        if backend not in self.backend_mems:
            _warn("Backend %s was not created", backend)
            return []
        return self.backend_mems[backend]

    def get_backend_params(self, backend: str) -> dict[str, str]:
        """The parameters that a backend was created with; unknown: a warning,
        and none."""
        if backend not in self.backend_options:
            _warn("Backend %s was not created", backend)
            return {}
        return self.backend_options[backend]

    # -- Descriptors --------------------------------------------------------

    def get_xfer_descs(  # type: ignore[override]
        self, descs: Any, mem_type: _MemType | None = None
    ) -> nixlXferDList | None:
        """NixlAgent.get_xfer_descs(); malformed: an error is logged, and the
        result is None."""
        try:
            found = super().get_xfer_descs(descs, mem_type)
        except (TypeError, ValueError) as error:
            _refused(error, descs, mem_type, nixlXferDList)
            return None
        return _with_rows(found, descs)

    def get_reg_descs(  # type: ignore[override]
        self, descs: Any, mem_type: _MemType | None = None
    ) -> nixlRegDList | None:
        """NixlAgent.get_reg_descs(); malformed: an error is logged, and the
        result is None."""
        try:
            found = super().get_reg_descs(descs, mem_type)
        except (TypeError, ValueError) as error:
            _refused(error, descs, mem_type, nixlRegDList)
            return None
        return _with_rows(found, descs)

    def get_remote_descs(  # type: ignore[override]
        self, descs: Any, mem_type: _MemType | None = None
    ) -> nixlRemoteDList | None:
        """NixlAgent.get_remote_descs(); malformed: an error is logged, and
        the result is None."""
        try:
            found = super().get_remote_descs(descs, mem_type)
        except (TypeError, ValueError) as error:
            _refused(error, descs, mem_type, nixlRemoteDList)
            return None
        return _with_rows(found, descs)

    def register_memory(
        self,
        reg_list: Any,
        mem_type: _MemType | None = None,
        backends: Sequence[str] = [],
    ) -> nixlRegDList:
        """NixlAgent.register_memory(); an empty list raises IndexError."""
        return _with_rows(
            super().register_memory(reg_list, mem_type, backends), reg_list
        )

    def prep_xfer_dlist(
        self,
        agent_name: _Name,
        xfer_list: Any,
        mem_type: _MemType | None = None,
        backends: Sequence[str] = [],
    ) -> nixl_prepped_dlist_handle:
        """NixlAgent.prep_xfer_dlist(); an empty list raises IndexError."""
        try:
            return super().prep_xfer_dlist(
                agent_name, xfer_list, mem_type, backends
            )
        except nixlInvalidParamError:
            if not isinstance(xfer_list, nixlXferDList):
                _ = xfer_list[0]
            raise
