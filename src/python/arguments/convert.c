#include "python/arguments/convert.h"

#include <math.h>
#include <string.h>

#include "base/words.h"
#include "python/errors.h"

/* -- Integers ------------------------------------------------------------- */

#define DIGITS_MAX 60 /* of a number in a message */

vnxi_py_int_result_t
vnxi_py_int_slow(PyObject *value, uint64_t *number_p)
{
    PyErr_Clear(); /* the OverflowError of an int that vnxi_py_int_get() saw */
    if (PyBool_Check(value) || !PyIndex_Check(value)) {
        return VNXI_PY_INT_TYPE;
    }
    PyObject *index = PyNumber_Index(value);
    if (index == NULL) {
        return VNXI_PY_INT_EXCEPTION;
    }
    unsigned long long number = PyLong_AsUnsignedLongLong(index);
    Py_DECREF(index);
    if (number == (unsigned long long)-1 && PyErr_Occurred()) {
        PyErr_Clear(); /* an OverflowError: `index` is an int */
        return VNXI_PY_INT_RANGE;
    }
    *number_p = number;
    return VNXI_PY_INT_OK;
}

/* Write " 123" for messages; nothing if it has too many digits. */
static const char *
number_text(PyObject *value, char *text, size_t size)
{
    PyObject *index = PyNumber_Index(value);
    PyObject *digits = index != NULL ? PyObject_Str(index) : NULL;
    const char *utf8 = digits != NULL ? PyUnicode_AsUTF8(digits) : NULL;
    text[0] = '\0';
    if (utf8 == NULL) {
        PyErr_Clear(); /* such as Python's limit of digits */
    } else if (strlen(utf8) <= DIGITS_MAX) {
        snprintf(text, size, " %s", utf8);
    }
    Py_XDECREF(digits);
    Py_XDECREF(index);
    return text;
}

void
vnxi_py_int_raise(vnxi_py_state_t *state, const char *operation, int64_t row,
                  const char *what, PyObject *value,
                  vnxi_py_int_result_t result)
{
    char text[DIGITS_MAX + 2];
    if (result == VNXI_PY_INT_RANGE) {
        vnxi_py_invalid(state, operation, row, "%s%s is negative or too large",
                        what, number_text(value, text, sizeof text));
    } else if (result == VNXI_PY_INT_TYPE && row < 0) {
        vnxi_py_wrong_type(operation, what, "an int", value);
    } else if (result == VNXI_PY_INT_TYPE) {
        PyErr_Format(PyExc_TypeError,
                     "%s: row %lld: %s must be an int, not %.200s", operation,
                     (long long)row, what, Py_TYPE(value)->tp_name);
    }
}

bool
vnxi_py_int_between(vnxi_py_state_t *state, const char *operation,
                    const char *what, PyObject *value, uint64_t min,
                    uint64_t max, uint64_t *number_p)
{
    uint64_t number = 0;
    char text[DIGITS_MAX + 2];
    vnxi_py_int_result_t result = vnxi_py_int_get(value, &number);
    if (result == VNXI_PY_INT_OK && number >= min && number <= max) {
        *number_p = number;
        return true;
    }
    if (result == VNXI_PY_INT_OK || result == VNXI_PY_INT_RANGE) {
        vnxi_py_invalid(state, operation, VNXI_PY_NO_ROW,
                        "%s%s is not in %llu to %llu", what,
                        number_text(value, text, sizeof text),
                        (unsigned long long)min, (unsigned long long)max);
    } else {
        vnxi_py_int_raise(state, operation, VNXI_PY_NO_ROW, what, value,
                          result);
    }
    return false;
}

bool
vnxi_py_buffer_is_integer(const Py_buffer *view, bool *is_signed_p)
{
    const char *format = view->format != NULL ? view->format : "B";
    bool is_swapped = false;
    if (*format == '>' || *format == '!') {
        is_swapped = view->itemsize > 1;
        format++;
    } else if (*format == '@' || *format == '=' || *format == '<') {
        format++;
    }
    if (is_swapped || *format == '\0' || format[1] != '\0' ||
        strchr("bhilqnBHILQN", *format) == NULL) {
        return false;
    }
    *is_signed_p = *format >= 'a';
    return true;
}

/* -- Texts and names ------------------------------------------------------ */

static void
bytes_set(vnxi_py_bytes_t *bytes_p, const void *data, Py_ssize_t len)
{
    bytes_p->data = data;
    bytes_p->len = (size_t)len;
    bytes_p->owner = NULL;
    bytes_p->has_view = false;
}

/* Get the UTF-8 form of the object, cached if it has one.  A name that was
 * made of bytes that are not UTF-8 contains lone surrogates, and yields the
 * same bytes. */
static bool
bytes_of_str(PyObject *value, vnxi_py_bytes_t *bytes_p)
{
    Py_ssize_t len;
    const char *data = PyUnicode_AsUTF8AndSize(value, &len);
    if (data != NULL) {
        bytes_set(bytes_p, data, len);
        return true;
    }
    if (!PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) {
        return false;
    }
    PyErr_Clear();
    PyObject *encoded =
        PyUnicode_AsEncodedString(value, "utf-8", "surrogateescape");
    if (encoded == NULL) {
        return false;
    }
    bytes_set(bytes_p, PyBytes_AS_STRING(encoded), PyBytes_GET_SIZE(encoded));
    bytes_p->owner = encoded;
    return true;
}

bool
vnxi_py_name_get(const char *operation, PyObject *value,
                 vnxi_py_bytes_t *bytes_p)
{
    if (PyUnicode_Check(value)) {
        return bytes_of_str(value, bytes_p);
    }
    if (PyBytes_Check(value)) {
        bytes_set(bytes_p, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value));
        return true;
    }
    return vnxi_py_wrong_type(operation, "the name of an agent",
                              "str or bytes", value);
}

bool
vnxi_py_peer_get(vnxi_py_state_t *state, const char *operation,
                 PyObject *value, vnxi_py_bytes_t *bytes_p)
{
    if (!vnxi_py_name_get(operation, value, bytes_p)) {
        return false;
    }
    if (bytes_p->len == 0) {
        vnxi_py_bytes_put(bytes_p);
        return vnxi_py_invalid(state, operation, VNXI_PY_NO_ROW,
                               "the name of the agent is empty");
    }
    return true;
}

bool
vnxi_py_message_get(const char *operation, const char *what, PyObject *value,
                    vnxi_py_bytes_t *bytes_p)
{
    if (PyBytes_Check(value)) {
        bytes_set(bytes_p, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value));
        return true;
    }
    if (PyUnicode_Check(value)) {
        return bytes_of_str(value, bytes_p);
    }
    if (!PyObject_CheckBuffer(value)) {
        return vnxi_py_wrong_type(operation, what, "bytes or str", value);
    }
    if (PyObject_GetBuffer(value, &bytes_p->view, PyBUF_SIMPLE) < 0) {
        return false;
    }
    bytes_set(bytes_p, bytes_p->view.len > 0 ? bytes_p->view.buf : "",
              bytes_p->view.len);
    bytes_p->has_view = true;
    return true;
}

const char *
vnxi_py_text_get(vnxi_py_state_t *state, const char *operation,
                 const char *what, PyObject *value)
{
    Py_ssize_t len;
    if (!PyUnicode_Check(value)) {
        vnxi_py_wrong_type(operation, what, "a str", value);
        return NULL;
    }
    const char *text = PyUnicode_AsUTF8AndSize(value, &len);
    if (text != NULL && strlen(text) != (size_t)len) {
        vnxi_py_invalid(state, operation, VNXI_PY_NO_ROW,
                        "%s has a null character", what);
        return NULL;
    }
    return text;
}

PyObject *
vnxi_py_name_new(const void *name, size_t len)
{
    return PyUnicode_DecodeUTF8(name, (Py_ssize_t)len, "surrogateescape");
}

static bool
mem_of_number(const char *operation, PyObject *value, vnx_mem_t *mem_p)
{
    int overflow;
    long number = PyLong_AsLongAndOverflow(value, &overflow);
    if (overflow != 0 || number < 0 || number >= VNX_MEM_COUNT) {
        return PyErr_Format(PyExc_KeyError,
                            "%s: no memory type has the number %R: nixl_mem_t "
                            "has 0 to %d",
                            operation, value, VNX_MEM_COUNT - 1);
    }
    *mem_p = (vnx_mem_t)number;
    return true;
}

/* Raise KeyError for a str that is none of the words. */
static bool
word_raise(const char *operation, const char *what, PyObject *value,
           const char *const *words, size_t count)
{
    const char *given = PyUnicode_AsUTF8(value);
    if (given == NULL) {
        PyErr_Clear(); /* lone surrogates */
        given = "";
    }
    return PyErr_Format(PyExc_KeyError, "%s: unknown %s '%.100s': %s",
                        operation, what, given,
                        vnxi_words(given, words, count));
}

static const char *const op_words[] = {"READ", "WRITE"};
static const char *const mem_words[] = {"DRAM", "VRAM", "BLK", "OBJ",
                                        "FILE", "cpu",  "cuda"};

bool
vnxi_py_mem_get(const char *operation, PyObject *value, vnx_mem_t *mem_p)
{
    static const struct {
        const char *name;
        vnx_mem_t mem;
    } names[] = {
        {"DRAM", VNX_MEM_DRAM}, {"VRAM", VNX_MEM_VRAM}, {"cpu", VNX_MEM_DRAM},
        {"cuda", VNX_MEM_VRAM}, {"FILE", VNX_MEM_FILE}, {"OBJ", VNX_MEM_OBJ},
        {"BLK", VNX_MEM_BLK},   {"BLOCK", VNX_MEM_BLK},
    };
    if (PyLong_Check(value) && !PyBool_Check(value)) {
        return mem_of_number(operation, value, mem_p);
    }
    if (!PyUnicode_Check(value)) {
        return vnxi_py_wrong_type(operation, "the memory type", "str", value);
    }
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (PyUnicode_CompareWithASCIIString(value, names[i].name) == 0) {
            *mem_p = names[i].mem;
            return true;
        }
    }
    return word_raise(operation, "memory type", value, mem_words,
                      sizeof mem_words / sizeof mem_words[0]);
}

bool
vnxi_py_mem_needed(const char *operation, PyObject *value, vnx_mem_t *mem_p)
{
    if (value == NULL || value == Py_None) {
        return PyErr_Format(PyExc_TypeError,
                            "%s: mem_type is needed for tuples and arrays, "
                            "such as \"DRAM\"",
                            operation);
    }
    return vnxi_py_mem_get(operation, value, mem_p);
}

bool
vnxi_py_op_get(vnxi_py_state_t *state, const char *operation, PyObject *value,
               vnx_op_t *op_p)
{
    bool is_read = value == VNXI_PY_NAME(state, READ);
    if (!is_read && value != VNXI_PY_NAME(state, WRITE)) {
        if (!PyUnicode_Check(value)) {
            return vnxi_py_wrong_type(operation, "operation", "str", value);
        }
        is_read = PyUnicode_CompareWithASCIIString(value, "READ") == 0;
        if (!is_read &&
            PyUnicode_CompareWithASCIIString(value, "WRITE") != 0) {
            return word_raise(operation, "operation", value, op_words, 2);
        }
    }
    *op_p = is_read ? VNX_OP_READ : VNX_OP_WRITE;
    return true;
}

const char *
vnxi_py_backend_help(PyObject *created, PyObject *name,
                     char text[VNXI_PY_HELP_MAX])
{
    const char *words[VNXI_PY_BACKENDS_MAX];
    size_t count = 0;
    PyObject *keys =
        created != NULL && PyDict_Check(created) ? PyDict_Keys(created) : NULL;
    const char *given = PyUnicode_AsUTF8(name);
    for (Py_ssize_t i = 0;
         keys != NULL && given != NULL && i < PyList_GET_SIZE(keys) &&
         count < VNXI_PY_BACKENDS_MAX;
         i++) {
        words[count] = PyUnicode_AsUTF8(PyList_GET_ITEM(keys, i));
        count += words[count] != NULL;
    }
    text[0] = '\0';
    if (count > 0) {
        snprintf(text, VNXI_PY_HELP_MAX, ": %s; create_backend() adds others",
                 vnxi_words(given, words, count));
    } else if (!PyErr_Occurred()) {
        snprintf(text, VNXI_PY_HELP_MAX, ": create_backend() adds it");
    }
    PyErr_Clear();
    Py_XDECREF(keys);
    return text;
}

/* Check and copy one name. */
static bool
backend_get(const char *operation, PyObject *created, PyObject *name,
            char *text)
{
    if (!PyUnicode_Check(name)) {
        return vnxi_py_wrong_type(operation, "the name of a backend", "str",
                                  name);
    }
    int known = created != NULL ? PyDict_Contains(created, name) : 1;
    Py_ssize_t len;
    const char *utf8 = known > 0 ? PyUnicode_AsUTF8AndSize(name, &len) : NULL;
    if (known == 0 || (utf8 != NULL && (len >= VNXI_PY_BACKEND_NAME_MAX ||
                                        strlen(utf8) != (size_t)len))) {
        char help[VNXI_PY_HELP_MAX];
        return PyErr_Format(PyExc_KeyError,
                            "%s: the agent has no backend %R%s", operation,
                            name, vnxi_py_backend_help(created, name, help));
    }
    if (utf8 == NULL) {
        return false;
    }
    memcpy(text, utf8, (size_t)len + 1);
    return true;
}

bool
vnxi_py_backends_get(const char *operation, PyObject *created, PyObject *value,
                     vnxi_py_backends_t *backends_p)
{
    backends_p->list = NULL;
    if (value == NULL || value == Py_None ||
        (PyList_CheckExact(value) && PyList_GET_SIZE(value) == 0)) {
        return true;
    }
    if (PyUnicode_Check(value) || !PySequence_Check(value)) {
        return vnxi_py_wrong_type(operation, "backends", "a list of names",
                                  value);
    }
    PyObject *names = PySequence_Tuple(value);
    if (names == NULL) {
        return false;
    }
    Py_ssize_t count = PyTuple_GET_SIZE(names);
    bool good = count <= VNXI_PY_BACKENDS_MAX;
    if (!good) {
        PyErr_Format(PyExc_ValueError, "%s: more than %d backends", operation,
                     VNXI_PY_BACKENDS_MAX);
    }
    for (Py_ssize_t i = 0; good && i < count; i++) {
        backends_p->names[i] = backends_p->text[i];
        good = backend_get(operation, created, PyTuple_GET_ITEM(names, i),
                           backends_p->text[i]);
    }
    Py_DECREF(names);
    if (good && count > 0) {
        backends_p->names[count] = NULL;
        backends_p->list = backends_p->names;
    }
    return good;
}

bool
vnxi_py_timeout_get(vnxi_py_state_t *state, const char *operation,
                    PyObject *value, uint64_t *ns_p)
{
    *ns_p = VNX_FOREVER;
    if (value == NULL || value == Py_None) {
        return true;
    }
    double seconds = PyFloat_AsDouble(value);
    if (seconds == -1.0 && PyErr_Occurred()) {
        if (PyLong_Check(value) &&
            PyErr_ExceptionMatches(PyExc_OverflowError)) {
            PyErr_Clear();
            vnxi_py_invalid(state, operation, VNXI_PY_NO_ROW,
                            "the timeout is out of range; None has no limit");
        }
        return false;
    }
    if (isnan(seconds) || seconds < 0) {
        return vnxi_py_invalid(
            state, operation, VNXI_PY_NO_ROW,
            "the timeout must be None or at least 0 seconds");
    }
    /* Longer than a century means no limit. */
    if (seconds < 3.2e9) {
        *ns_p = (uint64_t)(seconds * 1e9);
    }
    return true;
}

bool
vnxi_py_dict_set(PyObject *dict, const char *key, PyObject *value)
{
    bool good = value != NULL && PyDict_SetItemString(dict, key, value) == 0;
    Py_XDECREF(value);
    return good;
}

bool
vnxi_py_dict_set_numbers(PyObject *dict, const char *prefix,
                         const vnxi_py_number_t *numbers, size_t count)
{
    char key[64];
    for (size_t i = 0; i < count; i++) {
        snprintf(key, sizeof key, "%s%s", prefix, numbers[i].key);
        if (!vnxi_py_dict_set(dict, key,
                              PyLong_FromUnsignedLongLong(numbers[i].value))) {
            return false;
        }
    }
    return true;
}

PyObject *
vnxi_py_numbers_new(const uint64_t *numbers, size_t count)
{
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list != NULL && i < count; i++) {
        PyObject *value = PyLong_FromUnsignedLongLong(numbers[i]);
        if (value == NULL) {
            Py_CLEAR(list);
        } else {
            PyList_SET_ITEM(list, (Py_ssize_t)i, value);
        }
    }
    return list;
}
