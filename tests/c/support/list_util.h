/* Regions, tables and lists for tests, of the native engine's classes; nothing
 * here touches what the addresses point to. */
#ifndef LIST_UTIL_H
#define LIST_UTIL_H

#include "vnx_test.h"

#include <stdlib.h>
#include <string.h>

#include "engine/native/plan.h"
#include "engine/native/region_access.h"

#define LIST_UTIL_OPERATION "vnx_dlist_create"

/* A sequence that is the same in every run. */
static inline uint64_t
next_random(uint64_t *state_p)
{
    *state_p ^= *state_p << 13;
    *state_p ^= *state_p >> 7;
    *state_p ^= *state_p << 17;
    return *state_p;
}

typedef struct region_spec {
    uint64_t addr, len, dev;
    bool direct; /* route VNXI_ROUTE_COPY, else ROUTE_OTHER */
    uint64_t delta;
} region_spec_t;

#define ROUTE_OTHER 1u

/* Have the region this route for every kind of local memory. */
static inline void
set_route(vnxi_region_t *region, unsigned route)
{
    memset(&vnxi_native_region(region)->routes, (int)route,
           sizeof vnxi_native_region(region)->routes);
}

/* The caller's reference: vnxi_region_table_release(). */
static inline vnxi_region_table_t *
make_table(const region_spec_t *specs, size_t count)
{
    vnxi_region_t **regions = calloc(count + 1, sizeof *regions);
    assert_non_null(regions);
    for (size_t i = 0; i < count; i++) {
        regions[i] =
            vnxi_region_create(&vnxi_native_region_class, VNX_MEM_DRAM,
                               specs[i].addr, specs[i].len, specs[i].dev);
        assert_non_null(regions[i]);
        set_route(regions[i], specs[i].direct ? VNXI_ROUTE_COPY : ROUTE_OTHER);
        vnxi_native_region(regions[i])->delta = specs[i].delta;
    }
    vnxi_region_table_t *table = vnxi_region_table_create(regions, count);
    assert_non_null(table);
    for (size_t i = 0; i < count; i++) {
        vnxi_region_release(regions[i]);
    }
    free(regions);
    return table;
}

static inline vnxi_builder_t *
begin_list(vnxi_region_table_t *table)
{
    vnxi_list_args_t args = {.table = vnxi_region_table_retain(table),
                             .mem = VNX_MEM_DRAM,
                             .class = &vnxi_native_list_class,
                             .operation = LIST_UTIL_OPERATION};
    vnxi_builder_t *builder = NULL;
    assert_int_equal(vnxi_list_begin(&args, &builder, NULL), VNX_OK);
    assert_non_null(builder);
    return builder;
}

static inline vnxi_list_t *
finish_list(vnxi_builder_t *builder)
{
    vnxi_list_t *list = NULL;
    vnx_error_t error;
    assert_int_equal(vnxi_list_finish(builder, &list, &error), VNX_OK);
    assert_non_null(list);
    return list;
}

/* Both released: the list lives by itself. */
static inline vnxi_list_t *
make_list(vnxi_region_table_t *table, const vnx_desc_t *rows, size_t count)
{
    vnx_error_t error;
    vnxi_builder_t *builder = begin_list(table);
    if (vnxi_list_feed(builder, rows, count, &error) != VNX_OK) {
        fail_msg("row %lld: %s", (long long)error.row, error.cause);
    }
    return finish_list(builder);
}

static inline vnxi_list_t *
make_strided_list(vnxi_region_table_t *table, const vnx_strided_desc_t *rows,
                  size_t count)
{
    vnx_error_t error;
    vnxi_builder_t *builder = begin_list(table);
    if (vnxi_list_feed_strided(builder, rows, count, &error) != VNX_OK) {
        fail_msg("row %lld: %s", (long long)error.row, error.cause);
    }
    return finish_list(builder);
}

#endif
