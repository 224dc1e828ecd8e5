/* Choice of the engine among candidates with different backends. */
#include "vnx_test.h"

#include <string.h>

#include "base/error.h"
#include "core/choice.h"

/* An engine that has up to three backends and may not work here. */
struct vnxi_engine {
    const char *backends[4];
    const char *broken;  /* why it does not work; NULL: it does */
    const char *refuses; /* this backend cannot be created */
    const char *created[4];
    size_t created_count, params_given;
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

/* A backend that was created has one parameter. */
static vnx_status_t
get_param(vnxi_engine_t *engine, const char *backend, bool created, size_t i,
          vnx_param_t *param_p, vnx_error_t *error)
{
    for (size_t k = 0; created && k < engine->created_count; k++) {
        if (strcmp(engine->created[k], backend) == 0) {
            *param_p = i == 0 ? (vnx_param_t){"key", "value"}
                              : (vnx_param_t){NULL, NULL};
            return VNX_OK;
        }
    }
    return vnxi_error_set(error, VNX_ERR_NOT_FOUND, "param", "not created");
}

static vnx_status_t
create(vnxi_engine_t *engine, const char *backend, const vnx_param_t *params,
       size_t count, vnx_error_t *error)
{
    if (engine->refuses != NULL && strcmp(engine->refuses, backend) == 0) {
        return vnxi_error_set(error, VNX_ERR_BACKEND,
                              "vnx_agent_create_backend", "refused");
    }
    if (count > 0) {
        assert_string_equal(params[0].key, "key");
    }
    engine->created[engine->created_count++] = backend;
    engine->params_given += count;
    return VNX_OK;
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
    .param = get_param,
    .backend_create = create,
    .stop = stop,
    .destroy = destroy,
};
static const vnxi_engine_ops_t second_ops = {
    .name = "second",
    .probe = probe,
    .plugin = has_plugin,
    .param = get_param,
    .backend_create = create,
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
        .candidates = {{.ops = &first_ops, .engine = &first},
                       {.ops = &second_ops, .engine = &second}},
        .count = 2,
        .wanted = wanted,
    };
}

static const char *
chosen(vnxi_choice_t *choice, const char *backend)
{
    vnxi_candidate_t *candidate = NULL;
    vnx_error_t error;
    if (vnxi_choice_make_lock_held(choice, NULL, backend, &candidate,
                                   &error) != VNX_OK) {
        return NULL;
    }
    vnxi_choice_explain_lock_held(choice, candidate, backend);
    return candidate->ops->name;
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
    wanted[0] = (char *)"NOPE";          /* its own creation will fail */
    assert_string_equal(chosen(&choice, "SHM"), "first");
}

static void
test_choice_skips_an_engine_that_does_not_work(void **state)
{
    vnxi_choice_t choice = choice_of_two();
    vnxi_candidate_t *candidate = NULL;
    vnx_error_t error;
    (void)state;

    second.broken = "libsecond.so was not found";
    assert_int_equal(
        vnxi_choice_make_lock_held(&choice, NULL, "POSIX", &candidate, &error),
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
    vnxi_candidate_t *candidate = NULL;
    vnx_error_t error;
    (void)state;

    choice.count = 1;
    assert_string_equal(chosen(&choice, "anything"), "first");
    assert_string_equal(choice.why, "it was requested");
    first.broken = "no such luck";
    assert_int_equal(
        vnxi_choice_make_lock_held(&choice, NULL, "UCX", &candidate, &error),
        VNX_ERR_BACKEND);
    assert_string_equal(error.cause, "no such luck");
}

static void
test_choice_lists_each_backend_once(void **state)
{
    vnxi_choice_t choice = choice_of_two();
    (void)state;

    assert_string_equal(vnxi_choice_plugin(&choice, NULL, 0), "UCX");
    assert_string_equal(vnxi_choice_plugin(&choice, NULL, 1), "SHM");
    assert_string_equal(vnxi_choice_plugin(&choice, NULL, 2), "POSIX");
    assert_null(vnxi_choice_plugin(&choice, NULL, 3));
    assert_null(vnxi_choice_plugin(&choice, NULL, SIZE_MAX));
}

static void
test_choice_finds_the_candidate_with_a_backend(void **state)
{
    vnxi_choice_t choice = choice_of_two();
    vnxi_candidate_t *candidate = NULL;
    vnx_error_t error;
    (void)state;

    assert_int_equal(
        vnxi_choice_find(&choice, NULL, "POSIX", "get", &candidate, &error),
        VNX_OK);
    assert_ptr_equal(candidate->engine, &second);
    assert_int_equal(
        vnxi_choice_find(&choice, NULL, "GDS", "get", &candidate, &error),
        VNX_ERR_NOT_FOUND);
    assert_string_equal(error.operation, "get");
}

/* -- Changing the choice ----------------------------------------------------
 */

static vnxi_candidate_t *
change(vnxi_choice_t *choice, const char *backend, vnx_status_t expected,
       vnx_error_t *error)
{
    vnxi_candidate_t *from = &choice->candidates[0], *to = NULL;
    assert_int_equal(
        vnxi_choice_make_lock_held(choice, from, backend, &to, error),
        expected);
    return to;
}

static void
test_choice_changes_to_an_engine_with_all_backends(void **state)
{
    vnxi_choice_t choice = choice_of_two();
    vnx_error_t error;
    (void)state;

    first.created[first.created_count++] = "UCX";
    vnxi_candidate_t *to = change(&choice, "POSIX", VNX_OK, &error);
    assert_ptr_equal(to, &choice.candidates[1]);
    assert_int_equal(
        vnxi_choice_copy_lock_held(&choice.candidates[0], to, &error), VNX_OK);
    assert_string_equal(second.created[0], "UCX");
    assert_int_equal(second.created_count, 1);
    assert_int_equal(second.params_given, 1);

    /* A second attempt does not create it again. */
    assert_int_equal(
        vnxi_choice_copy_lock_held(&choice.candidates[0], to, &error), VNX_OK);
    assert_int_equal(second.created_count, 1);
}

static void
test_choice_keeps_an_engine_that_has_the_backend(void **state)
{
    vnxi_choice_t choice = choice_of_two();
    vnx_error_t error;
    (void)state;

    second.created[second.created_count++] = "UCX";
    vnxi_candidate_t *to = NULL;
    assert_int_equal(vnxi_choice_make_lock_held(&choice, &choice.candidates[1],
                                                "UCX", &to, &error),
                     VNX_OK);
    assert_ptr_equal(to, &choice.candidates[1]);
}

static void
test_choice_does_not_change_to_an_engine_that_lacks_a_backend(void **state)
{
    vnxi_choice_t choice = choice_of_two();
    vnx_error_t error;
    (void)state;

    first.created[first.created_count++] = "SHM";
    change(&choice, "POSIX", VNX_ERR_NOT_FOUND, &error);
    assert_non_null(strstr(error.cause, "'POSIX' and all others"));
    change(&choice, "NOPE", VNX_ERR_NOT_FOUND, &error);
    assert_null(strstr(error.cause, "and all others"));
    assert_string_equal(vnxi_choice_plugin(&choice, &choice.candidates[0], 1),
                        "SHM");
    assert_null(vnxi_choice_plugin(&choice, &choice.candidates[0], 2));
}

static void
test_choice_does_not_change_to_an_engine_that_was_replaced(void **state)
{
    vnxi_choice_t choice = choice_of_two();
    vnxi_candidate_t *to = NULL;
    vnx_error_t error;
    (void)state;

    second.created[second.created_count++] = "UCX";
    vnxi_candidate_stop_lock_held(&choice.candidates[0]);
    vnxi_candidate_stop_lock_held(&choice.candidates[0]);
    assert_int_equal(first.stopped, 1);
    assert_int_equal(vnxi_choice_make_lock_held(&choice, &choice.candidates[1],
                                                "SHM", &to, &error),
                     VNX_ERR_NOT_FOUND);
}

static void
test_choice_reports_a_backend_that_cannot_be_copied(void **state)
{
    vnxi_choice_t choice = choice_of_two();
    vnx_error_t error;
    (void)state;

    first.created[first.created_count++] = "UCX";
    second.refuses = "UCX";
    vnxi_candidate_t *to = change(&choice, "POSIX", VNX_OK, &error);
    assert_int_equal(
        vnxi_choice_copy_lock_held(&choice.candidates[0], to, &error),
        VNX_ERR_BACKEND);
    assert_string_equal(error.cause, "refused");
}

static void
test_choice_says_what_to_write_when_it_is_too_late(void **state)
{
    vnxi_choice_t choice = choice_of_two();
    vnx_error_t error;
    (void)state;

    first.created[first.created_count++] = "UCX";
    assert_int_equal(
        vnxi_choice_too_late(&choice, &choice.candidates[0], "POSIX", &error),
        VNX_ERR_NOT_FOUND);
    assert_non_null(strstr(error.cause, "the first engine has no backend"));
    assert_non_null(strstr(
        error.cause, "nixl_agent_config(backends=[\"UCX\", \"POSIX\"])"));
    assert_int_equal(
        vnxi_choice_too_late(&choice, &choice.candidates[0], "NOPE", &error),
        VNX_ERR_NOT_FOUND);
    assert_non_null(strstr(error.cause, "no engine has the backend 'NOPE'"));
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
        cmocka_unit_test(test_choice_changes_to_an_engine_with_all_backends),
        cmocka_unit_test(test_choice_keeps_an_engine_that_has_the_backend),
        cmocka_unit_test(
            test_choice_does_not_change_to_an_engine_that_lacks_a_backend),
        cmocka_unit_test(
            test_choice_does_not_change_to_an_engine_that_was_replaced),
        cmocka_unit_test(test_choice_reports_a_backend_that_cannot_be_copied),
        cmocka_unit_test(test_choice_says_what_to_write_when_it_is_too_late),
        cmocka_unit_test(test_choice_stops_and_frees_all),
        cmocka_unit_test(test_choice_refuses_an_unknown_engine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
