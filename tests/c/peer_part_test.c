/* The common part of the peer objects of all engines. */
#include "vnx_test.h"

#include <pthread.h>
#include <string.h>

#include "engine/parts/peer.h"

static void
test_peer_init_copies_any_name(void **state)
{
    (void)state;
    static const vnxi_engine_ops_t ops = {.name = "of a test"};
    char name[] = {'a', '\0', '\xff'};
    vnxi_peer_t peer = {0};

    assert_true(vnxi_peer_init(&peer, &ops, name, sizeof name));
    name[0] = 'b';
    assert_int_equal(peer.name_len, 3);
    assert_memory_equal(peer.name, "a\0\xff", 4); /* and a NUL behind it */
    assert_ptr_equal(peer.ops, &ops);
    assert_int_equal(atomic_load(&peer.refs), 1);
    vnxi_peer_fini(&peer);
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
        vnxi_peer_ended(&peer, "it was killed", "transfer", &error),
        VNX_ERR_REMOTE_DISCONNECT);
    assert_string_equal(error.peer, "decode-7");
    assert_string_equal(error.operation, "transfer");
    assert_string_equal(error.cause, "it was killed");
    vnxi_peer_fini(&peer);
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
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
