/*
 * Arbitrary messages about shared GPU memory.  Writing an accepted message
 * must give the same bytes: each message has exactly one encoding.
 */
#include "fuzz.h"

#include "engine/native/cuda/lend_wire.h"

static vnxi_lend_piece_t pieces[VNXI_LEND_PIECES_MAX];
static uint64_t loans[VNXI_LEND_LOANS_MAX];

/* What vnxi_lend_write() needs of a message that was read. */
static void
take_rows(vnxi_lend_t *message)
{
    if (message->type == VNXI_LEND_LENT) {
        must(message->count > 0 && message->count <= VNXI_LEND_PIECES_MAX);
        for (size_t i = 0; i < message->count; i++) {
            pieces[i] = vnxi_lend_piece(message, i);
            must(pieces[i].size > 0 &&
                 pieces[i].start + pieces[i].size > pieces[i].start);
        }
        message->pieces = pieces;
    }
    if (message->type == VNXI_LEND_CHECK ||
        message->type == VNXI_LEND_CHECKED) {
        must(message->count <= VNXI_LEND_LOANS_MAX);
        for (size_t i = 0; i < message->count; i++) {
            loans[i] = vnxi_lend_loan(message, i);
        }
        message->loans = loans;
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    vnxi_writer_t writer = {0};
    vnxi_lend_t message;

    if (!vnxi_lend_read(data, size, &message)) {
        return 0;
    }
    if (message.type == VNXI_LEND_REFUSED) {
        must(message.status > 0 && message.count < VNX_ERROR_CAUSE_MAX);
        must(message.count == 0 ||
             ((const uint8_t *)message.cause >= data &&
              (const uint8_t *)message.cause + message.count <= data + size));
    }
    take_rows(&message);
    vnxi_lend_write(&writer, &message);
    must(!writer.failed && writer.len == size &&
         memcmp(writer.data, data, size) == 0);
    vnxi_writer_fini(&writer);
    return 0;
}
