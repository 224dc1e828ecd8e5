"""nixlAgent: the raw agent of NIXL's bindings.

Design note.  A raw agent is a view of a NixlAgent: it converts NIXL's numbers
(backends, prepared lists, transfers) into our objects, and results into
nixl_status_t.  Handle numbers are never reused in a process.  So a number that
was released, or that belongs to another agent, is refused instead of being
taken for another object.
"""

from __future__ import annotations

import itertools

from ._agent import NixlAgent, make_error
from ._config import nixlAgentConfig
from ._core import (
    nixl_prepped_dlist_handle,
    nixl_status_t,
    nixl_xfer_handle,
    nixlInvalidParamError,
    nixlXferDList,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, TypeVar

    from ._core import (
        _Indices,
        _Message,
        _Name,
        _Operation,
        nixlRegDList,
        nixlRemoteDList,
        nixlXferTelemetry,
    )

    _Handle = TypeVar("_Handle", nixl_xfer_handle, nixl_prepped_dlist_handle)

_OPERATIONS: dict[int, _Operation] = {0: "READ", 1: "WRITE"}
_STATES = {
    "DONE": nixl_status_t.NIXL_SUCCESS,
    "PROC": nixl_status_t.NIXL_IN_PROG,
}
_COSTS = {"ANALYTICAL_BACKEND": 0}
_UNKNOWN_COST = -1

_numbers = itertools.count(1)


def _invalid(operation: str, cause: str) -> nixlInvalidParamError:
    return make_error(nixlInvalidParamError, operation, cause)


def _operation(method: str, number: int) -> _Operation:
    if number not in _OPERATIONS:
        raise KeyError(
            f"{method}: no operation has the number {number!r}: "
            "0 is READ, 1 is WRITE"
        )
    return _OPERATIONS[number]


class nixlAgent:
    """An agent with NIXL's raw calls, on top of its own NixlAgent.

    Backends, prepared lists and transfers are ints. Every call raises the
    same errors as NixlAgent's. Lists and transfers that are not released live
    as long as the agent. `agent.agent` of a NixlAgent is a view of that agent.
    """

    def __init__(self, name: str, config: nixlAgentConfig) -> None:
        if not isinstance(config, nixlAgentConfig):
            raise TypeError(
                "config must be a nixlAgentConfig, "
                f"not {type(config).__name__}"
            )
        make_agent = config._make_agent or NixlAgent
        config._make_agent = None  # for one agent only
        self._look_at(make_agent(name, config._for_agent()))

    @classmethod
    def _of(cls, agent: NixlAgent) -> nixlAgent:
        """Create a view of an existing agent."""
        view = cls.__new__(cls)
        view._look_at(agent)
        return view

    def _look_at(self, agent: NixlAgent) -> None:
        self._agent = agent
        self._handles: dict[
            int, nixl_xfer_handle | nixl_prepped_dlist_handle
        ] = {}

    def _move_to(self, agent: NixlAgent) -> None:
        """Become the view of another agent of the same name.

        SGLang's HiCache replaces the raw agent of a NixlAgent to set its
        sync_mode; afterwards both must be the same agent.
        """
        own = self._agent
        if own is agent:
            return
        if own.name != agent.name or own.backends or agent.backends:
            raise _invalid(
                "agent",
                "a raw agent can be put in place only under the same name "
                "and before either has a backend",
            )
        own.close()
        self._look_at(agent)

    def __repr__(self) -> str:
        return f"<nixlAgent {self._agent.name!r} at {id(self):#x}>"

    # -- Numbers ------------------------------------------------------------

    def _backend(self, operation: str, number: int) -> str:
        for name, known in self._agent.backends.items():
            if known == number:
                return name
        raise _invalid(operation, f"the agent has no backend number {number}")

    def _names(self, operation: str, numbers: Sequence[int]) -> list[str]:
        return [self._backend(operation, number) for number in numbers]

    def _keep(
        self, handle: nixl_xfer_handle | nixl_prepped_dlist_handle
    ) -> int:
        number = next(_numbers)
        self._handles[number] = handle
        return number

    def _find(
        self, operation: str, number: int, kind: type[_Handle]
    ) -> _Handle:
        handle = self._handles.get(number)
        if not isinstance(handle, kind):
            raise _invalid(
                operation, f"the agent has no {kind.__name__} {number}"
            )
        return handle

    def _xfer(self, operation: str, number: int) -> nixl_xfer_handle:
        return self._find(operation, number, nixl_xfer_handle)

    def _dlist(self, operation: str, number: int) -> nixl_prepped_dlist_handle:
        return self._find(operation, number, nixl_prepped_dlist_handle)

    # -- Backends -----------------------------------------------------------

    def getAvailPlugins(self) -> list[str]:
        """Names of the backends that can be created."""
        return self._agent.get_plugin_list()

    def getPluginParams(self, plugin: str) -> tuple[dict[str, str], list[str]]:
        """Parameters of a plugin with their defaults, and memory types."""
        agent = self._agent
        return (
            agent.get_plugin_params(plugin),
            agent.get_plugin_mem_types(plugin),
        )

    def createBackend(self, backend: str, params: dict[str, str]) -> int:
        """Create a backend. Returns its number."""
        self._agent.create_backend(backend, params)
        return self._agent.backends[backend]

    def getBackendParams(
        self, backend: int
    ) -> tuple[dict[str, str], list[str]]:
        """Parameters of a created backend, and memory types."""
        name = self._backend("getBackendParams", backend)
        agent = self._agent
        return (
            agent.get_backend_params(name),
            agent.get_backend_mem_types(name),
        )

    # -- Memory -------------------------------------------------------------

    def registerMem(
        self, descs: nixlRegDList, backends: Sequence[int] = ()
    ) -> nixl_status_t:
        """Register memory; all of it or none."""
        self._agent.register_memory(
            descs, backends=self._names("registerMem", backends)
        )
        return nixl_status_t.NIXL_SUCCESS

    def deregisterMem(
        self, descs: nixlRegDList, backends: Sequence[int] = ()
    ) -> nixl_status_t:
        """Deregister memory; all of it or none."""
        self._agent.deregister_memory(
            descs, self._names("deregisterMem", backends)
        )
        return nixl_status_t.NIXL_SUCCESS

    def queryMem(
        self, descs: nixlRegDList, backend: int
    ) -> list[dict[str, str] | None]:
        """Return a backend's information about memory or storage, by row."""
        return self._agent.query_memory(
            descs, self._backend("queryMem", backend)
        )

    # -- Metadata and peers -------------------------------------------------

    def getLocalMD(self) -> bytes:
        """The agent's metadata."""
        return self._agent.get_agent_metadata()

    def getLocalPartialMD(
        self,
        descs: nixlRegDList,
        inc_conn_info: bool = False,
        backends: Sequence[int] = (),
    ) -> bytes:
        """Metadata of the given regions only."""
        return self._agent.get_partial_agent_metadata(
            descs, inc_conn_info, self._names("getLocalPartialMD", backends)
        )

    def loadRemoteMD(self, metadata: bytes) -> bytes:
        """Load a peer's metadata. Returns its name."""
        return self._agent.add_remote_agent(metadata)

    def invalidateRemoteMD(self, remote_agent: _Name) -> nixl_status_t:
        """Forget a peer; NIXL_ERR_NOT_FOUND for an unknown one."""
        known = self._agent.check_remote_metadata(remote_agent)
        self._agent.remove_remote_agent(remote_agent)
        return (
            nixl_status_t.NIXL_SUCCESS
            if known
            else nixl_status_t.NIXL_ERR_NOT_FOUND
        )

    def checkRemoteMD(
        self, remote_agent: _Name, descs: nixlXferDList
    ) -> nixl_status_t:
        """Return whether the peer is known and has all these descriptors."""
        return (
            nixl_status_t.NIXL_SUCCESS
            if self._agent.check_remote_metadata(remote_agent, descs)
            else nixl_status_t.NIXL_ERR_NOT_FOUND
        )

    def makeConnection(
        self, remote_agent: _Name, backends: Sequence[int]
    ) -> nixl_status_t:
        """Connect now instead of at the first transfer."""
        self._agent.make_connection(
            remote_agent, self._names("makeConnection", backends)
        )
        return nixl_status_t.NIXL_SUCCESS

    def sendLocalMD(self, ip_addr: str = "", port: int = 0) -> None:
        """send_local_metadata()"""
        self._agent.send_local_metadata(ip_addr, port)

    def sendLocalPartialMD(
        self,
        descs: nixlRegDList,
        inc_conn_info: bool = False,
        backends: Sequence[int] = (),
        ip_addr: str = "",
        port: int = 0,
        label: str = "",
    ) -> None:
        """send_partial_agent_metadata()"""
        names = self._names("sendLocalPartialMD", backends)
        self._agent.send_partial_agent_metadata(
            descs, inc_conn_info, names, ip_addr, port, label
        )

    def fetchRemoteMD(
        self,
        remote_agent: str,
        ip_addr: str = "",
        port: int = 0,
        label: str = "",
    ) -> None:
        """fetch_remote_metadata()"""
        self._agent.fetch_remote_metadata(remote_agent, ip_addr, port, label)

    def invalidateLocalMD(self, ip_addr: str = "", port: int = 0) -> None:
        """invalidate_local_metadata()"""
        self._agent.invalidate_local_metadata(ip_addr, port)

    # -- Prepared lists -----------------------------------------------------

    def prepXferDlist(self, *args: Any, **keywords: Any) -> int:
        """Prepare a list. Returns its number.

        (agent_name, descs, backend=[]), for the local side ("" as well) also
        (descs, backend=[]); with strides (agent_name, mem_type, descs,
        backend=[]), descs an Nx5 array.
        """
        if args and isinstance(args[0], nixlXferDList):
            args = ("", *args)
        if "mem_type" in keywords or (
            len(args) > 1 and isinstance(args[1], int)
        ):
            return self._prepare_strided(*args, **keywords)
        return self._prepare(*args, **keywords)

    def _prepare(
        self,
        agent_name: _Name = "",
        descs: Any = None,
        backend: Sequence[int] = (),
    ) -> int:
        return self._prepare_strided(agent_name, None, descs, backend)

    def _prepare_strided(
        self,
        agent_name: _Name,
        mem_type: int | None,
        descs: Any,
        backend: Sequence[int] = (),
    ) -> int:
        names = self._names("prepXferDlist", backend)
        return self._keep(
            self._agent.prep_xfer_dlist(agent_name, descs, mem_type, names)
        )

    def releasedDlistH(self, dlist: int) -> nixl_status_t:
        """Free a prepared list."""
        self._dlist("releasedDlistH", dlist).release()
        self._handles.pop(dlist, None)
        return nixl_status_t.NIXL_SUCCESS

    # -- Transfers ----------------------------------------------------------

    def makeXferReq(
        self,
        operation: int,
        local_side: int,
        local_indices: _Indices,
        remote_side: int,
        remote_indices: _Indices,
        notif_msg: _Message = "",
        backend: Sequence[int] = (),
        skip_desc_merg: bool = False,
    ) -> int:
        """Create a transfer from rows of prepared lists; return its number."""
        name = "makeXferReq"
        handle = self._agent.make_prepped_xfer(
            _operation(name, operation),
            self._dlist(name, local_side),
            local_indices,
            self._dlist(name, remote_side),
            remote_indices,
            notif_msg,
            self._names(name, backend),
            skip_desc_merg,
        )
        return self._keep(handle)

    def createXferReq(
        self,
        operation: int,
        local_descs: nixlXferDList,
        remote_descs: nixlXferDList,
        remote_agent: _Name,
        notif_msg: _Message = "",
        backend: Sequence[int] = (),
    ) -> int:
        """Create a transfer from descriptors. Returns its number."""
        name = "createXferReq"
        handle = self._agent.initialize_xfer(
            _operation(name, operation),
            local_descs,
            remote_descs,
            remote_agent,
            notif_msg,
            self._names(name, backend),
        )
        return self._keep(handle)

    def postXferReq(
        self, reqh: int, notif_msg: _Message = ""
    ) -> nixl_status_t:
        """Start a transfer: NIXL_SUCCESS (it has ended) or NIXL_IN_PROG."""
        handle = self._xfer("postXferReq", reqh)
        return _STATES[self._agent.transfer(handle, notif_msg)]

    def getXferStatus(self, reqh: int) -> nixl_status_t:
        """NIXL_SUCCESS or NIXL_IN_PROG; a failed transfer raises."""
        handle = self._xfer("getXferStatus", reqh)
        return _STATES[self._agent.check_xfer_state(handle)]

    def releaseXferReq(self, reqh: int) -> nixl_status_t:
        """Free a transfer; if it cannot be stopped now, it stays valid."""
        self._xfer("releaseXferReq", reqh).release()
        self._handles.pop(reqh, None)
        return nixl_status_t.NIXL_SUCCESS

    def getXferTelemetry(self, reqh: int) -> nixlXferTelemetry:
        """Telemetry of a transfer."""
        return self._agent.get_xfer_telemetry(
            self._xfer("getXferTelemetry", reqh)
        )

    def queryXferBackend(self, reqh: int) -> int:
        """The number of the backend that a transfer uses."""
        handle = self._xfer("queryXferBackend", reqh)
        name = self._agent.query_xfer_backend(handle)
        backends = self._agent.backends
        # UCX stands for every path, including SHM.
        return backends[name if name in backends else "UCX"]

    def estimateXferCost(self, req_handle: int) -> tuple[int, int, int]:
        """Duration and error margin in microseconds, and a nixl_cost_t."""
        duration, margin, method = self._agent.estimate_xfer_cost(
            self._xfer("estimateXferCost", req_handle)
        )
        return duration, margin, _COSTS.get(method, _UNKNOWN_COST)

    # -- Memory views -------------------------------------------------------

    def prepMemView(
        self,
        dlist: nixlXferDList | nixlRemoteDList,
        backends: Sequence[int] = (),
    ) -> int:
        """prep_mem_view()"""
        return self._agent.prep_mem_view(
            dlist, backends=self._names("prepMemView", backends)
        )

    def releaseMemView(self, mvh: int) -> None:
        """release_mem_view()"""
        self._agent.release_mem_view(mvh)

    # -- Notifications ------------------------------------------------------

    def getNotifs(
        self,
        notif_map: Mapping[str, Sequence[bytes]],
        backends: Sequence[int] = (),
    ) -> dict[str, list[bytes]]:
        """Return a copy of notif_map with the notifications received."""
        merged = {
            sender: list(messages) for sender, messages in notif_map.items()
        }
        names = self._names("getNotifs", backends)
        for sender, messages in self._agent.get_new_notifs(names).items():
            merged.setdefault(sender, []).extend(messages)
        return merged

    def genNotif(
        self,
        remote_agent: _Name,
        msg: _Message,
        backends: Sequence[int] = (),
    ) -> nixl_status_t:
        """Send a notification without a transfer."""
        names = self._names("genNotif", backends)
        self._agent.send_notif(remote_agent, msg, names[0] if names else None)
        return nixl_status_t.NIXL_SUCCESS
