"""`vllm-nixl doctor` on this machine: each of its cases is provoked."""

import ctypes
import importlib.util
import json
import os
import platform
import re
import resource
import shutil
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import vllm_nixl
from support import cli, hosts, ucx
from vllm_nixl._cli import variables
from vllm_nixl._cli.doctor import (
    GROUPS,
    environment,
    findings,
    packages,
    ports,
    routes,
    system,
)

pytestmark = pytest.mark.beyond_stock

ROOT = Path(__file__).resolve().parent.parent.parent


def machine(tmp_path, env=None, path=(), **folders):
    """A machine with nothing but what the test puts there."""
    for name in ("proc", "sysfs", "dev"):
        folders.setdefault(name, tmp_path / name)
        folders[name].mkdir(exist_ok=True)
    return findings.Machine(environ=env or {}, path=path, **folders)


def only(found):
    (finding,) = found
    return finding


def put(folder, name, text=""):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def in_child(check, preexec=None, wrap=(), env=None):
    """What a check finds in a process of its own."""
    module, name = check.__module__.rpartition(".")[2], check.__name__
    program = (
        "import json; from vllm_nixl._cli.doctor import findings, "
        f"{module}; print(json.dumps([f._asdict() for f in "
        f"{module}.{name}(findings.Machine())]))"
    )
    done = subprocess.run(
        [*wrap, sys.executable, "-c", program],
        capture_output=True,
        text=True,
        preexec_fn=preexec,
        env=cli.environment(env),
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [findings.Finding(**found) for found in json.loads(done.stdout)]


# -- The whole command -------------------------------------------------------


NO_UCX = {"VLLM_NIXL_UCX_LIBRARY": "none"}


def checks_of(report, level):
    return [f["check"] for f in report["findings"] if f["level"] == level]


def test_a_machine_without_faults_has_status_0():
    env = {"VLLM_NIXL_SIDE_CHANNEL_PORT": "0", **NO_UCX}
    report = cli.run_json("doctor", env=env)
    assert report["bad"] == 0
    assert {"engine native", "SHM"} <= set(checks_of(report, "ok"))
    for finding in report["findings"]:
        assert list(finding) == ["check", "level", "seen", "cause", "change"]
        if finding["level"] != "ok":
            assert finding["cause"]
            assert finding["change"]


def test_something_bad_has_status_1_and_is_explained():
    env = {"VLLM_NIXL_SAME_HOST": "yes", **NO_UCX}
    done = cli.run("doctor", env=env)
    assert done.returncode == 1
    lines = [line.split() for line in done.stdout.splitlines()]
    assert ["bad", "VLLM_NIXL_SAME_HOST"] in [line[:2] for line in lines]
    at = [line[:2] for line in lines].index(["bad", "VLLM_NIXL_SAME_HOST"])
    assert lines[at + 1][0] == "cause"
    assert lines[at + 2][:3] == ["change", "unset", "VLLM_NIXL_SAME_HOST,"]


def test_every_check_is_in_a_group():
    modules = (environment, packages, ports, routes, system)
    checks = {
        value
        for module in modules
        for name, value in vars(module).items()
        if name.startswith("check_")
    }
    assert checks == {check for _, group in GROUPS for check in group}


# -- Environment variables ---------------------------------------------------


def test_the_table_has_every_variable_that_the_sources_read():
    read = set()
    folders = (ROOT / "src", ROOT / "python" / "vllm_nixl")
    for folder in folders:
        for file in folder.rglob("*"):
            if file.name == "variables.py":  # the table itself
                continue
            if file.suffix in (".c", ".h", ".py") and file.is_file():
                read |= set(
                    re.findall(r"VLLM_NIXL_[A-Z_]*[A-Z]", file.read_text())
                )
    assert not read - {*variables.NAMES, *variables.OF_VLLM}
    assert len(read) > 10


def test_valid_variables(tmp_path):
    library = put(tmp_path, "libucp.so")
    env = {
        "VLLM_NIXL_ALLOW_PTRACE": "1",
        "VLLM_NIXL_AS_NIXL": "0",
        "VLLM_NIXL_ENGINE": "native",
        "VLLM_NIXL_LIBRARY": "libnixl_capi.so",
        "VLLM_NIXL_LOG_LEVEL": "debug",
        "VLLM_NIXL_METADATA_SECRET": "12345678",
        "VLLM_NIXL_SAME_HOST": "",
        "VLLM_NIXL_SIDE_CHANNEL_HOST": "localhost",
        "VLLM_NIXL_SIDE_CHANNEL_PORT": "5600",
        "VLLM_NIXL_SIDE_CHANNEL_SECRET": "12345678",
        "VLLM_NIXL_CUDA_CTAS": "32",
        "VLLM_NIXL_CUDA_LAUNCH_BYTES": "1048576",
        "VLLM_NIXL_UCX_GUARD": "0",
        "VLLM_NIXL_UCX_LIBRARY": str(library),
        "VLLM_NIXL_UCX_TIMEOUT": "2.5",
        "VLLM_NIXL_EP_MAX_NUM_RANKS": "8",
    }
    found = only(environment.check_variables(machine(tmp_path, env)))
    assert found.level == "ok"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("VLLM_NIXL_ALLOW_PTRACE", "no", "must be 0 or 1"),
        ("VLLM_NIXL_ENGINE", "nativ", "auto or native or nixl"),
        ("VLLM_NIXL_LIBRARY", "/missing/x.so", "names no file"),
        ("VLLM_NIXL_LOG_LEVEL", "loud", "INFO"),
        ("VLLM_NIXL_MONITOR", "yes", "a folder"),
        ("VLLM_NIXL_METADATA_SECRET", "", "8 to 65535 bytes, not 0"),
        ("VLLM_NIXL_METADATA_SECRET", "short", "8 to 65535 bytes, not 5"),
        ("VLLM_NIXL_SIDE_CHANNEL_PORT", "65536", "a port"),
        ("VLLM_NIXL_SIDE_CHANNEL_PORT", "-1", "a port"),
        ("VLLM_NIXL_CUDA_CTAS", "0", "a number from 1 to 4096"),
        ("VLLM_NIXL_CUDA_LAUNCH_BYTES", "64M", "a number from 1048576"),
        ("VLLM_NIXL_UCX_LIBRARY", "/missing/x.so", "names no file"),
        ("VLLM_NIXL_UCX_TIMEOUT", "soon", "seconds"),
        ("VLLM_NIXL_UCX_TIMEOUT", "nan", "seconds"),
    ],
)
def test_a_value_that_is_not_valid(tmp_path, name, value, text):
    found = only(environment.check_variables(machine(tmp_path, {name: value})))
    assert (found.check, found.level) == (name, "bad")
    assert text in found.seen
    assert name in found.change


def test_no_finding_shows_a_secret(tmp_path):
    env = {"VLLM_NIXL_SIDE_CHANNEL_SECRET": "short"}
    found = only(environment.check_variables(machine(tmp_path, env)))
    assert "short" not in "".join(found)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("VLLM_NIXL_ENGIN", "VLLM_NIXL_ENGINE"),
        ("VLLM_NIXL_SIDECHANNEL_PORT", "VLLM_NIXL_SIDE_CHANNEL_PORT"),
        ("VLLM_NIXL_UCX_TIME_OUT", "VLLM_NIXL_UCX_TIMEOUT"),
    ],
)
def test_a_misspelt_name(tmp_path, name, near):
    found = only(environment.check_variables(machine(tmp_path, {name: "1"})))
    assert found.level == "warning"
    assert f"rename it to {near}" in found.change


def test_a_name_like_no_other(tmp_path):
    env = {"VLLM_NIXL_XYZZY": "1"}
    found = only(environment.check_variables(machine(tmp_path, env)))
    assert (found.level, found.change) == ("warning", "unset VLLM_NIXL_XYZZY")


@pytest.mark.parametrize(
    "name",
    ["NIXL_ETCD_ENDPOINTS", "NIXL_TCPSTORE_ENDPOINT", "NIXL_CONFIG_FILE"],
)
def test_a_variable_of_stock_nixl_that_is_not_read(tmp_path, name):
    found = only(environment.check_variables(machine(tmp_path, {name: "x"})))
    assert (found.check, found.level) == (name, "warning")


# -- UCX_ variables ----------------------------------------------------------


@pytest.mark.parametrize(
    "value", ["tcp,cma", "all", "^ib", "tcp,sm", "tcp,cma,cuda", "^cuda"]
)
def test_ucx_tls_with_all_that_is_needed(tmp_path, value):
    for found in environment.check_ucx_tls(
        machine(tmp_path, {"UCX_TLS": value})
    ):
        assert found.level == "ok"


@pytest.mark.parametrize("value", ["cma,sysv", "^tcp", "rc,cma", "sm,self"])
def test_ucx_tls_without_a_network(tmp_path, value):
    env = {"UCX_TLS": value}
    found = only(environment.check_ucx_tls(machine(tmp_path, env)))
    assert (found.check, found.level) == ("UCX_TLS", "bad")
    assert "tcp" in found.cause


def test_ucx_tls_without_tcp_but_with_rdma(tmp_path):
    made = machine(tmp_path, {"UCX_TLS": "rc,cma"})
    put(made.sys, "class/infiniband/mlx5_0/x")
    assert only(environment.check_ucx_tls(made)).level == "ok"


@pytest.mark.parametrize("value", ["tcp", "^cma,sysv", "tcp,posix"])
def test_ucx_tls_without_shared_memory(tmp_path, value):
    env = {"UCX_TLS": value}
    found = only(environment.check_ucx_tls(machine(tmp_path, env)))
    assert found.level == "warning"
    assert "cma,sysv" in found.change


def test_ucx_tls_without_the_gpu(tmp_path):
    made = machine(tmp_path, {"UCX_TLS": "tcp,cma"})
    put(made.dev, "nvidia0")
    put(made.dev, "nvidiactl")
    found = only(environment.check_ucx_tls(made))
    assert found.level == "bad"
    assert "nvidia0" in found.cause


@pytest.fixture
def two_networks(tmp_path):
    """A function: the machine with these variables, with eth0, eth1, ib0."""

    def make(env):
        made = machine(tmp_path, env)
        for name in ("eth0", "eth1"):
            put(made.sys, f"class/net/{name}/operstate", "up\n")
        put(made.sys, "class/net/eth2/operstate", "down\n")
        put(made.sys, "class/net/lo/operstate", "unknown\n")
        put(made.sys, "class/infiniband/mlx5_0/x")
        return made

    return make


def devices(made):
    return environment.check_ucx_devices(made)


def test_a_device_that_does_not_exist(two_networks):
    found = only(devices(two_networks({"UCX_NET_DEVICES": "eth0,ens5"})))
    assert found.level == "bad"
    assert "no device ens5" in found.cause
    assert "eth0" in found.cause


def test_devices_that_pin_to_one_network(two_networks):
    found = only(devices(two_networks({"UCX_NET_DEVICES": "mlx5_0:1"})))
    assert found.level == "warning"
    assert "eth0, eth1" in found.cause
    assert "eth2" not in found.cause


def test_loopback_alone(two_networks):
    found = only(devices(two_networks({"UCX_NET_DEVICES": "lo"})))
    assert found.level == "bad"


@pytest.mark.parametrize("value", ["all", "eth0,eth1,mlx5_0:1", "", "^eth1"])
def test_devices_that_leave_nothing_out(two_networks, value):
    for found in devices(two_networks({"UCX_NET_DEVICES": value})):
        assert found.level == "ok"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("UCX_TCP_CONN_NB", "n"),
        ("UCX_TCP_PUT_ENABLE", "y"),
        ("UCX_MM_ERROR_HANDLING", "yes"),
    ],
)
def test_settings_of_ucx_that_do_harm(tmp_path, name, value):
    made = machine(tmp_path, {name: value})
    found = only(environment.check_ucx_harm(made))
    assert (found.check, found.level) == (name, "warning")
    made = machine(tmp_path, {name: {"n": "y"}.get(value, "n")})
    assert environment.check_ucx_harm(made) == []


# -- The side channel's host -------------------------------------------------


def host(tmp_path, value):
    env = {"VLLM_NIXL_SIDE_CHANNEL_HOST": value}
    return environment.check_side_channel_host(
        machine(tmp_path, env, sysfs=Path("/sys"))
    )


def test_a_host_that_only_this_machine_reaches(tmp_path):
    found = only(host(tmp_path, "localhost"))
    assert found.level == "warning"
    assert "loopback" in found.cause


def test_a_host_of_another_machine(tmp_path):
    found = only(host(tmp_path, "192.0.2.1"))
    assert found.level == "bad"
    assert "no listener can bind it" in found.cause


def test_a_host_that_is_no_name(tmp_path):
    if why := hosts.why_names_are_unclear():
        pytest.skip(why)
    found = only(host(tmp_path, "no-such-host.invalid"))
    assert found.level == "bad"
    assert "not known" in found.cause


def test_hosts_that_peers_reach(tmp_path):
    assert host(tmp_path, "0.0.0.0,lo") == []
    assert host(tmp_path, "") == []


# -- The kernel --------------------------------------------------------------


def scope(tmp_path, number, caps="0", env=None):
    made = machine(tmp_path, env)
    put(made.proc, "sys/kernel/yama/ptrace_scope", f"{number}\n")
    put(made.proc, "self/status", f"Name:\tx\nCapEff:\t{caps}\n")
    return only(system.check_ptrace_scope(made))


CAP_SYS_PTRACE = "0000000000080000"
DENY = {"VLLM_NIXL_ALLOW_PTRACE": "0"}


@pytest.mark.parametrize(
    ("number", "caps", "env", "level", "text"),
    [
        (0, "0", {}, "ok", ""),
        (0, "0", DENY, "ok", ""),
        (1, "0", {}, "ok", ""),
        (1, "0", DENY, "warning", "unset VLLM_NIXL_ALLOW_PTRACE"),
        (1, CAP_SYS_PTRACE, DENY, "ok", ""),
        (2, "0", {}, "bad", "sysctl -w kernel.yama.ptrace_scope=1"),
        (2, CAP_SYS_PTRACE, {}, "ok", ""),
        (3, CAP_SYS_PTRACE, {}, "bad", "reboot"),
    ],
)
def test_ptrace_scopes(tmp_path, number, caps, env, level, text):
    found = scope(tmp_path, number, caps, env)
    assert found.level == level
    assert f"ptrace_scope is {number}" in found.seen
    assert text in found.change


def test_no_yama(tmp_path):
    found = only(system.check_ptrace_scope(machine(tmp_path)))
    assert found.level == "ok"
    assert "no Yama" in found.seen


CALLS = {"x86_64": (310, 311), "aarch64": (270, 271)}


def forbid_process_vm():
    """Install a seccomp filter, as a container's runtime does."""
    instructions = b"".join(
        [
            struct.pack("=HBBI", 0x20, 0, 0, 0),  # load the call's number
            struct.pack("=HBBI", 0x15, 1, 0, CALLS[platform.machine()][0]),
            struct.pack("=HBBI", 0x15, 0, 1, CALLS[platform.machine()][1]),
            struct.pack("=HBBI", 0x06, 0, 0, 0x00050001),  # EPERM
            struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000),  # allow
        ]
    )
    buffer = ctypes.create_string_buffer(instructions)
    program = struct.pack("=H6xQ", 5, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    if libc.prctl(22, 2, program, 0, 0) != 0:  # PR_SET_SECCOMP
        os._exit(99)


@pytest.fixture
def sandbox():
    if platform.machine() not in CALLS:
        pytest.skip(f"the filter is not written for {platform.machine()}")
    done = subprocess.run(
        [sys.executable, "-c", ""], preexec_fn=forbid_process_vm, check=False
    )
    if done.returncode:
        pytest.skip("this kernel or sandbox refuses seccomp filters")
    return forbid_process_vm


def test_no_sandbox():
    assert only(in_child(system.check_sandbox)).level == "ok"


def test_a_sandbox_that_forbids_process_vm_readv(sandbox):
    found = only(in_child(system.check_sandbox, preexec=sandbox))
    assert (found.check, found.level) == ("seccomp", "bad")
    assert "EPERM" in found.seen
    assert "--cap-add=SYS_PTRACE" in found.change


def test_a_sandbox_keeps_shm_from_working(sandbox):
    """The trial by two agents reports the library's own cause."""
    found = only(in_child(routes.check_same_host, preexec=sandbox))
    assert (found.check, found.level) == ("SHM", "bad")
    assert "seccomp" in found.cause


def unshared(*options):
    """A prefix that runs a command in namespaces of its own, or skip."""
    wrap = ["unshare", *options, "--fork"]
    if shutil.which("unshare") is None:
        pytest.skip("unshare(1) is not installed")
    done = subprocess.run(
        [*wrap, "true"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"no namespaces here: {done.stderr.strip()}")
    return wrap


def test_a_pid_namespace():
    wrap = unshared("--pid", "--mount-proc")
    found = in_child(system.check_namespaces, wrap=wrap)
    (pid,) = [f for f in found if f.check == "pid namespace"]
    assert pid.level == "warning"
    assert "--pid=container:NAME" in pid.change


def test_a_user_namespace():
    wrap = unshared("--user", "--map-root-user")
    found = in_child(system.check_namespaces, wrap=wrap)
    assert "user namespace" in [f.check for f in found]


def test_a_network_namespace_without_devices():
    # /sys still shows the devices of the namespace that it was mounted in.
    wrap = unshared("--net")
    found = in_child(system.check_namespaces, wrap=wrap)
    (network,) = [f for f in found if f.check == "network"]
    assert network.level == "warning"
    assert "--network=host" in network.change


def test_the_first_namespaces(tmp_path):
    made = machine(tmp_path)
    ns = made.proc / "self/ns"
    ns.mkdir(parents=True)
    (ns / "pid").symlink_to("pid:[4026531836]")
    (ns / "user").symlink_to("user:[4026531837]")
    put(made.sys, "class/net/eth0/operstate", "up")
    found = only(system.check_namespaces(made))
    assert (found.check, found.level, found.seen) == ("network", "ok", "eth0")


# -- Limits ------------------------------------------------------------------


def limit(kind, number):
    return lambda: resource.setrlimit(kind, (number, number))


@pytest.mark.parametrize(
    ("number", "level"), [(100, "bad"), (1024, "warning")]
)
def test_few_descriptors(number, level):
    found = only(
        in_child(
            system.check_descriptors, limit(resource.RLIMIT_NOFILE, number)
        )
    )
    assert found.level == level
    assert f"at most {number} open files" in found.seen
    assert "ulimit -n" in found.change


def test_enough_descriptors():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip(f"at most {hard} descriptors are allowed here")
    found = in_child(
        system.check_descriptors, limit(resource.RLIMIT_NOFILE, 4096)
    )
    assert only(found).level == "ok"


def memlock(folder):
    """The check in a child that may lock 64 KiB, with this /sys."""
    program = (
        "import json; from vllm_nixl._cli.doctor import findings, system; "
        "print(json.dumps([f._asdict() for f in system.check_memlock("
        f"findings.Machine(sysfs={str(folder)!r}))]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        preexec_fn=limit(resource.RLIMIT_MEMLOCK, 65536),
        env=cli.environment(),
        check=True,
    )
    return findings.Finding(**only(json.loads(done.stdout)))


def test_locked_memory_with_an_rdma_device(tmp_path):
    put(tmp_path, "class/infiniband/mlx5_0/x")
    found = memlock(tmp_path)
    assert (found.check, found.level) == ("locked memory", "bad")
    assert "mlx5_0" in found.seen
    assert "ulimit -l unlimited" in found.change


def test_locked_memory_without_rdma(tmp_path):
    assert memlock(tmp_path).level == "ok"


def test_a_small_dev_shm(tmp_path):
    folder = tmp_path / "dev" / "shm"
    folder.mkdir(parents=True)
    wrap = unshared("--mount")
    # Shown with this /dev: a file system of 64 MiB.
    script = f'mount -t tmpfs -o size=64m none {folder} && exec "$@"'
    program = (
        "from vllm_nixl._cli.doctor import findings, system; "
        f"(f,) = system.check_shm(findings.Machine(dev={str(tmp_path)!r}"
        " + '/dev')); print(f.level, f.seen, f.change, sep=chr(10))"
    )
    done = subprocess.run(
        [*wrap, "sh", "-c", script, "sh", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=cli.environment(),
        check=False,
    )
    if "mount" in done.stderr:
        pytest.skip(f"no tmpfs here: {done.stderr.strip()}")
    level, seen, change = done.stdout.splitlines()
    assert level == "warning"
    assert seen == "64.0 MiB, 64.0 MiB free"
    assert "--shm-size" in change


def test_no_dev_shm(tmp_path):
    found = only(system.check_shm(machine(tmp_path)))
    assert found.level == "warning"
    assert "No such file" in found.seen


# -- Packages ----------------------------------------------------------------


def wheel(folder, name, version="1.5.1", module=None):
    put(
        folder,
        f"{name.replace('-', '_')}-{version}.dist-info/METADATA",
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
    )
    if module is not None:
        package = name.replace("-", "_")
        put(folder, f"{package}/__init__.py", module)
        put(folder, f".{package}.mesonpy.libs/libnixl_capi.so")


def with_site(tmp_path, *, real=False):
    """The machine whose Python looks for packages in tmp_path/site."""
    site = tmp_path / "site"
    return machine(tmp_path, path=[str(site), *(sys.path if real else [])])


@pytest.mark.parametrize("base", ["nixl", "libucx"])
def test_both_cuda_variants(tmp_path, base):
    for suffix in ("cu12", "cu13"):
        wheel(tmp_path / "site", f"{base}-{suffix}")
    found = only(packages.check_cuda_variants(with_site(tmp_path)))
    assert found.check == "CUDA variants"
    assert found.level == {"nixl": "warning", "libucx": "bad"}[base]
    assert f"{base}-cu12 and {base}-cu13" in found.seen
    assert "pip uninstall" in found.change


def test_the_variant_of_torch_is_kept(tmp_path):
    for suffix in ("cu12", "cu13"):
        wheel(tmp_path / "site", f"nixl-{suffix}")
    put(tmp_path / "site", "torch/version.py", "cuda: Opt[str] = '13.0'\n")
    found = only(packages.check_cuda_variants(with_site(tmp_path)))
    assert "uninstall -y nixl-cu12" in found.change
    assert "reinstall nixl-cu13" in found.change


def test_a_wheel_for_another_cuda_than_torch(tmp_path):
    wheel(tmp_path / "site", "nixl-cu13")
    put(tmp_path / "site", "torch/version.py", "cuda: Opt[str] = '12.8'\n")
    found = only(packages.check_cuda_variants(with_site(tmp_path)))
    assert found.level == "warning"
    assert "CUDA 12" in found.seen


def test_nixl_without_its_library_package(tmp_path):
    wheel(tmp_path / "site", "nixl")
    found = only(packages.check_nixl_wheel(with_site(tmp_path)))
    assert found.level == "bad"
    assert "pip install nixl-cu12" in found.change


def test_a_nixl_wheel_whose_library_is_missing(tmp_path):
    wheel(tmp_path / "site", "nixl-cu12")
    found = only(packages.check_nixl_wheel(with_site(tmp_path)))
    assert (found.check, found.level) == ("NIXL wheel", "bad")
    assert "libnixl_capi.so" in found.seen
    assert "--force-reinstall nixl-cu12==1.5.1" in found.change


def test_a_nixl_wheel_that_cannot_be_imported(tmp_path):
    module = "raise ImportError('libcuda.so.1: cannot open shared object')\n"
    wheel(tmp_path / "site", "nixl-cu12", module=module)
    found = only(packages.check_nixl_wheel(with_site(tmp_path, real=True)))
    assert found.level == "bad"
    assert "libcuda.so.1" in found.seen
    assert "CUDA driver" in found.cause


def test_a_nixl_wheel_that_kills_its_process(tmp_path):
    module = "import os\nos.abort()\n"
    wheel(tmp_path / "site", "nixl-cu12", module=module)
    found = only(packages.check_nixl_wheel(with_site(tmp_path, real=True)))
    assert found.level == "bad"
    assert "SIGABRT" in found.seen


def test_a_nixl_wheel_that_works(tmp_path):
    wheel(tmp_path / "site", "nixl-cu12", module="")
    found = only(packages.check_nixl_wheel(with_site(tmp_path, real=True)))
    assert found.level == "ok"


def test_features_of_the_build(tmp_path, monkeypatch):
    made = machine(tmp_path)
    all_there = dict.fromkeys(vllm_nixl.features, True)
    monkeypatch.setattr(packages, "features", all_there)
    assert only(packages.check_features(made)).level == "ok"
    monkeypatch.setattr(packages, "features", {**all_there, "tls": False})
    found = only(packages.check_features(made))
    assert (found.check, found.level) == ("feature tls", "warning")
    assert "-Dside_channel_tls=enabled" in found.change


def test_every_feature_has_its_build_option():
    options = (ROOT / "meson.options").read_text()
    for name in vllm_nixl.features:
        assert f"'{packages._BUILD_OPTIONS[name]}'" in options


def test_libcurl_that_is_missing(tmp_path, monkeypatch):
    if not vllm_nixl.features["http"]:
        pytest.skip("this build has no HTTP")
    # A file with that name that is not a library comes first.
    put(tmp_path, "libcurl.so.4", "no library")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
    found = only(packages.check_curl(machine(tmp_path)))
    assert (found.check, found.level) == ("libcurl", "warning")
    assert "apt-get install libcurl4" in found.change


def test_a_folder_of_plugins_that_is_missing(tmp_path):
    env = {"NIXL_PLUGIN_DIR": str(tmp_path / "missing")}
    found = only(packages.check_named_libraries(machine(tmp_path, env)))
    assert found.level == "bad"


# -- Ports -------------------------------------------------------------------


def test_a_port_in_use_names_the_process(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        env = {"VLLM_NIXL_SIDE_CHANNEL_PORT": str(port)}
        found = ports.check_ports(machine(tmp_path, env, proc=Path("/proc")))
    (finding,) = [f for f in found if f.check == f"port {port}"]
    assert finding.level == "warning"
    assert f"process {os.getpid()} (" in finding.seen
    assert f"doctor localhost:{port}" in finding.change


def test_a_port_of_ipv6_in_use(tmp_path):
    try:
        listener = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError as error:
        pytest.skip(f"no IPv6: {error}")
    with listener:
        port = listener.getsockname()[1]
        env = {"VLLM_NIXL_SIDE_CHANNEL_PORT": str(port)}
        found = ports.check_ports(machine(tmp_path, env, proc=Path("/proc")))
    assert found[0].level == "warning"


def test_the_port_of_telemetry(tmp_path):
    env = {
        "NIXL_TELEMETRY_ENABLE": "y",
        "NIXL_TELEMETRY_PROMETHEUS_PORT": "19999",
    }
    found = ports.check_ports(machine(tmp_path, env))
    assert [f.check for f in found] == ["port 5600", "port 8888", "port 19999"]
    assert len(ports.check_ports(machine(tmp_path))) == 2


def test_a_port_that_needs_a_privilege(tmp_path, monkeypatch):
    made = machine(tmp_path, {"VLLM_NIXL_SIDE_CHANNEL_PORT": "80"})
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert only(ports.check_port_range(made)).level == "bad"
    put(made.proc, "sys/net/ipv4/ip_unprivileged_port_start", "0\n")
    assert ports.check_port_range(made) == []


# -- Engines and routes ------------------------------------------------------


def test_the_engines(tmp_path):
    found = {f.check: f for f in routes.check_engines(machine(tmp_path))}
    assert found["engine native"].level == "ok"
    assert "SHM, UCX" in found["engine native"].seen


def test_the_stock_library_is_missing(tmp_path, monkeypatch):
    if importlib.util.find_spec("nixl") is not None:
        pytest.skip("stock NIXL is installed")
    monkeypatch.delenv("VLLM_NIXL_LIBRARY", raising=False)
    found = {f.check: f for f in routes.check_engines(machine(tmp_path))}
    assert found["engine nixl"].level == "ok"
    made = machine(tmp_path, {"VLLM_NIXL_ENGINE": "nixl"})
    found = {f.check: f for f in routes.check_engines(made)}
    assert found["engine nixl"].level == "bad"
    assert "unset VLLM_NIXL_ENGINE" in found["engine nixl"].change


def test_a_stock_library_that_is_broken(tmp_path, monkeypatch):
    broken = put(tmp_path, "libnixl_capi.so", "no library")
    monkeypatch.setenv("VLLM_NIXL_LIBRARY", str(broken))
    found = {f.check: f for f in routes.check_engines(machine(tmp_path))}
    assert found["engine nixl"].level == "warning"
    assert str(broken) in found["engine nixl"].seen


def test_shm_between_two_processes(tmp_path):
    found = only(routes.check_same_host(machine(tmp_path)))
    assert (found.check, found.level) == ("SHM", "ok")
    assert "verified" in found.seen


def test_shm_that_is_switched_off(tmp_path):
    made = machine(tmp_path, {"VLLM_NIXL_SAME_HOST": "0"})
    found = only(routes.check_same_host(made))
    assert found.level == "warning"
    assert found.change == "unset VLLM_NIXL_SAME_HOST"


def test_ucx_that_is_switched_off(tmp_path):
    made = machine(tmp_path, {"VLLM_NIXL_UCX_LIBRARY": "none"})
    assert only(routes.check_ucx(made)).level == "warning"


def test_no_libucp(tmp_path, monkeypatch):
    broken = put(tmp_path, "libucp.so", "no library")
    monkeypatch.setenv("VLLM_NIXL_UCX_LIBRARY", str(broken))
    found = only(routes.check_ucx(machine(tmp_path)))
    assert (found.check, found.level) == ("UCX", "warning")
    assert str(broken) in found.cause
    assert "pip install libucx-cu12" in found.change


@pytest.fixture
def with_ucx(monkeypatch):
    path = ucx.any_library()
    if path is None:
        pytest.skip("no wheel with UCX is installed")
    monkeypatch.setenv("VLLM_NIXL_UCX_LIBRARY", path)
    return path


def test_ucx_and_the_transports_that_it_uses(tmp_path, with_ucx):
    found = {f.check: f for f in routes.check_ucx(machine(tmp_path))}
    assert with_ucx in found["UCX"].seen
    assert found["UCX transports"].level == "ok"
    assert "tcp/" in found["UCX transports"].seen


def test_ucx_names_that_ucx_does_not_know(tmp_path, with_ucx, monkeypatch):
    monkeypatch.setenv("UCX_NET_DEVICE", "eth0")
    monkeypatch.setenv("UCX_XYZZY_PLUGH", "1")
    found = {f.check: f for f in routes.check_ucx(machine(tmp_path))}
    assert found["UCX_NET_DEVICE"].level == "warning"
    assert "UCX_NET_DEVICES" in found["UCX_NET_DEVICE"].change
    assert found["UCX_XYZZY_PLUGH"].level == "warning"


def test_ucx_that_refuses_its_settings(tmp_path, with_ucx, monkeypatch):
    monkeypatch.setenv("UCX_TLS", "nonsense")
    found = [f for f in routes.check_ucx(machine(tmp_path)) if f.level != "ok"]
    assert [f.level for f in found] == ["bad"]
    assert found[0].cause
