/*
 * Design notes.  Over an open stream (talk.c) one request is sent and its
 * reply read; with a secret three: HELLO, PROVE, SEALED (docs/wire.md).  The
 * key that is asked for is named in the last, when the other side has proved
 * itself.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "side_channel/talk.h"
#include "side_channel/tcp.h"

typedef struct tcp_exchange {
    vnxi_talk_t talk;
    bool has_asked;        /* the first request */
    vnxi_tcp_kind_t asked; /* the request under way */
    unsigned char out[VNXI_FRAME_HEADER + VNXI_TCP_REQUEST_MAX];
    vnxi_frame_decoder_t reply;
    vnxi_proof_t proof;
} tcp_exchange_t;

/* -- Failing -------------------------------------------------------------- */

static vnx_status_t
failed(tcp_exchange_t *exchange, vnx_status_t status, const char *reason)
{
    return vnxi_talk_failed(&exchange->talk, status, reason);
}

static vnx_status_t
failed_early_end(tcp_exchange_t *exchange)
{
    const vnxi_frame_decoder_t *reply = &exchange->reply;
    char reason[96];

    if (reply->header_have == 0) {
        return failed(exchange, VNX_ERR_BACKEND,
                      exchange->asked == VNXI_TCP_SEED
                          ? "the connection was closed without a reply"
                          : "the connection was closed without a reply "
                            "(perhaps by a listener that knows neither keys "
                            "nor secrets)");
    }
    if (reply->header_have < VNXI_FRAME_HEADER) {
        return failed(exchange, VNX_ERR_BACKEND,
                      "the connection was closed in the reply's length");
    }
    snprintf(reason, sizeof reason,
             "the connection was closed after %zu of %" PRIu32 " bytes",
             reply->head_have + reply->have, reply->len);
    return failed(exchange, VNX_ERR_BACKEND, reason);
}

static vnx_status_t
failed_frame(tcp_exchange_t *exchange)
{
    const vnxi_frame_decoder_t *reply = &exchange->reply;
    char reason[96];

    if (reply->state == VNXI_FRAME_NO_MEMORY) {
        return failed(exchange, VNX_ERR_NO_MEMORY, "no memory for the reply");
    }
    snprintf(reason, sizeof reason,
             "a reply of %" PRIu32 " bytes is above max_frame (%" PRIu32 ")",
             reply->len, exchange->talk.params->options->max_frame);
    return failed(exchange, VNX_ERR_MISMATCH, reason);
}

/* -- Talking -------------------------------------------------------------- */

/* Put a request out; its reply has a head, and a body of `max` at most. */
static void
ask(tcp_exchange_t *exchange, const vnxi_tcp_request_t *request, size_t head,
    uint32_t max)
{
    size_t len =
        vnxi_tcp_request_encode(request, exchange->out + VNXI_FRAME_HEADER);

    vnxi_frame_encode_header((uint32_t)len, exchange->out);
    exchange->talk.out_len = VNXI_FRAME_HEADER + len;
    exchange->asked = request->kind;
    vnxi_frame_decoder_fini(&exchange->reply);
    vnxi_frame_decoder_init(&exchange->reply, (uint32_t)head + max, head);
}

static void
ask_plainly(tcp_exchange_t *exchange)
{
    const vnxi_request_params_t *params = exchange->talk.params;
    uint32_t max = params->options->max_frame;

    if (params->key_len == 0) { /* what every server knows */
        ask(exchange, &(vnxi_tcp_request_t){.kind = VNXI_TCP_SEED}, 0, max);
    } else {
        vnxi_tcp_request_t request = {.kind = VNXI_TCP_GET,
                                      .key = params->key,
                                      .key_len = params->key_len};
        ask(exchange, &request, 1, max);
    }
}

/* A status that is not the one that was hoped for. */
static vnx_status_t
status_failed(tcp_exchange_t *exchange, vnxi_tcp_status_t status)
{
    const char *text = vnxi_tcp_status_text(status);

    return text == NULL || text[0] == '\0'
               ? failed(exchange, VNX_ERR_MISMATCH,
                        "no reply of this protocol")
               : failed(exchange, vnxi_tcp_status_meaning(status), text);
}

#ifdef VNXI_SIDE_CHANNEL_TLS

static vnx_status_t
ask_hello(tcp_exchange_t *exchange)
{
    vnxi_proof_t *proof = &exchange->proof;

    proof->secret = exchange->talk.params->options->secret;
    if (!vnxi_proof_nonce(proof->client_nonce)) {
        return failed(exchange, VNX_ERR_BACKEND, "no random numbers");
    }
    vnxi_tcp_request_t request = {.kind = VNXI_TCP_HELLO,
                                  .nonce = proof->client_nonce};
    ask(exchange, &request, 1, VNXI_TCP_TEXT_MAX);
    return VNX_OK;
}

/* VNX_OK: the reply has that status and a body of `len` bytes. */
static vnx_status_t
expect(tcp_exchange_t *exchange, vnxi_tcp_status_t status, size_t len)
{
    const vnxi_frame_decoder_t *reply = &exchange->reply;
    vnxi_tcp_status_t got = reply->head_have > 0
                                ? (vnxi_tcp_status_t)reply->head[0]
                                : VNXI_TCP_MALFORMED;

    if (reply->head_have > 0 && got == status && reply->have == len) {
        return VNX_OK;
    }
    return status_failed(exchange, got);
}

static vnx_status_t
take_challenge(tcp_exchange_t *exchange)
{
    vnxi_proof_t *proof = &exchange->proof;
    unsigned char mac[VNXI_MAC_LEN];

    vnx_status_t status = expect(exchange, VNXI_TCP_CHALLENGE, VNXI_NONCE_LEN);
    if (status != VNX_OK) {
        return status;
    }
    memcpy(proof->server_nonce, exchange->reply.data, VNXI_NONCE_LEN);
    if (!vnxi_proof_make(proof, VNXI_PROOF_CLIENT, mac)) {
        return failed(exchange, VNX_ERR_NO_MEMORY, "no memory for a proof");
    }
    vnxi_tcp_request_t request = {.kind = VNXI_TCP_PROVE, .mac = mac};
    ask(exchange, &request, 1, VNXI_TCP_TEXT_MAX);
    return VNX_IN_PROG;
}

static vnx_status_t
take_proof(tcp_exchange_t *exchange)
{
    const vnxi_request_params_t *params = exchange->talk.params;
    unsigned char mac[VNXI_MAC_LEN];

    vnx_status_t status = expect(exchange, VNXI_TCP_PROVED, VNXI_MAC_LEN);
    if (status != VNX_OK) {
        return status;
    }
    if (!vnxi_proof_check(&exchange->proof, VNXI_PROOF_SERVER,
                          exchange->reply.data)) {
        return failed(exchange, VNX_ERR_NOT_ALLOWED,
                      "the listener does not know the shared secret");
    }
    if (!vnxi_proof_seal_request(&exchange->proof, params->key,
                                 params->key_len, mac)) {
        return failed(exchange, VNX_ERR_NO_MEMORY, "no memory for a seal");
    }
    vnxi_tcp_request_t request = {.kind = VNXI_TCP_SEALED,
                                  .mac = mac,
                                  .key = params->key,
                                  .key_len = params->key_len};
    ask(exchange, &request, VNXI_TCP_REPLY_HEAD, params->options->max_frame);
    return VNX_IN_PROG;
}

/* VNX_OK: what came is what the other side of the proof sent. */
static vnx_status_t
check_seal(tcp_exchange_t *exchange)
{
    const vnxi_frame_decoder_t *reply = &exchange->reply;
    const vnxi_request_params_t *params = exchange->talk.params;
    unsigned char digest[VNXI_DIGEST_LEN], mac[VNXI_MAC_LEN];

    if (reply->head_have < VNXI_TCP_REPLY_HEAD ||
        !vnxi_proof_digest(reply->data, reply->have, digest) ||
        !vnxi_proof_seal_reply(&exchange->proof, params->key, params->key_len,
                               reply->head[0], digest, mac) ||
        !vnxi_mac_equal(mac, reply->head + 1)) {
        return failed(exchange, VNX_ERR_NOT_ALLOWED,
                      "the reply's seal is broken: it was changed on the way");
    }
    return VNX_OK;
}

#else

static vnx_status_t
ask_hello(tcp_exchange_t *exchange)
{
    return failed(exchange, VNX_ERR_NOT_SUPPORTED,
                  "this build knows no secrets");
}

#endif

static vnx_status_t
take_status(tcp_exchange_t *exchange, void **data_p, size_t *len_p)
{
    const vnxi_frame_decoder_t *reply = &exchange->reply;

    if (reply->head_have == 0) {
        return failed(exchange, VNX_ERR_MISMATCH, "a reply without a status");
    }
    vnxi_tcp_status_t status = (vnxi_tcp_status_t)reply->head[0];
    if (status == VNXI_TCP_BLOB) {
        *data_p = vnxi_frame_take(&exchange->reply, len_p);
        return VNX_OK;
    }
    if (status == VNXI_TCP_UNKNOWN_KEY) {
        return vnxi_talk_no_key(&exchange->talk);
    }
    return status_failed(exchange, status);
}

/* A reply came whole. */
static vnx_status_t
take_reply(tcp_exchange_t *exchange, void **data_p, size_t *len_p)
{
    switch (exchange->asked) {
    case VNXI_TCP_SEED:
        *data_p = vnxi_frame_take(&exchange->reply, len_p);
        return VNX_OK;
    case VNXI_TCP_GET:
        return take_status(exchange, data_p, len_p);
#ifdef VNXI_SIDE_CHANNEL_TLS
    case VNXI_TCP_HELLO:
        return take_challenge(exchange);
    case VNXI_TCP_PROVE:
        return take_proof(exchange);
    case VNXI_TCP_SEALED: {
        vnx_status_t status = check_seal(exchange);
        return status == VNX_OK ? take_status(exchange, data_p, len_p)
                                : status;
    }
#endif
    default:
        return failed(exchange, VNX_ERR_UNKNOWN, "asked nothing");
    }
}

static vnx_status_t
receive_some(tcp_exchange_t *exchange)
{
    void *space;
    size_t size;

    while ((space = vnxi_frame_space(&exchange->reply, &size)) != NULL) {
        size_t count = 0;
        vnx_status_t status =
            vnxi_talk_recv(&exchange->talk, space, size, &count);
        if (status != VNX_OK) {
            return status;
        }
        if (count == 0) {
            return failed_early_end(exchange);
        }
        vnxi_frame_commit(&exchange->reply, count);
    }
    return exchange->reply.state == VNXI_FRAME_WHOLE ? VNX_OK
                                                     : failed_frame(exchange);
}

static vnx_status_t
ask_first(tcp_exchange_t *exchange)
{
    if (exchange->has_asked) {
        return VNX_OK;
    }
    exchange->has_asked = true;
    if (exchange->talk.params->options->secret != NULL) {
        return ask_hello(exchange);
    }
    ask_plainly(exchange);
    return VNX_OK;
}

static vnx_status_t
talk(tcp_exchange_t *exchange, void **data_p, size_t *len_p)
{
    vnx_status_t status;

    do {
        status = vnxi_talk_send(&exchange->talk);
        if (status == VNX_OK) {
            status = receive_some(exchange);
        }
        if (status != VNX_OK) {
            return status;
        }
        status = take_reply(exchange, data_p, len_p);
    } while (status == VNX_IN_PROG); /* there is another request to send */
    return status;
}

/* -- The transport's slots ------------------------------------------------ */

vnx_status_t
vnxi_tcp_begin(const vnxi_request_params_t *params, vnxi_exchange_t **out_p,
               vnx_error_t *error)
{
    tcp_exchange_t *exchange = calloc(1, sizeof *exchange);
    if (exchange == NULL) {
        return vnxi_error_no_memory(error, VNXI_OP_REQUEST, sizeof *exchange);
    }
    vnxi_talk_init(&exchange->talk, params, exchange->out);
    *out_p = &exchange->talk.super;
    return VNX_OK;
}

vnx_status_t
vnxi_tcp_step(vnxi_exchange_t *super, void **data_p, size_t *len_p,
              vnx_error_t *error)
{
    tcp_exchange_t *exchange = (tcp_exchange_t *)super;

    vnx_status_t status = vnxi_talk_step(&exchange->talk, error);
    if (status == VNX_OK) {
        status = ask_first(exchange);
    }
    return status == VNX_OK ? talk(exchange, data_p, len_p) : status;
}

void
vnxi_tcp_end(vnxi_exchange_t *super)
{
    tcp_exchange_t *exchange = (tcp_exchange_t *)super;

    vnxi_talk_fini(&exchange->talk);
    vnxi_frame_decoder_fini(&exchange->reply);
    free(exchange);
}
