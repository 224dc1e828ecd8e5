/*
 * Frames of the TCP side channel: a 32-bit big-endian length, then as many
 * bytes.  Encoding and incremental decoding; no I/O, no locks, no clock.
 *
 * A decoder says where the next bytes go (vnxi_frame_space).  The caller puts
 * them there and says how many arrived (vnxi_frame_commit).  So no byte is
 * copied twice.  The buffer grows with the bytes that arrive, so a frame that
 * announces a great length and sends little costs little.
 */
#ifndef VNXI_SIDE_CHANNEL_FRAME_H
#define VNXI_SIDE_CHANNEL_FRAME_H

#include <stddef.h>
#include <stdint.h>

#define VNXI_FRAME_HEADER 4u
#define VNXI_FRAME_HEAD_MAX 1u
#define VNXI_FRAME_CHUNK (64u << 10) /* maximum initial size of the buffer */

typedef enum vnxi_frame_state {
    VNXI_FRAME_MORE = 0,  /* bytes are missing */
    VNXI_FRAME_WHOLE,     /* vnxi_frame_take() returns it */
    VNXI_FRAME_TOO_LONG,  /* the announced length is above the cap */
    VNXI_FRAME_NO_MEMORY, /* the buffer could not grow */
} vnxi_frame_state_t;

typedef struct vnxi_frame_decoder {
    vnxi_frame_state_t state;
    uint32_t max; /* cap on a frame's length */
    uint32_t len; /* announced length; valid when the header is complete */
    size_t header_have;  /* bytes of the header received */
    size_t head_max;     /* bytes before the body that go to `head` */
    size_t head_have;    /* bytes of the head received; a short frame has fewer
                            than head_max */
    size_t have;         /* bytes of the body received */
    size_t capacity;     /* of data; at most the body, and at most twice `have`
                            once `have` is above a chunk */
    unsigned char *data; /* owned */
    unsigned char header[VNXI_FRAME_HEADER];
    unsigned char head[VNXI_FRAME_HEAD_MAX];
} vnxi_frame_decoder_t;

/* Write the header of a frame of `len` bytes. */
void vnxi_frame_encode_header(uint32_t len,
                              unsigned char header[VNXI_FRAME_HEADER]);

/* Begin a frame of at most `max` bytes.  Its first `head_max` bytes (at most
 * VNXI_FRAME_HEAD_MAX) go to `head` and are not returned by vnxi_frame_take().
 * Allocates nothing. */
void vnxi_frame_decoder_init(vnxi_frame_decoder_t *decoder, uint32_t max,
                             size_t head_max);

/* Free the memory that the decoder owns.  A zeroed decoder is allowed.  May be
 * called again. */
void vnxi_frame_decoder_fini(vnxi_frame_decoder_t *decoder);

/* Return where to put the next bytes, and in *size_p how many: at least 1,
 * none beyond this frame.  NULL and 0 unless the state is VNXI_FRAME_MORE.
 * Valid until the next call on this decoder. */
void *vnxi_frame_space(vnxi_frame_decoder_t *decoder, size_t *size_p);

/* Tell the decoder that `count` bytes were put there, at most the size that
 * vnxi_frame_space returned.  Returns the new state; all but VNXI_FRAME_MORE
 * are final. */
vnxi_frame_state_t vnxi_frame_commit(vnxi_frame_decoder_t *decoder,
                                     size_t count);

/* Take the body of a complete frame, which are the bytes after the head.
 * Returns owned: free(); not NULL even if *len_p is 0.  NULL: the frame is not
 * complete, or its body was taken already. */
void *vnxi_frame_take(vnxi_frame_decoder_t *decoder, size_t *len_p);

#endif
