"""What a notification announces is there: for whatever the GPU does next."""

from __future__ import annotations

import functools
from typing import Any

from .endpoint import Rows, color, is_painted
from .memory import MIB
from .pair import Pair, two_processes
from .report import Checks

scene = two_processes
checks = Checks()

BLOCK, BLOCKS = 16 << 10, 16
SIZE = BLOCK * BLOCKS
# In reverse order, so that each is copied by itself.
ROWS: Rows = [
    (i * BLOCK, (BLOCKS - 1 - i) * BLOCK, BLOCK) for i in range(BLOCKS)
]


def make(pair: Pair, kind: str) -> dict[str, Any]:
    memory = pair.make("cudaMalloc", kind, 2 * MIB)
    pair.meet()
    return memory


def written(pair: Pair, kind: str, method: str) -> str:
    """WRITE; the peer reads when the notification has come."""
    theirs = make(pair, kind)
    here = pair.here
    mine = here.memories["memory"]
    handle = here.handle("WRITE", theirs, ROWS)
    rounds = pair.options.pick(5000, 40)
    pair.other.order("watch", rounds=rounds, size=SIZE, method=method)
    here.expect(b"ready")
    for number in range(rounds):
        here.gpu.paint(mine.address, color(number), SIZE)
        here.run(handle, b"%d" % number)
        here.expect(b"%d" % number)
    wrong = pair.other.answer()["wrong"]
    handle.release()
    pair.end()
    return verdict(wrong, rounds)


def read(pair: Pair, kind: str, method: str) -> str:
    """READ; this side reads when wait() returns."""
    theirs = make(pair, kind)
    here = pair.here
    handle = here.handle("READ", theirs, ROWS)
    look, close = here.reader(method, SIZE)
    rounds = pair.options.pick(5000, 40)
    pair.other.order("paint", rounds=rounds, size=SIZE)
    wrong = 0
    for number in range(rounds):
        here.expect(b"%d" % number)
        here.run(handle)
        wrong += not is_painted(look(), number)
        here.agent.send_notif(here.peer, b"%d" % number)
    pair.other.answer()
    close()
    handle.release()
    pair.end()
    return verdict(wrong, rounds)


def verdict(wrong: int, rounds: int) -> str:
    if wrong > 0:
        raise RuntimeError(f"old bytes in {wrong} of {rounds} rounds")
    return f"{rounds} rounds"


for kind in ("cudaMalloc", "cumem"):
    for method in ("kernel", "copy"):
        text = f"the peer's {method} reads right after the notification"
        run = functools.partial(written, kind=kind, method=method)
        checks.add(f"{text}: {kind}")(run)
for method in ("kernel", "copy"):
    text = f"a {method} reads right after wait()"
    run = functools.partial(read, kind="cudaMalloc", method=method)
    checks.add(text)(run)
