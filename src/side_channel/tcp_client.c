/*
 * Design notes.  An exchange goes DIAL -> SHAKE -> TALK.  Plain
 * non-blocking sockets; every step does what it can and says what it waits
 * for, and looks at the one deadline first, so that a peer that never lets the
 * socket run dry meets it too.
 *
 * TALK is one request and its reply; with a secret three: HELLO, PROVE,
 * SEALED (docs/wire.md).  The key that is asked for is named in the last, when
 * the other side has proved itself.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "side_channel/dial.h"
#include "side_channel/stream.h"
#include "side_channel/tcp.h"

typedef enum stage {
    STAGE_DIAL,
    STAGE_SHAKE,
    STAGE_TALK,
} stage_t;

typedef struct tcp_exchange {
    vnxi_exchange_t super;
    const vnxi_request_params_t *params; /* borrowed */
    stage_t stage;
    vnxi_dial_t dial;
    vnxi_stream_t stream;
    vnxi_tcp_kind_t asked; /* the request under way */
    unsigned char out[VNXI_FRAME_HEADER + VNXI_TCP_REQUEST_MAX];
    size_t out_len, out_sent;
    vnxi_frame_decoder_t reply;
    vnxi_proof_t proof;
    vnx_error_t *error; /* the step's */
} tcp_exchange_t;

/* -- Failing -------------------------------------------------------------- */

static const char *
phase(const tcp_exchange_t *exchange)
{
    switch (exchange->stage) {
    case STAGE_DIAL:
        return vnxi_dial_phase(&exchange->dial);
    case STAGE_SHAKE:
        return "TLS with";
    default:
        return exchange->out_sent < exchange->out_len ? "sending to"
                                                      : "receiving from";
    }
}

static vnx_status_t
failed(tcp_exchange_t *exchange, vnx_status_t status, const char *reason)
{
    return vnxi_exchange_failed(exchange->params, status, phase(exchange),
                                vnxi_dial_whom(&exchange->dial), reason,
                                exchange->error);
}

/* What a stream came to that is not VNX_OK. */
static vnx_status_t
stream_failed(tcp_exchange_t *exchange, vnx_status_t status)
{
    if (status == VNX_IN_PROG) {
        exchange->super.fd = exchange->stream.fd;
        exchange->super.events = exchange->stream.events;
        return VNX_IN_PROG;
    }
    return failed(exchange, status, exchange->stream.reason);
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
             reply->len, exchange->params->options->max_frame);
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
    exchange->out_len = VNXI_FRAME_HEADER + len;
    exchange->out_sent = 0;
    exchange->asked = request->kind;
    vnxi_frame_decoder_fini(&exchange->reply);
    vnxi_frame_decoder_init(&exchange->reply, (uint32_t)head + max, head);
}

static vnx_status_t
ask_plainly(tcp_exchange_t *exchange)
{
    const vnxi_request_params_t *params = exchange->params;
    uint32_t max = params->options->max_frame;

    if (params->key_len == 0) { /* what every server knows */
        ask(exchange, &(vnxi_tcp_request_t){.kind = VNXI_TCP_SEED}, 0, max);
    } else {
        vnxi_tcp_request_t request = {.kind = VNXI_TCP_GET,
                                      .key = params->key,
                                      .key_len = params->key_len};
        ask(exchange, &request, 1, max);
    }
    return VNX_OK;
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

    proof->secret = exchange->params->options->secret;
    if (!vnxi_proof_nonce(proof->client_nonce)) {
        return failed(exchange, VNX_ERR_BACKEND, "no random numbers");
    }
    vnxi_tcp_request_t request = {.kind = VNXI_TCP_HELLO,
                                  .nonce = proof->client_nonce};
    ask(exchange, &request, 1, VNXI_TCP_TEXT_MAX);
    return VNX_IN_PROG;
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
    const vnxi_request_params_t *params = exchange->params;
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
    const vnxi_request_params_t *params = exchange->params;
    unsigned char digest[VNXI_DIGEST_LEN], mac[VNXI_MAC_LEN];

    if (reply->head_have < VNXI_TCP_REPLY_HEAD ||
        !vnxi_proof_digest(reply->data, reply->have, digest) ||
        !vnxi_proof_seal_reply(&exchange->proof, params->key, params->key_len,
                               reply->head[0], digest, mac) ||
        !vnxi_proof_equal(mac, reply->head + 1)) {
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
        return vnxi_exchange_no_key(exchange->params, exchange->error);
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
send_some(tcp_exchange_t *exchange)
{
    while (exchange->out_sent < exchange->out_len) {
        size_t count = 0;
        vnx_status_t status = vnxi_stream_send(
            &exchange->stream, exchange->out + exchange->out_sent,
            exchange->out_len - exchange->out_sent, &count);
        if (status != VNX_OK) {
            return stream_failed(exchange, status);
        }
        exchange->out_sent += count;
    }
    return VNX_OK;
}

static bool
is_late(const tcp_exchange_t *exchange)
{
    return vnxi_clock_ns() >= exchange->params->deadline;
}

static vnx_status_t
receive_some(tcp_exchange_t *exchange)
{
    void *space;
    size_t size;

    while ((space = vnxi_frame_space(&exchange->reply, &size)) != NULL) {
        size_t count = 0;
        vnx_status_t status =
            is_late(exchange)
                ? failed(exchange, VNX_ERR_TIMEOUT, "timed out")
                : vnxi_stream_recv(&exchange->stream, space, size, &count);
        if (status == VNX_ERR_TIMEOUT) {
            return status;
        }
        if (status != VNX_OK) {
            return stream_failed(exchange, status);
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
talk(tcp_exchange_t *exchange, void **data_p, size_t *len_p)
{
    vnx_status_t status;

    do {
        status = send_some(exchange);
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

/* -- Getting there -------------------------------------------------------- */

static vnx_status_t
shake(tcp_exchange_t *exchange)
{
    vnx_status_t status = vnxi_stream_shake(&exchange->stream);
    if (status != VNX_OK) {
        return stream_failed(exchange, status);
    }
    exchange->stage = STAGE_TALK;
    status = exchange->params->options->secret != NULL ? ask_hello(exchange)
                                                       : ask_plainly(exchange);
    return status == VNX_IN_PROG ? VNX_OK : status;
}

static vnx_status_t
dial(tcp_exchange_t *exchange)
{
    const vnxi_request_params_t *params = exchange->params;
    int fd = -1;

    vnx_status_t status = vnxi_dial_step(&exchange->dial, &exchange->super,
                                         &fd, exchange->error);
    if (status != VNX_OK) {
        return status;
    }
    exchange->stage = STAGE_SHAKE;
    status =
        vnxi_stream_open(&exchange->stream, fd, params->host, params->options);
    return status == VNX_OK
               ? VNX_OK
               : failed(exchange, status, exchange->stream.reason);
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
    exchange->params = params;
    exchange->super.fd = exchange->stream.fd = -1;
    vnxi_dial_init(&exchange->dial, params);
    *out_p = &exchange->super;
    return VNX_OK;
}

vnx_status_t
vnxi_tcp_step(vnxi_exchange_t *super, void **data_p, size_t *len_p,
              vnx_error_t *error)
{
    tcp_exchange_t *exchange = (tcp_exchange_t *)super;
    vnx_status_t status = VNX_OK;

    exchange->error = error;
    super->wake = UINT64_MAX;
    if (is_late(exchange)) {
        return failed(exchange, VNX_ERR_TIMEOUT, "timed out");
    }
    if (exchange->stage == STAGE_DIAL) {
        status = dial(exchange);
    }
    if (status == VNX_OK && exchange->stage == STAGE_SHAKE) {
        status = shake(exchange);
    }
    if (status == VNX_OK) {
        status = talk(exchange, data_p, len_p);
    }
    return status;
}

void
vnxi_tcp_end(vnxi_exchange_t *super)
{
    tcp_exchange_t *exchange = (tcp_exchange_t *)super;

    vnxi_dial_fini(&exchange->dial);
    vnxi_stream_close(&exchange->stream);
    vnxi_frame_decoder_fini(&exchange->reply);
    free(exchange);
}
