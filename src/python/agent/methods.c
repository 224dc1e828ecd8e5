/* The table of the agent's methods, with their documentation: the first line
 * of each is the signature that inspect.signature() shows. */
#include "python/agent/agent.h"

/* -- Life ----------------------------------------------------------------- */

PyDoc_STRVAR(
    close_doc,
    "close($self)\n--\n\n"
    "Stop the agent's work for good.\n"
    "\n"
    "Transfers in flight end as cancelled, waiters raise "
    "nixlClosedError, peers see\n"
    "the agent leave, its thread ends; later calls raise "
    "nixlClosedError. A second\n"
    "time nothing happens. It waits for the thread, for milliseconds.");
PyDoc_STRVAR(enter_doc, "__enter__($self)\n--\n\n"
                        "Return the agent itself.");
PyDoc_STRVAR(exit_doc, "__exit__($self, *args)\n--\n\n"
                       "close() the agent.");

/* -- Backends ------------------------------------------------------------- */

PyDoc_STRVAR(
    create_backend_doc,
    "create_backend($self, backend, initParams={})\n--\n\n"
    "Create a backend; the first one chooses the engine and starts its "
    "thread.\n"
    "\n"
    "backend: a name of get_plugin_list()\n"
    "initParams: its parameters (dict of str to str)\n"
    "\n"
    "nixlNotFoundError for an unknown name, nixlNotAllowedError where "
    "it exists.");
PyDoc_STRVAR(get_plugin_list_doc,
             "get_plugin_list($self)\n--\n\n"
             "Names of the backends that can be created (list of str).");
PyDoc_STRVAR(get_plugin_mem_types_doc,
             "get_plugin_mem_types($self, backend)\n--\n\n"
             "Memory types of a plugin: a list of 'DRAM_SEG' and so on.\n"
             "nixlNotFoundError for an unknown name.");
PyDoc_STRVAR(
    get_plugin_params_doc,
    "get_plugin_params($self, backend)\n--\n\n"
    "Parameters of a plugin with their defaults (dict of str to str).\n"
    "nixlNotFoundError for an unknown name.");
PyDoc_STRVAR(
    get_backend_mem_types_doc,
    "get_backend_mem_types($self, backend)\n--\n\n"
    "Memory types of a backend that was created: a list of 'DRAM_SEG' "
    "and so on.\n"
    "nixlNotFoundError for one that was not.");
PyDoc_STRVAR(get_backend_params_doc,
             "get_backend_params($self, backend)\n--\n\n"
             "Parameters of a backend that was created (dict of str to str).\n"
             "nixlNotFoundError for one that was not.");

/* -- Memory --------------------------------------------------------------- */

PyDoc_STRVAR(
    get_reg_descs_doc,
    "get_reg_descs($self, descs, mem_type=None)\n--\n\n"
    "A nixlRegDList from one of\n"
    "\n"
    "- a list of tuples (address, length, device id, meta info as str "
    "or bytes)\n"
    "- a C-contiguous Nx3 array of uint64 or int64 (address, length, "
    "device id):\n"
    "  anything with the buffer protocol\n"
    "- a contiguous tensor, or a list of tensors of one device\n"
    "- a nixlRegDList, which is returned as it is\n"
    "\n"
    "descs: one of these; lengths in bytes\n"
    "mem_type: 'DRAM', 'VRAM', 'BLK', 'OBJ', 'FILE', 'cpu', 'cuda' or "
    "a member of\n"
    "    nixl_mem_t; needed for tuples and arrays\n"
    "\n"
    "TypeError, ValueError (naming the row) or KeyError (memory type).");
PyDoc_STRVAR(
    get_xfer_descs_doc,
    "get_xfer_descs($self, descs, mem_type=None)\n--\n\n"
    "A nixlXferDList from one of\n"
    "\n"
    "- a list of tuples (address, length, device id)\n"
    "- a C-contiguous Nx3 array of uint64 or int64, as for "
    "get_reg_descs()\n"
    "- a contiguous tensor, or a list of tensors of one device\n"
    "- a nixlXferDList, which is returned as it is\n"
    "\n"
    "descs: one of these; lengths in bytes\n"
    "mem_type: as for get_reg_descs()\n"
    "\n"
    "TypeError, ValueError (naming the row) or KeyError (memory type).");
PyDoc_STRVAR(
    get_remote_descs_doc,
    "get_remote_descs($self, descs, mem_type=None)\n--\n\n"
    "A nixlRemoteDList from a list of tuples (address, length, device "
    "id, name of\n"
    "the agent), or the list itself where it is one already.\n"
    "\n"
    "mem_type: as for get_reg_descs()");
PyDoc_STRVAR(
    register_memory_doc,
    "register_memory($self, reg_list, mem_type=None, backends=[])\n--\n\n"
    "Register memory; all of it or none. Returns the nixlRegDList.\n"
    "\n"
    "reg_list, mem_type: as for get_reg_descs()\n"
    "backends: names of backends; empty: all\n"
    "\n"
    "The memory is borrowed: keep it until it is deregistered. What "
    "was registered\n"
    "twice must be deregistered twice.");
PyDoc_STRVAR(deregister_memory_doc,
             "deregister_memory($self, dereg_list, backends=[])\n--\n\n"
             "Deregister what register_memory() returned; all of it or none.\n"
             "\n"
             "dereg_list: a nixlRegDList with the same ranges\n"
             "backends: names of backends; empty: all\n"
             "\n"
             "nixlNotFoundError (naming the row) for what is not registered. "
             "Transfers that\n"
             "are posted later and touch it fail.");

/* -- Metadata and peers --------------------------------------------------- */

PyDoc_STRVAR(
    query_memory_doc,
    "query_memory($self, reg_list, backend, mem_type=None)\n--\n\n"
    "What a backend for storage knows of files or objects.\n\n"
    "Args:\n"
    "    reg_list: As for register_memory(); the fourth value of each row,\n"
    "        a path or a key, says what is asked for.\n"
    "    backend: Its name.\n"
    "    mem_type: \"FILE\", \"OBJ\", ... unless it is in reg_list.\n\n"
    "Returns a list with a dict for each row that is there (\"size\",\n"
    "\"mtime\", ...; str to str), and None for one that is not.\n"
    "nixlNotSupportedError where the backend has no storage.");
PyDoc_STRVAR(get_agent_metadata_doc,
             "get_agent_metadata($self)\n--\n\n"
             "Everything that a peer needs to reach this agent's registered "
             "memory (bytes),\n"
             "as it is now.");
PyDoc_STRVAR(get_partial_agent_metadata_doc,
             "get_partial_agent_metadata($self, descs, "
             "inc_conn_info=False, backends=[])\n--\n\n"
             "Metadata of the given regions only (bytes).\n"
             "\n"
             "descs: a nixlRegDList of registered regions; empty: connection "
             "data only\n"
             "inc_conn_info: with connection data\n"
             "backends: names of backends; empty: all");
PyDoc_STRVAR(
    add_remote_agent_doc,
    "add_remote_agent($self, metadata)\n--\n\n"
    "Load a peer's metadata. Returns its name (bytes).\n"
    "\n"
    "metadata: bytes, or anything bytes-like\n"
    "\n"
    "Loaded again, it updates the peer's regions. A peer that "
    "restarted under the\n"
    "same name takes the old one's place at once; transfers to the old "
    "one raise\n"
    "nixlRemoteDisconnectError. nixlMismatchError for what is no "
    "metadata,\n"
    "nixlInvalidParamError for the agent's own, nixlBackendError where "
    "there is no\n"
    "way to reach the peer.");
PyDoc_STRVAR(remove_remote_agent_doc,
             "remove_remote_agent($self, agent)\n--\n\n"
             "Forget a peer (str or bytes); what is in flight to it fails. An "
             "unknown one\n"
             "is no error.");
PyDoc_STRVAR(check_remote_metadata_doc,
             "check_remote_metadata($self, agent, descs=None)\n--\n\n"
             "Is the peer known, and does it hold all of these descriptors? "
             "(bool)\n"
             "\n"
             "agent: str or bytes\n"
             "descs: a nixlXferDList, or None");
PyDoc_STRVAR(
    make_connection_doc,
    "make_connection($self, remote_agent, backends=[])\n--\n\n"
    "Connect to a peer now rather than at the first transfer.\n"
    "\n"
    "nixlNotFoundError for an unknown peer, nixlRemoteDisconnectError "
    "where it is\n"
    "gone.");

/* -- Metadata listener ---------------------------------------------------- */

PyDoc_STRVAR(listen_doc,
             "_listen($self, host, port, max_frame)\n--\n\n"
             "Start the metadata listener; '' is every address, port 0 a free "
             "one, max_frame 0\n"
             "the default.");
PyDoc_STRVAR(
    send_local_metadata_doc,
    "send_local_metadata($self, ip_addr='', port=8888)\n--\n\n"
    "Send the agent's metadata, as it is now, to a peer's listener, which "
    "loads it.\n"
    "\n"
    "ip_addr: an address or a name; '' means a central metadata server, "
    "which is not\n"
    "    supported\n"
    "\n"
    "Returns at once. NIXL's protocol has no answers: what goes wrong later "
    "is logged,\n"
    "counted in stats() and shown by describe().");
PyDoc_STRVAR(
    send_partial_agent_metadata_doc,
    "send_partial_agent_metadata($self, descs, inc_conn_info=False, "
    "backends=[], ip_addr='', port=8888, label='')\n--\n\n"
    "send_local_metadata() of the given regions only.\n"
    "\n"
    "descs, inc_conn_info, backends: as for get_partial_agent_metadata()\n"
    "label: for central metadata servers; ignored");
PyDoc_STRVAR(
    fetch_remote_metadata_doc,
    "fetch_remote_metadata($self, remote_agent, ip_addr='', port=8888, "
    "label='')\n--\n\n"
    "Ask a peer's listener for its metadata, and load it when it comes.\n"
    "\n"
    "remote_agent: who is expected there (str or bytes); another one is "
    "loaded too,\n"
    "    with a warning\n"
    "ip_addr, port: as for send_local_metadata()\n"
    "label: for central metadata servers; ignored\n"
    "\n"
    "Returns at once; check_remote_metadata() says when it is there.");
PyDoc_STRVAR(invalidate_local_metadata_doc,
             "invalidate_local_metadata($self, ip_addr='', port=8888)\n--\n\n"
             "Have a peer's listener forget this agent.\n"
             "\n"
             "ip_addr, port: as for send_local_metadata()");

/* -- Prepared lists ------------------------------------------------------- */

PyDoc_STRVAR(
    prep_xfer_dlist_doc,
    "prep_xfer_dlist($self, agent_name, xfer_list, mem_type=None, "
    "backends=[])\n--\n\n"
    "Check descriptors once, for use by index. Returns a "
    "nixl_prepped_dlist_handle.\n"
    "\n"
    "agent_name: '' or 'NIXL_INIT_AGENT' for the local side, otherwise "
    "the peer\n"
    "    (str or bytes); the agent's own name makes a remote side of "
    "itself\n"
    "xfer_list: what get_xfer_descs() takes, or a C-contiguous Nx5 "
    "array of uint64\n"
    "    or int64 (address, length, device id, stride, count): count "
    "blocks of\n"
    "    length bytes each, stride bytes apart; indices run over the "
    "blocks\n"
    "mem_type: as for get_reg_descs()\n"
    "backends: names of backends; empty: all\n"
    "\n"
    "Other threads run meanwhile; do not change the array. "
    "nixlNotFoundError and\n"
    "nixlInvalidParamError name the first row that is not in a "
    "registered region.");
PyDoc_STRVAR(release_dlist_handle_doc,
             "release_dlist_handle($self, handle)\n--\n\n"
             "Free a prepared list; a second time nothing happens. Transfers "
             "made from it\n"
             "go on.");

/* -- Transfers ------------------------------------------------------------ */

PyDoc_STRVAR(
    make_prepped_xfer_doc,
    "make_prepped_xfer($self, operation, local_xfer_side, "
    "local_indices, remote_xfer_side, remote_indices, "
    "notif_msg=b'', backends=[], skip_desc_merge=False)\n--\n\n"
    "Make a transfer from rows of prepared lists. Returns a "
    "nixl_xfer_handle.\n"
    "\n"
    "operation: 'READ' (remote to local) or 'WRITE'; another word is a "
    "KeyError\n"
    "local_xfer_side, remote_xfer_side: handles of prep_xfer_dlist()\n"
    "local_indices, remote_indices: lists of int or 1-D arrays of any "
    "integer type,\n"
    "    equally many; pairs must be of one length\n"
    "notif_msg: delivered to the peer when the data is there (bytes or "
    "str);\n"
    "    empty: none\n"
    "backends: names of backends\n"
    "skip_desc_merge: do not merge neighbours that are contiguous on "
    "both sides\n"
    "\n"
    "nixlInvalidParamError names the offending row.");
PyDoc_STRVAR(
    initialize_xfer_doc,
    "initialize_xfer($self, operation, local_descs, remote_descs, "
    "remote_agent, notif_msg=b'', backends=[])\n--\n\n"
    "Make a transfer from descriptors, row by row, without prepared "
    "lists. Returns\n"
    "a nixl_xfer_handle.\n"
    "\n"
    "operation: 'READ' (remote to local) or 'WRITE'; another word is a "
    "KeyError\n"
    "local_descs, remote_descs: nixlXferDLists of the same length\n"
    "remote_agent: the peer, or the agent's own name (str or bytes)\n"
    "notif_msg, backends: as for make_prepped_xfer()");
PyDoc_STRVAR(
    transfer_doc,
    "transfer($self, handle, notif_msg=b'', *, timeout=None)\n--\n\n"
    "Start a transfer, or start it again. Returns 'DONE' where it was "
    "small enough\n"
    "to end at once, otherwise 'PROC'.\n"
    "\n"
    "handle: a nixl_xfer_handle of this agent\n"
    "notif_msg: replaces the transfer's notification, unless empty\n"
    "timeout: in seconds; what has not ended by then is stopped and fails "
    "with\n"
    "    nixlTimeoutError, where the backend can stop it; None: no limit\n"
    "\n"
    "It holds the caller for about 50 us at most. "
    "nixlRepostActiveError while it\n"
    "is going on, nixlRemoteDisconnectError where the peer is gone.");
PyDoc_STRVAR(
    check_xfer_state_doc,
    "check_xfer_state($self, handle)\n--\n\n"
    "'DONE' or 'PROC'; a failed transfer raises its error, a cancelled "
    "one\n"
    "nixlCancelledError, one that was never posted nixlNotPostedError.");
PyDoc_STRVAR(cancel_doc,
             "cancel($self, handle)\n--\n\n"
             "Stop a transfer. True: stopped, check_xfer_state() raises "
             "nixlCancelledError;\n"
             "False: it had ended already. No byte lands after the call.\n"
             "\n"
             "It waits for the chunk that is being copied, well under a "
             "millisecond. Where\n"
             "the backend cannot stop, it raises and the transfer goes on.");
PyDoc_STRVAR(
    release_xfer_handle_doc,
    "release_xfer_handle($self, handle)\n--\n\n"
    "Free a transfer; a second time nothing happens. One that is going "
    "on is\n"
    "stopped first; where that is not possible now it raises, and the "
    "handle stays\n"
    "valid.");
PyDoc_STRVAR(get_xfer_telemetry_doc,
             "get_xfer_telemetry($self, handle)\n--\n\n"
             "Figures of a transfer (nixlXferTelemetry); nixlNotPostedError "
             "before the first\n"
             "post.");
PyDoc_STRVAR(query_xfer_backend_doc,
             "query_xfer_backend($self, handle)\n--\n\n"
             "Name of the backend that the transfer uses (str).");
PyDoc_STRVAR(estimate_xfer_cost_doc,
             "estimate_xfer_cost($self, req_handle)\n--\n\n"
             "An estimate: (duration in microseconds, error margin in "
             "microseconds, method).");

/* -- Waiting -------------------------------------------------------------- */

PyDoc_STRVAR(check_xfer_states_doc,
             "check_xfer_states($self, handles)\n--\n\n"
             "States of many transfers: a list of 'DONE', 'PROC' and 'ERR'. "
             "'ERR' stands for\n"
             "failed, cancelled and never posted; check_xfer_state() raises "
             "which.\n"
             "\n"
             "handles: any iterable of nixl_xfer_handle");
PyDoc_STRVAR(
    wait_doc,
    "wait($self, handles, timeout=None, any_of=False, check=True)\n--\n\n"
    "Sleep until all (or any) of the transfers have ended. Returns a "
    "list of the\n"
    "handles that have, in the order given.\n"
    "\n"
    "handles: a nixl_xfer_handle or an iterable of them\n"
    "timeout: in seconds; None: no limit\n"
    "any_of: one that has ended is enough\n"
    "check: raise the error of a transfer that failed\n"
    "\n"
    "As soon as a transfer has failed or was cancelled, its error is raised: "
    "that of the\n"
    "first one in the order given, while the others go on. With check=False "
    "it only counts\n"
    "as ended. Other threads run meanwhile; Ctrl-C ends the wait. "
    "nixlTimeoutError where\n"
    "the time is up, nixlNotPostedError for a transfer that was never posted "
    "(with\n"
    "check=False too: it would never end), nixlClosedError.\n"
    "\n"
    "These errors have .handles, a dict of three lists: 'ended' (well), "
    "'failed' (or\n"
    "cancelled) and 'pending'; .index is the place of the transfer in "
    "handles.\n"
    "nixlTimeoutError has the pending ones in .pending too.");
PyDoc_STRVAR(
    fileno_doc,
    "fileno($self)\n--\n\n"
    "An eventfd that is readable when a transfer ended or a "
    "notification came since\n"
    "the last get_new_notifs(), check_xfer_states(), wait() or result(). Do "
    "not close it.");
PyDoc_STRVAR(is_over_doc,
             "_is_over($self, handles, any_of, check)\n--\n\n"
             "Would wait() return or raise at once? Clears no event.");
PyDoc_STRVAR(subscribe_doc,
             "_subscribe($self)\n--\n\n"
             "An eventfd of the caller's own, written at every event; only "
             "reading it clears\n"
             "it. To be given back with _unsubscribe().");
PyDoc_STRVAR(unsubscribe_doc,
             "_unsubscribe($self, fd)\n--\n\n"
             "Close what _subscribe() returned; nothing happens to another "
             "descriptor.\nnixlInvalidParamError for a number that cannot be "
             "one.");

/* -- Notifications -------------------------------------------------------- */

PyDoc_STRVAR(get_new_notifs_doc,
             "get_new_notifs($self, backends=[])\n--\n\n"
             "Take all notifications that have come: a dict of name of the "
             "sender (str) to\n"
             "list of messages (bytes), in the order sent.");
PyDoc_STRVAR(
    update_notifs_doc,
    "update_notifs($self, backends=[])\n--\n\n"
    "Add the notifications that have come to agent.notifs, and return "
    "that dict.");
PyDoc_STRVAR(
    check_remote_xfer_done_doc,
    "check_remote_xfer_done($self, remote_agent_name, lookup_tag, "
    "backends=[], tag_is_prefix=True)\n--\n\n"
    "update_notifs(), then look for a message of that peer that begins "
    "with the tag\n"
    "(or contains it): it is removed and True returned. (bool)\n"
    "\n"
    "remote_agent_name: str or bytes\n"
    "lookup_tag: bytes or str\n"
    "tag_is_prefix: False: look for the tag anywhere in the message");
PyDoc_STRVAR(
    send_notif_doc,
    "send_notif($self, remote_agent_name, notif_msg, "
    "backend=None)\n--\n\n"
    "Send a notification that belongs to no transfer. It is delivered "
    "once, in the\n"
    "order sent, or the peer is gone.\n"
    "\n"
    "remote_agent_name: str or bytes\n"
    "notif_msg: bytes or str; may be empty\n"
    "backend: a backend of the agent, or None");
PyDoc_STRVAR(next_notif_doc,
             "_next_notif($self)\n--\n\n"
             "The oldest notification as (sender, message), or None.");

/* -- Looking in ----------------------------------------------------------- */

PyDoc_STRVAR(
    describe_doc,
    "describe($self, peer=None)\n--\n\n"
    "What there is to say of the agent, or of a peer (str or bytes), "
    "as a dict:\n"
    "engine, backends and why; path, state, generation, why no faster "
    "path,\n"
    "counters. nixlNotFoundError for an unknown peer.");
PyDoc_STRVAR(
    stats_doc,
    "stats($self)\n--\n\n"
    "Counters of the agent: a dict of str to int; 'xfer_us_log2' is a "
    "list of 32:\n"
    "transfers that took from 2**i to 2**(i + 1) microseconds.");

#define METHOD(name, function)                                       \
    {                                                                \
        name, (PyCFunction)(void (*)(void))vnxi_py_agent_##function, \
            METH_FASTCALL | METH_KEYWORDS, function##_doc            \
    }

PyMethodDef vnxi_py_agent_methods[] = {
    METHOD("close", close),
    METHOD("__enter__", enter),
    METHOD("__exit__", exit),
    METHOD("create_backend", create_backend),
    METHOD("get_plugin_list", get_plugin_list),
    METHOD("get_plugin_mem_types", get_plugin_mem_types),
    METHOD("get_plugin_params", get_plugin_params),
    METHOD("get_backend_mem_types", get_backend_mem_types),
    METHOD("get_backend_params", get_backend_params),
    METHOD("get_reg_descs", get_reg_descs),
    METHOD("get_xfer_descs", get_xfer_descs),
    METHOD("get_remote_descs", get_remote_descs),
    METHOD("register_memory", register_memory),
    METHOD("deregister_memory", deregister_memory),
    METHOD("query_memory", query_memory),
    METHOD("get_agent_metadata", get_agent_metadata),
    METHOD("get_partial_agent_metadata", get_partial_agent_metadata),
    METHOD("add_remote_agent", add_remote_agent),
    METHOD("remove_remote_agent", remove_remote_agent),
    METHOD("check_remote_metadata", check_remote_metadata),
    METHOD("make_connection", make_connection),
    METHOD("_listen", listen),
    METHOD("send_local_metadata", send_local_metadata),
    METHOD("send_partial_agent_metadata", send_partial_agent_metadata),
    METHOD("fetch_remote_metadata", fetch_remote_metadata),
    METHOD("invalidate_local_metadata", invalidate_local_metadata),
    METHOD("prep_xfer_dlist", prep_xfer_dlist),
    METHOD("release_dlist_handle", release_dlist_handle),
    METHOD("make_prepped_xfer", make_prepped_xfer),
    METHOD("initialize_xfer", initialize_xfer),
    METHOD("transfer", transfer),
    METHOD("check_xfer_state", check_xfer_state),
    METHOD("cancel", cancel),
    METHOD("release_xfer_handle", release_xfer_handle),
    METHOD("get_xfer_telemetry", get_xfer_telemetry),
    METHOD("query_xfer_backend", query_xfer_backend),
    METHOD("estimate_xfer_cost", estimate_xfer_cost),
    METHOD("check_xfer_states", check_xfer_states),
    METHOD("wait", wait),
    METHOD("fileno", fileno),
    METHOD("_is_over", is_over),
    METHOD("_subscribe", subscribe),
    METHOD("_unsubscribe", unsubscribe),
    METHOD("get_new_notifs", get_new_notifs),
    METHOD("update_notifs", update_notifs),
    METHOD("check_remote_xfer_done", check_remote_xfer_done),
    METHOD("send_notif", send_notif),
    METHOD("_next_notif", next_notif),
    METHOD("describe", describe),
    METHOD("stats", stats),
    {NULL, NULL, 0, NULL},
};
