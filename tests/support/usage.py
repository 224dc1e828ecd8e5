"""Resources of a process: descriptors, threads, memory, switches."""

import contextlib
import os
import time
from pathlib import Path


def fds():
    return len(os.listdir("/proc/self/fd"))


def threads():
    return len(os.listdir("/proc/self/task"))


def resident():
    """Resident memory in bytes."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


def mappings():
    return Path("/proc/self/maps").read_text().count("\n")


def sleeps(pid):
    """Is the main thread of a process asleep?"""
    stat = Path(f"/proc/{pid}/task/{pid}/stat").read_text()
    return stat.rsplit(")", 1)[1].split()[0] == "S"


def most_switches(seconds):
    """The voluntary context switches of the thread with most of them, while
    this one sleeps that long."""
    before = switches()
    time.sleep(seconds)
    after = switches()
    return max(count - before.get(task, 0) for task, count in after.items())


def switches():
    """Voluntary context switches of each thread."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has just ended
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    found[task.name] = int(line.split()[1])
    return found
