#include "listener/listener.h"

#include <stdlib.h>

#include "base/error.h"

static void
serve(vnxi_meta_conn_t *conn)
{
    vnx_listener_t *listener = conn->listener;
    vnxi_meta_message_t message = {.verb = VNXI_META_LOAD, .host = ""};
    vnxi_meta_frame_t *frame = NULL;
    vnx_bytes_t metadata = {0};
    vnx_error_t failure;

    vnx_status_t status =
        vnx_agent_metadata(listener->agent, &metadata, &failure);
    if (status == VNX_OK) {
        message.body = metadata.data;
        message.body_len = metadata.len;
        status = vnxi_meta_frame_new(listener, &message, &frame, &failure);
    }
    free(metadata.data);
    if (status != VNX_OK) {
        vnxi_meta_failure(listener, conn->endpoint, &failure);
        return;
    }
    frame->is_reply = true;
    vnxi_meta_conn_push(conn, frame);
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
            vnxi_meta_source_load(conn->listener, conn->source, &command,
                                  vnxi_meta_conn_answered(conn));
            break;
        case VNXI_META_INVL:
            vnxi_meta_source_invalidate(conn->listener, conn->source,
                                        &command);
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
