/*
 * Regions: what is registered here, and what peers have registered there.
 *
 * A region object is immutable but for its `state` and is reference
 * counted: tables and prepared lists hold it.  A region table is an immutable
 * snapshot, searched without a lock.  The registry is the local agent's set of
 * registrations; it makes a new snapshot when one is asked for after a change.
 */
#ifndef VNXI_PARTS_REGION_H
#define VNXI_PARTS_REGION_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/vnx.h>

/*
 * What an engine keeps with a region: how it is reached, a handle of the
 * library that moves it.  The engine's own object begins with this; it is
 * freed with the region.
 */
typedef struct vnxi_attachment {
    void (*free)(struct vnxi_attachment *attachment);
} vnxi_attachment_t;

/*
 * May transfers use it?  UNCONFIRMED becomes USABLE or REFUSED when the owner
 * answers, and USABLE becomes UNCONFIRMED when the answer is in doubt; the
 * last two are final.
 */
typedef enum vnxi_region_state {
    VNXI_REGION_USABLE,      /* ours, or what its owner has confirmed */
    VNXI_REGION_UNCONFIRMED, /* a peer's: the owner has not answered yet */
    VNXI_REGION_REVOKED, /* deregistered, or gone from the peer's metadata */
    VNXI_REGION_REFUSED, /* a peer's: the owner does not have it */
} vnxi_region_state_t;

typedef struct vnxi_region {
    atomic_uint refs;
    atomic_uint state; /* a vnxi_region_state_t */
    vnx_mem_t mem;
    uint64_t addr, len, dev;
    /* How this process reaches it. Local regions and those of peers in this
     * process: direct, delta 0.  A peer's shared mapping that is mapped here:
     * direct, our address = addr + delta.  Else by process_vm_readv. */
    bool direct;
    uint64_t delta;                /* modulo 2^64 */
    vnxi_attachment_t *attachment; /* owned; NULL: none.  Its maker sets it
                                      before others see the region */
    uint64_t epoch;  /* a peer's: of the metadata it came by, which may lie;
                        the maker sets it before others see it */
    uint64_t proved; /* a peer's: of the owner's answer; while UNCONFIRMED,
                        what the answer must reach */
    unsigned uses;   /* local: how often registered; registry lock */
} vnxi_region_t;

static inline vnxi_region_state_t
vnxi_region_state(const vnxi_region_t *region)
{
    return (vnxi_region_state_t)atomic_load_explicit(&region->state,
                                                     memory_order_acquire);
}

/* For ever: lists are prepared without it. */
static inline bool
vnxi_region_is_gone(const vnxi_region_t *region)
{
    return vnxi_region_state(region) >= VNXI_REGION_REVOKED;
}

/* Mark it as revoked: no transfer is posted on it any more, and those in
 * flight stop at their next chunk. */
void vnxi_region_revoke(vnxi_region_t *region);

/* Its owner has answered: an UNCONFIRMED region becomes USABLE or REFUSED. */
void vnxi_region_settle(vnxi_region_t *region, bool is_confirmed);

/* A USABLE region becomes UNCONFIRMED again; transfers in flight stop as when
 * it is revoked. */
void vnxi_region_doubt(vnxi_region_t *region);

/* Counts how often a region of this process ceased to be USABLE: a caller
 * that finds the same number as before need not look at its regions again. */
uint64_t vnxi_region_revocations(void);

/* Past the last byte.  Storage may be "all of it", 2^64 - 1 bytes from any
 * start: then the end of the address space. */
static inline uint64_t
vnxi_region_end(const vnxi_region_t *region)
{
    uint64_t end;
    return __builtin_add_overflow(region->addr, region->len, &end) ? UINT64_MAX
                                                                   : end;
}

/* Does it hold all of [addr, end)? */
static inline bool
vnxi_region_holds(const vnxi_region_t *region, uint64_t addr, uint64_t end,
                  uint64_t dev)
{
    return region->dev == dev && region->addr <= addr &&
           end <= vnxi_region_end(region);
}

vnxi_region_t *vnxi_region_retain(vnxi_region_t *region);
void vnxi_region_release(vnxi_region_t *region); /* NULL is allowed */

/* Make a region (one reference, nothing attached).  NULL: no memory. */
vnxi_region_t *vnxi_region_create(vnx_mem_t mem, uint64_t addr, uint64_t len,
                                  uint64_t dev);

/* Less than, equal to or greater than 0: the order of the wire, which is by
 * (mem, dev, addr, len). */
int vnxi_region_compare(const vnxi_region_t *a, const vnxi_region_t *b);

/* The values of the region that a row to register stands for: storage of
 * length 0 is all of it.  For comparing; not counted, nothing attached. */
vnxi_region_t vnxi_region_key(vnx_mem_t mem, const vnx_reg_desc_t *row);

/* -- Tables ----------------------------------------------------------------
 */

typedef struct vnxi_region_table vnxi_region_table_t;

/* Build from `count` regions in any order (each is retained).  Overlapping and
 * nested regions are allowed.  NULL: no memory. */
vnxi_region_table_t *vnxi_region_table_create(vnxi_region_t *const *regions,
                                              size_t count);
vnxi_region_table_t *vnxi_region_table_retain(vnxi_region_table_t *table);
void vnxi_region_table_release(vnxi_region_table_t *table);

/* The region of (mem, dev) that holds all of [addr, addr + len), not gone;
 * NULL for none, and where addr + len overflows.  Of several the one that
 * reaches farthest.  O(log n), but for overlapping regions of which the
 * farthest is gone; borrowed from the table.  len 0 is held by a region
 * that holds or ends at addr. */
vnxi_region_t *vnxi_region_table_find(const vnxi_region_table_t *table,
                                      vnx_mem_t mem, uint64_t addr,
                                      uint64_t len, uint64_t dev);

/* Each of these lies within one region that is not gone; of NULL: none. */
bool vnxi_region_table_covers(const vnxi_region_table_t *table, vnx_mem_t mem,
                              const vnx_desc_t *descs, size_t count);

/* The region with exactly these values, in any state; NULL for none. */
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
 * Attach to a region what the engine needs for it (region->attachment), or
 * nothing.  Called for a region that is being registered, before others see
 * it, on the caller's thread, one at a time; it may take its time, since only
 * other registrations wait meanwhile.
 */
typedef vnx_status_t (*vnxi_attach_t)(void *context, vnxi_region_t *region,
                                      vnx_error_t *error);

/* `attach` may be NULL.  NULL: no memory. */
vnxi_registry_t *vnxi_registry_create(vnxi_attach_t attach, void *context);
void vnxi_registry_free(vnxi_registry_t *registry);

/* Checks every row (VNX_ERR_INVALID_PARAM: no memory type, addr + len
 * overflows, a length of 0, DRAM whose first or last page is not mapped;
 * storage of length 0 is all of it, 2^64 - 1 bytes) and names the first bad
 * one.  Operation: "register_memory". */
vnx_status_t vnxi_registry_check(vnx_mem_t mem, const vnx_reg_desc_t *descs,
                                 size_t count, vnx_error_t *error);

/* All or none, checked as above.  A range registered again counts one use
 * more. */
vnx_status_t vnxi_registry_add(vnxi_registry_t *registry, vnx_mem_t mem,
                               const vnx_reg_desc_t *descs, size_t count,
                               vnx_error_t *error);

/* All or none; VNX_ERR_NOT_FOUND names the first row that is not registered
 * (also one that is listed more often than it is registered). A region whose
 * last use goes is revoked; `gone` (may be NULL) is called for each, without
 * the registry's lock.  Operation: "deregister_memory". */
vnx_status_t vnxi_registry_remove(vnxi_registry_t *registry, vnx_mem_t mem,
                                  const vnx_reg_desc_t *descs, size_t count,
                                  void (*gone)(void *context,
                                               const vnxi_region_t *region),
                                  void *context, vnx_error_t *error);

/* The present state, and the epoch that goes with it (epoch_p may be NULL): it
 * counts every change.  The caller's reference.  NULL: no memory. */
vnxi_region_table_t *vnxi_registry_snapshot(vnxi_registry_t *registry,
                                            uint64_t *epoch_p);

/* Look for `count` regions with exactly the values of `keys`: found_p[i] is a
 * reference of the caller's, or NULL.  Returns the epoch at which this was so.
 * Fast where the keys come in the order of vnxi_region_compare(). */
uint64_t vnxi_registry_find(vnxi_registry_t *registry,
                            const vnxi_region_t *keys, size_t count,
                            vnxi_region_t **found_p);

/* The epoch now. */
uint64_t vnxi_registry_epoch(const vnxi_registry_t *registry);
size_t vnxi_registry_count(const vnxi_registry_t *registry);

#endif
