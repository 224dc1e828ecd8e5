/*
 * HMAC-SHA256, from OpenSSL's libcrypto.  A build without OpenSSL has none:
 * vnxi_mac_is_there() is false, and the other calls fail.
 */
#ifndef VNXI_BASE_MAC_H
#define VNXI_BASE_MAC_H

#include <stdbool.h>
#include <stddef.h>

#define VNXI_MAC_LEN 32u

/* Does this build have OpenSSL? */
bool vnxi_mac_is_there(void);

/* The MAC of `data` under `key` (INT_MAX bytes at most); false: OpenSSL
 * failed. */
bool vnxi_mac(const void *key, size_t key_len, const void *data, size_t len,
              unsigned char mac_p[VNXI_MAC_LEN]);

/* Are two MACs the same?  Takes the same time wherever they differ. */
bool vnxi_mac_equal(const unsigned char one[VNXI_MAC_LEN],
                    const unsigned char other[VNXI_MAC_LEN]);

#endif
