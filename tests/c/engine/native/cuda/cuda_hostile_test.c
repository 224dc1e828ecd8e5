/*
 * Agents that lie about shared GPU memory, on the fake libcuda.so.1.  Whatever
 * they say, the honest side does not misuse the driver, leaks nothing, fails
 * with an error that says why, and serves honest peers afterwards.
 * window_hostile_test.c has those that lie about windows.
 */
#include "lend_node.h"

#define EACH 4u            /* regions of each kind of memory */
#define REGIONS (2 * EACH) /* the first ones are of cuMemAlloc() */
#define SIZE (2 * CHUNK)   /* of a region */
#define SEED 77

/* -- The liar --------------------------------------------------------------
 */

typedef enum lie {
    HONEST,
    SILENT,
    NOISE, /* a lot of nonsense, then the truth */
    GAP,
    SHORT,
    OVERLAP,
    HOLE,
    TWICE,
    TOO_EARLY,
    TOO_LATE,
    NO_FDS,
    FEWER_FDS,
    MORE_FDS,
    OTHER_KIND,
    BAD_HANDLE,
    BAD_FD,
    TOO_BIG,
    TOO_SMALL,
    ODD,
    HUGE,
    REFUSE_NOT_FOUND,
    REFUSE_STRANGELY,
    REFUSE_ONCE,
    REFUSE_TWICE,
    SLOW,       /* one allocation an answer, after some seconds */
    RECALLS,    /* the same, but first it recalls region 0 */
    FIRST_ONLY, /* the first of its allocations, then nothing */
    ALWAYS_RECALLS,
    NEVER_LAST,
    CHECK_SILENT,
    CHECK_NOISE,
    STALE_ONCE,
    ALWAYS_STALE,
} lie_t;

typedef struct liar {
    node_t node; /* first */
    block_t blocks[2];
    unsigned char handle[VNXI_LEND_HANDLE_SIZE];
    atomic_uint lies[REGIONS];
    atomic_uint checks[REGIONS];
    atomic_uint refusals[REGIONS];
    atomic_uint asks;
    unsigned char region_of[4096]; /* by loan, modulo its size */
    uint64_t loan;                 /* the last one of region 0 */
} liar_t;

/* An answer under construction. */
typedef struct lent {
    vnxi_lend_piece_t pieces[VNXI_LEND_PIECES_MAX + 1];
    int fds[VNXI_LEND_PIECES_MAX];
    size_t count, fd_count;
    bool is_last;
} lent_t;

static uint64_t
region_at(const liar_t *liar, unsigned region)
{
    const block_t *block = &liar->blocks[region / EACH];
    return block->addr + region % EACH * SIZE;
}

static int
export_chunk(uint64_t at)
{
    vnxi_cu_mem_t memory;
    int fd = -1;

    cu.cuMemRetainAllocationHandle(&memory, (void *)(uintptr_t)at);
    cu.cuMemExportToShareableHandle(
        &fd, memory, VNXI_CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
    cu.cuMemRelease(memory);
    return vnxi_fork_fd_own(fd);
}

static lent_t
truth(const liar_t *liar, unsigned region)
{
    const block_t *block = &liar->blocks[region / EACH];
    lent_t lent = {.is_last = true, .count = 1};

    if (region < EACH) {
        lent.pieces[0] = (vnxi_lend_piece_t){.start = block->addr,
                                             .size = block->size,
                                             .id = 1,
                                             .kind = VNXI_LEND_LEGACY};
        memcpy(lent.pieces[0].handle, liar->handle, sizeof liar->handle);
        return lent;
    }
    for (lent.count = 0; lent.count < SIZE / CHUNK; lent.count++) {
        uint64_t at = region_at(liar, region) + lent.count * CHUNK;
        lent.fds[lent.fd_count++] = export_chunk(at);
        lent.pieces[lent.count] = (vnxi_lend_piece_t){.start = at,
                                                      .size = CHUNK,
                                                      .id = at / CHUNK,
                                                      .kind = VNXI_LEND_FD};
    }
    return lent;
}

static void
say_lent(liar_t *liar, uint64_t asker, uint64_t loan, lent_t *lent)
{
    liar_say(&liar->node, asker,
             &(vnxi_lend_t){.type = VNXI_LEND_LENT,
                            .loan = loan,
                            .is_last = lent->is_last,
                            .count = lent->count,
                            .pieces = lent->pieces},
             lent->fds, lent->fd_count);
}

static void
drop_fd(lent_t *lent)
{
    vnxi_fork_fd_close(lent->fds[--lent->fd_count]);
}

/* Make of the truth about a region that starts at `at` a lie. */
static void
twist(lent_t *lent, lie_t lie, uint64_t at)
{
    vnxi_lend_piece_t *first = lent->pieces, *last = first + lent->count - 1;

    switch (lie) {
    case GAP:
        first->size -= at + 1 - first->start;
        first->start = at + 1;
        break;
    case SHORT:
        if (lent->count > 1) {
            lent->count--;
            drop_fd(lent);
        } else {
            last->size = at + SIZE - 1 - last->start;
        }
        break;
    case OVERLAP:
        first[1] = *first;
        first[1].start = first->start + first->size - 1;
        lent->count = 2;
        break;
    case HOLE:
        first[1] = *first;
        first[1].start = first->start + first->size + 1;
        lent->count = 2;
        break;
    case TWICE:
        first[1] = *first;
        lent->count = 2;
        break;
    case TOO_EARLY:
        first->start = at - first->size;
        break;
    case TOO_LATE:
        first->start = at + SIZE;
        break;
    case NO_FDS:
        while (lent->fd_count > 0) {
            drop_fd(lent);
        }
        break;
    case FEWER_FDS:
        drop_fd(lent);
        break;
    case MORE_FDS:
        lent->fds[lent->fd_count++] = liar_other_fd(0);
        break;
    case OTHER_KIND:
        first->kind = first->kind == VNXI_LEND_LEGACY ? VNXI_LEND_FABRIC
                                                      : VNXI_LEND_LEGACY;
        if (lent->fd_count > 0) {
            drop_fd(lent);
        }
        break;
    case BAD_HANDLE:
        memset(first->handle, 0x5a, sizeof first->handle);
        break;
    case BAD_FD:
        drop_fd(lent);
        lent->fds[lent->fd_count++] = liar_other_fd((unsigned)(at / SIZE % 3));
        break;
    case TOO_BIG:
        last->size *= 2;
        break;
    case TOO_SMALL:
        first->size = 4096;
        first[1] = *first;
        first[1].start += 4096;
        lent->count = 2;
        break;
    case ODD:
        first->start -= 1;
        first->size += 1;
        break;
    case HUGE:
        last->size = UINT64_MAX - last->start;
        break;
    default:
        break;
    }
    if (first->kind == VNXI_LEND_FD && lent->count > lent->fd_count &&
        (lie == OVERLAP || lie == HOLE || lie == TWICE)) {
        lent->fds[lent->fd_count++] = liar_other_fd(0);
    }
}

static void
refuse(liar_t *liar, uint64_t asker, uint64_t loan, vnx_status_t status,
       const char *cause)
{
    liar_say_status(&liar->node, asker, VNXI_LEND_REFUSED, loan, status,
                    cause);
}

static void
recall(liar_t *liar, uint64_t asker, uint64_t loan)
{
    liar_say(&liar->node, asker,
             &(vnxi_lend_t){.type = VNXI_LEND_RECALL, .loan = loan}, NULL, 0);
}

static void
say_checked(liar_t *liar, uint64_t asker, uint64_t token,
            const uint64_t *loans, size_t count)
{
    liar_say(&liar->node, asker,
             &(vnxi_lend_t){.type = VNXI_LEND_CHECKED,
                            .loan = token,
                            .count = count,
                            .loans = loans},
             NULL, 0);
}

/* Messages that have no meaning: of loans and tokens that do not exist, of
 * types that owners do not send, of no type at all. */
static void
say_nonsense(liar_t *liar, uint64_t asker, uint64_t loan)
{
    static unsigned char garbage[5000] = {0xff, 2, 3};
    const uint64_t loans[] = {loan, loan + 1, 0, UINT64_MAX};

    for (uint64_t other = loan + 1000; other < loan + 1003; other++) {
        lent_t lent = truth(liar, EACH);
        say_lent(liar, asker, other, &lent);
        refuse(liar, asker, other, VNX_ERR_NOT_FOUND, "why not");
        recall(liar, asker, other);
        say_checked(liar, asker, other, loans, 4);
    }
    for (size_t len = 0; len <= sizeof garbage; len = len * 2 + 1) {
        const vnxi_control_t control = {garbage, len, NULL, 0, false};
        garbage[0] = (unsigned char)len;
        vnxi_hub_send_control(liar->node.hub, asker, "CUDA", &control, NULL);
        vnxi_hub_send_control(liar->node.hub, asker, "NOCUDA", &control, NULL);
    }
    int fds[] = {liar_other_fd(1), liar_other_fd(2)};
    const vnxi_control_t control = {garbage, 9, fds, 2, false};
    vnxi_hub_send_control(liar->node.hub, asker, "UCX", &control, NULL);
    liar_say(&liar->node, asker,
             &(vnxi_lend_t){.type = VNXI_LEND_ASK, .loan = loan, .len = 1},
             NULL, 0);
    liar_say(&liar->node, asker,
             &(vnxi_lend_t){.type = VNXI_LEND_RETURNED, .loan = loan}, NULL,
             0);
    liar_say(
        &liar->node, asker,
        &(vnxi_lend_t){.type = VNXI_LEND_CHECK, .loan = loan, .loans = loans},
        NULL, 0);
}

/* Many small pieces, one after the other, and never the last. */
static void
go_on_for_ever(liar_t *liar, uint64_t asker, const vnxi_lend_t *ask,
               unsigned region)
{
    lent_t lent = truth(liar, 0);

    lent.is_last = false;
    lent.count = region < EACH ? VNXI_LEND_PIECES_MAX : 1;
    for (size_t i = 0; i < lent.count; i++) {
        lent.pieces[i] = lent.pieces[0];
        lent.pieces[i].size = lent.count > 1 ? 512 : SIZE;
        lent.pieces[i].start = ask->from + i * 512;
    }
    say_lent(liar, asker, ask->loan, &lent);
}

/* Say the truth about one allocation. */
static void
lend_one(liar_t *liar, uint64_t asker, const vnxi_lend_t *ask, unsigned region)
{
    lent_t lent = truth(liar, region);
    size_t index = (ask->from - lent.pieces[0].start) / CHUNK;

    for (size_t i = 0; i < lent.count; i++) {
        if (i != index) {
            vnxi_fork_fd_close(lent.fds[i]);
        }
    }
    lent.is_last = index + 1 == lent.count;
    lent.pieces[0] = lent.pieces[index];
    lent.fds[0] = lent.fds[index];
    lent.count = lent.fd_count = 1;
    say_lent(liar, asker, ask->loan, &lent);
}

/* True: there is nothing more to say. */
static bool
answer_in_parts(liar_t *liar, uint64_t asker, const vnxi_lend_t *ask,
                unsigned region, lie_t lie)
{
    struct timespec some = {3, 0}; /* twice is more than an answer may take */
    unsigned refusals = lie == REFUSE_ONCE ? 1 : lie == REFUSE_TWICE ? 2 : 0;

    if (lie == RECALLS) {
        recall(liar, asker, liar->loan);
    }
    if (lie == SLOW || lie == RECALLS) {
        nanosleep(&some, NULL);
        lend_one(liar, asker, ask, region);
        return true;
    }
    if (lie == FIRST_ONLY) {
        if (ask->from == ask->addr) {
            lend_one(liar, asker, ask, region);
        }
        return true;
    }
    if (atomic_load(&liar->refusals[region]) < refusals) {
        atomic_fetch_add(&liar->refusals[region], 1);
        refuse(liar, asker, ask->loan, VNX_ERR_BACKEND, "not now");
        return true;
    }
    return false;
}

static void
on_ask(liar_t *liar, uint64_t asker, const vnxi_lend_t *ask)
{
    unsigned region = 0;

    atomic_fetch_add(&liar->asks, 1);
    while (region < REGIONS && region_at(liar, region) != ask->addr) {
        region++;
    }
    if (region == REGIONS || ask->len != SIZE) {
        return;
    }
    liar->region_of[ask->loan % sizeof liar->region_of] =
        (unsigned char)region;
    liar->loan = region == 0 ? ask->loan : liar->loan;
    lie_t lie = atomic_load(&liar->lies[region]);
    lent_t lent;

    if (answer_in_parts(liar, asker, ask, region, lie)) {
        return;
    }
    switch (lie) {
    case SILENT:
        return;
    case REFUSE_NOT_FOUND:
        refuse(liar, asker, ask->loan, VNX_ERR_NOT_FOUND, "I had one");
        return;
    case REFUSE_STRANGELY:
        refuse(liar, asker, ask->loan, -63, "%s\n\x1b[31m\xff");
        return;
    case NEVER_LAST:
        go_on_for_ever(liar, asker, ask, region);
        return;
    case NOISE:
        say_nonsense(liar, asker, ask->loan);
        break;
    default:
        break;
    }
    lent = truth(liar, region);
    twist(&lent, lie, region_at(liar, region));
    say_lent(liar, asker, ask->loan, &lent);
    if (lie == ALWAYS_RECALLS) {
        recall(liar, asker, ask->loan);
    }
    if (lie == NOISE) { /* twice, and refused after all */
        lent = truth(liar, region);
        say_lent(liar, asker, ask->loan, &lent);
        refuse(liar, asker, ask->loan, VNX_ERR_NOT_FOUND, "no more");
    }
}

static void
on_check(liar_t *liar, uint64_t asker, const vnxi_lend_t *check)
{
    uint64_t loan = check->count > 0 ? vnxi_lend_loan(check, 0) : 0;
    unsigned region = liar->region_of[loan % sizeof liar->region_of];
    unsigned checks = atomic_fetch_add(&liar->checks[region], 1);
    uint64_t loans[] = {loan, loan + 1, 0, UINT64_MAX};

    switch ((lie_t)atomic_load(&liar->lies[region])) {
    case CHECK_SILENT:
        return;
    case CHECK_NOISE:
        say_nonsense(liar, asker, loan);
        for (uint64_t i = 1; i < 4; i++) {
            say_checked(liar, asker, check->loan + i, loans, 4);
            say_checked(liar, asker, check->loan - i, loans, 4);
        }
        say_checked(liar, asker, check->loan, NULL, 0);
        say_checked(liar, asker, check->loan, loans, 4); /* too late */
        return;
    case STALE_ONCE: /* about loans that were not asked about */
        say_checked(liar, asker, check->loan, loans + 1, checks == 0 ? 3 : 0);
        return;
    case ALWAYS_STALE:
        say_checked(liar, asker, check->loan, loans, 1);
        return;
    default:
        say_checked(liar, asker, check->loan, NULL, 0);
        return;
    }
}

static void
on_question(node_t *node, uint64_t asker, const vnxi_control_t *control)
{
    liar_t *liar = (liar_t *)node;
    vnxi_lend_t message;

    if (vnxi_lend_read(control->data, control->len, &message)) {
        if (message.type == VNXI_LEND_ASK) {
            on_ask(liar, asker, &message);
        } else if (message.type == VNXI_LEND_CHECK) {
            on_check(liar, asker, &message);
        }
    }
}

/* -- Its process -----------------------------------------------------------
 */

typedef struct command {
    unsigned region;
    lie_t lie;
} command_t;

typedef struct facts {
    unsigned asks, checks;
    int misuses;
    size_t fds;
} facts_t;

static int
liar_main(int fd)
{
    static liar_t liar;
    liar_memory_t memory = {.count = REGIONS, .size = SIZE, .flags = 1};
    vnxi_cu_ipc_handle_t handle;
    command_t command;

    start_cuda();
    liar.blocks[0] = make_block(LEGACY, EACH * SIZE);
    liar.blocks[1] = make_block(MAPPED_FD, EACH * SIZE);
    CU_OK(cu.cuIpcGetMemHandle(&handle, liar.blocks[0].addr));
    memcpy(liar.handle, &handle, sizeof liar.handle);
    assert_int_equal(node_init_for(&liar.node, "B", on_question), VNX_OK);
    for (unsigned i = 0; i < 2; i++) {
        put_all(&liar.blocks[i], SEED + i);
    }
    for (unsigned i = 0; i < REGIONS; i++) {
        memory.at[i] = region_at(&liar, i);
    }
    liar_publish(fd, &liar.node, memory);
    while (transact(fd, &command, sizeof command, false)) {
        unsigned region = command.region % REGIONS;
        facts_t facts = {atomic_load(&liar.asks),
                         atomic_load(&liar.checks[region]), fake->misuses,
                         open_fds()};
        atomic_store(&liar.lies[region], command.lie);
        atomic_store(&liar.checks[region], 0);
        atomic_store(&liar.refusals[region], 0);
        transact(fd, &facts, sizeof facts, true);
    }
    node_fini(&liar.node);
    free_block(&liar.blocks[0]);
    free_block(&liar.blocks[1]);
    return fake->misuses > 0;
}

/* -- Telling it ------------------------------------------------------------
 */

static facts_t
tell(unsigned region, lie_t lie)
{
    command_t command = {region, lie};
    facts_t facts;

    assert_true(transact(to_liar, &command, sizeof command, true));
    assert_true(transact(to_liar, &facts, sizeof facts, false));
    return facts;
}

/* Remove it, and wait until nothing of its memory is left here. */
static void
forget_liar(void)
{
    assert_ok(vnx_agent_remove_peer(a, "B", 1, e));
    for (int i = 0;
         (fake->imports > 0 || fake->reservations > 0 || fake->handles > 0) &&
         i < 10000;
         i++) {
        wait_ms();
    }
    assert_nothing_shared();
}

static vnx_xfer_t *
make_read(const block_t *ours, unsigned region)
{
    const block_t block = {region < EACH ? LEGACY : MAPPED_FD, VNX_MEM_VRAM,
                           theirs.at[region], SIZE};
    return make_ours(VNX_OP_READ, ours, &block);
}

static void
check_bytes(const block_t *ours, unsigned region)
{
    unsigned char *all = malloc(EACH * SIZE), *found = get_all(ours);

    fill(all, EACH * SIZE, SEED + region / EACH);
    assert_memory_equal(found, all + region % EACH * SIZE, SIZE);
    free(all);
    free(found);
}

static void
check_honest(const block_t *ours, unsigned region)
{
    vnx_error_t error;

    tell(region, HONEST);
    vnx_xfer_t *xfer = make_read(ours, region);
    put_all(ours, 1);
    if (run(xfer, &error) != VNX_OK) {
        fail_msg("region %u: %s", region, error.cause);
    }
    vnx_xfer_abandon(xfer);
    check_bytes(ours, region);
}

/* -- Tests: a lying owner --------------------------------------------------
 */

typedef struct expectation {
    lie_t lie;
    const char *name;
    vnx_status_t status;
    const char *cause;
    bool only_fds; /* it is about descriptors */
} expectation_t;

#define EXPECT(lie, ...)       \
    {                          \
        lie, #lie, __VA_ARGS__ \
    }

static const expectation_t expectations[] = {
    EXPECT(HONEST, VNX_OK, "", false),
    EXPECT(NOISE, VNX_OK, "", false),
    EXPECT(GAP, VNX_ERR_MISMATCH, "does not describe the GPU memory", false),
    EXPECT(SHORT, VNX_ERR_MISMATCH, "leaves out the end", false),
    EXPECT(OVERLAP, VNX_ERR_MISMATCH, "does not describe", false),
    EXPECT(HOLE, VNX_ERR_MISMATCH, "does not describe", false),
    EXPECT(TWICE, VNX_ERR_MISMATCH, "does not describe", false),
    EXPECT(TOO_EARLY, VNX_ERR_MISMATCH, "does not describe", false),
    EXPECT(TOO_LATE, VNX_ERR_MISMATCH, "does not describe", false),
    EXPECT(NO_FDS, VNX_ERR_BACKEND, "has the wrong descriptors", true),
    EXPECT(FEWER_FDS, VNX_ERR_BACKEND, "has the wrong descriptors", true),
    EXPECT(MORE_FDS, VNX_ERR_BACKEND, "has the wrong descriptors", false),
    EXPECT(OTHER_KIND, VNX_ERR_BACKEND, "Handle", false),
    EXPECT(BAD_HANDLE, VNX_ERR_BACKEND, "cuIpcOpenMemHandle_v2", false),
    EXPECT(BAD_FD, VNX_ERR_BACKEND, "cuMemImportFromShareableHandle", true),
    EXPECT(TOO_BIG, VNX_ERR_MISMATCH, "bytes, not", false),
    EXPECT(TOO_BIG, VNX_ERR_BACKEND, "cuMemMap", true),
    EXPECT(TOO_SMALL, VNX_ERR_BACKEND, "cuMem", true),
    EXPECT(ODD, VNX_ERR_BACKEND, "cuMem", true),
    EXPECT(HUGE, VNX_ERR_MISMATCH, "bytes, not", false),
    EXPECT(HUGE, VNX_ERR_BACKEND, "cuMem", true),
    EXPECT(REFUSE_NOT_FOUND, VNX_ERR_NOT_FOUND, "bytes: I had one", false),
    EXPECT(REFUSE_STRANGELY, VNX_ERR_BACKEND, "bytes: %s??[31m?", false),
    EXPECT(REFUSE_ONCE, VNX_OK, "", false),
    EXPECT(REFUSE_TWICE, VNX_ERR_BACKEND, "bytes: not now", false),
    EXPECT(CHECK_NOISE, VNX_OK, "", false),
    EXPECT(STALE_ONCE, VNX_OK, "", false),
};

/* `only_fds` has an answer for the same lie about the other kind of memory. */
static bool
has_own(const expectation_t *expectation, unsigned region)
{
    bool is_fd = region >= EACH;
    bool has_other = expectation->lie == TOO_BIG || expectation->lie == HUGE;

    return is_fd ? !has_other || expectation->only_fds
                 : !expectation->only_fds;
}

static void
check_lie(const block_t *ours, const expectation_t *expectation,
          unsigned region)
{
    bool is_bad_handle = expectation->lie == BAD_HANDLE && region >= EACH;
    vnx_error_t error;

    if (!has_own(expectation, region) || is_bad_handle) {
        return;
    }
    load_liar();
    tell(region, expectation->lie);
    put_all(ours, 1);
    vnx_xfer_t *xfer = make_read(ours, region);
    vnx_status_t status = run(xfer, &error);
    check_error(expectation->name, status, &error, expectation->status,
                expectation->cause);
    if (status == VNX_OK) {
        check_bytes(ours, region);
    } else {
        assert_string_equal(error.peer, "B");
    }
    vnx_xfer_abandon(xfer);
    assert_int_equal(fake->misuses, 0);
    forget_liar();
    load_liar();
    check_honest(ours, region);
    forget_liar();
}

static void
lies_about_memory_are_found_out(void **state)
{
    block_t ours = new_ours(LEGACY, SIZE), cpu = new_ours(CPU, SIZE);
    (void)state;

    for (size_t i = 0; i < sizeof expectations / sizeof *expectations; i++) {
        check_lie(&ours, &expectations[i], 1);
        check_lie(&ours, &expectations[i], EACH + 2);
        check_lie(&cpu, &expectations[i], EACH + 1);
    }
    end_ours(&ours);
    end_ours(&cpu);
}

/* Regions of which the truth is said, in the same transfer and others. */
static void
lie_about_one_region_does_not_disturb_others(void **state)
{
    block_t ours = new_ours(LEGACY, SIZE);
    vnx_desc_t left[2], right[2];
    vnx_xfer_t *xfer = NULL;
    vnx_error_t error;
    (void)state;

    load_liar();
    for (unsigned i = 0; i < REGIONS; i++) {
        check_honest(&ours, i);
    }
    forget_liar();
    load_liar();
    for (size_t i = 0; i < 2; i++) {
        left[i] = (vnx_desc_t){ours.addr + i * CHUNK, CHUNK, 0};
        right[i] = (vnx_desc_t){theirs.at[i * EACH], CHUNK, 0};
    }
    tell(0, HONEST);
    tell(EACH, SHORT);
    assert_ok(try_make(VNX_OP_READ, VNX_MEM_VRAM, left, VNX_MEM_VRAM, right, 2,
                       &xfer, e));
    assert_int_equal(run(xfer, &error), VNX_ERR_MISMATCH);
    check_honest(&ours, 0);
    check_honest(&ours, 1);
    tell(EACH, HONEST);
    assert_int_equal(run(xfer, &error), VNX_OK);
    vnx_xfer_abandon(xfer);
    forget_liar();
    end_ours(&ours);
}

/* A read of the first bytes of several regions. */
static vnx_xfer_t *
make_list_read(const block_t *ours, const unsigned *regions, size_t count)
{
    vnx_desc_t left[REGIONS], right[REGIONS];
    vnx_xfer_t *xfer = NULL;

    for (size_t i = 0; i < count; i++) {
        left[i] = (vnx_desc_t){ours->addr + i * KIB, KIB, 0};
        right[i] = (vnx_desc_t){theirs.at[regions[i]], KIB, 0};
    }
    assert_ok(try_make(VNX_OP_READ, VNX_MEM_VRAM, left, VNX_MEM_VRAM, right,
                       count, &xfer, e));
    return xfer;
}

/* The transfer that has asked ends with the first refusal.  The others are not
 * for those that begin later. */
static void
refusal_is_not_kept_for_later_transfers(void **state)
{
    static const unsigned regions[] = {0, 1, EACH};
    block_t ours = new_ours(LEGACY, SIZE);
    vnx_error_t error;
    (void)state;

    load_liar();
    for (unsigned i = 0; i < 3; i++) {
        tell(regions[i], REFUSE_NOT_FOUND);
    }
    vnx_xfer_t *xfer = make_list_read(&ours, regions, 3);
    assert_int_equal(run(xfer, &error), VNX_ERR_NOT_FOUND);
    check_honest(&ours, 2); /* whose answers come after all refusals */
    for (unsigned i = 0; i < 3; i++) {
        tell(regions[i], HONEST);
    }
    if (run(xfer, &error) != VNX_OK) {
        fail_msg("%s", error.cause);
    }
    vnx_xfer_abandon(xfer);
    forget_liar();
    end_ours(&ours);
}

/* Every transfer that waits for such an owner ends, all at the same time, and
 * transfers of other regions need not wait. */
static void
owner_that_never_comes_to_an_end_is_given_up(void **state)
{
    static const struct {
        unsigned region;
        lie_t lie;
        vnx_status_t status;
        const char *cause;
    } cases[] = {
        {0, SILENT, VNX_ERR_BACKEND, "not answered a question about its GPU"},
        {1, CHECK_SILENT, VNX_ERR_BACKEND, "not answered a question"},
        {2, ALWAYS_STALE, VNX_ERR_MISMATCH,
         "has replaced its GPU memory during each of"},
        {3, NEVER_LAST, VNX_ERR_MISMATCH, "goes on after the end"},
        {EACH, ALWAYS_RECALLS, VNX_ERR_BACKEND, "not answered a question"},
        {EACH + 1, NEVER_LAST, VNX_ERR_MISMATCH, "goes on after the end"},
        {EACH + 2, FIRST_ONLY, VNX_ERR_BACKEND, "not answered a question"},
    };
    enum { COUNT = sizeof cases / sizeof *cases };
    block_t blocks[COUNT], ours = new_ours(LEGACY, SIZE);
    vnx_xfer_t *xfers[COUNT];
    vnx_error_t error;
    (void)state;

    load_liar();
    for (unsigned i = 0; i < COUNT; i++) {
        blocks[i] = new_ours(LEGACY, SIZE);
        tell(cases[i].region, cases[i].lie);
        xfers[i] = make_read(&blocks[i], cases[i].region);
        assert_int_equal(vnx_xfer_post(xfers[i], NULL, 0, &error),
                         VNX_IN_PROG);
    }
    for (unsigned i = 0; i < 10; i++) {
        check_honest(&ours, EACH + 3);
    }
    for (unsigned i = 0; i < COUNT; i++) {
        vnx_status_t status = end_of(xfers[i], &error);
        char name[16];
        snprintf(name, sizeof name, "case %u", i);
        if (cases[i].lie != ALWAYS_RECALLS || status != VNX_OK) {
            check_error(name, status, &error, cases[i].status, cases[i].cause);
        }
        vnx_xfer_abandon(xfers[i]);
        end_ours(&blocks[i]);
    }
    forget_liar();
    load_liar();
    for (unsigned i = 0; i < COUNT; i++) {
        check_honest(&ours, cases[i].region);
    }
    forget_liar();
    end_ours(&ours);
}

/* The limit is for an answer, and memory may need many.  Other memory may be
 * taken back meanwhile. */
static void
owner_may_take_its_time_for_each_answer(void **state)
{
    static const lie_t slow[] = {SLOW, RECALLS};
    block_t ours = new_ours(LEGACY, SIZE);
    vnx_error_t error;
    (void)state;

    for (unsigned i = 0; i < 2; i++) {
        load_liar();
        check_honest(&ours, 0);
        tell(EACH, slow[i]);
        vnx_xfer_t *xfer = make_read(&ours, EACH);
        if (run(xfer, &error) != VNX_OK) {
            fail_msg("%s", error.cause);
        }
        check_bytes(&ours, EACH);
        vnx_xfer_abandon(xfer);
        tell(EACH, HONEST);
        forget_liar();
    }
    end_ours(&ours);
}

/* A transfer that needs more does not wait for ever meanwhile. */
static void
owner_that_takes_back_again_and_again_is_given_up(void **state)
{
    static const unsigned regions[] = {0, 1, EACH};
    block_t ours = new_ours(LEGACY, SIZE);
    vnx_error_t error;
    (void)state;

    load_liar();
    tell(0, ALWAYS_RECALLS);
    tell(1, SILENT);
    tell(EACH, ALWAYS_RECALLS);
    vnx_xfer_t *xfer = make_list_read(&ours, regions, 3);
    check_error("takes back", run(xfer, &error), &error, VNX_ERR_BACKEND,
                "has not answered a question");
    vnx_xfer_abandon(xfer);
    for (unsigned i = 0; i < 3; i++) {
        tell(regions[i], HONEST);
    }
    forget_liar();
    end_ours(&ours);
}

/* It is asked about a few regions at a time only, because its answers can have
 * many descriptors. */
static void
owner_is_asked_few_questions_at_a_time(void **state)
{
    static const unsigned regions[REGIONS] = {0, 1, 2, 3, 4, 5, 6, 7};
    block_t ours = new_ours(LEGACY, SIZE);
    unsigned before = tell(0, SILENT).asks, asks = 0;
    vnx_error_t error;
    (void)state;

    load_liar();
    for (unsigned i = 0; i < REGIONS; i++) {
        tell(i, SILENT);
    }
    vnx_xfer_t *xfer = make_list_read(&ours, regions, REGIONS);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error), VNX_IN_PROG);
    for (int i = 0; asks < 4 && i < 10000; i++) {
        wait_ms();
        asks = tell(0, SILENT).asks - before;
    }
    for (int i = 0; i < 50; i++) {
        wait_ms();
    }
    assert_int_equal(tell(0, SILENT).asks - before, 4);
    vnx_xfer_abandon(xfer);
    forget_liar();
    load_liar();
    for (unsigned i = 0; i < REGIONS; i++) {
        tell(i, HONEST);
    }
    xfer = make_list_read(&ours, regions, REGIONS);
    assert_int_equal(run(xfer, &error), VNX_OK);
    vnx_xfer_abandon(xfer);
    forget_liar();
    end_ours(&ours);
}

/* Closing does not wait for it either. */
static void
agent_closes_while_an_owner_is_silent(void **state)
{
    block_t ours = new_ours(LEGACY, SIZE);
    vnx_xfer_t *xfers[REGIONS];
    vnx_error_t error;
    (void)state;

    load_liar();
    for (unsigned i = 0; i < REGIONS; i++) {
        tell(i, i % 2 ? SILENT : CHECK_SILENT);
        xfers[i] = make_read(&ours, i);
        vnx_xfer_post(xfers[i], NULL, 0, &error);
    }
    vnx_agent_close(a);
    for (unsigned i = 0; i < REGIONS; i++) {
        assert_true(vnx_xfer_status(xfers[i], &error) < 0);
        vnx_xfer_abandon(xfers[i]);
        tell(i, HONEST);
    }
    free_block(&ours);
}

/* -- The asker -------------------------------------------------------------
 */

static void
asker_ask(asker_t *asker, uint64_t loan, vnx_desc_t region, uint64_t from)
{
    asker_say(asker, &(vnxi_lend_t){.type = VNXI_LEND_ASK,
                                    .loan = loan,
                                    .addr = region.addr,
                                    .len = region.len,
                                    .dev = region.dev,
                                    .from = from});
}

/* Ask for a loan, and check that it is refused for this reason. */
static void
check_refused(asker_t *asker, uint64_t loan, vnx_desc_t region, uint64_t from,
              vnx_status_t status, const char *cause)
{
    size_t before = asker->answers[VNXI_LEND_REFUSED];

    asker_ask(asker, loan, region, from);
    asker_wait(asker, VNXI_LEND_REFUSED, before + 1);
    assert_int_equal(asker->last.loan, loan);
    if (asker->last.status != (uint32_t)-status ||
        strstr(asker->cause, cause) == NULL) {
        fail_msg("refused with -%u '%s', not %d '%s'", asker->last.status,
                 asker->cause, (int)status, cause);
    }
}

/* The next answer is the memory. */
static void
check_lent(asker_t *asker, uint64_t loan, vnx_desc_t region, uint64_t from)
{
    size_t before = asker->answers[VNXI_LEND_LENT];

    asker_ask(asker, loan, region, from);
    asker_wait(asker, VNXI_LEND_LENT, before + 1);
    assert_int_equal(asker->last.loan, loan);
    assert_true(asker->first.start <= from &&
                asker->first.start + asker->first.size > from);
}

/* How many regions A says are lent, waiting for the number. */
static void
wait_lent(unsigned count)
{
    char wanted[40];
    bool is_there = false;
    vnx_bytes_t text;

    snprintf(wanted, sizeof wanted, "\"cuda_regions_lent\": %u,", count);
    for (int i = 0; !is_there && i < 10000; i++) {
        assert_ok(vnx_agent_describe(a, NULL, 0, &text, e));
        is_there = memmem(text.data, text.len, wanted, strlen(wanted)) != NULL;
        if (!is_there && i == 9999) {
            fail_msg("no %s in %.*s", wanted, (int)text.len,
                     (char *)text.data);
        }
        free(text.data);
        wait_ms();
    }
}

/* -- Tests: a lying asker --------------------------------------------------
 */

static void
questions_about_other_memory_are_refused(void **state)
{
    block_t ours = new_ours(MAPPED_FD, SIZE), cpu = new_ours(CPU, SIZE);
    block_t pool = new_ours(POOL, SIZE);
    vnx_desc_t region = whole(&ours), wrong;
    uint64_t end = region.addr + region.len, loan = 1;
    static asker_t asker;
    (void)state;

    asker_open(&asker);
    const vnx_desc_t none[] = {
        {region.addr + 1, region.len - 1, 0},
        {region.addr, region.len - 1, 0},
        {region.addr, region.len + 1, 0},
        {region.addr, region.len, 1},
        {region.addr, 0, 0},
        {0, 0, 0},
        {UINT64_MAX, UINT64_MAX, UINT64_MAX},
        {UINT64_MAX - 10, 100, 0},
        whole(&cpu),
    };
    for (size_t i = 0; i < sizeof none / sizeof *none; i++) {
        check_refused(&asker, loan++, none[i], none[i].addr, VNX_ERR_NOT_FOUND,
                      "not registered");
    }
    wrong = whole(&pool);
    check_refused(&asker, loan++, wrong, wrong.addr, VNX_ERR_NOT_SUPPORTED,
                  "cannot be shared");
    /* A loan begins at the beginning. */
    check_refused(&asker, loan, region, region.addr + CHUNK, VNX_ERR_NOT_FOUND,
                  "deregistered");
    check_lent(&asker, loan, region, region.addr);
    const uint64_t outside[] = {0, region.addr - 1, end, end + 1, UINT64_MAX};
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
        check_refused(&asker, loan, region, outside[i], VNX_ERR_NOT_SUPPORTED,
                      "not in the region");
    }
    check_lent(&asker, loan, region, end - 1);
    check_lent(&asker, loan, region, region.addr + CHUNK + 1);
    check_refused(&asker, loan, whole(&pool), pool.addr, VNX_ERR_NOT_FOUND,
                  "deregistered");
    wait_lent((unsigned)loan);
    for (; loan > 0; loan--) {
        asker_return(&asker, loan);
    }
    wait_lent(0);
    asker_close(&asker);
    end_ours(&ours);
    end_ours(&cpu);
    end_ours(&pool);
}

static void
check_checked(asker_t *asker, uint64_t loan, size_t stale)
{
    size_t before = asker->answers[VNXI_LEND_CHECKED];

    asker_say(asker, &(vnxi_lend_t){.type = VNXI_LEND_CHECK,
                                    .loan = 5,
                                    .count = 1,
                                    .loans = &loan});
    asker_wait(asker, VNXI_LEND_CHECKED, before + 1);
    assert_int_equal(asker->last.loan, 5);
    assert_int_equal(asker->last.count, stale);
}

static void
loans_are_those_of_their_asker(void **state)
{
    block_t ours = new_ours(MAPPED_FD, SIZE);
    static asker_t one, two;
    pthread_t thread;
    (void)state;

    asker_open(&one);
    asker_open(&two);
    check_lent(&one, 7, whole(&ours), ours.addr);
    wait_lent(1);
    check_checked(&one, 7, 0);
    check_checked(&two, 7, 1);
    check_checked(&two, 0, 1);
    asker_return(&two, 7);
    asker_return(&two, 0);
    check_checked(&two, 7, 1);
    check_checked(&one, 7, 0);
    wait_lent(1);
    pthread_create(&thread, NULL, deregister_ours, &ours);
    asker_wait(&one, VNXI_LEND_RECALL, 1);
    check_checked(&one, 7, 1); /* from now on */
    asker_return(&two, 7);
    asker_return(&one, 7);
    pthread_join(thread, NULL);
    wait_lent(0);
    assert_false(calls->shared(ours.addr));
    check_refused(&one, 8, whole(&ours), ours.addr, VNX_ERR_NOT_FOUND,
                  "not registered");
    check_checked(&two, 7, 1);
    assert_int_equal(two.answers[VNXI_LEND_RECALL], 0);
    asker_close(&one);
    asker_close(&two);
    wait_lent(0);
    free_block(&ours);
}

static void
owner_ignores_what_askers_do_not_say(void **state)
{
    static unsigned char garbage[5000];
    static const vnxi_lend_type_t types[] = {VNXI_LEND_LENT, VNXI_LEND_REFUSED,
                                             VNXI_LEND_RECALL,
                                             VNXI_LEND_CHECKED};
    static const char *const entries[] = {"CUDA", "SHM", "UCX", "none"};
    block_t ours = new_ours(LEGACY, SIZE);
    const vnxi_lend_piece_t piece = {
        .start = ours.addr, .size = ours.size, .kind = VNXI_LEND_FABRIC};
    const uint64_t loans[] = {1, 2};
    static asker_t asker;
    (void)state;

    asker_open(&asker);
    check_lent(&asker, 1, whole(&ours), ours.addr);
    for (size_t i = 0; i < 4; i++) {
        for (uint64_t loan = 0; loan < 3; loan++) {
            asker_say(&asker, &(vnxi_lend_t){.type = types[i],
                                             .loan = loan,
                                             .is_last = true,
                                             .status = 1,
                                             .cause = "x",
                                             .count = 1,
                                             .pieces = &piece,
                                             .loans = loans});
        }
    }
    for (size_t len = 0; len <= sizeof garbage; len = len * 2 + 1) {
        const vnxi_control_t control = {.data = garbage, .len = len};
        garbage[0] = (unsigned char)len;
        for (size_t i = 0; i < 4; i++) {
            assert_ok(
                vnxi_link_send_control(asker.link, entries[i], &control, e));
        }
    }
    check_checked(&asker, 1, 0);
    wait_lent(1);
    assert_int_equal(asker.answers[VNXI_LEND_REFUSED], 0);
    asker_return(&asker, 1);
    asker_close(&asker);
    end_ours(&ours);
}

/* The owner waits for it, but not for ever, and other loans are not its. */
static void
asker_that_keeps_memory_is_given_up(void **state)
{
    block_t ours = new_ours(MAPPED_FD, SIZE), other = new_ours(LEGACY, SIZE);
    static asker_t asker;
    (void)state;

    asker_open(&asker);
    check_lent(&asker, 1, whole(&ours), ours.addr);
    check_lent(&asker, 2, whole(&other), other.addr);
    deregister_ours(&ours);
    asker_wait(&asker, VNXI_LEND_RECALL, 1);
    assert_int_equal(asker.last.loan, 1);
    wait_lent(1);
    asker_return(&asker, 1);
    check_checked(&asker, 2, 0);
    free_block(&ours);
    asker_close(&asker); /* which returns the other one */
    wait_lent(0);
    end_ours(&other);
}

/* Until so many of its questions about regions were answered. */
static void
wait_answered(asker_t *asker, size_t count)
{
    bool are_there = false;

    for (int i = 0; !are_there && i < 10000; i++) {
        pthread_mutex_lock(&asker->node.lock);
        are_there = asker->answers[VNXI_LEND_LENT] +
                        asker->answers[VNXI_LEND_REFUSED] >=
                    count;
        pthread_mutex_unlock(&asker->node.lock);
        wait_ms();
    }
    assert_true(are_there);
}

/* It asks without reading the answers. */
static void
asker_that_does_not_read_keeps_few_descriptors_open(void **state)
{
    enum { LOANS = 200 };
    block_t ours = new_ours(MAPPED_FD, 64 * CHUNK);
    static asker_t asker;
    (void)state;

    asker_open(&asker);
    check_lent(&asker, 1, whole(&ours), ours.addr);
    size_t fds = open_fds(), most = 0;
    pthread_mutex_lock(&asker.node.lock); /* blocks its hub */
    for (uint64_t loan = 2; loan <= LOANS; loan++) {
        asker_ask(&asker, loan, whole(&ours), ours.addr);
    }
    wait_lent(LOANS);
    for (int i = 0; i < 300; i++) {
        size_t now = open_fds();
        most = now > most ? now : most;
        wait_ms();
    }
    pthread_mutex_unlock(&asker.node.lock);
    /* Not those of all answers; some can be on their way. */
    assert_in_range(most - fds, 0, LOANS * 64 / 4);
    wait_answered(&asker, LOANS);
    assert_true(asker.answers[VNXI_LEND_REFUSED] > 0);
    check_lent(&asker, LOANS + 1, whole(&ours), ours.addr);
    assert_int_equal(asker.answers[VNXI_LEND_LENT] +
                         asker.answers[VNXI_LEND_REFUSED],
                     LOANS + 1);
    assert_non_null(strstr(asker.cause, "descriptors are queued"));
    asker_close(&asker);
    wait_lent(0);
    assert_false(calls->shared(ours.addr));
    end_ours(&ours);
}

/* The number of loans is limited, for each asker and for all.  Those that an
 * asker has used up come back when it leaves. */
static void
loans_have_a_limit(void **state)
{
    enum { GREEDY = 4, EACH_MAX = 16384 };
    block_t ours = new_ours(LEGACY, SIZE);
    vnx_desc_t none = {0x1000, 0x1000, 0};
    static asker_t greedy[GREEDY], modest;
    (void)state;

    asker_open(&modest);
    for (unsigned i = 0; i < GREEDY; i++) {
        asker_open(&greedy[i]);
        for (uint64_t loan = 1; loan <= EACH_MAX; loan++) {
            asker_ask(&greedy[i], loan, none, none.addr);
        }
        asker_wait(&greedy[i], VNXI_LEND_REFUSED, EACH_MAX);
        check_refused(&greedy[i], EACH_MAX + 1, whole(&ours), ours.addr,
                      VNX_ERR_NOT_SUPPORTED, "too many regions are lent");
        if (i + 1 < GREEDY) {
            check_lent(&modest, 1, whole(&ours), ours.addr);
            asker_return(&modest, 1);
        }
    }
    check_refused(&modest, 2, whole(&ours), ours.addr, VNX_ERR_NOT_SUPPORTED,
                  "too many regions are lent");
    for (unsigned i = 0; i < GREEDY; i++) {
        asker_close(&greedy[i]);
    }
    wait_lent(0);
    check_lent(&modest, 3, whole(&ours), ours.addr);
    asker_return(&modest, 3);
    asker_close(&modest);
    end_ours(&ours);
}

/* -- The frame of every test -----------------------------------------------
 */

static int
start_test(void **state)
{
    (void)state;
    a = make_agent("A");
    return 0;
}

static int
end_test(void **state)
{
    (void)state;
    end_agent();
    return 0;
}

#define HOSTILE_TEST(name) \
    cmocka_unit_test_setup_teardown(name, start_test, end_test)

int
main(int count, char **args)
{
    if (count == 3 && strcmp(args[1], "--liar") == 0) {
        return liar_main(atoi(args[2]));
    }
    const struct CMUnitTest tests[] = {
        HOSTILE_TEST(lies_about_memory_are_found_out),
        HOSTILE_TEST(lie_about_one_region_does_not_disturb_others),
        HOSTILE_TEST(refusal_is_not_kept_for_later_transfers),
        HOSTILE_TEST(owner_that_never_comes_to_an_end_is_given_up),
        HOSTILE_TEST(owner_may_take_its_time_for_each_answer),
        HOSTILE_TEST(owner_that_takes_back_again_and_again_is_given_up),
        HOSTILE_TEST(owner_is_asked_few_questions_at_a_time),
        HOSTILE_TEST(agent_closes_while_an_owner_is_silent),
        HOSTILE_TEST(questions_about_other_memory_are_refused),
        HOSTILE_TEST(loans_are_those_of_their_asker),
        HOSTILE_TEST(owner_ignores_what_askers_do_not_say),
        HOSTILE_TEST(asker_that_keeps_memory_is_given_up),
        HOSTILE_TEST(asker_that_does_not_read_keeps_few_descriptors_open),
        HOSTILE_TEST(loans_have_a_limit),
    };
    start_cuda();
    start_liar();
    note_fds();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    end_liar();
    return failed;
}
