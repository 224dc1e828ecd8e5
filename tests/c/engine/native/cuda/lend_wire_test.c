/* Messages with which agents lend each other GPU memory: reading, writing. */
#include "vnx_test.h"

#include <stdlib.h>
#include <string.h>

#include "engine/native/cuda/lend_wire.h"

#define PIECE_BYTES (8 + 8 + 8 + 1 + VNXI_LEND_HANDLE_SIZE)
#define STATUS_BYTES (1 + 8 + 4) /* a message with a status, but no cause */

/* From a block of its exact size, so that ASan detects a read past it. */
static bool
is_good(const void *data, size_t len)
{
    unsigned char *copy = malloc(len + (len == 0));
    vnxi_lend_t message;

    assert_non_null(copy);
    memcpy(copy, data, len);
    bool good = vnxi_lend_read(copy, len, &message);
    free(copy);
    return good;
}

/* These end with a text of any length. */
static bool
has_cause(const vnxi_lend_t *message)
{
    return message->type == VNXI_LEND_REFUSED ||
           message->type == VNXI_LEND_OPENED ||
           message->type == VNXI_LEND_MOVED;
}

/* Write the message, compare it with these bytes, and read it.  Every shorter
 * message is refused, and one with a byte more. */
static vnxi_lend_t
check_bytes(const vnxi_lend_t *message, const void *bytes, size_t len)
{
    vnxi_writer_t writer = {0};
    vnxi_lend_t back;

    vnxi_lend_write(&writer, message);
    assert_int_equal(writer.len, len);
    assert_memory_equal(writer.data, bytes, len);
    size_t shortest = has_cause(message) ? STATUS_BYTES : len;
    for (size_t cut = 0; cut < len; cut++) {
        assert_int_equal(is_good(bytes, cut), cut >= shortest);
    }
    vnxi_write_u8(&writer, 0);
    assert_int_equal(is_good(writer.data, writer.len), has_cause(message));
    vnxi_writer_fini(&writer);
    assert_true(vnxi_lend_read(bytes, len, &back));
    assert_int_equal(back.type, message->type);
    assert_true(back.loan == message->loan);
    assert_int_equal(back.count, message->count);
    return back;
}

#define LOAN UINT64_C(0x1122334455667788)
#define LOAN_BYTES "\x88\x77\x66\x55\x44\x33\x22\x11"
#define CHECK_BYTES(message, text) check_bytes(message, text, sizeof text - 1)

static void
test_lend_ask_is_as_documented(void **state)
{
    (void)state;
    const vnxi_lend_t ask = {.type = VNXI_LEND_ASK,
                             .loan = LOAN,
                             .addr = 1,
                             .len = 2,
                             .dev = 3,
                             .from = UINT64_MAX};
    vnxi_lend_t back = CHECK_BYTES(&ask, "\1" LOAN_BYTES "\1\0\0\0\0\0\0\0"
                                         "\2\0\0\0\0\0\0\0"
                                         "\3\0\0\0\0\0\0\0"
                                         "\xff\xff\xff\xff\xff\xff\xff\xff");
    assert_int_equal(back.addr, 1);
    assert_int_equal(back.len, 2);
    assert_int_equal(back.dev, 3);
    assert_true(back.from == UINT64_MAX);
}

static void
test_lend_recall_returned_and_open_have_no_body(void **state)
{
    (void)state;
    CHECK_BYTES(&((vnxi_lend_t){.type = VNXI_LEND_RECALL, .loan = LOAN}),
                "\4" LOAN_BYTES);
    CHECK_BYTES(&((vnxi_lend_t){.type = VNXI_LEND_RETURNED, .loan = LOAN}),
                "\5" LOAN_BYTES);
    CHECK_BYTES(&((vnxi_lend_t){.type = VNXI_LEND_OPEN, .loan = LOAN}),
                "\x8" LOAN_BYTES);
}

/* Of a message of this type: a status from `least` on, and a cause that fits
 * into an error. */
static void
check_status_limits(vnxi_lend_type_t type, unsigned least)
{
    unsigned char bytes[STATUS_BYTES + VNX_ERROR_CAUSE_MAX] = {
        (unsigned char)type};

    for (unsigned status = 0; status < 256; status++) {
        bytes[9] = (unsigned char)status;
        assert_int_equal(is_good(bytes, STATUS_BYTES),
                         status >= least && status < 64);
    }
    bytes[9] = 1;
    for (size_t len = 0; len <= sizeof bytes; len++) {
        assert_int_equal(is_good(bytes, len),
                         len >= STATUS_BYTES && len < sizeof bytes);
    }
    bytes[12] = 0x80;
    assert_false(is_good(bytes, STATUS_BYTES));
}

static void
test_lend_refused_has_status_and_cause(void **state)
{
    (void)state;
    const vnxi_lend_t refused = {.type = VNXI_LEND_REFUSED,
                                 .loan = LOAN,
                                 .status = 9,
                                 .cause = "no",
                                 .count = 2};
    vnxi_lend_t back = CHECK_BYTES(&refused, "\3" LOAN_BYTES "\x9\0\0\0no");
    assert_int_equal(back.status, 9);
    assert_memory_equal(back.cause, "no", 2);

    check_status_limits(VNXI_LEND_REFUSED, 1);
}

static vnxi_lend_piece_t
make_piece(uint64_t start, vnxi_lend_kind_t kind)
{
    vnxi_lend_piece_t piece = {
        .start = start, .size = 0x200000, .id = start + 7, .kind = kind};

    memset(piece.handle, (int)kind + 'a', sizeof piece.handle);
    return piece;
}

static void
test_lend_lent_has_the_allocations(void **state)
{
    (void)state;
    vnxi_lend_piece_t pieces[2] = {make_piece(0x10, VNXI_LEND_LEGACY),
                                   make_piece(0x11, VNXI_LEND_FABRIC)};
    unsigned char bytes[11 + 2 * PIECE_BYTES] = {
        2, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 1, 2};
    const vnxi_lend_t lent = {.type = VNXI_LEND_LENT,
                              .loan = LOAN,
                              .is_last = true,
                              .count = 2,
                              .pieces = pieces};

    for (size_t i = 0; i < 2; i++) {
        unsigned char *at = bytes + 11 + i * PIECE_BYTES;
        at[0] = (unsigned char)(0x10 + i);
        at[10] = 0x20;
        at[16] = (unsigned char)(0x17 + i);
        at[24] = (unsigned char)pieces[i].kind;
        memset(at + 25, at[24] + 'a', VNXI_LEND_HANDLE_SIZE);
    }
    vnxi_lend_t back = check_bytes(&lent, bytes, sizeof bytes);
    assert_true(back.is_last);
    for (size_t i = 0; i < 2; i++) {
        vnxi_lend_piece_t piece = vnxi_lend_piece(&back, i);
        assert_int_equal(piece.start, pieces[i].start);
        assert_int_equal(piece.size, pieces[i].size);
        assert_int_equal(piece.id, pieces[i].id);
        assert_int_equal(piece.kind, pieces[i].kind);
        assert_memory_equal(piece.handle, pieces[i].handle,
                            VNXI_LEND_HANDLE_SIZE);
    }
    for (unsigned value = 0; value < 256; value++) {
        bytes[9] = (unsigned char)value; /* is_last */
        assert_int_equal(is_good(bytes, sizeof bytes), value < 2);
    }
    bytes[9] = 0;
    for (unsigned value = 0; value < 256; value++) {
        bytes[10] = (unsigned char)value; /* count */
        assert_int_equal(is_good(bytes, sizeof bytes), value == 2);
    }
    bytes[10] = 2;
    for (unsigned value = 0; value < 256; value++) {
        bytes[11 + PIECE_BYTES + 24] = (unsigned char)value; /* kind */
        assert_int_equal(is_good(bytes, sizeof bytes),
                         value >= 1 && value <= 3);
    }
}

/* Their ends are addresses, too. */
static void
test_lend_allocations_are_not_empty_and_do_not_wrap(void **state)
{
    (void)state;
    static const struct {
        uint64_t start, size;
        bool is_good;
    } cases[] = {
        {0, 0, false},
        {0, 1, true},
        {0, UINT64_MAX, true},
        {1, UINT64_MAX, false},
        {UINT64_MAX, 0, false},
        {UINT64_MAX, 1, false},
        {UINT64_MAX - 1, 1, true},
        {UINT64_MAX - 0x1fffff, 0x1fffff, true},
        {UINT64_MAX - 0x1fffff, 0x200000, false},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        vnxi_lend_piece_t pieces[2] = {make_piece(1, VNXI_LEND_FD),
                                       make_piece(1, VNXI_LEND_FD)};
        vnxi_writer_t writer = {0};
        pieces[1].start = cases[i].start;
        pieces[1].size = cases[i].size;
        vnxi_lend_write(&writer, &(vnxi_lend_t){.type = VNXI_LEND_LENT,
                                                .count = 2,
                                                .pieces = pieces});
        assert_int_equal(is_good(writer.data, writer.len), cases[i].is_good);
        vnxi_writer_fini(&writer);
    }
}

static void
test_lend_lent_has_a_limit(void **state)
{
    (void)state;
    vnxi_lend_piece_t pieces[VNXI_LEND_PIECES_MAX + 1];

    for (size_t i = 0; i <= VNXI_LEND_PIECES_MAX; i++) {
        pieces[i] = make_piece(i, VNXI_LEND_FD);
    }
    for (size_t count = 0; count <= VNXI_LEND_PIECES_MAX + 1; count++) {
        vnxi_writer_t writer = {0};
        vnxi_lend_write(&writer, &(vnxi_lend_t){.type = VNXI_LEND_LENT,
                                                .count = count,
                                                .pieces = pieces});
        assert_int_equal(is_good(writer.data, writer.len),
                         count > 0 && count <= VNXI_LEND_PIECES_MAX);
        vnxi_writer_fini(&writer);
    }
}

static void
test_lend_check_and_checked_have_loans(void **state)
{
    (void)state;
    static const vnxi_lend_type_t types[] = {VNXI_LEND_CHECK,
                                             VNXI_LEND_CHECKED};
    static uint64_t loans[VNXI_LEND_LOANS_MAX + 1] = {UINT64_MAX, 5};
    static const char *const golden[] = {
        "\6" LOAN_BYTES "\2\0\xff\xff\xff\xff\xff\xff\xff\xff\5\0\0\0\0\0\0\0",
        "\7" LOAN_BYTES
        "\2\0\xff\xff\xff\xff\xff\xff\xff\xff\5\0\0\0\0\0\0\0"};

    for (size_t i = 0; i < 2; i++) {
        vnxi_lend_t message = {
            .type = types[i], .loan = LOAN, .count = 2, .loans = loans};
        vnxi_lend_t back = check_bytes(&message, golden[i], 27);
        assert_true(vnxi_lend_loan(&back, 0) == UINT64_MAX);
        assert_int_equal(vnxi_lend_loan(&back, 1), 5);
        static const size_t counts[] = {0, 1, VNXI_LEND_LOANS_MAX,
                                        VNXI_LEND_LOANS_MAX + 1};
        for (size_t k = 0; k < 4; k++) {
            vnxi_writer_t writer = {0};
            message.count = counts[k];
            vnxi_lend_write(&writer, &message);
            assert_int_equal(is_good(writer.data, writer.len), k < 3);
            assert_true(writer.len <= VNXI_CONTROL_BYTES_MAX);
            vnxi_writer_fini(&writer);
        }
    }
}

/* What the owner answers to OPEN and MOVE. */
static void
test_lend_opened_and_moved_have_a_status(void **state)
{
    (void)state;
    static const struct {
        vnxi_lend_type_t type;
        const char *done, *failed;
    } cases[] = {
        {VNXI_LEND_OPENED, "\x9" LOAN_BYTES "\0\0\0\0",
         "\x9" LOAN_BYTES "\x3f\0\0\0no"},
        {VNXI_LEND_MOVED, "\xb" LOAN_BYTES "\0\0\0\0",
         "\xb" LOAN_BYTES "\x3f\0\0\0no"},
    };

    for (size_t i = 0; i < 2; i++) {
        vnxi_lend_t message = {
            .type = cases[i].type, .loan = LOAN, .cause = ""};
        vnxi_lend_t back = check_bytes(&message, cases[i].done, STATUS_BYTES);
        assert_int_equal(back.status, 0);
        message.status = 63;
        message.cause = "no";
        message.count = 2;
        back = check_bytes(&message, cases[i].failed, STATUS_BYTES + 2);
        assert_int_equal(back.status, 63);
        assert_memory_equal(back.cause, "no", 2);
        check_status_limits(cases[i].type, 0);
    }
}

#define MOVE_BYTES (1 + 8 + 8 + 1 + 1 + 8 + 8 + 8 + 2) /* before its rows */
#define REGION_ADDR UINT64_C(0x1000)
#define REGION_LEN UINT64_C(0x800000)

static vnxi_lend_t
make_move(const vnxi_lend_row_t *rows, size_t count)
{
    return (vnxi_lend_t){.type = VNXI_LEND_MOVE,
                         .loan = LOAN,
                         .window = 7,
                         .half = 1,
                         .is_write = true,
                         .addr = REGION_ADDR,
                         .len = REGION_LEN,
                         .dev = 3,
                         .count = count,
                         .moved = rows};
}

static bool
is_good_move(const vnxi_lend_row_t *rows, size_t count)
{
    vnxi_lend_t move = make_move(rows, count);
    vnxi_writer_t writer = {0};

    vnxi_lend_write(&writer, &move);
    assert_true(writer.len <= VNXI_CONTROL_BYTES_MAX);
    bool good = is_good(writer.data, writer.len);
    vnxi_writer_fini(&writer);
    return good;
}

static void
test_lend_move_is_as_documented(void **state)
{
    (void)state;
    static const vnxi_lend_row_t rows[] = {{0x1234, 0x56, 0x789},
                                           {0x800fff, 0x3fffff, 1}};
    static const char golden[] = "\xa" LOAN_BYTES "\7\0\0\0\0\0\0\0"
                                 "\1\1"
                                 "\0\x10\0\0\0\0\0\0"
                                 "\0\0\x80\0\0\0\0\0"
                                 "\3\0\0\0\0\0\0\0"
                                 "\2\0"
                                 "\x34\x12\0\0\0\0\0\0\x56\0\0\0\x89\7\0\0"
                                 "\xff\xf\x80\0\0\0\0\0\xff\xff\x3f\0\1\0\0\0";
    unsigned char bytes[sizeof golden - 1];
    vnxi_lend_t move = make_move(rows, 2);

    vnxi_lend_t back = CHECK_BYTES(&move, golden);
    assert_int_equal(back.window, 7);
    assert_int_equal(back.half, 1);
    assert_true(back.is_write);
    assert_int_equal(back.addr, REGION_ADDR);
    assert_int_equal(back.len, REGION_LEN);
    assert_int_equal(back.dev, 3);
    for (size_t i = 0; i < 2; i++) {
        vnxi_lend_row_t row = vnxi_lend_row(&back, i);
        assert_int_equal(row.addr, rows[i].addr);
        assert_int_equal(row.offset, rows[i].offset);
        assert_int_equal(row.len, rows[i].len);
    }
    memcpy(bytes, golden, sizeof bytes);
    for (unsigned value = 0; value < 256; value++) {
        bytes[17] = (unsigned char)value; /* half */
        assert_int_equal(is_good(bytes, sizeof bytes), value < 2);
    }
    bytes[17] = 0;
    for (unsigned value = 0; value < 256; value++) {
        bytes[18] = (unsigned char)value; /* is_write */
        assert_int_equal(is_good(bytes, sizeof bytes), value < 2);
    }
    bytes[18] = 0;
    for (unsigned value = 0; value < 256; value++) {
        bytes[MOVE_BYTES - 2] = (unsigned char)value; /* count */
        assert_int_equal(is_good(bytes, sizeof bytes), value == 2);
    }
}

static void
test_lend_move_has_a_limit(void **state)
{
    (void)state;
    static vnxi_lend_row_t rows[VNXI_LEND_ROWS_MAX + 1];

    for (uint32_t i = 0; i <= VNXI_LEND_ROWS_MAX; i++) {
        rows[i] = (vnxi_lend_row_t){REGION_ADDR + i, i, 1};
    }
    assert_false(is_good_move(rows, 0));
    assert_true(is_good_move(rows, 1));
    assert_true(is_good_move(rows, VNXI_LEND_ROWS_MAX));
    assert_false(is_good_move(rows, VNXI_LEND_ROWS_MAX + 1));
}

/* The first row, and the last of two. */
static void
test_lend_moved_rows_are_in_the_region_and_in_the_half(void **state)
{
    (void)state;
    enum { HALF = VNXI_WINDOW_HALF_BYTES };
    static const uint64_t end = REGION_ADDR + REGION_LEN;
    const struct {
        vnxi_lend_row_t row;
        bool is_good;
    } cases[] = {
        {{REGION_ADDR, 0, 1}, true},
        {{REGION_ADDR, 0, 0}, false},
        {{end - 1, 0, 1}, true},
        {{end, 0, 0}, false},
        {{REGION_ADDR - 1, 0, 1}, false},
        {{REGION_ADDR - 1, 0, 2}, false},
        {{REGION_ADDR - HALF, 0, HALF}, false},
        {{end, 0, 1}, false},
        {{end - 1, 0, 2}, false},
        {{end - HALF, 0, HALF}, true},
        {{end - HALF + 1, 0, HALF}, false},
        {{0, 0, 1}, false},
        {{UINT64_MAX, 0, 1}, false},
        {{UINT64_MAX, 0, 2}, false},
        {{UINT64_MAX - 1, 0, UINT32_MAX}, false},
        {{REGION_ADDR, 0, HALF}, true},
        {{REGION_ADDR, 0, HALF + 1}, false},
        {{REGION_ADDR, 1, HALF}, false},
        {{REGION_ADDR, HALF - 1, 1}, true},
        {{REGION_ADDR, HALF - 1, 2}, false},
        {{REGION_ADDR, HALF, 1}, false},
        {{REGION_ADDR, HALF, 0}, false},
        {{REGION_ADDR, UINT32_MAX, 1}, false},
        {{REGION_ADDR, 0, UINT32_MAX}, false},
        {{REGION_ADDR, UINT32_MAX, UINT32_MAX}, false},
        {{REGION_ADDR, 1, UINT32_MAX}, false},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const vnxi_lend_row_t rows[] = {
            cases[i].row, {REGION_ADDR, 0, 1}, cases[i].row};
        if (is_good_move(rows, 1) != cases[i].is_good ||
            is_good_move(rows + 1, 2) != cases[i].is_good) {
            fail_msg("row %zu", i);
        }
    }
}

/* Whether there is such a region is not a question of the message. */
static void
test_lend_moved_regions_may_wrap(void **state)
{
    (void)state;
    const vnxi_lend_row_t inside = {UINT64_MAX - 5, 0, 5},
                          wraps = {UINT64_MAX - 5, 0, 7}, behind = {1, 0, 1};
    const struct {
        uint64_t addr, len;
        const vnxi_lend_row_t *row;
        bool is_good;
    } cases[] = {
        {UINT64_MAX - 10, 10, &inside, true},
        {UINT64_MAX - 10, 10, &wraps, false},
        {UINT64_MAX - 10, 100, &behind, false},
        {0, UINT64_MAX, &inside, true},
        {0, 0, &behind, false},
    };

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        vnxi_lend_t move = make_move(cases[i].row, 1);
        vnxi_writer_t writer = {0};
        move.addr = cases[i].addr;
        move.len = cases[i].len;
        vnxi_lend_write(&writer, &move);
        assert_int_equal(is_good(writer.data, writer.len), cases[i].is_good);
        vnxi_writer_fini(&writer);
    }
}

static void
test_lend_other_types_are_refused(void **state)
{
    (void)state;
    unsigned char bytes[9] = {0};

    for (unsigned type = 0; type < 256; type++) {
        bytes[0] = (unsigned char)type;
        assert_int_equal(is_good(bytes, sizeof bytes),
                         type == VNXI_LEND_RECALL ||
                             type == VNXI_LEND_RETURNED ||
                             type == VNXI_LEND_OPEN);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lend_ask_is_as_documented),
        cmocka_unit_test(test_lend_recall_returned_and_open_have_no_body),
        cmocka_unit_test(test_lend_refused_has_status_and_cause),
        cmocka_unit_test(test_lend_lent_has_the_allocations),
        cmocka_unit_test(test_lend_allocations_are_not_empty_and_do_not_wrap),
        cmocka_unit_test(test_lend_lent_has_a_limit),
        cmocka_unit_test(test_lend_check_and_checked_have_loans),
        cmocka_unit_test(test_lend_opened_and_moved_have_a_status),
        cmocka_unit_test(test_lend_move_is_as_documented),
        cmocka_unit_test(test_lend_move_has_a_limit),
        cmocka_unit_test(
            test_lend_moved_rows_are_in_the_region_and_in_the_half),
        cmocka_unit_test(test_lend_moved_regions_may_wrap),
        cmocka_unit_test(test_lend_other_types_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
