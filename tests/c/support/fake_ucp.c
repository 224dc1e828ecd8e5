/*
 * A library with the functions of libucp that the backend uses, for tests of
 * rare events in UCX.  Workers of one process reach each other; bytes are
 * moved by memcpy() when a request ends, so that ASan detects memory that was
 * freed too early.  Tests change its behaviour through `fake_ucp`
 * (fake_ucp.h).
 *
 * It is stricter than UCX where UCX's manual allows it to be: a worker is used
 * by one thread at a time, keys belong to their endpoint, and whatever is used
 * after its end or given back twice counts as a misuse.
 *
 * With memory of a GPU it behaves as UCX's CUDA modules do: it asks libcuda,
 * which is the fake one, on the thread that calls it.
 *
 * ucx_contract_test.c tests it and UCX with the same assertions.
 */
#include "fake_ucp.h"

#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "engine/native/cuda/cuda_abi.h"
#include "engine/native/ucx/ucp_abi.h"
#include "fake_cuda.h"

#define EXPORT __attribute__((visibility("default")))
#define MAGIC "FAKEUCP"
#define ERR_REMOTE_ACCESS (-21)

typedef enum item_type { ITEM_REQUEST, ITEM_MESSAGE, ITEM_ERROR } item_type_t;

/* The work of progress. */
typedef struct item {
    item_type_t type;
    struct ucp_worker *worker;
    struct ucp_ep *ep;
    vnxi_ucs_status_t status;
    struct item *next;

    /* A request's. */
    fake_ucp_kind_t kind;
    void (*callback)(void *request, vnxi_ucs_status_t status, void *user_data);
    void *user_data;
    void *to;
    const void *from; /* of a message: owned by it */
    size_t len;
    bool ended;

    uint64_t attr; /* a message's */
} item_t;

typedef struct address {
    char magic[8];
    uint64_t id;
} address_t;

typedef struct key_bytes {
    uint64_t map;
    uint8_t memory_type;
    char magic[8];
    uint64_t addr, len;
} __attribute__((packed)) key_bytes_t;

struct ucp_config {
    char settings[2048];
};

struct ucp_context {
    atomic_int gpu_mems; /* mapped */
};

struct ucp_worker {
    struct ucp_context *context;
    uint64_t id;
    int efd;
    pthread_mutex_t in_use; /* recursive: callbacks call again */
    vnxi_ucp_am_cb_t am;
    void *am_arg;
    item_t *due, **due_last;
    item_t *held; /* oldest first */
    struct ucp_ep *eps;
    struct ucp_worker *next;
};

struct ucp_ep {
    struct ucp_worker *worker;
    uint64_t target;
    vnxi_ucp_err_handler_t handler;
    vnxi_ucs_status_t failure;
    bool closing;
    bool freed; /* below: by a connection that failed in ucp_ep_create() */
    struct ucp_ep *next;
};

struct ucp_mem {
    uint64_t addr, len;
    int type;
    uint64_t covered; /* of len, in fact */
    struct ucp_mem *next;
};

struct ucp_rkey {
    struct ucp_ep *ep;
    key_bytes_t bytes;
};

EXPORT fake_ucp_t fake_ucp;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct ucp_worker *workers; /* lock, as all below */
static struct ucp_mem *mems;
static uint64_t last_id;
static vnxi_ucs_log_func_t log_handler;

/* Not under lock, because tests poll it. */
static atomic_size_t held_counts[FAKE_KINDS];

#define REFUSE_IF(knob)                              \
    do {                                             \
        if (atomic_load(&fake_ucp.knob) != 0) {      \
            return (vnxi_ucs_status_t)fake_ucp.knob; \
        }                                            \
    } while (0)

static void
misuse(const char *what)
{
    fprintf(stderr, "fake libucp: %s\n", what);
    atomic_fetch_add(&fake_ucp.misuses, 1);
}

/* -- Memory of a GPU -------------------------------------------------------
 */

/* The fake libcuda, if the process has loaded it. */
static const fake_cuda_calls_t *
find_cuda(vnxi_cu_functions_t *cu)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);

    if (library == NULL) {
        return NULL;
    }
#define LOAD(result, name, parameters) cu->name = dlsym(library, #name);
    VNXI_CU_WORK_FUNCTIONS(LOAD)
#undef LOAD
    return dlsym(library, "fake_cuda_calls");
}

static bool
is_gpu(int type)
{
    return type == VNXI_UCS_MEMORY_CUDA ||
           type == VNXI_UCS_MEMORY_CUDA_MANAGED;
}

static int
find_type(const void *addr)
{
    vnxi_cu_enum_t attributes[] = {VNXI_CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
                                   VNXI_CU_POINTER_ATTRIBUTE_IS_MANAGED};
    uint64_t type = 0, is_managed = 0;
    void *values[] = {&type, &is_managed};
    vnxi_cu_functions_t cu;

    if (find_cuda(&cu) == NULL) {
        return fake_ucp.cuda ? VNXI_UCS_MEMORY_CUDA : VNXI_UCS_MEMORY_HOST;
    }
    cu.cuPointerGetAttributes(2, attributes, values, (uintptr_t)addr);
    return is_managed                          ? VNXI_UCS_MEMORY_CUDA_MANAGED
           : type == VNXI_CU_MEMORYTYPE_DEVICE ? VNXI_UCS_MEMORY_CUDA
                                               : VNXI_UCS_MEMORY_HOST;
}

/* UCX would crash, or break a graph that the program captures. */
static void
check_thread(void)
{
    vnxi_cu_enum_t mode = VNXI_CU_STREAM_CAPTURE_MODE_RELAXED, none;
    vnxi_cu_context_t current = NULL;
    vnxi_cu_functions_t cu;

    if (find_cuda(&cu) == NULL) {
        misuse("libcuda is not loaded");
        return;
    }
    cu.cuCtxGetCurrent(&current);
    if (current == NULL) {
        misuse("a thread has GPU memory and no context");
    }
    cu.cuThreadExchangeStreamCaptureMode(&mode);
    none = mode;
    cu.cuThreadExchangeStreamCaptureMode(&none);
    if (mode != VNXI_CU_STREAM_CAPTURE_MODE_RELAXED) {
        misuse("a thread has GPU memory and may break a capture");
    }
    atomic_fetch_add(&fake_ucp.gpu_checks, 1);
}

static void
check_gpu(struct ucp_context *context)
{
    if (atomic_load(&fake_ucp.needs_gpu) &&
        atomic_load(&context->gpu_mems) > 0) {
        check_thread();
    }
}

static void
copy(void *to, const void *from, size_t len)
{
    vnxi_cu_functions_t cu;
    const fake_cuda_calls_t *cuda = find_cuda(&cu);

    if (cuda == NULL) {
        memcpy(to, from, len);
        return;
    }
    void *bytes = malloc(len);
    if (find_type(from) == VNXI_UCS_MEMORY_CUDA) {
        cuda->peek((uintptr_t)from, bytes, len);
    } else {
        memcpy(bytes, from, len);
    }
    if (find_type(to) == VNXI_UCS_MEMORY_CUDA) {
        cuda->poke((uintptr_t)to, bytes, len);
    } else {
        memcpy(to, bytes, len);
    }
    free(bytes);
}

/* -- Threads ---------------------------------------------------------------
 */

/* Workers are asked for by one thread at a time; which one may change. */
static struct ucp_worker *
enter(struct ucp_worker *worker)
{
    check_gpu(worker->context);
    if (pthread_mutex_trylock(&worker->in_use) != 0) {
        misuse("a worker is used by two threads at once");
        pthread_mutex_lock(&worker->in_use);
    }
    return worker;
}

static void
leave(struct ucp_worker **worker)
{
    pthread_mutex_unlock(&(*worker)->in_use);
}

/* Until the end of the block. */
#define USE(worker)                                                      \
    struct ucp_worker *in_use_ __attribute__((cleanup(leave), unused)) = \
        enter(worker)

static vnxi_ucs_ptr_t
error_ptr(int status)
{
    return (vnxi_ucs_ptr_t)(intptr_t)status;
}

/* -- The queue of a worker -------------------------------------------------
 */

static void
wake(struct ucp_worker *worker)
{
    uint64_t one = 1;
    if (write(worker->efd, &one, sizeof one) < 0) {
        misuse("its descriptor cannot be written");
    }
}

static void
make_due_lock_held(item_t *item)
{
    struct ucp_worker *worker = item->worker;
    item->next = NULL;
    *worker->due_last = item;
    worker->due_last = &item->next;
    wake(worker);
}

static item_t *
take_due(struct ucp_worker *worker)
{
    pthread_mutex_lock(&lock);
    item_t *item = worker->due;
    if (item != NULL) {
        worker->due = item->next;
        if (worker->due == NULL) {
            worker->due_last = &worker->due;
        }
    }
    pthread_mutex_unlock(&lock);
    return item;
}

static struct ucp_worker *
find_worker_lock_held(uint64_t id)
{
    struct ucp_worker *worker = workers;
    while (worker != NULL && worker->id != id) {
        worker = worker->next;
    }
    return worker;
}

static void
deliver_lock_held(struct ucp_worker *worker, const void *data, size_t len,
                  uint64_t attr)
{
    item_t *item = calloc(1, sizeof *item);
    void *copy = malloc(len + 1);

    if (len > 0) {
        memcpy(copy, data, len);
    }
    *item = (item_t){.type = ITEM_MESSAGE, .worker = worker};
    item->from = copy;
    item->len = len;
    item->attr = attr;
    make_due_lock_held(item);
}

/* The kind of the request. */
static void
perform(item_t *request)
{
    if (request->kind == FAKE_AM) {
        pthread_mutex_lock(&lock);
        struct ucp_worker *worker = find_worker_lock_held(request->ep->target);
        if (worker != NULL) {
            deliver_lock_held(worker, request->from, request->len, 0);
        }
        pthread_mutex_unlock(&lock);
    } else if (request->to != NULL && request->len > 0) {
        copy(request->to, request->from, request->len);
    }
}

static void
free_ep(struct ucp_ep *ep)
{
    pthread_mutex_lock(&lock);
    for (struct ucp_ep **at = &ep->worker->eps; *at != NULL;
         at = &(*at)->next) {
        if (*at == ep) {
            *at = ep->next;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
    free(ep);
    atomic_fetch_sub(&fake_ucp.eps, 1);
}

static void
end_request(item_t *request)
{
    if (request->status == VNXI_UCS_OK) {
        perform(request);
    }
    if (request->kind == FAKE_CLOSE) {
        free_ep(request->ep);
    }
    request->ended = true;
    request->callback(request, request->status, request->user_data);
}

/* Take the endpoint's requests from those that are held. */
static item_t *
take_held_lock_held(struct ucp_ep *ep)
{
    item_t *taken = NULL, **last = &taken;

    for (item_t **at = &ep->worker->held; *at != NULL;) {
        item_t *item = *at;
        if (item->ep == ep && item->kind != FAKE_CLOSE) {
            *at = item->next;
            item->next = NULL;
            atomic_fetch_sub(&held_counts[item->kind], 1);
            *last = item;
            last = &item->next;
        } else {
            at = &item->next;
        }
    }
    return taken;
}

static void
end_held(struct ucp_ep *ep, vnxi_ucs_status_t status)
{
    pthread_mutex_lock(&lock);
    item_t *item = take_held_lock_held(ep);
    pthread_mutex_unlock(&lock);
    while (item != NULL) {
        item_t *next = item->next;
        item->status = status;
        end_request(item);
        item = next;
    }
}

static void
run_error(item_t *item)
{
    struct ucp_ep *ep = item->ep;

    pthread_mutex_lock(&lock);
    struct ucp_ep *known = item->worker->eps;
    while (known != NULL && known != ep) {
        known = known->next;
    }
    pthread_mutex_unlock(&lock);
    if (known == NULL || ep->closing) {
        return;
    }
    ep->failure = item->status;
    if (!atomic_load(&fake_ucp.error_first)) {
        end_held(ep, item->status);
    }
    ep->handler.cb(ep->handler.arg, ep, item->status);
    if (atomic_load(&fake_ucp.error_first)) {
        end_held(ep, item->status);
    }
}

static void
run_message(const item_t *item)
{
    const vnxi_ucp_am_recv_param_t param = {.recv_attr = item->attr};
    struct ucp_worker *worker = item->worker;

    if (worker->am != NULL) {
        worker->am(worker->am_arg, NULL, 0, (void *)item->from, item->len,
                   &param);
    }
}

static unsigned
run_due(struct ucp_worker *worker)
{
    item_t *item = take_due(worker);

    if (item == NULL) {
        return 0;
    }
    if (item->type == ITEM_REQUEST) {
        end_request(item);
        return 1;
    }
    if (item->type == ITEM_MESSAGE) {
        run_message(item);
        free((void *)item->from);
    } else {
        run_error(item);
    }
    free(item);
    return 1;
}

/* -- What tests do to it ---------------------------------------------------
 */

static item_t **
find_held_lock_held(fake_ucp_kind_t kind, size_t index)
{
    for (struct ucp_worker *worker = workers; worker != NULL;
         worker = worker->next) {
        for (item_t **at = &worker->held; *at != NULL; at = &(*at)->next) {
            if ((*at)->kind == kind && index-- == 0) {
                return at;
            }
        }
    }
    return NULL;
}

static size_t
count_held(fake_ucp_kind_t kind)
{
    return atomic_load(&held_counts[kind]);
}

static size_t
held_len(fake_ucp_kind_t kind, size_t index)
{
    pthread_mutex_lock(&lock);
    item_t **at = find_held_lock_held(kind, index);
    size_t len = at != NULL ? (*at)->len : SIZE_MAX;
    pthread_mutex_unlock(&lock);
    return len;
}

static bool
end_one(fake_ucp_kind_t kind, size_t index, int status)
{
    pthread_mutex_lock(&lock);
    item_t **at = find_held_lock_held(kind, index);
    if (at != NULL) {
        item_t *item = *at;
        *at = item->next;
        atomic_fetch_sub(&held_counts[kind], 1);
        item->status = (vnxi_ucs_status_t)status;
        make_due_lock_held(item);
    }
    pthread_mutex_unlock(&lock);
    return at != NULL;
}

static void
deliver(const void *data, size_t len, uint64_t attr)
{
    pthread_mutex_lock(&lock);
    for (struct ucp_worker *worker = workers; worker != NULL;
         worker = worker->next) {
        if (worker->am != NULL) {
            deliver_lock_held(worker, data, len, attr);
        }
    }
    pthread_mutex_unlock(&lock);
}

static void
fail_ep_lock_held(struct ucp_ep *ep, int status)
{
    item_t *item = calloc(1, sizeof *item);
    *item = (item_t){.type = ITEM_ERROR, .worker = ep->worker, .ep = ep};
    item->status = (vnxi_ucs_status_t)status;
    make_due_lock_held(item);
}

static void
break_eps(int status)
{
    pthread_mutex_lock(&lock);
    for (struct ucp_worker *worker = workers; worker != NULL;
         worker = worker->next) {
        for (struct ucp_ep *ep = worker->eps; ep != NULL; ep = ep->next) {
            fail_ep_lock_held(ep, status);
        }
    }
    pthread_mutex_unlock(&lock);
}

static void
write_log(int level, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    log_handler("file.c", 1, "function", level, NULL, format, args);
    va_end(args);
}

static void *
take_memory(size_t size)
{
    return malloc(size);
}

static ssize_t
send_bytes(int fd, const void *data, size_t len, int flags)
{
    return send(fd, data, len, flags);
}

static ssize_t
send_message(int fd, const struct msghdr *message, int flags)
{
    return sendmsg(fd, message, flags);
}

static int
accept_one(int fd, struct sockaddr *address, socklen_t *len_p)
{
    return accept(fd, address, len_p);
}

static int
open_socket(int domain, int type, int protocol)
{
    return socket(domain, type, protocol);
}

static int
close_one(int fd)
{
    return close(fd);
}

EXPORT const fake_ucp_calls_t fake_ucp_calls = {
    .held = count_held,
    .held_len = held_len,
    .end = end_one,
    .deliver = deliver,
    .break_eps = break_eps,
    .log = write_log,
    .malloc = take_memory,
    .send = send_bytes,
    .sendmsg = send_message,
    .accept = accept_one,
    .socket = open_socket,
    .close = close_one,
};

/* -- The library -----------------------------------------------------------
 */

static unsigned
number_from(const char *variable, unsigned otherwise)
{
    const char *text = getenv(variable);
    return text != NULL ? (unsigned)atoi(text) : otherwise;
}

EXPORT void
ucp_get_version(unsigned *major, unsigned *minor, unsigned *release)
{
    *major = number_from("FAKE_UCP_MAJOR", 1);
    *minor = number_from("FAKE_UCP_MINOR", 22);
    *release = 0;
}

EXPORT const char *
ucp_get_version_string(void)
{
    return "1.22.0";
}

EXPORT const char *
ucs_status_string(vnxi_ucs_status_t status)
{
    static _Thread_local char text[32];
    snprintf(text, sizeof text, "fake status %d", status);
    return text;
}

EXPORT vnxi_ucs_status_t
ucs_global_opts_set_value(const char *name, const char *value)
{
    if (strcmp(name, "MODULES") == 0 && strcmp(value, "^ib") == 0) {
        atomic_fetch_add(&fake_ucp.modules_set, 1);
    }
    return VNXI_UCS_OK;
}

EXPORT void
ucs_log_push_handler(vnxi_ucs_log_func_t handler)
{
    log_handler = handler;
}

/* -- Context ---------------------------------------------------------------
 */

EXPORT vnxi_ucs_status_t
ucp_config_read(const char *prefix, const char *file,
                vnxi_ucp_config_t **config_p)
{
    (void)prefix, (void)file;
    REFUSE_IF(fail_config);
    *config_p = calloc(1, sizeof **config_p);
    atomic_fetch_add(&fake_ucp.configs, 1);
    return VNXI_UCS_OK;
}

EXPORT vnxi_ucs_status_t
ucp_config_modify(vnxi_ucp_config_t *config, const char *name,
                  const char *value)
{
    size_t used = strlen(config->settings);
    if (strncmp(name, "NO_SUCH", 7) == 0) {
        return VNXI_UCS_ERR_INVALID_PARAM;
    }
    snprintf(config->settings + used, sizeof config->settings - used, "%s=%s;",
             name, value);
    return VNXI_UCS_OK;
}

EXPORT void
ucp_config_release(vnxi_ucp_config_t *config)
{
    free(config);
    atomic_fetch_sub(&fake_ucp.configs, 1);
}

EXPORT vnxi_ucs_status_t
ucp_init_version(unsigned major, unsigned minor,
                 const vnxi_ucp_params_t *params,
                 const vnxi_ucp_config_t *config,
                 vnxi_ucp_context_t *context_p)
{
    (void)major, (void)minor;
    REFUSE_IF(fail_init);
    if ((params->features & VNXI_UCP_FEATURE_WAKEUP) == 0 ||
        !params->mt_workers_shared) {
        misuse("a context without what its use needs");
    }
    memcpy(fake_ucp.settings, config->settings, sizeof fake_ucp.settings);
    *context_p = calloc(1, sizeof **context_p);
    atomic_fetch_add(&fake_ucp.contexts, 1);
    return VNXI_UCS_OK;
}

EXPORT void
ucp_cleanup(vnxi_ucp_context_t context)
{
    if (atomic_load(&fake_ucp.workers) > 0 &&
        atomic_load(&fake_ucp.contexts) == 1) {
        misuse("a context is destroyed before its workers");
    }
    free(context);
    atomic_fetch_sub(&fake_ucp.contexts, 1);
}

EXPORT vnxi_ucs_status_t
ucp_context_query(vnxi_ucp_context_t context, vnxi_ucp_context_attr_t *attr)
{
    (void)context;
    attr->memory_types =
        1u << VNXI_UCS_MEMORY_HOST | (unsigned)(fake_ucp.cuda != 0)
                                         << VNXI_UCS_MEMORY_CUDA;
    return VNXI_UCS_OK;
}

/* -- Workers ---------------------------------------------------------------
 */

static void
init_recursive(pthread_mutex_t *mutex)
{
    pthread_mutexattr_t attr;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_RECURSIVE);
    pthread_mutex_init(mutex, &attr);
    pthread_mutexattr_destroy(&attr);
}

EXPORT vnxi_ucs_status_t
ucp_worker_create(vnxi_ucp_context_t context,
                  const vnxi_ucp_worker_params_t *params,
                  vnxi_ucp_worker_t *worker_p)
{
    (void)params;
    REFUSE_IF(fail_worker);
    check_gpu(context);
    void (*on_worker)(void) = atomic_load(&fake_ucp.on_worker);
    if (on_worker != NULL) {
        on_worker();
    }
    struct ucp_worker *worker = calloc(1, sizeof *worker);
    worker->context = context;
    worker->efd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    init_recursive(&worker->in_use);
    worker->due_last = &worker->due;
    pthread_mutex_lock(&lock);
    worker->id = ++last_id;
    worker->next = workers;
    workers = worker;
    pthread_mutex_unlock(&lock);
    atomic_fetch_add(&fake_ucp.workers, 1);
    *worker_p = worker;
    return VNXI_UCS_OK;
}

static void
drop_items(item_t *item)
{
    while (item != NULL) {
        item_t *next = item->next;
        if (item->type == ITEM_REQUEST) {
            misuse("a worker is destroyed while requests are pending");
            atomic_fetch_sub(&fake_ucp.requests, 1);
        } else if (item->type == ITEM_MESSAGE) {
            free((void *)item->from);
        }
        free(item);
        item = next;
    }
}

EXPORT void
ucp_worker_destroy(vnxi_ucp_worker_t worker)
{
    leave(&(struct ucp_worker *){enter(worker)});
    pthread_mutex_lock(&lock);
    for (struct ucp_worker **at = &workers; *at != NULL; at = &(*at)->next) {
        if (*at == worker) {
            *at = worker->next;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
    while (worker->eps != NULL) {
        struct ucp_ep *ep = worker->eps;
        worker->eps = ep->next;
        free(ep);
        atomic_fetch_sub(&fake_ucp.eps, 1);
        atomic_fetch_add(&fake_ucp.left_open, 1);
    }
    for (item_t *item = worker->held; item != NULL; item = item->next) {
        atomic_fetch_sub(&held_counts[item->kind], 1);
    }
    drop_items(worker->due);
    drop_items(worker->held);
    close(worker->efd);
    free(worker);
    atomic_fetch_sub(&fake_ucp.workers, 1);
}

EXPORT vnxi_ucs_status_t
ucp_worker_query(vnxi_ucp_worker_t worker, vnxi_ucp_worker_attr_t *attr)
{
    USE(worker);
    REFUSE_IF(fail_query);
    address_t *address = calloc(1, sizeof *address);
    memcpy(address->magic, MAGIC, sizeof MAGIC);
    address->id = worker->id;
    attr->address = address;
    attr->address_length = sizeof *address;
    atomic_fetch_add(&fake_ucp.addresses, 1);
    return VNXI_UCS_OK;
}

EXPORT void
ucp_worker_release_address(vnxi_ucp_worker_t worker, void *address)
{
    USE(worker);
    free(address);
    atomic_fetch_sub(&fake_ucp.addresses, 1);
}

EXPORT unsigned
ucp_worker_progress(vnxi_ucp_worker_t worker)
{
    USE(worker);
    atomic_fetch_add(&fake_ucp.progress_calls, 1);
    return run_due(worker);
}

EXPORT vnxi_ucs_status_t
ucp_worker_get_efd(vnxi_ucp_worker_t worker, int *fd_p)
{
    REFUSE_IF(fail_efd);
    *fd_p = worker->efd;
    return VNXI_UCS_OK;
}

EXPORT vnxi_ucs_status_t
ucp_worker_arm(vnxi_ucp_worker_t worker)
{
    uint64_t count;

    USE(worker);
    atomic_fetch_add(&fake_ucp.arms, 1);
    if (atomic_load(&fake_ucp.busy) > 0) {
        atomic_fetch_sub(&fake_ucp.busy, 1);
        return VNXI_UCS_ERR_BUSY;
    }
    pthread_mutex_lock(&lock);
    bool is_busy = worker->due != NULL;
    if (!is_busy && read(worker->efd, &count, sizeof count) < 0) {
        count = 0; /* it was not readable */
    }
    if (atomic_load(&fake_ucp.storm)) {
        wake(worker);
    }
    pthread_mutex_unlock(&lock);
    return is_busy ? VNXI_UCS_ERR_BUSY : VNXI_UCS_OK;
}

EXPORT vnxi_ucs_status_t
ucp_worker_set_am_recv_handler(vnxi_ucp_worker_t worker,
                               const vnxi_ucp_am_handler_param_t *param)
{
    USE(worker);
    REFUSE_IF(fail_listen);
    pthread_mutex_lock(&lock);
    worker->am = param->cb;
    worker->am_arg = param->arg;
    pthread_mutex_unlock(&lock);
    return VNXI_UCS_OK;
}

/* -- Endpoints -------------------------------------------------------------
 */

/* The peer ends after it was connected to and before it is sent anything.  A
 * connection that is waited for while the endpoint is made then takes with it
 * what the endpoint stands on, and nothing says so. */
static void
die_connecting_lock_held(struct ucp_ep *ep)
{
    if (strstr(fake_ucp.settings, "TCP_CONN_NB=y;") != NULL) {
        fail_ep_lock_held(ep, VNXI_UCS_ERR_ENDPOINT_TIMEOUT);
    } else {
        ep->freed = true;
    }
}

static void
check_ep(const struct ucp_ep *ep)
{
    if (ep->freed) {
        misuse("an endpoint is used whose connection failed as it was made");
    }
}

EXPORT vnxi_ucs_status_t
ucp_ep_create(vnxi_ucp_worker_t worker, const vnxi_ucp_ep_params_t *params,
              vnxi_ucp_ep_t *ep_p)
{
    const address_t *address = params->address;

    USE(worker);
    atomic_fetch_add(&fake_ucp.creates, 1);
    REFUSE_IF(fail_ep);
    if (memcmp(address->magic, MAGIC, sizeof MAGIC) != 0) {
        return VNXI_UCS_ERR_INVALID_ADDR;
    }
    struct ucp_ep *ep = calloc(1, sizeof *ep);
    ep->worker = worker;
    memcpy(&ep->target, &address->id, sizeof ep->target);
    ep->handler = params->err_handler;
    pthread_mutex_lock(&lock);
    ep->next = worker->eps;
    worker->eps = ep;
    if (atomic_load(&fake_ucp.die_connecting)) {
        die_connecting_lock_held(ep);
    } else if (find_worker_lock_held(ep->target) == NULL) {
        fail_ep_lock_held(ep, VNXI_UCS_ERR_ENDPOINT_TIMEOUT);
    }
    pthread_mutex_unlock(&lock);
    atomic_fetch_add(&fake_ucp.eps, 1);
    *ep_p = ep;
    return VNXI_UCS_OK;
}

EXPORT vnxi_ucs_status_t
ucp_ep_query(vnxi_ucp_ep_t ep, vnxi_ucp_ep_attr_t *attr)
{
    USE(ep->worker);
    REFUSE_IF(fail_transports);
    unsigned wanted =
        fake_ucp.transports != 0 ? (unsigned)fake_ucp.transports : 1;
    unsigned count = wanted < attr->transports.num_entries
                         ? wanted
                         : attr->transports.num_entries;
    for (unsigned i = 0; i < count; i++) {
        attr->transports.entries[i] = (vnxi_ucp_transport_t){
            fake_ucp.tcp ? "tcp" : "transport", "device_of_some_length"};
    }
    attr->transports.num_entries = count;
    return VNXI_UCS_OK;
}

/* -- Requests --------------------------------------------------------------
 */

static bool
is_meant(int order, int number)
{
    return order == -1 || (order != 0 && order == number);
}

static item_t *
make_request(struct ucp_ep *ep, fake_ucp_kind_t kind,
             const vnxi_ucp_request_param_t *param)
{
    item_t *request = calloc(1, sizeof *request);
    *request = (item_t){.type = ITEM_REQUEST, .worker = ep->worker, .ep = ep};
    request->kind = kind;
    request->callback = param->cb.send;
    request->user_data = param->user_data;
    atomic_fetch_add(&fake_ucp.requests, 1);
    return request;
}

static void
hold_lock_held(item_t *request)
{
    item_t **at = &request->worker->held;
    while (*at != NULL) {
        at = &(*at)->next;
    }
    *at = request;
    atomic_fetch_add(&held_counts[request->kind], 1);
}

/* It ends in a later turn of its worker; or when the test says so, where that
 * wants to, or where it needs a target that is gone. */
static vnxi_ucs_ptr_t
leave_pending(item_t *request, bool needs_target)
{
    pthread_mutex_lock(&lock);
    if (atomic_load(&fake_ucp.of[request->kind].hold) ||
        (needs_target && find_worker_lock_held(request->ep->target) == NULL)) {
        hold_lock_held(request);
    } else {
        make_due_lock_held(request);
    }
    pthread_mutex_unlock(&lock);
    return request;
}

static vnxi_ucs_ptr_t
post(struct ucp_ep *ep, const vnxi_ucp_request_param_t *param, item_t wish)
{
    fake_ucp_orders_t *orders = &fake_ucp.of[wish.kind];
    int number = atomic_fetch_add(&orders->posts, 1) + 1;

    USE(ep->worker);
    atomic_store(&orders->poster, pthread_self());
    while (atomic_load(&fake_ucp.inside) && run_due(ep->worker) > 0) {
    }
    check_ep(ep);
    if (ep->closing) {
        misuse("an endpoint is used after it was closed");
    }
    if (ep->failure != VNXI_UCS_OK) {
        return error_ptr(ep->failure);
    }
    if (is_meant(orders->refuse_post, number)) {
        return error_ptr(orders->refusal);
    }
    if (is_meant(orders->fail_post, number)) {
        wish.status = (vnxi_ucs_status_t)orders->failure;
    }
    item_t *request = make_request(ep, wish.kind, param);
    request->status = wish.status;
    request->to = wish.to;
    request->from = wish.from;
    request->len = wish.len;
    if (atomic_load(&orders->at_once) && wish.status == VNXI_UCS_OK) {
        perform(request);
        free(request);
        atomic_fetch_sub(&fake_ucp.requests, 1);
        return NULL;
    }
    return leave_pending(request, true);
}

static void
make_due_later(struct ucp_ep *ep)
{
    pthread_mutex_lock(&lock);
    item_t *item = take_held_lock_held(ep);
    while (item != NULL) {
        item_t *next = item->next;
        make_due_lock_held(item);
        item = next;
    }
    pthread_mutex_unlock(&lock);
}

/* In the call, as UCX does it, or in a later turn, as UCX 1.23 does it for
 * TCP. */
static void
cancel_all(struct ucp_ep *ep)
{
    if (atomic_load(&fake_ucp.late_cancel)) {
        make_due_later(ep);
    } else {
        end_held(ep, VNXI_UCS_ERR_CANCELED);
    }
    pthread_mutex_lock(&lock);
    for (item_t *item = ep->worker->due; item != NULL; item = item->next) {
        if (item->ep == ep && item->type == ITEM_REQUEST) {
            item->status = VNXI_UCS_ERR_CANCELED;
        }
    }
    pthread_mutex_unlock(&lock);
}

EXPORT vnxi_ucs_ptr_t
ucp_ep_close_nbx(vnxi_ucp_ep_t ep, const vnxi_ucp_request_param_t *param)
{
    fake_ucp_orders_t *orders = &fake_ucp.of[FAKE_CLOSE];
    bool by_force = (param->flags & VNXI_UCP_EP_CLOSE_FORCE) != 0;

    USE(ep->worker);
    check_ep(ep);
    if (ep->closing) {
        misuse("an endpoint is closed twice");
    }
    atomic_fetch_add(&orders->posts, 1);
    ep->closing = true;
    atomic_fetch_add(by_force ? &fake_ucp.forced : &fake_ucp.closed, 1);
    if (by_force) {
        cancel_all(ep);
    }
    if (by_force && atomic_load(&fake_ucp.late_cancel) &&
        !atomic_load(&orders->hold)) {
        free_ep(ep);
        return NULL;
    }
    if (atomic_load(&orders->at_once)) {
        while (run_due(ep->worker) > 0) {
        }
        free_ep(ep);
        return NULL;
    }
    return leave_pending(make_request(ep, FAKE_CLOSE, param), false);
}

EXPORT vnxi_ucs_ptr_t
ucp_ep_flush_nbx(vnxi_ucp_ep_t ep, const vnxi_ucp_request_param_t *param)
{
    return post(ep, param, (item_t){.kind = FAKE_FLUSH});
}

EXPORT vnxi_ucs_ptr_t
ucp_am_send_nbx(vnxi_ucp_ep_t ep, unsigned id, const void *header,
                size_t header_length, const void *buffer, size_t count,
                const vnxi_ucp_request_param_t *param)
{
    (void)header;
    if (id != 0 || header_length != 0) {
        misuse("no notification of NIXL's");
    }
    return post(ep, param,
                (item_t){.kind = FAKE_AM, .from = buffer, .len = count});
}

EXPORT void
ucp_request_free(void *ptr)
{
    item_t *request = ptr;
    if (!request->ended) {
        misuse("a request is freed that has not ended");
        return;
    }
    free(request);
    atomic_fetch_sub(&fake_ucp.requests, 1);
}

/* -- Memory ----------------------------------------------------------------
 */

static bool
is_mapped(const struct ucp_mem *mem)
{
    pthread_mutex_lock(&lock);
    const struct ucp_mem *known = mems;
    while (known != NULL && known != mem) {
        known = known->next;
    }
    pthread_mutex_unlock(&lock);
    return known != NULL;
}

/* UCX registers and exports the first allocation, whatever the length. */
static uint64_t
covered_len(const struct ucp_mem *mem)
{
    vnxi_cu_functions_t cu;
    vnxi_cu_ptr_t start;
    size_t size;

    if (!is_gpu(mem->type) || find_cuda(&cu) == NULL ||
        cu.cuMemGetAddressRange_v2(&start, &size, mem->addr) !=
            VNXI_CUDA_SUCCESS) {
        return mem->len;
    }
    uint64_t len = start + size - mem->addr;
    return len < mem->len ? len : mem->len;
}

EXPORT vnxi_ucs_status_t
ucp_mem_map(vnxi_ucp_context_t context,
            const vnxi_ucp_mem_map_params_t *params, vnxi_ucp_mem_t *mem_p)
{
    bool is_told = (params->field_mask & VNXI_UCP_MEM_MAP_MEMORY_TYPE) != 0;

    REFUSE_IF(fail_map);
    struct ucp_mem *mem = calloc(1, sizeof *mem);
    mem->addr = (uintptr_t)params->address;
    mem->len = params->length;
    mem->type = is_told                        ? params->memory_type
                : atomic_load(&fake_ucp.blind) ? VNXI_UCS_MEMORY_HOST
                                               : find_type(params->address);
    if (is_told) {
        atomic_fetch_add(&fake_ucp.told[mem->type], 1);
    }
    if (is_gpu(mem->type)) {
        atomic_fetch_add(&context->gpu_mems, 1);
        atomic_fetch_add(&fake_ucp.gpu_mems, 1);
        check_gpu(context);
    }
    mem->covered = covered_len(mem);
    pthread_mutex_lock(&lock);
    mem->next = mems;
    mems = mem;
    pthread_mutex_unlock(&lock);
    atomic_fetch_add(&fake_ucp.mems, 1);
    *mem_p = mem;
    return VNXI_UCS_OK;
}

EXPORT vnxi_ucs_status_t
ucp_mem_unmap(vnxi_ucp_context_t context, vnxi_ucp_mem_t mem)
{
    if (!is_mapped(mem)) {
        misuse("memory is unmapped twice");
        return VNXI_UCS_ERR_INVALID_PARAM;
    }
    if (is_gpu(mem->type)) {
        check_gpu(context);
        atomic_fetch_sub(&context->gpu_mems, 1);
        atomic_fetch_sub(&fake_ucp.gpu_mems, 1);
    }
    pthread_mutex_lock(&lock);
    for (struct ucp_mem **at = &mems; *at != NULL; at = &(*at)->next) {
        if (*at == mem) {
            *at = mem->next;
            break;
        }
    }
    pthread_mutex_unlock(&lock);
    free(mem);
    atomic_fetch_sub(&fake_ucp.mems, 1);
    return VNXI_UCS_OK;
}

EXPORT vnxi_ucs_status_t
ucp_mem_query(vnxi_ucp_mem_t mem, vnxi_ucp_mem_attr_t *attr)
{
    REFUSE_IF(fail_mem_query);
    attr->mem_type = mem->type;
    return VNXI_UCS_OK;
}

EXPORT vnxi_ucs_status_t
ucp_rkey_pack(vnxi_ucp_context_t context, vnxi_ucp_mem_t mem, void **buffer_p,
              size_t *size_p)
{
    REFUSE_IF(fail_pack);
    if (is_gpu(mem->type)) {
        check_gpu(context);
    }
    key_bytes_t *key = calloc(1, sizeof *key);
    key->map = 1;
    memcpy(key->magic, MAGIC, sizeof MAGIC);
    key->addr = mem->addr;
    key->len = mem->covered;
    key->memory_type = (uint8_t)mem->type;
    atomic_fetch_add(&fake_ucp.buffers, 1);
    *buffer_p = key;
    *size_p = sizeof *key;
    return VNXI_UCS_OK;
}

EXPORT void
ucp_rkey_buffer_release(void *buffer)
{
    free(buffer);
    atomic_fetch_sub(&fake_ucp.buffers, 1);
}

/* Like UCX, it does not know where the bytes end. */
EXPORT vnxi_ucs_status_t
ucp_ep_rkey_unpack(vnxi_ucp_ep_t ep, const void *buffer,
                   vnxi_ucp_rkey_t *rkey_p)
{
    USE(ep->worker);
    atomic_fetch_add(&fake_ucp.unpacks, 1);
    REFUSE_IF(fail_unpack);
    struct ucp_rkey *rkey = calloc(1, sizeof *rkey);
    memcpy(&rkey->bytes, buffer, sizeof rkey->bytes);
    rkey->ep = ep;
    if (memcmp(rkey->bytes.magic, MAGIC, sizeof MAGIC) != 0) {
        free(rkey);
        return VNXI_UCS_ERR_INVALID_PARAM;
    }
    atomic_fetch_add(&fake_ucp.keys, 1);
    *rkey_p = rkey;
    return VNXI_UCS_OK;
}

EXPORT void
ucp_rkey_destroy(vnxi_ucp_rkey_t rkey)
{
    free(rkey);
    atomic_fetch_sub(&fake_ucp.keys, 1);
}

static vnxi_ucs_ptr_t
move(struct ucp_ep *ep, const void *local, uint64_t remote,
     vnxi_ucp_rkey_t rkey, const vnxi_ucp_request_param_t *param, item_t wish)
{
    uint64_t at = remote - rkey->bytes.addr;

    if (rkey->ep != ep) {
        misuse("a key is used at another endpoint");
    }
    if (!is_mapped(param->memh)) {
        misuse("memory is used that is not mapped");
    } else if ((uintptr_t)local + wish.len >
               param->memh->addr + param->memh->covered) {
        misuse("a piece passes the end of the memory that was mapped");
    }
    if (at > rkey->bytes.len || wish.len > rkey->bytes.len - at) {
        misuse("a piece passes the end of its region");
        wish.status = ERR_REMOTE_ACCESS;
    }
    return post(ep, param, wish);
}

EXPORT vnxi_ucs_ptr_t
ucp_put_nbx(vnxi_ucp_ep_t ep, const void *buffer, size_t count,
            uint64_t remote, vnxi_ucp_rkey_t rkey,
            const vnxi_ucp_request_param_t *param)
{
    return move(ep, buffer, remote, rkey, param,
                (item_t){.kind = FAKE_PUT,
                         .to = (void *)(uintptr_t)remote,
                         .from = buffer,
                         .len = count});
}

EXPORT vnxi_ucs_ptr_t
ucp_get_nbx(vnxi_ucp_ep_t ep, void *buffer, size_t count, uint64_t remote,
            vnxi_ucp_rkey_t rkey, const vnxi_ucp_request_param_t *param)
{
    return move(ep, buffer, remote, rkey, param,
                (item_t){.kind = FAKE_GET,
                         .to = buffer,
                         .from = (const void *)(uintptr_t)remote,
                         .len = count});
}
