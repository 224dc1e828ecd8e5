/* The common part of the peer objects of all engines. */
#include "vnx_test.h"

#include <pthread.h>
#include <string.h>

#include "engine/parts/peer.h"

static void
destroy(vnxi_peer_t *peer)
{
    vnxi_peer_fini(peer);
}

static void
test_peer_init_copies_any_name(void **state)
{
    (void)state;
    char name[] = {'a', '\0', '\xff'};
    vnxi_peer_t peer = {0};

    assert_true(vnxi_peer_init(&peer, destroy, name, sizeof name));
    name[0] = 'b';
    assert_int_equal(peer.name_len, 3);
    assert_memory_equal(peer.name, "a\0\xff", 4); /* and a NUL behind it */
    assert_true(peer.destroy == destroy);
    assert_int_equal(atomic_load(&peer.refs), 1);
    vnxi_peer_release(&peer);
}

static void
test_peer_end_keeps_the_first_cause(void **state)
{
    (void)state;
    vnxi_peer_end_t end;
    char cause[VNX_ERROR_CAUSE_MAX] = "something";

    vnxi_peer_end_init(&end);
    assert_false(vnxi_peer_end_has_come(&end));
    vnxi_peer_end_cause(&end, cause);
    assert_string_equal(cause, "");

    assert_true(vnxi_peer_end_mark(&end, "it was killed"));
    assert_false(vnxi_peer_end_mark(&end, "it was closed"));
    assert_true(vnxi_peer_end_has_come(&end));
    vnxi_peer_end_cause(&end, cause);
    assert_string_equal(cause, "it was killed");
    vnxi_peer_end_fini(&end);
}

static void
test_peer_end_cuts_a_long_cause(void **state)
{
    (void)state;
    vnxi_peer_end_t end;
    char longer[2 * VNX_ERROR_CAUSE_MAX], cause[VNX_ERROR_CAUSE_MAX];

    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    vnxi_peer_end_init(&end);
    assert_true(vnxi_peer_end_mark(&end, longer));
    vnxi_peer_end_cause(&end, cause);
    assert_int_equal(strlen(cause), sizeof cause - 1);
    vnxi_peer_end_fini(&end);
}

typedef struct racer {
    vnxi_peer_end_t *end;
    bool was_first;
} racer_t;

static void *
race(void *context)
{
    racer_t *racer = context;
    racer->was_first = vnxi_peer_end_mark(racer->end, "a racer was here");
    return NULL;
}

static void
test_peer_end_has_one_first_caller(void **state)
{
    (void)state;
    vnxi_peer_end_t end;
    racer_t racers[4];
    pthread_t threads[4];
    int firsts = 0;

    vnxi_peer_end_init(&end);
    for (int i = 0; i < 4; i++) {
        racers[i] = (racer_t){&end, false};
        assert_int_equal(pthread_create(&threads[i], NULL, race, &racers[i]),
                         0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(threads[i], NULL);
        firsts += racers[i].was_first;
    }
    assert_int_equal(firsts, 1);
    vnxi_peer_end_fini(&end);
}

static void
test_peer_ended_names_peer_operation_and_cause(void **state)
{
    (void)state;
    vnxi_peer_t peer = {0};
    vnx_error_t error;

    assert_true(vnxi_peer_init(&peer, NULL, "decode-7", 8));
    assert_int_equal(
        vnxi_peer_ended(&peer, "it was killed", "vnx_xfer_post", &error),
        VNX_ERR_REMOTE_DISCONNECT);
    assert_string_equal(error.peer, "decode-7");
    assert_string_equal(error.operation, "vnx_xfer_post");
    assert_string_equal(error.cause, "it was killed");
    vnxi_peer_fini(&peer);
}

/* Of the agent "prefill", with connections by these backends. */
static vnxi_metadata_t
blob_of(vnxi_md_conn_t *conns, const char *const *backends, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        conns[i].backend = (vnxi_md_bytes_t){backends[i], strlen(backends[i])};
    }
    return (vnxi_metadata_t){
        .agent = {"prefill", 7}, .conns = conns, .conn_count = count};
}

static void
expect_no_way(const char *const *backends, size_t count, const char *cause)
{
    vnxi_md_conn_t conns[64];
    vnxi_metadata_t blob = blob_of(conns, backends, count);
    vnx_error_t error;

    assert_int_equal(vnxi_load_refuse_no_way(&blob, "has SHM", &error),
                     VNX_ERR_BACKEND);
    assert_int_equal(error.status, VNX_ERR_BACKEND);
    assert_string_equal(error.operation, "vnx_agent_load_metadata");
    assert_string_equal(error.peer, "prefill");
    assert_string_equal(error.cause, cause);
}

static void
test_load_names_what_the_peer_offers(void **state)
{
    (void)state;
    static const char *const two[] = {"UCX", "GDS"};
    static const char *const odd[] = {"U\nX\xff"};

    expect_no_way(two, 1,
                  "no way to reach it: it offers UCX, this agent has SHM");
    expect_no_way(
        two, 2, "no way to reach it: it offers UCX, GDS, this agent has SHM");
    expect_no_way(odd, 1,
                  "no way to reach it: it offers U?X?, this agent has SHM");
}

/* Names come from the network: neither one of them nor all together take more
 * room than there is. */
static void
test_load_truncates_long_names(void **state)
{
    (void)state;
    const char *names[64];
    vnxi_md_conn_t conns[64];
    vnx_error_t error;

    for (size_t i = 0; i < 64; i++) {
        names[i] = "0123456789012345678901234567890123456789";
    }
    expect_no_way(names, 1,
                  "no way to reach it: it offers "
                  "01234567890123456789012345678901, this agent has SHM");
    vnxi_metadata_t blob = blob_of(conns, names, 64);
    vnxi_load_refuse_no_way(&blob, "has SHM", &error);
    assert_non_null(strstr(error.cause, ", this agent has SHM"));
    assert_in_range(strlen(error.cause), 100, 200);
}

static void
test_load_refuses_with_the_agents_name(void **state)
{
    (void)state;
    vnxi_metadata_t blob = blob_of(NULL, NULL, 0);
    vnx_error_t error;

    assert_int_equal(
        vnxi_load_refuse(&blob, VNX_ERR_NOT_SUPPORTED, "100 %s", &error),
        VNX_ERR_NOT_SUPPORTED);
    assert_string_equal(error.cause, "100 %s"); /* no format */
    assert_string_equal(error.peer, "prefill");
    assert_int_equal(vnxi_load_refuse_unknown(&blob, &error),
                     VNX_ERR_NOT_FOUND);
    assert_non_null(strstr(error.cause, "load its full metadata first"));
    assert_int_equal(vnxi_load_refuse_unknown(&blob, NULL), VNX_ERR_NOT_FOUND);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_peer_init_copies_any_name),
        cmocka_unit_test(test_peer_end_keeps_the_first_cause),
        cmocka_unit_test(test_peer_end_cuts_a_long_cause),
        cmocka_unit_test(test_peer_end_has_one_first_caller),
        cmocka_unit_test(test_peer_ended_names_peer_operation_and_cause),
        cmocka_unit_test(test_load_names_what_the_peer_offers),
        cmocka_unit_test(test_load_truncates_long_names),
        cmocka_unit_test(test_load_refuses_with_the_agents_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
