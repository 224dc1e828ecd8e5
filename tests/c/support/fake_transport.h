/*
 * A scripted transport, for tests of retries and waiting.  It opens no socket.
 */
#ifndef VNX_FAKE_TRANSPORT_H
#define VNX_FAKE_TRANSPORT_H

#include "vnx_test.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "side_channel/channel.h"
#include "side_channel/transport.h"

#define TRIES 64
#define MS UINT64_C(1000000)

/* The result of each try; the last one applies to all further tries. */
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
    int fd; /* the descriptor exchanges wait for; -1: only the time */
    uint64_t wake_ns; /* a step after so long; 0: none */
    size_t answered;  /* the try that fails by what the peer said */
    char last_key[32], last_endpoint[VNX_ERROR_PEER_MAX];
} world;

typedef struct exchange {
    const script_t *script;
    unsigned steps;
} exchange_t;

static vnx_status_t
fake_begin(vnxi_request_t *request)
{
    size_t at = world.begun < world.scripts ? world.begun : world.scripts - 1;
    const script_t *script = &world.script[at];

    world.times[world.begun % TRIES] = vnxi_clock_ns();
    world.begun++;
    memcpy(world.last_key, request->key, request->key_len);
    world.last_key[request->key_len] = '\0';
    strcpy(world.last_endpoint, request->endpoint);
    if (script->begin != VNX_OK) {
        request->phase = "beginning with";
        return vnxi_request_failed(request, script->begin, "no luck");
    }
    exchange_t *exchange = request->client;
    exchange->script = script;
    request->phase = "asking";
    world.open++;
    if (world.open > world.open_most) {
        world.open_most = world.open;
    }
    return VNX_OK;
}

static vnx_status_t
fake_step(vnxi_request_t *request)
{
    exchange_t *exchange = request->client;
    uint64_t now = vnxi_clock_ns();

    world.steps++;
    if (now >= request->deadline) {
        return vnxi_request_failed(request, VNX_ERR_TIMEOUT, "timed out");
    }
    if (exchange->steps++ < exchange->script->steps_first ||
        exchange->script->end == VNX_IN_PROG) {
        request->fd = world.fd;
        request->events = POLLIN;
        request->wake = world.wake_ns > 0 ? now + world.wake_ns : UINT64_MAX;
        return VNX_IN_PROG;
    }
    if (exchange->script->end != VNX_OK) {
        request->answered = world.begun == world.answered;
        return vnxi_request_failed(request, exchange->script->end, "no luck");
    }
    request->answer.metadata = strdup(request->host);
    request->answer.length = strlen(request->host);
    return VNX_OK;
}

static void
fake_end(vnxi_request_t *request)
{
    (void)request;
    world.open--;
    world.ended++;
}

static const vnxi_transport_t fake = {.fds = 1,
                                      .client_size = sizeof(exchange_t),
                                      .begin = fake_begin,
                                      .step = fake_step,
                                      .end = fake_end};

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

/* Requests over a transport.  Only one set exists at a time. */
static vnxi_requests_t *
set_over(const vnxi_transport_t *transport,
         const vnx_side_channel_request_params_t *params, size_t count)
{
    static vnx_side_channel_t channel = {.refs = 1};
    vnxi_requests_t *set = NULL;

    channel.transport = transport;
    assert_int_equal(vnxi_requests_make(&channel, params, count, &set, NULL),
                     VNX_OK);
    return set;
}

static vnxi_requests_t *
set_of(const vnx_side_channel_request_params_t *params, size_t count)
{
    return set_over(&fake, params, count);
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
    assert_string_equal(answer->error.operation, "vnx_side_channel_request");
    assert_non_null(strstr(answer->error.cause, words));
}

#endif
