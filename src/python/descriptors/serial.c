/*
 * Design note.  The format is NIXL's serialised descriptor list, which its
 * pickles contain: a prefix, then fields of a tag, a 64-bit length, the value
 * and '|'.  The bytes may come from the network, so the reader checks every
 * length against the bytes that remain before it allocates anything, and
 * changes the list only after it has read everything.
 */
#include "python/descriptors/descs.h"

#include <string.h>

#include "base/bytes.h"
#include "python/errors.h"

#define SERIAL_PREFIX "nixlSerDes|"

static const char *
serial_kind(const vnxi_py_descs_t *self)
{
    return self->kind == VNXI_PY_DESCS_XFER ? "nixlBDList" : "nixlSDList";
}

static void
field_begin(vnxi_writer_t *writer, const char *tag, size_t len)
{
    vnxi_write_bytes(writer, tag, strlen(tag));
    vnxi_write_u64(writer, len);
}

static void
field_end(vnxi_writer_t *writer)
{
    vnxi_write_u8(writer, '|');
}

static void
field_write(vnxi_writer_t *writer, const char *tag, const void *data,
            size_t len)
{
    field_begin(writer, tag, len);
    vnxi_write_bytes(writer, data, len);
    field_end(writer);
}

static void
head_write(vnxi_writer_t *writer, const vnxi_py_descs_t *self)
{
    const char *kind = serial_kind(self);
    uint32_t mem = (uint32_t)self->mem;
    uint64_t count = self->count;
    vnxi_write_bytes(writer, SERIAL_PREFIX, strlen(SERIAL_PREFIX));
    field_write(writer, "nixlDList", kind, strlen(kind));
    field_write(writer, "t", &mem, sizeof mem);
    field_write(writer, "n", &count, sizeof count);
}

/* Needs no GIL: the list is pinned, and bytes never change. */
static void
rows_write(vnxi_writer_t *writer, const vnxi_py_descs_t *self)
{
    if (self->kind == VNXI_PY_DESCS_XFER) {
        size_t len = self->count * sizeof *self->rows;
        if (len > 0) {
            field_write(writer, "", self->rows, len);
        }
        return;
    }
    for (size_t i = 0; i < self->count; i++) {
        size_t meta = (size_t)PyBytes_GET_SIZE(self->extras[i]);
        field_begin(writer, "", sizeof self->rows[i] + meta);
        vnxi_write_bytes(writer, &self->rows[i], sizeof self->rows[i]);
        vnxi_write_bytes(writer, PyBytes_AS_STRING(self->extras[i]), meta);
        field_end(writer);
    }
}

const char vnxi_py_descs_getstate_doc[] =
    "__getstate__($self)\n--\n\n"
    "The list in NIXL's own serialised form (bytes).";

PyObject *
vnxi_py_descs_getstate(PyObject *op, PyObject *Py_UNUSED(ignored))
{
    vnxi_py_descs_t *self = (vnxi_py_descs_t *)op;
    vnxi_writer_t writer = {0};
    if (!vnxi_py_descs_pin(self)) {
        return NULL;
    }
    PyThreadState *thread =
        vnxi_py_gil_drop_if(self->count >= VNXI_PY_ROWS_LARGE);
    head_write(&writer, self);
    rows_write(&writer, self);
    vnxi_py_gil_take(thread);
    vnxi_py_descs_unpin(self);
    PyObject *bytes =
        writer.failed ? PyErr_NoMemory()
                      : PyBytes_FromStringAndSize((const char *)writer.data,
                                                  (Py_ssize_t)writer.len);
    vnxi_writer_fini(&writer);
    return bytes;
}

/* Read the next field; returns its value in place.  NULL, and the reader has
 * failed: the tag is another one, or the end of the field is missing. */
static const unsigned char *
field_read(vnxi_reader_t *reader, const char *tag, size_t *len_p)
{
    size_t tag_len = strlen(tag);
    const unsigned char *found = vnxi_read_bytes(reader, tag_len);
    if (found == NULL || memcmp(found, tag, tag_len) != 0) {
        reader->failed = true;
        return NULL;
    }
    uint64_t len = vnxi_read_u64(reader);
    const unsigned char *value = vnxi_read_bytes(reader, len);
    if (vnxi_read_u8(reader) != '|') {
        reader->failed = true;
    }
    *len_p = len;
    return reader->failed ? NULL : value;
}

/* Read a field whose length is known. */
static const unsigned char *
field_read_exact(vnxi_reader_t *reader, const char *tag, size_t len)
{
    size_t found;
    const unsigned char *value = field_read(reader, tag, &found);
    return value != NULL && found == len ? value : NULL;
}

static bool
head_read(vnxi_reader_t *reader, const vnxi_py_descs_t *self, vnx_mem_t *mem_p,
          uint64_t *count_p)
{
    const char *kind = serial_kind(self);
    const unsigned char *prefix =
        vnxi_read_bytes(reader, strlen(SERIAL_PREFIX));
    if (prefix == NULL ||
        memcmp(prefix, SERIAL_PREFIX, strlen(SERIAL_PREFIX)) != 0) {
        return false;
    }
    const unsigned char *name =
        field_read_exact(reader, "nixlDList", strlen(kind));
    const unsigned char *mem = field_read_exact(reader, "t", 4);
    const unsigned char *count = field_read_exact(reader, "n", 8);
    if (name == NULL || mem == NULL || count == NULL ||
        memcmp(name, kind, strlen(kind)) != 0) {
        return false;
    }
    uint32_t number;
    memcpy(&number, mem, sizeof number);
    memcpy(count_p, count, sizeof *count_p);
    *mem_p = (vnx_mem_t)number;
    return number < VNX_MEM_COUNT;
}

static bool
xfer_rows_read(vnxi_reader_t *reader, vnxi_py_descs_t *self, uint64_t count)
{
    if (count == 0) {
        return true;
    }
    size_t len;
    const unsigned char *rows = field_read(reader, "", &len);
    if (rows == NULL || len % sizeof(vnx_desc_t) != 0 ||
        len / sizeof(vnx_desc_t) != count ||
        !vnxi_py_descs_extend(self, rows, count)) {
        return false;
    }
    return true;
}

static bool
reg_rows_read(vnxi_reader_t *reader, vnxi_py_descs_t *self, uint64_t count)
{
    /* Each row takes more than 24 bytes, so `count` is bounded. */
    if (count > vnxi_reader_left(reader) / sizeof(vnx_desc_t) ||
        !vnxi_py_descs_reserve(self, count)) {
        return false;
    }
    for (uint64_t i = 0; i < count; i++) {
        size_t len;
        const unsigned char *row = field_read(reader, "", &len);
        if (row == NULL || len < sizeof(vnx_desc_t)) {
            return false;
        }
        PyObject *meta =
            PyBytes_FromStringAndSize((const char *)row + sizeof(vnx_desc_t),
                                      (Py_ssize_t)(len - sizeof(vnx_desc_t)));
        if (meta == NULL) {
            return false;
        }
        memcpy(&self->rows[i], row, sizeof(vnx_desc_t));
        self->extras[i] = meta;
        self->count++;
    }
    return true;
}

/* Read the state into `self`, an empty list. */
static bool
state_read(vnxi_py_descs_t *self, const void *data, size_t len)
{
    vnxi_reader_t reader = vnxi_reader(data, len);
    uint64_t count;
    if (!head_read(&reader, self, &self->mem, &count)) {
        return false;
    }
    bool good = self->kind == VNXI_PY_DESCS_XFER
                    ? xfer_rows_read(&reader, self, count)
                    : reg_rows_read(&reader, self, count);
    return good && vnxi_reader_left(&reader) == 0;
}

/* Exchange the contents of the two lists. */
static void
contents_swap(vnxi_py_descs_t *self, vnxi_py_descs_t *other)
{
    vnxi_py_descs_t old = *self;
#define TAKE(field) (self->field = other->field, other->field = old.field)
    self->mem = other->mem;
    TAKE(count);
    TAKE(capacity);
    TAKE(rows);
    TAKE(extras);
    TAKE(runs);
#undef TAKE
}

const char vnxi_py_descs_setstate_doc[] =
    "__setstate__($self, state, /)\n--\n\n"
    "Restore the state that __getstate__() returned. "
    "nixlMismatchError if the\nbytes are not such a list; the list is then "
    "unchanged.";

PyObject *
vnxi_py_descs_setstate(PyObject *op, PyObject *state)
{
    vnxi_py_descs_t *self = (vnxi_py_descs_t *)op;
    if (!PyBytes_Check(state)) {
        return vnxi_py_wrong_type("__setstate__", "the state", "bytes", state);
    }
    vnxi_py_descs_t *read =
        vnxi_py_descs_new(self->state, self->kind, self->mem);
    if (read == NULL) {
        return NULL;
    }
    bool good = state_read(read, PyBytes_AS_STRING(state),
                           (size_t)PyBytes_GET_SIZE(state));
    if (good && vnxi_py_descs_movable(self)) {
        contents_swap(self, read);
    } else if (!PyErr_Occurred()) {
        vnx_error_t error;
        vnxi_error_set(&error, VNX_ERR_MISMATCH, "__setstate__",
                       "the bytes are no serialised %s", Py_TYPE(op)->tp_name);
        vnxi_py_raise(self->state, &error);
    }
    Py_DECREF(read);
    if (PyErr_Occurred()) {
        return NULL;
    }
    Py_RETURN_NONE;
}
