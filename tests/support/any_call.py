"""Random calls with misbehaving arguments.

    python -m support.any_call SEED SECONDS NOTES

It calls every public method of the module.  Some arguments make no sense, and
some run code that releases, closes or changes the objects of the call.  Any
result and any exception is fine; a crash, a hang, SystemError and a changed
byte outside of the registered memory are not.

Each call starts from valid arguments, because the first check would stop any
other, and replaces some of them.  The seed decides what each thread does; a
run with one thread repeats exactly but for its length.  NOTES is a file that
keeps the last call of each thread.
"""

import array
import contextlib
import faulthandler
import gc
import itertools
import mmap
import os
import random
import signal
import sys
import threading
import time

from support.api import Api
from support.memory import Memory

PAGE = mmap.PAGESIZE
SIZE = 4 * PAGE
CANARY = b"\xc5"
NOTE = 512  # bytes of a thread's last call, to diagnose a crash
# Seconds after which a forked child hangs.  That is a failure, except under
# ASan: its allocator ignores fork() (before LLVM 19), so that a lock that
# another thread held stays locked in the child.
UNDER_ASAN = "ASAN_OPTIONS" in os.environ
CHILD_LIMIT = 10 if UNDER_ASAN else 60


class Canaried:
    """Memory of which only the middle is given to an agent."""

    def __init__(self):
        self.whole = Memory(SIZE + 2 * PAGE)
        self.whole.view[:] = CANARY * self.whole.size
        self.addr = self.whole.addr + PAGE

    def check(self):
        for start in (0, PAGE + SIZE):
            edge = bytes(self.whole.view[start : start + PAGE])
            assert edge == CANARY * PAGE, "memory beside a region changed"


class Scene:
    """Three agents that know each other, and their handles."""

    def __init__(self, api, name, memory):
        self.api, self.memory = api, memory
        self.names = [f"{side}-{name}" for side in "abc"]
        self.agents = [api.nixl_agent(name) for name in self.names]
        for agent, place in zip(self.agents, memory, strict=True):
            agent.register_memory([(place.addr, SIZE, 0, "")], "DRAM")
        self.blobs = [agent.get_agent_metadata() for agent in self.agents]
        for agent in self.agents:
            for other, blob in zip(self.agents, self.blobs, strict=True):
                if other is not agent:
                    agent.add_remote_agent(blob)
        self.things = {kind: [] for kind in KINDS}
        for number in range(3):
            self.fill_from(number, (number + 1) % 3)
        for kind in ("TcpSideChannel", "HttpSideChannel", "ZmqSideChannel"):
            channel = getattr(api, kind)()
            channel.start_listener(0, self.blobs[0], host="127.0.0.1")
            self.keep("channel", channel)
        self.raw = api.nixlAgent._of(self.agents[2])

    def fill_from(self, number, other):
        agent = self.agents[number]
        ours, theirs = (
            [(place.addr + 64 * i, 64, 0) for i in range(32)]
            for place in (self.memory[number], self.memory[other])
        )
        descs = agent.get_xfer_descs(ours, "DRAM")
        meta = agent.get_reg_descs([(*ours[0], b"meta")], "DRAM")
        left = agent.prep_xfer_dlist("", descs)
        right = agent.prep_xfer_dlist(self.names[other], theirs, "DRAM")
        xfer = agent.make_prepped_xfer("READ", left, [0, 1], right, [2, 3])
        self.keep("xfer_descs", descs)
        self.keep("reg_descs", meta)
        self.keep("left", left)
        self.keep("right", right)
        self.keep("xfer", xfer)

    def keep(self, kind, thing):
        things = self.things[kind]
        things.append(thing)
        del things[:-20]


class World:
    """Memory, and the scene that all threads use."""

    def __init__(self, api, seed):
        self.api, self.seed = api, seed
        self.numbers = itertools.count()
        self.memory = [Canaried() for _ in range(3)]
        self.secret = Memory(SIZE)  # registered nowhere
        self.secret.view[:] = CANARY * SIZE
        self.renew()

    def renew(self):
        """Replace the scene; the old one is freed with its last use."""
        name = f"{self.seed}-{next(self.numbers)}"
        self.scene = Scene(self.api, name, self.memory)
        return self.scene

    def check(self):
        for memory in self.memory:
            memory.check()
        assert bytes(self.secret.view) == CANARY * SIZE, (
            "memory that was never registered changed"
        )

    def still_works(self):
        scene = self.renew()
        here, there = scene.agents[:2]
        source, target = (m.whole.view for m in self.memory[1::-1])
        source[PAGE : PAGE + 64] = os.urandom(64)
        handle = here.initialize_xfer(
            "READ",
            here.get_xfer_descs([(self.memory[0].addr, 64, 0)], "DRAM"),
            here.get_xfer_descs([(self.memory[1].addr, 64, 0)], "DRAM"),
            there.name,
            b"done",
        )
        here.transfer(handle)
        here.wait([handle], timeout=30)
        assert target[PAGE : PAGE + 64] == source[PAGE : PAGE + 64]
        for channel in scene.things["channel"]:
            channel.shutdown()


KINDS = ("xfer_descs", "reg_descs", "remote_descs", "left", "right", "xfer",
         "channel", "requests", "telemetry", "buffer")  # fmt: skip


# -- Harmful arguments --------------------------------------------------------


class Harm:
    """An action that a call's argument performs while it is converted."""

    def __init__(self, caller):
        self.caller = caller

    def strike(self):
        dice = self.caller.dice
        with contextlib.suppress(Exception):
            dice.choice([self.strip_call, self.strip_call, self.disturb])()
        if dice.random() < 0.05:
            raise ValueError("an argument that fails")

    def strip_call(self):
        """Release the objects that the current call uses."""
        caller, dice = self.caller, self.caller.dice
        things = list(caller.arguments)
        for thing in caller.arguments:
            if isinstance(thing, list):
                things += list.__iter__(thing)
        for thing in things:
            if hasattr(thing, "release"):
                thing.release()
            elif isinstance(thing, list):
                dice.choice([list.clear, list.pop, list.sort])(thing)
            elif isinstance(thing, dict):
                dict.clear(thing)
            elif isinstance(thing, bytearray):
                bytearray.clear(thing)
            elif isinstance(thing, array.array):
                del thing[:]
            elif hasattr(thing, "clear"):
                thing.clear()
        if hasattr(caller.owner, "notifs"):
            deed = dice.choice([dict.clear, dict.popitem, None])
            if deed is None:
                caller.owner.notifs = {}
            else:
                deed(caller.owner.notifs)

    def disturb(self):
        """Make some unrelated call."""
        dice, scene = self.caller.dice, self.caller.world.scene
        deed = dice.randrange(8)
        if deed == 0:
            dice.choice(scene.things["xfer"]).release()
        elif deed == 1:
            dice.choice(scene.things["left"]).release()
            dice.choice(scene.things["right"]).release()
        elif deed == 2:
            dice.choice(scene.things["xfer_descs"]).clear()
            dice.choice(scene.things["reg_descs"]).clear()
        elif deed == 3:
            agent = dice.choice(scene.agents)
            agent.remove_remote_agent(dice.choice(scene.names))
        elif deed == 4 and self.caller.depth < 3:
            self.caller.call()
        elif deed == 5:
            time.sleep(0)  # another thread's turn
        elif deed == 6 and dice.random() < 0.02:
            gc.collect()
        elif deed == 7 and dice.random() < 0.02:
            dice.choice([*scene.agents, self.caller.owner]).close()


class Number(Harm):
    """A number whose every conversion runs harmful code."""

    def __init__(self, caller, value):
        super().__init__(caller)
        self.value = value

    def __index__(self):
        self.strike()
        return self.value

    def __float__(self):
        self.strike()
        return float(self.value)

    def __bool__(self):
        self.strike()
        return bool(self.value)

    def __hash__(self):
        self.strike()
        return hash(self.value)

    def __eq__(self, other):
        self.strike()
        return self.value == other

    __int__ = __index__
    __len__ = __index__


class Rows(list, Harm):
    """A list that changes while it is being read."""

    def __init__(self, caller, values):
        list.__init__(self, values)
        self.caller = caller

    def __iter__(self):
        self.strike()
        for value in list.__iter__(self):
            yield value
            self.strike()

    def __len__(self):
        self.strike()
        return list.__len__(self)

    def __getitem__(self, index):
        self.strike()
        return list.__getitem__(self, index)

    def __eq__(self, other):
        self.strike()
        return list.__eq__(self, other)

    __hash__ = None


class Sequence(Harm):
    """A sequence by its methods alone, which reports a false size."""

    def __init__(self, caller, values):
        super().__init__(caller)
        self.values = values

    def __len__(self):
        self.strike()
        return self.caller.dice.choice([0, 1, len(self.values), 2**40, 2**62])

    def __getitem__(self, index):
        self.strike()
        return self.values[index]


class Text(str):
    """A string that runs harmful code when compared, hashed or converted."""

    __slots__ = ("harm",)

    def __str__(self):
        self.harm.strike()
        return str.__str__(self)

    def __eq__(self, other):
        self.harm.strike()
        return str.__eq__(self, other)

    def __hash__(self):
        self.harm.strike()
        return str.__hash__(self)


class Bytes(bytes):
    __slots__ = ()
    harm = None

    def __eq__(self, other):
        self.harm.strike()
        return bytes.__eq__(self, other)

    def __hash__(self):
        self.harm.strike()
        return bytes.__hash__(self)

    def __buffer__(self, flags):  # Python 3.12 and later
        self.harm.strike()
        return bytes.__buffer__(self, flags)


class Table(dict, Harm):
    """A dict that grows while it is being read."""

    def __init__(self, caller, values):
        dict.__init__(self, values)
        self.caller = caller

    def __iter__(self):
        self.strike()
        self[f"more {len(self)}"] = "value"
        return dict.__iter__(self)

    def __len__(self):
        self.strike()
        return dict.__len__(self)

    def items(self):
        self.strike()
        self[f"more {len(self)}"] = "value"
        return dict.items(self)

    def __getitem__(self, key):
        self.strike()
        return dict.__getitem__(self, key)


class Tensor(Harm):
    """An object with the interface of a torch tensor."""

    class Device:
        type, index = "cpu", None

    def __init__(self, caller, address):
        super().__init__(caller)
        self.address = address

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        self.strike()
        if name == "device":
            return self.Device
        values = {
            "data_ptr": self.address,
            "numel": 16,
            "element_size": 4,
            "is_contiguous": True,
        }
        if name not in values:
            raise AttributeError(name)
        return lambda: values[name]


# -- Calls --------------------------------------------------------------------


class Caller:
    """One thread's stream of calls."""

    def __init__(self, world, seed, note=None):
        self.world, self.api = world, world.api
        self.dice = random.Random(seed)
        self.note = note
        self.depth = 0
        self.owner, self.arguments = None, ()
        self.calls = self.answers = 0

    # Valid arguments.

    def agent(self):
        return self.dice.choice(self.world.scene.agents)

    def name(self):
        return self.dice.choice(self.world.scene.names)

    def memory(self):
        return self.dice.choice(self.world.memory)

    def thing(self, kind):
        things = self.world.scene.things[kind]
        return self.dice.choice(things) if things else None

    def row(self):
        start = self.dice.randrange(SIZE - 256)
        return (self.memory().addr + start, self.dice.randrange(1, 200), 0)

    def rows(self):
        return [self.row() for _ in range(self.dice.randint(0, 40))]

    def matrix(self):
        flat = array.array("Q", [part for row in self.rows() for part in row])
        if not flat:
            return flat
        return memoryview(flat).cast("B").cast("Q", [len(flat) // 3, 3])

    def any_rows(self):
        return self.dice.choice(
            [
                self.rows,
                self.rows,
                self.matrix,
                lambda: self.thing("xfer_descs"),
                lambda: [Tensor(self, self.memory().addr)],
            ]
        )()

    def reg_rows(self):
        return [(*row, b"meta") for row in self.rows()]

    def remote_rows(self):
        return [(*row, self.name()) for row in self.rows()]

    def indices(self):
        values = [self.dice.randrange(32) for _ in range(self.count)]
        return self.dice.choice(
            [values, array.array(self.dice.choice("bBhHiIqQ"), values)]
        )

    def message(self):
        return bytes(self.dice.randrange(64))

    def mem_type(self):
        return self.dice.choice(
            ["DRAM", "DRAM", "DRAM", "cpu", 0, self.api.DRAM_SEG, "VRAM", 1]
        )

    def operation(self):
        return self.dice.choice(["READ", "WRITE"])

    def blob(self):
        blob = bytearray(self.dice.choice(self.world.scene.blobs))
        for _ in range(self.dice.choice([0, 0, 1, 3])):
            blob[self.dice.randrange(len(blob))] = self.dice.randrange(256)
        return self.dice.choice([bytes(blob), blob])

    def port(self):
        return getattr(self.thing("channel"), "port", 0) or 1

    def fresh(self):
        """An agent that has just got one more live handle of each kind."""
        scene, number = self.world.scene, self.dice.randrange(3)
        with contextlib.suppress(self.api.NixlError):
            scene.fill_from(number, (number + 1) % 3)
        return scene.agents[number]

    def newest(self, kind):
        things = self.world.scene.things[kind]
        return things[-1] if things else None

    def with_notifs(self):
        """An agent with collected notifications under odd keys."""
        agent = self.agent()
        with contextlib.suppress(Exception):
            agent.notifs = {self.harmful(self.name()): [b"a"] for _ in "12"}
            agent.send_notif(agent.name, b"a")
        return agent

    def tag(self):
        return self.dice.choice([b"", b"a", "a", bytes(3)])

    # Invalid arguments.

    def nonsense(self):
        return self.dice.choice(NONSENSE)

    def harmful(self, value):
        """An argument like `value` that runs harmful code."""
        if isinstance(value, bool) or value is None:
            return Number(self, 1)
        if isinstance(value, int):
            return Number(self, value)
        if isinstance(value, float):
            return Number(self, value)
        if isinstance(value, str):
            text = Text(value)
            text.harm = Harm(self)
            return text
        if isinstance(value, bytes):
            return type("Lent", (Bytes,), {"harm": Harm(self)})(value)
        if isinstance(value, tuple):
            at = self.dice.randrange(len(value)) if value else 0
            return tuple(
                self.harmful(part) if i == at else part
                for i, part in enumerate(value)
            )
        if isinstance(value, dict):
            if self.dice.random() < 0.5:
                return {self.harmful(key): value[key] for key in value}
            return Table(self, value)
        if isinstance(value, list):
            values = list(value)
            if values and self.dice.random() < 0.7:
                at = self.dice.randrange(len(values))
                values[at] = self.harmful(values[at])
            return self.dice.choice(
                [values, Rows(self, values), Sequence(self, values),
                 Rows(self, [Rows(self, v) if isinstance(v, tuple) else v
                             for v in values])]
            )  # fmt: skip
        return Number(self, 1)

    def spoil(self, value):
        luck = self.dice.random()
        if luck < 0.62:
            return value
        if luck < 0.87:
            return self.harmful(value)
        return self.nonsense()

    # The calls.

    def call(self):
        """Make one call; True if it returned."""
        self.count = self.dice.randrange(8)
        owner, name, arguments, keywords = self.dice.choice(CALLS)(self)
        if owner is None:
            return False
        if name not in UNSPOILED:
            try:
                arguments = [self.spoil(value) for value in arguments]
            except ValueError:
                return False  # a key that fails when it is hashed
            if self.dice.random() < 0.05:
                del arguments[self.dice.randrange(9) :]
                arguments.append(self.nonsense())
            if self.dice.random() < 0.05:
                keywords = {**keywords, self.dice.choice(WORDS): 1}
        if name == "register_memory" and not self.owns(arguments):
            arguments = [self.reg_rows(), "DRAM"]
        self.write_note(owner, name, arguments, keywords)
        outer = self.owner, self.arguments
        self.owner, self.arguments = owner, arguments
        self.depth += 1
        self.calls += 1
        try:
            result = getattr(owner, name)(*arguments, **keywords)
            self.keep_result(result)
            self.answers += 1
        except SystemError:
            raise
        except Exception as error:
            if isinstance(error.__cause__, SystemError):
                raise
            return False
        finally:
            self.owner, self.arguments = outer
            self.depth -= 1
        return True

    def owns(self, arguments):
        """Is it our memory?  A program that registers unmapped memory is
        itself to blame for the transfer that follows."""
        try:
            descs = self.api.nixlRegDList(self.api.DRAM_SEG, arguments[0])
            rows = [descs[i] for i in range(descs.descCount())]
        except Exception:
            return False
        return all(
            any(
                place.addr <= row[0] and row[0] + row[1] <= place.addr + SIZE
                for place in self.world.memory
            )
            for row in rows
        )

    def keep_result(self, result):
        for kind, name in RESULTS.items():
            if type(result).__name__ == name:
                self.world.scene.keep(self.dice.choice(kind.split()), result)

    def write_note(self, owner, name, arguments, keywords):
        if self.note is not None:
            text = f"{type(owner).__name__}.{name}("
            text += ", ".join(map(brief, arguments))
            text += f", **{keywords!r})" if keywords else ")"
            self.note(text)


def brief(value):
    """The text that fits into a note, without running the argument's code."""
    if type(value) in (int, str, bytes, float, bool, type(None), tuple):
        return repr(value)[:60]
    if type(value) in (list, dict, array.array):
        return f"{type(value).__name__} of {len(value)}"
    return type(value).__name__


RESULTS = {
    "xfer_descs": "nixlXferDList",
    "reg_descs": "nixlRegDList",
    "remote_descs": "nixlRemoteDList",
    "left right": "nixl_prepped_dlist_handle",
    "xfer": "nixl_xfer_handle",
    "requests": "SideChannelRequests",
    "telemetry": "nixlXferTelemetry",
    "buffer": "shared_buffer",
}
WORDS = ["handle", "timeout", "notif_msg", "backends", "mem_type", "nonsense"]
NONSENSE = [
    None, True, 0, 1, -1, 7, 255, 2**31, 2**32, 2**63, 2**64 - 1, 2**64,
    2**200, -(2**63), 0.5, -0.5, float("nan"), 1e300, "", "nobody", "DRAM",
    "READ", "UCX", "SHM", "x" * 70000, "\udcff", "\0", b"", b"\0", b"UCX",
    b"x" * 1000, bytearray(24), [], (), {}, set(), [0], [-1], [2**64],
    [None], ["UCX"], [(1, 2)], [(1, 2, 3)], [(1, 2, 3, 4, 5)],
    [(-1, 0, 0)], [(2**64 - 1, 2**64 - 1, 0)], [(2**63, 2**63, 2**63)],
    [("a", "b", "c")], {"a": 1}, {1: "a"}, {"UCX": {}},
    array.array("d", [0.5]), array.array("Q", [2**64 - 1] * 15),
    array.array("q", [-1] * 6), memoryview(bytes(24)),
    memoryview(array.array("Q", [2**64 - 1] * 15)).cast("B").cast(
        "Q", [5, 3]),
    memoryview(array.array("Q", [1, 1, 0, 2**62, 2**62])).cast("B").cast(
        "Q", [1, 5]),
    range(3), range(2**40), object(), type, len, lambda: 0, ..., 1j,
    object.__new__, NotImplemented, "localhost", "256.0.0.1", "::1",
]  # fmt: skip
# Their arguments set the waiting time, or would end the test.
UNSPOILED = {"wait", "close", "step", "take"}


def on_agent(name, *parts, **keywords):
    """A call of an agent's method; `parts` create its arguments."""

    def make(self):
        arguments = [part(self) if callable(part) else part for part in parts]
        return self.agent(), name, arguments, dict(keywords)

    return make


def on_thing(kind, name, *parts):
    def make(self):
        arguments = [part(self) if callable(part) else part for part in parts]
        return self.thing(kind), name, arguments, {}

    return make


def on_module(name, *parts):
    def make(self):
        arguments = [part(self) if callable(part) else part for part in parts]
        return self.api, name, arguments, {}

    return make


def new_without_init(self):
    """Call methods of objects whose __init__ never ran."""
    kinds = [
        self.api.nixl_agent, self.api.nixlXferDList, self.api.nixlRegDList,
        self.api.nixlRemoteDList, self.api.TcpSideChannel,
        self.api.nixl_xfer_handle, self.api.nixl_prepped_dlist_handle,
        self.api.nixlXferTelemetry, self.api.shared_buffer,
    ]  # fmt: skip
    kind = self.dice.choice(kinds)
    try:
        thing = kind.__new__(kind)
    except Exception:
        return None, "", [], {}
    names = [n for n in dir(kind) if n not in NEVER]
    name = self.dice.choice(names)
    with contextlib.suppress(Exception):
        value = getattr(thing, name)
        if not callable(value):
            return None, "", [], {}
    return thing, name, [self.nonsense()][: self.dice.randrange(2)], {}


def any_method(self):
    """Call a method that CALLS may lack, with any arguments."""
    kind = self.dice.choice(KINDS)
    owner = self.dice.choice(
        [self.agent(), self.thing(kind), self.world.scene.raw]
    )
    names = [
        name
        for name in dir(type(owner))
        if name not in NEVER and callable(getattr(type(owner), name, None))
    ]
    name = self.dice.choice(names)
    known = [
        lambda: self.thing("left"), lambda: self.thing("xfer"), self.rows,
        self.name, self.message, self.operation, lambda: 1, self.blob,
        lambda: self.thing("xfer_descs"), lambda: self.thing("reg_descs"),
    ]  # fmt: skip
    count = self.dice.randrange(6)
    return owner, name, [self.dice.choice(known)() for _ in range(count)], {}


NEVER = {
    # These wait as long as their argument says, or end shared objects.
    "wait", "request_metadata", "request_remote_metadata", "request_many",
    "wait_async", "notifications", "close", "_begin", "__exit__", "result",
    "attach", "attach_async", "_attach", "_begin_attach",
    "__class__", "__init_subclass__", "__subclasshook__", "__new__",
    "__reduce__", "__reduce_ex__", "__sizeof__", "__dir__", "print",
    # Unmapped memory may be registered.
    "registerMem", "register_memory",
}  # fmt: skip

C = Caller
# Handles that are not released yet.
FRESH = [
    lambda s: (s.fresh(), "make_prepped_xfer",
               [s.operation(), s.newest("left"), s.indices(),
                s.newest("right"), s.indices(), s.message()], {}),
    lambda s: (s.fresh(), "initialize_xfer",
               [s.operation(), s.newest("xfer_descs"),
                s.newest("xfer_descs"), s.name(), s.message()], {}),
    lambda s: (s.fresh(), "transfer", [s.newest("xfer"), s.message()],
               {"timeout": s.harmful(0.01)}),
    lambda s: (s.fresh(), "wait", [s.newest("xfer")],
               {"timeout": s.harmful(0.001)}),
    lambda s: (s.fresh(), "check_xfer_states",
               [[s.newest("xfer"), s.thing("xfer")]], {}),
    lambda s: (s.fresh(), "register_memory", [s.newest("reg_descs")], {}),
    lambda s: (s.fresh(), "prep_xfer_dlist", ["", s.rows(), "DRAM"], {}),
    lambda s: (s.with_notifs(), "update_notifs", [], {}),
    lambda s: (s.with_notifs(), "check_remote_xfer_done",
               [s.name(), s.tag()], {}),
    lambda s: (s.api.nixl_agent(f"new-{s.dice.random()}",
                                s.api.nixl_agent_config(backends=[])),
               "create_backend", ["UCX", {"num_threads": "1"}], {}),
]  # fmt: skip
CALLS = [
    *FRESH * 4,
    on_agent("get_xfer_descs", C.any_rows, C.mem_type),
    on_agent("get_reg_descs", C.reg_rows, C.mem_type),
    on_agent("get_remote_descs", C.remote_rows, C.mem_type),
    on_agent("register_memory", C.reg_rows, C.mem_type, lambda s: ["UCX"]),
    on_agent("deregister_memory", lambda s: s.thing("reg_descs")),
    on_agent("query_memory", C.reg_rows, "UCX", "FILE"),
    on_agent("get_agent_metadata"),
    on_agent("get_partial_agent_metadata", lambda s: s.thing("reg_descs"),
             True, lambda s: ["UCX"]),
    on_agent("add_remote_agent", C.blob),
    on_agent("add_remote_agent", C.blob),
    on_agent("remove_remote_agent", C.name),
    on_agent("check_remote_metadata", C.name, lambda s: s.thing("xfer_descs")),
    on_agent("make_connection", C.name, lambda s: ["UCX"]),
    on_agent("prep_xfer_dlist", C.name, C.any_rows, C.mem_type,
             lambda s: ["UCX"]),
    on_agent("prep_xfer_dlist", "", C.any_rows, C.mem_type, lambda s: []),
    on_agent("release_dlist_handle", lambda s: s.thing("left")),
    on_agent("make_prepped_xfer", C.operation, lambda s: s.thing("left"),
             C.indices, lambda s: s.thing("right"), C.indices, C.message,
             lambda s: [], True),
    on_agent("make_prepped_xfer", C.operation, lambda s: s.thing("left"),
             C.indices, lambda s: s.thing("right"), C.indices, C.message),
    on_agent("initialize_xfer", C.operation, lambda s: s.thing("xfer_descs"),
             lambda s: s.thing("xfer_descs"), C.name, C.message,
             lambda s: ["UCX"]),
    on_agent("transfer", lambda s: s.thing("xfer"), C.message),
    on_agent("transfer", lambda s: s.thing("xfer")),
    on_agent("check_xfer_state", lambda s: s.thing("xfer")),
    on_agent("cancel", lambda s: s.thing("xfer")),
    on_agent("release_xfer_handle", lambda s: s.thing("xfer")),
    on_agent("get_xfer_telemetry", lambda s: s.thing("xfer")),
    on_agent("query_xfer_backend", lambda s: s.thing("xfer")),
    on_agent("estimate_xfer_cost", lambda s: s.thing("xfer")),
    on_agent("check_xfer_states",
             lambda s: [s.thing("xfer") for _ in range(s.count)]),
    on_agent("wait", lambda s: s.harmful([s.thing("xfer")]), timeout=0.001),
    on_agent("wait", lambda s: s.thing("xfer"),
             lambda s: s.dice.choice([0, -1, float("nan"), "x", Number(s, 0),
                                      0.002, -0.0, None.__class__])),
    on_agent("_ended", lambda s: [s.thing("xfer")] * s.count),
    on_agent("get_new_notifs", lambda s: ["UCX"]),
    on_agent("get_new_notifs"),
    on_agent("update_notifs"),
    on_agent("check_remote_xfer_done", C.name, C.tag, lambda s: [], True),
    on_agent("send_notif", C.name, C.message, "UCX"),
    on_agent("send_notif", C.name, C.message),
    on_agent("_next_notif"),
    on_agent("fileno"),
    on_agent("_unsubscribe", lambda s: s.dice.choice([-1, 2**32, 2**40])),
    on_agent("describe", C.name),
    on_agent("describe"),
    on_agent("stats"),
    on_agent("peers"),
    on_agent("create_backend", "UCX", lambda s: {"num_threads": "1"}),
    on_agent("get_plugin_params", "UCX"),
    on_agent("get_backend_params", "UCX"),
    on_agent("get_plugin_mem_types", "UCX"),
    on_agent("get_serialized_descs", lambda s: s.thing("xfer_descs")),
    on_agent("deserialize_descs", C.blob),
    on_agent("__init__", C.name),
    on_agent("__setattr__", "notifs", lambda s: {s.name(): [b"a"]}),
    on_agent("__setattr__", "name", C.name),
    on_agent("send_local_metadata", "127.0.0.1", C.port),
    on_agent("fetch_remote_metadata", C.name, "127.0.0.1", C.port),
    on_agent("invalidate_local_metadata", "127.0.0.1", C.port),
    on_agent("start_side_channel_listener", 0, C.blob, "127.0.0.1"),
    on_agent("stop_side_channel_listener"),
    *[lambda s: (s.agent(), "publish",
                 [{"kv": s.any_rows(), "kx": s.rows()}, 0, "127.0.0.1"],
                 {"mem_type": s.mem_type()})] * 2,
    lambda s: (s.agent(), "attach", ["127.0.0.1", s.port()],
               {"timeout_ms": 20}),
    lambda s: (s.thing("channel"), "_begin_attach",
               [s.agent(), "127.0.0.1", s.port(), 20, 0], {}),
    lambda s: (s.thing("channel"), "_publish",
               [s.agent(), {"kv": s.any_rows()}, 0, "127.0.0.1", "DRAM"],
               {}),
    on_module("nixlXferDList", C.mem_type, C.any_rows),
    on_module("nixlRegDList", C.mem_type, C.reg_rows),
    on_module("nixlRemoteDList", C.mem_type, C.remote_rows),
    on_module("shared_buffer", lambda s: s.dice.choice([1, 4096, 2**62])),
    on_module("TcpSideChannel"),
    on_module("nixl_agent_config", True, False, 0, lambda s: ["UCX"]),
    on_thing("xfer", "release"),
    on_thing("left", "release"),
    on_thing("right", "release"),
    on_thing("channel", "start_listener", 0, C.blob, "127.0.0.1"),
    on_thing("channel", "set_metadata", lambda s: {"a": s.blob()}),
    on_thing("channel", "set_metadata", C.blob, lambda s: (0, 1)),
    on_thing("channel", "remove_metadata", "a"),
    on_thing("channel", "stats"),
    on_thing("channel", "shutdown"),
    on_thing("channel", "advertised_address"),
    lambda s: (s.thing("channel"), "request_metadata", ["127.0.0.1",
               s.port()], {"timeout_ms": 20, "key": s.spoil("a")}),
    lambda s: (s.thing("channel"), "request_many",
               [[("127.0.0.1", s.port(), "a")] * s.count],
               {"timeout_ms": 20}),
    lambda s: (s.thing("channel"), "_begin",
               [[("127.0.0.1", s.port())] * s.count], {"timeout_ms": 20}),
    on_thing("requests", "step"),
    on_thing("requests", "take"),
    on_thing("requests", "fileno"),
    *[on_thing(kind, name, *parts)
      for kind in ("xfer_descs", "reg_descs", "remote_descs")
      for name, *parts in [
          ("append", C.row), ("append", lambda s: (*s.row(), b"m")),
          ("addDesc", C.row), ("clear",), ("descCount",), ("isEmpty",),
          ("getType",), ("index", C.row), ("remDesc", 0),
          ("__getitem__", 0), ("__setitem__", 0, C.row), ("__delitem__", 0),
          ("__eq__", lambda s: s.thing("xfer_descs")), ("__copy__",),
          ("__lt__", lambda s: s.thing("reg_descs")), ("__getstate__",),
          ("__setstate__", C.blob), ("__deepcopy__", lambda s: {}),
          ("__init__", C.mem_type, C.rows), ("trim",)]],
    new_without_init,
    new_without_init,
    any_method,
    any_method,
    any_method,
    any_method,
]  # fmt: skip


# -- A run --------------------------------------------------------------------


def forked(world, seed):
    """Call the parent's objects in a forked child, which must exit cleanly."""
    pid = os.fork()
    if pid == 0:
        try:
            caller = Caller(world, seed)
            for _ in range(20):
                caller.call()
            gc.collect()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    end = time.monotonic() + CHILD_LIMIT
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGABRT)  # which prints its stack
            os.waitpid(pid, 0)
            assert UNDER_ASAN, "a forked child hangs"
            return
        time.sleep(0.01)
    assert ended[1] == 0, f"a forked child ended with status {ended[1]}"


class Run:
    def __init__(self, seed, seconds, notes):
        self.seed, self.seconds = seed, seconds
        self.notes = mmap.mmap(notes, 0)
        self.failure = None
        self.unraisable = None
        sys.unraisablehook = self.see_unraisable
        threading.excepthook = lambda args: self.fail(args.exc_value)

    def see_unraisable(self, unraisable):
        if isinstance(unraisable.exc_value, SystemError):
            self.fail(unraisable.exc_value)

    def fail(self, error):
        self.failure = self.failure or error

    def note_of(self, number):
        def note(text):
            line = f"{text[: NOTE - 2]:{NOTE - 1}}\n"
            start = number * NOTE
            self.notes[start : start + NOTE] = line.encode(
                "ascii", "backslashreplace"
            )[:NOTE].ljust(NOTE)

        return note

    def work(self, world, number, until):
        caller = Caller(world, self.seed * 1000 + number, self.note_of(number))
        while time.monotonic() < until and self.failure is None:
            for _ in range(100):
                caller.call()
            if caller.dice.random() < 0.2 or world.scene.agents[0].closed:
                world.renew()
            if caller.dice.random() < 0.1:
                forked(world, caller.dice.randrange(2**32))
            world.check()
        print(f"thread {number}: {caller.calls} calls, {caller.answers} "
              "answers", flush=True)  # fmt: skip
        if caller.calls > 1000:
            assert caller.answers > caller.calls // 20, "nothing succeeds"

    def run(self, api):
        dice = random.Random(self.seed)
        threads = dice.choice([1, 1, 4])
        world = World(api, self.seed)
        until = time.monotonic() + self.seconds
        workers = [
            threading.Thread(target=self.work, args=(world, number, until))
            for number in range(threads)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if self.failure is not None:
            raise self.failure
        world.still_works()
        world.check()


def main():
    seed, seconds, notes = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
    faulthandler.enable()
    faulthandler.dump_traceback_later(seconds * 2 + 90, exit=True)
    with open(notes, "r+b") as file:
        Run(seed, seconds, file.fileno()).run(Api("vllm_nixl"))


if __name__ == "__main__":
    main()
