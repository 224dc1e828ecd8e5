/*
 * Signed metadata: an HMAC-SHA256 over the whole blob, under a key derived
 * from a secret shared by the agents.  It is the last section of the blob and
 * belongs to a backend that no agent has, so agents without the secret,
 * including stock ones, skip it.  Wire format: docs/wire.md, "Signature".
 *
 * The secret is not kept and never appears in an error.
 */
#ifndef VNXI_PARTS_SIGNATURE_H
#define VNXI_PARTS_SIGNATURE_H

#include <stdbool.h>
#include <stddef.h>
#include <vnx/vnx.h>

#include "base/mac.h"

#define VNXI_SIGNATURE_LEN 160u /* bytes that signing adds to a blob */

typedef struct vnxi_signature_key {
    bool is_set; /* false: metadata is neither signed nor checked */
    unsigned char bytes[VNXI_MAC_LEN];
} vnxi_signature_key_t; /* all zeros: not set */

/* Derive the key from `secret`, or if that is NULL from
 * VLLM_NIXL_METADATA_SECRET; without either, the key stays unset.
 * VNX_ERR_INVALID_PARAM: too short or too long.  VNX_ERR_NOT_SUPPORTED: this
 * build has no OpenSSL.  Operation: "vnx_agent_create". */
vnx_status_t vnxi_signature_key_init(vnxi_signature_key_t *key_p,
                                     const void *secret, size_t len,
                                     vnx_error_t *error);

/* Erase the key from memory. */
void vnxi_signature_key_fini(vnxi_signature_key_t *key);

/* Sign a blob, which grows in place (realloc).  The key must be set.  On an
 * error the blob is unchanged. */
vnx_status_t vnxi_signature_add(const vnxi_signature_key_t *key,
                                const char *operation, vnx_bytes_t *blob,
                                vnx_error_t *error);

/* Check that the blob is signed with this key, which must be set.  Until the
 * signature has proved correct, only the last bytes of the blob are read.  The
 * error has the agent name that the blob claims: VNX_ERR_NOT_ALLOWED (not
 * signed, or wrong), VNX_ERR_MISMATCH (not signed, and not metadata).
 * Operation: "vnx_agent_load_metadata". */
vnx_status_t vnxi_signature_check(const vnxi_signature_key_t *key,
                                  const void *blob, size_t len,
                                  vnx_error_t *error);

/* The two functions below are for other signed bytes, which end with a MAC. */

/* Compute the MAC of `data` under the key, which must be set.
 * VNX_ERR_UNKNOWN: OpenSSL failed. */
vnx_status_t vnxi_signature_mac(const vnxi_signature_key_t *key,
                                const void *data, size_t len,
                                const char *operation,
                                unsigned char mac_p[VNXI_MAC_LEN],
                                vnx_error_t *error);

/* Check the MAC at `mac` of all bytes from `data` up to it.  NULL: they are
 * not signed.  `what` ("publication") is their name in the record.
 * VNX_ERR_NOT_ALLOWED: not signed, or wrong. */
vnx_status_t vnxi_signature_verify(const vnxi_signature_key_t *key,
                                   const char *what, const void *data,
                                   const unsigned char *mac,
                                   const char *operation, vnx_error_t *error);

#endif
