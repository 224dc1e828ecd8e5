/*
 * Design notes.  The context is kept until the workers have ended, also when
 * no GPU memory is mapped any more: UCX has streams and events there, which it
 * destroys with the worker.  The next region that is mapped chooses it again,
 * because the program may have destroyed a context of its own meanwhile.
 */
#include "engine/native/ucx/gpu.h"

#include <stdlib.h>
#include <string.h>

#include "base/log.h"

/* -- The context of the workers --------------------------------------------
 */

/* The workers must be out of the old context before it is dropped. */
static vnx_status_t
change_lock_held(vnxi_ucx_t *ucx, const vnxi_cuda_context_t *wanted,
                 vnx_error_t *error)
{
    vnxi_cuda_context_t old = ucx->gpu.context, taken;

    vnx_status_t status = vnxi_cuda_context_take(
        wanted->library, wanted->handle, wanted->ordinal, &taken, error);
    if (status != VNX_OK) {
        return status;
    }
    for (unsigned i = 0; i < ucx->worker_count; i++) {
        vnx_status_t entered = vnxi_ucx_worker_use_gpu(
            &ucx->workers[i], &taken, status == VNX_OK ? error : NULL);
        status = status == VNX_OK ? entered : status;
    }
    ucx->gpu.context = taken;
    vnxi_cuda_context_drop(&old);
    return status;
}

static void
forget_lock_held(vnxi_ucx_t *ucx)
{
    for (unsigned i = 0; i < ucx->worker_count; i++) {
        vnxi_ucx_worker_forget_gpu(&ucx->workers[i]);
    }
}

vnx_status_t
vnxi_ucx_gpu_begin(vnxi_ucx_t *ucx, const vnxi_cuda_context_t *context,
                   vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;

    vnxi_mutex_lock(&ucx->gpu.lock);
    if (ucx->gpu.regions == 0) {
        status = change_lock_held(ucx, context, error);
    }
    if (status == VNX_OK) {
        ucx->gpu.regions++;
    } else {
        forget_lock_held(ucx);
    }
    vnxi_mutex_unlock(&ucx->gpu.lock);
    return status;
}

void
vnxi_ucx_gpu_end(vnxi_ucx_t *ucx)
{
    vnxi_mutex_lock(&ucx->gpu.lock);
    if (--ucx->gpu.regions == 0) {
        forget_lock_held(ucx);
    }
    vnxi_mutex_unlock(&ucx->gpu.lock);
}

void
vnxi_ucx_gpu_stop(vnxi_ucx_t *ucx)
{
    vnxi_mutex_lock(&ucx->gpu.lock);
    forget_lock_held(ucx);
    if (!vnxi_ucx_is_parked(ucx)) { /* else its threads are still there */
        vnxi_cuda_context_drop(&ucx->gpu.context);
    }
    vnxi_mutex_unlock(&ucx->gpu.lock);
}

/* -- UCX_TLS ---------------------------------------------------------------
 */

static bool
has_word(const char *list, const char *word)
{
    size_t len = strlen(word);

    for (;;) {
        size_t next = strcspn(list, ",");
        if (next == len && memcmp(list, word, len) == 0) {
            return true;
        }
        if (list[next] == '\0') {
            return false;
        }
        list += next + 1;
    }
}

bool
vnxi_ucx_tls_has_cuda(const char *tls)
{
    if (tls == NULL || tls[0] == '\0') {
        return true;
    }
    if (tls[0] == '^') {
        return !has_word(tls + 1, "all") && !has_word(tls + 1, "cuda") &&
               !(has_word(tls + 1, "cuda_copy") &&
                 has_word(tls + 1, "cuda_ipc"));
    }
    return has_word(tls, "all") || has_word(tls, "cuda") ||
           has_word(tls, "cuda_copy") || has_word(tls, "cuda_ipc");
}

void
vnxi_ucx_gpu_warn(const char *agent)
{
    static atomic_bool has_warned;
    const char *tls = getenv("UCX_TLS");

    if (!vnxi_ucx_tls_has_cuda(tls) && !atomic_exchange(&has_warned, true)) {
        vnxi_log(VNX_LOG_WARNING, agent,
                 "UCX_TLS=%s leaves out CUDA: GPU memory is not moved by UCX; "
                 "add cuda to it",
                 tls);
    }
}
