/* Publications for tests: a sample, and the checksum at its end. */
#ifndef PUBLICATION_SCENE_H
#define PUBLICATION_SCENE_H

#include "vnx_test.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "publish/publication.h"

static const vnx_desc_t sample_rows[] = {{0x1000, 32, 0}, {0x2000, 32, 1}};
static const vnx_strided_desc_t sample_strided[] = {
    {0x10000, 64, 0, 128, 1000}, {0x90000, 64, 0, 0, 1}};

static const vnx_named_rows_t sample_lists[] = {
    {.name = "kv", .rows = sample_rows, .count = 2},
    {.name = "state",
     .mem = VNX_MEM_VRAM,
     .strided = sample_strided,
     .count = 2},
};

/* Write these lists with the metadata "metadata"; free() the result. */
static inline vnx_bytes_t
publication_of(const vnx_named_rows_t *lists, size_t count,
               const vnxi_signature_key_t *key)
{
    static const vnxi_signature_key_t none;
    vnxi_publication_t publication = {.metadata = "metadata",
                                      .metadata_len = 8,
                                      .lists =
                                          (vnx_named_rows_t *)(uintptr_t)lists,
                                      .count = count};
    vnx_bytes_t bytes = {0};
    vnx_error_t error;

    assert_int_equal(vnxi_publication_write(&publication,
                                            key != NULL ? key : &none,
                                            "vnx_publish", &bytes, &error),
                     VNX_OK);
    return bytes;
}

/* Correct the checksum of an unsigned publication that was changed. */
static inline void
publication_seal(unsigned char *bytes, size_t len)
{
    uint64_t hash = vnxi_hash(bytes, len - 8);

    for (unsigned i = 0; i < 8; i++) {
        bytes[len - 8 + i] = (unsigned char)(hash >> (8 * i));
    }
}

#endif
