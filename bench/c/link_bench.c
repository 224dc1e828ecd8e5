/*
 * Measures the round trip of a notification between two processes, and
 * compares copying through the kernel with a bare loop over the same pieces:
 *
 *     meson test -C build --benchmark link_bench
 */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/pidfd.h"
#include "engine/native/shm/hub.h"
#include "engine/native/shm/vm.h"

#define ROUND_TRIPS 4000u
#define MEMORY ((size_t)64 << 20)
#define BATCH 256u

static void
must(bool good, const char *what)
{
    if (!good) {
        fprintf(stderr, "link_bench: %s failed\n", what);
        exit(1);
    }
}

/* -- Notifications -------------------------------------------------------- */

typedef struct end {
    unsigned char instance[VNXI_SHM_ID_SIZE];
    vnxi_shm_info_t info;
    vnxi_hub_t *hub;
    _Atomic(vnxi_link_t *) echo; /* returns the notifications */
    int called;                  /* eventfd, written for each one */
    atomic_uint came;
} end_t;

static void
on_notif(void *context, const void *sender, size_t sender_len,
         const void *message, size_t len)
{
    end_t *end = context;
    vnxi_link_t *echo = atomic_load(&end->echo);

    (void)sender;
    (void)sender_len;
    atomic_fetch_add(&end->came, 1);
    if (echo != NULL) {
        vnxi_link_send_notif(echo, message, len, NULL);
    } else if (end->called >= 0) {
        must(eventfd_write(end->called, 1) == 0, "eventfd_write");
    }
}

static void
on_revoked(void *context, vnxi_link_t *link, uint64_t epoch, vnx_mem_t mem,
           const vnx_desc_t *desc)
{
    (void)context, (void)link, (void)epoch, (void)mem, (void)desc;
}

static void
on_ended(void *context, vnxi_link_t *link, const char *cause)
{
    (void)context, (void)link, (void)cause;
}

static void
end_init(end_t *end, const char *name)
{
    vnxi_hub_config_t config = {
        .name = name,
        .name_len = strlen(name),
        .instance = end->instance,
        .local = &end->info,
        .callbacks = {.context = end,
                      .notif = on_notif,
                      .revoked = on_revoked,
                      .ended = on_ended},
    };

    memset(end, 0, sizeof *end);
    end->called = -1;
    must(getrandom(end->instance, sizeof end->instance, 0) ==
             (ssize_t)sizeof end->instance,
         "getrandom");
    must(vnxi_shm_info_local(&end->info, NULL) == VNX_OK, "info");
    memcpy(end->info.instance, end->instance, sizeof end->instance);
    end->info.nonce_addr = (uint64_t)(uintptr_t)end->instance;
    must(vnxi_hub_create(&config, end->info.socket, &end->hub, NULL) == VNX_OK,
         "a hub");
}

static void
swap_infos(int fd, const end_t *end, vnxi_shm_info_t *info)
{
    must(send(fd, &end->info, sizeof *info, 0) == (ssize_t)sizeof *info &&
             recv(fd, info, sizeof *info, MSG_WAITALL) ==
                 (ssize_t)sizeof *info,
         "the handshake");
}

/* The other process: returns notifications, and polls on request. */
static void
run_echo(int fd)
{
    end_t end;
    vnxi_shm_info_t info;
    const vnxi_link_target_t bench = {
        .info = &info, .name = "bench", .name_len = 5};
    vnxi_link_t *link;
    char polls = 0;

    prctl(PR_SET_PDEATHSIG, SIGKILL);
    end_init(&end, "echo");
    swap_infos(fd, &end, &info);
    must(vnxi_link_open(end.hub, &bench, &link, NULL) == VNX_OK,
         "a link back");
    atomic_store(&end.echo, link);
    for (;;) {
        if (recv(fd, &polls, 1, polls != 0 ? MSG_DONTWAIT : 0) == 0) {
            _exit(0);
        }
        for (int i = 0; polls != 0 && i < 100; i++) {
            vnxi_hub_poll(end.hub);
        }
    }
}

static int
compare(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void
round_trips(end_t *end, vnxi_link_t *link, bool polls, const char *name)
{
    static uint64_t took[ROUND_TRIPS];
    char message[32] = "block 7 of request 12 is free";
    uint64_t until = vnxi_clock_deadline(30000000);

    end->called = polls ? -1 : eventfd(0, EFD_CLOEXEC);
    while (polls && vnxi_clock_ns() < until) {
        vnxi_hub_poll(end->hub);
    }
    for (unsigned i = 0; i < ROUND_TRIPS; i++) {
        unsigned before = atomic_load(&end->came);
        uint64_t start = vnxi_clock_ns();
        must(vnxi_link_send_notif(link, message, sizeof message, NULL) ==
                 VNX_OK,
             "sending");
        while (polls && atomic_load(&end->came) == before) {
            vnxi_hub_poll(end->hub);
        }
        eventfd_t count;
        must(polls || eventfd_read(end->called, &count) == 0, "waiting");
        took[i] = vnxi_clock_ns() - start;
    }
    if (end->called >= 0) {
        close(end->called);
    }
    qsort(took, ROUND_TRIPS, sizeof took[0], compare);
    uint64_t half = took[ROUND_TRIPS / 2];
    uint64_t most = took[ROUND_TRIPS * 99 / 100];
    printf("%-44s p50 %6.1f us   p99 %6.1f us\n", name, (double)half / 1e3,
           (double)most / 1e3);
}

static void
measure_notifications(void)
{
    int ends[2];
    end_t end;
    vnxi_shm_info_t info;
    const vnxi_link_target_t echo = {
        .info = &info, .name = "echo", .name_len = 4};
    vnxi_link_t *link;

    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0,
         "socketpair");
    pid_t pid = fork();
    must(pid >= 0, "fork");
    if (pid == 0) {
        close(ends[0]);
        run_echo(ends[1]);
    }
    close(ends[1]);
    end_init(&end, "bench");
    swap_infos(ends[0], &end, &info);
    must(vnxi_link_open(end.hub, &echo, &link, NULL) == VNX_OK, "a link");
    while (vnxi_hub_accepted(end.hub) == 0) {
        usleep(1000);
    }
    round_trips(&end, link, false, "there and back, both sleep");
    round_trips(&end, link, true,
                "there and back, one polls, the other sleeps");
    must(send(ends[0], "\1", 1, 0) == 1, "an order");
    usleep(30000);
    round_trips(&end, link, true, "there and back, both poll");
    vnxi_link_release(link);
    vnxi_hub_stop(end.hub);
    vnxi_hub_free(end.hub);
    close(ends[0]);
    waitpid(pid, NULL, 0);
}

/* -- Copying -------------------------------------------------------------- */

typedef struct blocks {
    size_t len, count;
    uint32_t *order; /* of the blocks in the peer's memory */
    unsigned char *local, *remote;
} blocks_t;

static void
shuffle(blocks_t *blocks)
{
    uint64_t state = 88172645463325252u;

    for (uint32_t i = 0; i < blocks->count; i++) {
        blocks->order[i] = i;
    }
    for (uint32_t left = blocks->count; left > 1; left--) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        size_t k = state % left;
        uint32_t swap = blocks->order[left - 1];
        blocks->order[left - 1] = blocks->order[k];
        blocks->order[k] = swap;
    }
}

static double
bare_loop(const blocks_t *blocks, pid_t pid)
{
    struct iovec local[BATCH], remote[BATCH];
    uint64_t start = vnxi_clock_ns();

    for (size_t at = 0; at < blocks->count;) {
        size_t n = 0;
        for (; n < BATCH && at < blocks->count; n++, at++) {
            local[n] =
                (struct iovec){blocks->local + at * blocks->len, blocks->len};
            remote[n] = (struct iovec){
                blocks->remote + blocks->order[at] * blocks->len, blocks->len};
        }
        must(process_vm_readv(pid, local, n, remote, n, 0) ==
                 (ssize_t)(n * blocks->len),
             "process_vm_readv");
    }
    return (double)MEMORY / (double)(vnxi_clock_ns() - start);
}

static double
by_chunks(const vnxi_plan_t *plan, const vnxi_vm_target_t *target)
{
    uint64_t start = vnxi_clock_ns();

    for (size_t i = 0; i < plan->chunk_count; i++) {
        must(vnxi_vm_chunk(target, plan, i, VNX_OP_READ, NULL) == VNX_OK,
             "a chunk");
    }
    return (double)MEMORY / (double)(vnxi_clock_ns() - start);
}

/* One segment for each block, cut into chunks like a plan. */
static void
fill_plan(const blocks_t *blocks, vnxi_plan_t *plan)
{
    size_t room = 0, pieces = 0;

    for (size_t i = 0; i < blocks->count; i++) {
        plan->segments[i] = (vnxi_segment_t){
            .local = (uint64_t)(uintptr_t)(blocks->local + i * blocks->len),
            .remote = (uint64_t)(uintptr_t)(blocks->remote +
                                            blocks->order[i] * blocks->len),
            .len = blocks->len,
            .count = 1,
        };
        if (room < blocks->len || pieces == VNXI_CHUNK_PIECES) {
            plan->chunks[plan->chunk_count++] = (vnxi_chunk_t){(uint32_t)i, 0};
            room = VNXI_CHUNK_BYTES;
            pieces = 0;
        }
        room -= blocks->len;
        pieces++;
    }
    plan->segment_count = blocks->count;
}

static void
measure_blocks(blocks_t *blocks, size_t len, const vnxi_vm_target_t *target)
{
    double bare = 0, ours = 0;

    blocks->len = len;
    blocks->count = MEMORY / len;
    blocks->order = malloc(blocks->count * sizeof *blocks->order);
    vnxi_plan_t plan = {
        .segments = malloc(blocks->count * sizeof *plan.segments),
        .chunks = malloc(blocks->count * sizeof *plan.chunks),
    };
    must(blocks->order != NULL && plan.segments != NULL && plan.chunks != NULL,
         "an allocation");
    shuffle(blocks);
    fill_plan(blocks, &plan);
    for (int round = 0; round < 5; round++) {
        double one = bare_loop(blocks, target->pid);
        double other = by_chunks(&plan, target);
        bare = one > bare ? one : bare;
        ours = other > ours ? other : ours;
    }
    printf("read of scattered %4zu KiB blocks, one thread   bare %5.2f GB/s   "
           "by chunks %5.2f GB/s   ratio %.2f\n",
           len >> 10, bare, ours, ours / bare);
    free(blocks->order);
    free(plan.segments);
    free(plan.chunks);
}

static void
measure_copying(void)
{
    blocks_t blocks = {
        .local = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0),
        .remote = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0),
    };
    int ready = eventfd(0, EFD_CLOEXEC);
    eventfd_t count;

    must(blocks.local != MAP_FAILED && blocks.remote != MAP_FAILED, "mmap");
    pid_t pid = fork();
    must(pid >= 0, "fork");
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        memset(blocks.remote, 7, MEMORY);
        eventfd_write(ready, 1);
        for (;;) {
            pause();
        }
    }
    must(eventfd_read(ready, &count) == 0, "waiting for the other process");
    vnxi_vm_target_t target = {
        .pid = pid,
        .pidfd = vnxi_pidfd_open(pid),
        .operation = "vnx_xfer_post",
    };
    measure_blocks(&blocks, 4 << 10, &target);
    measure_blocks(&blocks, 16 << 10, &target);
    measure_blocks(&blocks, 64 << 10, &target);
    measure_blocks(&blocks, 256 << 10, &target);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

int
main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    measure_copying(); /* before threads: it forks */
    measure_notifications();
    return 0;
}
