"""What a new user does with an installed vllm_nixl.

    python scripts/first_steps.py

Looks at the features, runs the two programs of the quick start and the
examples that need nothing else, and compares what they print.  Prints one
line for each step; fails with the first step that fails.  Needs numpy.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import vllm_nixl

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 1200  # seconds; an emulated processor is slow
IMPORT = """
import resource, time
begin = time.perf_counter()
import vllm_nixl
took = (time.perf_counter() - begin) * 1e3
size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(f"{took:.1f} ms, {size:.0f} MB")
"""
SMALL = ("--layers", "8", "--blocks", "64", "--timeout", str(PATIENCE))
EXAMPLES = (
    ("kv_demo", *SMALL),
    ("kv_demo", *SMALL, "--shared"),
    ("test_side_channel_e2e.py",),
)


def python(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments], stdout=subprocess.PIPE, text=True
    )


def output(*arguments: str) -> str:
    """What a program prints that ends well."""
    with python(*arguments) as process:
        said, _ = process.communicate(timeout=PATIENCE)
    if process.returncode != 0:
        raise SystemExit(f"exit status {process.returncode}: {said}")
    return said


def expect(program: str, said: str, expected: str) -> None:
    if said != expected:
        raise SystemExit(f"{program} printed {said!r}, not {expected!r}")


def features() -> str:
    found = vllm_nixl.features
    missing = [name for name, is_built in found.items() if not is_built]
    if missing:
        raise SystemExit(f"the features {missing} are missing")
    return ", ".join(found)


def program(name: str) -> str:
    """A program of the quick start."""
    return (ROOT / "examples" / "quickstart" / f"{name}.py").read_text()


def quick_start() -> str:
    """Run both programs; returns the transport that moved the bytes."""
    code = program("decode")
    step = re.search(r"range\(0, 4096, (\d+)\)", code)
    look = "\nprint(agent.describe(peer)['path'])\n"
    with python("-c", program("prefill")) as prefill:
        assert step
        assert prefill.stdout
        try:
            expect("prefill.py", prefill.stdout.readline(), "serving\n")
            said = output("-c", code + look).splitlines()
            expect("decode.py", said[0], "all blocks are here")
            for first in range(0, 4096, int(step[1])):
                line = prefill.stdout.readline()
                expect("prefill.py", line, f"decode: {first} done\n")
        finally:
            prefill.kill()
    return f"by {said[1]}"


def steps() -> Iterable[tuple[str, str]]:
    libc, version = platform.libc_ver()
    yield (
        "system",
        f"Python {platform.python_version()}, {libc} {version}, "
        f"{platform.machine()}",
    )
    yield "import", min(output("-c", IMPORT).strip() for _ in range(3))
    yield "features", features()
    yield "quick start", quick_start()
    for name, *arguments in EXAMPLES:
        output(str(ROOT / "examples" / name), *arguments)
        yield "example", " ".join([name, *arguments])


def main() -> None:
    begin = time.monotonic()
    for step, result in steps():
        seconds = time.monotonic() - begin
        print(f"{step}: {result} ({seconds:.1f} s)", flush=True)
        begin = time.monotonic()


if __name__ == "__main__":
    main()
