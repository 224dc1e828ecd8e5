/* Finding libcuda, and the reasons why there is none.  A process decides once,
 * so each test runs in its own process. */
#include "vnx_test.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "child_check.h"
#include "cuda_start.h"
#include "engine/native/cuda/library.h"

#define THREADS 8

/* What a child saw. */
typedef struct seen {
    bool is_found;
    char why[1024];
    char path[512];
    int driver, device_count;
    bool has_batch, has_write_value;
    int inits; /* calls of cuInit(); -1: the library is not loaded */
} seen_t;

static seen_t *seen;

static int
count_inits(void)
{
    void *handle =
        dlopen(getenv("VLLM_NIXL_CUDA_LIBRARY"), RTLD_NOW | RTLD_NOLOAD);
    int (*count)(void) = NULL;

    if (handle != NULL) {
        *(void **)&count = dlsym(handle, "cuda_start_inits");
    }
    return count != NULL ? count() : -1;
}

/* Call the library, and record the result. */
static const vnxi_cuda_library_t *
look(vnxi_cuda_start_t start)
{
    const char *why = "";
    const vnxi_cuda_library_t *library = vnxi_cuda_library(start, &why);

    *seen = (seen_t){.is_found = library != NULL, .inits = count_inits()};
    snprintf(seen->why, sizeof seen->why, "%s", why);
    if (library != NULL) {
        snprintf(seen->path, sizeof seen->path, "%s", library->path);
        seen->driver = library->driver;
        seen->device_count = library->device_count;
        seen->has_batch = library->cu.cuMemcpyBatchAsync != NULL;
        seen->has_write_value = library->cu.cuStreamWriteValue32_v2 != NULL;
    }
    return library;
}

/* Run `child` in a process of its own, on that library. */
static void
run(const char *library, void (*child)(void))
{
    int status;
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        setenv("VLLM_NIXL_CUDA_LIBRARY", library, 1);
        child();
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

/* The same with a variable of cuda_start.c. */
static void
run_with(const char *library, const char *variable, const char *value,
         void (*child)(void))
{
    setenv(variable, value, 1);
    run(library, child);
    unsetenv(variable);
}

static void
start(void)
{
    look(VNXI_CUDA_START);
}

static void
assert_refused(const char *part)
{
    assert_false(seen->is_found);
    if (strstr(seen->why, part) == NULL) {
        fail_msg("'%s' is not in '%s'", part, seen->why);
    }
}

/* A program that uses CUDA. */
static void
use_cuda(void)
{
    void *handle = dlopen(getenv("VLLM_NIXL_CUDA_LIBRARY"), RTLD_NOW);
    vnxi_cu_result_t (*init)(unsigned) = NULL;

    CHECK(handle != NULL);
    *(void **)&init = dlsym(handle, "cuInit");
    CHECK(init(0) == VNXI_CUDA_SUCCESS);
}

/* -- Starting --------------------------------------------------------------
 */

static void
test_cuda_library_starts_and_describes_itself(void **state)
{
    (void)state;

    run(CUDA_START_FULL, start);
    assert_string_equal(seen->why, "");
    assert_true(seen->is_found);
    assert_string_equal(seen->path, CUDA_START_FULL);
    assert_int_equal(seen->driver, 12080);
    assert_int_equal(seen->device_count, 2);
    assert_true(seen->has_batch && seen->has_write_value);
    assert_int_equal(seen->inits, 1);
}

static void
test_cuda_library_may_lack_optional_functions(void **state)
{
    (void)state;

    run(CUDA_START_OLD, start);
    assert_true(seen->is_found);
    assert_false(seen->has_batch || seen->has_write_value);
}

static void *
start_on_thread(void *found_p)
{
    *(const vnxi_cuda_library_t **)found_p =
        vnxi_cuda_library(VNXI_CUDA_START, NULL);
    return NULL;
}

static void
start_on_threads(void)
{
    pthread_t threads[THREADS];
    const vnxi_cuda_library_t *found[THREADS];

    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_create(&threads[i], NULL, start_on_thread, &found[i]) ==
              0);
    }
    for (int i = 0; i < THREADS; i++) {
        CHECK(pthread_join(threads[i], NULL) == 0);
        CHECK(found[i] != NULL && found[i] == found[0]);
    }
    look(VNXI_CUDA_IF_USED);
}

static void
test_cuda_library_starts_once_for_all_threads(void **state)
{
    (void)state;

    run(CUDA_START_FULL, start_on_threads);
    assert_true(seen->is_found);
    assert_int_equal(seen->inits, 1);
}

/* -- Reasons ---------------------------------------------------------------
 */

static void
test_cuda_library_that_is_missing_is_named(void **state)
{
    (void)state;

    run("/nowhere/libcuda.so.1", start);
    assert_refused("/nowhere/libcuda.so.1");
}

static void
test_cuda_library_can_be_disabled(void **state)
{
    (void)state;

    run("none", start);
    assert_refused("disabled by VLLM_NIXL_CUDA_LIBRARY=none");
}

static void
test_cuda_library_without_functions_names_them(void **state)
{
    (void)state;

    run(CUDA_START_CUT, start);
    assert_refused(CUDA_START_CUT " lacks cuMemMap, cuLaunchHostFunc: CUDA");
    /* Unloaded, and cuInit() was not called. */
    assert_int_equal(seen->inits, -1);

    run("libc.so.6", start);
    assert_refused("libc.so.6 lacks cuInit, cuDriverGetVersion, ");
    assert_refused(" more: CUDA 11.4 or later is required");
}

static void
test_cuda_library_gives_the_drivers_error(void **state)
{
    (void)state;

    run_with(CUDA_START_FULL, "CUDA_START_RESULT", "100", start);
    assert_refused("cuInit of " CUDA_START_FULL
                   ": CUDA_ERROR_NO_DEVICE (100)");
    run_with(CUDA_START_FULL, "CUDA_START_RESULT", "34", start);
    assert_refused("cuInit of " CUDA_START_FULL ": unknown error (34)");
}

static void
test_cuda_library_needs_a_device(void **state)
{
    (void)state;

    run_with(CUDA_START_FULL, "CUDA_START_DEVICES", "0", start);
    assert_refused(CUDA_START_FULL " sees no GPU");
}

static void
fail_again(void)
{
    const char *first = NULL, *second = NULL, *third = NULL;

    CHECK(vnxi_cuda_library(VNXI_CUDA_START, &first) == NULL);
    setenv("CUDA_START_RESULT", "0", 1);
    CHECK(vnxi_cuda_library(VNXI_CUDA_START, &second) == NULL);
    CHECK(vnxi_cuda_library(VNXI_CUDA_IF_USED, &third) == NULL);
    CHECK(first == second && first == third);
    CHECK(vnxi_cuda_library(VNXI_CUDA_START, NULL) == NULL);
    look(VNXI_CUDA_START);
}

static void
test_cuda_library_failure_is_final(void **state)
{
    (void)state;

    run_with(CUDA_START_FULL, "CUDA_START_RESULT", "100", fail_again);
    assert_refused("CUDA_ERROR_NO_DEVICE");
    assert_int_equal(seen->inits, 1);
}

/* -- Programs with CUDA and without ----------------------------------------
 */

static void
look_then_start(void)
{
    look(VNXI_CUDA_IF_USED);
    CHECK(!seen->is_found && seen->inits == -1);
    CHECK(strcmp(seen->why, "the program does not use CUDA") == 0);
    look(VNXI_CUDA_START);
    CHECK(seen->is_found && seen->inits == 1);
    look(VNXI_CUDA_IF_USED);
}

static void
test_cuda_library_is_not_loaded_until_it_is_needed(void **state)
{
    (void)state;

    run(CUDA_START_FULL, look_then_start);
    assert_true(seen->is_found);
}

static void
load_but_do_not_use(void)
{
    CHECK(dlopen(CUDA_START_FULL, RTLD_NOW) != NULL);
    look(VNXI_CUDA_IF_USED);
}

static void
test_cuda_library_is_not_started_in_a_program_that_only_loads_it(void **state)
{
    (void)state;

    run(CUDA_START_FULL, load_but_do_not_use);
    assert_refused("the program does not use CUDA");
    assert_int_equal(seen->inits, 0);
}

static void
look_at_user(void)
{
    use_cuda();
    look(VNXI_CUDA_IF_USED);
}

static void
test_cuda_library_of_a_program_that_uses_cuda_is_found(void **state)
{
    (void)state;

    run(CUDA_START_FULL, look_at_user);
    assert_true(seen->is_found);
    assert_int_equal(seen->device_count, 2);
    assert_int_equal(seen->inits, 1); /* the program's */
}

/* -- Forks -----------------------------------------------------------------
 */

static void
fork_and(void (*child)(void))
{
    int status;
    pid_t pid = fork();

    CHECK(pid >= 0);
    if (pid == 0) {
        child();
        _exit(0);
    }
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
}

static void
fork_after_start(void)
{
    seen_t in_child;

    look(VNXI_CUDA_START);
    CHECK(seen->is_found);
    fork_and(start);
    in_child = *seen;
    look(VNXI_CUDA_START);
    CHECK(seen->is_found);
    *seen = in_child;
}

static void
fork_after_use(void)
{
    use_cuda();
    fork_and(start);
}

static void
fork_before_start(void)
{
    look(VNXI_CUDA_IF_USED);
    CHECK(!seen->is_found);
    fork_and(start);
}

static void
test_cuda_library_is_gone_in_a_forked_child(void **state)
{
    (void)state;

    run(CUDA_START_FULL, fork_after_start);
    assert_refused("forked: ");
    run(CUDA_START_FULL, fork_after_use);
    assert_refused("forked: ");
}

static void
test_cuda_library_starts_in_a_child_of_a_program_without_cuda(void **state)
{
    (void)state;

    run(CUDA_START_FULL, fork_before_start);
    assert_string_equal(seen->why, "");
    assert_true(seen->is_found);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_cuda_library_starts_and_describes_itself),
        cmocka_unit_test(test_cuda_library_may_lack_optional_functions),
        cmocka_unit_test(test_cuda_library_starts_once_for_all_threads),
        cmocka_unit_test(test_cuda_library_that_is_missing_is_named),
        cmocka_unit_test(test_cuda_library_can_be_disabled),
        cmocka_unit_test(test_cuda_library_without_functions_names_them),
        cmocka_unit_test(test_cuda_library_gives_the_drivers_error),
        cmocka_unit_test(test_cuda_library_needs_a_device),
        cmocka_unit_test(test_cuda_library_failure_is_final),
        cmocka_unit_test(test_cuda_library_is_not_loaded_until_it_is_needed),
        cmocka_unit_test(
            test_cuda_library_is_not_started_in_a_program_that_only_loads_it),
        cmocka_unit_test(
            test_cuda_library_of_a_program_that_uses_cuda_is_found),
        cmocka_unit_test(test_cuda_library_is_gone_in_a_forked_child),
        cmocka_unit_test(
            test_cuda_library_starts_in_a_child_of_a_program_without_cuda),
    };

    seen = mmap(NULL, sizeof *seen, PROT_READ | PROT_WRITE,
                MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return seen != MAP_FAILED ? cmocka_run_group_tests(tests, NULL, NULL) : 1;
}
