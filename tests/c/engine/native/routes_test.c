/*
 * Routes: which transport moves bytes between which memory.  libucp is played
 * by a library that copies with memcpy() and accepts any memory as that of a
 * GPU.
 *
 * The peer "B" is an agent of another process, so it is reached by SHM.  The
 * memory is shared and has the same addresses in both processes, so the fake
 * libucp reaches it, too, if its connection leads to a worker of its own
 * process: B's address is replaced by that.
 */
#include "agent_fixture.h"

#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "engine/native/shm/shm_wire.h"
#include "engine/parts/metadata.h"
#include "fake_ucp_load.h"

#define LEN ((size_t)4 << 20)
#define ROW 4096u
#define ROWS (LEN / ROW)

/* What belongs to whom; ucx_b is CPU memory that only UCX is to know. */
typedef struct arena {
    unsigned char cpu_a[LEN], gpu_a[LEN], cpu_b[LEN], gpu_b[LEN], ucx_b[LEN];
} arena_t;

static arena_t *arena;

static void
fill_arena(void)
{
    fill(arena->cpu_a, LEN, 1);
    fill(arena->gpu_a, LEN, 2);
    fill(arena->cpu_b, LEN, 3);
    fill(arena->gpu_b, LEN, 4);
    fill(arena->ucx_b, LEN, 5);
}

static int
setup(void **state)
{
    (void)state;
    memset((void *)fake, 0, sizeof *fake);
    atomic_store(&fake->cuda, 1);
    fill_arena();
    return 0;
}

#define with_fake(test) \
    cmocka_unit_test_setup_teardown(test, setup, fake_check)

/* A thread of the engine may have the last reference for a moment, and then
 * the agent is closed later; fake_check() needs it closed. */
static void
end_agent(vnx_agent_t *agent)
{
    vnx_agent_close(agent);
    vnx_agent_release(agent);
}

static void
register_mem(vnx_agent_t *agent, vnx_mem_t mem, const void *at)
{
    vnx_reg_desc_t desc = region_of(at, LEN);
    assert_ok(vnx_agent_register(agent, mem, &desc, 1, NULL, e));
}

static void
deregister_mem(vnx_agent_t *agent, vnx_mem_t mem, const void *at)
{
    vnx_reg_desc_t desc = region_of(at, LEN);
    assert_ok(vnx_agent_deregister(agent, mem, &desc, 1, NULL, e));
}

/* -- The peer in another process -------------------------------------------
 */

typedef struct child {
    pid_t pid;
    int to, from;
} child_t;

static void
send_all(int fd, const void *data, size_t len)
{
    if (write(fd, data, len) != (ssize_t)len) {
        _exit(3);
    }
}

static size_t
count_notifs(vnx_agent_t *agent)
{
    size_t count = 0;
    for (vnx_notif_t *chain = vnx_agent_take_notifs(agent); chain != NULL;
         count++) {
        vnx_notif_t *next = chain->next;
        vnx_notif_free(chain);
        chain = next;
    }
    return count;
}

/* A memfd that peers may map. */
static vnxi_map_info_t
make_file(void)
{
    struct stat stat;
    int fd = memfd_create("routes_test", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (fd < 0 || ftruncate(fd, LEN) != 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) != 0 || fstat(fd, &stat) != 0) {
        _exit(4);
    }
    return (vnxi_map_info_t){
        .fd = fd, .st_dev = stat.st_dev, .st_ino = stat.st_ino};
}

/* Commands: c, g and u register CPU, GPU and UCX's memory, C deregisters the
 * first, m writes the metadata, n the number of notifications, f how a new
 * memfd is mapped, q ends. */
static void
be_peer(int in, int out)
{
    vnx_agent_t *agent = NULL;
    vnx_bytes_t blob;
    vnxi_map_info_t file;
    size_t count;
    char command;

    while (read(in, &command, 1) == 1 && command != 'q') {
        agent = agent != NULL ? agent : make_agent("B");
        switch (command) {
        case 'c':
            register_mem(agent, VNX_MEM_DRAM, arena->cpu_b);
            break;
        case 'C':
            deregister_mem(agent, VNX_MEM_DRAM, arena->cpu_b);
            break;
        case 'g':
            register_mem(agent, VNX_MEM_VRAM, arena->gpu_b);
            break;
        case 'u':
            register_mem(agent, VNX_MEM_DRAM, arena->ucx_b);
            break;
        case 'm':
            assert_ok(vnx_agent_metadata(agent, &blob, e));
            send_all(out, &blob.len, sizeof blob.len);
            send_all(out, blob.data, blob.len);
            free(blob.data);
            continue;
        case 'f':
            file = make_file();
            send_all(out, &file, sizeof file);
            continue;
        default:
            count = count_notifs(agent);
            send_all(out, &count, sizeof count);
            continue;
        }
        send_all(out, &command, 1);
    }
    vnx_agent_release(agent);
}

/* The children are forked before this process has threads, and create their
 * agents at their first command. */
#define CHILDREN 24u

static child_t children[CHILDREN];
static unsigned children_used;

static child_t
fork_child(void)
{
    int to[2], from[2];
    child_t child;

    assert_int_equal(pipe(to), 0);
    assert_int_equal(pipe(from), 0);
    child.pid = fork();
    if (child.pid == 0) {
        for (unsigned i = 0; i < CHILDREN; i++) { /* older ones must see EOF */
            if (children[i].pid != 0) {
                close(children[i].to);
                close(children[i].from);
            }
        }
        close(to[1]);
        close(from[0]);
        be_peer(to[0], from[1]);
        _exit(0);
    }
    close(to[0]);
    close(from[1]);
    child.to = to[1];
    child.from = from[0];
    return child;
}

static child_t
start_child(const char *commands)
{
    assert_true(children_used < CHILDREN);
    child_t child = children[children_used++];
    char done;

    for (; *commands != '\0'; commands++) {
        send_all(child.to, commands, 1);
        assert_int_equal(read(child.from, &done, 1), 1);
    }
    return child;
}

static void
tell(const child_t *child, char command)
{
    send_all(child->to, &command, 1);
    assert_int_equal(read(child->from, &command, 1), 1);
}

static void
read_all(int fd, void *data, size_t len)
{
    for (size_t done = 0; done < len;) {
        ssize_t got = read(fd, (char *)data + done, len - done);
        assert_true(got > 0);
        done += (size_t)got;
    }
}

static size_t
notifs_of(const child_t *child)
{
    size_t count;
    send_all(child->to, "n", 1);
    read_all(child->from, &count, sizeof count);
    return count;
}

static vnx_bytes_t
read_metadata(const child_t *child)
{
    vnx_bytes_t blob;
    read_all(child->from, &blob.len, sizeof blob.len);
    blob.data = malloc(blob.len);
    read_all(child->from, blob.data, blob.len);
    return blob;
}

static vnx_bytes_t
metadata_of(const child_t *child)
{
    send_all(child->to, "m", 1);
    return read_metadata(child);
}

/* The connection by UCX; NULL: none. */
static vnxi_md_conn_t *
ucx_conn_of(vnxi_metadata_t *md)
{
    for (size_t i = 0; i < md->conn_count; i++) {
        if (memcmp(md->conns[i].backend.data, "UCX", 3) == 0) {
            return &md->conns[i];
        }
    }
    return NULL;
}

/* B's metadata for this agent: drop the row of ucx_b from the section of SHM,
 * and replace the address of UCX. */
static vnx_bytes_t
change(vnx_agent_t *agent, vnx_bytes_t blob)
{
    vnxi_writer_t writer = {0};
    vnxi_metadata_t md, own;
    vnx_bytes_t changed, mine;

    assert_ok(vnx_agent_metadata(agent, &mine, e));
    assert_ok(vnxi_metadata_parse(mine.data, mine.len, &own, e));
    assert_ok(vnxi_metadata_parse(blob.data, blob.len, &md, e));
    ucx_conn_of(&md)->info = ucx_conn_of(&own)->info;
    for (size_t i = 0; i < md.section_count; i++) {
        vnxi_md_section_t *section = &md.sections[i];
        size_t kept = 0;
        if (memcmp(section->backend.data, "SHM", 3) != 0) {
            continue;
        }
        for (size_t j = 0; j < section->count; j++) {
            if (section->regions[j].addr != (uintptr_t)arena->ucx_b) {
                section->regions[kept++] = section->regions[j];
            }
        }
        section->count = kept;
    }
    vnxi_metadata_write(&writer, &md);
    assert_true(vnxi_writer_take(&writer, &changed.data, &changed.len));
    vnxi_metadata_fini(&md);
    vnxi_metadata_fini(&own);
    free(mine.data);
    free(blob.data);
    return changed;
}

/* Claim that ucx_b is in that file. */
static vnx_bytes_t
forge(vnx_bytes_t blob, const vnxi_map_info_t *file)
{
    vnxi_writer_t writer = {0}, region = {0};
    vnxi_metadata_t md;
    vnx_bytes_t forged;

    vnxi_shm_region_write(&region, file);
    assert_ok(vnxi_metadata_parse(blob.data, blob.len, &md, e));
    for (size_t i = 0; i < md.section_count; i++) {
        for (size_t j = 0; j < md.sections[i].count; j++) {
            vnxi_md_region_t *row = &md.sections[i].regions[j];
            if (memcmp(md.sections[i].backend.data, "SHM", 3) == 0 &&
                row->addr == (uintptr_t)arena->ucx_b) {
                row->public_data = (vnxi_md_bytes_t){region.data, region.len};
            }
        }
    }
    vnxi_metadata_write(&writer, &md);
    assert_true(vnxi_writer_take(&writer, &forged.data, &forged.len));
    vnxi_metadata_fini(&md);
    vnxi_writer_fini(&region);
    free(blob.data);
    return forged;
}

static void
load_blob(vnx_agent_t *agent, vnx_bytes_t blob)
{
    vnx_bytes_t name;
    assert_ok(vnx_agent_load_metadata(agent, blob.data, blob.len, &name, e));
    free(blob.data);
    free(name.data);
}

static void
load(vnx_agent_t *agent, const child_t *child)
{
    load_blob(agent, change(agent, metadata_of(child)));
}

static void
end_child(const child_t *child)
{
    int status;
    send_all(child->to, "q", 1);
    assert_int_equal(waitpid(child->pid, &status, 0), child->pid);
    assert_int_equal(status, 0);
    close(child->to);
    close(child->from);
}

static void
kill_child(const child_t *child)
{
    int status;
    kill(child->pid, SIGKILL);
    assert_int_equal(waitpid(child->pid, &status, 0), child->pid);
    close(child->to);
    close(child->from);
}

/* -- Transfers -------------------------------------------------------------
 */

static vnx_dlist_t *
prepare(vnx_agent_t *agent, const char *peer, vnx_mem_t mem, const void *at)
{
    vnx_strided_desc_t row = {(uintptr_t)at, ROW, 0, ROW, ROWS};
    vnx_dlist_t *list = NULL;
    assert_ok(vnx_dlist_create_strided(agent, peer, strlen(peer), mem, &row, 1,
                                       NULL, &list, e));
    return list;
}

static vnx_xfer_t *
make(vnx_agent_t *agent, vnx_op_t op, vnx_mem_t local_mem, const void *local,
     const char *peer, vnx_mem_t remote_mem, const void *remote)
{
    vnx_dlist_t *left = prepare(agent, "", local_mem, local);
    vnx_dlist_t *right = prepare(agent, peer, remote_mem, remote);
    vnx_xfer_t *xfer = make_xfer(agent, op, left, right, ROWS, NULL);
    vnx_dlist_release(left);
    vnx_dlist_release(right);
    return xfer;
}

/* Move all of a region each way and compare. */
static void
move_both_ways(vnx_agent_t *agent, vnx_mem_t local_mem, unsigned char *local,
               const char *peer, vnx_mem_t remote_mem, unsigned char *remote)
{
    for (unsigned i = 0; i < 2; i++) {
        vnx_op_t op = i == 0 ? VNX_OP_READ : VNX_OP_WRITE;
        vnx_xfer_t *xfer =
            make(agent, op, local_mem, local, peer, remote_mem, remote);
        fill(local, LEN, 10 + i);
        fill(remote, LEN, 20 + i);
        run_xfer(agent, xfer);
        vnx_xfer_abandon(xfer);
        assert_memory_equal(local, remote, LEN);
        unsigned char first[64];
        fill(first, sizeof first, op == VNX_OP_READ ? 20 + i : 10 + i);
        assert_memory_equal(local, first, sizeof first);
    }
}

/* A transfer that uses SHM and UCX: even rows of cpu_a are those of cpu_b, odd
 * ones those of ucx_b. */
static vnx_xfer_t *
make_mixed(vnx_agent_t *agent, vnx_op_t op, const char *notif)
{
    vnx_desc_t *rows = calloc(ROWS, sizeof *rows);
    vnx_dlist_t *left = prepare(agent, "", VNX_MEM_DRAM, arena->cpu_a);
    for (size_t i = 0; i < ROWS; i++) {
        const unsigned char *at = i % 2 == 0 ? arena->cpu_b : arena->ucx_b;
        rows[i] = desc_at(at + i * ROW, ROW);
    }
    vnx_dlist_t *right = prepare_descs(agent, "B", rows, ROWS);
    vnx_xfer_t *xfer = make_xfer(agent, op, left, right, ROWS, notif);
    vnx_dlist_release(left);
    vnx_dlist_release(right);
    free(rows);
    return xfer;
}

static void
check_mixed(void)
{
    for (size_t i = 0; i < ROWS; i++) {
        const unsigned char *at = i % 2 == 0 ? arena->cpu_b : arena->ucx_b;
        assert_memory_equal(arena->cpu_a + i * ROW, at + i * ROW, ROW);
    }
}

static void
hold(fake_ucp_kind_t kind, bool on)
{
    atomic_store(&fake->of[kind].hold, on);
    while (!on && calls->end(kind, 0, 0)) {
    }
}

static int
posts(fake_ucp_kind_t kind)
{
    return atomic_load(&fake->of[kind].posts);
}

/* Post a READ whose UCX part does not end. */
static void
post_held(vnx_xfer_t *xfer)
{
    hold(FAKE_GET, true);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
    AWAIT(calls->held(FAKE_GET) > 0);
}

static void
assert_fails(vnx_agent_t *agent, vnx_xfer_t *xfer, vnx_status_t status)
{
    vnx_error_t error;
    assert_ok(vnx_agent_wait(agent, &xfer, 1, VNX_WAIT_NO_CHECK,
                             vnx_test_limit(30), e));
    assert_int_equal(vnx_xfer_status(xfer, &error), status);
}

/* -- Descriptions ----------------------------------------------------------
 */

static void
check_described(vnx_agent_t *agent, const char *peer, const char *part)
{
    vnx_bytes_t json;
    assert_ok(vnx_agent_describe(agent, peer, strlen(peer), &json, e));
    if (strstr(json.data, part) == NULL) {
        fail_msg("'%s' is not in %s", part, (const char *)json.data);
    }
    free(json.data);
}

static uint64_t
generation_of(vnx_agent_t *agent, const char *peer)
{
    vnx_bytes_t json;
    assert_ok(vnx_agent_describe(agent, peer, strlen(peer), &json, e));
    const char *at = strstr(json.data, "\"generation\": ");
    assert_non_null(at);
    uint64_t generation = strtoull(at + 14, NULL, 10);
    free(json.data);
    return generation;
}

/* -- One peer, several transports ------------------------------------------
 */

static void
test_routes_move_cpu_memory_by_shm_and_gpu_memory_by_ucx(void **state)
{
    child_t child = start_child("cg");
    vnx_agent_t *agent = make_agent("A");
    (void)state;

    register_mem(agent, VNX_MEM_DRAM, arena->cpu_a);
    register_mem(agent, VNX_MEM_VRAM, arena->gpu_a);
    load(agent, &child);
    move_both_ways(agent, VNX_MEM_DRAM, arena->cpu_a, "B", VNX_MEM_DRAM,
                   arena->cpu_b);
    assert_int_equal(posts(FAKE_GET) + posts(FAKE_PUT), 0);
    move_both_ways(agent, VNX_MEM_VRAM, arena->gpu_a, "B", VNX_MEM_VRAM,
                   arena->gpu_b);
    assert_true(posts(FAKE_GET) > 0 && posts(FAKE_PUT) > 0);

    /* Both at the same time. */
    vnx_xfer_t *both[] = {make(agent, VNX_OP_READ, VNX_MEM_DRAM, arena->cpu_a,
                               "B", VNX_MEM_DRAM, arena->cpu_b),
                          make(agent, VNX_OP_READ, VNX_MEM_VRAM, arena->gpu_a,
                               "B", VNX_MEM_VRAM, arena->gpu_b)};
    fill_arena();
    for (int i = 0; i < 2; i++) {
        assert_int_equal(vnx_xfer_post(both[i], NULL, 0, NULL), VNX_IN_PROG);
    }
    assert_ok(vnx_agent_wait(agent, both, 2, 0, vnx_test_limit(30), e));
    assert_memory_equal(arena->cpu_a, arena->cpu_b, LEN);
    assert_memory_equal(arena->gpu_a, arena->gpu_b, LEN);
    assert_string_equal(vnx_xfer_backend(both[0]), "SHM");
    assert_string_equal(vnx_xfer_backend(both[1]), "UCX");
    vnx_xfer_abandon(both[0]);
    vnx_xfer_abandon(both[1]);

    check_described(agent, "B", "\"path\": \"SHM\"");
    check_described(
        agent, "B",
        "{\"local\": \"DRAM\", \"remote\": \"DRAM\", \"transport\": \"SHM\", "
        "\"not\": {\"process\": \"the peer is not an agent of this "
        "process\"}}");
    check_described(
        agent, "B",
        "{\"local\": \"VRAM\", \"remote\": \"DRAM\", \"transport\": \"UCX\", "
        "\"not\": {\"process\": \"the peer is not an agent of this "
        "process\", \"SHM\": \"it moves CPU memory only\", \"CUDA\": \"the "
        "program does not use CUDA\"}}");
    end_agent(agent);
    end_child(&child);
}

/* GPU memory here, CPU memory there, and the other way round. */
static void
test_routes_connect_gpu_memory_with_cpu_memory(void **state)
{
    child_t child = start_child("c");
    vnx_agent_t *agent = make_agent("A"), *near = make_agent("near");
    (void)state;

    register_mem(agent, VNX_MEM_DRAM, arena->cpu_a);
    register_mem(agent, VNX_MEM_VRAM, arena->gpu_a);
    load(agent, &child);
    move_both_ways(agent, VNX_MEM_VRAM, arena->gpu_a, "B", VNX_MEM_DRAM,
                   arena->cpu_b);

    /* In this process; its own regions are used. */
    register_mem(near, VNX_MEM_DRAM, arena->ucx_b);
    load_peer(agent, near);
    move_both_ways(agent, VNX_MEM_VRAM, arena->gpu_a, "near", VNX_MEM_DRAM,
                   arena->ucx_b);
    register_mem(near, VNX_MEM_VRAM, arena->gpu_b);
    load_peer(agent, near);
    move_both_ways(agent, VNX_MEM_DRAM, arena->cpu_a, "near", VNX_MEM_VRAM,
                   arena->gpu_b);
    move_both_ways(agent, VNX_MEM_VRAM, arena->gpu_a, "near", VNX_MEM_VRAM,
                   arena->gpu_b);
    check_described(agent, "near", "\"path\": \"process\"");

    /* Within the agent. */
    move_both_ways(agent, VNX_MEM_VRAM, arena->gpu_a, "A", VNX_MEM_DRAM,
                   arena->cpu_a);
    end_agent(agent);
    end_agent(near);
    end_child(&child);
}

/* A deregistration in this process is known at once on every route. */
static void
test_routes_of_a_deregistered_region_nearby_are_gone(void **state)
{
    vnx_agent_t *agent = make_agent("A"), *near = make_agent("near");
    vnx_error_t error;
    (void)state;

    register_mem(agent, VNX_MEM_VRAM, arena->gpu_a);
    for (int i = 0; i < 100; i++) { /* keys of gone regions do not pile up */
        register_mem(near, VNX_MEM_VRAM, arena->gpu_b);
        load_peer(agent, near);
        vnx_xfer_t *xfer = make(agent, VNX_OP_READ, VNX_MEM_VRAM, arena->gpu_a,
                                "near", VNX_MEM_VRAM, arena->gpu_b);
        run_xfer(agent, xfer);
        deregister_mem(near, VNX_MEM_VRAM, arena->gpu_b);
        assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error),
                         VNX_ERR_NOT_FOUND);
        vnx_xfer_abandon(xfer);
    }
    assert_in_range(fake->keys, 0, 64);
    end_agent(agent);
    end_agent(near);
}

/* Memory of a new kind, there and here, needs no new peer, and lists stay
 * valid. */
static void
test_routes_follow_memory_registered_later(void **state)
{
    child_t child = start_child("c");
    vnx_agent_t *agent = make_agent("A");
    (void)state;

    register_mem(agent, VNX_MEM_DRAM, arena->cpu_a);
    load(agent, &child);
    uint64_t generation = generation_of(agent, "B");
    vnx_xfer_t *before = make(agent, VNX_OP_READ, VNX_MEM_DRAM, arena->cpu_a,
                              "B", VNX_MEM_DRAM, arena->cpu_b);
    run_xfer(agent, before);
    tell(&child, 'g');
    load(agent, &child);
    assert_int_equal(generation_of(agent, "B"), generation);
    move_both_ways(agent, VNX_MEM_DRAM, arena->cpu_a, "B", VNX_MEM_VRAM,
                   arena->gpu_b);
    register_mem(agent, VNX_MEM_VRAM, arena->gpu_a);
    move_both_ways(agent, VNX_MEM_VRAM, arena->gpu_a, "B", VNX_MEM_VRAM,
                   arena->gpu_b);
    move_both_ways(agent, VNX_MEM_VRAM, arena->gpu_a, "B", VNX_MEM_DRAM,
                   arena->cpu_b);
    fill_arena();
    run_xfer(agent, before);
    assert_memory_equal(arena->cpu_a, arena->cpu_b, LEN);
    assert_int_equal(generation_of(agent, "B"), generation);
    vnx_xfer_abandon(before);
    end_agent(agent);
    end_child(&child);
}

/* For long enough that the thread of the hub leaves reading to the pollers,
 * and goes on for 2 ms after the last one. */
static void
poll_often(vnx_agent_t *agent)
{
    uint64_t end = vnxi_clock_ns() + 30000000;

    while (vnxi_clock_ns() < end) {
        assert_null(vnx_agent_take_notifs(agent));
    }
}

/* B's message about the first registration is still unread when the metadata
 * with the second one is loaded.  It must not end transfers. */
static void
test_routes_last_when_memory_is_registered_again(void **state)
{
    child_t child = start_child("c");
    vnx_agent_t *agent = make_agent("A");
    (void)state;

    register_mem(agent, VNX_MEM_DRAM, arena->cpu_a);
    load(agent, &child);
    for (unsigned round = 0; round < 30; round++) {
        char done[2];
        poll_often(agent);
        send_all(child.to, "Ccm", 3);
        read_all(child.from, done, 2);
        load_blob(agent, change(agent, read_metadata(&child)));
        vnx_xfer_t *xfer = make(agent, VNX_OP_READ, VNX_MEM_DRAM, arena->cpu_a,
                                "B", VNX_MEM_DRAM, arena->cpu_b);
        run_xfer(agent, xfer);
        vnx_xfer_abandon(xfer);
    }
    end_agent(agent);
    end_child(&child);
}

/* B's ucx_b is known by UCX alone, and B has confirmed it.  Then forged
 * metadata says that it is in a file that can be mapped.  The region must be
 * confirmed again, or A would use B's address in its own memory. */
static void
test_routes_are_not_added_by_forged_metadata(void **state)
{
    child_t child = start_child("cu");
    vnx_agent_t *agent = make_agent("A");
    vnxi_map_info_t file;
    vnx_dlist_t *right = NULL;
    vnx_xfer_t *xfer = NULL;
    vnx_error_t error = {0};
    (void)state;

    register_mem(agent, VNX_MEM_DRAM, arena->cpu_a);
    load(agent, &child);
    move_both_ways(agent, VNX_MEM_DRAM, arena->cpu_a, "B", VNX_MEM_DRAM,
                   arena->ucx_b);
    send_all(child.to, "f", 1);
    read_all(child.from, &file, sizeof file);
    load_blob(agent, forge(metadata_of(&child), &file));

    vnx_dlist_t *left = prepare(agent, "", VNX_MEM_DRAM, arena->cpu_a);
    vnx_strided_desc_t rows = {(uintptr_t)arena->ucx_b, ROW, 0, ROW, ROWS};
    vnx_status_t status = vnx_dlist_create_strided(
        agent, "B", 1, VNX_MEM_DRAM, &rows, 1, NULL, &right, &error);
    if (status == VNX_OK) { /* B has not answered yet */
        xfer = make_xfer(agent, VNX_OP_READ, left, right, ROWS, NULL);
        status = vnx_xfer_post(xfer, NULL, 0, &error);
        if (status >= 0) {
            assert_fails(agent, xfer, VNX_ERR_NOT_FOUND);
        } else {
            assert_int_equal(status, VNX_ERR_NOT_FOUND);
        }
        vnx_xfer_abandon(xfer);
        vnx_dlist_release(right);
    } else {
        assert_int_equal(status, VNX_ERR_NOT_FOUND);
    }
    vnx_dlist_release(left);
    end_agent(agent);
    end_child(&child);
}

static void
test_routes_missing_are_explained(void **state)
{
    const vnx_agent_config_t config = {.size = sizeof config,
                                       .engine = "native"};
    vnx_agent_t *agent = make_agent("A"), *near = NULL;
    vnx_xfer_t *xfer;
    vnx_error_t error;
    (void)state;

    assert_ok(vnx_agent_create("near", 4, &config, &near, e));
    assert_ok(vnx_agent_create_backend(near, "SHM", NULL, 0, e));
    register_mem(agent, VNX_MEM_VRAM, arena->gpu_a);
    register_mem(near, VNX_MEM_DRAM, arena->cpu_b);
    load_peer(agent, near);
    vnx_dlist_t *left = prepare(agent, "", VNX_MEM_VRAM, arena->gpu_a);
    vnx_dlist_t *right = prepare(agent, "near", VNX_MEM_DRAM, arena->cpu_b);
    const uint64_t row = 7;
    const vnx_indices_t one = {
        .data = &row, .count = 1, .type = VNX_INDEX_U64};
    assert_int_equal(vnx_xfer_create_prepped(agent, VNX_OP_READ, left, one,
                                             right, one, NULL, 0, false, &xfer,
                                             &error),
                     VNX_ERR_NOT_SUPPORTED);
    assert_string_equal(error.operation, "vnx_xfer_create_prepped");
    assert_string_equal(error.peer, "near");
    assert_int_equal(error.row, 0);
    assert_int_equal(error.addr, (uintptr_t)arena->cpu_b + 7 * ROW);
    assert_string_equal(
        error.cause,
        "no transport moves bytes between VRAM memory of this agent and DRAM "
        "memory of the peer: process: it copies CPU memory only; SHM: the "
        "peer is not a vllm_nixl agent; CUDA: the program does not use CUDA; "
        "UCX: the peer does not offer UCX");
    vnx_dlist_release(left);
    vnx_dlist_release(right);
    end_agent(agent);
    end_agent(near);
}

/* -- One transfer, two routes ----------------------------------------------
 */

typedef struct scene {
    child_t child;
    vnx_agent_t *agent;
} scene_t;

static scene_t
scene_open(void)
{
    scene_t s = {.child = start_child("cu")};
    s.agent = make_agent("A");
    register_mem(s.agent, VNX_MEM_DRAM, arena->cpu_a);
    load(s.agent, &s.child);
    return s;
}

static void
scene_close(scene_t *s)
{
    hold(FAKE_GET, false);
    end_agent(s->agent);
    end_child(&s->child);
}

static void
test_routes_of_one_transfer_move_every_byte(void **state)
{
    scene_t s = scene_open();
    (void)state;

    for (int i = 0; i < 10; i++) {
        vnx_op_t op = i % 2 == 0 ? VNX_OP_READ : VNX_OP_WRITE;
        vnx_xfer_t *xfer = make_mixed(s.agent, op, "moved");
        fill_arena();
        run_xfer(s.agent, xfer);
        check_mixed();
        AWAIT(notifs_of(&s.child) == 1);
        fill_arena();
        run_xfer(s.agent, xfer); /* again */
        check_mixed();
        AWAIT(notifs_of(&s.child) == 1);
        vnx_xfer_abandon(xfer);
    }
    assert_true(posts(FAKE_GET) > 0 && posts(FAKE_PUT) > 0);
    check_described(s.agent, "B", "\"transfers\": 20,");
    scene_close(&s);
}

static void
test_routes_in_flight_end_with_a_killed_peer(void **state)
{
    scene_t s = scene_open();
    vnx_agent_t *near = make_agent("near");
    vnx_error_t error;
    unsigned char *seen = malloc(LEN);
    (void)state;

    vnx_xfer_t *xfer = make_mixed(s.agent, VNX_OP_READ, NULL);
    post_held(xfer);
    kill_child(&s.child);
    assert_fails(s.agent, xfer, VNX_ERR_REMOTE_DISCONNECT);
    assert_int_equal(stats_of(s.agent).xfers_failed, 1);
    memcpy(seen, arena->cpu_a, LEN);
    hold(FAKE_GET, false); /* nothing is left that could land */
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error),
                     VNX_ERR_REMOTE_DISCONNECT);
    usleep(50000);
    assert_memory_equal(seen, arena->cpu_a, LEN);
    assert_int_equal(stats_of(s.agent).peers_lost, 1);
    vnx_xfer_abandon(xfer);

    register_mem(near, VNX_MEM_DRAM, arena->cpu_b);
    load_peer(s.agent, near);
    move_both_ways(s.agent, VNX_MEM_DRAM, arena->cpu_a, "near", VNX_MEM_DRAM,
                   arena->cpu_b);
    free(seen);
    end_agent(s.agent);
    end_agent(near);
}

static void
test_routes_in_flight_are_cancelled(void **state)
{
    scene_t s = scene_open();
    bool stopped = false;
    (void)state;

    vnx_xfer_t *xfer = make_mixed(s.agent, VNX_OP_READ, "never");
    post_held(xfer);
    assert_ok(vnx_xfer_cancel(xfer, &stopped, e));
    assert_true(stopped);
    assert_int_equal(vnx_xfer_status(xfer, NULL), VNX_ERR_CANCELED);
    hold(FAKE_GET, false);
    assert_int_equal(notifs_of(&s.child), 0);
    fill_arena();
    run_xfer(s.agent, xfer); /* it can be posted again */
    check_mixed();
    vnx_xfer_abandon(xfer);
    scene_close(&s);
}

static void
test_routes_in_flight_end_when_our_region_goes(void **state)
{
    scene_t s = scene_open();
    (void)state;

    vnx_xfer_t *xfer = make_mixed(s.agent, VNX_OP_READ, NULL);
    post_held(xfer);
    deregister_mem(s.agent, VNX_MEM_DRAM, arena->cpu_a);
    /* It has ended before the memory was given back. */
    assert_int_equal(vnx_xfer_status(xfer, NULL), VNX_ERR_NOT_FOUND);
    vnx_xfer_abandon(xfer);
    scene_close(&s);
}

static void
test_routes_in_flight_end_when_the_peers_region_goes(void **state)
{
    scene_t s = scene_open();
    (void)state;

    vnx_xfer_t *xfer = make_mixed(s.agent, VNX_OP_READ, NULL);
    post_held(xfer);
    tell(&s.child, 'C');
    usleep(20000); /* the message is on its way */
    hold(FAKE_GET, false);
    assert_ok(vnx_agent_wait(s.agent, &xfer, 1, VNX_WAIT_NO_CHECK,
                             vnx_test_limit(30), e));
    vnx_status_t status = vnx_xfer_status(xfer, NULL);
    assert_true(status == VNX_ERR_NOT_FOUND || status == VNX_OK);
    AWAIT(vnx_xfer_post(xfer, NULL, 0, NULL) == VNX_ERR_NOT_FOUND);
    vnx_xfer_abandon(xfer);
    scene_close(&s);
}

static void
test_routes_in_flight_end_with_the_agent(void **state)
{
    scene_t s = scene_open();
    (void)state;

    vnx_xfer_t *xfer = make_mixed(s.agent, VNX_OP_READ, NULL);
    post_held(xfer);
    vnx_agent_close(s.agent);
    assert_true(vnx_xfer_status(xfer, NULL) < 0);
    vnx_xfer_abandon(xfer);
    scene_close(&s);
}

/* Transfers over it fail with its cause; the others go on. */
static void
test_routes_survive_the_failure_of_one(void **state)
{
    scene_t s = scene_open();
    vnx_error_t error;
    (void)state;

    vnx_xfer_t *xfer = make_mixed(s.agent, VNX_OP_READ, NULL);
    post_held(xfer);
    calls->break_eps(-25);
    assert_ok(vnx_agent_wait(s.agent, &xfer, 1, VNX_WAIT_NO_CHECK,
                             vnx_test_limit(30), e));
    assert_int_equal(vnx_xfer_status(xfer, &error), VNX_ERR_REMOTE_DISCONNECT);
    assert_string_equal(error.peer, "B");
    hold(FAKE_GET, false);
    assert_int_equal(stats_of(s.agent).peers_lost, 0);
    check_described(s.agent, "B", "\"state\": \"connected\"");
    move_both_ways(s.agent, VNX_MEM_DRAM, arena->cpu_a, "B", VNX_MEM_DRAM,
                   arena->cpu_b);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
    assert_fails(s.agent, xfer, VNX_ERR_REMOTE_DISCONNECT);
    vnx_xfer_abandon(xfer);
    scene_close(&s);
}

/* The parts end in any order, and while others are being started. */
static void
test_routes_of_one_transfer_end_once(void **state)
{
    scene_t s = scene_open();
    (void)state;

    vnx_xfer_t *xfer = make_mixed(s.agent, VNX_OP_READ, NULL);
    for (int i = 0; i < 200; i++) {
        atomic_store(&fake->of[FAKE_GET].at_once, i % 2 == 0);
        if (i % 5 == 4) {
            atomic_store(&fake->of[FAKE_GET].failure, -3);
            atomic_store(&fake->of[FAKE_GET].fail_post, -1);
        }
        assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
        if (i % 7 == 6) {
            bool stopped;
            vnx_xfer_cancel(xfer, &stopped, NULL);
        }
        assert_ok(vnx_agent_wait(s.agent, &xfer, 1, VNX_WAIT_NO_CHECK,
                                 vnx_test_limit(30), e));
        vnx_status_t status = vnx_xfer_status(xfer, NULL);
        assert_true(i % 7 == 6 ? status <= 0 : (status < 0) == (i % 5 == 4));
        atomic_store(&fake->of[FAKE_GET].fail_post, 0);
    }
    atomic_store(&fake->of[FAKE_GET].at_once, false);
    vnx_xfer_abandon(xfer);
    scene_close(&s);
}

/* Load the child, and make a READ of its GPU memory, which UCX moves. */
static vnx_xfer_t *
make_by_ucx(vnx_agent_t *agent, const child_t *child)
{
    register_mem(agent, VNX_MEM_VRAM, arena->gpu_a);
    load(agent, child);
    return make(agent, VNX_OP_READ, VNX_MEM_VRAM, arena->gpu_a, "B",
                VNX_MEM_VRAM, arena->gpu_b);
}

/* The engine has the last reference to the transfer and, with it, to the
 * agent: closing the agent must not wait for the callback that drops it. */
static void
test_routes_engine_drops_the_last_reference(void **state)
{
    child_t child = start_child("g");
    vnx_agent_t *agent = make_agent("A");
    (void)state;

    vnx_xfer_t *xfer = make_by_ucx(agent, &child);
    post_held(xfer);
    vnx_xfer_drop(xfer);
    vnx_agent_release(agent);
    hold(FAKE_GET, false);
    AWAIT(atomic_load(&fake->contexts) == 0);
    assert_memory_equal(arena->gpu_a, arena->gpu_b, LEN);
    end_child(&child);
}

/* The part that UCX moves ends on UCX's thread, which stops the deadline. */
static void
test_routes_in_flight_end_at_the_timeout(void **state)
{
    child_t child = start_child("g");
    vnx_agent_t *agent = make_agent("A");
    (void)state;

    vnx_xfer_t *xfer = make_by_ucx(agent, &child);
    assert_int_equal(vnx_xfer_post_within(xfer, NULL, 0, SECONDS(30), NULL),
                     VNX_IN_PROG);
    assert_ok(vnx_agent_wait(agent, &xfer, 1, 0, vnx_test_limit(30), e));
    assert_memory_equal(arena->gpu_a, arena->gpu_b, LEN);

    hold(FAKE_GET, true);
    assert_int_equal(vnx_xfer_post_within(xfer, NULL, 0, 1000000, NULL),
                     VNX_IN_PROG);
    assert_fails(agent, xfer, VNX_ERR_TIMEOUT);
    hold(FAKE_GET, false);
    assert_ok(vnx_xfer_release(xfer, e));
    end_agent(agent);
    end_child(&child);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        with_fake(test_routes_move_cpu_memory_by_shm_and_gpu_memory_by_ucx),
        with_fake(test_routes_connect_gpu_memory_with_cpu_memory),
        with_fake(test_routes_of_a_deregistered_region_nearby_are_gone),
        with_fake(test_routes_follow_memory_registered_later),
        with_fake(test_routes_last_when_memory_is_registered_again),
        with_fake(test_routes_are_not_added_by_forged_metadata),
        with_fake(test_routes_missing_are_explained),
        with_fake(test_routes_of_one_transfer_move_every_byte),
        with_fake(test_routes_in_flight_end_with_a_killed_peer),
        with_fake(test_routes_in_flight_are_cancelled),
        with_fake(test_routes_in_flight_end_at_the_timeout),
        with_fake(test_routes_in_flight_end_when_our_region_goes),
        with_fake(test_routes_in_flight_end_when_the_peers_region_goes),
        with_fake(test_routes_in_flight_end_with_the_agent),
        with_fake(test_routes_survive_the_failure_of_one),
        with_fake(test_routes_of_one_transfer_end_once),
        with_fake(test_routes_engine_drops_the_last_reference),
    };
    if (fake_load() != 0) {
        return 1;
    }
    arena = mmap(NULL, sizeof *arena, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    assert_true(arena != MAP_FAILED);
    atomic_store(&fake->cuda, 1); /* for the children */
    for (unsigned i = 0; i < CHILDREN; i++) {
        children[i] = fork_child();
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
