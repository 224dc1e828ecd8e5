"""What a check of `vllm-nixl doctor` returns, how it is shown, and the
machine that it looks at."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ..output import Output

# Each with its style (output.py).
LEVELS = {"ok": "good", "warning": "warning", "bad": "bad"}


class Finding(NamedTuple):
    """One fact.

    `level` is "ok", "warning" (works, but not as well as it could) or "bad"
    (something will not work).  The last two have a cause, and a command or a
    setting that changes it.
    """

    check: str
    level: str
    seen: str
    cause: str = ""
    change: str = ""


def ok(check: str, seen: str) -> Finding:
    return Finding(check, "ok", seen)


def warning(check: str, seen: str, cause: str, change: str) -> Finding:
    return Finding(check, "warning", seen, cause, change)


def bad(check: str, seen: str, cause: str, change: str) -> Finding:
    return Finding(check, "bad", seen, cause, change)


def status(found: Iterable[Finding]) -> int:
    """The exit status: 1 if something is bad."""
    return int(any(finding.level == "bad" for finding in found))


def as_json(found: Iterable[Finding]) -> list[dict[str, Any]]:
    return [finding._asdict() for finding in found]


def show(found: Iterable[Finding], out: Output) -> None:
    """Write findings; cause and change below those that are not ok."""
    for finding in found:
        out.fields(
            [(f"{finding.level:8}{finding.check:18}", finding.seen)],
            indent=2,
            style=LEVELS[finding.level],
        )
        if finding.level != "ok":
            out.fields(
                [("cause", finding.cause), ("change", finding.change)],
                indent=10,
            )


class Machine:
    """Where the checks look; tests give folders of their own."""

    def __init__(
        self,
        proc: str | Path = "/proc",
        sysfs: str | Path = "/sys",
        dev: str | Path = "/dev",
        environ: Mapping[str, str] = os.environ,
        path: Sequence[str] | None = None,
    ) -> None:
        self.proc, self.sys, self.dev = Path(proc), Path(sysfs), Path(dev)
        self.shm = self.dev / "shm"
        self.environ = environ
        self.path = list(sys.path if path is None else path)

    def read(self, file: Path) -> str | None:
        """The stripped text of a file; None if it cannot be read."""
        try:
            return file.read_text(errors="replace").strip()
        except OSError:
            return None

    def names(self, folder: Path) -> list[str]:
        """The names in a folder, sorted; none if it cannot be read."""
        try:
            return sorted(os.listdir(folder))
        except OSError:
            return []

    def rdma_devices(self) -> list[str]:
        return self.names(self.sys / "class/infiniband")

    def interfaces(self) -> list[str]:
        """The network devices of this process's namespace.

        /sys may be that of another one.
        """
        names = self.names(self.sys / "class/net")
        table = self.read(self.proc / "self/net/dev")
        if table is None:
            return names
        lines = table.splitlines()[2:]
        return sorted(line.partition(":")[0].strip() for line in lines)

    def net_devices(self) -> list[str]:
        """Network devices that are not switched off, without loopback."""
        found = []
        for name in self.interfaces():
            state = self.read(self.sys / "class/net" / name / "operstate")
            if name != "lo" and state in ("up", "unknown"):
                found.append(name)
        return found

    def status(self, key: str) -> str:
        """A field of /proc/self/status; "" if it is missing."""
        for line in (self.read(self.proc / "self/status") or "").splitlines():
            name, _, value = line.partition(":")
            if name == key:
                return value.strip()
        return ""
