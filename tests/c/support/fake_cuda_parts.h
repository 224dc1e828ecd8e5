/*
 * What the parts of the fake libcuda.so.1 share (fake_cuda.c: devices,
 * contexts, checks of every call; fake_cuda_stream.c), and those of memory
 * more of (fake_cuda_memory.h).
 */
#ifndef FAKE_CUDA_PARTS_H
#define FAKE_CUDA_PARTS_H

#include "fake_cuda.h"

#include <pthread.h>

#include "engine/native/cuda/cuda_abi.h"

/* As the transport declares them. */
#define PROTOTYPE(result, name, parameters) result name parameters;
VNXI_CU_START_FUNCTIONS(PROTOTYPE)
VNXI_CU_WORK_FUNCTIONS(PROTOTYPE)
VNXI_CU_OPTIONAL_FUNCTIONS(PROTOTYPE)
#undef PROTOTYPE

/* What the transport does not ask for: of clients, and of tests. */
enum {
    POINTER_DEVICE_POINTER = 3,
    POINTER_HOST_POINTER = 4,
    POINTER_SYNC_MEMOPS = 6,
};

#define EXPORT __attribute__((visibility("default")))

/* -- Every call of the driver ----------------------------------------------
 */

/* One function of the driver. */
typedef struct site {
    const char *name;
    atomic_int calls, refusal;
} site_t;

enum {
    ALWAYS = 1 << 0,  /* allowed before cuInit() */
    CONTEXT = 1 << 1, /* needs a current context that has not failed */
    CURRENT = 1 << 2, /* needs one that may have failed: ends something */
    UNSAFE = 1 << 3,  /* not allowed while a graph is captured */
};

/* Begin a function of the driver: count it, and return if it is not allowed
 * here. */
#define ENTER(function, needs)                                              \
    static site_t site_ __attribute__((section("fake_cuda_sites"), used,    \
                                       aligned(16))) = {.name = #function}; \
    do {                                                                    \
        int refused_ = fc_enter(&site_, needs);                             \
        if (refused_ != VNXI_CUDA_SUCCESS) {                                \
            return refused_;                                                \
        }                                                                   \
    } while (0)

int fc_enter(site_t *site, int needs);

/* The driver does not allow this call: stderr, and a count. */
void fc_misuse(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* A GPU would have corrupted memory, or stopped the process. */
_Noreturn void fc_violation(const char *format, ...)
    __attribute__((format(printf, 1, 2)));

/* -- Threads and contexts --------------------------------------------------
 */

typedef struct CUctx_st context_t;
typedef struct CUstream_st stream_t;

struct CUctx_st {
    int device;
    int refs;          /* fc_lock, as all but `failed` */
    unsigned peers;    /* a bit for each device */
    stream_t *stream;  /* the one that NULL stands for */
    atomic_int failed; /* 0, or the error that every call answers */
};

typedef struct thread {
    context_t *stack[16];
    int depth;
    int pushed;    /* those that cuCtxSetCurrent() did not put there */
    unsigned mode; /* of capture */
    bool in_host_function;
} thread_t;

extern fake_cuda_t fake_cuda;
extern _Thread_local thread_t fc_thread;
extern context_t fc_contexts[FAKE_CUDA_DEVICES];
extern pthread_mutex_t fc_lock;
extern pthread_cond_t fc_changed; /* anything that is waited for; fc_lock */

static inline void
lock(void)
{
    pthread_mutex_lock(&fc_lock);
}

static inline void
unlock(void)
{
    pthread_mutex_unlock(&fc_lock);
}

/* The current one, or NULL. */
context_t *fc_current(void);

/* The error of the current context, if it has failed. */
int fc_failure(void);

/* A number below `limit` from the seed. */
uint64_t fc_random(uint64_t *state_p, uint64_t limit);

/* For a sequence of its own. */
uint64_t fc_random_state(void);

bool fc_is_device(int device);

/* -- Memory ----------------------------------------------------------------
 */

typedef enum access { ACCESS_READ, ACCESS_WRITE } access_t;

/* Bytes of device memory, or of host memory that the device can address.  They
 * stay valid until fc_unpin(). */
typedef struct view {
    uint8_t *bytes;
    size_t len; /* may be less than wanted: ask again behind them */
    struct chunk *chunk;
} view_t;

/* On behalf of a kernel or the copy engine of that context; NULL: of the test.
 * Nothing there, or no right: a violation in the words of `what`. */
view_t fc_pin(const context_t *context, uint64_t address, size_t len,
              access_t access, bool is_kernel, const char *what);
void fc_unpin(view_t *view);

/* Is all of it host memory that is registered? */
bool fc_is_registered(const void *data, size_t len);

/* Has another process the memory there, or anyone a descriptor of it? */
bool fc_shared(uint64_t address);

bool fc_is_device_address(uint64_t address);

/* Memory that a stream frees. */
void fc_free(uint64_t address);

void fc_memory_start(void);

/* The context ends: the number of allocations that it still has. */
int fc_memory_of_lock_held(const context_t *context);

/* -- Streams ---------------------------------------------------------------
 */

/* The context ends: the number of streams, events and modules that it has. */
int fc_work_of_lock_held(const context_t *context);

/* No operation begins. */
void fc_hold(bool on);

/* Wait until the streams of every context have nothing to do. */
void fc_drain(void);

/* An asynchronous free in that stream. */
int fc_stream_free(vnxi_cu_stream_t stream, uint64_t address);

#endif
