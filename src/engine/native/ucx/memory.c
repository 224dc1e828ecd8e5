#include "engine/native/ucx/memory.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "engine/native/ucx/exit_park.h"
#include "engine/native/ucx/worker.h"

#define OPERATION "register_memory"

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
    if (handle != NULL && !vnxi_ucx_parked(mem->ucx)) {
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
