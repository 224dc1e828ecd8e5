#include "python/module.h"

/* nixl_mem_t and nixl_status_t are enum.IntEnum, so that they print by name
 * and compare with ints, as NIXL's enums do. */

/* From Python 3.11 on an IntEnum prints as a number; NIXL's enums print by
 * name. */
static int
enum_print_names(PyObject *made)
{
    PyObject *module = PyImport_ImportModule("enum");
    PyObject *base =
        module != NULL ? PyObject_GetAttrString(module, "Enum") : NULL;
    PyObject *print =
        base != NULL ? PyObject_GetAttrString(base, "__str__") : NULL;
    int ret =
        print != NULL ? PyObject_SetAttrString(made, "__str__", print) : -1;
    Py_XDECREF(print);
    Py_XDECREF(base);
    Py_XDECREF(module);
    return ret;
}

/* Takes the reference to `members`, which may be NULL with an exception set.
 */
static PyObject *
enum_add(PyObject *module, PyObject *int_enum, const char *name,
         PyObject *members)
{
    PyObject *args =
        members != NULL ? Py_BuildValue("(sO)", name, members) : NULL;
    PyObject *kwargs = Py_BuildValue("{s:s}", "module", "vllm_nixl._core");
    PyObject *made = args != NULL && kwargs != NULL
                         ? PyObject_Call(int_enum, args, kwargs)
                         : NULL;
    Py_XDECREF(kwargs);
    Py_XDECREF(args);
    Py_XDECREF(members);
    if (made != NULL && (enum_print_names(made) < 0 ||
                         PyModule_AddObjectRef(module, name, made) < 0)) {
        Py_CLEAR(made);
    }
    return made;
}

static PyObject *
mem_members(void)
{
    PyObject *members = PyList_New(0);
    for (int i = 0; members != NULL && i < VNX_MEM_COUNT; i++) {
        PyObject *pair = Py_BuildValue(
            "(Ni)", PyUnicode_FromFormat("%s_SEG", vnx_mem_name(i)), i);
        if (pair == NULL || PyList_Append(members, pair) < 0) {
            Py_CLEAR(members);
        }
        Py_XDECREF(pair);
    }
    return members;
}

static int
mem_enum_add(PyObject *module, PyObject *int_enum)
{
    vnxi_py_state_t *state = vnxi_py_state(module);
    PyObject *made = enum_add(module, int_enum, "nixl_mem_t", mem_members());
    int ret = made != NULL ? 0 : -1;
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
    Py_XDECREF(made);
    return ret;
}

static PyObject *
status_members(void)
{
#define STATUS_FORM(sym, num, name, text, pyclass) "si"
#define STATUS_PAIR(sym, num, name, text, pyclass) , name, num
    return Py_BuildValue(
        "{" VNX_STATUS_TABLE(STATUS_FORM) "}" VNX_STATUS_TABLE(STATUS_PAIR));
#undef STATUS_FORM
#undef STATUS_PAIR
}

int
vnxi_py_enums_add(PyObject *module)
{
    PyObject *enum_module = PyImport_ImportModule("enum");
    PyObject *int_enum = enum_module != NULL
                             ? PyObject_GetAttrString(enum_module, "IntEnum")
                             : NULL;
    int ret = int_enum != NULL ? mem_enum_add(module, int_enum) : -1;
    PyObject *made = ret == 0 ? enum_add(module, int_enum, "nixl_status_t",
                                         status_members())
                              : NULL;
    ret = made != NULL ? 0 : -1;
    Py_XDECREF(made);
    Py_XDECREF(int_enum);
    Py_XDECREF(enum_module);
    return ret;
}
