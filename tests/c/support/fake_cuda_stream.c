/*
 * Streams, events, copies and kernels of the fake libcuda.so.1 (fake_cuda.h).
 *
 * Every stream has a queue and a thread, which performs one operation after
 * another.  Host functions run on one further thread.
 */
#include "fake_cuda_parts.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LOG_TEXT "fake libcuda: the text cannot be compiled\n"

enum { STREAM_CAPTURE_INVALIDATED = 901 }; /* cuda.h */

typedef enum op_type {
    OP_COPIES,
    OP_KERNEL,
    OP_EVENT,
    OP_WAIT,
    OP_HOST,
    OP_WRITE,
    OP_FILL,
    OP_FREE,
} op_type_t;

/* The sides of a copy.  Host memory is used as it is. */
typedef enum direction {
    DEVICE_TO_DEVICE,
    HOST_TO_DEVICE,
    DEVICE_TO_HOST,
} direction_t;

/* Like a row of the kernel. */
typedef struct copy {
    uint64_t src, dst, len, unused;
} copy_t;

typedef struct op {
    op_type_t type;
    struct op *next;

    direction_t direction;      /* of OP_COPIES */
    const context_t *to, *from; /* that reach its sides; NULL: the stream's */
    copy_t *copies;
    size_t count;
    void *staged; /* what a copy from pageable memory reads */

    uint64_t address; /* rows of a kernel; or where to write, or to free */
    uint64_t size;
    uint32_t value;

    struct CUevent_st *event;
    stream_t *other; /* OP_WAIT: until it has done so many */
    uint64_t ticket;

    void (*function)(void *arg);
    void *arg;
} op_t;

struct CUstream_st { /* fc_lock */
    context_t *context;
    bool is_blocking; /* waits for the stream that NULL stands for */
    bool is_ending;
    op_t *first, **last;
    uint64_t submitted, done;
    uint64_t random;
    int watchers;             /* OP_WAIT of other streams */
    struct CUgraph_st *graph; /* its work is captured here, not done */
    stream_t *next;
};

/* Counted, not kept: nothing launches it. */
struct CUgraph_st { /* fc_lock */
    size_t nodes;
    int broken_before; /* captures, when this one began */
};

struct CUevent_st { /* fc_lock */
    context_t *context;
    uint64_t recorded, fired;
    bool is_ending;
    struct CUevent_st *next;
};

struct CUfunc_st {
    struct CUmod_st *module;
};

struct CUmod_st { /* fc_lock */
    context_t *context;
    char *text;
    struct CUfunc_st function;
    struct CUmod_st *next;
};

/* fc_lock protects all of this. */
static stream_t *streams; /* also those that NULL stands for */
static struct CUevent_st *events;
static struct CUmod_st *modules;
static bool is_held;
static op_t *host_op; /* runs, or is to run */
static bool has_host_thread;

static void *
need(void *block)
{
    if (block == NULL) {
        fc_violation("no memory");
    }
    return block;
}

void
fc_hold(bool on)
{
    lock();
    is_held = on;
    pthread_cond_broadcast(&fc_changed);
    unlock();
}

/* -- What operations do ----------------------------------------------------
 */

/* From device memory to device memory, piece by piece.  Each context reaches
 * its side. */
static void
copy_on_device(const context_t *to, const context_t *from, const copy_t *copy,
               bool is_kernel)
{
    const char *reads = is_kernel ? "a kernel reads" : "a copy reads";
    const char *writes = is_kernel ? "a kernel writes" : "a copy writes";

    for (uint64_t done = 0; done < copy->len;) {
        view_t src = fc_pin(from, copy->src + done, copy->len - done,
                            ACCESS_READ, is_kernel, reads);
        view_t dst = fc_pin(to, copy->dst + done, src.len, ACCESS_WRITE,
                            is_kernel, writes);
        memmove(dst.bytes, src.bytes, dst.len);
        done += dst.len;
        fc_unpin(&dst);
        fc_unpin(&src);
    }
}

static void
copy_from_host(const context_t *context, const copy_t *copy)
{
    const uint8_t *from = (const uint8_t *)(uintptr_t)copy->src;

    for (uint64_t done = 0; done < copy->len;) {
        view_t dst = fc_pin(context, copy->dst + done, copy->len - done,
                            ACCESS_WRITE, false, "a copy writes");
        memcpy(dst.bytes, from + done, dst.len);
        done += dst.len;
        fc_unpin(&dst);
    }
}

static void
copy_to_host(const context_t *context, const copy_t *copy)
{
    uint8_t *to = (uint8_t *)(uintptr_t)copy->dst;

    for (uint64_t done = 0; done < copy->len;) {
        view_t src = fc_pin(context, copy->src + done, copy->len - done,
                            ACCESS_READ, false, "a copy reads");
        memcpy(to + done, src.bytes, src.len);
        done += src.len;
        fc_unpin(&src);
    }
}

static void
perform_copies(stream_t *stream, const op_t *op)
{
    /* The copies of a batch have no order. */
    size_t first = fc_random(&stream->random, op->count);

    for (size_t i = 0; i < op->count; i++) {
        const copy_t *copy = &op->copies[(first + i) % op->count];
        switch (op->direction) {
        case DEVICE_TO_DEVICE:
            copy_on_device(op->to != NULL ? op->to : stream->context,
                           op->from != NULL ? op->from : stream->context, copy,
                           false);
            break;
        case HOST_TO_DEVICE:
            copy_from_host(stream->context, copy);
            break;
        case DEVICE_TO_HOST:
            copy_to_host(stream->context, copy);
            break;
        }
    }
}

static void
read_row(const context_t *context, uint64_t address, copy_t *row)
{
    uint8_t *to = (uint8_t *)row;

    for (size_t done = 0; done < sizeof *row;) {
        view_t view = fc_pin(context, address + done, sizeof *row - done,
                             ACCESS_READ, true, "a kernel reads its row of");
        memcpy(to + done, view.bytes, view.len);
        done += view.len;
        fc_unpin(&view);
    }
}

static void
note_largest(size_t bytes)
{
    size_t before = atomic_load(&fake_cuda.largest_launch);
    while (before < bytes && !atomic_compare_exchange_weak(
                                 &fake_cuda.largest_launch, &before, bytes)) {
    }
}

/* What the PTX text does: warps take the rows in any order. */
static void
perform_kernel(stream_t *stream, const op_t *op)
{
    size_t first = fc_random(&stream->random, op->count), bytes = 0;

    if (op->count > 0 && op->address % 16 != 0) {
        fc_violation("the rows of a kernel are not aligned to 16 bytes");
    }
    for (size_t i = 0; i < op->count; i++) {
        copy_t row;
        read_row(stream->context,
                 op->address + (first + i) % op->count * sizeof row, &row);
        uint64_t distance =
            row.src < row.dst ? row.dst - row.src : row.src - row.dst;
        if (row.len > 0 && distance < row.len) {
            fc_violation("a row of %llu bytes overlaps itself",
                         (unsigned long long)row.len);
        }
        copy_on_device(stream->context, stream->context, &row, true);
        bytes += row.len;
    }
    atomic_fetch_add(&fake_cuda.rows, (int)op->count);
    note_largest(bytes);
}

static void
perform_fill(const context_t *context, const op_t *op)
{
    for (uint64_t done = 0; done < op->size;) {
        view_t view = fc_pin(context, op->address + done, op->size - done,
                             ACCESS_WRITE, false, "a fill writes");
        memset(view.bytes, (int)op->value, view.len);
        done += view.len;
        fc_unpin(&view);
    }
}

static void
perform_write(const context_t *context, const op_t *op)
{
    view_t view = fc_pin(context, op->address, sizeof op->value, ACCESS_WRITE,
                         true, "a stream writes");
    if (view.len < sizeof op->value || op->address % 4 != 0) {
        fc_violation("a value is written to an odd place");
    }
    __atomic_store_n((uint32_t *)(void *)view.bytes, op->value,
                     __ATOMIC_RELEASE);
    fc_unpin(&view);
}

/* -- Host functions --------------------------------------------------------
 */

static void *
run_host_functions(void *unused)
{
    (void)unused;
    fc_thread.in_host_function = true;
    lock();
    for (;;) {
        while (host_op == NULL || host_op->function == NULL) {
            pthread_cond_wait(&fc_changed, &fc_lock);
        }
        void (*function)(void *) = host_op->function;
        void *arg = host_op->arg;
        unlock();
        function(arg);
        lock();
        host_op->function = NULL;
        pthread_cond_broadcast(&fc_changed);
    }
    return NULL;
}

static void
start_thread(void *(*entry)(void *), void *arg)
{
    pthread_t thread;
    sigset_t all, before;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    if (pthread_create(&thread, NULL, entry, arg) != 0) {
        fc_violation("no thread");
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_detach(thread);
}

static void
perform_host_function(op_t *op)
{
    lock();
    if (!has_host_thread) {
        has_host_thread = true;
        start_thread(run_host_functions, NULL);
    }
    while (host_op != NULL) {
        pthread_cond_wait(&fc_changed, &fc_lock);
    }
    host_op = op;
    pthread_cond_broadcast(&fc_changed);
    while (op->function != NULL) {
        pthread_cond_wait(&fc_changed, &fc_lock);
    }
    host_op = NULL;
    pthread_cond_broadcast(&fc_changed);
    unlock();
}

/* -- The thread of a stream ------------------------------------------------
 */

static void
release_event(struct CUevent_st *event)
{
    if (event->is_ending && event->fired == event->recorded) {
        free(event);
    }
}

/* fail_after is counted from when it was set. */
static void
count_to_failure(void)
{
    int after = atomic_load(&fake_cuda.fail_after);

    if (after == 0 || atomic_fetch_sub(&fake_cuda.fail_after, 1) != 1) {
        return;
    }
    for (int i = 0; i < FAKE_CUDA_DEVICES; i++) {
        atomic_store(&fc_contexts[i].failed,
                     atomic_load(&fake_cuda.fail_code));
    }
}

/* Once, to repeat a failed run. */
static void
print_seed(void)
{
    static atomic_flag is_printed = ATOMIC_FLAG_INIT;

    if (!atomic_flag_test_and_set(&is_printed)) {
        fprintf(stderr, "fake libcuda: delays of FAKE_CUDA=seed=%d\n",
                atomic_load(&fake_cuda.seed));
    }
}

static void
perform(stream_t *stream, op_t *op)
{
    uint64_t delay =
        fc_random(&stream->random, (unsigned)atomic_load(&fake_cuda.delay_us));

    if (delay > 0) {
        print_seed();
        usleep((useconds_t)delay);
    }
    if (op->type != OP_EVENT && op->type != OP_WAIT) {
        count_to_failure();
    }
    if (atomic_load(&stream->context->failed) != 0) {
        return; /* what was in its streams never happens */
    }
    switch (op->type) {
    case OP_COPIES:
        perform_copies(stream, op);
        break;
    case OP_KERNEL:
        perform_kernel(stream, op);
        break;
    case OP_HOST:
        perform_host_function(op);
        break;
    case OP_WRITE:
        perform_write(stream->context, op);
        break;
    case OP_FILL:
        perform_fill(stream->context, op);
        break;
    case OP_FREE:
        fc_free(op->address);
        break;
    case OP_EVENT:
    case OP_WAIT:
        break;
    }
}

static void
remove_stream(stream_t *stream)
{
    stream_t **at = &streams;

    while (*at != stream) {
        at = &(*at)->next;
    }
    *at = stream->next;
}

static bool
has_work(const stream_t *stream)
{
    const op_t *op = stream->first;

    return op != NULL && !is_held &&
           (op->type != OP_WAIT || op->other->done >= op->ticket);
}

static void
finish(stream_t *stream, op_t *op)
{
    if (op->type == OP_WAIT) {
        op->other->watchers--;
    }
    if (op->type == OP_EVENT) {
        op->event->fired++;
        release_event(op->event);
    }
    stream->done++;
    free(op->copies);
    free(op->staged);
    free(op);
    pthread_cond_broadcast(&fc_changed);
}

static void *
run_stream(void *arg)
{
    stream_t *stream = arg;

    lock();
    for (;;) {
        while (!has_work(stream)) {
            if (stream->is_ending && stream->first == NULL &&
                stream->watchers == 0) {
                remove_stream(stream);
                free(stream);
                unlock();
                return NULL;
            }
            pthread_cond_wait(&fc_changed, &fc_lock);
        }
        op_t *op = stream->first;
        stream->first = op->next;
        if (op->next == NULL) {
            stream->last = &stream->first;
        }
        unlock();
        perform(stream, op);
        lock();
        finish(stream, op);
    }
}

static stream_t *
make_stream(context_t *context, bool is_blocking)
{
    stream_t *stream = need(calloc(1, sizeof *stream));

    *stream = (stream_t){
        .context = context,
        .is_blocking = is_blocking,
        .random = fc_random_state(),
        .next = streams,
    };
    stream->last = &stream->first;
    streams = stream;
    start_thread(run_stream, stream);
    return stream;
}

/* -- Handles of streams and events -----------------------------------------
 */

static bool
is_null_stream(vnxi_cu_stream_t handle)
{
    return (uintptr_t)handle <= 2; /* or "legacy", or "per thread" */
}

/* fc_lock is held.  NULL: there is none. */
static stream_t *
find_stream(vnxi_cu_stream_t handle)
{
    context_t *current = fc_current();

    if (is_null_stream(handle)) {
        if (current != NULL && current->stream == NULL) {
            current->stream = make_stream(current, false);
        }
        return current == NULL ? NULL : current->stream;
    }
    for (stream_t *stream = streams; stream != NULL; stream = stream->next) {
        if (stream == handle && !stream->is_ending) {
            return stream;
        }
    }
    fc_misuse("a stream is used that does not live");
    return NULL;
}

static struct CUevent_st *
find_event(vnxi_cu_event_t handle)
{
    for (struct CUevent_st *e = events; e != NULL; e = e->next) {
        if (e == handle) {
            return e;
        }
    }
    fc_misuse("an event is used that does not live");
    return NULL;
}

static void
append(stream_t *stream, const op_t *value)
{
    op_t *op = need(malloc(sizeof *op));

    *op = *value;
    *stream->last = op;
    stream->last = &op->next;
    stream->submitted++;
    pthread_cond_broadcast(&fc_changed);
}

static void
append_wait(stream_t *stream, stream_t *other, uint64_t ticket)
{
    if (other != stream && other->done < ticket) {
        other->watchers++;
        append(stream,
               &(op_t){.type = OP_WAIT, .other = other, .ticket = ticket});
    }
}

/* The stream NULL and those without NON_BLOCKING wait for each other. */
static void
append_implicit_waits(stream_t *stream)
{
    stream_t *null_stream = stream->context->stream;

    if (stream == null_stream) {
        for (stream_t *s = streams; s != NULL; s = s->next) {
            if (s->is_blocking && s->context == stream->context) {
                append_wait(stream, s, s->submitted);
            }
        }
    } else if (stream->is_blocking && null_stream != NULL) {
        append_wait(stream, null_stream, null_stream->submitted);
    }
}

static void
wait_for(const stream_t *stream, uint64_t ticket)
{
    while (stream->done < ticket) {
        pthread_cond_wait(&fc_changed, &fc_lock);
    }
}

/* Into a stream of the current context.  Takes what the operation has. */
static int
submit(vnxi_cu_stream_t handle, const op_t *op, bool wait)
{
    lock();
    stream_t *stream = find_stream(handle);
    int status = VNXI_CUDA_SUCCESS;
    if (stream != NULL && stream->context != fc_current()) {
        fc_misuse("a stream is used in another context than its own");
        stream = NULL;
    }
    if (stream == NULL || stream->graph != NULL) {
        free(op->copies);
        free(op->staged);
        status = VNXI_CUDA_ERROR_INVALID_HANDLE;
        if (stream != NULL) {
            stream->graph->nodes++;
            status = VNXI_CUDA_SUCCESS;
        }
    } else {
        append_implicit_waits(stream);
        append(stream, op);
        if (wait) {
            stream->watchers++;
            wait_for(stream, stream->submitted);
            stream->watchers--;
            pthread_cond_broadcast(&fc_changed);
            status = fc_failure();
        }
    }
    unlock();
    return status;
}

void
fc_drain(void)
{
    lock();
    for (bool again = true; again;) {
        again = false;
        for (stream_t *s = streams; s != NULL; s = s->next) {
            again |= s->done < s->submitted;
        }
        if (again) {
            pthread_cond_wait(&fc_changed, &fc_lock);
        }
    }
    unlock();
}

int
fc_work_of_lock_held(const context_t *context)
{
    int count = 0;

    for (stream_t *s = streams; s != NULL; s = s->next) {
        count +=
            s->context == context && s != context->stream && !s->is_ending;
    }
    for (struct CUevent_st *e = events; e != NULL; e = e->next) {
        count += e->context == context;
    }
    for (struct CUmod_st *m = modules; m != NULL; m = m->next) {
        count += m->context == context;
    }
    return count;
}

int
fc_stream_free(vnxi_cu_stream_t stream, uint64_t address)
{
    return submit(stream, &(op_t){.type = OP_FREE, .address = address}, false);
}

/* -- Streams ---------------------------------------------------------------
 */

EXPORT vnxi_cu_result_t
cuStreamCreateWithPriority(vnxi_cu_stream_t *stream_p, unsigned flags,
                           int priority)
{
    (void)priority; /* is clamped */
    ENTER(cuStreamCreateWithPriority, CONTEXT);
    if ((flags & ~(unsigned)VNXI_CU_STREAM_NON_BLOCKING) != 0) {
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    lock();
    *stream_p =
        make_stream(fc_current(), !(flags & VNXI_CU_STREAM_NON_BLOCKING));
    unlock();
    atomic_fetch_add(&fake_cuda.streams, 1);
    return VNXI_CUDA_SUCCESS;
}

/* Its thread ends after the work that it has. */
EXPORT vnxi_cu_result_t
cuStreamDestroy_v2(vnxi_cu_stream_t handle)
{
    ENTER(cuStreamDestroy_v2, CURRENT);
    lock();
    stream_t *stream = is_null_stream(handle) ? NULL : find_stream(handle);
    if (stream != NULL) {
        stream->is_ending = true;
        atomic_fetch_sub(&fake_cuda.streams, 1);
        pthread_cond_broadcast(&fc_changed);
    }
    unlock();
    return stream != NULL ? (vnxi_cu_result_t)fc_failure()
                          : VNXI_CUDA_ERROR_INVALID_HANDLE;
}

EXPORT vnxi_cu_result_t
cuStreamQuery(vnxi_cu_stream_t handle)
{
    ENTER(cuStreamQuery, CONTEXT | UNSAFE);
    lock();
    stream_t *stream = find_stream(handle);
    vnxi_cu_result_t status = stream == NULL ? VNXI_CUDA_ERROR_INVALID_HANDLE
                              : stream->done < stream->submitted
                                  ? VNXI_CUDA_ERROR_NOT_READY
                                  : VNXI_CUDA_SUCCESS;
    unlock();
    return status;
}

/* False: the stream does not exist. */
static bool
synchronize(vnxi_cu_stream_t handle)
{
    lock();
    stream_t *stream = find_stream(handle);
    if (stream != NULL) {
        stream->watchers++;
        wait_for(stream, stream->submitted);
        stream->watchers--;
        pthread_cond_broadcast(&fc_changed);
    }
    unlock();
    return stream != NULL;
}

EXPORT vnxi_cu_result_t
cuStreamSynchronize(vnxi_cu_stream_t handle)
{
    ENTER(cuStreamSynchronize, CONTEXT | UNSAFE);
    return synchronize(handle) ? (vnxi_cu_result_t)fc_failure()
                               : VNXI_CUDA_ERROR_INVALID_HANDLE;
}

EXPORT vnxi_cu_result_t
cuStreamWriteValue32_v2(vnxi_cu_stream_t stream, vnxi_cu_ptr_t address,
                        uint32_t value, unsigned flags)
{
    ENTER(cuStreamWriteValue32_v2, CONTEXT);
    if (flags != 0) {
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    return submit(
        stream, &(op_t){.type = OP_WRITE, .address = address, .value = value},
        false);
}

EXPORT vnxi_cu_result_t
cuLaunchHostFunc(vnxi_cu_stream_t stream, vnxi_cu_host_fn_t function,
                 void *arg)
{
    ENTER(cuLaunchHostFunc, CONTEXT);
    if (function == NULL) {
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    vnxi_cu_result_t result = submit(
        stream, &(op_t){.type = OP_HOST, .function = function, .arg = arg},
        false);
    if (result == VNXI_CUDA_SUCCESS && atomic_load(&fake_cuda.waits) != 0) {
        synchronize(stream);
    }
    return result;
}

/* -- Captures --------------------------------------------------------------
 */

/* Only in mode GLOBAL: "a thread captures a graph" (fake_cuda.capturing). */
EXPORT vnxi_cu_result_t
cuStreamBeginCapture_v2(vnxi_cu_stream_t handle, vnxi_cu_enum_t mode)
{
    ENTER(cuStreamBeginCapture_v2, CONTEXT);
    lock();
    stream_t *stream = is_null_stream(handle) ? NULL : find_stream(handle);
    bool can = stream != NULL && stream->graph == NULL &&
               mode == VNXI_CU_STREAM_CAPTURE_MODE_GLOBAL;
    if (can) {
        stream->graph = need(calloc(1, sizeof *stream->graph));
        stream->graph->broken_before = atomic_load(&fake_cuda.captures_broken);
        atomic_fetch_add(&fake_cuda.capturing, 1);
    }
    unlock();
    return can ? VNXI_CUDA_SUCCESS : VNXI_CUDA_ERROR_INVALID_VALUE;
}

EXPORT vnxi_cu_result_t
cuStreamEndCapture(vnxi_cu_stream_t handle, struct CUgraph_st **graph_p)
{
    ENTER(cuStreamEndCapture, CONTEXT);
    lock();
    stream_t *stream = find_stream(handle);
    struct CUgraph_st *graph = stream != NULL ? stream->graph : NULL;
    vnxi_cu_result_t status = VNXI_CUDA_ERROR_INVALID_VALUE;
    *graph_p = NULL;
    if (graph != NULL) {
        stream->graph = NULL;
        atomic_fetch_sub(&fake_cuda.capturing, 1);
        if (atomic_load(&fake_cuda.captures_broken) == graph->broken_before) {
            *graph_p = graph;
            status = VNXI_CUDA_SUCCESS;
        } else {
            free(graph);
            status = STREAM_CAPTURE_INVALIDATED;
        }
    }
    unlock();
    return status;
}

/* The number alone. */
EXPORT vnxi_cu_result_t
cuGraphGetNodes(const struct CUgraph_st *graph, void *nodes, size_t *count_p)
{
    ENTER(cuGraphGetNodes, 0);
    if (nodes != NULL) {
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    *count_p = graph->nodes;
    return VNXI_CUDA_SUCCESS;
}

EXPORT vnxi_cu_result_t
cuGraphDestroy(struct CUgraph_st *graph)
{
    ENTER(cuGraphDestroy, 0);
    free(graph);
    return VNXI_CUDA_SUCCESS;
}

/* -- Events ----------------------------------------------------------------
 */

EXPORT vnxi_cu_result_t
cuEventCreate(vnxi_cu_event_t *event_p, unsigned flags)
{
    ENTER(cuEventCreate, CONTEXT);
    if ((flags & ~7u) != 0) {
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    lock();
    struct CUevent_st *event = need(calloc(1, sizeof *event));
    event->context = fc_current();
    event->next = events;
    events = event;
    unlock();
    atomic_fetch_add(&fake_cuda.events, 1);
    *event_p = event;
    return VNXI_CUDA_SUCCESS;
}

EXPORT vnxi_cu_result_t
cuEventDestroy_v2(vnxi_cu_event_t handle)
{
    ENTER(cuEventDestroy_v2, CURRENT);
    lock();
    struct CUevent_st *event = find_event(handle);
    if (event != NULL) {
        struct CUevent_st **at = &events;
        while (*at != event) {
            at = &(*at)->next;
        }
        *at = event->next;
        event->is_ending = true;
        release_event(event);
        atomic_fetch_sub(&fake_cuda.events, 1);
    }
    unlock();
    return event != NULL ? (vnxi_cu_result_t)fc_failure()
                         : VNXI_CUDA_ERROR_INVALID_HANDLE;
}

EXPORT vnxi_cu_result_t
cuEventRecord(vnxi_cu_event_t handle, vnxi_cu_stream_t stream)
{
    ENTER(cuEventRecord, CONTEXT);
    lock();
    struct CUevent_st *event = find_event(handle);
    if (event != NULL && event->context != fc_current()) {
        fc_misuse("an event is recorded in another context than its own");
        event = NULL;
    }
    if (event != NULL) {
        event->recorded++;
    }
    unlock();
    if (event == NULL) {
        return VNXI_CUDA_ERROR_INVALID_HANDLE;
    }
    int status =
        submit(stream, &(op_t){.type = OP_EVENT, .event = event}, false);
    if (status != VNXI_CUDA_SUCCESS) {
        lock();
        event->recorded--;
        unlock();
    }
    return status;
}

EXPORT vnxi_cu_result_t
cuEventQuery(vnxi_cu_event_t handle)
{
    ENTER(cuEventQuery, CONTEXT | UNSAFE);
    lock();
    struct CUevent_st *event = find_event(handle);
    vnxi_cu_result_t status = event == NULL ? VNXI_CUDA_ERROR_INVALID_HANDLE
                              : event->fired < event->recorded
                                  ? VNXI_CUDA_ERROR_NOT_READY
                                  : VNXI_CUDA_SUCCESS;
    unlock();
    return status;
}

/* -- Copies ----------------------------------------------------------------
 */

static int
submit_copy(vnxi_cu_stream_t stream, direction_t direction, uint64_t dst,
            uint64_t src, size_t size, void *staged, bool wait)
{
    op_t op = {
        .type = OP_COPIES,
        .direction = direction,
        .copies = need(malloc(sizeof(copy_t))),
        .count = 1,
        .staged = staged,
    };
    *op.copies = (copy_t){.src = src, .dst = dst, .len = size};
    return submit(stream, &op, wait);
}

static bool
is_host_range(const void *data)
{
    if (fc_is_device_address((uintptr_t)data)) {
        fc_misuse("a device pointer is passed as one to host memory");
        return false;
    }
    return true;
}

EXPORT vnxi_cu_result_t
cuMemcpyDtoDAsync_v2(vnxi_cu_ptr_t dst, vnxi_cu_ptr_t src, size_t size,
                     vnxi_cu_stream_t stream)
{
    ENTER(cuMemcpyDtoDAsync_v2, CONTEXT);
    atomic_fetch_add(&fake_cuda.copies, 1);
    return submit_copy(stream, DEVICE_TO_DEVICE, dst, src, size, NULL, false);
}

/* Each side is of its context, and need not be reached by the other. */
EXPORT vnxi_cu_result_t
cuMemcpyPeerAsync(vnxi_cu_ptr_t dst, vnxi_cu_context_t to, vnxi_cu_ptr_t src,
                  vnxi_cu_context_t from, size_t size, vnxi_cu_stream_t stream)
{
    ENTER(cuMemcpyPeerAsync, CONTEXT);
    if (to == NULL || from == NULL) {
        return VNXI_CUDA_ERROR_INVALID_CONTEXT;
    }
    op_t op = {
        .type = OP_COPIES,
        .to = to,
        .from = from,
        .copies = need(malloc(sizeof(copy_t))),
        .count = 1,
    };
    *op.copies = (copy_t){.src = src, .dst = dst, .len = size};
    atomic_fetch_add(&fake_cuda.copies, 1);
    return submit(stream, &op, false);
}

/* Pageable memory is read at once, registered memory by the stream. */
EXPORT vnxi_cu_result_t
cuMemcpyHtoDAsync_v2(vnxi_cu_ptr_t dst, const void *src, size_t size,
                     vnxi_cu_stream_t stream)
{
    void *staged = NULL;

    ENTER(cuMemcpyHtoDAsync_v2, CONTEXT);
    if (!is_host_range(src)) {
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    atomic_fetch_add(&fake_cuda.copies, 1);
    if (!fc_is_registered(src, size)) {
        atomic_fetch_add(&fake_cuda.pageable, 1);
        staged = need(malloc(size + 1));
        memcpy(staged, src, size);
        src = staged;
    }
    return submit_copy(stream, HOST_TO_DEVICE, dst, (uintptr_t)src, size,
                       staged, false);
}

/* Into pageable memory the call waits. */
EXPORT vnxi_cu_result_t
cuMemcpyDtoHAsync_v2(void *dst, vnxi_cu_ptr_t src, size_t size,
                     vnxi_cu_stream_t stream)
{
    ENTER(cuMemcpyDtoHAsync_v2, CONTEXT);
    if (!is_host_range(dst)) {
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    bool is_pageable = !fc_is_registered(dst, size);
    atomic_fetch_add(&fake_cuda.copies, 1);
    atomic_fetch_add(&fake_cuda.pageable, is_pageable);
    return submit_copy(stream, DEVICE_TO_HOST, (uintptr_t)dst, src, size, NULL,
                       is_pageable);
}

EXPORT vnxi_cu_result_t
cuMemcpyHtoD_v2(vnxi_cu_ptr_t dst, const void *src, size_t size)
{
    ENTER(cuMemcpyHtoD_v2, CONTEXT | UNSAFE);
    return submit_copy(NULL, HOST_TO_DEVICE, dst, (uintptr_t)src, size, NULL,
                       true);
}

EXPORT vnxi_cu_result_t
cuMemcpyDtoH_v2(void *dst, vnxi_cu_ptr_t src, size_t size)
{
    ENTER(cuMemcpyDtoH_v2, CONTEXT | UNSAFE);
    return submit_copy(NULL, DEVICE_TO_HOST, (uintptr_t)dst, src, size, NULL,
                       true);
}

EXPORT vnxi_cu_result_t
cuMemsetD8Async(vnxi_cu_ptr_t address, unsigned char value, size_t size,
                vnxi_cu_stream_t stream)
{
    ENTER(cuMemsetD8Async, CONTEXT);
    return submit(
        stream,
        &(op_t){
            .type = OP_FILL, .address = address, .value = value, .size = size},
        false);
}

/* With one attribute for all copies, as the transport calls it. */
EXPORT vnxi_cu_result_t
cuMemcpyBatchAsync(vnxi_cu_ptr_t *dsts, vnxi_cu_ptr_t *srcs, size_t *sizes,
                   size_t count, vnxi_cu_copy_attr_t *attrs,
                   size_t *attr_starts, size_t attr_count,
                   size_t *fail_index_p, vnxi_cu_stream_t stream)
{
    ENTER(cuMemcpyBatchAsync, CONTEXT);
    if (fail_index_p != NULL) {
        *fail_index_p = SIZE_MAX;
    }
    if (is_null_stream(stream) || count == 0 || attr_count == 0 ||
        attr_count > count || attr_starts[0] != 0) {
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    for (size_t i = 0; i < attr_count; i++) {
        if (attrs[i].srcAccessOrder == 0 || attrs[i].srcAccessOrder > 3 ||
            (attrs[i].flags & ~1u) != 0) {
            return VNXI_CUDA_ERROR_INVALID_VALUE;
        }
    }
    op_t op = {
        .type = OP_COPIES,
        .copies = need(calloc(count, sizeof(copy_t))),
        .count = count,
    };
    for (size_t i = 0; i < count; i++) {
        op.copies[i] =
            (copy_t){.src = srcs[i], .dst = dsts[i], .len = sizes[i]};
        if (sizes[i] == 0) {
            if (fail_index_p != NULL) {
                *fail_index_p = i;
            }
            free(op.copies);
            return VNXI_CUDA_ERROR_INVALID_VALUE;
        }
    }
    atomic_fetch_add(&fake_cuda.copies, 1);
    return submit(stream, &op, false);
}

/* -- Modules and kernels ---------------------------------------------------
 */

static void
write_log(unsigned count, const vnxi_cu_enum_t *options, void **values)
{
    char *log = NULL;
    size_t size = 0;

    for (unsigned i = 0; i < count; i++) {
        if (options[i] == VNXI_CU_JIT_ERROR_LOG_BUFFER) {
            log = values[i];
        }
        if (options[i] == VNXI_CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES) {
            size = (unsigned)(uintptr_t)values[i];
        }
    }
    if (log != NULL && size > 0) {
        snprintf(log, size, "%s", LOG_TEXT);
    }
}

static vnxi_cu_result_t
load_module(vnxi_cu_module_t *module_p, const char *text)
{
    ENTER(cuModuleLoadDataEx, CONTEXT | UNSAFE);
    if (strstr(text, ".version") == NULL || strstr(text, ".target") == NULL) {
        return VNXI_CUDA_ERROR_INVALID_IMAGE;
    }
    lock();
    struct CUmod_st *module = need(calloc(1, sizeof *module));
    module->context = fc_current();
    module->text = need(strdup(text));
    module->function.module = module;
    module->next = modules;
    modules = module;
    unlock();
    atomic_fetch_add(&fake_cuda.modules, 1);
    *module_p = module;
    return VNXI_CUDA_SUCCESS;
}

EXPORT vnxi_cu_result_t
cuModuleLoadDataEx(vnxi_cu_module_t *module_p, const void *image,
                   unsigned count, vnxi_cu_enum_t *options, void **values)
{
    vnxi_cu_result_t status = load_module(module_p, image);

    if (status != VNXI_CUDA_SUCCESS) {
        write_log(count, options, values);
    }
    return status;
}

/* fc_lock is held. */
static struct CUmod_st *
find_module(vnxi_cu_module_t handle)
{
    for (struct CUmod_st *m = modules; m != NULL; m = m->next) {
        if (m == handle) {
            return m;
        }
    }
    fc_misuse("a module is used that does not live");
    return NULL;
}

EXPORT vnxi_cu_result_t
cuModuleUnload(vnxi_cu_module_t handle)
{
    ENTER(cuModuleUnload, CURRENT | UNSAFE);
    lock();
    struct CUmod_st *module = find_module(handle);
    if (module != NULL) {
        struct CUmod_st **at = &modules;
        while (*at != module) {
            at = &(*at)->next;
        }
        *at = module->next;
        free(module->text);
        free(module);
        atomic_fetch_sub(&fake_cuda.modules, 1);
    }
    unlock();
    return module != NULL ? (vnxi_cu_result_t)fc_failure()
                          : VNXI_CUDA_ERROR_INVALID_HANDLE;
}

static bool
has_entry(const char *text, const char *name)
{
    char entry[128];
    size_t len = (size_t)snprintf(entry, sizeof entry, ".entry %s", name);
    const char *at = strstr(text, entry);

    return at != NULL && (at[len] == '(' || at[len] == ' ' || at[len] == '\n');
}

EXPORT vnxi_cu_result_t
cuModuleGetFunction(vnxi_cu_function_t *function_p, vnxi_cu_module_t handle,
                    const char *name)
{
    ENTER(cuModuleGetFunction, CONTEXT);
    lock();
    struct CUmod_st *module = find_module(handle);
    bool has = module != NULL && has_entry(module->text, name);
    if (has) {
        *function_p = &module->function;
    }
    unlock();
    if (has && strcmp(name, FAKE_CUDA_KERNEL) != 0) {
        fc_violation("it cannot run the kernel %s", name);
    }
    return has              ? VNXI_CUDA_SUCCESS
           : module != NULL ? VNXI_CUDA_ERROR_NOT_FOUND
                            : VNXI_CUDA_ERROR_INVALID_HANDLE;
}

/* fc_lock is held. */
static bool
is_function(vnxi_cu_function_t function)
{
    for (struct CUmod_st *m = modules; m != NULL; m = m->next) {
        if (&m->function == function) {
            return m->context == fc_current();
        }
    }
    return false;
}

EXPORT vnxi_cu_result_t
cuLaunchKernel(vnxi_cu_function_t function, unsigned grid_x, unsigned grid_y,
               unsigned grid_z, unsigned block_x, unsigned block_y,
               unsigned block_z, unsigned shared_size, vnxi_cu_stream_t stream,
               void **params, void **extra)
{
    uint64_t rows;
    uint32_t count;

    ENTER(cuLaunchKernel, CONTEXT);
    lock();
    bool is_ours = is_function(function);
    unlock();
    if (!is_ours) {
        fc_misuse("a function is launched that is none of this context");
        return VNXI_CUDA_ERROR_INVALID_HANDLE;
    }
    if (grid_x == 0 || grid_y != 1 || grid_z != 1 || block_x == 0 ||
        block_x > 1024 || block_x % 32 != 0 || block_y != 1 || block_z != 1 ||
        shared_size != 0 || params == NULL || extra != NULL) {
        fc_misuse("a launch has a wrong shape");
        return VNXI_CUDA_ERROR_INVALID_VALUE;
    }
    memcpy(&rows, params[0], sizeof rows);
    memcpy(&count, params[1], sizeof count);
    atomic_fetch_add(&fake_cuda.launches, 1);
    int largest = atomic_load(&fake_cuda.largest_grid);
    while (largest < (int)grid_x &&
           !atomic_compare_exchange_weak(&fake_cuda.largest_grid, &largest,
                                         (int)grid_x)) {
    }
    return submit(stream,
                  &(op_t){.type = OP_KERNEL, .address = rows, .count = count},
                  false);
}
