/*
 * Design notes.  _publish() converts all lists first, because a conversion may
 * run the caller's code, which may change lists that were converted before.
 * Then it pins them and drops the GIL.
 */
#include <string.h>

#include "python/agent/handles.h"
#include "python/arguments/rows.h"
#include "python/descriptors/descs.h"
#include "python/errors.h"
#include "python/side_channel/side_channel.h"

/* -- Rows of the caller --------------------------------------------------- */

/* The rows of one name: an Nx5 array, or a descriptor list. */
typedef struct given {
    const char *name; /* borrowed from the caller's str */
    bool has_matrix;
    vnxi_py_matrix_t matrix;
    vnx_mem_t mem;          /* of the matrix */
    vnxi_py_descs_t *descs; /* owned; without a matrix */
    vnxi_py_runs_t *runs;   /* owned; what is used of `descs`: these, */
    bool is_pinned;         /* or its rows */
} given_t;

typedef struct givens {
    PyObject *items; /* a list of tuples, owns the names */
    given_t *list;
    vnx_named_rows_t *named;
    size_t count;
} givens_t;

static void
givens_put(givens_t *givens)
{
    for (size_t i = 0; i < givens->count; i++) {
        given_t *given = &givens->list[i];
        if (given->has_matrix) {
            vnxi_py_matrix_put(&given->matrix);
        }
        if (given->is_pinned) {
            vnxi_py_descs_unpin(given->descs);
        }
        vnxi_py_runs_release(given->runs);
        Py_XDECREF(given->descs);
    }
    PyMem_Free(givens->list);
    PyMem_Free(givens->named);
    Py_XDECREF(givens->items);
}

/* Get an Nx5 array.  false without an exception: it is an Nx3 array. */
static bool
matrix_get(vnxi_py_state_t *state, const char *operation, PyObject *source,
           PyObject *mem_type, given_t *given)
{
    if (!vnxi_py_mem_needed(operation, mem_type, &given->mem) ||
        !vnxi_py_matrix_get(state, operation, source, NULL, &given->matrix)) {
        return false;
    }
    given->has_matrix = given->matrix.columns == 5;
    if (!given->has_matrix) {
        vnxi_py_matrix_put(&given->matrix);
        return false;
    }
    int64_t row = -1;
    if (given->matrix.is_signed) {
        row =
            vnxi_py_matrix_negative(given->matrix.data, given->matrix.rows, 5);
    }
    return row < 0 ||
           vnxi_py_invalid(state, operation, row, "a number is negative");
}

static bool
rows_get(vnxi_py_state_t *state, const char *operation, PyObject *source,
         PyObject *mem_type, given_t *given)
{
    vnxi_py_source_t kind = vnxi_py_source_of(state, source);
    if (kind == VNXI_PY_SOURCE_EXCEPTION) {
        return false;
    }
    if (kind == VNXI_PY_SOURCE_MATRIX &&
        !vnxi_py_descs_is_any(state, source)) {
        bool done = matrix_get(state, operation, source, mem_type, given);
        if (done || PyErr_Occurred()) {
            return done;
        }
    }
    given->descs = vnxi_py_descs_from(state, operation, VNXI_PY_DESCS_XFER,
                                      source, mem_type);
    return given->descs != NULL;
}

/* The exception that is set got its operation from the text below, which also
 * names the list; leave the operation alone in its attribute. */
static void
operation_restore(const vnxi_py_state_t *state, const char *operation)
{
    PyObject *type, *value, *trace, *name;
    if (!PyErr_ExceptionMatches(state->error_base)) {
        return;
    }
    PyErr_Fetch(&type, &value, &trace);
    PyErr_NormalizeException(&type, &value, &trace);
    name = PyUnicode_FromString(operation);
    if (name == NULL ||
        PyObject_SetAttr(value, VNXI_PY_NAME(state, operation), name) < 0) {
        PyErr_Clear();
    }
    Py_XDECREF(name);
    PyErr_Restore(type, value, trace);
}

static bool
item_get(vnxi_py_state_t *state, const char *operation, PyObject *item,
         PyObject *mem_type, givens_t *givens)
{
    char text[VNX_LIST_NAME_MAX + 32];
    given_t *given = &givens->list[givens->count];
    if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 2) {
        return vnxi_py_wrong_type(operation, "an item of rows",
                                  "a name and its rows", item);
    }
    given->name = vnxi_py_text_get(state, operation, "a name in rows",
                                   PyTuple_GET_ITEM(item, 0));
    if (given->name == NULL) {
        return false;
    }
    givens->count++;
    PyOS_snprintf(text, sizeof text, "%s: list '%.255s'", operation,
                  given->name);
    bool good =
        rows_get(state, text, PyTuple_GET_ITEM(item, 1), mem_type, given);
    if (!good) {
        operation_restore(state, operation);
    }
    return good;
}

static PyObject *
items_of(const char *operation, PyObject *mapping)
{
    PyObject *items =
        PyMapping_Check(mapping) ? PyMapping_Items(mapping) : NULL;
    if (items == NULL &&
        (!PyErr_Occurred() || PyErr_ExceptionMatches(PyExc_AttributeError))) {
        PyErr_Clear();
        vnxi_py_wrong_type(operation, "rows",
                           "a mapping from names to descriptors", mapping);
    }
    return items;
}

static bool
givens_get(vnxi_py_state_t *state, const char *operation, PyObject *mapping,
           PyObject *mem_type, givens_t *givens)
{
    givens->items = items_of(operation, mapping);
    if (givens->items == NULL) {
        return false;
    }
    size_t count = (size_t)PyList_GET_SIZE(givens->items);
    givens->list = PyMem_Calloc(count + 1, sizeof *givens->list);
    givens->named = PyMem_Calloc(count + 1, sizeof *givens->named);
    if (givens->list == NULL || givens->named == NULL) {
        return PyErr_NoMemory();
    }
    for (size_t i = 0; i < count; i++) {
        if (!item_get(state, operation,
                      PyList_GET_ITEM(givens->items, (Py_ssize_t)i), mem_type,
                      givens)) {
            return false;
        }
    }
    return true;
}

/* Make a list stay as it is while the GIL is dropped. */
static bool
pin(given_t *given, vnx_named_rows_t *named)
{
    vnxi_py_descs_t *descs = given->descs;
    *named = (vnx_named_rows_t){.name = given->name, .mem = given->mem};
    if (given->has_matrix) {
        named->strided = (const vnx_strided_desc_t *)given->matrix.data;
        named->count = given->matrix.rows;
        return true;
    }
    named->mem = descs->mem;
    if (descs->runs != NULL) {
        given->runs = vnxi_py_runs_retain(descs->runs);
        named->strided = given->runs->items;
        named->count = given->runs->count;
        return true;
    }
    given->is_pinned = vnxi_py_descs_pin(descs);
    named->rows = descs->rows;
    named->count = descs->count;
    return given->is_pinned;
}

static bool
pin_all(givens_t *givens)
{
    for (size_t i = 0; i < givens->count; i++) {
        if (!pin(&givens->list[i], &givens->named[i])) {
            return false;
        }
    }
    return true;
}

/* -- Publishing ----------------------------------------------------------- */

static PyObject *
publish(vnxi_py_side_channel_t *self, const vnxi_py_agent_t *agent,
        vnx_publish_params_t *params, givens_t *givens)
{
    vnx_error_t error;
    int port = 0;
    if (!pin_all(givens)) {
        return NULL;
    }
    params->lists = givens->named;
    params->count = givens->count;
    vnx_status_t status = VNXI_PY_WITHOUT_GIL(
        vnx_publish(agent->agent, self->channel, params, &port, &error));
    return status == VNX_OK ? PyLong_FromLong(port)
                            : vnxi_py_raise(self->state, &error);
}

/* Get the address to listen at.  *host_p owns the text. */
static bool
address_get(vnxi_py_state_t *state, const char *operation, PyObject *host,
            PyObject *port, vnx_publish_params_t *params, PyObject **host_p)
{
    if (port != Py_None &&
        !vnxi_py_side_port(state, operation, port, 0, &params->port)) {
        return false;
    }
    if (host == Py_None) {
        return true;
    }
    *host_p = vnxi_py_side_host(operation, host);
    params->host = *host_p != NULL
                       ? vnxi_py_text_get(state, operation, "host", *host_p)
                       : NULL;
    return params->host != NULL;
}

VNXI_PY_SIDE_METHOD_AS(_publish, "publish",
                       (REQUIRED(agent), REQUIRED(rows), REQUIRED(port),
                        REQUIRED(host), REQUIRED(mem_type)),
                       "NixlAgent.publish() of that agent, on this channel.")
{
    vnx_publish_params_t params = {.size = sizeof params,
                                   .port = VNX_SIDE_CHANNEL_PORT_DEFAULT};
    vnxi_py_agent_t *agent =
        vnxi_py_side_agent(self->state, operation, args->agent);
    PyObject *host = NULL, *result = NULL;
    givens_t givens = {0};
    if (agent != NULL &&
        address_get(self->state, operation, args->host, args->port, &params,
                    &host) &&
        givens_get(self->state, operation, args->rows, args->mem_type,
                   &givens)) {
        result = publish(self, agent, &params, &givens);
    }
    givens_put(&givens);
    Py_XDECREF(host);
    return result;
}

/* -- Lists of a peer ------------------------------------------------------ */

static PyObject *
descs_new(vnxi_py_state_t *state, const vnx_named_rows_t *list)
{
    vnxi_py_descs_t *descs =
        vnxi_py_descs_new(state, VNXI_PY_DESCS_XFER, list->mem);
    if (descs == NULL) {
        return NULL;
    }
    if (list->rows != NULL) {
        if (!vnxi_py_descs_extend(descs, list->rows, list->count)) {
            Py_CLEAR(descs);
        }
        return (PyObject *)descs;
    }
    vnxi_py_runs_t *runs = vnxi_py_runs_new(list->strided, list->count);
    if (runs == NULL || !vnxi_py_descs_take_runs(descs, runs)) {
        vnxi_py_runs_release(runs);
        Py_CLEAR(descs);
    }
    return (PyObject *)descs;
}

/* (prepared list, descriptors) */
static PyObject *
pair_new(vnxi_py_agent_t *agent, const vnx_peer_t *peer, size_t i)
{
    PyObject *descs = descs_new(agent->state, vnx_peer_list(peer, i));
    PyObject *handle =
        descs != NULL ? vnxi_py_dlist_new(
                            agent, vnx_dlist_retain(vnxi_peer_dlist(peer, i)))
                      : NULL;
    PyObject *pair = handle != NULL ? PyTuple_Pack(2, handle, descs) : NULL;
    Py_XDECREF(handle);
    Py_XDECREF(descs);
    return pair;
}

static bool
lists_add(PyObject *dict, vnxi_py_agent_t *agent, const vnx_peer_t *peer)
{
    const vnx_named_rows_t *list;
    bool good = true;
    for (size_t i = 0; good && (list = vnx_peer_list(peer, i)) != NULL; i++) {
        PyObject *name = vnxi_py_name_new(list->name, strlen(list->name));
        PyObject *pair = name != NULL ? pair_new(agent, peer, i) : NULL;
        good = pair != NULL && PyDict_SetItem(dict, name, pair) == 0;
        Py_XDECREF(pair);
        Py_XDECREF(name);
    }
    return good;
}

PyObject *
vnxi_py_peer_new(vnxi_py_agent_t *agent, vnx_peer_t *peer)
{
    size_t len;
    const char *text = vnx_peer_name(peer, &len);
    PyObject *name = vnxi_py_name_new(text, len);
    PyObject *lists = name != NULL ? PyDict_New() : NULL;
    PyObject *result = NULL;
    if (lists != NULL && lists_add(lists, agent, peer)) {
        result = PyTuple_Pack(2, name, lists);
    }
    Py_XDECREF(lists);
    Py_XDECREF(name);
    Py_BEGIN_ALLOW_THREADS;
    vnx_peer_free(peer);
    Py_END_ALLOW_THREADS;
    return result;
}
