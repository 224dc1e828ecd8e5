"""Arguments that run the caller's code while a call converts them.

That code releases handles, changes the list being read, replaces
agent.notifs, or calls the same method again.  The call refuses released
handles, or uses the values it has read; nothing crashes and nothing is lost.

Each case runs in its own process, in which freed memory is overwritten, so
that a use after free is detected.
"""

import sys
import threading

import pytest
from support.program import run_program

pytestmark = pytest.mark.beyond_stock

FREED_MEMORY_IS_OVERWRITTEN = {
    "PYTHONMALLOC": "debug",
    "MALLOC_PERTURB_": "165",
}

SETTING = """
import gc
import threading
from support import deadline
from support.endpoint import Endpoint

here = Endpoint(MODULE, "here")
agent, api = here.agent, here.api
address = here.alloc(1 << 16).addr
rows = [(address + i * 64, 64, 0) for i in range(64)]
left = agent.prep_xfer_dlist("", rows, "DRAM")
right = agent.prep_xfer_dlist("here", rows, "DRAM")
handle = agent.make_prepped_xfer("READ", left, [0], right, [1])


def release():
    for each in left, right, handle:
        each.release()


class Releases:
    '''Whatever it is converted to, both lists and the transfer go.'''

    def __init__(self, value):
        self.value = value

    def answer(self, *args):
        release()
        return self.value

    __index__ = __float__ = __bool__ = answer
    __len__ = lambda self: 1

    def __getitem__(self, i):
        release()
        return self.value[i]

    def __buffer__(self, flags):
        release()
        return memoryview(self.value)


def refused(kind, call, *args, words="", **keywords):
    try:
        result = call(*args, **keywords)
    except kind as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"no {kind.__name__}: {result!r}")


def released(call, *args, **keywords):
    refused(ValueError, call, *args, words="was released", **keywords)


def make(*, left_i=(0,), right_i=(1,), **keywords):
    return agent.make_prepped_xfer(
        "READ", left, left_i, right, right_i, **keywords
    )
"""

# name: program
CASES = {
    # -- Handles released while an argument is converted ----------------------
    "make, a local index": """
released(make, left_i=[Releases(0)])
""",
    "make, a remote index": """
released(make, right_i=[Releases(1)])
""",
    "make, skip_desc_merge": """
released(make, skip_desc_merge=Releases(True))
""",
    "make, backends": """
released(make, backends=Releases(["UCX"]))
""",
    "transfer, the timeout": """
released(agent.transfer, handle, timeout=Releases(1.0))
""",
    # -- Lists that change while they are read --------------------------------
    "a row clears the list of rows": """
class Row(list):
    def __iter__(self):
        outer.clear()
        return iter(self.items)

for work, last in (
    (lambda: agent.prep_xfer_dlist("", outer, "DRAM"), ()),
    (lambda: agent.get_xfer_descs(outer, "DRAM"), ()),
    (lambda: agent.get_reg_descs(outer, "DRAM"), (b"meta",)),
    (lambda: agent.get_remote_descs(outer, "DRAM"), ("peer",)),
    (lambda: api.nixlXferDList("DRAM", outer), ()),
):
    outer = [Row() for _ in range(100)]
    for row in outer:
        row.items = (address, 64, 0, *last)
    del row
    work()
    assert outer == []
""",
    "a number of a row clears the list of rows": """
class Number:
    def __index__(self):
        outer.clear()
        return address

for make_row in tuple, list:
    outer = [make_row([Number(), 64, 0]) for _ in range(100)]
    agent.prep_xfer_dlist("", outer, "DRAM")
    outer = [make_row([Number(), 64, 0, b"meta"]) for _ in range(100)]
    assert agent.get_reg_descs(outer, "DRAM").descCount() == 1
""",
    "an index clears the list of indices": """
class Index:
    def __index__(self):
        indices.clear()
        return 0

indices = [Index() for _ in range(100)]
refused(ValueError, make, left_i=indices, words="shrank")
""",
    "a tensor clears the list of tensors": """
class Tensor:
    def is_contiguous(self):
        tensors.clear()
        return True
    class device:
        type, index = "cpu", None
    data_ptr = lambda self: address
    numel = element_size = lambda self: 8

tensors = [Tensor() for _ in range(100)]
assert agent.get_xfer_descs(tensors)[0] == (address, 64, 0)
""",
    "a row is read while its list is cleared": """
class Garbage:
    def __init__(self):
        self.cycle = self

    def __del__(self):
        lists.clear()

def meta():
    return bytes(range(100))

expected = address, 64, 0, meta()
lists = agent.get_reg_descs([(address, 64, 0, meta())], "DRAM")
threshold = gc.get_threshold()
gc.collect()
gc.disable()
gc.set_threshold(1, 1, 1)
fours = [tuple([i] * 4) for i in range(5000)]  # none is kept for reuse
Garbage()
gc.enable()
assert lists[0] == expected
gc.set_threshold(*threshold)
""",
    # -- agent.notifs, replaced or deleted by a key of its own ----------------
    "update_notifs, a key replaces notifs": """
class Key(str):
    __hash__ = str.__hash__

    def __eq__(self, other):
        agent.notifs = {}
        return False

here.send_notif("here", b"x")
agent.notifs = {Key("here"): []}
taken = deadline.until(lambda: sum(agent.update_notifs().values(), []), "x")
assert taken == [b"x"]
""",
    "update_notifs, a key deletes notifs": """
class Key(str):
    __hash__ = str.__hash__

    def __eq__(self, other):
        if "notifs" in dir(agent) and hasattr(agent, "notifs"):
            del agent.notifs
        return False

agent.notifs = {Key("here"): []}
here.send_notif("here", b"x")
while hasattr(agent, "notifs"):
    taken = agent.update_notifs()
assert sum(taken.values(), []) == [b"x"]
refused(TypeError, agent.update_notifs)
""",
    "check_remote_xfer_done, a key replaces notifs": """
class Key(str):
    __hash__ = str.__hash__

    def __eq__(self, other):
        agent.notifs = {}
        return False

for tag in b"one", b"two":
    here.send_notif("here", tag)
    agent.notifs = {Key("here"): []}
    assert deadline.until(
        lambda: agent.check_remote_xfer_done("here", tag), "a tag"
    )
""",
    "no notification is lost when keys raise": """
class Key(str):
    __hash__ = str.__hash__
    is_first = True

    def __eq__(self, other):
        if Key.is_first:
            Key.is_first = False
            arrives(b"newer")
            refused(KeyError, agent.update_notifs)
        raise KeyError(other)

def arrives(message):
    pending = agent.stats()["notifs_pending"]
    here.send_notif("here", message)
    deadline.until(
        lambda: agent.stats()["notifs_pending"] > pending, "a notification"
    )

arrives(b"older")
agent.notifs = {Key("here"): []}
refused(KeyError, agent.update_notifs)
assert agent.get_new_notifs() == {"here": [b"older", b"newer"]}
""",
    # -- Backends and their parameters ----------------------------------------
    "a dict of parameters that is larger than it says": """
class Params(dict):
    def keys(self):
        return [f"name {i}" for i in range(1000)]

    def __iter__(self):
        return iter(self.keys())

    def __getitem__(self, key):
        return "value"

fresh = api.nixl_agent("fresh", api.nixl_agent_config(backends=[]))
try:
    fresh.create_backend("UCX", Params(name="value"))
except api.NixlError:
    pass
gc.collect()
""",
    "a dict of parameters that changes while it is read": """
class Text:
    def __str__(self):
        params.clear()
        params.update({f"name {i}": "value" for i in range(1000)})
        return "1"

fresh = api.nixl_agent("fresh", api.nixl_agent_config(backends=[]))
params = {"num_threads": Text(), "other": Text()}
try:
    fresh.create_backend("UCX", params)
except api.NixlError:
    pass
""",
    "a parameter whose text raises": """
class Text:
    def __str__(self):
        raise KeyError("text")

    __hash__ = object.__hash__

fresh = api.nixl_agent("fresh", api.nixl_agent_config(backends=[]))
refused(KeyError, fresh.create_backend, "UCX", {Text(): Text()})
refused(KeyError, fresh.create_backend, "UCX", {"name": Text()})
fresh.create_backend("UCX")
""",
    "a backend is a plain str in agent.backends": """
class Name(str):
    pass

fresh = api.nixl_agent("fresh", api.nixl_agent_config(backends=[]))
fresh.create_backend(Name("UCX"))
assert [type(name) for name in fresh.backends] == [str]
""",
    # -- Agents that are not made, or made twice ------------------------------
    "an agent whose __init__ never ran": """
import inspect
from vllm_nixl._core import Agent

bare = Agent.__new__(Agent)
for name in dir(Agent):
    if name.startswith("__") and name not in ("__exit__", "__enter__"):
        continue
    try:
        attribute = getattr(bare, name)
    except RuntimeError as error:
        assert "__init__" in str(error), name
        continue
    except AttributeError:
        assert name == "name", name
        continue
    if not callable(attribute) or name == "__enter__":
        continue
    try:
        needed = len([
            each
            for each in inspect.signature(attribute).parameters.values()
            if each.default is each.empty
            and each.kind is each.POSITIONAL_OR_KEYWORD
        ])
        attribute(*[None] * needed)
    except RuntimeError as error:
        assert "__init__" in str(error), name
    else:
        raise AssertionError(name)
assert "None" in repr(bare)
assert not bare.closed

bare = api.NixlAgent.__new__(api.NixlAgent)
refused(RuntimeError, bare.close)
refused(RuntimeError, bare.get_plugin_list)
assert bare.is_side_channel_running() is False
""",
    "__init__ is entered again while backends are read": """
import os
from vllm_nixl._core import Agent

class Names(list):
    def __iter__(self):
        Agent.__init__(fresh, "inner")
        fresh.create_backend("UCX")
        return iter(["UCX"])

def threads():
    return len(os.listdir("/proc/self/task"))

before = threads()
for _ in range(3):
    fresh = Agent.__new__(Agent)
    refused(
        RuntimeError, Agent.__init__, fresh, "outer", backends=Names(["UCX"])
    )
    assert fresh.name == "inner"
    assert fresh.get_agent_metadata()
    del fresh
assert deadline.until(lambda: threads() == before, "the agents' threads end")
""",
    "the name of an agent deletes itself": """
class Name:
    def __repr__(self):
        if hasattr(agent, "name"):
            del agent.name
        return "name"

agent.name = slice(Name(), Name(), Name())
assert "slice(name, name, name)" in repr(agent)
""",
}

# As above, through the buffer protocol in Python (3.12 and later).
BUFFERS = {
    "make, notif_msg": """
released(make, notif_msg=Releases(b"x"))
""",
    "make, local indices": """
import array
released(make, left_i=Releases(array.array("q", [0])))
""",
    "make, remote indices": """
import array
released(make, right_i=Releases(array.array("q", [1])))
""",
    "transfer, notif_msg": """
released(agent.transfer, handle, Releases(b"x"))
""",
    "a message closes the agent": """
class Closes:
    def __buffer__(self, flags):
        agent.close()
        return memoryview(b"x")

refused(api.nixlClosedError, agent.send_notif, "here", Closes())
""",
    "a tag replaces notifs": """
class Tag:
    def __buffer__(self, flags):
        agent.notifs = {"here": [b"x"]}
        return memoryview(b"x")

assert agent.check_remote_xfer_done("here", Tag())
""",
    "rows close the agent": """
class Closes:
    def __buffer__(self, flags):
        agent.close()
        return memoryview(bytearray(24)).cast("Q", (1, 3))

refused(
    api.nixlClosedError, agent.prep_xfer_dlist, "", Closes(), "DRAM"
)
refused(
    api.nixlClosedError, agent.register_memory, Closes(), "DRAM"
)
""",
}


def run_case(module, program):
    run_program(
        SETTING + program,
        "-X",
        "faulthandler",
        env=FREED_MEMORY_IS_OVERWRITTEN,
        module=module,
    )


@pytest.mark.parametrize("case", CASES)
def test_caller_code_does_no_harm(module, case):
    run_case(module, CASES[case])


@pytest.mark.skipif(
    sys.version_info < (3, 12), reason="__buffer__ came with Python 3.12"
)
@pytest.mark.parametrize("case", BUFFERS)
def test_python_buffer_protocol_does_no_harm(module, case):
    run_case(module, BUFFERS[case])


# -- Objects that are not tensors ---------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [KeyboardInterrupt, MemoryError, RecursionError, SystemExit, ValueError],
)
@pytest.mark.parametrize("place", ["alone", "in a list"])
def test_exception_from_data_ptr_propagates(endpoint, kind, place):
    class Odd:
        @property
        def data_ptr(self):
            raise kind

    agent = endpoint().agent
    source = Odd() if place == "alone" else [Odd()]
    with pytest.raises(kind):
        agent.get_xfer_descs(source, "DRAM")
    with pytest.raises(kind):
        agent.prep_xfer_dlist("", source, "DRAM")
    with pytest.raises(kind):
        agent.register_memory(source, "DRAM")


def test_object_without_data_ptr_is_not_a_tensor(endpoint):
    agent = endpoint().agent
    with pytest.raises(TypeError, match="tensors, not object"):
        agent.get_xfer_descs(object(), "DRAM")


# -- Threads ------------------------------------------------------------------


@pytest.fixture
def hasty():
    """Make Python threads switch as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def twice(function):
    """Call it in two threads at once; return their results or exceptions."""
    results = []
    start = threading.Barrier(2)

    def run():
        start.wait()
        try:
            results.append(function())
        except Exception as error:
            results.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.usefixtures("hasty")
def test_two_threads_start_only_one_listener(api, names):
    """The second call reports the first listener; none is lost."""
    config = api.nixl_agent_config(backends=[])
    for _ in range(300):
        with api.nixl_agent(names(), config) as agent:
            ports = twice(lambda: agent.start_side_channel_listener(0, b"x"))
            started = [port for port in ports if isinstance(port, int)]
            assert len(started) == 1, ports
            assert agent.request_remote_metadata("::1", started[0]) == b"x"


@pytest.mark.usefixtures("hasty")
def test_two_threads_get_one_raw_agent(api, names):
    config = api.nixl_agent_config(backends=[])
    for _ in range(300):
        with api.nixl_agent(names(), config) as agent:
            one, other = twice(lambda: agent.agent)
            assert one is other is agent.agent
