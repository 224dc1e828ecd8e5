#include "side_channel/curl.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"

#define LIBRARY "libcurl.so.4" /* the ABI since 7.16 */

vnxi_curl_t vnxi_curl;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static vnx_status_t outcome = VNX_OK;
static char why[VNX_ERROR_CAUSE_MAX];

static bool
take(void *library, const char *name, void *pointer_p)
{
    void *symbol = dlsym(library, name);
    if (symbol == NULL) {
        snprintf(why, sizeof why, "%s has no %s", LIBRARY, name);
        return false;
    }
    memcpy(pointer_p, &symbol, sizeof symbol);
    return true;
}

static bool
take_all(void *library)
{
    bool all = true;
#define TAKE(name) all = all && take(library, "curl_" #name, &vnxi_curl.name);
    VNXI_CURL_CALLS(TAKE)
#undef TAKE
    return all;
}

static void
load(void)
{
    void *library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        outcome = VNX_ERR_NOT_SUPPORTED;
        snprintf(why, sizeof why, "HTTP requests need libcurl: %s", dlerror());
        return;
    }
    if (!take_all(library)) {
        outcome = VNX_ERR_NOT_SUPPORTED;
        return;
    }
    CURLcode code = vnxi_curl.global_init(CURL_GLOBAL_DEFAULT);
    if (code != CURLE_OK) {
        outcome = VNX_ERR_BACKEND;
        snprintf(why, sizeof why, "libcurl does not start: %s",
                 vnxi_curl.easy_strerror(code));
    }
}

vnx_status_t
vnxi_curl_load(const char *operation, vnx_error_t *error)
{
    pthread_once(&once, load);
    return outcome == VNX_OK
               ? VNX_OK
               : vnxi_error_set(error, outcome, operation, "%s", why);
}
