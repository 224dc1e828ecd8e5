/*
 * Bounded reading and writing of bytes.  Numbers on the wire are
 * little-endian, as on every machine that NIXL supports,
 * unless a function says otherwise.
 *
 * A reader never reads past its end.  Such a read sets `failed` and returns
 * zeros, and every later read fails too, so a parser checks once at the end of
 * each part.  A writer grows as needed.  If memory runs out, it sets `failed`
 * and ignores all further writes.
 */
#ifndef VNXI_BASE_BYTES_H
#define VNXI_BASE_BYTES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* FNV-1a: for hash tables and for detecting damage; not cryptographic. */
uint64_t vnxi_hash(const void *data, size_t len);

/* Big-endian numbers of 1 to 8 bytes, as the side channel has them. */
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

typedef struct vnxi_reader {
    const unsigned char *at, *end; /* borrowed */
    bool failed;
} vnxi_reader_t;

static inline vnxi_reader_t
vnxi_reader(const void *data, size_t len)
{
    const unsigned char *bytes = data;
    return (vnxi_reader_t){
        .at = bytes, .end = len > 0 ? bytes + len : bytes, .failed = false};
}

static inline size_t
vnxi_reader_left(const vnxi_reader_t *reader)
{
    return (size_t)(reader->end - reader->at);
}

/* The next `len` bytes in place (borrowed), or NULL, and `failed` is set. */
const unsigned char *vnxi_read_bytes(vnxi_reader_t *reader, size_t len);
uint8_t vnxi_read_u8(vnxi_reader_t *reader);
uint16_t vnxi_read_u16(vnxi_reader_t *reader);
uint32_t vnxi_read_u32(vnxi_reader_t *reader);
uint64_t vnxi_read_u64(vnxi_reader_t *reader);

typedef struct vnxi_writer {
    unsigned char *data; /* owned: freed by vnxi_writer_fini() or taken */
    size_t len, capacity;
    bool failed;
} vnxi_writer_t; /* all zeros: an empty writer */

void vnxi_write_bytes(vnxi_writer_t *writer, const void *data, size_t len);
void vnxi_write_u8(vnxi_writer_t *writer, uint8_t value);
void vnxi_write_u16(vnxi_writer_t *writer, uint16_t value);
void vnxi_write_u32(vnxi_writer_t *writer, uint32_t value);
void vnxi_write_u64(vnxi_writer_t *writer, uint64_t value);

/* Pass the written bytes to the caller and empty the writer.  False: memory
 * had run out, and the outputs are not set. */
bool vnxi_writer_take(vnxi_writer_t *writer, void **data_p, size_t *len_p);
void vnxi_writer_fini(vnxi_writer_t *writer);

#endif
