"""An agent by NIXL's C interface: a libnixl_capi.so, loaded with ctypes.

`Api("capi:FILE")` has it as `nixl_agent`, with the methods of the Python API
that `Endpoint` needs.  FILE is ours or NIXL's.  A call that fails raises
`CapiError` with its status.
"""

import ctypes
import types
from ctypes import (
    byref,
    c_bool,
    c_int,
    c_size_t,
    c_uint64,
    c_void_p,
    string_at,
)

PREFIX = "capi:"
SUCCESS, IN_PROGRESS, NOT_FOUND = 0, 1, -6
MEMS = ["DRAM", "VRAM", "BLOCK", "OBJECT", "FILE"]
OPERATIONS = ["READ", "WRITE"]
SLEEP_US = 100_000  # NIXL's progress thread sleeps that long, or spins with 0


class CapiError(Exception):
    def __init__(self, name, status):
        super().__init__(f"nixl_capi_{name}: status {status}")
        self.status = status


class Config(ctypes.Structure):
    _fields_ = [
        ("enable_prog_thread", c_bool),
        ("enable_listen_thread", c_bool),
        ("listen_port", c_int),
        ("thread_sync", c_int),
        ("num_workers", ctypes.c_uint),
        ("pthr_delay_us", c_uint64),
        ("lthr_delay_us", c_uint64),
        ("capture_telemetry", c_bool),
        ("room", ctypes.c_ubyte * 216),
    ]


class Library:
    """The functions of a libnixl_capi.so by their names without prefix."""

    def __init__(self, path):
        self._library = ctypes.CDLL(path)
        self._free = ctypes.CDLL(None).free
        self._free.argtypes = [c_void_p]

    def call(self, name, *args):
        """Call; return the status, raise if it is negative."""
        status = getattr(self._library, f"nixl_capi_{name}")(*args)
        if status < 0:
            raise CapiError(name, status)
        return status

    def make(self, name, *args):
        """The handle for whose place a call has its last argument."""
        handle = c_void_p()
        self.call(name, *args, byref(handle))
        return handle

    def take(self, name, *args):
        """The bytes that a call returns by its last two arguments."""
        data, size = c_void_p(), c_size_t()
        self.call(name, *args, byref(data), byref(size))
        taken = string_at(data, size.value)
        self._free(data)
        return taken

    def free(self, data):
        self._free(data)


class Descs:
    """A list of rows (address, length, device)."""

    def __init__(self, rows, mem):
        self.rows, self.mem = [tuple(row[:3]) for row in rows], mem

    def build(self, library, kind):
        """The same as a list of the library."""
        made = library.make(f"create_{kind}_dlist", MEMS.index(self.mem))
        rest = (None, c_size_t(0)) if kind == "reg" else ()
        for addr, size, device in self.rows:
            library.call(
                f"{kind}_dlist_add_desc",
                made,
                c_size_t(addr),
                c_size_t(size),
                c_uint64(device),
                *rest,
            )
        return made


class Prepared:
    def __init__(self, agent, handle):
        self.agent, self.handle = agent, handle

    def release(self):
        self.agent.library.call(
            "release_xfer_dlist_handle", self.agent.handle, self.handle
        )


class Request(Prepared):
    def release(self):
        library = self.agent.library
        library.call("release_xfer_req", self.agent.handle, self.handle)
        library.call("destroy_xfer_req", self.handle)


class Agent:
    """The methods of NIXL's Python agent that `Endpoint` calls."""

    def __init__(self, library, name, config):
        self.library = library
        settings = Config(
            enable_prog_thread=True,
            pthr_delay_us=SLEEP_US,
            capture_telemetry=True,
            **config,
        )
        self.handle = library.make(
            "create_configured_agent", name.encode(), byref(settings)
        )
        params = library.make("create_params")
        self.backend = library.make(
            "create_backend", self.handle, b"UCX", params
        )
        library.call("destroy_params", params)
        self.map = library.make("create_notif_map")

    def close(self):
        for name, handle in [
            ("destroy_notif_map", self.map),
            ("destroy_backend", self.backend),
            ("destroy_agent", self.handle),
        ]:
            self.library.call(name, handle)

    # -- memory and metadata -------------------------------------------------

    def _with_list(self, name, kind, descs, *rest):
        """Call with a list that is destroyed afterwards."""
        made = descs.build(self.library, kind)
        try:
            return self.library.call(name, self.handle, made, *rest)
        finally:
            self.library.call(f"destroy_{kind}_dlist", made)

    def get_xfer_descs(self, rows, mem):
        return Descs(rows, mem)

    get_reg_descs = get_xfer_descs

    def register_memory(self, rows, mem):
        descs = Descs(rows, mem)
        self._with_list("register_mem", "reg", descs, None)
        return descs

    def deregister_memory(self, descs):
        self._with_list("deregister_mem", "reg", descs, None)

    def get_agent_metadata(self):
        return self.library.take("get_local_md", self.handle)

    def add_remote_agent(self, metadata):
        name = self.library.make(
            "load_remote_md", self.handle, metadata, c_size_t(len(metadata))
        )
        loaded = string_at(name)
        self.library.free(name)
        return loaded

    def remove_remote_agent(self, name):
        self.library.call("invalidate_remote_md", self.handle, name.encode())

    def check_remote_metadata(self, name, descs=None):
        made = descs.build(self.library, "xfer") if descs else None
        try:
            self.library.call(
                "check_remote_md", self.handle, name.encode(), made
            )
        except CapiError as error:
            if error.status != NOT_FOUND:
                raise
            return False
        finally:
            if made is not None:
                self.library.call("destroy_xfer_dlist", made)
        return True

    # -- transfers -----------------------------------------------------------

    def _options(self, notif):
        """Optional arguments with a notification; None for none."""
        if notif is None:
            return None
        made = self.library.make("create_opt_args")
        self.library.call(
            "opt_args_set_notif_msg", made, notif, c_size_t(len(notif))
        )
        self.library.call("opt_args_set_has_notif", made, c_bool(True))
        return made

    def _make(self, name, notif, *args):
        """A request, with a notification unless that is b"" or None."""
        options, request = self._options(notif or None), c_void_p()
        try:
            self.library.call(
                name, self.handle, *args, byref(request), options
            )
        finally:
            if options is not None:
                self.library.call("destroy_opt_args", options)
        return Request(self, request)

    def prep_xfer_dlist(self, name, rows, mem):
        made, prepared = (
            Descs(rows, mem).build(self.library, "xfer"),
            c_void_p(),
        )
        try:
            self.library.call(
                "prep_xfer_dlist",
                self.handle,
                name.encode(),
                made,
                byref(prepared),
                None,
            )
        finally:
            self.library.call("destroy_xfer_dlist", made)
        return Prepared(self, prepared)

    def make_prepped_xfer(
        self, operation, local, local_rows, remote, remote_rows, notif=b""
    ):
        sides = []
        for prepared, rows in ((local, local_rows), (remote, remote_rows)):
            indices = (c_int * len(rows))(*rows)
            sides += [prepared.handle, indices, c_size_t(len(rows))]
        return self._make(
            "make_xfer_req", notif, OPERATIONS.index(operation), *sides
        )

    def initialize_xfer(self, operation, local, remote, peer, notif=b""):
        lists = [
            descs.build(self.library, "xfer") for descs in (local, remote)
        ]
        try:
            return self._make(
                "create_xfer_req",
                notif,
                OPERATIONS.index(operation),
                *lists,
                peer.encode(),
            )
        finally:
            for made in lists:
                self.library.call("destroy_xfer_dlist", made)

    def transfer(self, request, notif=b"", options=None):
        options = options or self._options(notif or None)
        try:
            status = self.library.call(
                "post_xfer_req", self.handle, request.handle, options
            )
        finally:
            if options is not None:
                self.library.call("destroy_opt_args", options)
        return "DONE" if status == SUCCESS else "PROC"

    def transfer_with_empty_notif(self, request):
        """What NIXL's Python cannot do."""
        return self.transfer(request, options=self._options(b""))

    def check_xfer_state(self, request):
        status = self.library.call(
            "get_xfer_status", self.handle, request.handle
        )
        return "DONE" if status == SUCCESS else "PROC"

    # -- notifications -------------------------------------------------------

    def send_notif(self, name, message):
        self.library.call(
            "gen_notif",
            self.handle,
            name.encode(),
            message,
            c_size_t(len(message)),
            None,
        )

    def get_new_notifs(self):
        library, found = self.library, {}
        library.call("get_notifs", self.handle, self.map, None)
        count = c_size_t()
        library.call("notif_map_size", self.map, byref(count))
        for i in range(count.value):
            name = library.make(
                "notif_map_get_agent_at", self.map, c_size_t(i)
            )
            found[string_at(name).decode()] = self._messages(name)
        library.call("notif_map_clear", self.map)
        return found

    def _messages(self, name):
        count, data, size = c_size_t(), c_void_p(), c_size_t()
        self.library.call(
            "notif_map_get_notifs_size", self.map, name, byref(count)
        )
        messages = []
        for i in range(count.value):
            self.library.call(
                "notif_map_get_notif",
                self.map,
                name,
                c_size_t(i),
                byref(data),
                byref(size),
            )
            messages.append(string_at(data, size.value))
        return messages


def module(name):
    """What `Api` looks names up in."""
    library = Library(name.removeprefix(PREFIX))
    return types.SimpleNamespace(
        nixl_agent=lambda agent, config: Agent(library, agent, config),
        nixl_agent_config=dict,
    )
