#include "listener/listener.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"

/* Report the failure of a command received on `conn`.  The error gets the
 * endpoint unless it has a peer. */
static void
report(vnxi_meta_conn_t *conn, vnx_error_t *failure)
{
    if (failure->peer[0] == '\0') {
        vnxi_error_peer(failure, conn->endpoint, strlen(conn->endpoint));
    }
    vnxi_meta_failure(conn->listener, failure);
}

/* Metadata has arrived.  If it was requested, check that it comes from the
 * expected agent. */
static void
check_answer(vnxi_meta_conn_t *conn, const vnx_bytes_t *name)
{
    vnxi_meta_frame_t *request = vnxi_meta_conn_answered(conn);
    if (request == NULL) {
        return;
    }
    if (name->data != NULL && request->peer_len > 0 &&
        (request->peer_len != name->len ||
         memcmp(request->peer, name->data, name->len) != 0)) {
        vnx_error_t failure;
        vnxi_error_set(
            &failure, VNX_ERR_MISMATCH, "vnx_listener_fetch",
            "expected agent '%.*s' at %s; loaded the one that answered",
            (int)request->peer_len, (const char *)request->peer,
            conn->endpoint);
        vnxi_error_peer(&failure, name->data, name->len);
        report(conn, &failure);
    }
    vnxi_meta_sent(conn->listener, request);
}

static void
load(vnxi_meta_conn_t *conn, const vnxi_meta_command_t *command)
{
    vnx_listener_t *listener = conn->listener;
    vnx_bytes_t name = {0};
    vnx_error_t failure;

    vnx_status_t status = vnx_agent_load_metadata(
        listener->agent, command->body, command->len, &name, &failure);
    if (status < 0) {
        report(conn, &failure);
        vnxi_meta_count(&listener->counters.load_failures);
    } else {
        vnxi_meta_count(&listener->counters.loaded);
    }
    check_answer(conn, &name);
    free(name.data);
}

static void
serve(vnxi_meta_conn_t *conn)
{
    vnx_listener_t *listener = conn->listener;
    vnxi_meta_frame_t *frame = NULL;
    vnx_bytes_t metadata;
    vnx_error_t failure;

    vnx_status_t status =
        vnx_agent_metadata(listener->agent, &metadata, &failure);
    if (status < 0) {
        report(conn, &failure);
        return;
    }
    if (metadata.len + VNXI_META_COMMAND_MIN > listener->options.max_frame) {
        vnxi_error_set(&failure, VNX_ERR_INVALID_PARAM,
                       vnxi_meta_operation(VNXI_META_LOAD),
                       "%zu bytes of metadata are above max_frame",
                       metadata.len);
        report(conn, &failure);
    } else {
        frame = vnxi_meta_frame_new(
            &(vnxi_meta_message_t){.verb = VNXI_META_LOAD,
                                   .host = "",
                                   .body = metadata.data,
                                   .body_len = metadata.len});
    }
    free(metadata.data);
    if (frame != NULL) {
        frame->is_reply = true;
        vnxi_meta_conn_push(conn, frame);
    }
}

/* Return whether the name is that of a known peer; our own name is not. */
static bool
is_peer(vnx_agent_t *agent, const void *name, size_t len)
{
    size_t own_len;
    const void *own = vnx_agent_name(agent, &own_len);
    return len > 0 && (len != own_len || memcmp(name, own, len) != 0) &&
           vnx_agent_check_peer(agent, name, len, VNX_MEM_DRAM, NULL, 0);
}

static void
invalidate(vnxi_meta_conn_t *conn, const vnxi_meta_command_t *command)
{
    vnx_listener_t *listener = conn->listener;
    vnx_error_t failure;

    if (!is_peer(listener->agent, command->body, command->len)) {
        return;
    }
    if (vnx_agent_remove_peer(listener->agent, command->body, command->len,
                              &failure) < 0) {
        report(conn, &failure);
    } else {
        vnxi_meta_count(&listener->counters.invalidated);
    }
}

static void
unknown(vnxi_meta_conn_t *conn, const vnxi_meta_command_t *command)
{
    vnx_error_t failure;
    char verb[5] = "";

    for (size_t i = 0; i < command->len && i < sizeof verb - 1; i++) {
        verb[i] = vnxi_error_printable(command->body[i]);
    }
    vnxi_error_set(&failure, VNX_ERR_NOT_SUPPORTED, "vnx_listener_start",
                   "unknown command '%s', ignored", verb);
    report(conn, &failure);
}

const char *
vnxi_meta_perform(vnxi_meta_conn_t *conn, const void *payload, size_t len)
{
    vnxi_meta_command_t command;
    vnxi_meta_cursor_t cursor;

    if (!vnxi_meta_commands(payload, len, &cursor)) {
        return "not a frame of NIXL's metadata listener";
    }
    for (int i = 0; vnxi_meta_command_next(&cursor, &command); i++) {
        if (i == VNXI_META_COMMANDS_MAX) {
            return "too many commands in a frame";
        }
        switch (command.verb) {
        case VNXI_META_LOAD:
            load(conn, &command);
            break;
        case VNXI_META_SEND:
            serve(conn);
            break;
        case VNXI_META_INVL:
            invalidate(conn, &command);
            break;
        default:
            unknown(conn, &command);
            break;
        }
    }
    return NULL;
}
