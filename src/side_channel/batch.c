/*
 * Design notes.  One epoll set for all exchanges of a batch (none where it is
 * just one that is waited for).  Registrations are one-shot and set anew after
 * each step: a descriptor that a transport closed, and that lives on in a
 * forked child, can be heard of once at most, and a step for no reason does no
 * harm.
 *
 * A job (job.c) whose peer is not there rests, and is begun anew when its time
 * has come.  `next_wake` is the earliest time at which any job
 * has to be looked at, or earlier: all are looked at only once it is past.
 *
 * As many jobs are begun as half of the file descriptors that the process may
 * have; the rest waits for its turn, while its time runs.  A few are begun in
 * each round: those that are answered at once make room, and what they held is
 * still in the processor's caches when the next are begun.
 */
#include "side_channel/job.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/error.h"

#define EVENTS 64
#define ROUNDS_MAX 64 /* in one call; others have work too */
#define BEGIN_MAX 32  /* in one round */
#define WINDOW_MAX 8192
#define TIMER UINT32_MAX /* as the index of an event */
#define MS UINT64_C(1000000)

/* -- Making --------------------------------------------------------------- */

static size_t
window_size(const vnxi_transport_t *transport)
{
    size_t each = transport->fds > 0 ? transport->fds : 1, most;
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) != 0 ||
        limit.rlim_cur / 2 / each >= WINDOW_MAX) {
        return WINDOW_MAX;
    }
    most = (size_t)limit.rlim_cur / 2 / each;
    return most > 0 ? most : 1;
}

static vnxi_batch_t *
batch_new(const vnxi_transport_t *transport, size_t count)
{
    if (count > (SIZE_MAX - sizeof(vnxi_batch_t)) / sizeof(vnxi_job_t)) {
        return NULL;
    }
    vnxi_batch_t *batch =
        calloc(1, sizeof *batch + count * sizeof(vnxi_job_t));
    if (batch != NULL) {
        batch->transport = transport;
        batch->count = batch->open = count;
        batch->window = window_size(transport);
        batch->epoll_fd = batch->timer_fd = -1;
    }
    return batch;
}

static vnx_status_t
set_make(vnxi_batch_t *batch, vnx_error_t *error)
{
    batch->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    return batch->epoll_fd >= 0
               ? VNX_OK
               : vnxi_error_set(error, VNX_ERR_BACKEND, VNXI_OP_REQUEST,
                                "epoll_create1: %s", vnxi_errno(errno));
}

vnx_status_t
vnxi_batch_create(const vnxi_transport_t *transport,
                  const vnx_side_channel_options_t *options,
                  const vnx_side_channel_request_params_t *params,
                  size_t count, vnxi_batch_t **out_p, vnx_error_t *error)
{
    uint64_t now = vnxi_clock_ns();
    vnxi_batch_t *batch = batch_new(transport, count);

    if (batch == NULL) {
        return vnxi_error_no_memory(error, VNXI_OP_REQUEST,
                                    count * sizeof(vnxi_job_t));
    }
    if (count > 1) {
        vnx_status_t status = set_make(batch, error);
        if (status != VNX_OK) {
            vnxi_batch_free(batch);
            return status;
        }
    }
    for (size_t i = 0; i < count; i++) {
        if (!vnxi_job_init(&batch->jobs[i], &params[i], options, now)) {
            vnxi_batch_free(batch);
            return vnxi_error_no_memory(error, VNXI_OP_REQUEST,
                                        VNX_ERROR_PEER_MAX);
        }
    }
    *out_p = batch;
    return VNX_OK;
}

void
vnxi_batch_free(vnxi_batch_t *batch)
{
    if (batch == NULL) {
        return;
    }
    for (size_t i = 0; i < batch->count; i++) {
        vnxi_job_t *job = &batch->jobs[i];
        if (job->exchange != NULL) {
            batch->transport->end(job->exchange);
        }
        free(job->answer.metadata);
        free(job->text);
    }
    if (batch->timer_fd >= 0) {
        close(batch->timer_fd);
    }
    if (batch->epoll_fd >= 0) {
        close(batch->epoll_fd);
    }
    free(batch);
}

/* -- All of them ---------------------------------------------------------- */

/* Is there one whose turn has come? */
static bool
has_next(const vnxi_batch_t *batch)
{
    return batch->open > 0 && batch->begun < batch->count &&
           batch->trying < batch->window;
}

static void
begin_some(vnxi_batch_t *batch)
{
    for (int i = 0; i < BEGIN_MAX && has_next(batch); i++) {
        vnxi_job_t *job = &batch->jobs[batch->begun++];
        if (job->state == VNXI_JOB_QUEUED) {
            vnxi_job_try(batch, job);
        }
    }
}

static void
wake_due(vnxi_batch_t *batch)
{
    uint64_t now = vnxi_clock_ns();

    if (now < batch->next_wake) {
        return;
    }
    batch->next_wake = UINT64_MAX;
    for (size_t i = 0; i < batch->count; i++) {
        vnxi_job_t *job = &batch->jobs[i];
        if (job->state == VNXI_JOB_ENDED) {
            continue;
        }
        if (job->state == VNXI_JOB_QUEUED) {
            job->wake = job->params.deadline;
        }
        if (now >= job->wake) {
            vnxi_job_wake(batch, job, now);
        } else {
            vnxi_job_wake_at(batch, job, job->wake);
        }
    }
}

/* After anything that may have ended some: `next_wake` is right then. */
static void
look_at_all(vnxi_batch_t *batch)
{
    wake_due(batch);
    begin_some(batch);
}

static void
timer_drain(vnxi_batch_t *batch)
{
    uint64_t times;
    ssize_t got = read(batch->timer_fd, &times, sizeof times);
    (void)got; /* it is only to be readable no more */
}

/* As epoll_wait().  One request that is waited for needs no set, and no
 * descriptor beside its own. */
static int
batch_wait(vnxi_batch_t *batch, struct epoll_event events[EVENTS],
           int timeout_ms)
{
    const vnxi_exchange_t *exchange = batch->jobs[0].exchange;
    struct pollfd entry = {.fd = -1};

    if (batch->epoll_fd >= 0) {
        return epoll_wait(batch->epoll_fd, events, EVENTS, timeout_ms);
    }
    if (exchange != NULL) {
        entry.fd = exchange->fd;
        entry.events = exchange->events;
    }
    events[0].data.u32 = 0;
    return poll(&entry, 1, timeout_ms);
}

/* Wait for `timeout_ms` at most and do what there is to do; -1 and errno. */
static int
batch_round(vnxi_batch_t *batch, int timeout_ms)
{
    struct epoll_event events[EVENTS];

    if (batch->open == 0) {
        return 0;
    }
    int count = batch_wait(batch, events, timeout_ms);
    for (int i = 0; i < count; i++) {
        uint32_t index = events[i].data.u32;
        if (index == TIMER) {
            timer_drain(batch);
        } else if (batch->jobs[index].state == VNXI_JOB_TRYING) {
            vnxi_job_step(batch, &batch->jobs[index]);
        }
    }
    look_at_all(batch);
    return count;
}

/* Rounded up, so that a wait never ends before its time. */
static int
round_ms(const vnxi_batch_t *batch, uint64_t now, uint64_t most_ms)
{
    if (has_next(batch)) {
        return 0;
    }
    uint64_t ns = batch->next_wake > now ? batch->next_wake - now : 0;
    uint64_t ms = ns / MS + (ns % MS != 0);
    return (int)(ms < most_ms ? ms : most_ms);
}

static void
cancel_all(vnxi_batch_t *batch)
{
    for (size_t i = 0; i < batch->count; i++) {
        vnxi_job_t *job = &batch->jobs[i];
        if (job->state != VNXI_JOB_ENDED) {
            vnxi_exchange_failed(&job->params, VNX_ERR_CANCELED, "waiting for",
                                 job->params.host, "interrupted",
                                 &job->answer.error);
            vnxi_job_end(batch, job, VNX_ERR_CANCELED);
        }
    }
}

bool
vnxi_batch_run(vnxi_batch_t *batch, vnxi_batch_interrupted_t interrupted,
               void *arg)
{
    uint64_t most_ms = interrupted != NULL ? VNXI_BATCH_SLICE_MS : 60000;
    uint64_t asked = vnxi_clock_ns();

    look_at_all(batch); /* sets the first next_wake, from 0 */
    while (batch->open > 0) {
        uint64_t now = vnxi_clock_ns();
        int count = batch_round(batch, round_ms(batch, now, most_ms));
        bool signalled = count < 0;
        if (interrupted == NULL ||
            (!signalled &&
             vnxi_clock_ns() - asked < VNXI_BATCH_SLICE_MS * MS)) {
            continue;
        }
        asked = vnxi_clock_ns();
        if (interrupted(arg)) {
            cancel_all(batch);
            return false;
        }
    }
    return true;
}

static void
timer_arm(vnxi_batch_t *batch)
{
    struct itimerspec when = {0};

    if (has_next(batch)) {
        when.it_value.tv_nsec = 1; /* long past: at once */
    } else if (batch->open > 0 && batch->next_wake != UINT64_MAX) {
        when.it_value = vnxi_clock_timespec(batch->next_wake);
    }
    timerfd_settime(batch->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

int
vnxi_batch_fd(const vnxi_batch_t *batch)
{
    return batch->epoll_fd;
}

vnx_status_t
vnxi_batch_watch(vnxi_batch_t *batch, vnx_error_t *error)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = TIMER};

    if (batch->epoll_fd < 0) {
        vnx_status_t status = set_make(batch, error);
        if (status != VNX_OK) {
            return status;
        }
    }
    batch->timer_fd =
        timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (batch->timer_fd < 0 || epoll_ctl(batch->epoll_fd, EPOLL_CTL_ADD,
                                         batch->timer_fd, &event) != 0) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, VNXI_OP_REQUEST,
                              "no timer: %s", vnxi_errno(errno));
    }
    vnxi_batch_step(batch);
    return VNX_OK;
}

size_t
vnxi_batch_step(vnxi_batch_t *batch)
{
    for (int i = 0; i < ROUNDS_MAX; i++) {
        if (batch_round(batch, 0) <= 0 && !has_next(batch)) {
            break;
        }
    }
    timer_arm(batch);
    return batch->open;
}

void
vnxi_batch_take(vnxi_batch_t *batch, size_t index,
                vnx_side_channel_answer_t *answer_p)
{
    *answer_p = batch->jobs[index].answer;
    batch->jobs[index].answer.metadata = NULL;
}
