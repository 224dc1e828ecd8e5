"""Well-formed but false metadata.

A blob is parsed down to the last field, one or more fields are changed, and
checksums are corrected: a reader finds no error without asking the owner.
"""

import collections
import random
import struct

from support import blob as grammar

MAX64 = 2**64 - 1
SHM, VNX = b"SHM", b"VNX"

_INFO = struct.Struct("<BBHI16sQQQIH")
_IDENTITY = struct.Struct("<BBHQ16s")
_SHARE = struct.Struct("<BBHIQQQ")

# The connection data of SHM and the agent's identity (docs/wire.md), without
# their checksums.  Both have the same version; `flags` are the identity's.
Info = collections.namedtuple(
    "Info",
    "major minor flags pid epoch instance boot pid_namespace start_time"
    " nonce_addr uid socket",
)
# How a region is shared; None for a region of private memory.
Share = collections.namedtuple("Share", "fd offset st_dev st_ino")


def checksum(data):
    """FNV-1a, 64 bits."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return value


def read_info(connections):
    """The fields of both connections of a vllm_nixl agent."""
    _, _, _, pid, boot, *place, length = _INFO.unpack_from(connections[SHM])
    head = _IDENTITY.unpack_from(connections[VNX])
    major, minor, flags, epoch, instance = head
    socket = connections[SHM][_INFO.size : _INFO.size + length]
    return Info(
        major, minor, flags, pid, epoch, instance, boot, *place, socket
    )


def sealed(data):
    return data + checksum(data).to_bytes(8, "little")


def write_info(info):
    """The two connections with these fields."""
    version = (info.major, info.minor)
    place = _INFO.pack(
        *version,
        0,
        info.pid,
        info.boot,
        info.pid_namespace,
        info.start_time,
        info.nonce_addr,
        info.uid,
        len(info.socket),
    )
    identity = _IDENTITY.pack(*version, info.flags, info.epoch, info.instance)
    return {SHM: sealed(place + info.socket), VNX: sealed(identity)}


def read_share(public):
    if len(public) < _SHARE.size:
        return None
    return Share(*_SHARE.unpack(public)[3:])


def write_share(share):
    return b"\1\0\0\0" if share is None else _SHARE.pack(1, 0, 1, *share)


def info_of(data):
    return read_info(grammar.parse(data).connections)


def with_info(data, **fields):
    """The blob with other connection data and a correct checksum."""
    found = grammar.parse(data)
    info = read_info(found.connections)._replace(**fields)
    connections = {**found.connections, **write_info(info)}
    return grammar.write(found._replace(connections=connections))


def with_name(data, name):
    found = grammar.parse(data)
    return grammar.write(found._replace(name=name))


def regions_of(data):
    """The regions in the blob's SHM sections."""
    found = grammar.parse(data)
    return [
        region
        for part in found.sections
        if part.backend == SHM
        for region in part.regions
    ]


def with_regions(data, regions, mem_type=0):
    """The blob with one SHM section that has these regions."""
    found = grammar.parse(data)
    section = grammar.Section(SHM, mem_type, list(regions))
    return grammar.write(found._replace(sections=[section] if regions else []))


# -- random forgeries ---------------------------------------------------------


class Forger:
    """`blobs` are genuine; `addresses` are sensitive places; `others` are
    further blobs from which pids, start times and so on are taken."""

    def __init__(self, seed, blobs, addresses):
        self.dice = random.Random(seed)
        self.blobs, self.addresses = blobs, addresses
        self.infos = [info_of(data) for data in blobs if self.has_info(data)]
        self.names = sorted({grammar.parse(data).name for data in blobs})
        self.regions = [r for data in blobs for r in regions_of(data)]
        self.shares = [
            share
            for share in (read_share(r.public) for r in self.regions)
            if share is not None
        ]

    @staticmethod
    def has_info(data):
        return {SHM, VNX} <= set(grammar.parse(data).connections)

    def number(self, bits=64):
        dice = self.dice
        return dice.choice(
            [0, 1, 2**bits - 1, dice.getrandbits(bits), dice.getrandbits(12)]
        )

    # Forgeries of the connection.

    def info_field(self, info):
        """Change one field: to another agent's, to a similar value, or to
        nonsense."""
        dice = self.dice
        field = dice.choice(Info._fields[2:])
        value = getattr(info, field)
        if dice.random() < 0.5:
            value = getattr(dice.choice(self.infos), field)
        elif field in ("instance", "boot"):
            value = dice.randbytes(16)
        elif field == "socket":
            value = dice.choice([b"x", b"vllm_nixl-1-0123456789abcdef"])
        elif field == "nonce_addr":
            value = dice.choice(self.addresses)
        elif field == "flags":
            value ^= 1
        elif field in ("pid", "uid"):
            value = dice.choice([1, value + 1, value ^ 1, 2**31 - 1])
        elif dice.random() < 0.5:
            value = max(0, value + dice.choice([-1, 1]))
        else:
            value = self.number()
        return info._replace(
            **{field: value % 2**64 if type(value) is int else value}
        )

    def identity(self, info):
        """Take another agent's connection data, except for some fields."""
        other = self.dice.choice(self.infos)
        kept = self.dice.sample(Info._fields[2:], self.dice.randint(0, 3))
        return other._replace(
            **{field: getattr(info, field) for field in kept}
        )

    def inhabitant(self, info):
        """Name an agent that does not exist in the process."""
        other = self.dice.choice(self.infos)
        return other._replace(
            instance=self.dice.randbytes(16),
            nonce_addr=self.dice.choice([other.nonce_addr, *self.addresses]),
        )

    # Forgeries of the regions.

    def address(self, region):
        dice = self.dice
        start = dice.choice(
            [
                dice.choice(self.addresses),
                region.addr,
                region.addr + region.size,
                dice.choice(self.regions).addr,
            ]
        )
        return (start + dice.choice([0, 0, 0, 1, -1, 4096, -4096])) % 2**64

    def region(self, region):
        """A region with one or more false fields."""
        dice = self.dice
        for _ in range(dice.choice([1, 1, 1, 2, 3])):
            way = dice.randrange(5)
            if way == 0:
                region = region._replace(addr=self.address(region))
            elif way == 1:
                size = dice.choice(
                    [1, region.size + 1, 2 * region.size, 4096, 2**40]
                )
                addr = region.addr - dice.choice([0, 0, 4096])
                region = region._replace(addr=addr, size=size)
            elif way == 2:
                region = region._replace(device=self.number())
            elif way == 3:
                region = region._replace(public=self.share(region))
            else:
                region = dice.choice(self.regions)
        return region._replace(size=min(region.size, MAX64 - region.addr))

    def share(self, region):
        """Another file behind the address, or the same file at another
        offset."""
        dice = self.dice
        share = read_share(region.public)
        if share is None or dice.random() < 0.2:
            share = dice.choice([*self.shares, None])
        if share is None:
            return write_share(None)
        field = dice.choice(Share._fields)
        value = getattr(share, field)
        if self.shares and dice.random() < 0.6:
            value = getattr(dice.choice(self.shares), field)
        elif field == "fd":
            value = dice.randrange(64)
        else:
            value = dice.choice([0, value + 4096, value - 4096, value + 1])
        share = share._replace(**{field: value % 2**64})
        return write_share(share._replace(fd=share.fd % 2**31))

    def sections(self, sections):
        """Drop, duplicate, move regions, or change their memory type."""
        dice = self.dice
        changed = []
        for part in sections:
            regions = list(part.regions)
            for _ in range(dice.choice([1, 1, 2])):
                at = dice.randrange(len(regions))
                way = dice.randrange(6)
                if way == 0 and len(regions) > 1:
                    del regions[at]
                elif way == 1:
                    regions.insert(at, self.region(regions[at]))
                elif way == 2:
                    regions += [self.region(regions[at]) for _ in range(9)]
                else:
                    regions[at] = self.region(regions[at])
            mem = part.mem_type if dice.random() < 0.9 else dice.randrange(5)
            changed.append(part._replace(regions=regions, mem_type=mem))
        return changed

    # Whole blobs.

    def forge(self):
        """Return (blob, description of the change)."""
        dice = self.dice
        found = grammar.parse(dice.choice(self.blobs))
        changes = dice.sample(
            ["name", "info", "identity", "inhabitant", "sections", "swap"],
            dice.choice([1, 1, 2, 3]),
        )
        connections = dict(found.connections)
        name, sections = found.name, found.sections
        for change in changes:
            if change == "name":
                name = dice.choice([*self.names, b"x", dice.randbytes(9)])
            elif change == "sections":
                sections = self.sections(sections)
            elif change == "swap":
                sections = grammar.parse(dice.choice(self.blobs)).sections
            elif {SHM, VNX} <= set(connections):
                info = read_info(connections)
                way = {
                    "info": self.info_field,
                    "identity": self.identity,
                    "inhabitant": self.inhabitant,
                }[change]
                connections.update(write_info(way(info)))
        made = grammar.Blob(name, connections, sections)
        return grammar.write(made), changes
