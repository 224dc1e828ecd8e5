#include "side.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>
#include <vnx/vnx.h>

#define WAIT_NS (60u * UINT64_C(1000000000))

typedef struct side {
    vnx_agent_t *agent;
    offer_t offer;
    unsigned char *region[SIDE_REGIONS];
    unsigned char *scratch; /* registered, as long as a region: the first
                               half is for READ, the second for WRITE */
} side_t;

/* -- Bytes ---------------------------------------------------------------- */

static unsigned char
pattern(const char *name, int region, size_t at)
{
    uint64_t seed = (uint64_t)name[0] * 131 + (uint64_t)region;
    return (unsigned char)(((at + 1) * (seed | 1) * 0x9e3779b97f4a7c15u) >>
                           56);
}

static void
fill(unsigned char *bytes, const char *name, int region)
{
    for (size_t i = 0; i < SIDE_HALF; i++) {
        bytes[i] = pattern(name, region, i);
    }
}

static bool
is_filled(const unsigned char *bytes, const char *name, int region)
{
    for (size_t i = 0; i < SIDE_HALF; i++) {
        if (bytes[i] != pattern(name, region, i)) {
            return false;
        }
    }
    return true;
}

/* -- Set-up --------------------------------------------------------------- */

static void
check(vnx_status_t status, const vnx_error_t *error)
{
    char text[1024];

    if (status < 0) {
        vnx_error_format(error, text, sizeof text);
        fprintf(stderr, "side: %s\n", text);
        exit(1);
    }
}

/* Memory that peers can map. */
static void *
shared_memory(size_t len)
{
    int fd = memfd_create("region", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0 || ftruncate(fd, (off_t)len) != 0) {
        return MAP_FAILED;
    }
    return mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
}

static void
register_memory(side_t *side, unsigned char *memory)
{
    vnx_error_t error;
    vnx_reg_desc_t row = {
        .desc = {.addr = (uintptr_t)memory, .len = 2 * SIDE_HALF},
    };

    check(vnx_agent_register(side->agent, VNX_MEM_DRAM, &row, 1, NULL, &error),
          &error);
}

static void
make_regions(side_t *side)
{
    side->scratch = calloc(2, SIDE_HALF);
    side->region[0] = calloc(2, SIDE_HALF);
    side->region[1] = shared_memory((size_t)2 * SIDE_HALF);
    if (side->scratch == NULL || side->region[0] == NULL ||
        side->region[1] == MAP_FAILED) {
        perror("side: memory");
        exit(1);
    }
    register_memory(side, side->scratch);
    for (int i = 0; i < SIDE_REGIONS; i++) {
        fill(side->region[i], side->offer.name, i);
        register_memory(side, side->region[i]);
        side->offer.addr[i] = (uintptr_t)side->region[i];
    }
}

static void
make_offer(side_t *side)
{
    vnx_error_t error;
    vnx_bytes_t blob;

    check(vnx_agent_metadata(side->agent, &blob, &error), &error);
    if (blob.len > sizeof side->offer.metadata) {
        fprintf(stderr, "side: %zu bytes of metadata\n", blob.len);
        exit(1);
    }
    memcpy(side->offer.metadata, blob.data, blob.len);
    side->offer.metadata_len = blob.len;
    side->offer.pid = getpid();
    free(blob.data);
}

static void
set_up(side_t *side, const char *name)
{
    vnx_error_t error;

    snprintf(side->offer.name, sizeof side->offer.name, "%s", name);
    check(vnx_agent_create(name, strlen(name), NULL, &side->agent, &error),
          &error);
    check(vnx_agent_create_backend(side->agent, "UCX", NULL, 0, &error),
          &error);
    make_regions(side);
    make_offer(side);
}

/* -- Orders --------------------------------------------------------------- */

static void
report_error(report_t *report, const vnx_error_t *error)
{
    report->done = false;
    vnx_error_format(error, report->failure, sizeof report->failure);
}

static void
fail(report_t *report, const char *what, const char *peer, int region)
{
    report->done = false;
    snprintf(report->failure, sizeof report->failure,
             "%s of region %d of %s has wrong bytes", what, region, peer);
}

/* Copy the value of a string member of a JSON object; "" if it has none. */
static void
copy_member(const char *json, const char *key, char *text_p, size_t size)
{
    char member[64];

    text_p[0] = '\0';
    snprintf(member, sizeof member, "\"%s\": \"", key);
    const char *at = strstr(json, member);
    if (at != NULL) {
        at += strlen(member);
        snprintf(text_p, size, "%.*s", (int)strcspn(at, "\""), at);
    }
}

static void
describe(side_t *side, const offer_t *peer, report_t *report)
{
    vnx_error_t error;
    vnx_bytes_t json;

    vnx_status_t status = vnx_agent_describe(
        side->agent, peer->name, strlen(peer->name), &json, &error);
    if (status != VNX_OK) {
        report_error(report, &error);
        return;
    }
    char *text = strndup(json.data, json.len);
    copy_member(text, "path", report->path, sizeof report->path);
    copy_member(text, "not_shm_because", report->reason,
                sizeof report->reason);
    copy_member(text, "not_mapped_because", report->unmapped,
                sizeof report->unmapped);
    free(text);
    free(json.data);
}

static vnx_status_t
run_xfer(side_t *side, vnx_xfer_t *xfer, vnx_error_t *error)
{
    vnx_status_t status = vnx_xfer_post(xfer, NULL, 0, error);

    if (status == VNX_IN_PROG) {
        status = vnx_agent_wait(side->agent, &xfer, 1, 0, WAIT_NS, error);
    }
    vnx_xfer_abandon(xfer);
    return status;
}

static vnx_status_t
move(side_t *side, vnx_op_t op, const void *local, uint64_t remote,
     const char *peer, vnx_error_t *error)
{
    vnx_desc_t here = {.addr = (uintptr_t)local, .len = SIDE_HALF};
    vnx_desc_t there = {.addr = remote, .len = SIDE_HALF};
    vnx_xfer_t *xfer;

    vnx_status_t status = vnx_xfer_create(
        side->agent, op, VNX_MEM_DRAM, &here, 1, VNX_MEM_DRAM, &there, 1, peer,
        strlen(peer), NULL, 0, NULL, &xfer, error);
    return status == VNX_OK ? run_xfer(side, xfer, error) : status;
}

static void
move_region(side_t *side, const offer_t *peer, int region, report_t *report)
{
    unsigned char *reads = side->scratch, *writes = reads + SIDE_HALF;
    vnx_error_t error;

    memset(reads, 0, SIDE_HALF);
    fill(writes, side->offer.name, region);
    vnx_status_t status =
        move(side, VNX_OP_READ, reads, peer->addr[region], peer->name, &error);
    if (status == VNX_OK) {
        status = move(side, VNX_OP_WRITE, writes,
                      peer->addr[region] + SIDE_HALF, peer->name, &error);
    }
    if (status != VNX_OK) {
        report_error(report, &error);
    } else if (!is_filled(reads, peer->name, region)) {
        fail(report, "READ", peer->name, region);
    }
}

static void
move_all(side_t *side, const offer_t *peer, report_t *report)
{
    for (int i = 0; i < SIDE_REGIONS && report->done; i++) {
        move_region(side, peer, i, report);
    }
}

static void
load(side_t *side, const offer_t *peer, report_t *report)
{
    vnx_error_t error;
    vnx_bytes_t name;

    vnx_agent_remove_peer(side->agent, peer->name, strlen(peer->name), NULL);
    if (vnx_agent_load_metadata(side->agent, peer->metadata,
                                peer->metadata_len, &name, &error) != VNX_OK) {
        report_error(report, &error);
        return;
    }
    free(name.data);
    describe(side, peer, report);
}

static void
check_written(side_t *side, const offer_t *peer, report_t *report)
{
    for (int i = 0; i < SIDE_REGIONS && report->done; i++) {
        if (!is_filled(side->region[i] + SIDE_HALF, peer->name, i)) {
            fail(report, "WRITE", side->offer.name, i);
        }
        memset(side->region[i] + SIDE_HALF, 0, SIDE_HALF);
    }
}

static void
report_call(report_t *report, const char *call, bool done)
{
    report->done = done;
    if (!done) {
        snprintf(report->failure, sizeof report->failure, "%s: %s", call,
                 strerror(errno));
    }
}

static void
peek(const offer_t *peer, report_t *report)
{
    char byte;
    struct iovec local = {&byte, 1};
    struct iovec remote = {(void *)(uintptr_t)peer->addr[0], 1};

    report_call(report, "process_vm_readv",
                process_vm_readv(peer->pid, &local, 1, &remote, 1, 0) == 1);
}

static report_t
follow(side_t *side, const order_t *order)
{
    report_t report = {.done = true};
    const offer_t *peer = &order->peer;

    switch (order->kind) {
    case ORDER_KNOW:
        load(side, peer, &report);
        break;
    case ORDER_LOAD:
        load(side, peer, &report);
        move_all(side, peer, &report);
        break;
    case ORDER_MOVE:
        move_all(side, peer, &report);
        break;
    case ORDER_CHECK:
        check_written(side, peer, &report);
        break;
    case ORDER_PEEK:
        peek(peer, &report);
        break;
    case ORDER_NAME:
        report_call(&report, "prctl",
                    prctl(PR_SET_PTRACER, peer->pid, 0, 0, 0) == 0);
        break;
    case ORDER_WITHDRAW:
        report_call(&report, "prctl", prctl(PR_SET_PTRACER, 0, 0, 0, 0) == 0);
        break;
    }
    return report;
}

int
side_main(const char *name)
{
    side_t side = {0};
    order_t order;

    set_up(&side, name);
    if (send(SIDE_FD, &side.offer, sizeof side.offer, 0) !=
        (ssize_t)sizeof side.offer) {
        return 1;
    }
    while (recv(SIDE_FD, &order, sizeof order, 0) == (ssize_t)sizeof order) {
        report_t report = follow(&side, &order);
        if (send(SIDE_FD, &report, sizeof report, 0) !=
            (ssize_t)sizeof report) {
            return 1;
        }
    }
    vnx_agent_release(side.agent);
    return 0;
}
