/* The log: levels, the function that gets lines, the rate of a place. */
#include "vnx_test.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/log.h"

#define OUTPUT_MAX 16384

typedef struct kept {
    unsigned count;
    vnx_log_level_t level;
    uint64_t time_ns;
    int64_t thread;
    char agent[256], text[2048];
} kept_t;

static void
keep(void *context, const vnx_log_line_t *line)
{
    kept_t *kept = context;

    kept->count++;
    kept->level = line->level;
    kept->time_ns = line->time_ns;
    kept->thread = line->thread;
    snprintf(kept->agent, sizeof kept->agent, "%s",
             line->agent != NULL ? line->agent : "(none)");
    snprintf(kept->text, sizeof kept->text, "%s", line->text);
}

static int
reset(void **state)
{
    (void)state;
    vnx_log_set(NULL, NULL);
    vnx_log_set_level(VNX_LOG_WARNING);
    return 0;
}

/* -- stderr --------------------------------------------------------------- */

static int stderr_before, capture;

static void
capture_stderr(void)
{
    capture = memfd_create("stderr", MFD_CLOEXEC);
    assert_true(capture >= 0);
    stderr_before = dup(STDERR_FILENO);
    assert_int_equal(dup2(capture, STDERR_FILENO), STDERR_FILENO);
}

static void
captured(char output[OUTPUT_MAX])
{
    dup2(stderr_before, STDERR_FILENO);
    close(stderr_before);
    ssize_t len = pread(capture, output, OUTPUT_MAX - 1, 0);
    assert_true(len >= 0);
    output[len] = '\0';
    close(capture);
}

static unsigned
count_of(const char *text, const char *part)
{
    unsigned count = 0;
    while ((text = strstr(text, part)) != NULL) {
        text++;
        count++;
    }
    return count;
}

static void
test_log_line_on_stderr(void **state)
{
    char output[OUTPUT_MAX], expected[128];
    int year, month, day, hour, minute, second, ms, end = 0;

    (void)state;
    capture_stderr();
    vnxi_log(VNX_LOG_WARNING, "prefill-0", "the number is %d", 5);
    captured(output);
    assert_int_equal(sscanf(output, "%4d-%2d-%2d %2d:%2d:%2d.%3d %n", &year,
                            &month, &day, &hour, &minute, &second, &ms, &end),
                     7);
    snprintf(expected, sizeof expected,
             "WARNING vllm_nixl[%d] prefill-0: the number is 5\n",
             (int)getpid());
    assert_string_equal(output + end, expected);
}

static void
test_log_line_without_agent(void **state)
{
    char output[OUTPUT_MAX], expected[128];

    (void)state;
    capture_stderr();
    vnxi_log(VNX_LOG_ERROR, NULL, "no agent");
    captured(output);
    snprintf(expected, sizeof expected, " ERROR vllm_nixl[%d]: no agent\n",
             (int)getpid());
    assert_non_null(strstr(output, expected));
}

static void
test_log_format_truncates(void **state)
{
    const vnx_log_line_t line = {.level = VNX_LOG_INFO, .text = "some text"};
    char whole[128], part[8];

    (void)state;
    int len = vnx_log_format(&line, whole, sizeof whole);
    assert_int_equal(len, strlen(whole));
    assert_int_equal(vnx_log_format(&line, part, sizeof part), len);
    assert_memory_equal(part, whole, sizeof part - 1);
    assert_int_equal(part[sizeof part - 1], '\0');
    assert_int_equal(vnx_log_format(&line, NULL, 0), len);
}

/* -- The function --------------------------------------------------------- */

static void
test_log_function_gets_all_of_a_line(void **state)
{
    kept_t kept = {0};
    uint64_t before = vnxi_clock_wall_us(); /* time() may be behind */

    (void)state;
    vnx_log_set(keep, &kept);
    vnxi_log(VNX_LOG_ERROR, "decode-1", "%s", "it broke");
    assert_int_equal(kept.count, 1);
    assert_int_equal(kept.level, VNX_LOG_ERROR);
    assert_string_equal(kept.agent, "decode-1");
    assert_string_equal(kept.text, "it broke");
    assert_int_equal(kept.thread, syscall(SYS_gettid));
    assert_in_range(kept.time_ns / 1000, before, vnxi_clock_wall_us());
}

static void
test_log_control_characters_are_replaced(void **state)
{
    kept_t kept = {0};

    (void)state;
    vnx_log_set(keep, &kept);
    vnxi_log(VNX_LOG_WARNING, "two\nlines", "one\ntwo\x1b[31m\xc3\xa9");
    assert_string_equal(kept.agent, "two?lines");
    assert_string_equal(kept.text, "one?two?[31m\xc3\xa9");
}

static void
test_log_long_texts_are_cut_off(void **state)
{
    kept_t kept = {0};
    char name[300], text[3000];

    (void)state;
    memset(name, 'n', sizeof name - 1);
    memset(text, 't', sizeof text - 1);
    name[sizeof name - 1] = text[sizeof text - 1] = '\0';
    vnx_log_set(keep, &kept);
    vnxi_log(VNX_LOG_WARNING, name, "%s", text);
    assert_int_equal(strlen(kept.agent), 127);
    assert_int_equal(strlen(kept.text), 1023);
}

static void
log_again(void *context, const vnx_log_line_t *line)
{
    keep(context, line);
    vnxi_log(VNX_LOG_WARNING, NULL, "from inside");
}

static void
test_log_line_from_inside_goes_to_stderr(void **state)
{
    char output[OUTPUT_MAX];
    kept_t kept = {0};

    (void)state;
    capture_stderr();
    vnx_log_set(log_again, &kept);
    vnxi_log(VNX_LOG_WARNING, NULL, "from outside");
    captured(output);
    assert_int_equal(kept.count, 1);
    assert_string_equal(kept.text, "from outside");
    assert_int_equal(count_of(output, "from inside"), 1);
}

static void
remove_itself(void *context, const vnx_log_line_t *line)
{
    keep(context, line);
    vnx_log_set(NULL, NULL);
}

static void
test_log_function_may_remove_itself(void **state)
{
    char output[OUTPUT_MAX];
    kept_t kept = {0};

    (void)state;
    vnx_log_set(remove_itself, &kept);
    vnxi_log(VNX_LOG_WARNING, NULL, "first");
    capture_stderr();
    vnxi_log(VNX_LOG_WARNING, NULL, "second");
    captured(output);
    assert_int_equal(kept.count, 1);
    assert_int_equal(count_of(output, "second"), 1);
}

/* -- Levels --------------------------------------------------------------- */

static void
log_each(kept_t *kept)
{
    *kept = (kept_t){0};
    vnxi_log(VNX_LOG_DEBUG, NULL, "debug");
    vnxi_log(VNX_LOG_INFO, NULL, "info");
    vnxi_log(VNX_LOG_WARNING, NULL, "warning");
    vnxi_log(VNX_LOG_ERROR, NULL, "error");
}

static void
test_log_level_is_a_threshold(void **state)
{
    kept_t kept;

    (void)state;
    vnx_log_set(keep, &kept);
    for (int level = VNX_LOG_OFF; level <= VNX_LOG_DEBUG; level++) {
        vnx_log_set_level((vnx_log_level_t)level);
        assert_int_equal(vnx_log_level(), level);
        log_each(&kept);
        assert_int_equal(kept.count, level);
    }
    assert_string_equal(vnx_log_level_name(VNX_LOG_WARNING), "WARNING");
    assert_null(vnx_log_level_name((vnx_log_level_t)9));
}

/* The other program of this file: a process that reads the environment. */
static int
program(void)
{
    printf("%s", vnx_log_level_name(vnx_log_level()));
    fflush(stdout);
    vnxi_log(VNX_LOG_DEBUG, NULL, "the first line");
    vnxi_log(VNX_LOG_ERROR, NULL, "the second line");
    return 0;
}

/* Run it; `values`: of VLLM_NIXL_LOG_LEVEL and NIXL_LOG_LEVEL. */
static void
run_program(const char *ours, const char *nixls, char *level,
            char errors[OUTPUT_MAX])
{
    char path[4096] = "";
    int status, out = memfd_create("stdout", 0);

    assert_true(readlink("/proc/self/exe", path, sizeof path - 1) > 0);
    capture_stderr();
    pid_t pid = fork();
    if (pid == 0) {
        unsetenv("VLLM_NIXL_LOG_LEVEL");
        unsetenv("NIXL_LOG_LEVEL");
        if (ours != NULL) {
            setenv("VLLM_NIXL_LOG_LEVEL", ours, 1);
        }
        if (nixls != NULL) {
            setenv("NIXL_LOG_LEVEL", nixls, 1);
        }
        dup2(out, STDOUT_FILENO);
        execl(path, path, "program", (char *)NULL);
        _exit(9);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    captured(errors);
    assert_int_equal(status, 0);
    ssize_t len = pread(out, level, 15, 0);
    level[len > 0 ? len : 0] = '\0';
    close(out);
}

static void
test_log_level_of_the_environment(void **state)
{
    static const struct {
        const char *ours, *nixls, *level;
    } cases[] = {
        {NULL, NULL, "WARNING"},     {"DEBUG", NULL, "DEBUG"},
        {"info", NULL, "INFO"},      {"ERROR", "DEBUG", "ERROR"},
        {NULL, "TRACE", "DEBUG"},    {NULL, "WARN", "WARNING"},
        {NULL, "FATAL", "OFF"},      {"", "INFO", "INFO"},
        {"critical", "INFO", "OFF"}, {"loud", "INFO", "INFO"},
        {NULL, "louder", "WARNING"},
    };
    char level[16], errors[OUTPUT_MAX];

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        run_program(cases[i].ours, cases[i].nixls, level, errors);
        assert_string_equal(level, cases[i].level);
    }
}

static void
test_log_unknown_level_is_reported_once(void **state)
{
    char level[16], errors[OUTPUT_MAX];

    (void)state;
    run_program("DEBG", NULL, level, errors);
    assert_int_equal(count_of(errors, "VLLM_NIXL_LOG_LEVEL"), 1);
    assert_non_null(strstr(errors, "did you mean 'DEBUG'?"));
    assert_null(strstr(errors, "the first line"));
    assert_int_equal(count_of(errors, "the second line"), 1);
    run_program("DEBUG", "nonsense", level, errors);
    assert_null(strstr(errors, "nonsense"));
}

/* -- The rate ------------------------------------------------------------- */

static void
test_log_thousand_lines_of_a_place_are_limited(void **state)
{
    kept_t kept = {0};

    (void)state;
    vnx_log_set(keep, &kept);
    for (int i = 0; i < 1000; i++) {
        vnxi_log(VNX_LOG_WARNING, NULL, "line %d", i);
    }
    assert_int_equal(kept.count, 10);
    assert_string_equal(
        kept.text,
        "line 9 (more lines like this one are suppressed for 10 s)");
    vnxi_log(VNX_LOG_WARNING, NULL, "of another place");
    assert_string_equal(kept.text, "of another place");
}

static void
test_log_suppressed_lines_are_counted(void **state)
{
    vnxi_log_site_t site = {0};
    kept_t kept = {0};

    (void)state;
    vnx_log_set(keep, &kept);
    for (int i = 0; i < 25; i++) {
        vnxi_log_at(&site, VNX_LOG_WARNING, NULL, "line");
    }
    assert_int_equal(kept.count, 10);
    site.since -= UINT64_C(11000000000); /* as if 11 s had passed */
    vnxi_log_at(&site, VNX_LOG_WARNING, NULL, "line");
    assert_int_equal(kept.count, 11);
    assert_string_equal(kept.text,
                        "line (15 lines like this one were suppressed)");
    vnxi_log_at(&site, VNX_LOG_WARNING, NULL, "line");
    assert_string_equal(kept.text, "line");
}

static void
test_log_more_lines_at_debug(void **state)
{
    vnxi_log_site_t site = {0};
    kept_t kept = {0};

    (void)state;
    vnx_log_set(keep, &kept);
    vnx_log_set_level(VNX_LOG_DEBUG);
    for (int i = 0; i < 1000; i++) {
        vnxi_log_at(&site, VNX_LOG_DEBUG, NULL, "line");
    }
    assert_int_equal(kept.count, 200);
}

static void
test_log_lines_below_the_level_do_not_count(void **state)
{
    vnxi_log_site_t site = {0};
    kept_t kept = {0};

    (void)state;
    vnx_log_set(keep, &kept);
    for (int i = 0; i < 1000; i++) {
        vnxi_log_at(&site, VNX_LOG_INFO, NULL, "line");
    }
    vnx_log_set_level(VNX_LOG_INFO);
    vnxi_log_at(&site, VNX_LOG_INFO, NULL, "line");
    assert_int_equal(kept.count, 1);
    assert_string_equal(kept.text, "line");
}

/* -- Threads and forks ---------------------------------------------------- */

#define THREADS 4
#define LINES 500

static void *
log_lines(void *unused)
{
    for (int i = 0; i < LINES; i++) {
        vnxi_log_site_t site = {0};
        vnxi_log_at(&site, VNX_LOG_WARNING, "agent", "line %d", i);
    }
    return unused;
}

static void
test_log_lines_of_threads_are_not_lost(void **state)
{
    pthread_t threads[THREADS];
    kept_t kept = {0}; /* not atomic: one call at a time */

    (void)state;
    vnx_log_set(keep, &kept);
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, log_lines, NULL),
                         0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_int_equal(kept.count, THREADS * LINES);
}

/* The context is freed as soon as the function is replaced. */
static void
test_log_function_is_replaced_while_threads_log(void **state)
{
    pthread_t threads[THREADS];
    unsigned count = 0;

    (void)state;
    kept_t *kept = calloc(1, sizeof *kept);
    vnx_log_set(keep, kept);
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, log_lines, NULL),
                         0);
    }
    for (int i = 0; i < 100; i++) {
        kept_t *next = calloc(1, sizeof *next);
        vnx_log_set(keep, next);
        count += kept->count;
        free(kept);
        kept = next;
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    vnx_log_set(NULL, NULL);
    assert_int_equal(count + kept->count, THREADS * LINES);
    free(kept);
}

static atomic_int is_in, may_leave;

static void
stay(void *context, const vnx_log_line_t *line)
{
    (void)context, (void)line;
    atomic_store(&is_in, 1);
    while (!atomic_load(&may_leave)) {
        usleep(1000);
    }
}

static void *
log_one(void *unused)
{
    vnxi_log(VNX_LOG_WARNING, NULL, "from a thread");
    return unused;
}

static void
test_log_works_in_a_child_forked_while_a_thread_logs(void **state)
{
    char output[OUTPUT_MAX];
    pthread_t thread;
    int status;

    (void)state;
    vnx_log_set(stay, NULL);
    assert_int_equal(pthread_create(&thread, NULL, log_one, NULL), 0);
    while (!atomic_load(&is_in)) {
        usleep(1000);
    }
    capture_stderr();
    pid_t pid = fork();
    if (pid == 0) {
        vnx_log_set(NULL, NULL); /* waits for no thread of the parent */
        vnxi_log(VNX_LOG_WARNING, NULL, "from the child");
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    captured(output);
    atomic_store(&may_leave, 1);
    pthread_join(thread, NULL);
    assert_int_equal(status, 0);
    assert_int_equal(count_of(output, "from the child"), 1);
}

int
main(int argc, char **argv)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, reset, reset)
    const struct CMUnitTest tests[] = {
        TEST(test_log_line_on_stderr),
        TEST(test_log_line_without_agent),
        TEST(test_log_format_truncates),
        TEST(test_log_function_gets_all_of_a_line),
        TEST(test_log_control_characters_are_replaced),
        TEST(test_log_long_texts_are_cut_off),
        TEST(test_log_line_from_inside_goes_to_stderr),
        TEST(test_log_function_may_remove_itself),
        TEST(test_log_level_is_a_threshold),
        TEST(test_log_level_of_the_environment),
        TEST(test_log_unknown_level_is_reported_once),
        TEST(test_log_thousand_lines_of_a_place_are_limited),
        TEST(test_log_suppressed_lines_are_counted),
        TEST(test_log_more_lines_at_debug),
        TEST(test_log_lines_below_the_level_do_not_count),
        TEST(test_log_lines_of_threads_are_not_lost),
        TEST(test_log_function_is_replaced_while_threads_log),
        TEST(test_log_works_in_a_child_forked_while_a_thread_logs),
    };
    return argc > 1 && strcmp(argv[1], "program") == 0
               ? program()
               : cmocka_run_group_tests(tests, NULL, NULL);
}
