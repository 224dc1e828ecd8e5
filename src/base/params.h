/*
 * Public structs that begin with `size` (vnx/version.h).
 */
#ifndef VNXI_BASE_PARAMS_H
#define VNXI_BASE_PARAMS_H

#include <stddef.h>
#include <vnx/error.h>

/* Read such a struct from a caller of any version: copy `given_size` bytes at
 * `given` to the `size` bytes at `out_p`, and zero the rest.
 * VNX_ERR_INVALID_PARAM: the struct, called `name` in the record, is larger
 * than `size`, or too small. */
vnx_status_t vnxi_params_read(const char *operation, const char *name,
                              const void *given, size_t given_size,
                              void *out_p, size_t size, vnx_error_t *error);

#endif
