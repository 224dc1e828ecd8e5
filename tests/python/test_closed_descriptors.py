"""A program closes all its descriptors, as daemons do, while an agent is open.

Closing the agent and exiting still work, and files that the program opened
meanwhile stay open and as they are.
"""

import pytest
from support.program import run_program

pytestmark = [pytest.mark.beyond_stock, pytest.mark.slow]

# Keep only the peer's pipe, because the peer must survive.
SCENE = """
import ctypes, os, sys, time
from support.endpoint import Endpoint
from support.peer import PeerProcess
from support.transfers import Long

kept = []

def peer_of(here):
    there = PeerProcess(MODULE, "there")
    kept.append(there.pipe.fileno())
    here.add(there.metadata())
    there.add(here.metadata())
    there.send_notif(here.name, b"hello")
    here.gather_notifs(1)
    return there

def ucx_sleeps():
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/stat") as stat:
                name, state = stat.read().split("(")[1].split(")")
        except OSError:
            continue  # it has ended
        if name == "vnx-ucx" and state.split()[0] != "S":
            return False
    return True

def close_all():
    # Nothing protects a thread that is inside UCX at this time.
    quiet = 0
    while SLEEPS and quiet < 20:
        quiet = quiet + 1 if ucx_sleeps() else 0
        time.sleep(0.01)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            try:
                os.close(int(name))
            except OSError:
                pass
    files = []
    while len(files) < 200:
        name = os.path.join(os.environ["FOLDER"], str(len(files)))
        files.append(os.open(name, os.O_RDWR | os.O_CREAT))
        os.write(files[-1], b"sixteen letters!")
        os.lseek(files[-1], 0, os.SEEK_SET)
    return files

def check(files):
    for fd in files:
        stat = os.fstat(fd)
        assert stat.st_size == 16 and stat.st_nlink == 1, (fd, stat)
        assert os.pread(fd, 16, 0) == b"sixteen letters!", fd
        assert os.lseek(fd, 0, os.SEEK_CUR) == 0, fd
def start_again():
    try:
        again, other = Endpoint(MODULE, "again"), Endpoint(MODULE, "other")
    except Exception as error:
        # UCX has a thread of its own, which nothing can repair.
        assert "UCX cannot be used again in this process" in str(error)
        assert os.environ.get("VLLM_NIXL_SAME_HOST") == "0"
    else:
        again.add(other.metadata())
        again.agent.send_notif("other", b"x")
        other.gather_notifs(1)
"""

SCENES = {
    "alone": "here = Endpoint(MODULE, 'here')\n",
    "with a peer": "here = Endpoint(MODULE, 'here')\nthere = peer_of(here)\n",
    "in flight": (
        "here = Endpoint(MODULE, 'here')\nthere = peer_of(here)\n"
        "long = Long(here, there)\n"
        "assert here.agent.transfer(long.handle) == 'PROC'\n"
    ),
    "side channels": (
        "here = Endpoint(MODULE, 'here')\n"
        "here.agent.start_side_channel_listener(0, here.metadata())\n"
        "import vllm_nixl\n"
        "others = [vllm_nixl.ZmqSideChannel(), vllm_nixl.HttpSideChannel()]\n"
        "for other in others:\n"
        "    other.start_listener(0, here.metadata())\n"
    ),
    "metadata listener": (
        "here = Endpoint(MODULE, 'here',\n"
        "    {'enable_listen_thread': True, 'listen_port': 0})\n"
    ),
    "watched": (
        "here = Endpoint(MODULE, 'here')\n"
        "there = peer_of(here)\n"
        "here.agent.fileno()\n"  # readable at first
    ),
}

ENDS = {
    "close": (
        "files = close_all()\n"
        "here.agent.close()\n"
        "check(files)\n"
        "start_again()\n"
        "del here\n"
        "check(files)\n"
        "print('closed', flush=True)\n"
    ),
    "use": (
        "here.agent.get_new_notifs()\n"  # the eventfd is not readable
        "files = close_all()\n"
        "for name in 'there', 'here':\n"
        "    try:\n"
        "        here.agent.send_notif(name, b'x')\n"
        "    except Exception as error:\n"
        "        assert 'NIXL_ERR' in str(error), error\n"
        "check(files)\n"
        "if 'there' in here.agent.peers():\n"
        "    here.agent.remove_remote_agent('there')\n"
        "check(files)\n"
        "here.agent.close()\n"
        "check(files)\n"
        "print('closed', flush=True)\n"
    ),
    "close before": (
        "here.agent.close()\n"
        "files = close_all()\n"
        "here.agent = None\n"  # the object was the last user
        "import gc\n"
        "gc.collect()\n"
        "check(files)\n"
        "print('closed', flush=True)\n"
    ),
    "take": (
        "files = close_all()\n"
        "here.agent.get_new_notifs()\n"
        "check(files)\n"
        "here.agent.close()\n"
        "check(files)\n"
        "print('closed', flush=True)\n"
    ),
    "exit": "files = close_all()\nprint('closed', flush=True)\n",
    "fork": (
        "files = close_all()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    check(files)\n"
        "    os._exit(0)\n"
        "assert os.waitpid(child, 0)[1] == 0\n"
        "print('closed', flush=True)\n"
    ),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("scene", SCENES)
def test_agent_survives_closing_of_all_descriptors(
    inproc, scene, end, tmp_path
):
    by_ucx = inproc.env.get("VLLM_NIXL_SAME_HOST") == "0"
    if by_ucx and scene == "in flight":
        pytest.skip("its thread is inside UCX, which nothing protects")
    source = f"SLEEPS = {by_ucx}\n" + SCENE + SCENES[scene] + ENDS[end]
    env = {**inproc.env, "FOLDER": str(tmp_path)}
    assert run_program(source, env=env, timeout=60).stdout == "closed\n"
