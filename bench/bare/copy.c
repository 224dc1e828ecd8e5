/*
 * Bare loops that copy the blocks that the agents move.
 *
 * Design notes.  A forked child owns the remote memory, so its pages belong to
 * another process.  The caller's thread copies the first share of a batch, as
 * the caller of an engine may, and the others wait for it at a barrier.
 */
#include "bare.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/cpu.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

#define PIECES 256 /* of one process_vm_readv */
#define THREADS_MAX 64

struct vnx_bare {
    size_t size;
    char *local;
    char *remote; /* in the child; also mapped here if `shared` */
    pid_t owner;
    bool shared;
};

typedef struct job {
    const vnx_bare_t *bare;
    const vnx_bare_plan_t *plan;
    const vnx_bare_pair_t *batch; /* of this pass */
    pthread_barrier_t begin, end;
    bool stop;
    _Atomic int failed; /* errno */
} job_t;

typedef struct worker {
    job_t *job;
    unsigned index;
    pthread_t thread;
} worker_t;

/* -- Copying -------------------------------------------------------------- */

#ifdef __x86_64__

static VNXI_TARGET_AVX2 void
stream_avx2(char *to, const char *from, size_t size)
{
    for (size_t i = 0; i < size; i += 128) {
        const __m256i *in = (const void *)(from + i);
        __m256i *out = (void *)(to + i);
        __m256i a = _mm256_loadu_si256(in), b = _mm256_loadu_si256(in + 1);
        __m256i c = _mm256_loadu_si256(in + 2);
        __m256i d = _mm256_loadu_si256(in + 3);

        _mm256_stream_si256(out, a);
        _mm256_stream_si256(out + 1, b);
        _mm256_stream_si256(out + 2, c);
        _mm256_stream_si256(out + 3, d);
    }
}

static void
stream_sse2(char *to, const char *from, size_t size)
{
    for (size_t i = 0; i < size; i += 64) {
        const __m128i *in = (const void *)(from + i);
        __m128i *out = (void *)(to + i);
        __m128i a = _mm_loadu_si128(in), b = _mm_loadu_si128(in + 1);
        __m128i c = _mm_loadu_si128(in + 2), d = _mm_loadu_si128(in + 3);

        _mm_stream_si128(out, a);
        _mm_stream_si128(out + 1, b);
        _mm_stream_si128(out + 2, c);
        _mm_stream_si128(out + 3, d);
    }
}

static void
stream(char *to, const char *from, size_t size)
{
    if (vnxi_cpu_has_avx2()) {
        stream_avx2(to, from, size);
    } else {
        stream_sse2(to, from, size);
    }
}

static void
stream_fence(void)
{
    _mm_sfence();
}

#else

/* Other cores detect a stream of stores by themselves. */
static void
stream(char *to, const char *from, size_t size)
{
    memcpy(to, from, size);
}

static void
stream_fence(void)
{
}

#endif

static void
copy_shared(const job_t *job, size_t first, size_t last)
{
    const vnx_bare_t *bare = job->bare;

    for (size_t i = first; i < last; i++) {
        char *local = bare->local + job->batch[i].local;
        char *remote = bare->remote + job->batch[i].remote;

        if (job->plan->write) {
            stream(remote, local, job->plan->block);
        } else {
            stream(local, remote, job->plan->block);
        }
    }
    stream_fence();
}

static int
copy_by_kernel(const job_t *job, size_t first, size_t last)
{
    const vnx_bare_t *bare = job->bare;
    const vnx_bare_plan_t *plan = job->plan;
    struct iovec local[PIECES], remote[PIECES];

    for (size_t i = first; i < last;) {
        size_t n = last - i < PIECES ? last - i : PIECES;
        ssize_t moved;

        for (size_t k = 0; k < n; k++) {
            const vnx_bare_pair_t *pair = &job->batch[i + k];

            local[k].iov_base = bare->local + pair->local;
            remote[k].iov_base = bare->remote + pair->remote;
            local[k].iov_len = remote[k].iov_len = plan->block;
        }
        moved = plan->write
                    ? process_vm_writev(bare->owner, local, n, remote, n, 0)
                    : process_vm_readv(bare->owner, local, n, remote, n, 0);
        if (moved != (ssize_t)(n * plan->block)) {
            return moved < 0 ? errno : EIO;
        }
        i += n;
    }
    return 0;
}

static void
copy_share(job_t *job, unsigned index)
{
    const vnx_bare_plan_t *plan = job->plan;
    size_t first = plan->batch * index / plan->threads;
    size_t last = plan->batch * (index + 1) / plan->threads;
    int error;

    if (job->bare->shared) {
        copy_shared(job, first, last);
        return;
    }
    error = copy_by_kernel(job, first, last);
    if (error != 0) {
        job->failed = error;
    }
}

/* -- Passes --------------------------------------------------------------- */

static void *
worker_run(void *argument)
{
    worker_t *worker = argument;
    job_t *job = worker->job;

    for (;;) {
        pthread_barrier_wait(&job->begin);
        if (job->stop) {
            return NULL;
        }
        copy_share(job, worker->index);
        pthread_barrier_wait(&job->end);
    }
}

static void
run_pass(job_t *job)
{
    if (job->plan->threads == 1) {
        copy_share(job, 0);
        return;
    }
    pthread_barrier_wait(&job->begin);
    copy_share(job, 0);
    pthread_barrier_wait(&job->end);
}

static int64_t
run_passes(job_t *job, double *taken, int64_t room)
{
    const vnx_bare_plan_t *plan = job->plan;
    size_t batches = plan->count / plan->batch;
    double limit = bare_seconds_now() + plan->seconds;
    int64_t passes = 0;

    while (passes < room && job->failed == 0) {
        double started, ended;

        job->batch = plan->pairs + (size_t)passes % batches * plan->batch;
        started = bare_seconds_now();
        run_pass(job);
        ended = bare_seconds_now();
        taken[passes++] = ended - started;
        if (plan->seconds > 0 && ended > limit) {
            break;
        }
    }
    return passes;
}

/* A thread that cannot be started would leave the others at the barrier, so
 * this ends the process then. */
static int64_t
run_with_workers(job_t *job, double *taken, int64_t room)
{
    unsigned threads = (unsigned)job->plan->threads;
    worker_t workers[THREADS_MAX];
    int64_t passes;

    pthread_barrier_init(&job->begin, NULL, threads);
    pthread_barrier_init(&job->end, NULL, threads);
    for (unsigned i = 1; i < threads; i++) {
        workers[i] = (worker_t){.job = job, .index = i};
        if (pthread_create(&workers[i].thread, NULL, worker_run,
                           &workers[i]) != 0) {
            abort();
        }
    }
    passes = run_passes(job, taken, room);
    job->stop = true;
    if (threads > 1) {
        pthread_barrier_wait(&job->begin);
    }
    for (unsigned i = 1; i < threads; i++) {
        pthread_join(workers[i].thread, NULL);
    }
    pthread_barrier_destroy(&job->begin);
    pthread_barrier_destroy(&job->end);
    return passes;
}

static bool
plan_is_valid(const vnx_bare_t *bare, const vnx_bare_plan_t *plan)
{
    if (plan->block == 0 || plan->block % 128 != 0 ||
        plan->block > bare->size || plan->batch == 0 ||
        plan->batch > plan->count || plan->threads == 0 ||
        plan->threads > THREADS_MAX) {
        return false;
    }
    for (size_t i = 0; i < plan->count; i++) {
        if (plan->pairs[i].local > bare->size - plan->block ||
            plan->pairs[i].remote > bare->size - plan->block) {
            return false;
        }
    }
    return true;
}

int64_t
vnx_bare_copy(vnx_bare_t *bare, const vnx_bare_plan_t *plan, double *taken,
              int64_t room)
{
    job_t job = {.bare = bare, .plan = plan};
    int64_t passes;

    if (!plan_is_valid(bare, plan)) {
        errno = EINVAL;
        return -1;
    }
    passes = run_with_workers(&job, taken, room);
    if (job.failed != 0) {
        errno = job.failed;
        return -1;
    }
    return passes;
}

/* -- The memories --------------------------------------------------------- */

static char *
map_pages(size_t size, int flags)
{
    char *pages =
        mmap(NULL, size, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);

    return pages == MAP_FAILED ? NULL : pages;
}

/* Load every page, so that no copy has to wait for the kernel to map it. */
static void
touch(const char *pages, size_t size)
{
    for (size_t i = 0; i < size; i += 4096) {
        (void)*(const volatile char *)(pages + i);
    }
}

/* The kernel kills the child if the thread that forked it ends first. */
static void
own(const vnx_bare_t *bare, int ready, pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    prctl(PR_SET_PTRACER, parent, 0, 0, 0);
    memset(bare->remote, 1, bare->size);
    if (getppid() != parent || write(ready, "r", 1) != 1) {
        _exit(1);
    }
    for (;;) {
        pause();
    }
}

static int
start_owner(vnx_bare_t *bare)
{
    pid_t parent = getpid();
    int ready[2];
    char byte;
    ssize_t got;

    if (pipe(ready) != 0) {
        return -1;
    }
    bare->owner = fork();
    if (bare->owner == 0) {
        own(bare, ready[1], parent);
    }
    close(ready[1]);
    got = bare->owner < 0 ? -1 : read(ready[0], &byte, 1);
    close(ready[0]);
    return got == 1 ? 0 : -1;
}

vnx_bare_t *
vnx_bare_open(uint64_t size, int shared)
{
    vnx_bare_t *bare = calloc(1, sizeof *bare);

    if (bare == NULL) {
        return NULL;
    }
    bare->owner = -1;
    bare->size = size;
    bare->shared = shared != 0;
    bare->remote = map_pages(size, shared ? MAP_SHARED : MAP_PRIVATE);
    bare->local = map_pages(size, MAP_PRIVATE);
    if (bare->remote == NULL || bare->local == NULL ||
        start_owner(bare) != 0) {
        vnx_bare_close(bare);
        return NULL;
    }
    memset(bare->local, 0, size);
    if (bare->shared) {
        touch(bare->remote, size);
    }
    return bare;
}

void
vnx_bare_close(vnx_bare_t *bare)
{
    int error = errno;

    if (bare->owner > 0) {
        kill(bare->owner, SIGKILL);
        waitpid(bare->owner, NULL, 0);
    }
    if (bare->local != NULL) {
        munmap(bare->local, bare->size);
    }
    if (bare->remote != NULL) {
        munmap(bare->remote, bare->size);
    }
    free(bare);
    errno = error;
}
