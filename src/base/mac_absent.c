/* Stub for builds without OpenSSL. */
#include "base/mac.h"

bool
vnxi_mac_is_there(void)
{
    return false;
}

bool
vnxi_mac(const void *key, size_t key_len, const void *data, size_t len,
         unsigned char mac_p[VNXI_MAC_LEN])
{
    (void)key, (void)key_len, (void)data, (void)len, (void)mac_p;
    return false;
}

bool
vnxi_mac_equal(const unsigned char one[VNXI_MAC_LEN],
               const unsigned char other[VNXI_MAC_LEN])
{
    (void)one, (void)other;
    return false;
}
