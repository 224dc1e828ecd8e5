/*
 * Design notes.  A listener has one thread, which runs a libevent base and
 * libevent's HTTP server on it; both, and the connections, belong to it, so
 * there is no lock.  Other threads only write the eventfd that ends the loop
 * and join.
 *
 * libevent accepts the connections, and would do so until there are no more.
 * After a batch the acceptors rest for a round of the loop, so that a storm
 * never starves those who are being served.  Where the process is out of file
 * descriptors the longest idle connection gives way; where none can, a reserve
 * fd is given up for the moment it takes to refuse the newcomer.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "side_channel/http.h"
#include "side_channel/loop.h"
#include "side_channel/reserve.h"
#include "side_channel/tls.h"

#ifdef VNXI_SIDE_CHANNEL_TLS
#include <openssl/ssl.h>
#endif

#define PAUSE_MS 50 /* of accepting, when the system has nothing to give */
/* libevent's own timeout, 50 s, is put out of the way of ours. */
#define NEVER_S 1000000

/* The one that this thread runs: libevent does not pass it to on_starved(). */
static _Thread_local vnxi_http_listener_t *running;

/* -- Accepting ------------------------------------------------------------ */

void
vnxi_http_pause(vnxi_http_listener_t *listener, bool long_one)
{
    struct timeval tv = {.tv_usec = PAUSE_MS * 1000};

    for (size_t i = 0; i < listener->sockets.count; i++) {
        evconnlistener_disable(listener->acceptors[i]);
    }
    if (long_one) {
        event_add(listener->resume_event, &tv);
    } else {
        event_active(listener->resume_event, EV_TIMEOUT, 0);
    }
}

static void
on_resume(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    vnxi_http_listener_t *listener = arg;

    listener->batch = 0;
    for (size_t i = 0; i < listener->sockets.count; i++) {
        evconnlistener_enable(listener->acceptors[i]);
    }
}

static void
on_adopt(evutil_socket_t fd, short what, void *arg)
{
    (void)fd, (void)what;
    vnxi_http_listener_t *listener = arg;

    listener->batch = 0;
    vnxi_http_conn_adopt_all(listener);
}

/* accept() failed for a reason that is not the client's. */
static void
on_starved(struct evconnlistener *acceptor, void *arg)
{
    (void)arg;
    vnxi_http_listener_t *listener = running;
    int err = errno, fd = evconnlistener_get_fd(acceptor);
    struct pollfd entry = {.fd = fd, .events = POLLIN};

    if (err != EMFILE && err != ENFILE) {
        vnxi_http_pause(listener, true);
        return;
    }
    /* It says so whether or not a client is there. */
    if (poll(&entry, 1, 0) <= 0 || vnxi_http_conn_evict(listener)) {
        return; /* accepted in the next round */
    }
    if (listener->reserve_fd >= 0) {
        vnxi_reserve_refuse(listener->reserve_fd, fd, listener->stats);
        listener->reserve_fd = vnxi_reserve_open();
    }
    if (listener->reserve_fd < 0) {
        listener->reserve_fd = vnxi_reserve_open();
        vnxi_http_pause(listener, true);
    }
}

/* -- The thread ----------------------------------------------------------- */

static void *
listener_main(void *arg)
{
    vnxi_http_listener_t *listener = arg;

    running = listener;
    pthread_setname_np(pthread_self(), "vnx-http");
    if (event_base_dispatch(listener->base) != 0) {
        vnxi_log(VNXI_LOG_ERROR, "side channel on port %d: the loop ended: %s",
                 listener->super.port, strerror(errno));
    }
    return NULL;
}

/* -- Making --------------------------------------------------------------- */

static void
close_if(int fd)
{
    if (fd >= 0) {
        close(fd);
    }
}

/* A listener in any stage of its making, and no thread. */
static void
listener_free(vnxi_http_listener_t *listener)
{
    vnxi_http_conn_close_all(listener);
    if (listener->http != NULL) {
        evhttp_free(listener->http); /* and the acceptors */
    }
    vnxi_loop_event_free(listener->adopt_event);
    vnxi_loop_event_free(listener->resume_event);
    vnxi_loop_event_free(listener->stop_event);
    vnxi_sockets_close(&listener->sockets);
    vnxi_loop_base_free(listener->base);
#ifdef VNXI_SIDE_CHANNEL_TLS
    SSL_CTX_free(listener->tls);
#endif
    vnxi_rate_free(listener->rate);
    vnxi_name_map_fini(&listener->by_bev);
    close_if(listener->stop_fd);
    close_if(listener->reserve_fd);
    free(listener);
}

static bool
add_acceptor(vnxi_http_listener_t *listener, size_t index)
{
    struct evconnlistener *acceptor =
        evconnlistener_new(listener->base, NULL, NULL, LEV_OPT_CLOSE_ON_EXEC,
                           0, listener->sockets.fds[index]);
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
    struct evhttp *http = listener->http = evhttp_new(listener->base);

    if (http == NULL) {
        return false;
    }
    evhttp_set_timeout_tv(http, &never);
    evhttp_set_max_headers_size(http, VNXI_HTTP_HEADERS_MAX);
    evhttp_set_max_body_size(http, VNXI_HTTP_BODY_MAX);
    /* Which of them we know is said by vnxi_http_answer(); after a CONNECT
     * libevent would keep the connection. */
    evhttp_set_allowed_methods(http, UINT16_MAX & ~EVHTTP_REQ_CONNECT);
    evhttp_set_default_content_type(http, NULL);
    evhttp_set_bevcb(http, vnxi_http_conn_new, listener);
    evhttp_set_gencb(http, vnxi_http_answer, listener);
    for (size_t i = 0; i < listener->sockets.count; i++) {
        if (!add_acceptor(listener, i)) {
            return false;
        }
    }
    return true;
}

static bool
create_events(vnxi_http_listener_t *listener)
{
    struct event_base *base = listener->base = vnxi_loop_base_new();

    if (base == NULL) {
        return false;
    }
    listener->stop_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    listener->reserve_fd = vnxi_reserve_open();
    if (listener->stop_fd < 0 || listener->reserve_fd < 0) {
        return false;
    }
    listener->adopt_event = event_new(base, -1, 0, on_adopt, listener);
    listener->resume_event = evtimer_new(base, on_resume, listener);
    listener->stop_event =
        event_new(base, listener->stop_fd, EV_READ, vnxi_loop_on_stop, base);
    return listener->adopt_event != NULL && listener->resume_event != NULL &&
           listener->stop_event != NULL &&
           event_add(listener->stop_event, NULL) == 0 &&
           create_server(listener);
}

static vnxi_http_listener_t *
listener_new(const vnxi_listen_params_t *params)
{
    vnxi_http_listener_t *listener = calloc(1, sizeof *listener);
    if (listener == NULL) {
        return NULL;
    }
    listener->options = params->options;
    listener->stats = params->stats;
    listener->book = params->book;
    listener->stop_fd = listener->reserve_fd = -1;
    for (int i = 0; i < VNXI_HTTP_STATES; i++) {
        TAILQ_INIT(&listener->conns[i]);
    }
    return listener;
}

/* What the options ask for that can be wrong. */
static vnx_status_t
read_options(vnxi_http_listener_t *listener, vnx_error_t *error)
{
    const vnx_side_channel_options_t *options = listener->options;

    if (options->secret != NULL && !vnxi_http_is_token(options->secret)) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, VNXI_OP_START,
                              VNXI_HTTP_NO_TOKEN);
    }
    if (options->max_rate > 0) {
        listener->rate = vnxi_rate_create(options->max_rate);
        if (listener->rate == NULL) {
            return vnxi_error_no_memory(error, VNXI_OP_START, sizeof(void *));
        }
    }
#ifdef VNXI_SIDE_CHANNEL_TLS
    if (options->tls) {
        vnx_status_t status =
            vnxi_tls_server_context(options, &listener->tls, error);
        if (status != VNX_OK) {
            return status;
        }
        /* Buffers of those who say nothing are given back. */
        SSL_CTX_set_mode(listener->tls, SSL_MODE_RELEASE_BUFFERS);
    }
#endif
    return VNX_OK;
}

vnx_status_t
vnxi_http_listen(const vnxi_listen_params_t *params, vnxi_listener_t **out_p,
                 vnx_error_t *error)
{
    vnxi_http_listener_t *listener = listener_new(params);
    if (listener == NULL) {
        return vnxi_error_no_memory(error, VNXI_OP_START, sizeof *listener);
    }
    vnx_status_t status = read_options(listener, error);
    if (status == VNX_OK) {
        status = vnxi_sockets_open(params, &listener->sockets, error);
    }
    if (status != VNX_OK) {
        goto err_free;
    }
    listener->super.port = listener->sockets.port;
    if (!create_events(listener)) {
        status = vnxi_start_failed(params, error, "making the loop", errno);
        goto err_free;
    }
    int ret = vnxi_loop_thread_new(&listener->thread, listener_main, listener);
    if (ret != 0) {
        status = vnxi_start_failed(params, error, "starting the thread", ret);
        goto err_free;
    }
    *out_p = &listener->super;
    return VNX_OK;

err_free:
    listener_free(listener);
    return status;
}

void
vnxi_http_stop(vnxi_listener_t *super)
{
    vnxi_http_listener_t *listener = (vnxi_http_listener_t *)super;
    uint64_t one = 1;

    ssize_t written = write(listener->stop_fd, &one, sizeof one);
    (void)written; /* an eventfd of ours takes a 1 */
    pthread_join(listener->thread, NULL);
    listener_free(listener);
}
