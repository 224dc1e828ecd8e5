"""What a blob of a side channel contains, as facts that JSON can hold.

A blob is an agent's metadata, a publication (metadata and named rows), or the
handshake of vLLM's connector, which has metadata inside.
"""

from __future__ import annotations

import os
from typing import Any

from . import msgpack, wire
from .wire import WireError

_FIRST_REGIONS = 3
# Fields of vLLM's NixlAgentMetadata that are shown; lists by their length.
_VLLM_FIELDS = (
    "engine_id",
    "device_id",
    "num_blocks",
    "block_size",
    "block_lens",
    "kv_caches_base_addr",
    "kv_cache_layout",
    "attn_backend_name",
)


def facts(data: bytes) -> dict[str, Any]:
    """Describe a blob; WireError if it is none of the three."""
    if wire.is_publication(data):
        return _publication(data)
    if data[: len(wire.PREFIX)] == wire.PREFIX:
        return {"kind": "metadata", "bytes": len(data), **metadata(data)}
    if data[:1] and 0x80 <= data[0] <= 0x8F:
        return _vllm(data)
    raise WireError(
        "these bytes are neither metadata (nixlSerDes|), nor a publication "
        "(VNXPUBL:), nor vLLM's handshake"
    )


def agent_metadata(data: bytes) -> bytes:
    """The agent's metadata in a blob of any kind; WireError."""
    if wire.is_publication(data):
        return wire.publication(data).metadata
    if data[: len(wire.PREFIX)] == wire.PREFIX:
        return data
    return _vllm_agent(data)[1]


def _publication(data: bytes) -> dict[str, Any]:
    found = wire.publication(data)
    return {
        "kind": "publication",
        "bytes": len(data),
        "publication_signed": found.signed,
        "lists": [
            {
                **part._asdict(),
                "mem_type": wire.MEM_TYPES[part.mem_type],
            }
            for part in found.lists
        ],
        **metadata(found.metadata),
    }


def _vllm_agent(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The fields of a handshake, and the agent's metadata among them."""
    outer = msgpack.loads(data)
    inner = outer.get("agent_metadata_bytes")
    if not isinstance(inner, bytes):
        raise WireError("a map, but not the one of vLLM's handshake")
    fields = msgpack.loads(inner)
    if not isinstance(fields, dict):
        raise WireError("agent_metadata_bytes has no map")
    fields["compatibility_hash"] = outer.get("compatibility_hash")
    blob = fields.get("agent_metadata")
    if not isinstance(blob, bytes):
        raise WireError("the handshake has no agent_metadata")
    return fields, blob


def _vllm(data: bytes) -> dict[str, Any]:
    fields, blob = _vllm_agent(data)
    shown: dict[str, Any] = {}
    for name in ("compatibility_hash", *_VLLM_FIELDS):
        value = fields.get(name)
        if isinstance(value, list):
            value = f"{len(value)} values"
        if isinstance(value, (str, int)):
            shown[name] = value
    return {
        "kind": "vLLM handshake",
        "bytes": len(data),
        "vllm": shown,
        **metadata(blob),
    }


# -- Metadata ----------------------------------------------------------------


def metadata(data: bytes) -> dict[str, Any]:
    """Describe an agent's metadata."""
    blob = wire.parse(data)
    sections = [s for s in blob.sections if not wire.is_signature(s)]
    return {
        "agent": text(blob.name),
        "metadata_bytes": len(data),
        "signed": len(sections) < len(blob.sections),
        "connections": [
            _connection(name, info) for name, info in blob.connections.items()
        ],
        "sections": [_section(section) for section in sections],
    }


def text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _connection(name: bytes, info: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = {"backend": text(name), "bytes": len(info)}
    try:
        if name == b"SHM":
            facts |= wire.shm(info)._asdict()
            facts["this_host"] = facts["boot_id"] == _boot_id()
        elif name == b"VNX":
            facts |= wire.identity(info)._asdict()
    except WireError as error:
        facts["error"] = str(error)
    return facts


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def _section(section: wire.Section) -> dict[str, Any]:
    regions = section.regions
    whole = [r.size for r in regions if r.size != wire.WHOLE]
    return {
        "backend": text(section.backend),
        "mem_type": wire.MEM_TYPES[section.mem_type],
        "regions": len(regions),
        "bytes": sum(whole),
        "public_bytes": sum(len(region.public) for region in regions),
        "first": [
            {"address": r.addr, "bytes": r.size, "device": r.device}
            for r in regions[:_FIRST_REGIONS]
        ],
    }


def is_this_host(facts: dict[str, Any]) -> bool:
    """Whether the agent says that it runs on this host."""
    return any(part.get("this_host") for part in facts["connections"])


def summary(facts: dict[str, Any]) -> str:
    """A line about the metadata in a blob."""
    names = [c["backend"] for c in facts["connections"]]
    kinds: dict[str, dict[str, int]] = {}
    for part in facts["sections"]:
        # Each backend lists the same regions: the largest list counts.
        before = kinds.get(part["mem_type"], {"regions": 0, "bytes": 0})
        if part["regions"] > before["regions"]:
            kinds[part["mem_type"]] = part
    regions = [
        f"{part['regions']:,} of {mem}, {size(part['bytes'])}"
        for mem, part in kinds.items()
    ]
    signed = "signed" if facts["signed"] else "not signed"
    return (
        f"agent {facts['agent']!r}, connections "
        f"{', '.join(names) or 'none'}; regions: "
        f"{'; '.join(regions) or 'none'}; {signed}"
    )


def size(number: float) -> str:
    """A number of bytes for people: 1.5 GiB."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while number >= 1024 and len(units) > 1:
        number /= 1024
        del units[0]
    return f"{number:.{int(units[0] != 'B')}f} {units[0]}"


def read_argument(given: str, stdin: Any) -> bytes:
    """The bytes that a BLOB, a FILE or "-" stands for."""
    if given == "-":
        return decoded(stdin.read())
    if os.path.exists(given):
        with open(given, "rb") as file:
            return decoded(file.read())
    found = decoded(given.encode("utf-8", "surrogateescape"))
    if found == given.encode("utf-8", "surrogateescape"):
        raise WireError(f"{given[:60]!r} is neither a file nor hex or base64")
    return found


def decoded(data: bytes) -> bytes:
    """The bytes themselves, or what they stand for in hex or base64."""
    import base64
    import binascii

    plain = b"".join(data.split())
    try:
        plain.decode("ascii")
        return bytes.fromhex(plain.decode("ascii"))
    except ValueError:
        pass
    try:
        return base64.b64decode(plain, validate=True)
    except binascii.Error:
        return data
