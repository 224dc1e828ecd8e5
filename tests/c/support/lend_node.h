/*
 * For tests of agents that lie about GPU memory (lend_wire.h), on the fake
 * libcuda.so.1.
 *
 * The lying owner is the test program once more: a node of links that
 * publishes regions of real memory as agent B, and answers questions as the
 * test tells it.  The lying asker is a node of this process with a link to
 * agent A.
 */
#ifndef LEND_NODE_H
#define LEND_NODE_H

#include "gpu_pair.h"
#include "link_node.h"

#include <sys/mman.h>

#include "engine/native/cuda/lend_wire.h"
#include "engine/native/identity.h"
#include "engine/parts/metadata.h"

/* Until a condition holds, or for too long. */
#define WAIT_UNTIL(condition)                       \
    for (int waits_ = 0; !(condition); wait_ms()) { \
        if (++waits_ == 20000) {                    \
            fail_msg("not %s", #condition);         \
        }                                           \
    }

/* -- The owner: its process ------------------------------------------------
 */

#define LIAR_REGIONS_MAX 8

/* What it publishes. */
typedef struct liar_memory {
    uint64_t at[LIAR_REGIONS_MAX]; /* regions of GPU memory */
    size_t count;
    uint64_t size;  /* of each */
    uint8_t flags;  /* of each, as in cuda.c */
    uint64_t cpu;   /* a region of CPU memory of the same size; 0: none */
    size_t md_size; /* of the metadata, which follows */
} liar_memory_t;

static inline void
liar_say(node_t *node, uint64_t asker, const vnxi_lend_t *message, int *fds,
         size_t fd_count)
{
    vnxi_writer_t writer = {0};

    vnxi_lend_write(&writer, message);
    const vnxi_control_t control = {writer.data, writer.len, fds, fd_count,
                                    false};
    vnxi_hub_send_control(node->hub, asker, "CUDA", &control, NULL);
    vnxi_writer_fini(&writer);
}

/* A message of a type that has a status and its cause. */
static inline void
liar_say_status(node_t *node, uint64_t asker, vnxi_lend_type_t type,
                uint64_t number, vnx_status_t status, const char *cause)
{
    liar_say(node, asker,
             &(vnxi_lend_t){.type = type,
                            .loan = number,
                            .status = (uint32_t)-status,
                            .cause = cause,
                            .count = strlen(cause)},
             NULL, 0);
}

/* Descriptors of other things than memory that can be shared. */
static inline int
liar_other_fd(unsigned kind)
{
    int fd = kind == 0   ? memfd_create("not GPU memory", MFD_CLOEXEC)
             : kind == 1 ? socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)
                         : eventfd(0, EFD_CLOEXEC);
    if (kind == 0 && ftruncate(fd, CHUNK + 4096) != 0) {
        abort();
    }
    return vnxi_fork_fd_own(fd);
}

static inline void
liar_write_metadata(const node_t *node, const liar_memory_t *memory,
                    vnxi_writer_t *blob)
{
    unsigned char data[3 + sizeof(vnxi_cu_uuid_t)] = {1, 0, memory->flags};
    vnxi_writer_t shm = {0}, identity = {0}, cpu_data = {0};
    vnxi_identity_t who = {.epoch = 1};
    vnxi_md_region_t regions[LIAR_REGIONS_MAX];
    vnxi_cu_uuid_t uuid;

    CU_OK(cu.cuDeviceGetUuid_v2(&uuid, 0));
    memcpy(data + 3, &uuid, sizeof uuid);
    memcpy(who.instance, node->instance, sizeof who.instance);
    vnxi_identity_write(&identity, &who);
    vnxi_shm_info_write(&shm, &node->info);
    vnxi_shm_region_write(&cpu_data, &VNXI_MAP_INFO_NONE);
    for (size_t i = 0; i < memory->count; i++) {
        regions[i] = (vnxi_md_region_t){
            memory->at[i], memory->size, 0, {data, sizeof data}};
    }
    vnxi_md_region_t cpu = {
        memory->cpu, memory->size, 0, {cpu_data.data, cpu_data.len}};
    vnxi_md_conn_t conns[] = {{{"CUDA", 4}, {"\1\0", 2}},
                              {{"SHM", 3}, {shm.data, shm.len}},
                              {{"VNX", 3}, {identity.data, identity.len}}};
    vnxi_md_section_t sections[] = {
        {{"CUDA", 4}, VNX_MEM_VRAM, regions, memory->count},
        {{"SHM", 3}, VNX_MEM_DRAM, &cpu, 1}};
    vnxi_metadata_write(
        blob, &(vnxi_metadata_t){.agent = {"B", 1},
                                 .conns = conns,
                                 .conn_count = 3,
                                 .sections = sections,
                                 .section_count = memory->cpu != 0 ? 2 : 1});
    vnxi_writer_fini(&shm);
    vnxi_writer_fini(&identity);
    vnxi_writer_fini(&cpu_data);
}

/* Tell the test what there is. */
static inline void
liar_publish(int fd, const node_t *node, liar_memory_t memory)
{
    vnxi_writer_t blob = {0};

    liar_write_metadata(node, &memory, &blob);
    memory.md_size = blob.len;
    transact(fd, &memory, sizeof memory, true);
    transact(fd, blob.data, blob.len, true);
    vnxi_writer_fini(&blob);
}

/* -- The owner: the test's side --------------------------------------------
 */

static pid_t liar_pid;
static int to_liar;
static liar_memory_t theirs __attribute__((unused));
static void *liar_blob;

static inline void
start_liar(void)
{
    liar_pid = start_program("--liar", &to_liar);
    assert_true(transact(to_liar, &theirs, sizeof theirs, false));
    liar_blob = malloc(theirs.md_size);
    assert_true(transact(to_liar, liar_blob, theirs.md_size, false));
}

static inline void
end_liar(void)
{
    int status = 0;

    close(to_liar);
    free(liar_blob);
    assert_int_equal(waitpid(liar_pid, &status, 0), liar_pid);
    assert_int_equal(status, 0);
}

static inline void
load_liar(void)
{
    vnx_bytes_t name;
    assert_ok(vnx_agent_load_metadata(a, liar_blob, theirs.md_size, &name, e));
    free(name.data);
}

static inline void
check_error(const char *what, vnx_status_t status, const vnx_error_t *error,
            vnx_status_t expected, const char *cause)
{
    if (status != expected ||
        (status < 0 && strstr(error->cause, cause) == NULL)) {
        fail_msg("%s: %d '%s', not %d with '%s'", what, (int)status,
                 status < 0 ? error->cause : "", (int)expected, cause);
    }
}

/* -- The asker -------------------------------------------------------------
 */

typedef struct asker asker_t;

/* A node with a link to agent A. */
struct asker {
    node_t node; /* first */
    vnxi_link_t *link;
    /* Gets the descriptors of an answer, instead of their being closed;
     * node.lock is held.  NULL: none wants them. */
    void (*on_message)(asker_t *asker, const vnxi_lend_t *message,
                       const vnxi_control_t *control);
    /* Of the answers; node.lock. */
    size_t answers[VNXI_LEND_MOVED + 1]; /* by type */
    size_t fds;
    vnxi_lend_t last;
    vnxi_lend_piece_t first; /* of the last LENT */
    char cause[VNX_ERROR_CAUSE_MAX];
};

static inline void
asker_on_answer(node_t *node, uint64_t unused, const vnxi_control_t *control)
{
    asker_t *asker = (asker_t *)node;
    vnxi_lend_t message;

    (void)unused;
    pthread_mutex_lock(&node->lock);
    bool is_good = vnxi_lend_read(control->data, control->len, &message);
    if (is_good) {
        asker->answers[message.type]++;
        asker->fds += control->fd_count;
        asker->last = message;
        if (message.type == VNXI_LEND_LENT) {
            asker->first = vnxi_lend_piece(&message, 0);
        }
        if (message.cause != NULL) {
            snprintf(asker->cause, sizeof asker->cause, "%.*s",
                     (int)message.count, message.cause);
        }
    } else {
        node->account.bad++;
    }
    if (is_good && asker->on_message != NULL) {
        asker->on_message(asker, &message, control);
    } else {
        vnxi_fork_fds_close(control->fds, control->fd_count);
    }
    pthread_cond_broadcast(&node->changed);
    pthread_mutex_unlock(&node->lock);
}

static inline void
asker_open(asker_t *asker)
{
    vnxi_metadata_t md;
    vnxi_shm_info_t info = {0};
    vnxi_identity_t identity;
    vnx_bytes_t blob;

    memset(asker, 0, sizeof *asker);
    assert_int_equal(node_init_for(&asker->node, "asker", asker_on_answer),
                     VNX_OK);
    assert_ok(vnx_agent_metadata(a, &blob, e));
    assert_ok(vnxi_metadata_parse(blob.data, blob.len, &md, e));
    for (size_t i = 0; i < md.conn_count; i++) {
        vnxi_md_bytes_t found = md.conns[i].info;
        if (vnxi_md_is_named(md.conns[i].backend, "SHM")) {
            assert_ok(vnxi_shm_info_read(found.data, found.len, &info, e));
        }
        if (vnxi_md_is_named(md.conns[i].backend, "VNX")) {
            assert_ok(vnxi_identity_read(found.data, found.len, &identity, e));
        }
    }
    memcpy(info.instance, identity.instance, sizeof info.instance);
    node_note_name(&info, "A");
    asker->link = node_open(&asker->node, &info);
    vnxi_metadata_fini(&md);
    free(blob.data);
}

static inline void
asker_close(asker_t *asker)
{
    assert_int_equal(node_look(&asker->node).bad, 0);
    vnxi_link_release(asker->link);
    node_fini(&asker->node);
}

static inline void
asker_send(asker_t *asker, const void *data, size_t len)
{
    const vnxi_control_t control = {.data = data, .len = len};
    assert_ok(vnxi_link_send_control(asker->link, "CUDA", &control, e));
}

static inline void
asker_say(asker_t *asker, const vnxi_lend_t *message)
{
    vnxi_writer_t writer = {0};

    vnxi_lend_write(&writer, message);
    asker_send(asker, writer.data, writer.len);
    vnxi_writer_fini(&writer);
}

/* A loan or a window. */
static inline void
asker_return(asker_t *asker, uint64_t number)
{
    asker_say(asker,
              &(vnxi_lend_t){.type = VNXI_LEND_RETURNED, .loan = number});
}

/* Until so many messages of that type have come. */
static inline void
asker_wait(asker_t *asker, vnxi_lend_type_t type, size_t count)
{
    assert_true(node_wait(&asker->node, &asker->answers[type], count));
}

static inline vnx_desc_t
whole(const block_t *block)
{
    return (vnx_desc_t){block->addr, block->size, 0};
}

/* A thread, or a call. */
static inline void *
deregister_ours(void *arg)
{
    const block_t *block = arg;
    vnx_reg_desc_t desc = {.desc = whole(block)};
    assert_ok(vnx_agent_deregister(a, block->mem, &desc, 1, NULL, e));
    return NULL;
}

/* -- Descriptors of this process --------------------------------------------
 */

static size_t fds_before;

/* Those that a process keeps once it has had an agent, which may be freed a
 * moment after it was closed. */
static inline void
note_fds(void)
{
    size_t last = 0;

    for (int i = 0; i < 100 && (i < 2 || fds_before != last); i++) {
        last = fds_before;
        a = make_agent("A");
        block_t ours = new_ours(LEGACY, MIB);
        end_ours(&ours);
        vnx_agent_close(a);
        vnx_agent_release(a);
        fds_before = open_fds();
    }
}

/* Close agent A, and check that nothing of it is left. */
static inline void
end_agent(void)
{
    calls->hold(false); /* a test may have failed meanwhile */
    vnx_agent_close(a);
    vnx_agent_release(a);
    a = NULL;
    WAIT_UNTIL(open_fds() == fds_before); /* the agent may be freed later */
    assert_nothing_shared();
    assert_int_equal(fake->streams, 0);
}

#endif
