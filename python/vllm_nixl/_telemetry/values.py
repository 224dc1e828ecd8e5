"""NIXL's metrics: their names, and their values from agent.stats().

Design note.  NIXL numbers its telemetry events.  An event that counts
something becomes a counter, in some cases also a gauge with the value of the
last operation, and a histogram.  Its files are arrays that are indexed by the
number, so the numbers are part of the format.
"""

from __future__ import annotations

import fnmatch
import os
import threading
import weakref
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any

    from prometheus_client.core import Metric

    from .._agent import NixlAgent


class Event(NamedTuple):
    """A kind of event; `gauge` and `histogram` are metric names, or ""."""

    number: int
    name: str
    help: str
    value: Callable[[dict[str, Any]], int]
    gauge: str = ""
    gauge_help: str = ""
    last: str = ""  # the key of stats() that the gauge shows
    histogram: str = ""
    histogram_help: str = ""
    buckets: str = ""  # the key of stats() with the counts of the histogram


EVENTS = (
    Event(
        0,
        "agent_tx_bytes",
        "Bytes of the completed WRITE transfers",
        lambda stats: int(stats["bytes_written"]),
        "agent_tx_last_bytes",
        "Bytes of the last WRITE transfer",
        "last_bytes_written",
    ),
    Event(
        1,
        "agent_rx_bytes",
        "Bytes of the completed READ transfers",
        lambda stats: int(stats["bytes_read"]),
        "agent_rx_last_bytes",
        "Bytes of the last READ transfer",
        "last_bytes_read",
    ),
    Event(
        2,
        "agent_tx_requests_num",
        "Completed WRITE transfers",
        lambda stats: int(stats["writes_done"]),
    ),
    Event(
        3,
        "agent_rx_requests_num",
        "Completed READ transfers",
        lambda stats: int(stats["reads_done"]),
    ),
    Event(
        4,
        "agent_memory_registered",
        "Bytes that were registered",
        lambda stats: int(stats["bytes_registered_total"]),
        "agent_memory_registered_last_bytes",
        "Bytes of the last registration",
        "last_bytes_registered",
    ),
    Event(
        5,
        "agent_memory_deregistered",
        "Bytes that were deregistered",
        lambda stats: int(stats["bytes_deregistered_total"]),
        "agent_memory_deregistered_last_bytes",
        "Bytes of the last deregistration",
        "last_bytes_deregistered",
    ),
    Event(
        6,
        "agent_xfer_time",
        "Microseconds of the completed transfers, from the post to the end",
        lambda stats: int(stats["xfer_us_sum"]),
        "agent_xfer_time",
        "Microseconds of the last completed transfer",
        "last_xfer_us",
        "agent_xfer_time_us",
        "Completed transfers by their microseconds",
        "xfer_us_nixl",
    ),
    Event(
        7,
        "agent_xfer_post_time",
        "Microseconds that posting transfers took",
        lambda stats: int(stats["post_us_sum"]),
        "agent_xfer_post_time",
        "Microseconds that posting the last completed transfer took",
        "last_post_us",
        "agent_xfer_post_time_us",
        "Posts by their microseconds",
        "post_us_nixl",
    ),
    Event(
        20,
        "agent_telemetry_events_dropped",
        "0: counters lose nothing",
        lambda stats: 0,
    ),
)
# The `status` of agent_errors_total, by the number of the event.
ERRORS = {
    8: "not_posted",
    9: "invalid_param",
    10: "backend",
    11: "not_found",
    12: "mismatch",
    13: "not_allowed",
    14: "repost_active",
    15: "unknown",
    16: "not_supported",
    17: "remote_disconnect",
    18: "canceled",
    19: "no_telemetry",
}
ERRORS_HELP = (
    "Failed transfers, and memory that was not found when a transfer or a "
    "list was prepared, by status"
)
EVENT_COUNT = 21

# NIXL's default bounds of its histograms, in microseconds.  The library counts
# by these (src/core/times.h), so others cannot be chosen.
BOUNDS = (
    10,
    25,
    50,
    100,
    250,
    500,
    1000,
    2500,
    5000,
    10000,
    25000,
    50000,
    100000,
    250000,
    500000,
    1000000,
    5000000,
    10000000,
)


class Snapshot(NamedTuple):
    """The values of one agent: arrays indexed by the number of the event."""

    labels: dict[str, str]
    counters: Sequence[int]
    gauges: Sequence[int]
    bounds: Sequence[float]
    # Of the events with a histogram: a count for each bound and one for
    # what is above all of them, and the sum of what was observed.
    buckets: dict[int, Sequence[int]]
    sums: dict[int, int]


def errors(stats: dict[str, Any]) -> dict[int, int]:
    """The errors that NIXL counts, by the number of the event."""
    numbers = {name: number for number, name in ERRORS.items()}
    counts = dict.fromkeys(ERRORS, 0)
    for status, count in stats["failures"].items():
        name = status.removeprefix("NIXL_ERR_").lower()
        counts[numbers.get(name, numbers["unknown"])] += count
    counts[numbers["not_found"]] += stats["refusals"].get(
        "NIXL_ERR_NOT_FOUND", 0
    )
    return counts


class Filter:
    """NIXL_TELEMETRY_ENABLED_METRICS: globs of the names of events."""

    def __init__(self, globs: str) -> None:
        self._globs = [glob.strip() for glob in globs.split(",")]
        self._globs = [glob for glob in self._globs if glob]

    def _matches(self, name: str) -> bool:
        return not self._globs or any(
            fnmatch.fnmatchcase(name, glob) for glob in self._globs
        )

    def numbers(self) -> frozenset[int]:
        """The numbers of the events that are exported."""
        return frozenset(n for n, name in _names() if self._matches(name))

    def unknown(self) -> list[str]:
        """The globs that match no event."""
        names = [name for _, name in _names()]
        return [g for g in self._globs if not fnmatch.filter(names, g)]


def _names() -> list[tuple[int, str]]:
    return [
        *((event.number, event.name) for event in EVENTS),
        *((number, f"agent_err_{name}") for number, name in ERRORS.items()),
    ]


def read(
    agent: NixlAgent, labels: dict[str, str], enabled: frozenset[int]
) -> Snapshot:
    """Read the agent's values. Metrics that are not enabled stay 0."""
    stats = agent.stats()
    counters = [0] * EVENT_COUNT
    gauges = [0] * EVENT_COUNT
    buckets: dict[int, Sequence[int]] = {}
    sums = {}
    for event in EVENTS:
        number = event.number
        value = event.value(stats) if number in enabled else 0
        counters[number] = value
        if event.last and number in enabled:
            gauges[number] = int(stats[event.last])
        if event.histogram:
            sums[number] = value
            buckets[number] = (
                stats[event.buckets]
                if number in enabled
                else [0] * (len(BOUNDS) + 1)
            )
    for number, count in errors(stats).items():
        counters[number] = count if number in enabled else 0
    return Snapshot(labels, counters, gauges, BOUNDS, buckets, sums)


def _bound(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else repr(bound)


def _add_histogram(family: Metric, snapshot: Snapshot, number: int) -> None:
    total = 0
    bounds = [*map(_bound, snapshot.bounds), "+Inf"]
    for bound, count in zip(bounds, snapshot.buckets[number], strict=True):
        total += count
        family.add_sample(
            f"{family.name}_bucket", {**snapshot.labels, "le": bound}, total
        )
    family.add_sample(f"{family.name}_count", snapshot.labels, total)
    family.add_sample(
        f"{family.name}_sum", snapshot.labels, snapshot.sums[number]
    )


def families(snapshots: Iterable[Snapshot]) -> list[Metric]:
    """NIXL's metrics with the values of these agents."""
    from prometheus_client.core import Metric

    counters = []
    gauges = []
    histograms = []
    failed = Metric("agent_errors", ERRORS_HELP, "counter")
    snapshots = list(snapshots)
    for event in EVENTS:
        number = event.number
        counter = Metric(event.name, event.help, "counter")
        counters.append(counter)
        for each in snapshots:
            counter.add_sample(
                f"{event.name}_total", each.labels, each.counters[number]
            )
        if event.gauge:
            gauge = Metric(event.gauge, event.gauge_help, "gauge")
            gauges.append(gauge)
            for each in snapshots:
                gauge.add_sample(event.gauge, each.labels, each.gauges[number])
        if event.histogram:
            histogram = Metric(
                event.histogram, event.histogram_help, "histogram"
            )
            histograms.append(histogram)
            for each in snapshots:
                _add_histogram(histogram, each, number)
    for each in snapshots:
        for number, status in ERRORS.items():
            failed.add_sample(
                "agent_errors_total",
                {**each.labels, "status": status},
                each.counters[number],
            )
    return [*counters, failed, *gauges, *histograms]


def hostname() -> str:
    """The label `hostname`."""
    return os.uname().nodename


def label(text: str) -> str:
    """A name as the value of a label, which must be UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


class Names:
    """The names of agents as labels: each agent has its own, and keeps it.

    Of several living agents with one name, the first has the name, the next
    ones have "name#2", "name#3" and so on.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._names: weakref.WeakKeyDictionary[NixlAgent, str]
        self._names = weakref.WeakKeyDictionary()

    def of(self, agent: NixlAgent) -> str:
        """The label of an agent."""
        with self._lock:
            name = self._names.get(agent)
            if name is None:
                taken = {
                    name
                    for other, name in self._names.items()
                    if not other.closed
                }
                own = name = label(agent.name)
                number = 1
                while name in taken:
                    number += 1
                    name = f"{own}#{number}"
                self._names[agent] = name
            return name
