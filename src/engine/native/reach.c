#include "engine/native/reach.h"

#include <stdlib.h>

#include "base/error.h"

/* A peer's map_info has fd -1 here: vnxi_map_info_fini() closes nothing. */
static void
reach_free(vnxi_attachment_t *attachment)
{
    vnxi_reach_t *reach = (vnxi_reach_t *)attachment;
    vnxi_mapping_release(reach->mapping);
    vnxi_map_info_fini(&reach->map_info);
    vnxi_ucx_mem_free(atomic_load(&reach->mem));
    vnxi_ucx_key_release(reach->key);
    free(reach);
}

static vnxi_reach_t *
reach_create(vnxi_region_t *region)
{
    vnxi_reach_t *reach = calloc(1, sizeof *reach);
    if (reach != NULL) {
        reach->super.free = reach_free;
        reach->map_info = VNXI_MAP_INFO_NONE;
        region->attachment = &reach->super;
    }
    return reach;
}

vnxi_ucx_mem_t *
vnxi_region_ucx_mem(const vnxi_region_t *region)
{
    vnxi_reach_t *reach = vnxi_region_reach(region);
    return reach != NULL ? atomic_load(&reach->mem) : NULL;
}

vnxi_ucx_key_t *
vnxi_region_ucx_key(const vnxi_region_t *region)
{
    const vnxi_reach_t *reach = vnxi_region_reach(region);
    return reach != NULL ? reach->key : NULL;
}

vnx_status_t
vnxi_reach_attach_local(vnxi_region_t *region, vnx_error_t *error)
{
    vnxi_reach_t *reach = reach_create(region);
    if (reach == NULL) {
        return vnxi_error_no_memory(error, "register_memory", sizeof *reach);
    }
    if (region->mem == VNX_MEM_DRAM) {
        region->direct = true;
        reach->map_info = vnxi_map_info_find(region->addr, region->len);
    }
    return VNX_OK;
}

vnx_status_t
vnxi_reach_map_ucx(vnxi_region_t *region, vnxi_ucx_t *ucx, vnx_error_t *error)
{
    vnxi_reach_t *reach = vnxi_region_reach(region);
    vnxi_ucx_mem_t *mem;

    if (atomic_load(&reach->mem) != NULL) {
        return VNX_OK;
    }
    vnx_status_t status =
        vnxi_ucx_mem_map(ucx, region->addr, region->len, &mem, error);
    if (status == VNX_OK) {
        atomic_store(&reach->mem, mem);
    }
    return status;
}

void
vnxi_reach_unmap_ucx(const vnxi_region_t *region)
{
    vnxi_ucx_mem_t *mem = vnxi_region_ucx_mem(region);
    if (mem != NULL) {
        vnxi_ucx_mem_unmap(mem);
    }
}

vnx_status_t
vnxi_reach_attach_remote(vnxi_region_t *region,
                         const vnxi_map_info_t *map_info,
                         vnxi_mapping_t *mapping, vnx_error_t *error)
{
    vnxi_reach_t *reach = reach_create(region);
    if (reach == NULL) {
        vnxi_mapping_release(mapping);
        return vnxi_error_no_memory(error, "add_remote_agent", sizeof *reach);
    }
    if (map_info->fd >= 0) {
        reach->map_info = *map_info;
        reach->map_info.fd = -1; /* a descriptor of the peer's process: not
                                 ours to close */
    }
    reach->mapping = mapping;
    if (mapping != NULL) {
        region->direct = true;
        region->delta = (uintptr_t)vnxi_mapping_data(mapping) - region->addr;
    }
    return VNX_OK;
}

vnx_status_t
vnxi_reach_attach_key(vnxi_region_t *region, vnxi_ucx_key_t *key,
                      vnx_error_t *error)
{
    vnxi_reach_t *reach = reach_create(region);
    if (reach == NULL) {
        vnxi_ucx_key_release(key);
        return vnxi_error_no_memory(error, "add_remote_agent", sizeof *reach);
    }
    reach->key = key;
    return VNX_OK;
}
