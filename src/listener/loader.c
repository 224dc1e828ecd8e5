/*
 * Design notes.  Loading a peer may wait some seconds for a process of this
 * host that is stopped, and removing one waits for a load of the same peer.
 * So threads of the loader carry out these commands, and the loop goes on.
 *
 * The commands of a connection are carried out one after the other, in their
 * order; a connection therefore never occupies more than one thread.  They are
 * carried out even if the connection has ended meanwhile, because a peer may
 * send its last command and leave.
 *
 * While a connection has too many waiting commands, or any and there are too
 * many bytes of all, the loop stops reading from it.
 */
#include "listener/listener.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/thread.h"
#include "core/agent.h"

struct vnxi_meta_job {
    TAILQ_ENTRY(vnxi_meta_job) link; /* in lane->jobs */
    vnxi_meta_verb_t verb;
    vnxi_meta_frame_t *request; /* the SEND that it answers; owned; NULL */
    size_t len;
    unsigned char body[];
};

/* -- Carrying out ----------------------------------------------------------
 */

/* Metadata has arrived that was requested.  Check that it comes from the
 * expected agent; `peer` NULL: it was not loaded. */
static void
check_answer(vnx_listener_t *listener, const vnxi_meta_lane_t *lane,
             vnxi_meta_frame_t *request, const vnxi_peer_t *peer)
{
    if (peer != NULL && request->peer_len > 0 &&
        (request->peer_len != peer->name_len ||
         memcmp(request->peer, peer->name, peer->name_len) != 0)) {
        vnx_error_t failure;
        vnxi_error_set(
            &failure, VNX_ERR_MISMATCH, "vnx_listener_fetch",
            "expected agent '%.*s' at %s; loaded the one that answered",
            (int)request->peer_len, (const char *)request->peer,
            lane->endpoint);
        vnxi_error_peer(&failure, peer->name, peer->name_len);
        vnxi_meta_failure(listener, lane->endpoint, &failure);
    }
    vnxi_meta_sent(listener, request);
}

static void
load(vnx_listener_t *listener, const vnxi_meta_lane_t *lane,
     vnxi_meta_job_t *job)
{
    vnxi_peer_t *peer = NULL;
    vnx_error_t failure;

    vnx_status_t status =
        vnxi_peers_load(listener->agent, job->body, job->len,
                        &listener->loader.stop, &peer, &failure);
    if (status == VNX_ERR_CANCELED && atomic_load(&listener->loader.stop)) {
        return;
    }
    if (status < 0) {
        vnxi_meta_failure(listener, lane->endpoint, &failure);
        vnxi_meta_count(&listener->counters.load_failures);
    } else {
        vnxi_meta_count(&listener->counters.loaded);
    }
    if (job->request != NULL) {
        check_answer(listener, lane, job->request, peer);
        job->request = NULL;
    }
    vnxi_peer_release(peer);
}

/* Return whether the name is that of a known peer; our own name is not. */
static bool
is_peer(vnx_agent_t *agent, const void *name, size_t len)
{
    size_t own_len;
    const void *own = vnx_agent_name(agent, &own_len);
    return len > 0 && (len != own_len || memcmp(name, own, len) != 0) &&
           vnx_agent_check_peer(agent, name, len, VNX_MEM_DRAM, NULL, 0);
}

static void
invalidate(vnx_listener_t *listener, const vnxi_meta_lane_t *lane,
           const vnxi_meta_job_t *job)
{
    vnx_error_t failure;

    if (!is_peer(listener->agent, job->body, job->len)) {
        return;
    }
    vnx_status_t status =
        vnxi_peers_remove(listener->agent, job->body, job->len,
                          &listener->loader.stop, &failure);
    if (status == VNX_OK) {
        vnxi_meta_count(&listener->counters.invalidated);
    } else if (status != VNX_ERR_CANCELED) {
        vnxi_meta_failure(listener, lane->endpoint, &failure);
    }
}

/* -- Threads ---------------------------------------------------------------
 */

static size_t
job_bytes(const vnxi_meta_job_t *job)
{
    return sizeof *job + job->len;
}

/* If it has answered no request so far, that fails. */
static void
job_free(vnx_listener_t *listener, vnxi_meta_job_t *job)
{
    if (job->request != NULL) {
        vnxi_meta_unsent(listener, job->request, VNX_ERR_CLOSED,
                         VNXI_META_STOPPED);
    }
    free(job);
}

/* Remove the first job of a lane that waits, to carry it out or to drop it. */
static vnxi_meta_job_t *
take_lock_held(vnxi_meta_loader_t *loader, vnxi_meta_lane_t *lane)
{
    vnxi_meta_job_t *job = TAILQ_FIRST(&lane->jobs);

    TAILQ_REMOVE(&lane->jobs, job, link);
    TAILQ_REMOVE(&loader->waiting, lane, link);
    loader->waiting_count--;
    return job;
}

/* That job is done.  Frees the lane if nobody needs it any more. */
static void
done_lock_held(vnx_listener_t *listener, vnxi_meta_lane_t *lane,
               const vnxi_meta_job_t *job)
{
    vnxi_meta_loader_t *loader = &listener->loader;

    lane->count--;
    lane->bytes -= job_bytes(job);
    loader->bytes -= job_bytes(job);
    if (lane->is_awaited) {
        lane->is_awaited = false;
        loader->has_room = true;
        vnxi_loop_wake(&listener->loop.super);
    }
    if (lane->count > 0) {
        TAILQ_INSERT_TAIL(&loader->waiting, lane, link);
        loader->waiting_count++;
    } else if (lane->has_ended) {
        free(lane);
    }
}

static void
carry_out(vnx_listener_t *listener, const vnxi_meta_lane_t *lane,
          vnxi_meta_job_t *job)
{
    if (job->verb == VNXI_META_LOAD) {
        load(listener, lane, job);
    } else {
        invalidate(listener, lane, job);
    }
}

static void *
loader_main(void *arg)
{
    vnx_listener_t *listener = arg;
    vnxi_meta_loader_t *loader = &listener->loader;

    vnxi_mutex_lock(&listener->lock);
    while (!atomic_load(&loader->stop)) {
        vnxi_meta_lane_t *lane = TAILQ_FIRST(&loader->waiting);
        if (lane == NULL) {
            loader->idle++;
            vnxi_cond_wait(&loader->work, &listener->lock);
            loader->idle--;
            continue;
        }
        vnxi_meta_job_t *job = take_lock_held(loader, lane);
        vnxi_mutex_unlock(&listener->lock);
        carry_out(listener, lane, job);
        vnxi_mutex_lock(&listener->lock);
        done_lock_held(listener, lane, job);
        vnxi_mutex_unlock(&listener->lock);
        job_free(listener, job);
        vnxi_mutex_lock(&listener->lock);
    }
    vnxi_mutex_unlock(&listener->lock);
    return NULL;
}

/* Make sure that a thread is free for another lane, or will be.  Returns 0 or
 * an errno. */
static int
need_thread_lock_held(vnx_listener_t *listener)
{
    vnxi_meta_loader_t *loader = &listener->loader;
    pthread_t *thread = &loader->threads[loader->thread_count];

    if (loader->waiting_count < loader->idle ||
        loader->thread_count == VNXI_META_LOADERS) {
        return 0;
    }
    int ret = vnxi_thread_start(thread, loader_main, listener);
    if (ret == 0) {
        pthread_setname_np(*thread, "vnx-loader");
        loader->thread_count++;
    }
    return loader->thread_count > 0 ? 0 : ret;
}

/* -- Lanes -----------------------------------------------------------------
 */

vnxi_meta_lane_t *
vnxi_meta_lane_new(const char *endpoint)
{
    vnxi_meta_lane_t *lane = calloc(1, sizeof *lane);

    if (lane != NULL) {
        TAILQ_INIT(&lane->jobs);
        snprintf(lane->endpoint, sizeof lane->endpoint, "%s", endpoint);
    }
    return lane;
}

void
vnxi_meta_lane_end(vnx_listener_t *listener, vnxi_meta_lane_t *lane)
{
    if (lane == NULL) {
        return;
    }
    vnxi_mutex_lock(&listener->lock);
    bool is_empty = lane->count == 0;
    lane->has_ended = true;
    lane->is_awaited = false;
    vnxi_mutex_unlock(&listener->lock);
    if (is_empty) {
        free(lane);
    }
}

bool
vnxi_meta_lane_has_room(vnx_listener_t *listener, vnxi_meta_lane_t *lane)
{
    vnxi_mutex_lock(&listener->lock);
    bool has_room = lane->count == 0 ||
                    (lane->count < VNXI_META_LOADS_MAX &&
                     listener->loader.bytes < listener->options.max_frame);
    lane->is_awaited = !has_room;
    vnxi_mutex_unlock(&listener->lock);
    return has_room;
}

static int
push_lock_held(vnx_listener_t *listener, vnxi_meta_lane_t *lane,
               vnxi_meta_job_t *job)
{
    vnxi_meta_loader_t *loader = &listener->loader;

    if (lane->count == 0) {
        int ret = need_thread_lock_held(listener);
        if (ret != 0) {
            return ret;
        }
        TAILQ_INSERT_TAIL(&loader->waiting, lane, link);
        loader->waiting_count++;
        vnxi_cond_signal(&loader->work);
    }
    TAILQ_INSERT_TAIL(&lane->jobs, job, link);
    lane->count++;
    lane->bytes += job_bytes(job);
    loader->bytes += job_bytes(job);
    return 0;
}

/* A command cannot be carried out. */
static void
fail(vnx_listener_t *listener, const char *endpoint, vnxi_meta_verb_t verb,
     vnxi_meta_frame_t *request, vnx_status_t status, const char *cause)
{
    vnx_error_t failure;

    vnxi_error_set(&failure, status, "vnx_listener_start",
                   "a command was not carried out: %s", cause);
    vnxi_meta_failure(listener, endpoint, &failure);
    if (verb == VNXI_META_LOAD) {
        vnxi_meta_count(&listener->counters.load_failures);
    }
    if (request != NULL) {
        vnxi_meta_unsent(listener, request, status, cause);
    }
}

void
vnxi_meta_lane_push(vnx_listener_t *listener, vnxi_meta_lane_t *lane,
                    const vnxi_meta_command_t *command,
                    vnxi_meta_frame_t *request)
{
    vnxi_meta_job_t *job = malloc(sizeof *job + command->len);

    if (job == NULL) {
        fail(listener, lane->endpoint, command->verb, request,
             VNX_ERR_NO_MEMORY, "out of memory");
        return;
    }
    *job = (vnxi_meta_job_t){.verb = command->verb, .len = command->len};
    if (command->len > 0) {
        memcpy(job->body, command->body, command->len);
    }
    vnxi_mutex_lock(&listener->lock);
    int ret = push_lock_held(listener, lane, job);
    job->request = ret == 0 ? request : NULL;
    vnxi_mutex_unlock(&listener->lock);
    if (ret != 0) {
        fail(listener, lane->endpoint, command->verb, request, VNX_ERR_BACKEND,
             vnxi_errno(ret));
        free(job);
    }
}

uint64_t
vnxi_meta_lane_bytes(vnx_listener_t *listener, const vnxi_meta_lane_t *lane)
{
    vnxi_mutex_lock(&listener->lock);
    uint64_t bytes = lane->bytes;
    vnxi_mutex_unlock(&listener->lock);
    return bytes;
}

uint64_t
vnxi_meta_loader_bytes(vnx_listener_t *listener)
{
    vnxi_mutex_lock(&listener->lock);
    uint64_t bytes = listener->loader.bytes;
    vnxi_mutex_unlock(&listener->lock);
    return bytes;
}

static vnxi_meta_lane_t *
largest_ended_lock_held(const vnxi_meta_loader_t *loader)
{
    vnxi_meta_lane_t *lane, *largest = NULL;

    TAILQ_FOREACH(lane, &loader->waiting, link)
    {
        if (lane->has_ended &&
            (largest == NULL || lane->bytes > largest->bytes)) {
            largest = lane;
        }
    }
    return largest;
}

bool
vnxi_meta_loader_drop(vnx_listener_t *listener, uint64_t bytes)
{
    vnxi_meta_loader_t *loader = &listener->loader;
    char endpoint[VNXI_META_ENDPOINT];
    vnxi_meta_job_t *job = NULL;

    vnxi_mutex_lock(&listener->lock);
    vnxi_meta_lane_t *lane = largest_ended_lock_held(loader);
    if (lane != NULL && lane->bytes >= bytes) {
        memcpy(endpoint, lane->endpoint, sizeof endpoint);
        job = take_lock_held(loader, lane);
        done_lock_held(listener, lane, job);
    }
    vnxi_mutex_unlock(&listener->lock);
    if (job == NULL) {
        return false;
    }
    fail(listener, endpoint, job->verb, job->request, VNX_ERR_BACKEND,
         VNXI_META_FULL);
    free(job);
    return true;
}

/* -- Life ------------------------------------------------------------------
 */

void
vnxi_meta_loader_init(vnxi_meta_loader_t *loader)
{
    TAILQ_INIT(&loader->waiting);
    vnxi_cond_init(&loader->work);
}

void
vnxi_meta_loader_stop(vnx_listener_t *listener)
{
    vnxi_mutex_lock(&listener->lock);
    atomic_store(&listener->loader.stop, true);
    vnxi_cond_broadcast(&listener->loader.work);
    vnxi_mutex_unlock(&listener->lock);
}

/* The loop has ended, so no more threads are started. */
void
vnxi_meta_loader_join(vnx_listener_t *listener)
{
    vnxi_meta_loader_t *loader = &listener->loader;
    vnxi_meta_lane_t *lane;

    for (unsigned i = 0; i < loader->thread_count; i++) {
        pthread_join(loader->threads[i], NULL);
    }
    loader->thread_count = 0;
    vnxi_mutex_lock(&listener->lock);
    while ((lane = TAILQ_FIRST(&loader->waiting)) != NULL) {
        vnxi_meta_job_t *job = take_lock_held(loader, lane);
        done_lock_held(listener, lane, job);
        vnxi_mutex_unlock(&listener->lock);
        job_free(listener, job);
        vnxi_mutex_lock(&listener->lock);
    }
    vnxi_mutex_unlock(&listener->lock);
}

void
vnxi_meta_loader_fini(vnxi_meta_loader_t *loader)
{
    vnxi_cond_destroy(&loader->work);
}
