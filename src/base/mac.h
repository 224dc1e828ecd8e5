/*
 * HMAC-SHA256, from OpenSSL's libcrypto.  In a build without OpenSSL,
 * vnxi_mac_is_there() returns false and the other calls fail.
 */
#ifndef VNXI_BASE_MAC_H
#define VNXI_BASE_MAC_H

#include <stdbool.h>
#include <stddef.h>

#define VNXI_MAC_LEN 32u

/* Return whether this build has OpenSSL. */
bool vnxi_mac_is_there(void);

/* Compute the MAC of `data` under `key` (at most INT_MAX bytes).  False:
 * OpenSSL failed, or the process is ending. */
bool vnxi_mac(const void *key, size_t key_len, const void *data, size_t len,
              unsigned char mac_p[VNXI_MAC_LEN]);

/* Compare two MACs in constant time. */
bool vnxi_mac_equal(const unsigned char one[VNXI_MAC_LEN],
                    const unsigned char other[VNXI_MAC_LEN]);

#endif
