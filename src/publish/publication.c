/*
 * Design notes.  The end of a publication is checked before anything in it is
 * read: the checksum, which finds damage, and with a metadata secret the MAC,
 * which finds changes.  The metadata has a signature of its own, but that does
 * not cover the rows.  The first bytes of metadata and of a publication
 * differ, so a MAC of one is never one of the other.
 *
 * 40 bytes can stand for any number of rows, so the number of rows is limited:
 * a prepared list takes memory for them.
 */
#include "publish/publication.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"

#define MAGIC "VNXPUBL:"
#define MAGIC_LEN 8u
#define MAJOR 1
#define MINOR 0
#define FLAG_SIGNED 1u
#define HEAD_LEN 24u
#define CHECKSUM_LEN 8u
/* A list: the length of its name, one byte of it, memory type, form, count, a
 * row. */
#define LIST_MIN (2u + 1 + 1 + 1 + 8 + sizeof(vnx_desc_t))

enum { FORM_ROWS = 0, FORM_STRIDED = 1 };

_Static_assert(sizeof(vnx_desc_t) == 24 && sizeof(vnx_strided_desc_t) == 40,
               "rows are sent as they are in memory; docs/wire.md");

/* -- Checking lists ------------------------------------------------------- */

/* The rows that a list has when strides are unrolled; false: more than
 * `left`. */
static bool
count_rows(const vnx_named_rows_t *list, uint64_t left, uint64_t *rows_p)
{
    uint64_t rows = list->rows != NULL ? list->count : 0;

    for (size_t i = 0; list->rows == NULL && i < list->count; i++) {
        if (list->strided[i].count > left - rows) {
            return false;
        }
        rows += list->strided[i].count;
    }
    *rows_p = rows;
    return rows <= left;
}

/* Why a list is refused; NULL: it is not. */
static const char *
name_fault(const vnx_named_rows_t *lists, size_t index)
{
    const char *name = lists[index].name;

    if (name == NULL || name[0] == '\0') {
        return "its name is empty";
    }
    if (strnlen(name, VNX_LIST_NAME_MAX + 1) > VNX_LIST_NAME_MAX) {
        return "its name has more than 255 bytes";
    }
    for (size_t i = 0; i < index; i++) {
        if (strcmp(lists[i].name, name) == 0) {
            return "another list has the same name";
        }
    }
    return NULL;
}

static const char *
list_fault(const vnx_named_rows_t *lists, size_t index, uint64_t *left)
{
    const vnx_named_rows_t *list = &lists[index];
    const char *fault = name_fault(lists, index);
    uint64_t rows;

    if (fault != NULL) {
        return fault;
    }
    if ((unsigned)list->mem >= VNX_MEM_COUNT) {
        return "its memory type is unknown";
    }
    if (list->count == 0 || (list->rows == NULL && list->strided == NULL)) {
        return "it has no rows";
    }
    if (!count_rows(list, *left, &rows)) {
        return "a publication has at most 67108864 rows";
    }
    *left -= rows;
    return NULL;
}

_Static_assert(VNX_PUBLISH_ROWS_MAX == 67108864 && VNX_LIST_NAME_MAX == 255,
               "the texts above");

static vnx_status_t
check_lists(vnx_status_t status, const char *operation,
            const vnx_named_rows_t *lists, size_t count, vnx_error_t *error)
{
    uint64_t left = VNX_PUBLISH_ROWS_MAX;
    vnx_error_t shown; /* for the printable name */

    for (size_t i = 0; i < count; i++) {
        const char *fault = list_fault(lists, i, &left);
        if (fault != NULL) {
            const char *name = lists[i].name != NULL ? lists[i].name : "";
            vnxi_error_peer(&shown, name, strnlen(name, VNX_LIST_NAME_MAX));
            return vnxi_error_set(error, status, operation,
                                  "list '%s' (number %zu): %s", shown.peer, i,
                                  fault);
        }
    }
    return VNX_OK;
}

vnx_status_t
vnxi_publication_check(const char *operation, const vnx_named_rows_t *lists,
                       size_t count, vnx_error_t *error)
{
    if (count > VNX_PUBLISH_LISTS_MAX) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation,
                              "%zu lists are above %d", count,
                              VNX_PUBLISH_LISTS_MAX);
    }
    return check_lists(VNX_ERR_INVALID_PARAM, operation, lists, count, error);
}

/* -- Writing -------------------------------------------------------------- */

static void
write_list(vnxi_writer_t *writer, const vnx_named_rows_t *list)
{
    bool is_strided = list->rows == NULL;
    size_t name_len = strlen(list->name);

    vnxi_write_u16(writer, (uint16_t)name_len);
    vnxi_write_bytes(writer, list->name, name_len);
    vnxi_write_u8(writer, (uint8_t)list->mem);
    vnxi_write_u8(writer, is_strided ? FORM_STRIDED : FORM_ROWS);
    vnxi_write_u64(writer, list->count);
    vnxi_write_bytes(writer,
                     is_strided ? (const void *)list->strided : list->rows,
                     list->count * vnxi_named_rows_item(list));
}

/* Append the MAC, if there is a key, and the checksum. */
static vnx_status_t
write_end(vnxi_writer_t *writer, const vnxi_signature_key_t *key,
          const char *operation, vnx_error_t *error)
{
    unsigned char mac[VNXI_MAC_LEN];

    if (key->is_set && !writer->failed) {
        vnx_status_t status = vnxi_signature_mac(
            key, writer->data, writer->len, operation, mac, error);
        if (status != VNX_OK) {
            return status;
        }
        vnxi_write_bytes(writer, mac, sizeof mac);
    }
    if (!writer->failed) {
        vnxi_write_u64(writer, vnxi_hash(writer->data, writer->len));
    }
    return VNX_OK;
}

vnx_status_t
vnxi_publication_write(const vnxi_publication_t *publication,
                       const vnxi_signature_key_t *key, const char *operation,
                       vnx_bytes_t *bytes_p, vnx_error_t *error)
{
    vnxi_writer_t writer = {0};

    vnxi_write_bytes(&writer, MAGIC, MAGIC_LEN);
    vnxi_write_u8(&writer, MAJOR);
    vnxi_write_u8(&writer, MINOR);
    vnxi_write_u16(&writer, key->is_set ? FLAG_SIGNED : 0);
    vnxi_write_u32(&writer, (uint32_t)publication->count);
    vnxi_write_u64(&writer, publication->metadata_len);
    vnxi_write_bytes(&writer, publication->metadata,
                     publication->metadata_len);
    for (size_t i = 0; i < publication->count; i++) {
        write_list(&writer, &publication->lists[i]);
    }
    vnx_status_t status = write_end(&writer, key, operation, error);
    if (status != VNX_OK) {
        vnxi_writer_fini(&writer);
        return status;
    }
    size_t len = writer.len;
    return vnxi_writer_take(&writer, &bytes_p->data, &bytes_p->len)
               ? VNX_OK
               : vnxi_error_no_memory(error, operation, len);
}

/* -- Reading -------------------------------------------------------------- */

/* The state of a read. */
typedef struct source {
    vnxi_reader_t reader; /* up to the MAC or the checksum */
    const char *operation;
    uint8_t minor;
    uint16_t flags;
    uint32_t count;
} source_t;

static vnx_status_t
mismatch(const source_t *source, const char *cause, vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_MISMATCH, source->operation, "%s",
                          cause);
}

/* Take the MAC off the end of the bytes, and check it if there is a key. */
static vnx_status_t
check_mac(source_t *source, const void *bytes, const vnxi_signature_key_t *key,
          vnx_error_t *error)
{
    const unsigned char *mac = NULL;

    if ((source->flags & FLAG_SIGNED) != 0) {
        if (vnxi_reader_left(&source->reader) < VNXI_MAC_LEN) {
            return mismatch(source, "the publication is cut off", error);
        }
        mac = source->reader.end -= VNXI_MAC_LEN;
    }
    return key->is_set ? vnxi_signature_verify(key, "publication", bytes, mac,
                                               source->operation, error)
                       : VNX_OK;
}

/* Check the first bytes and the checksum. */
static vnx_status_t
open_source(source_t *source, const void *bytes, size_t len,
            vnx_error_t *error)
{
    const unsigned char *data = bytes;

    if (len < MAGIC_LEN || memcmp(data, MAGIC, MAGIC_LEN) != 0) {
        return mismatch(source, "the bytes are not a publication", error);
    }
    if (len < HEAD_LEN + CHECKSUM_LEN) {
        return mismatch(source, "the publication is cut off", error);
    }
    if (data[MAGIC_LEN] != MAJOR) {
        return vnxi_error_set(error, VNX_ERR_MISMATCH, source->operation,
                              "the publication has version %u, only %d is "
                              "supported",
                              data[MAGIC_LEN], MAJOR);
    }
    size_t body = len - CHECKSUM_LEN;
    vnxi_reader_t end = vnxi_reader(data + body, CHECKSUM_LEN);
    if (vnxi_read_u64(&end) != vnxi_hash(data, body)) {
        return mismatch(source,
                        "the publication is damaged: its checksum is wrong",
                        error);
    }
    source->reader = vnxi_reader(data, body);
    return VNX_OK;
}

static void
read_head(source_t *source, vnxi_publication_t *publication)
{
    vnxi_reader_t *reader = &source->reader;

    (void)vnxi_read_bytes(reader, MAGIC_LEN + 1);
    source->minor = vnxi_read_u8(reader);
    source->flags = vnxi_read_u16(reader);
    source->count = vnxi_read_u32(reader);
    publication->metadata_len = vnxi_read_u64(reader);
}

/* Copy the items of a list behind its name, aligned. */
static bool
take_items(vnx_named_rows_t *list, const void *name, size_t name_len,
           const void *items, size_t item, bool is_strided)
{
    size_t len = list->count * item;
    unsigned char *copy = malloc(len + name_len + 1);

    if (copy == NULL) {
        return false;
    }
    memcpy(copy, items, len);
    memcpy(copy + len, name, name_len);
    copy[len + name_len] = '\0';
    list->name = (const char *)copy + len;
    if (is_strided) {
        list->strided = (const void *)copy;
    } else {
        list->rows = (const void *)copy;
    }
    return true;
}

static vnx_status_t
read_list(source_t *source, vnx_named_rows_t *list, vnx_error_t *error)
{
    vnxi_reader_t *reader = &source->reader;
    size_t name_len = vnxi_read_u16(reader);
    const unsigned char *name = vnxi_read_bytes(reader, name_len);
    uint8_t mem = vnxi_read_u8(reader), form = vnxi_read_u8(reader);
    uint64_t count = vnxi_read_u64(reader);
    bool is_strided = form == FORM_STRIDED;
    size_t item = is_strided ? sizeof(vnx_strided_desc_t) : sizeof(vnx_desc_t);

    if (reader->failed || count > vnxi_reader_left(reader) / item) {
        return mismatch(source, "the publication is cut off in a list", error);
    }
    if (form > FORM_STRIDED || memchr(name, '\0', name_len) != NULL) {
        return mismatch(source,
                        "a list has an unknown form or a name with a "
                        "zero byte",
                        error);
    }
    list->mem = (vnx_mem_t)mem;
    list->count = count;
    return take_items(list, name, name_len,
                      vnxi_read_bytes(reader, count * item), item, is_strided)
               ? VNX_OK
               : vnxi_error_no_memory(error, source->operation, count * item);
}

static vnx_status_t
read_lists(source_t *source, vnxi_publication_t *publication,
           vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;

    if (source->count > VNX_PUBLISH_LISTS_MAX ||
        source->count > vnxi_reader_left(&source->reader) / LIST_MIN) {
        return mismatch(source, "the publication has too many lists", error);
    }
    publication->lists =
        calloc((size_t)source->count + 1, sizeof *publication->lists);
    if (publication->lists == NULL) {
        return vnxi_error_no_memory(error, source->operation, source->count);
    }
    for (uint32_t i = 0; status == VNX_OK && i < source->count; i++) {
        status = read_list(source, &publication->lists[i], error);
        publication->count += status == VNX_OK;
    }
    return status != VNX_OK
               ? status
               : check_lists(VNX_ERR_MISMATCH, source->operation,
                             publication->lists, publication->count, error);
}

/* Read everything before the MAC and the checksum. */
static vnx_status_t
read_body(source_t *source, vnxi_publication_t *publication,
          vnx_error_t *error)
{
    vnxi_reader_t *reader = &source->reader;

    publication->metadata = vnxi_read_bytes(reader, publication->metadata_len);
    if (reader->failed) {
        return mismatch(source, "the publication is cut off in its metadata",
                        error);
    }
    vnx_status_t status = read_lists(source, publication, error);
    if (status != VNX_OK) {
        return status;
    }
    if (source->minor == MINOR &&
        (vnxi_reader_left(reader) > 0 || source->flags > FLAG_SIGNED)) {
        return mismatch(source,
                        "the publication has bytes or flags of a "
                        "later version",
                        error);
    }
    return VNX_OK;
}

vnx_status_t
vnxi_publication_read(const void *bytes, size_t len,
                      const vnxi_signature_key_t *key, const char *operation,
                      vnxi_publication_t *publication_p, vnx_error_t *error)
{
    source_t source = {.operation = operation};
    vnxi_publication_t publication = {0};

    vnx_status_t status = open_source(&source, bytes, len, error);
    if (status == VNX_OK) {
        read_head(&source, &publication);
        status = check_mac(&source, bytes, key, error);
    }
    if (status == VNX_OK) {
        status = read_body(&source, &publication, error);
    }
    if (status != VNX_OK) {
        vnxi_publication_fini(&publication);
        return status;
    }
    *publication_p = publication;
    return VNX_OK;
}

void
vnxi_publication_fini(vnxi_publication_t *publication)
{
    for (size_t i = 0; i < publication->count; i++) {
        const vnx_named_rows_t *list = &publication->lists[i];
        const void *items =
            list->rows != NULL ? (const void *)list->rows : list->strided;
        free((void *)(uintptr_t)items);
    }
    free(publication->lists);
    *publication = (vnxi_publication_t){0};
}
