#include "side_channel/frame.h"

#include <stdlib.h>
#include <string.h>

void
vnxi_frame_encode_header(uint32_t len, unsigned char header[VNXI_FRAME_HEADER])
{
    header[0] = (unsigned char)(len >> 24);
    header[1] = (unsigned char)(len >> 16);
    header[2] = (unsigned char)(len >> 8);
    header[3] = (unsigned char)len;
}

static uint32_t
decode_header(const unsigned char header[VNXI_FRAME_HEADER])
{
    return (uint32_t)header[0] << 24 | (uint32_t)header[1] << 16 |
           (uint32_t)header[2] << 8 | (uint32_t)header[3];
}

void
vnxi_frame_decoder_init(vnxi_frame_decoder_t *decoder, uint32_t max)
{
    memset(decoder, 0, sizeof *decoder);
    decoder->max = max;
}

void
vnxi_frame_decoder_fini(vnxi_frame_decoder_t *decoder)
{
    free(decoder->data);
    decoder->data = NULL;
}

void *
vnxi_frame_space(vnxi_frame_decoder_t *decoder, size_t *size_p)
{
    if (decoder->state != VNXI_FRAME_MORE) {
        *size_p = 0;
        return NULL;
    }
    if (decoder->header_have < VNXI_FRAME_HEADER) {
        *size_p = VNXI_FRAME_HEADER - decoder->header_have;
        return decoder->header + decoder->header_have;
    }
    *size_p = decoder->capacity - decoder->have;
    return decoder->data + decoder->have;
}

/* Room for at least one byte more; an empty body gets a buffer too, so that
 * what is taken is never NULL. */
static vnxi_frame_state_t
grow(vnxi_frame_decoder_t *decoder)
{
    size_t capacity =
        decoder->capacity == 0 ? VNXI_FRAME_CHUNK : 2 * decoder->capacity;
    if (capacity > decoder->len) {
        capacity = decoder->len;
    }
    void *data = realloc(decoder->data, capacity > 0 ? capacity : 1);
    if (data == NULL) {
        return VNXI_FRAME_NO_MEMORY;
    }
    decoder->data = data;
    decoder->capacity = capacity;
    return VNXI_FRAME_MORE;
}

static vnxi_frame_state_t
commit_header(vnxi_frame_decoder_t *decoder, size_t count)
{
    decoder->header_have += count;
    if (decoder->header_have < VNXI_FRAME_HEADER) {
        return VNXI_FRAME_MORE;
    }
    decoder->len = decode_header(decoder->header);
    if (decoder->len > decoder->max) {
        return VNXI_FRAME_TOO_LONG;
    }
    if (grow(decoder) != VNXI_FRAME_MORE) {
        return VNXI_FRAME_NO_MEMORY;
    }
    return decoder->len == 0 ? VNXI_FRAME_WHOLE : VNXI_FRAME_MORE;
}

static vnxi_frame_state_t
commit_body(vnxi_frame_decoder_t *decoder, size_t count)
{
    decoder->have += count;
    if (decoder->have == decoder->len) {
        return VNXI_FRAME_WHOLE;
    }
    return decoder->have < decoder->capacity ? VNXI_FRAME_MORE : grow(decoder);
}

vnxi_frame_state_t
vnxi_frame_commit(vnxi_frame_decoder_t *decoder, size_t count)
{
    if (decoder->state == VNXI_FRAME_MORE) {
        decoder->state = decoder->header_have < VNXI_FRAME_HEADER
                             ? commit_header(decoder, count)
                             : commit_body(decoder, count);
    }
    return decoder->state;
}

void *
vnxi_frame_take(vnxi_frame_decoder_t *decoder, size_t *len_p)
{
    if (decoder->state != VNXI_FRAME_WHOLE || decoder->data == NULL) {
        return NULL;
    }
    void *data = decoder->data;
    decoder->data = NULL;
    *len_p = decoder->len;
    return data;
}
