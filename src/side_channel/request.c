#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/error.h"
#include "net/resolve.h"
#include "side_channel/request_set.h"

#define BACKOFF_MAX_MS 1000
#define KEY_TEXT_MAX 96
#define MS UINT64_C(1000000)

/* -- Records -------------------------------------------------------------- */

vnx_status_t
vnxi_request_failed(vnxi_request_t *request, vnx_status_t status,
                    const char *phase, const char *whom, const char *reason)
{
    vnx_error_t *error = &request->answer.error;

    vnxi_error_set(error, status, VNXI_OP_REQUEST, "%s %s: %s (after %llu ms)",
                   phase, whom, reason,
                   (unsigned long long)(vnxi_clock_ns() - request->start) /
                       MS);
    vnxi_error_peer(error, request->endpoint, strlen(request->endpoint));
    return status;
}

vnx_status_t
vnxi_request_no_key(vnxi_request_t *request)
{
    vnx_error_t *error = &request->answer.error;
    char text[KEY_TEXT_MAX];

    request->answered = true;
    if (request->key_len == 0) {
        vnxi_error_set(error, VNX_ERR_NOT_FOUND, VNXI_OP_REQUEST,
                       "nothing is served by default: name a key");
    } else {
        vnxi_key_text(request->key, request->key_len, text, sizeof text);
        vnxi_error_set(error, VNX_ERR_NOT_FOUND, VNXI_OP_REQUEST,
                       "nothing is served under the key '%s'", text);
    }
    vnxi_error_peer(error, request->endpoint, strlen(request->endpoint));
    return VNX_ERR_NOT_FOUND;
}

vnx_status_t
vnxi_request_no_memory(vnxi_request_t *request, size_t size)
{
    return vnxi_error_no_memory(&request->answer.error, VNXI_OP_REQUEST, size);
}

/* -- Creation ------------------------------------------------------------- */

bool
vnxi_request_init(vnxi_request_t *request,
                  const vnx_side_channel_request_params_t *given,
                  const vnx_side_channel_options_t *options, uint64_t now)
{
    size_t host_size = strlen(given->host) + 1;
    char *text = malloc(host_size + given->key_length + VNX_ERROR_PEER_MAX);

    if (text == NULL) {
        return false;
    }
    char *key = text + host_size, *endpoint = key + given->key_length;
    memcpy(text, given->host, host_size);
    if (given->key_length > 0) {
        memcpy(key, given->key, given->key_length);
    }
    vnxi_endpoint_text(endpoint, VNX_ERROR_PEER_MAX, given->host, given->port);
    *request = (vnxi_request_t){
        .host = text,
        .port = given->port,
        .key = key,
        .key_len = given->key_length,
        .endpoint = endpoint,
        .options = options,
        .start = now,
        .deadline = now + (uint64_t)given->timeout_ms * MS,
        .text = text,
        .fd = -1,
        .watched = -1,
        .retries = given->retries,
        .backoff_ms = given->backoff_ms > 0 ? given->backoff_ms
                                            : VNX_SIDE_CHANNEL_BACKOFF_MS,
    };
    return true;
}

static void
stop_trying(vnxi_requests_t *set, vnxi_request_t *request)
{
    if (request->state == VNXI_REQUEST_TRYING) {
        set->trying--;
    }
    if (request->client != NULL) {
        set->transport->end(request);
        request->client = NULL;
    }
    request->fd = request->watched = -1;
}

void
vnxi_request_fini(vnxi_requests_t *set, vnxi_request_t *request)
{
    stop_trying(set, request);
    free(request->answer.metadata);
    free(request->text);
}

/* End the request with its current answer. */
static void
end(vnxi_requests_t *set, vnxi_request_t *request, vnx_status_t status)
{
    stop_trying(set, request);
    request->answer.status = status;
    request->state = VNXI_REQUEST_ENDED;
    set->open--;
}

void
vnxi_request_cancel(vnxi_requests_t *set, vnxi_request_t *request)
{
    vnxi_request_failed(request, VNX_ERR_CANCELED, "waiting for",
                        request->host, "interrupted");
    end(set, request, VNX_ERR_CANCELED);
}

/* -- Trying --------------------------------------------------------------- */

/* Might another try succeed?  The peer or its name does not exist yet, or the
 * peer broke off. */
static bool
is_worth_another_try(const vnxi_request_t *request, vnx_status_t status)
{
    return status == VNX_ERR_BACKEND ||
           (status == VNX_ERR_NOT_FOUND && !request->answered);
}

/* Compute the time until the next try.  Half of it is random, so that clients
 * that were refused at the same time do not all return at the same time. */
static uint64_t
backoff_ns(vnxi_request_t *request, uint64_t now)
{
    uint64_t ns = request->backoff_ms * MS;
    request->backoff_ms *= 2;
    if (request->backoff_ms > BACKOFF_MAX_MS) {
        request->backoff_ms = BACKOFF_MAX_MS;
    }
    return ns / 2 + (now ^ (uintptr_t)request) % (ns / 2 + 1);
}

static void
set_due(vnxi_requests_t *set, vnxi_request_t *request, uint64_t due)
{
    request->due = due < request->deadline ? due : request->deadline;
    if (request->due < set->next_due) {
        set->next_due = request->due;
    }
}

static void
try_failed(vnxi_requests_t *set, vnxi_request_t *request, vnx_status_t status)
{
    uint64_t now = vnxi_clock_ns();

    if (request->retries > 0 && is_worth_another_try(request, status)) {
        uint64_t due = now + backoff_ns(request, now);
        if (due < request->deadline) {
            if (request->retries != VNX_SIDE_CHANNEL_RETRY_ALWAYS) {
                request->retries--;
            }
            stop_trying(set, request);
            request->answer.status = status;
            request->state = VNXI_REQUEST_RESTING;
            set_due(set, request, due);
            return;
        }
    }
    end(set, request, status);
}

/* Register the descriptor.  Returns 0 or errno. */
static int
watch(vnxi_requests_t *set, vnxi_request_t *request)
{
    struct epoll_event event = {
        .events = EPOLLONESHOT |
                  (request->events & POLLIN ? (uint32_t)EPOLLIN : 0) |
                  (request->events & POLLOUT ? (uint32_t)EPOLLOUT : 0),
        .data.u32 = (uint32_t)(request - set->list)};
    int op = request->fd == request->watched ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    int ret = 0;

    request->watched = request->fd;
    if (request->fd >= 0 && set->epoll_fd >= 0) {
        ret = epoll_ctl(set->epoll_fd, op, request->fd, &event);
        if (ret != 0 && (errno == ENOENT || errno == EEXIST)) {
            op = op == EPOLL_CTL_MOD ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
            ret = epoll_ctl(set->epoll_fd, op, request->fd, &event);
        }
    }
    return ret == 0 ? 0 : errno;
}

void
vnxi_request_step(vnxi_requests_t *set, vnxi_request_t *request)
{
    vnx_status_t status = set->transport->step(request);

    if (status == VNX_IN_PROG) {
        int err = watch(set, request);
        if (err == 0) {
            set_due(set, request, request->wake);
            return;
        }
        status = vnxi_request_failed(request, VNX_ERR_BACKEND, "waiting for",
                                     request->host, vnxi_errno(err));
    }
    if (status == VNX_OK) {
        end(set, request, VNX_OK);
    } else {
        try_failed(set, request, status);
    }
}

void
vnxi_request_try(vnxi_requests_t *set, vnxi_request_t *request)
{
    request->state = VNXI_REQUEST_TRYING;
    request->wake = UINT64_MAX;
    request->answered = false;
    set->trying++;
    vnx_status_t status = set->transport->begin(request);
    if (status == VNX_OK) {
        vnxi_request_step(set, request);
    } else {
        try_failed(set, request, status);
    }
}

/* The request is due. */
static void
wake(vnxi_requests_t *set, vnxi_request_t *request, uint64_t now)
{
    if (request->state == VNXI_REQUEST_TRYING) {
        vnxi_request_step(set, request);
    } else if (now < request->deadline) {
        if (request->state == VNXI_REQUEST_RESTING) {
            vnxi_request_try(set, request);
        }
    } else if (request->state == VNXI_REQUEST_RESTING) {
        end(set, request, request->answer.status); /* of the last try */
    } else {
        vnxi_request_failed(request, VNX_ERR_TIMEOUT, "waiting to ask",
                            request->host, "timed out");
        end(set, request, VNX_ERR_TIMEOUT);
    }
}

void
vnxi_request_check(vnxi_requests_t *set, vnxi_request_t *request, uint64_t now)
{
    if (request->state == VNXI_REQUEST_QUEUED) {
        request->due = request->deadline;
    }
    if (now >= request->due) {
        wake(set, request, now);
    } else {
        set_due(set, request, request->due);
    }
}
