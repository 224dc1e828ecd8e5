#include "vnx_test.h"

#include <string.h>

#include <errno.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/error.h"

static void
test_error_names_operation_row_peer_and_cause(void **state)
{
    (void)state;
    vnx_error_t error;
    char line[512];

    assert_int_equal(vnxi_error_set(&error, VNX_ERR_NOT_FOUND,
                                    "vnx_dlist_create", "no region %s",
                                    "holds it"),
                     VNX_ERR_NOT_FOUND);
    vnxi_error_desc(&error, 3, 0x10, 32, 7);
    vnxi_error_peer(&error, "B\n", 2);
    vnx_error_format(&error, line, sizeof line);
    assert_string_equal(line, "NIXL_ERR_NOT_FOUND: vnx_dlist_create: row 3 "
                              "(address 0x10, length 32, device 7), peer "
                              "'B?': no region holds it");
}

static void
test_error_cause_can_be_extended(void **state)
{
    (void)state;
    vnx_error_t error;

    vnxi_error_set(&error, VNX_ERR_BACKEND, "x", "refused");
    vnxi_error_add(&error, "; try %s", "again");
    assert_string_equal(error.cause, "refused; try again");
    for (int i = 0; i < VNX_ERROR_CAUSE_MAX; i++) {
        vnxi_error_add(&error, "%s", "more");
    }
    assert_int_equal(strlen(error.cause), VNX_ERROR_CAUSE_MAX - 1);
    vnxi_error_add(NULL, "more");
}

static void
test_error_format_cuts_to_the_buffer(void **state)
{
    (void)state;
    vnx_error_t error;
    char line[8];

    vnxi_error_set(&error, VNX_ERR_TIMEOUT, "vnx_agent_wait", "2 are open");
    int whole = vnx_error_format(&error, line, sizeof line);
    assert_int_equal(strlen(line), 7);
    assert_int_equal(whole,
                     strlen("NIXL_ERR_TIMEOUT: vnx_agent_wait: 2 are open"));
}

static void
test_error_without_a_record_still_gives_the_status(void **state)
{
    (void)state;
    assert_int_equal(vnxi_error_set(NULL, VNX_ERR_BACKEND, "x", "y"),
                     VNX_ERR_BACKEND);
    vnxi_error_row(NULL, 1);
    vnxi_error_desc(NULL, 1, 2, 3, 4);
    vnxi_error_peer(NULL, "a", 1);
}

static void
test_error_long_peer_and_cause_are_cut(void **state)
{
    (void)state;
    vnx_error_t error;
    char name[1000];

    memset(name, 'n', sizeof name);
    name[sizeof name - 1] = '\0';
    vnxi_error_set(&error, VNX_ERR_BACKEND, "x", "%s", name);
    vnxi_error_peer(&error, name, sizeof name);
    assert_int_equal(strlen(error.peer), VNX_ERROR_PEER_MAX - 1);
    assert_int_equal(strlen(error.cause), VNX_ERROR_CAUSE_MAX - 1);
}

static void
test_status_table_has_every_status_once(void **state)
{
    (void)state;
    int seen[256] = {0};
    unsigned count = 0;
#define CHECK(sym, num, name, text, pyclass)                            \
    assert_string_equal(vnx_status_name(sym), name);                    \
    assert_string_equal(vnx_status_text(sym), text);                    \
    assert_int_equal(seen[(num) + 200]++, 0);                           \
    assert_int_equal((num) >= 0, vnx_status_python_class(sym) == NULL); \
    assert_int_equal(vnx_status_index(sym), count);                     \
    assert_int_equal(vnx_status_at(count++), sym);
    VNX_STATUS_TABLE(CHECK)
#undef CHECK
    assert_string_equal(vnx_status_name((vnx_status_t)-77),
                        "NIXL_ERR_UNKNOWN");
    assert_int_equal(count, VNX_STATUS_COUNT);
    assert_int_equal(vnx_status_index((vnx_status_t)-77),
                     vnx_status_index(VNX_ERR_UNKNOWN));
    assert_int_equal(vnx_status_at(VNX_STATUS_COUNT), VNX_ERR_UNKNOWN);
}

/* The words for an errno name the limit of descriptors, and only where it is
 * to blame. */
static void
test_error_names_the_limit_of_descriptors(void **state)
{
    struct rlimit before, low;
    char words[VNXI_ERRNO_TEXT], expected[VNXI_ERRNO_TEXT];
    (void)state;
    assert_string_equal(vnxi_errno(ENOENT), "No such file or directory");
    assert_string_equal(vnxi_errno(-5), strerror(-5));
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    low = before;
    low.rlim_cur = 300;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
    assert_string_equal(vnxi_descriptors(), "");
    assert_false(vnxi_descriptors_are_scarce());

    int first = dup(0), last = first, fd;
    while ((fd = dup(0)) >= 0) {
        last = fd;
    }
    assert_int_equal(errno, EMFILE);
    snprintf(expected, sizeof expected,
             " (descriptors: 300 of 300 in use (RLIMIT_NOFILE); raise it with "
             "ulimit -n)");
    assert_string_equal(vnxi_descriptors_text(words), expected);
    assert_true(vnxi_descriptors_are_scarce());
    assert_string_equal(
        vnxi_errno_text(EMFILE, words) + strlen(strerror(EMFILE)), expected);
    close(last);
    assert_non_null(strstr(vnxi_descriptors(), "299 of 300"));
    for (fd = first; fd < last; fd++) {
        close(fd);
    }
    assert_string_equal(vnxi_descriptors(), "");
    assert_non_null(strstr(vnxi_errno(ENFILE), "fs.file-max"));
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_error_names_the_limit_of_descriptors),
        cmocka_unit_test(test_error_names_operation_row_peer_and_cause),
        cmocka_unit_test(test_error_cause_can_be_extended),
        cmocka_unit_test(test_error_format_cuts_to_the_buffer),
        cmocka_unit_test(test_error_without_a_record_still_gives_the_status),
        cmocka_unit_test(test_error_long_peer_and_cause_are_cut),
        cmocka_unit_test(test_status_table_has_every_status_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
