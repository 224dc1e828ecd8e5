/*
 * The bytes of the TCP side channel.  Encoding and parsing; no I/O, no clock.
 * docs/wire.md specifies them.
 *
 * A frame is a 32-bit big-endian length, then as many bytes.  A request is
 * either VNXI_TCP_REQUEST, the only one that the first servers and clients of
 * this protocol know, or "VNX1", a kind and a key.  The reply to the first
 * form has no status: the frame is the blob.  The reply to the second begins
 * with a status.
 */
#ifndef VNXI_SIDE_CHANNEL_TCP_WIRE_H
#define VNXI_SIDE_CHANNEL_TCP_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/side_channel.h>

#include "side_channel/body.h"

#define VNXI_TCP_LENGTH 4u /* bytes of a frame's length */

/* -- Requests ------------------------------------------------------------- */

#define VNXI_TCP_REQUEST "GET_METADATA"
#define VNXI_TCP_REQUEST_MAX 1036u /* room for later requests */
#define VNXI_TCP_MAGIC "VNX1"

typedef enum vnxi_tcp_kind {
    VNXI_TCP_SEED = 0, /* VNXI_TCP_REQUEST */
    VNXI_TCP_GET = 1,  /* then the key */
} vnxi_tcp_kind_t;

typedef struct vnxi_tcp_request {
    vnxi_tcp_kind_t kind;
    const unsigned char *key; /* GET; borrowed from the frame */
    size_t key_len;
} vnxi_tcp_request_t;

/* Parse the bytes of a request, without their length.  False: they are
 * malformed. */
bool vnxi_tcp_request_parse(const void *bytes, size_t len,
                            vnxi_tcp_request_t *out_p);

/* Write the frame of a request.  Returns its size. */
size_t vnxi_tcp_request_encode(
    const vnxi_tcp_request_t *request,
    unsigned char frame[VNXI_TCP_LENGTH + VNXI_TCP_REQUEST_MAX]);

/* -- Replies -------------------------------------------------------------- */

typedef enum vnxi_tcp_status {
    VNXI_TCP_BLOB = 0,         /* then the blob */
    VNXI_TCP_UNKNOWN_KEY = 16, /* then VNXI_TCP_UNKNOWN_TEXT */
} vnxi_tcp_status_t;

#define VNXI_TCP_UNKNOWN_TEXT "nothing is served under that key"
#define VNXI_TCP_HEAD_MAX (VNXI_TCP_LENGTH + 1) /* length and status */

/* Write the head of the reply to a request of that kind, of which `len` bytes
 * follow.  Returns the size of the head. */
size_t vnxi_tcp_head_encode(vnxi_tcp_kind_t kind, vnxi_tcp_status_t status,
                            size_t len, unsigned char head[VNXI_TCP_HEAD_MAX]);

typedef enum vnxi_tcp_length {
    VNXI_TCP_LENGTH_VALID = 0,
    VNXI_TCP_LENGTH_ABOVE_MAX,
    VNXI_TCP_LENGTH_NO_STATUS, /* the frame is too short for its status */
} vnxi_tcp_length_t;

/* Read the length of the reply to a request of that kind, which has arrived as
 * the head of `in`, and make `in` want the rest: the status in the head, and
 * the body, of `max` bytes at most.  If the length is not valid, it wants
 * nothing more. */
vnxi_tcp_length_t vnxi_tcp_reply_expect(vnxi_incoming_t *in,
                                        vnxi_tcp_kind_t kind, uint32_t max);

/* -- TLS and plain frames at the two ends of a connection ----------------- */

/* A fatal TLS alert, unknown_psk_identity.  A listener sends it if the client
 * speaks TLS and the listener does not, or the other way round. */
#define VNXI_TCP_ALERT "\x15\x03\x03\x00\x02\x02\x73"
#define VNXI_TCP_ALERT_LEN 7u

/* Do the four bytes, received as the length of a frame, begin a TLS handshake,
 * or a TLS alert? */
bool vnxi_tcp_is_tls_hello(const unsigned char length[VNXI_TCP_LENGTH]);
bool vnxi_tcp_is_tls_alert(const unsigned char length[VNXI_TCP_LENGTH]);

#endif
