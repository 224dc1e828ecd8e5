/*
 * Contents of requests of the HTTP side channel: targets, keys, entity tags,
 * tokens.  Encoding and parsing of text; no I/O, no clock, no memory.
 * docs/wire.md specifies the bytes.
 *
 * libevent at the server and libcurl at the client parse lines, header fields
 * and lengths.
 */
#ifndef VNXI_SIDE_CHANNEL_HTTP_WIRE_H
#define VNXI_SIDE_CHANNEL_HTTP_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/side_channel.h>

#define VNXI_HTTP_METADATA_PATH "/metadata"
#define VNXI_HTTP_HEALTH_PATH "/health"
/* "/metadata/", then each byte of a key as "%00", and the final NUL. */
#define VNXI_HTTP_PATH_MAX (10 + 3 * VNX_SIDE_CHANNEL_KEY_MAX + 1)
#define VNXI_HTTP_ETAG_MAX 19 /* 16 digits in quotes, and the final NUL */

typedef enum vnxi_http_route {
    VNXI_HTTP_METADATA,  /* and a key */
    VNXI_HTTP_HEALTH,    /* asks whether the listener is alive */
    VNXI_HTTP_NOWHERE,   /* not a path of this side channel */
    VNXI_HTTP_MALFORMED, /* a key with a broken escape */
    VNXI_HTTP_TOO_LONG,  /* a key longer than any that a listener has */
} vnxi_http_route_t;

typedef struct vnxi_http_target {
    vnxi_http_route_t route;
    size_t key_len; /* of METADATA; 0: the default */
    unsigned char key[VNX_SIDE_CHANNEL_KEY_MAX];
} vnxi_http_target_t;

/* Parse the path of a request's target; NULL counts as VNXI_HTTP_NOWHERE.
 * Everything after "/metadata/" is the key, with "%41" for "A". */
void vnxi_http_target_parse(const char *path, vnxi_http_target_t *out_p);

/* Write the path that asks for a key.  Returns its length. */
size_t vnxi_http_path(const void *key, size_t key_len,
                      char path[VNXI_HTTP_PATH_MAX]);

/* Write the entity tag of a blob, with its quotes. */
void vnxi_http_etag(uint64_t version, char etag[VNXI_HTTP_ETAG_MAX]);

/* Does an If-None-Match field name the tag?  NULL: the request has no such
 * field. */
bool vnxi_http_etag_is_in(const char *field, const char *etag);

/* Find the token in an Authorization field of the scheme Bearer.  False: the
 * field has none, or is NULL.  *token_p is borrowed from the field. */
bool vnxi_http_bearer(const char *field, const char **token_p, size_t *len_p);

/* Can a secret be a token?  A header field contains the token unescaped, so no
 * byte of it may end the field, and it may not begin or end with blanks, which
 * a receiver would strip. */
bool vnxi_http_is_token(const char *secret);

#endif
