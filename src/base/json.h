/*
 * Writing JSON: the members of an object, one after the other, each with its
 * separator before it (", ") but for the first of a writer.
 */
#ifndef VNXI_BASE_JSON_H
#define VNXI_BASE_JSON_H

#include <stdint.h>

#include "base/bytes.h"

/* Text as it stands. */
void vnxi_json_text(vnxi_writer_t *out, const char *text);

/* A quoted string; names and causes may hold any byte. */
void vnxi_json_string(vnxi_writer_t *out, const char *text);

/* `"name": ` of the next member. */
void vnxi_json_key(vnxi_writer_t *out, const char *name);

void vnxi_json_member(vnxi_writer_t *out, const char *name, const char *value);
void vnxi_json_number(vnxi_writer_t *out, const char *name, uint64_t value);

#endif
