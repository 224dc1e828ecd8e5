#include "python/agent/agent.h"

#include <string.h>

#include "python/arguments/convert.h"

/* -- Taking --------------------------------------------------------------- */

/* Get the list of messages of a sender; creates it if there is none. */
static PyObject *
sender_list(PyObject *dict, PyObject *sender)
{
    PyObject *list = PyDict_GetItemWithError(dict, sender);
    if (list != NULL || PyErr_Occurred()) {
        if (list != NULL && !PyList_Check(list)) {
            PyErr_SetString(PyExc_TypeError,
                            "notifs must map names to lists of bytes");
            return NULL;
        }
        return Py_XNewRef(list);
    }
    list = PyList_New(0);
    if (list != NULL && PyDict_SetItem(dict, sender, list) < 0) {
        Py_CLEAR(list);
    }
    return list;
}

static bool
notif_add(PyObject *dict, const vnx_notif_t *notif)
{
    PyObject *sender = vnxi_py_name_new(notif->sender, notif->sender_len);
    PyObject *list = sender != NULL ? sender_list(dict, sender) : NULL;
    PyObject *message =
        list != NULL ? PyBytes_FromStringAndSize(
                           notif->message, (Py_ssize_t)notif->message_len)
                     : NULL;
    bool good = message != NULL && PyList_Append(list, message) == 0;
    Py_XDECREF(message);
    Py_XDECREF(list);
    Py_XDECREF(sender);
    return good;
}

/* Return `first` with the newer ones after it.  Notifications that could not
 * be handed over are joined with self->taken, because code of the caller may
 * have called _next_notif() meanwhile, which keeps newer ones. */
static vnx_notif_t *
chain_join(vnx_notif_t *first, vnx_notif_t *newer)
{
    if (first == NULL) {
        return newer;
    }
    vnx_notif_t *last = first;
    while (last->next != NULL) {
        last = last->next;
    }
    last->next = newer;
    return first;
}

/* vnx_agent_take_notifs().  The GIL is dropped only while the engine is
 * polled, which may wait: threads that take at the same time keep the order.
 */
static vnx_notif_t *
newer_take(vnxi_py_agent_t *self)
{
    bool poll_is_due;
    vnx_notif_t *chain = vnx_agent_take_arrived(self->agent, &poll_is_due);
    if (!poll_is_due) {
        return chain;
    }
    PyThreadState *thread =
        vnxi_py_gil_drop_if(vnx_agent_may_wait(self->agent));
    vnx_agent_poll_notifs(self->agent);
    vnxi_py_gil_take(thread);
    return vnx_agent_take_arrived(self->agent, &poll_is_due);
}

/* Take all notifications.  Oldest first: those that _next_notif() took and did
 * not return are older. */
static vnx_notif_t *
notifs_take(vnxi_py_agent_t *self)
{
    vnx_notif_t *newer = newer_take(self);
    vnx_notif_t *chain = chain_join(self->taken, newer);
    self->taken = NULL;
    return chain;
}

/* Add new notifications to the caller's dict, which has those that were added
 * also after a failure. */
static bool
notifs_into(vnxi_py_agent_t *self, PyObject *dict)
{
    vnx_notif_t *chain = notifs_take(self);
    while (chain != NULL) {
        vnx_notif_t *notif = chain;
        if (!notif_add(dict, notif)) {
            self->taken = chain_join(chain, self->taken);
            return false;
        }
        chain = notif->next;
        notif->next = NULL;
        vnx_notif_free(notif);
    }
    return true;
}

/* Return new notifications in a new dict; all of them are kept after a
 * failure. */
static PyObject *
notifs_dict(vnxi_py_agent_t *self)
{
    PyObject *dict = PyDict_New();
    vnx_notif_t *chain = dict != NULL ? notifs_take(self) : NULL;
    for (const vnx_notif_t *notif = chain; notif != NULL;
         notif = notif->next) {
        if (!notif_add(dict, notif)) {
            self->taken = chain_join(chain, self->taken);
            Py_DECREF(dict);
            return NULL;
        }
    }
    vnx_notif_free(chain);
    return dict;
}

/* Check `backends`.  The agent receives notifications from all backends, so
 * the names select nothing, but unknown names are refused. */
static bool
backends_check(vnxi_py_agent_t *self, const char *operation, PyObject *value)
{
    vnxi_py_backends_t backends;
    return value == NULL ||
           vnxi_py_backends_get(operation, self->backends, value, &backends);
}

VNXI_PY_AGENT_METHOD(
    get_new_notifs, (OPTIONAL(backends, "[]")),
    "Take all received notifications, by sender: a dict from name (str)\n"
    "to messages (list of bytes), in the order sent.")
{
    return backends_check(self, operation, args->backends) ? notifs_dict(self)
                                                           : NULL;
}

/* -- Collecting ----------------------------------------------------------- */

/* Add new notifications to agent.notifs.  The user may have replaced that
 * dict, and __eq__ of a key may replace it meanwhile.  Returns the dict that
 * has them. */
static PyObject *
notifs_collect(vnxi_py_agent_t *self)
{
    PyObject *dict = Py_XNewRef(self->notifs);
    if (dict == NULL || !PyDict_Check(dict)) {
        PyErr_SetString(PyExc_TypeError, "agent.notifs must be a dict");
        Py_CLEAR(dict);
    }
    if (dict != NULL && !notifs_into(self, dict)) {
        Py_CLEAR(dict);
    }
    return dict;
}

VNXI_PY_AGENT_METHOD(
    update_notifs, (OPTIONAL(backends, "[]")),
    "Add the received notifications to .notifs; return .notifs.")
{
    return backends_check(self, operation, args->backends)
               ? notifs_collect(self)
               : NULL;
}

static bool
tag_matches(PyObject *message, const vnxi_py_bytes_t *tag, bool is_prefix)
{
    if (!PyBytes_Check(message)) {
        return false;
    }
    const char *data = PyBytes_AS_STRING(message);
    size_t len = (size_t)PyBytes_GET_SIZE(message);
    if (!is_prefix) {
        return memmem(data, len, tag->data, tag->len) != NULL;
    }
    return len >= tag->len && memcmp(data, tag->data, tag->len) == 0;
}

/* Remove the first match.  1: removed; 0: no match; -1: exception. */
static int
tag_remove(PyObject *list, const vnxi_py_bytes_t *tag, bool is_prefix)
{
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) {
        if (tag_matches(PyList_GET_ITEM(list, i), tag, is_prefix)) {
            return PySequence_DelItem(list, i) < 0 ? -1 : 1;
        }
    }
    return 0;
}

/* Convert the name of an agent to a key of agent.notifs. */
static PyObject *
sender_key(const char *operation, PyObject *sender_arg)
{
    vnxi_py_bytes_t name;
    if (!vnxi_py_name_get(operation, sender_arg, &name)) {
        return NULL;
    }
    PyObject *sender = vnxi_py_name_new(name.data, name.len);
    vnxi_py_bytes_put(&name);
    return sender;
}

static int
sender_tag_remove(PyObject *dict, PyObject *sender, const vnxi_py_bytes_t *tag,
                  bool is_prefix)
{
    PyObject *list = Py_XNewRef(PyDict_GetItemWithError(dict, sender));
    int found = list != NULL && PyList_Check(list)
                    ? tag_remove(list, tag, is_prefix)
                : PyErr_Occurred() ? -1
                                   : 0;
    Py_XDECREF(list);
    return found;
}

VNXI_PY_AGENT_METHOD(
    check_remote_xfer_done,
    (REQUIRED(remote_agent_name), REQUIRED(lookup_tag),
     OPTIONAL(backends, "[]"), OPTIONAL(tag_is_prefix, "True")),
    "update_notifs(), then remove the first message of that peer that\n"
    "begins with the tag (or contains it). True if there was one.\n\n"
    "remote_agent_name: str or bytes\n"
    "lookup_tag: bytes or str\n"
    "tag_is_prefix: False: look for the tag anywhere in the message")
{
    vnxi_py_bytes_t tag;
    if (!backends_check(self, operation, args->backends)) {
        return NULL;
    }
    int is_prefix = vnxi_py_args_bool(args->tag_is_prefix, true);
    PyObject *sender =
        is_prefix >= 0 ? sender_key(operation, args->remote_agent_name) : NULL;
    if (sender == NULL || !vnxi_py_message_get(operation, "lookup_tag",
                                               args->lookup_tag, &tag)) {
        Py_XDECREF(sender);
        return NULL;
    }
    PyObject *dict = notifs_collect(self);
    int found = dict != NULL
                    ? sender_tag_remove(dict, sender, &tag, is_prefix > 0)
                    : -1;
    Py_XDECREF(dict);
    Py_DECREF(sender);
    vnxi_py_bytes_put(&tag);
    return found < 0 ? NULL : PyBool_FromLong(found);
}

/* -- One by one ----------------------------------------------------------- */

VNXI_PY_AGENT_METHOD_AS(
    _next_notif, "notifications", (),
    "The oldest notification as (sender, message), or None.")
{
    vnx_notif_t *notif = self->taken != NULL ? self->taken : notifs_take(self);
    if (notif == NULL) {
        Py_RETURN_NONE;
    }
    self->taken = notif->next;
    notif->next = NULL;
    PyObject *sender = vnxi_py_name_new(notif->sender, notif->sender_len);
    PyObject *pair = sender != NULL
                         ? Py_BuildValue("(Oy#)", sender, notif->message,
                                         (Py_ssize_t)notif->message_len)
                         : NULL;
    Py_XDECREF(sender);
    if (pair == NULL) {
        self->taken = chain_join(notif, self->taken);
    } else {
        vnx_notif_free(notif);
    }
    return pair;
}

/* -- Sending -------------------------------------------------------------- */

/* A backend, if given, must be one of the agent's.  It selects nothing: the
 * peer determines the route. */
static bool
send_backend_check(const vnxi_py_agent_t *self, const char *operation,
                   PyObject *backend)
{
    return backend == NULL || backend == Py_None ||
           vnxi_py_agent_backend(self, operation, backend, PyExc_KeyError);
}

VNXI_PY_AGENT_METHOD(
    send_notif,
    (REQUIRED(remote_agent_name), REQUIRED(notif_msg),
     OPTIONAL(backend, "None")),
    "Send a notification without a transfer.\n\n"
    "remote_agent_name: str or bytes\n"
    "notif_msg: bytes or str; may be empty\n"
    "backend: a backend of the agent, or None\n\n"
    "It is delivered once, in the order sent, unless the connection to\n"
    "the peer breaks, or the peer drops it because more than its\n"
    "notif_bytes_max (256 MiB) wait there to be taken. The call does not\n"
    "wait for the peer. nixlNotFoundError if the peer is not loaded,\n"
    "nixlRemoteDisconnectError if it is gone, nixlBackendError if it\n"
    "does not read and 256 MiB are queued for it.")
{
    vnxi_py_bytes_t peer, message;
    vnx_error_t error;
    if (!send_backend_check(self, operation, args->backend) ||
        !vnxi_py_peer_get(self->state, operation, args->remote_agent_name,
                          &peer)) {
        return NULL;
    }
    if (!vnxi_py_message_get(operation, "notif_msg", args->notif_msg,
                             &message)) {
        vnxi_py_bytes_put(&peer);
        return NULL;
    }
    vnx_status_t status = VNXI_PY_WITHOUT_GIL(vnx_agent_send_notif(
        self->agent, peer.data, peer.len, message.data, message.len, &error));
    vnxi_py_bytes_put(&message);
    vnxi_py_bytes_put(&peer);
    return vnxi_py_none(self->state, status, &error);
}
