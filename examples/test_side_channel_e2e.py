"""Two processes exchange metadata over the side channel, without agents.

    python examples/test_side_channel_e2e.py [--bytes N] [--clients N]

A prefill and a decode process each serve some bytes and request the other's:
one after the other, both at once, many at once, and again after a restart on
the same port.  They compare every byte; the exit status is 1 if any differs.
pytest runs the same steps as tests.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from vllm_nixl import TcpSideChannel, nixlBackendError

try:
    import pytest
except ImportError:  # not needed to run this as a program
    pytest = None

HOST = "127.0.0.1"
PATIENCE = 60  # seconds for one command to the other process


def blob(name, size):
    """Bytes that identify their owner and their position."""
    unit = f"{name}:".encode() + bytes(range(256))
    return (unit * (size // len(unit) + 1))[:size]


class Instance:
    """One of the two processes; each method is a command."""

    def __init__(self, name):
        self.name = name
        self.channel = TcpSideChannel()

    def serve(self, size, port=0, name=None):
        """Serve `size` bytes; return the port."""
        return self.channel.start_listener(port, blob(name or self.name, size))

    def stop(self):
        self.channel.shutdown()

    def fetch(self, port, name, size):
        """Request the bytes of `name` and compare; return the milliseconds."""
        start = time.perf_counter()
        metadata = self.channel.request_metadata(HOST, port)
        took = (time.perf_counter() - start) * 1e3
        if metadata != blob(name, size):
            raise ValueError(f"{self.name} received wrong bytes from {name}")
        return took

    def fetch_many(self, port, name, size, clients):
        """The same from many threads; return the milliseconds for all."""
        start = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            jobs = [
                pool.submit(self.fetch, port, name, size)
                for _ in range(clients)
            ]
            for job in jobs:
                job.result()
        return (time.perf_counter() - start) * 1e3

    def fetch_refused(self, port):
        """Return whether the error says that the port refused."""
        try:
            self.channel.request_metadata(HOST, port)
        except nixlBackendError as error:
            return "refused" in str(error)
        return False


def decode_main(pipe):
    """The decode process: execute commands until None arrives."""
    instance = Instance("decode")
    while (command := pipe.recv()) is not None:
        method, arguments = command
        try:
            pipe.send((getattr(instance, method)(*arguments), None))
        except Exception as error:
            pipe.send((None, f"{type(error).__name__}: {error}"))
    instance.stop()


class Remote:
    """An Instance in another process, with the same methods."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(
            target=decode_main, args=(theirs,), daemon=True
        )
        self.process.start()
        theirs.close()

    def __getattr__(self, method):
        def call(*arguments):
            self.pipe.send((method, arguments))
            if not self.pipe.poll(PATIENCE):
                raise TimeoutError(f"decode did not answer {method}")
            result, error = self.pipe.recv()
            if error is not None:
                raise RuntimeError(f"decode: {method}: {error}")
            return result

        return call

    def close(self):
        self.pipe.send(None)
        self.process.join(PATIENCE)
        if self.process.exitcode != 0:
            raise RuntimeError(f"decode exited with {self.process.exitcode}")


class Pair:
    """Prefill in this process and decode in another; both serve."""

    def __init__(self, size=40_000):
        self.prefill, self.decode = Instance("prefill"), Remote()
        self.sizes = {"prefill": size, "decode": size // 3}
        self.ports = {
            "prefill": self.prefill.serve(self.sizes["prefill"]),
            "decode": self.decode.serve(self.sizes["decode"]),
        }

    def close(self):
        self.prefill.stop()
        self.decode.close()

    def fetch(self, client, server, method="fetch", *more):
        return getattr(getattr(self, client), method)(
            self.ports[server], server, self.sizes[server], *more
        )

    # -- The steps, which are also the tests --------------------------------

    def one_by_one(self):
        for client, server in [("decode", "prefill"), ("prefill", "decode")]:
            took = self.fetch(client, server)
            print(
                f"  {client:8}<- {server:8}"
                f"{self.sizes[server]:>12} bytes {took:9.3f} ms"
            )

    def at_once(self):
        failed = []

        def here():
            try:
                self.fetch("prefill", "decode")
            except Exception as error:
                failed.append(error)

        start = time.perf_counter()
        thread = threading.Thread(target=here)
        thread.start()
        self.fetch("decode", "prefill")
        thread.join()
        took = (time.perf_counter() - start) * 1e3
        print(f"  both ways at once {took:26.3f} ms")
        if failed:
            raise failed[0]

    def many(self, clients=16):
        took = self.fetch("decode", "prefill", "fetch_many", clients)
        print(f"  {clients} clients at once {took:25.3f} ms")

    def restart(self):
        port = self.ports["prefill"]
        self.prefill.stop()
        if not self.decode.fetch_refused(port):
            raise ValueError("a stopped listener still answers")
        self.prefill.serve(777, port, "restarted")
        self.decode.fetch(port, "restarted", 777)
        print(f"  restarted on port {port}; it serves the new metadata")
        self.prefill.stop()
        self.prefill.serve(self.sizes["prefill"], port)


if pytest is not None:

    @pytest.fixture(scope="module")
    def pair():
        made = Pair()
        yield made
        made.close()


def test_both_ways_one_by_one(pair):
    pair.one_by_one()


def test_both_ways_at_once(pair):
    pair.at_once()


def test_many_clients_at_once(pair):
    pair.many()


def test_restart_on_the_port(pair):
    pair.restart()


def test_large_metadata():
    pair = Pair(10 << 20)
    pair.one_by_one()
    pair.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bytes", type=int, default=40_000)
    parser.add_argument("--clients", type=int, default=16)
    options = parser.parse_args()

    pair = Pair(options.bytes)
    print(f"prefill on port {pair.ports['prefill']}", end=", ")
    print(f"decode on port {pair.ports['decode']}")
    pair.one_by_one()
    pair.at_once()
    pair.many(options.clients)
    pair.restart()
    pair.close()
    print("ok")
    return 0


if __name__ == "__main__":
    sys.exit(main())
