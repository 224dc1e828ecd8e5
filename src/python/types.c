#include "python/module.h"

/* PyType_GetModuleByDef() exists only from Python 3.11 on. */
vnxi_py_state_t *
vnxi_py_state_of_type(PyTypeObject *type)
{
    for (; type != NULL; type = type->tp_base) {
        if (!PyType_HasFeature(type, Py_TPFLAGS_HEAPTYPE)) {
            break;
        }
        PyObject *module = ((PyHeapTypeObject *)type)->ht_module;
        if (module != NULL && PyModule_GetDef(module) == &vnxi_py_module_def) {
            return vnxi_py_state(module);
        }
    }
    PyErr_SetString(PyExc_SystemError, "not a type of vllm_nixl._core");
    return NULL;
}

void
vnxi_py_object_free(PyObject *op)
{
    PyTypeObject *type = Py_TYPE(op);
    type->tp_free(op);
    Py_DECREF(type);
}

PyObject *
vnxi_py_object_enter(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    return Py_NewRef(op);
}
