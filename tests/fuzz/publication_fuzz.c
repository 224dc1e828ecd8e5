/*
 * Arbitrary publications.  The checksum at the end is corrected first, so that
 * what is behind it is reached.  A publication that is read and written again
 * gives the same bytes.
 */
#include "fuzz.h"

#include "base/bytes.h"
#include "publish/publication.h"

#define CHECKSUM_LEN 8u
#define MINOR_AT 9u

static void
seal(uint8_t *bytes, size_t size)
{
    uint64_t hash = vnxi_hash(bytes, size - CHECKSUM_LEN);

    for (unsigned i = 0; i < CHECKSUM_LEN; i++) {
        bytes[size - CHECKSUM_LEN + i] = (uint8_t)(hash >> (8 * i));
    }
}

static void
try_read(const uint8_t *data, size_t size, const vnxi_signature_key_t *key)
{
    vnxi_publication_t publication;
    vnx_bytes_t again;

    if (vnxi_publication_read(data, size, key, "vnx_attach", &publication,
                              NULL) != VNX_OK) {
        return;
    }
    bool is_signed = (data[10] & 1) != 0;
    must(vnxi_publication_check("vnx_publish", publication.lists,
                                publication.count, NULL) == VNX_OK);
    must(vnxi_publication_write(&publication, key, "vnx_publish", &again,
                                NULL) == VNX_OK);
    if (data[MINOR_AT] == 0 && is_signed == key->is_set) {
        must(again.len == size && memcmp(again.data, data, size) == 0);
    }
    free(again.data);
    vnxi_publication_fini(&publication);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const vnxi_signature_key_t none;
    uint8_t *copy = malloc(size + 1);

    must(copy != NULL);
    memcpy(copy, data, size);
    try_read(copy, size, &none);
    if (size >= CHECKSUM_LEN) {
        seal(copy, size);
        try_read(copy, size, &none);
    }
    free(copy);
    return 0;
}
