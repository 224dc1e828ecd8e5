#include "side_channel/tcp_wire.h"

#include <string.h>

#define HEAD (VNXI_TCP_MAGIC_LEN + 1) /* the magic and the kind */

_Static_assert(sizeof VNXI_TCP_REQUEST - 1 == VNXI_TCP_REQUEST_LEN,
               "the request and its length go together");
_Static_assert(sizeof VNXI_TCP_ALERT - 1 == VNXI_TCP_ALERT_LEN,
               "the alert and its length go together");
_Static_assert(HEAD + VNX_SIDE_CHANNEL_KEY_MAX <= VNXI_TCP_REQUEST_MAX,
               "every request fits");

bool
vnxi_tcp_request_parse(const void *frame, size_t len,
                       vnxi_tcp_request_t *out_p)
{
    const unsigned char *bytes = frame;

    if (len == VNXI_TCP_REQUEST_LEN &&
        memcmp(bytes, VNXI_TCP_REQUEST, VNXI_TCP_REQUEST_LEN) == 0) {
        *out_p = (vnxi_tcp_request_t){.kind = VNXI_TCP_SEED};
        return true;
    }
    if (len < HEAD || len > HEAD + VNX_SIDE_CHANNEL_KEY_MAX ||
        memcmp(bytes, VNXI_TCP_MAGIC, VNXI_TCP_MAGIC_LEN) != 0 ||
        bytes[VNXI_TCP_MAGIC_LEN] != VNXI_TCP_GET) {
        return false;
    }
    *out_p = (vnxi_tcp_request_t){
        .kind = VNXI_TCP_GET, .key = bytes + HEAD, .key_len = len - HEAD};
    return true;
}

size_t
vnxi_tcp_request_encode(const vnxi_tcp_request_t *request,
                        unsigned char payload[VNXI_TCP_REQUEST_MAX])
{
    if (request->kind == VNXI_TCP_SEED) {
        memcpy(payload, VNXI_TCP_REQUEST, VNXI_TCP_REQUEST_LEN);
        return VNXI_TCP_REQUEST_LEN;
    }
    memcpy(payload, VNXI_TCP_MAGIC, VNXI_TCP_MAGIC_LEN);
    payload[VNXI_TCP_MAGIC_LEN] = (unsigned char)request->kind;
    if (request->key_len > 0) {
        memcpy(payload + HEAD, request->key, request->key_len);
    }
    return HEAD + request->key_len;
}

/* Is it a TLS record of that type?  The type is followed by a 3, the first
 * byte of the version. */
static bool
is_record(const unsigned char header[4], unsigned char type)
{
    return header[0] == type && header[1] == 3;
}

bool
vnxi_tcp_is_tls_hello(const unsigned char header[4])
{
    return is_record(header, 0x16);
}

bool
vnxi_tcp_is_tls_alert(const unsigned char header[4])
{
    return is_record(header, 0x15);
}
