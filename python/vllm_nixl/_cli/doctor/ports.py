"""Checks of the ports that listeners use by default."""

from __future__ import annotations

import os
from typing import NamedTuple

from .findings import Finding, Machine, bad, ok, warning

_ON = ("1", "y", "yes", "on", "true")
_LISTEN = "0A"  # of /proc/net/tcp


class _Port(NamedTuple):
    number: int
    use: str
    change: str


def _ports(machine: Machine) -> list[_Port]:
    environ = machine.environ
    name = "VLLM_NIXL_SIDE_CHANNEL_PORT"
    found = [
        _Port(
            _number(environ.get(name, ""), 5600),
            "side channel",
            f"set {name}, or pass another port; vLLM adds the rank of data "
            "parallelism to it",
        ),
        _Port(8888, "metadata listener", "listen_port=0 binds a free one"),
    ]
    if environ.get("NIXL_TELEMETRY_ENABLE", "").lower() in _ON:
        name = "NIXL_TELEMETRY_PROMETHEUS_PORT"
        number = _number(environ.get(name, ""), 9090)
        found.append(_Port(number, "telemetry", f"set {name}"))
    return found


def _number(text: str, default: int) -> int:
    good = text.isascii() and text.isdigit() and int(text) <= 65535
    return int(text) if good else default


def _listeners(machine: Machine) -> dict[int, str]:
    """The ports that are listened on: number to the socket's inode."""
    found: dict[int, str] = {}
    for name in ("tcp", "tcp6"):
        text = machine.read(machine.proc / "net" / name) or ""
        for line in text.splitlines()[1:]:
            cells = line.split()
            if len(cells) > 9 and cells[3] == _LISTEN:
                port = int(cells[1].rpartition(":")[2], 16)
                found.setdefault(port, cells[9])
    return found


def _owner(machine: Machine, inode: str) -> str:
    """The process with this socket, as far as /proc shows it."""
    wanted = f"socket:[{inode}]"
    for pid in machine.names(machine.proc):
        folder = machine.proc / pid / "fd"
        if not pid.isdigit():
            continue
        for number in machine.names(folder):
            try:
                if os.readlink(folder / number) == wanted:
                    return f"process {pid} ({_command(machine, pid)})"
            except OSError:
                continue
    return "another user's process, or one of another container"


def _command(machine: Machine, pid: str) -> str:
    text = machine.read(machine.proc / pid / "cmdline") or ""
    command = " ".join(text.rstrip("\0").split("\0"))
    return command if len(command) <= 60 else command[:57] + "..."


def check_ports(machine: Machine) -> list[Finding]:
    """Ports that listeners would bind, and who has them already."""
    listeners = _listeners(machine)
    found = []
    for port in _ports(machine):
        check = f"port {port.number}"
        if port.number in listeners:
            owner = _owner(machine, listeners[port.number])
            found.append(
                warning(
                    check,
                    f"{owner} listens on it",
                    f"it is the {port.use}'s: a listener that wants it fails "
                    "with Address already in use",
                    port.change
                    + f"; `vllm-nixl doctor localhost:{port.number}` asks "
                    "what answers there",
                )
            )
        else:
            found.append(ok(check, f"free, for the {port.use}"))
    return found


def check_port_range(machine: Machine) -> list[Finding]:
    """Ports below 1024 need a privilege."""
    first = machine.read(
        machine.proc / "sys/net/ipv4/ip_unprivileged_port_start"
    )
    privileged = _number(first or "", 1024)
    return [
        bad(
            f"port {port.number}",
            f"below {privileged}",
            "only root may listen on it",
            port.change,
        )
        for port in _ports(machine)
        if 0 < port.number < privileged and os.geteuid() != 0
    ]


CHECKS = (check_ports, check_port_range)
