"""The HTTP endpoint that Prometheus scrapes."""

from __future__ import annotations

import contextlib
import threading
from socketserver import TCPServer, ThreadingMixIn
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from prometheus_client.registry import Collector


MAX_CLIENTS = 32  # at the same time, each with a thread


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    allow_reuse_port = False  # True in newer Pythons: two would share it

    def __init__(self, *args: Any) -> None:
        self._room = threading.Semaphore(MAX_CLIENTS)
        super().__init__(*args)

    def server_bind(self) -> None:
        """Bind without HTTPServer's look-up of the host's name.

        It can take seconds where no name server answers.
        """
        TCPServer.server_bind(self)
        self.server_name = str(self.server_address[0])
        self.server_port = self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start a thread for a client, or close one too many."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread was started
            self._room.release()
            raise

    def process_request_thread(
        self, request: Any, client_address: Any
    ) -> None:
        """Serve a client."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds that a client may say nothing, or read nothing

    def handle(self) -> None:
        """Serve the client; ignore that it sends nothing or disconnects."""
        with contextlib.suppress(TimeoutError, ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        """Do not log scrapes."""


class Endpoint:
    """Serves the metrics of collectors at http://host:port/metrics.

    ImportError without prometheus_client; OSError if the port is taken;
    RuntimeError if no thread can be started.
    """

    def __init__(
        self, host: str, port: int, collectors: Iterable[Collector]
    ) -> None:
        from prometheus_client import CollectorRegistry, make_wsgi_app

        registry = CollectorRegistry()
        for collector in collectors:
            registry.register(collector)
        answer = make_wsgi_app(registry)

        def application(environ: Any, start_response: Any) -> Any:
            # Always the text format, as NIXL's exporter: in OpenMetrics its
            # agent_xfer_time_total and agent_xfer_time are one metric with
            # two types.
            environ.pop("HTTP_ACCEPT", None)
            return answer(environ, start_response)

        self._server = make_server(host, port, application, _Server, _Handler)
        self.address = f"{host}:{self._server.server_port}"
        thread = threading.Thread(
            target=self._server.serve_forever,
            name="vllm_nixl-metrics",
            daemon=True,
        )
        try:
            thread.start()
        except BaseException:
            self._server.server_close()
            raise

    def forget(self) -> None:
        """Close the socket; in a forked child, which has no thread."""
        self._server.socket.close()
