"""Waiting with a deadline: a hanging test fails and names the event."""

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

# How much slower an emulated machine is (scripts/aarch64_init.sh).  The time
# limits of the tests are multiplied by it.
SLOWDOWN = float(os.environ.get("VLLM_NIXL_TEST_SLOWDOWN", "1"))
PATIENCE = 30.0 * SLOWDOWN
LOOK = 0.01  # seconds between two looks of soon()


class DeadlineError(Exception):
    """Something did not happen in time."""


def until(condition, what, timeout=PATIENCE, pause=0.0005):
    """Return the first true value of condition()."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise DeadlineError(f"not within {timeout} s: {what}")
        time.sleep(pause)


def soon(condition, what, seconds):
    """The same for what must not take long: time counts only as far as this
    process runs, in looks, so that a busy machine does not change the result.
    """
    for _ in range(int(seconds / LOOK) + 1):
        value = condition()
        if value:
            return value
        time.sleep(LOOK)
    raise DeadlineError(f"not within {seconds} s of looking: {what}")


@contextlib.contextmanager
def or_kill(process, timeout=2 * PATIENCE):
    """Kill the process if the block does not end in time, so that reading its
    output ends, or if it fails, so that waiting for the process ends."""
    timer = threading.Timer(timeout, process.kill)
    timer.start()
    try:
        yield
    except BaseException:
        process.kill()
        raise
    finally:
        timer.cancel()
        timer.join()


def stop(process):
    """Send SIGSTOP; return when all threads of the process have stopped."""
    process.send_signal(signal.SIGSTOP)
    tasks = Path(f"/proc/{process.pid}/task")

    def stand_still():
        stats = [(task / "stat").read_text() for task in tasks.iterdir()]
        return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)

    until(stand_still, "the stop of a process")


def error_of(call):
    """The class name of the exception that call() raises, or None."""
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return None


def finish(agent, handle, timeout=PATIENCE):
    """Poll a posted transfer until it ends, as stock's clients do."""
    until(
        lambda: agent.check_xfer_state(handle) != "PROC",
        "the end of a transfer",
        timeout,
    )
    return agent.check_xfer_state(handle)


def run(agent, handle, notif=b"", timeout=PATIENCE):
    """Post a transfer and wait for its end."""
    state = agent.transfer(handle, notif) if notif else agent.transfer(handle)
    return state if state == "DONE" else finish(agent, handle, timeout)


def gather_notifs(agent, count, timeout=PATIENCE):
    """Poll until `count` notifications arrived; [(sender, message), ...]."""
    got = []

    def poll():
        for sender, messages in agent.get_new_notifs().items():
            got.extend((sender, message) for message in messages)
        return len(got) >= count

    until(poll, f"{count} notifications", timeout)
    return got
