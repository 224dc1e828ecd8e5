/*
 * Telling the library where Python packages lie.
 */
#include "base/search_path.h"

#include "python/module.h"

/* The strings of a tuple that are names of files; others (bytes, objects of
 * importers) say nothing about directories. */
static Py_ssize_t
collect(PyObject *paths, PyObject **encoded, const char **dirs)
{
    Py_ssize_t count = 0;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(paths); i++) {
        PyObject *path = PyTuple_GET_ITEM(paths, i);
        if (!PyUnicode_Check(path)) {
            continue;
        }
        encoded[count] = PyUnicode_EncodeFSDefault(path);
        if (encoded[count] == NULL) {
            PyErr_Clear();
            continue;
        }
        dirs[count] = PyBytes_AS_STRING(encoded[count]);
        count++;
    }
    return count;
}

static bool
set_paths(PyObject *paths)
{
    size_t room = (size_t)PyTuple_GET_SIZE(paths) + 1;
    PyObject **encoded = PyMem_Calloc(room, sizeof(PyObject *));
    const char **dirs = PyMem_Calloc(room, sizeof(char *));
    bool is_set = false;

    if (encoded != NULL && dirs != NULL) {
        Py_ssize_t count = collect(paths, encoded, dirs);
        is_set = vnxi_search_path_set(dirs, (size_t)count);
        for (Py_ssize_t i = 0; i < count; i++) {
            Py_DECREF(encoded[i]);
        }
    }
    PyMem_Free(encoded);
    PyMem_Free(dirs);
    return is_set;
}

PyObject *
vnxi_py_set_search_path(PyObject *module, PyObject *list)
{
    (void)module;
    if (!PyList_Check(list)) {
        return PyErr_Format(PyExc_TypeError, "a list expected, not %s",
                            Py_TYPE(list)->tp_name);
    }
    PyObject *paths = PyList_AsTuple(list); /* which nobody changes */
    if (paths == NULL) {
        return NULL;
    }
    bool is_set = set_paths(paths);
    Py_DECREF(paths);
    if (!is_set) {
        return PyErr_NoMemory();
    }
    Py_RETURN_NONE;
}
