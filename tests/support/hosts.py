"""Network namespaces: separate hosts as far as the network is concerned.

`one_host(kind)` has the loopback device and one interface of that kind;
`two_hosts()` are two such hosts that a veth pair joins.  Both return a
`Hosts`, to be removed by the caller.  OSError: this kernel or this user cannot
create them.
"""

import contextlib
import os
import re
import shutil
import socket
import subprocess
import tempfile


def why_names_are_unclear():
    """The reason why a name that does not exist cannot be told from one that
    the resolver does not find at present, or None."""
    try:
        socket.getaddrinfo("no-such-host.invalid", 1)
    except socket.gaierror as error:
        if error.errno == socket.EAI_NONAME:
            return None
        return f"the resolver of this machine says: {error.strerror}"
    return "the resolver of this machine knows every name"


def why_none():
    """The reason why namespaces cannot be created, or None if unknown."""
    return None if shutil.which("ip") else "ip(8), of iproute2, is missing"


def _remove_stale():
    """Delete the namespaces of test processes that were killed."""
    with contextlib.suppress(OSError):
        for name in os.listdir("/run/netns"):
            found = re.fullmatch(r"vnx-(\d+)-\d+", name)
            if found and not os.path.exists(f"/proc/{found[1]}"):
                _ip_quietly("netns", "del", name)


def _ip_quietly(*arguments):
    subprocess.run(["ip", *arguments], capture_output=True, check=False)


class Hosts:
    def __init__(self, count):
        self.names = [f"vnx-{os.getpid()}-{i}" for i in range(count)]
        self.links = [f"vnx{os.getpid() % 100000}{side}" for side in "ab"]
        self.addresses = [f"10.213.7.{i + 1}" for i in range(count)]

    def ip(self, *arguments):
        done = subprocess.run(
            ["ip", *arguments], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")

    def make(self, kind):
        """Create the interfaces: a veth pair, or one of that kind."""
        _remove_stale()
        for name in self.names:
            self.ip("netns", "add", name)
            self.ip("-n", name, "link", "set", "lo", "up")
        other = ["peer", "name", self.links[1]] if kind == "veth" else []
        self.ip("link", "add", self.links[0], "type", kind, *other)
        for name, link in zip(self.names, self.links, strict=False):
            self.ip("link", "set", link, "netns", name)
        if kind == "veth" and len(self.names) == 1:
            self.ip("link", "set", self.links[1], "up")
        for name, link, address in zip(
            self.names, self.links, self.addresses, strict=False
        ):
            inside = ["-n", name]
            self.ip(*inside, "addr", "add", f"{address}/24", "dev", link)
            self.ip(*inside, "link", "set", link, "up")

    def remove(self):
        for arguments in (
            *(["netns", "del", name] for name in self.names),
            ["link", "del", self.links[0]],
        ):
            _ip_quietly(*arguments)

    def inside(self, number):
        """A prefix that runs the command after it on one of the hosts."""
        return ["ip", "netns", "exec", self.names[number]]

    def start(self, number, command, env):
        """Start a program on one of the hosts."""
        errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        process = subprocess.Popen(
            [*self.inside(number), *command],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=env,
        )
        process.errors = errors
        return process


def _made(count, kind):
    hosts = Hosts(count)
    try:
        hosts.make(kind)
    except BaseException:
        hosts.remove()
        raise
    return hosts


def one_host(kind):
    return _made(1, kind)


def two_hosts():
    return _made(2, "veth")
