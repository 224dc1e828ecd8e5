/*
 * Two agents' shares of UCX in this process, for tests.  Without a libucp the
 * program is skipped; VLLM_NIXL_UCX_LIBRARY names one.
 */
#ifndef UCX_PAIR_H
#define UCX_PAIR_H

#include "vnx_test.h"

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "engine/native/ucx/conn.h"
#include "engine/native/ucx/library.h"
#include "engine/native/ucx/memory.h"
#include "engine/native/ucx/transfer.h"
#include "list_util.h"

#define UCX_PATIENCE_NS vnx_test_limit(20)
#define UCX_MESSAGES_MAX 4096

typedef struct ucx_message {
    char sender[64];
    size_t len;
    unsigned char *bytes;
} ucx_message_t;

/* One side and the messages it received. */
typedef struct ucx_side {
    vnxi_ucx_t *ucx;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    ucx_message_t messages[UCX_MESSAGES_MAX]; /* lock, as below */
    size_t message_count;
    unsigned lost_count;
    uintptr_t lost_cookie;
    char lost_cause[VNX_ERROR_CAUSE_MAX];
} ucx_side_t;

/* Where no libucp can be loaded the whole program is skipped, which 77 says to
 * meson. */
static inline bool
ucx_has_library(void)
{
    const char *why;
    if (vnxi_ucx_library(&why) == NULL) {
        print_message("SKIP: no libucp: %s\n", why);
        return false;
    }
    return true;
}

#define ucx_run_group_tests(tests) \
    (ucx_has_library() ? cmocka_run_group_tests(tests, NULL, NULL) : 77)

static inline void
ucx_side_on_notif(void *context, const void *sender, size_t sender_len,
                  const void *message, size_t message_len)
{
    ucx_side_t *side = context;
    pthread_mutex_lock(&side->lock);
    assert_true(side->message_count < UCX_MESSAGES_MAX);
    ucx_message_t *one = &side->messages[side->message_count++];
    snprintf(one->sender, sizeof one->sender, "%.*s", (int)sender_len,
             (const char *)sender);
    one->len = message_len;
    one->bytes = malloc(message_len + 1);
    memcpy(one->bytes, message, message_len);
    pthread_cond_broadcast(&side->changed);
    pthread_mutex_unlock(&side->lock);
}

static inline void
ucx_side_on_lost(void *context, uintptr_t cookie, const char *cause)
{
    ucx_side_t *side = context;
    pthread_mutex_lock(&side->lock);
    side->lost_count++;
    side->lost_cookie = cookie;
    snprintf(side->lost_cause, sizeof side->lost_cause, "%s", cause);
    pthread_cond_broadcast(&side->changed);
    pthread_mutex_unlock(&side->lock);
}

static inline void
ucx_side_open(ucx_side_t *side, const char *name, unsigned workers,
              double stall_seconds)
{
    vnx_error_t error;
    vnxi_ucx_config_t config = {
        .name = name,
        .name_len = strlen(name),
        .workers = workers,
        .stall_timeout_ns = (uint64_t)(stall_seconds * 1e9),
        .events = {side, ucx_side_on_notif, ucx_side_on_lost},
    };
    memset(side, 0, sizeof *side);
    pthread_mutex_init(&side->lock, NULL);
    pthread_cond_init(&side->changed, NULL);
    if (vnxi_ucx_create(&config, &side->ucx, &error) != VNX_OK) {
        fail_msg("%s", error.cause);
    }
}

static inline void
ucx_side_close(ucx_side_t *side)
{
    vnxi_ucx_stop(side->ucx);
    vnxi_ucx_release(side->ucx);
    for (size_t i = 0; i < side->message_count; i++) {
        free(side->messages[i].bytes);
    }
    pthread_cond_destroy(&side->changed);
    pthread_mutex_destroy(&side->lock);
}

static inline struct timespec
ucx_deadline(void)
{
    struct timespec end;
    clock_gettime(CLOCK_REALTIME, &end);
    end.tv_sec += (time_t)(UCX_PATIENCE_NS / 1000000000u);
    return end;
}

/* Until so many messages have come. */
static inline void
ucx_side_await_messages(ucx_side_t *side, size_t count)
{
    struct timespec end = ucx_deadline();
    int ret = 0;
    pthread_mutex_lock(&side->lock);
    while (side->message_count < count && ret == 0) {
        ret = pthread_cond_timedwait(&side->changed, &side->lock, &end);
    }
    size_t came = side->message_count;
    pthread_mutex_unlock(&side->lock);
    if (ret != 0) {
        fail_msg("%zu of %zu messages came", came, count);
    }
}

static inline void
ucx_side_await_lost(ucx_side_t *side)
{
    struct timespec end = ucx_deadline();
    int ret = 0;
    pthread_mutex_lock(&side->lock);
    while (side->lost_count == 0 && ret == 0) {
        ret = pthread_cond_timedwait(&side->changed, &side->lock, &end);
    }
    pthread_mutex_unlock(&side->lock);
    assert_int_equal(ret, 0);
}

/* Create a connection and begin to connect. */
static inline vnx_status_t
ucx_open(vnxi_ucx_t *ucx, const void *address, size_t len, uintptr_t cookie,
         vnxi_ucx_conn_t **conn_p, vnx_error_t *error)
{
    vnx_status_t status =
        vnxi_ucx_conn_create(ucx, address, len, cookie, conn_p, error);
    if (status == VNX_OK) {
        vnxi_ucx_conn_begin(*conn_p);
    }
    return status;
}

static inline vnxi_ucx_conn_t *
ucx_side_connect(ucx_side_t *from, const ucx_side_t *to, uintptr_t cookie)
{
    vnxi_ucx_conn_t *conn = NULL;
    vnx_error_t error;
    size_t len;
    const void *address = vnxi_ucx_address(to->ucx, &len);
    if (ucx_open(from->ucx, address, len, cookie, &conn, &error) != VNX_OK) {
        fail_msg("%s", error.cause);
    }
    return conn;
}

static inline void
end_conn(vnxi_ucx_conn_t *conn)
{
    vnxi_ucx_conn_close(conn);
    vnxi_ucx_conn_release(conn);
}

static inline void
await_wired(vnxi_ucx_conn_t *conn)
{
    uint64_t end = vnxi_clock_deadline(UCX_PATIENCE_NS);
    while (!vnxi_ucx_conn_is_wired(conn)) {
        assert_true(vnxi_clock_ns() < end);
        sched_yield();
    }
}

static inline void
send_to(vnxi_ucx_conn_t *conn, const void *message, size_t len)
{
    vnx_error_t error;
    if (vnxi_ucx_conn_send_notif(conn, message, len, &error) != VNX_OK) {
        fail_msg("%s", error.cause);
    }
}

/* -- Regions ---------------------------------------------------------------
 */

/* A region with both sides' handles. */
typedef struct ucx_region {
    vnxi_native_region_t base;
    vnxi_ucx_mem_t *mem; /* owned */
    vnxi_ucx_key_t *key; /* owned; NULL: none */
} ucx_region_t;

static inline void
ucx_region_fini(vnxi_region_t *region)
{
    vnxi_ucx_mem_free(((ucx_region_t *)region)->mem);
    vnxi_ucx_key_release(((ucx_region_t *)region)->key);
}

static const vnxi_region_class_t ucx_region_class = {
    .size = sizeof(ucx_region_t),
    .fini = ucx_region_fini,
};

static inline vnxi_ucx_mem_t *
ucx_mem_of(void *owner, const vnxi_region_t *region)
{
    (void)owner;
    return ((const ucx_region_t *)region)->mem;
}

static inline vnxi_ucx_key_t *
ucx_key_of(void *owner, const vnxi_region_t *region)
{
    (void)owner;
    return ((const ucx_region_t *)region)->key;
}

/* A region of `side`'s memory; for others by `conn`, if given. */
static inline vnxi_region_t *
ucx_region(ucx_side_t *side, vnxi_ucx_conn_t *conn, void *memory, size_t len)
{
    vnxi_region_t *base = vnxi_region_create(
        &ucx_region_class, VNX_MEM_DRAM, (uint64_t)(uintptr_t)memory, len, 0);
    ucx_region_t *region = (ucx_region_t *)base;
    vnx_error_t error;

    assert_non_null(region);
    if (vnxi_ucx_mem_map(side->ucx, VNX_MEM_DRAM, base->addr, len,
                         &region->mem, &error) != VNX_OK ||
        (conn != NULL &&
         vnxi_ucx_key_create(conn, region->mem->key, region->mem->key_len,
                             &region->key, &error) != VNX_OK)) {
        fail_msg("%s", error.cause);
    }
    set_route(base, ROUTE_OTHER);
    return base;
}

/* -- Transfers -------------------------------------------------------------
 */

typedef struct ucx_flight {
    vnxi_list_t *local, *remote;
    vnxi_plan_t plan;
    vnxi_ucx_xfer_t *xfer;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool ended; /* lock, as below */
    vnx_status_t status;
    vnx_error_t error;
    atomic_bool refuse; /* go_on says no */
    atomic_int asked;   /* so often was go_on called */
} ucx_flight_t;

static inline vnx_status_t
ucx_flight_go_on(void *context, vnx_error_t *error)
{
    ucx_flight_t *flight = context;
    atomic_fetch_add(&flight->asked, 1);
    if (!atomic_load(&flight->refuse)) {
        return VNX_OK;
    }
    error->status = VNX_ERR_NOT_FOUND;
    snprintf(error->cause, sizeof error->cause, "it must not go on");
    return VNX_ERR_NOT_FOUND;
}

static inline void
ucx_flight_done(void *context, vnx_status_t status, const vnx_error_t *error)
{
    ucx_flight_t *flight = context;
    pthread_mutex_lock(&flight->lock);
    flight->ended = true;
    flight->status = status;
    if (status != VNX_OK) {
        flight->error = *error;
    }
    pthread_cond_broadcast(&flight->changed);
    pthread_mutex_unlock(&flight->lock);
}

static inline vnxi_list_t *
ucx_list(vnxi_region_t *const *regions, size_t region_count,
         const vnx_desc_t *rows, size_t count)
{
    vnxi_region_table_t *table =
        vnxi_region_table_create(regions, region_count);
    assert_non_null(table);
    vnxi_list_t *list = make_list(table, rows, count);
    vnxi_region_table_release(table);
    return list;
}

typedef struct ucx_flight_spec {
    vnxi_ucx_conn_t *conn;
    vnx_op_t op;
    vnxi_region_t *const *local, *const *remote;
    size_t local_regions, remote_regions;
    const vnx_desc_t *local_rows, *remote_rows;
    size_t rows;
    bool no_merge;
} ucx_flight_spec_t;

static inline void
ucx_flight_make(ucx_flight_t *flight, const ucx_flight_spec_t *spec)
{
    vnx_error_t error;
    memset(flight, 0, sizeof *flight);
    flight->local = ucx_list(spec->local, spec->local_regions,
                             spec->local_rows, spec->rows);
    flight->remote = ucx_list(spec->remote, spec->remote_regions,
                              spec->remote_rows, spec->rows);
    vnxi_plan_args_t plan_args = {
        .local = flight->local,
        .remote = flight->remote,
        .local_rows.count = spec->rows,
        .remote_rows.count = spec->rows,
        .no_merge = spec->no_merge,
        .operation = "vnx_xfer_create",
    };
    if (vnxi_plan_build(&plan_args, &flight->plan, &error) != VNX_OK) {
        fail_msg("%s", error.cause);
    }
    vnxi_ucx_xfer_args_t args = {
        .conn = spec->conn,
        .plan = &flight->plan,
        .op = spec->op,
        .local = flight->local,
        .remote = flight->remote,
        .route = ROUTE_OTHER,
        .mem_of = ucx_mem_of,
        .key_of = ucx_key_of,
        .context = flight,
        .go_on = ucx_flight_go_on,
        .done = ucx_flight_done,
    };
    pthread_mutex_init(&flight->lock, NULL);
    pthread_cond_init(&flight->changed, NULL);
    flight->xfer = vnxi_ucx_xfer_create(&args);
    assert_non_null(flight->xfer);
}

static inline vnx_status_t
ucx_flight_post(ucx_flight_t *flight)
{
    flight->ended = false;
    return vnxi_ucx_xfer_post(flight->xfer, &flight->error);
}

/* Its end. */
static inline vnx_status_t
ucx_flight_await(ucx_flight_t *flight)
{
    struct timespec end = ucx_deadline();
    int ret = 0;
    pthread_mutex_lock(&flight->lock);
    while (!flight->ended && ret == 0) {
        ret = pthread_cond_timedwait(&flight->changed, &flight->lock, &end);
    }
    pthread_mutex_unlock(&flight->lock);
    assert_int_equal(ret, 0);
    return flight->status;
}

static inline void
ucx_flight_free(ucx_flight_t *flight)
{
    vnxi_ucx_xfer_free(flight->xfer);
    vnxi_plan_fini(&flight->plan);
    vnxi_list_release(flight->local);
    vnxi_list_release(flight->remote);
    pthread_cond_destroy(&flight->changed);
    pthread_mutex_destroy(&flight->lock);
}

#endif
