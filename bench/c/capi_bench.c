/*
 * Measures the calls of NIXL's C interface, beside NIXL's library if
 * VLLM_NIXL_STOCK_LIBRARY names it.  The libraries take turns, each in a
 * process of its own:
 *
 *     meson test -C build --benchmark capi_bench
 *
 * By default, the progress threads of NIXL's agents spin and compete with the
 * calls.  The first row has such agents; it is the mean of all rounds, because
 * the competition is part of what a client sees.  In the other rows these
 * threads sleep; a figure there is the best of all rounds.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "nixl_capi_table.h"

#define ROW 4096u
#define ROWS 1024u
#define TURNS 5
#define ROUNDS 10

static nixl_capi_table_t capi;
static bool with_defaults; /* agents of the default configuration */

#define MUST(call)                                            \
    do {                                                      \
        int must_ = (int)capi.call;                           \
        if (must_ < 0) {                                      \
            fprintf(stderr, "%s: status %d\n", #call, must_); \
            exit(1);                                          \
        }                                                     \
    } while (0)

/* -- A scene ----------------------------------------------------------------
 */

static nixl_capi_agent_t a, b;
static nixl_capi_backend_t ucx_a, ucx_b;
static unsigned char *at_a, *at_b;
static nixl_capi_reg_dlist_t memory;
static nixl_capi_xfer_dlist_t rows, filled;
static nixl_capi_xfer_dlist_handle_t local, remote;
static nixl_capi_notif_map_t map;
static nixl_capi_params_t params;
static nixl_capi_xfer_req_t done;
static void *metadata;
static size_t metadata_len;

static nixl_capi_agent_t
make_agent(const char *name, unsigned char *at, nixl_capi_backend_t *ucx)
{
    const nixl_capi_agent_config_t config = {.enable_prog_thread = true,
                                             .pthr_delay_us = 100000,
                                             .capture_telemetry = true};
    nixl_capi_agent_t agent = NULL;
    nixl_capi_reg_dlist_t region = NULL;

    if (with_defaults) {
        MUST(create_agent(name, &agent));
    } else {
        MUST(create_configured_agent(name, &config, &agent));
    }
    MUST(create_backend(agent, "UCX", params, ucx));
    MUST(create_reg_dlist(NIXL_CAPI_MEM_DRAM, &region));
    MUST(reg_dlist_add_desc(region, (uintptr_t)at, ROWS * ROW, 0, NULL, 0));
    MUST(register_mem(agent, region, NULL));
    MUST(destroy_reg_dlist(region));
    return agent;
}

static void
fill_list(nixl_capi_xfer_dlist_t list, const unsigned char *at)
{
    for (size_t i = 0; i < ROWS; i++) {
        MUST(xfer_dlist_add_desc(list, (uintptr_t)at + i * ROW, ROW, 0));
    }
}

static void
load(nixl_capi_agent_t by)
{
    char *name = NULL;

    MUST(load_remote_md(by, metadata, metadata_len, &name));
    free(name);
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
post_and_wait(nixl_capi_xfer_req_t request)
{
    int status = (int)capi.post_xfer_req(a, request, NULL);

    while (status == NIXL_CAPI_IN_PROG) {
        status = (int)capi.get_xfer_status(a, request);
    }
    if (status < 0) {
        fprintf(stderr, "a transfer failed: %d\n", status);
        exit(1);
    }
}

static void
drop(nixl_capi_xfer_req_t request)
{
    MUST(release_xfer_req(a, request));
    MUST(destroy_xfer_req(request));
}

static void
open_scene(void)
{
    at_a = aligned_alloc(ROW, ROWS * ROW);
    at_b = aligned_alloc(ROW, ROWS * ROW);
    if (at_a == NULL || at_b == NULL) {
        exit(1);
    }
    memset(at_a, 1, ROWS * ROW);
    memset(at_b, 2, ROWS * ROW);
    MUST(create_params(&params));
    a = make_agent("a", at_a, &ucx_a);
    b = make_agent("b", at_b, &ucx_b);
    MUST(get_local_md(b, &metadata, &metadata_len));
    load(a);
    MUST(create_xfer_dlist(NIXL_CAPI_MEM_DRAM, &rows));
    MUST(create_xfer_dlist(NIXL_CAPI_MEM_DRAM, &filled));
    fill_list(filled, at_a);
    MUST(prep_xfer_dlist(a, "", filled, &local, NULL));
    MUST(xfer_dlist_clear(filled));
    fill_list(filled, at_b);
    MUST(prep_xfer_dlist(a, "b", filled, &remote, NULL));
    MUST(create_notif_map(&map));
    MUST(create_reg_dlist(NIXL_CAPI_MEM_DRAM, &memory));
    MUST(reg_dlist_add_desc(memory, (uintptr_t)at_b, ROW, 0, NULL, 0));
    done = make_request(NULL);
    post_and_wait(done);
}

/* -- What is measured -------------------------------------------------------
 */

static void
whole_transfer(void)
{
    nixl_capi_xfer_req_t request = make_request(NULL);

    post_and_wait(request);
    drop(request);
}

static void
transfer_with_options(void)
{
    nixl_capi_opt_args_t options = NULL;

    MUST(create_opt_args(&options));
    MUST(opt_args_add_backend(options, ucx_a));
    nixl_capi_xfer_req_t request = make_request(options);
    MUST(destroy_opt_args(options));
    post_and_wait(request);
    drop(request);
}

static void
made_and_released(void)
{
    drop(make_request(NULL));
}

static void
post_again(void)
{
    post_and_wait(done);
}

static void
status(void)
{
    MUST(get_xfer_status(a, done));
}

static void
telemetry(void)
{
    struct nixl_capi_xfer_telemetry_s figures;
    MUST(get_xfer_telemetry(a, done, &figures));
}

static void
query_backend(void)
{
    nixl_capi_backend_t backend = NULL;

    MUST(query_xfer_backend(a, done, &backend));
    MUST(destroy_backend(backend));
}

static void
no_notifs(void)
{
    MUST(get_notifs(b, map, NULL));
}

static void
options(void)
{
    nixl_capi_opt_args_t args = NULL;

    MUST(create_opt_args(&args));
    MUST(destroy_opt_args(args));
}

static void
list_of_1024(void)
{
    fill_list(rows, at_a);
    MUST(xfer_dlist_clear(rows));
}

static void
list_length(void)
{
    size_t count;
    MUST(xfer_dlist_len(filled, &count));
}

static void
prepare_1024(void)
{
    nixl_capi_xfer_dlist_handle_t list = NULL;

    MUST(prep_xfer_dlist(a, "b", filled, &list, NULL));
    MUST(release_xfer_dlist_handle(a, list));
}

static void
parameters(void)
{
    nixl_capi_params_t made = NULL;

    MUST(create_params(&made));
    MUST(params_add(made, "num_workers", "1"));
    MUST(destroy_params(made));
}

static void
check_peer(void)
{
    MUST(check_remote_md(a, "b", NULL));
}

static void
get_metadata(void)
{
    void *data = NULL;
    size_t len;

    MUST(get_local_md(b, &data, &len));
    free(data);
}

static void
load_again(void)
{
    load(a);
}

static void
register_twice(void)
{
    MUST(register_mem(b, memory, NULL));
    MUST(deregister_mem(b, memory, NULL));
}

static const struct {
    const char *name;
    void (*run)(void);
    unsigned times;
    bool with_defaults;
} table[] = {
    {"agents of the default configuration: a transfer of 4 KiB",
     whole_transfer, 2000, true},
    {"a transfer of 4 KiB: made, posted, awaited, released", whole_transfer,
     2000, false},
    {"the same with optional arguments", transfer_with_options, 2000, false},
    {"a transfer made and released", made_and_released, 2000, false},
    {"posted again and awaited", post_again, 2000, false},
    {"get_xfer_status", status, 20000, false},
    {"get_xfer_telemetry", telemetry, 20000, false},
    {"query_xfer_backend, destroy_backend", query_backend, 20000, false},
    {"get_notifs, none there", no_notifs, 20000, false},
    {"create_opt_args, destroy_opt_args", options, 20000, false},
    {"a list of 1024 filled and cleared", list_of_1024, 200, false},
    {"xfer_dlist_len", list_length, 20000, false},
    {"prep_xfer_dlist of 1024, released", prepare_1024, 200, false},
    {"a set of one parameter", parameters, 20000, false},
    {"check_remote_md", check_peer, 20000, false},
    {"get_local_md", get_metadata, 500, false},
    {"load_remote_md, again", load_again, 200, false},
    {"register_mem, deregister_mem", register_twice, 500, false},
};
#define TABLE (sizeof table / sizeof *table)

/* -- Running ----------------------------------------------------------------
 */

/* The figures of one row, in nanoseconds per call. */
typedef struct figures {
    double best, sum;
    unsigned rounds;
} figures_t;

static void
add(figures_t *to, const figures_t *more)
{
    if (more->rounds > 0 && (to->rounds == 0 || more->best < to->best)) {
        to->best = more->best;
    }
    to->sum += more->sum;
    to->rounds += more->rounds;
}

static void
measure_all(figures_t figures[TABLE])
{
    for (size_t i = 0; i < TABLE; i++) {
        figures[i] = (figures_t){.rounds = 0};
        if (table[i].with_defaults != with_defaults) {
            continue;
        }
        for (int round = 0; round < ROUNDS; round++) {
            uint64_t begun = vnxi_clock_ns();
            for (unsigned k = 0; k < table[i].times; k++) {
                table[i].run();
            }
            double ns =
                (double)(vnxi_clock_ns() - begun) / (double)table[i].times;
            add(&figures[i], &(figures_t){ns, ns, 1});
        }
    }
}

/* Measure in a process of its own.  False: it failed. */
static bool
measure_apart(const char *library, figures_t sums[TABLE])
{
    figures_t figures[TABLE];
    int ends[2], state = -1;

    if (pipe(ends) != 0) {
        return false;
    }
    pid_t child = fork();
    if (child == 0) {
        if (!nixl_capi_load(library, &capi)) {
            _exit(1);
        }
        open_scene();
        measure_all(figures);
        ssize_t sent = write(ends[1], figures, sizeof figures);
        _exit(sent == (ssize_t)sizeof figures ? 0 : 1);
    }
    close(ends[1]);
    bool good = child > 0 && read(ends[0], figures, sizeof figures) ==
                                 (ssize_t)sizeof figures;
    close(ends[0]);
    if (child > 0) {
        waitpid(child, &state, 0);
    }
    for (size_t i = 0; good && i < TABLE; i++) {
        add(&sums[i], &figures[i]);
    }
    return good;
}

static bool
turn(const char *library, figures_t sums[TABLE])
{
    with_defaults = true;
    bool good = measure_apart(library, sums);
    with_defaults = false;
    return good && measure_apart(library, sums);
}

static double
shown(size_t row, const figures_t *sums)
{
    return table[row].with_defaults ? sums->sum / sums->rounds : sums->best;
}

int
main(int argc, char **argv)
{
    const char *stock = getenv("VLLM_NIXL_STOCK_LIBRARY");
    figures_t ours[TABLE] = {{.rounds = 0}}, theirs[TABLE] = {{.rounds = 0}};

    setenv("NIXL_LOG_LEVEL", "FATAL", 0);
    if (argc != 2) {
        fprintf(stderr, "usage: capi_bench LIBRARY\n");
        return 2;
    }
    for (int i = 0; i < TURNS; i++) {
        if (!turn(argv[1], ours) || (stock != NULL && !turn(stock, theirs))) {
            return 1;
        }
    }
    for (size_t i = 0; i < TABLE; i++) {
        double ns = shown(i, &ours[i]);
        printf("%-56s %9.1f ns", table[i].name, ns);
        if (stock != NULL) {
            double nixl_ns = shown(i, &theirs[i]);
            printf("   NIXL %9.1f ns   %5.1f times", nixl_ns, nixl_ns / ns);
        }
        putchar('\n');
    }
    return 0;
}
