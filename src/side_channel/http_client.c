/*
 * The transport HTTP: GET /metadata, /metadata/{key} and /health over
 * HTTP/1.1, with libevent's server and libcurl.  docs/wire.md specifies the
 * bytes.
 *
 * Design notes.  A try looks the host up and connects as the other transports
 * do (client_conn.c), because libcurl's own look-up does not respect a
 * deadline.  It hands the connection to one libcurl transfer, which it drives
 * with the multi interface, which never waits.  An epoll set has the sockets
 * that libcurl asks to be watched; the request waits for that set.
 *
 * If the environment names a proxy, libcurl connects by itself, and the proxy
 * or libcurl looks the host up.
 *
 * The data of the peer is not trusted.  The body grows with the bytes that
 * arrive, up to max_frame, whatever length was announced.  A reply that does
 * not mark its end is refused, because a truncated one would look complete.
 * Redirects are not followed.  No text of a reply is shown to anybody, because
 * it may repeat the token.  Failures get the statuses and the words that the
 * other transports use, or libcurl's text if that says more.
 *
 * The thread belongs to the program.  libcurl is told to use no signals,
 * because it would change their handlers.  Then older versions of it (before
 * 7.87) do not avoid SIGPIPE either, so it is blocked while libcurl runs.
 *
 * libcurl trusts the system's authorities in addition to those of a file,
 * unless it is told not to.
 */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>
#include <vnx/version.h>

#include "base/error.h"
#include "base/sigpipe.h"
#include "side_channel/client_conn.h"
#include "side_channel/curl.h"
#include "side_channel/http_wire.h"
#include "side_channel/server.h"

#define EVENTS 8
#define ROUNDS_MAX 16  /* per step; other requests have work too */
#define STEP_MAX_NS MS /* likewise; one call of libcurl may exceed it */
#define MS UINT64_C(1000000)
#define HOST_MAX (VNX_SIDE_CHANNEL_ADDRESS_MAX + 8) /* in a URL */

/* A try: one transfer of libcurl. */
typedef struct http_client {
    vnxi_client_conn_t conn; /* its stream has the socket until libcurl takes
                                it; in VNXI_CLIENT_DIAL if libcurl connects by
                                itself */
    int epoll_fd;            /* owned, as all up to `target` */
    uint64_t timer;          /* when to call libcurl; UINT64_MAX: never */
    CURLM *multi;            /* NULL: not connected yet */
    CURL *curl;
    CURLU *url;
    struct curl_slist *headers, *target;
    char text[CURL_ERROR_SIZE]; /* libcurl's text for a failure */
    bool is_chunked;            /* the reply has chunked encoding, which shows
                                   its end */
    vnx_status_t stopped;       /* why we aborted it; VNX_OK: we did not */
    vnxi_body_t body;
} http_client_t;

/* -- Results -------------------------------------------------------------- */

static bool
has_happened(const http_client_t *client, CURLINFO when)
{
    curl_off_t us = 0;
    return client->curl != NULL &&
           vnxi_curl.easy_getinfo(client->curl, when, &us) == CURLE_OK &&
           us > 0;
}

/* Set the phase of the request, for records. */
static void
set_phase(http_client_t *client)
{
    vnxi_request_t *request = client->conn.request;

    request->whom = client->conn.dial.whom;
    if (client->conn.stage == VNXI_CLIENT_DIAL &&
        !has_happened(client, CURLINFO_CONNECT_TIME_T)) {
        request->phase = request->whom == request->host
                             ? "resolving"
                             : VNXI_PHASE_CONNECTING;
    } else {
        request->phase =
            request->options->tls &&
                    !has_happened(client, CURLINFO_APPCONNECT_TIME_T)
                ? "TLS with"
                : "receiving from";
    }
}

/* Return the length that the reply announced; -1: none. */
static curl_off_t
reply_length(const http_client_t *client)
{
    curl_off_t length = -1;
    vnxi_curl.easy_getinfo(client->curl, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T,
                           &length);
    return length;
}

static vnx_status_t
failed_too_long(vnxi_request_t *request)
{
    return vnxi_request_failed(request, VNX_ERR_MISMATCH,
                               "the reply is above max_frame (%" PRIu32 ")",
                               request->options->max_frame);
}

/* We aborted the transfer. */
static vnx_status_t
failed_stopped(const http_client_t *client)
{
    switch (client->stopped) {
    case VNX_ERR_TIMEOUT:
        return vnxi_request_failed(client->conn.request, VNX_ERR_TIMEOUT,
                                   "timed out");
    case VNX_ERR_NO_MEMORY:
        return vnxi_request_no_memory(client->conn.request);
    default:
        return failed_too_long(client->conn.request);
    }
}

/* The reply has a status other than 200. */
static vnx_status_t
failed_status(vnxi_request_t *request, long code)
{
    bool has_secret = request->options->secret != NULL;

    switch (code) {
    case 401:
        return vnxi_request_failed(
            request, VNX_ERR_NOT_ALLOWED,
            has_secret ? "the shared secrets differ"
                       : "this listener requires a shared secret");
    case 403:
        return vnxi_request_failed(
            request, VNX_ERR_NOT_ALLOWED,
            has_secret ? "this listener has no shared secret, or does not "
                         "take it without TLS"
                       : "it is forbidden (status 403)");
    case 404:
        return vnxi_request_no_key(request);
    default:
        return vnxi_request_failed(
            request,
            code == 429 || code >= 500 ? VNX_ERR_BACKEND : VNX_ERR_MISMATCH,
            "status %ld%s", code,
            code >= 300 && code < 400 ? ": redirects are not followed" : "");
    }
}

static vnx_status_t
failed_early(const http_client_t *client)
{
    curl_off_t length = reply_length(client);

    return length >= 0
               ? vnxi_request_failed(
                     client->conn.request, VNX_ERR_BACKEND,
                     "the connection was closed after %zu of %" PRId64
                     " bytes",
                     client->body.len, (int64_t)length)
               : vnxi_request_failed(
                     client->conn.request, VNX_ERR_BACKEND,
                     "the connection was closed in the reply, after %zu bytes",
                     client->body.len);
}

/* Return libcurl's text, or the system's if that is more precise. */
static const char *
words(const http_client_t *client, CURLcode code)
{
    long err = 0;

    vnxi_curl.easy_getinfo(client->curl, CURLINFO_OS_ERRNO, &err);
    if (err != 0 && (code == CURLE_COULDNT_CONNECT ||
                     code == CURLE_RECV_ERROR || code == CURLE_SEND_ERROR)) {
        return strerror((int)err);
    }
    return client->text[0] != '\0' ? client->text
                                   : vnxi_curl.easy_strerror(code);
}

/* Does the text of OpenSSL say that the bytes are not TLS? */
static bool
is_not_tls(const char *text)
{
    static const char *const signs[] = {
        "wrong version number", "http request", "packet length too long",
        "record too small", "unexpected message"};

    for (size_t i = 0; i < sizeof signs / sizeof signs[0]; i++) {
        if (strstr(text, signs[i]) != NULL) {
            return true;
        }
    }
    return false;
}

/* The transfer failed with `code`. */
static vnx_status_t
failed_code(const http_client_t *client, CURLcode code)
{
    vnxi_request_t *request = client->conn.request;
    const char *text = words(client, code), *ca = request->options->tls_ca;

    switch (code) {
    case CURLE_COULDNT_RESOLVE_HOST:
        return vnxi_request_failed(request, VNX_ERR_NOT_FOUND, "%s", text);
    case CURLE_FILESIZE_EXCEEDED:
        return failed_too_long(request);
    case CURLE_GOT_NOTHING:
        return vnxi_request_failed(
            request, VNX_ERR_BACKEND,
            "the connection was closed without a reply (perhaps by a listener "
            "of another kind)");
    case CURLE_PARTIAL_FILE:
        return failed_early(client);
    case CURLE_SSL_CACERT_BADFILE:
        return vnxi_request_failed(request, VNX_ERR_INVALID_PARAM,
                                   "tls_ca '%.200s': %s", ca != NULL ? ca : "",
                                   text);
    case CURLE_PEER_FAILED_VERIFICATION:
        return vnxi_request_failed(request, VNX_ERR_NOT_ALLOWED,
                                   "the certificate is not trusted: %s", text);
    case CURLE_SSL_CONNECT_ERROR:
        return is_not_tls(text)
                   ? vnxi_request_failed(request, VNX_ERR_MISMATCH,
                                         "the other end speaks no TLS")
                   : vnxi_request_failed(request, VNX_ERR_BACKEND,
                                         "TLS failed: %s", text);
    case CURLE_OUT_OF_MEMORY:
        return vnxi_request_failed(request, VNX_ERR_NO_MEMORY,
                                   "no memory for the request");
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_WEIRD_SERVER_REPLY:
    case CURLE_BAD_CONTENT_ENCODING:
        return vnxi_request_failed(request, VNX_ERR_MISMATCH,
                                   "not a valid reply of this protocol: %s",
                                   text);
    default:
        return vnxi_request_failed(request, VNX_ERR_BACKEND, "%s", text);
    }
}

/* Finish a transfer that libcurl ended with `code`: take the reply, or write
 * the record of the failure. */
static vnx_status_t
take(http_client_t *client, CURLcode code)
{
    vnxi_request_t *request = client->conn.request;
    long status = 0;

    set_phase(client);
    vnxi_curl.easy_getinfo(client->curl, CURLINFO_RESPONSE_CODE, &status);
    if (client->stopped != VNX_OK) {
        return failed_stopped(client);
    }
    if (code != CURLE_OK && code != CURLE_HTTP_RETURNED_ERROR) {
        return failed_code(client, code);
    }
    if (status != 200) {
        return failed_status(request, status);
    }
    if (reply_length(client) < 0 && !client->is_chunked) {
        return vnxi_request_failed(
            request, VNX_ERR_MISMATCH,
            "a reply without a length: if it was cut off, it would look "
            "complete");
    }
    return vnxi_request_answer(request, &client->body);
}

/* -- Receiving ------------------------------------------------------------ */

static size_t
stop(http_client_t *client, vnx_status_t why)
{
    client->stopped = why;
    return 0;
}

static size_t
on_body(char *data, size_t size, size_t count, void *arg)
{
    http_client_t *client = arg;
    const vnxi_request_t *request = client->conn.request;
    curl_off_t length = reply_length(client);
    size_t max = request->options->max_frame, len = size * count, room;

    if (vnxi_clock_ns() >= request->deadline) {
        return stop(client, VNX_ERR_TIMEOUT); /* also for a peer that floods */
    }
    if (length >= 0 && (uint64_t)length < max) {
        max = (size_t)length;
    }
    if (len > max - client->body.len) {
        return stop(client, VNX_ERR_MISMATCH);
    }
    for (size_t left = len; left > 0; left -= room) {
        void *space = vnxi_body_space(&client->body, max, &room);
        if (space == NULL) {
            return stop(client, VNX_ERR_NO_MEMORY);
        }
        room = room < left ? room : left;
        memcpy(space, data + len - left, room);
        client->body.len += room;
    }
    return len;
}

static size_t
on_header(char *data, size_t size, size_t count, void *arg)
{
    static const char name[] = "transfer-encoding:";
    http_client_t *client = arg;
    size_t len = size * count;
    const size_t name_len = sizeof name - 1;

    if (len >= 5 && memcmp(data, "HTTP/", 5) == 0) {
        client->is_chunked = false; /* a new reply, after a 100 or a proxy's */
    } else if (len > name_len && strncasecmp(data, name, name_len) == 0) {
        client->is_chunked = memmem(data, len, "chunked", 7) != NULL;
    }
    return len;
}

/* Hand our connection to libcurl; or open a socket as libcurl would, but
 * close-on-exec, and record its address. */
static curl_socket_t
on_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *addr)
{
    (void)purpose;
    http_client_t *client = arg;
    vnxi_dial_t *dial = &client->conn.dial;
    vnxi_address_t address = {.len = addr->addrlen};

    if (client->conn.stage != VNXI_CLIENT_DIAL) {
        int fd = client->conn.stream.fd;
        client->conn.stream.fd = -1;
        return fd;
    }
    if (addr->addrlen > sizeof address.addr) {
        return CURL_SOCKET_BAD;
    }
    memcpy(&address.addr, &addr->addr, addr->addrlen);
    vnxi_address_text(&address, dial->address);
    dial->whom = dial->address;
    return socket(addr->family, addr->socktype | SOCK_NONBLOCK | SOCK_CLOEXEC,
                  addr->protocol);
}

static int
on_socket_option(void *arg, curl_socket_t fd, curlsocktype purpose)
{
    (void)fd, (void)purpose;
    const http_client_t *client = arg;

    return client->conn.stage != VNXI_CLIENT_DIAL
               ? CURL_SOCKOPT_ALREADY_CONNECTED
               : CURL_SOCKOPT_OK;
}

/* -- Options of libcurl --------------------------------------------------- */

/* Write a host for a URL: IPv6 addresses in brackets, and the '%' of their
 * zone escaped. */
static void
host_text(const char *host, char *text, size_t size)
{
    const char *zone = strchr(host, '%');
    int len = zone != NULL ? (int)(zone - host) : (int)strlen(host);

    if (strchr(host, ':') == NULL) {
        snprintf(text, size, "%s", host);
    } else {
        snprintf(text, size, "[%.*s%s%s]", len, host,
                 zone != NULL ? "%25" : "", zone != NULL ? zone + 1 : "");
    }
}

static bool
make_url(http_client_t *client)
{
    const vnxi_request_t *request = client->conn.request;
    const vnx_side_channel_options_t *options = request->options;
    const char *name = options->tls && options->tls_name != NULL
                           ? options->tls_name
                           : request->host;
    char host[HOST_MAX], port[8];
    char path[VNXI_HTTP_PATH_MAX];

    host_text(name, host, sizeof host);
    snprintf(port, sizeof port, "%d", request->port);
    vnxi_http_path(request->key, request->key_len, path);
    return vnxi_curl.url_set(client->url, CURLUPART_SCHEME,
                             options->tls ? "https" : "http",
                             0) == CURLUE_OK &&
           vnxi_curl.url_set(client->url, CURLUPART_HOST, host, 0) ==
               CURLUE_OK &&
           vnxi_curl.url_set(client->url, CURLUPART_PORT, port, 0) ==
               CURLUE_OK &&
           vnxi_curl.url_set(client->url, CURLUPART_PATH, path, 0) ==
               CURLUE_OK;
}

/* Append a text in the form of printf().  It may have the token. */
__attribute__((format(printf, 2, 3))) static bool
list_add(struct curl_slist **list, const char *format, ...)
{
    struct curl_slist *more = NULL;
    char *text = NULL;
    va_list args;

    va_start(args, format);
    int len = vasprintf(&text, format, args);
    va_end(args);
    if (len >= 0) {
        more = vnxi_curl.slist_append(*list, text);
        explicit_bzero(text, (size_t)len);
        free(text);
    }
    if (more != NULL) {
        *list = more;
    }
    return more != NULL;
}

static bool
make_headers(http_client_t *client)
{
    const char *secret = client->conn.request->options->secret;

    return list_add(&client->headers, "Connection: close") &&
           (secret == NULL ||
            list_add(&client->headers, "Authorization: Bearer %s", secret));
}

/* Let libcurl connect to the address that we have connected to, whatever name
 * the URL has; or to the host, if the certificate is for another name. */
static bool
make_target(http_client_t *client)
{
    const vnxi_request_t *request = client->conn.request;
    const char *to = client->conn.dial.whom;
    char host[HOST_MAX];

    if (client->conn.stage == VNXI_CLIENT_DIAL &&
        (!request->options->tls || request->options->tls_name == NULL)) {
        return true;
    }
    host_text(to, host, sizeof host);
    return list_add(&client->target, "::%s:%d", host, request->port);
}

/* Set the options of libcurl.  An older libcurl may not know an option; then
 * it does not have the danger that the option averts either.  The options that
 * must work are checked. */
static bool
tell(http_client_t *client)
{
    CURL *curl = client->curl;
    const vnx_side_channel_options_t *options = client->conn.request->options;

    vnxi_curl.easy_setopt(curl, CURLOPT_ERRORBUFFER, client->text);
    vnxi_curl.easy_setopt(curl, CURLOPT_PRIVATE, client);
    vnxi_curl.easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    vnxi_curl.easy_setopt(curl, CURLOPT_HTTPHEADER, client->headers);
    vnxi_curl.easy_setopt(curl, CURLOPT_CONNECT_TO, client->target);
    vnxi_curl.easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body);
    vnxi_curl.easy_setopt(curl, CURLOPT_WRITEDATA, client);
    vnxi_curl.easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header);
    vnxi_curl.easy_setopt(curl, CURLOPT_HEADERDATA, client);
    vnxi_curl.easy_setopt(curl, CURLOPT_OPENSOCKETFUNCTION, on_socket);
    vnxi_curl.easy_setopt(curl, CURLOPT_OPENSOCKETDATA, client);
    vnxi_curl.easy_setopt(curl, CURLOPT_SOCKOPTFUNCTION, on_socket_option);
    vnxi_curl.easy_setopt(curl, CURLOPT_SOCKOPTDATA, client);
    vnxi_curl.easy_setopt(curl, CURLOPT_TCP_NODELAY, 1L);
    vnxi_curl.easy_setopt(curl, CURLOPT_USERAGENT, "vnx/" VNX_VERSION_STRING);
    vnxi_curl.easy_setopt(curl, CURLOPT_FAILONERROR, 1L); /* no error bodies */
    vnxi_curl.easy_setopt(curl, CURLOPT_MAXFILESIZE_LARGE,
                          (curl_off_t)options->max_frame);
#if LIBCURL_VERSION_NUM >= 0x075700
    vnxi_curl.easy_setopt(curl, CURLOPT_QUICK_EXIT,
                          1L); /* does not wait for look-ups */
#endif
    if (client->conn.stage != VNXI_CLIENT_DIAL) {
        vnxi_curl.easy_setopt(curl, CURLOPT_PROXY, "");
    }
    if (options->tls_ca != NULL) {
        vnxi_curl.easy_setopt(curl, CURLOPT_CAINFO, options->tls_ca);
        vnxi_curl.easy_setopt(curl, CURLOPT_CAPATH, NULL);
    }
    return vnxi_curl.easy_setopt(curl, CURLOPT_CURLU, client->url) ==
               CURLE_OK &&
           vnxi_curl.easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L) ==
               CURLE_OK &&
           vnxi_curl.easy_setopt(curl, CURLOPT_HTTP_VERSION,
                                 (long)CURL_HTTP_VERSION_1_1) == CURLE_OK &&
           (!options->tls ||
            vnxi_curl.easy_setopt(curl, CURLOPT_SSLVERSION,
                                  (long)CURL_SSLVERSION_TLSv1_2) == CURLE_OK);
}

/* Prepare a transfer. */
static vnx_status_t
open_transfer(http_client_t *client)
{
    vnxi_request_t *request = client->conn.request;

    client->curl = vnxi_curl.easy_init();
    client->url = vnxi_curl.url();
    if (client->curl == NULL || client->url == NULL || !make_headers(client) ||
        !make_target(client)) {
        return vnxi_error_no_memory(&request->answer.error, VNXI_OP_REQUEST,
                                    sizeof *client);
    }
    if (!make_url(client)) {
        return vnxi_request_failed(request, VNX_ERR_INVALID_PARAM,
                                   "not a valid host for a URL");
    }
    return tell(client) ? VNX_OK
                        : vnxi_request_failed(request, VNX_ERR_NOT_SUPPORTED,
                                              "libcurl lacks HTTP or TLS");
}

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

/* May libcurl use a proxy?  If so, libcurl connects by itself.  Reads the
 * environment as libcurl does.  No proxy gets a token that is not encrypted,
 * not even one on this machine, because it would forward the token. */
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

/* Create the multi handle and the transfer. */
static vnx_status_t
open_multi(http_client_t *client)
{
    vnx_status_t status = open_transfer(client);
    if (status != VNX_OK) {
        return status;
    }
    errno = 0;
    client->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    client->multi = client->epoll_fd >= 0 ? vnxi_curl.multi_init() : NULL;
    if (client->multi != NULL) {
        vnxi_curl.multi_setopt(client->multi, CURLMOPT_SOCKETFUNCTION,
                               on_watch);
        vnxi_curl.multi_setopt(client->multi, CURLMOPT_SOCKETDATA, client);
        vnxi_curl.multi_setopt(client->multi, CURLMOPT_TIMERFUNCTION,
                               on_timer);
        vnxi_curl.multi_setopt(client->multi, CURLMOPT_TIMERDATA, client);
        if (vnxi_curl.multi_add_handle(client->multi, client->curl) ==
            CURLM_OK) {
            return VNX_OK;
        }
    }
    client->conn.request->phase = "preparing to ask";
    return vnxi_request_failed(client->conn.request, VNX_ERR_BACKEND, "%s",
                               errno != 0 ? vnxi_errno(errno)
                                          : "libcurl refused");
}

static vnx_status_t
begin(http_client_t *client)
{
    vnx_status_t status = VNX_OK;

    if (!may_have_proxy(client->conn.request->options)) {
        status = vnxi_client_conn_dial(&client->conn);
    }
    return status == VNX_OK ? open_multi(client) : status;
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
    uint64_t start = vnxi_clock_ns();
    CURLcode code;

    for (int i = 0; i < ROUNDS_MAX && drive(client); i++) {
        if (has_ended(client, &code)) {
            return take(client, code);
        }
        if (vnxi_clock_ns() - start >= STEP_MAX_NS) {
            break;
        }
    }
    client->conn.request->fd = client->epoll_fd;
    client->conn.request->events = POLLIN;
    client->conn.request->wake = client->timer;
    return VNX_IN_PROG;
}

/* -- The transport's functions -------------------------------------------- */

/* libcurl leaves errors of OpenSSL to the program (net/tls.c). */
static void
forget_errors(void)
{
    if (VNXI_TLS_IS_THERE) {
        vnxi_tls_forget_errors();
    }
}

static vnx_status_t
http_check(const vnx_side_channel_options_t *options, const char **reason_p)
{
    *reason_p = "over HTTP the shared secret may neither contain control "
                "characters nor begin or end with a blank";
    return options->secret == NULL || vnxi_http_is_token(options->secret)
               ? VNX_OK
               : VNX_ERR_INVALID_PARAM;
}

static vnx_status_t
http_begin(vnxi_request_t *request)
{
    http_client_t *client = request->client;

    vnx_status_t status =
        vnxi_curl_load(VNXI_OP_REQUEST, &request->answer.error);
    if (status != VNX_OK) {
        return status;
    }
    vnxi_client_conn_init(&client->conn, request, NULL, NULL);
    if (request->options->secret != NULL && !request->options->tls) {
        client->conn.dial.only_loopback =
            "the shared secret is sent only over TLS or to a loopback address";
    }
    client->epoll_fd = -1;
    client->timer = UINT64_MAX;
    return VNX_OK;
}

static vnx_status_t
step(vnxi_request_t *request)
{
    http_client_t *client = request->client;
    vnx_status_t status = VNX_OK;

    request->wake = UINT64_MAX;
    if (vnxi_clock_ns() >= request->deadline) {
        if (client->multi != NULL) {
            set_phase(client);
        }
        return vnxi_request_failed(
            request, VNX_ERR_TIMEOUT, "%s",
            client->multi != NULL ? "timed out"
                                  : vnxi_dial_timed_out(&client->conn.dial));
    }
    if (client->multi == NULL) {
        status = begin(client);
    }
    return status == VNX_OK ? transfer(client) : status;
}

static vnx_status_t
http_step(vnxi_request_t *request)
{
    vnxi_sigpipe_t before;

    vnxi_sigpipe_block(&before);
    vnx_status_t status = step(request);
    vnxi_sigpipe_restore(&before);
    forget_errors();
    return status;
}

static void
end(vnxi_request_t *request)
{
    http_client_t *client = request->client;

    vnxi_client_conn_fini(&client->conn);
    if (client->multi != NULL) {
        vnxi_curl.multi_remove_handle(client->multi, client->curl);
    }
    vnxi_curl.easy_cleanup(client->curl);
    vnxi_curl.url_cleanup(client->url);
    for (struct curl_slist *one = client->headers; one != NULL;
         one = one->next) {
        explicit_bzero(one->data, strlen(one->data)); /* it has the token */
    }
    vnxi_curl.slist_free_all(client->headers);
    vnxi_curl.slist_free_all(client->target);
    vnxi_body_fini(&client->body);
    if (client->multi != NULL) {
        vnxi_curl.multi_cleanup(client->multi);
    }
    if (client->epoll_fd >= 0) {
        close(client->epoll_fd);
    }
}

static void
http_end(vnxi_request_t *request)
{
    vnxi_sigpipe_t before;

    vnxi_sigpipe_block(&before);
    end(request);
    vnxi_sigpipe_restore(&before);
    forget_errors();
}

const vnxi_transport_t vnxi_transport_http = {
    .fds = 5, /* sockets, an epoll set, a pair of libcurl */
    .client_size = sizeof(http_client_t),
    .protocol = &vnxi_http_protocol,
    .check = http_check,
    .begin = http_begin,
    .step = http_step,
    .end = http_end,
};
