#include "base/mac.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>

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
    return HMAC(EVP_sha256(), key, (int)key_len, data, len, mac_p, &made) !=
               NULL &&
           made == VNXI_MAC_LEN;
}

bool
vnxi_mac_equal(const unsigned char one[VNXI_MAC_LEN],
               const unsigned char other[VNXI_MAC_LEN])
{
    return CRYPTO_memcmp(one, other, VNXI_MAC_LEN) == 0;
}
