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

vnxi_tcp_length_t
vnxi_tcp_reply_expect(vnxi_incoming_t *in, vnxi_tcp_kind_t kind, uint32_t max)
{
    size_t len = (size_t)vnxi_big_get(in->head, VNXI_TCP_LENGTH);

    if (len > status_len(kind) + max) {
        return VNXI_TCP_LENGTH_ABOVE_MAX;
    }
    if (len < status_len(kind)) {
        return VNXI_TCP_LENGTH_NO_STATUS;
    }
    in->head_want = VNXI_TCP_LENGTH + status_len(kind);
    in->body_want = len - status_len(kind);
    return VNXI_TCP_LENGTH_VALID;
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
