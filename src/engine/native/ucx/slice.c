/*
 * A slice at work: takes chunks of the plan, posts their pieces with the
 * handles that UCX needs for each, and handles the results.
 */
#include <inttypes.h>

#include "base/error.h"
#include "engine/native/ucx/slice.h"

/* -- Failures --------------------------------------------------------------
 */

void
vnxi_ucx_xfer_fail(vnxi_ucx_xfer_t *xfer, const vnx_error_t *error,
                   bool by_ucx)
{
    int none = VNXI_UCX_FAILING_NOT;
    int cause = by_ucx ? VNXI_UCX_FAILING_BY_UCX : VNXI_UCX_FAILING;

    if (atomic_compare_exchange_strong(&xfer->failing, &none, cause)) {
        xfer->error = *error;
    }
    atomic_store(&xfer->stop, true);
}

static void
fail(vnxi_ucx_slice_t *slice, vnxi_ucs_status_t status, const char *what,
     uint64_t remote, uint64_t len)
{
    vnx_error_t error;
    vnxi_error_set(
        &error, vnxi_ucx_status(status), VNXI_UCX_TRANSFER,
        "UCX: %s (the peer's address 0x%" PRIx64 ", %" PRIu64 " bytes): %s",
        what, remote, len,
        vnxi_ucx_calls(slice->ep->worker)->ucs_status_string(status));
    vnxi_ucx_xfer_fail(slice->xfer, &error, true);
}

/* -- Pieces ----------------------------------------------------------------
 */

static bool
holds(const vnxi_region_t *region, uint64_t addr)
{
    return region->addr <= addr && addr < vnxi_region_end(region);
}

/* Find a region of the list that holds this address, from the end.  Regions
 * are sorted by device, then by address.  Of nested ones, UCX may know only
 * some: *at_p is where to go on. */
static const vnxi_region_t *
find_region(const vnxi_list_t *list, uint64_t addr, size_t *at_p)
{
    while (*at_p > 0) {
        const vnxi_region_t *region = list->regions[--*at_p];
        if (holds(region, addr)) {
            return region;
        }
    }
    return NULL;
}

/* Where the search for an address begins: after all regions that may hold it.
 */
static size_t
search_from(const vnxi_list_t *list, uint64_t addr)
{
    size_t low = 0, high = list->region_count;
    vnxi_region_t *const *regions = list->regions;

    if (regions[0]->dev != regions[high - 1]->dev) {
        return high;
    }
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (regions[middle]->addr <= addr) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

static void
find_local(vnxi_ucx_slice_t *slice)
{
    const vnxi_ucx_xfer_args_t *args = &slice->xfer->args;
    size_t at = search_from(args->local, slice->piece.local);

    do {
        slice->local = find_region(args->local, slice->piece.local, &at);
        slice->mem = slice->local != NULL
                         ? args->mem_of(args->owner, slice->local)
                         : NULL;
    } while (slice->mem == NULL && at > 0);
}

static void
find_remote(vnxi_ucx_slice_t *slice)
{
    const vnxi_ucx_xfer_args_t *args = &slice->xfer->args;
    size_t at = search_from(args->remote, slice->piece.remote);

    do {
        slice->remote = find_region(args->remote, slice->piece.remote, &at);
        slice->key = slice->remote != NULL
                         ? args->key_of(args->owner, slice->remote)
                         : NULL;
    } while (slice->key == NULL && at > 0);
}

/* Find both sides' regions at the start of the piece, and the length within
 * both. */
static bool
find_regions(vnxi_ucx_slice_t *slice, uint64_t *len_p)
{
    const vnxi_piece_t *piece = &slice->piece;

    if (slice->local == NULL || !holds(slice->local, piece->local)) {
        find_local(slice);
    }
    if (slice->remote == NULL || !holds(slice->remote, piece->remote)) {
        find_remote(slice);
    }
    if (slice->local == NULL || slice->remote == NULL) {
        return false;
    }
    uint64_t local = vnxi_region_end(slice->local) - piece->local;
    uint64_t remote = vnxi_region_end(slice->remote) - piece->remote;
    uint64_t len = piece->len;
    len = local < len ? local : len;
    *len_p = remote < len ? remote : len;
    return true;
}

/* A request cancelled because the transfer stops is not a failure. */
static void
note_failure(vnxi_ucx_slice_t *slice, vnxi_ucs_status_t status)
{
    if (status != VNXI_UCS_ERR_CANCELED || !atomic_load(&slice->xfer->stop)) {
        fail(slice, status, "a piece failed", slice->piece.remote, 0);
    }
}

static void
on_request(void *request, vnxi_ucs_status_t status, void *user_data)
{
    vnxi_ucx_slice_t *slice = user_data;
    slice->pending--;
    slice->ep->posted--;
    slice->moved = slice->ep->moved = true;
    if (__builtin_expect(status != VNXI_UCS_OK, 0)) {
        note_failure(slice, status);
    }
    vnxi_ucx_calls(slice->ep->worker)->ucp_request_free(request);
}

static vnxi_ucs_ptr_t
post_part(vnxi_ucx_slice_t *slice, vnxi_ucp_mem_t memory, vnxi_ucp_rkey_t key,
          uint64_t len)
{
    const vnxi_ucp_functions_t *ucp = vnxi_ucx_calls(slice->ep->worker);
    const vnxi_ucp_request_param_t param = {
        .op_attr_mask =
            VNXI_UCP_OP_CALLBACK | VNXI_UCP_OP_USER_DATA | VNXI_UCP_OP_MEMH,
        .cb.send = on_request,
        .user_data = slice,
        .memh = memory,
    };
    void *local = (void *)(uintptr_t)slice->piece.local;

    return slice->xfer->args.op == VNX_OP_READ
               ? ucp->ucp_get_nbx(slice->ep->handle, local, len,
                                  slice->piece.remote, key, &param)
               : ucp->ucp_put_nbx(slice->ep->handle, local, len,
                                  slice->piece.remote, key, &param);
}

/* Find the handles that UCX needs for the piece, and the length of it that
 * they serve. */
static bool
find_handles(vnxi_ucx_slice_t *slice, vnxi_ucp_mem_t *memory_p,
             vnxi_ucp_rkey_t *key_p, uint64_t *len_p)
{
    vnxi_ucs_status_t status = VNXI_UCS_ERR_INVALID_PARAM;

    *memory_p = slice->mem != NULL
                    ? vnxi_ucx_mem_find(slice->mem, slice->piece.local, len_p)
                    : NULL;
    if (slice->key != NULL && *memory_p != NULL) {
        status = vnxi_ucx_key_handle(slice->key, slice->ep, key_p);
    }
    if (status != VNXI_UCS_OK) {
        fail(slice, status, "its key for the region cannot be used",
             slice->remote->addr, slice->remote->len);
    }
    return status == VNXI_UCS_OK;
}

/* Post the piece, or the part of it that lies in one region on each side and
 * in one mapping of UCX.  False: impossible, and the transfer fails. */
static bool
post_piece(vnxi_ucx_slice_t *slice)
{
    vnxi_piece_t *piece = &slice->piece;
    vnxi_ucp_mem_t memory;
    vnxi_ucp_rkey_t key;
    uint64_t len;

    if (!find_regions(slice, &len)) {
        fail(slice, VNXI_UCS_ERR_INVALID_ADDR, "no region holds it",
             piece->remote, piece->len);
        return false;
    }
    if (!find_handles(slice, &memory, &key, &len)) {
        return false;
    }
    vnxi_ucs_ptr_t ptr = post_part(slice, memory, key, len);
    if (vnxi_ucs_is_request(ptr)) {
        slice->pending++;
        slice->ep->posted++;
    } else if (vnxi_ucs_status(ptr) != VNXI_UCS_OK) {
        fail(slice, vnxi_ucs_status(ptr), "a piece was refused", piece->remote,
             len);
        return false;
    }
    piece->local += len;
    piece->remote += len;
    piece->len -= len;
    slice->has_piece = piece->len > 0;
    return true;
}

/* -- Chunks ----------------------------------------------------------------
 */

/* Take the next chunk; false if there is none or the transfer must not go on.
 */
static bool
take_chunk(vnxi_ucx_slice_t *slice)
{
    vnxi_ucx_xfer_t *xfer = slice->xfer;
    vnx_error_t error;

    if (atomic_load_explicit(&xfer->stop, memory_order_acquire)) {
        return false;
    }
    if (xfer->args.go_on(xfer->args.context, &error) != VNX_OK) {
        vnxi_ucx_xfer_fail(xfer, &error, false);
        return false;
    }
    size_t chunk = atomic_fetch_add(&xfer->next_chunk, 1);
    if (chunk >= xfer->args.plan->chunk_count) {
        return false;
    }
    slice->walk = vnxi_plan_walk(xfer->args.plan, chunk);
    slice->in_chunk = true;
    return true;
}

/* Joins pieces that the plan has cut only for its chunks: fewer UCX requests,
 * fewer system calls. */
static bool
next_piece(vnxi_ucx_slice_t *slice)
{
    const uint32_t route = slice->xfer->args.route;
    vnxi_piece_t *piece = &slice->piece, part;

    do {
        if (!vnxi_walk_next(&slice->walk, piece)) {
            return false;
        }
    } while (piece->route != route);
    part = *piece;
    for (vnxi_walk_t ahead = slice->walk;
         part.len == VNXI_PIECE_MAX && piece->len < VNXI_UCX_PIECE_BYTES &&
         vnxi_walk_next(&ahead, &part) && part.route == route &&
         part.local == piece->local + piece->len &&
         part.remote == piece->remote + piece->len;
         slice->walk = ahead) {
        piece->len += part.len;
    }
    return true;
}

static void
post_chunk(vnxi_ucx_slice_t *slice)
{
    while (slice->has_piece || next_piece(slice)) {
        slice->has_piece = true;
        if (slice->piece.len == 0) {
            slice->has_piece = false;
        } else if (!post_piece(slice)) {
            slice->posting = slice->has_piece = false;
            return;
        }
    }
    slice->in_chunk = false;
}

static void
begin_flush(vnxi_ucx_slice_t *slice)
{
    const vnxi_ucp_request_param_t param = {
        .op_attr_mask = VNXI_UCP_OP_CALLBACK | VNXI_UCP_OP_USER_DATA,
        .cb.send = on_request,
        .user_data = slice,
    };
    slice->flushing = true;
    slice->pending++;
    slice->ep->posted++;
    vnxi_ucs_ptr_t ptr = vnxi_ucx_calls(slice->ep->worker)
                             ->ucp_ep_flush_nbx(slice->ep->handle, &param);
    if (!vnxi_ucs_is_request(ptr)) {
        slice->pending--;
        slice->ep->posted--;
        if (vnxi_ucs_status(ptr) != VNXI_UCS_OK) {
            fail(slice, vnxi_ucs_status(ptr), "a flush was refused", 0, 0);
        }
    }
}

/* Also if the transfer has failed, so that nothing is written after its end:
 * UCX ends the request of a write before the bytes have arrived.  On a
 * connection that has failed, nothing is under way any more. */
bool
vnxi_ucx_slice_needs_flush(const vnxi_ucx_slice_t *slice)
{
    return slice->xfer->args.op == VNX_OP_WRITE && slice->opening != 0 &&
           !slice->flushing && slice->ep->state == VNXI_UCX_EP_OPEN &&
           !atomic_load(&slice->ep->conn->failed);
}

vnx_status_t
vnxi_ucx_slice_reset_error(vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_TIMEOUT, VNXI_UCX_TRANSFER,
                          "the connection was reset because another transfer "
                          "made no progress on it");
}

/* Get the connection's ep ready for posting.  If it was reset since the first
 * piece, pieces posted before may not have arrived.  A slice whose worker
 * could not be created leaves its share to the others. */
static bool
has_ep(vnxi_ucx_slice_t *slice)
{
    vnx_error_t error;
    vnxi_ucx_conn_t *conn = slice->xfer->args.conn;

    if (slice->ep->worker->handle == NULL) {
        slice->posting = false;
        return false;
    }
    vnx_status_t status =
        atomic_load(&conn->dead)
            ? vnxi_ucx_conn_error(conn, VNXI_UCX_TRANSFER, &error)
            : vnxi_ucx_ep_open(slice->ep, VNXI_UCX_TRANSFER, &error);

    if (status == VNX_OK && slice->opening != 0 &&
        slice->opening != slice->ep->opening) {
        status = vnxi_ucx_slice_reset_error(&error);
    }
    if (status < 0) {
        vnxi_ucx_xfer_fail(slice->xfer, &error, false);
        slice->posting = false;
        slice->opening = 0; /* there is nothing to flush */
    }
    return status == VNX_OK;
}

bool
vnxi_ucx_slice_turn(vnxi_ucx_duty_t *duty)
{
    vnxi_ucx_slice_t *slice = (vnxi_ucx_slice_t *)duty;

    if (!slice->posting && !vnxi_ucx_slice_needs_flush(slice)) {
        return false;
    }
    if (slice->pending >= slice->xfer->window || !has_ep(slice)) {
        return false;
    }
    if (slice->posting && !slice->in_chunk && !take_chunk(slice)) {
        slice->posting = false;
    }
    if (slice->posting) {
        slice->opening = slice->ep->opening;
        post_chunk(slice);
    }
    if (!slice->posting && vnxi_ucx_slice_needs_flush(slice)) {
        begin_flush(slice);
    }
    return slice->posting;
}
