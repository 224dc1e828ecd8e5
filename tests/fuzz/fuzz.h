/* Common parts of all fuzz targets. */
#ifndef VNX_FUZZ_H
#define VNX_FUZZ_H

#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Report a finding if the condition is false. */
static inline void
must(bool holds)
{
    if (!holds) {
        abort();
    }
}

#endif
