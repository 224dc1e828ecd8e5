#include "python/module.h"

#include <dlfcn.h>

#include "base/at_end.h"
#include "base/search_path.h"
#include "base/words.h"
#include "python/arguments/scratch.h"
#include "python/log.h"

PyMODINIT_FUNC PyInit__core(void);

static int module_exec(PyObject *module);
static int module_traverse(PyObject *module, visitproc visit, void *arg);
static int module_clear(PyObject *module);
static void module_free(void *module);

PyDoc_STRVAR(module_doc,
             "The C part of vllm_nixl: agents, handles, descriptor lists,\n"
             "shared buffers and exceptions.  Import them from vllm_nixl.");

/* Runs before objects are freed, and with them the memory that agents
 * registered.  The end of a subinterpreter is not the end of the process. */
static PyObject *
at_end(PyObject *module, PyObject *unused)
{
    (void)module, (void)unused;
    if (PyInterpreterState_Get() == PyInterpreterState_Main()) {
        vnxi_at_end_run();
        vnxi_py_log_detach();
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

/* Collect the str items of a tuple, which name directories.  Other items
 * (bytes, objects of importers, strings that the file system cannot encode)
 * are skipped.  false: exception. */
static bool
collect(PyObject *paths, PyObject **encoded, const char **dirs,
        size_t *count_p)
{
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(paths); i++) {
        PyObject *path = PyTuple_GET_ITEM(paths, i);
        if (!PyUnicode_Check(path)) {
            continue;
        }
        PyObject *bytes = PyUnicode_EncodeFSDefault(path);
        if (bytes != NULL) {
            encoded[*count_p] = bytes;
            dirs[(*count_p)++] = PyBytes_AS_STRING(bytes);
        } else if (PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) {
            PyErr_Clear();
        } else {
            return false;
        }
    }
    return true;
}

/* false: exception. */
static bool
set_paths(PyObject *paths)
{
    size_t room = (size_t)PyTuple_GET_SIZE(paths) + 1;
    PyObject **encoded = PyMem_Calloc(room, sizeof(PyObject *));
    const char **dirs = PyMem_Calloc(room, sizeof(char *));
    size_t count = 0;
    bool is_set = false;
    if (encoded == NULL || dirs == NULL) {
        PyErr_NoMemory();
    } else if (collect(paths, encoded, dirs, &count)) {
        is_set = vnxi_search_path_set(dirs, count);
        if (!is_set) {
            PyErr_NoMemory();
        }
    }
    for (size_t i = 0; i < count; i++) {
        Py_DECREF(encoded[i]);
    }
    PyMem_Free(encoded);
    PyMem_Free(dirs);
    return is_set;
}

static PyObject *
set_search_path(PyObject *module, PyObject *list)
{
    (void)module;
    if (!PyList_Check(list)) {
        return PyErr_Format(PyExc_TypeError, "a list expected, not %s",
                            Py_TYPE(list)->tp_name);
    }
    PyObject *paths =
        PyList_AsTuple(list); /* other code may change the list */
    if (paths == NULL) {
        return NULL;
    }
    bool is_set = set_paths(paths);
    Py_DECREF(paths);
    return is_set ? Py_NewRef(Py_None) : NULL;
}

#define CHOICES_MAX 16

/* _choices(given, words): help for messages about an unknown word. */
static PyObject *
choices(PyObject *module, PyObject *args)
{
    const char *words[CHOICES_MAX];
    PyObject *word, *tuple;
    (void)module;
    if (!PyArg_ParseTuple(args, "UO!", &word, &PyTuple_Type, &tuple)) {
        return NULL;
    }
    const char *given = PyUnicode_AsUTF8(word);
    if (given == NULL) {
        PyErr_Clear(); /* lone surrogates, from the environment */
        given = "";
    }
    size_t count = 0;
    for (; count < CHOICES_MAX && (Py_ssize_t)count < PyTuple_GET_SIZE(tuple);
         count++) {
        words[count] = PyUnicode_AsUTF8(PyTuple_GET_ITEM(tuple, count));
        if (words[count] == NULL) {
            return NULL;
        }
    }
    return PyUnicode_FromString(vnxi_words(given, words, count));
}

/* _load_library(path): load a shared library for good. */
static PyObject *
load_library(PyObject *module, PyObject *path)
{
    PyObject *file = NULL;
    void *handle;
    (void)module;
    if (!PyUnicode_FSConverter(path, &file)) {
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS handle =
        dlopen(PyBytes_AS_STRING(file), RTLD_NOW | RTLD_LOCAL);
    Py_END_ALLOW_THREADS Py_DECREF(file);
    if (handle == NULL) {
        return PyErr_Format(PyExc_OSError, "%s", dlerror());
    }
    Py_RETURN_NONE;
}

static PyMethodDef module_methods[] = {
    {"_choices", choices, METH_VARARGS,
     PyDoc_STR("Help for a message about an unknown word.")},
    {"_load_library", load_library, METH_O,
     PyDoc_STR("Load a shared library for good.")},
    {"_set_search_path", set_search_path, METH_O,
     PyDoc_STR("Where libraries of Python packages are looked for.")},
    {NULL, NULL, 0, NULL},
};

/* Interpreters may have a GIL each: every Python object is in the module's
 * state, and the library's own locks guard what the process shares.  Objects
 * of one interpreter rely on its GIL (module.h), so a free-threaded build has
 * to enable it. */
static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, module_exec},
#if PY_VERSION_HEX >= 0x030c0000
    {Py_mod_multiple_interpreters, Py_MOD_PER_INTERPRETER_GIL_SUPPORTED},
#endif
#if PY_VERSION_HEX >= 0x030d0000
    {Py_mod_gil, Py_MOD_GIL_USED},
#endif
    {0, NULL},
};

PyModuleDef vnxi_py_module_def = {
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
types_add(PyObject *module)
{
    static PyType_Spec *const specs[VNXI_PY_TYPE_COUNT] = {
        [VNXI_PY_TYPE_AGENT] = &vnxi_py_agent_spec,
        [VNXI_PY_TYPE_XFER] = &vnxi_py_xfer_spec,
        [VNXI_PY_TYPE_DLIST] = &vnxi_py_dlist_spec,
        [VNXI_PY_TYPE_XFER_DESCS] = &vnxi_py_descs_specs[0],
        [VNXI_PY_TYPE_REG_DESCS] = &vnxi_py_descs_specs[1],
        [VNXI_PY_TYPE_REMOTE_DESCS] = &vnxi_py_descs_specs[2],
        [VNXI_PY_TYPE_TELEMETRY] = &vnxi_py_telemetry_spec,
        [VNXI_PY_TYPE_SHARED_BUFFER] = &vnxi_py_shared_buffer_spec,
        [VNXI_PY_TYPE_SIDE_REQUESTS] = &vnxi_py_side_requests_spec,
    };
    vnxi_py_state_t *state = vnxi_py_state(module);
    for (int i = 0; i < VNXI_PY_TYPE_COUNT; i++) {
        state->types[i] = PyType_FromModuleAndSpec(module, specs[i], NULL);
        if (state->types[i] == NULL ||
            PyModule_AddType(module, (PyTypeObject *)state->types[i]) < 0) {
            return -1;
        }
    }
    return 0;
}

/* The attribute `features`: a read-only mapping. */
static int
features_add(PyObject *module)
{
    size_t count;
    const vnx_feature_t *features = vnx_features(&count);
    PyObject *dict = PyDict_New();
    for (size_t i = 0; dict != NULL && i < count; i++) {
        if (PyDict_SetItemString(dict, features[i].name,
                                 features[i].is_built ? Py_True : Py_False) <
            0) {
            Py_CLEAR(dict);
        }
    }
    PyObject *proxy = dict != NULL ? PyDictProxy_New(dict) : NULL;
    int result = PyModule_AddObjectRef(module, "features", proxy);
    Py_XDECREF(proxy);
    Py_XDECREF(dict);
    return result;
}

static int
module_exec(PyObject *module)
{
    if (names_add(vnxi_py_state(module)) < 0 ||
        vnxi_py_enums_add(module) < 0 || vnxi_py_errors_add(module) < 0 ||
        types_add(module) < 0 || vnxi_py_side_channel_add(module) < 0 ||
        features_add(module) < 0 || watch_end(module) < 0 ||
        PyModule_AddFunctions(module, vnxi_py_log_methods) < 0) {
        return -1;
    }
    vnxi_py_log_attach();
    return PyModule_AddStringConstant(module, "__version__", vnx_version());
}

#define STATE_OBJECTS (offsetof(vnxi_py_state_t, scratch) / sizeof(PyObject *))

static int
module_traverse(PyObject *module, visitproc visit, void *arg)
{
    PyObject **objects = PyModule_GetState(module);
    for (size_t i = 0; i < STATE_OBJECTS; i++) {
        Py_VISIT(objects[i]);
    }
    return 0;
}

static int
module_clear(PyObject *module)
{
    PyObject **objects = PyModule_GetState(module);
    for (size_t i = 0; i < STATE_OBJECTS; i++) {
        Py_CLEAR(objects[i]);
    }
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
    return PyModuleDef_Init(&vnxi_py_module_def);
}
