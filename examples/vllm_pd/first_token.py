"""The time to the first token with vllm_nixl and with stock NIXL, in turns."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from client import Answer, generate, stream
from scenes import START_TIMEOUT, TIMEOUT, make_prompt
from servers import Server, running

LENGTHS = (128, 1024, 4000)
SIDES = ("ours", "stock")

MakeServer = Callable[[str, str], Server]
Say = Callable[[str], None]


@dataclass
class Sample:
    length: int  # tokens of the prompt
    first_token: float  # seconds from the request until decode's first token
    handover: float  # the part of it after prefill has answered


@dataclass
class Round:
    """One pair of servers, from its start to its end."""

    nixl: str
    handshake: Sample  # the first request, during which the two meet
    samples: list[Sample] = field(default_factory=list)
    idle_cores: float = 0.0  # CPU time of both servers without requests
    busy_cores: float = 0.0  # the same during the samples
    other_cores: float = 0.0  # CPU time of everything else during the samples
    transfer_seconds: float = 0.0  # mean of what NIXL reports to vLLM
    transfers: int = 0


class Cpu:
    """CPU time of the servers and of all other processes, since the start."""

    def __init__(self, servers: list[Server]) -> None:
        self.processes = [p for s in servers for p in s.processes()]
        self.begin = self._now()

    def _now(self) -> tuple[float, float, float]:
        own = sum(sum(p.cpu_times()[:2]) for p in self.processes)
        own += sum(os.times()[:2])
        every = psutil.cpu_times()
        idle = every.idle + getattr(every, "iowait", 0.0)
        return time.monotonic(), own, sum(every[:8]) - idle

    def cores(self) -> tuple[float, float]:
        """Cores used by the servers and this program, and by all others."""
        seconds, own, busy = (
            now - begin
            for now, begin in zip(self._now(), self.begin, strict=True)
        )
        return own / seconds, max(0.0, busy - own) / seconds


def compare(
    make: MakeServer, rounds: int, samples: int, say: Say, output: Path | None
) -> None:
    """Run ours, stock, ours, stock, ...; print a table."""
    prompts = {
        (length, number): make_prompt(length, 100 + number)
        for length in LENGTHS
        for number in range(samples + 1)
    }
    expected = _reference(make("single", "ours"), prompts)
    say(f"{len(prompts)} prompts answered by a single instance")
    results = []
    for number in range(rounds):
        for nixl in SIDES:
            result = _round(make, nixl, prompts, expected, samples)
            results.append(result)
            say(f"round {number + 1}, {nixl}: {_summary(result)}")
            if output:
                text = json.dumps([asdict(r) for r in results], indent=1)
                output.write_text(text)
    print(table(results))


Prompts = dict[tuple[int, int], list[int]]


def _reference(single: Server, prompts: Prompts) -> dict[tuple[int, int], int]:
    with running([single], START_TIMEOUT):
        return {
            key: next(stream(single.port, prompt, 1, TIMEOUT))[0]
            for key, prompt in prompts.items()
        }


def _round(
    make: MakeServer,
    nixl: str,
    prompts: Prompts,
    expected: dict[tuple[int, int], int],
    samples: int,
) -> Round:
    prefill, decode = pair = [make("prefill", nixl), make("decode", nixl)]

    def ask(length: int, number: int) -> Sample:
        key = length, number
        answer = generate(prefill.port, decode.port, prompts[key], 1, TIMEOUT)
        if answer.tokens != [expected[key]]:
            raise AssertionError(
                f"{key}: {answer.tokens}, not {expected[key]}"
            )
        return _sample(length, answer)

    with running(pair, START_TIMEOUT):
        result = Round(nixl, ask(LENGTHS[0], samples))
        for server in pair:
            server.check_library()
        for length in LENGTHS[1:]:
            ask(length, samples)  # warms up
        cpu = Cpu(pair)
        time.sleep(5)
        result.idle_cores, _ = cpu.cores()
        cpu = Cpu(pair)
        for number in range(samples):
            result.samples += [ask(length, number) for length in LENGTHS]
        result.busy_cores, result.other_cores = cpu.cores()
        name = "vllm:nixl_xfer_time_seconds"
        result.transfers = int(decode.metric(name + "_count"))
        total = decode.metric(name + "_sum")
        result.transfer_seconds = total / max(1, result.transfers)
    return result


def _sample(length: int, answer: Answer) -> Sample:
    first = answer.first_token_seconds
    return Sample(length, first, first - answer.prefill_seconds)


def _summary(result: Round) -> str:
    medians = ", ".join(
        f"{length}: {_ms(_values([result], length, 'first_token'))}"
        for length in LENGTHS
    )
    return (
        f"first token (ms) {medians}; handshake"
        f" {result.handshake.first_token * 1e3:.0f} ms;"
        f" {result.transfers} transfers of"
        f" {result.transfer_seconds * 1e3:.2f} ms;"
        f" cores: {result.idle_cores:.2f} idle, {result.busy_cores:.2f} busy,"
        f" {result.other_cores:.2f} others"
    )


def _values(results: list[Round], length: int, name: str) -> list[float]:
    return [
        getattr(sample, name)
        for result in results
        for sample in result.samples
        if sample.length == length
    ]


def _ms(values: list[float]) -> str:
    return (
        f"{statistics.median(values) * 1e3:.1f}"
        f" ({min(values) * 1e3:.1f} to {max(values) * 1e3:.1f})"
    )


def table(results: list[Round]) -> str:
    """Medians over all rounds, with the smallest and the largest value."""
    sides = {s: [r for r in results if r.nixl == s] for s in SIDES}
    lines = [
        "| ms | ours | stock | stock / ours |",
        "| --- | --- | --- | --- |",
    ]
    for title, name in (
        ("first token", "first_token"),
        ("from prefill's answer to the first token", "handover"),
    ):
        for length in LENGTHS:
            ours, stock = (_values(sides[s], length, name) for s in SIDES)
            ratio = statistics.median(stock) / statistics.median(ours)
            lines.append(
                f"| {title}, {length} tokens | {_ms(ours)} | {_ms(stock)}"
                f" | {ratio:.2f} |"
            )
    first = [[r.handshake.first_token for r in sides[s]] for s in SIDES]
    ratio = statistics.median(first[1]) / statistics.median(first[0])
    lines.append(
        f"| first request, with the handshake | {_ms(first[0])}"
        f" | {_ms(first[1])} | {ratio:.2f} |"
    )
    return "\n".join(lines)
