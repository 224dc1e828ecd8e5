/*
 * Proving a shared secret without giving it away: HMAC-SHA256 over nonces of
 * both sides, with a label for each use, so that no proof serves for another.
 * Who has proved it shares a session key, with which requests and replies are
 * sealed: neither can be changed on the way, nor be played again.
 *
 * Comparison takes the same time whatever differs.  Without OpenSSL in the
 * build there are no secrets (VNXI_SIDE_CHANNEL_TLS is not defined).
 */
#ifndef VNXI_SIDE_CHANNEL_PROOF_H
#define VNXI_SIDE_CHANNEL_PROOF_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/mac.h"

#define VNXI_NONCE_LEN 32u
#define VNXI_DIGEST_LEN 32u

typedef struct vnxi_proof {
    const char *secret; /* borrowed */
    unsigned char client_nonce[VNXI_NONCE_LEN];
    unsigned char server_nonce[VNXI_NONCE_LEN];
} vnxi_proof_t;

typedef enum vnxi_proof_side {
    VNXI_PROOF_CLIENT,
    VNXI_PROOF_SERVER
} vnxi_proof_side_t;

/* Random bytes; false: the system has none. */
bool vnxi_proof_nonce(unsigned char nonce[VNXI_NONCE_LEN]);

/* What `side` says to prove the secret. */
bool vnxi_proof_make(const vnxi_proof_t *proof, vnxi_proof_side_t side,
                     unsigned char mac_p[VNXI_MAC_LEN]);

/* Is that what `side` says? */
bool vnxi_proof_check(const vnxi_proof_t *proof, vnxi_proof_side_t side,
                      const unsigned char mac[VNXI_MAC_LEN]);

/* The seal of a request for a key. */
bool vnxi_proof_seal_request(const vnxi_proof_t *proof, const void *key,
                             size_t key_len,
                             unsigned char mac_p[VNXI_MAC_LEN]);

/* The seal of a reply to that request: a status and bytes, by their digest. */
bool vnxi_proof_seal_reply(const vnxi_proof_t *proof, const void *key,
                           size_t key_len, uint8_t status,
                           const unsigned char digest[VNXI_DIGEST_LEN],
                           unsigned char mac_p[VNXI_MAC_LEN]);

/* SHA-256. */
bool vnxi_proof_digest(const void *data, size_t len,
                       unsigned char digest_p[VNXI_DIGEST_LEN]);

/* Are two secrets the same, given by whoever asks in `other`? Takes the same
 * time whatever differs, and tells nothing of the length. */
bool vnxi_secret_equal(const char *secret, const void *other, size_t len);

#endif
