/*
 * Telling the library where Python packages lie.
 */
#include "base/search_path.h"

#include "python/module.h"

/* The strings of a tuple that are names of files; others (bytes, objects of
 * importers, what the file system cannot encode) say nothing about
 * directories.  false: exception. */
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
    return is_set ? Py_NewRef(Py_None) : NULL;
}
