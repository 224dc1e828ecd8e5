#include "python/agent/agent.h"

#include <string.h>

#include "python/arguments/convert.h"

/* -- Taking --------------------------------------------------------------- */

/* The list of messages of a sender; new where there is none. */
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

/* `first`, and what is newer behind it. */
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

/* Everything that is pending, oldest first; what stayed behind from
 * _next_notif() is older. */
static vnx_notif_t *
chain_take(vnxi_py_agent_t *self)
{
    vnx_notif_t *chain =
        chain_join(self->taken, vnx_agent_take_notifs(self->agent));
    self->taken = NULL;
    return chain;
}

/* Give back what could not be handed over: it stays pending.  Code of the
 * caller may have left newer ones behind meanwhile. */
static void
chain_keep(vnxi_py_agent_t *self, vnx_notif_t *chain)
{
    self->taken = chain_join(chain, self->taken);
}

static bool
notifs_into(vnxi_py_agent_t *self, PyObject *dict)
{
    vnx_notif_t *chain = chain_take(self);
    while (chain != NULL) {
        vnx_notif_t *notif = chain;
        if (!notif_add(dict, notif)) {
            chain_keep(self, chain);
            return false;
        }
        chain = notif->next;
        notif->next = NULL;
        vnx_notif_free(notif);
    }
    return true;
}

/* Parse `backends`, which limits nothing here: notifications come to the
 * agent, by whichever way.  Unknown names are refused all the same. */
static bool
backends_check(vnxi_py_agent_t *self, const char *operation, PyObject *value)
{
    vnxi_py_backends_t backends;
    return value == NULL ||
           vnxi_py_backends_get(operation, self->backends, value, &backends);
}

static const vnxi_py_signature_t new_signature = {
    .name = "get_new_notifs",
    .count = 1,
    .params = {VNXI_PY_NAME_backends},
};

VNXI_PY_METHOD(get_new_notifs)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *value;
    if (!vnxi_py_agent_begin(op, &new_signature, args, nargs, kwnames,
                             &value) ||
        !backends_check(self, new_signature.name, value)) {
        return NULL;
    }
    PyObject *dict = PyDict_New();
    if (dict != NULL && !notifs_into(self, dict)) {
        Py_CLEAR(dict);
    }
    return dict;
}

/* -- Collecting ----------------------------------------------------------- */

/* Add what is new to agent.notifs, which the user may have replaced, and which
 * __eq__ of a key may replace meanwhile.  Returns the dict that has it. */
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

static const vnxi_py_signature_t update_signature = {
    .name = "update_notifs",
    .count = 1,
    .params = {VNXI_PY_NAME_backends},
};

VNXI_PY_METHOD(update_notifs)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *value;
    if (!vnxi_py_agent_begin(op, &update_signature, args, nargs, kwnames,
                             &value) ||
        !backends_check(self, update_signature.name, value)) {
        return NULL;
    }
    return notifs_collect(self);
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

/* Remove the first match: 1, 0 where there is none, -1 and an exception. */
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

static const vnxi_py_signature_t done_signature = {
    .name = "check_remote_xfer_done",
    .count = 4,
    .required = 2,
    .params = {VNXI_PY_NAME_remote_agent_name, VNXI_PY_NAME_lookup_tag,
               VNXI_PY_NAME_backends, VNXI_PY_NAME_tag_is_prefix},
};

/* The name of an agent as a key of agent.notifs. */
static PyObject *
sender_key(PyObject *sender_arg)
{
    vnxi_py_bytes_t name;
    if (!vnxi_py_name_get(done_signature.name, sender_arg, &name)) {
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

VNXI_PY_METHOD(check_remote_xfer_done)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *values[4];
    vnxi_py_bytes_t tag;
    if (!vnxi_py_agent_begin(op, &done_signature, args, nargs, kwnames,
                             values) ||
        !backends_check(self, done_signature.name, values[2])) {
        return NULL;
    }
    int is_prefix = vnxi_py_args_bool(values[3], true);
    PyObject *sender = is_prefix >= 0 ? sender_key(values[0]) : NULL;
    if (sender == NULL ||
        !vnxi_py_message_get(done_signature.name, "lookup_tag", values[1],
                             &tag)) {
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

static const vnxi_py_signature_t next_signature = {.name = "notifications"};

VNXI_PY_METHOD(next_notif)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    if (!vnxi_py_agent_begin(op, &next_signature, args, nargs, kwnames,
                             NULL)) {
        return NULL;
    }
    vnx_notif_t *notif = self->taken;
    if (notif == NULL) {
        notif = vnx_agent_take_notifs(self->agent);
    }
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
        chain_keep(self, notif);
    } else {
        vnx_notif_free(notif);
    }
    return pair;
}

/* -- Sending -------------------------------------------------------------- */

static const vnxi_py_signature_t send_signature = {
    .name = "send_notif",
    .count = 3,
    .required = 2,
    .params = {VNXI_PY_NAME_remote_agent_name, VNXI_PY_NAME_notif_msg,
               VNXI_PY_NAME_backend},
};

/* A backend, if given, must be one of the agent's; the way is the peer's. */
static bool
send_backend_check(const vnxi_py_agent_t *self, PyObject *backend)
{
    if (backend == NULL || backend == Py_None) {
        return true;
    }
    int known = vnxi_py_agent_has_backend(self, backend);
    if (known == 0) {
        PyErr_Format(PyExc_KeyError, "%s: the agent has no backend %R",
                     send_signature.name, backend);
    }
    return known > 0;
}

VNXI_PY_METHOD(send_notif)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *values[3];
    vnxi_py_bytes_t peer, message;
    vnx_error_t error;
    vnx_status_t status;
    if (!vnxi_py_agent_begin(op, &send_signature, args, nargs, kwnames,
                             values) ||
        !send_backend_check(self, values[2]) ||
        !vnxi_py_peer_get(self->state, send_signature.name, values[0],
                          &peer)) {
        return NULL;
    }
    if (!vnxi_py_message_get(send_signature.name, "notif_msg", values[1],
                             &message)) {
        vnxi_py_bytes_put(&peer);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS;
    status = vnx_agent_send_notif(self->agent, peer.data, peer.len,
                                  message.data, message.len, &error);
    Py_END_ALLOW_THREADS;
    vnxi_py_bytes_put(&message);
    vnxi_py_bytes_put(&peer);
    if (status < 0) {
        return vnxi_py_raise(self->state, &error);
    }
    Py_RETURN_NONE;
}
