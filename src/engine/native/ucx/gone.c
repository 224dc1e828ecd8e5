#include "engine/native/ucx/gone.h"

#include <stdlib.h>
#include <string.h>

#include "base/mutex.h"

void
vnxi_ucx_gone_init(vnxi_ucx_gone_t *gone)
{
    memset(gone, 0, sizeof *gone);
    vnxi_mutex_init(&gone->lock, VNXI_RANK_UCX_GONE);
}

void
vnxi_ucx_gone_fini(vnxi_ucx_gone_t *gone)
{
    for (unsigned i = 0; i < VNXI_UCX_GONE_MAX; i++) {
        free(gone->known[i].bytes);
    }
    vnxi_mutex_destroy(&gone->lock);
}

static bool
has_lock_held(const vnxi_ucx_gone_t *gone, const void *address, size_t len)
{
    for (unsigned i = 0; i < VNXI_UCX_GONE_MAX; i++) {
        if (gone->known[i].bytes != NULL && gone->known[i].len == len &&
            memcmp(gone->known[i].bytes, address, len) == 0) {
            return true;
        }
    }
    return false;
}

bool
vnxi_ucx_gone_has(vnxi_ucx_gone_t *gone, const void *address, size_t len)
{
    vnxi_mutex_lock(&gone->lock);
    bool has = has_lock_held(gone, address, len);
    vnxi_mutex_unlock(&gone->lock);
    return has;
}

void
vnxi_ucx_gone_add(vnxi_ucx_gone_t *gone, const void *address, size_t len)
{
    unsigned char *copy =
        len <= VNXI_UCX_GONE_ADDRESS_MAX ? malloc(len + 1) : NULL;

    if (copy == NULL) {
        return;
    }
    memcpy(copy, address, len);
    vnxi_mutex_lock(&gone->lock);
    if (!has_lock_held(gone, address, len)) {
        unsigned at = gone->next;
        unsigned char *oldest = gone->known[at].bytes;
        gone->known[at].bytes = copy;
        gone->known[at].len = len;
        gone->next = (at + 1) % VNXI_UCX_GONE_MAX;
        copy = oldest;
    }
    vnxi_mutex_unlock(&gone->lock);
    free(copy);
}
