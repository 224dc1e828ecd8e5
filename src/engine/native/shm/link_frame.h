/*
 * The frames of links: writing frames, reading them from a stream that arrives
 * in pieces, and the queue of bytes to send.  Pure: no sockets, no locks.
 *
 * Frames: u32 length of the rest, u8 type, body; little-endian.
 *   1 HELLO    u16 version (2), instance[16] of the opener, u32 name length,
 *              name, instance[16] and u32 name length, name of the agent to
 *              reach (any other agent answers with REFUSE)
 *   2 NOTIF    the message
 *   3 REVOKE   u64 epoch, u32 count, then count * (u32 mem, u64 addr, u64 len,
 *              u64 dev): these were deregistered before that epoch
 *   4 BYE      no body: an orderly end (close(), remove_remote_agent)
 *   5 CONFIRM  u64 token, u32 count, then count * (u32 mem, u64 addr, u64 len,
 *              u64 dev, u32 1 if it is shared, u64 offset, u64 st_dev,
 *              u64 st_ino; all 0 if it is not): are these registered now?
 *   6 CONFIRMED u64 token, u64 epoch of the registry at the lookup, u32 count,
 *              then count * u32, ascending: indices of rows not registered
 *   7 REFUSE   instance[16], u32 name length, name of the listener, which is
 *              not the agent that HELLO named; then the end
 *   8 CONTROL  u8 length of a transport's entry in metadata, the entry, u8
 *              number of descriptors sent with the frame, data: a message of
 *              that transport
 *   9 SETTLE   u64 token: answer when nothing at your end touches memory that
 *              an earlier REVOKE has named
 *  10 SETTLED  u64 token: nothing does
 *  11 CLOSING  no body: the agent is about to end; use none of its memory from
 *              now on.  SETTLE follows, and BYE after SETTLED
 * The opener sends HELLO, NOTIF, CONFIRM, SETTLED, CONTROL and BYE, the
 * listener the others, CONTROL and BYE.  Only the listener sends descriptors,
 * with the first byte of the frame.  A frame above VNXI_LINK_FRAME_MAX, of
 * unknown type, from the wrong side, before HELLO, or with a malformed body
 * ends the link on which it arrived, and only that link.
 *
 * A reader allocates as bytes arrive, never by the announced length, and
 * copies only frames that are cut off by the end of its input.
 */
#ifndef VNXI_NATIVE_SHM_LINK_FRAME_H
#define VNXI_NATIVE_SHM_LINK_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/vnx.h>

#include "base/bytes.h"
#include "engine/native/shm/shm_wire.h"
#include "engine/native/transport.h"

#define VNXI_LINK_FRAME_MAX (1u << 30)
#define VNXI_LINK_FRAME_HEADER 5 /* bytes: length and type */
#define VNXI_LINK_FRAME_NAME_MAX 65535
#define VNXI_LINK_FRAME_REVOKES_MAX 65536
#define VNXI_LINK_ROWS_MAX 1024u /* in a CONFIRM */

typedef enum vnxi_link_frame_type {
    VNXI_LINK_FRAME_HELLO = 1,
    VNXI_LINK_FRAME_NOTIF = 2,
    VNXI_LINK_FRAME_REVOKE = 3,
    VNXI_LINK_FRAME_BYE = 4,
    VNXI_LINK_FRAME_CONFIRM = 5,
    VNXI_LINK_FRAME_CONFIRMED = 6,
    VNXI_LINK_FRAME_REFUSE = 7,
    VNXI_LINK_FRAME_CONTROL = 8,
    VNXI_LINK_FRAME_SETTLE = 9,
    VNXI_LINK_FRAME_SETTLED = 10,
    VNXI_LINK_FRAME_CLOSING = 11,
} vnxi_link_frame_type_t;

#define VNXI_LINK_FRAME_BIT(type) (1u << (type))

/* A region as metadata describes it.  The descriptor number in `map_info` only
 * tells whether the region is shared (>= 0). */
typedef struct vnxi_link_row {
    vnx_mem_t mem;
    vnx_desc_t desc;
    vnxi_map_info_t map_info;
} vnxi_link_row_t;

/* A CONFIRMED. */
typedef struct vnxi_link_answer {
    uint64_t token;
    uint64_t epoch; /* of the owner's registry at the lookup */
    size_t count;
    uint32_t refused[VNXI_LINK_ROWS_MAX]; /* `count` row indices, ascending */
} vnxi_link_answer_t;

/* -- Writing -------------------------------------------------------------- */

/* `body_len` must be < VNXI_LINK_FRAME_MAX. */
void vnxi_link_frame_header(vnxi_link_frame_type_t type, size_t body_len,
                            unsigned char header_p[VNXI_LINK_FRAME_HEADER]);

typedef struct vnxi_link_frame_hello {
    const unsigned char *instance; /* of the opener; VNXI_SHM_ID_SIZE bytes */
    const unsigned char *target;   /* of the agent to reach;
                                      VNXI_SHM_ID_SIZE bytes */
    const void *name;              /* of the opener */
    size_t name_len;               /* 1 to VNXI_LINK_FRAME_NAME_MAX */
    const void *target_name;       /* of the agent to reach */
    size_t target_name_len;
} vnxi_link_frame_hello_t;

typedef struct vnxi_link_frame_refuse {
    const unsigned char *instance; /* of the listener; VNXI_SHM_ID_SIZE */
    const void *name;
    size_t name_len; /* 1 to VNXI_LINK_FRAME_NAME_MAX */
} vnxi_link_frame_refuse_t;

typedef struct vnxi_link_frame_revoke {
    uint64_t epoch;
    vnx_mem_t mem;
    const vnx_desc_t *descs;
    size_t count; /* 1 to VNXI_LINK_FRAME_REVOKES_MAX */
} vnxi_link_frame_revoke_t;

typedef struct vnxi_link_frame_control {
    const void *entry;
    size_t entry_len; /* 1 to 255 */
    const void *data;
    size_t len;      /* at most VNXI_CONTROL_BYTES_MAX */
    size_t fd_count; /* at most VNXI_CONTROL_FDS_MAX */
} vnxi_link_frame_control_t;

/* Write whole frames. */
void vnxi_link_frame_write_hello(vnxi_writer_t *writer,
                                 const vnxi_link_frame_hello_t *hello);
void vnxi_link_frame_write_revoke(vnxi_writer_t *writer,
                                  const vnxi_link_frame_revoke_t *revoke);
void vnxi_link_frame_write_confirm(vnxi_writer_t *writer, uint64_t token,
                                   const vnxi_link_row_t *rows, size_t count);
void vnxi_link_frame_write_confirmed(vnxi_writer_t *writer,
                                     const vnxi_link_answer_t *answer);
void vnxi_link_frame_write_refuse(vnxi_writer_t *writer,
                                  const vnxi_link_frame_refuse_t *refuse);
void vnxi_link_frame_write_control(vnxi_writer_t *writer,
                                   const vnxi_link_frame_control_t *control);
/* `type`: SETTLE or SETTLED. */
void vnxi_link_frame_write_token(vnxi_writer_t *writer,
                                 vnxi_link_frame_type_t type, uint64_t token);
void vnxi_link_frame_write_closing(vnxi_writer_t *writer);

/* -- Reading -------------------------------------------------------------- */

typedef struct vnxi_frame {
    vnxi_link_frame_type_t type;
    const unsigned char *body; /* borrowed from the reader */
    size_t len;
} vnxi_link_frame_t;

/* A new reader is all zeros except `allowed`. */
typedef struct vnxi_link_frame_reader {
    unsigned allowed; /* VNXI_LINK_FRAME_BIT of the types allowed now */
    /* private */
    unsigned char *kept; /* owned: the start of a frame that was cut off */
    size_t kept_len, kept_capacity;
    bool kept_taken;               /* it was returned as a frame: discard it */
    const unsigned char *at, *end; /* borrowed: the current input */
} vnxi_link_frame_reader_t;

typedef enum vnxi_link_frame_result {
    VNXI_LINK_FRAME_WHOLE,     /* *frame_p is a whole frame */
    VNXI_LINK_FRAME_NEED_MORE, /* all input is used up */
    VNXI_LINK_FRAME_MALFORMED, /* no further frame can be read */
    VNXI_LINK_FRAME_NO_MEMORY, /* the same */
} vnxi_link_frame_result_t;

/* Add `len` bytes of input (borrowed until the next NEED_MORE).  Earlier input
 * must be used up. */
void vnxi_link_frame_reader_feed(vnxi_link_frame_reader_t *reader,
                                 const void *data, size_t len);

/* Get the next frame; it is valid until the next call. */
vnxi_link_frame_result_t
vnxi_link_frame_reader_next(vnxi_link_frame_reader_t *reader,
                            vnxi_link_frame_t *frame_p);

/* After NEED_MORE: is the end of a frame missing? */
static inline bool
vnxi_link_frame_reader_is_within(const vnxi_link_frame_reader_t *reader)
{
    return reader->kept_len > 0;
}

void vnxi_link_frame_reader_fini(vnxi_link_frame_reader_t *reader);

/* Parse the body of a HELLO; false: malformed.  Borrows from the frame. */
bool vnxi_link_frame_read_hello(const vnxi_link_frame_t *frame,
                                vnxi_link_frame_hello_t *hello_p);

/* Parse the body of a REVOKE and check every row; false: malformed. */
bool vnxi_link_frame_read_revoke(const vnxi_link_frame_t *frame,
                                 uint64_t *epoch_p, uint32_t *count_p);
/* Get row `i` < count. */
vnx_desc_t vnxi_link_frame_revoke_row(const vnxi_link_frame_t *frame,
                                      uint32_t i, vnx_mem_t *mem_p);

/* Parse the body of a CONFIRM and check every row; false: malformed. */
bool vnxi_link_frame_read_confirm(const vnxi_link_frame_t *frame,
                                  uint64_t *token_p, uint32_t *count_p);
/* Get row `i` < count. */
vnxi_link_row_t vnxi_link_frame_confirm_row(const vnxi_link_frame_t *frame,
                                            uint32_t i);

/* Parse the body of a CONFIRMED; false: malformed. */
bool vnxi_link_frame_read_confirmed(const vnxi_link_frame_t *frame,
                                    vnxi_link_answer_t *answer_p);

/* Parse the body of a REFUSE; false: malformed.  Borrows from the frame. */
bool vnxi_link_frame_read_refuse(const vnxi_link_frame_t *frame,
                                 vnxi_link_frame_refuse_t *refuse_p);

/* Parse the body of a SETTLE or SETTLED; false: malformed. */
bool vnxi_link_frame_read_token(const vnxi_link_frame_t *frame,
                                uint64_t *token_p);

/* Parse the body of a CONTROL; false: malformed.  Borrows from the frame. */
bool vnxi_link_frame_read_control(const vnxi_link_frame_t *frame,
                                  vnxi_link_frame_control_t *control_p);

/* -- The queue of a link -------------------------------------------------- */

/* Bytes that a socket has not taken yet, in order. */
typedef struct vnxi_link_block vnxi_link_block_t;

typedef struct vnxi_link_queue {
    vnxi_link_block_t *head, *tail; /* owned */
    size_t bytes;                   /* not yet consumed */
    size_t fds;                     /* that wait to be sent */
} vnxi_link_queue_t;                /* all zeros: empty */

/* Append a copy of the data.  False: no memory, and nothing was added. */
bool vnxi_link_queue_add(vnxi_link_queue_t *queue, const void *data,
                         size_t len);

/* The same for a frame that is sent with descriptors, 1 to
 * VNXI_CONTROL_FDS_MAX.  The queue closes them. */
bool vnxi_link_queue_add_fds(vnxi_link_queue_t *queue, const void *data,
                             size_t len, const int *fds, size_t fd_count);

/* The descriptors to send with the first byte of the piece at the front. */
const int *vnxi_link_queue_fds(const vnxi_link_queue_t *queue,
                               size_t *count_p);

/* The longest contiguous piece at the front, in place.  The queue must not be
 * empty. */
const void *vnxi_link_queue_front(const vnxi_link_queue_t *queue,
                                  size_t *len_p);

/* Remove `len` bytes of that piece. */
void vnxi_link_queue_consume(vnxi_link_queue_t *queue, size_t len);
void vnxi_link_queue_clear(vnxi_link_queue_t *queue);

#endif
