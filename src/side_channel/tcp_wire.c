#include "side_channel/tcp_wire.h"

#include <string.h>

#include "base/bytes.h"

#define REQUEST_LEN (sizeof VNXI_TCP_REQUEST - 1)
#define MAGIC_LEN (sizeof VNXI_TCP_MAGIC - 1)
#define KEY_AT (MAGIC_LEN + 1) /* after the magic and the kind */

_Static_assert(sizeof VNXI_TCP_ALERT - 1 == VNXI_TCP_ALERT_LEN,
               "the alert and its length go together");
_Static_assert(KEY_AT + VNX_SIDE_CHANNEL_KEY_MAX <= VNXI_TCP_REQUEST_MAX,
               "every request fits");

/* -- Requests ------------------------------------------------------------- */

bool
vnxi_tcp_request_parse(const void *data, size_t len, vnxi_tcp_request_t *out_p)
{
    const unsigned char *bytes = data;

    if (len == REQUEST_LEN &&
        memcmp(bytes, VNXI_TCP_REQUEST, REQUEST_LEN) == 0) {
        *out_p = (vnxi_tcp_request_t){.kind = VNXI_TCP_SEED};
        return true;
    }
    if (len < KEY_AT || len > KEY_AT + VNX_SIDE_CHANNEL_KEY_MAX ||
        memcmp(bytes, VNXI_TCP_MAGIC, MAGIC_LEN) != 0 ||
        bytes[MAGIC_LEN] != VNXI_TCP_GET) {
        return false;
    }
    *out_p = (vnxi_tcp_request_t){
        .kind = VNXI_TCP_GET, .key = bytes + KEY_AT, .key_len = len - KEY_AT};
    return true;
}

size_t
vnxi_tcp_request_encode(
    const vnxi_tcp_request_t *request,
    unsigned char frame[VNXI_TCP_LENGTH + VNXI_TCP_REQUEST_MAX])
{
    unsigned char *bytes = frame + VNXI_TCP_LENGTH;
    size_t len = REQUEST_LEN;

    if (request->kind == VNXI_TCP_SEED) {
        memcpy(bytes, VNXI_TCP_REQUEST, REQUEST_LEN);
    } else {
        memcpy(bytes, VNXI_TCP_MAGIC, MAGIC_LEN);
        bytes[MAGIC_LEN] = (unsigned char)request->kind;
        if (request->key_len > 0) {
            memcpy(bytes + KEY_AT, request->key, request->key_len);
        }
        len = KEY_AT + request->key_len;
    }
    vnxi_big_put(frame, VNXI_TCP_LENGTH, len);
    return VNXI_TCP_LENGTH + len;
}

/* -- Replies -------------------------------------------------------------- */

static size_t
status_len(vnxi_tcp_kind_t kind)
{
    return kind == VNXI_TCP_SEED ? 0 : 1;
}

size_t
vnxi_tcp_head_encode(vnxi_tcp_kind_t kind, vnxi_tcp_status_t status,
                     size_t len, unsigned char head[VNXI_TCP_HEAD_MAX])
{
    vnxi_big_put(head, VNXI_TCP_LENGTH, status_len(kind) + len);
    head[VNXI_TCP_LENGTH] = (unsigned char)status;
    return VNXI_TCP_LENGTH + status_len(kind);
}

void
vnxi_tcp_reply_init(vnxi_tcp_reply_t *reply, vnxi_tcp_kind_t kind,
                    uint32_t max)
{
    *reply = (vnxi_tcp_reply_t){
        .max = max, .head_len = VNXI_TCP_LENGTH + status_len(kind)};
}

/* Return how many bytes follow the head. */
static size_t
body_len(const vnxi_tcp_reply_t *reply)
{
    return VNXI_TCP_LENGTH + reply->len - reply->head_len;
}

void *
vnxi_tcp_reply_space(vnxi_tcp_reply_t *reply, size_t *size_p)
{
    *size_p = 0;
    if (reply->state != VNXI_TCP_REPLY_MORE) {
        return NULL;
    }
    if (reply->head_have < reply->head_len) {
        *size_p = reply->head_len - reply->head_have;
        return reply->head + reply->head_have;
    }
    void *space = vnxi_body_space(&reply->body, body_len(reply), size_p);
    if (space == NULL) {
        reply->state = VNXI_TCP_REPLY_NO_MEMORY;
    }
    return space;
}

/* Read the length, which is complete. */
static void
check_length(vnxi_tcp_reply_t *reply)
{
    size_t status = reply->head_len - VNXI_TCP_LENGTH;

    reply->len = (uint32_t)vnxi_big_get(reply->head, VNXI_TCP_LENGTH);
    if (reply->len > status + reply->max) {
        reply->state = VNXI_TCP_REPLY_TOO_LONG;
    } else if (reply->len < status) {
        reply->state = VNXI_TCP_REPLY_NO_STATUS;
    }
}

void
vnxi_tcp_reply_commit(vnxi_tcp_reply_t *reply, size_t count)
{
    if (reply->head_have < reply->head_len) {
        reply->head_have += count;
        if (reply->head_have >= VNXI_TCP_LENGTH) {
            check_length(reply);
        }
    } else {
        reply->body.len += count;
    }
    if (reply->state == VNXI_TCP_REPLY_MORE &&
        reply->head_have == reply->head_len &&
        reply->body.len == body_len(reply)) {
        reply->state = VNXI_TCP_REPLY_WHOLE;
    }
}

size_t
vnxi_tcp_reply_have(const vnxi_tcp_reply_t *reply)
{
    return reply->head_have < VNXI_TCP_LENGTH
               ? 0
               : reply->head_have - VNXI_TCP_LENGTH + reply->body.len;
}

/* -- TLS and plain frames ------------------------------------------------- */

/* Is it a TLS record of that type?  The type is followed by a 3, the first
 * byte of the version. */
static bool
is_record(const unsigned char length[VNXI_TCP_LENGTH], unsigned char type)
{
    return length[0] == type && length[1] == 3;
}

bool
vnxi_tcp_is_tls_hello(const unsigned char length[VNXI_TCP_LENGTH])
{
    return is_record(length, 0x16);
}

bool
vnxi_tcp_is_tls_alert(const unsigned char length[VNXI_TCP_LENGTH])
{
    return is_record(length, 0x15);
}
