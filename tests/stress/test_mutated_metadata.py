"""5 000 damaged metadata blobs: each is refused or loaded, and none
crashes."""

import pytest
from support.program import run_program

pytestmark = [pytest.mark.slow, pytest.mark.beyond_stock]

PROGRAM = """
import faulthandler
from support import usage
from support.endpoint import Endpoint
from support.mutate import mutations
from support.peer import PeerProcess

faulthandler.enable()
here = Endpoint(MODULE, "here")
local = here.alloc(4096)
{there}
remotes = [there.alloc(4096, kind, seed=i)
           for i, kind in enumerate(["private", "memfd", "shared-buffer"])]
good = there.metadata()
partial = there.partial_metadata([remotes[0].key], True)
loose = there.partial_metadata([remotes[1].key], False)

def check():
    here.add(good)
    for remote in remotes:
        here.move("READ", [(local.addr, 4096, 0)],
                  [(remote.addr, 4096, 0)], there.name, b"read")
        assert here.read(local.key) == there.read(remote.key)
    told = there.gather_notifs(3)
    assert told == [("here", b"read")] * 3, told

check()
before = usage.fds(), usage.threads()
taken = refused = 0
for data in mutations({seed}, [good, partial, loose], 2500):
    try:
        name = here.add(data)
        assert isinstance(name, bytes) and name
        taken += 1
        if name != there.name.encode():
            here.remove(name)
    except here.api.NixlError as error:
        assert "NIXL_ERR_" in str(error)
        refused += 1
    if (taken + refused) % 250 == 0:
        check()
check()
assert refused > 1000, refused
after = usage.fds(), usage.threads()
assert after[0] <= before[0] + 4, (before, after)
assert after[1] <= before[1] + 1, (before, after)
there.close()
here.close()
"""

PLACES = {
    "inproc": 'there = Endpoint(MODULE, "there")',
    "shm": 'there = PeerProcess(MODULE, "there")',
}


@pytest.mark.parametrize("place", PLACES)
def test_damaged_metadata_does_no_harm(place):
    """The good blob loads and works at any time."""
    source = PROGRAM.format(there=PLACES[place], seed=len(place))
    run_program(source, timeout=200)
