#include "engine/native/ucx/notif.h"

#include <string.h>

#include "base/log.h"
#include "engine/parts/metadata.h"

#define PREFIX "nixlSerDes|"
#define TAG_NAME "name"
#define TAG_MESSAGE "msg"

void
vnxi_ucx_notif_write(vnxi_writer_t *writer, const void *sender,
                     size_t sender_len, const void *message,
                     size_t message_len)
{
    vnxi_write_bytes(writer, PREFIX, sizeof PREFIX - 1);
    vnxi_md_field_write(writer, TAG_NAME, sender, sender_len);
    vnxi_md_field_write(writer, TAG_MESSAGE, message, message_len);
}

static bool
take_text(vnxi_reader_t *reader, const char *text)
{
    const unsigned char *bytes = vnxi_read_bytes(reader, strlen(text));
    return bytes != NULL && memcmp(bytes, text, strlen(text)) == 0;
}

static bool
take_field(vnxi_reader_t *reader, const char *tag, const void **data_p,
           size_t *len_p)
{
    if (!take_text(reader, tag)) {
        return false;
    }
    uint64_t len = vnxi_read_u64(reader);
    if (reader->failed || len > vnxi_reader_left(reader)) {
        return false;
    }
    *data_p = vnxi_read_bytes(reader, (size_t)len);
    *len_p = (size_t)len;
    return vnxi_read_u8(reader) == '|' && !reader->failed;
}

bool
vnxi_ucx_notif_read(const void *payload, size_t len, vnxi_ucx_notif_t *notif_p)
{
    vnxi_reader_t reader = vnxi_reader(payload, len);
    vnxi_ucx_notif_t notif;

    if (!take_text(&reader, PREFIX) ||
        !take_field(&reader, TAG_NAME, &notif.sender, &notif.sender_len) ||
        !take_field(&reader, TAG_MESSAGE, &notif.message,
                    &notif.message_len) ||
        notif.sender_len == 0 || vnxi_reader_left(&reader) != 0) {
        return false;
    }
    *notif_p = notif;
    return true;
}

/* Any process that knows our address can send anything. */
static vnxi_ucs_status_t
on_message(void *arg, const void *header, size_t header_length, void *data,
           size_t length, const vnxi_ucp_am_recv_param_t *param)
{
    vnxi_ucx_worker_t *worker = arg;
    const vnxi_ucx_events_t *events = &worker->ucx->events;
    vnxi_ucx_notif_t notif;

    (void)header, (void)header_length;
    if ((param->recv_attr & VNXI_UCP_AM_RECV_RNDV) != 0 ||
        !vnxi_ucx_notif_read(data, length, &notif)) {
        vnxi_log(VNXI_LOG_INFO,
                 "ignored a message of %zu bytes from UCX: not a notification",
                 length);
        return VNXI_UCS_OK;
    }
    events->notif(events->context, notif.sender, notif.sender_len,
                  notif.message, notif.message_len);
    return VNXI_UCS_OK;
}

vnxi_ucs_status_t
vnxi_ucx_notif_listen(vnxi_ucx_worker_t *worker)
{
    const vnxi_ucp_am_handler_param_t param = {
        .field_mask = VNXI_UCP_AM_PARAM_ID | VNXI_UCP_AM_PARAM_CB |
                      VNXI_UCP_AM_PARAM_ARG,
        .id = VNXI_UCX_NOTIF_AM,
        .cb = on_message,
        .arg = worker,
    };
    return vnxi_ucx_calls(worker)->ucp_worker_set_am_recv_handler(
        worker->handle, &param);
}
