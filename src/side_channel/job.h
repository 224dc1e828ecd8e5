/*
 * One request of a batch: what batch.c and job.c share.
 */
#ifndef VNXI_SIDE_CHANNEL_JOB_H
#define VNXI_SIDE_CHANNEL_JOB_H

#include "side_channel/batch.h"

typedef enum vnxi_job_state {
    VNXI_JOB_QUEUED,
    VNXI_JOB_TRYING,  /* has an exchange */
    VNXI_JOB_RESTING, /* until `wake`; has the answer of its last try */
    VNXI_JOB_ENDED,   /* has its answer */
} vnxi_job_state_t;

typedef struct vnxi_job {
    vnxi_job_state_t state;
    int fd; /* last registered; -1: none */
    uint32_t retries, backoff_ms;
    uint64_t wake;
    vnxi_exchange_t *exchange;
    vnxi_request_params_t params;
    char *text; /* owned: what params point to */
    vnx_side_channel_answer_t answer;
} vnxi_job_t;

struct vnxi_batch {
    const vnxi_transport_t *transport;
    int epoll_fd, timer_fd; /* timer_fd -1: nobody asked for vnxi_batch_fd() */
    size_t count, open, begun, trying, window;
    uint64_t next_wake;
    vnxi_job_t jobs[];
};

/* Copy what is asked for; its time counts from `now`.  False: no memory. */
bool vnxi_job_init(vnxi_job_t *job,
                   const vnx_side_channel_request_params_t *given,
                   const vnx_side_channel_options_t *options, uint64_t now);

/* Begin it. */
void vnxi_job_try(vnxi_batch_t *batch, vnxi_job_t *job);

/* Of one that is tried: do what can be done now. */
void vnxi_job_step(vnxi_batch_t *batch, vnxi_job_t *job);

/* Of one that has not ended: do what its time, which has come, asks for. */
void vnxi_job_wake(vnxi_batch_t *batch, vnxi_job_t *job, uint64_t now);

/* Have the batch look at it at `wake`, or at its deadline. */
void vnxi_job_wake_at(vnxi_batch_t *batch, vnxi_job_t *job, uint64_t wake);

/* End it, with the answer as it stands. */
void vnxi_job_end(vnxi_batch_t *batch, vnxi_job_t *job, vnx_status_t status);

#endif
