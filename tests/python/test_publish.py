"""publish() and attach(): metadata and named rows in one exchange."""

import array
import asyncio
import collections
import contextlib
import copy
import os
import pickle
import socket
import threading

import pytest
from support import deadline
from support.ports import reserve_port
from support.program import run_program
from support.publication import KEY, checksum, publication, seal

with contextlib.suppress(ModuleNotFoundError):  # `module` fails for it
    import vllm_nixl

pytestmark = [pytest.mark.beyond_stock, pytest.mark.usefixtures("module")]

ROW = 4096
ROWS = 64
SIZE = ROW * ROWS
HOST = "127.0.0.1"


def rows_of(buffer, count=ROWS, size=ROW):
    return [(buffer.addr + i * size, size, 0) for i in range(count)]


def matrix(rows, columns=3):
    """A 2-D buffer of uint64, without numpy."""
    flat = array.array("Q", [number for row in rows for number in row])
    return memoryview(flat).cast("B").cast("Q", (len(rows), columns))


@pytest.fixture
def here(endpoint):
    return endpoint()


@pytest.fixture
def there(other):
    return other("prefill")


@pytest.fixture
def near(endpoint):
    """A publisher in this process."""
    return endpoint("prefill")


@contextlib.contextmanager
def serving(blob, port=0):
    """A listener that serves this publication; its port."""
    with vllm_nixl.TcpSideChannel() as channel:
        yield channel.start_listener(port, {KEY: blob}, HOST)


class Copy:
    """Reads all rows of a remote list into memory of `here`."""

    def __init__(self, here):
        self.here, self.buffer = here, here.alloc(SIZE)
        self.local = here.agent.prep_xfer_dlist(
            "", rows_of(self.buffer), "DRAM"
        )

    def make(self, remote):
        return self.here.agent.make_prepped_xfer(
            "READ", self.local, range(ROWS), remote, range(ROWS)
        )

    def read(self, remote):
        """The checksum of what was read."""
        self.here.poison(self.buffer.key, 0xEE)
        assert deadline.run(self.here.agent, self.make(remote)) == "DONE"
        return self.here.checksum(self.buffer.key)


# -- Between two agents ------------------------------------------------------


def test_attached_peer_is_ready_for_transfers(here, there):
    buffer = there.alloc(SIZE, seed=1)
    port = there.publish({"kv": rows_of(buffer)})
    peer = here.agent.attach(HOST, port)
    assert peer.names == ("kv",)
    assert Copy(here).read(peer.rows("kv")) == there.checksum(buffer.key)


def test_attach_async(here, there):
    buffer = there.alloc(SIZE, seed=1)
    port = there.publish({"kv": rows_of(buffer)})

    async def main():
        return await here.agent.attach_async("localhost", port)

    peer = asyncio.run(main())
    assert Copy(here).read(peer.rows("kv")) == there.checksum(buffer.key)


def test_descs_serve_for_other_rows(here, there):
    buffer, mine = there.alloc(SIZE, seed=1), here.alloc(SIZE)
    port = there.publish({"kv": rows_of(buffer)})
    peer = here.agent.attach(HOST, port)
    handle = here.agent.initialize_xfer(
        "READ",
        here.agent.get_xfer_descs(rows_of(mine), "DRAM"),
        peer.descs("kv"),
        peer,
    )
    assert deadline.run(here.agent, handle) == "DONE"
    assert here.checksum(mine.key) == there.checksum(buffer.key)


def test_peer_works_as_its_name(here, there):
    there.alloc(SIZE)
    peer = here.agent.attach(HOST, there.publish({}))
    there.add(here.metadata())
    assert peer == "prefill"
    assert {peer: 1}["prefill"] == 1
    assert f"{peer}" == "prefill"
    assert here.agent.check_remote_metadata(peer)
    here.agent.make_connection(peer)
    assert here.agent.describe(peer)["generation"] == 1
    here.agent.send_notif(peer, b"hello")
    here.agent.remove_remote_agent(peer)
    assert not here.agent.check_remote_metadata(peer)


def test_publishing_again_replaces_what_was_published(here, there):
    first = there.alloc(SIZE, seed=1)
    port = there.publish({"old": rows_of(first), "both": rows_of(first)})
    assert here.agent.attach(HOST, port).names == ("old", "both")
    second = there.alloc(SIZE, seed=2)
    assert there.publish({"both": rows_of(second)}) == port
    peer = here.agent.attach(HOST, port)
    assert peer.names == ("both",)
    assert Copy(here).read(peer.rows("both")) == there.checksum(second.key)


def test_restarted_publisher_is_attached_again(api, here, other):
    first = other("prefill")
    old = first.alloc(SIZE, seed=1)
    port = reserve_port()
    assert first.publish({"kv": rows_of(old)}, port) == port
    before = here.agent.attach(HOST, port)
    reader = Copy(here)
    assert reader.read(before.rows("kv")) == first.checksum(old.key)
    first.close()
    second = other("prefill")
    new = second.alloc(SIZE, seed=2)
    second.publish({"kv": rows_of(new)}, port)
    after = here.agent.attach(HOST, port, retries=None)
    with pytest.raises(api.nixlRemoteDisconnectError):
        here.agent.transfer(reader.make(before.rows("kv")))
    assert reader.read(after.rows("kv")) == second.checksum(new.key)


# -- Forms of rows -----------------------------------------------------------


def test_rows_have_every_form_of_prep_xfer_dlist(api, here, near):
    buffer = near.alloc(SIZE, seed=1)
    rows = rows_of(buffer)
    strided = [(buffer.addr, ROW, 0, ROW, ROWS)]
    port = near.agent.publish(
        {
            "tuples": rows,
            "tuple of tuples": tuple(rows),
            "matrix": matrix(rows),
            "strided": matrix(strided, 5),
            "list": api.nixlXferDList("DRAM", rows),
        }
    )
    peer = here.agent.attach(HOST, port)
    reader = Copy(here)
    for name in peer.names:
        assert list(peer.descs(name)) == rows
        assert peer.descs(name).getType() == api.nixl_mem_t.DRAM_SEG
        assert reader.read(peer.rows(name)) == near.checksum(buffer.key)


def test_rows_may_be_tensors(here, near):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    tensors = [torch.full((ROW,), i, dtype=torch.uint8) for i in range(3)]
    near.agent.register_memory(tensors)
    port = near.agent.publish({"kv": tensors, "one": tensors[0]})
    peer = here.agent.attach(HOST, port)
    rows = [(tensor.data_ptr(), ROW, 0) for tensor in tensors]
    assert list(peer.descs("kv")) == rows
    assert list(peer.descs("one")) == rows[:1]


def test_any_mapping_has_rows(here, near):
    rows = rows_of(near.alloc(SIZE))
    near.agent.publish({})
    for mapping in (
        collections.OrderedDict(b=rows, a=rows),
        collections.ChainMap({"b": rows, "a": rows}),
        collections.UserDict({"b": rows, "a": rows}),
    ):
        peer = here.agent.attach(HOST, near.agent.publish(mapping))
        assert peer.names == tuple(mapping)


def test_names_are_any_text(here, near):
    rows = rows_of(near.alloc(SIZE))
    names = ("kv", "layer.0/k", " ", "Schlüssel", "鍵", "x" * 255)
    port = near.agent.publish(dict.fromkeys(names, rows))
    assert here.agent.attach(HOST, port).names == names


def test_hundred_thousand_rows(here, near):
    count, size = 100_000, 8
    buffer = near.alloc(count * 2 * size)
    regular = [(buffer.addr + i * 2 * size, size, 0) for i in range(count)]
    scattered = [regular[i * 7919 % count] for i in range(count)]
    lists = {"regular": matrix(regular), "scattered": matrix(scattered)}
    port = near.agent.publish(lists)
    peer = here.agent.attach(HOST, port)
    assert list(peer.descs("regular")) == regular
    assert list(peer.descs("scattered")) == scattered
    blob = here.agent.request_remote_metadata(HOST, port, key=KEY)
    assert count * 24 < len(blob) < count * 24 + 10_000


def test_descs_returns_a_new_list_each_time(here, near):
    rows = rows_of(near.alloc(SIZE))
    peer = here.agent.attach(HOST, near.agent.publish({"kv": matrix(rows)}))
    peer.descs("kv").clear()
    assert list(peer.descs("kv")) == rows
    assert peer.rows("kv") is peer.rows("kv")


def test_published_list_may_change_afterwards(api, here, near):
    rows = rows_of(near.alloc(SIZE))
    given = api.nixlXferDList("DRAM", rows)
    port = near.agent.publish({"kv": given})
    given.clear()
    assert list(here.agent.attach(HOST, port).descs("kv")) == rows


# -- The peer as an object ---------------------------------------------------


def test_unknown_name_gives_the_names_that_exist(here, near):
    rows = rows_of(near.alloc(SIZE))
    peer = here.agent.attach(HOST, near.agent.publish({"k": rows, "v": rows}))
    for call in (peer.rows, peer.descs):
        with pytest.raises(KeyError, match=r"no list 'kv', but 'k', 'v'"):
            call("kv")
    with pytest.raises(KeyError, match="but none"):
        here.agent.attach(HOST, near.agent.publish({})).rows("kv")


def test_copies_and_pickles_of_a_peer_are_its_name(here, near):
    peer = here.agent.attach(HOST, near.agent.publish({}))
    for same in (
        pickle.loads(pickle.dumps(peer)),
        copy.copy(peer),
        copy.deepcopy(peer),
    ):
        assert type(same) is str
        assert same == "prefill"
    assert repr(peer) == "<Peer 'prefill': no lists>"


def test_peer_keeps_its_agent(here, near, api):
    rows = rows_of(near.alloc(SIZE))
    port = near.agent.publish({"kv": rows})
    peer = api.nixl_agent("short-lived").attach(HOST, port)
    assert list(peer.descs("kv")) == rows
    with pytest.raises(api.nixlInvalidParamError, match="another agent"):
        Copy(here).make(peer.rows("kv"))


# -- The side channel --------------------------------------------------------


def test_publishing_uses_the_side_channel_of_the_agent(api, here, near):
    agent = near.agent
    rows = rows_of(near.alloc(SIZE))
    port = reserve_port()
    agent.start_side_channel_listener(port, {"mine": b"yours"}, HOST)
    assert agent.publish({"kv": rows}) == port
    assert agent.publish({"kv": rows}, port, HOST) == port
    assert here.agent.attach(HOST, port).names == ("kv",)
    ask = here.agent.request_remote_metadata
    assert ask(HOST, port, key="mine") == b"yours"
    assert here.agent.add_remote_agent(ask(HOST, port)) == b"prefill"
    with pytest.raises(api.nixlNotAllowedError, match=f"on port {port}, not"):
        agent.publish({}, port - 1)
    with pytest.raises(api.nixlNotAllowedError, match="not '::1'"):
        agent.publish({}, host="::1")
    assert agent.is_side_channel_running()
    agent.stop_side_channel_listener()
    with pytest.raises(api.nixlBackendError, match=r"attach: .*refused"):
        here.agent.attach(HOST, port)
    assert agent.publish({}, port, [HOST]) == port


def test_default_port_is_that_of_the_environment(near, monkeypatch):
    port = reserve_port()
    monkeypatch.setenv("VLLM_NIXL_SIDE_CHANNEL_PORT", str(port))
    assert near.agent.publish({}, None) == port


def test_request_remote_metadata_async(api, here, near):
    port = near.agent.start_side_channel_listener(0, {"a": b"A", None: b"B"})
    ask = here.agent.request_remote_metadata_async

    async def main():
        return await asyncio.gather(
            ask(HOST, port, key="a"),
            ask(HOST, port, timeout_ms=10_000, retries=None),
            ask(HOST, port, key="c"),
            return_exceptions=True,
        )

    first, second, third = asyncio.run(main())
    assert (first, second) == (b"A", b"B")
    assert type(third) is api.nixlNotFoundError


def test_tasks_run_while_attach_async_waits(here, near):
    port = reserve_port()

    async def main():
        attaching = asyncio.create_task(
            here.agent.attach_async(HOST, port, 30_000, retries=None)
        )
        await asyncio.sleep(0)
        assert not attaching.done()
        near.agent.publish({"kv": rows_of(near.alloc(SIZE))}, port)
        return await attaching

    assert asyncio.run(main()).names == ("kv",)


def test_cancelled_attach_async_leaves_nothing_behind(here):
    port = reserve_port()
    before = len(os.listdir("/proc/self/fd"))

    async def main():
        attaching = asyncio.create_task(
            here.agent.attach_async(HOST, port, 30_000, retries=None)
        )
        await asyncio.sleep(0)
        attaching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attaching

    asyncio.run(main())
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def slow_load(monkeypatch):
    """attach_async() has fetched, and loading waits: begun, goes on."""
    begun, goes_on = threading.Event(), threading.Event()
    begin = vllm_nixl.TcpSideChannel._begin_attach

    class Slow:
        def __init__(self, *args):
            self.requests = begin(*args)
            self.fileno, self.step = self.requests.fileno, self.requests.step

        def take(self):
            begun.set()
            assert goes_on.wait(deadline.PATIENCE)
            return self.requests.take()

    monkeypatch.setattr(
        vllm_nixl.TcpSideChannel,
        "_begin_attach",
        lambda *args: Slow(*args),
        raising=False,
    )
    return begun, goes_on


def test_tasks_run_while_attach_async_loads(here, near, slow_load):
    begun, goes_on = slow_load
    port = near.agent.publish({"kv": rows_of(near.alloc(SIZE))})

    async def main():
        attaching = asyncio.create_task(here.agent.attach_async(HOST, port))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        assert not attaching.done()
        goes_on.set()
        return await attaching

    assert asyncio.run(main()).names == ("kv",)


def test_attach_async_cancelled_while_it_loads(here, near, slow_load):
    begun, goes_on = slow_load
    port = near.agent.publish({"kv": rows_of(near.alloc(SIZE))})

    async def main():
        attaching = asyncio.create_task(here.agent.attach_async(HOST, port))
        while not begun.is_set():
            await asyncio.sleep(0.001)
        attaching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attaching
        goes_on.set()

    asyncio.run(main())  # waits for the thread
    assert here.agent.check_remote_metadata("prefill")
    assert here.agent.attach(HOST, port).names == ("kv",)


# -- What is refused ---------------------------------------------------------


def both_ways(agent, error, match, *args, **keywords):
    """attach() and attach_async() raise the same."""

    async def main():
        await agent.attach_async(*args, **keywords)

    with pytest.raises(error, match=match) as caught:
        agent.attach(*args, **keywords)
    with pytest.raises(error, match=match):
        asyncio.run(main())
    return caught.value


def test_nobody_listens(api, here):
    port = reserve_port()
    error = both_ways(
        here.agent,
        api.nixlBackendError,
        rf"attach: peer '{HOST}:{port}': .*refused",
        HOST,
        port,
    )
    assert error.operation == "attach"
    assert error.peer == f"{HOST}:{port}"


def test_listener_of_metadata_alone_is_recognised(api, here, near):
    port = near.agent.start_side_channel_listener(0, near.metadata())
    both_ways(
        here.agent,
        api.nixlNotFoundError,
        rf"attach: peer '{HOST}:{port}': the listener serves no publication",
        HOST,
        port,
    )


@pytest.mark.parametrize("asking", ["another secret", None])
def test_secret_of_the_side_channel(api, endpoint, monkeypatch, asking):
    prefill, decode = endpoint("prefill"), endpoint()
    monkeypatch.setenv("VLLM_NIXL_SIDE_CHANNEL_SECRET", "the same secret")
    port = prefill.agent.publish({})
    if asking is None:
        monkeypatch.delenv("VLLM_NIXL_SIDE_CHANNEL_SECRET")
    else:
        monkeypatch.setenv("VLLM_NIXL_SIDE_CHANNEL_SECRET", asking)
    both_ways(
        decode.agent,
        api.nixlNotAllowedError,
        "shared secrets differ" if asking else "the listener speaks TLS",
        HOST,
        port,
    )


def test_equal_secrets_of_the_side_channel(endpoint, monkeypatch):
    monkeypatch.setenv("VLLM_NIXL_SIDE_CHANNEL_SECRET", "the same secret")
    prefill, decode = endpoint("prefill"), endpoint()
    port = prefill.agent.publish({})
    assert decode.agent.attach(HOST, port) == "prefill"


def test_metadata_secret_signs_the_rows_too(api, endpoint):
    prefill = endpoint("prefill", metadata_secret="the same secret")
    decode = endpoint(metadata_secret="the same secret")
    stranger = endpoint(metadata_secret="another secret")
    buffer = prefill.alloc(SIZE)
    port = prefill.agent.publish({"kv": rows_of(buffer)})
    assert decode.agent.attach(HOST, port).names == ("kv",)
    with pytest.raises(api.nixlNotAllowedError, match="signature is wrong"):
        stranger.agent.attach(HOST, port)
    # Another row, and a correct checksum.
    blob = decode.agent.request_remote_metadata(HOST, port, key=KEY)
    body = bytearray(blob[:-8])
    at = body.index(buffer.addr.to_bytes(8, "little"), len(body) - 32 - 1600)
    body[at + 1] ^= 0x10
    changed = seal(bytes(body))
    plain = publication(prefill.metadata(), {})
    for forged, match in ((changed, "signature"), (plain, "is not signed")):
        with (
            serving(forged) as forged_port,
            pytest.raises(api.nixlNotAllowedError, match=match),
        ):
            decode.agent.attach(HOST, forged_port)


def test_damaged_publications_are_refused(api, here, near):
    buffer = near.alloc(SIZE)
    whole = publication(near.metadata(), {"kv": (0, rows_of(buffer, 3))})
    damaged = [
        b"",
        whole[:7],
        whole[:20],
        whole[:-1],
        whole + b"x",
        near.metadata(),
        whole.replace(b"kv", b"kw"),
        b"VNXPUBL:" + b"\xff" * 40,
        seal(whole[:8] + b"\x02" + whole[9:-8]),
        seal(whole[:12] + b"\xff\xff\xff\xff" + whole[16:-8]),
        seal(whole[:16] + b"\xff" * 8 + whole[24:-8]),
        seal(whole[:-80]),
        publication(b"not metadata", {}),
        publication(near.metadata(), {"kv": (0, [])}),
        publication(near.metadata(), {"": (0, [(1, 2, 3)])}),
        publication(near.metadata(), {"kv": (5, [(1, 2, 3)])}),
        publication(
            near.metadata(), {"kv": (0, [(buffer.addr, 8, 0, 0, 2**62)])}
        ),
    ]
    for blob in damaged:
        with serving(blob) as port:
            error = both_ways(
                here.agent, api.nixlMismatchError, "attach: ", HOST, port
            )
            assert error.peer == f"{HOST}:{port}", error
    with serving(whole) as port:
        assert here.agent.attach(HOST, port).names == ("kv",)
    assert checksum(b"") == bytes.fromhex("25232284e49cf2cb")


def test_rows_outside_the_published_regions_are_refused(api, here, near):
    buffer = near.alloc(SIZE)
    rows = rows_of(buffer)
    rows[5] = (buffer.addr + SIZE, ROW, 0)
    strided = [(buffer.addr, ROW, 0, ROW, 3), (buffer.addr, ROW, 0, ROW, 65)]
    for forged, row in ((rows, 5), (strided, 3 + 64)):
        blob = publication(
            near.metadata(), {"fine": (0, rows[:5]), "kv": (0, forged)}
        )
        with serving(blob) as port:
            error = both_ways(
                here.agent,
                api.nixlNotFoundError,
                rf"attach: row {row} \(address 0x[0-9a-f]+, .*, peer "
                rf"'{HOST}:{port}': agent 'prefill': list 'kv': ",
                HOST,
                port,
            )
            assert error.index == row


@pytest.mark.nixl_differs("it cannot ask the owner of a region")
def test_region_that_the_owner_denies_is_not_read(api, here, there):
    """The metadata of a publication is a claim; the owner decides."""
    buffer = there.alloc(SIZE, seed=1)
    port = there.publish({"kv": rows_of(buffer)})
    there.deregister(buffer.key)
    reader = Copy(here)
    with pytest.raises(api.NixlError):
        reader.read(here.agent.attach(HOST, port).rows("kv"))
    assert here.checksum(reader.buffer.key) != there.checksum(buffer.key)


@pytest.mark.parametrize(
    ("rows", "error", "match"),
    [
        (5, TypeError, "rows must be a mapping"),
        (None, TypeError, "rows must be a mapping"),
        ([("kv", [])], TypeError, "rows must be a mapping"),
        ({1: []}, TypeError, "a name in rows must be a str"),
        ({"": []}, ValueError, "its name is empty"),
        ({"a\0b": []}, ValueError, "a name in rows"),
        ({"x" * 256: []}, ValueError, "more than 255 bytes"),
        ({"kv": []}, ValueError, "list 'kv'.*no rows"),
        ({"kv": 7}, TypeError, "publish: list 'kv': "),
        ({"kv": [(1, 2)]}, TypeError, "publish: list 'kv': row 0: 3 items"),
        ({"kv": [(1, 2, -3)]}, ValueError, "publish: list 'kv': row 0: "),
        (
            {"kv": b"xyz"},
            TypeError,
            "publish: list 'kv': descriptors are an array",
        ),
    ],
)
def test_wrong_rows_are_refused(near, rows, error, match):
    with pytest.raises(error, match=match) as caught:
        near.agent.publish(rows)
    assert getattr(caught.value, "operation", "publish") == "publish"
    assert not near.agent.is_side_channel_running()


def test_unregistered_row_is_refused_and_the_old_rows_stay(api, here, near):
    buffer = near.alloc(SIZE)
    rows = rows_of(buffer)
    port = near.agent.publish({"kv": rows})
    wrong = [*rows, (buffer.addr + SIZE, 1, 0)]
    for form in (wrong, matrix(wrong), matrix([(*rows[0], ROW, 65)], 5)):
        with pytest.raises(
            api.nixlNotFoundError, match=r"publish: row 64 .*list 'kx': "
        ) as caught:
            near.agent.publish({"kv": rows, "kx": form})
        assert caught.value.index == 64
    assert list(here.agent.attach(HOST, port).descs("kv")) == rows


def test_memory_type_of_arrays_and_tuples(api, near):
    rows = rows_of(near.alloc(SIZE))
    for form in (rows, matrix(rows)):
        with pytest.raises(api.nixlNotFoundError, match=r"list 'kv': .*VRAM"):
            near.agent.publish({"kv": form}, mem_type="VRAM")
        with pytest.raises(KeyError, match=r"list 'kv': .*'VRAN'"):
            near.agent.publish({"kv": form}, mem_type="VRAN")
    given = api.nixlXferDList("DRAM", rows)
    near.agent.publish({"kv": given}, mem_type="VRAM")  # it has its own


def test_agent_cannot_attach_to_itself(api, near):
    port = near.agent.publish({})
    with pytest.raises(api.nixlInvalidParamError, match="own"):
        near.agent.attach(HOST, port)


def test_closed_agents_are_refused(api, here, near):
    port = near.agent.publish({})
    here.agent.close()
    with pytest.raises(api.nixlClosedError, match="attach"):
        here.agent.attach(HOST, port)
    near.agent.close()
    assert not near.agent.is_side_channel_running()
    with pytest.raises(api.nixlClosedError, match="publish"):
        near.agent.publish({})


# -- Threads, forks, the caller's code ---------------------------------------


def test_threads_publish_and_attach_at_once(here, near):
    rows = rows_of(near.alloc(SIZE))
    port = near.agent.publish({"0": rows})
    ready = threading.Barrier(8)
    failures = []

    def work(number):
        ready.wait()
        try:
            for _ in range(20):
                if number % 2 == 0:
                    near.agent.publish({str(number): matrix(rows)})
                else:
                    peer = here.agent.attach(HOST, port)
                    (name,) = peer.names
                    assert int(name) % 2 == 0
                    assert list(peer.descs(name)) == rows
        except Exception as exception:
            failures.append(exception)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_other_threads_run_while_attach_waits(here):
    errors = []

    def attach():
        try:
            here.agent.attach(HOST, port, 30_000, retries=None)
        except Exception as error:
            errors.append(error)

    port = reserve_port()
    with socket.create_server((HOST, port)) as listener:
        listener.settimeout(deadline.PATIENCE)
        thread = threading.Thread(target=attach)
        thread.start()
        client, _ = listener.accept()  # while the thread waits
    with serving(b"not a publication", port):
        client.close()
        thread.join()
    assert [type(error).__name__ for error in errors] == ["nixlMismatchError"]


def test_timeout_ends_attach(api, here):
    """A listener that never answers."""
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
        both_ways(
            here.agent,
            api.nixlTimeoutError,
            rf"attach: peer '{HOST}:{port}': receiving from .*timed out",
            HOST,
            port,
            timeout_ms=500,
        )


def test_forked_child_neither_publishes_nor_attaches():
    run_program(
        f"""
        import os, vllm_nixl
        prefill = vllm_nixl.NixlAgent("prefill")
        decode = vllm_nixl.NixlAgent("decode")
        memory = vllm_nixl.shared_buffer({SIZE})
        prefill.register_memory([(memory.address, {SIZE}, 0, "")], "DRAM")
        rows = [(memory.address, {SIZE}, 0)]
        port = prefill.publish({{"kv": rows}})
        peer = decode.attach("127.0.0.1", port)

        def refuses(call, *args):
            try:
                call(*args)
            except vllm_nixl.nixlNotAllowedError:
                return True

        child = os.fork()
        if child == 0:
            good = refuses(prefill.publish, {{"kv": rows}})
            good = good and refuses(decode.attach, "127.0.0.1", port)
            del peer
            os._exit(0 if good else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert decode.attach("127.0.0.1", port) == peer
        assert peer.descs("kv")[0] == rows[0]
        """
    )


def test_conversion_may_change_other_lists(api, here, near):
    """A conversion runs the caller's code, which empties a list that was
    converted before."""
    rows = rows_of(near.alloc(SIZE))
    given = api.nixlXferDList("DRAM", rows)

    class Address:
        def __index__(self):
            given.clear()
            return addr

    addr, size, device = rows[0]
    with pytest.raises(api.nixlInvalidParamError, match="no rows"):
        near.agent.publish({"kv": given, "evil": [(Address(), size, device)]})


def test_conversion_may_close_the_agent(api, near):
    rows = rows_of(near.alloc(SIZE))

    class Address:
        def __index__(self):
            near.agent.close()
            return addr

    addr, size, device = rows[0]
    with pytest.raises(api.nixlClosedError):
        near.agent.publish({"kv": [(Address(), size, device)]})
