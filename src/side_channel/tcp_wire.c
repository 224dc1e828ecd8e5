#include "side_channel/tcp_wire.h"

#include <string.h>

_Static_assert(sizeof VNXI_TCP_REQUEST - 1 == VNXI_TCP_REQUEST_LEN,
               "the request and its length go together");
_Static_assert(VNXI_TCP_MAGIC_LEN + 1 + VNXI_TCP_MAC +
                       VNX_SIDE_CHANNEL_KEY_MAX <=
                   VNXI_TCP_REQUEST_MAX,
               "every request fits");

/* What follows the kind, all of it. */
static bool
parse_body(const unsigned char *body, size_t len, vnxi_tcp_request_t *request)
{
    switch (request->kind) {
    case VNXI_TCP_GET:
        request->key = body;
        request->key_len = len;
        return len <= VNX_SIDE_CHANNEL_KEY_MAX;
    case VNXI_TCP_HELLO:
        request->nonce = body;
        return len == VNXI_TCP_NONCE;
    case VNXI_TCP_PROVE:
        request->mac = body;
        return len == VNXI_TCP_MAC;
    case VNXI_TCP_SEALED:
        if (len < VNXI_TCP_MAC) {
            return false;
        }
        request->mac = body;
        request->key = body + VNXI_TCP_MAC;
        request->key_len = len - VNXI_TCP_MAC;
        return request->key_len <= VNX_SIDE_CHANNEL_KEY_MAX;
    default:
        return false;
    }
}

bool
vnxi_tcp_request_parse(const void *frame, size_t len,
                       vnxi_tcp_request_t *out_p)
{
    const unsigned char *bytes = frame;
    const size_t head = VNXI_TCP_MAGIC_LEN + 1;
    vnxi_tcp_request_t request = {.kind = VNXI_TCP_SEED};

    if (len != VNXI_TCP_REQUEST_LEN ||
        memcmp(bytes, VNXI_TCP_REQUEST, VNXI_TCP_REQUEST_LEN) != 0) {
        if (len < head ||
            memcmp(bytes, VNXI_TCP_MAGIC, VNXI_TCP_MAGIC_LEN) != 0) {
            return false;
        }
        request.kind = (vnxi_tcp_kind_t)bytes[VNXI_TCP_MAGIC_LEN];
        if (!parse_body(bytes + head, len - head, &request)) {
            return false;
        }
    }
    *out_p = request;
    return true;
}

static size_t
append(unsigned char *payload, size_t at, const void *data, size_t len)
{
    if (len > 0) {
        memcpy(payload + at, data, len);
    }
    return at + len;
}

size_t
vnxi_tcp_request_encode(const vnxi_tcp_request_t *request,
                        unsigned char payload[VNXI_TCP_REQUEST_MAX])
{
    if (request->kind == VNXI_TCP_SEED) {
        return append(payload, 0, VNXI_TCP_REQUEST, VNXI_TCP_REQUEST_LEN);
    }
    size_t len = append(payload, 0, VNXI_TCP_MAGIC, VNXI_TCP_MAGIC_LEN);
    payload[len++] = (unsigned char)request->kind;
    if (request->nonce != NULL) {
        len = append(payload, len, request->nonce, VNXI_TCP_NONCE);
    }
    if (request->mac != NULL) {
        len = append(payload, len, request->mac, VNXI_TCP_MAC);
    }
    return append(payload, len, request->key, request->key_len);
}

const char *
vnxi_tcp_status_text(vnxi_tcp_status_t status)
{
    switch (status) {
#define STATUS_TEXT(symbol, number, text, meaning) \
    case VNXI_TCP_##symbol:                        \
        return text;
        VNXI_TCP_STATUS_TABLE(STATUS_TEXT)
#undef STATUS_TEXT
    default:
        return NULL;
    }
}

vnx_status_t
vnxi_tcp_status_meaning(vnxi_tcp_status_t status)
{
    switch (status) {
#define STATUS_MEANING(symbol, number, text, meaning) \
    case VNXI_TCP_##symbol:                           \
        return meaning;
        VNXI_TCP_STATUS_TABLE(STATUS_MEANING)
#undef STATUS_MEANING
    default:
        return VNX_ERR_MISMATCH;
    }
}
