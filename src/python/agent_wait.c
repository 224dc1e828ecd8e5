#include "python/agent.h"

#include <stdio.h>

#include "base/clock.h"
#include "python/convert.h"
#include "python/handles.h"

/* How long a wait goes on before it looks for Ctrl-C. */
#define WAIT_SLICE_NS 50000000u

/* -- Sets of transfers ---------------------------------------------------- */

typedef struct xfer_set {
    PyObject *handles;  /* tuple */
    vnx_xfer_t **xfers; /* retained */
    size_t count;
} xfer_set_t;

static void
set_put(xfer_set_t *set)
{
    for (size_t i = 0; i < set->count; i++) {
        vnx_xfer_drop(set->xfers[i]);
    }
    PyMem_Free(set->xfers);
    Py_DECREF(set->handles);
}

static bool
set_fill(const vnxi_py_agent_t *self, const char *operation, xfer_set_t *set)
{
    Py_ssize_t count = PyTuple_GET_SIZE(set->handles);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *handle = PyTuple_GET_ITEM(set->handles, i);
        if (!vnxi_py_xfer_is_of(self, handle) ||
            ((vnxi_py_xfer_t *)handle)->xfer == NULL) {
            vnxi_py_xfer_refuse(self, operation, i, handle);
            return false;
        }
        set->xfers[set->count++] =
            vnx_xfer_retain(((vnxi_py_xfer_t *)handle)->xfer);
    }
    return true;
}

/* From one handle or any iterable of them. */
static bool
set_get(const vnxi_py_agent_t *self, const char *operation, PyObject *value,
        xfer_set_t *set_p)
{
    *set_p = (xfer_set_t){0};
    set_p->handles = vnxi_py_is(self->state, VNXI_PY_TYPE_XFER, value)
                         ? PyTuple_Pack(1, value)
                         : PySequence_Tuple(value);
    if (set_p->handles == NULL) {
        return false;
    }
    size_t count = (size_t)PyTuple_GET_SIZE(set_p->handles);
    set_p->xfers = PyMem_Malloc((count + 1) * sizeof *set_p->xfers);
    if (set_p->xfers == NULL) {
        PyErr_NoMemory();
    }
    if (set_p->xfers == NULL || !set_fill(self, operation, set_p)) {
        set_put(set_p);
        return false;
    }
    return true;
}

static bool
is_open(const vnx_xfer_t *xfer)
{
    return vnx_xfer_state(xfer) == VNX_XFER_POSTED;
}

/* The handles that are open, or those that are not, in the order given. */
static PyObject *
set_list(const xfer_set_t *set, bool open)
{
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list != NULL && i < set->count; i++) {
        if (is_open(set->xfers[i]) == open &&
            PyList_Append(list, PyTuple_GET_ITEM(set->handles, i)) < 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}

/* -- Waiting -------------------------------------------------------------- */

/* "3 of 5 transfers have not ended in time: numbers 0, 2, 3". */
static void
timeout_describe(const xfer_set_t *set, vnx_error_t *error)
{
    char numbers[200] = "";
    size_t open = 0, used = 0, first = 0;
    for (size_t i = 0; i < set->count; i++) {
        if (!is_open(set->xfers[i])) {
            continue;
        }
        first = open++ == 0 ? i : first;
        if (used + 32 < sizeof numbers) {
            used += (size_t)snprintf(numbers + used, sizeof numbers - used,
                                     "%s%zu", used > 0 ? ", " : "", i);
        } else if (numbers[used - 1] != '.') {
            used += (size_t)snprintf(numbers + used, sizeof numbers - used,
                                     ", ...");
        }
    }
    vnxi_error_set(error, VNX_ERR_TIMEOUT, "wait",
                   "%zu of %zu transfers have not ended in time: numbers %s",
                   open, set->count, numbers);
    vnxi_error_row(error, first);
}

static void
timeout_raise(vnxi_py_agent_t *self, const xfer_set_t *set)
{
    vnx_error_t error;
    timeout_describe(set, &error);
    PyObject *exception = vnxi_py_error_new(self->state, &error);
    PyObject *open = exception != NULL ? set_list(set, true) : NULL;
    if (open != NULL &&
        PyObject_SetAttr(exception, VNXI_PY_NAME(self->state, pending),
                         open) == 0) {
        PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
    }
    Py_XDECREF(open);
    Py_XDECREF(exception);
}

static vnx_status_t
slice_wait(vnxi_py_agent_t *self, const xfer_set_t *set, bool any,
           uint64_t deadline, vnx_error_t *error)
{
    uint64_t now = vnxi_clock_ns();
    uint64_t left = deadline > now ? deadline - now : 0;
    uint64_t slice = left < WAIT_SLICE_NS ? left : WAIT_SLICE_NS;
    vnx_status_t status;
    Py_BEGIN_ALLOW_THREADS;
    status =
        vnx_agent_wait(self->agent, set->xfers, set->count, any, slice, error);
    Py_END_ALLOW_THREADS;
    return status;
}

/* Until enough of them have ended; false and an exception.  The first look
 * keeps the GIL: as a rule it is the last. */
static bool
set_wait(vnxi_py_agent_t *self, const xfer_set_t *set, bool any,
         uint64_t timeout_ns)
{
    vnx_error_t error;
    uint64_t deadline = vnxi_clock_deadline(timeout_ns);
    vnx_status_t status =
        vnx_agent_wait(self->agent, set->xfers, set->count, any, 0, &error);
    while (status == VNX_ERR_TIMEOUT) {
        if (PyErr_CheckSignals() < 0) {
            return false;
        }
        if (vnxi_clock_ns() >= deadline) {
            timeout_raise(self, set);
            return false;
        }
        status = slice_wait(self, set, any, deadline, &error);
    }
    if (status < 0) {
        vnxi_py_raise(self->state, &error);
    }
    return status >= 0;
}

static const vnxi_py_signature_t wait_signature = {
    .name = "wait",
    .count = 3,
    .required = 1,
    .params = {VNXI_PY_NAME_handles, VNXI_PY_NAME_timeout,
               VNXI_PY_NAME_any_of},
};

VNXI_PY_METHOD(wait)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *values[3], *ended = NULL;
    xfer_set_t set;
    uint64_t timeout_ns;
    if (!vnxi_py_agent_begin(op, &wait_signature, args, nargs, kwnames,
                             values) ||
        !vnxi_py_timeout_get(self->state, wait_signature.name, values[1],
                             &timeout_ns)) {
        return NULL;
    }
    int any = vnxi_py_args_bool(values[2], false);
    if (any < 0 || !set_get(self, wait_signature.name, values[0], &set)) {
        return NULL;
    }
    if (set_wait(self, &set, any > 0, timeout_ns)) {
        /* Cleared before the states are looked at for the last time, so that
         * an event in between is seen there or keeps the eventfd readable. */
        vnx_agent_clear_events(self->agent);
        ended = set_list(&set, false);
    }
    set_put(&set);
    return ended;
}

/* -- Looking -------------------------------------------------------------- */

static const vnxi_py_signature_t ended_signature = {
    .name = "wait_async",
    .count = 1,
    .required = 1,
    .params = {VNXI_PY_NAME_handles},
};

VNXI_PY_METHOD(ended)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *value;
    xfer_set_t set;
    if (!vnxi_py_agent_begin(op, &ended_signature, args, nargs, kwnames,
                             &value) ||
        !set_get(self, ended_signature.name, value, &set)) {
        return NULL;
    }
    PyObject *list = set_list(&set, false);
    set_put(&set);
    return list;
}

static PyObject *
state_word(const vnxi_py_state_t *state, const vnx_xfer_t *xfer)
{
    switch (vnx_xfer_state(xfer)) {
    case VNX_XFER_DONE:
        return VNXI_PY_NAME(state, DONE);
    case VNX_XFER_POSTED:
        return VNXI_PY_NAME(state, PROC);
    default:
        return VNXI_PY_NAME(state, ERR);
    }
}

static const vnxi_py_signature_t states_signature = {
    .name = "check_xfer_states",
    .count = 1,
    .required = 1,
    .params = {VNXI_PY_NAME_handles},
};

VNXI_PY_METHOD(check_xfer_states)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *value;
    xfer_set_t set;
    if (!vnxi_py_agent_begin(op, &states_signature, args, nargs, kwnames,
                             &value) ||
        !set_get(self, states_signature.name, value, &set)) {
        return NULL;
    }
    vnx_agent_clear_events(self->agent);
    PyObject *list = PyList_New((Py_ssize_t)set.count);
    for (size_t i = 0; list != NULL && i < set.count; i++) {
        PyList_SET_ITEM(list, (Py_ssize_t)i,
                        Py_NewRef(state_word(self->state, set.xfers[i])));
    }
    set_put(&set);
    return list;
}

/* -- Event descriptors ---------------------------------------------------- */

static const vnxi_py_signature_t fileno_signature = {.name = "fileno"};

VNXI_PY_METHOD(fileno)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    vnx_error_t error;
    int fd;
    if (!vnxi_py_agent_begin(op, &fileno_signature, args, nargs, kwnames,
                             NULL)) {
        return NULL;
    }
    return vnx_agent_fileno(self->agent, &fd, &error) < 0
               ? vnxi_py_raise(self->state, &error)
               : PyLong_FromLong(fd);
}

static const vnxi_py_signature_t subscribe_signature = {.name = "subscribe"};

VNXI_PY_METHOD(subscribe)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    vnx_error_t error;
    int fd;
    if (!vnxi_py_agent_begin(op, &subscribe_signature, args, nargs, kwnames,
                             NULL)) {
        return NULL;
    }
    return vnx_agent_subscribe(self->agent, &fd, &error) < 0
               ? vnxi_py_raise(self->state, &error)
               : PyLong_FromLong(fd);
}

static const vnxi_py_signature_t unsubscribe_signature = {
    .name = "unsubscribe",
    .count = 1,
    .required = 1,
    .params = {VNXI_PY_NAME_fd},
};

VNXI_PY_METHOD(unsubscribe)
{
    vnxi_py_agent_t *self = (vnxi_py_agent_t *)op;
    PyObject *value;
    if (!vnxi_py_agent_begin(op, &unsubscribe_signature, args, nargs, kwnames,
                             &value)) {
        return NULL;
    }
    long fd = PyLong_AsLong(value);
    if (fd == -1 && PyErr_Occurred()) {
        return NULL;
    }
    vnx_agent_unsubscribe(self->agent, (int)fd);
    Py_RETURN_NONE;
}
