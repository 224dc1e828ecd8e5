"""The pages of docs/: every block of code is run, or checked in another way.

A comment before a block says what it is:

    <!-- prints -->               what the Python block before it prints
    <!-- PATH: part -->           the parts of a page make the file PATH
    <!-- PATH: more -->           to be added at its end
    <!-- program 1 -->            a command; the next program starts when this
                                  one has printed its first line
    <!-- program 2 with more -->  with the code of the `more` blocks
    <!-- varies -->               of what its commands print, words with digits
                                  and paths are not compared
    <!-- outline -->              only the first words of the lines at the
                                  margin are compared
    <!-- server: NAME -->         a command that runs while others ask it
    <!-- varies, at: NAME -->     those others
    <!-- usage -->                lines of a command and what it does
    <!-- provoked: NAME -->       test_troubleshooting.py provokes it
    <!-- compared: PATH -->       that test compares it with the real thing
    <!-- from: PATH -->           a message of that source file
    <!-- with: two agents -->     code of two programs: PREAMBLES is run before
                                  it, and hosts and ports are replaced
    <!-- not run: REASON -->      its form is checked only

`status 1` in a comment is the exit status of the commands, if not 0.  `needs:
torch, numpy` at its end names modules without which the block is skipped.  A
block without a comment is run.
"""

import ast
import contextlib
import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.certificates import make_certificates
from support.deadline import PATIENCE, or_kill
from support.ports import reserve_port
from vllm_nixl._cli import main

pytest.importorskip("numpy", reason="programs in the pages use numpy")

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PORT = "18000"

# Pages with pictures, whose blocks have no language.
PICTURES = {
    "architecture.md",
    "c.md",  # scripts/check.sh library follows it
    "engines.md",
    "integration.md",
    "metadata_listener.md",
    "packaging.md",
    "performance.md",
    "side_channel.md",
    "wire.md",
}
# Pages whose commands a check follows from the first to the last: that check.
FOLLOWED = {"c.md": "scripts/c_checks.sh"}
# What may follow these words in a comment is free.
TEXT_COMMENTS = (
    "prints",
    "usage",
    "provoked: ",
    "from: ",
    "compared: ",
    "not run: ",
)
# A mistake on a page, which `vllm-nixl doctor` finds.
MISSPELT = "VLLM_NIXL_ENGIN"
SEPARATOR = "-- the next block --"

# Options of --kv-transfer-config that docs/integration.md and examples/vllm_pd
# use.
KV_OPTIONS = {
    "kv_buffer_device",
    "kv_connector",
    "kv_load_failure_policy",
    "kv_role",
}


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load(ROOT / "scripts" / "readme.py")
PAGES = {
    path.relative_to(DOCS).as_posix(): path.read_text()
    for path in sorted(DOCS.rglob("*.md"))
}
BLOCKS = [
    (page, block)
    for page, text in PAGES.items()
    if page not in FOLLOWED
    for block in tool.blocks(text)
]


def blocks_in(*languages, which=lambda page, block: True):
    """Parameters: the blocks in these languages for which it holds."""
    return pytest.mark.parametrize(
        ("page", "block"),
        [
            pytest.param(page, block, id=f"{page}:{block.line}")
            for page, block in BLOCKS
            if block.language in languages and which(page, block)
        ],
    )


def is_run(page, block):
    return (
        "not run: " not in block.comment
        and not block.comment.endswith((": part", ": more"))
        and "needs: nothing" not in block.comment
    )


def needs(block):
    found = re.search(r"needs: ([\w, ]+)", block.comment)
    return [] if found is None else found[1].split(", ")


def missing(names):
    return [name for name in names if importlib.util.find_spec(name) is None]


def environment(names):
    """That of a reader, without UCX where the block needs none, because
    creating an agent takes longer with it."""
    found = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("VLLM_NIXL_", "NIXL_", "UCX_"))
    }
    if "libucx" not in names:
        found["VLLM_NIXL_UCX_LIBRARY"] = "none"
    found["VLLM_NIXL_LOG_LEVEL"] = "error"
    # So that `python` is this one.
    found["PATH"] = f"{Path(sys.executable).parent}:{found['PATH']}"
    return found


# -- Coverage ----------------------------------------------------------------

CHECKED = {"c", "console", "dockerfile", "ini", "python", "text", "yaml"}


@blocks_in(*{block.language for _, block in BLOCKS})
def test_every_block_is_checked(page, block):
    if page in PICTURES and block.language == "":
        return
    assert block.language in {*CHECKED, ""}, "no test checks this language"
    if block.language in {"text", ""}:
        assert block.comment.startswith(TEXT_COMMENTS)
    if "not run" in block.comment:
        reason = block.comment.partition("not run: ")[2]
        assert len(reason) > 8, "it must say why"
    if block.comment.startswith("compared: "):
        test = ROOT / block.comment.removeprefix("compared: ")
        assert f'"{page}"' in test.read_text(), "it must read this page"
    for path in re.findall(r"tests/\S+\.py", block.comment):
        assert (ROOT / path).exists()
    for there, here in ("server: ", "at: "), ("at: ", "server: "):
        for name in re.findall(rf"\b{there}(\w+)", block.comment):
            assert re.search(rf"<!-- .*\b{here}{name}\b", PAGES[page])


def test_no_page_has_an_open_block():
    for page, text in PAGES.items():
        fences = re.findall(r"^```", text, re.MULTILINE)
        assert len(fences) == 2 * len(tool.blocks(text)), page


def test_checks_that_follow_a_page_name_it():
    for page, check in FOLLOWED.items():
        if page in PAGES:
            assert f"docs/{page}" in (ROOT / check).read_text()


def test_pages_with_pictures_exist():
    assert PAGES.keys() >= PICTURES


# -- Python ------------------------------------------------------------------

# What a page leaves out in front of a block with lines of two programs.
PREAMBLES = {
    "two agents": """
import numpy as np
import vllm_nixl
from vllm_nixl import *

class Both:
    '''prefill for the calls that offer something, decode for the others.'''

    OFFERS = {"publish", "start_side_channel_listener", "get_agent_metadata"}

    def __init__(self):
        self.prefill, self.decode = NixlAgent("prefill"), NixlAgent("decode")
        self.memory = [shared_buffer(65536) for _ in range(2)]
        for one, memory in zip((self.prefill, self.decode), self.memory):
            one.register_memory([(memory.address, 65536, 0, "")], "DRAM")

    def __getattr__(self, name):
        one = self.prefill if name in self.OFFERS else self.decode
        return getattr(one, name)

    def close(self):
        self.prefill.close()
        self.decode.close()

if "agent" in globals():
    agent.close()
agent = Both()
rows = blocks = np.array([(agent.memory[0].address, 4096, 0)])
local = agent.prep_xfer_dlist("", [(agent.memory[1].address, 4096, 0)], "DRAM")
indices = [0]
secret = "correct horse battery staple"
channel = TcpSideChannel()
first = second = default = renewed = blob = other = b"metadata"
host = "localhost"
"""
}
# Where the readers' hosts and ports are here; each port once.
HERE = {"prefill-host": "localhost", "10.0.0.1": "127.0.0.1"}
PORTS = re.compile(r"\b(18000|8888|5600)\b")


def runnable(block):
    """The code of a block, with what the page leaves out."""
    match = re.search(r"with: ([\w ]+)", block.comment)
    if match is None:
        return block.code
    code = block.code
    for there, here in HERE.items():
        code = code.replace(there, here)
    ports = {}
    code = PORTS.sub(
        lambda port: ports.setdefault(port[1], str(reserve_port())), code
    )
    return PREAMBLES[match[1]] + code


@blocks_in("python")
def test_python_is_valid(page, block):
    compile(block.code, page, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def runs(page):
    """The Python blocks of a page that run, each with what it prints."""
    found = []
    for block in tool.blocks(PAGES[page]):
        if block.language == "python" and is_run(page, block):
            found.append((block, None))
        elif block.comment == "prints":
            found[-1] = (found[-1][0], block.code)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if runs(page) and page not in FOLLOWED]
)
def test_python_runs_and_prints_what_the_page_says(page, tmp_path):
    """The blocks of a page run one after the other, in one process."""
    all_blocks = runs(page)
    wanted = sorted({name for block, _ in all_blocks for name in needs(block)})
    lacking = missing(wanted)
    blocks = [
        (block, printed)
        for block, printed in all_blocks
        if not missing(needs(block))
    ]
    program = f"\nprint({SEPARATOR!r})\n".join(
        runnable(block) for block, _ in blocks
    )
    if "server.pem" in program:
        make_certificates(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment(wanted),
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE + 60,
    )
    assert done.returncode == 0, done.stderr
    outputs = done.stdout.split(f"{SEPARATOR}\n")[: len(blocks)]
    for (block, printed), output in zip(blocks, outputs, strict=True):
        if printed is not None:
            assert output == printed, f"line {block.line}"
    if lacking:
        pytest.skip(f"blocks that need {', '.join(lacking)} did not run")


# -- Programs in parts ------------------------------------------------------


def parts(page, kind):
    """{path: code} of the blocks of this kind."""
    found = {}
    for block in tool.blocks(PAGES[page]):
        path, _, what = block.comment.partition(": ")
        if what == kind:
            found[path] = found.get(path, "") + block.code
    return found


@pytest.mark.parametrize("page", [p for p in PAGES if parts(p, "part")])
def test_parts_of_a_program_make_the_example(page):
    for path, code in parts(page, "part").items():
        assert code == (ROOT / path).read_text(), path


def programs(page):
    """[(number, with more, needs, command, expected lines), ...]"""
    found = []
    for block in tool.blocks(PAGES[page]):
        match = re.match(r"program (\d)( with more)?", block.comment)
        if match:
            ((command, output),) = tool.COMMAND.findall(block.code)
            found.append(
                (
                    int(match[1]),
                    bool(match[2]),
                    needs(block),
                    command,
                    output.splitlines(),
                )
            )
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "more"),
    [
        (page, more)
        for page in PAGES
        for more in sorted({step[1] for step in programs(page)})
    ],
)
def test_programs_print_what_the_page_says(page, more):
    """The programs are those of the page, or else of the tutorial."""
    steps = programs(page)
    wanted = sorted({name for step in steps for name in step[2]})
    if missing(wanted):
        pytest.skip(f"not installed: {', '.join(missing(wanted))}")
    # The program "with more" replaces the one with the same number.
    chosen = {step[0]: step for step in steps if not step[1]}
    if more:
        chosen |= {step[0]: step for step in steps if step[1]}
    files = parts(page, "part") or parts("tutorial.md", "part")
    port = str(reserve_port())
    texts = {}
    for path, code in files.items():
        if more:
            code += parts(page, "more").get(path, "")
        assert PORT in code
        texts[Path(path).name] = code.replace(PORT, port)
    tool.run_programs(
        texts,
        [(chosen[number][3], chosen[number][4]) for number in sorted(chosen)],
        environment(wanted),
    )


# -- Commands ----------------------------------------------------------------


def command_lines(block):
    """Commands and outputs; lines that end in a backslash are joined."""
    joined = block.code.replace("\\\n", "")
    found = tool.COMMAND.findall(joined)
    assert found, "a console block has commands after '$ '"
    return found


@blocks_in("console")
def test_commands_are_valid(page, block):
    for command, _ in command_lines(block):
        subprocess.run(["bash", "-n", "-c", command], check=True)


OWN_COMMAND = re.compile(r"\bvllm-nixl ((?!-)[^|&;<>()\"\n]*)")


def is_usage(page, block):
    return block.language == "console" or block.comment == "usage"


@blocks_in("console", "", which=is_usage)
def test_own_commands_have_these_options(page, block):
    lines = block.code.splitlines()
    if block.language == "console":
        lines = [command for command, _ in command_lines(block)]
    for line in lines:
        found = OWN_COMMAND.findall(line.partition("  ")[0])
        assert found or block.comment != "usage"
        for text in found:
            name, *arguments = shlex.split(text)
            main.command_parser(name).parse_args(arguments)


def is_command(page, block):
    others = ("program", "server: ")
    return is_run(page, block) and not block.comment.startswith(others)


def compared(block, output):
    """The lines of an output, as far as they are compared."""
    lines = output.splitlines(keepends=True)
    if block.comment.startswith("outline"):
        lines = [line.split()[0] for line in lines if line[:1].strip()]
    if block.comment.startswith(("outline", "varies", "server: ")):
        return [
            re.sub(r"(?<!\S)(/\S+|\S*\d\S*)", "#", " ".join(line.split()))
            for line in lines
        ]
    return lines


@contextlib.contextmanager
def with_server(page, block, folder):
    """The block, while the server that its commands ask is running."""
    name = re.search(r"\bat: (\w+)", block.comment)
    if name is None:
        yield block
        return
    port = str(reserve_port())

    def here(block):
        assert PORT in block.code
        return block._replace(code=block.code.replace(PORT, port))

    (server,) = (
        here(other)
        for other in tool.blocks(PAGES[page])
        if re.match(rf"server: {name[1]}\b", other.comment)
    )
    ((command, output),) = command_lines(server)
    program = tool.Program(command, [], folder, environment(needs(server)))
    try:
        lines = output.splitlines()
        with or_kill(program.process):
            found = [program.process.stdout.readline() for _ in lines]
        assert compared(server, "".join(found)) == compared(server, output)
        yield here(block)
    finally:
        program.end(signal.SIGINT)
    assert program.process.returncode == 0


@pytest.mark.slow
@blocks_in("console", which=is_command)
def test_commands_print_what_the_page_says(page, block, tmp_path):
    wanted = needs(block)
    if missing(wanted):
        pytest.skip(f"not installed: {', '.join(missing(wanted))}")
    status = re.search(r"\bstatus (\d)", block.comment)
    with with_server(page, block, tmp_path) as asking:
        for command, output in command_lines(asking):
            done = subprocess.run(
                ["bash", "-c", command],
                cwd=tmp_path,
                env={**environment(wanted), "HOME": str(tmp_path)},
                capture_output=True,
                text=True,
                timeout=2 * PATIENCE + 60,
            )
            found = compared(block, done.stdout)
            assert found == compared(block, output), done.stderr
            assert done.returncode == int(status[1] if status else 0)


def test_another_output_is_noticed():
    text = "13 ok\n  /lib/x.so, 7 rows\n"
    for comment, other, same in (
        ("", "14 ok", False),
        ("varies", "14 ok", True),
        ("varies", "13 bad", False),
        ("outline", "14 bad", True),
        ("outline", "ok", False),
    ):
        block = tool.Block(comment, "console", "", 1)
        changed = text.replace("13 ok", other)
        assert (compared(block, changed) == compared(block, text)) == same
    block = tool.Block("varies", "console", "", 1)
    assert compared(block, text) != compared(block, text.replace("rows", "r"))


def kv_configs(text):
    """The values of --kv-transfer-config in commands and manifests."""
    return re.findall(r"--kv-transfer-config\s+(?:- )?'([^']*)'", text)


@pytest.mark.parametrize("page", [p for p in PAGES if kv_configs(PAGES[p])])
def test_configurations_of_vllm_are_valid(page):
    for text in kv_configs(PAGES[page]):
        config = json.loads(text)
        assert config.keys() <= KV_OPTIONS
        assert config["kv_connector"] == "NixlConnector"
        assert config["kv_role"] in {"kv_producer", "kv_consumer", "kv_both"}


# -- Manifests, units, images ------------------------------------------------


def containers(manifest):
    spec = manifest["spec"]
    spec = spec.get("template", {}).get("spec", spec)
    return spec.get("containers", [])


@blocks_in("yaml")
def test_manifests_are_valid(page, block):
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    for manifest in yaml.safe_load_all(block.code):
        assert {"apiVersion", "kind", "metadata"} <= manifest.keys()
        if manifest["kind"] in {"Secret", "NetworkPolicy"}:
            continue
        assert containers(manifest)
        for container in containers(manifest):
            assert container["image"]
            for variable in container.get("env", []):
                assert isinstance(variable.get("value", ""), str)
                assert ("value" in variable) != ("valueFrom" in variable)
            for argument in container["command"]:
                assert isinstance(argument, str)
                if argument.startswith("{"):
                    assert json.loads(argument).keys() <= KV_OPTIONS
        if manifest["kind"] == "Deployment":
            spec = manifest["spec"]
            labels = spec["template"]["metadata"]["labels"]
            assert spec["selector"]["matchLabels"].items() <= labels.items()


@blocks_in("ini")
def test_units_are_valid(page, block, tmp_path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "kv.service"
    # The programs of the unit need not exist here.
    unit.write_text(
        re.sub(
            r"^ExecStart=\S+", "ExecStart=/bin/true", block.code, flags=re.M
        )
    )
    done = subprocess.run(
        ["systemd-analyze", "verify", unit],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    complaints = [
        line for line in done.stderr.splitlines() if "kv.service" in line
    ]
    assert not complaints


INSTRUCTIONS = {"COPY", "CMD", "ENV", "FROM", "RUN", "USER", "WORKDIR"}


@blocks_in("dockerfile")
def test_images_are_valid(page, block):
    stages = []
    for line in block.code.replace("\\\n", "").splitlines():
        if not line.strip():
            continue
        instruction, _, rest = line.partition(" ")
        assert instruction in INSTRUCTIONS
        if instruction == "RUN":
            subprocess.run(["bash", "-n", "-c", rest], check=True)
        elif instruction == "FROM":
            stages.append(rest.partition(" AS ")[2])
        for stage in re.findall(r"--from=(\S+)", rest):
            assert stage in stages


def test_c_is_valid():
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler is installed")
    flags = ("-fsyntax-only", "-Wall", "-Wextra", "-Werror")
    for page, block in BLOCKS:
        if block.language == "c" and is_run(page, block):
            done = subprocess.run(
                [compiler, *flags, f"-I{ROOT}/include", "-xc", "-"],
                input=block.code,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 0, (page, block.line, done.stderr)


# -- Messages ----------------------------------------------------------------

LITERAL = r'f?"(?:[^"\\\n]|\\.)*"'
JOINED = re.compile(rf"{LITERAL}(?:\s*(?:PRI\w+|[A-Z_]+)?\s*{LITERAL})*")
VARIABLE = re.compile(r"%[-+.*#0-9]*(?:hh|ll|l|h|z)?[a-z]?|\{[^{}]*\}")


def messages(path):
    """The texts in a source file, with \\0 for what varies."""
    for match in JOINED.finditer((ROOT / path).read_text()):
        pieces = re.findall(rf"({LITERAL})|(PRI\w+|[A-Z_]+)", match[0])
        text = ""
        for literal, macro in pieces:
            if literal:
                text += literal[literal.index('"') + 1 : -1]
            elif not macro.startswith("PRI"):
                text += "\0"
        yield VARIABLE.sub("\0", text.replace('\\"', '"'))


def has_message(path, text, least=20):
    """Shorter messages than that match too much."""
    for message in messages(path):
        pattern = re.escape(message).replace("\0", ".+?")
        if len(message) > least and re.fullmatch(pattern, text):
            return True
    return False


def is_from_source(page, block):
    return block.comment.startswith("from: ")


@blocks_in("text", which=is_from_source)
def test_messages_are_those_of_the_sources(page, block):
    """Of a finding of `vllm-nixl doctor`, the last column."""
    path = block.comment.removeprefix("from: ")
    assert has_message(path, re.split(r"\s{2,}", block.code.rstrip("\n"))[-1])


LOG_LINE = re.compile(
    r"^\d{4}-\d\d-\d\d [\d:.]+ [A-Z]+ vllm_nixl\[\d+\] ([^:]+: )?(.*)$", re.M
)


def test_lines_of_the_log_are_those_of_the_sources():
    found = LOG_LINE.findall("\n".join(PAGES.values()))
    assert found
    for _, text in found:
        assert any(has_message(path, text, 18) for path in SOURCES), text


def test_another_message_is_noticed():
    path = "src/core/peers.c"
    text = (
        "two live agents have the name 'x': the one in process 2 replaces "
        "the one in process 1, which is still running; transfers in flight "
        "to that one fail"
    )
    assert has_message(path, text)
    assert not has_message(path, text.replace("still", "yet"))


SOURCES = [
    path
    for folder in ("src", "python")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in {".c", ".h", ".py"}
]


def quotations():
    """Code of four words and more in prose: messages, or parts of them."""
    for page in "troubleshooting.md", "operations/docker.md":
        prose = tool.BLOCK.sub("", PAGES[page])
        for code in re.findall(r"`([^`\n]+)`", prose):
            words = [word for word in code.split() if word.isalpha()]
            if len(words) > 3 and not code.startswith("NIXL_ERR_"):
                yield page, code


def test_quoted_messages_are_those_of_the_sources():
    known = "\n".join(
        re.sub(r"\d+", "\0", message)
        for path in SOURCES
        for message in messages(path)
    )
    known = re.sub("\0+", "\0", known)
    found = list(quotations())
    assert len(found) > 8
    for page, code in found:
        for part in code.split("..."):
            text = re.sub(r"\d+", "\0", part.strip())
            # A name in the text of the page may be a variable in the source.
            assert text in known or text in known.replace("\0", "SHM"), (
                page,
                code,
            )


# -- Clients -----------------------------------------------------------------


def test_variables_in_commands_are_documented():
    known = PAGES["environment.md"]
    for page, text in PAGES.items():
        for name in set(re.findall(r"\bVLLM_NIXL_[A-Z_]+\b", text)):
            if not name.endswith("_") and name != MISSPELT:
                assert f"`{name}`" in known, (page, name)
