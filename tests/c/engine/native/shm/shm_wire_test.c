#include "damaged.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/native/shm/shm_wire.h"

static const vnxi_shm_info_t sample = {
    .boot = {255, 254, 253, 252, 251, 250, 249, 248, 247, 246, 245, 244, 243,
             242, 241, 240},
    .pid_namespace = 0xf0000001,
    .pid = 0x01020304,
    .start_time = 0x0a0b0c0d,
    .uid = 1000,
    .nonce_addr = 0x7f0011223344,
    .socket = "vnx-AB",
};

static const char sample_bytes[] =
    "\x01\x00\x00\x00" /* version 1.0 */
    "\x04\x03\x02\x01" /* pid */
    "\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8\xf7\xf6\xf5\xf4\xf3\xf2\xf1\xf0"
    "\x01\x00\x00\xf0\x00\x00\x00\x00" /* pid namespace */
    "\x0d\x0c\x0b\x0a\x00\x00\x00\x00" /* start time */
    "\x44\x33\x22\x11\x00\x7f\x00\x00" /* nonce */
    "\xe8\x03\x00\x00"                 /* uid */
    "\x06\x00vnx-AB"
    "\xe7\xd9\xa2\x62\x72\x28\xc2\x13" /* checksum */;
#define SAMPLE_SIZE (sizeof sample_bytes - 1)
#define HASH_SIZE 8
#define PID_AT 4
#define SOCKET_LEN_AT 52

static void
assert_info_refused(const void *data, size_t len, const char *cause)
{
    vnxi_shm_info_t info = {.pid = 77};
    vnx_error_t error = {0};
    assert_int_equal(vnxi_shm_info_read(data, len, &info, &error),
                     VNX_ERR_MISMATCH);
    if (strstr(error.cause, cause) == NULL) {
        fail_msg("'%s' is not in '%s'", cause, error.cause);
    }
    assert_int_equal(info.pid, 77);
}

/* -- Connection info -------------------------------------------------------
 */

static void
test_shm_info_writes_the_golden_bytes(void **state)
{
    (void)state;
    vnxi_writer_t writer = {0};
    vnxi_shm_info_write(&writer, &sample);
    assert_false(writer.failed);
    assert_int_equal(writer.len, SAMPLE_SIZE);
    assert_memory_equal(writer.data, sample_bytes, SAMPLE_SIZE);
    vnxi_writer_fini(&writer);
}

static void
test_shm_info_reads_what_was_written(void **state)
{
    (void)state;
    vnxi_shm_info_t info;
    assert_int_equal(
        vnxi_shm_info_read(sample_bytes, SAMPLE_SIZE, &info, NULL), VNX_OK);
    assert_memory_equal(info.boot, sample.boot, VNXI_SHM_ID_SIZE);
    assert_true(info.pid_namespace == sample.pid_namespace);
    assert_int_equal(info.pid, sample.pid);
    assert_true(info.start_time == sample.start_time);
    assert_int_equal(info.uid, sample.uid);
    assert_true(info.nonce_addr == sample.nonce_addr);
    assert_string_equal(info.socket, sample.socket);
}

static void
test_shm_info_longest_socket_name_fits(void **state)
{
    (void)state;
    vnxi_shm_info_t info = sample, read;
    vnxi_writer_t writer = {0};

    memset(info.socket, 's', VNXI_SHM_SOCKET_MAX - 1);
    info.socket[VNXI_SHM_SOCKET_MAX - 1] = '\0';
    vnxi_shm_info_write(&writer, &info);
    assert_int_equal(vnxi_shm_info_read(writer.data, writer.len, &read, NULL),
                     VNX_OK);
    assert_string_equal(read.socket, info.socket);
    vnxi_writer_fini(&writer);
}

/* Make the checksum that of what stands before it. */
static void
seal(char *bytes)
{
    uint64_t hash = vnxi_hash(bytes, SAMPLE_SIZE - HASH_SIZE);
    memcpy(bytes + SAMPLE_SIZE - HASH_SIZE, &hash, sizeof hash);
}

static void
test_shm_info_of_a_later_minor_version_is_accepted(void **state)
{
    (void)state;
    char longer[SAMPLE_SIZE + 20];
    vnxi_shm_info_t info;

    memset(longer, 0x77, sizeof longer);
    memcpy(longer, sample_bytes, SAMPLE_SIZE);
    longer[1] = 9;
    longer[3] = (char)0x80; /* a flag that means nothing yet */
    seal(longer);
    assert_int_equal(vnxi_shm_info_read(longer, sizeof longer, &info, NULL),
                     VNX_OK);
    assert_string_equal(info.socket, sample.socket);
}

static void
test_shm_info_of_another_major_version_is_refused(void **state)
{
    (void)state;
    damaged_version(sample_bytes, SAMPLE_SIZE, assert_info_refused);
}

static void
test_shm_info_cut_off_anywhere_is_refused(void **state)
{
    (void)state;
    damaged_end(sample_bytes, SAMPLE_SIZE, assert_info_refused);
}

static void
test_shm_info_changed_anywhere_is_refused(void **state)
{
    (void)state;
    damaged_bits(sample_bytes, SAMPLE_SIZE, assert_info_refused);
}

static void
test_shm_info_impossible_values_are_refused(void **state)
{
    (void)state;
    char bytes[SAMPLE_SIZE + VNXI_SHM_SOCKET_MAX];

    memset(bytes, 'x', sizeof bytes);
    memcpy(bytes, sample_bytes, SAMPLE_SIZE);
    bytes[SOCKET_LEN_AT] = 0;
    assert_info_refused(bytes, sizeof bytes, "socket name");
    bytes[SOCKET_LEN_AT] = VNXI_SHM_SOCKET_MAX;
    assert_info_refused(bytes, sizeof bytes, "socket name");
    memcpy(bytes, sample_bytes, SAMPLE_SIZE);
    bytes[SAMPLE_SIZE - HASH_SIZE - 1] = '\0';
    assert_info_refused(bytes, SAMPLE_SIZE, "socket name");
    bytes[SOCKET_LEN_AT + 1] = (char)0xff;
    assert_info_refused(bytes, sizeof bytes, "cut off");

    /* To the kernel these are not one process: 0, -1, and -2^31. */
    const uint32_t pids[] = {0, UINT32_MAX, (uint32_t)INT32_MAX + 1};
    for (size_t i = 0; i < 3; i++) {
        memcpy(bytes, sample_bytes, SAMPLE_SIZE);
        memcpy(bytes + PID_AT, &pids[i], sizeof pids[i]);
        assert_info_refused(bytes, SAMPLE_SIZE, "invalid process id");
    }
}

/* -- This process ----------------------------------------------------------
 */

static void
test_shm_info_local_describes_this_process(void **state)
{
    (void)state;
    vnxi_shm_info_t info = {.nonce_addr = 5, .socket = "kept"}, again = {0};
    struct stat st;
    const unsigned char zeros[VNXI_SHM_ID_SIZE] = {0};

    assert_int_equal(vnxi_shm_info_local(&info, NULL), VNX_OK);
    assert_int_equal(info.pid, getpid());
    assert_int_equal(info.uid, geteuid());
    assert_int_equal(stat("/proc/self/ns/pid", &st), 0);
    assert_true(info.pid_namespace == st.st_ino);
    assert_memory_not_equal(info.boot, zeros, sizeof zeros);
    assert_true(info.nonce_addr == 5);
    assert_string_equal(info.socket, "kept");

    assert_int_equal(vnxi_shm_info_local(&again, NULL), VNX_OK);
    assert_memory_equal(again.boot, info.boot, VNXI_SHM_ID_SIZE);
    assert_true(again.start_time == info.start_time);
}

static void
test_shm_info_local_has_the_boot_id_of_the_kernel(void **state)
{
    (void)state;
    vnxi_shm_info_t info = {0};
    char expected[40] = "", text[40] = "";

    assert_int_equal(vnxi_shm_info_local(&info, NULL), VNX_OK);
    FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");
    assert_non_null(file);
    assert_non_null(fgets(expected, 37, file));
    fclose(file);
    const unsigned char *b = info.boot;
    snprintf(text, sizeof text,
             "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-"
             "%02x%02x%02x%02x%02x%02x",
             b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10],
             b[11], b[12], b[13], b[14], b[15]);
    assert_string_equal(text, expected);
}

/* -- Regions ---------------------------------------------------------------
 */

static const vnxi_map_info_t shared = {.fd = 0x0102,
                                       .offset = 0x1122334455667788,
                                       .st_dev = 0x15,
                                       .st_ino = 0xabcdef};
static const char shared_bytes[] = "\x01\x00\x01\x00"
                                   "\x02\x01\x00\x00"
                                   "\x88\x77\x66\x55\x44\x33\x22\x11"
                                   "\x15\x00\x00\x00\x00\x00\x00\x00"
                                   "\xef\xcd\xab\x00\x00\x00\x00\x00";
#define SHARED_SIZE (sizeof shared_bytes - 1)

static void
test_shm_region_golden_bytes_both_ways(void **state)
{
    (void)state;
    vnxi_writer_t writer = {0};
    vnxi_map_info_t map_info;

    vnxi_shm_region_write(&writer, &shared);
    assert_int_equal(writer.len, SHARED_SIZE);
    assert_memory_equal(writer.data, shared_bytes, SHARED_SIZE);
    assert_int_equal(
        vnxi_shm_region_read(writer.data, writer.len, &map_info, NULL),
        VNX_OK);
    assert_int_equal(map_info.fd, shared.fd);
    assert_true(map_info.offset == shared.offset);
    assert_true(map_info.st_dev == shared.st_dev);
    assert_true(map_info.st_ino == shared.st_ino);
    vnxi_writer_fini(&writer);
}

static void
test_shm_region_of_private_memory_takes_four_bytes(void **state)
{
    (void)state;
    vnxi_writer_t writer = {0};
    vnxi_map_info_t map_info = shared;

    vnxi_shm_region_write(&writer, &VNXI_MAP_INFO_NONE);
    assert_int_equal(writer.len, 4);
    assert_memory_equal(writer.data, "\x01\x00\x00\x00", 4);
    assert_int_equal(
        vnxi_shm_region_read(writer.data, writer.len, &map_info, NULL),
        VNX_OK);
    assert_int_equal(map_info.fd, -1);
    vnxi_writer_fini(&writer);
}

static void
test_shm_region_refuses_unknown_kinds(void **state)
{
    (void)state;
    char bytes[SHARED_SIZE + 4] = {0};
    vnxi_map_info_t map_info;
    vnx_error_t error;

    memcpy(bytes, shared_bytes, SHARED_SIZE);
    for (size_t len = 0; len < SHARED_SIZE; len++) {
        assert_int_equal(vnxi_shm_region_read(bytes, len, &map_info, &error),
                         VNX_ERR_MISMATCH);
        assert_non_null(strstr(error.cause, "cut off"));
    }
    bytes[7] = (char)0x80;
    assert_int_equal(
        vnxi_shm_region_read(bytes, SHARED_SIZE, &map_info, &error),
        VNX_ERR_MISMATCH);
    assert_non_null(strstr(error.cause, "invalid descriptor"));
    bytes[7] = 0;
    bytes[0] = 3;
    assert_int_equal(
        vnxi_shm_region_read(bytes, SHARED_SIZE, &map_info, &error),
        VNX_ERR_MISMATCH);
    bytes[0] = 1;
    bytes[1] = 1; /* a later minor version, with more behind */
    assert_int_equal(
        vnxi_shm_region_read(bytes, sizeof bytes, &map_info, &error), VNX_OK);
    assert_int_equal(map_info.fd, shared.fd);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shm_info_writes_the_golden_bytes),
        cmocka_unit_test(test_shm_info_reads_what_was_written),
        cmocka_unit_test(test_shm_info_longest_socket_name_fits),
        cmocka_unit_test(test_shm_info_of_a_later_minor_version_is_accepted),
        cmocka_unit_test(test_shm_info_of_another_major_version_is_refused),
        cmocka_unit_test(test_shm_info_cut_off_anywhere_is_refused),
        cmocka_unit_test(test_shm_info_changed_anywhere_is_refused),
        cmocka_unit_test(test_shm_info_impossible_values_are_refused),
        cmocka_unit_test(test_shm_info_local_describes_this_process),
        cmocka_unit_test(test_shm_info_local_has_the_boot_id_of_the_kernel),
        cmocka_unit_test(test_shm_region_golden_bytes_both_ways),
        cmocka_unit_test(test_shm_region_of_private_memory_takes_four_bytes),
        cmocka_unit_test(test_shm_region_refuses_unknown_kinds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
