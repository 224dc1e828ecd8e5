/*
 * libucp, loaded on first use and never unloaded.
 *
 * Search order: VLLM_NIXL_UCX_LIBRARY (a file; "none" disables UCX), the NIXL
 * wheel's library, the libucx wheel's (base/search_path.h), the system's.  A
 * library must have version 1.19 or later and every function of ucp_abi.h,
 * else the next one is tried.
 *
 * UCX's log goes to vnxi_log().  UCX's module for InfiniBand is not loaded if
 * the host has no such device: in some wheels that module crashes the process
 * with SIGSEGV at exit.  A UCX_MODULES set by the user is respected.
 */
#ifndef VNXI_NATIVE_UCX_LIBRARY_H
#define VNXI_NATIVE_UCX_LIBRARY_H

#include <vnx/vnx.h>

#include "engine/native/ucx/ucp_abi.h"

typedef struct vnxi_ucx_library {
    vnxi_ucp_functions_t ucp;
    const char *path; /* as loaded; static storage, like the whole struct */
    unsigned major, minor;
    char version[256]; /* "UCX 1.22, /path/libucp.so.0" */
    const char *guard; /* "on: why" or "off: why not": engine/ucx_guard.h */
} vnxi_ucx_library_t;

/* The library, or NULL if none was found; then *why_p (may be NULL; static
 * storage) lists the places searched and the problem at each.  The first call
 * loads the library (some ms).  Any thread. */
const vnxi_ucx_library_t *vnxi_ucx_library(const char **why_p);

/* Translate a UCX status for our callers. */
vnx_status_t vnxi_ucx_status(vnxi_ucs_status_t status);

#endif
