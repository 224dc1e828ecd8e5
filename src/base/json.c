#include "base/json.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

void
vnxi_json_text(vnxi_writer_t *out, const char *text)
{
    vnxi_write_bytes(out, text, strlen(text));
}

static bool
needs_escape(unsigned char c)
{
    return c == '"' || c == '\\' || c < 0x20 || c == 0x7f;
}

static void
write_escape(vnxi_writer_t *out, unsigned code)
{
    char escape[16];
    snprintf(escape, sizeof escape, "\\u%04x", code);
    vnxi_json_text(out, escape);
}

void
vnxi_json_string(vnxi_writer_t *out, const char *text)
{
    vnxi_write_u8(out, '"');
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;
        if (needs_escape(c) || c >= 0x80) {
            write_escape(out, c);
        } else {
            vnxi_write_u8(out, c);
        }
    }
    vnxi_write_u8(out, '"');
}

void
vnxi_json_key(vnxi_writer_t *out, const char *name)
{
    if (out->len > 0) {
        vnxi_json_text(out, ", ");
    }
    vnxi_json_string(out, name);
    vnxi_json_text(out, ": ");
}

/* The length of the UTF-8 sequence that begins with this byte; 0: none does.
 */
static size_t
len_by_first(unsigned char first)
{
    if (first < 0x80) {
        return 1;
    }
    if (first < 0xc2 || first > 0xf4) {
        return 0;
    }
    return first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
}

/* The length of the UTF-8 sequence at the beginning; 0: there is none. */
static size_t
sequence_len(const unsigned char *at, size_t left)
{
    size_t len = len_by_first(at[0]);
    /* Limits of the second byte: no longer forms, no surrogates, nothing above
     * U+10FFFF. */
    unsigned char low = at[0] == 0xe0 ? 0xa0 : at[0] == 0xf0 ? 0x90 : 0x80;
    unsigned char high = at[0] == 0xed ? 0x9f : at[0] == 0xf4 ? 0x8f : 0xbf;

    if (len > left || (len > 1 && (at[1] < low || at[1] > high))) {
        return 0;
    }
    for (size_t i = 2; i < len; i++) {
        if ((at[i] & 0xc0) != 0x80) {
            return 0;
        }
    }
    return len;
}

void
vnxi_json_bytes_key(vnxi_writer_t *out, const void *name, size_t len)
{
    const unsigned char *at = name, *end = at + len;

    if (out->len > 0) {
        vnxi_json_text(out, ", ");
    }
    vnxi_write_u8(out, '"');
    while (at < end) {
        size_t count = sequence_len(at, (size_t)(end - at));
        if (count == 0) {
            write_escape(out, 0xdc00u + *at);
        } else if (count == 1 && needs_escape(*at)) {
            write_escape(out, *at);
        } else {
            vnxi_write_bytes(out, at, count);
        }
        at += count == 0 ? 1 : count;
    }
    vnxi_json_text(out, "\": ");
}

void
vnxi_json_object(vnxi_writer_t *out, vnxi_writer_t *members)
{
    vnxi_json_text(out, "{");
    vnxi_write_bytes(out, members->data, members->len);
    vnxi_json_text(out, "}");
    out->failed |= members->failed;
    vnxi_writer_fini(members);
}

void
vnxi_json_member(vnxi_writer_t *out, const char *name, const char *value)
{
    vnxi_json_key(out, name);
    vnxi_json_string(out, value);
}

void
vnxi_json_number(vnxi_writer_t *out, const char *name, uint64_t value)
{
    char text[32];
    snprintf(text, sizeof text, "%" PRIu64, value);
    vnxi_json_key(out, name);
    vnxi_json_text(out, text);
}
