"""Random keys, many requests and their asyncio versions: over every transport
each caller gets the metadata set under its key, or an error if there is none.
"""

import asyncio
import contextlib

import pytest
from support.ports import reserve_port
from support.transports import TRANSPORTS

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import strategies as st  # noqa: E402

with contextlib.suppress(ModuleNotFoundError):  # `module` fails for it
    import vllm_nixl

pytestmark = [pytest.mark.beyond_stock, pytest.mark.usefixtures("module")]

HOST = "127.0.0.1"

rank = st.integers(0, 2**31 - 1)
ranks = st.lists(rank, min_size=1, max_size=8).map(tuple)
text_key = st.text("abcdefgh-_.~XYZ0189", min_size=1, max_size=40)
byte_key = st.binary(min_size=1, max_size=255)
blob = st.binary(max_size=200)


@pytest.fixture(scope="module", params=TRANSPORTS, ids=lambda row: row.name)
def transport(request):
    return request.param


@pytest.fixture(scope="module")
def both(transport, module):
    """(server, port, client) for all examples."""
    with transport.make() as server, transport.make() as client:
        yield server, server.start_listener(0, b"", host=HOST), client


def some(examples):
    return hypothesis.settings(
        max_examples=examples, deadline=None, database=None
    )


@contextlib.contextmanager
def served(server, blobs):
    for key, data in blobs.items():
        server.set_metadata(data, key=key)
    try:
        yield
    finally:
        for key in blobs:
            if key is not None:
                server.remove_metadata(key)


def check_all(both, blobs, strangers):
    """Check every way to fetch: known keys give blobs, unknown keys
    nothing."""
    server, port, client = both
    keys = [*blobs, *strangers]

    def check(answers):
        for key, answer in zip(keys, answers, strict=True):
            if key in blobs:
                assert answer == blobs[key], key
            else:
                assert isinstance(answer, vllm_nixl.nixlNotFoundError), key

    def ask(key):
        try:
            return client.request_metadata(HOST, port, key=key)
        except vllm_nixl.NixlError as error:
            return error

    async def ask_twins():
        many = await client.request_many_async(
            [(HOST, port, key) for key in keys]
        )
        single = await asyncio.gather(
            *(
                client.request_metadata_async(HOST, port, key=key)
                for key in keys
            ),
            return_exceptions=True,
        )
        return many, single

    with served(server, blobs):
        check([ask(key) for key in keys])
        check(client.request_many([(HOST, port, key) for key in keys]))
        for answers in asyncio.run(ask_twins()):
            check(answers)


@some(15)
@hypothesis.given(
    blobs=st.dictionaries(ranks, blob, max_size=6), strangers=st.sets(ranks)
)
def test_ranks_are_keys_on_every_transport(both, blobs, strangers):
    check_all(both, blobs, [key for key in strangers if key not in blobs])


@some(15)
@hypothesis.given(
    blobs=st.dictionaries(
        st.one_of(text_key, byte_key), blob, min_size=1, max_size=6
    )
)
def test_text_and_bytes_keys_work_if_the_protocol_has_them(
    transport, both, blobs
):
    if not transport.any_key:
        pytest.skip(f"{transport.name} has no keys but ranks")
    # A text and its bytes are the same key: the last value counts.
    same = {}
    for key, data in blobs.items():
        raw = key.encode() if isinstance(key, str) else key
        same[raw] = data
    server, port, client = both
    with served(server, same):
        for key, data in same.items():
            assert client.request_metadata(HOST, port, key=key) == data


def test_rank_and_its_text_are_the_same_key(both):
    server, port, client = both
    with served(server, {(3, 14): b"found"}):
        assert client.request_metadata(HOST, port, key="3,14") == b"found"
        server.set_metadata(b"renewed", key="3,14")
        assert client.request_metadata(HOST, port, key=(3, 14)) == b"renewed"


@pytest.mark.parametrize(
    ("key", "error"),
    [
        (3, TypeError),
        (1.5, TypeError),
        (("a", "b"), (TypeError, ValueError)),
        ((-1, 0), (ValueError, OverflowError)),
        ([0, 1], TypeError),
        (b"x" * 256, (ValueError, "NixlError")),
    ],
)
def test_invalid_key_sends_no_request(both, key, error):
    server, port, client = both
    kinds = tuple(
        getattr(vllm_nixl, one) if isinstance(one, str) else one
        for one in (error if isinstance(error, tuple) else (error,))
    )
    before = server.stats()["accepted"]
    with pytest.raises(kinds):
        client.request_metadata(HOST, port, key=key)
    with pytest.raises(kinds):
        client.request_many([(HOST, port, key)])
    with pytest.raises(kinds):
        server.set_metadata(b"x", key=key)
    assert server.stats()["accepted"] == before


@pytest.mark.parametrize(
    "peers",
    [
        None,
        3,
        [3],
        [(HOST,)],
        [(HOST, "80")],
        [(HOST, 1, None, 4)],
        [(None, 80)],
    ],
)
def test_invalid_peer_refuses_the_whole_call(both, peers):
    client = both[2]
    with pytest.raises((TypeError, ValueError)):
        client.request_many(peers)


@pytest.mark.parametrize("port", [0, -1, 65536, 2**31])
def test_a_port_out_of_range_names_its_row(both, port):
    _, right, client = both
    with pytest.raises((vllm_nixl.NixlError, ValueError, OverflowError)):
        client.request_many([(HOST, right), (HOST, port)])


@some(8)
@hypothesis.given(dead=st.lists(st.booleans(), min_size=1, max_size=12))
def test_answers_are_in_the_order_of_peers(transport, both, dead):
    """Missing peers may be anywhere among the present ones."""
    server, port, client = both
    server.set_metadata(b"here")
    free = reserve_port()
    answers = client.request_many(
        [(HOST, free if is_dead else port) for is_dead in dead]
    )
    for is_dead, answer in zip(dead, answers, strict=True):
        if is_dead:
            assert isinstance(answer, transport.errors(transport.dead))
        else:
            assert answer == b"here"


def test_exhausted_retries_return_the_last_failure(transport, both):
    client = both[2]
    free = reserve_port()
    with pytest.raises(transport.errors(transport.dead)) as once:
        client.request_metadata(HOST, free)
    with pytest.raises(transport.errors(transport.dead)) as often:
        client.request_metadata(HOST, free, retries=2)
    assert type(once.value) is type(often.value)

    async def twice():
        with pytest.raises(transport.errors(transport.dead)):
            await client.request_metadata_async(HOST, free, retries=2)
        answers = await client.request_many_async([(HOST, free)], retries=1)
        assert isinstance(answers[0], transport.errors(transport.dead))

    asyncio.run(twice())


def test_fetch_many_waits_for_a_late_peer(transport, both):
    """retries=None: each peer is retried separately until its deadline."""
    _, port, client = both

    async def main():
        with transport.make() as late:
            free = reserve_port()
            asking = asyncio.ensure_future(
                client.request_many_async(
                    [(HOST, free), (HOST, port)],
                    timeout_ms=20_000,
                    retries=None,
                )
            )
            await asyncio.sleep(0.05)
            assert not asking.done()
            late.start_listener(free, b"late", host=HOST)
            return await asking

    both[0].set_metadata(b"there")
    assert asyncio.run(main()) == [b"late", b"there"]
