#include "side_channel/http_wire.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define BEARER "Bearer"

/* -- Targets -------------------------------------------------------------- */

static vnxi_http_route_t
decode_key(const char *text, vnxi_http_target_t *out_p)
{
    for (; text[0] != '\0'; text++) {
        unsigned char byte = (unsigned char)text[0];
        if (byte == '%') {
            char hex[3] = {text[1], text[1] != '\0' ? text[2] : '\0', '\0'};
            if (strspn(hex, "0123456789ABCDEFabcdef") != 2) {
                return VNXI_HTTP_MALFORMED;
            }
            byte = (unsigned char)strtoul(hex, NULL, 16);
            text += 2;
        }
        if (out_p->key_len == sizeof out_p->key) {
            return VNXI_HTTP_TOO_LONG;
        }
        out_p->key[out_p->key_len++] = byte;
    }
    return VNXI_HTTP_METADATA;
}

void
vnxi_http_target_parse(const char *path, vnxi_http_target_t *out_p)
{
    const size_t len = sizeof VNXI_HTTP_METADATA_PATH - 1;

    out_p->key_len = 0;
    out_p->route = VNXI_HTTP_NOWHERE;
    if (path == NULL) {
        return;
    }
    if (strcmp(path, VNXI_HTTP_HEALTH_PATH) == 0) {
        out_p->route = VNXI_HTTP_HEALTH;
    } else if (strcmp(path, VNXI_HTTP_METADATA_PATH) == 0) {
        out_p->route = VNXI_HTTP_METADATA;
    } else if (strncmp(path, VNXI_HTTP_METADATA_PATH, len) == 0 &&
               path[len] == '/') {
        out_p->route = decode_key(path + len + 1, out_p);
    }
}

/* May a byte be written unescaped?  Those are the bytes that have no special
 * meaning anywhere in a path, and the comma, which ranks contain.  A dot is
 * escaped, because proxies and libraries remove "." and ".." from paths. */
static bool
is_plain(unsigned char byte)
{
    return (byte >= '0' && byte <= '9') || (byte >= 'A' && byte <= 'Z') ||
           (byte >= 'a' && byte <= 'z') || byte == '-' || byte == '_' ||
           byte == '~' || byte == ',';
}

size_t
vnxi_http_path(const void *key, size_t key_len, char path[VNXI_HTTP_PATH_MAX])
{
    static const char digits[] = "0123456789ABCDEF";
    const unsigned char *bytes = key;
    size_t len = sizeof VNXI_HTTP_METADATA_PATH - 1;

    memcpy(path, VNXI_HTTP_METADATA_PATH, len);
    if (key_len > 0) {
        path[len++] = '/';
    }
    for (size_t i = 0; i < key_len; i++) {
        if (is_plain(bytes[i])) {
            path[len++] = (char)bytes[i];
        } else {
            path[len++] = '%';
            path[len++] = digits[bytes[i] >> 4];
            path[len++] = digits[bytes[i] & 15];
        }
    }
    path[len] = '\0';
    return len;
}

/* -- Header fields -------------------------------------------------------- */

void
vnxi_http_etag(uint64_t version, char etag[VNXI_HTTP_ETAG_MAX])
{
    snprintf(etag, VNXI_HTTP_ETAG_MAX, "\"%016" PRIx64 "\"", version);
}

static bool
is_blank(char c)
{
    return c == ' ' || c == '\t';
}

static const char *
skip_blanks(const char *text)
{
    return text + strspn(text, " \t");
}

bool
vnxi_http_etag_is_in(const char *field, const char *etag)
{
    const size_t len = strlen(etag);

    if (field == NULL) {
        return false;
    }
    field = skip_blanks(field);
    if (field[0] == '*') {
        return skip_blanks(field + 1)[0] == '\0';
    }
    for (;;) {
        if (strncmp(field, "W/", 2) == 0) {
            field += 2; /* weak tags are compared like strong ones */
        }
        if (strncmp(field, etag, len) == 0) {
            const char *end = skip_blanks(field + len);
            if (*end == ',' || *end == '\0') {
                return true;
            }
        }
        if (field[0] == '"') { /* a tag may contain commas */
            field += 1 + strcspn(field + 1, "\"");
        }
        field += strcspn(field, ",");
        if (field[0] == '\0') {
            return false;
        }
        field = skip_blanks(field + 1);
    }
}

bool
vnxi_http_bearer(const char *field, const char **token_p, size_t *len_p)
{
    const size_t len = sizeof BEARER - 1;

    if (field == NULL || strncasecmp(field, BEARER, len) != 0 ||
        !is_blank(field[len])) {
        return false;
    }
    *token_p = skip_blanks(field + len);
    *len_p = strlen(*token_p);
    while (*len_p > 0 && is_blank((*token_p)[*len_p - 1])) {
        --*len_p;
    }
    return *len_p > 0;
}

bool
vnxi_http_is_token(const char *secret)
{
    size_t len = strlen(secret);

    if (len == 0 || is_blank(secret[0]) || is_blank(secret[len - 1])) {
        return false;
    }
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)secret[i];
        if (c < ' ' || c == 0x7f) {
            return false;
        }
    }
    return true;
}
