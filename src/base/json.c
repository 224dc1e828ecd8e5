#include "base/json.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

void
vnxi_json_text(vnxi_writer_t *out, const char *text)
{
    vnxi_write_bytes(out, text, strlen(text));
}

void
vnxi_json_string(vnxi_writer_t *out, const char *text)
{
    char escape[8];

    vnxi_write_u8(out, '"');
    for (; *text != '\0'; text++) {
        unsigned char c = (unsigned char)*text;
        if (c == '"' || c == '\\' || c < 0x20 || c >= 0x7f) {
            snprintf(escape, sizeof escape, "\\u%04x", c);
            vnxi_json_text(out, escape);
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
