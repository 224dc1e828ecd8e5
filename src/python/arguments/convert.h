/*
 * Small arguments of many calls: integers, names of agents, messages, memory
 * types, operations, lists of backends; and small results.
 */
#ifndef VNXI_PYTHON_CONVERT_H
#define VNXI_PYTHON_CONVERT_H

#include "python/module.h"

/* -- Integers ------------------------------------------------------------- */

/* The result of converting a value to a 64-bit number. */
typedef enum vnxi_py_int_result {
    VNXI_PY_INT_OK = 0,
    VNXI_PY_INT_RANGE,     /* negative, or too large; no exception is set */
    VNXI_PY_INT_TYPE,      /* not an integer; no exception is set */
    VNXI_PY_INT_EXCEPTION, /* its __index__ raised; the exception is set */
} vnxi_py_int_result_t;

/* Convert an int, or an object with __index__ (numpy scalars); bool is
 * refused. */
vnxi_py_int_result_t vnxi_py_int_slow(PyObject *value, uint64_t *number_p);

static inline vnxi_py_int_result_t
vnxi_py_int_get(PyObject *value, uint64_t *number_p)
{
    if (PyLong_CheckExact(value)) {
        unsigned long long number = PyLong_AsUnsignedLongLong(value);
        if (number != (unsigned long long)-1) {
            *number_p = number;
            return VNXI_PY_INT_OK;
        }
    }
    return vnxi_py_int_slow(value, number_p);
}

/* Raise the exception of a result other than OK.  An exception that is set
 * stays; the others are nixlInvalidParamError and TypeError, and name the row
 * and `what`. */
void vnxi_py_int_raise(vnxi_py_state_t *state, const char *operation,
                       int64_t row, const char *what, PyObject *value,
                       vnxi_py_int_result_t result);

/* Get an int from `min` to `max`; `what` names it.  false: exception. */
bool vnxi_py_int_between(vnxi_py_state_t *state, const char *operation,
                         const char *what, PyObject *value, uint64_t min,
                         uint64_t max, uint64_t *number_p);

/* Does the buffer hold integers of this machine's byte order?  *is_signed_p
 * says which; their size is view->itemsize. */
bool vnxi_py_buffer_is_integer(const Py_buffer *view, bool *is_signed_p);

/* -- Texts and names ------------------------------------------------------ */

/* The bytes of an argument.  The argument must outlive them. */
typedef struct vnxi_py_bytes {
    const void *data; /* not NULL, even when empty, except for a notif */
    size_t len;
    PyObject *owner; /* NULL, or a temporary that holds `data` */
    Py_buffer view;  /* where has_view */
    bool has_view;
} vnxi_py_bytes_t;

/* Get the name of an agent from str or bytes.  false: exception. */
bool vnxi_py_name_get(const char *operation, PyObject *value,
                      vnxi_py_bytes_t *bytes_p);

/* Get the name of a peer: as above, but an empty name is refused. */
bool vnxi_py_peer_get(vnxi_py_state_t *state, const char *operation,
                      PyObject *value, vnxi_py_bytes_t *bytes_p);

/* Get a message or a blob from any bytes-like object, or from str in UTF-8. */
bool vnxi_py_message_get(const char *operation, const char *what,
                         PyObject *value, vnxi_py_bytes_t *bytes_p);

/* Get the notification of a transfer, which is a message.  data is NULL if
 * there is none: a left-out argument, None, or an empty message. */
static inline bool
vnxi_py_notif_get(const char *operation, PyObject *value,
                  vnxi_py_bytes_t *notif_p)
{
    if (value == NULL || value == Py_None) {
        notif_p->data = NULL;
        notif_p->len = 0;
        notif_p->owner = NULL;
        notif_p->has_view = false;
        return true;
    }
    if (!vnxi_py_message_get(operation, "notif_msg", value, notif_p)) {
        return false;
    }
    if (notif_p->len == 0) {
        notif_p->data = NULL;
    }
    return true;
}

/* Release the bytes.  Call it after each call above that returned true. */
static inline void
vnxi_py_bytes_put(vnxi_py_bytes_t *bytes)
{
    Py_XDECREF(bytes->owner);
    if (bytes->has_view) {
        PyBuffer_Release(&bytes->view);
    }
}

/* Get a str without null characters in UTF-8, borrowed from `value`; `what`
 * names it.  NULL: exception. */
const char *vnxi_py_text_get(vnxi_py_state_t *state, const char *operation,
                             const char *what, PyObject *value);

/* Create a str from the name of an agent; dictionaries have such keys. */
PyObject *vnxi_py_name_new(const void *name, size_t len);

/* Get a memory type from "DRAM", "VRAM", "BLK" or "BLOCK", "OBJ", "FILE",
 * "cpu", "cuda", or a member of nixl_mem_t.  Another name raises KeyError. */
bool vnxi_py_mem_get(const char *operation, PyObject *value, vnx_mem_t *mem_p);

/* The same for an argument that is required: NULL and None are a TypeError. */
bool vnxi_py_mem_needed(const char *operation, PyObject *value,
                        vnx_mem_t *mem_p);

/* Get an operation from "READ" or "WRITE"; another name raises KeyError. */
bool vnxi_py_op_get(vnxi_py_state_t *state, const char *operation,
                    PyObject *value, vnx_op_t *op_p);

#define VNXI_PY_BACKENDS_MAX 16
#define VNXI_PY_BACKEND_NAME_MAX 32

/* Names of backends, copied, so that they outlive the caller's list. */
typedef struct vnxi_py_backends {
    const char *const *list; /* NULL: all */
    const char *names[VNXI_PY_BACKENDS_MAX + 1];
    char text[VNXI_PY_BACKENDS_MAX][VNXI_PY_BACKEND_NAME_MAX];
} vnxi_py_backends_t;

/* Get backends from None, a left-out argument, or a sequence of names that are
 * all keys of `created` (NULL: any name).  KeyError: an unknown name. */
bool vnxi_py_backends_get(const char *operation, PyObject *created,
                          PyObject *value, vnxi_py_backends_t *backends_p);

/* Write what to do about a backend (str) that is not a key of `created`, to be
 * appended to a message. */
#define VNXI_PY_HELP_MAX 300
const char *vnxi_py_backend_help(PyObject *created, PyObject *name,
                                 char text[VNXI_PY_HELP_MAX]);

/* Convert an argument in seconds to nanoseconds; None: VNX_FOREVER. */
bool vnxi_py_timeout_get(vnxi_py_state_t *state, const char *operation,
                         PyObject *value, uint64_t *ns_p);

/* -- Results -------------------------------------------------------------- */

/* Set a key to `value`.  Takes the reference; `value` may be NULL with an
 * exception set.  false: exception. */
bool vnxi_py_dict_set(PyObject *dict, const char *key, PyObject *value);

/* A number and its key.  Set each key, with `prefix` in front of it, to its
 * number. */
typedef struct vnxi_py_number {
    const char *key;
    uint64_t value;
} vnxi_py_number_t;

bool vnxi_py_dict_set_numbers(PyObject *dict, const char *prefix,
                              const vnxi_py_number_t *numbers, size_t count);

/* Create a list of ints.  NULL: exception. */
PyObject *vnxi_py_numbers_new(const uint64_t *numbers, size_t count);

#endif
