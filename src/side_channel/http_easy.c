/*
 * Design notes.  The data of the peer is not trusted.  The body grows with the
 * bytes that arrive, up to max_frame, whatever length was announced.  A reply
 * that does not mark its end is refused, because a truncated one would look
 * complete.  Redirects are not followed.  No text of a reply is shown to
 * anybody, because it may repeat the token.
 *
 * libcurl trusts the system's authorities in addition to those of a file,
 * unless it is told not to.
 */
#include "side_channel/http_easy.h"

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

/* -- Receiving ------------------------------------------------------------ */

static bool
stop(vnxi_http_easy_t *easy, vnx_status_t why)
{
    easy->stopped = why;
    return false;
}

curl_off_t
vnxi_http_easy_length(const vnxi_http_easy_t *easy)
{
    curl_off_t length = -1;
    vnxi_curl.easy_getinfo(easy->curl, CURLINFO_CONTENT_LENGTH_DOWNLOAD_T,
                           &length);
    return length;
}

/* Make room for `more` bytes: by doubling, but not beyond the announced
 * length. */
static bool
body_reserve(vnxi_http_easy_t *easy, size_t more)
{
    size_t need = easy->len + more, capacity = easy->capacity;
    curl_off_t length = vnxi_http_easy_length(easy);

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
    const vnxi_request_t *request = easy->request;

    if (vnxi_clock_ns() >= request->deadline) {
        return stop(easy, VNX_ERR_TIMEOUT); /* also for a peer that floods */
    }
    if (len > request->options->max_frame - easy->len) {
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
        easy->is_chunked = false; /* a new reply, after a 100 or a proxy's */
    } else if (len > name_len && strncasecmp(data, name, name_len) == 0) {
        easy->is_chunked = memmem(data, len, "chunked", 7) != NULL;
    }
    return len;
}

/* May the token be sent to this address?  A bearer token is the secret itself,
 * so it goes unencrypted to this machine only. */
static bool
may_carry_token(const vnxi_http_easy_t *easy, const vnxi_address_t *to)
{
    const vnx_side_channel_options_t *options = easy->request->options;

    return options->secret == NULL || options->tls ||
           vnxi_address_is_loopback(to);
}

/* Open a socket as libcurl would, but close-on-exec, and record it. */
static curl_socket_t
on_socket(void *arg, curlsocktype purpose, struct curl_sockaddr *addr)
{
    (void)purpose;
    vnxi_http_easy_t *easy = arg;
    vnxi_address_t address = {.len = addr->addrlen};

    if (addr->addrlen > sizeof address.addr) {
        return CURL_SOCKET_BAD;
    }
    memcpy(&address.addr, &addr->addr, addr->addrlen);
    vnxi_address_text(&address, easy->address);
    if (!may_carry_token(easy, &address)) {
        easy->kept_back = true;
        return CURL_SOCKET_BAD;
    }
    easy->fd =
        socket(addr->family, addr->socktype | SOCK_NONBLOCK | SOCK_CLOEXEC,
               addr->protocol);
    return easy->fd;
}

/* -- Options of libcurl --------------------------------------------------- */

/* Write a host for a URL: IPv6 addresses in brackets, and the '%' of their
 * zone escaped. */
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
    const vnxi_request_t *request = easy->request;
    const vnx_side_channel_options_t *options = request->options;
    const char *name = options->tls && options->tls_name != NULL
                           ? options->tls_name
                           : request->host;
    char host[VNX_SIDE_CHANNEL_ADDRESS_MAX + 8], port[8];
    char path[VNXI_HTTP_PATH_MAX];

    host_text(name, "%25", host, sizeof host);
    snprintf(port, sizeof port, "%d", request->port);
    vnxi_http_path(request->key, request->key_len, path);
    return vnxi_curl.url_set(easy->url, CURLUPART_SCHEME,
                             options->tls ? "https" : "http",
                             0) == CURLUE_OK &&
           vnxi_curl.url_set(easy->url, CURLUPART_HOST, host, 0) ==
               CURLUE_OK &&
           vnxi_curl.url_set(easy->url, CURLUPART_PORT, port, 0) ==
               CURLUE_OK &&
           vnxi_curl.url_set(easy->url, CURLUPART_PATH, path, 0) == CURLUE_OK;
}

static bool
list_add(struct curl_slist **list, const char *text)
{
    struct curl_slist *more = vnxi_curl.slist_append(*list, text);
    if (more != NULL) {
        *list = more;
    }
    return more != NULL;
}

static bool
make_headers(vnxi_http_easy_t *easy)
{
    static const char format[] = "Authorization: Bearer %s";
    const char *secret = easy->request->options->secret;

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

/* Make "host:port:address,address" from the addresses that were found. */
static bool
make_addresses(vnxi_http_easy_t *easy, const vnxi_addresses_t *found)
{
    const vnxi_request_t *request = easy->request;
    size_t size =
        strlen(request->host) + 16 + found->count * (VNXI_ADDRESS_TEXT + 4);
    char *line = malloc(size), text[VNXI_ADDRESS_TEXT];

    if (line == NULL) {
        return false;
    }
    size_t len =
        (size_t)snprintf(line, size, "%s:%d:", request->host, request->port);
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

/* If the certificate is for another name, let libcurl connect to the host for
 * that name. */
static bool
make_target(vnxi_http_easy_t *easy)
{
    const vnxi_request_t *request = easy->request;
    char host[VNX_SIDE_CHANNEL_ADDRESS_MAX + 8], line[sizeof host + 16];

    if (!request->options->tls || request->options->tls_name == NULL) {
        return true;
    }
    host_text(request->host, "%25", host, sizeof host);
    snprintf(line, sizeof line, "::%s:%d", host, request->port);
    return list_add(&easy->target, line);
}

/* Set the options of libcurl.  An older libcurl may not know an option; then
 * it does not have the danger that the option averts either.  The options that
 * must work are checked. */
static bool
tell(vnxi_http_easy_t *easy)
{
    CURL *curl = easy->curl;
    const vnx_side_channel_options_t *options = easy->request->options;

    vnxi_curl.easy_setopt(curl, CURLOPT_ERRORBUFFER, easy->text);
    vnxi_curl.easy_setopt(curl, CURLOPT_PRIVATE, easy);
    vnxi_curl.easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    vnxi_curl.easy_setopt(curl, CURLOPT_HTTPHEADER, easy->headers);
    vnxi_curl.easy_setopt(curl, CURLOPT_RESOLVE, easy->addresses);
    vnxi_curl.easy_setopt(curl, CURLOPT_CONNECT_TO, easy->target);
    vnxi_curl.easy_setopt(curl, CURLOPT_WRITEFUNCTION, on_body);
    vnxi_curl.easy_setopt(curl, CURLOPT_WRITEDATA, easy);
    vnxi_curl.easy_setopt(curl, CURLOPT_HEADERFUNCTION, on_header);
    vnxi_curl.easy_setopt(curl, CURLOPT_HEADERDATA, easy);
    vnxi_curl.easy_setopt(curl, CURLOPT_OPENSOCKETFUNCTION, on_socket);
    vnxi_curl.easy_setopt(curl, CURLOPT_OPENSOCKETDATA, easy);
    vnxi_curl.easy_setopt(curl, CURLOPT_TCP_NODELAY, 1L);
    vnxi_curl.easy_setopt(curl, CURLOPT_HAPPY_EYEBALLS_TIMEOUT_MS,
                          EYEBALLS_MS);
    vnxi_curl.easy_setopt(curl, CURLOPT_USERAGENT, "vnx/" VNX_VERSION);
    vnxi_curl.easy_setopt(curl, CURLOPT_FAILONERROR, 1L); /* no error bodies */
    vnxi_curl.easy_setopt(curl, CURLOPT_MAXFILESIZE_LARGE,
                          (curl_off_t)options->max_frame);
#if LIBCURL_VERSION_NUM >= 0x075700
    vnxi_curl.easy_setopt(curl, CURLOPT_QUICK_EXIT,
                          1L); /* does not wait for look-ups */
#endif
    if (options->secret != NULL && !options->tls) {
        /* A proxy on this machine would forward the token. */
        vnxi_curl.easy_setopt(curl, CURLOPT_PROXY, "");
    }
    if (options->tls_ca != NULL) {
        vnxi_curl.easy_setopt(curl, CURLOPT_CAINFO, options->tls_ca);
        vnxi_curl.easy_setopt(curl, CURLOPT_CAPATH, NULL);
    }
    return vnxi_curl.easy_setopt(curl, CURLOPT_CURLU, easy->url) == CURLE_OK &&
           vnxi_curl.easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L) ==
               CURLE_OK &&
           vnxi_curl.easy_setopt(curl, CURLOPT_HTTP_VERSION,
                                 (long)CURL_HTTP_VERSION_1_1) == CURLE_OK &&
           (!options->tls ||
            vnxi_curl.easy_setopt(curl, CURLOPT_SSLVERSION,
                                  (long)CURL_SSLVERSION_TLSv1_2) == CURLE_OK);
}

vnx_status_t
vnxi_http_easy_open(vnxi_http_easy_t *easy, vnxi_request_t *request,
                    const vnxi_addresses_t *found)
{
    easy->request = request;
    easy->curl = vnxi_curl.easy_init();
    easy->url = vnxi_curl.url();
    if (easy->curl == NULL || easy->url == NULL || !make_headers(easy) ||
        !make_target(easy) ||
        (found != NULL && !make_addresses(easy, found))) {
        return vnxi_request_no_memory(request, sizeof *easy);
    }
    if (!make_url(easy)) {
        return vnxi_http_easy_failed(easy, VNX_ERR_INVALID_PARAM,
                                     "that is no host of a URL");
    }
    return tell(easy) ? VNX_OK
                      : vnxi_http_easy_failed(easy, VNX_ERR_NOT_SUPPORTED,
                                              "libcurl lacks HTTP or TLS");
}

static void
free_headers(struct curl_slist *headers)
{
    for (struct curl_slist *one = headers; one != NULL; one = one->next) {
        explicit_bzero(one->data, strlen(one->data)); /* it has the token */
    }
    vnxi_curl.slist_free_all(headers);
}

void
vnxi_http_easy_close(vnxi_http_easy_t *easy)
{
    vnxi_curl.easy_cleanup(easy->curl);
    vnxi_curl.url_cleanup(easy->url);
    free_headers(easy->headers);
    vnxi_curl.slist_free_all(easy->addresses);
    vnxi_curl.slist_free_all(easy->target);
    free(easy->body);
    *easy = (vnxi_http_easy_t){0};
}
