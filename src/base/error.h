/*
 * Writing error records.  The record itself is public: vnx/error.h.
 */
#ifndef VNXI_BASE_ERROR_H
#define VNXI_BASE_ERROR_H

#include <stddef.h>
#include <vnx/error.h>

/*
 * Write a whole record (NULL: nothing is written) and return `status`, so
 * that a failing function ends with
 *
 *     return vnxi_error_set(error, VNX_ERR_NOT_FOUND, "prep_xfer_dlist",
 *                           "no region holds it");
 */
vnx_status_t vnxi_error_set(vnx_error_t *error, vnx_status_t status,
                            const char *operation, const char *cause, ...)
    __attribute__((format(printf, 4, 5)));

/* Add to a record that was just written; NULL is allowed. */
void vnxi_error_peer(vnx_error_t *error, const void *name, size_t len);
void vnxi_error_row(vnx_error_t *error, size_t row);
void vnxi_error_desc(vnx_error_t *error, size_t row, uint64_t addr,
                     uint64_t len, uint64_t dev);

/* A byte of a name for people to read: names come from the network, and what
 * does not print is shown as '?'. */
static inline char
vnxi_error_printable(unsigned char byte)
{
    return byte >= 0x20 && byte < 0x7f ? (char)byte : '?';
}

/* VNX_ERR_NO_MEMORY for an allocation of `size` bytes. */
vnx_status_t vnxi_error_no_memory(vnx_error_t *error, const char *operation,
                                  size_t size);

#endif
