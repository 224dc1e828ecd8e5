/*
 * Many threads make all calls concurrently on one agent.  Under
 * ThreadSanitizer this also shows that memory belongs to the caller again
 * right after a transfer on it was cancelled, released, or lost its region:
 * the test writes to it.
 */
#include "agent_fixture.h"

#include <pthread.h>
#include <stdatomic.h>

#define THREADS 8
#define PIECE 8192
#define PIECES 32
#define SLICE ((size_t)PIECE * PIECES)
#define REPEATS 400

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define ROUNDS 60
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
#define ROUNDS 60
#endif
#endif
#ifndef ROUNDS
#define ROUNDS 300
#endif

typedef struct crowd {
    vnx_agent_t *here, *there;
    unsigned char *source;          /* of `there`, read by all */
    unsigned char *copy;            /* what it holds */
    unsigned char *slices[THREADS]; /* of `here`, one a thread */
    unsigned char *sinks[THREADS];  /* of `there`, one a thread */
    vnx_dlist_t *remote;            /* the pieces of `source` */
    vnx_bytes_t blob;
    atomic_uint sent;
    atomic_bool closing;
    bool spoils; /* the test writes to the memory of `there` */
} crowd_t;

typedef struct member {
    crowd_t *crowd;
    unsigned number, dice;
    pthread_t thread;
} member_t;

static int
setup(void **state)
{
    crowd_t *crowd = calloc(1, sizeof *crowd);
    crowd->here = make_agent("here");
    crowd->there = make_agent("there");
    crowd->source = malloc(SLICE);
    fill(crowd->source, SLICE, 3);
    crowd->copy = malloc(SLICE);
    memcpy(crowd->copy, crowd->source, SLICE);
    register_at(crowd->there, crowd->source, SLICE);
    for (int i = 0; i < THREADS; i++) {
        crowd->slices[i] = calloc(1, SLICE);
        crowd->sinks[i] = calloc(1, SLICE);
        register_at(crowd->here, crowd->slices[i], SLICE);
        register_at(crowd->there, crowd->sinks[i], SLICE);
    }
    load_peer(crowd->here, crowd->there);
    assert_ok(vnx_agent_metadata(crowd->there, &crowd->blob, e));
    crowd->remote =
        prepare_rows(crowd->here, "there", crowd->source, PIECE, PIECES);
    *state = crowd;
    return 0;
}

static int
teardown(void **state)
{
    crowd_t *crowd = *state;
    vnx_dlist_release(crowd->remote);
    vnx_agent_release(crowd->here);
    vnx_agent_release(crowd->there);
    free(crowd->source);
    free(crowd->copy);
    for (int i = 0; i < THREADS; i++) {
        free(crowd->slices[i]);
        free(crowd->sinks[i]);
    }
    free(crowd->blob.data);
    free(crowd);
    return 0;
}

static unsigned
roll(member_t *member, unsigned sides)
{
    member->dice = member->dice * 1103515245u + 12345u;
    return (member->dice >> 16) % sides;
}

/* While the agent is being closed, every call may report that. */
static bool
is_fine(const member_t *member, vnx_status_t status)
{
    if (status >= 0) {
        return true;
    }
    if (!atomic_load(&member->crowd->closing)) {
        fail_msg("status %d", (int)status);
    }
    return false;
}

static vnx_dlist_t *
prepare_slice(member_t *member)
{
    crowd_t *crowd = member->crowd;
    vnx_dlist_t *dlist = NULL;
    vnx_strided_desc_t row = {
        (uint64_t)(uintptr_t)crowd->slices[member->number], PIECE, 0, PIECE,
        PIECES};
    return is_fine(member,
                   vnx_dlist_create_strided(crowd->here, "", 0, VNX_MEM_DRAM,
                                            &row, 1, NULL, &dlist, NULL))
               ? dlist
               : NULL;
}

/* -- Actions -------------------------------------------------------------- */

/* Random pieces of the source to distinct pieces of the own slice. */
static void
do_read(member_t *member)
{
    crowd_t *crowd = member->crowd;
    unsigned char *slice = crowd->slices[member->number];
    vnx_dlist_t *local = prepare_slice(member);
    uint16_t to[PIECES], from[PIECES];
    vnx_xfer_t *xfer = NULL;
    size_t count = 1 + roll(member, PIECES);

    for (size_t i = 0; i < count; i++) {
        to[i] = (uint16_t)((i * 5 + 3) % PIECES);
        from[i] = (uint16_t)roll(member, PIECES);
    }
    if (local != NULL &&
        is_fine(member,
                vnx_xfer_create_prepped(
                    crowd->here, VNX_OP_READ, local,
                    (vnx_indices_t){to, count, VNX_INDEX_U16}, crowd->remote,
                    (vnx_indices_t){from, count, VNX_INDEX_U16}, NULL, 0,
                    false, &xfer, NULL)) &&
        is_fine(member, vnx_xfer_post(xfer, NULL, 0, NULL)) &&
        is_fine(member, vnx_agent_wait(crowd->here, &xfer, 1, 0,
                                       vnx_test_limit(60), NULL)) &&
        is_fine(member, vnx_xfer_status(xfer, NULL))) {
        for (size_t i = 0; i < count; i++) {
            assert_memory_equal(slice + (size_t)to[i] * PIECE,
                                crowd->copy + (size_t)from[i] * PIECE, PIECE);
        }
    }
    vnx_dlist_release(local);
    vnx_xfer_abandon(xfer);
}

static void
do_write(member_t *member)
{
    crowd_t *crowd = member->crowd;
    vnx_desc_t from = {(uint64_t)(uintptr_t)crowd->slices[member->number],
                       1 + roll(member, SLICE), 0};
    vnx_desc_t to = {(uint64_t)(uintptr_t)crowd->sinks[member->number],
                     from.len, 0};
    vnx_xfer_t *xfer;

    if (!is_fine(member,
                 vnx_xfer_create(crowd->here, VNX_OP_WRITE, VNX_MEM_DRAM,
                                 &from, 1, VNX_MEM_DRAM, &to, 1, "there", 5,
                                 "w", 1, NULL, &xfer, NULL))) {
        return;
    }
    if (is_fine(member, vnx_xfer_post(xfer, NULL, 0, NULL)) &&
        is_fine(member, vnx_agent_wait(crowd->here, &xfer, 1, VNX_WAIT_ANY,
                                       vnx_test_limit(60), NULL)) &&
        is_fine(member, vnx_xfer_status(xfer, NULL))) {
        atomic_fetch_add(&crowd->sent, 1);
        if (!crowd->spoils) {
            assert_memory_equal(crowd->slices[member->number],
                                crowd->sinks[member->number], from.len);
        }
    }
    vnx_xfer_abandon(xfer);
}

/* A long transfer to the thread's own slice; NULL when closing. */
static vnx_xfer_t *
post_long(member_t *member, vnx_dlist_t *local)
{
    static const uint8_t zeros[REPEATS];
    crowd_t *crowd = member->crowd;
    vnx_indices_t rows = {zeros, REPEATS, VNX_INDEX_U8};
    vnx_xfer_t *xfer = NULL;

    if (local == NULL || !is_fine(member, vnx_xfer_create_prepped(
                                              crowd->here, VNX_OP_READ, local,
                                              rows, crowd->remote, rows, NULL,
                                              0, false, &xfer, NULL))) {
        return NULL;
    }
    if (!is_fine(member, vnx_xfer_post(xfer, NULL, 0, NULL))) {
        vnx_xfer_abandon(xfer);
        return NULL;
    }
    return xfer;
}

static void
check_poison(const unsigned char *at, unsigned char byte)
{
    for (size_t i = 0; i < PIECE; i++) {
        assert_int_equal(at[i], byte);
    }
}

static void
do_cancel(member_t *member)
{
    unsigned char *slice = member->crowd->slices[member->number];
    vnx_dlist_t *local = prepare_slice(member);
    vnx_xfer_t *xfer = post_long(member, local);
    bool stopped;

    if (xfer != NULL) {
        assert_ok(vnx_xfer_cancel(xfer, &stopped, e));
        memset(slice, 0x11, PIECE);
        assert_ok(vnx_xfer_release(xfer, e));
        check_poison(slice, 0x11);
    }
    vnx_dlist_release(local);
}

static void
do_release_in_flight(member_t *member)
{
    unsigned char *slice = member->crowd->slices[member->number];
    vnx_dlist_t *local = prepare_slice(member);
    vnx_xfer_t *xfer = post_long(member, local);

    vnx_dlist_release(local);
    if (xfer != NULL) {
        assert_ok(vnx_xfer_release(xfer, e));
        memset(slice, 0x22, PIECE);
        check_poison(slice, 0x22);
    }
}

/* A thread's own region is deregistered during a transfer and freed at once.
 */
static void
do_withdraw(member_t *member)
{
    crowd_t *crowd = member->crowd;
    unsigned char *own = calloc(1, PIECE);
    vnx_reg_desc_t desc = region_of(own, PIECE);
    vnx_desc_t row = desc.desc;
    vnx_dlist_t *local = NULL;

    if (is_fine(member, vnx_agent_register(crowd->here, VNX_MEM_DRAM, &desc, 1,
                                           NULL, NULL))) {
        if (is_fine(member, vnx_dlist_create(crowd->here, "", 0, VNX_MEM_DRAM,
                                             &row, 1, NULL, &local, NULL))) {
            vnx_xfer_t *xfer = post_long(member, local);
            if (is_fine(member, vnx_agent_deregister(crowd->here, VNX_MEM_DRAM,
                                                     &desc, 1, NULL, NULL))) {
                memset(own, 0x33, PIECE);
                check_poison(own, 0x33);
            } else if (xfer != NULL) {
                vnx_xfer_release(xfer, NULL);
                xfer = NULL;
            }
            vnx_xfer_abandon(xfer);
        }
        vnx_dlist_release(local);
    }
    free(own);
}

static void
do_load(member_t *member)
{
    crowd_t *crowd = member->crowd;
    vnx_bytes_t name;
    if (is_fine(member,
                vnx_agent_load_metadata(crowd->here, crowd->blob.data,
                                        crowd->blob.len, &name, NULL))) {
        assert_int_equal(name.len, 5);
        assert_memory_equal(name.data, "there", 5);
        free(name.data);
    }
}

static void
do_look(member_t *member)
{
    crowd_t *crowd = member->crowd;
    vnx_agent_stats_t stats;
    vnx_bytes_t json;
    vnx_agent_stats(crowd->here, &stats);
    assert_true(atomic_load(&crowd->closing) || stats.peers == 1);
    if (is_fine(member,
                vnx_agent_describe(crowd->here, "there", 5, &json, NULL))) {
        free(json.data);
    }
    vnx_agent_check_peer(crowd->here, "there", 5, VNX_MEM_DRAM, NULL, 0);
    if (is_fine(member, vnx_agent_metadata(crowd->here, &json, NULL))) {
        free(json.data);
    }
}

static void
do_notify(member_t *member)
{
    static const char message[5000];
    crowd_t *crowd = member->crowd;
    if (is_fine(member,
                vnx_agent_send_notif(crowd->here, "there", 5, message,
                                     roll(member, sizeof message), NULL))) {
        atomic_fetch_add(&crowd->sent, 1);
    }
}

static void
do_fail(member_t *member)
{
    vnx_desc_t row = {1, 1, 0};
    vnx_dlist_t *dlist;
    vnx_error_t error;
    assert_true(vnx_dlist_create(member->crowd->here, "", 0, VNX_MEM_DRAM,
                                 &row, 1, NULL, &dlist, &error) < 0);
    assert_true(error.row == 0 || error.status == VNX_ERR_CLOSED);
}

static void (*const deeds[])(member_t *) = {
    do_read,     do_read, do_write, do_cancel, do_release_in_flight,
    do_withdraw, do_load, do_look,  do_notify, do_fail,
};

static void *
run_member(void *argument)
{
    member_t *member = argument;
    for (int i = 0; i < ROUNDS && !atomic_load(&member->crowd->closing); i++) {
        deeds[roll(member, sizeof deeds / sizeof deeds[0])](member);
    }
    return NULL;
}

static void
start(crowd_t *crowd, member_t *members)
{
    for (unsigned i = 0; i < THREADS; i++) {
        members[i] =
            (member_t){.crowd = crowd, .number = i, .dice = i * 977 + 5};
        assert_int_equal(
            pthread_create(&members[i].thread, NULL, run_member, &members[i]),
            0);
    }
}

static void
finish(member_t *members)
{
    for (unsigned i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(members[i].thread, NULL), 0);
    }
}

static size_t
take_all(vnx_agent_t *agent)
{
    size_t count = 0;
    vnx_notif_t *chain = vnx_agent_take_notifs(agent);
    for (vnx_notif_t *one = chain; one != NULL; one = one->next) {
        count++;
    }
    vnx_notif_free(chain);
    return count;
}

static void
test_crowd_runs_all_calls_concurrently(void **state)
{
    crowd_t *crowd = *state;
    member_t members[THREADS];
    vnx_agent_stats_t stats;

    start(crowd, members);
    finish(members);
    assert_int_equal(take_all(crowd->there), atomic_load(&crowd->sent));
    vnx_agent_stats(crowd->here, &stats);
    assert_int_equal(stats.xfers_posted, stats.xfers_done +
                                             stats.xfers_failed +
                                             stats.xfers_cancelled);
    assert_int_equal(stats.live_xfers, 0);
    assert_int_equal(stats.live_dlists, 1);
    assert_int_equal(stats.regions, THREADS);
    assert_int_equal(stats.peers, 1);
}

static void
test_crowd_survives_close(void **state)
{
    crowd_t *crowd = *state;
    member_t members[THREADS];
    vnx_agent_stats_t stats;

    start(crowd, members);
    do {
        vnx_agent_stats(crowd->here, &stats);
    } while (stats.xfers_done < THREADS);
    atomic_store(&crowd->closing, true);
    vnx_agent_close(crowd->here);
    finish(members);
    for (int i = 0; i < THREADS; i++) {
        memset(crowd->slices[i], 0x44, SLICE);
    }
    assert_int_equal(
        vnx_agent_send_notif(crowd->here, "there", 5, "", 0, NULL),
        VNX_ERR_CLOSED);
}

static void
test_crowd_survives_loss_of_the_peer(void **state)
{
    crowd_t *crowd = *state;
    member_t members[THREADS];
    vnx_agent_stats_t stats;

    crowd->spoils = true;
    start(crowd, members);
    do {
        vnx_agent_stats(crowd->here, &stats);
    } while (stats.xfers_done < THREADS);
    atomic_store(&crowd->closing, true); /* errors are fine from now on */
    vnx_agent_close(crowd->there);
    memset(crowd->source, 0x55, SLICE);
    for (int i = 0; i < THREADS; i++) {
        memset(crowd->sinks[i], 0x66, SLICE);
    }
    finish(members);
    for (int i = 0; i < THREADS; i++) {
        for (size_t j = 0; j < SLICE; j++) {
            assert_int_equal(crowd->sinks[i][j], 0x66);
        }
    }
}

#define with_crowd(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        with_crowd(test_crowd_runs_all_calls_concurrently),
        with_crowd(test_crowd_survives_close),
        with_crowd(test_crowd_survives_loss_of_the_peer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
