"""Programs run in a fresh interpreter, as a user's script would be."""

import subprocess
import sys
import textwrap

from support.peer import child_environment


def run_program(source, *flags, env=None, timeout=120, module="vllm_nixl"):
    """Run `source`; returns its output, fails unless it exits with 0.

    `MODULE` is the module under test.
    """
    text = f"MODULE = {module!r}\n" + textwrap.dedent(source)
    done = subprocess.run(
        [sys.executable, *flags, "-c", text],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=child_environment(env),
        check=False,
    )
    assert done.returncode == 0, (
        f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    )
    return done
