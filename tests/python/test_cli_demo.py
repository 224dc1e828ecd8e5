"""`vllm-nixl demo`: on one host, and its instances apart."""

import json
import subprocess

import pytest
from support import cli
from support.deadline import PATIENCE
from support.ports import reserve_port

pytestmark = pytest.mark.beyond_stock

SMALL = ["--layers", "2", "--blocks", "16", "--block-kib", "4"]
NO_UCX = {"VLLM_NIXL_UCX_LIBRARY": "none"}


@pytest.fixture(autouse=True)
def numpy():
    pytest.importorskip("numpy", reason="numpy is not installed")


def test_both_on_this_host():
    done = cli.run("demo", *SMALL, "--shared", env=NO_UCX)
    assert done.returncode == 0, done.stderr
    assert "bytes equal, spare blocks unchanged" in done.stdout


def test_json():
    found = cli.run_json("demo", *SMALL, env=NO_UCX)
    assert found["checked"]["bytes"] == 2 * 16 * 4096
    assert found["served"]["freed"] == 8


def test_two_instances_apart():
    """As on two hosts: decode learns the shape and the seed from prefill."""
    port = str(reserve_port())
    command = [*cli.COMMAND, "demo", "--role"]
    with subprocess.Popen(
        [*command, "prefill", *SMALL, "--seed", "9", "--port", port],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=cli.environment(NO_UCX),
        text=True,
    ) as prefill:
        decode = cli.run(
            "demo", "--role", "decode", "--port", port, env=NO_UCX
        )
        said, complained = prefill.communicate(timeout=PATIENCE)
    assert decode.returncode == 0, decode.stderr
    assert f"check        {2 * 16 * 4096:,} bytes equal" in decode.stdout
    assert prefill.returncode == 0, complained
    assert f"listens on port {port}" in complained
    assert "freed all 8 requests" in said


def test_decode_alone_reports_why_it_fails():
    done = cli.run(
        *("demo", "--role", "decode", "--port", reserve_port()),
        *("--timeout", "1"),
        env=NO_UCX,
    )
    assert done.returncode == 1
    assert "\nFAILED: NIXL_ERR_" in f"\n{done.stderr}"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--block-kib", "5"], "a multiple of 4"),
        (["--requests", "9", "--blocks", "8"], "must not exceed"),
        (["--layers", "0"], "at least 1"),
        (["--host", "x"], "--host needs --role"),
    ],
)
def test_wrong_arguments(arguments, text):
    done = cli.run("demo", *arguments)
    assert done.returncode == 2
    assert text in done.stderr


def test_help_has_the_options_of_two_hosts():
    done = cli.run("demo", "--help")
    assert done.returncode == 0
    for option in ("--role", "--host", "--port"):
        assert option in done.stdout
    assert "--events" not in done.stdout


def test_events_of_an_instance_are_json_lines():
    """What the demo reads from its own processes."""
    done = cli.run(
        *("demo", "--events", "--role", "prefill", *SMALL),
        *("--port", "0", "--timeout", "1"),
        env=NO_UCX,
    )
    assert done.returncode != 0  # nobody came
    events = [json.loads(line)["event"] for line in done.stdout.splitlines()]
    assert events[-1] == "ready"
