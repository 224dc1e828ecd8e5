/*
 * Requests under way: as many exchanges as one likes, run by one thread.
 *
 * A batch belongs to one thread at a time.  It is driven in one of two ways:
 * vnxi_batch_run() waits until all have ended; or the program waits for
 * vnxi_batch_fd() in a loop of its own, with whatever else it waits for, and
 * calls vnxi_batch_step() each time it is readable (vnxi_batch_watch()
 * begins).
 */
#ifndef VNXI_SIDE_CHANNEL_BATCH_H
#define VNXI_SIDE_CHANNEL_BATCH_H

#include <stdbool.h>
#include <stddef.h>
#include <vnx/side_channel.h>

#include "side_channel/transport.h"

typedef struct vnxi_batch vnxi_batch_t;

/* `params` (checked, their `size` the size of each) and what they point to are
 * copied; `options` is borrowed.  Begins nothing yet, but the time of each
 * counts from now.  Returns owned: vnxi_batch_free().  VNX_ERR_NO_MEMORY,
 * VNX_ERR_BACKEND (no descriptor). */
vnx_status_t vnxi_batch_create(const vnxi_transport_t *transport,
                               const vnx_side_channel_options_t *options,
                               const vnx_side_channel_request_params_t *params,
                               size_t count, vnxi_batch_t **out_p,
                               vnx_error_t *error);

/* At any stage; ends what is open.  NULL is allowed. */
void vnxi_batch_free(vnxi_batch_t *batch);

/* Before the first vnxi_batch_fd(): have it readable at deadlines too, and
 * begin.  VNX_ERR_BACKEND (no descriptor). */
vnx_status_t vnxi_batch_watch(vnxi_batch_t *batch, vnx_error_t *error);

/* Readable when there is something to do; the batch's own. */
int vnxi_batch_fd(const vnxi_batch_t *batch);

/* Do what can be done without waiting; how many are still open. */
size_t vnxi_batch_step(vnxi_batch_t *batch);

/* Asked every VNXI_BATCH_SLICE_MS of waiting and on every signal, on the
 * waiting thread: give up? */
typedef bool (*vnxi_batch_interrupted_t)(void *arg);
#define VNXI_BATCH_SLICE_MS 100

/* Wait until all have ended.  False: interrupted; those that are still open
 * have ended with VNX_ERR_CANCELED.  `interrupted` may be NULL. */
bool vnxi_batch_run(vnxi_batch_t *batch, vnxi_batch_interrupted_t interrupted,
                    void *arg);

/* The answer of one that has ended, which is the caller's from now on (once):
 * free() its metadata. */
void vnxi_batch_take(vnxi_batch_t *batch, size_t index,
                     vnx_side_channel_answer_t *answer_p);

#endif
