#include "vnx_test.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "side_channel/frame.h"

static size_t realloc_limit = SIZE_MAX; /* above it memory is "out" */

void *__real_realloc(void *pointer, size_t size);
void *__wrap_realloc(void *pointer, size_t size);

void *
__wrap_realloc(void *pointer, size_t size)
{
    return size > realloc_limit ? NULL : __real_realloc(pointer, size);
}

/* Feed `data` in pieces of `step` bytes; how much was taken. */
static size_t
feed(vnxi_frame_decoder_t *decoder, const unsigned char *data, size_t len,
     size_t step)
{
    size_t taken = 0, size;
    void *space;

    while (taken < len && (space = vnxi_frame_space(decoder, &size)) != NULL) {
        size = size < step ? size : step;
        size = size < len - taken ? size : len - taken;
        memcpy(space, data + taken, size);
        vnxi_frame_commit(decoder, size);
        taken += size;
    }
    return taken;
}

static void
test_frame_header_is_big_endian(void **state)
{
    (void)state;
    unsigned char header[VNXI_FRAME_HEADER];

    vnxi_frame_encode_header(12, header);
    assert_memory_equal(header, "\0\0\0\014", 4);
    vnxi_frame_encode_header(0x01020304, header);
    assert_memory_equal(header, "\1\2\3\4", 4);
    vnxi_frame_encode_header(UINT32_MAX, header);
    assert_memory_equal(header, "\xff\xff\xff\xff", 4);
}

static void
test_frame_decodes_at_every_cut(void **state)
{
    (void)state;
    static const unsigned char wire[] = "\0\0\0\014GET_METADATA";

    for (size_t step = 1; step <= 16; step++) {
        vnxi_frame_decoder_t decoder;
        size_t len = 0;
        vnxi_frame_decoder_init(&decoder, 12, 0);
        assert_int_equal(feed(&decoder, wire, 16, step), 16);
        assert_int_equal(decoder.state, VNXI_FRAME_WHOLE);
        void *body = vnxi_frame_take(&decoder, &len);
        assert_int_equal(len, 12);
        assert_memory_equal(body, "GET_METADATA", 12);
        free(body);
        vnxi_frame_decoder_fini(&decoder);
    }
}

static void
test_frame_needs_more_after_every_short_piece(void **state)
{
    (void)state;
    static const unsigned char wire[] = "\0\0\0\014GET_METADATA";

    for (size_t cut = 0; cut < 16; cut++) {
        vnxi_frame_decoder_t decoder;
        size_t len = 77;
        vnxi_frame_decoder_init(&decoder, 12, 0);
        feed(&decoder, wire, cut, 16);
        assert_int_equal(decoder.state, VNXI_FRAME_MORE);
        assert_null(vnxi_frame_take(&decoder, &len));
        assert_int_equal(len, 77);
        assert_int_equal(feed(&decoder, wire + cut, 16 - cut, 16), 16 - cut);
        assert_int_equal(decoder.state, VNXI_FRAME_WHOLE);
        vnxi_frame_decoder_fini(&decoder);
    }
}

static void
test_frame_consumes_no_byte_of_the_next_one(void **state)
{
    (void)state;
    static const unsigned char wire[] = "\0\0\0\002ab\0\0\0\001c";
    vnxi_frame_decoder_t decoder;

    vnxi_frame_decoder_init(&decoder, 100, 0);
    assert_int_equal(feed(&decoder, wire, 11, 11), 6);
    assert_int_equal(decoder.state, VNXI_FRAME_WHOLE);
    vnxi_frame_decoder_fini(&decoder);
}

static void
test_frame_of_zero_bytes_is_complete_and_not_null(void **state)
{
    (void)state;
    vnxi_frame_decoder_t decoder;
    size_t len = 77;

    vnxi_frame_decoder_init(&decoder, 0, 0);
    assert_int_equal(feed(&decoder, (const void *)"\0\0\0\0", 4, 4), 4);
    assert_int_equal(decoder.state, VNXI_FRAME_WHOLE);
    void *body = vnxi_frame_take(&decoder, &len);
    assert_non_null(body);
    assert_int_equal(len, 0);
    free(body);
    vnxi_frame_decoder_fini(&decoder);
}

static void
test_frame_cap_is_inclusive(void **state)
{
    (void)state;
    vnxi_frame_decoder_t decoder;
    unsigned char header[VNXI_FRAME_HEADER];

    vnxi_frame_encode_header(1000, header);
    vnxi_frame_decoder_init(&decoder, 1000, 0);
    feed(&decoder, header, 4, 4);
    assert_int_equal(decoder.state, VNXI_FRAME_MORE);
    vnxi_frame_decoder_fini(&decoder);

    vnxi_frame_decoder_init(&decoder, 999, 0);
    feed(&decoder, header, 4, 1);
    assert_int_equal(decoder.state, VNXI_FRAME_TOO_LONG);
    assert_int_equal(decoder.len, 1000);
    assert_null(decoder.data);
    vnxi_frame_decoder_fini(&decoder);
}

static void
test_frame_final_states_consume_nothing(void **state)
{
    (void)state;
    vnxi_frame_decoder_t decoder;
    size_t size = 77;

    vnxi_frame_decoder_init(&decoder, 8, 0);
    feed(&decoder, (const void *)"\xff\xff\xff\xff", 4, 4);
    assert_int_equal(decoder.state, VNXI_FRAME_TOO_LONG);
    assert_null(vnxi_frame_space(&decoder, &size));
    assert_int_equal(size, 0);
    assert_int_equal(vnxi_frame_commit(&decoder, 5), VNXI_FRAME_TOO_LONG);
    vnxi_frame_decoder_fini(&decoder);
}

static void
test_frame_buffer_grows_with_received_bytes(void **state)
{
    (void)state;
    const uint32_t len = 8u << 20;
    unsigned char *wire = malloc(VNXI_FRAME_HEADER + len);
    vnxi_frame_decoder_t decoder;
    size_t got;

    assert_non_null(wire);
    vnxi_frame_encode_header(len, wire);
    for (uint32_t i = 0; i < len; i++) {
        wire[VNXI_FRAME_HEADER + i] = (unsigned char)(i * 7 >> 3);
    }
    vnxi_frame_decoder_init(&decoder, len, 0);
    for (size_t at = 0; at < VNXI_FRAME_HEADER + len; at += 4096) {
        size_t left = VNXI_FRAME_HEADER + len - at;
        feed(&decoder, wire + at, left < 4096 ? left : 4096, 4096);
        assert_true(decoder.capacity <= VNXI_FRAME_CHUNK ||
                    decoder.capacity <= 2 * decoder.have);
    }
    void *body = vnxi_frame_take(&decoder, &got);
    assert_int_equal(got, len);
    assert_int_equal(memcmp(body, wire + VNXI_FRAME_HEADER, len), 0);
    assert_null(vnxi_frame_take(&decoder, &got));
    free(body);
    free(wire);
    vnxi_frame_decoder_fini(&decoder);
}

static void
test_frame_out_of_memory_is_a_state(void **state)
{
    (void)state;
    unsigned char bytes[VNXI_FRAME_CHUNK] = {0};
    vnxi_frame_decoder_t decoder;

    bytes[0] = 1; /* 16 MiB */
    realloc_limit = VNXI_FRAME_CHUNK;
    vnxi_frame_decoder_init(&decoder, UINT32_MAX, 0);
    feed(&decoder, bytes, 4, 4);
    assert_int_equal(decoder.state, VNXI_FRAME_MORE);
    assert_int_equal(decoder.capacity, VNXI_FRAME_CHUNK);
    feed(&decoder, bytes, sizeof bytes, sizeof bytes);
    assert_int_equal(decoder.state, VNXI_FRAME_NO_MEMORY);
    vnxi_frame_decoder_fini(&decoder);

    realloc_limit = 0;
    vnxi_frame_decoder_init(&decoder, UINT32_MAX, 0);
    feed(&decoder, bytes, 4, 4);
    assert_int_equal(decoder.state, VNXI_FRAME_NO_MEMORY);
    vnxi_frame_decoder_fini(&decoder);
    vnxi_frame_decoder_fini(&decoder);
    realloc_limit = SIZE_MAX;
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frame_header_is_big_endian),
        cmocka_unit_test(test_frame_decodes_at_every_cut),
        cmocka_unit_test(test_frame_needs_more_after_every_short_piece),
        cmocka_unit_test(test_frame_consumes_no_byte_of_the_next_one),
        cmocka_unit_test(test_frame_of_zero_bytes_is_complete_and_not_null),
        cmocka_unit_test(test_frame_cap_is_inclusive),
        cmocka_unit_test(test_frame_final_states_consume_nothing),
        cmocka_unit_test(test_frame_buffer_grows_with_received_bytes),
        cmocka_unit_test(test_frame_out_of_memory_is_a_state),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
