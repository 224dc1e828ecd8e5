"""Check that wheels can be installed wherever their names say.

    check_wheel.py WHEEL...

Prints one line for each wheel; fails if one of them must not be published.
Needs auditwheel, which brings pyelftools.
"""

import io
import re
import subprocess
import sys
import zipfile
from fnmatch import fnmatchcase
from pathlib import Path

from elftools.elf.elffile import ELFFile

SIZE_MAX = 5 << 20
GLIBC_MAX = (2, 28)
# What manylinux promises and what we use of it; and the wheel's own.
LIBRARIES = re.compile(
    r"(libc|libdl|libm|libpthread|librt)\.so\.\d+|ld-linux-.*\.so\.\d+"
    r"|libvllm_nixl-[\d.]+\.so"
)
# Files for building C programs: a wheel is not for that.
FOR_C = {".h", ".pc", ".cmake", ".a", ".3"}
# The libraries of a wheel, and what each exports: the extension, the C library
# behind it, NIXL's C interface, and the bare loops of the benchmark.
EXPORTED = {
    "_core": "PyInit__core",
    "libvllm_nixl": r"vnxi?_\w+|VLLM_NIXL",
    "libnixl_capi": r"nixl_capi_\w+",
    "bench.bare": r"vnx_bare_\w+",
}
LICENCES = {"LICENSE", "openssl-*/LICENSE.txt", "libevent-*/LICENSE"}


def stem(name: str) -> str:
    """The name of a library without its folder and suffixes."""
    file = name.rpartition("/")[2]
    return re.sub(r"(-[\d.]+)?(\.cpython-[^.]*)?\.so$", "", file)


def check_elf(name: str, data: bytes) -> list[str]:
    elf = ELFFile(io.BytesIO(data))
    found = []
    for need in elf.get_section_by_name(".gnu.version_r").iter_versions():
        for version in need[1]:
            if version.name == "VLLM_NIXL":
                continue
            match = re.fullmatch(r"GLIBC_(\d+)\.(\d+)(\.\d+)?", version.name)
            if not match or (int(match[1]), int(match[2])) > GLIBC_MAX:
                found.append(f"needs {version.name}")
    for tag in elf.get_section_by_name(".dynamic").iter_tags("DT_NEEDED"):
        if not LIBRARIES.fullmatch(tag.needed):
            found.append(f"needs {tag.needed}")
    versions = elf.get_section_by_name(".gnu.version")
    symbols = elf.get_section_by_name(".dynsym").iter_symbols()
    exported = EXPORTED[stem(name)]
    for i, symbol in enumerate(symbols):
        # Symbols of libraries have versions (numbers); those of Python, none.
        has_version = isinstance(versions.get_symbol(i)["ndx"], int)
        if symbol["st_shndx"] != "SHN_UNDEF":
            if not re.fullmatch(exported, symbol.name):
                found.append(f"exports {symbol.name}")
        elif not has_version and not re.match("_?Py|$", symbol.name):
            found.append(f"lacks {symbol.name}")
    for name in (".symtab", ".debug_info"):
        if elf.get_section_by_name(name):
            found.append(f"has {name}")
    return found


def check_licences(wheel: zipfile.ZipFile) -> list[str]:
    found = []
    metadata = next(n for n in wheel.namelist() if n.endswith("/METADATA"))
    listed = re.findall(
        r"^License-File: (.*)$", wheel.read(metadata).decode(), re.MULTILINE
    )
    folder = metadata.removesuffix("METADATA") + "licenses/"
    for pattern in LICENCES:
        names = [name for name in listed if fnmatchcase(name, pattern)]
        if len(names) != 1 or not wheel.read(folder + names[0]).strip():
            found.append(f"has no licence {pattern}")
    return found


def check_tag(path: Path) -> list[str]:
    _, _, python, abi, platforms = path.stem.split("-")
    wanted = re.compile(
        rf"manylinux_{GLIBC_MAX[0]}_{GLIBC_MAX[1]}_(x86_64|aarch64)"
    )
    found = []
    if python != abi or not any(map(wanted.fullmatch, platforms.split("."))):
        found.append(f"is not named cp3x-cp3x-...{wanted.pattern}")
    shown = subprocess.run(
        [Path(sys.executable).with_name("auditwheel"), "show", path],
        capture_output=True,
        text=True,
        check=False,
    )
    said = " ".join(shown.stdout.split())
    match = re.search(r'platform tag: "manylinux_2_(\d+)_', said)
    if not match or int(match[1]) > GLIBC_MAX[1]:
        found.append(f"is refused by auditwheel: {said} {shown.stderr}")
    return found


def check(path: Path) -> list[str]:
    found = check_tag(path)
    if path.stat().st_size > SIZE_MAX:
        found.append(f"has {path.stat().st_size} bytes")
    with zipfile.ZipFile(path) as wheel:
        found += check_licences(wheel)
        found += [
            f"has {name}"
            for name in wheel.namelist()
            if Path(name).suffix in FOR_C
        ]
        libraries = [n for n in wheel.namelist() if n.endswith(".so")]
        if sorted(map(stem, libraries)) != sorted(EXPORTED):
            return [*found, f"has the libraries {libraries}"]
        for name in libraries:
            problems = check_elf(name, wheel.read(name))
            found += [f"{stem(name)} {problem}" for problem in problems]
    return found


def main() -> None:
    failed = False
    for argument in sys.argv[1:]:
        path = Path(argument)
        found = check(path)
        failed |= bool(found)
        print(f"  {path.name}: {path.stat().st_size / 1e6:.2f} MB,", end=" ")
        print("; ".join(found) or "good", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
