#include "side_channel/curl.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <string.h>

#include "base/error.h"
#include "base/fork.h"
#include "base/mutex.h"

#define LIBRARY "libcurl.so.4" /* the ABI since 7.16 */

vnxi_curl_t vnxi_curl;

static vnxi_mutex_t lock = VNXI_MUTEX_INIT(VNXI_RANK_CURL);
static void *library; /* protected by lock, as below */
static bool is_loaded;

static void
reset_in_child(void)
{
    vnxi_mutex_init(&lock, VNXI_RANK_CURL);
}

static vnx_status_t
take(const char *name, void *pointer_p, const char *operation,
     vnx_error_t *error)
{
    void *symbol = dlsym(library, name);
    if (symbol == NULL) {
        return vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, operation,
                              "%s has no %s", LIBRARY, name);
    }
    memcpy(pointer_p, &symbol, sizeof symbol);
    return VNX_OK;
}

static vnx_status_t
take_all(const char *operation, vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;
#define TAKE(name)                                                       \
    if (status == VNX_OK) {                                              \
        status = take("curl_" #name, &vnxi_curl.name, operation, error); \
    }
    VNXI_CURL_CALLS(TAKE)
#undef TAKE
    return status;
}

/* A library that is not found because no descriptor is free may be there. */
static vnx_status_t
not_opened(const char *operation, vnx_error_t *error)
{
    vnx_status_t status = vnxi_descriptors_are_scarce()
                              ? VNX_ERR_BACKEND
                              : VNX_ERR_NOT_SUPPORTED;

    return vnxi_error_set(error, status, operation,
                          "HTTP requests need libcurl: %s", dlerror());
}

static vnx_status_t
load_lock_held(const char *operation, vnx_error_t *error)
{
    if (library == NULL) {
        library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    }
    if (library == NULL) {
        return not_opened(operation, error);
    }
    vnx_status_t status = take_all(operation, error);
    if (status != VNX_OK) {
        return status;
    }
    CURLcode code = vnxi_curl.global_init(CURL_GLOBAL_DEFAULT);
    if (code != CURLE_OK) {
        return vnxi_error_set(error, VNX_ERR_BACKEND, operation,
                              "libcurl does not start: %s",
                              vnxi_curl.easy_strerror(code));
    }
    is_loaded = true;
    return VNX_OK;
}

/* A failure is not remembered: the next call may find the library. */
vnx_status_t
vnxi_curl_load(const char *operation, vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;

    vnxi_fork_on_child(reset_in_child);
    vnxi_mutex_lock(&lock);
    if (!is_loaded) {
        status = load_lock_held(operation, error);
    }
    vnxi_mutex_unlock(&lock);
    return status;
}
