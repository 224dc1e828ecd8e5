#include "engine/native/cuda/lend_wire.h"

#include <string.h>

#define PIECE_BYTES (8 + 8 + 8 + 1 + VNXI_LEND_HANDLE_SIZE)
#define LOAN_BYTES 8u
#define ROW_BYTES (8u + 4 + 4)

/* -- Writing ---------------------------------------------------------------
 */

static void
write_piece(vnxi_writer_t *writer, const vnxi_lend_piece_t *piece)
{
    vnxi_write_u64(writer, piece->start);
    vnxi_write_u64(writer, piece->size);
    vnxi_write_u64(writer, piece->id);
    vnxi_write_u8(writer, (uint8_t)piece->kind);
    vnxi_write_bytes(writer, piece->handle, sizeof piece->handle);
}

static void
write_move(vnxi_writer_t *writer, const vnxi_lend_t *message)
{
    vnxi_write_u64(writer, message->window);
    vnxi_write_u8(writer, message->half);
    vnxi_write_u8(writer, message->is_write);
    vnxi_write_u64(writer, message->addr);
    vnxi_write_u64(writer, message->len);
    vnxi_write_u64(writer, message->dev);
    vnxi_write_u16(writer, (uint16_t)message->count);
    for (size_t i = 0; i < message->count; i++) {
        vnxi_write_u64(writer, message->moved[i].addr);
        vnxi_write_u32(writer, message->moved[i].offset);
        vnxi_write_u32(writer, message->moved[i].len);
    }
}

void
vnxi_lend_write(vnxi_writer_t *writer, const vnxi_lend_t *message)
{
    vnxi_write_u8(writer, (uint8_t)message->type);
    vnxi_write_u64(writer, message->loan);
    switch (message->type) {
    case VNXI_LEND_ASK:
        vnxi_write_u64(writer, message->addr);
        vnxi_write_u64(writer, message->len);
        vnxi_write_u64(writer, message->dev);
        vnxi_write_u64(writer, message->from);
        break;
    case VNXI_LEND_LENT:
        vnxi_write_u8(writer, message->is_last);
        vnxi_write_u8(writer, (uint8_t)message->count);
        for (size_t i = 0; i < message->count; i++) {
            write_piece(writer, &message->pieces[i]);
        }
        break;
    case VNXI_LEND_REFUSED:
    case VNXI_LEND_OPENED:
    case VNXI_LEND_MOVED:
        vnxi_write_u32(writer, message->status);
        vnxi_write_bytes(writer, message->cause, message->count);
        break;
    case VNXI_LEND_RECALL:
    case VNXI_LEND_RETURNED:
    case VNXI_LEND_OPEN:
        break;
    case VNXI_LEND_MOVE:
        write_move(writer, message);
        break;
    case VNXI_LEND_CHECK:
    case VNXI_LEND_CHECKED:
        vnxi_write_u16(writer, (uint16_t)message->count);
        for (size_t i = 0; i < message->count; i++) {
            vnxi_write_u64(writer, message->loans[i]);
        }
        break;
    }
}

/* -- Reading ---------------------------------------------------------------
 */

static bool
piece_is_good(const vnxi_lend_piece_t *piece)
{
    return piece->size > 0 && piece->start <= UINT64_MAX - piece->size &&
           piece->kind >= VNXI_LEND_LEGACY && piece->kind <= VNXI_LEND_FABRIC;
}

static bool
read_rows(vnxi_reader_t *reader, size_t most, size_t row, vnxi_lend_t *message)
{
    if (message->count > most ||
        vnxi_reader_left(reader) != message->count * row) {
        return false;
    }
    message->rows = vnxi_read_bytes(reader, message->count * row);
    return true;
}

static bool
read_pieces(vnxi_reader_t *reader, vnxi_lend_t *message)
{
    uint8_t is_last = vnxi_read_u8(reader);

    message->is_last = is_last == 1;
    message->count = vnxi_read_u8(reader);
    if (is_last > 1 || message->count == 0 ||
        !read_rows(reader, VNXI_LEND_PIECES_MAX, PIECE_BYTES, message)) {
        return false;
    }
    for (size_t i = 0; i < message->count; i++) {
        vnxi_lend_piece_t piece = vnxi_lend_piece(message, i);
        if (!piece_is_good(&piece)) {
            return false;
        }
    }
    return true;
}

static bool
row_is_good(const vnxi_lend_t *message, const vnxi_lend_row_t *row)
{
    return row->len > 0 && row->addr >= message->addr &&
           row->addr - message->addr <= message->len &&
           row->len <= message->len - (row->addr - message->addr) &&
           row->len <= VNXI_WINDOW_HALF_BYTES &&
           row->offset <= VNXI_WINDOW_HALF_BYTES - row->len;
}

/* All rows must lie in the region and in the half. */
static bool
read_move(vnxi_reader_t *reader, vnxi_lend_t *message)
{
    message->window = vnxi_read_u64(reader);
    message->half = vnxi_read_u8(reader);
    uint8_t is_write = vnxi_read_u8(reader);
    message->is_write = is_write == 1;
    message->addr = vnxi_read_u64(reader);
    message->len = vnxi_read_u64(reader);
    message->dev = vnxi_read_u64(reader);
    message->count = vnxi_read_u16(reader);
    if (message->half >= VNXI_WINDOW_HALVES || is_write > 1 ||
        message->count == 0 ||
        !read_rows(reader, VNXI_LEND_ROWS_MAX, ROW_BYTES, message)) {
        return false;
    }
    for (size_t i = 0; i < message->count; i++) {
        vnxi_lend_row_t row = vnxi_lend_row(message, i);
        if (!row_is_good(message, &row)) {
            return false;
        }
    }
    return true;
}

/* A status is 0 unless it must be an error. */
static bool
read_status(vnxi_reader_t *reader, bool is_error, vnxi_lend_t *message)
{
    message->status = vnxi_read_u32(reader);
    message->count = vnxi_reader_left(reader);
    message->cause = (const char *)vnxi_read_bytes(reader, message->count);
    return message->status >= is_error &&
           message->status < VNXI_LEND_STATUS_MAX &&
           message->count < VNX_ERROR_CAUSE_MAX;
}

static bool
read_body(vnxi_reader_t *reader, vnxi_lend_t *message)
{
    switch (message->type) {
    case VNXI_LEND_ASK:
        message->addr = vnxi_read_u64(reader);
        message->len = vnxi_read_u64(reader);
        message->dev = vnxi_read_u64(reader);
        message->from = vnxi_read_u64(reader);
        return true;
    case VNXI_LEND_LENT:
        return read_pieces(reader, message);
    case VNXI_LEND_REFUSED:
        return read_status(reader, true, message);
    case VNXI_LEND_OPENED:
    case VNXI_LEND_MOVED:
        return read_status(reader, false, message);
    case VNXI_LEND_MOVE:
        return read_move(reader, message);
    case VNXI_LEND_RECALL:
    case VNXI_LEND_RETURNED:
    case VNXI_LEND_OPEN:
        return true;
    case VNXI_LEND_CHECK:
    case VNXI_LEND_CHECKED:
        message->count = vnxi_read_u16(reader);
        return read_rows(reader, VNXI_LEND_LOANS_MAX, LOAN_BYTES, message);
    }
    return false;
}

bool
vnxi_lend_read(const void *data, size_t len, vnxi_lend_t *message_p)
{
    vnxi_reader_t reader = vnxi_reader(data, len);
    vnxi_lend_t message = {.type = (vnxi_lend_type_t)vnxi_read_u8(&reader)};

    message.loan = vnxi_read_u64(&reader);
    if (!read_body(&reader, &message) || reader.failed ||
        vnxi_reader_left(&reader) != 0) {
        return false;
    }
    *message_p = message;
    return true;
}

vnxi_lend_piece_t
vnxi_lend_piece(const vnxi_lend_t *message, size_t i)
{
    vnxi_reader_t reader =
        vnxi_reader(message->rows + i * PIECE_BYTES, PIECE_BYTES);
    vnxi_lend_piece_t piece;

    piece.start = vnxi_read_u64(&reader);
    piece.size = vnxi_read_u64(&reader);
    piece.id = vnxi_read_u64(&reader);
    piece.kind = (vnxi_lend_kind_t)vnxi_read_u8(&reader);
    memcpy(piece.handle, vnxi_read_bytes(&reader, sizeof piece.handle),
           sizeof piece.handle);
    return piece;
}

uint64_t
vnxi_lend_loan(const vnxi_lend_t *message, size_t i)
{
    vnxi_reader_t reader =
        vnxi_reader(message->rows + i * LOAN_BYTES, LOAN_BYTES);
    return vnxi_read_u64(&reader);
}

vnxi_lend_row_t
vnxi_lend_row(const vnxi_lend_t *message, size_t i)
{
    vnxi_reader_t reader =
        vnxi_reader(message->rows + i * ROW_BYTES, ROW_BYTES);
    vnxi_lend_row_t row;

    row.addr = vnxi_read_u64(&reader);
    row.offset = vnxi_read_u32(&reader);
    row.len = vnxi_read_u32(&reader);
    return row;
}
