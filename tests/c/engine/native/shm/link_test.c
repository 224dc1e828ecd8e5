/* Messages over links: exchange, order, queueing, threads, polling. */
#include "link_node.h"

static void
test_link_carries_notifications_both_ways(void **state)
{
    (void)state;
    pair_t pair;

    pair_open(&pair);
    assert_ptr_equal(vnxi_link_cookie(pair.link), &pair.node);
    assert_false(vnxi_link_ended(pair.link));
    assert_int_equal(node_send(pair.link, 0, 0, 1, 100), VNX_OK);
    node_account_t there = peer_wait_notifs(&pair.peer, 1);
    assert_int_equal(there.notifs, 1);
    assert_int_equal(there.bytes, 100);
    assert_int_equal(there.bad, 0);
    assert_string_equal(there.sender, "decode");

    order_t open = {.kind = PEER_OPEN, .info = pair.node.info};
    assert_int_equal(peer_do(&pair.peer, &open), VNX_OK);
    order_t send = {.kind = PEER_SEND, .count = 3, .len = 50};
    assert_int_equal(peer_do(&pair.peer, &send), VNX_OK);
    assert_true(node_wait(&pair.node, &pair.node.account.notifs, 3));
    assert_int_equal(node_look(&pair.node).bad, 0);
    assert_string_equal(node_look(&pair.node).sender, "prefill");
    assert_int_equal(vnxi_hub_accepted(pair.node.hub), 1);

    pair_close(&pair);
}

static void
test_link_preserves_order_for_messages_of_all_sizes(void **state)
{
    (void)state;
    pair_t pair;

    pair_open(&pair);
    assert_int_equal(node_send(pair.link, 0, 0, 10000, 24), VNX_OK);
    assert_int_equal(node_send(pair.link, 0, 10000, 1, 300000), VNX_OK);
    assert_int_equal(node_send(pair.link, 0, 10001, 1, 64u << 20), VNX_OK);
    assert_int_equal(node_send(pair.link, 0, 10002, 100, NODE_HEAD), VNX_OK);
    node_account_t there = peer_wait_notifs(&pair.peer, 10102);
    assert_int_equal(there.notifs, 10102);
    assert_int_equal(there.bad, 0);
    assert_int_equal(there.bytes,
                     240000 + 300000 + (64u << 20) + 100 * NODE_HEAD);
    pair_close(&pair);
}

static void
test_link_refuses_a_message_above_the_frame(void **state)
{
    (void)state;
    node_t node;
    vnxi_link_t *link;
    vnx_error_t error;

    assert_int_equal(node_init(&node, "alone"), VNX_OK);
    link = node_open(&node, &node.info);
    assert_int_equal(
        vnxi_link_send_notif(link, "", VNXI_LINK_FRAME_MAX, &error),
        VNX_ERR_INVALID_PARAM);
    assert_int_equal(node_send(link, 0, 0, 1, 100), VNX_OK);
    assert_true(node_wait(&node, &node.account.notifs, 1));
    vnxi_link_release(link);
    node_fini(&node);
}

/* A stopped process reads nothing; sending continues, and nothing is lost. */
static void
test_link_queues_for_a_stopped_process(void **state)
{
    (void)state;
    pair_t pair;

    pair_open(&pair);
    kill(pair.peer.pid, SIGSTOP);
    assert_int_equal(node_send(pair.link, 0, 0, 4000, 4096), VNX_OK);
    assert_int_equal(node_send(pair.link, 0, 4000, 1, 5000000), VNX_OK);
    assert_int_equal(node_send(pair.link, 0, 4001, 4000, 20), VNX_OK);
    kill(pair.peer.pid, SIGCONT);
    node_account_t there = peer_wait_notifs(&pair.peer, 8001);
    assert_int_equal(there.notifs, 8001);
    assert_int_equal(there.bad, 0);
    pair_close(&pair);
}

static void
test_link_bounds_its_queue(void **state)
{
    (void)state;
    pair_t pair;
    vnx_error_t error;
    const size_t len = 16u << 20;
    unsigned char *message = malloc(len);
    uint32_t sent = 0;
    vnx_status_t status;

    pair_open(&pair);
    kill(pair.peer.pid, SIGSTOP);
    for (;;) {
        node_message(message, len, 0, sent);
        status = vnxi_link_send_notif(pair.link, message, len, &error);
        if (status != VNX_OK) {
            break;
        }
        sent++;
    }
    assert_int_equal(status, VNX_ERR_BACKEND);
    assert_int_equal(error.status, VNX_ERR_BACKEND);
    assert_in_range((size_t)sent * len, VNXI_LINK_QUEUE_MAX - 2 * len,
                    VNXI_LINK_QUEUE_MAX + len);
    /* The link still works: accepted and later messages arrive. */
    kill(pair.peer.pid, SIGCONT);
    assert_int_equal(peer_wait_notifs(&pair.peer, sent).notifs, sent);
    assert_int_equal(node_send(pair.link, 0, sent, 1, 100), VNX_OK);
    node_account_t there = peer_wait_notifs(&pair.peer, sent + 1);
    assert_int_equal(there.notifs, sent + 1);
    assert_int_equal(there.bad, 0);
    free(message);
    pair_close(&pair);
}

/* -- Threads -------------------------------------------------------------- */

#define SENDERS 6
#define EACH 3000

typedef struct sender {
    pthread_t thread;
    vnxi_link_t *link;
    uint32_t stream;
    vnx_status_t status;
} sender_t;

static void *
send_many(void *arg)
{
    sender_t *sender = arg;

    sender->status = VNX_OK;
    for (uint32_t i = 0; i < EACH && sender->status == VNX_OK; i++) {
        sender->status =
            node_send(sender->link, sender->stream, i, 1, 20 + i % 3000);
    }
    return NULL;
}

static void
test_link_preserves_the_order_of_each_thread(void **state)
{
    (void)state;
    pair_t pair;
    sender_t senders[SENDERS];

    pair_open(&pair);
    for (uint32_t i = 0; i < SENDERS; i++) {
        senders[i] = (sender_t){.link = pair.link, .stream = i};
        pthread_create(&senders[i].thread, NULL, send_many, &senders[i]);
    }
    for (uint32_t i = 0; i < SENDERS; i++) {
        pthread_join(senders[i].thread, NULL);
        assert_int_equal(senders[i].status, VNX_OK);
    }
    node_account_t there = peer_wait_notifs(&pair.peer, SENDERS * EACH);
    assert_int_equal(there.notifs, SENDERS * EACH);
    assert_int_equal(there.bad, 0);
    pair_close(&pair);
}

/* One peer floods us; the few messages of the other still arrive. */
static void
test_link_flood_does_not_starve_others(void **state)
{
    (void)state;
    peer_t loud, quiet;
    node_t node;

    peer_start(&loud, "loud");
    peer_start(&quiet, "quiet");
    assert_int_equal(node_init(&node, "decode"), VNX_OK);
    order_t open = {.kind = PEER_OPEN, .info = node.info};
    assert_int_equal(peer_do(&loud, &open), VNX_OK);
    assert_int_equal(peer_do(&quiet, &open), VNX_OK);
    assert_true(node_wait_accepted(&node, 2));
    /* The flood exceeds one round.  Stream 0 belongs to `loud`, so each
     * message of `quiet` with the same numbers counts as bad. */
    order_t flood = {.kind = PEER_SEND, .count = 20000, .len = 4096};
    peer_order(&loud, &flood);
    order_t few = {
        .kind = PEER_SEND, .first = 1000000, .count = 50, .len = 64};
    assert_int_equal(peer_do(&quiet, &few), VNX_OK);
    assert_true(node_wait(&node, &node.account.bad, 50));
    assert_true(node_wait(&node, &node.account.notifs, 20050));
    assert_int_equal(node_look(&node).bad, 50);
    assert_int_equal(node_look(&node).next[0], 20000);
    node_fini(&node);
    peer_kill(&loud);
    peer_stop(&quiet);
}

/* -- Polling -------------------------------------------------------------- */

/* As pair_open(); the other side echoes. */
static void
echo_open(pair_t *pair)
{
    pair_open(pair);
    order_t open = {.kind = PEER_OPEN, .info = pair->node.info};
    order_t echo = {.kind = PEER_ECHO};
    assert_int_equal(peer_do(&pair->peer, &open), VNX_OK);
    assert_int_equal(peer_do(&pair->peer, &echo), VNX_OK);
}

static void
poll_until(node_t *node, const size_t *counter, size_t count)
{
    uint64_t deadline = vnxi_clock_deadline(NODE_DEADLINE_NS);

    for (;;) {
        vnxi_hub_poll(node->hub);
        pthread_mutex_lock(&node->lock);
        bool there = *counter >= count;
        pthread_mutex_unlock(&node->lock);
        if (there) {
            return;
        }
        assert_true(vnxi_clock_ns() < deadline);
    }
}

static void
test_link_polling_on_both_sides_loses_nothing(void **state)
{
    (void)state;
    pair_t pair;

    echo_open(&pair);
    peer_order(&pair.peer, &(order_t){.kind = PEER_POLL});
    /* Long enough for the thread to leave the sockets to us. */
    uint64_t settled = vnxi_clock_deadline(50000000);
    while (vnxi_clock_ns() < settled) {
        vnxi_hub_poll(pair.node.hub);
    }
    for (uint32_t i = 0; i < 1000; i++) {
        assert_int_equal(node_send(pair.link, 0, i, 1, 40), VNX_OK);
        poll_until(&pair.node, &pair.node.account.notifs, i + 1);
    }
    node_account_t here = node_look(&pair.node);
    assert_int_equal(here.notifs, 1000);
    assert_int_equal(here.bad, 0);
    assert_true(here.by_poller > 0);
    pair_close(&pair);
}

/* An agent that stops polling is woken again: nothing stays in the sockets. */
static void
test_link_wakes_an_agent_that_stopped_polling(void **state)
{
    (void)state;
    pair_t pair;
    uint32_t sent = 0;

    echo_open(&pair);
    for (int round = 0; round < 10; round++) {
        uint64_t until = vnxi_clock_deadline(20000000);
        while (vnxi_clock_ns() < until) {
            vnxi_hub_poll(pair.node.hub);
        }
        size_t before = node_look(&pair.node).by_poller;
        assert_int_equal(node_send(pair.link, 0, sent++, 1, 40), VNX_OK);
        assert_true(node_wait(&pair.node, &pair.node.account.notifs, sent));
        assert_int_equal(node_look(&pair.node).by_poller, before);
    }
    assert_int_equal(node_look(&pair.node).bad, 0);
    pair_close(&pair);
}

static void *
poll_all_the_time(void *arg)
{
    node_t *node = arg;

    for (int i = 0; i < 20000; i++) {
        vnxi_hub_poll(node->hub);
    }
    return NULL;
}

static void
test_link_many_pollers_receive_each_message_once(void **state)
{
    (void)state;
    pair_t pair;
    pthread_t pollers[4];

    echo_open(&pair);
    for (int i = 0; i < 4; i++) {
        pthread_create(&pollers[i], NULL, poll_all_the_time, &pair.node);
    }
    assert_int_equal(node_send(pair.link, 0, 0, 20000, 32), VNX_OK);
    for (int i = 0; i < 4; i++) {
        pthread_join(pollers[i], NULL);
    }
    assert_true(node_wait(&pair.node, &pair.node.account.notifs, 20000));
    assert_int_equal(node_look(&pair.node).bad, 0);
    pair_close(&pair);
}

static long
thread_switches(const char *thread_name)
{
    DIR *dir = opendir("/proc/self/task");
    struct dirent *entry;
    long switches = -1;

    assert_non_null(dir);
    while ((entry = readdir(dir)) != NULL) {
        char path[300], line[128], name[64] = "";
        long count = 0;
        snprintf(path, sizeof path, "/proc/self/task/%s/status",
                 entry->d_name);
        FILE *file = fopen(path, "r");
        while (file != NULL && fgets(line, sizeof line, file) != NULL) {
            sscanf(line, "Name: %63s", name);
            sscanf(line, "voluntary_ctxt_switches: %ld", &count);
        }
        if (file != NULL) {
            fclose(file);
        }
        if (strcmp(name, thread_name) == 0) {
            switches = count;
        }
    }
    closedir(dir);
    return switches;
}

static void
test_link_idle_thread_sleeps(void **state)
{
    (void)state;
    pair_t pair;

    echo_open(&pair);
    assert_int_equal(node_send(pair.link, 0, 0, 1, 40), VNX_OK);
    assert_true(node_wait(&pair.node, &pair.node.account.notifs, 1));
    /* Work may remain after the message. */
    uint64_t deadline = vnxi_clock_deadline(NODE_DEADLINE_NS);
    long before, now = thread_switches("vnx-hub");
    do {
        assert_true(now >= 0);
        assert_true(vnxi_clock_ns() < deadline);
        before = now;
        usleep(300000);
        now = thread_switches("vnx-hub");
    } while (now != before);
    pair_close(&pair);
}

/* -- Revocations ---------------------------------------------------------- */

static void
test_link_sends_revocations_to_its_opener(void **state)
{
    (void)state;
    pair_t pair;

    echo_open(&pair);
    /* The echo tells that the peer knows our link. */
    assert_int_equal(node_send(pair.link, 0, 0, 1, 40), VNX_OK);
    assert_true(node_wait(&pair.node, &pair.node.account.notifs, 1));

    order_t one = {.kind = PEER_REVOKE, .count = 1};
    assert_int_equal(peer_do(&pair.peer, &one), VNX_OK);
    assert_true(node_wait(&pair.node, &pair.node.account.revoked, 1));
    order_t many = {.kind = PEER_REVOKE, .count = 70000};
    assert_int_equal(peer_do(&pair.peer, &many), VNX_OK);
    assert_true(node_wait(&pair.node, &pair.node.account.revoked, 70001));
    node_account_t here = node_look(&pair.node);
    assert_int_equal(here.epoch, 42);
    assert_int_equal(here.mem, VNX_MEM_DRAM);
    assert_int_equal(here.desc.addr, 0x1000 + 69999);
    assert_int_equal(here.desc.len, 2 * 69999 + 1);
    assert_int_equal(here.desc.dev, 69999 % 7);
    assert_int_equal(here.ended, 0);
    /* The peer opened a link to us; we have revoked nothing. */
    assert_int_equal(peer_look(&pair.peer).revoked, 0);
    pair_close(&pair);
}

static vnx_status_t
peer_settle(pair_t *pair)
{
    return peer_do(&pair->peer, &(order_t){.kind = PEER_SETTLE});
}

static void
test_link_owner_waits_until_openers_have_settled(void **state)
{
    (void)state;
    vnxi_link_row_t row = {.mem = VNX_MEM_DRAM, .map_info = {.fd = -1}};
    pair_t pair;

    echo_open(&pair);
    /* An opener that has asked about no region uses none. */
    assert_int_equal(peer_settle(&pair), VNX_OK);
    assert_int_equal(node_look(&pair.node).settles, 0);

    assert_int_equal(vnxi_link_ask(pair.link, 1, &row, 1, NULL), VNX_OK);
    assert_true(node_wait(&pair.node, &pair.node.account.answers, 1));
    for (int i = 1; i <= 3; i++) {
        assert_int_equal(peer_settle(&pair), VNX_OK);
        assert_int_equal(node_look(&pair.node).settles, i);
    }
    atomic_store(&pair.node.never_settles, true);
    assert_int_equal(peer_settle(&pair), VNX_ERR_TIMEOUT);
    uint64_t token = node_look(&pair.node).token;
    assert_int_equal(vnxi_link_send_settled(pair.link, token, NULL), VNX_OK);
    atomic_store(&pair.node.never_settles, false);
    assert_int_equal(peer_settle(&pair), VNX_OK);
    assert_int_equal(node_look(&pair.node).closings, 0);
    assert_int_equal(
        peer_do(&pair.peer, &(order_t){.kind = PEER_SETTLE, .count = 1}),
        VNX_OK);
    assert_int_equal(node_look(&pair.node).closings, 1);

    /* From then on the owner confirms no region. */
    assert_int_equal(vnxi_link_ask(pair.link, 2, &row, 1, NULL), VNX_OK);
    assert_int_equal(peer_settle(&pair), VNX_OK); /* so it has read that */
    assert_int_equal(node_look(&pair.node).answers, 1);

    /* An answer that nobody has asked for ends the link. */
    assert_int_equal(vnxi_link_send_settled(pair.link, 1000, NULL), VNX_OK);
    assert_true(node_wait(&pair.node, &pair.node.account.ended, 1));
    assert_int_equal(peer_settle(&pair), VNX_OK);
    pair_close(&pair);
}

/* The epoch in an answer, and the positions of unregistered rows. */
static void
check_answer(pair_t *pair, uint64_t token, size_t count)
{
    vnxi_link_row_t *rows = calloc(count + 1, sizeof *rows);
    size_t before = node_look(&pair->node).answers;

    for (size_t i = 0; i < count; i++) {
        rows[i].desc = (vnx_desc_t){0x1000 + i, 2 * i + 1, i % 7};
        rows[i].map_info =
            i % 3 == 0 ? (vnxi_map_info_t){.fd = 7, .st_dev = i, .st_ino = 3}
                       : VNXI_MAP_INFO_NONE;
    }
    assert_int_equal(vnxi_link_ask(pair->link, token, rows, count, NULL),
                     VNX_OK);
    assert_true(
        node_wait(&pair->node, &pair->node.account.answers, before + 1));
    const vnxi_link_answer_t *answer = &pair->node.answer;
    assert_true(answer->token == token);
    assert_int_equal(answer->epoch, 42);
    assert_int_equal(answer->count, count / 2);
    for (size_t i = 0; i < count / 2; i++) {
        assert_int_equal(answer->refused[i], 2 * i + 1);
    }
    free(rows);
}

static void
test_link_answers_confirm_requests_of_any_size(void **state)
{
    (void)state;
    pair_t pair;

    pair_open(&pair);
    check_answer(&pair, 1, 0);
    check_answer(&pair, UINT64_MAX, 1);
    for (size_t count = 2; count <= VNXI_LINK_ROWS_MAX; count *= 2) {
        check_answer(&pair, count, count - 1);
        check_answer(&pair, count, count);
    }
    assert_int_equal(node_look(&pair.node).ended, 0);
    /* Notifications continue in between. */
    assert_int_equal(node_send(pair.link, 0, 0, 1, 40), VNX_OK);
    assert_int_equal(peer_wait_notifs(&pair.peer, 1).notifs, 1);
    pair_close(&pair);
}

static void
test_link_ends_on_a_mismatched_answer(void **state)
{
    (void)state;
    pair_t pair;

    pair_open(&pair);
    pair.node.refuses_answers = true;
    assert_int_equal(vnxi_link_ask(pair.link, 5, NULL, 0, NULL), VNX_OK);
    assert_true(node_wait(&pair.node, &pair.node.account.ended, 1));
    pair_close(&pair);
}

/* Alarms fire once, at the earlier of two times. */
static void
test_hub_alarm_fires_once(void **state)
{
    (void)state;
    node_t node;

    assert_int_equal(node_init(&node, "alone"), VNX_OK);
    uint64_t now = vnxi_clock_ns();
    vnxi_hub_alarm(node.hub, now + 3600 * UINT64_C(1000000000));
    vnxi_hub_alarm(node.hub, now + 20000000);
    assert_true(node_wait(&node, &node.account.alarms, 1));
    assert_true(vnxi_clock_ns() >= now + 20000000);
    vnxi_hub_alarm(node.hub, 1); /* long ago */
    assert_true(node_wait(&node, &node.account.alarms, 2));
    node_fini(&node);
    assert_int_equal(node.account.alarms, 2);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_link_carries_notifications_both_ways),
        cmocka_unit_test(test_link_preserves_order_for_messages_of_all_sizes),
        cmocka_unit_test(test_link_refuses_a_message_above_the_frame),
        cmocka_unit_test(test_link_queues_for_a_stopped_process),
        cmocka_unit_test(test_link_bounds_its_queue),
        cmocka_unit_test(test_link_preserves_the_order_of_each_thread),
        cmocka_unit_test(test_link_flood_does_not_starve_others),
        cmocka_unit_test(test_link_polling_on_both_sides_loses_nothing),
        cmocka_unit_test(test_link_wakes_an_agent_that_stopped_polling),
        cmocka_unit_test(test_link_many_pollers_receive_each_message_once),
        cmocka_unit_test(test_link_idle_thread_sleeps),
        cmocka_unit_test(test_link_sends_revocations_to_its_opener),
        cmocka_unit_test(test_link_owner_waits_until_openers_have_settled),
        cmocka_unit_test(test_link_answers_confirm_requests_of_any_size),
        cmocka_unit_test(test_link_ends_on_a_mismatched_answer),
        cmocka_unit_test(test_hub_alarm_fires_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
