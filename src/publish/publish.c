/*
 * Design notes.  A publication's lists are prepared when it is attached, for
 * the generation of the peer that its metadata describes.  If they were
 * prepared later, the rows of a peer that has restarted meanwhile might be
 * applied to the regions of its new instance.
 *
 * The publisher checks its own rows in the same way, so a mistake shows where
 * it was made.
 */
#include "publish/publish.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/params.h"
#include "core/agent.h"
#include "net/resolve.h"
#include "publish/publication.h"

#define OP_PUBLISH "vnx_publish"
#define OP_ATTACH "vnx_attach"
#define OP_ROWS "vnx_peer_rows"

struct vnx_peer {
    char *name; /* owned, and a NUL */
    size_t name_len;
    vnxi_publication_t publication;
    vnx_dlist_t **dlists; /* owned; one for each list */
};

/* -- Records -------------------------------------------------------------- */

static vnx_status_t
named(vnx_status_t status, const char *operation, vnx_error_t *error)
{
    if (status < 0 && error != NULL) {
        error->operation = operation;
    }
    return status;
}

/* Put "<what> '<name>': " in front of the cause, whose end is cut if it does
 * not fit. */
static void
put_before(vnx_error_t *error, const char *what, const char *name)
{
    vnx_error_t shown; /* for the printable name */
    char head[VNX_ERROR_PEER_MAX + 16];
    size_t room = sizeof error->cause - 1;

    vnxi_error_peer(&shown, name, strlen(name));
    size_t len =
        (size_t)snprintf(head, sizeof head, "%s '%s': ", what, shown.peer);
    memmove(error->cause + len, error->cause, room - len);
    memcpy(error->cause, head, len);
    error->cause[room] = '\0';
}

/* Name the endpoint in a record, which may name a peer already. */
static void
name_endpoint(vnx_error_t *error, const char *endpoint)
{
    if (error != NULL) {
        if (error->peer[0] != '\0' && strcmp(error->peer, endpoint) != 0) {
            put_before(error, "agent", error->peer);
        }
        vnxi_error_peer(error, endpoint, strlen(endpoint));
    }
}

/* -- Preparing ------------------------------------------------------------ */

/* A record of strided rows counts these; make it count the rows that they
 * stand for. */
static void
count_strides(vnx_error_t *error, const vnx_named_rows_t *list)
{
    uint64_t row = 0;

    if (error == NULL || list->rows != NULL || error->row < 0 ||
        (uint64_t)error->row >= list->count) {
        return;
    }
    const vnx_strided_desc_t *at = &list->strided[error->row];
    for (const vnx_strided_desc_t *one = list->strided; one < at; one++) {
        row += one->count;
    }
    if (error->has_desc && at->stride > 0) {
        row += (error->addr - at->addr) / at->stride;
    }
    error->row = (int64_t)row;
}

/* Prepare a list for a peer; NULL: for the agent itself. */
static vnx_status_t
prepare(vnx_agent_t *agent, vnxi_peer_t *peer, const vnx_named_rows_t *list,
        vnx_dlist_t **out_p, vnx_error_t *error)
{
    vnx_dlist_builder_t *builder = NULL;

    vnx_status_t status =
        vnxi_dlist_begin(agent, peer, list->mem, NULL, &builder, error);
    if (status == VNX_OK) {
        status = list->rows != NULL
                     ? vnx_dlist_feed(builder, list->rows, list->count, error)
                     : vnx_dlist_feed_strided(builder, list->strided,
                                              list->count, error);
        status = vnxi_dlist_end(builder, status, out_p, error);
    }
    if (status != VNX_OK) {
        count_strides(error, list);
        if (error != NULL) {
            put_before(error, "list", list->name);
        }
    }
    return status;
}

/* -- Publishing ----------------------------------------------------------- */

static vnx_status_t
publish_params_read(const vnx_publish_params_t *given,
                    vnx_publish_params_t *out_p, vnx_error_t *error)
{
    vnx_status_t status = vnxi_params_read(
        OP_PUBLISH, "params", given, given->size, out_p, sizeof *out_p, error);
    return status == VNX_OK ? vnxi_publication_check(OP_PUBLISH, out_p->lists,
                                                     out_p->count, error)
                            : status;
}

static vnx_status_t
check_own_rows(vnx_agent_t *agent, const vnx_publish_params_t *params,
               vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;

    for (size_t i = 0; status == VNX_OK && i < params->count; i++) {
        vnx_dlist_t *dlist = NULL;
        status = prepare(agent, NULL, &params->lists[i], &dlist, error);
        vnx_dlist_release(dlist);
    }
    return status;
}

/* Serve the metadata and the publication. */
static vnx_status_t
serve(vnx_side_channel_t *channel, const vnx_publish_params_t *params,
      const vnx_bytes_t *metadata, const vnx_bytes_t *publication, int *port_p,
      vnx_error_t *error)
{
    vnx_side_channel_blob_t blobs[] = {
        {.data = metadata->data, .length = metadata->len},
        {.key = VNX_PUBLICATION_KEY,
         .key_length = strlen(VNX_PUBLICATION_KEY),
         .data = publication->data,
         .length = publication->len},
    };
    vnx_side_channel_start_params_t start = {.size = sizeof start,
                                             .host = params->host,
                                             .port = params->port,
                                             .blobs = blobs,
                                             .count = 2};
    return vnxi_side_channel_serve(channel, &start, port_p, error);
}

static vnx_status_t
publish(vnx_agent_t *agent, vnx_side_channel_t *channel,
        const vnx_publish_params_t *params, int *port_p, vnx_error_t *error)
{
    vnx_bytes_t metadata = {0}, bytes = {0};

    vnx_status_t status = vnx_agent_metadata(agent, &metadata, error);
    if (status == VNX_OK) {
        status = check_own_rows(agent, params, error);
    }
    if (status == VNX_OK) {
        vnxi_publication_t publication = {
            .metadata = metadata.data,
            .metadata_len = metadata.len,
            .lists = (vnx_named_rows_t *)(uintptr_t)params->lists,
            .count = params->count};
        status = vnxi_publication_write(&publication, &agent->signature_key,
                                        OP_PUBLISH, &bytes, error);
    }
    if (status == VNX_OK) {
        status = serve(channel, params, &metadata, &bytes, port_p, error);
    }
    free(bytes.data);
    free(metadata.data);
    return status;
}

vnx_status_t
vnx_publish(vnx_agent_t *agent, vnx_side_channel_t *channel,
            const vnx_publish_params_t *given, int *port_p, vnx_error_t *error)
{
    vnx_publish_params_t params;
    int port = 0;

    vnx_status_t status = publish_params_read(given, &params, error);
    if (status == VNX_OK) {
        status = publish(agent, channel, &params, &port, error);
    }
    if (status == VNX_OK && port_p != NULL) {
        *port_p = port;
    }
    return named(status, OP_PUBLISH, error);
}

/* -- Attaching ------------------------------------------------------------ */

vnx_status_t
vnxi_attach_request(vnx_agent_t *agent, vnx_side_channel_t *channel,
                    const vnxi_attach_params_t *params,
                    vnxi_requests_t **out_p, vnx_error_t *error)
{
    vnx_side_channel_request_params_t request = {
        .size = sizeof request,
        .host = params->host,
        .port = params->port,
        .timeout_ms = params->timeout_ms,
        .key = VNX_PUBLICATION_KEY,
        .key_length = strlen(VNX_PUBLICATION_KEY),
        .retries = params->retries,
    };
    vnx_status_t status = vnxi_agent_ready(agent, OP_ATTACH, error);
    if (status == VNX_OK) {
        status = vnxi_requests_make(channel, &request, 1, out_p, error);
    }
    return named(status, OP_ATTACH, error);
}

static vnx_status_t
prepare_all(vnx_agent_t *agent, vnxi_peer_t *peer, vnx_peer_t *out,
            vnx_error_t *error)
{
    size_t count = out->publication.count;
    vnx_status_t status = VNX_OK;

    out->name = malloc(peer->name_len + 1);
    out->dlists = calloc(count + 1, sizeof(vnx_dlist_t *));
    if (out->name == NULL || out->dlists == NULL) {
        return vnxi_error_no_memory(error, OP_ATTACH,
                                    count * sizeof(vnx_dlist_t *));
    }
    memcpy(out->name, peer->name, peer->name_len + 1);
    out->name_len = peer->name_len;
    for (size_t i = 0; status == VNX_OK && i < count; i++) {
        status = prepare(agent, peer, &out->publication.lists[i],
                         &out->dlists[i], error);
    }
    return status;
}

static vnx_status_t
load(vnx_agent_t *agent, const void *bytes, size_t len, vnx_peer_t *out,
     vnx_error_t *error)
{
    vnxi_publication_t *publication = &out->publication;
    vnxi_peer_t *peer = NULL;

    vnx_status_t status = vnxi_publication_read(
        bytes, len, &agent->signature_key, OP_ATTACH, publication, error);
    if (status == VNX_OK) {
        status = vnxi_peers_load(agent, publication->metadata,
                                 publication->metadata_len, &peer, error);
        publication->metadata = NULL; /* the bytes are the caller's */
    }
    if (status == VNX_OK) {
        status = prepare_all(agent, peer, out, error);
        vnxi_peer_release(peer);
    }
    return status;
}

vnx_status_t
vnxi_attach_load(vnx_agent_t *agent, const void *bytes, size_t len,
                 const char *host, int port, vnx_peer_t **out_p,
                 vnx_error_t *error)
{
    char endpoint[VNX_ERROR_PEER_MAX];
    vnx_peer_t *out = calloc(1, sizeof *out);

    vnx_status_t status =
        out != NULL ? load(agent, bytes, len, out, error)
                    : vnxi_error_no_memory(error, OP_ATTACH, sizeof *out);
    if (status != VNX_OK) {
        vnx_peer_free(out);
        vnxi_endpoint_text(endpoint, sizeof endpoint, host, port);
        name_endpoint(error, endpoint);
        return named(status, OP_ATTACH, error);
    }
    *out_p = out;
    return VNX_OK;
}

/* The record of a listener that serves no publication. */
static vnx_status_t
no_publication(vnx_error_t *record)
{
    snprintf(record->cause, sizeof record->cause,
             "the listener serves no publication: it was started for metadata "
             "alone. Publish there (publish), or request the metadata here "
             "(request_remote_metadata)");
    return VNX_ERR_NOT_FOUND;
}

vnx_status_t
vnxi_attach_finish(vnx_agent_t *agent, vnxi_requests_t *request,
                   const char *host, int port, vnx_peer_t **out_p,
                   vnx_error_t *error)
{
    vnx_side_channel_answer_t answer;

    vnxi_requests_take(request, 0, &answer);
    if (answer.status != VNX_OK) {
        if (vnxi_requests_is_unknown_key(request, 0)) {
            no_publication(&answer.error);
        }
        if (error != NULL) {
            *error = answer.error;
        }
        return named(answer.status, OP_ATTACH, error);
    }
    vnx_status_t status = vnxi_attach_load(
        agent, answer.metadata, answer.length, host, port, out_p, error);
    free(answer.metadata);
    return status;
}

vnx_status_t
vnx_attach(vnx_agent_t *agent, vnx_side_channel_t *channel, const char *host,
           int port, int timeout_ms, uint32_t retries, vnx_peer_t **out_p,
           vnx_error_t *error)
{
    vnxi_attach_params_t params = {host, port, timeout_ms, retries};
    vnxi_requests_t *request = NULL;

    vnx_status_t status =
        vnxi_attach_request(agent, channel, &params, &request, error);
    if (status != VNX_OK) {
        return status;
    }
    vnxi_requests_run(request, NULL, NULL);
    status = vnxi_attach_finish(agent, request, host, port, out_p, error);
    vnxi_requests_free(request);
    return status;
}

/* -- The peer ------------------------------------------------------------- */

void
vnx_peer_free(vnx_peer_t *peer)
{
    if (peer == NULL) {
        return;
    }
    for (size_t i = 0; peer->dlists != NULL && i < peer->publication.count;
         i++) {
        vnx_dlist_release(peer->dlists[i]);
    }
    free(peer->dlists);
    vnxi_publication_fini(&peer->publication);
    free(peer->name);
    free(peer);
}

const char *
vnx_peer_name(const vnx_peer_t *peer, size_t *len_p)
{
    if (len_p != NULL) {
        *len_p = peer->name_len;
    }
    return peer->name;
}

const vnx_named_rows_t *
vnx_peer_list(const vnx_peer_t *peer, size_t i)
{
    return i < peer->publication.count ? &peer->publication.lists[i] : NULL;
}

vnx_dlist_t *
vnxi_peer_dlist(const vnx_peer_t *peer, size_t i)
{
    return peer->dlists[i];
}

static vnx_status_t
no_list(const vnx_peer_t *peer, const char *name, vnx_error_t *error)
{
    char names[VNX_ERROR_CAUSE_MAX / 2] = "";
    vnx_error_t shown; /* for printable names */

    for (size_t i = 0; i < peer->publication.count; i++) {
        const char *one = peer->publication.lists[i].name;
        vnxi_error_peer(&shown, one, strlen(one));
        vnxi_text_add(names, sizeof names, "%s'%s'", i > 0 ? ", " : "",
                      shown.peer);
    }
    vnxi_error_peer(&shown, name, strlen(name));
    vnxi_error_set(error, VNX_ERR_NOT_FOUND, OP_ROWS,
                   "it published no list '%s', but %s", shown.peer,
                   names[0] != '\0' ? names : "none");
    vnxi_error_peer(error, peer->name, peer->name_len);
    return VNX_ERR_NOT_FOUND;
}

vnx_status_t
vnx_peer_rows(const vnx_peer_t *peer, const char *name, vnx_dlist_t **rows_p,
              vnx_error_t *error)
{
    for (size_t i = 0; i < peer->publication.count; i++) {
        if (strcmp(peer->publication.lists[i].name, name) == 0) {
            *rows_p = peer->dlists[i];
            return VNX_OK;
        }
    }
    return no_list(peer, name, error);
}
