/*
 * Agents that lie about windows (window.h, move.h), on the fake libcuda.so.1.
 * Whatever they say, the honest side does not misuse the driver, leaks
 * nothing, touches no other bytes, fails with an error that says why, and
 * serves honest peers afterwards.
 *
 * The memory of the lying owner cannot be mapped, so agent A needs a window.
 */
#include "lend_node.h"

#define REGIONS 2u
#define HALF ((size_t)VNXI_WINDOW_HALF_BYTES)

/* What transfers move: more rows than two halves hold, with gaps between them.
 */
#define ROWS (2 * VNXI_LEND_ROWS_MAX + 452)
#define STRIDE 112u
#define ROW_AT 3u
#define ROW 97u
#define SIZE (ROWS * STRIDE) /* of a region */

#define OUR_SEED 1
#define SEED 77

/* -- The liar --------------------------------------------------------------
 */

typedef enum lie {
    HONEST,
    OPEN_NO_FD,
    OPEN_TWO_FDS,
    OPEN_SOCKET,
    OPEN_EVENTFD,
    OPEN_UNSEALED,
    OPEN_CAN_SHRINK,
    OPEN_SHORT,
    OPEN_LONG,
    OPEN_READ_ONLY,
    OPEN_REFUSED,
    OPEN_REFUSED_STRANGELY,
    OPEN_REFUSED_WITH_FD,
    OPEN_TWICE,
    OPEN_UNKNOWN,
    OPEN_NOISE,
    OPEN_REFUSED_LATE, /* on RELEASE */
    MOVE_UNKNOWN,
    MOVE_TWICE,
    MOVE_REFUSED,
    MOVE_REFUSED_LATER, /* not the first half */
    MOVE_REFUSED_STRANGELY,
    MOVE_EARLY, /* the answer comes before the copy */
    MOVE_WITH_FDS,
    MOVE_NOISE,
    MOVE_SCRIBBLES,
    MOVE_SHRINKS,
    HELD,   /* moves wait until RELEASE */
    SILENT, /* the same; only one window is opened */
} lie_t;

typedef struct shared {
    uint64_t asker, number;
    unsigned char *base; /* NULL: none */
    int fd;
} shared_t;

typedef struct held {
    uint64_t asker;
    size_t len;
    unsigned char data[VNXI_CONTROL_BYTES_MAX];
} held_t;

typedef struct liar {
    node_t node; /* first */
    block_t blocks[REGIONS], cpu;
    pthread_mutex_t lock; /* of all below */
    lie_t lie;
    unsigned opens, moves; /* since the lie was told */
    shared_t windows[16];
    held_t held[8];
    size_t held_count;
    uint64_t opening[2]; /* of OPEN_REFUSED_LATE: the asker and the window */
} liar_t;

static int
make_window(size_t size, int seals)
{
    int fd = memfd_create("window", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (ftruncate(fd, (off_t)size) != 0 ||
        (seals != 0 && fcntl(fd, F_ADD_SEALS, seals) != 0)) {
        abort();
    }
    return vnxi_fork_fd_own(fd);
}

static shared_t *
find_window(liar_t *liar, uint64_t asker, uint64_t number)
{
    for (unsigned i = 0; i < 16; i++) {
        shared_t *window = &liar->windows[i];
        if (window->base != NULL && window->asker == asker &&
            window->number == number) {
            return window;
        }
    }
    return NULL;
}

static void
close_window(shared_t *window)
{
    munmap(window->base, VNXI_WINDOW_BYTES);
    close(window->fd);
    window->base = NULL;
}

/* A window that is one; returns the descriptor for the asker. */
static int
new_window(liar_t *liar, uint64_t asker, uint64_t number)
{
    int fd = make_window(VNXI_WINDOW_BYTES, F_SEAL_SHRINK);
    shared_t *window = liar->windows;

    while (window->base != NULL) {
        window++;
    }
    window->asker = asker;
    window->number = number;
    window->fd = dup(fd);
    window->base = mmap(NULL, VNXI_WINDOW_BYTES, PROT_READ | PROT_WRITE,
                        MAP_SHARED, fd, 0);
    return fd;
}

static void
say_opened(liar_t *liar, uint64_t asker, uint64_t number, int fd)
{
    liar_say(
        &liar->node, asker,
        &(vnxi_lend_t){.type = VNXI_LEND_OPENED, .loan = number, .cause = ""},
        &fd, 1);
}

static void
say_moved(liar_t *liar, uint64_t asker, uint64_t token, vnx_status_t status,
          const char *cause)
{
    liar_say_status(&liar->node, asker, VNXI_LEND_MOVED, token, status, cause);
}

/* Messages that have no meaning: of numbers that do not exist, of types that
 * owners do not send, of no type at all. */
static void
say_nonsense(liar_t *liar, uint64_t asker, uint64_t number)
{
    static unsigned char garbage[5000] = {0xff, 9, 11};
    const uint64_t numbers[] = {0, number + 1000, UINT64_MAX};

    for (size_t i = 0; i < 3; i++) {
        say_opened(liar, asker, numbers[i], liar_other_fd(0));
        say_opened(liar, asker, numbers[i],
                   make_window(VNXI_WINDOW_BYTES, F_SEAL_SHRINK));
        liar_say_status(&liar->node, asker, VNXI_LEND_OPENED, numbers[i],
                        VNX_ERR_BACKEND, "why not");
        say_moved(liar, asker, numbers[i], VNX_OK, "");
        say_moved(liar, asker, numbers[i], VNX_ERR_NOT_FOUND, "no");
    }
    liar_say(&liar->node, asker,
             &(vnxi_lend_t){.type = VNXI_LEND_OPEN, .loan = number}, NULL, 0);
    liar_say(&liar->node, asker,
             &(vnxi_lend_t){.type = VNXI_LEND_RETURNED, .loan = number}, NULL,
             0);
    for (size_t len = 0; len <= sizeof garbage; len = len * 2 + 1) {
        const vnxi_control_t control = {garbage, len, NULL, 0, false};
        garbage[0] = (unsigned char)len;
        vnxi_hub_send_control(liar->node.hub, asker, "CUDA", &control, NULL);
    }
}

static void
on_open(liar_t *liar, uint64_t asker, uint64_t number)
{
    const size_t bytes = VNXI_WINDOW_BYTES;
    int fds[] = {-1, -1}; /* what is sent instead of a window */

    switch (liar->lie) {
    case SILENT:
        if (liar->opens > 1) {
            return;
        }
        break;
    case OPEN_NO_FD:
        liar_say_status(&liar->node, asker, VNXI_LEND_OPENED, number, VNX_OK,
                        "");
        return;
    case OPEN_REFUSED:
        liar_say_status(&liar->node, asker, VNXI_LEND_OPENED, number,
                        VNX_ERR_BACKEND, "no windows");
        return;
    case OPEN_REFUSED_LATE:
        liar->opening[0] = asker;
        liar->opening[1] = number;
        return;
    case OPEN_REFUSED_STRANGELY:
        liar_say_status(&liar->node, asker, VNXI_LEND_OPENED, number, -63,
                        "%s\n\x1b[31m\xff");
        return;
    case OPEN_REFUSED_WITH_FD:
        fds[0] = make_window(bytes, F_SEAL_SHRINK);
        liar_say(&liar->node, asker,
                 &(vnxi_lend_t){.type = VNXI_LEND_OPENED,
                                .loan = number,
                                .status = -VNX_ERR_BACKEND,
                                .cause = "x",
                                .count = 1},
                 fds, 1);
        return;
    case OPEN_TWO_FDS:
        fds[0] = make_window(bytes, F_SEAL_SHRINK);
        fds[1] = make_window(bytes, F_SEAL_SHRINK);
        break;
    case OPEN_SOCKET:
        fds[0] = liar_other_fd(1);
        break;
    case OPEN_EVENTFD:
        fds[0] = liar_other_fd(2);
        break;
    case OPEN_UNSEALED:
        fds[0] = make_window(bytes, 0);
        break;
    case OPEN_CAN_SHRINK:
        fds[0] = make_window(bytes, F_SEAL_GROW | F_SEAL_SEAL);
        break;
    case OPEN_SHORT:
        fds[0] = make_window(bytes - 1, F_SEAL_SHRINK);
        break;
    case OPEN_LONG:
        fds[0] = make_window(bytes + 1, F_SEAL_SHRINK);
        break;
    case OPEN_READ_ONLY:
        fds[0] = make_window(bytes, F_SEAL_SHRINK | F_SEAL_WRITE);
        break;
    case OPEN_UNKNOWN:
    case OPEN_NOISE:
        say_nonsense(liar, asker, number);
        break;
    default:
        break;
    }
    if (fds[0] < 0) {
        fds[0] = new_window(liar, asker, number);
    }
    liar_say(
        &liar->node, asker,
        &(vnxi_lend_t){.type = VNXI_LEND_OPENED, .loan = number, .cause = ""},
        fds, fds[1] < 0 ? 1 : 2);
    if (liar->lie == OPEN_TWICE) { /* and refused after all */
        say_opened(liar, asker, number, make_window(bytes, F_SEAL_SHRINK));
        liar_say_status(&liar->node, asker, VNXI_LEND_OPENED, number,
                        VNX_ERR_BACKEND, "no more");
    }
}

static bool
is_called_off(liar_t *liar, uint64_t asker, const vnxi_lend_t *move)
{
    const shared_t *window = find_window(liar, asker, move->window);

    return window == NULL ||
           atomic_load(&((const vnxi_window_head_t *)window->base)
                            ->tokens[move->half]) != move->loan;
}

static void
copy_rows(liar_t *liar, uint64_t asker, const vnxi_lend_t *move)
{
    const shared_t *window = find_window(liar, asker, move->window);

    for (size_t i = 0; window != NULL && i < move->count; i++) {
        vnxi_lend_row_t row = vnxi_lend_row(move, i);
        unsigned char *shared = window->base + VNXI_WINDOW_HEAD_BYTES +
                                move->half * HALF + row.offset;
        if (move->is_write) {
            calls->poke(row.addr, shared, row.len);
        } else {
            calls->peek(row.addr, shared, row.len);
        }
    }
}

/* The window stays as it is: it cannot shrink, and is mapped. */
static void
try_to_shrink(liar_t *liar, uint64_t asker, const vnxi_lend_t *move)
{
    const shared_t *window = find_window(liar, asker, move->window);

    if (window == NULL || ftruncate(window->fd, 0) == 0 ||
        ftruncate(window->fd, VNXI_WINDOW_HEAD_BYTES) == 0 ||
        fcntl(window->fd, F_ADD_SEALS, F_SEAL_WRITE) == 0 ||
        ftruncate(window->fd, 2 * VNXI_WINDOW_BYTES) != 0) {
        abort();
    }
    if (!move->is_write &&
        fallocate(window->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  (off_t)(VNXI_WINDOW_HEAD_BYTES + move->half * HALF),
                  HALF) != 0) {
        abort();
    }
}

static void
on_move(liar_t *liar, uint64_t asker, const vnxi_lend_t *move)
{
    const uint64_t token = move->loan;
    int fds[] = {-1, -1};

    switch (liar->lie) {
    case MOVE_REFUSED:
        say_moved(liar, asker, token, VNX_ERR_NOT_FOUND, "I had one");
        return;
    case MOVE_REFUSED_LATER:
        if (liar->moves > 1) {
            say_moved(liar, asker, token, VNX_ERR_NOT_SUPPORTED, "not more");
            return;
        }
        break;
    case MOVE_REFUSED_STRANGELY:
        say_moved(liar, asker, token, -63, "%s\n\x1b[31m\xff");
        return;
    case MOVE_EARLY:
        say_moved(liar, asker, token, VNX_OK, "");
        break;
    case MOVE_UNKNOWN:
        for (uint64_t i = 1; i < 4; i++) {
            say_moved(liar, asker, token + (i << 32), VNX_OK, "");
            say_moved(liar, asker, token - (i << 32), VNX_ERR_BACKEND, "no");
        }
        break;
    case MOVE_WITH_FDS:
        fds[0] = liar_other_fd(0);
        fds[1] = liar_other_fd(1);
        break;
    case MOVE_NOISE:
        say_nonsense(liar, asker, token);
        break;
    case MOVE_SCRIBBLES:
        memset(find_window(liar, asker, move->window)->base, 0xa5,
               VNXI_WINDOW_HEAD_BYTES);
        break;
    case MOVE_SHRINKS:
        try_to_shrink(liar, asker, move);
        break;
    default:
        break;
    }
    copy_rows(liar, asker, move);
    liar_say(
        &liar->node, asker,
        &(vnxi_lend_t){.type = VNXI_LEND_MOVED, .loan = token, .cause = ""},
        fds, fds[0] < 0 ? 0 : 2);
    if (liar->lie == MOVE_TWICE) {
        say_moved(liar, asker, token, VNX_OK, "");
        say_moved(liar, asker, token, VNX_ERR_NOT_FOUND, "after all");
    }
}

static void
hold_move(liar_t *liar, uint64_t asker, const vnxi_control_t *control)
{
    held_t *held = &liar->held[liar->held_count % 8];

    held->asker = asker;
    held->len = control->len;
    memcpy(held->data, control->data, control->len);
    liar->held_count++;
}

/* As many as have moves that were called off. */
static unsigned
count_called_off(liar_t *liar)
{
    vnxi_lend_t move;
    unsigned count = 0;

    for (size_t i = 0; i < liar->held_count; i++) {
        held_t *held = &liar->held[i];
        count += vnxi_lend_read(held->data, held->len, &move) &&
                 is_called_off(liar, held->asker, &move);
    }
    return count;
}

/* It reads from its memory also what was called off. */
static void
release_moves(liar_t *liar)
{
    vnxi_lend_t move;

    for (size_t i = 0; i < liar->held_count; i++) {
        held_t *held = &liar->held[i];
        vnxi_lend_read(held->data, held->len, &move);
        if (move.is_write && is_called_off(liar, held->asker, &move)) {
            say_moved(liar, held->asker, move.loan, VNX_ERR_CANCELED, "off");
        } else {
            copy_rows(liar, held->asker, &move);
            say_moved(liar, held->asker, move.loan, VNX_OK, "");
        }
    }
    liar->held_count = 0;
}

static void
on_question(node_t *node, uint64_t asker, const vnxi_control_t *control)
{
    liar_t *liar = (liar_t *)node;
    vnxi_lend_t message;

    if (!vnxi_lend_read(control->data, control->len, &message)) {
        return;
    }
    pthread_mutex_lock(&liar->lock);
    shared_t *returned = find_window(liar, asker, message.loan);
    if (message.type == VNXI_LEND_OPEN) {
        liar->opens++;
        on_open(liar, asker, message.loan);
    } else if (message.type == VNXI_LEND_MOVE) {
        liar->moves++;
        if (liar->lie == HELD || liar->lie == SILENT) {
            hold_move(liar, asker, control);
        } else {
            on_move(liar, asker, &message);
        }
    } else if (message.type == VNXI_LEND_RETURNED && returned != NULL) {
        close_window(returned);
    }
    pthread_mutex_unlock(&liar->lock);
}

/* -- Its process -----------------------------------------------------------
 */

typedef enum order_of_liar {
    LOOK,
    TELL,    /* `lie` */
    FILL,    /* its memory, with the number `lie` */
    GET,     /* the facts are followed by a region's bytes */
    RELEASE, /* the moves that it holds, or the refusal */
} order_of_liar_t;

typedef struct command {
    order_of_liar_t order;
    unsigned lie, region;
} command_t;

typedef struct facts {
    unsigned opens, moves, windows, held, called_off;
} facts_t;

/* Of the asker before the one that there is, or of none. */
static void
forget_gone(liar_t *liar)
{
    node_account_t account = node_look(&liar->node);

    for (unsigned i = 0; i < 16 && account.askers_gone > 0; i++) {
        if (liar->windows[i].base != NULL &&
            liar->windows[i].asker == account.gone) {
            close_window(&liar->windows[i]);
        }
    }
}

static facts_t
obey(liar_t *liar, const command_t *command)
{
    facts_t facts = {0};

    pthread_mutex_lock(&liar->lock);
    forget_gone(liar);
    if (command->order == TELL) {
        liar->lie = (lie_t)command->lie;
        liar->opens = liar->moves = 0;
        liar->held_count = 0;
    } else if (command->order == RELEASE && liar->lie == OPEN_REFUSED_LATE) {
        liar_say_status(&liar->node, liar->opening[0], VNXI_LEND_OPENED,
                        liar->opening[1], VNX_ERR_UNKNOWN, "no memory");
    } else if (command->order == RELEASE) {
        release_moves(liar);
    } else if (command->order == FILL) {
        for (unsigned i = 0; i < REGIONS; i++) {
            put_all(&liar->blocks[i], command->lie + i);
        }
        put_all(&liar->cpu, command->lie);
    }
    for (unsigned i = 0; i < 16; i++) {
        facts.windows += liar->windows[i].base != NULL;
    }
    facts.opens = liar->opens;
    facts.moves = liar->moves;
    facts.held = (unsigned)liar->held_count;
    facts.called_off = count_called_off(liar);
    pthread_mutex_unlock(&liar->lock);
    return facts;
}

static int
liar_main(int fd)
{
    static liar_t liar;
    liar_memory_t memory = {.count = REGIONS, .size = SIZE, .flags = 2};
    command_t command;

    start_cuda();
    for (unsigned i = 0; i < REGIONS; i++) {
        liar.blocks[i] = make_block(LEGACY, SIZE);
        memory.at[i] = liar.blocks[i].addr;
    }
    liar.cpu = make_block(CPU, SIZE);
    memory.cpu = liar.cpu.addr;
    pthread_mutex_init(&liar.lock, NULL);
    assert_int_equal(node_init_for(&liar.node, "B", on_question), VNX_OK);
    liar_publish(fd, &liar.node, memory);
    while (transact(fd, &command, sizeof command, false)) {
        facts_t facts = obey(&liar, &command);
        transact(fd, &facts, sizeof facts, true);
        if (command.order == GET) {
            unsigned char *bytes = get_all(&liar.blocks[command.region]);
            transact(fd, bytes, SIZE, true);
            free(bytes);
        }
    }
    node_fini(&liar.node);
    for (unsigned i = 0; i < REGIONS; i++) {
        free_block(&liar.blocks[i]);
    }
    free_block(&liar.cpu);
    return fake->misuses > 0;
}

/* -- Telling it ------------------------------------------------------------
 */

static facts_t
command_liar(order_of_liar_t order, unsigned lie, unsigned region)
{
    command_t command = {order, lie, region};
    facts_t facts;

    assert_true(transact(to_liar, &command, sizeof command, true));
    assert_true(transact(to_liar, &facts, sizeof facts, false));
    return facts;
}

static facts_t
tell(lie_t lie)
{
    return command_liar(TELL, lie, 0);
}

static facts_t
look(void)
{
    return command_liar(LOOK, 0, 0);
}

static unsigned char *
get_theirs(unsigned region)
{
    unsigned char *bytes = malloc(SIZE);

    command_liar(GET, 0, region);
    assert_true(transact(to_liar, bytes, SIZE, false));
    return bytes;
}

static int pinned; /* by the workers, for good; -1: not known yet */

/* Remove the liar, and wait until nothing is left of it. */
static void
forget_liar(void)
{
    assert_ok(vnx_agent_remove_peer(a, "B", 1, e));
    WAIT_UNTIL(look().windows == 0);
    tell(HONEST);
    WAIT_UNTIL(pinned < 0 || fake->registered == pinned);
    assert_nothing_shared();
}

static const char *now = "honest"; /* for messages */

static vnx_xfer_t *
make_rows(vnx_op_t op, const block_t *ours, vnx_mem_t mem, uint64_t there)
{
    static vnx_desc_t left[ROWS], right[ROWS];
    vnx_xfer_t *xfer = NULL;

    for (size_t i = 0; i < ROWS; i++) {
        uint64_t at = i * STRIDE + ROW_AT;
        left[i] = (vnx_desc_t){ours->addr + at, ROW, 0};
        right[i] = (vnx_desc_t){there + at, ROW, 0};
    }
    assert_ok(try_make(op, ours->mem, left, mem, right, ROWS, &xfer, e));
    return xfer;
}

static vnx_xfer_t *
make_one(vnx_op_t op, const block_t *ours, unsigned region)
{
    return make_rows(op, ours, VNX_MEM_VRAM, theirs.at[region]);
}

/* The bytes of both sides before a transfer. */
static void
fill_both(const block_t *ours)
{
    put_all(ours, OUR_SEED);
    command_liar(FILL, SEED, 0);
}

/* The transfer has brought its rows, and changed nothing else. */
static void
check_bytes(vnx_op_t op, const block_t *ours, unsigned region)
{
    static unsigned char left[SIZE], right[SIZE];
    bool is_read = op == VNX_OP_READ;
    unsigned char *found = is_read ? get_all(ours) : get_theirs(region);
    unsigned char *expected = is_read ? left : right;
    size_t wrong = 0;

    fill(left, SIZE, OUR_SEED);
    fill(right, SIZE, SEED + region);
    for (size_t i = 0; i < ROWS; i++) {
        size_t at = i * STRIDE + ROW_AT;
        memcpy(expected + at, (is_read ? right : left) + at, ROW);
    }
    while (wrong < SIZE && found[wrong] == expected[wrong]) {
        wrong++;
    }
    if (wrong < SIZE) {
        fail_msg("%s, %s %s memory: wrong from byte %zu on", now,
                 is_read ? "read to" : "write from", vnx_mem_name(ours->mem),
                 wrong);
    }
    free(found);
}

static void
check_honest(vnx_op_t op, const block_t *ours, unsigned region)
{
    vnx_error_t error;

    tell(HONEST);
    fill_both(ours);
    vnx_xfer_t *xfer = make_one(op, ours, region);
    if (run(xfer, &error) != VNX_OK) {
        fail_msg("%s", error.cause);
    }
    vnx_xfer_abandon(xfer);
    check_bytes(op, ours, region);
}

static void
assert_filled(const block_t *block, unsigned seed)
{
    unsigned char *found = get_all(block), *expected = malloc(block->size);

    fill(expected, block->size, seed);
    assert_memory_equal(found, expected, block->size);
    free(found);
    free(expected);
}

/* -- Tests: a lying owner --------------------------------------------------
 */

typedef struct expectation {
    lie_t lie;
    const char *name;
    vnx_status_t status;
    const char *cause;
    bool gives_up; /* the owner's GPU memory is not used any more */
} expectation_t;

#define EXPECT(lie, ...)       \
    {                          \
        lie, #lie, __VA_ARGS__ \
    }

static const expectation_t expectations[] = {
    EXPECT(HONEST, VNX_OK, "", false),
    EXPECT(OPEN_NO_FD, VNX_ERR_BACKEND, "has not sent a window", false),
    EXPECT(OPEN_TWO_FDS, VNX_ERR_BACKEND, "has not sent a window", false),
    EXPECT(OPEN_SOCKET, VNX_ERR_MISMATCH, "that cannot shrink", false),
    EXPECT(OPEN_EVENTFD, VNX_ERR_MISMATCH, "that cannot shrink", false),
    EXPECT(OPEN_UNSEALED, VNX_ERR_MISMATCH, "that cannot shrink", false),
    EXPECT(OPEN_CAN_SHRINK, VNX_ERR_MISMATCH, "that cannot shrink", false),
    EXPECT(OPEN_SHORT, VNX_ERR_MISMATCH, "that cannot shrink", false),
    EXPECT(OPEN_LONG, VNX_ERR_MISMATCH, "that cannot shrink", false),
    EXPECT(OPEN_READ_ONLY, VNX_ERR_BACKEND, "cannot map a window", false),
    EXPECT(OPEN_REFUSED, VNX_ERR_BACKEND, "its GPU memory: no windows", true),
    EXPECT(OPEN_REFUSED_STRANGELY, VNX_ERR_BACKEND, "memory: %s??[31m?",
           false),
    EXPECT(OPEN_REFUSED_WITH_FD, VNX_ERR_BACKEND, "GPU memory: x", true),
    EXPECT(OPEN_TWICE, VNX_OK, "", false),
    EXPECT(OPEN_UNKNOWN, VNX_OK, "", false),
    EXPECT(OPEN_NOISE, VNX_OK, "", false),
    EXPECT(MOVE_UNKNOWN, VNX_OK, "", false),
    EXPECT(MOVE_TWICE, VNX_OK, "", false),
    EXPECT(MOVE_REFUSED, VNX_ERR_NOT_FOUND, "memory: I had one", false),
    EXPECT(MOVE_REFUSED_LATER, VNX_ERR_NOT_SUPPORTED, "not more", false),
    EXPECT(MOVE_REFUSED_STRANGELY, VNX_ERR_BACKEND, "%s??[31m?", false),
    EXPECT(MOVE_EARLY, VNX_OK, "", false),
    EXPECT(MOVE_WITH_FDS, VNX_OK, "", false),
    EXPECT(MOVE_NOISE, VNX_OK, "", false),
    EXPECT(MOVE_SCRIBBLES, VNX_OK, "", false),
    EXPECT(MOVE_SHRINKS, VNX_OK, "", false),
};

static void
assert_described(const char *wanted)
{
    vnx_bytes_t text;

    assert_ok(vnx_agent_describe(a, "B", 1, &text, e));
    if (memmem(text.data, text.len, wanted, strlen(wanted)) == NULL) {
        print_message("%.*s\n", (int)text.len, (char *)text.data);
        fail_msg("no %s in it", wanted);
    }
    free(text.data);
}

/* The peer's GPU memory is not used any more. */
static void
check_given_up(const block_t *ours)
{
    vnx_desc_t left = {ours->addr, SIZE, 0}, right = {theirs.at[0], SIZE, 0};
    vnx_xfer_t *xfer = NULL;
    vnx_error_t error;

    vnx_status_t status = try_make(VNX_OP_READ, ours->mem, &left, VNX_MEM_VRAM,
                                   &right, 1, &xfer, &error);
    check_error("given up", status, &error, VNX_ERR_NOT_SUPPORTED,
                "the peer does not copy its GPU memory");
}

/* Its CPU memory is. */
static void
check_cpu_memory(const block_t *ours)
{
    vnx_error_t error;

    fill_both(ours);
    vnx_xfer_t *xfer = make_rows(VNX_OP_READ, ours, VNX_MEM_DRAM, theirs.cpu);
    if (run(xfer, &error) != VNX_OK) {
        fail_msg("%s", error.cause);
    }
    vnx_xfer_abandon(xfer);
    check_bytes(VNX_OP_READ, ours, 0);
}

static void
use_everything(const block_t *gpu, const block_t *cpu)
{
    load_liar();
    check_honest(VNX_OP_READ, gpu, 1);
    check_honest(VNX_OP_WRITE, gpu, 0);
    check_cpu_memory(gpu);
    check_honest(VNX_OP_READ, cpu, 0);
    check_honest(VNX_OP_WRITE, cpu, 1);
    check_cpu_memory(cpu);
    forget_liar();
}

static void
honest_owner_moves_its_memory(void **state)
{
    block_t ours = new_ours(LEGACY, SIZE), cpu = new_ours(CPU, SIZE);
    (void)state;

    use_everything(&ours, &cpu);
    end_ours(&ours);
    end_ours(&cpu);
}

static void
check_lie(const block_t *ours, const expectation_t *expectation, vnx_op_t op)
{
    unsigned region = op == VNX_OP_READ ? 0 : 1;
    vnx_error_t error;

    load_liar();
    tell(expectation->lie);
    now = expectation->name;
    fill_both(ours);
    vnx_xfer_t *xfer = make_one(op, ours, region);
    vnx_status_t status = run(xfer, &error);
    check_error(expectation->name, status, &error, expectation->status,
                expectation->cause);
    if (status != VNX_OK) {
        assert_string_equal(error.peer, "B");
    } else if (expectation->lie != MOVE_EARLY) {
        check_bytes(op, ours, region);
    }
    vnx_xfer_abandon(xfer);
    now = "honest";
    if (expectation->gives_up) {
        assert_described(expectation->cause);
        check_given_up(ours);
        check_cpu_memory(ours);
    } else {
        check_honest(op, ours,
                     region); /* with the same window, if it is one */
    }
    forget_liar();
}

/* Make the worker pin what it keeps for batches: it has two at a time if the
 * GPU does not go on. */
static void
have_stages(const block_t *ours)
{
    const block_t block = {CPU, VNX_MEM_DRAM, theirs.cpu, SIZE};
    vnx_xfer_t *xfers[2];
    vnx_error_t error;
    int launches = calls->count("cuLaunchKernel");

    load_liar();
    calls->hold(true);
    for (unsigned i = 0; i < 2; i++) {
        xfers[i] = make_ours(VNX_OP_READ, ours, &block);
        assert_int_equal(vnx_xfer_post(xfers[i], NULL, 0, &error),
                         VNX_IN_PROG);
    }
    WAIT_UNTIL(calls->count("cuLaunchKernel") == launches + 2);
    calls->hold(false);
    for (unsigned i = 0; i < 2; i++) {
        assert_int_equal(end_of(xfers[i], &error), VNX_OK);
        vnx_xfer_abandon(xfers[i]);
    }
    forget_liar();
}

static void
lies_about_windows_are_found_out(void **state)
{
    block_t ours = new_ours(LEGACY, SIZE), cpu = new_ours(CPU, SIZE);
    (void)state;

    use_everything(&ours, &cpu);
    have_stages(&ours);
    pinned = fake->registered;
    for (size_t i = 0; i < sizeof expectations / sizeof *expectations; i++) {
        check_lie(&ours, &expectations[i], VNX_OP_READ);
        check_lie(&cpu, &expectations[i], VNX_OP_WRITE);
        if (expectations[i].lie >= MOVE_UNKNOWN) {
            check_lie(&ours, &expectations[i], VNX_OP_WRITE);
            check_lie(&cpu, &expectations[i], VNX_OP_READ);
        }
        if (expectations[i].gives_up) {
            use_everything(&ours, &cpu);
        }
    }
    end_ours(&ours);
    end_ours(&cpu);
}

/* Of GPU memory, for which there is a window, and of CPU memory, for which the
 * liar opens none. */
typedef struct four {
    block_t blocks[4];
    vnx_xfer_t *xfers[4];
} four_t;

static void
post_four(four_t *four)
{
    vnx_error_t error;

    tell(SILENT);
    for (unsigned i = 0; i < 4; i++) {
        four->blocks[i] = new_ours(i < 2 ? LEGACY : CPU, SIZE);
        four->xfers[i] = make_one(i % 2 == 0 ? VNX_OP_READ : VNX_OP_WRITE,
                                  &four->blocks[i], i % 2);
        assert_int_equal(vnx_xfer_post(four->xfers[i], NULL, 0, &error),
                         VNX_IN_PROG);
        if (i == 1) { /* a half each */
            WAIT_UNTIL(look().held == 2);
        }
    }
    WAIT_UNTIL(look().opens == 2);
}

static void
end_four(four_t *four)
{
    for (unsigned i = 0; i < 4; i++) {
        vnx_xfer_abandon(four->xfers[i]);
        end_ours(&four->blocks[i]);
    }
}

/* Every transfer that waits for such an owner ends.  Its answers may come
 * later. */
static void
owner_that_is_silent_is_not_waited_for_for_ever(void **state)
{
    four_t four;
    vnx_error_t error;
    (void)state;

    load_liar();
    post_four(&four);
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(end_of(four.xfers[i], &error), VNX_ERR_BACKEND);
        if (strstr(error.cause, "has not answered a question") == NULL &&
            strstr(error.cause, "the window") == NULL) { /* of the other one */
            fail_msg("transfer %u: %s", i, error.cause);
        }
    }
    command_liar(RELEASE, 0, 0);
    check_honest(VNX_OP_READ, &four.blocks[0], 0);
    check_honest(VNX_OP_WRITE, &four.blocks[0], 1);
    forget_liar();
    load_liar();
    check_honest(VNX_OP_WRITE, &four.blocks[3], 0);
    end_four(&four);
    forget_liar();
}

static void
peer_is_removed_while_it_is_silent(void **state)
{
    four_t four;
    vnx_error_t error;
    (void)state;

    load_liar();
    post_four(&four);
    forget_liar();
    for (unsigned i = 0; i < 4; i++) {
        assert_true(end_of(four.xfers[i], &error) < 0);
    }
    load_liar();
    check_honest(VNX_OP_WRITE, &four.blocks[0], 1);
    check_honest(VNX_OP_READ, &four.blocks[3], 0);
    end_four(&four);
    forget_liar();
}

/* Closing does not wait for it either. */
static void
agent_closes_while_an_owner_is_silent(void **state)
{
    four_t four;
    vnx_error_t error;
    (void)state;

    load_liar();
    post_four(&four);
    vnx_agent_close(a);
    for (unsigned i = 0; i < 4; i++) {
        assert_true(vnx_xfer_status(four.xfers[i], &error) < 0);
        vnx_xfer_abandon(four.xfers[i]);
        free_block(&four.blocks[i]);
    }
    WAIT_UNTIL(look().windows == 0);
    tell(HONEST);
}

static void *
cancel_on_thread(void *xfer)
{
    bool has_stopped;
    assert_ok(vnx_xfer_cancel(xfer, &has_stopped, e));
    return NULL;
}

/* Post a transfer that the owner holds, and begin to cancel it: that waits for
 * its end. */
static vnx_xfer_t *
post_and_cancel(vnx_op_t op, const block_t *ours, pthread_t *thread_p)
{
    vnx_xfer_t *xfer = make_one(op, ours, 0);
    vnx_error_t error;

    tell(HELD);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error), VNX_IN_PROG);
    WAIT_UNTIL(look().held == 2);
    pthread_create(thread_p, NULL, cancel_on_thread, xfer);
    return xfer;
}

static void
end_cancelled(vnx_xfer_t *xfer, pthread_t thread)
{
    vnx_error_t error;

    pthread_join(thread, NULL);
    assert_int_equal(vnx_xfer_status(xfer, &error), VNX_ERR_CANCELED);
    vnx_xfer_abandon(xfer);
}

/* The transfer that has asked for the window has ended before. */
static void
late_refusal_is_not_kept_for_later_transfers(void **state)
{
    block_t ours = new_ours(LEGACY, SIZE), cpu = new_ours(CPU, SIZE);
    bool has_stopped;
    vnx_error_t error;
    (void)state;

    load_liar();
    tell(OPEN_REFUSED_LATE);
    vnx_xfer_t *xfer = make_one(VNX_OP_READ, &ours, 0);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error), VNX_IN_PROG);
    WAIT_UNTIL(look().opens == 1);
    assert_ok(vnx_xfer_cancel(xfer, &has_stopped, e));
    assert_int_equal(end_of(xfer, &error), VNX_ERR_CANCELED);
    vnx_xfer_abandon(xfer);
    command_liar(RELEASE, 0, 0);
    /* By a window of its own, whose answers come after the refusal. */
    check_honest(VNX_OP_WRITE, &cpu, 1);
    check_honest(VNX_OP_READ, &ours, 0);
    forget_liar();
    end_ours(&ours);
    end_ours(&cpu);
}

/* What the owner sends to the window later does not reach our memory, and
 * halves are used again only after that. */
static void
cancelled_read_ends_at_once_and_writes_nothing_later(void **state)
{
    static const kind_t kinds[] = {LEGACY, CPU};
    pthread_t thread;
    (void)state;

    load_liar();
    for (unsigned i = 0; i < 2; i++) {
        block_t ours = new_ours(kinds[i], SIZE);
        vnx_error_t error;
        fill_both(&ours);
        vnx_xfer_t *xfer = post_and_cancel(VNX_OP_READ, &ours, &thread);
        end_cancelled(xfer, thread);
        put_all(&ours, 9);
        block_t other = new_ours(kinds[i], SIZE);
        put_all(&other, OUR_SEED);
        vnx_xfer_t *next = make_one(VNX_OP_READ, &other, 1);
        assert_int_equal(vnx_xfer_post(next, NULL, 0, &error), VNX_IN_PROG);
        facts_t facts = look();
        assert_int_equal(facts.moves, 2);
        assert_int_equal(facts.called_off, 2);
        while (command_liar(RELEASE, 0, 0).moves < 2 + 3) {
            wait_ms();
        }
        assert_int_equal(end_of(next, &error), VNX_OK);
        vnx_xfer_abandon(next);
        check_bytes(VNX_OP_READ, &other, 1);
        assert_filled(&ours, 9);
        end_ours(&ours);
        end_ours(&other);
    }
    forget_liar();
}

static void
cancelled_write_is_called_off_and_waits_for_the_owner(void **state)
{
    static const kind_t kinds[] = {LEGACY, CPU};
    pthread_t thread;
    (void)state;

    load_liar();
    for (unsigned i = 0; i < 2; i++) {
        block_t ours = new_ours(kinds[i], SIZE);
        unsigned char *expected = malloc(SIZE);
        fill_both(&ours);
        vnx_xfer_t *xfer = post_and_cancel(VNX_OP_WRITE, &ours, &thread);
        WAIT_UNTIL(look().called_off == 2);
        command_liar(RELEASE, 0, 0);
        end_cancelled(xfer, thread);
        unsigned char *found = get_theirs(0);
        fill(expected, SIZE, SEED);
        assert_memory_equal(found, expected, SIZE);
        free(expected);
        free(found);
        check_honest(VNX_OP_WRITE, &ours, 0);
        end_ours(&ours);
    }
    forget_liar();
}

/* -- The asker -------------------------------------------------------------
 */

#define TOKENS 64u

typedef struct ask {
    uint64_t token, window;
    unsigned half;
    bool is_write;
    vnx_desc_t region;
} ask_t;

typedef struct party {
    asker_t asker; /* first */
    int fd;        /* of the last OPENED; -1 */
    /* Of MOVED, by token. */
    size_t answers[TOKENS];
    uint32_t statuses[TOKENS];
    char causes[TOKENS][128];
    bool floods;
    ask_t ask; /* when it floods */
} party_t;

static void
on_message(asker_t *asker, const vnxi_lend_t *message,
           const vnxi_control_t *control)
{
    party_t *party = (party_t *)asker;

    if (message->type == VNXI_LEND_OPENED && control->fd_count == 1) {
        vnxi_fork_fd_close(party->fd);
        party->fd = control->fds[0];
    } else {
        vnxi_fork_fds_close(control->fds, control->fd_count);
    }
    if (message->type == VNXI_LEND_MOVED && message->loan < TOKENS) {
        uint64_t token = message->loan;
        party->answers[token]++;
        party->statuses[token] = message->status;
        snprintf(party->causes[token], sizeof party->causes[token], "%.*s",
                 (int)message->count, message->cause);
    }
}

static void
party_open(party_t *party)
{
    memset(party, 0, sizeof *party);
    asker_open(&party->asker);
    pthread_mutex_lock(&party->asker.node.lock);
    party->fd = -1;
    party->asker.on_message = on_message;
    pthread_mutex_unlock(&party->asker.node.lock);
}

static void
party_close(party_t *party)
{
    asker_close(&party->asker);
    vnxi_fork_fd_close(party->fd);
}

/* Ask for a window; the answer's status. */
static vnx_status_t
ask_window(party_t *party, uint64_t number)
{
    size_t before = party->asker.answers[VNXI_LEND_OPENED];

    asker_say(&party->asker,
              &(vnxi_lend_t){.type = VNXI_LEND_OPEN, .loan = number});
    asker_wait(&party->asker, VNXI_LEND_OPENED, before + 1);
    assert_int_equal(party->asker.last.loan, number);
    return -(vnx_status_t)party->asker.last.status;
}

static void
check_no_window(party_t *party, uint64_t number, const char *cause)
{
    assert_int_equal(ask_window(party, number), VNX_ERR_NOT_SUPPORTED);
    if (strstr(party->asker.cause, cause) == NULL) {
        fail_msg("'%s' and not '%s'", party->asker.cause, cause);
    }
}

/* Mapped. */
static unsigned char *
get_window(party_t *party, uint64_t number)
{
    assert_int_equal(ask_window(party, number), VNX_OK);
    assert_true((fcntl(party->fd, F_GET_SEALS) & F_SEAL_SHRINK) != 0);
    unsigned char *base = mmap(NULL, VNXI_WINDOW_BYTES, PROT_READ | PROT_WRITE,
                               MAP_SHARED, party->fd, 0);
    assert_true(base != MAP_FAILED);
    vnxi_fork_fd_close(party->fd);
    party->fd = -1;
    return base;
}

static void
set_token(unsigned char *window, unsigned half, uint64_t token)
{
    atomic_store(&((vnxi_window_head_t *)window)->tokens[half], token);
}

static void
free_window(unsigned char *window)
{
    munmap(window, VNXI_WINDOW_BYTES);
}

static unsigned char *
half_of(unsigned char *window, unsigned half)
{
    return window + VNXI_WINDOW_HEAD_BYTES + half * HALF;
}

static void
ask_rows(party_t *party, const ask_t *ask, const vnxi_lend_row_t *rows,
         size_t count)
{
    asker_say(&party->asker, &(vnxi_lend_t){.type = VNXI_LEND_MOVE,
                                            .loan = ask->token,
                                            .window = ask->window,
                                            .half = (uint8_t)ask->half,
                                            .is_write = ask->is_write,
                                            .addr = ask->region.addr,
                                            .len = ask->region.len,
                                            .dev = ask->region.dev,
                                            .count = count,
                                            .moved = rows});
}

/* The first `len` bytes of the region and of the half. */
static void
ask_move(party_t *party, const ask_t *ask, size_t len)
{
    ask_rows(party, ask,
             &(vnxi_lend_row_t){ask->region.addr, 0, (uint32_t)len}, 1);
}

static void
wait_moved(party_t *party, uint64_t token)
{
    assert_true(node_wait(&party->asker.node, &party->answers[token], 1));
    assert_int_equal(party->answers[token], 1);
    party->answers[token] = 0;
}

static void
check_moved(party_t *party, uint64_t token, vnx_status_t status,
            const char *cause)
{
    wait_moved(party, token);
    if (party->statuses[token] != (uint32_t)-status ||
        strstr(party->causes[token], cause) == NULL) {
        fail_msg("token %u: -%u '%s', not %d '%s'", (unsigned)token,
                 party->statuses[token], party->causes[token], (int)status,
                 cause);
    }
}

/* Hold the GPU when the worker has nothing to do; returns its launches.
 * Changes the first byte of window 1. */
static int
hold_gpu(party_t *party, unsigned char *window, const block_t *block)
{
    const ask_t ask = {TOKENS - 1, 1, 0, false, whole(block)};

    set_token(window, 0, ask.token);
    ask_move(party, &ask, 1);
    check_moved(party, ask.token, VNX_OK, "");
    calls->hold(true);
    return calls->count("cuLaunchKernel");
}

/* Until the worker waits for a copy that the GPU does not begin. */
static void
wait_started(int launches)
{
    WAIT_UNTIL(calls->count("cuLaunchKernel") > launches);
}

/* -- Tests: a lying asker --------------------------------------------------
 */

/* Of a region in the middle of other memory: all bytes of that memory and of
 * the window are compared. */
static void
check_random_move(party_t *party, unsigned char *window, const block_t *block,
                  vnx_desc_t region, uint64_t *seed)
{
    static vnx_desc_t left[VNXI_LEND_ROWS_MAX], right[VNXI_LEND_ROWS_MAX];
    static vnxi_lend_row_t rows[VNXI_LEND_ROWS_MAX];
    unsigned half = (unsigned)draw(seed, 2);
    const ask_t ask = {1, 1, half, draw(seed, 2) == 0, region};
    block_t ours = {CPU, VNX_MEM_DRAM, (uintptr_t)half_of(window, half), HALF};
    block_t inner = {LEGACY, VNX_MEM_VRAM, region.addr, region.len};
    size_t most = 1 + draw(seed, VNXI_LEND_ROWS_MAX);
    size_t count = draw_rows(seed, &ours, &inner, left, right, most);

    for (size_t i = 0; i < count; i++) {
        rows[i] = (vnxi_lend_row_t){right[i].addr,
                                    (uint32_t)(left[i].addr - ours.addr),
                                    (uint32_t)right[i].len};
    }
    put_all(block, 1);
    fill(half_of(window, 0), 2 * HALF, 2);
    set_token(window, half, ask.token);
    unsigned char *memory = get_all(block);
    unsigned char *shared = malloc(VNXI_WINDOW_BYTES);
    memcpy(shared, window, VNXI_WINDOW_BYTES);
    unsigned char *part = half_of(shared, half);
    if (ask.is_write) {
        apply(memory, block->addr, part, ours.addr, right, left, count);
    } else {
        apply(part, ours.addr, memory, block->addr, left, right, count);
    }
    ask_rows(party, &ask, rows, count);
    check_moved(party, ask.token, VNX_OK, "");
    unsigned char *found = get_all(block);
    assert_memory_equal(found, memory, block->size);
    assert_memory_equal(window, shared, VNXI_WINDOW_BYTES);
    free(found);
    free(memory);
    free(shared);
}

static void
moves_touch_the_bytes_that_were_asked_for_and_no_others(void **state)
{
    static const kind_t kinds[] = {LEGACY, MAPPED, POOL, MANAGED};
    static party_t party;
    uint64_t seed = 5;
    (void)state;

    for (unsigned kind = 0; kind < 4; kind++) {
        block_t block = make_block(kinds[kind], 3 * CHUNK);
        vnx_reg_desc_t desc = {
            .desc = {block.addr + CHUNK / 2 + 13, CHUNK + 1111, 0}};
        assert_ok(vnx_agent_register(a, VNX_MEM_VRAM, &desc, 1, NULL, e));
        party_open(&party);
        unsigned char *window = get_window(&party, 1);
        for (unsigned i = 0; i < 5; i++) {
            check_random_move(&party, window, &block, desc.desc, &seed);
        }
        free_window(window);
        party_close(&party);
        assert_ok(vnx_agent_deregister(a, VNX_MEM_VRAM, &desc, 1, NULL, e));
        free_block(&block);
    }
}

/* Send a valid MOVE of which some bytes were changed.  A does not answer. */
static void
send_damaged(party_t *party, const ask_t *ask)
{
    static const struct {
        size_t at;
        unsigned char value;
    } damages[] = {
        {17, 2},          /* half */
        {17, 255},        /* half */
        {18, 2},          /* is_write */
        {43, 0},          /* count */
        {43, 2},          /* count */
        {44, 4},          /* count */
        {45 + 7, 0x80},   /* addr */
        {45 + 8 + 3, 1},  /* offset */
        {45 + 12 + 3, 1}, /* len */
    };
    const vnxi_lend_row_t row = {ask->region.addr, 0, 1};
    vnxi_writer_t writer = {0};

    vnxi_lend_write(&writer, &(vnxi_lend_t){.type = VNXI_LEND_MOVE,
                                            .loan = ask->token,
                                            .window = ask->window,
                                            .is_write = true,
                                            .addr = ask->region.addr,
                                            .len = ask->region.len,
                                            .count = 1,
                                            .moved = &row});
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        unsigned char was = writer.data[damages[i].at];
        writer.data[damages[i].at] = damages[i].value;
        asker_send(&party->asker, writer.data, writer.len);
        writer.data[damages[i].at] = was;
    }
    for (size_t len = 0; len < writer.len; len++) {
        asker_send(&party->asker, writer.data, len);
    }
    vnxi_writer_fini(&writer);
}

static void
moves_of_other_memory_are_refused(void **state)
{
    block_t ours = new_ours(LEGACY, MIB), cpu = new_ours(CPU, MIB);
    block_t other = make_block(LEGACY, MIB);
    vnx_desc_t region = whole(&ours);
    static party_t one, two;
    (void)state;

    put_all(&ours, 3);
    put_all(&cpu, 3);
    put_all(&other, 3);
    party_open(&one);
    party_open(&two);
    ask_t ask = {1, 5, 0, true, region};
    ask_move(&one, &ask, 1);
    check_moved(&one, 1, VNX_ERR_BACKEND, "the window is not open");
    unsigned char *window = get_window(&one, 5);
    set_token(window, 0, 1);
    const vnx_desc_t none[] = {
        {region.addr + 1, region.len - 1, 0},
        {region.addr, region.len - 1, 0},
        {region.addr, region.len + 1, 0},
        {region.addr, region.len, 1},
        {0, UINT64_MAX, 0},
        {UINT64_MAX - 10, 100, 0},
        whole(&cpu),
        whole(&other),
    };
    for (size_t i = 0; i < sizeof none / sizeof *none; i++) {
        ask.region = none[i];
        ask_move(&one, &ask, 1);
        check_moved(&one, 1, VNX_ERR_NOT_FOUND, "not registered");
    }
    ask.region = region;
    send_damaged(&one, &ask);
    ask_move(&two, &ask, 1); /* another's window */
    check_moved(&two, 1, VNX_ERR_BACKEND, "the window is not open");
    asker_return(&two.asker, 5);
    check_no_window(&one, 5, "the window is open already");
    asker_return(&one.asker, 5);
    ask_move(&one, &ask, 1);
    check_moved(&one, 1, VNX_ERR_BACKEND, "the window is not open");
    asker_return(&one.asker, 5);
    assert_filled(&ours, 3);
    assert_filled(&cpu, 3);
    assert_filled(&other, 3);
    free_window(window);
    party_close(&one);
    party_close(&two);
    end_ours(&ours);
    end_ours(&cpu);
    free_block(&other);
}

static void
move_is_called_off_by_its_token(void **state)
{
    static const uint64_t others[] = {0, 2, UINT64_MAX};
    block_t ours = new_ours(LEGACY, MIB);
    static party_t party;
    (void)state;

    party_open(&party);
    unsigned char *window = get_window(&party, 1);
    put_all(&ours, 3);
    for (unsigned i = 0; i < 3; i++) {
        ask_t ask = {1, 1, i % 2, true, whole(&ours)};
        set_token(window, i % 2, others[i]);
        set_token(window, 1 - i % 2, 1);
        ask_move(&party, &ask, MIB);
        check_moved(&party, 1, VNX_ERR_CANCELED, "called off");
    }
    assert_filled(&ours, 3);
    /* While it waits behind another one. */
    int launches = hold_gpu(&party, window, &ours);
    set_token(window, 0, 10);
    set_token(window, 1, 11);
    ask_move(&party, &(ask_t){10, 1, 0, false, whole(&ours)}, MIB);
    ask_move(&party, &(ask_t){11, 1, 1, true, whole(&ours)}, MIB);
    wait_started(launches);
    set_token(window, 1, 0);
    calls->hold(false);
    check_moved(&party, 10, VNX_OK, "");
    check_moved(&party, 11, VNX_ERR_CANCELED, "called off");
    assert_filled(&ours, 3);
    free_window(window);
    party_close(&party);
    end_ours(&ours);
}

/* Those of both halves may be queued, and no more. */
static void
window_has_as_much_work_as_it_holds(void **state)
{
    static vnxi_lend_row_t rows[VNXI_LEND_ROWS_MAX];
    block_t ours = new_ours(LEGACY, HALF);
    static party_t party, other;
    (void)state;

    for (uint32_t i = 0; i < VNXI_LEND_ROWS_MAX; i++) {
        rows[i] = (vnxi_lend_row_t){ours.addr + 2 * i, 2 * i, 1};
    }
    party_open(&party);
    party_open(&other);
    unsigned char *window = get_window(&party, 1);
    unsigned char *others = get_window(&other, 1);
    for (unsigned by_rows = 0; by_rows < 2; by_rows++) {
        int launches = hold_gpu(&party, window, &ours);
        for (unsigned half = 0; half < 2; half++) {
            ask_t ask = {half, 1, half, false, whole(&ours)};
            set_token(window, half, half);
            if (by_rows) {
                ask_rows(&party, &ask, rows, VNXI_LEND_ROWS_MAX);
            } else {
                ask_move(&party, &ask, HALF);
            }
        }
        wait_started(launches);
        for (unsigned half = 0; half < 2; half++) {
            ask_move(&party, &(ask_t){2, 1, half, false, whole(&ours)}, 1);
            check_moved(&party, 2, VNX_ERR_BACKEND, "more is to be copied");
        }
        set_token(others, 0, 3);
        ask_move(&other, &(ask_t){3, 1, 0, false, whole(&ours)}, 1);
        calls->hold(false);
        check_moved(&party, 0, VNX_OK, "");
        check_moved(&party, 1, VNX_OK, "");
        check_moved(&other, 3, VNX_OK, "");
        set_token(window, 0, 4);
        ask_move(&party, &(ask_t){4, 1, 0, false, whole(&ours)}, HALF);
        check_moved(&party, 4, VNX_OK, "");
    }
    free_window(window);
    free_window(others);
    party_close(&party);
    party_close(&other);
    end_ours(&ours);
}

static void
windows_have_limits(void **state)
{
    enum { EACH = 16, ASKERS = 8 };
    static party_t greedy[ASKERS], modest;
    block_t ours = new_ours(LEGACY, MIB);
    vnx_status_t status = VNX_ERR_BACKEND;
    (void)state;

    party_open(&modest);
    for (unsigned i = 0; i < ASKERS; i++) {
        party_open(&greedy[i]);
        for (uint64_t number = 1; number <= EACH; number++) {
            assert_int_equal(ask_window(&greedy[i], number), VNX_OK);
        }
        check_no_window(&greedy[i], EACH + 1, "too many agents");
    }
    for (uint64_t number = 0; number < 5000; number++) { /* a flood */
        asker_say(&greedy[0].asker,
                  &(vnxi_lend_t){.type = VNXI_LEND_OPEN, .loan = number});
    }
    asker_wait(&greedy[0].asker, VNXI_LEND_OPENED, EACH + 1 + 5000);
    check_no_window(&modest, 1, "too many agents");
    asker_return(&greedy[1].asker, 3);
    check_no_window(&greedy[0], EACH + 1, "too many agents");
    assert_int_equal(ask_window(&greedy[1], 3), VNX_OK);
    party_close(&greedy[0]);
    for (int i = 0; status != VNX_OK && i < 10000; i++) {
        status = ask_window(&modest, 2); /* until its end was noticed */
        wait_ms();
    }
    assert_int_equal(status, VNX_OK);
    unsigned char *window = get_window(&modest, 3);
    set_token(window, 0, 1);
    ask_move(&modest, &(ask_t){1, 3, 0, true, whole(&ours)}, MIB);
    check_moved(&modest, 1, VNX_OK, "");
    free_window(window);
    for (unsigned i = 1; i < ASKERS; i++) {
        party_close(&greedy[i]);
    }
    party_close(&modest);
    end_ours(&ours);
}

/* The window stays pinned until the move has ended.  A move that is queued is
 * called off when the owner has noticed. */
static void
asker_returns_the_window_or_leaves_while_a_move_runs(void **state)
{
    block_t ours = new_ours(LEGACY, HALF);
    static party_t party;
    (void)state;

    for (unsigned leaves = 0; leaves < 2; leaves++) {
        party_open(&party);
        unsigned char *window = get_window(&party, 1);
        int launches = hold_gpu(&party, window, &ours);
        set_token(window, 0, 1);
        set_token(window, 1, 2);
        put_all(&ours, 3);
        fill(half_of(window, 0), HALF, 4);
        fill(half_of(window, 1), HALF, leaves ? 4 : 5);
        ask_move(&party, &(ask_t){1, 1, 0, true, whole(&ours)}, HALF);
        ask_move(&party, &(ask_t){2, 1, 1, true, whole(&ours)}, HALF);
        wait_started(launches);
        int before = fake->registered;
        if (leaves) {
            party_close(&party);
        } else {
            asker_return(&party.asker, 1);
            assert_int_equal(ask_window(&party, 1), VNX_OK); /* a new one */
            asker_return(&party.asker, 1);
        }
        free_window(window);
        calls->hold(false);
        if (!leaves) {
            check_moved(&party, 1, VNX_OK, "");
            check_moved(&party, 2, VNX_ERR_CANCELED, "called off");
            party_close(&party);
        }
        WAIT_UNTIL(fake->registered == before - 1);
        assert_filled(&ours, 4);
    }
    end_ours(&ours);
}

typedef struct deregistration {
    const block_t *block;
    atomic_bool has_ended;
} deregistration_t;

static void *
deregister_on_thread(void *arg)
{
    deregistration_t *deregistration = arg;

    deregister_ours((void *)deregistration->block);
    atomic_store(&deregistration->has_ended, true);
    return NULL;
}

/* It waits for the one that runs; those behind it copy nothing any more. */
static void
deregistration_ends_moves(void **state)
{
    block_t ours = new_ours(LEGACY, HALF), other = new_ours(LEGACY, MIB);
    deregistration_t deregistration = {.block = &ours};
    vnx_status_t status = VNX_OK;
    static party_t party;
    pthread_t thread;
    (void)state;

    party_open(&party);
    unsigned char *window = get_window(&party, 1);
    int launches = hold_gpu(&party, window, &ours);
    fill(half_of(window, 0), HALF, 4);
    fill(half_of(window, 1), HALF, 5);
    put_all(&ours, 3);
    put_all(&other, 3);
    set_token(window, 0, 1);
    set_token(window, 1, 2);
    ask_move(&party, &(ask_t){1, 1, 0, true, whole(&ours)}, HALF - MIB);
    ask_move(&party, &(ask_t){2, 1, 1, true, whole(&ours)}, HALF - MIB);
    ask_move(&party, &(ask_t){2, 1, 1, true, whole(&ours)}, 1);
    ask_move(&party, &(ask_t){1, 1, 0, true, whole(&other)}, MIB);
    wait_started(launches);
    ask_move(&party, &(ask_t){9, 2, 0, true, whole(&ours)}, 1);
    check_moved(&party, 9, VNX_ERR_BACKEND, "not open"); /* all are queued */
    pthread_create(&thread, NULL, deregister_on_thread, &deregistration);
    for (int i = 0; status != VNX_ERR_NOT_FOUND && i < 10000; i++) {
        ask_move(&party, &(ask_t){9, 2, 0, true, whole(&ours)}, 1);
        wait_moved(&party, 9);
        status = -(vnx_status_t)party.statuses[9];
        wait_ms();
    }
    assert_int_equal(status, VNX_ERR_NOT_FOUND);
    for (unsigned i = 0; i < 20; i++) { /* would find a lack of waiting */
        wait_ms();
        assert_false(atomic_load(&deregistration.has_ended));
    }
    calls->hold(false);
    pthread_join(thread, NULL);
    unsigned char *after = get_all(&ours), *expected = malloc(HALF);
    fill(expected, HALF, 3);
    fill(expected, HALF - MIB, 4);
    assert_memory_equal(after, expected, HALF);
    assert_true(node_wait(&party.asker.node, &party.answers[1], 2));
    assert_true(node_wait(&party.asker.node, &party.answers[2], 2));
    assert_int_equal(party.statuses[1], 0); /* of both */
    assert_int_equal(party.statuses[2], -VNX_ERR_NOT_FOUND);
    assert_non_null(strstr(party.causes[2], "was deregistered"));
    free(after);
    after = get_all(&ours);
    assert_memory_equal(after, expected, HALF);
    free(after);
    free(expected);
    free_window(window);
    party_close(&party);
    assert_filled(&other, 4);
    free_block(&ours);
    end_ours(&other);
}

static void *
close_on_thread(void *arg)
{
    vnx_agent_close(arg);
    return NULL;
}

/* It waits for the GPU, and the asker cannot do more. */
static void
agent_closes_while_moves_are_queued(void **state)
{
    block_t ours = new_ours(LEGACY, HALF);
    static party_t party;
    pthread_t thread;
    (void)state;

    party_open(&party);
    unsigned char *window = get_window(&party, 1);
    int launches = hold_gpu(&party, window, &ours);
    put_all(&ours, 3);
    fill(half_of(window, 0), HALF, 4);
    set_token(window, 0, 1);
    ask_move(&party, &(ask_t){1, 1, 0, true, whole(&ours)}, HALF);
    for (unsigned i = 0; i < 100; i++) {
        ask_move(&party, &(ask_t){1, 1, 0, true, whole(&ours)}, 1000);
    }
    wait_started(launches);
    pthread_create(&thread, NULL, close_on_thread, a);
    ask_move(&party, &(ask_t){1, 1, 0, true, whole(&ours)}, 1000);
    calls->hold(false);
    pthread_join(thread, NULL);
    assert_filled(&ours, 4);
    fill(half_of(window, 0), HALF, 5);
    free_window(window);
    party_close(&party);
    free_block(&ours);
}

#define FLOOD 2048u /* moves that are as much as a window holds */

/* Every answer is followed by the same question, so that moves always wait. */
static void
ask_again(asker_t *asker, const vnxi_lend_t *message,
          const vnxi_control_t *control)
{
    party_t *party = (party_t *)asker;

    on_message(asker, message, control);
    if (message->type == VNXI_LEND_MOVED && party->floods) {
        ask_move(party, &party->ask, 2 * HALF / FLOOD);
    }
}

static void
own_transfers_go_on_while_an_asker_floods(void **state)
{
    block_t ours = new_ours(LEGACY, SIZE), asked = new_ours(LEGACY, MIB);
    static party_t party;
    (void)state;

    party_open(&party);
    unsigned char *window = get_window(&party, 1);
    set_token(window, 0, 1);
    pthread_mutex_lock(&party.asker.node.lock);
    party.asker.on_message = ask_again;
    party.ask = (ask_t){1, 1, 0, false, whole(&asked)};
    party.floods = true;
    for (unsigned i = 0; i < FLOOD; i++) {
        ask_move(&party, &party.ask, 2 * HALF / FLOOD);
    }
    pthread_mutex_unlock(&party.asker.node.lock);
    load_liar();
    check_honest(VNX_OP_READ, &ours, 0);
    check_honest(VNX_OP_WRITE, &ours, 1);
    forget_liar();
    pthread_mutex_lock(&party.asker.node.lock);
    party.floods = false;
    pthread_mutex_unlock(&party.asker.node.lock);
    free_window(window);
    party_close(&party);
    end_ours(&asked);
    end_ours(&ours);
}

/* -- The frame of every test -----------------------------------------------
 */

static int
start_test(void **state)
{
    (void)state;
    pinned = -1;
    a = make_agent("A");
    return 0;
}

static int
end_test(void **state)
{
    (void)state;
    end_agent();
    assert_int_equal(fake->registered, 0);
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
        HOSTILE_TEST(honest_owner_moves_its_memory),
        HOSTILE_TEST(lies_about_windows_are_found_out),
        HOSTILE_TEST(owner_that_is_silent_is_not_waited_for_for_ever),
        HOSTILE_TEST(peer_is_removed_while_it_is_silent),
        HOSTILE_TEST(agent_closes_while_an_owner_is_silent),
        HOSTILE_TEST(late_refusal_is_not_kept_for_later_transfers),
        HOSTILE_TEST(cancelled_read_ends_at_once_and_writes_nothing_later),
        HOSTILE_TEST(cancelled_write_is_called_off_and_waits_for_the_owner),
        HOSTILE_TEST(moves_touch_the_bytes_that_were_asked_for_and_no_others),
        HOSTILE_TEST(moves_of_other_memory_are_refused),
        HOSTILE_TEST(move_is_called_off_by_its_token),
        HOSTILE_TEST(window_has_as_much_work_as_it_holds),
        HOSTILE_TEST(windows_have_limits),
        HOSTILE_TEST(asker_returns_the_window_or_leaves_while_a_move_runs),
        HOSTILE_TEST(deregistration_ends_moves),
        HOSTILE_TEST(agent_closes_while_moves_are_queued),
        HOSTILE_TEST(own_transfers_go_on_while_an_asker_floods),
    };
    start_cuda();
    start_liar();
    note_fds();
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    end_liar();
    return failed;
}
