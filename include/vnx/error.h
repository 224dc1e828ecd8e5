/*
 * The error record: what failed, where and why.
 *
 * A call that can fail takes a pointer to a record.  It fills the record if it
 * returns an error, and does not touch it otherwise.  NULL means that the
 * caller needs only the status.  The function that detects an error writes the
 * record; its callers pass it on.  A record owns nothing, so it can be copied
 * with `=` and placed on the stack.  It needs no initialization.
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
    const char *operation;         /* "vnx_dlist_create": the function that
                                      failed; static storage */
    int64_t row;                   /* index of the offending row, from 0;
                                      -1: none */
    uint64_t addr, len, dev;       /* of that row; valid if has_desc */
    int has_desc;                  /* 1: addr, len and dev are valid */
    char peer[VNX_ERROR_PEER_MAX]; /* name, truncated to fit; "": none */
    char cause[VNX_ERROR_CAUSE_MAX];
} vnx_error_t;

/* Format the record as one line:
 * "NIXL_ERR_NOT_FOUND: vnx_dlist_create: row 3 (address 0x10, length 32,
 * device 0), peer 'B': no region holds it".  Writes at most `size` bytes,
 * including the final NUL.  Returns the length of the full text, like
 * snprintf. */
int vnx_error_format(const vnx_error_t *error, char *buffer, int size);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
