/* Metadata listeners, used by agents and by raw clients. */
#include "listener_fixture.h"

#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "slow_load.h"

static unsigned char memory[2][4096];

/* -- Between two agents --------------------------------------------------- */

static void
test_listener_fetches_sends_and_invalidates(void **state)
{
    (void)state;
    node_t left = node_listening("left", NULL);
    node_t right = node_new("right", NULL);

    assert_ok(
        vnx_listener_fetch(right.listener, HERE, left.port, "left", 4, e));
    WAIT_UNTIL(knows(&right, "left"));
    assert_ok(vnx_listener_send(right.listener, HERE, left.port, NULL, 0, e));
    WAIT_UNTIL(knows(&left, "right"));
    assert_ok(vnx_listener_invalidate(right.listener, HERE, left.port, e));
    WAIT_UNTIL(!knows(&left, "right"));

    WAIT_UNTIL(counts(&right).sent == 3);
    WAIT_UNTIL(counts(&right).loaded == 1);
    assert_int_equal(counts(&right).send_failures, 0);
    WAIT_UNTIL(counts(&right).pending == 0);
    WAIT_UNTIL(counts(&left).served == 1);
    WAIT_UNTIL(counts(&left).loaded == 1);
    WAIT_UNTIL(counts(&left).invalidated == 1);
    assert_int_equal(counts(&left).accepted, 1); /* it was kept */
    node_free(&right);
    WAIT_UNTIL(counts(&left).open == 0);
    node_free(&left);
}

/* The fetched metadata suffices for a transfer. */
static void
test_listener_transfers_regions(void **state)
{
    (void)state;
    node_t left = node_listening("left", NULL);
    node_t right = node_new("right", NULL);
    size_t len = sizeof memory[0];

    fill(memory[0], len, 7);
    memset(memory[1], 0, len);
    register_at(left.agent, memory[0], len);
    register_at(right.agent, memory[1], len);
    assert_ok(vnx_listener_fetch(right.listener, HERE, left.port, NULL, 0, e));
    WAIT_UNTIL(knows(&right, "left"));
    vnx_dlist_t *mine = prepare_rows(right.agent, "", memory[1], 512, 8);
    vnx_dlist_t *its = prepare_rows(right.agent, "left", memory[0], 512, 8);
    vnx_xfer_t *xfer = make_xfer(right.agent, VNX_OP_READ, mine, its, 8, NULL);
    run_xfer(right.agent, xfer);
    assert_memory_equal(memory[0], memory[1], len);
    assert_ok(vnx_xfer_release(xfer, e));
    vnx_dlist_release(mine);
    vnx_dlist_release(its);
    node_free(&right);
    node_free(&left);
}

static void
test_listener_sends_a_part(void **state)
{
    (void)state;
    node_t left = node_listening("left", NULL);
    node_t right = node_new("right", NULL);
    vnx_reg_desc_t part = region_of(memory[0], 512);
    vnx_desc_t inside = desc_at(memory[0], 512);
    vnx_desc_t outside = desc_at(memory[1], 512);
    vnx_bytes_t blob;

    register_at(right.agent, memory[0], 512);
    register_at(right.agent, memory[1], 512);
    assert_ok(vnx_agent_partial_metadata(right.agent, VNX_MEM_DRAM, &part, 1,
                                         true, NULL, &blob, e));
    assert_ok(vnx_listener_send(right.listener, HERE, left.port, blob.data,
                                blob.len, e));
    free(blob.data);
    WAIT_UNTIL(knows(&left, "right"));
    assert_true(vnx_agent_check_peer(left.agent, "right", 5, VNX_MEM_DRAM,
                                     &inside, 1));
    assert_false(vnx_agent_check_peer(left.agent, "right", 5, VNX_MEM_DRAM,
                                      &outside, 1));
    node_free(&right);
    node_free(&left);
}

static void
fetch_at(const char *host, const char *bind_to)
{
    node_t left = node_new("left", NULL), right = node_new("right", NULL);
    assert_ok(vnx_listener_start(left.listener, bind_to, 0, &left.port, e));
    assert_ok(vnx_listener_fetch(right.listener, host, left.port, NULL, 0, e));
    WAIT_UNTIL(knows(&right, "left"));
    node_free(&right);
    node_free(&left);
}

static void
test_listener_is_reached_by_name_and_both_families(void **state)
{
    (void)state;
    fetch_at("localhost", NULL);
    fetch_at("127.0.0.1", "127.0.0.1");
    if (have_ipv6()) {
        fetch_at("::1", NULL);
        fetch_at("::1", "::1");
        /* Two addresses, the first of which refuses. */
        fetch_at("localhost", "::1");
    } else {
        print_message("SKIP: no IPv6 on this machine\n");
    }
}

static void
test_listener_loads_an_unexpected_agent_and_reports_it(void **state)
{
    (void)state;
    node_t left = node_listening("left", NULL);
    node_t right = node_new("right", NULL);

    assert_ok(
        vnx_listener_fetch(right.listener, HERE, left.port, "middle", 6, e));
    WAIT_UNTIL(knows(&right, "left"));
    await_failure(&right, "expected agent 'middle'");
    assert_int_equal(counts(&right).send_failures, 0);
    node_free(&right);
    node_free(&left);
}

/* -- With a stranger, byte for byte --------------------------------------- */

static void
test_listener_replies_to_a_raw_client(void **state)
{
    (void)state;
    node_t node = node_listening("here", NULL);
    expect_service(&node);
    register_at(node.agent, memory[0], sizeof memory[0]);
    expect_service(&node); /* fresh every time */
    node_free(&node);
}

static void
test_listener_loads_metadata_from_a_raw_client(void **state)
{
    (void)state;
    node_t node = node_listening("here", NULL);
    vnx_agent_t *other = make_agent("other");
    vnx_bytes_t blob;
    int fd = peer_connect(node.port);

    assert_ok(vnx_agent_metadata(other, &blob, e));
    raw_command(fd, "LOAD", blob.data, blob.len);
    WAIT_UNTIL(knows(&node, "other"));
    raw_command(fd, "INVL", "other", 5);
    WAIT_UNTIL(!knows(&node, "other"));
    raw_command(fd, "INVL", "nobody", 6);
    raw_command(fd, "INVL", NULL, 0);
    raw_command(fd, "LOAD", blob.data, blob.len);
    WAIT_UNTIL(knows(&node, "other"));
    WAIT_UNTIL(counts(&node).invalidated == 1);
    WAIT_UNTIL(counts(&node).loaded == 2);
    free(blob.data);
    close(fd);
    vnx_agent_release(other);
    node_free(&node);
}

static void
test_listener_handles_several_commands_in_a_frame(void **state)
{
    (void)state;
    node_t node = node_listening("here", NULL);
    int fd = peer_connect(node.port);
    size_t len;

    raw_frame(fd, "NIXLCOMM:SENDNIXLCOMM:PINGNIXLCOMM:INVLxNIXLCOMM:SEND", 53);
    free(raw_load(fd, &len));
    free(raw_load(fd, &len));
    assert_says(failure_of(&node), "unknown command 'PING'");
    assert_int_equal(counts(&node).refused, 0);
    expect_service(&node);
    close(fd);
    node_free(&node);
}

static void
test_listener_reads_a_frame_byte_by_byte(void **state)
{
    (void)state;
    static const char frame[] = "\x0d\0\0\0\0\0\0\0NIXLCOMM:SEND";
    node_t node = node_listening("here", NULL);
    int fd = peer_connect(node.port);
    size_t len;

    for (size_t i = 0; i + 1 < sizeof frame; i++) {
        peer_send(fd, frame + i, 1);
    }
    free(raw_load(fd, &len));
    close(fd);
    node_free(&node);
}

/* It writes all requests first and reads the replies afterwards. */
static void
test_listener_replies_to_a_slow_reader(void **state)
{
    (void)state;
    enum { QUESTIONS = 2000 };
    node_t node = node_listening("here", NULL);
    int fd = peer_connect(node.port);
    size_t len;

    for (int i = 0; i < QUESTIONS; i++) {
        raw_command(fd, "SEND", NULL, 0);
    }
    for (int i = 0; i < QUESTIONS; i++) {
        free(raw_load(fd, &len));
    }
    WAIT_UNTIL(counts(&node).served == QUESTIONS);
    close(fd);
    node_free(&node);
}

/* -- While a load waits --------------------------------------------------- */

static void
send_load(int fd, vnx_agent_t *agent)
{
    vnx_bytes_t blob;
    assert_ok(vnx_agent_metadata(agent, &blob, e));
    raw_command(fd, "LOAD", blob.data, blob.len);
    free(blob.data);
}

/* An agent whose listener loads the metadata of `stopped`, and waits. */
static node_t
node_loading(vnx_agent_t *stopped, int *fd_p)
{
    node_t node = node_listening("here", NULL);

    slow_load_begin(node.agent, "stopped");
    *fd_p = peer_connect(node.port);
    send_load(*fd_p, stopped);
    slow_load_await(&slow_has_begun);
    return node;
}

static void
test_listener_serves_all_while_a_load_waits(void **state)
{
    (void)state;
    vnx_agent_t *stopped = make_agent("stopped"), *other = make_agent("other");
    int fd, fd2;
    node_t node = node_loading(stopped, &fd);
    size_t len;

    raw_command(fd, "SEND", NULL, 0);
    free(raw_load(fd, &len));
    fd2 = peer_connect(node.port);
    raw_command(fd2, "SEND", NULL, 0);
    free(raw_load(fd2, &len));
    send_load(fd2, other);
    WAIT_UNTIL(knows(&node, "other"));
    raw_command(fd2, "INVL", "other", 5);
    WAIT_UNTIL(!knows(&node, "other"));
    atomic_store(&slow_goes_on, true);
    WAIT_UNTIL(knows(&node, "stopped"));
    close(fd);
    close(fd2);
    node_free(&node);
    vnx_agent_release(stopped);
    vnx_agent_release(other);
}

static void
test_listener_stops_while_a_load_waits(void **state)
{
    (void)state;
    vnx_agent_t *stopped = make_agent("stopped");
    int fd;
    node_t node = node_loading(stopped, &fd);

    send_load(fd, stopped);
    vnx_listener_stop(node.listener);
    assert_false(knows(&node, "stopped"));
    assert_int_equal(counts(&node).loaded + counts(&node).load_failures, 0);
    close(fd);
    node_free(&node);
    vnx_agent_release(stopped);
}

static void
test_listener_reports_a_fetch_that_it_stops(void **state)
{
    (void)state;
    node_t stopped = node_listening("stopped", NULL);
    node_t node = node_new("here", NULL);

    slow_load_begin(node.agent, "stopped");
    assert_ok(
        vnx_listener_fetch(node.listener, HERE, stopped.port, NULL, 0, e));
    slow_load_await(&slow_has_begun);
    assert_int_equal(counts(&node).pending, 1);
    vnx_listener_stop(node.listener);
    assert_int_equal(counts(&node).pending, 0);
    assert_int_equal(counts(&node).send_failures, 1);
    assert_says(failure_of(&node), "was stopped before");
    node_free(&node);
    node_free(&stopped);
}

/* A connection with more commands than the listener takes at once. */
static void
test_listener_carries_out_many_commands_in_their_order(void **state)
{
    (void)state;
    enum { LOADS = 50 };
    vnx_agent_t *stopped = make_agent("stopped");
    int fd;
    node_t node = node_loading(stopped, &fd);
    size_t len;

    for (int i = 0; i < LOADS; i++) {
        raw_command(fd, "INVL", "stopped", 7);
        send_load(fd, stopped);
    }
    raw_command(fd, "SEND", NULL, 0);
    atomic_store(&slow_goes_on, true);
    free(raw_load(fd, &len));
    WAIT_UNTIL(counts(&node).loaded == 1 + LOADS);
    assert_int_equal(counts(&node).invalidated, LOADS);
    assert_true(knows(&node, "stopped"));
    close(fd);
    node_free(&node);
    vnx_agent_release(stopped);
}

/* An agent that restarts withdraws its metadata over one connection, and sends
 * it over another. */
static void
test_listener_keeps_the_order_over_connections(void **state)
{
    (void)state;
    vnx_agent_t *stopped = make_agent("stopped");
    int fd, fd2;
    node_t node = node_loading(stopped, &fd);
    size_t len;

    raw_command(fd, "INVL", "stopped", 7);
    raw_command(fd, "SEND", NULL, 0);
    free(raw_load(fd, &len)); /* both have arrived */
    fd2 = peer_connect(node.port);
    send_load(fd2, stopped);
    raw_command(fd2, "SEND", NULL, 0);
    free(raw_load(fd2, &len));
    atomic_store(&slow_goes_on, true);
    WAIT_UNTIL(counts(&node).loaded == 2);
    assert_int_equal(counts(&node).invalidated, 1);
    assert_true(knows(&node, "stopped"));
    close(fd);
    close(fd2);
    node_free(&node);
    vnx_agent_release(stopped);
}

static void
test_listener_carries_out_commands_of_a_peer_that_has_left(void **state)
{
    (void)state;
    vnx_agent_t *stopped = make_agent("stopped");
    int fd;
    node_t node = node_loading(stopped, &fd);

    raw_command(fd, "INVL", "stopped", 7);
    close(fd);
    WAIT_UNTIL(counts(&node).open == 0);
    atomic_store(&slow_goes_on, true);
    WAIT_UNTIL(counts(&node).invalidated == 1);
    assert_int_equal(counts(&node).loaded, 1);
    node_free(&node);
    vnx_agent_release(stopped);
}

/* -- What is sent --------------------------------------------------------- */

/* The test's server: the frames received. */
typedef struct record {
    atomic_int frames, connections;
    int cut_after; /* close each connection after that many frames; 0: never */
    char verb[4];
    unsigned char body[256];
    size_t len;
} record_t;

static record_t record;

static void
serve_record(peer_server_t *server, int client)
{
    unsigned char header[8], payload[4096];
    atomic_fetch_add(&record.connections, 1);
    for (int count = 1;; count++) {
        while (!peer_server_stopped(server, 0)) {
            unsigned char byte;
            if (recv(client, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0) {
                break;
            }
            peer_server_stopped(server, 1);
        }
        if (peer_server_stopped(server, 0) ||
            peer_recv(client, header, 8) != 8) {
            return;
        }
        size_t len = header[0] | (size_t)header[1] << 8;
        assert_true(len >= 13 && len <= sizeof payload);
        assert_int_equal(peer_recv(client, payload, len), len);
        assert_memory_equal(payload, "NIXLCOMM:", 9);
        memcpy(record.verb, payload + 9, 4);
        record.len =
            len - 13 < sizeof record.body ? len - 13 : sizeof record.body;
        memcpy(record.body, payload + 13, record.len);
        atomic_fetch_add(&record.frames, 1);
        if (count == record.cut_after) {
            return;
        }
    }
}

static void
record_start(peer_server_t *server, int cut_after)
{
    memset(&record, 0, sizeof record);
    record.cut_after = cut_after;
    peer_server_start(server, serve_record);
}

static void
test_listener_sends_the_bytes_of_nixl(void **state)
{
    (void)state;
    node_t node = node_new("here", NULL);
    peer_server_t server = {0};
    vnx_bytes_t blob;

    record_start(&server, 0);
    assert_ok(vnx_listener_invalidate(node.listener, HERE, server.port, e));
    WAIT_UNTIL(atomic_load(&record.frames) == 1);
    assert_memory_equal(record.verb, "INVL", 4);
    assert_int_equal(record.len, 4);
    assert_memory_equal(record.body, "here", 4);

    assert_ok(vnx_listener_send(node.listener, HERE, server.port, NULL, 0, e));
    WAIT_UNTIL(atomic_load(&record.frames) == 2);
    assert_ok(vnx_agent_metadata(node.agent, &blob, e));
    assert_memory_equal(record.verb, "LOAD", 4);
    assert_memory_equal(record.body, blob.data, record.len);
    free(blob.data);

    assert_ok(
        vnx_listener_fetch(node.listener, HERE, server.port, NULL, 0, e));
    WAIT_UNTIL(atomic_load(&record.frames) == 3);
    assert_memory_equal(record.verb, "SEND", 4);
    assert_int_equal(record.len, 0);
    assert_int_equal(atomic_load(&record.connections), 1);
    vnx_listener_free(node.listener);
    peer_server_stop(&server);
    vnx_agent_release(node.agent);
}

/* The peer closes after each command; a command that meets the end is resent.
 */
static void
test_listener_connects_again(void **state)
{
    (void)state;
    enum { ROUNDS = 50 };
    node_t node = node_new("here", NULL);
    peer_server_t server = {0};

    record_start(&server, 1);
    for (int i = 1; i <= ROUNDS; i++) {
        assert_ok(
            vnx_listener_invalidate(node.listener, HERE, server.port, e));
        WAIT_UNTIL(counts(&node).pending == 0);
        WAIT_UNTIL(atomic_load(&record.frames) == i);
        usleep(0);
    }
    assert_int_equal(counts(&node).send_failures, 0);
    assert_int_equal(atomic_load(&record.connections), ROUNDS);
    vnx_listener_free(node.listener);
    peer_server_stop(&server);
    vnx_agent_release(node.agent);
}

/* Instead of the answer to a fetch, the connection ends: it is retried once on
 * a new connection, and then fails. */
static void
test_listener_fetches_again_once(void **state)
{
    (void)state;
    node_t node = node_new("here", NULL);
    peer_server_t server = {0};

    record_start(&server, 1);
    assert_ok(
        vnx_listener_fetch(node.listener, HERE, server.port, NULL, 0, e));
    WAIT_UNTIL(counts(&node).send_failures == 1);
    assert_int_equal(atomic_load(&record.frames), 2);
    WAIT_UNTIL(counts(&node).pending == 0);
    assert_says(failure_of(&node), "vnx_listener_fetch");
    node_free(&node);
    peer_server_stop(&server);
}

/* -- Failures ------------------------------------------------------------- */

static void
test_listener_reports_a_dead_port(void **state)
{
    (void)state;
    node_t node = node_new("here", NULL), other = node_listening("x", NULL);
    int dead = other.port;

    node_free(&other);
    assert_ok(vnx_listener_send(node.listener, HERE, dead, NULL, 0, e));
    assert_ok(vnx_listener_fetch(node.listener, HERE, dead, NULL, 0, e));
    assert_ok(vnx_listener_invalidate(node.listener, HERE, dead, e));
    WAIT_UNTIL(counts(&node).send_failures == 3);
    WAIT_UNTIL(counts(&node).sent == 0);
    WAIT_UNTIL(counts(&node).pending == 0);
    assert_says(failure_of(&node), "Connection refused");
    assert_says(failure_of(&node), HERE);
    node_free(&node);
}

static void
test_listener_reports_an_unknown_name(void **state)
{
    (void)state;
    vnx_listener_options_t options = {.size = sizeof options,
                                      .timeout_ms = 2000};
    node_t node = node_new("here", &options);
    assert_ok(vnx_listener_send(node.listener, "no.such.host.invalid", 8888,
                                NULL, 0, e));
    WAIT_UNTIL(counts(&node).send_failures == 1);
    assert_says(failure_of(&node), "no.such.host.invalid:8888");
    node_free(&node);
}

static void
test_listener_times_out_without_a_reply(void **state)
{
    (void)state;
    vnx_listener_options_t options = {.size = sizeof options,
                                      .timeout_ms = 1000};
    node_t node = node_new("here", &options);
    peer_server_t server = {0};

    peer_server_start(&server, peer_serve_silence);
    assert_ok(
        vnx_listener_fetch(node.listener, HERE, server.port, NULL, 0, e));
    WAIT_UNTIL(counts(&node).send_failures == 1);
    assert_says(failure_of(&node), "NIXL_ERR_TIMEOUT");
    assert_says(failure_of(&node), "no metadata arrived");
    assert_int_equal(counts(&node).timed_out, 1);
    node_free(&node);
    peer_server_stop(&server);
}

static void
expect_refusal(vnx_status_t status, vnx_status_t expected,
               const vnx_error_t *error, const char *part)
{
    char line[1024];
    vnx_error_format(error, line, sizeof line);
    assert_says(line, part);
    assert_int_equal(status, expected);
}

static void
test_listener_refuses_bad_arguments(void **state)
{
    (void)state;
    vnx_listener_options_t options = {.size = sizeof options,
                                      .max_frame = 4096};
    node_t node = node_new("here", &options);
    vnx_listener_t *listener = node.listener, *none = NULL;
    static char big[8192];
    vnx_error_t error;

    expect_refusal(vnx_listener_send(listener, "", 1, NULL, 0, &error),
                   VNX_ERR_INVALID_PARAM, &error, "no host");
    expect_refusal(vnx_listener_fetch(listener, NULL, 1, NULL, 0, &error),
                   VNX_ERR_INVALID_PARAM, &error, "no host");
    expect_refusal(vnx_listener_invalidate(listener, HERE, 0, &error),
                   VNX_ERR_INVALID_PARAM, &error, "port 0");
    expect_refusal(vnx_listener_invalidate(listener, HERE, 65536, &error),
                   VNX_ERR_INVALID_PARAM, &error, "port 65536");
    expect_refusal(
        vnx_listener_send(listener, HERE, 1, big, sizeof big, &error),
        VNX_ERR_INVALID_PARAM, &error, "above max_frame");
    expect_refusal(
        vnx_listener_send(listener, HERE, 1, "xNIXLCOMM:", 10, &error),
        VNX_ERR_INVALID_PARAM, &error, "NIXLCOMM:");
    expect_refusal(vnx_listener_start(listener, NULL, -1, NULL, &error),
                   VNX_ERR_INVALID_PARAM, &error, "port -1");
    expect_refusal(
        vnx_listener_start(listener, "not an address", 0, NULL, &error),
        VNX_ERR_INVALID_PARAM, &error, "not an address");
    options.max_frame = 1u << 31;
    expect_refusal(vnx_listener_create(node.agent, &options, &none, &error),
                   VNX_ERR_INVALID_PARAM, &error, "max_frame");
    options.size = 3;
    expect_refusal(vnx_listener_create(node.agent, &options, &none, &error),
                   VNX_ERR_INVALID_PARAM, &error, "options.size");
    options.size = offsetof(vnx_listener_options_t, max_frame);
    assert_ok(vnx_listener_create(node.agent, &options, &none, e));
    vnx_listener_free(none);
    none = NULL;
    assert_null(none);
    assert_int_equal(counts(&node).pending, 0);
    node_free(&node);
}

static void
test_listener_without_a_backend_has_nothing_to_send(void **state)
{
    (void)state;
    vnx_agent_t *agent = NULL;
    vnx_listener_t *listener = NULL;
    vnx_error_t error;

    assert_ok(vnx_agent_create("bare", 4, NULL, &agent, e));
    assert_ok(vnx_listener_create(agent, NULL, &listener, e));
    expect_refusal(vnx_listener_send(listener, HERE, 1, NULL, 0, &error),
                   VNX_ERR_NOT_FOUND, &error, "create one first");
    vnx_listener_free(listener);
    vnx_agent_release(agent);
}

/* A peer that reads nothing: the queue of commands for it is bounded. */
static void
test_listener_limits_pending_commands(void **state)
{
    (void)state;
    vnx_listener_options_t options = {.size = sizeof options,
                                      .max_frame = 1u << 20};
    node_t node = node_new("here", &options);
    peer_server_t server = {0};
    size_t len = (1u << 20) - 13;
    unsigned char *blob = pattern(len, 1);
    vnx_error_t error = {.cause = ""};
    vnx_status_t status = VNX_OK;
    int accepted = 0;

    peer_server_start(&server, peer_serve_silence);
    while (status == VNX_OK && accepted < 1000) {
        status = vnx_listener_send(node.listener, HERE, server.port, blob, len,
                                   &error);
        accepted += status == VNX_OK;
    }
    expect_refusal(status, VNX_ERR_BACKEND, &error, "already waiting");
    assert_true(counts(&node).pending <= 2);
    free(blob);
    node_free(&node);
    peer_server_stop(&server);
}

/* -- Life ----------------------------------------------------------------- */

static void
test_listener_names_a_port_in_use(void **state)
{
    (void)state;
    node_t left = node_listening("left", NULL);
    node_t right = node_new("right", NULL);
    vnx_error_t error;
    char port[16];

    snprintf(port, sizeof port, ":%d", left.port);
    expect_refusal(
        vnx_listener_start(right.listener, NULL, left.port, NULL, &error),
        VNX_ERR_BACKEND, &error, port);
    assert_says(error.cause, "in use");
    assert_int_equal(vnx_listener_port(right.listener), 0);
    expect_refusal(vnx_listener_start(left.listener, NULL, 0, NULL, &error),
                   VNX_ERR_NOT_ALLOWED, &error, "already");

    vnx_listener_stop(left.listener); /* its port is free at once */
    assert_int_equal(vnx_listener_port(left.listener), 0);
    assert_ok(vnx_listener_start(right.listener, NULL, left.port, NULL, e));
    node_free(&left);
    node_free(&right);
}

static void
test_listener_cannot_restart_after_stop(void **state)
{
    (void)state;
    node_t node = node_listening("here", NULL);
    int fd = peer_connect(node.port);
    vnx_error_t error;

    raw_command(fd, "SEND", NULL, 0);
    vnx_listener_stop(node.listener);
    vnx_listener_stop(node.listener);
    peer_expect_end(fd);
    expect_refusal(vnx_listener_start(node.listener, NULL, 0, NULL, &error),
                   VNX_ERR_CLOSED, &error, "stopped");
    expect_refusal(vnx_listener_send(node.listener, HERE, 1, NULL, 0, &error),
                   VNX_ERR_CLOSED, &error, "stopped");
    node_free(&node);
}

/* Queued commands are sent before the listener stops. */
static void
test_listener_sends_before_it_stops(void **state)
{
    (void)state;
    node_t left = node_listening("left", NULL);
    for (int i = 0; i < 20; i++) {
        node_t right = node_new("right", NULL);
        assert_ok(
            vnx_listener_send(right.listener, HERE, left.port, NULL, 0, e));
        vnx_listener_stop(right.listener);
        WAIT_UNTIL(knows(&left, "right"));
        vnx_listener_free(right.listener);
        assert_ok(vnx_listener_create(right.agent, NULL, &right.listener, e));
        assert_ok(vnx_listener_invalidate(right.listener, HERE, left.port, e));
        node_free(&right);
        WAIT_UNTIL(!knows(&left, "right"));
    }
    node_free(&left);
}

/* Stopping does not wait for a peer that does not answer. */
static void
test_listener_stops_during_commands(void **state)
{
    (void)state;
    node_t node = node_listening("here", NULL);
    peer_server_t server = {0};
    int fd = peer_connect(node.port);

    peer_server_start(&server, peer_serve_silence);
    assert_ok(
        vnx_listener_fetch(node.listener, HERE, server.port, NULL, 0, e));
    peer_send(fd, "\xff\0\0", 3);
    WAIT_UNTIL(counts(&node).open == 1);
    node_free(&node);
    peer_expect_end(fd);
    peer_server_stop(&server);
}

static void
test_listener_of_a_closed_agent_refuses(void **state)
{
    (void)state;
    node_t node = node_listening("here", NULL);
    node_t other = node_new("other", NULL);
    vnx_error_t error;

    vnx_agent_close(node.agent);
    expect_refusal(vnx_listener_fetch(node.listener, HERE, 1, NULL, 0, &error),
                   VNX_ERR_CLOSED, &error, "closed");
    expect_refusal(vnx_listener_invalidate(node.listener, HERE, 1, &error),
                   VNX_ERR_CLOSED, &error, "closed");
    assert_ok(vnx_listener_send(other.listener, HERE, node.port, NULL, 0, e));
    WAIT_UNTIL(counts(&node).load_failures == 1);
    node_free(&other);
    node_free(&node);
}

static void
test_listener_closes_all_descriptors(void **state)
{
    (void)state;
    size_t before = 0;
    for (int i = 0; i < 20; i++) {
        node_t left = node_listening("left", NULL);
        node_t right = node_listening("right", NULL);
        assert_ok(
            vnx_listener_fetch(right.listener, HERE, left.port, NULL, 0, e));
        WAIT_UNTIL(knows(&right, "left"));
        node_free(&left);
        node_free(&right);
        if (i == 1) {
            before = open_fds();
        }
    }
    WAIT_UNTIL(open_fds() <= before);
}

static void
check_in_child(node_t *node)
{
    vnx_error_t error;
    if (vnx_listener_port(node->listener) != 0 ||
        vnx_listener_start(node->listener, NULL, 0, NULL, &error) !=
            VNX_ERR_NOT_ALLOWED ||
        vnx_listener_fetch(node->listener, HERE, 1, NULL, 0, &error) !=
            VNX_ERR_NOT_ALLOWED) {
        _exit(1);
    }
    vnx_listener_stop(node->listener);
    vnx_listener_free(node->listener);
    _exit(0);
}

static void
test_listener_belongs_to_the_parent(void **state)
{
    (void)state;
    node_t node = node_listening("here", NULL);
    int fd = peer_connect(node.port), status;
    size_t len;

    raw_command(fd, "SEND", NULL, 0);
    free(raw_load(fd, &len));
    pid_t child = fork();
    if (child == 0) {
        check_in_child(&node);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    raw_command(fd, "SEND", NULL, 0);
    free(raw_load(fd, &len));
    close(fd);
    node_free(&node);
}

/* A surviving child holds neither the port nor a connection. */
static void
test_listener_port_is_not_held_by_a_child(void **state)
{
    (void)state;
    node_t node = node_listening("here", NULL);
    int fd = peer_connect(node.port), gate[2];
    size_t len;

    raw_command(fd, "SEND", NULL, 0);
    free(raw_load(fd, &len));
    assert_int_equal(pipe(gate), 0);
    pid_t child = fork();
    if (child == 0) {
        char byte;
        close(gate[1]);
        _exit(read(gate[0], &byte, 1) == 0 ? 0 : 1);
    }
    close(gate[0]);
    int port = node.port;
    node_free(&node);
    peer_expect_end(fd);
    node = node_new("here", NULL);
    assert_ok(vnx_listener_start(node.listener, NULL, port, NULL, e));
    close(gate[1]);
    assert_int_equal(waitpid(child, NULL, 0), child);
    node_free(&node);
}

typedef struct caller {
    pthread_t thread;
    node_t *node;
    int port;
} caller_t;

static void *
caller_main(void *arg)
{
    caller_t *caller = arg;
    vnx_listener_stats_t stats;
    for (int i = 0; i < 50; i++) {
        vnx_listener_t *listener = caller->node->listener;
        vnx_listener_send(listener, HERE, caller->port, NULL, 0, NULL);
        vnx_listener_fetch(listener, HERE, caller->port, NULL, 0, NULL);
        vnx_listener_stats(listener, &stats);
        vnx_listener_invalidate(listener, HERE, caller->port, NULL);
    }
    return NULL;
}

static void
test_listener_is_called_from_many_threads(void **state)
{
    (void)state;
    node_t left = node_listening("left", NULL);
    node_t right = node_listening("right", NULL);
    caller_t callers[4];

    for (size_t i = 0; i < 4; i++) {
        callers[i].node = i % 2 ? &left : &right;
        callers[i].port = i % 2 ? right.port : left.port;
        assert_int_equal(
            pthread_create(&callers[i].thread, NULL, caller_main, &callers[i]),
            0);
    }
    for (size_t i = 0; i < 4; i++) {
        pthread_join(callers[i].thread, NULL);
    }
    WAIT_UNTIL(counts(&left).pending == 0 && counts(&right).pending == 0);
    assert_int_equal(counts(&left).send_failures, 0);
    assert_int_equal(counts(&right).send_failures, 0);
    WAIT_UNTIL(counts(&left).sent == 300);
    node_free(&left);
    node_free(&right);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_listener_fetches_sends_and_invalidates),
        cmocka_unit_test(test_listener_transfers_regions),
        cmocka_unit_test(test_listener_sends_a_part),
        cmocka_unit_test(test_listener_is_reached_by_name_and_both_families),
        cmocka_unit_test(
            test_listener_loads_an_unexpected_agent_and_reports_it),
        cmocka_unit_test(test_listener_replies_to_a_raw_client),
        cmocka_unit_test(test_listener_loads_metadata_from_a_raw_client),
        cmocka_unit_test(test_listener_handles_several_commands_in_a_frame),
        cmocka_unit_test(test_listener_reads_a_frame_byte_by_byte),
        cmocka_unit_test(test_listener_replies_to_a_slow_reader),
        cmocka_unit_test(test_listener_serves_all_while_a_load_waits),
        cmocka_unit_test(test_listener_stops_while_a_load_waits),
        cmocka_unit_test(test_listener_reports_a_fetch_that_it_stops),
        cmocka_unit_test(
            test_listener_carries_out_many_commands_in_their_order),
        cmocka_unit_test(test_listener_keeps_the_order_over_connections),
        cmocka_unit_test(
            test_listener_carries_out_commands_of_a_peer_that_has_left),
        cmocka_unit_test(test_listener_sends_the_bytes_of_nixl),
        cmocka_unit_test(test_listener_connects_again),
        cmocka_unit_test(test_listener_fetches_again_once),
        cmocka_unit_test(test_listener_reports_a_dead_port),
        cmocka_unit_test(test_listener_reports_an_unknown_name),
        cmocka_unit_test(test_listener_times_out_without_a_reply),
        cmocka_unit_test(test_listener_refuses_bad_arguments),
        cmocka_unit_test(test_listener_without_a_backend_has_nothing_to_send),
        cmocka_unit_test(test_listener_limits_pending_commands),
        cmocka_unit_test(test_listener_names_a_port_in_use),
        cmocka_unit_test(test_listener_cannot_restart_after_stop),
        cmocka_unit_test(test_listener_sends_before_it_stops),
        cmocka_unit_test(test_listener_stops_during_commands),
        cmocka_unit_test(test_listener_of_a_closed_agent_refuses),
        cmocka_unit_test(test_listener_closes_all_descriptors),
        cmocka_unit_test(test_listener_belongs_to_the_parent),
        cmocka_unit_test(test_listener_port_is_not_held_by_a_child),
        cmocka_unit_test(test_listener_is_called_from_many_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
