/*
 * The peer is a forked child that sleeps; it shares no memory with the test
 * but what the test mapped before the fork (copy on write), so that addresses
 * are the same in both and contents are not.
 */
#include "vnx_test.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/pidfd.h"
#include "engine/native/shm/vm.h"

#define PAGE ((size_t)sysconf(_SC_PAGESIZE)) /* AArch64: up to 64 KiB */
#define ARENA (256 * PAGE)

typedef struct peer {
    unsigned char
        *memory; /* ARENA bytes here and, with other contents, there */
    pid_t pid;
    int pidfd;
} peer_t;

static unsigned char
byte_at(size_t i, unsigned salt)
{
    return (unsigned char)((i * 2654435761u >> 13) + salt);
}

static void
fill(unsigned char *memory, size_t len, unsigned salt)
{
    for (size_t i = 0; i < len; i++) {
        memory[i] = byte_at(i, salt);
    }
}

/* The child changes its memory as requested, reports it, and sleeps. */
static void
start_peer(peer_t *peer, void (*change)(unsigned char *memory))
{
    int ready[2];
    char byte;

    peer->memory = mmap(NULL, ARENA, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(peer->memory != MAP_FAILED);
    assert_int_equal(pipe(ready), 0);
    peer->pid = fork();
    assert_true(peer->pid >= 0);
    if (peer->pid == 0) {
        fill(peer->memory, ARENA, 7);
        if (change != NULL) {
            change(peer->memory);
        }
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (write(ready[1], "x", 1) != 1) {
            _exit(1);
        }
        for (;;) {
            pause();
        }
    }
    assert_int_equal(read(ready[0], &byte, 1), 1);
    close(ready[0]);
    close(ready[1]);
    peer->pidfd = vnxi_pidfd_open(peer->pid);
    assert_true(peer->pidfd >= 0);
}

static void
kill_peer(peer_t *peer)
{
    if (peer->pid > 0) {
        kill(peer->pid, SIGKILL);
        waitpid(peer->pid, NULL, 0);
        peer->pid = 0;
    }
}

static void
stop_peer(peer_t *peer)
{
    kill_peer(peer);
    close(peer->pidfd);
    munmap(peer->memory, ARENA);
}

static vnx_status_t
run_segments(const peer_t *peer, vnxi_segment_t *segments, size_t count,
             vnx_op_t op, vnx_error_t *error)
{
    vnxi_chunk_t chunk = {0, 0};
    vnxi_plan_t plan = {
        .segments = segments,
        .segment_count = count,
        .chunks = &chunk,
        .chunk_count = 1,
    };
    vnxi_vm_target_t target = {
        .pid = peer->pid,
        .pidfd = peer->pidfd,
        .operation = "vnx_xfer_post",
    };

    return vnxi_vm_chunk(&target, &plan, 0, op, error);
}

static vnxi_segment_t
segment(const void *local, const void *remote, uint64_t len, uint32_t count,
        int64_t local_stride, int64_t remote_stride)
{
    return (vnxi_segment_t){
        .local = (uint64_t)(uintptr_t)local,
        .remote = (uint64_t)(uintptr_t)remote,
        .len = len,
        .count = count,
        .local_stride = local_stride,
        .remote_stride = remote_stride,
    };
}

/* -- Bytes ---------------------------------------------------------------- */

/* 700 odd pieces, forwards here and backwards there, over three calls. */
static void
test_vm_reads_scattered_pieces_byte_for_byte(void **state)
{
    (void)state;
    peer_t peer;
    unsigned char *local = calloc(1, ARENA);

    start_peer(&peer, NULL);
    vnxi_segment_t all[] = {
        segment(local, peer.memory + 800000, 333, 700, 500, -1001),
        segment(local + 600000, peer.memory + 5, 1, 1, 0, 0),
        segment(local + 700000, peer.memory + 900000, 100000, 1, 0, 0),
    };
    assert_int_equal(run_segments(&peer, all, 3, VNX_OP_READ, NULL), VNX_OK);
    for (size_t i = 0; i < 700; i++) {
        for (size_t k = 0; k < 500; k++) {
            unsigned char expected =
                k < 333 ? byte_at(800000 - 1001 * i + k, 7) : 0;
            assert_int_equal(local[500 * i + k], expected);
        }
    }
    assert_int_equal(local[600000], byte_at(5, 7));
    assert_int_equal(local[600001], 0);
    for (size_t i = 0; i < 100000; i++) {
        assert_int_equal(local[700000 + i], byte_at(900000 + i, 7));
    }
    assert_int_equal(local[800000], 0);
    free(local);
    stop_peer(&peer);
}

static void
test_vm_writes_scattered_pieces_byte_for_byte(void **state)
{
    (void)state;
    peer_t peer;
    unsigned char *local = malloc(ARENA), *back = malloc(ARENA);

    start_peer(&peer, NULL);
    fill(local, ARENA, 99);
    vnxi_segment_t scattered =
        segment(local + 3, peer.memory + 11, 777, 600, 801, 1003);
    assert_int_equal(run_segments(&peer, &scattered, 1, VNX_OP_WRITE, NULL),
                     VNX_OK);
    assert_int_equal(
        vnxi_vm_peek(peer.pid, (uintptr_t)peer.memory, back, ARENA), 0);
    for (size_t i = 0; i < ARENA; i++) {
        size_t piece = i < 11 ? 600 : (i - 11) / 1003;
        size_t at = i < 11 ? 0 : (i - 11) % 1003;
        unsigned char expected = piece < 600 && at < 777
                                     ? byte_at(3 + 801 * piece + at, 99)
                                     : byte_at(i, 7);
        assert_int_equal(back[i], expected);
    }
    free(local);
    free(back);
    stop_peer(&peer);
}

static void
test_vm_skips_other_routes(void **state)
{
    (void)state;
    peer_t peer;
    unsigned char local[30] = {0};

    start_peer(&peer, NULL);
    vnxi_segment_t all[] = {
        segment(local, peer.memory, 10, 1, 0, 0),
        segment(local + 10, peer.memory, 10, 1, 0, 0),
        segment(local + 20, peer.memory, 10, 1, 0, 0),
    };
    all[1].route = 1;
    assert_int_equal(run_segments(&peer, all, 3, VNX_OP_READ, NULL), VNX_OK);
    for (size_t i = 0; i < 30; i++) {
        assert_int_equal(local[i], i / 10 == 1 ? 0 : byte_at(i % 10, 7));
    }
    all[0].route = all[2].route = 1;
    assert_int_equal(run_segments(&peer, all, 3, VNX_OP_READ, NULL), VNX_OK);
    stop_peer(&peer);
}

static void
test_vm_copies_one_chunk_and_not_its_neighbours(void **state)
{
    (void)state;
    peer_t peer;
    unsigned char local[100] = {0};

    start_peer(&peer, NULL);
    vnxi_segment_t ten = segment(local, peer.memory, 10, 10, 10, 10);
    vnxi_chunk_t chunks[] = {{0, 0}, {0, 3}, {0, 5}};
    vnxi_plan_t plan = {
        .segments = &ten,
        .segment_count = 1,
        .chunks = chunks,
        .chunk_count = 3,
    };
    vnxi_vm_target_t target = {
        .pid = peer.pid,
        .pidfd = peer.pidfd,
        .operation = "vnx_xfer_post",
    };
    assert_int_equal(vnxi_vm_chunk(&target, &plan, 1, VNX_OP_READ, NULL),
                     VNX_OK);
    for (size_t i = 0; i < 100; i++) {
        assert_int_equal(local[i],
                         i / 10 == 3 || i / 10 == 4 ? byte_at(i, 7) : 0);
    }
    stop_peer(&peer);
}

/* -- Bad addresses -------------------------------------------------------- */

static void
unmap_page_100(unsigned char *memory)
{
    munmap(memory + 100 * PAGE, PAGE);
}

static void
protect_page_100(unsigned char *memory)
{
    mprotect(memory + 100 * PAGE, PAGE, PROT_READ);
}

static void
check_fault(vnx_status_t status, const vnx_error_t *error, const char *side,
            const void *addr)
{
    char where[32];

    snprintf(where, sizeof where, " 0x%" PRIxPTR " ", (uintptr_t)addr);
    assert_int_equal(status, VNX_ERR_BACKEND);
    assert_int_equal(error->status, VNX_ERR_BACKEND);
    assert_string_equal(error->operation, "vnx_xfer_post");
    assert_ptr_equal(strstr(error->cause, side), error->cause);
    assert_non_null(strstr(error->cause, where));
    assert_non_null(strstr(error->cause, "memory was unmapped"));
}

static void
test_vm_names_unmapped_remote_memory(void **state)
{
    (void)state;
    peer_t peer;
    vnx_error_t error;
    unsigned char *local = calloc(1, ARENA);

    start_peer(&peer, unmap_page_100);
    /* 200 good pieces, then one that runs into the hole, then good ones. */
    vnxi_segment_t all[] = {
        segment(local, peer.memory, 100, 200, 100, 100),
        segment(local + 30000, peer.memory + 100 * PAGE - 500, 1000, 1, 0, 0),
        segment(local + 40000, peer.memory, 100, 20, 100, 100),
    };
    vnx_status_t status = run_segments(&peer, all, 3, VNX_OP_READ, &error);
    check_fault(status, &error, "memory of the peer",
                peer.memory + 100 * PAGE);
    /* Bytes before the hole were copied, and none after it. */
    for (size_t i = 0; i < 20000; i++) {
        assert_int_equal(local[i], byte_at(i, 7));
    }
    assert_int_equal(local[40000], 0);

    status = run_segments(&peer, all + 1, 1, VNX_OP_WRITE, &error);
    check_fault(status, &error, "memory of the peer",
                peer.memory + 100 * PAGE);
    free(local);
    stop_peer(&peer);
}

static void
test_vm_names_read_only_remote_memory(void **state)
{
    (void)state;
    peer_t peer;
    vnx_error_t error;
    unsigned char *local = calloc(1, ARENA);

    start_peer(&peer, protect_page_100);
    vnxi_segment_t one =
        segment(local, peer.memory + 99 * PAGE, 3 * PAGE, 1, 0, 0);
    assert_int_equal(run_segments(&peer, &one, 1, VNX_OP_READ, &error),
                     VNX_OK);
    vnx_status_t status = run_segments(&peer, &one, 1, VNX_OP_WRITE, &error);
    check_fault(status, &error, "memory of the peer",
                peer.memory + 100 * PAGE);
    free(local);
    stop_peer(&peer);
}

static void
test_vm_names_unmapped_or_protected_local_memory(void **state)
{
    (void)state;
    peer_t peer;
    vnx_error_t error;
    unsigned char *local = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    assert_true(local != MAP_FAILED);
    start_peer(&peer, NULL);
    vnxi_segment_t one = segment(local, peer.memory, 4 * PAGE, 1, 0, 0);
    mprotect(local + 2 * PAGE, PAGE, PROT_READ);
    assert_int_equal(run_segments(&peer, &one, 1, VNX_OP_WRITE, &error),
                     VNX_OK);
    vnx_status_t status = run_segments(&peer, &one, 1, VNX_OP_READ, &error);
    check_fault(status, &error, "local memory", local + 2 * PAGE);

    munmap(local + 2 * PAGE, PAGE);
    status = run_segments(&peer, &one, 1, VNX_OP_READ, &error);
    check_fault(status, &error, "local memory", local + 2 * PAGE);
    status = run_segments(&peer, &one, 1, VNX_OP_WRITE, &error);
    check_fault(status, &error, "local memory", local + 2 * PAGE);
    munmap(local, 4 * PAGE);
    stop_peer(&peer);
}

/* The kernel refuses the whole call for a local address that no process can
 * have; the piece before it is good and must be neither blamed nor lost. */
static void
test_vm_finds_the_piece_with_an_impossible_address(void **state)
{
    (void)state;
    peer_t peer;
    vnx_error_t error;
    unsigned char local[20] = {0};
    void *impossible = (void *)(uintptr_t)0xffff800000001000;

    start_peer(&peer, NULL);
    vnxi_segment_t all[] = {
        segment(local, peer.memory, 10, 2, 10, 10),
        segment(impossible, peer.memory, 10, 1, 0, 0),
    };
    vnx_status_t status = run_segments(&peer, all, 2, VNX_OP_READ, &error);
    check_fault(status, &error, "local memory", impossible);
    assert_int_equal(local[0], byte_at(0, 7));
    assert_int_equal(local[19], byte_at(19, 7));

    all[1] = segment(local, impossible, 10, 1, 0, 0);
    status = run_segments(&peer, all, 2, VNX_OP_WRITE, &error);
    check_fault(status, &error, "memory of the peer", impossible);
    stop_peer(&peer);
}

/* -- Ends ----------------------------------------------------------------- */

static void
test_vm_reports_that_the_process_ended(void **state)
{
    (void)state;
    peer_t peer;
    vnx_error_t error;
    unsigned char local[10];

    start_peer(&peer, NULL);
    vnxi_segment_t one = segment(local, peer.memory, 10, 1, 0, 0);
    vnxi_chunk_t chunk = {0, 0};
    vnxi_plan_t plan = {&one, 1, &chunk, 1, .routes = 1};
    vnxi_vm_target_t target = {
        .pid = peer.pid,
        .pidfd = peer.pidfd,
        .operation = "vnx_xfer_post",
    };
    char cause[64];
    snprintf(cause, sizeof cause, "process %d ended", (int)peer.pid);

    /* As a zombie, and when nothing is left of it. */
    siginfo_t info;
    kill(peer.pid, SIGKILL);
    assert_int_equal(waitid(P_PID, (id_t)peer.pid, &info, WEXITED | WNOWAIT),
                     0);
    assert_int_equal(vnxi_vm_chunk(&target, &plan, 0, VNX_OP_READ, &error),
                     VNX_ERR_REMOTE_DISCONNECT);
    assert_string_equal(error.cause, cause);
    kill_peer(&peer);
    assert_int_equal(vnxi_vm_chunk(&target, &plan, 0, VNX_OP_WRITE, &error),
                     VNX_ERR_REMOTE_DISCONNECT);
    assert_string_equal(error.cause, cause);
    stop_peer(&peer);
}

/* The address is bad, and the process ends while that is being checked: its
 * end is reported. */
static void
test_vm_distinguishes_process_end_from_a_bad_address(void **state)
{
    (void)state;
    peer_t peer, gone;
    vnx_error_t error;
    unsigned char local[10];

    start_peer(&peer, unmap_page_100);
    start_peer(&gone, NULL);
    kill_peer(&gone);
    vnxi_segment_t one = segment(local, peer.memory + 100 * PAGE, 10, 1, 0, 0);
    peer_t mixed = {.pid = peer.pid, .pidfd = gone.pidfd};
    assert_int_equal(run_segments(&mixed, &one, 1, VNX_OP_READ, &error),
                     VNX_ERR_REMOTE_DISCONNECT);
    stop_peer(&gone);
    stop_peer(&peer);
}

static void
test_vm_stops_when_it_is_cancelled(void **state)
{
    (void)state;
    peer_t peer;
    vnx_error_t error;
    unsigned char local[10] = {0};
    atomic_bool stop = true;

    start_peer(&peer, NULL);
    vnxi_segment_t one = segment(local, peer.memory + 1, 10, 1, 0, 0);
    vnxi_chunk_t chunk = {0, 0};
    vnxi_plan_t plan = {&one, 1, &chunk, 1, .routes = 1};
    vnxi_vm_target_t target = {
        .pid = peer.pid,
        .pidfd = peer.pidfd,
        .stop = &stop,
        .operation = "vnx_xfer_post",
    };
    assert_int_equal(vnxi_vm_chunk(&target, &plan, 0, VNX_OP_READ, &error),
                     VNX_ERR_CANCELED);
    assert_int_equal(error.status, VNX_ERR_CANCELED);
    assert_int_equal(local[0], 0);
    atomic_store(&stop, false);
    assert_int_equal(vnxi_vm_chunk(&target, &plan, 0, VNX_OP_READ, &error),
                     VNX_OK);
    assert_int_equal(local[0], byte_at(1, 7));
    stop_peer(&peer);
}

/* An unprivileged process is created in a child, so that the test keeps its
 * privileges; this needs root. */
static void
test_vm_reports_denied_access(void **state)
{
    (void)state;
    peer_t peer;
    int status;

    if (geteuid() != 0) {
        print_message("skipped: needs root, to become another user\n");
        skip();
    }
    start_peer(&peer, NULL);
    pid_t other = fork();
    if (other == 0) {
        vnx_error_t error;
        unsigned char local[10];
        vnxi_segment_t one = segment(local, peer.memory, 10, 1, 0, 0);
        if (setgid(65534) != 0 || setuid(65534) != 0) {
            _exit(2);
        }
        bool refused = run_segments(&peer, &one, 1, VNX_OP_READ, &error) ==
                           VNX_ERR_NOT_ALLOWED &&
                       vnxi_vm_peek(peer.pid, one.remote, local, 10) == EPERM;
        _exit(refused ? 0 : 1);
    }
    assert_int_equal(waitpid(other, &status, 0), other);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    stop_peer(&peer);
}

static void
test_vm_peek_reads_or_reports_the_cause(void **state)
{
    (void)state;
    peer_t peer;
    unsigned char bytes[16];

    start_peer(&peer, unmap_page_100);
    uint64_t addr = (uintptr_t)peer.memory;
    assert_int_equal(vnxi_vm_peek(peer.pid, addr + 3, bytes, 16), 0);
    for (size_t i = 0; i < 16; i++) {
        assert_int_equal(bytes[i], byte_at(3 + i, 7));
    }
    uint64_t hole = addr + 100 * PAGE;
    assert_int_equal(vnxi_vm_peek(peer.pid, hole, bytes, 16), EFAULT);
    assert_int_equal(vnxi_vm_peek(peer.pid, hole - 8, bytes, 16), EFAULT);
    pid_t pid = peer.pid;
    kill_peer(&peer);
    assert_int_equal(vnxi_vm_peek(pid, addr, bytes, 16), ESRCH);
    stop_peer(&peer);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vm_reads_scattered_pieces_byte_for_byte),
        cmocka_unit_test(test_vm_writes_scattered_pieces_byte_for_byte),
        cmocka_unit_test(test_vm_skips_other_routes),
        cmocka_unit_test(test_vm_copies_one_chunk_and_not_its_neighbours),
        cmocka_unit_test(test_vm_names_unmapped_remote_memory),
        cmocka_unit_test(test_vm_names_read_only_remote_memory),
        cmocka_unit_test(test_vm_names_unmapped_or_protected_local_memory),
        cmocka_unit_test(test_vm_finds_the_piece_with_an_impossible_address),
        cmocka_unit_test(test_vm_reports_that_the_process_ended),
        cmocka_unit_test(test_vm_distinguishes_process_end_from_a_bad_address),
        cmocka_unit_test(test_vm_stops_when_it_is_cancelled),
        cmocka_unit_test(test_vm_reports_denied_access),
        cmocka_unit_test(test_vm_peek_reads_or_reports_the_cause),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
