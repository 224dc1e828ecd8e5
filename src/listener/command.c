#include "listener/listener.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"

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
        vnxi_meta_failure(listener, conn->endpoint, &failure);
        return;
    }
    if (metadata.len + VNXI_META_COMMAND_MIN > listener->options.max_frame) {
        vnxi_error_set(&failure, VNX_ERR_INVALID_PARAM,
                       vnxi_meta_operation(VNXI_META_LOAD),
                       "%zu bytes of metadata are above max_frame",
                       metadata.len);
        vnxi_meta_failure(listener, conn->endpoint, &failure);
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
    vnxi_meta_failure(conn->listener, conn->endpoint, &failure);
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
            vnxi_meta_lane_push(conn->listener, conn->lane, &command,
                                vnxi_meta_conn_answered(conn));
            break;
        case VNXI_META_INVL:
            vnxi_meta_lane_push(conn->listener, conn->lane, &command, NULL);
            break;
        case VNXI_META_SEND:
            serve(conn);
            break;
        default:
            unknown(conn, &command);
            break;
        }
    }
    return NULL;
}
