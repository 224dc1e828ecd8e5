/*
 * Arbitrary frames, cut at arbitrary places.  The first two bytes of an input
 * choose the cap, the head and the pieces; the rest is the stream.  The
 * decoder's results are compared with a reading of the whole stream at once.
 */
#include "fuzz.h"

#include "side_channel/frame.h"

static vnxi_frame_state_t
expected_state(const uint8_t *stream, size_t size, uint32_t max)
{
    if (size < VNXI_FRAME_HEADER) {
        return VNXI_FRAME_MORE;
    }
    uint32_t len = (uint32_t)stream[0] << 24 | (uint32_t)stream[1] << 16 |
                   (uint32_t)stream[2] << 8 | stream[3];
    if (len > max) {
        return VNXI_FRAME_TOO_LONG;
    }
    return size - VNXI_FRAME_HEADER >= len ? VNXI_FRAME_WHOLE
                                           : VNXI_FRAME_MORE;
}

/* Feed the stream in pieces; returns the number of bytes taken. */
static size_t
feed(vnxi_frame_decoder_t *decoder, const uint8_t *stream, size_t size,
     size_t piece)
{
    size_t taken = 0, room;
    void *space;

    while (taken < size && (space = vnxi_frame_space(decoder, &room))) {
        must(room > 0);
        room = room < piece ? room : piece;
        room = room < size - taken ? room : size - taken;
        memcpy(space, stream + taken, room);
        taken += room;
        must(vnxi_frame_commit(decoder, room) == decoder->state);
        must(decoder->head_have <= decoder->head_max);
        must(decoder->capacity <= VNXI_FRAME_CHUNK ||
             decoder->capacity <= 2 * decoder->have);
    }
    return taken;
}

static void
check_whole(vnxi_frame_decoder_t *decoder, const uint8_t *stream, size_t taken)
{
    unsigned char header[VNXI_FRAME_HEADER];
    size_t len = 0, room;

    size_t head = decoder->head_have;
    void *body = vnxi_frame_take(decoder, &len);
    must(body != NULL && taken == VNXI_FRAME_HEADER + head + len);
    must(head == decoder->head_max || len == 0);
    must(memcmp(decoder->head, stream + VNXI_FRAME_HEADER, head) == 0);
    must(memcmp(body, stream + VNXI_FRAME_HEADER + head, len) == 0);
    vnxi_frame_encode_header((uint32_t)(head + len), header);
    must(memcmp(header, stream, sizeof header) == 0);
    must(vnxi_frame_space(decoder, &room) == NULL && room == 0);
    must(vnxi_frame_take(decoder, &len) == NULL);
    free(body);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint32_t caps[] = {0, 12, 1036, 1u << 20, UINT32_MAX};
    static const size_t heads[] = {0, 1, VNXI_FRAME_HEAD_MAX};
    vnxi_frame_decoder_t decoder;

    if (size < 2) {
        return 0;
    }
    uint32_t max = caps[data[0] % (sizeof caps / sizeof caps[0])];
    size_t head = heads[data[0] / 5 % 3];
    size_t piece = (size_t)data[1] + 1;
    vnxi_frame_decoder_init(&decoder, max, head);
    size_t taken = feed(&decoder, data + 2, size - 2, piece);
    must(decoder.state == expected_state(data + 2, size - 2, max));
    if (decoder.state == VNXI_FRAME_WHOLE) {
        check_whole(&decoder, data + 2, taken);
    }
    vnxi_frame_decoder_fini(&decoder);
    return 0;
}
