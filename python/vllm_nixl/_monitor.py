"""The live agents of the process.

With VLLM_NIXL_MONITOR set, the first one starts the server that shows them
(_monitor_socket.py); otherwise that module is not imported.
"""

from __future__ import annotations

import os
from _thread import allocate_lock
from _weakrefset import WeakSet  # weakref would take as long as the rest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._agent import NixlAgent
    from ._monitor_socket import Server

VARIABLE = "VLLM_NIXL_MONITOR"

_lock = allocate_lock()  # protects the following
_agents: WeakSet[NixlAgent] = WeakSet()
_server: Server | None = None
_is_tried = False


def add(agent: NixlAgent) -> None:
    """Note a new agent."""
    with _lock:
        _agents.add(agent)
        _start_lock_held()


def live_agents() -> list[NixlAgent]:
    """The agents of this process that exist and are not closed, by name."""
    with _lock:
        agents = list(_agents)
    return sorted(
        (agent for agent in agents if not agent.closed),
        key=lambda agent: str(agent.name),
    )


def _start_lock_held() -> None:
    """Start the server, if the user wants it; once."""
    global _server, _is_tried
    if _is_tried or os.environ.get(VARIABLE, "") in ("", "0"):
        return
    _is_tried = True
    import atexit

    from . import _monitor_socket
    from ._log import logger

    try:
        _server = _monitor_socket.Server(_monitor_socket.wanted_folder())
    # RuntimeError: an interpreter that may not have such a thread.
    except (_monitor_socket.MonitorError, OSError, RuntimeError) as error:
        logger.warning("%s: no socket: %s", VARIABLE, error)
        return
    atexit.register(_server.end)


def _forget_in_child() -> None:
    """Agents belong to the parent.  The first own one starts a server."""
    global _lock, _agents, _server, _is_tried
    _lock = allocate_lock()
    _agents = WeakSet()
    if _server is not None:
        _server.forget()
    _server = None
    _is_tried = False


os.register_at_fork(after_in_child=_forget_in_child)
