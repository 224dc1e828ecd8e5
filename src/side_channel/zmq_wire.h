/*
 * Messages of vLLM's handshake over ZMTP, in the small part of msgpack that
 * they use.  Encoding and strict parsing of bytes; no I/O, no clock, no
 * memory.  docs/wire.md specifies the bytes.
 *
 *   request  array: bin "get_meta_msg", then int pp_rank, int tp_rank
 *            (connector version 12), or int tp_rank alone (older ones)
 *   reply    the blob; to version 12 a second frame with a float 64, the
 *            listener's clock
 *   refusal  a map with a text, which no version of vLLM uses as a blob, and
 *            a second frame with a float 64 that is NaN
 */
#ifndef VNXI_SIDE_CHANNEL_ZMQ_WIRE_H
#define VNXI_SIDE_CHANNEL_ZMQ_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VNXI_ZMQ_REQUEST_MAX 40u
#define VNXI_ZMQ_CLOCK 9u
#define VNXI_ZMQ_REFUSAL_MAX 128u

#define VNXI_ZMQ_UNKNOWN_KEY "nothing is served under that key"
#define VNXI_ZMQ_MALFORMED "not a request for metadata"

typedef struct vnxi_zmq_request {
    bool has_pp_rank; /* connector version 12 */
    int64_t pp_rank, tp_rank;
} vnxi_zmq_request_t;

/* Parse a request.  False: it is not one. */
bool vnxi_zmq_request_parse(const unsigned char *bytes, size_t len,
                            vnxi_zmq_request_t *out_p);

/* Write a request.  Returns its length. */
size_t vnxi_zmq_request_encode(const vnxi_zmq_request_t *request,
                               unsigned char bytes[VNXI_ZMQ_REQUEST_MAX]);

/* Make the request for a key that names ranks, "0,1" or "1".  False: the key
 * does not. */
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
