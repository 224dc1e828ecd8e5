"""Files through NIXL's POSIX backend, and their errors."""

import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from support import deadline
from support.disk import small_disk
from support.memory import pattern
from support.nixl import why_no_library

BLOCK = 1 << 16
OFFLOAD = Path(__file__).resolve().parents[2] / "examples" / "offload.py"

pytestmark = pytest.mark.skipif(
    why_no_library() is not None, reason=str(why_no_library())
)


class Storage:
    """An agent with the backend POSIX and files for it."""

    def __init__(self, made, folder):
        self.made, self.agent, self.folder = made, made.agent, folder
        self.agent.create_backend("POSIX", {"use_aio": "true"})
        self.files = []

    def open(self, name, flags=os.O_RDWR | os.O_CREAT, size=BLOCK * 16):
        """(descriptor, path) of a registered file."""
        path = str(self.folder / name)
        fd = os.open(path, flags)
        self.files.append(fd)
        self.agent.register_memory([(0, size, fd, path)], "FILE")
        return fd, path

    def make(self, operation, memory, files):
        agent = self.agent
        return agent.initialize_xfer(
            operation,
            agent.get_xfer_descs(memory, "DRAM"),
            agent.get_xfer_descs(files, "FILE"),
            agent.name,
        )

    def move(self, operation, memory, files):
        with self.make(operation, memory, files) as handle:
            return deadline.run(self.agent, handle)

    def close(self):
        for fd in self.files:
            os.close(fd)


@pytest.fixture
def storage(endpoint, tmp_path, opened):
    made = endpoint(engine="nixl", backends=[])
    opened.insert(0, Storage(made, tmp_path))  # closed after its agent
    return opened[0]


def row(block, index=0, size=BLOCK):
    return (block.addr + index * size, size, 0)


# -- successful operations ----------------------------------------------------


def test_blocks_are_written_to_a_file_and_read_back(storage):
    made = storage.made
    source, target = (
        made.alloc(8 * BLOCK, seed=1),
        made.alloc(8 * BLOCK),
    )
    fd, path = storage.open("blocks")
    places = [3, 0, 7, 1, 6, 2, 5, 4]
    files = [(place * BLOCK, BLOCK, fd) for place in places]
    assert (
        storage.move("WRITE", [row(source, i) for i in range(8)], files)
        == "DONE"
    )
    whole = pattern(1, 8 * BLOCK)
    with open(path, "rb") as written:
        data = written.read()
    for i, place in enumerate(places):
        assert (
            data[place * BLOCK : (place + 1) * BLOCK]
            == whole[i * BLOCK : (i + 1) * BLOCK]
        )
    storage.move("READ", [row(target, i) for i in range(8)], files)
    assert made.read(target.key) == whole


def test_file_lists_are_prepared_and_used_by_index(storage):
    made, agent = storage.made, storage.agent
    block = made.alloc(4 * BLOCK, seed=2)
    fd, path = storage.open("indexed")
    left = agent.prep_xfer_dlist("", [row(block, i) for i in range(4)], "DRAM")
    right = agent.prep_xfer_dlist(
        agent.name, [(i * BLOCK, BLOCK, fd) for i in range(4)], "FILE"
    )
    handle = agent.make_prepped_xfer("WRITE", left, [1, 3], right, [0, 2])
    assert deadline.run(agent, handle) == "DONE"
    assert agent.query_xfer_backend(handle) == "POSIX"
    whole = pattern(2, 4 * BLOCK)
    with open(path, "rb") as written:
        assert written.read(BLOCK) == whole[BLOCK : 2 * BLOCK]
        written.seek(2 * BLOCK)
        assert written.read(BLOCK) == whole[3 * BLOCK :]


def test_transfer_to_a_file_signals_completion_by_event(storage):
    made, agent = storage.made, storage.agent
    block = made.alloc(16 * BLOCK, seed=3)
    fd, _ = storage.open("event")
    memory = [row(block, 0, 16 * BLOCK)]
    with storage.make("WRITE", memory, [(0, 16 * BLOCK, fd)]) as handle:
        agent.transfer(handle, b"written")
        assert agent.wait([handle], deadline.PATIENCE) == [handle]
        assert agent.check_xfer_state(handle) == "DONE"
        assert agent.get_xfer_telemetry(handle).totalBytes == 16 * BLOCK
    assert deadline.gather_notifs(agent, 1) == [(agent.name, b"written")]


def test_length_0_registers_the_whole_file(storage):
    made = storage.made
    block = made.alloc(BLOCK, seed=4)
    fd, path = storage.open("all", size=0)
    storage.move("WRITE", [row(block)], [(5 * BLOCK, BLOCK, fd)])
    assert os.path.getsize(path) == 6 * BLOCK


def test_memory_transfers_use_ucx_although_posix_supports_memory(storage):
    """The library would use any backend that supports both sides."""
    made, agent = storage.made, storage.agent
    agent.create_backend("UCX")
    source, target = made.alloc(BLOCK, seed=5), made.alloc(BLOCK)
    key = made.initialize("READ", [row(target)], [row(source)], agent.name)
    handle = made.handles[key]
    assert deadline.run(agent, handle) == "DONE"
    assert agent.query_xfer_backend(handle) == "UCX"
    assert made.read(target.key) == pattern(5, BLOCK)


def test_backends_report_memory_types_and_parameters(storage):
    agent = storage.agent
    assert set(agent.get_plugin_list()) >= {"POSIX", "UCX"}
    assert set(agent.get_backend_mem_types("POSIX")) == {
        "DRAM_SEG",
        "FILE_SEG",
    }
    assert "ios_pool_size" in agent.get_plugin_params("POSIX")
    assert agent.get_plugin_params("POSIX")["use_aio"] == "false"
    assert "num_workers" in agent.get_plugin_params("UCX")


def test_every_plugin_reports_its_parameters(storage):
    """Including plugins that cannot be loaded here, as in stock."""
    agent = storage.agent
    for plugin in agent.get_plugin_list():
        params = agent.get_plugin_params(plugin)
        assert all(
            isinstance(text, str) for pair in params.items() for text in pair
        )
        assert isinstance(agent.get_plugin_mem_types(plugin), list)


def test_query_memory_reports_what_exists(storage):
    _, path = storage.open("there")
    with open(path, "wb") as file:
        file.write(b"12345")
    missing = str(storage.folder / "missing")
    rows = [(0, 0, 0, path), (0, 0, 0, missing)]
    found, none = storage.agent.query_memory(rows, "POSIX", "FILE")
    assert found["size"] == "5"
    assert none is None
    descs = storage.agent.get_reg_descs(rows, "FILE")
    assert storage.agent.query_memory(descs, "POSIX")[0] == found


def test_one_gib_of_blocks_is_transferred(storage):
    """Every byte is read back, in another order than it was written."""
    size, count, batch = 4 << 20, 256, 16
    made = storage.made
    block = made.alloc(size * batch)
    fd, _ = storage.open("gib", size=size * count)
    source = pattern(8, size + count)
    sums = []
    memory = [row(block, i, size) for i in range(batch)]
    view = made.buffers[block.key].view
    for first in range(0, count, batch):
        for i in range(batch):
            data = source[first + i : first + i + size]
            view[i * size : (i + 1) * size] = data
            sums.append(zlib.crc32(data))
        files = [((first + i) * size, size, fd) for i in range(batch)]
        assert storage.move("WRITE", memory, files) == "DONE"
    order = [i * 97 % count for i in range(count)]
    for first in range(0, count, batch):
        places = order[first : first + batch]
        files = [(place * size, size, fd) for place in places]
        made.poison(block.key, 0xEE)
        assert storage.move("READ", memory, files) == "DONE"
        for i, place in enumerate(places):
            assert zlib.crc32(view[i * size : (i + 1) * size]) == sums[place]


# -- errors -------------------------------------------------------------------


def test_missing_file_is_named(api, storage):
    path = str(storage.folder / "missing")
    rows = [(0, BLOCK, 987654, path)]
    with pytest.raises(
        api.nixlNotFoundError, match="the file does not exist"
    ) as caught:
        storage.agent.register_memory(rows, "FILE")
    assert caught.value.index == 0
    assert path in str(caught.value)


def test_read_past_the_end_names_file_and_row(api, storage):
    made = storage.made
    block = made.alloc(4 * BLOCK, seed=6)
    fd, path = storage.open("short")
    os.ftruncate(fd, 2 * BLOCK + 10)
    memory = [row(block, i) for i in range(4)]
    files = [(i * BLOCK, BLOCK, fd) for i in (0, 1, 2, 3)]
    with pytest.raises(api.nixlBackendError, match="past the end") as caught:
        storage.move("READ", memory, files)
    assert caught.value.index == 2
    assert path in str(caught.value)
    assert str(2 * BLOCK + 10) in str(caught.value)
    assert storage.move("WRITE", memory, files) == "DONE"


def test_read_only_file_is_not_written(api, storage):
    made = storage.made
    block = made.alloc(BLOCK)
    (storage.folder / "readonly").write_bytes(b"x" * BLOCK)
    fd, path = storage.open("readonly", os.O_RDONLY)
    with pytest.raises(api.nixlBackendError, match="for writing") as caught:
        storage.move("WRITE", [row(block)], [(0, BLOCK, fd)])
    assert path in str(caught.value)
    assert storage.move("READ", [row(block)], [(0, BLOCK, fd)]) == "DONE"


def test_closed_descriptor_is_named(api, storage):
    made = storage.made
    block = made.alloc(BLOCK)
    fd, path = storage.open("closed")
    os.close(fd)
    storage.files.remove(fd)
    with pytest.raises(api.nixlBackendError, match="not open") as caught:
        storage.move("WRITE", [row(block)], [(0, BLOCK, fd)])
    assert path in str(caught.value)
    assert caught.value.index == 0


@pytest.fixture
def disk(tmp_path):
    with small_disk(tmp_path / "disk", "256k") as folder:
        yield folder


def test_full_disk_error_names_the_row(api, storage, disk):
    storage.folder = disk
    made = storage.made
    block = made.alloc(BLOCK, seed=7)
    fd, path = storage.open("full")
    files = [(i * BLOCK, BLOCK, fd) for i in range(8)]
    with pytest.raises(api.nixlBackendError, match="no space") as caught:
        storage.move("WRITE", [row(block)] * 8, files)
    assert path in str(caught.value)
    assert caught.value.index is not None
    assert storage.move("READ", [row(block)], files[:1]) == "DONE"
    assert made.read(block.key) == pattern(7, BLOCK)


def test_an_unregistered_range_of_a_file_is_refused(api, storage):
    made = storage.made
    block = made.alloc(BLOCK)
    fd, _ = storage.open("small", size=BLOCK)
    with pytest.raises(api.nixlNotFoundError, match="row 0"):
        storage.move("WRITE", [row(block)], [(1, BLOCK, fd)])


def test_backend_without_file_support_refuses_files(api, endpoint, tmp_path):
    agent = endpoint(engine="nixl").agent
    with open(tmp_path / "file", "wb") as file:
        rows = [(0, BLOCK, file.fileno(), "")]
        with pytest.raises(api.nixlNotSupportedError, match="FILE"):
            agent.register_memory(rows, "FILE")
    with pytest.raises(api.nixlNotSupportedError, match="UCX"):
        agent.query_memory([(0, 0, 0, "/a")], "UCX", "FILE")


def test_storage_only_agent_has_no_metadata(api, storage):
    with pytest.raises(api.nixlInvalidParamError, match="POSIX"):
        storage.agent.get_agent_metadata()


def test_unloadable_plugin_error_has_the_cause(api, storage):
    """GDS needs CUDA's libraries, which test machines lack."""
    agent = storage.agent
    if agent.get_plugin_mem_types("GDS"):
        pytest.skip("GDS can be loaded here")
    with pytest.raises(api.nixlNotFoundError, match=r"lib.*\.so"):
        agent.create_backend("GDS")


def test_example_offloads_and_reads_back(tmp_path):
    done = subprocess.run(
        [sys.executable, str(OFFLOAD), "--folder", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "every block is unchanged" in done.stdout
    assert not list(tmp_path.iterdir())


def test_example_names_the_missing_library(tmp_path):
    done = subprocess.run(
        [sys.executable, str(OFFLOAD), "--folder", str(tmp_path)],
        env={**os.environ, "VLLM_NIXL_LIBRARY": "/nowhere/libnixl_capi.so"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 1
    assert "/nowhere/libnixl_capi.so" in done.stdout
