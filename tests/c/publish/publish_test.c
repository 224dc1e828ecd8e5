/* Publishing and attaching, between two agents of this process. */
#include "agent_fixture.h"
#include "publication_scene.h"
#include "side_channel_peer.h"

#include <sys/wait.h>

#include "publish/publish.h"

#define ROW 512
#define ROWS 64
#define HERE "127.0.0.1"

typedef struct scene {
    vnx_agent_t *prefill, *decode;
    vnx_side_channel_t *serving, *asking;
    unsigned char there[ROW * ROWS], here[ROW * ROWS];
    vnx_desc_t rows[ROWS];
    vnx_strided_desc_t strided;
    vnx_named_rows_t lists[2]; /* "rows" and "strided": the same rows */
    int port;
} scene_t;

static int
scene_setup(void **state)
{
    scene_t *scene = calloc(1, sizeof *scene);

    scene->prefill = make_agent("prefill");
    scene->decode = make_agent("decode");
    scene->serving = channel_new(NULL);
    scene->asking = channel_new(NULL);
    fill(scene->there, sizeof scene->there, 7);
    register_at(scene->prefill, scene->there, sizeof scene->there);
    register_at(scene->decode, scene->here, sizeof scene->here);
    for (size_t i = 0; i < ROWS; i++) {
        scene->rows[i] = desc_at(scene->there + i * ROW, ROW);
    }
    scene->strided =
        (vnx_strided_desc_t){scene->rows[0].addr, ROW, 0, ROW, ROWS};
    scene->lists[0] =
        (vnx_named_rows_t){.name = "rows", .rows = scene->rows, .count = ROWS};
    scene->lists[1] = (vnx_named_rows_t){
        .name = "strided", .strided = &scene->strided, .count = 1};
    *state = scene;
    return 0;
}

static int
scene_teardown(void **state)
{
    scene_t *scene = *state;

    vnx_side_channel_free(scene->asking);
    vnx_side_channel_free(scene->serving);
    vnx_agent_release(scene->decode);
    vnx_agent_release(scene->prefill);
    free(scene);
    return 0;
}

static vnx_status_t
publish_at(scene_t *scene, int port, const vnx_named_rows_t *lists,
           size_t count, vnx_error_t *error)
{
    vnx_publish_params_t params = {
        .size = sizeof params, .port = port, .lists = lists, .count = count};
    return vnx_publish(scene->prefill, scene->serving, &params, &scene->port,
                       error);
}

static void
publish(scene_t *scene, size_t count)
{
    assert_ok(publish_at(scene, 0, scene->lists, count, e));
}

static vnx_status_t
attach_at(scene_t *scene, int port, vnx_peer_t **peer, vnx_error_t *error)
{
    return vnx_attach(scene->decode, scene->asking, HERE, port, 10000, 0, peer,
                      error);
}

static vnx_peer_t *
attach(scene_t *scene)
{
    vnx_peer_t *peer = NULL;
    assert_ok(attach_at(scene, scene->port, &peer, e));
    return peer;
}

static void
expect_cause(const vnx_error_t *error, const char *operation,
             const char *cause)
{
    assert_string_equal(error->operation, operation);
    if (strstr(error->cause, cause) == NULL) {
        fail_msg("'%s' is not in '%s'", cause, error->cause);
    }
}

/* Attaching must fail; the record names the endpoint. */
static void
expect_refusal(scene_t *scene, int port, vnx_status_t expected,
               const char *cause, vnx_error_t *error)
{
    vnx_peer_t *peer = NULL;
    char endpoint[64];

    assert_int_equal(attach_at(scene, port, &peer, error), expected);
    assert_null(peer);
    expect_cause(error, "vnx_attach", cause);
    snprintf(endpoint, sizeof endpoint, HERE ":%d", port);
    assert_string_equal(error->peer, endpoint);
}

static void
read_all(scene_t *scene, vnx_dlist_t *remote)
{
    vnx_dlist_t *local =
        prepare_rows(scene->decode, "", scene->here, ROW, ROWS);
    vnx_xfer_t *xfer =
        make_xfer(scene->decode, VNX_OP_READ, local, remote, ROWS, NULL);

    memset(scene->here, 0, sizeof scene->here);
    run_xfer(scene->decode, xfer);
    assert_memory_equal(scene->here, scene->there, sizeof scene->here);
    assert_ok(vnx_xfer_release(xfer, e));
    vnx_dlist_release(local);
}

/* -- Lists ---------------------------------------------------------------- */

static void
test_attached_peer_has_the_lists(void **state)
{
    scene_t *scene = *state;
    vnx_dlist_t *remote = NULL;
    size_t len;

    publish(scene, 2);
    vnx_peer_t *peer = attach(scene);
    assert_string_equal(vnx_peer_name(peer, &len), "prefill");
    assert_int_equal(len, 7);
    assert_string_equal(vnx_peer_list(peer, 0)->name, "rows");
    assert_string_equal(vnx_peer_list(peer, 1)->name, "strided");
    assert_null(vnx_peer_list(peer, 2));
    assert_memory_equal(vnx_peer_list(peer, 0)->rows, scene->rows,
                        sizeof scene->rows);
    for (size_t i = 0; i < 2; i++) {
        assert_ok(
            vnx_peer_rows(peer, vnx_peer_list(peer, i)->name, &remote, e));
        assert_int_equal(vnx_dlist_count(remote), ROWS);
        read_all(scene, remote);
    }
    vnx_peer_free(peer);
}

static void
test_retained_list_outlives_the_peer(void **state)
{
    scene_t *scene = *state;
    vnx_dlist_t *remote = NULL;

    publish(scene, 1);
    vnx_peer_t *peer = attach(scene);
    assert_ok(vnx_peer_rows(peer, "rows", &remote, e));
    vnx_dlist_retain(remote);
    vnx_peer_free(peer);
    read_all(scene, remote);
    vnx_dlist_release(remote);
    vnx_peer_free(NULL);
}

static void
test_unknown_list_names_the_lists_that_exist(void **state)
{
    scene_t *scene = *state;
    vnx_dlist_t *remote = NULL;
    vnx_error_t error;

    publish(scene, 2);
    vnx_peer_t *peer = attach(scene);
    assert_int_equal(vnx_peer_rows(peer, "vk", &remote, &error),
                     VNX_ERR_NOT_FOUND);
    expect_cause(&error, "vnx_peer_rows",
                 "no list 'vk', but 'rows', 'strided'");
    assert_string_equal(error.peer, "prefill");
    assert_null(remote);
    vnx_peer_free(peer);
}

static void
test_publication_may_have_no_lists(void **state)
{
    scene_t *scene = *state;

    publish(scene, 0);
    vnx_peer_t *peer = attach(scene);
    assert_null(vnx_peer_list(peer, 0));
    vnx_peer_free(peer);
}

/* -- Publishing again ----------------------------------------------------- */

static void
test_publishing_again_replaces_lists_and_metadata(void **state)
{
    scene_t *scene = *state;
    static unsigned char more[ROW];
    vnx_desc_t row = desc_at(more, ROW);
    vnx_named_rows_t list = {.name = "more", .rows = &row, .count = 1};

    publish(scene, 2);
    int port = scene->port;
    register_at(scene->prefill, more, sizeof more);
    assert_ok(publish_at(scene, port, &list, 1, e));
    assert_int_equal(scene->port, port);
    vnx_peer_t *peer = attach(scene);
    assert_string_equal(vnx_peer_list(peer, 0)->name, "more");
    assert_null(vnx_peer_list(peer, 1));
    vnx_peer_free(peer);
}

static void
test_running_listener_keeps_its_place_and_its_other_keys(void **state)
{
    scene_t *scene = *state;
    vnx_side_channel_blob_t blobs[] = {
        {.key = "mine", .key_length = 4, .data = "yours", .length = 5},
        {.data = "old", .length = 3},
    };
    vnx_side_channel_start_params_t start = {
        .size = sizeof start, .host = HERE, .blobs = blobs, .count = 2};
    vnx_publish_params_t params = {.size = sizeof params, .host = "::1"};
    vnx_error_t error;
    char text[64];
    int port;

    assert_ok(vnx_side_channel_start_with(scene->serving, &start, &port, e));
    publish(scene, 1);
    assert_int_equal(scene->port, port);
    assert_int_equal(
        channel_ask(scene->asking, HERE, port, "mine", text, &error), VNX_OK);
    assert_string_equal(text, "yours");
    assert_int_equal(
        publish_at(scene, port == 1 ? 2 : 1, scene->lists, 1, &error),
        VNX_ERR_NOT_ALLOWED);
    expect_cause(&error, "vnx_publish", "already running on port");
    assert_int_equal(
        vnx_publish(scene->prefill, scene->serving, &params, NULL, &error),
        VNX_ERR_NOT_ALLOWED);
    expect_cause(&error, "vnx_publish", "already running on host '" HERE "'");
}

static void
test_default_key_has_the_metadata_alone(void **state)
{
    scene_t *scene = *state;
    vnx_bytes_t name;
    void *metadata;
    size_t len;

    publish(scene, 1);
    assert_ok(vnx_side_channel_request(scene->asking, HERE, scene->port, 10000,
                                       &metadata, &len, e));
    assert_ok(vnx_agent_load_metadata(scene->decode, metadata, len, &name, e));
    assert_string_equal(name.data, "prefill");
    free(name.data);
    free(metadata);
}

static void
test_restarted_peer_is_attached_again(void **state)
{
    scene_t *scene = *state;
    vnx_dlist_t *old = NULL, *new = NULL, *local;
    vnx_xfer_t *xfer = NULL;
    vnx_error_t error;

    publish(scene, 1);
    vnx_peer_t *before = attach(scene);
    vnx_side_channel_shutdown(scene->serving);
    vnx_agent_release(scene->prefill);
    scene->prefill = make_agent("prefill");
    register_at(scene->prefill, scene->there, sizeof scene->there);
    assert_ok(publish_at(scene, scene->port, scene->lists, 1, e));
    vnx_peer_t *after = attach(scene);
    assert_ok(vnx_peer_rows(before, "rows", &old, e));
    assert_ok(vnx_peer_rows(after, "rows", &new, e));
    local = prepare_rows(scene->decode, "", scene->here, ROW, ROWS);
    vnx_status_t status = vnx_xfer_create_prepped(
        scene->decode, VNX_OP_READ, local, all_rows(ROWS), old, all_rows(ROWS),
        NULL, 0, false, &xfer, &error);
    if (status == VNX_OK) {
        status = vnx_xfer_post(xfer, NULL, 0, &error);
        assert_ok(vnx_xfer_release(xfer, e));
    }
    assert_int_equal(status, VNX_ERR_REMOTE_DISCONNECT);
    read_all(scene, new);
    vnx_dlist_release(local);
    vnx_peer_free(before);
    vnx_peer_free(after);
}

/* -- Transports ----------------------------------------------------------- */

static void
exchange_over(scene_t *scene, vnx_side_channel_kind_t kind)
{
    vnx_dlist_t *remote = NULL;
    vnx_error_t error;

    vnx_side_channel_free(scene->serving);
    vnx_side_channel_free(scene->asking);
    scene->serving = channel_of(kind, NULL);
    scene->asking = channel_of(kind, NULL);
    int port = channel_start(scene->serving, "metadata", 8);
    expect_refusal(scene, port, VNX_ERR_NOT_FOUND,
                   "the listener serves no publication", &error);
    publish(scene, 2);
    assert_int_equal(scene->port, port);
    vnx_peer_t *peer = attach(scene);
    assert_ok(vnx_peer_rows(peer, "strided", &remote, e));
    read_all(scene, remote);
    vnx_peer_free(peer);
}

static void
test_every_transport_carries_publications(void **state)
{
    scene_t *scene = *state;
    static const vnx_side_channel_kind_t kinds[] = {
        VNX_SIDE_CHANNEL_TCP, VNX_SIDE_CHANNEL_ZMQ, VNX_SIDE_CHANNEL_HTTP};
    static const char *const features[] = {NULL, "zmq", "http"};

    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        if (features[i] == NULL || vnx_has_feature(features[i])) {
            exchange_over(scene, kinds[i]);
        } else {
            print_message("SKIP: this build lacks %s\n", features[i]);
        }
    }
}

/* -- Rows that are refused ------------------------------------------------ */

static void
test_own_rows_are_checked_before_they_are_published(void **state)
{
    scene_t *scene = *state;
    vnx_error_t error;

    publish(scene, 1);
    scene->rows[3].len = ROW * ROWS;
    assert_int_equal(publish_at(scene, 0, scene->lists, 2, &error),
                     VNX_ERR_NOT_FOUND);
    expect_cause(&error, "vnx_publish", "list 'rows': ");
    assert_int_equal(error.row, 3);
    assert_int_equal(error.addr, scene->rows[3].addr);
    scene->lists[0].count = 3;
    scene->strided.count = ROWS + 1;
    assert_int_equal(publish_at(scene, 0, scene->lists, 2, &error),
                     VNX_ERR_NOT_FOUND);
    expect_cause(&error, "vnx_publish", "list 'strided': ");
    assert_int_equal(error.row, ROWS);
    vnx_peer_t *peer = attach(scene); /* the first publication is served */
    assert_null(vnx_peer_list(peer, 1));
    vnx_peer_free(peer);
}

static void
test_wrong_lists_are_refused(void **state)
{
    scene_t *scene = *state;
    static char long_name[VNX_LIST_NAME_MAX + 2];
    static vnx_named_rows_t many[VNX_PUBLISH_LISTS_MAX + 1];
    vnx_named_rows_t *list = &scene->lists[1];
    vnx_error_t error;

    memset(long_name, 'x', sizeof long_name - 1);
#define EXPECT(cause)                                               \
    assert_int_equal(publish_at(scene, 0, scene->lists, 2, &error), \
                     VNX_ERR_INVALID_PARAM);                        \
    expect_cause(&error, "vnx_publish", cause)
    list->name = "";
    EXPECT("its name is empty");
    list->name = NULL;
    EXPECT("its name is empty");
    list->name = long_name;
    EXPECT("more than 255 bytes");
    list->name = "rows";
    EXPECT("the same name");
    list->name = "other";
    list->mem = (vnx_mem_t)VNX_MEM_COUNT;
    EXPECT("memory type");
    list->mem = VNX_MEM_DRAM;
    list->count = 0;
    EXPECT("no rows");
#undef EXPECT
    assert_int_equal(
        publish_at(scene, 0, many, VNX_PUBLISH_LISTS_MAX + 1, &error),
        VNX_ERR_INVALID_PARAM);
    assert_false(vnx_side_channel_is_running(scene->serving));
}

/* Serve a publication of the prefill agent that vnx_publish() would refuse. */
static void
serve_forged(scene_t *scene, const vnx_named_rows_t *lists, size_t count)
{
    static const vnxi_signature_key_t no_key;
    vnx_bytes_t metadata, bytes;
    vnx_side_channel_blob_t blob = {.key = VNX_PUBLICATION_KEY,
                                    .key_length = strlen(VNX_PUBLICATION_KEY)};

    assert_ok(vnx_agent_metadata(scene->prefill, &metadata, e));
    vnxi_publication_t forged = {.metadata = metadata.data,
                                 .metadata_len = metadata.len,
                                 .lists = (vnx_named_rows_t *)(uintptr_t)lists,
                                 .count = count};
    assert_ok(
        vnxi_publication_write(&forged, &no_key, "vnx_publish", &bytes, e));
    blob.data = bytes.data;
    blob.length = bytes.len;
    assert_ok(vnx_side_channel_set(scene->serving, &blob, e));
    free(bytes.data);
    free(metadata.data);
}

static void
test_rows_outside_the_regions_are_refused(void **state)
{
    scene_t *scene = *state;
    vnx_strided_desc_t two[2];
    vnx_error_t error;

    publish(scene, 1);
    scene->rows[5].addr += sizeof scene->there;
    serve_forged(scene, scene->lists, 2);
    expect_refusal(scene, scene->port, VNX_ERR_NOT_FOUND,
                   "agent 'prefill': list 'rows': ", &error);
    assert_int_equal(error.row, 5);
    assert_int_equal(error.addr, scene->rows[5].addr);

    two[0] = two[1] = scene->strided;
    two[1].count = ROWS + 10;
    scene->lists[1].strided = two;
    scene->lists[1].count = 2;
    serve_forged(scene, &scene->lists[1], 1);
    expect_refusal(scene, scene->port, VNX_ERR_NOT_FOUND,
                   "list 'strided': ", &error);
    assert_int_equal(error.row, 2 * ROWS);

    two[1].stride = UINT64_MAX;
    serve_forged(scene, &scene->lists[1], 1);
    expect_refusal(scene, scene->port, VNX_ERR_INVALID_PARAM,
                   "list 'strided': ", &error);
}

/* -- Listeners that serve something else ---------------------------------- */

static void
test_listener_of_plain_metadata_is_recognised(void **state)
{
    scene_t *scene = *state;
    vnx_error_t error;

    int port = channel_start(scene->serving, "metadata", 8);
    expect_refusal(scene, port, VNX_ERR_NOT_FOUND,
                   "the listener serves no publication", &error);
}

static void
test_other_bytes_are_refused(void **state)
{
    scene_t *scene = *state;
    vnx_side_channel_blob_t blob = {.key = VNX_PUBLICATION_KEY,
                                    .key_length = strlen(VNX_PUBLICATION_KEY),
                                    .data = "nixlSerDes|",
                                    .length = 11};
    vnx_error_t error;

    publish(scene, 1);
    assert_ok(vnx_side_channel_set(scene->serving, &blob, e));
    expect_refusal(scene, scene->port, VNX_ERR_MISMATCH, "not a publication",
                   &error);
    vnx_bytes_t bytes = publication_of(scene->lists, 1, NULL);
    blob.data = bytes.data; /* a publication whose metadata is none */
    blob.length = bytes.len;
    assert_ok(vnx_side_channel_set(scene->serving, &blob, e));
    expect_refusal(scene, scene->port, VNX_ERR_MISMATCH, "metadata", &error);
    free(bytes.data);
}

static void
test_nobody_listens(void **state)
{
    scene_t *scene = *state;
    vnx_error_t error;

    publish(scene, 1);
    vnx_side_channel_shutdown(scene->serving);
    expect_refusal(scene, scene->port, VNX_ERR_BACKEND, "refused", &error);
}

static void
test_wrong_arguments_are_refused(void **state)
{
    scene_t *scene = *state;
    vnx_peer_t *peer = NULL;
    vnx_error_t error;
    vnx_publish_params_t params = {.size = sizeof params + 1};

    assert_int_equal(
        vnx_attach(scene->decode, scene->asking, "", 1, 1, 0, &peer, &error),
        VNX_ERR_INVALID_PARAM);
    assert_int_equal(
        vnx_attach(scene->decode, scene->asking, HERE, 0, 1, 0, &peer, &error),
        VNX_ERR_INVALID_PARAM);
    assert_string_equal(error.operation, "vnx_attach");
    assert_int_equal(
        vnx_publish(scene->prefill, scene->serving, &params, NULL, &error),
        VNX_ERR_INVALID_PARAM);
    publish(scene, 1);
    vnx_agent_close(scene->decode);
    assert_int_equal(attach_at(scene, scene->port, &peer, &error),
                     VNX_ERR_CLOSED);
    vnx_agent_close(scene->prefill);
    assert_int_equal(publish_at(scene, 0, scene->lists, 1, &error),
                     VNX_ERR_CLOSED);
}

/* -- Threads -------------------------------------------------------------- */

#define ROUNDS 25

static void *
publish_rounds(void *arg)
{
    scene_t *scene = arg;

    for (size_t i = 0; i < ROUNDS; i++) {
        vnx_publish_params_t params = {
            .size = sizeof params, .lists = &scene->lists[i % 2], .count = 1};
        assert_ok(
            vnx_publish(scene->prefill, scene->serving, &params, NULL, e));
    }
    return NULL;
}

static void *
attach_rounds(void *arg)
{
    scene_t *scene = arg;

    for (size_t i = 0; i < ROUNDS; i++) {
        vnx_peer_t *peer = attach(scene);
        vnx_dlist_t *remote = NULL;
        assert_ok(
            vnx_peer_rows(peer, vnx_peer_list(peer, 0)->name, &remote, e));
        assert_int_equal(vnx_dlist_count(remote), ROWS);
        vnx_peer_free(peer);
    }
    return NULL;
}

static void
test_threads_publish_and_attach_at_once(void **state)
{
    scene_t *scene = *state;
    pthread_t threads[4];

    publish(scene, 1);
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(
            pthread_create(&threads[i], NULL,
                           i % 2 == 0 ? publish_rounds : attach_rounds, scene),
            0);
    }
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    }
}

/* -- Forks ---------------------------------------------------------------- */

static void
test_forked_child_neither_publishes_nor_attaches(void **state)
{
    scene_t *scene = *state;
    vnx_peer_t *peer = NULL;
    int wait_status;

    publish(scene, 1);
    vnx_peer_t *attached = attach(scene);
    pid_t child = fork();
    if (child == 0) {
        bool good =
            publish_at(scene, 0, scene->lists, 1, NULL) ==
                VNX_ERR_NOT_ALLOWED &&
            attach_at(scene, scene->port, &peer, NULL) == VNX_ERR_NOT_ALLOWED;
        vnx_peer_free(attached); /* does not affect the parent's */
        _exit(good ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &wait_status, 0), child);
    assert_int_equal(wait_status, 0);
    vnx_dlist_t *remote = NULL;
    assert_ok(vnx_peer_rows(attached, "rows", &remote, e));
    read_all(scene, remote);
    vnx_peer_free(attached);
}

#define with_scene(test) \
    cmocka_unit_test_setup_teardown(test, scene_setup, scene_teardown)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        with_scene(test_attached_peer_has_the_lists),
        with_scene(test_retained_list_outlives_the_peer),
        with_scene(test_unknown_list_names_the_lists_that_exist),
        with_scene(test_publication_may_have_no_lists),
        with_scene(test_publishing_again_replaces_lists_and_metadata),
        with_scene(test_running_listener_keeps_its_place_and_its_other_keys),
        with_scene(test_default_key_has_the_metadata_alone),
        with_scene(test_restarted_peer_is_attached_again),
        with_scene(test_every_transport_carries_publications),
        with_scene(test_own_rows_are_checked_before_they_are_published),
        with_scene(test_wrong_lists_are_refused),
        with_scene(test_rows_outside_the_regions_are_refused),
        with_scene(test_listener_of_plain_metadata_is_recognised),
        with_scene(test_other_bytes_are_refused),
        with_scene(test_nobody_listens),
        with_scene(test_wrong_arguments_are_refused),
        with_scene(test_threads_publish_and_attach_at_once),
        with_scene(test_forked_child_neither_publishes_nor_attaches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
