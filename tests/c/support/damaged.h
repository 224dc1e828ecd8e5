/*
 * Damages the sample of a versioned, sealed format in every way that its
 * reader must refuse.
 */
#ifndef DAMAGED_H
#define DAMAGED_H

#include "vnx_test.h"

#include <stdlib.h>
#include <string.h>

/* Assert that the reader refuses the bytes with this cause. */
typedef void (*damaged_refused_t)(const void *bytes, size_t len,
                                  const char *cause);

/* A copy in an allocation of its own, so that ASan sees a read beyond it. */
static inline char *
damaged_copy(const char *sample, size_t len)
{
    char *bytes = malloc(len > 0 ? len : 1);
    assert_non_null(bytes);
    memcpy(bytes, sample, len);
    return bytes;
}

static inline void
damaged_version(const char *sample, size_t len, damaged_refused_t refused)
{
    char *bytes = damaged_copy(sample, len);

    bytes[0] = 2;
    refused(bytes, len, "has version 2, only 1 is supported");
    bytes[0] = 0;
    refused(bytes, len, "has version 0");
    free(bytes);
}

static inline void
damaged_end(const char *sample, size_t len, damaged_refused_t refused)
{
    for (size_t kept = 0; kept < len; kept++) {
        char *part = damaged_copy(sample, kept);
        refused(part, kept, "cut off");
        free(part);
    }
}

static inline void
damaged_bits(const char *sample, size_t len, damaged_refused_t refused)
{
    char *bytes = damaged_copy(sample, len);

    for (size_t at = 0; at < len; at++) {
        for (unsigned bit = 0; bit < 8; bit++) {
            memcpy(bytes, sample, len);
            bytes[at] = (char)(bytes[at] ^ (1 << bit));
            refused(bytes, len, "");
        }
    }
    free(bytes);
}

#endif
