"""The listener of stock vLLM's handshake, by pyzmq and msgpack."""

import contextlib
import threading
import time

import msgpack
import zmq

HOST = "127.0.0.1"
GET_META_MSG = b"get_meta_msg"


class StockListener:
    """vLLM's listener: like the original, it dies on unknown requests, and on
    requests with another number of ranks.

    Args:
        blobs: What it answers: by ranks, a tuple.
    """

    def __init__(self, context, blobs):
        self.blobs = blobs
        self.ranks = len(next(iter(blobs)))
        self.sock = context.socket(zmq.ROUTER)
        self.sock.setsockopt(zmq.LINGER, 0)
        self.port = self.sock.bind_to_random_port(f"tcp://{HOST}")
        self.requests = []
        self.failure = None
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        try:
            while True:
                identity, _, data = self.sock.recv_multipart()
                if data == b"stop":
                    return
                name, *ranks = msgpack.unpackb(data)
                assert name == GET_META_MSG
                assert len(ranks) == self.ranks
                self.requests.append(tuple(ranks))
                reply = [identity, b"", self.blobs[tuple(ranks)]]
                if self.ranks > 1:
                    reply.append(msgpack.packb(time.perf_counter()))
                self.sock.send_multipart(reply)
        except Exception as error:
            self.failure = error
        finally:
            self.sock.close()

    def stop(self, context):
        if self.thread.is_alive():
            with context.socket(zmq.REQ) as sock:
                sock.setsockopt(zmq.LINGER, 1000)
                sock.connect(f"tcp://{HOST}:{self.port}")
                sock.send(b"stop")
                self.thread.join(30)
        assert not self.thread.is_alive()


@contextlib.contextmanager
def stock_listener(context, blobs):
    listener = StockListener(context, blobs)
    try:
        yield listener
    finally:
        listener.stop(context)
