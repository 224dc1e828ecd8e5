/*
 * Arbitrary ZMTP: a greeting, the header of a frame, the body of a command.
 * Parsed parts lie within the input and keep their meaning when they are
 * written again.
 */
#include "fuzz.h"

#include "side_channel/zmq_wire.h"

static void
try_greeting(const uint8_t *data, size_t size)
{
    unsigned char ours[VNXI_ZMTP_GREETING];
    bool was_fine = true;

    for (size_t len = 0; len <= size && len <= sizeof ours; len++) {
        bool fine = vnxi_zmtp_greeting_check(data, len) == NULL;
        must(was_fine || !fine); /* an invalid prefix stays invalid */
        was_fine = fine;
    }
    if (size >= sizeof ours && was_fine) {
        vnxi_zmtp_greeting(ours);
        must(data[0] == ours[0] && memcmp(data + 12, ours + 12, 20) == 0);
    }
}

static void
try_header(const uint8_t *data, size_t size)
{
    size_t have = size < VNXI_ZMTP_HEADER_MAX ? size : VNXI_ZMTP_HEADER_MAX;
    unsigned char again[VNXI_ZMTP_HEADER_MAX];
    vnxi_zmtp_frame_t frame;

    if (vnxi_zmtp_header_parse(data, have, &frame) != VNXI_ZMTP_WHOLE) {
        return;
    }
    must(frame.header <= have && !(frame.more && frame.command));
    if (!frame.command && (frame.header == 2 || frame.len > 255)) {
        must(vnxi_zmtp_header_encode(frame.more, frame.len, again) ==
             frame.header);
        must(memcmp(again, data, frame.header) == 0);
    }
}

static void
must_be_within(const uint8_t *data, size_t size, const uint8_t *part,
               size_t len)
{
    must(part == NULL ||
         (part >= data && len <= size && (size_t)(part - data) <= size - len));
}

static void
try_command(const uint8_t *data, size_t size)
{
    unsigned char command[VNXI_ZMTP_COMMAND_MAX];
    vnxi_zmtp_ready_t ready, again;

    if (vnxi_zmtp_ready_parse(data, size, &ready)) {
        must_be_within(data, size, ready.type, ready.type_len);
        must_be_within(data, size, ready.key, ready.key_len);
        size_t len = vnxi_zmtp_ready_client(ready.key, ready.key_len, command);
        size_t header = len - 2 > 255 ? 9 : 2;
        must(len <= sizeof command &&
             vnxi_zmtp_ready_parse(command + header, len - header, &again));
        must(again.key_len == ready.key_len);
    }
    size_t len = vnxi_zmtp_pong(data, size, command);
    must(len == 0 || len == size);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0) {
        return 0;
    }
    switch (data[0] % 3) {
    case 0:
        try_greeting(data + 1, size - 1);
        break;
    case 1:
        try_header(data + 1, size - 1);
        break;
    default:
        try_command(data + 1, size - 1);
    }
    return 0;
}
