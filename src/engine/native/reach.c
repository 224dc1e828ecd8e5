#include "engine/native/reach.h"

#include "base/error.h"

static void
region_init(vnxi_region_t *region)
{
    vnxi_native_region(region)->map_info = VNXI_MAP_INFO_NONE;
}

/* A peer's map_info has fd -1 here, so vnxi_map_info_fini() closes nothing for
 * it.
 */
static void
region_fini(vnxi_region_t *base)
{
    vnxi_native_region_t *region = vnxi_native_region(base);
    vnxi_mapping_release(region->mapping);
    vnxi_map_info_fini(&region->map_info);
    vnxi_ucx_mem_free(atomic_load(&region->mem));
    vnxi_ucx_key_release(region->key);
}

const vnxi_region_class_t vnxi_native_region_class = {
    .size = sizeof(vnxi_native_region_t),
    .init = region_init,
    .fini = region_fini,
};

vnxi_ucx_mem_t *
vnxi_region_ucx_mem(const vnxi_region_t *region)
{
    return atomic_load(&vnxi_native_region(region)->mem);
}

vnxi_ucx_key_t *
vnxi_region_ucx_key(const vnxi_region_t *region)
{
    return vnxi_native_region(region)->key;
}

void
vnxi_reach_attach_local(vnxi_region_t *region)
{
    if (region->mem == VNX_MEM_DRAM) {
        vnxi_native_region_t *local = vnxi_native_region(region);
        local->direct = true;
        local->map_info = vnxi_map_info_find(region->addr, region->len);
    }
}

vnx_status_t
vnxi_reach_map_ucx(vnxi_region_t *region, vnxi_ucx_t *ucx, vnx_error_t *error)
{
    vnxi_native_region_t *local = vnxi_native_region(region);
    vnxi_ucx_mem_t *mem;

    if (atomic_load(&local->mem) != NULL) {
        return VNX_OK;
    }
    vnx_status_t status =
        vnxi_ucx_mem_map(ucx, region->addr, region->len, &mem, error);
    if (status == VNX_OK) {
        atomic_store(&local->mem, mem);
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

void
vnxi_reach_attach_remote(vnxi_region_t *base, const vnxi_map_info_t *map_info,
                         vnxi_mapping_t *mapping)
{
    vnxi_native_region_t *region = vnxi_native_region(base);

    if (map_info->fd >= 0) {
        region->map_info = *map_info;
        region->map_info.fd = -1; /* a descriptor of the peer's process: not
                                  ours to close */
    }
    region->mapping = mapping;
    if (mapping != NULL) {
        region->direct = true;
        region->delta = (uintptr_t)vnxi_mapping_data(mapping) - base->addr;
    }
}

void
vnxi_reach_attach_key(vnxi_region_t *region, vnxi_ucx_key_t *key)
{
    vnxi_native_region(region)->key = key;
}
