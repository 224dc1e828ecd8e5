/*
 * libucp, loaded at the first use and never unloaded.
 *
 * Looked for, in this order: VLLM_NIXL_UCX_LIBRARY (a file; "none": UCX is
 * switched off), the NIXL wheel's, the libucx wheel's (base/search_path.h),
 * the system's.  What is found must be of version 1.19 or later and have every
 * function of ucp_abi.h, else the next one is tried.
 *
 * UCX writes its log by vnxi_log().  Its module for InfiniBand is not loaded
 * where the host has no such device: in some wheels that module ends the
 * process with SIGSEGV at exit.  UCX_MODULES, where the user set it, stands.
 */
#ifndef VNXI_NATIVE_UCX_LIBRARY_H
#define VNXI_NATIVE_UCX_LIBRARY_H

#include <vnx/vnx.h>

#include "engine/native/ucx/ucp_abi.h"

typedef struct vnxi_ucx_library {
    vnxi_ucp_functions_t ucp;
    const char *path; /* as loaded; static storage, like all of this */
    unsigned major, minor;
    const char *guard; /* "on: why" or "off: why not": parts/ucx_guard.h */
} vnxi_ucx_library_t;

/* The library; NULL where there is none, and then *why_p (may be NULL; static
 * storage) says where was looked, and what was wrong there.  The first call
 * loads (some ms).  Any thread. */
const vnxi_ucx_library_t *vnxi_ucx_library(const char **why_p);

/* What an UCX error means to our callers. */
vnx_status_t vnxi_ucx_status(vnxi_ucs_status_t status);

#endif
