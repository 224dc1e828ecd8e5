#include "vnx_test.h"

#include "engine/native/shm/link_frame.h"
#include "engine/native/shm/revocations.h"

/* What a peer that loaded metadata of `epoch` is told: the number of rows and
 * the epoch before which all is gone (0: nothing is). */
static size_t
told(vnxi_revocations_t *log, uint64_t epoch, uint64_t *all_p)
{
    vnxi_writer_t frames = {0};
    vnxi_link_frame_reader_t reader = {
        .allowed = VNXI_LINK_FRAME_BIT(VNXI_LINK_FRAME_REVOKE)};
    vnxi_link_frame_t frame;
    uint64_t frame_epoch;
    uint32_t count;
    size_t rows = 0;

    *all_p = 0;
    vnxi_revocations_write_since(log, epoch, &frames);
    assert_false(frames.failed);
    vnxi_link_frame_reader_feed(&reader, frames.data, frames.len);
    while (vnxi_link_frame_reader_next(&reader, &frame) ==
           VNXI_LINK_FRAME_WHOLE) {
        assert_true(vnxi_link_frame_read_revoke(&frame, &frame_epoch, &count));
        assert_true(frame_epoch > epoch);
        rows += count;
        if (count == 0) {
            *all_p = frame_epoch;
        }
    }
    vnxi_link_frame_reader_fini(&reader);
    vnxi_writer_fini(&frames);
    return rows;
}

static void
test_revocations_since_an_epoch_are_told(void **state)
{
    (void)state;
    vnxi_revocations_t log;
    uint64_t all;

    vnxi_revocations_init(&log);
    assert_int_equal(told(&log, 0, &all), 0);
    for (uint64_t epoch = 1; epoch <= 10; epoch++) {
        vnx_desc_t descs[2] = {{epoch, 1, 0}, {epoch, 2, 0}};
        vnxi_revocations_add(&log, epoch, VNX_MEM_DRAM, descs, 2);
    }
    assert_int_equal(told(&log, 0, &all), 20);
    assert_int_equal(told(&log, 7, &all), 6);
    assert_int_equal(told(&log, 10, &all), 0);
    assert_int_equal(all, 0);
    vnxi_revocations_fini(&log);
}

static void
test_revocations_who_is_far_behind_forgets_all(void **state)
{
    (void)state;
    vnxi_revocations_t log;
    uint64_t all;

    vnxi_revocations_init(&log);
    for (uint64_t epoch = 1; epoch <= VNXI_REVOCATIONS_MAX + 5; epoch++) {
        vnx_desc_t desc = {epoch, 1, 0};
        vnxi_revocations_add(&log, epoch, VNX_MEM_DRAM, &desc, 1);
    }
    assert_int_equal(told(&log, 2, &all), VNXI_REVOCATIONS_MAX);
    assert_int_equal(all, 5);
    assert_int_equal(told(&log, 5, &all), VNXI_REVOCATIONS_MAX);
    assert_int_equal(all, 0);
    vnxi_revocations_fini(&log);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_revocations_since_an_epoch_are_told),
        cmocka_unit_test(test_revocations_who_is_far_behind_forgets_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
