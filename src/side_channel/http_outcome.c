/*
 * Design notes.  This file maps failures to statuses and to the words that the
 * other transports use.  It shows libcurl's text if that says more, but never
 * a text of the peer.
 */
#include "side_channel/http.h"

#include <inttypes.h>
#include <string.h>
#include <sys/socket.h>

#include "base/error.h"

/* -- Results -------------------------------------------------------------- */

static bool
has_happened(const vnxi_http_client_t *client, CURLINFO when)
{
    curl_off_t us = 0;
    return client->curl != NULL &&
           vnxi_curl.easy_getinfo(client->curl, when, &us) == CURLE_OK &&
           us > 0;
}

/* Was the connection made?  libcurl sets the time of a connection when TLS is
 * up, too. */
static bool
is_connected(const vnxi_http_client_t *client)
{
    struct sockaddr_storage peer;
    socklen_t len = sizeof peer;

    if (has_happened(client, CURLINFO_CONNECT_TIME_T)) {
        return true;
    }
    return client->code == CURLE_OK
               ? getpeername(client->fd, (void *)&peer, &len) == 0
               : client->code != CURLE_COULDNT_CONNECT;
}

static const char *
phase(const vnxi_http_client_t *client)
{
    if (client->address[0] == '\0') {
        return "resolving";
    }
    if (!is_connected(client)) {
        return "connecting to";
    }
    if (client->request->options->tls &&
        !has_happened(client, CURLINFO_APPCONNECT_TIME_T)) {
        return "TLS with";
    }
    return "receiving from";
}

void
vnxi_http_set_phase(vnxi_http_client_t *client)
{
    client->request->phase = phase(client);
    client->request->whom =
        client->address[0] != '\0' ? client->address : client->request->host;
}

curl_off_t
vnxi_http_length(const vnxi_http_client_t *client)
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
failed_stopped(const vnxi_http_client_t *client)
{
    switch (client->stopped) {
    case VNX_ERR_TIMEOUT:
        return vnxi_request_failed(client->request, VNX_ERR_TIMEOUT,
                                   "timed out");
    case VNX_ERR_NO_MEMORY:
        return vnxi_request_no_memory(client->request);
    default:
        return failed_too_long(client->request);
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
failed_early(const vnxi_http_client_t *client)
{
    curl_off_t length = vnxi_http_length(client);

    return length >= 0
               ? vnxi_request_failed(
                     client->request, VNX_ERR_BACKEND,
                     "the connection was closed after %zu of %" PRId64
                     " bytes",
                     client->body.len, (int64_t)length)
               : vnxi_request_failed(
                     client->request, VNX_ERR_BACKEND,
                     "the connection was closed in the reply, after %zu bytes",
                     client->body.len);
}

/* Return libcurl's text, or the system's if that is more precise. */
static const char *
words(const vnxi_http_client_t *client, CURLcode code)
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
failed_code(const vnxi_http_client_t *client, CURLcode code)
{
    vnxi_request_t *request = client->request;
    const char *text = words(client, code), *ca = request->options->tls_ca;

    if (client->kept_back) {
        return vnxi_request_failed(request, VNX_ERR_NOT_ALLOWED,
                                   "the shared secret is sent only over TLS "
                                   "or to a loopback address");
    }
    switch (code) {
    case CURLE_COULDNT_RESOLVE_HOST:
        return vnxi_request_failed(request, VNX_ERR_NOT_FOUND, "%s", text);
    case CURLE_FILESIZE_EXCEEDED:
        return failed_too_long(request);
    case CURLE_GOT_NOTHING:
        return vnxi_request_failed(
            request, VNX_ERR_BACKEND,
            "the connection was closed without a reply");
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

vnx_status_t
vnxi_http_take(vnxi_http_client_t *client, CURLcode code)
{
    vnxi_request_t *request = client->request;
    long status = 0;

    client->code = code;
    vnxi_http_set_phase(client);
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
    if (vnxi_http_length(client) < 0 && !client->is_chunked) {
        return vnxi_request_failed(
            request, VNX_ERR_MISMATCH,
            "a reply without a length: if it was cut off, it would look "
            "complete");
    }
    return vnxi_request_answer(request, &client->body);
}
