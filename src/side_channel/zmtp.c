#include "side_channel/zmtp.h"

#include <string.h>
#include <strings.h>

#include "base/bytes.h"

#define SIGNATURE_LAST 9u
#define MAJOR_AT 10u
#define MECHANISM_AT 12u
#define MECHANISM_LEN 20u

#define FLAG_MORE 0x01u
#define FLAG_LONG 0x02u
#define FLAG_COMMAND 0x04u
#define SHORT_MAX 255u

#define PROPERTY_TYPE "Socket-Type"
#define PROPERTY_IDENTITY "Identity"
#define PROPERTY_KEY "X-Vnx-Key"
#define PROPERTY_KNOWS_KEYS "X-Vnx"

/* -- Greeting ------------------------------------------------------------- */

static const unsigned char greeting_bytes[VNXI_ZMTP_GREETING] = {
    [0] = 0xff,     [8] = 1,    [SIGNATURE_LAST] = 0x7f,
    [MAJOR_AT] = 3, [11] = 1,   [12] = 'N',
    [13] = 'U',     [14] = 'L', [15] = 'L',
};

void
vnxi_zmtp_greeting(unsigned char greeting[VNXI_ZMTP_GREETING])
{
    memcpy(greeting, greeting_bytes, VNXI_ZMTP_GREETING);
}

const char *
vnxi_zmtp_greeting_check(const unsigned char *bytes, size_t len)
{
    size_t mechanism = len > MECHANISM_AT ? len - MECHANISM_AT : 0;

    if ((len > 0 && bytes[0] != 0xff) ||
        (len > SIGNATURE_LAST && bytes[SIGNATURE_LAST] != 0x7f)) {
        return "the other end does not speak ZMTP";
    }
    if (len > MAJOR_AT && bytes[MAJOR_AT] < 3) {
        return "the other end speaks a ZMTP older than 3.0";
    }
    if (mechanism > MECHANISM_LEN) {
        mechanism = MECHANISM_LEN;
    }
    if (mechanism > 0 &&
        memcmp(bytes + MECHANISM_AT, greeting_bytes + MECHANISM_AT,
               mechanism) != 0) {
        return "the other end requires a ZMTP mechanism other than NULL";
    }
    return NULL;
}

/* -- Frames --------------------------------------------------------------- */

vnxi_zmtp_state_t
vnxi_zmtp_header_parse(const unsigned char *bytes, size_t have,
                       vnxi_zmtp_frame_t *frame_p)
{
    if (have == 0) {
        return VNXI_ZMTP_MORE;
    }
    unsigned flags = bytes[0];
    size_t size = flags & FLAG_LONG ? 8 : 1;
    if (flags > (FLAG_MORE | FLAG_LONG | FLAG_COMMAND) ||
        (flags & FLAG_COMMAND && flags & FLAG_MORE)) {
        return VNXI_ZMTP_BAD;
    }
    if (have < 1 + size) {
        return VNXI_ZMTP_MORE;
    }
    *frame_p = (vnxi_zmtp_frame_t){
        .more = flags & FLAG_MORE,
        .command = flags & FLAG_COMMAND,
        .header = 1 + size,
        .len = vnxi_big_get(bytes + 1, size),
    };
    return VNXI_ZMTP_WHOLE;
}

static size_t
header_write(unsigned flags, uint64_t len,
             unsigned char header[VNXI_ZMTP_HEADER_MAX])
{
    size_t size = len > SHORT_MAX ? 8 : 1;

    header[0] = (unsigned char)(flags | (size > 1 ? FLAG_LONG : 0));
    vnxi_big_put(header + 1, size, len);
    return 1 + size;
}

size_t
vnxi_zmtp_header_encode(bool more, uint64_t len,
                        unsigned char header[VNXI_ZMTP_HEADER_MAX])
{
    return header_write(more ? FLAG_MORE : 0, len, header);
}

/* -- Writing commands ----------------------------------------------------- */

typedef struct body {
    size_t len;
    unsigned char bytes[VNXI_ZMTP_COMMAND_MAX - VNXI_ZMTP_HEADER_MAX];
} body_t;

/* Append bytes.  The room exceeds the size of every command that we write. */
static void
add(body_t *body, const void *data, size_t len)
{
    if (len > 0) {
        memcpy(body->bytes + body->len, data, len);
        body->len += len;
    }
}

/* Append a name after its length in one byte. */
static void
add_name(body_t *body, const char *name)
{
    unsigned char len = (unsigned char)strlen(name);
    add(body, &len, 1);
    add(body, name, len);
}

static void
add_property(body_t *body, const char *name, const void *value, size_t len)
{
    unsigned char size[4];

    add_name(body, name);
    vnxi_big_put(size, sizeof size, len);
    add(body, size, sizeof size);
    add(body, value, len);
}

static size_t
command_write(const body_t *body, unsigned char command[VNXI_ZMTP_COMMAND_MAX])
{
    size_t header = header_write(FLAG_COMMAND, body->len, command);

    memcpy(command + header, body->bytes, body->len);
    return header + body->len;
}

static size_t
ready_write(const char *type, const char *property, const void *value,
            size_t len, unsigned char command[VNXI_ZMTP_COMMAND_MAX])
{
    body_t body = {.len = 0};

    add_name(&body, "READY");
    add_property(&body, PROPERTY_TYPE, type, strlen(type));
    add_property(&body, PROPERTY_IDENTITY, NULL, 0);
    add_property(&body, property, value, len);
    return command_write(&body, command);
}

size_t
vnxi_zmtp_ready_client(const void *key, size_t key_len,
                       unsigned char command[VNXI_ZMTP_COMMAND_MAX])
{
    return ready_write("REQ", PROPERTY_KEY, key, key_len, command);
}

size_t
vnxi_zmtp_ready_listener(unsigned char command[VNXI_ZMTP_COMMAND_MAX])
{
    return ready_write("ROUTER", PROPERTY_KNOWS_KEYS, "1", 1, command);
}

/* -- Reading commands ----------------------------------------------------- */

/* Is the body that of the command `name`? */
static bool
is_command(const unsigned char *body, size_t len, const char *name)
{
    size_t name_len = strlen(name);
    return len > name_len && body[0] == name_len &&
           memcmp(body + 1, name, name_len) == 0;
}

static bool
is_name(const unsigned char *name, size_t len, const char *expected)
{
    return len == strlen(expected) &&
           strncasecmp((const char *)name, expected, len) == 0;
}

static void
take_property(const unsigned char *name, size_t name_len,
              const unsigned char *value, size_t value_len,
              vnxi_zmtp_ready_t *ready)
{
    if (is_name(name, name_len, PROPERTY_TYPE)) {
        ready->type = value;
        ready->type_len = value_len;
    } else if (is_name(name, name_len, PROPERTY_KEY)) {
        ready->key = value;
        ready->key_len = value_len;
    } else if (is_name(name, name_len, PROPERTY_KNOWS_KEYS)) {
        ready->knows_keys = true;
    }
}

bool
vnxi_zmtp_ready_parse(const unsigned char *body, size_t len,
                      vnxi_zmtp_ready_t *ready_p)
{
    vnxi_zmtp_ready_t ready = {0};
    size_t at = 6; /* after the name */

    if (!is_command(body, len, "READY")) {
        return false;
    }
    while (at < len) {
        size_t name_len = body[at++];
        if (name_len == 0 || len - at < name_len + 4) {
            return false;
        }
        const unsigned char *name = body + at;
        uint64_t value_len = vnxi_big_get(name + name_len, 4);
        at += name_len + 4;
        if (len - at < value_len) {
            return false;
        }
        take_property(name, name_len, body + at, value_len, &ready);
        at += value_len;
    }
    if (ready.key_len > VNX_SIDE_CHANNEL_KEY_MAX) {
        return false;
    }
    *ready_p = ready;
    return true;
}

bool
vnxi_zmtp_type_is(const vnxi_zmtp_ready_t *ready, const char *type)
{
    return ready->type != NULL && ready->type_len == strlen(type) &&
           memcmp(ready->type, type, ready->type_len) == 0;
}

size_t
vnxi_zmtp_pong(const unsigned char *body, size_t len,
               unsigned char command[VNXI_ZMTP_COMMAND_MAX])
{
    const size_t head = 5 + 2; /* the name, a time to live */
    body_t pong = {.len = 0};

    if (!is_command(body, len, "PING") || len < head ||
        len > head + VNXI_ZMTP_PING_CONTEXT) {
        return 0;
    }
    add_name(&pong, "PONG");
    add(&pong, body + head, len - head);
    return command_write(&pong, command);
}
