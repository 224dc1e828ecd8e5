"""The API matches NIXL 1.5.1: every name, parameter, order and default."""

import ast
import inspect
import pathlib

import pytest

pytestmark = pytest.mark.beyond_stock

# The methods of nixl_agent in NIXL 1.5.1, without `self` and annotations.
STOCK_METHODS = {
    "add_remote_agent": "metadata",
    "check_remote_metadata": "agent, descs=None",
    "check_remote_xfer_done": (
        "remote_agent_name, lookup_tag, backends=[], tag_is_prefix=True"
    ),
    "check_xfer_state": "handle",
    "create_backend": "backend, initParams={}",
    "deregister_memory": "dereg_list, backends=[]",
    "deserialize_descs": "serialized_descs",
    "estimate_xfer_cost": "req_handle",
    "fetch_remote_metadata": "remote_agent, ip_addr='', port=8888, label=''",
    "get_agent_metadata": "",
    "get_backend_mem_types": "backend",
    "get_backend_params": "backend",
    "get_new_notifs": "backends=[]",
    "get_partial_agent_metadata": "descs, inc_conn_info=False, backends=[]",
    "get_plugin_list": "",
    "get_plugin_mem_types": "backend",
    "get_plugin_params": "backend",
    "get_reg_descs": "descs, mem_type=None",
    "get_remote_descs": "descs, mem_type=None",
    "get_serialized_descs": "descs",
    "get_xfer_descs": "descs, mem_type=None",
    "get_xfer_telemetry": "handle",
    "initialize_xfer": (
        "operation, local_descs, remote_descs, remote_agent, notif_msg=b'', "
        "backends=[]"
    ),
    "invalidate_local_metadata": "ip_addr='', port=8888",
    "make_connection": "remote_agent, backends=[]",
    "make_prepped_xfer": (
        "operation, local_xfer_side, local_indices, remote_xfer_side, "
        "remote_indices, notif_msg=b'', backends=[], skip_desc_merge=False"
    ),
    "prep_mem_view": "dlist, *, backends=None",
    "prep_xfer_dlist": "agent_name, xfer_list, mem_type=None, backends=[]",
    "query_memory": "reg_list, backend, mem_type=None",
    "query_xfer_backend": "handle",
    "register_memory": "reg_list, mem_type=None, backends=[]",
    "release_dlist_handle": "handle",
    "release_mem_view": "mvh",
    "release_xfer_handle": "handle",
    "remove_remote_agent": "agent",
    "send_local_metadata": "ip_addr='', port=8888",
    "send_notif": "remote_agent_name, notif_msg, backend=None",
    "send_partial_agent_metadata": (
        "descs, inc_conn_info=False, backends=[], ip_addr='', port=8888, "
        "label=''"
    ),
    "transfer": "handle, notif_msg=b'', *, timeout=None",
    "update_notifs": "backends=[]",
}

# Our additional methods.
OWN_METHODS = {
    "attach": "host, port, timeout_ms=5000, *, retries=0",
    "attach_async": "host, port, timeout_ms=5000, *, retries=0",
    "cancel": "handle",
    "check_xfer_states": "handles",
    "close": "",
    "describe": "peer=None",
    "fileno": "",
    "is_side_channel_running": "",
    "notifications": "",
    "peers": "",
    "publish": "rows, port=0, host=None, *, mem_type='DRAM'",
    "request_remote_metadata": (
        "host, port, timeout_ms=5000, *, key=None, retries=0"
    ),
    "request_remote_metadata_async": (
        "host, port, timeout_ms=5000, *, key=None, retries=0"
    ),
    "start_side_channel_listener": "port, metadata, host=''",
    "stats": "",
    "stop_side_channel_listener": "",
    "wait": "handles, timeout=None, any_of=False, check=True",
    "wait_async": "handle, timeout=None, any_of=False, check=True",
}

STOCK_CONFIG = (
    "enable_prog_thread=True, enable_listen_thread=False, listen_port=8888, "
    "capture_telemetry=False, num_threads=0, backends=['UCX'], sync_mode=None"
)

LIST_METHODS = [
    "addDesc",
    "append",
    "clear",
    "descCount",
    "getType",
    "index",
    "isEmpty",
    "print",
    "remDesc",
]


def parameters(function, skip):
    """A signature as text, without the first `skip` parameters and
    annotations."""
    texts, starred = [], False
    for parameter in list(inspect.signature(function).parameters.values())[
        skip:
    ]:
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            starred = True
            texts.append("*")
        text = parameter.name
        if parameter.default is not parameter.empty:
            text += f"={parameter.default!r}"
        texts.append(text)
    return ", ".join(texts)


METHODS = {**STOCK_METHODS, **OWN_METHODS}


@pytest.mark.parametrize("name", METHODS)
def test_method_has_stocks_signature(api, name):
    method = getattr(api.nixl_agent, name)
    assert parameters(method, 1) == METHODS[name]


def test_agent_has_no_other_methods(api):
    public = {name for name in dir(api.nixl_agent) if name[0] != "_"}
    data = {
        "name",
        "backends",
        "plugin_list",
        "notifs",
        "closed",
        "engine",
        "listen_port",
        "nixl_mems",
        "nixl_ops",
        "agent",
    }
    assert public - data == set(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_documented(api, name):
    assert len(inspect.getdoc(getattr(api.nixl_agent, name))) > 20


def test_agent_constructor_matches_stock(api):
    assert parameters(api.nixl_agent.__init__, 1) == (
        "agent_name, nixl_conf=None, instantiate_all=False"
    )
    assert api.NixlAgent is api.nixl_agent


def test_config_constructor_matches_stock(api):
    own = parameters(api.nixl_agent_config.__init__, 1)
    assert own == (
        STOCK_CONFIG + ", *, engine=None, listen_host='', "
        "listen_max_frame=0, metadata_secret=None"
    )


def test_config_has_stocks_attributes(api):
    config = api.nixl_agent_config(
        True, False, 9, True, 3, ["UCX"], engine="native"
    )
    assert vars(config) == {
        "enable_pthread": True,
        "enable_listen": False,
        "port": 9,
        "capture_telemetry": True,
        "num_threads": 3,
        "backends": ["UCX"],
        "sync_mode": None,
        "engine": "native",
        "listen_host": "",
        "listen_max_frame": 0,
        "metadata_secret": None,
    }


def test_configs_do_not_share_lists(api):
    api.nixl_agent_config().backends.append("X")
    assert api.nixl_agent_config().backends == ["UCX"]


def test_environment_variable_selects_the_engine(api, monkeypatch):
    monkeypatch.setenv("VLLM_NIXL_ENGINE", "native")
    assert api.nixl_agent_config().engine == "native"
    assert api.nixl_agent_config(engine="auto").engine == "auto"
    monkeypatch.delenv("VLLM_NIXL_ENGINE")
    assert api.nixl_agent_config().engine == "auto"


@pytest.mark.parametrize(
    "name", ["nixlXferDList", "nixlRegDList", "nixlRemoteDList"]
)
def test_lists_have_stocks_methods(api, name):
    kind = getattr(api, name)
    for method in LIST_METHODS:
        assert inspect.signature(getattr(kind, method))
        assert getattr(kind, method).__doc__
    assert hasattr(kind, "trim") == (name == "nixlRegDList")


def test_handles_are_created_by_agents_only(api):
    for kind in (api.nixl_xfer_handle, api.nixl_prepped_dlist_handle):
        assert str(inspect.signature(kind.release)) == "(self, /)"
        with pytest.raises(TypeError):
            kind()


def test_types_cannot_be_changed(api):
    for kind in (api.nixlXferDList, api.nixl_xfer_handle, api.shared_buffer):
        with pytest.raises(TypeError):
            kind.extra = 1


def test_the_package_lists_what_it_exports(api):
    module = api.modules[0]
    assert sorted(module.__all__) == sorted(set(module.__all__))
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_features_are_what_the_build_can_do():
    package = pytest.importorskip("vllm_nixl")
    signing = {"backends": [], "metadata_secret": "a secret"}
    uses = {
        "http": package.HttpSideChannel,
        "shared_secret": lambda: package.TcpSideChannel(secret="a secret"),
        "signed_metadata": lambda: package.NixlAgent(
            "signer", package.nixl_agent_config(**signing)
        ),
        "tls": lambda: package.TcpSideChannel(tls=True),
        "zmq": package.ZmqSideChannel,
    }
    assert package.features.keys() == uses.keys()
    for name, use in uses.items():
        if package.features[name]:
            use()
        else:
            with pytest.raises(package.nixlNotSupportedError):
                use()


def test_features_cannot_be_changed():
    package = pytest.importorskip("vllm_nixl")
    with pytest.raises(TypeError):
        package.features["tls"] = False


def test_nixls_module_names_exist():
    """The names that clients import from nixl._api and nixl._bindings."""
    api = pytest.importorskip("vllm_nixl._api")
    package = pytest.importorskip("vllm_nixl")
    assert issubclass(api.nixl_agent, package.NixlAgent)
    assert package.nixl_agent is package.NixlAgent
    assert api.nixlBind.nixlBackendError is package.nixlBackendError
    assert api.nixlBind.NIXL_ERR_NOT_FOUND == -4
    assert api.nixlBind.DRAM_SEG == 0
    assert api.DEFAULT_COMM_PORT == 8888
    for name in api.__all__:
        assert hasattr(api, name)


# -- Stubs -------------------------------------------------------------------


def stub():
    package = pytest.importorskip("vllm_nixl")
    path = pathlib.Path(package.__file__).with_name("_core.pyi")
    return ast.parse(path.read_text())


def test_stubs_and_marker_are_installed():
    package = pytest.importorskip("vllm_nixl")
    assert pathlib.Path(package.__file__).with_name("py.typed").is_file()
    assert stub().body


def test_stubs_have_every_method_with_its_parameters():
    """Names and order; stubtest also compares kinds and defaults."""
    core = pytest.importorskip("vllm_nixl._core")
    (agent,) = (
        node
        for node in stub().body
        if isinstance(node, ast.ClassDef) and node.name == "Agent"
    )
    methods = {
        node.name: node
        for node in agent.body
        if isinstance(node, ast.FunctionDef)
    }
    for name, method in vars(core.Agent).items():
        if not callable(method) or name.startswith("__"):
            continue
        given = methods[name].args
        written = [item.arg for item in given.args + given.kwonlyargs]
        assert written == list(inspect.signature(method).parameters), name


# -- Unsupported features -----------------------------------------------------

UNSUPPORTED = {
    "send_local_metadata": lambda a: a.send_local_metadata("", 8888),
    "fetch_remote_metadata": lambda a: a.fetch_remote_metadata("p"),
    "invalidate_local_metadata": lambda a: a.invalidate_local_metadata(),
    "send_partial_agent_metadata": lambda a: a.send_partial_agent_metadata(
        a.get_reg_descs([(1, 2, 0, "")], "DRAM"), True
    ),
    "prep_mem_view": lambda a: a.prep_mem_view(
        a.get_xfer_descs([(1, 2, 0)], "VRAM"), backends=["UCX"]
    ),
    "release_mem_view": lambda a: a.release_mem_view(1),
    "query_memory": lambda a: a.query_memory(
        [(0, 0, 0, "/a")], "UCX", mem_type="FILE"
    ),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_features_raise_a_clear_error(api, endpoint, name):
    agent = endpoint().agent
    with pytest.raises(api.nixlNotSupportedError, match=name) as caught:
        UNSUPPORTED[name](agent)
    assert caught.value.operation == name
    assert caught.value.status == -9
    assert "NIXL_ERR_NOT_SUPPORTED" in str(caught.value)
