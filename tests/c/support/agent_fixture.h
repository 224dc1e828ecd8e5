/* Agents for tests: creation, connection, registration of memory. */
#ifndef AGENT_FIXTURE_H
#define AGENT_FIXTURE_H

#include "vnx_test.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <vnx/vnx.h>

#define SECONDS(n) ((uint64_t)(n)*1000000000u)

/* Fail with the error's text. */
#define assert_ok(call)                                                       \
    do {                                                                      \
        vnx_error_t assert_error = {.operation = "", .cause = ""};            \
        vnx_error_t *e = &assert_error;                                       \
        vnx_status_t assert_status = (call);                                  \
        if (assert_status < 0) {                                              \
            char assert_line[512];                                            \
            vnx_error_format(&assert_error, assert_line, sizeof assert_line); \
            fail_msg("%s: %d %s", #call, (int)assert_status, assert_line);    \
        }                                                                     \
    } while (0)

/* On the engine that VNX_TEST_ENGINE names, else on native. */
static inline vnx_agent_t *
make_agent(const char *name)
{
    const char *engine = getenv("VNX_TEST_ENGINE");
    vnx_agent_config_t config = {
        .size = sizeof config,
        .engine = engine != NULL ? engine : "native",
    };
    vnx_agent_t *agent = NULL;
    assert_ok(vnx_agent_create(name, strlen(name), &config, &agent, e));
    assert_ok(vnx_agent_create_backend(agent, "UCX", NULL, 0, e));
    return agent;
}

static inline vnx_reg_desc_t
region_of(const void *at, size_t len)
{
    return (vnx_reg_desc_t){.desc = {(uint64_t)(uintptr_t)at, len, 0}};
}

static inline void
register_at(vnx_agent_t *agent, const void *at, size_t len)
{
    vnx_reg_desc_t desc = region_of(at, len);
    assert_ok(vnx_agent_register(agent, VNX_MEM_DRAM, &desc, 1, NULL, e));
}

static inline void
deregister_at(vnx_agent_t *agent, const void *at, size_t len)
{
    vnx_reg_desc_t desc = region_of(at, len);
    assert_ok(vnx_agent_deregister(agent, VNX_MEM_DRAM, &desc, 1, NULL, e));
}

static inline vnx_desc_t
desc_at(const void *at, size_t len)
{
    return (vnx_desc_t){(uint64_t)(uintptr_t)at, len, 0};
}

/* `loader` loads the metadata of `other`. */
static inline void
load_peer(vnx_agent_t *loader, vnx_agent_t *other)
{
    vnx_bytes_t blob, name;
    assert_ok(vnx_agent_metadata(other, &blob, e));
    assert_ok(vnx_agent_load_metadata(loader, blob.data, blob.len, &name, e));
    free(blob.data);
    free(name.data);
}

/* Rows of `len` bytes, `count` of them, back to back. */
static inline vnx_dlist_t *
prepare_rows(vnx_agent_t *agent, const char *peer, const void *at, size_t len,
             size_t count)
{
    vnx_dlist_t *dlist = NULL;
    vnx_strided_desc_t row = {(uint64_t)(uintptr_t)at, len, 0, len, count};
    assert_ok(vnx_dlist_create_strided(agent, peer, strlen(peer), VNX_MEM_DRAM,
                                       &row, 1, NULL, &dlist, e));
    return dlist;
}

static inline vnx_dlist_t *
prepare_descs(vnx_agent_t *agent, const char *peer, const vnx_desc_t *rows,
              size_t count)
{
    vnx_dlist_t *dlist = NULL;
    assert_ok(vnx_dlist_create(agent, peer, strlen(peer), VNX_MEM_DRAM, rows,
                               count, NULL, &dlist, e));
    return dlist;
}

static inline vnx_indices_t
all_rows(size_t count)
{
    return (vnx_indices_t){.data = NULL, .count = count};
}

static inline vnx_xfer_t *
make_xfer(vnx_agent_t *agent, vnx_op_t op, vnx_dlist_t *local,
          vnx_dlist_t *remote, size_t count, const char *notif)
{
    vnx_xfer_t *xfer = NULL;
    assert_ok(vnx_xfer_create_prepped(
        agent, op, local, all_rows(count), remote, all_rows(count), notif,
        notif != NULL ? strlen(notif) : 0, false, &xfer, e));
    return xfer;
}

static inline void
run_xfer(vnx_agent_t *agent, vnx_xfer_t *xfer)
{
    assert_ok(vnx_xfer_post(xfer, NULL, 0, e));
    assert_ok(vnx_agent_wait(agent, &xfer, 1, 0, vnx_test_limit(30), e));
    assert_ok(vnx_xfer_status(xfer, e));
}

/* One notification, awaited without an eventfd; never NULL. */
static inline vnx_notif_t *
await_notif(vnx_agent_t *agent)
{
    for (int i = 0; i < 30000; i++) {
        vnx_notif_t *chain = vnx_agent_take_notifs(agent);
        if (chain != NULL) {
            return chain;
        }
        struct timespec ms = {0, 1000000};
        nanosleep(&ms, NULL);
    }
    fail_msg("no notification came within 30 s");
    return NULL;
}

static inline vnx_agent_stats_t
stats_of(const vnx_agent_t *agent)
{
    vnx_agent_stats_t stats;
    vnx_agent_stats(agent, &stats);
    return stats;
}

static VNX_TEST_UNWATCHED void
fill(unsigned char *at, size_t len, unsigned seed)
{
    for (size_t i = 0; i < len; i++) {
        at[i] = (unsigned char)((i * 2654435761u + seed) >> 7);
    }
}

#endif
