#include "engine/parts/pairs.h"

#include <inttypes.h>

#include "base/error.h"
#include "engine/parts/indices.h"

vnx_status_t
vnxi_pairs_check(const vnx_indices_t *local, const vnx_indices_t *remote,
                 const char *operation, vnx_error_t *error)
{
    if (local->count != remote->count) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation,
                              "%zu local indices, but %zu remote ones: they "
                              "form pairs",
                              local->count, remote->count);
    }
    if (local->count == 0) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation,
                              "no indices were given");
    }
    if (!vnxi_indices_type_is_known(local->type) ||
        !vnxi_indices_type_is_known(remote->type)) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation,
                              "unknown type of indices");
    }
    return VNX_OK;
}

vnx_status_t
vnxi_pairs_bad_index(const vnxi_pairs_side_t *side, size_t place,
                     uint64_t index, const char *operation, vnx_error_t *error)
{
    bool is_negative =
        vnxi_indices_are_signed(side->indices) && (int64_t)index < 0;
    size_t count = side->list->count;

    vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation,
                   "%s index %s%" PRIu64 " is not in the list of %zu rows",
                   side->name, is_negative ? "-" : "",
                   is_negative ? -index : index, count);
    if (count > 0) {
        vnxi_error_add(error, ": 0 to %zu", count - 1);
    }
    vnxi_error_row(error, place);
    return VNX_ERR_INVALID_PARAM;
}

vnx_status_t
vnxi_pairs_unequal(size_t place, uint64_t local, uint64_t remote,
                   const char *operation, vnx_error_t *error)
{
    vnx_status_t status = vnxi_error_set(
        error, VNX_ERR_INVALID_PARAM, operation,
        "the local row has %" PRIu64 " bytes, the remote one %" PRIu64, local,
        remote);
    vnxi_error_row(error, place);
    return status;
}

vnx_status_t
vnxi_pairs_too_long(const char *operation, vnx_error_t *error)
{
    return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation,
                          "the total length exceeds 2^64");
}

vnx_status_t
vnxi_pairs_check_regions(const vnxi_list_t *list, const char *side,
                         const vnxi_peer_t *peer, vnx_error_t *error)
{
    const vnxi_region_t *region = vnxi_list_unusable(list);
    if (__builtin_expect(region == NULL, 1)) {
        return VNX_OK;
    }
    /* Its owner's answer may have arrived since: it may be usable now. */
    if (!vnxi_region_is_gone(region)) {
        return VNX_IN_PROG;
    }
    vnxi_error_set(error, VNX_ERR_NOT_FOUND, "vnx_xfer_post",
                   "the %s region at 0x%" PRIx64 " of %" PRIu64
                   " bytes, which the list uses, %s",
                   side, region->addr, region->len,
                   vnxi_region_state(region) == VNXI_REGION_REFUSED
                       ? "was not registered by its owner, or was "
                         "deregistered since"
                       : "was deregistered");
    vnxi_error_peer(error, peer->name, peer->name_len);
    return VNX_ERR_NOT_FOUND;
}
