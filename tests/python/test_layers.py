"""Rules for all source files: layers, public headers, locks."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src"
INCLUDE = re.compile(r'^\s*#\s*include\s+([<"])([^>"]+)[>"]', re.MULTILINE)
BARE_LOCK = re.compile(
    r"\b(pthread_(mutex|cond|rwlock|spin)_|mtx_|cnd_)", re.IGNORECASE
)

# The includes that each layer may have, by path prefix under src/.  Every
# layer
# may include itself, base/ and the public headers.
ALLOWED = {
    "base": [],
    "capi": [],
    "engine": [],
    "core": [
        "engine/counters.h",
        "engine/engine.h",
        "engine/parts/signature.h",
    ],
    "net": [],
    "side_channel": ["net/"],
    "listener": ["net/", "core/agent.h"],
    "publish": [
        "core/agent.h",
        "engine/parts/signature.h",
        "net/resolve.h",
        "side_channel/side_channel.h",
    ],
    "python": ["core/", "side_channel/", "publish/", "engine/engine.h"],
}


def sources(folder=SOURCE):
    return sorted(folder.rglob("*.[ch]"))


def includes(path):
    """[(in quotes, name), ...] for each include of a file."""
    return [
        (quote == '"', name)
        for quote, name in INCLUDE.findall(path.read_text())
    ]


def layer_of(path):
    return path.relative_to(SOURCE).parts[0]


def wrong_includes(path, layer):
    """The project headers that this layer includes but must not."""
    allowed = [layer + "/", "base/", *ALLOWED[layer]]
    return [
        name
        for ours, name in includes(path)
        if ours and not name.startswith(tuple(allowed))
    ]


def test_source_files_are_found():
    assert {layer_of(path) for path in sources()} == set(ALLOWED)


@pytest.mark.parametrize("layer", ALLOWED)
def test_includes_point_down(layer):
    wrong = {
        str(path.relative_to(ROOT)): names
        for path in sources(SOURCE / layer)
        if (names := wrong_includes(path, layer))
    }
    assert wrong == {}


def test_upward_include_is_detected(tmp_path):
    bad = tmp_path / "bad.c"
    bad.write_text('#include <stdio.h>\n#  include "core/agent.h"\n')
    assert wrong_includes(bad, "base") == ["core/agent.h"]
    assert wrong_includes(bad, "side_channel") == ["core/agent.h"]
    assert wrong_includes(bad, "python") == []
    bad.write_text('#include "engine/native/plan.h"\n')
    assert wrong_includes(bad, "core") == ["engine/native/plan.h"]


def test_own_headers_are_included_relative_to_src():
    """Otherwise the checks above would miss includes."""
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in sources()
        for ours, name in includes(path)
        if ours and not (SOURCE / name).is_file()
    ]
    assert wrong == []


def test_only_the_extension_includes_python():
    users = {
        layer_of(path)
        for path in sources()
        for _, name in includes(path)
        if name in ("Python.h", "structmember.h")
    }
    assert users == {"python"}


def test_backends_do_not_include_each_other():
    """An engine includes its own headers and the parts that engines share."""
    engines = SOURCE / "engine"
    for engine in [path for path in engines.iterdir() if path.is_dir()]:
        for path in sources(engine):
            for ours, name in includes(path):
                parts = name.split("/")
                if ours and parts[0] == "engine" and len(parts) > 2:
                    assert parts[1] in (engine.name, "parts"), (path, name)


# libcuda itself and its contexts, which UCX's threads need as well.
CUDA = {f"engine/native/cuda/{name}.h" for name in ("context", "library")}


def test_transports_are_reached_by_their_contract_only():
    """Nothing outside a transport's folder includes its headers."""
    native = SOURCE / "engine" / "native"
    folders = {path.name for path in native.iterdir() if path.is_dir()}
    assert {"process", "shm", "ucx"} <= folders
    for path in sources(SOURCE / "engine"):
        for _, name in includes(path):
            parts = name.split("/")
            if parts[:2] == ["engine", "native"] and parts[2] in folders:
                assert path.parent == native / parts[2] or (
                    path.parent == native / "ucx" and name in CUDA
                ), (path, name)


def bare_locks(path):
    """The lines that use a pthread mutex or condition variable directly."""
    return [
        number
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if BARE_LOCK.search(line)
    ]


def test_every_lock_uses_base_mutex():
    """base/mutex.h orders locks and checks the order; every lock must use
    it."""
    found = {
        str(path.relative_to(SOURCE)): lines
        for path in sources()
        if (lines := bare_locks(path))
    }
    assert set(found) == {"base/mutex.h", "base/mutex.c"}


def test_bare_lock_is_detected(tmp_path):
    bad = tmp_path / "bad.c"
    bad.write_text(
        "pthread_once(&once, make);\n"
        "static pthread_mutex_t lock;\n"
        "vnxi_mutex_lock(&lock);\n"
        "    pthread_cond_signal(&changed);\n"
        "pthread_rwlock_t other = PTHREAD_RWLOCK_INITIALIZER;\n"
    )
    assert bare_locks(bad) == [2, 4, 5]


def test_public_headers_are_installed():
    text = (SOURCE / "library" / "meson.build").read_text()
    installed = re.findall(r"include/vnx/(\w+\.h)", text)
    assert installed == [path.name for path in public_headers()]


def test_headers_have_the_version_of_the_package():
    """meson.build has the version of everything else."""
    build = (ROOT / "meson.build").read_text()
    header = (ROOT / "include" / "vnx" / "version.h").read_text()
    numbers = re.findall(
        r"VNX_VERSION_(?:MAJOR|MINOR|PATCH) (\d+)$", header, re.M
    )
    assert re.search(r"^  version: '(.*)',$", build, re.M)[1] == ".".join(
        numbers
    )


def public_headers():
    return sorted((ROOT / "include" / "vnx").glob("*.h"))


def test_public_headers_include_public_headers_only():
    for path in public_headers():
        for ours, name in includes(path):
            assert not ours, (path, name)
            assert name.startswith("vnx/") or "/" not in name, (path, name)


@pytest.mark.parametrize("path", public_headers(), ids=lambda p: p.name)
@pytest.mark.parametrize(
    ("compiler", "language"),
    [
        ("gcc", "c11"),
        ("clang", "c11"),
        ("g++", "c++17"),
        ("clang++", "c++17"),
    ],
)
def test_public_header_compiles_alone(tmp_path, path, compiler, language):
    """Without extensions of GNU.  Included twice, as in larger programs."""
    if shutil.which(compiler) is None:
        pytest.skip(f"there is no {compiler}")
    suffix = ".cc" if "++" in compiler else ".c"
    unit = tmp_path / ("unit" + suffix)
    include = f"#include <vnx/{path.name}>\n"
    unit.write_text(include + include + "int main(void);\n")
    subprocess.run(
        [
            compiler,
            f"-std={language}",
            "-Wall",
            "-Wextra",
            "-Wpedantic",
            "-Werror",
            "-fsyntax-only",
            "-I",
            str(ROOT / "include"),
            unit,
        ],
        check=True,
    )


# -- Names of operations -----------------------------------------------------

OPERATION_ROW = re.compile(r'X\("(vnx_[a-z_]+)", "([a-z_]+)"\)')


def operations():
    """{C function: Python method} of the table."""
    text = (SOURCE / "base" / "operations.h").read_text()
    return dict(OPERATION_ROW.findall(text))


def test_operations_are_public_functions():
    headers = "".join(path.read_text() for path in public_headers())
    missing = [
        name for name in operations() if not re.search(rf"\b{name}\(", headers)
    ]
    assert missing == []


def test_every_operation_has_a_python_name():
    """A C function named in an error record is in the table, so that Python
    programs see the method's name.  Others are looked up with dlsym()."""
    record = re.compile(r'(?<!dlsym\(handle, )"(vnx_[a-z_]+)"')
    named = {
        name for path in sources() for name in record.findall(path.read_text())
    }
    assert named == set(operations())


def test_error_records_below_the_extension_name_c_functions():
    methods = set(operations().values())
    wrong = [
        (path.name, name)
        for path in sources()
        if layer_of(path) != "python" and path.name != "operations.h"
        for name in re.findall(
            r'vnxi_error_\w+\(\s*&?\w+,(?: VNX_\w+,)?\s*"(\w+)"',
            path.read_text(),
        )
        if name in methods
    ]
    assert wrong == []
