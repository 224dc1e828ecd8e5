"""Random calls with random arguments from several threads: support.any_call.

Each round runs in its own process, so that a crash is a failure with a seed
and does not end the test run.  `--call-seconds` sets the total time,
`--call-seed` the first seed.
"""

import random
import subprocess
import sys

import pytest
from support.any_call import NOTE
from support.peer import child_environment

pytestmark = [pytest.mark.slow, pytest.mark.beyond_stock]

ROUND = 7.5  # seconds per process


def run_round(seed, seconds, notes):
    """Run one process; return the failure message if it failed."""
    notes.write_bytes(b" " * NOTE * 8)
    command = [sys.executable, "-m", "support.any_call"]
    done = subprocess.run(
        [*command, str(seed), str(seconds), str(notes)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=seconds * 4 + 180,
        env=child_environment(),
        check=False,
    )
    if done.returncode == 0:
        return None
    return (
        f"seed {seed}: exit status {done.returncode}\n{done.stdout[-6000:]}\n"
        f"last calls by thread:\n{notes.read_text().strip()}"
    )


def pytest_generate_tests(metafunc):
    """One test per seed, so that a test's time limit applies to one round."""
    if "seed" in metafunc.fixturenames:
        seconds = metafunc.config.getoption("--call-seconds")
        first = metafunc.config.getoption("--call-seed")
        if first is None:
            first = random.randrange(10**6)
        rounds = max(1, round(seconds / ROUND))
        metafunc.parametrize("seed", range(first, first + rounds))


def test_random_calls_do_no_harm(request, tmp_path, seed):
    seconds = request.config.getoption("--call-seconds")
    failure = run_round(seed, min(seconds, ROUND), tmp_path / "notes")
    assert failure is None, failure
