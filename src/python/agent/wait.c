#include "python/agent/agent.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "python/agent/handles.h"
#include "python/arguments/convert.h"

/* The longest time that a wait goes on without a check for Ctrl-C. */
#define WAIT_SLICE_NS 50000000u

/* -- Sets of transfers ---------------------------------------------------- */

typedef enum group {
    GROUP_ENDED,   /* ended successfully */
    GROUP_FAILED,  /* failed or cancelled */
    GROUP_PENDING, /* posted */
    GROUP_READY,   /* never posted */
} group_t;

#define GROUP_BIT(group) (1u << (group))

typedef struct xfer_set {
    PyObject *handles;     /* tuple */
    vnx_xfer_t **xfers;    /* retained */
    unsigned char *groups; /* group_t of each, set by set_look() */
    size_t count;
    unsigned seen; /* GROUP_BIT of every group in `groups` */
} xfer_set_t;

/* Other threads may have released the handles meanwhile: then dropping the
 * last reference of a transfer may wait, as releasing it does. */
static void
set_put(const vnxi_py_agent_t *self, xfer_set_t *set)
{
    PyThreadState *thread =
        vnxi_py_gil_drop_if(vnx_agent_may_wait(self->agent));
    for (size_t i = 0; i < set->count; i++) {
        vnx_xfer_drop(set->xfers[i]);
    }
    vnxi_py_gil_take(thread);
    PyMem_Free(set->xfers);
    Py_DECREF(set->handles);
}

static bool
set_fill(const vnxi_py_agent_t *self, const char *operation, xfer_set_t *set)
{
    Py_ssize_t count = PyTuple_GET_SIZE(set->handles);
    set->groups = (unsigned char *)(set->xfers + count + 1);
    for (Py_ssize_t i = 0; i < count; i++) {
        vnx_xfer_t *xfer = vnxi_py_xfer_of_row(
            self, operation, i, PyTuple_GET_ITEM(set->handles, i));
        if (xfer == NULL) {
            return false;
        }
        set->xfers[set->count++] = vnx_xfer_retain(xfer);
    }
    return true;
}

/* Get the set from one handle or any iterable of handles.  Iterating runs the
 * caller's code, so every other argument is converted before it, and the
 * transfers are retained after it. */
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
    set_p->xfers = PyMem_Malloc((count + 1) * (sizeof *set_p->xfers + 1));
    if (set_p->xfers == NULL) {
        PyErr_NoMemory();
    } else if (set_fill(self, operation, set_p)) {
        return true;
    }
    set_put(self, set_p);
    return false;
}

static group_t
group_of(const vnx_xfer_t *xfer)
{
    switch (vnx_xfer_state(xfer)) {
    case VNX_XFER_DONE:
        return GROUP_ENDED;
    case VNX_XFER_POSTED:
        return GROUP_PENDING;
    case VNX_XFER_READY:
        return GROUP_READY;
    default:
        return GROUP_FAILED;
    }
}

/* Record the state of each transfer, so that later calls refer to one moment.
 */
static void
set_look(xfer_set_t *set)
{
    unsigned seen = 0;
    for (size_t i = 0; i < set->count; i++) {
        group_t group = group_of(set->xfers[i]);
        set->groups[i] = (unsigned char)group;
        seen |= GROUP_BIT(group);
    }
    set->seen = seen;
}

static bool
set_has(const xfer_set_t *set, group_t group)
{
    return (set->seen & GROUP_BIT(group)) != 0;
}

/* Would vnx_agent_wait() return?  Uses the states of the last set_look(). */
static bool
set_is_over(const xfer_set_t *set, unsigned flags)
{
    if (set_has(set, GROUP_READY) || !set_has(set, GROUP_PENDING)) {
        return true;
    }
    return ((flags & VNX_WAIT_ANY) != 0 && set_has(set, GROUP_ENDED)) ||
           ((flags & (VNX_WAIT_ANY | VNX_WAIT_NO_CHECK)) !=
                VNX_WAIT_NO_CHECK &&
            set_has(set, GROUP_FAILED));
}

/* Return the handles of some groups, in the order given. */
static PyObject *
set_list(const xfer_set_t *set, unsigned groups)
{
    if ((set->seen & ~groups) == 0) {
        return PySequence_List(set->handles);
    }
    PyObject *list = PyList_New(0);
    for (size_t i = 0; list != NULL && i < set->count; i++) {
        if ((groups & GROUP_BIT(set->groups[i])) != 0 &&
            PyList_Append(list, PyTuple_GET_ITEM(set->handles, i)) < 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}

/* -- Errors of waiting ---------------------------------------------------- */

/* Write an error such as "3 of 5 transfers have not ended in time: numbers 0,
 * 2, 3". */
static void
timeout_describe(const char *operation, const xfer_set_t *set,
                 vnx_error_t *error)
{
    char numbers[200] = "";
    size_t open = 0, used = 0, first = 0;
    for (size_t i = 0; i < set->count; i++) {
        if (set->groups[i] != GROUP_PENDING) {
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
    vnxi_error_set(error, VNX_ERR_TIMEOUT, operation,
                   "%zu of %zu transfers have not ended in time: numbers %s",
                   open, set->count, numbers);
    vnxi_error_row(error, first);
}

/* Returns a new reference: {"ended": [...], "failed": [...], "pending":
 * [...]}. */
static PyObject *
set_dict(const vnxi_py_state_t *state, const xfer_set_t *set)
{
    const vnxi_py_name_t names[] = {
        [GROUP_ENDED] = VNXI_PY_NAME_ended,
        [GROUP_FAILED] = VNXI_PY_NAME_failed,
        [GROUP_PENDING] = VNXI_PY_NAME_pending,
    };
    PyObject *dict = PyDict_New();
    for (unsigned group = 0; dict != NULL && group < GROUP_READY; group++) {
        PyObject *list = set_list(set, GROUP_BIT(group));
        if (list == NULL ||
            PyDict_SetItem(dict, state->names[names[group]], list) < 0) {
            Py_CLEAR(dict);
        }
        Py_XDECREF(list);
    }
    return dict;
}

/* Raise the error with the handles, in the groups of the last set_look(). */
static void
set_raise(vnxi_py_state_t *state, const xfer_set_t *set,
          const vnx_error_t *error)
{
    PyObject *pending = VNXI_PY_NAME(state, pending);
    PyObject *exception = vnxi_py_error_new(state, error);
    PyObject *dict = exception != NULL ? set_dict(state, set) : NULL;
    if (dict != NULL &&
        PyObject_SetAttr(exception, VNXI_PY_NAME(state, handles), dict) == 0 &&
        (error->status != VNX_ERR_TIMEOUT ||
         PyObject_SetAttr(exception, pending,
                          PyDict_GetItemWithError(dict, pending)) == 0)) {
        PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
    }
    Py_XDECREF(dict);
    Py_XDECREF(exception);
}

/* -- Waiting -------------------------------------------------------------- */

static vnx_status_t
slice_wait(vnxi_py_agent_t *self, const xfer_set_t *set, unsigned flags,
           uint64_t deadline, vnx_error_t *error)
{
    uint64_t now = vnxi_clock_ns();
    uint64_t left = deadline > now ? deadline - now : 0;
    uint64_t slice = left < WAIT_SLICE_NS ? left : WAIT_SLICE_NS;
    return VNXI_PY_WITHOUT_GIL(vnx_agent_wait(
        self->agent, set->xfers, set->count, flags, slice, error));
}

/* Wait until the wait is over; false: exception.  The first check keeps the
 * GIL, because usually no other check follows.  A timeout with a row is an
 * error of that transfer, not of the wait. */
static bool
set_wait(vnxi_py_agent_t *self, const char *operation, xfer_set_t *set,
         unsigned flags, uint64_t timeout_ns)
{
    vnx_error_t error;
    uint64_t deadline = vnxi_clock_deadline(timeout_ns);
    vnx_status_t status =
        vnx_agent_wait(self->agent, set->xfers, set->count, flags, 0, &error);
    while (status == VNX_ERR_TIMEOUT && error.row < 0) {
        if (PyErr_CheckSignals() < 0) {
            return false;
        }
        if (vnxi_clock_ns() >= deadline) {
            set_look(set);
            if (!set_is_over(set, flags)) {
                timeout_describe(operation, set, &error);
                set_raise(self->state, set, &error);
                return false;
            }
        }
        status = slice_wait(self, set, flags, deadline, &error);
    }
    if (status < 0) {
        set_look(set);
        set_raise(self->state, set, &error);
    }
    return status >= 0;
}

/* Wait until enough transfers have ended, and return their handles; NULL:
 * exception. */
static PyObject *
set_wait_ended(vnxi_py_agent_t *self, const char *operation, xfer_set_t *set,
               unsigned flags, uint64_t timeout_ns)
{
    bool check = (flags & VNX_WAIT_NO_CHECK) == 0;
    do {
        if (!set_wait(self, operation, set, flags, timeout_ns)) {
            return NULL;
        }
        /* Clear the events before the last look at the states: that look sees
         * an event in between, or the event keeps the eventfd readable. */
        vnx_agent_clear_events(self->agent);
        set_look(set);
        /* If a transfer failed in between, the next round raises its error. */
    } while (check && set_has(set, GROUP_FAILED));
    return set_list(set, GROUP_BIT(GROUP_ENDED) | GROUP_BIT(GROUP_FAILED));
}

/* Convert the arguments any_of and check to VNX_WAIT_ANY and
 * VNX_WAIT_NO_CHECK. */
static bool
flags_get(PyObject *any_of, PyObject *check, unsigned *flags_p)
{
    int any = vnxi_py_args_bool(any_of, false);
    int checks = any < 0 ? -1 : vnxi_py_args_bool(check, true);
    if (checks < 0) {
        return false;
    }
    *flags_p =
        (any > 0 ? VNX_WAIT_ANY : 0u) | (checks > 0 ? 0u : VNX_WAIT_NO_CHECK);
    return true;
}

VNXI_PY_AGENT_METHOD(
    wait,
    (REQUIRED(handles), OPTIONAL(timeout, "None"), OPTIONAL(any_of, "False"),
     OPTIONAL(check, "True")),
    "Sleep until all (or any) have ended; return those that have, in the\n"
    "given order.\n\n"
    "handles: a nixl_xfer_handle, or an iterable of them\n"
    "timeout: in seconds; None: no limit\n"
    "any_of: return as soon as one has ended\n"
    "check: raise the error of a failed or cancelled transfer at once\n"
    "    (of the first one in the given order), while the others\n"
    "    continue; False: such a transfer counts as ended\n\n"
    "Other threads run meanwhile; Ctrl-C ends the wait. Raises the error\n"
    "of a transfer, nixlTimeoutError after the timeout,\n"
    "nixlNotPostedError for a transfer that was never posted (also with\n"
    "check=False: it would never end), and nixlClosedError.\n\n"
    "These errors have .handles (see NixlError): a dict of three lists,\n"
    "'ended' (without error), 'failed' (or cancelled) and 'pending';\n"
    ".index is the place of the transfer in handles. nixlTimeoutError\n"
    "also has .pending.")
{
    xfer_set_t set;
    uint64_t timeout_ns;
    unsigned flags;
    if (!vnxi_py_timeout_get(self->state, operation, args->timeout,
                             &timeout_ns) ||
        !flags_get(args->any_of, args->check, &flags) ||
        !set_get(self, operation, args->handles, &set)) {
        return NULL;
    }
    PyObject *ended = set_wait_ended(self, operation, &set, flags, timeout_ns);
    set_put(self, &set);
    return ended;
}

PyObject *
vnxi_py_agent_wait_one(vnxi_py_agent_t *self, const char *operation,
                       PyObject *handle, uint64_t timeout_ns)
{
    PyObject *result = NULL;
    xfer_set_t set;
    if (!set_get(self, operation, handle, &set)) {
        return NULL;
    }
    if (set_wait(self, operation, &set, 0, timeout_ns)) {
        result = vnxi_py_telemetry_of(self->state, set.xfers[0]);
    }
    set_put(self, &set);
    return result;
}

/* -- States --------------------------------------------------------------- */

VNXI_PY_AGENT_METHOD_AS(
    _is_over, "wait_async",
    (REQUIRED(handles), REQUIRED(any_of), REQUIRED(check)),
    "Would wait() return or raise at once? Clears no event.")
{
    xfer_set_t set;
    unsigned flags;
    if (!flags_get(args->any_of, args->check, &flags) ||
        !set_get(self, operation, args->handles, &set)) {
        return NULL;
    }
    set_look(&set);
    bool is_over = set_is_over(&set, flags);
    set_put(self, &set);
    return PyBool_FromLong(is_over);
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

VNXI_PY_AGENT_METHOD(check_xfer_states, (REQUIRED(handles)),
                     "'DONE', 'PROC' or 'ERR' for each.\n\n"
                     "handles: a nixl_xfer_handle, or an iterable of them\n\n"
                     "'ERR' stands for failed, cancelled and never posted;\n"
                     "check_xfer_state() raises which.")
{
    xfer_set_t set;
    if (!set_get(self, operation, args->handles, &set)) {
        return NULL;
    }
    vnx_agent_clear_events(self->agent);
    PyObject *list = PyList_New((Py_ssize_t)set.count);
    for (size_t i = 0; list != NULL && i < set.count; i++) {
        PyList_SET_ITEM(list, (Py_ssize_t)i,
                        Py_NewRef(state_word(self->state, set.xfers[i])));
    }
    set_put(self, &set);
    return list;
}

/* -- Event descriptors ---------------------------------------------------- */

VNXI_PY_AGENT_METHOD(
    fileno, (),
    "An eventfd, readable if a transfer ended or a notification arrived\n"
    "since the last get_new_notifs(), check_xfer_states(), wait() or\n"
    "result(). The agent owns it: do not close it.")
{
    vnx_error_t error;
    int fd;
    return vnx_agent_fileno(self->agent, &fd, &error) < 0
               ? vnxi_py_raise(self->state, &error)
               : PyLong_FromLong(fd);
}

VNXI_PY_AGENT_METHOD_AS(
    _subscribe, "subscribe", (),
    "An eventfd for one subscriber, written at every event; only reading\n"
    "it clears it. _unsubscribe() closes it.")
{
    vnx_error_t error;
    int fd;
    return vnx_agent_subscribe(self->agent, &fd, &error) < 0
               ? vnxi_py_raise(self->state, &error)
               : PyLong_FromLong(fd);
}

VNXI_PY_AGENT_METHOD_AS(
    _unsubscribe, "unsubscribe", (REQUIRED(fd)),
    "Close a descriptor of _subscribe(); others are ignored.\n"
    "nixlInvalidParamError for a number that cannot be a descriptor.")
{
    uint64_t fd;
    if (!vnxi_py_int_between(self->state, operation, "fd of _subscribe()",
                             args->fd, 0, INT_MAX, &fd)) {
        return NULL;
    }
    vnx_agent_unsubscribe(self->agent, (int)fd);
    Py_RETURN_NONE;
}
