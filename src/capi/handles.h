/*
 * The handles of NIXL's C interface.
 *
 * A handle is a number in the form of a pointer: the place of a slot in a
 * table, and the number of the slot's use.  So a handle is checked without
 * reading what it may point to: a wild pointer, a destroyed handle and one of
 * another kind do not match what the slot says.  Slots are used again, numbers
 * are not.
 *
 * Objects that hold values belong to one thread at a time, as those of NIXL:
 * vnxi_object() only checks the handle.  What several threads may use at once
 * is kept alive meanwhile.  A request is *taken* by one thread; others wait
 * for it.  Agents and prepared lists, which do their own locking, are
 * *shared*: their handle ends at once, and the last user destroys the object.
 *
 * Checking costs no atomic read-modify-write operation, taking and giving back
 * one, sharing two.
 */
#ifndef VNXI_CAPI_HANDLES_H
#define VNXI_CAPI_HANDLES_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef enum vnxi_kind {
    VNXI_KIND_NONE,     /* the slot is free, or its handle was destroyed */
    VNXI_KIND_AGENT,    /* shared */
    VNXI_KIND_PREPARED, /* shared */
    VNXI_KIND_REQUEST,  /* taken */
    VNXI_KIND_BACKEND,  /* this one and the others: values */
    VNXI_KIND_STRINGS,
    VNXI_KIND_MEMS,
    VNXI_KIND_PARAMS,
    VNXI_KIND_ITERATOR,
    VNXI_KIND_OPTIONS,
    VNXI_KIND_XFER_ROWS,
    VNXI_KIND_REG_ROWS,
    VNXI_KIND_REMOTE_ROWS,
    VNXI_KIND_ANSWERS,
    VNXI_KIND_NOTIFS,
} vnxi_kind_t;

/*
 * A handle:  use (36 bits)  place (24)  0 (4)
 * A word:    use (36 bits)  kind (5)    taken (1)  users that share (22)
 *
 * That of a request, which is not shared, has a mark in the lowest bit.
 */
#define VNXI_USE_SHIFT 28
#define VNXI_PLACE_SHIFT 4
#define VNXI_PLACE_BITS 24
#define VNXI_KIND_SHIFT 23
#define VNXI_TAKEN (UINT64_C(1) << 22)
#define VNXI_SHARERS (VNXI_TAKEN - 1)
#define VNXI_MARK UINT64_C(1)

#define VNXI_CHUNK_BITS 10
#define VNXI_CHUNKS (1u << (VNXI_PLACE_BITS - VNXI_CHUNK_BITS))

typedef struct vnxi_slot {
    _Alignas(64) atomic_uint_fast64_t word;
    void *object;
    const void *owner; /* backends, prepared lists, requests: the handle of
                          the agent */
    void (*destroy)(void *object); /* of a shared object, by its last user */
    atomic_uint next;              /* free slots: the place after this one */
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

/* Is this the handle of a living object? */
static inline bool
vnxi_handle_is(const void *handle, vnxi_kind_t kind)
{
    const vnxi_slot_t *slot = vnxi_slot_of(handle);
    return slot != NULL &&
           (atomic_load_explicit(&slot->word, memory_order_acquire) ^
            vnxi_idle_word(handle, kind)) >>
                   VNXI_KIND_SHIFT ==
               0;
}

/* -- Values --------------------------------------------------------------- */

/* The object of a handle.  NULL: no such object. */
static inline void *
vnxi_object(const void *handle, vnxi_kind_t kind)
{
    return vnxi_handle_is(handle, kind) ? vnxi_slot_of(handle)->object : NULL;
}

/* End a handle.  The caller frees the object.  NULL: no such object. */
void *vnxi_handle_end(const void *handle, vnxi_kind_t kind);

/* -- Requests ------------------------------------------------------------- */

/* Take a slot that nobody has taken, marked or not.  False: try again, unless
 * the slot says something else than `idle` (vnxi_idle_word()). */
static inline bool
vnxi_slot_try_take(vnxi_slot_t *slot, uint64_t idle)
{
    uint_fast64_t word =
        atomic_load_explicit(&slot->word, memory_order_relaxed);

    return (word & ~VNXI_MARK) == idle &&
           atomic_compare_exchange_strong_explicit(
               &slot->word, &word, word | VNXI_TAKEN, memory_order_acquire,
               memory_order_relaxed);
}

vnxi_slot_t *vnxi_slot_wait_to_take(vnxi_slot_t *slot, uint64_t idle);

/* Take a request; vnxi_slot_give() gives it back.  Waits for a thread that has
 * taken it, at most ten seconds: only one that a fork has left behind has it
 * for longer.  NULL: no such request. */
static inline vnxi_slot_t *
vnxi_slot_take(const void *handle)
{
    vnxi_slot_t *slot = vnxi_slot_of(handle);
    uint64_t idle = vnxi_idle_word(handle, VNXI_KIND_REQUEST);

    return slot == NULL || vnxi_slot_try_take(slot, idle)
               ? slot
               : vnxi_slot_wait_to_take(slot, idle);
}

static inline void
vnxi_slot_give(vnxi_slot_t *slot)
{
    /* Nobody else changes the word of a slot that is taken. */
    uint64_t word = atomic_load_explicit(&slot->word, memory_order_relaxed);
    atomic_store_explicit(&slot->word, word & ~VNXI_TAKEN,
                          memory_order_release);
}

/* Mark a request that the caller has taken, or remove the mark. */
static inline void
vnxi_slot_mark(vnxi_slot_t *slot, bool marked)
{
    uint64_t word = atomic_load_explicit(&slot->word, memory_order_relaxed);
    atomic_store_explicit(&slot->word,
                          marked ? word | VNXI_MARK : word & ~VNXI_MARK,
                          memory_order_relaxed);
}

/* Is this the handle of a request that is marked and that nobody has taken? */
static inline bool
vnxi_handle_is_marked(const void *handle)
{
    const vnxi_slot_t *slot = vnxi_slot_of(handle);
    return slot != NULL &&
           atomic_load_explicit(&slot->word, memory_order_acquire) ==
               (vnxi_idle_word(handle, VNXI_KIND_REQUEST) | VNXI_MARK);
}

/* End the handle of a request that the caller has taken. */
void vnxi_slot_free(vnxi_slot_t *slot);

/* -- Agents and prepared lists -------------------------------------------- */

/* Share an object; vnxi_slot_leave() gives it back.  NULL: no such object. */
vnxi_slot_t *vnxi_slot_share(const void *handle, vnxi_kind_t kind);
void vnxi_slot_leave(vnxi_slot_t *slot);

/* End the handle of an object that the caller shares, and leave.  False: it
 * was ended already (by another thread); the caller has left too. */
bool vnxi_slot_end(vnxi_slot_t *slot, const void *handle, vnxi_kind_t kind);

#endif
