#include "mapping_help.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>

#include "engine/native/shm/proc.h"

/* -- Shared buffers --------------------------------------------------------
 */

static void
test_shared_buffer_is_zeroed_and_writable(void **state)
{
    (void)state;
    vnx_shared_buffer_t *buffer = make_buffer(100001);
    unsigned char *data = vnx_shared_buffer_data(buffer);

    assert_int_equal(vnx_shared_buffer_size(buffer), 100001);
    for (size_t i = 0; i < 100001; i++) {
        assert_int_equal(data[i], 0);
    }
    memset(data, 0x5a, 100001);
    assert_int_equal(data[100000], 0x5a);
    vnx_shared_buffer_free(buffer);
    vnx_shared_buffer_free(NULL);
}

static void
test_shared_buffer_refuses_impossible_sizes(void **state)
{
    (void)state;
    vnx_shared_buffer_t *buffer = NULL;
    vnx_error_t error;
    size_t fds = open_fds();

    assert_int_equal(vnx_shared_buffer_create(0, &buffer, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_int_equal(vnx_shared_buffer_create(SIZE_MAX, &buffer, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_int_equal(vnx_shared_buffer_create(INT64_MAX, &buffer, &error),
                     VNX_ERR_NO_MEMORY);
    assert_string_equal(error.operation, "vnx_shared_buffer_create");
    assert_null(buffer);
    assert_int_equal(open_fds(), fds);
}

static void
test_shared_buffer_leaks_nothing(void **state)
{
    (void)state;
    size_t fds = open_fds();
    for (int i = 0; i < 100; i++) {
        vnx_shared_buffer_t *buffer = make_buffer(SIZE);
        vnxi_map_info_t map_info = find(vnx_shared_buffer_data(buffer), SIZE);
        assert_true(map_info.fd >= 0);
        vnx_shared_buffer_free(buffer);
        /* The map_info outlives the buffer: its descriptor stays open. */
        assert_true(fcntl(map_info.fd, F_GETFD) >= 0);
        vnxi_map_info_fini(&map_info);
        assert_int_equal(map_info.fd, -1);
        vnxi_map_info_fini(&map_info);
    }
    assert_int_equal(open_fds(), fds);
}

/* -- Shared memory ---------------------------------------------------------
 */

static void
test_map_info_find_returns_file_and_offset_of_any_part(void **state)
{
    (void)state;
    vnx_shared_buffer_t *buffer = make_buffer(SIZE);
    unsigned char *data = vnx_shared_buffer_data(buffer);
    const size_t skips[] = {0, 1, 4096, 5000, SIZE - VNXI_MAPPING_LEN_MIN};

    for (size_t i = 0; i < sizeof skips / sizeof *skips; i++) {
        vnxi_map_info_t map_info = find(data + skips[i], VNXI_MAPPING_LEN_MIN);
        assert_true(map_info.fd >= 0);
        assert_true(map_info.offset == skips[i]);
        vnxi_map_info_fini(&map_info);
    }
    assert_not_shared(data + 1, SIZE);
    vnx_shared_buffer_free(buffer);
}

static void
test_map_info_find_ignores_short_ranges(void **state)
{
    (void)state;
    vnx_shared_buffer_t *buffer = make_buffer(SIZE);
    assert_not_shared(vnx_shared_buffer_data(buffer),
                      VNXI_MAPPING_LEN_MIN - 1);
    assert_not_shared(vnx_shared_buffer_data(buffer), 0);
    vnx_shared_buffer_free(buffer);
}

static void
test_map_info_regions_of_one_memfd_use_one_descriptor(void **state)
{
    (void)state;
    enum { MANY = 3000 };
    static vnxi_map_info_t infos[MANY];
    vnx_shared_buffer_t *buffer = make_buffer(SIZE);
    size_t fds = open_fds();

    for (size_t i = 0; i < MANY; i++) {
        infos[i] = find(vnx_shared_buffer_data(buffer), SIZE);
        assert_int_equal(infos[i].fd, infos[0].fd);
    }
    assert_int_equal(open_fds(), fds);
    for (size_t i = 0; i < MANY; i++) {
        vnxi_map_info_fini(&infos[i]);
    }
    vnx_shared_buffer_free(buffer);
}

static void
test_map_info_foreign_memfd_is_sealed_and_shared(void **state)
{
    (void)state;
    int fd = make_memfd(MFD_ALLOW_SEALING, SIZE);
    void *data = map_shared(fd, SIZE);

    vnxi_map_info_t map_info = find(data, SIZE);
    assert_true(map_info.fd >= 0);
    assert_int_not_equal(map_info.fd, fd); /* our own descriptor */
    assert_true((fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK) != 0);
    assert_int_equal(ftruncate(fd, 0), -1);
    close(fd);
    vnxi_map_info_t again = find(data, SIZE);
    assert_int_equal(again.fd, map_info.fd);
    vnxi_map_info_fini(&again);
    vnxi_map_info_fini(&map_info);

    /* Now every descriptor of it is closed. */
    assert_not_shared(data, SIZE);
    munmap(data, SIZE);
}

static void
test_map_info_offset_is_relative_to_the_file(void **state)
{
    (void)state;
    int fd = make_memfd(MFD_ALLOW_SEALING, 2 * SIZE);
    unsigned char *data =
        map_fd(fd, PROT_READ | PROT_WRITE, MAP_SHARED, SIZE, SIZE);

    vnxi_map_info_t map_info = find(data + 10, SIZE - 10);
    assert_true(map_info.fd >= 0);
    assert_true(map_info.offset == SIZE + 10);
    vnxi_map_info_fini(&map_info);
    munmap(data, SIZE);
    close(fd);
}

typedef struct finder {
    void *buffers[2]; /* all of them shared between the threads */
    void *own;
    bool failed;
} finder_t;

static void *
find_often(void *argument)
{
    finder_t *finder = argument;
    for (int i = 0; i < 200; i++) {
        vnxi_map_info_t first = find(finder->buffers[i % 2], SIZE);
        vnxi_map_info_t second = find(finder->own, SIZE);
        finder->failed |= first.fd < 0 || second.fd < 0 ||
                          first.fd == second.fd ||
                          fcntl(first.fd, F_GETFD) < 0;
        vnxi_map_info_fini(&first);
        vnxi_map_info_fini(&second);
    }
    return NULL;
}

static void
test_map_info_find_and_release_are_thread_safe(void **state)
{
    (void)state;
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    finder_t finders[THREADS];
    int owns[THREADS], fd = make_memfd(MFD_ALLOW_SEALING, SIZE);
    vnx_shared_buffer_t *buffer = make_buffer(SIZE);
    void *data = map_shared(fd, SIZE);

    for (int i = 0; i < THREADS; i++) {
        owns[i] = make_memfd(MFD_ALLOW_SEALING, SIZE);
        finders[i] = (finder_t){
            .buffers = {vnx_shared_buffer_data(buffer), data},
            .own = map_shared(owns[i], SIZE),
        };
        assert_int_equal(
            pthread_create(&threads[i], NULL, find_often, &finders[i]), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
        assert_false(finders[i].failed);
        munmap(finders[i].own, SIZE);
        close(owns[i]);
    }
    munmap(data, SIZE);
    close(fd);
    vnx_shared_buffer_free(buffer);
}

/* -- Memory that cannot be shared ------------------------------------------
 */

static void
test_map_info_refuses_private_memory(void **state)
{
    (void)state;
    int fd = make_memfd(MFD_ALLOW_SEALING, SIZE);
    void *anonymous = map_fd(-1, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS, 0, SIZE);
    void *shared_anonymous = map_fd(-1, PROT_READ | PROT_WRITE,
                                    MAP_SHARED | MAP_ANONYMOUS, 0, SIZE);
    void *copy = map_fd(fd, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0, SIZE);

    assert_not_shared(anonymous, SIZE);
    assert_not_shared(shared_anonymous, SIZE);
    assert_not_shared(copy, SIZE);
    munmap(anonymous, SIZE);
    munmap(shared_anonymous, SIZE);
    munmap(copy, SIZE);
    assert_not_shared(anonymous, SIZE);
    assert_int_equal(vnxi_map_info_find(UINT64_MAX - SIZE / 2, SIZE).fd, -1);
    assert_int_equal(vnxi_map_info_find(0, SIZE).fd, -1);
    close(fd);
}

static void
test_map_info_refuses_a_memfd_without_seals(void **state)
{
    (void)state;
    int fd = make_memfd(0, SIZE);
    void *data = map_shared(fd, SIZE);
    assert_not_shared(data, SIZE);
    munmap(data, SIZE);
    close(fd);
}

static void
test_map_info_refuses_a_memfd_sealed_against_writing(void **state)
{
    (void)state;
    int fd = make_memfd(MFD_ALLOW_SEALING, SIZE);
    void *data = map_shared(fd, SIZE);
    assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE), 0);
    assert_not_shared(data, SIZE);
    munmap(data, SIZE);
    close(fd);
}

static void
test_map_info_refuses_read_only_memory(void **state)
{
    (void)state;
    int fd = make_memfd(MFD_ALLOW_SEALING, SIZE);
    void *data = map_fd(fd, PROT_READ, MAP_SHARED, 0, SIZE);
    assert_not_shared(data, SIZE);
    munmap(data, SIZE);
    close(fd);
}

static void
test_map_info_refuses_a_file_of_dev_shm(void **state)
{
    (void)state;
    char name[64];
    snprintf(name, sizeof name, "/vnx_share_test_%d", (int)getpid());
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    assert_true(fd >= 0);
    shm_unlink(name);
    assert_int_equal(ftruncate(fd, SIZE), 0);
    void *data = map_shared(fd, SIZE);
    assert_not_shared(data, SIZE);
    assert_non_null(strstr(vnxi_memfd_refusal(fd, true), "could shrink"));
    munmap(data, SIZE);
    close(fd);
}

static void
test_map_info_refuses_a_memfd_shorter_than_its_mapping(void **state)
{
    (void)state;
    int fd = make_memfd(MFD_ALLOW_SEALING, SIZE);
    void *data = map_shared(fd, 2 * SIZE);
    assert_not_shared(data, 2 * SIZE);
    vnxi_map_info_t map_info = find(data, SIZE);
    assert_true(map_info.fd >= 0);
    vnxi_map_info_fini(&map_info);
    munmap(data, 2 * SIZE);
    close(fd);
}

static void
test_map_info_range_over_two_mappings(void **state)
{
    (void)state;
    int fd = make_memfd(MFD_ALLOW_SEALING, 4 * SIZE);
    unsigned char *data = map_shared(fd, 2 * SIZE);
    /* The second half is another part of the same file. */
    assert_ptr_equal(mmap(data + SIZE, SIZE, PROT_READ | PROT_WRITE,
                          MAP_SHARED | MAP_FIXED, fd, 3 * SIZE),
                     data + SIZE);

    assert_not_shared(data, 2 * SIZE);
    vnxi_map_info_t first = find(data, SIZE);
    vnxi_map_info_t second = find(data + SIZE, SIZE);
    assert_true(first.fd >= 0 && second.fd == first.fd);
    assert_true(first.offset == 0 && second.offset == 3 * SIZE);
    vnxi_map_info_fini(&first);
    vnxi_map_info_fini(&second);
    munmap(data, 2 * SIZE);
    close(fd);
}

static void
test_map_info_memfd_of_huge_pages(void **state)
{
    (void)state;
    const size_t size = 2u << 20;
    int fd = memfd_create("test", MFD_HUGETLB | MFD_ALLOW_SEALING);
    void *data = MAP_FAILED;
    if (fd >= 0 && ftruncate(fd, (off_t)size) == 0) {
        data = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    }
    if (data != MAP_FAILED) {
        assert_not_shared(data, size);
        munmap(data, size);
    }
    if (fd >= 0) {
        close(fd);
    }
    if (data == MAP_FAILED) {
        print_message("no huge pages are set aside (vm.nr_hugepages)\n");
        skip();
    }
}

/* -- The two ways to look a mapping up -------------------------------------
 */

static void
test_procmap_ioctl_and_text_agree(void **state)
{
    (void)state;
    vnx_shared_buffer_t *buffer = make_buffer(SIZE);
    int fd = make_memfd(0, SIZE);
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    void *read_only = map_fd(fd, PROT_READ, MAP_SHARED, page, SIZE - page);
    const void *places[] = {vnx_shared_buffer_data(buffer), read_only, &fd,
                            (const void *)(uintptr_t)open_fds};

    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        vnxi_proc_vma_t query, text;
        uint64_t addr = (uintptr_t)places[i];
        assert_true(vnxi_proc_vma_parse(addr, &text));
        assert_true(addr >= text.start && addr < text.end);
        int failure = vnxi_proc_vma_query(addr, &query);
        if (failure == ENOTTY) {
            print_message("the kernel has no PROCMAP_QUERY (6.11)\n");
            break;
        }
        assert_int_equal(failure, 0);
        assert_true(query.start == text.start && query.end == text.end);
        assert_true(query.offset == text.offset);
        assert_true(query.st_dev == text.st_dev);
        assert_true(query.st_ino == text.st_ino);
        assert_int_equal(query.shared, text.shared);
        assert_int_equal(query.readable, text.readable);
        assert_int_equal(query.writable, text.writable);
        assert_int_equal(query.memfd, text.memfd);
        assert_int_equal(text.memfd, i < 2);
        assert_int_equal(text.shared, i < 2);
    }
    munmap(read_only, SIZE - page);
    close(fd);
    vnx_shared_buffer_free(buffer);
}

static void
test_procmap_finds_nothing_at_unmapped_addresses(void **state)
{
    (void)state;
    vnxi_proc_vma_t map;
    assert_false(vnxi_proc_vma_find(0, &map));
    assert_false(vnxi_proc_vma_parse(0, &map));
    assert_int_not_equal(vnxi_proc_vma_query(0, &map), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shared_buffer_is_zeroed_and_writable),
        cmocka_unit_test(test_shared_buffer_refuses_impossible_sizes),
        cmocka_unit_test(test_shared_buffer_leaks_nothing),
        cmocka_unit_test(
            test_map_info_find_returns_file_and_offset_of_any_part),
        cmocka_unit_test(test_map_info_find_ignores_short_ranges),
        cmocka_unit_test(
            test_map_info_regions_of_one_memfd_use_one_descriptor),
        cmocka_unit_test(test_map_info_foreign_memfd_is_sealed_and_shared),
        cmocka_unit_test(test_map_info_offset_is_relative_to_the_file),
        cmocka_unit_test(test_map_info_find_and_release_are_thread_safe),
        cmocka_unit_test(test_map_info_refuses_private_memory),
        cmocka_unit_test(test_map_info_refuses_a_memfd_without_seals),
        cmocka_unit_test(test_map_info_refuses_a_memfd_sealed_against_writing),
        cmocka_unit_test(test_map_info_refuses_read_only_memory),
        cmocka_unit_test(test_map_info_refuses_a_file_of_dev_shm),
        cmocka_unit_test(
            test_map_info_refuses_a_memfd_shorter_than_its_mapping),
        cmocka_unit_test(test_map_info_range_over_two_mappings),
        cmocka_unit_test(test_map_info_memfd_of_huge_pages),
        cmocka_unit_test(test_procmap_ioctl_and_text_agree),
        cmocka_unit_test(test_procmap_finds_nothing_at_unmapped_addresses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
