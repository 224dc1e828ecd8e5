#include "python/module.h"

#include "base/at_end.h"
#include "python/arguments/scratch.h"

PyMODINIT_FUNC PyInit__core(void);

static int module_exec(PyObject *module);
static int module_traverse(PyObject *module, visitproc visit, void *arg);
static int module_clear(PyObject *module);
static void module_free(void *module);

PyDoc_STRVAR(module_doc,
             "The C part of vllm_nixl: agents, handles, descriptor lists,\n"
             "shared buffers and exceptions.  Import them from vllm_nixl.");

/* Runs before objects are freed, and with them memory that agents registered.
 * The end of a subinterpreter is not the end of the process. */
static PyObject *
at_end(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    if (PyInterpreterState_Get() == PyInterpreterState_Main()) {
        vnxi_at_end_run();
    }
    Py_RETURN_NONE;
}

static PyMethodDef at_end_method = {"_at_end", at_end, METH_NOARGS, NULL};

static int
watch_end(PyObject *module)
{
    PyObject *function = NULL, *done = NULL;
    PyObject *atexit = PyImport_ImportModule("atexit");

    if (atexit != NULL) {
        function = PyCFunction_New(&at_end_method, module);
    }
    if (function != NULL) {
        done = PyObject_CallMethod(atexit, "register", "O", function);
    }
    Py_XDECREF(done);
    Py_XDECREF(function);
    Py_XDECREF(atexit);
    return done != NULL ? 0 : -1;
}

static PyMethodDef module_methods[] = {
    {"_set_search_path", vnxi_py_set_search_path, METH_O,
     PyDoc_STR("Where libraries of Python packages are looked for.")},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
    {0, NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,         .m_name = "vllm_nixl._core",
    .m_doc = module_doc,           .m_size = sizeof(vnxi_py_state_t),
    .m_methods = module_methods,   .m_slots = module_slots,
    .m_traverse = module_traverse, .m_clear = module_clear,
    .m_free = module_free,
};

static int
names_add(vnxi_py_state_t *state)
{
    static const char *const texts[VNXI_PY_NAME_COUNT] = {
#define NAME_TEXT(name) #name,
        VNXI_PY_NAMES(NAME_TEXT)
#undef NAME_TEXT
    };
    for (int i = 0; i < VNXI_PY_NAME_COUNT; i++) {
        state->names[i] = PyUnicode_InternFromString(texts[i]);
        if (state->names[i] == NULL) {
            return -1;
        }
    }
    return 0;
}

static int
module_exec(PyObject *module)
{
    static int (*const parts[])(PyObject *) = {
        vnxi_py_enums_add,         vnxi_py_errors_add,       vnxi_py_descs_add,
        vnxi_py_handles_add,       vnxi_py_telemetry_add,    vnxi_py_agent_add,
        vnxi_py_shared_buffer_add, vnxi_py_side_channel_add, watch_end,
    };
    if (names_add(vnxi_py_state(module)) < 0) {
        return -1;
    }
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        if (parts[i](module) < 0) {
            return -1;
        }
    }
    return PyModule_AddStringConstant(module, "__version__", vnx_version());
}

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    vnxi_py_state_t *state = vnxi_py_state(module);
    for (int i = 0; i < VNXI_PY_STATUS_COUNT; i++) {
        Py_VISIT(state->errors[i]);
    }
    for (int i = 0; i < VNX_MEM_COUNT; i++) {
        Py_VISIT(state->mems[i]);
    }
    for (int i = 0; i < VNXI_PY_TYPE_COUNT; i++) {
        Py_VISIT(state->types[i]);
    }
    Py_VISIT(state->error_base);
    Py_VISIT(state->running_error);
    return 0;
}

static int
module_clear(PyObject *module)
{
    vnxi_py_state_t *state = vnxi_py_state(module);
    for (int i = 0; i < VNXI_PY_NAME_COUNT; i++) {
        Py_CLEAR(state->names[i]);
    }
    for (int i = 0; i < VNXI_PY_STATUS_COUNT; i++) {
        Py_CLEAR(state->errors[i]);
    }
    for (int i = 0; i < VNX_MEM_COUNT; i++) {
        Py_CLEAR(state->mems[i]);
    }
    for (int i = 0; i < VNXI_PY_TYPE_COUNT; i++) {
        Py_CLEAR(state->types[i]);
    }
    Py_CLEAR(state->error_base);
    Py_CLEAR(state->running_error);
    return 0;
}

static void
module_free(void *module)
{
    module_clear(module);
    vnxi_py_scratch_fini(vnxi_py_state(module));
}

PyMODINIT_FUNC
PyInit__core(void)
{
    vnxi_py_module_def = &module_def;
    return PyModuleDef_Init(&module_def);
}
