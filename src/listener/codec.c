#include "listener/codec.h"

#include <string.h>

static const char verbs[][5] = {"LOAD", "SEND", "INVL"};

#define VERB_LEN 4u

uint64_t
vnxi_meta_header_read(const unsigned char header[VNXI_META_HEADER])
{
    uint64_t len = 0;
    for (unsigned i = VNXI_META_HEADER; i-- > 0;) {
        len = len << 8 | header[i];
    }
    return len;
}

void
vnxi_meta_prefix_write(vnxi_meta_verb_t verb, size_t body_len,
                       unsigned char out[VNXI_META_PREFIX])
{
    uint64_t len = (uint64_t)body_len + VNXI_META_COMMAND_MIN;
    for (unsigned i = 0; i < VNXI_META_HEADER; i++) {
        out[i] = (unsigned char)(len >> 8 * i);
    }
    memcpy(out + VNXI_META_HEADER, VNXI_META_MARK, VNXI_META_MARK_LEN);
    memcpy(out + VNXI_META_HEADER + VNXI_META_MARK_LEN, verbs[verb], VERB_LEN);
}

/* The next mark; NULL if none. */
static const unsigned char *
find_mark(const unsigned char *at, size_t len)
{
    return len > 0 ? memmem(at, len, VNXI_META_MARK, VNXI_META_MARK_LEN)
                   : NULL;
}

bool
vnxi_meta_commands(const void *payload, size_t len,
                   vnxi_meta_cursor_t *cursor_p)
{
    const unsigned char *bytes = payload;
    if (len < VNXI_META_MARK_LEN ||
        memcmp(bytes, VNXI_META_MARK, VNXI_META_MARK_LEN) != 0) {
        return false;
    }
    *cursor_p = (vnxi_meta_cursor_t){.at = bytes, .end = bytes + len};
    return true;
}

static vnxi_meta_verb_t
verb_of(const unsigned char *at, size_t len)
{
    int verb = 0;
    while (verb < VNXI_META_UNKNOWN &&
           (len < VERB_LEN || memcmp(at, verbs[verb], VERB_LEN) != 0)) {
        verb++;
    }
    return (vnxi_meta_verb_t)verb;
}

bool
vnxi_meta_command_next(vnxi_meta_cursor_t *cursor,
                       vnxi_meta_command_t *command_p)
{
    if (cursor->at == cursor->end) {
        return false;
    }
    const unsigned char *at = cursor->at + VNXI_META_MARK_LEN;
    size_t left = (size_t)(cursor->end - at);
    const unsigned char *mark = find_mark(at, left);
    if (mark != NULL) {
        left = (size_t)(mark - at);
    }
    command_p->verb = verb_of(at, left);
    if (command_p->verb != VNXI_META_UNKNOWN) {
        at += VERB_LEN;
        left -= VERB_LEN;
    }
    command_p->body = at;
    command_p->len = left;
    cursor->at = at + left;
    return true;
}

bool
vnxi_meta_has_mark(const void *body, size_t len)
{
    return find_mark(body, len) != NULL;
}
