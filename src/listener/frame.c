#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "listener/listener.h"

vnxi_meta_frame_t *
vnxi_meta_frame_new(vnxi_meta_verb_t verb, const void *body, size_t body_len,
                    const void *peer, size_t peer_len)
{
    size_t len = VNXI_META_PREFIX + body_len;
    vnxi_meta_frame_t *frame = malloc(sizeof *frame + len + peer_len);
    if (frame == NULL) {
        return NULL;
    }
    *frame =
        (vnxi_meta_frame_t){.verb = verb, .len = len, .peer_len = peer_len};
    vnxi_meta_prefix_write(verb, body_len, frame->bytes);
    if (body_len > 0) {
        memcpy(frame->bytes + VNXI_META_PREFIX, body, body_len);
    }
    if (peer_len > 0) {
        memcpy(frame->bytes + len, peer, peer_len);
    }
    return frame;
}

void
vnxi_meta_endpoint(char text[VNXI_META_ENDPOINT], const char *host, int port)
{
    snprintf(text, VNXI_META_ENDPOINT,
             strchr(host, ':') != NULL ? "[%s]:%d" : "%s:%d", host, port);
}

vnxi_meta_order_t *
vnxi_meta_order_new(const char *host, int port, vnxi_meta_frame_t *frame)
{
    size_t host_size = strlen(host) + 1;
    vnxi_meta_order_t *order =
        frame != NULL ? malloc(sizeof *order + host_size) : NULL;
    if (order == NULL) {
        free(frame);
        return NULL;
    }
    order->frame = frame;
    order->port = port;
    memcpy(order->host, host, host_size);
    return order;
}

void
vnxi_meta_order_free(vnxi_meta_order_t *order)
{
    free(order->frame);
    free(order);
}
