"""`vllm-nixl info` and `vllm-nixl lib-path`."""

import shutil
from pathlib import Path

import pytest
import vllm_nixl
from support import cli, ucx
from support.program import run_program
from vllm_nixl import _core

pytestmark = pytest.mark.beyond_stock


def test_info_describes_the_package():
    found = cli.run_json("info")
    assert found["vllm_nixl"] == vllm_nixl.__version__
    assert found["extension"] == _core.__file__
    assert found["features"] == dict(vllm_nixl.features)
    assert found["engine"] == "auto"


def test_info_lists_the_environment_without_secrets():
    secret = "correct horse battery staple"
    env = {
        "VLLM_NIXL_SIDE_CHANNEL_SECRET": secret,
        "VLLM_NIXL_METADATA_SECRET": secret,
        "VLLM_NIXL_SAME_HOST": "1",
        "UCX_TLS": "tcp",
        "NIXL_LOG_LEVEL": "ERROR",
    }
    done = cli.run("info", env=env)
    assert secret not in done.stdout
    found = cli.run_json("info", env=env)["environment"]
    assert found["VLLM_NIXL_SIDE_CHANNEL_SECRET"] == "<hidden>"
    assert found["VLLM_NIXL_METADATA_SECRET"] == "<hidden>"
    assert found["UCX_TLS"] == "tcp"
    assert found["NIXL_LOG_LEVEL"] == "ERROR"


def test_info_finds_the_libucp_that_an_agent_loads():
    if ucx.libucx_wheel() is None:
        pytest.skip("the libucx wheel is not installed")
    found = cli.run_json("info")["libucp"]
    assert found["source"] == "libucx wheel"
    env = {"VLLM_NIXL_ENGINE": "native", "VLLM_NIXL_UCX_LIBRARY": ""}
    source = """
        import vllm_nixl
        with vllm_nixl.NixlAgent("a") as agent:
            print(agent.describe()["ucx"])
    """
    version = found["version"].rpartition(".")[0]
    loaded = run_program(source, env=env).stdout
    assert loaded == f"UCX {version}, {found['path']}\n"


def test_info_says_why_there_is_no_libucp(tmp_path):
    env = {"VLLM_NIXL_UCX_LIBRARY": "none"}
    found = cli.run_json("info", env=env)["libucp"]
    assert "VLLM_NIXL_UCX_LIBRARY=none" in found["error"]
    broken = tmp_path / "libucp.so"
    broken.write_bytes(b"no library")
    env = {"VLLM_NIXL_UCX_LIBRARY": str(broken)}
    found = cli.run_json("info", env=env)["libucp"]
    assert str(broken) in found["error"]


def test_a_library_that_kills_its_process_does_not_kill_info(tmp_path):
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    source = tmp_path / "bad.c"
    source.write_text(
        "#include <stdlib.h>\n"
        "__attribute__((constructor)) static void f(void) { abort(); }\n"
    )
    library = tmp_path / "libucp.so"
    command = ["cc", "-shared", "-fPIC", "-o", str(library), str(source)]
    assert cli.subprocess.run(command, check=False).returncode == 0
    env = {"VLLM_NIXL_UCX_LIBRARY": str(library)}
    found = cli.run_json("info", env=env)
    assert "SIGABRT" in found["libucp"]["error"]


def test_lib_path_of_the_extension():
    done = cli.run("lib-path", "--extension")
    assert (done.returncode, done.stdout) == (0, f"{_core.__file__}\n")


def test_lib_path_of_ucx():
    path = ucx.libucx_wheel()
    if path is None:
        pytest.skip("the libucx wheel is not installed")
    assert cli.run("lib-path", "--ucx").stdout == f"{path}\n"


def test_lib_path_without_the_library_has_status_1():
    env = {"VLLM_NIXL_UCX_LIBRARY": "none"}
    done = cli.run("lib-path", "--ucx", env=env)
    assert (done.returncode, done.stdout) == (1, "")
    found = cli.run_json("lib-path", "--ucx", env=env, status=1)
    assert found == {"ucx": None}


def test_lib_path_of_libvnx_by_pkg_config(tmp_path):
    if shutil.which("pkg-config") is None:
        pytest.skip("pkg-config is not installed")
    (tmp_path / "libvnx.so").touch()
    (tmp_path / "vnx.pc").write_text(
        f"libdir={tmp_path}\nName: vnx\nDescription: x\nVersion: 1\n"
    )
    env = {"PKG_CONFIG_PATH": str(tmp_path)}
    done = cli.run("lib-path", "--vnx", env=env)
    assert done.stdout == f"{tmp_path}/libvnx.so\n"


def test_lib_path_lists_all():
    env = {"VLLM_NIXL_UCX_LIBRARY": "none"}
    found = cli.run_json("lib-path", env=env)
    assert list(found) == ["extension", "capi", "vnx", "ucx", "nixl"]
    assert Path(found["capi"]).is_file()
    assert found["ucx"] is None
