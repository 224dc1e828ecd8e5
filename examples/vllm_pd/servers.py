"""Starts, watches, kills and restarts vLLM servers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from client import HOST, MODEL, RequestError, get, metric

# What a worker process has mapped that uses this implementation of `nixl`.
LIBRARIES = {"ours": "/vllm_nixl/_core", "stock": "/libnixl.so"}
KV_ROLES = {"prefill": "kv_producer", "decode": "kv_consumer"}
KV_LEASE = 30  # seconds; prefill keeps blocks that nobody reads for so long


class Server:
    """One vLLM server on fixed ports, in a process group of its own."""

    def __init__(
        self, role: str, nixl: str, model: Path, longest: int, logs: Path
    ) -> None:
        self.role, self.nixl = role, nixl
        self.port, self.side_port = free_port(), free_port()
        self.log = logs / f"{role}-{nixl}-{self.port}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.command = [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", str(model), "--served-model-name", MODEL),
            *("--host", HOST, "--port", str(self.port)),
            *("--max-model-len", str(longest), "--dtype", "float32"),
            # Each request moves its whole KV cache.
            "--no-enable-prefix-caching",
            # No compilation: a restart takes seconds, not minutes.
            "--enforce-eager",
        ]
        if role in KV_ROLES:
            config = json.dumps(self._kv_config())
            self.command += ["--kv-transfer-config", config]

    def _kv_config(self) -> dict[str, Any]:
        return {
            "kv_connector": "NixlConnector",
            "kv_role": KV_ROLES[self.role],
            "kv_buffer_device": "cpu",
            "kv_load_failure_policy": "fail",
            "kv_connector_extra_config": {"kv_lease_duration": KV_LEASE},
        }

    def _environment(self) -> dict[str, str]:
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_HOST_IP": HOST,
            "VLLM_NIXL_SIDE_CHANNEL_HOST": HOST,
            "VLLM_NIXL_SIDE_CHANNEL_PORT": str(self.side_port),
            # vLLM's own binding needs two cores more for each instance.
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": "1",
        }
        environment.pop("VLLM_NIXL_AS_NIXL", None)
        if self.nixl == "ours":
            environment["VLLM_NIXL_AS_NIXL"] = "1"
        return environment

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                env=self._environment(),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait_ready(self, deadline: float) -> None:
        while time.monotonic() < deadline:
            self.check_alive()
            try:
                get(self.port, "/health")
            except RequestError:
                time.sleep(0.2)
            else:
                return
        raise TimeoutError(f"{self.role} is not ready; its log is {self.log}")

    def check_alive(self) -> None:
        assert self.process is not None
        if self.process.poll() is not None:
            raise RuntimeError(
                f"{self.role} ended with status {self.process.returncode};"
                f" its log is {self.log}"
            )

    def check_library(self) -> None:
        """Fail unless the worker has loaded this implementation alone."""
        mapped = set()
        for process in self.processes():
            maps = Path(f"/proc/{process.pid}/maps").read_text()
            mapped |= {n for n, path in LIBRARIES.items() if path in maps}
        # With stock NIXL in use, vLLM still loads the plug-in of vllm_nixl.
        mapped -= {"ours"} if self.nixl == "stock" else set()
        if mapped != {self.nixl}:
            raise RuntimeError(f"{self.role} uses {mapped}, not {self.nixl}")

    def processes(self) -> list[psutil.Process]:
        assert self.process is not None
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def metric(self, name: str) -> float:
        return metric(self.port, name)

    def kill(self) -> None:
        """SIGKILL to every process of the server at once."""
        if self.process is not None:
            _signal_group(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def pause(self) -> None:
        """Stop all its processes; they use no CPU time until `resume()`."""
        assert self.process is not None
        _signal_group(self.process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self.process is not None
        _signal_group(self.process.pid, signal.SIGCONT)

    def terminate(self) -> None:
        """Ask it to end, also if it is paused."""
        if self.process is not None:
            _signal_group(self.process.pid, signal.SIGTERM)
            _signal_group(self.process.pid, signal.SIGCONT)

    def stop(self) -> None:
        self.terminate()
        if self.process is not None:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
            # Also ends workers that outlived the server.
            self.kill()


def _signal_group(group: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(group, number)


@contextmanager
def running(servers: list[Server], seconds: float) -> Iterator[None]:
    """Start all of them, wait until they are ready; stop them at the end."""
    deadline = time.monotonic() + seconds
    try:
        for server in servers:
            server.start()
        for server in servers:
            server.wait_ready(deadline)
        yield
    finally:
        for server in servers:
            server.terminate()
        for server in servers:
            server.stop()


_reservations: list[socket.socket] = []


def free_port() -> int:
    """A port below those that the kernel gives out, not returned before."""
    limits = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    for port in range(int(limits.split()[0]) - 1, 1024, -1):
        reservation = socket.socket(socket.AF_UNIX)
        try:
            # The name keeps other runs of this program from the port.
            reservation.bind(f"\0vllm_nixl-example-port-{port}")
            with socket.socket() as probe:
                probe.bind((HOST, port))
        except OSError:
            reservation.close()
            continue
        _reservations.append(reservation)
        return port
    raise OSError("no free port below the ephemeral range")
