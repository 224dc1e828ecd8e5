#include "side_channel/server.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/at_end.h"
#include "base/error.h"
#include "base/fork.h"
#include "base/fork_fds.h"
#include "base/log.h"
#include "base/mutex.h"

#define WRITE_MAX (512u << 10) /* per client and round of the loop */

/* -- Counters ------------------------------------------------------------- */

/* Return the bucket of a latency: 0 is below 1 us, i is from 2^(i-1) to 2^i
 * us. */
static unsigned
latency_bucket(uint64_t ns)
{
    uint64_t us = ns / 1000;
    unsigned bits = us == 0 ? 0 : 64 - (unsigned)__builtin_clzll(us);
    return bits < VNX_SIDE_CHANNEL_LATENCIES ? bits
                                             : VNX_SIDE_CHANNEL_LATENCIES - 1;
}

void
vnxi_stats_read(const vnxi_side_stats_t *stats,
                vnx_side_channel_stats_t *out_p)
{
    *out_p = (vnx_side_channel_stats_t){
        .accepted = atomic_load(&stats->accepted),
        .served = atomic_load(&stats->served),
        .refused = atomic_load(&stats->refused),
        .timed_out = atomic_load(&stats->timed_out),
        .evicted = atomic_load(&stats->evicted),
        .open = atomic_load(&stats->open),
        .bytes_received = atomic_load(&stats->bytes_received),
        .bytes_sent = atomic_load(&stats->bytes_sent),
    };
    for (int i = 0; i < VNX_SIDE_CHANNEL_REFUSALS; i++) {
        out_p->refusals[i] = atomic_load(&stats->refusals[i]);
    }
    for (int i = 0; i < VNX_SIDE_CHANNEL_LATENCIES; i++) {
        out_p->latency[i] = atomic_load(&stats->latency[i]);
    }
}

const char *
vnx_side_channel_refusal_name(vnx_side_channel_refusal_t refusal)
{
    static const char *const names[] = {
#define REFUSAL_NAME(symbol, name) name,
        VNX_SIDE_CHANNEL_REFUSAL_TABLE(REFUSAL_NAME)
#undef REFUSAL_NAME
    };
    return (unsigned)refusal < VNX_SIDE_CHANNEL_REFUSALS ? names[refusal]
                                                         : NULL;
}

/* -- One connection ------------------------------------------------------- */

struct bufferevent *
vnxi_conn_stream(vnxi_server_t *server, int fd, int options, void **tls_p)
{
    return VNXI_TLS_IS_THERE && server->tls != NULL
               ? vnxi_tls_accept(server->tls, server->loop.base, fd, options,
                                 tls_p)
               : bufferevent_socket_new(server->loop.base, fd, options);
}

void
vnxi_conn_add(vnxi_conn_t *conn)
{
    conn->state = VNXI_CONN_READ;
    TAILQ_INSERT_TAIL(&conn->server->conns[VNXI_CONN_READ], conn, link);
    conn->server->open++;
    vnxi_stat_add(&conn->server->stats->open);
}

void
vnxi_conn_remove(vnxi_conn_t *conn)
{
    TAILQ_REMOVE(&conn->server->conns[conn->state], conn, link);
    conn->server->open--;
    vnxi_stat_sub(&conn->server->stats->open);
}

void
vnxi_conn_move(vnxi_conn_t *conn, vnxi_conn_state_t state)
{
    TAILQ_REMOVE(&conn->server->conns[conn->state], conn, link);
    conn->state = state;
    TAILQ_INSERT_TAIL(&conn->server->conns[state], conn, link);
}

void
vnxi_conn_tune(vnxi_conn_t *conn, int fd, size_t input_max)
{
    int on = 1;

    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    bufferevent_setwatermark(conn->bev, EV_READ, 0, input_max);
    bufferevent_set_max_single_write(conn->bev, WRITE_MAX);
}

void
vnxi_conn_sent(vnxi_conn_t *conn, size_t count)
{
    vnxi_stat_add_count(&conn->server->stats->bytes_sent, count);
    if (conn->state == VNXI_CONN_WRITE && count > 0) {
        vnxi_conn_move(conn, VNXI_CONN_WRITE);
    }
}

void
vnxi_conn_served(const vnxi_conn_t *conn)
{
    vnxi_side_stats_t *stats = conn->server->stats;

    if (!conn->turned_away) {
        uint64_t ns = vnxi_clock_ns() - conn->start;
        vnxi_stat_add(&stats->served);
        vnxi_stat_add(&stats->latency[latency_bucket(ns)]);
    }
}

void
vnxi_conn_drop_unsent(int fd)
{
    struct linger at_once = {.l_onoff = 1, .l_linger = 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
}

static void
on_blob_sent(const void *data, size_t len, void *blob)
{
    (void)data, (void)len;
    vnxi_blob_release(blob);
}

bool
vnxi_conn_write_blob(struct evbuffer *output, vnxi_blob_t *blob)
{
    if (blob->len > 0 && evbuffer_add_reference(output, blob->data, blob->len,
                                                on_blob_sent, blob) == 0) {
        return true;
    }
    bool is_empty = blob->len == 0;
    vnxi_blob_release(blob);
    return is_empty;
}

/* -- All connections ------------------------------------------------------ */

/* Close a connection to make room, from the first state that has any the
 * longest idle.  False: there is none. */
static bool
evict(void *arg)
{
    vnxi_server_t *server = arg;

    for (int state = 0; state < VNXI_CONN_STATES; state++) {
        vnxi_conn_t *conn = TAILQ_FIRST(&server->conns[state]);
        if (conn != NULL) {
            if (state != VNXI_CONN_KEPT) {
                vnxi_stat_add(&server->stats->evicted);
            }
            server->protocol->drop(conn);
            return true;
        }
    }
    return false;
}

void
vnxi_server_make_room(vnxi_server_t *server)
{
    if (server->open >= server->options->max_connections) {
        evict(server);
    }
}

/* -- Accepting ------------------------------------------------------------ */

static void
on_client(void *arg, int fd, const vnxi_address_t *from)
{
    vnxi_server_t *server = arg;

    vnxi_stat_add(&server->stats->accepted);
    if (server->rate != NULL &&
        !vnxi_rate_take(server->rate, &from->addr, vnxi_clock_ns())) {
        vnxi_stat_refused(server->stats, VNX_SIDE_CHANNEL_REFUSED_RATE);
        close(fd);
    } else if (vnxi_acceptor_has_left(fd)) {
        close(fd);
    } else {
        vnxi_server_make_room(server);
        server->protocol->accept(server, fd);
    }
}

/* A client was closed for lack of descriptors. */
static void
on_refused(void *arg)
{
    vnxi_server_t *server = arg;

    vnxi_stat_add(&server->stats->accepted);
    vnxi_stat_add(&server->stats->evicted);
}

static const vnxi_acceptor_ops_t acceptor_ops = {
    .accept = on_client, .evict = evict, .refused = on_refused};

/* -- The end of the process ----------------------------------------------- */

/* A process may end without having stopped its servers.  Exit handlers of
 * OpenSSL then free what the thread of a server with TLS uses. */
static vnxi_mutex_t servers_lock = VNXI_MUTEX_INIT(VNXI_RANK_SERVERS);
static LIST_HEAD(, vnxi_server) servers; /* with TLS; protected by the lock */

/* A thread that does not end within this time is held up by the program's
 * function for lines of the log.  Waiting longer could turn a crash into a
 * hang. */
#define END_NS UINT64_C(1000000000)

static void
forget_in_child(void)
{
    vnxi_mutex_init(&servers_lock, VNXI_RANK_SERVERS);
    LIST_INIT(&servers);
}

/* Clients that connect after the thread has ended are refused. */
static bool
end_by(vnxi_server_t *server, uint64_t deadline)
{
    const vnxi_sockets_t *sockets = &server->acceptor.sockets;

    if (!vnxi_loop_join_by(&server->loop, deadline)) {
        return false;
    }
    for (size_t i = 0; i < sockets->count; i++) {
        shutdown(sockets->fds[i], SHUT_RDWR);
    }
    return true;
}

static void
end_all(void)
{
    uint64_t deadline = vnxi_clock_deadline(END_NS);
    vnxi_server_t *server;

    vnxi_mutex_lock(&servers_lock);
    LIST_FOREACH(server, &servers, link)
    {
        vnxi_loop_wake(&server->loop);
    }
    LIST_FOREACH(server, &servers, link)
    {
        server->has_ended = server->has_ended || end_by(server, deadline);
    }
    vnxi_mutex_unlock(&servers_lock);
}

/* After its thread has started, and OpenSSL with it.  The hook is added last:
 * if the process is ending, it is called for this server, too. */
static void
enlist(vnxi_server_t *server)
{
    vnxi_fork_on_child(forget_in_child);
    vnxi_mutex_lock(&servers_lock);
    LIST_INSERT_HEAD(&servers, server, link);
    vnxi_mutex_unlock(&servers_lock);
    vnxi_at_end_add(end_all);
}

/* Has its thread ended already? */
static bool
delist(vnxi_server_t *server)
{
    vnxi_mutex_lock(&servers_lock);
    LIST_REMOVE(server, link);
    bool has_ended = server->has_ended;
    vnxi_mutex_unlock(&servers_lock);
    return has_ended;
}

/* -- Creation and end ----------------------------------------------------- */

static void
drop_all(vnxi_server_t *server)
{
    vnxi_conn_t *conn;

    for (int state = 0; state < VNXI_CONN_STATES; state++) {
        while ((conn = TAILQ_FIRST(&server->conns[state])) != NULL) {
            server->protocol->drop(conn);
        }
    }
}

/* The end.  The connections are closed by this thread, because TLS writes to
 * them, and it is this thread that SIGPIPE does not end. */
static void
on_wake(void *arg)
{
    vnxi_server_t *server = arg;

    drop_all(server);
    event_base_loopbreak(server->loop.base);
}

/* Create the loop, and everything on it.  False: errno has the cause. */
static bool
loop_init(vnxi_server_t *server, const vnxi_sockets_t *sockets)
{
    const vnx_side_channel_options_t *options = server->options;
    const vnxi_protocol_t *protocol = server->protocol;

    server->timeout =
        vnxi_loop_timeout(&server->loop, options->client_timeout_ms);
    if (options->idle_timeout_ms < options->client_timeout_ms) {
        server->idle =
            vnxi_loop_timeout(&server->loop, options->idle_timeout_ms);
    }
    return vnxi_acceptor_open(&server->acceptor, &server->loop, sockets,
                              &acceptor_ops) &&
           server->timeout != NULL &&
           (protocol->begin == NULL || protocol->begin(server));
}

static vnx_status_t
server_init(vnxi_server_t *server, const vnxi_listen_params_t *params,
            vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;
    vnxi_sockets_t sockets;

    if (server->options->max_rate > 0) {
        server->rate = vnxi_rate_create(server->options->max_rate);
        if (server->rate == NULL) {
            return vnxi_error_no_memory(error, params->bind.operation,
                                        sizeof(void *));
        }
    }
    if (VNXI_TLS_IS_THERE && server->options->tls != VNXI_TLS_NONE) {
        status = vnxi_tls_server_context(
            server->options, params->bind.operation, &server->tls, error);
    }
    if (status == VNX_OK) {
        status = vnxi_sockets_open(&params->bind, &sockets, error);
    }
    if (status != VNX_OK) {
        return status;
    }
    server->port = sockets.port;
    if (!vnxi_loop_init(&server->loop, on_wake, server)) {
        int err = errno;
        vnxi_sockets_close(&sockets);
        return vnxi_bind_failed(&params->bind, error, "making the loop", err);
    }
    if (!loop_init(server, &sockets)) {
        return vnxi_bind_failed(&params->bind, error, "making the loop",
                                errno);
    }
    int err = vnxi_loop_start(&server->loop, server->protocol->thread_name);
    if (err != 0) {
        return vnxi_bind_failed(&params->bind, error, "starting the thread",
                                err);
    }
    vnxi_log(VNX_LOG_INFO, NULL, "side channel: listening on port %d",
             server->port);
    return VNX_OK;
}

/* Free a server whose creation may be incomplete.  No thread runs.  If its
 * loop failed, it still has connections. */
static void
server_free(vnxi_server_t *server)
{
    drop_all(server);
    if (server->protocol->end != NULL) {
        server->protocol->end(server);
    }
    vnxi_acceptor_close(&server->acceptor);
    vnxi_loop_fini(&server->loop);
    if (VNXI_TLS_IS_THERE) {
        vnxi_tls_context_free(server->tls);
    }
    vnxi_rate_free(server->rate);
    free(server);
}

vnx_status_t
vnxi_server_start(const vnxi_protocol_t *protocol,
                  const vnxi_listen_params_t *params, vnxi_server_t **out_p,
                  vnx_error_t *error)
{
    vnxi_server_t *server = calloc(1, protocol->server_size);
    if (server == NULL) {
        return vnxi_error_no_memory(error, params->bind.operation,
                                    protocol->server_size);
    }
    server->protocol = protocol;
    server->options = params->options;
    server->stats = params->stats;
    server->blobs = params->blobs;
    for (int i = 0; i < VNXI_CONN_STATES; i++) {
        TAILQ_INIT(&server->conns[i]);
    }
    vnx_status_t status = server_init(server, params, error);
    if (status != VNX_OK) {
        server_free(server);
        return status;
    }
    if (server->tls != NULL) {
        enlist(server);
    }
    *out_p = server;
    return VNX_OK;
}

bool
vnxi_server_stop(vnxi_server_t *server)
{
    bool has_ended = server->tls != NULL && delist(server);

    vnxi_loop_wake(&server->loop);
    /* Freeing the server would close descriptor numbers that belong to other
     * files now. */
    if (has_ended ? vnxi_fds_lost(server->loop.fds)
                  : !vnxi_loop_join(&server->loop)) {
        return false;
    }
    server_free(server);
    return true;
}
