#include "python/arguments/rows.h"

#include <sched.h>

#include "base/clock.h"
#include "python/arguments/convert.h"
#include "python/arguments/scratch.h"
#include "python/errors.h"

/* Return `yes` if the object has the attribute that all tensors have,
 * otherwise `no`. */
static vnxi_py_source_t
tensor_or(const vnxi_py_state_t *state, PyObject *object, vnxi_py_source_t yes,
          vnxi_py_source_t no)
{
    if (PyTuple_Check(object) || PyList_Check(object)) {
        return no;
    }
    Py_INCREF(object); /* the attribute look-up may run any code */
    PyObject *method = PyObject_GetAttr(object, VNXI_PY_NAME(state, data_ptr));
    Py_DECREF(object);
    if (method != NULL) {
        Py_DECREF(method);
        return yes;
    }
    if (!PyErr_ExceptionMatches(PyExc_AttributeError)) {
        return VNXI_PY_SOURCE_EXCEPTION;
    }
    PyErr_Clear();
    return no;
}

vnxi_py_source_t
vnxi_py_source_of(const vnxi_py_state_t *state, PyObject *source)
{
    if (PyList_Check(source) || PyTuple_Check(source)) {
        return PySequence_Fast_GET_SIZE(source) == 0
                   ? VNXI_PY_SOURCE_ROWS
                   : tensor_or(state, PySequence_Fast_GET_ITEM(source, 0),
                               VNXI_PY_SOURCE_TENSORS, VNXI_PY_SOURCE_ROWS);
    }
    if (PyObject_CheckBuffer(source)) {
        return VNXI_PY_SOURCE_MATRIX;
    }
    return tensor_or(state, source, VNXI_PY_SOURCE_TENSOR,
                     VNXI_PY_SOURCE_OTHER);
}

static bool
numbers_get(vnxi_py_state_t *state, const char *operation, int64_t row,
            PyObject *const *items, vnx_desc_t *desc_p)
{
    static const char *const whats[] = {"the address", "the length",
                                        "the device id"};
    uint64_t numbers[3];
    for (int i = 0; i < 3; i++) {
        vnxi_py_int_result_t result = vnxi_py_int_get(items[i], &numbers[i]);
        if (result != VNXI_PY_INT_OK) {
            vnxi_py_int_raise(state, operation, row, whats[i], items[i],
                              result);
            return false;
        }
    }
    *desc_p = (vnx_desc_t){numbers[0], numbers[1], numbers[2]};
    return true;
}

static bool
row_of_tuple(vnxi_py_state_t *state, const char *operation, int64_t row,
             PyObject *tuple, const char *fourth, vnx_desc_t *desc_p,
             PyObject **extra_p)
{
    int width = fourth != NULL ? 4 : 3;
    if (PyTuple_GET_SIZE(tuple) != width) {
        return PyErr_Format(
            PyExc_TypeError,
            "%s: row %lld: %d items are needed (address, length, device "
            "id%s%s), not %zd",
            operation, (long long)row, width, fourth != NULL ? ", " : "",
            fourth != NULL ? fourth : "", PyTuple_GET_SIZE(tuple));
    }
    if (!numbers_get(state, operation, row, &PyTuple_GET_ITEM(tuple, 0),
                     desc_p)) {
        return false;
    }
    if (fourth != NULL) {
        *extra_p = Py_NewRef(PyTuple_GET_ITEM(tuple, 3));
    }
    return true;
}

static bool
not_a_tuple(const char *operation, int64_t row, PyObject *item,
            const char *fourth)
{
    char text[VNXI_PY_MEMORY_TEXT], which[32] = "a descriptor";
    if (row >= 0) {
        snprintf(which, sizeof which, "row %lld", (long long)row);
    }
    return PyErr_Format(
        PyExc_TypeError,
        "%s: %s must be a tuple, not %.200s: descriptors are a list of "
        "tuples (address, length, device id%s%s)%s",
        operation, which, Py_TYPE(item)->tp_name, fourth != NULL ? ", " : "",
        fourth != NULL ? fourth : "", vnxi_py_memory_text(item, fourth, text));
}

bool
vnxi_py_row_get(vnxi_py_state_t *state, const char *operation, int64_t row,
                PyObject *item, const char *fourth, vnx_desc_t *desc_p,
                PyObject **extra_p)
{
    if (!PyTuple_Check(item) && !PyList_Check(item)) {
        return not_a_tuple(operation, row, item, fourth);
    }
    /* Take a tuple: __index__ of a number may change the caller's list. */
    PyObject *tuple = PySequence_Tuple(item);
    if (tuple == NULL) {
        return false;
    }
    bool good =
        row_of_tuple(state, operation, row, tuple, fourth, desc_p, extra_p);
    Py_DECREF(tuple);
    return good;
}

/* The common case, at full speed: a tuple of three plain ints that fit. */
static inline bool
row_fast(PyObject *item, vnx_desc_t *desc_p)
{
    if (!PyTuple_CheckExact(item) || PyTuple_GET_SIZE(item) != 3) {
        return false;
    }
    uint64_t numbers[3];
    for (int i = 0; i < 3; i++) {
        PyObject *value = PyTuple_GET_ITEM(item, i);
        if (!PyLong_CheckExact(value)) {
            return false;
        }
        numbers[i] = PyLong_AsUnsignedLongLong(value);
        if (numbers[i] == UINT64_MAX) {
            PyErr_Clear(); /* an OverflowError, or none: `value` is an int */
            return false;
        }
    }
    *desc_p = (vnx_desc_t){numbers[0], numbers[1], numbers[2]};
    return true;
}

/* Rows to prefetch ahead of the row that is converted. */
#define AHEAD 12

static inline void
row_prefetch(PyObject *list, Py_ssize_t i)
{
    if (i + 2 * AHEAD < PySequence_Fast_GET_SIZE(list)) {
        PyObject *item = PySequence_Fast_GET_ITEM(list, i + AHEAD);
        __builtin_prefetch(PySequence_Fast_GET_ITEM(list, i + 2 * AHEAD));
        if (PyTuple_CheckExact(item) && PyTuple_GET_SIZE(item) > 0) {
            __builtin_prefetch(PyTuple_GET_ITEM(item, 0));
        }
    }
}

/* After this many chunks, about half a millisecond, other threads get a turn.
 * A thread that waits for the GIL needs some time to wake up.  If the GIL were
 * dropped for less than that, this thread would take it back first. */
#define TURN_CHUNKS 4
#define TURN_NS 60000u

void
vnxi_py_turn_give(void)
{
    PyThreadState *first =
        PyInterpreterState_ThreadHead(PyInterpreterState_Get());
    if (PyThreadState_Next(first) == NULL) {
        return;
    }
    Py_BEGIN_ALLOW_THREADS;
    uint64_t end = vnxi_clock_deadline(TURN_NS);
    do {
        sched_yield();
    } while (vnxi_clock_ns() < end);
    Py_END_ALLOW_THREADS;
}

/* Pass a full chunk on; it is the `number`-th. */
static bool
chunk_take(vnxi_py_rows_fn take, void *context, const vnx_desc_t *rows,
           size_t number)
{
    if (!take(context, rows, VNXI_PY_ROWS_CHUNK)) {
        return false;
    }
    if (number % TURN_CHUNKS == 0) {
        vnxi_py_turn_give();
    }
    return true;
}

/* The list's size is read again at each row, because code that a conversion
 * runs, or another thread between two chunks, may have changed it. */
bool
vnxi_py_rows_read(vnxi_py_state_t *state, const char *operation,
                  PyObject *list, vnxi_py_rows_fn take, void *context)
{
    vnxi_py_scratch_t scratch;
    if (!vnxi_py_scratch_take(state, VNXI_PY_ROWS_CHUNK * sizeof(vnx_desc_t),
                              &scratch)) {
        return false;
    }
    vnx_desc_t *rows = scratch.data;
    size_t count = 0, chunks = 0;
    bool good = true;
    for (Py_ssize_t i = 0; good && i < PySequence_Fast_GET_SIZE(list); i++) {
        PyObject *item = PySequence_Fast_GET_ITEM(list, i);
        row_prefetch(list, i);
        good = row_fast(item, &rows[count]);
        if (!good) {
            /* The caller's code may run, and drop the item from the list. */
            Py_INCREF(item);
            good = vnxi_py_row_get(state, operation, i, item, NULL,
                                   &rows[count], NULL);
            Py_DECREF(item);
        }
        if (good && ++count == VNXI_PY_ROWS_CHUNK) {
            good = chunk_take(take, context, rows, ++chunks);
            count = 0;
        }
    }
    if (good && count > 0) {
        good = take(context, rows, count);
    }
    vnxi_py_scratch_put(state, &scratch);
    return good;
}
