"""The frame of the command line: help, exit statuses, pipes, terminals."""

import io
import json
import os
import shlex
import subprocess
import sys

import pytest
import vllm_nixl
from support import cli
from support.program import run_program
from vllm_nixl._cli.main import COMMANDS
from vllm_nixl._cli.output import Output

pytestmark = pytest.mark.beyond_stock


def test_help_lists_all_commands():
    done = cli.run("--help")
    assert done.returncode == 0
    for name, text in COMMANDS.items():
        assert f"  {name}" in done.stdout
        assert text in done.stdout


def test_version():
    done = cli.run("--version")
    assert (done.returncode, done.stdout) == (0, f"{vllm_nixl.__version__}\n")


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("fetch",)])
def test_wrong_arguments_have_status_2(arguments):
    done = cli.run(*arguments)
    assert done.returncode == 2
    assert "usage: vllm-nixl" in done.stderr


def test_an_error_is_one_line_with_status_3(tmp_path):
    done = cli.run("inspect", tmp_path / "missing")
    assert done.returncode == 3
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("vllm-nixl: ")


def test_an_error_with_json_is_an_object():
    done = cli.run("fetch", "--json", "127.0.0.1:1")
    assert done.returncode == 3
    found = json.loads(done.stdout)
    assert "Connection refused" in found["error"]
    assert found["type"] == "nixlBackendError"


def test_a_reader_that_leaves_causes_no_message():
    command = shlex.join([*cli.COMMAND, "info"]) + " | head -n 1"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        env=cli.environment(),
        timeout=120,
        check=False,
    )
    assert done.returncode == 0
    assert done.stdout.startswith("vllm_nixl ")
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_ctrl_c_has_status_130():
    source = """
        import os, signal, threading
        from vllm_nixl._cli import main, fetch

        # Shells start background jobs with SIGINT ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)

        def wait(*arguments, **options):
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(60)

        fetch.channel.make = wait
        print(main.main(["fetch", "127.0.0.1:1"]))
    """
    assert run_program(source).stdout == "130\n"


def test_a_terminal_gets_colours_if_rich_is_there():
    pytest.importorskip("rich", reason="rich is not installed")
    status, output = cli.run_on_terminal("info")
    assert status == 0
    assert "\x1b[1menvironment\x1b[0m" in output
    # Texts are shown as they are, not as markup or emoji.
    assert "libucp" in output


def test_no_color_is_honoured():
    pytest.importorskip("rich", reason="rich is not installed")
    _, output = cli.run_on_terminal("doctor", "127.0.0.1:1")
    assert "\x1b[1;31m" in output
    _, output = cli.run_on_terminal(
        "doctor", "127.0.0.1:1", env={"NO_COLOR": "1"}
    )
    assert "refused" in output
    assert "\x1b[1;31m" not in output


def test_a_terminal_without_rich_gets_plain_text(tmp_path):
    (tmp_path / "rich.py").write_text("raise ImportError('hidden')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    status, output = cli.run_on_terminal("info", env={"PYTHONPATH": path})
    assert status == 0
    assert "\x1b" not in output
    assert "libucp" in output


def test_a_pipe_gets_plain_text_and_whole_lines():
    done = cli.run("info")
    assert "\x1b" not in done.stdout
    assert any(
        line.startswith("vllm_nixl ") and line.endswith(".so")
        for line in done.stdout.splitlines()
    )


def test_text_with_brackets_and_colons_is_written_as_it_is(capsys):
    pytest.importorskip("rich", reason="rich is not installed")
    from rich.console import Console

    out = Output(False)
    out.console = Console(file=sys.stdout, emoji=False, markup=False)
    out.line("[bold] :smile: [/]")
    out.fields([("[a]", ":key: [b]")])
    shown = capsys.readouterr().out
    assert shown == "[bold] :smile: [/]\n[a]  :key: [b]\n"


@pytest.mark.parametrize(
    ("columns", "heading"),
    [(80, ["first heading  second"]), (20, ["first", "heading  second"])],
)
def test_a_table_wraps_headings_rather_than_cells(columns, heading):
    console = pytest.importorskip(
        "rich.console", reason="rich is not installed"
    )
    out = Output(as_json=False)
    text = io.StringIO()
    out.console = console.Console(width=columns, file=text)
    out.table(["first heading", "second"], [["1 MiB", "a word"]] * 2)
    lines = [line.strip() for line in text.getvalue().splitlines()]
    assert lines[1 : 1 + len(heading)] == heading
    assert lines.count(lines[-2]) == 2
    assert lines[-2].split("  ")[0].strip() == "1 MiB"
    assert lines[-2].endswith("a word")


def test_a_table_fits_if_words_of_headings_and_cells_do():
    console = pytest.importorskip(
        "rich.console", reason="rich is not installed"
    )
    out = Output(as_json=False)
    table = ["one of four words", "b"], [["1", "cell"]]
    assert out.fits(*table)  # a pipe has room for everything
    for width, fits in ((14, True), (13, False)):
        out.console = console.Console(width=width, file=io.StringIO())
        assert out.fits(*table) is fits


def test_the_package_does_not_import_the_command_line():
    source = """
        import sys
        import vllm_nixl
        vllm_nixl.NixlAgent("a").close()
        print([name for name in sys.modules if "_cli" in name])
    """
    assert run_program(source).stdout == "[]\n"
