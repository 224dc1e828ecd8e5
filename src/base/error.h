/*
 * Functions that write error records.  The record itself is public:
 * vnx/error.h.
 */
#ifndef VNXI_BASE_ERROR_H
#define VNXI_BASE_ERROR_H

#include <stdbool.h>
#include <stddef.h>
#include <vnx/error.h>

/*
 * Write a whole record (nothing if `error` is NULL) and return `status`, so
 * that a failing function ends with
 *
 *     return vnxi_error_set(error, VNX_ERR_NOT_FOUND, "vnx_dlist_create",
 *                           "no region holds it");
 */
vnx_status_t vnxi_error_set(vnx_error_t *error, vnx_status_t status,
                            const char *operation, const char *cause, ...)
    __attribute__((format(printf, 4, 5)));

/* Append to the cause of a record that was just written, such as what the
 * caller can do.  NULL is allowed. */
void vnxi_error_add(vnx_error_t *error, const char *more, ...)
    __attribute__((format(printf, 2, 3)));

/* Append to the NUL-terminated text in `size` bytes.  What does not fit is cut
 * off. */
void vnxi_text_add(char *text, size_t size, const char *more, ...)
    __attribute__((format(printf, 3, 4)));

/* Add to a record that was just written.  NULL is allowed. */
void vnxi_error_peer(vnx_error_t *error, const void *name, size_t len);
void vnxi_error_row(vnx_error_t *error, size_t row);
void vnxi_error_desc(vnx_error_t *error, size_t row, uint64_t addr,
                     uint64_t len, uint64_t dev);

/* A byte of a name in printable form.  Names come from the network; bytes that
 * do not print become '?'. */
static inline char
vnxi_error_printable(unsigned char byte)
{
    return byte >= 0x20 && byte < 0x7f ? (char)byte : '?';
}

/* Text for an errno.  If the process or the system has run out of descriptors,
 * the text has the limit and the number in use.  The result of vnxi_errno() is
 * valid until the end of the enclosing block. */
#define VNXI_ERRNO_TEXT 192
const char *vnxi_errno_text(int err, char text[VNXI_ERRNO_TEXT]);
#define vnxi_errno(err) vnxi_errno_text((err), (char[VNXI_ERRNO_TEXT]){0})

/* The same for the failure of a library that gives no reason.  The text is
 * " (descriptors: 250 of 256 ...)" if less than 32 descriptors are left, else
 * empty. */
const char *vnxi_descriptors_text(char text[VNXI_ERRNO_TEXT]);
#define vnxi_descriptors() vnxi_descriptors_text((char[VNXI_ERRNO_TEXT]){0})

/* Return whether less than 32 descriptors are left. */
bool vnxi_descriptors_are_scarce(void);

/* VNX_ERR_NO_MEMORY for an allocation of `size` bytes. */
vnx_status_t vnxi_error_no_memory(vnx_error_t *error, const char *operation,
                                  size_t size);

#endif
