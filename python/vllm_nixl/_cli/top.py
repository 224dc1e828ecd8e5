"""Watch the agents of running processes.

A process shows its agents if VLLM_NIXL_MONITOR=1 was set when it made the
first one.  The columns of an agent, and of each of its peers:

  in, out       GB/s that the agent has read from, or written to, the peer.
                What the peer reads and writes by itself is in its own view
  transfers/s   transfers that have ended well
  in flight     transfers that have not ended
  P50 <, P99 <  bounds: half of the transfers, and 99 %, took less than this
  failures      failed transfers by status, since the agent was created
  notifs/s      notifications sent and received
"""

from __future__ import annotations

import io
import time
from argparse import ArgumentTypeError
from typing import TYPE_CHECKING, Any

from .. import _monitor_socket
from .._monitor_socket import MonitorError
from .main import OK, CommandError
from .output import Output

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

State = dict[str, Any]

COLUMNS = (
    "agent / peer",
    "state",
    "path",
    "in GB/s",
    "out GB/s",
    "transfers/s",
    "in flight",
    "P50 <",
    "P99 <",
    "notifs/s",
    "failures",
)
_GIB = 1 << 30
_COMMAND_MAX = 100  # characters of a command line, outside of JSON


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pid",
        nargs="?",
        type=int,
        metavar="PID",
        help="the process to watch; without it, all that can be watched",
    )
    parser.add_argument(
        "--interval",
        type=_seconds,
        default=2.0,
        metavar="SECONDS",
        help="how often to look (default: 2)",
    )
    parser.add_argument(
        "--once",
        action="store_true",
        help="look at one interval, then end; implied by --json",
    )


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.05 <= value <= 3600:
        raise ArgumentTypeError("must be from 0.05 to 3600")
    return value


def run(options: argparse.Namespace, out: Output) -> int:
    watch = _Watch(options.pid)
    watch.look()
    if not watch.now:
        raise CommandError(watch.why_nothing())
    try:
        if options.once or out.as_json:
            time.sleep(options.interval)
            watch.look()
            _show(watch, out)
            out.result(
                {
                    "processes": watch.views(),
                    "silent": watch.silent,
                    "ended": watch.ended,
                }
            )
        elif out.console is not None:
            _live(watch, options.interval, out)
        else:
            while watch.now:
                time.sleep(options.interval)
                watch.look()
                _show(watch, out)
    except KeyboardInterrupt:
        pass  # the usual end
    return OK


# -- Looking -----------------------------------------------------------------


class _Watch:
    """The last two states of each process."""

    def __init__(self, pid: int | None) -> None:
        self.pid = pid
        self.before: dict[int, State] = {}
        self.now: dict[int, State] = {}
        self.ended: list[int] = []
        self.silent: dict[int, str] = {}

    def look(self) -> None:
        found = {}
        for path in reversed(_monitor_socket.folders()):
            found.update(_monitor_socket.sockets(path))
        self.before, self.now, self.silent = self.now, {}, {}
        for pid, file in sorted(found.items()):
            if self.pid is None or self.pid == pid:
                self._ask(pid, file)
        known = self.before.keys() - self.now.keys()
        self.ended = sorted(pid for pid in known if not _is_running(pid))
        for pid in known.difference(self.ended, self.silent):
            self.silent[pid] = "its socket is gone"

    def _ask(self, pid: int, file: str) -> None:
        try:
            self.now[pid] = _monitor_socket.ask(file)
        except (MonitorError, OSError) as error:
            if _is_running(pid):
                self.silent[pid] = str(error)

    def views(self) -> list[State]:
        return [
            view(self.before.get(pid), state)
            for pid, state in self.now.items()
        ]

    def why_nothing(self) -> str:
        where = ", ".join(_monitor_socket.folders())
        how = (
            "start it with VLLM_NIXL_MONITOR=1 in its environment; it shows "
            "its agents when it makes the first one"
        )
        for pid, why in self.silent.items():
            return f"process {pid} does not answer: {why}"
        if self.pid is None:
            return f"no process can be watched (sockets in {where}); {how}"
        if not _is_running(self.pid):
            return f"there is no process {self.pid}"
        return (
            f"process {self.pid} has no socket in {where}, or it belongs to "
            f"another user; {how}"
        )


def _is_running(pid: int) -> bool:
    try:
        with open(
            f"/proc/{pid}/stat", encoding="utf-8", errors="replace"
        ) as f:
            return f.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


# -- From states to rates ----------------------------------------------------


def view(before: State | None, now: State) -> State:
    """What changed between two states of a process."""
    seconds = 0.0 if before is None else now["time"] - before["time"]
    earlier = {} if before is None else dict(_numbered(before["agents"]))
    agents = [
        _agent_view(earlier.get(key), agent, seconds)
        for key, agent in _numbered(now["agents"])
    ]
    cpu = None if before is None else now["cpu_s"] - before["cpu_s"]
    moved = sum(a["in_bytes"] + a["out_bytes"] for a in agents) / _GIB
    return {
        "pid": now["pid"],
        "command": _clean(" ".join(now["command"].split())),
        "seconds": seconds,
        "cpu_cores": None if not seconds or cpu is None else cpu / seconds,
        "cpu_s_per_gib": None if not moved or cpu is None else cpu / moved,
        "threads": _thread_rates(before, now, seconds),
        "agents": agents,
    }


def _numbered(agents: list[State]) -> Iterator[tuple[tuple[str, int], State]]:
    """Agents by name, which need not be unique."""
    counts: dict[str, int] = {}
    for agent in agents:
        name = agent["name"]
        counts[name] = counts.get(name, 0) + 1
        yield (name, counts[name]), agent


def _thread_rates(
    before: State | None, now: State, seconds: float
) -> dict[str, float]:
    """Cores that the library's threads used, by name."""
    if before is None or seconds <= 0:
        return {}
    rates = {}
    for name, entry in now["threads"].items():
        earlier = before["threads"].get(name, {"cpu_s": 0.0})
        used = max(0.0, entry["cpu_s"] - earlier["cpu_s"])
        rates[_clean(name)] = used / seconds
    return rates


def _agent_view(before: State | None, now: State, seconds: float) -> State:
    stats = now["stats"]
    found = _flow(None if before is None else before["stats"], stats, seconds)
    peers = []
    for name, peer in now["peers"].items():
        earlier = None
        if before is not None:
            earlier = before["peers"].get(name, {})
            if earlier.get("generation") != peer["generation"]:
                earlier = {}  # it is new, and has counted from 0
        peers.append(
            {
                "name": _clean(name),
                "state": peer["state"],
                "cause": _clean(peer.get("cause") or ""),
                "path": _clean(peer["path"]),
                "in_flight": peer["in_flight"],
                **_flow(earlier, peer, seconds),
            }
        )
    peers.sort(key=lambda p: (-p["in_bytes"] - p["out_bytes"], p["name"]))
    return {
        "name": _clean(now["name"]),
        "engine": now["describe"].get("engine"),
        "backends": now["describe"].get("backends", []),
        "in_flight": sum(peer["in_flight"] for peer in peers),
        "peers_lost": stats["peers_lost"],
        **found,
        "peers": peers,
    }


def _flow(before: State | None, now: State, seconds: float) -> State:
    """Rates of the counters that agents and peers share.

    before: the earlier state; None without one; {} if the counters have
        restarted at 0
    """

    def change(key: str) -> int:
        if before is None:
            return 0
        return max(0, int(now[key]) - int(before.get(key, 0)))

    def rate(amount: float) -> float | None:
        return None if before is None or seconds <= 0 else amount / seconds

    earlier = (before or {}).get("xfer_us_log2", [])
    times = [
        max(0, count - (earlier[i] if i < len(earlier) else 0))
        for i, count in enumerate(now["xfer_us_log2"])
    ]
    if before is None:
        times = [0] * len(times)
    read, written = change("bytes_read"), change("bytes_written")
    return {
        "in_bytes": read,
        "out_bytes": written,
        "in_gb_s": rate(read / 1e9),
        "out_gb_s": rate(written / 1e9),
        "transfers_s": rate(change("reads_done") + change("writes_done")),
        "notifs_s": rate(change("notifs_sent") + change("notifs_received")),
        "p50_us_below": percentile(times, 0.50),
        "p99_us_below": percentile(times, 0.99),
        "failures": dict(now["failures"]),
        "new_failures": sum(now["failures"].values())
        - sum(
            (now if before is None else before).get("failures", {}).values()
        ),
    }


def percentile(times: list[int], share: float) -> int | None:
    """The upper end, in us, of the class in which the percentile is, of
    classes [2^i, 2^(i+1)); None: there were no transfers."""
    needed = share * sum(times)
    seen = 0
    for i, count in enumerate(times):
        seen += count
        if seen > 0 and seen >= needed:
            return int(2 ** (i + 1))
    return None


# -- Showing -----------------------------------------------------------------


def _show(watch: _Watch, out: Output) -> None:
    for process in watch.views():
        _show_process(process, out)
    for pid, why in watch.silent.items():
        out.line(f"process {pid} does not answer: {why}", "warning")
    for pid in watch.ended:
        out.line(f"process {pid} has ended", "warning")


def _show_process(process: State, out: Output) -> None:
    command = process["command"]
    if len(command) > _COMMAND_MAX:
        command = command[: _COMMAND_MAX - 3] + "..."
    out.heading(f"process {process['pid']}: {command}")
    if process["cpu_cores"] is not None:
        parts = [f"CPU {process['cpu_cores']:.2f} cores"]
        if process["cpu_s_per_gib"] is not None:
            parts.append(f"{process['cpu_s_per_gib']:.3f} s/GiB")
        parts += [
            f"{name} {cores:.2f}"
            for name, cores in process["threads"].items()
            if cores >= 0.005
        ]
        out.line(", ".join(parts), "dim")
    rows: list[list[str]] = []
    styles: list[str | None] = []
    for agent in process["agents"]:
        rows.append(_row(agent, agent["name"], agent["engine"] or "-", ""))
        styles.append("bad" if agent["new_failures"] > 0 else "heading")
        for peer in agent["peers"]:
            rows.append(
                _row(peer, "  " + peer["name"], peer["state"], peer["path"])
            )
            styles.append(_style(peer))
    if not rows:
        out.line("it has no agent now")
        return
    out.table(COLUMNS, rows, styles)
    for agent in process["agents"]:
        for peer in agent["peers"]:
            if peer["state"] == "lost":
                out.line(f"{agent['name']}: {peer['name']}: {peer['cause']}")


def _style(peer: State) -> str | None:
    if peer["new_failures"] > 0:
        return "bad"
    return "warning" if peer["state"] == "lost" else None


def _row(entry: State, name: str, state: str, path: str) -> list[str]:
    return [
        name,
        state,
        path,
        _number(entry["in_gb_s"], ".2f"),
        _number(entry["out_gb_s"], ".2f"),
        _number(entry["transfers_s"], ",.0f"),
        str(entry["in_flight"]),
        _time(entry["p50_us_below"]),
        _time(entry["p99_us_below"]),
        _number(entry["notifs_s"], ",.0f"),
        ", ".join(
            f"{count} {_clean(status).removeprefix('NIXL_ERR_')}"
            for status, count in entry["failures"].items()
            if count > 0
        )
        or "-",
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _time(us: int | None) -> str:
    if us is None:
        return "-"
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if us >= size:
            return f"{us / size:.3g} {unit}"
    return f"{us} us"


def _clean(text: str) -> str:
    """Names come from other processes, whose text must not reach the terminal
    as commands."""
    return "".join(char if char.isprintable() else "?" for char in str(text))


def _live(watch: _Watch, interval: float, out: Output) -> None:
    from rich.live import Live
    from rich.text import Text

    assert out.console is not None
    with Live(console=out.console, auto_refresh=False) as live:
        while True:
            live.update(Text.from_ansi(_page(watch, out)), refresh=True)
            if not watch.now:
                return
            time.sleep(interval)
            watch.look()


def _page(watch: _Watch, out: Output) -> str:
    """The text that _show() writes, for this terminal."""
    from rich.console import Console

    assert out.console is not None
    text = io.StringIO()
    page = Output(False, text)
    page.console = Console(
        file=text,
        force_terminal=True,
        width=out.console.width,
        no_color=out.console.no_color,
        highlight=False,
    )
    _show(watch, page)
    return text.getvalue()
