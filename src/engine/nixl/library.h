/*
 * Finding and opening the stock NIXL library.
 *
 * Where it is looked for, in this order:
 *  1. the file that VLLM_NIXL_LIBRARY names, and then nowhere else;
 *  2. the wheels nixl-cu13, nixl-cu12 and nixl-rocm in base/search_path.h;
 *     the one for the CUDA of this process comes first, if that is known from
 *     a CUDA runtime that is loaded or a torch that is installed, so that it
 *     is the one which the package `nixl` would choose;
 *  3. the system: "libnixl_capi.so" as dlopen() finds it.
 */
#ifndef VNXI_NIXL_LIBRARY_H
#define VNXI_NIXL_LIBRARY_H

#include <vnx/error.h>

#include "engine/nixl/capi.h"

/* The library, opened at the first call and never closed; a failure is tried
 * again at the next call.  VNX_ERR_NOT_SUPPORTED names the files that were
 * tried and why they would not do, or the function that is missing. Any
 * thread. */
vnx_status_t vnxi_nixl_library(const char *operation,
                               const vnxi_capi_t **capi_p, vnx_error_t *error);

/* The file that was opened; "" before.  Static storage. */
const char *vnxi_nixl_library_path(void);

/* Why a plugin of the library cannot be loaded, in the words of the dynamic
 * linker (a library that it needs is missing, as a rule); "" where it can. */
void vnxi_nixl_plugin_fault(const char *plugin, char *text, size_t size);

/* A handle of dlopen() for a plugin that the library has loaded; NULL: it has
 * loaded none of that name as an object of its own. */
void *vnxi_nixl_plugin_loaded(const char *plugin);

/* A text that stays for ever, and is the same for equal texts: names of
 * backends.  NULL: no memory. */
const char *vnxi_nixl_intern(const char *text);

#endif
