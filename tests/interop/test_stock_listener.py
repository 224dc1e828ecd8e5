"""Our metadata listener with stock's: each role, each command."""

import pytest
from support.deadline import until
from support.memory import pattern
from support.ports import reserve_port

HERE = "127.0.0.1"
SIZE = 4096


@pytest.fixture
def there(stock):
    """A stock agent with a listener and a block."""
    port = reserve_port()  # stock logs a port that it chooses, no more
    made = stock(enable_listen_thread=True, listen_port=port)
    made.port = port
    made.block = made.alloc(SIZE, seed=1)
    return made


@pytest.fixture
def here(endpoint):
    """Our agent with a listener and a block."""
    made = endpoint(enable_listen_thread=True, listen_port=0)
    made.port = made.agent.listen_port
    made.block = made.alloc(SIZE, seed=2)
    return made


def failures(here):
    return here.agent.stats()["listener_load_failures"]


@pytest.fixture
def common(api, there, here):
    """Skip the test, with our agent's error, unless both agents have a common
    backend."""
    try:
        here.add(there.metadata())
    except api.nixlBackendError as error:
        pytest.skip(f"no backend in common with stock: {error}")
    here.remove(there.name)


# -- Without a common backend -------------------------------------------------


def test_metadata_fetched_from_stock_is_complete(api, there, here):
    """Fetched metadata is complete for add_remote_agent(), which accepts or
    refuses it."""
    here.agent.fetch_remote_metadata(there.name, HERE, there.port)
    until(
        lambda: here.agent.stats()["listener_sent"] == 1, "the answer of stock"
    )
    try:
        here.add(there.metadata())
    except api.nixlBackendError:
        assert failures(here) == 1
        failure = here.agent.describe()["metadata_listener"]["last_failure"]
        assert there.name in failure
        assert "NIXL_ERR_BACKEND" in failure
    else:
        assert failures(here) == 0
        assert here.agent.check_remote_metadata(there.name)


def test_stock_sends_and_receives_metadata(api, there, here):
    """It loads the metadata we send at once, and its own arrives."""
    there.call("send_local_metadata", HERE, here.port)
    stats = here.agent.stats
    until(
        lambda: (
            stats()["listener_loaded"] + stats()["listener_load_failures"] == 1
        ),
        "the metadata of stock",
    )
    assert stats()["listener_refused"] == 0


def test_stock_survives_metadata_it_cannot_load(there, here, stock):
    """Whether it loads our metadata or not, it still serves other stock
    agents."""
    here.agent.send_local_metadata(HERE, there.port)
    here.agent.invalidate_local_metadata(HERE, there.port)
    until(lambda: here.agent.stats()["listener_sent"] == 2, "both")
    other = stock(enable_listen_thread=True, listen_port=reserve_port())
    other.call("fetch_remote_metadata", there.name, HERE, there.port)
    until(
        lambda: other.call("check_remote_metadata", there.name),
        "the answer to another stock agent",
    )


def test_departed_stock_agent_is_counted_as_a_failure(there, here):
    there.close()
    here.agent.fetch_remote_metadata(there.name, HERE, there.port)
    until(lambda: here.agent.stats()["listener_send_failures"] == 1, "its end")


# -- Both ways ---------------------------------------------------------------


@pytest.mark.usefixtures("common")
def test_our_agent_fetches_from_stock(there, here):
    here.agent.fetch_remote_metadata(there.name, HERE, there.port)
    until(lambda: here.knows(there.name, there.block), "its metadata")
    room = here.alloc(SIZE)
    here.move(
        "READ",
        [(room.addr, SIZE, 0)],
        [(there.block.addr, SIZE, 0)],
        there.name,
    )
    assert here.read(room.key) == pattern(1, SIZE)


@pytest.mark.usefixtures("common")
def test_stock_fetches_from_our_agent(there, here):
    there.call("fetch_remote_metadata", here.name, HERE, here.port)
    until(lambda: there.knows(here.name, here.block), "our metadata")
    room = there.alloc(SIZE)
    there.move(
        "READ",
        [(room.addr, SIZE, 0)],
        [(here.block.addr, SIZE, 0)],
        here.name,
    )
    assert there.read(room.key) == pattern(2, SIZE)


@pytest.mark.usefixtures("common")
def test_our_agent_sends_and_invalidates(there, here):
    here.agent.send_local_metadata(HERE, there.port)
    until(lambda: there.knows(here.name, here.block), "our metadata")
    here.agent.invalidate_local_metadata(HERE, there.port)
    until(lambda: not there.knows(here.name), "the removal")


@pytest.mark.usefixtures("common")
def test_stock_sends_and_invalidates(there, here):
    there.call("send_local_metadata", HERE, here.port)
    until(lambda: here.knows(there.name, there.block), "its metadata")
    there.call("invalidate_local_metadata", HERE, here.port)
    until(lambda: not here.knows(there.name), "the removal")


@pytest.mark.usefixtures("common")
def test_partial_metadata_goes_both_ways(there, here):
    more = here.alloc(SIZE)
    here.send_partial([here.block.key], HERE, there.port)
    until(lambda: there.knows(here.name, here.block), "our part")
    assert not there.knows(here.name, more)
    here.agent.send_local_metadata(HERE, there.port)
    until(lambda: there.knows(here.name, more), "all our metadata")

    more = there.alloc(SIZE)
    there.send_partial([there.block.key], HERE, here.port)
    until(lambda: here.knows(there.name, there.block), "its part")
    assert not here.knows(there.name, more)
    there.call("send_local_metadata", HERE, here.port)
    until(lambda: here.knows(there.name, more), "all its metadata")


@pytest.mark.usefixtures("common")
def test_regions_registered_later_are_fetched_again(there, here):
    here.agent.fetch_remote_metadata(there.name, HERE, there.port)
    until(lambda: here.knows(there.name, there.block), "its metadata")
    more = there.alloc(SIZE)
    here.agent.fetch_remote_metadata(there.name, HERE, there.port)
    until(lambda: here.knows(there.name, more), "the later registration")
