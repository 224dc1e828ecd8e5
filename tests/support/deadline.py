"""Waiting with a limit: a test that hangs must fail, and say at what."""

import time

PATIENCE = 30.0


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


def error_of(call):
    """The name of the class of what call() raises; None: nothing."""
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return None


def finish(agent, handle, timeout=PATIENCE):
    """Poll a posted transfer to its end, as stock's clients do."""
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
    """Poll until `count` notifications came; [(sender, message), ...]."""
    got = []

    def poll():
        for sender, messages in agent.get_new_notifs().items():
            got.extend((sender, message) for message in messages)
        return len(got) >= count

    until(poll, f"{count} notifications", timeout)
    return got
