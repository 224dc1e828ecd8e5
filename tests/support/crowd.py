"""Connections that send a few bytes and stay open, in a separate process.

    with crowd(port, 10_000, [b"", b"GET"]):
        ...

The descriptors and memory of this process thus belong to the listener only.
"""

import contextlib
import resource
import socket
import subprocess
import sys

HOST = "127.0.0.1"
OTHERS = 200  # descriptors for the rest of the process


def room_for(count):
    """Raise the limit of open files that far; returns False if not
    permitted."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = count + OTHERS
    if hard != resource.RLIM_INFINITY and hard < need:
        return False
    if soft < need:
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard))
    return True


@contextlib.contextmanager
def crowd(port, count, openings):
    """`count` connections that send the openings in rotation."""
    from support.deadline import or_kill  # the other process has no such path

    command = [sys.executable, __file__, str(port), str(count)]
    command += [opening.hex() for opening in openings]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            with or_kill(process):
                assert process.stdout.readline() == b"there\n"
            yield
        finally:
            process.stdin.close()
            process.wait(60)


def main():
    port, count = map(int, sys.argv[1:3])
    openings = list(map(bytes.fromhex, sys.argv[3:]))
    held = []
    room_for(count)
    for number in range(count):
        held.append(socket.create_connection((HOST, port), timeout=30))
        with contextlib.suppress(ConnectionError):
            held[-1].sendall(openings[number % len(openings)])
    print("there", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
