#include "engine/native/shm/revocations.h"

#include <stdlib.h>

#include "base/mutex.h"
#include "engine/native/shm/link_frame.h"

void
vnxi_revocations_init(vnxi_revocations_t *log)
{
    *log = (vnxi_revocations_t){0};
    vnxi_mutex_init(&log->lock, VNXI_RANK_REVOCATIONS);
}

void
vnxi_revocations_fini(vnxi_revocations_t *log)
{
    free(log->ring);
    vnxi_mutex_destroy(&log->lock);
}

static void
forget_lock_held(vnxi_revocations_t *log, uint64_t epoch)
{
    log->forgotten = epoch > log->forgotten ? epoch : log->forgotten;
}

static void
add_lock_held(vnxi_revocations_t *log, const vnxi_revocation_t *revocation)
{
    if (log->ring == NULL) {
        log->ring = calloc(VNXI_REVOCATIONS_MAX, sizeof *log->ring);
    }
    if (log->ring == NULL) {
        forget_lock_held(log, revocation->epoch);
        return;
    }
    vnxi_revocation_t *place = &log->ring[log->count++ % VNXI_REVOCATIONS_MAX];
    forget_lock_held(log, place->epoch);
    *place = *revocation;
}

void
vnxi_revocations_add(vnxi_revocations_t *log, uint64_t epoch, vnx_mem_t mem,
                     const vnx_desc_t *descs, size_t count)
{
    vnxi_mutex_lock(&log->lock);
    for (size_t i = 0; i < count; i++) {
        vnxi_revocation_t revocation = {epoch, mem, descs[i]};
        add_lock_held(log, &revocation);
    }
    vnxi_mutex_unlock(&log->lock);
}

static void
write_since_lock_held(const vnxi_revocations_t *log, uint64_t epoch,
                      vnxi_writer_t *frames)
{
    uint64_t kept =
        log->count < VNXI_REVOCATIONS_MAX ? log->count : VNXI_REVOCATIONS_MAX;
    if (log->forgotten > epoch) {
        vnxi_link_frame_revoke_t all = {.epoch = log->forgotten};
        vnxi_link_frame_write_revoke(frames, &all);
    }
    for (uint64_t i = log->count - kept; i < log->count; i++) {
        const vnxi_revocation_t *one = &log->ring[i % VNXI_REVOCATIONS_MAX];
        if (one->epoch > epoch) {
            vnxi_link_frame_revoke_t revoke = {.epoch = one->epoch,
                                               .mem = one->mem,
                                               .descs = &one->desc,
                                               .count = 1};
            vnxi_link_frame_write_revoke(frames, &revoke);
        }
    }
}

void
vnxi_revocations_write_since(vnxi_revocations_t *log, uint64_t epoch,
                             vnxi_writer_t *frames)
{
    vnxi_mutex_lock(&log->lock);
    write_since_lock_held(log, epoch, frames);
    vnxi_mutex_unlock(&log->lock);
}
