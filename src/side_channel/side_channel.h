/*
 * The side channel, for the layers above: what vnx/side_channel.h leaves out
 * because only a language binding needs it.
 */
#ifndef VNXI_SIDE_CHANNEL_H
#define VNXI_SIDE_CHANNEL_H

#include <stdbool.h>
#include <vnx/side_channel.h>

/* Requests under way; used by one thread at a time. */
typedef struct vnxi_requests vnxi_requests_t;

/* Check the parameters.  Begins nothing yet, but the time of each request
 * counts from now.  Two ways to go on: vnxi_requests_run(), or
 * vnxi_requests_watch() and a loop of one's own.  Holds the channel.  Returns
 * owned: vnxi_requests_free().  Statuses: vnx_side_channel_request_many(). */
vnx_status_t
vnxi_requests_make(vnx_side_channel_t *channel,
                   const vnx_side_channel_request_params_t *params,
                   size_t count, vnxi_requests_t **out_p, vnx_error_t *error);

/* Ends those that are open.  NULL is allowed. */
void vnxi_requests_free(vnxi_requests_t *requests);

#define VNXI_REQUESTS_SLICE_MS 100

/* Begin, and wait until all have ended.  `interrupted` (may be NULL) is called
 * every VNXI_REQUESTS_SLICE_MS and after every signal, on the calling thread;
 * if it returns true, the open ones end with VNX_ERR_CANCELED, and so does the
 * call, with false. */
bool vnxi_requests_run(vnxi_requests_t *requests,
                       bool (*interrupted)(void *arg), void *arg);

/* Begin.  *fd_p, which belongs to the set, becomes readable when
 * vnxi_requests_step() has something to do.  VNX_ERR_BACKEND (no
 * descriptor). */
vnx_status_t vnxi_requests_watch(vnxi_requests_t *requests, int *fd_p,
                                 vnx_error_t *error);

/* Do what can be done without waiting; how many are still open. */
size_t vnxi_requests_step(vnxi_requests_t *requests);

/* The answer of one that has ended, the caller's from now on (once): free()
 * its metadata. */
void vnxi_requests_take(vnxi_requests_t *requests, size_t index,
                        vnx_side_channel_answer_t *answer_p);

#endif
