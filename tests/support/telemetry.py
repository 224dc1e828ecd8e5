"""A scene with two agents whose telemetry is exported, ours or stock's."""

import subprocess
import sys
import textwrap

from support.deadline import PATIENCE, or_kill
from support.peer import child_environment

# Variables that a program must not inherit.
CLEAN = {
    f"NIXL_TELEMETRY_{name}": None
    for name in (
        "BUFFER_SIZE",
        "DIR",
        "ENABLE",
        "ENABLED_METRICS",
        "EXPORTER",
        "HISTOGRAM_BUCKETS_US",
        "MP_STALE_TTL",
        "MULTIPROC_DIR",
        "PROMETHEUS_LOCAL",
        "PROMETHEUS_PORT",
        "RANK_ENV",
        "RUN_INTERVAL",
    )
}
CLEAN["LOCAL_RANK"] = None
CLEAN["NIXL_LOG_LEVEL"] = "WARN"  # stock writes more to standard output

# Both sides poll, since stock has no other way.  The addresses are those of a
# bytearray, since stock's Python may lack numpy.
SCENE = """
import ctypes, gc, os, sys, time, urllib.request
if MODULE == "nixl":
    from nixl._api import nixl_agent, nixl_agent_config
else:
    from vllm_nixl import nixl_agent, nixl_agent_config

SIZE = 1 << 20

def scrape(accept="text/plain"):
    port = int(os.environ["NIXL_TELEMETRY_PROMETHEUS_PORT"], 0)
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/metrics", headers={"Accept": accept}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()

def make(name, size=SIZE, **config):
    agent = nixl_agent(name, nixl_agent_config(backends=["UCX"], **config))
    agent.memory = (ctypes.c_char * size)()
    agent.address = ctypes.addressof(agent.memory)
    agent.registered = agent.register_memory(
        [(agent.address, size, 0, "")], "DRAM"
    )
    return agent

def rows(agent, sizes):
    at = agent.address
    made = []
    for size in sizes:
        made.append((at, size, 0))
        at += 2 * size  # nothing to merge
    return agent.get_xfer_descs(made, "DRAM")

def post(agent, handle):
    state = agent.transfer(handle)
    while state == "PROC":
        time.sleep(0.001)
        state = agent.check_xfer_state(handle)
    assert state == "DONE", state

def transfer(agent, peer, operation, sizes):
    handle = agent.initialize_xfer(
        operation, rows(agent, sizes), rows(peer, sizes), peer.name, b"done"
    )
    post(agent, handle)
    return handle

def refused(call, *args):
    try:
        call(*args)
    except Exception as error:
        assert "NIXL_ERR" in str(error), error
    else:
        raise AssertionError("no error")

def play():
    '''A transfer in each direction, repeated ones, errors, less memory.'''
    alpha = make("alpha")
    beta = make("beta", SIZE // 2)
    alpha.add_remote_agent(beta.get_agent_metadata())
    read = transfer(alpha, beta, "READ", [4096])
    transfer(alpha, beta, "READ", [1000, 1000, 1000])
    transfer(alpha, beta, "WRITE", [65536])
    transfer(alpha, beta, "READ", [100000, 50000])
    post(alpha, read)
    nowhere = alpha.get_xfer_descs([(64, 10, 0)], "DRAM")
    somewhere = rows(alpha, [10])
    refused(alpha.initialize_xfer, "READ", somewhere, nowhere, "beta")
    refused(alpha.initialize_xfer, "READ", nowhere, rows(beta, [10]), "beta")
    refused(alpha.initialize_xfer, "READ", somewhere, rows(beta, [10]), "no")
    refused(alpha.initialize_xfer, "READ", somewhere, rows(beta, [11]), "beta")
    refused(alpha.prep_xfer_dlist, "", nowhere)
    refused(alpha.prep_xfer_dlist, "beta", nowhere)
    refused(alpha.make_connection, "no")
    refused(alpha.add_remote_agent, b"garbage")
    refused(alpha.get_xfer_telemetry, alpha.initialize_xfer(
        "READ", somewhere, rows(beta, [10]), "beta"
    ))
    beta.deregister_memory(beta.registered)
    return alpha, beta

def settled():
    '''A scrape with all that play() has done.  Stock writes its metrics every
    0.1 s, and our prometheus_mp by a thread, too.'''
    end = time.monotonic() + 60
    while True:
        text = scrape()
        errors = value(text, "agent_errors_total", "alpha", "not_found")
        freed = value(text, "agent_memory_deregistered_total", "beta")
        if (errors == 5 and freed) or time.monotonic() > end:
            return text
        time.sleep(0.05)

def value(text, name, *labels):
    return sum(
        float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith(name + "{")
        and all(f'"{label}"' in line for label in labels)
    )
"""


def start_scene(source, env, python=None, module="vllm_nixl"):
    """Start a program that continues the scene; its streams are pipes."""
    text = f"MODULE = {module!r}\n" + SCENE + textwrap.dedent(source)
    return subprocess.Popen(
        [python or sys.executable, "-c", text],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=child_environment({**CLEAN, **env}, python),
    )


def end_scene(process, text=None):
    """Wait for the program; returns its output and what it logged."""
    with or_kill(process, 8 * PATIENCE):
        out, err = process.communicate(text)
    assert process.returncode == 0, (
        f"exit status {process.returncode}\n{out}\n{err}"
    )
    return out, err


def run_scene(source, env, python=None, module="vllm_nixl"):
    """Run a program that continues the scene."""
    return end_scene(start_scene(source, env, python, module))


def samples(text, prefix="agent_"):
    """The samples of a scrape: (name, labels) to value."""
    from prometheus_client.parser import text_string_to_metric_families

    found = {}
    for family in text_string_to_metric_families(text):
        if family.name.startswith(prefix):
            for sample in family.samples:
                key = (sample.name, tuple(sorted(sample.labels.items())))
                assert key not in found, f"{key} occurs twice"
                found[key] = sample.value
    return found


def types(text, prefix="agent_"):
    """The metrics of a scrape, by name and type."""
    return {
        tuple(line.split()[2:])
        for line in text.splitlines()
        if line.startswith(f"# TYPE {prefix}")
    }
