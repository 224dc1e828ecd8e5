/*
 * The methods of SideChannel, and what help() says of them.
 */
#include "python/side_channel/side_channel.h"

#define WITH_KEYWORDS(function) \
    ((PyCFunction)(void (*)(void))(function)), METH_VARARGS | METH_KEYWORDS

PyDoc_STRVAR(
    start_doc,
    "start_listener($self, /, port, metadata, host=None)\n--\n\n"
    "Serve metadata. Returns the port (int).\n\n"
    "port: 0 binds a free one; None: VLLM_NIXL_SIDE_CHANNEL_PORT, or 5600\n"
    "metadata: what requesters get (bytes-like; copied), or a mapping from "
    "key to that.\n    A key is a str, bytes, or a tuple of ints such as "
    "(pp_rank, tp_rank), which is the\n    same as '0,1'; '' or None is the "
    "default, for those that name none\nhost: where to listen: an address, "
    "a name, an interface ('eth0'), or several, in a list\n    or with "
    "commas; None or '': VLLM_NIXL_SIDE_CHANNEL_HOST, or all of the "
    "machine's\n    addresses, IPv6 and IPv4\n\n"
    "nixlNotAllowedError, which is a RuntimeError here, when it is running "
    "already;\nnixlBackendError when the address is in use.");

PyDoc_STRVAR(set_doc,
             "set_metadata($self, /, metadata, key=None)\n--\n\n"
             "Serve other metadata from now on, while the listener runs.\n\n"
             "metadata: bytes-like for `key`, or a mapping from key to that; "
             "other keys stay\n\n"
             "nixlNotAllowedError when it is not running.");

PyDoc_STRVAR(remove_doc, "remove_metadata($self, /, key=None)\n--\n\n"
                         "Serve nothing under the key any more.\n\n"
                         "nixlNotFoundError where nothing was; "
                         "nixlNotAllowedError when not running.");

PyDoc_STRVAR(
    advertised_doc,
    "advertised_address($self, /, peer=None)\n--\n\n"
    "What to tell peers: (host, port) of the running listener.\n\n"
    "The host is `advertise`, VLLM_NIXL_SIDE_CHANNEL_HOST, the one that was "
    "bound, or the\nmachine's own first address that is no loopback.\n\n"
    "peer: who shall ask; a warning is logged where it cannot reach the "
    "address, being on\n    another host than this loopback");

PyDoc_STRVAR(shutdown_doc,
             "shutdown($self, /)\n--\n\n"
             "Stop serving; clients are not waited for.\n\n"
             "The port is free when this returns. Nothing happens when the "
             "listener is not running.");

PyDoc_STRVAR(is_running_doc, "is_running($self, /)\n--\n\n"
                             "Is the listener running? Never waits (bool).");

PyDoc_STRVAR(
    stats_doc,
    "stats($self, /)\n--\n\n"
    "Counters of the listener since it was made (dict).\n\n"
    "accepted: connections taken\n"
    "served: replies sent whole\n"
    "refused: clients turned away for what they sent; refusals: the same by "
    "reason (dict)\n"
    "timed_out: those that did not end within client_timeout_ms, or were "
    "idle too long\n"
    "evicted: those closed to make room for a new one\n"
    "open: connections now\n"
    "bytes_received, bytes_sent\n"
    "latency: replies by their time, [0] below 1 us, [i] from 2**(i-1) to "
    "2**i us (list)");

PyDoc_STRVAR(
    request_doc,
    "request_metadata($self, /, host, port, timeout_ms=5000, *, key=None, "
    "retries=0)\n--\n\n"
    "Fetch what the listener at host:port serves (bytes).\n\n"
    "timeout_ms: bounds the whole exchange: look-up of the name, connecting "
    "to each of its\n    addresses, proving, sending, receiving, further "
    "tries; None: 5000\n"
    "key: whose metadata: a str, bytes, or a tuple of ints; None: the "
    "default\n"
    "retries: further tries where the peer is not there yet or breaks off; "
    "None: until the\n    timeout\n\n"
    "Other threads run meanwhile; Ctrl-C ends it.\n\n"
    "nixlTimeoutError after that, nixlNotFoundError for an unknown name or "
    "key,\nnixlNotAllowedError where secrets differ or a certificate is not "
    "trusted,\nnixlMismatchError for a reply above max_frame, "
    "nixlBackendError for everything else that\nfails.");

PyDoc_STRVAR(
    many_doc,
    "request_many($self, /, peers, timeout_ms=5000, *, retries=0)\n--\n\n"
    "Ask many peers at once, from this thread alone.\n\n"
    "peers: an iterable of (host, port) or (host, port, key)\n\n"
    "Returns a list in the same order: the bytes, or the exception that "
    "request_metadata()\nwould have raised. timeout_ms and retries are those "
    "of each request.");

PyDoc_STRVAR(begin_doc,
             "_begin($self, /, peers, timeout_ms=5000, *, retries=0)\n--\n\n"
             "As request_many(), without waiting (SideChannelRequests).");

PyDoc_STRVAR(enter_doc, "__enter__($self, /)\n--\n\n"
                        "The side channel itself.");

PyDoc_STRVAR(exit_doc, "__exit__($self, /, *args)\n--\n\n"
                       "shutdown().");

PyMethodDef vnxi_py_side_methods[] = {
    {"start_listener", WITH_KEYWORDS(vnxi_py_side_start), start_doc},
    {"set_metadata", WITH_KEYWORDS(vnxi_py_side_set), set_doc},
    {"remove_metadata", WITH_KEYWORDS(vnxi_py_side_remove), remove_doc},
    {"advertised_address", WITH_KEYWORDS(vnxi_py_side_advertised),
     advertised_doc},
    {"shutdown", vnxi_py_side_shutdown, METH_NOARGS, shutdown_doc},
    {"is_running", vnxi_py_side_is_running, METH_NOARGS, is_running_doc},
    {"stats", vnxi_py_side_stats, METH_NOARGS, stats_doc},
    {"request_metadata", WITH_KEYWORDS(vnxi_py_side_request), request_doc},
    {"request_many", WITH_KEYWORDS(vnxi_py_side_many), many_doc},
    {"_begin", WITH_KEYWORDS(vnxi_py_side_begin), begin_doc},
    {"__enter__", vnxi_py_side_enter, METH_NOARGS, enter_doc},
    {"__exit__", vnxi_py_side_exit, METH_VARARGS, exit_doc},
    {NULL, NULL, 0, NULL},
};
