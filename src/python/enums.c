#include "python/module.h"

/* nixl_mem_t is an enum.IntEnum, so that it prints by name and compares with
 * ints, as NIXL's does. */

static PyObject *
enum_make(PyObject *int_enum, const char *name, PyObject *members)
{
    PyObject *args = Py_BuildValue("(sO)", name, members);
    PyObject *kwargs = Py_BuildValue("{s:s}", "module", "vllm_nixl._core");
    PyObject *made = args != NULL && kwargs != NULL
                         ? PyObject_Call(int_enum, args, kwargs)
                         : NULL;
    Py_XDECREF(kwargs);
    Py_XDECREF(args);
    return made;
}

static PyObject *
mem_members(void)
{
    PyObject *members = PyDict_New();
    for (int i = 0; members != NULL && i < VNX_MEM_COUNT; i++) {
        PyObject *name = PyUnicode_FromFormat("%s_SEG", vnx_mem_name(i));
        PyObject *value = PyLong_FromLong(i);
        if (name == NULL || value == NULL ||
            PyDict_SetItem(members, name, value) < 0) {
            Py_CLEAR(members);
        }
        Py_XDECREF(value);
        Py_XDECREF(name);
    }
    return members;
}

static int
mem_enum_add(PyObject *module, PyObject *int_enum)
{
    vnxi_py_state_t *state = vnxi_py_state(module);
    PyObject *members = mem_members();
    PyObject *made =
        members != NULL ? enum_make(int_enum, "nixl_mem_t", members) : NULL;
    Py_XDECREF(members);
    if (made == NULL) {
        return -1;
    }
    int ret = PyModule_AddObjectRef(module, "nixl_mem_t", made);
    for (int i = 0; ret == 0 && i < VNX_MEM_COUNT; i++) {
        state->mems[i] = PyObject_CallFunction(made, "i", i);
        PyObject *name = PyUnicode_FromFormat("%s_SEG", vnx_mem_name(i));
        if (state->mems[i] == NULL || name == NULL) {
            ret = -1;
        } else {
            ret = PyObject_SetAttr(module, name, state->mems[i]);
        }
        Py_XDECREF(name);
    }
    Py_DECREF(made);
    return ret;
}

int
vnxi_py_enums_add(PyObject *module)
{
    PyObject *enum_module = PyImport_ImportModule("enum");
    PyObject *int_enum = enum_module != NULL
                             ? PyObject_GetAttrString(enum_module, "IntEnum")
                             : NULL;
    int ret = int_enum != NULL ? mem_enum_add(module, int_enum) : -1;
    Py_XDECREF(int_enum);
    Py_XDECREF(enum_module);
    return ret;
}
