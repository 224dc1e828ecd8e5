/*
 * Finds and opens the stock NIXL library.
 *
 * The search order:
 *  1. the file named by VLLM_NIXL_LIBRARY; if set, nothing else is tried;
 *  2. the wheels nixl-cu13, nixl-cu12 and nixl-rocm in base/search_path.h;
 *     the one for this process's CUDA version comes first, if known from a
 *     loaded CUDA runtime or the installed torch, so that it is the one which
 *     the package `nixl` would choose;
 *  3. the system: "libnixl_capi.so" as found by dlopen().
 */
#ifndef VNXI_NIXL_LIBRARY_H
#define VNXI_NIXL_LIBRARY_H

#include <vnx/vnx.h>

#include "engine/nixl/capi.h"

/* The library, opened by the first call and never closed.  After a failure the
 * next call tries again.  VNX_ERR_NOT_SUPPORTED has the files that were tried
 * and the reason why each failed, or the missing function.  Any thread. */
vnx_status_t vnxi_nixl_library(const char *operation,
                               const vnxi_capi_t **capi_p, vnx_error_t *error);

/* The path of the opened file; "" before.  Static storage. */
const char *vnxi_nixl_library_path(void);

/* The dynamic linker's message why a plugin cannot be loaded (usually a
 * missing library); "" if it can. */
void vnxi_nixl_plugin_fault(const char *plugin, char *text, size_t size);

/* A dlopen() handle for a plugin that the library has loaded; NULL if it has
 * not loaded the plugin as an object of its own. */
void *vnxi_nixl_plugin_loaded(const char *plugin);

/* Convert the library's return value to a status and write the error.  `what`
 * describes the failed action. */
vnx_status_t vnxi_nixl_failed(int code, const char *operation,
                              const char *what, vnx_error_t *error);

/* Copies of the library's key and value pairs. */
typedef struct vnxi_nixl_params {
    vnx_param_t *at; /* owned, with the texts; sorted by key */
    size_t count;
} vnxi_nixl_params_t;

/* Take over key and value pairs of the library; frees the handle. */
vnx_status_t vnxi_nixl_params_take(const vnxi_capi_t *capi,
                                   nixl_capi_params_t params,
                                   vnxi_nixl_params_t *params_p);
void vnxi_nixl_params_fini(vnxi_nixl_params_t *params);

/* Intern a text: the result is never freed and is the same for equal texts.
 * For names of backends.  NULL: no memory. */
const char *vnxi_nixl_intern(const char *text);

#endif
