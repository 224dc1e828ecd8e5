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

/* A quoted string; it may contain any byte, taken for Latin-1. */
void vnxi_json_string(vnxi_writer_t *out, const char *text);

/* Write `"name": ` for the next member. */
void vnxi_json_key(vnxi_writer_t *out, const char *name);

/* The same for a name that may contain any byte.  Bytes that are not part of
 * UTF-8 become escapes from \udc80 to \udcff. */
void vnxi_json_bytes_key(vnxi_writer_t *out, const void *name, size_t len);

/* Write these members as an object; frees them. */
void vnxi_json_object(vnxi_writer_t *out, vnxi_writer_t *members);

void vnxi_json_member(vnxi_writer_t *out, const char *name, const char *value);
void vnxi_json_number(vnxi_writer_t *out, const char *name, uint64_t value);

#endif
