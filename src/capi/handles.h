/*
 * The handles of NIXL's C interface.
 *
 * A handle is a number in the form of a pointer: the place of a slot in a
 * table, and the number of the slot's use.  So a handle is checked without
 * reading what it may point to: a wild pointer, a destroyed handle and one of
 * another kind do not match what the slot says.  Slots are used again, numbers
 * are not.
 *
 * An object is either *taken* by one thread (requests, and objects that hold
 * values) or *shared* by many (agents and prepared lists, which do their own
 * locking, and lists of rows while a call reads them).  Either keeps it alive.
 * To destroy an object that is taken, a thread takes it.  The handle of one
 * that is shared ends at once, and its last user destroys the object.  A
 * thread waits for another one at most ten seconds: only a thread that a fork
 * has left behind uses an object longer.
 *
 * Taking and giving back cost one atomic operation, sharing two.
 */
#ifndef VNXI_CAPI_HANDLES_H
#define VNXI_CAPI_HANDLES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum vnxi_kind {
    VNXI_KIND_NONE, /* the slot is free, or its handle was destroyed */
    /* Shared: */
    VNXI_KIND_AGENT,
    VNXI_KIND_PREPARED,
    /* Taken: */
    VNXI_KIND_BACKEND,
    VNXI_KIND_STRINGS,
    VNXI_KIND_MEMS,
    VNXI_KIND_PARAMS,
    VNXI_KIND_ITERATOR,
    VNXI_KIND_OPTIONS,
    VNXI_KIND_XFER_ROWS,
    VNXI_KIND_REG_ROWS,
    VNXI_KIND_REMOTE_ROWS,
    VNXI_KIND_ANSWERS,
    VNXI_KIND_REQUEST,
    VNXI_KIND_NOTIFS,
} vnxi_kind_t;

/*
 * A handle:  use (36 bits)  place (24)  0 (4)
 * A word:    use (36 bits)  kind (5)    taken (1)  users that share (22)
 */
#define VNXI_USE_SHIFT 28
#define VNXI_PLACE_SHIFT 4
#define VNXI_PLACE_BITS 24
#define VNXI_KIND_SHIFT 23
#define VNXI_TAKEN (UINT64_C(1) << 22)
#define VNXI_SHARERS (VNXI_TAKEN - 1)

#define VNXI_CHUNK_BITS 10
#define VNXI_CHUNKS (1u << (VNXI_PLACE_BITS - VNXI_CHUNK_BITS))

typedef struct vnxi_slot {
    _Alignas(64) atomic_uint_fast64_t word;
    void *object;
    const void *owner; /* backends, prepared lists, requests: the handle of
                          the agent */
    void (*destroy)(void *object); /* of a shared object, by its last user */
    atomic_uint_fast32_t next;     /* free slots: the place after this one */
    uint32_t place;
} vnxi_slot_t;

/* Chunks of slots, each made when it is needed and never freed. */
extern _Atomic(vnxi_slot_t *) vnxi_chunks[VNXI_CHUNKS];

/* The slot at that place; NULL: there is none yet. */
static inline vnxi_slot_t *
vnxi_slot_at(uint32_t place)
{
    vnxi_slot_t *chunk = atomic_load_explicit(
        &vnxi_chunks[place >> VNXI_CHUNK_BITS], memory_order_acquire);
    return chunk != NULL ? &chunk[place & ((1u << VNXI_CHUNK_BITS) - 1)]
                         : NULL;
}

/* The slot of a handle, which must be compared with vnxi_idle_word().  NULL:
 * not a handle. */
static inline vnxi_slot_t *
vnxi_slot_of(const void *handle)
{
    uintptr_t number = (uintptr_t)handle;
    bool is_aligned = (number & ((1u << VNXI_PLACE_SHIFT) - 1)) == 0;

    return is_aligned ? vnxi_slot_at((uint32_t)(number >> VNXI_PLACE_SHIFT) &
                                     ((1u << VNXI_PLACE_BITS) - 1))
                      : NULL;
}

/* What the slot of a handle says while nobody uses the object. */
static inline uint64_t
vnxi_idle_word(const void *handle, vnxi_kind_t kind)
{
    uint64_t use = (uintptr_t)handle >> VNXI_USE_SHIFT;
    return use << VNXI_USE_SHIFT | (uint64_t)kind << VNXI_KIND_SHIFT;
}

/* Give an object a handle.  `owner` and `destroy`: as in the slot, or NULL.
 * NULL: no memory, or too many handles; the object is still the caller's. */
void *vnxi_handle_create(vnxi_kind_t kind, void *object, const void *owner,
                         void (*destroy)(void *object));

/* Is this the handle of a living object?  It may die at any time. */
static inline bool
vnxi_handle_is(const void *handle, vnxi_kind_t kind)
{
    const vnxi_slot_t *slot = vnxi_slot_of(handle);
    return slot != NULL &&
           (atomic_load_explicit(&slot->word, memory_order_relaxed) ^
            vnxi_idle_word(handle, kind)) >>
                   VNXI_KIND_SHIFT ==
               0;
}

/* -- Taken objects -------------------------------------------------------- */

vnxi_slot_t *vnxi_slot_wait_to_take(vnxi_slot_t *slot, uint64_t idle);

/* Take an object; vnxi_slot_give() gives it back.  NULL: no such object. */
static inline vnxi_slot_t *
vnxi_slot_take(const void *handle, vnxi_kind_t kind)
{
    vnxi_slot_t *slot = vnxi_slot_of(handle);
    uint_fast64_t idle = vnxi_idle_word(handle, kind), word = idle;

    if (slot == NULL || atomic_compare_exchange_strong_explicit(
                            &slot->word, &word, idle | VNXI_TAKEN,
                            memory_order_acquire, memory_order_relaxed)) {
        return slot;
    }
    return vnxi_slot_wait_to_take(slot, idle);
}

static inline void
vnxi_slot_give(vnxi_slot_t *slot)
{
    /* Nobody else changes the word of a slot that is taken. */
    uint64_t word = atomic_load_explicit(&slot->word, memory_order_relaxed);
    atomic_store_explicit(&slot->word, word & ~VNXI_TAKEN,
                          memory_order_release);
}

/* End the handle of an object that the caller has taken, and now owns. */
void vnxi_slot_free(vnxi_slot_t *slot);

/* -- Shared objects ------------------------------------------------------- */

vnxi_slot_t *vnxi_slot_wait_to_share(vnxi_slot_t *slot, uint64_t idle);

/* Share an object; vnxi_slot_leave() gives it back.  NULL: no such object. */
static inline vnxi_slot_t *
vnxi_slot_share(const void *handle, vnxi_kind_t kind)
{
    vnxi_slot_t *slot = vnxi_slot_of(handle);
    uint_fast64_t idle = vnxi_idle_word(handle, kind), word = idle;

    if (slot == NULL || atomic_compare_exchange_strong_explicit(
                            &slot->word, &word, idle + 1, memory_order_acquire,
                            memory_order_relaxed)) {
        return slot;
    }
    return vnxi_slot_wait_to_share(slot, idle);
}

void vnxi_slot_leave(vnxi_slot_t *slot);

/* End the handle of an object that the caller shares, and leave.  False: it
 * was ended already (by another thread); the caller has left too. */
bool vnxi_slot_end(vnxi_slot_t *slot, const void *handle, vnxi_kind_t kind);

#endif
