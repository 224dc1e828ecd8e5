/* The memory held by connections, and how connections end: by themselves,
 * refused, late, to make room, or when the loop ends. */
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/fork_fds.h"
#include "listener/listener.h"

void
vnxi_meta_conn_hold(vnxi_meta_conn_t *conn, size_t bytes)
{
    conn->listener->loop.held += bytes - conn->held;
    conn->held = bytes;
}

void
vnxi_meta_conn_drop_reply(vnxi_meta_conn_t *conn, vnxi_meta_frame_t *frame)
{
    conn->replies--;
    conn->reply_bytes -= frame->len;
    free(frame);
}

/* Fail our commands among `frames` and free all frames. */
static void
drop_frames(vnxi_meta_conn_t *conn, struct vnxi_meta_frames *frames)
{
    vnxi_meta_frame_t *frame;

    while ((frame = TAILQ_FIRST(frames)) != NULL) {
        TAILQ_REMOVE(frames, frame, link);
        if (frame->is_reply) {
            vnxi_meta_conn_drop_reply(conn, frame);
            continue;
        }
        vnxi_meta_unsent(conn->listener, frame, conn->endpoint, VNX_ERR_CLOSED,
                         "the agent's metadata listener was stopped before "
                         "the command was done");
        if (frames == &conn->out) {
            vnxi_meta_loop_left(conn->listener);
        }
    }
}

void
vnxi_meta_conn_list(vnxi_meta_conn_t *conn, struct vnxi_meta_conns *list)
{
    vnxi_meta_loop_t *loop = &conn->listener->loop;

    if (conn->list != NULL) {
        TAILQ_REMOVE(conn->list, conn, link);
    } else if (conn->is_ours) {
        loop->opened++;
    } else {
        loop->accepted++;
        vnxi_meta_count(&conn->listener->counters.open);
    }
    conn->list = list;
    if (list != NULL) {
        TAILQ_INSERT_TAIL(list, conn, link);
    } else if (conn->is_ours) {
        loop->opened--;
    } else {
        loop->accepted--;
        atomic_fetch_sub(&conn->listener->counters.open, 1);
    }
}

void
vnxi_meta_conn_cut(vnxi_meta_conn_t *conn)
{
    event_del(conn->in_timer);
    event_del(conn->out_timer);
    event_del(conn->reply_timer);
    if (conn->bev != NULL) {
        bufferevent_disable(conn->bev, EV_READ | EV_WRITE);
        bufferevent_free(conn->bev);
        conn->bev = NULL;
    }
    if (conn->fd >= 0) {
        /* A forked child may hold a copy of the socket.  Closing ours would
         * then not notify the peer. */
        shutdown(conn->fd, SHUT_RDWR);
        vnxi_fork_fd_close(conn->fd);
        conn->fd = -1;
    }
    conn->is_writing = conn->is_paused = conn->is_in_frame = false;
    vnxi_meta_conn_hold(conn, 0);
}

void
vnxi_meta_conn_free(vnxi_meta_conn_t *conn)
{
    vnxi_meta_conn_cut(conn);
    drop_frames(conn, &conn->awaiting);
    drop_frames(conn, &conn->out);
    vnxi_meta_target_fini(&conn->target);
    if (conn->list != NULL) {
        vnxi_meta_conn_list(conn, NULL);
    }
    event_free(conn->in_timer);
    event_free(conn->out_timer);
    event_free(conn->reply_timer);
    free(conn);
}

void
vnxi_meta_conn_end(vnxi_meta_conn_t *conn, vnx_status_t status,
                   const char *cause)
{
    if (conn->is_ours) {
        vnxi_meta_client_failed(conn, status, cause);
    } else {
        vnxi_meta_conn_free(conn);
    }
}

void
vnxi_meta_conn_refuse(vnxi_meta_conn_t *conn, const char *cause)
{
    vnx_error_t failure;

    if (!conn->is_ours) {
        vnxi_error_set(&failure, VNX_ERR_MISMATCH, "metadata_listener",
                       "connection closed: %s", cause);
        vnxi_error_peer(&failure, conn->endpoint, strlen(conn->endpoint));
        vnxi_meta_failure(conn->listener, &failure);
    }
    vnxi_meta_count(&conn->listener->counters.refused);
    vnxi_meta_conn_end(conn, VNX_ERR_MISMATCH, cause);
}

void
vnxi_meta_conn_late(vnxi_meta_conn_t *conn, const char *cause)
{
    vnxi_meta_count(&conn->listener->counters.timed_out);
    vnxi_meta_conn_end(conn, VNX_ERR_TIMEOUT, cause);
}

bool
vnxi_meta_conn_evict(vnx_listener_t *listener)
{
    vnxi_meta_loop_t *loop = &listener->loop;
    vnxi_meta_conn_t *conn = TAILQ_FIRST(&loop->strangers);

    if (conn == NULL) {
        conn = TAILQ_FIRST(&loop->known);
    }
    if (conn == NULL) {
        return false;
    }
    vnxi_meta_count(&listener->counters.evicted);
    vnxi_meta_conn_free(conn);
    return true;
}
