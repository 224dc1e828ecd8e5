#include "side_channel/frame.h"

#include <stdlib.h>
#include <string.h>

#include "side_channel/big_endian.h"

void
vnxi_frame_encode_header(uint32_t len, unsigned char header[VNXI_FRAME_HEADER])
{
    vnxi_big_put(header, VNXI_FRAME_HEADER, len);
}

void
vnxi_frame_decoder_init(vnxi_frame_decoder_t *decoder, uint32_t max,
                        size_t head_max)
{
    memset(decoder, 0, sizeof *decoder);
    decoder->max = max;
    decoder->head_max = head_max;
}

void
vnxi_frame_decoder_fini(vnxi_frame_decoder_t *decoder)
{
    free(decoder->data);
    decoder->data = NULL;
}

static size_t
head_len(const vnxi_frame_decoder_t *decoder)
{
    return decoder->len < decoder->head_max ? decoder->len : decoder->head_max;
}

static size_t
body_len(const vnxi_frame_decoder_t *decoder)
{
    return decoder->len - head_len(decoder);
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
    if (decoder->head_have < head_len(decoder)) {
        *size_p = head_len(decoder) - decoder->head_have;
        return decoder->head + decoder->head_have;
    }
    *size_p = decoder->capacity - decoder->have;
    return decoder->data + decoder->have;
}

/* Make room for at least one more byte.  An empty body gets a buffer too, so
 * that vnxi_frame_take() never returns NULL for it. */
static vnxi_frame_state_t
grow(vnxi_frame_decoder_t *decoder)
{
    size_t capacity =
        decoder->capacity == 0 ? VNXI_FRAME_CHUNK : 2 * decoder->capacity;
    if (capacity > body_len(decoder)) {
        capacity = body_len(decoder);
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
begin_body(vnxi_frame_decoder_t *decoder)
{
    if (grow(decoder) != VNXI_FRAME_MORE) {
        return VNXI_FRAME_NO_MEMORY;
    }
    return body_len(decoder) == 0 ? VNXI_FRAME_WHOLE : VNXI_FRAME_MORE;
}

static vnxi_frame_state_t
commit_header(vnxi_frame_decoder_t *decoder, size_t count)
{
    decoder->header_have += count;
    if (decoder->header_have < VNXI_FRAME_HEADER) {
        return VNXI_FRAME_MORE;
    }
    decoder->len = (uint32_t)vnxi_big_get(decoder->header, VNXI_FRAME_HEADER);
    if (decoder->len > decoder->max) {
        return VNXI_FRAME_TOO_LONG;
    }
    return head_len(decoder) > 0 ? VNXI_FRAME_MORE : begin_body(decoder);
}

static vnxi_frame_state_t
commit_head(vnxi_frame_decoder_t *decoder, size_t count)
{
    decoder->head_have += count;
    return decoder->head_have < head_len(decoder) ? VNXI_FRAME_MORE
                                                  : begin_body(decoder);
}

static vnxi_frame_state_t
commit_body(vnxi_frame_decoder_t *decoder, size_t count)
{
    decoder->have += count;
    if (decoder->have == body_len(decoder)) {
        return VNXI_FRAME_WHOLE;
    }
    return decoder->have < decoder->capacity ? VNXI_FRAME_MORE : grow(decoder);
}

vnxi_frame_state_t
vnxi_frame_commit(vnxi_frame_decoder_t *decoder, size_t count)
{
    if (decoder->state != VNXI_FRAME_MORE) {
        return decoder->state;
    }
    if (decoder->header_have < VNXI_FRAME_HEADER) {
        decoder->state = commit_header(decoder, count);
    } else if (decoder->head_have < head_len(decoder)) {
        decoder->state = commit_head(decoder, count);
    } else {
        decoder->state = commit_body(decoder, count);
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
    *len_p = body_len(decoder);
    return data;
}
