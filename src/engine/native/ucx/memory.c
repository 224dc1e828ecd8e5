/*
 * Design notes.  ucp_mem_query() repeats the type that ucp_mem_map() was told,
 * so it cannot tell that UCX takes GPU memory for something else.  Therefore
 * the first byte of GPU memory is mapped without a type before, and UCX has to
 * find out.  If UCX is wrong there, for example because its CUDA module was
 * not loaded, it would read the memory by the CPU and crash.
 *
 * A region of GPU memory may be many allocations, mapped side by side.  UCX
 * maps and exports the first of those that a call covers, and checks this only
 * in debug builds.  So each is mapped by itself, and pieces of transfers are
 * cut there.  NIXL's metadata has room for one key for a region: a region of
 * several allocations has none.
 */
#include "engine/native/ucx/memory.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "engine/native/ucx/ep.h"
#include "engine/native/ucx/gpu.h"

#define OPERATION "vnx_agent_register"

/* -- One mapping of UCX ----------------------------------------------------
 */

static vnx_status_t
map_error(vnxi_ucx_t *ucx, vnxi_ucs_status_t status, const char *call,
          vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_BACKEND, OPERATION, "UCX: %s: %s",
                          call, ucx->library->ucp.ucs_status_string(status));
}

/* UCX's types of memory, as far as we know them. */
static const char *
type_name(int type)
{
    switch (type) {
    case VNXI_UCS_MEMORY_HOST:
        return "CPU memory";
    case VNXI_UCS_MEMORY_CUDA:
        return "CUDA memory";
    case VNXI_UCS_MEMORY_CUDA_MANAGED:
        return "CUDA's managed memory";
    default:
        return "memory of another kind";
    }
}

/* Check what UCX takes the mapped memory for. */
static vnx_status_t
check_type(vnxi_ucx_t *ucx, vnxi_ucp_mem_t handle, int type,
           vnx_error_t *error)
{
    vnxi_ucp_mem_attr_t attr = {.field_mask = VNXI_UCP_MEM_ATTR_MEM_TYPE};

    vnxi_ucs_status_t status = ucx->library->ucp.ucp_mem_query(handle, &attr);
    if (status != VNXI_UCS_OK) {
        return map_error(ucx, status, "ucp_mem_query", error);
    }
    return attr.mem_type == type
               ? VNX_OK
               : vnxi_error_set(error, VNX_ERR_BACKEND, OPERATION,
                                "UCX takes this for %s (its type %d), but it "
                                "is %s",
                                type_name(attr.mem_type), attr.mem_type,
                                type_name(type));
}

/* Map memory of this type, and check that UCX agrees.  `tells`: UCX is told
 * the type; otherwise it has to find out. */
static vnx_status_t
map_one(vnxi_ucx_t *ucx, const vnxi_ucx_part_t *part, int type, bool tells,
        vnxi_ucp_mem_t *handle_p, vnx_error_t *error)
{
    const vnxi_ucp_functions_t *ucp = &ucx->library->ucp;
    vnxi_ucp_mem_map_params_t params = {
        .field_mask = VNXI_UCP_MEM_MAP_ADDRESS | VNXI_UCP_MEM_MAP_LENGTH,
        .address = (void *)(uintptr_t)part->addr,
        .length = part->len,
        .memory_type = type,
    };
    vnxi_ucp_mem_t handle;

    params.field_mask |= tells ? VNXI_UCP_MEM_MAP_MEMORY_TYPE : 0;
    vnxi_ucs_status_t ucs = ucp->ucp_mem_map(ucx->context, &params, &handle);
    if (ucs != VNXI_UCS_OK) {
        return map_error(ucx, ucs, "ucp_mem_map", error);
    }
    vnx_status_t status = check_type(ucx, handle, type, error);
    if (status != VNX_OK) {
        ucp->ucp_mem_unmap(ucx->context, handle);
        return status;
    }
    *handle_p = handle;
    return VNX_OK;
}

/* Check that UCX finds out by itself what the memory is. */
static vnx_status_t
probe(vnxi_ucx_t *ucx, uint64_t addr, int type, vnx_error_t *error)
{
    const vnxi_ucx_part_t first = {.addr = addr, .len = 1};
    vnxi_ucp_mem_t handle;

    vnx_status_t status = map_one(ucx, &first, type, false, &handle, error);
    if (status == VNX_OK) {
        ucx->library->ucp.ucp_mem_unmap(ucx->context, handle);
    }
    return status;
}

/* -- Our regions -----------------------------------------------------------
 */

/* A region that is being mapped. */
typedef struct wish {
    vnxi_ucx_t *ucx;
    uint64_t addr, len;
    int type;                /* UCX's */
    vnxi_cuda_context_t gpu; /* of GPU memory, entered; else no context */
} wish_t;

static uint64_t
end_of(const wish_t *wish)
{
    return wish->addr + wish->len;
}

/* The end of the part that begins at `addr`. */
static vnx_status_t
find_part_end(const wish_t *wish, uint64_t addr, uint64_t *end_p,
              vnx_error_t *error)
{
    uint64_t end = end_of(wish);
    vnx_status_t status = VNX_OK;

    if (wish->gpu.library != NULL) {
        status = vnxi_cuda_allocation_end(&wish->gpu, addr, &end, error);
    }
    if (status == VNX_OK) {
        *end_p = end < end_of(wish) ? end : end_of(wish);
    }
    return status;
}

static vnx_status_t
count_parts(const wish_t *wish, size_t *count_p, vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;
    uint64_t at = wish->addr;

    *count_p = 0;
    do {
        status = find_part_end(wish, at, &at, error);
        ++*count_p;
    } while (status == VNX_OK && at < end_of(wish));
    return status;
}

static void
unmap_parts(vnxi_ucx_mem_t *mem)
{
    for (size_t i = 0; i < mem->part_count; i++) {
        mem->ucx->library->ucp.ucp_mem_unmap(mem->ucx->context,
                                             mem->parts[i].handle);
    }
}

/* mem->part_count counts those that are mapped. */
static vnx_status_t
map_parts(const wish_t *wish, vnxi_ucx_mem_t *mem, size_t count,
          vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;
    uint64_t at = wish->addr, end;

    for (size_t i = 0; status == VNX_OK && i < count; i++) {
        vnxi_ucx_part_t *part = &mem->parts[i];
        status = find_part_end(wish, at, &end, error);
        if (status == VNX_OK) {
            part->addr = at;
            part->len = end - at;
            at = end;
            status = map_one(wish->ucx, part, wish->type, true, &part->handle,
                             error);
        }
        mem->part_count += status == VNX_OK;
    }
    return status;
}

/* Get the key for peers. */
static vnx_status_t
pack(vnxi_ucx_mem_t *mem, vnx_error_t *error)
{
    const vnxi_ucp_functions_t *ucp = &mem->ucx->library->ucp;
    void *key;
    size_t len;

    vnxi_ucs_status_t ucs = ucp->ucp_rkey_pack(
        mem->ucx->context, mem->parts[0].handle, &key, &len);
    if (ucs != VNXI_UCS_OK) {
        return map_error(mem->ucx, ucs, "ucp_rkey_pack", error);
    }
    mem->key = malloc(len + 1);
    if (mem->key != NULL) {
        memcpy(mem->key, key, len);
        mem->key_len = len;
    }
    ucp->ucp_rkey_buffer_release(key);
    return mem->key != NULL ? VNX_OK
                            : vnxi_error_no_memory(error, OPERATION, len);
}

static void
note_withheld(const wish_t *wish, size_t count)
{
    vnxi_ucx_gpu_t *gpu = &wish->ucx->gpu;

    atomic_fetch_add(&gpu->withheld, 1);
    if (!atomic_exchange(&gpu->has_warned, true)) {
        vnxi_log(VNX_LOG_WARNING, wish->ucx->name,
                 "peers cannot reach the GPU memory at 0x%" PRIx64
                 " by UCX, because the region has %zu allocations, and UCX "
                 "exports one; register each by itself, or allocate the "
                 "memory at once (in PyTorch, without expandable_segments)",
                 wish->addr, count);
    }
}

/* Map the region and make its object. */
static vnx_status_t
map(const wish_t *wish, vnxi_ucx_mem_t **mem_p, vnx_error_t *error)
{
    size_t count;

    vnx_status_t status = count_parts(wish, &count, error);
    if (status == VNX_OK && wish->type != VNXI_UCS_MEMORY_HOST) {
        status = probe(wish->ucx, wish->addr, wish->type, error);
    }
    if (status != VNX_OK) {
        return status;
    }
    vnxi_ucx_mem_t *mem =
        calloc(1, sizeof *mem + count * sizeof mem->parts[0]);
    if (mem == NULL) {
        return vnxi_error_no_memory(error, OPERATION,
                                    count * sizeof mem->parts[0]);
    }
    mem->ucx = wish->ucx;
    status = map_parts(wish, mem, count, error);
    if (status == VNX_OK && count == 1) {
        status = pack(mem, error);
    }
    if (status != VNX_OK) {
        unmap_parts(mem);
        free(mem);
        return status;
    }
    if (count > 1) {
        note_withheld(wish, count);
    }
    vnxi_ucx_retain(mem->ucx);
    mem->gpu = wish->gpu;
    atomic_init(&mem->is_mapped, true);
    *mem_p = mem;
    return VNX_OK;
}

/* The same for memory of a GPU, in its context. */
static vnx_status_t
map_gpu(wish_t *wish, const vnxi_cuda_library_t *library,
        const vnxi_cuda_place_t *place, vnxi_ucx_mem_t **mem_p,
        vnx_error_t *error)
{
    vnxi_cuda_scope_t scope;

    vnx_status_t status = vnxi_cuda_context_take(
        library, place->context, place->ordinal, &wish->gpu, error);
    if (status != VNX_OK) {
        return status;
    }
    status = vnxi_ucx_gpu_begin(wish->ucx, &wish->gpu, error);
    if (status != VNX_OK) {
        vnxi_cuda_context_drop(&wish->gpu);
        return status;
    }
    status = vnxi_cuda_enter(&wish->gpu, &scope, error);
    if (status == VNX_OK) {
        status = map(wish, mem_p, error);
        vnxi_cuda_leave(&scope);
    }
    if (status != VNX_OK) {
        vnxi_ucx_gpu_end(wish->ucx);
        vnxi_cuda_context_drop(&wish->gpu);
    }
    return status;
}

/* The type that UCX has to know the memory by. */
static int
find_type(const vnxi_ucx_t *ucx, vnx_mem_t mem, const vnxi_cuda_place_t *place)
{
    if (place->is_managed && vnxi_ucx_has_cuda(ucx)) {
        return VNXI_UCS_MEMORY_CUDA_MANAGED;
    }
    return mem == VNX_MEM_VRAM ? VNXI_UCS_MEMORY_CUDA : VNXI_UCS_MEMORY_HOST;
}

vnx_status_t
vnxi_ucx_mem_map(vnxi_ucx_t *ucx, vnx_mem_t kind, uint64_t addr, uint64_t len,
                 vnxi_ucx_mem_t **mem_p, vnx_error_t *error)
{
    const vnxi_cuda_library_t *library =
        vnxi_cuda_library(VNXI_CUDA_IF_USED, NULL);
    wish_t wish = {.ucx = ucx, .addr = addr, .len = len};
    vnxi_cuda_place_t place = {0};
    vnxi_cuda_scope_t scope;
    vnx_status_t status;

    vnxi_cuda_relax(library, &scope);
    if (library != NULL) {
        vnxi_cuda_place_find(library, addr, &place);
    }
    wish.type = find_type(ucx, kind, &place);
    if (place.is_gpu && wish.type == VNXI_UCS_MEMORY_HOST &&
        !place.is_managed) {
        status = vnxi_error_set(error, VNX_ERR_INVALID_PARAM, OPERATION,
                                "this is GPU memory: register it as VRAM");
    } else if (place.is_gpu && wish.type != VNXI_UCS_MEMORY_HOST) {
        status = map_gpu(&wish, library, &place, mem_p, error);
    } else {
        status = map(&wish, mem_p, error);
    }
    vnxi_cuda_leave(&scope);
    return status;
}

vnxi_ucp_mem_t
vnxi_ucx_mem_find(const vnxi_ucx_mem_t *mem, uint64_t addr, uint64_t *len_p)
{
    size_t low = 0, high = mem->part_count;

    if (!atomic_load(&mem->is_mapped)) {
        return NULL;
    }
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (mem->parts[middle].addr <= addr) {
            low = middle;
        } else {
            high = middle;
        }
    }
    const vnxi_ucx_part_t *part = &mem->parts[low];
    uint64_t left = part->len - (addr - part->addr);
    *len_p = left < *len_p ? left : *len_p;
    return part->handle;
}

/* Also if the context cannot be entered: the program may have destroyed it. */
void
vnxi_ucx_mem_unmap(vnxi_ucx_mem_t *mem)
{
    vnxi_cuda_scope_t scope = {0};
    bool is_gpu = mem->gpu.library != NULL;

    if (!atomic_exchange(&mem->is_mapped, false) ||
        vnxi_ucx_is_parked(mem->ucx)) {
        return;
    }
    bool is_in = vnxi_cuda_enter(&mem->gpu, &scope, NULL) == VNX_OK;
    unmap_parts(mem);
    if (is_in) {
        vnxi_cuda_leave(&scope);
    }
    if (mem->key == NULL) {
        atomic_fetch_sub(&mem->ucx->gpu.withheld, 1);
    }
    if (is_gpu) {
        vnxi_ucx_gpu_end(mem->ucx);
        vnxi_cuda_context_drop(&mem->gpu);
    }
}

void
vnxi_ucx_mem_free(vnxi_ucx_mem_t *mem)
{
    if (mem != NULL) {
        vnxi_ucx_mem_unmap(mem);
        vnxi_ucx_release(mem->ucx);
        free(mem->key);
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
            vnxi_ucx_worker_push_to_the_end(&ucx->workers[i], &key->command)) {
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
