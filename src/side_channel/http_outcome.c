/*
 * Design notes.  This file maps failures to statuses and to the words that the
 * other transports use.  It shows libcurl's text if that says more, but never
 * a text of the peer.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "base/error.h"
#include "side_channel/http_easy.h"

#define REASON_MAX 256

/* -- Results -------------------------------------------------------------- */

static bool
has_happened(const vnxi_http_easy_t *easy, CURLINFO when)
{
    curl_off_t us = 0;
    return easy->curl != NULL &&
           vnxi_curl.easy_getinfo(easy->curl, when, &us) == CURLE_OK && us > 0;
}

/* Was the connection made?  libcurl sets the time of a connection when TLS is
 * up, too. */
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
    if (easy->request->options->tls &&
        !has_happened(easy, CURLINFO_APPCONNECT_TIME_T)) {
        return "TLS with";
    }
    return "receiving from";
}

vnx_status_t
vnxi_http_easy_failed(const vnxi_http_easy_t *easy, vnx_status_t status,
                      const char *reason)
{
    return vnxi_request_failed(easy->request, status, phase(easy),
                               easy->address[0] != '\0' ? easy->address
                                                        : easy->request->host,
                               reason);
}

static vnx_status_t
failed_too_long(const vnxi_http_easy_t *easy)
{
    char reason[REASON_MAX];

    snprintf(reason, sizeof reason,
             "the reply is above max_frame (%" PRIu32 ")",
             easy->request->options->max_frame);
    return vnxi_http_easy_failed(easy, VNX_ERR_MISMATCH, reason);
}

/* The reply has a status other than 200. */
static vnx_status_t
failed_status(const vnxi_http_easy_t *easy, long code)
{
    bool has_secret = easy->request->options->secret != NULL;
    char reason[REASON_MAX];

    switch (code) {
    case 401:
        return vnxi_http_easy_failed(
            easy, VNX_ERR_NOT_ALLOWED,
            has_secret ? "the shared secrets differ"
                       : "this listener wants a shared secret to be proved");
    case 403:
        return vnxi_http_easy_failed(
            easy, VNX_ERR_NOT_ALLOWED,
            has_secret ? "this listener has no shared secret, or does not "
                         "take it without TLS"
                       : "it is forbidden (status 403)");
    case 404:
        return vnxi_request_no_key(easy->request);
    default:
        snprintf(reason, sizeof reason,
                 code >= 300 && code < 400
                     ? "status %ld: redirects are not followed"
                     : "status %ld",
                 code);
        return vnxi_http_easy_failed(
            easy,
            code == 429 || code >= 500 ? VNX_ERR_BACKEND : VNX_ERR_MISMATCH,
            reason);
    }
}

static vnx_status_t
failed_early(const vnxi_http_easy_t *easy)
{
    curl_off_t length = vnxi_http_easy_length(easy);
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
    return vnxi_http_easy_failed(easy, VNX_ERR_BACKEND, reason);
}

/* Return libcurl's text, or the system's if that is more precise. */
static const char *
words(const vnxi_http_easy_t *easy, CURLcode code)
{
    long err = 0;

    vnxi_curl.easy_getinfo(easy->curl, CURLINFO_OS_ERRNO, &err);
    if (err != 0 && (code == CURLE_COULDNT_CONNECT ||
                     code == CURLE_RECV_ERROR || code == CURLE_SEND_ERROR)) {
        return strerror((int)err);
    }
    return easy->text[0] != '\0' ? easy->text : vnxi_curl.easy_strerror(code);
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

static vnx_status_t
failed_tls(const vnxi_http_easy_t *easy, CURLcode code)
{
    const char *text = words(easy, code), *ca = easy->request->options->tls_ca;
    char reason[REASON_MAX + CURL_ERROR_SIZE];

    if (code == CURLE_SSL_CACERT_BADFILE) {
        snprintf(reason, sizeof reason, "tls_ca '%.200s': %s",
                 ca != NULL ? ca : "", text);
        return vnxi_http_easy_failed(easy, VNX_ERR_INVALID_PARAM, reason);
    }
    if (code == CURLE_PEER_FAILED_VERIFICATION) {
        snprintf(reason, sizeof reason, "the certificate is not trusted: %s",
                 text);
        return vnxi_http_easy_failed(easy, VNX_ERR_NOT_ALLOWED, reason);
    }
    if (is_not_tls(text)) {
        return vnxi_http_easy_failed(easy, VNX_ERR_MISMATCH,
                                     "the other end speaks no TLS");
    }
    snprintf(reason, sizeof reason, "TLS failed: %s", text);
    return vnxi_http_easy_failed(easy, VNX_ERR_BACKEND, reason);
}

static vnx_status_t
failed_stopped(const vnxi_http_easy_t *easy)
{
    switch (easy->stopped) {
    case VNX_ERR_TIMEOUT:
        return vnxi_http_easy_failed(easy, VNX_ERR_TIMEOUT, "timed out");
    case VNX_ERR_NO_MEMORY:
        return vnxi_http_easy_failed(easy, VNX_ERR_NO_MEMORY,
                                     "no memory for the reply");
    default:
        return failed_too_long(easy);
    }
}

static vnx_status_t
failed_code(const vnxi_http_easy_t *easy, CURLcode code)
{
    char reason[REASON_MAX + CURL_ERROR_SIZE];

    if (easy->kept_back) {
        return vnxi_http_easy_failed(easy, VNX_ERR_NOT_ALLOWED,
                                     "the shared secret is sent only over TLS "
                                     "or to a loopback address");
    }
    switch (code) {
    case CURLE_COULDNT_RESOLVE_HOST:
        return vnxi_http_easy_failed(easy, VNX_ERR_NOT_FOUND,
                                     words(easy, code));
    case CURLE_FILESIZE_EXCEEDED:
        return failed_too_long(easy);
    case CURLE_GOT_NOTHING:
        return vnxi_http_easy_failed(easy, VNX_ERR_BACKEND,
                                     "the connection was closed without a "
                                     "reply");
    case CURLE_PARTIAL_FILE:
        return failed_early(easy);
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CONNECT_ERROR:
        return failed_tls(easy, code);
    case CURLE_OUT_OF_MEMORY:
        return vnxi_http_easy_failed(easy, VNX_ERR_NO_MEMORY,
                                     "no memory for the request");
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_WEIRD_SERVER_REPLY:
    case CURLE_BAD_CONTENT_ENCODING:
        snprintf(reason, sizeof reason, "no reply of this protocol: %s",
                 words(easy, code));
        return vnxi_http_easy_failed(easy, VNX_ERR_MISMATCH, reason);
    default:
        return vnxi_http_easy_failed(easy, VNX_ERR_BACKEND, words(easy, code));
    }
}

vnx_status_t
vnxi_http_easy_take(vnxi_http_easy_t *easy, CURLcode code)
{
    long status = 0;

    easy->code = code;
    vnxi_curl.easy_getinfo(easy->curl, CURLINFO_RESPONSE_CODE, &status);
    if (easy->stopped != VNX_OK) {
        return failed_stopped(easy);
    }
    if (code != CURLE_OK && code != CURLE_HTTP_RETURNED_ERROR) {
        return failed_code(easy, code);
    }
    if (status != 200) {
        return failed_status(easy, status);
    }
    if (vnxi_http_easy_length(easy) < 0 && !easy->is_chunked) {
        return vnxi_http_easy_failed(
            easy, VNX_ERR_MISMATCH,
            "a reply without a length: its end could not be told from a cut");
    }
    if (easy->body == NULL) { /* the result is not NULL, even if empty */
        easy->body = malloc(1);
    }
    if (easy->body == NULL) {
        easy->stopped = VNX_ERR_NO_MEMORY;
        return failed_stopped(easy);
    }
    easy->request->answer.metadata = easy->body;
    easy->request->answer.length = easy->len;
    easy->body = NULL;
    return VNX_OK;
}
