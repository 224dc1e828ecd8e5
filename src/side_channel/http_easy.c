/*
 * Design notes.  Nothing that the other side sends is believed: the body grows
 * with what came, up to max_frame, whatever length was announced; a reply that
 * does not tell its end is refused, since a cut one could not be told from a
 * whole one; redirects are not followed; no text of a reply is shown to
 * anybody, since it may repeat the token.
 *
 * libcurl trusts the system's authorities beside those of a file unless it is
 * told not to.
 */
#include "side_channel/http_easy.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

#include "base/error.h"
#include "side_channel/http_wire.h"

#define CHUNK (64u << 10)
#define EYEBALLS_MS 250L
#define REASON_MAX 256

/* -- What comes ----------------------------------------------------------- */

static bool
stop(vnxi_http_easy_t *easy, vnx_status_t why)
{
    easy->stopped = why;
    return false;
}

static curl_off_t
announced(const vnxi_http_easy_t *easy)
{
    curl_off_t length = -1;
    curl_easy_getinfo(easy->curl, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T, &length);
    return length;
}

/* Room for `more` bytes: by doubling, but not beyond what was announced. */
static bool
body_reserve(vnxi_http_easy_t *easy, size_t more)
{
    size_t need = easy->len + more, capacity = easy->capacity;
    curl_off_t length = announced(easy);

    if (need <= capacity && easy->body != NULL) {
        return true;
    }
    capacity = capacity == 0 ? CHUNK : 2 * capacity;
    if (length >= 0 && (uint64_t)length < capacity) {
        capacity = (size_t)length;
    }
    if (capacity < need) {
        capacity = need;
    }
    unsigned char *body = realloc(easy->body, capacity > 0 ? capacity : 1);
    if (body == NULL) {
        return stop(easy, VNX_ERR_NO_MEMORY);
    }
    easy->body = body;
    easy->capacity = capacity;
    return true;
}

static bool
body_add(vnxi_http_easy_t *easy, const void *data, size_t len)
{
    const vnxi_request_params_t *params = easy->params;

    if (vnxi_clock_ns() >= params->deadline) {
        return stop(easy, VNX_ERR_TIMEOUT); /* who floods us meets it too */
    }
    if (len > params->options->max_frame - easy->len) {
        return stop(easy, VNX_ERR_MISMATCH);
    }
    if (!body_reserve(easy, len)) {
        return false;
    }
    memcpy(easy->body + easy->len, data, len);
    easy->len += len;
    return true;
}

static size_t
on_body(char *data, size_t size, size_t count, void *arg)
{
    vnxi_http_easy_t *easy = arg;
    return body_add(easy, data, size * count) ? size * count : 0;
}

static size_t
on_header(char *data, size_t size, size_t count, void *arg)
{
    static const char name[] = "transfer-encoding:";
    vnxi_http_easy_t *easy = arg;
    size_t len = size * count;
    const size_t name_len = sizeof name - 1;

    if (len >= 5 && memcmp(data, "HTTP/", 5) == 0) {
        easy->is_chunked = false; /* another reply, after a 100 or a proxy's */
    } else if (len > name_len && strncasecmp(data, name, name_len) == 0) {
        easy->is_chunked = memmem(data, len, "chunked", 7) != NULL;
    }
    return len;
}

/* As libcurl does it, but never inherited by a child, and noted. */
static curl_socket_t
on_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *addr)
{
    (void)purpose;
    vnxi_http_easy_t *easy = arg;
    vnxi_address_t address = {.len = addr->addrlen};

    if (addr->addrlen <= sizeof address.addr) {
        memcpy(&address.addr, &addr->addr, addr->addrlen);
        vnxi_address_text(&address, easy->address);
    }
    easy->fd =
        socket(addr->family, addr->socktype | SOCK_NONBLOCK | SOCK_CLOEXEC,
               addr->protocol);
    return easy->fd;
}

/* -- What is told --------------------------------------------------------- */

/* IPv6 addresses stand in brackets, with their zone's '%' escaped. */
static void
host_text(const char *host, const char *percent, char *text, size_t size)
{
    const char *zone = strchr(host, '%');
    int len = zone != NULL ? (int)(zone - host) : (int)strlen(host);

    if (strchr(host, ':') == NULL) {
        snprintf(text, size, "%s", host);
    } else {
        snprintf(text, size, "[%.*s%s%s]", len, host,
                 zone != NULL ? percent : "", zone != NULL ? zone + 1 : "");
    }
}

static bool
make_url(vnxi_http_easy_t *easy)
{
    const vnxi_request_params_t *params = easy->params;
    const vnx_side_channel_options_t *options = params->options;
    const char *name = options->tls && options->tls_name != NULL
                           ? options->tls_name
                           : params->host;
    char host[VNX_SIDE_CHANNEL_ADDRESS_MAX + 8], port[8];
    char path[VNXI_HTTP_PATH_MAX];

    host_text(name, "%25", host, sizeof host);
    snprintf(port, sizeof port, "%d", params->port);
    vnxi_http_path(params->key, params->key_len, path);
    return curl_url_set(easy->url, CURLUPART_SCHEME,
                        options->tls ? "https" : "http", 0) == CURLUE_OK &&
           curl_url_set(easy->url, CURLUPART_HOST, host, 0) == CURLUE_OK &&
           curl_url_set(easy->url, CURLUPART_PORT, port, 0) == CURLUE_OK &&
           curl_url_set(easy->url, CURLUPART_PATH, path, 0) == CURLUE_OK;
}

static bool
list_add(struct curl_slist **list, const char *text)
{
    struct curl_slist *more = curl_slist_append(*list, text);
    if (more != NULL) {
        *list = more;
    }
    return more != NULL;
}

static bool
make_headers(vnxi_http_easy_t *easy)
{
    static const char format[] = "Authorization: Bearer %s";
    const char *secret = easy->params->options->secret;

    if (!list_add(&easy->headers, "Connection: close") || secret == NULL) {
        return easy->headers != NULL;
    }
    size_t size = sizeof format + strlen(secret);
    char *line = malloc(size);
    if (line == NULL) {
        return false;
    }
    snprintf(line, size, format, secret);
    bool done = list_add(&easy->headers, line);
    explicit_bzero(line, size);
    free(line);
    return done;
}

/* "host:port:address,address", the addresses that were found. */
static bool
make_addresses(vnxi_http_easy_t *easy, const vnxi_addresses_t *found)
{
    const vnxi_request_params_t *params = easy->params;
    size_t size =
        strlen(params->host) + 16 + found->count * (VNXI_ADDRESS_TEXT + 4);
    char *line = malloc(size), text[VNXI_ADDRESS_TEXT];

    if (line == NULL) {
        return false;
    }
    size_t len =
        (size_t)snprintf(line, size, "%s:%d:", params->host, params->port);
    for (size_t i = 0; i < found->count; i++) {
        vnxi_address_text(&found->list[i], text);
        line[len] = ',';
        len += i > 0;
        host_text(text, "%", line + len, size - len);
        len += strlen(line + len);
    }
    bool done = list_add(&easy->addresses, line);
    free(line);
    return done;
}

/* Where the certificate is for another name: connect to the host for it. */
static bool
make_target(vnxi_http_easy_t *easy)
{
    const vnxi_request_params_t *params = easy->params;
    char host[VNX_SIDE_CHANNEL_ADDRESS_MAX + 8], line[sizeof host + 16];

    if (!params->options->tls || params->options->tls_name == NULL) {
        return true;
    }
    host_text(params->host, "%25", host, sizeof host);
    snprintf(line, sizeof line, "::%s:%d", host, params->port);
    return list_add(&easy->target, line);
}

/* Where an option is not known to the libcurl that runs, it has no such
 * danger either, but for those that are checked. */
static bool
tell(vnxi_http_easy_t *easy)
{
    CURL *curl = easy->curl;
    const vnx_side_channel_options_t *options = easy->params->options;

    curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, easy->text);
    curl_easy_setopt(curl, CURLOPT_PRIVATE, easy);
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, easy->headers);
    curl_easy_setopt(curl, CURLOPT_RESOLVE, easy->addresses);
    curl_easy_setopt(curl, CURLOPT_CONNECT_TO, easy->target);
    curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, easy);
    curl_easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header);
    curl_easy_setopt(curl, CURLOPT_HEADERDATA, easy);
    curl_easy_setopt(curl, CURLOPT_OPENSOCKETFUNCTION, on_socket);
    curl_easy_setopt(curl, CURLOPT_OPENSOCKETDATA, easy);
    curl_easy_setopt(curl, CURLOPT_TCP_NODELAY, 1L);
    curl_easy_setopt(curl, CURLOPT_HAPPY_EYEBALLS_TIMEOUT_MS, EYEBALLS_MS);
    curl_easy_setopt(curl, CURLOPT_USERAGENT, "vnx/" VNX_VERSION);
    curl_easy_setopt(curl, CURLOPT_FAILONERROR, 1L); /* no such bodies */
    curl_easy_setopt(curl, CURLOPT_MAXFILESIZE_LARGE,
                     (curl_off_t)options->max_frame);
#if LIBCURL_VERSION_NUM >= 0x075700
    curl_easy_setopt(curl, CURLOPT_QUICK_EXIT, 1L); /* waits for no look-up */
#endif
    if (options->tls_ca != NULL) {
        curl_easy_setopt(curl, CURLOPT_CAINFO, options->tls_ca);
        curl_easy_setopt(curl, CURLOPT_CAPATH, NULL);
    }
    return curl_easy_setopt(curl, CURLOPT_CURLU, easy->url) == CURLE_OK &&
           curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L) == CURLE_OK &&
           curl_easy_setopt(curl, CURLOPT_HTTP_VERSION,
                            (long)CURL_HTTP_VERSION_1_1) == CURLE_OK &&
           (!options->tls ||
            curl_easy_setopt(curl, CURLOPT_SSLVERSION,
                             (long)CURL_SSLVERSION_TLSv1_2) == CURLE_OK);
}

vnx_status_t
vnxi_http_easy_open(vnxi_http_easy_t *easy,
                    const vnxi_request_params_t *params,
                    const vnxi_addresses_t *found, vnx_error_t *error)
{
    easy->params = params;
    easy->curl = curl_easy_init();
    easy->url = curl_url();
    if (easy->curl == NULL || easy->url == NULL || !make_headers(easy) ||
        !make_target(easy) ||
        (found != NULL && !make_addresses(easy, found))) {
        return vnxi_error_no_memory(error, VNXI_OP_REQUEST, sizeof *easy);
    }
    if (!make_url(easy)) {
        return vnxi_http_easy_failed(easy, VNX_ERR_INVALID_PARAM,
                                     "that is no host of a URL", error);
    }
    return tell(easy)
               ? VNX_OK
               : vnxi_http_easy_failed(easy, VNX_ERR_NOT_SUPPORTED,
                                       "libcurl lacks HTTP or TLS", error);
}

static void
free_headers(struct curl_slist *headers)
{
    for (struct curl_slist *one = headers; one != NULL; one = one->next) {
        explicit_bzero(one->data, strlen(one->data)); /* it has the token */
    }
    curl_slist_free_all(headers);
}

void
vnxi_http_easy_close(vnxi_http_easy_t *easy)
{
    curl_easy_cleanup(easy->curl);
    curl_url_cleanup(easy->url);
    free_headers(easy->headers);
    curl_slist_free_all(easy->addresses);
    curl_slist_free_all(easy->target);
    free(easy->body);
    *easy = (vnxi_http_easy_t){0};
}

/* -- What it came to ------------------------------------------------------ */

static bool
has_happened(const vnxi_http_easy_t *easy, CURLINFO when)
{
    curl_off_t us = 0;
    return easy->curl != NULL &&
           curl_easy_getinfo(easy->curl, when, &us) == CURLE_OK && us > 0;
}

/* libcurl takes the time of a connection when TLS is up, too. */
static bool
is_connected(const vnxi_http_easy_t *easy)
{
    struct sockaddr_storage peer;
    socklen_t len = sizeof peer;

    if (has_happened(easy, CURLINFO_CONNECT_TIME_T)) {
        return true;
    }
    return easy->code == CURLE_OK
               ? getpeername(easy->fd, (void *)&peer, &len) == 0
               : easy->code != CURLE_COULDNT_CONNECT;
}

static const char *
phase(const vnxi_http_easy_t *easy)
{
    if (easy->address[0] == '\0') {
        return "resolving";
    }
    if (!is_connected(easy)) {
        return "connecting to";
    }
    if (easy->params->options->tls &&
        !has_happened(easy, CURLINFO_APPCONNECT_TIME_T)) {
        return "TLS with";
    }
    return "receiving from";
}

vnx_status_t
vnxi_http_easy_failed(const vnxi_http_easy_t *easy, vnx_status_t status,
                      const char *reason, vnx_error_t *error)
{
    return vnxi_exchange_failed(easy->params, status, phase(easy),
                                easy->address[0] != '\0' ? easy->address
                                                         : easy->params->host,
                                reason, error);
}

static vnx_status_t
failed_too_long(const vnxi_http_easy_t *easy, vnx_error_t *error)
{
    char reason[REASON_MAX];

    snprintf(reason, sizeof reason,
             "the reply is above max_frame (%" PRIu32 ")",
             easy->params->options->max_frame);
    return vnxi_http_easy_failed(easy, VNX_ERR_MISMATCH, reason, error);
}

/* A status other than 200. */
static vnx_status_t
failed_status(const vnxi_http_easy_t *easy, long code, vnx_error_t *error)
{
    bool has_secret = easy->params->options->secret != NULL;
    char reason[REASON_MAX];

    switch (code) {
    case 401:
        return vnxi_http_easy_failed(
            easy, VNX_ERR_NOT_ALLOWED,
            has_secret ? "the shared secrets differ"
                       : "this listener wants a shared secret to be proved",
            error);
    case 403:
        return vnxi_http_easy_failed(
            easy, VNX_ERR_NOT_ALLOWED,
            has_secret ? "this listener has no shared secret to be proved"
                       : "it is forbidden (status 403)",
            error);
    case 404:
        return vnxi_exchange_no_key(easy->params, error);
    default:
        snprintf(reason, sizeof reason,
                 code >= 300 && code < 400
                     ? "status %ld: redirects are not followed"
                     : "status %ld",
                 code);
        return vnxi_http_easy_failed(
            easy,
            code == 429 || code >= 500 ? VNX_ERR_BACKEND : VNX_ERR_MISMATCH,
            reason, error);
    }
}

static vnx_status_t
failed_early(const vnxi_http_easy_t *easy, vnx_error_t *error)
{
    curl_off_t length = announced(easy);
    char reason[REASON_MAX];

    if (length >= 0) {
        snprintf(reason, sizeof reason,
                 "the connection was closed after %zu of %" PRId64 " bytes",
                 easy->len, (int64_t)length);
    } else {
        snprintf(reason, sizeof reason,
                 "the connection was closed in the reply, after %zu bytes",
                 easy->len);
    }
    return vnxi_http_easy_failed(easy, VNX_ERR_BACKEND, reason, error);
}

/* libcurl's words, or the system's where they are more to the point. */
static const char *
words(const vnxi_http_easy_t *easy, CURLcode code)
{
    long err = 0;

    curl_easy_getinfo(easy->curl, CURLINFO_OS_ERRNO, &err);
    if (err != 0 && (code == CURLE_COULDNT_CONNECT ||
                     code == CURLE_RECV_ERROR || code == CURLE_SEND_ERROR)) {
        return strerror((int)err);
    }
    return easy->text[0] != '\0' ? easy->text : curl_easy_strerror(code);
}

/* OpenSSL's words for bytes that are no TLS. */
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

static vnx_status_t
failed_tls(const vnxi_http_easy_t *easy, CURLcode code, vnx_error_t *error)
{
    const char *text = words(easy, code), *ca = easy->params->options->tls_ca;
    char reason[REASON_MAX + CURL_ERROR_SIZE];

    if (code == CURLE_SSL_CACERT_BADFILE) {
        snprintf(reason, sizeof reason, "tls_ca '%.200s': %s",
                 ca != NULL ? ca : "", text);
        return vnxi_http_easy_failed(easy, VNX_ERR_INVALID_PARAM, reason,
                                     error);
    }
    if (code == CURLE_PEER_FAILED_VERIFICATION) {
        snprintf(reason, sizeof reason, "the certificate is not trusted: %s",
                 text);
        return vnxi_http_easy_failed(easy, VNX_ERR_NOT_ALLOWED, reason, error);
    }
    if (is_not_tls(text)) {
        return vnxi_http_easy_failed(easy, VNX_ERR_MISMATCH,
                                     "the other end speaks no TLS", error);
    }
    snprintf(reason, sizeof reason, "TLS failed: %s", text);
    return vnxi_http_easy_failed(easy, VNX_ERR_BACKEND, reason, error);
}

static vnx_status_t
failed_stopped(const vnxi_http_easy_t *easy, vnx_error_t *error)
{
    switch (easy->stopped) {
    case VNX_ERR_TIMEOUT:
        return vnxi_http_easy_failed(easy, VNX_ERR_TIMEOUT, "timed out",
                                     error);
    case VNX_ERR_NO_MEMORY:
        return vnxi_http_easy_failed(easy, VNX_ERR_NO_MEMORY,
                                     "no memory for the reply", error);
    default:
        return failed_too_long(easy, error);
    }
}

static vnx_status_t
failed_code(const vnxi_http_easy_t *easy, CURLcode code, vnx_error_t *error)
{
    char reason[REASON_MAX + CURL_ERROR_SIZE];

    switch (code) {
    case CURLE_COULDNT_RESOLVE_HOST:
        return vnxi_http_easy_failed(easy, VNX_ERR_NOT_FOUND,
                                     words(easy, code), error);
    case CURLE_FILESIZE_EXCEEDED:
        return failed_too_long(easy, error);
    case CURLE_GOT_NOTHING:
        return vnxi_http_easy_failed(easy, VNX_ERR_BACKEND,
                                     "the connection was closed without a "
                                     "reply",
                                     error);
    case CURLE_PARTIAL_FILE:
        return failed_early(easy, error);
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CONNECT_ERROR:
        return failed_tls(easy, code, error);
    case CURLE_OUT_OF_MEMORY:
        return vnxi_http_easy_failed(easy, VNX_ERR_NO_MEMORY,
                                     "no memory for the request", error);
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_WEIRD_SERVER_REPLY:
    case CURLE_BAD_CONTENT_ENCODING:
        snprintf(reason, sizeof reason, "no reply of this protocol: %s",
                 words(easy, code));
        return vnxi_http_easy_failed(easy, VNX_ERR_MISMATCH, reason, error);
    default:
        return vnxi_http_easy_failed(easy, VNX_ERR_BACKEND, words(easy, code),
                                     error);
    }
}

vnx_status_t
vnxi_http_easy_take(vnxi_http_easy_t *easy, CURLcode code, void **data_p,
                    size_t *len_p, vnx_error_t *error)
{
    long status = 0;

    easy->code = code;
    curl_easy_getinfo(easy->curl, CURLINFO_RESPONSE_CODE, &status);
    if (easy->stopped != VNX_OK) {
        return failed_stopped(easy, error);
    }
    if (code != CURLE_OK && code != CURLE_HTTP_RETURNED_ERROR) {
        return failed_code(easy, code, error);
    }
    if (status != 200) {
        return failed_status(easy, status, error);
    }
    if (announced(easy) < 0 && !easy->is_chunked) {
        return vnxi_http_easy_failed(
            easy, VNX_ERR_MISMATCH,
            "a reply without a length: its end could not be told from a cut",
            error);
    }
    if (!body_reserve(easy, 0)) { /* not NULL, even when empty */
        return failed_stopped(easy, error);
    }
    *data_p = easy->body;
    *len_p = easy->len;
    easy->body = NULL;
    return VNX_OK;
}
