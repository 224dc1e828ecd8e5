#include "side_channel/zmq_wire.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
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

#define REQUEST_NAME "get_meta_msg"
#define REQUEST_NAME_LEN 12u
#define NUMBER_DIGITS_MAX 19

/* First bytes of msgpack values. */
#define FIXMAP_1 0x81u
#define FIXARRAY 0x90u
#define FIXSTR 0xa0u
#define BIN8 0xc4u
#define FLOAT64 0xcbu
#define UINT8 0xccu
#define INT8 0xd0u
#define INT64 0xd3u
#define STR8 0xd9u
#define ARRAY16 0xdcu
#define ARRAY32 0xddu
#define NEGATIVE_FIXINT 0xe0u

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

/* -- Reading messages ----------------------------------------------------- */

static bool
take_big(vnxi_reader_t *reader, size_t len, uint64_t *number_p)
{
    const unsigned char *bytes = vnxi_read_bytes(reader, len);

    if (bytes == NULL) {
        return false;
    }
    *number_p = vnxi_big_get(bytes, len);
    return true;
}

static bool
take_array(vnxi_reader_t *reader, uint64_t *count_p)
{
    const unsigned char *first = vnxi_read_bytes(reader, 1);

    if (first == NULL) {
        return false;
    }
    if (*first == ARRAY16 || *first == ARRAY32) {
        return take_big(reader, *first == ARRAY16 ? 2 : 4, count_p);
    }
    *count_p = *first & 0x0fu;
    return (*first & 0xf0u) == FIXARRAY;
}

/* Take the bytes of a bin or a string.  `first` is the code of the form with a
 * 1-byte length; the next two codes have lengths of 2 and 4 bytes. */
static const unsigned char *
take_bytes(vnxi_reader_t *reader, unsigned first, uint64_t *len_p)
{
    const unsigned char *type = vnxi_read_bytes(reader, 1);

    if (type == NULL || *type < first || *type > first + 2 ||
        !take_big(reader, (size_t)1 << (*type - first), len_p) ||
        *len_p > vnxi_reader_left(reader)) {
        return NULL;
    }
    return vnxi_read_bytes(reader, (size_t)*len_p);
}

/* Take an integer in any of its ten forms. */
static bool
take_int(vnxi_reader_t *reader, int64_t *number_p)
{
    const unsigned char *type = vnxi_read_bytes(reader, 1);
    uint64_t number;

    if (type == NULL) {
        return false;
    }
    if (*type < 0x80u || *type >= NEGATIVE_FIXINT) {
        *number_p = *type < 0x80u ? *type : *type - 0x100;
        return true;
    }
    if (*type < UINT8 || *type > INT64) {
        return false;
    }
    bool is_signed = *type >= INT8;
    size_t len = (size_t)1 << (*type - (is_signed ? INT8 : UINT8));
    if (!take_big(reader, len, &number) ||
        (!is_signed && number > INT64_MAX)) {
        return false;
    }
    unsigned spare = is_signed ? 64 - 8 * (unsigned)len : 0;
    *number_p = (int64_t)(number << spare) >> spare;
    return true;
}

/* Append an integer to the key.  False: the key has no room for it. */
static bool
add_number(vnxi_zmq_request_t *request, int64_t number)
{
    size_t room = sizeof request->key - request->key_len;
    int len = snprintf(request->key + request->key_len, room, "%s%" PRId64,
                       request->count > 0 ? "," : "", number);

    if ((size_t)len >= room) {
        return false;
    }
    request->key_len += (size_t)len;
    request->count++;
    return true;
}

bool
vnxi_zmq_request_parse(const unsigned char *bytes, size_t len,
                       vnxi_zmq_request_t *out_p)
{
    vnxi_reader_t reader = vnxi_reader(bytes, len);
    vnxi_zmq_request_t request = {0};
    uint64_t count, name_len;
    int64_t number;

    if (!take_array(&reader, &count) || count < 2) {
        return false;
    }
    const unsigned char *name = take_bytes(&reader, BIN8, &name_len);
    if (name == NULL || name_len != REQUEST_NAME_LEN ||
        memcmp(name, REQUEST_NAME, REQUEST_NAME_LEN) != 0) {
        return false;
    }
    while (request.count < count - 1) {
        if (!take_int(&reader, &number) || !add_number(&request, number)) {
            return false;
        }
    }
    if (vnxi_reader_left(&reader) > 0) {
        return false;
    }
    *out_p = request;
    return true;
}

/* -- Writing messages ----------------------------------------------------- */

/* Numbers are written in their shortest form, as msgpack's writers do. */

static size_t
put_array(unsigned char *bytes, size_t count)
{
    if (count < 16) {
        bytes[0] = (unsigned char)(FIXARRAY + count);
        return 1;
    }
    bytes[0] = ARRAY16;
    vnxi_big_put(bytes + 1, 2, count);
    return 3;
}

static size_t
put_int(unsigned char *bytes, uint64_t number)
{
    if (number < 0x80) {
        bytes[0] = (unsigned char)number;
        return 1;
    }
    unsigned form = 0;
    while (form < 3 && number >> (8u << form) != 0) {
        form++;
    }
    bytes[0] = (unsigned char)(UINT8 + form);
    vnxi_big_put(bytes + 1, (size_t)1 << form, number);
    return 1 + ((size_t)1 << form);
}

size_t
vnxi_zmq_request_encode(const vnxi_zmq_request_t *request,
                        unsigned char bytes[VNXI_ZMQ_REQUEST_MAX])
{
    size_t len = put_array(bytes, 1 + request->count);
    const char *at = request->key;
    char *end;

    bytes[len++] = BIN8;
    bytes[len++] = REQUEST_NAME_LEN;
    memcpy(bytes + len, REQUEST_NAME, REQUEST_NAME_LEN);
    len += REQUEST_NAME_LEN;
    for (size_t i = 0; i < request->count; i++) {
        len += put_int(bytes + len, strtoull(at, &end, 10));
        at = end + 1;
    }
    return len;
}

/* -- Keys ----------------------------------------------------------------- */

/* Return the number of digits of the number at the start of `text`, in the
 * form that add_number() writes; 0: there is none. */
static size_t
number_digits(const char *text, size_t len)
{
    uint64_t number = 0;
    size_t count = 0;

    while (count < len && text[count] >= '0' && text[count] <= '9') {
        number = number * 10 + (uint64_t)(text[count] - '0');
        if (++count > NUMBER_DIGITS_MAX) {
            return 0;
        }
    }
    return (count > 1 && text[0] == '0') || number > INT64_MAX ? 0 : count;
}

bool
vnxi_zmq_request_of_key(const void *key, size_t key_len,
                        vnxi_zmq_request_t *out_p)
{
    vnxi_zmq_request_t request = {.key_len = key_len};
    const char *text = key;
    size_t at = 0;

    if (key_len == 0 || key_len > VNX_SIDE_CHANNEL_KEY_MAX) {
        return false;
    }
    for (;;) {
        size_t digits = number_digits(text + at, key_len - at);
        if (digits == 0) {
            return false;
        }
        request.count++;
        at += digits;
        if (at == key_len) {
            break;
        }
        if (text[at++] != ',') {
            return false;
        }
    }
    memcpy(request.key, text, key_len);
    *out_p = request;
    return true;
}

/* -- Clock and refusal ---------------------------------------------------- */

void
vnxi_zmq_clock_encode(double seconds, unsigned char bytes[VNXI_ZMQ_CLOCK])
{
    uint64_t bits;

    memcpy(&bits, &seconds, sizeof bits);
    bytes[0] = FLOAT64;
    vnxi_big_put(bytes + 1, 8, bits);
}

bool
vnxi_zmq_is_no_clock(const unsigned char *bytes, size_t len)
{
    unsigned char no_clock[VNXI_ZMQ_CLOCK];

    vnxi_zmq_clock_encode(VNXI_ZMQ_NO_CLOCK, no_clock);
    return len == sizeof no_clock && memcmp(bytes, no_clock, len) == 0;
}

/* A map with one pair: "error" and the text. */
static const unsigned char refusal_head[] = {FIXMAP_1, FIXSTR + 5, 'e', 'r',
                                             'r',      'o',        'r'};

size_t
vnxi_zmq_refusal_encode(const char *text,
                        unsigned char bytes[VNXI_ZMQ_REFUSAL_MAX])
{
    size_t text_len = strlen(text), len = sizeof refusal_head;

    memcpy(bytes, refusal_head, len);
    bytes[len++] = STR8;
    bytes[len++] = (unsigned char)text_len;
    memcpy(bytes + len, text, text_len);
    return len + text_len;
}

const unsigned char *
vnxi_zmq_refusal_parse(const unsigned char *bytes, size_t len, size_t *len_p)
{
    vnxi_reader_t reader = vnxi_reader(bytes, len);
    const unsigned char *head = vnxi_read_bytes(&reader, sizeof refusal_head);
    uint64_t text_len;

    if (head == NULL || memcmp(head, refusal_head, sizeof refusal_head) != 0) {
        return NULL;
    }
    const unsigned char *text = take_bytes(&reader, STR8, &text_len);
    if (text == NULL || vnxi_reader_left(&reader) > 0) {
        return NULL;
    }
    *len_p = (size_t)text_len;
    return text;
}
