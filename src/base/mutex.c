#include "base/mutex.h"

void
vnxi_cond_init(vnxi_cond_t *cond)
{
    pthread_condattr_t attr;

    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(cond, &attr);
    pthread_condattr_destroy(&attr);
}

#ifdef VNXI_LOCK_RANKS

#include <stdio.h>
#include <stdlib.h>

#define HELD_MAX 16u

typedef struct record {
    const void *lock;
    vnxi_rank_t rank;
} record_t;

static _Thread_local record_t held[HELD_MAX];
static _Thread_local unsigned held_count;

static const char *
name_of(vnxi_rank_t rank)
{
    static const char *const names[] = {
#define VNXI_LOCK_NAME(rank, name) name,
        VNXI_LOCK_TABLE(VNXI_LOCK_NAME)
#undef VNXI_LOCK_NAME
    };
    return names[rank];
}

static _Noreturn void
refuse(vnxi_rank_t rank, const char *what, const char *other)
{
    fprintf(stderr, "vllm_nixl: lock order: %s %s%s\n", name_of(rank), what,
            other);
    abort();
}

/* Check that the thread may take this lock, given the locks it holds. */
static void
check_order(const void *lock, vnxi_rank_t rank)
{
    for (unsigned i = 0; i < held_count; i++) {
        if (held[i].lock == lock) {
            refuse(rank, "is taken twice by one thread", "");
        }
        if (held[i].rank >= rank) {
            refuse(rank, "is taken while the thread holds ",
                   name_of(held[i].rank));
        }
    }
}

static void
note_taken(const void *lock, vnxi_rank_t rank)
{
    if (held_count == HELD_MAX) {
        refuse(rank, "exceeds the number of locks that one thread may hold",
               "");
    }
    held[held_count++] = (record_t){lock, rank};
}

static void
note_given_back(const void *lock, vnxi_rank_t rank)
{
    for (unsigned i = held_count; i > 0; i--) {
        if (held[i - 1].lock == lock) {
            held_count--;
            for (; i <= held_count; i++) {
                held[i - 1] = held[i];
            }
            return;
        }
    }
    refuse(rank, "is given back by a thread that does not hold it", "");
}

void
vnxi_mutex_init(vnxi_mutex_t *mutex, vnxi_rank_t rank)
{
    pthread_mutex_init(&mutex->os, NULL);
    mutex->rank = rank;
}

void
vnxi_mutex_destroy(vnxi_mutex_t *mutex)
{
    pthread_mutex_destroy(&mutex->os);
}

void
vnxi_mutex_lock(vnxi_mutex_t *mutex)
{
    check_order(mutex, mutex->rank);
    pthread_mutex_lock(&mutex->os);
    note_taken(mutex, mutex->rank);
}

int
vnxi_mutex_trylock(vnxi_mutex_t *mutex)
{
    int ret = pthread_mutex_trylock(&mutex->os);

    if (ret == 0) {
        note_taken(mutex, mutex->rank);
    }
    return ret;
}

void
vnxi_mutex_unlock(vnxi_mutex_t *mutex)
{
    note_given_back(mutex, mutex->rank);
    pthread_mutex_unlock(&mutex->os);
}

/* Waking up takes the lock again, so the order is checked as for a lock. */
static void
check_wait(const vnxi_mutex_t *mutex)
{
    note_given_back(mutex, mutex->rank);
    check_order(mutex, mutex->rank);
    note_taken(mutex, mutex->rank);
}

int
vnxi_cond_wait(vnxi_cond_t *cond, vnxi_mutex_t *mutex)
{
    check_wait(mutex);
    return pthread_cond_wait(cond, &mutex->os);
}

int
vnxi_cond_timedwait(vnxi_cond_t *cond, vnxi_mutex_t *mutex,
                    const struct timespec *until)
{
    check_wait(mutex);
    return pthread_cond_timedwait(cond, &mutex->os, until);
}

void
vnxi_rwlock_init(vnxi_rwlock_t *lock, vnxi_rank_t rank)
{
    vnxi_rwlock_init_os(&lock->os);
    lock->rank = rank;
}

void
vnxi_rwlock_destroy(vnxi_rwlock_t *lock)
{
    pthread_rwlock_destroy(&lock->os);
}

void
vnxi_rwlock_read(vnxi_rwlock_t *lock)
{
    check_order(lock, lock->rank);
    pthread_rwlock_rdlock(&lock->os);
    note_taken(lock, lock->rank);
}

void
vnxi_rwlock_write(vnxi_rwlock_t *lock)
{
    check_order(lock, lock->rank);
    pthread_rwlock_wrlock(&lock->os);
    note_taken(lock, lock->rank);
}

void
vnxi_rwlock_unlock(vnxi_rwlock_t *lock)
{
    note_given_back(lock, lock->rank);
    pthread_rwlock_unlock(&lock->os);
}

#endif
