/*
 * Handles of NIXL's C interface: bad ones, and many threads; memory over many
 * rounds.  With an argument, that many rounds.
 */
#include "vnx_test.h"

#include <malloc.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vnx/nixl_capi.h>

#include "capi/handles.h"

#define ROW 4096u
#define ROWS 16u
#define SIZE (ROW * ROWS)
#define THREADS 4

#define assert_done(call) assert_int_equal(call, NIXL_CAPI_SUCCESS)
#define assert_refused(call) \
    assert_int_equal(call, NIXL_CAPI_ERROR_INVALID_PARAM)

/* -- A scene ----------------------------------------------------------------
 */

/* Two agents; `a` has loaded the metadata of `b`. */
typedef struct scene {
    nixl_capi_agent_t a, b;
    nixl_capi_backend_t backend_a, backend_b;
    nixl_capi_reg_dlist_t memory_a, memory_b;
    nixl_capi_xfer_dlist_handle_t local, remote;
    unsigned char *at_a, *at_b;
} scene_t;

static nixl_capi_backend_t
create_backend(nixl_capi_agent_t agent)
{
    nixl_capi_params_t params = NULL;
    nixl_capi_backend_t backend = NULL;

    assert_done(nixl_capi_create_params(&params));
    assert_done(nixl_capi_create_backend(agent, "UCX", params, &backend));
    assert_done(nixl_capi_destroy_params(params));
    return backend;
}

static nixl_capi_reg_dlist_t
list_memory(const unsigned char *at)
{
    nixl_capi_reg_dlist_t list = NULL;

    assert_done(nixl_capi_create_reg_dlist(NIXL_CAPI_MEM_DRAM, &list));
    assert_done(
        nixl_capi_reg_dlist_add_desc(list, (uintptr_t)at, SIZE, 0, "meta", 4));
    return list;
}

static nixl_capi_xfer_dlist_t
list_rows(const unsigned char *at)
{
    nixl_capi_xfer_dlist_t list = NULL;

    assert_done(nixl_capi_create_xfer_dlist(NIXL_CAPI_MEM_DRAM, &list));
    for (size_t i = 0; i < ROWS; i++) {
        assert_done(nixl_capi_xfer_dlist_add_desc(
            list, (uintptr_t)at + i * ROW, ROW, 0));
    }
    return list;
}

static nixl_capi_xfer_dlist_handle_t
prepare(nixl_capi_agent_t agent, const char *name, const unsigned char *at)
{
    nixl_capi_xfer_dlist_t rows = list_rows(at);
    nixl_capi_xfer_dlist_handle_t handle = NULL;

    assert_done(nixl_capi_prep_xfer_dlist(agent, name, rows, &handle, NULL));
    assert_done(nixl_capi_destroy_xfer_dlist(rows));
    return handle;
}

static void
load(nixl_capi_agent_t by, nixl_capi_agent_t of)
{
    void *data = NULL;
    char *name = NULL;
    size_t len = 0;

    assert_done(nixl_capi_get_local_md(of, &data, &len));
    assert_done(nixl_capi_load_remote_md(by, data, len, &name));
    free(name);
    free(data);
}

static void
open_scene(scene_t *scene)
{
    scene->at_a = aligned_alloc(ROW, SIZE);
    scene->at_b = aligned_alloc(ROW, SIZE);
    assert_non_null(scene->at_a);
    assert_non_null(scene->at_b);
    memset(scene->at_a, 1, SIZE);
    memset(scene->at_b, 2, SIZE);
    assert_done(nixl_capi_create_agent("a", &scene->a));
    assert_done(nixl_capi_create_agent("b", &scene->b));
    scene->backend_a = create_backend(scene->a);
    scene->backend_b = create_backend(scene->b);
    scene->memory_a = list_memory(scene->at_a);
    scene->memory_b = list_memory(scene->at_b);
    assert_done(nixl_capi_register_mem(scene->a, scene->memory_a, NULL));
    assert_done(nixl_capi_register_mem(scene->b, scene->memory_b, NULL));
    load(scene->a, scene->b);
    scene->local = prepare(scene->a, "", scene->at_a);
    scene->remote = prepare(scene->a, "b", scene->at_b);
}

static void
close_scene(scene_t *scene)
{
    assert_done(nixl_capi_release_xfer_dlist_handle(scene->a, scene->local));
    assert_done(nixl_capi_release_xfer_dlist_handle(scene->a, scene->remote));
    assert_done(nixl_capi_destroy_reg_dlist(scene->memory_a));
    assert_done(nixl_capi_destroy_reg_dlist(scene->memory_b));
    assert_done(nixl_capi_destroy_backend(scene->backend_a));
    assert_done(nixl_capi_destroy_backend(scene->backend_b));
    assert_done(nixl_capi_destroy_agent(scene->a));
    assert_done(nixl_capi_destroy_agent(scene->b));
    free(scene->at_a);
    free(scene->at_b);
}

static nixl_capi_xfer_req_t
make_request(const scene_t *scene, int row, nixl_capi_opt_args_t options)
{
    nixl_capi_xfer_req_t request = NULL;

    assert_done(nixl_capi_make_xfer_req(scene->a, NIXL_CAPI_XFER_OP_READ,
                                        scene->local, &row, 1, scene->remote,
                                        &row, 1, &request, options));
    return request;
}

static void
post_and_finish(const scene_t *scene, nixl_capi_xfer_req_t request)
{
    int status = nixl_capi_post_xfer_req(scene->a, request, NULL);

    while (status == NIXL_CAPI_IN_PROG) {
        status = nixl_capi_get_xfer_status(scene->a, request);
    }
    assert_done(status);
}

static void
drop_request(const scene_t *scene, nixl_capi_xfer_req_t request)
{
    assert_done(nixl_capi_release_xfer_req(scene->a, request));
    assert_done(nixl_capi_destroy_xfer_req(request));
}

/* -- Bad handles ------------------------------------------------------------
 */

/* Every call with this handle in the place of each of its own. */
static void
refuse_for_agents(const scene_t *scene, void *bad)
{
    const int row = 0;
    void *data = NULL;
    char *name = NULL;
    size_t len = 0;
    nixl_capi_string_list_t strings = NULL;
    nixl_capi_mem_list_t mems = NULL;
    nixl_capi_params_t params = NULL;
    nixl_capi_backend_t backend = NULL;
    nixl_capi_opt_args_t options = NULL;
    nixl_capi_xfer_dlist_t rows = list_rows(scene->at_a);
    nixl_capi_xfer_dlist_handle_t list = NULL;
    nixl_capi_xfer_req_t request = make_request(scene, 0, NULL), made = NULL;
    nixl_capi_notif_map_t map = NULL;
    nixl_capi_query_resp_list_t answers = NULL;
    nixl_capi_mem_view_t view = NULL;
    nixl_capi_cost_t method;
    struct nixl_capi_xfer_telemetry_s figures;
    int64_t number;

    assert_done(nixl_capi_create_params(&params));
    assert_done(nixl_capi_create_opt_args(&options));
    assert_done(nixl_capi_create_notif_map(&map));
    assert_done(nixl_capi_create_query_resp_list(&answers));
    assert_refused(nixl_capi_destroy_agent(bad));
    assert_refused(nixl_capi_get_local_md(bad, &data, &len));
    assert_refused(nixl_capi_get_local_partial_md(bad, scene->memory_a, &data,
                                                  &len, NULL));
    assert_refused(nixl_capi_load_remote_md(bad, "x", 1, &name));
    assert_refused(nixl_capi_invalidate_remote_md(bad, "b"));
    assert_refused(nixl_capi_check_remote_md(bad, "b", NULL));
    assert_refused(nixl_capi_send_local_md(bad, NULL));
    assert_refused(
        nixl_capi_send_local_partial_md(bad, scene->memory_a, NULL));
    assert_refused(nixl_capi_fetch_remote_md(bad, "b", NULL));
    assert_refused(nixl_capi_invalidate_local_md(bad, NULL));
    assert_refused(nixl_capi_agent_make_connection(bad, "b", NULL));
    assert_refused(nixl_capi_get_available_plugins(bad, &strings));
    assert_refused(nixl_capi_get_plugin_params(bad, "UCX", &mems, &params));
    assert_refused(
        nixl_capi_get_backend_params(bad, scene->backend_a, &mems, &params));
    assert_refused(nixl_capi_create_backend(bad, "UCX", params, &backend));
    assert_refused(nixl_capi_register_mem(bad, scene->memory_a, NULL));
    assert_refused(nixl_capi_deregister_mem(bad, scene->memory_a, NULL));
    assert_refused(
        nixl_capi_query_mem(bad, scene->memory_a, answers, options));
    assert_refused(nixl_capi_prep_xfer_dlist(bad, "", rows, &list, NULL));
    assert_refused(
        nixl_capi_make_xfer_req(bad, NIXL_CAPI_XFER_OP_READ, scene->local,
                                &row, 1, scene->remote, &row, 1, &made, NULL));
    assert_refused(nixl_capi_create_xfer_req(bad, NIXL_CAPI_XFER_OP_READ, rows,
                                             rows, "b", &made, NULL));
    assert_refused(nixl_capi_post_xfer_req(bad, request, NULL));
    assert_refused(nixl_capi_get_xfer_status(bad, request));
    assert_refused(nixl_capi_query_xfer_backend(bad, request, &backend));
    assert_refused(nixl_capi_estimate_xfer_cost(bad, request, NULL, &number,
                                                &number, &method));
    assert_refused(nixl_capi_get_xfer_telemetry(bad, request, &figures));
    assert_refused(nixl_capi_release_xfer_req(bad, request));
    assert_refused(nixl_capi_get_notifs(bad, map, NULL));
    assert_refused(nixl_capi_gen_notif(bad, "b", "x", 1, NULL));
    assert_refused(nixl_capi_prep_mem_view_local(bad, rows, &view, NULL));
    assert_null(data);
    assert_null(list);
    assert_null(made);
    drop_request(scene, request);
    assert_done(nixl_capi_destroy_xfer_dlist(rows));
    assert_done(nixl_capi_destroy_params(params));
    assert_done(nixl_capi_destroy_opt_args(options));
    assert_done(nixl_capi_destroy_notif_map(map));
    assert_done(nixl_capi_destroy_query_resp_list(answers));
}

static void
refuse_for_values(void *bad)
{
    const char *text = NULL;
    const void *bytes = NULL;
    void *data = NULL;
    nixl_capi_param_iter_t walk = NULL;
    nixl_capi_params_t params = NULL;
    nixl_capi_mem_type_t mem;
    size_t size = 7;
    bool flag;

    assert_refused(nixl_capi_destroy_string_list(bad));
    assert_refused(nixl_capi_string_list_size(bad, &size));
    assert_refused(nixl_capi_string_list_get(bad, 0, &text));
    assert_refused(nixl_capi_destroy_mem_list(bad));
    assert_refused(nixl_capi_mem_list_is_empty(bad, &flag));
    assert_refused(nixl_capi_mem_list_size(bad, &size));
    assert_refused(nixl_capi_mem_list_get(bad, 0, &mem));
    assert_refused(nixl_capi_destroy_params(bad));
    assert_refused(nixl_capi_params_add(bad, "k", "v"));
    assert_refused(nixl_capi_params_is_empty(bad, &flag));
    assert_refused(nixl_capi_params_create_iterator(bad, &walk));
    assert_refused(nixl_capi_params_iterator_next(bad, &text, &text, &flag));
    assert_refused(nixl_capi_params_destroy_iterator(bad));
    assert_refused(nixl_capi_destroy_backend(bad));
    assert_refused(nixl_capi_destroy_opt_args(bad));
    assert_refused(nixl_capi_opt_args_add_backend(bad, bad));
    assert_refused(nixl_capi_opt_args_set_notif_msg(bad, "x", 1));
    assert_refused(nixl_capi_opt_args_get_notif_msg(bad, &data, &size));
    assert_refused(nixl_capi_opt_args_set_has_notif(bad, true));
    assert_refused(nixl_capi_opt_args_get_has_notif(bad, &flag));
    assert_refused(nixl_capi_opt_args_set_custom_param(bad, "x", 1));
    assert_refused(nixl_capi_opt_args_get_custom_param(bad, &data, &size));
    assert_refused(nixl_capi_opt_args_set_skip_desc_merge(bad, true));
    assert_refused(nixl_capi_opt_args_get_skip_desc_merge(bad, &flag));
    assert_refused(nixl_capi_opt_args_set_ip_addr(bad, "::1"));
    assert_refused(nixl_capi_opt_args_set_port(bad, 1));
    assert_refused(nixl_capi_destroy_notif_map(bad));
    assert_refused(nixl_capi_notif_map_size(bad, &size));
    assert_refused(nixl_capi_notif_map_get_agent_at(bad, 0, &text));
    assert_refused(nixl_capi_notif_map_get_notifs_size(bad, "b", &size));
    assert_refused(nixl_capi_notif_map_get_notif(bad, "b", 0, &bytes, &size));
    assert_refused(nixl_capi_notif_map_clear(bad));
    assert_refused(nixl_capi_destroy_query_resp_list(bad));
    assert_refused(nixl_capi_query_resp_list_size(bad, &size));
    assert_refused(nixl_capi_query_resp_list_has_value(bad, 0, &flag));
    assert_refused(nixl_capi_query_resp_list_get_params(bad, 0, &params));
    assert_int_equal(size, 7);
    assert_null(text);
}

static void
refuse_for_lists(void *bad)
{
    nixl_capi_mem_type_t mem;
    size_t size = 7;
    bool flag;

    assert_refused(nixl_capi_destroy_xfer_dlist(bad));
    assert_refused(nixl_capi_xfer_dlist_get_type(bad, &mem));
    assert_refused(nixl_capi_xfer_dlist_add_desc(bad, 1, 1, 0));
    assert_refused(nixl_capi_xfer_dlist_desc_count(bad, &size));
    assert_refused(nixl_capi_xfer_dlist_len(bad, &size));
    assert_refused(nixl_capi_xfer_dlist_is_empty(bad, &flag));
    assert_refused(nixl_capi_xfer_dlist_trim(bad));
    assert_refused(nixl_capi_xfer_dlist_rem_desc(bad, 0));
    assert_refused(nixl_capi_xfer_dlist_clear(bad));
    assert_refused(nixl_capi_xfer_dlist_resize(bad, 1));
    assert_refused(nixl_capi_xfer_dlist_print(bad));
    assert_refused(nixl_capi_destroy_reg_dlist(bad));
    assert_refused(nixl_capi_reg_dlist_get_type(bad, &mem));
    assert_refused(nixl_capi_reg_dlist_add_desc(bad, 1, 1, 0, NULL, 0));
    assert_refused(nixl_capi_reg_dlist_desc_count(bad, &size));
    assert_refused(nixl_capi_reg_dlist_is_empty(bad, &flag));
    assert_refused(nixl_capi_reg_dlist_trim(bad));
    assert_refused(nixl_capi_reg_dlist_rem_desc(bad, 0));
    assert_refused(nixl_capi_reg_dlist_clear(bad));
    assert_refused(nixl_capi_reg_dlist_resize(bad, 1));
    assert_refused(nixl_capi_reg_dlist_print(bad));
    assert_refused(nixl_capi_destroy_remote_dlist(bad));
    assert_refused(nixl_capi_remote_dlist_add_desc(bad, 1, 1, 0, "b"));
    assert_int_equal(size, 7);
}

/* Calls that take a good agent and a bad handle of something else. */
static void
refuse_for_parts(const scene_t *scene, void *bad)
{
    const int row = 0;
    void *data = NULL;
    size_t len = 0;
    nixl_capi_mem_list_t mems = NULL;
    nixl_capi_params_t params = NULL;
    nixl_capi_backend_t backend = NULL;
    nixl_capi_opt_args_t options = NULL;
    nixl_capi_xfer_dlist_t rows = list_rows(scene->at_a);
    nixl_capi_xfer_dlist_t there = list_rows(scene->at_b);
    nixl_capi_xfer_dlist_handle_t list = NULL;
    nixl_capi_xfer_req_t made = NULL;
    nixl_capi_query_resp_list_t answers = NULL;
    nixl_capi_mem_view_t view = NULL;
    nixl_capi_cost_t method;
    struct nixl_capi_xfer_telemetry_s figures;
    int64_t number;
    nixl_capi_agent_t a = scene->a;

    assert_done(nixl_capi_create_opt_args(&options));
    assert_done(nixl_capi_opt_args_add_backend(options, scene->backend_a));
    assert_done(nixl_capi_create_query_resp_list(&answers));
    assert_refused(nixl_capi_get_local_partial_md(a, bad, &data, &len, NULL));
    assert_refused(nixl_capi_send_local_partial_md(a, bad, NULL));
    assert_refused(nixl_capi_get_backend_params(a, bad, &mems, &params));
    assert_refused(nixl_capi_create_backend(a, "SHM", bad, &backend));
    assert_refused(nixl_capi_opt_args_add_backend(options, bad));
    assert_refused(nixl_capi_register_mem(a, bad, NULL));
    assert_refused(nixl_capi_deregister_mem(a, bad, NULL));
    assert_refused(nixl_capi_query_mem(a, bad, answers, options));
    assert_refused(nixl_capi_query_mem(a, scene->memory_a, bad, options));
    assert_refused(nixl_capi_query_mem(a, scene->memory_a, answers, bad));
    assert_refused(nixl_capi_prep_xfer_dlist(a, "", bad, &list, NULL));
    assert_refused(nixl_capi_release_xfer_dlist_handle(a, bad));
    assert_refused(nixl_capi_make_xfer_req(a, NIXL_CAPI_XFER_OP_READ, bad,
                                           &row, 1, scene->remote, &row, 1,
                                           &made, NULL));
    assert_refused(nixl_capi_make_xfer_req(a, NIXL_CAPI_XFER_OP_READ,
                                           scene->local, &row, 1, bad, &row, 1,
                                           &made, NULL));
    assert_refused(nixl_capi_create_xfer_req(a, NIXL_CAPI_XFER_OP_READ, bad,
                                             there, "b", &made, NULL));
    assert_refused(nixl_capi_create_xfer_req(a, NIXL_CAPI_XFER_OP_READ, rows,
                                             bad, "b", &made, NULL));
    assert_refused(nixl_capi_post_xfer_req(a, bad, NULL));
    assert_refused(nixl_capi_get_xfer_status(a, bad));
    assert_refused(nixl_capi_query_xfer_backend(a, bad, &backend));
    assert_refused(
        nixl_capi_estimate_xfer_cost(a, bad, NULL, &number, &number, &method));
    assert_refused(nixl_capi_get_xfer_telemetry(a, bad, &figures));
    assert_refused(nixl_capi_release_xfer_req(a, bad));
    assert_refused(nixl_capi_destroy_xfer_req(bad));
    assert_refused(nixl_capi_get_notifs(a, bad, NULL));
    assert_refused(nixl_capi_prep_mem_view_local(a, bad, &view, NULL));
    assert_refused(nixl_capi_prep_mem_view_remote(a, bad, &view, NULL));
    assert_refused(nixl_capi_release_mem_view(a, bad));
    assert_null(made);
    assert_null(backend);
    assert_done(nixl_capi_destroy_query_resp_list(answers));
    assert_done(nixl_capi_destroy_opt_args(options));
    assert_done(nixl_capi_destroy_xfer_dlist(rows));
    assert_done(nixl_capi_destroy_xfer_dlist(there));
}

/* Optional arguments that are neither NULL nor good. */
static void
refuse_for_options(const scene_t *scene, void *bad)
{
    const int row = 0;
    void *data = NULL;
    size_t len = 0;
    nixl_capi_xfer_dlist_t rows = list_rows(scene->at_a);
    nixl_capi_xfer_dlist_t there = list_rows(scene->at_b);
    nixl_capi_xfer_dlist_handle_t list = NULL;
    nixl_capi_xfer_req_t request = make_request(scene, 0, NULL), made = NULL;
    nixl_capi_notif_map_t map = NULL;
    nixl_capi_agent_t a = scene->a;

    assert_done(nixl_capi_create_notif_map(&map));
    assert_refused(
        nixl_capi_get_local_partial_md(a, scene->memory_a, &data, &len, bad));
    assert_refused(nixl_capi_send_local_md(a, bad));
    assert_refused(nixl_capi_send_local_partial_md(a, scene->memory_a, bad));
    assert_refused(nixl_capi_fetch_remote_md(a, "b", bad));
    assert_refused(nixl_capi_invalidate_local_md(a, bad));
    assert_refused(nixl_capi_agent_make_connection(a, "b", bad));
    assert_refused(nixl_capi_register_mem(a, scene->memory_a, bad));
    assert_refused(nixl_capi_deregister_mem(a, scene->memory_a, bad));
    assert_refused(nixl_capi_prep_xfer_dlist(a, "", rows, &list, bad));
    assert_refused(
        nixl_capi_make_xfer_req(a, NIXL_CAPI_XFER_OP_READ, scene->local, &row,
                                1, scene->remote, &row, 1, &made, bad));
    assert_refused(nixl_capi_create_xfer_req(a, NIXL_CAPI_XFER_OP_READ, rows,
                                             there, "b", &made, bad));
    assert_refused(nixl_capi_post_xfer_req(a, request, bad));
    assert_refused(nixl_capi_get_notifs(a, map, bad));
    assert_refused(nixl_capi_gen_notif(a, "b", "x", 1, bad));
    assert_null(made);
    assert_null(list);
    drop_request(scene, request);
    assert_done(nixl_capi_destroy_notif_map(map));
    assert_done(nixl_capi_destroy_xfer_dlist(rows));
    assert_done(nixl_capi_destroy_xfer_dlist(there));
}

static void
refuse_everywhere(const scene_t *scene, void *bad)
{
    refuse_for_agents(scene, bad);
    refuse_for_values(bad);
    refuse_for_lists(bad);
    refuse_for_parts(scene, bad);
    if (bad != NULL) {
        refuse_for_options(scene, bad);
    }
}

static void *
number(uintptr_t value)
{
    return (void *)value; /* NOLINT(performance-no-int-to-ptr) */
}

static void
test_capi_refuses_what_is_no_handle(void **state)
{
    static int anything;
    scene_t scene = {0};
    void *heap = malloc(64);
    (void)state;

    open_scene(&scene);
    refuse_everywhere(&scene, NULL);
    refuse_everywhere(&scene, &anything);
    refuse_everywhere(&scene, heap);
    refuse_everywhere(&scene, (char *)&scene);
    refuse_everywhere(&scene, number(1));
    refuse_everywhere(&scene, number(16));
    refuse_everywhere(&scene, number(UINTPTR_MAX));
    refuse_everywhere(&scene, number(UINTPTR_MAX & ~(uintptr_t)15));
    refuse_everywhere(&scene, (char *)scene.a + 1);
    /* Another use of the slot of a living handle. */
    refuse_everywhere(&scene,
                      number((uintptr_t)scene.a + (1ull << VNXI_USE_SHIFT)));
    free(heap);
    close_scene(&scene);
}

/* Make one object of each kind, and destroy it. */
static void
test_capi_refuses_destroyed_handles(void **state)
{
    scene_t scene = {0};
    nixl_capi_agent_t agent = NULL;
    nixl_capi_params_t params = NULL;
    nixl_capi_param_iter_t walk = NULL;
    nixl_capi_opt_args_t options = NULL;
    nixl_capi_xfer_dlist_t rows;
    nixl_capi_notif_map_t map = NULL;
    nixl_capi_query_resp_list_t answers = NULL;
    nixl_capi_remote_dlist_t remotes = NULL;
    nixl_capi_string_list_t strings = NULL;
    (void)state;

    open_scene(&scene);
    assert_done(nixl_capi_create_agent("short", &agent));
    nixl_capi_backend_t backend = create_backend(agent);
    assert_done(nixl_capi_destroy_backend(backend));
    assert_done(nixl_capi_destroy_agent(agent));
    assert_done(nixl_capi_create_params(&params));
    assert_done(nixl_capi_params_create_iterator(params, &walk));
    assert_done(nixl_capi_destroy_params(params));
    assert_done(nixl_capi_params_destroy_iterator(walk));
    assert_done(nixl_capi_create_opt_args(&options));
    assert_done(nixl_capi_destroy_opt_args(options));
    rows = list_rows(scene.at_a);
    assert_done(nixl_capi_destroy_xfer_dlist(rows));
    nixl_capi_reg_dlist_t memory = list_memory(scene.at_a);
    assert_done(nixl_capi_destroy_reg_dlist(memory));
    assert_done(nixl_capi_create_remote_dlist(NIXL_CAPI_MEM_DRAM, &remotes));
    assert_done(nixl_capi_destroy_remote_dlist(remotes));
    assert_done(nixl_capi_create_notif_map(&map));
    assert_done(nixl_capi_destroy_notif_map(map));
    assert_done(nixl_capi_create_query_resp_list(&answers));
    assert_done(nixl_capi_destroy_query_resp_list(answers));
    assert_done(nixl_capi_get_available_plugins(scene.a, &strings));
    assert_done(nixl_capi_destroy_string_list(strings));
    nixl_capi_xfer_dlist_handle_t list = prepare(scene.a, "", scene.at_a);
    assert_done(nixl_capi_release_xfer_dlist_handle(scene.a, list));
    nixl_capi_xfer_req_t request = make_request(&scene, 0, NULL);
    drop_request(&scene, request);
    void *gone[] = {agent,   backend, params,  walk, options, rows,   memory,
                    remotes, map,     answers, list, request, strings};
    for (size_t i = 0; i < sizeof gone / sizeof *gone; i++) {
        refuse_everywhere(&scene, gone[i]);
    }
    close_scene(&scene);
}

static void
test_capi_refuses_handles_of_other_kinds(void **state)
{
    scene_t scene = {0};
    nixl_capi_params_t params = NULL;
    (void)state;

    open_scene(&scene);
    assert_done(nixl_capi_create_params(&params));
    refuse_for_agents(&scene, params);
    refuse_for_lists(params);
    refuse_for_options(&scene, params);
    refuse_for_values(scene.a);
    refuse_for_lists(scene.a);
    refuse_for_parts(&scene, scene.a);
    refuse_for_options(&scene, scene.a);
    refuse_for_agents(&scene, scene.local);
    refuse_for_values(scene.local);
    refuse_for_lists(scene.local);
    assert_done(nixl_capi_destroy_params(params));
    close_scene(&scene);
}

/* A handle that is destroyed does not become that of the next object. */
static void
test_capi_never_uses_a_handle_again(void **state)
{
    nixl_capi_params_t first = NULL, next = NULL;
    (void)state;

    assert_done(nixl_capi_create_params(&first));
    assert_done(nixl_capi_destroy_params(first));
    for (int i = 0; i < 10000; i++) {
        assert_done(nixl_capi_create_params(&next));
        assert_ptr_not_equal(next, first);
        assert_refused(nixl_capi_params_add(first, "k", "v"));
        assert_done(nixl_capi_destroy_params(next));
    }
}

/* -- Order of release -------------------------------------------------------
 */

static void
test_capi_objects_outlive_their_agent(void **state)
{
    scene_t scene = {0};
    (void)state;

    open_scene(&scene);
    nixl_capi_xfer_req_t ready = make_request(&scene, 0, NULL);
    nixl_capi_xfer_req_t done = make_request(&scene, 1, NULL);
    nixl_capi_xfer_req_t released = make_request(&scene, 2, NULL);
    post_and_finish(&scene, done);
    assert_done(nixl_capi_release_xfer_req(scene.a, released));
    assert_int_equal(nixl_capi_destroy_xfer_req(ready),
                     NIXL_CAPI_ERROR_INVALID_STATE);

    assert_done(nixl_capi_destroy_agent(scene.a));
    assert_refused(nixl_capi_post_xfer_req(scene.a, ready, NULL));
    assert_refused(nixl_capi_release_xfer_req(scene.a, done));
    assert_done(nixl_capi_destroy_xfer_req(ready));
    assert_done(nixl_capi_destroy_xfer_req(done));
    assert_done(nixl_capi_destroy_xfer_req(released));
    assert_done(nixl_capi_release_xfer_dlist_handle(scene.a, scene.local));
    assert_done(nixl_capi_release_xfer_dlist_handle(scene.a, scene.remote));
    assert_done(nixl_capi_destroy_backend(scene.backend_a));
    assert_done(nixl_capi_destroy_backend(scene.backend_b));
    assert_done(nixl_capi_destroy_agent(scene.b));
    assert_done(nixl_capi_destroy_reg_dlist(scene.memory_a));
    assert_done(nixl_capi_destroy_reg_dlist(scene.memory_b));
    free(scene.at_a);
    free(scene.at_b);
}

static void
test_capi_options_of_another_agent_are_refused(void **state)
{
    const int row = 0;
    scene_t scene = {0};
    nixl_capi_opt_args_t options = NULL;
    nixl_capi_xfer_req_t request = NULL;
    (void)state;

    open_scene(&scene);
    assert_done(nixl_capi_create_opt_args(&options));
    assert_done(nixl_capi_opt_args_add_backend(options, scene.backend_b));
    assert_refused(nixl_capi_register_mem(scene.a, scene.memory_a, options));
    assert_refused(nixl_capi_make_xfer_req(scene.a, NIXL_CAPI_XFER_OP_READ,
                                           scene.local, &row, 1, scene.remote,
                                           &row, 1, &request, options));
    assert_done(nixl_capi_register_mem(scene.b, scene.memory_b, options));
    assert_done(nixl_capi_deregister_mem(scene.b, scene.memory_b, options));
    assert_done(nixl_capi_destroy_opt_args(options));
    close_scene(&scene);
}

/* A length that was computed wrongly; the bytes are not looked at. */
static void
test_capi_absurd_lengths_fail(void **state)
{
    scene_t scene = {0};
    char *name = NULL;
    (void)state;

    open_scene(&scene);
    assert_int_equal(nixl_capi_gen_notif(scene.a, "b", "x", SIZE_MAX, NULL),
                     NIXL_CAPI_ERROR_BACKEND);
    assert_int_equal(nixl_capi_load_remote_md(scene.a, "x", SIZE_MAX, &name),
                     NIXL_CAPI_ERROR_BACKEND);
    close_scene(&scene);
}

static void
test_capi_failed_transfer_has_no_figures(void **state)
{
    scene_t scene = {0};
    struct nixl_capi_xfer_telemetry_s figures = {.total_bytes = 7};
    (void)state;

    setenv("NIXL_TELEMETRY_ENABLE", "y", 1);
    open_scene(&scene);
    unsetenv("NIXL_TELEMETRY_ENABLE");
    nixl_capi_xfer_req_t request = make_request(&scene, 0, NULL);
    post_and_finish(&scene, request);
    assert_done(nixl_capi_get_xfer_telemetry(scene.a, request, &figures));
    assert_int_equal(figures.total_bytes, ROW);
    figures.total_bytes = 7;

    assert_done(nixl_capi_destroy_agent(scene.b));
    int status = nixl_capi_post_xfer_req(scene.a, request, NULL);
    while (status == NIXL_CAPI_IN_PROG) {
        status = nixl_capi_get_xfer_status(scene.a, request);
    }
    assert_int_equal(status, NIXL_CAPI_ERROR_BACKEND);
    assert_int_equal(nixl_capi_get_xfer_telemetry(scene.a, request, &figures),
                     NIXL_CAPI_ERROR_BACKEND);
    assert_int_equal(figures.total_bytes, 7);

    drop_request(&scene, request);
    assert_done(nixl_capi_create_agent("b", &scene.b)); /* for close_scene() */
    close_scene(&scene);
}

static void
test_capi_status_is_that_of_the_last_post(void **state)
{
    scene_t scene = {0};
    (void)state;

    open_scene(&scene);
    nixl_capi_xfer_req_t request = make_request(&scene, 0, NULL);
    post_and_finish(&scene, request);
    assert_done(nixl_capi_get_xfer_status(scene.a, request));
    assert_done(nixl_capi_get_xfer_status(scene.a, request));
    assert_refused(nixl_capi_get_xfer_status(NULL, request));

    assert_done(nixl_capi_destroy_agent(scene.b));
    assert_int_equal(nixl_capi_post_xfer_req(scene.a, request, NULL),
                     NIXL_CAPI_ERROR_BACKEND);
    assert_int_equal(nixl_capi_get_xfer_status(scene.a, request),
                     NIXL_CAPI_ERROR_BACKEND);
    assert_done(nixl_capi_release_xfer_req(scene.a, request));
    assert_refused(nixl_capi_get_xfer_status(scene.a, request));
    assert_done(nixl_capi_destroy_xfer_req(request));

    assert_done(nixl_capi_create_agent("b", &scene.b)); /* for close_scene() */
    close_scene(&scene);
}

static void
test_capi_agent_of_the_parent_fails_in_a_child(void **state)
{
    scene_t scene = {0};
    int status = -1;
    (void)state;

    open_scene(&scene);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        nixl_capi_params_t params = NULL;
        bool good = nixl_capi_register_mem(scene.a, scene.memory_a, NULL) ==
                        NIXL_CAPI_ERROR_BACKEND &&
                    nixl_capi_create_params(&params) == NIXL_CAPI_SUCCESS &&
                    nixl_capi_destroy_params(params) == NIXL_CAPI_SUCCESS &&
                    nixl_capi_destroy_agent(scene.a) == NIXL_CAPI_SUCCESS;
        _exit(good ? 0 : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    close_scene(&scene);
}

/* -- Threads ----------------------------------------------------------------
 */

static unsigned rounds = 2000;

/* No two transfers that may go on at one time use the same row. */
#define OWN_ROWS 3 /* of each thread */
#define SHARED_ROW (THREADS * OWN_ROWS)
#define SWAPPED_ROW (SHARED_ROW + 1) /* and the next one */

typedef struct crowd {
    scene_t scene;
    atomic_uint number, failures, received;
    nixl_capi_opt_args_t options; /* read by all */
    nixl_capi_xfer_req_t request; /* used by all */
    _Atomic(void *) swapped;      /* a request that is destroyed at any time */
} crowd_t;

static void
want(crowd_t *crowd, bool good)
{
    if (!good) {
        atomic_fetch_add(&crowd->failures, 1);
    }
}

static nixl_capi_xfer_req_t
make_write(crowd_t *crowd, unsigned number, nixl_capi_opt_args_t options)
{
    const scene_t *scene = &crowd->scene;
    const int row = (int)number;
    nixl_capi_xfer_req_t request = NULL;

    want(crowd, nixl_capi_make_xfer_req(scene->a, NIXL_CAPI_XFER_OP_WRITE,
                                        scene->local, &row, 1, scene->remote,
                                        &row, 1, &request, options) == 0);
    return request;
}

/* A transfer of the thread's own, with a notification. */
static void
own_transfer(crowd_t *crowd, unsigned row)
{
    nixl_capi_agent_t a = crowd->scene.a;
    nixl_capi_xfer_req_t request = make_write(crowd, row, crowd->options);
    int status = nixl_capi_post_xfer_req(a, request, NULL);

    while (status == NIXL_CAPI_IN_PROG) {
        status = nixl_capi_get_xfer_status(a, request);
    }
    want(crowd, status == 0);
    want(crowd, nixl_capi_release_xfer_req(a, request) == 0);
    want(crowd, nixl_capi_destroy_xfer_req(request) == 0);
}

/* A request that all threads post and look at. */
static void
shared_transfer(crowd_t *crowd)
{
    const scene_t *scene = &crowd->scene;
    nixl_capi_backend_t backend = NULL;

    /* BACKEND: it is active already. */
    (void)nixl_capi_post_xfer_req(scene->a, crowd->request, NULL);
    want(crowd, nixl_capi_get_xfer_status(scene->a, crowd->request) >= 0);
    want(crowd, nixl_capi_query_xfer_backend(scene->a, crowd->request,
                                             &backend) == 0);
    want(crowd, nixl_capi_destroy_backend(backend) == 0);
}

/* One thread replaces and destroys the request that the others use. */
static void
swap_request(crowd_t *crowd, bool is_owner, unsigned i)
{
    nixl_capi_agent_t a = crowd->scene.a;

    if (is_owner) {
        void *new = make_write(crowd, SWAPPED_ROW + (i + 1) % 2, NULL);
        void *old = atomic_exchange(&crowd->swapped, new);
        want(crowd, nixl_capi_release_xfer_req(a, old) == 0);
        want(crowd, nixl_capi_destroy_xfer_req(old) == 0);
    } else {
        void *other = atomic_load(&crowd->swapped);
        int posted = nixl_capi_post_xfer_req(a, other, NULL);
        want(crowd, posted >= 0 || posted == NIXL_CAPI_ERROR_INVALID_PARAM ||
                        posted == NIXL_CAPI_ERROR_BACKEND);
        (void)nixl_capi_get_xfer_status(a, other);
    }
}

static void
take_notifs(crowd_t *crowd, nixl_capi_notif_map_t map)
{
    size_t count = 0;

    want(crowd, nixl_capi_get_notifs(crowd->scene.b, map, NULL) == 0);
    if (nixl_capi_notif_map_get_notifs_size(map, "a", &count) == 0) {
        atomic_fetch_add(&crowd->received, (unsigned)count);
    }
    want(crowd, nixl_capi_notif_map_clear(map) == 0);
}

static void *
crowd_main(void *context)
{
    crowd_t *crowd = context;
    unsigned mine = atomic_fetch_add(&crowd->number, 1);
    nixl_capi_notif_map_t map = NULL;

    want(crowd, nixl_capi_create_notif_map(&map) == 0);
    for (unsigned i = 0; i < rounds / THREADS; i++) {
        own_transfer(crowd, mine * OWN_ROWS + i % OWN_ROWS);
        shared_transfer(crowd);
        swap_request(crowd, mine == 0, i);
        take_notifs(crowd, map);
    }
    want(crowd, nixl_capi_destroy_notif_map(map) == 0);
    return NULL;
}

static void
run_threads(void *(*entry)(void *), void *context)
{
    pthread_t threads[THREADS];

    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, entry, context), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
    }
}

static void
test_capi_is_used_by_many_threads(void **state)
{
    crowd_t crowd = {.failures = 0};
    scene_t *scene = &crowd.scene;
    nixl_capi_notif_map_t map = NULL;
    (void)state;

    open_scene(scene);
    assert_done(nixl_capi_create_opt_args(&crowd.options));
    assert_done(nixl_capi_opt_args_set_has_notif(crowd.options, true));
    assert_done(nixl_capi_create_notif_map(&map));
    crowd.request = make_write(&crowd, SHARED_ROW, NULL);
    atomic_store(&crowd.swapped, make_write(&crowd, SWAPPED_ROW, NULL));
    post_and_finish(scene, crowd.request);
    run_threads(crowd_main, &crowd);
    while (atomic_load(&crowd.received) < rounds / THREADS * THREADS) {
        take_notifs(&crowd, map);
    }
    assert_int_equal(atomic_load(&crowd.failures), 0);
    assert_int_equal(atomic_load(&crowd.received), rounds / THREADS * THREADS);
    drop_request(scene, crowd.request);
    drop_request(scene, atomic_load(&crowd.swapped));
    assert_done(nixl_capi_destroy_opt_args(crowd.options));
    assert_done(nixl_capi_destroy_notif_map(map));
    close_scene(scene);
}

/* Agents, prepared lists and requests end while other threads use them. */
typedef struct ending {
    scene_t scene;
    atomic_uint number, failures;
} ending_t;

static void *
ending_main(void *context)
{
    ending_t *ending = context;
    const scene_t *scene = &ending->scene;
    const unsigned mine = atomic_fetch_add(&ending->number, 1);
    const int row = (int)mine;

    for (int i = 0; i < 200; i++) {
        nixl_capi_xfer_req_t request = NULL;
        int status = nixl_capi_make_xfer_req(
            scene->a, NIXL_CAPI_XFER_OP_READ, scene->local, &row, 1,
            scene->remote, &row, 1, &request, NULL);
        if (status == NIXL_CAPI_SUCCESS) {
            (void)nixl_capi_post_xfer_req(scene->a, request, NULL);
            (void)nixl_capi_release_xfer_req(scene->a, request);
            status = nixl_capi_destroy_xfer_req(request);
        }
        if (status != NIXL_CAPI_SUCCESS &&
            status != NIXL_CAPI_ERROR_INVALID_PARAM &&
            status != NIXL_CAPI_ERROR_BACKEND) {
            atomic_fetch_add(&ending->failures, 1);
        }
        if (mine == 0 && i == 100) {
            (void)nixl_capi_release_xfer_dlist_handle(scene->a, scene->local);
            (void)nixl_capi_destroy_agent(scene->a);
        }
    }
    return NULL;
}

static void
test_capi_agent_ends_while_threads_use_it(void **state)
{
    (void)state;
    for (int i = 0; i < 5; i++) {
        ending_t ending = {.failures = 0};
        open_scene(&ending.scene);
        run_threads(ending_main, &ending);
        assert_int_equal(atomic_load(&ending.failures), 0);
        assert_refused(nixl_capi_destroy_agent(ending.scene.a));
        assert_done(nixl_capi_release_xfer_dlist_handle(ending.scene.a,
                                                        ending.scene.remote));
        assert_done(nixl_capi_destroy_agent(ending.scene.b));
        assert_done(nixl_capi_destroy_backend(ending.scene.backend_a));
        assert_done(nixl_capi_destroy_backend(ending.scene.backend_b));
        assert_done(nixl_capi_destroy_reg_dlist(ending.scene.memory_a));
        assert_done(nixl_capi_destroy_reg_dlist(ending.scene.memory_b));
        free(ending.scene.at_a);
        free(ending.scene.at_b);
    }
}

/* -- Memory over many rounds ------------------------------------------------
 */

static void
use_params(void)
{
    nixl_capi_params_t params = NULL;
    nixl_capi_param_iter_t walk = NULL;
    const char *key = NULL, *value = NULL;
    bool has_next = true;

    assert_done(nixl_capi_create_params(&params));
    assert_done(nixl_capi_params_add(params, "one", "1"));
    assert_done(nixl_capi_params_add(params, "one", "2"));
    assert_done(nixl_capi_params_create_iterator(params, &walk));
    assert_done(nixl_capi_params_iterator_next(walk, &key, &value, &has_next));
    assert_string_equal(value, "2");
    assert_done(nixl_capi_params_destroy_iterator(walk));
    assert_done(nixl_capi_destroy_params(params));
}

static void
use_plugins(const scene_t *scene)
{
    nixl_capi_string_list_t names = NULL;
    nixl_capi_mem_list_t mems = NULL;
    nixl_capi_params_t params = NULL;

    assert_done(nixl_capi_get_available_plugins(scene->a, &names));
    assert_done(nixl_capi_destroy_string_list(names));
    assert_done(nixl_capi_get_plugin_params(scene->a, "UCX", &mems, &params));
    assert_done(nixl_capi_destroy_mem_list(mems));
    assert_done(nixl_capi_destroy_params(params));
}

static void
use_transfer(const scene_t *scene, int row, nixl_capi_notif_map_t map)
{
    nixl_capi_opt_args_t options = NULL;
    nixl_capi_backend_t backend = NULL;
    void *data = NULL;
    size_t len = 0, senders = 0;

    assert_done(nixl_capi_create_opt_args(&options));
    assert_done(nixl_capi_opt_args_add_backend(options, scene->backend_a));
    assert_done(nixl_capi_opt_args_set_notif_msg(options, "done", 4));
    assert_done(nixl_capi_opt_args_set_has_notif(options, true));
    assert_done(nixl_capi_opt_args_get_notif_msg(options, &data, &len));
    free(data);
    nixl_capi_xfer_req_t request = make_request(scene, row, options);
    assert_done(nixl_capi_destroy_opt_args(options));
    assert_done(nixl_capi_query_xfer_backend(scene->a, request, &backend));
    assert_done(nixl_capi_destroy_backend(backend));
    post_and_finish(scene, request);
    drop_request(scene, request);
    while (senders == 0) {
        assert_done(nixl_capi_get_notifs(scene->b, map, NULL));
        assert_done(nixl_capi_notif_map_size(map, &senders));
    }
    assert_done(nixl_capi_notif_map_clear(map));
}

/* Calls that fail must not keep memory either. */
static void
use_failures(const scene_t *scene)
{
    const int outside = ROWS;
    nixl_capi_xfer_req_t request = NULL;
    nixl_capi_mem_list_t mems = NULL;
    nixl_capi_params_t params = NULL;
    char *name = NULL;

    assert_true(nixl_capi_make_xfer_req(
                    scene->a, NIXL_CAPI_XFER_OP_READ, scene->local, &outside,
                    1, scene->remote, &outside, 1, &request, NULL) < 0);
    assert_true(nixl_capi_get_plugin_params(scene->a, "none", &mems, &params) <
                0);
    assert_true(nixl_capi_load_remote_md(scene->a, "garbage", 7, &name) < 0);
    assert_true(nixl_capi_gen_notif(scene->a, "nobody", "x", 1, NULL) < 0);
}

static void
use_everything(const scene_t *scene, unsigned i, nixl_capi_notif_map_t map)
{
    const int row = (int)(i % ROWS);

    use_params();
    use_transfer(scene, row, map);
    if (i % 16 == 0) {
        nixl_capi_xfer_dlist_handle_t list =
            prepare(scene->a, "b", scene->at_b);
        assert_done(nixl_capi_release_xfer_dlist_handle(scene->a, list));
        nixl_capi_reg_dlist_t memory = list_memory(scene->at_a);
        assert_done(nixl_capi_register_mem(scene->a, memory, NULL));
        assert_done(nixl_capi_deregister_mem(scene->a, memory, NULL));
        assert_done(nixl_capi_destroy_reg_dlist(memory));
        use_plugins(scene);
        use_failures(scene);
    }
}

/* 0: not known. */
static size_t
bytes_in_use(void)
{
#ifdef __GLIBC__
    return mallinfo2().uordblks;
#else
    return 0;
#endif
}

static void
test_capi_memory_stays_flat(void **state)
{
    scene_t scene = {0};
    nixl_capi_notif_map_t map = NULL;
    (void)state;

    open_scene(&scene);
    assert_done(nixl_capi_create_notif_map(&map));
    for (unsigned i = 0; i < 1000; i++) {
        use_everything(&scene, i, map);
    }
    size_t before = bytes_in_use();
    for (unsigned i = 0; i < rounds; i++) {
        use_everything(&scene, i, map);
    }
    size_t after = bytes_in_use();
    if (!VNX_TEST_IS_WATCHED) { /* sanitizers have a malloc() of their own */
        assert_in_range(after, 0, before + 4096);
    }
    assert_done(nixl_capi_destroy_notif_map(map));
    close_scene(&scene);
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_capi_refuses_what_is_no_handle),
        cmocka_unit_test(test_capi_refuses_destroyed_handles),
        cmocka_unit_test(test_capi_refuses_handles_of_other_kinds),
        cmocka_unit_test(test_capi_never_uses_a_handle_again),
        cmocka_unit_test(test_capi_objects_outlive_their_agent),
        cmocka_unit_test(test_capi_options_of_another_agent_are_refused),
        cmocka_unit_test(test_capi_absurd_lengths_fail),
        cmocka_unit_test(test_capi_failed_transfer_has_no_figures),
        cmocka_unit_test(test_capi_status_is_that_of_the_last_post),
        cmocka_unit_test(test_capi_agent_of_the_parent_fails_in_a_child),
        cmocka_unit_test(test_capi_is_used_by_many_threads),
        cmocka_unit_test(test_capi_agent_ends_while_threads_use_it),
        cmocka_unit_test(test_capi_memory_stays_flat),
    };

    setenv("VLLM_NIXL_LOG_LEVEL", "CRITICAL", 1);
    if (argc > 1) {
        rounds = (unsigned)strtoul(argv[1], NULL, 10);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
