/*
 * The side channel, for the layers above: what vnx/side_channel.h leaves out
 * because only a language binding needs it.
 */
#ifndef VNXI_SIDE_CHANNEL_H
#define VNXI_SIDE_CHANNEL_H

#include <stdbool.h>
#include <vnx/side_channel.h>

/* Requests under way, begun with vnxi_side_batch_begin().  Holds its channel;
 * of one thread at a time. */
typedef struct vnxi_side_batch vnxi_side_batch_t;

/* Check and begin.  Two ways to go on: vnxi_side_batch_run(), or
 * vnxi_side_batch_watch() and a loop of one's own.  Returns owned:
 * vnxi_side_batch_free().  Statuses: vnx_side_channel_request_many(). */
vnx_status_t
vnxi_side_batch_begin(vnx_side_channel_t *channel,
                      const vnx_side_channel_request_params_t *params,
                      size_t count, vnxi_side_batch_t **out_p,
                      vnx_error_t *error);

/* Wait for all of them.  `interrupted` (may be NULL) is asked every 100 ms and
 * on every signal, on the calling thread; true gives up: what is open ends
 * with VNX_ERR_CANCELED.  False: it was given up. */
bool vnxi_side_batch_run(vnxi_side_batch_t *batch,
                         bool (*interrupted)(void *arg), void *arg);

/* A descriptor (the batch's own, *fd_p) that is readable when
 * vnxi_side_batch_step() has something to do. */
vnx_status_t vnxi_side_batch_watch(vnxi_side_batch_t *batch, int *fd_p,
                                   vnx_error_t *error);

/* Without waiting; how many are still open. */
size_t vnxi_side_batch_step(vnxi_side_batch_t *batch);

/* Of one that has ended: the caller's from now on, free() its metadata. */
void vnxi_side_batch_take(vnxi_side_batch_t *batch, size_t index,
                          vnx_side_channel_answer_t *answer_p);

/* Ends what is open.  NULL is allowed. */
void vnxi_side_batch_free(vnxi_side_batch_t *batch);

#endif
