/*
 * TLS 1.3 with a pre-shared key: both ends derive the key from the shared
 * secret, and the handshake succeeds only if the secrets are equal.  There are
 * no certificates, tickets or early data.  The key exchange is ephemeral
 * (psk_dhe_ke), so a secret that leaks later does not open recorded traffic.
 */
#ifndef VNXI_NET_TLS_PSK_H
#define VNXI_NET_TLS_PSK_H

#include <openssl/ssl.h>
#include <stdbool.h>
#include <stddef.h>

#define VNXI_PSK_LEN 32u
#define VNXI_PSK_IDENTITY "vnx1"

/* Derive the key: HKDF-SHA256, as docs/wire.md specifies.  False: OpenSSL
 * failed. */
bool vnxi_psk_derive(const char *secret, unsigned char key_p[VNXI_PSK_LEN]);

/* Make connections of a server's context use the secret's key and nothing
 * else.  `secret` is borrowed as long as the context lives.  False: OpenSSL
 * failed. */
bool vnxi_psk_serve(SSL_CTX *ctx, const char *secret);

/* Create a client's connection that uses the secret's key and nothing else.
 * `secret` is borrowed as long as the connection lives.  Returns owned:
 * SSL_free().  NULL: OpenSSL failed. */
SSL *vnxi_psk_client(const char *secret);

/* After a handshake that succeeded: was it authenticated by the key? */
bool vnxi_psk_was_used(SSL *ssl);

#endif
