/*
 * Design notes.  Loaded with RTLD_LOCAL, so that this copy of UCX and another
 * one in the process (stock NIXL's, an MPI's) do not see each other.
 *
 * Our callers get UCX's errors as a status with its text, and some of them (a
 * refused connection, because the peer has ended) are normal events here.  So
 * UCX's errors and warnings are logged as information.
 */
#include "engine/native/ucx/library.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/error.h"
#include "base/log.h"
#include "base/search_path.h"
#include "engine/ucx_guard.h"

#define VARIABLE "VLLM_NIXL_UCX_LIBRARY"

typedef struct symbol {
    const char *name;
    size_t offset; /* of the pointer in vnxi_ucp_functions_t */
} symbol_t;

static const symbol_t symbols[] = {
#define SYMBOL(result, name, parameters) \
    {#name, offsetof(vnxi_ucp_functions_t, name)},
    VNXI_UCP_FUNCTIONS(SYMBOL)
#undef SYMBOL
};

/* Python wheels, in order of preference. */
static const char *const wheels[] = {
    "nixl_cu13.libs/libucp-*.so*",
    "nixl_cu12.libs/libucp-*.so*",
    "libucx/lib/libucp.so.0",
};

static pthread_once_t once = PTHREAD_ONCE_INIT;
static vnxi_ucx_library_t library;
static bool is_loaded;
static char why[1024];

static void __attribute__((format(printf, 1, 2))) note(const char *format, ...)
{
    size_t used = strlen(why);
    va_list args;

    if (used > 0 && used + 3 < sizeof why) {
        memcpy(why + used, "; ", 3);
        used += 2;
    }
    va_start(args, format);
    vsnprintf(why + used, sizeof why - used, format, args);
    va_end(args);
}

/* -- The log ---------------------------------------------------------------
 */

static int
on_log(const char *file, unsigned line, const char *function, int level,
       const void *component, const char *message, va_list args)
{
    /* Places of UCX; those that fall together share the rate. */
    static vnxi_log_site_t sites[64];
    size_t place = ((uintptr_t)message >> 3) % (sizeof sites / sizeof *sites);
    char text[512];

    (void)file, (void)line, (void)function, (void)component;
    vsnprintf(text, sizeof text, message, args);
    vnxi_log_at(&sites[place],
                level <= VNXI_UCS_LOG_WARN ? VNX_LOG_INFO : VNX_LOG_DEBUG,
                NULL, "UCX: %s", text);
    return VNXI_UCS_LOG_STOP;
}

/* -- Loading ---------------------------------------------------------------
 */

static bool
take_symbols(void *handle, const char *path, vnxi_ucx_library_t *found)
{
    for (size_t i = 0; i < sizeof symbols / sizeof symbols[0]; i++) {
        void *symbol = dlsym(handle, symbols[i].name);
        if (symbol == NULL) {
            note("%s has no %s", path, symbols[i].name);
            return false;
        }
        memcpy((char *)&found->ucp + symbols[i].offset, &symbol,
               sizeof symbol);
    }
    return true;
}

static bool
is_new_enough(const char *path, vnxi_ucx_library_t *found)
{
    unsigned release;
    found->ucp.ucp_get_version(&found->major, &found->minor, &release);
    if (found->major == VNXI_UCP_API_MAJOR &&
        found->minor >= VNXI_UCP_API_MINOR) {
        return true;
    }
    note("%s is UCX %u.%u, but 1.19 or a later 1.x is required", path,
         found->major, found->minor);
    return false;
}

static void
set_up(const vnxi_ucx_library_t *found)
{
    found->ucp.ucs_log_push_handler(on_log);
    if (getenv("UCX_MODULES") == NULL &&
        access("/sys/class/infiniband", F_OK) != 0) {
        found->ucp.ucs_global_opts_set_value("MODULES", "^ib");
    }
}

static bool
load(const char *path)
{
    vnxi_ucx_library_t found = {0};
    vnxi_ucx_loaded_t before;
    char *kept;

    vnxi_ucx_loaded_find(&before);
    void *handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL) {
        note("%s", dlerror());
    } else if (!take_symbols(handle, path, &found) ||
               !is_new_enough(path, &found) || (kept = strdup(path)) == NULL) {
        dlclose(handle);
        handle = NULL;
    } else {
        found.path = kept;
        snprintf(found.version, sizeof found.version, "UCX %u.%u, %s",
                 found.major, found.minor, kept);
        found.guard = vnxi_ucx_guard(handle, &before);
        set_up(&found);
        library = found;
    }
    vnxi_ucx_loaded_free(&before);
    return handle != NULL;
}

static bool
load_wheel(const char *pattern)
{
    char *path = vnxi_search_path_find(pattern);
    bool loaded = path != NULL && load(path);
    free(path);
    return loaded;
}

static void
load_library(void)
{
    const char *named = getenv(VARIABLE);

    if (named != NULL && strcmp(named, "none") == 0) {
        note("disabled by " VARIABLE "=none");
        return;
    }
    if (named != NULL && named[0] != '\0') {
        is_loaded = load(named);
        return;
    }
    for (size_t i = 0; !is_loaded && i < sizeof wheels / sizeof wheels[0];
         i++) {
        is_loaded = load_wheel(wheels[i]);
    }
    if (!is_loaded) {
        is_loaded = load("libucp.so.0");
    }
    if (!is_loaded) {
        note("pip install libucx-cu12, or name a libucp in " VARIABLE);
    }
}

const vnxi_ucx_library_t *
vnxi_ucx_library(const char **why_p)
{
    pthread_once(&once, load_library);
    if (!is_loaded && why_p != NULL) {
        *why_p = why;
    }
    return is_loaded ? &library : NULL;
}

vnx_status_t
vnxi_ucx_status(vnxi_ucs_status_t status)
{
    switch (status) {
    case VNXI_UCS_OK:
        return VNX_OK;
    case VNXI_UCS_INPROGRESS:
        return VNX_IN_PROG;
    case VNXI_UCS_ERR_NOT_CONNECTED:
    case VNXI_UCS_ERR_CONNECTION_RESET:
    case VNXI_UCS_ERR_ENDPOINT_TIMEOUT:
    case VNXI_UCS_ERR_CANCELED:
    case VNXI_UCS_ERR_UNREACHABLE:
    case VNXI_UCS_ERR_REJECTED:
        return VNX_ERR_REMOTE_DISCONNECT;
    case VNXI_UCS_ERR_NO_MEMORY:
        return VNX_ERR_NO_MEMORY;
    case VNXI_UCS_ERR_INVALID_PARAM:
        return VNX_ERR_INVALID_PARAM;
    default:
        return VNX_ERR_BACKEND;
    }
}
