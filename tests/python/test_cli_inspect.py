"""`vllm-nixl inspect`: metadata in words, and hostile bytes."""

import base64
import random
import struct

import numpy as np
import pytest
import vllm_nixl
from support import blob as grammar
from support import cli, mutate
from support.publication import publication, seal
from vllm_nixl._cli import msgpack, payload, wire

pytestmark = pytest.mark.beyond_stock

SECRET = "correct horse battery staple"


@pytest.fixture(scope="module")
def memory():
    return np.zeros(65536, np.uint8)


def metadata(memory, name="inspected", **config):
    config = vllm_nixl.nixl_agent_config(engine="native", **config)
    with vllm_nixl.NixlAgent(name, config) as agent:
        start = memory.ctypes.data
        agent.register_memory(
            [(start + 4096 * i, 4096, 0, "") for i in (0, 5)], "DRAM"
        )
        return agent.get_agent_metadata()


def test_metadata_in_a_file(tmp_path, memory):
    file = tmp_path / "blob"
    file.write_bytes(metadata(memory))
    found = cli.run_json("inspect", file)
    assert found["kind"] == "metadata"
    assert found["agent"] == "inspected"
    assert found["signed"] is False
    (section,) = [s for s in found["sections"] if s["backend"] == "SHM"]
    assert section["mem_type"] == "DRAM"
    assert section["regions"] == 2
    assert section["bytes"] == 8192
    assert section["first"][0] == {
        "address": memory.ctypes.data,
        "bytes": 4096,
        "device": 0,
    }


def test_words(tmp_path, memory):
    file = tmp_path / "blob"
    file.write_bytes(metadata(memory))
    done = cli.run("inspect", file)
    assert done.returncode == 0
    assert "  agent     inspected\n" in done.stdout
    assert "this host (boot id " in done.stdout
    assert "instance " in done.stdout
    assert f"  {memory.ctypes.data:#x}, 4,096 bytes, device 0" in done.stdout


def test_connection_data(memory):
    found = payload.facts(metadata(memory))
    facts = {c["backend"]: c for c in found["connections"]}
    assert facts["SHM"]["pid"] > 0
    assert facts["SHM"]["this_host"] is True
    assert facts["VNX"]["partial"] is False
    assert facts["VNX"]["epoch"] == 1
    assert payload.is_this_host(found)


@pytest.mark.parametrize("form", ["raw", "hex", "base64", "lines"])
def test_stdin(memory, form):
    data = metadata(memory)
    given = {
        "raw": data,
        "hex": data.hex().encode(),
        "base64": base64.b64encode(data),
        "lines": base64.encodebytes(data),
    }[form]
    done = cli.run("inspect", "-", input=given)
    assert done.returncode == 0
    assert b"agent     inspected" in done.stdout


@pytest.mark.parametrize("encode", [bytes.hex, base64.b64encode])
def test_the_argument_itself(memory, encode):
    text = encode(metadata(memory))
    text = text if isinstance(text, str) else text.decode()
    assert cli.run_json("inspect", text)["agent"] == "inspected"


def test_signed_metadata(memory):
    if not vllm_nixl.features["signed_metadata"]:
        pytest.skip("this build cannot sign")
    found = payload.facts(metadata(memory, metadata_secret=SECRET))
    assert found["signed"] is True
    # The signature is no region.
    assert all(s["backend"] != "VNXSIGN" for s in found["sections"])


def test_metadata_of_a_stock_agent():
    """NIXL's own writer made these bytes (docs/wire.md)."""
    blob = grammar.Blob(
        b"A1",
        {b"UCX": b"worker address.."},
        [
            grammar.Section(
                b"UCX", 0, [grammar.Region(0x1000, 0x200, 0, b"<rkey>")]
            )
        ],
    )
    data = grammar.write(blob)
    assert len(data) == 250
    found = payload.facts(data)
    assert found["agent"] == "A1"
    assert found["connections"] == [{"backend": "UCX", "bytes": 16}]
    assert payload.summary(found) == (
        "agent 'A1', connections UCX; regions: 1 of DRAM, 512 B; not signed"
    )
    assert not payload.is_this_host(found)


def test_memory_types_and_whole_objects():
    regions = [grammar.Region(0, 2**64 - 1, 7, b"")]
    blob = grammar.Blob(
        b"x",
        {b"OBJ": b"c"},
        [grammar.Section(b"OBJ", 3, regions)],
    )
    (section,) = payload.facts(grammar.write(blob))["sections"]
    assert (section["mem_type"], section["bytes"]) == ("OBJ", 0)


# -- Publications ------------------------------------------------------------


def test_a_publication(memory):
    start = memory.ctypes.data
    data = publication(
        metadata(memory),
        {
            "kv": (0, [(start, 512, 0), (start + 512, 256, 0)]),
            "strided": (0, [(start, 8, 0, 16, 100)]),
        },
    )
    found = payload.facts(data)
    assert found["kind"] == "publication"
    assert found["agent"] == "inspected"
    first, second = found["lists"]
    assert (first["name"], first["rows"], first["bytes"]) == ("kv", 2, 768)
    assert (second["rows"], second["bytes"]) == (100, 800)
    assert (second["strided"], second["items"]) == (True, 1)


def test_what_publish_serves_is_understood(memory):
    with vllm_nixl.NixlAgent("publisher") as agent:
        agent.register_memory([(memory.ctypes.data, 4096, 0, "")], "DRAM")
        rows = [(memory.ctypes.data + 64 * i, 64, 0) for i in range(8)]
        port = agent.publish({"kv": rows}, host="127.0.0.1")
        data = agent.request_remote_metadata(
            "127.0.0.1", port, key="vnx.publication"
        )
    found = payload.facts(data)
    assert found["agent"] == "publisher"
    assert [(p["name"], p["rows"]) for p in found["lists"]] == [("kv", 8)]


def test_a_damaged_publication():
    data = bytearray(publication(b"", {}))
    data[12] ^= 1
    with pytest.raises(wire.WireError, match="checksum"):
        payload.facts(bytes(data))


def test_a_publication_of_another_version():
    data = seal(b"VNXPUBL:" + struct.pack("<BBHIQ", 2, 0, 0, 0, 0))
    with pytest.raises(wire.WireError, match="version 2"):
        payload.facts(data)


# -- vLLM's handshake --------------------------------------------------------


def handshake(blob):
    pack = pytest.importorskip("msgpack", reason="msgpack is missing").packb
    inner = {
        "engine_id": "engine-1",
        "agent_metadata": blob,
        "kv_caches_base_addr": [1 << 40] * 32,
        "num_blocks": 1000,
        "block_lens": [65536] * 32,
        "kv_cache_layout": "HND",
        "ssm_sizes": (0, 0),
        "region_names": None,
        "x": -1,
        "y": 1.5,
        "z": {"a": True},
    }
    return pack(
        {
            "compatibility_hash": "ab" * 32,
            "agent_metadata_bytes": pack(inner),
        }
    )


def test_the_handshake_of_vllm(memory):
    found = payload.facts(handshake(metadata(memory)))
    assert found["kind"] == "vLLM handshake"
    assert found["agent"] == "inspected"
    assert found["vllm"]["engine_id"] == "engine-1"
    assert found["vllm"]["num_blocks"] == 1000
    assert found["vllm"]["block_lens"] == "32 values"
    assert found["vllm"]["compatibility_hash"] == "ab" * 32


@pytest.mark.parametrize(
    "value",
    [
        *(0, 1, 127, 128, 255, 256, 65536, 2**32, 2**64 - 1, -1, -32, -33),
        *(-129, -32769, -(2**31) - 1, 1.5, True, False, None, "", "a" * 31),
        *("b" * 32, "c" * 256, "d" * 65536, b"", b"e" * 256, b"f" * 65536),
        *([], [1] * 15, [2] * 16, [3] * 65536, {}, {"k": [1, {"n": b"x"}]}),
        {str(i): i for i in range(16)},
        {str(i): i for i in range(65536)},
    ],
    ids=lambda value: f"{type(value).__name__}-{str(value)[:12]}",
)
def test_msgpack_of_every_form(value):
    pack = pytest.importorskip("msgpack", reason="msgpack is missing").packb
    assert msgpack.loads(pack(value)) == value


# -- Hostile input -----------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "neither"),
        (b"GET / HTTP/1.1", "neither"),
        (b"\x80", "not the one of vLLM"),
        (b"\x81\xa1x\xc1", "no value begins with 0xc1"),
        (b"nixlSerDes|", "5 bytes expected"),
        (b"VNXPUBL:", "expected"),
        (b"\x81\xdd\xff\xff\xff\xff", "do not fit"),
        (b"\x8f" + b"\x91" * 50, "nested"),
        (b"nixlSerDes|Agent" + b"\xff" * 8, "the data ends"),
    ],
)
def test_bytes_that_are_no_metadata(data, text):
    with pytest.raises(wire.WireError, match=text):
        payload.facts(data)


def test_an_error_is_one_line(tmp_path):
    file = tmp_path / "blob"
    file.write_bytes(b"\0" * 100)
    done = cli.run("inspect", file)
    assert (done.returncode, done.stdout) == (3, "")
    assert len(done.stderr.splitlines()) == 1
    assert "neither metadata" in done.stderr
    done = cli.run("inspect", "not-a-file")
    assert done.returncode == 3
    assert "neither a file nor hex or base64" in done.stderr


def test_a_folder_is_an_error(tmp_path):
    done = cli.run("inspect", tmp_path)
    assert done.returncode == 3
    assert "Traceback" not in done.stderr


def test_damaged_bytes_cause_no_other_exception(memory):
    """Every answer is either facts or a WireError."""
    start = memory.ctypes.data
    plain = metadata(memory)
    blobs = [
        plain,
        publication(
            plain, {"kv": (0, [(start, 8, 0)]), "s": (0, [(1, 2, 3, 4, 5)])}
        ),
        handshake(plain),
    ]
    accepted = refused = 0
    for data in mutate.mutations(4711, blobs, 4000):
        if wire.is_publication(data):
            data = seal(data[:-8])
        try:
            facts = payload.facts(data)
        except wire.WireError:
            refused += 1
        else:
            payload.summary(facts)
            accepted += 1
    assert accepted > 20
    assert refused > 1000


def test_flipped_bits_of_structures_with_a_checksum_are_found(memory):
    blob = grammar.parse(metadata(memory))
    dice = random.Random(7)
    for backend, parse in ((b"SHM", wire.shm), (b"VNX", wire.identity)):
        data = blob.connections[backend]
        parse(data)
        for _ in range(200):
            damaged = bytearray(data)
            damaged[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
            with pytest.raises(wire.WireError):
                parse(bytes(damaged))
