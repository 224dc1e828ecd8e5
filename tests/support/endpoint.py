"""An agent with memory, controlled by plain values.

The same class is used in this process and, behind a pipe, in a peer process
(`support.peer`), so that one test runs on both.
"""

import collections
import ctypes
import gc
import itertools
import os
import time

from support import deadline, memory, rounds, usage
from support.api import Api
from support.transfers import LONG_TIMES

# A buffer as described to other endpoints.
Buffer = collections.namedtuple("Buffer", "key addr size")


class Endpoint:
    def __init__(self, module, name, config=None):
        self.api = Api(module)
        self.name = name
        self.agent = self.api.nixl_agent(
            name, self.api.nixl_agent_config(**(config or {}))
        )
        self.keys = itertools.count(1)
        self.buffers = {}
        self.registered = {}
        self.handles = {}
        self.guarded = {}

    def pid(self):
        return os.getpid()

    # -- memory --------------------------------------------------------------

    def alloc(self, size, kind="private", seed=None, register=True):
        """Allocate memory, fill it with pattern(seed), register it as DRAM."""
        block = memory.allocate(size, kind, self.api)
        if seed is not None:
            block.fill(seed)
        key = next(self.keys)
        self.buffers[key] = block
        if register:
            self.register(key)
        return Buffer(key, block.addr, size)

    def register(self, key):
        block = self.buffers[key]
        self.registered[key] = self.agent.register_memory(
            [(block.addr, block.size, 0, "")], block.mem
        )

    def publish(self, rows, port=0):
        return self.agent.publish(rows, port)

    def alloc_guarded(self, size, kind="private"):
        """Registered memory with unregistered pages before and after it."""
        block = memory.allocate(size + 2 * memory.PAGE, kind, self.api)
        block.view[:] = memory.CANARY * (block.size // len(memory.CANARY))
        block.view[memory.PAGE : memory.PAGE + size] = bytes(size)
        addr = block.addr + memory.PAGE
        key = next(self.keys)
        self.buffers[key] = block
        self.guarded[key] = (memory.PAGE, memory.PAGE + size)
        self.registered[key] = self.agent.register_memory(
            [(addr, size, 0, "")], memory.MEM
        )
        return Buffer(key, addr, size)

    def expose(self, key):
        """Deregister guarded memory, which nothing may touch from now on."""
        self.deregister(key)
        size = self.buffers[key].size
        self.buffers[key].view[:] = memory.CANARY * (
            size // len(memory.CANARY)
        )
        self.guarded[key] = (0, 0)

    def touched(self):
        """The guarded buffers whose unregistered bytes have changed."""
        return [
            key
            for key, (start, end) in self.guarded.items()
            if not memory.is_canary(self.buffers[key].view[:start])
            or not memory.is_canary(self.buffers[key].view[end:])
        ]

    def register_descs(self, key, backends):
        """Register in two calls, as vLLM does: the list first."""
        block = self.buffers[key]
        descs = self.agent.get_reg_descs(
            [(block.addr, block.size, 0, "")], memory.MEM
        )
        self.registered[key] = self.agent.register_memory(
            descs, backends=backends
        )

    def deregister(self, key):
        self.agent.deregister_memory(self.registered.pop(key))

    def register_rows(self, key, size, count):
        """Register pieces of a buffer in one call."""
        base = self.buffers[key].addr
        rows = [(base + i * size, size, 0, "") for i in range(count)]
        self.registered[key] = self.agent.register_memory(rows, memory.MEM)

    def deregister_rows(self, key, size, count):
        """Deregister pieces of a buffer that were registered one by one."""
        base = self.buffers[key].addr
        for number in range(count):
            rows = [(base + number * size, size, 0, "")]
            self.agent.deregister_memory(
                self.agent.get_reg_descs(rows, memory.MEM)
            )

    def forget_all_but(self, *keys):
        """Deregister and unmap all other buffers."""
        for key in self.buffers.keys() - set(keys):
            if key in self.registered:
                self.deregister(key)
            self.unmap(key)

    def unmap(self, key):
        """Unmap the memory, registered or not."""
        self.buffers.pop(key).unmap()

    def remap(self, key, kind, seed):
        """Map other memory at the same address."""
        old = self.buffers[key]
        size, addr = old.size, old.addr
        self.buffers[key] = memory.Memory(size, kind, at=addr).fill(seed)
        old.forget()

    def fill(self, key, seed):
        self.buffers[key].fill(seed)

    def poison(self, key, byte):
        block = self.buffers[key]
        block.view[:] = bytes([byte]) * block.size

    def withdraw(self, key):
        """Deregister memory; return whether nothing is written to it after
        that."""
        self.deregister(key)
        return self._stays(key)

    def close_agent(self, key):
        """Close the agent; return whether nothing is written to that memory
        after it."""
        self.agent.close()
        return self._stays(key)

    def _stays(self, key):
        self.poison(key, 0)
        time.sleep(0.02)
        return self.read(key).count(0) == self.buffers[key].size

    def read(self, key, offset=0, size=None):
        block = self.buffers[key]
        end = block.size if size is None else offset + size
        return bytes(block.view[offset:end])

    def write(self, key, offset, data):
        self.buffers[key].view[offset : offset + len(data)] = data

    def checksum(self, key):
        return memory.checksum(self.buffers[key].view)

    # -- peers ---------------------------------------------------------------

    def metadata(self):
        return self.agent.get_agent_metadata()

    def _regions(self, keys):
        """A list for registration of whole buffers."""
        rows = [
            (self.buffers[key].addr, self.buffers[key].size, 0, "")
            for key in keys
        ]
        api = self.api
        return (
            self.agent.get_reg_descs(rows, memory.MEM)
            if rows
            else api.nixlRegDList(getattr(api, f"{memory.MEM}_SEG"))
        )

    def partial_metadata(self, keys, connection):
        lists = self._regions(keys)
        return self.agent.get_partial_agent_metadata(lists, connection)

    def send_partial(self, keys, ip_addr, port):
        """Send partial metadata by the listener, with connection data."""
        self.agent.send_partial_agent_metadata(
            self._regions(keys), True, ip_addr=ip_addr, port=port
        )

    def knows(self, peer, block=None):
        """Is the peer's metadata loaded, with this buffer?"""
        if block is None:
            return self.agent.check_remote_metadata(peer)
        descs = self.agent.get_xfer_descs(
            [(block.addr, block.size, 0)], memory.MEM
        )
        return self.agent.check_remote_metadata(peer, descs)

    def add(self, blob):
        return self.agent.add_remote_agent(blob)

    def remove(self, name):
        self.agent.remove_remote_agent(name)

    # -- transfers, by keys --------------------------------------------------

    def prepare(self, peer, rows, mem_type=memory.MEM):
        return self._keep(self.agent.prep_xfer_dlist(peer, rows, mem_type))

    def make(self, operation, local, remote, notif=b"", indices=None):
        left, right = self.handles[local], self.handles[remote]
        indices = indices if indices is not None else ([0], [0])
        return self._keep(
            self.agent.make_prepped_xfer(
                operation, left, indices[0], right, indices[1], notif
            )
        )

    def initialize(self, operation, local, remote, peer, notif=b""):
        agent = self.agent
        return self._keep(
            agent.initialize_xfer(
                operation,
                agent.get_xfer_descs(local, memory.MEM),
                agent.get_xfer_descs(remote, memory.MEM),
                peer,
                notif,
            )
        )

    def post(self, key, notif=b""):
        return self.agent.transfer(self.handles[key], notif)

    def post_with_empty_notif(self, key):
        return self.agent.transfer_with_empty_notif(self.handles[key])

    def state(self, key):
        return self.agent.check_xfer_state(self.handles[key])

    def finish(self, key, timeout=deadline.PATIENCE):
        return deadline.finish(self.agent, self.handles[key], timeout)

    def move(self, operation, local, remote, peer, notif=b""):
        """Run a whole transfer of lists of rows: create, post, wait."""
        key = self.initialize(operation, local, remote, peer, notif)
        state = self.post(key)
        state = state if state == "DONE" else self.finish(key)
        self.release(key)
        return state

    def move_to_serialized(self, operation, key, serialized, peer):
        """Transfer between a buffer and a list received from a peer."""
        agent = self.agent
        remote = agent.deserialize_descs(serialized)
        at, local = self.buffers[key].addr, []
        for i in range(remote.descCount()):
            local.append((at, remote[i][1], 0))
            at += remote[i][1]
        left = agent.get_xfer_descs(local, memory.MEM)
        handle = agent.initialize_xfer(operation, left, remote, peer, b"")
        state = deadline.run(agent, handle)
        handle.release()
        return state == "DONE"

    def start_endless(self, operation, peer, key, remote):
        """Start a transfer of this buffer that runs until it is stopped;
        return its handle."""
        block = self.buffers[key]
        left = self.prepare("", [(block.addr, block.size, 0)])
        right = self.prepare(peer, [(remote, block.size, 0)])
        indices = [0] * LONG_TIMES
        handle = self.make(operation, left, right, b"", (indices, indices))
        state = self.post(handle)
        self.release(left)
        self.release(right)
        if state != "PROC":
            raise AssertionError(f"{state}: it has ended already")
        return handle

    def error_within(self, key, timeout):
        """The class of the error with which a transfer ends within the
        timeout, see deadline.soon()."""
        handle = self.handles[key]
        deadline.soon(
            lambda: self.agent.check_xfer_states([handle]) != ["PROC"],
            "the end of a transfer",
            timeout,
        )
        return deadline.error_of(lambda: self.agent.check_xfer_state(handle))

    def refusal_within(self, peer, timeout):
        """The class of the error that messages to a peer raise eventually."""
        return deadline.soon(
            lambda: deadline.error_of(
                lambda: self.agent.send_notif(peer, b"anybody?")
            ),
            f"the news that {peer} is gone",
            timeout,
        )

    def start_long(self, peer, remote, size):
        """Read one block of a peer repeatedly until stopped."""
        local = self.alloc(size)
        left = self.prepare("", [(local.addr, size, 0)])
        right = self.prepare(peer, [(remote, size, 0)])
        indices = [0] * LONG_TIMES
        return self.post(
            self.make("READ", left, right, b"", (indices, indices))
        )

    def cancel(self, key):
        return self.agent.cancel(self.handles[key])

    def release(self, key):
        self.handles.pop(key).release()

    def _keep(self, handle):
        key = next(self.keys)
        self.handles[key] = handle
        return key

    # -- slots (support.rounds) ----------------------------------------------

    def stamp_slots(self, key, slot, first=0):
        rounds.stamp_all(self.buffers[key].view, slot, first)

    def _with_slots(self, work, key, slot, peer, remote, *rest):
        view = self.buffers[key].view
        sides = rounds.lists(
            self.agent,
            peer,
            self.buffers[key].addr,
            remote,
            slot,
            len(view) // slot,
        )
        try:
            return work(self.agent, sides, *rest)
        finally:
            for side in sides:
                side.release()

    def read_slots(self, key, slot, peer, remote, count, first=0):
        """READ repeatedly into this buffer; return the rounds with wrong
        bytes."""
        view = self.buffers[key].view
        return self._with_slots(
            rounds.read, key, slot, peer, remote, view, slot, count, first
        )

    def read_slots_at_once(self, key, slot, peer, remote, first=0):
        view = self.buffers[key].view
        return self._with_slots(
            rounds.scattered, key, slot, peer, remote, view, slot, first
        )

    def write_slots(self, key, slot, peer, remote, count):
        """WRITE repeatedly from this buffer, each time with its number."""
        self._with_slots(rounds.write, key, slot, peer, remote, count)

    def send_numbers(self, peer, count):
        for number in range(count):
            self.agent.send_notif(peer, number.to_bytes(8, "little"))

    def gather_numbers(self, count):
        """The numbers in `count` notifications, in order of arrival."""
        notifs = deadline.gather_notifs(self.agent, count)
        return [int.from_bytes(message, "little") for _, message in notifs]

    # -- notifications -------------------------------------------------------

    def send_notif(self, peer, message):
        self.agent.send_notif(peer, message)

    def gather_notifs(self, count, timeout=deadline.PATIENCE):
        return deadline.gather_notifs(self.agent, count, timeout)

    def take_notifs(self):
        return self.agent.get_new_notifs()

    def heads(self, size):
        """The first bytes of each pending message."""
        notifs = self.agent.get_new_notifs().values()
        return [message[:size] for some in notifs for message in some]

    def check_slots_as_told(self, key, slot, count):
        """For each of `count` notifications (8 bytes: the slot number), check
        the slot at once; return the errors and the order seen."""
        view = self.buffers[key].view
        seen, wrong = [], []
        end = time.monotonic() + deadline.PATIENCE  # since the last one
        while len(seen) < count and time.monotonic() < end:
            for messages in self.agent.get_new_notifs().values():
                for message in messages:
                    number = int.from_bytes(message, "little")
                    start = number * slot
                    if view[start : start + slot] != message * (slot // 8):
                        wrong.append(number)
                    seen.append(number)
                end = time.monotonic() + deadline.PATIENCE
        return wrong, seen

    def overwrite_slots_as_told(self, key, slot, count):
        """For each of `count` notifications, overwrite its slot at once."""
        view = self.buffers[key].view
        spoiled = 0
        end = time.monotonic() + deadline.PATIENCE
        while spoiled < count and time.monotonic() < end:
            for messages in self.agent.get_new_notifs().values():
                for message in messages:
                    start = int.from_bytes(message, "little") * slot
                    view[start : start + slot] = b"\xee" * slot
                    spoiled += 1
                end = time.monotonic() + deadline.PATIENCE
        return spoiled

    # -- descriptor lists ----------------------------------------------------

    def list_state(self, kind, rows, mem_type=memory.MEM):
        """(the bytes that pickle keeps, the whole pickle) of a new list."""
        make = getattr(self.agent, f"get_{kind}_descs")
        made = make([tuple(row) for row in rows], mem_type)
        return made.__getstate__(), self.agent.get_serialized_descs(made)

    def rows_of_state(self, kind, state):
        """The rows of a list made from list_state() bytes."""
        classes = {
            "xfer": self.api.nixlXferDList,
            "reg": self.api.nixlRegDList,
        }
        made = classes[kind].__new__(classes[kind])
        made.__setstate__(state)
        return [made[i] for i in range(made.descCount())]

    def rows_of_serialized(self, data):
        """The rows of a list written by get_serialized_descs()."""
        made = self.agent.deserialize_descs(data)
        return [made[i] for i in range(made.descCount())]

    def holds(self):
        """The resources of the process: descriptors, threads, mappings,
        bytes."""
        gc.collect()
        return (
            usage.fds(),
            usage.threads(),
            usage.mappings(),
            usage.resident(),
        )

    def idle_cpu(self, seconds):
        """The CPU seconds that the process uses while it is idle that long."""
        before = time.process_time()
        time.sleep(seconds)
        return time.process_time() - before

    # -- anything else -------------------------------------------------------

    def call(self, method, *args, **keywords):
        """Call an agent's method whose arguments and result are plain
        values."""
        return getattr(self.agent, method)(*args, **keywords)

    def prctl(self, option, value):
        ctypes.CDLL(None, use_errno=True).prctl(option, value)

    def close(self):
        """Release everything in the order in which a client would."""
        for handle in self.handles.values():
            handle.release()
        self.handles.clear()
        if hasattr(self.agent, "close"):
            self.agent.close()
        self.agent = None
        self.registered.clear()
        for block in self.buffers.values():
            block.unmap()
        self.buffers.clear()
