/*
 * The contract of libucp that the backend relies on: which calls return what,
 * which callbacks come, when and how often.  The same tests run on the fake
 * library (fake_ucp.c) and on a real one, so that the fake cannot drift from
 * UCX.  The real one is tested with the transports that it chooses for a peer
 * on this host, and with TCP alone.
 *
 * Without a real libucp, the program tests the fake and is then skipped.
 */
#include "vnx_test.h"

#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "engine/native/ucx/library.h"
#include "fake_ucp.h"

#define PATIENCE_NS vnx_test_limit(20)
#define QUIET_ROUNDS 200 /* of progress, in which nothing may happen */
#define BYTES (256u << 10)
#define PIECES 16u
#define PIECE (BYTES / PIECES)
#define KEY_MEMORY_TYPE 8 /* where memory.c expects it */

/* The library under test. */
static const vnxi_ucp_functions_t *ucp;
static const char *library_path; /* of a real one */
static const char *transports;   /* NULL: UCX chooses */
static fake_ucp_t *fake;         /* NULL: a real one is under test */
static const fake_ucp_calls_t *fake_calls;
static bool is_late; /* the fake's requests end after errors and closes */

/* Callbacks that break the contract.  They cannot assert, because that would
 * jump out of UCX. */
static unsigned violations;
static pthread_t tester;
static unsigned inside; /* calls that may call back */

#define INSIDE(call) \
    do {             \
        inside++;    \
        call;        \
        inside--;    \
    } while (0)

static void
require(bool holds, const char *what)
{
    if (!holds) {
        print_message("violated: %s\n", what);
        violations++;
    }
}

/* Give this thread's time to UCX until the condition holds. */
#define PROGRESS_UNTIL(condition)                         \
    do {                                                  \
        uint64_t end_ = vnxi_clock_deadline(PATIENCE_NS); \
        while (!(condition)) {                            \
            progress();                                   \
            if (vnxi_clock_ns() > end_) {                 \
                fail_msg("in vain: %s", #condition);      \
            }                                             \
        }                                                 \
    } while (0)

/* -- Requests --------------------------------------------------------------
 */

typedef struct op {
    unsigned ends;
    vnxi_ucs_status_t status;
} op_t;

static void
on_end(void *request, vnxi_ucs_status_t status, void *user_data)
{
    op_t *op = user_data;
    require(inside > 0, "callbacks come from within UCX's calls");
    require(pthread_equal(pthread_self(), tester) != 0,
            "callbacks come on the calling thread");
    op->ends++;
    op->status = status;
    ucp->ucp_request_free(request);
}

static vnxi_ucp_request_param_t
param_of(op_t *op)
{
    *op = (op_t){0};
    return (vnxi_ucp_request_param_t){
        .op_attr_mask = VNXI_UCP_OP_CALLBACK | VNXI_UCP_OP_USER_DATA,
        .cb.send = on_end,
        .user_data = op,
    };
}

/* No callback comes if the call has done everything or has failed. */
static void
note(op_t *op, vnxi_ucs_ptr_t ptr)
{
    if (!vnxi_ucs_is_request(ptr)) {
        require(op->ends == 0, "a call without a request does not call back");
        op->ends++;
        op->status = vnxi_ucs_status(ptr);
    }
}

/* -- Sides -----------------------------------------------------------------
 */

typedef struct side {
    vnxi_ucp_context_t context;
    vnxi_ucp_worker_t worker;
    int efd;
    void *address;
    size_t address_len;
    unsigned char *bytes;
    vnxi_ucp_mem_t mem;
    void *key;
    size_t key_len;
    unsigned messages;
    size_t last_len;
    unsigned char last_first, last_last; /* bytes of the last message */
} side_t;

static side_t here, there;

static void
progress(void)
{
    INSIDE(ucp->ucp_worker_progress(here.worker));
    if (there.worker != NULL) {
        INSIDE(ucp->ucp_worker_progress(there.worker));
    }
}

static void
progress_some(void)
{
    for (unsigned i = 0; i < QUIET_ROUNDS; i++) {
        progress();
    }
}

static vnxi_ucs_status_t
on_message(void *arg, const void *header, size_t header_len, void *data,
           size_t len, const vnxi_ucp_am_recv_param_t *param)
{
    side_t *side = arg;
    const unsigned char *bytes = data;

    (void)header;
    require(header_len == 0, "a message sent without a header has none");
    require((param->recv_attr & VNXI_UCP_AM_RECV_RNDV) == 0,
            "an eager message arrives with its data");
    require(inside > 0, "messages arrive during progress");
    side->messages++;
    side->last_len = len;
    side->last_first = bytes[0];
    side->last_last = bytes[len - 1];
    return VNXI_UCS_OK;
}

/* The settings of context.c that decide how UCX behaves. */
static void
configure(vnxi_ucp_config_t *config)
{
    ucp->ucp_config_modify(config, "RNDV_THRESH", "inf");
    ucp->ucp_config_modify(config, "TCP_PUT_ENABLE", "n");
    ucp->ucp_config_modify(config, "TCP_CONN_NB", "y");
    ucp->ucp_config_modify(config, "KEEPALIVE_INTERVAL", "200ms");
    if (transports != NULL) {
        ucp->ucp_config_modify(config, "TLS", transports);
    }
}

static void
open_context(side_t *side)
{
    vnxi_ucp_params_t params = {
        .field_mask =
            VNXI_UCP_PARAM_FEATURES | VNXI_UCP_PARAM_MT_WORKERS_SHARED,
        .features = VNXI_UCP_FEATURE_RMA | VNXI_UCP_FEATURE_AM |
                    VNXI_UCP_FEATURE_WAKEUP,
        .mt_workers_shared = 1,
    };
    vnxi_ucp_config_t *config;

    *side = (side_t){.efd = -1};
    assert_int_equal(ucp->ucp_config_read(NULL, NULL, &config), VNXI_UCS_OK);
    configure(config);
    assert_int_equal(ucp->ucp_init_version(VNXI_UCP_API_MAJOR,
                                           VNXI_UCP_API_MINOR, &params, config,
                                           &side->context),
                     VNXI_UCS_OK);
    ucp->ucp_config_release(config);
}

static void
open_worker(side_t *side)
{
    vnxi_ucp_worker_params_t params = {
        .field_mask = VNXI_UCP_WORKER_PARAM_THREAD_MODE,
        .thread_mode = VNXI_UCP_THREAD_MODE_SERIALIZED,
    };
    vnxi_ucp_worker_attr_t attr = {.field_mask = VNXI_UCP_WORKER_ATTR_ADDRESS};
    const vnxi_ucp_am_handler_param_t handler = {
        .field_mask = VNXI_UCP_AM_PARAM_ID | VNXI_UCP_AM_PARAM_CB |
                      VNXI_UCP_AM_PARAM_ARG,
        .cb = on_message,
        .arg = side,
    };

    assert_int_equal(
        ucp->ucp_worker_create(side->context, &params, &side->worker),
        VNXI_UCS_OK);
    assert_int_equal(ucp->ucp_worker_get_efd(side->worker, &side->efd),
                     VNXI_UCS_OK);
    assert_int_equal(
        ucp->ucp_worker_set_am_recv_handler(side->worker, &handler),
        VNXI_UCS_OK);
    assert_int_equal(ucp->ucp_worker_query(side->worker, &attr), VNXI_UCS_OK);
    side->address = attr.address;
    side->address_len = attr.address_length;
}

static void
open_memory(side_t *side)
{
    side->bytes = malloc(BYTES);
    memset(side->bytes, 0, BYTES);
    const vnxi_ucp_mem_map_params_t params = {
        .field_mask = VNXI_UCP_MEM_MAP_ADDRESS | VNXI_UCP_MEM_MAP_LENGTH,
        .address = side->bytes,
        .length = BYTES,
    };
    vnxi_ucp_mem_attr_t attr = {.field_mask = VNXI_UCP_MEM_ATTR_MEM_TYPE,
                                .mem_type = -1};
    assert_int_equal(ucp->ucp_mem_map(side->context, &params, &side->mem),
                     VNXI_UCS_OK);
    assert_int_equal(ucp->ucp_mem_query(side->mem, &attr), VNXI_UCS_OK);
    assert_int_equal(attr.mem_type, VNXI_UCS_MEMORY_HOST);
    assert_int_equal(ucp->ucp_rkey_pack(side->context, side->mem, &side->key,
                                        &side->key_len),
                     VNXI_UCS_OK);
}

static void
open_side(side_t *side)
{
    open_context(side);
    open_worker(side);
    open_memory(side);
}

static void
close_worker(side_t *side)
{
    ucp->ucp_worker_release_address(side->worker, side->address);
    INSIDE(ucp->ucp_worker_destroy(side->worker));
    side->worker = NULL;
}

static void
close_side(side_t *side)
{
    if (side->worker != NULL) {
        close_worker(side);
    }
    ucp->ucp_rkey_buffer_release(side->key);
    assert_int_equal(ucp->ucp_mem_unmap(side->context, side->mem),
                     VNXI_UCS_OK);
    ucp->ucp_cleanup(side->context);
    free(side->bytes);
}

/* -- Endpoints -------------------------------------------------------------
 */

typedef struct end_point {
    vnxi_ucp_ep_t handle;
    unsigned errors;
    vnxi_ucs_status_t error;
} end_point_t;

static void
on_error(void *arg, vnxi_ucp_ep_t handle, vnxi_ucs_status_t status)
{
    end_point_t *ep = arg;
    require(inside > 0, "errors are reported from within UCX's calls");
    require(handle == ep->handle, "an error is reported with its endpoint");
    ep->errors++;
    ep->error = status;
}

static vnxi_ucs_status_t
try_connect(end_point_t *ep, const void *address)
{
    const vnxi_ucp_ep_params_t params = {
        .field_mask = VNXI_UCP_EP_PARAM_REMOTE_ADDRESS |
                      VNXI_UCP_EP_PARAM_ERR_MODE |
                      VNXI_UCP_EP_PARAM_ERR_HANDLER,
        .address = address,
        .err_mode = VNXI_UCP_ERR_MODE_PEER,
        .err_handler = {.cb = on_error, .arg = ep},
    };
    vnxi_ucs_status_t status;

    *ep = (end_point_t){0};
    INSIDE(status = ucp->ucp_ep_create(here.worker, &params, &ep->handle));
    return status;
}

static void
post_flush(end_point_t *ep, op_t *op)
{
    const vnxi_ucp_request_param_t param = param_of(op);
    vnxi_ucs_ptr_t ptr;
    INSIDE(ptr = ucp->ucp_ep_flush_nbx(ep->handle, &param));
    note(op, ptr);
}

static void
flush(end_point_t *ep)
{
    op_t op;
    post_flush(ep, &op);
    PROGRESS_UNTIL(op.ends > 0);
    assert_int_equal(op.status, VNXI_UCS_OK);
    assert_int_equal(op.ends, 1);
}

static void
connect_to(end_point_t *ep, const void *address)
{
    assert_int_equal(try_connect(ep, address), VNXI_UCS_OK);
    flush(ep);
}

static void
post_close(end_point_t *ep, bool by_force, op_t *op)
{
    vnxi_ucp_request_param_t param = param_of(op);
    vnxi_ucs_ptr_t ptr;

    param.op_attr_mask |= VNXI_UCP_OP_FLAGS;
    param.flags = by_force ? VNXI_UCP_EP_CLOSE_FORCE : 0;
    INSIDE(ptr = ucp->ucp_ep_close_nbx(ep->handle, &param));
    note(op, ptr);
}

static void
close_ep(end_point_t *ep, bool by_force)
{
    op_t op;
    unsigned errors = ep->errors;

    post_close(ep, by_force, &op);
    PROGRESS_UNTIL(op.ends > 0);
    assert_int_equal(op.ends, 1);
    assert_int_equal(ep->errors, errors);
}

static void
post_message(end_point_t *ep, const void *bytes, size_t len, op_t *op)
{
    vnxi_ucp_request_param_t param = param_of(op);
    vnxi_ucs_ptr_t ptr;

    param.op_attr_mask |= VNXI_UCP_OP_FLAGS;
    param.flags = VNXI_UCP_AM_SEND_EAGER;
    INSIDE(ptr = ucp->ucp_am_send_nbx(ep->handle, 0, NULL, 0, bytes, len,
                                      &param));
    note(op, ptr);
}

static vnxi_ucp_rkey_t
unpack(end_point_t *ep, const void *key)
{
    vnxi_ucp_rkey_t rkey;
    assert_int_equal(ucp->ucp_ep_rkey_unpack(ep->handle, key, &rkey),
                     VNXI_UCS_OK);
    return rkey;
}

/* Piece `index` of our memory and of the peer's, which begins at `remote`. */
static void
post_piece(end_point_t *ep, vnx_op_t kind, unsigned index, uint64_t remote,
           vnxi_ucp_rkey_t rkey, op_t *op)
{
    vnxi_ucp_request_param_t param = param_of(op);
    unsigned char *local = here.bytes + (size_t)index * PIECE;
    vnxi_ucs_ptr_t ptr;

    remote += (uint64_t)index * PIECE;
    param.op_attr_mask |= VNXI_UCP_OP_MEMH;
    param.memh = here.mem;
    if (kind == VNX_OP_READ) {
        INSIDE(ptr = ucp->ucp_get_nbx(ep->handle, local, PIECE, remote, rkey,
                                      &param));
    } else {
        INSIDE(ptr = ucp->ucp_put_nbx(ep->handle, local, PIECE, remote, rkey,
                                      &param));
    }
    note(op, ptr);
}

static unsigned
count_ended(const op_t *ops)
{
    unsigned count = 0;
    for (unsigned i = 0; i < PIECES; i++) {
        count += ops[i].ends > 0;
    }
    return count;
}

static uint64_t
address_of(const side_t *side)
{
    return (uintptr_t)side->bytes;
}

/* -- A peer in a process of its own ----------------------------------------
 */

/* Written by the process to its output, followed by address and key. */
typedef struct introduction {
    size_t address_len, key_len;
    uint64_t bytes;
} introduction_t;

typedef struct peer {
    pid_t pid; /* 0: plays in this process, as `there` */
    introduction_t about;
    void *address, *key; /* owned */
} peer_t;

static void
write_all(const void *bytes, size_t len)
{
    if (write(STDOUT_FILENO, bytes, len) != (ssize_t)len) {
        _exit(1);
    }
}

/* The main program of that process, which ends with a signal. */
static void __attribute__((noreturn))
be_peer(const char *path, const char *tls)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    setenv("VLLM_NIXL_UCX_LIBRARY", path, 1);
    ucp = &vnxi_ucx_library(NULL)->ucp;
    transports = tls[0] != '\0' ? tls : NULL;
    open_side(&here);
    introduction_t about = {here.address_len, here.key_len, address_of(&here)};
    write_all(&about, sizeof about);
    write_all(here.address, here.address_len);
    write_all(here.key, here.key_len);
    for (;;) {
        progress();
    }
}

static void *
read_all(int fd, void *to, size_t len)
{
    for (size_t used = 0; used < len;) {
        ssize_t got = read(fd, (char *)to + used, len - used);
        assert_true(got > 0);
        used += (size_t)got;
    }
    return to;
}

static void
start_process(peer_t *peer)
{
    int fds[2];

    assert_int_equal(pipe(fds), 0);
    peer->pid = fork();
    if (peer->pid == 0) {
        dup2(fds[1], STDOUT_FILENO);
        close(fds[0]);
        execl("/proc/self/exe", "peer", library_path,
              transports != NULL ? transports : "", (char *)NULL);
        _exit(127);
    }
    close(fds[1]);
    read_all(fds[0], &peer->about, sizeof peer->about);
    /* UCX reads a key without knowing its length. */
    peer->address = calloc(1, peer->about.address_len + 4096);
    peer->key = calloc(1, peer->about.key_len + 4096);
    read_all(fds[0], peer->address, peer->about.address_len);
    read_all(fds[0], peer->key, peer->about.key_len);
    close(fds[0]);
}

static void
peer_start(peer_t *peer)
{
    *peer = (peer_t){0};
    if (fake == NULL) {
        start_process(peer);
        return;
    }
    open_side(&there);
    peer->about.bytes = address_of(&there);
    peer->address = malloc(there.address_len);
    memcpy(peer->address, there.address, there.address_len);
    peer->key = malloc(there.key_len);
    memcpy(peer->key, there.key, there.key_len);
}

/* From now on the peer does nothing. */
static void
peer_pause(const peer_t *peer)
{
    if (peer->pid == 0) {
        for (unsigned kind = 0; kind < FAKE_CLOSE; kind++) {
            atomic_store(&fake->of[kind].hold, true);
        }
        return;
    }
    kill(peer->pid, SIGSTOP);
}

static void
peer_kill(const peer_t *peer)
{
    if (peer->pid == 0) {
        close_worker(&there);
        fake_calls->break_eps(VNXI_UCS_ERR_CONNECTION_RESET);
        return;
    }
    kill(peer->pid, SIGKILL);
    assert_int_equal(waitpid(peer->pid, NULL, 0), peer->pid);
}

static void
peer_fini(peer_t *peer)
{
    free(peer->address);
    free(peer->key);
}

/* -- Fixtures --------------------------------------------------------------
 */

static int
set_up(void **state)
{
    (void)state;
    tester = pthread_self();
    violations = 0;
    there = (side_t){0};
    if (fake != NULL) {
        memset((void *)fake, 0, sizeof *fake);
        atomic_store(&fake->error_first, is_late);
        atomic_store(&fake->late_cancel, is_late);
    }
    open_side(&here);
    return 0;
}

static int
set_up_pair(void **state)
{
    set_up(state);
    open_side(&there);
    return 0;
}

static int
tear_down(void **state)
{
    (void)state;
    if (there.context != NULL) {
        close_side(&there);
    }
    close_side(&here);
    assert_int_equal(violations, 0);
    if (fake != NULL) {
        assert_int_equal(fake->misuses, 0);
        assert_int_equal(fake->requests, 0);
        assert_int_equal(fake->eps, 0);
    }
    return 0;
}

/* -- Library and context ---------------------------------------------------
 */

static void
test_ucp_has_a_version(void **state)
{
    unsigned major, minor, release;
    char text[32];
    (void)state;
    ucp->ucp_get_version(&major, &minor, &release);
    assert_int_equal(major, 1);
    assert_true(minor >= VNXI_UCP_API_MINOR);
    snprintf(text, sizeof text, "%u.%u.%u", major, minor, release);
    assert_string_equal(ucp->ucp_get_version_string(), text);
}

static void
test_ucp_names_every_status(void **state)
{
    (void)state;
    for (int status = VNXI_UCS_ERR_LAST; status <= VNXI_UCS_INPROGRESS;
         status++) {
        const char *text = ucp->ucs_status_string((vnxi_ucs_status_t)status);
        assert_non_null(text);
        assert_true(text[0] != '\0');
    }
}

/* UCX before 1.21 ignores them. */
static void
test_ucp_config_refuses_unknown_keys(void **state)
{
    unsigned major, minor, release;
    vnxi_ucp_config_t *config;
    (void)state;
    assert_int_equal(ucp->ucp_config_read(NULL, NULL, &config), VNXI_UCS_OK);
    assert_int_equal(ucp->ucp_config_modify(config, "TCP_TX_SEG_SIZE", "64k"),
                     VNXI_UCS_OK);
    ucp->ucp_get_version(&major, &minor, &release);
    assert_int_equal(ucp->ucp_config_modify(config, "NO_SUCH_KEY", "1"),
                     minor >= 21 ? VNXI_UCS_ERR_INVALID_PARAM : VNXI_UCS_OK);
    ucp->ucp_config_release(config);
}

static void
test_ucp_context_reports_memory_types(void **state)
{
    vnxi_ucp_context_attr_t attr = {.field_mask = VNXI_UCP_ATTR_MEMORY_TYPES};
    (void)state;
    assert_int_equal(ucp->ucp_context_query(here.context, &attr), VNXI_UCS_OK);
    assert_int_equal(attr.memory_types >> VNXI_UCS_MEMORY_HOST & 1, 1);
}

/* -- Workers ---------------------------------------------------------------
 */

static void
test_ucp_worker_keeps_its_address(void **state)
{
    vnxi_ucp_worker_attr_t attr = {.field_mask = VNXI_UCP_WORKER_ATTR_ADDRESS};
    (void)state;
    assert_int_equal(ucp->ucp_worker_query(here.worker, &attr), VNXI_UCS_OK);
    assert_int_equal(attr.address_length, here.address_len);
    assert_memory_equal(attr.address, here.address, here.address_len);
    ucp->ucp_worker_release_address(here.worker, attr.address);
}

static bool
is_readable(int fd, int timeout_ms)
{
    struct pollfd one = {.fd = fd, .events = POLLIN};
    return poll(&one, 1, timeout_ms) == 1;
}

/* Let UCX do what it has to do until it may sleep. */
static void
arm(side_t *side)
{
    uint64_t end = vnxi_clock_deadline(PATIENCE_NS);
    vnxi_ucs_status_t status;

    while ((status = ucp->ucp_worker_arm(side->worker)) != VNXI_UCS_OK) {
        assert_int_equal(status, VNXI_UCS_ERR_BUSY);
        assert_true(vnxi_clock_ns() < end);
        progress_some();
    }
}

static void
test_ucp_idle_worker_sleeps(void **state)
{
    (void)state;
    while (ucp->ucp_worker_progress(here.worker) > 0) {
    }
    arm(&here);
    assert_false(is_readable(here.efd, 50));
    assert_int_equal(ucp->ucp_worker_progress(here.worker), 0);
}

static void
test_ucp_message_wakes_an_armed_worker(void **state)
{
    unsigned char byte = 7;
    end_point_t ep;
    op_t op;
    (void)state;
    connect_to(&ep, there.address);
    progress_some();
    arm(&there);
    post_message(&ep, &byte, 1, &op);
    uint64_t end = vnxi_clock_deadline(PATIENCE_NS);
    while (!is_readable(there.efd, 1)) {
        INSIDE(ucp->ucp_worker_progress(here.worker));
        assert_true(vnxi_clock_ns() < end);
    }
    assert_int_equal(there.messages, 0);
    /* The thread would not fall asleep over it. */
    assert_true(ucp->ucp_worker_arm(there.worker) == VNXI_UCS_ERR_BUSY ||
                is_readable(there.efd, 0));
    PROGRESS_UNTIL(there.messages == 1 && op.ends > 0);
    close_ep(&ep, false);
}

/* -- Endpoints -------------------------------------------------------------
 */

static void
test_ucp_ep_reports_its_transports(void **state)
{
    vnxi_ucp_ep_attr_t attr = {.field_mask = VNXI_UCP_EP_ATTR_TRANSPORTS};
    vnxi_ucp_transport_t entries[8];
    end_point_t ep;
    (void)state;
    connect_to(&ep, there.address);
    attr.transports.entries = entries;
    attr.transports.num_entries = 8;
    attr.transports.entry_size = sizeof entries[0];
    assert_int_equal(ucp->ucp_ep_query(ep.handle, &attr), VNXI_UCS_OK);
    assert_in_range(attr.transports.num_entries, 1, 8);
    for (unsigned i = 0; i < attr.transports.num_entries; i++) {
        assert_true(entries[i].transport_name[0] != '\0');
        assert_true(entries[i].device_name[0] != '\0');
    }
    attr.transports.num_entries = 1;
    assert_int_equal(ucp->ucp_ep_query(ep.handle, &attr), VNXI_UCS_OK);
    assert_int_equal(attr.transports.num_entries, 1);
    close_ep(&ep, false);
}

static void
test_ucp_ep_can_be_made_again_after_each_close(void **state)
{
    end_point_t ep;
    (void)state;
    for (int i = 0; i < 4; i++) {
        connect_to(&ep, there.address);
        close_ep(&ep, i % 2 == 0);
        progress_some();
        assert_int_equal(ep.errors, 0);
    }
}

static void
test_ucp_close_delivers_what_was_sent(void **state)
{
    unsigned char bytes[100] = {1};
    end_point_t ep;
    op_t ops[3];
    (void)state;
    connect_to(&ep, there.address);
    for (int i = 0; i < 3; i++) {
        post_message(&ep, bytes, sizeof bytes, &ops[i]);
    }
    close_ep(&ep, false);
    PROGRESS_UNTIL(there.messages == 3);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(ops[i].ends, 1);
        assert_int_equal(ops[i].status, VNXI_UCS_OK);
    }
}

/* -- Messages --------------------------------------------------------------
 */

static void
test_ucp_messages_arrive_whole_and_in_order(void **state)
{
    static const size_t lens[] = {1, 100, 8192, 70000, BYTES, 2};
    unsigned char *bytes = malloc(BYTES);
    end_point_t ep;
    op_t op;
    (void)state;
    connect_to(&ep, there.address);
    for (unsigned i = 0; i < sizeof lens / sizeof lens[0]; i++) {
        memset(bytes, (int)i + 1, lens[i]);
        bytes[lens[i] - 1] = (unsigned char)(i + 101);
        post_message(&ep, bytes, lens[i], &op);
        PROGRESS_UNTIL(op.ends > 0);
        assert_int_equal(op.status, VNXI_UCS_OK);
        memset(bytes, 0xee, lens[i]); /* they are ours again */
        PROGRESS_UNTIL(there.messages == i + 1);
        assert_int_equal(op.ends, 1);
        assert_int_equal(there.last_len, lens[i]);
        assert_int_equal(there.last_first, lens[i] > 1 ? i + 1 : i + 101);
        assert_int_equal(there.last_last, i + 101);
    }
    close_ep(&ep, false);
    free(bytes);
}

/* -- Memory ----------------------------------------------------------------
 */

static void
test_ucp_key_is_always_the_same_bytes(void **state)
{
    void *again;
    size_t len;
    (void)state;
    assert_int_equal(ucp->ucp_rkey_pack(here.context, here.mem, &again, &len),
                     VNXI_UCS_OK);
    assert_int_equal(len, here.key_len);
    assert_memory_equal(again, here.key, len);
    assert_true(len > KEY_MEMORY_TYPE);
    assert_int_equal(((unsigned char *)again)[KEY_MEMORY_TYPE],
                     VNXI_UCS_MEMORY_HOST);
    ucp->ucp_rkey_buffer_release(again);
}

static void
move_all(vnx_op_t kind)
{
    end_point_t ep;
    op_t ops[PIECES];

    memset(here.bytes, 0x11, BYTES);
    memset(there.bytes, 0x22, BYTES);
    connect_to(&ep, there.address);
    vnxi_ucp_rkey_t rkey = unpack(&ep, there.key);
    for (unsigned i = 0; i < PIECES; i++) {
        post_piece(&ep, kind, i, address_of(&there), rkey, &ops[i]);
    }
    if (kind == VNX_OP_WRITE) {
        flush(&ep); /* after the pieces: it ends after them */
        assert_int_equal(count_ended(ops), PIECES);
    } else {
        PROGRESS_UNTIL(count_ended(ops) == PIECES);
    }
    for (unsigned i = 0; i < PIECES; i++) {
        assert_int_equal(ops[i].ends, 1);
        assert_int_equal(ops[i].status, VNXI_UCS_OK);
    }
    assert_memory_equal(here.bytes, there.bytes, BYTES);
    assert_int_equal(here.bytes[0], kind == VNX_OP_READ ? 0x22 : 0x11);
    ucp->ucp_rkey_destroy(rkey);
    close_ep(&ep, false);
}

static void
test_ucp_put_is_visible_after_a_flush(void **state)
{
    (void)state;
    move_all(VNX_OP_WRITE);
}

static void
test_ucp_get_has_its_bytes_when_it_ends(void **state)
{
    (void)state;
    move_all(VNX_OP_READ);
}

/* -- Cancelling and failing ------------------------------------------------
 */

/* Requests of every kind at a peer that does nothing. */
typedef struct flight {
    end_point_t ep;
    vnxi_ucp_rkey_t rkey;
    unsigned char *message;
    op_t pieces[PIECES], sent, flushed;
} flight_t;

static void
take_off(flight_t *flight, const peer_t *peer)
{
    connect_to(&flight->ep, peer->address);
    flight->rkey = unpack(&flight->ep, peer->key);
    flight->message = calloc(1, BYTES);
    peer_pause(peer);
    for (unsigned i = 0; i < PIECES; i++) {
        post_piece(&flight->ep, i % 2 == 0 ? VNX_OP_READ : VNX_OP_WRITE, i,
                   peer->about.bytes, flight->rkey, &flight->pieces[i]);
    }
    post_message(&flight->ep, flight->message, BYTES, &flight->sent);
    post_flush(&flight->ep, &flight->flushed);
    progress_some();
}

static bool
has_ended(const flight_t *flight)
{
    return count_ended(flight->pieces) == PIECES && flight->sent.ends > 0 &&
           flight->flushed.ends > 0;
}

static void
assert_ended_with(const op_t *op, vnxi_ucs_status_t status)
{
    assert_int_equal(op->ends, 1);
    assert_true(op->status == VNXI_UCS_OK || op->status == status);
}

static void
assert_all_ended_with(const flight_t *flight, vnxi_ucs_status_t status)
{
    for (unsigned i = 0; i < PIECES; i++) {
        assert_ended_with(&flight->pieces[i], status);
    }
    assert_ended_with(&flight->sent, status);
    assert_ended_with(&flight->flushed, status);
}

/* What was in flight ends once, as cancelled unless it was done: in the call,
 * before the close ends, or soon after that (UCX 1.23, TCP).  The error
 * handler is not called, not even if the peer then ends. */
static void
test_ucp_close_by_force_ends_requests(void **state)
{
    flight_t flight;
    peer_t peer;
    op_t close;
    (void)state;
    peer_start(&peer);
    take_off(&flight, &peer);
    post_close(&flight.ep, true, &close);
    PROGRESS_UNTIL(close.ends > 0 && has_ended(&flight));
    ucp->ucp_rkey_destroy(flight.rkey);
    peer_kill(&peer);
    progress_some();
    assert_int_equal(close.ends, 1);
    assert_all_ended_with(&flight, VNXI_UCS_ERR_CANCELED);
    assert_int_equal(flight.ep.errors, 0);
    free(flight.message);
    peer_fini(&peer);
}

static void
assert_refused(const op_t *op, const end_point_t *ep)
{
    assert_int_equal(op->ends, 1);
    assert_int_equal(op->status, ep->error);
}

/* The error handler is called once.  What was in flight ends once, before or
 * after that, with the same error unless it was done.  Then every post is
 * refused with this error. */
static void
test_ucp_peer_death_is_reported_once(void **state)
{
    flight_t flight;
    end_point_t *ep = &flight.ep;
    peer_t peer;
    op_t later;
    (void)state;
    peer_start(&peer);
    take_off(&flight, &peer);
    peer_kill(&peer);
    PROGRESS_UNTIL(ep->errors > 0 && has_ended(&flight));
    assert_true(ep->error == VNXI_UCS_ERR_CONNECTION_RESET ||
                ep->error == VNXI_UCS_ERR_ENDPOINT_TIMEOUT);
    assert_all_ended_with(&flight, ep->error);
    post_piece(ep, VNX_OP_READ, 0, peer.about.bytes, flight.rkey, &later);
    assert_refused(&later, ep);
    post_piece(ep, VNX_OP_WRITE, 0, peer.about.bytes, flight.rkey, &later);
    assert_refused(&later, ep);
    post_flush(ep, &later);
    assert_refused(&later, ep);
    post_message(ep, "x", 1, &later);
    assert_refused(&later, ep);
    ucp->ucp_rkey_destroy(flight.rkey);
    progress_some();
    assert_int_equal(ep->errors, 1);
    close_ep(ep, true);
    free(flight.message);
    peer_fini(&peer);
}

/* Either the call fails, or the error handler is called. */
static void
test_ucp_ep_to_an_ended_process_fails(void **state)
{
    end_point_t ep;
    peer_t peer;
    op_t op;
    (void)state;
    peer_start(&peer);
    peer_kill(&peer);
    vnxi_ucs_status_t status = try_connect(&ep, peer.address);
    if (status == VNXI_UCS_OK) {
        post_flush(&ep, &op);
        PROGRESS_UNTIL(ep.errors > 0 && op.ends > 0);
        assert_refused(&op, &ep);
        close_ep(&ep, true);
        assert_int_equal(ep.errors, 1);
    } else {
        assert_int_equal(status, VNXI_UCS_ERR_ENDPOINT_TIMEOUT);
    }
    peer_fini(&peer);
}

/* -- Running ---------------------------------------------------------------
 */

#define alone(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
#define as_pair(test) \
    cmocka_unit_test_setup_teardown(test, set_up_pair, tear_down)

static int
run_all(const char *name)
{
    const struct CMUnitTest tests[] = {
        alone(test_ucp_has_a_version),
        alone(test_ucp_names_every_status),
        alone(test_ucp_config_refuses_unknown_keys),
        alone(test_ucp_context_reports_memory_types),
        alone(test_ucp_worker_keeps_its_address),
        alone(test_ucp_idle_worker_sleeps),
        as_pair(test_ucp_message_wakes_an_armed_worker),
        as_pair(test_ucp_ep_reports_its_transports),
        as_pair(test_ucp_ep_can_be_made_again_after_each_close),
        as_pair(test_ucp_close_delivers_what_was_sent),
        as_pair(test_ucp_messages_arrive_whole_and_in_order),
        alone(test_ucp_key_is_always_the_same_bytes),
        as_pair(test_ucp_put_is_visible_after_a_flush),
        as_pair(test_ucp_get_has_its_bytes_when_it_ends),
        alone(test_ucp_close_by_force_ends_requests),
        alone(test_ucp_peer_death_is_reported_once),
        alone(test_ucp_ep_to_an_ended_process_fails),
    };
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}

static vnxi_ucp_functions_t fake_functions;

static int
run_fake(void)
{
    void *library = dlopen(FAKE_UCP, RTLD_NOW | RTLD_LOCAL);

    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
#define TAKE(result, name, parameters) \
    *(void **)&fake_functions.name = dlsym(library, #name);
    VNXI_UCP_FUNCTIONS(TAKE)
#undef TAKE
    fake = dlsym(library, "fake_ucp");
    fake_calls = dlsym(library, "fake_ucp_calls");
    ucp = &fake_functions;
    int failed = run_all("the fake libucp");
    is_late = true;
    failed += run_all("the fake libucp, whose requests end late");
    is_late = false;
    fake = NULL;
    return failed;
}

static int
run_real(const vnxi_ucx_library_t *library)
{
    ucp = &library->ucp;
    library_path = library->path;
    transports = NULL;
    int failed = run_all(library->path);
    transports = "tcp";
    return failed + run_all("the same by TCP");
}

int
main(int argc, char **argv)
{
    const vnxi_ucx_library_t *library;
    const char *why;

    if (argc == 3) {
        be_peer(argv[1], argv[2]);
    }
    int failed = run_fake();
    library = vnxi_ucx_library(&why);
    if (library == NULL) {
        print_message("SKIP: only the fake was tested: no libucp: %s\n", why);
        return failed != 0 ? 1 : 77;
    }
    return failed + run_real(library) != 0;
}
