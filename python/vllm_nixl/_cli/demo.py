"""Two processes, prefill and decode, move a KV cache and check every byte.

Prefill fills a KV cache with the shape of vLLM's and serves its metadata over
the side channel.  Decode fetches the metadata, reads the scattered blocks of
several requests, sleeps until they have arrived, and checks every byte.

    vllm-nixl demo                                  both on this host
    vllm-nixl demo --role prefill                   on one host
    vllm-nixl demo --role decode --host THE_FIRST   on another
"""

from __future__ import annotations

import importlib.util
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .main import CommandError

if TYPE_CHECKING:
    import argparse

    from .output import Output

# examples/kv_demo, which the installation copies here.
FOLDER = Path(__file__).parent.parent / "_demo"


def _options() -> Any:
    """The demo's module with its command line.

    The demo is a program of its own, whose modules import each other by plain
    names; this one imports none of them.
    """
    file = FOLDER / "options.py"
    spec = importlib.util.spec_from_file_location("kv_demo_options", file)
    if not file.exists() or spec is None or spec.loader is None:
        raise CommandError(f"this installation has no demo: {FOLDER}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def add_arguments(parser: argparse.ArgumentParser) -> None:
    module = _options()
    module.add_arguments(parser)
    parser.set_defaults(check=lambda options: module.check(parser, options))


def run(options: argparse.Namespace, out: Output) -> int:
    options.check(options)
    if importlib.util.find_spec("numpy") is None:
        raise CommandError("the demo needs numpy: pip install numpy")
    before = sys.argv
    # It repeats its arguments to its processes.
    sys.argv = [str(FOLDER), *options.arguments]
    try:
        runpy.run_path(str(FOLDER), run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    finally:
        sys.argv = before
    return 0
