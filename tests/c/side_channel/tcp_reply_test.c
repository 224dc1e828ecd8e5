/* Replies of the TCP side channel as they arrive, and the buffer that grows
 * with them. */
#include "vnx_test.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "side_channel/tcp_wire.h"

static size_t realloc_limit = SIZE_MAX; /* above it memory is "out" */

void *__real_realloc(void *pointer, size_t size);
/* Visible, because libraries refer to the function. */
__attribute__((visibility("default"))) void *__wrap_realloc(void *pointer,
                                                            size_t size);

void *
__wrap_realloc(void *pointer, size_t size)
{
    return size > realloc_limit ? NULL : __real_realloc(pointer, size);
}

/* A reply as the client receives it. */
typedef struct reply {
    vnxi_incoming_t in;
    vnxi_tcp_kind_t kind;
    uint32_t max;
    bool has_length;
    vnxi_tcp_length_t length;
} reply_t;

static reply_t
reply_to(vnxi_tcp_kind_t kind, uint32_t max)
{
    return (reply_t){
        .in.head_want = VNXI_TCP_LENGTH, .kind = kind, .max = max};
}

/* Return where the next bytes go; reads the length once it is there. */
static void *
space_of(reply_t *reply, size_t *size_p)
{
    if (!reply->has_length && reply->in.head_have == VNXI_TCP_LENGTH) {
        reply->has_length = true;
        reply->length =
            vnxi_tcp_reply_expect(&reply->in, reply->kind, reply->max);
    }
    return vnxi_incoming_space(&reply->in, size_p);
}

static bool
is_whole(reply_t *reply)
{
    size_t size = 77;
    return space_of(reply, &size) == NULL && size == 0 &&
           reply->length == VNXI_TCP_LENGTH_VALID;
}

static bool
is_out_of_memory(reply_t *reply)
{
    size_t size = 0;
    return space_of(reply, &size) == NULL && size > 0;
}

static bool
needs_more(reply_t *reply)
{
    size_t size = 0;
    return space_of(reply, &size) != NULL && size > 0;
}

/* Feed `data` in pieces of `step` bytes; how much was taken. */
static size_t
feed(reply_t *reply, const unsigned char *data, size_t len, size_t step)
{
    size_t taken = 0, size;
    void *space;

    while ((space = space_of(reply, &size)) != NULL && taken < len) {
        size = size < step ? size : step;
        size = size < len - taken ? size : len - taken;
        memcpy(space, data + taken, size);
        vnxi_incoming_commit(&reply->in, size);
        taken += size;
    }
    return taken;
}

static void
test_tcp_reply_head_is_a_big_endian_length_and_a_status(void **state)
{
    (void)state;
    unsigned char head[VNXI_TCP_HEAD_MAX];

    assert_int_equal(
        vnxi_tcp_head_encode(VNXI_TCP_SEED, VNXI_TCP_BLOB, 12, head), 4);
    assert_memory_equal(head, "\0\0\0\014", 4);
    assert_int_equal(
        vnxi_tcp_head_encode(VNXI_TCP_SEED, VNXI_TCP_BLOB, 0x01020304, head),
        4);
    assert_memory_equal(head, "\1\2\3\4", 4);
    assert_int_equal(
        vnxi_tcp_head_encode(VNXI_TCP_SEED, VNXI_TCP_BLOB, UINT32_MAX, head),
        4);
    assert_memory_equal(head, "\xff\xff\xff\xff", 4);
    assert_int_equal(
        vnxi_tcp_head_encode(VNXI_TCP_GET, VNXI_TCP_UNKNOWN_KEY, 31, head), 5);
    assert_memory_equal(head, "\0\0\0\040\020", 5);
}

static void
test_tcp_reply_status_precedes_the_body(void **state)
{
    (void)state;
    static const unsigned char wire[] = "\0\0\0\003\020ab";

    for (size_t step = 1; step <= 7; step++) {
        reply_t reply = reply_to(VNXI_TCP_GET, 2);
        size_t len = 0;
        assert_int_equal(feed(&reply, wire, 7, step), 7);
        assert_true(is_whole(&reply));
        assert_int_equal(reply.in.head[VNXI_TCP_LENGTH], VNXI_TCP_UNKNOWN_KEY);
        assert_int_equal(reply.in.head_have, VNXI_TCP_LENGTH + 1);
        void *body = vnxi_body_take(&reply.in.body, &len);
        assert_int_equal(len, 2);
        assert_memory_equal(body, "ab", 2);
        free(body);
    }
}

static void
test_tcp_reply_without_room_for_a_status_is_refused(void **state)
{
    (void)state;
    reply_t reply;

    reply = reply_to(VNXI_TCP_GET, 2);
    feed(&reply, (const void *)"\0\0\0\0", 4, 4);
    assert_int_equal(reply.length, VNXI_TCP_LENGTH_NO_STATUS);
}

static void
test_tcp_reply_decodes_at_every_cut(void **state)
{
    (void)state;
    static const unsigned char wire[] = "\0\0\0\014GET_METADATA";

    for (size_t step = 1; step <= 16; step++) {
        reply_t reply = reply_to(VNXI_TCP_SEED, 12);
        size_t len = 0;
        assert_int_equal(feed(&reply, wire, 16, step), 16);
        assert_true(is_whole(&reply));
        void *body = vnxi_body_take(&reply.in.body, &len);
        assert_int_equal(len, 12);
        assert_memory_equal(body, "GET_METADATA", 12);
        free(body);
        vnxi_body_fini(&reply.in.body);
    }
}

static void
test_tcp_reply_needs_more_after_every_short_piece(void **state)
{
    (void)state;
    static const unsigned char wire[] = "\0\0\0\014GET_METADATA";

    for (size_t cut = 0; cut < 16; cut++) {
        reply_t reply = reply_to(VNXI_TCP_SEED, 12);

        feed(&reply, wire, cut, 16);
        assert_true(needs_more(&reply));
        assert_int_equal(reply.in.head_have + reply.in.body.len, cut);
        assert_int_equal(feed(&reply, wire + cut, 16 - cut, 16), 16 - cut);
        assert_true(is_whole(&reply));
        vnxi_body_fini(&reply.in.body);
    }
}

static void
test_tcp_reply_consumes_no_byte_of_the_next_one(void **state)
{
    (void)state;
    static const unsigned char wire[] = "\0\0\0\002ab\0\0\0\001c";
    reply_t reply;

    reply = reply_to(VNXI_TCP_SEED, 100);
    assert_int_equal(feed(&reply, wire, 11, 11), 6);
    assert_true(is_whole(&reply));
    vnxi_body_fini(&reply.in.body);
}

static void
test_tcp_reply_of_zero_bytes_is_complete_and_not_null(void **state)
{
    (void)state;
    reply_t reply;
    size_t len = 77;

    reply = reply_to(VNXI_TCP_SEED, 0);
    assert_int_equal(feed(&reply, (const void *)"\0\0\0\0", 4, 4), 4);
    assert_true(is_whole(&reply));
    void *body = vnxi_body_take(&reply.in.body, &len);
    assert_non_null(body);
    assert_int_equal(len, 0);
    free(body);
    vnxi_body_fini(&reply.in.body);
}

static void
test_tcp_reply_cap_is_inclusive(void **state)
{
    (void)state;
    reply_t reply;
    unsigned char header[VNXI_TCP_LENGTH];

    vnxi_big_put(header, sizeof header, 1000);
    reply = reply_to(VNXI_TCP_SEED, 1000);
    feed(&reply, header, 4, 4);
    assert_true(needs_more(&reply));
    vnxi_body_fini(&reply.in.body);

    reply = reply_to(VNXI_TCP_SEED, 999);
    feed(&reply, header, 4, 1);
    assert_int_equal(reply.length, VNXI_TCP_LENGTH_ABOVE_MAX);
    assert_null(reply.in.body.data);
    vnxi_body_fini(&reply.in.body);
}

static void
test_tcp_reply_final_states_consume_nothing(void **state)
{
    (void)state;
    reply_t reply;
    size_t size = 77;

    reply = reply_to(VNXI_TCP_SEED, 8);
    feed(&reply, (const void *)"\xff\xff\xff\xff", 4, 4);
    assert_int_equal(reply.length, VNXI_TCP_LENGTH_ABOVE_MAX);
    assert_null(vnxi_incoming_space(&reply.in, &size));
    assert_int_equal(size, 0);
    vnxi_body_fini(&reply.in.body);
}

static void
test_tcp_reply_buffer_grows_with_received_bytes(void **state)
{
    (void)state;
    const uint32_t len = 8u << 20;
    unsigned char *wire = malloc(VNXI_TCP_LENGTH + len);
    reply_t reply;
    size_t got;

    assert_non_null(wire);
    vnxi_big_put(wire, VNXI_TCP_LENGTH, len);
    for (uint32_t i = 0; i < len; i++) {
        wire[VNXI_TCP_LENGTH + i] = (unsigned char)(i * 7 >> 3);
    }
    reply = reply_to(VNXI_TCP_SEED, len);
    for (size_t at = 0; at < VNXI_TCP_LENGTH + len; at += 4096) {
        size_t left = VNXI_TCP_LENGTH + len - at;
        feed(&reply, wire + at, left < 4096 ? left : 4096, 4096);
        assert_true(reply.in.body.capacity <= VNXI_BODY_CHUNK ||
                    reply.in.body.capacity <= 2 * reply.in.body.len);
    }
    void *body = vnxi_body_take(&reply.in.body, &got);
    assert_int_equal(got, len);
    assert_int_equal(memcmp(body, wire + VNXI_TCP_LENGTH, len), 0);
    free(body);
    free(wire);
    vnxi_body_fini(&reply.in.body);
}

static void
test_tcp_reply_out_of_memory_is_a_state(void **state)
{
    (void)state;
    unsigned char bytes[VNXI_BODY_CHUNK] = {0};
    reply_t reply;

    bytes[0] = 1; /* 16 MiB */
    realloc_limit = VNXI_BODY_CHUNK;
    reply = reply_to(VNXI_TCP_SEED, UINT32_MAX);
    feed(&reply, bytes, 4, 4);
    assert_int_equal(feed(&reply, bytes, sizeof bytes, sizeof bytes),
                     VNXI_BODY_CHUNK);
    assert_int_equal(reply.in.body.capacity, VNXI_BODY_CHUNK);
    assert_int_equal(feed(&reply, bytes, 1, 1), 0);
    assert_true(is_out_of_memory(&reply));
    vnxi_body_fini(&reply.in.body);

    realloc_limit = 0;
    reply = reply_to(VNXI_TCP_SEED, UINT32_MAX);
    feed(&reply, bytes, 5, 5);
    assert_true(is_out_of_memory(&reply));
    vnxi_body_fini(&reply.in.body);
    vnxi_body_fini(&reply.in.body);
    realloc_limit = SIZE_MAX;
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            test_tcp_reply_head_is_a_big_endian_length_and_a_status),
        cmocka_unit_test(test_tcp_reply_status_precedes_the_body),
        cmocka_unit_test(test_tcp_reply_without_room_for_a_status_is_refused),
        cmocka_unit_test(test_tcp_reply_decodes_at_every_cut),
        cmocka_unit_test(test_tcp_reply_needs_more_after_every_short_piece),
        cmocka_unit_test(test_tcp_reply_consumes_no_byte_of_the_next_one),
        cmocka_unit_test(
            test_tcp_reply_of_zero_bytes_is_complete_and_not_null),
        cmocka_unit_test(test_tcp_reply_cap_is_inclusive),
        cmocka_unit_test(test_tcp_reply_final_states_consume_nothing),
        cmocka_unit_test(test_tcp_reply_buffer_grows_with_received_bytes),
        cmocka_unit_test(test_tcp_reply_out_of_memory_is_a_state),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
