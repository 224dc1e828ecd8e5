/*
 * Messages with which an agent lends its GPU memory to agents of other
 * processes, or copies it for them: control messages of the transport
 * (transport.h), little-endian.
 *
 *   1 ASK       u64 loan, u64 addr, u64 len, u64 dev, u64 from: hand out the
 *               allocations of this region from the address `from` on.  The
 *               first one of a loan, whose number is chosen by the asker,
 *               starts at the region's address.
 *   2 LENT      u64 loan, u8 1 if these are the last, u8 count, then count *
 *               (u64 start, u64 size, u64 the driver's id, u8 kind, 64 bytes
 *               of handle): the allocations, one after the other, as the owner
 *               has them.  The handle of kind FD is the next descriptor of the
 *               message.
 *   3 REFUSED   u64 loan, u32 status, the reason (UTF-8): the owner does not
 *               lend the region, or not any more
 *   4 RECALL    u64 loan: give it back now
 *   5 RETURNED  u64 loan: nothing of it is mapped or used any more
 *   6 CHECK     u64 token, u16 count, then count * u64 loan: do the handles
 *               still lead to the memory that the regions have?
 *   7 CHECKED   u64 token, u16 count, then count * u64 loan: not these
 *   8 OPEN      u64 window: share a window (below), whose number is chosen by
 *               the asker; RETURNED gives it back
 *   9 OPENED    u64 window, u32 status, the reason if it is not 0 (UTF-8),
 *               otherwise the descriptor of the window
 *  10 MOVE      u64 token, u64 window, u8 half, u8 1 to write to the region,
 *               u64 addr, u64 len, u64 dev of the region, u16 count, then
 *               count * (u64 address in the region, u32 offset in the half,
 *               u32 length): copy these bytes between region and half
 *  11 MOVED     u64 token, u32 status, the reason if it is not 0: they were
 *               copied
 *
 * The asker sends ASK, RETURNED, CHECK, OPEN and MOVE, the owner the others.
 *
 * An owner uses a window to copy its GPU memory for an asker that cannot map
 * it.  The window is a memfd of VNXI_WINDOW_BYTES that cannot shrink.  It
 * begins with a vnxi_window_head_t, followed by two halves of
 * VNXI_WINDOW_HALF_BYTES.
 *
 * Pure.
 */
#ifndef VNXI_NATIVE_CUDA_LEND_WIRE_H
#define VNXI_NATIVE_CUDA_LEND_WIRE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/error.h>

#include "base/bytes.h"
#include "engine/native/transport.h"

#define VNXI_LEND_PIECES_MAX VNXI_CONTROL_FDS_MAX /* in a LENT */
#define VNXI_LEND_LOANS_MAX 4096u                 /* in a CHECK */
#define VNXI_LEND_HANDLE_SIZE 64u
#define VNXI_LEND_ROWS_MAX 1024u /* in a MOVE */
#define VNXI_LEND_STATUS_MAX 64  /* this and higher numbers are not sent */

#define VNXI_WINDOW_HALVES 2u
/* So that the halves are pages of their own, whatever the size of pages is. */
#define VNXI_WINDOW_HEAD_BYTES 65536u
#define VNXI_WINDOW_HALF_BYTES (4u << 20)
#define VNXI_WINDOW_BYTES \
    (VNXI_WINDOW_HEAD_BYTES + VNXI_WINDOW_HALVES * VNXI_WINDOW_HALF_BYTES)

typedef enum vnxi_lend_type {
    VNXI_LEND_ASK = 1,
    VNXI_LEND_LENT = 2,
    VNXI_LEND_REFUSED = 3,
    VNXI_LEND_RECALL = 4,
    VNXI_LEND_RETURNED = 5,
    VNXI_LEND_CHECK = 6,
    VNXI_LEND_CHECKED = 7,
    VNXI_LEND_OPEN = 8,
    VNXI_LEND_OPENED = 9,
    VNXI_LEND_MOVE = 10,
    VNXI_LEND_MOVED = 11,
} vnxi_lend_type_t;

typedef enum vnxi_lend_kind {
    VNXI_LEND_LEGACY = 1, /* cuIpcGetMemHandle() */
    VNXI_LEND_FD = 2,     /* cuMemExportToShareableHandle(), a descriptor */
    VNXI_LEND_FABRIC = 3, /* the same, a fabric handle */
} vnxi_lend_kind_t;

/* One allocation, by its addresses in the owner's process. */
typedef struct vnxi_lend_piece {
    uint64_t start, size;
    uint64_t id; /* never used again in the owner's process */
    vnxi_lend_kind_t kind;
    unsigned char handle[VNXI_LEND_HANDLE_SIZE];
} vnxi_lend_piece_t;

/* Bytes of a region, and their place in a half. */
typedef struct vnxi_lend_row {
    uint64_t addr;
    uint32_t offset, len;
} vnxi_lend_row_t;

/* The beginning of a window. */
typedef struct vnxi_window_head {
    /* The token of the MOVE that the half is for.  The asker sets it to 0 to
     * call the copy off: the owner looks before it copies. */
    atomic_uint_fast64_t tokens[VNXI_WINDOW_HALVES];
} vnxi_window_head_t;

typedef struct vnxi_lend {
    vnxi_lend_type_t type;
    uint64_t loan;           /* CHECK, CHECKED, MOVE, MOVED: the token; OPEN,
                                OPENED: the window */
    uint64_t window;         /* MOVE */
    uint8_t half;            /* MOVE */
    bool is_write;           /* MOVE */
    uint64_t addr, len, dev; /* ASK, MOVE: the region */
    uint64_t from;           /* ASK */
    bool is_last;            /* LENT */
    uint32_t status;         /* REFUSED, OPENED, MOVED: a vnx_status_t,
                                negated */
    const char *cause;       /* the same: borrowed, not terminated */
    size_t count;            /* LENT: pieces; CHECK, CHECKED: loans; MOVE:
                                rows; with a status: bytes of cause */
    const vnxi_lend_piece_t *pieces; /* LENT, for writing */
    const uint64_t *loans;           /* CHECK, CHECKED, for writing */
    const vnxi_lend_row_t *moved;    /* MOVE, for writing */
    const unsigned char *rows;       /* private: of a message that was read */
} vnxi_lend_t;

/* The number of a status; those that other agents do not know become
 * VNX_ERR_UNKNOWN. */
static inline uint32_t
vnxi_lend_status(vnx_status_t status)
{
    return status > -VNXI_LEND_STATUS_MAX ? (uint32_t)-status
                                          : (uint32_t)-VNX_ERR_UNKNOWN;
}

void vnxi_lend_write(vnxi_writer_t *writer, const vnxi_lend_t *message);

/* Parse a message; false: malformed.  Borrows from `data`. */
bool vnxi_lend_read(const void *data, size_t len, vnxi_lend_t *message_p);

/* Row `i` < count of a message that was read. */
vnxi_lend_piece_t vnxi_lend_piece(const vnxi_lend_t *message, size_t i);
uint64_t vnxi_lend_loan(const vnxi_lend_t *message, size_t i);
vnxi_lend_row_t vnxi_lend_row(const vnxi_lend_t *message, size_t i);

#endif
