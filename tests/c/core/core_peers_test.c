/* Peers by their metadata: loaded, updated, superseded, removed, described. */
#include "agent_pair.h"
#include "json_check.h"
#include "pool_gate.h"

static vnx_bytes_t
metadata_of(vnx_agent_t *agent)
{
    vnx_bytes_t blob;
    assert_ok(vnx_agent_metadata(agent, &blob, e));
    return blob;
}

static vnx_bytes_t
partial_of(vnx_agent_t *agent, const void *at, size_t len,
           bool with_connection)
{
    vnx_reg_desc_t desc = region_of(at, len);
    vnx_bytes_t blob;
    assert_ok(vnx_agent_partial_metadata(agent, VNX_MEM_DRAM, &desc, 1,
                                         with_connection, NULL, &blob, e));
    return blob;
}

/* The blob is freed. */
static vnx_status_t
load_blob(vnx_agent_t *agent, vnx_bytes_t blob, vnx_error_t *error)
{
    vnx_bytes_t name = {NULL, 0};
    vnx_status_t status =
        vnx_agent_load_metadata(agent, blob.data, blob.len, &name, error);
    assert_true((status == VNX_OK) == (name.data != NULL));
    free(name.data);
    free(blob.data);
    return status;
}

static bool
holds(vnx_agent_t *agent, const char *peer, const void *at, size_t len)
{
    vnx_desc_t row = desc_at(at, len);
    return vnx_agent_check_peer(agent, peer, strlen(peer), VNX_MEM_DRAM, &row,
                                1);
}

static char *
describe(vnx_agent_t *agent, const char *name)
{
    vnx_bytes_t json;
    assert_ok(vnx_agent_describe(agent, name, strlen(name), &json, e));
    char *text = strndup(json.data, json.len);
    assert_int_equal(strlen(text), json.len);
    free(json.data);
    if (!json_is_valid(text)) {
        fail_msg("no JSON: %s", text);
    }
    return text;
}

/* The number that `"key": ` is followed by in the description. */
static unsigned long long
described_number(vnx_agent_t *agent, const char *name, const char *key)
{
    char *text = describe(agent, name), quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\": ", key);
    char *at = strstr(text, quoted);
    assert_non_null(at);
    unsigned long long value = strtoull(at + strlen(quoted), NULL, 10);
    free(text);
    return value;
}

static bool
is_described(vnx_agent_t *agent, const char *name, const char *part)
{
    char *text = describe(agent, name);
    bool found = strstr(text, part) != NULL;
    free(text);
    return found;
}

/* -- Loading ---------------------------------------------------------------
 */

static void
test_core_peers_json_checker_detects_invalid_json(void **state)
{
    static const char *const good[] = {
        "{}", "[]",
        " {\"a\": [1, -2.5e+3, 0, true, null], \"b\": \"\\u00ff\"}"};
    static const char *const bad[] = {
        "",       "{",       "{\"a\"}",    "[1,]",  "{\"a\": 1,}", "01",
        "\"\n\"", "\"\\x\"", "{} {}",      "[1 2]", "-",           "1.",
        "nul",    "{a: 1}",  "\"\\u12g\"", "1e",    "\"open"};
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        assert_true(json_is_valid(good[i]));
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (json_is_valid(bad[i])) {
            fail_msg("taken for JSON: %s", bad[i]);
        }
    }
}

static void
test_core_peers_loaded_twice_is_one_peer(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, ROWS, NULL);
    unsigned long long generation = described_number(p->a, "B", "generation");

    for (int i = 0; i < 5; i++) {
        load_peer(p->a, p->b);
    }
    assert_int_equal(stats_of(p->a).peers, 1);
    assert_int_equal(described_number(p->a, "B", "generation"), generation);
    run_xfer(p->a, xfer);
    assert_memory_equal(p->at_a, p->at_b, p->len);
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_core_peers_loading_returns_the_name(void **state)
{
    pair_t *p = *state;
    vnx_bytes_t blob = metadata_of(p->b), name = {NULL, 0};

    assert_ok(vnx_agent_load_metadata(p->a, blob.data, blob.len, &name, e));
    assert_int_equal(name.len, 1);
    assert_memory_equal(name.data, "B", 1);
    free(name.data);
    free(blob.data);
}

static void
test_core_peers_update_adds_and_removes_regions(void **state)
{
    pair_t *p = *state;
    static unsigned char more[ROW];

    assert_false(holds(p->a, "B", more, ROW));
    register_at(p->b, more, ROW);
    assert_false(holds(p->a, "B", more, ROW));
    load_peer(p->a, p->b);
    assert_true(holds(p->a, "B", more, ROW));
    assert_true(holds(p->a, "B", p->at_b, p->len));
    assert_int_equal(described_number(p->a, "B", "regions"), 2);

    deregister_at(p->b, p->at_b, p->len);
    load_peer(p->a, p->b);
    assert_true(holds(p->a, "B", more, ROW));
    assert_false(holds(p->a, "B", p->at_b, p->len));
    assert_int_equal(described_number(p->a, "B", "regions"), 1);
}

static void
test_core_peers_list_lives_through_an_update(void **state)
{
    pair_t *p = *state;
    static unsigned char more[ROW];
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, 16, NULL);

    register_at(p->b, more, ROW);
    load_peer(p->a, p->b);
    deregister_at(p->b, more, ROW);
    load_peer(p->a, p->b);
    run_xfer(p->a, xfer);
    assert_memory_equal(p->at_a, p->at_b, 16 * ROW);
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_core_peers_region_registered_again_needs_new_lists(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, 16, NULL);

    deregister_at(p->b, p->at_b, p->len);
    register_at(p->b, p->at_b, p->len);
    load_peer(p->a, p->b);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_ERR_NOT_FOUND);
    assert_ok(vnx_xfer_release(xfer, e));
    xfer = pair_make_xfer(p, VNX_OP_READ, 16, NULL);
    run_xfer(p->a, xfer);
    assert_ok(vnx_xfer_release(xfer, e));
}

/* -- Partial and old metadata ----------------------------------------------
 */

static void
test_core_peers_partial_metadata_only_adds(void **state)
{
    pair_t *p = *state;
    static unsigned char more[2 * ROW];

    register_at(p->b, more, ROW);
    register_at(p->b, more + ROW, ROW);
    for (int i = 0; i < 2; i++) {
        const unsigned char *at = more + i * ROW;
        assert_int_equal(
            load_blob(p->a, partial_of(p->b, at, ROW, i == 0), NULL), VNX_OK);
        assert_true(holds(p->a, "B", at, ROW));
        assert_true(holds(p->a, "B", p->at_b, p->len));
        assert_int_equal(described_number(p->a, "B", "regions"), 2 + i);
    }
}

static void
test_core_peers_partial_metadata_alone_creates_a_peer(void **state)
{
    pair_t *p = *state;
    static unsigned char more[ROW];
    vnx_error_t error;

    register_at(p->b, more, ROW);
    assert_ok(vnx_agent_remove_peer(p->a, "B", 1, e));
    assert_int_equal(
        load_blob(p->a, partial_of(p->b, more, ROW, false), &error),
        VNX_ERR_NOT_FOUND);
    assert_string_equal(error.peer, "B");
    assert_int_equal(stats_of(p->a).peers, 0);
    assert_int_equal(
        load_blob(p->a, partial_of(p->b, more, ROW, true), &error), VNX_OK);
    assert_true(holds(p->a, "B", more, ROW));
    assert_false(holds(p->a, "B", p->at_b, ROW));
    load_peer(p->a, p->b);
    assert_true(holds(p->a, "B", p->at_b, ROW));
    assert_int_equal(described_number(p->a, "B", "generation"), 2);
}

static void
test_core_peers_partial_metadata_of_no_rows_connects(void **state)
{
    pair_t *p = *state;
    vnx_bytes_t blob;

    assert_ok(vnx_agent_partial_metadata(p->b, VNX_MEM_DRAM, NULL, 0, false,
                                         NULL, &blob, e));
    assert_ok(vnx_agent_remove_peer(p->a, "B", 1, e));
    assert_int_equal(load_blob(p->a, blob, NULL), VNX_OK);
    assert_true(vnx_agent_check_peer(p->a, "B", 1, VNX_MEM_DRAM, NULL, 0));
    assert_false(holds(p->a, "B", p->at_b, 1));
    assert_ok(vnx_agent_send_notif(p->a, "B", 1, "hello", 5, e));
    vnx_notif_free(await_notif(p->b));
}

static void
test_core_peers_partial_metadata_needs_exact_regions(void **state)
{
    pair_t *p = *state;
    const char *unknown[] = {"WARP", NULL};
    vnx_reg_desc_t rows[] = {region_of(p->at_b, p->len),
                             region_of(p->at_b, p->len - 1)};
    vnx_bytes_t blob = {NULL, 0};
    vnx_error_t error;

    assert_int_equal(vnx_agent_partial_metadata(p->b, VNX_MEM_DRAM, rows, 2,
                                                true, NULL, &blob, &error),
                     VNX_ERR_NOT_FOUND);
    assert_int_equal(error.row, 1);
    assert_int_equal(error.len, p->len - 1);
    assert_int_equal(vnx_agent_partial_metadata(p->b, VNX_MEM_DRAM, rows, 1,
                                                true, unknown, &blob, &error),
                     VNX_ERR_NOT_FOUND);
    assert_non_null(strstr(error.cause, "WARP"));
    assert_null(blob.data);
}

static void
test_core_peers_older_metadata_changes_nothing(void **state)
{
    pair_t *p = *state;
    static unsigned char more[ROW];
    vnx_bytes_t old = metadata_of(p->b);

    register_at(p->b, more, ROW);
    load_peer(p->a, p->b);
    assert_int_equal(load_blob(p->a, old, NULL), VNX_OK);
    assert_true(holds(p->a, "B", more, ROW));
    assert_int_equal(described_number(p->a, "B", "regions"), 2);
}

static void
test_core_peers_bad_metadata_changes_nothing(void **state)
{
    pair_t *p = *state;
    vnx_bytes_t blob = metadata_of(p->b);
    vnx_error_t error;

    for (size_t len = 0; len < blob.len; len += 1 + len / 8) {
        vnx_bytes_t cut = {malloc(len + 1), len};
        memcpy(cut.data, blob.data, len);
        assert_int_equal(load_blob(p->a, cut, &error), VNX_ERR_MISMATCH);
        assert_string_equal(error.operation, "vnx_agent_load_metadata");
    }
    free(blob.data);
    assert_int_equal(stats_of(p->a).peers, 1);
    assert_true(holds(p->a, "B", p->at_b, p->len));
}

/* -- Removal, death, a new instance ----------------------------------------
 */

static void
test_core_peers_removed_is_unknown_until_loaded_again(void **state)
{
    pair_t *p = *state;

    assert_ok(vnx_agent_remove_peer(p->a, "nobody", 6, e));
    assert_ok(vnx_agent_remove_peer(p->a, NULL, 0, e));
    assert_ok(vnx_agent_remove_peer(p->a, "", 0, e));
    assert_int_equal(stats_of(p->a).peers, 1);
    for (int i = 0; i < 3; i++) {
        assert_ok(vnx_agent_remove_peer(p->a, "B", 1, e));
        assert_ok(vnx_agent_remove_peer(p->a, "B", 1, e));
        assert_int_equal(stats_of(p->a).peers, 0);
        assert_false(holds(p->a, "B", p->at_b, 1));
        assert_int_equal(vnx_agent_send_notif(p->a, "B", 1, "x", 1, NULL),
                         VNX_ERR_NOT_FOUND);
        load_peer(p->a, p->b);
        assert_true(holds(p->a, "B", p->at_b, 1));
        assert_int_equal(described_number(p->a, "B", "generation"), 2 + i);
    }
    assert_int_equal(stats_of(p->a).peers_lost, 0);
}

static void
check_lost(vnx_agent_t *agent, vnx_xfer_t *xfer, const char *cause)
{
    vnx_error_t error;
    assert_int_equal(
        vnx_agent_wait(agent, &xfer, 1, 0, vnx_test_limit(30), &error),
        VNX_ERR_REMOTE_DISCONNECT);
    assert_int_equal(error.row, 0);
    assert_string_equal(error.operation, "vnx_agent_wait");
    assert_int_equal(vnx_xfer_state(xfer), VNX_XFER_FAILED);
    assert_int_equal(vnx_xfer_status(xfer, &error), VNX_ERR_REMOTE_DISCONNECT);
    assert_string_equal(error.peer, "B");
    if (strstr(error.cause, cause) == NULL) {
        fail_msg("the cause is: %s", error.cause);
    }
}

static void
test_core_peers_removal_fails_transfers_in_flight(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, ROWS, "n");

    pool_gate_t *gate = gate_shut();
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
    assert_ok(vnx_agent_remove_peer(p->a, "B", 1, e));
    gate_open(gate);
    check_lost(p->a, xfer, "removed");
    assert_null(vnx_agent_take_notifs(p->b));
    assert_int_equal(p->at_a[0] | p->at_a[p->len - 1], 0);
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_core_peers_new_instance_fails_transfers_in_flight(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, ROWS, "n");
    vnx_agent_t *next = make_agent("B");

    pool_gate_t *gate = gate_shut();
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
    load_peer(p->a, next);
    gate_open(gate);
    check_lost(p->a, xfer, "instance");
    assert_int_equal(described_number(p->a, "B", "generation"), 2);
    assert_int_equal(stats_of(p->a).peers, 1);
    assert_null(vnx_agent_take_notifs(p->b));
    assert_null(vnx_agent_take_notifs(next));
    assert_ok(vnx_xfer_release(xfer, e));
    vnx_agent_release(next);
}

static void *
close_agent(void *agent)
{
    vnx_agent_close(agent);
    return NULL;
}

static void
sleep_ms(void)
{
    struct timespec ms = {0, 1000000};
    nanosleep(&ms, NULL);
}

static void
test_core_peers_close_cancels_transfers_in_flight(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_WRITE, ROWS, "n");
    pthread_t closer;
    vnx_error_t error;

    load_peer(p->b, p->a);
    pool_gate_t *gate = gate_shut();
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
    pthread_create(&closer, NULL, close_agent, p->a);
    while (vnx_agent_check_peer(p->b, "A", 1, VNX_MEM_DRAM, NULL, 0)) {
        sleep_ms();
    }
    gate_open(gate);
    pthread_join(closer, NULL);
    assert_int_equal(vnx_xfer_state(xfer), VNX_XFER_CANCELLED);
    assert_int_equal(vnx_xfer_status(xfer, NULL), VNX_ERR_CANCELED);
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error), VNX_ERR_CLOSED);
    assert_null(vnx_agent_take_notifs(p->b));
    assert_int_equal(stats_of(p->a).xfers_cancelled, 1);
    assert_int_equal(stats_of(p->a).peers, 0);
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_core_peers_closed_peer_fails_transfers_in_flight(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_WRITE, ROWS, "n");
    pthread_t closer;

    pool_gate_t *gate = gate_shut();
    assert_int_equal(vnx_xfer_post(xfer, NULL, 0, NULL), VNX_IN_PROG);
    pthread_create(&closer, NULL, close_agent, p->b);
    while (vnx_agent_check_peer(p->a, "B", 1, VNX_MEM_DRAM, NULL, 0)) {
        sleep_ms();
    }
    gate_open(gate);
    pthread_join(closer, NULL);
    check_lost(p->a, xfer, "");
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_core_peers_generation_grows_with_each_instance(void **state)
{
    pair_t *p = *state;
    unsigned long long before = described_number(p->a, "B", "generation");

    for (int i = 0; i < 5; i++) {
        pair_restart_b(p);
        load_peer(p->a, p->b);
        unsigned long long now = described_number(p->a, "B", "generation");
        assert_true(now > before);
        before = now;
        assert_true(is_described(p->a, "B", "\"state\": \"connected\""));
    }
    assert_int_equal(stats_of(p->a).peers, 1);
}

static void
test_core_peers_metadata_of_a_dead_agent_is_refused(void **state)
{
    pair_t *p = *state;
    vnx_bytes_t blob = metadata_of(p->b);
    vnx_error_t error;

    vnx_agent_close(p->b);
    assert_true(load_blob(p->a, blob, &error) < 0);
    assert_string_equal(error.peer, "B");
    assert_true(is_described(p->a, "B", "\"state\": \"lost\""));
    assert_true(is_described(p->a, "B", "\"cause\": "));
    assert_int_equal(vnx_agent_connect_peer(p->a, "B", 1, &error),
                     VNX_ERR_REMOTE_DISCONNECT);
}

/* -- Names -----------------------------------------------------------------
 */

static void
test_core_peers_errors_have_the_unknown_name(void **state)
{
    pair_t *p = *state;
    vnx_bytes_t json = {NULL, 0};
    vnx_error_t error;

    assert_int_equal(vnx_agent_describe(p->a, "C", 1, &json, &error),
                     VNX_ERR_NOT_FOUND);
    assert_string_equal(error.peer, "C");
    assert_int_equal(vnx_agent_connect_peer(p->a, "C", 1, &error),
                     VNX_ERR_NOT_FOUND);
    assert_string_equal(error.operation, "vnx_agent_connect_peer");
    assert_int_equal(vnx_agent_send_notif(p->a, "BB", 2, "", 0, &error),
                     VNX_ERR_NOT_FOUND);
    assert_string_equal(error.peer, "BB");
    assert_false(vnx_agent_check_peer(p->a, "C", 1, VNX_MEM_DRAM, NULL, 0));
    assert_true(vnx_agent_check_peer(p->a, "A", 1, VNX_MEM_DRAM, NULL, 0));
    assert_ok(vnx_agent_connect_peer(p->a, "A", 1, e));
    assert_ok(vnx_agent_connect_peer(p->a, "B", 1, e));
    assert_null(json.data);
}

/* Load an agent of that name, notify it, describe it, and remove it. */
static void
check_name(pair_t *p, const char *name, size_t len)
{
    vnx_agent_t *agent = NULL;
    vnx_bytes_t loaded, json, blob;

    assert_ok(vnx_agent_create(name, len, NULL, &agent, e));
    assert_ok(vnx_agent_create_backend(agent, "UCX", NULL, 0, e));
    load_peer(agent, p->b);
    blob = metadata_of(agent);
    assert_ok(vnx_agent_load_metadata(p->b, blob.data, blob.len, &loaded, e));
    assert_int_equal(loaded.len, len);
    assert_memory_equal(loaded.data, name, len);
    free(loaded.data);
    free(blob.data);
    assert_ok(vnx_agent_send_notif(agent, "B", 1, "from me", 7, e));
    vnx_notif_t *notif = await_notif(p->b);
    assert_int_equal(notif->sender_len, len);
    assert_memory_equal(notif->sender, name, len);
    vnx_notif_free(notif);
    assert_ok(vnx_agent_send_notif(p->b, name, len, "to you", 6, e));
    vnx_notif_free(await_notif(agent));
    assert_ok(vnx_agent_describe(p->b, name, len, &json, e));
    char *text = strndup(json.data, json.len);
    assert_true(json_is_valid(text));
    free(text);
    free(json.data);
    assert_ok(vnx_agent_remove_peer(p->b, name, len, e));
    assert_int_equal(stats_of(p->b).peers, 0);
    vnx_agent_release(agent);
}

static void
test_core_peers_names_may_be_any_bytes(void **state)
{
    pair_t *p = *state;
    char *longest = malloc(65535);
    memset(longest, 'n', 65535);

    check_name(p, "a\0b", 3);
    check_name(p, "a\0c", 3);
    check_name(p, "\0", 1);
    check_name(p, "\"\\\n{}\xff", 6);
    check_name(p, "B\0", 2);
    check_name(p, longest, 65535);
    free(longest);
}

static void
test_core_peers_holds_two_hundred_peers(void **state)
{
    pair_t *p = *state;
    vnx_agent_t *agents[200];
    char name[16];

    for (int i = 0; i < 200; i++) {
        snprintf(name, sizeof name, "peer-%d", i);
        agents[i] = make_agent(name);
        register_at(agents[i], p->at_b + i * ROW, ROW);
        load_peer(p->a, agents[i]);
    }
    assert_int_equal(stats_of(p->a).peers, 201);
    assert_int_equal(described_number(p->a, "", "peers"), 201);
    for (int i = 0; i < 200; i += 7) {
        snprintf(name, sizeof name, "peer-%d", i);
        vnx_desc_t mine = desc_at(p->at_a + i * ROW, ROW);
        vnx_desc_t theirs = desc_at(p->at_b + i * ROW, ROW);
        vnx_xfer_t *xfer = NULL;
        assert_ok(vnx_xfer_create(p->a, VNX_OP_READ, VNX_MEM_DRAM, &mine, 1,
                                  VNX_MEM_DRAM, &theirs, 1, name, strlen(name),
                                  name, strlen(name), NULL, &xfer, e));
        run_xfer(p->a, xfer);
        assert_memory_equal(p->at_a + i * ROW, p->at_b + i * ROW, ROW);
        vnx_notif_t *notif = await_notif(agents[i]);
        assert_memory_equal(notif->message, name, notif->message_len);
        vnx_notif_free(notif);
        assert_ok(vnx_xfer_release(xfer, e));
        assert_false(holds(p->a, name, p->at_b + (i + 1) * ROW, 1));
    }
    for (int i = 0; i < 200; i++) {
        vnx_agent_release(agents[i]);
    }
    assert_int_equal(stats_of(p->a).peers, 201);
    assert_false(
        vnx_agent_check_peer(p->a, "peer-0", 6, VNX_MEM_DRAM, NULL, 0));
}

/* -- Description -----------------------------------------------------------
 */

static void
test_core_peers_description_is_json_with_counters(void **state)
{
    pair_t *p = *state;
    vnx_xfer_t *xfer = pair_make_xfer(p, VNX_OP_READ, 16, "n");

    assert_true(is_described(p->a, "", "\"engine\": \"native\""));
    assert_true(is_described(p->a, "", "\"backends\": [\"UCX\"]"));
    assert_int_equal(described_number(p->a, "", "peers"), 1);
    assert_true(is_described(p->a, "B", "\"path\": \"process\""));
    assert_int_equal(described_number(p->a, "B", "transfers"), 0);
    run_xfer(p->a, xfer);
    run_xfer(p->a, xfer);
    assert_int_equal(described_number(p->a, "B", "transfers"), 2);
    assert_int_equal(described_number(p->a, "B", "bytes"), 2 * 16 * ROW);
    assert_int_equal(described_number(p->a, "B", "notifs_sent"), 2);
    assert_true(is_described(p->a, "A", "itself"));
    vnx_agent_close(p->b);
    assert_true(is_described(p->a, "B", "\"state\": \"lost\""));
    assert_ok(vnx_xfer_release(xfer, e));
}

static void
test_core_peers_check_needs_every_row(void **state)
{
    pair_t *p = *state;
    vnx_desc_t rows[] = {desc_at(p->at_b, p->len), desc_at(p->at_b + 100, 1),
                         desc_at(p->at_b + p->len, 1)};

    assert_true(vnx_agent_check_peer(p->a, "B", 1, VNX_MEM_DRAM, rows, 2));
    assert_false(vnx_agent_check_peer(p->a, "B", 1, VNX_MEM_DRAM, rows, 3));
    assert_false(vnx_agent_check_peer(p->a, "B", 1, VNX_MEM_VRAM, rows, 1));
    rows[1].dev = 2;
    assert_false(vnx_agent_check_peer(p->a, "B", 1, VNX_MEM_DRAM, rows, 2));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_core_peers_json_checker_detects_invalid_json),
        with_pair(test_core_peers_loaded_twice_is_one_peer),
        with_pair(test_core_peers_loading_returns_the_name),
        with_pair(test_core_peers_update_adds_and_removes_regions),
        with_pair(test_core_peers_list_lives_through_an_update),
        with_pair(test_core_peers_region_registered_again_needs_new_lists),
        with_pair(test_core_peers_partial_metadata_only_adds),
        with_pair(test_core_peers_partial_metadata_alone_creates_a_peer),
        with_pair(test_core_peers_partial_metadata_of_no_rows_connects),
        with_pair(test_core_peers_partial_metadata_needs_exact_regions),
        with_pair(test_core_peers_older_metadata_changes_nothing),
        with_pair(test_core_peers_bad_metadata_changes_nothing),
        with_pair(test_core_peers_removed_is_unknown_until_loaded_again),
        with_pair(test_core_peers_removal_fails_transfers_in_flight),
        with_pair(test_core_peers_new_instance_fails_transfers_in_flight),
        with_pair(test_core_peers_close_cancels_transfers_in_flight),
        with_pair(test_core_peers_closed_peer_fails_transfers_in_flight),
        with_pair(test_core_peers_generation_grows_with_each_instance),
        with_pair(test_core_peers_metadata_of_a_dead_agent_is_refused),
        with_pair(test_core_peers_errors_have_the_unknown_name),
        with_pair(test_core_peers_names_may_be_any_bytes),
        with_pair(test_core_peers_holds_two_hundred_peers),
        with_pair(test_core_peers_description_is_json_with_counters),
        with_pair(test_core_peers_check_needs_every_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
