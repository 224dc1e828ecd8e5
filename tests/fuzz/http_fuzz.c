/*
 * The HTTP side channel's own parsers: the first byte of an input chooses one;
 * the rest is the text, or a key.  The results are checked against invariants.
 */
#include "fuzz.h"

#include "side_channel/http_wire.h"

/* The path written for a key that was read from a path has the same key. */
static void
fuzz_target(const char *text)
{
    vnxi_http_target_t target, again;
    char path[VNXI_HTTP_PATH_MAX];

    vnxi_http_target_parse(text, &target);
    must(target.key_len <= sizeof target.key);
    if (target.route == VNXI_HTTP_METADATA) {
        must(strncmp(text, VNXI_HTTP_METADATA_PATH, 9) == 0);
        must(target.key_len <= strlen(text));
        vnxi_http_path(target.key, target.key_len, path);
        vnxi_http_target_parse(path, &again);
        must(again.route == VNXI_HTTP_METADATA);
        must(again.key_len == target.key_len);
        must(memcmp(again.key, target.key, target.key_len) == 0);
    } else if (target.route == VNXI_HTTP_HEALTH) {
        must(strcmp(text, VNXI_HTTP_HEALTH_PATH) == 0);
    }
}

static void
fuzz_key(const uint8_t *key, size_t len)
{
    vnxi_http_target_t target;
    char path[VNXI_HTTP_PATH_MAX];

    if (len > VNX_SIDE_CHANNEL_KEY_MAX) {
        return;
    }
    size_t path_len = vnxi_http_path(key, len, path);
    must(path_len == strlen(path));
    vnxi_http_target_parse(path, &target);
    must(target.route == VNXI_HTTP_METADATA && target.key_len == len);
    must(len == 0 || memcmp(target.key, key, len) == 0);
}

/* A tag that a field names appears in it unchanged. */
static void
fuzz_etag(const char *text)
{
    char etag[VNXI_HTTP_ETAG_MAX];

    vnxi_http_etag(0xdeadbeef, etag);
    if (vnxi_http_etag_is_in(text, etag)) {
        must(strchr(text, '*') != NULL || strstr(text, etag) != NULL);
    }
}

/* An accepted token lies within the field and is a valid token. */
static void
fuzz_token(const char *text)
{
    const char *token;
    size_t len;

    if (vnxi_http_bearer(text, &token, &len)) {
        must(token >= text + 7 && len > 0);
        must(token + len <= text + strlen(text));
        must(token[0] != ' ' && token[len - 1] != ' ');
    }
    if (vnxi_http_is_token(text)) {
        must(strpbrk(text, "\r\n") == NULL);
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1) {
        return 0;
    }
    /* A block of the exact size, so that ASan detects a read past its end. */
    char *text = malloc(size);
    must(text != NULL);
    memcpy(text, data + 1, size - 1);
    text[size - 1] = '\0';
    switch (data[0] & 3) {
    case 0:
        fuzz_target(text);
        break;
    case 1:
        fuzz_key(data + 1, size - 1);
        break;
    case 2:
        fuzz_etag(text);
        break;
    default:
        fuzz_token(text);
    }
    free(text);
    return 0;
}
