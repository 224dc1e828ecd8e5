/*
 * The bytes of the ZMQ side channel.  Encoding and strict parsing; no I/O, no
 * clock, no memory.  docs/wire.md specifies them.
 *
 * ZMTP 3 is the protocol of ZeroMQ's sockets, here with the mechanism NULL:
 * greeting, commands, headers of frames.  Over it go the messages of vLLM's
 * handshake, in the small part of msgpack that they use:
 *
 *   request  array: bin "get_meta_msg", then integers that name the rank: int
 *            pp_rank, int tp_rank (connector versions 5 to 15), int tp_rank
 *            alone (older ones), or more (later ones)
 *   reply    the blob; if there was more than one integer, a second frame
 *            with a float 64, the listener's clock
 *   refusal  a map with a text, which no version of vLLM uses as a blob, and
 *            a second frame with a float 64 that is NaN
 */
#ifndef VNXI_SIDE_CHANNEL_ZMQ_WIRE_H
#define VNXI_SIDE_CHANNEL_ZMQ_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/side_channel.h>

#define VNXI_ZMTP_GREETING 64u
#define VNXI_ZMTP_HEADER_MAX 9u
#define VNXI_ZMTP_SMALL_MAX 1036u  /* limit on commands, and on requests */
#define VNXI_ZMTP_COMMAND_MAX 400u /* limit on the commands that we send */
#define VNXI_ZMTP_PING_CONTEXT 16u

/* -- Greeting ------------------------------------------------------------- */

/* Write the greeting, which both sides send first. */
void vnxi_zmtp_greeting(unsigned char greeting[VNXI_ZMTP_GREETING]);

/* Check the first `len` bytes of the peer's greeting.  NULL: they are correct;
 * otherwise the text of the error (static storage). */
const char *vnxi_zmtp_greeting_check(const unsigned char *bytes, size_t len);

/* -- Frames --------------------------------------------------------------- */

typedef struct vnxi_zmtp_frame {
    bool more;     /* another frame of the message follows */
    bool command;  /* not a message */
    size_t header; /* bytes of the header */
    uint64_t len;  /* bytes that follow the header */
} vnxi_zmtp_frame_t;

typedef enum vnxi_zmtp_state {
    VNXI_ZMTP_MORE = 0, /* bytes are missing */
    VNXI_ZMTP_WHOLE,
    VNXI_ZMTP_BAD, /* not a header */
} vnxi_zmtp_state_t;

/* Parse a header from the first `have` bytes of a frame. */
vnxi_zmtp_state_t vnxi_zmtp_header_parse(const unsigned char *bytes,
                                         size_t have,
                                         vnxi_zmtp_frame_t *frame_p);

/* Write the header of a message's frame.  Returns its length. */
size_t vnxi_zmtp_header_encode(bool more, uint64_t len,
                               unsigned char header[VNXI_ZMTP_HEADER_MAX]);

/* -- Commands ------------------------------------------------------------- */

/* The peer's READY; all pointers are borrowed from the command. */
typedef struct vnxi_zmtp_ready {
    const unsigned char *type; /* of its socket; NULL: not given */
    size_t type_len;
    const unsigned char *key; /* of the requested blob; NULL: none */
    size_t key_len;
    bool knows_keys; /* it is a listener of this library */
} vnxi_zmtp_ready_t;

/* Write READY, with its header: of a client that asks for a key (up to
 * VNX_SIDE_CHANNEL_KEY_MAX bytes), or of a listener.  Returns the length. */
size_t vnxi_zmtp_ready_client(const void *key, size_t key_len,
                              unsigned char command[VNXI_ZMTP_COMMAND_MAX]);
size_t vnxi_zmtp_ready_listener(unsigned char command[VNXI_ZMTP_COMMAND_MAX]);

/* Parse the body of a READY.  False: it is not one. */
bool vnxi_zmtp_ready_parse(const unsigned char *body, size_t len,
                           vnxi_zmtp_ready_t *ready_p);

bool vnxi_zmtp_type_is(const vnxi_zmtp_ready_t *ready, const char *type);

/* Write the PONG, with its header, that answers the body of a PING.  Returns
 * its length; 0: the body is not a PING. */
size_t vnxi_zmtp_pong(const unsigned char *body, size_t len,
                      unsigned char command[VNXI_ZMTP_COMMAND_MAX]);

/* -- Messages ------------------------------------------------------------- */

#define VNXI_ZMQ_REQUEST_MAX 256u
#define VNXI_ZMQ_CLOCK 9u
#define VNXI_ZMQ_REFUSAL_MAX 128u

#define VNXI_ZMQ_UNKNOWN_KEY "nothing is served under that key"
#define VNXI_ZMQ_MALFORMED "not a request for metadata"

/* A request for a rank, which one or more integers name.  They are kept as the
 * key that stands for them, "0,1", so a request has as many as the longest key
 * holds. */
typedef struct vnxi_zmq_request {
    size_t count; /* of integers; > 0 */
    size_t key_len;
    char key[VNX_SIDE_CHANNEL_KEY_MAX + 1]; /* and a NUL */
} vnxi_zmq_request_t;

/* Parse a request.  False: it is not one. */
bool vnxi_zmq_request_parse(const unsigned char *bytes, size_t len,
                            vnxi_zmq_request_t *out_p);

/* Write a request, whose integers are not negative.  Returns its length. */
size_t vnxi_zmq_request_encode(const vnxi_zmq_request_t *request,
                               unsigned char bytes[VNXI_ZMQ_REQUEST_MAX]);

/* Make the request for a key that names a rank, such as "0,1" or "1".  False:
 * the key does not. */
bool vnxi_zmq_request_of_key(const void *key, size_t key_len,
                             vnxi_zmq_request_t *out_p);

/* Write the clock of a reply, or VNXI_ZMQ_NO_CLOCK, that of a refusal. */
void vnxi_zmq_clock_encode(double seconds,
                           unsigned char bytes[VNXI_ZMQ_CLOCK]);
bool vnxi_zmq_is_no_clock(const unsigned char *bytes, size_t len);
#define VNXI_ZMQ_NO_CLOCK                             \
    __builtin_nan("") /* a quiet NaN, without payload \
                       */

/* Write a refusal; `text` has at most 100 bytes.  Returns its length. */
size_t vnxi_zmq_refusal_encode(const char *text,
                               unsigned char bytes[VNXI_ZMQ_REFUSAL_MAX]);

/* Find the text of a refusal, borrowed from `bytes`.  NULL: they are not a
 * refusal. */
const unsigned char *vnxi_zmq_refusal_parse(const unsigned char *bytes,
                                            size_t len, size_t *len_p);

#endif
