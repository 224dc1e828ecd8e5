#include "engine/native/ucx/memory.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "engine/native/ucx/ep.h"

#define OPERATION "vnx_agent_register"

/* -- Our regions -----------------------------------------------------------
 */

static vnx_status_t
map_error(vnxi_ucx_t *ucx, vnxi_ucs_status_t status, const char *call,
          vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_BACKEND, OPERATION, "UCX: %s: %s",
                          call, ucx->library->ucp.ucs_status_string(status));
}

static vnx_status_t
pack(vnxi_ucx_t *ucx, vnxi_ucp_mem_t handle, vnxi_ucx_mem_t **mem_p,
     vnx_error_t *error)
{
    const vnxi_ucp_functions_t *ucp = &ucx->library->ucp;
    void *key;
    size_t len;

    vnxi_ucs_status_t status =
        ucp->ucp_rkey_pack(ucx->context, handle, &key, &len);
    if (status != VNXI_UCS_OK) {
        return map_error(ucx, status, "ucp_rkey_pack", error);
    }
    vnxi_ucx_mem_t *mem = malloc(sizeof *mem + len);
    if (mem != NULL) {
        mem->ucx = ucx;
        mem->key_len = len;
        atomic_init(&mem->handle, handle);
        memcpy(mem->key, key, len);
    }
    ucp->ucp_rkey_buffer_release(key);
    if (mem == NULL) {
        return vnxi_error_no_memory(error, OPERATION, len);
    }
    vnxi_ucx_retain(ucx);
    *mem_p = mem;
    return VNX_OK;
}

vnx_status_t
vnxi_ucx_mem_map(vnxi_ucx_t *ucx, uint64_t addr, uint64_t len,
                 vnxi_ucx_mem_t **mem_p, vnx_error_t *error)
{
    vnxi_ucp_mem_map_params_t params = {
        .field_mask = VNXI_UCP_MEM_MAP_ADDRESS | VNXI_UCP_MEM_MAP_LENGTH,
        .address = (void *)(uintptr_t)addr,
        .length = len,
    };
    vnxi_ucp_mem_t handle;

    vnxi_ucs_status_t status =
        ucx->library->ucp.ucp_mem_map(ucx->context, &params, &handle);
    if (status != VNXI_UCS_OK) {
        return map_error(ucx, status, "ucp_mem_map", error);
    }
    vnx_status_t made = pack(ucx, handle, mem_p, error);
    if (made != VNX_OK) {
        ucx->library->ucp.ucp_mem_unmap(ucx->context, handle);
    }
    return made;
}

void
vnxi_ucx_mem_unmap(vnxi_ucx_mem_t *mem)
{
    vnxi_ucp_mem_t handle = atomic_exchange(&mem->handle, NULL);
    if (handle != NULL && !vnxi_ucx_is_parked(mem->ucx)) {
        mem->ucx->library->ucp.ucp_mem_unmap(mem->ucx->context, handle);
    }
}

void
vnxi_ucx_mem_free(vnxi_ucx_mem_t *mem)
{
    if (mem != NULL) {
        vnxi_ucx_mem_unmap(mem);
        vnxi_ucx_release(mem->ucx);
        free(mem);
    }
}

/* -- Keys of a peer's regions ----------------------------------------------
 */

/* A map of 8 bytes and a memory type; the rest is internal to UCX. */
#define KEY_MIN 9u
#define KEY_MAX 8192u
#define KEY_MEMORY_TYPE 8

/* The length of a part is one byte, and there are at most 64 parts.  In a
 * truncated key, the zeros after it make the missing parts empty. */
#define KEY_PADDING 512u

/* UCX reads a key without knowing its length, and uses the memory type as an
 * index. */
static bool
is_key(const unsigned char *bytes, size_t len)
{
    return len >= KEY_MIN && len <= KEY_MAX &&
           bytes[KEY_MEMORY_TYPE] <= VNXI_UCS_MEMORY_ZE_MANAGED;
}

vnx_status_t
vnxi_ucx_key_create(vnxi_ucx_conn_t *conn, const void *bytes, size_t len,
                    vnxi_ucx_key_t **key_p, vnx_error_t *error)
{
    unsigned workers = conn->ucx->worker_count;
    size_t slots = workers * sizeof(vnxi_ucx_slot_t);

    if (!is_key(bytes, len)) {
        return vnxi_error_set(error, VNX_ERR_MISMATCH,
                              "vnx_agent_load_metadata",
                              "%zu bytes of a region's public data are not a "
                              "UCX key",
                              len);
    }
    vnxi_ucx_key_t *key = malloc(sizeof *key + slots + len + KEY_PADDING);
    if (key == NULL) {
        return vnxi_error_no_memory(error, "vnx_agent_load_metadata", len);
    }
    memset(key, 0, sizeof *key + slots);
    unsigned char *copy = (unsigned char *)key->slots + slots;
    memcpy(copy, bytes, len);
    memset(copy + len, 0, KEY_PADDING);
    atomic_init(&key->refs, 1);
    key->conn = vnxi_ucx_conn_retain(conn);
    key->bytes = copy;
    key->len = len;
    *key_p = key;
    return VNX_OK;
}

bool
vnxi_ucx_key_is(const vnxi_ucx_key_t *key, const void *bytes, size_t len)
{
    return key->len == len && memcmp(key->bytes, bytes, len) == 0;
}

vnxi_ucs_status_t
vnxi_ucx_key_handle(vnxi_ucx_key_t *key, vnxi_ucx_ep_t *ep,
                    vnxi_ucp_rkey_t *handle_p)
{
    vnxi_ucx_slot_t *slot = &key->slots[ep->worker->index];

    if (__builtin_expect(slot->handle == NULL, 0)) {
        vnxi_ucs_status_t status =
            vnxi_ucx_calls(ep->worker)
                ->ucp_ep_rkey_unpack(ep->handle, key->bytes, &slot->handle);
        if (status != VNXI_UCS_OK) {
            slot->handle = NULL;
            return status;
        }
        slot->prev = &ep->slots;
        slot->next = ep->slots.next;
        slot->next->prev = slot;
        ep->slots.next = slot;
        atomic_store(&slot->used, true);
    }
    *handle_p = slot->handle;
    return VNXI_UCS_OK;
}

void
vnxi_ucx_keys_drop(vnxi_ucx_ep_t *ep)
{
    while (ep->slots.next != &ep->slots) {
        vnxi_ucx_slot_t *slot = ep->slots.next;
        slot->next->prev = &ep->slots;
        ep->slots.next = slot->next;
        vnxi_ucx_calls(ep->worker)->ucp_rkey_destroy(slot->handle);
        slot->handle = NULL;
        slot->prev = slot->next = NULL;
        atomic_store(&slot->used, false);
    }
}

static void give_up(vnxi_ucx_key_t *key);

static void
run_give_up(vnxi_ucx_command_t *command, vnxi_ucx_worker_t *worker)
{
    vnxi_ucx_key_t *key =
        (vnxi_ucx_key_t *)((char *)command -
                           offsetof(vnxi_ucx_key_t, command));
    vnxi_ucx_slot_t *slot = &key->slots[worker->index];

    if (slot->handle != NULL) {
        slot->prev->next = slot->next;
        slot->next->prev = slot->prev;
        vnxi_ucx_calls(worker)->ucp_rkey_destroy(slot->handle);
        slot->handle = NULL;
        atomic_store(&slot->used, false);
    }
    give_up(key);
}

/* Goes from worker to worker and then frees the key.  A worker that has ended
 * has already released its handles. */
static void
give_up(vnxi_ucx_key_t *key)
{
    vnxi_ucx_t *ucx = key->conn->ucx;

    while (key->next_worker < ucx->worker_count) {
        unsigned i = key->next_worker++;
        if (atomic_load(&key->slots[i].used) &&
            vnxi_ucx_worker_push(&ucx->workers[i], &key->command)) {
            return;
        }
    }
    vnxi_ucx_conn_release(key->conn);
    free(key);
}

void
vnxi_ucx_key_release(vnxi_ucx_key_t *key)
{
    if (key != NULL && atomic_fetch_sub(&key->refs, 1) == 1) {
        key->command.run = run_give_up;
        give_up(key);
    }
}
