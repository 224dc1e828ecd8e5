/*
 * Design notes.  Free slots form a stack.  Its head has a number that changes
 * with every operation, so that a thread which was interrupted between reading
 * the head and replacing it notices.  A thread may read `next` of a slot that
 * another one has just popped; it then fails to replace the head.
 */
#include "capi/handles.h"

#include <sched.h>
#include <stdlib.h>
#include <time.h>

#define WAIT_S 10
#define USES_MAX ((UINT64_C(1) << (64 - VNXI_USE_SHIFT)) - 1)
#define NOWHERE ((1u << VNXI_PLACE_BITS) - 1) /* no slot has this place */
#define HEAD_SHIFT 32

_Atomic(vnxi_slot_t *) vnxi_chunks[VNXI_CHUNKS];

static atomic_uint_fast64_t head = NOWHERE; /* number, place */
static atomic_uint used;                    /* places that were ever used */

/* -- Free slots ------------------------------------------------------------
 */

static void
push(vnxi_slot_t *slot)
{
    uint_fast64_t old = atomic_load(&head), new;

    do {
        atomic_store_explicit(&slot->next, (uint32_t)old,
                              memory_order_relaxed);
        new = ((old >> HEAD_SHIFT) + 1) << HEAD_SHIFT | slot->place;
    } while (!atomic_compare_exchange_weak(&head, &old, new));
}

static vnxi_slot_t *
pop(void)
{
    uint_fast64_t old = atomic_load(&head), new;
    vnxi_slot_t *slot;

    do {
        slot = (uint32_t)old == NOWHERE ? NULL : vnxi_slot_at((uint32_t)old);
        if (slot == NULL) {
            return NULL; /* places on the stack have slots, except NOWHERE */
        }
        new = ((old >> HEAD_SHIFT) + 1) << HEAD_SHIFT |
              atomic_load_explicit(&slot->next, memory_order_relaxed);
    } while (!atomic_compare_exchange_weak(&head, &old, new));
    return slot;
}

/* The chunk of that place, made if it is not there.  NULL: no memory. */
static vnxi_slot_t *
make_chunk(uint32_t place)
{
    _Atomic(vnxi_slot_t *) *at = &vnxi_chunks[place >> VNXI_CHUNK_BITS];
    size_t size = sizeof(vnxi_slot_t) << VNXI_CHUNK_BITS;
    vnxi_slot_t *there = atomic_load(at);
    void *chunk = NULL;

    if (there != NULL || posix_memalign(&chunk, sizeof *there, size) != 0) {
        return there;
    }
    vnxi_slot_t *slots = chunk;
    for (uint32_t i = 0; i < 1u << VNXI_CHUNK_BITS; i++) {
        slots[i] = (vnxi_slot_t){
            .word = UINT64_C(1) << VNXI_USE_SHIFT, /* no handle is NULL */
            .place = (place >> VNXI_CHUNK_BITS << VNXI_CHUNK_BITS) + i};
    }
    if (atomic_compare_exchange_strong(at, &there, slots)) {
        return slots;
    }
    free(chunk); /* another thread was faster */
    return there;
}

/* A slot that was never used. */
static vnxi_slot_t *
new_slot(void)
{
    unsigned place = atomic_load(&used);

    do {
        if (place >= NOWHERE || make_chunk(place) == NULL) {
            return NULL;
        }
    } while (!atomic_compare_exchange_weak(&used, &place, place + 1));
    return vnxi_slot_at(place);
}

/* Let nobody use the slot by its old handle. */
static void
release_slot(vnxi_slot_t *slot, uint64_t use)
{
    slot->object = NULL;
    atomic_store_explicit(&slot->word, (use + 1) << VNXI_USE_SHIFT,
                          memory_order_release);
    if (use + 1 < USES_MAX) { /* or the slot is worn out */
        push(slot);
    }
}

void *
vnxi_handle_create(vnxi_kind_t kind, void *object, const void *owner,
                   void (*destroy)(void *))
{
    vnxi_slot_t *slot = pop();

    if (slot == NULL) {
        slot = new_slot();
    }
    if (slot == NULL) {
        return NULL;
    }
    slot->object = object;
    slot->owner = owner;
    slot->destroy = destroy;
    uint64_t word = atomic_load_explicit(&slot->word, memory_order_relaxed);
    uint64_t use = word >> VNXI_USE_SHIFT;
    atomic_store_explicit(&slot->word,
                          word | (uint64_t)kind << VNXI_KIND_SHIFT,
                          memory_order_release);
    uintptr_t number = use << VNXI_USE_SHIFT | (uintptr_t)slot->place
                                                   << VNXI_PLACE_SHIFT;
    /* NOLINTNEXTLINE(performance-no-int-to-ptr): handles are numbers */
    return (void *)number;
}

/* -- Waiting ---------------------------------------------------------------
 */

static bool
is_late(const struct timespec *begun)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec - begun->tv_sec > WAIT_S;
}

vnxi_slot_t *
vnxi_slot_wait_to_take(vnxi_slot_t *slot, uint64_t idle)
{
    struct timespec begun;

    clock_gettime(CLOCK_MONOTONIC, &begun);
    for (unsigned tries = 1;; tries++) {
        if (vnxi_slot_try_take(slot, idle)) {
            return slot;
        }
        uint64_t word =
            atomic_load_explicit(&slot->word, memory_order_relaxed);
        if ((word ^ idle) >> VNXI_KIND_SHIFT != 0 ||
            (tries % 64 == 0 && is_late(&begun))) {
            return NULL;
        }
        sched_yield(); /* others have it for microseconds */
    }
}

/* -- Sharing ---------------------------------------------------------------
 */

vnxi_slot_t *
vnxi_slot_share(const void *handle, vnxi_kind_t kind)
{
    vnxi_slot_t *slot = vnxi_slot_of(handle);
    uint_fast64_t idle = vnxi_idle_word(handle, kind), word = idle;

    if (slot == NULL) {
        return NULL;
    }
    while (!atomic_compare_exchange_weak_explicit(&slot->word, &word, word + 1,
                                                  memory_order_acquire,
                                                  memory_order_relaxed)) {
        if ((word ^ idle) >> VNXI_KIND_SHIFT != 0) {
            return NULL; /* not the handle of a living object */
        }
    }
    return slot;
}

/* -- Ending ----------------------------------------------------------------
 */

void *
vnxi_handle_end(const void *handle, vnxi_kind_t kind)
{
    vnxi_slot_t *slot = vnxi_slot_of(handle);
    uint_fast64_t idle = vnxi_idle_word(handle, kind), word = idle;

    /* A word of no kind, so that only one of two threads ends the handle. */
    if (slot == NULL ||
        !atomic_compare_exchange_strong_explicit(
            &slot->word, &word, idle >> VNXI_USE_SHIFT << VNXI_USE_SHIFT,
            memory_order_acquire, memory_order_relaxed)) {
        return NULL;
    }
    void *object = slot->object;
    release_slot(slot, idle >> VNXI_USE_SHIFT);
    return object;
}

void
vnxi_slot_free(vnxi_slot_t *slot)
{
    uint64_t word = atomic_load_explicit(&slot->word, memory_order_relaxed);
    release_slot(slot, word >> VNXI_USE_SHIFT);
}

void
vnxi_slot_leave(vnxi_slot_t *slot)
{
    uint64_t old =
        atomic_fetch_sub_explicit(&slot->word, 1, memory_order_acq_rel);
    bool is_ended = (old >> VNXI_KIND_SHIFT & 31) == VNXI_KIND_NONE;

    if (is_ended && (old & VNXI_SHARERS) == 1) {
        slot->destroy(slot->object);
        release_slot(slot, old >> VNXI_USE_SHIFT);
    }
}

bool
vnxi_slot_end(vnxi_slot_t *slot, const void *handle, vnxi_kind_t kind)
{
    uint64_t idle = vnxi_idle_word(handle, kind);
    uint_fast64_t word = atomic_load(&slot->word), ended;
    bool is_mine;

    do {
        is_mine = (word ^ idle) >> VNXI_KIND_SHIFT == 0;
        ended =
            (word >> VNXI_USE_SHIFT << VNXI_USE_SHIFT) | (word & VNXI_SHARERS);
    } while (is_mine &&
             !atomic_compare_exchange_weak(&slot->word, &word, ended));
    vnxi_slot_leave(slot);
    return is_mine;
}
