#include "python/arguments/rows.h"

#include "python/arguments/convert.h"
#include "python/errors.h"

/* Get the integer that `tensor.name()` returns. */
static bool
tensor_number(vnxi_py_state_t *state, const char *operation, int64_t row,
              PyObject *tensor, vnxi_py_name_t name, uint64_t *number_p)
{
    PyObject *value = PyObject_CallMethodNoArgs(tensor, state->names[name]);
    if (value == NULL) {
        return false;
    }
    vnxi_py_int_result_t result = vnxi_py_int_get(value, number_p);
    if (result != VNXI_PY_INT_OK) {
        vnxi_py_int_raise(state, operation, row,
                          PyUnicode_AsUTF8(state->names[name]), value, result);
    }
    Py_DECREF(value);
    return result == VNXI_PY_INT_OK;
}

/* Get the device: device.type "cpu" is DRAM of device 0; any other type is
 * VRAM of device.index, 0 if that is None. */
static bool
tensor_device(vnxi_py_state_t *state, const char *operation, int64_t row,
              PyObject *tensor, vnx_mem_t *mem_p, uint64_t *index_p)
{
    PyObject *device = PyObject_GetAttr(tensor, VNXI_PY_NAME(state, device));
    PyObject *type = device != NULL
                         ? PyObject_GetAttr(device, VNXI_PY_NAME(state, type))
                         : NULL;
    PyObject *index =
        type != NULL ? PyObject_GetAttr(device, VNXI_PY_NAME(state, index))
                     : NULL;
    bool good = index != NULL;
    if (good) {
        bool is_cpu = PyUnicode_Check(type) &&
                      PyUnicode_CompareWithASCIIString(type, "cpu") == 0;
        *mem_p = is_cpu ? VNX_MEM_DRAM : VNX_MEM_VRAM;
        *index_p = 0;
        if (!is_cpu && index != Py_None) {
            vnxi_py_int_result_t result = vnxi_py_int_get(index, index_p);
            good = result == VNXI_PY_INT_OK;
            vnxi_py_int_raise(state, operation, row, "device.index", index,
                              result);
        }
    }
    Py_XDECREF(index);
    Py_XDECREF(type);
    Py_XDECREF(device);
    return good;
}

static bool
tensor_is_contiguous(vnxi_py_state_t *state, const char *operation,
                     int64_t row, PyObject *tensor)
{
    PyObject *value =
        PyObject_CallMethodNoArgs(tensor, VNXI_PY_NAME(state, is_contiguous));
    int is_contiguous = value != NULL ? PyObject_IsTrue(value) : -1;
    Py_XDECREF(value);
    if (is_contiguous == 0) {
        vnxi_py_invalid(state, operation, row,
                        "the tensor is not contiguous: pass the tensor that "
                        "it is a view of, or rows of addresses");
    }
    return is_contiguous > 0;
}

bool
vnxi_py_tensor_get(vnxi_py_state_t *state, const char *operation, int64_t row,
                   PyObject *tensor, vnx_desc_t *desc_p, vnx_mem_t *mem_p)
{
    uint64_t addr, numel, size, dev;
    vnx_mem_t mem;
    if (!tensor_is_contiguous(state, operation, row, tensor) ||
        !tensor_device(state, operation, row, tensor, &mem, &dev) ||
        !tensor_number(state, operation, row, tensor, VNXI_PY_NAME_data_ptr,
                       &addr) ||
        !tensor_number(state, operation, row, tensor, VNXI_PY_NAME_numel,
                       &numel) ||
        !tensor_number(state, operation, row, tensor,
                       VNXI_PY_NAME_element_size, &size)) {
        return false;
    }
    uint64_t len;
    if (__builtin_mul_overflow(numel, size, &len)) {
        return vnxi_py_invalid(state, operation, row,
                               "the tensor is too large");
    }
    *desc_p = (vnx_desc_t){addr, len, dev};
    *mem_p = mem;
    return true;
}
