/*
 * The error record: what went wrong, where, and why.
 *
 * A call that can fail takes a record of its caller's, fills it when it
 * returns an error, and leaves it untouched otherwise; NULL means that the
 * caller wants the status alone.  The first to notice an error writes the
 * record; callers hand it on.  A record owns nothing: it may be copied with
 * `=`, lies on the stack as a rule, and needs no initialisation.
 */
#ifndef VNX_ERROR_H
#define VNX_ERROR_H

#include <stdint.h>
#include <vnx/status.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#define VNX_ERROR_PEER_MAX 128
#define VNX_ERROR_CAUSE_MAX 360

typedef struct vnx_error {
    vnx_status_t status;
    const char *operation;         /* "prep_xfer_dlist"; static storage */
    int64_t row;                   /* the offending row, from 0; -1: none */
    uint64_t addr, len, dev;       /* of that row; only where has_desc */
    int has_desc;                  /* 1: addr, len and dev are meant */
    char peer[VNX_ERROR_PEER_MAX]; /* name, cut to fit; "": none */
    char cause[VNX_ERROR_CAUSE_MAX];
} vnx_error_t;

/* Write the whole record as one line, as it stands in Python's messages:
 * "NIXL_ERR_NOT_FOUND: prep_xfer_dlist: row 3 (address 0x10, length 32,
 * device 0), peer 'B': no region holds it".  At most `size` bytes with the
 * final NUL.  Returns the length that the whole would have, like snprintf. */
int vnx_error_format(const vnx_error_t *error, char *buffer, int size);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
