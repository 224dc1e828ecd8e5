/*
 * The metadata codec.
 *
 * Design notes.  Every field is `tag, u64 length, value, '|'`, and a tag is
 * expected at its position.  The parser reads strictly forward through one
 * bounded reader and stops at the first error, so its time is linear in the
 * blob.  A count is accepted only if the remaining bytes could hold that many
 * elements of the smallest size.  The memory allocated is therefore at most
 * about one and a half times the size of the blob, whatever the blob contains.
 */
#include "engine/parts/metadata.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

#define PREFIX "nixlSerDes|"
#define TAG_AGENT "Agent"
#define TAG_CONNS "Conns"
#define TAG_CONN_BACKEND "t"
#define TAG_CONN_INFO "c"
#define MEMORY_SECTION "MemSection"
#define TAG_SECTIONS "nixlSecElms"
#define TAG_SECTION_BACKEND "bknd"
#define TAG_LIST "nixlDList"
#define LIST_KIND "nixlSDList"
#define TAG_MEM "t"
#define TAG_REGIONS "n"

/* The size of a field without its value, and the smallest element of each
 * array.  A backend's name has at least one byte. */
#define FIELD_SIZE(tag, value) (sizeof(tag) - 1 + 8 + (value) + 1)
#define CONN_MIN \
    (FIELD_SIZE(TAG_CONN_BACKEND, 1) + FIELD_SIZE(TAG_CONN_INFO, 1))
#define REGION_FIXED 24u
#define REGION_MIN FIELD_SIZE("", REGION_FIXED)
#define SECTION_MIN                                                         \
    (FIELD_SIZE(TAG_SECTION_BACKEND, 1) +                                   \
     FIELD_SIZE(TAG_LIST, sizeof(LIST_KIND) - 1) + FIELD_SIZE(TAG_MEM, 4) + \
     FIELD_SIZE(TAG_REGIONS, 8) + REGION_MIN)

typedef struct parser {
    vnxi_reader_t reader;
    const unsigned char *start;
    vnx_status_t status; /* of the first error */
    vnx_error_t *error;
} parser_t;

/* -- Fields --------------------------------------------------------------- */

/* Record the error found at `at`.  Always returns false, for `return
 * fail(...)`. */
static bool __attribute__((format(printf, 3, 4)))
fail(parser_t *parser, const unsigned char *at, const char *what, ...)
{
    char text[160];
    va_list args;
    va_start(args, what);
    vsnprintf(text, sizeof text, what, args);
    va_end(args);
    parser->status = vnxi_error_set(parser->error, VNX_ERR_MISMATCH,
                                    VNXI_OP_LOAD, "metadata byte %zu: %s",
                                    (size_t)(at - parser->start), text);
    return false;
}

static bool
fail_no_memory(parser_t *parser, size_t size)
{
    parser->status = vnxi_error_no_memory(parser->error, VNXI_OP_LOAD, size);
    return false;
}

static bool
take_tag(parser_t *parser, const char *tag)
{
    const unsigned char *at = parser->reader.at;
    size_t len = strlen(tag);
    const unsigned char *bytes = vnxi_read_bytes(&parser->reader, len);
    if (bytes == NULL || memcmp(bytes, tag, len) != 0) {
        return fail(parser, at, "tag '%s' expected", tag);
    }
    return true;
}

/* Read a length, that many bytes, and the closing bar. */
static bool
take_value(parser_t *parser, const char *name, vnxi_md_bytes_t *value_p)
{
    const unsigned char *at = parser->reader.at;
    uint64_t len = vnxi_read_u64(&parser->reader);
    if (parser->reader.failed) {
        return fail(parser, at, "the length of '%s' is cut off", name);
    }
    size_t left = vnxi_reader_left(&parser->reader);
    if (len >= left) {
        return fail(parser, at,
                    "'%s' and its '|' take %" PRIu64
                    " + 1 bytes, %zu are left",
                    name, len, left);
    }
    value_p->data = vnxi_read_bytes(&parser->reader, (size_t)len);
    value_p->len = (size_t)len;
    at = parser->reader.at;
    if (vnxi_read_u8(&parser->reader) != '|') {
        return fail(parser, at, "'|' expected after '%s'", name);
    }
    return true;
}

static bool
take_field(parser_t *parser, const char *tag, vnxi_md_bytes_t *value_p)
{
    return take_tag(parser, tag) && take_value(parser, tag, value_p);
}

static bool
take_nonempty(parser_t *parser, const char *tag, vnxi_md_bytes_t *value_p)
{
    const unsigned char *at = parser->reader.at;
    if (!take_field(parser, tag, value_p)) {
        return false;
    }
    return value_p->len > 0 || fail(parser, at, "'%s' is empty", tag);
}

static bool
take_number(parser_t *parser, const char *tag, size_t width, uint64_t *value_p)
{
    const unsigned char *at = parser->reader.at;
    vnxi_md_bytes_t value = {NULL, 0};
    if (!take_field(parser, tag, &value)) {
        return false;
    }
    if (value.len != width) {
        return fail(parser, at, "'%s' has %zu bytes, not %zu", tag, value.len,
                    width);
    }
    vnxi_reader_t reader = vnxi_reader(value.data, value.len);
    *value_p = width == 4 ? vnxi_read_u32(&reader) : vnxi_read_u64(&reader);
    return true;
}

/* Read a count of elements that take at least `smallest` bytes each. */
static bool
take_count(parser_t *parser, const char *tag, size_t smallest, size_t *count_p)
{
    const unsigned char *at = parser->reader.at;
    uint64_t count = 0;
    if (!take_number(parser, tag, 8, &count)) {
        return false;
    }
    size_t left = vnxi_reader_left(&parser->reader);
    if (count > left / smallest) {
        return fail(parser, at,
                    "'%s' is %" PRIu64 ", but only %zu bytes are left", tag,
                    count, left);
    }
    *count_p = (size_t)count;
    return true;
}

static bool
is_text(const vnxi_md_bytes_t *value, const char *text)
{
    return value->len == strlen(text) &&
           memcmp(value->data, text, value->len) == 0;
}

/* -- Connections ---------------------------------------------------------- */

static bool
is_same(const vnxi_md_bytes_t *a, const vnxi_md_bytes_t *b)
{
    return a->len == b->len &&
           (a->len == 0 || memcmp(a->data, b->data, a->len) == 0);
}

static bool
take_conn(parser_t *parser, vnxi_metadata_t *metadata)
{
    const unsigned char *at = parser->reader.at;
    vnxi_md_conn_t conn;
    if (!take_nonempty(parser, TAG_CONN_BACKEND, &conn.backend) ||
        !take_nonempty(parser, TAG_CONN_INFO, &conn.info)) {
        return false;
    }
    for (size_t i = 0; i < metadata->conn_count; i++) {
        if (is_same(&metadata->conns[i].backend, &conn.backend)) {
            return fail(parser, at, "two connections of one backend");
        }
    }
    metadata->conns[metadata->conn_count++] = conn;
    return true;
}

static bool
take_conns(parser_t *parser, vnxi_metadata_t *metadata)
{
    const unsigned char *at = parser->reader.at;
    size_t count = 0;
    if (!take_count(parser, TAG_CONNS, CONN_MIN, &count)) {
        return false;
    }
    if (count > VNXI_METADATA_CONNS_MAX) {
        return fail(parser, at, "%zu connections, but at most %d are allowed",
                    count, VNXI_METADATA_CONNS_MAX);
    }
    if (count == 0) {
        return true;
    }
    metadata->conns = calloc(count, sizeof *metadata->conns);
    if (metadata->conns == NULL) {
        return fail_no_memory(parser, count * sizeof *metadata->conns);
    }
    while (metadata->conn_count < count) {
        if (!take_conn(parser, metadata)) {
            return false;
        }
    }
    return true;
}

/* -- Sections ------------------------------------------------------------- */

static bool
take_region(parser_t *parser, vnx_mem_t mem, vnxi_md_region_t *region)
{
    const unsigned char *at = parser->reader.at;
    vnxi_md_bytes_t value = {NULL, 0};
    if (!take_value(parser, "region", &value)) {
        return false;
    }
    if (value.len < REGION_FIXED) {
        return fail(parser, at,
                    "a region has %zu bytes, but needs at least %u", value.len,
                    REGION_FIXED);
    }
    vnxi_reader_t reader = vnxi_reader(value.data, value.len);
    region->addr = vnxi_read_u64(&reader);
    region->len = vnxi_read_u64(&reader);
    region->dev = vnxi_read_u64(&reader);
    region->public_data.data = reader.at;
    region->public_data.len = vnxi_reader_left(&reader);
    bool whole = mem >= VNX_MEM_BLK && region->len == UINT64_MAX;
    if (!whole && region->len > UINT64_MAX - region->addr) {
        return fail(parser, at,
                    "a region at 0x%" PRIx64 " of %" PRIu64
                    " bytes exceeds the address space",
                    region->addr, region->len);
    }
    return true;
}

static bool
take_regions(parser_t *parser, vnxi_md_section_t *section)
{
    const unsigned char *at = parser->reader.at;
    size_t count = 0;
    if (!take_count(parser, TAG_REGIONS, REGION_MIN, &count)) {
        return false;
    }
    if (count == 0) {
        return fail(parser, at, "a section without regions");
    }
    section->regions = malloc(count * sizeof *section->regions);
    if (section->regions == NULL) {
        return fail_no_memory(parser, count * sizeof *section->regions);
    }
    while (section->count < count) {
        if (!take_region(parser, section->mem,
                         &section->regions[section->count])) {
            return false;
        }
        section->count++;
    }
    return true;
}

static bool
take_section(parser_t *parser, vnxi_md_section_t *section)
{
    vnxi_md_bytes_t kind = {NULL, 0};
    uint64_t mem = 0;
    if (!take_nonempty(parser, TAG_SECTION_BACKEND, &section->backend)) {
        return false;
    }
    const unsigned char *at = parser->reader.at;
    if (!take_field(parser, TAG_LIST, &kind)) {
        return false;
    }
    if (!is_text(&kind, LIST_KIND)) {
        return fail(parser, at, "'" TAG_LIST "' is not '" LIST_KIND "'");
    }
    at = parser->reader.at;
    if (!take_number(parser, TAG_MEM, 4, &mem)) {
        return false;
    }
    if (mem >= VNX_MEM_COUNT) {
        return fail(parser, at, "memory type %" PRIu64 " is unknown", mem);
    }
    section->mem = (vnx_mem_t)mem;
    return take_regions(parser, section);
}

static bool
take_sections(parser_t *parser, vnxi_metadata_t *metadata)
{
    size_t count = 0;
    if (!take_count(parser, TAG_SECTIONS, SECTION_MIN, &count)) {
        return false;
    }
    if (count == 0) {
        return true;
    }
    metadata->sections = calloc(count, sizeof *metadata->sections);
    if (metadata->sections == NULL) {
        return fail_no_memory(parser, count * sizeof *metadata->sections);
    }
    while (metadata->section_count < count) {
        /* Count the section first, so that a partly parsed one is freed with
         * the rest. */
        if (!take_section(parser,
                          &metadata->sections[metadata->section_count++])) {
            return false;
        }
    }
    return true;
}

/* -- The whole blob --------------------------------------------------------
 */

static bool
take_name(parser_t *parser, vnxi_md_bytes_t *name_p)
{
    return take_tag(parser, PREFIX) &&
           take_nonempty(parser, TAG_AGENT, name_p);
}

/* Parse everything before the sections. */
static bool
take_head(parser_t *parser, vnxi_metadata_t *metadata)
{
    vnxi_md_bytes_t name = {NULL, 0};
    if (!take_name(parser, &metadata->agent) ||
        !take_conns(parser, metadata)) {
        return false;
    }
    const unsigned char *at = parser->reader.at;
    if (!take_value(parser, MEMORY_SECTION, &name)) {
        return false;
    }
    return is_text(&name, MEMORY_SECTION) ||
           fail(parser, at, "'" MEMORY_SECTION "' expected");
}

static bool
take_all(parser_t *parser, vnxi_metadata_t *metadata)
{
    if (!take_head(parser, metadata) || !take_sections(parser, metadata)) {
        return false;
    }
    size_t left = vnxi_reader_left(&parser->reader);
    return left == 0 ||
           fail(parser, parser->reader.at, "%zu bytes follow its end", left);
}

static parser_t
parser_of(const void *blob, size_t len, vnx_error_t *error)
{
    const unsigned char *start = blob != NULL ? blob : (const void *)"";
    return (parser_t){
        .reader = vnxi_reader(start, blob != NULL ? len : 0),
        .start = start,
        .status = VNX_OK,
        .error = error,
    };
}

bool
vnxi_md_is_named(vnxi_md_bytes_t bytes, const char *name)
{
    return name != NULL && bytes.len == strlen(name) &&
           memcmp(bytes.data, name, bytes.len) == 0;
}

/* Add what the bytes probably are.  Returns the status of the parser. */
static vnx_status_t
explain(const parser_t *parser, const void *blob, size_t len)
{
    const size_t prefix = sizeof(PREFIX) - 1;

    if (parser->status != VNX_ERR_MISMATCH) {
        return parser->status;
    }
    if (len >= prefix && memcmp(blob, PREFIX, prefix) == 0) {
        vnxi_error_add(
            parser->error,
            "; the metadata, of %zu bytes, is incomplete or damaged", len);
    } else if (len >= 5 && memcmp(blob, "HTTP/", 5) == 0) {
        vnxi_error_add(parser->error,
                       "; these %zu bytes are a reply of an HTTP server", len);
    } else {
        vnxi_error_add(parser->error,
                       len == 0 ? "; it is empty (%zu bytes)"
                                : "; these %zu bytes are not metadata that "
                                  "get_agent_metadata() returned",
                       len);
    }
    return parser->status;
}

vnx_status_t
vnxi_metadata_parse(const void *blob, size_t len, vnxi_metadata_t *metadata_p,
                    vnx_error_t *error)
{
    parser_t parser = parser_of(blob, len, error);
    vnxi_metadata_t metadata = {0};
    if (!take_all(&parser, &metadata)) {
        vnxi_metadata_fini(&metadata);
        return explain(&parser, blob, len);
    }
    *metadata_p = metadata;
    return VNX_OK;
}

void
vnxi_metadata_fini(vnxi_metadata_t *metadata)
{
    for (size_t i = 0; i < metadata->section_count; i++) {
        free(metadata->sections[i].regions);
    }
    free(metadata->sections);
    free(metadata->conns);
    *metadata = (vnxi_metadata_t){0};
}

vnx_status_t
vnxi_parsed_create(const void *blob, size_t len, struct vnxi_parsed **parsed_p,
                   const void **name_p, size_t *name_len_p, vnx_error_t *error)
{
    struct vnxi_parsed *parsed = malloc(sizeof *parsed);
    if (parsed == NULL) {
        return vnxi_error_no_memory(error, VNXI_OP_LOAD, sizeof *parsed);
    }
    vnx_status_t status =
        vnxi_metadata_parse(blob, len, &parsed->metadata, error);
    if (status != VNX_OK) {
        free(parsed);
        return status;
    }
    parsed->blob = blob;
    parsed->len = len;
    *name_p = parsed->metadata.agent.data;
    *name_len_p = parsed->metadata.agent.len;
    *parsed_p = parsed;
    return VNX_OK;
}

void
vnxi_parsed_free(struct vnxi_parsed *parsed)
{
    if (parsed != NULL) {
        vnxi_metadata_fini(&parsed->metadata);
        free(parsed);
    }
}

vnx_status_t
vnxi_metadata_claimed_name(const void *blob, size_t len,
                           vnxi_md_bytes_t *name_p, vnx_error_t *error)
{
    parser_t parser = parser_of(blob, len, error);
    vnxi_md_bytes_t name = {NULL, 0};
    if (!take_name(&parser, &name)) {
        return explain(&parser, blob, len);
    }
    *name_p = name;
    return VNX_OK;
}

bool
vnxi_metadata_sections_at(const void *blob, size_t len, size_t *at_p,
                          uint64_t *count_p)
{
    parser_t parser = parser_of(blob, len, NULL);
    vnxi_metadata_t metadata = {0};
    bool is_good = take_head(&parser, &metadata) &&
                   take_number(&parser, TAG_SECTIONS, 8, count_p);
    vnxi_metadata_fini(&metadata);
    *at_p = (size_t)(parser.reader.at - parser.start) - sizeof(uint64_t) - 1;
    return is_good;
}

/* -- Writing -------------------------------------------------------------- */

void
vnxi_md_field_write(vnxi_writer_t *writer, const char *tag, const void *data,
                    size_t len)
{
    vnxi_write_bytes(writer, tag, strlen(tag));
    vnxi_write_u64(writer, len);
    vnxi_write_bytes(writer, data, len);
    vnxi_write_u8(writer, '|');
}

static void
put_number(vnxi_writer_t *writer, const char *tag, uint64_t value)
{
    vnxi_write_bytes(writer, tag, strlen(tag));
    vnxi_write_u64(writer, 8);
    vnxi_write_u64(writer, value);
    vnxi_write_u8(writer, '|');
}

static void
put_region(vnxi_writer_t *writer, const vnxi_md_region_t *region)
{
    vnxi_write_u64(writer, REGION_FIXED + region->public_data.len);
    vnxi_write_u64(writer, region->addr);
    vnxi_write_u64(writer, region->len);
    vnxi_write_u64(writer, region->dev);
    vnxi_write_bytes(writer, region->public_data.data,
                     region->public_data.len);
    vnxi_write_u8(writer, '|');
}

static void
put_section(vnxi_writer_t *writer, const vnxi_md_section_t *section)
{
    vnxi_md_field_write(writer, TAG_SECTION_BACKEND, section->backend.data,
                        section->backend.len);
    vnxi_md_field_write(writer, TAG_LIST, LIST_KIND, sizeof(LIST_KIND) - 1);
    vnxi_write_bytes(writer, TAG_MEM, sizeof(TAG_MEM) - 1);
    vnxi_write_u64(writer, 4);
    vnxi_write_u32(writer, (uint32_t)section->mem);
    vnxi_write_u8(writer, '|');
    put_number(writer, TAG_REGIONS, section->count);
    for (size_t i = 0; i < section->count; i++) {
        put_region(writer, &section->regions[i]);
    }
}

void
vnxi_metadata_write(vnxi_writer_t *writer, const vnxi_metadata_t *metadata)
{
    vnxi_write_bytes(writer, PREFIX, sizeof(PREFIX) - 1);
    vnxi_md_field_write(writer, TAG_AGENT, metadata->agent.data,
                        metadata->agent.len);
    put_number(writer, TAG_CONNS, metadata->conn_count);
    for (size_t i = 0; i < metadata->conn_count; i++) {
        const vnxi_md_conn_t *conn = &metadata->conns[i];
        vnxi_md_field_write(writer, TAG_CONN_BACKEND, conn->backend.data,
                            conn->backend.len);
        vnxi_md_field_write(writer, TAG_CONN_INFO, conn->info.data,
                            conn->info.len);
    }
    vnxi_md_field_write(writer, "", MEMORY_SECTION,
                        sizeof(MEMORY_SECTION) - 1);
    put_number(writer, TAG_SECTIONS, metadata->section_count);
    for (size_t i = 0; i < metadata->section_count; i++) {
        put_section(writer, &metadata->sections[i]);
    }
}
