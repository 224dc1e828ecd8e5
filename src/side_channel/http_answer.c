/*
 * Design notes.  Every reply states its length, and no reply contains data
 * that the client sent.  A blob is written from the shared copy; a blob that
 * is replaced meanwhile stays in memory until it has been sent to the clients
 * that asked for it.
 *
 * Reading stops while a reply is written.  Otherwise libevent would buffer
 * more input from the client, and would take the end of that input for a
 * closed connection.
 */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#include "base/mac.h"
#include "net/resolve.h"
#include "side_channel/http.h"

#define TEXT "text/plain; charset=utf-8"
#define BYTES "application/octet-stream"

/* A reply to be sent. */
typedef struct reply {
    int status;
    const char *reason;
    const char *type;
    struct evbuffer *body; /* NULL: none */
} reply_t;

/* Every refusal: X(symbol, status, reason, text, counted as). */
#define REFUSALS(X)                                                          \
    X(NO_METHOD, 405, "Method Not Allowed", "only GET and HEAD are known",   \
      MALFORMED)                                                             \
    X(NO_RESOURCE, 404, "Not Found",                                         \
      "no such resource: there are /metadata, /metadata/KEY, /health",       \
      MALFORMED)                                                             \
    X(BAD_KEY, 400, "Bad Request", "a broken escape in the key", MALFORMED)  \
    X(LONG_KEY, 414, "URI Too Long", "no key is that long", TOO_LONG)        \
    X(UNKNOWN_KEY, 404, "Not Found", "nothing is served under that key",     \
      UNKNOWN_KEY)                                                           \
    X(NO_TOKEN, 401, "Unauthorized",                                         \
      "this listener wants its shared secret as a bearer token", NO_PROOF)   \
    X(WRONG_TOKEN, 401, "Unauthorized", "the shared secrets differ",         \
      WRONG_PROOF)                                                           \
    X(NO_SECRET, 403, "Forbidden", "this listener has no shared secret",     \
      WRONG_PROOF)                                                           \
    X(IN_CLEAR, 403, "Forbidden",                                            \
      "the shared secret is taken only over TLS or from a loopback address", \
      NO_PROOF)

typedef enum refusal {
#define REFUSAL_ENUM(symbol, status, reason, text, why) REFUSE_##symbol,
    REFUSALS(REFUSAL_ENUM)
#undef REFUSAL_ENUM
} refusal_t;

static const struct {
    int status;
    const char *reason, *text;
    vnx_side_channel_refusal_t why;
} refusals[] = {
#define REFUSAL_ROW(symbol, status, reason, text, why) \
    {status, reason, text "\n", VNX_SIDE_CHANNEL_REFUSED_##why},
    REFUSALS(REFUSAL_ROW)
#undef REFUSAL_ROW
};

static void
add_header(struct evhttp_request *request, const char *name, const char *value)
{
    evhttp_add_header(evhttp_request_get_output_headers(request), name, value);
}

static void
add_length(struct evhttp_request *request, struct evbuffer *body)
{
    char text[24];

    snprintf(text, sizeof text, "%zu", evbuffer_get_length(body));
    add_header(request, "Content-Length", text);
}

/* Send the reply; takes ownership of the body. */
static void
send_reply(vnxi_http_conn_t *conn, struct evhttp_request *request,
           const reply_t *reply)
{
    if (reply->type != NULL) {
        add_header(request, "Content-Type", reply->type);
    }
    struct evbuffer *body = reply->body;
    if (body != NULL &&
        evhttp_request_get_command(request) == EVHTTP_REQ_HEAD) {
        add_length(request, body); /* libevent would send the body too */
        body = NULL;
    }
    vnxi_http_conn_write(conn);
    evhttp_request_set_on_complete_cb(request, vnxi_http_conn_written, conn);
    evhttp_send_reply(request, reply->status, reply->reason, body);
    if (reply->body != NULL) {
        evbuffer_free(reply->body);
    }
    bufferevent_disable(conn->bev, EV_READ);
}

/* Send a reply whose body is one of our own texts. */
static void
send_text(vnxi_http_conn_t *conn, struct evhttp_request *request, int status,
          const char *reason, const char *text)
{
    reply_t reply = {.status = status,
                     .reason = reason,
                     .type = TEXT,
                     .body = evbuffer_new()};

    if (reply.body != NULL) {
        evbuffer_add_reference(reply.body, text, strlen(text), NULL, NULL);
    }
    send_reply(conn, request, &reply);
}

static void
refuse(vnxi_http_conn_t *conn, struct evhttp_request *request,
       refusal_t refusal)
{
    conn->turned_away = true;
    vnxi_stat_refused(conn->listener->super.stats, refusals[refusal].why);
    if (refusals[refusal].status == 401) {
        add_header(request, "WWW-Authenticate", "Bearer");
    } else if (refusals[refusal].status == 405) {
        add_header(request, "Allow", "GET, HEAD");
    }
    /* A refused client gets no further exchange. */
    add_header(request, "Connection", "close");
    send_text(conn, request, refusals[refusal].status,
              refusals[refusal].reason, refusals[refusal].text);
}

/* -- Access --------------------------------------------------------------- */

/* Compare MACs of the two.  The time this takes depends neither on where the
 * token and the secret differ nor on their lengths. */
static bool
is_secret(const vnxi_http_conn_t *conn, const char *token, size_t len)
{
    static const char label[] = "vnx1 secret";
    const char *secret = conn->listener->super.options->secret;
    unsigned char ours[VNXI_MAC_LEN], theirs[VNXI_MAC_LEN];

    return vnxi_mac(label, sizeof label - 1, secret, strlen(secret), ours) &&
           vnxi_mac(label, sizeof label - 1, token, len, theirs) &&
           vnxi_mac_equal(ours, theirs);
}

/* Is the connection safe from eavesdroppers? */
static bool
is_private(const vnxi_http_conn_t *conn)
{
    vnxi_address_t peer = {.len = sizeof peer.addr};

    return conn->listener->super.tls != NULL ||
           (getpeername(bufferevent_getfd(conn->bev), (void *)&peer.addr,
                        &peer.len) == 0 &&
            vnxi_address_is_loopback(&peer));
}

static bool
may_ask(const vnxi_http_conn_t *conn, struct evhttp_request *request,
        refusal_t *refusal_p)
{
    bool has_secret = conn->listener->super.options->secret != NULL;
    const char *token;
    size_t len;

    if (has_secret && !is_private(conn)) {
        *refusal_p = REFUSE_IN_CLEAR;
        return false;
    }
    if (!vnxi_http_bearer(
            evhttp_find_header(evhttp_request_get_input_headers(request),
                               "Authorization"),
            &token, &len)) {
        *refusal_p = REFUSE_NO_TOKEN;
        return !has_secret;
    }
    *refusal_p = has_secret ? REFUSE_WRONG_TOKEN : REFUSE_NO_SECRET;
    return has_secret && is_secret(conn, token, len);
}

/* -- Resources ------------------------------------------------------------ */

/* Make a body of a blob; takes the reference to `blob`. */
static struct evbuffer *
body_new(vnxi_blob_t *blob)
{
    struct evbuffer *body = evbuffer_new();

    if (body == NULL || blob->len == 0 ||
        evbuffer_add_reference(body, blob->data, blob->len, vnxi_blob_sent,
                               blob) != 0) {
        bool empty = body != NULL && blob->len == 0;
        vnxi_blob_release(blob);
        if (!empty && body != NULL) {
            evbuffer_free(body);
            body = NULL;
        }
    }
    return body;
}

/* Send a blob; takes the reference to `blob`. */
static void
send_blob(vnxi_http_conn_t *conn, struct evhttp_request *request,
          vnxi_blob_t *blob)
{
    char etag[VNXI_HTTP_ETAG_MAX];
    reply_t reply = {.status = HTTP_OK, .reason = "OK", .type = BYTES};
    const char *known = evhttp_find_header(
        evhttp_request_get_input_headers(request), "If-None-Match");

    vnxi_http_etag(blob->version, etag);
    add_header(request, "ETag", etag);
    add_header(request, "Cache-Control", "no-cache");
    if (vnxi_http_etag_is_in(known, etag)) {
        vnxi_blob_release(blob);
        send_reply(
            conn, request,
            &(reply_t){.status = HTTP_NOTMODIFIED, .reason = "Not Modified"});
        return;
    }
    reply.body = body_new(blob);
    if (reply.body == NULL) {
        evhttp_send_error(request, HTTP_SERVUNAVAIL, NULL);
        return;
    }
    send_reply(conn, request, &reply);
}

static void
answer_metadata(vnxi_http_conn_t *conn, struct evhttp_request *request,
                const vnxi_http_target_t *target)
{
    refusal_t refusal;

    if (!may_ask(conn, request, &refusal)) {
        refuse(conn, request, refusal);
        return;
    }
    vnxi_blob_t *blob = vnxi_blob_table_find(conn->listener->super.blobs,
                                             target->key, target->key_len);
    if (blob == NULL) {
        refuse(conn, request, REFUSE_UNKNOWN_KEY);
    } else {
        send_blob(conn, request, blob);
    }
}

static void
answer(vnxi_http_conn_t *conn, struct evhttp_request *request)
{
    const struct evhttp_uri *uri = evhttp_request_get_evhttp_uri(request);
    vnxi_http_target_t target;

    vnxi_http_target_parse(uri != NULL ? evhttp_uri_get_path(uri) : NULL,
                           &target);
    switch (target.route) {
    case VNXI_HTTP_METADATA:
        answer_metadata(conn, request, &target);
        break;
    case VNXI_HTTP_HEALTH:
        send_text(conn, request, HTTP_OK, "OK", "ok\n");
        break;
    case VNXI_HTTP_MALFORMED:
        refuse(conn, request, REFUSE_BAD_KEY);
        break;
    case VNXI_HTTP_TOO_LONG:
        refuse(conn, request, REFUSE_LONG_KEY);
        break;
    default:
        refuse(conn, request, REFUSE_NO_RESOURCE);
    }
}

void
vnxi_http_answer(struct evhttp_request *request, void *arg)
{
    vnxi_http_conn_t *conn = vnxi_http_conn_of(arg, request);
    enum evhttp_cmd_type method = evhttp_request_get_command(request);

    if (conn == NULL) { /* accepted without memory: no TLS, no limits */
        evhttp_send_error(request, HTTP_SERVUNAVAIL, NULL);
    } else if (method != EVHTTP_REQ_GET && method != EVHTTP_REQ_HEAD) {
        refuse(conn, request, REFUSE_NO_METHOD);
    } else {
        answer(conn, request);
    }
}
