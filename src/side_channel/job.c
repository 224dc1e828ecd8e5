#include "side_channel/job.h"
#include "base/error.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#define BACKOFF_MAX_MS 1000
#define MS UINT64_C(1000000)

bool
vnxi_job_init(vnxi_job_t *job, const vnx_side_channel_request_params_t *given,
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

static void
job_stop_trying(vnxi_batch_t *batch, vnxi_job_t *job)
{
    if (job->state == VNXI_JOB_TRYING) {
        batch->trying--;
        if (job->exchange != NULL) {
            batch->transport->end(job->exchange);
            job->exchange = NULL;
        }
    }
    job->fd = -1;
}

/* With the answer as it stands. */
void
vnxi_job_end(vnxi_batch_t *batch, vnxi_job_t *job, vnx_status_t status)
{
    job_stop_trying(batch, job);
    job->answer.status = status;
    job->state = VNXI_JOB_ENDED;
    batch->open--;
}

/* The peer, or its name, is not there yet, or it broke off. */
static bool
is_worth_another_try(const vnxi_job_t *job, vnx_status_t status)
{
    bool has_answered = job->exchange != NULL && job->exchange->answered;
    return status == VNX_ERR_BACKEND ||
           (status == VNX_ERR_NOT_FOUND && !has_answered);
}

/* Half of it at random, so that a crowd that was sent away together does not
 * come back together. */
static uint64_t
backoff_ns(vnxi_job_t *job, uint64_t now)
{
    uint64_t ns = job->backoff_ms * MS;
    job->backoff_ms *= 2;
    if (job->backoff_ms > BACKOFF_MAX_MS) {
        job->backoff_ms = BACKOFF_MAX_MS;
    }
    return ns / 2 + (now ^ (uintptr_t)job) % (ns / 2 + 1);
}

void
vnxi_job_wake_at(vnxi_batch_t *batch, vnxi_job_t *job, uint64_t wake)
{
    job->wake = wake < job->params.deadline ? wake : job->params.deadline;
    if (job->wake < batch->next_wake) {
        batch->next_wake = job->wake;
    }
}

static void
job_failed(vnxi_batch_t *batch, vnxi_job_t *job, vnx_status_t status)
{
    uint64_t now = vnxi_clock_ns();

    if (job->retries > 0 && is_worth_another_try(job, status)) {
        uint64_t wake = now + backoff_ns(job, now);
        if (wake < job->params.deadline) {
            if (job->retries != VNX_SIDE_CHANNEL_RETRY_ALWAYS) {
                job->retries--;
            }
            job_stop_trying(batch, job);
            job->answer.status = status;
            job->state = VNXI_JOB_RESTING;
            vnxi_job_wake_at(batch, job, wake);
            return;
        }
    }
    vnxi_job_end(batch, job, status);
}

/* Returns 0 or errno. */
static int
job_watch(vnxi_batch_t *batch, vnxi_job_t *job)
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

void
vnxi_job_step(vnxi_batch_t *batch, vnxi_job_t *job)
{
    vnx_side_channel_answer_t *answer = &job->answer;
    const vnxi_request_params_t *params = &job->params;

    vnx_status_t status = batch->transport->step(
        job->exchange, &answer->metadata, &answer->length, &answer->error);
    if (status == VNX_IN_PROG) {
        int err = job_watch(batch, job);
        if (err == 0) {
            vnxi_job_wake_at(batch, job, job->exchange->wake);
            return;
        }
        status = vnxi_exchange_failed(params, VNX_ERR_BACKEND, "waiting for",
                                      params->host, vnxi_errno(err),
                                      &answer->error);
    }
    if (status == VNX_OK) {
        vnxi_job_end(batch, job, VNX_OK);
    } else {
        job_failed(batch, job, status);
    }
}

void
vnxi_job_try(vnxi_batch_t *batch, vnxi_job_t *job)
{
    job->state = VNXI_JOB_TRYING;
    batch->trying++;
    vnx_status_t status = batch->transport->begin(&job->params, &job->exchange,
                                                  &job->answer.error);
    if (status == VNX_OK) {
        vnxi_job_step(batch, job);
    } else {
        job_failed(batch, job, status);
    }
}

/* Its time has come. */
void
vnxi_job_wake(vnxi_batch_t *batch, vnxi_job_t *job, uint64_t now)
{
    const vnxi_request_params_t *params = &job->params;

    if (job->state == VNXI_JOB_TRYING) {
        vnxi_job_step(batch, job);
    } else if (now < params->deadline) {
        if (job->state == VNXI_JOB_RESTING) {
            vnxi_job_try(batch, job);
        }
    } else if (job->state == VNXI_JOB_RESTING) {
        vnxi_job_end(batch, job, job->answer.status); /* the last try's */
    } else {
        vnxi_exchange_failed(params, VNX_ERR_TIMEOUT, "waiting to ask",
                             params->host, "timed out", &job->answer.error);
        vnxi_job_end(batch, job, VNX_ERR_TIMEOUT);
    }
}
