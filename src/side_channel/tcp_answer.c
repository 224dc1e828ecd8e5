/*
 * Design notes.  Where a secret is set, nothing is said before it is proved:
 * HELLO brings a nonce and is answered by ours, PROVE by our own proof where
 * the client's is right, SEALED by the blob with its seal.  Each is taken once
 * and after the one before.  The nonces are of this connection, so what was
 * heard on another is worth nothing here.
 */
#include <event2/buffer.h>
#include <string.h>

#include "side_channel/tcp.h"

static bool
has_secret(const vnxi_tcp_conn_t *conn)
{
    return conn->listener->super.options->secret != NULL;
}

/* The frame's length, the status, and the seal where there is one. */
static bool
add_head(vnxi_tcp_conn_t *conn, vnxi_tcp_status_t status,
         const unsigned char *mac, size_t len)
{
    unsigned char head[VNXI_FRAME_HEADER + VNXI_TCP_REPLY_HEAD];
    size_t size = VNXI_FRAME_HEADER;
    size_t extra = 1 + (mac != NULL ? VNXI_TCP_MAC : 0);

    vnxi_frame_encode_header((uint32_t)(extra + len), head);
    head[size++] = (unsigned char)status;
    if (mac != NULL) {
        memcpy(head + size, mac, VNXI_TCP_MAC);
        size += VNXI_TCP_MAC;
    }
    return evbuffer_add(bufferevent_get_output(conn->bev), head, size) == 0;
}

/* A short reply: a status with a nonce, a proof or a text. */
static bool
add_short(vnxi_tcp_conn_t *conn, vnxi_tcp_status_t status, const void *data,
          size_t len)
{
    return add_head(conn, status, NULL, len) &&
           evbuffer_add(bufferevent_get_output(conn->bev), data, len) == 0;
}

static void
refuse(vnxi_tcp_conn_t *conn, vnx_side_channel_refusal_t why)
{
    vnxi_stat_refused(conn->listener->super.stats, why);
    conn->turned_away = true;
}

/* With a text, and closed after it. */
static vnxi_tcp_next_t
turn_away(vnxi_tcp_conn_t *conn, vnxi_tcp_status_t status,
          vnx_side_channel_refusal_t why)
{
    const char *text = vnxi_tcp_status_text(status);

    refuse(conn, why);
    return add_short(conn, status, text, strlen(text)) ? VNXI_TCP_NEXT_WRITE
                                                       : VNXI_TCP_NEXT_CLOSE;
}

/* What the first protocol has for it. */
static vnxi_tcp_next_t
hang_up(vnxi_tcp_conn_t *conn, vnx_side_channel_refusal_t why)
{
    refuse(conn, why);
    return VNXI_TCP_NEXT_CLOSE;
}

/* Takes the reference to `blob`. */
static vnxi_tcp_next_t
add_blob(vnxi_tcp_conn_t *conn, vnxi_blob_t *blob)
{
    struct evbuffer *output = bufferevent_get_output(conn->bev);

    if (blob->len == 0) {
        vnxi_blob_release(blob);
        return VNXI_TCP_NEXT_WRITE;
    }
    if (evbuffer_add_reference(output, blob->data, blob->len, vnxi_blob_sent,
                               blob) != 0) {
        vnxi_blob_release(blob);
        return VNXI_TCP_NEXT_CLOSE;
    }
    return VNXI_TCP_NEXT_WRITE;
}

static vnxi_tcp_next_t
answer_seed(vnxi_tcp_conn_t *conn)
{
    struct evbuffer *output = bufferevent_get_output(conn->bev);
    unsigned char header[VNXI_FRAME_HEADER];

    if (has_secret(conn)) {
        return hang_up(conn, VNX_SIDE_CHANNEL_REFUSED_NO_PROOF);
    }
    vnxi_blob_t *blob = vnxi_book_find(conn->listener->super.book, "", 0);
    if (blob == NULL) {
        return hang_up(conn, VNX_SIDE_CHANNEL_REFUSED_UNKNOWN_KEY);
    }
    vnxi_frame_encode_header((uint32_t)blob->len, header);
    if (evbuffer_add(output, header, sizeof header) != 0) {
        vnxi_blob_release(blob);
        return VNXI_TCP_NEXT_CLOSE;
    }
    return add_blob(conn, blob);
}

static vnxi_tcp_next_t
answer_get(vnxi_tcp_conn_t *conn, const vnxi_tcp_request_t *request)
{
    if (has_secret(conn)) {
        return turn_away(conn, VNXI_TCP_NO_PROOF,
                         VNX_SIDE_CHANNEL_REFUSED_NO_PROOF);
    }
    vnxi_blob_t *blob = vnxi_book_find(conn->listener->super.book,
                                       request->key, request->key_len);
    if (blob == NULL) {
        return turn_away(conn, VNXI_TCP_UNKNOWN_KEY,
                         VNX_SIDE_CHANNEL_REFUSED_UNKNOWN_KEY);
    }
    if (!add_head(conn, VNXI_TCP_BLOB, NULL, blob->len)) {
        vnxi_blob_release(blob);
        return VNXI_TCP_NEXT_CLOSE;
    }
    return add_blob(conn, blob);
}

#ifdef VNXI_SIDE_CHANNEL_TLS

static vnxi_tcp_next_t
answer_hello(vnxi_tcp_conn_t *conn, const vnxi_tcp_request_t *request)
{
    vnxi_proof_t *proof = &conn->proof;

    if (!has_secret(conn)) {
        return turn_away(conn, VNXI_TCP_NO_SECRET,
                         VNX_SIDE_CHANNEL_REFUSED_WRONG_PROOF);
    }
    proof->secret = conn->listener->super.options->secret;
    memcpy(proof->client_nonce, request->nonce, VNXI_NONCE_LEN);
    return vnxi_proof_nonce(proof->server_nonce) &&
                   add_short(conn, VNXI_TCP_CHALLENGE, proof->server_nonce,
                             VNXI_NONCE_LEN)
               ? VNXI_TCP_NEXT_READ
               : VNXI_TCP_NEXT_CLOSE;
}

static vnxi_tcp_next_t
answer_prove(vnxi_tcp_conn_t *conn, const vnxi_tcp_request_t *request)
{
    unsigned char mac[VNXI_MAC_LEN];

    if (!vnxi_proof_check(&conn->proof, VNXI_PROOF_CLIENT, request->mac)) {
        return turn_away(conn, VNXI_TCP_WRONG_PROOF,
                         VNX_SIDE_CHANNEL_REFUSED_WRONG_PROOF);
    }
    return vnxi_proof_make(&conn->proof, VNXI_PROOF_SERVER, mac) &&
                   add_short(conn, VNXI_TCP_PROVED, mac, sizeof mac)
               ? VNXI_TCP_NEXT_READ
               : VNXI_TCP_NEXT_CLOSE;
}

/* That nothing is served under the key is sealed too: it is an answer. */
static vnxi_tcp_next_t
answer_unknown_sealed(vnxi_tcp_conn_t *conn, const vnxi_tcp_request_t *request)
{
    const char *text = vnxi_tcp_status_text(VNXI_TCP_UNKNOWN_KEY);
    unsigned char mac[VNXI_MAC_LEN], digest[VNXI_DIGEST_LEN];
    size_t len = strlen(text);

    refuse(conn, VNX_SIDE_CHANNEL_REFUSED_UNKNOWN_KEY);
    return vnxi_proof_digest(text, len, digest) &&
                   vnxi_proof_seal_reply(&conn->proof, request->key,
                                         request->key_len,
                                         VNXI_TCP_UNKNOWN_KEY, digest, mac) &&
                   add_head(conn, VNXI_TCP_UNKNOWN_KEY, mac, len) &&
                   evbuffer_add(bufferevent_get_output(conn->bev), text,
                                len) == 0
               ? VNXI_TCP_NEXT_WRITE
               : VNXI_TCP_NEXT_CLOSE;
}

static vnxi_tcp_next_t
answer_sealed(vnxi_tcp_conn_t *conn, const vnxi_tcp_request_t *request)
{
    unsigned char mac[VNXI_MAC_LEN];

    if (!vnxi_proof_seal_request(&conn->proof, request->key, request->key_len,
                                 mac) ||
        !vnxi_mac_equal(mac, request->mac)) {
        return turn_away(conn, VNXI_TCP_WRONG_PROOF,
                         VNX_SIDE_CHANNEL_REFUSED_WRONG_PROOF);
    }
    vnxi_blob_t *blob = vnxi_book_find(conn->listener->super.book,
                                       request->key, request->key_len);
    if (blob == NULL) {
        return answer_unknown_sealed(conn, request);
    }
    if (!vnxi_proof_seal_reply(&conn->proof, request->key, request->key_len,
                               VNXI_TCP_BLOB, blob->digest, mac) ||
        !add_head(conn, VNXI_TCP_BLOB, mac, blob->len)) {
        vnxi_blob_release(blob);
        return VNXI_TCP_NEXT_CLOSE;
    }
    return add_blob(conn, blob);
}

/* One step of a proof, which follows the one before. */
static vnxi_tcp_next_t
answer_proof(vnxi_tcp_conn_t *conn, const vnxi_tcp_request_t *request)
{
    vnxi_tcp_kind_t last = conn->last;

    conn->last = request->kind;
    if (request->kind == VNXI_TCP_HELLO && last == VNXI_TCP_SEED) {
        return answer_hello(conn, request);
    }
    if (request->kind == VNXI_TCP_PROVE && last == VNXI_TCP_HELLO) {
        return answer_prove(conn, request);
    }
    if (request->kind == VNXI_TCP_SEALED && last == VNXI_TCP_PROVE) {
        return answer_sealed(conn, request);
    }
    return turn_away(conn, VNXI_TCP_MALFORMED,
                     VNX_SIDE_CHANNEL_REFUSED_MALFORMED);
}

#else

static vnxi_tcp_next_t
answer_proof(vnxi_tcp_conn_t *conn, const vnxi_tcp_request_t *request)
{
    (void)request;
    return turn_away(conn, VNXI_TCP_NO_SECRET,
                     VNX_SIDE_CHANNEL_REFUSED_WRONG_PROOF);
}

#endif

vnxi_tcp_next_t
vnxi_tcp_answer(vnxi_tcp_conn_t *conn)
{
    const vnxi_frame_decoder_t *frame = &conn->request;
    vnxi_tcp_request_t request;

    if (frame->state == VNXI_FRAME_TOO_LONG) {
        return hang_up(conn, VNX_SIDE_CHANNEL_REFUSED_TOO_LONG);
    }
    if (frame->state != VNXI_FRAME_WHOLE ||
        !vnxi_tcp_request_parse(frame->data, frame->len, &request)) {
        return hang_up(conn, VNX_SIDE_CHANNEL_REFUSED_MALFORMED);
    }
    if (conn->last != VNXI_TCP_SEED && request.kind <= VNXI_TCP_GET) {
        return turn_away(conn, VNXI_TCP_MALFORMED,
                         VNX_SIDE_CHANNEL_REFUSED_MALFORMED);
    }
    switch (request.kind) {
    case VNXI_TCP_SEED:
        return answer_seed(conn);
    case VNXI_TCP_GET:
        return answer_get(conn, &request);
    default:
        return answer_proof(conn, &request);
    }
}
