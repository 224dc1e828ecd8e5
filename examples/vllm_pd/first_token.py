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
from client import generate, stream
from scenes import START_TIMEOUT, TIMEOUT, make_prompt
from servers import Server, running

LENGTHS = (128, 1024, 4000)
SIDES = ("ours", "stock")

MakeServer = Callable[[str, str], Server]
Say = Callable[[str], None]
Case = tuple[int, int]  # the length of a prompt, and a number
Cases = dict[Case, tuple[list[int], int]]  # a prompt and its first token


@dataclass
class Sample:
    length: int  # tokens of the prompt
    first_token: float  # seconds from the request until decode's first token
    handover: float  # the part of it after prefill has answered


@dataclass
class Round:
    """The samples of one turn of one side."""

    samples: list[Sample] = field(default_factory=list)
    idle_cores: float = 0.0  # CPU time of both servers without requests
    busy_cores: float = 0.0  # the same during the samples
    other_cores: float = 0.0  # CPU time of everything else during the samples
    transfer_seconds: float = 0.0  # mean of what NIXL reports to vLLM


class Side:
    """Prefill and decode with one implementation, paused between its turns."""

    def __init__(self, nixl: str, make: MakeServer, cases: Cases) -> None:
        self.nixl, self.cases = nixl, cases
        self.servers = [make("prefill", nixl), make("decode", nixl)]
        self.rounds: list[Round] = []

    def pause(self) -> None:
        for server in self.servers:
            server.pause()

    def resume(self) -> None:
        for server in self.servers:
            server.resume()
        for server in self.servers:
            server.wait_ready(time.monotonic() + TIMEOUT)

    def ask(self, case: Case) -> Sample:
        prefill, decode = self.servers
        prompt, expected = self.cases[case]
        answer = generate(prefill.port, decode.port, prompt, 1, TIMEOUT)
        if answer.tokens != [expected]:
            raise AssertionError(f"{case}: {answer.tokens}, not {expected}")
        first = answer.first_token_seconds
        return Sample(case[0], first, first - answer.prefill_seconds)

    def meet(self) -> None:
        """The first request, during which the two servers shake hands."""
        self.handshake = self.ask((LENGTHS[0], 0))
        for server in self.servers:
            server.check_library()

    def measure(self) -> Round:
        result = Round()
        self.rounds.append(result)
        self.ask((LENGTHS[0], 0))  # warms up
        cpu = Cpu(self.servers)
        time.sleep(3)
        result.idle_cores, _ = cpu.cores()
        cpu, before = Cpu(self.servers), self._transfers()
        result.samples = [self.ask(case) for case in self.cases]
        result.busy_cores, result.other_cores = cpu.cores()
        seconds, count = (
            new - old
            for new, old in zip(self._transfers(), before, strict=True)
        )
        result.transfer_seconds = seconds / count
        return result

    def _transfers(self) -> tuple[float, float]:
        decode, name = self.servers[1], "vllm:nixl_xfer_time_seconds"
        return decode.metric(name + "_sum"), decode.metric(name + "_count")


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
    """Measure ours, stock, ours, stock, ...; print a table."""
    single, cases = make("single", "ours"), Cases()
    sides = [Side(nixl, make, cases) for nixl in SIDES]
    pairs = [server for side in sides for server in side.servers]
    with running([single, *pairs], START_TIMEOUT):
        for side in sides:
            side.pause()
        cases.update(_answer(single, samples))
        single.stop()
        say(f"{len(cases)} prompts answered by a single instance")
        for number in range(rounds):
            for side in sides:
                side.resume()
                if number == 0:
                    side.meet()
                result = side.measure()
                side.pause()
                say(f"round {number + 1}, {side.nixl}: {_summary(result)}")
                if output:
                    output.write_text(_as_json(sides))
    print(table(*sides))


def _answer(single: Server, samples: int) -> Cases:
    cases = {}
    for number in range(samples):
        for length in LENGTHS:
            prompt = make_prompt(length, 100 + number)
            tokens = next(stream(single.port, prompt, 1, TIMEOUT))
            cases[length, number] = prompt, tokens[0]
    return cases


def _as_json(sides: list[Side]) -> str:
    return json.dumps(
        {
            side.nixl: {
                "handshake": asdict(side.handshake),
                "rounds": [asdict(r) for r in side.rounds],
            }
            for side in sides
            if side.rounds
        },
        indent=1,
    )


def _summary(result: Round) -> str:
    medians = ", ".join(
        f"{length}: {_ms(_values([result], length, 'first_token'))}"
        for length in LENGTHS
    )
    return (
        f"first token (ms) {medians}; transfers of"
        f" {result.transfer_seconds * 1e3:.2f} ms;"
        f" cores: {result.idle_cores:.2f} idle, {result.busy_cores:.2f} busy,"
        f" {result.other_cores:.2f} others"
    )


def _values(rounds: list[Round], length: int, name: str) -> list[float]:
    return [
        getattr(sample, name)
        for result in rounds
        for sample in result.samples
        if sample.length == length
    ]


def _ms(values: list[float]) -> str:
    return (
        f"{statistics.median(values) * 1e3:.1f}"
        f" ({min(values) * 1e3:.1f} to {max(values) * 1e3:.1f})"
    )


def table(ours: Side, stock: Side) -> str:
    """Medians over all rounds, with the smallest and the largest value."""
    lines = [
        "| ms | ours | stock | stock / ours |",
        "| --- | --- | --- | --- |",
    ]

    def row(title: str, mine: list[float], theirs: list[float]) -> None:
        ratio = statistics.median(theirs) / statistics.median(mine)
        lines.append(
            f"| {title} | {_ms(mine)} | {_ms(theirs)} | {ratio:.2f} |"
        )

    for title, name in (
        ("first token", "first_token"),
        ("from prefill's answer to the first token", "handover"),
    ):
        for length in LENGTHS:
            row(
                f"{title}, {length} tokens",
                _values(ours.rounds, length, name),
                _values(stock.rounds, length, name),
            )
    row(
        "first request, with the handshake",
        [ours.handshake.first_token],
        [stock.handshake.first_token],
    )
    return "\n".join(lines)
