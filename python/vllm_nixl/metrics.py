"""Metrics of the agents of this process for Prometheus.

    import prometheus_client
    import vllm_nixl.metrics

    prometheus_client.REGISTRY.register(vllm_nixl.metrics.Collector())

This needs prometheus_client: `pip install vllm_nixl[metrics]`.
docs/metrics.md lists the metrics.  A scrape reads agent.stats() and
agent.peers(); nothing else runs, and no thread is started.

Design note.  FAMILIES names every metric once.  The samples are added by name,
so a name that is not in the table is a KeyError, not a new metric.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

try:
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )
except ImportError:
    raise ImportError(
        "vllm_nixl.metrics needs prometheus_client: "
        "pip install 'vllm_nixl[metrics]'"
    ) from None

from ._core import nixlClosedError
from ._monitor import live_agents
from ._telemetry.values import ERRORS, Names
from ._telemetry.values import label as label_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ._agent import NixlAgent

    _Any = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily

__all__ = ["FAMILIES", "Collector"]


class _Family(NamedTuple):
    """A metric. Counters are named without "_total", as in OpenMetrics."""

    name: str
    type: str
    labels: tuple[str, ...]
    help: str


_AGENT = ("agent",)
_PEER = ("agent", "peer")

FAMILIES = tuple(
    _Family(*row)
    for row in (
        # Transfers that the agent started.
        (
            "vllm_nixl_transfers_posted",
            "counter",
            _AGENT,
            "Transfers that were posted.",
        ),
        (
            "vllm_nixl_transfers_done",
            "counter",
            (*_AGENT, "direction"),
            "Transfers that completed.",
        ),
        (
            "vllm_nixl_transfers_failed",
            "counter",
            (*_AGENT, "status"),
            "Transfers that failed, by the status of the error.",
        ),
        (
            "vllm_nixl_transfers_cancelled",
            "counter",
            _AGENT,
            "Transfers that were cancelled.",
        ),
        (
            "vllm_nixl_calls_refused",
            "counter",
            (*_AGENT, "status"),
            "Calls that should have prepared a list or a transfer and failed.",
        ),
        (
            "vllm_nixl_transfer_bytes",
            "counter",
            (*_AGENT, "direction"),
            "Bytes of the completed transfers.",
        ),
        (
            "vllm_nixl_descriptors",
            "counter",
            _AGENT,
            "Pairs of descriptors of the posted transfers.",
        ),
        (
            "vllm_nixl_pieces",
            "counter",
            _AGENT,
            "Pieces of the posted transfers after neighbours were merged.",
        ),
        (
            "vllm_nixl_transfer_seconds",
            "histogram",
            _AGENT,
            "Time of the completed transfers, from the post to the end.",
        ),
        (
            "vllm_nixl_post_seconds",
            "histogram",
            _AGENT,
            "Time that each post of a transfer took.",
        ),
        # Notifications.
        (
            "vllm_nixl_notifications_sent",
            "counter",
            _AGENT,
            "Notifications sent.",
        ),
        (
            "vllm_nixl_notifications_received",
            "counter",
            _AGENT,
            "Notifications received.",
        ),
        (
            "vllm_nixl_notifications_dropped",
            "counter",
            _AGENT,
            "Notifications dropped because the program did not take them.",
        ),
        (
            "vllm_nixl_notifications_pending",
            "gauge",
            _AGENT,
            "Notifications that the program has not taken yet.",
        ),
        (
            "vllm_nixl_notifications_pending_bytes",
            "gauge",
            _AGENT,
            "Bytes of the notifications that the program has not taken yet.",
        ),
        (
            "vllm_nixl_notification_wait_seconds",
            "histogram",
            _AGENT,
            "Time from the arrival of a notification until the program took "
            "it.",
        ),
        # Memory, lists and peers.
        (
            "vllm_nixl_regions",
            "gauge",
            _AGENT,
            "Registered regions.",
        ),
        (
            "vllm_nixl_region_bytes",
            "gauge",
            _AGENT,
            "Bytes of the registered regions.",
        ),
        (
            "vllm_nixl_registered_bytes",
            "counter",
            _AGENT,
            "Bytes that were registered.",
        ),
        (
            "vllm_nixl_deregistered_bytes",
            "counter",
            _AGENT,
            "Bytes that were deregistered.",
        ),
        (
            "vllm_nixl_prepared_lists",
            "gauge",
            _AGENT,
            "Prepared lists that are not released.",
        ),
        (
            "vllm_nixl_transfer_handles",
            "gauge",
            _AGENT,
            "Transfers that are not released.",
        ),
        (
            "vllm_nixl_peers",
            "gauge",
            (*_AGENT, "state"),
            "Loaded peers.",
        ),
        (
            "vllm_nixl_peers_lost",
            "counter",
            _AGENT,
            "Peers that died or whose connection broke.",
        ),
        # Each peer.
        (
            "vllm_nixl_peer_info",
            "gauge",
            (*_PEER, "state", "path"),
            "1: the state of the peer and the transport of its connection.",
        ),
        (
            "vllm_nixl_peer_transfers_done",
            "counter",
            (*_PEER, "direction"),
            "Completed transfers with the peer.",
        ),
        (
            "vllm_nixl_peer_transfers_failed",
            "counter",
            (*_PEER, "status"),
            "Failed transfers with the peer, by the status of the error.",
        ),
        (
            "vllm_nixl_peer_transfers_in_flight",
            "gauge",
            _PEER,
            "Transfers with the peer that are in flight.",
        ),
        (
            "vllm_nixl_peer_transfer_bytes",
            "counter",
            (*_PEER, "direction"),
            "Bytes of the completed transfers with the peer.",
        ),
        (
            "vllm_nixl_peer_descriptors",
            "counter",
            _PEER,
            "Pairs of descriptors of the transfers posted to the peer.",
        ),
        (
            "vllm_nixl_peer_pieces",
            "counter",
            _PEER,
            "Pieces of those transfers after neighbours were merged.",
        ),
        (
            "vllm_nixl_peer_transfer_seconds",
            "histogram",
            _PEER,
            "Time of the completed transfers with the peer.",
        ),
        (
            "vllm_nixl_peer_notifications_sent",
            "counter",
            _PEER,
            "Notifications sent to the peer.",
        ),
        (
            "vllm_nixl_peer_notifications_received",
            "counter",
            _PEER,
            "Notifications received from the peer.",
        ),
        # NIXL's metadata listener.
        (
            "vllm_nixl_listener_accepted",
            "counter",
            _AGENT,
            "Connections that the metadata listener accepted.",
        ),
        (
            "vllm_nixl_listener_open",
            "gauge",
            _AGENT,
            "Open connections of the metadata listener.",
        ),
        (
            "vllm_nixl_listener_closed",
            "counter",
            (*_AGENT, "reason"),
            "Connections that the metadata listener closed, by the reason.",
        ),
        (
            "vllm_nixl_listener_loads",
            "counter",
            (*_AGENT, "result"),
            "Metadata that arrived at the metadata listener.",
        ),
        (
            "vllm_nixl_listener_served",
            "counter",
            _AGENT,
            "Answers of the metadata listener with the agent's metadata.",
        ),
        (
            "vllm_nixl_listener_invalidated",
            "counter",
            _AGENT,
            "Peers that were removed at their own request.",
        ),
        (
            "vllm_nixl_listener_sends",
            "counter",
            (*_AGENT, "result"),
            "Commands to other metadata listeners.",
        ),
        (
            "vllm_nixl_listener_pending",
            "gauge",
            _AGENT,
            "Commands to other metadata listeners that wait.",
        ),
        # The agent's side channel, once it was started.
        (
            "vllm_nixl_side_channel_accepted",
            "counter",
            _AGENT,
            "Connections that the side channel accepted.",
        ),
        (
            "vllm_nixl_side_channel_open",
            "gauge",
            _AGENT,
            "Open connections of the side channel.",
        ),
        (
            "vllm_nixl_side_channel_served",
            "counter",
            _AGENT,
            "Requests that the side channel answered.",
        ),
        (
            "vllm_nixl_side_channel_refused",
            "counter",
            (*_AGENT, "reason"),
            "Requests that the side channel refused, by the reason.",
        ),
        (
            "vllm_nixl_side_channel_closed",
            "counter",
            (*_AGENT, "reason"),
            "Connections that the side channel closed, by the reason.",
        ),
        (
            "vllm_nixl_side_channel_received_bytes",
            "counter",
            _AGENT,
            "Bytes that the side channel received.",
        ),
        (
            "vllm_nixl_side_channel_sent_bytes",
            "counter",
            _AGENT,
            "Bytes that the side channel sent.",
        ),
    )
)

_TYPES: dict[str, type[_Any]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "histogram": HistogramMetricFamily,
}

# Element i of our histograms counts [2**i, 2**(i + 1)) us.  The last
# bucket with a bound is [33.6 s, 67.1 s): more bounds would only cost.
_BUCKETS = 26
_BOUNDS = [repr(2 ** (i + 1) / 1e6) for i in range(_BUCKETS)]

# The keys of stats() that become one sample of a metric without own labels.
_PLAIN = {
    "vllm_nixl_transfers_posted": "xfers_posted",
    "vllm_nixl_transfers_cancelled": "xfers_cancelled",
    "vllm_nixl_descriptors": "rows",
    "vllm_nixl_pieces": "pieces",
    "vllm_nixl_notifications_sent": "notifs_sent",
    "vllm_nixl_notifications_received": "notifs_received",
    "vllm_nixl_notifications_dropped": "notifs_dropped",
    "vllm_nixl_notifications_pending": "notifs_pending",
    "vllm_nixl_notifications_pending_bytes": "notif_bytes_pending",
    "vllm_nixl_regions": "regions",
    "vllm_nixl_region_bytes": "bytes_registered",
    "vllm_nixl_registered_bytes": "bytes_registered_total",
    "vllm_nixl_deregistered_bytes": "bytes_deregistered_total",
    "vllm_nixl_prepared_lists": "live_dlists",
    "vllm_nixl_transfer_handles": "live_xfers",
    "vllm_nixl_peers_lost": "peers_lost",
    "vllm_nixl_listener_accepted": "listener_accepted",
    "vllm_nixl_listener_open": "listener_open",
    "vllm_nixl_listener_served": "listener_served",
    "vllm_nixl_listener_invalidated": "listener_invalidated",
    "vllm_nixl_listener_pending": "listener_pending",
}
# The same for stats() of a side channel.
_SIDE_CHANNEL_PLAIN = {
    "vllm_nixl_side_channel_accepted": "accepted",
    "vllm_nixl_side_channel_open": "open",
    "vllm_nixl_side_channel_served": "served",
    "vllm_nixl_side_channel_received_bytes": "bytes_received",
    "vllm_nixl_side_channel_sent_bytes": "bytes_sent",
}
# The same for an entry of peers().
_PEER_PLAIN = {
    "vllm_nixl_peer_transfers_in_flight": "in_flight",
    "vllm_nixl_peer_descriptors": "rows",
    "vllm_nixl_peer_pieces": "pieces",
    "vllm_nixl_peer_notifications_sent": "notifs_sent",
    "vllm_nixl_peer_notifications_received": "notifs_received",
}
_STATES = ("connected", "connecting", "lost")


def _status(name: str) -> str:
    """Turn NIXL_ERR_REMOTE_DISCONNECT into remote_disconnect, NIXL's label."""
    for prefix in ("NIXL_ERR_", "VNX_ERR_"):
        name = name.removeprefix(prefix)
    return name.lower()


class _Families:
    """The families of one scrape, which the samples are added to."""

    def __init__(self) -> None:
        self._families: dict[str, Any] = {
            row.name: _TYPES[row.type](row.name, row.help, labels=row.labels)
            for row in FAMILIES
        }

    def __iter__(self) -> Iterator[_Any]:
        return iter(self._families.values())

    def add(self, name: str, labels: Sequence[str], value: float) -> None:
        self._families[name].add_metric(labels, value)

    def add_plain(
        self,
        keys: Mapping[str, str],
        labels: Sequence[str],
        values: Mapping[str, Any],
    ) -> None:
        for name, key in keys.items():
            self.add(name, labels, values[key])

    def add_times(
        self, name: str, labels: Sequence[str], log2: list[int], us: int
    ) -> None:
        buckets = []
        total = 0
        for bound, count in zip(_BOUNDS, log2, strict=False):
            total += count
            buckets.append((bound, total))
        buckets.append(("+Inf", sum(log2)))
        self._families[name].add_metric(labels, buckets, us / 1e6)

    def add_directions(
        self, name: str, labels: Sequence[str], read: int, written: int
    ) -> None:
        self.add(name, [*labels, "read"], read)
        self.add(name, [*labels, "write"], written)

    def add_agent(self, label: str, stats: Mapping[str, Any]) -> None:
        labels = [label]
        self.add_plain(_PLAIN, labels, stats)
        self.add_directions(
            "vllm_nixl_transfers_done",
            labels,
            stats["reads_done"],
            stats["writes_done"],
        )
        self.add_directions(
            "vllm_nixl_transfer_bytes",
            labels,
            stats["bytes_read"],
            stats["bytes_written"],
        )
        for name, key in (
            ("vllm_nixl_transfers_failed", "failures"),
            ("vllm_nixl_calls_refused", "refusals"),
        ):
            # A counter that appears with its first event has no increase.
            counts = dict.fromkeys(ERRORS.values(), 0)
            counts.update((_status(s), n) for s, n in stats[key].items())
            for status, count in counts.items():
                self.add(name, [label, status], count)
        for name, key in (
            ("vllm_nixl_transfer_seconds", "xfer_us"),
            ("vllm_nixl_post_seconds", "post_us"),
            ("vllm_nixl_notification_wait_seconds", "notif_wait_us"),
        ):
            self.add_times(
                name, labels, stats[f"{key}_log2"], stats[f"{key}_sum"]
            )
        for reason in ("refused", "timed_out", "evicted"):
            self.add(
                "vllm_nixl_listener_closed",
                [label, reason],
                stats[f"listener_{reason}"],
            )
        for name, done, failed in (
            ("loads", "loaded", "load_failures"),
            ("sends", "sent", "send_failures"),
        ):
            family = f"vllm_nixl_listener_{name}"
            self.add(family, [label, "done"], stats[f"listener_{done}"])
            self.add(family, [label, "failed"], stats[f"listener_{failed}"])

    def add_side_channel(self, label: str, stats: Mapping[str, Any]) -> None:
        self.add_plain(_SIDE_CHANNEL_PLAIN, [label], stats)
        for reason, count in stats["refusals"].items():
            self.add("vllm_nixl_side_channel_refused", [label, reason], count)
        for reason in ("timed_out", "evicted"):
            self.add(
                "vllm_nixl_side_channel_closed", [label, reason], stats[reason]
            )

    def add_states(
        self, label: str, peers: Mapping[str, Mapping[str, Any]]
    ) -> None:
        states = dict.fromkeys(_STATES, 0)
        for peer in peers.values():
            states[peer["state"]] += 1
        for state, count in states.items():
            self.add("vllm_nixl_peers", [label, state], count)

    def add_peer(self, label: str, name: str, peer: Mapping[str, Any]) -> None:
        labels = [label, label_text(name)]
        self.add_plain(_PEER_PLAIN, labels, peer)
        self.add(
            "vllm_nixl_peer_info", [*labels, peer["state"], peer["path"]], 1
        )
        self.add_directions(
            "vllm_nixl_peer_transfers_done",
            labels,
            peer["reads_done"],
            peer["writes_done"],
        )
        self.add_directions(
            "vllm_nixl_peer_transfer_bytes",
            labels,
            peer["bytes_read"],
            peer["bytes_written"],
        )
        for status, count in peer["failures"].items():
            self.add(
                "vllm_nixl_peer_transfers_failed",
                [*labels, _status(status)],
                count,
            )
        self.add_times(
            "vllm_nixl_peer_transfer_seconds",
            labels,
            peer["xfer_us_log2"],
            peer["xfer_us_sum"],
        )


class Collector:
    """A collector for a registry of prometheus_client.

        prometheus_client.REGISTRY.register(vllm_nixl.metrics.Collector())

    Args:
        agents: The agents to export; None: all of this process, including
            those that are created later.
        peers: Also export a set of metrics for each peer.

    The label `agent` is the agent's name. If a living agent has the same name,
    "#2" follows it, or the next number that is free. Agents that are closed
    are left out.
    """

    def __init__(
        self, agents: Iterable[NixlAgent] | None = None, peers: bool = True
    ) -> None:
        self._agents = None if agents is None else list(agents)
        self._peers = peers
        self._names = Names()

    def describe(self) -> Iterable[_Any]:
        """The metrics without samples: register() reads no agent."""
        return _Families()

    def collect(self) -> Iterable[_Any]:
        """The metrics with the present values."""
        families = _Families()
        agents = live_agents() if self._agents is None else self._agents
        for agent in agents:
            try:
                peers = agent.peers()
            except nixlClosedError:
                continue
            label = self._names.of(agent)
            families.add_agent(label, agent.stats())
            if agent._side_channel is not None:
                families.add_side_channel(label, agent._side_channel.stats())
            families.add_states(label, peers)
            if self._peers:
                for name, peer in peers.items():
                    families.add_peer(label, name, peer)
        return families
