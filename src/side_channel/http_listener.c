/*
 * Design notes.  libevent's HTTP server accepts connections until none is
 * left.  After a batch the acceptors pause for one round of the loop, so that
 * a storm of connections does not starve the clients being served.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "net/loop.h"
#include "side_channel/http.h"

/* Makes libevent's own timeout, 50 s, so long that only ours matters. */
#define NEVER_S 1000000

/* -- Accepting ------------------------------------------------------------ */

static void
set_accepting(vnxi_server_t *super, bool is_on)
{
    vnxi_http_listener_t *listener = (vnxi_http_listener_t *)super;

    listener->batch = 0;
    for (size_t i = 0; i < super->sockets.count; i++) {
        if (is_on) {
            evconnlistener_enable(listener->acceptors[i]);
        } else {
            evconnlistener_disable(listener->acceptors[i]);
        }
    }
}

static bool
evict(vnxi_server_t *super)
{
    return vnxi_http_conn_evict((vnxi_http_listener_t *)super);
}

static void
on_adopt(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    vnxi_http_listener_t *listener = arg;

    listener->batch = 0;
    vnxi_http_conn_adopt_all(listener);
}

/* accept() failed for a reason that is not the client's.  `arg` belongs to
 * libevent. */
static void
on_starved(struct evconnlistener *acceptor, void *arg)
{
    (void)arg;
    int err = errno;
    vnxi_server_starved(vnxi_server_running(), evconnlistener_get_fd(acceptor),
                        err);
}

/* -- Creation and end ----------------------------------------------------- */

/* Free a listener whose creation may be incomplete.  No thread runs. */
static void
listener_free(vnxi_server_t *super)
{
    vnxi_http_listener_t *listener = (vnxi_http_listener_t *)super;

    vnxi_http_conn_close_all(listener);
    if (listener->http != NULL) {
        evhttp_free(listener->http); /* frees the acceptors too */
    }
    vnxi_loop_event_free(listener->adopt_event);
    vnxi_server_fini(&listener->super);
    vnxi_name_map_fini(&listener->by_bev);
    free(listener);
}

static bool
add_acceptor(vnxi_http_listener_t *listener, size_t index)
{
    struct evconnlistener *acceptor = evconnlistener_new(
        listener->super.base, NULL, NULL, LEV_OPT_CLOSE_ON_EXEC, 0,
        listener->super.sockets.fds[index]);
    if (acceptor == NULL) {
        return false;
    }
    if (evhttp_bind_listener(listener->http, acceptor) == NULL) {
        evconnlistener_free(acceptor);
        return false;
    }
    listener->acceptors[index] = acceptor;
    evconnlistener_set_error_cb(acceptor, on_starved);
    return true;
}

static bool
create_server(vnxi_http_listener_t *listener)
{
    static const struct timeval never = {.tv_sec = NEVER_S};
    struct evhttp *http = listener->http = evhttp_new(listener->super.base);

    if (http == NULL) {
        return false;
    }
    evhttp_set_timeout_tv(http, &never);
    evhttp_set_max_headers_size(http, VNXI_HTTP_HEADERS_MAX);
    evhttp_set_max_body_size(http, VNXI_HTTP_BODY_MAX);
    /* Let all methods through to vnxi_http_answer(), which refuses those that
     * we do not serve.  Except CONNECT: libevent would keep its connection. */
    evhttp_set_allowed_methods(http, UINT16_MAX & ~EVHTTP_REQ_CONNECT);
    evhttp_set_default_content_type(http, NULL);
    evhttp_set_bevcb(http, vnxi_http_conn_new, listener);
    evhttp_set_gencb(http, vnxi_http_answer, listener);
    for (size_t i = 0; i < listener->super.sockets.count; i++) {
        if (!add_acceptor(listener, i)) {
            return false;
        }
    }
    return true;
}

static bool
create_events(vnxi_server_t *super)
{
    vnxi_http_listener_t *listener = (vnxi_http_listener_t *)super;
    listener->adopt_event =
        event_new(listener->super.base, -1, 0, on_adopt, listener);
    return listener->adopt_event != NULL && create_server(listener);
}

static const vnxi_server_ops_t server_ops = {
    .accept = set_accepting,
    .evict = evict,
    .begin = create_events,
    .free = listener_free,
};

static vnxi_http_listener_t *
listener_new(void)
{
    vnxi_http_listener_t *listener = calloc(1, sizeof *listener);
    if (listener == NULL) {
        return NULL;
    }
    for (int i = 0; i < VNXI_HTTP_STATES; i++) {
        TAILQ_INIT(&listener->conns[i]);
    }
    return listener;
}

vnx_status_t
vnxi_http_listen(const vnxi_listen_params_t *params, vnxi_listener_t **out_p,
                 vnx_error_t *error)
{
    const char *secret = params->options->secret;

    if (secret != NULL && !vnxi_http_is_token(secret)) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, VNXI_OP_START,
                              VNXI_HTTP_NO_TOKEN);
    }
    vnxi_http_listener_t *listener = listener_new();
    if (listener == NULL) {
        return vnxi_error_no_memory(error, VNXI_OP_START, sizeof *listener);
    }
    return vnxi_server_open(&listener->super, &server_ops, "vnx-http", params,
                            out_p, error);
}
