#include "base/params.h"

#include <string.h>

#include "base/error.h"

vnx_status_t
vnxi_params_read(const char *operation, const char *name, const void *given,
                 size_t given_size, void *out_p, size_t size,
                 vnx_error_t *error)
{
    if (given_size < sizeof given_size || given_size > size) {
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation,
                              "%s.size is %zu, this library knows up to %zu",
                              name, given_size, size);
    }
    memset(out_p, 0, size);
    memcpy(out_p, given, given_size);
    return VNX_OK;
}
