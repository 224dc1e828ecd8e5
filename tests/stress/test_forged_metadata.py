"""Well-formed but false metadata is refused or does no harm.

`VLLM_NIXL_FORGERIES=10000` sets the number of forgeries at each place; a
failure prints the seed.
"""

import os

import pytest
from support.program import run_program

pytestmark = [
    pytest.mark.slow,
    pytest.mark.beyond_stock,
    pytest.mark.nixl_differs("nothing can be asked of stock's agents"),
]

COUNT = int(os.environ.get("VLLM_NIXL_FORGERIES", "300"))
SEED = int(os.environ.get("VLLM_NIXL_SEED", "1"))

PROGRAM = """
import collections
import faulthandler
from support import blob as grammar, deadline, forge, memory
from support.endpoint import Endpoint
from support.peer import PeerProcess

faulthandler.enable()
COUNT, SEED = {count}, {seed}
SIZE, BIG = 8192, 128 * 1024
here, beside = Endpoint(MODULE, "here"), Endpoint(MODULE, "beside")
there = {there}
third = {third}
owners = [here, beside, there, third]

local = here.alloc_guarded(SIZE)
blobs, addresses, buffers = [], [], []
for owner in owners:
    mine = [owner.alloc_guarded(SIZE), owner.alloc_guarded(BIG, "memfd"),
            owner.alloc_guarded(SIZE), owner.alloc_guarded(BIG, "memfd")]
    buffers.append(mine)
    blobs += [owner.metadata(),
              owner.partial_metadata([], True)]
    # What was registered once, and is not any more.
    for buffer in mine[2:]:
        owner.expose(buffer.key)
    if owner is not here:
        blobs.append(owner.metadata())
    addresses += [at for b in mine for at in (b.addr - 4096, b.addr,
                  b.addr + b.size, b.addr + b.size - 8)]
addresses += [forge.info_of(blob).nonce_addr for blob in blobs]
addresses += [local.addr - 4096, local.addr, local.addr + SIZE]
good = {{o.name: o.metadata() for o in owners[1:]}}
forger = forge.Forger(SEED, blobs, addresses)
count = collections.Counter()

def check(what):
    for owner in owners:
        touched = owner.touched()
        assert not touched, f"{{owner.name}}: {{touched}}: {{what}}"
    assert memory.CANARY not in here.read(local.key, 4096, SIZE), what

def check_good():
    for owner, mine in zip(owners[1:], buffers[1:]):
        here.remove(owner.name)
        here.add(good[owner.name])
        for buffer in mine[:2]:
            for operation in ("WRITE", "READ"):
                assert here.move(
                    operation, [(local.addr, SIZE, 0)],
                    [(buffer.addr, SIZE, 0)], owner.name, b"moved") == "DONE"
        here.send_notif(owner.name, b"good")
        told = owner.gather_notifs(5)
        assert told == [("here", b"moved")] * 4 + [("here", b"good")], told

def attack(name, region, what):
    size = min(region.size, SIZE)
    starts = {{region.addr, region.addr + (region.size - size) // 2,
              region.addr + region.size - size}}
    for start in starts:
        for operation in ("READ", "WRITE"):
            try:
                state = here.move(operation, [(local.addr, size, 0)],
                                  [(start, size, region.device)], name)
                count[state] += 1
            except here.api.NixlError as error:
                count[type(error).__name__] += 1
                here.handles.clear()

def attempt(data, what):
    try:
        name = here.add(data).decode(errors="surrogateescape")
    except here.api.NixlError as error:
        assert "NIXL_ERR_" in str(error)
        count["refused"] += 1
        return
    count["loaded"] += 1
    regions = list(dict.fromkeys(forge.regions_of(data)))
    for region in forger.dice.sample(regions, min(len(regions), 3)):
        attack(name, region, what)
    if name not in good or forger.dice.random() < 0.2:
        here.remove(name)

check_good()
check("before")
for number in range(COUNT):
    data, changes = forger.forge()
    what = f"forgery {{number}} of seed {{SEED}}: {{changes}}"
    attempt(data, what)
    check(what)
    if number % 50 == 49:
        check_good()
check_good()
print(dict(count))
assert count["loaded"] > COUNT // 8, count
assert count["refused"] > COUNT // 8, count
assert count["DONE"] > COUNT // 8, count
for owner in owners:
    owner.close()
"""

PLACES = {
    "inproc": ('Endpoint(MODULE, "there")', 'Endpoint(MODULE, "third")'),
    "shm": ('PeerProcess(MODULE, "there")', 'PeerProcess(MODULE, "third")'),
}


@pytest.mark.parametrize("place", PLACES)
def test_forged_metadata_does_no_harm(place):
    """No byte outside registered memory is read or written, in any process,
    and honest peers work at any time."""
    there, third = PLACES[place]
    source = PROGRAM.format(
        there=there, third=third, count=COUNT, seed=SEED + len(place)
    )
    done = run_program(source, timeout=120 + COUNT / 10)
    print(done.stdout)
