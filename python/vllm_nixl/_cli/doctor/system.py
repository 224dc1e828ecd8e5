"""Checks of the kernel and of limits: what this process may do here."""

from __future__ import annotations

import ctypes
import errno
import os
import resource

from .. import payload
from .findings import Finding, Machine, bad, ok, warning

# Inodes of the first namespaces, fixed by the kernel (proc_ns.h).
_FIRST = {"pid": 4026531836, "user": 4026531837}
_CAP_SYS_PTRACE = 19
_DESCRIPTORS = 4096
_SHM = 1 << 30
_SAME_HOST = "SHM moves data between processes of one host"


def _has_ptrace(machine: Machine) -> bool:
    mask = machine.status("CapEff") or "0"
    return bool(int(mask, 16) >> _CAP_SYS_PTRACE & 1)


def check_ptrace_scope(machine: Machine) -> list[Finding]:
    """Yama's rule for who may access another process's memory."""
    check = "ptrace scope"
    text = machine.read(machine.proc / "sys/kernel/yama/ptrace_scope")
    if text is None:
        return [ok(check, "no Yama: a user's processes may access each other")]
    seen = f"kernel.yama.ptrace_scope is {text}"
    allowing = machine.environ.get("VLLM_NIXL_ALLOW_PTRACE") != "0"
    free = text == "0" or (text == "1" and allowing)
    if free or (text in ("1", "2") and _has_ptrace(machine)):
        return [ok(check, seen)]
    if text == "1":
        return [
            warning(
                check,
                f"{seen}, VLLM_NIXL_ALLOW_PTRACE is 0",
                "agents do not let their peers access their memory: no SHM "
                "to this process",
                "unset VLLM_NIXL_ALLOW_PTRACE, or sysctl -w "
                "kernel.yama.ptrace_scope=0",
            )
        ]
    if text == "2":
        return [
            bad(
                check,
                f"{seen}, without CAP_SYS_PTRACE",
                f"{_SAME_HOST} only with CAP_SYS_PTRACE",
                "sysctl -w kernel.yama.ptrace_scope=1 on the host, or docker "
                "run --cap-add=SYS_PTRACE as root",
            )
        ]
    return [
        bad(
            check,
            seen,
            "nobody may access another process's memory until the next boot: "
            "no SHM",
            "set kernel.yama.ptrace_scope=1 in /etc/sysctl.d, and reboot",
        )
    ]


def check_sandbox(machine: Machine) -> list[Finding]:
    """Whether a filter of system calls forbids process_vm_readv."""
    check = "seccomp"
    source, target = (ctypes.create_string_buffer(8) for _ in range(2))
    # Each is a struct iovec: an address and a length.
    local = (ctypes.c_size_t * 2)(ctypes.addressof(target), 8)
    remote = (ctypes.c_size_t * 2)(ctypes.addressof(source), 8)
    call = ctypes.CDLL(None, use_errno=True).process_vm_readv
    call.restype = ctypes.c_ssize_t
    got = call(
        os.getpid(),
        ctypes.byref(local),
        ctypes.c_ulong(1),
        ctypes.byref(remote),
        ctypes.c_ulong(1),
        ctypes.c_ulong(0),
    )
    if got == 8:
        return [ok(check, "process_vm_readv is allowed")]
    code = ctypes.get_errno()
    name = errno.errorcode.get(code, str(code))
    return [
        bad(
            check,
            f"process_vm_readv of this process's own memory: {name}",
            "a sandbox (seccomp) forbids the call: no SHM",
            "docker run --cap-add=SYS_PTRACE, or a seccomp profile that "
            "allows process_vm_readv and process_vm_writev",
        )
    ]


def _namespace(machine: Machine, kind: str) -> int:
    """The inode of a namespace of this process; 0 if unknown."""
    try:
        text = os.readlink(machine.proc / "self/ns" / kind)
    except OSError:
        return 0
    return int(text.partition("[")[2].rstrip("]") or 0)


def check_namespaces(machine: Machine) -> list[Finding]:
    """Whether this is a container whose processes others cannot reach."""
    found = []
    if _namespace(machine, "pid") not in (0, _FIRST["pid"]):
        found.append(
            warning(
                "pid namespace",
                "this process is in a container's pid namespace",
                "there is no SHM between containers that do not share it; "
                "they use UCX",
                "docker run --pid=container:NAME or --pid=host (also "
                "--network); in a pod shareProcessNamespace: true",
            )
        )
    if _namespace(machine, "user") not in (0, _FIRST["user"]):
        found.append(
            warning(
                "user namespace",
                "this process is in a user namespace of its own",
                "processes outside of it count as another user's: no SHM "
                "with them",
                "start both agents in the same user namespace",
            )
        )
    if not machine.net_devices():
        names = machine.interfaces()
        found.append(
            warning(
                "network",
                f"no network device is up but loopback ({', '.join(names)})",
                "other hosts, and containers with another network namespace, "
                "cannot be reached",
                "docker run --network=host, or ip link set DEVICE up",
            )
        )
    else:
        found.append(ok("network", ", ".join(machine.net_devices())))
    return found


def check_descriptors(machine: Machine) -> list[Finding]:
    """The limit of open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _DESCRIPTORS:
        return [ok("descriptors", f"at most {_number(soft)}")]
    say = bad if soft < 256 else warning
    return [
        say(
            "descriptors",
            f"at most {soft} open files (RLIMIT_NOFILE; hard limit "
            f"{_number(hard)})",
            "UCX takes some for each peer, a side channel one for each client",
            f"ulimit -n {min(hard, 65535) if hard > 0 else 65535}, "
            "LimitNOFILE= in systemd, docker run --ulimit nofile=65535",
        )
    ]


def _number(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else f"{limit:,}"


def check_memlock(machine: Machine) -> list[Finding]:
    """The limit of locked memory, which RDMA registers with."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    devices = machine.rdma_devices()
    seen = f"{_number(soft)} bytes" if soft >= 0 else "unlimited"
    if not devices:
        return [ok("locked memory", f"{seen}; no RDMA device needs it")]
    if soft == resource.RLIM_INFINITY:
        return [ok("locked memory", f"{seen}; RDMA: {', '.join(devices)}")]
    return [
        bad(
            "locked memory",
            f"at most {seen} (RLIMIT_MEMLOCK), with {', '.join(devices)}",
            "registering a KV cache with an RDMA device locks its memory, "
            "and fails above the limit",
            "ulimit -l unlimited, LimitMEMLOCK=infinity in systemd, docker "
            "run --ulimit memlock=-1",
        )
    ]


def check_shm(machine: Machine) -> list[Finding]:
    """The size of /dev/shm."""
    check = "/dev/shm"
    try:
        facts = os.statvfs(machine.shm)
    except OSError as error:
        return [
            warning(
                check,
                f"{error.strerror}",
                "UCX's transports posix and mm, and vLLM's queues, need it",
                f"mount -t tmpfs tmpfs {machine.shm}",
            )
        ]
    size = facts.f_blocks * facts.f_frsize
    free = facts.f_bavail * facts.f_frsize
    seen = f"{payload.size(size)}, {payload.size(free)} free"
    if size >= _SHM and free * 20 >= size:
        return [ok(check, seen)]
    return [
        warning(
            check,
            seen,
            "UCX's transports posix and mm, and vLLM's queues, allocate in "
            "it (shared_buffer() does not)",
            "remove old files in it"
            if size >= _SHM
            else "docker run --shm-size=8g or --ipc=host; in a pod an "
            "emptyDir with medium: Memory; mount -o remount,size=8g "
            "/dev/shm",
        )
    ]


CHECKS = (
    check_ptrace_scope,
    check_sandbox,
    check_namespaces,
    check_descriptors,
    check_memlock,
    check_shm,
)
