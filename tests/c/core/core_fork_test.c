/* A forked child: agents of the parent refuse there and lose nothing, and the
 * child can make agents of its own that talk to the parent's. */
#include "agent_pair.h"
#include "child_check.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK_REFUSED(call) CHECK((call) == VNX_ERR_NOT_ALLOWED)

typedef struct handles {
    pair_t *pair;
    vnx_dlist_t *local, *remote;
    vnx_dlist_builder_t *builder;
    vnx_xfer_t *xfer;
    int fd;
} handles_t;

/* `child` in a forked child, which must end well. */
static void
run_forked(void (*child)(handles_t *handles), handles_t *handles)
{
    int exit_status;
    pid_t pid = fork();

    assert_true(pid >= 0);
    if (pid == 0) {
        child(handles);
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &exit_status, 0), pid);
    assert_int_equal(exit_status, 0);
}

static handles_t
make_handles(pair_t *p)
{
    handles_t h = {.pair = p};
    h.local = prepare_rows(p->a, "", p->at_a, ROW, ROWS);
    h.remote = prepare_rows(p->a, "B", p->at_b, ROW, ROWS);
    h.xfer = make_xfer(p->a, VNX_OP_READ, h.local, h.remote, ROWS, "n");
    assert_ok(
        vnx_dlist_begin(p->a, "B", 1, VNX_MEM_DRAM, NULL, &h.builder, e));
    assert_ok(vnx_agent_subscribe(p->a, &h.fd, e));
    return h;
}

/* All of it works in the parent. */
static void
use_and_release(handles_t *h)
{
    pair_t *p = h->pair;
    vnx_desc_t row = desc_at(p->at_b, 16);
    vnx_dlist_t *dlist = NULL;

    run_xfer(p->a, h->xfer);
    assert_memory_equal(p->at_a, p->at_b, p->len);
    vnx_notif_free(await_notif(p->b));
    assert_ok(vnx_dlist_feed(h->builder, &row, 1, e));
    assert_ok(vnx_dlist_finish(h->builder, &dlist, e));
    vnx_dlist_release(dlist);
    vnx_agent_unsubscribe(p->a, h->fd);
    assert_ok(vnx_xfer_release(h->xfer, e));
    vnx_dlist_release(h->local);
    vnx_dlist_release(h->remote);
    vnx_agent_stats_t stats = stats_of(p->a);
    assert_int_equal(stats.live_dlists + stats.live_xfers, 0);
    assert_int_equal(stats.peers, 1);
}

static void
refuse_agent_calls(handles_t *h)
{
    vnx_agent_t *a = h->pair->a;
    vnx_reg_desc_t desc = region_of(h->pair->at_a, h->pair->len);
    vnx_bytes_t bytes;
    vnx_error_t error;
    int fd;

    CHECK_REFUSED(vnx_agent_create_backend(a, "SHM", NULL, 0, &error));
    CHECK(strstr(error.cause, "forked") != NULL);
    CHECK_REFUSED(vnx_agent_register(a, VNX_MEM_DRAM, &desc, 1, NULL, NULL));
    CHECK_REFUSED(vnx_agent_deregister(a, VNX_MEM_DRAM, &desc, 1, NULL, NULL));
    CHECK_REFUSED(vnx_agent_metadata(a, &bytes, NULL));
    CHECK_REFUSED(vnx_agent_partial_metadata(a, VNX_MEM_DRAM, &desc, 1, true,
                                             NULL, &bytes, NULL));
    CHECK_REFUSED(vnx_agent_load_metadata(a, "x", 1, &bytes, NULL));
    CHECK_REFUSED(vnx_agent_remove_peer(a, "B", 1, NULL));
    CHECK(!vnx_agent_check_peer(a, "B", 1, VNX_MEM_DRAM, NULL, 0));
    CHECK_REFUSED(vnx_agent_connect_peer(a, "B", 1, NULL));
    CHECK_REFUSED(vnx_agent_describe(a, "", 0, &bytes, NULL));
    CHECK_REFUSED(vnx_agent_describe(a, "B", 1, &bytes, NULL));
    CHECK_REFUSED(vnx_agent_peers(a, &bytes, NULL));
    CHECK_REFUSED(vnx_agent_fileno(a, &fd, NULL));
    CHECK_REFUSED(vnx_agent_subscribe(a, &fd, NULL));
    CHECK_REFUSED(vnx_agent_send_notif(a, "B", 1, "x", 1, NULL));
    for (int i = 0; i < 200; i++) {
        CHECK(vnx_agent_take_notifs(h->pair->b) == NULL);
    }
}

static void
refuse_handle_calls(handles_t *h)
{
    vnx_agent_t *a = h->pair->a;
    vnx_desc_t row = desc_at(h->pair->at_a, 16);
    vnx_strided_desc_t strided = {row.addr, 16, 0, 16, 2};
    vnx_dlist_t *dlist = NULL;
    vnx_dlist_builder_t *builder = NULL;
    vnx_xfer_t *xfer = NULL;
    bool stopped;

    CHECK_REFUSED(
        vnx_dlist_create(a, "", 0, VNX_MEM_DRAM, &row, 1, NULL, &dlist, NULL));
    CHECK_REFUSED(vnx_dlist_create_strided(a, "", 0, VNX_MEM_DRAM, &strided, 1,
                                           NULL, &dlist, NULL));
    CHECK_REFUSED(
        vnx_dlist_begin(a, "B", 1, VNX_MEM_DRAM, NULL, &builder, NULL));
    CHECK_REFUSED(vnx_dlist_feed(h->builder, &row, 1, NULL));
    CHECK_REFUSED(vnx_dlist_feed_strided(h->builder, &strided, 1, NULL));
    CHECK_REFUSED(vnx_dlist_finish(h->builder, &dlist, NULL));
    CHECK_REFUSED(vnx_xfer_create_prepped(a, VNX_OP_READ, h->local,
                                          all_rows(1), h->remote, all_rows(1),
                                          NULL, 0, false, &xfer, NULL));
    CHECK_REFUSED(vnx_xfer_create(a, VNX_OP_READ, VNX_MEM_DRAM, &row, 1,
                                  VNX_MEM_DRAM, &row, 1, "A", 1, NULL, 0, NULL,
                                  &xfer, NULL));
    CHECK_REFUSED(vnx_xfer_post(h->xfer, "x", 1, NULL));
    CHECK_REFUSED(vnx_xfer_cancel(h->xfer, &stopped, NULL));
    CHECK_REFUSED(vnx_agent_wait(a, &h->xfer, 1, 0, VNX_FOREVER, NULL));
    CHECK(dlist == NULL && builder == NULL && xfer == NULL);
}

static void
release_all(handles_t *h)
{
    vnx_agent_unsubscribe(h->pair->a, h->fd);
    vnx_agent_clear_events(h->pair->a);
    vnx_dlist_abort(h->builder);
    CHECK(vnx_xfer_release(h->xfer, NULL) == VNX_OK);
    vnx_xfer_abandon(h->xfer);
    vnx_dlist_release(h->local);
    vnx_dlist_release(h->remote);
    vnx_agent_close(h->pair->a);
    vnx_agent_release(h->pair->a);
    vnx_agent_release(h->pair->b);
}

static void
test_core_fork_child_is_refused_and_parent_continues(void **state)
{
    static void (*const children[])(handles_t *) = {
        refuse_agent_calls, refuse_handle_calls, release_all};
    pair_t *p = *state;
    handles_t h = make_handles(p);

    assert_ok(vnx_agent_send_notif(p->a, "B", 1, "pending", 7, e));
    for (size_t i = 0; i < 3; i++) {
        run_forked(children[i], &h);
    }
    vnx_notif_t *notif = await_notif(p->b);
    assert_int_equal(notif->message_len, 7);
    vnx_notif_free(notif);
    use_and_release(&h);
}

/* The transfer may have ended before the fork. */
static void
ask_for_the_state(handles_t *h)
{
    vnx_status_t status = vnx_xfer_status(h->xfer, NULL);
    CHECK(status == VNX_OK || status == VNX_ERR_NOT_ALLOWED);
}

static void
test_core_fork_during_a_transfer(void **state)
{
    pair_t *p = *state;
    handles_t h = make_handles(p);

    for (int i = 0; i < 5; i++) {
        assert_int_equal(vnx_xfer_post(h.xfer, NULL, 0, NULL), VNX_IN_PROG);
        run_forked(ask_for_the_state, &h);
        run_forked(release_all, &h);
        assert_ok(vnx_agent_wait(p->a, &h.xfer, 1, 0, vnx_test_limit(30), e));
        assert_ok(vnx_xfer_status(h.xfer, e));
        vnx_notif_free(await_notif(p->b));
    }
    use_and_release(&h);
}

static void
take_notifs(handles_t *h)
{
    CHECK(vnx_agent_take_notifs(h->pair->b) == NULL);
}

static void
test_core_fork_child_leaves_the_parents_events(void **state)
{
    pair_t *p = *state;
    handles_t h = make_handles(p);
    struct pollfd polled = {.events = POLLIN};

    assert_ok(vnx_agent_fileno(p->b, &polled.fd, e));
    vnx_agent_clear_events(p->b);
    assert_ok(vnx_agent_send_notif(p->a, "B", 1, "x", 1, e));
    assert_int_equal(poll(&polled, 1, (int)(vnx_test_limit(30) / 1000000)), 1);
    run_forked(take_notifs, &h);
    assert_int_equal(poll(&polled, 1, 0), 1);
    vnx_notif_free(await_notif(p->b));
    assert_int_equal(poll(&polled, 1, 0), 0);
    use_and_release(&h);
}

static void
read_counters(handles_t *h)
{
    vnx_agent_stats_t stats;

    vnx_agent_stats(h->pair->a, &stats);
    CHECK(stats.xfers_posted == 2 && stats.reads_done == 2);
    CHECK(stats.bytes_read == 2 * h->pair->len);
    CHECK(stats.bytes_registered == h->pair->len);
    CHECK(stats.live_xfers == 1);
}

static void
test_core_fork_child_can_read_counters(void **state)
{
    pair_t *p = *state;
    handles_t h = make_handles(p);

    for (int i = 0; i < 2; i++) {
        run_xfer(p->a, h.xfer);
        vnx_notif_free(await_notif(p->b));
    }
    run_forked(read_counters, &h);
    use_and_release(&h);
}

static atomic_bool is_over;

static void *
load_and_remove(void *argument)
{
    pair_t *p = argument;

    while (!atomic_load(&is_over)) {
        assert_ok(vnx_agent_remove_peer(p->a, "B", 1, e));
        load_peer(p->a, p->b);
    }
    return NULL;
}

static void
read_some_counters(handles_t *h)
{
    vnx_agent_stats_t stats;

    vnx_agent_stats(h->pair->a, &stats);
    CHECK(stats.xfers_done <= 1);
    CHECK(stats.bytes_registered == h->pair->len);
}

/* The other thread may hold a lock for the counters: nobody waits for it. */
static void
test_core_fork_while_peers_come_and_go(void **state)
{
    pair_t *p = *state;
    handles_t h = {.pair = p};
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, 4, NULL);
    pthread_t thread;

    run_xfer(p->a, xfer);
    assert_ok(vnx_xfer_release(xfer, e));
    pthread_create(&thread, NULL, load_and_remove, p);
    for (int i = 0; i < 50; i++) {
        run_forked(read_some_counters, &h);
    }
    atomic_store(&is_over, true);
    pthread_join(thread, NULL);
    assert_int_equal(stats_of(p->a).xfers_done, 1);
}

static vnx_bytes_t blob_of_b;

/* An agent of the child reads what B of the parent has, and says so. */
static void
talk_to_parent(handles_t *h)
{
    pair_t *p = h->pair;
    vnx_agent_t *own = make_agent("child");
    unsigned char *mine = calloc(1, p->len);
    vnx_bytes_t name;

    register_at(own, mine, p->len);
    CHECK(vnx_agent_load_metadata(own, blob_of_b.data, blob_of_b.len, &name,
                                  NULL) == VNX_OK);
    vnx_dlist_t *local = prepare_rows(own, "", mine, ROW, ROWS);
    vnx_dlist_t *remote = prepare_rows(own, "B", p->at_b, ROW, ROWS);
    vnx_xfer_t *xfer =
        make_xfer(own, VNX_OP_READ, local, remote, ROWS, "from the child");
    CHECK(vnx_xfer_post(xfer, NULL, 0, NULL) >= 0);
    CHECK(vnx_agent_wait(own, &xfer, 1, 0, vnx_test_limit(30), NULL) ==
          VNX_OK);
    CHECK(vnx_xfer_status(xfer, NULL) == VNX_OK);
    CHECK(memcmp(mine, p->at_b, p->len) == 0);
    CHECK(vnx_xfer_release(xfer, NULL) == VNX_OK);
    vnx_dlist_release(local);
    vnx_dlist_release(remote);
    vnx_agent_release(own);
}

static void
test_core_fork_child_makes_agents_that_reach_the_parent(void **state)
{
    pair_t *p = *state;
    handles_t h = make_handles(p);
#ifdef __SANITIZE_THREAD__
    vnx_dlist_abort(h.builder);
    vnx_agent_unsubscribe(p->a, h.fd);
    vnx_xfer_abandon(h.xfer);
    vnx_dlist_release(h.local);
    vnx_dlist_release(h.remote);
    skip(); /* it allows no threads in a forked copy of a threaded process */
#endif
    run_xfer(p->a, h.xfer); /* the copy threads are there */
    vnx_notif_free(await_notif(p->b));
    assert_ok(vnx_agent_metadata(p->b, &blob_of_b, e));
    run_forked(talk_to_parent, &h);
    vnx_notif_t *notif = await_notif(p->b);
    assert_int_equal(notif->sender_len, 5);
    assert_memory_equal(notif->sender, "child", 5);
    assert_memory_equal(notif->message, "from the child", 14);
    vnx_notif_free(notif);
    free(blob_of_b.data);
    use_and_release(&h);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        with_pair(test_core_fork_child_is_refused_and_parent_continues),
        with_pair(test_core_fork_during_a_transfer),
        with_pair(test_core_fork_child_leaves_the_parents_events),
        with_pair(test_core_fork_child_can_read_counters),
        with_pair(test_core_fork_while_peers_come_and_go),
        with_pair(test_core_fork_child_makes_agents_that_reach_the_parent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
