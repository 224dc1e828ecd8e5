"""TCP ports for listeners that cannot report a port that they chose."""

import pathlib
import random
import socket

RANGE = pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range")

# Each reserves one port among the test processes until this process exits.
_reservations = []


def reserve_port():
    """A free port that nothing else takes before the test binds it.

    It lies outside the range from which the kernel takes ports for connections
    and for listeners on port 0, unless that range has all ports.  An abstract
    Unix socket named after the port keeps other test processes from reserving
    it too.
    """
    first, last = map(int, RANGE.read_text().split())
    ports = [*range(max(1024, first - 16384), first), *range(last + 1, 65536)]
    ports = ports or [*range(1024, 65536)]
    random.shuffle(ports)
    for port in ports:
        reservation = socket.socket(socket.AF_UNIX)
        try:
            reservation.bind(f"\0vllm_nixl-test-port-{port}")
            with socket.socket() as probe:
                probe.bind(("", port))
        except OSError:
            reservation.close()
            continue
        _reservations.append(reservation)
        return port
    raise OSError("no port is free")
