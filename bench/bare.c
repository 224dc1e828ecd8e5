/*
 * The bare loops that two-process rows are compared with: they move the same
 * blocks of the same memory with the same number of threads, and do nothing
 * else.
 *
 *   bare readv|stream|latency BLOCK THREADS PASSES < pairs
 *
 * `pairs` is local offset, remote offset, ... as uint64.  Prints the seconds
 * of each pass.  readv copies with process_vm_readv, 256 pieces a call;
 * stream copies from a shared mapping with non-temporal stores; latency reads
 * one block in each pass.
 *
 * A forked child owns the source, so its pages belong to another process.
 */
#include <immintrin.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bare.h"

#define BATCH 256 /* pieces of one process_vm_readv */

typedef struct pair {
    uint64_t local, remote;
} pair_t;

typedef struct job {
    const pair_t *pairs;
    size_t count, block;
    unsigned threads;
    char *target;
    char *source; /* in the child (readv) or mapped here (stream) */
    pid_t owner;
    bool shared;
    pthread_barrier_t begin, end;
    bool stop;
} job_t;

typedef struct worker {
    job_t *job;
    unsigned index;
    pthread_t thread;
} worker_t;

__attribute__((target("avx2"))) static void
stream_avx2(char *to, const char *from, size_t size)
{
    for (size_t i = 0; i < size; i += 128) {
        const __m256i *in = (const __m256i *)(from + i);
        __m256i *out = (__m256i *)(to + i);
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
        const __m128i *in = (const __m128i *)(from + i);
        __m128i *out = (__m128i *)(to + i);
        __m128i a = _mm_loadu_si128(in), b = _mm_loadu_si128(in + 1);
        __m128i c = _mm_loadu_si128(in + 2), d = _mm_loadu_si128(in + 3);

        _mm_stream_si128(out, a);
        _mm_stream_si128(out + 1, b);
        _mm_stream_si128(out + 2, c);
        _mm_stream_si128(out + 3, d);
    }
}

static void
copy_streaming(const job_t *job, size_t first, size_t last)
{
    void (*copy)(char *, const char *, size_t) = stream_sse2;

    if (__builtin_cpu_supports("avx2")) {
        copy = stream_avx2;
    }
    for (size_t i = first; i < last; i++) {
        copy(job->target + job->pairs[i].local,
             job->source + job->pairs[i].remote, job->block);
    }
    _mm_sfence();
}

static void
copy_batches(const job_t *job, size_t first, size_t last)
{
    struct iovec local[BATCH], remote[BATCH];

    for (size_t i = first; i < last;) {
        size_t n = last - i < BATCH ? last - i : BATCH;

        for (size_t k = 0; k < n; k++) {
            const pair_t *pair = &job->pairs[i + k];

            local[k].iov_base = job->target + pair->local;
            remote[k].iov_base = job->source + pair->remote;
            local[k].iov_len = remote[k].iov_len = job->block;
        }
        if (process_vm_readv(job->owner, local, n, remote, n, 0) !=
            (ssize_t)(n * job->block)) {
            fail("process_vm_readv");
        }
        i += n;
    }
}

static void
copy_share(const job_t *job, unsigned index)
{
    size_t first = job->count * index / job->threads;
    size_t last = job->count * (index + 1) / job->threads;

    (job->shared ? copy_streaming : copy_batches)(job, first, last);
}

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

/* This thread copies the first share, like the caller of an engine. */
static void
run_passes(job_t *job, int passes)
{
    worker_t workers[64];

    pthread_barrier_init(&job->begin, NULL, job->threads);
    pthread_barrier_init(&job->end, NULL, job->threads);
    for (unsigned i = 1; i < job->threads; i++) {
        workers[i] = (worker_t){.job = job, .index = i};
        pthread_create(&workers[i].thread, NULL, worker_run, &workers[i]);
    }
    for (int pass = 0; pass < passes; pass++) {
        double started = seconds_now();

        pthread_barrier_wait(&job->begin);
        copy_share(job, 0);
        pthread_barrier_wait(&job->end);
        printf("%.9f\n", seconds_now() - started);
    }
    job->stop = true;
    pthread_barrier_wait(&job->begin);
    for (unsigned i = 1; i < job->threads; i++) {
        pthread_join(workers[i].thread, NULL);
    }
}

static void
run_latency(job_t *job, int passes)
{
    for (int pass = 0; pass < passes; pass++) {
        double started = seconds_now();

        copy_batches(job, (size_t)pass % job->count,
                     (size_t)pass % job->count + 1);
        printf("%.9f\n", seconds_now() - started);
    }
}

/* Fork the owner of the source.  It touches every page and then sleeps until
 * it is killed; the kernel kills it if this process ends first. */
static pid_t
start_owner(char *source, size_t size)
{
    int ready[2];
    char byte;
    pid_t owner;

    if (pipe(ready) != 0) {
        fail("pipe");
    }
    owner = fork();
    if (owner == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        prctl(PR_SET_PTRACER, getppid(), 0, 0, 0);
        memset(source, 1, size);
        if (write(ready[1], "r", 1) != 1) {
            _exit(1);
        }
        for (;;) {
            pause();
        }
    }
    if (owner < 0 || read(ready[0], &byte, 1) != 1) {
        fail("fork");
    }
    return owner;
}

static char *
map_pages(size_t size, int flags)
{
    char *pages =
        mmap(NULL, size, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);

    if (pages == MAP_FAILED) {
        fail("mmap");
    }
    return pages;
}

static pair_t *
read_pairs(size_t *count_p)
{
    size_t room = 1 << 12, count = 0;
    pair_t *pairs = malloc(room * sizeof *pairs);

    while (pairs != NULL) {
        count += fread(pairs + count, sizeof *pairs, room - count, stdin);
        if (count < room) {
            break;
        }
        room *= 2;
        pairs = realloc(pairs, room * sizeof *pairs);
    }
    if (pairs == NULL || count == 0) {
        fail("no pairs");
    }
    *count_p = count;
    return pairs;
}

/* The size of the memory that contains all pairs. */
static size_t
span(const job_t *job)
{
    size_t size = 0;

    for (size_t i = 0; i < job->count; i++) {
        const pair_t *pair = &job->pairs[i];
        size_t end = pair->local > pair->remote ? pair->local : pair->remote;

        size = end > size ? end : size;
    }
    return size + job->block;
}

static void
run(job_t *job, bool latency, int passes)
{
    size_t size = span(job);

    job->source = map_pages(size, job->shared ? MAP_SHARED : MAP_PRIVATE);
    job->target = map_pages(size, MAP_PRIVATE);
    memset(job->target, 0, size);
    job->owner = start_owner(job->source, size);
    if (latency) {
        run_latency(job, passes);
    } else {
        run_passes(job, passes);
    }
    kill(job->owner, SIGKILL);
    waitpid(job->owner, NULL, 0);
}

int
main(int argc, char **argv)
{
    job_t job = {0};

    if (argc != 5) {
        fprintf(stderr, "usage: bare readv|stream|latency BLOCK THREADS "
                        "PASSES < pairs\n");
        return 2;
    }
    job.shared = strcmp(argv[1], "stream") == 0;
    job.block = strtoul(argv[2], NULL, 10);
    job.threads = (unsigned)strtoul(argv[3], NULL, 10);
    if (job.threads == 0 || job.threads > 64 || job.block % 4096 != 0) {
        fprintf(stderr, "bare: THREADS must be 1 to 64, BLOCK whole pages\n");
        return 2;
    }
    job.pairs = read_pairs(&job.count);
    run(&job, strcmp(argv[1], "latency") == 0, (int)strtol(argv[4], NULL, 10));
    free((void *)job.pairs);
    return 0;
}
