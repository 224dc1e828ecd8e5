/*
 * Design notes.  One epoll set for all exchanges of a batch (none where it is
 * just one that is waited for).  Registrations
 * are one-shot and set anew after each step: a descriptor that a transport
 * closed, and that lives on in a forked child, can be heard of once at most,
 * and a step for no reason does no harm.
 *
 * A job that is not open for trouble with its peer rests, and is begun anew
 * when its time has come.  `next_wake` is the earliest time at which any job
 * has to be looked at, or earlier: all are looked at only once it is past.
 *
 * As many jobs are begun as half of the file descriptors that the process may
 * have; the rest waits for its turn, while its time runs.
 */
#include "side_channel/batch.h"

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
#define WINDOW_MAX 8192
#define BACKOFF_MAX_MS 1000
#define TIMER UINT32_MAX /* as the index of an event */
#define MS UINT64_C(1000000)

typedef enum job_state {
    JOB_QUEUED,
    JOB_TRYING,  /* has an exchange */
    JOB_RESTING, /* until `wake` */
    JOB_ENDED,   /* has its answer */
} job_state_t;

typedef struct job {
    job_state_t state;
    int fd; /* last registered; -1: none */
    uint32_t retries, backoff_ms;
    uint64_t wake;
    vnxi_exchange_t *exchange;
    vnxi_request_params_t params;
    char *text; /* owned: what params point to */
    vnx_side_channel_answer_t answer;
} job_t;

struct vnxi_batch {
    const vnxi_transport_t *transport;
    int epoll_fd, timer_fd; /* timer_fd -1: nobody asked for vnxi_batch_fd() */
    size_t count, open, begun, trying, window;
    uint64_t next_wake;
    job_t jobs[];
};

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

static bool
job_init(job_t *job, const vnx_side_channel_request_params_t *given,
         const vnx_side_channel_options_t *options, uint64_t now)
{
    size_t host_size = strlen(given->host) + 1;
    const char *format =
        strchr(given->host, ':') != NULL ? "[%s]:%d" : "%s:%d";
    char *text = malloc(host_size + given->key_length + VNX_ERROR_PEER_MAX);

    if (text == NULL) {
        return false;
    }
    char *key = text + host_size, *endpoint = key + given->key_length;
    memcpy(text, given->host, host_size);
    if (given->key_length > 0) {
        memcpy(key, given->key, given->key_length);
    }
    snprintf(endpoint, VNX_ERROR_PEER_MAX, format, given->host, given->port);
    job->fd = -1;
    job->text = text;
    job->retries = given->retries;
    job->backoff_ms = given->backoff_ms > 0 ? given->backoff_ms
                                            : VNX_SIDE_CHANNEL_BACKOFF_MS;
    job->params = (vnxi_request_params_t){
        .host = text,
        .port = given->port,
        .key = key,
        .key_len = given->key_length,
        .endpoint = endpoint,
        .options = options,
        .start = now,
        .deadline = now + (uint64_t)given->timeout_ms * MS,
    };
    return true;
}

static vnxi_batch_t *
batch_new(const vnxi_transport_t *transport, size_t count)
{
    if (count > (SIZE_MAX - sizeof(vnxi_batch_t)) / sizeof(job_t)) {
        return NULL;
    }
    vnxi_batch_t *batch = calloc(1, sizeof *batch + count * sizeof(job_t));
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
                                "epoll_create1: %s", strerror(errno));
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
                                    count * sizeof(job_t));
    }
    if (count > 1) {
        vnx_status_t status = set_make(batch, error);
        if (status != VNX_OK) {
            vnxi_batch_free(batch);
            return status;
        }
    }
    for (size_t i = 0; i < count; i++) {
        if (!job_init(&batch->jobs[i], &params[i], options, now)) {
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
        job_t *job = &batch->jobs[i];
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

/* -- One job -------------------------------------------------------------- */

static void
job_stop_trying(vnxi_batch_t *batch, job_t *job)
{
    if (job->state == JOB_TRYING) {
        batch->trying--;
        if (job->exchange != NULL) {
            batch->transport->end(job->exchange);
            job->exchange = NULL;
        }
    }
    job->fd = -1;
}

/* With the answer as it stands. */
static void
job_end(vnxi_batch_t *batch, job_t *job, vnx_status_t status)
{
    job_stop_trying(batch, job);
    job->answer.status = status;
    job->state = JOB_ENDED;
    batch->open--;
}

/* The peer is not there yet, or broke off. */
static bool
is_worth_another_try(vnx_status_t status)
{
    return status == VNX_ERR_BACKEND || status == VNX_ERR_NOT_FOUND;
}

/* Half of it at random, so that a crowd that was sent away together does not
 * come back together. */
static uint64_t
backoff_ns(job_t *job, uint64_t now)
{
    uint64_t ns = job->backoff_ms * MS;
    job->backoff_ms *= 2;
    if (job->backoff_ms > BACKOFF_MAX_MS) {
        job->backoff_ms = BACKOFF_MAX_MS;
    }
    return ns / 2 + (now ^ (uintptr_t)job) % (ns / 2 + 1);
}

static void
batch_wake(vnxi_batch_t *batch, job_t *job, uint64_t wake)
{
    job->wake = wake < job->params.deadline ? wake : job->params.deadline;
    if (job->wake < batch->next_wake) {
        batch->next_wake = job->wake;
    }
}

static void
job_failed(vnxi_batch_t *batch, job_t *job, vnx_status_t status)
{
    uint64_t now = vnxi_clock_ns();

    if (job->retries > 0 && is_worth_another_try(status)) {
        uint64_t wake = now + backoff_ns(job, now);
        if (wake < job->params.deadline) {
            if (job->retries != VNX_SIDE_CHANNEL_RETRY_ALWAYS) {
                job->retries--;
            }
            job_stop_trying(batch, job);
            job->state = JOB_RESTING;
            batch_wake(batch, job, wake);
            return;
        }
    }
    job_end(batch, job, status);
}

/* Returns 0 or errno. */
static int
job_watch(vnxi_batch_t *batch, job_t *job)
{
    const vnxi_exchange_t *exchange = job->exchange;
    struct epoll_event event = {
        .events = EPOLLONESHOT |
                  (exchange->events & POLLIN ? (uint32_t)EPOLLIN : 0) |
                  (exchange->events & POLLOUT ? (uint32_t)EPOLLOUT : 0),
        .data.u32 = (uint32_t)(job - batch->jobs)};
    int op = exchange->fd == job->fd ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
    int ret = 0;

    job->fd = exchange->fd;
    if (exchange->fd >= 0 && batch->epoll_fd >= 0) {
        ret = epoll_ctl(batch->epoll_fd, op, exchange->fd, &event);
        if (ret != 0 && (errno == ENOENT || errno == EEXIST)) {
            op = op == EPOLL_CTL_MOD ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
            ret = epoll_ctl(batch->epoll_fd, op, exchange->fd, &event);
        }
    }
    return ret == 0 ? 0 : errno;
}

static void
job_step(vnxi_batch_t *batch, job_t *job)
{
    vnx_side_channel_answer_t *answer = &job->answer;
    const vnxi_request_params_t *params = &job->params;

    vnx_status_t status = batch->transport->step(
        job->exchange, &answer->metadata, &answer->length, &answer->error);
    if (status == VNX_IN_PROG) {
        int err = job_watch(batch, job);
        if (err == 0) {
            batch_wake(batch, job, job->exchange->wake);
            return;
        }
        status =
            vnxi_exchange_failed(params, VNX_ERR_BACKEND, "waiting for",
                                 params->host, strerror(err), &answer->error);
    }
    if (status == VNX_OK) {
        job_end(batch, job, VNX_OK);
    } else {
        job_failed(batch, job, status);
    }
}

static void
job_try(vnxi_batch_t *batch, job_t *job)
{
    job->state = JOB_TRYING;
    batch->trying++;
    vnx_status_t status = batch->transport->begin(&job->params, &job->exchange,
                                                  &job->answer.error);
    if (status == VNX_OK) {
        job_step(batch, job);
    } else {
        job_failed(batch, job, status);
    }
}

/* Its time has come. */
static void
job_wake(vnxi_batch_t *batch, job_t *job, uint64_t now)
{
    const vnxi_request_params_t *params = &job->params;

    if (job->state == JOB_TRYING) {
        job_step(batch, job);
    } else if (now >= params->deadline) {
        vnxi_exchange_failed(params, VNX_ERR_TIMEOUT, "waiting to ask",
                             params->host, "timed out", &job->answer.error);
        job_end(batch, job, VNX_ERR_TIMEOUT);
    } else if (job->state == JOB_RESTING) {
        job_try(batch, job);
    }
}

/* -- All of them ---------------------------------------------------------- */

static void
begin_some(vnxi_batch_t *batch)
{
    while (batch->begun < batch->count && batch->trying < batch->window) {
        job_t *job = &batch->jobs[batch->begun++];
        if (job->state == JOB_QUEUED) {
            job_try(batch, job);
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
        job_t *job = &batch->jobs[i];
        if (job->state == JOB_ENDED) {
            continue;
        }
        if (job->state == JOB_QUEUED) {
            job->wake = job->params.deadline;
        }
        if (now >= job->wake) {
            job_wake(batch, job, now);
        } else {
            batch_wake(batch, job, job->wake);
        }
    }
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

    begin_some(batch);
    if (batch->open == 0) {
        return 0;
    }
    int count = batch_wait(batch, events, timeout_ms);
    for (int i = 0; i < count; i++) {
        uint32_t index = events[i].data.u32;
        if (index == TIMER) {
            timer_drain(batch);
        } else if (batch->jobs[index].state == JOB_TRYING) {
            job_step(batch, &batch->jobs[index]);
        }
    }
    wake_due(batch);
    return count;
}

/* Rounded up, so that a wait never ends before its time. */
static int
round_ms(const vnxi_batch_t *batch, uint64_t now, uint64_t most_ms)
{
    uint64_t ns = batch->next_wake > now ? batch->next_wake - now : 0;
    uint64_t ms = ns / MS + (ns % MS != 0);
    return (int)(ms < most_ms ? ms : most_ms);
}

static void
cancel_all(vnxi_batch_t *batch)
{
    for (size_t i = 0; i < batch->count; i++) {
        job_t *job = &batch->jobs[i];
        if (job->state != JOB_ENDED) {
            vnxi_exchange_failed(&job->params, VNX_ERR_CANCELED, "waiting for",
                                 job->params.host, "interrupted",
                                 &job->answer.error);
            job_end(batch, job, VNX_ERR_CANCELED);
        }
    }
}

bool
vnxi_batch_run(vnxi_batch_t *batch, vnxi_batch_interrupted_t interrupted,
               void *arg)
{
    uint64_t most_ms = interrupted != NULL ? VNXI_BATCH_SLICE_MS : 60000;
    uint64_t asked = vnxi_clock_ns();

    begin_some(batch); /* sets the first next_wake, from 0 */
    wake_due(batch);
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

    if (batch->open > 0 && batch->next_wake != UINT64_MAX) {
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
                              "no timer: %s", strerror(errno));
    }
    vnxi_batch_step(batch);
    return VNX_OK;
}

size_t
vnxi_batch_step(vnxi_batch_t *batch)
{
    for (int i = 0; i < ROUNDS_MAX && batch_round(batch, 0) > 0; i++) {
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
