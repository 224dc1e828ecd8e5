/* Control messages over links, and their descriptors: none is lost, leaked, or
 * given to another message, whatever the other end does. */
#include "link_node.h"

#include <linux/sockios.h>
#include <sys/ioctl.h>

#include "child_check.h"
#include "engine/native/shm/link_frame.h"

#define NOBODY 65534
#define CONTROLS offsetof(node_account_t, controls)

/* Descriptors are closed just after they were sent. */
static void
wait_fds(size_t count)
{
    uint64_t deadline = vnxi_clock_deadline(NODE_DEADLINE_NS);

    while (open_fds() != count && vnxi_clock_ns() < deadline) {
        usleep(1000);
    }
    assert_int_equal(open_fds(), count);
}

/* The peer opens a link to the node and sends message 0 over it, so that the
 * node can answer. */
static void
take_asker(const peer_t *peer, node_t *node)
{
    order_t open = {.kind = PEER_OPEN, .info = node->info};
    order_t ask = {.kind = PEER_ASK, .count = 1, .len = NODE_HEAD};

    assert_int_equal(peer_do(peer, &open), VNX_OK);
    assert_int_equal(peer_do(peer, &ask), VNX_OK);
    assert_true(node_wait(node, &node->account.controls, 1));
}

static void
asker_open(peer_t *peer, node_t *node)
{
    peer_start(peer, "prefill");
    assert_int_equal(node_init(node, "decode"), VNX_OK);
    take_asker(peer, node);
}

/* -- Exchange ------------------------------------------------------------- */

static void
test_link_carries_control_messages_both_ways(void **state)
{
    (void)state;
    static const size_t counts[] = {0, 1, VNXI_CONTROL_FDS_MAX};
    static const size_t lengths[] = {NODE_HEAD, 5000, VNXI_CONTROL_BYTES_MAX};
    size_t expected = 0;
    uint32_t number = 0;
    pair_t pair;

    pair_open(&pair);
    for (size_t i = 0; i < 3; i++) {
        for (size_t k = 0; k < 3; k++, number++) {
            assert_int_equal(node_send_control(&pair.node, pair.link, number,
                                               1, lengths[k], 0),
                             VNX_OK);
            peer_wait(&pair.peer, CONTROLS, number + 1);
            order_t answer = {.kind = PEER_ANSWER,
                              .first = number,
                              .count = 1,
                              .len = lengths[k],
                              .fds = counts[i]};
            assert_int_equal(peer_do(&pair.peer, &answer), VNX_OK);
            expected += counts[i];
        }
    }
    assert_true(node_wait(&pair.node, &pair.node.account.controls, number));
    node_account_t here = node_look(&pair.node), there = peer_look(&pair.peer);
    assert_int_equal(here.bad, 0);
    assert_int_equal(here.control_fds, expected);
    assert_int_equal(here.ended, 0);
    assert_int_equal(there.controls, number);
    assert_int_equal(there.control_fds, 0);
    assert_int_equal(there.bad, 0);
    pair_close(&pair);
}

/* Both count as one stream. */
static void
test_link_keeps_the_order_of_notifications_and_control_messages(void **state)
{
    (void)state;
    pair_t pair;

    pair_open(&pair);
    for (uint32_t i = 0; i < 200; i += 2) {
        assert_int_equal(node_send(pair.link, 0, i, 1, 16 + i * 50), VNX_OK);
        assert_int_equal(
            node_send_control(&pair.node, pair.link, i + 1, 1, 16 + i * 30, 0),
            VNX_OK);
    }
    node_account_t there = peer_wait(&pair.peer, CONTROLS, 100);
    assert_int_equal(there.notifs, 100);
    assert_int_equal(there.bad, 0);
    pair_close(&pair);
}

static void
test_link_closes_descriptors_that_it_cannot_send(void **state)
{
    (void)state;
    peer_t peer;
    node_t node;

    asker_open(&peer, &node);
    size_t fds = open_fds();
    uint64_t asker = node.account.asker;
    node.account.asker = asker + 1; /* nobody has it */
    assert_int_equal(node_send_control(&node, NULL, 0, 1, NODE_HEAD, 64),
                     VNX_ERR_REMOTE_DISCONNECT);
    node.account.asker = asker;
    assert_int_equal(open_fds(), fds);
    peer_stop(&peer);
    assert_true(node_wait(&node, &node.account.askers_gone, 1));
    assert_int_equal(node_send_control(&node, NULL, 0, 1, NODE_HEAD, 64),
                     VNX_ERR_REMOTE_DISCONNECT);
    vnxi_link_t *link = node_open(&node, &node.info);
    assert_true(node_wait_accepted(&node, 1));
    vnxi_link_close(link);
    assert_true(node_wait(&node, &node.account.askers_gone, 2));
    fds = open_fds(); /* perhaps also the link's socket, for a moment */
    assert_int_equal(node_send_control(&node, link, 0, 1, NODE_HEAD, 64),
                     VNX_ERR_REMOTE_DISCONNECT);
    assert_in_range(open_fds(), 0, fds);
    vnxi_link_release(link);
    node_fini(&node);
}

/* -- A receiver that does not read ---------------------------------------- */

static const size_t some_fds[] = {0, 1, 64, 3, 0, 17};

/* Messages of fill_queue(): much more than the socket takes. */
#define FILL 18u

static size_t
fill_queue(node_t *node)
{
    size_t sent = 0;

    for (uint32_t i = 0; i < FILL; i++) {
        assert_int_equal(
            node_send_control(node, NULL, i, 1, 60000, some_fds[i % 6]),
            VNX_OK);
        sent += some_fds[i % 6];
    }
    return sent;
}

static void
test_link_queues_descriptors_for_a_stopped_process(void **state)
{
    (void)state;
    peer_t peer;
    node_t node;

    asker_open(&peer, &node);
    size_t here = open_fds(), there = peer_look(&peer).fds;
    kill(peer.pid, SIGSTOP);
    size_t sent = fill_queue(&node);
    assert_true(open_fds() > here + 64); /* they wait in the queue */
    kill(peer.pid, SIGCONT);
    node_account_t account = peer_wait(&peer, CONTROLS, FILL);
    assert_int_equal(account.controls, FILL);
    assert_int_equal(account.control_fds, sent);
    assert_int_equal(account.bad, 0);
    assert_int_equal(account.lost, 0);
    assert_int_equal(account.fds, there);
    wait_fds(here);
    node_fini(&node);
    peer_kill(&peer);
}

static void
test_link_end_closes_queued_descriptors(void **state)
{
    (void)state;
    size_t fds = 0;

    for (int round = 0; round < 4; round++) {
        peer_t peer;
        node_t node;
        asker_open(&peer, &node);
        kill(peer.pid, SIGSTOP);
        fill_queue(&node);
        if (round % 2 == 0) {
            peer_kill(&peer); /* the end of the other side, or of this one */
            assert_true(node_wait(&node, &node.account.askers_gone, 1));
        }
        node_fini(&node);
        peer_kill(&peer);
        fds = round == 0 ? open_fds() : fds;
        assert_int_equal(open_fds(), fds);
    }
}

static void
test_link_forked_child_keeps_no_queued_descriptor(void **state)
{
    (void)state;
    peer_t peer;
    node_t node;
    int status;

    asker_open(&peer, &node);
    size_t here = open_fds();
    kill(peer.pid, SIGSTOP);
    size_t sent = fill_queue(&node);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        CHECK(open_fds() < here); /* nor the hub's */
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    kill(peer.pid, SIGCONT);
    node_account_t account = peer_wait(&peer, CONTROLS, FILL);
    assert_int_equal(account.control_fds, sent);
    assert_int_equal(account.bad, 0);
    wait_fds(here);
    node_fini(&node);
    peer_kill(&peer);
}

/* -- Hostile openers ------------------------------------------------------ */

/* Only the listener sends descriptors. */
static void
test_hub_ends_a_link_whose_opener_announces_descriptors(void **state)
{
    (void)state;
    node_t node;
    size_t fds = 0;

    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    for (size_t round = 0; round < 4; round++) {
        vnxi_link_t *link = node_open(&node, &node.info);
        assert_int_equal(
            node_send_control(&node, link, (uint32_t)round, 1, NODE_HEAD, 0),
            VNX_OK);
        assert_true(node_wait(&node, &node.account.controls, round + 1));
        fds = round == 0 ? open_fds() : fds;
        assert_int_equal(node_send_control(&node, link, (uint32_t)round + 1, 1,
                                           NODE_HEAD, round % 2 ? 1 : 64),
                         VNX_OK);
        assert_true(node_wait(&node, &node.account.askers_gone, round + 1));
        vnxi_link_release(link);
        assert_int_equal(node_look(&node).controls, round + 1);
    }
    vnxi_link_t *link = node_open(&node, &node.info);
    assert_int_equal(node_send(link, 0, 4, 1, 100), VNX_OK);
    assert_true(node_wait(&node, &node.account.notifs, 1));
    assert_int_equal(open_fds(), fds);
    assert_int_equal(node_look(&node).bad, 0);
    vnxi_link_release(link);
    node_fini(&node);
}

/* -- Hostile listeners ---------------------------------------------------- */

/* A node with a link to a socket that speaks what a test wants. */
typedef struct raw {
    node_t node;
    vnxi_link_t *link;
    int listener, fd;
    size_t fds; /* that were open before */
} raw_t;

static void
raw_open(raw_t *raw)
{
    assert_int_equal(node_init(&raw->node, "decode"), VNX_OK);
    vnxi_shm_info_t info = raw->node.info;
    raw->listener = raw_listen(&info, 8);
    raw->link = node_open(&raw->node, &info);
    raw->fd = accept4(raw->listener, NULL, NULL, SOCK_CLOEXEC);
    assert_true(raw->fd >= 0);
}

static void
raw_close(raw_t *raw)
{
    vnxi_link_release(raw->link);
    node_fini(&raw->node);
    close(raw->fd);
    close(raw->listener);
}

/* The descriptors go with the first byte. */
static void
raw_send(const raw_t *raw, const void *bytes, size_t len, const int *fds,
         size_t count)
{
    struct iovec part = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = len};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    union {
        struct cmsghdr header; /* for its alignment */
        unsigned char room[CMSG_SPACE(128 * sizeof(int))];
    } control;

    if (count > 0) {
        message.msg_control = control.room;
        message.msg_controllen = CMSG_SPACE(count * sizeof(int));
        control.header =
            (struct cmsghdr){.cmsg_len = CMSG_LEN(count * sizeof(int)),
                             .cmsg_level = SOL_SOCKET,
                             .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(&control.header), fds, count * sizeof(int));
    }
    ssize_t done = sendmsg(raw->fd, &message, MSG_NOSIGNAL);
    assert_true(done == (ssize_t)len || (done < 0 && errno == EPIPE));
}

/* Until the hub has read everything. */
static void
raw_wait_read(const raw_t *raw)
{
    int left = 1;

    for (int i = 0; left > 0 && i < 60000; i++) {
        assert_int_equal(ioctl(raw->fd, SIOCOUTQ, &left), 0);
        usleep(left > 0 ? 100 : 0);
    }
    assert_int_equal(left, 0);
}

/* A control message that announces so many descriptors. */
typedef struct frame {
    unsigned char bytes[256];
    size_t len;
    int fds[128];
    size_t fd_count; /* that are really sent with it */
} frame_t;

static frame_t
make_frame(uint32_t number, size_t announced, size_t fd_count)
{
    unsigned char message[40];
    vnxi_writer_t writer = {0};
    frame_t frame = {.fd_count = fd_count};
    const vnxi_link_frame_control_t control = {.entry = "TEST",
                                               .entry_len = 4,
                                               .data = message,
                                               .len = sizeof message,
                                               .fd_count = announced};

    node_message(message, sizeof message, 0, number);
    node_make_fds(frame.fds, fd_count, number);
    vnxi_link_frame_write_control(&writer, &control);
    assert_true(!writer.failed && writer.len <= sizeof frame.bytes);
    memcpy(frame.bytes, writer.data, writer.len);
    frame.len = writer.len;
    vnxi_writer_fini(&writer);
    return frame;
}

static void
close_frame(frame_t *frame)
{
    for (size_t i = 0; i < frame->fd_count; i++) {
        vnxi_fork_fd_close(frame->fds[i]);
    }
}

/* Send it in pieces that are read one by one. */
static void
raw_send_cut(const raw_t *raw, const frame_t *frame, size_t first,
             size_t piece)
{
    size_t len = first;

    for (size_t at = 0; at < frame->len; at += len, len = piece) {
        len = frame->len - at < len ? frame->len - at : len;
        raw_send(raw, frame->bytes + at, len, frame->fds,
                 at == 0 ? frame->fd_count : 0);
        raw_wait_read(raw);
    }
}

static void
test_link_descriptors_of_a_frame_in_pieces_arrive_with_it(void **state)
{
    (void)state;
    uint32_t number = 0;
    raw_t raw;

    raw_open(&raw);
    size_t fds = open_fds();
    frame_t frame = make_frame(number++, 3, 3);
    raw_send_cut(&raw, &frame, 1, 1);
    close_frame(&frame);
    for (size_t cut = 1; cut < frame.len; cut++) {
        frame = make_frame(number++, 2, 2);
        raw_send_cut(&raw, &frame, cut, frame.len);
        close_frame(&frame);
    }
    assert_true(node_wait(&raw.node, &raw.node.account.controls, number));
    assert_int_equal(node_look(&raw.node).bad, 0);
    assert_int_equal(node_look(&raw.node).control_fds, 3 + 2 * (number - 1));
    assert_int_equal(open_fds(), fds);
    raw_close(&raw);
}

/* While a callback blocks the hub, the end of one frame and the beginning of
 * the next arrive, so that one read brings both. */
static void
test_link_descriptors_of_frames_in_one_read_stay_apart(void **state)
{
    (void)state;
    frame_t frames[7];
    raw_t raw;

    raw_open(&raw);
    size_t fds = open_fds();
    for (uint32_t i = 0; i < 7; i++) {
        frames[i] = make_frame(i, some_fds[i % 6], some_fds[i % 6]);
    }
    pthread_mutex_lock(&raw.node.lock);
    raw_send(&raw, frames[0].bytes, frames[0].len, NULL, 0);
    raw_wait_read(&raw);
    for (size_t i = 1; i < 7; i++) {
        size_t cut = i * 7 % frames[i].len;
        raw_send(&raw, frames[i].bytes, cut, frames[i].fds,
                 frames[i].fd_count);
        raw_send(&raw, frames[i].bytes + cut, frames[i].len - cut, NULL, 0);
    }
    pthread_mutex_unlock(&raw.node.lock);
    assert_true(node_wait(&raw.node, &raw.node.account.controls, 7));
    assert_int_equal(node_look(&raw.node).bad, 0);
    assert_int_equal(node_look(&raw.node).control_fds, 1 + 64 + 3 + 17);
    for (size_t i = 0; i < 7; i++) {
        close_frame(&frames[i]);
    }
    assert_int_equal(open_fds(), fds);
    raw_close(&raw);
}

/* Sends a frame that announces other descriptors than it has, then an honest
 * one.  The link may end; what arrives without being announced must not stay
 * open. */
static void
check_wrong_count(size_t announced, size_t sent, bool ends)
{
    frame_t wrong = make_frame(0, announced, sent), right;
    raw_t raw;

    raw_open(&raw);
    raw_send(&raw, wrong.bytes, wrong.len, wrong.fds, wrong.fd_count);
    close_frame(&wrong);
    if (ends) {
        assert_true(node_wait(&raw.node, &raw.node.account.ended, 1));
        assert_string_equal(node_look(&raw.node).cause,
                            "the peer sent an invalid message");
        assert_int_equal(node_look(&raw.node).control_fds, 0);
    } else {
        assert_true(node_wait(&raw.node, &raw.node.account.controls, 1));
        assert_int_equal(node_look(&raw.node).control_fds, 0);
        assert_int_equal(node_look(&raw.node).lost, 1);
        right = make_frame(1, 2, 2);
        raw_send(&raw, right.bytes, right.len, right.fds, right.fd_count);
        close_frame(&right);
        assert_true(node_wait(&raw.node, &raw.node.account.controls, 2));
        assert_int_equal(node_look(&raw.node).control_fds, 2);
    }
    assert_int_equal(node_look(&raw.node).bad, 0);
    raw_close(&raw);
}

static void
test_link_takes_no_other_descriptors_than_announced(void **state)
{
    (void)state;
    size_t fds = 0;

    for (int round = 0; round < 2; round++) {
        check_wrong_count(2, 1, false);
        check_wrong_count(64, 63, false);
        check_wrong_count(1, 3, true);
        check_wrong_count(63, 64, true);
        check_wrong_count(63, 100, true); /* more than a read takes */
        check_wrong_count(0, 1, true);
        check_wrong_count(0, 64, true);
        check_wrong_count(1, 0, true);
        check_wrong_count(65, 64, true);
        fds = round == 0 ? open_fds() : fds;
        assert_int_equal(open_fds(), fds);
    }
}

/* A frame that never ends. */
static void
test_link_ends_if_too_many_descriptors_arrive_for_a_frame(void **state)
{
    (void)state;
    size_t fds = 0;

    for (int round = 0; round < 3; round++) {
        frame_t frame = make_frame(0, 64, 64);
        raw_t raw;
        raw_open(&raw);
        for (size_t i = 0; i < 10; i++) {
            raw_send(&raw, frame.bytes + i, 1, frame.fds, frame.fd_count);
        }
        close_frame(&frame);
        assert_true(node_wait(&raw.node, &raw.node.account.ended, 1));
        assert_string_equal(node_look(&raw.node).cause,
                            "the peer sent an invalid message");
        assert_int_equal(node_look(&raw.node).controls, 0);
        raw_close(&raw);
        fds = round == 0 ? open_fds() : fds;
        assert_int_equal(open_fds(), fds);
    }
}

/* The link ends before the frame does. */
static void
test_link_end_closes_descriptors_of_half_a_frame(void **state)
{
    (void)state;
    size_t fds = 0;

    for (int round = 0; round < 3; round++) {
        frame_t frame = make_frame(0, 64, 64);
        raw_t raw;
        raw_open(&raw);
        raw_send(&raw, frame.bytes, frame.len / 2, frame.fds, frame.fd_count);
        raw_wait_read(&raw);
        close_frame(&frame);
        if (round == 2) {
            shutdown(raw.fd, SHUT_RDWR);
            assert_true(node_wait(&raw.node, &raw.node.account.ended, 1));
        }
        raw_close(&raw);
        fds = round == 0 ? open_fds() : fds;
        assert_int_equal(open_fds(), fds);
    }
}

/* -- Limits --------------------------------------------------------------- */

/* The hub reads these messages while it has room for so many descriptors. */
static void
send_with_room(const raw_t *raw, size_t room, uint32_t first,
               const size_t *counts, size_t count)
{
    node_t *node = (node_t *)(uintptr_t)&raw->node;
    frame_t *frames = calloc(count + 1, sizeof *frames);
    struct rlimit limit;

    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    frames[0] = make_frame(first, 0, 0); /* blocks the hub */
    pthread_mutex_lock(&node->lock);
    raw_send(raw, frames[0].bytes, frames[0].len, NULL, 0);
    raw_wait_read(raw);
    for (size_t i = 1; i <= count; i++) {
        frames[i] =
            make_frame(first + (uint32_t)i, counts[i - 1], counts[i - 1]);
        raw_send(raw, frames[i].bytes, frames[i].len, frames[i].fds,
                 frames[i].fd_count);
        close_frame(&frames[i]);
    }
    limit_fds(room);
    pthread_mutex_unlock(&node->lock);
    bool is_there =
        node_wait(node, &node->account.controls, first + count + 1);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    assert_true(is_there);
    free(frames);
}

static void
test_link_goes_on_after_a_lack_of_descriptors(void **state)
{
    (void)state;
    static const size_t few[] = {5, 2, 3, 4, 0, 1, 64}, none[] = {1, 0, 64},
                        many[] = {64, 64};
    raw_t raw;

    raw_open(&raw);
    size_t fds = open_fds();
    send_with_room(&raw, 3, 0, few, 7);
    assert_int_equal(node_look(&raw.node).lost, 3);
    assert_int_equal(node_look(&raw.node).control_fds, 2 + 3 + 1);
    send_with_room(&raw, 0, 8, none, 3);
    assert_int_equal(node_look(&raw.node).lost, 5);
    assert_int_equal(node_look(&raw.node).control_fds, 2 + 3 + 1);
    send_with_room(&raw, 200, 12, many, 2);
    assert_int_equal(node_look(&raw.node).lost, 5);
    assert_int_equal(node_look(&raw.node).control_fds, 2 + 3 + 1 + 128);
    assert_int_equal(node_look(&raw.node).bad, 0);
    assert_int_equal(node_look(&raw.node).ended, 0);
    assert_int_equal(open_fds(), fds);
    raw_close(&raw);
}

/* The kernel limits the descriptors of a user that are on their way, too: they
 * must wait. */
static void
test_link_goes_on_if_too_many_descriptors_are_on_their_way(void **state)
{
    (void)state;
    pair_t pair;

    if (geteuid() != 0) {
        print_message("skipped: needs root, to become another user\n");
        skip();
    }
    peer_start_as(&pair.peer, "prefill", NOBODY);
    assert_int_equal(node_init(&pair.node, "decode"), VNX_OK);
    pair.link = node_open(&pair.node, &pair.peer.info);
    assert_int_equal(
        node_send_control(&pair.node, pair.link, 0, 1, NODE_HEAD, 0), VNX_OK);
    assert_int_equal(peer_wait(&pair.peer, CONTROLS, 1).controls, 1);
    order_t limit = {.kind = PEER_LIMIT, .count = 128};
    order_t answer = {
        .kind = PEER_ANSWER, .count = 12, .len = NODE_HEAD, .fds = 20};
    assert_int_equal(peer_do(&pair.peer, &limit), VNX_OK);
    pthread_mutex_lock(&pair.node.lock); /* blocks the hub */
    vnx_status_t status = peer_do(&pair.peer, &answer);
    pthread_mutex_unlock(&pair.node.lock);
    assert_int_equal(status, VNX_OK);
    assert_true(node_wait(&pair.node, &pair.node.account.controls, 12));
    assert_int_equal(node_look(&pair.node).bad, 0);
    assert_int_equal(node_look(&pair.node).control_fds, 12 * 20);
    assert_int_equal(node_look(&pair.node).ended, 0);
    pair_close(&pair);
}

/* -- Askers --------------------------------------------------------------- */

static void
test_hub_reports_the_end_of_an_asker_once(void **state)
{
    (void)state;
    peer_t peers[3];
    node_t node;

    for (int i = 0; i < 3; i++) {
        peer_start(&peers[i], "prefill");
    }
    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    for (int i = 0; i < 3; i++) {
        order_t open = {.kind = PEER_OPEN, .info = node.info};
        assert_int_equal(peer_do(&peers[i], &open), VNX_OK);
    }
    close(raw_connect(node.info.socket)); /* without HELLO: no asker */
    order_t end = {.kind = PEER_CLOSE};
    assert_int_equal(peer_do(&peers[0], &end), VNX_OK);
    assert_true(node_wait(&node, &node.account.askers_gone, 1));
    peer_kill(&peers[0]);
    peer_kill(&peers[1]);
    assert_true(node_wait(&node, &node.account.askers_gone, 2));
    assert_true(node_wait_accepted(&node, 1));
    vnxi_hub_stop(node.hub); /* which the agent knows */
    assert_int_equal(node_look(&node).askers_gone, 2);
    node_fini(&node);
    peer_stop(&peers[2]);
}

/* It does not read, so it cannot be told about a deregistration. */
static void
test_hub_reports_the_end_of_an_asker_that_it_gives_up(void **state)
{
    (void)state;
    peer_t peer;
    node_t node;
    vnx_status_t status = VNX_OK;

    asker_open(&peer, &node);
    size_t fds = open_fds();
    kill(peer.pid, SIGSTOP);
    for (uint32_t i = 0; status == VNX_OK; i++) {
        status =
            node_send_control(&node, NULL, i, 1, VNXI_CONTROL_BYTES_MAX, 0);
    }
    assert_int_equal(status, VNX_ERR_BACKEND);
    assert_int_equal(
        node_send_control(&node, NULL, 0, 1, VNXI_CONTROL_BYTES_MAX, 64),
        VNX_ERR_BACKEND);
    assert_int_equal(open_fds(), fds);
    assert_int_equal(node_look(&node).askers_gone, 0);
    vnx_desc_t *descs = calloc(10000, sizeof *descs);
    vnxi_hub_revoke(node.hub, 1, VNX_MEM_DRAM, descs, 10000);
    free(descs);
    assert_true(node_wait(&node, &node.account.askers_gone, 1));
    kill(peer.pid, SIGCONT);
    assert_int_equal(
        peer_wait(&peer, offsetof(node_account_t, ended), 1).ended, 1);
    node_fini(&node);
    assert_int_equal(node.account.askers_gone, 1);
    peer_stop(&peer);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_link_carries_control_messages_both_ways),
        cmocka_unit_test(
            test_link_keeps_the_order_of_notifications_and_control_messages),
        cmocka_unit_test(test_link_closes_descriptors_that_it_cannot_send),
        cmocka_unit_test(test_link_queues_descriptors_for_a_stopped_process),
        cmocka_unit_test(test_link_end_closes_queued_descriptors),
        cmocka_unit_test(test_link_forked_child_keeps_no_queued_descriptor),
        cmocka_unit_test(
            test_hub_ends_a_link_whose_opener_announces_descriptors),
        cmocka_unit_test(
            test_link_descriptors_of_a_frame_in_pieces_arrive_with_it),
        cmocka_unit_test(
            test_link_descriptors_of_frames_in_one_read_stay_apart),
        cmocka_unit_test(test_link_takes_no_other_descriptors_than_announced),
        cmocka_unit_test(
            test_link_ends_if_too_many_descriptors_arrive_for_a_frame),
        cmocka_unit_test(test_link_end_closes_descriptors_of_half_a_frame),
        cmocka_unit_test(test_link_goes_on_after_a_lack_of_descriptors),
        cmocka_unit_test(
            test_link_goes_on_if_too_many_descriptors_are_on_their_way),
        cmocka_unit_test(test_hub_reports_the_end_of_an_asker_once),
        cmocka_unit_test(
            test_hub_reports_the_end_of_an_asker_that_it_gives_up),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
