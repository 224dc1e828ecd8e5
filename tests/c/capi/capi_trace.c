/*
 * Calls every function of a libnixl_capi.so, with good and bad arguments, and
 * prints what each returns:
 *
 *     capi_trace LIBRARY [stock]
 *
 * "stock": the library is NIXL's.  Calls that crash it are left out, and those
 * whose result differs on purpose have other results.  capi_parity_test
 * compares the outputs.
 */
#include <arpa/inet.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "nixl_capi_table.h"

#define SIZE 65536u
#define ROW 4096u
#define ROWS (SIZE / ROW)
#define WAIT_S 20

static nixl_capi_table_t capi;
static bool is_stock;
static int failures;

/* -- Printing ------------------------------------------------------------- */

static void
put(const char *what, int status)
{
    printf("%s = %d\n", what, status);
}

static void
put_number(const char *what, uint64_t number)
{
    printf("    %s: %" PRIu64 "\n", what, number);
}

static void
put_text(const char *what, const char *text)
{
    printf("    %s: %s\n", what, text != NULL ? text : "(null)");
}

static void
expect(const char *what, int status, int expected)
{
    if (status != expected) {
        fprintf(stderr, "%s = %d, not %d\n", what, status, expected);
        failures++;
    }
}

/* Call, and print the result. */
#define PUT(call) put(#call, (int)capi.call)

/* A call whose result differs on purpose. */
#define DIFFER(call, stock, ours) \
    expect(#call, (int)capi.call, is_stock ? (stock) : (ours))

/* A call that crashes NIXL. */
#define OURS(call, ours)                           \
    do {                                           \
        if (!is_stock) {                           \
            expect(#call, (int)capi.call, (ours)); \
        }                                          \
    } while (0)

/* A call that must succeed, or the rest makes no sense. */
#define MUST(call)                                                         \
    do {                                                                   \
        int must_ = (int)capi.call;                                        \
        if (must_ < 0) {                                                   \
            fprintf(stderr, "line %d: %s = %d\n", __LINE__, #call, must_); \
            exit(1);                                                       \
        }                                                                  \
    } while (0)

/* -- A scene ----------------------------------------------------------------
 */

/* Two agents with UCX and registered memory, which have loaded each other's
 * metadata. */
static nixl_capi_agent_t a, b;
static nixl_capi_backend_t ucx_a, ucx_b;
static nixl_capi_reg_dlist_t memory_a, memory_b;
static unsigned char *at_a, *at_b;
static nixl_capi_notif_map_t map;
static nixl_capi_opt_args_t by_a, none; /* with the backend; empty */
static nixl_capi_xfer_dlist_handle_t local, remote;

static nixl_capi_agent_t
make_agent(const char *name, bool telemetry)
{
    const nixl_capi_agent_config_t config = {.enable_prog_thread = true,
                                             .pthr_delay_us = 100000,
                                             .capture_telemetry = telemetry};
    nixl_capi_agent_t agent = NULL;

    MUST(create_configured_agent(name, &config, &agent));
    return agent;
}

static nixl_capi_backend_t
make_backend(nixl_capi_agent_t agent)
{
    nixl_capi_params_t params = NULL;
    nixl_capi_backend_t backend = NULL;

    MUST(create_params(&params));
    MUST(params_add(params, "num_workers", "1"));
    MUST(create_backend(agent, "UCX", params, &backend));
    MUST(destroy_params(params));
    return backend;
}

static nixl_capi_reg_dlist_t
reg_list(const void *at, size_t size)
{
    nixl_capi_reg_dlist_t list = NULL;

    MUST(create_reg_dlist(NIXL_CAPI_MEM_DRAM, &list));
    MUST(reg_dlist_add_desc(list, (uintptr_t)at, size, 0, NULL, 0));
    return list;
}

/* `count` rows of `size` bytes from the first row. */
static nixl_capi_xfer_dlist_t
xfer_list(const unsigned char *at, size_t count, size_t size)
{
    nixl_capi_xfer_dlist_t list = NULL;

    MUST(create_xfer_dlist(NIXL_CAPI_MEM_DRAM, &list));
    for (size_t i = 0; i < count; i++) {
        MUST(xfer_dlist_add_desc(list, (uintptr_t)at + i * ROW, size, 0));
    }
    return list;
}

static void
load(nixl_capi_agent_t by, nixl_capi_agent_t of)
{
    void *data = NULL;
    size_t len = 0;
    char *name = NULL;

    MUST(get_local_md(of, &data, &len));
    MUST(load_remote_md(by, data, len, &name));
    free(name);
    free(data);
}

static nixl_capi_xfer_dlist_handle_t
prepare(const char *name, const unsigned char *at)
{
    nixl_capi_xfer_dlist_t rows = xfer_list(at, ROWS, ROW);
    nixl_capi_xfer_dlist_handle_t handle = NULL;

    MUST(prep_xfer_dlist(a, name, rows, &handle, NULL));
    MUST(destroy_xfer_dlist(rows));
    return handle;
}

static void
open_scene(void)
{
    at_a = aligned_alloc(ROW, SIZE);
    at_b = aligned_alloc(ROW, SIZE);
    if (at_a == NULL || at_b == NULL) {
        exit(1);
    }
    memset(at_a, 1, SIZE);
    memset(at_b, 2, SIZE);
    a = make_agent("a", true);
    b = make_agent("b", true);
    ucx_a = make_backend(a);
    ucx_b = make_backend(b);
    memory_a = reg_list(at_a, SIZE);
    memory_b = reg_list(at_b, SIZE);
    MUST(register_mem(a, memory_a, NULL));
    MUST(register_mem(b, memory_b, NULL));
    load(a, b);
    load(b, a);
    local = prepare("", at_a);
    remote = prepare("b", at_b);
    MUST(create_notif_map(&map));
    MUST(create_opt_args(&none));
    MUST(create_opt_args(&by_a));
    MUST(opt_args_add_backend(by_a, ucx_a));
}

static void
close_scene(void)
{
    MUST(release_xfer_dlist_handle(a, local));
    MUST(release_xfer_dlist_handle(a, remote));
    MUST(destroy_opt_args(by_a));
    MUST(destroy_opt_args(none));
    MUST(destroy_notif_map(map));
    MUST(destroy_reg_dlist(memory_a));
    MUST(destroy_reg_dlist(memory_b));
    MUST(destroy_backend(ucx_a));
    MUST(destroy_backend(ucx_b));
    MUST(destroy_agent(a));
    MUST(destroy_agent(b));
    free(at_a);
    free(at_b);
}

static nixl_capi_xfer_req_t
make_request(nixl_capi_opt_args_t options)
{
    const int row = 3;
    nixl_capi_xfer_req_t request = NULL;

    MUST(make_xfer_req(a, NIXL_CAPI_XFER_OP_READ, local, &row, 1, remote, &row,
                       1, &request, options));
    return request;
}

static void
pause_shortly(void)
{
    const struct timespec ms = {.tv_nsec = 1000000};
    nanosleep(&ms, NULL);
}

static int
finish(nixl_capi_xfer_req_t request)
{
    int status = NIXL_CAPI_IN_PROG;

    for (int i = 0; status == NIXL_CAPI_IN_PROG && i < WAIT_S * 1000; i++) {
        status = capi.get_xfer_status(a, request);
        pause_shortly();
    }
    return status;
}

static void
drop(nixl_capi_xfer_req_t request)
{
    MUST(release_xfer_req(a, request));
    MUST(destroy_xfer_req(request));
}

/* The number of notifications that `agent` gets from `sender`, of which
 * `wanted` are expected.  The map has them afterwards. */
static size_t
receive(nixl_capi_agent_t agent, const char *sender, size_t wanted)
{
    size_t size = 0;

    for (int i = 0; size < wanted && i < WAIT_S * 1000; i++) {
        MUST(get_notifs(agent, map, NULL));
        (void)capi.get_xfer_status(a, NULL); /* of another agent: progress */
        size = 0;
        (void)capi.notif_map_get_notifs_size(map, sender, &size);
        pause_shortly();
    }
    return size;
}

/* -- NULL for each argument -------------------------------------------------
 */

static void
null_agents(void)
{
    const nixl_capi_agent_config_t config = {0};
    nixl_capi_agent_t agent = NULL;
    nixl_capi_xfer_dlist_t rows = xfer_list(at_a, 1, ROW);
    void *data = NULL;
    char *name = NULL;
    size_t len = 0;

    PUT(is_stub());
    PUT(create_agent(NULL, &agent));
    PUT(create_agent("", &agent));
    PUT(create_agent("x", NULL));
    PUT(create_configured_agent(NULL, &config, &agent));
    PUT(create_configured_agent("x", NULL, &agent));
    PUT(create_configured_agent("", &config, &agent));
    PUT(create_configured_agent("x", &config, NULL));
    PUT(destroy_agent(NULL));
    PUT(get_local_md(NULL, &data, &len));
    PUT(get_local_md(a, NULL, &len));
    PUT(get_local_md(a, &data, NULL));
    PUT(get_local_partial_md(NULL, memory_a, &data, &len, NULL));
    PUT(get_local_partial_md(a, NULL, &data, &len, NULL));
    PUT(get_local_partial_md(a, memory_a, NULL, &len, NULL));
    PUT(get_local_partial_md(a, memory_a, &data, NULL, NULL));
    PUT(load_remote_md(NULL, "x", 1, &name));
    PUT(load_remote_md(a, NULL, 1, &name));
    PUT(load_remote_md(a, "x", 0, &name));
    PUT(load_remote_md(a, "x", 1, NULL));
    PUT(invalidate_remote_md(NULL, "b"));
    PUT(invalidate_remote_md(a, NULL));
    PUT(check_remote_md(NULL, "b", NULL));
    PUT(check_remote_md(a, NULL, NULL));
    PUT(send_local_md(NULL, NULL));
    PUT(send_local_partial_md(NULL, memory_a, NULL));
    PUT(send_local_partial_md(a, NULL, NULL));
    PUT(fetch_remote_md(NULL, "b", NULL));
    PUT(fetch_remote_md(a, NULL, NULL));
    PUT(invalidate_local_md(NULL, NULL));
    PUT(agent_make_connection(NULL, "b", NULL));
    PUT(agent_make_connection(a, NULL, NULL));
    put_number("outputs", agent != NULL || data != NULL || name != NULL);
    MUST(destroy_xfer_dlist(rows));
}

static void
null_backends(void)
{
    nixl_capi_string_list_t strings = NULL;
    nixl_capi_mem_list_t mems = NULL;
    nixl_capi_params_t params = NULL;
    nixl_capi_backend_t backend = NULL;
    const char *text = NULL;
    nixl_capi_mem_type_t mem = NIXL_CAPI_MEM_UNKNOWN;
    size_t size = 7;
    bool flag = true;

    PUT(get_available_plugins(NULL, &strings));
    PUT(get_available_plugins(a, NULL));
    PUT(destroy_string_list(NULL));
    PUT(string_list_size(NULL, &size));
    PUT(string_list_get(NULL, 0, &text));
    PUT(get_plugin_params(NULL, "UCX", &mems, &params));
    PUT(get_plugin_params(a, NULL, &mems, &params));
    PUT(get_plugin_params(a, "UCX", NULL, &params));
    PUT(get_plugin_params(a, "UCX", &mems, NULL));
    PUT(get_backend_params(NULL, ucx_a, &mems, &params));
    PUT(get_backend_params(a, NULL, &mems, &params));
    PUT(get_backend_params(a, ucx_a, NULL, &params));
    PUT(get_backend_params(a, ucx_a, &mems, NULL));
    PUT(destroy_mem_list(NULL));
    PUT(mem_list_is_empty(NULL, &flag));
    PUT(mem_list_size(NULL, &size));
    PUT(mem_list_get(NULL, 0, &mem));
    PUT(mem_type_to_string(NIXL_CAPI_MEM_DRAM, NULL));
    PUT(create_params(NULL));
    PUT(destroy_params(NULL));
    MUST(create_params(&params));
    PUT(params_add(NULL, "k", "v"));
    PUT(params_add(params, NULL, "v"));
    PUT(params_add(params, "k", NULL));
    PUT(params_is_empty(NULL, &flag));
    PUT(params_is_empty(params, NULL));
    PUT(params_create_iterator(NULL, NULL));
    PUT(params_create_iterator(params, NULL));
    PUT(params_iterator_next(NULL, &text, &text, &flag));
    PUT(params_destroy_iterator(NULL));
    PUT(create_backend(NULL, "UCX", params, &backend));
    PUT(create_backend(a, NULL, params, &backend));
    PUT(create_backend(a, "UCX", NULL, &backend));
    PUT(create_backend(a, "UCX", params, NULL));
    PUT(destroy_backend(NULL));
    MUST(destroy_params(params));
    put_number("outputs", strings != NULL || mems != NULL || backend != NULL ||
                              text != NULL || size != 7 || !flag);
}

static void
null_options(void)
{
    void *data = NULL;
    size_t len = 7;
    bool flag = true;

    PUT(create_opt_args(NULL));
    PUT(destroy_opt_args(NULL));
    PUT(opt_args_add_backend(NULL, ucx_a));
    PUT(opt_args_add_backend(none, NULL));
    PUT(opt_args_set_notif_msg(NULL, "x", 1));
    PUT(opt_args_set_notif_msg(none, NULL, 1));
    PUT(opt_args_get_notif_msg(NULL, &data, &len));
    PUT(opt_args_get_notif_msg(none, NULL, &len));
    PUT(opt_args_get_notif_msg(none, &data, NULL));
    PUT(opt_args_set_has_notif(NULL, true));
    PUT(opt_args_get_has_notif(NULL, &flag));
    PUT(opt_args_get_has_notif(none, NULL));
    PUT(opt_args_set_custom_param(NULL, "x", 1));
    PUT(opt_args_set_custom_param(none, NULL, 1));
    PUT(opt_args_get_custom_param(NULL, &data, &len));
    PUT(opt_args_get_custom_param(none, NULL, &len));
    PUT(opt_args_get_custom_param(none, &data, NULL));
    PUT(opt_args_set_skip_desc_merge(NULL, true));
    PUT(opt_args_get_skip_desc_merge(NULL, &flag));
    PUT(opt_args_get_skip_desc_merge(none, NULL));
    PUT(opt_args_set_ip_addr(NULL, "127.0.0.1"));
    PUT(opt_args_set_ip_addr(none, NULL));
    PUT(opt_args_set_port(NULL, 1));
    put_number("outputs", data != NULL || len != 7 || !flag);
}

static void
null_lists(void)
{
    nixl_capi_mem_type_t mem = NIXL_CAPI_MEM_UNKNOWN;
    nixl_capi_xfer_dlist_t rows = xfer_list(at_a, 1, ROW);
    nixl_capi_remote_dlist_t remotes = NULL;
    size_t size = 7;
    bool flag = true;

    PUT(create_xfer_dlist(NIXL_CAPI_MEM_DRAM, NULL));
    PUT(destroy_xfer_dlist(NULL));
    PUT(xfer_dlist_get_type(NULL, &mem));
    PUT(xfer_dlist_get_type(rows, NULL));
    PUT(xfer_dlist_add_desc(NULL, 1, 1, 0));
    PUT(xfer_dlist_desc_count(NULL, &size));
    PUT(xfer_dlist_desc_count(rows, NULL));
    PUT(xfer_dlist_len(NULL, &size));
    PUT(xfer_dlist_len(rows, NULL));
    PUT(xfer_dlist_is_empty(NULL, &flag));
    PUT(xfer_dlist_is_empty(rows, NULL));
    PUT(xfer_dlist_trim(NULL));
    PUT(xfer_dlist_rem_desc(NULL, 0));
    PUT(xfer_dlist_clear(NULL));
    PUT(xfer_dlist_resize(NULL, 1));
    PUT(xfer_dlist_print(NULL));
    PUT(create_reg_dlist(NIXL_CAPI_MEM_DRAM, NULL));
    PUT(destroy_reg_dlist(NULL));
    PUT(reg_dlist_get_type(NULL, &mem));
    PUT(reg_dlist_get_type(memory_a, NULL));
    PUT(reg_dlist_add_desc(NULL, 1, 1, 0, NULL, 0));
    PUT(reg_dlist_desc_count(NULL, &size));
    PUT(reg_dlist_desc_count(memory_a, NULL));
    PUT(reg_dlist_is_empty(NULL, &flag));
    PUT(reg_dlist_is_empty(memory_a, NULL));
    PUT(reg_dlist_trim(NULL));
    PUT(reg_dlist_rem_desc(NULL, 0));
    PUT(reg_dlist_clear(NULL));
    PUT(reg_dlist_resize(NULL, 1));
    PUT(reg_dlist_print(NULL));
    PUT(create_remote_dlist(NIXL_CAPI_MEM_DRAM, NULL));
    PUT(destroy_remote_dlist(NULL));
    PUT(remote_dlist_add_desc(NULL, 1, 1, 0, "b"));
    MUST(create_remote_dlist(NIXL_CAPI_MEM_DRAM, &remotes));
    PUT(remote_dlist_add_desc(remotes, 1, 1, 0, NULL));
    MUST(destroy_remote_dlist(remotes));
    MUST(destroy_xfer_dlist(rows));
    put_number("outputs", mem != NIXL_CAPI_MEM_UNKNOWN || size != 7 || !flag);
}

static void
null_transfers(void)
{
    const int row = 0;
    struct nixl_capi_xfer_telemetry_s figures = {0};
    nixl_capi_xfer_dlist_t rows = xfer_list(at_a, 1, ROW);
    nixl_capi_xfer_dlist_t there = xfer_list(at_b, 1, ROW);
    nixl_capi_xfer_dlist_handle_t handle = NULL;
    nixl_capi_xfer_req_t made = make_request(NULL), request = NULL;
    nixl_capi_backend_t backend = NULL;
    nixl_capi_mem_view_t view = NULL;
    nixl_capi_cost_t method = NIXL_CAPI_COST_ANALYTICAL_BACKEND;
    int64_t duration = 7, margin = 7;

    PUT(register_mem(NULL, memory_a, NULL));
    PUT(register_mem(a, NULL, NULL));
    PUT(deregister_mem(NULL, memory_a, NULL));
    PUT(deregister_mem(a, NULL, NULL));
    PUT(prep_xfer_dlist(NULL, "", rows, &handle, NULL));
    PUT(prep_xfer_dlist(a, NULL, rows, &handle, NULL));
    PUT(prep_xfer_dlist(a, "", NULL, &handle, NULL));
    OURS(prep_xfer_dlist(a, "", rows, NULL, NULL), -1);
    PUT(release_xfer_dlist_handle(NULL, local));
    PUT(release_xfer_dlist_handle(a, NULL));
    PUT(make_xfer_req(NULL, 0, local, &row, 1, remote, &row, 1, &request,
                      NULL));
    PUT(make_xfer_req(a, 0, NULL, &row, 1, remote, &row, 1, &request, NULL));
    OURS(make_xfer_req(a, 0, local, NULL, 1, remote, &row, 1, &request, NULL),
         -1);
    PUT(make_xfer_req(a, 0, local, &row, 1, NULL, &row, 1, &request, NULL));
    OURS(make_xfer_req(a, 0, local, &row, 1, remote, NULL, 1, &request, NULL),
         -1);
    PUT(make_xfer_req(a, 0, local, &row, 1, remote, &row, 1, NULL, NULL));
    PUT(create_xfer_req(NULL, 0, rows, there, "b", &request, NULL));
    PUT(create_xfer_req(a, 0, NULL, there, "b", &request, NULL));
    PUT(create_xfer_req(a, 0, rows, NULL, "b", &request, NULL));
    PUT(create_xfer_req(a, 0, rows, there, NULL, &request, NULL));
    PUT(create_xfer_req(a, 0, rows, there, "b", NULL, NULL));
    PUT(post_xfer_req(NULL, made, NULL));
    PUT(post_xfer_req(a, NULL, NULL));
    PUT(get_xfer_status(NULL, made));
    PUT(get_xfer_status(a, NULL));
    PUT(query_xfer_backend(NULL, made, &backend));
    PUT(query_xfer_backend(a, NULL, &backend));
    PUT(query_xfer_backend(a, made, NULL));
    PUT(estimate_xfer_cost(NULL, made, NULL, &duration, &margin, &method));
    PUT(estimate_xfer_cost(a, NULL, NULL, &duration, &margin, &method));
    PUT(estimate_xfer_cost(a, made, NULL, NULL, &margin, &method));
    PUT(estimate_xfer_cost(a, made, NULL, &duration, NULL, &method));
    PUT(estimate_xfer_cost(a, made, NULL, &duration, &margin, NULL));
    PUT(get_xfer_telemetry(NULL, made, &figures));
    PUT(get_xfer_telemetry(a, NULL, &figures));
    PUT(get_xfer_telemetry(a, made, NULL));
    PUT(release_xfer_req(NULL, made));
    PUT(release_xfer_req(a, NULL));
    PUT(destroy_xfer_req(NULL));
    PUT(prep_mem_view_local(NULL, rows, &view, NULL));
    PUT(prep_mem_view_local(a, NULL, &view, NULL));
    PUT(prep_mem_view_local(a, rows, NULL, NULL));
    PUT(prep_mem_view_remote(NULL, NULL, &view, NULL));
    PUT(prep_mem_view_remote(a, NULL, &view, NULL));
    PUT(release_mem_view(NULL, NULL));
    PUT(release_mem_view(a, NULL));
    put_number("outputs", handle != NULL || request != NULL ||
                              backend != NULL || view != NULL ||
                              duration != 7 || margin != 7);
    drop(made);
    MUST(destroy_xfer_dlist(rows));
    MUST(destroy_xfer_dlist(there));
}

static void
null_notifs_and_queries(void)
{
    nixl_capi_query_resp_list_t answers = NULL;
    nixl_capi_params_t params = NULL;
    const void *data = NULL;
    const char *name = NULL;
    size_t size = 7;
    bool flag = true;

    PUT(gen_notif(NULL, "b", "x", 1, NULL));
    PUT(gen_notif(a, NULL, "x", 1, NULL));
    OURS(gen_notif(a, "b", NULL, 1, NULL), -1);
    PUT(get_notifs(NULL, map, NULL));
    PUT(get_notifs(a, NULL, NULL));
    PUT(create_notif_map(NULL));
    PUT(destroy_notif_map(NULL));
    PUT(notif_map_size(NULL, &size));
    PUT(notif_map_size(map, NULL));
    PUT(notif_map_get_agent_at(NULL, 0, &name));
    PUT(notif_map_get_agent_at(map, 0, NULL));
    PUT(notif_map_get_notifs_size(NULL, "b", &size));
    PUT(notif_map_get_notifs_size(map, NULL, &size));
    PUT(notif_map_get_notifs_size(map, "b", NULL));
    PUT(notif_map_get_notif(NULL, "b", 0, &data, &size));
    PUT(notif_map_get_notif(map, NULL, 0, &data, &size));
    PUT(notif_map_get_notif(map, "b", 0, NULL, &size));
    PUT(notif_map_get_notif(map, "b", 0, &data, NULL));
    PUT(notif_map_clear(NULL));
    PUT(create_query_resp_list(NULL));
    PUT(destroy_query_resp_list(NULL));
    PUT(query_resp_list_size(NULL, &size));
    PUT(query_resp_list_has_value(NULL, 0, &flag));
    PUT(query_resp_list_get_params(NULL, 0, &params));
    MUST(create_query_resp_list(&answers));
    PUT(query_resp_list_size(answers, NULL));
    PUT(query_resp_list_has_value(answers, 0, NULL));
    PUT(query_resp_list_get_params(answers, 0, NULL));
    PUT(query_mem(NULL, memory_a, answers, NULL));
    PUT(query_mem(a, NULL, answers, NULL));
    PUT(query_mem(a, memory_a, NULL, NULL));
    MUST(destroy_query_resp_list(answers));
    put_number("outputs", params != NULL || data != NULL || name != NULL ||
                              size != 7 || !flag);
}

/* -- Values: parameters, options, lists -------------------------------------
 */

static void
params_values(void)
{
    nixl_capi_params_t params = NULL;
    nixl_capi_param_iter_t walk = NULL;
    const char *key = NULL, *value = NULL;
    bool flag = true;

    MUST(create_params(&params));
    PUT(params_is_empty(params, &flag));
    put_number("empty", flag);
    PUT(params_create_iterator(params, &walk));
    PUT(params_iterator_next(walk, &key, &value, &flag));
    put_number("has next", flag);
    put_number("untouched", key == NULL && value == NULL);
    PUT(params_destroy_iterator(walk));
    PUT(params_add(params, "key", "first"));
    PUT(params_add(params, "key", "second"));
    PUT(params_is_empty(params, &flag));
    put_number("empty", flag);
    PUT(params_create_iterator(params, &walk));
    PUT(params_iterator_next(walk, NULL, &value, &flag));
    PUT(params_iterator_next(walk, &key, NULL, &flag));
    PUT(params_iterator_next(walk, &key, &value, NULL));
    PUT(params_iterator_next(walk, &key, &value, &flag));
    put_text("key", key);
    put_text("value", value);
    put_number("has next", flag);
    key = value = NULL;
    PUT(params_iterator_next(walk, &key, &value, &flag));
    put_number("untouched", key == NULL && value == NULL);
    put_number("has next", flag);
    PUT(params_destroy_iterator(walk));
    PUT(params_add(params, "", ""));
    PUT(params_create_iterator(params, &walk));
    PUT(params_iterator_next(walk, &key, &value, &flag));
    put_number("has next", flag);
    PUT(params_iterator_next(walk, &key, &value, &flag));
    put_number("has next", flag);
    PUT(params_destroy_iterator(walk));
    PUT(destroy_params(params));
}

static void
options_values(void)
{
    nixl_capi_opt_args_t args = NULL;
    void *data = &args;
    size_t len = 7;
    bool flag = true;

    MUST(create_opt_args(&args));
    PUT(opt_args_get_has_notif(args, &flag));
    put_number("flag", flag);
    PUT(opt_args_get_notif_msg(args, &data, &len));
    put_number("nothing", data == NULL && len == 0);
    PUT(opt_args_set_notif_msg(args, "a\0b", 3));
    PUT(opt_args_get_has_notif(args, &flag));
    put_number("flag", flag);
    PUT(opt_args_get_notif_msg(args, &data, &len));
    put_number("length", len);
    put_number("same", len == 3 && memcmp(data, "a\0b", 3) == 0);
    free(data);
    PUT(opt_args_set_has_notif(args, true));
    PUT(opt_args_get_has_notif(args, &flag));
    put_number("flag", flag);
    PUT(opt_args_set_has_notif(args, false));
    PUT(opt_args_get_has_notif(args, &flag));
    put_number("flag", flag);
    PUT(opt_args_get_notif_msg(args, &data, &len));
    put_number("length", len);
    free(data);
    PUT(opt_args_set_notif_msg(args, NULL, 0));
    PUT(opt_args_get_notif_msg(args, &data, &len));
    put_number("nothing", data == NULL && len == 0);
    PUT(opt_args_get_skip_desc_merge(args, &flag));
    put_number("flag", flag);
    PUT(opt_args_set_skip_desc_merge(args, true));
    PUT(opt_args_get_skip_desc_merge(args, &flag));
    put_number("flag", flag);
    PUT(opt_args_get_custom_param(args, &data, &len));
    put_number("nothing", data == NULL && len == 0);
    PUT(opt_args_set_custom_param(args, "\0x", 2));
    PUT(opt_args_get_custom_param(args, &data, &len));
    put_number("same", len == 2 && memcmp(data, "\0x", 2) == 0);
    free(data);
    PUT(opt_args_set_custom_param(args, NULL, 0));
    PUT(opt_args_get_custom_param(args, &data, &len));
    put_number("nothing", data == NULL && len == 0);
    PUT(opt_args_set_ip_addr(args, ""));
    PUT(opt_args_set_ip_addr(args, "not an address"));
    PUT(opt_args_set_port(args, 65535));
    PUT(destroy_opt_args(args));
}

static void
xfer_list_values(void)
{
    nixl_capi_xfer_dlist_t list = NULL;
    nixl_capi_mem_type_t mem = NIXL_CAPI_MEM_UNKNOWN;
    size_t count = 7;
    bool flag = false;

    PUT(create_xfer_dlist((nixl_capi_mem_type_t)77, &list));
    PUT(xfer_dlist_get_type(list, &mem));
    put_number("type", (unsigned)mem);
    PUT(destroy_xfer_dlist(list));
    PUT(create_xfer_dlist(NIXL_CAPI_MEM_FILE, &list));
    PUT(xfer_dlist_get_type(list, &mem));
    put_number("type", (unsigned)mem);
    PUT(xfer_dlist_is_empty(list, &flag));
    put_number("empty", flag);
    PUT(xfer_dlist_add_desc(list, 0x1000, 16, 1));
    PUT(xfer_dlist_add_desc(list, 0x2000, 0, 2));
    PUT(xfer_dlist_add_desc(list, UINTPTR_MAX, SIZE_MAX, UINT64_MAX));
    PUT(xfer_dlist_len(list, &count));
    put_number("count", count);
    PUT(xfer_dlist_trim(list));
    PUT(xfer_dlist_rem_desc(list, 3));
    PUT(xfer_dlist_rem_desc(list, -1));
    PUT(xfer_dlist_rem_desc(list, 2));
    PUT(xfer_dlist_print(list));
    PUT(xfer_dlist_desc_count(list, &count));
    put_number("count", count);
    PUT(xfer_dlist_is_empty(list, &flag));
    put_number("empty", flag);
    PUT(xfer_dlist_resize(list, 5));
    PUT(xfer_dlist_desc_count(list, &count));
    put_number("count", count);
    PUT(xfer_dlist_resize(list, 1));
    PUT(xfer_dlist_desc_count(list, &count));
    put_number("count", count);
    PUT(xfer_dlist_resize(list, SIZE_MAX));
    PUT(xfer_dlist_desc_count(list, &count));
    put_number("count", count);
    PUT(xfer_dlist_clear(list));
    PUT(xfer_dlist_rem_desc(list, 0));
    PUT(xfer_dlist_desc_count(list, &count));
    put_number("count", count);
    PUT(destroy_xfer_dlist(list));
}

static void
reg_list_values(void)
{
    nixl_capi_reg_dlist_t list = NULL;
    nixl_capi_remote_dlist_t remotes = NULL;
    nixl_capi_mem_type_t mem = NIXL_CAPI_MEM_UNKNOWN;
    size_t count = 7;
    bool flag = false;

    PUT(create_reg_dlist((nixl_capi_mem_type_t)-1, &list));
    PUT(reg_dlist_get_type(list, &mem));
    put_number("type", (unsigned)mem);
    PUT(destroy_reg_dlist(list));
    PUT(create_reg_dlist(NIXL_CAPI_MEM_OBJECT, &list));
    PUT(reg_dlist_get_type(list, &mem));
    put_number("type", (unsigned)mem);
    PUT(reg_dlist_is_empty(list, &flag));
    put_number("empty", flag);
    PUT(reg_dlist_add_desc(list, 0, 16, 1, "key", 3));
    PUT(reg_dlist_add_desc(list, 0, 16, 2, NULL, 3));
    PUT(reg_dlist_add_desc(list, 0, 16, 3, "key", 0));
    PUT(reg_dlist_trim(list));
    PUT(reg_dlist_rem_desc(list, 3));
    PUT(reg_dlist_rem_desc(list, -1));
    PUT(reg_dlist_rem_desc(list, 0));
    PUT(reg_dlist_print(list));
    PUT(reg_dlist_desc_count(list, &count));
    put_number("count", count);
    PUT(reg_dlist_is_empty(list, &flag));
    put_number("empty", flag);
    PUT(reg_dlist_resize(list, 5));
    PUT(reg_dlist_desc_count(list, &count));
    put_number("count", count);
    PUT(reg_dlist_resize(list, SIZE_MAX));
    PUT(reg_dlist_clear(list));
    PUT(reg_dlist_desc_count(list, &count));
    put_number("count", count);
    PUT(destroy_reg_dlist(list));
    PUT(create_remote_dlist((nixl_capi_mem_type_t)77, &remotes));
    PUT(remote_dlist_add_desc(remotes, 0x1000, 16, 1, ""));
    PUT(remote_dlist_add_desc(remotes, 0x1000, 16, 1, "b"));
    PUT(destroy_remote_dlist(remotes));
}

/* -- Agents and backends ----------------------------------------------------
 */

static void
mem_names(void)
{
    const char *text = NULL;

    for (int i = -1; i < 8; i++) {
        text = NULL;
        PUT(mem_type_to_string((nixl_capi_mem_type_t)i, &text));
        put_text("text", text);
    }
}

static const char *
value_of(nixl_capi_params_t params, const char *wanted)
{
    static char found[64];
    nixl_capi_param_iter_t walk = NULL;
    const char *key = NULL, *value = NULL;
    bool has_next = true;

    strcpy(found, "(none)");
    MUST(params_create_iterator(params, &walk));
    while (has_next) {
        MUST(params_iterator_next(walk, &key, &value, &has_next));
        if (key != NULL && strcmp(key, wanted) == 0) {
            snprintf(found, sizeof found, "%s", value);
        }
    }
    MUST(params_destroy_iterator(walk));
    return found;
}

static void
put_params(nixl_capi_mem_list_t mems, nixl_capi_params_t params)
{
    nixl_capi_mem_type_t mem = NIXL_CAPI_MEM_UNKNOWN;
    size_t count = 0;
    bool flag = true;
    unsigned set = 0;

    PUT(mem_list_is_empty(mems, &flag));
    put_number("empty", flag);
    PUT(mem_list_is_empty(mems, NULL));
    PUT(mem_list_size(mems, &count));
    PUT(mem_list_size(mems, NULL));
    for (size_t i = 0; i < count; i++) {
        MUST(mem_list_get(mems, i, &mem));
        set |= 1u << mem;
    }
    put_number("DRAM", set & 1); /* VRAM depends on the machine */
    PUT(mem_list_get(mems, 0, NULL));
    PUT(mem_list_get(mems, count, &mem));
    PUT(mem_list_get(mems, SIZE_MAX, &mem));
    put_text("num_workers", value_of(params, "num_workers"));
    PUT(destroy_mem_list(mems));
    PUT(destroy_params(params));
}

static bool
has_plugin(nixl_capi_string_list_t names, const char *wanted)
{
    const char *text = NULL;
    size_t count = 0;

    MUST(string_list_size(names, &count));
    for (size_t i = 0; i < count; i++) {
        MUST(string_list_get(names, i, &text));
        if (strcmp(text, wanted) == 0) {
            return true;
        }
    }
    return false;
}

static void
plugins(void)
{
    nixl_capi_string_list_t names = NULL;
    nixl_capi_mem_list_t mems = NULL;
    nixl_capi_params_t params = NULL;
    const char *text = NULL;
    size_t count = 0;

    PUT(get_available_plugins(a, &names));
    put_number("UCX", has_plugin(names, "UCX"));
    PUT(string_list_size(names, NULL));
    PUT(string_list_size(names, &count));
    PUT(string_list_get(names, 0, NULL));
    PUT(string_list_get(names, count, &text));
    PUT(string_list_get(names, SIZE_MAX, &text));
    PUT(destroy_string_list(names));
    PUT(get_plugin_params(a, "NONE", &mems, &params));
    PUT(get_plugin_params(a, "", &mems, &params));
    put_number("outputs", mems != NULL || params != NULL);
    PUT(get_plugin_params(a, "UCX", &mems, &params));
    put_text("ucx_devices", value_of(params, "ucx_devices"));
    put_text("ucx_error_handling_mode",
             value_of(params, "ucx_error_handling_mode"));
    put_params(mems, params);
    PUT(get_backend_params(a, ucx_a, &mems, &params));
    put_params(mems, params);
}

static void
backends(void)
{
    nixl_capi_agent_t agent = make_agent("alone", false);
    nixl_capi_backend_t backend = NULL;
    nixl_capi_params_t params = NULL;
    nixl_capi_mem_list_t mems = NULL;
    nixl_capi_reg_dlist_t memory = reg_list(at_a, SIZE);
    nixl_capi_xfer_dlist_t rows = xfer_list(at_a, 1, ROW);
    nixl_capi_xfer_dlist_handle_t handle = NULL;
    nixl_capi_xfer_req_t request = NULL;
    nixl_capi_opt_args_t options = NULL;
    void *data = NULL;
    size_t len = 0;

    PUT(get_local_md(agent, &data, &len));
    PUT(get_local_partial_md(agent, memory, &data, &len, NULL));
    PUT(register_mem(agent, memory, NULL));
    PUT(deregister_mem(agent, memory, NULL));
    PUT(prep_xfer_dlist(agent, "", rows, &handle, NULL));
    PUT(prep_xfer_dlist(agent, "b", rows, &handle, NULL));
    PUT(create_xfer_req(agent, 0, rows, rows, "alone", &request, NULL));
    PUT(check_remote_md(agent, "b", NULL));
    PUT(get_notifs(agent, map, NULL));
    PUT(gen_notif(agent, "b", "x", 1, NULL));
    PUT(agent_make_connection(agent, "b", NULL));
    PUT(invalidate_remote_md(agent, "b"));
    put_number("outputs", data != NULL || len != 0);
    MUST(create_params(&params));
    PUT(create_backend(agent, "NONE", params, &backend));
    put_number("outputs", backend != NULL);
    PUT(create_backend(agent, "UCX", params, &backend));
    PUT(destroy_backend(backend));
    PUT(create_backend(agent, "UCX", params, &backend));
    MUST(destroy_params(params));
    PUT(register_mem(agent, memory, NULL));
    PUT(get_local_md(agent, &data, &len));
    free(data);
    /* The handle of a backend of another agent. */
    MUST(create_opt_args(&options));
    MUST(opt_args_add_backend(options, ucx_b));
    OURS(register_mem(agent, memory, options), -1);
    OURS(get_backend_params(agent, ucx_b, &mems, &params), -1);
    MUST(destroy_opt_args(options));
    PUT(destroy_agent(agent));
    MUST(destroy_reg_dlist(memory));
    MUST(destroy_xfer_dlist(rows));
    MUST(opt_args_add_backend(none, ucx_a));
    MUST(destroy_opt_args(none));
    MUST(create_opt_args(&none));
}

static void
agents_of_one_name(void)
{
    nixl_capi_agent_t one = NULL, two = NULL;
    const nixl_capi_agent_config_t odd = {
        .enable_prog_thread = true,
        .thread_sync = (nixl_capi_thread_sync_t)99,
        .num_workers = UINT32_MAX,
        .pthr_delay_us = 100000,
    };

    PUT(create_configured_agent("one", &odd, &one));
    PUT(create_agent("one", &two));
    put_number("different", one != two);
    PUT(destroy_agent(two));
    PUT(destroy_agent(one));
}

/* -- Memory and metadata ----------------------------------------------------
 */

static void
registration(void)
{
    unsigned char *one = aligned_alloc(ROW, SIZE);
    unsigned char *two = aligned_alloc(ROW, SIZE);
    nixl_capi_reg_dlist_t list = reg_list(one, SIZE), part, empty = NULL;
    nixl_capi_reg_dlist_t other = NULL, both = NULL, odd = NULL;

    part = reg_list(one, ROW);
    MUST(register_mem(a, list, NULL));
    MUST(create_reg_dlist(NIXL_CAPI_MEM_DRAM, &empty));
    PUT(register_mem(a, list, NULL));
    PUT(register_mem(a, list, none));
    PUT(register_mem(a, list, by_a));
    PUT(deregister_mem(a, part, NULL));
    PUT(deregister_mem(a, list, NULL));
    PUT(deregister_mem(a, list, none));
    PUT(deregister_mem(a, list, by_a));
    PUT(deregister_mem(a, part, NULL));
    PUT(register_mem(a, part, NULL));
    PUT(deregister_mem(a, part, NULL));
    PUT(register_mem(a, empty, NULL));
    PUT(deregister_mem(a, empty, NULL));
    /* All or nothing. */
    MUST(create_reg_dlist(NIXL_CAPI_MEM_DRAM, &both));
    MUST(reg_dlist_add_desc(both, (uintptr_t)one, SIZE, 0, NULL, 0));
    MUST(reg_dlist_add_desc(both, (uintptr_t)two, SIZE, 0, NULL, 0));
    other = reg_list(two, SIZE);
    PUT(deregister_mem(a, both, NULL));
    PUT(register_mem(a, other, NULL));
    PUT(deregister_mem(a, both, NULL));
    MUST(create_reg_dlist((nixl_capi_mem_type_t)77, &odd));
    MUST(reg_dlist_add_desc(odd, (uintptr_t)one, SIZE, 0, NULL, 0));
    OURS(register_mem(a, odd, NULL), -1);
    OURS(deregister_mem(a, odd, NULL), -1);
    MUST(destroy_reg_dlist(odd));
    odd = reg_list(two, 0);
    DIFFER(register_mem(a, odd, NULL), 0, -1);
    DIFFER(deregister_mem(a, odd, NULL), 0, -6);
    MUST(destroy_reg_dlist(odd));
    odd = reg_list((void *)UINTPTR_MAX, 2);
    DIFFER(register_mem(a, odd, NULL), -2, -1);
    MUST(destroy_reg_dlist(odd));
    odd = NULL;
    MUST(create_reg_dlist(NIXL_CAPI_MEM_FILE, &odd));
    MUST(reg_dlist_add_desc(odd, 0, SIZE, 0, NULL, 0));
    PUT(register_mem(a, odd, NULL));
    PUT(register_mem(a, odd, by_a));
    PUT(deregister_mem(a, odd, NULL));
    MUST(destroy_reg_dlist(odd));
    MUST(destroy_reg_dlist(both));
    MUST(destroy_reg_dlist(other));
    MUST(destroy_reg_dlist(empty));
    MUST(destroy_reg_dlist(part));
    MUST(destroy_reg_dlist(list));
    free(one);
    free(two);
}

static void
metadata(void)
{
    nixl_capi_agent_t c = make_agent("c", false);
    nixl_capi_agent_t bare = make_agent("bare", false);
    nixl_capi_agent_t d = make_agent("d", false);
    nixl_capi_backend_t ucx_c = make_backend(c), ucx_d = make_backend(d);
    nixl_capi_reg_dlist_t memory = reg_list(at_b, SIZE), empty = NULL;
    nixl_capi_reg_dlist_t unknown = reg_list(at_a, ROW);
    nixl_capi_xfer_dlist_t rows = xfer_list(at_b, 2, ROW);
    nixl_capi_xfer_dlist_t others = xfer_list(at_a, 2, ROW);
    nixl_capi_xfer_dlist_t odd = NULL;
    char *name = NULL;
    void *data = NULL, *partial = NULL;
    size_t len = 0, partial_len = 0;

    MUST(register_mem(c, memory, NULL));
    PUT(get_local_md(c, &data, &len));
    PUT(load_remote_md(c, data, len, &name));
    PUT(load_remote_md(bare, data, len, &name));
    PUT(load_remote_md(a, "garbage", 7, &name));
    DIFFER(load_remote_md(d, data, len - 1, &name), -6, -2);
    put_number("outputs", name != NULL);
    PUT(check_remote_md(a, "c", NULL));
    PUT(load_remote_md(a, data, len, &name));
    put_text("name", name);
    free(name);
    PUT(load_remote_md(a, data, len, &name));
    free(name);
    PUT(check_remote_md(a, "c", NULL));
    PUT(check_remote_md(a, "c", rows));
    PUT(check_remote_md(a, "c", others));
    PUT(check_remote_md(a, "", NULL));
    PUT(check_remote_md(a, "a", NULL));
    DIFFER(check_remote_md(a, "a", others), -6, 0);
    PUT(check_remote_md(a, "a", rows));
    MUST(create_xfer_dlist((nixl_capi_mem_type_t)77, &odd));
    OURS(check_remote_md(a, "c", odd), -1);
    MUST(destroy_xfer_dlist(odd));
    PUT(agent_make_connection(a, "c", NULL));
    PUT(agent_make_connection(a, "c", none));
    PUT(agent_make_connection(a, "c", by_a));
    PUT(agent_make_connection(a, "nobody", NULL));
    PUT(agent_make_connection(a, "", NULL));
    PUT(invalidate_remote_md(a, "c"));
    PUT(invalidate_remote_md(a, "c"));
    PUT(invalidate_remote_md(a, "nobody"));
    PUT(invalidate_remote_md(a, ""));
    PUT(invalidate_remote_md(a, "a"));
    PUT(check_remote_md(a, "c", NULL));
    free(data);

    MUST(create_reg_dlist(NIXL_CAPI_MEM_DRAM, &empty));
    PUT(get_local_partial_md(c, empty, &partial, &partial_len, NULL));
    PUT(load_remote_md(a, partial, partial_len, &name));
    free(name);
    free(partial);
    PUT(check_remote_md(a, "c", NULL));
    PUT(check_remote_md(a, "c", rows));
    PUT(get_local_partial_md(c, memory, &partial, &partial_len, none));
    PUT(load_remote_md(a, partial, partial_len, &name));
    free(name);
    free(partial);
    PUT(check_remote_md(a, "c", rows));
    partial = NULL;
    PUT(get_local_partial_md(c, unknown, &partial, &partial_len, NULL));
    put_number("outputs", partial != NULL);
    PUT(invalidate_remote_md(a, "c"));
    MUST(destroy_reg_dlist(empty));
    MUST(destroy_reg_dlist(unknown));
    MUST(destroy_reg_dlist(memory));
    MUST(destroy_xfer_dlist(rows));
    MUST(destroy_xfer_dlist(others));
    MUST(destroy_backend(ucx_c));
    MUST(destroy_backend(ucx_d));
    MUST(destroy_agent(c));
    MUST(destroy_agent(d));
    MUST(destroy_agent(bare));
}

/* A port at which nobody listens. */
static int
free_port(void)
{
    struct sockaddr_in at = {.sin_family = AF_INET,
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at) != 0 ||
        getsockname(fd, (struct sockaddr *)&at, &size) != 0) {
        exit(1);
    }
    close(fd);
    return ntohs(at.sin_port);
}

static int
appears(nixl_capi_agent_t by, const char *name, int wanted)
{
    int status = 1;

    for (int i = 0; status != wanted && i < WAIT_S * 100; i++) {
        status = capi.check_remote_md(by, name, NULL);
        for (int k = 0; k < 10; k++) {
            pause_shortly();
        }
    }
    return status;
}

static void
listeners(void)
{
    int port = free_port();
    nixl_capi_agent_config_t config = {
        .enable_prog_thread = true,
        .enable_listen_thread = true,
        .listen_port = port,
        .pthr_delay_us = 100000,
        .lthr_delay_us = 10000,
    };
    nixl_capi_agent_t there = NULL, twice = NULL, here = NULL;
    nixl_capi_backend_t ucx_there, ucx_here;
    nixl_capi_opt_args_t nowhere = NULL, at = NULL;
    nixl_capi_reg_dlist_t memory = reg_list(at_b, SIZE);
    nixl_capi_agent_t bare = make_agent("bare", false);

    MUST(create_opt_args(&nowhere));
    MUST(opt_args_set_ip_addr(nowhere, "127.0.0.1"));
    MUST(opt_args_set_port(nowhere, (uint16_t)free_port()));
    PUT(send_local_md(a, NULL));
    PUT(send_local_md(a, none));
    PUT(send_local_md(a, nowhere));
    MUST(opt_args_set_port(nowhere, 0));
    PUT(send_local_md(a, nowhere));
    MUST(opt_args_set_port(nowhere, (uint16_t)free_port()));
    MUST(opt_args_set_ip_addr(nowhere, "not an address"));
    PUT(send_local_md(a, nowhere));
    MUST(opt_args_set_ip_addr(nowhere, ""));
    PUT(send_local_md(a, nowhere));
    MUST(opt_args_set_ip_addr(nowhere, "127.0.0.1"));
    PUT(send_local_md(bare, nowhere));
    PUT(send_local_partial_md(bare, memory_a, nowhere));
    PUT(fetch_remote_md(bare, "there", nowhere));
    PUT(invalidate_local_md(bare, nowhere));
    PUT(fetch_remote_md(a, "", nowhere));
    PUT(send_local_partial_md(a, memory_b, nowhere));
    PUT(send_local_partial_md(a, memory_a, NULL));
    PUT(send_local_partial_md(a, memory_a, none));
    PUT(send_local_partial_md(a, memory_a, nowhere));
    PUT(fetch_remote_md(a, "there", NULL));
    PUT(fetch_remote_md(a, "there", none));
    PUT(fetch_remote_md(a, "there", nowhere));
    PUT(invalidate_local_md(a, NULL));
    PUT(invalidate_local_md(a, none));
    PUT(invalidate_local_md(a, nowhere));
    MUST(destroy_opt_args(nowhere));
    MUST(destroy_agent(bare));

    PUT(create_configured_agent("there", &config, &there));
    PUT(create_configured_agent("twice", &config, &twice));
    put_number("outputs", twice != NULL);
    ucx_there = make_backend(there);
    MUST(register_mem(there, memory, NULL));
    config.listen_port = free_port();
    MUST(create_configured_agent("here", &config, &here));
    ucx_here = make_backend(here);
    MUST(create_opt_args(&at));
    MUST(opt_args_set_ip_addr(at, "127.0.0.1"));
    MUST(opt_args_set_port(at, (uint16_t)port));
    PUT(fetch_remote_md(here, "there", at));
    put("there appears here", appears(here, "there", 0));
    PUT(send_local_md(here, at));
    put("here appears there", appears(there, "here", 0));
    PUT(invalidate_local_md(here, at));
    put("here disappears there",
        appears(there, "here", NIXL_CAPI_ERROR_NOT_FOUND));
    MUST(destroy_backend(ucx_here));
    MUST(destroy_backend(ucx_there));
    MUST(destroy_agent(here));
    MUST(destroy_agent(there));
    MUST(destroy_opt_args(at));
    MUST(destroy_reg_dlist(memory));
}

static void
queries(void)
{
    nixl_capi_query_resp_list_t answers = NULL;
    nixl_capi_params_t params = NULL;
    size_t size = 7;
    bool flag = true;

    MUST(create_query_resp_list(&answers));
    PUT(query_resp_list_size(answers, &size));
    put_number("size", size);
    PUT(query_resp_list_has_value(answers, 0, &flag));
    PUT(query_resp_list_get_params(answers, 0, &params));
    PUT(query_mem(a, memory_a, answers, NULL));
    PUT(query_mem(a, memory_a, answers, none));
    PUT(query_mem(a, memory_a, answers, by_a));
    PUT(query_resp_list_size(answers, &size));
    put_number("size", size);
    PUT(destroy_query_resp_list(answers));
}

/* -- Transfers --------------------------------------------------------------
 */

static void
preparing(void)
{
    nixl_capi_xfer_dlist_t rows = xfer_list(at_a, 2, ROW), odd = NULL;
    nixl_capi_xfer_dlist_t outside = xfer_list(at_a + SIZE - ROW, 2, ROW);
    nixl_capi_xfer_dlist_t empty = xfer_list(at_a, 0, ROW);
    nixl_capi_xfer_dlist_handle_t handle = NULL;

    PUT(prep_xfer_dlist(a, "", rows, &handle, NULL));
    PUT(release_xfer_dlist_handle(a, handle));
    OURS(release_xfer_dlist_handle(a, handle), -1);
    PUT(prep_xfer_dlist(a, "", rows, &handle, by_a));
    PUT(release_xfer_dlist_handle(a, handle));
    PUT(prep_xfer_dlist(a, "a", rows, &handle, none));
    PUT(release_xfer_dlist_handle(a, handle));
    handle = NULL;
    PUT(prep_xfer_dlist(a, "nobody", rows, &handle, NULL));
    PUT(prep_xfer_dlist(a, "b", rows, &handle, NULL));
    PUT(prep_xfer_dlist(a, "", outside, &handle, NULL));
    PUT(prep_xfer_dlist(a, "", empty, &handle, NULL));
    PUT(prep_xfer_dlist(a, "b", empty, &handle, NULL));
    MUST(create_xfer_dlist((nixl_capi_mem_type_t)77, &odd));
    MUST(xfer_dlist_add_desc(odd, (uintptr_t)at_a, ROW, 0));
    OURS(prep_xfer_dlist(a, "", odd, &handle, NULL), -1);
    MUST(destroy_xfer_dlist(odd));
    MUST(create_xfer_dlist(NIXL_CAPI_MEM_FILE, &odd));
    MUST(xfer_dlist_add_desc(odd, 0, ROW, 0));
    PUT(prep_xfer_dlist(a, "", odd, &handle, NULL));
    PUT(prep_xfer_dlist(a, "b", odd, &handle, NULL));
    MUST(destroy_xfer_dlist(odd));
    put_number("outputs", handle != NULL);
    MUST(destroy_xfer_dlist(empty));
    MUST(destroy_xfer_dlist(outside));
    MUST(destroy_xfer_dlist(rows));
}

static void
making(void)
{
    const int good[] = {0, 1}, bad[] = {0, ROWS}, below[] = {0, -1};
    nixl_capi_xfer_dlist_t two = xfer_list(at_a, 2, ROW);
    nixl_capi_xfer_dlist_t there = xfer_list(at_b, 2, ROW);
    nixl_capi_xfer_dlist_t one = xfer_list(at_b, 1, ROW);
    nixl_capi_xfer_dlist_t half = xfer_list(at_b, 2, ROW / 2);
    nixl_capi_xfer_dlist_t empty = xfer_list(at_b, 0, ROW);
    nixl_capi_xfer_dlist_handle_t own = prepare("a", at_a), halves = NULL;
    nixl_capi_xfer_req_t request = NULL;

    MUST(prep_xfer_dlist(a, "b", half, &halves, NULL));
    PUT(make_xfer_req(a, 0, local, good, 2, remote, good, 1, &request, NULL));
    PUT(make_xfer_req(a, 0, local, good, 0, remote, good, 0, &request, NULL));
    PUT(make_xfer_req(a, 0, local, bad, 2, remote, good, 2, &request, NULL));
    PUT(make_xfer_req(a, 0, local, good, 2, remote, bad, 2, &request, NULL));
    PUT(make_xfer_req(a, 0, local, below, 2, remote, good, 2, &request, NULL));
    PUT(make_xfer_req(a, 0, local, good, 2, halves, good, 2, &request, NULL));
    PUT(make_xfer_req(a, 0, remote, good, 2, remote, good, 2, &request, NULL));
    PUT(make_xfer_req(a, 0, local, good, 2, local, good, 2, &request, NULL));
    PUT(make_xfer_req(a, 0, remote, good, 2, local, good, 2, &request, NULL));
    put_number("outputs", request != NULL);
    PUT(make_xfer_req(a, 0, own, good, 2, remote, good, 2, &request, NULL));
    if (request != NULL) {
        drop(request);
        request = NULL;
    }
    PUT(make_xfer_req(a, 0, local, good, 2, own, good, 2, &request, NULL));
    if (request != NULL) {
        drop(request);
        request = NULL;
    }
    DIFFER(
        make_xfer_req(a, 7, local, good, 2, remote, good, 2, &request, NULL),
        0, -1);
    if (request != NULL) {
        drop(request);
        request = NULL;
    }
    PUT(make_xfer_req(a, 1, local, good, 2, remote, good, 2, &request, by_a));
    drop(request);
    request = NULL;
    PUT(create_xfer_req(a, 0, two, there, "nobody", &request, NULL));
    PUT(create_xfer_req(a, 0, two, one, "b", &request, NULL));
    PUT(create_xfer_req(a, 0, two, half, "b", &request, NULL));
    PUT(create_xfer_req(a, 0, two, two, "b", &request, NULL));
    PUT(create_xfer_req(a, 0, there, there, "b", &request, NULL));
    PUT(create_xfer_req(a, 0, empty, empty, "b", &request, NULL));
    put_number("outputs", request != NULL);
    PUT(create_xfer_req(a, 0, two, two, "a", &request, NULL));
    if (request != NULL) {
        drop(request);
        request = NULL;
    }
    PUT(create_xfer_req(a, 0, two, two, "", &request, NULL));
    if (request != NULL) {
        drop(request);
        request = NULL;
    }
    PUT(create_xfer_req(a, 0, two, there, "b", &request, by_a));
    drop(request);
    MUST(release_xfer_dlist_handle(a, own));
    MUST(release_xfer_dlist_handle(a, halves));
    MUST(destroy_xfer_dlist(empty));
    MUST(destroy_xfer_dlist(half));
    MUST(destroy_xfer_dlist(one));
    MUST(destroy_xfer_dlist(there));
    MUST(destroy_xfer_dlist(two));
}

static void
posting(void)
{
    nixl_capi_xfer_req_t request = make_request(NULL);
    struct nixl_capi_xfer_telemetry_s figures = {0};
    nixl_capi_backend_t backend = NULL;
    nixl_capi_cost_t method = (nixl_capi_cost_t)7;
    int64_t duration = -7, margin = -7;
    struct timespec now;

    memset(at_a, 1, SIZE);
    PUT(get_xfer_status(a, request));
    PUT(get_xfer_telemetry(a, request, &figures));
    put_number("outputs", figures.total_bytes);
    PUT(query_xfer_backend(a, request, &backend));
    put_number("another", backend != ucx_a);
    PUT(destroy_backend(backend));
    put_number("estimated",
               capi.estimate_xfer_cost(a, request, NULL, &duration, &margin,
                                       &method) <= 0);
    put_number("written", duration != -7 && margin != -7);
    put_number("method", (unsigned)method);
    PUT(destroy_xfer_req(request));
    put_number("posted", capi.post_xfer_req(a, request, NULL) >= 0);
    put("finished", finish(request));
    put_number("moved", at_a[3 * ROW] == 2 && at_a[4 * ROW - 1] == 2 &&
                            at_a[3 * ROW - 1] == 1 && at_a[4 * ROW] == 1);
    PUT(get_xfer_status(a, request));
    PUT(get_xfer_status(b, request));
    PUT(get_xfer_telemetry(a, request, &figures));
    clock_gettime(CLOCK_MONOTONIC, &now);
    put_number("bytes", figures.total_bytes);
    put_number("descriptors", figures.desc_count);
    put_number(
        "steady clock",
        figures.start_time_us <= (uint64_t)now.tv_sec * 1000000 + 1000000 &&
            figures.start_time_us + 60000000 > (uint64_t)now.tv_sec * 1000000);
    put_number("posted again", capi.post_xfer_req(a, request, NULL) >= 0);
    put("finished", finish(request));
    PUT(release_xfer_req(a, request));
    PUT(release_xfer_req(a, request));
    OURS(get_xfer_status(a, request), -1);
    OURS(post_xfer_req(a, request, NULL), -1);
    OURS(get_xfer_telemetry(a, request, &figures), -1);
    OURS(query_xfer_backend(a, request, &backend), -1);
    OURS(estimate_xfer_cost(a, request, NULL, &duration, &margin, &method),
         -1);
    PUT(destroy_xfer_req(request));
    OURS(destroy_xfer_req(request), -1);
}

static void
telemetry_off(void)
{
    nixl_capi_agent_t plain = make_agent("plain", false);
    nixl_capi_backend_t ucx = make_backend(plain);
    nixl_capi_reg_dlist_t memory = reg_list(at_a, SIZE);
    nixl_capi_xfer_dlist_t here = xfer_list(at_a, 1, ROW);
    nixl_capi_xfer_dlist_t there = xfer_list(at_b, 1, ROW);
    nixl_capi_xfer_req_t request = NULL;
    struct nixl_capi_xfer_telemetry_s figures = {0};

    MUST(register_mem(plain, memory, NULL));
    load(plain, b);
    MUST(create_xfer_req(plain, NIXL_CAPI_XFER_OP_READ, here, there, "b",
                         &request, NULL));
    PUT(get_xfer_telemetry(plain, request, &figures));
    MUST(post_xfer_req(plain, request, NULL));
    for (int i = 0;
         capi.get_xfer_status(plain, request) == 1 && i < WAIT_S * 1000; i++) {
        pause_shortly();
    }
    PUT(get_xfer_telemetry(plain, request, &figures));
    put_number("outputs", figures.total_bytes);
    MUST(release_xfer_req(plain, request));
    MUST(destroy_xfer_req(request));
    MUST(destroy_xfer_dlist(here));
    MUST(destroy_xfer_dlist(there));
    MUST(destroy_reg_dlist(memory));
    MUST(destroy_backend(ucx));
    MUST(destroy_agent(plain));
}

/* -- Notifications ----------------------------------------------------------
 */

static void
put_message(const char *sender, size_t index)
{
    const void *data = NULL;
    size_t len = 7;

    PUT(notif_map_get_notif(map, sender, index, &data, &len));
    put_number("length", len);
    for (size_t i = 0; data != NULL && i < len && i < 8; i++) {
        put_number("byte", ((const unsigned char *)data)[i]);
    }
}

static void
notifs(void)
{
    const char *name = NULL;
    const void *data = NULL;
    size_t size = 7, len = 7;

    PUT(gen_notif(a, "nobody", "x", 1, NULL));
    PUT(gen_notif(a, "", "x", 1, NULL));
    PUT(gen_notif(a, "b", "a\0b", 3, NULL));
    PUT(gen_notif(a, "b", "", 0, NULL));
    PUT(gen_notif(a, "b", NULL, 0, none));
    PUT(gen_notif(a, "b", "x", 1, by_a));
    put_number("received", receive(b, "a", 4));
    PUT(notif_map_size(map, &size));
    put_number("senders", size);
    PUT(notif_map_get_agent_at(map, 0, &name));
    put_text("sender", name);
    PUT(notif_map_get_agent_at(map, 1, &name));
    PUT(notif_map_get_notifs_size(map, "a", &size));
    put_number("messages", size);
    for (size_t i = 0; i < 4; i++) {
        put_message("a", i);
    }
    PUT(notif_map_get_notif(map, "a", 4, &data, &len));
    PUT(notif_map_get_notif(map, "a", SIZE_MAX, &data, &len));
    PUT(notif_map_get_notifs_size(map, "nobody", &size));
    PUT(notif_map_get_notif(map, "nobody", 0, &data, &len));
    /* They add up. */
    PUT(gen_notif(a, "b", "y", 1, NULL));
    put_number("received", receive(b, "a", 5));
    PUT(notif_map_clear(map));
    PUT(notif_map_size(map, &size));
    put_number("senders", size);
    PUT(get_notifs(b, map, none));
    PUT(get_notifs(b, map, NULL));
    PUT(notif_map_size(map, &size));
    put_number("senders", size);
    /* To itself. */
    PUT(gen_notif(a, "a", "self", 4, NULL));
    put_number("received", receive(a, "a", 1));
    PUT(notif_map_clear(map));
}

/* Post with `options`, and print the notifications that `b` gets. */
static void
post_and_receive(const char *what, nixl_capi_xfer_req_t request,
                 nixl_capi_opt_args_t options, size_t wanted)
{
    printf("%s\n", what);
    put_number("posted", capi.post_xfer_req(a, request, options) >= 0);
    put("finished", finish(request));
    /* In order: what is sent after it arrives after it. */
    MUST(gen_notif(a, "b", "end", 3, NULL));
    put_number("received", receive(b, "a", wanted + 1) - 1);
    for (size_t i = 0; i < wanted; i++) {
        put_message("a", i);
    }
    MUST(notif_map_clear(map));
}

static void
transfer_notifs(void)
{
    nixl_capi_opt_args_t loud = NULL, quiet = NULL, empty = NULL;
    nixl_capi_xfer_req_t request;

    MUST(create_opt_args(&loud));
    MUST(opt_args_set_has_notif(loud, true));
    MUST(opt_args_set_notif_msg(loud, "a\0b", 3));
    MUST(create_opt_args(&quiet));
    MUST(opt_args_set_notif_msg(quiet, "not sent", 8));
    MUST(create_opt_args(&empty));
    MUST(opt_args_set_has_notif(empty, true));

    request = make_request(quiet);
    post_and_receive("without the flag", request, NULL, 0);
    post_and_receive("with it when posted", request, loud, 1);
    post_and_receive("kept", request, NULL, 1);
    post_and_receive("the flag alone", request, empty, 1);
    post_and_receive("cleared", request, none, 0);
    post_and_receive("still cleared", request, NULL, 0);
    drop(request);
    request = make_request(loud);
    post_and_receive("from the beginning", request, NULL, 1);
    post_and_receive("message without flag when posted", request, quiet, 0);
    drop(request);
    request = make_request(empty);
    post_and_receive("empty from the beginning", request, NULL, 1);
    drop(request);
    MUST(destroy_opt_args(loud));
    MUST(destroy_opt_args(quiet));
    MUST(destroy_opt_args(empty));
}

/* -- Memory views -----------------------------------------------------------
 */

static void
mem_views(void)
{
    nixl_capi_xfer_dlist_t rows = xfer_list(at_a, 1, ROW);
    nixl_capi_xfer_dlist_t vram = NULL;
    nixl_capi_remote_dlist_t there = NULL;
    nixl_capi_mem_view_t view = NULL;

    MUST(create_xfer_dlist(NIXL_CAPI_MEM_VRAM, &vram));
    MUST(create_remote_dlist(NIXL_CAPI_MEM_DRAM, &there));
    PUT(prep_mem_view_remote(a, there, NULL, NULL));
    PUT(prep_mem_view_local(a, rows, &view, NULL));
    PUT(prep_mem_view_local(a, rows, &view, by_a));
    DIFFER(prep_mem_view_local(a, vram, &view, NULL), -6, -2);
    DIFFER(prep_mem_view_remote(a, there, &view, NULL), -6, -2);
    MUST(remote_dlist_add_desc(there, (uintptr_t)at_b, ROW, 0, "nobody"));
    DIFFER(prep_mem_view_remote(a, there, &view, NULL), -6, -2);
    put_number("outputs", view != NULL);
    MUST(destroy_xfer_dlist(rows));
    MUST(destroy_xfer_dlist(vram));
    MUST(destroy_remote_dlist(there));
}

/* -- The end ----------------------------------------------------------------
 */

/* An agent goes while it has everything. */
static void
ending(void)
{
    nixl_capi_agent_t agent = make_agent("ending", false);
    nixl_capi_backend_t ucx = make_backend(agent);
    nixl_capi_reg_dlist_t memory = reg_list(at_a, SIZE);
    nixl_capi_xfer_dlist_t here = xfer_list(at_a, ROWS, ROW);
    nixl_capi_xfer_dlist_t there = xfer_list(at_b, ROWS, ROW);
    nixl_capi_xfer_dlist_handle_t list = NULL;
    nixl_capi_xfer_req_t request = NULL;

    MUST(register_mem(agent, memory, NULL));
    load(agent, b);
    MUST(create_xfer_req(agent, NIXL_CAPI_XFER_OP_READ, here, there, "b",
                         &request, NULL));
    MUST(prep_xfer_dlist(agent, "b", there, &list, NULL));
    put_number("posted", capi.post_xfer_req(agent, request, NULL) >= 0);
    PUT(destroy_agent(agent));
    OURS(destroy_agent(agent), -1);
    OURS(post_xfer_req(agent, request, NULL), -1);
    OURS(register_mem(agent, memory, NULL), -1);
    OURS(release_xfer_dlist_handle(agent, list), 0);
    OURS(destroy_xfer_req(request), 0);
    PUT(destroy_backend(ucx));
    MUST(destroy_reg_dlist(memory));
    MUST(destroy_xfer_dlist(here));
    MUST(destroy_xfer_dlist(there));
}

int
main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } parts[] = {
        {"NULL: agents", null_agents},
        {"NULL: backends", null_backends},
        {"NULL: options", null_options},
        {"NULL: lists", null_lists},
        {"NULL: transfers", null_transfers},
        {"NULL: notifications and queries", null_notifs_and_queries},
        {"parameters", params_values},
        {"options", options_values},
        {"lists to transfer", xfer_list_values},
        {"lists to register", reg_list_values},
        {"memory types", mem_names},
        {"plugins", plugins},
        {"backends", backends},
        {"agents of one name", agents_of_one_name},
        {"registration", registration},
        {"metadata", metadata},
        {"listeners", listeners},
        {"queries", queries},
        {"preparing", preparing},
        {"making", making},
        {"posting", posting},
        {"telemetry off", telemetry_off},
        {"notifications", notifs},
        {"notifications of transfers", transfer_notifs},
        {"memory views", mem_views},
        {"ending", ending},
    };

    setenv("UCX_LOG_LEVEL", "fatal", 1); /* it logs to stdout */
    setenv("NIXL_LOG_LEVEL", "FATAL", 1);
    setenv("VLLM_NIXL_LOG_LEVEL", "CRITICAL", 1);
    if (argc < 2 || !nixl_capi_load(argv[1], &capi)) {
        fprintf(stderr, "usage: capi_trace LIBRARY [stock]\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0); /* it may crash */
    is_stock = argc > 2 && strcmp(argv[2], "stock") == 0;
    open_scene();
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        printf("\n-- %s\n", parts[i].name);
        fflush(stdout);
        parts[i].run();
    }
    close_scene();
    return failures != 0;
}
