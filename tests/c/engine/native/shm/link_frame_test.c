#include "vnx_test.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/fork_fds.h"
#include "engine/native/shm/link_frame.h"
#include "open_fds.h"

#define ANY (511u & ~1u)

static const unsigned char ids[2][VNXI_SHM_ID_SIZE] = {"instance of one",
                                                       "instance of two"};

static void
write_frame(vnxi_writer_t *writer, vnxi_link_frame_type_t type,
            const void *body, size_t len)
{
    unsigned char header[VNXI_LINK_FRAME_HEADER];

    vnxi_link_frame_header(type, len, header);
    vnxi_write_bytes(writer, header, sizeof header);
    vnxi_write_bytes(writer, body, len);
}

/* HELLO, an empty notification, one of `long_len` bytes, REVOKE, BYE. */
static vnxi_writer_t
write_stream(size_t long_len)
{
    static const vnx_desc_t descs[] = {{0x1000, 64, 3},
                                       {UINT64_MAX, UINT64_MAX, UINT64_MAX}};
    vnxi_writer_t writer = {0};
    vnxi_link_frame_hello_t hello = {
        .instance = ids[0],
        .target = ids[1],
        .name = "decode",
        .name_len = 6,
        .target_name = "prefill",
        .target_name_len = 7,
    };
    vnxi_link_frame_revoke_t revoke = {
        .epoch = UINT64_C(0x1122334455667788),
        .mem = VNX_MEM_VRAM,
        .descs = descs,
        .count = 2,
    };
    unsigned char *message = malloc(long_len + 1);

    assert_non_null(message);
    for (size_t i = 0; i < long_len; i++) {
        message[i] = (unsigned char)(i * 31 >> 3);
    }
    vnxi_link_frame_write_hello(&writer, &hello);
    write_frame(&writer, VNXI_LINK_FRAME_NOTIF, NULL, 0);
    write_frame(&writer, VNXI_LINK_FRAME_NOTIF, message, long_len);
    vnxi_link_frame_write_revoke(&writer, &revoke);
    write_frame(&writer, VNXI_LINK_FRAME_BYE, NULL, 0);
    assert_false(writer.failed);
    free(message);
    return writer;
}

static void
check_frame(const vnxi_link_frame_t *frame, size_t number, size_t long_len)
{
    vnxi_link_frame_hello_t hello;
    uint64_t epoch;
    uint32_t count;
    vnx_mem_t mem;

    switch (number) {
    case 0:
        assert_true(vnxi_link_frame_read_hello(frame, &hello));
        assert_memory_equal(hello.instance, ids[0], VNXI_SHM_ID_SIZE);
        assert_memory_equal(hello.target, ids[1], VNXI_SHM_ID_SIZE);
        assert_int_equal(hello.name_len, 6);
        assert_memory_equal(hello.name, "decode", 6);
        assert_int_equal(hello.target_name_len, 7);
        assert_memory_equal(hello.target_name, "prefill", 7);
        break;
    case 1:
        assert_int_equal(frame->type, VNXI_LINK_FRAME_NOTIF);
        assert_int_equal(frame->len, 0);
        break;
    case 2:
        assert_int_equal(frame->type, VNXI_LINK_FRAME_NOTIF);
        assert_int_equal(frame->len, long_len);
        for (size_t i = 0; i < long_len; i++) {
            assert_int_equal(frame->body[i], (unsigned char)(i * 31 >> 3));
        }
        break;
    case 3:
        assert_true(vnxi_link_frame_read_revoke(frame, &epoch, &count));
        assert_true(epoch == UINT64_C(0x1122334455667788));
        assert_int_equal(count, 2);
        assert_int_equal(vnxi_link_frame_revoke_row(frame, 0, &mem).addr,
                         0x1000);
        assert_int_equal(mem, VNX_MEM_VRAM);
        assert_int_equal(vnxi_link_frame_revoke_row(frame, 0, &mem).len, 64);
        assert_int_equal(vnxi_link_frame_revoke_row(frame, 0, &mem).dev, 3);
        assert_true(vnxi_link_frame_revoke_row(frame, 1, &mem).addr ==
                    UINT64_MAX);
        break;
    default:
        assert_int_equal(number, 4);
        assert_int_equal(frame->type, VNXI_LINK_FRAME_BYE);
        assert_int_equal(frame->len, 0);
    }
}

/* Feed the stream in pieces of `piece` bytes, each from a block of its exact
 * size, so that ASan detects a read past it. */
static void
check_in_pieces(size_t long_len, size_t piece)
{
    vnxi_writer_t stream = write_stream(long_len);
    vnxi_link_frame_reader_t reader = {.allowed = ANY};
    vnxi_link_frame_t frame;
    size_t number = 0;

    for (size_t at = 0; at < stream.len; at += piece) {
        size_t len = stream.len - at < piece ? stream.len - at : piece;
        unsigned char *copy = malloc(len);
        assert_non_null(copy);
        memcpy(copy, stream.data + at, len);
        vnxi_link_frame_reader_feed(&reader, copy, len);
        vnxi_link_frame_result_t result;
        while ((result = vnxi_link_frame_reader_next(&reader, &frame)) ==
               VNXI_LINK_FRAME_WHOLE) {
            check_frame(&frame, number++, long_len);
        }
        assert_int_equal(result, VNXI_LINK_FRAME_NEED_MORE);
        free(copy);
    }
    assert_int_equal(number, 5);
    vnxi_link_frame_reader_fini(&reader);
    vnxi_writer_fini(&stream);
}

static void
test_link_frame_round_trips_at_every_cut(void **state)
{
    (void)state;
    for (size_t piece = 1; piece <= 300; piece++) {
        check_in_pieces(100, piece);
    }
    check_in_pieces(300000, 4096);
    check_in_pieces(300000, 65536);
    check_in_pieces(300000, 1000000);
    check_in_pieces(3000000, 262144);
}

static void
test_link_frame_header_is_little_endian_and_counts_the_type(void **state)
{
    (void)state;
    static const unsigned char expected[] = {0x05, 0x03, 0x02, 0x01, 2};
    unsigned char header[VNXI_LINK_FRAME_HEADER];

    vnxi_link_frame_header(VNXI_LINK_FRAME_NOTIF, 0x01020304, header);
    assert_memory_equal(header, expected, sizeof expected);
}

static vnxi_link_frame_result_t
first_result(unsigned allowed, const void *data, size_t len)
{
    vnxi_link_frame_reader_t reader = {.allowed = allowed};
    vnxi_link_frame_t frame;

    vnxi_link_frame_reader_feed(&reader, data, len);
    vnxi_link_frame_result_t whole =
        vnxi_link_frame_reader_next(&reader, &frame);
    vnxi_link_frame_reader_fini(&reader);

    /* The same byte by byte. */
    vnxi_link_frame_result_t result = VNXI_LINK_FRAME_NEED_MORE;
    reader = (vnxi_link_frame_reader_t){.allowed = allowed};
    for (size_t i = 0; i < len && result == VNXI_LINK_FRAME_NEED_MORE; i++) {
        vnxi_link_frame_reader_feed(&reader, (const char *)data + i, 1);
        result = vnxi_link_frame_reader_next(&reader, &frame);
    }
    vnxi_link_frame_reader_fini(&reader);
    assert_int_equal(result, whole);
    return whole;
}

static void
test_link_frame_refuses_impossible_headers(void **state)
{
    (void)state;
    static const unsigned char frames[][5] = {
        {0, 0, 0, 0, 2}, /* no room for the type */
        {1, 0, 0, 0, 0}, /* no such types */
        {1, 0, 0, 0, 9},
        {1, 0, 0, 0, 255},
        {1, 0, 0, 0x40, 2}, /* one above the most */
        {255, 255, 255, 255, 2},
        {2, 0, 0, 0, 4}, /* BYE with a body */
        {0, 0, 3, 0, 1}, /* HELLO longer than any two names */
        {0, 0, 1, 0, 5}, /* CONFIRM of more rows than one takes */
        {0, 32, 0, 0, 6},
        {0, 0, 2, 0, 7}, /* REFUSE longer than any name */
        {0, 2, 1, 0, 8}, /* CONTROL longer than any message */
        {0, 0, 0, 1, 3}, /* REVOKE of more rows than one takes */
    };

    for (size_t i = 0; i < sizeof frames / sizeof frames[0]; i++) {
        assert_int_equal(first_result(ANY, frames[i], 5),
                         VNXI_LINK_FRAME_MALFORMED);
    }
    static const unsigned char longest[] = {0, 0, 0, 0x40, 2};
    assert_int_equal(first_result(ANY, longest, 5), VNXI_LINK_FRAME_NEED_MORE);
}

static void
test_link_frame_accepts_only_allowed_types(void **state)
{
    (void)state;
    for (int type = VNXI_LINK_FRAME_HELLO; type <= VNXI_LINK_FRAME_CONTROL;
         type++) {
        unsigned char frame[VNXI_LINK_FRAME_HEADER];
        vnxi_link_frame_header((vnxi_link_frame_type_t)type, 0, frame);
        assert_int_equal(
            first_result(ANY & ~VNXI_LINK_FRAME_BIT(type), frame, 5),
            VNXI_LINK_FRAME_MALFORMED);
        assert_int_equal(first_result(VNXI_LINK_FRAME_BIT(type), frame, 5),
                         VNXI_LINK_FRAME_WHOLE);
    }
}

static void
test_link_frame_allocates_for_received_bytes_only(void **state)
{
    (void)state;
    vnxi_link_frame_reader_t reader = {.allowed = ANY};
    unsigned char block[10000] = {0};
    vnxi_link_frame_t frame;

    vnxi_link_frame_header(VNXI_LINK_FRAME_NOTIF, VNXI_LINK_FRAME_MAX - 1,
                           block);
    for (size_t came = sizeof block; came <= 10 * sizeof block;
         came += sizeof block) {
        vnxi_link_frame_reader_feed(&reader, block, sizeof block);
        assert_int_equal(vnxi_link_frame_reader_next(&reader, &frame),
                         VNXI_LINK_FRAME_NEED_MORE);
        assert_in_range(reader.kept_capacity, came, 2 * came);
    }
    vnxi_link_frame_reader_fini(&reader);
}

static void
test_link_frame_frees_the_memory_of_a_long_one(void **state)
{
    (void)state;
    vnxi_writer_t stream = write_stream(1 << 20);
    vnxi_link_frame_reader_t reader = {.allowed = ANY};
    vnxi_link_frame_t frame;

    vnxi_link_frame_reader_feed(&reader, stream.data, stream.len / 2);
    while (vnxi_link_frame_reader_next(&reader, &frame) ==
           VNXI_LINK_FRAME_WHOLE) {
    }
    assert_in_range(reader.kept_capacity, 1 << 18, 1 << 21);
    vnxi_link_frame_reader_feed(&reader, stream.data + stream.len / 2,
                                stream.len - stream.len / 2);
    while (vnxi_link_frame_reader_next(&reader, &frame) ==
           VNXI_LINK_FRAME_WHOLE) {
    }
    assert_int_equal(reader.kept_capacity, 0);
    vnxi_link_frame_reader_fini(&reader);
    vnxi_writer_fini(&stream);
}

/* -- Bodies --------------------------------------------------------------- */

static bool
hello_is_good(const unsigned char *body, size_t len)
{
    vnxi_link_frame_t frame = {VNXI_LINK_FRAME_HELLO, body, len};
    vnxi_link_frame_hello_t hello;
    return vnxi_link_frame_read_hello(&frame, &hello);
}

static void
test_link_frame_hello_with_a_wrong_byte_is_refused(void **state)
{
    (void)state;
    vnxi_writer_t stream = write_stream(0);
    unsigned char body[2 + 16 + 4 + 6 + 16 + 4 + 7 + 1];
    size_t len = sizeof body - 1;

    memcpy(body, stream.data + VNXI_LINK_FRAME_HEADER, len);
    body[len] = 0;
    assert_true(hello_is_good(body, len));
    assert_false(hello_is_good(body, len + 1));
    for (size_t cut = 0; cut < len; cut++) {
        assert_false(hello_is_good(body, cut));
    }
    body[0] = 1; /* another version */
    assert_false(hello_is_good(body, len));
    body[0] = 2;
    for (unsigned name_len = 0; name_len < 256; name_len++) {
        body[18] = (unsigned char)name_len;
        assert_int_equal(hello_is_good(body, len), name_len == 6);
    }
    body[18] = 6;
    body[21] = 0x80; /* a length of gigabytes */
    assert_false(hello_is_good(body, len));
    vnxi_writer_fini(&stream);
}

static void
test_link_frame_hello_needs_a_name(void **state)
{
    (void)state;
    unsigned char body[2 + 16 + 4 + 16 + 4] = {2};
    assert_false(hello_is_good(body, sizeof body));
}

static bool
revoke_is_good(const unsigned char *body, size_t len)
{
    vnxi_link_frame_t frame = {VNXI_LINK_FRAME_REVOKE, body, len};
    uint64_t epoch;
    uint32_t count;
    return vnxi_link_frame_read_revoke(&frame, &epoch, &count);
}

static void
test_link_frame_revoke_with_missing_rows_is_refused(void **state)
{
    (void)state;
    unsigned char body[8 + 4 + 2 * 28] = {[8] = 2};

    assert_true(revoke_is_good(body, sizeof body));
    for (size_t cut = 0; cut < sizeof body; cut++) {
        assert_false(revoke_is_good(body, cut));
    }
    for (unsigned count = 0; count < 256; count++) {
        body[8] = (unsigned char)count;
        assert_int_equal(revoke_is_good(body, sizeof body), count == 2);
    }
    memset(body + 8, 0xff, 4); /* times the row it is above 32 bits */
    assert_false(revoke_is_good(body, sizeof body));
}

static void
test_link_frame_revoke_of_an_unknown_memory_type_is_refused(void **state)
{
    (void)state;
    unsigned char body[8 + 4 + 2 * 28] = {[8] = 2};

    body[12 + 28] = VNX_MEM_COUNT - 1;
    assert_true(revoke_is_good(body, sizeof body));
    body[12 + 28] = VNX_MEM_COUNT;
    assert_false(revoke_is_good(body, sizeof body));
}

/* Two rows, one shared, and the bytes that they are. */
static const unsigned char question[] = {
    /* token, count */
    1, 2, 3, 4, 5, 6, 7, 8, 2, 0, 0, 0,
    /* DRAM, address, length, device */
    0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0,
    0, 0, 0, 0,
    /* private */
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0,
    /* VRAM */
    1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0,
    0, 0, 0,
    /* shared: offset, device, inode */
    1, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0,
    0, 0, 0};

static bool
question_is_good(const unsigned char *body, size_t len)
{
    vnxi_link_frame_t frame = {VNXI_LINK_FRAME_CONFIRM, body, len};
    uint64_t token;
    uint32_t count;
    return vnxi_link_frame_read_confirm(&frame, &token, &count);
}

static void
test_link_frame_confirm_is_as_documented(void **state)
{
    (void)state;
    const vnxi_link_row_t rows[] = {
        {VNX_MEM_DRAM, {0x1000, 64, 3}, {-1, 77, 78, 79}},
        {VNX_MEM_VRAM, {1, 2, 3}, {9, 4, 5, 6}},
    };
    vnxi_writer_t writer = {0};
    uint64_t token;
    uint32_t count;

    vnxi_link_frame_write_confirm(&writer, UINT64_C(0x0807060504030201), rows,
                                  2);
    assert_int_equal(writer.len, VNXI_LINK_FRAME_HEADER + sizeof question);
    assert_memory_equal(writer.data + VNXI_LINK_FRAME_HEADER, question,
                        sizeof question);
    vnxi_writer_fini(&writer);
    vnxi_link_frame_t frame = {VNXI_LINK_FRAME_CONFIRM, question,
                               sizeof question};
    assert_true(vnxi_link_frame_read_confirm(&frame, &token, &count));
    assert_true(token == UINT64_C(0x0807060504030201));
    assert_int_equal(count, 2);
    vnxi_link_row_t row = vnxi_link_frame_confirm_row(&frame, 0);
    assert_int_equal(row.map_info.fd, -1);
    assert_int_equal(row.desc.addr, 0x1000);
    row = vnxi_link_frame_confirm_row(&frame, 1);
    assert_int_equal(row.mem, VNX_MEM_VRAM);
    assert_true(row.map_info.fd >= 0);
    assert_int_equal(row.map_info.st_ino, 6);
}

static void
test_link_frame_confirm_with_a_wrong_byte_is_refused(void **state)
{
    (void)state;
    unsigned char body[sizeof question + 1] = {0};

    memcpy(body, question, sizeof question);
    for (size_t len = 0; len <= sizeof body; len++) {
        assert_int_equal(question_is_good(body, len), len == sizeof question);
    }
    for (unsigned count = 0; count < 256; count++) {
        body[8] = (unsigned char)count;
        assert_int_equal(question_is_good(body, sizeof question), count == 2);
    }
    memset(body + 8, 0xff, 4);
    assert_false(question_is_good(body, sizeof question));
    memcpy(body, question, sizeof question);
    body[12] = VNX_MEM_COUNT;
    assert_false(question_is_good(body, sizeof question));
    body[12] = 0;
    body[12 + 28] = 2; /* neither private nor shared */
    assert_false(question_is_good(body, sizeof question));
    body[12 + 28] = 0;
    body[12 + 32] = 1; /* private memory has no file */
    assert_false(question_is_good(body, sizeof question));
    body[12 + 28] = 1;
    assert_true(question_is_good(body, sizeof question));
    memset(body, 0, sizeof body); /* an empty request is valid */
    assert_true(question_is_good(body, 12));
}

static bool
answer_is_good(const unsigned char *body, size_t len)
{
    vnxi_link_frame_t frame = {VNXI_LINK_FRAME_CONFIRMED, body, len};
    vnxi_link_answer_t answer;
    return vnxi_link_frame_read_confirmed(&frame, &answer);
}

static void
test_link_frame_confirmed_positions_are_ascending(void **state)
{
    (void)state;
    vnxi_link_answer_t answer = {.token = UINT64_C(0x0807060504030201),
                                 .epoch = 9,
                                 .count = 3,
                                 .refused = {0, 5, 1023}},
                       back;
    unsigned char body[20 + 12 + 1] = {
        1, 2, 3, 4, 5, 6, 7, 8, 9, [16] = 3, [24] = 5, [28] = 0xff, [29] = 3};
    vnxi_writer_t writer = {0};

    vnxi_link_frame_write_confirmed(&writer, &answer);
    assert_int_equal(writer.len, VNXI_LINK_FRAME_HEADER + sizeof body - 1);
    assert_memory_equal(writer.data + VNXI_LINK_FRAME_HEADER, body,
                        sizeof body - 1);
    vnxi_writer_fini(&writer);
    vnxi_link_frame_t frame = {VNXI_LINK_FRAME_CONFIRMED, body,
                               sizeof body - 1};
    assert_true(vnxi_link_frame_read_confirmed(&frame, &back));
    assert_int_equal(back.epoch, 9);
    assert_int_equal(back.count, 3);
    assert_int_equal(back.refused[2], 1023);
    for (size_t len = 0; len <= sizeof body; len++) {
        assert_int_equal(answer_is_good(body, len), len == sizeof body - 1);
    }
    body[29] = 4; /* above the most rows */
    assert_false(answer_is_good(body, sizeof body - 1));
    body[29] = 0;
    body[28] = 5; /* twice the same */
    assert_false(answer_is_good(body, sizeof body - 1));
    body[28] = 4;
    assert_false(answer_is_good(body, sizeof body - 1));
    memset(body + 16, 0xff, 4);
    assert_false(answer_is_good(body, sizeof body - 1));
}

static void
test_link_frame_refuse_has_the_agents_name(void **state)
{
    (void)state;
    const vnxi_link_frame_refuse_t refuse = {ids[0], "prefill", 7};
    vnxi_link_frame_refuse_t back;
    vnxi_writer_t writer = {0};

    vnxi_link_frame_write_refuse(&writer, &refuse);
    vnxi_link_frame_t frame = {VNXI_LINK_FRAME_REFUSE, writer.data + 5,
                               writer.len - 5};
    assert_int_equal(writer.len, 5 + 16 + 4 + 7);
    assert_true(vnxi_link_frame_read_refuse(&frame, &back));
    assert_memory_equal(back.instance, ids[0], VNXI_SHM_ID_SIZE);
    assert_int_equal(back.name_len, 7);
    assert_memory_equal(back.name, "prefill", 7);
    for (frame.len = 0; frame.len < 16 + 4 + 7; frame.len++) {
        assert_false(vnxi_link_frame_read_refuse(&frame, &back));
    }
    writer.data[5 + 16] = 0;
    frame.len = 16 + 4;
    assert_false(vnxi_link_frame_read_refuse(&frame, &back));
    vnxi_writer_fini(&writer);
}

static bool
control_is_good(const unsigned char *body, size_t len)
{
    vnxi_link_frame_t frame = {VNXI_LINK_FRAME_CONTROL, body, len};
    vnxi_link_frame_control_t control;
    return vnxi_link_frame_read_control(&frame, &control);
}

static void
test_link_frame_control_is_as_documented(void **state)
{
    (void)state;
    static const unsigned char bytes[] = {4, 'C', 'U', 'D', 'A', 64, 'h', 'i'};
    const vnxi_link_frame_control_t control = {"CUDA", 4, "hi", 2, 64};
    vnxi_link_frame_control_t back;
    vnxi_writer_t writer = {0};

    vnxi_link_frame_write_control(&writer, &control);
    assert_int_equal(writer.len, VNXI_LINK_FRAME_HEADER + sizeof bytes);
    assert_memory_equal(writer.data + VNXI_LINK_FRAME_HEADER, bytes,
                        sizeof bytes);
    vnxi_writer_fini(&writer);
    for (size_t cut = 0; cut <= 2; cut++) {
        vnxi_link_frame_t frame = {VNXI_LINK_FRAME_CONTROL, bytes,
                                   sizeof bytes - cut};
        assert_true(vnxi_link_frame_read_control(&frame, &back));
        assert_int_equal(back.entry_len, 4);
        assert_memory_equal(back.entry, "CUDA", 4);
        assert_int_equal(back.fd_count, 64);
        assert_int_equal(back.len, 2 - cut);
        assert_memory_equal(back.data, "hi", back.len);
    }
    for (size_t len = 0; len < sizeof bytes - 2; len++) {
        assert_false(control_is_good(bytes, len));
    }
}

static void
test_link_frame_control_with_a_wrong_byte_is_refused(void **state)
{
    (void)state;
    unsigned char body[8] = {4, 'C', 'U', 'D', 'A', 0, 'h', 'i'};

    for (unsigned value = 0; value < 256; value++) {
        body[0] = (unsigned char)value; /* of the entry; then the number of
                                           descriptors is another byte */
        bool fits = value > 0 && value + 2 <= sizeof body &&
                    body[value + 1] <= VNXI_CONTROL_FDS_MAX;
        assert_int_equal(control_is_good(body, sizeof body), fits);
    }
    body[0] = 4;
    for (unsigned count = 0; count < 256; count++) {
        body[5] = (unsigned char)count;
        assert_int_equal(control_is_good(body, sizeof body),
                         count <= VNXI_CONTROL_FDS_MAX);
    }
}

/* The longest frame has the longest entry, but the longest message with a
 * short entry must not be longer. */
static void
test_link_frame_control_has_a_limit(void **state)
{
    (void)state;
    static unsigned char data[VNXI_CONTROL_BYTES_MAX + 1];
    char entry[255];
    vnxi_link_frame_control_t control = {entry, sizeof entry, data,
                                         VNXI_CONTROL_BYTES_MAX, 0};

    memset(entry, 'E', sizeof entry);
    for (size_t over = 0; over < 2; over++) {
        for (size_t len = 1; len <= sizeof entry; len += 254) {
            vnxi_writer_t writer = {0};
            control.entry_len = len;
            control.len = VNXI_CONTROL_BYTES_MAX + over;
            vnxi_link_frame_write_control(&writer, &control);
            vnxi_link_frame_result_t result =
                first_result(ANY, writer.data, writer.len);
            if (over == 1 && len == sizeof entry) {
                assert_int_equal(result, VNXI_LINK_FRAME_MALFORMED);
            } else {
                assert_int_equal(result, VNXI_LINK_FRAME_WHOLE);
                assert_int_equal(
                    control_is_good(writer.data + VNXI_LINK_FRAME_HEADER,
                                    writer.len - VNXI_LINK_FRAME_HEADER),
                    over == 0);
            }
            vnxi_writer_fini(&writer);
        }
    }
}

/* -- The queue ------------------------------------------------------------ */

static void
test_link_queue_returns_the_bytes_in_order(void **state)
{
    (void)state;
    vnxi_link_queue_t queue = {0};
    unsigned char block[100000];
    unsigned in = 0, out = 0;

    for (size_t len = 0; len < sizeof block; len = len * 2 + 1) {
        for (size_t i = 0; i < len; i++) {
            block[i] = (unsigned char)(in++ % 251);
        }
        assert_true(vnxi_link_queue_add(&queue, block, len));
        assert_int_equal(queue.bytes, in);
    }
    while (queue.bytes > 0) {
        size_t len;
        const unsigned char *front = vnxi_link_queue_front(&queue, &len);
        assert_true(len > 0 && len <= queue.bytes);
        size_t take = len > 1000 ? len / 2 : len;
        for (size_t i = 0; i < take; i++) {
            assert_int_equal(front[i], out++ % 251);
        }
        vnxi_link_queue_consume(&queue, take);
    }
    assert_int_equal(out, in);
    assert_null(queue.head);
}

static void
test_link_queue_is_reusable_after_it_was_empty(void **state)
{
    (void)state;
    vnxi_link_queue_t queue = {0};
    size_t len;

    for (int round = 0; round < 3; round++) {
        assert_true(vnxi_link_queue_add(&queue, "abc", 3));
        assert_memory_equal(vnxi_link_queue_front(&queue, &len), "abc", 3);
        assert_int_equal(len, 3);
        vnxi_link_queue_consume(&queue, 3);
        assert_int_equal(queue.bytes, 0);
    }
    assert_true(vnxi_link_queue_add(&queue, "abc", 3));
    vnxi_link_queue_clear(&queue);
    assert_int_equal(queue.bytes, 0);
    assert_null(queue.tail);
}

static void
test_link_queue_of_small_messages_has_little_overhead(void **state)
{
    (void)state;
    vnxi_link_queue_t queue = {0};
    size_t len, pieces = 0;

    for (int i = 0; i < 100000; i++) {
        assert_true(vnxi_link_queue_add(&queue, "x", 1));
    }
    while (queue.bytes > 0) {
        vnxi_link_queue_front(&queue, &len);
        vnxi_link_queue_consume(&queue, len);
        pieces++;
    }
    assert_in_range(pieces, 1, 10);
}

static void
add_fds(vnxi_link_queue_t *queue, const char *text, size_t count, int *fds)
{
    for (size_t i = 0; i < count; i++) {
        fds[i] = vnxi_fork_fd_own(dup(0));
    }
    assert_true(
        vnxi_link_queue_add_fds(queue, text, strlen(text), fds, count));
}

/* The front of the queue is this text, with so many descriptors. */
static void
check_front(const vnxi_link_queue_t *queue, const char *text, const int *fds,
            size_t count)
{
    size_t len, fd_count;

    const void *front = vnxi_link_queue_front(queue, &len);
    assert_int_equal(len, strlen(text));
    assert_memory_equal(front, text, len);
    const int *found = vnxi_link_queue_fds(queue, &fd_count);
    assert_int_equal(fd_count, count);
    if (count > 0) {
        assert_memory_equal(found, fds, count * sizeof *fds);
    }
}

/* Bytes with and without descriptors are never in one piece. */
static void
test_link_queue_keeps_descriptors_with_their_bytes(void **state)
{
    (void)state;
    vnxi_link_queue_t queue = {0};
    int one[3], two[VNXI_CONTROL_FDS_MAX];

    vnxi_fds_epoch(); /* opens a descriptor once */
    size_t before = open_fds();

    assert_true(vnxi_link_queue_add(&queue, "abc", 3));
    add_fds(&queue, "defg", 3, one);
    add_fds(&queue, "h", VNXI_CONTROL_FDS_MAX, two);
    assert_true(vnxi_link_queue_add(&queue, "ij", 2));
    assert_int_equal(queue.bytes, 10);
    check_front(&queue, "abc", NULL, 0);
    vnxi_link_queue_consume(&queue, 1);
    check_front(&queue, "bc", NULL, 0);
    vnxi_link_queue_consume(&queue, 2);
    check_front(&queue, "defg", one, 3);
    assert_int_equal(open_fds(), before + 3 + VNXI_CONTROL_FDS_MAX);
    vnxi_link_queue_consume(&queue, 1); /* they are sent */
    assert_int_equal(open_fds(), before + VNXI_CONTROL_FDS_MAX);
    check_front(&queue, "efg", NULL, 0);
    vnxi_link_queue_consume(&queue, 3);
    check_front(&queue, "h", two, VNXI_CONTROL_FDS_MAX);
    vnxi_link_queue_consume(&queue, 1);
    check_front(&queue, "ij", NULL, 0);
    assert_int_equal(open_fds(), before);
    add_fds(&queue, "k", 3, one);
    vnxi_link_queue_clear(&queue);
    assert_int_equal(open_fds(), before);
    assert_int_equal(queue.bytes, 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_link_frame_round_trips_at_every_cut),
        cmocka_unit_test(
            test_link_frame_header_is_little_endian_and_counts_the_type),
        cmocka_unit_test(test_link_frame_refuses_impossible_headers),
        cmocka_unit_test(test_link_frame_accepts_only_allowed_types),
        cmocka_unit_test(test_link_frame_allocates_for_received_bytes_only),
        cmocka_unit_test(test_link_frame_frees_the_memory_of_a_long_one),
        cmocka_unit_test(test_link_frame_hello_with_a_wrong_byte_is_refused),
        cmocka_unit_test(test_link_frame_hello_needs_a_name),
        cmocka_unit_test(test_link_frame_revoke_with_missing_rows_is_refused),
        cmocka_unit_test(test_link_frame_confirm_is_as_documented),
        cmocka_unit_test(test_link_frame_confirm_with_a_wrong_byte_is_refused),
        cmocka_unit_test(test_link_frame_confirmed_positions_are_ascending),
        cmocka_unit_test(test_link_frame_refuse_has_the_agents_name),
        cmocka_unit_test(
            test_link_frame_revoke_of_an_unknown_memory_type_is_refused),
        cmocka_unit_test(test_link_frame_control_is_as_documented),
        cmocka_unit_test(test_link_frame_control_with_a_wrong_byte_is_refused),
        cmocka_unit_test(test_link_frame_control_has_a_limit),
        cmocka_unit_test(test_link_queue_returns_the_bytes_in_order),
        cmocka_unit_test(test_link_queue_is_reusable_after_it_was_empty),
        cmocka_unit_test(
            test_link_queue_of_small_messages_has_little_overhead),
        cmocka_unit_test(test_link_queue_keeps_descriptors_with_their_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
