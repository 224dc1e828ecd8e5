/*
 * Design notes.  A request needs nothing of the channel but constants, so it
 * works in a forked child too, and takes no lock.  One request is a batch of
 * one.
 */
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "side_channel/batch.h"
#include "side_channel/channel.h"

struct vnxi_side_batch {
    vnx_side_channel_t *channel; /* held */
    vnxi_batch_t *batch;
};

static vnx_status_t
check(const vnx_side_channel_request_params_t *params, vnx_error_t *error)
{
    if (params->host == NULL || params->host[0] == '\0') {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, VNXI_OP_REQUEST,
                              "no host");
    }
    if (params->port < 1 || params->port > 65535) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, VNXI_OP_REQUEST,
                              "port %d is not in 1 to 65535", params->port);
    }
    if (params->timeout_ms <= 0) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, VNXI_OP_REQUEST,
                              "a timeout of %d ms is not above 0",
                              params->timeout_ms);
    }
    return vnxi_key_check(VNXI_OP_REQUEST, params->key, params->key_length,
                          error);
}

/* All of them in this library's form; the first one's size is that of each. */
static vnx_status_t
read_all(const vnx_side_channel_request_params_t *given, size_t count,
         vnx_side_channel_request_params_t *out_p, vnx_error_t *error)
{
    const unsigned char *at = (const void *)given;
    size_t stride = count > 0 ? given->size : 0;

    for (size_t i = 0; i < count; i++) {
        vnx_status_t status =
            vnxi_params_read(VNXI_OP_REQUEST, at + i * stride, stride,
                             &out_p[i], sizeof out_p[i], error);
        if (status == VNX_OK) {
            status = check(&out_p[i], error);
        }
        if (status != VNX_OK) {
            if (count > 1 && error != NULL) {
                vnxi_error_row(error, i);
            }
            return status;
        }
    }
    return VNX_OK;
}

static vnx_status_t
batch_make(vnx_side_channel_t *channel,
           const vnx_side_channel_request_params_t *given, size_t count,
           vnxi_batch_t **out_p, vnx_error_t *error)
{
    vnx_side_channel_request_params_t one = {0};
    vnx_side_channel_request_params_t *all = &one;

    if (count > 1) {
        all = calloc(count, sizeof *all);
        if (all == NULL) {
            return vnxi_error_no_memory(error, VNXI_OP_REQUEST,
                                        count * sizeof *all);
        }
    }
    vnx_status_t status = read_all(given, count, all, error);
    if (status == VNX_OK) {
        status = vnxi_batch_create(channel->transport, &channel->options, all,
                                   count, out_p, error);
    }
    if (all != &one) {
        free(all);
    }
    return status;
}

vnx_status_t
vnxi_side_batch_begin(vnx_side_channel_t *channel,
                      const vnx_side_channel_request_params_t *params,
                      size_t count, vnxi_side_batch_t **out_p,
                      vnx_error_t *error)
{
    vnxi_side_batch_t *batch = calloc(1, sizeof *batch);

    if (batch == NULL) {
        return vnxi_error_no_memory(error, VNXI_OP_REQUEST, sizeof *batch);
    }
    vnxi_channel_enter(channel);
    batch->channel = channel;
    vnx_status_t status =
        batch_make(channel, params, count, &batch->batch, error);
    if (status != VNX_OK) {
        vnxi_side_batch_free(batch);
        return status;
    }
    *out_p = batch;
    return VNX_OK;
}

bool
vnxi_side_batch_run(vnxi_side_batch_t *batch, bool (*interrupted)(void *arg),
                    void *arg)
{
    return vnxi_batch_run(batch->batch, interrupted, arg);
}

vnx_status_t
vnxi_side_batch_watch(vnxi_side_batch_t *batch, int *fd_p, vnx_error_t *error)
{
    vnx_status_t status = vnxi_batch_watch(batch->batch, error);
    if (status == VNX_OK) {
        *fd_p = vnxi_batch_fd(batch->batch);
    }
    return status;
}

size_t
vnxi_side_batch_step(vnxi_side_batch_t *batch)
{
    return vnxi_batch_step(batch->batch);
}

void
vnxi_side_batch_take(vnxi_side_batch_t *batch, size_t index,
                     vnx_side_channel_answer_t *answer_p)
{
    vnxi_batch_take(batch->batch, index, answer_p);
}

void
vnxi_side_batch_free(vnxi_side_batch_t *batch)
{
    if (batch != NULL) {
        vnxi_batch_free(batch->batch);
        vnxi_channel_leave(batch->channel);
        free(batch);
    }
}

vnx_status_t
vnx_side_channel_request_many(vnx_side_channel_t *channel,
                              const vnx_side_channel_request_params_t *params,
                              size_t count, vnx_side_channel_answer_t *answers,
                              vnx_error_t *error)
{
    vnxi_side_batch_t *batch = NULL;

    vnx_status_t status =
        vnxi_side_batch_begin(channel, params, count, &batch, error);
    if (status != VNX_OK) {
        return status;
    }
    vnxi_side_batch_run(batch, NULL, NULL);
    for (size_t i = 0; i < count; i++) {
        vnxi_side_batch_take(batch, i, &answers[i]);
    }
    vnxi_side_batch_free(batch);
    return VNX_OK;
}

vnx_status_t
vnx_side_channel_request_with(vnx_side_channel_t *channel,
                              const vnx_side_channel_request_params_t *params,
                              void **metadata_p, size_t *length_p,
                              vnx_error_t *error)
{
    vnx_side_channel_answer_t answer;

    vnx_status_t status =
        vnx_side_channel_request_many(channel, params, 1, &answer, error);
    if (status != VNX_OK) {
        return status;
    }
    if (answer.status != VNX_OK) {
        if (error != NULL) {
            *error = answer.error;
        }
        return answer.status;
    }
    *metadata_p = answer.metadata;
    *length_p = answer.length;
    return VNX_OK;
}

vnx_status_t
vnx_side_channel_request(vnx_side_channel_t *channel, const char *host,
                         int port, int timeout_ms, void **metadata_p,
                         size_t *length_p, vnx_error_t *error)
{
    vnx_side_channel_request_params_t params = {.size = sizeof params,
                                                .host = host,
                                                .port = port,
                                                .timeout_ms = timeout_ms};
    return vnx_side_channel_request_with(channel, &params, metadata_p,
                                         length_p, error);
}
