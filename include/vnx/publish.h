/*
 * Publishing: everything that a peer needs, in one exchange.
 *
 * A prefill process publishes its metadata and named lists of rows.  A decode
 * process attaches: it fetches both with one request, loads the metadata, and
 * gets a prepared list for each name.
 *
 *     vnx_named_rows_t kv = {.name = "kv", .rows = rows, .count = 4096};
 *     vnx_publish_params_t params = {
 *         .size = sizeof params, .port = 18000, .lists = &kv, .count = 1};
 *     vnx_publish(agent, channel, &params, NULL, &error);       (prefill)
 *
 *     vnx_attach(agent, channel, "prefill-host", 18000, 5000, 0, &peer,
 *                &error);                                       (decode)
 *     vnx_peer_rows(peer, "kv", &remote, &error);
 *
 * Both use a side channel (vnx/side_channel.h) of any transport, with its
 * secret or TLS.  ZMQ works between two libvnx programs only.  Wire format:
 * docs/wire.md, "Publications".
 *
 * Threads: any call may be made from any thread at any time.
 * Waiting: vnx_attach() waits for the network, for at most its timeout.  Then
 * it loads the metadata, as vnx_agent_load_metadata(), which may wait for
 * another 10 s if the peer is on this host and its process is stopped; and it
 * checks and prepares the lists: about 0.1 us for each row that is not at a
 * regular stride.
 * vnx_publish() waits for the resolver if it starts the listener and `host` is
 * a name.  No other call waits.
 * Forks: as for agents and side channels.
 */
#ifndef VNX_PUBLISH_H
#define VNX_PUBLISH_H

#include <stddef.h>
#include <stdint.h>
#include <vnx/error.h>
#include <vnx/side_channel.h>
#include <vnx/vnx.h>

#ifdef __cplusplus
extern "C" {
#endif
#pragma GCC visibility push(default)

/* The key of the side channel under which a publication is served. */
#define VNX_PUBLICATION_KEY "vnx.publication"

#define VNX_LIST_NAME_MAX 255 /* bytes of a name, without the final NUL */
#define VNX_PUBLISH_LISTS_MAX 4096
#define VNX_PUBLISH_ROWS_MAX (UINT32_C(1) << 26) /* of all lists together */

/* Rows under a name, in one of two forms: `rows`, or, if that is NULL,
 * `strided`, whose rows stand for `count` rows each.  The strided form takes
 * 40 bytes of a publication for any number of rows at a regular stride; the
 * other form takes 24 bytes a row. */
typedef struct vnx_named_rows {
    const char *name; /* 1 to VNX_LIST_NAME_MAX bytes of any value but 0 */
    vnx_mem_t mem;
    const vnx_desc_t *rows;
    const vnx_strided_desc_t *strided;
    size_t count; /* of `rows` or of `strided`; above 0 */
} vnx_named_rows_t;

/* -- Publishing ----------------------------------------------------------- */

/* Set `size` first. */
typedef struct vnx_publish_params {
    size_t size;      /* sizeof(vnx_publish_params_t) */
    const char *host; /* where to listen; see
                         vnx_side_channel_start_params_t.  NULL if the
                         listener is running: where it is */
    int port;         /* 0: any free port, or that of the running listener */
    const vnx_named_rows_t *lists; /* borrowed */
    size_t count;                  /* may be 0: metadata only */
} vnx_publish_params_t;

/* Publish the agent's current metadata and the lists, until the next call or
 * until the listener is shut down.  Starts the listener of `channel` if it is
 * not running.  Serves the publication under VNX_PUBLICATION_KEY, and the
 * metadata alone under the default key for clients that only request metadata;
 * other keys of a running listener stay.  Call it again after registering more
 * memory, or with other lists: it replaces both.  An exchange that has begun
 * still gets the previous publication.  Of two calls at the same time either
 * may be the last; if neither finds the listener running, one of them may get
 * VNX_ERR_NOT_ALLOWED.  *port_p (port_p may be NULL) is the port.
 *
 * Each row is checked as by vnx_dlist_create().  The record of an error in a
 * list names the list and the row.
 * Errors: those of vnx_agent_metadata(), vnx_dlist_create() and
 * vnx_side_channel_start_with(); VNX_ERR_INVALID_PARAM (a name that is empty,
 * too long or used twice, too many lists or rows); VNX_ERR_NOT_ALLOWED (the
 * listener is already running on another port or host).  After an error,
 * what was published before is unchanged. */
vnx_status_t vnx_publish(vnx_agent_t *agent, vnx_side_channel_t *channel,
                         const vnx_publish_params_t *params, int *port_p,
                         vnx_error_t *error);

/* -- Attaching ------------------------------------------------------------ */

/* A peer that was attached: its name, its lists, and a prepared list for each.
 * Constant.  It describes one generation of the peer: when the peer has
 * restarted, transfers from its lists fail with VNX_ERR_REMOTE_DISCONNECT.
 * Attach again then. */
typedef struct vnx_peer vnx_peer_t;

/* Fetch the publication at host:port, load its metadata and prepare its lists.
 * `timeout_ms` and `retries`, which limit the fetching: as in
 * vnx_side_channel_request_params_t.
 * Returns owned: vnx_peer_free().
 *
 * Each row is checked against the regions in the metadata as by
 * vnx_dlist_create(), and, as always, the owner confirms regions of this host
 * before any byte moves.  If a list is refused, the metadata stays loaded.
 * Every record names host:port; that of an error in a list also the peer, the
 * list and the row.
 * Errors: those of vnx_side_channel_request_with(), vnx_agent_load_metadata()
 * and vnx_dlist_create(); VNX_ERR_NOT_FOUND (the listener serves no
 * publication); VNX_ERR_MISMATCH (not a publication, or a damaged one);
 * VNX_ERR_NOT_ALLOWED (the agent has a metadata secret and the publication is
 * not signed with it). */
vnx_status_t vnx_attach(vnx_agent_t *agent, vnx_side_channel_t *channel,
                        const char *host, int port, int timeout_ms,
                        uint32_t retries, vnx_peer_t **out_p,
                        vnx_error_t *error);

/* Free it.  The peer stays loaded (vnx_agent_remove_peer() removes it), and so
 * do prepared lists that were retained.  NULL is allowed. */
void vnx_peer_free(vnx_peer_t *peer);

/* The name of the agent, followed by a NUL; valid as long as `peer`. */
const char *vnx_peer_name(const vnx_peer_t *peer, size_t *len_p);

/* The i-th list, in the publisher's order; NULL past the last one.  Valid as
 * long as `peer`. */
const vnx_named_rows_t *vnx_peer_list(const vnx_peer_t *peer, size_t i);

/* Get the prepared list of a name.  *rows_p is borrowed from `peer`; retain it
 * with vnx_dlist_retain() to keep it longer.  VNX_ERR_NOT_FOUND: the peer has
 * no such list; the record names those that it has. */
vnx_status_t vnx_peer_rows(const vnx_peer_t *peer, const char *name,
                           vnx_dlist_t **rows_p, vnx_error_t *error);

#pragma GCC visibility pop
#ifdef __cplusplus
}
#endif
#endif
