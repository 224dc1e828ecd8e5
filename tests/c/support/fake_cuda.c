/*
 * A library with the functions of libcuda.so.1 that the transport `cuda` uses,
 * and with those that clients of CUDA call, for tests on machines without a
 * GPU.  This file has devices, contexts, and the checks of every call.
 *
 * It is at least as strict as the driver: a copy or a row of a kernel outside
 * live memory ends the process with a message, and what is used after its end
 * or given back twice counts as a misuse.
 */
#include "fake_cuda_parts.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

EXPORT fake_cuda_t fake_cuda;
EXPORT extern const fake_cuda_calls_t fake_cuda_calls;

_Thread_local thread_t fc_thread;
context_t fc_contexts[FAKE_CUDA_DEVICES]; /* fc_lock */
pthread_mutex_t fc_lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t fc_changed = PTHREAD_COND_INITIALIZER;

extern site_t __start_fake_cuda_sites[], __stop_fake_cuda_sites[];

static atomic_bool started; /* by cuInit() */
static atomic_bool forked;  /* this is a child of a process with CUDA */
static atomic_uint_fast64_t random_states;
static pthread_key_t thread_ends;

void
fc_misuse(const char *format, ...)
{
    char text[512];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fprintf(stderr, "fake libcuda: %s\n", text);
    atomic_fetch_add(&fake_cuda.misuses, 1);
}

void
fc_violation(const char *format, ...)
{
    char text[512];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fprintf(stderr, "fake libcuda: violation: %s\n", text);
    abort();
}

/* -- Random numbers --------------------------------------------------------
 */

uint64_t
fc_random(uint64_t *state_p, uint64_t limit)
{
    uint64_t z = (*state_p += UINT64_C(0x9e3779b97f4a7c15)); /* SplitMix64 */

    z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
    return limit == 0 ? 0 : (z ^ (z >> 31)) % limit;
}

uint64_t
fc_random_state(void)
{
    return (uint64_t)atomic_load(&fake_cuda.seed) * 1000003 +
           atomic_fetch_add(&random_states, 1);
}

/* -- Knobs -----------------------------------------------------------------
 */

static site_t *
find_site(const char *name, size_t len)
{
    for (site_t *s = __start_fake_cuda_sites; s < __stop_fake_cuda_sites;
         s++) {
        if (strlen(s->name) == len && memcmp(s->name, name, len) == 0) {
            return s;
        }
    }
    fc_violation("it has no function %.*s", (int)len, name);
}

static void
refuse(const char *function, int code)
{
    atomic_store(&find_site(function, strlen(function))->refusal, code);
}

static int
count(const char *function)
{
    return atomic_load(&find_site(function, strlen(function))->calls);
}

static void
break_contexts(int code)
{
    if (code == 0) {
        fc_drain(); /* or what they were to drop would be done */
    }
    for (int i = 0; i < FAKE_CUDA_DEVICES; i++) {
        atomic_store(&fc_contexts[i].failed, code);
    }
}

static void
set_knob(const char *name, const char *value)
{
    const struct {
        const char *name;
        atomic_int *knob;
    } knobs[] = {
        {"devices", &fake_cuda.devices},
        {"version", &fake_cuda.version},
        {"fabric", &fake_cuda.fabric},
        {"no_peers", &fake_cuda.no_peers},
        {"no_fd_export", &fake_cuda.no_fd_export},
        {"old_ipc", &fake_cuda.old_ipc},
        {"alias", &fake_cuda.alias},
        {"delay_us", &fake_cuda.delay_us},
        {"pin_delay_us", &fake_cuda.pin_delay_us},
        {"waits", &fake_cuda.waits},
        {"seed", &fake_cuda.seed},
        {"fail_after", &fake_cuda.fail_after},
        {"fail_code", &fake_cuda.fail_code},
    };

    if (strcmp(name, "uuids") == 0) {
        for (int i = 0; i < FAKE_CUDA_DEVICES && isdigit(value[i]); i++) {
            atomic_store(&fake_cuda.uuid[i], (unsigned char)(value[i] - '0'));
        }
        return;
    }
    if (strcmp(name, "refuse") == 0) {
        const char *colon = strchr(value, ':');
        if (colon == NULL) {
            fc_violation("FAKE_CUDA: refuse=FUNCTION:CODE, not %s", value);
        }
        atomic_store(&find_site(value, (size_t)(colon - value))->refusal,
                     (int)strtol(colon + 1, NULL, 10));
        return;
    }
    for (size_t i = 0; i < sizeof knobs / sizeof knobs[0]; i++) {
        if (strcmp(name, knobs[i].name) == 0) {
            atomic_store(knobs[i].knob, (int)strtol(value, NULL, 10));
            return;
        }
    }
    fc_violation("FAKE_CUDA has an unknown knob: %s", name);
}

static void
read_environment(void)
{
    const char *list = getenv("FAKE_CUDA");
    char *copy = strdup(list != NULL ? list : "");
    char *rest = copy;

    if (copy == NULL) {
        fc_violation("no memory");
    }
    for (char *item; (item = strsep(&rest, ",")) != NULL;) {
        char *value = strchr(item, '=');
        if (value != NULL) {
            *value++ = '\0';
            set_knob(item, value);
        }
    }
    free(copy);
}

/* -- Begin and end of the process ------------------------------------------
 */

static int
report(void)
{
    const struct {
        const char *name;
        atomic_int *count;
    } living[] = {
        {"retained contexts", &fake_cuda.retains},
        {"streams", &fake_cuda.streams},
        {"events", &fake_cuda.events},
        {"modules", &fake_cuda.modules},
        {"allocations", &fake_cuda.allocations},
        {"handles", &fake_cuda.handles},
        {"mappings", &fake_cuda.mappings},
        {"reserved ranges", &fake_cuda.reservations},
        {"pools", &fake_cuda.pools},
        {"open legacy handles", &fake_cuda.imports},
        {"registered ranges", &fake_cuda.registered},
    };
    int sum = 0;

    for (size_t i = 0; i < sizeof living / sizeof living[0]; i++) {
        int n = atomic_load(living[i].count);
        if (n != 0) {
            fprintf(stderr, "fake libcuda: %d %s live\n", n, living[i].name);
            sum += n;
        }
    }
    return sum;
}

/* FAKE_CUDA_EXIT=strict: a process that leaves anything behind, or misused the
 * driver, ends with a failure. */
static void
at_exit(void)
{
    const char *wish = getenv("FAKE_CUDA_EXIT");

    if (!atomic_load(&started) || atomic_load(&forked)) {
        return;
    }
    int left = report();
    atomic_store(&fake_cuda.exited, 1);
    if (wish != NULL && strcmp(wish, "strict") == 0 &&
        (left > 0 || atomic_load(&fake_cuda.misuses) > 0)) {
        fc_violation("%d objects left, %d misuses", left,
                     atomic_load(&fake_cuda.misuses));
    }
}

static void
in_child(void)
{
    if (atomic_load(&started)) {
        atomic_store(&forked, true);
    }
}

static void
at_thread_end(void *thread)
{
    if (((thread_t *)thread)->pushed > 0) {
        fc_misuse("a thread ends with contexts that it has pushed");
    }
}

__attribute__((constructor)) static void
load(void)
{
    atomic_store(&fake_cuda.devices, 1);
    atomic_store(&fake_cuda.version, 12080);
    atomic_store(&fake_cuda.fail_code, VNXI_CUDA_ERROR_ILLEGAL_ADDRESS);
    for (int i = 0; i < FAKE_CUDA_DEVICES; i++) {
        atomic_store(&fake_cuda.uuid[i], (unsigned char)i);
        fc_contexts[i].device = i;
    }
    read_environment();
    pthread_key_create(&thread_ends, at_thread_end);
    pthread_atfork(NULL, NULL, in_child);
    atexit(at_exit);
}

EXPORT vnxi_cu_result_t
cuInit(unsigned flags)
{
    ENTER(cuInit, ALWAYS);
    if (flags != 0) {
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    if (atomic_load(&fake_cuda.devices) == 0) {
        return VNXI_CUDA_ERROR_NO_DEVICE;
    }
    lock();
    if (!atomic_load(&started)) {
        if (atomic_load(&fake_cuda.seed) == 0) {
            struct timespec now;
            clock_gettime(CLOCK_REALTIME, &now);
            atomic_store(&fake_cuda.seed, (int)(now.tv_nsec ^ getpid()) | 1);
        }
        fc_memory_start();
        atomic_store(&started, true);
    }
    unlock();
    return VNXI_CUDA_SUCCESS;
}

/* -- The checks of every call ----------------------------------------------
 */

context_t *
fc_current(void)
{
    return fc_thread.depth > 0 ? fc_thread.stack[fc_thread.depth - 1] : NULL;
}

int
fc_failure(void)
{
    context_t *context = fc_current();
    return context != NULL ? atomic_load(&context->failed) : VNXI_CUDA_SUCCESS;
}

static int
check_context(void)
{
    context_t *context = fc_current();

    if (context == NULL) {
        return VNXI_CUDA_ERROR_INVALID_CONTEXT;
    }
    lock();
    int refs = context->refs;
    unlock();
    return refs == 0 ? VNXI_CUDA_ERROR_CONTEXT_IS_DESTROYED : fc_failure();
}

int
fc_enter(site_t *site, int needs)
{
    int refusal = atomic_load(&site->refusal);

    atomic_fetch_add(&site->calls, 1);
    atomic_fetch_add(&fake_cuda.calls, 1);
    if (atomic_load(&forked)) {
        return VNXI_CUDA_ERROR_NOT_INITIALIZED;
    }
    if (atomic_load(&fake_cuda.exited) != 0) {
        return VNXI_CUDA_ERROR_DEINITIALIZED;
    }
    if (fc_thread.in_host_function) {
        fc_misuse("%s is called in a host function", site->name);
        return VNXI_CUDA_ERROR_NOT_PERMITTED;
    }
    if (refusal != 0) {
        return refusal;
    }
    if (!(needs & ALWAYS) && !atomic_load(&started)) {
        return VNXI_CUDA_ERROR_NOT_INITIALIZED;
    }
    if ((needs & UNSAFE) && atomic_load(&fake_cuda.capturing) != 0 &&
        fc_thread.mode != VNXI_CU_STREAM_CAPTURE_MODE_RELAXED) {
        fprintf(stderr, "fake libcuda: %s breaks a capture\n", site->name);
        atomic_fetch_add(&fake_cuda.captures_broken, 1);
        return VNXI_CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    }
    if ((needs & CURRENT) && fc_current() == NULL) {
        return VNXI_CUDA_ERROR_INVALID_CONTEXT;
    }
    return needs & CONTEXT ? check_context() : VNXI_CUDA_SUCCESS;
}

EXPORT vnxi_cu_result_t
cuThreadExchangeStreamCaptureMode(vnxi_cu_enum_t *mode_p)
{
    ENTER(cuThreadExchangeStreamCaptureMode, 0);
    if (mode_p == NULL || *mode_p > VNXI_CU_STREAM_CAPTURE_MODE_RELAXED) {
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    vnxi_cu_enum_t old = fc_thread.mode;
    fc_thread.mode = *mode_p;
    *mode_p = old;
    return VNXI_CUDA_SUCCESS;
}

EXPORT vnxi_cu_result_t
cuGetErrorName(vnxi_cu_result_t code, const char **name_p)
{
    static const struct {
        unsigned code;
        const char *name;
    } names[] = {
        {VNXI_CUDA_SUCCESS, "CUDA_SUCCESS"},
        {VNXI_CUDA_ERROR_INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE"},
        {VNXI_CUDA_ERROR_OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY"},
        {VNXI_CUDA_ERROR_NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED"},
        {VNXI_CUDA_ERROR_DEINITIALIZED, "CUDA_ERROR_DEINITIALIZED"},
        {VNXI_CUDA_ERROR_NO_DEVICE, "CUDA_ERROR_NO_DEVICE"},
        {VNXI_CUDA_ERROR_INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE"},
        {VNXI_CUDA_ERROR_INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE"},
        {VNXI_CUDA_ERROR_INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT"},
        {VNXI_CUDA_ERROR_ALREADY_MAPPED, "CUDA_ERROR_ALREADY_MAPPED"},
        {VNXI_CUDA_ERROR_PEER_ACCESS_UNSUPPORTED,
         "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED"},
        {VNXI_CUDA_ERROR_JIT_COMPILER_NOT_FOUND,
         "CUDA_ERROR_JIT_COMPILER_NOT_FOUND"},
        {VNXI_CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
         "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"},
        {VNXI_CUDA_ERROR_INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE"},
        {VNXI_CUDA_ERROR_NOT_FOUND, "CUDA_ERROR_NOT_FOUND"},
        {VNXI_CUDA_ERROR_NOT_READY, "CUDA_ERROR_NOT_READY"},
        {VNXI_CUDA_ERROR_ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS"},
        {VNXI_CUDA_ERROR_CONTEXT_IS_DESTROYED,
         "CUDA_ERROR_CONTEXT_IS_DESTROYED"},
        {VNXI_CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED,
         "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED"},
        {VNXI_CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED,
         "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED"},
        {VNXI_CUDA_ERROR_LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED"},
        {VNXI_CUDA_ERROR_NOT_PERMITTED, "CUDA_ERROR_NOT_PERMITTED"},
        {VNXI_CUDA_ERROR_NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED"},
        {VNXI_CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,
         "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"},
    };

    ENTER(cuGetErrorName, ALWAYS);
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (names[i].code == code) {
            *name_p = names[i].name;
            return VNXI_CUDA_SUCCESS;
        }
    }
    *name_p = NULL;
    return VNXI_CUDA_ERROR_INVALID_VALUE;
}

/* -- Devices ---------------------------------------------------------------
 */

bool
fc_is_device(int device)
{
    return device >= 0 && device < atomic_load(&fake_cuda.devices) &&
           device < FAKE_CUDA_DEVICES;
}

EXPORT vnxi_cu_result_t
cuDriverGetVersion(int *version_p)
{
    ENTER(cuDriverGetVersion, ALWAYS);
    *version_p = atomic_load(&fake_cuda.version);
    return VNXI_CUDA_SUCCESS;
}

EXPORT vnxi_cu_result_t
cuDeviceGetCount(int *count_p)
{
    ENTER(cuDeviceGetCount, 0);
    *count_p = atomic_load(&fake_cuda.devices);
    return VNXI_CUDA_SUCCESS;
}

EXPORT vnxi_cu_result_t
cuDeviceGet(int *device_p, int ordinal)
{
    ENTER(cuDeviceGet, 0);
    if (!fc_is_device(ordinal)) {
        return VNXI_CUDA_ERROR_INVALID_DEVICE;
    }
    *device_p = ordinal;
    return VNXI_CUDA_SUCCESS;
}

EXPORT vnxi_cu_result_t
cuDeviceGetName(char *name, int size, int device)
{
    ENTER(cuDeviceGetName, 0);
    if (!fc_is_device(device)) {
        return VNXI_CUDA_ERROR_INVALID_DEVICE;
    }
    snprintf(name, (size_t)size, "fake GPU");
    return VNXI_CUDA_SUCCESS;
}

EXPORT vnxi_cu_result_t
cuDeviceGetUuid_v2(vnxi_cu_uuid_t *uuid_p, int device)
{
    ENTER(cuDeviceGetUuid_v2, 0);
    if (!fc_is_device(device)) {
        return VNXI_CUDA_ERROR_INVALID_DEVICE;
    }
    memcpy(uuid_p->bytes, "fake GPU number ", 16);
    uuid_p->bytes[15] = (char)atomic_load(&fake_cuda.uuid[device]);
    return VNXI_CUDA_SUCCESS;
}

EXPORT vnxi_cu_result_t
cuDeviceGetAttribute(int *value_p, vnxi_cu_enum_t attribute, int device)
{
    static const unsigned ones[] = {41,  91,  102, 103, 110,
                                    115, 116, 117, 124}; /* cuda.h */

    ENTER(cuDeviceGetAttribute, 0);
    if (!fc_is_device(device)) {
        return VNXI_CUDA_ERROR_INVALID_DEVICE;
    }
    *value_p = 0;
    switch (attribute) {
    case 16: /* multiprocessors */
        *value_p = 132;
        break;
    case 40: /* copy engines */
        *value_p = 3;
        break;
    case 75: /* compute capability */
        *value_p = 9;
        break;
    case 128: /* fabric handles */
        *value_p = atomic_load(&fake_cuda.fabric) != FAKE_CUDA_NO_FABRIC;
        break;
    default:
        for (size_t i = 0; i < sizeof ones / sizeof ones[0]; i++) {
            *value_p |= ones[i] == attribute;
        }
    }
    if (attribute == 91 && atomic_load(&fake_cuda.alias) != 0) {
        *value_p = 0;
    }
    if (attribute == 103 && atomic_load(&fake_cuda.no_fd_export) != 0) {
        *value_p = 0;
    }
    return VNXI_CUDA_SUCCESS;
}

EXPORT vnxi_cu_result_t
cuDeviceCanAccessPeer(int *yes_p, int device, int peer)
{
    ENTER(cuDeviceCanAccessPeer, 0);
    if (!fc_is_device(device) || !fc_is_device(peer)) {
        return VNXI_CUDA_ERROR_INVALID_DEVICE;
    }
    *yes_p = device != peer && atomic_load(&fake_cuda.no_peers) == 0;
    return VNXI_CUDA_SUCCESS;
}

/* -- Contexts --------------------------------------------------------------
 */

static bool
is_context(const context_t *context)
{
    return context >= fc_contexts && context < fc_contexts + FAKE_CUDA_DEVICES;
}

EXPORT vnxi_cu_result_t
cuDevicePrimaryCtxRetain(context_t **context_p, int device)
{
    ENTER(cuDevicePrimaryCtxRetain, 0);
    if (!fc_is_device(device)) {
        return VNXI_CUDA_ERROR_INVALID_DEVICE;
    }
    lock();
    fc_contexts[device].refs++;
    unlock();
    atomic_fetch_add(&fake_cuda.retains, 1);
    *context_p = &fc_contexts[device];
    return VNXI_CUDA_SUCCESS;
}

EXPORT vnxi_cu_result_t
cuDevicePrimaryCtxRelease_v2(int device)
{
    ENTER(cuDevicePrimaryCtxRelease_v2, 0);
    if (!fc_is_device(device)) {
        return VNXI_CUDA_ERROR_INVALID_DEVICE;
    }
    context_t *context = &fc_contexts[device];
    lock();
    if (context->refs == 0) {
        unlock();
        fc_misuse("the context of device %d is released too often", device);
        return VNXI_CUDA_ERROR_INVALID_CONTEXT;
    }
    if (context->refs == 1) {
        int work = fc_work_of_lock_held(context);
        int memory = fc_memory_of_lock_held(context);
        if (work + memory > 0) {
            fc_misuse("the context of device %d ends with %d streams, events "
                      "and modules and %d allocations",
                      device, work, memory);
        }
        atomic_store(&context->failed, 0);
        context->peers = 0;
    }
    context->refs--;
    unlock();
    atomic_fetch_sub(&fake_cuda.retains, 1);
    return VNXI_CUDA_SUCCESS;
}

EXPORT vnxi_cu_result_t
cuDevicePrimaryCtxGetState(int device, unsigned *flags_p, int *active_p)
{
    ENTER(cuDevicePrimaryCtxGetState, 0);
    if (!fc_is_device(device)) {
        return VNXI_CUDA_ERROR_INVALID_DEVICE;
    }
    lock();
    *active_p = fc_contexts[device].refs > 0;
    unlock();
    *flags_p = 0;
    return VNXI_CUDA_SUCCESS;
}

EXPORT vnxi_cu_result_t
cuCtxPushCurrent_v2(context_t *context)
{
    size_t limit = sizeof fc_thread.stack / sizeof fc_thread.stack[0];

    ENTER(cuCtxPushCurrent_v2, 0);
    if (!is_context(context)) {
        fc_misuse("cuCtxPushCurrent_v2 gets no context");
        return VNXI_CUDA_ERROR_INVALID_CONTEXT;
    }
    lock();
    int refs = context->refs;
    unlock();
    if (refs == 0) {
        fc_misuse("a context that has ended is pushed");
        return VNXI_CUDA_ERROR_INVALID_CONTEXT;
    }
    if ((size_t)fc_thread.depth == limit) {
        fc_violation("%zu contexts are pushed and never popped", limit);
    }
    fc_thread.stack[fc_thread.depth++] = context;
    fc_thread.pushed++;
    pthread_setspecific(thread_ends, &fc_thread);
    return VNXI_CUDA_SUCCESS;
}

EXPORT vnxi_cu_result_t
cuCtxPopCurrent_v2(context_t **context_p)
{
    ENTER(cuCtxPopCurrent_v2, 0);
    if (fc_thread.depth == 0) {
        fc_misuse("a context is popped that was not pushed");
        return VNXI_CUDA_ERROR_INVALID_CONTEXT;
    }
    fc_thread.depth--;
    fc_thread.pushed -= fc_thread.pushed > 0;
    if (context_p != NULL) {
        *context_p = fc_thread.stack[fc_thread.depth];
    }
    return VNXI_CUDA_SUCCESS;
}

/* As clients of the runtime API call it: the context stays. */
EXPORT vnxi_cu_result_t
cuCtxSetCurrent(context_t *context)
{
    ENTER(cuCtxSetCurrent, 0);
    if (context != NULL && !is_context(context)) {
        return VNXI_CUDA_ERROR_INVALID_CONTEXT;
    }
    fc_thread.depth -= fc_thread.depth > 0;
    if (context != NULL) {
        fc_thread.stack[fc_thread.depth++] = context;
    }
    return VNXI_CUDA_SUCCESS;
}

EXPORT vnxi_cu_result_t
cuCtxGetCurrent(context_t **context_p)
{
    ENTER(cuCtxGetCurrent, 0);
    *context_p = fc_current();
    return VNXI_CUDA_SUCCESS;
}

EXPORT vnxi_cu_result_t
cuCtxGetDevice(int *device_p)
{
    ENTER(cuCtxGetDevice, CONTEXT);
    *device_p = fc_current()->device;
    return VNXI_CUDA_SUCCESS;
}

EXPORT vnxi_cu_result_t
cuCtxGetStreamPriorityRange(int *least_p, int *greatest_p)
{
    ENTER(cuCtxGetStreamPriorityRange, CONTEXT);
    *least_p = 0;
    *greatest_p = -5;
    return VNXI_CUDA_SUCCESS;
}

EXPORT vnxi_cu_result_t
cuCtxSynchronize(void)
{
    ENTER(cuCtxSynchronize, CONTEXT | UNSAFE);
    fc_drain();
    return fc_failure();
}

EXPORT vnxi_cu_result_t
cuCtxEnablePeerAccess(context_t *peer, unsigned flags)
{
    ENTER(cuCtxEnablePeerAccess, CONTEXT);
    context_t *context = fc_current();
    if (!is_context(peer) || flags != 0) {
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    if (peer == context || atomic_load(&fake_cuda.no_peers) != 0) {
        return VNXI_CUDA_ERROR_PEER_ACCESS_UNSUPPORTED;
    }
    lock();
    unsigned bit = 1u << peer->device;
    bool again = (context->peers & bit) != 0;
    context->peers |= bit;
    unlock();
    return again ? VNXI_CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED
                 : VNXI_CUDA_SUCCESS;
}

/* -- Calls of tests --------------------------------------------------------
 */

static void
peek(uint64_t address, void *data, size_t len)
{
    for (uint8_t *to = data; len > 0;) {
        view_t view =
            fc_pin(NULL, address, len, ACCESS_READ, false, "a test reads");
        memcpy(to, view.bytes, view.len);
        fc_unpin(&view);
        to += view.len;
        address += view.len;
        len -= view.len;
    }
}

static void
poke(uint64_t address, const void *data, size_t len)
{
    for (const uint8_t *from = data; len > 0;) {
        view_t view =
            fc_pin(NULL, address, len, ACCESS_WRITE, false, "a test writes");
        memcpy(view.bytes, from, view.len);
        fc_unpin(&view);
        from += view.len;
        address += view.len;
        len -= view.len;
    }
}

EXPORT const fake_cuda_calls_t fake_cuda_calls = {
    .refuse = refuse,
    .count = count,
    .hold = fc_hold,
    .break_contexts = break_contexts,
    .peek = peek,
    .poke = poke,
    .shared = fc_shared,
    .report = report,
};
