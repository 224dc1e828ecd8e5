"""Attacks by hostile or broken clients on a side channel.

An attack is a function of an Attacker that runs until it is told to stop.  The
bytes it reads are kept, so that a test can check that it received no secret.
ATTACKS are for every transport; a transport adds its own in
support.transports.  TLS_ATTACKS and SECRET_ATTACKS are for listeners that have
these.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading

HOST = "127.0.0.1"
RESET = struct.pack("ii", 1, 0)
TLS_HELLO = bytes.fromhex(
    "1603010200010001fc0303"
    + "5a" * 32
    + "20"
    + "a5" * 32
    + "0004130113020100"
)
CROWD = 50


class Attacker:
    """Connections to one port, and the bytes received on them."""

    def __init__(self, transport, port):
        self.transport = transport
        self.port = port
        self.request = transport.raw_request
        #: Bytes that an honest client sent in a recorded exchange.
        self.overheard = b""
        self.heard = b""
        self.random = random.Random(20)
        self._stop = threading.Event()
        self._held = []

    def connect(self):
        return socket.create_connection((HOST, self.port), timeout=5)

    def hold(self, said=b"", count=CROWD):
        """Open connections that send these bytes and stay open."""
        for _ in range(count):
            with contextlib.suppress(OSError):
                sock = self.connect()
                self._held.append(sock)
                sock.sendall(said)
        return self._held

    def say(self, said, reset=False):
        """Open one connection, send the bytes, read the reply, close."""
        with contextlib.suppress(OSError), self.connect() as sock:
            sock.sendall(said)
            if reset:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                return
            sock.shutdown(socket.SHUT_WR)
            sock.settimeout(0.05)
            while len(self.heard) < 1 << 24 and (piece := sock.recv(1 << 16)):
                self.heard += piece

    def over(self, seconds=0.0):
        """Wait that long; returns True when it is time to stop."""
        return self._stop.wait(seconds)

    def run(self, attack):
        try:
            attack(self)
        finally:
            for sock in self._held:
                sock.close()

    def stop(self):
        self._stop.set()


def saying(said):
    def attack(attacker):
        while not attacker.over():
            attacker.say(said)

    return attack


def holding(said):
    def attack(attacker):
        attacker.hold(said)
        attacker.over(3600)

    return attack


def silent(attacker):
    attacker.hold()
    attacker.over(3600)


def one_byte(attacker):
    attacker.hold(attacker.request[:1])
    attacker.over(3600)


def half_frame(attacker):
    attacker.hold(attacker.request[: len(attacker.request) // 2])
    attacker.over(3600)


def drip(attacker):
    held = attacker.hold()
    at = 0
    while not attacker.over(0.01):
        for sock in held:
            with contextlib.suppress(OSError):
                sock.send(attacker.request[at : at + 1])
        at = (at + 1) % (len(attacker.request) - 1)


def random_bytes(attacker):
    while not attacker.over():
        attacker.say(attacker.random.randbytes(attacker.random.randint(1, 99)))


def never_reading(attacker):
    for sock in attacker.hold(attacker.request, 20):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    attacker.over(3600)


def reset_in_mid_frame(attacker):
    while not attacker.over():
        for cut in range(0, len(attacker.request), 3):
            attacker.say(attacker.request[:cut], reset=True)


def connect_close_storm(attacker):
    while not attacker.over():
        for _ in range(CROWD):
            attacker.connect().close()


def mutated_requests(attacker):
    while not attacker.over():
        request = bytearray(attacker.request)
        place = attacker.random.randrange(len(request))
        request[place] ^= 1 << attacker.random.randrange(8)
        with contextlib.suppress(OSError), attacker.connect() as sock:
            sock.sendall(request)


def plain_request(attacker):
    while not attacker.over():
        attacker.say(attacker.request)


def wrong_secret(attacker):
    number = 0
    while not attacker.over():
        number += 1
        secret = f"a guess, number {number}"
        with attacker.transport.make(secret=secret) as other:
            peers = [(HOST, attacker.port, (0, 1)), (HOST, attacker.port)]
            for answer in other.request_many(peers * 3, 2000):
                if isinstance(answer, bytes):
                    attacker.heard += answer


def replayed(attacker):
    while not attacker.over():
        attacker.say(attacker.overheard)


TLS_ATTACKS = {
    "plain": plain_request,
    "silent": silent,
    "half a handshake": holding(TLS_HELLO),
    "drip": drip,
    "random": random_bytes,
    "connect and close": connect_close_storm,
}
SECRET_ATTACKS = {
    "no proof": plain_request,
    "wrong secret": wrong_secret,
    "never proving": silent,
    "random": random_bytes,
}
ATTACKS = {
    "silent": silent,
    "one byte": one_byte,
    "drip": drip,
    "half frame": half_frame,
    "oversized length": saying(b"\x10\x00\x00\x00" + b"x" * 64),
    "0xffffffff": saying(b"\xff\xff\xff\xff"),
    "random": random_bytes,
    "TLS": saying(TLS_HELLO),
    "HTTP": saying(b"POST /metadata HTTP/1.0\r\nX: y\r\n\r\n"),
    "never reading": never_reading,
    "reset in mid-frame": reset_in_mid_frame,
    "connect and close": connect_close_storm,
    "mutated requests": mutated_requests,
}
