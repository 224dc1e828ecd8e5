/*
 * ZMTP 3, the protocol of ZeroMQ's sockets, with the mechanism NULL: greeting,
 * commands, headers of frames.  Encoding and parsing of bytes; no I/O, no
 * clock, no memory.  The bytes: docs/wire.md.
 */
#ifndef VNXI_SIDE_CHANNEL_ZMTP_H
#define VNXI_SIDE_CHANNEL_ZMTP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/side_channel.h>

#define VNXI_ZMTP_GREETING 64u
#define VNXI_ZMTP_HEADER_MAX 9u
#define VNXI_ZMTP_SMALL_MAX 1036u  /* of commands, and of requests */
#define VNXI_ZMTP_COMMAND_MAX 400u /* of those that we send */
#define VNXI_ZMTP_PING_CONTEXT 16u

/* -- Greeting ------------------------------------------------------------- */

/* What both sides send first. */
void vnxi_zmtp_greeting(unsigned char greeting[VNXI_ZMTP_GREETING]);

/* The first `len` bytes of the other side's.  NULL: as they should be; or what
 * is wrong with them (static storage). */
const char *vnxi_zmtp_greeting_check(const unsigned char *bytes, size_t len);

/* -- Frames --------------------------------------------------------------- */

typedef struct vnxi_zmtp_frame {
    bool more;     /* another frame of the message follows */
    bool command;  /* not a message */
    size_t header; /* its bytes */
    uint64_t len;  /* bytes that follow the header */
} vnxi_zmtp_frame_t;

typedef enum vnxi_zmtp_state {
    VNXI_ZMTP_MORE = 0, /* bytes are missing */
    VNXI_ZMTP_WHOLE,
    VNXI_ZMTP_BAD, /* no header */
} vnxi_zmtp_state_t;

/* Parse a header from the first `have` bytes of a frame. */
vnxi_zmtp_state_t vnxi_zmtp_header_parse(const unsigned char *bytes,
                                         size_t have,
                                         vnxi_zmtp_frame_t *frame_p);

/* Write the header of a frame of a message; its length. */
size_t vnxi_zmtp_header_encode(bool more, uint64_t len,
                               unsigned char header[VNXI_ZMTP_HEADER_MAX]);

/* -- Commands ------------------------------------------------------------- */

/* What READY says of the other side; all borrowed from the command. */
typedef struct vnxi_zmtp_ready {
    const unsigned char *type; /* of its socket; NULL: it does not say */
    size_t type_len;
    const unsigned char *key; /* of the blob that it asks for; NULL: none */
    size_t key_len;
    bool knows_keys; /* it is a listener of this library */
} vnxi_zmtp_ready_t;

/* READY of a client that asks for a key (up to VNX_SIDE_CHANNEL_KEY_MAX
 * bytes), and of a listener; with the header.  Returns the length. */
size_t vnxi_zmtp_ready_client(const void *key, size_t key_len,
                              unsigned char command[VNXI_ZMTP_COMMAND_MAX]);
size_t vnxi_zmtp_ready_listener(unsigned char command[VNXI_ZMTP_COMMAND_MAX]);

/* Take the body of a READY apart.  False: it is none. */
bool vnxi_zmtp_ready_parse(const unsigned char *body, size_t len,
                           vnxi_zmtp_ready_t *ready_p);

bool vnxi_zmtp_type_is(const vnxi_zmtp_ready_t *ready, const char *type);

/* Is it the command `name`? */
bool vnxi_zmtp_is(const unsigned char *body, size_t len, const char *name);

/* The PONG, with its header, to the body of a PING; its length, 0: no PING. */
size_t vnxi_zmtp_pong(const unsigned char *body, size_t len,
                      unsigned char command[VNXI_ZMTP_COMMAND_MAX]);

#endif
