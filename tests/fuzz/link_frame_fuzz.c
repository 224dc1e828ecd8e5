/*
 * The stream of a link, cut at arbitrary places.  The first byte of an input
 * chooses the pieces, the second the allowed frames; the rest is the stream.
 * It is read twice, in pieces and at once; both must give the same frames and
 * the same end.
 */
#include "fuzz.h"

#include "engine/native/shm/link_frame.h"

static uint64_t
mix(uint64_t sum, const void *data, size_t len)
{
    const uint8_t *bytes = data;

    for (size_t i = 0; i < len; i++) {
        sum = (sum ^ bytes[i]) * 0x100000001b3;
    }
    return sum;
}

/* Every borrowed part of a frame lies within it. */
static uint64_t
take_hello(const vnxi_link_frame_t *frame, uint64_t sum)
{
    vnxi_link_frame_hello_t hello;

    if (!vnxi_link_frame_read_hello(frame, &hello)) {
        return mix(sum, "bad", 3);
    }
    must(hello.name_len > 0 && hello.name_len <= VNXI_LINK_FRAME_NAME_MAX);
    sum = mix(sum, hello.name, hello.name_len);
    must(hello.target_name_len > 0 &&
         hello.target_name_len <= VNXI_LINK_FRAME_NAME_MAX);
    sum = mix(sum, hello.target_name, hello.target_name_len);
    sum = mix(sum, hello.instance, VNXI_SHM_ID_SIZE);
    return mix(sum, hello.target, VNXI_SHM_ID_SIZE);
}

static uint64_t
take_revoke(const vnxi_link_frame_t *frame, uint64_t sum)
{
    uint64_t epoch;
    uint32_t count;

    if (!vnxi_link_frame_read_revoke(frame, &epoch, &count)) {
        return mix(sum, "bad", 3);
    }
    sum = mix(sum, &epoch, sizeof epoch);
    for (uint32_t i = 0; i < count; i++) {
        vnx_mem_t mem;
        vnx_desc_t desc = vnxi_link_frame_revoke_row(frame, i, &mem);
        must(vnx_mem_name(mem) != NULL);
        sum = mix(mix(sum, &mem, sizeof mem), &desc, sizeof desc);
    }
    return sum;
}

static uint64_t
take_refuse(const vnxi_link_frame_t *frame, uint64_t sum)
{
    vnxi_link_frame_refuse_t refuse;

    if (!vnxi_link_frame_read_refuse(frame, &refuse)) {
        return mix(sum, "bad", 3);
    }
    must(refuse.name_len > 0 && refuse.name_len <= VNXI_LINK_FRAME_NAME_MAX);
    sum = mix(sum, refuse.instance, VNXI_SHM_ID_SIZE);
    return mix(sum, refuse.name, refuse.name_len);
}

/* Writing a parsed frame gives the same bytes. */
static void
check_question(const vnxi_link_frame_t *frame, uint64_t token, uint32_t count)
{
    vnxi_writer_t writer = {0};
    vnxi_link_row_t *rows = calloc(count + 1, sizeof *rows);

    must(rows != NULL);
    for (uint32_t i = 0; i < count; i++) {
        rows[i] = vnxi_link_frame_confirm_row(frame, i);
        must(vnx_mem_name(rows[i].mem) != NULL);
    }
    vnxi_link_frame_write_confirm(&writer, token, rows, count);
    must(writer.len == VNXI_LINK_FRAME_HEADER + frame->len &&
         memcmp(writer.data + VNXI_LINK_FRAME_HEADER, frame->body,
                frame->len) == 0);
    vnxi_writer_fini(&writer);
    free(rows);
}

static uint64_t
take_confirm(const vnxi_link_frame_t *frame, uint64_t sum)
{
    uint64_t token;
    uint32_t count;

    if (!vnxi_link_frame_read_confirm(frame, &token, &count)) {
        return mix(sum, "bad", 3);
    }
    must(count <= VNXI_LINK_ROWS_MAX);
    check_question(frame, token, count);
    return mix(sum, &token, sizeof token);
}

static uint64_t
take_confirmed(const vnxi_link_frame_t *frame, uint64_t sum)
{
    vnxi_link_answer_t answer;
    vnxi_writer_t writer = {0};

    if (!vnxi_link_frame_read_confirmed(frame, &answer)) {
        return mix(sum, "bad", 3);
    }
    must(answer.count <= VNXI_LINK_ROWS_MAX);
    vnxi_link_frame_write_confirmed(&writer, &answer);
    must(writer.len == VNXI_LINK_FRAME_HEADER + frame->len &&
         memcmp(writer.data + VNXI_LINK_FRAME_HEADER, frame->body,
                frame->len) == 0);
    vnxi_writer_fini(&writer);
    return mix(sum, &answer.token, sizeof answer.token);
}

/* Writing a parsed frame gives the same bytes. */
static uint64_t
take_control(const vnxi_link_frame_t *frame, uint64_t sum)
{
    vnxi_link_frame_control_t control;
    vnxi_writer_t writer = {0};

    if (!vnxi_link_frame_read_control(frame, &control)) {
        return mix(sum, "bad", 3);
    }
    must(control.entry_len > 0 && control.fd_count <= VNXI_CONTROL_FDS_MAX &&
         control.len <= VNXI_CONTROL_BYTES_MAX);
    vnxi_link_frame_write_control(&writer, &control);
    must(writer.len == VNXI_LINK_FRAME_HEADER + frame->len &&
         memcmp(writer.data + VNXI_LINK_FRAME_HEADER, frame->body,
                frame->len) == 0);
    vnxi_writer_fini(&writer);
    return mix(sum, control.data, control.len);
}

static uint64_t
take_token(const vnxi_link_frame_t *frame, uint64_t sum)
{
    uint64_t token;

    return vnxi_link_frame_read_token(frame, &token)
               ? mix(sum, &token, sizeof token)
               : mix(sum, "bad", 3);
}

static uint64_t
take_body(const vnxi_link_frame_t *frame, uint64_t sum)
{
    switch (frame->type) {
    case VNXI_LINK_FRAME_HELLO:
        return take_hello(frame, sum);
    case VNXI_LINK_FRAME_REVOKE:
        return take_revoke(frame, sum);
    case VNXI_LINK_FRAME_CONFIRM:
        return take_confirm(frame, sum);
    case VNXI_LINK_FRAME_CONFIRMED:
        return take_confirmed(frame, sum);
    case VNXI_LINK_FRAME_REFUSE:
        return take_refuse(frame, sum);
    case VNXI_LINK_FRAME_CONTROL:
        return take_control(frame, sum);
    case VNXI_LINK_FRAME_SETTLE:
    case VNXI_LINK_FRAME_SETTLED:
        return take_token(frame, sum);
    case VNXI_LINK_FRAME_NOTIF:
    case VNXI_LINK_FRAME_BYE:
    case VNXI_LINK_FRAME_CLOSING:
        break;
    }
    return sum;
}

/* A checksum of all frames read from the stream in pieces of this size. */
static uint64_t
read_stream(const uint8_t *stream, size_t size, size_t piece, unsigned allowed)
{
    vnxi_link_frame_reader_t reader = {.allowed = allowed};
    vnxi_link_frame_result_t result = VNXI_LINK_FRAME_NEED_MORE;
    vnxi_link_frame_t frame;
    uint64_t sum = 14695981039346656037u;

    for (size_t at = 0; at < size && result == VNXI_LINK_FRAME_NEED_MORE;
         at += piece) {
        size_t len = size - at < piece ? size - at : piece;
        vnxi_link_frame_reader_feed(&reader, stream + at, len);
        while ((result = vnxi_link_frame_reader_next(&reader, &frame)) ==
               VNXI_LINK_FRAME_WHOLE) {
            must((allowed & VNXI_LINK_FRAME_BIT(frame.type)) != 0);
            sum = mix(sum, &frame.len, sizeof frame.len);
            sum = mix(sum, frame.body, frame.len);
            sum = take_body(&frame, sum);
        }
        must(reader.kept_capacity <= 2 * size);
    }
    vnxi_link_frame_reader_fini(&reader);
    return mix(sum, &result, sizeof result);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2) {
        return 0;
    }
    size_t piece = (size_t)data[0] + 1;
    unsigned allowed = (unsigned)data[1] << VNXI_LINK_FRAME_HELLO;
    must(read_stream(data + 2, size - 2, piece, allowed) ==
         read_stream(data + 2, size - 2, size, allowed));
    return 0;
}
