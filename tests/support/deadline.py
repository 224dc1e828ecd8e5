"""Waiting with a deadline: a hanging test fails and names the event."""

import contextlib
import os
import threading
import time

# How much slower an emulated machine is (scripts/aarch64_init.sh).  The time
# limits of the tests are multiplied by it.
SLOWDOWN = float(os.environ.get("VLLM_NIXL_TEST_SLOWDOWN", "1"))
PATIENCE = 30.0 * SLOWDOWN


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


@contextlib.contextmanager
def or_kill(process, timeout=2 * PATIENCE):
    """Kill the process if the block does not end in time, so that reading its
    output ends."""
    timer = threading.Timer(timeout, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


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
