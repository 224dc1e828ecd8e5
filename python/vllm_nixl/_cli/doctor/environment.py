"""Checks of environment variables: VLLM_NIXL_*, NIXL_*, UCX_*."""

from __future__ import annotations

import ipaddress
import socket

from .. import variables
from .findings import Finding, Machine, bad, ok, warning

# Which words of UCX_TLS stand for a transport.
_TCP = {"tcp"}
_SHARED = ({"cma", "sm", "shm"}, {"sysv", "mm", "sm", "shm"})
_RDMA = {"ib", "rc", "rc_v", "rc_verbs", "rc_x", "rc_mlx5", "ud", "ud_v"}
_RDMA |= {"ud_verbs", "ud_x", "ud_mlx5", "dc", "dc_x", "dc_mlx5", "srd"}
_GPU = {"cuda", "cuda_copy", "rocm", "rocm_copy"}

# Settings of UCX that make it worse: (variable, value, cause).
_HARMFUL = (
    (
        "UCX_TCP_CONN_NB",
        "n",
        "a peer that ends while UCX connects to it ends this process",
    ),
    (
        "UCX_TCP_PUT_ENABLE",
        "y",
        "closing a connection by force, as after a timeout, ends this process",
    ),
    (
        "UCX_MM_ERROR_HANDLING",
        "y",
        "the end of a peer on this host is not noticed",
    ),
)

# What stock NIXL reads, and this package does not: (variable, instead).
_NOT_READ = (
    ("NIXL_ETCD_ENDPOINTS", "use publish() and attach(), or a side channel"),
    ("NIXL_TCPSTORE_ENDPOINT", "use publish() and attach()"),
    ("NIXL_CONFIG_FILE", "pass the parameters to create_backend()"),
)


def check_variables(machine: Machine) -> list[Finding]:
    """Names that nobody reads, and values that are not valid."""
    found = []
    for name, value in sorted(machine.environ.items()):
        if not name.startswith(variables.PREFIX):
            continue
        if name in variables.NAMES:
            found += _value(name, value)
        elif name not in variables.OF_VLLM:
            found.append(_unknown(name))
    for name, instead in _NOT_READ:
        if machine.environ.get(name):
            found.append(
                warning(
                    name,
                    "is set",
                    "stock NIXL reads it, vllm_nixl does not",
                    instead,
                )
            )
    return found or [ok("variables", "all names and values are valid")]


def _value(name: str, value: str) -> list[Finding]:
    variable = variables.TABLE[variables.NAMES.index(name)]
    if not value and variable.may_be_empty:
        return []
    why = variable.check(value)
    if not why:
        return []
    shown = "its value" if variable.secret else f"{value!r}"
    return [
        bad(
            name,
            f"{shown} {why}",
            f"not a valid value ({variable.meaning})",
            f"unset {name}, or give it another value",
        )
    ]


def _unknown(name: str) -> Finding:
    near = variables.nearest(name, variables.NAMES)
    change = f"unset {name}"
    if near:
        change = f"rename it to {near}, or {change}"
    return warning(name, "unknown name", "nobody reads it", change)


# -- UCX ----------------------------------------------------------------------


def _allows(setting: str, words: set[str]) -> bool:
    """Whether a value of UCX_TLS allows one of the transports."""
    given = set(setting.removeprefix("^").split(","))
    if setting.startswith("^"):
        return not given & words
    return "all" in given or bool(given & words)


def check_ucx_tls(machine: Machine) -> list[Finding]:
    """Transports that UCX_TLS excludes although they are needed."""
    setting = machine.environ.get("UCX_TLS", "")
    if not setting or setting == "all":
        return []
    seen = f"UCX_TLS={setting}"
    found = []
    rdma = bool(machine.rdma_devices()) and _allows(setting, _RDMA)
    if not _allows(setting, _TCP) and not rdma:
        found.append(
            bad(
                "UCX_TLS",
                seen,
                "it excludes tcp, and no RDMA transport is left: agents on "
                "other hosts cannot be reached",
                "unset UCX_TLS, or add tcp to it",
            )
        )
    if not any(_allows(setting, words) for words in _SHARED):
        found.append(
            warning(
                "UCX_TLS",
                seen,
                "it excludes cma and sysv: UCX moves data within this host "
                "through the network stack",
                "unset UCX_TLS, or add cma,sysv to it",
            )
        )
    gpus = [name for name in machine.names(machine.dev) if _is_gpu(name)]
    if gpus and not _allows(setting, _GPU):
        found.append(
            bad(
                "UCX_TLS",
                seen,
                f"it excludes cuda_copy, and there is a GPU ({gpus[0]}): UCX "
                "cannot move GPU memory",
                "unset UCX_TLS, or add cuda to it",
            )
        )
    return found or [ok("UCX_TLS", seen)]


def _is_gpu(name: str) -> bool:
    return name == "kfd" or (name[:6] == "nvidia" and name[6:].isdigit())


def check_ucx_devices(machine: Machine) -> list[Finding]:
    """Devices that UCX_NET_DEVICES names, or leaves out."""
    setting = machine.environ.get("UCX_NET_DEVICES", "")
    if not setting or setting == "all" or setting.startswith("^"):
        return []
    seen = f"UCX_NET_DEVICES={setting}"
    named = {item.partition(":")[0] for item in setting.split(",")}
    interfaces = machine.interfaces()
    existing = {*interfaces, *machine.rdma_devices()}
    missing = sorted(named - existing - {"all"})
    if missing:
        return [
            bad(
                "UCX_NET_DEVICES",
                seen,
                f"there is no device {', '.join(missing)}; there are "
                + ", ".join(sorted(existing)),
                "unset UCX_NET_DEVICES, or name one of these",
            )
        ]
    if named == {"lo"}:
        return [
            bad(
                "UCX_NET_DEVICES",
                seen,
                "loopback reaches only this host",
                "unset UCX_NET_DEVICES",
            )
        ]
    others = {*machine.net_devices(), *machine.rdma_devices()} - named
    if "all" in named or not others:
        return [ok("UCX_NET_DEVICES", seen)]
    return [
        warning(
            "UCX_NET_DEVICES",
            seen,
            f"UCX does not use {', '.join(sorted(others))}: a peer that is "
            "reached only through one of them gets NIXL_ERR_BACKEND",
            "unset UCX_NET_DEVICES, unless every peer is in that network",
        )
    ]


def check_ucx_harm(machine: Machine) -> list[Finding]:
    """Settings that bring crashes or hangs back."""
    return [
        warning(name, f"{name}={value}", cause, f"unset {name}")
        for name, value, cause in _HARMFUL
        if machine.environ.get(name, "").lower()[:1] == value
    ]


# -- The side channel's host --------------------------------------------------


def check_side_channel_host(machine: Machine) -> list[Finding]:
    """Whether a listener could bind it, and peers reach it."""
    name = "VLLM_NIXL_SIDE_CHANNEL_HOST"
    setting = machine.environ.get(name, "")
    interfaces = machine.interfaces()
    found = []
    for host in filter(None, setting.split(",")):
        if host in interfaces:
            continue
        seen = f"{name}={host}"
        address, why = _address(host)
        if why:
            found.append(
                bad(
                    name,
                    seen,
                    why,
                    f"set {name} to an address or an interface of this "
                    f"machine: {', '.join(interfaces)}",
                )
            )
        elif address.is_loopback:
            found.append(
                warning(
                    name,
                    seen,
                    "only this host can connect to a loopback address",
                    f"set {name} to an address that peers can reach, or "
                    "unset it",
                )
            )
    return found


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NONE = ipaddress.IPv4Address(0)


def _address(host: str) -> tuple[_Address, str]:
    """The address of a name, and why a listener cannot bind it."""
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0]
        family, kind, protocol, _, place = found
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(place)
    except socket.gaierror as error:
        return _NONE, f"it is not known: {error.strerror}"
    except OSError as error:
        return _NONE, f"no listener can bind it: {error.strerror}"
    return ipaddress.ip_address(str(place[0]).partition("%")[0]), ""


CHECKS = (
    check_variables,
    check_ucx_tls,
    check_ucx_devices,
    check_ucx_harm,
    check_side_channel_host,
)
