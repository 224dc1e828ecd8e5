"""`vllm-nixl doctor HOST:PORT`: what answers there, and can it be reached."""

from __future__ import annotations

import base64
import socket
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from ... import (
    NixlError,
    nixlNotAllowedError,
    nixlNotFoundError,
)
from .. import channel, child, payload
from ..wire import WireError
from . import listener
from .findings import (
    Finding,
    Machine,
    as_json,
    bad,
    ok,
    show,
    status,
    warning,
)

if TYPE_CHECKING:
    import argparse

    from ..output import Output

# vLLM's listener is the commonest, and must get no bytes but its own.
_ORDER = ("zmq", "tcp", "http")
# NIXL's own protocol is not a side channel, but hands metadata over too.
_LISTENER = "NIXL's metadata listener"
_TRANSFER_SECONDS = 60


# Words in the reason why SHM is not used, and what changes it.
_REMEDIES = (
    ("VLLM_NIXL_SAME_HOST", "unset VLLM_NIXL_SAME_HOST"),
    (
        "network namespace",
        "if both run: docker run --network=container:NAME or --network=host",
    ),
    ("pid namespace", "docker run --pid=container:NAME or --pid=host"),
    ("ptrace_scope", "sysctl -w kernel.yama.ptrace_scope=1"),
    ("seccomp", "docker run --cap-add=SYS_PTRACE"),
    ("same user", "start both as the same user"),
)


class Answer(NamedTuple):
    """What a listener has answered."""

    transport: str
    data: bytes
    is_publication: bool
    seconds: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "address",
        nargs="?",
        type=channel.address,
        metavar="HOST:PORT",
        help="a side channel to ask (port 5600 if it has none)",
    )
    channel.add_transport(parser, None)
    channel.add_client_options(parser)


def run(options: argparse.Namespace, out: Output) -> int:
    """Ask the listener; returns the exit status."""
    found: list[Finding] = []
    facts: dict[str, Any] = {}

    def add(findings: list[Finding]) -> bool:
        found.extend(findings)
        show(findings, out)
        return status(findings) == 0

    if add(_connect(options)):
        answer, findings = _ask(options)
        if add(findings) and answer is not None:
            facts, findings = _inspect(answer)
            if add(findings):
                add(_transfer(options, answer, facts))
    out.result(
        {
            "address": "{}:{}".format(*options.address),
            "findings": as_json(found),
            "answer": facts,
        }
    )
    return status(found)


def _connect(options: argparse.Namespace) -> list[Finding]:
    """A plain TCP connection, so that its failure has its own words."""
    host, port = options.address
    check = "connection"
    seen = f"{host} port {port}"
    try:
        with socket.create_connection((host, port), options.timeout) as made:
            place = made.getpeername()[0]
    except socket.gaierror as error:
        return [
            bad(
                check,
                f"{seen}: {error.strerror}",
                "the name is not known here",
                "use an address, or add the name to DNS or /etc/hosts",
            )
        ]
    except TimeoutError:
        return [
            bad(
                check,
                f"{seen}: no answer within {options.timeout:g} s",
                "the host is down, or a firewall drops the packets",
                "open the port in the firewall or network policy between "
                "both hosts",
            )
        ]
    except ConnectionRefusedError:
        return [
            bad(
                check,
                f"{seen}: connection refused",
                "nobody listens on that address and port",
                "start the listener; `ss -ltn` there shows on which address "
                "and port (VLLM_NIXL_SIDE_CHANNEL_HOST, _PORT)",
            )
        ]
    except OSError as error:
        return [
            bad(
                check,
                f"{seen}: {error.strerror or error}",
                "the network between both hosts",
                f"ip route get {host}",
            )
        ]
    return [ok(check, f"{seen} accepts connections ({place})")]


# -- The side channel ---------------------------------------------------------


def _ask(
    options: argparse.Namespace,
) -> tuple[Answer | None, list[Finding]]:
    """Try the transports until one answers."""
    failures = []
    chosen = (options.transport,) if options.transport else _ORDER
    for transport in chosen:
        try:
            answer = _request(options, transport)
        except (nixlNotAllowedError, nixlNotFoundError) as error:
            return None, [_refused(transport, options, error)]
        except NixlError as error:
            failures.append(f"{transport}: {error}")
        else:
            seen = (
                f"{transport} answers: {len(answer.data):,} bytes in "
                f"{answer.seconds * 1e3:.1f} ms"
            )
            return answer, [ok("side channel", seen)]
    if options.transport is None:
        try:
            return _ask_listener(options)
        except listener.ListenerError as error:
            failures.append(f"{_LISTENER}: {error}")
    return None, [
        bad(
            "side channel",
            f"the listener speaks none of {', '.join(chosen)}",
            "; ".join(failures),
            "check the port; if the listener has a certificate, add --tls or "
            f"--tls-ca FILE; if it has a secret, set {channel.SECRET}",
        )
    ]


def _ask_listener(
    options: argparse.Namespace,
) -> tuple[Answer, list[Finding]]:
    host, port = options.address
    started = time.monotonic()
    data = listener.fetch(host, port, options.timeout)
    took = time.monotonic() - started
    seen = f"{_LISTENER} answers: {len(data):,} bytes in {took * 1e3:.1f} ms"
    answer = Answer(_LISTENER, data, False, took)
    return answer, [ok("side channel", seen)]


def _request(options: argparse.Namespace, transport: str) -> Answer:
    """Ask for the key, or for the publication and else the default."""
    host, port = options.address
    asked = channel.make(transport, channel.client_options(options))
    limit = int(options.timeout * 1000)
    started = time.monotonic()
    if options.key is not None:
        data = asked.request_metadata(host, port, limit, key=options.key)
        return Answer(transport, data, False, time.monotonic() - started)
    unknown: NixlError | None = None
    try:
        data = asked.request_metadata(
            host, port, limit, key=channel.PUBLICATION
        )
        return Answer(transport, data, True, time.monotonic() - started)
    except nixlNotFoundError as error:
        unknown = error
    except NixlError:
        # The first protocol has no keys: its servers close the connection.
        if transport != "tcp":
            raise
    started = time.monotonic()
    try:
        data = asked.request_metadata(host, port, limit)
    except NixlError as error:
        # They also close it if they have no default metadata.
        raise unknown or error from None
    return Answer(transport, data, False, time.monotonic() - started)


def _refused(
    transport: str, options: argparse.Namespace, error: NixlError
) -> Finding:
    if isinstance(error, nixlNotFoundError):
        return bad(
            "side channel",
            f"{transport} answers, but serves nothing under "
            + (f"the key {options.key!r}" if options.key else "a default key"),
            str(error),
            "--key KEY: ranks such as 0,1, or a name",
        )
    return bad(
        "side channel",
        f"{transport} answers, but refuses",
        str(error),
        f"set {channel.SECRET} to the listener's secret, or unset it if the "
        "listener has none",
    )


def _inspect(answer: Answer) -> tuple[dict[str, Any], list[Finding]]:
    try:
        facts = payload.facts(answer.data)
    except WireError as error:
        return {}, [
            bad(
                "metadata",
                f"{len(answer.data):,} bytes that are no metadata",
                str(error),
                "check what the listener serves under this key: vllm-nixl "
                "fetch HOST:PORT | vllm-nixl inspect -",
            )
        ]
    findings = [ok("metadata", f"{facts['kind']}: {payload.summary(facts)}")]
    for connection in facts["connections"]:
        if "error" in connection:
            findings.append(
                bad(
                    "metadata",
                    f"connection {connection['backend']}",
                    connection["error"],
                    "use the same version of vllm_nixl at both ends",
                )
            )
    return facts, findings


# -- The transfer -------------------------------------------------------------


def _transfer(
    options: argparse.Namespace, answer: Answer, facts: dict[str, Any]
) -> list[Finding]:
    """Read some bytes in a child process, and look at the route."""
    try:
        if answer.is_publication:
            host, port = options.address
            arguments = {
                "transport": answer.transport,
                "host": host,
                "port": port,
                "options": channel.client_options(options),
            }
            result, _ = child.run("attach", arguments, _TRANSFER_SECONDS)
        else:
            blob = payload.agent_metadata(answer.data)
            text = base64.b64encode(blob).decode()
            result, _ = child.run(
                "load", {"metadata": text}, _TRANSFER_SECONDS
            )
    except child.ChildError as error:
        return [
            bad(
                "transfer",
                "no bytes could be read from the agent",
                str(error),
                "run `vllm-nixl doctor` on both machines",
            )
        ]
    return [*_reads(result["lists"]), _route(result["peer"], facts)]


def _reads(lists: list[dict[str, Any]]) -> list[Finding]:
    if not lists:
        return [ok("transfer", "none: the agent offers no CPU memory")]
    found = []
    for part in lists:
        seen = (
            f"{part['list'].partition(' ')[0]}: read {part['rows']:,} of "
            f"{part['of']:,} rows, {part['bytes']:,} bytes, "
        )
        if part["verdict"] == "wrong bytes":
            found.append(
                bad(
                    "transfer",
                    seen + "wrong bytes",
                    "they differ from the checksum that the server published",
                    "restart the server; if it stays, report it",
                )
            )
        else:
            found.append(ok("transfer", seen + part["verdict"]))
    return found


def _route(peer: dict[str, Any], facts: dict[str, Any]) -> Finding:
    """Which way the bytes took, and why no faster one."""
    used = peer.get("transports")
    seen = f"{peer['path']}" + (f" ({used})" if used else "")
    faster = peer.get("not_shm_because", "")
    if payload.is_this_host(facts) and peer["path"] == "UCX":
        return warning(
            "route",
            seen,
            f"both agents are on this host, but SHM is not used: {faster}",
            _remedy(faster),
        )
    rdma = Machine().rdma_devices()
    if used and rdma and not any(name in used for name in rdma):
        return warning(
            "route",
            seen,
            f"UCX uses no RDMA device, although there is {rdma[0]}",
            "check UCX_TLS and UCX_NET_DEVICES at both ends, and `ulimit -l`",
        )
    because = faster or peer.get("not_mapped_because", "")
    return ok(
        "route", seen + (f"; no faster one: {because}" if because else "")
    )


def _remedy(cause: str) -> str:
    for words, remedy in _REMEDIES:
        if words in cause:
            return remedy
    return "run `vllm-nixl doctor` as the users of both agents"
