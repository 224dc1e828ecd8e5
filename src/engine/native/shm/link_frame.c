#include "engine/native/shm/link_frame.h"

#include <stdlib.h>
#include <string.h>

#define HELLO_VERSION 1
#define HELLO_FIXED (2 + VNXI_SHM_ID_SIZE + 4 + VNXI_SHM_ID_SIZE + 8)
#define REVOKE_FIXED (8 + 4)
#define REVOKE_ROW (4 + 3 * 8)

/* A buffer above this is given back when its frame is done, so that one long
 * message does not stay allocated for the life of a link. */
#define KEPT_IDLE_MAX 4096

/* -- Writing -------------------------------------------------------------- */

void
vnxi_link_frame_header(vnxi_link_frame_type_t type, size_t body_len,
                       unsigned char header_p[VNXI_LINK_FRAME_HEADER])
{
    uint32_t len = (uint32_t)body_len + 1;

    for (size_t i = 0; i < 4; i++) {
        header_p[i] = (unsigned char)(len >> (8 * i));
    }
    header_p[4] = (unsigned char)type;
}

static void
write_header(vnxi_writer_t *writer, vnxi_link_frame_type_t type,
             size_t body_len)
{
    unsigned char header[VNXI_LINK_FRAME_HEADER];

    vnxi_link_frame_header(type, body_len, header);
    vnxi_write_bytes(writer, header, sizeof header);
}

void
vnxi_link_frame_write_hello(vnxi_writer_t *writer,
                            const vnxi_link_frame_hello_t *hello)
{
    write_header(writer, VNXI_LINK_FRAME_HELLO, HELLO_FIXED + hello->name_len);
    vnxi_write_u16(writer, HELLO_VERSION);
    vnxi_write_bytes(writer, hello->instance, VNXI_SHM_ID_SIZE);
    vnxi_write_u32(writer, (uint32_t)hello->name_len);
    vnxi_write_bytes(writer, hello->name, hello->name_len);
    vnxi_write_bytes(writer, hello->target, VNXI_SHM_ID_SIZE);
    vnxi_write_u64(writer, hello->epoch);
}

void
vnxi_link_frame_write_revoke(vnxi_writer_t *writer,
                             const vnxi_link_frame_revoke_t *revoke)
{
    write_header(writer, VNXI_LINK_FRAME_REVOKE,
                 REVOKE_FIXED + revoke->count * REVOKE_ROW);
    vnxi_write_u64(writer, revoke->epoch);
    vnxi_write_u32(writer, (uint32_t)revoke->count);
    for (size_t i = 0; i < revoke->count; i++) {
        vnxi_write_u32(writer, (uint32_t)revoke->mem);
        vnxi_write_u64(writer, revoke->descs[i].addr);
        vnxi_write_u64(writer, revoke->descs[i].len);
        vnxi_write_u64(writer, revoke->descs[i].dev);
    }
}

/* -- Reading -------------------------------------------------------------- */

/* The length of the whole frame whose header is at `bytes`; 0: malformed. */
static size_t
frame_length(const vnxi_link_frame_reader_t *reader,
             const unsigned char *bytes)
{
    vnxi_reader_t header = vnxi_reader(bytes, VNXI_LINK_FRAME_HEADER);
    size_t len = vnxi_read_u32(&header);
    unsigned type = vnxi_read_u8(&header);
    size_t len_max = VNXI_LINK_FRAME_MAX;

    if (type < VNXI_LINK_FRAME_HELLO || type > VNXI_LINK_FRAME_BYE ||
        (reader->allowed & VNXI_LINK_FRAME_BIT(type)) == 0) {
        return 0;
    }
    if (type == VNXI_LINK_FRAME_HELLO) {
        len_max = 1 + HELLO_FIXED + VNXI_LINK_FRAME_NAME_MAX;
    } else if (type == VNXI_LINK_FRAME_REVOKE) {
        len_max = 1 + REVOKE_FIXED +
                  (size_t)VNXI_LINK_FRAME_REVOKES_MAX * REVOKE_ROW;
    } else if (type == VNXI_LINK_FRAME_BYE) {
        len_max = 1;
    }
    return len < 1 || len > len_max ? 0 : 4 + len;
}

static vnxi_link_frame_t
frame_at(const unsigned char *bytes, size_t len)
{
    return (vnxi_link_frame_t){
        .type = (vnxi_link_frame_type_t)bytes[4],
        .body = bytes + VNXI_LINK_FRAME_HEADER,
        .len = len - VNXI_LINK_FRAME_HEADER,
    };
}

/* Room for `len` bytes of a frame of `whole` bytes: at most twice what has
 * come, and never more than the frame. */
static bool
kept_reserve(vnxi_link_frame_reader_t *reader, size_t len, size_t whole)
{
    if (len <= reader->kept_capacity) {
        return true;
    }
    size_t capacity = 2 * len < whole ? 2 * len : whole;
    unsigned char *kept = realloc(reader->kept, capacity);
    if (kept == NULL) {
        return false;
    }
    reader->kept = kept;
    reader->kept_capacity = capacity;
    return true;
}

/* Move bytes into the kept beginning until it has `len`, as far as they go. */
static bool
kept_fill(vnxi_link_frame_reader_t *reader, size_t len)
{
    size_t left = (size_t)(reader->end - reader->at);
    size_t take = len - reader->kept_len;

    take = take < left ? take : left;
    if (!kept_reserve(reader, reader->kept_len + take, len)) {
        return false;
    }
    if (take > 0) {
        memcpy(reader->kept + reader->kept_len, reader->at, take);
        reader->kept_len += take;
        reader->at += take;
    }
    return true;
}

static void
kept_forget(vnxi_link_frame_reader_t *reader)
{
    reader->kept_taken = false;
    reader->kept_len = 0;
    if (reader->kept_capacity > KEPT_IDLE_MAX) {
        free(reader->kept);
        reader->kept = NULL;
        reader->kept_capacity = 0;
    }
}

static vnxi_link_frame_result_t
next_kept(vnxi_link_frame_reader_t *reader, vnxi_link_frame_t *frame_p)
{
    if (reader->kept_len < VNXI_LINK_FRAME_HEADER &&
        !kept_fill(reader, VNXI_LINK_FRAME_HEADER)) {
        return VNXI_LINK_FRAME_NO_MEMORY;
    }
    if (reader->kept_len < VNXI_LINK_FRAME_HEADER) {
        return VNXI_LINK_FRAME_NEED_MORE;
    }
    size_t len = frame_length(reader, reader->kept);
    if (len == 0) {
        return VNXI_LINK_FRAME_MALFORMED;
    }
    if (!kept_fill(reader, len)) {
        return VNXI_LINK_FRAME_NO_MEMORY;
    }
    if (reader->kept_len < len) {
        return VNXI_LINK_FRAME_NEED_MORE;
    }
    reader->kept_taken = true;
    *frame_p = frame_at(reader->kept, len);
    return VNXI_LINK_FRAME_WHOLE;
}

void
vnxi_link_frame_reader_feed(vnxi_link_frame_reader_t *reader, const void *data,
                            size_t len)
{
    reader->at = data;
    reader->end = len > 0 ? reader->at + len : reader->at;
}

vnxi_link_frame_result_t
vnxi_link_frame_reader_next(vnxi_link_frame_reader_t *reader,
                            vnxi_link_frame_t *frame_p)
{
    if (reader->kept_taken) {
        kept_forget(reader);
    }
    size_t left = (size_t)(reader->end - reader->at);
    if (reader->kept_len > 0 || left < VNXI_LINK_FRAME_HEADER) {
        return left == 0 ? VNXI_LINK_FRAME_NEED_MORE
                         : next_kept(reader, frame_p);
    }
    size_t len = frame_length(reader, reader->at);
    if (len == 0) {
        return VNXI_LINK_FRAME_MALFORMED;
    }
    if (left < len) {
        return next_kept(reader, frame_p);
    }
    *frame_p = frame_at(reader->at, len);
    reader->at += len;
    return VNXI_LINK_FRAME_WHOLE;
}

void
vnxi_link_frame_reader_fini(vnxi_link_frame_reader_t *reader)
{
    free(reader->kept);
    *reader = (vnxi_link_frame_reader_t){0};
}

bool
vnxi_link_frame_read_hello(const vnxi_link_frame_t *frame,
                           vnxi_link_frame_hello_t *hello_p)
{
    vnxi_reader_t reader = vnxi_reader(frame->body, frame->len);
    uint16_t version = vnxi_read_u16(&reader);
    vnxi_link_frame_hello_t hello;

    hello.instance = vnxi_read_bytes(&reader, VNXI_SHM_ID_SIZE);
    hello.name_len = vnxi_read_u32(&reader);
    hello.name = vnxi_read_bytes(&reader, hello.name_len);
    hello.target = vnxi_read_bytes(&reader, VNXI_SHM_ID_SIZE);
    hello.epoch = vnxi_read_u64(&reader);
    if (reader.failed || vnxi_reader_left(&reader) != 0 ||
        version != HELLO_VERSION || hello.name_len == 0 ||
        hello.name_len > VNXI_LINK_FRAME_NAME_MAX) {
        return false;
    }
    *hello_p = hello;
    return true;
}

vnx_desc_t
vnxi_link_frame_revoke_row(const vnxi_link_frame_t *frame, uint32_t i,
                           vnx_mem_t *mem_p)
{
    const unsigned char *row =
        frame->body + REVOKE_FIXED + (size_t)i * REVOKE_ROW;
    vnxi_reader_t reader = vnxi_reader(row, REVOKE_ROW);
    vnx_desc_t desc;

    *mem_p = (vnx_mem_t)vnxi_read_u32(&reader);
    desc.addr = vnxi_read_u64(&reader);
    desc.len = vnxi_read_u64(&reader);
    desc.dev = vnxi_read_u64(&reader);
    return desc;
}

bool
vnxi_link_frame_read_revoke(const vnxi_link_frame_t *frame, uint64_t *epoch_p,
                            uint32_t *count_p)
{
    vnxi_reader_t reader = vnxi_reader(frame->body, frame->len);
    uint64_t epoch = vnxi_read_u64(&reader);
    uint32_t count = vnxi_read_u32(&reader);

    if (reader.failed ||
        (uint64_t)count * REVOKE_ROW != vnxi_reader_left(&reader)) {
        return false;
    }
    for (uint32_t i = 0; i < count; i++) {
        if (vnxi_read_u32(&reader) >= VNX_MEM_COUNT) {
            return false;
        }
        vnxi_read_bytes(&reader, REVOKE_ROW - 4);
    }
    *epoch_p = epoch;
    *count_p = count;
    return true;
}
