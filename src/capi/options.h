/*
 * Optional arguments.
 */
#ifndef VNXI_CAPI_OPTIONS_H
#define VNXI_CAPI_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <vnx/nixl_capi.h>

#include "capi/handles.h"

#define VNXI_SELECTED_MAX 16 /* backends in one object */

typedef struct vnxi_blob {
    void *data; /* owned; NULL if empty */
    size_t len;
} vnxi_blob_t;

typedef struct vnxi_options {
    vnxi_blob_t notif;
    vnxi_blob_t custom;
    char *host; /* owned; NULL: none */
    uint16_t port;
    bool has_notif;
    bool no_merge;
    size_t backend_count;
    struct {
        const void *agent; /* its handle */
        const char *name;  /* static storage */
    } backends[VNXI_SELECTED_MAX];
} vnxi_options_t;

/* NULL: `args` is NULL, or no handle. */
static inline vnxi_options_t *
vnxi_options(nixl_capi_opt_args_t args)
{
    return vnxi_object(args, VNXI_KIND_OPTIONS);
}

/* The backends that a call is limited to. */
typedef struct vnxi_selection {
    const char *names[VNXI_SELECTED_MAX + 1]; /* ends with NULL */
    const char *const *backends;              /* NULL: all */
    size_t count;
} vnxi_selection_t;

/* Get the backends of `args` (NULL: none), which must be of this agent.
 * INVALID_PARAM: one belongs to another agent, or `args` is not a valid
 * handle. */
nixl_capi_status_t vnxi_options_select(nixl_capi_opt_args_t args,
                                       const void *agent,
                                       vnxi_selection_t *selection_p);

/* The port, or NIXL's default. */
int vnxi_options_port(const vnxi_options_t *options);

#endif
