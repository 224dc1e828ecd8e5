#include <string.h>

#include "python/arguments/convert.h"
#include "python/errors.h"
#include "python/side_channel/side_channel.h"

bool
vnxi_py_side_port(vnxi_py_state_t *state, const char *operation,
                  PyObject *value, int min, int *port_p)
{
    uint64_t number;
    if (!vnxi_py_int_between(state, operation, "port", value, (uint64_t)min,
                             65535, &number)) {
        return false;
    }
    *port_p = (int)number;
    return true;
}

PyObject *
vnxi_py_side_host(const char *operation, PyObject *value)
{
    if (PyUnicode_Check(value)) {
        return Py_NewRef(value);
    }
    if (!PyList_Check(value) && !PyTuple_Check(value)) {
        return vnxi_py_wrong_type(operation, "host",
                                  "a str, a list of them or None", value);
    }
    PyObject *comma = PyUnicode_FromString(",");
    PyObject *joined = comma != NULL ? PyUnicode_Join(comma, value) : NULL;
    Py_XDECREF(comma);
    return joined;
}

vnxi_py_agent_t *
vnxi_py_side_agent(vnxi_py_state_t *state, const char *operation,
                   PyObject *value)
{
    if (!PyObject_TypeCheck(value, vnxi_py_type(state, VNXI_PY_TYPE_AGENT))) {
        vnxi_py_wrong_type(operation, "agent", "an agent", value);
        return NULL;
    }
    vnxi_py_agent_t *agent = (vnxi_py_agent_t *)value;
    return vnxi_py_agent_is_made(agent) ? agent : NULL;
}

/* Write ranks as text, such as "0,1" for (0, 1); NULL: exception. */
static PyObject *
text_of_ranks(vnxi_py_state_t *state, const char *operation, PyObject *tuple)
{
    PyObject *text = PyUnicode_FromString("");
    if (PyTuple_GET_SIZE(tuple) == 0) {
        Py_XDECREF(text);
        return vnxi_py_invalid(state, operation, VNXI_PY_NO_ROW,
                               "a key is an empty tuple");
    }
    for (Py_ssize_t i = 0; text != NULL && i < PyTuple_GET_SIZE(tuple); i++) {
        uint64_t rank;
        PyObject *longer = NULL;
        if (vnxi_py_int_between(state, operation, "a rank of a key",
                                PyTuple_GET_ITEM(tuple, i), 0, INT64_MAX,
                                &rank)) {
            longer = PyUnicode_FromFormat(i == 0 ? "%U%llu" : "%U,%llu", text,
                                          (unsigned long long)rank);
        }
        Py_SETREF(text, longer);
    }
    return text;
}

static bool
key_of_ranks(vnxi_py_state_t *state, const char *operation, PyObject *tuple,
             vnxi_py_bytes_t *key_p)
{
    PyObject *text = text_of_ranks(state, operation, tuple);
    if (text == NULL) {
        return false;
    }
    bool done = vnxi_py_message_get(operation, "a key", text, key_p);
    if (done && key_p->owner == NULL) {
        key_p->owner = Py_NewRef(text);
    }
    Py_DECREF(text);
    return done;
}

bool
vnxi_py_side_key(vnxi_py_state_t *state, const char *operation,
                 PyObject *value, vnxi_py_bytes_t *key_p)
{
    if (value == NULL || value == Py_None) {
        *key_p = (vnxi_py_bytes_t){.data = ""};
        return true;
    }
    if (PyTuple_Check(value)) {
        return key_of_ranks(state, operation, value, key_p);
    }
    if (!PyUnicode_Check(value) && !PyBytes_Check(value)) {
        return vnxi_py_wrong_type(operation, "a key",
                                  "a str, bytes, a tuple of ints or None",
                                  value);
    }
    return vnxi_py_message_get(operation, "a key", value, key_p);
}

void
vnxi_py_side_blobs_put(vnxi_py_blobs_t *blobs)
{
    for (size_t i = 0; i < 2 * blobs->count; i++) {
        vnxi_py_bytes_put(&blobs->bytes[i]);
    }
    PyMem_Free(blobs->bytes);
    PyMem_Free(blobs->blobs);
    Py_XDECREF(blobs->items);
    *blobs = (vnxi_py_blobs_t){0};
}

/* Make room for `most` blobs; none is added yet. */
static bool
blobs_alloc(vnxi_py_blobs_t *blobs, size_t most)
{
    blobs->blobs = PyMem_Calloc(most, sizeof *blobs->blobs);
    blobs->bytes = PyMem_Calloc(2 * most, sizeof *blobs->bytes);
    if (blobs->blobs == NULL || blobs->bytes == NULL) {
        return PyErr_NoMemory();
    }
    return true;
}

static bool
blobs_add(vnxi_py_state_t *state, const char *operation, PyObject *key,
          PyObject *data, vnxi_py_blobs_t *blobs)
{
    vnxi_py_bytes_t *pair = &blobs->bytes[2 * blobs->count];
    if (!vnxi_py_side_key(state, operation, key, &pair[0])) {
        return false;
    }
    if (!vnxi_py_message_get(operation, "metadata", data, &pair[1])) {
        vnxi_py_bytes_put(&pair[0]);
        return false;
    }
    blobs->blobs[blobs->count++] =
        (vnx_side_channel_blob_t){.key = pair[0].data,
                                  .key_length = pair[0].len,
                                  .data = pair[1].data,
                                  .length = pair[1].len};
    return true;
}

static bool
add_items(vnxi_py_state_t *state, const char *operation,
          vnxi_py_blobs_t *blobs)
{
    Py_ssize_t count = PyList_GET_SIZE(blobs->items);
    if (!blobs_alloc(blobs, (size_t)count)) {
        return false;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *item = PyList_GET_ITEM(blobs->items, i);
        if (!PyTuple_Check(item) || PyTuple_GET_SIZE(item) != 2) {
            return vnxi_py_wrong_type(operation, "an item of metadata",
                                      "a key and bytes", item);
        }
        if (!blobs_add(state, operation, PyTuple_GET_ITEM(item, 0),
                       PyTuple_GET_ITEM(item, 1), blobs)) {
            return false;
        }
    }
    return true;
}

/* 1: a mapping; 0: not one; -1: exception.  A mapping written in Python passes
 * PySequence_Check() too, and a list PyMapping_Check(). */
static int
is_mapping(PyObject *value)
{
    if (!PyMapping_Check(value) || PyObject_CheckBuffer(value) ||
        PyUnicode_Check(value)) {
        return 0;
    }
    PyObject *items = PyObject_GetAttrString(value, "items");
    if (items == NULL) {
        if (!PyErr_ExceptionMatches(PyExc_AttributeError)) {
            return -1;
        }
        PyErr_Clear();
        return 0;
    }
    Py_DECREF(items);
    return 1;
}

bool
vnxi_py_side_blobs(vnxi_py_state_t *state, const char *operation,
                   PyObject *value, vnxi_py_blobs_t *blobs_p)
{
    vnxi_py_blobs_t blobs = {0};
    bool done = false;
    int has_items = is_mapping(value);
    if (has_items > 0) {
        blobs.items = PyMapping_Items(value);
        done = blobs.items != NULL && add_items(state, operation, &blobs);
    } else if (has_items == 0) {
        done = blobs_alloc(&blobs, 1) &&
               blobs_add(state, operation, NULL, value, &blobs);
    }
    if (!done) {
        vnxi_py_side_blobs_put(&blobs);
        return false;
    }
    *blobs_p = blobs;
    return true;
}
