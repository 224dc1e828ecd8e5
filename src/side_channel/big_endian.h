/*
 * Big-endian numbers of 1 to 8 bytes.
 */
#ifndef VNXI_SIDE_CHANNEL_BIG_ENDIAN_H
#define VNXI_SIDE_CHANNEL_BIG_ENDIAN_H

#include <stddef.h>
#include <stdint.h>

static inline uint64_t
vnxi_big_get(const unsigned char *bytes, size_t len)
{
    uint64_t number = 0;
    for (size_t i = 0; i < len; i++) {
        number = number << 8 | bytes[i];
    }
    return number;
}

static inline void
vnxi_big_put(unsigned char *bytes, size_t len, uint64_t number)
{
    for (size_t i = len; i-- > 0; number >>= 8) {
        bytes[i] = (unsigned char)number;
    }
}

#endif
