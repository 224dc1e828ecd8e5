/*
 * Side channel: a small server and client that exchange agents' metadata.
 *
 * All transports (TCP, ZMQ as vLLM speaks it, HTTP) implement one contract.  A
 * program selects one by a constant; nothing else changes.  Wire formats:
 * docs/wire.md.
 *
 * Keys: a listener serves one blob per key.  A key has at most
 * VNX_SIDE_CHANNEL_KEY_MAX bytes.  The empty key is the default, used by
 * requests that name no key.  VNX_PUBLICATION_KEY (vnx/publish.h) is that of
 * publications.  Keys that stand for ranks are decimal numbers
 * separated by commas, in every transport: "0,1" is pipeline rank 0 and tensor
 * rank 1.  There may be any number of them, "0,1,2"; their meaning is up to
 * the two programs.
 *
 * Threads: any call may be made from any thread at any time.  A channel may be
 * freed while other threads are in a call.  A listener has one thread, however
 * many clients there are.
 * Waiting: requests wait; their timeout covers the whole exchange (resolving,
 * connecting, TLS, sending, receiving, retries).  Starting waits for the
 * resolver if `host` is a name, for at most VNX_SIDE_CHANNEL_TIMEOUT_MS.  No
 * other call waits; shutting down does not wait for clients.
 * Forks: a listener belongs to the parent.  In a forked child it is not
 * running and does not hold its port.  There, starting returns
 * VNX_ERR_NOT_ALLOWED, shutting down and freeing do nothing, and requests
 * work.
 */
#ifndef VNX_SIDE_CHANNEL_H
#define VNX_SIDE_CHANNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/error.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

#define VNX_SIDE_CHANNEL_TIMEOUT_MS 5000
#define VNX_SIDE_CHANNEL_MAX_FRAME (256u << 20)
#define VNX_SIDE_CHANNEL_KEY_MAX 255
#define VNX_SIDE_CHANNEL_SECRET_MIN 8
#define VNX_SIDE_CHANNEL_ADDRESS_MAX 262 /* including the final NUL */
#define VNX_SIDE_CHANNEL_BACKOFF_MS 50

/* For start_params.port: the value of VLLM_NIXL_SIDE_CHANNEL_PORT in the
 * environment, else 5600 (vLLM's default). */
#define VNX_SIDE_CHANNEL_PORT_DEFAULT (-1)

/* For request_params.retries: retry until the deadline. */
#define VNX_SIDE_CHANNEL_RETRY_ALWAYS UINT32_MAX

typedef enum vnx_side_channel_kind {
    VNX_SIDE_CHANNEL_TCP = 0,
    VNX_SIDE_CHANNEL_ZMQ = 1,
    VNX_SIDE_CHANNEL_HTTP = 2,
} vnx_side_channel_kind_t;

typedef struct vnx_side_channel vnx_side_channel_t;

/* -- Making --------------------------------------------------------------- */

/* Set `size`.  Any other field may be 0 (or NULL) for its default.  Strings
 * are copied. */
typedef struct vnx_side_channel_options {
    size_t size;                 /* sizeof(vnx_side_channel_options_t) */
    uint32_t max_frame;          /* largest blob to accept or serve, in
                                    bytes; VNX_SIDE_CHANNEL_MAX_FRAME */
    uint32_t max_connections;    /* at the same time; a new one replaces the
                                    oldest idle one.  4096, or what
                                    RLIMIT_NOFILE allows */
    uint32_t client_timeout_ms;  /* server: limit for a client's whole
                                    exchange; VNX_SIDE_CHANNEL_TIMEOUT_MS */
    uint32_t idle_timeout_ms;    /* server: limit for a client that neither
                                    sends nor receives; at most, and by
                                    default, client_timeout_ms */
    uint32_t max_rate;           /* new connections per second from one
                                    address (one /64 of IPv6); no limit.  A
                                    burst may be twice as large */
    uint32_t tls;                /* 1: use TLS; setting any of the next four
                                    fields implies it */
    const char *tls_certificate; /* PEM file with the chain; for listening */
    const char *tls_key;         /* PEM file; for listening */
    const char *tls_ca;          /* PEM file with the CAs that requests
                                    trust; the system's */
    const char *tls_name;        /* name that requests expect in the
                                    certificate; the requested host */
    const char *secret;          /* shared by all that may exchange
                                    metadata; VLLM_NIXL_SIDE_CHANNEL_SECRET,
                                    or none.  TCP: the key of TLS 1.3, instead
                                    of the five fields above.  HTTP: a bearer
                                    token, only over TLS or on loopback */
    const char *advertise;       /* host that peers should connect to; see
                                    vnx_side_channel_advertised() */
} vnx_side_channel_options_t;

/* Create a side channel.  Starts no thread and opens no socket or file.
 * `options` may be NULL; it is copied.  Returns VNX_OK and *out_p, which the
 * caller frees with vnx_side_channel_free().  Errors: VNX_ERR_INVALID_PARAM (a
 * secret shorter than VNX_SIDE_CHANNEL_SECRET_MIN bytes, a certificate without
 * its key, over TCP a secret and TLS options, ...), VNX_ERR_NOT_SUPPORTED
 * (this build lacks the transport, or TLS and secrets), VNX_ERR_NO_MEMORY. */
vnx_status_t vnx_side_channel_create(vnx_side_channel_kind_t kind,
                                     const vnx_side_channel_options_t *options,
                                     vnx_side_channel_t **out_p,
                                     vnx_error_t *error);

/* Shut down and free.  NULL is allowed. */
void vnx_side_channel_free(vnx_side_channel_t *channel);

/* -- Listening ------------------------------------------------------------ */

typedef struct vnx_side_channel_blob {
    const void *key; /* NULL: the default */
    size_t key_length;
    const void *data;
    size_t length; /* may be 0 */
} vnx_side_channel_blob_t;

/* Set `size` first. */
typedef struct vnx_side_channel_start_params {
    size_t size; /* sizeof(vnx_side_channel_start_params_t) */
    /* Where to listen: a list, separated by commas, of numeric addresses, host
     * names and interfaces of the machine ("eth0": all its addresses).  NULL
     * or "": VLLM_NIXL_SIDE_CHANNEL_HOST of the environment, else all
     * addresses of the machine, IPv6 and IPv4. */
    const char *host;
    int port; /* 0: any free port; VNX_SIDE_CHANNEL_PORT_DEFAULT */
    const vnx_side_channel_blob_t *blobs; /* copied; of equal keys the last
                                             one counts */
    size_t count;
} vnx_side_channel_start_params_t;

/* Start serving blobs.  When this returns VNX_OK, the sockets are listening
 * and *port_p (port_p may be NULL) is the bound port.  A listener that was
 * shut down may be started again, on the same port too; it then serves only
 * the blobs of the new start.
 * Errors: VNX_ERR_NOT_ALLOWED (already running), VNX_ERR_INVALID_PARAM (port
 * above 65535, a blob longer than max_frame, a key longer than
 * VNX_SIDE_CHANNEL_KEY_MAX, unknown host, TLS without a certificate, an
 * invalid PEM file), VNX_ERR_BACKEND (the address is in use, ...; the cause
 * has the reason), VNX_ERR_TIMEOUT (the name service did not answer),
 * VNX_ERR_NO_MEMORY. */
vnx_status_t
vnx_side_channel_start_with(vnx_side_channel_t *channel,
                            const vnx_side_channel_start_params_t *params,
                            int *port_p, vnx_error_t *error);

/* The same with one blob, under the default key. */
vnx_status_t vnx_side_channel_start(vnx_side_channel_t *channel,
                                    const char *host, int port,
                                    const void *metadata, size_t length,
                                    int *port_p, vnx_error_t *error);

/* Serve `blob` (copied) under its key from now on, replacing the previous
 * blob.  An exchange that has begun still gets the previous one.  Errors:
 * VNX_ERR_NOT_ALLOWED (not running), VNX_ERR_INVALID_PARAM, VNX_ERR_NO_MEMORY.
 */
vnx_status_t vnx_side_channel_set(vnx_side_channel_t *channel,
                                  const vnx_side_channel_blob_t *blob,
                                  vnx_error_t *error);

/* Stop serving the key.  Errors: VNX_ERR_NOT_ALLOWED (not running),
 * VNX_ERR_NOT_FOUND. */
vnx_status_t vnx_side_channel_remove(vnx_side_channel_t *channel,
                                     const void *key, size_t key_length,
                                     vnx_error_t *error);

/* Stop serving and cut open exchanges.  Does nothing if the listener is not
 * running.  When this returns, the port is free. */
void vnx_side_channel_shutdown(vnx_side_channel_t *channel);

bool vnx_side_channel_is_running(const vnx_side_channel_t *channel);

/* The bound port; 0 if the listener is not running. */
int vnx_side_channel_port(const vnx_side_channel_t *channel);

/* Get the host and port that peers should connect to.  The host is the first
 * of these that is set: options.advertise; VLLM_NIXL_SIDE_CHANNEL_HOST; the
 * first address that the listener was told to bind; if it listens on all
 * addresses, the first address of the machine that is not loopback, IPv4
 * before IPv6.  `peer` (may be NULL) is the peer that will connect: if it is
 * on another host and the result is a loopback address, which the peer cannot
 * reach, a warning is logged.  *port_p may be NULL.  Does not wait.  Errors:
 * VNX_ERR_NOT_ALLOWED (not running). */
vnx_status_t
vnx_side_channel_advertised(vnx_side_channel_t *channel, const char *peer,
                            char host[VNX_SIDE_CHANNEL_ADDRESS_MAX],
                            int *port_p, vnx_error_t *error);

/* -- Counters ------------------------------------------------------------- */

/* Reasons to refuse a client: X(symbol, name). */
#define VNX_SIDE_CHANNEL_REFUSAL_TABLE(X)                               \
    X(MALFORMED, "malformed")     /* not a valid request */             \
    X(TOO_LONG, "too_long")       /* request above the limit */         \
    X(UNKNOWN_KEY, "unknown_key") /* nothing is served under the key */ \
    X(NO_PROOF, "no_proof")       /* a secret is set, and not used */   \
    X(WRONG_PROOF, "wrong_proof") /* another secret */                  \
    X(TLS, "tls")                 /* the TLS handshake failed */        \
    X(RATE, "rate")               /* its address exceeded max_rate */

typedef enum vnx_side_channel_refusal {
#define VNX_SIDE_CHANNEL_REFUSAL_ENUM(symbol, name) \
    VNX_SIDE_CHANNEL_REFUSED_##symbol,
    VNX_SIDE_CHANNEL_REFUSAL_TABLE(VNX_SIDE_CHANNEL_REFUSAL_ENUM)
#undef VNX_SIDE_CHANNEL_REFUSAL_ENUM
        VNX_SIDE_CHANNEL_REFUSALS /* number of reasons */
} vnx_side_channel_refusal_t;

/* "unknown_key"; NULL for an unknown reason.  Static storage. */
const char *vnx_side_channel_refusal_name(vnx_side_channel_refusal_t refusal);

#define VNX_SIDE_CHANNEL_LATENCIES 32

typedef struct vnx_side_channel_stats {
    uint64_t accepted; /* connections accepted */
    uint64_t served;   /* replies sent completely */
    uint64_t refused;  /* clients refused because of what they sent */
    uint64_t timed_out;
    uint64_t evicted; /* closed to make room for a new one */
    uint64_t open;    /* open connections */
    uint64_t bytes_received, bytes_sent;
    uint64_t refusals[VNX_SIDE_CHANNEL_REFUSALS]; /* `refused`, by reason */
    /* Replies by latency: from the connection (or from the request, if a
     * connection carries several) until the kernel has taken the last byte.
     * [0]: below 1 us; [i]: from 2^(i-1) to 2^i us; the last one also counts
     * everything slower. */
    uint64_t latency[VNX_SIDE_CHANNEL_LATENCIES];
} vnx_side_channel_stats_t;

/* Counted since the channel was created; restarting the listener keeps them.
 */
void vnx_side_channel_stats(const vnx_side_channel_t *channel,
                            vnx_side_channel_stats_t *stats_p);

/* -- Requests ------------------------------------------------------------- */

/* Set `size` first. */
typedef struct vnx_side_channel_request_params {
    size_t size; /* sizeof(vnx_side_channel_request_params_t) */
    const char *host;
    int port;
    int timeout_ms;  /* above 0 */
    const void *key; /* NULL: the default */
    size_t key_length;
    uint32_t retries;    /* more attempts if the host cannot be reached, its
                            name is unknown or the connection breaks, within
                            the timeout.  An answer is final, also "unknown
                            key" */
    uint32_t backoff_ms; /* before the second attempt; doubles each time, up
                            to one second; VNX_SIDE_CHANNEL_BACKOFF_MS */
} vnx_side_channel_request_params_t;

/* Request the metadata of the listener at host:port.  The channel itself need
 * not be listening.  Many requests may run at once.  A request tries all
 * addresses of the name, one every 250 ms, and uses the first that answers.
 * On VNX_OK *metadata_p (owned by the caller: free(); not NULL even if empty)
 * and *length_p are set.
 * Errors: VNX_ERR_TIMEOUT, VNX_ERR_BACKEND (refused, reset, ...),
 * VNX_ERR_NOT_FOUND (unknown name, nothing under the key), VNX_ERR_NOT_ALLOWED
 * (the secrets differ, only one side has one, the certificate is not trusted,
 * or over HTTP the secret would go unencrypted to another machine),
 * VNX_ERR_MISMATCH (the reply is invalid, or longer than max_frame),
 * VNX_ERR_INVALID_PARAM, VNX_ERR_NO_MEMORY. */
vnx_status_t
vnx_side_channel_request_with(vnx_side_channel_t *channel,
                              const vnx_side_channel_request_params_t *params,
                              void **metadata_p, size_t *length_p,
                              vnx_error_t *error);

/* The same for the default key, with one attempt. */
vnx_status_t vnx_side_channel_request(vnx_side_channel_t *channel,
                                      const char *host, int port,
                                      int timeout_ms, void **metadata_p,
                                      size_t *length_p, vnx_error_t *error);

/* The result of one of many requests. */
typedef struct vnx_side_channel_answer {
    vnx_status_t status;
    void *metadata; /* if VNX_OK: owned, free(); else NULL */
    size_t length;
    vnx_error_t error; /* if status is not VNX_OK */
} vnx_side_channel_answer_t;

/* Send many requests at once from the calling thread, each with its own
 * deadline.  Returns when all have ended: VNX_OK if every request has an
 * answer, which may be an error; VNX_ERR_INVALID_PARAM or VNX_ERR_NO_MEMORY if
 * no request was sent. */
vnx_status_t
vnx_side_channel_request_many(vnx_side_channel_t *channel,
                              const vnx_side_channel_request_params_t *params,
                              size_t count, vnx_side_channel_answer_t *answers,
                              vnx_error_t *error);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
