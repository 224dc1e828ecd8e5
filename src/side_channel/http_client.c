/*
 * Design notes.  An exchange looks the host up as the other transports do
 * (libcurl's own look-up has no deadline that holds), and then drives one
 * libcurl transfer by its multi interface, which never waits.  The sockets
 * that libcurl asks to be watched are in an epoll set, which is what the
 * exchange waits for; there are several while addresses are tried.
 *
 * Where the environment names a proxy the look-up is the proxy's business, or
 * libcurl's.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/error.h"
#include "side_channel/http.h"
#include "side_channel/http_easy.h"

#define EVENTS 8
#define ROUNDS_MAX 16 /* in one step: others have work too */
#define MS UINT64_C(1000000)

typedef struct http_exchange {
    vnxi_exchange_t super;
    const vnxi_request_params_t *params; /* borrowed */
    vnxi_lookup_t *lookup;
    CURLM *multi; /* NULL: the host is being looked up */
    int epoll_fd;
    uint64_t timer; /* when libcurl wants to be called; UINT64_MAX: never */
    vnxi_http_easy_t easy;
} http_exchange_t;

/* -- What libcurl waits for ----------------------------------------------- */

static int
on_watch(CURL *curl, curl_socket_t fd, int what, void *arg, void *known)
{
    (void)curl;
    http_exchange_t *exchange = arg;
    struct epoll_event event = {
        .events = (what & CURL_POLL_IN ? (uint32_t)EPOLLIN : 0) |
                  (what & CURL_POLL_OUT ? (uint32_t)EPOLLOUT : 0),
        .data.fd = fd};

    if (what == CURL_POLL_REMOVE) {
        epoll_ctl(exchange->epoll_fd, EPOLL_CTL_DEL, fd, &event);
        return 0;
    }
    vnxi_curl.multi_assign(exchange->multi, fd, exchange);
    return epoll_ctl(exchange->epoll_fd,
                     known != NULL ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd,
                     &event);
}

static int
on_timer(CURLM *multi, long timeout_ms, void *arg)
{
    (void)multi;
    http_exchange_t *exchange = arg;

    exchange->timer = timeout_ms < 0
                          ? UINT64_MAX
                          : vnxi_clock_ns() + (uint64_t)timeout_ms * MS;
    return 0;
}

/* -- Getting there -------------------------------------------------------- */

static bool
environment_has(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && value[0] != '\0';
}

/* As libcurl reads it.  A token that is not encrypted goes to no proxy. */
static bool
may_have_proxy(const vnx_side_channel_options_t *options)
{
    if (options->secret != NULL && !options->tls) {
        return false;
    }
    return environment_has("all_proxy") || environment_has("ALL_PROXY") ||
           (options->tls ? environment_has("https_proxy") ||
                               environment_has("HTTPS_PROXY")
                         : environment_has("http_proxy"));
}

static vnx_status_t
no_multi(http_exchange_t *exchange, vnx_error_t *error)
{
    return vnxi_exchange_failed(
        exchange->params, VNX_ERR_BACKEND, "preparing to ask",
        exchange->params->host,
        errno != 0 ? vnxi_errno(errno) : "libcurl refused", error);
}

/* `found` NULL: libcurl knows where to. */
static vnx_status_t
open_multi(http_exchange_t *exchange, const vnxi_addresses_t *found,
           vnx_error_t *error)
{
    vnx_status_t status =
        vnxi_http_easy_open(&exchange->easy, exchange->params, found, error);
    if (status != VNX_OK) {
        return status;
    }
    errno = 0;
    exchange->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    exchange->multi = exchange->epoll_fd >= 0 ? vnxi_curl.multi_init() : NULL;
    if (exchange->multi == NULL) {
        return no_multi(exchange, error);
    }
    vnxi_curl.multi_setopt(exchange->multi, CURLMOPT_SOCKETFUNCTION, on_watch);
    vnxi_curl.multi_setopt(exchange->multi, CURLMOPT_SOCKETDATA, exchange);
    vnxi_curl.multi_setopt(exchange->multi, CURLMOPT_TIMERFUNCTION, on_timer);
    vnxi_curl.multi_setopt(exchange->multi, CURLMOPT_TIMERDATA, exchange);
    return vnxi_curl.multi_add_handle(exchange->multi, exchange->easy.curl) ==
                   CURLM_OK
               ? VNX_OK
               : no_multi(exchange, error);
}

static bool
is_numeric(const char *host)
{
    vnxi_addresses_t found;
    return vnxi_address_parse(host, &found);
}

static vnx_status_t
begin(http_exchange_t *exchange, vnx_error_t *error)
{
    const vnxi_request_params_t *params = exchange->params;
    vnxi_addresses_t found;
    const char *reason = "";
    vnx_status_t status;

    if (exchange->lookup == NULL &&
        (is_numeric(params->host) || may_have_proxy(params->options))) {
        return open_multi(exchange, NULL, error);
    }
    status = exchange->lookup == NULL
                 ? vnxi_lookup_begin(params->host, params->port, &found,
                                     &exchange->lookup, &reason)
                 : vnxi_lookup_step(exchange->lookup, &found, &reason);
    if (status == VNX_IN_PROG) {
        exchange->super.fd = vnxi_lookup_fd(exchange->lookup);
        exchange->super.events = POLLIN;
        return VNX_IN_PROG;
    }
    return status == VNX_OK
               ? open_multi(exchange, &found, error)
               : vnxi_exchange_failed(params, status, "resolving",
                                      params->host, reason, error);
}

/* -- Driving -------------------------------------------------------------- */

/* Let libcurl do what it can; false: nothing is left to do now. */
static bool
drive(http_exchange_t *exchange)
{
    struct epoll_event events[EVENTS];
    int running, count;

    if (vnxi_clock_ns() >= exchange->timer) {
        exchange->timer = UINT64_MAX;
        vnxi_curl.multi_socket_action(exchange->multi, CURL_SOCKET_TIMEOUT, 0,
                                      &running);
        return true;
    }
    count = epoll_wait(exchange->epoll_fd, events, EVENTS, 0);
    for (int i = 0; i < count; i++) {
        uint32_t what = events[i].events;
        vnxi_curl.multi_socket_action(
            exchange->multi, events[i].data.fd,
            (what & EPOLLIN ? CURL_CSELECT_IN : 0) |
                (what & EPOLLOUT ? CURL_CSELECT_OUT : 0) |
                (what & (EPOLLERR | EPOLLHUP) ? CURL_CSELECT_ERR : 0),
            &running);
    }
    return count > 0;
}

/* Did it end?  *code_p says how. */
static bool
has_ended(http_exchange_t *exchange, CURLcode *code_p)
{
    CURLMsg *message;
    int left;

    while ((message = vnxi_curl.multi_info_read(exchange->multi, &left)) !=
           NULL) {
        if (message->msg == CURLMSG_DONE) {
            *code_p = message->data.result;
            return true;
        }
    }
    return false;
}

static vnx_status_t
transfer(http_exchange_t *exchange, void **data_p, size_t *len_p,
         vnx_error_t *error)
{
    CURLcode code;

    for (int i = 0; i < ROUNDS_MAX && drive(exchange); i++) {
        if (has_ended(exchange, &code)) {
            return vnxi_http_easy_take(&exchange->easy, code, data_p, len_p,
                                       error);
        }
    }
    exchange->super.fd = exchange->epoll_fd;
    exchange->super.events = POLLIN;
    exchange->super.wake = exchange->timer;
    return VNX_IN_PROG;
}

/* -- The transport's slots ------------------------------------------------ */

static vnx_status_t
http_begin(const vnxi_request_params_t *params, vnxi_exchange_t **out_p,
           vnx_error_t *error)
{
    const char *secret = params->options->secret;

    vnx_status_t status = vnxi_curl_load(VNXI_OP_REQUEST, error);
    if (status != VNX_OK) {
        return status;
    }
    if (secret != NULL && !vnxi_http_is_token(secret)) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, VNXI_OP_REQUEST,
                              VNXI_HTTP_NO_TOKEN);
    }
    http_exchange_t *exchange = calloc(1, sizeof *exchange);
    if (exchange == NULL) {
        return vnxi_error_no_memory(error, VNXI_OP_REQUEST, sizeof *exchange);
    }
    exchange->params = exchange->easy.params = params;
    exchange->easy.exchange = &exchange->super;
    exchange->super.fd = exchange->epoll_fd = -1;
    exchange->timer = UINT64_MAX;
    *out_p = &exchange->super;
    return VNX_OK;
}

static vnx_status_t
http_step(vnxi_exchange_t *super, void **data_p, size_t *len_p,
          vnx_error_t *error)
{
    http_exchange_t *exchange = (http_exchange_t *)super;
    vnx_status_t status = VNX_OK;

    super->wake = UINT64_MAX;
    if (vnxi_clock_ns() >= exchange->params->deadline) {
        return vnxi_http_easy_failed(&exchange->easy, VNX_ERR_TIMEOUT,
                                     "timed out", error);
    }
    if (exchange->multi == NULL) {
        status = begin(exchange, error);
    }
    return status == VNX_OK ? transfer(exchange, data_p, len_p, error)
                            : status;
}

static void
http_end(vnxi_exchange_t *super)
{
    http_exchange_t *exchange = (http_exchange_t *)super;

    vnxi_lookup_end(exchange->lookup);
    if (exchange->multi != NULL) {
        vnxi_curl.multi_remove_handle(exchange->multi, exchange->easy.curl);
    }
    vnxi_http_easy_close(&exchange->easy);
    if (exchange->multi != NULL) {
        vnxi_curl.multi_cleanup(exchange->multi);
    }
    if (exchange->epoll_fd >= 0) {
        close(exchange->epoll_fd);
    }
    free(exchange);
}

const vnxi_transport_t vnxi_transport_http = {
    .name = "HTTP",
    .fds = 5, /* a socket or two, our epoll set, libcurl's pair */
    .listen = vnxi_http_listen,
    .stop = vnxi_server_stop,
    .begin = http_begin,
    .step = http_step,
    .end = http_end,
};
