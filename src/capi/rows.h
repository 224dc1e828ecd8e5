/*
 * Lists of descriptors.
 */
#ifndef VNXI_CAPI_ROWS_H
#define VNXI_CAPI_ROWS_H

#include <stddef.h>
#include <vnx/nixl_capi.h>
#include <vnx/vnx.h>

#include "capi/handles.h"

typedef struct vnxi_rows {
    nixl_capi_mem_type_t mem; /* any number */
    size_t count, room;
    union {
        vnx_desc_t *xfer;
        vnx_reg_desc_t *reg; /* `meta` is owned */
        void *any;
    } at;
} vnxi_rows_t;

/* The list of a handle, for calls that use its rows.  NULL: no such list, or
 * its memory type is none. */
vnxi_rows_t *vnxi_rows(const void *list, vnxi_kind_t kind);

#endif
