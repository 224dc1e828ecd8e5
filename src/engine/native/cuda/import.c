/*
 * Design notes.  All imports of the process are in one list, under one lock,
 * which is never held while the driver or the host is called.  The other
 * threads only set flags of an import and wake the thread of its gpu; that
 * thread alone maps, unmaps and frees it.  It does so between two batches, so
 * that nothing is unmapped that a kernel uses.
 *
 * Memory of cudaMalloc() is opened allocation by allocation, and each has a
 * delta of its own.  Memory of cuMemCreate() comes in many small allocations
 * that are neighbours in the peer (one region can have thousands), so the
 * whole region gets one range of addresses here, and one delta.
 *
 * What cannot be mapped may be of a process that has just ended, or may have
 * been freed since, or what is missing may be there again a moment later.  So
 * the owner is asked once more; then either there is an error, or the end of
 * the peer is noticed.
 *
 * An import keeps the engine, because it outlives its key and its conn for a
 * moment.
 */
#include "engine/native/cuda/import.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fork.h"
#include "base/fork_fds.h"
#include "base/mutex.h"

#define OPERATION "vnx_xfer_post"
#define SPANS_MAX (UINT32_C(1) << 20) /* allocations of a region */

typedef enum state {
    STATE_ASKING,   /* until the owner's next message */
    STATE_ANSWERED, /* to be mapped */
    STATE_REFUSED,  /* to be asked for once more */
    STATE_MAPPED,
    STATE_FAILED, /* `error` */
} state_t;

/* An open handle of cudaMalloc() memory.  Some drivers open an allocation once
 * only, and several regions may lie in one, also of several agents. */
typedef struct vnxi_cuda_opened {
    struct vnxi_cuda_opened *next; /* of gpu->opened */
    uint64_t id;                   /* of the allocation, in the peer */
    vnxi_cu_ipc_handle_t handle;
    vnxi_cu_ptr_t here;
    unsigned uses;
} opened_t;

/* An allocation of the peer that is mapped here. */
typedef struct mapped {
    vnxi_cu_ptr_t here;
    size_t size;
    opened_t *opened; /* NULL: it is not from cudaMalloc() */
} mapped_t;

/* Reserved addresses. */
typedef struct range {
    vnxi_cu_ptr_t here;
    size_t size;
    size_t used;    /* from the beginning on */
    uint64_t start; /* the owner's address that `here` stands for */
} range_t;

/* A gpu for which a region cannot be mapped.  Set at the beginning. */
struct vnxi_cuda_refusal {
    vnxi_cuda_refusal_t *next; /* of key->refusals; imports_lock */
    int ordinal;               /* a later gpu may have the same address */
    char why[192];
};

struct vnxi_cuda_import {
    /* Set at the beginning. */
    vnxi_cuda_gpu_t *gpu;
    const vnxi_port_t *port;
    uintptr_t conn_id;
    uint64_t loan;
    uint64_t addr, len, dev;
    /* imports_lock */
    vnxi_cuda_import_t *next;   /* of all */
    vnxi_cuda_key_t *key;       /* NULL: it is gone */
    vnxi_cuda_import_t *of_key; /* the next of the key */
    state_t state;
    bool is_ending;    /* to be unmapped and given back */
    uint64_t answered; /* number of the owner's last answer, or of the loan */
    /* A LENT that was not mapped yet: imports_lock until STATE_ANSWERED, then
     * the gpu's thread. */
    vnxi_lend_piece_t *pieces; /* owned */
    int *fds;                  /* owned: of the pieces of kind FD, in order */
    size_t piece_count, fd_count;
    bool is_last;
    bool is_second;    /* it was asked for once more after a failure */
    vnx_error_t error; /* of STATE_FAILED */
    uint64_t failed;   /* vnxi_cuda_next_number() of then */
    /* The gpu's thread. */
    vnxi_cu_result_t result; /* of the last call that failed */
    uint64_t end; /* the owner's address after the last allocation so far */
    vnxi_cuda_spans_t spans;
    mapped_t *mapped; /* owned */
    size_t mapped_count, mapped_room;
    range_t *ranges; /* owned */
    size_t range_count, range_room;
};

static vnxi_mutex_t imports_lock = VNXI_MUTEX_INIT(VNXI_RANK_CUDA_IMPORTS);
static vnxi_cuda_import_t *imports; /* imports_lock */
static vnxi_cuda_check_t *checks;   /* imports_lock */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static vnxi_cond_t ended; /* an import was unmapped; initialised by start() */

/* What the parent has mapped does not exist in a child. */
static void
forget_in_child(void)
{
    vnxi_mutex_init(&imports_lock, VNXI_RANK_CUDA_IMPORTS);
    vnxi_cond_init(&ended);
    imports = NULL;
    checks = NULL;
}

static void
start(void)
{
    vnxi_fork_on_child(forget_in_child);
    vnxi_cond_init(&ended);
}

/* -- Spans -----------------------------------------------------------------
 */

/* Make room for one more item; false: no memory. */
static bool
grow(void *array_p, size_t count, size_t *room_p, size_t item_size)
{
    void *array;

    if (count < *room_p) {
        return true;
    }
    memcpy(&array, array_p, sizeof array);
    size_t room = 2 * *room_p + 4;
    array = realloc(array, room * item_size);
    if (array == NULL) {
        return false;
    }
    memcpy(array_p, &array, sizeof array);
    *room_p = room;
    return true;
}

bool
vnxi_cuda_spans_add(vnxi_cuda_spans_t *spans, vnxi_cuda_span_t span)
{
    vnxi_cuda_span_t *last =
        spans->count > 0 ? &spans->spans[spans->count - 1] : NULL;

    if (last != NULL && last->end == span.start && last->delta == span.delta &&
        last->key == span.key) {
        last->end = span.end;
        return true;
    }
    if (!grow(&spans->spans, spans->count, &spans->room,
              sizeof *spans->spans)) {
        return false;
    }
    spans->spans[spans->count++] = span;
    return true;
}

/* -- Messages to owners ----------------------------------------------------
 */

uint64_t
vnxi_cuda_next_number(void)
{
    static atomic_uint_fast64_t last;
    return atomic_fetch_add(&last, 1) + 1;
}

vnx_status_t
vnxi_cuda_ask_owner(const vnxi_port_t *port, uintptr_t conn_id,
                    const vnxi_lend_t *message, vnx_error_t *error)
{
    const vnxi_port_config_t *config = &port->config;
    const vnxi_port_host_t *host = &config->host;
    vnxi_writer_t writer = {0};

    vnxi_lend_write(&writer, message);
    const vnxi_control_t control = {.data = writer.data, .len = writer.len};
    vnx_status_t status = VNX_OK;
    vnxi_conn_t *conn = host->hold(host->context, config->number, conn_id);
    if (writer.failed) {
        status = vnxi_error_no_memory(error, OPERATION, writer.len);
    } else if (conn == NULL) {
        status = vnxi_error_set(error, VNX_ERR_REMOTE_DISCONNECT, OPERATION,
                                "the connection to the peer was closed");
    } else {
        status =
            host->ask(host->context, config->number, conn, &control, error);
    }
    if (conn != NULL) {
        host->drop(host->context, conn);
    }
    vnxi_writer_fini(&writer);
    return status;
}

static vnx_status_t
ask_for_more(const vnxi_cuda_import_t *import, uint64_t from,
             vnx_error_t *error)
{
    return vnxi_cuda_ask_owner(import->port, import->conn_id,
                               &(vnxi_lend_t){.type = VNXI_LEND_ASK,
                                              .loan = import->loan,
                                              .addr = import->addr,
                                              .len = import->len,
                                              .dev = import->dev,
                                              .from = from},
                               error);
}

/* -- Mapping ---------------------------------------------------------------
 */

static vnx_status_t
fail(vnxi_cuda_import_t *import, const char *function, vnxi_cu_result_t result,
     vnx_error_t *error)
{
    import->result = result;
    vnx_status_t status =
        vnxi_cuda_error(import->gpu->library, OPERATION, import->gpu->ordinal,
                        function, result, error);
    vnxi_error_add(error,
                   ", for the peer's GPU memory at 0x%" PRIx64 " of %" PRIu64
                   " bytes",
                   import->addr, import->len);
    return status;
}

static vnx_status_t
add_span(vnxi_cuda_import_t *import, const vnxi_lend_piece_t *piece,
         uint64_t here, vnx_error_t *error)
{
    const vnxi_cuda_span_t span = {.start = piece->start,
                                   .end = piece->start + piece->size,
                                   .delta = here - piece->start};
    return vnxi_cuda_spans_add(&import->spans, span)
               ? VNX_OK
               : vnxi_error_no_memory(error, OPERATION, sizeof span);
}

static opened_t *
find_opened(const vnxi_cuda_gpu_t *gpu, const vnxi_lend_piece_t *piece)
{
    opened_t *opened = gpu->opened;

    while (opened != NULL &&
           (opened->id != piece->id || memcmp(&opened->handle, piece->handle,
                                              sizeof opened->handle) != 0)) {
        opened = opened->next;
    }
    return opened;
}

static vnx_status_t
open_handle(vnxi_cuda_import_t *import, const vnxi_lend_piece_t *piece,
            opened_t **opened_p, vnx_error_t *error)
{
    const vnxi_cu_functions_t *cu = &import->gpu->library->cu;
    opened_t *opened = calloc(1, sizeof *opened);

    if (opened == NULL) {
        return vnxi_error_no_memory(error, OPERATION, sizeof *opened);
    }
    memcpy(&opened->handle, piece->handle, sizeof opened->handle);
    vnxi_cu_result_t result =
        cu->cuIpcOpenMemHandle_v2(&opened->here, opened->handle,
                                  VNXI_CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS);
    if (result != VNXI_CUDA_SUCCESS) {
        free(opened);
        return fail(import, "cuIpcOpenMemHandle_v2", result, error);
    }
    opened->id = piece->id;
    opened->next = import->gpu->opened;
    import->gpu->opened = opened;
    *opened_p = opened;
    return VNX_OK;
}

static void
close_handle(vnxi_cuda_gpu_t *gpu, opened_t *opened)
{
    opened_t **at = &gpu->opened;

    if (--opened->uses > 0) {
        return;
    }
    while (*at != opened) {
        at = &(*at)->next;
    }
    *at = opened->next;
    gpu->library->cu.cuIpcCloseMemHandle(opened->here);
    free(opened);
}

static vnx_status_t
map_legacy(vnxi_cuda_import_t *import, const vnxi_lend_piece_t *piece,
           vnx_error_t *error)
{
    opened_t *opened = find_opened(import->gpu, piece);
    vnxi_cu_ptr_t start = 0;
    size_t size = 0;

    vnx_status_t status =
        opened == NULL ? open_handle(import, piece, &opened, error) : VNX_OK;
    if (status != VNX_OK) {
        return status;
    }
    opened->uses++;
    import->mapped[import->mapped_count++] = (mapped_t){
        .here = opened->here, .size = piece->size, .opened = opened};
    /* A copy beyond the memory would destroy our context. */
    vnxi_cu_result_t result = import->gpu->library->cu.cuMemGetAddressRange_v2(
        &start, &size, opened->here);
    if (result != VNXI_CUDA_SUCCESS) {
        return fail(import, "cuMemGetAddressRange_v2", result, error);
    }
    if (opened->here < start || size - (opened->here - start) < piece->size) {
        return vnxi_error_set(error, VNX_ERR_MISMATCH, OPERATION,
                              "the peer's GPU memory at 0x%" PRIx64
                              " has %zu bytes, not %" PRIu64,
                              piece->start, size, piece->size);
    }
    return add_span(import, piece, opened->here, error);
}

/* Reserve addresses from an allocation on: for the rest of the region, or for
 * the allocation if that is longer. */
static vnx_status_t
reserve(vnxi_cuda_import_t *import, const vnxi_lend_piece_t *piece,
        vnx_error_t *error)
{
    const vnxi_cu_functions_t *cu = &import->gpu->library->cu;
    const vnxi_cu_alloc_prop_t props = {
        .type = VNXI_CU_MEM_ALLOCATION_TYPE_PINNED,
        .location = {VNXI_CU_MEM_LOCATION_TYPE_DEVICE, import->gpu->ordinal},
    };
    uint64_t rest = import->addr + import->len - piece->start;
    size_t unit = 0;

    if (!grow(&import->ranges, import->range_count, &import->range_room,
              sizeof *import->ranges)) {
        return vnxi_error_no_memory(error, OPERATION, sizeof *import->ranges);
    }
    vnxi_cu_result_t result = cu->cuMemGetAllocationGranularity(
        &unit, &props, VNXI_CU_MEM_ALLOC_GRANULARITY_MINIMUM);
    if (result != VNXI_CUDA_SUCCESS || unit == 0) {
        return fail(import, "cuMemGetAllocationGranularity", result, error);
    }
    range_t range = {.start = piece->start};
    range.size = rest > piece->size ? (rest + unit - 1) / unit * unit
                                    : (size_t)piece->size;
    result = cu->cuMemAddressReserve(&range.here, range.size, 0, 0, 0);
    if (result != VNXI_CUDA_SUCCESS) {
        return fail(import, "cuMemAddressReserve", result, error);
    }
    import->ranges[import->range_count++] = range;
    return VNX_OK;
}

/* The place for an allocation; the last range is the only one with room. */
static vnx_status_t
find_place(vnxi_cuda_import_t *import, const vnxi_lend_piece_t *piece,
           range_t **range_p, vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;
    range_t *last = import->range_count > 0
                        ? &import->ranges[import->range_count - 1]
                        : NULL;

    if (last == NULL || piece->start - last->start != last->used ||
        last->size - last->used < piece->size) {
        status = reserve(import, piece, error);
    }
    if (status == VNX_OK) {
        *range_p = &import->ranges[import->range_count - 1];
    }
    return status;
}

static vnx_status_t
map_created(vnxi_cuda_import_t *import, const vnxi_lend_piece_t *piece, int fd,
            vnx_error_t *error)
{
    const vnxi_cu_functions_t *cu = &import->gpu->library->cu;
    bool by_fd = piece->kind == VNXI_LEND_FD;
    vnxi_cu_mem_t memory;
    range_t *range;

    vnx_status_t status = find_place(import, piece, &range, error);
    if (status != VNX_OK) {
        return status;
    }
    vnxi_cu_result_t result = cu->cuMemImportFromShareableHandle(
        &memory,
        by_fd ? (void *)(intptr_t)fd : (void *)(uintptr_t)piece->handle,
        by_fd ? VNXI_CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR
              : VNXI_CU_MEM_HANDLE_TYPE_FABRIC);
    if (result != VNXI_CUDA_SUCCESS) {
        return fail(import, "cuMemImportFromShareableHandle", result, error);
    }
    vnxi_cu_ptr_t here = range->here + range->used;
    result = cu->cuMemMap(here, piece->size, 0, memory, 0);
    cu->cuMemRelease(memory); /* the mapping keeps it */
    if (result != VNXI_CUDA_SUCCESS) {
        return fail(import, "cuMemMap", result, error);
    }
    range->used += piece->size;
    import->mapped[import->mapped_count++] =
        (mapped_t){.here = here, .size = piece->size};
    return add_span(import, piece, here, error);
}

static bool
has_reached_end(const vnxi_cuda_import_t *import)
{
    return import->end >= import->addr + import->len;
}

/* What the owner says must be the allocations of the region, one after the
 * other. */
static vnx_status_t
check_piece(const vnxi_cuda_import_t *import, const vnxi_lend_piece_t *piece,
            vnx_error_t *error)
{
    bool follows =
        import->mapped_count == 0
            ? piece->start <= import->addr &&
                  piece->start + piece->size > import->addr
            : piece->start == import->end && !has_reached_end(import);
    return follows && import->mapped_count < SPANS_MAX
               ? VNX_OK
               : vnxi_error_set(error, VNX_ERR_MISMATCH, OPERATION,
                                "the peer's answer does not describe the GPU "
                                "memory at 0x%" PRIx64 " of %" PRIu64 " bytes",
                                import->addr, import->len);
}

static vnx_status_t
map_piece(vnxi_cuda_import_t *import, const vnxi_lend_piece_t *piece, int fd,
          vnx_error_t *error)
{
    vnx_status_t status = check_piece(import, piece, error);

    if (status == VNX_OK &&
        !grow(&import->mapped, import->mapped_count, &import->mapped_room,
              sizeof *import->mapped)) {
        status =
            vnxi_error_no_memory(error, OPERATION, sizeof *import->mapped);
    }
    if (status == VNX_OK) {
        status = piece->kind == VNXI_LEND_LEGACY
                     ? map_legacy(import, piece, error)
                     : map_created(import, piece, fd, error);
    }
    import->end = piece->start + piece->size;
    return status;
}

/* The gpu may use what is mapped. */
static vnx_status_t
allow(vnxi_cuda_import_t *import, vnx_error_t *error)
{
    const vnxi_cu_access_t access = {
        .location = {VNXI_CU_MEM_LOCATION_TYPE_DEVICE, import->gpu->ordinal},
        .flags = VNXI_CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
    };

    for (size_t i = 0; i < import->range_count; i++) {
        const range_t *range = &import->ranges[i];
        vnxi_cu_result_t result = import->gpu->library->cu.cuMemSetAccess(
            range->here, range->used, &access, 1);
        if (result != VNXI_CUDA_SUCCESS) {
            return fail(import, "cuMemSetAccess", result, error);
        }
    }
    return VNX_OK;
}

static void
unmap(vnxi_cuda_import_t *import)
{
    const vnxi_cu_functions_t *cu = &import->gpu->library->cu;

    for (size_t i = 0; i < import->mapped_count; i++) {
        const mapped_t *one = &import->mapped[i];
        if (one->opened != NULL) {
            close_handle(import->gpu, one->opened);
        } else {
            cu->cuMemUnmap(one->here, one->size);
        }
    }
    for (size_t i = 0; i < import->range_count; i++) {
        cu->cuMemAddressFree(import->ranges[i].here, import->ranges[i].size);
    }
    import->mapped_count = import->range_count = import->spans.count = 0;
}

/* -- The owner's answer ----------------------------------------------------
 */

static void
drop_answer(vnxi_cuda_import_t *import)
{
    vnxi_fork_fds_close(import->fds, import->fd_count);
    free(import->pieces);
    free(import->fds);
    import->pieces = NULL;
    import->fds = NULL;
    import->piece_count = import->fd_count = 0;
}

static vnx_status_t
map_answer(vnxi_cuda_import_t *import, vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;
    size_t fd = 0;

    for (size_t i = 0; status == VNX_OK && i < import->piece_count; i++) {
        const vnxi_lend_piece_t *piece = &import->pieces[i];
        bool by_fd = piece->kind == VNXI_LEND_FD;
        status = map_piece(import, piece, by_fd ? import->fds[fd] : -1, error);
        fd += by_fd;
    }
    if (status == VNX_OK && import->is_last != has_reached_end(import)) {
        status =
            vnxi_error_set(error, VNX_ERR_MISMATCH, OPERATION,
                           "the peer's answer %s the end of the GPU memory at "
                           "0x%" PRIx64 " of %" PRIu64 " bytes",
                           import->is_last ? "leaves out" : "goes on after",
                           import->addr, import->len);
    }
    if (status == VNX_OK && import->is_last) {
        status = allow(import, error);
    }
    drop_answer(import);
    return status;
}

static void
set_failed(vnxi_cuda_import_t *import, const vnx_error_t *error)
{
    vnxi_mutex_lock(&imports_lock);
    import->state = STATE_FAILED;
    import->error = *error;
    import->failed = vnxi_cuda_next_number();
    vnxi_mutex_unlock(&imports_lock);
}

static const char *
why_lock_held(const vnxi_cuda_key_t *key, const vnxi_cuda_gpu_t *gpu)
{
    const vnxi_cuda_refusal_t *refusal = key->refusals;

    while (refusal != NULL && refusal->ordinal != gpu->ordinal) {
        refusal = refusal->next;
    }
    return refusal != NULL ? refusal->why : NULL;
}

const char *
vnxi_cuda_why_unmappable(const vnxi_cuda_key_t *key,
                         const vnxi_cuda_gpu_t *gpu)
{
    vnxi_mutex_lock(&imports_lock);
    const char *why = why_lock_held(key, gpu);
    vnxi_mutex_unlock(&imports_lock);
    return why;
}

/* Without memory, the next transfer tries to map the region once more. */
static void
refuse_lock_held(vnxi_cuda_key_t *key, const vnxi_cuda_gpu_t *gpu,
                 const char *why)
{
    vnxi_cuda_refusal_t *refusal =
        why_lock_held(key, gpu) == NULL ? malloc(sizeof *refusal) : NULL;

    if (refusal != NULL) {
        refusal->ordinal = gpu->ordinal;
        snprintf(refusal->why, sizeof refusal->why, "%.191s", why);
        refusal->next = key->refusals;
        key->refusals = refusal;
    }
}

/* The owner copies the region from now on, so the import is of no use.  False:
 * the owner does not do that. */
static bool
set_unmappable_lock_held(vnxi_cuda_import_t *import, const vnx_error_t *error)
{
    vnxi_cuda_key_t *key = import->key;

    if (key != NULL && !key->is_moved) {
        return false;
    }
    if (key != NULL) {
        refuse_lock_held(key, import->gpu, error->cause);
    }
    import->is_ending = true;
    import->gpu->wake(import->gpu);
    return true;
}

/* The driver cannot map the peer's memory, for example because the GPUs cannot
 * access each other.  A lack of memory may pass. */
static void
give_up(vnxi_cuda_import_t *import, const vnx_error_t *error)
{
    const vnxi_port_config_t *config = &import->port->config;

    if (error->status != VNX_ERR_BACKEND ||
        import->result == VNXI_CUDA_ERROR_OUT_OF_MEMORY) {
        return;
    }
    vnxi_mutex_lock(&imports_lock);
    bool is_moved = set_unmappable_lock_held(import, error);
    vnxi_mutex_unlock(&imports_lock);
    if (!is_moved) {
        config->host.give_up(config->host.context, config->number,
                             import->conn_id, error->cause);
    }
}

/* Unmap everything and begin again. */
static void
ask_again(vnxi_cuda_import_t *import)
{
    vnx_error_t error;

    unmap(import);
    import->end = import->addr;
    vnxi_mutex_lock(&imports_lock);
    import->is_second = true;
    import->state = STATE_ASKING;
    vnxi_mutex_unlock(&imports_lock);
    if (ask_for_more(import, import->addr, &error) != VNX_OK) {
        set_failed(import, &error);
    }
}

/* Map what has come; ask for more, or the import is complete. */
static void
go_on(vnxi_cuda_import_t *import)
{
    bool is_last = import->is_last;
    vnx_error_t error;

    vnx_status_t status = map_answer(import, &error);
    if (status != VNX_OK && !import->is_second) {
        ask_again(import);
        return;
    }
    if (status != VNX_OK) {
        unmap(import);
        import->end = import->addr;
        set_failed(import, &error);
        give_up(import, &error);
        return;
    }
    vnxi_mutex_lock(&imports_lock);
    import->state = is_last ? STATE_MAPPED : STATE_ASKING;
    vnxi_mutex_unlock(&imports_lock);
    if (!is_last && ask_for_more(import, import->end, &error) != VNX_OK) {
        set_failed(import, &error);
    }
}

/* -- The list --------------------------------------------------------------
 */

static void
take_out_lock_held(vnxi_cuda_import_t *import)
{
    vnxi_cuda_import_t **at = &imports;

    while (*at != import) {
        at = &(*at)->next;
    }
    *at = import->next;
    if (import->key == NULL) {
        return;
    }
    at = &import->key->imports;
    while (*at != import) {
        at = &(*at)->of_key;
    }
    *at = import->of_key;
}

static void
end(vnxi_cuda_import_t *import)
{
    const vnxi_port_host_t *host = &import->port->config.host;

    unmap(import);
    drop_answer(import);
    vnxi_cuda_ask_owner(
        import->port, import->conn_id,
        &(vnxi_lend_t){.type = VNXI_LEND_RETURNED, .loan = import->loan},
        NULL);
    /* Before the end is known: a thread that waits for it keeps the engine, so
     * the engine is freed on that thread and not later on this one. */
    host->release(host->context);
    vnxi_mutex_lock(&imports_lock);
    take_out_lock_held(import);
    vnxi_cond_broadcast(&ended);
    vnxi_mutex_unlock(&imports_lock);
    import->gpu->unmapped++;
    free(import->spans.spans);
    free(import->mapped);
    free(import->ranges);
    free(import);
}

/* Find an import that needs the gpu's thread. */
static vnxi_cuda_import_t *
next_to_serve(const vnxi_cuda_gpu_t *gpu, bool ends_all, bool *ends_p,
              bool *again_p)
{
    vnxi_mutex_lock(&imports_lock);
    vnxi_cuda_import_t *import = imports;
    while (import != NULL &&
           (import->gpu != gpu || !(ends_all || import->is_ending ||
                                    import->state == STATE_ANSWERED ||
                                    import->state == STATE_REFUSED))) {
        import = import->next;
    }
    if (import != NULL) {
        *ends_p = import->is_ending = ends_all || import->is_ending;
        *again_p = import->state == STATE_REFUSED;
    }
    vnxi_mutex_unlock(&imports_lock);
    return import;
}

static void
serve(const vnxi_cuda_gpu_t *gpu, bool ends_all)
{
    vnxi_cuda_import_t *import;
    bool ends, again;

    while ((import = next_to_serve(gpu, ends_all, &ends, &again)) != NULL) {
        if (ends) {
            end(import);
        } else if (again) {
            ask_again(import);
        } else {
            go_on(import);
        }
    }
}

void
vnxi_cuda_imports_serve(vnxi_cuda_gpu_t *gpu)
{
    serve(gpu, false);
}

void
vnxi_cuda_imports_end(vnxi_cuda_gpu_t *gpu)
{
    serve(gpu, true);
}

static bool
is_of_conn(const vnxi_port_t *port, uintptr_t conn_id,
           const vnxi_port_t *of_port, uintptr_t of_conn_id)
{
    return port == of_port && conn_id == of_conn_id;
}

void
vnxi_cuda_imports_drop(const vnxi_port_t *port, uintptr_t conn_id)
{
    vnxi_mutex_lock(&imports_lock);
    for (vnxi_cuda_import_t *import = imports; import != NULL;
         import = import->next) {
        if (is_of_conn(import->port, import->conn_id, port, conn_id)) {
            import->is_ending = true;
            import->gpu->wake(import->gpu);
        }
    }
    for (vnxi_cuda_check_t *check = checks; check != NULL;
         check = check->next) {
        if (is_of_conn(check->port, check->conn_id, port, conn_id)) {
            check->gpu->wake(check->gpu);
        }
    }
    vnxi_mutex_unlock(&imports_lock);
}

static bool
has_import_lock_held(const vnxi_port_t *port, uintptr_t conn_id)
{
    const vnxi_cuda_import_t *import = imports;

    while (import != NULL &&
           !is_of_conn(import->port, import->conn_id, port, conn_id)) {
        import = import->next;
    }
    return import != NULL;
}

size_t
vnxi_cuda_imports_count(const vnxi_port_t *port, uintptr_t conn_id)
{
    size_t count = 0;

    vnxi_mutex_lock(&imports_lock);
    for (const vnxi_cuda_import_t *import = imports; import != NULL;
         import = import->next) {
        count += import->state == STATE_MAPPED && !import->is_ending &&
                 is_of_conn(import->port, import->conn_id, port, conn_id);
    }
    vnxi_mutex_unlock(&imports_lock);
    return count;
}

void
vnxi_cuda_imports_settle(const vnxi_port_t *port, uintptr_t conn_id,
                         uint64_t deadline)
{
    struct timespec until = vnxi_clock_timespec(deadline);
    int late = 0;

    vnxi_mutex_lock(&imports_lock);
    while (late == 0 && has_import_lock_held(port, conn_id)) {
        late = vnxi_cond_timedwait(&ended, &imports_lock, &until);
    }
    vnxi_mutex_unlock(&imports_lock);
}

void
vnxi_cuda_key_fini(vnxi_cuda_key_t *key)
{
    vnxi_mutex_lock(&imports_lock);
    for (vnxi_cuda_import_t *import = key->imports; import != NULL;
         import = import->of_key) {
        import->key = NULL;
        import->is_ending = true;
        import->gpu->wake(import->gpu);
    }
    key->imports = NULL;
    while (key->refusals != NULL) {
        vnxi_cuda_refusal_t *refusal = key->refusals;
        key->refusals = refusal->next;
        free(refusal);
    }
    vnxi_mutex_unlock(&imports_lock);
}

/* -- Importing -------------------------------------------------------------
 */

static vnxi_cuda_import_t *
find_lock_held(const vnxi_cuda_key_t *key, const vnxi_cuda_gpu_t *gpu)
{
    vnxi_cuda_import_t *import = key->imports;

    while (import != NULL && import->gpu != gpu) {
        import = import->of_key;
    }
    return import;
}

/* Is it neither mapped nor failed so far? */
static bool
is_open(const vnxi_cuda_import_t *import)
{
    return import->state != STATE_MAPPED && import->state != STATE_FAILED;
}

static void
note_lock_held(vnxi_cuda_post_t *post, const vnxi_cuda_import_t *import)
{
    post->answered =
        import->answered > post->answered ? import->answered : post->answered;
}

/* Is the owner asked as many questions as it may be?  Then the post waits for
 * an answer to one of them, which wakes the gpu. */
static bool
is_busy_lock_held(const vnxi_cuda_key_t *key, const vnxi_cuda_gpu_t *gpu,
                  vnxi_cuda_post_t *post)
{
    const vnxi_cuda_import_t *asked[VNXI_CUDA_ASKS_MAX];
    unsigned asks = 0;

    for (const vnxi_cuda_import_t *import = imports;
         import != NULL && asks < VNXI_CUDA_ASKS_MAX; import = import->next) {
        if (import->gpu == gpu && is_open(import) &&
            is_of_conn(import->port, import->conn_id, key->port,
                       key->conn_id)) {
            asked[asks++] = import;
        }
    }
    for (unsigned i = 0; asks == VNXI_CUDA_ASKS_MAX && i < asks; i++) {
        note_lock_held(post, asked[i]);
    }
    return asks == VNXI_CUDA_ASKS_MAX;
}

/* NULL: no memory. */
static vnxi_cuda_import_t *
start_lock_held(vnxi_cuda_key_t *key, vnxi_cuda_gpu_t *gpu)
{
    vnxi_cuda_import_t *import = malloc(sizeof *import);
    uint64_t number = vnxi_cuda_next_number();

    if (import == NULL) {
        return NULL;
    }
    *import = (vnxi_cuda_import_t){
        .gpu = gpu,
        .port = key->port,
        .conn_id = key->conn_id,
        .loan = number,
        .answered = number,
        .addr = key->addr,
        .len = key->len,
        .dev = key->dev,
        .next = imports,
        .key = key,
        .of_key = key->imports,
        .end = key->addr,
    };
    imports = key->imports = import;
    key->port->config.host.retain(key->port->config.host.context);
    return import;
}

/* An error is not for posts that have begun after it: they ask again. */
static vnx_status_t
use_lock_held(vnxi_cuda_import_t *import, vnxi_cuda_post_t *post,
              vnxi_cuda_spans_t *spans, vnx_error_t *error)
{
    note_lock_held(post, import);
    if (import->is_ending || is_open(import)) {
        return VNX_IN_PROG;
    }
    if (import->state == STATE_FAILED) {
        import->is_ending = true;
        import->gpu->wake(import->gpu);
        if (import->failed < post->since) {
            return VNX_IN_PROG;
        }
        *error = import->error;
        return error->status;
    }
    for (size_t i = 0; spans != NULL && i < import->spans.count; i++) {
        if (!vnxi_cuda_spans_add(spans, import->spans.spans[i])) {
            return vnxi_error_no_memory(error, OPERATION,
                                        sizeof *spans->spans);
        }
    }
    return VNX_OK;
}

vnx_status_t
vnxi_cuda_import(vnxi_cuda_key_t *key, vnxi_cuda_gpu_t *gpu,
                 vnxi_cuda_post_t *post, vnxi_cuda_spans_t *spans,
                 vnx_error_t *error)
{
    vnx_status_t status;

    pthread_once(&once, start);
    vnxi_mutex_lock(&imports_lock);
    vnxi_cuda_import_t *import = find_lock_held(key, gpu);
    bool is_busy = import == NULL && is_busy_lock_held(key, gpu, post);
    bool is_new = import == NULL && !is_busy;
    if (is_new) {
        import = start_lock_held(key, gpu);
        post->begun++;
    }
    if (is_busy) {
        status = VNX_IN_PROG;
    } else if (import == NULL) {
        status = vnxi_error_no_memory(error, OPERATION, sizeof *import);
    } else {
        status = use_lock_held(import, post, spans, error);
    }
    vnxi_mutex_unlock(&imports_lock);
    if (import != NULL && is_new &&
        ask_for_more(import, import->addr, error) != VNX_OK) {
        set_failed(import, error);
        vnxi_mutex_lock(&imports_lock);
        status = use_lock_held(import, post, spans, error);
        vnxi_mutex_unlock(&imports_lock);
    }
    return status;
}

/* -- Checks ----------------------------------------------------------------
 */

/* The loan of an import that is mapped; 0: it is not. */
static uint64_t
loan_of(const vnxi_cuda_key_t *key, const vnxi_cuda_gpu_t *gpu)
{
    const vnxi_cuda_import_t *import = find_lock_held(key, gpu);
    return import != NULL && import->state == STATE_MAPPED ? import->loan : 0;
}

static vnx_status_t
ask_check(const vnxi_cuda_check_t *check, const uint64_t *loans, size_t count,
          vnx_error_t *error)
{
    return vnxi_cuda_ask_owner(check->port, check->conn_id,
                               &(vnxi_lend_t){.type = VNXI_LEND_CHECK,
                                              .loan = check->token,
                                              .count = count,
                                              .loans = loans},
                               error);
}

vnx_status_t
vnxi_cuda_check_begin(vnxi_cuda_check_t *check, vnxi_cuda_gpu_t *gpu,
                      vnxi_cuda_key_t *const *keys, size_t count,
                      vnx_error_t *error)
{
    uint64_t *loans = malloc((count + 1) * sizeof *loans);
    vnx_status_t status = VNX_OK;

    if (loans == NULL) {
        return vnxi_error_no_memory(error, OPERATION, count * sizeof *loans);
    }
    check->gpu = gpu;
    check->port = keys[0]->port;
    check->conn_id = keys[0]->conn_id;
    atomic_store(&check->is_stale, false);
    atomic_store(&check->messages,
                 (count + VNXI_LEND_LOANS_MAX - 1) / VNXI_LEND_LOANS_MAX);
    vnxi_mutex_lock(&imports_lock);
    for (size_t i = 0; i < count; i++) {
        loans[i] = loan_of(keys[i], gpu);
    }
    check->token = vnxi_cuda_next_number();
    check->next = checks;
    checks = check;
    vnxi_mutex_unlock(&imports_lock);
    for (size_t at = 0; status == VNX_OK && at < count;
         at += VNXI_LEND_LOANS_MAX) {
        size_t some = count - at < VNXI_LEND_LOANS_MAX ? count - at
                                                       : VNXI_LEND_LOANS_MAX;
        status = ask_check(check, loans + at, some, error);
    }
    free(loans);
    if (status != VNX_OK) {
        vnxi_cuda_check_end(check);
    }
    return status;
}

vnx_status_t
vnxi_cuda_check_state(const vnxi_cuda_check_t *check)
{
    return atomic_load(&check->messages) > 0 ? VNX_IN_PROG
           : atomic_load(&check->is_stale)   ? VNX_ERR_MISMATCH
                                             : VNX_OK;
}

void
vnxi_cuda_check_end(vnxi_cuda_check_t *check)
{
    if (check->gpu == NULL) {
        return;
    }
    vnxi_mutex_lock(&imports_lock);
    for (vnxi_cuda_check_t **at = &checks; *at != NULL; at = &(*at)->next) {
        if (*at == check) {
            *at = check->next;
            break;
        }
    }
    atomic_store(&check->messages, 0);
    atomic_store(&check->is_stale, false);
    vnxi_mutex_unlock(&imports_lock);
    check->gpu = NULL;
}

/* -- Messages from owners --------------------------------------------------
 */

static vnxi_cuda_import_t *
find_loan_lock_held(const vnxi_port_t *port, uintptr_t conn_id, uint64_t loan)
{
    vnxi_cuda_import_t *import = imports;

    while (import != NULL &&
           (import->loan != loan ||
            !is_of_conn(import->port, import->conn_id, port, conn_id))) {
        import = import->next;
    }
    return import;
}

static void
fail_lock_held(vnxi_cuda_import_t *import, vnx_status_t status,
               const char *cause, size_t len)
{
    vnxi_error_set(&import->error, status, OPERATION,
                   "the peer does not share its GPU memory at 0x%" PRIx64
                   " of %" PRIu64 " bytes: ",
                   import->addr, import->len);
    for (size_t i = 0; i < len; i++) {
        vnxi_error_add(&import->error, "%c",
                       vnxi_error_printable((unsigned char)cause[i]));
    }
    import->state = STATE_FAILED;
    import->failed = vnxi_cuda_next_number();
}

static size_t
count_fds(const vnxi_lend_t *message)
{
    size_t count = 0;

    for (size_t i = 0; i < message->count; i++) {
        count += vnxi_lend_piece(message, i).kind == VNXI_LEND_FD;
    }
    return count;
}

/* Keep the pieces and take the descriptors over; false: they are not ours. */
static bool
take_answer_lock_held(vnxi_cuda_import_t *import, const vnxi_lend_t *message,
                      const vnxi_control_t *control)
{
    static const char lost[] =
        "this process cannot take the descriptors of it: the limit is reached";
    static const char wrong[] = "its answer has the wrong descriptors";
    size_t fd_count = count_fds(message);

    if (fd_count != control->fd_count) {
        const char *cause = control->has_lost_fds ? lost : wrong;
        fail_lock_held(import, VNX_ERR_BACKEND, cause, strlen(cause));
        return false;
    }
    import->pieces = malloc(message->count * sizeof *import->pieces);
    import->fds = malloc((fd_count + 1) * sizeof *import->fds);
    if (import->pieces == NULL || import->fds == NULL) {
        free(import->pieces);
        free(import->fds);
        import->pieces = NULL;
        import->fds = NULL;
        fail_lock_held(import, VNX_ERR_NO_MEMORY, "no memory", 9);
        return false;
    }
    for (size_t i = 0; i < message->count; i++) {
        import->pieces[i] = vnxi_lend_piece(message, i);
    }
    if (fd_count > 0) {
        memcpy(import->fds, control->fds, fd_count * sizeof *import->fds);
    }
    import->piece_count = message->count;
    import->fd_count = fd_count;
    import->is_last = message->is_last;
    import->state = STATE_ANSWERED;
    return true;
}

vnx_status_t
vnxi_cuda_refused_status(const vnxi_lend_t *message)
{
    vnx_status_t status = (vnx_status_t)(-(int)message->status);

    return status == VNX_ERR_NOT_FOUND || status == VNX_ERR_NOT_SUPPORTED ||
                   status == VNX_ERR_REMOTE_DISCONNECT
               ? status
               : VNX_ERR_BACKEND;
}

/* The owner refuses.  If it cannot hand out the region, it may copy it; other
 * reasons may pass.  Whether the driver's refusal does is seen when the owner
 * is asked once more. */
static void
on_refused_lock_held(vnxi_cuda_import_t *import, const vnxi_lend_t *message)
{
    if (message->status == -VNX_ERR_BACKEND && !import->is_second) {
        import->state = STATE_REFUSED;
        return;
    }
    fail_lock_held(import, vnxi_cuda_refused_status(message), message->cause,
                   message->count);
    if (message->status == -VNX_ERR_BACKEND ||
        message->status == -VNX_ERR_NOT_SUPPORTED) {
        set_unmappable_lock_held(import, &import->error);
    }
}

/* Returns whether the descriptors were taken over. */
static bool
on_loan_lock_held(vnxi_cuda_import_t *import, const vnxi_lend_t *message,
                  const vnxi_control_t *control)
{
    bool takes = false;

    if (message->type == VNXI_LEND_RECALL) {
        import->is_ending = true;
    } else if (import->state == STATE_ASKING && !import->is_ending) {
        import->answered = vnxi_cuda_next_number();
        if (message->type == VNXI_LEND_LENT) {
            takes = take_answer_lock_held(import, message, control);
        } else {
            on_refused_lock_held(import, message);
        }
    }
    import->gpu->wake(import->gpu);
    return takes;
}

static void
on_checked_lock_held(const vnxi_port_t *port, uintptr_t conn_id,
                     const vnxi_lend_t *message)
{
    vnxi_cuda_check_t *check = checks;

    while (check != NULL &&
           (check->token != message->loan ||
            atomic_load(&check->messages) == 0 ||
            !is_of_conn(check->port, check->conn_id, port, conn_id))) {
        check = check->next;
    }
    if (check == NULL) {
        return;
    }
    for (size_t i = 0; i < message->count; i++) {
        vnxi_cuda_import_t *import =
            find_loan_lock_held(port, conn_id, vnxi_lend_loan(message, i));
        if (import != NULL) {
            import->is_ending = true;
        }
        atomic_store(&check->is_stale, true);
    }
    atomic_fetch_sub(&check->messages, 1);
    check->gpu->wake(check->gpu);
}

bool
vnxi_cuda_imports_on_answer(const vnxi_port_t *port, uintptr_t conn_id,
                            const vnxi_lend_t *message,
                            const vnxi_control_t *control)
{
    bool takes = false;

    vnxi_mutex_lock(&imports_lock);
    if (message->type == VNXI_LEND_CHECKED) {
        on_checked_lock_held(port, conn_id, message);
    } else if (message->type == VNXI_LEND_LENT ||
               message->type == VNXI_LEND_REFUSED ||
               message->type == VNXI_LEND_RECALL) {
        vnxi_cuda_import_t *import =
            find_loan_lock_held(port, conn_id, message->loan);
        takes = import != NULL && on_loan_lock_held(import, message, control);
    }
    vnxi_mutex_unlock(&imports_lock);
    return takes;
}
