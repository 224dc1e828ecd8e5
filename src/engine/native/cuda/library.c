/*
 * Design notes.  "Initialised" is the driver's word, of the whole process: its
 * cuDeviceGetCount() tells whether anybody has called cuInit().  A libcuda may
 * be loaded in a program that does not use it, because UCX's CUDA modules need
 * it.
 *
 * A library whose cuInit() was called is not unloaded, also if that failed: it
 * may have started threads.
 */
#include "engine/native/cuda/library.h"

#include <dlfcn.h>
#include <link.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fork.h"
#include "base/mutex.h"

#define VARIABLE "VLLM_NIXL_CUDA_LIBRARY"
#define FILE_NAME "libcuda.so.1"
#define FORKED                                                           \
    "forked: CUDA cannot be used in a child of a process that has "      \
    "initialised it; start the child with exec, or fork before CUDA is " \
    "used"

typedef struct symbol {
    const char *name;
    size_t offset; /* of the pointer in vnxi_cu_functions_t */
    bool is_required;
} symbol_t;

static const symbol_t symbols[] = {
#define REQUIRED(result, name, parameters) \
    {#name, offsetof(vnxi_cu_functions_t, name), true},
#define OPTIONAL(result, name, parameters) \
    {#name, offsetof(vnxi_cu_functions_t, name), false},
    VNXI_CU_START_FUNCTIONS(REQUIRED) VNXI_CU_WORK_FUNCTIONS(REQUIRED)
        VNXI_CU_OPTIONAL_FUNCTIONS(OPTIONAL)
#undef REQUIRED
#undef OPTIONAL
};

static vnxi_mutex_t lock = VNXI_MUTEX_INIT(VNXI_RANK_CUDA_LIBRARY);
static vnxi_cuda_library_t library;   /* protected by lock until `ready` */
static vnxi_cuda_library_t candidate; /* loaded; protected by lock */
static bool has_candidate;            /* protected by lock */
static bool is_starting;              /* protected by lock */
static char why[1024];                /* protected by lock until `failure` */

/* At most one of them is set, once. */
static const vnxi_cuda_library_t *_Atomic ready;
static const char *_Atomic failure;

/* The number of objects that the linker had loaded when libcuda was last found
 * missing; 0: not known. */
static atomic_ullong loads_without;

static int
take_count(struct dl_phdr_info *info, size_t size, void *loads_p)
{
    (void)size;
    *(unsigned long long *)loads_p = info->dlpi_adds;
    return 1;
}

static unsigned long long
count_loads(void)
{
    unsigned long long loads = 0;
    dl_iterate_phdr(take_count, &loads);
    return loads;
}

/* A child of a process that was starting CUDA cannot know how far it came. */
static void
forget_in_child(void)
{
    vnxi_mutex_init(&lock, VNXI_RANK_CUDA_LIBRARY);
    if (is_starting || atomic_load(&ready) != NULL) {
        atomic_store(&ready, NULL);
        atomic_store(&failure, FORKED);
    }
}

/* -- Reasons ---------------------------------------------------------------
 */

static void __attribute__((format(printf, 1, 2))) fail(const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(why, sizeof why, format, args);
    va_end(args);
    atomic_store(&failure, why);
}

static void
fail_call(const vnxi_cuda_library_t *found, const char *function,
          vnxi_cu_result_t result)
{
    const char *name = NULL;

    if (found->cu.cuGetErrorName(result, &name) != VNXI_CUDA_SUCCESS ||
        name == NULL) {
        name = "unknown error";
    }
    fail("%s of %s: %s (%u)", function, found->path, name, result);
}

/* -- Loading ---------------------------------------------------------------
 */

/* Look up all symbols; fail with the names of required ones that are missing,
 * as many as there is room for. */
static bool
take_symbols(void *handle, const char *name, vnxi_cu_functions_t *cu)
{
    char missing[400] = "", more[32] = "";
    size_t used = 0, left_out = 0;

    for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
        const symbol_t *wanted = &symbols[i];
        void *symbol = dlsym(handle, wanted->name);
        memcpy((char *)cu + wanted->offset, &symbol, sizeof symbol);
        if (symbol != NULL || !wanted->is_required) {
            continue;
        }
        if (used + 2 + strlen(wanted->name) >= sizeof missing) {
            left_out++;
            continue;
        }
        used += (size_t)snprintf(missing + used, sizeof missing - used, "%s%s",
                                 used > 0 ? ", " : "", wanted->name);
    }
    if (left_out > 0) {
        snprintf(more, sizeof more, " and %zu more", left_out);
    }
    if (used > 0) {
        fail("%.300s lacks %s%s: CUDA 11.4 or later is required", name,
             missing, more);
    }
    return used == 0;
}

static bool
take_library(void *handle, const char *name, vnxi_cuda_library_t *found)
{
    Dl_info info;

    if (!take_symbols(handle, name, &found->cu)) {
        return false;
    }
    found->path = dladdr(dlsym(handle, "cuInit"), &info) != 0 ? info.dli_fname
                                                              : FILE_NAME;
    return true;
}

/* cuInit() succeeds if it was called before. */
static bool
start_driver(const vnxi_cuda_library_t *found)
{
    vnxi_cu_result_t result = found->cu.cuInit(0);

    if (result == VNXI_CUDA_ERROR_NOT_INITIALIZED) {
        fail(FORKED); /* by the program, before it used this library */
    } else if (result != VNXI_CUDA_SUCCESS) {
        fail_call(found, "cuInit", result);
    }
    return result == VNXI_CUDA_SUCCESS;
}

/* Ask the driver, which is initialised. */
static void
take_devices(vnxi_cuda_library_t *found)
{
    vnxi_cu_result_t result = found->cu.cuDriverGetVersion(&found->driver);

    if (result != VNXI_CUDA_SUCCESS) {
        fail_call(found, "cuDriverGetVersion", result);
        return;
    }
    result = found->cu.cuDeviceGetCount(&found->device_count);
    if (result != VNXI_CUDA_SUCCESS) {
        fail_call(found, "cuDeviceGetCount", result);
    } else if (found->device_count < 1) {
        fail("%s sees no GPU", found->path);
    } else {
        library = *found;
        atomic_store(&ready, &library);
    }
}

/* Does the program use this libcuda, which is loaded? */
static bool
is_used(const vnxi_cuda_library_t *found)
{
    int count;
    return found->cu.cuDeviceGetCount(&count) !=
           VNXI_CUDA_ERROR_NOT_INITIALIZED;
}

/* Find the library, which must be loaded unless it may be started.  Sets
 * `failure` if there is one that cannot be used, or none although it may. */
static void
load_lock_held(vnxi_cuda_start_t start)
{
    const char *named = getenv(VARIABLE);
    const char *name = named != NULL && named[0] != '\0' ? named : FILE_NAME;
    unsigned long long loads = count_loads();

    if (strcmp(name, "none") == 0) {
        fail("disabled by " VARIABLE "=none");
        return;
    }
    void *handle = dlopen(name, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
    if (handle == NULL && start == VNXI_CUDA_START) {
        handle = dlopen(name, RTLD_NOW | RTLD_LOCAL);
        if (handle == NULL) {
            fail("%s", dlerror());
        }
    }
    if (handle == NULL) {
        atomic_store(&loads_without, loads);
        return;
    }
    has_candidate = take_library(handle, name, &candidate);
    if (!has_candidate) {
        dlclose(handle);
    }
}

/* Set `ready` or `failure`; neither if the program does not use CUDA and it
 * may not be started. */
static void
find_lock_held(vnxi_cuda_start_t start)
{
    if (!has_candidate) {
        load_lock_held(start);
    }
    if (has_candidate &&
        (start == VNXI_CUDA_IF_USED ? is_used(&candidate)
                                    : start_driver(&candidate))) {
        take_devices(&candidate);
    }
}

/* Programs without CUDA are asked often. */
static bool
is_known_to_be_absent(vnxi_cuda_start_t start)
{
    return start == VNXI_CUDA_IF_USED && atomic_load(&loads_without) != 0 &&
           atomic_load(&loads_without) == count_loads();
}

const vnxi_cuda_library_t *
vnxi_cuda_library(vnxi_cuda_start_t start, const char **why_p)
{
    if (atomic_load(&ready) == NULL && atomic_load(&failure) == NULL &&
        !is_known_to_be_absent(start)) {
        vnxi_fork_on_child(forget_in_child);
        vnxi_mutex_lock(&lock);
        if (atomic_load(&ready) == NULL && atomic_load(&failure) == NULL) {
            is_starting = start == VNXI_CUDA_START;
            find_lock_held(start);
            is_starting = false;
        }
        vnxi_mutex_unlock(&lock);
    }
    const vnxi_cuda_library_t *found = atomic_load(&ready);
    if (found == NULL && why_p != NULL) {
        const char *reason = atomic_load(&failure);
        *why_p = reason != NULL ? reason : "the program does not use CUDA";
    }
    return found;
}

const char *
vnxi_cuda_failure(void)
{
    return atomic_load(&failure);
}
