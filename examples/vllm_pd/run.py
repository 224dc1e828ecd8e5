"""Prefill and decode in two vLLM servers; NIXL moves the KV cache.

    python examples/vllm_pd/run.py [--nixl {ours,stock}] [--compare ROUNDS] ...

vLLM runs on the CPU with a small random model.  Without --compare, the answers
of the two servers are compared with those of a single one, then each of the
two is killed in the middle of requests and started again.  With --compare, the
time to the first token is measured for vllm_nixl and for stock NIXL in turns.
README.md in this folder says what must be installed.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from pathlib import Path

import first_token
from model import write_model
from scenes import (
    COUNT,
    PROMPTS,
    START_TIMEOUT,
    Pair,
    decode_killed,
    equal_tokens,
    prefill_killed,
    reference,
)
from servers import Server, running

LONGEST = max(map(len, PROMPTS)) + COUNT
SCENES = (equal_tokens, decode_killed, prefill_killed)
BEGIN = time.monotonic()


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--nixl", choices=("ours", "stock"), default="ours", help="(ours)"
    )
    parser.add_argument(
        "--compare", type=int, metavar="ROUNDS", help="measure both in turns"
    )
    parser.add_argument(
        "--samples", type=int, default=2, help="of each round and length (2)"
    )
    parser.add_argument("--json", type=Path, help="write all samples there")
    parser.add_argument(
        "--logs", type=Path, help="keep the servers' logs in this folder"
    )
    return parser.parse_args()


def say(text: str) -> None:
    print(f"[{time.monotonic() - BEGIN:5.0f} s] {text}", flush=True)


def main() -> None:
    options = parse()
    # So that the servers end with this program.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="vllm_pd-") as temporary:
        folder = Path(temporary)
        logs = options.logs or folder
        logs.mkdir(parents=True, exist_ok=True)
        write_model(folder / "model", LONGEST)

        def server(role: str, nixl: str) -> Server:
            return Server(role, nixl, folder / "model", LONGEST, logs)

        if options.compare:
            first_token.compare(
                server, options.compare, options.samples, say, options.json
            )
            return
        single = server("single", options.nixl)
        with running([single], START_TIMEOUT):
            say("a single instance is ready")
            expected = reference(single)
        say(f"{len(PROMPTS)} prompts answered by a single instance")
        pair = Pair(
            server("prefill", options.nixl),
            server("decode", options.nixl),
            expected,
            say,
        )
        with running([pair.prefill, pair.decode], START_TIMEOUT):
            say(f"prefill and decode are ready, with {options.nixl} NIXL")
            for scene in SCENES:
                scene(pair)
        say("passed")


if __name__ == "__main__":
    main()
