/*
 * JSON output: members of an object, written one after the other.  The
 * separator ", " precedes each member but the first one of a writer.
 */
#ifndef VNXI_BASE_JSON_H
#define VNXI_BASE_JSON_H

#include <stdint.h>

#include "base/bytes.h"

/* Raw text. */
void vnxi_json_text(vnxi_writer_t *out, const char *text);

/* A quoted string; it may contain any byte. */
void vnxi_json_string(vnxi_writer_t *out, const char *text);

/* Write `"name": ` for the next member. */
void vnxi_json_key(vnxi_writer_t *out, const char *name);

void vnxi_json_member(vnxi_writer_t *out, const char *name, const char *value);
void vnxi_json_number(vnxi_writer_t *out, const char *name, uint64_t value);

#endif
