/* What every fuzz target begins with. */
#ifndef VNX_FUZZ_H
#define VNX_FUZZ_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A finding where it does not hold. */
static inline void
must(bool holds)
{
    if (!holds) {
        abort();
    }
}

#endif
