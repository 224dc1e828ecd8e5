/*
 * Requests of a batch over a transport that does what the test says: what is
 * tried again and what is not, how long, in how many at once, with which words
 * it ends.  No socket is opened.
 */
#include "vnx_test.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "side_channel/batch.h"

#define TRIES 64
#define MS UINT64_C(1000000)

/* What each try of a request comes to; the last one is for all further. */
typedef struct script {
    vnx_status_t begin;   /* VNX_OK: it has steps */
    vnx_status_t end;     /* of the last step; VNX_IN_PROG: never */
    unsigned steps_first; /* steps in progress before it */
} script_t;

static struct world {
    const script_t *script;
    size_t scripts;
    size_t begun, ended, open, open_most, steps;
    uint64_t times[TRIES]; /* of each begin() */
    int fd;                /* what exchanges wait for; -1: the time alone */
    uint64_t wake_ns;      /* a step after so long; 0: none */
    size_t answered;       /* the try that fails by what the peer said */
    char last_key[32], last_endpoint[VNX_ERROR_PEER_MAX];
} world;

typedef struct exchange {
    vnxi_exchange_t super;
    const vnxi_request_params_t *params;
    const script_t *script;
    unsigned steps;
} exchange_t;

static vnx_status_t
fake_begin(const vnxi_request_params_t *params, vnxi_exchange_t **out_p,
           vnx_error_t *error)
{
    size_t at = world.begun < world.scripts ? world.begun : world.scripts - 1;
    const script_t *script = &world.script[at];

    world.times[world.begun % TRIES] = vnxi_clock_ns();
    world.begun++;
    memcpy(world.last_key, params->key, params->key_len);
    world.last_key[params->key_len] = '\0';
    strcpy(world.last_endpoint, params->endpoint);
    if (script->begin != VNX_OK) {
        return vnxi_exchange_failed(params, script->begin, "beginning with",
                                    params->host, "no luck", error);
    }
    exchange_t *exchange = calloc(1, sizeof *exchange);
    exchange->super = (vnxi_exchange_t){.fd = -1, .wake = UINT64_MAX};
    exchange->params = params;
    exchange->script = script;
    world.open++;
    if (world.open > world.open_most) {
        world.open_most = world.open;
    }
    *out_p = &exchange->super;
    return VNX_OK;
}

static vnx_status_t
fake_step(vnxi_exchange_t *super, void **data_p, size_t *len_p,
          vnx_error_t *error)
{
    exchange_t *exchange = (exchange_t *)super;
    const vnxi_request_params_t *params = exchange->params;
    uint64_t now = vnxi_clock_ns();

    world.steps++;
    if (now >= params->deadline) {
        return vnxi_exchange_failed(params, VNX_ERR_TIMEOUT, "asking",
                                    params->host, "timed out", error);
    }
    if (exchange->steps++ < exchange->script->steps_first ||
        exchange->script->end == VNX_IN_PROG) {
        super->fd = world.fd;
        super->events = POLLIN;
        super->wake = world.wake_ns > 0 ? now + world.wake_ns : UINT64_MAX;
        return VNX_IN_PROG;
    }
    if (exchange->script->end != VNX_OK) {
        super->answered = world.begun == world.answered;
        return vnxi_exchange_failed(params, exchange->script->end, "asking",
                                    params->host, "no luck", error);
    }
    *data_p = strdup(params->host);
    *len_p = strlen(params->host);
    return VNX_OK;
}

static void
fake_end(vnxi_exchange_t *exchange)
{
    world.open--;
    world.ended++;
    free(exchange);
}

static const vnxi_transport_t fake = {
    .name = "fake", .begin = fake_begin, .step = fake_step, .end = fake_end};

/* -- Scenes --------------------------------------------------------------- */

#define SCENE(...)                                     \
    static const script_t script_[] = {__VA_ARGS__};   \
    world = (struct world){                            \
        .script = script_,                             \
        .scripts = sizeof script_ / sizeof script_[0], \
        .fd = -1,                                      \
    };                                                 \
    (void)state

static vnx_side_channel_request_params_t
asking(const char *host, int timeout_ms, uint32_t retries)
{
    return (vnx_side_channel_request_params_t){
        .size = sizeof(vnx_side_channel_request_params_t),
        .host = host,
        .port = 77,
        .timeout_ms = timeout_ms,
        .retries = retries,
        .backoff_ms = 2,
    };
}

static vnxi_batch_t *
batch_of(const vnx_side_channel_request_params_t *params, size_t count)
{
    static const vnx_side_channel_options_t options = {.size = sizeof options};
    vnxi_batch_t *batch = NULL;
    assert_int_equal(
        vnxi_batch_create(&fake, &options, params, count, &batch, NULL),
        VNX_OK);
    return batch;
}

/* One request, run to its end. */
static vnx_side_channel_answer_t
ask(const vnx_side_channel_request_params_t *params)
{
    vnx_side_channel_answer_t answer;
    vnxi_batch_t *batch = batch_of(params, 1);
    assert_true(vnxi_batch_run(batch, NULL, NULL));
    vnxi_batch_take(batch, 0, &answer);
    vnxi_batch_free(batch);
    assert_int_equal(world.open, 0); /* every exchange was ended */
    return answer;
}

static void
assert_answered(vnx_side_channel_answer_t answer, const char *text)
{
    assert_int_equal(answer.status, VNX_OK);
    assert_int_equal(answer.length, strlen(text));
    assert_memory_equal(answer.metadata, text, answer.length);
    free(answer.metadata);
}

static void
assert_failed(const vnx_side_channel_answer_t *answer, vnx_status_t status,
              const char *words)
{
    assert_int_equal(answer->status, status);
    assert_null(answer->metadata);
    assert_int_equal(answer->error.status, status);
    assert_string_equal(answer->error.operation, "request_metadata");
    assert_non_null(strstr(answer->error.cause, words));
}

/* -- One request ---------------------------------------------------------- */

static void
test_job_brings_what_the_transport_brought(void **state)
{
    SCENE({VNX_OK, VNX_OK, 0});
    vnx_side_channel_request_params_t params = asking("peer", 5000, 0);

    params.key = "rank";
    params.key_length = 4;
    assert_answered(ask(&params), "peer");
    assert_int_equal(world.begun, 1);
    assert_string_equal(world.last_key, "rank");
    assert_string_equal(world.last_endpoint, "peer:77");
}

static void
test_job_writes_brackets_around_ipv6(void **state)
{
    SCENE({VNX_OK, VNX_ERR_MISMATCH, 0});
    vnx_side_channel_request_params_t params = asking("fe80::1", 5000, 0);

    vnx_side_channel_answer_t answer = ask(&params);
    assert_failed(&answer, VNX_ERR_MISMATCH, "asking fe80::1: no luck");
    assert_string_equal(answer.error.peer, "[fe80::1]:77");
}

static void
test_job_cuts_an_endpoint_that_is_too_long(void **state)
{
    SCENE({VNX_OK, VNX_OK, 0});
    char host[2 * VNX_ERROR_PEER_MAX];

    memset(host, 'h', sizeof host - 1);
    host[sizeof host - 1] = '\0';
    vnx_side_channel_request_params_t params = asking(host, 5000, 0);
    assert_answered(ask(&params), host); /* the host itself is not cut */
    assert_int_equal(strlen(world.last_endpoint), VNX_ERROR_PEER_MAX - 1);
}

static void
test_job_tries_again_what_may_come_yet(void **state)
{
    SCENE({VNX_ERR_BACKEND, VNX_OK, 0}, {VNX_OK, VNX_ERR_NOT_FOUND, 1},
          {VNX_OK, VNX_ERR_BACKEND, 0}, {VNX_OK, VNX_OK, 0});
    vnx_side_channel_request_params_t params = asking("peer", 20000, 3);

    world.wake_ns = 1000;
    assert_answered(ask(&params), "peer");
    assert_int_equal(world.begun, 4);
    assert_int_equal(world.ended, 3); /* the first had not begun */
}

static void
test_job_ends_when_its_tries_are_spent(void **state)
{
    SCENE({VNX_OK, VNX_ERR_BACKEND, 0});
    vnx_side_channel_request_params_t params = asking("peer", 20000, 3);

    vnx_side_channel_answer_t answer = ask(&params);
    assert_failed(&answer, VNX_ERR_BACKEND, "no luck");
    assert_int_equal(world.begun, 4);
}

/* A wrong secret stays wrong. */
static void
test_job_does_not_try_again_what_stays_wrong(void **state)
{
    static const vnx_status_t hopeless[] = {
        VNX_ERR_NOT_ALLOWED, VNX_ERR_MISMATCH,      VNX_ERR_INVALID_PARAM,
        VNX_ERR_NO_MEMORY,   VNX_ERR_NOT_SUPPORTED, VNX_ERR_TIMEOUT};
    (void)state;

    for (size_t i = 0; i < sizeof hopeless / sizeof hopeless[0]; i++) {
        const script_t script = {VNX_OK, hopeless[i], 0};
        vnx_side_channel_request_params_t params = asking("peer", 20000, 9);
        world = (struct world){.script = &script, .scripts = 1, .fd = -1};
        vnx_side_channel_answer_t answer = ask(&params);
        assert_failed(&answer, hopeless[i], "no luck");
        assert_int_equal(world.begun, 1);
    }
}

/* A name that is not known may come to be; a key that is not served was looked
 * for by the one who would know. */
static void
test_job_takes_no_for_an_answer(void **state)
{
    SCENE({VNX_OK, VNX_ERR_NOT_FOUND, 1}, {VNX_OK, VNX_ERR_NOT_FOUND, 1},
          {VNX_OK, VNX_OK, 0});
    vnx_side_channel_request_params_t params =
        asking("peer", 20000, VNX_SIDE_CHANNEL_RETRY_ALWAYS);

    world.wake_ns = 1000;
    world.answered = 2;
    vnx_side_channel_answer_t answer = ask(&params);
    assert_failed(&answer, VNX_ERR_NOT_FOUND, "no luck");
    assert_int_equal(world.begun, 2);
}

/* Half of each pause is certain: 2, 4, 8, ... ms, twice as much each time. */
static void
test_job_rests_longer_each_time(void **state)
{
    SCENE({VNX_ERR_BACKEND, VNX_OK, 0});
    vnx_side_channel_request_params_t params = asking("peer", 20000, 5);

    vnx_side_channel_answer_t answer = ask(&params);
    assert_failed(&answer, VNX_ERR_BACKEND, "beginning with peer");
    assert_int_equal(world.begun, 6);
    for (size_t i = 1; i < 6; i++) {
        uint64_t rested = world.times[i] - world.times[i - 1];
        assert_true(rested >= MS << (i - 1));
    }
}

/* The time goes over all tries, and the cause of the last one is told. */
static void
test_job_stops_trying_when_no_time_is_left(void **state)
{
    SCENE({VNX_OK, VNX_ERR_BACKEND, 0});
    vnx_side_channel_request_params_t params =
        asking("peer", 400, VNX_SIDE_CHANNEL_RETRY_ALWAYS);
    uint64_t start = vnxi_clock_ns();

    vnx_side_channel_answer_t answer = ask(&params);
    assert_failed(&answer, VNX_ERR_BACKEND, "no luck");
    assert_true(world.begun >= 2);
    /* It gave up before its deadline, for the pause would have passed it. */
    for (size_t i = 0; i < world.begun; i++) {
        assert_true(world.times[i] < start + 400 * MS || i == 0);
    }
}

/* So is it where nobody looked until its time was over. */
static void
test_job_that_overslept_tells_its_last_failure(void **state)
{
    SCENE({VNX_OK, VNX_ERR_BACKEND, 0});
    vnx_side_channel_request_params_t params =
        asking("peer", 200, VNX_SIDE_CHANNEL_RETRY_ALWAYS);
    vnx_side_channel_answer_t answer;

    params.backoff_ms = 150;
    vnxi_batch_t *batch = batch_of(&params, 1);
    uint64_t end = vnxi_clock_ns() + 200 * MS;
    assert_int_equal(vnxi_batch_watch(batch, NULL), VNX_OK);
    assert_int_equal(world.begun, 1);
    while (vnxi_clock_ns() < end) {
        usleep(1000);
    }
    assert_int_equal(vnxi_batch_step(batch), 0);
    vnxi_batch_take(batch, 0, &answer);
    vnxi_batch_free(batch);
    assert_failed(&answer, VNX_ERR_BACKEND, "no luck");
    assert_int_equal(world.begun, 1);
}

static void
test_job_that_hears_nothing_ends_at_its_deadline(void **state)
{
    SCENE({VNX_OK, VNX_IN_PROG, 0});
    vnx_side_channel_request_params_t params = asking("peer", 200, 9);

    vnx_side_channel_answer_t answer = ask(&params);
    assert_failed(&answer, VNX_ERR_TIMEOUT, "asking peer: timed out (after ");
    assert_int_equal(world.begun, 1); /* a timeout is no further try */
    assert_true(world.steps <= 3);    /* it slept */
}

static void
test_job_is_stepped_when_it_asked_for_it(void **state)
{
    SCENE({VNX_OK, VNX_OK, 5});
    vnx_side_channel_request_params_t params = asking("peer", 20000, 0);

    world.wake_ns = 100000;
    assert_answered(ask(&params), "peer");
    assert_int_equal(world.steps, 6);
}

/* -- Many ----------------------------------------------------------------- */

static void
test_jobs_may_wait_for_one_descriptor_each(void **state)
{
    SCENE({VNX_OK, VNX_OK, 1});
    vnx_side_channel_request_params_t params[2] = {asking("a", 20000, 0),
                                                   asking("b", 20000, 0)};
    vnx_side_channel_answer_t answers[2];
    uint64_t one = 1;

    world.fd = eventfd(0, EFD_CLOEXEC);
    world.wake_ns = UINT64_C(3000000); /* whom the set did not take */
    vnxi_batch_t *batch = batch_of(params, 2);
    assert_int_equal(vnxi_batch_watch(batch, NULL), VNX_OK);
    assert_int_equal(world.steps, 2);
    assert_int_equal(write(world.fd, &one, sizeof one), sizeof one);
    assert_true(vnxi_batch_run(batch, NULL, NULL));
    for (size_t i = 0; i < 2; i++) {
        vnxi_batch_take(batch, i, &answers[i]);
        assert_answered(answers[i], params[i].host);
    }
    vnxi_batch_free(batch);
    close(world.fd);
}

static bool
always(void *arg)
{
    (*(int *)arg)++;
    return true;
}

static void
test_jobs_are_interrupted_with_those_that_wait(void **state)
{
    SCENE({VNX_OK, VNX_OK, 0}, {VNX_OK, VNX_IN_PROG, 0},
          {VNX_ERR_BACKEND, VNX_OK, 0});
    vnx_side_channel_request_params_t params[3] = {
        asking("done", 60000, 0), asking("open", 60000, 0),
        asking("resting", 60000, 9)};
    vnx_side_channel_answer_t answers[3];
    int asked = 0;

    params[2].backoff_ms = 60000; /* longer than it is looked for */
    vnxi_batch_t *batch = batch_of(params, 3);
    assert_false(vnxi_batch_run(batch, always, &asked));
    assert_int_equal(asked, 1);
    assert_int_equal(world.open, 0);
    for (size_t i = 0; i < 3; i++) {
        vnxi_batch_take(batch, i, &answers[i]);
    }
    assert_answered(answers[0], "done");
    assert_failed(&answers[1], VNX_ERR_CANCELED, "interrupted");
    assert_failed(&answers[2], VNX_ERR_CANCELED, "interrupted");
    vnxi_batch_free(batch);
}

static void
test_jobs_are_freed_at_any_stage(void **state)
{
    SCENE({VNX_OK, VNX_OK, 0}, {VNX_OK, VNX_IN_PROG, 0},
          {VNX_ERR_BACKEND, VNX_OK, 0});
    vnx_side_channel_request_params_t params[3] = {asking("done", 60000, 0),
                                                   asking("open", 60000, 0),
                                                   asking("rests", 60000, 9)};

    vnxi_batch_free(batch_of(params, 3)); /* nothing begun */
    assert_int_equal(world.begun, 0);
    vnxi_batch_t *batch = batch_of(params, 3);
    assert_int_equal(vnxi_batch_watch(batch, NULL), VNX_OK);
    assert_int_equal(world.open, 1);
    vnxi_batch_free(batch); /* with an answer that nobody took */
    assert_int_equal(world.open, 0);
    vnxi_batch_free(NULL);
}

/* As many at once as half of the descriptors allow; all get their turn. */
static void
test_jobs_leave_descriptors_to_others(void **state)
{
    SCENE({VNX_OK, VNX_OK, 2});
    enum { JOBS = 50 };
    vnx_side_channel_request_params_t params[JOBS];
    vnx_side_channel_answer_t answer;
    vnxi_transport_t hungry = fake;
    const vnx_side_channel_options_t options = {.size = sizeof options};
    vnxi_batch_t *batch = NULL;
    struct rlimit limit;

    for (size_t i = 0; i < JOBS; i++) {
        params[i] = asking("peer", 30000, 0);
    }
    world.wake_ns = 10000;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    hungry.fds = (unsigned)(limit.rlim_cur / 2 / 7); /* seven fit */
    assert_int_equal(
        vnxi_batch_create(&hungry, &options, params, JOBS, &batch, NULL),
        VNX_OK);
    assert_true(vnxi_batch_run(batch, NULL, NULL));
    assert_int_equal(world.begun, JOBS);
    assert_in_range(world.open_most, 1, 8);
    for (size_t i = 0; i < JOBS; i++) {
        vnxi_batch_take(batch, i, &answer);
        assert_answered(answer, "peer");
    }
    vnxi_batch_free(batch);
}

/* Whose turn never comes is told so at its own time. */
static void
test_jobs_that_never_had_their_turn_end_in_time(void **state)
{
    SCENE({VNX_OK, VNX_IN_PROG, 0});
    vnx_side_channel_request_params_t params[2] = {asking("first", 400, 0),
                                                   asking("second", 20, 0)};
    vnx_side_channel_answer_t answers[2];
    vnxi_transport_t greedy = fake;
    const vnx_side_channel_options_t options = {.size = sizeof options};
    vnxi_batch_t *batch = NULL;

    greedy.fds = UINT32_MAX; /* one alone, whatever the limit is */
    assert_int_equal(
        vnxi_batch_create(&greedy, &options, params, 2, &batch, NULL), VNX_OK);
    assert_true(vnxi_batch_run(batch, NULL, NULL));
    vnxi_batch_take(batch, 0, &answers[0]);
    vnxi_batch_take(batch, 1, &answers[1]);
    vnxi_batch_free(batch);
    assert_failed(&answers[0], VNX_ERR_TIMEOUT, "asking first");
    assert_failed(&answers[1], VNX_ERR_TIMEOUT, "waiting to ask second");
    assert_int_equal(world.begun, 1);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_job_brings_what_the_transport_brought),
        cmocka_unit_test(test_job_writes_brackets_around_ipv6),
        cmocka_unit_test(test_job_cuts_an_endpoint_that_is_too_long),
        cmocka_unit_test(test_job_tries_again_what_may_come_yet),
        cmocka_unit_test(test_job_ends_when_its_tries_are_spent),
        cmocka_unit_test(test_job_does_not_try_again_what_stays_wrong),
        cmocka_unit_test(test_job_takes_no_for_an_answer),
        cmocka_unit_test(test_job_rests_longer_each_time),
        cmocka_unit_test(test_job_stops_trying_when_no_time_is_left),
        cmocka_unit_test(test_job_that_overslept_tells_its_last_failure),
        cmocka_unit_test(test_job_that_hears_nothing_ends_at_its_deadline),
        cmocka_unit_test(test_job_is_stepped_when_it_asked_for_it),
        cmocka_unit_test(test_jobs_may_wait_for_one_descriptor_each),
        cmocka_unit_test(test_jobs_are_interrupted_with_those_that_wait),
        cmocka_unit_test(test_jobs_are_freed_at_any_stage),
        cmocka_unit_test(test_jobs_leave_descriptors_to_others),
        cmocka_unit_test(test_jobs_that_never_had_their_turn_end_in_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
