/*
 * Side channel: a small server and client that hand agents' metadata over.
 *
 * Transports (TCP, ZMQ as vLLM speaks it, HTTP) stand behind one contract, so
 * a program chooses one by a constant and nothing else changes.  Wire formats:
 * docs/wire.md.
 *
 * Keys: a listener serves one blob for each key, a key being up to
 * VNX_SIDE_CHANNEL_KEY_MAX bytes.  The empty key is the default: what a
 * request that names none gets.  Keys that stand for ranks are decimal numbers
 * with commas between, "0,1" for pipeline rank 0 and tensor rank 1, in every
 * transport.
 *
 * Threads: every call may be made from any thread at any time; freeing while
 * other threads are inside a call is safe.  A listener has one thread of its
 * own however many clients there are.
 * Waiting: requests wait, for their timeout at most over the whole exchange
 * (name look-up, connecting, proving, sending, receiving, further tries).
 * Starting waits for the look-up of a `host` that is a name, for
 * VNX_SIDE_CHANNEL_TIMEOUT_MS at most.  Nothing else waits; shutting down does
 * not wait for clients.
 * Forks: a listener stays the parent's.  In a forked child it is not running,
 * its port is not held, starting is VNX_ERR_NOT_ALLOWED, shutting down and
 * freeing do nothing; requests work.
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
#define VNX_SIDE_CHANNEL_ADDRESS_MAX 262 /* with the final NUL */
#define VNX_SIDE_CHANNEL_BACKOFF_MS 50

/* For start_params.port: VLLM_NIXL_SIDE_CHANNEL_PORT of the environment, or
 * 5600, which is vLLM's. */
#define VNX_SIDE_CHANNEL_PORT_DEFAULT (-1)

/* For request_params.retries: until the deadline. */
#define VNX_SIDE_CHANNEL_RETRY_ALWAYS UINT32_MAX

typedef enum vnx_side_channel_kind {
    VNX_SIDE_CHANNEL_TCP = 0,
    VNX_SIDE_CHANNEL_ZMQ = 1,
    VNX_SIDE_CHANNEL_HTTP = 2,
} vnx_side_channel_kind_t;

typedef struct vnx_side_channel vnx_side_channel_t;

/* Is the transport in this build? */
bool vnx_side_channel_has(vnx_side_channel_kind_t kind);

/* -- Making --------------------------------------------------------------- */

/* Every field may be 0 (or NULL) for its default.  Set `size` first.  Strings
 * are copied. */
typedef struct vnx_side_channel_options {
    size_t size;                 /* sizeof(vnx_side_channel_options_t) */
    uint32_t max_frame;          /* bytes of one blob that we accept or serve;
                                    VNX_SIDE_CHANNEL_MAX_FRAME */
    uint32_t max_connections;    /* at once; the oldest idle one gives way to a
                                    new one.  4096, or what RLIMIT_NOFILE lets */
    uint32_t client_timeout_ms;  /* a client's whole exchange, at the server;
                                    VNX_SIDE_CHANNEL_TIMEOUT_MS */
    uint32_t idle_timeout_ms;    /* a client that neither sends nor takes, at
                                    the server; client_timeout_ms */
    uint32_t max_rate;           /* new connections a second from one address
                                    (of IPv6 one /64); no limit.  Twice as many
                                    may come at once */
    uint32_t tls;                /* 1: speak TLS; so does each of the next four
                                    that is set */
    const char *tls_certificate; /* PEM file, the chain; to listen */
    const char *tls_key;         /* PEM file; to listen */
    const char *tls_ca;          /* PEM file: whom requests trust; the
                                    system's */
    const char *tls_name;        /* the name that requests expect in the
                                    certificate; the host that is asked */
    const char *secret;          /* shared by all that may exchange;
                                    VLLM_NIXL_SIDE_CHANNEL_SECRET, or none */
    const char *advertise;       /* the host that peers shall ask; see
                                    vnx_side_channel_advertised() */
} vnx_side_channel_options_t;

/* Make a side channel.  Starts no thread and opens no socket or file.
 * `options` may be NULL; it is copied.  Returns VNX_OK and *out_p, to be freed
 * with vnx_side_channel_free(), or VNX_ERR_INVALID_PARAM (a secret of fewer
 * than VNX_SIDE_CHANNEL_SECRET_MIN bytes, a certificate without its key, ...),
 * VNX_ERR_NOT_SUPPORTED (the transport, or TLS and secrets, were left out of
 * this build), VNX_ERR_NO_MEMORY. */
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
    /* Where to listen: numeric addresses, names, interfaces of the machine
     * ("eth0": its addresses), several with commas between.  NULL or "":
     * VLLM_NIXL_SIDE_CHANNEL_HOST of the environment, or every address of the
     * machine, IPv6 and IPv4. */
    const char *host;
    int port; /* 0: any free one; VNX_SIDE_CHANNEL_PORT_DEFAULT */
    const vnx_side_channel_blob_t *blobs; /* copied; of equal keys the last */
    size_t count;
} vnx_side_channel_start_params_t;

/* Serve blobs.  When this returns VNX_OK the sockets are listening and *port_p
 * (may be NULL) has the port.  A listener that was shut down may be started
 * again, on the same port too; it serves what that start gives it.
 * Errors: VNX_ERR_NOT_ALLOWED (already running), VNX_ERR_INVALID_PARAM (port
 * above 65535, a blob above max_frame, a key above VNX_SIDE_CHANNEL_KEY_MAX,
 * unknown host, TLS without a certificate, a file that is none),
 * VNX_ERR_BACKEND (the address is in use, ...; the cause says so),
 * VNX_ERR_TIMEOUT (the name service did not answer), VNX_ERR_NO_MEMORY. */
vnx_status_t
vnx_side_channel_start_with(vnx_side_channel_t *channel,
                            const vnx_side_channel_start_params_t *params,
                            int *port_p, vnx_error_t *error);

/* The same with one blob, the default. */
vnx_status_t vnx_side_channel_start(vnx_side_channel_t *channel,
                                    const char *host, int port,
                                    const void *metadata, size_t length,
                                    int *port_p, vnx_error_t *error);

/* Serve `blob` (copied) from now on, in the place of what its key had.
 * Exchanges that have begun end with what they began with.  Errors:
 * VNX_ERR_NOT_ALLOWED (not running), VNX_ERR_INVALID_PARAM, _NO_MEMORY. */
vnx_status_t vnx_side_channel_set(vnx_side_channel_t *channel,
                                  const vnx_side_channel_blob_t *blob,
                                  vnx_error_t *error);

/* Serve nothing under the key any more.  Errors: VNX_ERR_NOT_ALLOWED (not
 * running), VNX_ERR_NOT_FOUND. */
vnx_status_t vnx_side_channel_remove(vnx_side_channel_t *channel,
                                     const void *key, size_t key_length,
                                     vnx_error_t *error);

/* Stop serving; open exchanges are cut off.  Nothing happens when it is not
 * running.  When this returns the port is free. */
void vnx_side_channel_shutdown(vnx_side_channel_t *channel);

bool vnx_side_channel_is_running(const vnx_side_channel_t *channel);

/* The bound port; 0 when not running. */
int vnx_side_channel_port(const vnx_side_channel_t *channel);

/* The host that peers shall ask: options.advertise; or else
 * VLLM_NIXL_SIDE_CHANNEL_HOST, or the first address that the listener was told
 * to bind, or where it has every address, the machine's own first one, IPv4
 * before IPv6, that is no loopback.  `peer` (may be NULL) is who shall ask: a
 * warning is logged where it is on another host and what is advertised is
 * loopback, which it cannot reach.  *port_p may be NULL.  Waits for nothing.
 * Errors: VNX_ERR_NOT_ALLOWED (not running). */
vnx_status_t
vnx_side_channel_advertised(vnx_side_channel_t *channel, const char *peer,
                            char host[VNX_SIDE_CHANNEL_ADDRESS_MAX],
                            int *port_p, vnx_error_t *error);

/* -- What a listener counts ----------------------------------------------- */

/* Why a client was refused: X(symbol, name). */
#define VNX_SIDE_CHANNEL_REFUSAL_TABLE(X)                                  \
    X(MALFORMED, "malformed")     /* no request of the protocol */         \
    X(TOO_LONG, "too_long")       /* a request above the cap */            \
    X(UNKNOWN_KEY, "unknown_key") /* nothing is served under that key */   \
    X(NO_PROOF, "no_proof")       /* a secret is set; it proved nothing */ \
    X(WRONG_PROOF, "wrong_proof") /* another secret, or a replay */        \
    X(TLS, "tls")                 /* no TLS handshake came of it */        \
    X(RATE, "rate")               /* its address came too often */

typedef enum vnx_side_channel_refusal {
#define VNX_SIDE_CHANNEL_REFUSAL_ENUM(symbol, name) \
    VNX_SIDE_CHANNEL_REFUSED_##symbol,
    VNX_SIDE_CHANNEL_REFUSAL_TABLE(VNX_SIDE_CHANNEL_REFUSAL_ENUM)
#undef VNX_SIDE_CHANNEL_REFUSAL_ENUM
        VNX_SIDE_CHANNEL_REFUSALS /* how many there are */
} vnx_side_channel_refusal_t;

/* "unknown_key"; NULL where there is no such reason.  Static storage. */
const char *vnx_side_channel_refusal_name(vnx_side_channel_refusal_t refusal);

#define VNX_SIDE_CHANNEL_LATENCIES 32

typedef struct vnx_side_channel_stats {
    uint64_t accepted; /* connections taken */
    uint64_t served;   /* replies sent whole */
    uint64_t refused;  /* clients turned away for what they sent */
    uint64_t timed_out;
    uint64_t evicted; /* closed to make room for a new one */
    uint64_t open;    /* connections now */
    uint64_t bytes_received, bytes_sent;
    uint64_t refusals[VNX_SIDE_CHANNEL_REFUSALS]; /* of `refused`, by reason */
    /* Replies by their time from the connection (where one carries several,
     * from the request) to the last byte that the kernel took: [0] below 1 us,
     * [i] from 2^(i-1) to 2^i us, the last one all that took longer. */
    uint64_t latency[VNX_SIDE_CHANNEL_LATENCIES];
} vnx_side_channel_stats_t;

/* Since the channel was made; a restart of the listener keeps them. */
void vnx_side_channel_stats(const vnx_side_channel_t *channel,
                            vnx_side_channel_stats_t *stats_p);

/* -- Asking --------------------------------------------------------------- */

/* Set `size` first. */
typedef struct vnx_side_channel_request_params {
    size_t size; /* sizeof(vnx_side_channel_request_params_t) */
    const char *host;
    int port;
    int timeout_ms;  /* above 0 */
    const void *key; /* NULL: the default */
    size_t key_length;
    uint32_t retries;    /* further tries where the peer or its name is not
                            there (yet), or it breaks off; within the timeout.
                            What it answers stands, an unknown key too */
    uint32_t backoff_ms; /* before the second try, doubled each time to one
                            second at most; VNX_SIDE_CHANNEL_BACKOFF_MS */
} vnx_side_channel_request_params_t;

/* Ask the listener at host:port for its metadata.  Needs no listener of one's
 * own; many requests may run at once.  All addresses of the name are tried,
 * the next 250 ms after the one before, and the first that answers is taken.
 * On VNX_OK *metadata_p (to be freed with free(); not NULL even when empty)
 * and *length_p are set.
 * Errors: VNX_ERR_TIMEOUT, VNX_ERR_BACKEND (refused, reset, ...),
 * VNX_ERR_NOT_FOUND (unknown name, nothing under the key), VNX_ERR_NOT_ALLOWED
 * (the secrets differ, or one side has none; the certificate is not trusted),
 * VNX_ERR_MISMATCH (the reply is no reply of this protocol, or above
 * max_frame), VNX_ERR_INVALID_PARAM, VNX_ERR_NO_MEMORY.  Over TCP, who has no
 * secret and asks for the default speaks the first protocol, in which a
 * listener that has one can only hang up: VNX_ERR_BACKEND. */
vnx_status_t
vnx_side_channel_request_with(vnx_side_channel_t *channel,
                              const vnx_side_channel_request_params_t *params,
                              void **metadata_p, size_t *length_p,
                              vnx_error_t *error);

/* The same for the default blob, with one try. */
vnx_status_t vnx_side_channel_request(vnx_side_channel_t *channel,
                                      const char *host, int port,
                                      int timeout_ms, void **metadata_p,
                                      size_t *length_p, vnx_error_t *error);

/* What one request of many came to. */
typedef struct vnx_side_channel_answer {
    vnx_status_t status;
    void *metadata; /* on VNX_OK: free() it; NULL otherwise */
    size_t length;
    vnx_error_t error; /* where status is not VNX_OK */
} vnx_side_channel_answer_t;

/* Ask many peers at once, from the calling thread alone, each with a deadline
 * of its own.  Returns when all have ended, and VNX_OK where each has its
 * answer, also where that is an error; VNX_ERR_INVALID_PARAM or
 * VNX_ERR_NO_MEMORY where nobody was asked. */
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
