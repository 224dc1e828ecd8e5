/* How links end, and that nothing leaks. */
#include "link_node.h"

static void
check_ended(node_t *node, vnxi_link_t *link, const char *cause)
{
    vnx_error_t error;

    assert_true(node_wait(node, &node->account.ended, 1));
    node_account_t account = node_look(node);
    assert_int_equal(account.ended, 1);
    assert_int_equal(account.bad, 0);
    assert_string_equal(account.cause, cause);
    assert_ptr_equal(account.cookie, node);
    assert_true(vnxi_link_ended(link));
    assert_int_equal(vnxi_link_send_notif(link, "x", 1, &error),
                     VNX_ERR_REMOTE_DISCONNECT);
    assert_int_equal(error.status, VNX_ERR_REMOTE_DISCONNECT);
}

static void
test_link_end_of_the_process_is_reported(void **state)
{
    (void)state;
    pair_t pair;
    char cause[64];

    pair_open(&pair);
    snprintf(cause, sizeof cause, "process %d ended", (int)pair.peer.pid);
    peer_kill(&pair.peer);
    check_ended(&pair.node, pair.link, cause);
    vnxi_link_release(pair.link);
    node_fini(&pair.node);
}

/* A child of the peer keeps the sockets open, so the streams do not end. */
static void
test_link_end_is_reported_although_a_child_keeps_the_sockets(void **state)
{
    (void)state;
    pair_t pair;
    char cause[64];

    pair_open(&pair);
    order_t open = {.kind = PEER_OPEN, .info = pair.node.info};
    assert_int_equal(peer_do(&pair.peer, &open), VNX_OK);
    assert_true(node_wait_accepted(&pair.node, 1));
    assert_int_equal(node_send(pair.link, 0, 0, 1, 100), VNX_OK);
    assert_int_equal(peer_wait_notifs(&pair.peer, 1).notifs, 1);
    pid_t holder = peer_child(&pair.peer, PEER_HOLD);
    snprintf(cause, sizeof cause, "process %d ended", (int)pair.peer.pid);
    peer_kill(&pair.peer);
    check_ended(&pair.node, pair.link, cause);
    assert_true(node_wait_accepted(&pair.node, 0));
    vnxi_link_release(pair.link);
    node_fini(&pair.node);
    kill(holder, SIGKILL);
}

static void
test_link_orderly_end_is_reported(void **state)
{
    (void)state;
    pair_t pair;

    pair_open(&pair);
    assert_int_equal(node_send(pair.link, 0, 0, 1, 100), VNX_OK);
    assert_int_equal(peer_wait_notifs(&pair.peer, 1).notifs, 1);
    peer_stop(&pair.peer);
    check_ended(&pair.node, pair.link, "the peer said goodbye");
    vnxi_link_release(pair.link);
    node_fini(&pair.node);
}

static size_t
count_sockets(pid_t pid)
{
    char path[64], target[64];
    size_t count = 0;
    struct dirent *entry;

    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    DIR *dir = opendir(path);
    assert_non_null(dir);
    while ((entry = readdir(dir)) != NULL) {
        ssize_t len =
            readlinkat(dirfd(dir), entry->d_name, target, sizeof target - 1);
        if (len > 0) {
            target[len] = '\0';
            count += strncmp(target, "socket:", 7) == 0 ||
                     strstr(target, "eventpoll") != NULL ||
                     strstr(target, "pidfd") != NULL;
        }
    }
    closedir(dir);
    return count;
}

static void
test_link_forked_child_keeps_no_socket(void **state)
{
    (void)state;
    pair_t pair;

    pair_open(&pair);
    order_t open = {.kind = PEER_OPEN, .info = pair.node.info};
    assert_int_equal(peer_do(&pair.peer, &open), VNX_OK);
    assert_int_equal(node_send(pair.link, 0, 0, 1, 100), VNX_OK);
    assert_int_equal(peer_wait_notifs(&pair.peer, 1).notifs, 1);
    pid_t child = peer_child(&pair.peer, PEER_FORK);
    /* It closes its command pipe itself; everything else is closed already. */
    uint64_t deadline = vnxi_clock_deadline(NODE_DEADLINE_NS);
    while (count_sockets(child) > 0) {
        assert_true(vnxi_clock_ns() < deadline);
        usleep(1000);
    }
    /* The parent's links stay open and end only with the parent. */
    assert_int_equal(node_send(pair.link, 0, 1, 1, 100), VNX_OK);
    assert_int_equal(peer_wait_notifs(&pair.peer, 2).notifs, 2);
    assert_int_equal(node_look(&pair.node).ended, 0);
    peer_stop(&pair.peer);
    check_ended(&pair.node, pair.link, "the peer said goodbye");
    vnxi_link_release(pair.link);
    node_fini(&pair.node);
    kill(child, SIGKILL);
}

/* All calls on the parent's objects return in a forked child. */
static void
test_link_calls_in_a_forked_child_return(void **state)
{
    (void)state;
    node_t node;
    vnxi_link_t *link;
    int status;

    assert_int_equal(node_init(&node, "alone"), VNX_OK);
    link = node_open(&node, &node.info);
    /* Locks that others hold stay held in the child. */
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        vnxi_link_t *other;
        bool good =
            vnxi_link_send_notif(link, "x", 1, NULL) == VNX_ERR_NOT_ALLOWED &&
            node_try_open(node.hub, &node.info, NULL, &other, NULL) ==
                VNX_ERR_NOT_ALLOWED;
        vnxi_hub_poll(node.hub);
        vnxi_hub_revoke(node.hub, 1, VNX_MEM_DRAM, &(vnx_desc_t){0x1000, 1, 0},
                        1);
        vnxi_link_close(link);
        vnxi_link_release(link);
        vnxi_hub_stop(node.hub);
        vnxi_hub_free(node.hub);
        _exit(good ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_int_equal(node_send(link, 0, 0, 10, 100), VNX_OK);
    assert_true(node_wait(&node, &node.account.notifs, 10));
    assert_int_equal(node_look(&node).ended, 0);
    assert_int_equal(node_look(&node).revoked, 0);
    vnxi_link_release(link);
    node_fini(&node);
}

/* A callback blocks the hub while the peer sends and dies; the messages in our
 * socket must arrive before its end. */
static void
test_link_messages_sent_before_death_arrive(void **state)
{
    (void)state;
    peer_t peer;
    node_t node;

    peer_start(&peer, "prefill");
    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    order_t open = {.kind = PEER_OPEN, .info = node.info};
    assert_int_equal(peer_do(&peer, &open), VNX_OK);
    pid_t holder = peer_child(&peer, PEER_HOLD); /* no end of the stream */
    pthread_mutex_lock(&node.lock);
    order_t die = {.kind = PEER_SEND_DIE, .count = 100, .len = 100};
    peer_order(&peer, &die);
    assert_int_equal(waitpid(peer.pid, NULL, 0), peer.pid);
    pthread_mutex_unlock(&node.lock);
    assert_true(node_wait(&node, &node.account.notifs, 100));
    assert_true(node_wait_accepted(&node, 0));
    assert_int_equal(node_look(&node).notifs, 100);
    assert_int_equal(node_look(&node).bad, 0);
    assert_int_equal(node_look(&node).ended, 0); /* they opened it, not we */
    close(peer.orders);
    node_fini(&node);
    kill(holder, SIGKILL);
}

/* -- Closing -------------------------------------------------------------- */

static void
test_link_close_reports_no_end(void **state)
{
    (void)state;
    peer_t peer;
    node_t node;
    vnxi_link_t *link, *other;

    peer_start(&peer, "prefill");
    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    link = node_open(&node, &peer.info);
    other = node_open(&node, &peer.info);
    vnxi_link_retain(link);
    vnxi_link_close(link);
    vnxi_link_close(link);
    assert_true(vnxi_link_ended(link));
    assert_int_equal(vnxi_link_send_notif(link, "x", 1, NULL),
                     VNX_ERR_REMOTE_DISCONNECT);
    vnxi_link_release(link);
    vnxi_link_release(link);
    vnxi_link_release(other); /* the last one closes too */
    peer_stop(&peer);
    node_fini(&node);
    assert_int_equal(node.account.ended, 0);
}

/* Messages sent before close() arrive, because BYE follows them. */
static void
test_link_close_follows_sent_messages(void **state)
{
    (void)state;
    peer_t peer;
    node_t node;
    vnxi_link_t *link;

    peer_start(&peer, "prefill");
    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    for (uint32_t i = 0; i < 200; i++) {
        link = node_open(&node, &peer.info);
        assert_int_equal(node_send(link, 0, i, 1, 100), VNX_OK);
        vnxi_link_release(link);
        assert_int_equal(peer_wait_notifs(&peer, i + 1).notifs, i + 1);
    }
    assert_int_equal(peer_look(&peer).bad, 0);
    node_fini(&node);
    peer_stop(&peer);
}

static void
test_link_churn_leaks_nothing(void **state)
{
    (void)state;
    pair_t pair;

    pair_open(&pair);
    assert_int_equal(node_send(pair.link, 0, 0, 1, 100), VNX_OK);
    assert_int_equal(peer_wait_notifs(&pair.peer, 1).notifs, 1);
    size_t fds = open_fds();
    size_t sockets = count_sockets(pair.peer.pid);
    for (uint32_t i = 0; i < 1000; i++) {
        vnxi_link_t *one;
        one = node_open(&pair.node, &pair.peer.info);
        assert_int_equal(node_send(one, 1, i, 1, 64), VNX_OK);
        vnxi_link_release(one);
    }
    assert_int_equal(peer_wait_notifs(&pair.peer, 1001).notifs, 1001);
    uint64_t deadline = vnxi_clock_deadline(NODE_DEADLINE_NS);
    while (open_fds() > fds || count_sockets(pair.peer.pid) > sockets) {
        assert_true(vnxi_clock_ns() < deadline);
        usleep(1000);
    }
    vnxi_link_release(pair.link);
    node_fini(&pair.node);
    assert_int_equal(pair.node.account.ended, 0);
    peer_stop(&pair.peer);
}

static void
test_link_can_be_closed_and_released_in_its_callbacks(void **state)
{
    (void)state;
    peer_t peer;
    node_t node;

    peer_start(&peer, "prefill");
    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    node.close_when_called = node.release_when_ended = true;
    for (int i = 0; i < 20; i++) {
        node_open(&node, &peer.info);
    }
    peer_kill(&peer);
    assert_true(node_wait(&node, &node.account.ended, 20));
    node_fini(&node);
    assert_int_equal(node.account.ended, 20);
    assert_int_equal(node.account.bad, 0);
}

/* Three rows come in one frame; the first callback closes the link. */
static void
test_link_closed_in_a_callback_reports_no_end(void **state)
{
    (void)state;
    peer_t peer;
    node_t node;
    vnxi_link_t *link;

    peer_start(&peer, "prefill");
    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    node.close_when_called = true;
    link = node_open(&node, &peer.info);
    assert_int_equal(node_send(link, 0, 0, 1, 64), VNX_OK);
    assert_int_equal(peer_wait_notifs(&peer, 1).notifs, 1);
    order_t revoke = {.kind = PEER_REVOKE, .count = 3};
    assert_int_equal(peer_do(&peer, &revoke), VNX_OK);
    assert_true(node_wait(&node, &node.account.revoked, 1));
    peer_stop(&peer);
    assert_true(vnxi_link_ended(link));
    vnxi_link_release(link);
    node_fini(&node);
    assert_int_equal(node.account.ended, 0);
}

/* Close races with death: the end is reported at most once, never after close
 * returned and the hub stopped. */
static void
test_link_close_races_with_the_end(void **state)
{
    (void)state;
    node_t node;
    peer_t peers[20];
    vnxi_link_t *links[20];

    for (int i = 0; i < 20; i++) {
        peer_start(&peers[i], "prefill");
    }
    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    for (int i = 0; i < 20; i++) {
        links[i] = node_open(&node, &peers[i].info);
    }
    for (int i = 0; i < 20; i++) {
        kill(peers[i].pid, SIGKILL);
        vnxi_link_release(links[i]);
    }
    for (int i = 0; i < 20; i++) {
        peer_kill(&peers[i]);
    }
    node_fini(&node);
    assert_in_range(node.account.ended, 0, 20);
    assert_int_equal(node.account.bad, 0);
}

/* -- Stopping ------------------------------------------------------------- */

typedef struct worker {
    pthread_t thread;
    node_t *node;
    vnxi_link_t *link;
    const vnxi_shm_info_t *info;
    uint32_t stream;
    vnx_status_t status;
} worker_t;

static void *
send_until_refused(void *arg)
{
    worker_t *worker = arg;
    uint32_t i = 0;

    do {
        worker->status = node_send(worker->link, worker->stream, i++, 1, 2000);
    } while (worker->status == VNX_OK || worker->status == VNX_ERR_BACKEND);
    return NULL;
}

static void *
poll_until_ended(void *arg)
{
    worker_t *worker = arg;

    while (!vnxi_link_ended(worker->link)) {
        vnxi_hub_poll(worker->node->hub);
    }
    return NULL;
}

static void *
open_until_closed(void *arg)
{
    worker_t *worker = arg;

    do {
        vnxi_link_t *link = NULL;
        worker->status =
            node_try_open(worker->node->hub, worker->info, NULL, &link, NULL);
        vnxi_link_release(link);
    } while (worker->status == VNX_OK);
    return NULL;
}

static void
test_hub_stops_under_load(void **state)
{
    (void)state;
    void *(*const work[])(void *) = {send_until_refused, send_until_refused,
                                     send_until_refused, poll_until_ended,
                                     open_until_closed};

    for (int round = 0; round < 5; round++) {
        peer_t peer;
        node_t node;
        vnxi_link_t *link;
        worker_t workers[5];

        peer_start(&peer, "prefill");
        assert_int_equal(node_init(&node, "decode"), VNX_OK);
        link = node_open(&node, &peer.info);
        order_t open = {.kind = PEER_OPEN, .info = node.info};
        order_t echo = {.kind = PEER_ECHO};
        assert_int_equal(peer_do(&peer, &open), VNX_OK);
        assert_int_equal(peer_do(&peer, &echo), VNX_OK);
        for (uint32_t i = 0; i < 5; i++) {
            workers[i] = (worker_t){
                .node = &node, .link = link, .info = &peer.info, .stream = i};
            pthread_create(&workers[i].thread, NULL, work[i], &workers[i]);
        }
        assert_true(node_wait(&node, &node.account.notifs, 300));
        vnxi_hub_stop(node.hub);
        node_account_t at_stop = node_look(&node);
        for (int i = 0; i < 5; i++) {
            pthread_join(workers[i].thread, NULL);
        }
        assert_int_equal(workers[0].status, VNX_ERR_REMOTE_DISCONNECT);
        assert_int_equal(workers[4].status, VNX_ERR_CLOSED);
        assert_int_equal(node_look(&node).notifs, at_stop.notifs);
        assert_int_equal(at_stop.ended, 0);
        assert_int_equal(at_stop.bad, 0);
        vnxi_hub_poll(node.hub);
        vnxi_hub_stop(node.hub);
        assert_int_equal(vnxi_hub_accepted(node.hub), 0);
        vnxi_link_release(link);
        node_fini(&node);
        peer_kill(&peer);
    }
}

static void
test_hub_stop_closes_all_descriptors(void **state)
{
    (void)state;
    size_t fds = 0;

    for (int round = 0; round < 20; round++) {
        node_t one, two;
        vnxi_link_t *link;
        assert_int_equal(node_init(&one, "one"), VNX_OK);
        assert_int_equal(node_init(&two, "two"), VNX_OK);
        link = node_open(&one, &two.info);
        assert_int_equal(node_send(link, 0, 0, 1, 100), VNX_OK);
        assert_true(node_wait(&two, &two.account.notifs, 1));
        node_fini(&two);
        assert_true(node_wait(&one, &one.account.ended, 1));
        vnxi_link_release(link);
        node_fini(&one);
        fds = round == 0 ? open_fds() : fds;
        assert_int_equal(open_fds(), fds);
    }
}

#define EACH 100

/* Many threads open and close links between two hubs in both directions, while
 * both are polled. */
static void *
open_and_close(void *arg)
{
    worker_t *worker = arg;

    worker->status = VNX_OK;
    for (uint32_t i = 0; i < EACH && worker->status == VNX_OK; i++) {
        vnxi_link_t *link;
        worker->status =
            node_try_open(worker->node->hub, worker->info, NULL, &link, NULL);
        if (worker->status == VNX_OK) {
            worker->status = node_send(link, worker->stream, i, 1, 64);
            vnxi_hub_poll(worker->node->hub);
            vnxi_hub_revoke(worker->node->hub, i, VNX_MEM_DRAM,
                            &(vnx_desc_t){i, 1, 0}, 1);
            vnxi_link_release(link);
        }
    }
    return NULL;
}

static void
test_hub_opens_and_closes_links_on_many_threads(void **state)
{
    (void)state;
    node_t nodes[2];
    worker_t workers[6];

    assert_int_equal(node_init(&nodes[0], "one"), VNX_OK);
    assert_int_equal(node_init(&nodes[1], "two"), VNX_OK);
    for (uint32_t i = 0; i < 6; i++) {
        workers[i] = (worker_t){.node = &nodes[i % 2],
                                .info = &nodes[1 - i % 2].info,
                                .stream = i};
        pthread_create(&workers[i].thread, NULL, open_and_close, &workers[i]);
    }
    for (int i = 0; i < 6; i++) {
        pthread_join(workers[i].thread, NULL);
        assert_int_equal(workers[i].status, VNX_OK);
    }
    for (int i = 0; i < 2; i++) {
        assert_true(node_wait(&nodes[i], &nodes[i].account.notifs, 3 * EACH));
        assert_true(node_wait_accepted(&nodes[i], 0));
        assert_int_equal(node_look(&nodes[i]).notifs, 3 * EACH);
    }
    node_fini(&nodes[0]);
    node_fini(&nodes[1]);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_link_end_of_the_process_is_reported),
        cmocka_unit_test(
            test_link_end_is_reported_although_a_child_keeps_the_sockets),
        cmocka_unit_test(test_link_orderly_end_is_reported),
        cmocka_unit_test(test_link_forked_child_keeps_no_socket),
        cmocka_unit_test(test_link_messages_sent_before_death_arrive),
        cmocka_unit_test(test_link_close_reports_no_end),
        cmocka_unit_test(test_link_close_follows_sent_messages),
        cmocka_unit_test(test_link_churn_leaks_nothing),
        cmocka_unit_test(
            test_link_can_be_closed_and_released_in_its_callbacks),
        cmocka_unit_test(test_link_closed_in_a_callback_reports_no_end),
        cmocka_unit_test(test_link_close_races_with_the_end),
        cmocka_unit_test(test_hub_stops_under_load),
        cmocka_unit_test(test_hub_stop_closes_all_descriptors),
        cmocka_unit_test(test_hub_opens_and_closes_links_on_many_threads),
        cmocka_unit_test(test_link_calls_in_a_forked_child_return),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
