/*
 * Design notes.  Callers leave their requests under the lock and wake the
 * thread.
 *
 * When the thread is told to end, it still sends the commands of callers,
 * within a time limit: a program that invalidates its metadata and then closes
 * the agent relies on that.
 */
#include "listener/listener.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/fork.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/params.h"
#include "core/agent.h"

#define OPERATION "vnx_listener_start"
#define CONNECTIONS_MAX 1024
#define FRAME_MIN 4096

/* -- The thread ----------------------------------------------------------- */

/* Without `refused`: a peer waits until there is a descriptor for it. */
static const vnxi_acceptor_ops_t acceptor_ops = {
    .accept = vnxi_meta_conn_accept,
    .evict = vnxi_meta_conn_evict,
};

static void
listen_on(vnx_listener_t *listener, const vnxi_sockets_t *sockets)
{
    vnxi_meta_loop_t *loop = &listener->loop;

    if (!vnxi_acceptor_open(&loop->acceptor, &loop->super, sockets,
                            &acceptor_ops)) {
        vnxi_log(VNX_LOG_ERROR, vnxi_meta_agent(listener),
                 "metadata listener: port %d: out of memory", sockets->port);
    }
}

static void
end(vnxi_meta_loop_t *loop)
{
    struct timeval tv = {.tv_sec = VNXI_META_LINGER_MS / 1000,
                         .tv_usec = VNXI_META_LINGER_MS % 1000 * 1000};

    loop->is_ending = true;
    vnxi_acceptor_close(&loop->acceptor);
    event_base_loopexit(loop->super.base, &tv);
    vnxi_meta_check_end(loop);
}

static void
on_wake(void *arg)
{
    vnx_listener_t *listener = arg;
    struct vnxi_meta_frames frames = TAILQ_HEAD_INITIALIZER(frames);
    vnxi_meta_frame_t *frame;

    vnxi_mutex_lock(&listener->lock);
    TAILQ_CONCAT(&frames, &listener->inbox, link);
    vnxi_sockets_t sockets = listener->new_sockets;
    listener->new_sockets.count = 0;
    bool is_stopping = listener->is_stopping;
    bool has_room = listener->loader.has_room;
    listener->loader.has_room = false;
    vnxi_mutex_unlock(&listener->lock);

    if (has_room) {
        vnxi_meta_resume(listener);
    }
    if (sockets.count > 0) {
        listen_on(listener, &sockets);
    }
    while ((frame = TAILQ_FIRST(&frames)) != NULL) {
        TAILQ_REMOVE(&frames, frame, link);
        vnxi_meta_send(listener, frame);
    }
    if (is_stopping && !listener->loop.is_ending) {
        end(&listener->loop);
    }
}

static bool
create_events(vnx_listener_t *listener)
{
    vnxi_meta_loop_t *loop = &listener->loop;

    loop->perform = vnxi_meta_perform;
    TAILQ_INIT(&loop->strangers);
    TAILQ_INIT(&loop->known);
    TAILQ_INIT(&loop->targets);
    if (!vnxi_loop_init(&loop->super, on_wake, listener)) {
        return false;
    }
    loop->timeout =
        vnxi_loop_timeout(&loop->super, listener->options.timeout_ms);
    return loop->timeout != NULL;
}

static void
free_all(struct vnxi_meta_conns *conns)
{
    vnxi_meta_conn_t *conn;
    while ((conn = TAILQ_FIRST(conns)) != NULL) {
        vnxi_meta_conn_free(conn);
    }
}

/* Free the data of the loop.  No thread runs it. */
static void
loop_fini(vnx_listener_t *listener)
{
    vnxi_meta_loop_t *loop = &listener->loop;

    free_all(&loop->strangers);
    free_all(&loop->known);
    free_all(&loop->targets);
    vnxi_acceptor_close(&loop->acceptor);
    vnxi_loop_fini(&loop->super);
    memset(loop, 0, sizeof *loop);
}

/* Create the loop and start the thread.  The lock is held. */
static vnx_status_t
loop_start(vnx_listener_t *listener, const char *operation, vnx_error_t *error)
{
    const char *what = "creating the event loop";
    int err = 0;

    if (create_events(listener)) {
        what = "starting the thread";
        err = vnxi_loop_start(&listener->loop.super, "vnx-listener");
        if (err == 0) {
            return VNX_OK;
        }
    } else {
        err = errno;
    }
    loop_fini(listener);
    return vnxi_error_set(error, VNX_ERR_BACKEND, operation,
                          "metadata listener: %s: %s", what, vnxi_errno(err));
}

/* -- Life ----------------------------------------------------------------- */

static vnx_status_t
options_read(const vnx_listener_options_t *given,
             vnx_listener_options_t *out_p, vnx_error_t *error)
{
    vnx_listener_options_t all = {0};

    if (given != NULL) {
        vnx_status_t status = vnxi_params_read(
            OPERATION, "options", given, given->size, &all, sizeof all, error);
        if (status != VNX_OK) {
            return status;
        }
    }
    all.size = sizeof all;
    if (all.max_frame == 0) {
        all.max_frame = VNX_LISTENER_MAX_FRAME;
    }
    if (all.max_frame < FRAME_MIN ||
        all.max_frame > VNX_LISTENER_MAX_FRAME_LIMIT) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, OPERATION,
                              "max_frame %" PRIu64 " is not in %d to %u",
                              all.max_frame, FRAME_MIN,
                              VNX_LISTENER_MAX_FRAME_LIMIT);
    }
    if (all.max_connections == 0) {
        all.max_connections = vnxi_acceptor_connections(4, CONNECTIONS_MAX);
    }
    if (all.timeout_ms == 0) {
        all.timeout_ms = VNX_LISTENER_TIMEOUT_MS;
    }
    *out_p = all;
    return VNX_OK;
}

vnx_status_t
vnx_listener_create(vnx_agent_t *agent, const vnx_listener_options_t *options,
                    vnx_listener_t **out_p, vnx_error_t *error)
{
    vnx_listener_options_t all;
    vnx_status_t status = options_read(options, &all, error);
    if (status != VNX_OK) {
        return status;
    }
    vnx_listener_t *listener = calloc(1, sizeof *listener);
    if (listener == NULL) {
        return vnxi_error_no_memory(error, OPERATION, sizeof *listener);
    }
    listener->agent = vnx_agent_retain(agent);
    listener->options = all;
    listener->forks = vnxi_fork_count();
    vnxi_mutex_init(&listener->lock, VNXI_RANK_LISTENER);
    vnxi_mutex_init(&listener->stop_lock, VNXI_RANK_LISTENER_STOP);
    TAILQ_INIT(&listener->inbox);
    vnxi_meta_loader_init(&listener->loader);
    *out_p = listener;
    return VNX_OK;
}

/* In a child the locks may be held forever and the loop's memory may be in any
 * state. */
static bool
is_parents(const vnx_listener_t *listener)
{
    return vnxi_fork_crossed(listener->forks);
}

void
vnx_listener_stop(vnx_listener_t *listener)
{
    if (is_parents(listener)) {
        return;
    }
    vnxi_mutex_lock(&listener->stop_lock);
    vnxi_mutex_lock(&listener->lock);
    bool was_running = listener->is_running;
    listener->is_stopping = true;
    listener->is_running = false;
    atomic_store(&listener->port, 0);
    if (was_running) {
        vnxi_loop_wake(&listener->loop.super);
    }
    vnxi_mutex_unlock(&listener->lock);
    vnxi_meta_loader_stop(listener);
    if (was_running) {
        listener->is_lost = !vnxi_loop_join(&listener->loop.super);
        vnxi_meta_loader_join(listener);
        if (!listener->is_lost) {
            loop_fini(listener);
        }
    }
    vnxi_mutex_unlock(&listener->stop_lock);
}

void
vnx_listener_free(vnx_listener_t *listener)
{
    if (listener == NULL || is_parents(listener)) {
        return;
    }
    vnx_listener_stop(listener);
    if (listener->is_lost) {
        /* The thread may wake up for a timer.  Leave everything to it; it will
         * find the agent closed. */
        vnx_agent_close(listener->agent);
        return;
    }
    vnxi_meta_loader_fini(&listener->loader);
    vnxi_mutex_destroy(&listener->stop_lock);
    vnxi_mutex_destroy(&listener->lock);
    vnx_agent_release(listener->agent);
    free(listener);
}

int
vnx_listener_port(const vnx_listener_t *listener)
{
    return is_parents(listener) ? 0 : atomic_load(&listener->port);
}

bool
vnx_listener_failure(vnx_listener_t *listener, vnx_error_t *failure_p)
{
    if (is_parents(listener)) {
        return false;
    }
    vnxi_mutex_lock(&listener->lock);
    bool has_failure = listener->has_failure;
    if (has_failure) {
        *failure_p = listener->failure;
    }
    vnxi_mutex_unlock(&listener->lock);
    return has_failure;
}

static vnx_status_t
refuse_parents(const char *operation, vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_NOT_ALLOWED, operation,
                          "the metadata listener was created before a fork; "
                          "create one in this process");
}

/* Make sure that the thread is running.  The lock is held. */
static vnx_status_t
run_lock_held(vnx_listener_t *listener, const char *operation,
              vnx_error_t *error)
{
    if (listener->is_stopping) {
        return vnxi_error_set(error, VNX_ERR_CLOSED, operation,
                              "the metadata listener was stopped");
    }
    if (listener->is_running) {
        return VNX_OK;
    }
    vnx_status_t status = loop_start(listener, operation, error);
    listener->is_running = status == VNX_OK;
    return status;
}

/* -- Listening ------------------------------------------------------------ */

static vnx_status_t
check_idle(const vnx_listener_t *listener, vnx_error_t *error)
{
    return atomic_load(&listener->port) == 0
               ? VNX_OK
               : vnxi_error_set(error, VNX_ERR_NOT_ALLOWED, OPERATION,
                                "the listener is already running");
}

/* Hand the sockets to the thread. */
static vnx_status_t
listen_lock_held(vnx_listener_t *listener, const vnxi_sockets_t *sockets,
                 vnx_error_t *error)
{
    vnx_status_t status = check_idle(listener, error);
    if (status == VNX_OK) {
        status = run_lock_held(listener, OPERATION, error);
    }
    if (status == VNX_OK) {
        listener->new_sockets = *sockets;
        atomic_store(&listener->port, sockets->port);
        vnxi_loop_wake(&listener->loop.super);
    }
    return status;
}

vnx_status_t
vnx_listener_start(vnx_listener_t *listener, const char *host, int port,
                   int *port_p, vnx_error_t *error)
{
    vnxi_bind_params_t params = {
        .operation = OPERATION,
        .host = host != NULL && host[0] != '\0' ? host : NULL,
        .port = port,
    };
    vnxi_sockets_t sockets;

    if (is_parents(listener)) {
        return refuse_parents(OPERATION, error);
    }
    if (port < 0 || port > 65535) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, OPERATION,
                              "port %d is not in 0 to 65535", port);
    }
    vnx_status_t status = check_idle(listener, error);
    if (status == VNX_OK) {
        status = vnxi_sockets_open(&params, &sockets, error);
    }
    if (status != VNX_OK) {
        return status;
    }
    int bound = sockets.port;
    vnxi_mutex_lock(&listener->lock);
    status = listen_lock_held(listener, &sockets, error);
    vnxi_mutex_unlock(&listener->lock);
    if (status != VNX_OK) {
        vnxi_sockets_close(&sockets);
        return status;
    }
    vnxi_log(VNX_LOG_INFO, vnxi_meta_agent(listener),
             "metadata listener: listening on port %d", bound);
    if (port_p != NULL) {
        *port_p = bound;
    }
    return VNX_OK;
}

/* -- Commands ------------------------------------------------------------- */

static vnx_status_t
check(const vnx_listener_t *listener, const vnxi_meta_message_t *given,
      vnx_error_t *error)
{
    const char *operation = vnxi_meta_operation(given->verb);

    if (is_parents(listener)) {
        return refuse_parents(operation, error);
    }
    if (!vnxi_agent_usable(listener->agent)) {
        return vnxi_agent_refuse(listener->agent, operation, error);
    }
    if (given->host == NULL || given->host[0] == '\0') {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation,
                              "no host");
    }
    if (given->port < 1 || given->port > 65535) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation,
                              "port %d is not in 1 to 65535", given->port);
    }
    return VNX_OK;
}

/* Takes over the frame on success.  The lock is held. */
static vnx_status_t
submit_lock_held(vnx_listener_t *listener, vnxi_meta_frame_t *frame,
                 const char *operation, vnx_error_t *error)
{
    vnxi_meta_counters_t *counters = &listener->counters;
    uint64_t count = atomic_load(&counters->pending);
    uint64_t bytes = atomic_load(&counters->pending_bytes);

    if (count >= VNXI_META_PENDING_MAX ||
        bytes + frame->len > 2 * listener->options.max_frame) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, operation,
                              "%" PRIu64 " commands of %" PRIu64
                              " bytes are already waiting",
                              count, bytes);
    }
    vnx_status_t status = run_lock_held(listener, operation, error);
    if (status == VNX_OK) {
        atomic_fetch_add(&counters->pending, 1);
        atomic_fetch_add(&counters->pending_bytes, frame->len);
        TAILQ_INSERT_TAIL(&listener->inbox, frame, link);
        vnxi_loop_wake(&listener->loop.super);
    }
    return status;
}

static vnx_status_t
submit(vnx_listener_t *listener, const vnxi_meta_message_t *given,
       vnx_error_t *error)
{
    const char *operation = vnxi_meta_operation(given->verb);

    vnxi_meta_frame_t *frame = NULL;
    vnx_status_t status = vnxi_meta_frame_new(listener, given, &frame, error);
    if (status != VNX_OK) {
        return status;
    }
    vnxi_mutex_lock(&listener->lock);
    status = submit_lock_held(listener, frame, operation, error);
    vnxi_mutex_unlock(&listener->lock);
    if (status != VNX_OK) {
        free(frame);
    }
    return status;
}

vnx_status_t
vnx_listener_send(vnx_listener_t *listener, const char *host, int port,
                  const void *metadata, size_t length, vnx_error_t *error)
{
    vnx_bytes_t whole = {0};
    vnxi_meta_message_t given = {.verb = VNXI_META_LOAD,
                                 .host = host,
                                 .port = port,
                                 .body = metadata,
                                 .body_len = length};

    vnx_status_t status = check(listener, &given, error);
    if (status == VNX_OK && metadata == NULL) {
        status = vnx_agent_metadata(listener->agent, &whole, error);
        given.body = whole.data;
        given.body_len = whole.len;
    }
    if (status == VNX_OK) {
        status = submit(listener, &given, error);
    }
    free(whole.data);
    return status;
}

vnx_status_t
vnx_listener_fetch(vnx_listener_t *listener, const char *host, int port,
                   const void *peer, size_t peer_len, vnx_error_t *error)
{
    vnxi_meta_message_t given = {.verb = VNXI_META_SEND,
                                 .host = host,
                                 .port = port,
                                 .peer = peer,
                                 .peer_len = peer != NULL ? peer_len : 0};

    vnx_status_t status = check(listener, &given, error);
    return status != VNX_OK ? status : submit(listener, &given, error);
}

vnx_status_t
vnx_listener_invalidate(vnx_listener_t *listener, const char *host, int port,
                        vnx_error_t *error)
{
    vnxi_meta_message_t given = {
        .verb = VNXI_META_INVL, .host = host, .port = port};

    given.body = vnx_agent_name(listener->agent, &given.body_len);
    vnx_status_t status = check(listener, &given, error);
    return status != VNX_OK ? status : submit(listener, &given, error);
}
