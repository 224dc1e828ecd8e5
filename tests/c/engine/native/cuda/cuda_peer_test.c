/*
 * GPU memory of another process, on the fake libcuda.so.1.  The other process
 * is this program once more, started with "--owner": it has an agent B with
 * blocks of memory, and does what the test tells it over a socket.
 *
 * Whatever a test does, neither process may misuse the driver, and nothing may
 * be left behind.
 */
#include "agent_fixture.h"

#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>

#include "child_check.h"
#include "gpu_pair.h"

#define BLOCKS_MAX 64

/* -- The other process -----------------------------------------------------
 */

typedef enum order {
    MAKE, /* a block, and register it */
    PART, /* register part of a block */
    POKE, /* write a KiB at an address */
    FILL,
    READ_ALL,
    DEREGISTER,
    REGISTER,
    FREE,
    SLEEP, /* free the memory, but keep its addresses */
    WAKE,  /* new memory at the same addresses */
    METADATA,
    CLOSE,   /* the agent */
    CAPTURE, /* a graph, or end that */
    OPEN,    /* its GPUs can be opened from now on */
    FACTS,
    EXIT,
} order_t;

typedef struct command {
    order_t order;
    unsigned index;
    kind_t kind;
    uint64_t value;
    size_t size;
    int gpu; /* MAKE */
} command_t;

typedef struct answer {
    vnx_status_t status;
    block_t block;
    size_t bytes; /* that follow */
    int misuses, handles, mappings, imports, fds, freed_while_open;
    int captures_broken;
    bool is_shared;
    char cause[160];
} answer_t;

typedef struct owner {
    vnx_agent_t *agent;
    block_t blocks[BLOCKS_MAX];
    void *bytes; /* that follow the answer */
} owner_t;

static void
sleep_block(const block_t *block)
{
    CU_OK(cu.cuMemUnmap(block->addr, block->size));
}

static block_t
make_on(int gpu, kind_t kind, size_t size)
{
    vnxi_cu_context_t context;

    CU_OK(cu.cuDevicePrimaryCtxRetain(&context, gpu));
    CU_OK(cu.cuCtxPushCurrent_v2(context));
    block_t block = make_block(kind, size);
    CU_OK(cu.cuCtxPopCurrent_v2(NULL));
    return block;
}

/* Memory that is mapped by handles, by descriptors, and not at all, in turn.
 */
static kind_t
kind_of(unsigned round)
{
    static const kind_t kinds[] = {LEGACY, MAPPED_FD, MAPPED};
    return kinds[round % 3];
}

static bool
can_be_shared(kind_t kind)
{
    return kind == LEGACY || kind == MAPPED_FD || kind == MAPPED_FABRIC;
}

static void
obey(owner_t *owner, const command_t *command, answer_t *answer)
{
    block_t *block = &owner->blocks[command->index % BLOCKS_MAX];
    vnx_reg_desc_t desc = {.desc = {block->addr, block->size, 0}};
    unsigned char kib[KIB];
    vnx_error_t error;
    vnx_bytes_t blob;

    switch (command->order) {
    case MAKE:
        *block = command->gpu == 0
                     ? make_block(command->kind, command->value)
                     : make_on(command->gpu, command->kind, command->value);
        desc.desc = (vnx_desc_t){block->addr, block->size, 0};
        /* fall through */
    case PART:
        if (command->order == PART) {
            *block =
                (block_t){LEGACY, VNX_MEM_VRAM, command->value, command->size};
            desc.desc = (vnx_desc_t){block->addr, block->size, 0};
        }
        /* fall through */
    case REGISTER:
        answer->status = vnx_agent_register(owner->agent, block->mem, &desc, 1,
                                            NULL, &error);
        break;
    case POKE:
        fill(kib, sizeof kib, command->index);
        calls->poke(command->value, kib, sizeof kib);
        break;
    case FILL:
        put_all(block, (unsigned)command->value);
        break;
    case READ_ALL:
        owner->bytes = get_all(block);
        answer->bytes = block->size;
        break;
    case DEREGISTER:
        answer->status = vnx_agent_deregister(owner->agent, block->mem, &desc,
                                              1, NULL, &error);
        answer->is_shared =
            can_be_shared(block->kind) && calls->shared(block->addr);
        break;
    case FREE:
        free_block(block);
        block->size = 0;
        break;
    case SLEEP:
        sleep_block(block);
        break;
    case WAKE:
        fill_pieces(block->addr, block->size, handle_types_of(block->kind));
        break;
    case METADATA:
        assert_int_equal(vnx_agent_metadata(owner->agent, &blob, &error),
                         VNX_OK);
        owner->bytes = blob.data;
        answer->bytes = blob.len;
        break;
    case CLOSE:
        vnx_agent_close(owner->agent);
        vnx_agent_release(owner->agent);
        owner->agent = NULL;
        break;
    case CAPTURE:
        atomic_store(&fake->capturing, (int)command->value);
        break;
    case OPEN:
        calls->refuse("cuStreamCreateWithPriority", 0);
        break;
    case FACTS:
    case EXIT:
        break;
    }
    answer->block = *block;
    answer->misuses = fake->misuses;
    answer->handles = fake->handles;
    answer->mappings = fake->mappings;
    answer->imports = fake->imports;
    answer->fds = fake->fds;
    answer->freed_while_open = fake->freed_while_open;
    answer->captures_broken = fake->captures_broken;
    if (answer->status != VNX_OK) {
        snprintf(answer->cause, sizeof answer->cause, "%.159s", error.cause);
    }
}

static int
owner_main(int fd)
{
    owner_t owner = {0};
    command_t command = {.order = MAKE};

    start_cuda();
    owner.agent = make_agent("B");
    while (command.order != EXIT &&
           transact(fd, &command, sizeof command, false)) {
        answer_t answer = {.status = VNX_OK};
        obey(&owner, &command, &answer);
        transact(fd, &answer, sizeof answer, true);
        if (answer.bytes > 0) {
            transact(fd, owner.bytes, answer.bytes, true);
            free(owner.bytes);
        }
    }
    if (owner.agent != NULL) {
        vnx_agent_close(owner.agent);
        vnx_agent_release(owner.agent);
    }
    return fake->misuses > 0;
}

/* -- Telling it ------------------------------------------------------------
 */

static pid_t other;
static int to_other = -1;

static void
start_other(void)
{
    other = start_program("--owner", &to_other);
}

/* `bytes_p`: owned by the caller; NULL: there are none. */
static answer_t
tell_all(command_t command, unsigned char **bytes_p)
{
    answer_t answer;

    assert_true(transact(to_other, &command, sizeof command, true));
    assert_true(transact(to_other, &answer, sizeof answer, false));
    if (answer.bytes > 0) {
        assert_non_null(bytes_p);
        *bytes_p = malloc(answer.bytes);
        assert_true(transact(to_other, *bytes_p, answer.bytes, false));
    }
    if (answer.status != VNX_OK) {
        fail_msg("the other process: %s", answer.cause);
    }
    return answer;
}

static answer_t
tell(order_t order, unsigned index)
{
    return tell_all((command_t){.order = order, .index = index}, NULL);
}

static block_t
make_theirs(unsigned index, kind_t kind, size_t size)
{
    return tell_all((command_t){MAKE, index, kind, size, 0, 0}, NULL).block;
}

static void
fill_theirs(unsigned index, unsigned seed)
{
    tell_all((command_t){FILL, index, 0, seed, 0, 0}, NULL);
}

static unsigned char *
read_theirs(unsigned index)
{
    unsigned char *bytes = NULL;
    tell_all((command_t){READ_ALL, index, 0, 0, 0, 0}, &bytes);
    return bytes;
}

static void
end_theirs(unsigned index)
{
    answer_t answer = tell(DEREGISTER, index);
    assert_false(answer.is_shared);
    tell(FREE, index);
}

static void
load_other(void)
{
    unsigned char *blob = NULL;
    vnx_bytes_t name;
    answer_t answer = tell_all((command_t){METADATA, 0, 0, 0, 0, 0}, &blob);

    assert_ok(vnx_agent_load_metadata(a, blob, answer.bytes, &name, e));
    free(blob);
    free(name.data);
}

static void
end_other(void)
{
    int status = 0;

    if (to_other < 0) {
        return;
    }
    kill(other, SIGCONT); /* a test may have failed while it was stopped */
    answer_t answer = tell(EXIT, 0);
    assert_int_equal(answer.misuses, 0);
    assert_int_equal(answer.freed_while_open, 0);
    assert_int_equal(answer.captures_broken, 0);
    close(to_other);
    to_other = -1;
    assert_int_equal(waitpid(other, &status, 0), other);
    assert_int_equal(status, 0);
}

/* Once more, with these knobs of the fake. */
static void
restart_other(const char *knobs)
{
    end_other();
    setenv("FAKE_CUDA", knobs, 1);
    start_other();
    unsetenv("FAKE_CUDA");
}

/* Return when all of its threads stand still. */
static void
stop_other(void)
{
    int status = 0;

    kill(other, SIGSTOP);
    assert_int_equal(waitpid(other, &status, WUNTRACED), other);
    assert_true(WIFSTOPPED(status));
}

static void
kill_other(void)
{
    kill(other, SIGKILL);
    waitpid(other, NULL, 0);
    close(to_other);
    to_other = -1;
}

/* -- Transfers -------------------------------------------------------------
 */

/* Compare the first bytes of our block with the other process's. */
static void
assert_same(const block_t *ours, unsigned index, const block_t *theirs)
{
    unsigned char *left = get_all(ours), *right = read_theirs(index);
    assert_memory_equal(left, right,
                        ours->size < theirs->size ? ours->size : theirs->size);
    free(left);
    free(right);
}

static void
move(vnx_op_t op, const block_t *ours, unsigned index, const block_t *theirs,
     unsigned seed)
{
    put_all(ours, seed);
    fill_theirs(index, seed + 1);
    vnx_xfer_t *xfer = make_ours(op, ours, theirs);
    run_xfer(a, xfer);
    vnx_xfer_abandon(xfer);
    assert_same(ours, index, theirs);
    unsigned char *now = get_all(ours);
    unsigned char *sent = malloc(ours->size);
    fill(sent, ours->size, op == VNX_OP_READ ? seed + 1 : seed);
    assert_memory_equal(now, sent,
                        theirs->size < ours->size ? theirs->size : ours->size);
    free(now);
    free(sent);
}

/* Which transport serves transfers with that memory? */
static void
assert_route(const char *local, const char *remote, const char *transport)
{
    vnx_bytes_t text;
    char wanted[160];

    snprintf(wanted, sizeof wanted,
             "\"local\": \"%s\", \"remote\": \"%s\", \"transport\": \"%s\"",
             local, remote, transport);
    assert_ok(vnx_agent_describe(a, "B", 1, &text, e));
    if (memmem(text.data, text.len, wanted, strlen(wanted)) == NULL) {
        fail_msg("no %s in %.*s", wanted, (int)text.len, (char *)text.data);
    }
    free(text.data);
}

/* What describe() says about a peer. */
static void
assert_described(const char *wanted)
{
    vnx_bytes_t text;

    assert_ok(vnx_agent_describe(a, "B", 1, &text, e));
    if (memmem(text.data, text.len, wanted, strlen(wanted)) == NULL) {
        fail_msg("no %s in %.*s", wanted, (int)text.len, (char *)text.data);
    }
    free(text.data);
}

/* -- Tests: kinds of memory ------------------------------------------------
 */

static void
move_kinds(kind_t ours_kind, kind_t theirs_kind)
{
    block_t ours = new_ours(ours_kind, 3 * CHUNK);
    block_t theirs = make_theirs(0, theirs_kind, 3 * CHUNK);

    load_other();
    move(VNX_OP_READ, &ours, 0, &theirs, 10);
    move(VNX_OP_WRITE, &ours, 0, &theirs, 20);
    end_theirs(0);
    end_ours(&ours);
}

static void
gpu_memory_of_another_process_moves(void **state)
{
    (void)state;
    move_kinds(LEGACY, LEGACY);
    assert_true(fake->launches > 0);
    assert_route("VRAM", "VRAM", "CUDA");
}

static void
memory_of_every_kind_moves(void **state)
{
    static const kind_t ours[] = {CPU, PINNED, LEGACY, MAPPED, MANAGED, POOL};
    static const kind_t theirs[] = {CPU,           PINNED, LEGACY,  MAPPED_FD,
                                    MAPPED_FABRIC, MAPPED, MANAGED, POOL};
    (void)state;

    for (size_t i = 0; i < sizeof ours / sizeof *ours; i++) {
        for (size_t k = 0; k < sizeof theirs / sizeof *theirs; k++) {
            move_kinds(ours[i], theirs[k]);
        }
    }
}

static void
check_one_plan(uint64_t *seed, const block_t *ours, unsigned index,
               const block_t *theirs)
{
    enum { MOST = 3000 };
    static vnx_desc_t left[MOST], right[MOST];
    size_t count =
        draw_rows(seed, ours, theirs, left, right, 1 + draw(seed, MOST));
    bool is_read = draw(seed, 2) == 0;
    vnx_xfer_t *xfer = NULL;

    if (count == 0) {
        return;
    }
    unsigned char *mine = get_all(ours), *other_bytes = read_theirs(index);
    assert_ok(try_make(is_read ? VNX_OP_READ : VNX_OP_WRITE, ours->mem, left,
                       theirs->mem, right, count, &xfer, e));
    run_xfer(a, xfer);
    vnx_xfer_abandon(xfer);
    if (is_read) {
        apply(mine, ours->addr, other_bytes, theirs->addr, left, right, count);
    } else {
        apply(other_bytes, theirs->addr, mine, ours->addr, right, left, count);
    }
    unsigned char *now = get_all(ours), *other_now = read_theirs(index);
    assert_memory_equal(now, mine, ours->size);
    assert_memory_equal(other_now, other_bytes, theirs->size);
    free(mine);
    free(other_bytes);
    free(now);
    free(other_now);
}

static void
random_plans_move_their_bytes_and_no_others(void **state)
{
    static const kind_t ours_kinds[] = {CPU,    PINNED,    LEGACY,
                                        MAPPED, MAPPED_FD, MANAGED};
    static const kind_t theirs_kinds[] = {
        CPU, PINNED, LEGACY, MAPPED_FD, MAPPED_FABRIC, MAPPED, MANAGED, POOL};
    enum {
        OURS = sizeof ours_kinds / sizeof *ours_kinds,
        THEIRS = sizeof theirs_kinds / sizeof *theirs_kinds,
    };
    uint64_t seed = (uint64_t)time(NULL) * 1000 + (uint64_t)getpid();
    block_t ours[OURS], theirs[THEIRS];
    (void)state;

    print_message("seed %llu\n", (unsigned long long)seed);
    for (unsigned i = 0; i < OURS; i++) {
        ours[i] = new_ours(ours_kinds[i], 700 * KIB);
        put_all(&ours[i], i);
    }
    for (unsigned i = 0; i < THEIRS; i++) {
        theirs[i] = make_theirs(i, theirs_kinds[i], 700 * KIB);
        fill_theirs(i, 100 + i);
    }
    load_other();
    atomic_store(&fake->delay_us, 30);
    for (unsigned i = 0; i < number("VNX_TEST_PLANS", 100); i++) {
        unsigned left = (unsigned)draw(&seed, OURS);
        unsigned right = (unsigned)draw(&seed, THEIRS);
        check_one_plan(&seed, &ours[left], right, &theirs[right]);
    }
    atomic_store(&fake->delay_us, 0);
    for (unsigned i = 0; i < THEIRS; i++) {
        end_theirs(i);
    }
    for (unsigned i = 0; i < OURS; i++) {
        end_ours(&ours[i]);
    }
}

/* The calls of the driver do not grow with the rows. */
static void
many_rows_need_few_calls(void **state)
{
    vnx_desc_t *left = calloc(MANY_ROWS, sizeof *left);
    vnx_desc_t *right = calloc(MANY_ROWS, sizeof *right);
    block_t ours = new_ours(LEGACY, (size_t)MANY_ROWS * MANY_ROW);
    block_t theirs = make_theirs(0, LEGACY, (size_t)MANY_ROWS * MANY_ROW);
    vnx_xfer_t *xfer = NULL;
    (void)state;

    load_other();
    scatter_rows(&ours, &theirs, left, right);
    assert_ok(try_make(VNX_OP_READ, VNX_MEM_VRAM, left, VNX_MEM_VRAM, right,
                       MANY_ROWS, &xfer, e));
    run_xfer(a, xfer); /* maps the memory */
    int before = fake->calls - calls->count("cuStreamQuery");
    int launches = fake->launches;
    run_xfer(a, xfer);
    int after = fake->calls - calls->count("cuStreamQuery");
    assert_in_range(after - before, 1, 19);
    assert_in_range(fake->launches - launches, 1, 8);
    vnx_xfer_abandon(xfer);
    free(left);
    free(right);
    end_theirs(0);
    end_ours(&ours);
}

static atomic_uint locks; /* that were taken in this process */

int __real_pthread_mutex_lock(pthread_mutex_t *mutex);
int __wrap_pthread_mutex_lock(pthread_mutex_t *mutex);

int
__wrap_pthread_mutex_lock(pthread_mutex_t *mutex)
{
    atomic_fetch_add(&locks, 1);
    return __real_pthread_mutex_lock(mutex);
}

/* Each is asked for, and looked for a few times; not all of them as often as
 * the owner answers. */
static void
many_regions_are_mapped_in_few_steps(void **state)
{
    enum { COUNT = 400, EACH = 4096 };
    static vnx_desc_t left[COUNT], right[COUNT];
    block_t ours = new_ours(LEGACY, COUNT * EACH);
    block_t whole = make_theirs(0, LEGACY, COUNT * EACH);
    vnx_xfer_t *xfer = NULL;
    (void)state;

    tell(DEREGISTER, 0);
    for (unsigned i = 0; i < COUNT; i++) {
        uint64_t at = whole.addr + i * EACH;
        left[i] = (vnx_desc_t){ours.addr + i * EACH, EACH, 0};
        right[i] = (vnx_desc_t){at, EACH, 0};
        tell_all(
            (command_t){.order = PART, .index = 1, .value = at, .size = EACH},
            NULL);
    }
    load_other();
    assert_ok(try_make(VNX_OP_READ, VNX_MEM_VRAM, left, VNX_MEM_VRAM, right,
                       COUNT, &xfer, e));
    unsigned before = atomic_load(&locks);
    run_xfer(a, xfer);
    assert_in_range(atomic_load(&locks) - before, COUNT, 50 * COUNT);
    vnx_xfer_abandon(xfer);
    assert_described("\"cuda_regions_mapped\": 400");
    tell(CLOSE, 0);
    tell(FREE, 0);
    end_ours(&ours);
}

/* Registered memory may lie anywhere in an allocation. */
static void
regions_within_one_allocation_move(void **state)
{
    block_t ours = new_ours(LEGACY, 4 * MIB);
    (void)state;

    for (int old = 0; old < 2; old++) {
        atomic_store(&fake->old_ipc, old);
        block_t whole = make_theirs(0, LEGACY, 4 * MIB);
        for (unsigned i = 1; i <= 4; i++) {
            uint64_t at = whole.addr + i * 700000;
            tell_all(
                (command_t){
                    .order = PART, .index = i, .value = at, .size = 500001},
                NULL);
        }
        tell(DEREGISTER, 0);
        load_other();
        for (unsigned i = 1; i <= 4; i++) {
            block_t part = whole;
            part.addr += i * 700000;
            part.size = 500001;
            move(VNX_OP_READ, &ours, i, &part, 3 * i);
            move(VNX_OP_WRITE, &ours, i, &part, 40 * i);
        }
        for (unsigned i = 1; i <= 4; i++) {
            assert_int_equal(tell(DEREGISTER, i).is_shared, i < 4);
        }
        tell(FREE, 0);
    }
    end_ours(&ours);
}

/* More pieces than there are descriptors in a message. */
static void
expandable_segments_move(void **state)
{
    size_t size = 150 * CHUNK;
    block_t ours = new_ours(LEGACY, MIB);
    block_t theirs = make_theirs(0, MAPPED_FD, size);
    vnx_desc_t left = {ours.addr, KIB, 0};
    int fds = 0;
    vnx_error_t error;
    (void)state;

    load_other();
    for (size_t piece = 0; piece < 150; piece += 7) {
        vnx_desc_t right = {
            theirs.addr + piece * CHUNK - (piece > 0 ? 100 : 0), KIB, 0};
        unsigned char expected[KIB], found[KIB];
        vnx_xfer_t *xfer = NULL;
        tell_all((command_t){.order = POKE,
                             .value = right.addr,
                             .index = (unsigned)piece},
                 NULL);
        assert_ok(try_make(VNX_OP_READ, VNX_MEM_VRAM, &left, VNX_MEM_VRAM,
                           &right, 1, &xfer, e));
        assert_int_equal(run(xfer, &error), VNX_OK);
        vnx_xfer_abandon(xfer);
        fill(expected, KIB, (unsigned)piece);
        get(&ours, 0, found, KIB);
        assert_memory_equal(found, expected, KIB);
        fds = fds == 0 ? tell(FACTS, 0).fds : fds;
    }
    assert_int_equal(fake->mappings, 150);
    assert_int_equal(fake->reservations, 1);
    assert_int_equal(tell(FACTS, 0).fds, fds);
    end_theirs(0);
    end_ours(&ours);
}

/* A region that cannot be mapped is moved by its owner; the others stay
 * mapped. */
static void
memory_that_cannot_be_mapped_is_moved_by_its_owner(void **state)
{
    block_t ours = new_ours(LEGACY, MIB), cpu = new_ours(CPU, MIB);
    block_t theirs = make_theirs(0, LEGACY, MIB);
    block_t their_cpu = make_theirs(1, CPU, MIB);
    block_t more = make_theirs(2, MAPPED_FD, CHUNK);
    (void)state;

    load_other();
    calls->refuse("cuIpcOpenMemHandle_v2",
                  VNXI_CUDA_ERROR_PEER_ACCESS_UNSUPPORTED);
    move(VNX_OP_READ, &ours, 0, &theirs, 1);
    calls->refuse("cuIpcOpenMemHandle_v2", 0);
    assert_described("\"cuda_windows\": 1");
    move(VNX_OP_WRITE, &ours, 0, &theirs, 2);
    move(VNX_OP_READ, &ours, 2, &more, 3);
    assert_int_equal(fake->mappings, 1);
    move(VNX_OP_READ, &ours, 1, &their_cpu, 3);
    move(VNX_OP_WRITE, &cpu, 1, &their_cpu, 7);
    end_theirs(0);
    end_theirs(1);
    end_theirs(2);
    end_ours(&ours);
    end_ours(&cpu);
}

/* -- Tests: the end of sharing ---------------------------------------------
 */

static void
sleep_and_wake(kind_t kind, bool deregisters)
{
    block_t ours = new_ours(LEGACY, 2 * CHUNK);
    block_t theirs = make_theirs(0, kind, 2 * CHUNK);

    load_other();
    for (unsigned round = 0; round < rounds(30); round++) {
        move(VNX_OP_READ, &ours, 0, &theirs, 3 * round);
        move(VNX_OP_WRITE, &ours, 0, &theirs, 5 * round);
        if (deregisters) {
            assert_false(tell(DEREGISTER, 0).is_shared);
        }
        tell(SLEEP, 0);
        tell(WAKE, 0);
        if (deregisters) {
            tell(REGISTER, 0);
            load_other();
        }
    }
    end_theirs(0);
    end_ours(&ours);
}

/* Memory that the owner has registered once more, at the same address, is
 * other memory. */
static void
sleeping_and_waking_leads_to_the_new_memory(void **state)
{
    (void)state;
    sleep_and_wake(MAPPED_FD, true);
    sleep_and_wake(MAPPED, true);
}

/* The same without a word: the owner has not deregistered its memory. */
static void
memory_that_was_replaced_is_noticed(void **state)
{
    (void)state;
    sleep_and_wake(MAPPED_FD, false);
    sleep_and_wake(MAPPED, false);
}

/* The addresses stay reserved meanwhile. */
static void
memory_that_sleeps_is_not_moved(void **state)
{
    static const kind_t kinds[] = {MAPPED_FD, MAPPED};
    block_t ours = new_ours(LEGACY, 2 * CHUNK);
    vnx_error_t error;
    (void)state;

    for (unsigned i = 0; i < 2; i++) {
        block_t theirs = make_theirs(0, kinds[i], 2 * CHUNK);
        load_other();
        vnx_xfer_t *xfer = make_ours(VNX_OP_READ, &ours, &theirs);
        tell(SLEEP, 0);
        assert_int_equal(run(xfer, &error), VNX_ERR_NOT_FOUND);
        assert_non_null(
            strstr(error.cause, "was freed while it was registered"));
        tell(WAKE, 0);
        fill_theirs(0, 3);
        run_xfer(a, xfer);
        vnx_xfer_abandon(xfer);
        assert_same(&ours, 0, &theirs);
        end_theirs(0);
    }
    end_ours(&ours);
}

static void
peer_that_dies_ends_transfers(void **state)
{
    block_t ours = new_ours(LEGACY, 4 * MIB);
    (void)state;

    for (unsigned round = 0; round < rounds(20); round++) {
        block_t theirs = make_theirs(0, kind_of(round), 4 * MIB);
        vnx_op_t op = round % 2 == 0 ? VNX_OP_READ : VNX_OP_WRITE;
        unsigned how = round / 3 % 3;
        vnx_error_t error;
        load_other();
        vnx_xfer_t *xfer = make_ours(op, &ours, &theirs);
        if (how > 0) {
            run_xfer(a, xfer);
        }
        atomic_store(&fake->delay_us, how == 2 ? 3000 : 0);
        vnx_status_t status = vnx_xfer_post(xfer, NULL, 0, &error);
        struct timespec some = {0, (long)(round * 50000 % 900000)};
        nanosleep(&some, NULL);
        kill_other();
        status = status == VNX_IN_PROG ? end_of(xfer, &error) : status;
        if (status != VNX_OK && status != VNX_ERR_REMOTE_DISCONNECT) {
            fail_msg("round %u: %s", round, error.cause);
        }
        vnx_xfer_abandon(xfer);
        assert_ok(vnx_agent_remove_peer(a, "B", 1, e));
        atomic_store(&fake->delay_us, 0);
        start_other();
    }
    end_ours(&ours);
}

static void
owner_that_closes_takes_its_memory_back(void **state)
{
    block_t ours = new_ours(LEGACY, 4 * MIB);
    block_t theirs = make_theirs(0, LEGACY, 4 * MIB);
    vnx_error_t error;
    (void)state;

    load_other();
    vnx_xfer_t *xfer = make_ours(VNX_OP_READ, &ours, &theirs);
    run_xfer(a, xfer);
    assert_int_equal(fake->imports, 1);
    tell(CLOSE, 0);
    assert_int_equal(run(xfer, &error), VNX_ERR_REMOTE_DISCONNECT);
    vnx_xfer_abandon(xfer);
    tell(FREE, 0);
    end_ours(&ours);
}

/* At once, even if a transfer is being copied. */
static void
removed_peer_gets_its_memory_back(void **state)
{
    block_t ours = new_ours(LEGACY, 4 * MIB);
    (void)state;

    for (unsigned round = 0; round < rounds(20); round++) {
        block_t theirs = make_theirs(0, kind_of(round), 4 * MIB);
        vnx_error_t error;
        load_other();
        move(VNX_OP_READ, &ours, 0, &theirs, round);
        vnx_xfer_t *xfer = make_ours(VNX_OP_WRITE, &ours, &theirs);
        atomic_store(&fake->delay_us, 3000);
        if (round % 4 > 0) {
            vnx_xfer_post(xfer, NULL, 0, &error);
        }
        assert_ok(vnx_agent_remove_peer(a, "B", 1, e));
        assert_int_equal(fake->imports + fake->reservations, 0);
        assert_false(tell(DEREGISTER, 0).is_shared);
        tell(FREE, 0);
        atomic_store(&fake->delay_us, 0);
        vnx_xfer_abandon(xfer);
    }
    end_ours(&ours);
}

/* The owner waits for a reader whose GPU is busy, but not for ever. */
static void
owner_does_not_wait_for_ever(void **state)
{
    block_t ours = new_ours(LEGACY, 4 * MIB);
    block_t theirs = make_theirs(0, MAPPED_FD, 4 * MIB);
    vnx_error_t error;
    (void)state;

    load_other();
    vnx_xfer_t *xfer = make_ours(VNX_OP_READ, &ours, &theirs);
    run_xfer(a, xfer);
    int before = calls->count("cuLaunchKernel");
    calls->hold(true);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error), VNX_IN_PROG);
    for (int i = 0; calls->count("cuLaunchKernel") == before && i < 10000;
         i++) {
        wait_ms();
    }
    assert_true(tell(DEREGISTER, 0).is_shared);
    calls->hold(false);
    assert_int_equal(end_of(xfer, &error), VNX_ERR_NOT_FOUND);
    vnx_xfer_abandon(xfer);
    tell(FREE, 0);
    end_ours(&ours);
}

/* -- Tests: trouble --------------------------------------------------------
 */

static void
check_no_answer(vnx_xfer_t *xfer)
{
    vnx_error_t error;

    assert_int_equal(end_of(xfer, &error), VNX_ERR_BACKEND);
    assert_non_null(strstr(error.cause, "has not answered a question"));
}

/* Transfers of memory that is mapped and of memory that is not; both end with
 * an error, and both work afterwards. */
static void
stopped_owner_ends_transfers_and_is_used_again(void **state)
{
    block_t ours = new_ours(LEGACY, CHUNK); /* shares no memory */
    (void)state;

    for (unsigned round = 0; round < 3; round++) {
        kind_t kind = kind_of(round);
        block_t known = make_theirs(0, kind, CHUNK);
        block_t fresh = make_theirs(1, kind, CHUNK);
        vnx_error_t error;
        load_other();
        move(VNX_OP_READ, &ours, 0, &known, 1);
        vnx_xfer_t *xfers[] = {make_ours(VNX_OP_WRITE, &ours, &known),
                               make_ours(VNX_OP_READ, &ours, &fresh)};
        stop_other();
        for (unsigned i = 0; i < 2; i++) {
            assert_int_equal(vnx_xfer_post(xfers[i], NULL, 0, &error),
                             VNX_IN_PROG);
            /* The first one's time is over before the other's; if they share a
             * window, it ends both. */
            nanosleep(&(struct timespec){0, 300000000}, NULL);
        }
        for (unsigned i = 0; i < 2; i++) {
            check_no_answer(xfers[i]);
        }
        kill(other, SIGCONT);
        for (unsigned i = 0; i < 2; i++) {
            assert_int_equal(run(xfers[i], &error), VNX_OK);
            vnx_xfer_abandon(xfers[i]);
        }
        move(VNX_OP_READ, &ours, 0, &known, 3);
        move(VNX_OP_WRITE, &ours, 1, &fresh, 5);
        end_theirs(0);
        end_theirs(1);
    }
    end_ours(&ours);
}

/* Copies within this process that keep the thread of the GPU busy: the driver
 * does not let it go before a copy has landed, and one more is posted. */
enum { BUSY = 64 };

typedef struct busy {
    vnx_agent_t *agent;
    block_t from, to;
    vnx_xfer_t *xfers[BUSY];
} busy_t;

static void
make_busy(busy_t *busy)
{
    vnx_dlist_t *local, *remote;

    busy->agent = make_agent("C");
    busy->to = new_ours(LEGACY, MIB);
    busy->from = make_block(LEGACY, MIB);
    vnx_desc_t left = {busy->to.addr, MIB, 0};
    vnx_desc_t right = {busy->from.addr, MIB, 0};
    vnx_reg_desc_t desc = {.desc = right};
    assert_ok(
        vnx_agent_register(busy->agent, VNX_MEM_VRAM, &desc, 1, NULL, e));
    load_peer(a, busy->agent);
    assert_ok(
        vnx_dlist_create(a, "", 0, VNX_MEM_VRAM, &left, 1, NULL, &local, e));
    assert_ok(vnx_dlist_create(a, "C", 1, VNX_MEM_VRAM, &right, 1, NULL,
                               &remote, e));
    for (unsigned i = 0; i < BUSY; i++) {
        assert_ok(vnx_xfer_create_prepped(a, VNX_OP_READ, local, all_rows(1),
                                          remote, all_rows(1), NULL, 0, false,
                                          &busy->xfers[i], e));
    }
    vnx_dlist_release(local);
    vnx_dlist_release(remote);
    atomic_store(&fake->waits, 1);
    atomic_store(&fake->delay_us, 5000);
}

/* Post those that have ended, once more. */
static void
keep_busy(busy_t *busy)
{
    vnx_error_t error;

    for (unsigned i = 0; i < BUSY; i++) {
        if (vnx_xfer_status(busy->xfers[i], &error) != VNX_IN_PROG &&
            vnx_xfer_post(busy->xfers[i], NULL, 0, &error) != VNX_IN_PROG) {
            fail_msg("%s", error.cause);
        }
    }
}

static void
end_busy(busy_t *busy)
{
    vnx_error_t error;

    atomic_store(&fake->waits, 0);
    atomic_store(&fake->delay_us, 0);
    for (unsigned i = 0; i < BUSY; i++) {
        assert_int_equal(end_of(busy->xfers[i], &error), VNX_OK);
        vnx_xfer_abandon(busy->xfers[i]);
    }
    assert_ok(vnx_agent_remove_peer(a, "C", 1, e));
    vnx_agent_close(busy->agent);
    vnx_agent_release(busy->agent);
    free_block(&busy->from);
    end_ours(&busy->to);
}

/* The thread of the GPU always finds something to copy meanwhile.  The limit
 * of this test is a number of copies, not a time. */
static void
stopped_owner_ends_transfers_while_others_go_on(void **state)
{
    block_t ours = new_ours(LEGACY, MIB);
    block_t theirs = make_theirs(0, LEGACY, MIB);
    busy_t busy;
    vnx_error_t error;
    (void)state;

    load_other();
    vnx_xfer_t *xfer = make_ours(VNX_OP_READ, &ours, &theirs);
    run_xfer(a, xfer);
    stop_other();
    make_busy(&busy);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error), VNX_IN_PROG);
    for (int i = 0; i < 5500; i++) { /* the owner should have answered */
        keep_busy(&busy);
        wait_ms();
    }
    int launches = fake->launches;
    while (vnx_xfer_status(xfer, &error) == VNX_IN_PROG &&
           fake->launches - launches < 200) {
        keep_busy(&busy);
        wait_ms();
    }
    assert_int_equal(vnx_xfer_status(xfer, &error), VNX_ERR_BACKEND);
    check_no_answer(xfer);
    kill(other, SIGCONT);
    vnx_xfer_abandon(xfer);
    end_busy(&busy);
    end_theirs(0);
    end_ours(&ours);
}

/* What the owner has not begun to write it does not write later. */
static void
cancelled_write_leaves_the_owner_alone(void **state)
{
    block_t ours = new_ours(LEGACY, 8 * CHUNK);
    block_t theirs = make_theirs(0, MAPPED, 8 * CHUNK);
    vnx_error_t error;
    (void)state;

    load_other();
    for (unsigned round = 0; round < rounds(20); round++) {
        bool is_stopped = round == 0;
        move(VNX_OP_READ, &ours, 0, &theirs, round);
        put_all(&ours, 1000 + round);
        vnx_xfer_t *xfer = make_ours(VNX_OP_WRITE, &ours, &theirs);
        if (is_stopped) {
            stop_other();
        }
        assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error), VNX_IN_PROG);
        struct timespec some = {0, (long)(round * 70000 % 900000)};
        nanosleep(&some, NULL);
        bool has_stopped;
        assert_ok(vnx_xfer_cancel(xfer, &has_stopped, e));
        vnx_status_t status = end_of(xfer, &error);
        assert_true(status == VNX_ERR_CANCELED || status == VNX_OK);
        vnx_xfer_abandon(xfer);
        if (is_stopped) {
            kill(other, SIGCONT);
        }
        unsigned char *now = read_theirs(0), *later = read_theirs(0);
        assert_memory_equal(now, later, theirs.size);
        if (is_stopped) {
            fill(later, theirs.size, round + 1);
            assert_memory_equal(now, later, theirs.size);
        }
        free(now);
        free(later);
    }
    end_theirs(0);
    end_ours(&ours);
}

static atomic_uint timed_waits; /* of this process */

int __real_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex,
                                  const struct timespec *until);
int __wrap_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex,
                                  const struct timespec *until);

int
__wrap_pthread_cond_timedwait(pthread_cond_t *cond, pthread_mutex_t *mutex,
                              const struct timespec *until)
{
    atomic_fetch_add(&timed_waits, 1);
    return __real_pthread_cond_timedwait(cond, mutex, until);
}

/* A transfer that has failed waits for what is still running, asleep. */
static void
failed_transfer_waits_for_the_gpu(void **state)
{
    block_t ours = new_ours(LEGACY, MIB);
    block_t theirs = make_theirs(0, MAPPED_FD, MIB);
    vnx_error_t error;
    (void)state;

    load_other();
    vnx_xfer_t *xfer = make_ours(VNX_OP_READ, &ours, &theirs);
    run_xfer(a, xfer);
    stop_other();
    calls->hold(true);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error), VNX_IN_PROG);
    for (int i = 0; i < 5500; i++) { /* the owner should have answered */
        wait_ms();
    }
    unsigned before = atomic_load(&timed_waits);
    for (int i = 0; i < 500; i++) {
        wait_ms();
    }
    unsigned waits = atomic_load(&timed_waits) - before;
    calls->hold(false);
    check_no_answer(xfer);
    kill(other, SIGCONT);
    vnx_xfer_abandon(xfer);
    assert_in_range(waits, 1, 200);
    end_theirs(0);
    end_ours(&ours);
}

/* The child has an agent of its own, and uses memory of the same peer. */
static void
be_child(const block_t *cpu, const block_t *gpu, unsigned char *blob,
         size_t len)
{
    block_t ours = {CPU, VNX_MEM_DRAM, (uintptr_t)map_pages(MIB), MIB};
    vnx_reg_desc_t desc = {.desc = {ours.addr, MIB, 0}};
    unsigned char *expected = malloc(MIB);
    vnx_error_t error;
    vnx_bytes_t name;

    vnx_agent_close(a); /* the parent's */
    vnx_agent_release(a);
    a = make_agent("C");
    CHECK(vnx_agent_register(a, VNX_MEM_DRAM, &desc, 1, NULL, &error) ==
          VNX_OK);
    CHECK(vnx_agent_load_metadata(a, blob, len, &name, &error) == VNX_OK);
    free(name.data);
    CHECK(run(make_ours(VNX_OP_READ, &ours, cpu), &error) == VNX_OK);
    fill(expected, MIB, 9);
    CHECK(memcmp((void *)(uintptr_t)ours.addr, expected, MIB) == 0);
    /* CUDA does not work here, but in the peer it does. */
    CHECK(run(make_ours(VNX_OP_READ, &ours, gpu), &error) == VNX_OK);
    vnx_agent_close(a);
    _exit(0);
}

static void
forked_child_does_not_disturb_what_is_mapped(void **state)
{
    (void)state;
#ifdef __SANITIZE_THREAD__
    print_message("SKIP: TSan starts no threads in a forked child\n");
    skip();
#endif

    for (unsigned round = 0; round < 6; round++) {
        block_t ours = new_ours(LEGACY, MIB);
        block_t theirs = make_theirs(0, kind_of(round), MIB);
        block_t their_cpu = make_theirs(1, CPU, MIB);
        unsigned char *blob = NULL;
        int status;
        fill_theirs(1, 9);
        load_other();
        size_t len =
            tell_all((command_t){METADATA, 0, 0, 0, 0, 0}, &blob).bytes;
        vnx_xfer_t *xfer = make_ours(VNX_OP_READ, &ours, &theirs);
        run_xfer(a, xfer);
        atomic_store(&fake->delay_us, 3000);
        vnx_xfer_post(xfer, NULL, 0, NULL);
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            be_child(&their_cpu, &theirs, blob, len);
        }
        vnx_error_t error;
        assert_int_equal(end_of(xfer, &error), VNX_OK);
        vnx_xfer_abandon(xfer);
        atomic_store(&fake->delay_us, 0);
        move(VNX_OP_WRITE, &ours, 0, &theirs, 7);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
        move(VNX_OP_READ, &ours, 0, &theirs, 8);
        free(blob);
        end_theirs(0);
        end_theirs(1);
        end_ours(&ours);
    }
}

/* -- Tests: generations ----------------------------------------------------
 */

/* What threads that read the same region of the owner know about it. */
typedef struct generations {
    block_t theirs;
    atomic_uint oldest; /* that a transfer may read which is posted now */
    atomic_uint newest; /* that any transfer may read */
    atomic_bool is_over;
    atomic_uint done, failed;
} generations_t;

typedef struct reader {
    pthread_t thread;
    generations_t *shared;
    block_t ours;
} reader_t;

/* Are these the bytes of one of the generations? */
static bool
is_one_of(const unsigned char *bytes, size_t len, unsigned oldest,
          unsigned newest)
{
    unsigned char *expected = malloc(len);
    bool is_found = false;

    for (unsigned seed = oldest; seed <= newest && !is_found; seed++) {
        fill(expected, len, seed);
        is_found = memcmp(bytes, expected, len) == 0;
    }
    free(expected);
    return is_found;
}

static bool
is_about_the_region(vnx_status_t status)
{
    return status == VNX_ERR_NOT_FOUND || status == VNX_ERR_MISMATCH ||
           status == VNX_ERR_BACKEND || status == VNX_ERR_NOT_SUPPORTED;
}

static void *
read_generations(void *arg)
{
    const reader_t *reader = arg;
    generations_t *shared = reader->shared;
    vnx_desc_t left = {reader->ours.addr, reader->ours.size, 0};
    vnx_desc_t right = {shared->theirs.addr, shared->theirs.size, 0};

    while (!atomic_load(&shared->is_over)) {
        unsigned oldest = atomic_load(&shared->oldest);
        vnx_xfer_t *xfer = NULL;
        vnx_error_t error;
        vnx_status_t status = try_make(VNX_OP_READ, VNX_MEM_VRAM, &left,
                                       VNX_MEM_VRAM, &right, 1, &xfer, &error);
        if (status == VNX_OK) {
            status = run(xfer, &error);
            vnx_xfer_abandon(xfer);
        }
        if (status == VNX_OK) {
            unsigned char *found = get_all(&reader->ours);
            if (!is_one_of(found, reader->ours.size, oldest,
                           atomic_load(&shared->newest))) {
                print_message("stale bytes after generation %u\n", oldest);
                abort();
            }
            free(found);
            atomic_fetch_add(&shared->done, 1);
        } else if (is_about_the_region(status)) {
            atomic_fetch_add(&shared->failed, 1);
        } else {
            print_message("%d: %s\n", (int)status, error.cause);
            abort();
        }
    }
    return NULL;
}

/* Other memory, or the same with other bytes. */
static void
replace_theirs(const block_t *theirs, unsigned generation)
{
    if (is_mapped(theirs->kind)) {
        tell(SLEEP, 0);
        tell(WAKE, 0);
    }
    fill_theirs(0, generation);
}

static void
check_generations(kind_t kind)
{
    generations_t shared = {.theirs = make_theirs(0, kind, 512 * KIB)};
    reader_t readers[4];

    atomic_store(&fake->delay_us, 100);
    fill_theirs(0, 1);
    atomic_store(&shared.oldest, 1);
    atomic_store(&shared.newest, 1);
    load_other();
    for (unsigned i = 0; i < 4; i++) {
        readers[i].shared = &shared;
        readers[i].ours = new_ours(LEGACY, shared.theirs.size);
        pthread_create(&readers[i].thread, NULL, read_generations,
                       &readers[i]);
    }
    for (unsigned next = 2; next < 2 + rounds(30); next++) {
        unsigned done = atomic_load(&shared.done);
        for (int i = 0; atomic_load(&shared.done) < done + 4 && i < 10000;
             i++) {
            wait_ms();
        }
        assert_true(atomic_load(&shared.done) > done);
        assert_false(tell(DEREGISTER, 0).is_shared);
        atomic_store(&shared.oldest, next);
        atomic_store(&shared.newest, next);
        replace_theirs(&shared.theirs, next);
        tell(REGISTER, 0);
        load_other();
    }
    atomic_store(&shared.is_over, true);
    for (unsigned i = 0; i < 4; i++) {
        pthread_join(readers[i].thread, NULL);
        end_ours(&readers[i].ours);
    }
    atomic_store(&fake->delay_us, 0);
    print_message("%u transfers, %u failed\n", atomic_load(&shared.done),
                  atomic_load(&shared.failed));
    end_theirs(0);
}

/* Each transfer fails, or reads what the region has since it was posted. */
static void
transfers_never_read_what_was_deregistered_before(void **state)
{
    (void)state;
    check_generations(LEGACY);
    check_generations(MAPPED_FD);
    check_generations(MAPPED_FABRIC);
    check_generations(MAPPED);
}

/* -- Tests: drivers and GPUs -----------------------------------------------
 */

/* An owner with two GPUs, of which this process sees the second. */
static void
gpus_that_this_process_does_not_see_are_tried(void **state)
{
    block_t ours = new_ours(LEGACY, MIB), cpu = new_ours(CPU, MIB);
    (void)state;

    restart_other("devices=2,uuids=10");
    block_t far = make_theirs(0, LEGACY, MIB);
    block_t near =
        tell_all((command_t){MAKE, 1, LEGACY, MIB, 0, 1}, NULL).block;
    load_other();
    move(VNX_OP_READ, &ours, 0, &far, 1);
    move(VNX_OP_WRITE, &ours, 0, &far, 2);
    move(VNX_OP_READ, &ours, 1, &near, 3);
    move(VNX_OP_WRITE, &cpu, 1, &near, 4);
    /* This process has no GPU that could copy CPU memory to that one. */
    move(VNX_OP_READ, &cpu, 0, &far, 5);
    move(VNX_OP_WRITE, &cpu, 0, &far, 6);
    end_theirs(0);
    end_theirs(1);
    end_ours(&ours);
    end_ours(&cpu);
}

/* They say so when their memory is mapped.  The owner moves it then. */
static void
gpus_need_not_access_each_other(void **state)
{
    block_t ours = new_ours(LEGACY, MIB);
    (void)state;

    atomic_store(&fake->no_peers, 1);
    restart_other("devices=2,uuids=10,no_peers=1");
    for (unsigned round = 0; round < 2; round++) {
        block_t far = make_theirs(0, round == 0 ? LEGACY : MAPPED_FD, MIB);
        block_t near =
            tell_all((command_t){MAKE, 1, LEGACY, MIB, 0, 1}, NULL).block;
        load_other();
        move(VNX_OP_READ, &ours, 1, &near, 3);
        move(VNX_OP_READ, &ours, 0, &far, 4);
        move(VNX_OP_WRITE, &ours, 0, &far, 5);
        assert_described("PEER_ACCESS_UNSUPPORTED");
        assert_ok(vnx_agent_remove_peer(a, "B", 1, e));
        end_theirs(0);
        end_theirs(1);
    }
    atomic_store(&fake->no_peers, 0);
    end_ours(&ours);
}

/* Only one of our GPUs is that of the owner's memory. */
static void
memory_that_one_gpu_cannot_map_is_mapped_by_another(void **state)
{
    static const kind_t kinds[] = {LEGACY, MAPPED_FD};
    (void)state;

    atomic_store(&fake->devices, 2);
    atomic_store(&fake->no_peers, 1);
    for (unsigned i = 0; i < 2; i++) {
        block_t near = new_ours(LEGACY, CHUNK),
                far = make_on(1, LEGACY, CHUNK);
        block_t theirs = make_theirs(0, kinds[i], CHUNK);
        vnx_reg_desc_t desc = {.desc = {far.addr, far.size, 0}};
        assert_ok(vnx_agent_register(a, far.mem, &desc, 1, NULL, e));
        load_other();
        move(VNX_OP_READ, &far, 0, &theirs, 1);
        assert_described("\"cuda_windows\": 1");
        move(VNX_OP_READ, &near, 0, &theirs, 2);
        assert_described("\"cuda_regions_mapped\": 1");
        move(VNX_OP_WRITE, &far, 0, &theirs, 3);
        end_theirs(0);
        assert_ok(vnx_agent_remove_peer(a, "B", 1, e));
        end_ours(&far);
        end_ours(&near);
        CU_OK(cu.cuDevicePrimaryCtxRelease_v2(1));
    }
    atomic_store(&fake->no_peers, 0);
    atomic_store(&fake->devices, 1);
}

/* The owner moves its memory, to and from two of our GPUs in one transfer. */
static void
moved_memory_may_be_for_two_gpus(void **state)
{
    static const kind_t kinds[] = {LEGACY, MAPPED, POOL};
    (void)state;

    atomic_store(&fake->devices, 2);
    for (unsigned i = 0; i < 3; i++) {
        block_t ours[] = {new_ours(kinds[i], CHUNK),
                          make_on(1, kinds[i], CHUNK)};
        block_t theirs = make_theirs(0, MAPPED, 2 * CHUNK);
        vnx_reg_desc_t desc = {.desc = {ours[1].addr, ours[1].size, 0}};
        vnx_desc_t left[2], right[2];
        assert_ok(vnx_agent_register(a, ours[1].mem, &desc, 1, NULL, e));
        load_other();
        for (unsigned k = 0; k < 2; k++) {
            left[k] = (vnx_desc_t){ours[k].addr, CHUNK, 0};
            right[k] = (vnx_desc_t){theirs.addr + k * CHUNK, CHUNK, 0};
        }
        for (unsigned op = 0; op < 2; op++) {
            vnx_xfer_t *xfer = NULL;
            fill_theirs(0, 9);
            put_all(&ours[0], 10 + op);
            put_all(&ours[1], 20 + op);
            assert_ok(try_make(op == 0 ? VNX_OP_READ : VNX_OP_WRITE,
                               VNX_MEM_VRAM, left, VNX_MEM_VRAM, right, 2,
                               &xfer, e));
            run_xfer(a, xfer);
            vnx_xfer_abandon(xfer);
            unsigned char *found = read_theirs(0);
            for (unsigned k = 0; k < 2; k++) {
                unsigned char *mine = get_all(&ours[k]);
                assert_memory_equal(mine, found + k * CHUNK, CHUNK);
                free(mine);
            }
            free(found);
        }
        end_theirs(0);
        end_ours(&ours[0]);
        end_ours(&ours[1]);
        CU_OK(cu.cuDevicePrimaryCtxRelease_v2(1));
    }
    atomic_store(&fake->devices, 1);
}

/* -- Tests: a program without CUDA ------------------------------------------
 */

typedef struct plain_order {
    block_t theirs;
    size_t blob_len; /* that follows */
} plain_order_t;

static bool
has_loaded(const char *library)
{
    char line[4096];
    bool has = false;
    FILE *maps = fopen("/proc/self/maps", "re");

    while (fgets(line, sizeof line, maps) != NULL) {
        has = has || strstr(line, library) != NULL;
    }
    fclose(maps);
    return has;
}

/* Copies GPU memory of the other process to CPU memory, changes every byte and
 * copies it back. */
static int
plain_main(int fd)
{
    plain_order_t order = {.blob_len = 0};
    vnx_error_t error;
    vnx_bytes_t name;

    setenv("VLLM_NIXL_UCX_LIBRARY", "none", 1);
    CHECK(transact(fd, &order, sizeof order, false));
    unsigned char *blob = malloc(order.blob_len);
    CHECK(transact(fd, blob, order.blob_len, false));
    block_t ours = {CPU, VNX_MEM_DRAM, (uintptr_t)map_pages(order.theirs.size),
                    order.theirs.size};
    vnx_reg_desc_t desc = {.desc = {ours.addr, ours.size, 0}};
    a = make_agent("plain");
    CHECK(vnx_agent_register(a, VNX_MEM_DRAM, &desc, 1, NULL, &error) ==
          VNX_OK);
    CHECK(vnx_agent_load_metadata(a, blob, order.blob_len, &name, &error) ==
          VNX_OK);
    vnx_xfer_t *xfer = make_ours(VNX_OP_READ, &ours, &order.theirs);
    CHECK(run(xfer, &error) == VNX_OK);
    vnx_xfer_abandon(xfer);
    for (size_t i = 0; i < ours.size; i++) {
        ((unsigned char *)(uintptr_t)ours.addr)[i] ^= 0xff;
    }
    xfer = make_ours(VNX_OP_WRITE, &ours, &order.theirs);
    CHECK(run(xfer, &error) == VNX_OK);
    vnx_xfer_abandon(xfer);
    CHECK(!has_loaded("cuda.so"));
    vnx_agent_close(a);
    vnx_agent_release(a);
    free(blob);
    free(name.data);
    return 0;
}

static void
program_without_cuda_reaches_gpu_memory(void **state)
{
    static const kind_t kinds[] = {LEGACY, MAPPED_FD, MAPPED, MANAGED, POOL};
    (void)state;

    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        block_t theirs = make_theirs(0, kinds[i], 10 * CHUNK + 100 * KIB);
        plain_order_t order = {.theirs = theirs};
        unsigned char *blob = NULL, *expected = malloc(theirs.size);
        int fd, status = 0;
        fill_theirs(0, 5);
        order.blob_len =
            tell_all((command_t){METADATA, 0, 0, 0, 0, 0}, &blob).bytes;
        pid_t plain = start_program("--plain", &fd);
        assert_true(transact(fd, &order, sizeof order, true));
        assert_true(transact(fd, blob, order.blob_len, true));
        assert_int_equal(waitpid(plain, &status, 0), plain);
        assert_int_equal(status, 0);
        close(fd);
        unsigned char *found = read_theirs(0);
        fill(expected, theirs.size, 5);
        for (size_t k = 0; k < theirs.size; k++) {
            expected[k] ^= 0xff;
        }
        assert_memory_equal(found, expected, theirs.size);
        free(blob);
        free(expected);
        free(found);
        end_theirs(0);
    }
}

/* Both of this process, which opens the same allocation twice. */
static void
two_agents_map_the_same_memory(void **state)
{
    vnx_agent_t *first = a;
    (void)state;

    for (int old = 0; old < 2; old++) {
        block_t ours = new_ours(LEGACY, MIB);
        block_t theirs = make_theirs(0, LEGACY, MIB);
        atomic_store(&fake->old_ipc, old);
        load_other();
        move(VNX_OP_READ, &ours, 0, &theirs, 1);
        a = make_agent("A2");
        block_t more = new_ours(LEGACY, MIB);
        load_other();
        move(VNX_OP_READ, &more, 0, &theirs, 2);
        move(VNX_OP_WRITE, &more, 0, &theirs, 3);
        end_ours(&more);
        vnx_agent_close(a);
        vnx_agent_release(a);
        a = first;
        move(VNX_OP_WRITE, &ours, 0, &theirs, 4);
        end_theirs(0);
        end_ours(&ours);
    }
}

/* Its memory is moved by it, and describe() says why. */
static void
owner_whose_driver_refuses_moves_its_memory(void **state)
{
    static const struct {
        const char *knobs, *function;
        kind_t kind;
    } cases[] = {
        {"refuse=cuIpcGetMemHandle:801", "cuIpcGetMemHandle", LEGACY},
        {"refuse=cuMemExportToShareableHandle:801",
         "cuMemExportToShareableHandle", MAPPED_FD},
        {"refuse=cuMemExportToShareableHandle:801",
         "cuMemExportToShareableHandle", MAPPED_FABRIC},
        {"refuse=cuMemRetainAllocationHandle:1", "cuMemRetainAllocationHandle",
         MAPPED_FD},
    };
    block_t ours = new_ours(LEGACY, MIB), cpu = new_ours(CPU, MIB);
    (void)state;

    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        restart_other(cases[i].knobs);
        block_t theirs = make_theirs(0, cases[i].kind, MIB);
        block_t their_cpu = make_theirs(1, CPU, MIB);
        load_other();
        move(VNX_OP_READ, &ours, 0, &theirs, 4);
        move(VNX_OP_WRITE, &ours, 0, &theirs, 5);
        assert_described("the peer does not share");
        assert_described(cases[i].function);
        move(VNX_OP_READ, &ours, 1, &their_cpu, 1);
        move(VNX_OP_WRITE, &cpu, 1, &their_cpu, 2);
        end_theirs(0);
        end_theirs(1);
        assert_ok(vnx_agent_remove_peer(a, "B", 1, e));
    }
    end_ours(&ours);
    end_ours(&cpu);
}

/* Its peers are told why, and reach the memory when that has passed. */
static void
owner_whose_gpu_cannot_be_opened_says_why(void **state)
{
    static const kind_t kinds[] = {LEGACY, MAPPED_FD, MAPPED};
    block_t ours = new_ours(LEGACY, MIB);
    vnx_error_t error;
    (void)state;

    for (unsigned i = 0; i < 3; i++) {
        restart_other("refuse=cuStreamCreateWithPriority:2");
        block_t theirs = make_theirs(0, kinds[i], MIB);
        load_other();
        vnx_xfer_t *xfer = make_ours(VNX_OP_READ, &ours, &theirs);
        for (unsigned k = 0; k < 2; k++) {
            assert_int_equal(run(xfer, &error), VNX_ERR_BACKEND);
            if (strstr(error.cause, "GPU 0: cuStreamCreateWith") == NULL) {
                fail_msg("%s", error.cause);
            }
        }
        tell(OPEN, 0);
        fill_theirs(0, i);
        run_xfer(a, xfer);
        vnx_xfer_abandon(xfer);
        assert_same(&ours, 0, &theirs);
        assert_route("VRAM", "VRAM", "CUDA");
        end_theirs(0);
        assert_ok(vnx_agent_remove_peer(a, "B", 1, e));
    }
    end_ours(&ours);
}

/* Neither side breaks the capture of a graph, which begins when its program
 * has its memory. */
static void
captures_of_graphs_are_not_broken(void **state)
{
    enum { COUNT = 5 };
    static const kind_t kinds[COUNT] = {LEGACY, MAPPED_FD, MAPPED_FABRIC,
                                        MAPPED, CPU};
    block_t ours[] = {make_block(LEGACY, CHUNK), make_block(CPU, CHUNK)};
    block_t theirs[COUNT];
    (void)state;

    for (unsigned i = 0; i < COUNT; i++) {
        theirs[i] = make_theirs(i, kinds[i], CHUNK);
        tell(DEREGISTER, i);
    }
    atomic_store(&fake->capturing, 1);
    tell_all((command_t){.order = CAPTURE, .value = 1}, NULL);
    for (unsigned i = 0; i < 2; i++) {
        vnx_reg_desc_t desc = {.desc = {ours[i].addr, ours[i].size, 0}};
        assert_ok(vnx_agent_register(a, ours[i].mem, &desc, 1, NULL, e));
    }
    for (unsigned round = 0; round < 2; round++) {
        for (unsigned i = 0; i < COUNT; i++) {
            tell(REGISTER, i);
        }
        load_other();
        for (unsigned i = 0; i < 2 * COUNT; i++) {
            if (i < COUNT || kinds[i % COUNT] != CPU) {
                move(VNX_OP_READ, &ours[i / COUNT], i % COUNT,
                     &theirs[i % COUNT], i);
                move(VNX_OP_WRITE, &ours[i / COUNT], i % COUNT,
                     &theirs[i % COUNT], i + 9);
            }
        }
        for (unsigned i = 0; i < COUNT; i++) {
            tell(DEREGISTER, i);
        }
    }
    for (unsigned i = 0; i < 2; i++) {
        vnx_reg_desc_t desc = {.desc = {ours[i].addr, ours[i].size, 0}};
        assert_ok(vnx_agent_deregister(a, ours[i].mem, &desc, 1, NULL, e));
    }
    atomic_store(&fake->capturing, 0);
    tell_all((command_t){.order = CAPTURE, .value = 0}, NULL);
    assert_int_equal(fake->captures_broken, 0);
    for (unsigned i = 0; i < COUNT; i++) {
        tell(FREE, i);
    }
    free_block(&ours[0]);
    free_block(&ours[1]);
}

/* -- The frame of every test -----------------------------------------------
 */

static int
start_test(void **state)
{
    (void)state;
    start_other();
    a = make_agent("A");
    return 0;
}

static int
end_test(void **state)
{
    (void)state;
    calls->hold(false); /* a test may have failed meanwhile */
    end_other();
    vnx_agent_close(a);
    vnx_agent_release(a);
    a = NULL;
    atomic_store(&fake->old_ipc, 0);
    assert_nothing_shared();
    assert_int_equal(fake->streams, 0);
    return 0;
}

#define PEER_TEST(name) \
    cmocka_unit_test_setup_teardown(name, start_test, end_test)

int
main(int count, char **args)
{
    if (count == 3 && strcmp(args[1], "--owner") == 0) {
        return owner_main(atoi(args[2]));
    }
    if (count == 3 && strcmp(args[1], "--plain") == 0) {
        return plain_main(atoi(args[2]));
    }
    const struct CMUnitTest tests[] = {
        PEER_TEST(gpu_memory_of_another_process_moves),
        PEER_TEST(memory_of_every_kind_moves),
        PEER_TEST(random_plans_move_their_bytes_and_no_others),
        PEER_TEST(many_rows_need_few_calls),
        PEER_TEST(many_regions_are_mapped_in_few_steps),
        PEER_TEST(regions_within_one_allocation_move),
        PEER_TEST(expandable_segments_move),
        PEER_TEST(memory_that_cannot_be_mapped_is_moved_by_its_owner),
        PEER_TEST(sleeping_and_waking_leads_to_the_new_memory),
        PEER_TEST(memory_that_was_replaced_is_noticed),
        PEER_TEST(memory_that_sleeps_is_not_moved),
        PEER_TEST(peer_that_dies_ends_transfers),
        PEER_TEST(owner_that_closes_takes_its_memory_back),
        PEER_TEST(removed_peer_gets_its_memory_back),
        PEER_TEST(owner_does_not_wait_for_ever),
        PEER_TEST(stopped_owner_ends_transfers_and_is_used_again),
        PEER_TEST(stopped_owner_ends_transfers_while_others_go_on),
        PEER_TEST(cancelled_write_leaves_the_owner_alone),
        PEER_TEST(failed_transfer_waits_for_the_gpu),
        PEER_TEST(forked_child_does_not_disturb_what_is_mapped),
        PEER_TEST(transfers_never_read_what_was_deregistered_before),
        PEER_TEST(gpus_that_this_process_does_not_see_are_tried),
        PEER_TEST(gpus_need_not_access_each_other),
        PEER_TEST(memory_that_one_gpu_cannot_map_is_mapped_by_another),
        PEER_TEST(moved_memory_may_be_for_two_gpus),
        PEER_TEST(program_without_cuda_reaches_gpu_memory),
        PEER_TEST(two_agents_map_the_same_memory),
        PEER_TEST(owner_whose_driver_refuses_moves_its_memory),
        PEER_TEST(owner_whose_gpu_cannot_be_opened_says_why),
        PEER_TEST(captures_of_graphs_are_not_broken),
    };
    start_cuda();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
