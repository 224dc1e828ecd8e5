/*
 * Design notes.  The MAC is the last value of the blob and covers every byte
 * before it; the one byte after it must be '|'.  So a signature is found and
 * checked from the end, without parsing, and no byte of a signed blob can be
 * changed unnoticed.
 *
 * The key is HKDF's extraction (RFC 5869) of the secret, with the label as
 * salt.  The secret is the message of that HMAC and not its key: as a key,
 * secrets that differ only in trailing zero bytes would be equivalent.
 */
#include "engine/parts/signature.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "engine/parts/metadata.h"

#define VARIABLE "VLLM_NIXL_METADATA_SECRET"
#define LABEL "vnx1 metadata"

#define U64(low_byte) low_byte "\0\0\0\0\0\0\0"

/* The section up to the MAC: one region at address 0 with length 0, whose
 * public data are a version, an algorithm, the label and the MAC. */
static const char head[] = "bknd" U64(
    "\x07") "VNXSIGN|"
            "nixlDList" U64(
                "\x0a") "nixlSDList|"
                        "t" U64("\x04") "\0\0\0\0|"
                                        "n" U64("\x08")
                                            U64("\x01") "|" U64("\x47")
                                                U64("\0") U64("\0")
                                                    U64("\0") "\x01\x01" LABEL;
#define HEAD_LEN (sizeof head - 1)
#define TAIL_LEN (VNXI_MAC_LEN + 1u) /* the MAC and a '|' */
_Static_assert(HEAD_LEN + TAIL_LEN == VNXI_SIGNATURE_LEN, "docs/wire.md");

static vnx_status_t
mac_make(const void *key, size_t key_len, const void *data, size_t len,
         const char *operation, unsigned char mac_p[VNXI_MAC_LEN],
         vnx_error_t *error)
{
    return vnxi_mac(key, key_len, data, len, mac_p)
               ? VNX_OK
               : vnxi_error_set(error, VNX_ERR_UNKNOWN, operation,
                                "OpenSSL cannot compute an HMAC-SHA256");
}

vnx_status_t
vnxi_signature_mac(const vnxi_signature_key_t *key, const void *data,
                   size_t len, const char *operation,
                   unsigned char mac_p[VNXI_MAC_LEN], vnx_error_t *error)
{
    return mac_make(key->bytes, sizeof key->bytes, data, len, operation, mac_p,
                    error);
}

vnx_status_t
vnxi_signature_verify(const vnxi_signature_key_t *key, const char *what,
                      const void *data, const unsigned char *mac,
                      const char *operation, vnx_error_t *error)
{
    unsigned char expected[VNXI_MAC_LEN];

    if (mac == NULL) {
        return vnxi_error_set(error, VNX_ERR_NOT_ALLOWED, operation,
                              "the %s is not signed, but this agent has a "
                              "metadata_secret",
                              what);
    }
    size_t len = (size_t)(mac - (const unsigned char *)data);
    vnx_status_t status =
        vnxi_signature_mac(key, data, len, operation, expected, error);
    if (status != VNX_OK || vnxi_mac_equal(expected, mac)) {
        return status;
    }
    return vnxi_error_set(error, VNX_ERR_NOT_ALLOWED, operation,
                          "the signature is wrong: it was made with another "
                          "secret, or the %s was changed",
                          what);
}

/* -- The key --------------------------------------------------------------
 */

vnx_status_t
vnxi_signature_key_init(vnxi_signature_key_t *key_p, const void *secret,
                        size_t len, vnx_error_t *error)
{
    const char *source = "metadata_secret";
    const char *variable = secret == NULL ? getenv(VARIABLE) : NULL;

    if (variable != NULL) {
        source = VARIABLE;
        secret = variable;
        len = strlen(variable);
    }
    if (secret == NULL) {
        return VNX_OK;
    }
    if (len < VNX_METADATA_SECRET_MIN || len > VNX_METADATA_SECRET_MAX) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, "vnx_agent_create",
                              "%s must have %d to %d bytes, not %zu", source,
                              VNX_METADATA_SECRET_MIN, VNX_METADATA_SECRET_MAX,
                              len);
    }
    if (!vnxi_mac_is_there()) {
        return vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, "vnx_agent_create",
                              "%s is set, but signing metadata needs OpenSSL, "
                              "which this build does not have",
                              source);
    }
    vnx_status_t status = mac_make(LABEL, sizeof LABEL - 1, secret, len,
                                   "vnx_agent_create", key_p->bytes, error);
    key_p->is_set = status == VNX_OK;
    return status;
}

void
vnxi_signature_key_fini(vnxi_signature_key_t *key)
{
    explicit_bzero(key, sizeof *key);
}

/* -- Signing --------------------------------------------------------------
 */

static void
put_u64(unsigned char *at, uint64_t value)
{
    for (int i = 0; i < 8; i++) {
        at[i] = (unsigned char)(value >> (8 * i));
    }
}

vnx_status_t
vnxi_signature_add(const vnxi_signature_key_t *key, const char *operation,
                   vnx_bytes_t *blob, vnx_error_t *error)
{
    size_t covered = blob->len + HEAD_LEN, count_at;
    uint64_t count;

    if (!vnxi_metadata_sections_at(blob->data, blob->len, &count_at, &count)) {
        return vnxi_error_set(error, VNX_ERR_UNKNOWN, operation,
                              "cannot sign the engine's output: it is not "
                              "metadata in NIXL's format");
    }
    unsigned char *bytes = realloc(blob->data, covered + TAIL_LEN);
    if (bytes == NULL) {
        return vnxi_error_no_memory(error, operation, covered + TAIL_LEN);
    }
    blob->data = bytes;
    memcpy(bytes + blob->len, head, HEAD_LEN);
    put_u64(bytes + count_at, count + 1);
    vnx_status_t status = vnxi_signature_mac(key, bytes, covered, operation,
                                             bytes + covered, error);
    if (status != VNX_OK) {
        put_u64(bytes + count_at, count);
        return status;
    }
    bytes[covered + VNXI_MAC_LEN] = '|';
    blob->len = covered + TAIL_LEN;
    return VNX_OK;
}

/* -- Checking -------------------------------------------------------------
 */

/* The MAC of a signed blob; NULL if the blob does not end with a signature. */
static const unsigned char *
find_mac(const unsigned char *blob, size_t len)
{
    if (len < VNXI_SIGNATURE_LEN || blob[len - 1] != '|') {
        return NULL;
    }
    const unsigned char *section = blob + len - VNXI_SIGNATURE_LEN;
    return memcmp(section, head, HEAD_LEN) == 0 ? section + HEAD_LEN : NULL;
}

vnx_status_t
vnxi_signature_check(const vnxi_signature_key_t *key, const void *blob,
                     size_t len, vnx_error_t *error)
{
    const unsigned char *mac = find_mac(blob, len);
    vnxi_md_bytes_t name = {NULL, 0};
    vnx_status_t status = VNX_OK;

    if (mac == NULL) { /* is it metadata at all? */
        status = vnxi_metadata_claimed_name(blob, len, &name, error);
    }
    if (status == VNX_OK) {
        status = vnxi_signature_verify(key, "metadata", blob, mac,
                                       VNXI_OP_LOAD, error);
    }
    if (status == VNX_ERR_NOT_ALLOWED) {
        (void)vnxi_metadata_claimed_name(blob, len, &name, NULL);
        vnxi_error_peer(error, name.data, name.len);
    }
    return status;
}
