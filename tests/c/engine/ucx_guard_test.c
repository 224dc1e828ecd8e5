/* The guard around a loaded library (the fake libucp): sends do not fail. */
#include "vnx_test.h"

#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vnx/log.h>

#include "base/fork_fds.h"
#include "child_check.h"
#include "engine/ucx_guard.h"
#include "fake_ucp.h"

static const fake_ucp_calls_t *calls;
static void *library;
static const char *guard;

/* -- Connections -----------------------------------------------------------
 */

typedef struct link {
    int ours, theirs;
} link_t;

static void
link_open(link_t *link_p)
{
    struct sockaddr_in addr = {.sin_family = AF_INET};
    socklen_t len = sizeof addr;
    int listener = socket(AF_INET, SOCK_STREAM, 0);

    addr.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(bind(listener, (struct sockaddr *)&addr, len), 0);
    assert_int_equal(listen(listener, 1), 0);
    getsockname(listener, (struct sockaddr *)&addr, &len);
    link_p->ours = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(link_p->ours, (struct sockaddr *)&addr, len), 0);
    link_p->theirs = accept(listener, NULL, NULL);
    assert_true(link_p->theirs >= 0);
    close(listener);
    fcntl(link_p->ours, F_SETFL, O_NONBLOCK);
}

static void
link_close(link_t *link)
{
    close(link->ours);
    close(link->theirs);
}

/* The other side closes with unread bytes, which resets the connection. */
static void
link_break(link_t *link)
{
    char byte;
    assert_int_equal(send(link->ours, "x", 1, MSG_NOSIGNAL), 1);
    assert_int_equal(recv(link->theirs, &byte, 1, MSG_PEEK), 1);
    close(link->theirs);
    link->theirs = -1;
}

static ssize_t
send_two(int fd, const char *one, const char *other)
{
    struct iovec parts[] = {
        {.iov_base = (char *)(uintptr_t)one, .iov_len = strlen(one)},
        {.iov_base = (char *)(uintptr_t)other, .iov_len = strlen(other)},
    };
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    return calls->sendmsg(fd, &message, MSG_NOSIGNAL);
}

static void
assert_has_ended(int fd)
{
    struct pollfd poller = {.fd = fd, .events = POLLIN};
    char byte;
    assert_int_equal(poll(&poller, 1, 0), 1);
    assert_true(poller.revents & POLLIN);
    assert_int_equal(recv(fd, &byte, 1, 0), 0);
}

/* -- Tests -----------------------------------------------------------------
 */

static void
test_ucx_guard_does_not_change_successful_sends(void **state)
{
    link_t link;
    char text[16];
    (void)state;
    link_open(&link);
    assert_int_equal(calls->send(link.ours, "abc", 3, MSG_NOSIGNAL), 3);
    assert_int_equal(send_two(link.ours, "def", "gh"), 5);
    assert_int_equal(recv(link.theirs, text, 8, MSG_WAITALL), 8);
    assert_memory_equal(text, "abcdefgh", 8);
    link_close(&link);
}

/* Part of it may be sent; then the caller has to try again. */
static void
test_ucx_guard_reports_a_full_socket(void **state)
{
    static char much[1 << 20];
    link_t link;
    ssize_t sent, all = 0, came = 0;
    (void)state;
    link_open(&link);
    while ((sent = calls->send(link.ours, much, sizeof much, MSG_NOSIGNAL)) >
           0) {
        all += sent;
    }
    assert_int_equal(errno, EAGAIN);
    assert_int_equal(send_two(link.ours, "a", "b"), -1);
    assert_int_equal(errno, EAGAIN);
    while (came < all) {
        ssize_t ret = recv(link.theirs, much, sizeof much, 0);
        assert_true(ret > 0);
        came += ret;
    }
    assert_int_equal(calls->send(link.ours, "x", 1, MSG_NOSIGNAL), 1);
    link_close(&link);
}

static void
test_ucx_guard_hides_a_reset_from_senders(void **state)
{
    link_t link;
    (void)state;
    link_open(&link);
    link_break(&link);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(calls->send(link.ours, "abc", 3, MSG_NOSIGNAL), 3);
    }
    assert_has_ended(link.ours);
    link_close(&link);

    link_open(&link);
    link_break(&link);
    assert_int_equal(send_two(link.ours, "def", "gh"), 5);
    assert_int_equal(send_two(link.ours, "def", "gh"), 5);
    assert_has_ended(link.ours);
    link_close(&link);
}

/* Otherwise UCX goes on with all that a dead peer has asked for, before it
 * receives again: 27 s for 64 000 times 4 MiB. */
static void
test_ucx_guard_lets_data_for_a_dead_peer_wait(void **state)
{
    static char much[65520];
    link_t link;
    (void)state;
    link_open(&link);
    link_break(&link);
    for (int i = 0; i < 3; i++) {
        errno = 0;
        assert_int_equal(
            calls->send(link.ours, much, sizeof much, MSG_NOSIGNAL), -1);
        assert_int_equal(errno, EAGAIN);
    }
    assert_has_ended(link.ours);
    link_close(&link);
}

/* Bytes received before the reset are read first. */
static void
test_ucx_guard_loses_no_received_bytes(void **state)
{
    link_t link;
    char text[4];
    (void)state;
    link_open(&link);
    assert_int_equal(send(link.theirs, "last", 4, MSG_NOSIGNAL), 4);
    link_break(&link);
    assert_int_equal(calls->send(link.ours, "abc", 3, MSG_NOSIGNAL), 3);
    assert_int_equal(recv(link.ours, text, 4, 0), 4);
    assert_memory_equal(text, "last", 4);
    assert_has_ended(link.ours);
    link_close(&link);
}

static void
test_ucx_guard_reports_a_callers_mistakes(void **state)
{
    (void)state;
    assert_int_equal(calls->send(-1, "x", 1, MSG_NOSIGNAL), -1);
    assert_int_equal(errno, EBADF);
    assert_int_equal(send_two(-1, "x", "y"), -1);
    assert_int_equal(errno, EBADF);
}

static void
test_ucx_guard_fills_memory(void **state)
{
    enum { SIZE = 5000 };
    static const char nothing[SIZE];
    (void)state;
    for (int i = 0; i < 10; i++) {
        char *memory = calls->malloc(SIZE);
        assert_memory_equal(memory, nothing, SIZE);
        memset(memory, 0x5a, SIZE);
        free(memory);
    }
}

/* This program's. */
static void
test_ucx_guard_does_not_affect_other_libraries(void **state)
{
    link_t link;
    (void)state;
    link_open(&link);
    link_break(&link);
    assert_int_equal(send(link.ours, "abc", 3, MSG_NOSIGNAL), -1);
    assert_true(errno == ECONNRESET || errno == EPIPE);
    link_close(&link);
}

/* The decision about a copy is made once; without libucp there is none. */
static void
test_ucx_guard_reports_its_decision(void **state)
{
    vnxi_ucx_loaded_t now;
    (void)state;
    vnxi_ucx_loaded_find(&now);
    assert_string_equal(guard, "on: UCX 1.22 needs it");
    assert_ptr_equal(vnxi_ucx_guard(library, &now), guard);
    assert_null(vnxi_ucx_guard(NULL, &now));
    void *other = dlopen("libcmocka.so.0", RTLD_NOW);
    assert_non_null(other);
    assert_null(vnxi_ucx_guard(other, &now));
    dlclose(other);
    vnxi_ucx_loaded_free(&now);
}

/* Listen at an abstract address that the kernel chooses; returns its length.
 */
static socklen_t
listen_anywhere(int listener, struct sockaddr_un *address_p)
{
    socklen_t len = sizeof *address_p;

    *address_p = (struct sockaddr_un){.sun_family = AF_UNIX};
    assert_int_equal(bind(listener, (struct sockaddr *)address_p,
                          sizeof address_p->sun_family),
                     0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)address_p, &len),
                     0);
    assert_int_equal(listen(listener, 8), 0);
    return len;
}

/* Without descriptors, waiting connections are refused and the caller sees
 * none; later ones are accepted. */
static void
test_ucx_guard_refuses_connections_without_descriptors(void **state)
{
    struct sockaddr_un address;
    struct rlimit before, low;
    char byte;
    (void)state;
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    socklen_t len = listen_anywhere(listener, &address);
    int clients[2];
    for (int i = 0; i < 2; i++) {
        clients[i] = socket(AF_UNIX, SOCK_STREAM, 0);
        assert_int_equal(connect(clients[i], (struct sockaddr *)&address, len),
                         0);
    }
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    low = before;
    low.rlim_cur = 64;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
    int first = dup(0), last = first, fd;
    while ((fd = dup(0)) >= 0) {
        last = fd;
    }
    assert_int_equal(calls->accept(listener, NULL, NULL), -1);
    assert_int_equal(errno, EAGAIN);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(recv(clients[i], &byte, 1, 0), 0);
        close(clients[i]);
    }
    for (fd = first; fd <= last; fd++) {
        close(fd);
    }
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
    clients[0] = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(connect(clients[0], (struct sockaddr *)&address, len), 0);
    fd = calls->accept(listener, NULL, NULL);
    assert_true(fd >= 0);
    close(fd);
    close(clients[0]);
    close(listener);
}

/* -- Children --------------------------------------------------------------
 */

/* Return whether the descriptor is open in a forked child. */
static bool
is_open_in_child(int fd)
{
    int status;
    pid_t child = fork();

    assert_true(child >= 0);
    if (child == 0) {
        _exit(fcntl(fd, F_GETFD) >= 0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status) == 1;
}

static void
assert_is_kept_from_children(int fd)
{
    assert_true(fd >= 0);
    assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
    assert_false(is_open_in_child(fd));
    assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
}

/* Children would keep connections alive.  After a close, the number may be
 * that of a file that children are to have. */
static void
test_ucx_guard_keeps_sockets_from_children(void **state)
{
    struct sockaddr_un address;
    (void)state;
    int listener = calls->socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    assert_is_kept_from_children(listener);
    assert_true((fcntl(listener, F_GETFL) & O_NONBLOCK) != 0);
    socklen_t len = listen_anywhere(listener, &address);
    int client = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(connect(client, (struct sockaddr *)&address, len), 0);
    int accepted = calls->accept(listener, NULL, NULL);
    assert_is_kept_from_children(accepted);

    assert_int_equal(calls->close(accepted), 0);
    assert_int_equal(dup2(client, accepted), accepted);
    assert_true(is_open_in_child(accepted));
    assert_int_equal(calls->close(accepted), 0);
    assert_int_equal(calls->close(accepted), -1);
    assert_int_equal(errno, EBADF);
    assert_int_equal(calls->close(listener), 0);
    close(client);
}

/* A program that closes all descriptors may have files in their place. */
static void
test_ucx_guard_closes_nothing_of_the_program(void **state)
{
    int status;
    (void)state;
    pid_t child = fork();

    assert_true(child >= 0);
    if (child == 0) {
        int fd = calls->socket(AF_UNIX, SOCK_STREAM, 0);
        CHECK(fd >= 0 && !vnxi_fds_lost(vnxi_fds_epoch()));
        for (int other = 3; other < 256; other++) {
            close(other);
        }
        CHECK(dup2(0, fd) == fd);
        CHECK(calls->close(fd) == 0);
        CHECK(fcntl(fd, F_GETFD) >= 0);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static sem_t is_deciding, may_go_on;

static void
pause_decision(void *context, const vnx_log_line_t *line)
{
    (void)context;
    if (strstr(line->text, "VLLM_NIXL_UCX_GUARD") != NULL) {
        sem_post(&is_deciding);
        sem_wait(&may_go_on);
    }
}

static void *
decide(void *copy)
{
    vnxi_ucx_loaded_t now;

    vnxi_ucx_loaded_find(&now);
    const char *why = vnxi_ucx_guard(copy, &now);
    vnxi_ucx_loaded_free(&now);
    return (void *)(uintptr_t)why;
}

/* The same library once more. */
static void *
load_copy(void)
{
    char path[] = "/tmp/vnx-guard-XXXXXX";
    int from = open(FAKE_UCP, O_RDONLY | O_CLOEXEC), to = mkstemp(path);
    struct stat stat;

    assert_true(from >= 0 && to >= 0);
    assert_int_equal(fstat(from, &stat), 0);
    while (sendfile(to, from, NULL, (size_t)stat.st_size) > 0) {
    }
    close(from);
    close(to);
    void *copy = dlopen(path, RTLD_NOW);
    unlink(path);
    assert_non_null(copy);
    return copy;
}

/* A child that is forked while another thread decides about a copy. */
static void
test_ucx_guard_decides_in_a_child(void **state)
{
    vnxi_ucx_loaded_t now = {0};
    pthread_t thread;
    void *why;
    int status;
    (void)state;
    sem_init(&is_deciding, 0, 0);
    sem_init(&may_go_on, 0, 0);
    setenv("VLLM_NIXL_UCX_GUARD", "perhaps", 1);
    vnx_log_set(pause_decision, NULL);
    assert_int_equal(pthread_create(&thread, NULL, decide, load_copy()), 0);
    sem_wait(&is_deciding);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        alarm(20);
        _exit(vnxi_ucx_guard(library, &now) == guard ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    sem_post(&may_go_on);
    pthread_join(thread, &why);
    vnx_log_set(NULL, NULL);
    unsetenv("VLLM_NIXL_UCX_GUARD");
    assert_int_equal(status, 0);
    assert_non_null(strstr(why, "VLLM_NIXL_UCX_GUARD=perhaps is ignored"));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ucx_guard_does_not_change_successful_sends),
        cmocka_unit_test(test_ucx_guard_reports_a_full_socket),
        cmocka_unit_test(test_ucx_guard_hides_a_reset_from_senders),
        cmocka_unit_test(test_ucx_guard_lets_data_for_a_dead_peer_wait),
        cmocka_unit_test(test_ucx_guard_loses_no_received_bytes),
        cmocka_unit_test(test_ucx_guard_reports_a_callers_mistakes),
        cmocka_unit_test(
            test_ucx_guard_refuses_connections_without_descriptors),
        cmocka_unit_test(test_ucx_guard_fills_memory),
        cmocka_unit_test(test_ucx_guard_keeps_sockets_from_children),
        cmocka_unit_test(test_ucx_guard_closes_nothing_of_the_program),
        cmocka_unit_test(test_ucx_guard_decides_in_a_child),
        cmocka_unit_test(test_ucx_guard_does_not_affect_other_libraries),
        cmocka_unit_test(test_ucx_guard_reports_its_decision),
    };
    vnxi_ucx_loaded_t before;
    vnxi_ucx_loaded_find(&before);
    library = dlopen(FAKE_UCP, RTLD_NOW);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    calls = dlsym(library, "fake_ucp_calls");
    guard = vnxi_ucx_guard(library, &before);
    vnxi_ucx_loaded_free(&before);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
