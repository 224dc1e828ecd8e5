/*
 * Notifications.
 *
 * Design notes.  A map has its senders in the order of their first message,
 * and a tree of them by name.  It keeps the notifications as the library
 * returned them.
 */
#include <search.h>
#include <stdlib.h>
#include <string.h>

#include "capi/abi.h"
#include "capi/agent.h"
#include "capi/options.h"

typedef struct vector {
    void **at;
    size_t count, room;
} vector_t; /* all zeros: empty */

typedef struct sender {
    vector_t messages; /* vnx_notif_t *, owned, without successors */
    char name[];
} sender_t;

typedef struct notif_map {
    vector_t senders; /* sender_t *, owned */
    void *names;      /* tsearch(3): their names */
} notif_map_t;

/* False: no memory. */
static bool
vector_add(vector_t *vector, void *item)
{
    if (vector->count == vector->room) {
        size_t room = vector->room ? 2 * vector->room : 4;
        void **at = realloc(vector->at, room * sizeof *at);
        if (at == NULL) {
            return false;
        }
        vector->at = at;
        vector->room = room;
    }
    vector->at[vector->count++] = item;
    return true;
}

/* -- The map ---------------------------------------------------------------
 */

static int
compare_names(const void *a, const void *b)
{
    return strcmp(a, b);
}

/* NULL: the map has no such sender. */
static sender_t *
find_sender(const notif_map_t *map, const char *name)
{
    char *const *node = tfind(name, &map->names, compare_names);
    return node != NULL ? (sender_t *)(*node - offsetof(sender_t, name))
                        : NULL;
}

/* NULL: no memory. */
static sender_t *
add_sender(notif_map_t *map, const char *name)
{
    size_t size = strlen(name) + 1;
    sender_t *sender = calloc(1, sizeof *sender + size);

    if (sender == NULL) {
        return NULL;
    }
    memcpy(sender->name, name, size);
    if (!vector_add(&map->senders, sender)) {
        free(sender);
        return NULL;
    }
    if (tsearch(sender->name, &map->names, compare_names) == NULL) {
        map->senders.count--;
        free(sender);
        return NULL;
    }
    return sender;
}

/* Move a notification, which has no successor, into the map.  False: no
 * memory. */
static bool
map_add(notif_map_t *map, vnx_notif_t *notif)
{
    char *name = strndup(notif->sender, notif->sender_len);
    sender_t *sender = name != NULL ? find_sender(map, name) : NULL;

    if (name != NULL && sender == NULL) {
        sender = add_sender(map, name);
    }
    free(name);
    return sender != NULL && vector_add(&sender->messages, notif);
}

/* Move a chain into the map.  False: no memory for all of it; the rest is
 * lost. */
static bool
map_add_chain(notif_map_t *map, vnx_notif_t *chain)
{
    while (chain != NULL) {
        vnx_notif_t *notif = chain;
        chain = notif->next;
        notif->next = NULL;
        if (!map_add(map, notif)) {
            vnx_notif_free(notif);
            vnx_notif_free(chain);
            return false;
        }
    }
    return true;
}

static void
keep_name(void *name)
{
    (void)name;
}

static void
map_clear(notif_map_t *map)
{
    tdestroy(map->names, keep_name);
    for (size_t i = 0; i < map->senders.count; i++) {
        sender_t *sender = map->senders.at[i];
        for (size_t k = 0; k < sender->messages.count; k++) {
            vnx_notif_free(sender->messages.at[k]);
        }
        free(sender->messages.at);
        free(sender);
    }
    free(map->senders.at);
    *map = (notif_map_t){.names = NULL};
}

/* -- The interface ---------------------------------------------------------
 */

nixl_capi_status_t
nixl_capi_create_notif_map(nixl_capi_notif_map_t *notif_map)
{
    if (notif_map == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    notif_map_t *map = calloc(1, sizeof *map);
    void *handle = map != NULL
                       ? vnxi_handle_create(VNXI_KIND_NOTIFS, map, NULL, NULL)
                       : NULL;
    if (handle == NULL) {
        free(map);
        return NIXL_CAPI_ERROR_BACKEND;
    }
    *notif_map = handle;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_destroy_notif_map(nixl_capi_notif_map_t map)
{
    notif_map_t *notifs = vnxi_handle_end(map, VNXI_KIND_NOTIFS);

    if (notifs == NULL) {
        return vnxi_abi_nothing_to_destroy(map);
    }
    map_clear(notifs);
    free(notifs);
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_notif_map_clear(nixl_capi_notif_map_t map)
{
    notif_map_t *notifs = vnxi_object(map, VNXI_KIND_NOTIFS);

    if (notifs == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    map_clear(notifs);
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_notif_map_size(nixl_capi_notif_map_t map, size_t *size)
{
    const notif_map_t *notifs = vnxi_object(map, VNXI_KIND_NOTIFS);

    if (notifs == NULL || size == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    *size = notifs->senders.count;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_notif_map_get_agent_at(nixl_capi_notif_map_t map, size_t index,
                                 const char **agent_name)
{
    const notif_map_t *notifs = vnxi_object(map, VNXI_KIND_NOTIFS);

    if (notifs == NULL || agent_name == NULL ||
        index >= notifs->senders.count) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    const sender_t *sender = notifs->senders.at[index];
    *agent_name = sender->name;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_notif_map_get_notifs_size(nixl_capi_notif_map_t map,
                                    const char *agent_name, size_t *size)
{
    const notif_map_t *notifs = vnxi_object(map, VNXI_KIND_NOTIFS);
    const sender_t *sender = notifs != NULL && agent_name != NULL
                                 ? find_sender(notifs, agent_name)
                                 : NULL;

    if (sender == NULL || size == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    *size = sender->messages.count;
    return NIXL_CAPI_SUCCESS;
}

nixl_capi_status_t
nixl_capi_notif_map_get_notif(nixl_capi_notif_map_t map,
                              const char *agent_name, size_t index,
                              const void **data, size_t *len)
{
    const notif_map_t *notifs = vnxi_object(map, VNXI_KIND_NOTIFS);
    const sender_t *sender = notifs != NULL && agent_name != NULL
                                 ? find_sender(notifs, agent_name)
                                 : NULL;

    if (sender == NULL || data == NULL || len == NULL ||
        index >= sender->messages.count) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    const vnx_notif_t *notif = sender->messages.at[index];
    *data = notif->message;
    *len = notif->message_len;
    return NIXL_CAPI_SUCCESS;
}

/* -- Receiving and sending -------------------------------------------------
 */

static nixl_capi_status_t
receive(vnx_agent_t *agent, notif_map_t *map)
{
    vnx_notif_t *chain = vnx_agent_take_notifs(agent);

    if (chain != NULL) {
        return map_add_chain(map, chain) ? NIXL_CAPI_SUCCESS
                                         : NIXL_CAPI_ERROR_BACKEND;
    }
    return vnx_agent_engine(agent) != NULL ? NIXL_CAPI_SUCCESS
                                           : NIXL_CAPI_ERROR_BACKEND;
}

nixl_capi_status_t
nixl_capi_get_notifs(nixl_capi_agent_t agent, nixl_capi_notif_map_t notif_map,
                     nixl_capi_opt_args_t opt_args)
{
    notif_map_t *map = vnxi_object(notif_map, VNXI_KIND_NOTIFS);
    vnxi_selection_t selection;
    nixl_capi_status_t status =
        vnxi_options_select(opt_args, agent, &selection);
    vnxi_slot_t *slot = map != NULL && status == NIXL_CAPI_SUCCESS
                            ? vnxi_capi_agent_share(agent)
                            : NULL;

    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    status = receive(vnxi_capi_agent_of(slot)->agent, map);
    vnxi_slot_leave(slot);
    return status;
}

static nixl_capi_status_t
send_notif(const vnxi_capi_agent_t *object, const char *peer, const void *data,
           size_t len)
{
    vnx_error_t error;
    vnx_status_t status =
        vnx_agent_send_notif(object->agent, peer, strlen(peer),
                             data != NULL ? data : "", len, &error);
    nixl_capi_status_t result = vnxi_capi_result(object, status, &error);

    /* As in NIXL: an agent without a backend sends nothing. */
    return vnx_agent_engine(object->agent) == NULL ? NIXL_CAPI_ERROR_BACKEND
                                                   : result;
}

nixl_capi_status_t
nixl_capi_gen_notif(nixl_capi_agent_t agent, const char *remote_agent,
                    const void *data, size_t len,
                    nixl_capi_opt_args_t opt_args)
{
    vnxi_selection_t selection;

    if (remote_agent == NULL || (data == NULL && len > 0) ||
        vnxi_options_select(opt_args, agent, &selection) !=
            NIXL_CAPI_SUCCESS) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    if (len > PTRDIFF_MAX) {
        return NIXL_CAPI_ERROR_BACKEND; /* as in NIXL */
    }
    vnxi_slot_t *slot = vnxi_capi_agent_share(agent);
    if (slot == NULL) {
        return NIXL_CAPI_ERROR_INVALID_PARAM;
    }
    nixl_capi_status_t status =
        send_notif(vnxi_capi_agent_of(slot), remote_agent, data, len);
    vnxi_slot_leave(slot);
    return status;
}
