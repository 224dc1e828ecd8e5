/* scripts/yama_test.sh tests the same on a kernel with Yama, under each ptrace
 * scope. */
#include "vnx_test.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "engine/native/shm/ptrace.h"
#include "engine/native/shm/vm.h"

#define NOBODY 65534

/* -- The setting ---------------------------------------------------------- */

static void
test_only_0_forbids_to_allow_ptrace(void **state)
{
    (void)state;
    static const char name[] = "VLLM_NIXL_ALLOW_PTRACE";

    unsetenv(name);
    assert_true(vnxi_ptrace_may_allow());
    setenv(name, "1", 1);
    assert_true(vnxi_ptrace_may_allow());
    setenv(name, "", 1);
    assert_true(vnxi_ptrace_may_allow());
    setenv(name, "0", 1);
    assert_false(vnxi_ptrace_may_allow());
    unsetenv(name);
}

/* -- Causes --------------------------------------------------------------- */

typedef struct example {
    vnxi_ptrace_facts_t facts;
    vnxi_ptrace_cause_t cause;
    const char *words, *remedy;
} example_t;

#define SAME .readable = true, .uid = {1000, 1000}, .gid = {1000, 1000}

static const example_t examples[] = {
    {{SAME, .sandboxed = true, .scope = 2},
     VNXI_PTRACE_SANDBOX,
     "a sandbox (seccomp) blocks process_vm_readv",
     "--cap-add=SYS_PTRACE"},
    {{.readable = false, .uid = {1000, 33}, .gid = {1000, 33}, .scope = 1},
     VNXI_PTRACE_USER,
     "it runs as user 33 and group 33, this process as user 1000 and group "
     "1000",
     "run both as the same user"},
    {{.readable = false, .uid = {1000, 1000}, .gid = {1000, 33}},
     VNXI_PTRACE_USER,
     "it runs as user 1000 and group 33",
     "the same user and group"},
    {{.readable = false, .uid = {7, 7}, .extra_caps = 1 << 10, .scope = 1},
     VNXI_PTRACE_CAPABILITIES,
     "it has capabilities that this process lacks",
     "Give both the same capabilities"},
    {{.readable = false, .uid = {7, 7}, .scope = 1},
     VNXI_PTRACE_NOT_DUMPABLE,
     "PR_SET_DUMPABLE is 0",
     "Start it as its final user"},
    {{SAME, .scope = 1},
     VNXI_PTRACE_NOT_ALLOWED,
     "VLLM_NIXL_ALLOW_PTRACE=0 is set there",
     "'sysctl -w kernel.yama.ptrace_scope=0'"},
    {{SAME, .scope = 2},
     VNXI_PTRACE_NO_CAP,
     "this process lacks CAP_SYS_PTRACE",
     "'sysctl -w kernel.yama.ptrace_scope=1'"},
    {{SAME, .scope = 3},
     VNXI_PTRACE_FORBIDDEN,
     "denies it to everyone until the host is restarted",
     "/etc/sysctl.d"},
    {{SAME, .scope = 3, .has_cap = true},
     VNXI_PTRACE_FORBIDDEN,
     "kernel.yama.ptrace_scope is 3",
     "restart"},
    {{SAME, .scope = 0}, VNXI_PTRACE_UNKNOWN, "AppArmor", "--cap-add"},
    /* The capability overcomes all of it, so something else forbids it. */
    {{.has_cap = true, .uid = {0, 7}, .extra_caps = 1, .scope = 2},
     VNXI_PTRACE_UNKNOWN,
     "user namespace",
     "--cap-add"},
};

static void
check_words(const char *text, const char *words)
{
    if (strstr(text, words) == NULL) {
        fail_msg("'%s' is not in '%s'", words, text);
    }
}

static void
test_each_cause_is_named_with_its_remedy(void **state)
{
    (void)state;
    char text[VNX_ERROR_CAUSE_MAX];

    for (size_t i = 0; i < sizeof examples / sizeof *examples; i++) {
        const example_t *example = &examples[i];
        vnxi_ptrace_facts_t facts = example->facts;
        facts.pid = 4711;
        assert_int_equal(vnxi_ptrace_cause(&facts), example->cause);
        vnxi_ptrace_explain(&facts, text, sizeof text);
        check_words(text, "the memory of process 4711: ");
        check_words(text, example->words);
        check_words(text, example->remedy);
    }
}

/* None is cut off, with the longest numbers. */
static void
test_every_explanation_fits_into_an_error(void **state)
{
    (void)state;
    char text[2 * VNX_ERROR_CAUSE_MAX];

    for (size_t i = 0; i < sizeof examples / sizeof *examples; i++) {
        vnxi_ptrace_facts_t facts = examples[i].facts;
        facts.pid = INT32_MAX;
        for (int side = 0; side < 2; side++) {
            facts.uid[side] += facts.uid[side] < 100 ? UINT32_MAX - 100 : 0;
            facts.gid[side] += facts.gid[side] < 100 ? UINT32_MAX - 100 : 0;
        }
        vnxi_ptrace_explain(&facts, text, sizeof text);
        assert_true(strlen(text) < VNX_ERROR_CAUSE_MAX);
    }
}

/* -- Facts about real processes ------------------------------------------- */

/* A child that has done as `prepare` says and waits for its end. */
static pid_t
start_child(bool (*prepare)(void))
{
    int ends[2];
    char byte;

    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (!prepare() || write(ends[1], "", 1) != 1) {
            _exit(1);
        }
        for (;;) {
            pause();
        }
    }
    close(ends[1]);
    assert_int_equal(read(ends[0], &byte, 1), 1);
    close(ends[0]);
    return pid;
}

static void
end_child(pid_t pid)
{
    kill(pid, SIGKILL);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

static bool
do_nothing(void)
{
    return true;
}

static void
test_facts_about_an_ordinary_process(void **state)
{
    (void)state;
    vnxi_ptrace_facts_t facts;
    pid_t pid = start_child(do_nothing);

    vnxi_ptrace_facts_find(pid, &facts);
    assert_int_equal(facts.pid, pid);
    assert_false(facts.sandboxed);
    assert_true(facts.readable);
    assert_int_equal(facts.uid[0], getuid());
    assert_int_equal(facts.uid[1], getuid());
    assert_int_equal(facts.gid[0], getgid());
    assert_int_equal(facts.gid[1], getgid());
    assert_true(facts.extra_caps == 0);
    end_child(pid);
    vnxi_ptrace_facts_find(pid, &facts); /* it is gone: nothing differs */
    assert_int_equal(facts.uid[0], facts.uid[1]);
    assert_true(facts.readable);
}

static bool
become_nobody(void)
{
    return setgid(NOBODY) == 0 && setuid(NOBODY) == 0;
}

static bool
hide(void)
{
    return become_nobody() && prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) == 0;
}

/* In a child of user nobody: the cause by the facts about another process. */
static vnxi_ptrace_cause_t
cause_for_nobody(pid_t about)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        vnxi_ptrace_facts_t facts;
        if (!become_nobody()) {
            _exit(99);
        }
        vnxi_ptrace_facts_find(about, &facts);
        _exit((int)vnxi_ptrace_cause(&facts));
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return (vnxi_ptrace_cause_t)WEXITSTATUS(status);
}

static void
test_facts_tell_the_causes_apart(void **state)
{
    (void)state;
    if (geteuid() != 0) {
        print_message("skipped: needs root, to become another user\n");
        skip();
    }
    pid_t root = start_child(do_nothing), hidden = start_child(hide);

    assert_int_equal(cause_for_nobody(root), VNXI_PTRACE_USER);
    assert_int_equal(cause_for_nobody(hidden), VNXI_PTRACE_NOT_DUMPABLE);
    end_child(root);
    end_child(hidden);
}

/* -- Permission ----------------------------------------------------------- */

static int value = 4711;

static bool
allow(void)
{
    vnxi_ptrace_allow();
    return true;
}

/* Return 0 or the errno with which a sibling of the process reads it. */
static int
read_by_a_sibling(pid_t about)
{
    int status;
    pid_t pid = fork();

    if (pid == 0) {
        int copy = 0;
        int cause = vnxi_vm_peek(about, (uintptr_t)&value, &copy, sizeof copy);
        _exit(cause == 0 && copy != value ? EIO : cause);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

static void
test_a_process_that_allows_it_is_readable(void **state)
{
    (void)state;
    vnxi_ptrace_facts_t facts;
    pid_t pid = start_child(allow);

    vnxi_ptrace_facts_find(pid, &facts);
    int cause = read_by_a_sibling(pid);
    end_child(pid);
    if (facts.scope >= 2) {
        print_message("skipped: kernel.yama.ptrace_scope is %d\n",
                      facts.scope);
        skip();
    }
    assert_int_equal(cause, 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_only_0_forbids_to_allow_ptrace),
        cmocka_unit_test(test_each_cause_is_named_with_its_remedy),
        cmocka_unit_test(test_every_explanation_fits_into_an_error),
        cmocka_unit_test(test_facts_about_an_ordinary_process),
        cmocka_unit_test(test_facts_tell_the_causes_apart),
        cmocka_unit_test(test_a_process_that_allows_it_is_readable),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
