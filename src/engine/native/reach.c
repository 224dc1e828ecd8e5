#include "engine/native/reach.h"

#include <stdlib.h>

#include "base/error.h"

/* A peer's descriptor number is -1 here, so nothing is given up for it. */
static void
reach_free(vnxi_attachment_t *attachment)
{
    vnxi_reach_t *reach = (vnxi_reach_t *)attachment;
    vnxi_share_map_release(reach->mapping);
    vnxi_share_fini(&reach->share);
    free(reach);
}

static vnxi_reach_t *
reach_create(vnxi_region_t *region)
{
    vnxi_reach_t *reach = calloc(1, sizeof *reach);
    if (reach != NULL) {
        reach->super.free = reach_free;
        reach->share = VNXI_SHARE_NONE;
        region->attachment = &reach->super;
    }
    return reach;
}

vnx_status_t
vnxi_reach_attach_local(void *context, vnxi_region_t *region,
                        vnx_error_t *error)
{
    (void)context;
    vnxi_reach_t *reach = reach_create(region);
    if (reach == NULL) {
        return vnxi_error_no_memory(error, "register_memory", sizeof *reach);
    }
    region->direct = true;
    reach->share = vnxi_share_find(region->addr, region->len);
    return VNX_OK;
}

vnx_status_t
vnxi_reach_attach_remote(vnxi_region_t *region, const vnxi_share_t *share,
                         vnxi_share_map_t *mapping, vnx_error_t *error)
{
    vnxi_reach_t *reach = reach_create(region);
    if (reach == NULL) {
        vnxi_share_map_release(mapping);
        return vnxi_error_no_memory(error, "add_remote_agent", sizeof *reach);
    }
    if (share->fd >= 0) {
        reach->share = *share;
        reach->share.fd = -1; /* a number of the peer's: not ours to close */
    }
    reach->mapping = mapping;
    if (mapping != NULL) {
        region->direct = true;
        region->delta = (uintptr_t)vnxi_share_map_data(mapping) - region->addr;
    }
    return VNX_OK;
}
