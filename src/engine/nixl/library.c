#include "engine/nixl/library.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/fork.h"
#include "base/log.h"
#include "base/mutex.h"
#include "base/search_path.h"

#define ENVIRONMENT "VLLM_NIXL_LIBRARY"
#define FILE_NAME "libnixl_capi.so"

static vnxi_mutex_t lock = VNXI_MUTEX_INIT(VNXI_RANK_NIXL_LIBRARY);
static vnxi_capi_t library; /* protected by lock until `is_open` */
static bool is_open;        /* protected by lock */
static char path[PATH_MAX]; /* protected by lock until `is_open` */

/* A thread that loads NIXL holds the lock, perhaps while another one forks. */
static void
forget_in_child(void)
{
    vnxi_mutex_init(&lock, VNXI_RANK_NIXL_LIBRARY);
}

static void
take_lock(void)
{
    vnxi_fork_on_child(forget_in_child);
    vnxi_mutex_lock(&lock);
}

/* -- Which wheel -----------------------------------------------------------
 */

/* The major version of the CUDA runtime loaded in this process; 0: none. */
static int
loaded_cuda(void)
{
    static const struct {
        const char *file;
        int major;
    } runtimes[] = {{"libcudart.so.13", 13}, {"libcudart.so.12", 12}};

    for (size_t i = 0; i < sizeof runtimes / sizeof *runtimes; i++) {
        void *handle = dlopen(runtimes[i].file, RTLD_LAZY | RTLD_NOLOAD);
        if (handle != NULL) {
            dlclose(handle);
            return runtimes[i].major;
        }
    }
    return 0;
}

/* The CUDA major version that the installed torch was built for; 0: none.
 * torch/version.py has a line like: cuda: Optional[str] = '12.8' */
static int
torch_cuda(void)
{
    char line[256];
    int major = 0;
    char *file = vnxi_search_path_find("torch/version.py");
    FILE *stream = file != NULL ? fopen(file, "re") : NULL;

    while (stream != NULL && fgets(line, sizeof line, stream) != NULL) {
        const char *value = strchr(line, '=');
        if (strncmp(line, "cuda", 4) == 0 && value != NULL) {
            value += strcspn(value, "'\"0123456789");
            major = atoi(value + strspn(value, "'\""));
        }
    }
    if (stream != NULL) {
        fclose(stream);
    }
    free(file);
    return major;
}

static char *
find_in_wheel(const char *package)
{
    char pattern[128];
    snprintf(pattern, sizeof pattern, ".%s.mesonpy.libs/" FILE_NAME, package);
    return vnxi_search_path_find(pattern);
}

/* The library in a wheel; NULL if no wheel is installed.  Owned. */
static char *
find_wheel(void)
{
    static const char *const packages[] = {"nixl_cu13", "nixl_cu12",
                                           "nixl_rocm"};
    int cuda = loaded_cuda();
    char chosen[32], *found = NULL;

    cuda = cuda != 0 ? cuda : torch_cuda();
    if (cuda != 0) {
        snprintf(chosen, sizeof chosen, "nixl_cu%d", cuda);
        found = find_in_wheel(chosen);
    }
    for (size_t i = 0; found == NULL && i < sizeof packages / sizeof *packages;
         i++) {
        found = find_in_wheel(packages[i]);
    }
    return found;
}

/* -- Opening ---------------------------------------------------------------
 */

static vnx_status_t
look_up(void *handle, const char *operation, vnx_error_t *error)
{
    static const char *const names[] = {
#define NAME(name) "nixl_capi_" #name,
        VNXI_CAPI_TABLE(NAME)
#undef NAME
    };
    void *found[sizeof names / sizeof *names];

    _Static_assert(sizeof found == sizeof library, "a pointer each");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        found[i] = dlsym(handle, names[i]);
        if (found[i] == NULL) {
            return vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, operation,
                                  "%.200s has no function %s: NIXL 0.10.1 or "
                                  "later is needed",
                                  path, names[i]);
        }
    }
    memcpy(&library, found, sizeof found);
    return VNX_OK;
}

/* Our own libnixl_capi.so, which is linked with this library or contains it.
 * dlopen() returns it for NIXL's name if it was loaded earlier. */
static bool
is_ours(void *handle)
{
    void *theirs = dlsym(handle, "nixl_capi_create_agent");
    Dl_info their_file, this_file;

    return dlsym(handle, "vnx_version") != NULL ||
           (dladdr(theirs, &their_file) != 0 &&
            dladdr(&library, &this_file) != 0 &&
            their_file.dli_fbase == this_file.dli_fbase);
}

static vnx_status_t
open_file(const char *file, const char *operation, vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;
    void *handle = dlopen(file, RTLD_NOW | RTLD_LOCAL);
    if (handle == NULL) {
        return vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, operation,
                              "the NIXL library cannot be opened: %.240s",
                              dlerror());
    }
    snprintf(path, sizeof path, "%s", file);
    if (is_ours(handle)) {
        status = vnxi_error_set(error, VNX_ERR_NOT_SUPPORTED, operation,
                                "%.200s is the library of this package, not "
                                "NIXL's: set " ENVIRONMENT " to NIXL's",
                                path);
    } else {
        status = look_up(handle, operation, error);
    }
    if (status != VNX_OK) {
        dlclose(handle);
        return status;
    }
    is_open = true;
    vnxi_log(VNX_LOG_DEBUG, NULL, "opened %s", path);
    return VNX_OK;
}

static vnx_status_t
open_lock_held(const char *operation, vnx_error_t *error)
{
    const char *wanted = getenv(ENVIRONMENT);
    if (wanted != NULL && wanted[0] != '\0') {
        return open_file(wanted, operation, error);
    }
    char *wheel = find_wheel();
    if (wheel != NULL) {
        vnx_status_t status = open_file(wheel, operation, error);
        free(wheel);
        return status;
    }
    vnx_status_t status = open_file(FILE_NAME, operation, NULL);
    if (status != VNX_OK) {
        vnxi_error_set(
            error, status, operation,
            "the NIXL library is not installed: found neither a wheel "
            "(nixl-cu13, nixl-cu12) nor " FILE_NAME
            " on the system (pip install nixl, or set " ENVIRONMENT
            " to the file)");
    }
    return status;
}

vnx_status_t
vnxi_nixl_library(const char *operation, const vnxi_capi_t **capi_p,
                  vnx_error_t *error)
{
    vnx_status_t status = VNX_OK;

    take_lock();
    if (!is_open) {
        status = open_lock_held(operation, error);
    }
    vnxi_mutex_unlock(&lock);
    if (status == VNX_OK) {
        *capi_p = &library;
    }
    return status;
}

const char *
vnxi_nixl_library_path(void)
{
    take_lock();
    const char *found = is_open ? path : "";
    vnxi_mutex_unlock(&lock);
    return found;
}

/* -- Plugins ---------------------------------------------------------------
 */

/* The file of a plugin.  The library loads plugins from NIXL_PLUGIN_DIR, else
 * from "plugins" beside libnixl.so, which is in the directory of
 * libnixl_capi.so. */
static void
plugin_file(const char *plugin, char *file, size_t size)
{
    const char *folder = getenv("NIXL_PLUGIN_DIR");
    const char *slash = strrchr(vnxi_nixl_library_path(), '/');

    if (folder != NULL && folder[0] != '\0') {
        snprintf(file, size, "%s/libplugin_%s.so", folder, plugin);
    } else if (slash != NULL) {
        snprintf(file, size, "%.*s/plugins/libplugin_%s.so",
                 (int)(slash - vnxi_nixl_library_path()),
                 vnxi_nixl_library_path(), plugin);
    } else {
        snprintf(file, size, "libplugin_%s.so", plugin);
    }
}

void
vnxi_nixl_plugin_fault(const char *plugin, char *text, size_t size)
{
    char file[PATH_MAX];

    text[0] = '\0';
    plugin_file(plugin, file, sizeof file);
    void *handle = dlopen(file, RTLD_LAZY | RTLD_LOCAL);
    if (handle == NULL) {
        snprintf(text, size, "%s", dlerror());
    } else {
        dlclose(handle);
    }
}

void *
vnxi_nixl_plugin_loaded(const char *plugin)
{
    char file[PATH_MAX];

    plugin_file(plugin, file, sizeof file);
    return dlopen(file, RTLD_LAZY | RTLD_LOCAL | RTLD_NOLOAD);
}

/* -- Results ---------------------------------------------------------------
 */

vnx_status_t
vnxi_nixl_failed(int code, const char *operation, const char *what,
                 vnx_error_t *error)
{
    switch (code) {
    case NIXL_CAPI_ERROR_INVALID_PARAM:
        return vnxi_error_set(error, VNX_ERR_INVALID_PARAM, operation,
                              "NIXL refused %s", what);
    case NIXL_CAPI_ERROR_NOT_FOUND:
        return vnxi_error_set(
            error, VNX_ERR_NOT_FOUND, operation,
            "NIXL did not find something that it needs for %s", what);
    default:
        return vnxi_error_set(error, VNX_ERR_BACKEND, operation,
                              "NIXL failed at %s (its status is %d; its log "
                              "on stderr may say more)",
                              what, code);
    }
}

/* -- Parameters ------------------------------------------------------------
 */

void
vnxi_nixl_params_fini(vnxi_nixl_params_t *params)
{
    for (size_t i = 0; i < params->count; i++) {
        free((char *)params->at[i].key);
        free((char *)params->at[i].value);
    }
    free(params->at);
    *params = (vnxi_nixl_params_t){0};
}

static bool
append_param(vnxi_nixl_params_t *params, const char *key, const char *value)
{
    vnx_param_t *grown =
        realloc(params->at, (params->count + 1) * sizeof *grown);
    if (grown == NULL) {
        return false;
    }
    params->at = grown;
    grown[params->count] = (vnx_param_t){strdup(key), strdup(value)};
    params->count++;
    return grown[params->count - 1].key != NULL &&
           grown[params->count - 1].value != NULL;
}

/* The library's iterator lends texts that the next step overwrites. */
static bool
copy_all(const vnxi_capi_t *capi, nixl_capi_params_t params,
         vnxi_nixl_params_t *out)
{
    nixl_capi_param_iter_t iter = NULL;
    const char *key = NULL, *value = NULL;
    bool has_next = true, good = true;

    if (capi->params_create_iterator(params, &iter) != NIXL_CAPI_SUCCESS) {
        return false;
    }
    while (good && has_next) {
        good = capi->params_iterator_next(iter, &key, &value, &has_next) ==
                   NIXL_CAPI_SUCCESS &&
               append_param(out, key, value);
    }
    capi->params_destroy_iterator(iter);
    return good;
}

static int
by_key(const void *a, const void *b)
{
    const vnx_param_t *left = a, *right = b;
    return strcmp(left->key, right->key);
}

vnx_status_t
vnxi_nixl_params_take(const vnxi_capi_t *capi, nixl_capi_params_t params,
                      vnxi_nixl_params_t *params_p)
{
    vnxi_nixl_params_t copy = {0};
    bool is_empty = true;

    /* For an empty set, the iterator does not write its outputs. */
    bool good =
        capi->params_is_empty(params, &is_empty) == NIXL_CAPI_SUCCESS &&
        (is_empty || copy_all(capi, params, &copy));
    capi->destroy_params(params);
    if (!good) {
        vnxi_nixl_params_fini(&copy);
        return VNX_ERR_NO_MEMORY;
    }
    if (copy.count > 0) {
        qsort(copy.at, copy.count, sizeof *copy.at, by_key);
    }
    *params_p = copy;
    return VNX_OK;
}

/* -- Names -----------------------------------------------------------------
 */

typedef struct name {
    struct name *next;
    char text[];
} name_t;

static name_t *names; /* protected by lock */

const char *
vnxi_nixl_intern(const char *text)
{
    size_t size = strlen(text) + 1;

    take_lock();
    name_t *name = names;
    while (name != NULL && strcmp(name->text, text) != 0) {
        name = name->next;
    }
    if (name == NULL && (name = malloc(sizeof *name + size)) != NULL) {
        memcpy(name->text, text, size);
        name->next = names;
        names = name;
    }
    vnxi_mutex_unlock(&lock);
    return name != NULL ? name->text : NULL;
}
