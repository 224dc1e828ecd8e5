/*
 * Signed metadata: an HMAC-SHA256 over the whole blob, under a key that is
 * derived from a secret that the agents share.  It is the last section of the
 * blob, of a backend that no agent has, so agents without the secret, stock
 * ones among them, skip it.  Wire format: docs/wire.md, "Signature".
 *
 * The secret is not kept, and is in no error.
 */
#ifndef VNXI_PARTS_SIGNATURE_H
#define VNXI_PARTS_SIGNATURE_H

#include <stdbool.h>
#include <stddef.h>
#include <vnx/vnx.h>

#include "base/mac.h"

#define VNXI_SIGNATURE_LEN 160u /* bytes that signing adds to a blob */

typedef struct vnxi_signature_key {
    bool is_set; /* false: nothing is signed and nothing is checked */
    unsigned char bytes[VNXI_MAC_LEN];
} vnxi_signature_key_t; /* all zeros: not set */

/* Derive the key from `secret`; NULL: from VLLM_NIXL_METADATA_SECRET, and
 * without that the key is not set.  VNX_ERR_INVALID_PARAM: too short or too
 * long; VNX_ERR_NOT_SUPPORTED: this build has no OpenSSL.  Operation:
 * "nixl_agent". */
vnx_status_t vnxi_signature_key_init(vnxi_signature_key_t *key_p,
                                     const void *secret, size_t len,
                                     vnx_error_t *error);

/* Clear it from memory. */
void vnxi_signature_key_fini(vnxi_signature_key_t *key);

/* Sign a blob, which grows in place (realloc).  The key is set.  After an
 * error the blob is as it was. */
vnx_status_t vnxi_signature_add(const vnxi_signature_key_t *key,
                                const char *operation, vnx_bytes_t *blob,
                                vnx_error_t *error);

/* Is the blob signed with this key, which is set?  Looks at nothing but the
 * blob's last bytes before the signature has proved to be right.  Errors name
 * the agent that the blob claims to be of: VNX_ERR_NOT_ALLOWED (not signed, or
 * wrong), VNX_ERR_MISMATCH (not signed, and not metadata).  Operation:
 * "add_remote_agent". */
vnx_status_t vnxi_signature_check(const vnxi_signature_key_t *key,
                                  const void *blob, size_t len,
                                  vnx_error_t *error);

#endif
