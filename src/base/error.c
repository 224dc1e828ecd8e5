#include "base/error.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

vnx_status_t
vnxi_error_set(vnx_error_t *error, vnx_status_t status, const char *operation,
               const char *cause, ...)
{
    if (error == NULL) {
        return status;
    }
    error->status = status;
    error->operation = operation;
    error->row = -1;
    error->addr = error->len = error->dev = 0;
    error->has_desc = 0;
    error->peer[0] = '\0';

    va_list args;
    va_start(args, cause);
    vsnprintf(error->cause, sizeof error->cause, cause, args);
    va_end(args);
    return status;
}

void
vnxi_error_peer(vnx_error_t *error, const void *name, size_t len)
{
    if (error == NULL) {
        return;
    }
    const unsigned char *bytes = name;
    size_t n = len < sizeof error->peer ? len : sizeof error->peer - 1;
    for (size_t i = 0; i < n; i++) {
        error->peer[i] = vnxi_error_printable(bytes[i]);
    }
    error->peer[n] = '\0';
}

void
vnxi_error_row(vnx_error_t *error, size_t row)
{
    if (error != NULL) {
        error->row = (int64_t)row;
    }
}

void
vnxi_error_desc(vnx_error_t *error, size_t row, uint64_t addr, uint64_t len,
                uint64_t dev)
{
    if (error == NULL) {
        return;
    }
    error->row = (int64_t)row;
    error->addr = addr;
    error->len = len;
    error->dev = dev;
    error->has_desc = 1;
}

vnx_status_t
vnxi_error_no_memory(vnx_error_t *error, const char *operation, size_t size)
{
    return vnxi_error_set(error, VNX_ERR_NO_MEMORY, operation,
                          "no memory for %zu bytes", size);
}

int
vnx_error_format(const vnx_error_t *error, char *buffer, int size)
{
    char row[128] = "", peer[VNX_ERROR_PEER_MAX + 16] = "";

    if (error->has_desc) {
        snprintf(row, sizeof row,
                 ": row %" PRId64 " (address 0x%" PRIx64 ", length %" PRIu64
                 ", device %" PRIu64 ")",
                 error->row, error->addr, error->len, error->dev);
    } else if (error->row >= 0) {
        snprintf(row, sizeof row, ": row %" PRId64, error->row);
    }
    if (error->peer[0] != '\0') {
        snprintf(peer, sizeof peer, "%s peer '%s'", row[0] != '\0' ? "," : ":",
                 error->peer);
    }
    return snprintf(buffer, size < 0 ? 0 : (size_t)size, "%s: %s%s%s: %s",
                    vnx_status_name(error->status), error->operation, row,
                    peer, error->cause);
}
