/*
 * Design notes.  The client uses its socket through a BIO of our own.
 * OpenSSL's BIO uses write(), so a server that has closed would raise SIGPIPE
 * in a thread that belongs to the program.  And OpenSSL skips some messages,
 * such as HelloRequests in a handshake, for as long as there are any.  So the
 * BIO reports after STEP_MAX bytes that it has no more for this step.
 *
 * SSL_MODE_AUTO_RETRY is off at both ends: with it, a read continues after
 * each message of TLS itself, such as a KeyUpdate, until the socket is empty.
 * A peer that keeps sending them would hold the thread.
 *
 * The program may use OpenSSL too, and its calls would take the errors in the
 * thread's queue for their own.  So the client's functions leave none there.
 *
 * With certificates, each request creates a context.  That reads the files, so
 * a renewed certificate is used without a restart.
 */
#include "net/tls.h"

#include <arpa/inet.h>
#include <errno.h>
#include <event2/bufferevent.h>
#include <event2/bufferevent_ssl.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/error.h"

#define STEP_MAX (256u << 10) /* bytes; far more than a handshake has */

static pthread_once_t bio_once = PTHREAD_ONCE_INIT;
static BIO_METHOD *bio_method; /* one per process; never freed */

/* -- The BIO over a socket ------------------------------------------------ */

static int
on_write(BIO *bio, const char *data, int len)
{
    const vnxi_stream_t *stream = BIO_get_data(bio);
    ssize_t count = send(stream->fd, data, (size_t)len, MSG_NOSIGNAL);

    BIO_clear_retry_flags(bio);
    if (count < 0 && (errno == EAGAIN || errno == EINTR)) {
        BIO_set_retry_write(bio);
    }
    return (int)count;
}

static int
on_read(BIO *bio, char *data, int size)
{
    vnxi_stream_t *stream = BIO_get_data(bio);
    size_t len = (size_t)size < stream->left ? (size_t)size : stream->left;

    BIO_clear_retry_flags(bio);
    if (len == 0) {
        BIO_set_retry_read(bio);
        return -1;
    }
    ssize_t count = recv(stream->fd, data, len, 0);
    if (count > 0) {
        stream->left -= (size_t)count;
    } else if (count < 0 && (errno == EAGAIN || errno == EINTR)) {
        BIO_set_retry_read(bio);
    }
    return (int)count;
}

static long
on_ctrl(BIO *bio, int command, long number, void *pointer)
{
    (void)bio, (void)number, (void)pointer;
    return command == BIO_CTRL_FLUSH; /* the BIO buffers nothing */
}

static void
make_bio_method(void)
{
    bio_method =
        BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "vnx socket");
    if (bio_method != NULL) {
        BIO_meth_set_write(bio_method, on_write);
        BIO_meth_set_read(bio_method, on_read);
        BIO_meth_set_ctrl(bio_method, on_ctrl);
    }
}

static bool
attach(vnxi_stream_t *stream)
{
    pthread_once(&bio_once, make_bio_method);
    BIO *bio = bio_method != NULL ? BIO_new(bio_method) : NULL;
    if (bio == NULL) {
        return false;
    }
    BIO_set_data(bio, stream);
    BIO_set_init(bio, 1);
    SSL_set_bio(stream->tls, bio, bio);
    return true;
}

/* -- Reasons -------------------------------------------------------------- */

/* Return OpenSSL's text for the first error of this thread's last call.  The
 * errors after it only say which callers it passed through. */
static const char *
first_reason(void)
{
    unsigned long code = ERR_peek_error();
    const char *text = ERR_SYSTEM_ERROR(code) ? strerror(ERR_GET_REASON(code))
                                              : ERR_reason_error_string(code);
    return text != NULL ? text : "unknown error";
}

static vnx_status_t
stream_error(vnxi_stream_t *stream, vnx_status_t status, const char *text)
{
    snprintf(stream->reason, sizeof stream->reason, "%s", text);
    return status;
}

static vnx_status_t
closed_error(vnxi_stream_t *stream)
{
    return stream_error(stream, VNX_ERR_BACKEND,
                        stream->by_secret && !stream->is_shaken
                            ? "the connection was closed (perhaps by a "
                              "listener that has no shared secret)"
                            : "the connection was closed");
}

/* Does the reason of an error say that the other end does not speak TLS? */
static bool
is_not_tls(int reason)
{
    switch (reason) {
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_HTTP_REQUEST:
    case SSL_R_HTTPS_PROXY_REQUEST:
    case SSL_R_PACKET_LENGTH_TOO_LONG:
    case SSL_R_RECORD_TOO_SMALL:
    case SSL_R_UNEXPECTED_MESSAGE:
        return true;
    default:
        return false;
    }
}

/* Does the reason say that bytes were changed on the way?  After the
 * handshake, the head of a record is as good as its content. */
static bool
is_damage(const vnxi_stream_t *stream, int reason)
{
    switch (reason) {
    case SSL_R_DECRYPTION_FAILED_OR_BAD_RECORD_MAC:
    case SSL_R_DIGEST_CHECK_FAILED:
        return true;
    case SSL_R_WRONG_VERSION_NUMBER:
    case SSL_R_PACKET_LENGTH_TOO_LONG:
    case SSL_R_ENCRYPTED_LENGTH_TOO_LONG:
    case SSL_R_LENGTH_TOO_SHORT:
    case SSL_R_RECORD_TOO_SMALL:
    case SSL_R_BAD_RECORD_TYPE:
    case SSL_R_UNEXPECTED_MESSAGE:
        return stream->is_shaken;
    default:
        return false;
    }
}

static vnx_status_t
not_verified(vnxi_stream_t *stream)
{
    long result = SSL_get_verify_result(stream->tls);

    if (stream->by_secret) {
        return stream_error(stream, VNX_ERR_NOT_ALLOWED,
                            "this listener has a certificate and no shared "
                            "secret");
    }
    snprintf(stream->reason, sizeof stream->reason,
             "the certificate is not trusted: %s",
             X509_verify_cert_error_string(result));
    return VNX_ERR_NOT_ALLOWED;
}

/* Handle the alerts that our listeners send.  If a binder, which proves a
 * pre-shared key, is wrong, OpenSSL sends ILLEGAL_PARAMETER; RFC 8446 allows
 * DECRYPT_ERROR too. */
static vnx_status_t
alert_error(vnxi_stream_t *stream, int reason)
{
    switch (reason) {
    case SSL_R_TLSV1_ALERT_UNKNOWN_PSK_IDENTITY: /* VNXI_TCP_ALERT */
        return stream->by_secret
                   ? stream_error(stream, VNX_ERR_NOT_ALLOWED,
                                  "this listener has no shared secret")
                   : stream_error(stream, VNX_ERR_MISMATCH,
                                  "this listener speaks no TLS");
    case SSL_R_SSLV3_ALERT_ILLEGAL_PARAMETER:
    case SSL_R_TLSV1_ALERT_DECRYPT_ERROR:
        if (stream->by_secret) {
            return stream_error(stream, VNX_ERR_NOT_ALLOWED,
                                "the shared secrets differ");
        }
        break;
    case SSL_R_SSLV3_ALERT_HANDSHAKE_FAILURE:
        return stream_error(
            stream, VNX_ERR_NOT_ALLOWED,
            stream->by_secret
                ? "the listener refused the handshake: it has no shared "
                  "secret, or no cipher in common"
                : "the listener refused the handshake: it has a shared secret "
                  "and no certificate, or no cipher in common");
    default:
        break;
    }
    return VNX_OK;
}

static vnx_status_t
protocol_error(vnxi_stream_t *stream)
{
    int reason = ERR_GET_REASON(ERR_peek_last_error());

    if (SSL_get_verify_result(stream->tls) != X509_V_OK) {
        return not_verified(stream);
    }
    if (reason == SSL_R_UNEXPECTED_EOF_WHILE_READING) {
        return closed_error(stream);
    }
    if (is_damage(stream, reason)) {
        return stream_error(stream, VNX_ERR_NOT_ALLOWED,
                            "what the other end sent was changed on the way");
    }
    if (is_not_tls(reason)) {
        return stream_error(stream, VNX_ERR_MISMATCH,
                            "the other end speaks no TLS");
    }
    vnx_status_t status = alert_error(stream, reason);
    if (status != VNX_OK) {
        return status;
    }
    snprintf(stream->reason, sizeof stream->reason, "TLS failed: %s",
             first_reason());
    return VNX_ERR_BACKEND;
}

static vnx_status_t
result_of(vnxi_stream_t *stream, int ret)
{
    switch (SSL_get_error(stream->tls, ret)) {
    case SSL_ERROR_NONE:
        return VNX_OK;
    case SSL_ERROR_WANT_READ:
        stream->events = POLLIN;
        return VNX_IN_PROG;
    case SSL_ERROR_WANT_WRITE:
        stream->events = POLLOUT;
        return VNX_IN_PROG;
    case SSL_ERROR_SYSCALL:
        return errno != 0
                   ? stream_error(stream, VNX_ERR_BACKEND, vnxi_errno(errno))
                   : closed_error(stream);
    default:
        return protocol_error(stream);
    }
}

/* Begin a call of OpenSSL, which is a step of the stream. */
static void
step_begin(vnxi_stream_t *stream)
{
    ERR_clear_error();
    errno = 0;
    stream->left = STEP_MAX;
}

/* Convert the result of a call of OpenSSL that returned `ret`. */
static vnx_status_t
outcome(vnxi_stream_t *stream, int ret)
{
    vnx_status_t status = result_of(stream, ret);

    ERR_clear_error();
    return status;
}

/* -- Client --------------------------------------------------------------- */

/* The authorities of Fedora and RHEL.  The OpenSSL in our wheels looks in
 * /etc/ssl, where other systems have theirs. */
#define OTHER_CA "/etc/pki/tls/cert.pem"

/* Load the system's authorities, or those that OpenSSL's variables name. */
static bool
load_system_ca(SSL_CTX *ctx)
{
    if (SSL_CTX_set_default_verify_paths(ctx) != 1) {
        return false;
    }
    return getenv(X509_get_default_cert_file_env()) != NULL ||
           getenv(X509_get_default_cert_dir_env()) != NULL ||
           access(X509_get_default_cert_file(), R_OK) == 0 ||
           access(OTHER_CA, R_OK) != 0 ||
           SSL_CTX_load_verify_locations(ctx, OTHER_CA, NULL) == 1;
}

/* Load tls_ca.  If the file cannot be read, the record has its name and the
 * cause. */
static vnx_status_t
load_ca(vnxi_stream_t *stream, SSL_CTX *ctx, const char *path)
{
    if (path == NULL) {
        return load_system_ca(ctx)
                   ? VNX_OK
                   : stream_error(stream, VNX_ERR_BACKEND,
                                  "the system has no trusted certificates");
    }
    if (SSL_CTX_load_verify_locations(ctx, path, NULL) == 1) {
        return VNX_OK;
    }
    snprintf(stream->reason, sizeof stream->reason, "tls_ca '%s': %s", path,
             first_reason());
    return VNX_ERR_INVALID_PARAM;
}

/* Set the name or the address that the certificate must be for. */
static bool
expect_name(SSL *ssl, const char *name)
{
    unsigned char address[sizeof(struct in6_addr)];

    if (inet_pton(AF_INET, name, address) == 1 ||
        inet_pton(AF_INET6, name, address) == 1) {
        return X509_VERIFY_PARAM_set1_ip_asc(SSL_get0_param(ssl), name) == 1;
    }
    SSL_set_hostflags(ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    return SSL_set_tlsext_host_name(ssl, name) == 1 &&
           SSL_set1_host(ssl, name) == 1;
}

static vnx_status_t
no_connection(vnxi_stream_t *stream)
{
    return stream_error(stream, VNX_ERR_NO_MEMORY, first_reason());
}

static vnx_status_t
open_by_certificate(vnxi_stream_t *stream, const char *name,
                    const vnx_side_channel_options_t *options)
{
    SSL_CTX *ctx = SSL_CTX_new(TLS_client_method());
    if (ctx == NULL) {
        return no_connection(stream);
    }
    SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER, NULL);
    vnx_status_t status = load_ca(stream, ctx, options->tls_ca);
    if (status == VNX_OK) {
        stream->tls = SSL_new(ctx);
        if (stream->tls == NULL || !expect_name(stream->tls, name)) {
            status = no_connection(stream);
        }
    }
    SSL_CTX_free(ctx); /* the connection holds a reference */
    return status;
}

static vnx_status_t
open_by_secret(vnxi_stream_t *stream, const char *secret)
{
    stream->by_secret = true;
    stream->tls = vnxi_psk_client(secret);
    return stream->tls != NULL ? VNX_OK : no_connection(stream);
}

static vnx_status_t
open_stream(vnxi_stream_t *stream, const char *host,
            const vnx_side_channel_options_t *options)
{
    vnx_status_t status =
        options->tls == VNXI_TLS_SECRET
            ? open_by_secret(stream, options->secret)
            : open_by_certificate(
                  stream, options->tls_name != NULL ? options->tls_name : host,
                  options);
    if (status != VNX_OK) {
        return status;
    }
    if (!attach(stream)) {
        return no_connection(stream);
    }
    SSL_set_mode(stream->tls, SSL_MODE_ENABLE_PARTIAL_WRITE |
                                  SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
    SSL_clear_mode(stream->tls, SSL_MODE_AUTO_RETRY);
    SSL_set_connect_state(stream->tls);
    return VNX_OK;
}

vnx_status_t
vnxi_tls_client_open(vnxi_stream_t *stream, const char *host,
                     const vnx_side_channel_options_t *options)
{
    ERR_clear_error();
    vnx_status_t status = open_stream(stream, host, options);
    ERR_clear_error();
    return status;
}

void
vnxi_tls_client_close(vnxi_stream_t *stream)
{
    if (stream->tls != NULL) {
        if (SSL_is_init_finished(stream->tls)) {
            SSL_shutdown(stream->tls); /* sends the alert; does not wait */
        }
        SSL_free(stream->tls);
        stream->tls = NULL;
        ERR_clear_error();
    }
}

vnx_status_t
vnxi_tls_client_shake(vnxi_stream_t *stream)
{
    step_begin(stream);
    vnx_status_t status = outcome(stream, SSL_do_handshake(stream->tls));
    if (status == VNX_OK && stream->by_secret &&
        SSL_session_reused(stream->tls) != 1) {
        return stream_error(stream, VNX_ERR_NOT_ALLOWED,
                            "this listener did not prove the shared secret");
    }
    stream->is_shaken = status == VNX_OK;
    return status;
}

vnx_status_t
vnxi_tls_client_send(vnxi_stream_t *stream, const void *data, size_t len,
                     size_t *count_p)
{
    step_begin(stream);
    int ret = SSL_write_ex(stream->tls, data, len, count_p);
    return ret == 1 ? VNX_OK : outcome(stream, ret);
}

/* The end of the stream counts as an end with or without a close alert: the
 * reader of frames sees whether a frame was cut. */
vnx_status_t
vnxi_tls_client_recv(vnxi_stream_t *stream, void *data, size_t size,
                     size_t *count_p)
{
    step_begin(stream);
    int ret = SSL_read_ex(stream->tls, data, size, count_p);
    if (ret == 1) {
        return VNX_OK;
    }
    int error = SSL_get_error(stream->tls, ret);
    if (error == SSL_ERROR_ZERO_RETURN ||
        (error == SSL_ERROR_SYSCALL && errno == 0) ||
        (error == SSL_ERROR_SSL && ERR_GET_REASON(ERR_peek_last_error()) ==
                                       SSL_R_UNEXPECTED_EOF_WHILE_READING)) {
        ERR_clear_error();
        *count_p = 0;
        return VNX_OK;
    }
    return outcome(stream, ret);
}

bool
vnxi_tls_client_has_more(const vnxi_stream_t *stream)
{
    return SSL_pending(stream->tls) > 0;
}

void
vnxi_tls_forget_errors(void)
{
    ERR_clear_error();
}

/* -- Server --------------------------------------------------------------- */

static vnx_status_t
file_failed(vnx_error_t *error, const char *operation, const char *option,
            const char *path)
{
    return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation,
                          "%s '%s': %s", option, path, first_reason());
}

/* OpenSSL would ask for the password of a key at the terminal, and wait. */
static int
on_password(char *text, int size, int is_new, void *has_password)
{
    (void)text, (void)size, (void)is_new;
    *(bool *)has_password = true;
    return -1;
}

static vnx_status_t
load_key(SSL_CTX *ctx, const char *path, const char *operation,
         vnx_error_t *error)
{
    bool has_password = false;

    SSL_CTX_set_default_passwd_cb(ctx, on_password);
    SSL_CTX_set_default_passwd_cb_userdata(ctx, &has_password);
    int ret = SSL_CTX_use_PrivateKey_file(ctx, path, SSL_FILETYPE_PEM);
    SSL_CTX_set_default_passwd_cb_userdata(ctx, NULL);
    if (ret == 1) {
        return VNX_OK;
    }
    return has_password
               ? vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation,
                                "tls_key '%s': a key with a password cannot "
                                "be used",
                                path)
               : file_failed(error, operation, "tls_key", path);
}

static vnx_status_t
load_certificate(SSL_CTX *ctx, const vnx_side_channel_options_t *options,
                 const char *operation, vnx_error_t *error)
{
    if (SSL_CTX_use_certificate_chain_file(ctx, options->tls_certificate) !=
        1) {
        return file_failed(error, operation, "tls_certificate",
                           options->tls_certificate);
    }
    return load_key(ctx, options->tls_key, operation, error);
}

static vnx_status_t
make_server_context(const vnx_side_channel_options_t *options,
                    const char *operation, void **ctx_p, vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;

    SSL_CTX *ctx = SSL_CTX_new(TLS_server_method());
    if (ctx == NULL) {
        return vnxi_error_no_memory(error, operation, sizeof(void *));
    }
    SSL_CTX_set_min_proto_version(ctx, TLS1_2_VERSION);
    /* One exchange per connection: sessions would only cost memory. */
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_num_tickets(ctx, 0);
    SSL_CTX_set_options(ctx, SSL_OP_NO_RENEGOTIATION);
    /* Free the buffers of connections that are silent. */
    SSL_CTX_set_mode(ctx, SSL_MODE_RELEASE_BUFFERS);
    SSL_CTX_clear_mode(ctx, SSL_MODE_AUTO_RETRY);
    if (options->tls == VNXI_TLS_CERTIFICATE) {
        status = load_certificate(ctx, options, operation, error);
    } else if (!vnxi_psk_serve(ctx, options->secret)) {
        status =
            vnxi_error_set(error, VNX_ERR_BACKEND, operation,
                           "TLS with a shared secret: %s", first_reason());
    }
    if (status != VNX_OK) {
        SSL_CTX_free(ctx);
        return status;
    }
    *ctx_p = ctx;
    return VNX_OK;
}

vnx_status_t
vnxi_tls_server_context(const vnx_side_channel_options_t *options,
                        const char *operation, void **ctx_p,
                        vnx_error_t *error)
{
    ERR_clear_error();
    vnx_status_t status =
        make_server_context(options, operation, ctx_p, error);
    ERR_clear_error();
    return status;
}

void
vnxi_tls_context_free(void *ctx)
{
    SSL_CTX_free(ctx);
}

/* Callbacks run from the loop, never inside a call of OpenSSL, because they
 * may free the connection. */
struct bufferevent *
vnxi_tls_accept(void *ctx, struct event_base *base, int fd, int options,
                void **tls_p)
{
    SSL *ssl = SSL_new(ctx);
    if (ssl == NULL) {
        return NULL;
    }
    struct bufferevent *bev = bufferevent_openssl_socket_new(
        base, fd, ssl, BUFFEREVENT_SSL_ACCEPTING,
        options | BEV_OPT_DEFER_CALLBACKS);
    if (bev == NULL) {
        SSL_free(ssl);
        return NULL;
    }
    bufferevent_openssl_set_allow_dirty_shutdown(bev, 1);
    *tls_p = ssl;
    return bev;
}

void
vnxi_tls_free(void *tls)
{
    SSL_free(tls);
}

bool
vnxi_tls_is_shaking(void *tls)
{
    return tls != NULL && !SSL_is_init_finished(tls);
}

void
vnxi_tls_goodbye(void *tls)
{
    if (tls != NULL) {
        SSL_shutdown(tls);
        ERR_clear_error();
    }
}

vnxi_tls_failure_t
vnxi_tls_failure(struct bufferevent *bev)
{
    int reason = ERR_GET_REASON(bufferevent_get_openssl_error(bev));

    if (is_not_tls(reason)) {
        return VNXI_TLS_FAILED_NOT_TLS;
    }
    if (reason == SSL_R_BINDER_DOES_NOT_VERIFY) {
        return VNXI_TLS_FAILED_WRONG_KEY;
    }
    return reason == SSL_R_NO_SUITABLE_SIGNATURE_ALGORITHM
               ? VNXI_TLS_FAILED_NO_KEY
               : VNXI_TLS_FAILED;
}
