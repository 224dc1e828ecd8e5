/*
 * A peer's process ends while UCX connects to it over TCP, at moments that a
 * busy machine hits once in a hundred deaths.  The libraries call this
 * program's connect() and getpeername(), which kill the peer at the right
 * moment.
 */
#include "ucx_pair.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

/* The types of addresses in glibc's headers are unions. */
#ifdef __GLIBC__
typedef __CONST_SOCKADDR_ARG const_address_t;
typedef __SOCKADDR_ARG address_t;
#define ADDRESS(a) ((a).__sockaddr__)
#else
typedef const struct sockaddr *const_address_t;
typedef struct sockaddr *address_t;
#define ADDRESS(a) (a)
#endif

/* -- The moment ------------------------------------------------------------
 */

typedef enum moment { NEVER, CONNECTED, FOUND_CONNECTED } moment_t;

static atomic_int moment;
static pid_t victim;

/* Connections to it thus stay in the kernel's queue and are reset by its
 * death. */
static void
stop_victim(void)
{
    kill(victim, SIGSTOP);
    waitpid(victim, NULL, WUNTRACED);
}

/* Its sockets are closed when this returns. */
static void
kill_victim(void)
{
    kill(victim, SIGKILL);
    waitpid(victim, NULL, 0);
}

static void
pass(moment_t now)
{
    int expected = (int)now, error = errno;
    if (atomic_compare_exchange_strong(&moment, &expected, NEVER)) {
        kill_victim();
    }
    errno = error;
}

EXPORT int
connect(int fd, const_address_t addr, socklen_t len)
{
    int (*real)(int, const struct sockaddr *, socklen_t) =
        (int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT,
                                                                "connect");
    if (ADDRESS(addr)->sa_family != AF_INET) {
        return real(fd, ADDRESS(addr), len);
    }
    if (atomic_load(&moment) != NEVER) {
        stop_victim();
    }
    int ret = real(fd, ADDRESS(addr), len);
    pass(CONNECTED);
    return ret;
}

EXPORT int
getpeername(int fd, address_t addr, socklen_t *restrict len)
{
    int (*real)(int, struct sockaddr *, socklen_t *) =
        (int (*)(int, struct sockaddr *, socklen_t *))dlsym(RTLD_NEXT,
                                                            "getpeername");
    int ret = real(fd, ADDRESS(addr), len);
    if (ret == 0 && ADDRESS(addr)->sa_family == AF_INET) {
        pass(FOUND_CONNECTED);
    }
    return ret;
}

/* -- The peer --------------------------------------------------------------
 */

typedef struct peer {
    pid_t pid;
    size_t len;
    unsigned char address[4096];
} peer_t;

static void
run_peer(int fd)
{
    static ucx_side_t side;
    peer_t self = {.pid = getpid()};

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    ucx_side_open(&side, "peer", 1, 20.0);
    const void *address = vnxi_ucx_address(side.ucx, &self.len);
    assert_true(self.len <= sizeof self.address);
    memcpy(self.address, address, self.len);
    assert_int_equal(write(fd, &self, sizeof self), sizeof self);
    for (;;) {
        pause();
    }
}

static void
start_peer(peer_t *peer_p)
{
    int fds[2];
    char number[12];
    size_t got = 0;
    pid_t pid;

    assert_int_equal(pipe(fds), 0);
    fcntl(fds[0], F_SETFD, FD_CLOEXEC);
    snprintf(number, sizeof number, "%d", fds[1]);
    char *arguments[] = {"ucx_dying_peer_test", "--peer", number, NULL};
    assert_int_equal(
        posix_spawn(&pid, "/proc/self/exe", NULL, NULL, arguments, environ),
        0);
    close(fds[1]);
    while (got < sizeof *peer_p) {
        ssize_t ret = read(fds[0], (char *)peer_p + got, sizeof *peer_p - got);
        assert_true(ret > 0);
        got += (size_t)ret;
    }
    close(fds[0]);
    assert_int_equal(peer_p->pid, pid);
}

/* -- Tests -----------------------------------------------------------------
 */

static ucx_side_t here;
static peer_t living;

static vnxi_ucx_conn_t *
connect_to(const peer_t *peer, uintptr_t cookie)
{
    vnxi_ucx_conn_t *conn = NULL;
    vnx_error_t error;
    assert_int_equal(
        ucx_open(here.ucx, peer->address, peer->len, cookie, &conn, &error),
        VNX_OK);
    return conn;
}

/* When the first worker connects to it, or when the second one does. */
static vnxi_ucx_conn_t *
lose_at(const peer_t *peer, moment_t when, bool second)
{
    victim = peer->pid;
    atomic_store(&moment, second ? NEVER : (int)when);
    vnxi_ucx_conn_t *conn = connect_to(peer, 1);
    if (second) {
        await_wired(conn);
        atomic_store(&moment, (int)when);
        vnxi_ucx_conn_warm_up(conn);
    }
    ucx_side_await_lost(&here);
    assert_int_equal(here.lost_cookie, 1);
    assert_int_equal(atomic_load(&moment), NEVER);
    return conn;
}

/* It is lost, and live peers are still reached. */
static void
lose_one(moment_t when, bool second)
{
    peer_t dying;

    start_peer(&dying);
    vnxi_ucx_conn_t *lost = lose_at(&dying, when, second);
    vnxi_ucx_conn_t *well = connect_to(&living, 2);
    await_wired(well);
    end_conn(lost);
    end_conn(well);
    assert_int_equal(here.lost_count, 1);
    here.lost_count = 0;
}

static void
test_ucx_dying_peer_after_connect_is_lost(void **state)
{
    (void)state;
    lose_one(CONNECTED, false);
}

static void
test_ucx_dying_peer_before_its_greeting_is_lost(void **state)
{
    (void)state;
    lose_one(FOUND_CONNECTED, false);
}

static void
test_ucx_dying_peer_with_another_connection_is_lost_once(void **state)
{
    (void)state;
    lose_one(CONNECTED, true);
}

static int
open_group(void **state)
{
    (void)state;
    start_peer(&living);
    ucx_side_open(&here, "here", 2, 20.0);
    return 0;
}

static int
close_group(void **state)
{
    (void)state;
    ucx_side_close(&here);
    victim = living.pid;
    kill_victim();
    return 0;
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ucx_dying_peer_after_connect_is_lost),
        cmocka_unit_test(test_ucx_dying_peer_before_its_greeting_is_lost),
        cmocka_unit_test(
            test_ucx_dying_peer_with_another_connection_is_lost_once),
    };

    setenv("UCX_TLS", "tcp", 1);
#ifdef M_PERTURB
    mallopt(M_PERTURB, 1); /* freed memory is overwritten */
#endif
    if (argc == 3 && strcmp(argv[1], "--peer") == 0) {
        run_peer(atoi(argv[2]));
    }
    return ucx_has_library()
               ? cmocka_run_group_tests(tests, open_group, close_group)
               : 77;
}
