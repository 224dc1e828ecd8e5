/*
 * Transfers of GPU memory within a process, on the fake libcuda.so.1: memory
 * that the CPU cannot touch, streams that run at their own pace.  Whatever a
 * test does, the driver must not be misused, and nothing may be left behind.
 *
 * The program under test is also CUDA's client: it has initialised the driver,
 * and has the primary context.
 */
#include "agent_fixture.h"

#include <errno.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "gpu_blocks.h"

static vnx_agent_t *a, *b; /* a knows b and itself */
static vnxi_cu_context_t context;

/* -- Memory ----------------------------------------------------------------
 */

static vnx_status_t
try_register(vnx_agent_t *agent, const block_t *block, vnx_error_t *error)
{
    vnx_reg_desc_t desc = {.desc = {block->addr, block->size, 0}};
    return vnx_agent_register(agent, block->mem, &desc, 1, NULL, error);
}

static void
register_block(vnx_agent_t *agent, const block_t *block)
{
    assert_ok(try_register(agent, block, e));
}

static void
deregister_block(vnx_agent_t *agent, const block_t *block)
{
    vnx_reg_desc_t desc = {.desc = {block->addr, block->size, 0}};
    assert_ok(vnx_agent_deregister(agent, block->mem, &desc, 1, NULL, e));
}

/* Registered at once. */
static block_t
new_block(vnx_agent_t *agent, kind_t kind, size_t size)
{
    block_t block = make_block(kind, size);
    register_block(agent, &block);
    return block;
}

static void
end_block(vnx_agent_t *agent, const block_t *block)
{
    deregister_block(agent, block);
    free_block(block);
}

/* -- Transfers -------------------------------------------------------------
 */

static vnx_dlist_t *
list_of(const char *peer, vnx_mem_t mem, const vnx_desc_t *rows, size_t count)
{
    vnx_dlist_t *list = NULL;
    assert_ok(vnx_dlist_create(a, peer, strlen(peer), mem, rows, count, NULL,
                               &list, e));
    return list;
}

static vnx_xfer_t *
make_rows_xfer(vnx_op_t op, vnx_mem_t local_mem, const vnx_desc_t *local,
               const char *peer, vnx_mem_t remote_mem,
               const vnx_desc_t *remote, size_t count)
{
    vnx_dlist_t *left = list_of("", local_mem, local, count);
    vnx_dlist_t *right = list_of(peer, remote_mem, remote, count);
    vnx_xfer_t *xfer = make_xfer(a, op, left, right, count, NULL);
    vnx_dlist_release(left);
    vnx_dlist_release(right);
    return xfer;
}

/* Of two whole blocks. */
static vnx_xfer_t *
make_block_xfer(vnx_op_t op, const block_t *local, const char *peer,
                const block_t *remote)
{
    vnx_desc_t left = {local->addr, local->size, 0};
    vnx_desc_t right = {remote->addr, remote->size, 0};
    return make_rows_xfer(op, local->mem, &left, peer, remote->mem, &right, 1);
}

static vnx_status_t
end_of(vnx_xfer_t *xfer, vnx_error_t *error)
{
    assert_ok(
        vnx_agent_wait(a, &xfer, 1, VNX_WAIT_NO_CHECK, vnx_test_limit(60), e));
    return vnx_xfer_status(xfer, error);
}

static void
assert_same(const block_t *one, const block_t *other)
{
    unsigned char *left = get_all(one), *right = get_all(other);
    assert_memory_equal(left, right,
                        one->size < other->size ? one->size : other->size);
    free(left);
    free(right);
}

/* Each way, with all bytes compared. */
static void
move_both_ways(const block_t *local, const char *peer, const block_t *remote)
{
    for (unsigned i = 0; i < 2; i++) {
        vnx_op_t op = i == 0 ? VNX_OP_READ : VNX_OP_WRITE;
        vnx_xfer_t *xfer = make_block_xfer(op, local, peer, remote);
        put_all(local, 10 + i);
        put_all(remote, 20 + i);
        unsigned char *sent = get_all(op == VNX_OP_READ ? remote : local);
        run_xfer(a, xfer);
        vnx_xfer_abandon(xfer);
        unsigned char *left = get_all(local), *right = get_all(remote);
        assert_memory_equal(left, sent, local->size);
        assert_memory_equal(right, sent, local->size);
        free(left);
        free(right);
        free(sent);
    }
}

static void
move_kinds(kind_t ours, kind_t theirs, const char *peer)
{
    vnx_agent_t *owner = peer[0] == 'B' ? b : a;
    size_t size = is_mapped(ours) || is_mapped(theirs) ? 2 * CHUNK : 900 * KIB;
    block_t local = new_block(a, ours, size);
    block_t remote = new_block(owner, theirs, size);

    load_peer(a, b);
    move_both_ways(&local, peer, &remote);
    end_block(a, &local);
    end_block(owner, &remote);
}

static void
gpu_memory_moves_between_agents_of_the_process(void **state)
{
    (void)state;
    move_kinds(LEGACY, LEGACY, "B");
    assert_true(fake->launches > 0);
}

static void
gpu_memory_moves_within_an_agent(void **state)
{
    (void)state;
    move_kinds(LEGACY, LEGACY, "A");
}

static void
all_kinds_of_memory_move(void **state)
{
    (void)state;
    for (unsigned ours = 0; ours < KINDS; ours++) {
        for (unsigned theirs = 0; theirs < KINDS; theirs++) {
            move_kinds(ours, theirs, "B");
        }
    }
}

static void
pinned_memory_may_have_other_addresses_on_the_gpu(void **state)
{
    (void)state;
    atomic_store(&fake->alias, 1);
    move_kinds(LEGACY, PINNED, "B");
    move_kinds(LEGACY, CPU, "B");
    move_kinds(PINNED, MAPPED, "B");
    atomic_store(&fake->alias, 0);
}

/* The GPU reads and writes pinned memory itself, and no copy goes through
 * memory that the driver must copy first. */
static void
pinned_memory_is_not_staged(void **state)
{
    (void)state;
    int before = fake->registered;
    block_t local = new_block(a, PINNED, MIB),
            remote = new_block(b, LEGACY, MIB);

    load_peer(a, b);
    move_both_ways(&local, "B", &remote);
    /* The block, and the tables of two batches. */
    assert_int_equal(fake->registered - before, 3);
    assert_int_equal(fake->pageable, 0);
    end_block(a, &local);
    end_block(b, &remote);
}

/* -- Methods ---------------------------------------------------------------
 */

static void
move_all_ways(void)
{
    move_kinds(LEGACY, MAPPED, "B");
    move_kinds(CPU, LEGACY, "B");
    move_kinds(LEGACY, PINNED, "B");
}

static char *
describe(vnx_agent_t *agent)
{
    vnx_bytes_t text;
    assert_ok(vnx_agent_describe(agent, NULL, 0, &text, e));
    char *copy = calloc(1, text.len + 1);
    memcpy(copy, text.data, text.len);
    free(text.data);
    return copy;
}

static void
assert_described(const char *part)
{
    block_t block = new_block(a, LEGACY, 100);
    bool is_found = false;

    for (unsigned i = 0; i < 30000 && !is_found; i++) {
        char *text = describe(a);
        is_found = strstr(text, part) != NULL;
        if (!is_found && i == 29999) {
            fail_msg("no '%s' in %s", part, text);
        }
        free(text);
        usleep(1000);
    }
    end_block(a, &block);
}

static void
without_the_kernel_the_driver_copies_batches(void **state)
{
    (void)state;
    calls->refuse("cuModuleLoadDataEx",
                  VNXI_CUDA_ERROR_JIT_COMPILER_NOT_FOUND);
    int before = calls->count("cuMemcpyBatchAsync");
    move_all_ways();
    assert_true(calls->count("cuMemcpyBatchAsync") > before);
    assert_int_equal(fake->launches, 0);
    assert_described("\"copies_by\": \"batch\", \"because\": \"no kernel: "
                     "cuModuleLoadDataEx: ");
    calls->refuse("cuModuleLoadDataEx", 0);
}

static void
without_batches_rows_are_copied_one_by_one(void **state)
{
    (void)state;
    calls->refuse("cuMemHostRegister_v2", VNXI_CUDA_ERROR_NOT_PERMITTED);
    calls->refuse("cuMemcpyBatchAsync", VNXI_CUDA_ERROR_NOT_SUPPORTED);
    assert_described("\"copies_by\": \"loop\"");
    move_kinds(LEGACY, MAPPED, "B");
    calls->refuse("cuMemHostRegister_v2", 0);
    calls->refuse("cuModuleLoadDataEx",
                  VNXI_CUDA_ERROR_UNSUPPORTED_PTX_VERSION);
    move_all_ways();
    assert_int_equal(fake->launches, 0);
    calls->refuse("cuModuleLoadDataEx", 0);
    calls->refuse("cuMemcpyBatchAsync", 0);
}

static void
pinning_that_fails_fails_the_transfer(void **state)
{
    vnx_error_t error;
    (void)state;
    calls->refuse("cuMemHostRegister_v2", VNXI_CUDA_ERROR_OUT_OF_MEMORY);
    block_t local = new_block(a, CPU, KIB), remote = new_block(b, LEGACY, KIB);
    load_peer(a, b);
    vnx_xfer_t *xfer = make_block_xfer(VNX_OP_READ, &local, "B", &remote);
    assert_ok(vnx_xfer_post(xfer, NULL, 0, e));
    assert_int_equal(end_of(xfer, &error), VNX_ERR_BACKEND);
    assert_non_null(strstr(error.cause, "GPU 0: cuMemHostRegister_v2: "));
    assert_string_equal(error.peer, "B");
    calls->refuse("cuMemHostRegister_v2", 0);
    run_xfer(a, xfer);
    vnx_xfer_abandon(xfer);
    assert_same(&local, &remote);
    end_block(a, &local);
    end_block(b, &remote);
}

/* -- Rows ------------------------------------------------------------------
 */

static void
check_one_plan(uint64_t *seed, const block_t *local, const block_t *remote)
{
    enum { MOST = 3000 };
    static vnx_desc_t left[MOST], right[MOST];
    size_t count =
        draw_rows(seed, local, remote, left, right, 1 + draw(seed, MOST));
    bool is_read = draw(seed, 2) == 0;
    const block_t *to = is_read ? local : remote;

    if (count == 0) {
        return;
    }
    unsigned char *mine = get_all(local), *theirs = get_all(remote);
    vnx_xfer_t *xfer =
        make_rows_xfer(is_read ? VNX_OP_READ : VNX_OP_WRITE, local->mem, left,
                       "B", remote->mem, right, count);
    run_xfer(a, xfer);
    vnx_xfer_abandon(xfer);
    if (is_read) {
        apply(mine, local->addr, theirs, remote->addr, left, right, count);
    } else {
        apply(theirs, remote->addr, mine, local->addr, right, left, count);
    }
    unsigned char *got = get_all(to);
    assert_memory_equal(got, is_read ? mine : theirs, to->size);
    free(got);
    free(mine);
    free(theirs);
}

static void
random_plans_move_their_bytes_and_no_others(void **state)
{
    const char *wanted = getenv("VNX_TEST_PLANS");
    unsigned plans = wanted != NULL ? (unsigned)atoi(wanted) : 100;
    uint64_t seed = (uint64_t)time(NULL) * 1000 + (uint64_t)getpid();
    block_t ours[KINDS], theirs[KINDS];
    (void)state;

    print_message("seed %llu\n", (unsigned long long)seed);
    for (unsigned kind = 0; kind < KINDS; kind++) {
        ours[kind] = new_block(a, kind, 700 * KIB);
        theirs[kind] = new_block(b, kind, 700 * KIB);
        put_all(&ours[kind], kind);
        put_all(&theirs[kind], 100 + kind);
    }
    load_peer(a, b);
    atomic_store(&fake->delay_us, 30);
    for (unsigned i = 0; i < plans; i++) {
        unsigned left = (unsigned)draw(&seed, KINDS);
        unsigned right = (unsigned)draw(&seed, KINDS);
        check_one_plan(&seed, &ours[left], &theirs[right]);
    }
    atomic_store(&fake->delay_us, 0);
    for (unsigned kind = 0; kind < KINDS; kind++) {
        end_block(a, &ours[kind]);
        end_block(b, &theirs[kind]);
    }
}

/* The calls of the driver do not grow with the rows. */
static void
many_rows_need_few_calls(void **state)
{
    vnx_desc_t *left = calloc(MANY_ROWS, sizeof *left);
    vnx_desc_t *right = calloc(MANY_ROWS, sizeof *right);
    block_t local = new_block(a, LEGACY, (size_t)MANY_ROWS * MANY_ROW);
    block_t remote = new_block(b, LEGACY, (size_t)MANY_ROWS * MANY_ROW);
    (void)state;

    load_peer(a, b);
    scatter_rows(&local, &remote, left, right);
    vnx_xfer_t *xfer = make_rows_xfer(VNX_OP_READ, VNX_MEM_VRAM, left, "B",
                                      VNX_MEM_VRAM, right, MANY_ROWS);
    run_xfer(a, xfer); /* opens the GPU */
    /* On a busy machine it is looked after from time to time. */
    int calls_before = fake->calls - calls->count("cuStreamQuery");
    int launches_before = fake->launches;
    atomic_store(&fake->largest_launch, 0);
    for (uint64_t i = 0; i < MANY_ROWS; i++) {
        put(&remote, right[i].addr - remote.addr, &i, sizeof i);
        put(&remote, right[i].addr - remote.addr + MANY_ROW - sizeof i, &i,
            sizeof i);
    }
    run_xfer(a, xfer);
    int calls_after = fake->calls - calls->count("cuStreamQuery");
    assert_in_range(calls_after - calls_before, 1, 19);
    assert_in_range(fake->launches - launches_before, 1, 8);
    assert_in_range(fake->largest_launch, 1, 64 * MIB);
    assert_in_range(fake->largest_grid, 1, 16);
    vnx_xfer_abandon(xfer);
    for (uint64_t i = 0, first, last; i < MANY_ROWS; i++) {
        get(&local, left[i].addr - local.addr, &first, sizeof first);
        get(&local, left[i].addr - local.addr + MANY_ROW - sizeof last, &last,
            sizeof last);
        assert_true(first == i && last == i);
    }
    free(left);
    free(right);
    end_block(a, &local);
    end_block(b, &remote);
}

/* A transfer may also use other transports. */
static void
notification_comes_after_the_bytes(void **state)
{
    block_t local = new_block(a, LEGACY, 5 * MIB);
    block_t remote = new_block(b, LEGACY, 5 * MIB);
    (void)state;

    load_peer(a, b);
    atomic_store(&fake->delay_us, 200);
    for (unsigned round = 0; round < 20; round++) {
        put_all(&local, round);
        vnx_desc_t row = {local.addr, local.size, 0};
        vnx_desc_t to = {remote.addr, remote.size, 0};
        vnx_dlist_t *left = list_of("", VNX_MEM_VRAM, &row, 1);
        vnx_dlist_t *right = list_of("B", VNX_MEM_VRAM, &to, 1);
        vnx_xfer_t *xfer =
            make_xfer(a, VNX_OP_WRITE, left, right, 1, "written");
        vnx_dlist_release(left);
        vnx_dlist_release(right);
        assert_ok(vnx_xfer_post(xfer, NULL, 0, e));
        vnx_notif_free(await_notif(b));
        assert_same(&local, &remote);
        assert_int_equal(end_of(xfer, NULL), VNX_OK);
        vnx_xfer_abandon(xfer);
    }
    atomic_store(&fake->delay_us, 0);
    end_block(a, &local);
    end_block(b, &remote);
}

/* -- Registering -----------------------------------------------------------
 */

static void
assert_refused(const block_t *block, const char *cause)
{
    vnx_error_t error;
    assert_int_equal(try_register(a, block, &error), VNX_ERR_INVALID_PARAM);
    if (strstr(error.cause, cause) == NULL) {
        fail_msg("'%s' is not in '%s'", cause, error.cause);
    }
}

static void
memory_that_is_not_the_gpus_is_refused(void **state)
{
    (void)state;
    block_t pinned = make_block(PINNED, MIB), cpu = make_block(CPU, MIB);
    block_t legacy = make_block(LEGACY, MIB);
    block_t mapped = make_block(MAPPED, 2 * CHUNK);
    block_t hole = mapped;

    pinned.mem = cpu.mem = VNX_MEM_VRAM;
    assert_refused(&pinned, "this is CPU memory: register it as DRAM");
    assert_refused(&cpu, "CUDA has no GPU memory at this address");
    hole.size += CHUNK; /* beyond what is mapped */
    assert_refused(&hole, "CUDA has no GPU memory at this address at 0x");
    pinned.mem = cpu.mem = VNX_MEM_DRAM;
    free_block(&pinned);
    free_block(&cpu);
    free_block(&legacy);
    free_block(&mapped);
    assert_int_equal(fake->streams, 0);
}

static void
registering_does_not_break_a_capture(void **state)
{
    block_t local = make_block(LEGACY, MIB), remote = make_block(LEGACY, MIB);
    (void)state;

    atomic_store(&fake->capturing, 1);
    register_block(a, &local);
    register_block(b, &remote);
    load_peer(a, b);
    vnx_xfer_t *xfer = make_block_xfer(VNX_OP_READ, &local, "B", &remote);
    run_xfer(a, xfer);
    vnx_xfer_abandon(xfer);
    deregister_block(a, &local);
    deregister_block(b, &remote);
    atomic_store(&fake->capturing, 0);
    assert_int_equal(fake->captures_broken, 0);
    assert_same(&local, &remote);
    free_block(&local);
    free_block(&remote);
}

/* Threads of the program may have no context. */
static void *
register_elsewhere(void *arg)
{
    register_block(a, arg);
    return NULL;
}

static void
thread_without_a_context_can_register(void **state)
{
    block_t block = make_block(MAPPED, MIB);
    pthread_t thread;
    (void)state;

    assert_int_equal(pthread_create(&thread, NULL, register_elsewhere, &block),
                     0);
    pthread_join(thread, NULL);
    end_block(a, &block);
}

static void
memory_that_was_freed_is_not_copied(void **state)
{
    block_t local = new_block(a, LEGACY, MIB),
            remote = new_block(b, LEGACY, MIB);
    vnx_error_t error;
    (void)state;

    load_peer(a, b);
    vnx_xfer_t *xfer = make_block_xfer(VNX_OP_READ, &local, "B", &remote);
    run_xfer(a, xfer);
    free_block(&remote);
    assert_ok(vnx_xfer_post(xfer, NULL, 0, e));
    assert_int_equal(end_of(xfer, &error), VNX_ERR_NOT_FOUND);
    assert_non_null(strstr(error.cause, "was freed while it was registered"));
    vnx_xfer_abandon(xfer);
    deregister_block(b, &remote);
    end_block(a, &local);
}

/* The addresses stay reserved, as in a program's sleep mode. */
static void
memory_that_sleeps_is_not_copied(void **state)
{
    block_t local = new_block(a, LEGACY, 2 * CHUNK);
    block_t remote = new_block(b, MAPPED, 2 * CHUNK);
    vnx_error_t error;
    (void)state;

    load_peer(a, b);
    vnx_xfer_t *xfer = make_block_xfer(VNX_OP_READ, &local, "B", &remote);
    run_xfer(a, xfer);
    CU_OK(cu.cuMemUnmap(remote.addr, remote.size));
    assert_ok(vnx_xfer_post(xfer, NULL, 0, e));
    assert_int_equal(end_of(xfer, &error), VNX_ERR_NOT_FOUND);
    assert_non_null(strstr(error.cause, "was freed while it was registered"));
    fill_pieces(remote.addr, remote.size, 0);
    run_xfer(a, xfer);
    vnx_xfer_abandon(xfer);
    assert_same(&local, &remote);
    end_block(a, &local);
    end_block(b, &remote);
}

/* -- Opening ---------------------------------------------------------------
 */

/* What was missing may be there for the next transfer. */
static void
gpu_that_cannot_be_opened_is_tried_again(void **state)
{
    vnx_error_t error;
    (void)state;

    calls->refuse("cuStreamCreateWithPriority", VNXI_CUDA_ERROR_OUT_OF_MEMORY);
    block_t local = new_block(a, LEGACY, MIB),
            remote = new_block(b, LEGACY, MIB);
    load_peer(a, b);
    vnx_xfer_t *xfer = make_block_xfer(VNX_OP_READ, &local, "B", &remote);
    for (unsigned i = 0; i < 3; i++) {
        vnx_status_t status = vnx_xfer_post(xfer, NULL, 0, &error);
        status = status == VNX_IN_PROG ? end_of(xfer, &error) : status;
        assert_int_equal(status, VNX_ERR_BACKEND);
        assert_non_null(strstr(error.cause, "GPU 0: cuStreamCreateWith"));
    }
    assert_described("\"not_open\": \"GPU 0: cuStreamCreateWith");
    calls->refuse("cuStreamCreateWithPriority", 0);
    put_all(&remote, 5);
    run_xfer(a, xfer);
    vnx_xfer_abandon(xfer);
    assert_same(&local, &remote);
    assert_described("\"copies_by\": \"kernel\"");
    char *text = describe(a);
    assert_null(strstr(text, "not_open"));
    free(text);
    end_block(a, &local);
    end_block(b, &remote);
}

/* -- Ending ----------------------------------------------------------------
 */

static vnx_xfer_t *
post_held(const block_t *local, const block_t *remote)
{
    vnx_xfer_t *xfer = make_block_xfer(VNX_OP_READ, local, "B", remote);

    run_xfer(a, xfer); /* the GPU is open */
    calls->hold(true);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
    return xfer;
}

static void *
let_go_soon(void *unused)
{
    (void)unused;
    usleep(50000);
    calls->hold(false);
    return NULL;
}

static pthread_t
let_go(void)
{
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, let_go_soon, NULL), 0);
    return thread;
}

static void
transfer_can_be_cancelled(void **state)
{
    block_t local = make_block(LEGACY, 20 * MIB);
    block_t remote = make_block(LEGACY, 20 * MIB);
    (void)state;

    setenv("VLLM_NIXL_CUDA_LAUNCH_BYTES", "1048576", 1);
    register_block(a, &local);
    register_block(b, &remote);
    load_peer(a, b);
    vnx_xfer_t *xfer = post_held(&local, &remote);
    int before = fake->launches;
    pthread_t thread = let_go(); /* the call waits for what was launched */
    bool is_stopped = false;
    assert_ok(vnx_xfer_cancel(xfer, &is_stopped, e));
    pthread_join(thread, NULL);
    vnx_status_t status = end_of(xfer, NULL);
    if (is_stopped) {
        assert_int_equal(status, VNX_ERR_CANCELED);
        /* What was launched ends; nothing more is launched. */
        assert_in_range(fake->launches - before, 0, 4);
    } else { /* the call came too late, on a busy machine */
        assert_int_equal(status, VNX_OK);
    }
    run_xfer(a, xfer);
    assert_same(&local, &remote);
    vnx_xfer_abandon(xfer);
    end_block(a, &local);
    end_block(b, &remote);
    unsetenv("VLLM_NIXL_CUDA_LAUNCH_BYTES");
}

/* Memory is given back only when the GPU does not use it any more. */
static void
deregistering_waits_for_the_gpu(void **state)
{
    vnx_error_t error;
    (void)state;

    for (unsigned round = 0; round < 2; round++) {
        block_t local = new_block(a, LEGACY, MIB);
        block_t remote = new_block(b, LEGACY, MIB);
        load_peer(a, b);
        vnx_xfer_t *xfer = post_held(&local, &remote);
        pthread_t thread = let_go();
        if (round == 0) {
            end_block(a, &local);
        } else {
            end_block(b, &remote);
        }
        pthread_join(thread, NULL);
        vnx_status_t status = end_of(xfer, &error);
        assert_true(status == VNX_ERR_NOT_FOUND || status == VNX_OK);
        vnx_xfer_abandon(xfer);
        if (round == 0) {
            end_block(b, &remote);
        } else {
            end_block(a, &local);
        }
    }
}

static void
agent_closes_while_the_gpu_copies(void **state)
{
    (void)state;
    for (unsigned round = 0; round < 2; round++) {
        block_t local = new_block(a, LEGACY, MIB);
        block_t remote = new_block(b, LEGACY, MIB);
        vnx_agent_t **agent_p = round == 0 ? &a : &b;
        load_peer(a, b);
        vnx_xfer_t *xfer = post_held(&local, &remote);
        pthread_t thread = let_go();
        vnx_agent_close(*agent_p);
        pthread_join(thread, NULL);
        vnx_xfer_abandon(xfer);
        vnx_agent_release(*agent_p);
        *agent_p = make_agent(round == 0 ? "A" : "B");
        deregister_block(round == 0 ? b : a, round == 0 ? &remote : &local);
        free_block(&local);
        free_block(&remote);
    }
}

/* Every transfer of the GPU's memory then fails at once; CPU memory goes on.
 */
static void
lost_context_ends_in_errors(void **state)
{
    block_t local = new_block(a, LEGACY, MIB),
            remote = new_block(b, LEGACY, MIB);
    block_t cpu = new_block(a, CPU, MIB), other = new_block(b, CPU, MIB);
    vnx_error_t error;
    (void)state;

    load_peer(a, b);
    vnx_xfer_t *xfer = post_held(&local, &remote);
    calls->break_contexts(VNXI_CUDA_ERROR_ILLEGAL_ADDRESS);
    calls->hold(false);
    assert_int_equal(end_of(xfer, &error), VNX_ERR_BACKEND);
    assert_non_null(strstr(error.cause, "CUDA_ERROR_ILLEGAL_ADDRESS (700)"));
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error), VNX_ERR_BACKEND);
    assert_non_null(strstr(error.cause, "CUDA_ERROR_ILLEGAL_ADDRESS (700)"));
    vnx_xfer_abandon(xfer);
    move_both_ways(&cpu, "B", &other);
    deregister_block(a, &local);
    deregister_block(b, &remote);
    calls->break_contexts(0);
    free_block(&local);
    free_block(&remote);
    end_block(a, &cpu);
    end_block(b, &other);
}

static void
device_error_in_the_middle_is_found(void **state)
{
    vnx_error_t error;
    (void)state;

    for (int after = 1; after < 8; after++) {
        block_t local = new_block(a, CPU, 20 * MIB);
        block_t remote = new_block(b, LEGACY, 20 * MIB);
        load_peer(a, b);
        vnx_xfer_t *xfer = make_block_xfer(VNX_OP_READ, &local, "B", &remote);
        run_xfer(a, xfer);
        atomic_store(&fake->fail_code, VNXI_CUDA_ERROR_LAUNCH_FAILED);
        atomic_store(&fake->fail_after, after);
        vnx_status_t status = vnx_xfer_post(xfer, NULL, 0, &error);
        status = status < 0 ? status : end_of(xfer, &error);
        assert_int_equal(status, VNX_ERR_BACKEND);
        vnx_xfer_abandon(xfer);
        deregister_block(a, &local);
        deregister_block(b, &remote);
        atomic_store(&fake->fail_after, 0);
        calls->break_contexts(0);
        free_block(&local);
        free_block(&remote);
    }
}

/* -- Two GPUs --------------------------------------------------------------
 */

/* GPUs are opened in the background, with a launch. */
static void
await_gpus(unsigned count)
{
    uint64_t deadline = vnxi_clock_deadline(vnx_test_limit(30));

    for (unsigned found = 0; found < count; usleep(1000)) {
        assert_true(vnxi_clock_ns() < deadline);
        char *text = describe(a);
        found = 0;
        for (const char *at = text; (at = strstr(at, "copies_by")) != NULL;
             at++) {
            found++;
        }
        free(text);
    }
}

static vnxi_cu_context_t far; /* of GPU 1 */

/* On GPU 1, or on GPU 0. */
static block_t
new_block_on(bool is_far, vnx_agent_t *agent, kind_t kind, size_t size)
{
    CU_OK(cu.cuCtxPushCurrent_v2(is_far ? far : context));
    block_t block = new_block(agent, kind, size);
    CU_OK(cu.cuCtxPopCurrent_v2(NULL));
    return block;
}

static void
two_gpus(kind_t near_kind, kind_t far_kind, bool are_peers)
{
    block_t local = new_block_on(false, a, near_kind, 2 * CHUNK);
    block_t remote = new_block_on(true, b, far_kind, 2 * CHUNK);

    load_peer(a, b);
    await_gpus(2);
    int before = fake->launches;
    move_both_ways(&local, "B", &remote);
    /* A kernel reaches memory from cudaMalloc() alone. */
    assert_int_equal(fake->launches - before,
                     are_peers && far_kind == LEGACY ? 2 : 0);
    end_block(a, &local);
    end_block(b, &remote);
}

static void
memory_of_two_gpus_moves(void **state)
{
    static const kind_t kinds[] = {LEGACY, MAPPED, POOL, MANAGED};
    enum { COUNT = sizeof kinds / sizeof *kinds };
    (void)state;

    CU_OK(cu.cuDevicePrimaryCtxRetain(&far, 1));
    for (unsigned i = 0; i < 2 * COUNT * COUNT; i++) {
        bool are_peers = i % 2 == 0;
        atomic_store(&fake->no_peers, !are_peers);
        two_gpus(kinds[i / 2 % COUNT], kinds[i / 2 / COUNT], are_peers);
    }
    atomic_store(&fake->no_peers, 0);
    CU_OK(cu.cuDevicePrimaryCtxRelease_v2(1));
}

/* Rows of two blocks in turn, each of its own part of the block. */
static void
alternate(const block_t *first, const block_t *second, vnx_desc_t *rows,
          size_t count, size_t len)
{
    for (size_t i = 0; i < count; i++) {
        const block_t *block = i % 2 == 0 ? first : second;
        rows[i] = (vnx_desc_t){block->addr + i * len, len, 0};
    }
}

/* Each block of a list is on a GPU of its own. */
static void
move_lists(const block_t *left, const block_t *right)
{
    enum { ROWS = 64, LEN = 3 * KIB };
    vnx_desc_t local[ROWS], remote[ROWS];

    alternate(&left[0], &left[1], local, ROWS, LEN);
    alternate(&right[0], &right[1], remote, ROWS, LEN);
    for (unsigned op = 0; op < 2; op++) {
        const vnx_desc_t *from = op == 0 ? remote : local;
        const vnx_desc_t *to = op == 0 ? local : remote;
        const block_t *sources = op == 0 ? right : left;
        const block_t *targets = op == 0 ? left : right;
        for (unsigned i = 0; i < 2; i++) {
            put_all(&left[i], 10 * op + i);
            put_all(&right[i], 10 * op + 5 + i);
        }
        vnx_xfer_t *xfer =
            make_rows_xfer(op == 0 ? VNX_OP_READ : VNX_OP_WRITE, left[0].mem,
                           local, "B", right[0].mem, remote, ROWS);
        run_xfer(a, xfer);
        vnx_xfer_abandon(xfer);
        for (size_t i = 0; i < ROWS; i++) {
            unsigned char sent[LEN], got[LEN];
            get(&sources[i % 2], from[i].addr - sources[i % 2].addr, sent,
                LEN);
            get(&targets[i % 2], to[i].addr - targets[i % 2].addr, got, LEN);
            assert_memory_equal(got, sent, LEN);
        }
    }
}

static void
move_lists_of(kind_t near_kind, kind_t far_kind)
{
    block_t left[2], right[2], cpu[2], pinned[2];

    for (unsigned i = 0; i < 2; i++) {
        kind_t kind = i == 0 ? near_kind : far_kind;
        left[i] = new_block_on(i == 1, a, kind, 2 * CHUNK);
        right[i] = new_block_on(i == 0, b, kind, 2 * CHUNK);
        cpu[i] = new_block(b, CPU, 2 * CHUNK);
        pinned[i] = new_block(b, PINNED, 2 * CHUNK);
    }
    load_peer(a, b);
    move_lists(left, right);
    move_lists(left, cpu);
    move_lists(left, pinned);
    for (unsigned i = 0; i < 2; i++) {
        end_block(a, &left[i]);
        end_block(b, &right[i]);
        end_block(b, &cpu[i]);
        end_block(b, &pinned[i]);
    }
}

/* By each method, and whether the GPUs are peers or not. */
static void
lists_with_memory_of_two_gpus_move(void **state)
{
    (void)state;
    CU_OK(cu.cuDevicePrimaryCtxRetain(&far, 1));
    for (unsigned i = 0; i < 6; i++) {
        atomic_store(&fake->no_peers, i % 2);
        calls->refuse("cuModuleLoadDataEx",
                      i < 2 ? 0 : VNXI_CUDA_ERROR_JIT_COMPILER_NOT_FOUND);
        calls->refuse("cuMemcpyBatchAsync",
                      i < 4 ? 0 : VNXI_CUDA_ERROR_NOT_SUPPORTED);
        move_lists_of(LEGACY, LEGACY);
        move_lists_of(LEGACY, MAPPED);
        move_lists_of(MAPPED, POOL);
        move_lists_of(POOL, MANAGED);
    }
    calls->refuse("cuModuleLoadDataEx", 0);
    calls->refuse("cuMemcpyBatchAsync", 0);
    atomic_store(&fake->no_peers, 0);
    CU_OK(cu.cuDevicePrimaryCtxRelease_v2(1));
}

/* -- Threads ---------------------------------------------------------------
 */

static void *
move_again_and_again(void *arg)
{
    block_t local = new_block(a, LEGACY, 2 * MIB);
    const block_t *remote = arg;
    vnx_xfer_t *xfer = make_block_xfer(VNX_OP_READ, &local, "B", remote);
    bool is_stopped;

    for (unsigned i = 0; i < 30; i++) {
        if (i % 5 == 4) {
            assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
            assert_ok(vnx_xfer_cancel(xfer, &is_stopped, e));
            vnx_agent_wait(a, &xfer, 1, VNX_WAIT_NO_CHECK, vnx_test_limit(60),
                           NULL);
        } else {
            run_xfer(a, xfer);
            assert_same(&local, remote);
        }
    }
    vnx_xfer_abandon(xfer);
    end_block(a, &local);
    return NULL;
}

static void *
move_in_a_thread(void *arg)
{
    CU_OK(cu.cuCtxPushCurrent_v2(context));
    move_again_and_again(arg);
    CU_OK(cu.cuCtxPopCurrent_v2(NULL));
    return NULL;
}

static void
threads_share_a_gpu(void **state)
{
    enum { THREADS = 4 };
    block_t remote = new_block(b, LEGACY, 2 * MIB);
    pthread_t threads[THREADS];
    (void)state;

    put_all(&remote, 9);
    load_peer(a, b);
    atomic_store(&fake->delay_us, 20);
    for (unsigned i = 0; i < THREADS; i++) {
        assert_int_equal(
            pthread_create(&threads[i], NULL, move_in_a_thread, &remote), 0);
    }
    for (unsigned i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
    atomic_store(&fake->delay_us, 0);
    end_block(b, &remote);
}

static void
nothing_runs_while_nothing_is_in_flight(void **state)
{
    block_t block = new_block(a, LEGACY, MIB);
    (void)state;

    assert_described("\"copies_by\": \"kernel\"");
    int before = fake->calls;
    usleep(300000);
    assert_int_equal(fake->calls, before);
    end_block(a, &block);
}

/* -- The program -----------------------------------------------------------
 */

static int
set_up(void **state)
{
    (void)state;
    CU_OK(cu.cuDevicePrimaryCtxRetain(&context, 0));
    CU_OK(cu.cuCtxPushCurrent_v2(context));
    a = make_agent("A");
    b = make_agent("B");
    atomic_store(&fake->launches, 0);
    atomic_store(&fake->pageable, 0);
    return 0;
}

static int
tear_down(void **state)
{
    (void)state;
    calls->hold(false); /* a test may have failed meanwhile */
    vnx_agent_close(a);
    vnx_agent_release(a);
    vnx_agent_close(b);
    vnx_agent_release(b);
    CU_OK(client.cuCtxSynchronize());
    CU_OK(cu.cuCtxPopCurrent_v2(NULL));
    CU_OK(cu.cuDevicePrimaryCtxRelease_v2(0));
    assert_int_equal(calls->report(), 0);
    assert_int_equal(fake->misuses, 0);
    assert_int_equal(fake->captures_broken, 0);
    return 0;
}

#define TEST(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(gpu_memory_moves_between_agents_of_the_process),
        TEST(gpu_memory_moves_within_an_agent),
        TEST(all_kinds_of_memory_move),
        TEST(pinned_memory_may_have_other_addresses_on_the_gpu),
        TEST(pinned_memory_is_not_staged),
        TEST(without_the_kernel_the_driver_copies_batches),
        TEST(without_batches_rows_are_copied_one_by_one),
        TEST(pinning_that_fails_fails_the_transfer),
        TEST(random_plans_move_their_bytes_and_no_others),
        TEST(many_rows_need_few_calls),
        TEST(notification_comes_after_the_bytes),
        TEST(memory_that_is_not_the_gpus_is_refused),
        TEST(registering_does_not_break_a_capture),
        TEST(thread_without_a_context_can_register),
        TEST(memory_that_was_freed_is_not_copied),
        TEST(memory_that_sleeps_is_not_copied),
        TEST(gpu_that_cannot_be_opened_is_tried_again),
        TEST(transfer_can_be_cancelled),
        TEST(deregistering_waits_for_the_gpu),
        TEST(agent_closes_while_the_gpu_copies),
        TEST(lost_context_ends_in_errors),
        TEST(device_error_in_the_middle_is_found),
        TEST(memory_of_two_gpus_moves),
        TEST(lists_with_memory_of_two_gpus_move),
        TEST(threads_share_a_gpu),
        TEST(nothing_runs_while_nothing_is_in_flight),
    };

    setenv("VLLM_NIXL_CUDA_LIBRARY", FAKE_CUDA, 1);
    setenv("VLLM_NIXL_UCX_LIBRARY", "none", 1);
    if (fake_load(FAKE_CUDA) != 0) {
        return 1;
    }
    atomic_store(&fake->devices, 2);
    CU_OK(cu.cuInit(0));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
