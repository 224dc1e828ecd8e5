#include <openssl/crypto.h>
#include <openssl/ssl.h>
#include <pthread.h>
#include <string.h>

#include "base/mac.h"
#include "net/tls.h"

#define SUITE "TLS_AES_128_GCM_SHA256"
#define GROUPS "X25519:P-256"
#define IDENTITY "vnx1"

/* HKDF by RFC 5869: extract, then expand to one block of the hash. */
bool
vnxi_psk_derive(const char *secret, unsigned char key_p[VNXI_PSK_LEN])
{
    static const char salt[] = "vllm_nixl side channel";
    static const char info[] = "tls13 psk\1"; /* and the number of the block */
    unsigned char extracted[VNXI_MAC_LEN];

    bool done =
        vnxi_mac(salt, sizeof salt - 1, secret, strlen(secret), extracted) &&
        vnxi_mac(extracted, sizeof extracted, info, sizeof info - 1, key_p);
    OPENSSL_cleanse(extracted, sizeof extracted);
    return done;
}

/* The client offers its key.  OpenSSL uses such keys with SHA-256, the digest
 * of the single cipher suite. */
static unsigned
on_use(SSL *ssl, const char *hint, char *identity, unsigned identity_size,
       unsigned char *key, unsigned key_size)
{
    (void)hint;
    if (identity_size < sizeof IDENTITY || key_size < VNXI_PSK_LEN ||
        !vnxi_psk_derive(SSL_get_app_data(ssl), key)) {
        return 0;
    }
    memcpy(identity, IDENTITY, sizeof IDENTITY);
    return VNXI_PSK_LEN;
}

/* The server looks the key up.  Without a key the handshake fails, because the
 * server has no certificate to use instead. */
static unsigned
on_find(SSL *ssl, const char *identity, unsigned char *key, unsigned key_size)
{
    const char *secret = SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl));

    return strcmp(identity, IDENTITY) == 0 && key_size >= VNXI_PSK_LEN &&
                   vnxi_psk_derive(secret, key)
               ? VNXI_PSK_LEN
               : 0;
}

static bool
configure(SSL_CTX *ctx)
{
    /* The compatibility record, which hides TLS 1.3 from old middleboxes, is
     * not authenticated. */
    SSL_CTX_clear_options(ctx, SSL_OP_ENABLE_MIDDLEBOX_COMPAT);
    return SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) == 1 &&
           SSL_CTX_set_ciphersuites(ctx, SUITE) == 1 &&
           SSL_CTX_set1_groups_list(ctx, GROUPS) == 1;
}

bool
vnxi_psk_serve(void *ctx, const char *secret)
{
    SSL_CTX_set_app_data(ctx, (void *)(uintptr_t)secret);
    SSL_CTX_set_psk_server_callback(ctx, on_find);
    return configure(ctx);
}

/* -- Client --------------------------------------------------------------- */

/* Creating a context takes longer than a handshake.  All clients share one,
 * because the secret belongs to the connection. */
static pthread_once_t client_once = PTHREAD_ONCE_INIT;
static SSL_CTX *client_ctx; /* one per process; never freed */

static void
make_client_context(void)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());

    if (ctx == NULL || !configure(ctx)) {
        SSL_CTX_free(ctx);
        return;
    }
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    /* No certificate is trusted, so a server that presents one instead of
     * proving the secret is refused. */
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_psk_client_callback(ctx, on_use);
    client_ctx = ctx;
}

void *
vnxi_psk_client(const char *secret)
{
    pthread_once(&client_once, make_client_context);
    SSL *ssl = client_ctx != NULL ? SSL_new(client_ctx) : NULL;

    if (ssl != NULL) {
        SSL_set_app_data(ssl, (void *)(uintptr_t)secret);
    }
    return ssl;
}
