/* The choice of a libucp, and the reasons against others.  A process loads it
 * once, so each test runs in its own process. */
#include "vnx_test.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/search_path.h"
#include "engine/native/ucx/context.h"
#include "engine/native/ucx/library.h"
#include "fake_ucp.h"

/* The child's results. */
typedef struct found {
    bool loaded, created;
    bool guarded; /* where it is the fake one */
    char guard[256];
    unsigned major, minor;
    char path[512], why[1024];
    vnx_status_t status;
    char cause[512];
} found_t;

static found_t *found;
static char root[] = "/tmp/ucx_library_test.XXXXXX";

/* Does its send() hide that the peer is gone? */
static bool
is_guarded(const char *path)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
    const fake_ucp_calls_t *calls =
        library != NULL ? dlsym(library, "fake_ucp_calls") : NULL;
    int fds[2];

    if (calls == NULL || socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0) {
        return false;
    }
    close(fds[1]);
    return calls->send(fds[0], "x", 1, MSG_NOSIGNAL) == 1;
}

static void
look_in_child(const char *const *dirs, size_t count)
{
    const char *why = "";
    vnxi_ucx_config_t config = {.name = "x", .name_len = 1, .workers = 1};
    vnxi_ucx_t *ucx;
    vnx_error_t error;

    vnxi_search_path_set(dirs, count);
    if (getenv("LOAD_BEFORE") != NULL) {
        dlopen(getenv("LOAD_BEFORE"), RTLD_NOW);
    }
    const vnxi_ucx_library_t *library = vnxi_ucx_library(&why);
    found->loaded = library != NULL;
    if (library != NULL) {
        found->major = library->major;
        found->minor = library->minor;
        snprintf(found->path, sizeof found->path, "%s", library->path);
        found->guarded = is_guarded(library->path);
        snprintf(found->guard, sizeof found->guard, "%s", library->guard);
    }
    snprintf(found->why, sizeof found->why, "%s", why);
    if (vnxi_ucx_library(NULL) != library) {
        _exit(2);
    }
    found->status = vnxi_ucx_create(&config, &ucx, &error);
    found->created = found->status == VNX_OK;
    if (found->created) {
        vnxi_ucx_stop(ucx);
        vnxi_ucx_release(ucx);
    } else {
        snprintf(found->cause, sizeof found->cause, "%s", error.cause);
    }
    _exit(0);
}

static void
look(const char *const *dirs, size_t count)
{
    int status;
    memset(found, 0, sizeof *found);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        look_in_child(dirs, count);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static int
forget(void **state)
{
    (void)state;
    unsetenv("VLLM_NIXL_UCX_LIBRARY");
    unsetenv("FAKE_UCP_MAJOR");
    unsetenv("FAKE_UCP_MINOR");
    return 0;
}

static void
name_library(const char *path)
{
    setenv("VLLM_NIXL_UCX_LIBRARY", path, 1);
}

static void
assert_why(const char *part)
{
    assert_false(found->loaded);
    if (strstr(found->why, part) == NULL) {
        fail_msg("'%s' is not in '%s'", part, found->why);
    }
    assert_int_equal(found->status, VNX_ERR_NOT_FOUND);
    assert_non_null(strstr(found->cause, "no libucp: "));
    assert_non_null(strstr(found->cause, part));
}

/* A wheel's file, which is that library. */
static void
install(const char *site, const char *folder, const char *file,
        const char *library)
{
    char path[512];
    snprintf(path, sizeof path, "%s/%s", root, site);
    mkdir(path, 0700);
    for (char *slash, *rest = (char *)folder; rest != NULL;
         rest = slash != NULL ? slash + 1 : NULL) {
        slash = strchr(rest, '/');
        snprintf(
            path, sizeof path, "%s/%s/%.*s", root, site,
            (int)(slash != NULL ? (size_t)(slash - folder) : strlen(folder)),
            folder);
        mkdir(path, 0700);
    }
    snprintf(path, sizeof path, "%s/%s/%s/%s", root, site, folder, file);
    assert_int_equal(symlink(library, path), 0);
}

static void
look_at(const char *site)
{
    char path[512];
    const char *const dirs[] = {path};
    snprintf(path, sizeof path, "%s/%s", root, site);
    look(dirs, 1);
}

static void
assert_path_ends(const char *end)
{
    size_t len = strlen(found->path), end_len = strlen(end);
    assert_true(found->loaded && found->created);
    if (len < end_len || strcmp(found->path + len - end_len, end) != 0) {
        fail_msg("'%s' does not end in '%s'", found->path, end);
    }
}

/* -- The variable ----------------------------------------------------------
 */

static void
test_ucx_library_named_in_the_environment_is_used(void **state)
{
    (void)state;
    name_library(FAKE_UCP);
    look(NULL, 0);
    assert_path_ends(FAKE_UCP);
    assert_int_equal(found->major, 1);
    assert_int_equal(found->minor, 22);
}

/* VLLM_NIXL_UCX_GUARD, the version, and copies loaded before. */
static void
assert_guard(const char *wish, const char *minor, const char *before,
             const char *text)
{
    if (wish != NULL) {
        setenv("VLLM_NIXL_UCX_GUARD", wish, 1);
    }
    if (before != NULL) {
        setenv("LOAD_BEFORE", before, 1);
    }
    setenv("FAKE_UCP_MINOR", minor, 1);
    name_library(FAKE_UCP);
    look(NULL, 0);
    unsetenv("VLLM_NIXL_UCX_GUARD");
    unsetenv("LOAD_BEFORE");
    assert_true(found->loaded);
    if (strncmp(found->guard, text, strlen(text)) != 0) {
        fail_msg("'%s' does not begin with '%s'", found->guard, text);
    }
    assert_int_equal(found->guarded, strncmp(text, "on: ", 4) == 0);
}

static void
test_ucx_library_is_guarded_in_versions_that_need_it(void **state)
{
    (void)state;
    for (int minor = 19; minor <= 23; minor++) {
        char number[8], text[64];
        snprintf(number, sizeof number, "%d", minor);
        snprintf(text, sizeof text, "on: UCX 1.%d needs it", minor);
        assert_guard(NULL, number, NULL, text);
    }
    assert_guard(NULL, "24", NULL, "off: UCX 1.24 is not known to need it");
    assert_guard(NULL, "199", NULL, "off: UCX 1.199 is not known to need it");
}

/* Other users may rely on the unmodified behaviour of that copy. */
static void
test_ucx_library_loaded_before_is_not_guarded(void **state)
{
    (void)state;
    assert_guard(NULL, "22", FAKE_UCP,
                 "off: another part of this process had loaded this copy");
    assert_guard(NULL, "22", FAKE_UCP_CUT, "on: UCX 1.22 needs it");
}

static void
test_ucx_library_guard_setting_is_obeyed(void **state)
{
    (void)state;
    assert_guard("0", "22", NULL, "off: VLLM_NIXL_UCX_GUARD=0");
    assert_guard("1", "22", NULL, "on: VLLM_NIXL_UCX_GUARD=1");
    assert_guard("1", "199", NULL, "on: VLLM_NIXL_UCX_GUARD=1");
    assert_guard("1", "22", FAKE_UCP, "on: VLLM_NIXL_UCX_GUARD=1");
    assert_guard("", "22", NULL, "on: UCX 1.22 needs it");
    assert_guard("yes", "22", NULL,
                 "on: UCX 1.22 needs it; VLLM_NIXL_UCX_GUARD=yes is ignored");
    assert_guard("no", "24", NULL, "off: UCX 1.24");
    assert_non_null(strstr(found->guard, "=no is ignored"));
}

static void
test_ucx_library_none_switches_it_off(void **state)
{
    (void)state;
    name_library("none");
    look(NULL, 0);
    assert_why("disabled by VLLM_NIXL_UCX_LIBRARY=none");
}

static void
test_ucx_library_named_but_missing_is_an_error(void **state)
{
    (void)state;
    name_library("/nowhere/libucp.so");
    look(NULL, 0);
    assert_why("/nowhere/libucp.so");
}

/* If a library is named, only that one is tried. */
static void
test_ucx_library_named_has_no_fallback(void **state)
{
    (void)state;
    install("named", "nixl_cu13.libs", "libucp-1.so.0.0.0", FAKE_UCP);
    name_library("libc.so.6");
    look_at("named");
    assert_why("libc.so.6 has no ucp_get_version");
}

static void
test_ucx_library_without_a_function_is_refused(void **state)
{
    (void)state;
    name_library(FAKE_UCP_CUT);
    look(NULL, 0);
    assert_why("has no ucs_log_push_handler");
}

static void
test_ucx_library_of_other_versions_is_refused(void **state)
{
    static const struct {
        const char *major, *minor;
        bool good;
    } versions[] = {
        {"1", "18", false}, {"1", "0", false},  {"0", "99", false},
        {"2", "19", false}, {"2", "0", false},  {"1", "19", true},
        {"1", "20", true},  {"1", "199", true},
    };
    char text[64];
    (void)state;
    name_library(FAKE_UCP);
    for (size_t i = 0; i < sizeof versions / sizeof versions[0]; i++) {
        setenv("FAKE_UCP_MAJOR", versions[i].major, 1);
        setenv("FAKE_UCP_MINOR", versions[i].minor, 1);
        look(NULL, 0);
        assert_int_equal(found->loaded, versions[i].good);
        if (!versions[i].good) {
            snprintf(text, sizeof text,
                     "is UCX %s.%s, but 1.19 or a later 1.x",
                     versions[i].major, versions[i].minor);
            assert_why(text);
        }
    }
}

/* -- Wheels ----------------------------------------------------------------
 */

static void
test_ucx_library_wheels_are_tried_in_order(void **state)
{
    (void)state;
    install("wheels", "libucx/lib", "libucp.so.0", FAKE_UCP);
    look_at("wheels");
    assert_path_ends("wheels/libucx/lib/libucp.so.0");
    install("wheels", "nixl_cu12.libs", "libucp-abc.so.0.0.0", FAKE_UCP);
    look_at("wheels");
    assert_path_ends("wheels/nixl_cu12.libs/libucp-abc.so.0.0.0");
    install("wheels", "nixl_cu13.libs", "libucp-def.so.0.0.0", FAKE_UCP);
    look_at("wheels");
    assert_path_ends("wheels/nixl_cu13.libs/libucp-def.so.0.0.0");
}

/* An unusable wheel does not hide later ones. */
static void
test_ucx_library_skips_broken_wheels(void **state)
{
    (void)state;
    install("broken", "nixl_cu13.libs", "libucp-1.so.0.0.0", FAKE_UCP_CUT);
    install("broken", "nixl_cu12.libs", "libucp-1.so.0.0.0", "/nowhere.so");
    install("broken", "libucx/lib", "libucp.so.0", FAKE_UCP);
    look_at("broken");
    assert_path_ends("broken/libucx/lib/libucp.so.0");
}

static void
test_ucx_library_empty_name_is_ignored(void **state)
{
    (void)state;
    install("empty", "libucx/lib", "libucp.so.0", FAKE_UCP);
    name_library("");
    look_at("empty");
    assert_path_ends("empty/libucx/lib/libucp.so.0");
}

/* If all are unusable, the error lists each with its cause; a system library
 * would be used. */
static void
test_ucx_library_error_lists_every_candidate(void **state)
{
    (void)state;
    install("all", "nixl_cu13.libs", "libucp-1.so.0.0.0", FAKE_UCP_CUT);
    install("all", "nixl_cu12.libs", "libucp-1.so.0.0.0", "/etc/passwd");
    look_at("all");
    if (found->loaded) {
        assert_string_equal(found->path, "libucp.so.0");
        return;
    }
    assert_why("nixl_cu13.libs/libucp-1.so.0.0.0 has no ucs_log_push");
    assert_why("nixl_cu12.libs/libucp-1.so.0.0.0");
    assert_why("libucp.so.0: ");
    assert_why("pip install libucx-cu12");
}

/* -- Statuses --------------------------------------------------------------
 */

static void
test_ucx_library_statuses(void **state)
{
    (void)state;
    assert_int_equal(vnxi_ucx_status(VNXI_UCS_OK), VNX_OK);
    assert_int_equal(vnxi_ucx_status(VNXI_UCS_INPROGRESS), VNX_IN_PROG);
    assert_int_equal(vnxi_ucx_status(VNXI_UCS_ERR_CONNECTION_RESET),
                     VNX_ERR_REMOTE_DISCONNECT);
    assert_int_equal(vnxi_ucx_status(VNXI_UCS_ERR_ENDPOINT_TIMEOUT),
                     VNX_ERR_REMOTE_DISCONNECT);
    assert_int_equal(vnxi_ucx_status(VNXI_UCS_ERR_CANCELED),
                     VNX_ERR_REMOTE_DISCONNECT);
    assert_int_equal(vnxi_ucx_status(VNXI_UCS_ERR_NO_MEMORY),
                     VNX_ERR_NO_MEMORY);
    assert_int_equal(vnxi_ucx_status(VNXI_UCS_ERR_INVALID_PARAM),
                     VNX_ERR_INVALID_PARAM);
    for (int status = -100; status < 0; status++) {
        assert_true(vnxi_ucx_status((vnxi_ucs_status_t)status) < 0);
    }
}

static int
clean_up(void **state)
{
    char command[128];
    (void)state;
    snprintf(command, sizeof command, "rm -r %s", root);
    return system(command);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(
            test_ucx_library_named_in_the_environment_is_used, forget),
        cmocka_unit_test_setup(
            test_ucx_library_is_guarded_in_versions_that_need_it, forget),
        cmocka_unit_test_setup(test_ucx_library_loaded_before_is_not_guarded,
                               forget),
        cmocka_unit_test_setup(test_ucx_library_guard_setting_is_obeyed,
                               forget),
        cmocka_unit_test_setup(test_ucx_library_none_switches_it_off, forget),
        cmocka_unit_test_setup(test_ucx_library_named_but_missing_is_an_error,
                               forget),
        cmocka_unit_test_setup(test_ucx_library_named_has_no_fallback, forget),
        cmocka_unit_test_setup(test_ucx_library_without_a_function_is_refused,
                               forget),
        cmocka_unit_test_setup(test_ucx_library_of_other_versions_is_refused,
                               forget),
        cmocka_unit_test_setup(test_ucx_library_wheels_are_tried_in_order,
                               forget),
        cmocka_unit_test_setup(test_ucx_library_skips_broken_wheels, forget),
        cmocka_unit_test_setup(test_ucx_library_empty_name_is_ignored, forget),
        cmocka_unit_test_setup(test_ucx_library_error_lists_every_candidate,
                               forget),
        cmocka_unit_test_setup(test_ucx_library_statuses, forget),
    };
    if (mkdtemp(root) == NULL) {
        return 1;
    }
    found = mmap(NULL, sizeof *found, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return cmocka_run_group_tests(tests, NULL, clean_up);
}
