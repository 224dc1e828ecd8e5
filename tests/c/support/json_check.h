/* A strict checker of JSON (RFC 8259): is this text one value, with nothing
 * before or after it?  Bytes above 0x7f are taken as they are. */
#ifndef JSON_CHECK_H
#define JSON_CHECK_H

#include <stdbool.h>
#include <string.h>

#define JSON_DEPTH_MAX 32

/* Each json_skip_*() returns what follows the thing, NULL if it is none. */
static inline const char *json_skip_value(const char *at, int depth);

static inline const char *
json_skip_space(const char *at)
{
    return at + strspn(at, " \t\r\n");
}

static inline const char *
json_skip_escape(const char *at)
{
    if (*at != 'u') {
        return *at != '\0' && strchr("\"\\/bfnrt", *at) != NULL ? at + 1
                                                                : NULL;
    }
    return strspn(at + 1, "0123456789abcdefABCDEF") >= 4 ? at + 5 : NULL;
}

static inline const char *
json_skip_string(const char *at)
{
    if (*at++ != '"') {
        return NULL;
    }
    while (at != NULL && *at != '"') {
        if ((unsigned char)*at < 0x20) {
            return NULL;
        }
        at = *at == '\\' ? json_skip_escape(at + 1) : at + 1;
    }
    return at != NULL ? at + 1 : NULL;
}

static inline const char *
json_skip_digits(const char *at)
{
    size_t digits = strspn(at, "0123456789");
    return digits > 0 ? at + digits : NULL;
}

static inline const char *
json_skip_number(const char *at)
{
    at += *at == '-';
    bool is_zero = *at == '0';
    const char *end = json_skip_digits(at);
    if (end == NULL || (is_zero && end != at + 1)) {
        return NULL;
    }
    if (*end == '.' && (end = json_skip_digits(end + 1)) == NULL) {
        return NULL;
    }
    if (*end == 'e' || *end == 'E') {
        end++;
        end = json_skip_digits(end + (*end == '+' || *end == '-'));
    }
    return end;
}

static inline const char *
json_skip_member(const char *at, bool has_key, int depth)
{
    if (has_key) {
        at = json_skip_string(at);
        if (at == NULL || *(at = json_skip_space(at)) != ':') {
            return NULL;
        }
        at = json_skip_space(at + 1);
    }
    at = json_skip_value(at, depth);
    return at != NULL ? json_skip_space(at) : NULL;
}

/* An object or an array, from its bracket on. */
static inline const char *
json_skip_many(const char *at, int depth)
{
    bool has_keys = *at == '{';
    char end = has_keys ? '}' : ']';

    at = json_skip_space(at + 1);
    if (*at == end) {
        return at + 1;
    }
    for (;;) {
        at = json_skip_member(at, has_keys, depth);
        if (at == NULL || *at == end) {
            return at != NULL ? at + 1 : NULL;
        }
        if (*at != ',') {
            return NULL;
        }
        at = json_skip_space(at + 1);
    }
}

static inline const char *
json_skip_value(const char *at, int depth)
{
    static const char *const words[] = {"true", "false", "null"};

    if (depth == JSON_DEPTH_MAX) {
        return NULL;
    }
    if (*at == '{' || *at == '[') {
        return json_skip_many(at, depth + 1);
    }
    if (*at == '"') {
        return json_skip_string(at);
    }
    for (size_t i = 0; i < 3; i++) {
        if (strncmp(at, words[i], strlen(words[i])) == 0) {
            return at + strlen(words[i]);
        }
    }
    return json_skip_number(at);
}

/* `text` is terminated. */
static inline bool
json_is_valid(const char *text)
{
    const char *end = json_skip_value(json_skip_space(text), 0);
    return end != NULL && *json_skip_space(end) == '\0';
}

#endif
