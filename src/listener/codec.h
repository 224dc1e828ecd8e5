/*
 * The wire format of NIXL's metadata listener.  A frame is a u64 length
 * followed by that many bytes of commands.  A command is
 *
 *     "NIXLCOMM:"  verb, 4 bytes  body, up to the next "NIXLCOMM:"
 *
 * No I/O, no locks, no allocation.  Commands that are read borrow from the
 * frame.
 */
#ifndef VNXI_LISTENER_CODEC_H
#define VNXI_LISTENER_CODEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VNXI_META_HEADER 8u
#define VNXI_META_MARK "NIXLCOMM:"
#define VNXI_META_MARK_LEN 9u
#define VNXI_META_COMMAND_MIN 13u /* a mark and a verb */
/* All bytes before the body in a frame of one command. */
#define VNXI_META_PREFIX (VNXI_META_HEADER + VNXI_META_COMMAND_MIN)

typedef enum vnxi_meta_verb {
    VNXI_META_LOAD,    /* body: metadata; load it */
    VNXI_META_SEND,    /* reply with a LOAD */
    VNXI_META_INVL,    /* body: the name of an agent; remove it */
    VNXI_META_UNKNOWN, /* of a later version */
} vnxi_meta_verb_t;

typedef struct vnxi_meta_command {
    vnxi_meta_verb_t verb;
    const unsigned char *body;
    size_t len; /* of the body */
} vnxi_meta_command_t;

/* The length of the payload of a frame. */
uint64_t vnxi_meta_header_read(const unsigned char header[VNXI_META_HEADER]);

/* Write everything but the body of a frame of one command; not for
 * VNXI_META_UNKNOWN. */
void vnxi_meta_prefix_write(vnxi_meta_verb_t verb, size_t body_len,
                            unsigned char out[VNXI_META_PREFIX]);

typedef struct vnxi_meta_cursor {
    const unsigned char *at, *end;
} vnxi_meta_cursor_t;

/* Start reading a payload.  False: it does not begin with a mark, so it is not
 * a payload of this protocol. */
bool vnxi_meta_commands(const void *payload, size_t len,
                        vnxi_meta_cursor_t *cursor_p);

/* The next command; false at the end.  A mark followed by less than a verb is
 * an unknown command. */
bool vnxi_meta_command_next(vnxi_meta_cursor_t *cursor,
                            vnxi_meta_command_t *command_p);

/* Return whether a receiver would take a part of this body for another
 * command. */
bool vnxi_meta_has_mark(const void *body, size_t len);

#endif
