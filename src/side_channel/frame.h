/*
 * Frames of the TCP side channel: a 32-bit big-endian length, then as many
 * bytes.  Encoding and incremental decoding; no I/O, no locks, no clock.
 *
 * A decoder says where the next bytes go (vnxi_frame_space), the caller puts
 * them there from wherever it has them and says how many came
 * (vnxi_frame_commit).  So nothing is copied twice, and since the buffer grows
 * with what came, a frame that only announces a great length costs nothing.
 */
#ifndef VNXI_SIDE_CHANNEL_FRAME_H
#define VNXI_SIDE_CHANNEL_FRAME_H

#include <stddef.h>
#include <stdint.h>

#define VNXI_FRAME_HEADER 4u
#define VNXI_FRAME_HEAD_MAX 1u
#define VNXI_FRAME_CHUNK (64u << 10) /* the buffer's first size, at most */

typedef enum vnxi_frame_state {
    VNXI_FRAME_MORE = 0,  /* bytes are missing */
    VNXI_FRAME_WHOLE,     /* vnxi_frame_take() has it */
    VNXI_FRAME_TOO_LONG,  /* the announced length is above the cap */
    VNXI_FRAME_NO_MEMORY, /* the buffer could not grow */
} vnxi_frame_state_t;

typedef struct vnxi_frame_decoder {
    vnxi_frame_state_t state;
    uint32_t max;       /* cap on a frame's length */
    uint32_t len;       /* announced; valid when the header is complete */
    size_t header_have; /* bytes of the header that came */
    size_t head_max;    /* so many bytes before the body go to `head` */
    size_t head_have;   /* of them came; all that there are in a short frame */
    size_t have;        /* bytes of the body that came */
    size_t capacity; /* of data; never above the body, nor above twice `have`
                        once that is more than a chunk */
    unsigned char *data; /* owned */
    unsigned char header[VNXI_FRAME_HEADER];
    unsigned char head[VNXI_FRAME_HEAD_MAX];
} vnxi_frame_decoder_t;

/* Write the header of a frame of `len` bytes. */
void vnxi_frame_encode_header(uint32_t len,
                              unsigned char header[VNXI_FRAME_HEADER]);

/* Begin a frame of at most `max` bytes, whose first `head_max` (at most
 * VNXI_FRAME_HEAD_MAX) are not for vnxi_frame_take().  Allocates nothing. */
void vnxi_frame_decoder_init(vnxi_frame_decoder_t *decoder, uint32_t max,
                             size_t head_max);

/* Free what the decoder owns; a zeroed one too.  May be called again. */
void vnxi_frame_decoder_fini(vnxi_frame_decoder_t *decoder);

/* Where the next bytes go: at least 1, at most *size_p, all of this frame.
 * NULL and 0 unless the state is VNXI_FRAME_MORE.  Valid until the next call
 * on this decoder. */
void *vnxi_frame_space(vnxi_frame_decoder_t *decoder, size_t *size_p);

/* `count` bytes (at most the size that vnxi_frame_space gave) were put there.
 * Returns the new state; only VNXI_FRAME_MORE is not final. */
vnxi_frame_state_t vnxi_frame_commit(vnxi_frame_decoder_t *decoder,
                                     size_t count);

/* Take the body of a whole frame, which is what follows the head: owned,
 * free() it; not NULL though *len_p may be 0.  NULL when there is none, or
 * when it was taken already. */
void *vnxi_frame_take(vnxi_frame_decoder_t *decoder, size_t *len_p);

#endif
