/*
 * Mutexes, read-write locks and condition variables, and the order in which
 * locks are taken.
 *
 * Every lock has a rank.  A thread takes locks in the order of their ranks: it
 * may take a lock only if its rank is higher than the ranks of all locks that
 * the thread holds.  So two threads never wait for each other.  The table
 * below defines the order.
 *
 * If VNXI_LOCK_RANKS is defined (debug and sanitizer builds; meson.build
 * decides), each thread records which locks it holds.  Taking a lock out of
 * order then aborts the process with a line on stderr that names both locks;
 * so does giving back a lock that the thread does not hold.  In other builds a
 * vnxi_mutex_t is a pthread_mutex_t and the calls cost the same as those of
 * pthread.h.
 *
 * trylock cannot wait, so it may be called out of order; the lock that it
 * takes is recorded and counts for later locks.  Locks may be given back in
 * any order.  No call here fails.  The locks are neither recursive nor robust.
 */
#ifndef VNXI_BASE_MUTEX_H
#define VNXI_BASE_MUTEX_H

#include <pthread.h>
#include <time.h>

/*
 * All ranks, from the lowest (taken first): X(RANK, "name").  The name of a
 * lock is its object and member, or the file for a static lock.  Two locks of
 * one rank, for example of two agents, are never held together.
 */
#define VNXI_LOCK_TABLE(X)                         \
    X(LISTENER_STOP, "listener.stop_lock")         \
    X(LISTENER, "listener.lock")                   \
    X(SIDE_CHANNEL, "side_channel.lock")           \
    X(BLOB_TABLE, "blob_table.lock")               \
    X(SERVERS, "servers")                          \
    X(CURL, "curl")                                \
    X(CHOICE, "choice.lock")                       \
    X(AGENT_LOAD, "agent.load_lock")               \
    X(UCX_PROGRESS, "ucx_worker.progress_lock")    \
    X(DEADLINE, "deadline")                        \
    X(NATIVE_BACKEND, "native.backend_lock")       \
    X(PROCESS_INBOUND, "process.inbound_lock")     \
    X(NIXL_BACKEND, "nixl.backend_lock")           \
    X(NIXL_MEM, "nixl.mem_lock")                   \
    X(NIXL_GATE, "nixl.gate")                      \
    X(NIXL_MAKING, "nixl.making_lock")             \
    X(NIXL_TWINS, "nixl.twins_lock")               \
    X(NIXL_LISTS, "nixl.lists.lock")               \
    X(NIXL_XFERS, "nixl.xfers_lock")               \
    X(NIXL_PEER, "nixl_peer.lock")                 \
    X(POLLER_TAKE, "poller.take_lock")             \
    X(POLLER_FLIGHT, "poller.flight_lock")         \
    X(POLLER_INBOX, "poller.inbox_lock")           \
    X(NIXL_LIBRARY, "nixl_library")                \
    X(HUB_SETTLE, "hub.settle_lock")               \
    X(HUB_LOOP, "hub.loop")                        \
    X(REGISTRY_CHANGE, "registry.change_lock")     \
    X(REGISTRY, "registry.lock")                   \
    X(DIRECTORY, "directory")                      \
    X(NATIVE_PEERS, "native.peers_lock")           \
    X(NATIVE_PEER, "native_peer.lock")             \
    X(SHM_CONN, "shm_conn.lock")                   \
    X(HUB_LISTS, "hub.lists")                      \
    X(LINK_SEND, "link.send_lock")                 \
    X(NATIVE_FLIGHT, "native.flight_lock")         \
    X(NATIVE_WAITING, "native.waiting_lock")       \
    X(UCX_PEER, "ucx_peer.lock")                   \
    X(UCX_EXIT_PARK, "ucx_exit_park")              \
    X(UCX_COMMAND, "ucx_command.lock")             \
    X(UCX_CONN, "ucx_conn.lock")                   \
    X(UCX_XFERS, "ucx.xfers_lock")                 \
    X(UCX_GONE, "ucx_gone.lock")                   \
    X(UCX_GPU, "ucx_gpu.lock")                     \
    X(UCX_WORKER, "ucx_worker.lock")               \
    X(UCX_GUARD, "ucx_guard")                      \
    X(UCX_GUARD_RESERVE, "ucx_guard.reserve_lock") \
    X(CUDA_LENDER, "cuda_lender.lock")             \
    X(CUDA_MOVER, "cuda_mover.lock")               \
    X(CUDA_IMPORTS, "cuda_imports")                \
    X(CUDA_WINDOWS, "cuda_windows")                \
    X(CUDA_WORKERS, "cuda_workers")                \
    X(CUDA_WORKER, "cuda_worker.lock")             \
    X(PEER_END, "peer_end.lock")                   \
    X(AGENT_PEERS, "agent.peers_lock")             \
    X(NOTIFS, "notifs.lock")                       \
    X(AGENT_ERROR, "agent.error_lock")             \
    X(AGENT_COUNTERS, "agent.counters_lock")       \
    X(EVENTS, "events.lock")                       \
    X(POOL_PHASE, "pool.phase_lock")               \
    X(POOL, "pool.lock")                           \
    X(MAPPING, "mapping")                          \
    X(SEARCH_PATH, "search_path")                  \
    X(CUDA_LIBRARY, "cuda_library")                \
    X(RECYCLE, "recycle")                          \
    X(AT_END, "at_end")                            \
    X(DESCRIPTORS, "descriptors")                  \
    X(LOG, "log")                                  \
    X(LOG_QUEUE, "log queue")                      \
    X(FORK, "fork")

typedef enum vnxi_rank {
#define VNXI_LOCK_RANK(rank, name) VNXI_RANK_##rank,
    VNXI_LOCK_TABLE(VNXI_LOCK_RANK)
#undef VNXI_LOCK_RANK
} vnxi_rank_t;

typedef pthread_cond_t vnxi_cond_t;

/* Only for condition variables that are waited on without a deadline. */
#define VNXI_COND_INIT PTHREAD_COND_INITIALIZER

/* A writer gets the lock as soon as the present readers have left. */
static inline void
vnxi_rwlock_init_os(pthread_rwlock_t *lock)
{
    pthread_rwlockattr_t attr;

    pthread_rwlockattr_init(&attr);
#ifdef __GLIBC__ /* musl has nothing like it */
    pthread_rwlockattr_setkind_np(
        &attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
#endif
    pthread_rwlock_init(lock, &attr);
    pthread_rwlockattr_destroy(&attr);
}

#ifdef VNXI_LOCK_RANKS

typedef struct vnxi_mutex {
    pthread_mutex_t os;
    vnxi_rank_t rank;
} vnxi_mutex_t;

typedef struct vnxi_rwlock {
    pthread_rwlock_t os;
    vnxi_rank_t rank;
} vnxi_rwlock_t;

#define VNXI_MUTEX_INIT(rank)           \
    {                                   \
        PTHREAD_MUTEX_INITIALIZER, rank \
    }

void vnxi_mutex_init(vnxi_mutex_t *mutex, vnxi_rank_t rank);
void vnxi_mutex_destroy(vnxi_mutex_t *mutex);
void vnxi_mutex_lock(vnxi_mutex_t *mutex);
int vnxi_mutex_trylock(vnxi_mutex_t *mutex);
void vnxi_mutex_unlock(vnxi_mutex_t *mutex);
int vnxi_cond_wait(vnxi_cond_t *cond, vnxi_mutex_t *mutex);
int vnxi_cond_timedwait(vnxi_cond_t *cond, vnxi_mutex_t *mutex,
                        const struct timespec *until);

void vnxi_rwlock_init(vnxi_rwlock_t *lock, vnxi_rank_t rank);
void vnxi_rwlock_destroy(vnxi_rwlock_t *lock);
void vnxi_rwlock_read(vnxi_rwlock_t *lock);
void vnxi_rwlock_write(vnxi_rwlock_t *lock);
void vnxi_rwlock_unlock(vnxi_rwlock_t *lock);

#else

typedef pthread_mutex_t vnxi_mutex_t;
typedef pthread_rwlock_t vnxi_rwlock_t;

#define VNXI_MUTEX_INIT(rank) PTHREAD_MUTEX_INITIALIZER

/* May also be called in a forked child, whatever the state of the lock there;
 * async-signal-safe. */
static inline void
vnxi_mutex_init(vnxi_mutex_t *mutex, vnxi_rank_t rank)
{
    (void)rank;
    pthread_mutex_init(mutex, NULL);
}

static inline void
vnxi_mutex_destroy(vnxi_mutex_t *mutex)
{
    pthread_mutex_destroy(mutex);
}

static inline void
vnxi_mutex_lock(vnxi_mutex_t *mutex)
{
    pthread_mutex_lock(mutex);
}

/* 0 if the lock was taken, else EBUSY. */
static inline int
vnxi_mutex_trylock(vnxi_mutex_t *mutex)
{
    return pthread_mutex_trylock(mutex);
}

static inline void
vnxi_mutex_unlock(vnxi_mutex_t *mutex)
{
    pthread_mutex_unlock(mutex);
}

/* Returns 0 with the lock held.  May wake up spuriously. */
static inline int
vnxi_cond_wait(vnxi_cond_t *cond, vnxi_mutex_t *mutex)
{
    return pthread_cond_wait(cond, mutex);
}

/* The same until a CLOCK_MONOTONIC time (vnxi_clock_timespec() of
 * base/clock.h); then returns ETIMEDOUT. */
static inline int
vnxi_cond_timedwait(vnxi_cond_t *cond, vnxi_mutex_t *mutex,
                    const struct timespec *until)
{
    return pthread_cond_timedwait(cond, mutex, until);
}

static inline void
vnxi_rwlock_init(vnxi_rwlock_t *lock, vnxi_rank_t rank)
{
    (void)rank;
    vnxi_rwlock_init_os(lock);
}

static inline void
vnxi_rwlock_destroy(vnxi_rwlock_t *lock)
{
    pthread_rwlock_destroy(lock);
}

static inline void
vnxi_rwlock_read(vnxi_rwlock_t *lock)
{
    pthread_rwlock_rdlock(lock);
}

static inline void
vnxi_rwlock_write(vnxi_rwlock_t *lock)
{
    pthread_rwlock_wrlock(lock);
}

static inline void
vnxi_rwlock_unlock(vnxi_rwlock_t *lock)
{
    pthread_rwlock_unlock(lock);
}

#endif

/* Initialize a condition variable whose deadlines are CLOCK_MONOTONIC times.
 */
void vnxi_cond_init(vnxi_cond_t *cond);

static inline void
vnxi_cond_destroy(vnxi_cond_t *cond)
{
    pthread_cond_destroy(cond);
}

static inline void
vnxi_cond_signal(vnxi_cond_t *cond)
{
    pthread_cond_signal(cond);
}

static inline void
vnxi_cond_broadcast(vnxi_cond_t *cond)
{
    pthread_cond_broadcast(cond);
}

#endif
