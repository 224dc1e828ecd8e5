/*
 * Design notes.  Loading a peer may wait some seconds for a process of this
 * host that is stopped, and removing one waits for a load of the same peer.
 * So threads of the loader carry out these commands, and the loop goes on.
 *
 * The commands that concern one peer are carried out one after the other, in
 * the order in which they arrived, over whichever connections: an agent that
 * restarts withdraws its old metadata over one connection and sends the new
 * one over another.  Commands are carried out even if their connection has
 * ended meanwhile, because a peer may send its last command and leave.
 *
 * While a connection has too many waiting commands, or any and there are too
 * many bytes of all, the loop stops reading from it.
 */
#include "listener/listener.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/thread.h"
#include "core/agent.h"

struct vnxi_meta_job {
    TAILQ_ENTRY(vnxi_meta_job) link; /* in loader.waiting or .running */
    vnxi_meta_source_t *source;
    vnxi_peer_md_t peer;        /* borrows `body`; parsed NULL: an INVL */
    vnxi_meta_frame_t *request; /* the SEND that it answers; owned; NULL */
    size_t len;
    unsigned char body[];
};

/* -- Carrying out ----------------------------------------------------------
 */

/* Metadata has arrived that was requested.  Check that it comes from the
 * expected agent; `peer` NULL: it was not loaded. */
static void
check_answer(vnx_listener_t *listener, const char *endpoint,
             vnxi_meta_frame_t *request, const vnxi_peer_t *peer)
{
    if (peer != NULL && request->peer_len > 0 &&
        (request->peer_len != peer->name_len ||
         memcmp(request->peer, peer->name, peer->name_len) != 0)) {
        vnx_error_t failure;
        vnxi_error_set(
            &failure, VNX_ERR_MISMATCH, "vnx_listener_fetch",
            "expected agent '%.*s' at %s; loaded the one that answered",
            (int)request->peer_len, (const char *)request->peer, endpoint);
        vnxi_error_peer(&failure, peer->name, peer->name_len);
        vnxi_meta_failure(listener, endpoint, &failure);
    }
    vnxi_meta_sent(listener, request);
}

/* Report what has come of metadata. */
static void
report(vnx_listener_t *listener, const char *endpoint, vnx_status_t status,
       vnx_error_t *failure)
{
    if (status < 0) {
        vnxi_meta_failure(listener, endpoint, failure);
        vnxi_meta_count(&listener->counters.load_failures);
    } else {
        vnxi_meta_count(&listener->counters.loaded);
    }
}

static void
load(vnx_listener_t *listener, vnxi_meta_job_t *job)
{
    const char *endpoint = job->source->endpoint;
    vnxi_peer_t *peer = NULL;
    vnx_error_t failure;

    vnx_status_t status = vnxi_peer_md_load(
        listener->agent, &job->peer, &listener->loader.stop, &peer, &failure);
    if (status == VNX_ERR_CANCELED && atomic_load(&listener->loader.stop)) {
        return;
    }
    report(listener, endpoint, status, &failure);
    if (job->request != NULL) {
        check_answer(listener, endpoint, job->request, peer);
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
invalidate(vnx_listener_t *listener, const vnxi_meta_job_t *job)
{
    vnx_error_t failure;

    if (!is_peer(listener->agent, job->peer.name, job->peer.name_len)) {
        return;
    }
    vnx_status_t status =
        vnxi_peers_remove(listener->agent, job->peer.name, job->peer.name_len,
                          &listener->loader.stop, &failure);
    if (status == VNX_OK) {
        vnxi_meta_count(&listener->counters.invalidated);
    } else if (status != VNX_ERR_CANCELED) {
        vnxi_meta_failure(listener, job->source->endpoint, &failure);
    }
}

/* -- Jobs ------------------------------------------------------------------
 */

static size_t
job_bytes(const vnxi_meta_job_t *job)
{
    return sizeof *job + job->len;
}

/* NULL: out of memory. */
static vnxi_meta_job_t *
job_new(vnxi_meta_source_t *source, const vnxi_meta_command_t *command)
{
    vnxi_meta_job_t *job = malloc(sizeof *job + command->len);

    if (job == NULL) {
        return NULL;
    }
    *job = (vnxi_meta_job_t){
        .source = source,
        .peer = {.name = job->body, .name_len = command->len},
        .len = command->len};
    if (command->len > 0) {
        memcpy(job->body, command->body, command->len);
    }
    return job;
}

/* If it has answered no request so far, that fails. */
static void
job_free(vnx_listener_t *listener, vnxi_meta_job_t *job)
{
    if (job->request != NULL) {
        vnxi_meta_unsent(listener, job->request, VNX_ERR_CLOSED,
                         VNXI_META_STOPPED);
    }
    vnxi_peer_md_free(listener->agent, &job->peer);
    free(job);
}

static bool
is_running_lock_held(const vnxi_meta_loader_t *loader,
                     const vnxi_peer_md_t *peer)
{
    const vnxi_meta_job_t *job;
    TAILQ_FOREACH(job, &loader->running, link)
    {
        if (job->peer.name_len == peer->name_len &&
            memcmp(job->peer.name, peer->name, peer->name_len) == 0) {
            return true;
        }
    }
    return false;
}

/* Remove the oldest job whose peer no thread is busy with.  NULL: none. */
static vnxi_meta_job_t *
take_lock_held(vnxi_meta_loader_t *loader)
{
    vnxi_meta_job_t *job;
    TAILQ_FOREACH(job, &loader->waiting, link)
    {
        if (!is_running_lock_held(loader, &job->peer)) {
            TAILQ_REMOVE(&loader->waiting, job, link);
            loader->waiting_count--;
            break;
        }
    }
    return job;
}

/* The job is in no list any more.  Frees its source if nobody needs it. */
static void
done_lock_held(vnx_listener_t *listener, vnxi_meta_job_t *job)
{
    vnxi_meta_loader_t *loader = &listener->loader;
    vnxi_meta_source_t *source = job->source;

    loader->bytes -= job_bytes(job);
    source->bytes -= job_bytes(job);
    source->count--;
    if (source->is_awaited) {
        source->is_awaited = false;
        loader->has_room = true;
        vnxi_loop_wake(&listener->loop.super);
    }
    if (source->count == 0 && source->has_ended) {
        free(source);
    }
}

/* -- Threads ---------------------------------------------------------------
 */

/* The lock is held before and after, but not meanwhile. */
static void
carry_out(vnx_listener_t *listener, vnxi_meta_job_t *job)
{
    vnxi_meta_loader_t *loader = &listener->loader;

    TAILQ_INSERT_TAIL(&loader->running, job, link);
    vnxi_mutex_unlock(&listener->lock);
    if (job->peer.parsed != NULL) {
        load(listener, job);
    } else {
        invalidate(listener, job);
    }
    vnxi_mutex_lock(&listener->lock);
    TAILQ_REMOVE(&loader->running, job, link);
    done_lock_held(listener, job);
    vnxi_mutex_unlock(&listener->lock);
    job_free(listener, job);
    vnxi_mutex_lock(&listener->lock);
}

static void *
loader_main(void *arg)
{
    vnx_listener_t *listener = arg;
    vnxi_meta_loader_t *loader = &listener->loader;

    vnxi_mutex_lock(&listener->lock);
    while (!atomic_load(&loader->stop)) {
        vnxi_meta_job_t *job = take_lock_held(loader);
        if (job != NULL) {
            carry_out(listener, job);
        } else {
            loader->idle++;
            vnxi_cond_wait(&loader->work, &listener->lock);
            loader->idle--;
        }
    }
    vnxi_mutex_unlock(&listener->lock);
    return NULL;
}

/* Make sure that a thread is free for another job, or will be.  Returns 0 or
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

/* -- Sources ---------------------------------------------------------------
 */

vnxi_meta_source_t *
vnxi_meta_source_new(const char *endpoint)
{
    vnxi_meta_source_t *source = calloc(1, sizeof *source);

    if (source != NULL) {
        snprintf(source->endpoint, sizeof source->endpoint, "%s", endpoint);
    }
    return source;
}

void
vnxi_meta_source_end(vnx_listener_t *listener, vnxi_meta_source_t *source)
{
    if (source == NULL) {
        return;
    }
    vnxi_mutex_lock(&listener->lock);
    bool is_unused = source->count == 0;
    source->has_ended = true;
    source->is_awaited = false;
    vnxi_mutex_unlock(&listener->lock);
    if (is_unused) {
        free(source);
    }
}

bool
vnxi_meta_source_has_room(vnx_listener_t *listener, vnxi_meta_source_t *source)
{
    vnxi_mutex_lock(&listener->lock);
    bool has_room = source->count == 0 ||
                    (source->count < VNXI_META_LOADS_MAX &&
                     listener->loader.bytes < listener->options.max_frame);
    source->is_awaited = !has_room;
    vnxi_mutex_unlock(&listener->lock);
    return has_room;
}

/* Returns 0 or an errno. */
static int
push(vnx_listener_t *listener, vnxi_meta_job_t *job)
{
    vnxi_meta_loader_t *loader = &listener->loader;

    vnxi_mutex_lock(&listener->lock);
    int ret = need_thread_lock_held(listener);
    if (ret == 0) {
        TAILQ_INSERT_TAIL(&loader->waiting, job, link);
        loader->waiting_count++;
        loader->bytes += job_bytes(job);
        job->source->bytes += job_bytes(job);
        job->source->count++;
        vnxi_cond_signal(&loader->work);
    }
    vnxi_mutex_unlock(&listener->lock);
    return ret;
}

/* A command is not carried out for this reason. */
static void
refuse(vnx_listener_t *listener, const char *endpoint, vnx_status_t status,
       const char *cause)
{
    vnx_error_t failure;

    vnxi_error_set(&failure, status, "vnx_listener_start",
                   "a command was not carried out: %s", cause);
    vnxi_meta_failure(listener, endpoint, &failure);
}

/* Queue a job, or report why it cannot be queued and return false.  NULL:
 * allocating it has failed. */
static bool
submit(vnx_listener_t *listener, const vnxi_meta_source_t *source,
       vnxi_meta_job_t *job)
{
    int err = job != NULL ? push(listener, job) : ENOMEM;

    if (err == 0) {
        return true;
    }
    refuse(listener, source->endpoint,
           err == ENOMEM ? VNX_ERR_NO_MEMORY : VNX_ERR_BACKEND,
           vnxi_errno(err));
    if (job != NULL) {
        vnxi_peer_md_free(listener->agent, &job->peer);
        free(job);
    }
    return false;
}

void
vnxi_meta_source_invalidate(vnx_listener_t *listener,
                            vnxi_meta_source_t *source,
                            const vnxi_meta_command_t *command)
{
    submit(listener, source, job_new(source, command));
}

/* Metadata that cannot be parsed needs no thread. */
void
vnxi_meta_source_load(vnx_listener_t *listener, vnxi_meta_source_t *source,
                      const vnxi_meta_command_t *command,
                      vnxi_meta_frame_t *request)
{
    vnxi_meta_job_t *job = job_new(source, command);
    vnx_error_t failure;

    if (job != NULL) {
        vnx_status_t status = vnxi_peer_md_parse(
            listener->agent, job->body, job->len, &job->peer, &failure);
        if (status != VNX_OK) {
            report(listener, source->endpoint, status, &failure);
            if (request != NULL) {
                check_answer(listener, source->endpoint, request, NULL);
            }
            free(job);
            return;
        }
        job->request = request;
    }
    if (!submit(listener, source, job)) {
        vnxi_meta_count(&listener->counters.load_failures);
        if (request != NULL) {
            check_answer(listener, source->endpoint, request, NULL);
        }
    }
}

uint64_t
vnxi_meta_source_bytes(vnx_listener_t *listener,
                       const vnxi_meta_source_t *source)
{
    vnxi_mutex_lock(&listener->lock);
    uint64_t bytes = source->bytes;
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

/* The oldest job of the connection that has ended and has most bytes. */
static vnxi_meta_job_t *
largest_ended_lock_held(const vnxi_meta_loader_t *loader)
{
    vnxi_meta_job_t *job, *largest = NULL;

    TAILQ_FOREACH(job, &loader->waiting, link)
    {
        if (job->source->has_ended &&
            (largest == NULL || job->source->bytes > largest->source->bytes)) {
            largest = job;
        }
    }
    return largest;
}

bool
vnxi_meta_loader_drop(vnx_listener_t *listener, uint64_t bytes)
{
    vnxi_meta_loader_t *loader = &listener->loader;
    char endpoint[VNXI_META_ENDPOINT];

    vnxi_mutex_lock(&listener->lock);
    vnxi_meta_job_t *job = largest_ended_lock_held(loader);
    if (job != NULL && job->source->bytes < bytes) {
        job = NULL;
    }
    if (job != NULL) {
        memcpy(endpoint, job->source->endpoint, sizeof endpoint);
        TAILQ_REMOVE(&loader->waiting, job, link);
        loader->waiting_count--;
        done_lock_held(listener, job);
    }
    vnxi_mutex_unlock(&listener->lock);
    if (job == NULL) {
        return false;
    }
    refuse(listener, endpoint, VNX_ERR_BACKEND, VNXI_META_FULL);
    if (job->peer.parsed != NULL) {
        vnxi_meta_count(&listener->counters.load_failures);
    }
    job_free(listener, job);
    return true;
}

/* -- Life ------------------------------------------------------------------
 */

void
vnxi_meta_loader_init(vnxi_meta_loader_t *loader)
{
    TAILQ_INIT(&loader->waiting);
    TAILQ_INIT(&loader->running);
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
    vnxi_meta_job_t *job;

    for (unsigned i = 0; i < loader->thread_count; i++) {
        pthread_join(loader->threads[i], NULL);
    }
    loader->thread_count = 0;
    vnxi_mutex_lock(&listener->lock);
    while ((job = take_lock_held(loader)) != NULL) {
        done_lock_held(listener, job);
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
