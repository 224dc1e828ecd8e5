/*
 * The bytes of a publication: an agent's metadata and named lists of rows.
 * Wire format: docs/wire.md, "Publications".  No I/O, no locks.
 */
#ifndef VNXI_PUBLISH_PUBLICATION_H
#define VNXI_PUBLISH_PUBLICATION_H

#include <vnx/publish.h>

#include "engine/parts/signature.h"

typedef struct vnxi_publication {
    const void *metadata; /* borrowed from the bytes */
    size_t metadata_len;
    size_t count;
    vnx_named_rows_t *lists; /* owned, with their names and rows */
} vnxi_publication_t;        /* all zeros: empty */

/* Check the lists of a caller: their number, their names, the number of their
 * rows.  VNX_ERR_INVALID_PARAM, with the list in the record. */
vnx_status_t vnxi_publication_check(const char *operation,
                                    const vnx_named_rows_t *lists,
                                    size_t count, vnx_error_t *error);

/* Write a publication of checked lists, signed if the key is set.  Returns
 * owned: free(bytes_p->data). */
vnx_status_t vnxi_publication_write(const vnxi_publication_t *publication,
                                    const vnxi_signature_key_t *key,
                                    const char *operation,
                                    vnx_bytes_t *bytes_p, vnx_error_t *error);

/* Read a publication, and check all of it but the metadata and the addresses
 * of rows.  Allocates at most about twice the size of the bytes.  Returns
 * owned: vnxi_publication_fini().
 * VNX_ERR_MISMATCH: not a publication, a damaged one, or one of another
 * version.  VNX_ERR_NOT_ALLOWED: the key is set, and the publication is not
 * signed with it. */
vnx_status_t vnxi_publication_read(const void *bytes, size_t len,
                                   const vnxi_signature_key_t *key,
                                   const char *operation,
                                   vnxi_publication_t *publication_p,
                                   vnx_error_t *error);

/* Free the lists.  May be called again. */
void vnxi_publication_fini(vnxi_publication_t *publication);

/* The bytes of one item of a list: a row, or a strided row. */
static inline size_t
vnxi_named_rows_item(const vnx_named_rows_t *list)
{
    return list->rows != NULL ? sizeof(vnx_desc_t)
                              : sizeof(vnx_strided_desc_t);
}

#endif
