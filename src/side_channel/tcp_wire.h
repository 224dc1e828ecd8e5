/*
 * What the frames of the TCP side channel say.  Encoding and parsing of
 * bytes; no I/O, no clock, no memory.  The bytes: docs/wire.md.
 *
 * A request is VNXI_TCP_REQUEST, which is all that the first servers and
 * clients of this protocol know, or begins with "VNX1" and a kind.  Replies to
 * the first kind have no status: the frame is the blob.  Replies to the others
 * begin with a status.
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

#define VNXI_TCP_NONCE 32u
#define VNXI_TCP_MAC 32u

/* The longest reply that is no blob, and what stands before a blob. */
#define VNXI_TCP_REPLY_HEAD (1u + VNXI_TCP_MAC)
#define VNXI_TCP_TEXT_MAX 160u

typedef enum vnxi_tcp_kind {
    VNXI_TCP_SEED = 0,   /* VNXI_TCP_REQUEST */
    VNXI_TCP_GET = 1,    /* then the key */
    VNXI_TCP_HELLO = 2,  /* then the client's nonce */
    VNXI_TCP_PROVE = 3,  /* then the client's proof */
    VNXI_TCP_SEALED = 4, /* then a MAC, then the key */
} vnxi_tcp_kind_t;

typedef struct vnxi_tcp_request {
    vnxi_tcp_kind_t kind;
    const unsigned char *nonce; /* HELLO; all borrowed from the frame */
    const unsigned char *mac;   /* PROVE, SEALED */
    const unsigned char *key;   /* GET, SEALED */
    size_t key_len;
} vnxi_tcp_request_t;

/* Take a request's frame apart.  False: it is none. */
bool vnxi_tcp_request_parse(const void *frame, size_t len,
                            vnxi_tcp_request_t *out_p);

/* Write the payload of a request; its length, VNXI_TCP_REQUEST_MAX at most. */
size_t vnxi_tcp_request_encode(const vnxi_tcp_request_t *request,
                               unsigned char payload[VNXI_TCP_REQUEST_MAX]);

/* X(symbol, number, text, status at the client).  Below 16: no error. */
#define VNXI_TCP_STATUS_TABLE(X)                                              \
    X(BLOB, 0, "", VNX_OK)                                                    \
    X(CHALLENGE, 1, "", VNX_OK)                                               \
    X(PROVED, 2, "", VNX_OK)                                                  \
    X(UNKNOWN_KEY, 16, "nothing is served under that key", VNX_ERR_NOT_FOUND) \
    X(NO_PROOF, 17, "this listener wants a shared secret to be proved",       \
      VNX_ERR_NOT_ALLOWED)                                                    \
    X(WRONG_PROOF, 18, "the shared secrets differ", VNX_ERR_NOT_ALLOWED)      \
    X(NO_SECRET, 19, "this listener has no shared secret to be proved",       \
      VNX_ERR_NOT_ALLOWED)                                                    \
    X(MALFORMED, 20, "not a request of this protocol", VNX_ERR_MISMATCH)

typedef enum vnxi_tcp_status {
#define VNXI_TCP_STATUS_ENUM(symbol, number, text, status) \
    VNXI_TCP_##symbol = (number),
    VNXI_TCP_STATUS_TABLE(VNXI_TCP_STATUS_ENUM)
#undef VNXI_TCP_STATUS_ENUM
} vnxi_tcp_status_t;

/* The text of a status; NULL: there is no such status. */
const char *vnxi_tcp_status_text(vnxi_tcp_status_t status);

/* What a status means to who asked; VNX_ERR_MISMATCH for a number that is not
 * in the table. */
vnx_status_t vnxi_tcp_status_meaning(vnxi_tcp_status_t status);

#endif
