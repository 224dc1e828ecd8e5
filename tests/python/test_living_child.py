"""An agent is closed, and a child of its process lives on: peers notice the
end, although children inherit descriptors."""

import os
import signal
import subprocess
import time

import pytest
from support import deadline

pytestmark = pytest.mark.beyond_stock


def fork():
    pid = os.fork()
    if pid == 0:
        time.sleep(600)
        os._exit(0)
    return pid


def execute():
    return subprocess.Popen(["sleep", "600"], close_fds=False).pid


@pytest.mark.parametrize("start", [fork, execute])
def test_peers_notice_the_end(pair, start):
    here, there = pair
    there.send_notif(here.name, b"x")
    here.gather_notifs(1)
    here.send_notif(there.name, b"x")
    there.gather_notifs(1)
    child = start()
    try:
        here.agent.close()
        there.refusal_within(here.name, deadline.PATIENCE)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
