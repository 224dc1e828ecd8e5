#include "mapping_help.h"

#include <fcntl.h>
#include <sys/wait.h>

#include "base/pidfd.h"
#include "engine/native/shm/proc.h"

static int
open_pidfd(pid_t pid)
{
    int fd = vnxi_pidfd_open(pid);
    assert_true(fd >= 0);
    return fd;
}

/* A buffer of this process, to be mapped a second time as if by a peer. */
typedef struct fixture {
    vnx_shared_buffer_t *buffer;
    unsigned char *data;
    vnxi_map_info_t map_info;
    int pidfd;
} fixture_t;

static int
setup(void **state)
{
    fixture_t *fixture = calloc(1, sizeof *fixture);
    fixture->buffer = make_buffer(SIZE);
    fixture->data = vnx_shared_buffer_data(fixture->buffer);
    fixture->map_info = find(fixture->data, SIZE);
    fixture->pidfd = open_pidfd(getpid());
    *state = fixture;
    return fixture->map_info.fd < 0;
}

static int
teardown(void **state)
{
    fixture_t *fixture = *state;
    vnxi_map_info_fini(&fixture->map_info);
    vnx_shared_buffer_free(fixture->buffer);
    close(fixture->pidfd);
    free(fixture);
    return 0;
}

static void
assert_not_mapped(const fixture_t *fixture, const vnxi_map_info_t *map_info,
                  uint64_t len, const char *cause)
{
    vnxi_mapping_t *map = NULL;
    vnx_error_t error = {0};
    assert_int_equal(
        vnxi_mapping_create(fixture->pidfd, map_info, len, &map, &error),
        VNX_ERR_MISMATCH);
    if (strstr(error.cause, cause) == NULL) {
        fail_msg("'%s' is not in '%s'", cause, error.cause);
    }
    assert_null(map);
}

static void
test_mapping_shows_the_same_bytes(void **state)
{
    const fixture_t *fixture = *state;
    vnxi_mapping_t *map = NULL;
    size_t fds = open_fds();

    memset(fixture->data, 1, SIZE);
    assert_int_equal(vnxi_mapping_create(fixture->pidfd, &fixture->map_info,
                                         SIZE, &map, NULL),
                     VNX_OK);
    unsigned char *seen = vnxi_mapping_data(map);
    assert_ptr_not_equal(seen, fixture->data);
    assert_memory_equal(seen, fixture->data, SIZE);
    seen[SIZE - 1] = 0x77;
    assert_int_equal(fixture->data[SIZE - 1], 0x77);
    assert_int_equal(open_fds(), fds);
    vnxi_mapping_release(map);
    vnxi_mapping_release(NULL);
}

static void
test_mapping_of_an_unaligned_part(void **state)
{
    const fixture_t *fixture = *state;
    vnxi_mapping_t *map = NULL;
    vnxi_map_info_t part = fixture->map_info;

    part.offset = 4096 + 123;
    fixture->data[part.offset] = 0xaa;
    fixture->data[part.offset + 999] = 0xbb;
    assert_int_equal(
        vnxi_mapping_create(fixture->pidfd, &part, 1000, &map, NULL), VNX_OK);
    const unsigned char *seen = vnxi_mapping_data(map);
    assert_int_equal(seen[0], 0xaa);
    assert_int_equal(seen[999], 0xbb);
    vnxi_mapping_release(map);
}

static void
test_mapping_lives_until_the_last_reference(void **state)
{
    const fixture_t *fixture = *state;
    vnxi_mapping_t *map = NULL;

    assert_int_equal(vnxi_mapping_create(fixture->pidfd, &fixture->map_info,
                                         SIZE, &map, NULL),
                     VNX_OK);
    unsigned char *seen = vnxi_mapping_data(map);
    assert_ptr_equal(vnxi_mapping_retain(map), map);
    vnxi_mapping_release(map);
    seen[5] = 5;
    assert_int_equal(fixture->data[5], 5);
    vnxi_mapping_release(map);
    vnxi_proc_vma_t hole;
    assert_false(vnxi_proc_vma_find((uintptr_t)seen, &hole) &&
                 hole.st_ino == fixture->map_info.st_ino &&
                 hole.start == (uintptr_t)seen);
}

static void
test_mapping_stays_below_the_kernels_limit(void **state)
{
    const fixture_t *fixture = *state;
    static vnxi_mapping_t *maps[VNXI_MAPPINGS_MAX];
    vnxi_mapping_t *more = NULL;
    vnx_error_t error;

    for (size_t i = 0; i < VNXI_MAPPINGS_MAX; i++) {
        assert_int_equal(vnxi_mapping_create(fixture->pidfd,
                                             &fixture->map_info, 4096,
                                             &maps[i], &error),
                         VNX_OK);
    }
    assert_int_equal(vnxi_mapping_create(fixture->pidfd, &fixture->map_info,
                                         4096, &more, &error),
                     VNX_ERR_BACKEND);
    assert_non_null(strstr(error.cause, "which is the limit"));
    assert_null(more);
    /* Releasing one makes room for another. */
    vnxi_mapping_release(maps[0]);
    assert_int_equal(vnxi_mapping_create(fixture->pidfd, &fixture->map_info,
                                         4096, &maps[0], &error),
                     VNX_OK);
    for (size_t i = 0; i < VNXI_MAPPINGS_MAX; i++) {
        vnxi_mapping_release(maps[i]);
    }
}

static void
test_mapping_refuses_impossible_ranges(void **state)
{
    const fixture_t *fixture = *state;
    vnxi_map_info_t map_info = fixture->map_info;

    assert_not_mapped(fixture, &map_info, 0, "range is invalid");
    assert_not_mapped(fixture, &map_info, SIZE + 1, "shorter");
    assert_not_mapped(fixture, &map_info, INT64_MAX, "shorter");
    assert_not_mapped(fixture, &map_info, UINT64_MAX, "range is invalid");
    map_info.offset = 1;
    assert_not_mapped(fixture, &map_info, SIZE, "shorter");
    assert_not_mapped(fixture, &map_info, UINT64_MAX, "range is invalid");
    map_info.offset = UINT64_MAX - 10;
    assert_not_mapped(fixture, &map_info, 10, "range is invalid");
}

static void
test_mapping_refuses_another_file(void **state)
{
    const fixture_t *fixture = *state;
    vnxi_map_info_t map_info = fixture->map_info;
    int ends[2];

    map_info.st_ino++;
    assert_not_mapped(fixture, &map_info, SIZE, "not the file");
    map_info = fixture->map_info;
    map_info.st_dev++;
    assert_not_mapped(fixture, &map_info, SIZE, "not the file");
    assert_int_equal(pipe(ends), 0);
    map_info = fixture->map_info;
    map_info.fd = ends[0];
    assert_not_mapped(fixture, &map_info, SIZE, "not the file");
    close(ends[0]);
    close(ends[1]);
    assert_not_mapped(fixture, &map_info, SIZE, "no such descriptor");
    map_info.fd = INT32_MAX;
    assert_not_mapped(fixture, &map_info, SIZE, "no such descriptor");
}

static void
test_mapping_refuses_a_file_that_could_shrink(void **state)
{
    const fixture_t *fixture = *state;
    struct stat st;
    int fd = make_memfd(MFD_ALLOW_SEALING, SIZE);

    assert_int_equal(fstat(fd, &st), 0);
    vnxi_map_info_t map_info = {
        .fd = fd, .st_dev = st.st_dev, .st_ino = st.st_ino};
    assert_not_mapped(fixture, &map_info, SIZE, "could shrink");
    /* Only its owner seals it. */
    assert_int_equal(fcntl(fd, F_GET_SEALS), 0);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_WRITE), 0);
    assert_not_mapped(fixture, &map_info, SIZE, "against writing");
    close(fd);
}

static void
test_mapping_refuses_a_read_only_descriptor(void **state)
{
    const fixture_t *fixture = *state;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fixture->map_info.fd);
    vnxi_map_info_t map_info = fixture->map_info;
    map_info.fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(map_info.fd >= 0);
    assert_not_mapped(fixture, &map_info, SIZE, "reading and writing");
    close(map_info.fd);
}

/* -- Two processes ---------------------------------------------------------
 */

typedef struct child {
    pid_t pid;
    int to, from; /* pipes */
} child_t;

/* Fork; the child runs `run` with its two pipe ends and exits with what that
 * returns. */
static child_t
start_child(int (*run)(int in, int out))
{
    int in[2], out[2];
    assert_int_equal(pipe(in), 0);
    assert_int_equal(pipe(out), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        close(in[1]);
        close(out[0]);
        _exit(run(in[0], out[1]));
    }
    close(in[0]);
    close(out[1]);
    return (child_t){.pid = pid, .to = in[1], .from = out[0]};
}

static int
end_child(const child_t *child)
{
    int status = -1;
    close(child->to);
    close(child->from);
    assert_int_equal(waitpid(child->pid, &status, 0), child->pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

/* Own a buffer, publish it, wait for the other side to have written. */
static int
own_buffer(int in, int out)
{
    char go;
    vnx_shared_buffer_t *buffer = NULL;
    if (vnx_shared_buffer_create(SIZE, &buffer, NULL) != VNX_OK) {
        return 1;
    }
    unsigned char *data = vnx_shared_buffer_data(buffer);
    memset(data, 0x42, SIZE);
    vnxi_map_info_t map_info = find(data, SIZE);
    if (write(out, &map_info, sizeof map_info) != sizeof map_info ||
        read(in, &go, 1) != 1) {
        return 2;
    }
    return data[1000] == 0x43 ? 0 : 3;
}

static void
test_mapping_of_another_process(void **state)
{
    (void)state;
    vnxi_map_info_t map_info;
    vnxi_mapping_t *map = NULL;
    vnx_error_t error;
    child_t child = start_child(own_buffer);
    int pidfd = open_pidfd(child.pid);

    assert_int_equal(read(child.from, &map_info, sizeof map_info),
                     sizeof map_info);
    assert_true(map_info.fd >= 0);
    assert_int_equal(vnxi_mapping_create(pidfd, &map_info, SIZE, &map, &error),
                     VNX_OK);
    unsigned char *seen = vnxi_mapping_data(map);
    assert_int_equal(seen[0], 0x42);
    assert_int_equal(seen[SIZE - 1], 0x42);
    seen[1000] = 0x43;
    assert_int_equal(write(child.to, "g", 1), 1);
    assert_int_equal(end_child(&child), 0);

    /* The owner is gone: existing mappings stay, new ones fail. */
    assert_int_equal(seen[1000], 0x43);
    vnxi_mapping_t *late = NULL;
    assert_int_equal(
        vnxi_mapping_create(pidfd, &map_info, SIZE, &late, &error),
        VNX_ERR_REMOTE_DISCONNECT);
    vnxi_mapping_release(map);
    close(pidfd);
}

static vnx_shared_buffer_t *inherited;
static vnxi_mapping_t *inherited_map;

/* In a child: the parent's objects are not touched, and new ones work. */
static int
work_in_child(int in, int out)
{
    (void)in;
    (void)out;
    unsigned char *data = vnx_shared_buffer_data(inherited);
    vnx_shared_buffer_free(inherited);
    vnxi_mapping_release(inherited_map);
    data[0] = 0x11; /* still mapped, still the parent's */

    vnxi_map_info_t map_info = find(data, SIZE);
    bool found = map_info.fd >= 0;
    vnxi_map_info_fini(&map_info);
    vnx_shared_buffer_t *own = NULL;
    if (!found || vnx_shared_buffer_create(SIZE, &own, NULL) != VNX_OK) {
        return 1;
    }
    map_info = find(vnx_shared_buffer_data(own), SIZE);
    found = map_info.fd >= 0;
    vnxi_map_info_fini(&map_info);
    vnx_shared_buffer_free(own);
    return found ? 0 : 2;
}

static void
test_mapping_in_a_forked_child(void **state)
{
    const fixture_t *fixture = *state;
    inherited = fixture->buffer;
    assert_int_equal(vnxi_mapping_create(fixture->pidfd, &fixture->map_info,
                                         SIZE, &inherited_map, NULL),
                     VNX_OK);
    child_t child = start_child(work_in_child);
    assert_int_equal(end_child(&child), 0);
    assert_int_equal(fixture->data[0], 0x11);
    vnxi_map_info_t map_info = find(fixture->data, SIZE);
    assert_int_equal(map_info.fd, fixture->map_info.fd);
    vnxi_map_info_fini(&map_info);
    vnxi_mapping_release(inherited_map);
}

#define TEST_MAP(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST_MAP(test_mapping_shows_the_same_bytes),
        TEST_MAP(test_mapping_of_an_unaligned_part),
        TEST_MAP(test_mapping_lives_until_the_last_reference),
        TEST_MAP(test_mapping_stays_below_the_kernels_limit),
        TEST_MAP(test_mapping_refuses_impossible_ranges),
        TEST_MAP(test_mapping_refuses_another_file),
        TEST_MAP(test_mapping_refuses_a_file_that_could_shrink),
        TEST_MAP(test_mapping_refuses_a_read_only_descriptor),
        cmocka_unit_test(test_mapping_of_another_process),
        TEST_MAP(test_mapping_in_a_forked_child),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
