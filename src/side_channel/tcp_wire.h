/*
 * Contents of the frames of the TCP side channel.  Encoding and parsing of
 * bytes; no I/O, no clock, no memory.  docs/wire.md specifies the bytes.
 *
 * A request is either VNXI_TCP_REQUEST, the only one that the first servers
 * and clients of this protocol know, or "VNX1", a kind and a key.  The reply
 * to the first form has no status: the frame is the blob.  The reply to the
 * second begins with a status.
 */
#ifndef VNXI_SIDE_CHANNEL_TCP_WIRE_H
#define VNXI_SIDE_CHANNEL_TCP_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/side_channel.h>

#define VNXI_TCP_REQUEST "GET_METADATA"
#define VNXI_TCP_REQUEST_LEN 12u
#define VNXI_TCP_REQUEST_MAX 1036u /* room for later requests */
#define VNXI_TCP_MAGIC "VNX1"
#define VNXI_TCP_MAGIC_LEN 4u

typedef enum vnxi_tcp_kind {
    VNXI_TCP_SEED = 0, /* VNXI_TCP_REQUEST */
    VNXI_TCP_GET = 1,  /* then the key */
} vnxi_tcp_kind_t;

typedef struct vnxi_tcp_request {
    vnxi_tcp_kind_t kind;
    const unsigned char *key; /* GET; borrowed from the frame */
    size_t key_len;
} vnxi_tcp_request_t;

/* Parse the frame of a request.  False: it is malformed. */
bool vnxi_tcp_request_parse(const void *frame, size_t len,
                            vnxi_tcp_request_t *out_p);

/* Write the payload of a request.  Returns its length, VNXI_TCP_REQUEST_MAX at
 * most. */
size_t vnxi_tcp_request_encode(const vnxi_tcp_request_t *request,
                               unsigned char payload[VNXI_TCP_REQUEST_MAX]);

typedef enum vnxi_tcp_status {
    VNXI_TCP_BLOB = 0,         /* then the blob */
    VNXI_TCP_UNKNOWN_KEY = 16, /* then VNXI_TCP_UNKNOWN_TEXT */
} vnxi_tcp_status_t;

#define VNXI_TCP_UNKNOWN_TEXT "nothing is served under that key"

/* -- TLS and plain frames at the two ends of a connection ----------------- */

/* A fatal TLS alert, unknown_psk_identity.  A listener sends it if the client
 * speaks TLS and the listener does not, or the other way round. */
#define VNXI_TCP_ALERT "\x15\x03\x03\x00\x02\x02\x73"
#define VNXI_TCP_ALERT_LEN 7u

/* Do the four bytes, received as the length of a frame, begin a TLS handshake,
 * or a TLS alert? */
bool vnxi_tcp_is_tls_hello(const unsigned char header[4]);
bool vnxi_tcp_is_tls_alert(const unsigned char header[4]);

#endif
