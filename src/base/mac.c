/*
 * Design notes.  The threads of listeners compute MACs, also while the process
 * exits.  Exit handlers of OpenSSL then free what HMAC() uses.  So a handler
 * of our own, which is called before them, ends that: it lets the calls that
 * run finish, and refuses further ones.
 */
#include "base/mac.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "base/fork.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static atomic_uint users; /* threads inside HMAC() */
static atomic_bool is_over;

/* A call takes microseconds, unless a handler of a signal that interrupted one
 * calls exit(). */
static void
end(void)
{
    const struct timespec look = {.tv_nsec = 1000000};

    atomic_store(&is_over, true);
    for (int i = 0; i < 1000 && atomic_load(&users) > 0; i++) {
        nanosleep(&look, NULL);
    }
}

static void
forget_in_child(void)
{
    atomic_store(&users, 0);
}

/* Handlers are called in reverse order, so OpenSSL's has to be there. */
static void
install(void)
{
    OPENSSL_init_crypto(0, NULL);
    atexit(end);
    vnxi_fork_on_child(forget_in_child);
}

bool
vnxi_mac_is_there(void)
{
    return true;
}

bool
vnxi_mac(const void *key, size_t key_len, const void *data, size_t len,
         unsigned char mac_p[VNXI_MAC_LEN])
{
    unsigned made = 0;

    pthread_once(&once, install);
    atomic_fetch_add(&users, 1);
    bool done =
        !atomic_load(&is_over) &&
        HMAC(EVP_sha256(), key, (int)key_len, data, len, mac_p, &made) != NULL;
    atomic_fetch_sub(&users, 1);
    return done && made == VNXI_MAC_LEN;
}

bool
vnxi_mac_equal(const unsigned char one[VNXI_MAC_LEN],
               const unsigned char other[VNXI_MAC_LEN])
{
    return CRYPTO_memcmp(one, other, VNXI_MAC_LEN) == 0;
}
