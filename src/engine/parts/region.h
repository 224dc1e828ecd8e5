/*
 * Regions: memory registered here, and memory registered by peers.
 *
 * A region object is immutable except for its `state`, and reference counted:
 * tables and prepared lists hold it.  A region table is an immutable snapshot,
 * searched without a lock.  The registry is the set of the local agent's
 * registrations; it creates a new snapshot on request if the set has changed.
 */
#ifndef VNXI_PARTS_REGION_H
#define VNXI_PARTS_REGION_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/vnx.h>

/*
 * Whether transfers may use a region.  UNCONFIRMED becomes USABLE or REFUSED
 * when the owner answers.  USABLE becomes UNCONFIRMED when the answer is in
 * doubt.  The last two states are final.
 */
typedef enum vnxi_region_state {
    VNXI_REGION_USABLE,      /* local, or confirmed by its owner */
    VNXI_REGION_UNCONFIRMED, /* of a peer: its owner has not answered yet */
    VNXI_REGION_REVOKED,     /* deregistered, or no longer in the peer's
                                metadata */
    VNXI_REGION_REFUSED,     /* of a peer: its owner does not have it */
} vnxi_region_state_t;

typedef struct vnxi_region {
    atomic_uint refs;
    atomic_uint state; /* a vnxi_region_state_t */
    vnx_mem_t mem;
    unsigned uses; /* local: number of registrations; registry lock */
    uint64_t addr, len, dev;
    const struct vnxi_region_class *class; /* NULL: nothing but this */
} vnxi_region_t;

/*
 * The engine's own region objects, which begin with a vnxi_region_t: how the
 * region is reached, a handle of the library that moves its bytes.
 */
typedef struct vnxi_region_class {
    size_t size;                         /* of the object, zeroed when new */
    void (*init)(vnxi_region_t *region); /* NULL: all zeros are right */
    void (*fini)(vnxi_region_t *region); /* NULL: nothing to release */
} vnxi_region_class_t;

static inline vnxi_region_state_t
vnxi_region_state(const vnxi_region_t *region)
{
    return (vnxi_region_state_t)atomic_load_explicit(&region->state,
                                                     memory_order_acquire);
}

/* The region is gone for good; new lists do not use it. */
static inline bool
vnxi_region_is_gone(const vnxi_region_t *region)
{
    return vnxi_region_state(region) >= VNXI_REGION_REVOKED;
}

/* Mark the region as revoked: transfers on it can no longer be posted, and
 * those in flight stop at their next chunk. */
void vnxi_region_revoke(vnxi_region_t *region);

/* Record the owner's answer: an UNCONFIRMED region becomes USABLE or REFUSED.
 */
void vnxi_region_settle(vnxi_region_t *region, bool is_confirmed);

/* Make a USABLE region UNCONFIRMED again.  Transfers in flight stop, as after
 * vnxi_region_revoke(). */
void vnxi_region_doubt(vnxi_region_t *region);

/* The number of times that a region of this process ceased to be USABLE or was
 * refused.  If it has not changed, regions need not be checked again. */
uint64_t vnxi_region_revocations(void);

/* The address after the last byte.  Storage may be "all of it", 2^64 - 1 bytes
 * from any start; then the end of the address space. */
static inline uint64_t
vnxi_region_end(const vnxi_region_t *region)
{
    uint64_t end;
    return __builtin_add_overflow(region->addr, region->len, &end) ? UINT64_MAX
                                                                   : end;
}

/* Return whether the region holds all of [addr, end). */
static inline bool
vnxi_region_holds(const vnxi_region_t *region, uint64_t addr, uint64_t end,
                  uint64_t dev)
{
    return region->dev == dev && region->addr <= addr &&
           end <= vnxi_region_end(region);
}

vnxi_region_t *vnxi_region_retain(vnxi_region_t *region);
void vnxi_region_release(vnxi_region_t *region); /* NULL is allowed */

/* Create a region (one reference) of the class (static; NULL: a plain one).
 * NULL: no memory. */
vnxi_region_t *vnxi_region_create(const vnxi_region_class_t *class,
                                  vnx_mem_t mem, uint64_t addr, uint64_t len,
                                  uint64_t dev);

/* Compare two regions in the order of the wire, (mem, dev, addr, len): less
 * than, equal to or greater than 0. */
int vnxi_region_compare(const vnxi_region_t *a, const vnxi_region_t *b);

/* The values of the region for a row to register; length 0 means all of a
 * storage.  Only for comparing: not reference counted, of no class. */
vnxi_region_t vnxi_region_key(vnx_mem_t mem, const vnx_reg_desc_t *row);

/* -- Tables ----------------------------------------------------------------
 */

typedef struct vnxi_region_table vnxi_region_table_t;

/* Build a table from `count` regions in any order (each is retained).
 * Overlapping and nested regions are allowed.  NULL: no memory. */
vnxi_region_table_t *vnxi_region_table_create(vnxi_region_t *const *regions,
                                              size_t count);
vnxi_region_table_t *vnxi_region_table_retain(vnxi_region_table_t *table);
void vnxi_region_table_release(vnxi_region_table_t *table);

/* Find a region of (mem, dev) that is not gone and holds all of [addr, addr +
 * len).  Of several, the one that reaches farthest.  NULL if none does, or if
 * addr + len overflows.  A range of length 0 is held by a region that holds
 * addr or ends at it.  Borrowed from the table.  O(log n), except for
 * overlapping regions if the farthest one is gone. */
vnxi_region_t *vnxi_region_table_find(const vnxi_region_table_t *table,
                                      vnx_mem_t mem, uint64_t addr,
                                      uint64_t len, uint64_t dev);

/* The same, and *at_p: the position in the table from which
 * vnxi_region_table_next() goes on. */
vnxi_region_t *vnxi_region_table_find_at(const vnxi_region_table_t *table,
                                         vnx_mem_t mem, uint64_t addr,
                                         uint64_t len, uint64_t dev,
                                         size_t *at_p);

/* The same if that region is the one at *at + 1, which then is *at; else NULL.
 * A fast way through rows that follow the order of the regions.  addr + len
 * must not overflow. */
vnxi_region_t *vnxi_region_table_next(const vnxi_region_table_t *table,
                                      vnx_mem_t mem, uint64_t addr,
                                      uint64_t len, uint64_t dev, size_t *at);

/* Copy what a search needs for the regions of `mem` that are not gone, in the
 * order (dev, addr): their start addresses and devices and, of those of the
 * same device up to there, the one that reaches farthest and its end.  Each
 * array has room for all regions of the table.  Returns their number. */
size_t vnxi_region_table_copy(const vnxi_region_table_t *table, vnx_mem_t mem,
                              uint64_t *starts_p, uint64_t *devs_p,
                              uint64_t *ends_p, vnxi_region_t **farthest_p);

/* Return whether each of these lies within one region that is not gone.  NULL
 * is an empty table. */
bool vnxi_region_table_covers(const vnxi_region_table_t *table, vnx_mem_t mem,
                              const vnx_desc_t *descs, size_t count);

/* The region with exactly these values, in any state; NULL if none. */
vnxi_region_t *vnxi_region_table_exact(const vnxi_region_table_t *table,
                                       vnx_mem_t mem, uint64_t addr,
                                       uint64_t len, uint64_t dev);

/* All regions, in the order of vnxi_region_compare(). */
size_t vnxi_region_table_count(const vnxi_region_table_t *table);
vnxi_region_t *vnxi_region_table_at(const vnxi_region_table_t *table,
                                    size_t i);

/* -- Registry --------------------------------------------------------------
 */

typedef struct vnxi_registry vnxi_registry_t;

/*
 * Fill in the engine's part of a region; optional.  Called while the region is
 * being registered, before others see it, on the caller's thread, one call at
 * a time.  It may take long: only other registrations wait for it.
 */
typedef vnx_status_t (*vnxi_attach_t)(void *context, vnxi_region_t *region,
                                      vnx_error_t *error);

/* `class` is that of its regions; both it and `attach` may be NULL.  Returns
 * NULL if memory runs out. */
vnxi_registry_t *vnxi_registry_create(const vnxi_region_class_t *class,
                                      vnxi_attach_t attach, void *context);
void vnxi_registry_free(vnxi_registry_t *registry);

/* Check every row.  The error has the first bad one.  VNX_ERR_INVALID_PARAM:
 * not a memory type, addr + len overflows, a length of 0, or DRAM whose first
 * or last page is not mapped.  Storage of length 0 means all of it, 2^64 - 1
 * bytes.  Operation: "vnx_agent_register". */
vnx_status_t vnxi_registry_check(vnx_mem_t mem, const vnx_reg_desc_t *descs,
                                 size_t count, vnx_error_t *error);

/* Register all rows or none, checked as above.  Registering a range again adds
 * one use. */
vnx_status_t vnxi_registry_add(vnxi_registry_t *registry, vnx_mem_t mem,
                               const vnx_reg_desc_t *descs, size_t count,
                               vnx_error_t *error);

/* Deregister all rows or none.  VNX_ERR_NOT_FOUND has the first row that is
 * not registered (or is listed more often than it is registered).  A region
 * without further uses is revoked, and `gone` (may be NULL) is called for it
 * without the registry's lock; `epoch` is that of the removal.  Operation:
 * "vnx_agent_deregister". */
vnx_status_t vnxi_registry_remove(vnxi_registry_t *registry, vnx_mem_t mem,
                                  const vnx_reg_desc_t *descs, size_t count,
                                  void (*gone)(void *context,
                                               const vnxi_region_t *region,
                                               uint64_t epoch),
                                  void *context, vnx_error_t *error);

/* Make other threads that register or deregister wait, until
 * vnxi_registry_resume(): a port that is being opened must find all regions,
 * also those that the engine is attaching.  Snapshots can be taken. */
void vnxi_registry_hold(vnxi_registry_t *registry);
void vnxi_registry_resume(vnxi_registry_t *registry);

/* The current table and its epoch, which counts every change (epoch_p may be
 * NULL).  The caller gets a reference.  NULL: no memory. */
vnxi_region_table_t *vnxi_registry_snapshot(vnxi_registry_t *registry,
                                            uint64_t *epoch_p);

/* Find `count` regions with exactly the values of `keys`.  found_p[i] is a
 * reference for the caller, or NULL.  Returns the epoch of this result.  Fast
 * if the keys are in the order of vnxi_region_compare(). */
uint64_t vnxi_registry_find(vnxi_registry_t *registry,
                            const vnxi_region_t *keys, size_t count,
                            vnxi_region_t **found_p);

/* The current epoch. */
uint64_t vnxi_registry_epoch(const vnxi_registry_t *registry);
size_t vnxi_registry_count(const vnxi_registry_t *registry);

#endif
