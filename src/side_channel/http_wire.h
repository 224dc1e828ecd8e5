/*
 * What requests of the HTTP side channel say: targets, keys, entity tags,
 * tokens.  Encoding and parsing of text; no I/O, no clock, no memory.  The
 * bytes: docs/wire.md.
 *
 * Lines, header fields and lengths are parsed by libevent at the server and
 * by libcurl at the client.
 */
#ifndef VNXI_SIDE_CHANNEL_HTTP_WIRE_H
#define VNXI_SIDE_CHANNEL_HTTP_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/side_channel.h>

#define VNXI_HTTP_METADATA_PATH "/metadata"
#define VNXI_HTTP_HEALTH_PATH "/health"
/* Each byte of a key as "%00" after "/metadata/", and the final NUL. */
#define VNXI_HTTP_PATH_MAX (10 + 3 * VNX_SIDE_CHANNEL_KEY_MAX + 1)
#define VNXI_HTTP_ETAG_MAX 19 /* 16 digits in quotes, and the final NUL */

typedef enum vnxi_http_route {
    VNXI_HTTP_METADATA,  /* and a key */
    VNXI_HTTP_HEALTH,    /* is anybody there? */
    VNXI_HTTP_NOWHERE,   /* no resource of ours */
    VNXI_HTTP_MALFORMED, /* a key with a broken escape */
    VNXI_HTTP_TOO_LONG,  /* a key that no listener can have */
} vnxi_http_route_t;

typedef struct vnxi_http_target {
    vnxi_http_route_t route;
    size_t key_len; /* of METADATA; 0: the default */
    unsigned char key[VNX_SIDE_CHANNEL_KEY_MAX];
} vnxi_http_target_t;

/* Take the path of a request's target apart; NULL is nowhere.  Whatever
 * follows "/metadata/" is the key, with "%41" for "A". */
void vnxi_http_target_parse(const char *path, vnxi_http_target_t *out_p);

/* The path under which a key is asked for; its length. */
size_t vnxi_http_path(const void *key, size_t key_len,
                      char path[VNXI_HTTP_PATH_MAX]);

/* The entity tag of a blob, in its quotes. */
void vnxi_http_etag(uint64_t version, char etag[VNXI_HTTP_ETAG_MAX]);

/* Does an If-None-Match field name the tag?  NULL: there is no such field. */
bool vnxi_http_etag_is_in(const char *field, const char *etag);

/* The token of an Authorization field of the scheme Bearer; false: it has
 * none.  *token_p is borrowed from the field, which may be NULL. */
bool vnxi_http_bearer(const char *field, const char **token_p, size_t *len_p);

/* Can a secret be a token?  It stands in a header field as it is: nothing in
 * it may end the field, and blanks at its ends would be taken off. */
bool vnxi_http_is_token(const char *secret);
#define VNXI_HTTP_NO_TOKEN                                                  \
    "over HTTP the shared secret may neither hold control characters, nor " \
    "begin or end with a blank"

#endif
