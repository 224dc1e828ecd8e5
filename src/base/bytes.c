#include "base/bytes.h"

#include <stdlib.h>
#include <string.h>

uint64_t
vnxi_hash(const void *data, size_t len)
{
    const unsigned char *bytes = data;
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < len; i++) {
        hash = (hash ^ bytes[i]) * 0x100000001b3u;
    }
    return hash;
}

const unsigned char *
vnxi_read_bytes(vnxi_reader_t *reader, size_t len)
{
    if (reader->failed || len > vnxi_reader_left(reader)) {
        reader->failed = true;
        return NULL;
    }
    const unsigned char *at = reader->at;
    reader->at += len;
    return at;
}

static uint64_t
read_number(vnxi_reader_t *reader, size_t width)
{
    const unsigned char *bytes = vnxi_read_bytes(reader, width);
    uint64_t value = 0;
    for (size_t i = 0; bytes != NULL && i < width; i++) {
        value |= (uint64_t)bytes[i] << (8 * i);
    }
    return value;
}

uint8_t
vnxi_read_u8(vnxi_reader_t *reader)
{
    return (uint8_t)read_number(reader, 1);
}

uint16_t
vnxi_read_u16(vnxi_reader_t *reader)
{
    return (uint16_t)read_number(reader, 2);
}

uint32_t
vnxi_read_u32(vnxi_reader_t *reader)
{
    return (uint32_t)read_number(reader, 4);
}

uint64_t
vnxi_read_u64(vnxi_reader_t *reader)
{
    return read_number(reader, 8);
}

static bool
writer_reserve(vnxi_writer_t *writer, size_t len)
{
    if (writer->failed || len > SIZE_MAX / 2 - writer->len) {
        writer->failed = true;
        return false;
    }
    if (writer->len + len <= writer->capacity) {
        return true;
    }
    size_t capacity = writer->capacity < 256 ? 256 : 2 * writer->capacity;
    if (capacity < writer->len + len) {
        capacity = writer->len + len;
    }
    unsigned char *data = realloc(writer->data, capacity);
    if (data == NULL) {
        writer->failed = true;
        return false;
    }
    writer->data = data;
    writer->capacity = capacity;
    return true;
}

void
vnxi_write_bytes(vnxi_writer_t *writer, const void *data, size_t len)
{
    if (writer_reserve(writer, len) && len > 0) {
        memcpy(writer->data + writer->len, data, len);
        writer->len += len;
    }
}

static void
write_number(vnxi_writer_t *writer, uint64_t value, size_t width)
{
    unsigned char bytes[8];
    for (size_t i = 0; i < width; i++) {
        bytes[i] = (unsigned char)(value >> (8 * i));
    }
    vnxi_write_bytes(writer, bytes, width);
}

void
vnxi_write_u8(vnxi_writer_t *writer, uint8_t value)
{
    write_number(writer, value, 1);
}

void
vnxi_write_u16(vnxi_writer_t *writer, uint16_t value)
{
    write_number(writer, value, 2);
}

void
vnxi_write_u32(vnxi_writer_t *writer, uint32_t value)
{
    write_number(writer, value, 4);
}

void
vnxi_write_u64(vnxi_writer_t *writer, uint64_t value)
{
    write_number(writer, value, 8);
}

bool
vnxi_writer_take(vnxi_writer_t *writer, void **data_p, size_t *len_p)
{
    if (writer->failed) {
        vnxi_writer_fini(writer);
        return false;
    }
    *data_p = writer->data;
    *len_p = writer->len;
    *writer = (vnxi_writer_t){0};
    return true;
}

void
vnxi_writer_fini(vnxi_writer_t *writer)
{
    free(writer->data);
    *writer = (vnxi_writer_t){0};
}
