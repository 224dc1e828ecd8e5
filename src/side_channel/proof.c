#include "side_channel/proof.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/rand.h>
#include <string.h>

#define LABEL_CLIENT "vnx1 client"
#define LABEL_SERVER "vnx1 server"
#define LABEL_SESSION "vnx1 session"
#define LABEL_REQUEST "vnx1 request"
#define LABEL_REPLY "vnx1 reply"
#define LABEL_SECRET "vnx1 secret"
#define MESSAGE_MAX 512

/* The parts of a message; all are shorter than it by far. */
typedef struct message {
    unsigned char bytes[MESSAGE_MAX];
    size_t len;
} message_t;

static void
add(message_t *message, const void *data, size_t len)
{
    if (len > 0) {
        memcpy(message->bytes + message->len, data, len);
        message->len += len;
    }
}

/* Of the secret, over a label and both nonces. */
static bool
mac_of_nonces(const vnxi_proof_t *proof, const char *label,
              unsigned char mac_p[VNXI_MAC_LEN])
{
    message_t message = {.len = 0};

    add(&message, label, strlen(label));
    add(&message, proof->client_nonce, VNXI_NONCE_LEN);
    add(&message, proof->server_nonce, VNXI_NONCE_LEN);
    return vnxi_mac(proof->secret, strlen(proof->secret), message.bytes,
                    message.len, mac_p);
}

/* Of the session's key. */
static bool
seal(const vnxi_proof_t *proof, const message_t *message,
     unsigned char mac_p[VNXI_MAC_LEN])
{
    unsigned char session[VNXI_MAC_LEN];
    bool done =
        mac_of_nonces(proof, LABEL_SESSION, session) &&
        vnxi_mac(session, sizeof session, message->bytes, message->len, mac_p);
    OPENSSL_cleanse(session, sizeof session);
    return done;
}

bool
vnxi_proof_nonce(unsigned char nonce[VNXI_NONCE_LEN])
{
    return RAND_bytes(nonce, VNXI_NONCE_LEN) == 1;
}

bool
vnxi_proof_make(const vnxi_proof_t *proof, vnxi_proof_side_t side,
                unsigned char mac_p[VNXI_MAC_LEN])
{
    return mac_of_nonces(
        proof, side == VNXI_PROOF_CLIENT ? LABEL_CLIENT : LABEL_SERVER, mac_p);
}

bool
vnxi_proof_check(const vnxi_proof_t *proof, vnxi_proof_side_t side,
                 const unsigned char mac[VNXI_MAC_LEN])
{
    unsigned char expected[VNXI_MAC_LEN];
    return vnxi_proof_make(proof, side, expected) &&
           vnxi_mac_equal(expected, mac);
}

bool
vnxi_proof_seal_request(const vnxi_proof_t *proof, const void *key,
                        size_t key_len, unsigned char mac_p[VNXI_MAC_LEN])
{
    message_t message = {.len = 0};

    add(&message, LABEL_REQUEST, strlen(LABEL_REQUEST));
    add(&message, key, key_len);
    return seal(proof, &message, mac_p);
}

bool
vnxi_proof_seal_reply(const vnxi_proof_t *proof, const void *key,
                      size_t key_len, uint8_t status,
                      const unsigned char digest[VNXI_DIGEST_LEN],
                      unsigned char mac_p[VNXI_MAC_LEN])
{
    message_t message = {.len = 0};
    unsigned char key_size = (unsigned char)key_len;

    add(&message, LABEL_REPLY, strlen(LABEL_REPLY));
    add(&message, &key_size, 1);
    add(&message, key, key_len);
    add(&message, &status, 1);
    add(&message, digest, VNXI_DIGEST_LEN);
    return seal(proof, &message, mac_p);
}

bool
vnxi_proof_digest(const void *data, size_t len,
                  unsigned char digest_p[VNXI_DIGEST_LEN])
{
    return EVP_Digest(data, len, digest_p, NULL, EVP_sha256(), NULL) == 1;
}

/* The digests are compared: a length tells nothing, and OpenSSL's comparison
 * wants equal ones. */
bool
vnxi_secret_equal(const char *secret, const void *other, size_t len)
{
    unsigned char ours[VNXI_MAC_LEN], theirs[VNXI_MAC_LEN];
    const size_t label_len = sizeof LABEL_SECRET - 1;

    return vnxi_mac(LABEL_SECRET, label_len, secret, strlen(secret), ours) &&
           vnxi_mac(LABEL_SECRET, label_len, other, len, theirs) &&
           vnxi_mac_equal(ours, theirs);
}
