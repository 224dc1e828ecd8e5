/*
 * Design notes.  Sizes above SMALL_MAX are rounded up to one of four steps
 * between powers of two, so that a block of a class serves any request of that
 * class.  The free blocks of a class form a stack with its links in the blocks
 * themselves; the most recently used block is handed out first.  When KEPT_MAX
 * is exceeded, blocks of other classes are freed in turn, so that sizes that
 * nobody requests any more do not fill the store.  The lock is never held
 * during a call into the allocator.
 */
#include "base/recycle.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/fork.h"
#include "base/mutex.h"

#define ALIGNMENT 64u
#define SMALL_BITS 14u
#define SMALL_MAX ((size_t)1 << SMALL_BITS)
#define KEPT_BITS 26u
#define KEPT_MAX ((size_t)1 << KEPT_BITS)
#define CLASSES ((KEPT_BITS - SMALL_BITS) * 4u)
/* Request huge pages from this size on: one fault instead of 512. */
#define HUGE_PAGE ((size_t)2 << 20)

/* A kept block must not be touched.  The address sanitizer, if on, reports
 * accesses. */
#ifndef __has_feature
#define __has_feature(feature) 0 /* a macro of clang */
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(addr, size) ((void)(addr), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(addr, size) ((void)(addr), (void)(size))
#endif

typedef struct kept {
    struct kept *next;
} kept_t;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static vnxi_mutex_t lock = VNXI_MUTEX_INIT(VNXI_RANK_RECYCLE);
static kept_t *stacks[CLASSES]; /* protected by lock, as all below */
static size_t kept_bytes;
static unsigned hand; /* the next class to free a block of */

/* Another thread may have been in the middle of a change when the process
 * forked.  The child leaves its parent's blocks alone and starts with none. */
static void
forget_in_child(void)
{
    vnxi_mutex_init(&lock, VNXI_RANK_RECYCLE);
    memset(stacks, 0, sizeof stacks);
    kept_bytes = 0;
}

static void
watch_forks(void)
{
    vnxi_fork_on_child(forget_in_child);
}

static size_t
class_size(unsigned class)
{
    return (size_t)(class % 4 + 5) << (SMALL_BITS - 2 + class / 4);
}

/* SMALL_MAX < size <= KEPT_MAX */
static unsigned
class_of(size_t size)
{
    unsigned log = 63u - (unsigned)__builtin_clzll(size - 1);
    return (log - SMALL_BITS) * 4 + (unsigned)((size - 1) >> (log - 2)) - 4;
}

/* The address returned by malloc() is stored just below the aligned one.  It
 * is a multiple of 16, so there is room. */
static void *
small_alloc(size_t size)
{
    char *raw = malloc(size + ALIGNMENT);
    if (raw == NULL) {
        return NULL;
    }
    char *block = raw + ALIGNMENT - (uintptr_t)raw % ALIGNMENT;
    ((void **)(void *)block)[-1] = raw;
    return block;
}

static void *
fresh_alloc(size_t size)
{
    bool huge = size >= HUGE_PAGE;
    size_t alignment = huge ? HUGE_PAGE : ALIGNMENT;
    if (size > PTRDIFF_MAX - alignment) {
        return NULL;
    }
    void *block = NULL;
    if (posix_memalign(&block, alignment, size) != 0) {
        return NULL;
    }
    if (huge) {
        madvise(block, size, MADV_HUGEPAGE); /* a hint that may be refused */
    }
    return block;
}

static kept_t *
take_lock_held(unsigned class)
{
    kept_t *block = stacks[class];
    if (block != NULL) {
        stacks[class] = block->next;
        kept_bytes -= class_size(class);
    }
    return block;
}

void *
vnxi_recycle_alloc(size_t size)
{
    if (size <= SMALL_MAX) {
        return small_alloc(size);
    }
    if (size > KEPT_MAX) {
        return fresh_alloc(size);
    }
    unsigned class = class_of(size);
    vnxi_mutex_lock(&lock);
    kept_t *block = take_lock_held(class);
    vnxi_mutex_unlock(&lock);
    if (block == NULL) {
        return fresh_alloc(class_size(class));
    }
    ASAN_UNPOISON_MEMORY_REGION(block, class_size(class));
    return block;
}

/* Remove blocks until `size` more bytes fit; returned as a chain. */
static kept_t *
make_room_lock_held(size_t size)
{
    kept_t *out = NULL;
    while (kept_bytes + size > KEPT_MAX) {
        kept_t *block = take_lock_held(hand);
        if (block == NULL) {
            hand = (hand + 1) % CLASSES;
            continue;
        }
        ASAN_UNPOISON_MEMORY_REGION(block, class_size(hand));
        block->next = out;
        out = block;
    }
    return out;
}

static void
keep(void *block, unsigned class)
{
    size_t size = class_size(class);
    kept_t *kept = block, *out;

    pthread_once(&once, watch_forks);
    ASAN_POISON_MEMORY_REGION((char *)block + sizeof *kept,
                              size - sizeof *kept);
    vnxi_mutex_lock(&lock);
    out = make_room_lock_held(size);
    kept->next = stacks[class];
    stacks[class] = kept;
    kept_bytes += size;
    vnxi_mutex_unlock(&lock);
    while (out != NULL) {
        kept_t *next = out->next;
        free(out);
        out = next;
    }
}

void
vnxi_recycle_free(void *block, size_t size)
{
    if (block == NULL) {
        return;
    }
    if (size <= SMALL_MAX) {
        free(((void **)block)[-1]);
    } else if (size > KEPT_MAX) {
        free(block);
    } else {
        keep(block, class_of(size));
    }
}

void *
vnxi_recycle_grow(void *block, size_t old_size, size_t size)
{
    if (block != NULL && size <= old_size) {
        size = old_size; /* the size to free with must not shrink */
    }
    if (block != NULL && old_size > SMALL_MAX && size <= KEPT_MAX &&
        class_of(old_size) == class_of(size)) {
        return block;
    }
    void *grown = vnxi_recycle_alloc(size);
    if (grown != NULL && block != NULL) {
        memcpy(grown, block, old_size);
        vnxi_recycle_free(block, old_size);
    }
    return grown;
}
