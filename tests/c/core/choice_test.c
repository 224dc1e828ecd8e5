/* Choice of the engine among candidates with different backends. */
#include "vnx_test.h"

#include <string.h>

#include "base/error.h"
#include "core/choice.h"

/* An engine that has up to three backends and may not work here. */
struct vnxi_engine {
    const char *backends[4];
    const char *broken; /* why it does not work; NULL: it does */
    int stopped, destroyed;
};

static const char *
has_plugin(vnxi_engine_t *engine, size_t i)
{
    return engine->broken == NULL && i < 3 ? engine->backends[i] : NULL;
}

static vnx_status_t
probe(vnxi_engine_t *engine, vnx_error_t *error)
{
    return engine->broken == NULL ? VNX_OK
                                  : vnxi_error_set(error, VNX_ERR_BACKEND,
                                                   "vnx_agent_create_backend",
                                                   "%s", engine->broken);
}

static void
stop(vnxi_engine_t *engine)
{
    engine->stopped++;
}

static void
destroy(vnxi_engine_t *engine)
{
    engine->destroyed++;
}

static const vnxi_engine_ops_t first_ops = {
    .name = "first",
    .probe = probe,
    .plugin = has_plugin,
    .stop = stop,
    .destroy = destroy,
};
static const vnxi_engine_ops_t second_ops = {
    .name = "second",
    .probe = probe,
    .plugin = has_plugin,
    .stop = stop,
    .destroy = destroy,
};

static vnxi_engine_t first, second;
static char *wanted[3];

static vnxi_choice_t
choice_of_two(void)
{
    first = (vnxi_engine_t){.backends = {"UCX", "SHM"}};
    second = (vnxi_engine_t){.backends = {"POSIX", "UCX"}};
    memset(wanted, 0, sizeof wanted);
    return (vnxi_choice_t){
        .lock = VNXI_MUTEX_INIT(VNXI_RANK_CHOICE),
        .candidates = {{&first_ops, &first}, {&second_ops, &second}},
        .count = 2,
        .wanted = wanted,
    };
}

static const char *
chosen(vnxi_choice_t *choice, const char *backend)
{
    const vnxi_candidate_t *candidate = NULL;
    vnx_error_t error;
    return vnxi_choice_make_lock_held(choice, backend, &candidate, &error) ==
                   VNX_OK
               ? candidate->ops->name
               : NULL;
}

static void
test_choice_takes_the_first_candidate_with_the_backend(void **state)
{
    vnxi_choice_t choice = choice_of_two();
    (void)state;

    assert_string_equal(chosen(&choice, "UCX"), "first");
    assert_non_null(strstr(choice.why, "every requested backend (UCX)"));
    assert_string_equal(chosen(&choice, "POSIX"), "second");
    assert_non_null(strstr(choice.why, "first does not have"));
}

static void
test_choice_considers_all_announced_backends(void **state)
{
    vnxi_choice_t choice = choice_of_two();
    (void)state;

    wanted[0] = (char *)"POSIX";
    wanted[1] = (char *)"UCX";
    assert_string_equal(chosen(&choice, "UCX"), "second");
    wanted[1] = (char *)"SHM";
    assert_null(chosen(&choice, "SHM")); /* none has both */
}

static void
test_choice_skips_an_engine_that_does_not_work(void **state)
{
    vnxi_choice_t choice = choice_of_two();
    const vnxi_candidate_t *candidate = NULL;
    vnx_error_t error;
    (void)state;

    second.broken = "libsecond.so was not found";
    assert_int_equal(
        vnxi_choice_make_lock_held(&choice, "POSIX", &candidate, &error),
        VNX_ERR_NOT_FOUND);
    assert_null(candidate);
    assert_non_null(strstr(error.cause, "POSIX"));
    assert_non_null(strstr(error.cause, "first has UCX, SHM"));
    assert_non_null(strstr(error.cause, "libsecond.so was not found"));
}

static void
test_choice_of_one_reports_the_missing_backend(void **state)
{
    vnxi_choice_t choice = choice_of_two();
    const vnxi_candidate_t *candidate = NULL;
    vnx_error_t error;
    (void)state;

    choice.count = 1;
    assert_string_equal(chosen(&choice, "anything"), "first");
    assert_string_equal(choice.why, "it was requested");
    first.broken = "no such luck";
    assert_int_equal(
        vnxi_choice_make_lock_held(&choice, "UCX", &candidate, &error),
        VNX_ERR_BACKEND);
    assert_string_equal(error.cause, "no such luck");
}

static void
test_choice_lists_each_backend_once(void **state)
{
    vnxi_choice_t choice = choice_of_two();
    (void)state;

    assert_string_equal(vnxi_choice_plugin(&choice, 0), "UCX");
    assert_string_equal(vnxi_choice_plugin(&choice, 1), "SHM");
    assert_string_equal(vnxi_choice_plugin(&choice, 2), "POSIX");
    assert_null(vnxi_choice_plugin(&choice, 3));
    assert_null(vnxi_choice_plugin(&choice, SIZE_MAX));
}

static void
test_choice_finds_the_candidate_with_a_backend(void **state)
{
    vnxi_choice_t choice = choice_of_two();
    const vnxi_candidate_t *candidate = NULL;
    vnx_error_t error;
    (void)state;

    assert_int_equal(
        vnxi_choice_find(&choice, "POSIX", "get", &candidate, &error), VNX_OK);
    assert_ptr_equal(candidate->engine, &second);
    assert_int_equal(
        vnxi_choice_find(&choice, "GDS", "get", &candidate, &error),
        VNX_ERR_NOT_FOUND);
    assert_string_equal(error.operation, "get");
}

static void
test_choice_stops_and_frees_all(void **state)
{
    vnxi_choice_t choice = choice_of_two();
    (void)state;

    choice.wanted = NULL; /* it is ours */
    vnxi_choice_stop(&choice);
    assert_int_equal(first.stopped + second.stopped, 2);
    assert_int_equal(first.destroyed + second.destroyed, 0);
    vnxi_choice_fini(&choice);
    assert_int_equal(first.destroyed + second.destroyed, 2);
}

static void
test_choice_refuses_an_unknown_engine(void **state)
{
    vnxi_choice_t choice;
    vnx_error_t error;
    (void)state;

    assert_int_equal(vnxi_choice_init(&choice, "warp", NULL, NULL, &error),
                     VNX_ERR_NOT_SUPPORTED);
    assert_non_null(strstr(error.cause, "warp"));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(
            test_choice_takes_the_first_candidate_with_the_backend),
        cmocka_unit_test(test_choice_considers_all_announced_backends),
        cmocka_unit_test(test_choice_skips_an_engine_that_does_not_work),
        cmocka_unit_test(test_choice_of_one_reports_the_missing_backend),
        cmocka_unit_test(test_choice_lists_each_backend_once),
        cmocka_unit_test(test_choice_finds_the_candidate_with_a_backend),
        cmocka_unit_test(test_choice_stops_and_frees_all),
        cmocka_unit_test(test_choice_refuses_an_unknown_engine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
