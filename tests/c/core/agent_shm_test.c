/* Two processes: the agent's guarantees over SHM, and a peer's death. */
#include "agent_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LEN (16u << 20)
#define ROW 4096u
#define ROWS (LEN / ROW)

/* The child's memory, as it reports it. */
typedef struct hello {
    uint64_t plain, shared;
    uint64_t blob_len;
} hello_t;

typedef struct child {
    pid_t pid;
    int commands, answers; /* pipes */
    hello_t hello;
    void *blob;
} child_t;

static void
read_all(int fd, void *target, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = read(fd, (char *)target + done, len - done);
        if (n <= 0) {
            _exit(n == 0 ? 0 : 3);
        }
        done += (size_t)n;
    }
}

static void
write_all(int fd, const void *source, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t n = write(fd, (const char *)source + done, len - done);
        if (n <= 0) {
            _exit(4);
        }
        done += (size_t)n;
    }
}

/* The child: commands are single bytes.
 *   'n' answer the length of the next notification, with its sum
 *   'p' answer the byte sum of the plain memory
 *   'd' deregister the plain memory, answer 1
 *   'r' deregister the plain memory and register it again, answer 1
 *   'm' answer the metadata, of the same length as before
 *   'c' close the agent, answer 1                                          */
static uint64_t
obey(vnx_agent_t *agent, char command, unsigned char *plain)
{
    uint64_t sum = 0;
    vnx_notif_t *notif;

    switch (command) {
    case 'n':
        notif = await_notif(agent);
        sum = notif->message_len;
        vnx_notif_free(notif);
        return sum;
    case 'p':
        for (size_t i = 0; i < LEN; i++) {
            sum += plain[i];
        }
        return sum;
    case 'd':
        deregister_at(agent, plain, LEN);
        return 1;
    case 'r':
        deregister_at(agent, plain, LEN);
        register_at(agent, plain, LEN);
        return 1;
    case 'c':
        vnx_agent_close(agent);
        return 1;
    }
    return 0;
}

static void
tell_metadata(vnx_agent_t *agent, int answers)
{
    vnx_bytes_t blob;
    assert_ok(vnx_agent_metadata(agent, &blob, e));
    write_all(answers, blob.data, blob.len);
    free(blob.data);
}

static void
run_child(const char *name, int commands, int answers)
{
    vnx_agent_t *agent = make_agent(name);
    unsigned char *plain = malloc(LEN);
    vnx_shared_buffer_t *buffer;
    vnx_bytes_t blob;
    char command;

    assert_ok(vnx_shared_buffer_create(LEN, &buffer, e));
    fill(plain, LEN, 1);
    fill(vnx_shared_buffer_data(buffer), LEN, 2);
    register_at(agent, plain, LEN);
    register_at(agent, vnx_shared_buffer_data(buffer), LEN);
    assert_ok(vnx_agent_metadata(agent, &blob, e));
    hello_t hello = {(uint64_t)(uintptr_t)plain,
                     (uint64_t)(uintptr_t)vnx_shared_buffer_data(buffer),
                     blob.len};
    write_all(answers, &hello, sizeof hello);
    write_all(answers, blob.data, blob.len);
    for (;;) {
        read_all(commands, &command, 1);
        if (command == 'm') {
            tell_metadata(agent, answers);
            continue;
        }
        uint64_t answer = obey(agent, command, plain);
        write_all(answers, &answer, sizeof answer);
    }
}

/* A program of its own (this one, called with --child), since a forked copy of
 * a process with threads may not start threads under every sanitizer. */
static child_t
start_child(const char *name)
{
    int down[2], up[2];
    char fds[2][12];
    child_t child;

    assert_int_equal(pipe(down), 0);
    assert_int_equal(pipe(up), 0);
    fcntl(down[1], F_SETFD, FD_CLOEXEC);
    fcntl(up[0], F_SETFD, FD_CLOEXEC);
    snprintf(fds[0], sizeof fds[0], "%d", down[0]);
    snprintf(fds[1], sizeof fds[1], "%d", up[1]);
    char *arguments[] = {"agent_shm_test", "--child", (char *)name,
                         fds[0],           fds[1],    NULL};
    assert_int_equal(posix_spawn(&child.pid, "/proc/self/exe", NULL, NULL,
                                 arguments, environ),
                     0);
    close(down[0]);
    close(up[1]);
    child.commands = down[1];
    child.answers = up[0];
    read_all(child.answers, &child.hello, sizeof child.hello);
    child.blob = malloc(child.hello.blob_len);
    read_all(child.answers, child.blob, child.hello.blob_len);
    return child;
}

static uint64_t
ask(const child_t *child, char command)
{
    uint64_t answer;
    write_all(child->commands, &command, 1);
    read_all(child->answers, &answer, sizeof answer);
    return answer;
}

static void
end_child(child_t *child)
{
    kill(child->pid, SIGKILL);
    waitpid(child->pid, NULL, 0);
    close(child->commands);
    close(child->answers);
    free(child->blob);
}

static void
load_child(vnx_agent_t *agent, const child_t *child)
{
    vnx_bytes_t name;
    assert_ok(vnx_agent_load_metadata(agent, child->blob,
                                      child->hello.blob_len, &name, e));
    free(name.data);
}

static vnx_dlist_t *
prepare_remote(vnx_agent_t *agent, const char *name, uint64_t at)
{
    return prepare_rows(agent, name, (void *)(uintptr_t)at, ROW, ROWS);
}

/* Every second row, so that nothing merges. */
static vnx_xfer_t *
make_scattered(vnx_agent_t *agent, vnx_op_t op, vnx_dlist_t *local,
               vnx_dlist_t *remote, const char *notif)
{
    uint32_t rows[ROWS / 2];
    vnx_xfer_t *xfer = NULL;
    for (uint32_t i = 0; i < ROWS / 2; i++) {
        rows[i] = 2 * ((i * 1021u) % (ROWS / 2));
    }
    vnx_indices_t indices = {rows, ROWS / 2, VNX_INDEX_U32};
    assert_ok(vnx_xfer_create_prepped(
        agent, op, local, indices, remote, indices, notif,
        notif ? strlen(notif) : 0, false, &xfer, e));
    return xfer;
}

static void
check_even_rows(const unsigned char *at, unsigned seed)
{
    unsigned char *expected = malloc(LEN);
    fill(expected, LEN, seed);
    for (size_t i = 0; i < ROWS; i += 2) {
        assert_memory_equal(at + i * ROW, expected + i * ROW, ROW);
    }
    free(expected);
}

/* Our agent "A", which knows the child "B", and what it reads into or writes
 * from. */
typedef struct scene {
    child_t child;
    vnx_agent_t *agent;
    unsigned char *mine;
    vnx_dlist_t *local;
} scene_t;

static scene_t
scene_open(void)
{
    scene_t s;
    s.child = start_child("B");
    s.agent = make_agent("A");
    s.mine = calloc(1, LEN);
    register_at(s.agent, s.mine, LEN);
    load_child(s.agent, &s.child);
    s.local = prepare_rows(s.agent, "", s.mine, ROW, ROWS);
    return s;
}

static void
scene_close(scene_t *s)
{
    vnx_dlist_release(s->local);
    vnx_agent_release(s->agent);
    free(s->mine);
    end_child(&s->child);
}

static void
test_shm_reads_plain_and_shared_memory(void **state)
{
    (void)state;
    scene_t s = scene_open();
    vnx_agent_t *agent = s.agent;

    for (unsigned seed = 1; seed <= 2; seed++) {
        vnx_dlist_t *remote = prepare_remote(agent, "B",
                                             seed == 1 ? s.child.hello.plain
                                                       : s.child.hello.shared);
        vnx_xfer_t *xfer =
            make_scattered(agent, VNX_OP_READ, s.local, remote, "read");
        memset(s.mine, 0, LEN);
        run_xfer(agent, xfer);
        check_even_rows(s.mine, seed);
        assert_int_equal(ask(&s.child, 'n'), 4);
        vnx_xfer_abandon(xfer);
        vnx_dlist_release(remote);
    }
    vnx_bytes_t json;
    assert_ok(vnx_agent_describe(agent, "B", 1, &json, e));
    assert_non_null(strstr(json.data, "\"regions_direct\": 1,"));
    assert_non_null(strstr(json.data, "\"state\": \"connected\""));
    free(json.data);
    scene_close(&s);
}

static void
test_shm_write_lands_before_its_notification(void **state)
{
    (void)state;
    scene_t s = scene_open();
    vnx_agent_t *agent = s.agent;
    uint64_t sum = 0;
    fill(s.mine, LEN, 99);
    for (size_t i = 0; i < LEN; i++) {
        sum += s.mine[i];
    }
    vnx_dlist_t *remote = prepare_remote(agent, "B", s.child.hello.plain);
    vnx_xfer_t *xfer =
        make_xfer(agent, VNX_OP_WRITE, s.local, remote, ROWS, "written");

    /* The transfer ends without being polled. */
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
    assert_int_equal(ask(&s.child, 'n'), 7);
    assert_int_equal(ask(&s.child, 'p'), sum);
    assert_ok(vnx_agent_wait(agent, &xfer, 1, 0, vnx_test_limit(30), e));
    vnx_xfer_abandon(xfer);
    vnx_dlist_release(remote);
    scene_close(&s);
}

/* The error that posting returns, at most 10 s after `child` ended. */
static vnx_status_t
post_until_error(vnx_agent_t *agent, vnx_xfer_t *xfer)
{
    for (int i = 0; i < 10000; i++) {
        vnx_status_t status = vnx_xfer_post(xfer, NULL, 0, NULL);
        if (status >= 0) {
            status =
                vnx_agent_wait(agent, &xfer, 1, 0, vnx_test_limit(30), NULL);
        }
        if (status < 0) {
            return status;
        }
        struct timespec ms = {0, 1000000};
        nanosleep(&ms, NULL);
    }
    return VNX_OK;
}

static void
test_shm_killed_peer_is_a_disconnect_and_can_restart(void **state)
{
    (void)state;
    vnx_agent_t *agent = make_agent("A");
    unsigned char *mine = malloc(LEN);
    register_at(agent, mine, LEN);
    vnx_dlist_t *local = prepare_rows(agent, "", mine, ROW, ROWS);
    child_t other = start_child("C");
    load_child(agent, &other);

    for (int round = 0; round < 10; round++) {
        child_t child = start_child("B");
        load_child(agent, &child);
        vnx_dlist_t *remote = prepare_remote(
            agent, "B", round % 2 ? child.hello.plain : child.hello.shared);
        vnx_xfer_t *xfer =
            make_scattered(agent, VNX_OP_READ, local, remote, "n");
        vnx_xfer_post(xfer, NULL, 0, NULL);
        kill(child.pid, SIGKILL);
        vnx_agent_wait(agent, &xfer, 1, 0, vnx_test_limit(10), NULL);
        assert_int_equal(post_until_error(agent, xfer),
                         VNX_ERR_REMOTE_DISCONNECT);
        assert_int_equal(vnx_agent_send_notif(agent, "B", 1, "x", 1, NULL),
                         VNX_ERR_REMOTE_DISCONNECT);
        vnx_xfer_abandon(xfer);
        vnx_dlist_release(remote);
        end_child(&child);

        /* Other peers are served meanwhile. */
        remote = prepare_remote(agent, "C", other.hello.plain);
        xfer = make_scattered(agent, VNX_OP_READ, local, remote, NULL);
        run_xfer(agent, xfer);
        check_even_rows(mine, 1);
        vnx_xfer_abandon(xfer);
        vnx_dlist_release(remote);
    }
    vnx_agent_stats_t stats;
    vnx_agent_stats(agent, &stats);
    assert_int_equal(stats.peers_lost, 10);
    vnx_dlist_release(local);
    vnx_agent_release(agent);
    free(mine);
    end_child(&other);
}

static void
test_shm_peers_learn_of_deregistration_and_close(void **state)
{
    (void)state;
    scene_t s = scene_open();
    vnx_agent_t *agent = s.agent;
    vnx_dlist_t *remote = prepare_remote(agent, "B", s.child.hello.plain);
    vnx_xfer_t *xfer =
        make_scattered(agent, VNX_OP_READ, s.local, remote, NULL);

    run_xfer(agent, xfer);
    ask(&s.child, 'd');
    assert_int_equal(post_until_error(agent, xfer), VNX_ERR_NOT_FOUND);
    ask(&s.child, 'c');
    assert_int_equal(post_until_error(agent, xfer) < 0, true);
    for (int i = 0; i < 10000; i++) {
        if (vnx_xfer_post(xfer, NULL, 0, NULL) == VNX_ERR_REMOTE_DISCONNECT) {
            break;
        }
        struct timespec ms = {0, 1000000};
        nanosleep(&ms, NULL);
    }
    assert_int_equal(vnx_xfer_status(xfer, NULL), VNX_ERR_REMOTE_DISCONNECT);
    vnx_xfer_abandon(xfer);
    vnx_dlist_release(remote);
    scene_close(&s);
}

static void
test_shm_forked_child_refuses_and_releases_nothing(void **state)
{
    (void)state;
#ifdef __SANITIZE_THREAD__
    skip(); /* it allows no threads in a forked copy of a threaded process */
#endif
    scene_t s = scene_open();
    vnx_agent_t *agent = s.agent;
    int exit_status;
    vnx_dlist_t *remote = prepare_remote(agent, "B", s.child.hello.plain);
    vnx_xfer_t *xfer =
        make_scattered(agent, VNX_OP_READ, s.local, remote, NULL);

    pid_t pid = fork();
    if (pid == 0) {
        int bad = vnx_xfer_post(xfer, NULL, 0, NULL) != VNX_ERR_NOT_ALLOWED;
        bad |= vnx_agent_send_notif(agent, "B", 1, "x", 1, NULL) !=
               VNX_ERR_NOT_ALLOWED;
        vnx_xfer_abandon(xfer);
        vnx_dlist_release(remote);
        vnx_agent_close(agent);
        vnx_agent_release(agent);
        vnx_agent_t *own = make_agent("A");
        vnx_agent_release(own);
        _exit(bad);
    }
    assert_int_equal(waitpid(pid, &exit_status, 0), pid);
    assert_int_equal(exit_status, 0);
    run_xfer(agent, xfer);
    check_even_rows(s.mine, 1);
    vnx_xfer_abandon(xfer);
    vnx_dlist_release(remote);
    scene_close(&s);
}

/* -- An owner that registers again ---------------------------------------- */

typedef struct churn {
    scene_t *scene;
    atomic_bool stop;
    atomic_uint good, bad; /* transfers */
    atomic_uint turn;      /* gives each thread a row of its own */
} churn_t;

static void
sleep_ns(long ns)
{
    nanosleep(&(struct timespec){.tv_nsec = ns}, NULL);
}

/* The registration or the peer may be gone; other errors are failures. */
static bool
is_expected(vnx_status_t status)
{
    return status >= 0 || status == VNX_ERR_NOT_FOUND ||
           status == VNX_ERR_REMOTE_DISCONNECT || status == VNX_ERR_CANCELED;
}

/* Read one row, and sometimes cancel. */
static bool
read_row(churn_t *churn, vnx_dlist_t *remote, uint32_t row, unsigned round)
{
    scene_t *s = churn->scene;
    vnx_xfer_t *xfer = NULL;
    vnx_indices_t one = {&row, 1, VNX_INDEX_U32};
    bool stopped = false;

    memset(s->mine + (size_t)row * ROW, 0, ROW);
    vnx_status_t status =
        vnx_xfer_create_prepped(s->agent, VNX_OP_READ, s->local, one, remote,
                                one, NULL, 0, false, &xfer, NULL);
    if (status == VNX_OK) {
        status = vnx_xfer_post(xfer, NULL, 0, NULL);
    }
    if (status == VNX_IN_PROG && round % 3 == 0) {
        status = vnx_xfer_cancel(xfer, &stopped, NULL);
    } else if (status == VNX_IN_PROG) {
        status = vnx_agent_wait(s->agent, &xfer, 1, false, vnx_test_limit(30),
                                NULL);
    }
    if (status == VNX_OK) {
        status = vnx_xfer_status(xfer, NULL);
    }
    vnx_xfer_abandon(xfer);
    if (status != VNX_OK) {
        return is_expected(status) && status != VNX_IN_PROG;
    }
    atomic_fetch_add(&churn->good, 1);
    for (size_t i = 0; i < ROW; i++) { /* fill(plain, LEN, 1) in the child */
        if (s->mine[(size_t)row * ROW + i] != 0) {
            return true;
        }
    }
    return false;
}

static void *
read_rows(void *arg)
{
    churn_t *churn = arg;
    uint32_t row = atomic_fetch_add(&churn->turn, 1);
    vnx_strided_desc_t rows = {churn->scene->child.hello.plain, ROW, 0, ROW,
                               ROWS};

    for (unsigned round = 0; !atomic_load(&churn->stop); round++) {
        vnx_dlist_t *remote = NULL;
        vnx_status_t status =
            vnx_dlist_create_strided(churn->scene->agent, "B", 1, VNX_MEM_DRAM,
                                     &rows, 1, NULL, &remote, NULL);
        bool is_good = is_expected(status);
        for (int i = 0; i < 4 && status == VNX_OK && is_good; i++) {
            is_good = read_row(churn, remote, row, round);
        }
        vnx_dlist_release(remote);
        atomic_fetch_add(&churn->bad, !is_good);
    }
    return NULL;
}

/* The owner registers its memory repeatedly, and its metadata is loaded, early
 * or late, during transfers. */
static void
test_shm_owner_registers_again_under_transfers(void **state)
{
    (void)state;
    enum { THREADS = 3, ROUNDS = 300 };
    pthread_t threads[THREADS];

    if (getenv("VNX_TEST_ENGINE") != NULL) {
        skip(); /* only native asks the owner */
    }
    scene_t s = scene_open();
    churn_t churn = {.scene = &s};
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, read_rows, &churn),
                         0);
    }
    for (unsigned round = 0; round < ROUNDS; round++) {
        ask(&s.child, 'r');
        if (round % 4 != 0) { /* else the metadata is old */
            write_all(s.child.commands, "m", 1);
            read_all(s.child.answers, s.child.blob, s.child.hello.blob_len);
        }
        if (round % 16 == 15) {
            assert_ok(vnx_agent_remove_peer(s.agent, "B", 1, e));
        }
        load_child(s.agent, &s.child);
        sleep_ns(round % 3 * 200000);
    }
    atomic_store(&churn.stop, true);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    assert_int_equal(churn.bad, 0);
    assert_true(churn.good > 0);
    /* At the end everything works as at the start. */
    write_all(s.child.commands, "m", 1);
    read_all(s.child.answers, s.child.blob, s.child.hello.blob_len);
    load_child(s.agent, &s.child);
    vnx_dlist_t *remote = prepare_remote(s.agent, "B", s.child.hello.plain);
    vnx_xfer_t *xfer =
        make_scattered(s.agent, VNX_OP_READ, s.local, remote, NULL);
    run_xfer(s.agent, xfer);
    check_even_rows(s.mine, 1);
    vnx_xfer_abandon(xfer);
    vnx_dlist_release(remote);
    scene_close(&s);
}

/* The agent closes while its transfers wait for a stopped owner. */
static void
test_shm_agent_closes_while_transfers_wait(void **state)
{
    (void)state;
    vnx_xfer_t *xfers[8];

    if (getenv("VNX_TEST_ENGINE") != NULL) {
        skip(); /* only native asks the owner */
    }
    vnx_agent_t *agent = make_agent("A");
    unsigned char *mine = calloc(1, LEN);
    register_at(agent, mine, LEN);
    vnx_dlist_t *local = prepare_rows(agent, "", mine, ROW, ROWS);
    child_t child = start_child("B");
    kill(child.pid, SIGSTOP);
    assert_int_equal(waitpid(child.pid, NULL, WUNTRACED), child.pid);
    load_child(agent, &child);
    vnx_dlist_t *remote = prepare_remote(agent, "B", child.hello.plain);
    for (size_t i = 0; i < 8; i++) {
        xfers[i] = make_xfer(agent, i % 2 ? VNX_OP_READ : VNX_OP_WRITE, local,
                             remote, i < 4 ? 1 : ROWS, "n");
        assert_int_equal(vnx_xfer_post(xfers[i], NULL, 0, NULL), VNX_IN_PROG);
    }
    bool stopped = false;
    assert_ok(vnx_xfer_cancel(xfers[7], &stopped, e));
    assert_true(stopped);
    vnx_agent_close(agent);
    for (size_t i = 0; i < 8; i++) {
        assert_int_not_equal(vnx_xfer_state(xfers[i]), VNX_XFER_POSTED);
        assert_true(vnx_xfer_status(xfers[i], NULL) < 0);
        vnx_xfer_abandon(xfers[i]);
    }
    vnx_dlist_release(local);
    vnx_dlist_release(remote);
    vnx_agent_release(agent);
    kill(child.pid, SIGCONT);
    assert_true(ask(&child, 'p') > 0);
    end_child(&child);
    free(mine);
}

int
main(int argc, char **argv)
{
    if (argc == 5 && strcmp(argv[1], "--child") == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        run_child(argv[2], atoi(argv[3]), atoi(argv[4]));
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shm_reads_plain_and_shared_memory),
        cmocka_unit_test(test_shm_write_lands_before_its_notification),
        cmocka_unit_test(test_shm_killed_peer_is_a_disconnect_and_can_restart),
        cmocka_unit_test(test_shm_peers_learn_of_deregistration_and_close),
        cmocka_unit_test(test_shm_forked_child_refuses_and_releases_nothing),
        cmocka_unit_test(test_shm_owner_registers_again_under_transfers),
        cmocka_unit_test(test_shm_agent_closes_while_transfers_wait),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
