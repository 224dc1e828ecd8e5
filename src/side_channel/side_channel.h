/*
 * The side channel, for the layers above: functions that vnx/side_channel.h
 * leaves out because only a language binding needs them.
 */
#ifndef VNXI_SIDE_CHANNEL_H
#define VNXI_SIDE_CHANNEL_H

#include <stdbool.h>
#include <vnx/side_channel.h>

/* -- Listening ------------------------------------------------------------ */

/* Serve the blobs: on the running listener, whose other keys stay, or on one
 * that this call starts.  *port_p is its port.  The operation in records is
 * that of vnx_side_channel_start_with(), as are the statuses; and
 * VNX_ERR_NOT_ALLOWED: the listener is running on another port than
 * params->port (0: any), or on another host than params->host (NULL: any). */
vnx_status_t
vnxi_side_channel_serve(vnx_side_channel_t *channel,
                        const vnx_side_channel_start_params_t *params,
                        int *port_p, vnx_error_t *error);

/* -- Requests ------------------------------------------------------------- */

/* Requests in progress; used by one thread at a time.  In a child that is
 * forked meanwhile they fail with VNX_ERR_NOT_ALLOWED, and freeing them does
 * nothing. */
typedef struct vnxi_requests vnxi_requests_t;

/* Check the parameters and create the requests.  Nothing begins yet, but the
 * time of each request counts from now.  Continue either with
 * vnxi_requests_run(), or with vnxi_requests_watch() and a loop of the
 * caller's own.  Holds the channel.  Returns owned: vnxi_requests_free().
 * Statuses: vnx_side_channel_request_many(). */
vnx_status_t
vnxi_requests_make(vnx_side_channel_t *channel,
                   const vnx_side_channel_request_params_t *params,
                   size_t count, vnxi_requests_t **out_p, vnx_error_t *error);

/* End the requests that are open, and free all.  NULL is allowed. */
void vnxi_requests_free(vnxi_requests_t *requests);

#define VNXI_REQUESTS_SLICE_MS 100

/* Begin, and wait until all requests have ended.  `interrupted` (may be NULL)
 * is called on this thread, every VNXI_REQUESTS_SLICE_MS and after every
 * signal.  If it returns true, the open requests end with VNX_ERR_CANCELED,
 * and the call returns false. */
bool vnxi_requests_run(vnxi_requests_t *requests,
                       bool (*interrupted)(void *arg), void *arg);

/* Begin.  *fd_p becomes readable when vnxi_requests_step() has something to
 * do; it belongs to the set.  VNX_ERR_BACKEND: no descriptor is available. */
vnx_status_t vnxi_requests_watch(vnxi_requests_t *requests, int *fd_p,
                                 vnx_error_t *error);

/* Do what can be done without waiting.  Returns how many requests are still
 * open. */
size_t vnxi_requests_step(vnxi_requests_t *requests);

/* Did the listener answer that it serves nothing under the key? */
bool vnxi_requests_is_unknown_key(const vnxi_requests_t *requests,
                                  size_t index);

/* Take the answer of a request that has ended.  The caller may take it once,
 * and owns its metadata: free(). */
void vnxi_requests_take(vnxi_requests_t *requests, size_t index,
                        vnx_side_channel_answer_t *answer_p);

#endif
