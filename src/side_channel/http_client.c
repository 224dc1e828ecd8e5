/*
 * Design notes.  A try looks the host up as the other transports do, because
 * libcurl's own look-up does not respect a deadline.  It then drives one
 * libcurl transfer with the multi interface, which never waits.  An epoll set
 * has the sockets that libcurl asks to be watched; the request waits for that
 * set.  There are several sockets while libcurl tries several addresses.
 *
 * If the environment names a proxy, the proxy or libcurl looks the host up.
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
#define ROUNDS_MAX 16 /* per step; other requests have work too */
#define MS UINT64_C(1000000)

typedef struct http_client {
    vnxi_request_t *request; /* borrowed */
    vnxi_lookup_t *lookup;
    CURLM *multi; /* NULL: the host is being looked up */
    int epoll_fd;
    uint64_t timer; /* when to call libcurl; UINT64_MAX: never */
    vnxi_http_easy_t easy;
} http_client_t;

/* -- Events that libcurl waits for ---------------------------------------- */

static int
on_watch(CURL *curl, curl_socket_t fd, int what, void *arg, void *known)
{
    (void)curl;
    http_client_t *client = arg;
    struct epoll_event event = {
        .events = (what & CURL_POLL_IN ? (uint32_t)EPOLLIN : 0) |
                  (what & CURL_POLL_OUT ? (uint32_t)EPOLLOUT : 0),
        .data.fd = fd};

    if (what == CURL_POLL_REMOVE) {
        epoll_ctl(client->epoll_fd, EPOLL_CTL_DEL, fd, &event);
        return 0;
    }
    vnxi_curl.multi_assign(client->multi, fd, client);
    return epoll_ctl(client->epoll_fd,
                     known != NULL ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, fd,
                     &event);
}

static int
on_timer(CURLM *multi, long timeout_ms, void *arg)
{
    (void)multi;
    http_client_t *client = arg;

    client->timer = timeout_ms < 0
                        ? UINT64_MAX
                        : vnxi_clock_ns() + (uint64_t)timeout_ms * MS;
    return 0;
}

/* -- Connecting ----------------------------------------------------------- */

static bool
environment_has(const char *name)
{
    const char *value = getenv(name);
    return value != NULL && value[0] != '\0';
}

/* May libcurl use a proxy?  Reads the environment as libcurl does.  No proxy
 * gets a token that is not encrypted. */
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
no_multi(http_client_t *client)
{
    return vnxi_request_failed(client->request, VNX_ERR_BACKEND,
                               "preparing to ask", client->request->host,
                               errno != 0 ? vnxi_errno(errno)
                                          : "libcurl refused");
}

/* Create the multi handle and the transfer; `found` NULL: libcurl needs no
 * addresses. */
static vnx_status_t
open_multi(http_client_t *client, const vnxi_addresses_t *found)
{
    vnx_status_t status =
        vnxi_http_easy_open(&client->easy, client->request, found);
    if (status != VNX_OK) {
        return status;
    }
    errno = 0;
    client->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    client->multi = client->epoll_fd >= 0 ? vnxi_curl.multi_init() : NULL;
    if (client->multi == NULL) {
        return no_multi(client);
    }
    vnxi_curl.multi_setopt(client->multi, CURLMOPT_SOCKETFUNCTION, on_watch);
    vnxi_curl.multi_setopt(client->multi, CURLMOPT_SOCKETDATA, client);
    vnxi_curl.multi_setopt(client->multi, CURLMOPT_TIMERFUNCTION, on_timer);
    vnxi_curl.multi_setopt(client->multi, CURLMOPT_TIMERDATA, client);
    return vnxi_curl.multi_add_handle(client->multi, client->easy.curl) ==
                   CURLM_OK
               ? VNX_OK
               : no_multi(client);
}

static bool
is_numeric(const char *host)
{
    vnxi_addresses_t found;
    return vnxi_address_parse(host, &found);
}

static vnx_status_t
begin(http_client_t *client)
{
    vnxi_request_t *request = client->request;
    vnxi_addresses_t found;
    const char *reason = "";
    vnx_status_t status;

    if (client->lookup == NULL &&
        (is_numeric(request->host) || may_have_proxy(request->options))) {
        return open_multi(client, NULL);
    }
    status = client->lookup == NULL
                 ? vnxi_lookup_begin(request->host, request->port, &found,
                                     &client->lookup, &reason)
                 : vnxi_lookup_step(client->lookup, &found, &reason);
    if (status == VNX_IN_PROG) {
        client->request->fd = vnxi_lookup_fd(client->lookup);
        client->request->events = POLLIN;
        return VNX_IN_PROG;
    }
    return status == VNX_OK ? open_multi(client, &found)
                            : vnxi_request_failed(request, status, "resolving",
                                                  request->host, reason);
}

/* -- Driving -------------------------------------------------------------- */

/* Let libcurl do what it can now; false: nothing is left to do now. */
static bool
drive(http_client_t *client)
{
    struct epoll_event events[EVENTS];
    int running, count;

    if (vnxi_clock_ns() >= client->timer) {
        client->timer = UINT64_MAX;
        vnxi_curl.multi_socket_action(client->multi, CURL_SOCKET_TIMEOUT, 0,
                                      &running);
        return true;
    }
    count = epoll_wait(client->epoll_fd, events, EVENTS, 0);
    for (int i = 0; i < count; i++) {
        uint32_t what = events[i].events;
        vnxi_curl.multi_socket_action(
            client->multi, events[i].data.fd,
            (what & EPOLLIN ? CURL_CSELECT_IN : 0) |
                (what & EPOLLOUT ? CURL_CSELECT_OUT : 0) |
                (what & (EPOLLERR | EPOLLHUP) ? CURL_CSELECT_ERR : 0),
            &running);
    }
    return count > 0;
}

/* Has the transfer ended?  *code_p is its result. */
static bool
has_ended(http_client_t *client, CURLcode *code_p)
{
    CURLMsg *message;
    int left;

    while ((message = vnxi_curl.multi_info_read(client->multi, &left)) !=
           NULL) {
        if (message->msg == CURLMSG_DONE) {
            *code_p = message->data.result;
            return true;
        }
    }
    return false;
}

static vnx_status_t
transfer(http_client_t *client)
{
    CURLcode code;

    for (int i = 0; i < ROUNDS_MAX && drive(client); i++) {
        if (has_ended(client, &code)) {
            return vnxi_http_easy_take(&client->easy, code);
        }
    }
    client->request->fd = client->epoll_fd;
    client->request->events = POLLIN;
    client->request->wake = client->timer;
    return VNX_IN_PROG;
}

/* -- The transport's functions -------------------------------------------- */

static vnx_status_t
http_begin(vnxi_request_t *request)
{
    const char *secret = request->options->secret;
    vnx_error_t *error = &request->answer.error;

    vnx_status_t status = vnxi_curl_load(VNXI_OP_REQUEST, error);
    if (status != VNX_OK) {
        return status;
    }
    if (secret != NULL && !vnxi_http_is_token(secret)) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, VNXI_OP_REQUEST,
                              VNXI_HTTP_NO_TOKEN);
    }
    http_client_t *client = request->client = calloc(1, sizeof *client);
    if (client == NULL) {
        return vnxi_request_no_memory(request, sizeof *client);
    }
    client->request = client->easy.request = request;
    client->epoll_fd = -1;
    client->timer = UINT64_MAX;
    return VNX_OK;
}

static vnx_status_t
http_step(vnxi_request_t *request)
{
    http_client_t *client = request->client;
    vnx_status_t status = VNX_OK;

    request->wake = UINT64_MAX;
    if (vnxi_clock_ns() >= request->deadline) {
        return vnxi_http_easy_failed(&client->easy, VNX_ERR_TIMEOUT,
                                     "timed out");
    }
    if (client->multi == NULL) {
        status = begin(client);
    }
    return status == VNX_OK ? transfer(client) : status;
}

static void
http_end(vnxi_request_t *request)
{
    http_client_t *client = request->client;

    vnxi_lookup_end(client->lookup);
    if (client->multi != NULL) {
        vnxi_curl.multi_remove_handle(client->multi, client->easy.curl);
    }
    vnxi_http_easy_close(&client->easy);
    if (client->multi != NULL) {
        vnxi_curl.multi_cleanup(client->multi);
    }
    if (client->epoll_fd >= 0) {
        close(client->epoll_fd);
    }
    free(client);
}

const vnxi_transport_t vnxi_transport_http = {
    .name = "HTTP",
    .fds = 5, /* one or two sockets, our epoll set, a pair of libcurl */
    .listen = vnxi_http_listen,
    .stop = vnxi_server_stop,
    .begin = http_begin,
    .step = http_step,
    .end = http_end,
};
