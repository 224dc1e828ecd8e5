/*
 * Design notes.  The lists to transfer and to register differ in their rows
 * only, so one set of functions serves both, and the exported ones name the
 * kind.  Lists for memory views take rows too, but nothing reads them.
 */
#include "capi/rows.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "capi/abi.h"

#define ROWS_MAX (SIZE_MAX / sizeof(vnx_reg_desc_t) / 2)

static size_t
row_size(vnxi_kind_t kind)
{
    return kind == VNXI_KIND_REG_ROWS ? sizeof(vnx_reg_desc_t)
                                      : sizeof(vnx_desc_t);
}

/* Make room for `count` rows in all.  False: no memory. */
static bool
reserve(vnxi_rows_t *rows, vnxi_kind_t kind, size_t count)
{
    size_t room = rows->room ? rows->room : 8;

    if (count <= rows->room) {
        return true;
    }
    if (count > ROWS_MAX) {
        return false;
    }
    while (room < count) {
        room *= 2;
    }
    void *at = realloc(rows->at.any, room * row_size(kind));
    if (at == NULL) {
        return false;
    }
    rows->at.any = at;
    rows->room = room;
    return true;
}

/* Remove rows from the place `from` on. */
static void
cut(vnxi_rows_t *rows, vnxi_kind_t kind, size_t from)
{
    for (size_t i = from; kind == VNXI_KIND_REG_ROWS && i < rows->count; i++) {
        free((void *)rows->at.reg[i].meta);
    }
    rows->count = from;
}

vnxi_rows_t *
vnxi_rows(const void *list, vnxi_kind_t kind)
{
    vnxi_rows_t *rows = vnxi_object(list, kind);

    return rows != NULL && (unsigned)rows->mem < VNX_MEM_COUNT ? rows : NULL;
}

/* -- Calls of every kind ---------------------------------------------------
 */

/* NULL: no memory. */
static void *
rows_create(vnxi_kind_t kind, nixl_capi_mem_type_t mem)
{
    vnxi_rows_t *rows = calloc(1, sizeof *rows);
    if (rows == NULL) {
        return NULL;
    }
    rows->mem = mem;
    void *handle = vnxi_handle_create(kind, rows, NULL, NULL);
    if (handle == NULL) {
        free(rows);
    }
    return handle;
}

/* The result of a call that creates a list and has this place for it. */
static nixl_capi_status_t
created(const void *place, const void *handle)
{
    return place == NULL    ? NIXL_CAPI_ERROR_INVALID_PARAM
           : handle == NULL ? NIXL_CAPI_ERROR_BACKEND
                            : NIXL_CAPI_SUCCESS;
}

static nixl_capi_status_t
rows_destroy(const void *handle, vnxi_kind_t kind)
{
    vnxi_rows_t *rows = vnxi_handle_end(handle, kind);

    if (rows == NULL) {
        return vnxi_abi_nothing_to_destroy(handle);
    }
    cut(rows, kind, 0);
    free(rows->at.any);
    free(rows);
    return NIXL_CAPI_SUCCESS;
}

static nixl_capi_status_t
rows_type(const void *handle, vnxi_kind_t kind, nixl_capi_mem_type_t *mem)
{
    const vnxi_rows_t *rows = vnxi_object(handle, kind);

    if (rows == NULL || mem == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    *mem = rows->mem;
    return NIXL_CAPI_SUCCESS;
}

static nixl_capi_status_t
rows_count(const void *handle, vnxi_kind_t kind, size_t *count)
{
    const vnxi_rows_t *rows = vnxi_object(handle, kind);

    if (rows == NULL || count == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    *count = rows->count;
    return NIXL_CAPI_SUCCESS;
}

static nixl_capi_status_t
rows_is_empty(const void *handle, vnxi_kind_t kind, bool *is_empty)
{
    const vnxi_rows_t *rows = vnxi_object(handle, kind);

    if (rows == NULL || is_empty == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    *is_empty = rows->count == 0;
    return NIXL_CAPI_SUCCESS;
}

/* Add an empty row; NULL: no memory. */
static void *
append(vnxi_rows_t *rows, vnxi_kind_t kind)
{
    if (!reserve(rows, kind, rows->count + 1)) {
        return NULL;
    }
    return (char *)rows->at.any + rows->count++ * row_size(kind);
}

static nixl_capi_status_t
rows_add(const void *handle, vnxi_kind_t kind, vnx_desc_t desc)
{
    vnxi_rows_t *rows = vnxi_object(handle, kind);

    if (rows == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    vnx_desc_t *row = append(rows, kind);
    if (row == NULL) {
        return NIXL_CAPI_ERROR_BACKEND;
    }
    *row = desc;
    return NIXL_CAPI_SUCCESS;
}

static nixl_capi_status_t
rows_remove(const void *handle, vnxi_kind_t kind, int index)
{
    vnxi_rows_t *rows = vnxi_object(handle, kind);
    size_t size = row_size(kind), place = (size_t)index;

    if (rows == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    if (index < 0 || place >= rows->count) {
        return NIXL_CAPI_ERROR_BACKEND;
    }
    if (kind == VNXI_KIND_REG_ROWS) {
        free((void *)rows->at.reg[place].meta);
    }
    char *row = (char *)rows->at.any + place * size;
    rows->count--;
    memmove(row, row + size, (rows->count - place) * size);
    return NIXL_CAPI_SUCCESS;
}

static nixl_capi_status_t
rows_resize(const void *handle, vnxi_kind_t kind, size_t count)
{
    vnxi_rows_t *rows = vnxi_object(handle, kind);
    size_t size = row_size(kind);

    if (rows == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    if (count <= rows->count) {
        cut(rows, kind, count);
        return NIXL_CAPI_SUCCESS;
    }
    if (!reserve(rows, kind, count)) {
        return NIXL_CAPI_ERROR_BACKEND;
    }
    memset((char *)rows->at.any + rows->count * size, 0,
           (count - rows->count) * size);
    rows->count = count;
    return NIXL_CAPI_SUCCESS;
}

static nixl_capi_status_t
rows_trim(const void *handle, vnxi_kind_t kind)
{
    return vnxi_handle_is(handle, kind) ? NIXL_CAPI_SUCCESS
                                        : NIXL_CAPI_ERROR_INVALID_PARAM;
}

static nixl_capi_status_t
rows_print(const void *handle, vnxi_kind_t kind)
{
    const vnxi_rows_t *rows = vnxi_object(handle, kind);

    if (rows == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    printf("DescList of mem type %d\n", (int)rows->mem);
    return NIXL_CAPI_SUCCESS;
}

/* -- Lists to transfer -----------------------------------------------------
 */

nixl_capi_status_t
nixl_capi_create_xfer_dlist(nixl_capi_mem_type_t mem_type,
                            nixl_capi_xfer_dlist_t *dlist)
{
    nixl_capi_xfer_dlist_t list =
        dlist != NULL ? rows_create(VNXI_KIND_XFER_ROWS, mem_type) : NULL;
    if (list != NULL) {
        *dlist = list;
    }
    return created(dlist, list);
}

nixl_capi_status_t
nixl_capi_destroy_xfer_dlist(nixl_capi_xfer_dlist_t dlist)
{
    return rows_destroy(dlist, VNXI_KIND_XFER_ROWS);
}

nixl_capi_status_t
nixl_capi_xfer_dlist_get_type(nixl_capi_xfer_dlist_t dlist,
                              nixl_capi_mem_type_t *mem_type)
{
    return rows_type(dlist, VNXI_KIND_XFER_ROWS, mem_type);
}

nixl_capi_status_t
nixl_capi_xfer_dlist_add_desc(nixl_capi_xfer_dlist_t dlist, uintptr_t addr,
                              size_t len, uint64_t dev_id)
{
    return rows_add(dlist, VNXI_KIND_XFER_ROWS,
                    (vnx_desc_t){addr, len, dev_id});
}

nixl_capi_status_t
nixl_capi_xfer_dlist_desc_count(nixl_capi_xfer_dlist_t dlist, size_t *count)
{
    return rows_count(dlist, VNXI_KIND_XFER_ROWS, count);
}

nixl_capi_status_t
nixl_capi_xfer_dlist_len(nixl_capi_xfer_dlist_t dlist, size_t *len)
{
    return rows_count(dlist, VNXI_KIND_XFER_ROWS, len);
}

nixl_capi_status_t
nixl_capi_xfer_dlist_is_empty(nixl_capi_xfer_dlist_t dlist, bool *is_empty)
{
    return rows_is_empty(dlist, VNXI_KIND_XFER_ROWS, is_empty);
}

nixl_capi_status_t
nixl_capi_xfer_dlist_trim(nixl_capi_xfer_dlist_t dlist)
{
    return rows_trim(dlist, VNXI_KIND_XFER_ROWS);
}

nixl_capi_status_t
nixl_capi_xfer_dlist_rem_desc(nixl_capi_xfer_dlist_t dlist, int index)
{
    return rows_remove(dlist, VNXI_KIND_XFER_ROWS, index);
}

nixl_capi_status_t
nixl_capi_xfer_dlist_clear(nixl_capi_xfer_dlist_t dlist)
{
    return rows_resize(dlist, VNXI_KIND_XFER_ROWS, 0);
}

nixl_capi_status_t
nixl_capi_xfer_dlist_resize(nixl_capi_xfer_dlist_t dlist, size_t new_size)
{
    return rows_resize(dlist, VNXI_KIND_XFER_ROWS, new_size);
}

nixl_capi_status_t
nixl_capi_xfer_dlist_print(nixl_capi_xfer_dlist_t dlist)
{
    return rows_print(dlist, VNXI_KIND_XFER_ROWS);
}

/* -- Lists to register -----------------------------------------------------
 */

nixl_capi_status_t
nixl_capi_create_reg_dlist(nixl_capi_mem_type_t mem_type,
                           nixl_capi_reg_dlist_t *dlist)
{
    nixl_capi_reg_dlist_t list =
        dlist != NULL ? rows_create(VNXI_KIND_REG_ROWS, mem_type) : NULL;
    if (list != NULL) {
        *dlist = list;
    }
    return created(dlist, list);
}

nixl_capi_status_t
nixl_capi_destroy_reg_dlist(nixl_capi_reg_dlist_t dlist)
{
    return rows_destroy(dlist, VNXI_KIND_REG_ROWS);
}

nixl_capi_status_t
nixl_capi_reg_dlist_get_type(nixl_capi_reg_dlist_t dlist,
                             nixl_capi_mem_type_t *mem_type)
{
    return rows_type(dlist, VNXI_KIND_REG_ROWS, mem_type);
}

/* False: no memory. */
static bool
add_with_meta(vnxi_rows_t *rows, vnx_desc_t desc, const void *meta,
              size_t meta_len)
{
    void *copy = meta_len > 0 ? malloc(meta_len) : NULL;
    if (copy == NULL && meta_len > 0) {
        return false;
    }
    vnx_reg_desc_t *row = append(rows, VNXI_KIND_REG_ROWS);
    if (row == NULL) {
        free(copy);
        return false;
    }
    if (copy != NULL) {
        memcpy(copy, meta, meta_len);
    }
    *row = (vnx_reg_desc_t){desc, copy, meta_len};
    return true;
}

nixl_capi_status_t
nixl_capi_reg_dlist_add_desc(nixl_capi_reg_dlist_t dlist, uintptr_t addr,
                             size_t len, uint64_t dev_id, const void *metadata,
                             size_t metadata_len)
{
    vnxi_rows_t *rows = vnxi_object(dlist, VNXI_KIND_REG_ROWS);

    if (rows == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    return add_with_meta(rows, (vnx_desc_t){addr, len, dev_id}, metadata,
                         metadata != NULL ? metadata_len : 0)
               ? NIXL_CAPI_SUCCESS
               : NIXL_CAPI_ERROR_BACKEND;
}

nixl_capi_status_t
nixl_capi_reg_dlist_desc_count(nixl_capi_reg_dlist_t dlist, size_t *count)
{
    return rows_count(dlist, VNXI_KIND_REG_ROWS, count);
}

nixl_capi_status_t
nixl_capi_reg_dlist_is_empty(nixl_capi_reg_dlist_t dlist, bool *is_empty)
{
    return rows_is_empty(dlist, VNXI_KIND_REG_ROWS, is_empty);
}

nixl_capi_status_t
nixl_capi_reg_dlist_trim(nixl_capi_reg_dlist_t dlist)
{
    return rows_trim(dlist, VNXI_KIND_REG_ROWS);
}

nixl_capi_status_t
nixl_capi_reg_dlist_rem_desc(nixl_capi_reg_dlist_t dlist, int index)
{
    return rows_remove(dlist, VNXI_KIND_REG_ROWS, index);
}

nixl_capi_status_t
nixl_capi_reg_dlist_clear(nixl_capi_reg_dlist_t dlist)
{
    return rows_resize(dlist, VNXI_KIND_REG_ROWS, 0);
}

nixl_capi_status_t
nixl_capi_reg_dlist_resize(nixl_capi_reg_dlist_t dlist, size_t new_size)
{
    return rows_resize(dlist, VNXI_KIND_REG_ROWS, new_size);
}

nixl_capi_status_t
nixl_capi_reg_dlist_print(nixl_capi_reg_dlist_t dlist)
{
    return rows_print(dlist, VNXI_KIND_REG_ROWS);
}

/* -- Lists for memory views ------------------------------------------------
 */

nixl_capi_status_t
nixl_capi_create_remote_dlist(nixl_capi_mem_type_t mem_type,
                              nixl_capi_remote_dlist_t *dlist)
{
    nixl_capi_remote_dlist_t list =
        dlist != NULL ? rows_create(VNXI_KIND_REMOTE_ROWS, mem_type) : NULL;
    if (list != NULL) {
        *dlist = list;
    }
    return created(dlist, list);
}

nixl_capi_status_t
nixl_capi_destroy_remote_dlist(nixl_capi_remote_dlist_t dlist)
{
    return rows_destroy(dlist, VNXI_KIND_REMOTE_ROWS);
}

nixl_capi_status_t
nixl_capi_remote_dlist_add_desc(nixl_capi_remote_dlist_t dlist, uintptr_t addr,
                                size_t len, uint64_t dev_id,
                                const char *remote_agent)
{
    (void)remote_agent;
    return rows_add(dlist, VNXI_KIND_REMOTE_ROWS,
                    (vnx_desc_t){addr, len, dev_id});
}
