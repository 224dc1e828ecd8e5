/* Admission to links, and hostile peers, which must do no harm. */
#include "link_node.h"

#include <errno.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "engine/native/shm/link_frame.h"

#define NOBODY 65534

/* -- Refusals of the opener ----------------------------------------------- */

static void
check_refused(node_t *node, const vnxi_shm_info_t *info, vnx_status_t expected,
              const char *cause)
{
    vnxi_link_t *link = NULL;
    vnx_error_t error;

    assert_int_equal(node_try_open(node->hub, info, NULL, &link, &error),
                     expected);
    assert_null(link);
    assert_int_equal(error.status, expected);
    assert_string_equal(error.operation, "vnx_agent_load_metadata");
    if (strstr(error.cause, cause) == NULL) {
        fail_msg("'%s' is not in '%s'", cause, error.cause);
    }
}

static void
test_link_open_names_the_check_that_failed(void **state)
{
    (void)state;
    peer_t peer, other;
    node_t node;

    peer_start(&peer, "prefill");
    peer_start(&other, "other");
    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    size_t fds = open_fds();

    vnxi_shm_info_t info = peer.info;
    info.boot[3] ^= 1;
    check_refused(&node, &info, VNX_ERR_BACKEND, "another host");

    info = peer.info;
    info.pid_namespace++;
    check_refused(&node, &info, VNX_ERR_BACKEND, "pid namespace");

    info = peer.info;
    info.start_time++;
    check_refused(&node, &info, VNX_ERR_BACKEND, "start times differ");

    info = peer.info;
    info.instance[0] ^= 1;
    check_refused(&node, &info, VNX_ERR_BACKEND, "instance id");

    info = peer.info;
    info.nonce_addr = 0;
    check_refused(&node, &info, VNX_ERR_BACKEND, "cannot be read");

    info = peer.info;
    memcpy(info.socket, "nobody-is-here", 15);
    check_refused(&node, &info, VNX_ERR_BACKEND, "nobody listens");

    info = peer.info;
    memcpy(info.socket, other.info.socket, sizeof info.socket);
    check_refused(&node, &info, VNX_ERR_BACKEND, "socket belongs to process");

    info = peer.info;
    info.pid = other.info.pid;
    info.start_time = other.info.start_time;
    check_refused(&node, &info, VNX_ERR_BACKEND, "instance id");

    info = peer.info;
    info.uid++;
    vnx_status_t status =
        geteuid() == 0 ? VNX_ERR_BACKEND : VNX_ERR_NOT_ALLOWED;
    check_refused(&node, &info, status, "user");

    info = peer.info;
    peer_kill(&peer);
    check_refused(&node, &info, VNX_ERR_BACKEND, "has ended");

    assert_int_equal(open_fds(), fds - 1); /* without the peer's orders */
    assert_int_equal(peer_look(&other).notifs, 0);
    node_fini(&node);
    peer_stop(&other);
}

static void
test_link_open_fails_after_stop(void **state)
{
    (void)state;
    peer_t peer;
    node_t node;

    peer_start(&peer, "prefill");
    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    vnxi_hub_stop(node.hub);
    check_refused(&node, &peer.info, VNX_ERR_CLOSED, "closed");
    node_fini(&node);
    peer_stop(&peer);
}

static const char long_name[65536];

static void
test_link_open_refuses_impossible_names(void **state)
{
    (void)state;
    static const size_t lengths[] = {0, sizeof long_name};
    vnxi_link_t *link = NULL;
    node_t node;

    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    for (size_t i = 0; i < 2; i++) {
        const vnxi_link_target_t target = {
            .info = &node.info, .name = long_name, .name_len = lengths[i]};
        assert_int_equal(vnxi_link_open(node.hub, &target, &link, NULL),
                         VNX_ERR_INVALID_PARAM);
        assert_null(link);
    }
    node_fini(&node);
}

/* Opening needs two descriptors. */
static void
test_link_open_reports_a_lack_of_descriptors(void **state)
{
    (void)state;
    peer_t peer;
    node_t node;
    struct rlimit limit, few;

    peer_start(&peer, "prefill");
    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    size_t fds = open_fds();
    int first = dup(0);
    close(first);
    for (int free = 0; free < 2; free++) {
        few = limit;
        few.rlim_cur = (rlim_t)(first + free);
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
        check_refused(&node, &peer.info, VNX_ERR_BACKEND, strerror(EMFILE));
        assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
        assert_int_equal(open_fds(), fds);
    }
    vnxi_link_release(node_open(&node, &peer.info));
    node_fini(&node);
    peer_stop(&peer);
}

static void
test_hub_create_refuses_impossible_names(void **state)
{
    (void)state;
    static const size_t lengths[] = {0, sizeof long_name};
    unsigned char instance[VNXI_SHM_ID_SIZE] = {0};
    char socket[VNXI_SHM_SOCKET_MAX];
    vnxi_hub_t *hub = NULL;

    for (size_t i = 0; i < 2; i++) {
        vnxi_hub_config_t config = {
            .name = long_name, .name_len = lengths[i], .instance = instance};
        assert_int_equal(vnxi_hub_create(&config, socket, &hub, NULL),
                         VNX_ERR_INVALID_PARAM);
        assert_null(hub);
    }
}

/* -- Users ---------------------------------------------------------------- */

static void
needs_root(void)
{
    if (geteuid() != 0) {
        print_message("skipped: needs root, to become another user\n");
        skip();
    }
}

static void
test_link_open_names_the_users_that_differ(void **state)
{
    (void)state;
    peer_t peer, nobody;

    needs_root();
    peer_start(&peer, "prefill");
    peer_start_as(&nobody, "nobody", NOBODY);
    order_t open = {.kind = PEER_OPEN, .info = peer.info};
    answer_t answer = peer_ask(&nobody, &open);
    assert_int_equal(answer.status, VNX_ERR_NOT_ALLOWED);
    assert_non_null(strstr(answer.error.cause, "user 0 "));
    assert_non_null(strstr(answer.error.cause, "user 65534"));
    peer_stop(&nobody);
    peer_stop(&peer);
}

/* A process that changed its user cannot be traced by that user: the kernel
 * refuses. */
static void
test_link_open_explains_a_refusal_of_the_kernel(void **state)
{
    (void)state;
    peer_t one, two;

    needs_root();
    peer_start_as(&one, "one", NOBODY);
    peer_start_as(&two, "two", NOBODY);
    order_t open = {.kind = PEER_OPEN, .info = one.info};
    answer_t answer = peer_ask(&two, &open);
    assert_int_equal(answer.status, VNX_ERR_NOT_ALLOWED);
    assert_non_null(strstr(answer.error.cause, "PR_SET_DUMPABLE is 0"));
    assert_non_null(strstr(answer.error.cause, "CAP_SYS_PTRACE"));
    peer_stop(&one);
    peer_stop(&two);
}

/* -- A restricted opener -------------------------------------------------- */

/* Opens a link in a child of the test, with a node of its own, after
 * `restrict_opener`. */
static void
check_refused_in_child(const vnxi_shm_info_t *info,
                       bool (*restrict_opener)(void), vnx_status_t expected,
                       const char *cause)
{
    int status;
    pid_t opener = fork();

    if (opener == 0) {
        vnxi_link_t *link;
        vnx_error_t error;
        node_t node;
        if (node_init(&node, "decode") != VNX_OK || !restrict_opener()) {
            _exit(2);
        }
        bool is_refused =
            node_try_open(node.hub, info, NULL, &link, &error) == expected &&
            strstr(error.cause, cause) != NULL;
        node_fini(&node);
        _exit(is_refused ? 0 : 1);
    }
    assert_int_equal(waitpid(opener, &status, 0), opener);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static bool
drop_ptrace(void)
{
    struct __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];

    if (syscall(SYS_capget, &header, data) != 0) {
        return false;
    }
    data[0].effective &= ~CAP_TO_MASK(CAP_SYS_PTRACE);
    return syscall(SYS_capset, &header, data) == 0;
}

static void
test_link_open_names_the_user_whose_memory_is_protected(void **state)
{
    (void)state;
    peer_t nobody;

    needs_root();
    peer_start_as(&nobody, "nobody", NOBODY);
    check_refused_in_child(&nobody.info, drop_ptrace, VNX_ERR_NOT_ALLOWED,
                           "it runs as user 65534 and group 65534, this "
                           "process as user 0 and group 0");
    peer_stop(&nobody);
}

/* Make a system call fail in this thread, as the sandbox of a container does.
 */
static bool
deny(unsigned call, unsigned cause)
{
    struct sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, call, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | cause),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof rules / sizeof rules[0], rules};

    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

static bool
deny_reading_memory(void)
{
    return deny(SYS_process_vm_readv, EPERM);
}

static bool
deny_sockets(void)
{
    return deny(SYS_socket, EACCES);
}

static void
test_link_open_explains_a_refusal_of_a_sandbox(void **state)
{
    (void)state;
    peer_t peer;

    peer_start(&peer, "prefill");
    check_refused_in_child(&peer.info, deny_reading_memory,
                           VNX_ERR_NOT_ALLOWED, "a sandbox (seccomp)");
    check_refused_in_child(
        &peer.info, deny_sockets, VNX_ERR_BACKEND,
        "connecting to the peer's socket failed: Permission denied");
    peer_stop(&peer);
}

/* -- Openers of other users ----------------------------------------------- */

static void
test_hub_admits_only_root_and_its_own_user(void **state)
{
    (void)state;
    peer_t nobody;
    node_t node;
    vnxi_link_t *link;
    int status;

    needs_root();
    peer_start_as(&nobody, "nobody", NOBODY);
    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    /* Root to another user. */
    assert_int_equal(node_try_open(node.hub, &nobody.info, NULL, &link, NULL),
                     VNX_OK);
    assert_int_equal(node_send(link, 0, 0, 1, 64), VNX_OK);
    assert_int_equal(peer_wait_notifs(&nobody, 1).notifs, 1);
    /* Another user to root. */
    pid_t stranger = fork();
    if (stranger == 0) {
        if (setgid(NOBODY) != 0 || setuid(NOBODY) != 0) {
            _exit(2);
        }
        _exit(raw_is_closed(raw_connect(node.info.socket)) ? 0 : 1);
    }
    assert_int_equal(waitpid(stranger, &status, 0), stranger);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    vnxi_link_release(link);
    node_fini(&node);
    peer_stop(&nobody);
}

/* -- Hostile openers ------------------------------------------------------ */

static void
write_frame(vnxi_writer_t *writer, int type, const void *body, size_t len)
{
    unsigned char header[VNXI_LINK_FRAME_HEADER];

    vnxi_link_frame_header((vnxi_link_frame_type_t)type, len, header);
    vnxi_write_bytes(writer, header, sizeof header);
    vnxi_write_bytes(writer, body, len);
}

static const char *target_name = "decode";

static void
write_hello(vnxi_writer_t *writer, const unsigned char *target)
{
    static const unsigned char instance[VNXI_SHM_ID_SIZE] = "someone";
    vnxi_link_frame_hello_t hello = {.instance = instance,
                                     .target = target,
                                     .name = "raw",
                                     .name_len = 3,
                                     .target_name = target_name,
                                     .target_name_len = 6};
    vnxi_link_frame_write_hello(writer, &hello);
}

/* A new connection that sends these bytes is closed; the hub still works. */
static void
check_closes(node_t *node, vnxi_writer_t *writer)
{
    int fd = raw_connect(node->info.socket);

    assert_false(writer->failed);
    assert_true(send(fd, writer->data, writer->len, MSG_NOSIGNAL) ==
                (ssize_t)writer->len);
    assert_true(raw_is_closed(fd));
    close(fd);
    vnxi_writer_fini(writer);
    assert_true(node_wait_accepted(node, 0));
}

/* The hub first sends its identity. */
static void
check_refuses(node_t *node, vnxi_writer_t *writer)
{
    static const unsigned char header[] = {1 + 16 + 4 + 6, 0, 0, 0, 7};
    unsigned char reply[5 + 16 + 4 + 6];
    int fd = raw_connect(node->info.socket);

    assert_true(send(fd, writer->data, writer->len, MSG_NOSIGNAL) ==
                (ssize_t)writer->len);
    assert_true(recv(fd, reply, sizeof reply, MSG_WAITALL) ==
                (ssize_t)sizeof reply);
    assert_memory_equal(reply, header, sizeof header);
    assert_memory_equal(reply + 5, node->instance, 16);
    assert_memory_equal(reply + 5 + 16, "\6\0\0\0decode", 10);
    assert_true(raw_is_closed(fd));
    close(fd);
    vnxi_writer_fini(writer);
    assert_true(node_wait_accepted(node, 0));
}

static void
check_serves(node_t *node)
{
    vnxi_link_t *link;
    size_t before = node_look(node).notifs;
    uint32_t next = node_look(node).next[1];

    assert_int_equal(node_try_open(node->hub, &node->info, NULL, &link, NULL),
                     VNX_OK);
    assert_int_equal(node_send(link, 1, next, 1, 64), VNX_OK);
    assert_true(node_wait(node, &node->account.notifs, before + 1));
    vnxi_link_release(link);
    assert_true(node_wait_accepted(node, 0));
}

static void
test_hub_closes_a_connection_without_hello(void **state)
{
    (void)state;
    node_t node;
    static const unsigned char bye_then_body[] = {2, 0, 0, 0, 4, 0};

    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    for (int type = 0; type < 256; type++) {
        vnxi_writer_t writer = {0};
        write_frame(&writer, type, "xyz", 3);
        check_closes(&node, &writer);
    }
    vnxi_writer_t writer = {0};
    vnxi_write_bytes(&writer, "GET / HTTP/1.1\r\n\r\n", 18);
    check_closes(&node, &writer);
    vnxi_write_bytes(&writer, "\0\0\0\0\0\0\0\0", 8);
    check_closes(&node, &writer);
    vnxi_write_bytes(&writer, bye_then_body, sizeof bye_then_body);
    check_closes(&node, &writer);
    write_hello(&writer, (const unsigned char *)"another instance");
    check_refuses(&node, &writer);
    target_name = "decoda";
    write_hello(&writer, node.instance);
    check_refuses(&node, &writer);
    target_name = "decode";
    assert_int_equal(node_look(&node).notifs, 0);
    check_serves(&node);
    node_fini(&node);
}

static void
test_hub_closes_a_connection_on_errors_after_hello(void **state)
{
    (void)state;
    node_t node;
    unsigned char message[64];
    static const unsigned char huge[] = {1, 0, 0, 0x40, 2};

    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    node_message(message, sizeof message, 0, 0);
    for (int kind = 0; kind < 10; kind++) {
        vnxi_writer_t writer = {0};
        node.account.next[0] = 0;
        write_hello(&writer, node.instance);
        write_frame(&writer, VNXI_LINK_FRAME_NOTIF, message, sizeof message);
        switch (kind) {
        case 0:
            write_hello(&writer, node.instance);
            break;
        case 1:
            vnxi_write_bytes(&writer, huge, sizeof huge);
            break;
        case 2:
            write_frame(&writer, VNXI_LINK_FRAME_CONFIRM, "too short", 9);
            break;
        case 6: /* 2^32 - 1 missing rows */
            write_frame(&writer, VNXI_LINK_FRAME_CONFIRM,
                        "12345678\xff\xff\xff\xff", 12);
            break;
        case 7:
            write_frame(&writer, VNXI_LINK_FRAME_CONFIRMED,
                        "1234567812345678\0\0\0", 20);
            break;
        case 8:
            write_frame(&writer, VNXI_LINK_FRAME_REVOKE, "", 0);
            break;
        case 3:
            write_frame(&writer, 77, "", 0);
            break;
        case 4:
            write_frame(&writer, VNXI_LINK_FRAME_BYE, "x", 1);
            break;
        default: /* this is valid, and later bytes are not read */
            write_frame(&writer, VNXI_LINK_FRAME_BYE, "", 0);
        }
        write_frame(&writer, VNXI_LINK_FRAME_NOTIF, message, sizeof message);
        check_closes(&node, &writer);
        /* Earlier messages arrived, later ones did not. */
        assert_int_equal(node_look(&node).notifs, (size_t)kind + 1);
        assert_int_equal(node_look(&node).bad, 0);
    }
    check_serves(&node);
    node_fini(&node);
}

/* Random bytes after a good HELLO, and cut-off frames. */
static void
test_hub_survives_garbage(void **state)
{
    (void)state;
    node_t node;

    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    srand(1);
    for (int round = 0; round < 300; round++) {
        vnxi_writer_t writer = {0};
        if (round % 2 == 0) {
            write_hello(&writer, node.instance);
        }
        for (int i = rand() % 300; i > 0; i--) {
            vnxi_write_u8(&writer, (uint8_t)(rand() % (round % 7 + 1) * 37));
        }
        int fd = raw_connect(node.info.socket);
        size_t len = writer.len;
        if (len > 0) {
            assert_true(send(fd, writer.data, len, MSG_NOSIGNAL) ==
                        (ssize_t)len);
        }
        close(fd);
        vnxi_writer_fini(&writer);
    }
    assert_true(node_wait_accepted(&node, 0));
    node_fini(&node);
    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    check_serves(&node);
    node_fini(&node);
}

static void
test_hub_reads_frames_byte_by_byte(void **state)
{
    (void)state;
    node_t node;
    vnxi_writer_t writer = {0};
    unsigned char message[64];

    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    node_message(message, sizeof message, 0, 0);
    write_hello(&writer, node.instance);
    write_frame(&writer, VNXI_LINK_FRAME_NOTIF, message, sizeof message);
    int fd = raw_connect(node.info.socket);
    for (size_t i = 0; i < writer.len; i++) {
        assert_int_equal(send(fd, writer.data + i, 1, MSG_NOSIGNAL), 1);
        usleep(i % 8 == 0 ? 300 : 0);
    }
    assert_true(node_wait(&node, &node.account.notifs, 1));
    assert_int_equal(node_look(&node).bad, 0);
    assert_string_equal(node_look(&node).sender, "raw");
    assert_int_equal(vnxi_hub_accepted(node.hub), 1);
    close(fd);
    assert_true(node_wait_accepted(&node, 0));
    vnxi_writer_fini(&writer);
    node_fini(&node);
}

/* -- Silent connections --------------------------------------------------- */

static void
test_hub_closes_silent_connections(void **state)
{
    (void)state;
    node_t node;

    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    int silent = raw_connect(node.info.socket);
    int begun = raw_connect(node.info.socket);
    assert_int_equal(send(begun, "\x30", 1, MSG_NOSIGNAL), 1);
    assert_true(raw_is_closed(silent));
    assert_true(raw_is_closed(begun));
    check_serves(&node);
    close(silent);
    close(begun);
    node_fini(&node);
}

static void
test_hub_serves_during_a_flood_of_silent_connections(void **state)
{
    (void)state;
    enum { FLOOD = 1500 };
    struct rlimit limit;
    static int fds[FLOOD];
    node_t node;
    vnxi_link_t *link;

    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    if (limit.rlim_max < 4000) {
        print_message("skipped: needs 4000 descriptors (ulimit -n)\n");
        skip();
    }
    limit.rlim_cur = limit.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    size_t before = open_fds();
    assert_int_equal(node_try_open(node.hub, &node.info, NULL, &link, NULL),
                     VNX_OK);
    for (int i = 0; i < FLOOD; i++) {
        fds[i] = raw_connect(node.info.socket);
        if (i % 100 == 0) {
            assert_int_equal(node_send(link, 0, (uint32_t)i / 100, 1, 64),
                             VNX_OK);
        }
    }
    assert_true(node_wait(&node, &node.account.notifs, FLOOD / 100));
    /* The oldest were closed, and the number kept is bounded. */
    for (int i = 0; i < FLOOD - 256; i++) {
        assert_true(raw_is_closed(fds[i]));
    }
    assert_in_range(open_fds(), before, before + FLOOD + 3 * 256);
    for (int i = 0; i < FLOOD; i++) {
        close(fds[i]);
    }
    vnxi_link_release(link);
    node_fini(&node);
    assert_int_equal(node.account.bad, 0);
}

/* Without free descriptors a connection waits until there are some. */
static void
test_hub_waits_for_descriptors(void **state)
{
    (void)state;
    node_t node;
    struct rlimit limit, none;
    vnxi_writer_t writer = {0};
    unsigned char message[64];

    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    node_message(message, sizeof message, 0, 0);
    write_hello(&writer, node.instance);
    write_frame(&writer, VNXI_LINK_FRAME_NOTIF, message, sizeof message);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int next = dup(fd);
    none = limit;
    none.rlim_cur = (rlim_t)next;
    close(next);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    raw_connect_fd(fd, node.info.socket);
    assert_true(send(fd, writer.data, writer.len, MSG_NOSIGNAL) ==
                (ssize_t)writer.len);
    /* The hub has failed to accept once it stops watching the listener. */
    usleep(150000);
    assert_int_equal(node_look(&node).notifs, 0);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    assert_true(node_wait(&node, &node.account.notifs, 1));
    assert_int_equal(node_look(&node).bad, 0);
    close(fd);
    vnxi_writer_fini(&writer);
    node_fini(&node);
}

/* -- Hostile listeners ---------------------------------------------------- */

static void
check_end_by(const void *bytes, size_t len, const char *cause)
{
    node_t node;
    vnxi_link_t *link;

    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    vnxi_shm_info_t info = node.info;
    int listener = raw_listen(&info, 8);
    assert_int_equal(node_try_open(node.hub, &info, &node, &link, NULL),
                     VNX_OK);
    int fd = accept(listener, NULL, NULL);
    assert_true(fd >= 0);
    if (len > 0) {
        assert_true(send(fd, bytes, len, MSG_NOSIGNAL) == (ssize_t)len);
    } else {
        close(fd);
    }
    assert_true(node_wait(&node, &node.account.ended, 1));
    assert_string_equal(node_look(&node).cause, cause);
    if (len > 0) {
        /* Our end is closed, and only HELLO was sent on it. */
        char hello[512];
        ssize_t got = recv(fd, hello, sizeof hello, MSG_WAITALL);
        assert_int_equal(got, 5 + 2 + 2 * (16 + 4 + 6));
        assert_memory_equal(hello + 5 + 2, node.instance, VNXI_SHM_ID_SIZE);
        assert_memory_equal(hello + 5 + 2 + 16 + 4, "decode", 6);
        assert_memory_equal(hello + 5 + 2 + 16 + 4 + 6, "instance of raw",
                            VNXI_SHM_ID_SIZE);
        assert_memory_equal(hello + 5 + 2 + 16 + 4 + 6 + 16 + 4, "decode", 6);
        close(fd);
    }
    vnxi_link_release(link);
    close(listener);
    node_fini(&node);
    assert_int_equal(node.account.ended, 1);
    assert_int_equal(node.account.revoked, 0);
    assert_int_equal(node.account.notifs, 0);
}

static void
test_link_ends_on_invalid_frames_from_a_listener(void **state)
{
    (void)state;
    static const char invalid[] = "the peer sent an invalid message";
    static const unsigned char notif[] = {4, 0, 0, 0, 2, 'a', 'b', 'c'};
    static const unsigned char short_revoke[] = {4, 0, 0, 0, 3, 'a', 'b', 'c'};
    static const unsigned char bye[] = {1, 0, 0, 0, 4};
    static const unsigned char question[] = {13, 0, 0, 0, 5, 1, 0, 0, 0,
                                             0,  0, 0, 0, 0, 0, 0, 0};
    /* Two positions, not in ascending order. */
    static const unsigned char places[] = {29, 0, 0, 0, 6, 1, 0, 0, 0, 0, 0,
                                           0,  0, 1, 0, 0, 0, 0, 0, 0, 0, 2,
                                           0,  0, 0, 4, 0, 0, 0, 4, 0, 0, 0};
    static const unsigned char refuse[] = {
        24,  0,   0,   0,   7,   'i', 'n', 's', 't', 'a', 'n', 'c', 'e',  ' ',
        'o', 'f', ' ', 'r', 'a', 'w', '.', 3,   0,   0,   0,   'a', '\n', 'c'};

    check_end_by(notif, sizeof notif, invalid);
    check_end_by(short_revoke, sizeof short_revoke, invalid);
    check_end_by("garbage garbage", 15, invalid);
    check_end_by(question, sizeof question, invalid);
    check_end_by(places, sizeof places, invalid);
    check_end_by(refuse, sizeof refuse,
                 "its metadata is forged or out of date: the agent behind its "
                 "socket is 'a?c'");
    check_end_by(bye, sizeof bye, "the peer said goodbye");
    check_end_by("", 0, "the peer closed the connection");
}

typedef struct load {
    node_t *node;
    const vnxi_shm_info_t *info;
    const atomic_bool *stop;
    vnxi_link_t *link;
    vnx_status_t status;
    vnx_error_t error;
} load_t;

static void *
load_main(void *argument)
{
    load_t *load = argument;
    vnxi_link_target_t target = node_target(load->info, NULL);

    target.stop = load->stop;
    load->status =
        vnxi_link_open(load->node->hub, &target, &load->link, &load->error);
    return NULL;
}

static void
test_link_open_gives_up_on_a_full_backlog(void **state)
{
    (void)state;
    node_t node;

    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    vnxi_shm_info_t info = node.info;
    int listener = raw_listen(&info, 0);
    int waiting = raw_connect(info.socket); /* until it is full */
    check_refused(&node, &info, VNX_ERR_BACKEND, "backlog full");
    close(waiting);
    close(listener);
    node_fini(&node);
}

/* The wait for room in a backlog ends as soon as the caller or the agent does.
 */
static void
test_link_open_stops_waiting(void **state)
{
    (void)state;
    atomic_bool stop = false;
    load_t stopped, closed;
    pthread_t threads[2];
    node_t node;

    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    vnxi_shm_info_t info = node.info;
    int listener = raw_listen(&info, 0);
    int waiting = raw_connect(info.socket); /* until it is full */
    stopped = (load_t){.node = &node, .info = &info, .stop = &stop};
    closed = (load_t){.node = &node, .info = &info};
    pthread_create(&threads[0], NULL, load_main, &stopped);
    pthread_create(&threads[1], NULL, load_main, &closed);
    atomic_store(&stop, true);
    pthread_join(threads[0], NULL);
    assert_int_equal(stopped.status, VNX_ERR_CANCELED);
    vnxi_hub_stop(node.hub);
    pthread_join(threads[1], NULL);
    assert_int_equal(closed.status, VNX_ERR_CLOSED);
    close(waiting);
    close(listener);
    node_fini(&node);
}

/* -- A storm -------------------------------------------------------------- */

#define ATTACKERS 6
#define LEGITIMATE 50

/* Connects as fast as it can, and keeps connections or closes them at once. */
static void
attack(const char *name, bool hold)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t len =
        (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name));
    int held[1000] = {0};

    memcpy(address.sun_path + 1, name, strlen(name));
    for (size_t at = 0;; at = (at + 1) % 1000) {
        int flags = hold ? SOCK_NONBLOCK : 0;
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
        if (held[at] > 0) {
            close(held[at]);
        }
        held[at] = 0;
        if (fd >= 0) {
            connect(fd, (struct sockaddr *)&address, len);
        }
        if (hold) {
            held[at] = fd;
        } else {
            close(fd);
        }
    }
}

static pid_t
start_attacker(const char *name, bool hold)
{
    struct rlimit limit;
    pid_t parent = getpid(), pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        getrlimit(RLIMIT_NOFILE, &limit);
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
        if (getppid() != parent || setgid(NOBODY) != 0 ||
            setuid(NOBODY) != 0) {
            _exit(1);
        }
        prctl(PR_SET_PDEATHSIG, SIGKILL); /* setuid() forgets it */
        attack(name, hold);
    }
    return pid;
}

/* Another user connects repeatedly; the owner is admitted every time, and open
 * links are served. */
static void
test_hub_admits_the_owner_during_a_storm_by_others(void **state)
{
    (void)state;
    node_t node;
    vnxi_link_t *link, *links[LEGITIMATE];
    vnx_error_t error;
    pid_t attackers[ATTACKERS];

    if (geteuid() != 0) {
        print_message("skipped: needs root, to become another user\n");
        skip();
    }
    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    assert_int_equal(node_try_open(node.hub, &node.info, NULL, &link, NULL),
                     VNX_OK);
    for (int i = 0; i < ATTACKERS; i++) {
        attackers[i] = start_attacker(node.info.socket, i % 2 == 0);
    }
    for (uint32_t i = 0; i < LEGITIMATE; i++) {
        if (node_try_open(node.hub, &node.info, NULL, &links[i], &error) !=
            VNX_OK) {
            fail_msg("load %u: %s", (unsigned)i, error.cause);
        }
        assert_int_equal(node_send(link, 0, i, 1, 64), VNX_OK);
    }
    assert_true(node_wait_accepted(&node, LEGITIMATE + 1));
    assert_true(node_wait(&node, &node.account.notifs, LEGITIMATE));
    for (int i = 0; i < ATTACKERS; i++) {
        int status;
        kill(attackers[i], SIGKILL);
        assert_int_equal(waitpid(attackers[i], &status, 0), attackers[i]);
        assert_true(WIFSIGNALED(status)); /* it did attack until now */
    }
    for (int i = 0; i < LEGITIMATE; i++) {
        vnxi_link_release(links[i]);
    }
    vnxi_link_release(link);
    node_fini(&node);
    assert_int_equal(node.account.bad, 0);
}

static bool
backlog_is_full(const char *name)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t len =
        (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(name));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);

    memcpy(address.sun_path + 1, name, strlen(name));
    bool full = connect(fd, (struct sockaddr *)&address, len) != 0;
    close(fd);
    return full;
}

/* Another user has filled the backlog while the peer's process was stopped; an
 * agent that loads its metadata waits. */
static void
test_link_open_waits_while_the_backlog_is_full(void **state)
{
    (void)state;
    enum { LOADS = 4 };
    node_t node;
    peer_t peer;
    load_t loads[LOADS];
    pthread_t threads[LOADS];
    pid_t attacker;
    int status;

    if (geteuid() != 0) {
        print_message("skipped: needs root, to become another user\n");
        skip();
    }
    peer_start(&peer, "prefill");
    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    assert_int_equal(kill(peer.pid, SIGSTOP), 0);
    attacker = start_attacker(peer.info.socket, true);
    while (!backlog_is_full(peer.info.socket)) {
        usleep(10000);
    }
    for (int i = 0; i < LOADS; i++) {
        loads[i] = (load_t){.node = &node, .info = &peer.info};
        pthread_create(&threads[i], NULL, load_main, &loads[i]);
    }
    usleep(500000); /* longer than a busy process is delayed */
    kill(attacker, SIGKILL);
    assert_int_equal(waitpid(attacker, &status, 0), attacker);
    assert_int_equal(kill(peer.pid, SIGCONT), 0);
    for (int i = 0; i < LOADS; i++) {
        pthread_join(threads[i], NULL);
        if (loads[i].status != VNX_OK) {
            fail_msg("load %d: %s", i, loads[i].error.cause);
        }
        vnxi_link_release(loads[i].link);
    }
    peer_kill(&peer);
    node_fini(&node);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_link_open_names_the_check_that_failed),
        cmocka_unit_test(test_link_open_fails_after_stop),
        cmocka_unit_test(test_link_open_refuses_impossible_names),
        cmocka_unit_test(test_link_open_reports_a_lack_of_descriptors),
        cmocka_unit_test(test_hub_create_refuses_impossible_names),
        cmocka_unit_test(test_link_open_names_the_users_that_differ),
        cmocka_unit_test(test_link_open_explains_a_refusal_of_the_kernel),
        cmocka_unit_test(
            test_link_open_names_the_user_whose_memory_is_protected),
        cmocka_unit_test(test_link_open_explains_a_refusal_of_a_sandbox),
        cmocka_unit_test(test_hub_admits_only_root_and_its_own_user),
        cmocka_unit_test(test_hub_closes_a_connection_without_hello),
        cmocka_unit_test(test_hub_closes_a_connection_on_errors_after_hello),
        cmocka_unit_test(test_hub_survives_garbage),
        cmocka_unit_test(test_hub_reads_frames_byte_by_byte),
        cmocka_unit_test(test_hub_closes_silent_connections),
        cmocka_unit_test(test_hub_serves_during_a_flood_of_silent_connections),
        cmocka_unit_test(test_hub_waits_for_descriptors),
        cmocka_unit_test(test_link_ends_on_invalid_frames_from_a_listener),
        cmocka_unit_test(test_link_open_gives_up_on_a_full_backlog),
        cmocka_unit_test(test_link_open_stops_waiting),
        cmocka_unit_test(test_link_open_waits_while_the_backlog_is_full),
        cmocka_unit_test(test_hub_admits_the_owner_during_a_storm_by_others),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
