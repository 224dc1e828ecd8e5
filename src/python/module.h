/*
 * The extension module `vllm_nixl._core`: converts between Python objects and
 * the C API, drops the GIL where a call may take long, maps errors to
 * exceptions.  Nothing here decides anything about transfers.
 *
 * Rules of this folder
 *   - Convert everything first, then take references, then call: a conversion
 *     may run the caller's code (agent/agent.h).
 *   - Objects are guarded by the GIL.  Code that drops it copies every pointer
 *     out of Python objects first and retains the C objects, since another
 *     thread may release their handles meanwhile.
 *   - Drop the GIL for a call that may wait or works on many rows.  Keep it
 *     for a few atomic operations: dropping it costs more than such a call.
 *   - All Python objects are in the module's state, none in static storage.
 */
#ifndef VNXI_PYTHON_MODULE_H
#define VNXI_PYTHON_MODULE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <vnx/vnx.h>

#include "base/error.h"
#include "python/arguments/names.h"

/* One for each row of VNX_STATUS_TABLE, in its order. */
enum {
#define VNXI_PY_STATUS_INDEX(sym, num, name, text, pyclass) \
    VNXI_PY_STATUS_##sym,
    VNX_STATUS_TABLE(VNXI_PY_STATUS_INDEX)
#undef VNXI_PY_STATUS_INDEX
        VNXI_PY_STATUS_COUNT
};

typedef enum vnxi_py_type {
    VNXI_PY_TYPE_AGENT,
    VNXI_PY_TYPE_XFER,
    VNXI_PY_TYPE_DLIST,
    VNXI_PY_TYPE_XFER_DESCS,
    VNXI_PY_TYPE_REG_DESCS,
    VNXI_PY_TYPE_REMOTE_DESCS,
    VNXI_PY_TYPE_TELEMETRY,
    VNXI_PY_TYPE_SHARED_BUFFER,
    VNXI_PY_TYPE_SIDE_REQUESTS,
    VNXI_PY_TYPE_COUNT
} vnxi_py_type_t;

typedef struct vnxi_py_state {
    /* References, which module.c visits and clears as one array. */
    PyObject *names[VNXI_PY_NAME_COUNT];    /* interned */
    PyObject *errors[VNXI_PY_STATUS_COUNT]; /* NULL: not an error */
    PyObject *error_base;                   /* NixlError */
    PyObject *running_error;                /* nixlAlreadyRunningError */
    PyObject *mems[VNX_MEM_COUNT];          /* members of nixl_mem_t */
    PyObject *types[VNXI_PY_TYPE_COUNT];
    void *scratch; /* see scratch.h */
    size_t scratch_size;
} vnxi_py_state_t;

#define VNXI_PY_NAME(state, name) ((state)->names[VNXI_PY_NAME_##name])

static inline vnxi_py_state_t *
vnxi_py_state(PyObject *module)
{
    return PyModule_GetState(module);
}

static inline PyTypeObject *
vnxi_py_type(const vnxi_py_state_t *state, vnxi_py_type_t type)
{
    return (PyTypeObject *)state->types[type];
}

static inline bool
vnxi_py_is(const vnxi_py_state_t *state, vnxi_py_type_t type, PyObject *object)
{
    return Py_IS_TYPE(object, vnxi_py_type(state, type));
}

/* -- The GIL -------------------------------------------------------------- */

/* The value of an expression, evaluated without the GIL. */
#define VNXI_PY_WITHOUT_GIL(call)                     \
    __extension__({                                   \
        PyThreadState *thread_ = PyEval_SaveThread(); \
        __auto_type value_ = (call);                  \
        PyEval_RestoreThread(thread_);                \
        value_;                                       \
    })

/* Is the process about to end?  No other thread takes the GIL any more. */
static inline bool
vnxi_py_is_ending(void)
{
#if PY_VERSION_HEX >= 0x030d0000
    return Py_IsFinalizing();
#else
    return _Py_IsFinalizing();
#endif
}

/* Drop the GIL if the following work is long enough to let other threads run;
 * NULL: the GIL is kept.  Also for freeing objects: when the process ends, a
 * subinterpreter frees its objects without dropping the GIL, which before
 * Python 3.12 it would not get back. */
static inline PyThreadState *
vnxi_py_gil_drop_if(bool is_long)
{
    return is_long && !vnxi_py_is_ending() ? PyEval_SaveThread() : NULL;
}

/* Take the GIL back. */
static inline void
vnxi_py_gil_take(PyThreadState *thread)
{
    if (thread != NULL) {
        PyEval_RestoreThread(thread);
    }
}

/* -- Parts of the module -------------------------------------------------- */

/* The specs from which module.c creates the types. */
extern PyType_Spec vnxi_py_agent_spec, vnxi_py_xfer_spec, vnxi_py_dlist_spec,
    vnxi_py_telemetry_spec, vnxi_py_shared_buffer_spec,
    vnxi_py_side_requests_spec;
extern PyType_Spec vnxi_py_descs_specs[]; /* by vnxi_py_descs_kind_t */

/* Each adds members to the module.  Returns 0, or -1 with an exception. */
int vnxi_py_side_channel_add(PyObject *module);
int vnxi_py_enums_add(PyObject *module);
int vnxi_py_errors_add(PyObject *module);

/* -- Types (types.c) ------------------------------------------------------ */

/* The module's definition (module.c). */
extern PyModuleDef vnxi_py_module_def;

/* Return the state of the module that defined `type` or one of its bases.
 * NULL: SystemError, there is none.  For tp_new, which has no object yet. */
vnxi_py_state_t *vnxi_py_state_of_type(PyTypeObject *type);

/* tp_dealloc, or its last part: free the object and drop its type. */
void vnxi_py_object_free(PyObject *op);

/* __enter__: the object itself. */
PyObject *vnxi_py_object_enter(PyObject *op, PyObject *ignored);

#endif
