"""What must hold with vLLM's NixlConnector: equal tokens, also after kills."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from client import RequestError, prefill, stream
from model import KV_BYTES_PER_TOKEN, VOCABULARY
from servers import KV_LEASE, Server

# Shorter and longer than one block of 128 tokens, and many blocks.
LENGTHS = (9, 127, 128, 129, 1000, 4000)
COUNT = 64  # tokens of an answer
TIMEOUT = 300.0  # seconds for one request
START_TIMEOUT = 1800.0  # seconds for servers to start on a busy machine

Say = Callable[[str], None]


def make_prompt(length: int, seed: int) -> list[int]:
    """Random tokens that end in the same ones for all prompts of a length.

    Decode computes the last token itself.  Answers can only differ if it has
    the KV cache of the tokens before.
    """
    start = random.Random(f"{length} {seed}")
    end = random.Random(length)
    same = length // 2
    tokens = [start.randrange(2, VOCABULARY) for _ in range(length - same)]
    return tokens + [end.randrange(2, VOCABULARY) for _ in range(same)]


PROMPTS = [make_prompt(n, seed) for n in LENGTHS for seed in (1, 2)]


def reference(single: Server) -> list[list[int]]:
    """The answers of one instance that computes everything itself."""
    answers = [
        [
            token
            for new in stream(single.port, prompt, COUNT, TIMEOUT)
            for token in new
        ]
        for prompt in PROMPTS
    ]
    if len({tuple(answer) for answer in answers}) != len(answers):
        raise AssertionError("answers to different prompts are equal")
    return answers


@dataclass
class Pair:
    """A prefill and a decode instance, and what they must answer."""

    prefill: Server
    decode: Server
    expected: list[list[int]]  # the answer to each prompt
    say: Say

    def ask(
        self,
        number: int,
        handed: threading.Event | None = None,
        begun: threading.Event | None = None,
    ) -> None:
        """Raise if a token of the answer to this prompt is wrong.

        Set `handed` when prefill has answered and `begun` at the first token.
        """
        prompt, expected = PROMPTS[number], self.expected[number]
        where = prefill(self.prefill.port, prompt, TIMEOUT)
        if handed is not None:
            handed.set()
        tokens: list[int] = []
        for new in stream(self.decode.port, prompt, COUNT, TIMEOUT, where):
            if begun is not None:
                begun.set()
            tokens += new
            if tokens != expected[: len(tokens)]:
                raise AssertionError(
                    f"prompt {number} of {len(prompt)} tokens: {tokens}"
                    f" instead of {expected}"
                )

    def ask_all(self) -> None:
        """Each prompt alone, then all at once."""
        numbers = range(len(PROMPTS))
        for number in numbers:
            self.ask(number)
        with ThreadPoolExecutor(len(PROMPTS)) as pool:
            list(pool.map(self.ask, numbers))


def equal_tokens(pair: Pair) -> None:
    """The pair answers as one instance does, and the KV cache was moved."""
    for server in (pair.prefill, pair.decode):
        server.check_library()
    pair.ask_all()
    decode = pair.decode
    moved = decode.metric("vllm:nixl_bytes_transferred_sum")
    count = decode.metric("vllm:nixl_bytes_transferred_count")
    failed = decode.metric("vllm:nixl_num_failed_transfers_total")
    least = 2 * sum(len(p) - 1 for p in PROMPTS) * KV_BYTES_PER_TOKEN
    if moved < least or count != 2 * len(PROMPTS) or failed:
        raise AssertionError(
            f"{count:.0f} transfers moved {moved:.0f} bytes, not {least};"
            f" {failed:.0f} failed"
        )
    pair.say(
        f"{2 * len(PROMPTS)} requests, {count:.0f} transfers,"
        f" {moved / 2**20:.0f} MiB of KV cache; all tokens equal those of"
        " a single instance"
    )


def decode_killed(pair: Pair) -> None:
    """SIGKILL to decode while it answers, then a new one in its place."""
    outcome = _kill_during_requests(pair, pair.decode, "begun")
    pair.say(f"decode killed: {outcome}")
    pair.prefill.check_alive()
    _restart(pair.decode)
    pair.decode.check_library()
    pair.ask_all()
    pair.say("decode restarted: all tokens equal again")
    _wait_until_free(pair)


def prefill_killed(pair: Pair) -> None:
    """SIGKILL to prefill while it serves, then a new one in its place."""
    lost = prefill(pair.prefill.port, PROMPTS[-1], TIMEOUT)
    outcome = _kill_during_requests(pair, pair.prefill, "handed")
    pair.say(f"prefill killed: {outcome}")
    seconds = _must_fail(pair, lost)
    pair.say(f"a request whose KV cache died fails after {seconds:.2f} s")
    _restart(pair.prefill)
    pair.prefill.check_library()
    pair.ask_all()
    pair.say("prefill restarted: all tokens equal again")
    seconds = _must_fail(pair, lost)
    pair.say(f"the old KV cache is refused after {seconds:.2f} s")


def _kill_during_requests(pair: Pair, victim: Server, stage: str) -> str:
    """Kill a server when the first of many requests has reached a stage.

    A request may succeed or fail; a wrong token or a hang is an error.
    """
    reached = threading.Event()
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        requests = [
            pool.submit(pair.ask, number, **{stage: reached})
            for number in range(len(PROMPTS))
        ]
        if not reached.wait(TIMEOUT):
            raise TimeoutError("no request has come far enough")
        victim.kill()
        killed = time.monotonic()
        errors = [future.exception() for future in requests]
    seconds = time.monotonic() - killed
    for error in errors:
        if error is not None and not isinstance(error, RequestError):
            raise error
    failed = sum(error is not None for error in errors)
    if not failed:
        raise AssertionError("every request had ended before the kill")
    return (
        f"{len(errors) - failed} requests succeeded and {failed} failed"
        f" within {seconds:.2f} s, none with a wrong token"
    )


def _must_fail(pair: Pair, where: dict[str, object]) -> float:
    """Send decode to a KV cache that is gone; return the seconds it took."""
    begin = time.monotonic()
    try:
        tokens = list(
            stream(pair.decode.port, PROMPTS[-1], COUNT, TIMEOUT, where)
        )
    except RequestError:
        return time.monotonic() - begin
    raise AssertionError(f"decode answered without a KV cache: {tokens}")


def _restart(server: Server) -> None:
    server.start()
    server.wait_ready(time.monotonic() + START_TIMEOUT)


def _wait_until_free(pair: Pair) -> None:
    """Prefill frees the blocks that the killed decode never read."""
    end = time.monotonic() + KV_LEASE + TIMEOUT
    while pair.prefill.metric("vllm:kv_cache_usage_perc") > 0:
        if time.monotonic() > end:
            raise TimeoutError("prefill still holds blocks")
        time.sleep(0.5)
        # vLLM looks at leases while it computes.
        list(stream(pair.prefill.port, PROMPTS[0], 1, TIMEOUT))
    expired = pair.prefill.metric("vllm:nixl_num_kv_expired_reqs_total")
    pair.say(f"prefill freed all blocks; {expired:.0f} leases expired")
