/*
 * Design notes.  The protocol has no replies to commands, so a failure cannot
 * be returned to a caller.  It is stored as the last one, counted and logged.
 * Failures of our own commands are limited by the number of our callers'
 * calls.  Strangers can cause any number, but the log limits the lines about
 * them.
 */
#include "listener/listener.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"

#define LINE_MAX_LEN 768

/* -- Frames --------------------------------------------------------------- */

const char *
vnxi_meta_operation(vnxi_meta_verb_t verb)
{
    switch (verb) {
    case VNXI_META_LOAD:
        return "vnx_listener_send";
    case VNXI_META_SEND:
        return "vnx_listener_fetch";
    default:
        return "vnx_listener_invalidate";
    }
}

static vnx_status_t
check_body(const vnx_listener_t *listener, const vnxi_meta_message_t *message,
           vnx_error_t *error)
{
    const char *operation = vnxi_meta_operation(message->verb);

    if (message->body_len >
        listener->options.max_frame - VNXI_META_COMMAND_MIN) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation,
                              "%zu bytes are above max_frame (%" PRIu64 ")",
                              message->body_len, listener->options.max_frame);
    }
    if (vnxi_meta_has_mark(message->body, message->body_len)) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation,
                              "the metadata contains '" VNXI_META_MARK
                              "', which begins the next command");
    }
    return VNX_OK;
}

vnx_status_t
vnxi_meta_frame_new(const vnx_listener_t *listener,
                    const vnxi_meta_message_t *message,
                    vnxi_meta_frame_t **frame_p, vnx_error_t *error)
{
    vnx_status_t status = check_body(listener, message, error);
    if (status != VNX_OK) {
        return status;
    }
    size_t len = VNXI_META_PREFIX + message->body_len;
    size_t host_size = strlen(message->host) + 1;
    vnxi_meta_frame_t *frame =
        malloc(sizeof *frame + len + host_size + message->peer_len);
    if (frame == NULL) {
        return vnxi_error_no_memory(error, vnxi_meta_operation(message->verb),
                                    len);
    }
    unsigned char *host = frame->bytes + len, *peer = host + host_size;
    *frame = (vnxi_meta_frame_t){.verb = message->verb,
                                 .port = message->port,
                                 .host = (const char *)host,
                                 .peer = peer,
                                 .peer_len = message->peer_len,
                                 .len = len};
    vnxi_meta_prefix_write(message->verb, message->body_len, frame->bytes);
    if (message->body_len > 0) {
        memcpy(frame->bytes + VNXI_META_PREFIX, message->body,
               message->body_len);
    }
    memcpy(host, message->host, host_size);
    if (message->peer_len > 0) {
        memcpy(peer, message->peer, message->peer_len);
    }
    *frame_p = frame;
    return VNX_OK;
}

/* -- Outcome -------------------------------------------------------------- */

static void
keep(vnx_listener_t *listener, const vnx_error_t *failure)
{
    vnxi_mutex_lock(&listener->lock);
    listener->failure = *failure;
    listener->has_failure = true;
    vnxi_mutex_unlock(&listener->lock);
}

static void
warn(const vnx_listener_t *listener, const vnx_error_t *failure)
{
    char line[LINE_MAX_LEN];
    vnx_error_format(failure, line, sizeof line);
    vnxi_log(VNX_LOG_WARNING, vnxi_meta_agent(listener),
             "metadata listener: %s", line);
}

static void
frame_done(vnx_listener_t *listener, vnxi_meta_frame_t *frame)
{
    vnxi_meta_counters_t *counters = &listener->counters;

    atomic_fetch_sub(&counters->pending, 1);
    atomic_fetch_sub(&counters->pending_bytes, frame->len);
    free(frame);
}

void
vnxi_meta_sent(vnx_listener_t *listener, vnxi_meta_frame_t *frame)
{
    vnxi_meta_count(&listener->counters.sent);
    frame_done(listener, frame);
}

void
vnxi_meta_unsent(vnx_listener_t *listener, vnxi_meta_frame_t *frame,
                 vnx_status_t status, const char *cause)
{
    char endpoint[VNXI_META_ENDPOINT];
    vnx_error_t failure;

    vnxi_error_set(&failure, status, vnxi_meta_operation(frame->verb), "%s",
                   cause);
    vnxi_endpoint_text(endpoint, sizeof endpoint, frame->host, frame->port);
    vnxi_error_peer(&failure, endpoint, strlen(endpoint));
    keep(listener, &failure);
    warn(listener, &failure);
    vnxi_meta_count(&listener->counters.send_failures);
    frame_done(listener, frame);
}

void
vnxi_meta_failure(vnx_listener_t *listener, const char *endpoint,
                  vnx_error_t *failure)
{
    if (failure->peer[0] == '\0') {
        vnxi_error_peer(failure, endpoint, strlen(endpoint));
    }
    keep(listener, failure);
    warn(listener, failure);
}

/* -- Counters ------------------------------------------------------------- */

static uint64_t
get(const atomic_uint_fast64_t *counter)
{
    return atomic_load_explicit(counter, memory_order_relaxed);
}

void
vnx_listener_stats(const vnx_listener_t *listener,
                   vnx_listener_stats_t *stats_p)
{
    const vnxi_meta_counters_t *counters = &listener->counters;
    *stats_p = (vnx_listener_stats_t){
        .accepted = get(&counters->accepted),
        .open = get(&counters->open),
        .refused = get(&counters->refused),
        .timed_out = get(&counters->timed_out),
        .evicted = get(&counters->evicted),
        .loaded = get(&counters->loaded),
        .load_failures = get(&counters->load_failures),
        .served = get(&counters->served),
        .invalidated = get(&counters->invalidated),
        .sent = get(&counters->sent),
        .send_failures = get(&counters->send_failures),
        .pending = get(&counters->pending),
    };
}
