#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "side_channel/http.h"

/* Makes libevent's own timeout, 50 s, so long that only ours matters. */
#define NEVER_S 1000000

/* -- Accepting ------------------------------------------------------------ */

/* `arg` belongs to libevent. */
static void
on_accept_failed(struct evconnlistener *acceptor, void *arg)
{
    (void)arg;
    int err = errno;
    vnxi_server_t *server = vnxi_loop_running()->owner;
    vnxi_acceptor_failed(&server->acceptor, evconnlistener_get_fd(acceptor),
                         err);
}

/* -- Creation and end ----------------------------------------------------- */

/* Free a listener whose creation may be incomplete.  No thread runs. */
static void
listener_free(vnxi_server_t *super)
{
    vnxi_http_listener_t *listener = (vnxi_http_listener_t *)super;

    vnxi_server_drop_all(super);
    if (listener->http != NULL) {
        evhttp_free(listener->http);
    }
    for (size_t i = 0; i < listener->bound; i++) {
        super->acceptor.listeners[i] = NULL; /* freed with `http` */
    }
    vnxi_server_fini(&listener->super);
    vnxi_name_map_fini(&listener->by_bev);
    free(listener);
}

/* libevent's server takes the clients, instead of the acceptor. */
static bool
take_clients(vnxi_http_listener_t *listener, struct evconnlistener *acceptor)
{
    if (evhttp_bind_listener(listener->http, acceptor) == NULL) {
        return false;
    }
    listener->bound++;
    evconnlistener_set_error_cb(acceptor, on_accept_failed);
    return true;
}

static bool
create_server(vnxi_server_t *super)
{
    vnxi_http_listener_t *listener = (vnxi_http_listener_t *)super;
    static const struct timeval never = {.tv_sec = NEVER_S};
    struct evhttp *http = listener->http =
        evhttp_new(listener->super.loop.base);

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
    vnxi_acceptor_t *acceptor = &listener->super.acceptor;
    for (size_t i = 0; i < acceptor->sockets.count; i++) {
        if (!take_clients(listener, acceptor->listeners[i])) {
            return false;
        }
    }
    return true;
}

static const vnxi_server_ops_t server_ops = {
    .acceptor = {.evict = vnxi_server_evict, .refused = vnxi_server_refused},
    .drop = vnxi_http_conn_drop,
    .begin = create_server,
    .free = listener_free,
};

vnx_status_t
vnxi_http_listen(const vnxi_listen_params_t *params, vnxi_server_t **out_p,
                 vnx_error_t *error)
{
    const char *secret = params->options->secret;

    if (secret != NULL && !vnxi_http_is_token(secret)) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, VNXI_OP_START,
                              VNXI_HTTP_NO_TOKEN);
    }
    vnxi_http_listener_t *listener = calloc(1, sizeof *listener);
    if (listener == NULL) {
        return vnxi_error_no_memory(error, VNXI_OP_START, sizeof *listener);
    }
    return vnxi_server_open(&listener->super, &server_ops, "vnx-http", params,
                            out_p, error);
}
