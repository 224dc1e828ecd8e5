/* Other calls while a load of the peer "B" waits. */
#include "agent_pair.h"

#include <pthread.h>

#include "slow_load.h"

typedef struct load {
    vnx_agent_t *agent;
    vnx_bytes_t blob;
    const atomic_bool *stop;
    pthread_t thread;
    vnx_status_t status;
} load_t;

static void *
load_main(void *arg)
{
    load_t *load = arg;
    vnxi_peer_t *peer = NULL;
    vnxi_peer_md_t md;

    load->status = vnxi_peer_md_parse(load->agent, load->blob.data,
                                      load->blob.len, &md, NULL);
    if (load->status == VNX_OK) {
        load->status =
            vnxi_peer_md_load(load->agent, &md, load->stop, &peer, NULL);
        vnxi_peer_md_free(load->agent, &md);
    }
    vnxi_peer_release(peer);
    return NULL;
}

static void
load_begin(load_t *load, vnx_agent_t *agent, vnx_agent_t *other)
{
    load->agent = agent;
    assert_ok(vnx_agent_metadata(other, &load->blob, e));
    assert_int_equal(pthread_create(&load->thread, NULL, load_main, load), 0);
}

static vnx_status_t
load_end(load_t *load)
{
    assert_int_equal(pthread_join(load->thread, NULL), 0);
    free(load->blob.data);
    return load->status;
}

static bool
knows(vnx_agent_t *agent, const char *peer)
{
    return vnx_agent_check_peer(agent, peer, strlen(peer), VNX_MEM_DRAM, NULL,
                                0);
}

static void
test_load_race_other_peers_are_loaded_and_removed(void **state)
{
    pair_t *p = *state;
    vnx_agent_t *c = make_agent("C");
    load_t load = {.stop = NULL};

    slow_load_begin(p->a, "B");
    load_begin(&load, p->a, p->b);
    slow_load_await(&slow_has_begun);
    load_peer(p->a, c);
    assert_true(knows(p->a, "C"));
    assert_ok(vnx_agent_remove_peer(p->a, "C", 1, e));
    assert_false(knows(p->a, "C"));
    atomic_store(&slow_goes_on, true);
    assert_int_equal(load_end(&load), VNX_OK);
    assert_true(knows(p->a, "B"));
    vnx_agent_release(c);
}

/* -- Turns -----------------------------------------------------------------
 */

static vnxi_cond_t *turn_ends;
static sem_t turn_is_awaited; /* posted by each wait for it */

int __real_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex,
                                  const struct timespec *until);
int __wrap_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex,
                                  const struct timespec *until);

int
__wrap_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex,
                              const struct timespec *until)
{
    if (cond == turn_ends) {
        sem_post(&turn_is_awaited);
    }
    return __real_pthread_cond_timedwait(cond, mutex, until);
}

/* Two loads of B, the second of which waits for its turn. */
static void
begin_both(const pair_t *p, load_t *first, load_t *second)
{
    turn_ends = &p->a->turn_ends;
    assert_int_equal(sem_init(&turn_is_awaited, 0, 0), 0);
    slow_load_begin(p->a, "B");
    load_begin(first, p->a, p->b);
    slow_load_await(&slow_has_begun);
    load_begin(second, p->a, p->b);
    slow_load_await(&turn_is_awaited);
    assert_int_equal(sem_trywait(&slow_has_begun), -1);
}

static void
test_load_race_loads_of_one_peer_take_turns(void **state)
{
    load_t first = {.stop = NULL}, second = {.stop = NULL};

    begin_both(*state, &first, &second);
    atomic_store(&slow_goes_on, true);
    assert_int_equal(load_end(&first), VNX_OK);
    assert_int_equal(load_end(&second), VNX_OK);
}

static void
test_load_race_a_stopped_call_waits_for_nothing(void **state)
{
    pair_t *p = *state;
    atomic_bool stop = false;
    load_t first = {.stop = NULL}, second = {.stop = &stop};

    begin_both(p, &first, &second);
    atomic_store(&stop, true);
    assert_int_equal(load_end(&second), VNX_ERR_CANCELED);
    assert_int_equal(vnxi_peers_remove(p->a, "B", 1, &stop, NULL),
                     VNX_ERR_CANCELED);
    assert_true(knows(p->a, "B"));
    atomic_store(&slow_goes_on, true);
    assert_int_equal(load_end(&first), VNX_OK);
}

static void
test_load_race_close_stops_loads(void **state)
{
    pair_t *p = *state;
    load_t first = {.stop = NULL}, second = {.stop = NULL};

    begin_both(p, &first, &second);
    vnx_agent_close(p->a);
    assert_int_equal(load_end(&first), VNX_ERR_CANCELED);
    assert_int_equal(load_end(&second), VNX_ERR_CLOSED);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        with_pair(test_load_race_other_peers_are_loaded_and_removed),
        with_pair(test_load_race_loads_of_one_peer_take_turns),
        with_pair(test_load_race_a_stopped_call_waits_for_nothing),
        with_pair(test_load_race_close_stops_loads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
