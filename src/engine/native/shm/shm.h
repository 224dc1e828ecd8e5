/*
 * SHM as a transport: its port, conns and slots; for shm.c and confirm.c.
 */
#ifndef VNXI_NATIVE_SHM_SHM_H
#define VNXI_NATIVE_SHM_SHM_H

#include "base/mutex.h"
#include "engine/native/region_access.h"
#include "engine/native/shm/confirm.h"
#include "engine/native/shm/hub.h"
#include "engine/native/transport.h"

typedef struct vnxi_shm_port {
    vnxi_port_t base; /* first */
    vnxi_hub_t *hub;
    vnxi_shm_info_t info;                  /* where peers find this agent */
    unsigned char nonce[VNXI_SHM_ID_SIZE]; /* at info.nonce_addr: the instance
                                              id until leave(), then zeros */
} vnxi_shm_port_t;

struct vnxi_shm_conn {
    vnxi_conn_t base; /* first */
    vnxi_shm_port_t *port;
    const void *name; /* of the peer */
    size_t name_len;
    vnxi_shm_info_t info;
    uintptr_t id;            /* the link's cookie */
    const atomic_bool *stop; /* for conn_start() only */
    vnxi_link_t *link;       /* owned; NULL: not started */
    vnxi_mutex_t lock;
    vnxi_region_table_t *table; /* lock; the peer's regions; NULL: none yet */
    uint64_t epoch;             /* lock; of the last full metadata */
    vnxi_confirm_t confirm;     /* lock */
    char no_map[VNX_ERROR_CAUSE_MAX]; /* lock; why a shared region could not
                                         be mapped; "" if none failed */
};

/* A region's slot: ours, how peers can map it, held open; a peer's, as
 * published, fd -1. */
typedef struct vnxi_shm_slot {
    vnxi_map_info_t map_info;
    vnxi_mapping_t *mapping; /* of a peer's region mapped here; owned */
} vnxi_shm_slot_t;

/* How a region can be mapped, by its slot (NULL: not known to SHM). */
static inline vnxi_map_info_t
vnxi_shm_slot_map_info(const vnxi_shm_slot_t *slot)
{
    return slot != NULL ? slot->map_info : VNXI_MAP_INFO_NONE;
}

#endif
