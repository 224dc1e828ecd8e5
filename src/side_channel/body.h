/*
 * A reply while a client receives it: no I/O, no locks, no clock.
 *
 * The buffer of a body grows with the bytes that arrive, from VNXI_BODY_CHUNK
 * by doubling.  So a reply that announces a great length and sends little
 * costs little, and no byte is copied twice on its way from the socket.
 */
#ifndef VNXI_SIDE_CHANNEL_BODY_H
#define VNXI_SIDE_CHANNEL_BODY_H

#include <stddef.h>

#define VNXI_BODY_CHUNK (64u << 10) /* maximum initial size of the buffer */

typedef struct vnxi_body {
    unsigned char *data; /* owned */
    size_t len;          /* bytes received */
    size_t capacity;     /* at most twice `len`, once it is above a chunk */
} vnxi_body_t;           /* all zeros: empty */

/* Return where to put the next bytes of a body that has `max` bytes at most,
 * more than it has by now.  *size_p is how many fit, at least 1.  The caller
 * adds the number of bytes that it puts there to `len`.  NULL: no memory. */
void *vnxi_body_space(vnxi_body_t *body, size_t max, size_t *size_p);

/* Take the bytes; the body is empty then.  Returns owned: free(); not NULL
 * even if *len_p is 0.  NULL: no memory. */
void *vnxi_body_take(vnxi_body_t *body, size_t *len_p);

/* Free the bytes; the body is empty then. */
void vnxi_body_fini(vnxi_body_t *body);

/* A frame that arrives.  The reader says how much of the head it wants and,
 * when that tells, how long the body is. */
typedef struct vnxi_incoming {
    size_t head_want, head_have;
    size_t body_want;
    unsigned char head[64]; /* ZMTP's greeting is the longest */
    vnxi_body_t body;
} vnxi_incoming_t;

/* Return where to put the next bytes, and in *size_p how many are wanted.
 * NULL with *size_p 0: all have arrived.  NULL with *size_p above 0: no
 * memory. */
void *vnxi_incoming_space(vnxi_incoming_t *in, size_t *size_p);

/* Note that `count` bytes were put there. */
void vnxi_incoming_commit(vnxi_incoming_t *in, size_t count);

#endif
