/*
 * Peers by the public C API: loading of metadata, refusals, descriptions,
 * notifications.
 */
#include "agent_scene.h"

#include <pthread.h>

#define SIZE 65536

static int
setup(void **state)
{
    *state = scene_open(SIZE, 4);
    return 0;
}

static vnx_status_t
load(vnx_agent_t *agent, const void *blob, size_t len, vnx_error_t *error)
{
    vnx_bytes_t name = {0};
    vnx_status_t status =
        vnx_agent_load_metadata(agent, blob, len, &name, error);
    free(name.data);
    return status;
}

static vnx_bytes_t
metadata(vnx_agent_t *agent)
{
    vnx_bytes_t blob;
    assert_ok(vnx_agent_metadata(agent, &blob, e));
    return blob;
}

static bool
knows(scene_t *s, const void *at, size_t len)
{
    vnx_desc_t desc = {(uint64_t)(uintptr_t)at, len, 0};
    return vnx_agent_check_peer(s->here, "there", 5, VNX_MEM_DRAM, &desc, 1);
}

/* All of the peer's memory is read. */
static void
check_read(scene_t *s)
{
    vnx_dlist_t *local = prepare_rows(s->here, "", s->ours, 1024, 64);
    vnx_dlist_t *remote = prepare_rows(s->here, "there", s->theirs, 1024, 64);
    vnx_xfer_t *xfer =
        make_xfer(s->here, VNX_OP_READ, local, remote, 64, NULL);

    memset(s->ours, 0, SIZE);
    run_xfer(s->here, xfer);
    assert_memory_equal(s->ours, s->theirs, SIZE);
    assert_ok(vnx_xfer_release(xfer, e));
    vnx_dlist_release(local);
    vnx_dlist_release(remote);
}

/* -- Loading -------------------------------------------------------------- */

static void
test_peer_check_uses_the_loaded_regions(void **state)
{
    scene_t *s = *state;

    assert_false(
        vnx_agent_check_peer(s->here, "there", 5, VNX_MEM_DRAM, NULL, 0));
    load_peer(s->here, s->there);
    assert_true(
        vnx_agent_check_peer(s->here, "there", 5, VNX_MEM_DRAM, NULL, 0));
    assert_true(knows(s, s->theirs, SIZE));
    assert_true(knows(s, s->theirs + SIZE - 1, 1));
    assert_false(knows(s, s->theirs + SIZE - 1, 2));
    assert_false(knows(s, s->theirs - 1, 1));
    assert_false(knows(s, s->theirs, UINT64_MAX));
    vnx_desc_t elsewhere = {(uint64_t)(uintptr_t)s->theirs, 1, 1};
    assert_false(vnx_agent_check_peer(s->here, "there", 5, VNX_MEM_DRAM,
                                      &elsewhere, 1));
    elsewhere.dev = 0;
    assert_false(vnx_agent_check_peer(s->here, "there", 5, VNX_MEM_VRAM,
                                      &elsewhere, 1));
    check_read(s);
}

static void
test_peer_loaded_again_has_more_and_fewer_regions(void **state)
{
    scene_t *s = *state;
    unsigned char *more = calloc(1, SIZE);

    load_peer(s->here, s->there);
    register_at(s->there, more, SIZE);
    assert_false(knows(s, more, SIZE));
    load_peer(s->here, s->there);
    assert_true(knows(s, more, SIZE));
    deregister_at(s->there, more, SIZE);
    load_peer(s->here, s->there);
    assert_false(knows(s, more, SIZE));
    check_read(s);
    free(more);
}

static void
test_peer_older_metadata_removes_nothing(void **state)
{
    scene_t *s = *state;
    unsigned char *more = calloc(1, SIZE);
    vnx_bytes_t old = metadata(s->there);

    register_at(s->there, more, SIZE);
    load_peer(s->here, s->there);
    assert_int_equal(load(s->here, old.data, old.len, NULL), VNX_OK);
    assert_true(knows(s, more, SIZE));
    check_read(s);
    deregister_at(s->there, more, SIZE);
    free(old.data);
    free(more);
}

static void
test_peer_partial_metadata_adds(void **state)
{
    scene_t *s = *state;
    unsigned char *more = calloc(1, SIZE);
    vnx_reg_desc_t some = region_of(more, SIZE);
    vnx_bytes_t part;

    register_at(s->there, more, SIZE);
    for (int with_connection = 1; with_connection >= 0; with_connection--) {
        assert_ok(vnx_agent_partial_metadata(s->there, VNX_MEM_DRAM, &some, 1,
                                             with_connection, NULL, &part, e));
        assert_int_equal(load(s->here, part.data, part.len, NULL), VNX_OK);
        assert_true(knows(s, more, SIZE));
        assert_false(knows(s, s->theirs, SIZE));
        free(part.data);
    }
    load_peer(s->here, s->there);
    assert_true(knows(s, more, SIZE));
    check_read(s);
    deregister_at(s->there, more, SIZE);
    free(more);
}

static void
test_peer_partial_metadata_of_a_stranger_is_refused(void **state)
{
    scene_t *s = *state;
    vnx_reg_desc_t all = region_of(s->theirs, SIZE);
    vnx_bytes_t part;
    vnx_error_t error;

    assert_ok(vnx_agent_partial_metadata(s->there, VNX_MEM_DRAM, &all, 1,
                                         false, NULL, &part, e));
    assert_true(load(s->here, part.data, part.len, &error) < 0);
    assert_string_equal(error.operation, "vnx_agent_load_metadata");
    assert_false(
        vnx_agent_check_peer(s->here, "there", 5, VNX_MEM_DRAM, NULL, 0));
    free(part.data);

    all.desc.len--;
    assert_int_equal(vnx_agent_partial_metadata(s->there, VNX_MEM_DRAM, &all,
                                                1, true, NULL, &part, &error),
                     VNX_ERR_NOT_FOUND);
    assert_int_equal(error.row, 0);
}

static void
test_peer_damaged_metadata_is_refused_safely(void **state)
{
    scene_t *s = *state;
    vnx_bytes_t blob = metadata(s->there);
    unsigned char *bad = malloc(blob.len);
    size_t refused = 0;

    load_peer(s->here, s->there);
    for (size_t at = 0; at < blob.len; at++) {
        vnx_error_t error;
        assert_int_equal(load(s->here, blob.data, at, &error),
                         VNX_ERR_MISMATCH);
        memcpy(bad, blob.data, blob.len);
        bad[at] ^= (unsigned char)(1 + at % 255);
        refused += load(s->here, bad, blob.len, &error) < 0;
    }
    assert_true(refused > blob.len / 2);
    assert_int_equal(load(s->here, blob.data, blob.len, NULL), VNX_OK);
    check_read(s);
    free(bad);
    free(blob.data);
}

static void *
load_again_and_again(void *argument)
{
    scene_t *s = argument;
    for (int i = 0; i < 300; i++) {
        vnx_bytes_t blob;
        if (vnx_agent_metadata(s->there, &blob, NULL) != VNX_OK) {
            return NULL;
        }
        vnx_status_t status = load(s->here, blob.data, blob.len, NULL);
        free(blob.data);
        if (status != VNX_OK || !knows(s, s->theirs, SIZE)) {
            return NULL;
        }
    }
    return s;
}

static void
test_peer_is_loaded_by_many_threads(void **state)
{
    scene_t *s = *state;
    unsigned char *more = calloc(1, SIZE);
    pthread_t threads[4];
    void *result;

    load_peer(s->here, s->there);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(
            pthread_create(&threads[i], NULL, load_again_and_again, s), 0);
    }
    for (int i = 0; i < 300; i++) {
        register_at(s->there, more, SIZE);
        deregister_at(s->there, more, SIZE);
    }
    for (int i = 0; i < 4; i++) {
        assert_int_equal(pthread_join(threads[i], &result), 0);
        assert_ptr_equal(result, s);
    }
    check_read(s);
    free(more);
}

/* -- Removal -------------------------------------------------------------- */

static void
test_peer_removed_is_unknown_until_loaded_again(void **state)
{
    scene_t *s = *state;
    vnx_error_t error;

    assert_ok(vnx_agent_remove_peer(s->here, "nobody", 6, e));
    for (int round = 0; round < 3; round++) {
        load_peer(s->here, s->there);
        vnx_dlist_t *old = prepare_rows(s->here, "there", s->theirs, 1024, 64);
        vnx_dlist_t *local = prepare_rows(s->here, "", s->ours, 1024, 64);
        vnx_xfer_t *xfer =
            make_xfer(s->here, VNX_OP_READ, local, old, 64, NULL);
        check_read(s);
        assert_ok(vnx_agent_remove_peer(s->here, "there", 5, e));
        assert_int_equal(vnx_xfer_post(xfer, NULL, 0, &error),
                         VNX_ERR_REMOTE_DISCONNECT);
        assert_string_equal(error.peer, "there");
        assert_int_equal(
            vnx_agent_send_notif(s->here, "there", 5, "x", 1, &error),
            VNX_ERR_NOT_FOUND);
        vnx_xfer_abandon(xfer);
        vnx_dlist_release(old);
        vnx_dlist_release(local);
    }
}

static void
test_peer_closed_is_a_disconnect(void **state)
{
    scene_t *s = *state;
    vnx_error_t error;
    vnx_agent_stats_t stats;

    load_peer(s->here, s->there);
    vnx_agent_close(s->there);
    assert_int_equal(vnx_agent_send_notif(s->here, "there", 5, "x", 1, &error),
                     VNX_ERR_REMOTE_DISCONNECT);
    assert_string_equal(error.operation, "vnx_agent_send_notif");
    assert_string_equal(error.peer, "there");
    vnx_agent_stats(s->here, &stats);
    assert_int_equal(stats.peers, 1);
    assert_ok(vnx_agent_send_notif(s->here, "here", 4, "me", 2, e));
    vnx_notif_free(await_notif(s->here));
}

/* -- Description ---------------------------------------------------------- */

static void
expect_words(vnx_agent_t *agent, const char *peer, const char *const *words)
{
    vnx_bytes_t json;
    assert_ok(vnx_agent_describe(agent, peer, strlen(peer), &json, e));
    char *text = malloc(json.len + 1);
    memcpy(text, json.data, json.len);
    text[json.len] = '\0';
    assert_int_equal(text[0], '{');
    assert_int_equal(text[json.len - 1], '}');
    for (; *words != NULL; words++) {
        if (strstr(text, *words) == NULL) {
            fail_msg("'%s' is not in %s", *words, text);
        }
    }
    free(text);
    free(json.data);
}

static void
test_peer_is_described(void **state)
{
    scene_t *s = *state;
    static const char *const of_agent[] = {
        "\"engine\": \"native\"", "\"peers\": 1", "\"backends\"", "UCX", NULL};
    static const char *const of_peer[] = {"\"generation\": 1", "\"state\"",
                                          "\"path\"", "\"regions\": 1", NULL};
    static const char *const of_self[] = {"\"path\"", NULL};
    vnx_bytes_t json;
    vnx_error_t error;

    load_peer(s->here, s->there);
    expect_words(s->here, "", of_agent);
    expect_words(s->here, "there", of_peer);
    expect_words(s->here, "here", of_self);
    assert_int_equal(vnx_agent_describe(s->here, "nobody", 6, &json, &error),
                     VNX_ERR_NOT_FOUND);
}

static void
test_peer_may_be_connected_early(void **state)
{
    scene_t *s = *state;
    vnx_error_t error;

    assert_int_equal(vnx_agent_connect_peer(s->here, "there", 5, &error),
                     VNX_ERR_NOT_FOUND);
    load_peer(s->here, s->there);
    assert_ok(vnx_agent_connect_peer(s->here, "there", 5, e));
    assert_ok(vnx_agent_connect_peer(s->here, "there", 5, e));
    check_read(s);
}

/* -- Notifications -------------------------------------------------------- */

typedef struct speaker {
    scene_t *scene;
    unsigned char number;
    pthread_t thread;
} speaker_t;

#define SPEAKERS 4
#define WORDS 2000

static void *
speak(void *argument)
{
    speaker_t *speaker = argument;
    for (uint32_t i = 0; i < WORDS; i++) {
        unsigned char message[5] = {speaker->number};
        memcpy(message + 1, &i, sizeof i);
        if (vnx_agent_send_notif(speaker->scene->here, "there", 5, message,
                                 sizeof message, NULL) != VNX_OK) {
            return NULL;
        }
    }
    return speaker;
}

/* Each message is the next one of its sender. */
static size_t
hear(vnx_agent_t *agent, uint32_t *next)
{
    vnx_notif_t *chain = await_notif(agent);
    size_t count = 0;
    for (vnx_notif_t *one = chain; one != NULL; one = one->next, count++) {
        const unsigned char *message = one->message;
        uint32_t word;
        assert_int_equal(one->message_len, 5);
        assert_int_equal(one->sender_len, 4);
        assert_memory_equal(one->sender, "here", 4);
        memcpy(&word, message + 1, sizeof word);
        assert_int_equal(word, next[message[0]]);
        next[message[0]]++;
    }
    vnx_notif_free(chain);
    return count;
}

static void
test_peer_receives_notifications_in_order_from_many_threads(void **state)
{
    scene_t *s = *state;
    speaker_t speakers[SPEAKERS];
    uint32_t next[SPEAKERS] = {0};
    size_t heard = 0;
    void *result;

    load_peer(s->here, s->there);
    for (unsigned char i = 0; i < SPEAKERS; i++) {
        speakers[i] = (speaker_t){.scene = s, .number = i};
        assert_int_equal(
            pthread_create(&speakers[i].thread, NULL, speak, &speakers[i]), 0);
    }
    while (heard < (size_t)SPEAKERS * WORDS) {
        heard += hear(s->there, next);
    }
    for (int i = 0; i < SPEAKERS; i++) {
        assert_int_equal(pthread_join(speakers[i].thread, &result), 0);
        assert_ptr_equal(result, &speakers[i]);
    }
    assert_int_equal(heard, SPEAKERS * WORDS);
    assert_null(vnx_agent_take_notifs(s->there));
}

static void
test_peer_receives_notifications_from_an_unknown_agent(void **state)
{
    scene_t *s = *state;
    vnx_agent_stats_t stats;

    load_peer(s->here, s->there);
    assert_ok(vnx_agent_send_notif(s->here, "there", 5, "hello", 5, e));
    vnx_notif_t *notif = await_notif(s->there);
    assert_memory_equal(notif->sender, "here", 4);
    vnx_notif_free(notif);
    vnx_agent_stats(s->there, &stats);
    assert_int_equal(stats.peers, 0);
    assert_int_equal(stats.notifs_received, 1);
    vnx_agent_stats(s->here, &stats);
    assert_int_equal(stats.notifs_sent, 1);
}

/* -- Many ----------------------------------------------------------------- */

static void
test_peer_after_peer(void **state)
{
    scene_t *s = *state;
    enum { COUNT = 60 };
    vnx_agent_t *others[COUNT];
    vnx_agent_stats_t stats;
    char name[16];

    for (int i = 0; i < COUNT; i++) {
        snprintf(name, sizeof name, "other-%d", i);
        others[i] = make_agent(name);
        load_peer(s->here, others[i]);
    }
    vnx_agent_stats(s->here, &stats);
    assert_int_equal(stats.peers, COUNT);
    for (int i = 0; i < COUNT; i++) {
        snprintf(name, sizeof name, "other-%d", i);
        assert_ok(vnx_agent_send_notif(s->here, name, strlen(name), name,
                                       strlen(name), e));
        vnx_notif_t *notif = await_notif(others[i]);
        assert_memory_equal(notif->message, name, strlen(name));
        vnx_notif_free(notif);
        assert_ok(vnx_agent_remove_peer(s->here, name, strlen(name), e));
        vnx_agent_release(others[i]);
    }
    vnx_agent_stats(s->here, &stats);
    assert_int_equal(stats.peers, 0);
}

/* -- Signed metadata ------------------------------------------------------ */

static vnx_status_t
make_signing(const char *name, const char *secret, vnx_agent_t **out_p,
             vnx_error_t *error)
{
    const vnx_agent_config_t config = {
        .size = sizeof config,
        .engine = "native",
        .metadata_secret = secret,
        .metadata_secret_len = secret != NULL ? strlen(secret) : 0,
    };
    return vnx_agent_create(name, strlen(name), &config, out_p, error);
}

static void
assert_not_allowed(vnx_agent_t *agent, vnx_bytes_t blob, const char *cause)
{
    vnx_error_t error;
    assert_int_equal(load(agent, blob.data, blob.len, &error),
                     VNX_ERR_NOT_ALLOWED);
    assert_string_equal(error.operation, "vnx_agent_load_metadata");
    assert_string_equal(error.peer, "there");
    assert_non_null(strstr(error.cause, cause));
}

static void
test_peer_metadata_is_checked_by_agents_with_a_secret(void **state)
{
    scene_t *s = *state;
    vnx_agent_t *signing[2] = {NULL, NULL};
    vnx_error_t error;

    if (make_signing("signs", "one secret", &signing[0], &error) ==
        VNX_ERR_NOT_SUPPORTED) {
        print_message("%s\n", error.cause);
        skip();
    }
    assert_ok(make_signing("there", "one secret", &signing[1], e));
    for (int i = 0; i < 2; i++) {
        assert_ok(vnx_agent_create_backend(signing[i], "UCX", NULL, 0, e));
    }
    vnx_bytes_t unsigned_blob = metadata(s->there);
    vnx_bytes_t signed_blob = metadata(signing[1]), own = metadata(signing[0]);

    assert_not_allowed(signing[0], unsigned_blob, "is not signed");
    assert_ok(load(s->here, signed_blob.data, signed_blob.len, e));
    assert_ok(load(signing[0], signed_blob.data, signed_blob.len, e));
    assert_int_equal(load(signing[0], own.data, own.len, &error),
                     VNX_ERR_INVALID_PARAM);
    ((char *)signed_blob.data)[signed_blob.len / 2] ^= 1;
    assert_not_allowed(signing[0], signed_blob, "the signature is wrong");

    free(unsigned_blob.data);
    free(signed_blob.data);
    free(own.data);
    vnx_agent_release(signing[0]);
    vnx_agent_release(signing[1]);
}

static void
test_peer_agents_refuse_bad_secrets(void **state)
{
    (void)state;
    vnx_agent_t *agent = NULL;
    vnx_error_t error;

    assert_int_equal(make_signing("signs", "", &agent, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_int_equal(make_signing("signs", "1234567", &agent, &error),
                     VNX_ERR_INVALID_PARAM);
    assert_string_equal(error.operation, "vnx_agent_create");
    assert_null(strstr(error.cause, "1234567"));
    assert_null(agent);
}

#define with_scene(test) \
    cmocka_unit_test_setup_teardown(test, setup, scene_close)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        with_scene(test_peer_check_uses_the_loaded_regions),
        with_scene(test_peer_loaded_again_has_more_and_fewer_regions),
        with_scene(test_peer_older_metadata_removes_nothing),
        with_scene(test_peer_partial_metadata_adds),
        with_scene(test_peer_partial_metadata_of_a_stranger_is_refused),
        with_scene(test_peer_damaged_metadata_is_refused_safely),
        with_scene(test_peer_is_loaded_by_many_threads),
        with_scene(test_peer_removed_is_unknown_until_loaded_again),
        with_scene(test_peer_closed_is_a_disconnect),
        with_scene(test_peer_is_described),
        with_scene(test_peer_may_be_connected_early),
        with_scene(
            test_peer_receives_notifications_in_order_from_many_threads),
        with_scene(test_peer_receives_notifications_from_an_unknown_agent),
        with_scene(test_peer_after_peer),
        with_scene(test_peer_metadata_is_checked_by_agents_with_a_secret),
        cmocka_unit_test(test_peer_agents_refuse_bad_secrets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
