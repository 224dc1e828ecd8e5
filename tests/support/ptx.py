"""An interpreter of the part of PTX that the copy kernel uses.

The kernel uses no barriers, votes or shared memory, so the order in which
threads run does not matter.  All threads at the lowest instruction take one
step together, which lets numpy do the work.

Memory is checked as a GPU would, and closer: every byte must be in a region
that may be read, or written, and every access aligned to its width.
"""

import re
from dataclasses import dataclass, field

import numpy as np

WIDTHS = {"u8": 1, "u32": 4, "s32": 4, "b32": 4, "u64": 8, "s64": 8, "b64": 8}
COMPARE = {
    "eq": np.equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
COMPUTE = {
    "add": np.add,
    "sub": np.subtract,
    "and": np.bitwise_and,
    "xor": np.bitwise_xor,
    "shl": np.left_shift,
    "min": np.minimum,
}


class BadAccessError(Exception):
    """A GPU would have faulted, or a byte is not the kernel's to touch."""

    def __init__(self, what, address):
        super().__init__(f"{what} at {address:#x}")
        self.address = address


@dataclass
class Region:
    start: int
    data: np.ndarray
    readable: np.ndarray
    writable: np.ndarray


class Memory:
    def __init__(self):
        self.regions = []
        self.stored = set()  # the widths of all stores

    def add(self, start, data, readable=False, writable=False):
        """Add a region with these bytes and return it.  Callers may change
        which of its bytes the kernel may read or write."""
        data = np.array(data, np.uint8)
        allow = [np.full(len(data), flag) for flag in (readable, writable)]
        self.regions.append(Region(start, data, *allow))
        return self.regions[-1]

    def _find(self, what, addresses, width):
        """(region, offsets, which of the addresses are in it), ..."""
        bad = addresses[addresses % np.uint64(width) != 0]
        if len(bad):
            raise BadAccessError(f"misaligned {what}", int(bad[0]))
        left = np.ones(len(addresses), bool)
        found = []
        for region in self.regions:
            start = np.uint64(region.start)
            end = np.uint64(region.start + len(region.data) - width)
            here = (addresses >= start) & (addresses <= end)
            offsets = (addresses[here] - start).astype(np.int64)
            found.append((region, offsets[:, None] + np.arange(width), here))
            left &= ~here
        if left.any():
            raise BadAccessError(what, int(addresses[left].min()))
        return found

    def load(self, addresses, width):
        values = np.empty((len(addresses), width), np.uint8)
        for region, offsets, here in self._find("load", addresses, width):
            self._check("load", region, region.readable[offsets], offsets)
            values[here] = region.data[offsets]
        return values

    def store(self, addresses, values):
        width = values.shape[1]
        self.stored.add(width)
        for region, offsets, here in self._find("store", addresses, width):
            self._check("store", region, region.writable[offsets], offsets)
            region.data[offsets] = values[here]

    @staticmethod
    def _check(what, region, allowed, offsets):
        if not allowed.all():
            raise BadAccessError(
                what, region.start + int(offsets[~allowed].min())
            )


@dataclass
class Kernel:
    name: str
    params: list
    registers: dict = field(default_factory=dict)  # name: its type
    labels: dict = field(default_factory=dict)
    code: list = field(default_factory=list)  # (guard, operation, operands)


def parse(text):
    text = re.sub(r"//.*|/\*(.|\n)*?\*/", "", text)
    entry = re.search(r"\.entry (\w+)\((.*?)\)[^{]*{(.*)}", text, re.DOTALL)
    kernel = Kernel(entry[1], re.findall(r"\.param \.\w+ (\w+)", entry[2]))
    for statement in re.findall(r"\w+:|[^;:]+;", entry[3]):
        statement = statement.strip().rstrip(";")
        if statement.endswith(":"):
            kernel.labels[statement[:-1]] = len(kernel.code)
            continue
        guard, operation, operands = re.fullmatch(
            r"(?:@(\w+)\s+)?(\S+)\s*(.*)", statement, re.DOTALL
        ).groups()
        names = re.findall(r"[%\w.+-]+", operands)
        if operation == ".reg":
            kernel.registers |= dict.fromkeys(names[1:], names[0])
        else:
            kernel.code.append((guard, operation, names))
    return kernel


class _Run:
    def __init__(self, kernel, memory, special, params):
        count = len(special["%tid.x"])
        self.kernel, self.memory = kernel, memory
        self.special, self.params = special, params
        self.at = np.zeros(count, np.int64)
        # What a register holds at first is not defined.
        self.values = {
            name: np.full(count, 0xDEADBEEF, np.uint64)
            if kind != ".pred"
            else np.ones(count, bool)
            for name, kind in kernel.registers.items()
        }

    def read(self, name, who):
        if name in self.values:
            return self.values[name][who]
        if name in self.special:
            return self.special[name][who]
        return np.full(len(who), int(name) % 2**64, np.uint64)

    def write(self, name, who, values):
        if self.kernel.registers[name] == ".b32":
            values = values & np.uint64(2**32 - 1)
        self.values[name][who] = values

    def addresses(self, name, who):
        base, _, offset = name.partition("+")
        return self.read(base, who) + np.uint64(int(offset or 0))

    def step(self, where):
        guard, operation, names = self.kernel.code[where]
        who = np.flatnonzero(self.at == where)
        self.at[who] += 1
        if guard is not None:
            who = who[self.values[guard][who]]
        if len(who):
            self.execute(operation.split("."), names, who)

    def execute(self, words, names, who):
        operation, kind = words[0], words[-1]
        if operation == "ret":
            self.at[who] = len(self.kernel.code)
        elif operation == "bra":
            self.at[who] = self.kernel.labels[names[0]]
        elif words[:2] == ["ld", "param"]:
            value = self.params[self.kernel.params.index(names[1])]
            self.write(names[0], who, np.full(len(who), value, np.uint64))
        elif words[:2] == ["ld", "global"]:
            *into, address = names
            loaded = self.memory.load(
                self.addresses(address, who), WIDTHS[kind] * len(into)
            )
            for name, part in zip(
                into, np.split(loaded, len(into), axis=1), strict=True
            ):
                whole = np.zeros((len(who), 8), np.uint8)
                whole[:, : WIDTHS[kind]] = part
                self.write(name, who, whole.view(np.uint64)[:, 0])
        elif words[:2] == ["st", "global"]:
            address, *source = names
            parts = [
                self.read(name, who)[:, None].view(np.uint8)[:, : WIDTHS[kind]]
                for name in source
            ]
            self.memory.store(
                self.addresses(address, who), np.concatenate(parts, axis=1)
            )
        else:
            self.write(
                names[0],
                who,
                self.compute(
                    words, [self.read(name, who) for name in names[1:]]
                ),
            )

    def compute(self, words, values):
        operation, kind = words[0], words[-1]
        if kind == "s64":
            values = [value.view(np.int64) for value in values]
        if operation == "setp":
            return COMPARE[words[1]](*values)
        if operation in ("mov", "cvt"):
            return values[0]
        if operation == "mul" and words[1] == "wide":
            return values[0] * values[1]
        if operation == "neg":
            return (-values[0]).view(np.uint64)
        assert operation in COMPUTE, ".".join(words)
        return COMPUTE[operation](*values).view(np.uint64)


def launch(kernel, memory, grid, block, params, blocks=None, steps=100_000):
    """Run the kernel; `blocks`: only these of the grid.  Fails after `steps`
    steps."""
    chosen = np.arange(grid) if blocks is None else np.array(blocks)
    special = {
        "%ctaid.x": np.repeat(chosen, block),
        "%tid.x": np.tile(np.arange(block), len(chosen)),
        "%ntid.x": np.full(len(chosen) * block, block),
        "%nctaid.x": np.full(len(chosen) * block, grid),
    }
    special = {name: v.astype(np.uint64) for name, v in special.items()}
    run = _Run(kernel, memory, special, params)
    for _ in range(steps):
        where = int(run.at.min())
        if where == len(kernel.code):
            return
        run.step(where)
    raise TimeoutError(f"not at its end after {steps} steps")
