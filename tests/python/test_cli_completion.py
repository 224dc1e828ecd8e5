"""`vllm-nixl completion`: each shell accepts its script and uses it."""

import shutil
import subprocess

import pytest
from support import cli

pytestmark = pytest.mark.beyond_stock


@pytest.fixture(scope="module")
def scripts():
    return {
        shell: cli.run("completion", shell).stdout
        for shell in ("bash", "zsh", "fish")
    }


def shell(name):
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_syntax(scripts, tmp_path, name):
    file = tmp_path / "script"
    file.write_text(scripts[name])
    option = "--no-execute" if name == "fish" else "-n"
    done = subprocess.run(
        [shell(name), option, str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def bash_offers(script, *words):
    """What bash offers for the last word."""
    program = (
        f"{script}\nCOMP_WORDS=({' '.join(map(repr, words))})\n"
        f"COMP_CWORD={len(words) - 1}\n_vllm_nixl\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        [shell("bash"), "-c", program],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["in"], ["info", "inspect"]),
        (["serve", "--tls-"], ["--tls-certificate", "--tls-key"]),
        (["serve", "--transport", ""], ["tcp", "zmq", "http"]),
        (["completion", "z"], ["zsh"]),
        (["demo", "--role", "p"], ["prefill"]),
        (["serve", "--host", ""], []),
    ],
)
def test_bash_offers(scripts, words, offered):
    assert bash_offers(scripts["bash"], "vllm-nixl", *words) == offered


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_every_command_is_in_every_script(scripts, name):
    for command in ("info", "doctor", "serve", "fetch", "inspect", "demo"):
        assert command in scripts[name]
