/*
 * Arbitrary payloads of the metadata listener.  Writing the commands that were
 * read must give the same bytes.
 */
#include "fuzz.h"

#include "listener/codec.h"

/* Write the command as it is encoded in the payload at *at. */
static void
check_command(const vnxi_meta_command_t *command, const uint8_t **at,
              const uint8_t *end)
{
    unsigned char prefix[VNXI_META_PREFIX];
    size_t written = VNXI_META_MARK_LEN;

    if (command->verb != VNXI_META_UNKNOWN) {
        vnxi_meta_prefix_write(command->verb, command->len, prefix);
        must(vnxi_meta_header_read(prefix) ==
             command->len + VNXI_META_COMMAND_MIN);
        must(memcmp(prefix + VNXI_META_HEADER, *at, VNXI_META_COMMAND_MIN) ==
             0);
        written = VNXI_META_COMMAND_MIN;
    } else {
        must(memcmp(*at, VNXI_META_MARK, VNXI_META_MARK_LEN) == 0);
    }
    must(command->body == *at + written);
    must(command->len <= (size_t)(end - command->body));
    must(!vnxi_meta_has_mark(command->body, command->len));
    *at = command->body + command->len;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const uint8_t *at = data, *end = data + size;
    vnxi_meta_cursor_t cursor;
    vnxi_meta_command_t command;

    if (size >= VNXI_META_HEADER) {
        vnxi_meta_header_read(data);
    }
    if (!vnxi_meta_commands(data, size, &cursor)) {
        must(size < VNXI_META_MARK_LEN ||
             memcmp(data, VNXI_META_MARK, VNXI_META_MARK_LEN) != 0);
        return 0;
    }
    while (vnxi_meta_command_next(&cursor, &command)) {
        check_command(&command, &at, end);
    }
    must(at == end);
    return 0;
}
