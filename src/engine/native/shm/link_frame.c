#include "engine/native/shm/link_frame.h"

#include <stdlib.h>
#include <string.h>

#include "base/fork_fds.h"

#define HELLO_VERSION 2
#define HELLO_FIXED (2 + 2 * (VNXI_SHM_ID_SIZE + 4))
#define REFUSE_FIXED (VNXI_SHM_ID_SIZE + 4)
#define REVOKE_FIXED (8 + 4)
#define REVOKE_ROW (4 + 3 * 8)
#define CONFIRM_FIXED (8 + 4)
#define CONFIRM_ROW (REVOKE_ROW + 4 + 3 * 8)
#define CONFIRMED_FIXED (8 + 8 + 4)
#define CONTROL_FIXED (1 + 1)
#define TOKEN_BODY 8
#define ENTRY_MAX 255

/* A larger buffer is freed after its frame, so that one long message does not
 * stay allocated as long as the link exists. */
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

static void
write_agent(vnxi_writer_t *writer, const unsigned char *instance,
            const void *name, size_t name_len)
{
    vnxi_write_bytes(writer, instance, VNXI_SHM_ID_SIZE);
    vnxi_write_u32(writer, (uint32_t)name_len);
    vnxi_write_bytes(writer, name, name_len);
}

void
vnxi_link_frame_write_hello(vnxi_writer_t *writer,
                            const vnxi_link_frame_hello_t *hello)
{
    write_header(writer, VNXI_LINK_FRAME_HELLO,
                 HELLO_FIXED + hello->name_len + hello->target_name_len);
    vnxi_write_u16(writer, HELLO_VERSION);
    write_agent(writer, hello->instance, hello->name, hello->name_len);
    write_agent(writer, hello->target, hello->target_name,
                hello->target_name_len);
}

void
vnxi_link_frame_write_refuse(vnxi_writer_t *writer,
                             const vnxi_link_frame_refuse_t *refuse)
{
    write_header(writer, VNXI_LINK_FRAME_REFUSE,
                 REFUSE_FIXED + refuse->name_len);
    write_agent(writer, refuse->instance, refuse->name, refuse->name_len);
}

void
vnxi_link_frame_write_control(vnxi_writer_t *writer,
                              const vnxi_link_frame_control_t *control)
{
    write_header(writer, VNXI_LINK_FRAME_CONTROL,
                 CONTROL_FIXED + control->entry_len + control->len);
    vnxi_write_u8(writer, (uint8_t)control->entry_len);
    vnxi_write_bytes(writer, control->entry, control->entry_len);
    vnxi_write_u8(writer, (uint8_t)control->fd_count);
    vnxi_write_bytes(writer, control->data, control->len);
}

static void
write_region(vnxi_writer_t *writer, vnx_mem_t mem, const vnx_desc_t *desc)
{
    vnxi_write_u32(writer, (uint32_t)mem);
    vnxi_write_u64(writer, desc->addr);
    vnxi_write_u64(writer, desc->len);
    vnxi_write_u64(writer, desc->dev);
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
        write_region(writer, revoke->mem, &revoke->descs[i]);
    }
}

void
vnxi_link_frame_write_confirm(vnxi_writer_t *writer, uint64_t token,
                              const vnxi_link_row_t *rows, size_t count)
{
    write_header(writer, VNXI_LINK_FRAME_CONFIRM,
                 CONFIRM_FIXED + count * CONFIRM_ROW);
    vnxi_write_u64(writer, token);
    vnxi_write_u32(writer, (uint32_t)count);
    for (size_t i = 0; i < count; i++) {
        const vnxi_map_info_t *map_info = &rows[i].map_info;
        bool is_shared = map_info->fd >= 0;
        write_region(writer, rows[i].mem, &rows[i].desc);
        vnxi_write_u32(writer, is_shared);
        vnxi_write_u64(writer, is_shared ? map_info->offset : 0);
        vnxi_write_u64(writer, is_shared ? map_info->st_dev : 0);
        vnxi_write_u64(writer, is_shared ? map_info->st_ino : 0);
    }
}

void
vnxi_link_frame_write_confirmed(vnxi_writer_t *writer,
                                const vnxi_link_answer_t *answer)
{
    write_header(writer, VNXI_LINK_FRAME_CONFIRMED,
                 CONFIRMED_FIXED + answer->count * 4);
    vnxi_write_u64(writer, answer->token);
    vnxi_write_u64(writer, answer->epoch);
    vnxi_write_u32(writer, (uint32_t)answer->count);
    for (size_t i = 0; i < answer->count; i++) {
        vnxi_write_u32(writer, answer->refused[i]);
    }
}

void
vnxi_link_frame_write_token(vnxi_writer_t *writer, vnxi_link_frame_type_t type,
                            uint64_t token)
{
    write_header(writer, type, TOKEN_BODY);
    vnxi_write_u64(writer, token);
}

void
vnxi_link_frame_write_closing(vnxi_writer_t *writer)
{
    write_header(writer, VNXI_LINK_FRAME_CLOSING, 0);
}

/* -- Reading -------------------------------------------------------------- */

/* The longest body of each type. */
static const size_t body_max[] = {
    [VNXI_LINK_FRAME_HELLO] = HELLO_FIXED + 2 * VNXI_LINK_FRAME_NAME_MAX,
    [VNXI_LINK_FRAME_NOTIF] = VNXI_LINK_FRAME_MAX - 1,
    [VNXI_LINK_FRAME_REVOKE] =
        REVOKE_FIXED + (size_t)VNXI_LINK_FRAME_REVOKES_MAX * REVOKE_ROW,
    [VNXI_LINK_FRAME_BYE] = 0,
    [VNXI_LINK_FRAME_CONFIRM] =
        CONFIRM_FIXED + (size_t)VNXI_LINK_ROWS_MAX * CONFIRM_ROW,
    [VNXI_LINK_FRAME_CONFIRMED] =
        CONFIRMED_FIXED + (size_t)VNXI_LINK_ROWS_MAX * 4,
    [VNXI_LINK_FRAME_REFUSE] = REFUSE_FIXED + VNXI_LINK_FRAME_NAME_MAX,
    [VNXI_LINK_FRAME_CONTROL] =
        CONTROL_FIXED + ENTRY_MAX + VNXI_CONTROL_BYTES_MAX,
    [VNXI_LINK_FRAME_SETTLE] = TOKEN_BODY,
    [VNXI_LINK_FRAME_SETTLED] = TOKEN_BODY,
    [VNXI_LINK_FRAME_CLOSING] = 0,
};

/* The length of the whole frame whose header is at `bytes`; 0: malformed. */
static size_t
frame_length(const vnxi_link_frame_reader_t *reader,
             const unsigned char *bytes)
{
    vnxi_reader_t header = vnxi_reader(bytes, VNXI_LINK_FRAME_HEADER);
    size_t len = vnxi_read_u32(&header);
    unsigned type = vnxi_read_u8(&header);

    if (type < VNXI_LINK_FRAME_HELLO || type > VNXI_LINK_FRAME_CLOSING ||
        (reader->allowed & VNXI_LINK_FRAME_BIT(type)) == 0) {
        return 0;
    }
    return len < 1 || len > 1 + body_max[type] ? 0 : 4 + len;
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

/* Make room for `len` bytes of a frame of `whole` bytes.  Allocates at most
 * twice `len`, and never more than the frame. */
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

/* Move input into the kept start of the frame until it has `len` bytes or the
 * input ends. */
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

/* Read an agent's instance and name; false: malformed. */
static bool
read_agent(vnxi_reader_t *reader, const unsigned char **instance_p,
           const void **name_p, size_t *name_len_p)
{
    *instance_p = vnxi_read_bytes(reader, VNXI_SHM_ID_SIZE);
    *name_len_p = vnxi_read_u32(reader);
    *name_p = vnxi_read_bytes(reader, *name_len_p);
    return !reader->failed && *name_len_p > 0 &&
           *name_len_p <= VNXI_LINK_FRAME_NAME_MAX;
}

bool
vnxi_link_frame_read_hello(const vnxi_link_frame_t *frame,
                           vnxi_link_frame_hello_t *hello_p)
{
    vnxi_reader_t reader = vnxi_reader(frame->body, frame->len);
    uint16_t version = vnxi_read_u16(&reader);
    vnxi_link_frame_hello_t hello;

    if (version != HELLO_VERSION ||
        !read_agent(&reader, &hello.instance, &hello.name, &hello.name_len) ||
        !read_agent(&reader, &hello.target, &hello.target_name,
                    &hello.target_name_len) ||
        vnxi_reader_left(&reader) != 0) {
        return false;
    }
    *hello_p = hello;
    return true;
}

bool
vnxi_link_frame_read_refuse(const vnxi_link_frame_t *frame,
                            vnxi_link_frame_refuse_t *refuse_p)
{
    vnxi_reader_t reader = vnxi_reader(frame->body, frame->len);
    vnxi_link_frame_refuse_t refuse;

    if (!read_agent(&reader, &refuse.instance, &refuse.name,
                    &refuse.name_len) ||
        vnxi_reader_left(&reader) != 0) {
        return false;
    }
    *refuse_p = refuse;
    return true;
}

bool
vnxi_link_frame_read_control(const vnxi_link_frame_t *frame,
                             vnxi_link_frame_control_t *control_p)
{
    vnxi_reader_t reader = vnxi_reader(frame->body, frame->len);
    vnxi_link_frame_control_t control;

    control.entry_len = vnxi_read_u8(&reader);
    control.entry = vnxi_read_bytes(&reader, control.entry_len);
    control.fd_count = vnxi_read_u8(&reader);
    control.len = vnxi_reader_left(&reader);
    control.data = vnxi_read_bytes(&reader, control.len);
    if (reader.failed || control.entry_len == 0 ||
        control.len > VNXI_CONTROL_BYTES_MAX ||
        control.fd_count > VNXI_CONTROL_FDS_MAX) {
        return false;
    }
    *control_p = control;
    return true;
}

bool
vnxi_link_frame_read_token(const vnxi_link_frame_t *frame, uint64_t *token_p)
{
    vnxi_reader_t reader = vnxi_reader(frame->body, frame->len);
    uint64_t token = vnxi_read_u64(&reader);

    if (reader.failed || vnxi_reader_left(&reader) != 0) {
        return false;
    }
    *token_p = token;
    return true;
}

static vnx_desc_t
read_region(vnxi_reader_t *reader, vnx_mem_t *mem_p)
{
    vnx_desc_t desc;

    *mem_p = (vnx_mem_t)vnxi_read_u32(reader);
    desc.addr = vnxi_read_u64(reader);
    desc.len = vnxi_read_u64(reader);
    desc.dev = vnxi_read_u64(reader);
    return desc;
}

vnx_desc_t
vnxi_link_frame_revoke_row(const vnxi_link_frame_t *frame, uint32_t i,
                           vnx_mem_t *mem_p)
{
    const unsigned char *row =
        frame->body + REVOKE_FIXED + (size_t)i * REVOKE_ROW;
    vnxi_reader_t reader = vnxi_reader(row, REVOKE_ROW);

    return read_region(&reader, mem_p);
}

bool
vnxi_link_frame_read_revoke(const vnxi_link_frame_t *frame, uint64_t *epoch_p,
                            uint32_t *count_p)
{
    vnxi_reader_t reader = vnxi_reader(frame->body, frame->len);
    uint64_t epoch = vnxi_read_u64(&reader);
    uint32_t count = vnxi_read_u32(&reader);

    if (reader.failed || count == 0 ||
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

/* -- Questions and answers ------------------------------------------------ */

static vnxi_link_row_t
read_row(vnxi_reader_t *reader, uint32_t *shared_p)
{
    vnxi_link_row_t row;

    row.desc = read_region(reader, &row.mem);
    *shared_p = vnxi_read_u32(reader);
    row.map_info = (vnxi_map_info_t){.fd = *shared_p != 0 ? 0 : -1};
    row.map_info.offset = vnxi_read_u64(reader);
    row.map_info.st_dev = vnxi_read_u64(reader);
    row.map_info.st_ino = vnxi_read_u64(reader);
    return row;
}

vnxi_link_row_t
vnxi_link_frame_confirm_row(const vnxi_link_frame_t *frame, uint32_t i)
{
    const unsigned char *row =
        frame->body + CONFIRM_FIXED + (size_t)i * CONFIRM_ROW;
    vnxi_reader_t reader = vnxi_reader(row, CONFIRM_ROW);
    uint32_t shared;

    return read_row(&reader, &shared);
}

/* Each row has exactly one valid encoding. */
static bool
row_is_good(const vnxi_link_row_t *row, uint32_t shared)
{
    return row->mem < VNX_MEM_COUNT && shared <= 1 &&
           (shared == 1 || (row->map_info.offset | row->map_info.st_dev |
                            row->map_info.st_ino) == 0);
}

bool
vnxi_link_frame_read_confirm(const vnxi_link_frame_t *frame, uint64_t *token_p,
                             uint32_t *count_p)
{
    vnxi_reader_t reader = vnxi_reader(frame->body, frame->len);
    uint64_t token = vnxi_read_u64(&reader);
    uint32_t count = vnxi_read_u32(&reader), shared;

    if (reader.failed || count > VNXI_LINK_ROWS_MAX ||
        (size_t)count * CONFIRM_ROW != vnxi_reader_left(&reader)) {
        return false;
    }
    for (uint32_t i = 0; i < count; i++) {
        vnxi_link_row_t row = read_row(&reader, &shared);
        if (!row_is_good(&row, shared)) {
            return false;
        }
    }
    *token_p = token;
    *count_p = count;
    return true;
}

bool
vnxi_link_frame_read_confirmed(const vnxi_link_frame_t *frame,
                               vnxi_link_answer_t *answer_p)
{
    vnxi_reader_t reader = vnxi_reader(frame->body, frame->len);
    int64_t before = -1;

    answer_p->token = vnxi_read_u64(&reader);
    answer_p->epoch = vnxi_read_u64(&reader);
    answer_p->count = vnxi_read_u32(&reader);
    if (reader.failed || answer_p->count > VNXI_LINK_ROWS_MAX ||
        answer_p->count * 4 != vnxi_reader_left(&reader)) {
        return false;
    }
    for (size_t i = 0; i < answer_p->count; i++) {
        uint32_t place = vnxi_read_u32(&reader);
        if (place <= before || place >= VNXI_LINK_ROWS_MAX) {
            return false;
        }
        before = place;
        answer_p->refused[i] = place;
    }
    return true;
}

/* -- The queue of a link -------------------------------------------------- */

/* Short messages share a block, so that the byte count is close to the
 * allocated memory, and one system call sends many of them. */
#define BLOCK_MIN (32u << 10)

struct vnxi_link_block {
    vnxi_link_block_t *next;
    size_t at, end, capacity; /* data[at .. end) has to be sent */
    int *fds;                 /* owned: to be sent with data[0] */
    size_t fd_count;
    unsigned fd_epoch; /* when they were open */
    unsigned char data[];
};

static vnxi_link_block_t *
queue_grow(vnxi_link_queue_t *queue, size_t capacity)
{
    vnxi_link_block_t *block = malloc(sizeof *block + capacity);

    if (block == NULL) {
        return NULL;
    }
    *block = (vnxi_link_block_t){.capacity = capacity};
    if (queue->tail != NULL) {
        queue->tail->next = block;
    } else {
        queue->head = block;
    }
    queue->tail = block;
    return block;
}

bool
vnxi_link_queue_add(vnxi_link_queue_t *queue, const void *data, size_t len)
{
    vnxi_link_block_t *block = queue->tail;

    if (len == 0) {
        return true;
    }
    if (block == NULL || block->capacity - block->end < len) {
        block = queue_grow(queue, len > BLOCK_MIN ? len : BLOCK_MIN);
    }
    if (block == NULL) {
        return false;
    }
    memcpy(block->data + block->end, data, len);
    block->end += len;
    queue->bytes += len;
    return true;
}

/* The block has room for this frame only, so that nothing else is sent with
 * the descriptors. */
bool
vnxi_link_queue_add_fds(vnxi_link_queue_t *queue, const void *data, size_t len,
                        const int *fds, size_t fd_count)
{
    int *kept = malloc(fd_count * sizeof *kept);
    vnxi_link_block_t *block = kept != NULL ? queue_grow(queue, len) : NULL;

    if (block == NULL) {
        free(kept);
        return false;
    }
    memcpy(kept, fds, fd_count * sizeof *kept);
    block->fds = kept;
    block->fd_count = fd_count;
    block->fd_epoch = vnxi_fds_epoch();
    memcpy(block->data, data, len);
    block->end = len;
    queue->bytes += len;
    queue->fds += fd_count;
    return true;
}

const int *
vnxi_link_queue_fds(const vnxi_link_queue_t *queue, size_t *count_p)
{
    *count_p = queue->head->fd_count;
    return queue->head->fds;
}

static void
block_close_fds(vnxi_link_block_t *block)
{
    if (block->fd_count > 0 && !vnxi_fds_lost(block->fd_epoch)) {
        vnxi_fork_fds_close(block->fds, block->fd_count);
    }
    free(block->fds);
    block->fds = NULL;
    block->fd_count = 0;
}

const void *
vnxi_link_queue_front(const vnxi_link_queue_t *queue, size_t *len_p)
{
    const vnxi_link_block_t *block = queue->head;

    *len_p = block->end - block->at;
    return block->data + block->at;
}

void
vnxi_link_queue_consume(vnxi_link_queue_t *queue, size_t len)
{
    vnxi_link_block_t *block = queue->head;

    queue->fds -= block->fd_count;
    block_close_fds(block);
    block->at += len;
    queue->bytes -= len;
    if (block->at < block->end) {
        return;
    }
    queue->head = block->next;
    if (queue->head == NULL) {
        queue->tail = NULL;
    }
    free(block);
}

void
vnxi_link_queue_clear(vnxi_link_queue_t *queue)
{
    while (queue->head != NULL) {
        vnxi_link_queue_consume(queue, queue->head->end - queue->head->at);
    }
}
