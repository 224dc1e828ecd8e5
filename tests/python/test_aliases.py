"""vllm_nixl under the name nixl."""

import importlib
import importlib.metadata
import importlib.util
import os
import pickle
import pickletools
import shutil
import subprocess
import sys
import types
import warnings

import pytest
from support.program import run_program

pytestmark = pytest.mark.beyond_stock

PACKAGES = ["nixl", "nixl_cu12", "nixl_cu13", "nixl_rocm", "rixl"]
PARTS = ["_api", "_bindings", "_utils", "logging"]
EVERY = [
    name for top in PACKAGES for name in (top, *(f"{top}.{p}" for p in PARTS))
]
ON = {"VLLM_NIXL_AS_NIXL": "1"}
# The names that NIXL 1.5.1 has in these modules.
STOCK_API = [
    "DEFAULT_COMM_PORT",
    "get_logger",
    "logger",
    "nixlBind",
    "nixl_agent",
    "nixl_agent_config",
    "nixl_backend_handle",
    "nixl_prepped_dlist_handle",
    "nixl_thread_sync_t",
    "nixl_xfer_handle",
    "np",
]
STOCK_UTILS = ["ba_buf", "free_passthru", "malloc_passthru", "verify_transfer"]
STOCK_LOGGING = ["get_logger", "set_log_level_by_env", "setup_logging"]


@pytest.fixture
def package():
    return importlib.import_module("vllm_nixl")


@pytest.fixture
def clean(package, monkeypatch):
    """Remove every aliased module, during the test and after it."""
    package.uninstall()
    for name in list(sys.modules):
        if name.split(".")[0] in PACKAGES:
            monkeypatch.delitem(sys.modules, name)
    yield package
    package.uninstall()


@pytest.fixture
def installed(clean):
    assert clean.install() == EVERY
    return clean


# -- Installed modules --------------------------------------------------------


@pytest.mark.parametrize("top", PACKAGES)
def test_every_alias_can_be_imported(installed, top):
    for name in (top, *(f"{top}.{part}" for part in PARTS)):
        found = importlib.import_module(name)
        assert sys.modules[name] is found
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.name in (name, found.__name__)
    assert importlib.util.find_spec(top).submodule_search_locations == []
    assert importlib.import_module(top).__path__ == []


@pytest.mark.parametrize("top", PACKAGES)
def test_all_aliases_are_the_same_objects(installed, top):
    api = importlib.import_module(f"{top}._api")
    assert issubclass(api.nixl_agent, installed.NixlAgent)
    assert api.nixlBind is importlib.import_module(f"{top}._bindings")
    names = importlib.import_module(top)
    for part in PARTS:
        assert getattr(names, part) is sys.modules[f"{top}.{part}"]
    assert names.nixl_agent is api.nixl_agent
    assert api is sys.modules["nixl._api"]
    assert names.nixlXferDList is installed.nixlXferDList
    assert names.get_logger is sys.modules[f"{top}.logging"].get_logger


def test_alias_modules_have_every_name_of_stock(installed):
    import nixl
    import nixl._api
    import nixl._utils
    import nixl.logging

    pytest.importorskip("numpy")
    for name in STOCK_API:
        assert hasattr(nixl._api, name)
        assert getattr(nixl, name) is getattr(nixl._api, name)
    for name in STOCK_UTILS:
        assert getattr(nixl, name) is getattr(nixl._utils, name)
    for name in STOCK_LOGGING:
        assert getattr(nixl, name) is getattr(nixl.logging, name)


def test_names_that_nixl_lacks_are_not_aliased(installed):
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("nixl.nothing")
    with pytest.raises(ImportError):
        exec("from nixl import nothing")
    with pytest.raises(AttributeError, match="nothing"):
        _ = importlib.import_module("nixl._api").nothing


def test_installing_twice_does_nothing(installed):
    before = [sys.modules[name] for name in EVERY]
    assert installed.install() == []
    assert [sys.modules[name] for name in EVERY] == before


def test_installing_again_restores_missing_modules(installed):
    del sys.modules["rixl._api"]
    assert installed.install() == ["rixl._api"]


def test_uninstall_removes_every_module(installed):
    installed.uninstall()
    assert not set(EVERY) & set(sys.modules)
    installed.uninstall()
    assert installed.install() == EVERY


def test_no_distribution_owns_the_name(installed):
    """vLLM reads the version of the owning distribution, if there is one."""
    owners = importlib.metadata.packages_distributions()
    for top in PACKAGES:
        assert "vllm_nixl" not in owners.get(top, [])


# -- Stock NIXL imported first -----------------------------------------------


def stand_in():
    """Modules such as stock NIXL leaves in sys.modules."""
    agent = type("nixl_agent", (), {"__module__": "nixl_cu12._api"})
    telemetry = type(
        "nixlXferTelemetry", (), {"__module__": "nixl_cu12._bindings"}
    )
    modules = {
        name: types.ModuleType(name)
        for name in ("nixl", "nixl_cu12", "nixl_cu12._api")
    }
    modules["nixl._api"] = modules["nixl_cu12._api"]
    modules["nixl_cu12._bindings"] = types.ModuleType("nixl_cu12._bindings")
    for name in ("nixl", "nixl_cu12", "nixl_cu12._api"):
        modules[name].nixl_agent = agent
        modules[name].DEFAULT_COMM_PORT = 8888
    modules["nixl_cu12._bindings"].nixlXferTelemetry = telemetry
    return modules


@pytest.fixture
def stock(clean, monkeypatch):
    modules = stand_in()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules


@pytest.fixture
def module_of(monkeypatch):
    """module_of(name, **names): a module that is imported."""

    def make(name, **names):
        module = types.ModuleType(name)
        vars(module).update(names)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return make


def test_install_warns_if_stock_was_already_imported(clean, stock, module_of):
    module_of("a_client", Agent=stock["nixl"].nixl_agent)
    with pytest.warns(RuntimeWarning, match="a_client") as caught:
        assert clean.install() == EVERY
    assert "nixl_cu12" in str(caught[0].message)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clean.install()


def test_install_replaces_names_imported_from_stock(clean, stock, module_of):
    client = module_of(
        "a_client",
        Agent=stock["nixl"].nixl_agent,
        bindings=stock["nixl_cu12._bindings"],
        port=8888,
        own=clean,
    )
    with pytest.warns(RuntimeWarning):
        clean.install()
    import nixl._bindings

    assert client.Agent is nixl.nixl_agent
    assert client.bindings is nixl._bindings
    assert (client.port, client.own) == (8888, clean)
    clean.uninstall()
    assert client.Agent is stock["nixl"].nixl_agent
    assert client.bindings is stock["nixl_cu12._bindings"]
    for name, module in stock.items():
        assert sys.modules[name] is module
    assert "rixl" not in sys.modules


@pytest.mark.parametrize("found", [True, False])
def test_vllm_imported_earlier_gets_our_names(clean, stock, module_of, found):
    """It keeps stock's names, or None if it found no NIXL."""
    agent = stock["nixl"].nixl_agent if found else None
    names = {"NixlWrapper": agent, "nixl_agent_config": None}
    base = "vllm.distributed"
    utils = module_of(f"{base}.nixl_utils", nixlXferTelemetry=None, **names)
    worker = module_of(
        f"{base}.kv_transfer.kv_connector.v1.nixl.base_worker", **names
    )
    with pytest.warns(RuntimeWarning, match="base_worker"):
        clean.install()
    import nixl._api

    for module in (utils, worker):
        assert module.NixlWrapper is nixl._api.nixl_agent
        assert module.nixl_agent_config is clean.nixl_agent_config
    assert utils.nixlXferTelemetry is clean.nixlXferTelemetry
    assert not hasattr(worker, "nixlXferTelemetry")
    clean.uninstall()
    assert utils.NixlWrapper is agent
    assert worker.nixl_agent_config is None


def test_vllm_without_nixl_gets_our_names_without_a_warning(clean, module_of):
    utils = module_of(
        "vllm.distributed.nixl_utils", NixlWrapper=None, other=None
    )
    client = module_of("a_client", NixlWrapper=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clean.install()
    import nixl._api

    assert utils.NixlWrapper is nixl._api.nixl_agent
    assert utils.other is None
    assert client.NixlWrapper is None


# -- Without changes to the program -------------------------------------------

FACTS = """
    import os, sys
    facts = {
        "nixl": "nixl" in sys.modules,
        "ours": "vllm_nixl" in sys.modules,
        "heavy": sorted(
            {"numpy", "torch", "asyncio", "ctypes", "logging", "pickle",
             "socket", "threading"} & set(sys.modules)),
        "threads": len(os.listdir("/proc/self/task")),
    }
    print(facts)
"""


def facts(value):
    return eval(run_program(FACTS, env={"VLLM_NIXL_AS_NIXL": value}).stdout)


@pytest.mark.parametrize("value", [None, "", "0", "true"])
def test_aliases_are_not_installed_by_default(value):
    found = facts(value)
    assert (found["nixl"], found["ours"]) == (False, False)


def test_environment_variable_installs_at_startup():
    found = facts("1")
    assert (found["nixl"], found["ours"]) == (True, True)
    assert found["heavy"] == []
    assert found["threads"] == 1


def test_child_processes_have_the_aliases():
    run_program(
        """
        import os, subprocess, sys
        import nixl._api
        child = os.fork()
        if child == 0:
            import nixl_cu13._api
            same = nixl_cu13._api.nixl_agent is nixl._api.nixl_agent
            os._exit(0 if same else 1)
        assert os.waitpid(child, 0)[1] == 0
        program = "from nixl_cu12._api import nixl_agent; nixl_agent('a')"
        subprocess.run([sys.executable, "-c", program], check=True)
        """,
        env=ON,
    )


@pytest.mark.parametrize(
    "group", ["vllm.general_plugins", "sglang.srt.plugins"]
)
def test_vllm_plugin_is_found_by_clients(clean, monkeypatch, group):
    found = importlib.metadata.entry_points(group=group)
    (ours,) = [item for item in found if item.name == "vllm_nixl"]
    register = ours.load()
    monkeypatch.delenv("VLLM_NIXL_AS_NIXL", raising=False)
    assert register() is None
    assert "nixl" not in sys.modules
    monkeypatch.setenv("VLLM_NIXL_AS_NIXL", "1")
    register()
    register()
    from nixl._api import nixl_agent

    assert issubclass(nixl_agent, clean.NixlAgent)


def test_the_wheel_has_the_hook_and_the_plug_ins(package):
    files = importlib.metadata.files("vllm_nixl")
    names = {str(path) for path in files}
    assert "vllm_nixl.pth" in names
    assert any(name.endswith("dist-info/entry_points.txt") for name in names)
    tops = {name.split("/")[0] for name in names}
    assert not tops & set(PACKAGES)


# -- Pickles -----------------------------------------------------------------


def globals_of(data):
    """The names that a pickle imports."""
    texts = [
        argument
        for opcode, argument, _ in pickletools.genops(data)
        if "UNICODE" in opcode.name
    ]
    return tuple(texts[:2])


@pytest.mark.parametrize("kind", ["nixlXferDList", "nixlRegDList"])
@pytest.mark.parametrize("count", [0, 1, 1000])
def test_serialized_lists_name_what_stock_can_import(
    api, endpoint, kind, count
):
    extra = ("meta",) if kind == "nixlRegDList" else ()
    rows = [(0x1000 * i, 64, i, *extra) for i in range(count)]
    made = getattr(api, kind)("DRAM", rows)
    agent = endpoint().agent
    data = agent.get_serialized_descs(made)
    assert globals_of(data) == ("nixl._bindings", kind)
    assert agent.deserialize_descs(data) == made
    assert list(pickletools.genops(data))[-1][0].name == "STOP"


@pytest.mark.parametrize("top", PACKAGES)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_from_stock_load_as_our_lists(installed, top, protocol):
    """With the aliases installed, Python's pickle reads stock's lists."""
    made = installed.nixlXferDList("DRAM", [(1, 2, 3)])
    data = pickle.dumps(made, protocol)
    theirs = installed.NixlAgent("pickles").get_serialized_descs(made)
    old, new = b"nixl._bindings", f"{top}._bindings".encode()
    theirs = theirs.replace(bytes([len(old)]) + old, bytes([len(new)]) + new)
    for each in (data, theirs):
        read = pickle.loads(each)
        assert type(read) is installed.nixlXferDList
        assert read == made


# -- Logging -----------------------------------------------------------------

LEVELS = {
    "TRACE": "DEBUG",
    "debug": "DEBUG",
    "INFO": "INFO",
    "WARN": "WARNING",
    "ERROR": "ERROR",
    "FATAL": "CRITICAL",
    None: "INFO",
    "": "INFO",
}


@pytest.mark.parametrize("value", LEVELS)
def test_environment_sets_the_log_level(value):
    run_program(
        f"""
        import logging
        from nixl.logging import get_logger
        ours = get_logger("__client")
        assert ours is logging.getLogger("nixl.client")
        assert ours.getEffectiveLevel() == logging.{LEVELS[value]}
        (handler,) = logging.getLogger("nixl").handlers
        assert handler.level == logging.NOTSET
        get_logger("another")
        assert logging.getLogger("nixl").handlers == [handler]
        assert logging.getLogger().handlers == []
        """,
        env={**ON, "NIXL_LOG_LEVEL": value},
    )


def test_invalid_log_level_is_reported_and_ignored():
    done = run_program(
        """
        import logging
        from nixl._api import logger
        assert logger.getEffectiveLevel() == logging.INFO
        """,
        env={**ON, "NIXL_LOG_LEVEL": "loud"},
    )
    assert "loud" in done.stdout


def test_log_handlers_of_the_program_are_kept():
    run_program(
        """
        import io, logging
        mine = logging.StreamHandler(io.StringIO())
        logging.getLogger("nixl").addHandler(mine)
        from nixl.logging import get_logger
        get_logger("client").error("something")
        assert logging.getLogger("nixl").handlers == [mine]
        assert "something" in mine.stream.getvalue()
        """,
        env=ON,
    )


# -- Libraries that clients find by name -------------------------------------

CAPI = "libnixl_capi.so"
ASK_FOR_CAPI = """\
import ctypes
try:
    print(ctypes.CDLL("libnixl_capi.so").number())
except (AttributeError, OSError) as error:
    print(error)
"""


@pytest.fixture
def library(tmp_path):
    """library(name, number): a library of that SONAME, with number()."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")

    def build(name, number):
        source = tmp_path / "number.c"
        source.write_text(f"int number(void) {{ return {number}; }}")
        made = tmp_path / name
        soname = f"-Wl,-soname,{name}"
        options = ("-shared", "-fPIC", soname, source, "-o", made)
        subprocess.run([compiler, *options], check=True)
        return made

    return build


def test_install_makes_the_c_library_findable_by_its_name(library):
    program = f"""\
import vllm_nixl._aliases as aliases
aliases._CAPI = {str(library(CAPI, 42))!r}
assert "libnixl_capi" not in open("/proc/self/maps").read()
aliases.install()
"""
    done = run_program(program + ASK_FOR_CAPI)
    assert done.stdout.splitlines() == ["42"]


def test_the_hook_loads_the_packages_c_library(package):
    """The file is in the package if the build has it."""
    path = os.path.join(os.path.dirname(package.__file__), CAPI)
    if not os.path.exists(path):
        pytest.skip(f"this build has no {CAPI}")
    program = (
        ASK_FOR_CAPI + f"print({path!r} in open('/proc/self/maps').read())"
    )
    for env, loaded in ((ON, "True"), ({}, "False")):
        done = run_program(f"import vllm_nixl\n{program}", env=env)
        assert done.stdout.splitlines()[-1] == loaded


def test_a_c_library_that_cannot_be_loaded_is_reported(tmp_path):
    broken = tmp_path / CAPI
    broken.write_text("no library")
    done = run_program(
        f"""
        import warnings
        import vllm_nixl._aliases as aliases
        aliases._CAPI = {str(broken)!r}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert aliases.install()
        print(caught[0].category.__name__, caught[0].message)
        """
    )
    assert done.stdout.startswith("RuntimeWarning ")
    assert str(broken) in done.stdout


KVBM = """
    import sys
    sys.path.insert(0, {folder!r})
    import importlib.util
    assert importlib.util.find_spec("kvbm") is not None
    try:
        import kvbm
        print(kvbm.number)
    except ImportError as error:
        print(error)
"""


@pytest.fixture
def kvbm(tmp_path):
    """A package whose part _core finds a library of NVIDIA's by SONAME, as if
    it was linked with it."""
    folder = tmp_path / "site"
    (folder / "kvbm").mkdir(parents=True)
    (folder / "kvbm" / "__init__.py").write_text(
        "import nixl\nfrom kvbm._core import number\n"
    )
    (folder / "kvbm" / "_core.py").write_text(
        "import ctypes\n"
        "number = sum(ctypes.CDLL(f'{name}.so').number()\n"
        "    for name in ('libnixl', 'libnixl_build'))\n"
    )
    return KVBM.format(folder=str(folder))


def test_kvbm_gets_nvidias_libraries(kvbm, library):
    library("libnixl.so", 1)
    library("libnixl_build.so", 2)
    stock = {"VLLM_NIXL_LIBRARY": str(library(CAPI, 0))}
    done = run_program(kvbm, env={**ON, **stock})
    assert done.stdout.splitlines() == ["3"]


def test_kvbm_without_stock_says_what_to_install(kvbm, tmp_path):
    missing = {"VLLM_NIXL_LIBRARY": str(tmp_path / "no" / CAPI)}
    done = run_program(kvbm, env={**ON, **missing})
    assert "pip install nixl" in done.stdout
    assert "libnixl_build.so" in done.stdout


def test_uninstall_removes_the_hook_for_libraries(clean):
    before = list(sys.meta_path)
    clean.install()
    clean.install()
    assert len(sys.meta_path) == len(before) + 1
    clean.uninstall()
    assert sys.meta_path == before


# -- Plain memory ------------------------------------------------------------


def test_plain_memory_is_allocated_filled_and_compared(package):
    utils = importlib.import_module("vllm_nixl._utils")
    left, right = utils.malloc_passthru(64), utils.malloc_passthru(64)
    utils.ba_buf(left, 64)
    utils.ba_buf(right, 64)
    utils.verify_transfer(left, right, 64)
    from support.memory import view_of

    assert bytes(view_of(left, 64)) == b"\xba" * 64
    view_of(right, 64)[7] = 0
    utils.verify_transfer(left, right, 7)
    with pytest.raises(AssertionError, match="byte 7 of 64"):
        utils.verify_transfer(left, right, 64)
    with pytest.raises(ValueError, match="-1"):
        utils.malloc_passthru(-1)
    with pytest.raises(MemoryError):
        utils.malloc_passthru(2**62)
    utils.free_passthru(left)
    utils.free_passthru(right)
