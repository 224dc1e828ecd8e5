/*
 * Control of the fake libcuda.so.1, and its observations.
 *
 * A test loads the library, takes `fake_cuda` and `fake_cuda_calls` by
 * dlsym(), and changes the knobs before the calls that they concern.  Programs
 * that it starts take them from the environment: FAKE_CUDA has a list such as
 * "devices=2,delay_us=50,refuse=cuIpcOpenMemHandle_v2:201".  With
 * FAKE_CUDA_EXIT=strict a process that leaves anything behind, or has misused
 * the driver, ends with SIGABRT.
 */
#ifndef FAKE_CUDA_H
#define FAKE_CUDA_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FAKE_CUDA_DEVICES 8

/* The one kernel that modules have: (u64 rows, u32 count), with rows of
 * {u64 src, u64 dst, u64 len, u64 unused}. */
#ifndef FAKE_CUDA_KERNEL
#define FAKE_CUDA_KERNEL "copy_rows"
#endif

typedef enum fake_cuda_fabric {
    FAKE_CUDA_NO_FABRIC,
    FAKE_CUDA_FABRIC,
    /* The attribute says yes, but there is no IMEX channel. */
    FAKE_CUDA_FABRIC_WITHOUT_CHANNEL,
} fake_cuda_fabric_t;

typedef struct fake_cuda {
    /* Knobs.  The environment has those before `capturing` by name. */
    atomic_int devices;  /* 1 */
    atomic_int version;  /* of the driver; 12080 */
    atomic_int fabric;   /* fake_cuda_fabric_t */
    atomic_int no_peers; /* devices cannot access each other */
    atomic_int no_fd_export;
    atomic_int old_ipc;  /* a handle that is open opens with ALREADY_MAPPED */
    atomic_int alias;    /* device pointers of registered memory differ from
                            those of the host */
    atomic_int delay_us; /* stream operations start up to so much later */
    atomic_int pin_delay_us;
    atomic_int waits;      /* cuLaunchHostFunc() waits for the function */
    atomic_int seed;       /* of delays and order; 0: from the clock */
    atomic_int fail_after; /* after so many stream operations every context
                              fails; 0: never */
    atomic_int fail_code;  /* with this; 700 */
    atomic_int capturing;  /* "a thread captures a graph": calls that are
                              unsafe then answer 900 unless their thread is in
                              mode RELAXED */
    atomic_int exited;     /* "the process exits": calls answer 4 */
    atomic_uchar uuid[FAKE_CUDA_DEVICES]; /* device i is this GPU; i.  In the
                                             environment: "uuids=10" */

    /* What lives. */
    atomic_int retains; /* of primary contexts */
    atomic_int streams, events, modules;
    atomic_int allocations;  /* of cuMemAlloc(), of pools, managed */
    atomic_int handles;      /* to memory of cuMemCreate, or imported */
    atomic_int mappings;     /* of such handles */
    atomic_int reservations; /* of addresses */
    atomic_int pools;
    atomic_int imports;    /* legacy handles that are open */
    atomic_int registered; /* ranges of host memory */
    atomic_int fds;        /* that the library has open: one for each
                              piece of memory */

    /* What was done. */
    atomic_int misuses;  /* calls that the driver does not allow; see stderr */
    atomic_int calls;    /* of the driver */
    atomic_int launches; /* of kernels */
    atomic_int copies;   /* asynchronous ones; a batch counts as one */
    atomic_int pageable; /* of them, with host memory that is not registered */
    atomic_int rows;     /* of kernels */
    atomic_int captures_broken;   /* unsafe calls during capture */
    atomic_int freed_while_open;  /* memory that another process had open */
    atomic_size_t largest_launch; /* in bytes */
    atomic_int largest_grid;
} fake_cuda_t;

typedef struct fake_cuda_calls {
    /* This function of the driver answers with this code from now on; 0: it
     * works again. */
    void (*refuse)(const char *function, int code);
    /* Calls of this function until now. */
    int (*count)(const char *function);
    /* No operation of a stream begins; what waits for streams, as
     * cuMemFree_v2() does, waits until that ends. */
    void (*hold)(bool on);
    /* Every context fails with this code; 0: none has failed, once the streams
     * have dropped their work. */
    void (*break_contexts)(int code);
    /* Access to device memory that needs no context and is not counted. */
    void (*peek)(uint64_t address, void *data, size_t len);
    void (*poke)(uint64_t address, const void *data, size_t len);
    /* Has another process the memory at this address, or anyone a descriptor
     * of it? */
    bool (*shared)(uint64_t address);
    /* Write what lives to stderr, and return its number. */
    int (*report)(void);
} fake_cuda_calls_t;

#endif
