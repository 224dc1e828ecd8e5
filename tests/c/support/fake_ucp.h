/* Control of the fake libucp, its observations, and events that a test can
 * trigger. */
#ifndef FAKE_UCP_H
#define FAKE_UCP_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

typedef enum fake_ucp_kind {
    FAKE_GET,
    FAKE_PUT,
    FAKE_AM,
    FAKE_FLUSH,
    FAKE_CLOSE,
    FAKE_KINDS,
} fake_ucp_kind_t;

/* Of one kind of request; said by the test. */
typedef struct fake_ucp_orders {
    atomic_bool hold;       /* they end when the test says so */
    atomic_bool at_once;    /* done in the call, without a request */
    atomic_int refuse_post; /* this one (from 1 on; -1: all) is refused... */
    atomic_int refusal;     /* ...with this status */
    atomic_int fail_post;   /* this one ends... */
    atomic_int failure;     /* ...with this status */
    atomic_int posts;       /* seen */
    _Atomic(pthread_t) poster; /* the thread of the last one */
} fake_ucp_orders_t;

typedef struct fake_ucp {
    fake_ucp_orders_t of[FAKE_KINDS];
    /* Said by the test.  Statuses that calls are to fail with; 0: they do not
     */
    atomic_int fail_config, fail_init, fail_worker, fail_efd, fail_query;
    atomic_int fail_listen, fail_ep, fail_map, fail_pack, fail_unpack;
    atomic_int fail_transports, fail_mem_query;
    void (*_Atomic on_worker)(void); /* called while a worker is made */
    atomic_bool die_connecting;      /* peers end while an endpoint is made */
    atomic_bool inside;      /* callbacks come from within posts, too */
    atomic_bool error_first; /* the endpoint's error before its requests' */
    atomic_bool late_cancel; /* a close by force ends at once, and the requests
                                that it cancels later */
    atomic_bool storm;       /* the descriptor is always readable */
    atomic_int busy;         /* so many times is arming BUSY */
    atomic_int transports;   /* that an endpoint has; 0: one */
    atomic_bool tcp;         /* and they are TCP */
    atomic_int cuda;         /* has it CUDA's memory?  Without a libcuda in the
                                process it takes all memory for that */
    atomic_bool blind;       /* it takes all memory for the CPU's, unless told
                                otherwise */
    atomic_bool needs_gpu;   /* as UCX's CUDA modules need it: while memory of
                                a GPU is mapped, threads that call it are in a
                                context of libcuda, and in capture mode
                                RELAXED */

    /* Seen by the library. */
    atomic_int configs, contexts, workers, eps, mems, keys; /* that live */
    atomic_int buffers, addresses, requests;                /* likewise */
    atomic_int misuses;        /* calls that UCX does not allow; see stderr */
    atomic_int creates;        /* endpoints that were asked for */
    atomic_int forced, closed; /* endpoints, by how they were closed */
    atomic_int unpacks;
    atomic_int told[3];    /* mappings by the type that was given */
    atomic_int gpu_mems;   /* mapped memory of a GPU */
    atomic_int gpu_checks; /* threads that were looked at: needs_gpu */
    atomic_int arms, progress_calls;
    atomic_int left_open;   /* endpoints of workers that end */
    atomic_int modules_set; /* the option MODULES */
    char settings[2048];    /* "KEY=value;" each, of the last context */
} fake_ucp_t;

typedef struct fake_ucp_calls {
    /* Requests that are held, oldest first; the length of one of them. */
    size_t (*held)(fake_ucp_kind_t kind);
    size_t (*held_len)(fake_ucp_kind_t kind, size_t index);
    /* End one of them with this status.  False: there is none. */
    bool (*end)(fake_ucp_kind_t kind, size_t index, int status);
    /* Active message 0 comes to each worker that listens. */
    void (*deliver)(const void *data, size_t len, uint64_t attr);
    /* Every endpoint fails with this status. */
    void (*break_eps)(int status);
    /* The log handler gets this. */
    void (*log)(int level, const char *format, ...);
    /* As UCX calls them. */
    void *(*malloc)(size_t size);
    ssize_t (*send)(int fd, const void *data, size_t len, int flags);
    ssize_t (*sendmsg)(int fd, const struct msghdr *message, int flags);
    int (*accept)(int fd, struct sockaddr *address, socklen_t *len_p);
    int (*socket)(int domain, int type, int protocol);
    int (*close)(int fd);
} fake_ucp_calls_t;

#endif
