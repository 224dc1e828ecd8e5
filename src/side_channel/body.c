#include "side_channel/body.h"

#include <stdlib.h>

void *
vnxi_body_space(vnxi_body_t *body, size_t max, size_t *size_p)
{
    if (body->len == body->capacity) {
        size_t capacity =
            body->capacity == 0 ? VNXI_BODY_CHUNK : 2 * body->capacity;
        if (capacity > max) {
            capacity = max;
        }
        void *data = realloc(body->data, capacity);
        if (data == NULL) {
            return NULL;
        }
        body->data = data;
        body->capacity = capacity;
    }
    *size_p = body->capacity - body->len;
    return body->data + body->len;
}

void *
vnxi_body_take(vnxi_body_t *body, size_t *len_p)
{
    void *data = body->data != NULL ? body->data : malloc(1);

    if (data != NULL) {
        *len_p = body->len;
        *body = (vnxi_body_t){0};
    }
    return data;
}

void
vnxi_body_fini(vnxi_body_t *body)
{
    free(body->data);
    *body = (vnxi_body_t){0};
}

void *
vnxi_incoming_space(vnxi_incoming_t *in, size_t *size_p)
{
    if (in->head_have < in->head_want) {
        *size_p = in->head_want - in->head_have;
        return in->head + in->head_have;
    }
    *size_p = in->body_want - in->body.len;
    return *size_p > 0 ? vnxi_body_space(&in->body, in->body_want, size_p)
                       : NULL;
}

void
vnxi_incoming_commit(vnxi_incoming_t *in, size_t count)
{
    *(in->head_have < in->head_want ? &in->head_have : &in->body.len) += count;
}
